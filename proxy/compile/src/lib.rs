//! From the model to table entries: what one node's kernel has to hold, as plain values.
//!
//! Nothing here touches a kernel, a file or a clock. The agent compares what comes out with what its
//! kernel holds; names stay beside the entries, so that a table entry can be explained.
//!
//! ```text
//! Model + View (this node's own facts) ─► compile ─► Tables (config, Services, routes)
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use fairway_abi::{Config, PodRange, V4, V6, config};
use fairway_model::{Forwarding, Model, Node, ObjectName, Pod};
use ipnet::IpNet;
use zerocopy::native_endian::U64;

pub use family::Family;
pub use host_ports::{HostPort, host_ports, yield_to};
pub use routes::{HostRoute, Peers, Routes, Via, tunnels_over_v6};
pub use services::{
    Choice, Claim, Contest, EndpointList, Kind, ListName, ServiceLists, closed_ports,
};
pub use wireguard::{Unreachable, WireGuardPeer, wireguard_peers};

pub mod announce;
mod family;
mod host_ports;
mod maglev;
pub mod policy;
mod resolver;
mod routes;
mod services;
mod slots;
mod wireguard;

/// How pods of different nodes reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Plain routes to peers on the same link, VXLAN to all others.
    #[default]
    Auto,
    /// VXLAN to every peer.
    Vxlan,
    /// Plain routes to every peer; all must be on the same link.
    HostGw,
    /// WireGuard to every peer.
    Wireguard,
}

/// What only the node itself knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Its Kubernetes name.
    pub node: String,
    /// Every address of its interfaces, for packets that are the host's own.
    pub addresses: Vec<IpAddr>,
    /// The prefixes that are on the uplink's link.
    pub on_link: Vec<IpNet>,
    /// See [`Backend`].
    pub backend: Backend,
    /// Index of the overlay device; 0 where there is none.
    pub overlay_ifindex: u32,
    /// VXLAN network identifier.
    pub vni: u32,
    /// See [`Config::netns`].
    pub netns: u64,
    /// How pods appear outside the cluster.
    pub masquerade: Masquerade,
    /// Node ports are open on the node's addresses within these ranges; without any, on those that the
    /// model knows.
    pub node_port_ranges: Vec<IpNet>,
    /// Node ports are open on the loopback addresses, too, for the node's own processes.
    pub loopback_node_ports: bool,
    /// What is sent to Services' ranges of addresses, but to no port of a Service, is left to routes like
    /// anything else, rather than refused or dropped.
    pub unserved_passes: bool,
    /// How clients from outside reach endpoints of other nodes, where a Service does not say.
    pub forwarding: Forwarding,
    /// No pod's socket is given an endpoint; what pods send is translated packet by packet.
    pub no_pod_sockets: bool,
    /// Others than our pods have addresses in this node's range of them, behind a device that packets
    /// arrive by: pods of another network plugin, while a node is converted.
    pub shares_pod_range: bool,
    /// Index of the uplink, by which tunnelled packets leave.
    pub uplink_ifindex: u32,
    /// Devices out of the node that hold packets until they are to depart.
    pub paced: BTreeSet<u32>,
    /// The Service in whose place this node's agent answers DNS queries; none where it does not.
    pub resolver: Option<ObjectName>,
}

/// How pods appear outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Ranges outside to which pods keep their own addresses. The cluster's own ranges need not be
    /// among them.
    pub direct: Vec<IpNet>,
    /// Pods reach IPv4 link-local addresses under the node's own, too. They are else left to the
    /// host's stack, as they are.
    pub link_local: bool,
    /// The source ports that translation takes.
    pub ports: RangeInclusive<u16>,
}

impl Default for Masquerade {
    fn default() -> Self {
        Self { direct: Vec::new(), link_local: false, ports: FIRST_PORT..=LAST_PORT }
    }
}

/// Everything a node's kernel has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// See [`Config`].
    pub config: Config,
    /// The IPv4 tables.
    pub v4: FamilyTables<V4>,
    /// The IPv6 tables.
    pub v6: FamilyTables<V6>,
    /// Routes of the host's own stack to ranges of pods, this node's own included.
    pub host_routes: Vec<HostRoute>,
    /// Devices whose packets are held until they are to depart, the overlay's included.
    pub paced: BTreeSet<u32>,
}

/// The tables of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyTables<A> {
    /// Lists of endpoints, each with the frontends that lead to it.
    pub services: Vec<EndpointList<A>>,
    /// Addresses and ports that two Services want.
    pub contests: BTreeSet<Contest>,
    /// How destinations are reached.
    pub routes: Routes<A>,
    /// Who may bring packets of clients from outside.
    pub peers: Peers<A>,
    /// Where this node's pods and nobody else are; zeros if that is not so.
    pub pod_range: PodRange<A>,
}

/// The first port that source translation takes unless told otherwise: above the ports of well-known services, and with
/// [`LAST_PORT`] below what nodes give their own sockets unless `ip_local_port_range` was widened.
pub const FIRST_PORT: u16 = 1024;
/// The last one: below the node ports.
pub const LAST_PORT: u16 = 29_999;

/// What `view`'s node has to hold, or `None` while the model does not know the node.
pub fn compile(model: &Model, view: &View) -> Option<Tables> {
    let node = model.nodes.get(&view.node)?;
    Some(Tables {
        config: node_config(model, view)?,
        v4: family(model, node, view),
        v6: family(model, node, view),
        host_routes: routes::host_routes(model, node, view),
        paced: paced(view),
    })
}

/// The part of [`compile`] that is neither about Services nor about peers.
pub fn node_config(model: &Model, view: &View) -> Option<Config> {
    let node = model.nodes.get(&view.node)?;
    Some(Config {
        masquerade4: first::<V4>(node).unwrap_or_default(),
        masquerade6: first::<V6>(node).unwrap_or_default(),
        overlay_ifindex: view.overlay_ifindex,
        vni: view.vni,
        first_port: *view.masquerade.ports.start(),
        last_port: *view.masquerade.ports.end(),
        netns: U64::new(view.netns),
        flags: pod_sockets(model, view)
            | if view.paced.is_empty() { 0 } else { config::PACED }
            | if model.policies.is_empty() { 0 } else { config::NAME_CLIENTS },
        names: 0,
        policy: 0,
        reserved: 0,
    })
}

/// Whether some of the host's routes to pods lead into the overlay.
pub fn tunnels(model: &Model, view: &View) -> bool {
    let node = model.nodes.get(&view.node);
    let routes = node.map(|node| routes::host_routes(model, node, view)).unwrap_or_default();
    routes.iter().any(|route| matches!(route.via, Via::Overlay { .. }))
}

/// Whose sockets are left alone: bits of [`config`].
fn pod_sockets(model: &Model, view: &View) -> u32 {
    let exempt = |pod: &Pod| pod.sockets_exempt && pod.node == view.node;
    if view.no_pod_sockets {
        config::NO_POD_SOCKETS
    } else if model.pods.values().any(exempt) {
        config::EXEMPT_PODS
    } else {
        0
    }
}

/// A moment to depart at stays with a packet through VXLAN, whose packets leave by the uplink: peers
/// are behind it. WireGuard encrypts at leisure, and forgets what clock the moment is of.
fn paced(view: &View) -> BTreeSet<u32> {
    let mut paced = view.paced.clone();
    let keeps_moments = !matches!(view.backend, Backend::Wireguard);
    if view.overlay_ifindex != 0 && keeps_moments && paced.contains(&view.uplink_ifindex) {
        paced.insert(view.overlay_ifindex);
    }
    paced
}

/// The addresses of the node's end of the overlay: the first of each of its pod ranges.
pub fn overlay_addresses(node: &Node) -> Vec<IpAddr> {
    node.pod_cidrs.iter().map(IpNet::network).collect()
}

fn family<A: Family>(model: &Model, node: &Node, view: &View) -> FamilyTables<A> {
    let (services, contests) = ServiceLists::of_node(model, node, view).all();
    FamilyTables {
        services,
        contests,
        routes: routes::compile(model, node, view),
        peers: routes::peers(model, node, view),
        pod_range: routes::pod_range(node, view),
    }
}

/// A node's first address of a family: the one that tunnels, routes and masquerade use.
fn first<A: Family>(node: &Node) -> Option<A> {
    node.addresses.iter().find_map(|address| A::of(*address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_is_paced_with_the_uplink_unless_it_encrypts() {
        let view = |paced: &[u32], overlay_ifindex, backend| View {
            paced: paced.iter().copied().collect(),
            uplink_ifindex: 2,
            overlay_ifindex,
            backend,
            ..View::default()
        };
        for (view, expected) in [
            (view(&[], 9, Backend::Auto), &[][..]),
            (view(&[2, 3], 9, Backend::Auto), &[2, 3, 9]),
            (view(&[2], 9, Backend::Vxlan), &[2, 9]),
            (view(&[3], 9, Backend::Vxlan), &[3]),
            (view(&[2], 0, Backend::HostGw), &[2]),
            (view(&[2], 9, Backend::Wireguard), &[2]),
        ] {
            assert_eq!(paced(&view), expected.iter().copied().collect(), "{view:?}");
        }
    }
}
