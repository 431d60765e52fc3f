//! Services: which endpoint a client reaches, whom the endpoint sees, and that the client never
//! learns of it.

use std::collections::HashMap;

use fairway_abi::{FrontendKey, protocol, scope};
use fairway_core::Verdict;
use fairway_core::packet::tcp;
use zerocopy::network_endian::U16;

use crate::for_both_families;
use crate::frame::{Builder, End, Family, Transport, assert_checksums};
use crate::node::{
    CLIENT, DIRECT_POD, NODE, Node, OTHER_POD, OTHER_VIP, OUTSIDE, OVERLAY, PEER, PEER_END, POD,
    PORTS, REMOTE_POD, Sent, VIP, to_pod,
};

for_both_families![
    a_pod_reaches_a_pod_of_its_node,
    a_pod_reaches_what_is_behind_the_tunnel,
    a_pod_reaches_a_pod_by_plain_routing,
    a_pod_reaches_an_endpoint_outside_under_the_nodes_address,
    a_pod_reaches_an_endpoint_on_its_own_node,
    a_pod_reaches_itself,
    a_pod_here_sees_the_client_of_a_node_port,
    a_process_here_sees_the_client_of_a_node_port,
    a_process_here_answers_a_peers_pod_through_the_tunnel,
    an_endpoint_elsewhere_sees_an_address_that_leads_back,
    a_peer_and_its_pods_reach_a_node_port_through_the_tunnel,
    one_client_port_outside_reaches_a_pod_and_a_node_port_in_front_of_it,
    a_node_without_a_masquerade_address_never_sends_from_none,
    one_client_port_reaches_one_endpoint_by_several_frontends,
    the_protocol_is_part_of_a_frontend,
    the_scope_is_part_of_a_frontend,
    new_flows_spread_evenly,
    an_open_flow_keeps_its_endpoint,
    a_checksum_of_sctp_left_to_the_device_stays_so,
];

const SYN: Transport = Transport::Tcp(tcp::SYN);
const SYN_ACK: Transport = Transport::Tcp(tcp::SYN | tcp::ACK);

/// What a client may say to a Service, and hear from it.
const EXCHANGES: [(u8, Transport, Transport); 4] = [
    (protocol::TCP, SYN, SYN_ACK),
    (protocol::UDP, Transport::Udp, Transport::Udp),
    (protocol::SCTP, Transport::Sctp, Transport::Sctp),
    (protocol::UDP, Transport::UdpUnchecked, Transport::UdpUnchecked),
];

/// The port behind each frontend here.
const TARGET: u16 = 8080;

/// An exchange between a client and one endpoint, and what each step must look like.
struct Story {
    frontend: ([u8; 4], u16),
    client: ([u8; 4], u16),
    endpoint: [u8; 4],
    /// Where the request goes, and from whom as the endpoint sees it; port 0 stands for any port
    /// that source translation may take.
    request: Verdict,
    seen: ([u8; 4], u16),
    /// Where the answer goes.
    answer: Verdict,
}

impl Story {
    fn plays<A: Family>(
        &self,
        ask: impl Fn(&Node<A>, &Builder<A>) -> Sent<A>,
        reply: impl Fn(&Node<A>, &Builder<A>) -> Sent<A>,
    ) {
        for (protocol, request, answer) in EXCHANGES {
            let mut node = Node::<A>::new();
            node.service(self.frontend, protocol, &[(self.endpoint, TARGET)]);
            let (client, frontend) = (end(self.client), end(self.frontend));
            for _ in 0..2 {
                let sent = ask(&node, &Builder::new(request, client, frontend));
                let ((source, port), destination) = sent.ends();
                assert_eq!(
                    (sent.verdict, destination),
                    (self.request, end((self.endpoint, TARGET)))
                );
                assert_eq!(source, A::at(self.seen.0));
                match self.seen.1 {
                    0 => assert!(PORTS.contains(&port), "{port}"),
                    wanted => assert_eq!(port, wanted),
                }
                let back = reply(&node, &sent.answer(answer));
                back.goes(self.answer, frontend, client);
            }
            assert_eq!(node.flows(), (0, 2));
        }
    }
}

fn end<A: Family>((address, port): ([u8; 4], u16)) -> End<A> {
    (A::at(address), port)
}

fn a_pod_reaches_a_pod_of_its_node<A: Family>() {
    let story = Story {
        frontend: (VIP, 80),
        client: (POD, 40_000),
        endpoint: OTHER_POD,
        request: to_pod(OTHER_POD),
        seen: (POD, 40_000),
        answer: to_pod(POD),
    };
    story.plays::<A>(Node::pod_sends, Node::pod_sends);
}

fn a_pod_reaches_what_is_behind_the_tunnel<A: Family>() {
    for endpoint in [REMOTE_POD, PEER] {
        let story = Story {
            frontend: (VIP, 80),
            client: (POD, 40_000),
            endpoint,
            request: Verdict::Tunnel(PEER_END),
            seen: (POD, 40_000),
            answer: to_pod(POD),
        };
        story.plays::<A>(Node::pod_sends, Node::overlay_brings);
    }
}

fn a_pod_reaches_a_pod_by_plain_routing<A: Family>() {
    let story = Story {
        frontend: (VIP, 80),
        client: (POD, 40_000),
        endpoint: DIRECT_POD,
        request: Verdict::Forward,
        seen: (POD, 40_000),
        answer: to_pod(POD),
    };
    story.plays::<A>(Node::pod_sends, Node::uplink_brings);
}

fn a_pod_reaches_an_endpoint_outside_under_the_nodes_address<A: Family>() {
    for endpoint in [CLIENT, OUTSIDE] {
        let story = Story {
            frontend: (VIP, 80),
            client: (POD, 40_000),
            endpoint,
            request: Verdict::Forward,
            seen: (NODE, 0),
            answer: to_pod(POD),
        };
        story.plays::<A>(Node::pod_sends, Node::uplink_brings);
    }
}

fn a_pod_reaches_an_endpoint_on_its_own_node<A: Family>() {
    let story = Story {
        frontend: (VIP, 80),
        client: (POD, 40_000),
        endpoint: NODE,
        request: Verdict::Pass,
        seen: (POD, 40_000),
        answer: Verdict::Pass,
    };
    story.plays::<A>(Node::pod_sends, Node::host_sends);
}

fn a_pod_reaches_itself<A: Family>() {
    let story = Story {
        frontend: (VIP, 80),
        client: (POD, 40_000),
        endpoint: POD,
        request: to_pod(POD),
        seen: (NODE, 0),
        answer: to_pod(POD),
    };
    story.plays::<A>(Node::pod_sends, Node::pod_sends);
}

fn a_pod_here_sees_the_client_of_a_node_port<A: Family>() {
    let story = Story {
        frontend: (NODE, 30_080),
        client: (CLIENT, 50_000),
        endpoint: POD,
        request: to_pod(POD),
        seen: (CLIENT, 50_000),
        answer: Verdict::Forward,
    };
    story.plays::<A>(Node::uplink_brings, Node::pod_sends);
}

fn a_process_here_sees_the_client_of_a_node_port<A: Family>() {
    let story = Story {
        frontend: (NODE, 30_080),
        client: (CLIENT, 50_000),
        endpoint: NODE,
        request: Verdict::Pass,
        seen: (CLIENT, 50_000),
        answer: Verdict::Pass,
    };
    story.plays::<A>(Node::uplink_brings, Node::host_sends);
}

fn a_process_here_answers_a_peers_pod_through_the_tunnel<A: Family>() {
    let story = Story {
        frontend: (NODE, 30_080),
        client: (REMOTE_POD, 50_000),
        endpoint: NODE,
        request: Verdict::Pass,
        seen: (REMOTE_POD, 50_000),
        answer: Verdict::Tunnel(PEER_END),
    };
    story.plays::<A>(Node::overlay_brings, Node::host_sends_to_overlay);
}

fn an_endpoint_elsewhere_sees_an_address_that_leads_back<A: Family>() {
    let story = |endpoint, request, seen| Story {
        frontend: (NODE, 30_080),
        client: (CLIENT, 50_000),
        endpoint,
        request,
        seen: (seen, 0),
        answer: Verdict::Forward,
    };
    for endpoint in [REMOTE_POD, PEER] {
        let tunnelled = story(endpoint, Verdict::Tunnel(PEER_END), OVERLAY);
        tunnelled.plays::<A>(Node::uplink_brings, Node::overlay_brings);
    }
    for endpoint in [DIRECT_POD, OUTSIDE] {
        let plain = story(endpoint, Verdict::Forward, NODE);
        plain.plays::<A>(Node::uplink_brings, Node::uplink_brings);
    }
}

fn a_peer_and_its_pods_reach_a_node_port_through_the_tunnel<A: Family>() {
    let tunnel = Verdict::Tunnel(PEER_END);
    for client in [(REMOTE_POD, 50_000), (PEER, 50_000)] {
        let story = |endpoint, request, seen| Story {
            frontend: (NODE, 30_080),
            client,
            endpoint,
            request,
            seen,
            answer: tunnel,
        };
        let here = story(POD, to_pod(POD), client);
        here.plays::<A>(Node::overlay_brings, Node::pod_sends);
        // Also the client itself and another pod of its node: they must not answer it directly.
        for endpoint in [REMOTE_POD, [10, 244, 2, 3], PEER] {
            let tunnelled = story(endpoint, tunnel, (OVERLAY, 0));
            tunnelled.plays::<A>(Node::overlay_brings, Node::overlay_brings);
        }
        for endpoint in [DIRECT_POD, OUTSIDE] {
            let plain = story(endpoint, Verdict::Forward, (NODE, 0));
            plain.plays::<A>(Node::overlay_brings, Node::uplink_brings);
        }
    }
}

fn one_client_port_outside_reaches_a_pod_and_a_node_port_in_front_of_it<A: Family>() {
    let (client, pod) = (end((CLIENT, 50_000)), end((POD, TARGET)));
    let node_port = end((NODE, 30_080));
    for (protocol, request, answer) in EXCHANGES {
        // Whichever is asked first, and whether or not it has answered before the other is asked.
        for (first, second) in [(node_port, pod), (pod, node_port)] {
            for answered in [false, true] {
                let mut node = Node::<A>::new();
                node.service((NODE, 30_080), protocol, &[(POD, TARGET)]);
                let ask = |to| {
                    let sent = node.uplink_brings(&Builder::new(request, client, to));
                    assert_eq!((sent.verdict, sent.ends().1), (to_pod(POD), pod));
                    sent
                };
                let hears = |sent: &Sent<A>, from| {
                    let back = node.pod_sends(&sent.answer(answer));
                    back.goes(Verdict::Forward, from, client);
                };
                let one = ask(first);
                assert_eq!(one.ends().0, client);
                if answered {
                    hears(&one, first);
                }
                let other = ask(second);
                assert_ne!(one.ends(), other.ends(), "the pod must be able to tell them apart");
                hears(&other, second);
                hears(&one, first);
                assert_eq!((ask(first).ends(), ask(second).ends()), (one.ends(), other.ends()));
                assert_eq!(node.flows(), (0, 4));
            }
        }
    }
}

fn a_node_without_a_masquerade_address_never_sends_from_none<A: Family>() {
    let mut node = Node::<A>::new();
    node.tables.config.masquerade4 = [0; 4];
    node.tables.config.masquerade6 = [0; 16];
    node.service((NODE, 30_080), protocol::UDP, &[(OUTSIDE, TARGET)]);
    let client = end((CLIENT, 50_000));
    let sent = node.uplink_brings(&Builder::udp(client, end((NODE, 30_080))));
    sent.goes(Verdict::Forward, client, end((OUTSIDE, TARGET)));
}

fn one_client_port_reaches_one_endpoint_by_several_frontends<A: Family>() {
    for (protocol, request, answer) in EXCHANGES {
        let mut node = Node::<A>::new();
        let frontends = [(VIP, 80), (VIP, 8080), (OTHER_VIP, 80), (NODE, 30_080)];
        for frontend in frontends {
            node.service(frontend, protocol, &[(OTHER_POD, TARGET)]);
        }
        let client = end((POD, 40_000));
        let ask = |frontend| node.pod_sends(&Builder::new(request, client, end(frontend)));
        let sent = frontends.map(ask);
        for (i, one) in sent.iter().enumerate() {
            assert!(sent[..i].iter().all(|other| other.ends() != one.ends()), "{i}");
        }
        for (sent, frontend) in sent.iter().zip(frontends) {
            let back = node.pod_sends(&sent.answer(answer));
            back.goes(to_pod(POD), end(frontend), client);
        }
    }
}

fn the_protocol_is_part_of_a_frontend<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((VIP, 53), protocol::TCP, &[(OTHER_POD, 1)]);
    node.service((VIP, 53), protocol::UDP, &[(OTHER_POD, 2)]);
    let (client, frontend) = (end((POD, 40_000)), end((VIP, 53)));
    for (transport, port) in [(SYN, 1), (Transport::Udp, 2)] {
        let sent = node.pod_sends(&Builder::new(transport, client, frontend));
        sent.goes(to_pod(OTHER_POD), client, end((OTHER_POD, port)));
    }
}

fn the_scope_is_part_of_a_frontend<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_080), protocol::TCP, &[(OTHER_POD, TARGET)]);
    let key = |scope| FrontendKey {
        address: A::at(NODE),
        port: U16::new(30_080),
        protocol: protocol::TCP,
        scope,
    };
    let frontend = end((NODE, 30_080));
    let inside = Builder::new(SYN, end((POD, 40_000)), frontend);
    let outside = Builder::new(SYN, end((CLIENT, 40_000)), frontend);
    let peer = Builder::new(SYN, end((REMOTE_POD, 40_000)), frontend);

    let mut internal = node.clone();
    internal.tables.frontends.remove(&key(scope::EXTERNAL));
    assert_eq!(internal.pod_sends(&inside).verdict, to_pod(OTHER_POD));
    internal.uplink_brings(&outside).is_untouched();
    internal.overlay_brings(&peer).is_untouched();

    node.tables.frontends.remove(&key(scope::INTERNAL));
    assert_eq!(node.uplink_brings(&outside).verdict, to_pod(OTHER_POD));
    assert_eq!(node.overlay_brings(&peer).verdict, to_pod(OTHER_POD));
    node.pod_sends(&inside).is_untouched();
}

fn new_flows_spread_evenly<A: Family>() {
    let mut node = Node::<A>::new();
    let endpoints = [OTHER_POD, REMOTE_POD, DIRECT_POD];
    node.service((VIP, 80), protocol::UDP, &endpoints.map(|address| (address, TARGET)));
    let mut counts = HashMap::<A, u32>::new();
    for port in 0..3000 {
        let sent = node.pod_sends(&Builder::udp(end((POD, 10_000 + port)), end((VIP, 80))));
        *counts.entry(sent.ends().1.0).or_default() += 1;
    }
    assert_eq!(counts.len(), 3);
    // Five standard deviations of a fair choice: sqrt(3000 * 1/3 * 2/3) = 26.
    assert!(counts.values().all(|n| n.abs_diff(1000) < 130), "{counts:?}");
}

fn an_open_flow_keeps_its_endpoint<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((VIP, 80), protocol::UDP, &[(OTHER_POD, TARGET)]);
    let (client, frontend) = (end((POD, 40_000)), end((VIP, 80)));
    let ask = |node: &Node<A>| node.pod_sends(&Builder::udp(client, frontend));
    let sent = ask(&node);
    node.pod_sends(&sent.answer(Transport::Udp));

    let key = *node.tables.frontends.keys().next().expect("a frontend");
    for endpoint in [Some(REMOTE_POD), None] {
        node.tables.frontends.clear();
        node.tables.endpoints.clear();
        if let Some(endpoint) = endpoint {
            node.service((VIP, 80), key.protocol, &[(endpoint, TARGET)]);
        }
        let sent = ask(&node);
        sent.goes(to_pod(OTHER_POD), client, end((OTHER_POD, TARGET)));
        node.pod_sends(&sent.answer(Transport::Udp)).goes(to_pod(POD), frontend, client);
    }
}

fn a_checksum_of_sctp_left_to_the_device_stays_so<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((VIP, 80), protocol::SCTP, &[(OTHER_POD, TARGET)]);
    let (client, frontend) = (end((POD, 40_000)), end((VIP, 80)));
    let sent = node.pod_sends(&Builder::new(Transport::Sctp, client, frontend).partial(true));
    sent.goes(to_pod(OTHER_POD), client, end((OTHER_POD, TARGET)));
    assert_checksums::<A>(&sent.frame);
}
