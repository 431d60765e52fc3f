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
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fairway_model::{Backend, Key, ObjectName, PathType};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use regex::bytes::Regex;

pub use settings::{Retry, Settings};

use paths::{Found, Paths};

mod compile;
mod path;
mod paths;
mod settings;
mod tree;

/// All that a gateway serves. It does not change: who has it may use it for as long as a request lasts.
#[derive(Debug, Default)]
pub struct Table {
    /// By name, without those that begin with `*.`.
    hosts: HashMap<String, Named>,
    /// By what is behind `*.`.
    wildcards: HashMap<String, Arc<Host>>,
    /// For names that nobody has.
    any: Option<Arc<Host>>,
    /// Where no rule is for a request.
    fallback: Option<Arc<Route>>,
    /// By their text, so that the next table need not make them again.
    expressions: HashMap<String, Option<Regex>>,
}

/// What a host's name leads to.
#[derive(Debug)]
enum Named {
    /// Itself.
    Host(Arc<Host>),
}

/// A host and its paths.
#[derive(Debug)]
struct Host {
    paths: Paths,
    /// Where no path is for a request.
    fallback: Option<Arc<Route>>,
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
    /// What holds for its requests.
    pub settings: Arc<Settings>,
    /// The path is matched by this.
    expression: Option<Regex>,
    /// With the quirks of ingress-nginx.
    nginx: bool,
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
    pub headers: &'a HeaderMap,
    /// Who has connected, as the connection or its PROXY header says.
    pub peer: SocketAddr,
    /// The port of the gateway that was connected to, host byte order.
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
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Why it is given.
    pub reason: Reason,
    /// The route that says so, if it is one.
    pub route: Option<&'t Arc<Route>>,
    /// The quirk without which it would be another one.
    pub quirk: Option<Quirk>,
}

/// A request that goes to a backend.
#[derive(Debug)]
pub struct Forward<'t> {
    /// The route that it takes.
    pub route: &'t Arc<Route>,
    /// The port of a Service that gets it.
    pub target: &'t Target,
    /// Who asks, as whoever is trusted says it.
    pub client: IpAddr,
    /// Path and query that the backend gets; `None`: [`Request::target`].
    pub path_and_query: Option<String>,
    /// Headers to set, and to remove, in this order.
    pub headers: Vec<(HeaderName, Option<HeaderValue>)>,
    /// The quirk without which the request would not go there.
    pub quirk: Option<Quirk>,
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
    /// A quirk: the same path with a slash behind it is there.
    #[error("the path is there with a slash behind it")]
    AddSlash,
}

/// Habits of ingress-nginx that a request depended on: without them it would have gone elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quirk {
    /// A path that is no expression was matched as one, because of another Ingress or annotation of the host.
    Expression,
    /// An expression was matched without regard to case.
    IgnoredCase,
    /// A path was matched in the middle of an element.
    PartOfElement,
    /// The client was sent to the same path with a slash behind it.
    AddedSlash,
}

/// What of the model cannot be served as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        self.forward(request)
            .map_or_else(Decision::Answer, |forward| Decision::Forward(Box::new(forward)))
    }

    fn forward<'t>(&'t self, request: &Request<'_>) -> Result<Forward<'t>, Answer<'t>> {
        if matches!(*request.method, Method::CONNECT | Method::TRACE) {
            return Err(Answer::new(StatusCode::METHOD_NOT_ALLOWED, Reason::Method));
        }
        let bad = |reason| Answer::new(StatusCode::BAD_REQUEST, reason);
        let host = request.host.and_then(host_name).ok_or_else(|| bad(Reason::Host))?;
        let (path, query) = split_target(request.target);
        let path = path::normal(path).map_err(|_| bad(Reason::Path))?;

        let host = self.host(&host);
        let found = host.map_or(Found::Nothing, |host| host.paths.find(&path.decoded));
        let (route, quirk) = match found {
            Found::Route(route, quirk) => (route, quirk),
            Found::WithSlash(route) => return Err(add_slash(route, &path.decoded, query)),
            Found::Nothing => {
                let fallback = host.and_then(|host| host.fallback.as_ref());
                let fallback = fallback.or(self.fallback.as_ref());
                let none = || Answer::new(StatusCode::NOT_FOUND, Reason::NoRoute);
                (fallback.ok_or_else(none)?, None)
            }
        };
        let answer = |status, reason| Answer { route: Some(route), ..Answer::new(status, reason) };
        let target = route
            .target
            .as_ref()
            .ok_or_else(|| answer(StatusCode::SERVICE_UNAVAILABLE, Reason::NoService))?;
        Ok(Forward {
            route,
            target,
            client: request.peer.ip(),
            path_and_query: None,
            headers: Vec::new(),
            quirk,
        })
    }

    /// The host that has `name`, in lower case: by that name, by a wildcard, or because nobody has it.
    fn host(&self, name: &str) -> Option<&Arc<Host>> {
        match self.hosts.get(name) {
            Some(Named::Host(host)) => Some(host),
            None => wildcard(&self.wildcards, name).or(self.any.as_ref()),
        }
    }
}

impl<'t> Answer<'t> {
    fn new(status: StatusCode, reason: Reason) -> Self {
        Self { status, headers: Vec::new(), reason, route: None, quirk: None }
    }
}

/// The one whose name is `name` without its first label.
fn wildcard<'t, T>(wildcards: &'t HashMap<String, T>, name: &str) -> Option<&'t T> {
    let (label, rest) = name.split_once('.')?;
    if label.is_empty() { None } else { wildcards.get(rest) }
}

/// The name in `host`: without a port and a dot at its end, in lower case. `None`: it is none.
fn host_name(host: &str) -> Option<Cow<'_, str>> {
    let odd = |byte: u8| !byte.is_ascii_graphic() || b"\"#/<>?@\\^`{|}".contains(&byte);
    if host.bytes().any(odd) {
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
fn add_slash<'t>(route: &'t Arc<Route>, path: &[u8], query: Option<&str>) -> Answer<'t> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let location = HeaderValue::try_from(format!("{}/{query}", path::encode(path)));
    Answer {
        headers: location.map(|to| (http::header::LOCATION, to)).into_iter().collect(),
        route: Some(route),
        quirk: Some(Quirk::AddedSlash),
        ..Answer::new(StatusCode::MOVED_PERMANENTLY, Reason::AddSlash)
    }
}
