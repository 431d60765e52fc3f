//! A request's way: checked, routed, sent to an endpoint, answered.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use fairway_model::{BackendProtocol, Choice, Failure, Gzip, Limits};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body as _;
use hyper::upgrade::OnUpgrade;

use crate::answer::{self, Answer};
use crate::body::{Begun, Cut, Download, Listening, Progress, Received, Waits};
use crate::buffer::{self, Ahead};
use crate::compress;
use crate::fetch;
use crate::headers;
use crate::message::{Edits, Fields, Head, Known, Request, Response, Span, Upgrade, Upload, text};
use crate::record::{Id, Record};
use crate::route::{self, Copied, Decision, Forward, Route, Settings, Sticky, Target, Verdict};
use crate::server::Peer;
use crate::server::alarm::Alarm;
use crate::server::framing::Violation;
use crate::state::Snapshot;
use crate::tunnel;
use crate::upstream::Ask;
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

/// Answers a request. Whatever goes wrong is an answer, too. `alarm`: that of the task which waits for it, if there is
/// one that wakes nobody else.
pub(crate) async fn serve(
    worker: &Arc<Worker>,
    peer: &Arc<Peer>,
    mut request: Request,
    alarm: Option<&mut Alarm>,
) -> Response<Answer> {
    let websocket = websocket::ask(&mut request, || worker.dice());
    let Request { mut head, body, upgrade, .. } = request;
    let upgrade = upgrade.filter(|_| websocket.is_some() || headers::upgrade(&head));
    headers::drop_underscores(&mut head.fields);
    headers::join_cookies(&mut head.fields);
    let mut record = record(worker, peer, head);
    worker.budget.earn();
    let mut exchange = Exchange { worker, peer, alarm, upgrade, tunnel: None };
    let waiting = Waiting { record: &mut record, worker };
    let mut response = match said_host(&waiting.record.head) {
        Ok(host) => {
            waiting.record.host = host;
            exchange.run(body, waiting.record).await
        }
        Err(why) => refuse(waiting.record, StatusCode::BAD_REQUEST, why),
    };
    waiting.over();
    let mut tunnel = exchange.tunnel;
    if let Some(Err(why)) = websocket.map(|asked| asked.answer(&mut response)) {
        response = refuse(&mut record, StatusCode::BAD_GATEWAY, why);
        tunnel = None;
    }
    record.status = response.status;
    match tunnel {
        Some(tunnel) => {
            // What servers drop as soon as they have the answer's head.
            let held = response.body.release();
            tunnel.start(worker, record, (held, Arc::clone(peer)));
        }
        None => response.body.record(record, worker),
    }
    response
}

/// A request whose answer the client waits for. If this is dropped, it has gone away.
struct Waiting<'a> {
    record: &'a mut Record,
    worker: &'a Worker,
}

impl Waiting<'_> {
    /// The answer is there.
    fn over(self) {
        std::mem::forget(self);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // nginx has a status of its own for that, which no client sees.
        self.record.status = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
        self.record.reason = Some("the client went away before an answer".to_owned());
        self.record.finish(&self.worker.log, &self.worker.metrics);
    }
}

/// Answers a request of which only a part could be read, and which is the last one of its connection.
pub(crate) fn refused(
    worker: &Arc<Worker>,
    peer: &Peer,
    head: Head,
    why: Violation,
) -> Response<Answer> {
    let mut record = record(worker, peer, head);
    let mut response = refuse(&mut record, why.status(), why.to_string());
    response.fields.set(Known::Connection, "close");
    record.status = response.status;
    response.body.record(record, worker);
    response
}

/// Tells of what was no request: the parser has answered it, or nobody.
pub(crate) fn unreadable(
    worker: &Worker,
    peer: &Peer,
    version: Version,
    status: StatusCode,
    why: String,
) {
    // There is a method of that name as little as there is such a path.
    let method = Method::from_bytes(b"-").unwrap_or_default();
    let mut fields = Fields::new();
    let target = fields.keep(b"-");
    let Some(head) = Head::new(method, version, target, None, fields) else { return };
    let mut record = record(worker, peer, head);
    record.status = status;
    record.reason = Some(why);
    record.finish(&worker.log, &worker.metrics);
}

/// What is known of a request before anything is decided.
fn record(worker: &Worker, peer: &Peer, head: Head) -> Box<Record> {
    let said = head.fields.place(Known::XRequestId);
    let said = said.filter(|said| {
        let said = head.fields.bytes(*said);
        (1..=ID).contains(&said.len()) && text(said).is_some()
    });
    let id = said.map_or_else(|| Id::Own(request_id(worker)), Id::Said);
    Box::new(Record::new(head, peer.address, peer.tls.is_some(), id))
}

/// Where the host stands that is asked for: in the target, else in the header.
fn said_host(head: &Head) -> Result<Option<Span>, &'static str> {
    let header = head.fields.place(Known::Host);
    let said = header.map(|header| text(head.fields.bytes(header)).ok_or("Host is no text"));
    let said = said.transpose()?;
    if head.fields.get_all(Known::Host).nth(1).is_some() {
        return Err("Host twice");
    }
    match (head.authority(), said) {
        (Some(authority), Some(header))
            if head.version == Version::HTTP_2 && !authority.eq_ignore_ascii_case(header) =>
        {
            Err("Host and :authority differ")
        }
        (Some(authority), _) if authority.contains('@') => Err("a user in the authority"),
        _ => Ok(head.authority_place().or(header)),
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
    /// Without one, connections to endpoints have theirs.
    alarm: Option<&'a mut Alarm>,
    /// The client asks for another protocol.
    upgrade: Option<Upgrade>,
    /// It has it.
    tunnel: Option<tunnel::Tunnel>,
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

/// What is sent to endpoints beside the fields.
struct Outgoing<'a> {
    /// `None`: the client's.
    target: Option<PathAndQuery>,
    /// Over HTTP/2.
    uri: Option<Uri>,
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
    cookies: Fields,
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
    async fn run(&mut self, body: Upload, record: &mut Record) -> Response<Answer> {
        let snapshot = self.worker.state.snapshot();
        let accept = record.head.fields.place(Known::Accept);
        let gzip = snapshot.gateway.compression.then(|| compress::asked_for(&record.head));
        let gzip = gzip.flatten();
        let (route, reply, given) = match self.decide(&snapshot, record) {
            Decision::Forward(forward) => {
                record.route = Some(Arc::clone(forward.route));
                record.logged = forward.route.settings.access_log;
                record.client = forward.client;
                record.quirk = forward.quirk;
                record.canary = forward.canary;
                let given = self.forward(&snapshot, &forward, body, record).await;
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
                response.fields.extend(&answer.headers);
                (answer.route, None, Given::Own(response))
            }
        };
        let (mut response, by_backend) = match given {
            Given::Own(response) => (response, false),
            Given::Backend(response) => (response, true),
        };
        if let Some(route) = route
            && let Some(target) = &route.error_target
            && route.settings.custom_errors.contains(&response.status.as_u16())
        {
            let accept = accept.map(|accept| record.head.fields.bytes(accept));
            let headers =
                route.error_headers(response.status, accept, record.head.target(), record.id());
            let page = Box::pin(self.error_page(&snapshot, target, headers, record));
            if let Some(mut page) = page.await {
                page.body.replace(&mut response.body);
                response = page;
            }
        }
        match reply {
            Some(reply) if by_backend => reply.apply_to_backend(&mut response.fields),
            Some(reply) => reply.apply(&mut response.fields),
            None => {}
        }
        if let Some(taken) = gzip {
            self.compress(&snapshot.gateway.gzip, taken, &mut response);
        }
        response
    }

    fn compress(&self, rules: &Gzip, taken: bool, response: &mut Response<Answer>) {
        let (lender, length) = (&self.worker.compressors, response.body.size_hint().exact());
        if let Some(squeeze) = compress::begin(lender, rules, taken, response, length) {
            response.body.squeeze(squeeze);
        }
    }

    fn decide<'t>(&self, snapshot: &'t Snapshot, record: &Record) -> Decision<'t> {
        let decide = |tls: Option<route::Tls<'_>>| {
            snapshot.table.decide(&route::Request {
                method: &record.head.method,
                host: record.host(),
                target: record.head.target(),
                headers: &record.head.fields,
                peer: self.peer.address,
                port: self.peer.port,
                tls,
                id: record.id(),
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
        headers: Fields,
        record: &mut Record,
    ) -> Option<Response<Answer>> {
        let host = record.host().unwrap_or_default();
        match fetch::target(self.worker, snapshot, target, host, headers).await {
            Ok(mut page) => {
                headers::strip_hops(&mut page.fields);
                Some(page.map(|body| Answer::backend(body, None)))
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
        body: Upload,
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
        let permit = match asks.then(|| Box::pin(self.may_pass(snapshot, forward, record))) {
            Some(passes) => passes.await,
            None => Ok(Permit::default()),
        };
        let permit = match permit {
            Ok(permit) => permit,
            Err(response) => return own(response),
        };
        let most = settings.body_size.unwrap_or(u64::MAX);
        record.received = body.size_hint().exact().unwrap_or_default();
        if record.received > most {
            let why = Cut::TooLong.to_string();
            return own(refuse(record, StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        let idempotent = record.head.method.is_idempotent();
        let listening = speaks_http_2(settings.protocol).then(Listening::default);
        let begun = match self.begin(settings, body, most, listening.clone()).await {
            Ok(begun) => begun,
            Err(cut) => return own(refuse(record, status_of(cut), cut.to_string())),
        };
        if let Some(length) = begun.length() {
            record.received = length;
        }
        if let Some(mirror) = &forward.mirror {
            self.mirror(snapshot, mirror, &record.head, &begun);
        }
        let fields = &mut record.head.fields;
        self.edit(settings, forward, fields, &permit.headers);
        let place = place(settings, forward.path_and_query.as_deref(), &mut record.head);
        let (target, uri) = match place {
            Ok(place) => place,
            Err(why) => return own(refuse(record, StatusCode::BAD_REQUEST, why)),
        };
        let mut outgoing = Outgoing { target, uri, begun, settings, idempotent };
        let mut given = match self.ask(snapshot, forward, &mut outgoing, record).await {
            Ok(answered) => {
                let cookie = self.cookie(snapshot, forward, record);
                let mut response = self.answer(settings, answered, record);
                if let Some(listening) = listening {
                    response.body.hold(Arc::new(listening.begin()));
                }
                if let Some(cookie) = cookie {
                    response.fields.append(Known::SetCookie, cookie);
                }
                Given::Backend(response)
            }
            Err((status, why)) => own(refuse(record, status, why)),
        };
        let (Given::Own(response) | Given::Backend(response)) = &mut given;
        let fine = response.status.as_u16() < 400;
        if permit.always || fine {
            response.fields.extend(&permit.cookies);
        }
        if let Some(taken) = taken {
            response.body.hold(Arc::new(taken));
        }
        let Limits { rate, rate_after, .. } = settings.limits;
        if let Some(rate) = rate.filter(|rate| *rate > 0) {
            response.body.pace(rate, rate_after);
        }
        given
    }

    /// Asks for the name and the password, and whoever else has a say.
    async fn may_pass(
        &self,
        snapshot: &Snapshot,
        forward: &Forward<'_>,
        record: &mut Record,
    ) -> Result<Permit, Response<Answer>> {
        let mut known = None;
        if let Some(password) = forward.password {
            let good = match self.worker.state.check(password, &record.head.fields).await {
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
                response.fields.set(Known::WwwAuthenticate, password.challenge());
                return Err(response);
            }
        }
        let Some(question) = &forward.question else { return Ok(Permit::default()) };
        let answer = self.answer_to(snapshot, forward.route, question, &record.head.fields).await;
        let (status, said) = match answer {
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
                response.fields.extend(&headers);
                if let Some(password) = forward.password.filter(|_| known == Some(false)) {
                    response.fields.append(Known::WwwAuthenticate, password.challenge());
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
        fields: &Fields,
    ) -> Result<(StatusCode, Fields), String> {
        let verdicts = &self.worker.verdicts;
        if let Some(key) = &question.cache_key
            && let Some(known) = verdicts.get(route, key, Instant::now())
        {
            return Ok(known);
        }
        let mut fields = fields.clone();
        // First, so that no client takes away what is added.
        headers::strip_hops(&mut fields);
        fields.apply(&question.headers);
        let asked = fetch::Question {
            method: question.method.clone(),
            url: &question.url,
            host: None,
            fields,
            body: Begun::empty(),
        };
        let Response { status, fields, body } = fetch::url(self.worker, snapshot, asked).await?;
        // So that the connection can be used again, if there is not much to read.
        let _ = Limited::new(body, 64 << 10).collect().await;
        if let Some(key) = &question.cache_key {
            let holds = question.rules.cache_for.iter();
            let mut holds = holds.filter(|(of, _)| *of == status.as_u16());
            if let Some((_, seconds)) = holds.next()
                && verdicts::may_be_kept(&fields)
            {
                let until = Instant::now() + Duration::from_secs((*seconds).into());
                verdicts.put(route, key, until, (status, &fields));
            }
        }
        Ok((status, fields))
    }

    /// Sends a copy to somebody else, and forgets it. A body that is not there in full is left out.
    fn mirror(&self, snapshot: &Arc<Snapshot>, mirror: &Copied, head: &Head, begun: &Begun) {
        let Ok(turn) = Arc::clone(&self.worker.mirrors).try_acquire_owned() else { return };
        let body = Some(begun).filter(|_| mirror.body).and_then(Begun::copy);
        let (worker, snapshot) = (Arc::clone(self.worker), Arc::clone(snapshot));
        let (method, mut fields) = (head.method.clone(), head.fields.clone());
        headers::strip_hops(&mut fields);
        fields.apply(&mirror.headers);
        let (url, host) = (mirror.url.clone(), mirror.host.clone());
        tokio::spawn(async move {
            let body = body.unwrap_or_else(Begun::empty);
            let question = fetch::Question { method, url: &url, host, fields, body };
            match fetch::url(&worker, &snapshot, question).await {
                Ok(answer) => _ = Limited::new(answer.body, 1 << 20).collect().await,
                Err(error) => tracing::debug!(%error, url, "cannot mirror a request"),
            }
            drop(turn);
        });
    }

    /// Waits for the body, where that is asked for and it is not too long to be kept.
    async fn begin(
        &self,
        settings: &Settings,
        body: Upload,
        most: u64,
        listening: Option<Listening>,
    ) -> Result<Begun, Cut> {
        let streams = speaks_http_2(settings.protocol);
        if body.is_end_stream() {
            return Ok(Begun::empty());
        }
        let received = Received::new(body, most, listening);
        if settings.request_buffering && !streams && self.upgrade.is_none() {
            Box::pin(Begun::buffer(received, settings.body_buffer_size, &self.worker.room)).await
        } else {
            Ok(Begun::stream(received))
        }
    }

    /// Makes a request's fields those that endpoints get.
    fn edit(&self, settings: &Settings, forward: &Forward<'_>, fields: &mut Fields, more: &Edits) {
        let http2 = speaks_http_2(settings.protocol);
        let trailers = headers::takes_trailers(fields);
        let upgrade = self.upgrade.as_ref().filter(|_| !http2);
        let upgrade = upgrade.and_then(|_| fields.get(Known::Upgrade).map(<[u8]>::to_vec));
        headers::strip_hops(fields);
        fields.remove(Known::Expect);
        if let Some(protocol) = upgrade {
            fields.set(Known::Connection, "upgrade");
            fields.set(Known::Upgrade, protocol);
        }
        if trailers {
            fields.set(Known::Te, "trailers");
            if !http2 && !fields.contains(Known::Connection) {
                fields.set(Known::Connection, "te");
            }
        }
        fields.apply(&forward.headers);
        fields.apply(more);
    }

    /// Asks one endpoint after the other, as far as that may be.
    async fn ask(
        &mut self,
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
        let begun = settings.retry.timeout.map(|most| (Instant::now(), most));
        let most = settings.retry.tries.map_or(usize::MAX, |tries| tries as usize);
        let most = most.min(upstream.len().max(1));
        // Those that have failed.
        let mut tried = Vec::new();
        loop {
            let now = Instant::now();
            let endpoint = self.choose(upstream, forward, &tried, now).ok_or_else(none)?;
            record.endpoint = Some(endpoint.address);
            record.tries += 1;
            // Only if nothing of the request is to come the endpoint alone is waited for.
            let waiting = outgoing.begun.is_there().then(|| endpoint.waiting(now));
            let result = self.attempt(snapshot, endpoint, outgoing, record, now).await;
            if let Some(waiting) = waiting {
                waiting.over();
            }
            let whole = outgoing.begun.is_whole();
            let in_time = begun.is_none_or(|(begun, most)| begun.elapsed() < most);
            let again = |failure: &Failure, sent: bool| {
                let harmless = !sent || outgoing.idempotent || settings.retry.non_idempotent;
                settings.retry.on.contains(failure)
                    && (tried.len() + 1 < most && in_time && whole && harmless)
                    && self.worker.budget.spend()
            };
            match result {
                Ok((answered, asked, latency)) => {
                    record.endpoint_status = Some(answered.response.status);
                    record.endpoint_time = Some(latency);
                    record.asked = Some(asked);
                    let status = Failure::Status(answered.response.status.as_u16());
                    if headers::length(&answered.response.fields) > settings.buffer_size {
                        if !again(&Failure::InvalidHeader, true) {
                            let why = "the answer's head is too long (proxy-buffer-size)";
                            return Err((StatusCode::BAD_GATEWAY, why.to_owned()));
                        }
                    } else if !again(&status, true) {
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
            tried.push(endpoint.address);
            self.worker.metrics.retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn choose<'u>(
        &self,
        upstream: &'u Upstream,
        forward: &Forward<'_>,
        tried: &[SocketAddr],
        now: Instant,
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
        upstream.choose_at(method, tried, self.worker.dice(), now)
    }

    /// What keeps the client at the endpoint that has answered, if it is not kept there already. An endpoint
    /// that is there and only failed gets its clients back, unless that is not wanted.
    fn cookie(
        &self,
        snapshot: &Snapshot,
        forward: &Forward<'_>,
        record: &Record,
    ) -> Option<String> {
        let (sticky, endpoint) = (forward.sticky.as_ref()?, record.endpoint?);
        if sticky.kept == Some(Sticky::key(endpoint)) {
            return None;
        }
        let upstream = snapshot.upstream(forward.target, forward.route.settings.service_upstream);
        let waits = upstream.and_then(|upstream| kept(upstream, sticky)).is_some();
        (!waits || sticky.rules.change_on_failure).then(|| sticky.cookie(endpoint))
    }

    /// Asks one endpoint: what it answers, when it was asked, and how long that took. Of what failed, whether any of
    /// the request has been sent.
    async fn attempt(
        &mut self,
        snapshot: &Snapshot,
        endpoint: &Arc<Endpoint>,
        outgoing: &mut Outgoing<'_>,
        record: &Record,
        mut now: Instant,
    ) -> Result<(Answered, Instant, Duration), (Fail, bool)> {
        let pending = endpoint.begin();
        let destination = self.destination(snapshot, endpoint, outgoing.settings, record);
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
                    now = Instant::now();
                    made.map_err(|error| (Fail::from(error), false))?
                }
            };
            let (head, target) = (&record.head, outgoing.target.as_ref());
            let ask = Ask {
                method: &head.method,
                target: target.map_or_else(|| head.target(), PathAndQuery::as_str),
                fields: &head.fields,
                uri: outgoing.uri.as_ref(),
            };
            let mut its = std::mem::take(&mut connection.alarm);
            let alarm = self.alarm.as_deref_mut().unwrap_or(&mut its);
            let sent = if connection.is_direct() {
                let progress = Progress::new(now);
                let sending = connection.ask(&ask, outgoing.begun.whole(), &progress);
                in_time(sending, &progress, outgoing.settings, alarm).await
            } else {
                let (upload, progress) = outgoing.begun.upload(now);
                let sending = Box::pin(connection.send(&ask, upload));
                in_time(sending, &progress, outgoing.settings, alarm).await
            };
            connection.alarm = its;
            let error = match sent {
                Ok(Ok(response)) => {
                    let answered = Instant::now();
                    let latency = answered.saturating_duration_since(now);
                    endpoint.answered(latency, answered);
                    return Ok((Answered { response, connection, pending }, now, latency));
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
        record: &Record,
    ) -> Result<Destination, String> {
        let http2 = speaks_http_2(settings.protocol);
        let with_tls = match settings.protocol {
            BackendProtocol::Https | BackendProtocol::Grpcs => true,
            BackendProtocol::AutoHttp => self.peer.tls.is_some(),
            BackendProtocol::Http | BackendProtocol::Grpc => false,
        };
        let tls = if with_tls {
            let host = record.host().unwrap_or_default();
            let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
            Some(snapshot.clients.get(&settings.backend_tls, host, http2, &snapshot.model)?)
        } else {
            None
        };
        let identity = if tls.is_none() && !http2 {
            Arc::clone(&endpoint.plain)
        } else {
            let tls = tls.as_ref().map(|(config, name)| (config.number, name.clone()));
            Arc::new(Identity::new(endpoint.address, http2, tls))
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
        let Answered { response, connection, pending } = answered;
        let Response { status, mut fields, body } = response;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let (client, endpoint) = match self.switch(body) {
                Ok(ends) => ends,
                Err((status, why)) => {
                    let mut response = refuse(record, status, why);
                    if status == StatusCode::BAD_REQUEST {
                        // What follows cannot be told from a request.
                        response.fields.set(Known::Connection, "close");
                    }
                    return response;
                }
            };
            let patience = settings.read_timeout;
            self.tunnel = Some(tunnel::Tunnel::new(client, endpoint, patience, pending));
            let protocol = fields.get(Known::Upgrade).map(<[u8]>::to_vec);
            headers::strip_hops(&mut fields);
            fields.set(Known::Connection, "upgrade");
            if let Some(protocol) = protocol {
                fields.set(Known::Upgrade, protocol);
            }
            return Response { status, fields, body: Answer::own("") };
        }
        headers::strip_hops(&mut fields);
        let download = Download::new(body, settings.read_timeout, connection);
        let length = download.size_hint().exact();
        let body = match buffer::is_wanted(settings.buffering, &mut fields, length) {
            true => Answer::ahead(Ahead::new(download, &self.worker.ahead, pending)),
            false => Answer::backend(download, Some(pending)),
        };
        Response { status, fields, body }
    }

    /// Both sides, where client and endpoint agree to speak something else.
    fn switch(&mut self, body: Coming) -> Result<(Upgrade, OnUpgrade), (StatusCode, &'static str)> {
        let (Some(client), Coming::Switched(endpoint)) = (self.upgrade.take(), body) else {
            let why = "the endpoint changes to a protocol that nobody asked for";
            return Err((StatusCode::BAD_GATEWAY, why));
        };
        if !client.is_clean() {
            let why = "data of another protocol before that was agreed upon";
            return Err((StatusCode::BAD_REQUEST, why));
        }
        Ok((client, endpoint))
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

/// What endpoints are asked for, if not for what the client asks for, and how that is said over HTTP/2.
fn place(
    settings: &Settings,
    target: Option<&str>,
    head: &mut Head,
) -> Result<(Option<PathAndQuery>, Option<Uri>), String> {
    let target = target.map(PathAndQuery::try_from).transpose();
    let target = target.map_err(|error| format!("the path that backends get: {error}"))?;
    if !speaks_http_2(settings.protocol) {
        return Ok((target, None));
    }
    let path = target.map_or_else(|| PathAndQuery::try_from(head.target()), Ok);
    let authority = Authority::try_from(head.fields.get(Known::Host).unwrap_or_default());
    // There it is not a header.
    head.fields.remove(Known::Host);
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path.map_err(|error| error.to_string())?);
    uri.authority = Some(authority.map_err(|error| error.to_string())?);
    let secure = settings.protocol == BackendProtocol::Grpcs;
    uri.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    Ok((None, Some(Uri::from_parts(uri).map_err(|error| error.to_string())?)))
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

/// Waits for an answer's head as long as somebody makes progress.
async fn in_time<T>(
    sending: impl Future<Output = T>,
    progress: &Progress,
    settings: &Settings,
    alarm: &mut Alarm,
) -> Result<T, Waits> {
    let mut sending = std::pin::pin!(sending);
    // What it waits for may change without a word to whoever sleeps.
    let turn = settings.send_timeout.min(settings.read_timeout).min(CLIENT);
    let mut look = None;
    poll_fn(|cx| {
        if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
            return Poll::Ready(Ok(sent));
        }
        loop {
            let (waits, since) = progress.waits();
            let at = *look.get_or_insert(since + turn);
            ready!(alarm.poll(cx, at.into()));
            let patience = match waits {
                Waits::Backend => settings.send_timeout,
                Waits::Client => CLIENT,
                Waits::Answer => settings.read_timeout,
            };
            let (due, now) = (since + patience, Instant::now());
            if due <= now {
                return Poll::Ready(Err(waits));
            }
            look = Some(due.min(now + turn.max(LOOK)));
        }
    })
    .await
}
