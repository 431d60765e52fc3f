//! Where packets go that no Service is asked for: how each destination is reached,
//! and what masquerade makes of them.

use fairway_abi::{DropReason, V4, V6, protocol};
use fairway_core::memory::Frame;
use fairway_core::packet::tcp;
use fairway_core::{Verdict, path};

use crate::for_both_families;
use crate::frame::{Builder, Family, Transport, checksum, ends, hop_limit};
use crate::node::{
    CLIENT, DIRECT_POD, NODE, Node, OTHER_POD, OUTSIDE, PEER, PEER_END, PEER_UNDERLAY, POD, PORTS,
    REMOTE_POD, to_pod,
};

for_both_families![
    a_broken_packet_is_a_drop_from_a_pod_and_the_hosts_business_from_elsewhere,
    each_destination_is_reached_its_own_way,
    what_arrives_is_for_a_pod_or_the_host,
    the_hosts_packets_find_their_tunnel,
    a_pod_and_a_peer_talk_through_the_tunnel,
    the_outside_sees_the_node_and_answers_come_back,
    a_port_outside_the_range_is_replaced_by_one_within,
    a_port_that_is_taken_is_replaced,
    no_free_port_is_a_counted_drop,
    a_masqueraded_ping_comes_back_under_its_identifier,
    what_has_no_port_cannot_be_masqueraded,
    without_a_masquerade_address_pods_show_their_own,
    who_asks_a_pod_from_outside_is_answered_by_the_pod,
    who_asks_a_pod_from_outside_may_use_the_ports_of_a_masqueraded_flow,
];

/// What is asked without a Service, and the answer.
const EXCHANGES: [(Transport, Transport); 3] = [
    (Transport::Tcp(tcp::SYN), Transport::Tcp(tcp::SYN | tcp::ACK)),
    (Transport::Udp, Transport::Udp),
    (Transport::EchoRequest, Transport::EchoReply),
];

fn ask<A: Family>(question: Transport, from: [u8; 4], to: [u8; 4]) -> Builder<A> {
    // An echo has one identifier, and none at its destination.
    let port = if question == Transport::EchoRequest { 0 } else { 443 };
    Builder::new(question, (A::at(from), 5000), (A::at(to), port))
}

fn a_broken_packet_is_a_drop_from_a_pod_and_the_hosts_business_from_elsewhere<A: Family>() {
    let tables = Node::<A>::new().tables;
    let whole = Builder::udp((A::at(POD), 5000), (A::at(OTHER_POD), 80)).frame();
    let mut frame = Frame::new(whole.bytes[..20].to_vec());
    let malformed = Verdict::Drop(DropReason::Malformed);
    assert_eq!(path::from_pod::<A, _, _>(&mut frame, &tables, 12), malformed);
    assert_eq!(path::from_overlay::<A, _, _>(&mut frame, &tables, &PEER_UNDERLAY), malformed);
    assert_eq!(path::tunnel_from_host::<A, _, _>(&frame, &tables), malformed);
    assert_eq!(path::from_uplink::<A, _, _>(&mut frame, &tables), Verdict::Pass);
    assert_eq!(path::from_host::<A, _, _>(&mut frame, &tables), Verdict::Pass);
}

fn each_destination_is_reached_its_own_way<A: Family>() {
    let node = Node::<A>::new();
    let cases = [
        ("a pod of this node", OTHER_POD, to_pod(OTHER_POD)),
        ("the pod itself", POD, to_pod(POD)),
        ("a pod behind the tunnel", REMOTE_POD, Verdict::Tunnel(PEER_END)),
        ("a node behind the tunnel", PEER, Verdict::Tunnel(PEER_END)),
        ("a pod by plain routing", DIRECT_POD, Verdict::Forward),
        ("the node", NODE, Verdict::Pass),
        ("an address of its pod range that nobody has", [10, 244, 1, 77], Verdict::Pass),
    ];
    for (what, destination, verdict) in cases {
        let (from, to) = ((A::at(POD), 5000), (A::at(destination), 80));
        let sent = node.pod_sends(&Builder::tcp(tcp::SYN, from, to));
        sent.goes(verdict, from, to);
        let hops = if verdict == Verdict::Pass { 64 } else { 63 };
        assert_eq!(hop_limit::<A>(&sent.frame), hops, "{what}");
        assert_eq!(checksum::<A>(&sent.frame), checksum::<A>(&sent.before), "{what}");
    }
    assert_eq!(node.flows(), (0, 0), "none of them needs a record");
}

fn what_arrives_is_for_a_pod_or_the_host<A: Family>() {
    // Only to answer somebody outside a pod would be masqueraded, but for a record.
    for (source, bring, records) in [
        (CLIENT, Node::uplink_brings as fn(&Node<A>, &Builder<A>) -> _, 2),
        (DIRECT_POD, Node::uplink_brings, 0),
        (REMOTE_POD, Node::overlay_brings, 0),
        (PEER, Node::overlay_brings, 0),
    ] {
        let node = Node::<A>::new();
        let from = (A::at(source), 5000);
        let to = (A::at(POD), 80);
        let sent = bring(&node, &Builder::tcp(tcp::SYN, from, to));
        sent.goes(to_pod(POD), from, to);
        assert_eq!(hop_limit::<A>(&sent.frame), 63);
        for destination in [NODE, DIRECT_POD, REMOTE_POD, CLIENT] {
            bring(&node, &Builder::udp(from, (A::at(destination), 80))).is_untouched();
        }
        assert_eq!(node.flows(), (records, 0), "{source:?}");
    }
    let node = Node::<A>::new();
    node.host_sends(&Builder::udp((A::at(NODE), 5000), (A::at(POD), 80))).is_untouched();
    assert_eq!(node.flows(), (0, 0));
}

fn the_hosts_packets_find_their_tunnel<A: Family>() {
    let tables = Node::<A>::new().tables;
    let verdict = |destination| {
        let packet = Builder::udp((A::at(NODE), 5000), (A::at(destination), 80)).frame();
        path::tunnel_from_host::<A, _, _>(&packet, &tables)
    };
    for tunnelled in [REMOTE_POD, PEER] {
        assert_eq!(verdict(tunnelled), Verdict::Tunnel(PEER_END));
    }
    for not_tunnelled in [DIRECT_POD, POD, CLIENT] {
        assert_eq!(verdict(not_tunnelled), Verdict::Drop(DropReason::ForeignTunnel));
    }
}

fn a_pod_and_a_peer_talk_through_the_tunnel<A: Family>() {
    let node = Node::<A>::new();
    let tunnel = Verdict::Tunnel(PEER_END);
    for (question, answer) in EXCHANGES {
        for peer in [PEER, REMOTE_POD] {
            let sent = node.pod_sends(&ask(question, POD, peer));
            sent.goes_unchanged(tunnel);
            node.overlay_brings(&sent.answer(answer)).goes_unchanged(to_pod(POD));

            let sent = node.overlay_brings(&ask(question, peer, POD));
            sent.goes_unchanged(to_pod(POD));
            node.pod_sends(&sent.answer(answer)).goes_unchanged(tunnel);
        }
    }
    assert_eq!(node.flows(), (0, 0), "none of them needs a record");
}

fn the_outside_sees_the_node_and_answers_come_back<A: Family>() {
    for (outside, transport, answer) in [
        (CLIENT, Transport::Tcp(tcp::SYN), Transport::Tcp(tcp::SYN | tcp::ACK)),
        (CLIENT, Transport::Udp, Transport::Udp),
        (CLIENT, Transport::UdpUnchecked, Transport::UdpUnchecked),
        (OUTSIDE, Transport::Tcp(tcp::SYN), Transport::Tcp(tcp::SYN | tcp::ACK)),
    ] {
        let node = Node::<A>::new();
        let (pod, outside) = ((A::at(POD), 5000), (A::at(outside), 443));
        let sent = node.pod_sends(&Builder::new(transport, pod, outside));
        sent.goes(Verdict::Forward, (A::at(NODE), 5000), outside);
        let back = node.uplink_brings(&sent.answer(answer));
        back.goes(to_pod(POD), outside, pod);
        assert_eq!(hop_limit::<A>(&sent.frame), 63);
        assert_eq!(hop_limit::<A>(&back.frame), 63);
        if transport == Transport::UdpUnchecked {
            assert_eq!((checksum::<A>(&sent.frame), checksum::<A>(&back.frame)), (0, 0));
        }
        assert_eq!(node.flows(), (0, 2));
    }
}

fn a_port_outside_the_range_is_replaced_by_one_within<A: Family>() {
    let node = Node::<A>::new();
    for dice in 0..64 {
        node.tables.dice.set(dice << 10);
        let pod = (A::at(POD), 40_000 + u16::try_from(dice).expect("small"));
        let sent = node.pod_sends(&Builder::udp(pod, (A::at(CLIENT), 443)));
        let (source, _) = sent.ends();
        assert!(source.0 == A::at(NODE) && PORTS.contains(&source.1), "{source:?}");
        let back = node.uplink_brings(&sent.answer(Transport::Udp));
        back.goes(to_pod(POD), (A::at(CLIENT), 443), pod);
    }
    for edge in [*PORTS.start(), *PORTS.end()] {
        let sent = node.pod_sends(&Builder::udp((A::at(POD), edge), (A::at(CLIENT), 53)));
        assert_eq!(sent.ends().0.1, edge, "a port within is kept");
    }
}

fn a_port_that_is_taken_is_replaced<A: Family>() {
    let node = Node::<A>::new();
    let outside = (A::at(CLIENT), 443);
    let first = node.pod_sends(&Builder::udp((A::at(POD), 5000), outside));
    let second = node.pod_sends(&Builder::udp((A::at(OTHER_POD), 5000), outside));
    assert_ne!(first.ends().0, second.ends().0);
    assert!(PORTS.contains(&second.ends().0.1));
    for (sent, pod) in [(first, POD), (second, OTHER_POD)] {
        let back = node.uplink_brings(&sent.answer(Transport::Udp));
        back.goes(to_pod(pod), outside, (A::at(pod), 5000));
    }
    // Also by a flow that has long been answered.
    let third = node.pod_sends(&Builder::udp((A::at(OTHER_POD), 5000), (A::at(CLIENT), 444)));
    assert_eq!(third.ends().0.1, 5000, "towards another port it is free");
}

fn no_free_port_is_a_counted_drop<A: Family>() {
    let mut node = Node::<A>::new();
    node.tables.config.first_port = 2000;
    node.tables.config.last_port = 2000;
    let outside = (A::at(CLIENT), 443);
    let sent = node.pod_sends(&Builder::udp((A::at(POD), 5000), outside));
    sent.goes(Verdict::Forward, (A::at(NODE), 2000), outside);
    let refused = node.pod_sends(&Builder::udp((A::at(POD), 5001), outside));
    refused.is_dropped(DropReason::NoSourcePort);
    assert_eq!(node.flows(), (2, 0), "the refused flow leaves nothing behind");
}

fn a_masqueraded_ping_comes_back_under_its_identifier<A: Family>() {
    let node = Node::<A>::new();
    let outside = (A::at(CLIENT), 0);
    // Two pods choose the same identifier, and one of them one that is out of range, and none at all.
    for (pod, identifier) in [(POD, 5000), (OTHER_POD, 5000), (OTHER_POD, 7), (OTHER_POD, 0)] {
        let ping = Builder::ping(A::at(pod), A::at(CLIENT), identifier);
        let sent = node.pod_sends(&ping);
        let ((source, seen), _) = sent.ends();
        assert!(source == A::at(NODE) && PORTS.contains(&seen), "{source:?} {seen}");
        let back = node.uplink_brings(&sent.answer(Transport::EchoReply));
        back.goes(to_pod(pod), outside, (A::at(pod), identifier));
    }
}

fn what_has_no_port_cannot_be_masqueraded<A: Family>() {
    let node = Node::<A>::new();
    let (pod, outside) = ((A::at(POD), 5000), (A::at(CLIENT), 443));
    for transport in [Transport::Other(47), Transport::Icmp(3), Transport::EchoReply] {
        node.pod_sends(&Builder::new(transport, pod, outside))
            .is_dropped(DropReason::UnsupportedProtocol);
    }
    // An answer to a question that never passed, whatever its identifier.
    node.pod_sends(&Builder::new(Transport::EchoReply, pod, (outside.0, 0)))
        .is_dropped(DropReason::UnsupportedProtocol);
    assert_eq!(node.flows(), (0, 0));
}

fn without_a_masquerade_address_pods_show_their_own<A: Family>() {
    let mut node = Node::<A>::new();
    node.tables.config.masquerade4 = [0; 4];
    node.tables.config.masquerade6 = [0; 16];
    let (pod, outside) = ((A::at(POD), 5000), (A::at(CLIENT), 443));
    node.pod_sends(&Builder::udp(pod, outside)).goes(Verdict::Forward, pod, outside);
    assert_eq!(node.flows(), (0, 0));
}

fn who_asks_a_pod_from_outside_is_answered_by_the_pod<A: Family>() {
    for (question, answer) in EXCHANGES {
        let node = Node::<A>::new();
        for _ in 0..2 {
            let sent = node.uplink_brings(&ask(question, CLIENT, POD));
            sent.goes_unchanged(to_pod(POD));
            node.pod_sends(&sent.answer(answer)).goes_unchanged(Verdict::Forward);
        }
        assert_eq!(node.flows(), (0, 2));
        // What the pod asks in turn is masqueraded as ever.
        let sent = node.pod_sends(&ask(question, POD, CLIENT));
        assert_eq!((sent.verdict, sent.ends().0), (Verdict::Forward, (A::at(NODE), 5000)));
    }
}

fn who_asks_a_pod_from_outside_may_use_the_ports_of_a_masqueraded_flow<A: Family>() {
    let node = Node::<A>::new();
    let (pod, outside) = ((A::at(POD), 5000), (A::at(CLIENT), 443));
    let own = node.pod_sends(&Builder::udp(pod, outside));
    own.goes(Verdict::Forward, (A::at(NODE), 5000), outside);
    let asked = node.uplink_brings(&Builder::udp(outside, pod));
    assert_eq!((asked.verdict, asked.ends().1), (to_pod(POD), pod));
    assert_ne!(asked.ends().0, outside, "the pod must be able to tell them apart");
    for _ in 0..2 {
        let back = node.pod_sends(&asked.answer(Transport::Udp));
        back.goes(Verdict::Forward, pod, outside);
        let back = node.uplink_brings(&own.answer(Transport::Udp));
        back.goes(to_pod(POD), outside, pod);
    }
}

/// What only one family has.
mod addresses {
    use super::*;

    #[test]
    fn special_ipv4_destinations_stay_the_hosts_business() {
        let node = Node::<V4>::new();
        for destination in [
            [224, 0, 0, 1],
            [239, 255, 255, 250],
            [255, 255, 255, 255],
            [240, 0, 0, 1],
            [169, 254, 169, 254],
            [127, 0, 0, 1],
            [0, 0, 0, 0],
        ] {
            node.pod_sends(&Builder::udp((POD, 5000), (destination, 53))).is_untouched();
        }
        for destination in [[223, 255, 255, 255], [169, 253, 0, 1], [128, 0, 0, 1], [1, 0, 0, 1]] {
            let sent = node.pod_sends(&Builder::udp((POD, 5000), (destination, 53)));
            assert_eq!(sent.verdict, Verdict::Forward, "{destination:?}");
        }
    }

    #[test]
    fn special_ipv6_destinations_stay_the_hosts_business() {
        let node = Node::<V6>::new();
        let pod = (V6::at(POD), 5000);
        for destination in ["ff02::1", "ff0e::101", "fe80::1", "febf::1", "::1", "::"] {
            node.pod_sends(&Builder::udp(pod, (v6(destination), 53))).is_untouched();
        }
        for destination in ["fec0::1", "fd00::1", "2001:db8:f::1", "64:ff9b::1"] {
            let sent = node.pod_sends(&Builder::udp(pod, (v6(destination), 53)));
            assert_eq!(sent.verdict, Verdict::Forward, "{destination}");
        }
    }

    fn v6(address: &str) -> V6 {
        address.parse::<std::net::Ipv6Addr>().expect("an address").octets()
    }
}

/// Checksums at the edges of their range.
mod checksums {
    use super::*;

    #[test]
    fn a_udp_checksum_that_becomes_zero_is_sent_as_ones() {
        fn story<A: Family>() {
            let node = Node::<A>::new();
            let (pod, outside) = ((A::at(POD), 5000), (A::at(CLIENT), 443));
            // The two bytes of payload that make the translated segment's sum zero.
            let zero = (0..=u16::MAX).map(u16::to_be_bytes).find(|payload| {
                let seen = Builder::udp((A::at(NODE), 5000), outside).payload(payload).frame();
                checksum::<A>(&seen) == 0xffff
            });
            let payload = zero.expect("a sum takes every value");
            let sent = node.pod_sends(&Builder::udp(pod, outside).payload(&payload));
            assert_eq!(checksum::<A>(&sent.frame), 0xffff);
            // And back again, where the pod must not take it for "none".
            let back = node.uplink_brings(&sent.answer(Transport::Udp).payload(&payload));
            assert_ne!(checksum::<A>(&back.frame), 0);
            assert_eq!(ends::<A>(&back.frame), (outside, pod));
        }
        story::<V4>();
        story::<V6>();
    }

    #[test]
    fn a_checksum_left_to_the_device_covers_the_new_addresses() {
        fn story<A: Family>() {
            for transport in [Transport::Tcp(tcp::SYN), Transport::Udp] {
                let node = Node::<A>::new();
                let (pod, outside) = ((A::at(POD), 40_000), (A::at(CLIENT), 443));
                let sent = node.pod_sends(&Builder::new(transport, pod, outside).partial(true));
                assert_eq!(sent.verdict, Verdict::Forward);
                let back = node.uplink_brings(&sent.answer(transport).partial(true));
                back.goes(to_pod(POD), outside, pod);
            }
        }
        story::<V4>();
        story::<V6>();
    }

    #[test]
    fn a_header_that_ends_before_its_checksum_opens_no_flow() {
        fn story<A: Family>() {
            let node = Node::<A>::new();
            let packet = Builder::tcp(tcp::SYN, (A::at(POD), 5000), (A::at(CLIENT), 443));
            let mut frame = packet.frame();
            frame.linear = A::read(&frame.bytes).4 + 16;
            let verdict = path::from_pod::<A, _, _>(&mut frame, &node.tables, 12);
            assert_eq!(verdict, Verdict::Drop(DropReason::Malformed));
            assert_eq!(node.flows(), (0, 0));
        }
        story::<V4>();
        story::<V6>();
    }

    #[test]
    fn options_and_extension_headers_are_kept() {
        let (pod, outside) = ((POD, 5000), (CLIENT, 443));
        let packet = Builder::<V4>::tcp(tcp::SYN, pod, outside).option(1, &[1, 1]);
        Node::new().pod_sends(&packet).goes(Verdict::Forward, (NODE, 5000), outside);
        let (pod, outside) = ((V6::at(POD), 5000), (V6::at(CLIENT), 443));
        let packet = Builder::<V6>::tcp(tcp::SYN, pod, outside).option(60, &[1; 6]);
        Node::new().pod_sends(&packet).goes(Verdict::Forward, (V6::at(NODE), 5000), outside);
    }

    #[test]
    fn a_change_keeps_the_protocol_number_beside_the_hop_limit() {
        let node = Node::<V4>::new();
        let sent = node.pod_sends(&Builder::udp((POD, 5000), (OTHER_POD, 80)).hop_limit(255));
        assert_eq!(hop_limit::<V4>(&sent.frame), 254);
        assert_eq!(V4::read(&sent.frame.bytes).0, protocol::UDP);
    }
}
