//! Source ports: who gets which, that nobody shares one, and what happens when there is none.

use std::collections::HashSet;

use fairway_abi::{DropReason, FlowKey, V4, V6, protocol};
use fairway_core::packet::tcp;
use fairway_core::port::WALK;
use fairway_core::{Verdict, path};
use zerocopy::network_endian::U16;

use crate::for_both_families;
use crate::frame::{Builder, End, Family, Transport, ends};
use crate::node::{CLIENT, NODE, Node, OTHER_POD, OUTSIDE, POD, REMOTE_POD, Sent, VIP, to_pod};
use crate::racing::{Before, Racing};

for_both_families![
    a_range_carries_as_many_flows_to_one_destination_as_it_has_ports,
    a_port_that_is_free_again_is_found,
    a_closed_connection_gives_its_port_away_if_there_is_no_other,
    a_node_port_and_a_hairpin_take_from_the_same_ports,
    a_port_that_a_socket_of_the_host_receives_on_is_not_taken,
    the_port_of_a_frontend_of_the_node_is_not_taken,
    a_client_that_keeps_its_address_keeps_its_port_beside_the_hosts_sockets,
    a_port_that_another_processor_takes_first_is_not_shared,
    a_port_whose_flow_is_just_being_established_is_not_shared,
    a_flow_that_another_processor_established_meanwhile_goes_on,
];

fn outside<A: Family>() -> End<A> {
    (A::at(CLIENT), 443)
}

fn node_with_ports<A: Family>(first: u16, last: u16) -> Node<A> {
    let mut node = Node::new();
    (node.tables.config.first_port, node.tables.config.last_port) = (first, last);
    node
}

/// The pod sends a datagram from a port of its own.
fn ask<A: Family>(node: &Node<A>, port: u16, to: End<A>) -> Sent<A> {
    node.pod_sends(&Builder::udp((A::at(POD), port), to))
}

fn a_range_carries_as_many_flows_to_one_destination_as_it_has_ports<A: Family>() {
    let walked = u16::try_from(WALK).expect("small");
    for count in [1, 2, 100, walked] {
        let node = node_with_ports::<A>(2000, 1999 + count);
        let mut taken = HashSet::new();
        for port in 0..count {
            let sent = ask(&node, 40_000 + port, outside());
            let ((source, port), _) = sent.ends();
            assert_eq!((sent.verdict, source), (Verdict::Forward, A::at(NODE)));
            assert!((2000..2000 + count).contains(&port), "{port}");
            assert!(taken.insert(port), "{port} twice");
        }
        let one_more = 40_000 + count;
        ask(&node, one_more, outside()).is_dropped(DropReason::NoSourcePort);
        // Towards anybody else, and another port there, all are free.
        for other in [(A::at(OUTSIDE), 443), (A::at(CLIENT), 444)] {
            assert_eq!(ask(&node, one_more, other).verdict, Verdict::Forward);
        }
    }
}

fn a_port_that_is_free_again_is_found<A: Family>() {
    let walked = u16::try_from(WALK).expect("small");
    let node = node_with_ports::<A>(2000, 1999 + walked);
    let sent: Vec<_> = (0..walked).map(|n| ask(&node, 40_000 + n, outside())).collect();
    for gone in [0, 1, 64, 127] {
        let ((source, port), to) = sent[gone].ends();
        let answers = FlowKey {
            source: to.0,
            destination: source,
            source_port: U16::new(to.1),
            destination_port: U16::new(port),
            protocol: protocol::UDP,
            reserved: [0; 3],
        };
        assert!(node.tables.half_open.borrow_mut().remove(&answers).is_some());
        let next = 50_000 + u16::try_from(gone).expect("small");
        assert_eq!(ask(&node, next, outside()).ends().0.1, port);
    }
}

fn a_closed_connection_gives_its_port_away_if_there_is_no_other<A: Family>() {
    let node = node_with_ports::<A>(2000, 2003);
    let says = |port, flags| {
        let packet = Builder::new(Transport::Tcp(flags), (A::at(POD), port), outside());
        node.pod_sends(&packet)
    };
    let hears = |asked: &Sent<A>, flags| node.uplink_brings(&asked.answer(Transport::Tcp(flags)));
    let connect = |port| {
        let asked = says(port, tcp::SYN);
        hears(&asked, tcp::SYN | tcp::ACK).goes(to_pod(POD), outside(), (A::at(POD), port));
        asked
    };
    let open: Vec<_> = (0..3).map(|n| connect(40_000 + n)).collect();
    let closed = connect(40_003);
    says(40_003, tcp::FIN | tcp::ACK);
    says(40_010, tcp::SYN).is_dropped(DropReason::NoSourcePort);
    hears(&closed, tcp::FIN | tcp::ACK);

    let next = connect(40_010);
    assert_eq!(next.ends().0, closed.ends().0, "the port of the one that both have closed");
    says(40_011, tcp::SYN).is_dropped(DropReason::NoSourcePort);
    assert_eq!(node.flows(), (0, 2 * 4), "nothing of the old connection is left");
    for (n, asked) in (0..3).zip(&open) {
        assert_eq!(says(40_000 + n, tcp::ACK).ends(), asked.ends(), "the others go on");
    }
    // One that was reset is as good.
    hears(&open[1], tcp::RST);
    assert_eq!(connect(40_011).ends().0, open[1].ends().0);
}

fn a_node_port_and_a_hairpin_take_from_the_same_ports<A: Family>() {
    let mut node = node_with_ports::<A>(2000, 2000);
    for address in [VIP, NODE] {
        node.service((address, 8000), protocol::UDP, &[(POD, 8080)]);
        node.service((address, 8001), protocol::UDP, &[(CLIENT, 443)]);
    }
    let hairpin = ask(&node, 40_000, (A::at(VIP), 8000));
    hairpin.goes(to_pod(POD), (A::at(NODE), 2000), (A::at(POD), 8080));
    ask(&node, 40_001, (A::at(VIP), 8000)).is_dropped(DropReason::NoSourcePort);

    let masqueraded = ask(&node, 40_000, outside());
    masqueraded.goes(Verdict::Forward, (A::at(NODE), 2000), outside());
    let client = (A::at(OUTSIDE), 6000);
    node.uplink_brings(&Builder::udp(client, (A::at(NODE), 8001)))
        .is_dropped(DropReason::NoSourcePort);
}

fn a_port_that_a_socket_of_the_host_receives_on_is_not_taken<A: Family>() {
    for from_anybody in [false, true] {
        for (own, proto, transport) in [
            (2000, protocol::TCP, Transport::Tcp(tcp::SYN)),
            (2000, protocol::UDP, Transport::Udp),
            (40_000, protocol::UDP, Transport::Udp),
        ] {
            let mut node = node_with_ports::<A>(2000, 2001);
            let (address, port) = if from_anybody { (A::UNSPECIFIED, 0) } else { outside() };
            node.tables.host.insert(FlowKey {
                source: address,
                destination: A::at(NODE),
                source_port: U16::new(port),
                destination_port: U16::new(2000),
                protocol: proto,
                reserved: [0; 3],
            });
            let ask =
                |port| node.pod_sends(&Builder::new(transport, (A::at(POD), port), outside()));
            ask(own).goes(Verdict::Forward, (A::at(NODE), 2001), outside());
            ask(own + 2).is_dropped(DropReason::NoSourcePort);
            // What the socket is sent is its own.
            let to_socket = Builder::new(transport, outside(), (A::at(NODE), 2000));
            node.uplink_brings(&to_socket).is_untouched();
        }
    }
}

fn the_port_of_a_frontend_of_the_node_is_not_taken<A: Family>() {
    let mut node = node_with_ports::<A>(2000, 2001);
    node.service((NODE, 2000), protocol::UDP, &[(OTHER_POD, 8080)]);
    ask(&node, 2000, outside()).goes(Verdict::Forward, (A::at(NODE), 2001), outside());
    ask(&node, 2001, outside()).is_dropped(DropReason::NoSourcePort);
    let client = node.uplink_brings(&Builder::udp(outside(), (A::at(NODE), 2000)));
    client.goes(to_pod(OTHER_POD), outside(), (A::at(OTHER_POD), 8080));
    // An echo's identifier is no port.
    let ping = node.pod_sends(&Builder::ping(A::at(POD), A::at(CLIENT), 2000));
    assert_eq!(ping.ends().0, (A::at(NODE), 2000));
}

fn a_client_that_keeps_its_address_keeps_its_port_beside_the_hosts_sockets<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_080), protocol::UDP, &[(POD, 8080)]);
    node.service((VIP, 80), protocol::UDP, &[(REMOTE_POD, 8080)]);
    for (source, source_port, to, to_port) in
        [(POD, 8080, CLIENT, 5000), (REMOTE_POD, 8080, OTHER_POD, 5000)]
    {
        node.tables.host.insert(FlowKey {
            source: A::at(source),
            destination: A::at(to),
            source_port: U16::new(source_port),
            destination_port: U16::new(to_port),
            protocol: protocol::UDP,
            reserved: [0; 3],
        });
    }
    let client = (A::at(CLIENT), 5000);
    let sent = node.uplink_brings(&Builder::udp(client, (A::at(NODE), 30_080)));
    assert_eq!(sent.ends().0, client);
    let pod = (A::at(OTHER_POD), 5000);
    assert_eq!(node.pod_sends(&Builder::udp(pod, (A::at(VIP), 80))).ends().0, pod);
}

fn a_port_that_another_processor_takes_first_is_not_shared<A: Family>() {
    let node = node_with_ports::<A>(2000, 2001);
    let other = Builder::udp((A::at(OTHER_POD), 2000), outside());
    let mut frame = Builder::<A>::udp((A::at(POD), 2000), outside()).frame();
    let racing = Racing::new(&node.tables, Before::Insert, |tables| {
        path::from_pod::<A, _, _>(&mut other.frame(), tables, 13);
    });
    assert_eq!(path::from_pod::<A, _, _>(&mut frame, &racing, 12), Verdict::Forward);
    assert_eq!(ends::<A>(&frame).0, (A::at(NODE), 2001));
    assert_eq!(node.pod_sends(&other).ends().0, (A::at(NODE), 2000));
    assert_eq!(node.flows(), (4, 0));
}

fn a_port_whose_flow_is_just_being_established_is_not_shared<A: Family>() {
    // Between this processor's look and its writing, the other one opens a flow under the same port
    // and sees it answered: its records have left the table that this one writes to.
    let node = node_with_ports::<A>(2000, 2001);
    let other = Builder::udp((A::at(OTHER_POD), 2000), outside());
    let mut frame = Builder::<A>::udp((A::at(POD), 2000), outside()).frame();
    let racing = Racing::new(&node.tables, Before::Insert, |tables| {
        let mut sent = other.frame();
        path::from_pod::<A, _, _>(&mut sent, tables, 13);
        let mut answer = Builder::<A>::answer(&sent, Transport::Udp).frame();
        assert_eq!(path::from_uplink::<A, _, _>(&mut answer, tables), to_pod(OTHER_POD));
    });
    assert_eq!(path::from_pod::<A, _, _>(&mut frame, &racing, 12), Verdict::Forward);
    assert_eq!(ends::<A>(&frame).0, (A::at(NODE), 2001));
    assert_eq!(node.flows(), (2, 2));
}

fn a_flow_that_another_processor_established_meanwhile_goes_on<A: Family>() {
    let node = Node::<A>::new();
    let packet = Builder::<A>::udp((A::at(POD), 40_000), outside());
    let racing = Racing::new(&node.tables, Before::Insert, |tables| {
        let mut sent = packet.frame();
        path::from_pod::<A, _, _>(&mut sent, tables, 12);
        let mut answer = Builder::<A>::answer(&sent, Transport::Udp).frame();
        assert_eq!(path::from_uplink::<A, _, _>(&mut answer, tables), to_pod(POD));
    });
    let mut frame = packet.frame();
    assert_eq!(path::from_pod::<A, _, _>(&mut frame, &racing, 12), Verdict::Forward);
    let next = node.pod_sends(&packet);
    assert_eq!(next.verdict, Verdict::Forward);
    let back = node.uplink_brings(&next.answer(Transport::Udp));
    back.goes(to_pod(POD), outside(), (A::at(POD), 40_000));
}

#[test]
fn a_large_range_fills_far_before_a_flow_is_refused() {
    fn story<A: Family>() {
        const PORTS: u16 = 20_000;
        let node = node_with_ports::<A>(1024, 1023 + PORTS);
        let mut taken = HashSet::new();
        let refused = (0..PORTS).find(|n| {
            // From outside the range: not one port is the client's own.
            let sent = ask(&node, 30_000 + n, outside());
            match sent.verdict {
                Verdict::Forward => assert!(taken.insert(sent.ends().0.1), "a port twice"),
                verdict => assert_eq!(verdict, Verdict::Drop(DropReason::NoSourcePort)),
            }
            sent.verdict != Verdict::Forward
        });
        let first = refused.unwrap_or(PORTS);
        assert!(first > PORTS / 100 * 93, "refused after {first} of {PORTS}");
    }
    story::<V4>();
    story::<V6>();
}
