//! What a gateway tells about itself over HTTP: `/healthz`, `/readyz`, `/metrics`, `/routes`, `/certs`,
//! `/explain?method=GET&url=URL`, `/tls?name=NAME`.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fairway_model::{Ingress, ObjectName, TlsVersion};
use http::header::{self, HeaderValue};
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::gateway::Shared;
use crate::message::Fields;
use crate::metrics::{Metrics, about, quoted};
use crate::route::{self, Tls};

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time.
const CONNECTIONS: usize = 64;

/// A path or a port, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLine {
    /// Empty: any.
    pub host: String,
    /// As its owner wrote it; a port as `:9000`.
    pub path: String,
    /// How it is compared; the protocol of a port.
    pub kind: String,
    /// Whose it is; empty: the gateway's settings have it.
    pub ingress: String,
    /// Where it leads: a Service and its port.
    pub backend: String,
    /// How many endpoints take requests.
    pub endpoints: usize,
}

/// A certificate that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateLine {
    /// Where it is from.
    pub secret: String,
    /// The names that it is for.
    pub names: Vec<String>,
    /// In seconds since 1970.
    pub not_after: i64,
    /// Hexadecimal digits.
    pub serial: String,
    /// The Secret has another one, which cannot be used: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// Answers whoever asks.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &shared);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection of who asks how this fares ended badly");
            }
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, shared: &Shared) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    const JSON: &str = "application/json";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, String::new());
    }
    match request.uri().path() {
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => {
            let (status, text) = if shared.leaving.load(Ordering::Acquire) {
                (StatusCode::SERVICE_UNAVAILABLE, "about to stop\n")
            } else if shared.served.load(Ordering::Acquire) {
                (StatusCode::OK, "ok\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "no model yet\n")
            };
            respond(status, TEXT, text.to_owned())
        }
        "/metrics" => respond(StatusCode::OK, TEXT, metrics(shared)),
        "/routes" => respond(StatusCode::OK, JSON, json(&routes(shared))),
        "/certs" => respond(StatusCode::OK, JSON, json(&certificates(shared))),
        "/explain" => match explain(shared, request.uri().query().unwrap_or_default()) {
            Ok(lines) => respond(StatusCode::OK, JSON, json(&lines)),
            Err(why) => respond(StatusCode::BAD_REQUEST, TEXT, format!("{why}\n")),
        },
        "/tls" => {
            let name = request.uri().query().and_then(|query| query.strip_prefix("name="));
            respond(StatusCode::OK, JSON, json(&names_tls(shared, name)))
        }
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "try /healthz, /readyz, /metrics, /routes, /certs, /explain?url=URL or /tls?name=NAME\n"
                .to_owned(),
        ),
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn metrics(shared: &Shared) -> String {
    let all: Vec<&Metrics> = shared.metrics.iter().map(|one| &**one).collect();
    let signed = shared.controller.labels();
    let mut text = Metrics::render(&all, signed);
    let prefix = "nginx_ingress_controller_";
    about(
        &mut text,
        prefix,
        "ssl_expire_time_seconds",
        "gauge",
        "When a certificate ends, in seconds since 1970",
    );
    for line in certificates(shared) {
        for name in &line.names {
            let (host, secret) = (quoted(name), quoted(&line.secret));
            let end = line.not_after;
            _ = writeln!(
                text,
                "{prefix}ssl_expire_time_seconds{{{signed},host=\"{host}\",secret=\"{secret}\"}} {end}"
            );
        }
    }
    let own = "fairway_ingress_";
    let snapshot = shared.state.snapshot();
    shared.controller.write(&mut text, &snapshot);
    about(&mut text, own, "problems", "gauge", "What of Ingresses cannot be served as it stands");
    let problems = snapshot.problems + shared.ports.problems().len();
    _ = writeln!(text, "{own}problems {problems}");
    about(
        &mut text,
        own,
        "compiled_hosts_total",
        "counter",
        "Hosts that were made because something about them had changed",
    );
    let compiled = shared.state.compiled.load(Ordering::Relaxed);
    _ = writeln!(text, "{own}compiled_hosts_total {compiled}");
    about(
        &mut text,
        own,
        "log_lines_dropped_total",
        "counter",
        "Lines of the access log that nobody wrote",
    );
    _ = writeln!(text, "{own}log_lines_dropped_total {}", shared.log.dropped());
    shared.ports.render(&mut text);
    text
}

fn routes(shared: &Shared) -> Vec<RouteLine> {
    let snapshot = shared.state.snapshot();
    let mut lines = Vec::new();
    let line = |ingress: &Ingress,
                host: &str,
                path: &str,
                kind: String,
                backend: &fairway_model::Backend| {
        let service = ObjectName::new(&ingress.name.namespace, &backend.service);
        RouteLine {
            host: host.to_owned(),
            path: path.to_owned(),
            kind,
            ingress: ingress.name.to_string(),
            backend: format!("{service}:{}", backend.port),
            endpoints: snapshot.reachable(&service, &backend.port),
        }
    };
    for ingress in snapshot.model.ingresses.values() {
        for rule in &ingress.rules {
            for path in &rule.paths {
                let kind = format!("{:?}", path.kind);
                lines.push(line(ingress, &rule.host, &path.path, kind, &path.backend));
            }
        }
        if let Some(backend) = &ingress.default_backend {
            lines.push(line(ingress, "", "/", "DefaultBackend".to_owned(), backend));
        }
    }
    lines.extend(snapshot.gateway.streams.iter().map(|stream| RouteLine {
        host: String::new(),
        path: format!(":{}", stream.port),
        kind: stream.protocol.to_string(),
        ingress: String::new(),
        backend: format!("{}:{}", stream.service, stream.backend_port),
        endpoints: snapshot.behind(stream).map_or(0, |upstream| upstream.len()),
    }));
    lines
}

fn certificates(shared: &Shared) -> Vec<CertificateLine> {
    let snapshot = shared.state.snapshot();
    let mut lines: Vec<_> = snapshot
        .certificates
        .iter()
        .map(|(secret, certificate)| CertificateLine {
            secret: secret.to_string(),
            names: certificate.names.clone(),
            not_after: certificate.not_after,
            serial: certificate.serial.clone(),
            broken: certificate.broken.as_ref().map(|(_, why)| why.clone()),
        })
        .collect();
    lines.sort_by(|one, other| one.secret.cmp(&other.secret));
    lines
}

/// What would become of a request without headers of its own, from this machine: a line for each thing that
/// matters. The URL is what is left of the query, so nothing in it need be encoded.
fn explain(shared: &Shared, query: &str) -> Result<Vec<String>, &'static str> {
    let (method, url) = match query.strip_prefix("method=") {
        Some(rest) => rest.split_once('&').ok_or("the URL is missing")?,
        None => ("GET", query),
    };
    let url = url.strip_prefix("url=").ok_or("try ?url=URL or ?method=METHOD&url=URL")?;
    let url: Uri = url.parse().map_err(|_| "that is no URL")?;
    let authority = url.authority().ok_or("the URL has no host")?;
    let method = method.parse().map_err(|_| "that is no method")?;
    let secure = url.scheme() == Some(&Scheme::HTTPS);
    let name = authority.host().to_ascii_lowercase();
    let tls = secure.then_some(Tls { server_name: Some(&name), client: None });
    let public = shared.state.public;
    Ok(shared.state.snapshot().table.explain(&route::Request {
        method: &method,
        host: Some(authority.as_str()),
        target: url.path_and_query().map_or("/", |target| target.as_str()),
        headers: &Fields::new(),
        peer: (Ipv4Addr::LOCALHOST, 0).into(),
        port: if secure { public.https.unwrap_or(443) } else { public.http.unwrap_or(80) },
        tls,
        id: "",
        dice: 0,
    }))
}

/// What a client gets that asks for `name` in its handshake: a line for each thing that matters.
fn names_tls(shared: &Shared, name: Option<&str>) -> Vec<String> {
    let name = name.map(str::to_ascii_lowercase);
    let snapshot = shared.state.snapshot();
    let host = snapshot.table.host_tls(name.as_deref());
    if let Some(target) = host.passthrough {
        return vec![format!("TLS ends at the backend: {}:{}", target.service, target.port)];
    }
    let chosen = snapshot.table.certificate(name.as_deref());
    let mut lines = Vec::new();
    let line = chosen.secret.and_then(|secret| {
        let secret = secret.to_string();
        certificates(shared).into_iter().find(|line| line.secret == secret)
    });
    match (chosen.secret, line) {
        (None, _) => lines.push(format!("certificate: the gateway's own: {}", chosen.why)),
        (Some(secret), None) => lines.push(format!(
            "certificate: the gateway's own, as Secret {secret} is missing or broken: {}",
            chosen.why
        )),
        (Some(secret), Some(line)) => {
            lines.push(format!("certificate: Secret {secret}: {}", chosen.why));
            lines.push(format!("names: {}", line.names.join(" ")));
            lines.push(format!("ends: {} (Unix time)", line.not_after));
            lines.extend(line.broken.map(|why| format!("the Secret has a newer one, but {why}")));
        }
    }
    let oldest = match host.min_version {
        Some(TlsVersion::V13) => "1.3",
        Some(TlsVersion::V12) | None => "1.2",
    };
    lines.push(format!("oldest version: {oldest}"));
    if !host.ciphers.is_empty() {
        lines.push(format!("ciphers of TLS 1.2: {}", host.ciphers.join(" ")));
    }
    if let Some(client) = host.client {
        let verify = format!("{:?}", client.verify).to_lowercase();
        lines.push(format!("client certificates: {verify}, of the CA in Secret {}", client.secret));
    }
    lines
}
