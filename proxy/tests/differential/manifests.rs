//! Manifests with policies, of random clusters, through the loaded programs: what becomes of each beginning of a
//! conversation, at the node of its client and at that of its endpoint, is what the specification says of it.
//!
//! ```text
//! manifests ─┬─► oracle ───────────────────────────────────────────────────────────► verdict ─┐
//!            └─► control plane ─► model ─► a node's tables ─► kernel ◄─ packet ─► program ────┴─ the same
//! ```
//!
//! The oracle knows none of our types, and what it says is compared with the reason for which a packet is dropped.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::path::Path;

use fairway_abi::{DropReason, Pod, Route, TunnelEnd, V4, V6, config, flow, route};
use fairway_compile::policy::{self, LocalPod, Numbers, compile};
use fairway_controlplane::manifests::{DEFAULT_NODE_PORTS, check};
use fairway_core::memory::Memory;
use fairway_core::packet::tcp;
use fairway_model::{Model, ObjectName};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

use crate::frame::{Builder, Transport};
use crate::generate::{OUTSIDE, PORTS, cluster, policies};
use crate::kernel::{Kernel, SHOT, Side};
use crate::oracle::{Cluster, Direction, Flow, Node, Protocol, Verdict};
use crate::sandbox::sandbox;
use crate::world::{install, remove};

#[test]
fn programs_do_what_manifests_say_over_ipv4() {
    sandbox(|bpffs| compare::<V4>(bpffs, |tables| &tables.v4));
}

#[test]
fn programs_do_what_manifests_say_over_ipv6() {
    sandbox(|bpffs| compare::<V6>(bpffs, |tables| &tables.v6));
}

/// How many clusters are tried, and how often as many again, should they have had too little of something.
const CLUSTERS: u32 = 16;
const ROUNDS: usize = 8;
/// That many packets are to be denied at egress, at ingress, and allowed.
const ENOUGH: u32 = 500;

/// Of clients.
const FIRST_PORT: u16 = 10_000;
const PORTS_IN_USE: u32 = 50_000;
/// Whoever a packet is for.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];

/// A family, to those who read frames and to those who make tables.
trait Both: Side + fairway_compile::Family {}

impl Both for V4 {}

impl Both for V6 {}

fn compare<A: Both>(bpffs: &Path, family: fn(&policy::Tables) -> &policy::Family<A>) {
    let kernel = RefCell::new(Kernel::<A>::start(bpffs));
    let (revision, ports) = (Cell::new(0), Cell::new(0_u32));
    let seen = RefCell::new([0_u32; 3]);
    let config = Config { failure_persistence: None, ..Config::with_cases(CLUSTERS) };
    let story = (cluster(), policies(), any::<bool>(), any::<bool>());
    let mut runner = TestRunner::new(config.clone());
    for _ in 0..ROUNDS {
        if seen.borrow().iter().all(|count| *count > ENOUGH) {
            break;
        }
        let rng = runner.new_rng();
        runner = TestRunner::new_with_rng(config.clone(), rng);
        let result = runner.run(&story, |(pods, rules, policed_to_node, masquerade)| {
            let mut kernel = kernel.borrow_mut();
            let objects = [pods, rules].concat();
            let mut cluster = Cluster::read(&objects).expect("manifests that can be read");
            cluster.policed_to_node = policed_to_node;
            let model = model(&objects);
            let mut wrong = Vec::new();
            for node in &cluster.nodes {
                let tables =
                    compile(&model, &node.name, &local(&cluster, node), &mut Numbers::default());
                let mut memory =
                    memory(&cluster, node, family(&tables), &tables, masquerade, &kernel);
                // Flows of the cluster before are asked about again.
                revision.set(revision.get() + 1);
                memory.config.policy = (!flow::REVISION + 1).wrapping_mul(revision.get());
                install(&memory, &mut kernel);
                tables.rules.keys().for_each(|rule| kernel.count_rule(*rule));
                for flow in flows::<A>(&cluster) {
                    // A client port of its own, so that no two have to do with each other.
                    let port = FIRST_PORT + u16::try_from(ports.get() % PORTS_IN_USE).expect("few");
                    ports.set(ports.get() + 1);
                    let asked = ask(&cluster, node, &flow, port, &mut kernel);
                    let Some((expected, found)) = asked else { continue };
                    let at = match expected {
                        Some(DropReason::PolicyEgress) => 0,
                        Some(_) => 1,
                        None => 2,
                    };
                    seen.borrow_mut()[at] += 1;
                    if expected != found {
                        wrong.push(format!(
                            "{} of {flow:?}: {found:?}, not {expected:?}",
                            node.name
                        ));
                    }
                }
                remove(&memory, &mut kernel);
                memory.pods.keys().for_each(|pod| kernel.tables.pods.remove(pod));
            }
            if wrong.is_empty() {
                return Ok(());
            }
            let objects: Vec<String> = objects.iter().map(Value::to_string).collect();
            let (count, some) = (wrong.len(), &wrong[..wrong.len().min(5)]);
            let some = some.join("\n");
            Err(TestCaseError::fail(format!(
                "{count} differ, as\n{some}\nwith\n{}",
                objects.join("\n")
            )))
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    }
    let seen = seen.into_inner();
    let enough = seen.iter().all(|count| *count > ENOUGH);
    assert!(enough, "denied at egress, ingress; allowed: {seen:?}");
}

/// What the control plane makes of manifests.
fn model(objects: &[Value]) -> Model {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("all.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(&path, list.to_string()).expect("a file");
    let services: Vec<IpNet> =
        ["10.96.0.0/12", "fd00:96::/112"].map(|cidr| cidr.parse().expect("a range")).to_vec();
    check(&[path], services, DEFAULT_NODE_PORTS).expect("manifests that can be read").model
}

/// The pods of a node.
fn local(cluster: &Cluster, node: &Node) -> Vec<LocalPod> {
    let here = cluster.pods.iter().filter(|pod| pod.node == node.name && pod.counts());
    here.map(|pod| LocalPod {
        name: ObjectName::new(&pod.namespace, &pod.name),
        uid: pod.uid.clone(),
        addresses: pod.addresses.clone(),
    })
    .collect()
}

/// A node's tables: its pods are behind one device, and all others out in the network.
fn memory<A: Both>(
    cluster: &Cluster,
    node: &Node,
    family: &policy::Family<A>,
    tables: &policy::Tables,
    masquerade: bool,
    kernel: &Kernel<A>,
) -> Memory<A> {
    let mut memory = Memory::<A>::default();
    if cluster.policed_to_node {
        memory.config.flags |= config::POLICED_TO_NODE;
    }
    if !family.subjects.is_empty() {
        memory.config.flags |= config::POLICED;
    }
    let route =
        |kind: u32| Route { kind: kind.into(), source: A::UNSPECIFIED, peer: TunnelEnd::default() };
    for other in &cluster.nodes {
        let kind = if other.name == node.name { route::HOST } else { route::DIRECT };
        let addresses = other.addresses.iter().filter_map(|address| A::of(*address));
        memory.routes.extend(addresses.map(|address| (A::ADDRESS_BITS, address, route(kind))));
    }
    for pod in cluster.pods.iter().filter(|pod| pod.counts()) {
        for address in pod.addresses.iter().filter_map(|address| A::of(*address)) {
            if pod.node == node.name {
                let ifindex = kernel.devices.pods[1];
                memory.pods.insert(address, Pod { ifindex, mac: MAC, host_mac: MAC, flags: 0 });
            } else {
                memory.routes.push((A::ADDRESS_BITS, address, route(route::DIRECT)));
            }
        }
    }
    if masquerade {
        for address in &node.addresses {
            match address {
                IpAddr::V4(address) => memory.config.masquerade4 = address.octets(),
                IpAddr::V6(address) => memory.config.masquerade6 = address.octets(),
            }
        }
    }
    memory.subjects.extend(family.subjects.iter().map(|(address, subject)| (*address, *subject)));
    memory.identities.extend(family.identities.iter().map(|(address, who)| (*address, *who)));
    let blocks = family.blocks.iter();
    memory.blocks =
        blocks.map(|((address, bits), who)| (*address, u32::from(*bits), *who)).collect();
    memory.rulings.extend(tables.rulings.iter().map(|(key, ruling)| (*key, *ruling)));
    memory
}

/// All beginnings of conversations of a family in which a pod is concerned.
fn flows<A: Both>(cluster: &Cluster) -> Vec<Flow> {
    let pods = cluster.pods.iter().flat_map(|pod| pod.addresses.iter().copied());
    let nodes = cluster.nodes.iter().flat_map(|node| node.addresses.iter().copied());
    let outside = OUTSIDE.iter().map(|address| address.parse().expect("an address"));
    let mut everybody: Vec<IpAddr> = pods.chain(nodes).chain(outside).collect();
    everybody.retain(|address| A::of(*address).is_some());
    everybody.sort_unstable();
    everybody.dedup();
    let mut questions = vec![(Protocol::Icmp, 0)];
    for port in PORTS {
        questions.extend([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|of| (of, port)));
    }
    let mut flows = Vec::new();
    for (from, to) in everybody.iter().flat_map(|from| everybody.iter().map(move |to| (*from, *to)))
    {
        let pod = cluster.pod_at(to);
        if pod.is_none() && cluster.pod_at(from).is_none() {
            continue;
        }
        let own = pod.and_then(|pod| cluster.nodes.iter().find(|node| node.name == pod.node));
        let is_own = own.is_some_and(|node| node.addresses.contains(&from));
        for (protocol, port) in &questions {
            let flow = Flow { from, to, protocol: *protocol, port: *port, by_own_node: false };
            flows.push(flow);
            if is_own {
                flows.push(Flow { by_own_node: true, ..flow });
            }
        }
    }
    flows
}

/// Why the first packet of a flow is to be dropped on this node, and why it was; `None`: it does not come here.
/// `port` is the client's.
fn ask<A: Both>(
    cluster: &Cluster,
    node: &Node,
    flow: &Flow,
    port: u16,
    kernel: &mut Kernel<A>,
) -> Option<(Option<DropReason>, Option<DropReason>)> {
    let is_here = |address: IpAddr| cluster.pod_at(address).is_some_and(|p| p.node == node.name);
    let (sends, receives) = (is_here(flow.from), is_here(flow.to));
    let (from, to) = (A::of(flow.from)?, A::of(flow.to)?);
    let [client, _] = kernel.devices.pods;
    let (program, device) = match (sends, receives, flow.by_own_node) {
        (true, ..) => {
            kernel.add_interface(client, &from.interface());
            ("pod_ingress", client)
        }
        (_, true, true) => ("pod_egress", kernel.devices.pods[1]),
        (_, true, false) => ("uplink_ingress", kernel.devices.uplink),
        (_, false, _) => return None,
    };
    let expected = match cluster.verdict(flow) {
        Verdict::Deny { at: Direction::Egress, .. } if sends => Some(DropReason::PolicyEgress),
        // Its endpoint's own node is asked, too.
        Verdict::Deny { at: Direction::Ingress, .. } if receives => Some(DropReason::PolicyIngress),
        // What its client's node forbids does not come so far; what is to become of it here, nobody says.
        Verdict::Deny { at: Direction::Egress, .. } => return None,
        Verdict::Deny { at: Direction::Ingress, .. } | Verdict::Allow => None,
    };
    let ends = ((from, port), (to, flow.port));
    let packet = match flow.protocol {
        Protocol::Tcp => Builder::tcp(tcp::SYN, ends.0, ends.1),
        Protocol::Udp => Builder::udp(ends.0, ends.1),
        Protocol::Sctp => Builder::new(Transport::Sctp, ends.0, ends.1),
        Protocol::Icmp => Builder::ping(from, to, port),
    };
    let outcome = kernel.classify(program, device, &packet.frame().bytes);
    assert_eq!(outcome.action == SHOT, outcome.dropped.is_some(), "{flow:?}: {outcome:?}");
    Some((expected, outcome.dropped))
}
