//! Health and metrics over HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tracing::debug;

use crate::status::Status;

/// How long a client may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Binds and serves in the background: `/healthz`, `/livez`, `/metrics`, `/selftest`.
pub(crate) async fn serve(what: &str, address: SocketAddr, status: Arc<Status>) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} for {what}: is another agent running?"))?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, most likely: give others time to return some.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let status = Arc::clone(&status);
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let response = answer(&request, &status);
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
    });
    Ok(())
}

fn answer<B>(request: &Request<B>, status: &Status) -> Response<Full<Bytes>> {
    const JSON: &str = "application/json";
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, String::new());
    }
    let judged = |good: bool| if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match request.uri().path() {
        // Ready and in step: what a load balancer may rely on.
        "/healthz" => respond(judged(status.is_ready() && status.is_live()), JSON, status.health()),
        // In step, or still starting: what a supervisor restarts on.
        "/livez" => respond(judged(status.is_live()), JSON, status.health()),
        "/metrics" => respond(StatusCode::OK, TEXT, status.metrics()),
        "/selftest" => respond(StatusCode::OK, JSON, status.selftest()),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "try /healthz, /livez, /metrics or /selftest\n".to_owned(),
        ),
    }
}

fn respond(code: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}
