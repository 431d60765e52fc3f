//! Pods that policies restrict: what reaches them, what leaves them, and what goes on when policies change.

use fairway_abi::{
    DropReason, Endpoint, RuleCount, Ruling, RulingKey, Subject, V4, V6, config, flow, frontend,
    protocol, route, ruling, scope,
};
use fairway_core::Verdict;
use fairway_core::flow::{Scratch, idle_limit};
use fairway_core::memory::Frame;
use fairway_core::packet::tcp;
use fairway_core::path;
use fairway_core::policy::ask;
use fairway_core::tables::Stage;
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::errors::{ROUTER, WHOLE, complaint};
use crate::for_both_families;
use crate::forwarding::{FRONTEND, NODE_UNDERLAY, PORT, end, far};
use crate::fragments::pieces;
use crate::frame::{Builder, End, Family, Transport};
use crate::node::{
    CLIENT, DIRECT_POD, NODE, Node, OTHER_POD, OUTSIDE, PEER, PEER_END, POD, REMOTE_POD, Sent, VIP,
    to_pod,
};

for_both_families![
    without_a_policy_nothing_is_asked,
    a_pod_that_may_receive_nothing_receives_nothing,
    a_pod_that_may_send_nothing_sends_nothing,
    both_ends_must_allow,
    what_answers_an_allowed_flow_needs_no_rule,
    an_idle_outbound_connection_outlives_a_denial_of_what_comes_in,
    a_changed_policy_cuts_a_flow_both_ways_with_its_next_packet,
    a_denied_flow_leaves_nothing_behind,
    errors_about_an_allowed_flow_pass,
    errors_about_nothing_are_asked,
    errors_about_a_flow_that_was_cut_are_cut_with_it,
    ports_count_by_number_and_range,
    a_rule_on_ports_says_nothing_of_what_has_none,
    an_address_counts_before_ranges_and_a_longer_range_before_others,
    somebody_without_rulings_is_anybody,
    the_endpoint_counts_and_not_the_service,
    a_client_counts_as_it_is_before_its_address_is_replaced,
    a_client_from_outside_counts_where_the_endpoint_is,
    a_client_that_a_peer_brings_counts_where_the_endpoint_is,
    a_client_that_is_answered_directly_counts_where_the_endpoint_is,
    the_nodes_own_sockets_reach_every_pod,
    the_nodes_address_proves_nothing,
    a_pod_reaches_its_node_unless_that_is_restricted,
    a_pod_that_reaches_itself_is_left_alone_by_its_own_policies,
    fragments_go_with_the_first_one,
    what_the_first_program_opened_the_second_one_judges,
    what_is_broken_reaches_no_restricted_pod,
    rules_count_flows_and_denied_packets,
    a_flow_that_was_denied_before_is_not_counted_as_allowed,
];

const SYN: u8 = tcp::SYN;
const ACK: u8 = tcp::ACK;
const SYN_ACK: u8 = tcp::SYN | tcp::ACK;

/// Sets of rules.
pub(crate) const INGRESS: u32 = 1;
const EGRESS: u32 = 2;
const OTHER_EGRESS: u32 = 3;
/// Identities.
pub(crate) const ANYBODY: u32 = 0;
pub(crate) const FRIEND: u32 = 7;

const DENIED_IN: DropReason = DropReason::PolicyIngress;
const DENIED_OUT: DropReason = DropReason::PolicyEgress;

/// A ruling that a rule of this number allows.
pub(crate) const fn allow(rule: u32) -> u32 {
    rule
}

pub(crate) const fn deny(rule: u32) -> u32 {
    ruling::DENIED | ruling::NAMESPACED | rule
}

fn kinds() -> [Transport; 4] {
    [Transport::Tcp(SYN), Transport::Udp, Transport::Sctp, Transport::EchoRequest]
}

impl<A: Family> Node<A> {
    /// A node on which policies are in force.
    pub(crate) fn policed() -> Self {
        let mut node = Self::new();
        node.tables.config.flags |= config::POLICED;
        node.change_policies();
        node
    }

    /// What was allowed before has to be asked anew.
    pub(crate) fn change_policies(&mut self) {
        let first = flow::REVISION & flow::REVISION.wrapping_neg();
        self.tables.config.policy = self.tables.config.policy.wrapping_add(first);
    }

    pub(crate) fn restrict(&mut self, pod: [u8; 4], ingress: u32, egress: u32) {
        self.tables.subjects.insert(A::at(pod), Subject { ingress, egress });
    }

    /// What a set makes of somebody, whatever the ports.
    pub(crate) fn rule(&mut self, set: u32, identity: u32, verdict: u32) {
        let key =
            RulingKey { set: U32::new(set), identity: U32::new(identity), ..RulingKey::default() };
        let lengths = self.tables.rulings.get(&key).map_or(0, |ruling| ruling.lengths);
        self.tables.rulings.insert(key, Ruling { verdict, lengths });
    }

    /// What it makes of some ports, beside [`Self::rule`].
    fn rule_ports(
        &mut self,
        set: u32,
        identity: u32,
        (protocol, port, length): (u8, u16, u8),
        verdict: u32,
    ) {
        let first =
            RulingKey { set: U32::new(set), identity: U32::new(identity), ..RulingKey::default() };
        self.tables.rulings.get_mut(&first).expect("a first ruling").lengths |= 1 << length;
        let key = RulingKey { protocol, length, port: U16::new(port), ..first };
        self.tables.rulings.insert(key, Ruling { verdict, lengths: 0 });
    }

    pub(crate) fn is(&mut self, who: [u8; 4], identity: u32) {
        self.tables.identities.insert(A::at(who), identity);
    }

    /// Who is in a range of this many bits of the last four bytes.
    fn range_is(&mut self, network: [u8; 4], length: u32, identity: u32) {
        let bits = A::ADDRESS_BITS - 32 + length;
        self.tables.blocks.push((A::at(network), bits, identity));
    }

    /// The host's stack delivers what it forwards to a pod.
    fn stack_delivers(&self, packet: &Builder<A>) -> Sent<A> {
        self.delivers(packet, false)
    }

    /// A socket of the node sends to a pod.
    fn socket_sends(&self, packet: &Builder<A>) -> Sent<A> {
        self.delivers(packet, true)
    }
}

/// [`POD`] is denied everything in both directions, [`OTHER_POD`] is not restricted.
fn isolated<A: Family>() -> Node<A> {
    let mut node = Node::policed();
    node.restrict(POD, INGRESS, EGRESS);
    node.rule(INGRESS, ANYBODY, deny(0));
    node.rule(EGRESS, ANYBODY, deny(0));
    node
}

/// [`POD`] may send to everybody, and receive nothing.
fn outbound<A: Family>() -> Node<A> {
    let mut node = isolated();
    node.rule(EGRESS, ANYBODY, allow(1));
    node
}

fn pod<A: Family>() -> End<A> {
    end((POD, 40_000))
}

fn other<A: Family>() -> End<A> {
    end((OTHER_POD, 8080))
}

fn without_a_policy_nothing_is_asked<A: Family>() {
    let mut node = isolated::<A>();
    node.tables.config.flags &= !config::POLICED;
    node.pod_sends(&Builder::tcp(SYN, pod(), other())).goes_unchanged(to_pod(OTHER_POD));
    node.pod_sends(&Builder::tcp(SYN, other(), pod())).goes_unchanged(to_pod(POD));
    node.stack_delivers(&Builder::tcp(SYN, end((NODE, 1)), pod())).is_untouched();
    assert_eq!(node.flows(), (0, 0));
    let unrestricted = Node::<A>::policed();
    unrestricted.pod_sends(&Builder::tcp(SYN, pod(), other())).goes_unchanged(to_pod(OTHER_POD));
    assert_eq!(unrestricted.flows(), (0, 0), "flows of pods that nobody restricts need no record");
}

fn a_pod_that_may_receive_nothing_receives_nothing<A: Family>() {
    let node = isolated::<A>();
    for transport in kinds() {
        let to = if transport == Transport::EchoRequest { (A::at(POD), 0) } else { pod() };
        let packet = |from: [u8; 4]| Builder::new(transport, end((from, 5000)), to);
        node.pod_sends(&packet(OTHER_POD)).is_dropped(DENIED_IN);
        node.uplink_brings(&packet(CLIENT)).is_dropped(DENIED_IN);
        node.uplink_brings(&packet(DIRECT_POD)).is_dropped(DENIED_IN);
        node.overlay_brings(&packet(REMOTE_POD)).is_dropped(DENIED_IN);
        node.overlay_brings(&packet(PEER)).is_dropped(DENIED_IN);
        node.stack_delivers(&packet(CLIENT)).is_dropped(DENIED_IN);
    }
    for transport in [Transport::Other(47), Transport::EchoReply, Transport::Icmp(0x40)] {
        let packet = |from: [u8; 4]| Builder::new(transport, (A::at(from), 0), (A::at(POD), 0));
        node.pod_sends(&packet(OTHER_POD)).is_dropped(DENIED_IN);
        node.uplink_brings(&packet(CLIENT)).is_dropped(DENIED_IN);
    }
    assert_eq!(node.flows(), (0, 0));
    // Others are as open as before.
    let packet = Builder::udp(end((CLIENT, 1)), end((OTHER_POD, 1)));
    node.uplink_brings(&packet).goes_unchanged(to_pod(OTHER_POD));
}

fn a_pod_that_may_send_nothing_sends_nothing<A: Family>() {
    let mut node = isolated::<A>();
    node.service((VIP, 80), protocol::TCP, &[(OTHER_POD, 8080)]);
    for to in [OTHER_POD, CLIENT, OUTSIDE, REMOTE_POD, DIRECT_POD, PEER] {
        for transport in kinds() {
            let port = if transport == Transport::EchoRequest { 0 } else { 80 };
            let packet = Builder::new(transport, pod(), end((to, port)));
            node.pod_sends(&packet).is_dropped(DENIED_OUT);
        }
    }
    node.pod_sends(&Builder::tcp(SYN, pod(), end((VIP, 80)))).is_dropped(DENIED_OUT);
    let portless = Builder::new(Transport::Other(47), (A::at(POD), 0), (A::at(OTHER_POD), 0));
    node.pod_sends(&portless).is_dropped(DENIED_OUT);
    assert_eq!(node.flows(), (0, 0));
    // What never leaves its link is not asked about.
    let multicast = if size_of::<A>() == 4 { A::at([224, 0, 0, 1]) } else { multicast6() };
    node.pod_sends(&Builder::udp(pod(), (multicast, 5353))).is_untouched();
}

fn multicast6<A: Family>() -> A {
    let mut bytes = vec![0; size_of::<A>()];
    (bytes[0], bytes[1]) = (0xff, 0x02);
    A::read_from_bytes(&bytes).expect("as long as an address")
}

fn both_ends_must_allow<A: Family>() {
    for (egress, ingress, denied) in [
        (allow(1), allow(2), None),
        (deny(1), allow(2), Some(DENIED_OUT)),
        (allow(1), deny(2), Some(DENIED_IN)),
        (deny(1), deny(2), Some(DENIED_OUT)),
    ] {
        let mut node = Node::<A>::policed();
        node.restrict(POD, INGRESS, 0);
        node.restrict(OTHER_POD, 0, OTHER_EGRESS);
        node.rule(INGRESS, ANYBODY, ingress);
        node.rule(OTHER_EGRESS, ANYBODY, egress);
        let sent = node.pod_sends(&Builder::tcp(SYN, other(), pod()));
        match denied {
            Some(reason) => sent.is_dropped(reason),
            None => drop(sent.goes_unchanged(to_pod(POD))),
        }
        let answer = ask(&node.tables, &A::at(OTHER_POD), &A::at(POD), protocol::TCP, None);
        assert_eq!(answer.err().map(|(reason, _)| reason), denied);
    }
}

fn what_answers_an_allowed_flow_needs_no_rule<A: Family>() {
    let node = outbound::<A>();
    for transport in kinds() {
        for to in [OTHER_POD, OUTSIDE, DIRECT_POD, REMOTE_POD] {
            let port = if transport == Transport::EchoRequest { 0 } else { 80 };
            let sent = node.pod_sends(&Builder::new(transport, pod(), end((to, port))));
            let answer = match transport {
                Transport::Tcp(_) => Transport::Tcp(SYN_ACK),
                Transport::EchoRequest => Transport::EchoReply,
                other => other,
            };
            let answer = sent.answer(answer);
            let back = match to {
                OTHER_POD => node.pod_sends(&answer),
                REMOTE_POD => node.overlay_brings(&answer),
                _ => node.uplink_brings(&answer),
            };
            assert_eq!(back.verdict, to_pod(POD), "{transport:?} from {to:?}");
            assert_eq!(back.ends().1.0, A::at(POD));
        }
    }
    // The same from the other side is no answer.
    node.pod_sends(&Builder::tcp(SYN_ACK, end((OTHER_POD, 81)), pod())).is_dropped(DENIED_IN);
}

/// However long nobody said a word, before the policy or since, and whoever breaks the silence.
fn an_idle_outbound_connection_outlives_a_denial_of_what_comes_in<A: Family>() {
    const TICKS: u32 = 1000; // a second, at the most
    let limit = idle_limit(protocol::TCP, Stage::Established, false);
    let silences = [60, 60 * 60, limit - 1];
    let cases = [OTHER_POD, OUTSIDE, REMOTE_POD].into_iter().flat_map(|to| {
        silences.into_iter().flat_map(move |silence| [false, true].map(|asks| (to, silence, asks)))
    });
    for (to, silence, asks) in cases {
        let mut node = outbound::<A>();
        node.rule(INGRESS, ANYBODY, allow(2));
        let brings = |node: &Node<A>, packet: &Builder<A>| match to {
            OTHER_POD => node.pod_sends(packet),
            REMOTE_POD => node.overlay_brings(packet),
            _ => node.uplink_brings(packet),
        };
        let there = end((to, 8080));
        let sent = node.pod_sends(&Builder::tcp(SYN, pod(), there));
        brings(&node, &sent.answer(Transport::Tcp(SYN_ACK)));
        for _ in 0..2 {
            let now = node.tables.now.get();
            node.tables.now.set(now.wrapping_add(silence * TICKS));
            node.rule(INGRESS, ANYBODY, deny(0));
            node.change_policies();
            // The other side must not be taken for who opens something.
            for asks in [asks, !asks] {
                if asks {
                    let sent = node.pod_sends(&Builder::tcp(ACK, pod(), there));
                    assert!(!matches!(sent.verdict, Verdict::Drop(_)), "{to:?} {silence} {sent:?}");
                } else {
                    let back = brings(&node, &sent.answer(Transport::Tcp(ACK)));
                    assert_eq!((back.verdict, back.ends()), (to_pod(POD), (there, pod())));
                }
            }
            assert_eq!(node.flows(), (0, 2));
        }
    }
}

fn a_changed_policy_cuts_a_flow_both_ways_with_its_next_packet<A: Family>() {
    for answered in [false, true] {
        let mut node = isolated::<A>();
        node.rule(INGRESS, ANYBODY, allow(2));
        node.rule(EGRESS, ANYBODY, deny(0));
        let ask = || Builder::tcp(ACK, other(), pod());
        let answer = || Builder::tcp(ACK, pod(), other());
        node.pod_sends(&Builder::tcp(SYN, other(), pod())).goes_unchanged(to_pod(POD));
        if answered {
            node.pod_sends(&Builder::tcp(SYN_ACK, pod(), other()))
                .goes_unchanged(to_pod(OTHER_POD));
        }
        let flows = node.flows();
        node.rule(INGRESS, ANYBODY, deny(0));
        node.pod_sends(&ask()).goes_unchanged(to_pod(POD));
        node.change_policies();
        for _ in 0..2 {
            node.pod_sends(&answer()).is_dropped(DENIED_IN);
            node.pod_sends(&ask()).is_dropped(DENIED_IN);
        }
        if answered {
            assert_eq!(node.flows(), flows, "it is not forgotten who is the client");
        }
        // What is allowed now would let the pod open such a flow, and yet this one is not its own.
        node.rule(EGRESS, ANYBODY, allow(1));
        node.change_policies();
        node.pod_sends(&answer()).is_dropped(DENIED_IN);
        node.rule(INGRESS, ANYBODY, allow(2));
        node.rule(EGRESS, ANYBODY, deny(0));
        node.change_policies();
        node.pod_sends(&answer()).goes_unchanged(to_pod(OTHER_POD));
        node.pod_sends(&ask()).goes_unchanged(to_pod(POD));
    }
}

fn a_denied_flow_leaves_nothing_behind<A: Family>() {
    let mut node = isolated::<A>();
    node.service((VIP, 80), protocol::TCP, &[(OTHER_POD, 8080)]);
    node.service(FRONTEND, protocol::TCP, &[(POD, 8080)]);
    for _ in 0..3 {
        node.pod_sends(&Builder::tcp(SYN, pod(), end((VIP, 80)))).is_dropped(DENIED_OUT);
        node.pod_sends(&Builder::tcp(SYN, pod(), end((OUTSIDE, 80)))).is_dropped(DENIED_OUT);
        node.pod_sends(&Builder::tcp(SYN, other(), pod())).is_dropped(DENIED_IN);
        node.uplink_brings(&Builder::tcp(SYN, end((CLIENT, 9)), end(FRONTEND)))
            .is_dropped(DENIED_IN);
        assert_eq!(node.flows(), (0, 0));
    }
}

fn errors_about_an_allowed_flow_pass<A: Family>() {
    let node = outbound::<A>();
    for to in [OTHER_POD, OUTSIDE, DIRECT_POD] {
        let sent = node.pod_sends(&Builder::udp(pod(), end((to, 80))));
        let error = node.uplink_brings(&complaint(A::at(ROUTER), &sent.frame, WHOLE));
        assert_eq!(error.verdict, to_pod(POD));
    }
    // The pod itself complains about an answer.
    let sent = node.pod_sends(&Builder::udp(pod(), other()));
    let answer = node.pod_sends(&sent.answer(Transport::Udp));
    let error = node.pod_sends(&complaint(A::at(POD), &answer.frame, WHOLE));
    assert_eq!(error.verdict, to_pod(OTHER_POD));
}

fn errors_about_nothing_are_asked<A: Family>() {
    let node = isolated::<A>();
    let unsent = Builder::<A>::udp(pod(), end((OUTSIDE, 80))).frame();
    node.uplink_brings(&complaint(A::at(ROUTER), &unsent, WHOLE)).is_dropped(DENIED_IN);
    let unseen = Builder::<A>::udp(other(), pod()).frame();
    node.pod_sends(&complaint(A::at(POD), &unseen, WHOLE)).is_dropped(DENIED_OUT);
}

fn errors_about_a_flow_that_was_cut_are_cut_with_it<A: Family>() {
    let mut node = outbound::<A>();
    let sent = node.pod_sends(&Builder::udp(pod(), other()));
    let answer = node.pod_sends(&sent.answer(Transport::Udp));
    node.rule(EGRESS, ANYBODY, deny(0));
    node.change_policies();
    for _ in 0..2 {
        node.pod_sends(&complaint(A::at(POD), &answer.frame, WHOLE)).is_dropped(DENIED_OUT);
        node.pod_sends(&complaint(A::at(OTHER_POD), &sent.frame, WHOLE)).is_dropped(DENIED_OUT);
        node.uplink_brings(&complaint(A::at(ROUTER), &sent.frame, WHOLE)).is_dropped(DENIED_OUT);
    }
    node.rule(EGRESS, ANYBODY, allow(1));
    node.change_policies();
    let error = node.pod_sends(&complaint(A::at(POD), &answer.frame, WHOLE));
    assert_eq!(error.verdict, to_pod(OTHER_POD));
    // What the host's stack says of a flow does not make it the host's.
    let error = complaint(A::at(NODE), &answer.frame, WHOLE);
    node.socket_sends(&error).goes_unchanged(Verdict::Pass);
    node.rule(EGRESS, ANYBODY, deny(0));
    node.change_policies();
    node.pod_sends(&sent.answer(Transport::Udp)).is_dropped(DENIED_OUT);
}

fn ports_count_by_number_and_range<A: Family>() {
    let mut node = isolated::<A>();
    // 80, and 1024 to 2047 but for 1026 and 1027; all of UDP.
    node.rule_ports(INGRESS, ANYBODY, (protocol::TCP, 80, 16), allow(1));
    node.rule_ports(INGRESS, ANYBODY, (protocol::TCP, 1024, 6), allow(2));
    node.rule_ports(INGRESS, ANYBODY, (protocol::TCP, 1026, 15), deny(3));
    node.rule_ports(INGRESS, ANYBODY, (protocol::UDP, 0, 0), allow(4));
    for (transport, port, rule) in [
        (Transport::Tcp(SYN), 80, Some(1)),
        (Transport::Tcp(SYN), 81, None),
        (Transport::Tcp(SYN), 1023, None),
        (Transport::Tcp(SYN), 1024, Some(2)),
        (Transport::Tcp(SYN), 1026, None),
        (Transport::Tcp(SYN), 1027, None),
        (Transport::Tcp(SYN), 1028, Some(2)),
        (Transport::Tcp(SYN), 2047, Some(2)),
        (Transport::Tcp(SYN), 2048, None),
        (Transport::Tcp(SYN), 0, None),
        (Transport::Udp, 80, Some(4)),
        (Transport::Udp, 65_535, Some(4)),
        (Transport::Sctp, 80, None),
    ] {
        let sent = node.pod_sends(&Builder::new(transport, other(), end((POD, port))));
        let protocol = match transport {
            Transport::Tcp(_) => protocol::TCP,
            Transport::Udp => protocol::UDP,
            _ => protocol::SCTP,
        };
        let port = Some(U16::new(port));
        let said = ask(&node.tables, &A::at(OTHER_POD), &A::at(POD), protocol, port);
        match rule {
            Some(rule) => {
                sent.goes_unchanged(to_pod(POD));
                assert_eq!(said, Ok(rule));
            }
            None => {
                sent.is_dropped(DENIED_IN);
                assert_eq!(said.map_err(|(reason, _)| reason), Err(DENIED_IN));
            }
        }
    }
    // Without its port, nobody knows.
    let said = ask(&node.tables, &A::at(OTHER_POD), &A::at(POD), protocol::UDP, None);
    assert_eq!(said, Err((DENIED_IN, deny(0))));
    node.rule(INGRESS, ANYBODY, allow(5));
    let said = ask(&node.tables, &A::at(OTHER_POD), &A::at(POD), protocol::UDP, None);
    assert_eq!(said, Err((DENIED_IN, ruling::DENIED)));
}

fn a_rule_on_ports_says_nothing_of_what_has_none<A: Family>() {
    let mut node = isolated::<A>();
    node.rule_ports(INGRESS, ANYBODY, (protocol::TCP, 0, 0), allow(1));
    let ping = Builder::ping(A::at(OTHER_POD), A::at(POD), 7);
    let tunnel = Builder::new(Transport::Other(47), (A::at(OTHER_POD), 0), (A::at(POD), 0));
    for packet in [&ping, &tunnel] {
        node.pod_sends(packet).is_dropped(DENIED_IN);
    }
    node.rule(INGRESS, ANYBODY, allow(2));
    for packet in [&ping, &tunnel] {
        assert_eq!(node.pod_sends(packet).verdict, to_pod(POD));
    }
    // Unless the rule is on just this protocol.
    node.rule(INGRESS, ANYBODY, deny(0));
    node.rule_ports(INGRESS, ANYBODY, (A::ICMP, 0, 0), allow(3));
    node.change_policies();
    assert_eq!(node.pod_sends(&ping).verdict, to_pod(POD));
    node.pod_sends(&tunnel).is_dropped(DENIED_IN);
}

fn an_address_counts_before_ranges_and_a_longer_range_before_others<A: Family>() {
    let mut node = isolated::<A>();
    node.rule(INGRESS, FRIEND, allow(1));
    node.range_is([198, 51, 100, 0], 24, FRIEND);
    node.range_is([198, 51, 100, 64], 26, ANYBODY);
    node.range_is([198, 51, 100, 68], 30, FRIEND);
    node.is([198, 51, 100, 69], ANYBODY);
    node.is([203, 0, 113, 1], FRIEND);
    for (client, allowed) in [
        ([198, 51, 100, 7], true),
        ([198, 51, 100, 63], true),
        ([198, 51, 100, 64], false),
        ([198, 51, 100, 70], true),
        ([198, 51, 100, 69], false),
        ([198, 51, 101, 7], false),
        ([203, 0, 113, 1], true),
        ([203, 0, 113, 2], false),
    ] {
        let sent = node.uplink_brings(&Builder::udp(end((client, 9)), pod()));
        assert_eq!(sent.verdict == to_pod(POD), allowed, "{client:?}");
    }
}

fn somebody_without_rulings_is_anybody<A: Family>() {
    let mut node = isolated::<A>();
    node.is(OTHER_POD, FRIEND);
    node.rule(INGRESS, ANYBODY, allow(1));
    node.rule_ports(INGRESS, ANYBODY, (protocol::TCP, 8080, 16), deny(2));
    let asked = |node: &Node<A>, port| {
        let port = Some(U16::new(port));
        ask(&node.tables, &A::at(OTHER_POD), &A::at(POD), protocol::TCP, port)
    };
    assert_eq!(asked(&node, 80), Ok(1));
    assert_eq!(asked(&node, 8080), Err((DENIED_IN, deny(2))));
    // With rulings of his own, those of everybody say nothing.
    node.rule(INGRESS, FRIEND, allow(3));
    assert_eq!(asked(&node, 8080), Ok(3));
    // A set that says nothing at all denies.
    node.restrict(POD, 99, 0);
    assert_eq!(asked(&node, 80), Err((DENIED_IN, ruling::DENIED)));
}

fn the_endpoint_counts_and_not_the_service<A: Family>() {
    let mut node = Node::<A>::policed();
    node.service((VIP, 80), protocol::TCP, &[(OTHER_POD, 8080)]);
    node.restrict(POD, 0, EGRESS);
    node.rule(EGRESS, ANYBODY, deny(0));
    node.is(OTHER_POD, FRIEND);
    node.rule(EGRESS, FRIEND, deny(0));
    node.rule_ports(EGRESS, FRIEND, (protocol::TCP, 8080, 16), allow(1));
    let asked = node.pod_sends(&Builder::tcp(SYN, pod(), end((VIP, 80))));
    asked.goes(to_pod(OTHER_POD), pod(), other());
    node.pod_sends(&asked.answer(Transport::Tcp(SYN_ACK))).goes(to_pod(POD), end((VIP, 80)), pod());
    // Another endpoint, or another port of it.
    for (endpoint, port) in [(REMOTE_POD, 8080), (OTHER_POD, 80)] {
        for stored in node.tables.endpoints.values_mut() {
            let (address, port) = (A::at(endpoint), U16::new(port));
            *stored = Endpoint { address, port, reserved: [0; 2] };
        }
        let from = (A::at(POD), 40_001);
        node.pod_sends(&Builder::tcp(SYN, from, end((VIP, 80)))).is_dropped(DENIED_OUT);
    }
}

fn a_client_counts_as_it_is_before_its_address_is_replaced<A: Family>() {
    let mut node = outbound::<A>();
    node.rule(EGRESS, ANYBODY, deny(0));
    node.range_is(OUTSIDE, 32, FRIEND);
    node.rule(EGRESS, FRIEND, allow(1));
    let sent = node.pod_sends(&Builder::udp(pod(), end((OUTSIDE, 80))));
    assert_eq!((sent.verdict, sent.ends().0.0), (Verdict::Forward, A::at(NODE)));
    let back = node.uplink_brings(&sent.answer(Transport::Udp));
    back.goes(to_pod(POD), end((OUTSIDE, 80)), pod());
    // Its answers are cut as well.
    node.rule(EGRESS, FRIEND, deny(0));
    node.change_policies();
    node.uplink_brings(&sent.answer(Transport::Udp)).is_dropped(DENIED_OUT);
}

fn a_client_from_outside_counts_where_the_endpoint_is<A: Family>() {
    let mut node = isolated::<A>();
    node.service(FRONTEND, protocol::TCP, &[(POD, PORT)]);
    node.range_is(CLIENT, 32, FRIEND);
    node.rule(INGRESS, FRIEND, allow(1));
    let asked = node.uplink_brings(&Builder::tcp(SYN, end((CLIENT, 50_000)), end(FRONTEND)));
    asked.goes(to_pod(POD), end((CLIENT, 50_000)), end((POD, PORT)));
    let answer = node.pod_sends(&asked.answer(Transport::Tcp(SYN_ACK)));
    answer.goes(Verdict::Forward, end(FRONTEND), end((CLIENT, 50_000)));
    node.uplink_brings(&Builder::tcp(SYN, end((OUTSIDE, 50_000)), end(FRONTEND)))
        .is_dropped(DENIED_IN);
    node.rule(INGRESS, FRIEND, deny(0));
    node.change_policies();
    node.pod_sends(&asked.answer(Transport::Tcp(ACK))).is_dropped(DENIED_IN);
    node.uplink_brings(&Builder::tcp(ACK, end((CLIENT, 50_000)), end(FRONTEND)))
        .is_dropped(DENIED_IN);
}

/// The node of [`REMOTE_POD`], which may receive from [`CLIENT`] alone and send nothing.
fn far_policed<A: Family>() -> Node<A> {
    let mut far = far::<A>();
    far.tables.config.flags |= config::POLICED;
    far.change_policies();
    far.restrict(REMOTE_POD, INGRESS, EGRESS);
    far.rule(INGRESS, ANYBODY, deny(0));
    far.rule(EGRESS, ANYBODY, deny(0));
    far.rule(INGRESS, FRIEND, allow(1));
    far.range_is(CLIENT, 32, FRIEND);
    far
}

fn a_client_that_a_peer_brings_counts_where_the_endpoint_is<A: Family>() {
    let mut far = far_policed::<A>();
    let endpoint = end((REMOTE_POD, PORT));
    let brought = |client: [u8; 4]| Builder::tcp(SYN, end((client, 50_000)), endpoint);
    let there = far.tunnel_brings(&brought(CLIENT), &NODE_UNDERLAY);
    assert!(matches!(there.verdict, Verdict::Pod(_)));
    let answer = there.answer(Transport::Tcp(SYN_ACK));
    assert!(matches!(far.pod_sends(&answer).verdict, Verdict::Tunnel(_)));
    far.tunnel_brings(&brought(OUTSIDE), &NODE_UNDERLAY).is_dropped(DENIED_IN);
    far.rule(INGRESS, FRIEND, deny(0));
    far.change_policies();
    far.pod_sends(&answer).is_dropped(DENIED_IN);
    far.tunnel_brings(&brought(CLIENT), &NODE_UNDERLAY).is_dropped(DENIED_IN);
}

fn a_client_that_is_answered_directly_counts_where_the_endpoint_is<A: Family>() {
    let mut near = Node::<A>::new();
    let mut far = far_policed::<A>();
    near.service(FRONTEND, protocol::TCP, &[(REMOTE_POD, PORT)]);
    far.service(FRONTEND, protocol::TCP, &[(REMOTE_POD, PORT)]);
    for node in [&mut near, &mut far] {
        for (key, record) in &mut node.tables.frontends {
            if key.scope == scope::EXTERNAL {
                record.flags |= frontend::KEEP_CLIENT | frontend::DIRECT_RETURN;
            }
        }
    }
    let named = |client: [u8; 4]| {
        let sent = near.uplink_brings(&Builder::tcp(SYN, end((client, 50_000)), end(FRONTEND)));
        assert_eq!(sent.verdict, Verdict::Tunnel(PEER_END));
        Builder::literal(&sent.frame)
    };
    let there = far.tunnel_brings(&named(CLIENT), &NODE_UNDERLAY);
    assert!(matches!(there.verdict, Verdict::Pod(_)));
    let answer = there.answer(Transport::Tcp(SYN_ACK));
    far.pod_sends(&answer).goes(Verdict::Forward, end(FRONTEND), end((CLIENT, 50_000)));
    far.tunnel_brings(&named(OUTSIDE), &NODE_UNDERLAY).is_dropped(DENIED_IN);
    far.rule(INGRESS, FRIEND, deny(0));
    far.change_policies();
    far.pod_sends(&answer).is_dropped(DENIED_IN);
}

fn the_nodes_own_sockets_reach_every_pod<A: Family>() {
    for transport in kinds() {
        let mut node = isolated::<A>();
        let to = if transport == Transport::EchoRequest { (A::at(POD), 0) } else { pod() };
        let probe = Builder::new(transport, end((NODE, 50_000)), to);
        let answer = match transport {
            Transport::Tcp(_) => Transport::Tcp(SYN_ACK),
            Transport::EchoRequest => Transport::EchoReply,
            other => other,
        };
        for _ in 0..2 {
            let sent = node.socket_sends(&probe);
            sent.goes_unchanged(Verdict::Pass);
            node.pod_sends(&sent.answer(answer)).goes_unchanged(Verdict::Pass);
            node.change_policies();
        }
        assert_eq!(node.flows(), (0, 2));
    }
    // Nothing is noted for pods that nobody restricts.
    let node = isolated::<A>();
    node.socket_sends(&Builder::udp(end((NODE, 50_000)), other())).is_untouched();
    assert_eq!(node.flows(), (0, 0));
    let portless = Builder::new(Transport::Other(47), (A::at(NODE), 0), (A::at(POD), 0));
    node.socket_sends(&portless).is_untouched();
    // A flow that was there before anybody knew whose it is.
    let mut node = isolated::<A>();
    node.rule(INGRESS, ANYBODY, allow(1));
    let probe = Builder::tcp(SYN, end((NODE, 50_000)), pod());
    let sent = node.stack_delivers(&probe);
    node.rule(INGRESS, ANYBODY, deny(0));
    node.change_policies();
    node.socket_sends(&probe).goes_unchanged(Verdict::Pass);
    node.pod_sends(&sent.answer(Transport::Tcp(SYN_ACK))).goes_unchanged(Verdict::Pass);
}

fn the_nodes_address_proves_nothing<A: Family>() {
    let mut node = isolated::<A>();
    let probe = Builder::tcp(SYN, end((NODE, 50_000)), pod());
    node.stack_delivers(&probe).is_dropped(DENIED_IN);
    node.uplink_brings(&probe).is_dropped(DropReason::ForeignSource);
    // Where others share the range of its pods, somebody out there may have this address.
    node.tables.pod_range.network = A::UNSPECIFIED;
    node.uplink_brings(&probe).is_dropped(DENIED_IN);
    // Nor may he go on with what a process of the node began.
    node.socket_sends(&probe).goes_unchanged(Verdict::Pass);
    node.uplink_brings(&Builder::tcp(ACK, end((NODE, 50_000)), pod())).is_dropped(DENIED_IN);
    node.socket_sends(&probe).goes_unchanged(Verdict::Pass);
}

fn a_pod_reaches_its_node_unless_that_is_restricted<A: Family>() {
    for (flags, reaches) in [(0, true), (config::POLICED_TO_NODE, false)] {
        let mut node = isolated::<A>();
        node.tables.config.flags |= flags;
        let sent = node.pod_sends(&Builder::tcp(SYN, pod(), end((NODE, 10_250))));
        if reaches {
            sent.goes_unchanged(Verdict::Pass);
            node.socket_sends(&sent.answer(Transport::Tcp(SYN_ACK))).goes_unchanged(Verdict::Pass);
            assert_eq!(node.flows(), (0, 2));
        } else {
            sent.is_dropped(DENIED_OUT);
            node.rule(EGRESS, FRIEND, allow(1));
            node.is(NODE, FRIEND);
            let sent = node.pod_sends(&Builder::tcp(SYN, pod(), end((NODE, 10_250))));
            sent.goes_unchanged(Verdict::Pass);
        }
        // Other nodes are peers like any others.
        node.pod_sends(&Builder::tcp(SYN, pod(), end((PEER, 10_250)))).is_dropped(DENIED_OUT);
    }
}

fn a_pod_that_reaches_itself_is_left_alone_by_its_own_policies<A: Family>() {
    for (verdict, reaches) in [(deny(0), true), (ruling::DENIED | 5, false)] {
        for ingress in [true, false] {
            let mut node = Node::<A>::policed();
            node.service((VIP, 80), protocol::TCP, &[(POD, 8080)]);
            let set = if ingress { INGRESS } else { EGRESS };
            node.restrict(POD, if ingress { set } else { 0 }, if ingress { 0 } else { set });
            node.rule(set, ANYBODY, verdict);
            let sent = node.pod_sends(&Builder::tcp(SYN, pod(), end((VIP, 80))));
            if reaches {
                assert_eq!(sent.verdict, to_pod(POD));
                let back = node.pod_sends(&sent.answer(Transport::Tcp(SYN_ACK)));
                back.goes(to_pod(POD), end((VIP, 80)), pod());
            } else {
                sent.is_dropped(if ingress { DENIED_IN } else { DENIED_OUT });
            }
        }
    }
}

fn fragments_go_with_the_first_one<A: Family>() {
    let mut node = isolated::<A>();
    node.rule_ports(INGRESS, ANYBODY, (protocol::UDP, 40_000, 16), allow(1));
    let [first, second, third] = pieces(&Builder::<A>::udp(other(), pod()));
    for piece in [&second, &third] {
        node.pod_sends(piece).is_dropped(DENIED_IN);
    }
    for piece in [&first, &second, &third] {
        assert_eq!(node.pod_sends(piece).verdict, to_pod(POD));
    }
    // And its answers'.
    for piece in pieces(&Builder::<A>::udp(pod(), other())) {
        assert_eq!(node.pod_sends(&piece).verdict, to_pod(OTHER_POD));
    }
    let denied = pieces(&Builder::<A>::udp(end((CLIENT, 1)), end((POD, 81))));
    for piece in &denied {
        node.uplink_brings(piece).is_dropped(DENIED_IN);
    }
    // Where no port makes a difference, they may come in any order.
    let mut node = isolated::<A>();
    node.rule(INGRESS, ANYBODY, allow(1));
    for piece in [&third, &second, &first] {
        assert_eq!(node.pod_sends(piece).verdict, to_pod(POD));
    }
}

fn what_is_broken_reaches_no_restricted_pod<A: Family>() {
    let node = isolated::<A>();
    let delivers = |frame: &Frame, by_socket| {
        path::to_pod::<A, _, _>(&mut frame.clone(), &node.tables, by_socket)
    };
    // Of its transport header there is no more than the ports.
    let cut = |to| {
        let mut frame = Builder::<A>::udp(end((CLIENT, 9)), to).frame();
        frame.bytes.truncate(frame.bytes.len() - 11);
        Frame::new(frame.bytes)
    };
    // A first fragment that is too small to be asked about.
    let tiny = |to| Builder::<A>::udp(end((CLIENT, 9)), to).piece(0..4, true).frame();
    for (to_pod, to_other, reason) in [
        (cut(pod()), cut(other()), DropReason::Malformed),
        (tiny(pod()), tiny(other()), DropReason::FragmentTiny),
    ] {
        assert_eq!(delivers(&to_pod, false), Verdict::Drop(reason));
        assert_eq!(delivers(&to_other, false), Verdict::Pass);
        assert_eq!(delivers(&to_pod, true), Verdict::Pass);
    }
}

fn what_the_first_program_opened_the_second_one_judges<A: Family>() {
    for (verdict, allowed) in [(allow(1), true), (deny(0), false)] {
        let mut node = isolated::<A>();
        node.rule(INGRESS, ANYBODY, verdict);
        node.service(FRONTEND, protocol::TCP, &[(POD, PORT)]);
        let packet = Builder::tcp(SYN, end((CLIENT, 50_000)), end(FRONTEND));
        // As `uplink_xdp` does.
        let (tables, frame) = (&node.tables, packet.frame());
        let headers = path::enter_from_uplink::<A, _, _>(&frame, tables).expect("headers");
        let mut scratch = Scratch::default();
        let todo = path::decide_from_uplink(tables, &headers, &mut scratch);
        assert_eq!(todo, Ok(path::Todo::Open));
        path::open(tables, tables, &headers, &mut scratch).expect("a flow");
        for _ in 0..2 {
            let sent = node.uplink_brings(&packet);
            if allowed {
                sent.goes(to_pod(POD), end((CLIENT, 50_000)), end((POD, PORT)));
            } else {
                sent.is_dropped(DENIED_IN);
            }
        }
    }
}

fn rules_count_flows_and_denied_packets<A: Family>() {
    let mut node = isolated::<A>();
    node.rule(EGRESS, ANYBODY, allow(1));
    node.rule(INGRESS, ANYBODY, deny(2));
    node.restrict(OTHER_POD, 9, 0);
    node.rule(9, ANYBODY, allow(3));
    for _ in 0..3 {
        let sent = node.pod_sends(&Builder::tcp(SYN, pod(), other()));
        node.pod_sends(&sent.answer(Transport::Tcp(SYN_ACK)));
        node.change_policies();
        node.pod_sends(&Builder::tcp(SYN, end((OTHER_POD, 1)), pod())).is_dropped(DENIED_IN);
    }
    let portless = Builder::new(Transport::Other(47), (A::at(POD), 0), (A::at(OTHER_POD), 0));
    node.pod_sends(&portless);
    node.pod_sends(&portless);
    let counts = node.tables.rule_counts.borrow();
    let of = |rule| counts.get(&rule).copied().unwrap_or_default();
    assert_eq!(of(1), RuleCount { allowed: 3, denied: 0 });
    assert_eq!(of(2), RuleCount { allowed: 0, denied: 3 });
    assert_eq!(of(3), RuleCount { allowed: 3, denied: 0 });
    assert_eq!(counts.len(), 3);
}

fn a_flow_that_was_denied_before_is_not_counted_as_allowed<A: Family>() {
    let mut node = isolated::<A>();
    node.rule(INGRESS, ANYBODY, deny(4));
    node.rule(EGRESS, ANYBODY, allow(5));
    node.pod_sends(&Builder::tcp(SYN, other(), pod())).is_dropped(DENIED_IN);
    let counts = node.tables.rule_counts.borrow();
    assert_eq!(counts.get(&4), Some(&RuleCount { allowed: 0, denied: 1 }));
    assert_eq!(counts.get(&5), None, "nobody asked it");
}

/// Hosts forward what is sent to link-local addresses of IPv4, and so a pod might reach the metadata
/// service of a cloud.
#[test]
fn a_metadata_service_is_somebody_like_others() {
    const METADATA: [u8; 4] = [169, 254, 169, 254];
    let asks = || Builder::<V4>::tcp(SYN, pod(), end((METADATA, 80)));
    let mut node = isolated::<V4>();
    node.pod_sends(&asks()).is_dropped(DENIED_OUT);
    assert_eq!(node.flows(), (0, 0));
    let unrestricted = Builder::<V4>::tcp(SYN, other(), end((METADATA, 80)));
    node.pod_sends(&unrestricted).is_untouched();

    node.range_is(METADATA, 32, FRIEND);
    node.rule(EGRESS, FRIEND, allow(1));
    for _ in 0..2 {
        let sent = node.pod_sends(&asks());
        sent.goes_unchanged(Verdict::Pass);
        // As the host's stack forwards the answer.
        node.stack_delivers(&sent.answer(Transport::Tcp(SYN_ACK))).goes_unchanged(Verdict::Pass);
    }
    node.rule(EGRESS, FRIEND, deny(0));
    node.change_policies();
    node.pod_sends(&asks()).is_dropped(DENIED_OUT);

    // Where it is said to be outside, it is as any other.
    let mut node = isolated::<V4>();
    node.route(METADATA, 32, route::OUTSIDE, None, [0; 16]);
    node.pod_sends(&asks()).is_dropped(DENIED_OUT);
}

/// A node finds its pods by asking for their addresses from its own, and is answered at it.
#[test]
fn what_a_pod_tells_its_node_about_neighbours_is_not_asked() {
    const ADVERTISEMENT: u8 = 136;
    let mut node = isolated::<V6>();
    node.tables.config.flags |= config::POLICED_TO_NODE;
    let target = V6::at(POD);
    let tells = |to: [u8; 4], hop_limit| {
        let message =
            Builder::<V6>::new(Transport::Icmp(ADVERTISEMENT), end((POD, 0)), end((to, 0)));
        message.payload(&target).hop_limit(hop_limit)
    };
    node.pod_sends(&tells(NODE, 255)).is_untouched();
    // What is not from the link is nothing of the kind.
    node.pod_sends(&tells(NODE, 254)).is_dropped(DENIED_OUT);
    node.pod_sends(&tells(OTHER_POD, 255)).is_dropped(DENIED_OUT);
    node.pod_sends(&Builder::<V6>::ping(V6::at(POD), V6::at(NODE), 1).hop_limit(255))
        .is_dropped(DENIED_OUT);
}
