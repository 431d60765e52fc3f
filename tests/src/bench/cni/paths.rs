//! Traffic between two pods, Fairway's way and the kernel's, as pairs of the same shape.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use fairway_netlink::NetNs;

use crate::bench::agent::Agent;
use crate::bench::bed::Bed;
use crate::bench::progress;
use crate::bench::report::{Row, rounded, table};
use crate::bench::stats::Series;
use crate::bench::worker::{self, Client, Pattern, Server};
use crate::flannel;
use crate::topology::{Backend, NodePlan};

/// Nodes of Fairway's: one, two with routes, two with VXLAN. As many more follow for the kernel.
const EACH: u8 = 5;
pub(super) const NODES: u8 = 2 * EACH;
pub(super) const FLANNEL_NODES: u8 = EACH;

/// A free port.
const PORT: u16 = 8080;
/// How long a first answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where client and server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    OneNode,
    Routes,
    Vxlan,
}

const PATHS: [Path; 3] = [Path::OneNode, Path::Routes, Path::Vxlan];

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::OneNode => "one node",
            Self::Routes => "routes",
            Self::Vxlan => "vxlan",
        }
    }

    /// The first node, and what tells the nodes of each other.
    fn place(self) -> (usize, usize, Backend) {
        match self {
            Self::OneNode => (0, 0, Backend::Auto),
            Self::Routes => (1, 2, Backend::HostGw),
            Self::Vxlan => (3, 4, Backend::Vxlan),
        }
    }
}

/// A client and a server that are ready.
struct Site {
    client: Client,
    target: SocketAddr,
    _server: Server,
    _agents: Vec<Agent>,
}

impl Site {
    fn fairway(bed: &Bed, path: Path) -> Result<Self> {
        let (first, second, backend) = path.place();
        let nodes = [bed.node(first)?, bed.node(second)?];
        let agents = if first == second {
            vec![Agent::start(bed, nodes[0], backend, &[])?]
        } else {
            vec![
                Agent::start(bed, nodes[0], backend, &[nodes[1]])?,
                Agent::start(bed, nodes[1], backend, &[nodes[0]])?,
            ]
        };
        Self::build(bed, nodes, agents)
    }

    fn kernel(bed: &Bed, path: Path) -> Result<Self> {
        let (first, second, _) = path.place();
        let each = usize::from(EACH);
        let nodes = [bed.node(each + first)?, bed.node(each + second)?];
        for (node, peer) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
            let netns = NetNs::open(bed.host(node).netns)?;
            match path {
                Path::OneNode => {}
                Path::Routes => {
                    let gateway = peer.addresses.ips()[0];
                    let pods = peer.pod_cidrs.iter().filter(|range| range.addr().is_ipv4());
                    let routes: Vec<String> =
                        pods.map(|range| format!("route replace {range} via {gateway}")).collect();
                    flannel::batch(&netns, "ip", &routes)?;
                }
                Path::Vxlan => {
                    let topology = &bed.cluster.topology;
                    flannel::connect(&netns, topology, node, &flannel::devices(topology))?;
                }
            }
        }
        Self::build(bed, nodes, Vec::new())
    }

    fn build(bed: &Bed, nodes: [&NodePlan; 2], agents: Vec<Agent>) -> Result<Self> {
        let cpu = worker::last_cpu()?;
        let server = bed.cni_pod(nodes[1], "server")?;
        let client = bed.cni_pod(nodes[0], "client")?;
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
        let target = SocketAddr::from((server.address, PORT));
        let server = Server::start(bed.worker(), &server.place, cpu, listen)?;
        let mut client = Client::start(bed.worker(), &client.place, cpu)?;
        client.wait_for_answer(target, PATIENCE)?;
        Ok(Self { client, target, _server: server, _agents: agents })
    }
}

/// What is counted, and its unit.
const PATTERNS: [(Pattern, &str, &str); 3] = [
    (Pattern::Stream, "stream", "Gbit/s"),
    (Pattern::Requests, "requests", "1/s"),
    (Pattern::Connections, "connections", "1/s"),
];

/// One value a round of each pattern, in the order of [`PATTERNS`].
pub(super) struct Measured {
    path: &'static str,
    own: [Series; 3],
    kernel: [Series; 3],
}

/// Builds all pairs, and measures them in turns.
pub(super) fn measure(bed: &Bed, rounds: u32, time: Duration) -> Result<Vec<Measured>> {
    let mut sites = Vec::new();
    for path in PATHS {
        progress(&format!("{}: pods", path.name()));
        let own = Site::fairway(bed, path);
        let own = own.with_context(|| format!("set up {} with Fairway", path.name()))?;
        let kernel = Site::kernel(bed, path);
        let kernel = kernel.with_context(|| format!("set up {} with the kernel", path.name()))?;
        let measured =
            Measured { path: path.name(), own: Default::default(), kernel: Default::default() };
        sites.push(([own, kernel], measured));
    }
    for round in 0..rounds {
        progress(&format!("round {} of {rounds}", round + 1));
        for ([own, kernel], measured) in &mut sites {
            for (index, (pattern, ..)) in PATTERNS.into_iter().enumerate() {
                bed.check()?;
                let mut pair = [
                    (&mut *own, &mut measured.own[index]),
                    (&mut *kernel, &mut measured.kernel[index]),
                ];
                if round % 2 == 1 {
                    pair.reverse(); // neither is always the first after a change
                }
                for (site, series) in pair {
                    let sample = site.client.measure(pattern, &[site.target], time);
                    series.push(sample.with_context(|| measured.path)?.rate);
                }
            }
        }
    }
    Ok(sites.into_iter().map(|(_, measured)| measured).collect())
}

pub(super) fn rows(results: &[Measured]) -> Vec<Row> {
    let rows = results.iter().flat_map(|result| {
        PATTERNS.into_iter().enumerate().flat_map(|(index, (_, metric, unit))| {
            let [own, kernel] = [&result.own[index], &result.kernel[index]];
            let row = |case, value, ratio: Option<f64>| Row {
                bench: "cni",
                case,
                params: BTreeMap::from([(
                    "nodes",
                    (1 + u64::from(result.path != "one node")).into(),
                )]),
                metric,
                unit,
                value: rounded(value),
                baseline: ratio.map(|_| "kernel"),
                ratio: ratio.map(rounded),
            };
            [
                row(result.path, own.median(), Some(own.relative_to(kernel).median)),
                row("kernel", kernel.median(), None),
            ]
        })
    });
    rows.collect()
}

pub(super) fn summary(results: &[Measured]) -> String {
    let header = ["path", "measured", "unit", "kernel", "fairway", "ratio", "half of them"];
    let lines = results.iter().flat_map(|result| {
        PATTERNS.into_iter().enumerate().map(|(index, (_, metric, unit))| {
            let [own, kernel] = [&result.own[index], &result.kernel[index]];
            let ratio = own.relative_to(kernel);
            vec![
                result.path.to_owned(),
                metric.to_owned(),
                unit.to_owned(),
                rounded(kernel.median()).to_string(),
                rounded(own.median()).to_string(),
                format!("{:.2}", ratio.median),
                format!("{:.2} - {:.2}", ratio.low, ratio.high),
            ]
        })
    });
    table(&header, lines)
}
