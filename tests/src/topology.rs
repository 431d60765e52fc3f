//! Who has which address: the lab's network as a plan, before anything is made.
//!
//! ```text
//!            ┌ fw-NAME-net: router ───────────────────────────┐
//!            │ sub1 192.168.240.1  sub2 192.168.241.1  client │
//!            └──┬────────┬─────────────┬───────────────┬──────┘
//!             node1    node3         node2           client
//!              .11      .13           .12         192.168.250.2
//! ```
//!
//! Labs do not see each other, so all of them use the same ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};
use clap::ValueEnum;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Most nodes a lab may have.
pub(crate) const MOST_NODES: u8 = 32;
/// Most underlay subnets a lab may have.
pub(crate) const MOST_SUBNETS: u8 = 4;
/// The port of the control plane's feed, on the router's first address.
pub(crate) const FEED_PORT: u16 = 9443;
/// The port of an API server, beside it.
const API_PORT: u16 = 6443;
/// The port of an agent's health answer.
pub(crate) const HEALTH_PORT: u16 = 10256;
/// Port of a node on which its gateway tells the node alone how it fares.
pub(crate) const GATEWAY_PORT: u16 = 9113;

/// How nodes reach each other's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Plain routes between nodes of one subnet, VXLAN between the others.
    #[default]
    Auto,
    /// VXLAN between all nodes.
    Vxlan,
    /// Plain routes everywhere; the router then knows the nodes' pod ranges, as a cloud's does.
    HostGw,
    /// WireGuard between all nodes, where the kernel has it.
    Wireguard,
}

impl Backend {
    /// As the agent's command line spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Wireguard => "wireguard",
        }
    }
}

/// An interface's addresses, with the prefix of the network they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// IPv4; none in a lab whose pods have only IPv6.
    pub v4: Option<Ipv4Net>,
    /// IPv6.
    pub v6: Ipv6Net,
}

impl Addresses {
    /// All, IPv4 first.
    pub(crate) fn nets(&self) -> Vec<IpNet> {
        self.v4.map(IpNet::from).into_iter().chain([self.v6.into()]).collect()
    }

    /// All without prefix, IPv4 first.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        self.nets().iter().map(IpNet::addr).collect()
    }

    /// The one of a range's family.
    pub(crate) fn beside(&self, range: &IpNet) -> Option<IpAddr> {
        self.ips().into_iter().find(|ip| ip.is_ipv4() == range.addr().is_ipv4())
    }
}

/// One network of the underlay; the router has its first address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subnet {
    /// The bridge in the router's namespace.
    pub bridge: String,
    /// The router's addresses in it: every member's default gateway.
    pub router: Addresses,
}

/// A node before it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePlan {
    /// `node1`, `node2`, …
    pub name: String,
    /// Index of its subnet.
    pub subnet: usize,
    /// Its underlay addresses.
    pub addresses: Addresses,
    /// The ranges of its pods, in the order of the cluster's ranges.
    pub pod_cidrs: Vec<IpNet>,
}

/// The whole network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topology {
    /// Underlay subnets of nodes.
    pub subnets: Vec<Subnet>,
    /// In the order of their numbers.
    pub nodes: Vec<NodePlan>,
    /// The outside client's subnet.
    pub client_subnet: Subnet,
    /// The outside client.
    pub client: Addresses,
}

impl Topology {
    /// Lays out `nodes` nodes over `subnets` subnets and gives each its part of `pod_cidrs`: a
    /// /24 or, in IPv6, a /64. `service_cidrs` only have to keep out of the way.
    pub(crate) fn plan(
        nodes: u8,
        subnets: u8,
        pod_cidrs: &[IpNet],
        service_cidrs: &[IpNet],
    ) -> Result<Self> {
        if !(1..=MOST_NODES).contains(&nodes) {
            bail!("--nodes {nodes}: a lab has 1 to {MOST_NODES} nodes");
        }
        if !(1..=MOST_SUBNETS).contains(&subnets) {
            bail!("--subnets {subnets}: a lab has 1 to {MOST_SUBNETS} subnets");
        }
        check_ranges("--pod-cidr", pod_cidrs)?;
        check_ranges("--service-cidr", service_cidrs)?;
        check_overlaps(pod_cidrs, service_cidrs)?;

        let v4 = pod_cidrs.iter().any(|range| range.addr().is_ipv4());
        let member = |subnet, host| member(v4, subnet, host);
        let subnet = |index: u8, bridge: String| Subnet { bridge, router: member(index, 1) };
        Ok(Self {
            subnets: (0..subnets).map(|index| subnet(index, format!("sub{}", index + 1))).collect(),
            nodes: (0..nodes)
                .map(|index| {
                    let subnet = index % subnets;
                    Ok(NodePlan {
                        name: format!("node{}", index + 1),
                        subnet: subnet.into(),
                        addresses: member(subnet, 11 + index),
                        pod_cidrs: pod_cidrs
                            .iter()
                            .map(|cidr| node_part(cidr, index))
                            .collect::<Result<_>>()?,
                    })
                })
                .collect::<Result<_>>()?,
            client_subnet: subnet(CLIENT_SUBNET, "client".to_owned()),
            client: member(CLIENT_SUBNET, 2),
        })
    }

    /// Where the agents find the control plane.
    pub(crate) fn feed(&self) -> SocketAddr {
        SocketAddr::new(self.subnets[0].router.ips()[0], FEED_PORT)
    }

    /// Where the control plane finds the API server, in a lab that has one.
    pub(crate) fn api_server(&self) -> SocketAddr {
        SocketAddr::new(self.subnets[0].router.ips()[0], API_PORT)
    }
}

/// The client's subnet is the eleventh, behind all that nodes may have.
const CLIENT_SUBNET: u8 = 10;

/// Host number `host` of underlay subnet `subnet`.
fn member(has_v4: bool, subnet: u8, host: u8) -> Addresses {
    let v4 = Ipv4Addr::new(192, 168, 240 + subnet, host);
    let v6 = Ipv6Addr::new(0xfd00, 0x240, subnet.into(), 0, 0, 0, 0, host.into());
    Addresses { v4: has_v4.then(|| Ipv4Net::new_assert(v4, 24)), v6: Ipv6Net::new_assert(v6, 64) }
}

/// All that an underlay may use.
fn underlay_ranges() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 240, 0), 20).into(),
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x240, 0, 0, 0, 0, 0, 0), 32).into(),
    ]
}

fn check_ranges(flag: &str, ranges: &[IpNet]) -> Result<()> {
    if ranges.is_empty() {
        bail!("{flag}: give at least one range");
    }
    for range in ranges {
        if range.trunc() != *range {
            bail!("{flag} {range}: has host bits set; did you mean {}?", range.trunc());
        }
    }
    let v4 = ranges.iter().filter(|range| range.addr().is_ipv4()).count();
    if v4 > 1 || ranges.len() - v4 > 1 {
        bail!("{flag}: give at most one range a family");
    }
    Ok(())
}

fn check_overlaps(pod_cidrs: &[IpNet], service_cidrs: &[IpNet]) -> Result<()> {
    let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    let named = pod_cidrs
        .iter()
        .map(|range| ("--pod-cidr", range))
        .chain(service_cidrs.iter().map(|range| ("--service-cidr", range)));
    for (flag, range) in named {
        if let Some(taken) = underlay_ranges().iter().find(|taken| overlap(range, taken)) {
            bail!("{flag} {range}: overlaps {taken}, which the lab's underlay uses");
        }
    }
    for pods in pod_cidrs {
        if let Some(services) = service_cidrs.iter().find(|services| overlap(pods, services)) {
            bail!("--pod-cidr {pods} overlaps --service-cidr {services}");
        }
    }
    Ok(())
}

/// The part of a cluster's pod range that belongs to node number `index`.
fn node_part(cidr: &IpNet, index: u8) -> Result<IpNet> {
    let prefix = match cidr {
        IpNet::V4(_) => 24,
        IpNet::V6(_) => 64,
    };
    let part = cidr.subnets(prefix).ok().and_then(|mut parts| parts.nth(index.into()));
    match part {
        Some(part) => Ok(part),
        None => bail!(
            "--pod-cidr {cidr}: too small; each node needs a /{prefix} and there is none for node{}",
            index + 1
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn plan(nodes: u8, subnets: u8, pods: &[&str], services: &[&str]) -> Result<Topology> {
        Topology::plan(nodes, subnets, &nets(pods), &nets(services))
    }

    #[test]
    fn nodes_alternate_over_subnets_and_share_the_pod_range() {
        let topology =
            plan(3, 2, &["10.244.0.0/16", "fd00:10:244::/56"], &["10.96.0.0/16"]).unwrap();
        let lines: Vec<String> = topology
            .nodes
            .iter()
            .map(|node| {
                format!(
                    "{} sub{} {:?} {:?}",
                    node.name,
                    node.subnet + 1,
                    node.addresses.nets(),
                    node.pod_cidrs
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                "node1 sub1 [192.168.240.11/24, fd00:240::b/64] [10.244.0.0/24, fd00:10:244::/64]",
                "node2 sub2 [192.168.241.12/24, fd00:240:1::c/64] [10.244.1.0/24, fd00:10:244:1::/64]",
                "node3 sub1 [192.168.240.13/24, fd00:240::d/64] [10.244.2.0/24, fd00:10:244:2::/64]",
            ]
        );
        assert_eq!(topology.client.nets()[0].to_string(), "192.168.250.2/24");
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let check = |result: Result<Topology>, expected: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let services = &["10.96.0.0/16"];
        check(plan(0, 1, &["10.244.0.0/16"], services), "--nodes 0");
        check(plan(3, 9, &["10.244.0.0/16"], services), "--subnets 9");
        check(plan(1, 1, &[], services), "--pod-cidr");
        check(plan(1, 1, &["10.244.1.0/16"], services), "did you mean 10.244.0.0/16");
        check(plan(3, 1, &["10.244.0.0/23"], services), "none for node3");
        check(plan(1, 1, &["10.244.0.0/25"], services), "each node needs a /24");
        check(plan(1, 1, &["10.0.0.0/8"], services), "overlaps --service-cidr");
        check(plan(1, 1, &["192.168.0.0/16"], services), "underlay");
        check(plan(1, 1, &["10.244.0.0/16", "10.245.0.0/16"], services), "one range a family");
    }
}
