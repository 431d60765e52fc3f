//! Answers for a second of a processor, and how long they take when there is room.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use super::Bench;
use super::records::{self, Records};
use super::server::{Program, Server};
use crate::bench::progress;
use crate::bench::report::{Row, rounded};
use crate::bench::stats::{Series, per_mille};

/// What a ratio compares with: the best of the others in the same round.
pub(super) const BEST: &str = "best of the others";
/// Latencies are those at this share of what the slowest server can do.
const SHARE: f64 = 0.4;
/// Different questions, in an order that does not follow that of the names.
const QUESTIONS: u32 = 10_000;
/// Names of others.
const OTHERS: u32 = 1000;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// IPv4 addresses of Services with a ClusterIP
    Service,
    /// And their IPv6 addresses, which there are none of, as resolvers do
    Pairs,
    /// Names that are not there
    Absent,
    /// Endpoints of headless Services, a name each
    Endpoint,
    /// Names of others, which are known after the first time
    External,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Pairs => "A and AAAA",
            Self::Absent => "no such name",
            Self::Endpoint => "endpoint",
            Self::External => "external",
        }
    }

    /// In the form of dnsperf: a name and a type a line.
    fn questions(self, records: Records) -> String {
        let mut text = String::new();
        for number in 0..QUESTIONS {
            // Of a prime number, so that all of them come, far apart.
            let number = number.wrapping_mul(7919);
            let service = number % records.services;
            let line = match self {
                Self::Service => writeln!(text, "{} A", records::service(service)),
                Self::Pairs => {
                    let name = records::service(service);
                    writeln!(text, "{name} A\n{name} AAAA")
                }
                Self::Absent => writeln!(text, "x{} A", records::service(service)),
                Self::Endpoint => {
                    let (host, of) = (number % records::ENDPOINTS, number % records.headless);
                    let host = records::hostname(host);
                    writeln!(text, "{host}.{} A", records::headless(of))
                }
                Self::External => writeln!(text, "host-{}.example A", number % OTHERS),
            };
            // Writing to a string cannot fail.
            let _ = line;
        }
        text
    }
}

/// What the rounds of one server brought.
#[derive(Default)]
struct Measured {
    /// For a second of its processor.
    per_cpu: Series,
    /// For a second.
    answers: Series,
    /// At a rate, in nanoseconds, of all rounds.
    latencies: Vec<u64>,
}

impl Bench<'_> {
    pub(super) fn speed(&self) -> Result<Vec<Row>> {
        let mut servers = Vec::new();
        for (program, _) in &self.programs {
            progress(&format!("start {}", program.name()));
            servers.push(self.start(*program, self.records)?);
        }
        let all = Way::value_variants();
        let ways = if self.options.ways.is_empty() { all } else { &self.options.ways };
        let mut rows = Vec::new();
        for way in ways {
            let can = |server: &&Server| *way != Way::External || server.program.forwards();
            let servers: Vec<_> = servers.iter().filter(can).collect();
            rows.extend(self.way(*way, &servers)?);
        }
        Ok(rows)
    }

    fn way(&self, way: Way, servers: &[&Server]) -> Result<Vec<Row>> {
        let file = self.folder.0.join("questions");
        fs::write(&file, way.questions(self.records)).context("write questions")?;
        let mut all: Vec<Measured> = servers.iter().map(|_| Measured::default()).collect();
        progress(&format!("{}: as fast as it goes", way.name()));
        for server in servers {
            // What they find out at first is not measured.
            load(server, &file, self.options.seconds / 4, None)?;
        }
        for _ in 0..self.options.rounds {
            for (measured, server) in all.iter_mut().zip(servers) {
                let before = server.cpu()?;
                let done = load(server, &file, self.options.seconds, None)?.answers;
                let spent = server.cpu()? - before;
                measured.per_cpu.push(done / spent.as_secs_f64());
                measured.answers.push(done / self.options.seconds.as_secs_f64());
            }
        }
        let slowest = all.iter().map(|one| one.answers.median()).fold(f64::INFINITY, f64::min);
        let rate = slowest * SHARE;
        progress(&format!("{}: {rate:.0} a second", way.name()));
        for _ in 0..self.options.rounds {
            for (measured, server) in all.iter_mut().zip(servers) {
                let loaded = load(server, &file, self.options.seconds, Some(rate))?;
                measured.latencies.extend(loaded.latencies);
            }
        }
        rows(way, rate, servers, &mut all)
    }
}

/// What dnsperf says.
struct Loaded {
    answers: f64,
    /// In nanoseconds, if there was a rate.
    latencies: Vec<u64>,
}

/// Asks for that long, with so many questions at a time that a server always finds some, or at a rate.
fn load(server: &Server, questions: &Path, time: Duration, rate: Option<f64>) -> Result<Loaded> {
    let mut dnsperf = Command::new("dnsperf");
    dnsperf.args(["-s", "127.0.0.1", "-p", &server.address.port().to_string()]);
    // No more than fits into the sockets of servers and of dnsperf itself, whoever of them does not run for a moment.
    dnsperf.args([
        "-b",
        "4096",
        "-c",
        "8",
        "-q",
        "200",
        "-l",
        &time.as_secs_f64().to_string(),
        "-d",
    ]);
    dnsperf.arg(questions);
    if let Some(rate) = rate {
        dnsperf.args(["-v", "-Q", &format!("{rate:.0}")]);
    }
    let output = dnsperf.output().context("run dnsperf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |of: &str| -> Option<f64> {
        let rest = text.lines().find_map(|line| line.trim().strip_prefix(of))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let (Some(answers), Some(lost)) = (number("Queries completed:"), number("Queries lost:"))
    else {
        bail!("dnsperf: {}", String::from_utf8_lossy(&output.stderr).trim());
    };
    let name = server.program.name();
    ensure!(answers > 0.0 && lost < answers / 1000.0, "{name}: {answers} answers, {lost} lost");
    // `> NOERROR service-1.ns-1.svc.cluster.local A 0.000123`
    let latency = |line: &str| -> Option<u64> {
        let seconds: f64 = line.strip_prefix("> ")?.split_whitespace().last()?.parse().ok()?;
        u64::try_from(Duration::from_secs_f64(seconds).as_nanos()).ok()
    };
    Ok(Loaded { answers, latencies: text.lines().filter_map(latency).collect() })
}

fn rows(way: Way, rate: f64, servers: &[&Server], all: &mut [Measured]) -> Result<Vec<Row>> {
    let others = servers.iter().zip(&*all).filter(|(server, _)| !server.program.is_ours());
    let best = Series::best(others.map(|(_, one)| &one.per_cpu));
    let mut rows = Vec::new();
    for (server, measured) in servers.iter().zip(all) {
        let program: Program = server.program;
        let row = |metric, unit, value| {
            let mut row = Bench::row(program.name(), metric, unit, value);
            row.params.insert("way", way.name().into());
            row
        };
        let ratio = best.as_ref().filter(|_| program.is_ours());
        let ratio = ratio.map(|best| rounded(measured.per_cpu.relative_to(best).median));
        rows.push(Row {
            baseline: ratio.map(|_| BEST),
            ratio,
            ..row("per_cpu", "1/s", measured.per_cpu.median())
        });
        rows.push(row("answers", "1/s", measured.answers.median()));
        measured.latencies.sort_unstable();
        for (metric, part) in [("p50", 500), ("p99", 990)] {
            let time = Duration::from_nanos(per_mille(&measured.latencies, part));
            let mut row = row(metric, "us", time.as_secs_f64() * 1e6);
            row.params.insert("rate", format!("{rate:.0}").parse::<u64>()?.into());
            rows.push(row);
        }
    }
    Ok(rows)
}

/// dnsperf, if it is here.
pub(super) fn find_load() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("dnsperf")).find(|file| file.is_file())
}
