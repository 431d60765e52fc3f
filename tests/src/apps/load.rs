//! A client without patience: a new connection for each request, no second try, and a note of
//! every failure with the moment its request started.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::client::{Client, say_running, told_to_finish};
use super::drain::POD_HEADER;
use crate::http;

/// What to ask, how often, how long.
#[derive(Debug, Args)]
pub struct Options {
    /// http://ADDRESS:PORT/PATH; may be given several times, they take turns
    #[arg(long, required = true)]
    url: Vec<String>,
    /// Requests a second, all workers together
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Workers: as many requests may be in flight at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    concurrency: u32,
    /// Seconds; without it, until standard input ends
    #[arg(long)]
    duration: Option<f64>,
    /// How long one request may take, in milliseconds
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
}

/// What came of it; printed as one line of JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Requests answered with 2xx.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// Good answers by the pod that gave them.
    pub by_pod: BTreeMap<String, u64>,
    /// Every failure, in the order of their requests' starts.
    pub failures: Vec<Failure>,
    /// The slowest good answer, in milliseconds.
    pub slowest_ms: u64,
}

/// A request that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// When it started, in milliseconds since 1970.
    pub started_ms: u64,
    /// How long it took to fail.
    pub took_ms: u64,
    /// Whether somebody had taken the connection.
    pub was_answering: bool,
    /// Why.
    pub error: String,
}

/// A client that runs somewhere in a lab; killed on drop.
#[derive(Debug)]
pub struct Load(Client);

impl Load {
    /// Starts `command`, which is `fairway-lab` without arguments; returns when its first request
    /// is through.
    pub(crate) fn start(
        mut command: Command,
        urls: &[String],
        rate: u32,
        concurrency: u32,
    ) -> Result<Self> {
        command.args(["app", "load"]);
        for url in urls {
            command.args(["--url", url]);
        }
        command
            .args(["--rate", &rate.to_string()])
            .args(["--concurrency", &concurrency.to_string()]);
        Client::start(&mut command).map(Self).context("a load")
    }

    /// Tells it to finish what is in flight and stop; what came of it all.
    pub fn finish(self) -> Result<Summary> {
        self.0.finish()
    }
}

/// Asks until told to stop, then prints the [`Summary`].
pub(super) fn run(options: &Options) -> Result<()> {
    let targets = options.url.iter().map(|url| Target::parse(url)).collect::<Result<Vec<_>>>()?;
    let told = options.duration.is_none().then(told_to_finish);
    let is_told = || told.as_ref().is_some_and(|told| told.load(Ordering::Relaxed));
    let start = Instant::now();
    let end = options.duration.map(|seconds| start + Duration::from_secs_f64(seconds.max(0.0)));
    let pace = Duration::from_secs(1) / options.rate.max(1);
    let ticket = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    thread::scope(|scope| {
        for _ in 0..options.concurrency {
            scope.spawn(|| {
                loop {
                    let number = ticket.fetch_add(1, Ordering::Relaxed);
                    let due =
                        start + pace.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
                    let over = |now| end.is_some_and(|end| now >= end);
                    if over(due) || is_told() {
                        return;
                    }
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    if over(Instant::now()) {
                        return;
                    }
                    let index = usize::try_from(number).unwrap_or_default() % targets.len();
                    targets[index].ask(Duration::from_millis(options.timeout), &summary);
                    if number == 0 {
                        say_running();
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.failures.sort_by_key(|failure| failure.started_ms);
    let line = serde_json::to_string(&summary).context("encode the summary")?;
    println!("{line}");
    Ok(())
}

struct Target {
    address: SocketAddr,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self> {
        let about = || format!("--url {url}: use http://ADDRESS:PORT/PATH");
        let rest = url.strip_prefix("http://").with_context(about)?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let with_port = if host.rsplit(']').next().is_some_and(|tail| tail.contains(':')) {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let mut addresses = with_port.to_socket_addrs().with_context(about)?;
        Ok(Self { address: addresses.next().with_context(about)?, path: format!("/{path}") })
    }

    fn ask(&self, limit: Duration, summary: &Mutex<Summary>) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = Instant::now();
        let outcome = http::get(self.address, &self.path, limit);
        let took_ms = millis(started.elapsed());
        let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
        let (was_answering, error) = match outcome {
            Ok(answer) if (200..300).contains(&answer.status) => {
                let pod = answer.header(POD_HEADER).unwrap_or("?").to_owned();
                *summary.by_pod.entry(pod).or_default() += 1;
                summary.ok += 1;
                summary.slowest_ms = summary.slowest_ms.max(took_ms);
                return;
            }
            Ok(answer) => (true, format!("status {}", answer.status)),
            Err(error) => {
                use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
                let cut = matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe);
                (cut, error.to_string())
            }
        };
        summary.failed += 1;
        summary.failures.push(Failure {
            started_ms: millis(since_1970),
            took_ms,
            was_answering,
            error,
        });
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let parse = |url| {
            Target::parse(url)
                .map(|target| format!("{} {}", target.address, target.path))
                .map_err(|error| format!("{error:#}"))
        };
        assert_eq!(parse("http://10.0.0.1/a?b").unwrap(), "10.0.0.1:80 /a?b");
        assert_eq!(parse("http://10.0.0.1:81").unwrap(), "10.0.0.1:81 /");
        assert_eq!(parse("http://[fd00::1]:81/").unwrap(), "[fd00::1]:81 /");
        assert_eq!(parse("http://[fd00::1]/").unwrap(), "[fd00::1]:80 /");
        assert!(parse("ftp://10.0.0.1").unwrap_err().contains("--url ftp"));
    }
}
