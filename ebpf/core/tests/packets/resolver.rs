//! The cluster's DNS server, which the agent of each node is.

use fairway_abi::{
    DropReason, FrontendKey, RESOLVER_PORT, config, frontend, peer, protocol, route, scope,
};
use fairway_core::Verdict;
use fairway_core::packet::tcp;
use fairway_core::socket::{Outcome, SocketAddress, connect, send};
use zerocopy::network_endian::U16;

use crate::for_both_families;
use crate::forwarding::end;
use crate::frame::{Builder, End, Family, Transport};
use crate::node::{CLIENT, Node, OVERLAY, PEER_UNDERLAY, POD, REMOTE_POD, VIP};
use crate::policy::{ANYBODY, FRIEND, allow, deny};

for_both_families![
    a_socket_is_led_to_this_nodes_agent_as_long_as_it_answers,
    without_anybody_else_a_socket_is_led_to_this_nodes_agent,
    a_packet_is_led_to_this_nodes_agent_as_long_as_it_answers,
    what_the_outside_asks_goes_to_the_endpoints,
    a_restricted_pod_asks_whom_its_rules_let_it_ask,
    the_rest_of_this_node_is_not_the_dns_server,
    a_peers_agent_is_the_dns_server_too,
];

const EGRESS: u32 = 2;
const DENIED: DropReason = DropReason::PolicyEgress;
/// Where the agent of the peer with [`REMOTE_POD`] is asked.
pub(crate) const REMOTE_AGENT: [u8; 4] = [10, 244, 2, 0];

/// A node with the DNS server's Service at [`VIP`].
fn node<A: Family>(endpoints: &[[u8; 4]]) -> Node<A> {
    let mut node = Node::new();
    let endpoints: Vec<_> = endpoints.iter().map(|pod| (*pod, 5353)).collect();
    for protocol in [protocol::TCP, protocol::UDP] {
        node.service((VIP, RESOLVER_PORT), protocol, &endpoints);
    }
    for (key, record) in &mut node.tables.frontends {
        record.flags |= if key.scope == scope::INTERNAL { frontend::RESOLVER } else { 0 };
    }
    node.route([0; 4], 32, route::HOST, None, [0; 16]);
    node.tables.routes.last_mut().expect("a route").1 = A::RESOLVER;
    node
}

fn agent<A: Family>() -> End<A> {
    (A::RESOLVER, RESOLVER_PORT)
}

fn pod<A: Family>() -> End<A> {
    end((POD, 40_000))
}

fn asked<A: Family>(protocol: u8) -> SocketAddress<A> {
    SocketAddress { address: A::at(VIP), port: U16::new(RESOLVER_PORT), protocol }
}

/// Where TCP and UDP sockets are led, by either call.
fn led<A: Family>(node: &Node<A>) -> Vec<End<A>> {
    let tables = &node.tables;
    let to = |outcome: Outcome<A>| {
        let Outcome::Endpoint(endpoint) = outcome else { panic!("{outcome:?}") };
        (endpoint.address, endpoint.port.get())
    };
    vec![
        to(connect(tables, &tables.socket(1), &asked(protocol::TCP))),
        to(connect(tables, &tables.socket(2), &asked(protocol::UDP))),
        to(send(tables, &tables.socket(3), &asked(protocol::UDP))),
    ]
}

fn a_socket_is_led_to_this_nodes_agent_as_long_as_it_answers<A: Family>() {
    let node = node::<A>(&[REMOTE_POD]);
    for alive in [true, false] {
        node.tables.resolver.set(alive);
        let expected = if alive { agent() } else { end((REMOTE_POD, 5353)) };
        assert_eq!(led(&node), [expected; 3]);
    }
}

fn without_anybody_else_a_socket_is_led_to_this_nodes_agent<A: Family>() {
    assert_eq!(led(&node::<A>(&[])), [agent(); 3]);
}

fn a_packet_is_led_to_this_nodes_agent_as_long_as_it_answers<A: Family>() {
    let node = node::<A>(&[REMOTE_POD]);
    node.tables.resolver.set(true);
    let sent = node.pod_sends(&Builder::udp(pod(), end((VIP, RESOLVER_PORT))));
    sent.goes(Verdict::Pass, pod(), agent());
    let answer = node.delivers(&sent.answer(Transport::Udp), true);
    answer.goes(Verdict::Pass, end((VIP, RESOLVER_PORT)), pod());
    node.tables.resolver.set(false);
    let sent = node.pod_sends(&Builder::udp(end((POD, 40_001)), end((VIP, RESOLVER_PORT))));
    assert_eq!(sent.ends().1, end((REMOTE_POD, 5353)));
}

fn what_the_outside_asks_goes_to_the_endpoints<A: Family>() {
    let node = node::<A>(&[REMOTE_POD]);
    node.tables.resolver.set(true);
    let sent = node.uplink_brings(&Builder::udp(end((CLIENT, 5000)), end((VIP, RESOLVER_PORT))));
    assert_eq!(sent.ends().1, end((REMOTE_POD, 5353)));
    let key = FrontendKey {
        address: A::at(VIP),
        port: U16::new(RESOLVER_PORT),
        protocol: protocol::UDP,
        scope: scope::EXTERNAL,
    };
    assert_eq!(node.tables.frontends[&key].flags & frontend::RESOLVER, 0);
}

/// [`POD`] may send to [`FRIEND`]s alone.
fn restricted<A: Family>() -> Node<A> {
    let mut node = node::<A>(&[]);
    node.tables.config.flags |= config::POLICED;
    node.change_policies();
    node.restrict(POD, 0, EGRESS);
    node.rule(EGRESS, ANYBODY, deny(0));
    node.rule(EGRESS, FRIEND, allow(1));
    node
}

fn a_restricted_pod_asks_whom_its_rules_let_it_ask<A: Family>() {
    let mut node = restricted::<A>();
    for to in [agent(), end((VIP, RESOLVER_PORT))] {
        node.pod_sends(&Builder::udp(pod(), to)).is_dropped(DENIED);
        node.pod_sends(&Builder::tcp(tcp::SYN, pod(), to)).is_dropped(DENIED);
    }
    assert_eq!(node.flows(), (0, 0));
    node.tables.identities.insert(A::RESOLVER, FRIEND);
    for (port, to) in [(40_000, agent()), (40_001, end((VIP, RESOLVER_PORT)))] {
        let pod = end((POD, port));
        let sent = node.pod_sends(&Builder::udp(pod, to));
        sent.goes(Verdict::Pass, pod, agent());
        let answer = node.delivers(&sent.answer(Transport::Udp), true);
        answer.goes(Verdict::Pass, to, pod);
        let sent = node.pod_sends(&Builder::tcp(tcp::SYN, pod, to));
        sent.goes(Verdict::Pass, pod, agent());
    }
}

fn the_rest_of_this_node_is_not_the_dns_server<A: Family>() {
    let mut node = restricted::<A>();
    node.tables.identities.insert(A::RESOLVER, FRIEND);
    let kubelet = Builder::tcp(tcp::SYN, pod(), (A::RESOLVER, 10_250));
    node.pod_sends(&kubelet).goes_unchanged(Verdict::Pass);
    let mut node = restricted::<A>();
    node.tables.identities.insert(A::RESOLVER, FRIEND);
    node.tables.config.flags |= config::POLICED_TO_NODE;
    node.pod_sends(&kubelet).is_dropped(DENIED);
    let ping = Builder::new(Transport::EchoRequest, (A::at(POD), 7), (A::RESOLVER, 0));
    node.pod_sends(&ping).is_dropped(DENIED);
}

fn a_peers_agent_is_the_dns_server_too<A: Family>() {
    let mut node = restricted::<A>();
    node.tables.identities.insert(A::RESOLVER, FRIEND);
    let query = Builder::udp(pod(), end((REMOTE_AGENT, RESOLVER_PORT)));
    node.pod_sends(&query).is_dropped(DENIED);
    node.route(REMOTE_AGENT, 32, route::TUNNEL, Some(OVERLAY), PEER_UNDERLAY);
    node.tables.routes.last_mut().expect("a route").2.peer.flags[0] |= peer::RESOLVER;
    assert_ne!(node.pod_sends(&query).verdict, Verdict::Drop(DENIED));
    for other in [
        Builder::udp(pod(), end((REMOTE_AGENT, 5353))),
        Builder::udp(pod(), end((REMOTE_POD, RESOLVER_PORT))),
    ] {
        node.pod_sends(&other).is_dropped(DENIED);
    }
}
