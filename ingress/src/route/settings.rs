//! What holds for the requests of an Ingress, with nothing left open.

use std::sync::Arc;
use std::time::Duration;

use fairway_model::{
    Affinity, BackendProtocol, BackendTls, Choice, Failure, Gateway, Limits, NextUpstream, Options,
    Template,
};

/// What the annotations of an Ingress come to: its own word, else the gateway's, else the default.
#[derive(Debug)]
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
    /// In place of answers with these statuses the default backend is asked; sorted.
    pub custom_errors: Vec<u16>,
    /// Requests are in the access log.
    pub access_log: bool,

    pub(super) rewrite: Option<Template>,
    pub(super) use_regex: bool,
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
    /// Those of an Ingress with `options` at `gateway`.
    pub(super) fn new(options: &Options, gateway: &Gateway) -> Arc<Self> {
        let above = &gateway.options;
        let or = |value: Option<u32>, above: Option<u32>, default: u32| {
            Duration::from_secs(value.or(above).unwrap_or(default).into())
        };
        let mut custom_errors = list(&options.custom_errors, &above.custom_errors);
        custom_errors.sort_unstable();
        let retry = options.next_upstream.as_ref().or(above.next_upstream.as_ref());
        let limits =
            if options.limits == Limits::default() { &above.limits } else { &options.limits };
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
            retry: Retry::new(retry.unwrap_or(&NextUpstream::default())),
            protocol,
            backend_tls: backend_tls.clone(),
            service_upstream: options.service_upstream || above.service_upstream,
            choice: options.choice.as_ref().or(above.choice.as_ref()).cloned().unwrap_or_default(),
            affinity: options.affinity.as_ref().or(above.affinity.as_ref()).cloned(),
            limits: limits.clone(),
            custom_errors,
            access_log: options.access_log.or(above.access_log).unwrap_or(true),
            rewrite: options.rewrite_target.clone().or_else(|| above.rewrite_target.clone()),
            use_regex: options.use_regex || above.use_regex,
        })
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

/// `own`, or `above` if that is empty.
fn list<T: Clone>(own: &[T], above: &[T]) -> Vec<T> {
    if own.is_empty() { above.to_vec() } else { own.to_vec() }
}
