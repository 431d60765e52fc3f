//! Whom a WireGuard device speaks to.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use fairway_model::{Model, Node, WireGuardKey};
use ipnet::IpNet;

use crate::routes::underlay;

/// Another node, as its peers' WireGuard devices know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireGuardPeer {
    /// Its key, by which the device knows it.
    pub key: WireGuardKey,
    /// Where its device listens, but for the port, which all nodes share.
    pub underlay: IpAddr,
    /// What is sent to it, and the only sources taken from it: its pods and its own addresses. Sorted.
    pub allowed: Vec<IpNet>,
}

/// A node that no packet reaches by WireGuard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unreachable {
    /// It has not said which key encrypts to it.
    NoKey {
        /// Its name.
        node: String,
    },
    /// It has the same key as another node: whoever encrypts to the one encrypts to the other.
    SharedKey {
        /// Its name.
        node: String,
        /// The other's.
        with: String,
    },
    /// Its addresses are of another family than this node's.
    NoAddress {
        /// Its name.
        node: String,
    },
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey { node } => write!(
                f,
                "node {node} has no WireGuard key yet; does its agent run with --backend wireguard?"
            ),
            Self::SharedKey { node, with } => write!(
                f,
                "nodes {node} and {with} have the same WireGuard key; remove the file wireguard.key \
                 of one of them and start its agent anew"
            ),
            Self::NoAddress { node } => {
                write!(f, "node {node} has no address of a family that this node has, too")
            }
        }
    }
}

/// The peers of `node`'s device in order of their names, and those that cannot be any.
pub fn wireguard_peers(model: &Model, node: &str) -> (Vec<WireGuardPeer>, Vec<Unreachable>) {
    let Some(node) = model.nodes.get(node) else { return (Vec::new(), Vec::new()) };
    let mut holders: BTreeMap<WireGuardKey, Vec<&str>> = BTreeMap::new();
    for other in model.nodes.values() {
        if let Some(key) = other.wireguard_key {
            holders.entry(key).or_default().push(&other.name);
        }
    }
    let (mut peers, mut unreachable) = (Vec::new(), Vec::new());
    for peer in model.nodes.values().filter(|peer| peer.name != node.name) {
        let name = peer.name.clone();
        let Some(key) = peer.wireguard_key else {
            unreachable.push(Unreachable::NoKey { node: name });
            continue;
        };
        if let Some(with) = holders[&key].iter().find(|holder| **holder != name) {
            unreachable.push(Unreachable::SharedKey { node: name, with: (*with).to_owned() });
            continue;
        }
        match underlay(node, peer) {
            Some(underlay) => peers.push(WireGuardPeer { key, underlay, allowed: allowed(peer) }),
            None => unreachable.push(Unreachable::NoAddress { node: name }),
        }
    }
    (peers, unreachable)
}

fn allowed(peer: &Node) -> Vec<IpNet> {
    let pods = peer.pod_cidrs.iter().map(IpNet::trunc);
    let own = peer.addresses.iter().copied().map(IpNet::from);
    let mut allowed: Vec<IpNet> = pods.chain(own).collect();
    allowed.sort();
    allowed.dedup();
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str, cidr: &str, key: Option<u8>) -> Node {
        Node {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![cidr.parse().unwrap()],
            wireguard_key: key.map(|byte| WireGuardKey([byte; 32])),
            ..Node::default()
        }
    }

    fn peers(nodes: Vec<Node>) -> (Vec<WireGuardPeer>, Vec<String>) {
        let model: Model = nodes.into_iter().map(fairway_model::Object::Node).collect();
        let (peers, unreachable) = wireguard_peers(&model, "a");
        (peers, unreachable.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn each_node_with_a_key_is_a_peer_for_its_pods_and_itself() {
        let (peers, unreachable) = peers(vec![
            node("a", "192.0.2.1", "10.244.0.0/24", Some(1)),
            node("b", "192.0.2.2", "10.244.1.0/24", Some(2)),
        ]);
        let expected = WireGuardPeer {
            key: WireGuardKey([2; 32]),
            underlay: "192.0.2.2".parse().unwrap(),
            allowed: vec!["10.244.1.0/24".parse().unwrap(), "192.0.2.2/32".parse().unwrap()],
        };
        assert_eq!((peers, unreachable), (vec![expected], vec![]));
    }

    #[test]
    fn who_cannot_be_a_peer_is_named_with_the_reason() {
        let (peers, unreachable) = peers(vec![
            node("a", "192.0.2.1", "10.244.0.0/24", Some(1)),
            node("b", "192.0.2.2", "10.244.1.0/24", None),
            node("c", "192.0.2.3", "10.244.2.0/24", Some(1)),
            node("d", "2001:db8::4", "10.244.3.0/24", Some(4)),
        ]);
        assert_eq!(peers, []);
        assert_eq!(
            unreachable,
            [
                "node b has no WireGuard key yet; does its agent run with --backend wireguard?",
                "nodes c and a have the same WireGuard key; remove the file wireguard.key of one of \
                 them and start its agent anew",
                "node d has no address of a family that this node has, too",
            ]
        );
    }
}
