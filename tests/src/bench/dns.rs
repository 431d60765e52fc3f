//! Service DNS beside Knot, Unbound and dnsmasq: what a query costs, how long it takes, what names weigh, what a pod's search
//! list costs, how soon a change is answered, and what the kernel's answers cost.
//!
//! ```text
//! this process, on the last CPU                  the first CPU
//!   dnsperf, resolvers ── UDP ──────────────►  fairway_dns │ knotd │ unbound │ dnsmasq
//!   upstream ◄── UDP ────────────────────────    one thread that serves each; in turns
//! ```
//!
//! That is on the loopback address. What counts is the processor's time that a server takes for an answer, so that it does
//! not matter whether its clients keep it busy. Changes of ours, and what the kernel answers, need the whole agent, and have it on nodes
//! of their own.

mod change;
mod client;
mod config;
mod flood;
mod kernel;
mod memory;
mod node;
mod ours;
mod records;
mod search;
mod server;
mod speed;
mod upstream;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::ahead::Ahead;
use super::report::{Row, by_case, write_json};
use super::services::parse_seconds;
use super::{progress, worker};

use client::Site;
use records::Records;
use server::{Program, Server};
use speed::Way;
use upstream::Upstream;

pub(super) use flood::{ClientOptions, ask};
pub(super) use ours::{ServerOptions, serve};

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Speed, Part::Memory, Part::Search, Part::Change, Part::Kernel])]
    parts: Vec<Part>,
    /// Which servers [default: all that are here]
    #[arg(long, value_enum, value_delimiter = ',')]
    servers: Vec<Program>,
    /// What is asked for [default: everything]
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Measurements of each server, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of a measurement, in seconds
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    seconds: Duration,
    /// Services with a ClusterIP
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    services: u32,
    /// Headless Services, with a hundred endpoints each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    headless: u32,
    /// Changes, one after the other, of each server
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Where fairway-proxy and the others are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Answers for a second of a processor, and how long they take
    Speed,
    /// Memory without names, and with all of them
    Memory,
    /// Names of others through a pod's search list
    Search,
    /// From a change to an answer that has it
    Change,
    /// A pod's queries, answered by the kernel, by its node's agent, or by the others there
    Kernel,
}

/// What all parts need.
struct Bench<'a> {
    options: &'a Options,
    /// The servers, ours first, and where their programs are.
    programs: Vec<(Program, PathBuf)>,
    records: Records,
    upstream: Upstream,
    /// Where servers run.
    cpu: usize,
    folder: Folder,
}

/// Runs the benchmark, prints its tables, and writes its rows if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    let programs = programs(options)?;
    let _ahead = Ahead::of_others()?;
    let (cpu, here) = (worker::first_cpu()?, worker::last_cpu()?);
    worker::settle_on(here)?;
    let bench = Bench {
        options,
        programs,
        records: Records { services: options.services, headless: options.headless },
        upstream: Upstream::start()?,
        cpu,
        folder: Folder::new()?,
    };
    let mut rows = Vec::new();
    for part in &options.parts {
        let measured = match part {
            Part::Speed => bench.speed()?,
            Part::Memory => bench.memory()?,
            Part::Search => bench.search()?,
            Part::Change => bench.change()?,
            Part::Kernel => bench.kernel()?,
        };
        println!("{}\n", by_case(&measured));
        rows.extend(measured);
    }
    options.json.as_ref().map_or(Ok(()), |file| write_json(file, &rows))
}

impl Bench<'_> {
    /// Starts a server that has these records, and answers already.
    fn start(&self, program: Program, records: Records) -> Result<Server> {
        self.start_at(program, records, (Site::default(), Ipv4Addr::LOCALHOST), self.cpu)
    }

    /// The same, elsewhere.
    fn start_at(
        &self,
        program: Program,
        records: Records,
        site: (Site, Ipv4Addr),
        cpu: usize,
    ) -> Result<Server> {
        let (_, path) = self
            .programs
            .iter()
            .find(|(known, _)| *known == program)
            .context("a server that is here")?;
        let folder = self.folder.0.join(program.name());
        // Of an earlier one.
        let _ = std::fs::remove_dir_all(&folder);
        Server::start((program, path), &folder, site, records, self.upstream.address, cpu)
    }

    /// A row of this benchmark.
    fn row(case: &'static str, metric: &'static str, unit: &'static str, value: f64) -> Row {
        Row {
            bench: "dns",
            case,
            params: Default::default(),
            metric,
            unit,
            value: super::report::rounded(value),
            baseline: None,
            ratio: None,
        }
    }
}

/// Those to be measured, and where they are.
fn programs(options: &Options) -> Result<Vec<(Program, PathBuf)>> {
    let is_asked_for = |program| options.servers.contains(&program);
    let mut found = Vec::new();
    for program in Program::value_variants() {
        if !options.servers.is_empty() && !is_asked_for(*program) {
            continue;
        }
        match server::find(*program)? {
            Some(path) => found.push((*program, path)),
            None if !is_asked_for(*program) => {
                progress(&format!("without {}, which is not here", program.name()));
            }
            None => bail!("{} is not here; `cargo xtask bench dns` brings it", program.name()),
        }
    }
    ensure!(!found.is_empty(), "no server to measure");
    if options.parts.contains(&Part::Speed) {
        speed::find_load().context("dnsperf is not here; `cargo xtask bench dns` brings it")?;
    }
    Ok(found)
}

/// A folder of this run alone.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("fairway-bench-dns-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
