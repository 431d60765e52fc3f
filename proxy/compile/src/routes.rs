//! How a node reaches its own addresses, its peers and their pods.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use fairway_abi::{PodRange, Route, TunnelEnd, V4, V6, peer, route};
use fairway_model::{Model, Node, Vtep};
use ipnet::{IpNet, Ipv4Net};
use zerocopy::native_endian::U32;

use crate::family::mapped;
use crate::{Backend, Family, View, first, resolver};

/// The peers that may bring packets of clients from outside through the tunnel: where their ends of it
/// are, and an address that is routed there.
pub type Peers<A> = BTreeMap<V6, A>;

/// Routes of one family: prefix length and network address to what becomes of a packet.
pub type Routes<A> = BTreeMap<(u8, A), Route<A>>;

/// A route the host's own stack needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostRoute {
    /// A range of pods, or of Services.
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
    /// This node's own pods, of which each has a route of its own, or Services' addresses: for all that
    /// nobody has, the sender is told so, rather than having its packets wander off by the default
    /// route.
    Unreachable,
}

/// The routes of one family on `node`.
pub(crate) fn compile<A: Family>(model: &Model, node: &Node, view: &View) -> Routes<A> {
    let mut routes = Routes::new();
    let own = first::<A>(node).unwrap_or(A::UNSPECIFIED);
    let entry = |kind, source, peer| Route { kind: U32::new(kind), source, peer };
    let none = TunnelEnd::default();
    let overlay = pod_cidr::<A>(node).map_or(A::UNSPECIFIED, |(_, network)| network);

    for other in model.nodes.values().filter(|other| other.name != node.name) {
        let Some(end) = tunnel_end::<A>(node, other) else { continue };
        let known = |end, flags| TunnelEnd { flags: [peer::KNOWN | flags, 0], ..end };
        let takes = if takes_clients(view, &end) { peer::TAKES_CLIENTS } else { 0 };
        // Through the tunnel also to the peer itself: the underlay may know nothing of pods.
        let (way, to_itself, source, end) = if is_tunnelled(view, end.underlay) {
            let end = TunnelEnd { underlay: mapped(end.underlay), mac: end.mac, ..none };
            (route::TUNNEL, route::TUNNEL_NODE, overlay, end)
        } else {
            (route::DIRECT, route::DIRECT, own, none)
        };
        let itself = entry(to_itself, source, known(end, peer::NODE));
        let pods = entry(way, source, known(end, takes));
        for address in other.addresses.iter().filter_map(|ip| A::of(*ip)) {
            routes.insert((A::BITS, address), itself);
        }
        if let Some(cidr) = pod_cidr::<A>(other) {
            routes.insert(cidr, pods);
        }
    }
    if let Some(cidr) = pod_cidr::<A>(node) {
        routes.insert(cidr, entry(route::HOST, A::UNSPECIFIED, none));
    }
    for address in view.addresses.iter().chain(&node.addresses).filter_map(|ip| A::of(*ip)) {
        routes.insert((A::BITS, address), entry(route::HOST, A::UNSPECIFIED, none));
    }
    if view.resolver.is_some() {
        routes.insert((A::BITS, A::RESOLVER), entry(route::HOST, A::UNSPECIFIED, none));
        for peer in resolver::peers::<A>(model, node) {
            let pods = routes.iter().find(|((_, network), _)| *network == peer);
            if let Some(mut way) = pods.map(|(_, way)| *way) {
                way.peer.flags[0] |= peer::RESOLVER;
                routes.insert((A::BITS, peer), way);
            }
        }
    }
    for range in service_ranges(model, view) {
        let prefix = A::of(range.network()).map(|network| (range.prefix_len(), network));
        // A cluster whose ranges overlap reaches its nodes and pods all the same.
        if let Some(prefix) = prefix {
            routes.entry(prefix).or_insert(entry(route::SERVICES, A::UNSPECIFIED, none));
        }
    }
    let masquerade = &view.masquerade;
    if masquerade.link_local
        && let Some(gateway) = A::of(GATEWAY.into())
    {
        // What is there is outside, but for the node's own such addresses and pods' gateway.
        routes.insert((A::BITS, gateway), entry(route::HOST, A::UNSPECIFIED, none));
        let range = A::of(LINK_LOCAL.addr().into()).map(|range| (LINK_LOCAL.prefix_len(), range));
        routes.extend(range.map(|range| (range, entry(route::OUTSIDE, own, none))));
    }
    // How the cluster is reached stays as it is, whatever is said of ranges around it or in it.
    let cluster: Vec<(u8, A)> = routes.keys().copied().collect();
    for range in &masquerade.direct {
        let Some(network) = A::of(range.network()) else { continue };
        let length = range.prefix_len();
        let covers = |(of, prefix): &(u8, A)| {
            *of <= length && IpNet::new(prefix.to_ip(), *of).is_ok_and(|net| net.contains(range))
        };
        if !cluster.iter().any(covers) {
            routes.insert((length, network), entry(route::DIRECT, own, none));
        }
    }
    routes
}

/// See [`Peers`]; none where there are no tunnels that they could use.
pub(crate) fn peers<A: Family>(model: &Model, node: &Node, view: &View) -> Peers<A> {
    let others = model.nodes.values().filter(|other| other.name != node.name);
    let peers = others.filter_map(|other| {
        let end = tunnel_end::<A>(node, other)?;
        let takes = is_tunnelled(view, end.underlay) && takes_clients(view, &end);
        takes.then_some((mapped(end.underlay), pod_cidr::<A>(other)?.1))
    });
    peers.collect()
}

/// Whether packets of clients from outside may go to a peer's pods, and come through its tunnel. From each
/// WireGuard peer the device takes nobody's packets but its own and its pods', and flannel knows nothing of
/// a client.
fn takes_clients(view: &View, end: &Vtep) -> bool {
    !matches!(view.backend, Backend::Wireguard) && end.mac == [0; 6]
}

/// The ranges in which there are Services and nobody else, unless that is not to be made use of.
fn service_ranges<'a>(model: &'a Model, view: &View) -> impl Iterator<Item = &'a IpNet> {
    let ranges = (!view.unserved_passes).then(|| model.service_ranges.values());
    ranges.into_iter().flatten().flat_map(|ranges| &ranges.cidrs)
}

/// RFC 3927.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
/// What the CNI plugin names the node's end to IPv4 pods.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The range that this node's pods have for themselves.
pub(crate) fn pod_range<A: Family>(node: &Node, view: &View) -> PodRange<A> {
    match pod_cidr::<A>(node).filter(|_| !view.shares_pod_range) {
        Some((length, network)) => PodRange { network, mask: A::mask(length) },
        None => PodRange { network: A::UNSPECIFIED, mask: A::UNSPECIFIED },
    }
}

/// The routes of the host's own stack, in order of destination.
pub(crate) fn host_routes(model: &Model, node: &Node, view: &View) -> Vec<HostRoute> {
    let own = node.pod_cidrs.iter().map(|range| range.trunc());
    let own = own.map(|destination| HostRoute { destination, via: Via::Unreachable });
    // Whom a socket of the node asks there gets its endpoint before a route is looked for.
    let services = service_ranges(model, view).map(|range| range.trunc());
    let services = services.map(|destination| HostRoute { destination, via: Via::Unreachable });
    let mut routes: Vec<HostRoute> = own.chain(services).collect();
    for peer in model.nodes.values().filter(|peer| peer.name != node.name) {
        for cidr in &peer.pod_cidrs {
            let same_family = |ip: &IpAddr| ip.is_ipv4() == cidr.addr().is_ipv4();
            let end = match cidr {
                IpNet::V4(_) => tunnel_end::<V4>(node, peer),
                IpNet::V6(_) => tunnel_end::<V6>(node, peer),
            };
            let Some(end) = end else { continue };
            let via = if is_tunnelled(view, end.underlay) {
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
    routes.dedup_by_key(|route| route.destination);
    routes
}

/// Whether a tunnel to some peer of this node would cross an IPv6 underlay, which takes 20 bytes more
/// of each packet.
pub fn tunnels_over_v6(model: &Model, node: &str) -> bool {
    let Some(node) = model.nodes.get(node) else { return false };
    let mut peers = model.nodes.values().filter(|peer| peer.name != node.name);
    peers.any(|peer| {
        let ends = [tunnel_end::<V4>(node, peer), tunnel_end::<V6>(node, peer)];
        ends.into_iter().flatten().any(|end| end.underlay.is_ipv6())
    })
}

/// Where the tunnel to a peer's pods of this family ends: flannel's devices each carry their own
/// family alone, and ours both.
fn tunnel_end<A: Family>(node: &Node, peer: &Node) -> Option<Vtep> {
    let foreign = peer.vteps.iter().find(|vtep| A::of(vtep.underlay).is_some());
    foreign.copied().or_else(|| Some(Vtep { underlay: underlay(node, peer)?, mac: [0; 6] }))
}

/// The peer's address that both nodes have a family for, IPv4 first.
pub(crate) fn underlay(node: &Node, peer: &Node) -> Option<IpAddr> {
    let has = |v4: bool| node.addresses.iter().any(|ip| ip.is_ipv4() == v4);
    let of = |v4: bool| peer.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4 && has(v4));
    of(true).or_else(|| of(false))
}

fn is_tunnelled(view: &View, peer: IpAddr) -> bool {
    match view.backend {
        Backend::HostGw => false,
        // A peer whose key is not known is behind the device, too, which has no way to it: its packets
        // must not leave as they are.
        Backend::Vxlan | Backend::Wireguard => true,
        Backend::Auto => !view.on_link.iter().any(|prefix| prefix.contains(&peer)),
    }
}

fn pod_cidr<A: Family>(node: &Node) -> Option<(u8, A)> {
    node.pod_cidrs.iter().find_map(|cidr| Some((cidr.prefix_len(), A::of(cidr.network())?)))
}

#[cfg(test)]
mod tests {
    use fairway_model::ServiceRange;

    use super::*;
    use crate::Masquerade;

    fn model() -> Model {
        let node = |name: &str, address: &str, cidr: &str| Node {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![cidr.parse().unwrap()],
            ..Node::default()
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
        shown(&View { backend, ..view() })
    }

    /// Node a's.
    fn view() -> View {
        View {
            node: "a".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            on_link: vec!["192.0.2.0/24".parse().unwrap()],
            ..View::default()
        }
    }

    fn shown(view: &View) -> Vec<String> {
        let model = model();
        compile::<V4>(&model, &model.nodes["a"], view)
            .iter()
            .map(|((length, network), route)| {
                let kind = ["host", "direct", "tunnel", "tunnel-node", "outside"];
                let kind = kind[route.kind.get() as usize];
                let tunnel = &route.peer.underlay[12..];
                let source = route.source.to_ip();
                format!("{}/{length} {kind} {source} {tunnel:?}", network.to_ip())
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
                "198.51.100.3/32 tunnel-node 10.244.0.0 [198, 51, 100, 3]",
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
    fn the_ranges_of_services_are_theirs_alone_unless_what_is_unserved_passes() {
        let mut model = model();
        let cidrs = ranges(&["10.96.0.0/16"]);
        model.service_ranges.insert(ServiceRange { name: "kubernetes".into(), cidrs });
        for (unserved_passes, here) in [(false, true), (true, false)] {
            let view = View { unserved_passes, ..view() };
            let node = &model.nodes["a"];
            assert_eq!(
                compile::<V4>(&model, node, &view).contains_key(&(16, [10, 96, 0, 0])),
                here
            );
            let routes = host_routes(&model, node, &view);
            let of_services = |route: &HostRoute| route.destination == ranges(&["10.96.0.0/16"])[0];
            assert_eq!(routes.iter().any(of_services), here);
        }
    }

    #[test]
    fn a_forced_backend_holds_for_every_peer() {
        for tunnelled in [Backend::Vxlan, Backend::Wireguard] {
            assert!(routes(tunnelled).iter().filter(|r| r.contains("tunnel")).count() == 4);
        }
        assert!(routes(Backend::HostGw).iter().all(|r| !r.contains("tunnel")));
    }

    #[test]
    fn peers_take_packets_of_clients_unless_they_are_encrypted() {
        let model = model();
        let view = |backend| View { backend, ..view() };
        for (backend, taking, bringing) in [
            (Backend::Auto, &["10.244.1.0", "10.244.2.0"][..], &["198.51.100.3"][..]),
            (Backend::Vxlan, &["10.244.1.0", "10.244.2.0"], &["192.0.2.2", "198.51.100.3"]),
            (Backend::HostGw, &["10.244.1.0", "10.244.2.0"], &[]),
            (Backend::Wireguard, &[], &[]),
        ] {
            let routes = compile::<V4>(&model, &model.nodes["a"], &view(backend));
            let takes = |route: &Route<V4>| route.peer.flags[0] & peer::TAKES_CLIENTS != 0;
            let takers = routes.iter().filter(|(_, route)| takes(route));
            let takers: Vec<_> = takers.map(|((_, net), _)| net.to_ip().to_string()).collect();
            assert_eq!(takers, taking, "{backend:?}");
            let known = routes.values().filter(|route| route.peer.flags[0] & peer::KNOWN != 0);
            assert_eq!(known.count(), 4, "{backend:?}: two peers and their pods");
            let nodes = routes.values().filter(|route| route.peer.flags[0] & peer::NODE != 0);
            assert_eq!(nodes.count(), 2, "{backend:?}");
            let peers = peers::<V4>(&model, &model.nodes["a"], &view(backend));
            let ends: Vec<_> =
                peers.keys().map(|end| V6::to_ip(*end).to_canonical().to_string()).collect();
            assert_eq!(ends, bringing, "{backend:?}");
            assert!(peers.values().all(|at| routes.keys().any(|(_, net)| net == at)));
        }
    }

    #[test]
    fn a_peer_of_flannels_has_an_end_for_each_family() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let node = |name: &str, last: u16, vteps| Node {
            name: name.into(),
            addresses: vec![
                address(&format!("192.0.2.{last}")),
                address(&format!("2001:db8::{last}")),
            ],
            pod_cidrs: vec![
                format!("10.244.{last}.0/24").parse().unwrap(),
                format!("fd00:{last}::/64").parse().unwrap(),
            ],
            vteps,
            wireguard_key: None,
            ..Node::default()
        };
        let vteps = vec![
            Vtep { underlay: address("198.51.100.9"), mac: [2, 0, 0, 0, 0, 4] },
            Vtep { underlay: address("2001:db8::9"), mac: [2, 0, 0, 0, 0, 6] },
        ];
        let nodes = [node("a", 1, vec![]), node("b", 2, vteps)];
        let model: Model = nodes.into_iter().map(fairway_model::Object::Node).collect();
        let view = View { node: "a".into(), backend: Backend::Vxlan, ..View::default() };
        let v4 = compile::<V4>(&model, &model.nodes["a"], &view);
        let v6 = compile::<V6>(&model, &model.nodes["a"], &view);
        let end = |underlay, mac| TunnelEnd {
            underlay: mapped(address(underlay)),
            mac,
            flags: [peer::KNOWN, 0],
        };
        assert_eq!(v4[&(24, [10, 244, 2, 0])].peer, end("198.51.100.9", [2, 0, 0, 0, 0, 4]));
        let network: V6 = "fd00:2::".parse::<std::net::Ipv6Addr>().unwrap().octets();
        assert_eq!(v6[&(64, network)].peer, end("2001:db8::9", [2, 0, 0, 0, 0, 6]));
        assert!(
            peers::<V4>(&model, &model.nodes["a"], &view).is_empty(),
            "flannel's take no clients"
        );
        assert!(tunnels_over_v6(&model, "a") && !tunnels_over_v6(&model, "b"));
    }

    /// The routes on node a that are there only for this masquerade.
    fn added(masquerade: Masquerade) -> Vec<String> {
        let before = shown(&view());
        let mut after = shown(&View { masquerade, ..view() });
        assert!(before.iter().all(|route| after.contains(route)), "{after:?}");
        after.retain(|route| !before.contains(route));
        after
    }

    fn ranges(ranges: &[&str]) -> Vec<IpNet> {
        ranges.iter().map(|range| range.parse().unwrap()).collect()
    }

    #[test]
    fn excluded_ranges_are_forwarded_as_they_are() {
        let direct = ranges(&["172.16.0.0/12", "fd00::/8", "10.0.0.0/8"]);
        assert_eq!(
            added(Masquerade { direct, ..Masquerade::default() }),
            [
                "10.0.0.0/8 direct 192.0.2.1 [0, 0, 0, 0]",
                "172.16.0.0/12 direct 192.0.2.1 [0, 0, 0, 0]",
            ]
        );
        let direct = ranges(&["0.0.0.0/0", "::/0"]);
        let all = added(Masquerade { direct, ..Masquerade::default() });
        assert_eq!(all, ["0.0.0.0/0 direct 192.0.2.1 [0, 0, 0, 0]"]);
    }

    #[test]
    fn an_excluded_range_does_not_change_how_the_cluster_is_reached() {
        let direct = ranges(&[
            "10.244.2.0/24",   // a peer's pods
            "10.244.2.128/25", // some of them
            "10.244.0.0/24",   // this node's own
            "198.51.100.3/32", // a peer
            "192.0.2.1/32",    // this node
        ]);
        assert!(added(Masquerade { direct, ..Masquerade::default() }).is_empty());
    }

    #[test]
    fn link_local_addresses_are_outside_on_request_alone() {
        let link_local = Masquerade { link_local: true, ..Masquerade::default() };
        assert_eq!(
            added(link_local.clone()),
            [
                "169.254.0.0/16 outside 192.0.2.1 [0, 0, 0, 0]",
                "169.254.1.1/32 host 0.0.0.0 [0, 0, 0, 0]",
            ]
        );
        let addresses = vec!["192.0.2.1".parse().unwrap(), "169.254.20.10".parse().unwrap()];
        let own = shown(&View { addresses, masquerade: link_local, ..view() });
        assert!(own.contains(&"169.254.20.10/32 host 0.0.0.0 [0, 0, 0, 0]".to_owned()), "{own:?}");
    }

    #[test]
    fn the_range_of_pods_is_theirs_unless_others_share_it() {
        let node = |cidrs: &[&str]| Node { pod_cidrs: ranges(cidrs), ..Node::default() };
        let both = node(&["10.244.0.0/24", "fd00:244::/57"]);
        let range = pod_range::<V4>(&both, &view());
        assert_eq!((range.network, range.mask), ([10, 244, 0, 0], [255, 255, 255, 0]));
        let range = pod_range::<V6>(&both, &view());
        assert_eq!(range.network, "fd00:244::".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let mask = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(range.mask, mask);

        let shared = View { shares_pod_range: true, ..view() };
        assert_eq!(pod_range::<V4>(&both, &shared).network, [0; 4]);
        assert_eq!(pod_range::<V6>(&node(&["10.244.0.0/24"]), &view()).mask, [0; 16]);
    }
}
