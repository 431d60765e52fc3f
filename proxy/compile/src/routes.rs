//! How a node reaches its own addresses, its peers and their pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairway_abi::{Route, route};
use fairway_model::{Model, Node};
use ipnet::IpNet;
use zerocopy::native_endian::U32;

use crate::family::mapped;
use crate::{Backend, Family, View, first};

/// Routes of one family: prefix length and network address to what becomes of a packet.
pub type Routes<A> = BTreeMap<(u8, A), Route<A>>;

/// A route the host's own stack needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// A range of pods.
    pub destination: IpNet,
    /// How it is reached.
    pub via: Via,
}

/// How a range of pods is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// The peer routes for them, on our link.
    Gateway {
        /// The peer.
        gateway: IpAddr,
        /// The source that packets of the host take.
        source: IpAddr,
    },
    /// The overlay device.
    Overlay {
        /// The source that packets of the host take.
        source: IpAddr,
    },
    /// This node's own: each pod has a route of its own, and for all other addresses the sender is
    /// told so, rather than having its packets wander off by the default route.
    Unreachable,
}

/// The routes of one family on `node`.
pub(crate) fn compile<A: Family>(model: &Model, node: &Node, view: &View) -> Routes<A> {
    let mut routes = Routes::new();
    let own = first::<A>(node).unwrap_or(A::UNSPECIFIED);
    let entry = |kind, source, tunnel: IpAddr| Route {
        kind: U32::new(kind),
        source,
        tunnel: mapped(tunnel),
    };
    let none = IpAddr::from([0u8; 16]);
    let overlay = pod_cidr::<A>(node).map_or(A::UNSPECIFIED, |(_, network)| network);

    for peer in model.nodes.values().filter(|peer| peer.name != node.name) {
        let Some(underlay) = underlay(node, peer) else { continue };
        // Through the tunnel also to the peer itself: the underlay may know nothing of pods.
        let found = if is_tunnelled(view, underlay) {
            entry(route::TUNNEL, overlay, underlay)
        } else {
            entry(route::DIRECT, own, none)
        };
        for address in peer.addresses.iter().filter_map(|ip| A::of(*ip)) {
            routes.insert((A::BITS, address), found);
        }
        if let Some(cidr) = pod_cidr::<A>(peer) {
            routes.insert(cidr, found);
        }
    }
    if let Some(cidr) = pod_cidr::<A>(node) {
        routes.insert(cidr, entry(route::HOST, A::UNSPECIFIED, none));
    }
    for address in view.addresses.iter().chain(&node.addresses).filter_map(|ip| A::of(*ip)) {
        routes.insert((A::BITS, address), entry(route::HOST, A::UNSPECIFIED, none));
    }
    routes
}

/// The routes of the host's own stack, in order of destination.
pub(crate) fn host_routes(model: &Model, node: &Node, view: &View) -> Vec<HostRoute> {
    let own = node.pod_cidrs.iter().map(|range| range.trunc());
    let own = own.map(|destination| HostRoute { destination, via: Via::Unreachable });
    let mut routes: Vec<HostRoute> = own.collect();
    for peer in model.nodes.values().filter(|peer| peer.name != node.name) {
        let Some(underlay) = underlay(node, peer) else { continue };
        for cidr in &peer.pod_cidrs {
            let same_family = |ip: &IpAddr| ip.is_ipv4() == cidr.addr().is_ipv4();
            let via = if is_tunnelled(view, underlay) {
                let source = node.pod_cidrs.iter().map(IpNet::network).find(same_family);
                source.map(|source| Via::Overlay { source })
            } else {
                let gateway = peer.addresses.iter().copied().find(same_family);
                let source = node.addresses.iter().copied().find(same_family);
                gateway.zip(source).map(|(gateway, source)| Via::Gateway { gateway, source })
            };
            routes.extend(via.map(|via| HostRoute { destination: cidr.trunc(), via }));
        }
    }
    routes.sort();
    routes
}

/// The peer's address that both nodes have a family for, IPv4 first.
fn underlay(node: &Node, peer: &Node) -> Option<IpAddr> {
    let has = |v4: bool| node.addresses.iter().any(|ip| ip.is_ipv4() == v4);
    let of = |v4: bool| peer.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4 && has(v4));
    of(true).or_else(|| of(false))
}

fn is_tunnelled(view: &View, peer: IpAddr) -> bool {
    match view.backend {
        Backend::HostGw => false,
        Backend::Vxlan => true,
        Backend::Auto => !view.on_link.iter().any(|prefix| prefix.contains(&peer)),
    }
}

fn pod_cidr<A: Family>(node: &Node) -> Option<(u8, A)> {
    node.pod_cidrs.iter().find_map(|cidr| Some((cidr.prefix_len(), A::of(cidr.network())?)))
}

#[cfg(test)]
mod tests {
    use fairway_abi::V4;

    use super::*;

    fn model() -> Model {
        let node = |name: &str, address: &str, cidr: &str| Node {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![cidr.parse().unwrap()],
        };
        [
            node("a", "192.0.2.1", "10.244.0.0/24"),
            node("b", "192.0.2.2", "10.244.1.0/24"),
            node("c", "198.51.100.3", "10.244.2.0/24"),
        ]
        .into_iter()
        .map(fairway_model::Object::Node)
        .collect()
    }

    /// `prefix kind source tunnel` of each route on node a.
    fn routes(backend: Backend) -> Vec<String> {
        let view = View {
            node: "a".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            on_link: vec!["192.0.2.0/24".parse().unwrap()],
            backend,
            ..View::default()
        };
        let model = model();
        compile::<V4>(&model, &model.nodes["a"], &view)
            .iter()
            .map(|((length, network), route)| {
                let kind = ["host", "direct", "tunnel"][route.kind.get() as usize];
                let tunnel = &route.tunnel[12..];
                format!("{}/{length} {kind} {} {tunnel:?}", network.to_ip(), route.source.to_ip())
            })
            .collect()
    }

    #[test]
    fn auto_takes_plain_routes_on_the_link_and_the_tunnel_beyond() {
        assert_eq!(
            routes(Backend::Auto),
            [
                "10.244.0.0/24 host 0.0.0.0 [0, 0, 0, 0]",
                "10.244.1.0/24 direct 192.0.2.1 [0, 0, 0, 0]",
                "10.244.2.0/24 tunnel 10.244.0.0 [198, 51, 100, 3]",
                "192.0.2.1/32 host 0.0.0.0 [0, 0, 0, 0]",
                "192.0.2.2/32 direct 192.0.2.1 [0, 0, 0, 0]",
                "198.51.100.3/32 tunnel 10.244.0.0 [198, 51, 100, 3]",
            ]
        );
    }

    #[test]
    fn the_host_takes_the_same_way_as_its_pods() {
        let model = model();
        let view = View {
            node: "a".into(),
            on_link: vec!["192.0.2.0/24".parse().unwrap()],
            ..View::default()
        };
        let routes = host_routes(&model, &model.nodes["a"], &view);
        let shown: Vec<_> =
            routes.iter().map(|route| format!("{} {:?}", route.destination, route.via)).collect();
        assert_eq!(
            shown,
            [
                "10.244.0.0/24 Unreachable",
                "10.244.1.0/24 Gateway { gateway: 192.0.2.2, source: 192.0.2.1 }",
                "10.244.2.0/24 Overlay { source: 10.244.0.0 }",
            ]
        );
    }

    #[test]
    fn a_forced_backend_holds_for_every_peer() {
        assert!(routes(Backend::Vxlan).iter().filter(|r| r.contains("tunnel")).count() == 4);
        assert!(routes(Backend::HostGw).iter().all(|r| !r.contains("tunnel")));
    }
}
