//! What nodes make of manifests: the control plane's model of them, each node's tables, and what those decide.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::PathBuf;

use fairway_abi::{Address, TunnelEnd, V4, V6, config, protocol, route};
use fairway_compile::policy::{self, Family, LocalPod, Numbers, RuleName, compile};
use fairway_controlplane::explain;
use fairway_controlplane::manifests::{self, DEFAULT_NODE_PORTS};
use fairway_core::memory::Memory;
use fairway_core::policy::ask;
use fairway_model::{Model, ObjectName};
use fairway_tests::policy::oracle::{Cluster, Flow, Pod, Protocol};
use ipnet::IpNet;
use serde_json::{Value, json};
use tempfile::TempDir;

/// All nodes of a cluster, and what they have numbered so far.
#[derive(Default)]
pub(crate) struct Nodes {
    numbers: BTreeMap<String, Numbers>,
    tables: BTreeMap<String, Tables>,
}

struct Tables {
    v4: Memory<V4>,
    v6: Memory<V6>,
    rules: BTreeMap<u32, RuleName>,
}

/// A file of manifests, in a folder that ends with the value.
pub(crate) struct File {
    path: PathBuf,
    _folder: TempDir,
}

impl File {
    pub(crate) fn of(objects: &[Value]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.json");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(&path, list.to_string()).unwrap();
        Self { path, _folder: folder }
    }

    /// What the control plane makes of the manifests, all of which are valid.
    pub(crate) fn model(&self) -> Model {
        let paths = std::slice::from_ref(&self.path);
        let checked = manifests::check(paths, service_cidrs(), DEFAULT_NODE_PORTS).unwrap();
        // It has its doubts about some, and does not know the galaxies that its future may bring.
        let problems = checked.problems.iter().map(ToString::to_string);
        let problems: Vec<String> = problems
            .filter(|text| !text.contains("warning: ") && !text.contains("galaxies"))
            .collect();
        assert_eq!(problems, [""; 0]);
        checked.model.validate().unwrap();
        checked.model
    }

    /// What it tells people who ask.
    pub(crate) fn explanation(&self) -> Explanation {
        let paths = std::slice::from_ref(&self.path);
        let (cluster, _) =
            explain::Cluster::read(paths, service_cidrs(), DEFAULT_NODE_PORTS).unwrap();
        Explanation(cluster)
    }
}

fn service_cidrs() -> Vec<IpNet> {
    ["10.96.0.0/12", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap()).to_vec()
}

/// What `fairway-controlplane explain` says.
pub(crate) struct Explanation(explain::Cluster);

impl Explanation {
    /// Whether it says that a flow is let through.
    pub(crate) fn allows(&mut self, flow: &Flow) -> bool {
        let protocol = match flow.protocol {
            Protocol::Tcp => Some(fairway_model::Protocol::Tcp),
            Protocol::Udp => Some(fairway_model::Protocol::Udp),
            Protocol::Sctp => Some(fairway_model::Protocol::Sctp),
            Protocol::Icmp => None,
        };
        let port = protocol
            .map_or(explain::Port::Icmp, |protocol| explain::Port::Number(flow.port, protocol));
        let to = explain::Destination { who: explain::Who::Address(flow.to), port };
        let answers = self.0.explain(&explain::Who::Address(flow.from), &to).unwrap();
        assert_eq!(answers.len(), 1, "{flow:?}: {answers:?}");
        answers[0].allowed
    }
}

impl Nodes {
    /// Brings all nodes to what manifests say.
    pub(crate) fn update(&mut self, cluster: &Cluster, model: &Model) {
        for node in &cluster.nodes {
            let is_here = |pod: &&Pod| pod.node == node.name && pod.counts();
            let local = cluster.pods.iter().filter(is_here).map(|pod| LocalPod {
                name: ObjectName::new(&pod.namespace, &pod.name),
                uid: pod.uid.clone(),
                addresses: pod.addresses.clone(),
            });
            let local: Vec<LocalPod> = local.collect();
            let numbers = self.numbers.entry(node.name.clone()).or_default();
            let compiled = compile(model, &node.name, &local, numbers);
            let mut flags = 0;
            if cluster.policed_to_node {
                flags |= config::POLICED_TO_NODE;
            }
            let own = |address: &IpAddr| match address {
                IpAddr::V4(address) => (Some(address.octets()), None),
                IpAddr::V6(address) => (None, Some(address.octets())),
            };
            let (v4, v6): (Vec<_>, Vec<_>) = node.addresses.iter().map(own).unzip();
            let tables = Tables {
                v4: memory(&compiled.v4, &compiled, flags, v4),
                v6: memory(&compiled.v6, &compiled, flags, v6),
                rules: compiled.rules,
            };
            self.tables.insert(node.name.clone(), tables);
        }
    }

    /// Whether a flow is let through: by the node where it begins, if it begins at a pod, and the one where
    /// it ends. Otherwise who says no, and by which rule.
    pub(crate) fn verdict(&self, cluster: &Cluster, flow: &Flow) -> Result<(), String> {
        let client = cluster.pod_at(flow.from).map(|pod| pod.node.as_str());
        let endpoint = cluster.pod_at(flow.to).map(|pod| pod.node.as_str());
        // What a socket of the node sends is not asked about on the way to a pod of the node.
        let endpoint = endpoint.filter(|_| !flow.by_own_node);
        for node in client.into_iter().chain(endpoint.filter(|node| Some(*node) != client)) {
            let tables = &self.tables[node];
            let answer = match (flow.from, flow.to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    question(&tables.v4, &from.octets(), &to.octets(), flow)
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    question(&tables.v6, &from.octets(), &to.octets(), flow)
                }
                _ => panic!("{flow:?} is of two families"),
            };
            if let Err(rule) = answer {
                return Err(format!("{node}, {:?}", tables.rules.get(&rule)));
            }
        }
        Ok(())
    }
}

fn question<A: Address + Hash>(
    tables: &Memory<A>,
    from: &A,
    to: &A,
    flow: &Flow,
) -> Result<(), u32> {
    let (protocol, port) = match flow.protocol {
        Protocol::Tcp => (protocol::TCP, Some(flow.port.into())),
        Protocol::Udp => (protocol::UDP, Some(flow.port.into())),
        Protocol::Sctp => (protocol::SCTP, Some(flow.port.into())),
        Protocol::Icmp if A::WIDTH == V4::WIDTH => (protocol::ICMP, None),
        Protocol::Icmp => (protocol::ICMPV6, None),
    };
    let answer = ask(tables, from, to, protocol, port);
    answer.map(drop).map_err(|(_, verdict)| verdict & fairway_abi::ruling::RULE)
}

fn memory<A: Address + Hash + Ord>(
    family: &Family<A>,
    compiled: &policy::Tables,
    flags: u32,
    own: Vec<Option<A>>,
) -> Memory<A> {
    let mut memory = Memory::<A>::default();
    memory.config.flags = flags;
    if !family.subjects.is_empty() {
        memory.config.flags |= config::POLICED;
    }
    memory.subjects =
        family.subjects.iter().map(|(address, subject)| (*address, *subject)).collect();
    memory.identities =
        family.identities.iter().map(|(address, identity)| (*address, *identity)).collect();
    let blocks = family.blocks.iter();
    memory.blocks =
        blocks.map(|((address, bits), identity)| (*address, u32::from(*bits), *identity)).collect();
    memory.rulings = compiled.rulings.iter().map(|(key, ruling)| (*key, *ruling)).collect();
    let host = fairway_abi::Route {
        kind: route::HOST.into(),
        source: A::UNSPECIFIED,
        peer: TunnelEnd::default(),
    };
    memory.routes = own.into_iter().flatten().map(|address| (A::WIDTH, address, host)).collect();
    memory
}
