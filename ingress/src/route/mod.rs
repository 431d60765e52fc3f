//! What becomes of a request, decided from the model alone.
//!
//! ```text
//! Model ─► Table::compile ─► Table, shared until the next one
//! request ─► Table::decide ─► Answer:  the gateway answers by itself, and why
//!                         └─► Forward: where it goes, as what, and what is still owed
//! name in a TLS handshake ─► Table::certificate, Table::host_tls
//! ```
//!
//! Nothing here opens a socket, reads a clock or throws dice: time and chance come in as values. What takes
//! long (passwords, somebody else who is to be asked) is described in [`Forward`] and done by the caller, in
//! the order of its fields.

use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fairway_model::{Backend, Choice, Key, ObjectName, PathType, TlsVersion};
use http::{HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use regex::bytes::Regex;

pub use access::{Question, Verdict};
pub use affinity::Sticky;
#[cfg(test)]
pub(crate) use compile::tests::change;
pub(crate) use compile::{Compiler, Update};
pub use limits::{Limiter, Refused, Seat};
pub use password::Password;
pub use reply::Reply;
pub use settings::{Retry, Settings};
pub use tls::{Certificate, HostTls, Why};

use crate::shared::Shared;

use access::{Address, Certified};
use canary::Branch;
use paths::{Found, Paths};
use template::{Asked, Fill};

use crate::message::{Edits, Fields, Known};

mod access;
mod affinity;
mod canary;
mod compile;
mod cors;
mod explain;
mod forward;
mod limits;
mod password;
mod path;
mod paths;
mod reply;
mod settings;
mod template;
mod tls;
mod tree;

/// All that a gateway serves. It does not change: who has it may use it for as long as a request lasts.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// By name, without those that begin with `*.`.
    hosts: Shared<String, Named>,
    /// By what is behind `*.`.
    wildcards: Shared<String, Arc<Host>>,
    /// For names that nobody has.
    any: Option<Arc<Host>>,
    /// Where no rule is for a request.
    fallback: Option<Arc<Route>>,
    /// What is asked of the certificates of clients that it is for.
    certified: Option<Certified>,
    /// Of names that no rule is for.
    min_tls: Option<TlsVersion>,
    /// The same.
    ciphers: Vec<String>,
    certificates: tls::Certificates,
    trust: Trust,
    /// `Strict-Transport-Security`.
    hsts: Option<HeaderValue>,
    /// Of redirects to https and between names with and without `www.`.
    redirect_status: StatusCode,
}

/// What a host's name leads to.
#[derive(Clone, Debug)]
enum Named {
    /// Itself.
    Host(Arc<Host>),
    /// The one that it is with `www.` in front, or without that: clients are sent there.
    Twin(String),
}

/// Who is believed about whom they speak for.
#[derive(Clone, Debug, Default)]
struct Trust {
    /// Those.
    nets: Vec<IpNet>,
    /// And if they are, what their `X-Forwarded-*` say.
    forwarded: bool,
    /// Connections begin with a PROXY header: who comes to the port of https without TLS has had it ended in front.
    proxy: bool,
    public: Public,
}

/// The ports that clients connect to, where somebody in front maps them to those of the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Public {
    /// Of HTTP.
    pub http: Option<u16>,
    /// Of HTTP over TLS.
    pub https: Option<u16>,
}

impl Public {
    /// That of a scheme, unless it is the usual one, as it stands behind a host.
    fn suffix(self, scheme: &str) -> String {
        let (port, usual) = if scheme == "https" { (self.https, 443) } else { (self.http, 80) };
        port.filter(|port| *port != usual).map(|port| format!(":{port}")).unwrap_or_default()
    }
}

/// A host and its paths.
#[derive(Debug)]
struct Host {
    /// As rules have it; empty: any.
    name: String,
    paths: Paths,
    /// Of all its routes, sorted; see [`Route::identity`].
    identities: Box<[u64]>,
    /// Where no path is for a request.
    fallback: Option<Arc<Route>>,
    /// Where clients are sent that ask for `/`.
    app_root: Option<HeaderValue>,
    /// An Ingress of it has a certificate for whatever there is.
    tls: bool,
    certified: Option<Certified>,
    min_tls: Option<TlsVersion>,
    ciphers: Vec<String>,
    passthrough: Option<Target>,
}

/// A path of a host and what it leads to.
#[derive(Debug)]
pub struct Route {
    /// Whose path it is; `None`: the gateway's, for what no rule is for.
    pub ingress: Option<ObjectName>,
    /// The host as the rule has it; empty: any.
    pub host: String,
    /// The path as it is compared.
    pub path: String,
    /// How it is compared.
    pub kind: PathType,
    /// Where it leads, as the rule has it.
    pub backend: Backend,
    /// The same, found among the Services; `None`: there is no such Service, or no such port of it.
    pub target: Option<Target>,
    /// Who serves its requests where [`Self::target`] is missing or has no endpoint, with
    /// [`Self::error_headers`] of a 503.
    pub spare: Option<Target>,
    /// Who is asked in place of answers with [`Settings::custom_errors`].
    pub error_target: Option<Target>,
    /// What holds for its requests.
    pub settings: Arc<Settings>,
    /// By which clients are counted.
    limits_key: u64,
    /// The path is matched by this.
    expression: Option<Arc<Regex>>,
    /// With the quirks of ingress-nginx.
    nginx: bool,
    /// Backends get another path.
    rewrites: bool,
    canary: Option<Box<Branch>>,
}

/// A port of a Service, where requests go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The Service.
    pub service: ObjectName,
    /// The port's name, by which it is in [`Endpoints`](fairway_model::Endpoints).
    pub port_name: String,
    /// The port's number at the Service's address, host byte order.
    pub port: u16,
}

/// What a request says, and what is known of whoever makes it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// `:authority`, that of an absolute target, or else the `Host` header, as it was sent; `None`: there is none.
    pub host: Option<&'a str>,
    /// As it was sent: path and, behind a question mark, the query.
    pub target: &'a str,
    /// Its headers.
    pub headers: &'a Fields,
    /// Who has connected, as the connection or its PROXY header says.
    pub peer: SocketAddr,
    /// The port that was connected to, as the connection or its PROXY header says, host byte order.
    pub port: u16,
    /// Of a connection with TLS.
    pub tls: Option<Tls<'a>>,
    /// What goes into `X-Request-ID`.
    pub id: &'a str,
    /// A number at random, of which all bits are used.
    pub dice: u64,
}

/// What is known from a TLS handshake.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tls<'a> {
    /// The name that the client asked for (SNI).
    pub server_name: Option<&'a str>,
    /// The certificate that it showed.
    pub client: Option<ClientCertificate<'a>>,
}

/// A client's certificate.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientCertificate<'a> {
    /// Why it is not to be believed; `None`: it is.
    pub rejected: Option<&'a str>,
    /// The subject's name (RFC 4514).
    pub subject: &'a str,
    /// The common name in it.
    pub common_name: &'a str,
    /// The issuer's name (RFC 4514).
    pub issuer: &'a str,
    /// The serial number as hexadecimal digits.
    pub serial: &'a str,
    /// SHA-1 of it as hexadecimal digits.
    pub fingerprint: &'a str,
    /// The certificate as PEM.
    pub pem: &'a str,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Decision<'t> {
    /// The gateway answers.
    Answer(Answer<'t>),
    /// A backend is asked.
    Forward(Box<Forward<'t>>),
}

/// An answer of the gateway's own, without a body.
#[derive(Debug)]
pub struct Answer<'t> {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: Fields,
    /// Why it is given.
    pub reason: Reason,
    /// The route that says so, if it is one.
    pub route: Option<&'t Arc<Route>>,
    /// The quirk without which it would be another one.
    pub quirk: Option<Quirk>,
}

/// A request that goes to a backend, once what is owed is done: [`Settings::limits`] are kept, then
/// [`Self::password`] and [`Self::question`] let it pass.
#[derive(Debug)]
pub struct Forward<'t> {
    /// The route that it takes.
    pub route: &'t Arc<Route>,
    /// The port of a Service that gets it.
    pub target: &'t Target,
    /// Who asks, as whoever is trusted says it.
    pub client: IpAddr,
    /// A name and a password are asked for: else 401 with [`Password::challenge`].
    pub password: Option<&'t Password>,
    /// Somebody else is asked.
    pub question: Option<Question<'t>>,
    /// One of [`Self::password`] and [`Self::question`] is enough, if both are there.
    pub satisfy_any: bool,
    /// Path and query that the backend gets; `None`: [`Request::target`].
    pub path_and_query: Option<String>,
    /// What the backend gets other headers of than the client sent. Those of a single connection
    /// (`Connection`, `Upgrade`, `TE`) are not among them.
    pub headers: Edits,
    /// What [`Choice::Hash`] chooses by.
    pub hash: Option<Vec<u8>>,
    /// The client is kept at an endpoint.
    pub sticky: Option<Sticky<'t>>,
    /// Somebody else gets it as well.
    pub mirror: Option<Copied>,
    /// What is changed about the answer; also about one that the gateway gives in the end.
    pub reply: Reply,
    /// A canary has taken it.
    pub canary: bool,
    /// The quirk without which the request would not go there.
    pub quirk: Option<Quirk>,
}

/// Who gets a request as well. What is answered does not matter.
#[derive(Debug)]
pub struct Copied {
    /// Where, with path and query.
    pub url: String,
    /// The `Host`; `None`: that of [`Self::url`].
    pub host: Option<String>,
    /// What is different from the headers of the request, apart from `Host`.
    pub headers: Edits,
    /// With its body.
    pub body: bool,
}

/// Why the gateway answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    /// CONNECT and TRACE are not for a gateway.
    #[error("the method is not served")]
    Method,
    /// There is none, or it is none.
    #[error("the host is missing or malformed")]
    Host,
    /// It has no normal form.
    #[error("the path is malformed")]
    Path,
    /// Nobody has a rule or default backend for it.
    #[error("no rule is for this host and path")]
    NoRoute,
    /// The rule's Service or its port does not exist.
    #[error("the Service or its port does not exist")]
    NoService,
    /// The client asked for a name in its TLS handshake for which other certificates of clients are good.
    #[error("the host asks for another client certificate than the name of the TLS handshake")]
    Misdirected,
    /// There is no good certificate of the client.
    #[error("the client has no certificate that is believed")]
    ClientCertificate,
    /// It is of somebody else.
    #[error("the common name of the client's certificate does not fit")]
    CommonName,
    /// What protects the route, or the route itself, is not there or cannot be read.
    #[error("what protects it is missing or cannot be read")]
    Secret,
    /// By its `Content-Length`.
    #[error("the body is too long")]
    BodySize,
    /// The other name of a host, with or without `www.`.
    #[error("the host's name is another one")]
    Twin,
    /// The route's redirect.
    #[error("the route is a redirect")]
    Redirect,
    /// The host's place for `/`.
    #[error("the application's root is elsewhere")]
    AppRoot,
    /// A browser asks whether a script may ask.
    #[error("a browser asks before a script does (CORS)")]
    Preflight,
    /// It came without TLS.
    #[error("the host is served with TLS")]
    Https,
    /// By its address.
    #[error("the client's address is kept out")]
    Address,
    /// A quirk: the same path with a slash behind it is there.
    #[error("the path is there with a slash behind it")]
    AddSlash,
}

/// Habits of ingress-nginx that a request depended on: without them it would have gone elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Quirk {
    /// A path that is no expression was matched as one, because of another Ingress or annotation of the host.
    #[error("a plain path is an expression, because some path of the host is one")]
    Expression,
    /// An expression was matched without regard to case.
    #[error("an expression does not regard case")]
    IgnoredCase,
    /// A path was matched in the middle of an element.
    #[error("a path ends in the middle of an element")]
    PartOfElement,
    /// The client was sent to the same path with a slash behind it.
    #[error("a path that is there only with a slash behind it is asked for without one")]
    AddedSlash,
}

/// What of the model cannot be served as it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Whose it is.
    pub object: Key,
    /// What is left out, and why.
    pub text: String,
}

/// `Ingress shop/web: path / of host *: shop/other has it already`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.text)
    }
}

impl Table {
    /// What becomes of a request.
    pub fn decide<'t>(&'t self, request: &Request<'_>) -> Decision<'t> {
        let mut reply = Reply::default();
        match self.forward(request, &mut reply) {
            Ok(forward) => Decision::Forward(Box::new(Forward { reply, ..forward })),
            Err(mut answer) => {
                reply.apply(&mut answer.headers);
                Decision::Answer(answer)
            }
        }
    }

    /// The order is that of nginx: what the server says, the path, what of it needs no permission, who may
    /// pass, the backend.
    fn forward<'t>(
        &'t self,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<Forward<'t>, Answer<'t>> {
        if matches!(*request.method, Method::CONNECT | Method::TRACE) {
            return Err(Answer::new(StatusCode::METHOD_NOT_ALLOWED, Reason::Method));
        }
        let bad = |reason| Answer::new(StatusCode::BAD_REQUEST, reason);
        let authority = request.host.unwrap_or_default();
        let name = host_name(authority).ok_or_else(|| bad(Reason::Host))?;
        let (path, query) = split_target(request.target);
        let path = path::normal(path).map_err(|_| bad(Reason::Path))?;
        let asked = self.trust.read(request, &name, &path, query);

        let host = match self.named(&name) {
            Some(Named::Twin(to)) => return Err(self.twin(&asked, to)),
            Some(Named::Host(host)) => Some(host),
            None => self.unnamed(&name),
        };
        let has_tls = self.certificates.has(&name) || host.is_some_and(|host| host.tls);
        if has_tls && request.tls.is_some() {
            reply.hsts.clone_from(&self.hsts);
        }
        if let Some(host) = host
            && let Some(tls) = &request.tls
        {
            self.check_client(host.certified.as_ref(), tls)?;
        }

        if let Some(root) = host.and_then(|host| host.app_root.as_ref())
            && *path.decoded == *b"/"
        {
            let answer = Answer::new(StatusCode::FOUND, Reason::AppRoot);
            return Err(answer.with(Known::Location, root));
        }

        let (route, quirk) = self.find(host, &asked)?;
        let mut certified = host.and_then(|host| host.certified.as_ref());
        if self.fallback.as_ref().is_some_and(|fallback| Arc::ptr_eq(fallback, route)) {
            certified = self.certified.as_ref();
            if let Some(tls) = &request.tls {
                self.check_client(certified, tls)?;
            }
        }
        reply.settings = Some(Arc::clone(&route.settings));
        if let Some(cors) = &route.settings.cors {
            reply.cors = cors.answer(request.headers);
        }
        let fill = Fill::new(&asked, route);
        self.answer(&fill, route, !reply.cors.is_empty(), has_tls)?;
        if let Some(certified) = certified
            && request.tls.is_none()
            && let Some((status, reason)) = certified.refuses(None)
        {
            return Err(Answer::of(route, status, reason));
        }
        let settings = &route.settings;
        let (owes, satisfy_any) = match access::address(settings, asked.client) {
            Address::LetIn if settings.satisfy_any => (false, false),
            Address::KeptOut if !settings.satisfy_any || !settings.asks() => {
                return Err(Answer::of(route, StatusCode::FORBIDDEN, Reason::Address));
            }
            _ => (true, settings.satisfy_any),
        };

        let branch = route.canary.as_ref().filter(|branch| {
            route.keeps_at_canary(request).unwrap_or_else(|| branch.rule.takes(request))
        });
        let taken = branch.map_or(route, |branch| &branch.route);
        let target =
            taken.target.as_ref().or(taken.spare.as_ref()).ok_or_else(|| {
                Answer::of(route, StatusCode::SERVICE_UNAVAILABLE, Reason::NoService)
            })?;
        let question = settings.external_auth.as_ref().filter(|_| owes);
        Ok(Forward {
            route: taken,
            target,
            client: asked.client,
            password: settings.password.as_ref().filter(|_| owes),
            question: question
                .map(|rules| Question::new(rules, &fill, self.trust.said(&fill, certified))),
            satisfy_any,
            path_and_query: fill.path_and_query()?,
            headers: self.trust.headers(&fill, certified),
            hash: match &taken.settings.choice {
                Choice::Hash(by) => Some(fill.bytes(by)),
                Choice::Ewma | Choice::RoundRobin => None,
            },
            sticky: Sticky::new(taken, target, request, asked.scheme),
            mirror: settings.mirror.as_ref().map(|mirror| Copied {
                url: fill.url(&mirror.url),
                host: mirror.host.clone(),
                headers: self.trust.said(&fill, certified),
                body: !mirror.no_body,
            }),
            reply: Reply::default(),
            canary: branch.is_some(),
            quirk,
        })
    }

    /// All routes with the names of their hosts (`*.example.com`; empty: any), sorted by these: without those to
    /// default backends.
    pub fn routes(&self) -> Vec<(Cow<'_, str>, &Arc<Route>)> {
        let exact = self.hosts.iter().filter_map(|(name, host)| match host {
            Named::Host(host) => Some((Cow::Borrowed(name.as_str()), host)),
            Named::Twin(_) => None,
        });
        let wildcards =
            self.wildcards.iter().map(|(name, host)| (Cow::Owned(format!("*.{name}")), host));
        let any = self.any.iter().map(|host| (Cow::Borrowed(""), host));
        let mut hosts: Vec<_> = exact.chain(wildcards).chain(any).collect();
        hosts.sort_by(|(a, _), (b, _)| a.cmp(b));
        let routes = hosts.into_iter().flat_map(|(name, host)| {
            host.paths.routes().iter().map(move |route| (name.clone(), route))
        });
        routes.collect()
    }

    /// Whether there is a route of this [identity](Route::identity) at `host`, as rules have it.
    pub(crate) fn has_route(&self, host: &str, identity: u64) -> bool {
        let at_host =
            self.host(host).is_some_and(|host| host.identities.binary_search(&identity).is_ok());
        at_host || self.fallback.as_ref().is_some_and(|route| route.identity() == identity)
    }

    /// The host that has exactly this name, in lower case.
    fn named(&self, name: &str) -> Option<&Named> {
        self.hosts.get(name)
    }

    /// The host that has a name by a wildcard, or because nobody has it.
    fn unnamed(&self, name: &str) -> Option<&Arc<Host>> {
        wildcard(&self.wildcards, name).or(self.any.as_ref())
    }

    /// What there is at a host for a path.
    fn find<'t>(
        &'t self,
        host: Option<&'t Arc<Host>>,
        asked: &Asked<'_>,
    ) -> Result<(&'t Arc<Route>, Option<Quirk>), Answer<'t>> {
        match host.map_or(Found::Nothing, |host| host.paths.find(&asked.path.decoded)) {
            Found::Route(route, quirk) => Ok((route, quirk)),
            Found::WithSlash(route) => Err(add_slash(route, asked)),
            Found::Nothing => {
                let fallback = host.and_then(|host| host.fallback.as_ref());
                let none = || Answer::new(StatusCode::NOT_FOUND, Reason::NoRoute);
                Ok((fallback.or(self.fallback.as_ref()).ok_or_else(none)?, None))
            }
        }
    }

    /// What a route answers by itself, before anybody is asked who they are.
    fn answer<'t>(
        &self,
        fill: &Fill<'_>,
        route: &'t Arc<Route>,
        cors: bool,
        has_tls: bool,
    ) -> Result<(), Answer<'t>> {
        let asked = fill.asked;
        let settings = &route.settings;
        let request = asked.request;
        let answer = |status, reason| Answer::of(route, status, reason);
        let length = request.headers.text(Known::ContentLength);
        if let (Some(most), Some(length)) = (settings.body_size, length)
            // What is no number is for whoever reads the body to refuse.
            && length.parse().is_ok_and(|length: u64| length > most)
        {
            return Err(answer(StatusCode::PAYLOAD_TOO_LARGE, Reason::BodySize));
        }
        if settings.denied {
            return Err(answer(StatusCode::SERVICE_UNAVAILABLE, Reason::Secret));
        }
        if cors && request.method == Method::OPTIONS && request.headers.contains(Known::Origin) {
            return Err(answer(StatusCode::NO_CONTENT, Reason::Preflight));
        }
        if let Some(redirect) = &settings.redirect {
            let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
            let to = fill.url(&redirect.to);
            return Err(answer(status, Reason::Redirect).with(Known::Location, to));
        }
        let redirect = settings.force_ssl_redirect || settings.ssl_redirect && has_tls;
        let acme = asked.path.decoded.starts_with(b"/.well-known/acme-challenge/");
        if redirect && asked.scheme == "http" && !acme {
            let to = host_name(asked.authority).unwrap_or_default();
            let port = self.trust.public.suffix("https");
            let to = format!("https://{to}{port}{}", request.target);
            return Err(answer(self.redirect_status, Reason::Https).with(Known::Location, to));
        }
        Ok(())
    }

    /// Clients whose certificate is not what is asked for are not served.
    fn check_client<'t>(
        &self,
        certified: Option<&Certified>,
        tls: &Tls<'_>,
    ) -> Result<(), Answer<'t>> {
        let Some(certified) = certified.filter(|certified| certified.asks()) else {
            return Ok(());
        };
        // The certificate was checked against what that name asks for.
        let shown = self.host_tls(tls.server_name);
        if shown.client != Some(&certified.tls) {
            return Err(Answer::new(StatusCode::MISDIRECTED_REQUEST, Reason::Misdirected));
        }
        match (certified.refuses(Some(tls)), &certified.error_page) {
            (None, _) => Ok(()),
            (Some((StatusCode::BAD_REQUEST, reason)), Some(page)) => {
                Err(Answer::new(StatusCode::FOUND, reason).with(Known::Location, page))
            }
            (Some((status, reason)), _) => Err(Answer::new(status, reason)),
        }
    }

    /// The way to the host that a name is the twin of.
    fn twin<'t>(&self, asked: &Asked<'_>, to: &str) -> Answer<'t> {
        let port = self.trust.public.suffix(asked.scheme);
        let to = format!("{}://{to}{port}{}", asked.scheme, asked.request.target);
        Answer::new(self.redirect_status, Reason::Twin).with(Known::Location, to)
    }
}

impl Route {
    /// The one that takes a part of its requests (a canary).
    pub fn canary(&self) -> Option<&Arc<Self>> {
        self.canary.as_ref().map(|branch| &branch.route)
    }

    /// What is the same of a route in tables that are made one after the other.
    pub(crate) fn identity(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.ingress, &self.host, &self.path, &self.backend.service).hash(&mut hasher);
        hasher.finish()
    }
}

/// `Exact /cart`, `Prefix /`, `ImplementationSpecific /v[0-9]+ (an expression)`.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.path)?;
        if self.expression.is_some() { f.write_str(" (an expression)") } else { Ok(()) }
    }
}

impl Request<'_> {
    /// `http` or `https`.
    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

impl<'t> Answer<'t> {
    fn new(status: StatusCode, reason: Reason) -> Self {
        Self { status, headers: Fields::new(), reason, route: None, quirk: None }
    }

    fn of(route: &'t Arc<Route>, status: StatusCode, reason: Reason) -> Self {
        Self { route: Some(route), ..Self::new(status, reason) }
    }

    fn with(mut self, name: Known, value: impl AsRef<[u8]>) -> Self {
        self.headers.set(name, value);
        self
    }
}

/// The one whose name is `name` without its first label.
fn wildcard<'t, T>(wildcards: &'t Shared<String, T>, name: &str) -> Option<&'t T> {
    let (label, rest) = name.split_once('.')?;
    if label.is_empty() { None } else { wildcards.get(rest) }
}

/// The name in `host`: without a port and a dot at its end, in lower case. `None`: it is none.
fn host_name(host: &str) -> Option<Cow<'_, str>> {
    // What is visible and does not stand for something else in or around a URL.
    let good = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'!' | b'$'..=b'.' | b':' | b';' | b'=' | b'[' | b']' | b'_' | b'~')
    };
    if !host.bytes().all(good) {
        return None;
    }
    let name = match host.rsplit_once(':') {
        // An IPv6 address has brackets around it and colons in it.
        Some((name, port)) if !port.ends_with(']') => {
            if !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            name
        }
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return None;
    }
    let upper = name.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

/// Path and query of a request's target.
fn split_target(target: &str) -> (&str, Option<&str>) {
    target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)))
}

/// A redirect to the same with a slash behind its path. It is the path in its normal form: of `//host/x` a
/// browser would take the first element for a host.
fn add_slash<'t>(route: &'t Arc<Route>, asked: &Asked<'_>) -> Answer<'t> {
    let query = asked.query.map(|query| format!("?{query}")).unwrap_or_default();
    let to = format!("{}/{query}", path::encode(&asked.path.decoded));
    let answer = Answer::of(route, StatusCode::MOVED_PERMANENTLY, Reason::AddSlash);
    let answer = answer.with(Known::Location, to);
    Answer { quirk: Some(Quirk::AddedSlash), ..answer }
}
