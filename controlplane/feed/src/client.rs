//! The client: follows a control plane, and has the last good model without one.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fairway_model::{Model, Objects, Secret};
use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::identity::{GatewayName, Pin};
use crate::scope::Subscriber;
use crate::{Facts, ModelReceiver, routes, sealed, snapshot};
use follow::Following;

pub use crate::sealed::{Sealed, SealingKey};
pub use ask::ask;
pub(crate) use ask::exchange;
pub use skim::skim;

mod ask;
mod follow;
mod skim;

/// Whom to follow, and where to remember.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the control plane is: `http://HOST:PORT` of each of its servers, or `https://` over TLS. Any
    /// will do; nodes spread over them, and go to the next when one is away.
    pub endpoints: Vec<String>,
    /// The name of this node.
    pub node: String,
    /// The file that keeps the last good model; its folder is made if need be.
    pub snapshot: PathBuf,
    /// What the control plane is told of this node, whenever there is a connection, and when it
    /// changes.
    pub facts: watch::Receiver<Facts>,
}

/// Whom a gateway follows, and what it remembers. It gets Services, endpoints, its own Ingresses, and the secrets
/// that these name; its node's facts are none of its business.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// As in [`Options::endpoints`].
    pub endpoints: Vec<String>,
    /// Its name, which must be that in its certificate.
    pub gateway: GatewayName,
    /// The file that keeps the last good model, without secrets.
    pub snapshot: PathBuf,
    /// Where secrets are kept. `None`: nowhere, and after a start hosts with TLS wait for the control plane. Keys
    /// of tickets are never kept: a gateway that has none makes some of its own until it is given others.
    pub secrets: Option<Sealed>,
}

/// Why following cannot even begin; everything later is retried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint cannot be used.
    #[error("feed endpoint \"{0}\": must look like {1}://HOST:PORT")]
    Endpoint(String, &'static str),
    /// There is none.
    #[error("no feed endpoint")]
    NoEndpoint,
    /// The node's name cannot be used.
    #[error("node name: {0}")]
    Node(String),
}

/// How following goes, for health endpoints and people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// A stream is open and in step.
    pub connected: bool,
    /// Whom the stream comes from, or was last asked: `HOST:PORT`; empty before the first attempt.
    pub server: String,
    /// The control plane's epoch and the revision taken last; `None` before the first.
    pub revision: Option<(String, u64)>,
    /// Records of kinds that only a newer version knows, left out so far.
    pub skipped: u64,
    /// Why the last connection ended or could not be made; `None` while connected.
    pub error: Option<String>,
}

/// A running client. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Follower {
    /// The model: the disk's last good one as soon as that is read, then the control plane's. A gateway's is
    /// without secrets at first if it keeps none, or they cannot be opened.
    pub model: ModelReceiver,
    /// How it goes.
    pub status: watch::Receiver<Status>,
    applied: watch::Sender<Option<Arc<Model>>>,
    _tasks: JoinSet<()>,
}

impl Follower {
    /// Says that `model`, which came from [`Self::model`], is in force on this node. The control
    /// plane hears of it as soon as there is a connection, and again after it restarts.
    pub fn ack(&self, model: &Arc<Model>) {
        self.applied.send_replace(Some(Arc::clone(model)));
    }
}

/// Makes the byte stream to the control plane: TCP now, TLS over it where there are certificates.
pub trait Connector: Send + Sync + 'static {
    /// What HTTP/2 is spoken over.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects to `authority`, a `HOST:PORT`. Given five seconds.
    fn connect(&self, authority: &str) -> impl Future<Output = io::Result<Self::Io>> + Send;

    /// How its URLs begin.
    const SCHEME: &'static str = "http";

    /// From when on another certificate is to be asked for, over a connection that is open; `None` if
    /// that is not this end's business.
    fn renewal(&self) -> Option<SystemTime> {
        None
    }

    /// A certificate request and its new key, both as PEM.
    fn request(&self) -> io::Result<(String, String)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The CA that vouches for the control plane, if one does: what came from there is for its cluster alone.
    fn authority(&self) -> Option<Pin> {
        None
    }

    /// Keeps the answer to [`Self::request`] for connections to come; the open one stays as it is.
    fn renewed(&self, _answer: &[u8], _key: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Cleartext TCP.
#[derive(Clone, Debug)]
pub struct Plain;

impl Connector for Plain {
    type Io = TcpStream;

    async fn connect(&self, authority: &str) -> io::Result<TcpStream> {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(authority).await?.collect();
        let stream = TcpStream::connect(&*addresses).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Publishes the last good model from the disk and follows the control plane from then on.
///
/// Must be called within a Tokio runtime. Returns at once: reading the snapshot of a large cluster takes
/// time in which its caller has other things to do. One that is damaged is reported and otherwise
/// ignored.
pub fn follow(options: Options) -> Result<Follower, Error> {
    follow_over(options, Plain)
}

/// [`follow`] over another kind of connection.
pub fn follow_over<C: Connector>(options: Options, connector: C) -> Result<Follower, Error> {
    routes::check_node(&options.node).map_err(Error::Node)?;
    let Options { endpoints, node, snapshot, facts } = options;
    let kept = Kept { snapshot, secrets: None, group: None };
    start(&endpoints, Subscriber::Node(node), facts, kept, connector)
}

/// [`follow_over`], of a gateway.
pub fn follow_as_gateway<C: Connector>(
    options: GatewayOptions,
    connector: C,
) -> Result<Follower, Error> {
    let GatewayOptions { endpoints, gateway, snapshot, secrets } = options;
    let kept = Kept { snapshot, secrets, group: Some(gateway.group.clone()) };
    let (_, facts) = watch::channel(Facts::default());
    start(&endpoints, Subscriber::Gateway(gateway), facts, kept, connector)
}

fn start<C: Connector>(
    endpoints: &[String],
    subscriber: Subscriber,
    facts: watch::Receiver<Facts>,
    kept: Kept,
    connector: C,
) -> Result<Follower, Error> {
    let read = endpoints.iter().map(|endpoint| authority(endpoint, C::SCHEME));
    let authorities = read.collect::<Result<Vec<_>, _>>()?;
    if authorities.is_empty() {
        return Err(Error::NoEndpoint);
    }
    let (publish, model) = watch::channel(None);
    let (report, status) = watch::channel(Status::default());
    let (applied, acks) = watch::channel(None);
    let (kept, connector) = (Arc::new(kept), Arc::new(connector));
    let following = Following {
        authorities,
        subscriber,
        facts,
        connector: Arc::clone(&connector),
        publish,
        report,
        acks,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (files, trusting) = (Arc::clone(&kept), Arc::clone(&connector));
        // It fails if the runtime is going down.
        let read = tokio::task::spawn_blocking(move || files.last_good(trusting.authority())).await;
        let last_good = read.unwrap_or_default();
        if let Some(model) = &last_good {
            following.publish.send_replace(Some(Arc::clone(model)));
        }
        // What was on the disk need not go there.
        let news = following.publish.subscribe();
        tokio::join!(following.run(last_good), keep(kept, connector, news));
    });
    Ok(Follower { model, status, applied, _tasks: tasks })
}

/// What a client leaves for its next start.
#[derive(Debug)]
struct Kept {
    snapshot: PathBuf,
    secrets: Option<Sealed>,
    /// Of gateways, whose they are: one that comes into another group has none of the former's routes.
    group: Option<String>,
}

/// Secrets, and the CA of the feed that they came by.
type Secrets = (Option<Pin>, Objects<Secret>);

impl Kept {
    /// The model as it was left, with the secrets that came from a control plane of this CA. Blocks on the disk.
    fn last_good(&self, ca: Option<Pin>) -> Option<Arc<Model>> {
        let mut model = match snapshot::load(&self.snapshot, self.group.as_deref()) {
            Ok(model) => model?,
            Err(error) => {
                tracing::error!(
                    file = %self.snapshot.display(),
                    error = &error as &dyn std::error::Error,
                    "the snapshot of the last good state cannot be used; waiting for the control plane"
                );
                return None;
            }
        };
        if let Some(kept) = &self.secrets {
            match sealed::load(kept, (ca, self.group())) {
                Ok(secrets) => model.secrets = secrets.unwrap_or_default(),
                Err(error) => tracing::error!(
                    file = %kept.file.display(),
                    error = &error as &dyn std::error::Error,
                    "the secrets of the last good state cannot be used; hosts with TLS wait for the \
                     control plane"
                ),
            }
        }
        Some(Arc::new(model))
    }

    /// Leaves `model`; of secrets those that are not `known` to be there. Blocks on the disk.
    fn save(&self, model: &Model, ca: Option<Pin>, known: Option<&Secrets>) -> io::Result<()> {
        if let Some(kept) = &self.secrets
            && known.is_none_or(|(of, known)| *of != ca || *known != model.secrets)
        {
            // Before the routes that need them.
            sealed::save(kept, (ca, self.group()), &model.secrets)?;
        }
        snapshot::save(&self.snapshot, model, self.group.as_deref())
    }

    fn group(&self) -> &str {
        self.group.as_deref().unwrap_or_default()
    }
}

fn authority(endpoint: &str, scheme: &'static str) -> Result<String, Error> {
    let unusable = || Error::Endpoint(endpoint.to_owned(), scheme);
    let uri: Uri = endpoint.parse().map_err(|_| unusable())?;
    let plain = uri.scheme_str() == Some(scheme) && matches!(uri.path(), "" | "/");
    match uri.authority() {
        Some(authority) if plain && authority.port().is_some() && uri.query().is_none() => {
            Ok(authority.to_string())
        }
        _ => Err(unusable()),
    }
}

/// The longest time between two writes of a model that changes.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Writes each new model to the disk at once, unless the last write was just now: in a burst only the
/// last model matters after a crash, and no more than a twentieth of the time goes into writing, unless the
/// disk is so slow that the last state would be minutes old.
async fn keep<C: Connector>(kept: Arc<Kept>, connector: Arc<C>, mut model: ModelReceiver) {
    let mut known: Option<Secrets> = None;
    while model.changed().await.is_ok() {
        let Some(current) = model.borrow_and_update().clone() else {
            continue;
        };
        let (files, trusting) = (Arc::clone(&kept), Arc::clone(&connector));
        let start = Instant::now();
        let saved = tokio::task::spawn_blocking(move || {
            let ca = trusting.authority();
            files.save(&current, ca, known.as_ref()).map(|()| (ca, current.secrets.clone()))
        });
        match saved.await {
            Ok(Ok(secrets)) => {
                known = Some(secrets);
                tokio::time::sleep((start.elapsed() * 19).min(LONGEST_REST)).await;
            }
            Ok(Err(error)) => {
                known = None;
                tracing::error!(
                    file = %kept.snapshot.display(), %error,
                    "cannot keep the last good state; a restart without the control plane would \
                     begin with an older one"
                );
                tokio::time::sleep(Duration::from_secs(10)).await;
                model.mark_changed();
            }
            // The runtime is going down.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for good in ["http://127.0.0.1:9443", "http://[::1]:80/", "http://cp.example:1"] {
            assert!(authority(good, "http").is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:9443", "https://a:1", "http://a", "http://a:1/x", "http://a:1?b"]
        {
            assert!(authority(bad, "http").is_err(), "{bad}");
        }
    }
}
