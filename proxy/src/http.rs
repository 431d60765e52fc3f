//! Health and metrics over HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::debug;

use crate::status::{Probe, Status};

/// How long a client may take to say what it wants, also after an answer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 256;

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;

/// Binds and serves in the background: `/healthz`, `/livez`, `/readyz`, `/metrics`, `/selftest`,
/// `/status`.
pub(crate) async fn serve(what: &str, address: SocketAddr, status: Arc<Status>) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} for {what}: is another agent running?"))?;
    tokio::spawn(answer_all(listener, move |request| answer(request, &status)));
    Ok(())
}

/// Answers whoever connects, for as long as it is polled; with it, connections end.
pub(crate) async fn answer_all(
    listener: TcpListener,
    answer: impl Fn(&Request<Incoming>) -> Answer + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: give others time to return some.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = Arc::clone(&answer);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                debug!(%error, "a health or metrics connection ended badly");
            }
        });
    }
}

/// A document of this kind, which a browser is not to take for another.
pub(crate) fn respond(code: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

/// What a good and a bad state are answered with.
pub(crate) fn judged(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The kind of most answers.
pub(crate) const JSON: &str = "application/json";

fn answer<B>(request: &Request<B>, status: &Status) -> Answer {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, String::new());
    }
    let probed = |probe| {
        let (good, body) = status.probe(probe);
        respond(judged(good), JSON, body)
    };
    match request.uri().path() {
        "/healthz" => probed(Probe::Healthz),
        "/livez" => probed(Probe::Livez),
        "/readyz" => respond(judged(status.is_ready()), TEXT, String::new()),
        "/metrics" => respond(StatusCode::OK, TEXT, status.metrics()),
        "/selftest" => respond(StatusCode::OK, JSON, status.selftest()),
        "/status" => respond(StatusCode::OK, JSON, status.summary()),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "try /healthz, /livez, /readyz, /metrics, /selftest or /status\n".to_owned(),
        ),
    }
}
