//! The gateway beside nginx, HAProxy and Envoy: what a request costs, how long it takes, what connections and routes
//! weigh, and what a change does.
//!
//! ```text
//! this process, on the last CPU                    the first CPU
//!   clients ── HTTP, TLS, HTTP/2, WebSocket ──►  fairway-ingress │ nginx │ haproxy │ envoy
//!   backend ◄── HTTP/1.1 ──────────────────────    one thread that serves each; in turns
//! ```
//!
//! All of it is on the loopback address. What counts is the processor's time that a proxy takes for an answer, so that
//! it does not matter whether the clients keep it busy.

mod backend;
mod changes;
mod config;
mod feed;
mod http1;
mod http2;
mod load;
mod memory;
mod pace;
mod proxy;
mod speed;
mod websocket;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::bed::Interrupted;
use super::feed::raise_limit;
use super::report::{Row, by_case, write_json};
use super::services::parse_seconds;
use super::{ahead::Ahead, progress, worker};
use crate::apiserver::Authority;

use backend::Backend;
use load::{Trust, Way};
use proxy::{Program, Proxy, Site};

/// The host that clients ask for.
const HOST: &str = "bench.example";

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Speed, Part::Memory, Part::Changes, Part::Feed])]
    parts: Vec<Part>,
    /// Which proxies [default: all that are here]
    #[arg(long, value_enum, value_delimiter = ',')]
    proxies: Vec<Program>,
    /// What clients do [default: everything]
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Measurements of each proxy, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of a measurement, in seconds
    #[arg(long, default_value = "0.7", value_parser = parse_seconds)]
    seconds: Duration,
    /// Idle connections whose memory is measured
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    connections: u32,
    /// Hosts whose memory is measured
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    hosts: u32,
    /// Changes, one after the other, of each proxy, as many of them as fit into two and a half minutes; and of
    /// each kind from the feed
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Where fairway-ingress is [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Where other proxies are looked for before the search path
    #[arg(long, value_name = "DIR")]
    proxy_dir: Vec<PathBuf>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Answers for a second of a processor, and how long they take
    Speed,
    /// Memory without connections, of idle ones, and of hosts
    Memory,
    /// How long changes take, and what fails meanwhile
    Changes,
    /// How long our gateway takes from the feed to the first request, with up to 10,000 hosts
    Feed,
}

/// What all parts need.
struct Bench<'a> {
    options: &'a Options,
    /// The proxies, ours first, and where their programs are.
    programs: Vec<(Program, PathBuf)>,
    site: Site,
    trust: Trust,
    authority: Authority,
    folder: Folder,
}

/// Runs the benchmark, prints its tables, and writes its rows if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    raise_limit()?;
    let programs = programs(options)?;
    let _ahead = Ahead::of_others()?;
    let (cpu, here) = (worker::first_cpu()?, worker::last_cpu()?);
    worker::settle_on(here)?;
    let backend = Backend::start(here)?;
    let authority = Authority::new().context("make a CA")?;
    let (certificate, key) = authority.certificate(&[HOST]).context("make a certificate")?;
    let bench = Bench {
        options,
        programs,
        site: Site { certificate, key, backend: backend.address, cpu },
        trust: Trust::new(&authority.pem())?,
        authority,
        folder: Folder::new()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the clients' runtime")?;
    let rows = runtime.block_on(async {
        tokio::select! {
            rows = bench.measure() => rows,
            signalled = signalled() => Err(signalled.map_or_else(Into::into, |()| Interrupted.into())),
        }
    })?;
    options.json.as_ref().map_or(Ok(()), |file| write_json(file, &rows))
}

impl Bench<'_> {
    async fn measure(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for part in &self.options.parts {
            let measured = match part {
                Part::Speed => self.speed().await?,
                Part::Memory => self.memory().await?,
                Part::Changes => self.changes().await?,
                Part::Feed => self.feed().await?,
            };
            println!("{}\n", by_case(&measured));
            rows.extend(measured);
        }
        Ok(rows)
    }

    /// Starts a proxy that serves these hosts, the last of which it answers for already.
    async fn start(&self, program: Program, path: &Path, hosts: &[String]) -> Result<Proxy> {
        let folder = self.folder.0.join(program.name());
        // Of an earlier one.
        let _ = std::fs::remove_dir_all(&folder);
        let mut proxy = Proxy::start(program, path, &folder, &self.site, hosts)?;
        for host in [hosts.first(), hosts.last()].into_iter().flatten() {
            proxy.ready(host).await?;
        }
        Ok(proxy)
    }
}

/// Those to be measured, and where they are.
fn programs(options: &Options) -> Result<Vec<(Program, PathBuf)>> {
    let beside = std::env::current_exe().context("find this program")?;
    let beside = beside.parent().context("find this program's folder")?.to_owned();
    let ours = [options.bin_dir.clone().unwrap_or(beside)];
    let is_asked_for = |program| options.proxies.contains(&program);
    let mut found = Vec::new();
    for program in Program::value_variants() {
        if !options.proxies.is_empty() && !is_asked_for(*program) {
            continue;
        }
        let folders = if program.is_ours() { &ours[..] } else { &options.proxy_dir };
        match proxy::find(*program, folders) {
            Some(path) => found.push((*program, path)),
            None if !program.is_ours() && !is_asked_for(*program) => {
                progress(&format!("without {}, which is not here", program.name()));
            }
            None => bail!("{} is not here; `cargo xtask bench ingress` brings it", program.file()),
        }
    }
    ensure!(!found.is_empty(), "no proxy to measure");
    Ok(found)
}

/// The first host and more of them.
fn hosts(more: u32) -> Vec<String> {
    let more = (0..more).map(|number| format!("host-{number}.{HOST}"));
    std::iter::once(HOST.to_owned()).chain(more).collect()
}

/// Waits for somebody who wants an end.
async fn signalled() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// A folder of this run alone.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let name = format!("fairway-bench-ingress-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
