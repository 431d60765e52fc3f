//! The client: follows a control plane, and has the last good model without one.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fairway_model::Model;
use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Facts, ModelReceiver, routes, snapshot};
use follow::Following;

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
    /// The model: the disk's last good one as soon as that is read, then the control plane's.
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
    let read = options.endpoints.iter().map(|endpoint| authority(endpoint, C::SCHEME));
    let authorities = read.collect::<Result<Vec<_>, _>>()?;
    if authorities.is_empty() {
        return Err(Error::NoEndpoint);
    }
    routes::check_node(&options.node).map_err(Error::Node)?;

    let (publish, model) = watch::channel(None);
    let (report, status) = watch::channel(Status::default());
    let (applied, acks) = watch::channel(None);
    let Options { node, snapshot, facts, .. } = options;
    let following = Following { authorities, node, facts, connector, publish, report, acks };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let file = snapshot.clone();
        // It fails if the runtime is going down.
        let read = tokio::task::spawn_blocking(move || last_good(&file)).await;
        let last_good = read.unwrap_or_default();
        if let Some(model) = &last_good {
            following.publish.send_replace(Some(Arc::clone(model)));
        }
        // What was on the disk need not go there.
        let news = following.publish.subscribe();
        tokio::join!(following.run(last_good), keep(snapshot, news));
    });
    Ok(Follower { model, status, applied, _tasks: tasks })
}

fn last_good(snapshot: &Path) -> Option<Arc<Model>> {
    match snapshot::load(snapshot) {
        Ok(model) => model.map(Arc::new),
        Err(error) => {
            tracing::error!(
                file = %snapshot.display(),
                error = &error as &dyn std::error::Error,
                "the snapshot of the last good state cannot be used; waiting for the control plane"
            );
            None
        }
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
async fn keep(path: PathBuf, mut model: ModelReceiver) {
    while model.changed().await.is_ok() {
        let Some(current) = model.borrow_and_update().clone() else {
            continue;
        };
        let file = path.clone();
        let start = Instant::now();
        let saved = tokio::task::spawn_blocking(move || snapshot::save(&file, &current)).await;
        match saved {
            Ok(Ok(())) => tokio::time::sleep((start.elapsed() * 19).min(LONGEST_REST)).await,
            Ok(Err(error)) => {
                tracing::error!(
                    file = %path.display(), %error,
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
