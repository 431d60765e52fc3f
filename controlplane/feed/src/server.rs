//! The server: one model in, any number of nodes out.

use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use crate::authority::{Authority, Vouch};
use crate::identity::Identity;
use crate::routes::Routes;
use crate::tickets::TicketKeys;
use crate::{ModelReceiver, NodeFacts};

/// Connections at a time: twice the nodes of the largest Kubernetes cluster. Beyond it new ones
/// wait in the listen queue.
const MAX_CONNECTIONS: usize = 10_000;

/// How long a connection may take to say what it wants.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Strangers at a time, and how long each may stay: enough to join. Whoever reaches the port can be one, and is not to
/// keep nodes away.
const STRANGERS: usize = 256;
const JOINING: Duration = Duration::from_secs(15);

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The longest silence on a stream; a client gives up after three of the default.
    pub ping: Duration,
    /// For how long changes are gathered after one, at most; the one itself does not wait.
    pub coalesce: Duration,
    /// Takes what nodes say of themselves; whoever listens makes it last.
    pub facts: watch::Sender<NodeFacts>,
    /// Who gives nodes their certificates; `None` if somebody else does.
    pub authority: Option<Arc<Authority>>,
    /// Who knows what nodes and gateways other tokens than the authority's speak for; nobody if `None`.
    pub vouch: Option<Arc<dyn Vouch>>,
    /// Makes the keys of gateways' TLS tickets; none if `None`.
    pub tickets: Option<TicketKeys>,
    /// How many callers without a certificate may be there at a time, and for how long each.
    pub strangers: (usize, Duration),
    /// Once true, nobody new is let in, and whoever is there is sent away.
    pub drain: watch::Receiver<bool>,
    /// Over how long those are sent away: at moments that are spread over it.
    pub drain_time: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(5),
            coalesce: Duration::from_millis(50),
            facts: watch::Sender::default(),
            authority: None,
            vouch: None,
            tickets: None,
            strangers: (STRANGERS, JOINING),
            drain: watch::channel(false).1,
            drain_time: Duration::from_secs(5),
        }
    }
}

/// Who has connected, as far as the connection tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Without TLS there is no telling, and whoever gets here may do all.
    Anyone,
    /// TLS, and no certificate: may join.
    Stranger,
    /// Has shown a certificate of the right CA.
    Known(Identity),
}

/// What happens between a TCP connection and HTTP: nothing, or a TLS handshake.
pub trait Acceptor: Clone + Send + Sync + 'static {
    /// What HTTP is spoken over.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Runs in the connection's own task and is given ten seconds.
    fn accept(
        &self,
        stream: TcpStream,
    ) -> impl Future<Output = io::Result<(Self::Io, Caller)>> + Send;
}

/// Cleartext, for loopback and trusted underlays.
#[derive(Clone, Debug)]
pub struct Plain;

impl Acceptor for Plain {
    type Io = TcpStream;

    async fn accept(&self, stream: TcpStream) -> io::Result<(TcpStream, Caller)> {
        Ok((stream, Caller::Anyone))
    }
}

/// Serves `model` over HTTP/1.1 and HTTP/2 until it has drained, or the future is dropped, which also
/// ends all connections; a client that is cut off keeps its last whole step.
///
/// Each call is an epoch of its own. Streams that begin before there is a model wait for it.
pub async fn serve(
    listener: TcpListener,
    acceptor: impl Acceptor,
    model: ModelReceiver,
    options: Options,
) {
    let (mut drain, drain_time) = (options.drain.clone(), options.drain_time);
    let (strangers, patience) = options.strangers;
    let strangers = Strangers { permits: Arc::new(Semaphore::new(strangers)), patience };
    let routes = Arc::new(Routes::new(epoch(), model.clone(), options));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut models = JoinSet::new();
    models.spawn({
        let routes = Arc::clone(&routes);
        async move { routes.take_models(model).await }
    });
    let mut connections = JoinSet::new();
    tokio::select! {
        () = accept(listener, acceptor, routes, permits, strangers, &mut connections) => return,
        () = drained(&mut drain) => {}
    }
    // The listener is gone: whoever is sent away finds another server, or nobody for a while.
    let all_gone = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain_time + HANDSHAKE, all_gone).await.is_err() {
        tracing::warn!("some connections do not end by themselves");
    }
}

/// Waits until it is time to drain; for ever if there can be no such time.
pub(crate) async fn drained(drain: &mut watch::Receiver<bool>) {
    if drain.wait_for(|drain| *drain).await.is_err() {
        std::future::pending().await
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: impl Acceptor,
    routes: Arc<Routes>,
    permits: Arc<Semaphore>,
    strangers: Strangers,
    connections: &mut JoinSet<()>,
) {
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection gone before it was taken: others may
                // end in the meantime, and an accept loop that spins helps nobody.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, routes) = (acceptor.clone(), Arc::clone(&routes));
        let strangers = strangers.clone();
        connections.spawn(async move {
            connection(stream, peer, acceptor, routes, strangers).await;
            drop(permit);
        });
    }
}

/// The room for callers without a certificate.
#[derive(Clone)]
struct Strangers {
    permits: Arc<Semaphore>,
    patience: Duration,
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: impl Acceptor,
    routes: Arc<Routes>,
    strangers: Strangers,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot turn off Nagle's algorithm");
    }
    let (io, caller) = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            tracing::info!(%peer, %error, "connection refused");
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "handshake took too long");
            return;
        }
    };
    let is_stranger = matches!(caller, Caller::Stranger);
    let permit = is_stranger.then(|| strangers.permits.try_acquire());
    if matches!(permit, Some(Err(_))) {
        tracing::info!(%peer, "too many callers without a certificate; this one may try again");
        return;
    }
    let mut drain = routes.drain();
    let caller = Arc::new(caller);
    let over = Arc::new(Notify::new());
    let is_over = Arc::clone(&over);
    let service = service_fn(move |request| {
        let (routes, caller) = (Arc::clone(&routes), Arc::clone(&caller));
        if routes.is_over_for(&caller) {
            is_over.notify_one();
        }
        async move { Ok::<_, Infallible>(routes.answer(&caller, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(16)
        // A peer that vanished without a word would otherwise hold its stream for ever.
        .keep_alive_interval(Some(Duration::from_secs(10)))
        .keep_alive_timeout(Duration::from_secs(20));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(strangers.patience), if is_stranger => {
            tracing::debug!(%peer, "a caller without a certificate has been here for too long");
            return;
        }
        () = over.notified() => {
            // It is told why, and whoever has another certificate by now comes back with that.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = drained(&mut drain) => {
            // GOAWAY; what is asked already is answered, and streams end in their own time.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// A name for this life of the server. It must differ from earlier lives, not be secret: the keys
/// the standard library draws from the system for its hash maps are random enough.
fn epoch() -> String {
    let number = || RandomState::new().build_hasher().finish();
    format!("{:016x}", number())
}
