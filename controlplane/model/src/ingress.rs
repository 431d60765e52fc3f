//! What gateways serve: hosts, paths and the Services behind them.
//!
//! An [`Ingress`] stays as its owner wrote it; a gateway merges those of a host by itself. Whatever an
//! annotation says has become a typed value here, checked, so that no text of a user's ever is
//! configuration. What nothing is said about is left out, and means what the field's comment says.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ObjectName, is_default};

/// Hosts and paths, and where requests for them go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// Its namespace and name.
    pub name: ObjectName,
    /// When it was made, in seconds since 1970; of those that want the same the oldest has it, of equals
    /// the first by name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub created: u64,
    /// The gateways that serve it, by the name that they have in common; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Paths are matched with the habits of ingress-nginx where these differ from what Kubernetes says.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nginx: bool,
    /// For requests that no rule of any Ingress is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_backend: Option<Backend>,
    /// Its rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<IngressRule>,
    /// Who may pass cannot be read: requests for its paths are answered with 503, so that they reach nobody by
    /// another's rules.
    #[serde(default, skip_serializing_if = "is_default")]
    pub denied: bool,
    /// The hosts that are served with TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<IngressTls>,
    /// What its annotations say.
    #[serde(default, skip_serializing_if = "is_default")]
    pub options: Box<Options>,
}

/// Of an [`Ingress`]: what is served at a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressRule {
    /// In lower case, without a port; `*.example.com` is any one label more than `example.com`; empty: all
    /// hosts that no other rule names.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// In the order written; none: all paths go to the default backend.
    pub paths: Vec<IngressPath>,
}

/// Of an [`IngressRule`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressPath {
    /// Begins with `/`, except that it may be any regular expression where [`Options::use_regex`] or
    /// [`Options::rewrite_target`] makes it one.
    pub path: String,
    /// Which requests it is for.
    #[serde(rename = "type")]
    pub kind: PathType,
    /// Where they go.
    pub backend: Backend,
}

/// How an [`IngressPath`] is compared with that of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PathType {
    /// Equal to the last byte.
    Exact,
    /// Equal in all its elements, those between slashes; a slash at the end means nothing.
    Prefix,
    /// As ingress-nginx does it: begins with it, wherever an element ends.
    #[default]
    ImplementationSpecific,
}

/// A port of a Service in the namespace of the [`Ingress`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Backend {
    /// The Service's name.
    pub service: String,
    /// Which of its ports.
    pub port: BackendPort,
}

/// Of a [`Backend`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BackendPort {
    /// By number, of the Service.
    Number(u16),
    /// By name.
    Name(String),
}

impl Default for BackendPort {
    fn default() -> Self {
        Self::Number(80)
    }
}

/// `80`, `http`.
impl fmt::Display for BackendPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Of an [`Ingress`]: hosts that have a certificate in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressTls {
    /// As in [`IngressRule::host`]; none: the certificate is for whatever nobody else has one for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The [`Secret`](crate::Secret) with the certificate; `None`: the gateway's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ObjectName>,
}

/// What annotations say of an [`Ingress`]; `None` and empty: what the [`Gateway`] says, and where that says
/// nothing either, the default that is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    /// The path that backends get in place of the one asked for; groups are those of the path's expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite_target: Option<Template>,
    /// Paths are regular expressions, those of the whole host: case does not matter, and they begin where the
    /// path does and need not end there.
    #[serde(skip_serializing_if = "is_default")]
    pub use_regex: bool,
    /// Where a request for exactly `/` is sent (302).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_root: Option<String>,
    /// More names of the hosts of its rules, unless they are hosts of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub server_aliases: Vec<String>,
    /// The host with `www.` in front, or without it, is sent to the one that there is (308).
    #[serde(skip_serializing_if = "is_default")]
    pub from_to_www: bool,
    /// The `Host` that backends get; else the one asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_vhost: Option<Template>,
    /// `X-Forwarded-Prefix` of rewritten requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded_prefix: Option<Template>,
    /// Whether plain HTTP is sent to https where the host has TLS; yes by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssl_redirect: Option<bool>,
    /// Also where it has none: somebody in front ends TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_ssl_redirect: Option<bool>,
    /// Requests are sent elsewhere. Of both kinds of redirect, the temporal one holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,

    /// The longest body in bytes; 0: any; 1 MiB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_size: Option<u64>,
    /// How much of a request's body is held in memory at once; 8 KiB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_buffer_size: Option<u64>,
    /// Whether backends are connected to only when the body has arrived; yes by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_buffering: Option<bool>,
    /// Whether answers are taken from backends as fast as these send; no by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffering: Option<bool>,
    /// The longest head of an answer in bytes; 4 KiB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_size: Option<u64>,
    /// Seconds until a backend must have been connected to; 5 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<u32>,
    /// Seconds between two writes to a backend; 60 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_timeout: Option<u32>,
    /// Seconds between two reads from a backend; 60 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_timeout: Option<u32>,
    /// When another endpoint is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_upstream: Option<NextUpstream>,

    /// What backends speak; HTTP/1.1 by default.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: BackendProtocol,
    /// Of backends that speak TLS.
    #[serde(skip_serializing_if = "is_default")]
    pub backend_tls: BackendTls,
    /// Connect to the Service's address and let the node choose an endpoint.
    #[serde(skip_serializing_if = "is_default")]
    pub service_upstream: bool,
    /// How an endpoint is chosen; [`Choice::Ewma`] by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// The same client gets the same endpoint, by a cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// It takes a part of the requests for paths of another Ingress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,

    /// Clients that are let in; none: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// Clients that are not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<IpNet>,
    /// One of address, password and external check is enough; else all that are asked for.
    #[serde(skip_serializing_if = "is_default")]
    pub satisfy_any: bool,
    /// A name and a password are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuth>,
    /// Somebody else is asked whether a request may pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_auth: Option<ExternalAuth>,
    /// Clients are asked for a certificate; of the whole host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_tls: Option<ClientTls>,
    /// How much of each client is taken.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,

    /// Scripts of other sites may ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Headers added to answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<(String, String)>,
    /// Headers set on requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<(String, Template)>,
    /// In place of answers with these statuses the default backend is asked for one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub custom_errors: Vec<u16>,
    /// For [`Self::custom_errors`], and in place of a Service without endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_backend: Option<Backend>,
    /// Requests go to somebody else as well, whose answer does not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// `Path` of cookies that backends set: from what, to what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie_path: Option<(String, String)>,
    /// `Domain` of cookies that backends set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie_domain: Option<(String, String)>,
    /// The beginning of `Location` and `Refresh` of answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_redirect: Option<(String, String)>,

    /// TLS is not ended here: the backend gets it as it is, by the name that the client asks for.
    #[serde(skip_serializing_if = "is_default")]
    pub passthrough: bool,
    /// The oldest version of TLS; 1.2 by default; of the whole host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_tls: Option<TlsVersion>,
    /// The cipher suites by OpenSSL's names, of those that there are; none: all; of the whole host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ciphers: Vec<String>,
    /// Whether its requests are in the access log; yes by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<bool>,
}

/// Where a request is sent in place of being served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// The address.
    pub to: Template,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// When a request is tried again with another endpoint. Never after the answer has begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NextUpstream {
    /// What counts as failure; none: `error` and `timeout`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<Failure>,
    /// How many endpoints are tried; 0: all; 3 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<u32>,
    /// For how many seconds; 0, the default: no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub timeout: u32,
}

/// What went wrong with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// No connection, or it broke.
    Error,
    /// No answer in time.
    Timeout,
    /// An answer that is none.
    InvalidHeader,
    /// An answer with this status: 403, 404, 429 or 500 to 504.
    Status(u16),
    /// Not a failure: also requests that may not be harmless twice (RFC 9110, 9.2.2) are tried again.
    NonIdempotent,
    /// Nothing is.
    Off,
}

/// What a backend speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendProtocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/1.1 in TLS.
    Https,
    /// HTTP/2 without TLS.
    Grpc,
    /// HTTP/2 in TLS.
    Grpcs,
    /// What the client speaks.
    AutoHttp,
}

/// How a backend's TLS is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTls {
    /// Its certificate must be of [`Self::secret`]'s CA and for [`Self::name`]; else anybody's does.
    #[serde(skip_serializing_if = "is_default")]
    pub verify: bool,
    /// The CA to believe, and the certificate that is shown, if the backend asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<ObjectName>,
    /// The name; `None`: the host asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name is also said to the backend (SNI).
    #[serde(skip_serializing_if = "is_default")]
    pub server_name: bool,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Choice {
    /// Of two at random, the one that answers faster and has less to do.
    #[default]
    Ewma,
    /// One after the other.
    RoundRobin,
    /// The same for the same value, as long as it is there.
    Hash(Template),
}

/// The cookie that says which endpoint a client has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Affinity {
    /// Its name.
    pub name: String,
    /// Endpoints that come later take no clients over.
    #[serde(skip_serializing_if = "is_default")]
    pub persistent: bool,
    /// Requests that a [`Canary`] decides about are told apart by it as well.
    #[serde(skip_serializing_if = "is_default")]
    pub canary_legacy: bool,
    /// `Path`; `None`: the route's, or `/` where that is an expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `Domain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// `Max-Age`, in seconds; `None`: until the browser ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<i64>,
    /// `Secure`; `None`: over TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure: Option<bool>,
    /// `SameSite`: `None`, `Lax` or `Strict`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_site: Option<String>,
    /// A client whose endpoint failed gets another one for good.
    #[serde(skip_serializing_if = "is_default")]
    pub change_on_failure: bool,
}

/// Which requests another Ingress gives up: by header, if that decides, else by cookie, else by chance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Canary {
    /// Of [`Self::total`] requests, how many.
    #[serde(skip_serializing_if = "is_default")]
    pub weight: u32,
    /// 100 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
    /// Those with this header, in lower case: `always` takes them and `never` does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// In place of `always` and `never`, exactly this value takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// In place of these, what this expression finds; a [`Self::value`] goes before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Those with this cookie: `always` and `never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
}

/// RFC 7617.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuth {
    /// The [`Secret`](crate::Secret) with the users.
    pub secret: ObjectName,
    /// What the password is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub realm: String,
}

/// A subrequest without a body: 2xx lets the request pass, 401 and 403 are the answer, and all else is 500.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalAuth {
    /// Whom to ask: `http` or `https`.
    pub url: Template,
    /// With which method; GET by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// In place of a 401, the client is sent there (302).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signin: Option<Template>,
    /// The parameter of it that says where the client wanted to; `rd` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect_param: Option<String>,
    /// Headers of the answer that the backend gets, in lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<String>,
    /// Headers of the question.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<(String, Template)>,
    /// Cookies that it sets reach the client also with answers that are errors.
    #[serde(skip_serializing_if = "is_default")]
    pub always_set_cookie: bool,
    /// What an answer depends on, so that it may be used again; `None`: it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<Template>,
    /// For how many seconds, by status.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache_for: Vec<(u16, u32)>,
}

/// What is asked of clients' certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTls {
    /// The [`Secret`](crate::Secret) with the CA.
    pub secret: ObjectName,
    /// What happens without a good one.
    #[serde(skip_serializing_if = "is_default")]
    pub verify: VerifyClient,
    /// How many certificates may lie between the client's and the CA's; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// Where clients without a good one are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_page: Option<String>,
    /// Backends get the certificate (`ssl-client-cert`, PEM with percent signs).
    #[serde(skip_serializing_if = "is_default")]
    pub pass: bool,
    /// The expression that its common name must fit; else 403.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
}

/// Of [`ClientTls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VerifyClient {
    /// There must be a good one, or the answer is 400.
    #[default]
    On,
    /// None is asked for.
    Off,
    /// There may be none, but no bad one.
    Optional,
    /// Anybody's does.
    OptionalNoCa,
}

/// How much each client may do at a time; each gateway counts for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Requests a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    /// Requests a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    /// How many times that may come at once; 5 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Requests that are being served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Bytes a second of each answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// After this many bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub rate_after: u64,
    /// Clients for whom this does not hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exempt: Vec<IpNet>,
}

/// The Fetch standard's CORS protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// `*`, `https://example.com`, `https://*.example.com`; none: `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<String>,
    /// None: GET, PUT, POST, DELETE, PATCH, OPTIONS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// None: those of ingress-nginx.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Headers of answers that scripts may read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expose_headers: Vec<String>,
    /// With cookies and passwords; yes by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<bool>,
    /// For how many seconds a browser need not ask again; 1728000 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u32>,
}

/// Whom a request is sent to as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mirror {
    /// `http` or `https`.
    pub url: Template,
    /// The `Host`; that of the address by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Without the body.
    #[serde(skip_serializing_if = "is_default")]
    pub no_body: bool,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    /// RFC 5246.
    #[serde(rename = "1.2")]
    V12,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    V13,
}

/// What holds for a gateway as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// The name that its replicas have in common; empty: what holds for gateways that have none of their own.
    pub name: String,
    /// Where an [`Ingress`] says nothing.
    #[serde(skip_serializing_if = "is_default")]
    pub options: Box<Options>,
    /// For requests that nobody has a rule or default backend for: a Service; `None`: 404.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_backend: Option<(ObjectName, BackendPort)>,
    /// The certificate for names that nobody has one for; `None`: one that it makes and signs itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_certificate: Option<ObjectName>,
    /// Ports that are passed on as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<Stream>,
    /// Whose `X-Forwarded-*` and PROXY headers are believed; none: nobody's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<IpNet>,
    /// `X-Forwarded-For` and its like of those who are [`Self::trusted`] are believed.
    #[serde(skip_serializing_if = "is_default")]
    pub forwarded_headers: bool,
    /// Connections begin with a PROXY header.
    #[serde(skip_serializing_if = "is_default")]
    pub proxy_protocol: bool,
    /// `Strict-Transport-Security` of hosts with TLS; `None`: a year, with subdomains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hsts: Option<Hsts>,
    /// 308 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect_status: Option<u16>,
    /// Answers are compressed for clients that say they can read that.
    #[serde(skip_serializing_if = "is_default")]
    pub compression: bool,
    /// Which, and how.
    #[serde(skip_serializing_if = "is_default")]
    pub gzip: Box<Gzip>,
}

/// Answers that are compressed (RFC 1952).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gzip {
    /// From 1 (fast) to 9 (small); 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// Answers of fewer bytes go as they are; 256 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_length: Option<u64>,
    /// Media types beside `text/html`; `*` is any; none: those of ingress-nginx.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
}

/// RFC 6797.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hsts {
    /// In seconds; 0: browsers are to forget it; `None`: the header is not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u64>,
    /// It holds for names below the host's as well.
    #[serde(skip_serializing_if = "is_default")]
    pub subdomains: bool,
    /// It may be built into browsers.
    #[serde(skip_serializing_if = "is_default")]
    pub preload: bool,
}

/// Of a [`Gateway`]: a port of it, and the Service that gets what arrives there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stream {
    /// TCP or UDP.
    pub protocol: crate::Protocol,
    /// Of the gateway.
    pub port: u16,
    /// The Service.
    pub service: ObjectName,
    /// Its port.
    pub backend_port: BackendPort,
    /// Connections begin with a PROXY header.
    #[serde(default, skip_serializing_if = "is_default")]
    pub accept_proxy: bool,
    /// The backend gets one (version 1).
    #[serde(default, skip_serializing_if = "is_default")]
    pub send_proxy: bool,
}

/// Text with places for what a request brings, as ingress-nginx's users write it: `/$2`, `https://$host/in`.
///
/// As JSON it is that text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Template(pub Vec<Part>);

/// Of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Itself.
    Text(String),
    /// `$1` to `$9`: what a group of the path's expression found.
    Group(u8),
    /// A variable.
    Variable(Variable),
}

/// What a [`Template`] may ask for, under the names that nginx has for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Variable {
    /// `$host`: the host asked for, without a port.
    Host,
    /// `$http_host`: the same as the client wrote it.
    HttpHost,
    /// `$best_http_host`: the host that the gateway goes by.
    BestHttpHost,
    /// `$scheme`: `http` or `https`.
    Scheme,
    /// `$pass_access_scheme`: the same, as whoever is trusted says it.
    PassAccessScheme,
    /// `$request_uri`: path and query as the client wrote them.
    RequestUri,
    /// `$escaped_request_uri`: the same, to be part of a query.
    EscapedRequestUri,
    /// `$uri`: the path, decoded and with its dots resolved.
    Uri,
    /// `$args`, `$query_string`: the query, without its `?`.
    Args,
    /// `$request_method`.
    RequestMethod,
    /// `$remote_addr`: the client's address.
    RemoteAddr,
    /// `$remote_port`.
    RemotePort,
    /// `$request_id`: that of `X-Request-ID`.
    RequestId,
    /// `$server_name`: the host whose rules hold.
    ServerName,
    /// `$server_port`.
    ServerPort,
    /// `$service_name`.
    ServiceName,
    /// `$namespace`: of the Ingress.
    Namespace,
    /// `$ingress_name`.
    IngressName,
    /// `$http_NAME`: a header of the request, in lower case with dashes.
    Header(String),
    /// `$cookie_NAME`.
    Cookie(String),
    /// `$arg_NAME`: a parameter of the query.
    Arg(String),
    /// `$ssl_client_s_dn`, `$ssl_client_verify` and their like, without `ssl_`.
    Ssl(String),
}

/// Why a text is no [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotATemplate {
    /// There is no such variable.
    #[error("${0} is not a variable that is known here")]
    Unknown(String),
    /// A dollar sign without a name.
    #[error("a $ is not followed by a name or a number from 1 to 9")]
    Nameless,
    /// It would break a line of a header or a request.
    #[error("a control character")]
    Control,
}

impl Template {
    /// Text without places.
    pub fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        Self(if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Template {
    type Err = NotATemplate;

    fn from_str(text: &str) -> Result<Self, NotATemplate> {
        if text.contains(|c: char| c.is_ascii_control()) {
            return Err(NotATemplate::Control);
        }
        let mut pieces = text.split('$');
        let Self(mut parts) = Self::text(pieces.next().unwrap_or_default());
        for piece in pieces {
            let (name, rest) = match piece.strip_prefix('{') {
                Some(braced) => braced.split_once('}').ok_or(NotATemplate::Nameless)?,
                None if piece.starts_with(|c: char| c.is_ascii_digit()) => piece.split_at(1),
                None => {
                    let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    piece.split_at(end.unwrap_or(piece.len()))
                }
            };
            parts.push(name.parse()?);
            parts.extend(Self::text(rest).0);
        }
        Ok(Self(parts))
    }
}

/// What stands behind a dollar sign.
impl FromStr for Part {
    type Err = NotATemplate;

    fn from_str(name: &str) -> Result<Self, NotATemplate> {
        match name.as_bytes() {
            [] => return Err(NotATemplate::Nameless),
            [digit @ b'1'..=b'9'] => return Ok(Self::Group(digit - b'0')),
            _ => {}
        }
        if let Some((_, variable)) = VARIABLES.iter().find(|(known, _)| *known == name) {
            return Ok(Self::Variable(variable.clone()));
        }
        let unknown = || NotATemplate::Unknown(name.to_owned());
        let (prefix, rest) = name.split_once('_').ok_or_else(unknown)?;
        let variable = match prefix {
            _ if rest.is_empty() => return Err(unknown()),
            "http" => Variable::Header(rest.to_ascii_lowercase().replace('_', "-")),
            "cookie" => Variable::Cookie(rest.to_owned()),
            "arg" => Variable::Arg(rest.to_owned()),
            "ssl" => Variable::Ssl(rest.to_owned()),
            _ => return Err(unknown()),
        };
        Ok(Self::Variable(variable))
    }
}

/// Variables by name, those of several names under the one that is written first.
const VARIABLES: &[(&str, Variable)] = &[
    ("host", Variable::Host),
    ("http_host", Variable::HttpHost),
    ("best_http_host", Variable::BestHttpHost),
    ("scheme", Variable::Scheme),
    ("pass_access_scheme", Variable::PassAccessScheme),
    ("request_uri", Variable::RequestUri),
    ("escaped_request_uri", Variable::EscapedRequestUri),
    ("uri", Variable::Uri),
    ("args", Variable::Args),
    ("query_string", Variable::Args),
    ("request_method", Variable::RequestMethod),
    ("remote_addr", Variable::RemoteAddr),
    ("binary_remote_addr", Variable::RemoteAddr),
    ("remote_port", Variable::RemotePort),
    ("request_id", Variable::RequestId),
    ("req_id", Variable::RequestId),
    ("server_name", Variable::ServerName),
    ("server_port", Variable::ServerPort),
    ("service_name", Variable::ServiceName),
    ("namespace", Variable::Namespace),
    ("ingress_name", Variable::IngressName),
];

/// As it is written, each variable in braces.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Group(group) => write!(f, "${group}"),
            Part::Variable(variable) => match variable {
                Variable::Header(name) => write!(f, "${{http_{}}}", name.replace('-', "_")),
                Variable::Cookie(name) => write!(f, "${{cookie_{name}}}"),
                Variable::Arg(name) => write!(f, "${{arg_{name}}}"),
                Variable::Ssl(name) => write!(f, "${{ssl_{name}}}"),
                variable => {
                    let (name, _) = VARIABLES
                        .iter()
                        .find(|(_, known)| known == variable)
                        .expect("all others are in the list");
                    write!(f, "${{{name}}}")
                }
            },
        })
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_as_nginx_reads_it() {
        let parse = |text: &str| text.parse::<Template>();
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(parse("").unwrap(), Template::default());
        assert_eq!(parse("/a").unwrap(), Template::text("/a"));
        assert_eq!(parse("/$2").unwrap().0, [text("/"), Part::Group(2)]);
        assert_eq!(parse("$10").unwrap().0, [Part::Group(1), text("0")]);
        assert_eq!(
            parse("https://${host}:8443$request_uri-x").unwrap().0,
            [
                text("https://"),
                Part::Variable(Variable::Host),
                text(":8443"),
                Part::Variable(Variable::RequestUri),
                text("-x"),
            ]
        );
        assert_eq!(
            parse("$http_X_User").unwrap().0,
            [Part::Variable(Variable::Header("x-user".to_owned()))]
        );
        assert_eq!(parse("$x"), Err(NotATemplate::Unknown("x".to_owned())));
        assert_eq!(parse("$http_"), Err(NotATemplate::Unknown("http_".to_owned())));
        assert_eq!(parse("a$"), Err(NotATemplate::Nameless));
        assert_eq!(parse("$0"), Err(NotATemplate::Unknown("0".to_owned())));
        assert_eq!(parse("${host"), Err(NotATemplate::Nameless));
        assert_eq!(parse("a\r\nb"), Err(NotATemplate::Control));
    }

    #[test]
    fn a_template_is_written_as_it_is_read() {
        for text in ["/a/$1$2b", "${host}x$1", "${http_x_y}${cookie_A}${arg_q}${ssl_client_s_dn}"] {
            let template: Template = text.parse().unwrap();
            assert_eq!(template.to_string(), text);
            assert_eq!(template.to_string().parse(), Ok(template));
        }
        let all = VARIABLES.iter().map(|(_, variable)| Part::Variable(variable.clone())).collect();
        let all = Template(all);
        assert_eq!(all.to_string().parse(), Ok(all));
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        assert_eq!(serde_json::to_string(&Options::default()).unwrap(), "{}");
        let ingress = Ingress { name: ObjectName::new("shop", "web"), ..Ingress::default() };
        let text = serde_json::to_string(&ingress).unwrap();
        assert_eq!(text, r#"{"name":{"namespace":"shop","name":"web"}}"#);
        assert_eq!(serde_json::from_str::<Ingress>(&text).unwrap(), ingress);
    }
}
