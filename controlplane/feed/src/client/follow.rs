//! The task that keeps a stream open and takes what it says.

use std::convert::Infallible;
use std::future::pending;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes, BytesMut};
use fairway_model::Model;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{Connector, Status};
use crate::digest::hash;
use crate::lines::Unpacker;
use crate::replica::{Misbehaved, Replica};
use crate::scope::Subscriber;
use crate::wire::{Facts, Heard, MAX_LINE, Position, Renew, VERSION};

/// For a connection, an answer's head, an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(5);
/// The server says something at least every five seconds; three silences mean it is gone.
const SILENCE: Duration = Duration::from_secs(15);
/// Between two tries to tell a control plane that has no room for it what this node says of itself; drawn
/// as below.
const RETELL: Duration = Duration::from_secs(30);
/// Between two tries to renew a certificate; drawn as below.
const RENEW_AGAIN: Duration = Duration::from_secs(300);
/// Room for two certificates.
const MAX_CERTIFICATES: usize = 64 << 10;
/// Between two attempts at first, and at most. Each is drawn from the upper half of its range, so
/// that the nodes of a cluster do not all come back at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// How much may be under way before the server waits for us, a stream and a connection: a complete model
/// comes without waiting, and a client that is slow costs the server no more than this.
pub(super) const WINDOWS: (u32, u32) = (4 << 20, 8 << 20);

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Everything the task needs.
pub(super) struct Following<C> {
    /// All that serve; tried in turn.
    pub(super) authorities: Vec<String>,
    pub(super) subscriber: Subscriber,
    pub(super) facts: watch::Receiver<Facts>,
    pub(super) connector: Arc<C>,
    pub(super) publish: watch::Sender<Option<Arc<Model>>>,
    pub(super) report: watch::Sender<Status>,
    pub(super) acks: watch::Receiver<Option<Arc<Model>>>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot connect to {0}; is the control plane running there?")]
    Connect(String, #[source] std::io::Error),
    #[error("no connection to {0} within {PATIENCE:?}; is a firewall in between?")]
    ConnectTimeout(String),
    #[error("HTTP/2 with the control plane failed")]
    Http(#[source] hyper::Error),
    #[error("cannot form a request")]
    Request(#[source] http::Error),
    #[error("no answer to {0} within {PATIENCE:?}")]
    AnswerTimeout(&'static str),
    #[error("the control plane answers {0}: {1}")]
    Refused(StatusCode, String),
    #[error("the control plane said nothing for {SILENCE:?}")]
    Silence,
    #[error("the control plane ended the stream")]
    Closed,
    #[error("the control plane's compression cannot be undone")]
    Compression(#[from] std::io::Error),
    #[error("the control plane sent what it must not")]
    Misbehaved(#[source] Misbehaved),
}

impl<C: Connector> Following<C> {
    /// Connects, follows, and does so again, for ever.
    pub(super) async fn run(mut self, last_good: Option<Arc<Model>>) {
        let node = match &self.subscriber {
            Subscriber::Node(node) => node.clone(),
            // Pods of no node are sent to it.
            Subscriber::Gateway(_) => String::new(),
        };
        let mut replica = Replica::new(node, last_good);
        let mut pause = FIRST_PAUSE;
        // Each node has a first choice of its own, the same after a restart.
        let name = self.subscriber.to_string();
        let mut at = usize::try_from(hash(name.as_bytes()) >> 32).unwrap_or(0);
        loop {
            let authority = self.authorities[at % self.authorities.len()].clone();
            let Err(ended) = self.connection(&authority, &mut replica).await;
            at = at.wrapping_add(1);
            let was_good = self.report.borrow().connected;
            if was_good && !matches!(ended, Ended::Misbehaved(_)) {
                pause = FIRST_PAUSE;
            }
            self.ended(&authority, &ended);
            tokio::time::sleep(jitter(pause)).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// One connection from its first byte to its last.
    async fn connection(
        &mut self,
        authority: &str,
        replica: &mut Replica,
    ) -> Result<Infallible, Ended> {
        let connecting = timeout(PATIENCE, self.connector.connect(authority));
        let io = connecting
            .await
            .map_err(|_| Ended::ConnectTimeout(authority.to_owned()))?
            .map_err(|error| Ended::Connect(authority.to_owned(), error))?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1);
        let handshake = timeout(PATIENCE, builder.handshake(TokioIo::new(io)));
        let (mut requests, connection) = handshake
            .await
            .map_err(|_| Ended::AnswerTimeout("the HTTP/2 handshake"))?
            .map_err(Ended::Http)?;
        // Ends with this function: dropping the set aborts the task.
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the control plane ended");
            }
        });

        let (say, acks) = watch::channel(0);
        let request = self.feed_request(authority, replica.position(), acks)?;
        let response = answer(&mut requests, request, "the feed request").await?;
        let mut retell = self.tell(authority, &mut requests, true).await?;
        let mut renewal = self.renewal();
        let mut unpacker = match response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes)
        {
            Some(b"zstd") => Some(Unpacker::new()?),
            _ => None,
        };
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        let mut acked = None;
        replica.begin();
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                frame = timeout_at(heard + SILENCE, body.frame()) => {
                    heard = Instant::now();
                    match frame.map_err(|_| Ended::Silence)? {
                        Some(Ok(frame)) => {
                            if let Ok(data) = frame.into_data() {
                                let mut take = |lines: &[u8]| {
                                    let taken = self.take(authority, replica, &mut buffer, lines);
                                    taken.map_err(Ended::Misbehaved)
                                };
                                match &mut unpacker {
                                    Some(unpacker) => unpacker.take(&data, take)?,
                                    None => take(&data)?,
                                }
                            }
                        }
                        Some(Err(error)) => return Err(Ended::Http(error)),
                        None => {
                            replica.end().map_err(Ended::Misbehaved)?;
                            return Err(Ended::Closed);
                        }
                    }
                }
                () = changed(&mut self.acks) => {}
                () = reached(retell) => retell = self.tell(authority, &mut requests, false).await?,
                () = changed(&mut self.facts) => {
                    retell = self.tell(authority, &mut requests, true).await?;
                }
                () = reached(renewal) => renewal = self.renew(authority, &mut requests).await?,
            }
            // Of acknowledgements that wait for the network the last one says it all.
            if let Some(revision) = self.due(replica, acked) {
                acked = Some(revision);
                say.send_replace(revision);
            }
        }
    }

    /// Tells what this node knows of itself. A control plane that does not take it serves all the same:
    /// answers when to tell it again, if that may help.
    async fn tell(
        &mut self,
        authority: &str,
        requests: &mut SendRequest<Body>,
        first: bool,
    ) -> Result<Option<Instant>, Ended> {
        let facts = self.facts.borrow_and_update().clone();
        if facts == Facts::default() {
            return Ok(None);
        }
        let path = format!("/v1/nodes/{}/facts", self.subscriber);
        let facts = serde_json::to_vec(&facts).expect("facts are plain data");
        let request = self.request(Method::PUT, authority, &path, facts.into())?;
        match answer(requests, request, "what this node says of itself").await {
            Ok(_) => Ok(None),
            Err(Ended::Refused(status, reason)) => {
                // Once a connection, not once a try.
                if first {
                    tracing::warn!(
                        node = %self.subscriber,
                        %status,
                        reason,
                        "feed: the control plane does not take what this node says of itself"
                    );
                }
                let full = status == StatusCode::SERVICE_UNAVAILABLE;
                Ok(full.then(|| Instant::now() + jitter(RETELL)))
            }
            Err(ended) => Err(ended),
        }
    }

    /// When to ask for another certificate: at two thirds of this one's life or somewhat before, at another
    /// moment on each node.
    fn renewal(&self) -> Option<Instant> {
        let ahead = self.connector.renewal()?.duration_since(SystemTime::now());
        let ahead = ahead.unwrap_or_default();
        Some(Instant::now() + ahead - ahead / 10 + jitter(ahead / 10))
    }

    /// Asks for another certificate. Nothing that goes wrong with that is worth a connection: there is a
    /// third of the old one's life left to try it again.
    async fn renew(
        &self,
        authority: &str,
        requests: &mut SendRequest<Body>,
    ) -> Result<Option<Instant>, Ended> {
        let again = Some(Instant::now() + jitter(RENEW_AGAIN));
        let (request, key) = match self.connector.request() {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, "cannot make a certificate request");
                return Ok(again);
            }
        };
        let body = serde_json::to_vec(&Renew { request }).expect("a request is plain data");
        let request = self.request(Method::POST, authority, "/v1/renew", body.into())?;
        let renewed = match answer(requests, request, "a request for a certificate").await {
            Ok(response) => {
                let body = Limited::new(response.into_body(), MAX_CERTIFICATES).collect();
                match timeout(PATIENCE, body).await {
                    Ok(Ok(body)) => self
                        .connector
                        .renewed(&body.to_bytes(), &key)
                        .map_err(|error| error.to_string()),
                    _ => Err("no whole answer".to_owned()),
                }
            }
            Err(ended @ Ended::Refused(..)) => Err(ended.to_string()),
            Err(ended) => return Err(ended),
        };
        match renewed {
            Ok(()) => {
                tracing::info!(node = %self.subscriber, "feed: the certificate is renewed");
                // Also where clocks have it that this one is due already.
                Ok(self.renewal().max(again))
            }
            Err(reason) => {
                tracing::error!(node = %self.subscriber, reason, "feed: the certificate is not renewed");
                Ok(again)
            }
        }
    }

    /// Takes the whole lines that `data` completes, and publishes what they bring.
    fn take(
        &self,
        authority: &str,
        replica: &mut Replica,
        buffer: &mut BytesMut,
        data: &[u8],
    ) -> Result<(), Misbehaved> {
        let mut searched = buffer.len();
        buffer.extend_from_slice(data);
        while let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(searched + end);
            buffer.advance(1);
            searched = 0;
            if line.len() > MAX_LINE {
                return Err(Misbehaved::LineTooLong);
            }
            let taken = replica.line(&line)?;
            if let Some(model) = taken.and_then(|taken| taken.changed) {
                self.publish.send_replace(Some(model));
            }
            if replica.in_step() {
                self.connected(authority, replica);
            }
        }
        if buffer.len() > MAX_LINE {
            return Err(Misbehaved::LineTooLong);
        }
        Ok(())
    }

    /// The acknowledgement that the server has not heard yet: what is in force is what is held.
    fn due(&self, replica: &Replica, acked: Option<u64>) -> Option<u64> {
        let applied = self.acks.borrow().clone()?;
        let position = replica.position()?;
        // What follows on this connection is all of one epoch.
        let due = Arc::ptr_eq(&applied, replica.model()?) && replica.in_step();
        (due && acked != Some(position.revision)).then_some(position.revision)
    }

    fn feed_request(
        &self,
        authority: &str,
        position: Option<&Position>,
        acks: watch::Receiver<u64>,
    ) -> Result<Request<Body>, Ended> {
        let mut path = format!("/v1/feed?{}", feed_head(&self.subscriber));
        if let Some(Position { epoch, revision }) = position {
            path += &format!("&epoch={epoch}&revision={revision}");
        }
        let mut request = self.request(Method::POST, authority, &path, Bytes::new())?;
        *request.body_mut() = self::acks(acks);
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("zstd"));
        Ok(request)
    }

    fn request(
        &self,
        method: Method,
        authority: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Body>, Ended> {
        Request::builder()
            .method(method)
            .uri(format!("{}://{authority}{path}", C::SCHEME))
            .body(Full::new(body).boxed_unsync())
            .map_err(Ended::Request)
    }

    fn connected(&self, authority: &str, replica: &Replica) {
        let position = replica.position();
        self.report.send_if_modified(|status| {
            let next = Status {
                connected: true,
                server: authority.to_owned(),
                revision: position.map(|at| (at.epoch.clone(), at.revision)),
                skipped: replica.skipped(),
                error: None,
            };
            if !status.connected {
                tracing::info!(node = %self.subscriber, "feed: in step with the control plane");
            }
            let differs = *status != next;
            *status = next;
            differs
        });
    }

    fn ended(&self, authority: &str, ended: &Ended) {
        let text = chain(ended);
        self.report.send_if_modified(|status| {
            // Once per reason, not once per attempt.
            if status.error.as_deref() != Some(&text) {
                tracing::warn!(node = %self.subscriber, "feed: {text}");
            }
            let differs = status.connected || status.error.as_deref() != Some(&text);
            status.connected = false;
            status.server = authority.to_owned();
            status.error = Some(text);
            differs
        });
    }
}

/// What each request for a stream says.
pub(super) fn feed_head(subscriber: &Subscriber) -> String {
    match subscriber {
        Subscriber::Node(name) => format!("version={VERSION}&node={name}"),
        Subscriber::Gateway(name) => format!("version={VERSION}&gateway={name}"),
    }
}

/// A line for each revision that is in force; of those that come while none can be sent, the last.
pub(super) fn acks(revisions: watch::Receiver<u64>) -> Body {
    let lines = futures_util::stream::unfold(revisions, |mut revisions| async move {
        revisions.changed().await.ok()?;
        let heard = Heard::Ack { revision: *revisions.borrow_and_update() };
        let mut line = serde_json::to_vec(&heard).expect("an acknowledgement is plain data");
        line.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(line))), revisions))
    });
    StreamBody::new(lines).boxed_unsync()
}

/// The head of the answer, if it is a good one.
async fn answer(
    requests: &mut SendRequest<Body>,
    request: Request<Body>,
    what: &'static str,
) -> Result<Response<Incoming>, Ended> {
    let response = timeout(PATIENCE, requests.send_request(request))
        .await
        .map_err(|_| Ended::AnswerTimeout(what))?
        .map_err(Ended::Http)?;
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    let status = response.status();
    let reason = timeout(PATIENCE, Limited::new(response.into_body(), 1024).collect()).await;
    let reason = match reason {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        _ => String::new(),
    };
    Err(Ended::Refused(status, reason))
}

/// Waits for a change; for ever when there can be none any more.
async fn changed<T>(seen: &mut watch::Receiver<T>) {
    if seen.changed().await.is_err() {
        pending().await
    }
}

/// Waits for a moment; for ever if there is none.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// Between half of `pause` and all of it.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    let half = pause / 2;
    let part = u32::try_from(random % 1024).unwrap_or(0);
    half + half * part / 1024
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU32, Ordering};

    use fairway_model::WireGuardKey;
    use futures_util::{StreamExt as _, stream};
    use hyper::server::conn::http2;
    use hyper::service::service_fn;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;

    use super::*;
    use crate::client::{Options, follow_over};

    /// Connects to a server of a few lines, all in memory so that the clock may be paused.
    struct InMemory {
        connected: mpsc::UnboundedSender<Instant>,
        /// Said once, followed by silence.
        says: &'static str,
    }

    impl Connector for InMemory {
        type Io = DuplexStream;

        async fn connect(&self, _: &str) -> io::Result<DuplexStream> {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let says = self.says;
            let answer = service_fn(move |_| async move {
                let lines = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(says)))]);
                let body = StreamBody::new(lines.chain(stream::pending()));
                Ok::<_, Infallible>(Response::new(body))
            });
            tokio::spawn(
                http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(theirs), answer),
            );
            self.connected.send(Instant::now()).map_err(io::Error::other)?;
            Ok(ours)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_plane_that_falls_silent_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            endpoints: vec!["http://silent.example:1".into()],
            node: "n1".into(),
            snapshot: folder.path().join("snapshot"),
            facts: watch::channel(Facts::default()).1,
        };
        let (connected, mut connections) = mpsc::unbounded_channel();
        let says = "{\"reset\":{\"epoch\":\"e\",\"version\":2}}\n{\"sync\":{\"revision\":1,\"digest\":{}}}\n";
        let mut follower = follow_over(options, InMemory { connected, says }).unwrap();
        let first = connections.recv().await.unwrap();
        let ended = follower.status.wait_for(|status| status.error.is_some()).await.unwrap();
        assert_eq!(ended.error.as_deref(), Some("the control plane said nothing for 15s"));
        drop(ended);
        let second = connections.recv().await.unwrap();
        let silence = second - first;
        assert!(silence >= SILENCE && silence < SILENCE + LAST_PAUSE, "{silence:?}");
        assert_eq!(follower.model.borrow().as_deref(), Some(&Model::default()));
    }

    /// Connects to a server that follows the rules, but takes no facts at first.
    struct Full {
        connected: mpsc::UnboundedSender<Instant>,
        told: mpsc::UnboundedSender<Instant>,
        /// How often it has no room yet.
        refusals: Arc<AtomicU32>,
    }

    impl Connector for Full {
        type Io = DuplexStream;

        async fn connect(&self, _: &str) -> io::Result<DuplexStream> {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let (told, refusals) = (self.told.clone(), Arc::clone(&self.refusals));
            let answer = service_fn(move |request: Request<Incoming>| {
                let (told, refusals) = (told.clone(), Arc::clone(&refusals));
                async move {
                    if request.method() == Method::PUT {
                        let left = refusals.load(Ordering::Relaxed);
                        let status = if left > 0 {
                            refusals.store(left - 1, Ordering::Relaxed);
                            StatusCode::SERVICE_UNAVAILABLE
                        } else {
                            StatusCode::OK
                        };
                        told.send(Instant::now()).expect("a listener");
                        let body = StreamBody::new(stream::empty().right_stream());
                        let mut answer = Response::new(body);
                        *answer.status_mut() = status;
                        return Ok::<_, Infallible>(answer);
                    }
                    let lines = stream::unfold(0, |said| async move {
                        let line = match said {
                            0 => {
                                "{\"reset\":{\"epoch\":\"e\",\"version\":2}}\n{\"sync\":{\"revision\":1,\"digest\":{}}}\n"
                            }
                            _ => {
                                tokio::time::sleep(Duration::from_secs(5)).await;
                                "{\"ping\":{}}\n"
                            }
                        };
                        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(line))), said + 1))
                    });
                    Ok(Response::new(StreamBody::new(lines.left_stream())))
                }
            });
            tokio::spawn(
                http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(theirs), answer),
            );
            self.connected.send(Instant::now()).map_err(io::Error::other)?;
            Ok(ours)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_plane_without_room_for_facts_is_told_again_on_the_same_connection() {
        let folder = tempfile::tempdir().unwrap();
        let known = Facts { wireguard_key: Some(WireGuardKey([7; 32])), ..Facts::default() };
        let options = Options {
            endpoints: vec!["http://full.example:1".into()],
            node: "n1".into(),
            snapshot: folder.path().join("snapshot"),
            facts: watch::channel(known).1,
        };
        let (connected, mut connections) = mpsc::unbounded_channel();
        let (told, mut facts) = mpsc::unbounded_channel();
        let full = Full { connected, told, refusals: Arc::new(AtomicU32::new(2)) };
        let _follower = follow_over(options, full).unwrap();
        connections.recv().await.unwrap();
        let mut before = facts.recv().await.unwrap();
        for _ in 0..2 {
            let again = timeout(RETELL * 4, facts.recv()).await.expect("told again").unwrap();
            let pause = again - before;
            assert!(pause >= RETELL / 2 && pause <= RETELL + Duration::from_secs(1), "{pause:?}");
            before = again;
        }
        // It was taken, and is not told a fourth time.
        assert!(timeout(RETELL * 4, facts.recv()).await.is_err());
        assert!(connections.try_recv().is_err(), "one connection is enough");
    }

    #[test]
    fn pauses_differ_and_stay_in_their_range() {
        for pause in [FIRST_PAUSE, LAST_PAUSE] {
            for _ in 0..100 {
                let drawn = jitter(pause);
                assert!(drawn >= pause / 2 && drawn <= pause, "{drawn:?}");
            }
        }
    }
}
