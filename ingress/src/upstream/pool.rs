//! A worker's connections to endpoints.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, StatusCode, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Ask;
use super::tls::Config;
use super::wire::{self, Broken, Wire};
use crate::body::{self, Cut, Lease, Progress, Sending};
use crate::headers;
use crate::message::{Fields, Response};
use crate::server::alarm::Alarm;

/// Connections to one endpoint that wait for a request.
const IDLE: usize = 320;
/// Connections of a worker that wait or have waited, to all endpoints together: names that are asked for make
/// identities, too, and clients may make up names.
const ROOM: usize = 8192;
/// How long they wait; most servers wait longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long they keep memory to read into.
const REST: Duration = Duration::from_secs(2);
/// How long a connection is used, so that whoever balances behind an address gets to balance.
const AGE: Duration = Duration::from_secs(3600);
/// Streams of one HTTP/2 connection before another one is made.
const STREAMS: usize = 100;

/// All that makes one connection as good as another. Requests share one only if all of this is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    address: SocketAddr,
    http2: bool,
    /// The number of a [`Config`] (its certificates, whom it believes) and the name that is asked for.
    tls: Option<(u64, ServerName<'static>)>,
    /// Of all that: it is looked up twice a request.
    hash: u64,
}

impl Identity {
    pub(crate) fn new(
        address: SocketAddr,
        http2: bool,
        tls: Option<(u64, ServerName<'static>)>,
    ) -> Self {
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let hash = SEED.hash_one((address, http2, &tls));
        Self { address, http2, tls, hash }
    }
}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Of what is a hash already.
#[derive(Debug, Default)]
pub(crate) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type ByIdentity<T> = HashMap<Arc<Identity>, T, BuildHasherDefault<Hashed>>;

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
    idle: Waiting<Direct>,
    /// Those of hyper's, for requests that are sent while they arrive.
    tasks: Waiting<http1::SendRequest<Sending>>,
    shared: Mutex<ByIdentity<Vec<Shared>>>,
    room: Arc<Semaphore>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(ROOM)
    }
}

type Direct = Box<Wire<Backend>>;
type Waiting<T> = Mutex<ByIdentity<Vec<Idle<T>>>>;

#[derive(Debug)]
struct Idle<T> {
    sender: T,
    alarm: Alarm,
    born: Instant,
    since: Instant,
    room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Sending>,
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
    /// For whoever waits for its answers.
    pub(crate) alarm: Alarm,
    /// Of one that has waited.
    room: Option<OwnedSemaphorePermit>,
    /// It has had requests before.
    pub(crate) used: bool,
    pool: Arc<Pool>,
}

#[derive(Debug)]
enum Sender {
    /// Not there while there is an answer, which has it.
    Direct(Option<Direct>),
    Http1(http1::SendRequest<Sending>),
    Http2 {
        sender: http2::SendRequest<Sending>,
        /// Counted for as long as this is there.
        _stream: Arc<()>,
    },
}

impl Pool {
    fn new(room: usize) -> Self {
        let room = Arc::new(Semaphore::new(room));
        let (idle, tasks, shared) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { idle, tasks, shared, room }
    }

    /// A connection that waits, if there is one. `there`: for a request whose body is there, and that asks for
    /// no other protocol.
    pub(crate) fn take(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        there: bool,
    ) -> Option<Connection> {
        let (sender, waited, born) = if identity.http2 {
            let mut shared = lock(&self.shared);
            let connections = shared.get_mut(identity)?;
            connections.retain(|shared| !shared.sender.is_closed());
            let fits = |shared: &&mut Shared| {
                shared.sender.is_ready() && Arc::strong_count(&shared.streams) <= STREAMS
            };
            let one = connections.iter_mut().find(fits)?;
            one.used = Instant::now();
            let (sender, _stream) = (one.sender.clone(), Arc::clone(&one.streams));
            (Sender::Http2 { sender, _stream }, None, one.born)
        } else if there {
            let mut idle = lock(&self.idle);
            let connections = idle.get_mut(identity)?;
            // The one that came last is the least likely to be closed at the other end.
            loop {
                let mut one = connections.pop()?;
                if one.sender.is_quiet() {
                    let waited = Some((one.alarm, one.room));
                    break (Sender::Direct(Some(one.sender)), waited, one.born);
                }
            }
        } else {
            let mut idle = lock(&self.tasks);
            let connections = idle.get_mut(identity)?;
            connections.retain(|idle| !idle.sender.is_closed());
            let at = connections.iter().rposition(|idle| idle.sender.is_ready())?;
            let one = connections.remove(at);
            (Sender::Http1(one.sender), Some((one.alarm, one.room)), one.born)
        };
        let (identity, pool) = (Arc::clone(identity), Arc::clone(self));
        let (alarm, room) = waited.map(|(alarm, room)| (alarm, Some(room))).unwrap_or_default();
        Some(Connection { sender, identity, born, alarm, room, used: true, pool })
    }

    /// A new one.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        destination: &Destination,
        there: bool,
    ) -> Result<Connection, Failed> {
        let address = destination.identity.address;
        // Rare beside requests, which need not have room for it.
        let connecting = timeout(destination.patience, Box::pin(self.open(destination, there)));
        connecting.await.map_err(|_| Failed::ConnectTimeout(address))?
    }

    async fn open(
        self: &Arc<Self>,
        destination: &Destination,
        there: bool,
    ) -> Result<Connection, Failed> {
        let identity = &destination.identity;
        let address = identity.address;
        let io = connect(address, destination).await?;
        let born = Instant::now();
        let sender = if identity.http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .adaptive_window(true)
                .max_header_list_size(wire::HEAD)
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
        } else if there {
            Sender::Direct(Some(Box::new(Wire::new(io))))
        } else {
            let mut builder = http1::Builder::new();
            builder.max_buf_size(wire::HEAD as usize).max_headers(wire::FIELDS);
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
        let (alarm, room) = Default::default();
        Ok(Connection { sender, identity, born, alarm, room, used: false, pool })
    }

    /// Drops what has waited for too long. Connections to endpoints that are gone are among that: nobody is
    /// sent there any more.
    pub(crate) fn purge(&self, now: Instant) {
        let young = |since: Instant, patience| now.saturating_duration_since(since) < patience;
        lock(&self.idle).retain(|_, connections| {
            connections.retain_mut(|idle| {
                if !young(idle.since, REST) {
                    idle.sender.rest();
                    idle.alarm = Alarm::default();
                }
                young(idle.since, PATIENCE) && idle.sender.is_quiet()
            });
            !connections.is_empty()
        });
        lock(&self.tasks).retain(|_, connections| {
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

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Coming {
    /// From a connection that is read by whoever wants it.
    Direct(Direct),
    /// It broke off.
    Broken,
    /// From a task of hyper's.
    Task(Incoming),
    /// None: the connection changes to another protocol.
    Switched(OnUpgrade),
    /// All of it has come.
    Over,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// Nothing of it was sent, and this has not been lost.
    #[error("{1}")]
    Unsent(Option<Box<Sending>>, String),
    #[error("{0}")]
    Client(Cut),
    /// Nothing came.
    #[error("{0}")]
    Closed(String),
    /// What came is no answer.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Broken(String),
}

impl Connection {
    /// Whether requests go by [`Self::ask`], and not by [`Self::send`].
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.sender, Sender::Direct(_))
    }

    /// Sends a request whose body is there in full.
    ///
    /// # Errors
    /// The connection is of no use then.
    pub(crate) async fn ask(
        &mut self,
        ask: &Ask<'_>,
        body: Bytes,
        progress: &Progress,
    ) -> Result<Response<Coming>, Unanswered> {
        let Sender::Direct(Some(wire)) = &mut self.sender else {
            return Err(Unanswered::Closed("its answer has not come".to_owned()));
        };
        let response = wire.ask(ask, body, progress).await?;
        let Sender::Direct(wire) = &mut self.sender else { unreachable!("it was one") };
        let body = wire.take().map_or(Coming::Broken, Coming::Direct);
        Ok(response.map(|()| body))
    }

    /// Sends a request; how its body is delimited is said by that alone.
    ///
    /// # Errors
    /// The connection is of no use then.
    pub(crate) async fn send(
        &mut self,
        ask: &Ask<'_>,
        upload: Sending,
    ) -> Result<Response<Coming>, Unanswered> {
        let sent = match &mut self.sender {
            Sender::Direct(_) => {
                let why = "only what is there goes this way".to_owned();
                return Err(Unanswered::Unsent(Some(Box::new(upload)), why));
            }
            Sender::Http1(sender) => sender.try_send_request(framed(ask, upload)?).await,
            Sender::Http2 { sender, .. } => sender.try_send_request(framed(ask, upload)?).await,
        };
        let mut response = sent?;
        let fields = Fields::from(response.headers());
        if !self.identity.http2
            && let Some(why) = headers::two_ends(&fields)
        {
            return Err(Unanswered::Invalid(why.to_owned()));
        }
        let status = response.status();
        let body = if status == StatusCode::SWITCHING_PROTOCOLS {
            Coming::Switched(hyper::upgrade::on(&mut response))
        } else {
            Coming::Task(response.into_body())
        };
        Ok(Response { status, fields, body })
    }
}

/// Says how the body is delimited: by what is sent, whatever the client said of what it sends.
fn framed(ask: &Ask<'_>, upload: Sending) -> Result<Request<Sending>, Unanswered> {
    let length = upload.size_hint().exact();
    let mut request = Request::new(upload);
    let http2 = ask.uri.is_some();
    *request.method_mut() = ask.method.clone();
    *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    *request.uri_mut() = match ask.uri {
        Some(uri) => uri.clone(),
        None => ask.target.parse().map_err(|_| Unanswered::Client(Cut::Client))?,
    };
    *request.headers_mut() = HeaderMap::from(ask.fields);
    let says_length = !http2 && wire::says_length(request.method(), 0);
    let headers = request.headers_mut();
    match length {
        Some(0) if says_length => _ = headers.insert(header::CONTENT_LENGTH, 0.into()),
        // The client's own zero stays.
        Some(0) if headers.get(header::CONTENT_LENGTH).is_some_and(|said| said == "0") => {}
        Some(0) => _ = headers.remove(header::CONTENT_LENGTH),
        Some(length) => _ = headers.insert(header::CONTENT_LENGTH, length.into()),
        None => {
            headers.remove(header::CONTENT_LENGTH);
            if !http2 {
                // hyper takes it that a GET of unknown length has no body.
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
    }
    Ok(request)
}

impl From<Broken> for Unanswered {
    fn from(broken: Broken) -> Self {
        let text = broken.to_string();
        match broken {
            Broken::Unsent(_) => Self::Unsent(None, text),
            Broken::Closed => Self::Closed(text),
            Broken::Invalid(_) => Self::Invalid(text),
            Broken::Incomplete | Broken::Io(_) => Self::Broken(text),
        }
    }
}

impl From<TrySendError<Request<Sending>>> for Unanswered {
    fn from(mut error: TrySendError<Request<Sending>>) -> Self {
        let text = error.error().to_string();
        if let Some(request) = error.take_message() {
            return Self::Unsent(Some(Box::new(request.into_body())), text);
        }
        let error = error.into_error();
        match body::cut(&error) {
            Some(cut) => Self::Client(cut),
            None if error.is_incomplete_message() => Self::Closed(text),
            None if error.is_parse() => Self::Invalid(text),
            None => Self::Broken(text),
        }
    }
}

impl Body for Coming {
    type Data = Bytes;
    type Error = ();

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        let me = self.get_mut();
        match me {
            Self::Direct(wire) => {
                let frame = ready!(wire.poll_frame(cx));
                if matches!(frame, Some(Err(_))) {
                    // hyper forgets what it has not sent yet when it hears of an error: that comes first.
                    *me = Self::Broken;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(frame.map(|frame| frame.map_err(drop)))
            }
            Self::Broken => Poll::Ready(Some(Err(()))),
            Self::Task(body) => Pin::new(body).poll_frame(cx).map_err(drop),
            Self::Over | Self::Switched(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Direct(wire) => wire.is_over(),
            Self::Task(body) => body.is_end_stream(),
            Self::Broken => false,
            Self::Over | Self::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Direct(wire) => wire.size_hint(),
            Self::Task(body) => body.size_hint(),
            Self::Broken => SizeHint::default(),
            Self::Over | Self::Switched(_) => SizeHint::with_exact(0),
        }
    }
}

impl Lease for Connection {
    fn alarm(&mut self) -> &mut Alarm {
        &mut self.alarm
    }

    fn done(self, body: Coming) {
        let now = Instant::now();
        if now.saturating_duration_since(self.born) > AGE {
            return;
        }
        let more = || Arc::clone(&self.pool.room).try_acquire_owned().ok();
        let Some(room) = self.room.or_else(more) else { return };
        let (alarm, born, since) = (self.alarm, self.born, now);
        match (self.sender, body) {
            (_, Coming::Direct(sender)) if sender.is_reusable() => {
                let idle = Idle { sender, alarm, born, since, room };
                keep(&self.pool.idle, self.identity, idle);
            }
            (Sender::Http1(sender), _) if !sender.is_closed() => {
                let idle = Idle { sender, alarm, born, since, room };
                keep(&self.pool.tasks, self.identity, idle);
            }
            _ => {}
        }
    }
}

fn keep<T>(all: &Waiting<T>, identity: Arc<Identity>, idle: Idle<T>) {
    let mut all = lock(all);
    let connections = all.entry(identity).or_default();
    if connections.len() < IDLE {
        connections.push(idle);
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
            let identity = Arc::new(Identity::new(address, http2, None));
            let destination = Destination { identity, tls: None, patience: PATIENCE };
            let connection = pool.connect(&destination, false).await.unwrap();
            connections.push((connection, destination, listener));
            if connections.len() == 2 {
                for (connection, ..) in connections.drain(..1) {
                    connection.done(Coming::Over);
                }
            }
        }
        assert_eq!(lock(&pool.tasks).len(), 1);
        for (connection, destination, _listener) in connections {
            connection.done(Coming::Over);
            assert!(pool.take(&destination.identity, false).is_none(), "{destination:?}");
        }
        pool.purge(Instant::now() + PATIENCE);
        assert_eq!(pool.room.available_permits(), 1);
    }
}
