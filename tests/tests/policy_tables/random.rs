//! Random clusters and policies, one after the other.

use std::net::IpAddr;

use fairway_tests::policy::oracle::{Cluster, Flow, Protocol, Verdict};
use proptest::prelude::*;
use serde_json::Value;

use crate::generate::{OUTSIDE, PORTS, cluster, policies};
use crate::nodes::{Explanation, File, Nodes};

/// How many sequences of changes are tried.
const CASES: u32 = 40;
/// One question of so many is explained.
const SELDOM: usize = 31;

/// Everybody whom anybody may talk to.
fn everybody(cluster: &Cluster) -> Vec<IpAddr> {
    let pods = cluster.pods.iter().flat_map(|pod| &pod.addresses);
    let nodes = cluster.nodes.iter().flat_map(|node| &node.addresses);
    let mut all: Vec<IpAddr> = pods.chain(nodes).copied().collect();
    all.extend(OUTSIDE.iter().map(|address| address.parse::<IpAddr>().unwrap()));
    all.sort();
    all.dedup();
    all
}

/// All beginnings of conversations in which a pod is concerned.
fn flows(cluster: &Cluster) -> Vec<Flow> {
    let everybody = everybody(cluster);
    let mut flows = Vec::new();
    for from in &everybody {
        for to in &everybody {
            let pod = cluster.pod_at(*to);
            if from.is_ipv4() != to.is_ipv4() || (pod.is_none() && cluster.pod_at(*from).is_none())
            {
                continue;
            }
            let mut add = |protocol, port, by_own_node| {
                flows.push(Flow { from: *from, to: *to, protocol, port, by_own_node });
            };
            add(Protocol::Icmp, 0, false);
            for port in PORTS {
                add(Protocol::Tcp, port, false);
                // The others take the same way as TCP.
                if port % 2 == 0 {
                    add(Protocol::Udp, port, false);
                    add(Protocol::Sctp, port, false);
                }
            }
            let own = pod.and_then(|pod| cluster.nodes.iter().find(|node| node.name == pod.node));
            if own.is_some_and(|node| node.addresses.contains(from)) {
                add(Protocol::Tcp, PORTS[0], true);
            }
        }
    }
    flows
}

/// All verdicts that are not the oracle's.
fn differences(nodes: &Nodes, explanation: &mut Explanation, cluster: &Cluster) -> Vec<String> {
    let mut differences = Vec::new();
    for (number, flow) in flows(cluster).iter().enumerate() {
        let (expected, actual) = (cluster.verdict(flow), nodes.verdict(cluster, flow));
        if actual.is_ok() != (expected == Verdict::Allow) {
            differences.push(format!("{flow:?}: {expected}, but nodes: {actual:?}"));
        }
        // An explanation finds out much more, so that not everything is asked.
        if number % SELDOM == 0
            && is_explained(cluster, flow)
            && explanation.allows(flow) != (expected == Verdict::Allow)
        {
            differences.push(format!("{flow:?}: {expected}, but it is explained otherwise"));
        }
    }
    differences
}

/// Whether an explanation means the same as we: to it, who has a node's address is a process of the node, and nodes do
/// not police what goes to them.
fn is_explained(cluster: &Cluster, flow: &Flow) -> bool {
    let is_node =
        |address: IpAddr| cluster.nodes.iter().any(|node| node.addresses.contains(&address));
    !(is_node(flow.from) || cluster.policed_to_node && is_node(flow.to))
}

/// What does it, for people.
fn manifests(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..Default::default() })]

    #[test]
    fn nodes_do_what_manifests_say(
        pods in [cluster(), cluster()],
        rules in [policies(), policies()],
        policed_to_node in any::<bool>(),
    ) {
        let mut nodes = Nodes::default();
        // One changes at a time, so that some of what was there is there still.
        for (pods, rules) in [(&pods[0], &rules[0]), (&pods[0], &rules[1]), (&pods[1], &rules[1]), (&pods[1], &rules[0])] {
            let objects = [pods.as_slice(), rules.as_slice()].concat();
            let mut cluster = Cluster::read(&objects).unwrap();
            cluster.policed_to_node = policed_to_node;
            let file = File::of(&objects);
            nodes.update(&cluster, &file.model());
            let differences = differences(&nodes, &mut file.explanation(), &cluster);
            prop_assert!(
                differences.is_empty(),
                "{} differences, as\n{}\nwith\n{}",
                differences.len(), differences[..differences.len().min(5)].join("\n"), manifests(&objects)
            );
        }
    }
}
