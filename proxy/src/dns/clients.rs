//! Who asks: pods of this node and of others, and the nodes themselves. Nobody else is answered.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_controlplane::manifests::LocalPod;
use fairway_dns::server::Access;
use fairway_model::{Model, Node, Objects};
use ipnet::IpNet;

use super::listener;

/// What is known of who has which address.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// This node's pods, with their namespaces.
    pods: HashMap<IpAddr, Arc<str>>,
    cluster: Arc<Cluster>,
}

/// The nodes, and where their pods are.
#[derive(Debug, Default)]
struct Cluster {
    /// To tell whether anything is new.
    nodes: Objects<Node>,
    addresses: HashSet<IpAddr>,
    /// By their lengths, the networks of ranges.
    ranges: Vec<(u8, HashSet<IpAddr>)>,
}

impl Known {
    /// What is known with this model and these pods, after `self`.
    pub(super) fn next(&self, model: &Model, pods: &[LocalPod]) -> Self {
        let of_pod = |pod: &LocalPod| {
            let namespace: Arc<str> = pod.namespace.as_str().into();
            let addresses = pod.addresses.clone().into_iter();
            addresses.map(move |address| (address, Arc::clone(&namespace)))
        };
        let pods = pods.iter().filter(|pod| !pod.namespace.is_empty()).flat_map(of_pod).collect();
        let cluster = if self.cluster.nodes == model.nodes {
            Arc::clone(&self.cluster)
        } else {
            Arc::new(Cluster::new(&model.nodes))
        };
        Self { pods, cluster }
    }

    /// What whoever has the address may ask.
    pub(super) fn access(&self, address: IpAddr) -> Access {
        if let Some(namespace) = self.pods.get(&address) {
            return Access::Pod(Arc::clone(namespace));
        }
        // What a process of this node sends to an address of its own comes from there.
        let own = address.is_loopback() || listener::local().contains(&address);
        if own || self.cluster.has(address) { Access::Known } else { Access::Stranger }
    }
}

impl Cluster {
    fn new(nodes: &Objects<Node>) -> Self {
        let mut ranges: HashMap<u8, HashSet<IpAddr>> = HashMap::new();
        for range in nodes.values().flat_map(|node| &node.pod_cidrs) {
            ranges.entry(range.prefix_len()).or_default().insert(range.network());
        }
        let addresses = nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
        Self { nodes: nodes.clone(), addresses, ranges: ranges.into_iter().collect() }
    }

    fn has(&self, address: IpAddr) -> bool {
        let in_range = |(length, networks): &(u8, HashSet<IpAddr>)| {
            let range = IpNet::new(address, *length);
            range.is_ok_and(|range| networks.contains(&range.network()))
        };
        self.addresses.contains(&address) || self.ranges.iter().any(in_range)
    }
}

#[cfg(test)]
mod tests {
    use fairway_model::Object;

    use super::*;

    #[test]
    fn who_is_of_the_cluster_is_answered_and_nobody_else() {
        let node = |name: &str, address: &str, ranges: &[&str]| {
            Object::Node(Node {
                name: name.into(),
                addresses: vec![address.parse().unwrap()],
                pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
                ..Node::default()
            })
        };
        let model: Model = [
            node("a", "192.0.2.1", &["10.244.0.0/24", "fd00:1::/64"]),
            node("b", "192.0.2.2", &["10.244.8.0/22"]),
        ]
        .into_iter()
        .collect();
        let pod = |namespace: &str, address: &str| LocalPod {
            namespace: namespace.into(),
            name: "cart".into(),
            uid: String::new(),
            addresses: vec![address.parse().unwrap()],
        };
        let pods = [pod("shop", "10.244.0.5"), pod("", "10.244.0.6")];
        let known = Known::default().next(&model, &pods);
        for (address, expected) in [
            ("10.244.0.5", Access::Pod("shop".into())),
            ("10.244.0.6", Access::Known),
            ("10.244.11.7", Access::Known),
            ("fd00:1::7", Access::Known),
            ("192.0.2.2", Access::Known),
            ("169.254.20.10", Access::Known),
            ("127.0.0.1", Access::Known),
            ("10.244.12.1", Access::Stranger),
            ("192.0.2.3", Access::Stranger),
            ("2001:db8::1", Access::Stranger),
        ] {
            assert_eq!(known.access(address.parse().unwrap()), expected, "{address}");
        }
        let later = known.next(&model, &[]);
        assert!(Arc::ptr_eq(&known.cluster, &later.cluster), "nothing was to be made anew");
        assert_eq!(later.access("10.244.0.5".parse().unwrap()), Access::Known);
    }
}
