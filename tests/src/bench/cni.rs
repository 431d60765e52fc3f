//! What it takes to connect a pod, and what the connection is worth: the plugin's calls beside the
//! reference plugins', and traffic between pods beside the kernel's own bridge, routes and VXLAN.

mod calls;
mod paths;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::bed;
use super::report::write_json;
use super::services::parse_seconds;

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Calls, Part::Paths])]
    parts: Vec<Part>,
    /// Pods that each plugin connects and disconnects alone, and as many again at 100 a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pods: u32,
    /// Measurements of each path, each beside one of the kernel's
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of a measurement of a path, in seconds
    #[arg(long, default_value = "0.2", value_parser = parse_seconds)]
    seconds: Duration,
    /// Where fairway-proxy, fairway-controlplane and fairway-cni are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Half of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// ADD and DEL: the time of one call, alone and at 100 a second
    Calls,
    /// Connections, requests and streams between two pods, on one node and across two
    Paths,
}

/// Runs the benchmark, prints its tables, and writes its rows if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut rows = Vec::new();
    if options.parts.contains(&Part::Calls) {
        let measured =
            bed::run(calls::NODES, calls::FLANNEL_NODES, options.bin_dir.clone(), |bed| {
                calls::measure(bed, options.pods)
            })?;
        println!("{}\n", calls::summary(&measured));
        rows.extend(calls::rows(&measured));
    }
    if options.parts.contains(&Part::Paths) {
        let measured =
            bed::run(paths::NODES, paths::FLANNEL_NODES, options.bin_dir.clone(), |bed| {
                paths::measure(bed, options.rounds, options.seconds)
            })?;
        println!("{}", paths::summary(&measured));
        rows.extend(paths::rows(&measured));
    }
    options.json.as_ref().map_or(Ok(()), |file| write_json(file, &rows))
}
