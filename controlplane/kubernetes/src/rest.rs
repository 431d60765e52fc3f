//! Requests to the API server, bounded in time and size, and its refusals.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

/// How a refusal's text is cut.
const LONGEST_MESSAGE: usize = 500;
/// Far more than an object can have: etcd takes a few megabytes at most.
const LONGEST_LINE: usize = 32 << 20;
/// The longest pause that a server may ask for.
const LONGEST_PAUSE: u64 = 300;

/// Why there is no answer to a request, or none of use.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The server said so.
    #[error("{code} {reason}: {message}")]
    Refused { code: u16, reason: String, message: String, again: Option<Duration> },
    /// It cannot be reached, or the connection broke.
    #[error("{0}")]
    Connection(String),
    /// It took too long.
    #[error("no answer in {} s", .0.as_secs_f32())]
    Slow(Duration),
    /// It is not what an API server says.
    #[error("an answer that cannot be read: {0}")]
    Nonsense(String),
}

impl Error {
    /// The status code, if the server gave one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// How long the server wants to be left alone.
    pub(crate) fn again(&self) -> Option<Duration> {
        match self {
            Self::Refused { again, .. } => *again,
            _ => None,
        }
    }
}

/// A Status object, as far as it matters.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    code: u16,
    reason: String,
    message: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    retry_after_seconds: Option<u64>,
}

impl Status {
    pub(crate) fn into_error(self) -> Error {
        let Self { code, reason, mut message, details } = self;
        if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
            message.truncate(end);
        }
        let again = details.retry_after_seconds.map(pause);
        Error::Refused { code, reason, message, again }
    }
}

fn pause(seconds: u64) -> Duration {
    Duration::from_secs(seconds.min(LONGEST_PAUSE))
}

/// Reads the whole answer to a GET.
pub(crate) async fn get(client: &Client, uri: &str, limit: Duration) -> Result<Bytes, Error> {
    bounded(limit, async {
        let response = send(client, request(Method::GET, uri, None)?).await?;
        collect(response).await
    })
    .await
}

/// Sends an object, or a patch of one, and reads the object that came of it.
pub(crate) async fn write(
    client: &Client,
    method: Method,
    uri: &str,
    content: (&str, &Value),
    limit: Duration,
) -> Result<Value, Error> {
    bounded(limit, async {
        let response = send(client, request(method, uri, Some(content))?).await?;
        decode(&collect(response).await?)
    })
    .await
}

/// Begins to read lines; `limit` is for their beginning.
pub(crate) async fn lines(client: &Client, uri: &str, limit: Duration) -> Result<Lines, Error> {
    let response = bounded(limit, send(client, request(Method::GET, uri, None)?)).await?;
    Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), seen: 0 })
}

/// An answer that comes line by line.
pub(crate) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// How much of the buffer has no end of a line in it.
    seen: usize,
}

impl Lines {
    /// The next whole line; none where the answer ends, whatever was left of an unfinished one.
    pub(crate) async fn next(&mut self, limit: Duration) -> Result<Option<Bytes>, Error> {
        bounded(limit, self.read()).await
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(at) = self.buffer[self.seen..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.seen + at + 1).freeze();
                self.seen = 0;
                return Ok(Some(line));
            }
            self.seen = self.buffer.len();
            if self.seen > LONGEST_LINE {
                return Err(Error::Nonsense("an event without an end".into()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Error::Connection(chain(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// Reads JSON.
pub(crate) fn decode<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|error| Error::Nonsense(error.to_string()))
}

async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, work).await.unwrap_or(Err(Error::Slow(limit)))
}

fn request(
    method: Method,
    uri: &str,
    content: Option<(&str, &Value)>,
) -> Result<Request<Body>, Error> {
    let builder = Request::builder().method(method).uri(uri).header(ACCEPT, "application/json");
    let built = match content {
        None => builder.body(Body::empty()),
        Some((kind, value)) => {
            let text = serde_json::to_vec(value).expect("a value is plain data");
            builder.header(CONTENT_TYPE, kind).body(Body::from(text))
        }
    };
    built.map_err(|error| Error::Nonsense(error.to_string()))
}

async fn send(client: &Client, request: Request<Body>) -> Result<Response<Body>, Error> {
    let sent = client.send(request).await;
    let response = sent.map_err(|error| Error::Connection(chain(&error)))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let header = header.and_then(|seconds| seconds.parse().ok()).map(pause);
    let text = collect(response).await.unwrap_or_default();
    let said = serde_json::from_slice::<Status>(&text).unwrap_or_else(|_| Status {
        message: String::from_utf8_lossy(&text).into_owned(),
        ..Status::default()
    });
    let reason = match said.reason.is_empty() {
        true => status.canonical_reason().unwrap_or_default().to_owned(),
        false => said.reason.clone(),
    };
    let Error::Refused { message, again, .. } = said.into_error() else {
        unreachable!("a status is a refusal")
    };
    Err(Error::Refused { code: status.as_u16(), reason, message, again: again.or(header) })
}

async fn collect(response: Response<Body>) -> Result<Bytes, Error> {
    let collected = response.into_body().collect().await;
    collected.map(|all| all.to_bytes()).map_err(|error| Error::Connection(chain(&error)))
}

/// An error and its sources in one line, each text once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text += &format!(": {next}");
        }
        source = error.source();
    }
    text
}
