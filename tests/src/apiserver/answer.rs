//! Requests, and what is answered.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::store::{RESOURCES, Refusal, Resource, Snapshot};
use super::{Asked, Bearer, Shared, What};

/// The body of an answer: pieces as they come; an error among them breaks the connection off.
pub(super) struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

type Answer = Response<Pieces>;

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

fn whole(code: u16, body: &Value) -> Answer {
    let (sender, receiver) = mpsc::channel(1);
    let sent = sender.try_send(Ok(Bytes::from(body.to_string())));
    debug_assert!(sent.is_ok(), "there is room for one");
    let answer = Response::builder().status(code).header(CONTENT_TYPE, "application/json");
    answer.body(Pieces(receiver)).unwrap_or_else(|error| unreachable!("{error}"))
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code})
}

fn refused((code, reason, message): Refusal) -> Answer {
    whole(code, &status(code, reason, &message))
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// A request's target, taken apart.
struct Target {
    resource: &'static Resource,
    namespace: String,
    name: String,
    subresource: String,
    query: BTreeMap<String, String>,
}

/// Answers one request, of somebody whom a certificate tells if `is_known`.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    is_known: bool,
) -> io::Result<Answer> {
    let behaviour = shared.lock().behaviour.clone();
    if behaviour.is_down {
        return Err(reset());
    }
    if let Some(token) = behaviour.token.as_ref().filter(|_| !is_known) {
        let said = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        if said != Some(&format!("Bearer {token}")) {
            return Ok(refused((401, "Unauthorized", "Unauthorized".to_owned())));
        }
    }
    let unknown =
        || (404, "NotFound", "the server could not find the requested resource".to_owned());
    let Some(target) = target(&request) else { return Ok(refused(unknown())) };
    let watches = ["1", "true"].contains(&target.query.get("watch").map_or("", String::as_str));
    let verb = match *request.method() {
        Method::GET if !target.name.is_empty() => "get",
        Method::GET if watches => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return Ok(refused((405, "MethodNotAllowed", "not here".to_owned()))),
    };
    let fault = note(shared, verb, &target);
    if behaviour.without.contains(target.resource.plural) {
        return Ok(refused(unknown()));
    }
    let (mut cut, mut first) = (None, None);
    match fault {
        Some(What::Refuse(code, reason)) => {
            return Ok(refused((code, reason, "as told".to_owned())));
        }
        Some(What::Throttle(seconds)) => {
            let mut answer = refused((429, "TooManyRequests", "too many requests".to_owned()));
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
            return Ok(answer);
        }
        Some(What::Reset) => return Err(reset()),
        Some(What::Wait(time)) => tokio::time::sleep(time).await,
        Some(What::ErrorEvent(code, reason)) => first = Some((code, reason)),
        Some(What::CutAfter(bytes)) => cut = Some(bytes),
        Some(What::Overtake) => {
            let Target { resource, namespace, name, .. } = &target;
            shared.lock().store.touch(resource, namespace, name);
        }
        None => {}
    }
    match verb {
        "list" => Ok(list(shared, &target)),
        "watch" => Ok(watch(shared, target, cut, first)),
        "get" => {
            let found = shared.lock().store.get(target.resource, &target.namespace, &target.name);
            Ok(found.map_or_else(|| refused(unknown()), |object| whole(200, &object)))
        }
        _ => write(shared, verb, &target, request).await,
    }
}

/// Keeps what was asked, and finds what is to go wrong with it.
fn note(shared: &Shared, verb: &'static str, target: &Target) -> Option<What> {
    let mut state = shared.lock();
    let Target { resource, name, subresource, query, .. } = target;
    let group = resource.version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let slash = if subresource.is_empty() { "" } else { "/" };
    let asked = Asked {
        verb,
        group,
        resource: format!("{}{slash}{subresource}", resource.plural),
        name: name.clone(),
        query: query.clone(),
    };
    state.asked.push(asked);
    let at = state.faults.iter().position(|fault| {
        (fault.verb.is_empty() || fault.verb == verb)
            && (fault.resource.is_empty() || fault.resource == resource.plural)
    })?;
    let fault = &mut state.faults[at];
    let what = fault.what.clone();
    fault.times -= 1;
    if fault.times == 0 {
        state.faults.remove(at);
    }
    Some(what)
}

fn target(request: &Request<Incoming>) -> Option<Target> {
    let uri = request.uri();
    let mut parts = uri.path().split('/').filter(|part| !part.is_empty()).map(str::to_owned);
    let version = match parts.next()?.as_str() {
        "api" => parts.next()?,
        "apis" => format!("{}/{}", parts.next()?, parts.next()?),
        _ => return None,
    };
    let mut rest: Vec<String> = parts.collect();
    let mut namespace = String::new();
    if rest.len() > 2 && rest[0] == "namespaces" {
        namespace = rest[1].clone();
        rest.drain(..2);
    }
    let of = |resource: &&Resource| resource.version == version && resource.plural == rest[0];
    let resource = RESOURCES.iter().find(|resource| !rest.is_empty() && of(resource))?;
    let part = |at: usize| rest.get(at).cloned().unwrap_or_default();
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(key, value)| (key.to_owned(), unescaped(value))).collect();
    Some(Target { resource, namespace, name: part(1), subresource: part(2), query })
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next(), rest.next()].map(Option::unwrap_or_default);
            let digits = String::from_utf8_lossy(&digits).into_owned();
            bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether the query means the object: all of them, or the one with a name.
fn is_meant(query: &BTreeMap<String, String>, object: &Value) -> bool {
    let name = query.get("fieldSelector").and_then(|text| text.strip_prefix("metadata.name="));
    name.is_none_or(|name| object["metadata"]["name"] == name)
}

/// A list as a whole or one of its pages.
fn list(shared: &Shared, target: &Target) -> Answer {
    let mut state = shared.lock();
    let store = &mut state.store;
    let Target { resource, namespace, query, .. } = target;
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(0);
    let (version, all, from): (u64, Snapshot, usize) = match query.get("continue") {
        Some(token) => {
            let parsed = token.strip_suffix("==").and_then(|token| token.split_once('/'));
            let numbers = parsed.and_then(|(version, from)| {
                Some((version.parse::<u64>().ok()?, from.parse::<usize>().ok()?))
            });
            let Some((version, from)) = numbers else {
                return refused((400, "BadRequest", "continue key is not valid".to_owned()));
            };
            let Some(all) = store.snapshots.get(&(version, resource.plural)) else {
                let text = "The provided continue parameter is too old to display a consistent list result";
                return refused((410, "Expired", text.to_owned()));
            };
            (version, Arc::clone(all), from)
        }
        None => {
            let mut all = store.all(resource, namespace);
            all.retain(|object| is_meant(query, object));
            (store.version, Arc::new(all), 0)
        }
    };
    let end = if limit == 0 { all.len() } else { all.len().min(from + limit) };
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if end < all.len() {
        store.snapshots.insert((version, resource.plural), Arc::clone(&all));
        metadata["continue"] = format!("{version}/{end}==").into();
        metadata["remainingItemCount"] = (all.len() - end).into();
    }
    let items = all[from..end].iter().map(|object| {
        let mut object = Value::clone(object);
        if let Some(fields) = object.as_object_mut().filter(|_| !resource.defined) {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        object
    });
    let items: Vec<_> = items.collect();
    let kind = format!("{}List", resource.kind);
    whole(
        200,
        &json!({"kind": kind, "apiVersion": resource.version, "metadata": metadata, "items": items}),
    )
}

fn watch(
    shared: &Arc<Shared>,
    target: Target,
    cut: Option<usize>,
    first: Option<(u16, &'static str)>,
) -> Answer {
    let state = shared.lock();
    let query = target.query.clone();
    let initial = query.get("sendInitialEvents").is_some_and(|value| value == "true");
    if initial && !state.behaviour.streams_lists {
        let text = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the \
                    WatchList feature gate is enabled";
        return refused((422, "Invalid", text.to_owned()));
    }
    if initial && query.get("resourceVersionMatch").is_none_or(|wanted| wanted != "NotOlderThan") {
        let text = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                    resourceVersionMatch to NotOlderThan";
        return refused((422, "Invalid", text.to_owned()));
    }
    let from = query.get("resourceVersion").map_or("", String::as_str);
    let from = match from {
        "" | "0" => None,
        number => match number.parse::<u64>() {
            Ok(number) => Some(number),
            Err(_) => return refused((400, "BadRequest", "invalid resource version".to_owned())),
        },
    };
    let gone = from.is_some_and(|from| from < state.store.compacted);
    let text = "too old resource version";
    if gone && state.behaviour.gone_by_status {
        return refused((410, "Gone", text.to_owned()));
    }
    let seconds = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(1800));
    let (sender, receiver) = mpsc::channel(64);
    let pieces = state.behaviour.pieces;
    let first = first.or(gone.then_some((410, "Expired")));
    let watching = Watching {
        shared: Arc::clone(shared),
        bookmarks: query.get("allowWatchBookmarks").is_some_and(|value| value == "true"),
        resource: target.resource,
        namespace: target.namespace,
        query: target.query,
        from,
        initial,
        out: Out { sender, pieces, left: cut },
    };
    drop(state);
    tokio::spawn(async move {
        match first {
            Some((code, reason)) => watching.refuse(&status(code, reason, text)).await,
            // Whichever way it ended, so does the answer.
            None => drop(tokio::time::timeout(time, watching.run()).await),
        }
    });
    let answer = Response::builder().header(CONTENT_TYPE, "application/json");
    answer.body(Pieces(receiver)).unwrap_or_else(|error| unreachable!("{error}"))
}

/// The way to a client that watches.
struct Out {
    sender: mpsc::Sender<io::Result<Bytes>>,
    pieces: Option<usize>,
    /// So many bytes until the connection breaks.
    left: Option<usize>,
}

impl Out {
    /// Sends a line, or as much of it as is to be sent; `None` if that was the last.
    async fn line(&mut self, line: &Value) -> Option<()> {
        let text = format!("{line}\n").into_bytes();
        let mut text = &text[..];
        if let Some(left) = &mut self.left {
            if *left < text.len() {
                text = &text[..*left];
                self.send(text).await?;
                return self.cut().await;
            }
            *left -= text.len();
        }
        self.send(text).await
    }

    async fn send(&mut self, text: &[u8]) -> Option<()> {
        for piece in text.chunks(self.pieces.unwrap_or(usize::MAX)) {
            self.sender.send(Ok(Bytes::copy_from_slice(piece))).await.ok()?;
        }
        Some(())
    }

    async fn cut(&mut self) -> Option<()> {
        self.sender.send(Err(reset())).await.ok()?;
        None
    }
}

struct Watching {
    shared: Arc<Shared>,
    resource: &'static Resource,
    namespace: String,
    query: BTreeMap<String, String>,
    bookmarks: bool,
    from: Option<u64>,
    initial: bool,
    out: Out,
}

impl Watching {
    async fn refuse(mut self, status: &Value) {
        // A client that is gone needs no word.
        let _ = self.out.line(&json!({"type": "ERROR", "object": status})).await;
    }

    async fn run(mut self) -> Option<()> {
        let mut signal = self.shared.signal.subscribe();
        let mut seen = *signal.borrow_and_update();
        let mut at = match self.from {
            Some(from) if !self.initial => from,
            _ => {
                let (version, all) = {
                    let state = self.shared.lock();
                    (state.store.version, state.store.all(self.resource, &self.namespace))
                };
                for object in all.iter().filter(|object| is_meant(&self.query, object)) {
                    self.out.line(&json!({"type": "ADDED", "object": **object})).await?;
                }
                if self.initial && self.bookmarks {
                    self.bookmark(version, true).await?;
                }
                version
            }
        };
        loop {
            let now = *signal.borrow_and_update();
            let (news, version) = {
                let state = self.shared.lock();
                (state.store.since(self.resource.plural, at), state.store.version)
            };
            for happened in news {
                at = happened.version;
                let object = &happened.object;
                let within = &object["metadata"]["namespace"];
                let within = self.namespace.is_empty() || *within == self.namespace.as_str();
                if within && is_meant(&self.query, object) {
                    let line = json!({"type": happened.event, "object": **object});
                    self.out.line(&line).await?;
                }
            }
            if now.cuts != seen.cuts || self.shared.lock().behaviour.is_down {
                let line = json!({"type": "MODIFIED", "object": {"metadata": {"name": "cut"}}});
                let line = line.to_string();
                self.out.send(&line.as_bytes()[..line.len() / 2]).await?;
                return self.out.cut().await;
            }
            if now.ends != seen.ends {
                return Some(());
            }
            if now.bookmarks != seen.bookmarks && self.bookmarks {
                // As far as everything is known, also what happened to other kinds.
                self.bookmark(version, false).await?;
                at = at.max(version);
            }
            seen = now;
            tokio::select! {
                changed = signal.changed() => changed.ok()?,
                () = self.out.sender.closed() => return None,
            }
        }
    }

    async fn bookmark(&mut self, version: u64, is_end: bool) -> Option<()> {
        let mut metadata =
            json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if is_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let Resource { version, kind, .. } = self.resource;
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        self.out.line(&json!({"type": "BOOKMARK", "object": object})).await
    }
}

/// What is made of a TokenReview, which is answered and not kept.
fn reviewed(tokens: &BTreeMap<String, Bearer>, mut review: Value) -> Value {
    let spec = &review["spec"];
    let wanted = spec["audiences"].as_array().into_iter().flatten();
    let known = spec["token"].as_str().and_then(|token| tokens.get(token));
    let fitting = known.and_then(|bearer| {
        let fits = |audience: &&Value| **audience == *bearer.audience;
        let audiences: Vec<_> = wanted.filter(fits).cloned().collect();
        (!audiences.is_empty()).then_some((bearer, audiences))
    });
    review["status"] = match fitting {
        Some((bearer, audiences)) => {
            json!({"authenticated": true, "user": bearer.user, "audiences": audiences})
        }
        None => json!({"user": {}, "error": "[invalid bearer token, token lookup failed]"}),
    };
    review
}

async fn write(
    shared: &Shared,
    verb: &str,
    target: &Target,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or_default().to_owned();
    let text = request.into_body().collect().await.map_err(|_| reset())?.to_bytes();
    let Ok(body) = serde_json::from_slice::<Value>(&text) else {
        return Ok(refused((400, "BadRequest", "the body is no JSON".to_owned())));
    };
    let Target { resource, namespace, name, subresource, .. } = target;
    if resource.kind == "TokenReview" {
        return Ok(whole(201, &reviewed(&shared.lock().tokens, body)));
    }
    let done = {
        let mut state = shared.lock();
        let store = &mut state.store;
        match (verb, kind.as_str()) {
            ("create", _) => store.post(resource, namespace, body).map(|made| (201, made)),
            ("update", _) => store.update(resource, namespace, name, body).map(|now| (200, now)),
            (
                "patch",
                "application/merge-patch+json" | "application/strategic-merge-patch+json",
            ) => {
                let strategic = kind.contains("strategic");
                let of_status = subresource == "status";
                let patched = store.patch(resource, namespace, name, of_status, (strategic, &body));
                patched.map(|now| (200, now))
            }
            ("patch", _) => {
                Err((415, "UnsupportedMediaType", "not in this content type".to_owned()))
            }
            _ => Err((405, "MethodNotAllowed", "not here".to_owned())),
        }
    };
    shared.signal(|signal| signal.changes += 1);
    Ok(done.map_or_else(refused, |(code, object)| whole(code, &object)))
}
