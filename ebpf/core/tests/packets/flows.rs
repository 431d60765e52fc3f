//! The life of a flow's two records: half-open, established, over; and what happens when one of
//! them is lost or taken.

use fairway_abi::{DropReason, Flow, FlowKey, flow, protocol};
use fairway_core::flow::{idle_limit, opposite_of as answers_of};
use fairway_core::memory::Lru;
use fairway_core::packet::tcp;
use fairway_core::path;
use fairway_core::tables::Stage;

use crate::for_both_families;
use crate::frame::{Builder, End, Family, Transport};
use crate::node::{CLIENT, Node, OTHER_POD, POD, REMOTE_POD, Sent, VIP, to_pod};
use crate::racing::{Before, Racing};

for_both_families![
    an_answer_establishes_a_flow,
    a_refusal_establishes_nothing,
    a_records_fields_tell_its_direction_alone,
    a_port_used_again_after_an_end_opens_a_new_flow,
    a_refused_client_that_tries_again_opens_a_new_flow,
    an_open_connection_is_not_opened_again,
    a_full_table_of_established_flows_keeps_new_ones_half_open,
    no_room_for_new_flows_is_a_counted_drop,
    a_flood_of_first_packets_leaves_established_flows_alone,
    a_flow_whose_answers_would_be_lost_opens_again,
    a_flow_whose_way_back_was_taken_opens_again,
    a_lost_first_record_costs_nothing_but_another_port,
    an_answer_to_an_earlier_opening_establishes_nothing,
    the_slower_of_two_processors_uses_the_others_record,
];

const SYN: u8 = tcp::SYN;
const SYN_ACK: u8 = tcp::SYN | tcp::ACK;

/// A node with one Service for both protocols, and the one client of these tests.
struct Talk<A: Family> {
    node: Node<A>,
}

impl<A: Family> Talk<A> {
    fn new() -> Self {
        let mut node = Node::new();
        for protocol in [protocol::TCP, protocol::UDP] {
            node.service((VIP, 80), protocol, &[(OTHER_POD, 8080)]);
        }
        Self { node }
    }

    /// The client says something, from a port of its own.
    fn asks(&self, transport: Transport) -> Sent<A> {
        self.node.pod_sends(&Builder::new(transport, client(), frontend()))
    }

    /// The endpoint answers.
    fn answers(&self, sent: &Sent<A>, transport: Transport) -> Sent<A> {
        let back = self.node.pod_sends(&sent.answer(transport));
        back.goes(to_pod(POD), frontend(), client());
        back
    }

    /// Gives the Service another endpoint.
    fn moves_to(&mut self, endpoint: [u8; 4]) {
        for stored in self.node.tables.endpoints.values_mut() {
            stored.address = A::at(endpoint);
        }
    }

    /// Evicts a half-open record.
    fn evict(&self, wanted: impl Fn(&Flow<A>) -> bool) {
        let mut records = self.node.tables.half_open.borrow_mut();
        let key = records.iter().find(|(_, flow)| wanted(flow)).map(|(key, _)| *key);
        records.remove(&key.expect("such a record"));
    }
}

fn client<A: Family>() -> End<A> {
    (A::at(POD), 40_000)
}

fn frontend<A: Family>() -> End<A> {
    (A::at(VIP), 80)
}

fn is_reply<A>(flow: &Flow<A>) -> bool {
    flow.state.get() & flow::REPLY != 0
}

fn an_answer_establishes_a_flow<A: Family>() {
    for (ask, answer) in
        [(Transport::Tcp(SYN), Transport::Tcp(SYN_ACK)), (Transport::Udp, Transport::Udp)]
    {
        let talk = Talk::<A>::new();
        for _ in 0..3 {
            talk.asks(ask);
            assert_eq!(talk.node.flows(), (2, 0), "no number of requests is an answer");
        }
        talk.answers(&talk.asks(ask), answer);
        assert_eq!(talk.node.flows(), (0, 2));
    }
}

fn a_refusal_establishes_nothing<A: Family>() {
    let talk = Talk::<A>::new();
    let sent = talk.asks(Transport::Tcp(SYN));
    for _ in 0..2 {
        talk.answers(&sent, Transport::Tcp(tcp::RST | tcp::ACK));
        assert_eq!(talk.node.flows(), (2, 0));
    }
}

fn a_records_fields_tell_its_direction_alone<A: Family>() {
    let talk = Talk::<A>::new();
    talk.node.tables.now.set(100);
    let sent = talk.asks(Transport::Tcp(SYN));
    talk.node.tables.now.set(200);
    talk.answers(&sent, Transport::Tcp(SYN_ACK));
    let records = || {
        let established = talk.node.tables.established.borrow();
        let one = |reply| {
            let flow = established.values().find(|f| is_reply(f) == reply).expect("a record");
            (flow.last_seen.get(), flow.state.get() & !flow::REPLY, flow.service.get())
        };
        (one(false), one(true))
    };
    let service = records().0.2;
    assert_ne!(service, 0);
    assert_eq!(records(), ((100, 0, service), (200, 0, service)));
    talk.node.tables.now.set(300);
    talk.asks(Transport::Tcp(tcp::FIN | tcp::ACK));
    assert_eq!(records(), ((300, flow::FIN, service), (200, 0, service)));
    talk.node.tables.now.set(400);
    talk.answers(&sent, Transport::Tcp(tcp::RST));
    assert_eq!(records(), ((300, flow::FIN, service), (400, flow::RST, service)));
    talk.asks(Transport::Tcp(tcp::ACK));
    assert_eq!(records().0, (400, flow::FIN, service), "an end is not forgotten");
}

fn a_port_used_again_after_an_end_opens_a_new_flow<A: Family>() {
    for (by_client, flags) in [
        (true, tcp::FIN | tcp::ACK),
        (false, tcp::FIN | tcp::ACK),
        (true, tcp::RST),
        (false, tcp::RST),
    ] {
        let mut talk = Talk::<A>::new();
        let sent = talk.asks(Transport::Tcp(SYN));
        talk.answers(&sent, Transport::Tcp(SYN_ACK));
        if by_client {
            talk.asks(Transport::Tcp(flags));
        } else {
            talk.answers(&sent, Transport::Tcp(flags));
        }
        talk.moves_to(REMOTE_POD);
        let late = talk.asks(Transport::Tcp(tcp::ACK));
        assert_eq!(late.ends().1.0, A::at(OTHER_POD), "only a SYN opens");
        let again = talk.asks(Transport::Tcp(SYN));
        assert_eq!(again.ends(), (client(), (A::at(REMOTE_POD), 8080)));
        assert_eq!(talk.node.flows(), (2, 0), "nothing of the old flow is left");
    }
}

fn a_refused_client_that_tries_again_opens_a_new_flow<A: Family>() {
    let mut talk = Talk::<A>::new();
    let sent = talk.asks(Transport::Tcp(SYN));
    talk.answers(&sent, Transport::Tcp(tcp::RST | tcp::ACK));
    talk.moves_to(REMOTE_POD);
    let again = talk.asks(Transport::Tcp(SYN));
    assert_eq!(again.ends().1.0, A::at(REMOTE_POD));
    assert_eq!(talk.node.flows(), (2, 0));
}

fn an_open_connection_is_not_opened_again<A: Family>() {
    for answered in [false, true] {
        let mut talk = Talk::<A>::new();
        let sent = talk.asks(Transport::Tcp(SYN));
        if answered {
            talk.answers(&sent, Transport::Tcp(SYN_ACK));
        }
        talk.moves_to(REMOTE_POD);
        assert_eq!(talk.asks(Transport::Tcp(SYN)).ends(), sent.ends(), "a repeated SYN");
    }
}

fn a_full_table_of_established_flows_keeps_new_ones_half_open<A: Family>() {
    for room in [0, 1] {
        let mut talk = Talk::<A>::new();
        talk.node.tables.room = room;
        let sent = talk.asks(Transport::Udp);
        for _ in 0..3 {
            talk.answers(&sent, Transport::Udp);
            assert_eq!(talk.asks(Transport::Udp).ends(), sent.ends());
            assert_eq!(talk.node.flows(), (2, 0), "both records or none are established");
            let half_open = talk.node.tables.half_open.borrow();
            let marks = half_open.iter().filter(|(_, f)| f.state.get() & flow::ANSWERED != 0);
            assert_eq!(marks.count(), 1, "and its reply record is marked");
        }
        talk.node.tables.room = 2;
        talk.answers(&sent, Transport::Udp);
        assert_eq!(talk.node.flows(), (0, 2), "as soon as there is room");
    }
}

fn no_room_for_new_flows_is_a_counted_drop<A: Family>() {
    let talk = Talk::<A>::new();
    talk.node.tables.half_open.replace(Lru::new(0));
    talk.asks(Transport::Udp).is_dropped(DropReason::NoFlowEntry);
    assert_eq!(talk.node.flows(), (0, 0));
}

fn a_flood_of_first_packets_leaves_established_flows_alone<A: Family>() {
    let talk = Talk::<A>::new();
    talk.node.tables.half_open.replace(Lru::new(16));
    let sent = talk.asks(Transport::Tcp(SYN));
    talk.answers(&sent, Transport::Tcp(SYN_ACK));
    for port in 0..100 {
        let stranger = (A::at(POD), 50_000 + port);
        talk.node.pod_sends(&Builder::tcp(SYN, stranger, frontend()));
    }
    assert_eq!(talk.node.flows(), (16, 2));
    assert_eq!(talk.asks(Transport::Tcp(tcp::ACK)).ends(), sent.ends());
    talk.answers(&sent, Transport::Tcp(tcp::ACK));
}

fn a_flow_whose_answers_would_be_lost_opens_again<A: Family>() {
    for transport in [Transport::Udp, Transport::Tcp(tcp::ACK)] {
        let talk = Talk::<A>::new();
        talk.asks(transport);
        talk.evict(is_reply);
        let sent = talk.asks(transport);
        talk.answers(&sent, transport);
        assert_eq!(talk.node.flows(), (0, 2));
    }
}

fn a_flow_whose_way_back_was_taken_opens_again<A: Family>() {
    let node = Node::<A>::new();
    let outside = (A::at(CLIENT), 53);
    let ask = |pod| node.pod_sends(&Builder::udp((A::at(pod), 5000), outside));
    let first = ask(POD);
    let reply = opposite_of(&node, &first);
    node.tables.half_open.borrow_mut().remove(&reply);
    let second = ask(OTHER_POD);
    assert_eq!(first.ends(), second.ends(), "the second takes the port the first has lost");

    // What the first asks for now must not be answered to the second.
    let first = ask(POD);
    assert_ne!(first.ends(), second.ends());
    for (sent, pod) in [(first, POD), (second, OTHER_POD)] {
        let back = node.uplink_brings(&sent.answer(Transport::Udp));
        back.goes(to_pod(pod), outside, (A::at(pod), 5000));
    }
}

/// The key under which answers to a packet that was sent are recorded.
fn opposite_of<A: Family>(node: &Node<A>, sent: &Sent<A>) -> FlowKey<A> {
    let ((source, source_port), (destination, destination_port)) = sent.ends();
    let records = node.tables.half_open.borrow();
    let found = records.iter().find(|(key, _)| {
        (key.source, key.source_port.get()) == (destination, destination_port)
            && (key.destination, key.destination_port.get()) == (source, source_port)
    });
    *found.expect("a record for its answers").0
}

fn a_lost_first_record_costs_nothing_but_another_port<A: Family>() {
    let talk = Talk::<A>::new();
    let before = talk.asks(Transport::Udp);
    talk.evict(|flow| !is_reply(flow));
    let after = talk.asks(Transport::Udp);
    assert_ne!(before.ends(), after.ends());
    talk.answers(&before, Transport::Udp);
    talk.answers(&after, Transport::Udp);
}

fn an_answer_to_an_earlier_opening_establishes_nothing<A: Family>() {
    let mut talk = Talk::<A>::new();
    let before = talk.asks(Transport::Udp);
    talk.evict(|flow| !is_reply(flow));
    talk.moves_to(REMOTE_POD);
    let after = talk.asks(Transport::Udp);
    talk.answers(&before, Transport::Udp);
    assert_eq!(talk.node.flows(), (3, 0), "the records of two openings are no pair");
    let back = talk.node.overlay_brings(&after.answer(Transport::Udp));
    back.goes(to_pod(POD), frontend(), client());
    let established = talk.node.tables.established.borrow();
    assert_eq!(established.len(), 2);
    for (key, flow) in established.iter() {
        let other_key = answers_of(key, flow);
        assert_eq!(answers_of(&other_key, &established[&other_key]), *key);
    }
}

fn the_slower_of_two_processors_uses_the_others_record<A: Family>() {
    for chosen in [OTHER_POD, REMOTE_POD] {
        let talk = Talk::<A>::new();
        let packet = Builder::<A>::udp(client(), frontend());
        let racing = Racing::new(&talk.node.tables, Before::Random, |ours| {
            let mut tables = ours.clone();
            for stored in tables.endpoints.values_mut() {
                stored.address = A::at(chosen);
            }
            path::from_pod::<A, _, _>(&mut packet.frame(), &tables, 12);
            ours.half_open.replace(tables.half_open.into_inner());
        });
        let mut frame = packet.frame();
        let verdict = path::from_pod::<A, _, _>(&mut frame, &racing, 12);
        let next = talk.asks(Transport::Udp);
        assert_eq!(next.ends().1.0, A::at(chosen));
        assert_eq!((verdict, &frame), (next.verdict, &next.frame));
        assert_eq!(talk.node.flows(), (2, 0), "the winner's records alone");
    }
}

#[test]
fn only_an_open_connection_may_be_idle_for_long() {
    const ICMP: u8 = protocol::ICMP;
    for (number, stage, closed, seconds) in [
        (protocol::TCP, Stage::HalfOpen, false, 30),
        (protocol::TCP, Stage::HalfOpen, true, 30),
        (protocol::TCP, Stage::Established, false, 86_400),
        (protocol::TCP, Stage::Established, true, 30),
        (protocol::SCTP, Stage::HalfOpen, false, 30),
        (protocol::SCTP, Stage::Established, false, 300),
        (protocol::UDP, Stage::HalfOpen, false, 30),
        (protocol::UDP, Stage::Established, false, 120),
        (ICMP, Stage::Established, false, 120),
    ] {
        assert_eq!(idle_limit(number, stage, closed), seconds, "{number} {stage:?} {closed}");
    }
}
