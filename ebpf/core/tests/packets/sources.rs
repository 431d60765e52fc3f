//! Who sent it: what a pod may say of itself, and where packets with which sources come from.

use fairway_abi::{DropReason, PodRange, Route, TunnelEnd, V4, V6, protocol, route};
use fairway_core::memory::Frame;
use fairway_core::packet::tcp;
use fairway_core::{Verdict, neighbour, path};
use zerocopy::native_endian::U32;

use crate::for_both_families;
use crate::frame::{Builder, Family, Transport};
use crate::node::{
    CLIENT, DIRECT_POD, NODE, Node, OTHER_POD, OVERLAY, PEER, PEER_UNDERLAY, POD, REMOTE_POD,
    to_pod,
};

for_both_families![
    a_pod_sends_only_from_its_own_address,
    a_pod_is_no_router,
    no_packet_from_the_network_is_from_a_pod_of_this_node,
    a_source_that_others_may_share_is_not_held_against_a_packet,
    the_node_itself_reaches_its_pods_by_no_wire,
    what_a_load_balancer_sends_back_keeps_the_nodes_address,
    a_tunnelled_peers_pods_come_by_the_tunnel_alone,
    only_the_node_that_a_source_is_routed_to_may_tunnel_it,
];

const SPOOFED: Verdict = Verdict::Drop(DropReason::SpoofedSource);

fn a_pod_sends_only_from_its_own_address<A: Family>() {
    let node = Node::<A>::new();
    let to = (A::at(OTHER_POD), 80);
    for source in [OTHER_POD, REMOTE_POD, CLIENT, NODE] {
        let sent = node.interface_brings(&Builder::udp((A::at(source), 5000), to), 12);
        assert_eq!(sent.verdict, SPOOFED, "{source:?}");
    }
    let own = Builder::udp((A::at(POD), 5000), to);
    assert_eq!(node.interface_brings(&own, 12).verdict, to_pod(OTHER_POD));
    node.interface_brings(&own, 99).is_dropped(DropReason::SpoofedSource);
    let nobody = Builder::udp((A::UNSPECIFIED, 5000), to);
    node.interface_brings(&nobody, 12).is_dropped(DropReason::SpoofedSource);
}

fn a_pod_is_no_router<A: Family>() {
    let node = Node::<A>::new();
    let redirect = if A::ICMP == protocol::ICMP { 5 } else { 137 };
    for to in [NODE, OTHER_POD, CLIENT] {
        let ends = ((A::at(POD), 0), (A::at(to), 0));
        let message = |kind| Builder::new(Transport::Icmp(kind), ends.0, ends.1).payload(&[7; 60]);
        node.pod_sends(&message(redirect)).is_dropped(DropReason::SpoofedSource);
        // Nor in pieces, of which the first one says what they are.
        node.pod_sends(&message(redirect).piece(0..24, true)).is_dropped(DropReason::SpoofedSource);
    }
    // A big ping is in pieces, too, and a later one may begin like a redirect.
    let (pod, other) = (A::at(POD), A::at(OTHER_POD));
    let ping = Builder::ping(pod, other, 7).payload(&[redirect; 60]);
    for piece in [ping.clone().piece(0..24, true), ping.piece(24..68, false)] {
        assert_eq!(node.pod_sends(&piece).verdict, to_pod(OTHER_POD));
    }
}

fn no_packet_from_the_network_is_from_a_pod_of_this_node<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_080), protocol::TCP, &[(OTHER_POD, 8080)]);
    // One that is there, one that is not, and the node's own end of the overlay.
    for source in [POD, [10, 244, 1, 77], OVERLAY] {
        for to in [(OTHER_POD, 80), (NODE, 22), (NODE, 30_080), (CLIENT, 443)] {
            let from = (A::at(source), 5000);
            let packet = Builder::tcp(tcp::SYN, from, (A::at(to.0), to.1));
            node.uplink_brings(&packet).is_dropped(DropReason::ForeignSource);
        }
    }
    // Not even as an answer to a pod that reaches itself through a Service.
    node.service((NODE, 30_081), protocol::UDP, &[(POD, 8080)]);
    let hairpin = node.pod_sends(&Builder::udp((A::at(POD), 5000), (A::at(NODE), 30_081)));
    assert_eq!(hairpin.verdict, to_pod(POD));
    let forged = hairpin.answer(Transport::Udp);
    node.uplink_brings(&forged).is_dropped(DropReason::ForeignSource);
    // What the host's stack sends may well be from a pod: it forwards what programs leave to it.
    node.host_sends(&Builder::udp((A::at(POD), 5000), (A::at(CLIENT), 443))).is_untouched();
}

fn a_source_that_others_may_share_is_not_held_against_a_packet<A: Family>() {
    let mut node = Node::<A>::new();
    node.tables.pod_range = PodRange { network: A::UNSPECIFIED, mask: A::UNSPECIFIED };
    let (neighbour, pod) = ((A::at([10, 244, 1, 77]), 5000), (A::at(POD), 80));
    node.uplink_brings(&Builder::udp(neighbour, pod)).goes_unchanged(to_pod(POD));
    node.uplink_brings(&Builder::udp(neighbour, (A::at(NODE), 22))).is_untouched();
}

fn the_node_itself_reaches_its_pods_by_no_wire<A: Family>() {
    let node = Node::<A>::new();
    let packet = Builder::udp((A::at(NODE), 5000), (A::at(POD), 80));
    node.uplink_brings(&packet).is_dropped(DropReason::ForeignSource);
    node.host_sends(&packet).is_untouched();
}

fn what_a_load_balancer_sends_back_keeps_the_nodes_address<A: Family>() {
    // A pod asks a load balancer outside, and that keeps the source and chooses this node.
    let mut node = Node::<A>::new();
    node.service((NODE, 30_080), protocol::TCP, &[(OTHER_POD, 8080)]);
    let asked = (A::at(CLIENT), 443);
    let sent = node.pod_sends(&Builder::tcp(tcp::SYN, (A::at(POD), 5000), asked));
    let (source, _) = sent.ends();
    assert_eq!(source.0, A::at(NODE));
    let back = node.uplink_brings(&Builder::tcp(tcp::SYN, source, (A::at(NODE), 30_080)));
    back.goes(to_pod(OTHER_POD), source, (A::at(OTHER_POD), 8080));
}

fn a_tunnelled_peers_pods_come_by_the_tunnel_alone<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_080), protocol::TCP, &[(OTHER_POD, 8080)]);
    for to in [(POD, 80), (NODE, 30_080)] {
        let to = (A::at(to.0), to.1);
        let from = |source| Builder::tcp(tcp::SYN, (A::at(source), 5000), to);
        node.uplink_brings(&from(REMOTE_POD)).is_dropped(DropReason::ForeignSource);
        assert_eq!(node.flows(), (0, 0));
        // The peer itself may take either way, and nobody can tell a plainly routed pod's.
        for (source, brings) in [
            (REMOTE_POD, Node::overlay_brings as fn(&Node<A>, &Builder<A>) -> _),
            (PEER, Node::overlay_brings),
            (PEER, Node::uplink_brings),
            (DIRECT_POD, Node::uplink_brings),
        ] {
            let node = node.clone();
            assert!(matches!(brings(&node, &from(source)).verdict, Verdict::Pod(_)), "{source:?}");
        }
    }
}

fn only_the_node_that_a_source_is_routed_to_may_tunnel_it<A: Family>() {
    let node = Node::<A>::new();
    let to = (A::at(POD), 80);
    let mut other = PEER_UNDERLAY;
    other[15] = 9;
    let cases = [
        ("its pod", REMOTE_POD, PEER_UNDERLAY, true),
        ("the peer itself", PEER, PEER_UNDERLAY, true),
        ("another node for its pod", REMOTE_POD, other, false),
        ("another node for the peer", PEER, other, false),
        ("a pod that is routed plainly", DIRECT_POD, PEER_UNDERLAY, false),
        ("a pod of this node", OTHER_POD, PEER_UNDERLAY, false),
        ("this node", NODE, PEER_UNDERLAY, false),
        ("this node's end of the tunnel", OVERLAY, PEER_UNDERLAY, false),
        ("somebody outside", CLIENT, PEER_UNDERLAY, false),
    ];
    for (what, source, peer, passes) in cases {
        let sent = node.tunnel_brings(&Builder::udp((A::at(source), 5000), to), &peer);
        let expected = if passes { to_pod(POD) } else { Verdict::Drop(DropReason::ForeignTunnel) };
        assert_eq!(sent.verdict, expected, "{what}");
    }
}

/// The MAC address that frames built here come from.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 3];

mod arp {
    use super::*;

    const REQUEST: u8 = 1;
    const REPLY: u8 = 2;

    fn arp(operation: u8, mac: [u8; 6], sender: V4, target: V4) -> Frame {
        let ethernet = [[0xff; 6].as_slice(), &MAC, &[0x08, 0x06]].concat();
        let head = [0, 1, 0x08, 0, 6, 4, 0, operation];
        Frame::new([ethernet.as_slice(), &head, &mac, &sender, &[0; 6], &target].concat())
    }

    #[test]
    fn a_pod_speaks_for_its_own_address_from_where_it_is() {
        let tables = Node::<V4>::new().tables;
        for (what, frame, ifindex, passes) in [
            ("it asks", arp(REQUEST, MAC, POD, NODE), 12, true),
            ("it answers", arp(REPLY, MAC, POD, NODE), 12, true),
            ("it announces itself", arp(REQUEST, MAC, POD, POD), 12, true),
            ("a probe", arp(REQUEST, MAC, [0; 4], POD), 12, true),
            ("an answer from nobody", arp(REPLY, MAC, [0; 4], POD), 12, false),
            ("another pod's address", arp(REQUEST, MAC, OTHER_POD, NODE), 12, false),
            ("another pod answered for", arp(REPLY, MAC, OTHER_POD, NODE), 12, false),
            ("another pod announced", arp(REQUEST, MAC, OTHER_POD, OTHER_POD), 12, false),
            ("the node's address", arp(REPLY, MAC, NODE, POD), 12, false),
            ("another MAC address", arp(REPLY, OTHER_MAC, POD, NODE), 12, false),
            ("a probe from another MAC address", arp(REQUEST, OTHER_MAC, [0; 4], POD), 12, false),
            ("an interface that is no pod's", arp(REQUEST, MAC, POD, NODE), 99, false),
        ] {
            let expected = if passes { Verdict::Pass } else { SPOOFED };
            assert_eq!(neighbour::arp_from_pod(&frame, &tables, ifindex), expected, "{what}");
        }
    }

    #[test]
    fn a_pod_without_an_ipv4_address_has_none_to_speak_for() {
        let mut tables = Node::<V4>::new().tables;
        tables.interfaces.get_mut(&12).expect("a pod").address4 = [0; 4];
        for (operation, verdict) in [(REQUEST, Verdict::Pass), (REPLY, SPOOFED)] {
            let frame = arp(operation, MAC, [0; 4], POD);
            assert_eq!(neighbour::arp_from_pod(&frame, &tables, 12), verdict);
        }
    }

    #[test]
    fn what_is_no_arp_for_ipv4_on_ethernet_is_malformed() {
        let tables = Node::<V4>::new().tables;
        let whole = arp(REQUEST, MAC, POD, NODE);
        let mut bad = Vec::new();
        for at in [14, 15, 16, 17, 18, 19, 20] {
            let mut frame = whole.clone();
            frame.bytes[at] ^= 0x40;
            bad.push(frame);
        }
        for operation in [0, 3, 8, 9] {
            bad.push(arp(operation, MAC, POD, NODE));
        }
        for length in [14, 20, 41] {
            bad.push(Frame::new(whole.bytes[..length].to_vec()));
        }
        for frame in bad {
            let verdict = neighbour::arp_from_pod(&frame, &tables, 12);
            assert_eq!(verdict, Verdict::Drop(DropReason::Malformed), "{frame:02x?}");
        }
    }
}

mod discovery {
    use super::*;

    const ROUTER_SOLICITATION: u8 = 133;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    const REDIRECT: u8 = 137;

    fn v6(address: &str) -> V6 {
        address.parse::<std::net::Ipv6Addr>().expect("an address").octets()
    }

    fn own() -> V6 {
        V6::at(POD)
    }

    /// A message about `target`, with a source or target link-layer address if one is given.
    fn message(kind: u8, from: V6, to: V6, target: V6, mac: Option<[u8; 6]>) -> Builder<V6> {
        let option = |mac: [u8; 6]| {
            let named = if kind == ADVERTISEMENT { 2 } else { 1 };
            [[named, 1].as_slice(), &mac].concat()
        };
        let option = mac.map(option).unwrap_or_default();
        let body = [target.as_slice(), &option].concat();
        Builder::new(Transport::Icmp(kind), (from, 0), (to, 0)).payload(&body).hop_limit(255)
    }

    #[track_caller]
    fn check(what: &str, packet: &Builder<V6>, passes: bool) {
        let sent = Node::<V6>::new().interface_brings(packet, 12);
        assert_eq!(sent.verdict, if passes { Verdict::Pass } else { SPOOFED }, "{what}");
    }

    #[test]
    fn a_pods_neighbour_discovery_passes_and_goes_no_further() {
        for (from, to, passes) in [
            ("fe80::1", "ff02::1:ff00:1", true),
            ("fe80::1", "fe80::2", true),
            ("fe80::1", "2001:db8::1", false),
            ("::", "2001:db8::1", false),
            ("2001:db8::1", "ff02::1", false),
        ] {
            let packet = message(SOLICITATION, v6(from), v6(to), v6("fe80::2"), None);
            check(&format!("{from} to {to}"), &packet, passes);
        }
    }

    #[test]
    fn a_pod_asks_for_anybody_and_speaks_for_itself() {
        let (local, nobody, all) = (v6("fe80::5"), v6("::"), v6("ff02::1"));
        let other = V6::at(OTHER_POD);
        for (what, kind, from, target, passes) in [
            ("who has the other", SOLICITATION, own(), other, true),
            ("who has the other, from its link-local one", SOLICITATION, local, other, true),
            ("is its own taken", SOLICITATION, nobody, own(), true),
            ("is its link-local one taken", SOLICITATION, nobody, local, true),
            ("is the other's taken", SOLICITATION, nobody, other, false),
            ("it has its own", ADVERTISEMENT, own(), own(), true),
            ("it has its own, from its link-local one", ADVERTISEMENT, local, own(), true),
            ("it has its link-local one", ADVERTISEMENT, local, local, true),
            ("it has the other's", ADVERTISEMENT, own(), other, false),
            ("it has the node's", ADVERTISEMENT, local, V6::at(NODE), false),
            ("it has none", ADVERTISEMENT, local, nobody, false),
        ] {
            for mac in [None, Some(MAC)] {
                check(what, &message(kind, from, all, target, mac), passes);
            }
            check(what, &message(kind, from, all, target, Some(OTHER_MAC)), false);
        }
        // To the node's own address, too, which is no link-local one.
        check("unicast", &message(ADVERTISEMENT, own(), V6::at(NODE), own(), None), true);
        check("unicast", &message(ADVERTISEMENT, own(), V6::at(NODE), other, None), false);
    }

    #[test]
    fn a_pod_without_an_ipv6_address_has_its_link_local_ones() {
        let mut node = Node::<V6>::new();
        node.tables.interfaces.get_mut(&12).expect("a pod").address6 = [0; 16];
        let local = v6("fe80::5");
        for (target, verdict) in [(local, Verdict::Pass), ([0; 16], SPOOFED)] {
            let packet = message(ADVERTISEMENT, local, v6("ff02::1"), target, None);
            assert_eq!(node.interface_brings(&packet, 12).verdict, verdict);
        }
    }

    #[test]
    fn a_pod_asks_for_routers_and_is_none() {
        let (local, all) = (v6("fe80::5"), v6("ff02::1"));
        for (kind, passes) in
            [(ROUTER_SOLICITATION, true), (ROUTER_ADVERTISEMENT, false), (REDIRECT, false)]
        {
            check(&kind.to_string(), &message(kind, local, all, own(), Some(MAC)), passes);
        }
    }

    #[test]
    fn what_is_cut_off_or_hidden_does_not_pass() {
        let (local, all) = (v6("fe80::5"), v6("ff02::1"));
        let whole = message(ADVERTISEMENT, local, all, own(), Some(MAC));
        let node = Node::<V6>::new();
        let mut frame = whole.frame();
        assert_eq!(path::from_pod::<V6, _, _>(&mut frame, &node.tables, 12), Verdict::Pass);
        // Part of the target, and part of an option: in pieces, and not there at all.
        for linear in [70, 80] {
            let mut frame = whole.frame();
            frame.linear = linear;
            assert_eq!(path::from_pod::<V6, _, _>(&mut frame, &node.tables, 12), SPOOFED);
            frame.bytes.truncate(linear);
            assert_eq!(path::from_pod::<V6, _, _>(&mut frame, &node.tables, 12), SPOOFED);
        }
        // An option without length (RFC 4861, 4.6).
        let mut frame = whole.frame();
        frame.bytes[79] = 0;
        assert_eq!(path::from_pod::<V6, _, _>(&mut frame, &node.tables, 12), SPOOFED);
        // Behind extension headers: found behind a few, refused behind more.
        let hide = |count| {
            let lie = message(ADVERTISEMENT, local, all, V6::at(OTHER_POD), None);
            (0..count).fold(lie, |packet, _| packet.option(60, &[0; 6]))
        };
        for count in 1..=4 {
            node.interface_brings(&hide(count), 12).is_dropped(DropReason::SpoofedSource);
        }
        node.interface_brings(&hide(5), 12).is_dropped(DropReason::Malformed);
        // No receiver takes it with a smaller hop limit.
        node.interface_brings(&hide(5).hop_limit(254), 12).is_untouched();
    }
}

/// Link-local destinations outside.
mod metadata {
    use super::*;

    const METADATA: V4 = [169, 254, 169, 254];
    const CACHE: V4 = [169, 254, 20, 10];

    #[test]
    fn link_local_destinations_are_masqueraded_where_a_route_says_so() {
        let mut node = Node::<V4>::new();
        let ask =
            |node: &Node<V4>, to| node.pod_sends(&Builder::tcp(tcp::SYN, (POD, 5000), (to, 80)));
        ask(&node, METADATA).is_untouched();
        let route = |kind| Route { kind: U32::new(kind), source: NODE, peer: TunnelEnd::default() };
        node.tables.routes.push((0, [0; 4], route(route::DIRECT)));
        ask(&node, METADATA).is_untouched();
        node.tables.routes.push((16, [169, 254, 0, 0], route(route::OUTSIDE)));
        node.tables.routes.push((32, CACHE, route(route::HOST)));
        ask(&node, CACHE).is_untouched();
        let sent = ask(&node, METADATA);
        sent.goes(Verdict::Forward, (NODE, 5000), (METADATA, 80));
        let back = node.uplink_brings(&sent.answer(Transport::Tcp(tcp::SYN | tcp::ACK)));
        back.goes(to_pod(POD), (METADATA, 80), (POD, 5000));
    }
}
