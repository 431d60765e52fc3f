//! Clients from outside that keep their address on the way to an endpoint of another node. Two nodes play:
//! the one that is asked ([`Node::new`]), and the endpoint's.

use fairway_abi::{DropReason, TunnelEnd, V6, frontend, protocol, route};
use fairway_core::Verdict;
use fairway_core::packet::tcp;

use crate::errors::{ROUTER, WHOLE, complaint, tells};
use crate::for_both_families;
use crate::fragments::pieces;
use crate::frame::{Builder, Family, Transport, ends, hop_limit};
use crate::node::{
    CLIENT, DIRECT_POD, NODE, Node, OUTSIDE, OVERLAY, PEER, PEER_END, POD, PORTS, REMOTE_POD, Sent,
    VIP, range,
};

for_both_families![
    an_endpoint_behind_the_tunnel_sees_the_client_and_answers_through_it,
    flows_from_one_client_port_to_one_endpoint_are_told_apart,
    who_is_not_outside_is_hidden_as_ever,
    an_endpoint_that_cannot_be_sent_clients_sees_the_node,
    only_a_known_peer_brings_packets_of_clients_and_only_to_pods,
    answers_go_to_the_peer_that_brought_the_last_packet,
    errors_find_both_ends_of_a_kept_flow,
    what_cannot_go_on_is_told_by_way_of_the_node_that_was_asked,
    fragments_of_a_kept_flow_follow_the_first,
    a_client_with_a_route_to_the_pod_is_no_business_of_peers,
];

const SYN: Transport = Transport::Tcp(tcp::SYN);
const SYN_ACK: Transport = Transport::Tcp(tcp::SYN | tcp::ACK);

/// What a client says and hears.
pub(crate) const EXCHANGES: [(u8, Transport, Transport); 3] = [
    (protocol::TCP, SYN, SYN_ACK),
    (protocol::UDP, Transport::Udp, Transport::Udp),
    (protocol::SCTP, Transport::Sctp, Transport::Sctp),
];

/// [`NODE`] as the overlay names it, and a third node with its range of pods.
pub(crate) const NODE_UNDERLAY: V6 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
pub(crate) const THIRD_UNDERLAY: V6 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 4];
pub(crate) const THIRD_PODS: [u8; 4] = [10, 244, 4, 0];

pub(crate) const FRONTEND: ([u8; 4], u16) = (NODE, 30_080);
pub(crate) const PORT: u16 = 8080;

/// The node that is asked, with a node port that leads to this endpoint.
fn asked<A: Family>(protocol: u8, endpoint: [u8; 4]) -> Node<A> {
    let mut node = Node::<A>::new();
    node.service(FRONTEND, protocol, &[(endpoint, PORT)]);
    keep(&mut node);
    node
}

fn keep<A: Family>(node: &mut Node<A>) {
    for (key, record) in &mut node.tables.frontends {
        if key.scope == fairway_abi::scope::EXTERNAL {
            record.flags |= frontend::KEEP_CLIENT;
        }
    }
}

/// The node of [`REMOTE_POD`], with tunnels to two others.
pub(crate) fn far<A: Family>() -> Node<A> {
    let mut node = Node::<A>::new();
    let tables = &mut node.tables;
    let pod = tables.pods.remove(&A::at(POD)).expect("a pod");
    tables.pods.clear();
    tables.interfaces.clear();
    tables.pods.insert(A::at(REMOTE_POD), pod);
    tables.interfaces.insert(pod.ifindex, A::at(REMOTE_POD).interface());
    tables.pod_range = range([10, 244, 2, 0]);
    tables.config.masquerade4 = PEER;
    tables.config.masquerade6 = V6::at(PEER);
    tables.routes.clear();
    tables.peers.insert(NODE_UNDERLAY, A::at(OVERLAY));
    tables.peers.insert(THIRD_UNDERLAY, A::at(THIRD_PODS));
    let own = Some([10, 244, 2, 0]);
    node.route(PEER, 32, route::HOST, None, [0; 16]);
    node.route([10, 244, 2, 0], 24, route::HOST, None, [0; 16]);
    node.route(OVERLAY, 24, route::TUNNEL, own, NODE_UNDERLAY);
    node.route(NODE, 32, route::TUNNEL_NODE, own, NODE_UNDERLAY);
    node.route(THIRD_PODS, 24, route::TUNNEL, own, THIRD_UNDERLAY);
    node
}

fn to_far_pod<A: Family>(far: &Node<A>) -> Verdict {
    Verdict::Pod(far.tables.pods[&A::at(REMOTE_POD)])
}

/// What arrives of a packet that another node sent.
pub(crate) fn arrived<A: Family>(sent: &Sent<A>) -> Builder<A> {
    Builder::literal(&sent.frame)
}

pub(crate) fn end<A: Family>((address, port): ([u8; 4], u16)) -> (A, u16) {
    (A::at(address), port)
}

fn an_endpoint_behind_the_tunnel_sees_the_client_and_answers_through_it<A: Family>() {
    let (client, endpoint) = (end((CLIENT, 50_000)), end((REMOTE_POD, PORT)));
    for (protocol, request, answer) in EXCHANGES {
        let (near, far) = (asked::<A>(protocol, REMOTE_POD), far::<A>());
        for _ in 0..2 {
            let sent = near.uplink_brings(&Builder::new(request, client, end(FRONTEND)));
            sent.goes(Verdict::Tunnel(PEER_END), client, endpoint);
            let there = far.tunnel_brings(&arrived(&sent), &NODE_UNDERLAY);
            there.goes(to_far_pod(&far), client, endpoint);
            let back = far.pod_sends(&there.answer(answer));
            back.goes(Verdict::Tunnel(TunnelEnd::at(NODE_UNDERLAY)), endpoint, client);
            let home = near.overlay_brings(&arrived(&back));
            home.goes(Verdict::Forward, end(FRONTEND), client);
        }
        assert_eq!((near.flows(), far.flows()), ((0, 2), (0, 2)));
    }
}

fn flows_from_one_client_port_to_one_endpoint_are_told_apart<A: Family>() {
    let client = end((CLIENT, 50_000));
    for (protocol, request, answer) in EXCHANGES {
        let (mut near, far) = (asked::<A>(protocol, REMOTE_POD), far::<A>());
        near.service((VIP, 80), protocol, &[(REMOTE_POD, PORT)]);
        keep(&mut near);
        let hears = |frontend| {
            let sent = near.uplink_brings(&Builder::new(request, client, end(frontend)));
            let there = far.tunnel_brings(&arrived(&sent), &NODE_UNDERLAY);
            let back = far.pod_sends(&there.answer(answer));
            near.overlay_brings(&arrived(&back)).goes(Verdict::Forward, end(frontend), client);
            sent.ends().0
        };
        assert_eq!(hears(FRONTEND), client);
        let (address, port) = hears((VIP, 80));
        assert_eq!(address, client.0);
        assert!(port != client.1 && PORTS.contains(&port), "{port}");
    }
}

fn who_is_not_outside_is_hidden_as_ever<A: Family>() {
    let near = asked::<A>(protocol::UDP, REMOTE_POD);
    for client in [(REMOTE_POD, 50_000), (PEER, 50_000)] {
        let sent = near.overlay_brings(&Builder::udp(end(client), end(FRONTEND)));
        assert_eq!((sent.verdict, sent.ends().0.0), (Verdict::Tunnel(PEER_END), A::at(OVERLAY)));
    }
    for client in [DIRECT_POD, [10, 244, 3, 7]] {
        let sent = near.uplink_brings(&Builder::udp(end((client, 50_000)), end(FRONTEND)));
        assert_eq!((sent.verdict, sent.ends().0.0), (Verdict::Tunnel(PEER_END), A::at(OVERLAY)));
    }
    let pod = near.pod_sends(&Builder::udp(end((POD, 50_000)), end(FRONTEND)));
    pod.goes(Verdict::Tunnel(PEER_END), end((POD, 50_000)), end((REMOTE_POD, PORT)));
}

fn an_endpoint_that_cannot_be_sent_clients_sees_the_node<A: Family>() {
    let client = end((CLIENT, 50_000));
    let ask = |node: &Node<A>| node.uplink_brings(&Builder::udp(client, end(FRONTEND))).ends().0.0;
    for (endpoint, seen) in
        [(REMOTE_POD, CLIENT), (PEER, OVERLAY), (DIRECT_POD, NODE), (OUTSIDE, NODE)]
    {
        assert_eq!(ask(&asked(protocol::UDP, endpoint)), A::at(seen), "{endpoint:?}");
    }
    // Encrypted, or run by another plugin.
    let mut other = asked::<A>(protocol::UDP, REMOTE_POD);
    other.tables.routes.iter_mut().for_each(|(.., route)| route.peer.flags = [0; 2]);
    assert_eq!(ask(&other), A::at(OVERLAY));
}

fn only_a_known_peer_brings_packets_of_clients_and_only_to_pods<A: Family>() {
    let far = far::<A>();
    let client = end((CLIENT, 50_000));
    let to_pod = Builder::udp(client, end((REMOTE_POD, PORT)));
    let stranger = [1; 16];
    far.tunnel_brings(&to_pod, &stranger).is_dropped(DropReason::ForeignTunnel);
    for destination in [PEER, OUTSIDE, [10, 244, 2, 9]] {
        let packet = Builder::udp(client, end((destination, PORT)));
        far.tunnel_brings(&packet, &NODE_UNDERLAY).is_dropped(DropReason::ForeignTunnel);
    }
    // Not outside: this node and its pods, another peer and its pods, nobody.
    for source in [PEER, [10, 244, 2, 9], [10, 244, 4, 9], [127, 0, 0, 1]] {
        let source = if source[0] == 127 { A::LOOPBACK } else { A::at(source) };
        let packet = Builder::udp((source, 50_000), end((REMOTE_POD, PORT)));
        far.tunnel_brings(&packet, &NODE_UNDERLAY).is_dropped(DropReason::ForeignTunnel);
    }
    assert_eq!(far.flows(), (0, 0));
    // A range outside where pods keep their addresses is outside all the same.
    let mut far = far;
    far.tables.routes.push((
        A::ADDRESS_BITS - 8,
        A::at([198, 0, 0, 0]),
        fairway_abi::Route { kind: route::DIRECT.into(), ..far.tables.routes[0].2 },
    ));
    assert_eq!(far.tunnel_brings(&to_pod, &NODE_UNDERLAY).verdict, to_far_pod(&far));
    assert_eq!(far.flows(), (2, 0));
}

fn answers_go_to_the_peer_that_brought_the_last_packet<A: Family>() {
    let (client, endpoint) = (end((CLIENT, 50_000)), end((REMOTE_POD, PORT)));
    let far = far::<A>();
    let packet = Builder::udp(client, endpoint);
    for peer in [NODE_UNDERLAY, THIRD_UNDERLAY, NODE_UNDERLAY] {
        for _ in 0..2 {
            let there = far.tunnel_brings(&packet, &peer);
            there.goes(to_far_pod(&far), client, endpoint);
            let back = far.pod_sends(&there.answer(Transport::Udp));
            back.goes(Verdict::Tunnel(TunnelEnd::at(peer)), endpoint, client);
        }
    }
    assert_eq!(far.flows(), (0, 2));
}

fn errors_find_both_ends_of_a_kept_flow<A: Family>() {
    let client = end::<A>((CLIENT, 50_000));
    let (near, far) = (asked::<A>(protocol::UDP, REMOTE_POD), far::<A>());
    let sent = near.uplink_brings(&Builder::udp(client, end(FRONTEND)));
    let there = far.tunnel_brings(&arrived(&sent), &NODE_UNDERLAY);
    let back = far.pod_sends(&there.answer(Transport::Udp));
    let home = near.overlay_brings(&arrived(&back));

    // A router about the answer.
    let error = near.uplink_brings(&complaint(A::at(ROUTER), &home.frame, WHOLE));
    tells(&error, Verdict::Tunnel(PEER_END), A::at(ROUTER), &back.frame);
    let error = far.tunnel_brings(&arrived(&error), &NODE_UNDERLAY);
    tells(&error, to_far_pod(&far), A::at(ROUTER), &back.before);

    // The endpoint about the request.
    let error = far.pod_sends(&complaint(A::at(REMOTE_POD), &there.frame, WHOLE));
    let peer = Verdict::Tunnel(TunnelEnd::at(NODE_UNDERLAY));
    tells(&error, peer, A::at(REMOTE_POD), &sent.frame);
    let error = near.overlay_brings(&arrived(&error));
    tells(&error, Verdict::Forward, A::at(NODE), &sent.before);
}

fn what_cannot_go_on_is_told_by_way_of_the_node_that_was_asked<A: Family>() {
    let client = end::<A>((CLIENT, 50_000));
    let (near, far) = (asked::<A>(protocol::UDP, REMOTE_POD), far::<A>());
    let sent = near.uplink_brings(&Builder::udp(client, end(FRONTEND)).hop_limit(2));
    assert_eq!(hop_limit::<A>(&sent.frame), 1);
    let error = far.tunnel_brings(&arrived(&sent), &NODE_UNDERLAY);
    assert_eq!(error.verdict, Verdict::Tunnel(TunnelEnd::at(NODE_UNDERLAY)));
    let error = near.overlay_brings(&arrived(&error));
    error.goes(Verdict::Forward, (A::at(NODE), 0), (client.0, 0));
}

fn fragments_of_a_kept_flow_follow_the_first<A: Family>() {
    let client = end::<A>((CLIENT, 50_000));
    let (near, far) = (asked::<A>(protocol::UDP, REMOTE_POD), far::<A>());
    for piece in pieces(&Builder::udp(client, end(FRONTEND))) {
        let sent = near.uplink_brings(&piece);
        assert_eq!(sent.verdict, Verdict::Tunnel(PEER_END));
        let there = far.tunnel_brings(&arrived(&sent), &NODE_UNDERLAY);
        let (_, source, destination, ..) = A::read(&there.frame.bytes);
        assert_eq!((source, destination), (client.0, A::at(REMOTE_POD)));
        assert_eq!(there.verdict, to_far_pod(&far));
    }
    let answer = Builder::udp(end((REMOTE_POD, PORT)), client);
    for piece in pieces(&answer) {
        let back = far.pod_sends(&piece);
        assert_eq!(back.verdict, Verdict::Tunnel(TunnelEnd::at(NODE_UNDERLAY)));
        let home = near.overlay_brings(&arrived(&back));
        assert_eq!(home.verdict, Verdict::Forward);
        assert_eq!(A::read(&home.frame.bytes).1, A::at(NODE));
    }
}

fn a_client_with_a_route_to_the_pod_is_no_business_of_peers<A: Family>() {
    let (client, endpoint) = (end((CLIENT, 50_000)), end((REMOTE_POD, PORT)));
    let far = far::<A>();
    let packet = Builder::udp(client, endpoint);
    let there = far.uplink_brings(&packet);
    there.goes(to_far_pod(&far), client, endpoint);
    far.tunnel_brings(&packet, &NODE_UNDERLAY).goes(to_far_pod(&far), client, endpoint);
    let back = far.pod_sends(&there.answer(Transport::Udp));
    back.goes(Verdict::Forward, endpoint, client);
    assert_eq!(ends::<A>(&back.before), ends::<A>(&back.frame));
}
