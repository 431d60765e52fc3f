//! Connections and requests to a Service: how many a second, how long each takes, and how long it
//! takes until that many Services are there. From a pod and from outside, to endpoints on the node that
//! is asked and on another one.
//!
//! Each case has a node of its own at each number of Services, with a client pod and two server pods.
//! Two servers on another node, and a client outside, are shared:
//!
//! ```text
//! outside ── router ─┬─ node 1: direct              ─┐ node 2: servers, by the kernel's routes
//!                    ├─ node 4...: rules, 1 Service ─┘
//!                    └─ node n...: fairway          ── node 3: servers, by Fairway
//! ```

mod fairway;
mod iptables;
mod nftables;
mod plan;
mod plot;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use fairway_netlink::{NetNs, Netlink, Route, sysctl};
use ipnet::IpNet;

use self::plan::{Plan, TARGET_PORT, Way};
use super::agent::Agent;
use super::bed::{self, Bed, Pod, pod_range};
use super::progress;
use super::report::{Row, rounded, table, write_json};
use super::stats::{Series, Spread};
use super::worker::{self, Client, Pattern, Sample, Server};
use crate::process::Place;
use crate::topology::{Backend, MOST_NODES, NodePlan};
use crate::underlay::UPLINK;

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw connections a second over the number of Services to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Numbers of Services
    #[arg(
        long,
        visible_alias = "sizes",
        value_delimiter = ',',
        default_value = "1,1000,10000,30000",
        value_parser = clap::value_parser!(u32).range(1..=60_000)
    )]
    services: Vec<u32>,
    /// Most Services to load rules of nftables for: at 30,000 that takes minutes
    #[arg(long, value_name = "SERVICES", default_value_t = 10_000)]
    nftables_up_to: u32,
    /// Who asks whom
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_values_t = [Way::Pod, Way::Nodes, Way::Local, Way::Remote]
    )]
    ways: Vec<Way>,
    /// Measurements of each case, each beside one of plain routing
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of a measurement, in seconds
    #[arg(long, default_value = "0.05", value_parser = parse_seconds)]
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
    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Fairway => "fairway",
        }
    }
}

/// How long it may take to make the Services.
const LOAD_LIMIT: Duration = Duration::from_secs(1200);
/// How long a first answer may take apart from that.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The nodes that everybody shares: plain routing's, and those with the servers of others.
const DIRECT_NODE: usize = 0;
const FAR_NODE: usize = 1;
const FAR_FAIRWAY_NODE: usize = 2;
const SHARED_NODES: usize = 3;

/// Runs the benchmark, prints its tables, and writes its rows and its picture if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    let (setups, left_out) = setups(&options.cases, &options.services, options.nftables_up_to);
    let nodes = SHARED_NODES + setups.len() - 1;
    let nodes = u8::try_from(nodes).ok().filter(|nodes| *nodes <= MOST_NODES);
    let Some(nodes) = nodes else {
        bail!(
            "{} combinations of --cases and --services: each needs a node, and there can be {} beside the shared ones",
            setups.len() - 1,
            usize::from(MOST_NODES) - SHARED_NODES
        );
    };
    progress(&format!("{nodes} nodes"));
    let results = bed::run(nodes, 0, options.bin_dir.clone(), |bed| {
        let mut sites = Sites::build(bed, &setups)?;
        sites.measure(bed, options)
    })?;
    println!("{}\n\n{}", summary(&results), loads(&results, &left_out));
    let rows = rows(&results);
    if let Some(file) = &options.json {
        write_json(file, &rows)?;
    }
    if let Some(file) = &options.svg {
        fs::write(file, plot::svg(&rows)).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// What is measured, plain routing first, and what is not because loading it takes too long.
fn setups(cases: &[Case], sizes: &[u32], nftables_up_to: u32) -> (Vec<Setup>, Vec<Setup>) {
    let all = cases
        .iter()
        .flat_map(|case| sizes.iter().map(|services| Setup { case: *case, services: *services }));
    let (left_out, loaded): (Vec<Setup>, Vec<Setup>) =
        all.partition(|setup| setup.case == Case::Nftables && setup.services > nftables_up_to);
    let direct = Setup { case: Case::Direct, services: 0 };
    ([direct].into_iter().chain(loaded).collect(), left_out)
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

/// Two servers on a node.
struct Servers {
    addresses: [Ipv4Addr; 2],
    _processes: [Server; 2],
}

impl Servers {
    fn start(bed: &Bed, pods: [Pod; 2]) -> Result<Self> {
        let cpu = worker::last_cpu()?;
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, TARGET_PORT));
        let start = |pod: &Pod| Server::start(bed.worker(), &pod.place, cpu, listen);
        let processes = [start(&pods[0])?, start(&pods[1])?];
        Ok(Self { addresses: pods.map(|pod| pod.address), _processes: processes })
    }

    fn targets(&self) -> Vec<SocketAddr> {
        self.addresses.iter().map(|address| SocketAddr::from((*address, TARGET_PORT))).collect()
    }
}

impl Setup {
    fn number(self) -> String {
        match self.case {
            Case::Direct => String::new(),
            _ => self.services.to_string(),
        }
    }
}

/// A node that is ready to be measured.
struct Site {
    setup: Setup,
    client: Client,
    /// What is asked.
    targets: BTreeMap<Way, Vec<SocketAddr>>,
    /// From the first word about the Services to the first answer of the last of them.
    load: Option<Duration>,
    servers: Servers,
    agent: Option<Agent>,
}

/// All nodes, with the client outside.
struct Sites {
    outside: Client,
    /// Plain routing's first.
    sites: Vec<Site>,
    _far: [Servers; 2],
    _agent: Option<Agent>,
}

impl Sites {
    fn build(bed: &Bed, setups: &[Setup]) -> Result<Self> {
        let names = &bed.cluster.names;
        let cgroup = names.outside_cgroup();
        fs::create_dir_all(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        let netns = NetNs::path(&names.client_netns());
        let place = Place { netns, cgroup, beside: None };
        let mut outside = Client::start(bed.worker(), &place, worker::last_cpu()?)?;

        let number = |index: usize| match index {
            DIRECT => DIRECT_NODE,
            other => SHARED_NODES + other - 1,
        };
        let nodes: Vec<&NodePlan> =
            (0..setups.len()).map(|index| bed.node(number(index))).collect::<Result<_>>()?;
        let far = bed.node(FAR_NODE)?;
        let kernel = Servers::start(
            bed,
            [bed.routed_pod(far, "far-a", 2)?, bed.routed_pod(far, "far-b", 3)?],
        )?;
        let routed = setups.iter().zip(&nodes).filter(|(setup, _)| setup.case != Case::Fairway);
        for (_, node) in routed {
            route(bed, far, &pod_range(node)?.into(), node)?;
        }
        let ours = setups.iter().zip(&nodes).filter(|(setup, _)| setup.case == Case::Fairway);
        let ours: Vec<&NodePlan> = ours.map(|(_, node)| *node).collect();
        let far_ours = bed.node(FAR_FAIRWAY_NODE)?;
        let (fairway, agent) = if ours.is_empty() {
            let pods =
                [bed.routed_pod(far_ours, "far-a", 2)?, bed.routed_pod(far_ours, "far-b", 3)?];
            (Servers::start(bed, pods)?, None)
        } else {
            let agent = Agent::start(bed, far_ours, Backend::Auto, &ours)?;
            let pods = [bed.cni_pod(far_ours, "far-a")?, bed.cni_pod(far_ours, "far-b")?];
            (Servers::start(bed, pods)?, Some(agent))
        };
        connect_outside(bed, nodes[DIRECT], far)?;

        let mut sites = Vec::new();
        for (setup, node) in setups.iter().zip(&nodes) {
            let (peer, there) = match setup.case {
                Case::Fairway => (far_ours, &fairway),
                Case::Direct | Case::Iptables | Case::Nftables => (far, &kernel),
            };
            let site = Site::build(bed, node, *setup, peer, there, &mut outside);
            let site = site.with_context(|| format!("set up {setup}"))?;
            if let Some(load) = site.load {
                progress(&format!("{setup}: there after {:.1} ms", millis(load)));
            }
            sites.push(site);
        }
        Ok(Self { outside, sites, _far: [kernel, fairway], _agent: agent })
    }
}

/// Has a node send what is for `range` to another node.
fn route(bed: &Bed, node: &NodePlan, range: &IpNet, by: &NodePlan) -> Result<()> {
    let netns = NetNs::open(bed.host(node).netns)?;
    let gateway = by.addresses.beside(range);
    Ok(Netlink::open_in(&netns)?.replace_route(&Route { gateway, ..Route::to(*range) })?)
}

/// Lets the client outside reach the pods of plain routing's node, and through that node those of the
/// other, and has the answers come back the same way: a node port's do.
fn connect_outside(bed: &Bed, direct: &NodePlan, far: &NodePlan) -> Result<()> {
    let router = NetNs::open(NetNs::path(&bed.cluster.names.underlay_netns()))?;
    let mut router = Netlink::open_in(&router)?;
    for node in [direct, far] {
        let range = pod_range(node)?.into();
        let gateway = direct.addresses.beside(&range);
        router.replace_route(&Route { gateway, ..Route::to(range) })?;
    }
    let v4 = bed.cluster.topology.client.ips().into_iter().find(IpAddr::is_ipv4);
    route(bed, far, &v4.context("find the client's IPv4 address")?.into(), direct)
}

impl Site {
    fn build(
        bed: &Bed,
        node: &NodePlan,
        setup: Setup,
        peer: &NodePlan,
        there: &Servers,
        outside: &mut Client,
    ) -> Result<Self> {
        let agent = match setup.case {
            Case::Fairway => Some(Agent::start(bed, node, Backend::Auto, &[peer])?),
            Case::Direct | Case::Iptables | Case::Nftables => None,
        };
        let pod = |name: &str, number| match setup.case {
            Case::Fairway => bed.cni_pod(node, name),
            Case::Direct | Case::Iptables | Case::Nftables => bed.routed_pod(node, name, number),
        };
        let servers = Servers::start(bed, [pod("server-a", 2)?, pod("server-b", 3)?])?;
        let cpu = worker::last_cpu()?;
        let mut client = Client::start(bed.worker(), &pod("client", 4)?.place, cpu)?;
        if setup.case != Case::Fairway {
            route(bed, node, &pod_range(peer)?.into(), peer)?;
            // What goes back to where it came from is meant to.
            NetNs::open(bed.host(node).netns)?.run(|| {
                sysctl::set("net/ipv4/conf/all/send_redirects", "0")?;
                sysctl::set(&format!("net/ipv4/conf/{UPLINK}/send_redirects"), "0")
            })??;
        }
        for target in servers.targets().into_iter().chain(there.targets()) {
            client.wait_for_answer(target, ANSWER_LIMIT)?;
        }
        let ways = [Way::Pod, Way::Nodes, Way::Local, Way::Remote];
        let direct = |way| match way {
            Way::Pod | Way::Local => servers.targets(),
            Way::Nodes | Way::Remote => there.targets(),
        };
        let mut site = Self {
            setup,
            client,
            targets: ways.map(|way| (way, direct(way))).into(),
            load: None,
            servers,
            agent,
        };
        if setup.case != Case::Direct {
            site.load(bed, node, there)?;
        }
        for way in ways {
            let client = way_client(way, &mut site.client, outside);
            for target in &site.targets[&way] {
                let answer = client.wait_for_answer(*target, ANSWER_LIMIT);
                answer.with_context(|| format!("the way {}", way.name()))?;
            }
        }
        Ok(site)
    }

    /// Makes the Services.
    fn load(&mut self, bed: &Bed, node: &NodePlan, there: &Servers) -> Result<()> {
        let IpAddr::V4(address) = node.addresses.ips()[0] else {
            bail!("{} has no IPv4 address", node.name);
        };
        let plan = Plan {
            services: self.setup.services,
            service_range: service_range(bed)?,
            pod_range: pod_range(node)?,
            node: address,
            here: self.servers.addresses,
            there: there.addresses,
        };
        for (way, targets) in &mut self.targets {
            *targets = vec![plan.target(*way).into()];
        }
        let last = SocketAddr::from(plan.target(Way::Pod));
        let client = &mut self.client;
        let load = match &self.agent {
            Some(agent) => {
                let manifests = fairway::manifests(&plan);
                timed(|| {
                    agent.write("services.yaml", &manifests)?;
                    client.wait_for_answer(last, LOAD_LIMIT)
                })?
            }
            None => {
                let (words, rules): (&[&str], _) = match self.setup.case {
                    Case::Iptables => (&["iptables-restore"], iptables::rules(&plan)),
                    _ => (&["nft", "-f", "-"], nftables::rules(&plan)),
                };
                timed(|| {
                    bed.run_on(node, words, &rules, LOAD_LIMIT)?;
                    client.wait_for_answer(last, LOAD_LIMIT)
                })?
            }
        };
        self.load = Some(load);
        Ok(())
    }
}

/// Who asks on this way.
fn way_client<'a>(way: Way, pod: &'a mut Client, outside: &'a mut Client) -> &'a mut Client {
    match way {
        Way::Pod | Way::Nodes => pod,
        Way::Local | Way::Remote => outside,
    }
}

/// What came of a way at a site.
#[derive(Clone, Debug)]
struct Measured {
    setup: Setup,
    way: Way,
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
    requests: Series,
}

impl Samples {
    fn push(&mut self, pattern: Pattern, sample: &Sample) {
        if pattern == Pattern::Requests {
            return self.requests.push(sample.rate);
        }
        self.rate.push(sample.rate);
        self.p50.push(sample.p50_us);
        self.p99.push(sample.p99_us);
    }
}

impl Sites {
    /// Measures all ways at all sites in turns, each together with plain routing. That too: how far
    /// from 1 the ratio of the same to the same is, is how much a ratio is worth.
    fn measure(&mut self, bed: &Bed, options: &Options) -> Result<Vec<Measured>> {
        let mut results = Vec::new();
        for way in &options.ways {
            results.extend(self.sites.iter().enumerate().map(|(index, site)| {
                let empty = Samples::default;
                let (setup, load) = (site.setup, site.load);
                (index, Measured { setup, way: *way, load, own: empty(), baseline: empty() })
            }));
        }
        for round in 0..options.rounds {
            progress(&format!("round {} of {}", round + 1, options.rounds));
            for (index, result) in &mut results {
                for pattern in [Pattern::Connections, Pattern::Requests] {
                    bed.check()?;
                    let mut pair = [(*index, &mut result.own), (DIRECT, &mut result.baseline)];
                    if round % 2 == 0 {
                        pair.reverse(); // neither is always the first after a change
                    }
                    for (index, samples) in pair {
                        let sample = self.sample(index, result.way, pattern, options.seconds)?;
                        samples.push(pattern, &sample);
                    }
                }
            }
        }
        Ok(results.into_iter().map(|(_, measured)| measured).collect())
    }

    fn sample(
        &mut self,
        site: usize,
        way: Way,
        pattern: Pattern,
        time: Duration,
    ) -> Result<Sample> {
        let site = &mut self.sites[site];
        let client = way_client(way, &mut site.client, &mut self.outside);
        let sample = client.measure(pattern, &site.targets[&way], time);
        sample.with_context(|| format!("measure {}, way {}", site.setup, way.name()))
    }
}

/// The place of [`Case::Direct`] among the sites.
const DIRECT: usize = 0;

fn rows(results: &[Measured]) -> Vec<Row> {
    let mut rows = Vec::new();
    for result in results {
        let row = |metric, unit, value| Row {
            bench: "services",
            case: result.setup.case.name(),
            params: BTreeMap::from([
                ("services", u64::from(result.setup.services).into()),
                ("way", result.way.name().into()),
            ]),
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
const REQUESTS: Metric = Metric { name: "requests", unit: "1/s", of: |samples| &samples.requests };
const METRICS: [Metric; 4] = [RATE, P50, P99, REQUESTS];

fn summary(results: &[Measured]) -> String {
    let header = [
        "way, case",
        "services",
        "conn/s",
        "ratio",
        "half of them",
        "p50 us",
        "ratio",
        "p99 us",
        "ratio",
        "req/s",
        "ratio",
        "half of them",
    ];
    let lines = results.iter().map(|result| {
        let value = |metric: &Metric| (metric.of)(&result.own).median();
        let ratio = |metric: &Metric| format!("{:.2}", metric.ratio(result).median);
        let half = |metric: &Metric| {
            let spread = metric.ratio(result);
            format!("{:.2} - {:.2}", spread.low, spread.high)
        };
        vec![
            format!("{}, {}", result.way.name(), result.setup.case.name()),
            result.setup.number(),
            format!("{:.0}", value(&RATE)),
            ratio(&RATE),
            half(&RATE),
            format!("{:.1}", value(&P50)),
            ratio(&P50),
            format!("{:.1}", value(&P99)),
            ratio(&P99),
            format!("{:.0}", value(&REQUESTS)),
            ratio(&REQUESTS),
            half(&REQUESTS),
        ]
    });
    table(&header, lines)
}

/// How long the Services took, and what was left out because of that.
fn loads(results: &[Measured], left_out: &[Setup]) -> String {
    let mut loads: Vec<(Setup, f64)> = Vec::new();
    for result in results {
        let known = loads.iter().any(|(setup, _)| *setup == result.setup);
        loads.extend(result.load.filter(|_| !known).map(|load| (result.setup, millis(load))));
    }
    let measured = loads.iter().map(|(setup, load)| {
        vec![setup.case.name().to_owned(), setup.number(), format!("{load:.0}")]
    });
    let estimated = left_out.iter().map(|setup| {
        let of_case = loads.iter().filter(|(other, _)| other.case == setup.case);
        let points: Vec<(f64, f64)> =
            of_case.map(|(other, load)| (other.services.into(), *load)).collect();
        let load = match estimate(&points, setup.services.into()) {
            Some(load) => format!("not loaded: takes about {:.0} minutes", (load / 6e4).max(1.0)),
            None => "not loaded".to_owned(),
        };
        vec![setup.case.name().to_owned(), setup.number(), load]
    });
    table(&["case", "services", "load ms"], measured.chain(estimated))
}

/// Where the power law through the two points furthest out leads; none without two.
fn estimate(points: &[(f64, f64)], at: f64) -> Option<f64> {
    let mut points = points.to_vec();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [.., (x1, y1), (x2, y2)] = points[..] else { return None };
    let power = (y2 / y1).ln() / (x2 / x1).ln();
    Some(y2 * (at / x2).powf(power)).filter(|estimate| estimate.is_finite())
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
        Samples { rate: series(rates), p50: times.clone(), p99: times, requests: series(rates) }
    }

    #[test]
    fn rows_and_table_show_medians_and_ratios_of_the_same_moments() {
        let direct = [10_000.0, 20_000.0, 10_000.0];
        let result = |case, services, load: Option<u64>, rates: &[f64]| Measured {
            setup: Setup { case, services },
            way: Way::Remote,
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
        assert_eq!(rows.len(), 9);
        let rate = find("fairway", "connections");
        assert_eq!((rate.value, rate.baseline, rate.ratio), (11_000.0, Some("direct"), Some(1.0)));
        assert_eq!(rate.params["services"], 10_000.into());
        assert_eq!(find("direct", "p99").ratio, Some(1.0));
        let load = find("fairway", "load_ms");
        assert_eq!((load.value, load.baseline, load.ratio), (321.0, None, None));

        assert_eq!(
            summary(&results),
            "\
| way, case       | services | conn/s | ratio | half of them | p50 us | ratio | p99 us | ratio | req/s | ratio | half of them |
|-----------------|---------:|-------:|------:|-------------:|-------:|------:|-------:|------:|------:|------:|-------------:|
| remote, direct  |          |  10000 |  1.00 |  1.00 - 1.00 |  100.0 |  1.00 |  100.0 |  1.00 | 10000 |  1.00 |  1.00 - 1.00 |
| remote, fairway |    10000 |  11000 |  1.00 |  0.90 - 1.05 |   90.9 |  1.00 |   90.9 |  1.00 | 11000 |  1.00 |  0.90 - 1.05 |"
        );
        let left_out = [Setup { case: Case::Nftables, services: 30_000 }];
        assert_eq!(
            loads(&results, &left_out),
            "\
| case     | services |    load ms |
|----------|---------:|-----------:|
| fairway  |    10000 |        321 |
| nftables |    30000 | not loaded |"
        );
    }

    #[test]
    fn what_takes_minutes_is_left_out_and_the_rest_has_a_node_each() {
        let cases = [Case::Nftables, Case::Fairway];
        let (loaded, left_out) = setups(&cases, &[1, 10_000, 30_000], 10_000);
        let setup = |case, services| Setup { case, services };
        assert_eq!(
            loaded,
            [
                setup(Case::Direct, 0),
                setup(Case::Nftables, 1),
                setup(Case::Nftables, 10_000),
                setup(Case::Fairway, 1),
                setup(Case::Fairway, 10_000),
                setup(Case::Fairway, 30_000),
            ]
        );
        assert_eq!(left_out, [setup(Case::Nftables, 30_000)]);
        assert_eq!(setups(&cases, &[30_000], 30_000).1, []);
    }

    #[test]
    fn a_load_is_estimated_from_the_two_largest_that_were_measured() {
        let points = [(1.0, 5.0), (10_000.0, 40_000.0), (1_000.0, 400.0)];
        let estimate = |points: &[(f64, f64)]| estimate(points, 30_000.0);
        assert!((estimate(&points).unwrap() - 360_000.0).abs() < 1.0);
        assert_eq!(estimate(&points[..1]), None);
    }
}
