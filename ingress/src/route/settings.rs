//! What holds for the requests of an Ingress, with nothing left open.

use std::sync::Arc;
use std::time::Duration;

use fairway_model::{
    Affinity, BackendProtocol, BackendTls, Choice, ExternalAuth, Failure, Gateway, Limits, Mirror,
    NextUpstream, Options, Redirect, Template,
};
use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

use super::cors;
use super::password::Password;

/// What the annotations of an Ingress come to: its own word, else the gateway's, else the default.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The longest body in bytes; `None`: any.
    pub body_size: Option<u64>,
    /// How much of a request's body is held in memory at once, in bytes.
    pub body_buffer_size: u64,
    /// Backends are connected to only when the body has arrived.
    pub request_buffering: bool,
    /// Answers are taken from backends as fast as these send.
    pub buffering: bool,
    /// The longest head of an answer, in bytes.
    pub buffer_size: u64,
    /// Until a backend must have been connected to.
    pub connect_timeout: Duration,
    /// Between two writes to a backend.
    pub send_timeout: Duration,
    /// Between two reads from a backend.
    pub read_timeout: Duration,
    /// When another endpoint is tried.
    pub retry: Retry,
    /// What backends speak.
    pub protocol: BackendProtocol,
    /// How backends that speak TLS are checked.
    pub backend_tls: BackendTls,
    /// The Service's address is connected to, not an endpoint's.
    pub service_upstream: bool,
    /// How an endpoint is chosen.
    pub choice: Choice,
    /// The cookie that keeps a client at an endpoint.
    pub affinity: Option<Affinity>,
    /// How much of each client is taken.
    pub limits: Limits,
    /// In place of answers with these statuses [`Route::error_target`](super::Route::error_target) is asked;
    /// sorted.
    pub custom_errors: Vec<u16>,
    /// Requests are in the access log.
    pub access_log: bool,

    pub(super) rewrite: Option<Template>,
    pub(super) use_regex: bool,
    pub(super) app_root: Option<HeaderValue>,
    pub(super) upstream_vhost: Option<Template>,
    pub(super) forwarded_prefix: Option<Template>,
    pub(super) ssl_redirect: bool,
    pub(super) force_ssl_redirect: bool,
    pub(super) redirect: Option<Redirect>,
    pub(super) allow: Vec<IpNet>,
    pub(super) deny: Vec<IpNet>,
    pub(super) satisfy_any: bool,
    pub(super) external_auth: Option<ExternalAuth>,
    pub(super) cors: Option<cors::Rules>,
    pub(super) response_headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) request_headers: Vec<(HeaderName, Template)>,
    pub(super) mirror: Option<Mirror>,
    pub(super) cookie_path: Option<(String, String)>,
    pub(super) cookie_domain: Option<(String, String)>,
    pub(super) proxy_redirect: Option<(String, String)>,
    /// A name and a password are asked for.
    pub(super) password: Option<Password>,
    /// Why nothing can be served: what protects it is not there.
    pub(super) denied: bool,
}

/// When a request is tried again with another endpoint. Never after the answer has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// What counts as failure; none: nothing does.
    pub on: Vec<Failure>,
    /// How many endpoints are tried; `None`: all.
    pub tries: Option<u32>,
    /// For how long; `None`: no limit.
    pub timeout: Option<Duration>,
    /// Also requests that may not be harmless twice are tried again (RFC 9110, 9.2.2).
    pub non_idempotent: bool,
}

impl Settings {
    /// Those of an Ingress with `options` at `gateway`. What cannot be used is left out and told to `problem`.
    pub(super) fn new(
        options: &Options,
        gateway: &Gateway,
        password: Result<Option<Password>, String>,
        problem: &mut dyn FnMut(String),
    ) -> Arc<Self> {
        let denied = password.as_ref().err().cloned();
        if let Some(why) = &denied {
            problem(why.clone());
        }
        let above = &gateway.options;
        let or = |value: Option<u32>, above: Option<u32>, default: u32| {
            Duration::from_secs(value.or(above).unwrap_or(default).into())
        };
        let mut custom_errors = list(&options.custom_errors, &above.custom_errors);
        custom_errors.sort_unstable();
        let retry = retries(options.next_upstream.as_ref(), above.next_upstream.as_ref());
        let protocol = match options.protocol {
            BackendProtocol::Http => above.protocol,
            protocol => protocol,
        };
        let backend_tls = if options.backend_tls == BackendTls::default() {
            &above.backend_tls
        } else {
            &options.backend_tls
        };
        Arc::new(Self {
            body_size: match options.body_size.or(above.body_size).unwrap_or(1 << 20) {
                0 => None,
                size => Some(size),
            },
            body_buffer_size: options
                .body_buffer_size
                .or(above.body_buffer_size)
                .unwrap_or(8 << 10),
            request_buffering: options
                .request_buffering
                .or(above.request_buffering)
                .unwrap_or(true),
            buffering: options.buffering.or(above.buffering).unwrap_or(false),
            buffer_size: options.buffer_size.or(above.buffer_size).unwrap_or(4 << 10),
            connect_timeout: or(options.connect_timeout, above.connect_timeout, 5),
            send_timeout: or(options.send_timeout, above.send_timeout, 60),
            read_timeout: or(options.read_timeout, above.read_timeout, 60),
            retry: Retry::new(&retry),
            protocol,
            backend_tls: backend_tls.clone(),
            service_upstream: options.service_upstream || above.service_upstream,
            choice: options.choice.as_ref().or(above.choice.as_ref()).cloned().unwrap_or_default(),
            affinity: options.affinity.as_ref().or(above.affinity.as_ref()).cloned(),
            limits: limits(&options.limits, &above.limits),
            custom_errors,
            access_log: options.access_log.or(above.access_log).unwrap_or(true),
            rewrite: options.rewrite_target.clone().or_else(|| above.rewrite_target.clone()),
            use_regex: options.use_regex || above.use_regex,
            app_root: options.app_root.clone().or_else(|| above.app_root.clone()).and_then(
                |root| {
                    let value = HeaderValue::try_from(&root).ok().filter(|_| root.starts_with('/'));
                    if value.is_none() {
                        problem(format!("{root:?} is no path to send clients to and is left out"));
                    }
                    value
                },
            ),
            upstream_vhost: options.upstream_vhost.clone().or_else(|| above.upstream_vhost.clone()),
            forwarded_prefix: options
                .forwarded_prefix
                .clone()
                .or_else(|| above.forwarded_prefix.clone()),
            ssl_redirect: options.ssl_redirect.or(above.ssl_redirect).unwrap_or(true),
            force_ssl_redirect: options
                .force_ssl_redirect
                .or(above.force_ssl_redirect)
                .unwrap_or(false),
            redirect: options.redirect.clone().or_else(|| above.redirect.clone()),
            allow: list(&options.allow, &above.allow),
            deny: list(&options.deny, &above.deny),
            satisfy_any: options.satisfy_any || above.satisfy_any,
            external_auth: options.external_auth.clone().or_else(|| above.external_auth.clone()),
            cors: options
                .cors
                .as_ref()
                .or(above.cors.as_ref())
                .map(|cors| cors::Rules::new(cors, problem)),
            response_headers: headers(
                &list(&options.response_headers, &above.response_headers),
                problem,
            ),
            request_headers: request_headers(
                &list(&options.request_headers, &above.request_headers),
                problem,
            ),
            mirror: options.mirror.clone().or_else(|| above.mirror.clone()),
            cookie_path: options.cookie_path.clone().or_else(|| above.cookie_path.clone()),
            cookie_domain: options.cookie_domain.clone().or_else(|| above.cookie_domain.clone()),
            proxy_redirect: options.proxy_redirect.clone().or_else(|| above.proxy_redirect.clone()),
            password: password.unwrap_or_default(),
            denied: denied.is_some(),
        })
    }
}

impl Settings {
    /// Whether clients are asked who they are.
    pub(super) fn asks(&self) -> bool {
        self.password.is_some() || self.external_auth.is_some()
    }
}

impl Retry {
    fn new(said: &NextUpstream) -> Self {
        let mut on = said.on.clone();
        let non_idempotent = on.contains(&Failure::NonIdempotent);
        let off = on.contains(&Failure::Off);
        on.retain(|failure| !matches!(failure, Failure::NonIdempotent | Failure::Off));
        if on.is_empty() && !off {
            on = vec![Failure::Error, Failure::Timeout];
        }
        if off {
            on.clear();
        }
        Self {
            on,
            tries: match said.tries.unwrap_or(3) {
                0 => None,
                tries => Some(tries),
            },
            timeout: match said.timeout {
                0 => None,
                seconds => Some(Duration::from_secs(seconds.into())),
            },
            non_idempotent,
        }
    }
}

/// What is said of its own of when another endpoint is tried, and else what is said above, each for itself.
fn retries(own: Option<&NextUpstream>, above: Option<&NextUpstream>) -> NextUpstream {
    let (own, above) = (own.cloned().unwrap_or_default(), above.cloned().unwrap_or_default());
    NextUpstream {
        on: if own.on.is_empty() { above.on } else { own.on },
        tries: own.tries.or(above.tries),
        timeout: if own.timeout == 0 { above.timeout } else { own.timeout },
    }
}

/// Likewise of limits.
fn limits(own: &Limits, above: &Limits) -> Limits {
    Limits {
        per_second: own.per_second.or(above.per_second),
        per_minute: own.per_minute.or(above.per_minute),
        burst: own.burst.or(above.burst),
        connections: own.connections.or(above.connections),
        rate: own.rate.or(above.rate),
        rate_after: if own.rate_after == 0 { above.rate_after } else { own.rate_after },
        exempt: list(&own.exempt, &above.exempt),
    }
}

/// `own`, or `above` if that is empty.
fn list<T: Clone>(own: &[T], above: &[T]) -> Vec<T> {
    if own.is_empty() { above.to_vec() } else { own.to_vec() }
}

fn headers(
    said: &[(String, String)],
    problem: &mut dyn FnMut(String),
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for (name, value) in said {
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), Ok(value)) => headers.push((name, value)),
            _ => problem(format!("{name:?}: {value:?} is no header and is left out")),
        }
    }
    headers
}

fn request_headers(
    said: &[(String, Template)],
    problem: &mut dyn FnMut(String),
) -> Vec<(HeaderName, Template)> {
    let mut headers = Vec::new();
    for (name, value) in said {
        match HeaderName::try_from(name) {
            Ok(name) => headers.push((name, value.clone())),
            Err(_) => problem(format!("{name:?} is no header's name and is left out")),
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(own: Options, gateway: Options) -> Arc<Settings> {
        let gateway = Gateway { options: Box::new(gateway), ..Gateway::default() };
        Settings::new(&own, &gateway, Ok(None), &mut |problem| panic!("{problem}"))
    }

    #[test]
    fn an_ingress_speaks_before_the_gateway_and_that_before_the_default() {
        let default = settings(Options::default(), Options::default());
        assert_eq!((default.body_size, default.body_buffer_size), (Some(1 << 20), 8 << 10));
        assert_eq!((default.request_buffering, default.buffering), (true, false));
        assert_eq!((default.buffer_size, default.access_log), (4 << 10, true));
        let timeouts = [default.connect_timeout, default.send_timeout, default.read_timeout];
        assert_eq!(timeouts.map(|timeout| timeout.as_secs()), [5, 60, 60]);

        let gateway = || Options {
            body_size: Some(0),
            read_timeout: Some(7),
            ssl_redirect: Some(false),
            custom_errors: vec![503, 404],
            protocol: BackendProtocol::Https,
            ..Options::default()
        };
        let of_gateway = settings(Options::default(), gateway());
        assert_eq!((of_gateway.body_size, of_gateway.read_timeout.as_secs()), (None, 7));
        assert_eq!(of_gateway.custom_errors, [404, 503]);
        assert_eq!(of_gateway.protocol, BackendProtocol::Https);
        assert!(!of_gateway.ssl_redirect);

        let own = Options {
            body_size: Some(3),
            ssl_redirect: Some(true),
            custom_errors: vec![500],
            protocol: BackendProtocol::Grpc,
            ..Options::default()
        };
        let own = settings(own, gateway());
        assert_eq!((own.body_size, own.read_timeout.as_secs()), (Some(3), 7));
        assert_eq!(own.custom_errors, [500]);
        assert_eq!(own.protocol, BackendProtocol::Grpc);
        assert!(own.ssl_redirect);
    }

    /// Each by itself: who says one of them has the others as the gateway says.
    #[test]
    fn of_what_belongs_together_each_is_said_for_itself() {
        let limited = |limits: Limits, next: NextUpstream, force: Option<bool>| Options {
            limits,
            next_upstream: Some(next),
            force_ssl_redirect: force,
            ..Options::default()
        };
        let above = || {
            let limits = Limits { rate: Some(5), rate_after: 9, ..Limits::default() };
            let next = NextUpstream { on: vec![Failure::Status(503)], tries: Some(2), timeout: 8 };
            limited(limits, next, Some(true))
        };
        let own = Limits { per_second: Some(1), rate: Some(6), ..Limits::default() };
        let next = NextUpstream { tries: Some(7), ..NextUpstream::default() };
        let made = settings(limited(own, next, Some(false)), above());
        let expected =
            Limits { per_second: Some(1), rate: Some(6), rate_after: 9, ..Limits::default() };
        assert_eq!(made.limits, expected);
        assert_eq!((&*made.retry.on, made.retry.tries), (&[Failure::Status(503)][..], Some(7)));
        assert_eq!(made.retry.timeout, Some(Duration::from_secs(8)));
        assert!(!made.force_ssl_redirect);
        assert!(settings(Options::default(), above()).force_ssl_redirect);
    }

    #[test]
    fn another_endpoint_is_tried_as_ingress_nginx_does() {
        let retry = |on: &[Failure], tries, timeout| {
            let next = NextUpstream { on: on.to_vec(), tries, timeout };
            let own = Options { next_upstream: Some(next), ..Options::default() };
            settings(own, Options::default()).retry.clone()
        };
        let usual = Retry {
            on: vec![Failure::Error, Failure::Timeout],
            tries: Some(3),
            timeout: None,
            non_idempotent: false,
        };
        assert_eq!(settings(Options::default(), Options::default()).retry, usual);
        assert_eq!(
            retry(&[Failure::NonIdempotent], Some(0), 9),
            Retry {
                tries: None,
                timeout: Some(Duration::from_secs(9)),
                non_idempotent: true,
                ..usual.clone()
            }
        );
        let only = vec![Failure::Status(503)];
        assert_eq!(retry(&only, None, 0), Retry { on: only, ..usual.clone() });
        assert_eq!(
            retry(&[Failure::Off, Failure::Error], None, 0),
            Retry { on: Vec::new(), ..usual }
        );
    }

    #[test]
    fn headers_that_are_none_are_left_out_and_told() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let own = Options {
            response_headers: vec![pair("X-A", "1"), pair("X B", "1"), pair("X-C", "1\r\nX: 2")],
            request_headers: vec![("a:b".to_owned(), Template::text("1"))],
            app_root: Some("https://elsewhere.test/".to_owned()),
            ..Options::default()
        };
        let mut problems = Vec::new();
        let settings = Settings::new(&own, &Gateway::default(), Ok(None), &mut |problem| {
            problems.push(problem)
        });
        assert_eq!(settings.response_headers.len(), 1);
        assert!(settings.request_headers.is_empty() && settings.app_root.is_none());
        assert_eq!(problems.len(), 4, "{problems:?}");
    }
}
