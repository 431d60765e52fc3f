//! What the programs take for a packet: each way through each program, run by hand in the kernel
//! (`BPF_PROG_TEST_RUN`), beside a program that does nothing.
//!
//! The tables are a real agent's, on a node with two pods and two peers:
//!
//! ```text
//! client, server ── node1 ─┬─ eth0 ── router ── outside
//!                          ├─ node2: another subnet, behind the tunnel
//!                          └─ node3: the same subnet, by plain routes
//! ```
//!
//! Nobody is behind the addresses of the peers' pods: a program is done once it has handed a packet on.

pub(super) mod frame;
mod history;
pub(super) mod runs;
mod site;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use fairway_netlink::NetNs;

use self::history::Record;
use self::site::{NODES, SUBNETS, Site};
use super::bed;
use super::progress;
use super::report::{Row, rounded, table, write_json};
use super::stats::Series;
use crate::cluster;

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only ways whose program or name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Measurements of each way, each beside one of the program that does nothing
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Packets in a measurement
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    packets: u32,
    /// Earlier figures to compare with
    #[arg(long, value_name = "FILE", default_value = "docs/benchmarks/packet.csv")]
    history: PathBuf,
    /// Add the figures to those
    #[arg(long)]
    record: bool,
    /// Where fairway-proxy and fairway-cni are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Runs the benchmark, prints its table, and writes what it is asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    // Before anything that takes long.
    let history = history::load(&options.history)?;
    let range = |text: &str| text.parse().with_context(|| format!("read {text}"));
    let plan = cluster::Options {
        nodes: NODES,
        subnets: SUBNETS,
        pod_cidr: vec![range("10.244.0.0/16")?, range("fd00:10:244::/48")?],
        service_cidr: vec![range("10.96.0.0/16")?, range("fd00:10:96::/112")?],
        bin_dir: options.bin_dir.clone(),
        ..bed::options()
    };
    let measured = bed::run_planned(plan, |bed| {
        progress("a node with its agent");
        let parts = site::Parts::build(bed)?;
        let node = NetNs::open(bed.host(bed.node(0)?).netns)?;
        node.run(|| Site::new(bed, &parts)?.measure(options))?
    })?;
    println!("{}", summary(&measured, &history));
    if let Some(file) = &options.json {
        write_json(file, &rows(&measured))?;
    }
    if options.record {
        history::append(&options.history, &records(&measured)?)?;
        progress(&format!("added to {}", options.history.display()));
    }
    Ok(())
}

/// What came of a way.
#[derive(Clone, Debug)]
struct Measured {
    program: &'static str,
    path: &'static str,
    family: u8,
    verified: u32,
    /// Nanoseconds a packet, one value a round.
    own: Series,
    /// The same of the program that does nothing.
    idle: Series,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.own.relative_to(&self.idle).median
    }

    /// What a packet takes beyond the way to the program and back.
    fn nanos(&self) -> f64 {
        self.own.median() - self.idle.median()
    }
}

fn rows(results: &[Measured]) -> Vec<Row> {
    let row = |result: &Measured| Row {
        bench: "packet",
        case: result.program,
        params: BTreeMap::from([
            ("path", result.path.into()),
            ("family", u64::from(result.family).into()),
            ("verified", u64::from(result.verified).into()),
        ]),
        metric: "time",
        unit: "ns",
        value: rounded(result.nanos()),
        baseline: Some("idle"),
        ratio: Some(rounded(result.ratio())),
    };
    results.iter().map(row).collect()
}

fn records(results: &[Measured]) -> Result<Vec<Record>> {
    let date = word_of(&["date", "--utc", "+%F"])?;
    let revision = word_of(&["git", "describe", "--always", "--exclude=*", "--dirty=+"])?;
    // Whose build it is says little.
    let kernel = word_of(&["uname", "-r"])?;
    let (kernel, _) = kernel.split_once('-').unwrap_or((&kernel, ""));
    let record = |result: &Measured| Record {
        date: date.clone(),
        revision: revision.clone(),
        kernel: kernel.to_owned(),
        program: result.program.to_owned(),
        path: result.path.to_owned(),
        family: result.family,
        nanos: result.nanos(),
        ratio: result.ratio(),
        verified: result.verified,
    };
    Ok(results.iter().map(record).collect())
}

/// The one word that a command prints.
fn word_of(words: &[&str]) -> Result<String> {
    let about = || words.join(" ");
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(about)?;
    anyhow::ensure!(output.status.success(), "{}: {}", about(), output.status);
    let text = String::from_utf8(output.stdout).with_context(about)?;
    Ok(text.trim().replace(',', ";"))
}

fn summary(results: &[Measured], history: &[Record]) -> String {
    let header =
        ["program: path", "IP", "ns", "ratio", "half of them", "verified", "last", "change"];
    let lines = results.iter().map(|result| {
        let ratio = result.own.relative_to(&result.idle);
        let last = history
            .iter()
            .rev()
            .find(|record| record.is_of(result.program, result.path, result.family));
        vec![
            format!("{}: {}", result.program, result.path),
            result.family.to_string(),
            format!("{:.0}", result.nanos()),
            format!("{:.2}", ratio.median),
            format!("{:.2} - {:.2}", ratio.low, ratio.high),
            result.verified.to_string(),
            last.map(|last| format!("{:.2}", last.ratio)).unwrap_or_default(),
            last.map(|last| change(ratio.median, last.ratio)).unwrap_or_default(),
        ]
    });
    table(&header, lines)
}

/// How much more a ratio is than the last one.
fn change(ratio: f64, last: f64) -> String {
    format!("{:+.0} %", (ratio / last - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_a_packet_takes_beyond_nothing_and_how_that_has_changed() {
        let series = |values: &[f64]| {
            let mut series = Series::default();
            values.iter().for_each(|value| series.push(*value));
            series
        };
        // The machine was half as fast in the second round.
        let result = Measured {
            program: "pod_ingress",
            path: "plain",
            family: 4,
            verified: 200_000,
            own: series(&[200.0, 400.0, 200.0]),
            idle: series(&[50.0, 100.0, 50.0]),
        };
        let row = &rows(std::slice::from_ref(&result))[0];
        assert_eq!((row.value, row.ratio), (150.0, Some(4.0)));

        let last = |family, ratio| Record {
            date: "2026-11-28".to_owned(),
            revision: "8919fd8".to_owned(),
            kernel: "6.18.5".to_owned(),
            program: "pod_ingress".to_owned(),
            path: "plain".to_owned(),
            family,
            nanos: 100.0,
            ratio,
            verified: 200_000,
        };
        let text = summary(&[result], &[last(4, 9.0), last(4, 3.2), last(6, 7.0)]);
        assert_eq!(
            text,
            "\
| program: path      | IP |  ns | ratio | half of them | verified | last | change |
|--------------------|---:|----:|------:|-------------:|---------:|-----:|-------:|
| pod_ingress: plain |  4 | 150 |  4.00 |  4.00 - 4.00 |   200000 | 3.20 |  +25 % |"
        );
    }
}
