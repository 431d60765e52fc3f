//! What the server answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use tokio::sync::watch;

use crate::ModelReceiver;
use crate::history::History;
use crate::server::Options;
use crate::wire::{Ack, Facts, Position, Say};

/// Room for an acknowledgement, or for what a node says of itself, and no more.
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
}

/// A node, as `GET /v1/nodes` shows it.
#[derive(Serialize)]
struct NodeStatus {
    node: String,
    connected: bool,
    /// The newest revision it says is in force, if that was of this epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<u64>,
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

    /// Answers one request.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match (request.method().clone(), path.as_str()) {
            (Method::GET, "/healthz") => text(StatusCode::OK, "ok"),
            (Method::GET, "/readyz") => self.ready(),
            (Method::GET, "/v1/model") => self.model(),
            (Method::GET, "/v1/nodes") => self.nodes(),
            (Method::GET, "/v1/feed") => self.feed(request.uri().query().unwrap_or_default()),
            (Method::POST, "/v1/ack") => self.ack(request.into_body()).await,
            (method, path) if let Some(node) = facts_of(path) => match method {
                Method::PUT => self.take_facts(node, request.into_body()).await,
                _ => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"),
            },
            (_, "/healthz" | "/readyz" | "/v1/model" | "/v1/nodes" | "/v1/feed" | "/v1/ack") => {
                text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
            }
            _ => text(StatusCode::NOT_FOUND, "no such path"),
        }
    }

    fn ready(&self) -> Response<Body> {
        match *self.model.borrow() {
            Some(_) => text(StatusCode::OK, "ok"),
            None => not_ready(),
        }
    }

    fn model(&self) -> Response<Body> {
        let model = self.model.borrow().clone();
        match model {
            Some(model) => json(&*model),
            None => not_ready(),
        }
    }

    fn nodes(&self) -> Response<Body> {
        let revision = lock(&self.history).as_ref().map(|history| history.current().1.revision);
        let nodes = lock(&self.nodes).clone();
        let nodes = nodes.into_iter().map(|(node, peer)| NodeStatus {
            node,
            connected: peer.streams > 0,
            applied: peer.applied.map(|applied| applied.revision),
        });
        json(&NodesStatus { epoch: &self.epoch, revision, nodes: nodes.collect() })
    }

    async fn ack(&self, body: Incoming) -> Response<Body> {
        let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "too much for an ack");
        };
        let ack: Ack = match serde_json::from_slice(&body.to_bytes()) {
            Ok(ack) => ack,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("not an ack: {error}")),
        };
        if let Err(reason) = check_node(&ack.node) {
            return text(StatusCode::BAD_REQUEST, reason);
        }
        let current =
            lock(&self.history).as_ref().map_or(0, |history| history.current().1.revision);
        if ack.epoch != self.epoch || ack.revision > current {
            return text(StatusCode::CONFLICT, "no such revision in this epoch");
        }
        let applied = Position { epoch: ack.epoch, revision: ack.revision };
        let mut nodes = lock(&self.nodes);
        match entry(&mut nodes, &ack.node) {
            Some(peer) => {
                peer.applied = Some(applied);
                text(StatusCode::OK, "ok")
            }
            None => text(StatusCode::SERVICE_UNAVAILABLE, "too many nodes"),
        }
    }

    async fn take_facts(&self, node: &str, body: Incoming) -> Response<Body> {
        if let Err(reason) = check_node(node) {
            return text(StatusCode::BAD_REQUEST, reason);
        }
        let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "too much for facts");
        };
        let facts: Facts = match serde_json::from_slice(&body.to_bytes()) {
            Ok(facts) => facts,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("not facts: {error}")),
        };
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
            true => text(StatusCode::OK, "ok"),
            false => text(StatusCode::SERVICE_UNAVAILABLE, "too many nodes"),
        }
    }

    fn feed(self: Arc<Self>, query: &str) -> Response<Body> {
        let wanted = match Wanted::parse(query) {
            Ok(wanted) => wanted,
            Err(reason) => return text(StatusCode::BAD_REQUEST, reason),
        };
        match entry(&mut lock(&self.nodes), &wanted.node) {
            Some(peer) => peer.streams += 1,
            None => return text(StatusCode::SERVICE_UNAVAILABLE, "too many nodes"),
        }
        tracing::info!(node = wanted.node, "a node follows");
        let reader = Reader {
            news: self.news.subscribe(),
            routes: self,
            node: wanted.node,
            place: Place::Start(wanted.position),
        };
        let lines = futures_util::stream::unfold(reader, |mut reader| async move {
            let lines = reader.next().await;
            Some((Ok(Frame::data(lines)), reader))
        });
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        set_type(&mut response, "application/jsonl");
        response
    }
}

/// One node's stream. It holds at most the lines in flight: what comes next is looked up when the
/// node has taken those, so a slow node skips steps instead of queueing them.
struct Reader {
    routes: Arc<Routes>,
    news: watch::Receiver<()>,
    node: String,
    place: Place,
}

enum Place {
    /// Nothing sent yet; the client says it has this.
    Start(Option<Position>),
    After(u64),
}

impl Reader {
    async fn next(&mut self) -> Bytes {
        loop {
            if let Some(lines) = self.available() {
                return lines;
            }
            let news = tokio::time::timeout(self.routes.options.ping, self.news.changed());
            if !matches!(news.await, Ok(Ok(()))) {
                let mut line = Vec::new();
                Say::Ping {}.write(&mut line);
                return line.into();
            }
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

fn not_ready() -> Response<Body> {
    text(StatusCode::SERVICE_UNAVAILABLE, "not ready: no complete model yet")
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
