//! A pod's queries, answered on its node: by the kernel, by the agent, by others.
//!
//! All of it is on one processor, and counts together, as the kernel answers in the client's own time. What the client alone costs is
//! taken off again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::client::Site;
use super::flood::{Flood, flood};
use super::node::{Node, SERVER};
use super::server::Server;
use super::speed::BEST;
use crate::bench::bed::{self, Bed};
use crate::bench::report::{Row, rounded};
use crate::bench::stats::Series;
use crate::bench::{cost, progress, worker};
use crate::process::Place;

/// Questions at a time, and how that is called.
const WAYS: [(usize, &str); 2] =
    [(1, "from a pod, one at a time"), (32, "from a pod, 32 at a time")];
/// What the kernel has answered is read off now and then.
const COUNTED: Duration = Duration::from_secs(30);

/// Who answers.
struct Case {
    name: &'static str,
    /// None: nobody does.
    server: Option<SocketAddr>,
    /// Whose time counts beside the client's.
    process: Option<u32>,
    /// The client's.
    place: Place,
}

/// What the rounds of one case brought, in nanoseconds.
#[derive(Default)]
struct Measured {
    /// For an answer, with the client's own part.
    cost: Series,
    p50: Series,
    p99: Series,
}

impl Bench<'_> {
    pub(super) fn kernel(&self) -> Result<Vec<Row>> {
        bed::run(2, 0, self.options.bin_dir.clone(), |bed| self.on_nodes(bed))
    }

    fn on_nodes(&self, bed: &Bed) -> Result<Vec<Row>> {
        let cpu = worker::last_cpu()?;
        progress("agents of two nodes start");
        let kernel = Node::start(bed, 0, self.records, true, cpu)?;
        let agent = Node::start(bed, 1, self.records, false, cpu)?;
        let plan = bed.node(1)?;
        let mut addresses = plan.addresses.ips().into_iter();
        let address =
            addresses.find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
        let address = address.context("the node has no IPv4 address")?;
        let mut others = Vec::new();
        for (program, _) in self.programs.iter().filter(|(program, _)| !program.is_ours()) {
            progress(&format!("start {}", program.name()));
            let site = (Site::of(bed.host(plan)), address);
            others.push(self.start_at(*program, self.records, site, cpu)?);
        }
        let case = |name, server, process, node: &Node<'_>| Case {
            name,
            server,
            process,
            place: node.place.clone(),
        };
        let mut cases = vec![
            case("client alone", None, None, &kernel),
            case("kernel", Some(SERVER), None, &kernel),
            case("agent", Some(SERVER), Some(agent.pid()), &agent),
        ];
        let other = |of: &Server| case(of.program.name(), Some(of.address), Some(of.pid()), &agent);
        cases.extend(others.iter().map(other));
        let (mut rows, mut by_kernel) = (Vec::new(), 0);
        for (at_once, way) in WAYS {
            progress(way);
            let mut all: Vec<Measured> = cases.iter().map(|_| Measured::default()).collect();
            for _ in 0..self.options.rounds {
                for (case, measured) in cases.iter().zip(&mut all) {
                    let (cost, flood) = self.measure(bed, case, at_once)?;
                    measured.cost.push(cost);
                    measured.p50.push(flood.p50.as_nanos() as f64);
                    measured.p99.push(flood.p99.as_nanos() as f64);
                    by_kernel += if case.name == "kernel" { flood.answers.into() } else { 0 };
                }
            }
            rows.extend(told(way, at_once == 1, &cases, &all));
        }
        bed.wait_until(COUNTED, "the count of what the kernel answered", || {
            Ok(kernel.answers_of_kernel()? >= by_kernel)
        })?;
        ensure!(agent.answers_of_kernel()? == 0, "the kernel has answered for an agent");
        Ok(rows)
    }

    /// Nanoseconds of a processor for an answer, and what the client says.
    fn measure(&self, bed: &Bed, case: &Case, at_once: usize) -> Result<(f64, Flood)> {
        let spent = || case.process.map_or(Ok(Duration::ZERO), cost::cpu);
        let (services, time) = (self.options.services, self.options.seconds);
        let before = spent()?;
        let flood = flood(bed.worker(), &case.place, case.server, services, at_once, time)
            .with_context(|| case.name)?;
        let cpu = spent()? - before + flood.cpu;
        Ok((cpu.as_nanos() as f64 / f64::from(flood.answers), flood))
    }
}

/// Those of the cases in their order: the client alone, the kernel, the agent, others.
fn told(way: &'static str, one_by_one: bool, cases: &[Case], all: &[Measured]) -> Vec<Row> {
    let row = |case: &Case, metric, unit, value| {
        let mut row = Bench::row(case.name, metric, unit, value);
        row.params.insert("way", way.into());
        row
    };
    let alone = &all[0].cost;
    let rate = |cost: f64, alone: f64| 1e9 / (cost - alone).max(1.0);
    let rates: Vec<_> = all.iter().map(|one| one.cost.with(alone, rate)).collect();
    let best = Series::best(rates[3..].iter());
    let mut rows = Vec::new();
    for (place, (case, measured)) in cases.iter().zip(all).enumerate() {
        rows.push(row(case, "CPU of an answer and of its client", "ns", measured.cost.median()));
        if place == 0 {
            continue;
        }
        let baseline = match place {
            1 => Some((cases[2].name, &rates[2])),
            2 => best.as_ref().map(|best| (BEST, best)),
            _ => None,
        };
        let ratio = baseline.map(|(_, other)| rounded(rates[place].relative_to(other).median));
        let per_cpu = row(case, "per_cpu", "1/s", rates[place].median());
        rows.push(Row { baseline: baseline.map(|(name, _)| name), ratio, ..per_cpu });
        if one_by_one {
            rows.push(row(case, "p50", "us", measured.p50.median() / 1e3));
            rows.push(row(case, "p99", "us", measured.p99.median() / 1e3));
        }
    }
    rows
}
