//! The Services of a run, and what the rules for them have in common.

use std::net::{Ipv4Addr, SocketAddrV4};

use clap::ValueEnum;
use ipnet::Ipv4Net;

/// The port of every Service.
pub(super) const PORT: u16 = 80;
/// The port of every endpoint.
pub(super) const TARGET_PORT: u16 = 8080;
/// The bit that kube-proxy marks packets with whose source it will translate.
pub(super) const MASQUERADE_MARK: &str = "0x4000";

/// How many Services have a node port: the last ones, which are asked.
const NODE_PORTS: u32 = 1000;
/// The last Service's node port; the others' follow it, from the end of the list to its front.
const FIRST_NODE_PORT: u16 = 30_000;

/// A number of Services with the same two endpoints on the node itself, and one more with two on
/// another.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// How many have their endpoints here.
    pub services: u32,
    /// Where ClusterIPs come from.
    pub service_range: Ipv4Net,
    /// Where the node's pods get their addresses from.
    pub pod_range: Ipv4Net,
    /// The node's own address.
    pub node: Ipv4Addr,
    /// The servers on this node.
    pub here: [Ipv4Addr; 2],
    /// The servers on the other node.
    pub there: [Ipv4Addr; 2],
}

/// One Service of a plan.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// Its name.
    pub name: String,
    /// Its ClusterIP.
    pub address: Ipv4Addr,
    /// What tells its chains from others': sixteen characters, as kube-proxy's hashes have.
    pub hash: String,
    /// The same of each of its endpoints, with its address.
    pub endpoints: [(String, Ipv4Addr); 2],
    /// Its port on the node's address, if it has one.
    pub node_port: Option<u16>,
}

impl Plan {
    /// All Services in the order of the rules. A walk through them finds the last two last: one with
    /// its endpoints here, and one with its endpoints there.
    pub(super) fn services(&self) -> impl Iterator<Item = Service> {
        (0..=self.services).map(|number| {
            let [a, b] = if number == self.services { self.there } else { self.here };
            Service {
                name: format!("service-{number}"),
                address: self.address(number),
                hash: hash(number, 0),
                endpoints: [(hash(number, 1), a), (hash(number, 2), b)],
                node_port: self.node_port(number),
            }
        })
    }

    /// Where this way leads: to one of the last two Services.
    pub(super) fn target(&self, way: Way) -> SocketAddrV4 {
        let number = match way {
            Way::Pod | Way::Local => self.services.saturating_sub(1),
            Way::Nodes | Way::Remote => self.services,
        };
        match way {
            Way::Pod | Way::Nodes => SocketAddrV4::new(self.address(number), PORT),
            Way::Local | Way::Remote => {
                SocketAddrV4::new(self.node, self.node_port(number).unwrap_or_default())
            }
        }
    }

    fn node_port(&self, number: u32) -> Option<u16> {
        let from_the_end = self.services.checked_sub(number).filter(|back| *back < NODE_PORTS)?;
        u16::try_from(from_the_end).ok()?.checked_add(FIRST_NODE_PORT)
    }

    /// The first addresses of a range belong to the cluster's own Services.
    fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.service_range.network().to_bits() + 11 + number)
    }
}

/// Who asks whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Way {
    /// A pod asks a ClusterIP, and the endpoint is on its own node.
    Pod,
    /// A pod asks a ClusterIP, and the endpoint is on another node.
    Nodes,
    /// A client outside asks a node port, and the endpoint is on the node asked.
    Local,
    /// A client outside asks a node port, and the endpoint is on another node.
    Remote,
}

impl Way {
    /// As the command line spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Nodes => "nodes",
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// A number that looks like a hash: a bijection of 64-bit numbers (SplitMix64's), in hexadecimal.
fn hash(service: u32, part: u8) -> String {
    let mut bits = (u64::from(service) << 8 | u64::from(part)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)] {
        bits = (bits ^ (bits >> shift)).wrapping_mul(factor);
    }
    format!("{:016X}", bits ^ (bits >> 31))
}

#[cfg(test)]
pub(super) fn example(services: u32) -> Plan {
    Plan {
        services,
        service_range: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
        pod_range: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 24),
        node: Ipv4Addr::new(192, 168, 240, 11),
        here: [Ipv4Addr::new(10, 244, 0, 3), Ipv4Addr::new(10, 244, 0, 4)],
        there: [Ipv4Addr::new(10, 244, 1, 3), Ipv4Addr::new(10, 244, 1, 4)],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn services_differ_and_the_last_two_are_asked() {
        let plan = example(1000);
        let services: Vec<Service> = plan.services().collect();
        let addresses: BTreeSet<_> = services.iter().map(|service| service.address).collect();
        assert_eq!(addresses.len(), 1001);
        assert!(addresses.iter().all(|address| plan.service_range.contains(address)));
        let hashes: BTreeSet<_> = services
            .iter()
            .flat_map(|service| {
                let endpoints = service.endpoints.iter().map(|(hash, _)| hash.clone());
                endpoints.chain([service.hash.clone()])
            })
            .collect();
        assert_eq!(hashes.len(), 3003);
        assert!(hashes.iter().all(|hash| hash.len() == 16));
        let ports: BTreeSet<u16> =
            services.iter().filter_map(|service| service.node_port).collect();
        assert_eq!(ports, (30_000..31_000).collect());
        let [here, there] = [&services[999], &services[1000]];
        assert_eq!(here.endpoints.clone().map(|(_, address)| address), plan.here);
        assert_eq!(there.endpoints.clone().map(|(_, address)| address), plan.there);
        for (way, service) in [(Way::Pod, here), (Way::Nodes, there)] {
            assert_eq!(plan.target(way), SocketAddrV4::new(service.address, 80));
        }
        for (way, service) in [(Way::Local, here), (Way::Remote, there)] {
            let port = service.node_port.unwrap();
            assert_eq!(plan.target(way), SocketAddrV4::new(plan.node, port));
        }
    }
}
