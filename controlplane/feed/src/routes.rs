//! What the server answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::ModelReceiver;
use crate::authority::{Authority, Refused};
use crate::history::History;
use crate::identity::{Identity, Role, date};
use crate::server::{Caller, Options, drained};
use crate::wire::{Ack, Certified, Facts, Join, Position, Renew, Say};

/// Room for an acknowledgement, for what a node says of itself, for a certificate request, and no more.
const MAX_BODY: usize = 4096;
/// Nodes remembered, connected or not.
const MAX_NODES: usize = 20_000;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The state behind all connections.
pub(crate) struct Routes {
    epoch: String,
    /// `None` until the first model.
    history: Mutex<Option<History>>,
    /// Marks each new revision.
    news: watch::Sender<()>,
    /// For `GET /v1/model`, always the newest.
    model: ModelReceiver,
    nodes: Mutex<BTreeMap<String, Peer>>,
    options: Options,
}

/// What is known of a node.
#[derive(Clone, Debug, Default)]
struct Peer {
    streams: usize,
    applied: Option<Position>,
    /// Until when the certificate of its newest stream is good.
    certificate: Option<SystemTime>,
}

/// A node, as `GET /v1/nodes` shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    node: String,
    connected: bool,
    /// The newest revision it says is in force, if that was of this epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<u64>,
    /// Until when the certificate that it showed last is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_until: Option<String>,
}

/// The answer of `GET /v1/nodes`.
#[derive(Serialize)]
struct NodesStatus<'a> {
    epoch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    nodes: Vec<NodeStatus>,
}

impl Routes {
    /// Nothing to serve yet; [`Self::take_models`] brings it.
    pub(crate) fn new(epoch: String, model: ModelReceiver, options: Options) -> Self {
        Self {
            epoch,
            history: Mutex::new(None),
            news: watch::Sender::new(()),
            model,
            nodes: Mutex::default(),
            options,
        }
    }

    /// Turns models into revisions, until their source is gone.
    pub(crate) async fn take_models(&self, mut models: ModelReceiver) {
        loop {
            if let Some(model) = models.borrow_and_update().clone() {
                let mut history = lock(&self.history);
                match history.as_mut() {
                    Some(history) => history.push(model),
                    None => *history = Some(History::new(self.epoch.clone(), model)),
                }
                self.news.send_replace(());
            }
            if models.changed().await.is_err() {
                // What is known stays served; a node is better off with it than without.
                return;
            }
        }
    }

    /// Tells when to send everybody away.
    pub(crate) fn drain(&self) -> watch::Receiver<bool> {
        self.options.drain.clone()
    }

    /// Answers one request.
    pub(crate) async fn answer(
        self: Arc<Self>,
        caller: &Caller,
        request: Request<Incoming>,
    ) -> Response<Body> {
        self.respond(caller, request)
            .await
            .unwrap_or_else(|Error(status, reason)| text(status, reason))
    }

    async fn respond(
        self: Arc<Self>,
        caller: &Caller,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let path = request.uri().path().to_owned();
        match (request.method().clone(), path.as_str()) {
            (Method::GET, "/healthz") => Ok(text(StatusCode::OK, "ok")),
            (Method::GET, "/readyz") => self.ready(),
            (Method::GET, "/v1/model") => {
                operators(caller)?;
                self.model()
            }
            (Method::GET, "/v1/nodes") => {
                operators(caller)?;
                Ok(self.nodes())
            }
            (Method::GET, "/v1/feed") => {
                self.feed(caller, request.uri().query().unwrap_or_default())
            }
            (Method::POST, "/v1/ack") => self.ack(caller, request.into_body()).await,
            (Method::POST, "/v1/join") => self.join(caller, request.into_body()).await,
            (Method::POST, "/v1/renew") => self.renew(caller, request.into_body()).await,
            (method, path) if let Some(node) = facts_of(path) => match method {
                Method::PUT => self.take_facts(caller, node, request.into_body()).await,
                _ => Err(Error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed".into())),
            },
            (
                _,
                "/healthz" | "/readyz" | "/v1/model" | "/v1/nodes" | "/v1/feed" | "/v1/ack"
                | "/v1/join" | "/v1/renew",
            ) => Err(Error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed".into())),
            _ => Err(Error(StatusCode::NOT_FOUND, "no such path".into())),
        }
    }

    fn ready(&self) -> Result<Response<Body>, Error> {
        if *self.options.drain.borrow() {
            return Err(Error(StatusCode::SERVICE_UNAVAILABLE, "not ready: going away".into()));
        }
        match *self.model.borrow() {
            Some(_) => Ok(text(StatusCode::OK, "ok")),
            None => Err(not_ready()),
        }
    }

    fn model(&self) -> Result<Response<Body>, Error> {
        let model = self.model.borrow().clone();
        model.map(|model| json(&*model)).ok_or_else(not_ready)
    }

    fn nodes(&self) -> Response<Body> {
        let revision = lock(&self.history).as_ref().map(|history| history.current().1.revision);
        let nodes = lock(&self.nodes).clone();
        let nodes = nodes.into_iter().map(|(node, peer)| NodeStatus {
            node,
            connected: peer.streams > 0,
            applied: peer.applied.map(|applied| applied.revision),
            certificate_until: peer.certificate.map(date),
        });
        json(&NodesStatus { epoch: &self.epoch, revision, nodes: nodes.collect() })
    }

    async fn ack(&self, caller: &Caller, body: Incoming) -> Result<Response<Body>, Error> {
        let ack: Ack = read(body, "an ack").await?;
        check_node(&ack.node).map_err(bad)?;
        speaks_for(caller, &Role::Node(ack.node.clone()))?;
        let current =
            lock(&self.history).as_ref().map_or(0, |history| history.current().1.revision);
        if ack.epoch != self.epoch || ack.revision > current {
            return Err(Error(StatusCode::CONFLICT, "no such revision in this epoch".into()));
        }
        let applied = Position { epoch: ack.epoch, revision: ack.revision };
        let mut nodes = lock(&self.nodes);
        entry(&mut nodes, &ack.node).ok_or_else(too_many)?.applied = Some(applied);
        Ok(text(StatusCode::OK, "ok"))
    }

    fn authority(&self) -> Result<Arc<Authority>, Error> {
        let none = "this control plane gives no certificates: it has none but those in its files";
        self.options.authority.clone().ok_or_else(|| Error(StatusCode::NOT_FOUND, none.into()))
    }

    async fn join(&self, caller: &Caller, body: Incoming) -> Result<Response<Body>, Error> {
        let authority = self.authority()?;
        if *caller == Caller::Anyone {
            return Err(Error(StatusCode::FORBIDDEN, "tokens are taken over TLS alone".into()));
        }
        let join: Join = read(body, "a request to join").await?;
        check_node(&join.node).map_err(bad)?;
        let node = join.node.clone();
        let ca = authority.certificate().to_owned();
        let made = tokio::task::spawn_blocking(move || {
            authority.join(&join.token, &join.node, &join.request, SystemTime::now())
        });
        let certificate = made.await.map_err(|error| internal(&error))?.map_err(|error| {
            tracing::warn!(node, reason = %error, "a node may not join");
            Error::from(error)
        })?;
        tracing::info!(node, "a node joins");
        Ok(json(&Certified { certificate, ca }))
    }

    async fn renew(&self, caller: &Caller, body: Incoming) -> Result<Response<Body>, Error> {
        let authority = self.authority()?;
        let Caller::Known(Identity { role, not_after }) = caller else {
            return Err(stranger());
        };
        let now = SystemTime::now();
        if now > *not_after {
            // It has had a third of its life for this.
            let expired = format!("the certificate expired at {}; join again", date(*not_after));
            return Err(Error(StatusCode::FORBIDDEN, expired));
        }
        let renew: Renew = read(body, "a request to renew").await?;
        let certificate = authority.sign(role, &renew.request, now)?;
        tracing::info!(%role, "a certificate is renewed");
        Ok(json(&Certified { certificate, ca: authority.certificate().to_owned() }))
    }

    async fn take_facts(
        &self,
        caller: &Caller,
        node: &str,
        body: Incoming,
    ) -> Result<Response<Body>, Error> {
        check_node(node).map_err(bad)?;
        speaks_for(caller, &Role::Node(node.to_owned()))?;
        let facts: Facts = read(body, "facts").await?;
        let mut taken = true;
        self.options.facts.send_if_modified(|known| {
            if known.get(node) == Some(&facts) {
                return false;
            }
            if known.len() >= MAX_NODES
                && !known.contains_key(node)
                && let Some(model) = &*self.model.borrow()
            {
                // Nodes come and go, under other names each time. Those that are no more make room.
                known.retain(|name, _| model.nodes.contains_key(name));
            }
            taken = known.len() < MAX_NODES || known.contains_key(node);
            if taken {
                known.insert(node.to_owned(), facts);
            }
            taken
        });
        match taken {
            true => Ok(text(StatusCode::OK, "ok")),
            false => Err(too_many()),
        }
    }

    fn feed(self: Arc<Self>, caller: &Caller, query: &str) -> Result<Response<Body>, Error> {
        let wanted = Wanted::parse(query).map_err(bad)?;
        speaks_for(caller, &Role::Node(wanted.node.clone()))?;
        let until = match caller {
            Caller::Known(identity) => Some(identity.not_after),
            Caller::Anyone | Caller::Stranger => None,
        };
        match entry(&mut lock(&self.nodes), &wanted.node) {
            Some(peer) => {
                peer.streams += 1;
                peer.certificate = until;
            }
            None => return Err(too_many()),
        }
        tracing::info!(node = wanted.node, "a node follows");
        let reader = Reader {
            news: self.news.subscribe(),
            drain: self.drain(),
            routes: self,
            node: wanted.node,
            place: Place::Start(wanted.position),
            until,
        };
        let lines = futures_util::stream::unfold(reader, |mut reader| async move {
            let lines = reader.next().await?;
            Some((Ok(Frame::data(lines)), reader))
        });
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        set_type(&mut response, "application/jsonl");
        Ok(response)
    }
}

/// One node's stream. It holds at most the lines in flight: what comes next is looked up when the
/// node has taken those, so a slow node skips steps instead of queueing them.
struct Reader {
    routes: Arc<Routes>,
    news: watch::Receiver<()>,
    drain: watch::Receiver<bool>,
    node: String,
    place: Place,
    /// Until when its certificate is good; `None` also once that has been told of.
    until: Option<SystemTime>,
}

enum Place {
    /// Nothing sent yet; the client says it has this.
    Start(Option<Position>),
    After(u64),
}

impl Reader {
    /// `None` when it is time to go.
    async fn next(&mut self) -> Option<Bytes> {
        self.look_at_certificate();
        loop {
            if let Some(lines) = self.available() {
                return Some(lines);
            }
            let news = tokio::time::timeout(self.routes.options.ping, self.news.changed());
            let news = tokio::select! {
                news = news => news,
                () = drained(&mut self.drain) => {
                    tokio::time::sleep(part_of(self.routes.options.drain_time)).await;
                    return None;
                }
            };
            if !matches!(news, Ok(Ok(()))) {
                let mut line = Vec::new();
                Say::Ping {}.write(&mut line);
                return Some(line.into());
            }
        }
    }

    /// A connection outlives the certificate that it began with: cutting it would help nobody. But
    /// whoever does not get another in time is told of while there is a connection.
    fn look_at_certificate(&mut self) {
        if let Some(until) = self.until.filter(|until| SystemTime::now() > *until) {
            tracing::warn!(
                node = self.node,
                expired = date(until),
                "a node's certificate has expired; its connection stays, and is its last with that"
            );
            self.until = None;
        }
    }

    fn available(&mut self) -> Option<Bytes> {
        self.news.mark_unchanged();
        let mut history = lock(&self.routes.history);
        let history = history.as_mut()?;
        let next = match &self.place {
            Place::Start(position) => history.start(position.as_ref()),
            Place::After(revision) => history.after(*revision)?,
        };
        self.place = Place::After(next.revision);
        Some(next.lines)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(peer) = lock(&self.routes.nodes).get_mut(&self.node) {
            peer.streams = peer.streams.saturating_sub(1);
        }
        tracing::info!(node = self.node, "a node's stream ended");
    }
}

/// The query of a feed request.
struct Wanted {
    node: String,
    position: Option<Position>,
}

impl Wanted {
    fn parse(query: &str) -> Result<Self, String> {
        let (mut node, mut epoch, mut revision) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("node", value)) => node = Some(value.to_owned()),
                Some(("epoch", value)) => epoch = Some(value.to_owned()),
                Some(("revision", value)) => {
                    let number = value.parse::<u64>();
                    revision = Some(number.map_err(|_| "revision is not a number".to_owned())?);
                }
                // Of a newer client; what it means there cannot matter here.
                _ => {}
            }
        }
        let node = node.ok_or("node is missing: /v1/feed?node=NAME")?;
        check_node(&node)?;
        let position = match (epoch, revision) {
            (Some(epoch), Some(revision)) => Some(Position { epoch, revision }),
            (None, None) => None,
            _ => return Err("epoch and revision only go together".into()),
        };
        Ok(Self { node, position })
    }
}

/// The node of `/v1/nodes/NAME/facts`.
fn facts_of(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/nodes/")?.strip_suffix("/facts")
}

/// Node names are DNS subdomains, which also need no escaping in a query.
pub(crate) fn check_node(name: &str) -> Result<(), String> {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if name.is_empty() || name.len() > 253 || !name.bytes().all(ok) {
        return Err(format!("{name:?} is not a node name"));
    }
    Ok(())
}

/// The node's entry. When the table is full, a node that is not connected makes room.
fn entry<'a>(nodes: &'a mut BTreeMap<String, Peer>, name: &str) -> Option<&'a mut Peer> {
    if nodes.len() >= MAX_NODES && !nodes.contains_key(name) {
        let away = nodes.iter().find(|(_, peer)| peer.streams == 0);
        let away = away.map(|(name, _)| name.clone())?;
        nodes.remove(&away);
    }
    Some(nodes.entry(name.to_owned()).or_default())
}

/// What is answered instead.
struct Error(StatusCode, String);

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let status = match &refused {
            Refused::Request(_) => StatusCode::BAD_REQUEST,
            Refused::Tokens(_) | Refused::Make(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Refused::Unknown | Refused::OtherNode(..) | Refused::Used(_) => StatusCode::FORBIDDEN,
        };
        Self(status, refused.to_string())
    }
}

fn bad(reason: String) -> Error {
    Error(StatusCode::BAD_REQUEST, reason)
}

fn not_ready() -> Error {
    Error(StatusCode::SERVICE_UNAVAILABLE, "not ready: no complete model yet".into())
}

fn too_many() -> Error {
    Error(StatusCode::SERVICE_UNAVAILABLE, "too many nodes".into())
}

fn internal(error: &dyn std::error::Error) -> Error {
    Error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn stranger() -> Error {
    Error(
        StatusCode::UNAUTHORIZED,
        "this is for those who show a certificate of the feed's CA".into(),
    )
}

/// Whether the caller may say or hear what is this one's.
fn speaks_for(caller: &Caller, whom: &Role) -> Result<(), Error> {
    match caller {
        Caller::Anyone => Ok(()),
        Caller::Known(identity) if identity.role == *whom => Ok(()),
        Caller::Known(Identity { role, .. }) => {
            tracing::warn!(%role, %whom, "somebody asks for what is another's");
            let reason = format!("this is for {whom}, and the certificate is that of {role}");
            Err(Error(StatusCode::FORBIDDEN, reason))
        }
        Caller::Stranger => Err(stranger()),
    }
}

/// Whether the caller may see everything.
fn operators(caller: &Caller) -> Result<(), Error> {
    match caller {
        Caller::Anyone | Caller::Known(Identity { role: Role::Operator(_), .. }) => Ok(()),
        Caller::Known(Identity { role, .. }) => {
            let reason = format!("this is for operators, and the certificate is that of {role}");
            Err(Error(StatusCode::FORBIDDEN, reason))
        }
        Caller::Stranger => Err(stranger()),
    }
}

/// A document that is no longer than what it may be.
async fn read<T: DeserializeOwned>(body: Incoming, what: &str) -> Result<T, Error> {
    let body = Limited::new(body, MAX_BODY).collect().await;
    let body =
        body.map_err(|_| Error(StatusCode::PAYLOAD_TOO_LARGE, format!("too much for {what}")))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(format!("not {what}: {error}")))
}

/// Anything from nothing to `time`.
fn part_of(time: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    time * u32::try_from(random % 1024).unwrap_or(0) / 1024
}

fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let mut line = message.into();
    line.push('\n');
    let mut response = Response::new(Full::from(line).boxed_unsync());
    *response.status_mut() = status;
    set_type(&mut response, "text/plain; charset=utf-8");
    response
}

fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut response = Response::new(Full::from(body).boxed_unsync());
            set_type(&mut response, "application/json");
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn set_type(response: &mut Response<Body>, value: &'static str) {
    let value = header::HeaderValue::from_static(value);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
}

/// Nothing that holds these locks leaves its data half-changed, so a panic elsewhere is no reason
/// to stop serving.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
