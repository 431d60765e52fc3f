//! The test server: answers who it is and who asks, over HTTP, UDP and SCTP, with the verbs of the
//! `agnhost netexec` that the Kubernetes end-to-end tests use.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::Args;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::net::{UdpSocket, lookup_host};

use super::drain::{self, Answer};
use super::query::parameter;
use super::sctp;
use crate::http;
use crate::store::timestamp;

/// What it serves.
#[derive(Debug, Args)]
pub struct Options {
    /// TCP ports
    #[arg(long, value_name = "PORT")]
    http_port: Vec<u16>,
    /// UDP ports
    #[arg(long, value_name = "PORT")]
    udp_port: Vec<u16>,
    /// SCTP ports, which take the questions of UDP, a line each
    #[arg(long, value_name = "PORT")]
    sctp_port: Vec<u16>,
    /// How long it goes on accepting after SIGTERM
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    shutdown_delay: u64,
}

/// Tries of `/dial` each take at most this long.
const DIAL_LIMIT: Duration = Duration::from_secs(2);
/// The longest answer to `/bytes`.
const MOST_BYTES: usize = 64 << 20;
/// More tries than this are not made.
const MOST_TRIES: usize = 100;

/// Serves until SIGTERM.
pub(super) async fn run(options: Options) -> Result<()> {
    // First of all: a pod is ready as soon as its first TCP port is open.
    for port in options.sctp_port {
        sctp::serve(port, answer_udp)?;
    }
    let mut listeners = Vec::new();
    for port in options.http_port {
        listeners.push(drain::listen(port).await?);
    }
    for port in options.udp_port {
        let socket = drain::listen_udp(port).await?;
        tokio::spawn(serve_udp(socket));
    }
    let delay = Duration::from_millis(options.shutdown_delay);
    drain::serve(listeners, delay, answer).await
}

async fn answer(request: Request<Incoming>, peer: SocketAddr) -> Answer {
    let query = request.uri().query();
    let ask = |name: &str| parameter(query, name);
    match request.uri().path() {
        "/" => text(format!("NOW: {}\n", timestamp(SystemTime::now()))),
        "/hostname" => text(drain::hostname()),
        "/clientip" => text(peer.to_string()),
        "/echo" => text(ask("msg").unwrap_or_default()),
        // Not a verb of the original: so much of nothing.
        "/bytes" => match ask("count").and_then(|text| text.parse::<usize>().ok()) {
            Some(count @ 0..=MOST_BYTES) => text("0".repeat(count)),
            _ => status(StatusCode::BAD_REQUEST, format!("say count= up to {MOST_BYTES}\n")),
        },
        "/healthz" => text(String::new()),
        "/header" => {
            let name = ask("key").unwrap_or_default();
            let value = request.headers().get(&name);
            text(
                value
                    .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                    .unwrap_or_default(),
            )
        }
        "/dial" => dial(query).await,
        path => status(StatusCode::NOT_FOUND, format!("no {path} here\n")),
    }
}

async fn serve_udp(socket: UdpSocket) {
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An earlier answer's ICMP error; the next question is another matter.
                eprintln!("receive: {error}");
                continue;
            }
        };
        let question = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let answer = answer_udp(question.trim_end(), peer);
        if let Err(error) = socket.send_to(answer.as_bytes(), peer).await {
            eprintln!("answer {peer}: {error}");
        }
    }
}

fn answer_udp(question: &str, peer: SocketAddr) -> String {
    let (verb, rest) = question.split_once(' ').unwrap_or((question, ""));
    match verb.to_lowercase().as_str() {
        "hostname" => drain::hostname(),
        "clientip" => drain::canonical(peer).to_string(),
        "echo" => rest.to_owned(),
        _ => format!("unknown command {verb:?}: say hostname, clientip or echo TEXT"),
    }
}

/// Asks somebody else, and says what they answered.
async fn dial(query: Option<&str>) -> Answer {
    let ask = |name: &str| parameter(query, name).filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (ask("host"), ask("port")) else {
        return status(StatusCode::BAD_REQUEST, "say host= and port=\n".to_owned());
    };
    let question = ask("request").unwrap_or_else(|| "hostname".to_owned());
    let udp = ask("protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("udp"));
    let tries: usize = ask("tries").and_then(|text| text.parse().ok()).unwrap_or(1);
    let (mut responses, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..tries.min(MOST_TRIES) {
        match dial_once(&format!("{host}:{port}"), &question, udp).await {
            Ok(response) => responses.push(response),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    text(json!({"responses": responses, "errors": errors}).to_string())
}

async fn dial_once(target: &str, question: &str, udp: bool) -> Result<String> {
    let about = || format!("dial {target}");
    let address = lookup_host(target).await.with_context(about)?.next().with_context(about)?;
    if !udp {
        let path = format!("/{question}");
        let answer =
            tokio::task::spawn_blocking(move || http::get(address, &path, DIAL_LIMIT)).await?;
        return Ok(answer.with_context(about)?.text());
    }
    let socket = drain::listen_udp(0).await?;
    let to = match address {
        SocketAddr::V4(address) if socket.local_addr()?.is_ipv6() => {
            SocketAddr::new(address.ip().to_ipv6_mapped().into(), address.port())
        }
        address => address,
    };
    socket.send_to(question.as_bytes(), to).await.with_context(about)?;
    let mut buffer = vec![0; 65_535];
    let received = tokio::time::timeout(DIAL_LIMIT, socket.recv(&mut buffer)).await;
    let length = received.with_context(about)?.with_context(about)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn text(body: String) -> Answer {
    Response::new(Full::from(body))
}

fn status(code: StatusCode, body: String) -> Answer {
    let mut response = text(body);
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_verbs() {
        let peer = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(answer_udp("echo a b", peer), "a b");
        assert_eq!(answer_udp("clientip", peer), "10.0.0.1:5");
        assert_eq!(answer_udp("hostName", peer), drain::hostname());
        assert!(answer_udp("sing", peer).contains("unknown command \"sing\""));
    }
}
