//! What a running gateway is asked from the command line.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use comfy_table::{Table, presets};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admin::{CertificateLine, RouteLine};
use crate::options::{Ask, Explain, Output, Tls};

/// A gateway that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it serves.
///
/// # Errors
/// When it does not answer.
pub async fn routes(ask: Ask) -> Result<String> {
    print(&ask, "/routes", &["HOST", "PATH", "TYPE", "INGRESS", "BACKEND", "ENDPOINTS"], |line| {
        let RouteLine { host, path, kind, ingress, backend, endpoints } = line;
        let host = if host.is_empty() { "*".to_owned() } else { host };
        let ingress = if ingress.is_empty() { "-".to_owned() } else { ingress };
        vec![host, path, kind, ingress, backend, endpoints.to_string()]
    })
    .await
}

/// Its certificates.
///
/// # Errors
/// When it does not answer.
pub async fn certificates(ask: Ask) -> Result<String> {
    print(&ask, "/certs", &["SECRET", "NAMES", "ENDS (UNIX TIME)", "SERIAL", "PROBLEM"], |line| {
        let CertificateLine { secret, names, not_after, serial, broken } = line;
        vec![secret, names.join(" "), not_after.to_string(), serial, broken.unwrap_or_default()]
    })
    .await
}

/// What would become of a request.
///
/// # Errors
/// When it does not answer, or that is no request.
pub async fn explain(explain: Explain) -> Result<String> {
    let Explain { url, method, ask } = explain;
    lines(&ask, &format!("/explain?method={method}&url={url}")).await
}

/// What a client gets that asks for `name` in its handshake.
///
/// # Errors
/// When it does not answer.
pub async fn tls(Tls::Check { name, ask }: Tls) -> Result<String> {
    lines(&ask, &format!("/tls?name={name}")).await
}

async fn lines(ask: &Ask, path: &str) -> Result<String> {
    let text = timeout(PATIENCE, get(ask, path)).await;
    let text = text.with_context(|| format!("the gateway at {} does not answer", ask.admin))??;
    if ask.output == Output::Json {
        return Ok(text);
    }
    let lines: Vec<String> = serde_json::from_str(&text).context("read the gateway's answer")?;
    Ok(lines.join("\n"))
}

async fn print<T: DeserializeOwned>(
    ask: &Ask,
    path: &str,
    header: &[&str],
    row: impl Fn(T) -> Vec<String>,
) -> Result<String> {
    let text = timeout(PATIENCE, get(ask, path)).await;
    let text = text.with_context(|| format!("the gateway at {} does not answer", ask.admin))??;
    if ask.output == Output::Json {
        return Ok(text);
    }
    let lines: Vec<T> = serde_json::from_str(&text).context("read the gateway's answer")?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for line in lines {
        table.add_row(row(line));
    }
    Ok(table.trim_fmt())
}

async fn get(ask: &Ask, path: &str) -> Result<String> {
    let stream = TcpStream::connect(ask.admin).await;
    let stream =
        stream.with_context(|| format!("connect to {}: does a gateway run here?", ask.admin))?;
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request =
        Request::get(path).header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = requests.send_request(request).await.context("ask the gateway")?;
    let status = response.status();
    let body = response.into_body().collect().await.context("read the gateway's answer")?;
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    if !status.is_success() {
        bail!("the gateway answers {status}: {}", text.trim());
    }
    Ok(text)
}
