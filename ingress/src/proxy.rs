//! A request's way: checked, routed, sent to an endpoint, answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairway_model::{BackendProtocol, Choice, Failure, Gzip, Limits};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::sleep_until;

use crate::answer::{self, Answer};
use crate::body::{Begun, Cut, Download, Listening, Progress, Received, Waits};
use crate::buffer::{self, Ahead};
use crate::compress;
use crate::fetch;
use crate::headers;
use crate::record::{Record, cut};
use crate::route::{
    self, Copied, Decision, Edits, Forward, Route, Settings, Sticky, Target, Verdict,
};
use crate::server::Peer;
use crate::server::framing::Violation;
use crate::state::Snapshot;
use crate::tunnel;
use crate::upstream::balance::{Endpoint, Method as Choose, Pending, Upstream, hash_bytes};
use crate::upstream::pool::{Coming, Connection, Destination, Failed, Identity, Unanswered};
use crate::verdicts;
use crate::websocket;
use crate::worker::{Worker, request_id};

/// What a client gives to know its request by is believed up to this length.
const ID: usize = 128;
/// How long an answer waits for a client that sends its request: longer than the body itself may.
const CLIENT: Duration = Duration::from_secs(90);
/// How often it is looked at what a request waits for, at most.
const LOOK: Duration = Duration::from_millis(100);

/// Answers a request. Whatever goes wrong is an answer, too.
pub(crate) async fn serve(
    worker: &Arc<Worker>,
    peer: &Arc<Peer>,
    mut request: Request<Incoming>,
) -> Response<Answer> {
    let kept = request.extensions_mut().remove::<tunnel::Kept>();
    let websocket = websocket::ask(&mut request, || worker.dice());
    let upgrade = websocket.is_some() || headers::upgrade(&request);
    let upgrade = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, incoming) = request.into_parts();
    headers::drop_underscores(&mut parts.headers);
    headers::join_cookies(&mut parts.headers);
    let id = match parts.headers.get("x-request-id").and_then(|id| id.to_str().ok()) {
        Some(id) if (1..=ID).contains(&id.len()) => id.to_owned(),
        _ => request_id(worker),
    };
    let mut record = Box::new(record(&parts, peer, id));
    worker.budget.earn();
    let mut response = match said_host(&parts) {
        Ok(host) => {
            record.host = host.clone().unwrap_or_default();
            let exchange = Exchange { worker, peer, host, upgrade };
            exchange.run(parts, incoming, &mut record).await
        }
        Err(why) => refuse(&mut record, StatusCode::BAD_REQUEST, why),
    };
    let mut tunnel = response.extensions_mut().remove::<tunnel::Tunnel>();
    if let Some(Err(why)) = websocket.map(|asked| asked.answer(&mut response)) {
        response = refuse(&mut record, StatusCode::BAD_GATEWAY, why);
        tunnel = None;
    }
    record.status = response.status();
    match tunnel {
        Some(tunnel) => {
            // What hyper drops as soon as it has the answer's head.
            let held = response.body_mut().release();
            tunnel.start(worker, record, (kept, held, Arc::clone(peer)));
        }
        None => response.body_mut().record(record, worker),
    }
    response
}

/// Answers a request of which only a part could be read, and which is the last one of its connection.
pub(crate) fn refused(
    worker: &Arc<Worker>,
    peer: &Peer,
    request: Request<Incoming>,
    why: Violation,
) -> Response<Answer> {
    let (parts, _) = request.into_parts();
    let mut record = Box::new(record(&parts, peer, request_id(worker)));
    let mut response = refuse(&mut record, why.status(), why.to_string());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    record.status = response.status();
    response.body_mut().record(record, worker);
    response
}

/// Tells of what was no request: the parser has answered it, or nobody.
pub(crate) fn unreadable(worker: &Worker, peer: &Peer, status: StatusCode, why: String) {
    let mut record = record(&Request::new(()).into_parts().0, peer, request_id(worker));
    // There is a method of that name as little as there is such a path.
    record.method = Method::from_bytes(b"-").unwrap_or_default();
    record.target = "-".to_owned();
    record.status = status;
    record.reason = Some(why);
    record.finish(&worker.log, &worker.metrics);
}

/// What is known of a request before anything is decided.
fn record(parts: &Parts, peer: &Peer, id: String) -> Record {
    let text = |name: HeaderName| {
        let value = parts.headers.get(name);
        value.map(|value| cut(&String::from_utf8_lossy(value.as_bytes())).into_owned())
    };
    Record {
        begun: Instant::now(),
        method: parts.method.clone(),
        version: parts.version,
        host: String::new(),
        target: target(&parts.uri).to_owned(),
        peer: peer.address,
        client: peer.address.ip(),
        agent: text(header::USER_AGENT).unwrap_or_default(),
        referer: text(header::REFERER).unwrap_or_default(),
        id,
        tls: peer.tls.is_some(),
        received: 0,
        status: StatusCode::OK,
        sent: 0,
        route: None,
        quirk: None,
        logged: true,
        endpoint: None,
        endpoint_status: None,
        endpoint_time: None,
        asked: None,
        canary: false,
        trace: headers::trace(&parts.headers).map(str::to_owned),
        tries: 0,
        reason: None,
    }
}

fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", PathAndQuery::as_str)
}

/// The host that is asked for, as it was sent: that of the target, else that of the header.
fn said_host(parts: &Parts) -> Result<Option<String>, &'static str> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let header = hosts.next().map(|host| host.to_str().map_err(|_| "Host is no text"));
    let header = header.transpose()?;
    if hosts.next().is_some() {
        return Err("Host twice");
    }
    match (parts.uri.authority().map(Authority::as_str), header) {
        (Some(authority), Some(header))
            if parts.version == Version::HTTP_2 && !authority.eq_ignore_ascii_case(header) =>
        {
            Err("Host and :authority differ")
        }
        (Some(authority), _) if authority.contains('@') => Err("a user in the authority"),
        (authority, header) => Ok(authority.or(header).map(str::to_owned)),
    }
}

/// The gateway's own answer to what is wrong.
fn refuse(record: &mut Record, status: StatusCode, why: impl Into<String>) -> Response<Answer> {
    record.reason = Some(why.into());
    answer::plain(status)
}

/// One request of a client.
///
/// What few requests need is boxed: the future of each would have room for it, and it is moved more than once.
struct Exchange<'a> {
    worker: &'a Arc<Worker>,
    peer: &'a Arc<Peer>,
    host: Option<String>,
    /// The client asks for another protocol.
    upgrade: Option<OnUpgrade>,
}

/// Why there is no answer of an endpoint's.
enum Fail {
    /// Whom to blame is the endpoint, or the way to it.
    Endpoint(Failure, String),
    /// The client is.
    Client(Cut),
    /// The gateway's configuration is.
    Configuration(String),
}

/// A request as endpoints get it.
struct Outgoing<'a> {
    head: Parts,
    begun: Begun,
    settings: &'a Settings,
    /// May be sent twice without harm (RFC 9110, 9.2.2).
    idempotent: bool,
}

/// What whoever has a say adds to a request that may pass.
#[derive(Default)]
struct Permit {
    /// Of the request.
    headers: Edits,
    /// For the client, also with errors if they are for always.
    cookies: Vec<HeaderValue>,
    always: bool,
}

/// Whose answer it is.
enum Given {
    Own(Response<Answer>),
    Backend(Response<Answer>),
}

/// What an endpoint answered.
struct Answered {
    response: Response<Coming>,
    connection: Connection,
    pending: Pending,
}

impl Exchange<'_> {
    async fn run(
        mut self,
        parts: Parts,
        incoming: Incoming,
        record: &mut Record,
    ) -> Response<Answer> {
        let snapshot = self.worker.state.snapshot();
        let accept = parts.headers.get(header::ACCEPT).cloned();
        let gzip = snapshot.gateway.compression.then(|| compress::asked_for(&parts)).flatten();
        let (route, reply, given) = match self.decide(&snapshot, &parts, record) {
            Decision::Forward(forward) => {
                record.route = Some(Arc::clone(forward.route));
                record.logged = forward.route.settings.access_log;
                record.client = forward.client;
                record.quirk = forward.quirk;
                record.canary = forward.canary;
                let given = self.forward(&snapshot, &forward, parts, incoming, record).await;
                (Some(forward.route), Some(forward.reply), given)
            }
            Decision::Answer(answer) => {
                if let Some(route) = answer.route {
                    record.logged = route.settings.access_log;
                    record.route = Some(Arc::clone(route));
                }
                record.quirk = answer.quirk;
                record.reason = Some(answer.reason.to_string());
                let mut response = answer::plain(answer.status);
                response.headers_mut().extend(answer.headers);
                (answer.route, None, Given::Own(response))
            }
        };
        let (mut response, by_backend) = match given {
            Given::Own(response) => (response, false),
            Given::Backend(response) => (response, true),
        };
        if let Some(route) = route
            && let Some(target) = &route.error_target
            && route.settings.custom_errors.contains(&response.status().as_u16())
        {
            let headers =
                route.error_headers(response.status(), accept.as_ref(), &record.target, &record.id);
            let page = Box::pin(self.error_page(&snapshot, target, headers, record));
            if let Some(mut page) = page.await {
                page.body_mut().replace(response.body_mut());
                response = page;
            }
        }
        match reply {
            Some(reply) if by_backend => reply.apply_to_backend(response.headers_mut()),
            Some(reply) => reply.apply(response.headers_mut()),
            None => {}
        }
        if let Some(taken) = gzip {
            response = self.compress(&snapshot.gateway.gzip, taken, response);
        }
        response
    }

    fn compress(&self, rules: &Gzip, taken: bool, response: Response<Answer>) -> Response<Answer> {
        let (mut head, mut body) = response.into_parts();
        let (lender, length) = (&self.worker.compressors, body.size_hint().exact());
        if let Some(squeeze) = compress::begin(lender, rules, taken, &mut head, length) {
            body.squeeze(squeeze);
        }
        Response::from_parts(head, body)
    }

    fn decide<'t>(&self, snapshot: &'t Snapshot, parts: &Parts, record: &Record) -> Decision<'t> {
        let decide = |tls: Option<route::Tls<'_>>| {
            snapshot.table.decide(&route::Request {
                method: &parts.method,
                host: self.host.as_deref(),
                target: target(&parts.uri),
                headers: &parts.headers,
                peer: self.peer.address,
                port: self.peer.port,
                tls,
                id: &record.id,
                dice: self.worker.dice(),
            })
        };
        match &self.peer.tls {
            Some(session) => session.with(snapshot, |tls| decide(Some(tls))),
            None => decide(None),
        }
    }

    /// What is asked of somebody else in place of an answer, if he has one.
    async fn error_page(
        &self,
        snapshot: &Snapshot,
        target: &Target,
        headers: Vec<(HeaderName, HeaderValue)>,
        record: &mut Record,
    ) -> Option<Response<Answer>> {
        let host = self.host.as_deref().unwrap_or_default();
        let host = HeaderValue::from_str(host).ok()?;
        let headers = headers.into_iter().collect();
        match fetch::target(self.worker, snapshot, target, host, "/", headers).await {
            Ok(mut page) => {
                headers::strip_hops(page.headers_mut());
                let (mut head, body) = page.into_parts();
                head.version = Version::HTTP_11;
                head.extensions.clear();
                Some(Response::from_parts(head, Answer::backend(body, None)))
            }
            Err(why) => {
                let before = record.reason.take().unwrap_or_default();
                record.reason = Some(format!("{before}; no page for it: {why}"));
                None
            }
        }
    }

    /// Does what is owed first, sends the request on, and the answer back.
    async fn forward(
        &mut self,
        snapshot: &Arc<Snapshot>,
        forward: &Forward<'_>,
        parts: Parts,
        incoming: Incoming,
        record: &mut Record,
    ) -> Given {
        let settings = &*forward.route.settings;
        let own = |response| Given::Own(response);
        let taken = match self.worker.state.enter(forward.route, forward.client) {
            Ok(taken) => taken,
            Err(refused) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return own(refuse(record, status, refused.to_string()));
            }
        };
        let asks = forward.password.is_some() || forward.question.is_some();
        let permit = match asks.then(|| Box::pin(self.may_pass(snapshot, forward, &parts, record)))
        {
            Some(passes) => passes.await,
            None => Ok(Permit::default()),
        };
        let permit = match permit {
            Ok(permit) => permit,
            Err(response) => return own(response),
        };
        let most = settings.body_size.unwrap_or(u64::MAX);
        record.received = incoming.size_hint().exact().unwrap_or_default();
        if record.received > most {
            let why = Cut::TooLong.to_string();
            return own(refuse(record, StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        let idempotent = parts.method.is_idempotent();
        let listening = speaks_http_2(settings.protocol).then(Listening::default);
        let begun = match self.begin(settings, incoming, most, listening.clone()).await {
            Ok(begun) => begun,
            Err(cut) => return own(refuse(record, status_of(cut), cut.to_string())),
        };
        if let Some(length) = begun.length() {
            record.received = length;
        }
        if let Some(mirror) = &forward.mirror {
            self.mirror(snapshot, mirror, &parts, &begun);
        }
        let head = match self.head(settings, forward, parts, &permit.headers) {
            Ok(head) => head,
            Err(why) => return own(refuse(record, StatusCode::BAD_REQUEST, why)),
        };
        let mut outgoing = Outgoing { head, begun, settings, idempotent };
        let mut given = match self.ask(snapshot, forward, &mut outgoing, record).await {
            Ok(answered) => {
                let cookie = self.cookie(snapshot, forward, record);
                let mut response = self.answer(settings, answered, record);
                if let Some(listening) = listening {
                    response.body_mut().hold(Arc::new(listening.begin()));
                }
                if let Some(cookie) = cookie {
                    response.headers_mut().append(header::SET_COOKIE, cookie);
                }
                Given::Backend(response)
            }
            Err((status, why)) => own(refuse(record, status, why)),
        };
        let (Given::Own(response) | Given::Backend(response)) = &mut given;
        let fine = response.status().as_u16() < 400;
        if permit.always || fine {
            let cookies = permit.cookies.into_iter().map(|cookie| (header::SET_COOKIE, cookie));
            for (name, cookie) in cookies {
                response.headers_mut().append(name, cookie);
            }
        }
        if let Some(taken) = taken {
            response.body_mut().hold(Arc::new(taken));
        }
        let Limits { rate, rate_after, .. } = settings.limits;
        if let Some(rate) = rate.filter(|rate| *rate > 0) {
            response.body_mut().pace(rate, rate_after);
        }
        given
    }

    /// Asks for the name and the password, and whoever else has a say.
    async fn may_pass(
        &self,
        snapshot: &Snapshot,
        forward: &Forward<'_>,
        parts: &Parts,
        record: &mut Record,
    ) -> Result<Permit, Response<Answer>> {
        let mut known = None;
        if let Some(password) = forward.password {
            let good = match self.worker.state.check(password, &parts.headers).await {
                Ok(good) => good,
                Err(busy) => {
                    return Err(refuse(record, StatusCode::SERVICE_UNAVAILABLE, busy.to_string()));
                }
            };
            known = Some(good);
            if good && forward.satisfy_any {
                return Ok(Permit::default());
            }
            let other_way = forward.satisfy_any && forward.question.is_some();
            if !good && !other_way {
                let why = "no user of that name and password";
                let mut response = refuse(record, StatusCode::UNAUTHORIZED, why);
                let challenge = password.challenge().clone();
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                return Err(response);
            }
        }
        let Some(question) = &forward.question else { return Ok(Permit::default()) };
        let (status, said) = match self.answer_to(snapshot, forward.route, question, parts).await {
            Ok(answer) => answer,
            Err(why) => {
                let why = format!("whoever says who may pass: {why}");
                return Err(refuse(record, StatusCode::INTERNAL_SERVER_ERROR, why));
            }
        };
        let verdict = question.verdict(status, &said);
        match verdict {
            Verdict::Pass { headers, cookies, always } => Ok(Permit { headers, cookies, always }),
            Verdict::Refuse(status, headers) => {
                let mut response = refuse(record, status, "somebody else says no");
                response.headers_mut().extend(headers);
                if let Some(password) = forward.password.filter(|_| known == Some(false)) {
                    let challenge = password.challenge().clone();
                    response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
                }
                Err(response)
            }
        }
    }

    /// What whoever says who may pass answers, or has answered of late where that is enough.
    async fn answer_to(
        &self,
        snapshot: &Snapshot,
        route: &Arc<Route>,
        question: &route::Question<'_>,
        parts: &Parts,
    ) -> Result<(StatusCode, HeaderMap), String> {
        let verdicts = &self.worker.verdicts;
        if let Some(key) = &question.cache_key
            && let Some(known) = verdicts.get(route, key, Instant::now())
        {
            return Ok(known);
        }
        let mut headers = parts.headers.clone();
        // First, so that no client takes away what is added.
        headers::strip_hops(&mut headers);
        apply(&question.headers, &mut headers);
        let asked = fetch::Question {
            method: question.method.clone(),
            url: &question.url,
            host: None,
            headers,
            body: Begun::empty(),
        };
        let answer = fetch::url(self.worker, snapshot, asked).await?;
        let (head, body) = answer.into_parts();
        // So that the connection can be used again, if there is not much to read.
        let _ = Limited::new(body, 64 << 10).collect().await;
        if let Some(key) = &question.cache_key {
            let holds = question.rules.cache_for.iter();
            let mut holds = holds.filter(|(status, _)| *status == head.status.as_u16());
            if let Some((_, seconds)) = holds.next()
                && verdicts::may_be_kept(&head.headers)
            {
                let until = Instant::now() + Duration::from_secs((*seconds).into());
                verdicts.put(route, key, until, (head.status, head.headers.clone()));
            }
        }
        Ok((head.status, head.headers))
    }

    /// Sends a copy to somebody else, and forgets it. A body that is not there in full is left out.
    fn mirror(&self, snapshot: &Arc<Snapshot>, mirror: &Copied, parts: &Parts, begun: &Begun) {
        let Ok(turn) = Arc::clone(&self.worker.mirrors).try_acquire_owned() else { return };
        let body = Some(begun).filter(|_| mirror.body).and_then(Begun::copy);
        let (worker, snapshot) = (Arc::clone(self.worker), Arc::clone(snapshot));
        let (method, mut headers) = (parts.method.clone(), parts.headers.clone());
        headers::strip_hops(&mut headers);
        apply(&mirror.headers, &mut headers);
        let (url, host) = (mirror.url.clone(), mirror.host.clone());
        tokio::spawn(async move {
            let body = body.unwrap_or_else(Begun::empty);
            let question = fetch::Question { method, url: &url, host, headers, body };
            match fetch::url(&worker, &snapshot, question).await {
                Ok(answer) => _ = Limited::new(answer.into_body(), 1 << 20).collect().await,
                Err(error) => tracing::debug!(%error, url, "cannot mirror a request"),
            }
            drop(turn);
        });
    }

    /// Waits for the body, where that is asked for and it is not too long to be kept.
    async fn begin(
        &self,
        settings: &Settings,
        incoming: Incoming,
        most: u64,
        listening: Option<Listening>,
    ) -> Result<Begun, Cut> {
        let streams = speaks_http_2(settings.protocol);
        if incoming.is_end_stream() {
            return Ok(Begun::empty());
        }
        let received = Received::new(incoming, most, listening);
        if settings.request_buffering && !streams && self.upgrade.is_none() {
            Box::pin(Begun::buffer(received, settings.body_buffer_size, &self.worker.room)).await
        } else {
            Ok(Begun::stream(received))
        }
    }

    /// The request's head as endpoints get it.
    fn head(
        &self,
        settings: &Settings,
        forward: &Forward<'_>,
        mut parts: Parts,
        more: &Edits,
    ) -> Result<Parts, String> {
        let http2 = speaks_http_2(settings.protocol);
        let trailers = headers::takes_trailers(&parts.headers);
        let upgrade = self.upgrade.as_ref().filter(|_| !http2);
        let upgrade = upgrade.and_then(|_| parts.headers.get(header::UPGRADE).cloned());
        headers::strip_hops(&mut parts.headers);
        parts.headers.remove(header::EXPECT);
        if let Some(protocol) = upgrade {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, protocol);
        }
        if trailers {
            parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
            if !http2 && !parts.headers.contains_key(header::CONNECTION) {
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            }
        }
        apply(&forward.headers, &mut parts.headers);
        apply(more, &mut parts.headers);
        let path = match &forward.path_and_query {
            Some(path) => PathAndQuery::try_from(path.as_str()),
            None => {
                Ok(parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")))
            }
        };
        let path = path.map_err(|error| format!("the path that backends get: {error}"))?;
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(path);
        if http2 {
            // There it is not a header.
            let host = parts.headers.remove(header::HOST);
            let host = host.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
            uri.authority = Some(Authority::try_from(host).map_err(|error| error.to_string())?);
            uri.scheme = Some(Scheme::HTTP);
            if settings.protocol == BackendProtocol::Grpcs {
                uri.scheme = Some(Scheme::HTTPS);
            }
        }
        parts.uri = Uri::from_parts(uri).map_err(|error| error.to_string())?;
        parts.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        parts.extensions.clear();
        Ok(parts)
    }

    /// Asks one endpoint after the other, as far as that may be.
    async fn ask(
        &self,
        snapshot: &Snapshot,
        forward: &Forward<'_>,
        outgoing: &mut Outgoing<'_>,
        record: &mut Record,
    ) -> Result<Answered, (StatusCode, String)> {
        let settings = outgoing.settings;
        let none = || {
            let why = format!("Service {} has no endpoints", forward.target.service);
            (StatusCode::SERVICE_UNAVAILABLE, why)
        };
        let spare = forward.route.spare.as_ref();
        let mut targets = std::iter::once(forward.target).chain(spare);
        let upstream = targets.find_map(|target| {
            let upstream = snapshot.upstream(target, settings.service_upstream);
            upstream.filter(|upstream| upstream.len() > 0)
        });
        let upstream = upstream.ok_or_else(none)?;
        let begun = Instant::now();
        let most = settings.retry.tries.map_or(usize::MAX, |tries| tries as usize);
        let most = most.min(upstream.len().max(1));
        let mut tried = Vec::new();
        loop {
            let endpoint = self.choose(upstream, forward, &tried).ok_or_else(none)?;
            tried.push(endpoint.address);
            record.endpoint = Some(endpoint.address);
            record.tries += 1;
            let result = self.attempt(snapshot, endpoint, outgoing).await;
            let whole = outgoing.begun.is_whole();
            let in_time = settings.retry.timeout.is_none_or(|most| begun.elapsed() < most);
            let again = |failure: &Failure, sent: bool| {
                let harmless = !sent || outgoing.idempotent || settings.retry.non_idempotent;
                settings.retry.on.contains(failure)
                    && (tried.len() < most && in_time && whole && harmless)
                    && self.worker.budget.spend()
            };
            match result {
                Ok((answered, latency)) => {
                    record.endpoint_status = Some(answered.response.status());
                    record.endpoint_time = Some(latency);
                    record.asked = Instant::now().checked_sub(latency);
                    let status = Failure::Status(answered.response.status().as_u16());
                    let too_long =
                        headers::length(answered.response.headers()) > settings.buffer_size;
                    let bad = if too_long {
                        Some("the answer's head is too long (proxy-buffer-size)")
                    } else {
                        headers::two_ends(&answered.response)
                    };
                    if let Some(why) = bad {
                        if again(&Failure::InvalidHeader, true) {
                            continue;
                        }
                        return Err((StatusCode::BAD_GATEWAY, why.to_owned()));
                    }
                    if !again(&status, true) {
                        return Ok(answered);
                    }
                }
                Err((Fail::Endpoint(failure, why), sent)) => {
                    endpoint.failed();
                    if !again(&failure, sent) {
                        let status = match failure {
                            Failure::Timeout => StatusCode::GATEWAY_TIMEOUT,
                            _ => StatusCode::BAD_GATEWAY,
                        };
                        return Err((status, why));
                    }
                }
                Err((Fail::Client(cut), _)) => return Err((status_of(cut), cut.to_string())),
                Err((Fail::Configuration(why), _)) => return Err((StatusCode::BAD_GATEWAY, why)),
            }
            self.worker.metrics.retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn choose<'u>(
        &self,
        upstream: &'u Upstream,
        forward: &Forward<'_>,
        tried: &[SocketAddr],
    ) -> Option<&'u Arc<Endpoint>> {
        let kept = forward.sticky.as_ref().and_then(|sticky| kept(upstream, sticky));
        if let Some(kept) = kept.filter(|kept| !tried.contains(&kept.address)) {
            return Some(kept);
        }
        let method = match (&forward.route.settings.choice, &forward.hash) {
            (Choice::Hash(_), Some(hash)) => Choose::Hash(hash_bytes(hash)),
            (Choice::RoundRobin, _) => Choose::RoundRobin,
            (Choice::Ewma | Choice::Hash(_), _) => Choose::Ewma,
        };
        upstream.choose(method, tried, self.worker.dice())
    }

    /// What keeps the client at the endpoint that has answered, if it is not kept there already. An endpoint
    /// that is there and only failed gets its clients back, unless that is not wanted.
    fn cookie(
        &self,
        snapshot: &Snapshot,
        forward: &Forward<'_>,
        record: &Record,
    ) -> Option<HeaderValue> {
        let (sticky, endpoint) = (forward.sticky.as_ref()?, record.endpoint?);
        if sticky.kept == Some(Sticky::key(endpoint)) {
            return None;
        }
        let upstream = snapshot.upstream(forward.target, forward.route.settings.service_upstream);
        let waits = upstream.and_then(|upstream| kept(upstream, sticky)).is_some();
        (!waits || sticky.rules.change_on_failure).then(|| sticky.cookie(endpoint))
    }

    /// Asks one endpoint. Of what failed, whether any of the request has been sent.
    async fn attempt(
        &self,
        snapshot: &Snapshot,
        endpoint: &Arc<Endpoint>,
        outgoing: &mut Outgoing<'_>,
    ) -> Result<(Answered, Duration), (Fail, bool)> {
        let pending = endpoint.begin();
        let destination = self.destination(snapshot, endpoint, outgoing.settings);
        let destination = destination.map_err(|why| (Fail::Configuration(why), false))?;
        let there = outgoing.begun.is_there() && self.upgrade.is_none();
        let mut fresh = false;
        loop {
            let take = || self.worker.pool.take(&destination.identity, there);
            let waiting = (!fresh).then(take).flatten();
            let mut connection = match waiting {
                Some(connection) => connection,
                None => {
                    let made = self.worker.pool.connect(&destination, there).await;
                    made.map_err(|error| (Fail::from(error), false))?
                }
            };
            let (upload, progress) = outgoing.begun.upload();
            let begun = Instant::now();
            let sending = connection.send(&outgoing.head, upload);
            let error = match in_time(sending, &progress, outgoing.settings).await {
                Ok(Ok(response)) => {
                    let latency = begun.elapsed();
                    endpoint.answered(latency);
                    return Ok((Answered { response, connection, pending }, latency));
                }
                Ok(Err(error)) => error,
                Err(waits) => {
                    let why = match waits {
                        Waits::Backend => "the endpoint does not take the request",
                        Waits::Client => return Err((Fail::Client(Cut::ClientTimeout), true)),
                        Waits::Answer => "the endpoint does not answer in time",
                    };
                    return Err((Fail::Endpoint(Failure::Timeout, why.to_owned()), true));
                }
            };
            match error {
                // It was closed while it waited: as if it had not been there.
                Unanswered::Unsent(upload, why) => {
                    upload.into_iter().for_each(|upload| outgoing.begun.restore(*upload));
                    if !connection.used {
                        return Err((broken(&Unanswered::Broken(why)), false));
                    }
                }
                Unanswered::Client(cut) => return Err((Fail::Client(cut), true)),
                // Closed at the same moment, most likely.
                Unanswered::Closed(_)
                    if connection.used
                        && !fresh
                        && (outgoing.idempotent && outgoing.begun.is_whole()) =>
                {
                    fresh = true;
                }
                error => return Err((broken(&error), true)),
            }
        }
    }

    /// Where a connection for this request leads.
    fn destination(
        &self,
        snapshot: &Snapshot,
        endpoint: &Endpoint,
        settings: &Settings,
    ) -> Result<Destination, String> {
        let http2 = speaks_http_2(settings.protocol);
        let with_tls = match settings.protocol {
            BackendProtocol::Https | BackendProtocol::Grpcs => true,
            BackendProtocol::AutoHttp => self.peer.tls.is_some(),
            BackendProtocol::Http | BackendProtocol::Grpc => false,
        };
        let tls = if with_tls {
            let host = self.host.as_deref().unwrap_or_default();
            let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
            Some(snapshot.clients.get(&settings.backend_tls, host, http2, &snapshot.model)?)
        } else {
            None
        };
        let identity = if tls.is_none() && !http2 {
            Arc::clone(&endpoint.plain)
        } else {
            let tls = tls.as_ref().map(|(config, name)| (config.number, name.clone()));
            Arc::new(Identity { address: endpoint.address, http2, tls })
        };
        Ok(Destination {
            identity,
            tls: tls.map(|(config, _)| config),
            patience: settings.connect_timeout,
        })
    }

    /// The client's answer out of an endpoint's.
    fn answer(
        &mut self,
        settings: &Settings,
        answered: Answered,
        record: &mut Record,
    ) -> Response<Answer> {
        let Answered { mut response, connection, pending } = answered;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(settings, response, pending, record);
        }
        headers::strip_hops(response.headers_mut());
        let (mut head, body) = response.into_parts();
        head.version = Version::HTTP_11;
        head.extensions.clear();
        let download = Download::new(body, settings.read_timeout, Some(connection));
        let length = download.size_hint().exact();
        let answer = match buffer::is_wanted(settings.buffering, &mut head.headers, length) {
            true => Answer::ahead(Ahead::new(download, &self.worker.ahead, pending)),
            false => Answer::backend(download, Some(pending)),
        };
        Response::from_parts(head, answer)
    }

    /// Client and endpoint agree to speak something else.
    fn switch(
        &mut self,
        settings: &Settings,
        mut response: Response<Coming>,
        pending: Pending,
        record: &mut Record,
    ) -> Response<Answer> {
        let Some(client) = self.upgrade.take() else {
            let why = "the endpoint changes to a protocol that nobody asked for";
            return refuse(record, StatusCode::BAD_GATEWAY, why);
        };
        if self.peer.gate.as_ref().is_some_and(|gate| !gate.open()) {
            let why = "data of another protocol before that was agreed upon";
            let mut response = refuse(record, StatusCode::BAD_REQUEST, why);
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            return response;
        }
        let endpoint = hyper::upgrade::on(&mut response);
        let protocol = response.headers().get(header::UPGRADE).cloned();
        headers::strip_hops(response.headers_mut());
        let mut answer = Response::new(Answer::own(""));
        *answer.status_mut() = response.status();
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            answer.headers_mut().insert(header::UPGRADE, protocol);
        }
        let patience = settings.read_timeout;
        answer.extensions_mut().insert(tunnel::Tunnel::new(client, endpoint, patience, pending));
        answer
    }
}

impl From<Failed> for Fail {
    fn from(failed: Failed) -> Self {
        let failure = match failed {
            Failed::ConnectTimeout(_) => Failure::Timeout,
            Failed::Connect(..) | Failed::Tls(..) | Failed::Handshake(..) => Failure::Error,
        };
        Self::Endpoint(failure, failed.to_string())
    }
}

fn broken(error: &Unanswered) -> Fail {
    let invalid = matches!(error, Unanswered::Invalid(_));
    let failure = if invalid { Failure::InvalidHeader } else { Failure::Error };
    Fail::Endpoint(failure, format!("the endpoint's connection: {error}"))
}

fn status_of(cut: Cut) -> StatusCode {
    match cut {
        Cut::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        Cut::ClientTimeout => StatusCode::REQUEST_TIMEOUT,
        Cut::Client => StatusCode::BAD_REQUEST,
        Cut::BackendTimeout => StatusCode::GATEWAY_TIMEOUT,
        Cut::Compression => StatusCode::INTERNAL_SERVER_ERROR,
        Cut::Backend => StatusCode::BAD_GATEWAY,
    }
}

fn speaks_http_2(protocol: BackendProtocol) -> bool {
    matches!(protocol, BackendProtocol::Grpc | BackendProtocol::Grpcs)
}

/// The endpoint that a client's cookie names.
fn kept<'u>(upstream: &'u Upstream, sticky: &Sticky<'_>) -> Option<&'u Arc<Endpoint>> {
    let key = sticky.kept?;
    upstream.endpoints().iter().find(|endpoint| Sticky::key(endpoint.address) == key)
}

/// Sets and removes headers.
fn apply(edits: &Edits, headers: &mut HeaderMap) {
    for (name, value) in edits {
        match value {
            Some(value) => _ = headers.insert(name, value.clone()),
            None => _ = headers.remove(name),
        }
    }
}

/// Waits for an answer's head as long as somebody makes progress.
async fn in_time<T>(
    sending: impl Future<Output = T>,
    progress: &Progress,
    settings: &Settings,
) -> Result<T, Waits> {
    let mut sending = std::pin::pin!(sending);
    // What it waits for may change without a word to whoever sleeps.
    let turn = settings.send_timeout.min(settings.read_timeout).clamp(LOOK, CLIENT);
    loop {
        let (waits, since) = progress.waits();
        let patience = match waits {
            Waits::Backend => settings.send_timeout,
            Waits::Client => CLIENT,
            Waits::Answer => settings.read_timeout,
        };
        tokio::select! {
            biased;
            sent = sending.as_mut() => return Ok(sent),
            () = sleep_until((since + patience).min(Instant::now() + turn).into()) => {
                if progress.waits() == (waits, since) && since.elapsed() >= patience {
                    return Err(waits);
                }
            }
        }
    }
}
