//! A worker's connections to endpoints.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::Config;
use crate::body::{Lease, Upload};

/// Connections to one endpoint that wait for a request.
const IDLE: usize = 320;
/// Connections of a worker that wait, to all endpoints together: names that are asked for make identities, too,
/// and clients may make up names.
const ROOM: usize = 8192;
/// How long they wait; most servers wait longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection is used, so that whoever balances behind an address gets to balance.
const AGE: Duration = Duration::from_secs(3600);
/// What the head of an answer takes to read; how much of it may pass is each route's own.
const HEAD: u32 = 256 << 10;
const FIELDS: usize = 256;
/// Streams of one HTTP/2 connection before another one is made.
const STREAMS: usize = 100;

/// All that makes one connection as good as another. Requests share one only if all of this is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) address: SocketAddr,
    pub(crate) http2: bool,
    /// The number of a [`Config`] (its certificates, whom it believes) and the name that is asked for.
    pub(crate) tls: Option<(u64, ServerName<'static>)>,
}

/// Whom to connect to, and how.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) identity: Arc<Identity>,
    pub(crate) tls: Option<Config>,
    /// For the connection, TLS and all.
    pub(crate) patience: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    #[error("no connection to {0} in time")]
    ConnectTimeout(SocketAddr),
    #[error("no TLS with {0}: {1}")]
    Tls(SocketAddr, io::Error),
    #[error("{0} is no HTTP server: {1}")]
    Handshake(SocketAddr, hyper::Error),
}

/// Idle connections.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<Arc<Identity>, Vec<Idle>>>,
    shared: Mutex<HashMap<Arc<Identity>, Vec<Shared>>>,
    room: Arc<Semaphore>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(ROOM)
    }
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Upload>,
    born: Instant,
    since: Instant,
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Upload>,
    born: Instant,
    used: Instant,
    /// One for each stream, and this one.
    streams: Arc<()>,
    _room: OwnedSemaphorePermit,
}

/// A connection that takes a request.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: Sender,
    identity: Arc<Identity>,
    born: Instant,
    /// It has had requests before.
    pub(crate) used: bool,
    pool: Arc<Pool>,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Upload>),
    Http2 {
        sender: http2::SendRequest<Upload>,
        /// Counted for as long as this is there.
        _stream: Arc<()>,
    },
}

impl Pool {
    fn new(room: usize) -> Self {
        let room = Arc::new(Semaphore::new(room));
        Self { idle: Mutex::default(), shared: Mutex::default(), room }
    }

    /// A connection that waits, if there is one.
    pub(crate) fn take(self: &Arc<Self>, identity: &Arc<Identity>) -> Option<Connection> {
        let (sender, born) = if identity.http2 {
            let mut shared = lock(&self.shared);
            let connections = shared.get_mut(identity)?;
            connections.retain(|shared| !shared.sender.is_closed());
            let fits = |shared: &&mut Shared| {
                shared.sender.is_ready() && Arc::strong_count(&shared.streams) <= STREAMS
            };
            let one = connections.iter_mut().find(fits)?;
            one.used = Instant::now();
            let (sender, _stream) = (one.sender.clone(), Arc::clone(&one.streams));
            (Sender::Http2 { sender, _stream }, one.born)
        } else {
            let mut idle = lock(&self.idle);
            let connections = idle.get_mut(identity)?;
            connections.retain(|idle| !idle.sender.is_closed());
            // The one that came last is the least likely to be closed at the other end.
            let at = connections.iter().rposition(|idle| idle.sender.is_ready())?;
            let one = connections.remove(at);
            (Sender::Http1(one.sender), one.born)
        };
        let (identity, pool) = (Arc::clone(identity), Arc::clone(self));
        Some(Connection { sender, identity, born, used: true, pool })
    }

    /// A new one.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        destination: &Destination,
    ) -> Result<Connection, Failed> {
        let address = destination.identity.address;
        let connecting = timeout(destination.patience, self.open(destination));
        connecting.await.map_err(|_| Failed::ConnectTimeout(address))?
    }

    async fn open(self: &Arc<Self>, destination: &Destination) -> Result<Connection, Failed> {
        let identity = &destination.identity;
        let address = identity.address;
        let io = connect(address, destination).await?;
        let born = Instant::now();
        let sender = if identity.http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .adaptive_window(true)
                .max_header_list_size(HEAD)
                .keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(20));
            let (sender, connection) = builder
                .handshake(TokioIo::new(io))
                .await
                .map_err(|error| Failed::Handshake(address, error))?;
            tokio::spawn(async move {
                let _ = connection.await;
            });
            let streams = Arc::new(());
            if let Ok(_room) = Arc::clone(&self.room).try_acquire_owned() {
                let (sender, streams) = (sender.clone(), Arc::clone(&streams));
                let shared = Shared { sender, born, used: born, streams, _room };
                lock(&self.shared).entry(Arc::clone(identity)).or_default().push(shared);
            }
            Sender::Http2 { sender, _stream: streams }
        } else {
            let mut builder = http1::Builder::new();
            builder.max_buf_size(HEAD as usize).max_headers(FIELDS);
            let (sender, connection) = builder
                .handshake(TokioIo::new(io))
                .await
                .map_err(|error| Failed::Handshake(address, error))?;
            tokio::spawn(async move {
                let _ = connection.with_upgrades().await;
            });
            Sender::Http1(sender)
        };
        let (identity, pool) = (Arc::clone(identity), Arc::clone(self));
        Ok(Connection { sender, identity, born, used: false, pool })
    }

    /// Drops what has waited for too long. Connections to endpoints that are gone are among that: nobody is
    /// sent there any more.
    pub(crate) fn purge(&self, now: Instant) {
        let young = |since: Instant, patience| now.saturating_duration_since(since) < patience;
        lock(&self.idle).retain(|_, connections| {
            connections.retain(|idle| !idle.sender.is_closed() && young(idle.since, PATIENCE));
            !connections.is_empty()
        });
        lock(&self.shared).retain(|_, connections| {
            connections.retain(|shared| {
                let busy = Arc::strong_count(&shared.streams) > 1;
                let good = busy || young(shared.used, PATIENCE);
                !shared.sender.is_closed() && good && young(shared.born, AGE)
            });
            !connections.is_empty()
        });
    }
}

impl Connection {
    /// Sends a request. What nothing was sent of comes back.
    ///
    /// # Errors
    /// As hyper has them; the connection is of no use then.
    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2 { sender, .. } => sender.try_send_request(request).await,
        }
    }
}

impl Lease for Connection {
    fn done(self) {
        let Sender::Http1(sender) = self.sender else { return };
        if sender.is_closed() || self.born.elapsed() > AGE {
            return;
        }
        let Ok(_room) = Arc::clone(&self.pool.room).try_acquire_owned() else { return };
        let mut idle = lock(&self.pool.idle);
        let connections = idle.entry(self.identity).or_default();
        if connections.len() < IDLE {
            connections.push(Idle { sender, born: self.born, since: Instant::now(), _room });
        }
    }
}

/// What is spoken to a backend over.
#[derive(Debug)]
pub(crate) enum Backend {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

async fn connect(address: SocketAddr, destination: &Destination) -> Result<Backend, Failed> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| Failed::Connect(address, error))?;
    stream.set_nodelay(true).map_err(|error| Failed::Connect(address, error))?;
    let tls = destination.tls.as_ref().zip(destination.identity.tls.as_ref());
    let Some((config, (_, name))) = tls else { return Ok(Backend::Plain(stream)) };
    let connector = TlsConnector::from(Arc::clone(&config.tls));
    let stream = connector.connect(name.clone(), stream).await;
    stream.map(|stream| Backend::Tls(Box::new(stream))).map_err(|error| Failed::Tls(address, error))
}

impl AsyncRead for Backend {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Backend {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn no_more_connections_wait_than_there_is_room_for() {
        let pool = Arc::new(Pool::new(1));
        let mut connections = Vec::new();
        for http2 in [false, false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let identity = Arc::new(Identity { address, http2, tls: None });
            let destination = Destination { identity, tls: None, patience: PATIENCE };
            connections.push((pool.connect(&destination).await.unwrap(), destination, listener));
            if connections.len() == 2 {
                for (connection, ..) in connections.drain(..1) {
                    connection.done();
                }
            }
        }
        assert_eq!(lock(&pool.idle).len(), 1);
        for (connection, destination, _listener) in connections {
            connection.done();
            assert!(pool.take(&destination.identity).is_none(), "{destination:?}");
        }
        pool.purge(Instant::now() + PATIENCE);
        assert_eq!(pool.room.available_permits(), 1);
    }
}
