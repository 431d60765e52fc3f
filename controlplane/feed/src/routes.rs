//! What the server answers.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fairway_model::Model;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::ModelReceiver;
use crate::authority::{Authority, Refused, is_foreign};
use crate::history::History;
use crate::identity::{Identity, Role, date};
use crate::lines::Lines;
use crate::metrics::Metrics;
use crate::redact::redacted;
use crate::scope::Subscriber;
use crate::server::{Caller, Options, drained};
use crate::tickets::until_next;
use crate::wire::{Ack, Certified, Facts, Heard, Join, Position, Renew, Say, VERSION};

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
    metrics: Metrics,
    options: Options,
}

/// What is known of a node.
#[derive(Clone, Debug, Default)]
struct Peer {
    streams: usize,
    applied: Option<Position>,
    /// The revision of the complete model that it was sent last.
    complete: u64,
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
            metrics: Metrics::default(),
            options,
        }
    }

    /// Turns models into revisions, until their source is gone. The first change after a while is one at
    /// once, those that follow it closely are one together. The keys of tickets change by themselves.
    pub(crate) async fn take_models(&self, mut models: ModelReceiver) {
        let mut came = Instant::now();
        loop {
            let model = models.borrow_and_update().clone();
            let now = SystemTime::now();
            if let Some(model) = model {
                let with_keys = self.options.tickets.as_ref();
                let with_keys = with_keys.and_then(|keys| keys.added_to(&model, now));
                self.take_model(with_keys.map_or(model, Arc::new), came);
            }
            let next = tokio::time::Instant::now() + self.options.coalesce;
            tokio::select! {
                changed = models.changed() => if changed.is_err() {
                    // What is known stays served; a node is better off with it than without.
                    return;
                },
                () = tokio::time::sleep(until_next(now)), if self.options.tickets.is_some() => {}
            }
            came = Instant::now();
            tokio::time::sleep_until(next).await;
        }
    }

    fn take_model(&self, model: Arc<Model>, came: Instant) {
        let mut history = lock(&self.history);
        let differs = match history.as_mut() {
            Some(history) => history.push(model),
            None => {
                *history = Some(History::new(self.epoch.clone(), model));
                true
            }
        };
        let revision = history.as_ref().map_or(0, History::revision);
        drop(history);
        if differs {
            self.metrics.revision(revision, came);
            self.news.send_replace(());
        }
    }

    /// Whether the connection of whoever this is has come to its end.
    pub(crate) fn is_over_for(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Known(identity) => self.is_over(identity, SystemTime::now()),
            Caller::Anyone | Caller::Stranger => false,
        }
    }

    /// A connection ends with the certificate that it began with, or what a stolen key is good for would never
    /// end. A node of the cluster keeps its connection: cutting it off would help nobody. Before there is a model
    /// any node may be one.
    fn is_over(&self, Identity { role, not_after }: &Identity, now: SystemTime) -> bool {
        now > *not_after
            && match (role, &*self.model.borrow()) {
                (Role::Node(name), Some(model)) => !model.nodes.contains_key(name),
                (Role::Node(_), None) => false,
                _ => true,
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
        if let Caller::Known(identity) = caller
            && self.is_over(identity, SystemTime::now())
        {
            return Err(expired(identity, "connect with another one"));
        }
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
            (Method::GET, "/metrics") => {
                operators(caller)?;
                Ok(self.metrics())
            }
            (Method::GET | Method::POST, "/v1/feed") => self.feed(caller, request),
            (Method::POST, "/v1/ack") => self.ack(caller, request.into_body()).await,
            (Method::POST, "/v1/join") => self.join(caller, request.into_body()).await,
            (Method::POST, "/v1/renew") => self.renew(caller, request.into_body()).await,
            (method, path) if let Some(node) = facts_of(path) => match method {
                Method::PUT => self.take_facts(caller, node, request.into_body()).await,
                _ => Err(Error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed".into())),
            },
            (
                _,
                "/healthz" | "/readyz" | "/metrics" | "/v1/model" | "/v1/nodes" | "/v1/feed"
                | "/v1/ack" | "/v1/join" | "/v1/renew",
            ) => Err(Error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed".into())),
            _ => Err(Error(StatusCode::NOT_FOUND, "no such path".into())),
        }
    }

    fn ready(&self) -> Result<Response<Body>, Error> {
        if *self.options.drain.borrow() {
            return Err(Error(StatusCode::SERVICE_UNAVAILABLE, "not ready: going away".into()));
        }
        // A model that has only just come is no revision yet.
        match *lock(&self.history) {
            Some(_) => Ok(text(StatusCode::OK, "ok")),
            None => Err(not_ready()),
        }
    }

    /// The model that is the current revision: one that has come since is nobody's yet.
    fn model(&self) -> Result<Response<Body>, Error> {
        let model = lock(&self.history).as_ref().map(|history| Arc::clone(history.model()));
        model.map(|model| json(&redacted(&model))).ok_or_else(not_ready)
    }

    fn nodes(&self) -> Response<Body> {
        let revision = lock(&self.history).as_ref().map(History::revision);
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
        self.applied(&ack.node, &ack.epoch, ack.revision)?;
        Ok(text(StatusCode::OK, "ok"))
    }

    /// Remembers what is in force on a node.
    fn applied(&self, node: &str, epoch: &str, revision: u64) -> Result<(), Error> {
        let current = lock(&self.history).as_ref().map_or(0, History::revision);
        if epoch != self.epoch || revision > current {
            return Err(Error(StatusCode::CONFLICT, "no such revision in this epoch".into()));
        }
        let mut nodes = lock(&self.nodes);
        let peer = entry(&mut nodes, node).ok_or_else(too_many)?;
        let before = peer.applied.as_ref().map_or(0, |applied| applied.revision);
        // What came with a complete model did not change just now.
        let known = before.max(peer.complete);
        peer.applied = Some(Position { epoch: self.epoch.clone(), revision });
        drop(nodes);
        self.metrics.applied(known, revision);
        Ok(())
    }

    fn metrics(&self) -> Response<Body> {
        let model = self.model.borrow().clone();
        let revision = lock(&self.history).as_ref().map_or(0, History::revision);
        let nodes = lock(&self.nodes);
        let subscribers = nodes.iter().filter(|(_, peer)| peer.streams > 0).map(|(node, peer)| {
            let applied = peer.applied.as_ref().map_or(0, |applied| applied.revision);
            (node.as_str(), revision.saturating_sub(applied))
        });
        let text = self.metrics.text(model.as_deref(), revision, subscribers.collect());
        drop(nodes);
        let mut response = Response::new(Full::from(text).boxed_unsync());
        set_type(&mut response, "text/plain; version=0.0.4; charset=utf-8");
        response
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
        let role = match (&join.node, &join.gateway) {
            (Some(node), None) => {
                check_node(node).map_err(bad)?;
                Role::Node(node.clone())
            }
            (None, Some(gateway)) => Role::Gateway(gateway.parse().map_err(bad)?),
            _ => return Err(bad("either a node joins or a gateway".to_owned())),
        };
        let ca = authority.certificate().to_owned();
        let made = self.certificate(authority, &role, join).await;
        let certificate = made.inspect_err(|Error(_, reason)| {
            tracing::warn!(%role, reason, "somebody may not join");
        })?;
        tracing::info!(%role, "somebody joins");
        Ok(json(&Certified { certificate, ca }))
    }

    /// What a token is good for.
    async fn certificate(
        &self,
        authority: Arc<Authority>,
        role: &Role,
        join: Join,
    ) -> Result<String, Error> {
        let Join { token, request, .. } = join;
        if is_foreign(&token) {
            let vouch = self.options.vouch.as_ref().ok_or(Refused::NoServiceAccounts)?;
            let vouched = vouch.vouch(&token).await.map_err(Refused::from)?;
            return Ok(authority.join_vouched(&vouched, role, &request, SystemTime::now())?);
        }
        let Role::Node(node) = role.clone() else {
            return Err(Refused::NotAGateways.into());
        };
        let made = tokio::task::spawn_blocking(move || {
            authority.join(&token, &node, &request, SystemTime::now())
        });
        Ok(made.await.map_err(|error| internal(&error))??)
    }

    async fn renew(&self, caller: &Caller, body: Incoming) -> Result<Response<Body>, Error> {
        let authority = self.authority()?;
        let Caller::Known(identity) = caller else {
            return Err(stranger());
        };
        let Identity { role, not_after } = identity;
        if let Role::Node(name) = role {
            self.knows(name)?;
        }
        let now = SystemTime::now();
        if now > *not_after {
            // It has had a third of its life for this.
            return Err(expired(identity, "join again"));
        }
        let renew: Renew = read(body, "a request to renew").await?;
        let certificate = authority.sign(role, &renew.request, now)?;
        tracing::info!(%role, "a certificate is renewed");
        Ok(json(&Certified { certificate, ca: authority.certificate().to_owned() }))
    }

    /// Nodes go, and what was made for them is not to be good for ever. Who joins need not be known yet: a node
    /// may come before its object.
    fn knows(&self, node: &str) -> Result<(), Error> {
        match &*self.model.borrow() {
            Some(model) if model.nodes.contains_key(node) => Ok(()),
            Some(_) => {
                let gone = format!("there is no node {node}, so its certificate is not renewed");
                Err(Error(StatusCode::FORBIDDEN, gone))
            }
            None => Err(not_ready()),
        }
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

    fn feed(
        self: Arc<Self>,
        caller: &Caller,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let wanted = Wanted::parse(request.uri().query().unwrap_or_default()).map_err(bad)?;
        let role = match &wanted.subscriber {
            Subscriber::Node(name) => Role::Node(name.clone()),
            Subscriber::Gateway(name) => Role::Gateway(name.clone()),
        };
        speaks_for(caller, &role)?;
        let identity = match caller {
            Caller::Known(identity) => Some(identity.clone()),
            Caller::Anyone | Caller::Stranger => None,
        };
        if let Some(identity) =
            identity.as_ref().filter(|known| SystemTime::now() > known.not_after)
        {
            // Who may keep the stream that it has gets no other one.
            return Err(expired(identity, "connect with another one"));
        }
        let name = wanted.subscriber.to_string();
        match entry(&mut lock(&self.nodes), &name) {
            Some(peer) => {
                peer.streams += 1;
                peer.certificate = identity.as_ref().map(|identity| identity.not_after);
            }
            None => return Err(too_many()),
        }
        tracing::info!(name, "a subscriber follows");
        let zstd = accepts_zstd(&request);
        let heard = tokio::spawn(Arc::clone(&self).hear(name.clone(), request.into_body()));
        let reader = Reader {
            news: self.news.subscribe(),
            drain: self.drain(),
            ping: ping(),
            routes: self,
            subscriber: wanted.subscriber,
            name,
            place: Place::Start(wanted.position),
            queue: VecDeque::new(),
            zstd,
            identity,
            told: false,
            heard: heard.abort_handle(),
        };
        let lines = futures_util::stream::unfold(reader, |mut reader| async move {
            let lines = reader.next().await?;
            Some((Ok(Frame::data(lines)), reader))
        });
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        set_type(&mut response, "application/jsonl");
        if zstd {
            let value = header::HeaderValue::from_static("zstd");
            response.headers_mut().insert(header::CONTENT_ENCODING, value);
        }
        Ok(response)
    }

    /// Takes what a subscriber says on its stream, which for most is nothing but acknowledgements.
    async fn hear(self: Arc<Self>, name: String, mut body: Incoming) {
        let mut rest = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let taken = serde_json::from_slice(&line)
                    .map_err(|error| error.to_string())
                    .and_then(|Heard::Ack { revision }| {
                        let taken = self.applied(&name, &self.epoch, revision);
                        taken.map_err(|Error(_, reason)| reason)
                    });
                if let Err(reason) = taken {
                    tracing::warn!(name, reason, "a subscriber says what it cannot");
                    return;
                }
            }
            if rest.len() > MAX_BODY {
                return;
            }
        }
    }
}

fn ping() -> Arc<Lines> {
    let mut line = Vec::new();
    Say::Ping {}.write(&mut line);
    Lines::new(line)
}

/// Whether the answer may be compressed.
fn accepts_zstd(request: &Request<Incoming>) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT_ENCODING).iter();
    let mut accepted =
        accepted.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    accepted.any(|coding| coding.trim() == "zstd")
}

/// One node's stream. It holds at most the lines in flight: what comes next is looked up when the
/// node has taken those, so a slow node skips steps instead of queueing them.
struct Reader {
    routes: Arc<Routes>,
    news: watch::Receiver<()>,
    drain: watch::Receiver<bool>,
    ping: Arc<Lines>,
    subscriber: Subscriber,
    name: String,
    place: Place,
    /// What is to go out before anything else is looked up.
    queue: VecDeque<Arc<Lines>>,
    zstd: bool,
    /// By its certificate; `None` without TLS.
    identity: Option<Identity>,
    /// That its certificate has expired, in the log.
    told: bool,
    /// The task that hears what it says.
    heard: AbortHandle,
}

enum Place {
    /// Nothing sent yet; the client says it has this.
    Start(Option<Position>),
    After(u64),
}

impl Reader {
    /// `None` when it is time to go.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(lines) = self.queue.pop_front() {
                return Some(self.sent(&lines));
            }
            if self.is_over() {
                return None;
            }
            if self.available() {
                continue;
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
                return Some(self.sent(&self.ping));
            }
        }
    }

    /// Whether the stream ends with its certificate. Whoever keeps it, and does not get another certificate in
    /// time, is told of while there is a connection.
    fn is_over(&mut self) -> bool {
        let now = SystemTime::now();
        let Some(identity) = self.identity.as_ref().filter(|known| now > known.not_after) else {
            return false;
        };
        let (name, expired) = (&self.name, date(identity.not_after));
        let is_over = self.routes.is_over(identity, now);
        if is_over {
            tracing::info!(
                name,
                expired,
                "a subscriber's certificate has expired; its stream ends"
            );
        } else if !self.told {
            tracing::warn!(
                name,
                expired,
                "a subscriber's certificate has expired; its connection stays, and is its last with that"
            );
        }
        self.told = true;
        is_over
    }

    fn sent(&self, lines: &Lines) -> Bytes {
        let bytes = match self.zstd {
            true => lines.zstd(),
            false => lines.plain(),
        };
        self.routes.metrics.sent(bytes.len());
        bytes
    }

    /// Queues what comes next, if there is anything.
    fn available(&mut self) -> bool {
        self.news.mark_unchanged();
        let next = {
            let mut history = lock(&self.routes.history);
            let Some(history) = history.as_mut() else { return false };
            match &self.place {
                Place::Start(position) => Some(history.start(&self.subscriber, position.as_ref())),
                Place::After(revision) => history.after(&self.subscriber, *revision),
            }
        };
        let Some(next) = next else { return false };
        self.place = Place::After(next.revision);
        self.queue.extend(next.parts);
        if next.complete {
            self.routes.metrics.snapshot();
            if let Some(peer) = lock(&self.routes.nodes).get_mut(&self.name) {
                peer.complete = next.revision;
            }
        }
        true
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.heard.abort();
        if let Some(peer) = lock(&self.routes.nodes).get_mut(&self.name) {
            peer.streams = peer.streams.saturating_sub(1);
        }
        tracing::info!(name = self.name, "a subscriber's stream ended");
    }
}

/// The query of a feed request.
struct Wanted {
    subscriber: Subscriber,
    position: Option<Position>,
}

impl Wanted {
    fn parse(query: &str) -> Result<Self, String> {
        let (mut subscriber, mut epoch, mut revision, mut version) = (None, None, None, 1);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("node", value)) => subscriber = Some(Subscriber::Node(value.to_owned())),
                Some(("gateway", value)) => {
                    subscriber = Some(Subscriber::Gateway(value.parse()?));
                }
                Some(("version", value)) => {
                    version = value.parse::<u32>().map_err(|_| "version is not a number")?;
                }
                Some(("epoch", value)) => epoch = Some(value.to_owned()),
                Some(("revision", value)) => {
                    let number = value.parse::<u64>();
                    revision = Some(number.map_err(|_| "revision is not a number".to_owned())?);
                }
                // Of a newer client; what it means there cannot matter here.
                _ => {}
            }
        }
        let subscriber = subscriber.ok_or("node is missing: /v1/feed?version=2&node=NAME")?;
        if let Subscriber::Node(name) = &subscriber {
            check_node(name)?;
        }
        if version < VERSION {
            return Err(format!(
                "version {version} of the feed is not spoken here any more, but {VERSION}: upgrade the \
                 subscriber"
            ));
        }
        let position = match (epoch, revision) {
            (Some(epoch), Some(revision)) => Some(Position { epoch, revision }),
            (None, None) => None,
            _ => return Err("epoch and revision only go together".into()),
        };
        Ok(Self { subscriber, position })
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
            Refused::NotNow(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refused::Unknown
            | Refused::Other(..)
            | Refused::NotAGateways
            | Refused::Used(_)
            | Refused::NoServiceAccounts
            | Refused::ServiceAccount(_) => StatusCode::FORBIDDEN,
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

fn expired(identity: &Identity, remedy: &str) -> Error {
    let until = date(identity.not_after);
    Error(StatusCode::FORBIDDEN, format!("the certificate expired at {until}; {remedy}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_once_it_has_a_revision_to_tell() {
        let model = Arc::new(Model::default());
        let (_sender, models) = watch::channel(Some(Arc::clone(&model)));
        let routes = Routes::new("a".to_owned(), models, Options::default());
        assert!(routes.ready().is_err());
        routes.take_model(model, Instant::now());
        assert!(routes.ready().is_ok());
    }
}
