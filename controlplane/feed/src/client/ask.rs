//! One question, one answer, on a connection of its own.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Connector, Error, authority};

/// For the whole of it: a model of the largest cluster takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Room for a model of the largest cluster, several times over.
const MAX_ANSWER: usize = 1 << 30;

/// Asks the control plane at `endpoint` (as in [`super::Options::endpoints`]) once.
pub async fn ask<C: Connector>(
    connector: &C,
    endpoint: &str,
    method: Method,
    path: &str,
    body: Bytes,
) -> io::Result<(StatusCode, Bytes)> {
    let authority = authority(endpoint, C::SCHEME)
        .map_err(|error: Error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let asking = async {
        let io = connector.connect(&authority).await?;
        exchange(io, &format!("{}://{authority}{path}", C::SCHEME), method, body).await
    };
    timeout(PATIENCE, asking).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// The same, over a connection that is there.
pub(crate) async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &str,
    method: Method,
    body: Bytes,
) -> io::Result<(StatusCode, Bytes)> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new());
    let (mut requests, connection) =
        builder.handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    // Ends with this function.
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .body(Full::new(body))
        .map_err(io::Error::other)?;
    let response = requests.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    Ok((status, body.map_err(io::Error::other)?.to_bytes()))
}
