//! What the node tells the senders of packets that it cannot pass on: that their hop limit ended, or that
//! they are too big.

use fairway_abi::{DropReason, V4, V6, protocol};
use fairway_core::flow::Scratch;
use fairway_core::icmp::Compose;
use fairway_core::memory::Frame;
use fairway_core::packet::tcp;
use fairway_core::path::Todo;
use fairway_core::{Verdict, path};

use crate::for_both_families;
use crate::frame::{Builder, Family, Transport, assert_checksums, ends, fold, sum};
use crate::node::{
    CLIENT, DIRECT_POD, NODE, Node, OTHER_POD, OUTSIDE, OVERLAY, PEER_END, POD, REMOTE_POD, Sent,
    VIP, to_pod,
};

for_both_families![
    who_sent_a_packet_whose_hop_limit_ends_is_told,
    a_translated_packet_is_quoted_as_it_was_sent,
    a_packet_for_the_host_needs_no_hop_limit,
    nobody_is_told_of_errors_fragments_or_senders_that_are_none,
    too_many_complaints_are_a_counted_drop,
    without_an_address_of_its_own_the_node_leaves_it_to_the_host,
    who_sent_a_packet_that_is_too_big_is_told_what_fits,
    sctp_need_not_fit_where_the_tunnel_or_a_pod_takes_it,
    a_long_packet_is_quoted_in_part,
    a_checksum_that_is_still_to_be_finished_does_not_break_the_quotes,
];

const KINDS: [Transport; 3] = [Transport::Tcp(tcp::SYN), Transport::Udp, Transport::EchoRequest];

/// What an error says.
#[derive(Debug, PartialEq, Eq)]
struct Error<A> {
    from: A,
    to: A,
    kind: u8,
    code: u8,
    mtu: u32,
    /// From the network header on.
    quote: Vec<u8>,
}

fn read<A: Family>(frame: &Frame) -> Error<A> {
    assert_checksums::<A>(frame);
    let (protocol, from, to, hop_limit, at) = A::read(&frame.bytes);
    assert_eq!((protocol, hop_limit), (A::ICMP, 64));
    let message = &frame.bytes[at..];
    let mtu = u32::from_be_bytes(message[4..8].try_into().expect("four bytes"));
    let quote = message[8..].to_vec();
    Error { from, to, kind: message[0], code: message[1], mtu, quote }
}

fn time_exceeded<A: Family>(from: A, sent: &Sent<A>) -> Error<A> {
    let ((to, _), _) = ends::<A>(&sent.before);
    let kind = if A::ICMP == protocol::ICMP { 11 } else { 3 };
    Error { from, to, kind, code: 0, mtu: 0, quote: sent.before.bytes[14..].to_vec() }
}

type Enter<A> = fn(&Node<A>, &Builder<A>) -> Sent<A>;

fn who_sent_a_packet_whose_hop_limit_ends_is_told<A: Family>() {
    let cases: [(&str, Enter<A>, _, _, _, _); 5] = [
        ("a pod", Node::pod_sends, POD, OTHER_POD, to_pod(POD), NODE),
        ("a pod that is masqueraded", Node::pod_sends, POD, OUTSIDE, to_pod(POD), NODE),
        ("a remote pod", Node::overlay_brings, REMOTE_POD, POD, Verdict::Tunnel(PEER_END), OVERLAY),
        ("a pod by plain routing", Node::uplink_brings, DIRECT_POD, POD, Verdict::Forward, NODE),
        ("somebody outside", Node::uplink_brings, CLIENT, POD, Verdict::Forward, NODE),
    ];
    for (who, enter, source, destination, way, from) in cases {
        for hops in [0, 1] {
            for transport in KINDS {
                let node = Node::<A>::new();
                let packet =
                    Builder::new(transport, (A::at(source), 5000), (A::at(destination), 0));
                let sent = enter(&node, &packet.hop_limit(hops));
                assert_eq!(sent.verdict, way, "{who}");
                assert_eq!(read(&sent.frame), time_exceeded(A::at(from), &sent), "{who}");
            }
        }
        let node = Node::<A>::new();
        let packet = Builder::udp((A::at(source), 5000), (A::at(destination), 80));
        assert_ne!(enter(&node, &packet.hop_limit(2)).verdict, way, "{who}");
    }
}

fn a_translated_packet_is_quoted_as_it_was_sent<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((VIP, 53), protocol::UDP, &[(OTHER_POD, 5353)]);
    node.service((NODE, 30_053), protocol::UDP, &[(REMOTE_POD, 5353)]);
    let sent = node.pod_sends(&Builder::udp((A::at(POD), 5000), (A::at(VIP), 53)).hop_limit(1));
    assert_eq!(sent.verdict, to_pod(POD));
    assert_eq!(read(&sent.frame), time_exceeded(A::at(NODE), &sent));
    let asked = Builder::udp((A::at(CLIENT), 5000), (A::at(NODE), 30_053));
    let sent = node.uplink_brings(&asked.hop_limit(1));
    assert_eq!(sent.verdict, Verdict::Forward);
    assert_eq!(read(&sent.frame), time_exceeded(A::at(NODE), &sent));
}

fn a_packet_for_the_host_needs_no_hop_limit<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_053), protocol::UDP, &[(NODE, 5353)]);
    let (client, frontend) = ((A::at(CLIENT), 5000), (A::at(NODE), 30_053));
    let sent = node.uplink_brings(&Builder::udp(client, frontend).hop_limit(1));
    sent.goes(Verdict::Pass, client, (A::at(NODE), 5353));
}

fn nobody_is_told_of_errors_fragments_or_senders_that_are_none<A: Family>() {
    let node = Node::<A>::new();
    let (pod, other) = ((A::at(POD), 5000), (A::at(OTHER_POD), 80));
    let error = Builder::new(Transport::Icmp(A::UNREACHABLE), pod, other);
    let unknown = Builder::new(Transport::Icmp(200), pod, other);
    let fragment = Builder::udp(pod, other).fragment(185, false);
    for packet in [error, unknown, fragment] {
        node.pod_sends(&packet.hop_limit(1)).is_dropped(DropReason::HopLimit);
    }
    let nobody = Builder::udp((A::UNSPECIFIED, 5000), pod);
    node.uplink_brings(&nobody.hop_limit(1)).is_dropped(DropReason::HopLimit);
}

fn too_many_complaints_are_a_counted_drop<A: Family>() {
    let node = Node::<A>::new();
    node.tables.complaints.set(1);
    let packet = Builder::udp((A::at(POD), 5000), (A::at(OTHER_POD), 80)).hop_limit(1);
    assert_eq!(node.pod_sends(&packet).verdict, to_pod(POD));
    node.pod_sends(&packet).is_dropped(DropReason::IcmpRateLimit);
}

fn without_an_address_of_its_own_the_node_leaves_it_to_the_host<A: Family>() {
    let mut node = Node::<A>::new();
    node.tables.config.masquerade4 = [0; 4];
    node.tables.config.masquerade6 = [0; 16];
    node.service((VIP, 53), protocol::UDP, &[(OTHER_POD, 5353)]);
    let pod = (A::at(POD), 5000);
    node.pod_sends(&Builder::udp(pod, (A::at(OTHER_POD), 80)).hop_limit(1)).is_untouched();
    // The host's stack takes this one for a packet to nobody.
    node.pod_sends(&Builder::udp(pod, (A::at(VIP), 53)).hop_limit(1))
        .is_dropped(DropReason::HopLimit);
}

/// What becomes of a pod's packet whose way has this MTU.
fn exceeds<A: Family>(node: &Node<A>, frame: &mut Frame, mtu: u32) -> Verdict {
    let headers = A::parse(frame).expect("well-formed");
    let mut scratch = Scratch::default();
    if path::decide_from_pod(&node.tables, &headers, &mut scratch) == Ok(Todo::Open) {
        path::open(&node.tables, &node.tables, &headers, &mut scratch).expect("a flow");
    }
    path::apply_large(frame, &node.tables, &headers, &mut scratch, mtu)
}

fn who_sent_a_packet_that_is_too_big_is_told_what_fits<A: Family>() {
    let node = Node::<A>::new();
    for destination in [OTHER_POD, REMOTE_POD, DIRECT_POD, OUTSIDE] {
        let packet = Builder::udp((A::at(POD), 5000), (A::at(destination), 80));
        let before = packet.clone().whole().frame();
        let mut frame = before.clone();
        assert_eq!(exceeds(&node, &mut frame, 1400), to_pod(POD));
        let (kind, code) = if A::ICMP == protocol::ICMP { (3, 4) } else { (2, 0) };
        let (from, to, quote) = (A::at(NODE), A::at(POD), before.bytes[14..].to_vec());
        assert_eq!(read(&frame), Error { from, to, kind, code, mtu: 1400, quote });

        // What may be cut need not fit, where somebody cuts it or takes it as it is.
        let mut frame = packet.frame();
        let verdict = exceeds(&node, &mut frame, 1400);
        let expected = match destination {
            _ if A::ICMP != protocol::ICMP => to_pod(POD),
            OTHER_POD => to_pod(OTHER_POD),
            REMOTE_POD => Verdict::Tunnel(PEER_END),
            DIRECT_POD => Verdict::Pass,
            // The host's stack would have to translate it.
            _ => to_pod(POD),
        };
        assert_eq!(verdict, expected, "{destination:?}");
        assert_eq!(frame == packet.frame(), verdict == Verdict::Pass);
    }
    let error =
        Builder::new(Transport::Icmp(A::UNREACHABLE), (A::at(POD), 0), (A::at(OTHER_POD), 0));
    let verdict = exceeds(&node, &mut error.whole().frame(), 1400);
    assert_eq!(verdict, Verdict::Drop(DropReason::TooBig));
}

fn sctp_need_not_fit_where_the_tunnel_or_a_pod_takes_it<A: Family>() {
    let node = Node::<A>::new();
    for (destination, expected) in [
        (OTHER_POD, to_pod(OTHER_POD)),
        (REMOTE_POD, Verdict::Tunnel(PEER_END)),
        (DIRECT_POD, to_pod(POD)),
        (OUTSIDE, to_pod(POD)),
    ] {
        let packet = Builder::new(Transport::Sctp, (A::at(POD), 5000), (A::at(destination), 80));
        let verdict = exceeds(&node, &mut packet.whole().frame(), 1400);
        assert_eq!(verdict, expected, "{destination:?}");
    }
}

fn a_long_packet_is_quoted_in_part<A: Family>() {
    let node = Node::<A>::new();
    let least = if A::ICMP == protocol::ICMP { 576 } else { 1280 };
    for length in [least - 60, least, 9000] {
        let packet = Builder::udp((A::at(POD), 5000), (A::at(OTHER_POD), 80));
        let before = packet.payload(&vec![7; length]).whole().frame();
        let mut frame = before.clone();
        assert_eq!(exceeds(&node, &mut frame, 576), to_pod(POD));
        let quote = read::<A>(&frame).quote;
        assert!(frame.bytes.len() <= 14 + least && quote.len() <= A::QUOTE_LIMIT as usize);
        assert!(before.bytes[14..].starts_with(&quote));
        assert!(length < least || frame.bytes.len() == 14 + least);
    }
}

fn a_checksum_that_is_still_to_be_finished_does_not_break_the_quotes<A: Family>() {
    let node = Node::<A>::new();
    for transport in [Transport::Tcp(tcp::ACK), Transport::Udp] {
        for length in [7, 3000] {
            let packet = Builder::new(transport, (A::at(POD), 5000), (A::at(OTHER_POD), 80));
            let whole = packet.payload(&vec![9; length]).partial(true).whole().frame();
            let (.., transport_at) = A::read(&whole.bytes);
            let mut frame = whole.clone();
            assert_eq!(exceeds(&node, &mut frame, 576), to_pod(POD));
            frame.partial = false;
            // What the device does on the way out: the field takes the complement of the sum of
            // all there is from the transport header on.
            let (.., at) = A::read(&frame.bytes);
            let segment = at + 8 + transport_at - 14;
            let field = segment + if transport == Transport::Tcp(tcp::ACK) { 16 } else { 6 };
            let sum = !fold(sum(&frame.bytes[segment..]));
            frame.bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            read::<A>(&frame);
        }
    }
}

/// What only one family has.
#[test]
fn the_least_mtu_bounds_what_is_quoted() {
    assert_eq!((V4::QUOTE_LIMIT, V6::QUOTE_LIMIT), (548, 1232));
}
