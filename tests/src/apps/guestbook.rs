//! The guestbook's frontend: writes to the Redis master, reads from a replica, and finds both by name, or, where
//! `GET_HOSTS_FROM` is `env`, through the environment that Services give a pod.

use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::drain::{self, Answer};
use super::query::parameter;

/// What it serves.
#[derive(Debug, Args)]
pub struct Options {
    /// TCP port
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// How long it goes on accepting after SIGTERM
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    shutdown_delay: u64,
}

/// One question to Redis takes at most this long.
const REDIS_LIMIT: Duration = Duration::from_secs(2);

const PAGE: &str = r#"<!doctype html>
<title>Guestbook</title>
<h1>Guestbook</h1>
<form onsubmit="say(); return false"><input id="entry"><button>Say</button></form>
<ul id="entries"></ul>
<script>
const ask = query => fetch("guestbook.php?" + new URLSearchParams(query)).then(answer => answer.json());
const show = data => entries.replaceChildren(...data.split(",").filter(Boolean).map(text => {
  const item = document.createElement("li"); item.textContent = text; return item;
}));
const load = () => ask({cmd: "get", key: "messages"}).then(answer => show(answer.data));
const say = async () => {
  const {data} = await ask({cmd: "get", key: "messages"});
  await ask({cmd: "set", key: "messages", value: data + "," + entry.value});
  entry.value = ""; load();
};
load();
</script>
"#;

/// Serves until SIGTERM.
pub(super) async fn run(options: Options) -> Result<()> {
    let listeners = vec![drain::listen(options.port).await?];
    let delay = Duration::from_millis(options.shutdown_delay);
    drain::serve(listeners, delay, answer).await
}

async fn answer(request: Request<Incoming>, _peer: SocketAddr) -> Answer {
    let query = request.uri().query();
    match request.uri().path() {
        "/" => page("text/html; charset=utf-8", PAGE.to_owned()),
        "/hostname" => page("text/plain", drain::hostname()),
        "/guestbook.php" => match command(query).await {
            Ok(answer) => page("application/json", answer.to_string()),
            Err(error) => {
                let mut answer = page("text/plain", format!("{error:#}\n"));
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
                answer
            }
        },
        path => {
            let mut answer = page("text/plain", format!("no {path} here\n"));
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        }
    }
}

async fn command(query: Option<&str>) -> Result<serde_json::Value> {
    let ask = |name: &str| parameter(query, name).unwrap_or_default();
    let key = ask("key");
    match ask("cmd").as_str() {
        "set" => {
            redis("redis-master", &["SET", &key, &ask("value")]).await?;
            Ok(json!({"message": "Updated"}))
        }
        "get" => {
            let value = redis("redis-slave", &["GET", &key]).await?;
            Ok(json!({"data": value.unwrap_or_default()}))
        }
        other => bail!("cmd={other}: say cmd=get or cmd=set"),
    }
}

/// Asks the Redis behind a Service.
async fn redis(service: &str, command: &[&str]) -> Result<Option<String>> {
    let address = locate(service, |name| env::var(name).ok());
    let about = || format!("{} at {service} ({address})", command[0]);
    let exchange = async {
        let stream = TcpStream::connect(&address).await?;
        ask_redis(stream, command).await
    };
    tokio::time::timeout(REDIS_LIMIT, exchange).await.with_context(about)?.with_context(about)
}

fn locate(service: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let prefix = service.to_uppercase().replace('-', "_");
    let from_environment = variable("GET_HOSTS_FROM").is_some_and(|from| from == "env");
    let given = |tail| variable(&format!("{prefix}{tail}")).filter(|_| from_environment);
    let host = given("_SERVICE_HOST").unwrap_or_else(|| service.to_owned());
    let port = given("_SERVICE_PORT").unwrap_or_else(|| "6379".to_owned());
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// One command in Redis' serialization protocol, and its simple, error or bulk answer.
async fn ask_redis(stream: TcpStream, command: &[&str]) -> Result<Option<String>> {
    let mut request = format!("*{}\r\n", command.len());
    for part in command {
        request += &format!("${}\r\n{part}\r\n", part.len());
    }
    let mut stream = BufReader::new(stream);
    stream.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let line = line.trim_end();
    if let Some(simple) = line.strip_prefix('+') {
        return Ok(Some(simple.to_owned()));
    }
    let Some(length) = line.strip_prefix('$') else {
        bail!("redis answers {line:?}");
    };
    if length == "-1" {
        return Ok(None);
    }
    let length: usize = length.parse().with_context(|| format!("redis answers {line:?}"))?;
    let mut value = Vec::new();
    stream.take(length as u64).read_to_end(&mut value).await?;
    if value.len() < length {
        bail!("redis closed the connection in the middle of a value");
    }
    Ok(Some(String::from_utf8_lossy(&value).into_owned()))
}

fn page(kind: &'static str, body: String) -> Answer {
    let mut response = Response::new(Full::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_is_found_by_name_or_through_the_environment() {
        let given = |name: &str| match name {
            "GET_HOSTS_FROM" => Some("env".to_owned()),
            "REDIS_MASTER_SERVICE_HOST" => Some("10.96.0.7".to_owned()),
            "REDIS_MASTER_SERVICE_PORT" => Some("6380".to_owned()),
            "REDIS_SLAVE_SERVICE_HOST" => Some("fd00::7".to_owned()),
            _ => None,
        };
        assert_eq!(locate("redis-master", given), "10.96.0.7:6380");
        assert_eq!(locate("redis-slave", given), "[fd00::7]:6379");
        let by_name = |name: &str| given(name).filter(|_| name != "GET_HOSTS_FROM");
        assert_eq!(locate("redis-master", by_name), "redis-master:6379");
    }
}
