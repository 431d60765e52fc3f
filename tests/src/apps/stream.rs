//! A client that asks over one connection for as long as it lives.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, say_running, told_to_finish};

/// Whom to ask, how often.
#[derive(Debug, Args)]
pub struct Options {
    /// ADDRESS:PORT of a test server
    server: SocketAddr,
    /// Between an answer and the next question, in milliseconds
    #[arg(long, default_value_t = 5)]
    pause: u64,
    /// How long one answer may take, in milliseconds
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
    /// Ask once, and then only for each line on standard input
    #[arg(long, conflicts_with = "pause")]
    on_request: bool,
}

/// What came of it; printed as one line of JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Questions that were answered.
    pub answered: u64,
    /// How the connection ended, if not by being told to.
    pub error: Option<String>,
    /// The slowest answer, in milliseconds.
    pub slowest_ms: u64,
    /// When the last answer came, in milliseconds since 1970.
    pub last_ms: u64,
}

/// Such a client somewhere in a lab; killed on drop.
#[derive(Debug)]
pub struct Stream(Client);

impl Stream {
    /// Starts `command`, which is `fairway-lab` without arguments; returns when the first answer
    /// is there.
    pub(crate) fn start(
        mut command: Command,
        server: SocketAddr,
        options: &[&str],
    ) -> Result<Self> {
        command.args(["app", "stream", &server.to_string()]).args(options);
        let client = Client::start(&mut command);
        client.map(Self).with_context(|| format!("a connection to {server}"))
    }

    /// Has one that asks on request do so once.
    pub fn ask(&mut self) -> Result<()> {
        self.0.tell("")
    }

    /// Tells it to end the connection; what came of it.
    pub fn finish(self) -> Result<Summary> {
        self.0.finish()
    }
}

/// Asks until told to stop, then prints the [`Summary`]. Each question has a number, which the
/// answer repeats.
pub(super) fn run(options: &Options) -> Result<()> {
    let stop = if options.on_request { Arc::default() } else { told_to_finish() };
    let about = || format!("connect to {}", options.server);
    let limit = Duration::from_millis(options.timeout.max(1));
    let stream = TcpStream::connect_timeout(&options.server, limit).with_context(about)?;
    stream.set_nodelay(true).with_context(about)?;
    stream.set_read_timeout(Some(limit)).with_context(about)?;
    let mut stream = BufReader::new(stream);
    let mut summary = Summary::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        if let Err(error) = exchange(&mut stream, summary.answered) {
            summary.error = Some(error.to_string());
            break;
        }
        let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        summary.slowest_ms = summary.slowest_ms.max(took);
        summary.last_ms = milliseconds();
        if summary.answered == 0 {
            say_running();
        }
        summary.answered += 1;
        if options.on_request {
            if io::stdin().lines().next().is_none() {
                break;
            }
            continue;
        }
        thread::sleep(Duration::from_millis(options.pause));
    }
    let line = serde_json::to_string(&summary).context("encode the summary")?;
    println!("{line}");
    Ok(())
}

/// The time, in milliseconds since 1970.
pub fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// One question and its answer, after which the connection can take the next.
fn exchange(stream: &mut BufReader<TcpStream>, number: u64) -> io::Result<()> {
    let request = format!("GET /echo?msg={number} HTTP/1.1\r\nHost: lab\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let body = read_answer(stream)?;
    if body == number.to_string().as_bytes() {
        return Ok(());
    }
    let body = String::from_utf8_lossy(&body);
    Err(io::Error::other(format!("the answer to {number} is {body:?}")))
}

/// The body of an answer that says how long it is.
fn read_answer(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_follow_each_other_on_one_connection() {
        let answer = |body: &str| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX: y\r\n\r\n{body}", body.len())
        };
        let text = answer("12") + &answer("") + "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut";
        let mut bytes = text.as_bytes();
        assert_eq!(read_answer(&mut bytes).unwrap(), b"12");
        assert_eq!(read_answer(&mut bytes).unwrap(), b"");
        assert_eq!(read_answer(&mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
