//! A subscriber that keeps nothing: for measuring what many of them cost the server.

use std::convert::Infallible;
use std::io;

use http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::follow::{Body, WINDOWS, acks, feed_head};
use super::{Connector, authority};
use crate::lines::Unpacker;
use crate::scope::Subscriber;

/// How a sync begins.
const SYNC: &[u8] = br#"{"sync":{"revision":"#;

/// Follows as `node`, reads no more than revisions, and acknowledges each. `heard` is told of each, and of
/// the bytes that came so far. Ends with the connection.
pub async fn skim<C: Connector>(
    connector: &C,
    endpoint: &str,
    node: &str,
    mut heard: impl FnMut(u64, u64),
) -> io::Result<Infallible> {
    let authority = authority(endpoint, C::SCHEME).map_err(io::Error::other)?;
    let io = connector.connect(&authority).await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    let (mut requests, connection) =
        builder.handshake::<_, Body>(TokioIo::new(io)).await.map_err(io::Error::other)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let (say, said) = watch::channel(0);
    let uri = format!(
        "{}://{authority}/v1/feed?{}",
        C::SCHEME,
        feed_head(&Subscriber::Node(node.to_owned()))
    );
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header("accept-encoding", "zstd")
        .body(acks(said))
        .map_err(io::Error::other)?;
    let response = requests.send_request(request).await.map_err(io::Error::other)?;
    if !response.status().is_success() {
        return Err(io::Error::other(response.status().to_string()));
    }
    let mut body = response.into_body();
    let mut unpacker = Unpacker::new()?;
    let (mut line, mut bytes) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        bytes += data.len() as u64;
        unpacker.take(&data, |lines| {
            for part in lines.split_inclusive(|byte| *byte == b'\n') {
                // No more of a line than tells what it is.
                line.extend_from_slice(&part[..part.len().min(SYNC.len() + 24 - line.len())]);
                if part.ends_with(b"\n") {
                    if let Some(revision) = revision(&line) {
                        heard(revision, bytes);
                        say.send_replace(revision);
                    }
                    line.clear();
                }
            }
            Ok::<_, io::Error>(())
        })?;
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn revision(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(SYNC)?;
    let digits = digits.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_read_from_the_beginning_of_a_line() {
        assert_eq!(revision(br#"{"sync":{"revision":17,"digest":{}"#), Some(17));
        assert_eq!(revision(br#"{"put":{"kind":"node"}}"#), None);
    }
}
