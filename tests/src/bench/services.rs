//! New connections from a pod to a Service: how many a second, how long each takes, and how long
//! it takes until that many Services are there.
//!
//! Each case has a node of its own with a client pod and two server pods. The Service that is asked
//! is the last of its node's; where there is none, the client asks the two servers in turns.

mod fairway;
mod iptables;
mod nftables;
mod plan;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use self::plan::{Plan, TARGET_PORT};
use super::agent::Agent;
use super::bed::{self, Bed, Pod, pod_range};
use super::progress;
use super::report::{Row, rounded, table, write_json};
use super::stats::{Series, Spread};
use super::worker::{self, Client, Pattern, Sample, Server};
use crate::topology::{Backend, MOST_NODES, NodePlan};

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Numbers of Services
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,1000,10000",
        value_parser = clap::value_parser!(u32).range(1..=60_000)
    )]
    services: Vec<u32>,
    /// Measurements of each case, each beside one of plain routing
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of a measurement, in seconds
    #[arg(long, default_value = "0.1", value_parser = parse_seconds)]
    seconds: Duration,
    /// What to compare with plain routing
    #[arg(long, value_enum, value_delimiter = ',', default_value = "iptables,nftables,fairway")]
    cases: Vec<Case>,
    /// Where fairway-proxy and fairway-cni are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// A way to the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// By their own addresses, routed by the kernel: what all others are compared with.
    #[value(skip)]
    Direct,
    /// kube-proxy's rules for iptables.
    Iptables,
    /// kube-proxy's rules for nftables.
    Nftables,
    /// Fairway.
    Fairway,
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Fairway => "fairway",
        }
    }
}

/// How long it may take to make the Services.
const LOAD_LIMIT: Duration = Duration::from_secs(120);

/// Runs the benchmark, prints its table, and writes its rows if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    let others = options.cases.iter().flat_map(|case| {
        options.services.iter().map(|services| Setup { case: *case, services: *services })
    });
    let direct = Setup { case: Case::Direct, services: 0 };
    let setups: Vec<Setup> = [direct].into_iter().chain(others).collect();
    let nodes = u8::try_from(setups.len()).ok().filter(|nodes| *nodes <= MOST_NODES);
    let Some(nodes) = nodes else {
        bail!(
            "{} combinations of --cases and --services: each needs a node, and there can be {} beside direct's",
            setups.len() - 1,
            MOST_NODES - 1
        );
    };
    progress(&format!("{nodes} nodes"));
    let results = bed::run(nodes, 0, options.bin_dir.clone(), |bed| {
        let mut sites = Vec::new();
        for (index, setup) in setups.iter().enumerate() {
            let site = Site::build(bed, bed.node(index)?, *setup);
            let site = site.with_context(|| format!("set up {setup}"))?;
            if let Some(load) = site.load {
                progress(&format!("{setup}: there after {:.1} ms", millis(load)));
            }
            sites.push(site);
        }
        measure(bed, &mut sites, options)
    })?;
    println!("{}", summary(&results));
    if let Some(file) = &options.json {
        write_json(file, &rows(&results))?;
    }
    Ok(())
}

/// What one node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setup {
    case: Case,
    services: u32,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.services == 1 { "" } else { "s" };
        match self.case {
            Case::Direct => f.write_str(self.case.name()),
            case => write!(f, "{}, {} Service{plural}", case.name(), self.services),
        }
    }
}

/// A node that is ready to be measured.
struct Site {
    setup: Setup,
    client: Client,
    /// What the client asks.
    targets: Vec<SocketAddr>,
    /// From the first word about the Services to the first answer of the last of them.
    load: Option<Duration>,
    _servers: [Server; 2],
    _agent: Option<Agent>,
}

impl Site {
    fn build(bed: &Bed, node: &NodePlan, setup: Setup) -> Result<Self> {
        let agent = match setup.case {
            Case::Fairway => Some(Agent::start(bed, node, Backend::Auto, &[])?),
            Case::Direct | Case::Iptables | Case::Nftables => None,
        };
        let pod = |name: &str, number| match setup.case {
            Case::Fairway => bed.cni_pod(node, name),
            Case::Direct | Case::Iptables | Case::Nftables => bed.routed_pod(node, name, number),
        };
        let pods = [pod("server-a", 2)?, pod("server-b", 3)?];
        let endpoints = [pods[0].address, pods[1].address];
        let cpu = worker::last_cpu()?;
        let server = |pod: &Pod| {
            let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, TARGET_PORT));
            Server::start(bed.worker(), &pod.place, cpu, listen)
        };
        let servers = [server(&pods[0])?, server(&pods[1])?];
        let mut client = Client::start(bed.worker(), &pod("client", 4)?.place, cpu)?;

        let direct = endpoints.map(|endpoint| SocketAddr::from((endpoint, TARGET_PORT)));
        for target in direct {
            client.wait_for_answer(target, LOAD_LIMIT)?;
        }
        if setup.case == Case::Direct {
            let targets = direct.to_vec();
            return Ok(Self {
                setup,
                client,
                targets,
                load: None,
                _servers: servers,
                _agent: agent,
            });
        }
        let plan = Plan {
            services: setup.services,
            service_range: service_range(bed)?,
            pod_range: pod_range(node)?,
            endpoints,
        };
        let target = SocketAddr::from(plan.last());
        let load = match &agent {
            Some(agent) => timed(|| {
                agent.write("services.yaml", &fairway::manifests(&plan))?;
                client.wait_for_answer(target, LOAD_LIMIT)
            })?,
            None => {
                let (words, rules): (&[&str], _) = match setup.case {
                    Case::Iptables => (&["iptables-restore"], iptables::rules(&plan)),
                    _ => (&["nft", "-f", "-"], nftables::rules(&plan)),
                };
                timed(|| {
                    bed.run_on(node, words, &rules, LOAD_LIMIT)?;
                    client.wait_for_answer(target, LOAD_LIMIT)
                })?
            }
        };
        let targets = vec![target];
        Ok(Self { setup, client, targets, load: Some(load), _servers: servers, _agent: agent })
    }
}

/// What came of a site.
#[derive(Clone, Debug)]
struct Measured {
    setup: Setup,
    load: Option<Duration>,
    own: Samples,
    /// What plain routing did in the same moments.
    baseline: Samples,
}

/// One value a round of each metric.
#[derive(Clone, Debug, Default)]
struct Samples {
    rate: Series,
    p50: Series,
    p99: Series,
}

impl Samples {
    fn push(&mut self, sample: &Sample) {
        self.rate.push(sample.rate);
        self.p50.push(sample.p50_us);
        self.p99.push(sample.p99_us);
    }
}

/// Measures all sites in turns, each together with plain routing, which is the first of them. It
/// too: how far from 1 the ratio of the same to the same is, is how much a ratio is worth.
fn measure(bed: &Bed, sites: &mut [Site], options: &Options) -> Result<Vec<Measured>> {
    let mut results: Vec<Measured> = sites
        .iter()
        .map(|site| Measured {
            setup: site.setup,
            load: site.load,
            own: Samples::default(),
            baseline: Samples::default(),
        })
        .collect();
    for round in 0..options.rounds {
        progress(&format!("round {} of {}", round + 1, options.rounds));
        for (index, result) in results.iter_mut().enumerate() {
            bed.check()?;
            let mut sample = |index: usize| {
                let site = &mut sites[index];
                let sample =
                    site.client.measure(Pattern::Connections, &site.targets, options.seconds);
                sample.with_context(|| format!("measure {}", site.setup))
            };
            // Neither is always the first after a change.
            if round % 2 == 0 {
                result.baseline.push(&sample(DIRECT)?);
                result.own.push(&sample(index)?);
            } else {
                result.own.push(&sample(index)?);
                result.baseline.push(&sample(DIRECT)?);
            }
        }
    }
    Ok(results)
}

/// The place of [`Case::Direct`] among the sites.
const DIRECT: usize = 0;

fn rows(results: &[Measured]) -> Vec<Row> {
    let mut rows = Vec::new();
    for result in results {
        let row = |metric, unit, value| Row {
            bench: "services",
            case: result.setup.case.name(),
            params: BTreeMap::from([("services", result.setup.services.into())]),
            metric,
            unit,
            value: rounded(value),
            baseline: None,
            ratio: None,
        };
        for metric in METRICS {
            rows.push(Row {
                baseline: Some(Case::Direct.name()),
                ratio: Some(rounded(metric.ratio(result).median)),
                ..row(metric.name, metric.unit, (metric.of)(&result.own).median())
            });
        }
        rows.extend(result.load.map(|load| row("load_ms", "ms", millis(load))));
    }
    rows
}

/// A property of connections.
struct Metric {
    name: &'static str,
    unit: &'static str,
    of: fn(&Samples) -> &Series,
}

impl Metric {
    fn ratio(&self, result: &Measured) -> Spread {
        (self.of)(&result.own).relative_to((self.of)(&result.baseline))
    }
}

const RATE: Metric = Metric { name: "connections", unit: "1/s", of: |samples| &samples.rate };
const P50: Metric = Metric { name: "p50", unit: "us", of: |samples| &samples.p50 };
const P99: Metric = Metric { name: "p99", unit: "us", of: |samples| &samples.p99 };
const METRICS: [Metric; 3] = [RATE, P50, P99];

fn summary(results: &[Measured]) -> String {
    let header = [
        "case",
        "services",
        "conn/s",
        "ratio",
        "half of them",
        "p50 us",
        "ratio",
        "p99 us",
        "ratio",
        "load ms",
    ];
    let lines = results.iter().map(|result| {
        let value = |metric: &Metric| (metric.of)(&result.own).median();
        let ratio = |metric: &Metric| format!("{:.2}", metric.ratio(result).median);
        let rates = RATE.ratio(result);
        vec![
            result.setup.case.name().to_owned(),
            match result.setup.case {
                Case::Direct => String::new(),
                _ => result.setup.services.to_string(),
            },
            format!("{:.0}", value(&RATE)),
            ratio(&RATE),
            format!("{:.2} - {:.2}", rates.low, rates.high),
            format!("{:.1}", value(&P50)),
            ratio(&P50),
            format!("{:.1}", value(&P99)),
            ratio(&P99),
            result.load.map(|load| format!("{:.0}", millis(load))).unwrap_or_default(),
        ]
    });
    table(&header, lines)
}

fn service_range(bed: &Bed) -> Result<ipnet::Ipv4Net> {
    match bed.cluster.options.service_cidr.first() {
        Some(IpNet::V4(range)) => Ok(*range),
        _ => bail!("the bed has no IPv4 range for Services"),
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if !(0.01..=60.0).contains(&seconds) {
        return Err("expected 0.01 to 60 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        let mut series = Series::default();
        values.iter().for_each(|value| series.push(*value));
        series
    }

    fn samples(rates: &[f64]) -> Samples {
        let times = series(&rates.iter().map(|rate| 1e6 / rate).collect::<Vec<_>>());
        Samples { rate: series(rates), p50: times.clone(), p99: times }
    }

    #[test]
    fn rows_and_table_show_medians_and_ratios_of_the_same_moments() {
        let direct = [10_000.0, 20_000.0, 10_000.0];
        let result = |case, services, load: Option<u64>, rates: &[f64]| Measured {
            setup: Setup { case, services },
            load: load.map(Duration::from_millis),
            own: samples(rates),
            baseline: samples(&direct),
        };
        let results = [
            result(Case::Direct, 0, None, &direct),
            result(Case::Fairway, 10_000, Some(321), &[11_000.0, 20_000.0, 8_000.0]),
        ];

        let rows = rows(&results);
        let find = |case, metric| {
            let mut rows = rows.iter();
            rows.find(|row| row.case == case && row.metric == metric).unwrap()
        };
        assert_eq!(rows.len(), 7);
        let rate = find("fairway", "connections");
        assert_eq!((rate.value, rate.baseline, rate.ratio), (11_000.0, Some("direct"), Some(1.0)));
        assert_eq!(rate.params["services"], 10_000);
        assert_eq!(find("direct", "p99").ratio, Some(1.0));
        let load = find("fairway", "load_ms");
        assert_eq!((load.value, load.baseline, load.ratio), (321.0, None, None));

        assert_eq!(
            summary(&results),
            "\
| case    | services | conn/s | ratio | half of them | p50 us | ratio | p99 us | ratio | load ms |
|---------|---------:|-------:|------:|-------------:|-------:|------:|-------:|------:|--------:|
| direct  |          |  10000 |  1.00 |  1.00 - 1.00 |  100.0 |  1.00 |  100.0 |  1.00 |         |
| fairway |    10000 |  11000 |  1.00 |  0.90 - 1.05 |   90.9 |  1.00 |   90.9 |  1.00 |     321 |"
        );
    }
}
