//! Services that have nobody for a client: who is told so, and who is left waiting.

use fairway_abi::{DropReason, Frontend, FrontendKey, frontend, protocol, route, scope};
use fairway_core::Verdict;
use fairway_core::memory::Frame;
use fairway_core::packet::tcp;
use fairway_core::path::any_port;
use zerocopy::network_endian::U16;

use crate::for_both_families;
use crate::frame::{Builder, End, Family, Transport, assert_checksums, ends};
use crate::node::{CLIENT, NODE, Node, OTHER_POD, OTHER_VIP, POD, VIP, to_pod};

for_both_families![
    who_opens_a_connection_to_nobody_is_reset,
    who_is_in_the_middle_of_one_is_reset_where_it_is,
    a_reset_is_not_answered,
    whoever_speaks_no_tcp_is_told_that_the_port_is_unreachable,
    too_many_refusals_go_without_a_word,
    endpoints_elsewhere_are_a_drop_without_a_word,
    a_port_that_the_service_does_not_have_is_refused,
    an_address_that_no_service_has_is_a_drop,
    who_is_in_no_source_range_is_dropped,
    a_client_stays_with_its_endpoint_wherever_it_comes_by,
    a_flow_finds_the_same_endpoint_on_every_node,
];

const SYN: Transport = Transport::Tcp(tcp::SYN);
/// What the builder's segments say of themselves.
const SEQUENCE: u32 = 9;
const ACKNOWLEDGEMENT: u32 = 8;
const PAYLOAD: u32 = 7;

fn end<A: Family>((address, port): ([u8; 4], u16)) -> End<A> {
    (A::at(address), port)
}

/// A reset: sequence and acknowledgement number, and flags.
fn read_reset<A: Family>(frame: &Frame) -> (u32, u32, u8) {
    assert_checksums::<A>(frame);
    let (number, .., hop_limit, at) = A::read(&frame.bytes);
    assert_eq!((number, hop_limit), (protocol::TCP, 64));
    let segment = &frame.bytes[at..];
    assert_eq!((segment.len(), segment[12]), (20, 5 << 4), "no options, and no data");
    let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("four bytes"));
    (word(4), word(8), segment[13])
}

/// A node with a Service that has no endpoints, and where its packets come from.
fn empty<A: Family>(number: u8) -> Node<A> {
    let mut node = Node::<A>::new();
    node.service((VIP, 80), number, &[]);
    node
}

fn who_opens_a_connection_to_nobody_is_reset<A: Family>() {
    let node = empty::<A>(protocol::TCP);
    let (pod, client, frontend) = (end((POD, 40_000)), end((CLIENT, 40_000)), end((VIP, 80)));
    for partial in [false, true] {
        let sent = node.pod_sends(&Builder::new(SYN, pod, frontend).partial(partial));
        sent.goes(to_pod(POD), frontend, pod);
        let next = SEQUENCE + PAYLOAD + 1;
        assert_eq!(read_reset::<A>(&sent.frame), (0, next, tcp::RST | tcp::ACK));
        let sent = node.uplink_brings(&Builder::new(SYN, client, frontend).partial(partial));
        sent.goes(Verdict::Forward, frontend, client);
        assert_eq!(read_reset::<A>(&sent.frame), (0, next, tcp::RST | tcp::ACK));
    }
    assert_eq!(node.flows(), (0, 0));
}

fn who_is_in_the_middle_of_one_is_reset_where_it_is<A: Family>() {
    let node = empty::<A>(protocol::TCP);
    let sent = node.pod_sends(&Builder::tcp(tcp::ACK, end((POD, 40_000)), end((VIP, 80))));
    assert_eq!(read_reset::<A>(&sent.frame), (ACKNOWLEDGEMENT, 0, tcp::RST));
}

fn a_reset_is_not_answered<A: Family>() {
    let node = empty::<A>(protocol::TCP);
    for flags in [tcp::RST, tcp::RST | tcp::ACK, tcp::SYN | tcp::RST] {
        let sent = node.pod_sends(&Builder::tcp(flags, end((POD, 40_000)), end((VIP, 80))));
        sent.is_dropped(DropReason::NoEndpoint);
        assert_eq!(sent.frame, sent.before);
    }
}

fn whoever_speaks_no_tcp_is_told_that_the_port_is_unreachable<A: Family>() {
    for (transport, number) in [(Transport::Udp, protocol::UDP), (Transport::Sctp, protocol::SCTP)]
    {
        let node = empty::<A>(number);
        let pod = end((POD, 40_000));
        let sent = node.pod_sends(&Builder::new(transport, pod, end((VIP, 80))));
        assert_eq!(sent.verdict, to_pod(POD));
        let (of, from, to, _, at) = A::read(&sent.frame.bytes);
        assert_eq!((of, from, to), (A::ICMP, A::at(NODE), A::at(POD)));
        let message = &sent.frame.bytes[at..];
        let code = if A::ICMP == protocol::ICMP { 3 } else { 4 };
        assert_eq!((message[0], message[1], &message[4..8]), (A::UNREACHABLE, code, &[0; 4][..]));
        assert_eq!(message[8..], sent.before.bytes[14..], "the packet as it was sent");
    }
}

fn too_many_refusals_go_without_a_word<A: Family>() {
    for (transport, number) in [(SYN, protocol::TCP), (Transport::Udp, protocol::UDP)] {
        let node = empty::<A>(number);
        node.tables.complaints.set(1);
        let packet = Builder::new(transport, end((POD, 40_000)), end((VIP, 80)));
        assert_eq!(node.pod_sends(&packet).verdict, to_pod(POD));
        node.pod_sends(&packet).is_dropped(DropReason::NoEndpoint);
    }
}

fn endpoints_elsewhere_are_a_drop_without_a_word<A: Family>() {
    let mut node = empty::<A>(protocol::TCP);
    for record in node.tables.frontends.values_mut() {
        record.flags = frontend::ELSEWHERE;
    }
    let frontend = end((VIP, 80));
    node.uplink_brings(&Builder::new(SYN, end((CLIENT, 40_000)), frontend))
        .is_dropped(DropReason::NoLocalEndpoint);
    node.pod_sends(&Builder::new(SYN, end((POD, 40_000)), frontend))
        .is_dropped(DropReason::NoLocalEndpoint);
}

/// A node with a range of Services' addresses, in which VIP has port 80 for TCP.
fn with_range<A: Family>() -> Node<A> {
    let mut node = Node::<A>::new();
    node.service((VIP, 80), protocol::TCP, &[(OTHER_POD, 8080)]);
    node.route([10, 96, 0, 0], 16, route::SERVICES, None, [0; 16]);
    let nothing = Frontend { endpoints: 0, ..*node.tables.frontends.values().next().expect("one") };
    node.tables.frontends.insert(any_port(A::at(VIP)), nothing);
    node
}

fn a_port_that_the_service_does_not_have_is_refused<A: Family>() {
    let node = with_range::<A>();
    let pod = end((POD, 40_000));
    let other = end((VIP, 81));
    let sent = node.pod_sends(&Builder::new(SYN, pod, other));
    sent.goes(to_pod(POD), other, pod);
    assert_eq!(read_reset::<A>(&sent.frame).2, tcp::RST | tcp::ACK);
    // The port is there, but for another protocol.
    let sent = node.pod_sends(&Builder::udp(pod, end((VIP, 80))));
    assert_eq!((sent.verdict, A::read(&sent.frame.bytes).0), (to_pod(POD), A::ICMP));
    let sent = node.pod_sends(&Builder::new(SYN, pod, end((VIP, 80))));
    assert_eq!(sent.verdict, to_pod(OTHER_POD));
}

fn an_address_that_no_service_has_is_a_drop<A: Family>() {
    let node = with_range::<A>();
    for transport in [SYN, Transport::Udp, Transport::EchoRequest] {
        let packet = Builder::new(transport, end((POD, 40_000)), end((OTHER_VIP, 80)));
        node.pod_sends(&packet).is_dropped(DropReason::UnallocatedAddress);
    }
}

fn who_is_in_no_source_range_is_dropped<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((VIP, 80), protocol::TCP, &[(OTHER_POD, 8080)]);
    let port = node.tables.frontends.values().next().expect("one").port;
    for record in node.tables.frontends.values_mut() {
        record.flags = frontend::SOURCE_RANGES;
    }
    let packet = Builder::new(SYN, end((CLIENT, 40_000)), end((VIP, 80)));
    node.uplink_brings(&packet).is_dropped(DropReason::SourceRange);
    node.tables.source_ranges.push((port, A::ADDRESS_BITS, A::at(CLIENT)));
    assert_eq!(node.uplink_brings(&packet).verdict, to_pod(OTHER_POD));
    let inside = Builder::new(SYN, end((POD, 40_000)), end((VIP, 80)));
    node.pod_sends(&inside).is_dropped(DropReason::SourceRange);
}

fn a_client_stays_with_its_endpoint_wherever_it_comes_by<A: Family>() {
    for (transport, number) in [(SYN, protocol::TCP), (Transport::Udp, protocol::UDP)] {
        let mut node = Node::<A>::new();
        let endpoints: Vec<_> = (1..=40).map(|port| (OTHER_POD, port)).collect();
        node.service((VIP, 80), number, &endpoints);
        for record in node.tables.frontends.values_mut() {
            record.affinity = 100;
        }
        let key = FrontendKey {
            address: A::at(VIP),
            port: U16::new(80),
            protocol: number,
            scope: scope::EXTERNAL,
        };
        // The node port leads to the same list.
        let record = node.tables.frontends[&key];
        let node_port = FrontendKey { address: A::at(NODE), port: U16::new(30_080), ..key };
        node.tables.frontends.insert(node_port, record);
        let ask = |client, frontend, port| {
            let packet = Builder::new(transport, end((client, port)), end(frontend));
            let sent = match client {
                CLIENT => node.uplink_brings(&packet),
                _ => node.pod_sends(&packet),
            };
            sent.ends().1
        };
        let first = ask(CLIENT, (VIP, 80), 5000);
        for port in 5001..5020 {
            assert_eq!(ask(CLIENT, (VIP, 80), port), first);
            assert_eq!(ask(CLIENT, (NODE, 30_080), port), first);
        }
        let others: Vec<_> = [POD].map(|pod| ask(pod, (VIP, 80), 5000)).to_vec();
        assert!(others.iter().all(|other| *other == ask(POD, (VIP, 80), 6000)));
    }
}

fn a_flow_finds_the_same_endpoint_on_every_node<A: Family>() {
    let choices = |seed| {
        let mut node = Node::<A>::new();
        let endpoints: Vec<_> = (1..=40).map(|port| (OTHER_POD, port)).collect();
        node.service((VIP, 80), protocol::UDP, &endpoints);
        for record in node.tables.frontends.values_mut() {
            record.flags = frontend::BY_FLOW;
        }
        node.tables.dice.set(seed);
        let ask = |port| {
            let packet = Builder::udp(end((CLIENT, port)), end((VIP, 80)));
            ends::<A>(&node.uplink_brings(&packet).frame).1.1
        };
        (5000..5050).map(ask).collect::<Vec<_>>()
    };
    let one = choices(1);
    assert_eq!(one, choices(0x8000_0000));
    assert!(one.iter().collect::<std::collections::BTreeSet<_>>().len() > 15, "{one:?}");
}
