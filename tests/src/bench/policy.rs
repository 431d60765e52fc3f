//! What policies cost: connections and requests to a pod that is restricted, beside the same pod without a policy; how
//! long a change of a policy takes; and memory where there is much to tell apart.
//!
//! The same rules are given to iptables (one after the other, or as a set of `ipset` where that is installed) and to nftables,
//! beside plain routing. Each has a node of its own, with a client pod and a server pod:
//!
//! ```text
//! client ── the node: Fairway, or routes and rules ── server, which takes the client's packets by the last rule
//! ```

mod content;
mod manifests;
mod packets;
mod plot;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use clap::Args;
use fairway_model::{Model, Node, ObjectName, Pod as ModelPod};
use fairway_netlink::NetNs;

use self::content::{Rules, TARGET_PORT};
use self::packets::Nanos;
use super::agent::Agent;
use super::bed::{self, Bed, Pod, pod_range};
use super::control::ControlPlane;
use super::progress;
use super::report::{Row, rounded, table, write_json};
use super::services::{millis, parse_seconds};
use super::stats::{Series, percentile};
use super::tables::Memory;
use super::worker::{self, Client, Pattern, Server};
use crate::process;
use crate::topology::NodePlan;

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw the connections a second over the number of rules into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Numbers of rules, each about another range and port
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000",
        value_parser = clap::value_parser!(u32).range(1..=60_000))]
    rules: Vec<u32>,
    /// Ranges of one rule more; 0 for none
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(..=120_000))]
    cidrs: u32,
    /// Most rules to give to iptables one after the other
    #[arg(long, value_name = "RULES", default_value_t = 10_000)]
    iptables_up_to: u32,
    /// Measurements of each case, each beside one without a policy
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of a measurement, in seconds
    #[arg(long, default_value = "0.05", value_parser = parse_seconds)]
    seconds: Duration,
    /// Numbers of pods of the node that the policy restricts which changes
    #[arg(long, value_delimiter = ',', default_value = "1,100",
        value_parser = clap::value_parser!(u32).range(1..=200))]
    pods: Vec<u32>,
    /// Pods of other nodes whom it lets in
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    peers: u32,
    /// Changes, one after the other
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Numbers of pods of a cluster, of which the node has a hundred at most, that a policy in a folder of manifests
    /// restricts which changes
    #[arg(long, value_delimiter = ',', default_value = "1,100,10000",
        value_parser = clap::value_parser!(u32).range(1..=200_000))]
    cluster_pods: Vec<u32>,
    /// Pods that memory is measured with, and 1,000 ranges that overlap
    #[arg(long, default_value_t = 150_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    memory: u32,
    /// Where fairway-proxy and fairway-cni are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Whose rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Fairway,
    Nftables,
    Ipset,
    Iptables,
}

impl Case {
    const ALL: [Self; 4] = [Self::Fairway, Self::Nftables, Self::Ipset, Self::Iptables];

    const fn name(self) -> &'static str {
        match self {
            Self::Fairway => "fairway",
            Self::Nftables => "nftables",
            Self::Ipset => "ipset",
            Self::Iptables => "iptables",
        }
    }
}

/// What one node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setup {
    /// `None`: routes alone.
    case: Option<Case>,
    rules: Rules,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.name(), self.rules)
    }
}

impl Setup {
    fn name(self) -> &'static str {
        self.case.map_or("routes", Case::name)
    }

    fn is_ours(self) -> bool {
        self.case == Some(Case::Fairway)
    }
}

/// The nodes without a policy, of routes and of Fairway.
const ROUTES: usize = 0;
const UNRESTRICTED: usize = 1;

/// How long rules may take.
const LOAD_LIMIT: Duration = Duration::from_secs(300);
/// How long an answer may.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long a change may.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// Between a change that is in force and the next: flows are told of changes at most twenty times a second.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at a table.
const LOOK: Duration = Duration::from_micros(200);

/// Runs the benchmark, prints its tables, and writes its rows if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    let has_ipset = match look_for_ipset() {
        Ok(()) => true,
        Err(error) => {
            progress(&format!("no sets of ipset, whose rules come one after the other: {error:#}"));
            false
        }
    };
    let setups = setups(options, has_ipset);
    let nodes = u8::try_from(setups.len() + 2).context("too many numbers of rules")?;
    let mut rows = Vec::new();
    bed::run(nodes, 0, options.bin_dir.clone(), |bed| {
        let rates = measure_rates(bed, options, &setups)?;
        println!("{}\n", rate_table(&rates));
        rows.extend(rates.iter().flat_map(Measured::rows));
        let node = bed.node(setups.len())?;
        let mut figures = measure_agent(bed, node, options)?;
        let nodes = [bed.node(setups.len() + 1)?, node];
        figures.extend(manifests::measure(bed, nodes, &options.cluster_pods, options.changes)?);
        println!("{}", figure_table(&figures));
        rows.extend(figures.iter().map(Figure::row));
        Ok(())
    })?;
    if let Some(file) = &options.svg {
        fs::write(file, plot::svg(&rows)).with_context(|| format!("write {}", file.display()))?;
    }
    options.json.as_ref().map_or(Ok(()), |file| write_json(file, &rows))
}

/// Whether sets can be made and asked by a rule, which takes a tool and two parts of the kernel. Tried in a network
/// namespace of its own.
fn look_for_ipset() -> Result<()> {
    let nowhere = NetNs::unnamed()?;
    let tries = [
        &["ipset", "create", "probe", "hash:net,port"][..],
        &["iptables", "-A", "FORWARD", "-m", "set", "--match-set", "probe", "src,dst"],
    ];
    for words in tries {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        nowhere.enter_on_spawn(&mut command)?;
        let output = process::output_within(&mut command, b"", PROBE_LIMIT)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", words.join(" "), said.trim());
    }
    Ok(())
}

/// How long a look for a tool may take.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

fn setups(options: &Options, has_ipset: bool) -> Vec<Setup> {
    let mut contents: Vec<Rules> = options.rules.iter().map(|rules| Rules::many(*rules)).collect();
    contents.extend((options.cidrs > 0).then_some(Rules::of_ranges(options.cidrs)));
    let none = |case| Setup { case, rules: Rules::NONE };
    let mut setups = vec![none(None), none(Some(Case::Fairway))];
    for case in Case::ALL {
        let is_possible = |rules: &&Rules| match case {
            Case::Fairway | Case::Nftables => true,
            Case::Ipset => has_ipset,
            Case::Iptables => rules.total() <= options.iptables_up_to,
        };
        let possible = contents.iter().filter(is_possible);
        setups.extend(possible.map(|rules| Setup { case: Some(case), rules: *rules }));
    }
    setups
}

/// A node that is ready to be measured.
struct Site {
    setup: Setup,
    client: Client,
    client_address: Ipv4Addr,
    target: SocketAddr,
    /// From the first word about the rules until the server is reached with them.
    load: Duration,
    _server: Server,
    _agent: Option<(Agent, ControlPlane)>,
}

impl Site {
    fn build(bed: &Bed, node: &NodePlan, setup: Setup) -> Result<Self> {
        let names = ["server", "client"];
        let model = model(node, &names);
        let agent = if setup.is_ours() {
            let control = ControlPlane::start(bed, node, model.clone())?;
            let mut agent = Agent::follow(bed, node, control.address)?;
            agent.wait_until_ready(bed, node)?;
            Some((agent, control))
        } else {
            None
        };
        let pod = |name: &str, number| match agent {
            Some(_) => bed.cni_pod(node, name),
            None => bed.routed_pod(node, name, number),
        };
        let (server, client) = (pod("server", 2)?, pod("client", 3)?);
        let cpu = worker::last_cpu()?;
        let target = SocketAddr::from((server.address, TARGET_PORT));
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, TARGET_PORT));
        let client_address = client.address;
        let server_process = Server::start(bed.worker(), &server.place, cpu, listen)?;
        let mut client = Client::start(bed.worker(), &client.place, cpu)?;
        client.wait_for_answer(target, ANSWER_LIMIT)?;

        let start = Instant::now();
        let rules = setup.rules;
        match (&agent, setup.case) {
            (Some((_, control)), _) if rules != Rules::NONE => {
                let mut restricted = model;
                rules.restrict(&mut restricted, node, "server")?;
                control.publish(restricted);
                let tables = Subjects::open(bed, node)?;
                tables.wait(bed, &[server.address], |now| now.is_some())?;
            }
            (None, Some(case)) => load_rules(bed, node, case, rules, server.address)?,
            _ => {}
        }
        client.wait_for_answer(target, ANSWER_LIMIT)?;
        let load = start.elapsed();
        Ok(Self {
            setup,
            client,
            client_address,
            target,
            load,
            _server: server_process,
            _agent: agent,
        })
    }

    fn sample(&mut self, pattern: Pattern, time: Duration) -> Result<f64> {
        let sample = self.client.measure(pattern, &[self.target], time);
        Ok(sample.with_context(|| format!("measure {}", self.setup))?.rate)
    }
}

fn load_rules(
    bed: &Bed,
    node: &NodePlan,
    case: Case,
    rules: Rules,
    server: Ipv4Addr,
) -> Result<()> {
    let range = pod_range(node)?;
    let run = |words: &[&str], input: &str| bed.run_on(node, words, input, LOAD_LIMIT).map(drop);
    match case {
        Case::Nftables => run(&["nft", "-f", "-"], &rules.nftables(server, range)),
        Case::Iptables => run(&["iptables-restore"], &rules.iptables(server, range)),
        Case::Ipset => {
            run(&["ipset", "restore"], &rules.ipset(range))?;
            run(&["iptables-restore"], &Rules::iptables_of_set(server))
        }
        Case::Fairway => bail!("Fairway takes models"),
    }
}

/// What a node's control plane knows before there is a policy.
fn model(node: &NodePlan, pods: &[&str]) -> Model {
    let mut model = Model::default();
    model.nodes.insert(Node {
        name: node.name.clone(),
        addresses: node.addresses.ips(),
        pod_cidrs: node.pod_cidrs.clone(),
        ..Node::default()
    });
    for pod in pods {
        model.pods.insert(ModelPod {
            name: ObjectName::new("bench", *pod),
            uid: bed::uid(node, pod),
            node: node.name.clone(),
            ..ModelPod::default()
        });
    }
    model
}

/// What came of a site.
struct Measured {
    setup: Setup,
    load: Duration,
    /// Of connections and of requests a second.
    own: [Series; 2],
    /// Without a policy, in the same moments.
    baseline: [Series; 2],
    /// Of our program that asks.
    nanos: Option<Nanos>,
}

const PATTERNS: [(Pattern, &str); 2] =
    [(Pattern::Connections, "connections"), (Pattern::Requests, "requests")];

fn measure_rates(bed: &Bed, options: &Options, setups: &[Setup]) -> Result<Vec<Measured>> {
    let mut sites = Vec::new();
    for (index, setup) in setups.iter().enumerate() {
        let site = Site::build(bed, bed.node(index)?, *setup);
        let site = site.with_context(|| format!("set up {setup}"))?;
        progress(&format!("{setup}: there after {:.0} ms", millis(site.load)));
        sites.push(site);
    }
    let mut results: Vec<Measured> = sites
        .iter()
        .map(|site| Measured {
            setup: site.setup,
            load: site.load,
            own: Default::default(),
            baseline: Default::default(),
            nanos: None,
        })
        .collect();
    progress("packets by hand");
    for (index, (site, result)) in sites.iter().zip(&mut results).enumerate() {
        if site.setup.is_ours() {
            let node = bed.node(index)?;
            let nanos =
                packets::measure(bed, node, site.client_address, site.target, options.rounds);
            result.nanos = Some(nanos.with_context(|| format!("run programs: {}", site.setup))?);
        }
    }
    for round in 0..options.rounds {
        progress(&format!("round {} of {}", round + 1, options.rounds));
        for (index, result) in results.iter_mut().enumerate() {
            let base = if result.setup.is_ours() { UNRESTRICTED } else { ROUTES };
            for (number, (pattern, _)) in PATTERNS.iter().enumerate() {
                bed.check()?;
                let mut pair =
                    [(index, &mut result.own[number]), (base, &mut result.baseline[number])];
                if round % 2 == 0 {
                    pair.reverse(); // neither is always the first after a change
                }
                for (site, series) in pair {
                    series.push(sites[site].sample(*pattern, options.seconds)?);
                }
            }
        }
    }
    Ok(results)
}

impl Measured {
    fn rows(&self) -> Vec<Row> {
        let row = |metric, unit, value| Row {
            bench: "policy",
            case: self.setup.name(),
            params: BTreeMap::from([
                ("rules", u64::from(self.setup.rules.rules).into()),
                ("cidrs", u64::from(self.setup.rules.ranges).into()),
            ]),
            metric,
            unit,
            value: rounded(value),
            baseline: None,
            ratio: None,
        };
        let mut rows = vec![row("load_ms", "ms", millis(self.load))];
        if let Some(Nanos { first, later }) = self.nanos {
            rows.extend([row("first_packet", "ns", first), row("later_packet", "ns", later)]);
        }
        for (number, (_, metric)) in PATTERNS.iter().enumerate() {
            let ratio = self.own[number].relative_to(&self.baseline[number]).median;
            rows.push(Row {
                baseline: Some("no policy"),
                ratio: Some(rounded(ratio)),
                ..row(metric, "1/s", self.own[number].median())
            });
        }
        rows
    }
}

fn rate_table(results: &[Measured]) -> String {
    let header = [
        "case, policy",
        "load ms",
        "conn/s",
        "beside none",
        "half of them",
        "req/s",
        "beside none",
        "half of them",
        "first ns",
        "later ns",
    ];
    let lines = results.iter().map(|result| {
        let mut line = vec![result.setup.to_string(), format!("{:.0}", millis(result.load))];
        for number in 0..PATTERNS.len() {
            let spread = result.own[number].relative_to(&result.baseline[number]);
            line.push(format!("{:.0}", result.own[number].median()));
            line.push(format!("{:.3}", spread.median));
            line.push(format!("{:.2} - {:.2}", spread.low, spread.high));
        }
        let nanos =
            result.nanos.map_or([None; 2], |Nanos { first, later }| [Some(first), Some(later)]);
        line.extend(nanos.map(|nanos| nanos.map_or(String::new(), |nanos| format!("{nanos:.0}"))));
        line
    });
    table(&header, lines)
}

/// The table of who is restricted, over IPv4.
struct Subjects(HashMap<MapData, [u8; 4], [u8; 8]>);

impl Subjects {
    fn open(bed: &Bed, node: &NodePlan) -> Result<Self> {
        Ok(Self(HashMap::try_from(Map::HashMap(open_table(bed, node, "subjects4")?))?))
    }

    /// Which rules hold for a pod.
    fn of(&self, address: Ipv4Addr) -> Option<[u8; 8]> {
        // What is not there is nobody's.
        self.0.get(&address.octets(), 0).ok()
    }

    /// Waits until all of these are as wanted.
    fn wait(
        &self,
        bed: &Bed,
        addresses: &[Ipv4Addr],
        mut is_wanted: impl FnMut(Option<[u8; 8]>) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        for address in addresses {
            while !is_wanted(self.of(*address)) {
                bed.check()?;
                ensure!(start.elapsed() < LOAD_LIMIT, "{address} is as before");
                thread::sleep(LOOK);
            }
        }
        Ok(())
    }
}

fn open_table(bed: &Bed, node: &NodePlan, name: &str) -> Result<MapData> {
    let pin = bed.cluster.names.node_bpffs(&node.name).join("tables").join(name);
    MapData::from_pin(&pin).with_context(|| format!("open table {}", pin.display()))
}

/// One figure of an agent.
struct Figure {
    metric: &'static str,
    unit: &'static str,
    /// With how many pods of the node or of the cluster, or with how many `rules`.
    count: u32,
    of: &'static str,
    value: f64,
}

impl Figure {
    const fn of_pods(metric: &'static str, unit: &'static str, pods: u32, value: f64) -> Self {
        Self { metric, unit, count: pods, of: "pods", value }
    }
}

impl Figure {
    fn row(&self) -> Row {
        Row {
            bench: "policy",
            case: "fairway",
            params: BTreeMap::from([(self.of, u64::from(self.count).into())]),
            metric: self.metric,
            unit: self.unit,
            value: rounded(self.value),
            baseline: None,
            ratio: None,
        }
    }
}

fn figure_table(figures: &[Figure]) -> String {
    let lines = figures.iter().map(|figure| {
        let value = rounded(figure.value).to_string();
        let with = format!("{} {}", figure.count, figure.of);
        vec![figure.metric.to_owned(), with, figure.unit.to_owned(), value]
    });
    table(&["measured", "with", "unit", "fairway"], lines)
}

/// How long changes take, and memory.
fn measure_agent(bed: &Bed, node: &NodePlan, options: &Options) -> Result<Vec<Figure>> {
    let most = options.pods.iter().copied().max().unwrap_or(1);
    let names: Vec<String> = (0..most).map(|number| format!("pod-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let base = model(node, &names);
    let control = ControlPlane::start(bed, node, base.clone())?;
    let mut agent = Agent::follow(bed, node, control.address)?;
    agent.wait_until_ready(bed, node)?;
    let mut figures = Vec::new();
    let mut memory = |metrics: [&'static str; 2], pods, agent: &Agent| -> Result<()> {
        let Memory { resident, tables, .. } = Memory::of(agent.pid())?;
        for (metric, value) in metrics.into_iter().zip([resident, tables]) {
            figures.push(Figure::of_pods(metric, "MB", pods, value));
        }
        Ok(())
    };
    memory(["resident_none", "tables_none"], 0, &agent)?;

    progress(&format!("{most} pods"));
    let pods: Vec<Pod> = names.iter().map(|name| bed.cni_pod(node, name)).collect::<Result<_>>()?;
    let addresses: Vec<Ipv4Addr> = pods.iter().map(|pod| pod.address).collect();
    let subjects = Subjects::open(bed, node)?;
    for count in &options.pods {
        progress(&format!("changes for {count} pods, and {} others", options.peers));
        let count = usize::try_from(*count)?;
        let mut times = Vec::new();
        for turn in 0..=options.changes {
            let mut next = base.clone();
            content::let_in(&mut next, &names[..count], options.peers, turn);
            let before: Vec<_> = addresses[..count].iter().map(|a| subjects.of(*a)).collect();
            let start = Instant::now();
            control.publish(next);
            for (address, before) in addresses.iter().zip(&before) {
                while subjects.of(*address) == *before {
                    bed.check()?;
                    ensure!(start.elapsed() < CHANGE_LIMIT, "no change for {address}");
                    thread::sleep(LOOK);
                }
            }
            if turn > 0 {
                times.push(millis(start.elapsed())); // the first brings the others, too
            }
            thread::sleep(PAUSE);
        }
        times.sort_by(f64::total_cmp);
        for (metric, percent) in [("change_p50", 50), ("change_p99", 99)] {
            let value = percentile(&times, percent);
            figures.push(Figure::of_pods(metric, "ms", u32::try_from(count)?, value));
        }
        control.publish(base.clone());
        subjects.wait(bed, &addresses[..count], |now| now.is_none())?;
    }

    figures.extend(measure_rules(
        bed,
        node,
        options,
        (&control, &agent, &base),
        &subjects,
        &pods[0],
    )?);

    progress(&format!("memory with {} pods and {} ranges", options.memory, content::RANGES));
    let before = Memory::of(agent.pid())?;
    let mut much = base.clone();
    content::much(&mut much, names[0], options.memory);
    let start = Instant::now();
    control.publish(much);
    subjects.wait(bed, &addresses[..1], |now| now.is_some())?;
    let took = millis(start.elapsed());
    figures.push(Figure::of_pods("load_ms", "ms", options.memory, took));
    let after = Memory::of(agent.pid())?;
    let each = each(before, after, options.memory);
    for (metric, unit, value) in [
        ("resident", "MB", after.resident),
        ("tables", "MB", after.tables),
        ("resident_identity", "B", each.resident),
        ("tables_identity", "B", each.tables),
    ] {
        figures.push(Figure::of_pods(metric, unit, options.memory, value));
    }
    Ok(figures)
}

/// Memory of one rule: of the most that connections were measured with, each about another range and port.
fn measure_rules(
    bed: &Bed,
    node: &NodePlan,
    options: &Options,
    (control, agent, base): (&ControlPlane, &Agent, &Model),
    subjects: &Subjects,
    pod: &Pod,
) -> Result<Vec<Figure>> {
    let Some(rules) = options.rules.iter().copied().max() else { return Ok(Vec::new()) };
    progress(&format!("memory with {rules} rules"));
    wait_until_swept(bed, node)?;
    let before = Memory::of(agent.pid())?;
    let mut restricted = base.clone();
    Rules::many(rules).restrict(&mut restricted, node, "pod-0")?;
    control.publish(restricted);
    subjects.wait(bed, &[pod.address], |now| now.is_some())?;
    let after = Memory::of(agent.pid())?;
    control.publish(base.clone());
    subjects.wait(bed, &[pod.address], |now| now.is_none())?;
    wait_until_swept(bed, node)?;
    let each = each(before, after, rules);
    let figure = |metric, value| Figure { metric, unit: "B", count: rules, of: "rules", value };
    Ok(vec![figure("resident_rule", each.resident), figure("tables_rule", each.tables)])
}

/// Waits until what nothing leads to any more is removed: it stays for a second.
fn wait_until_swept(bed: &Bed, node: &NodePlan) -> Result<()> {
    let rulings: HashMap<MapData, [u8; 12], [u8; 8]> =
        HashMap::try_from(Map::HashMap(open_table(bed, node, "rulings")?))?;
    bed.wait_until(CHANGE_LIMIT, "what rules say is removed", || {
        Ok(rulings.keys().next().is_none())
    })
}

/// By how many bytes memory has grown for each of so many.
fn each(before: Memory, after: Memory, count: u32) -> Memory {
    let each = |before: f64, after: f64| (after - before) * 1e6 / f64::from(count);
    Memory {
        resident: each(before.resident, after.resident),
        peak: each(before.peak, after.peak),
        tables: each(before.tables, after.tables),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_node_and_its_baseline() {
        use clap::Parser as _;

        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: Options,
        }
        let cli = Cli::parse_from(["x", "--rules=10,20", "--cidrs=30", "--iptables-up-to=20"]);
        let names = |has_ipset| -> Vec<String> {
            setups(&cli.options, has_ipset).iter().map(Setup::to_string).collect()
        };
        assert_eq!(
            names(false),
            [
                "routes, none",
                "fairway, none",
                "fairway, 10 rules",
                "fairway, 20 rules",
                "fairway, 30 CIDRs",
                "nftables, 10 rules",
                "nftables, 20 rules",
                "nftables, 30 CIDRs",
                "iptables, 10 rules",
                "iptables, 20 rules",
            ]
        );
        assert_eq!(names(true).len(), 13);
    }
}
