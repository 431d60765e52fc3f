//! Clients whose address another node has replaced, and who count for the endpoint's policies all the same:
//! that node names them. Two nodes play, as in `direct`, and where a pod asks another node, a third one.

use fairway_abi::{DropReason, config, flow, frontend, protocol, route};
use fairway_core::Verdict;
use fairway_core::packet::tcp;

use crate::direct::{LINKS, Link, Pair, names};
use crate::for_both_families;
use crate::forwarding::{
    EXCHANGES, FRONTEND, NODE_UNDERLAY, THIRD_PODS, THIRD_UNDERLAY, arrived, end,
};
use crate::frame::{Builder, Family, Transport};
use crate::node::{CLIENT, NODE, Node, OTHER_POD, OUTSIDE, OVERLAY, POD, REMOTE_POD, Sent, range};
use crate::policy::{ANYBODY, FRIEND, INGRESS, allow, deny};

for_both_families![
    a_client_counts_behind_the_address_of_the_node_that_was_asked,
    only_a_first_packet_names_its_client,
    a_flow_of_another_client_from_the_same_port_is_asked_about_anew,
    a_changed_policy_asks_about_the_client_again,
    only_a_peer_names_clients,
    without_policies_nobody_is_named,
    a_client_that_others_made_forget_counts_as_the_node,
    a_pod_counts_behind_the_node_that_it_asked,
    who_asks_a_node_has_it_name_nobody_else,
    no_pod_names_clients,
    what_opens_no_flow_names_nobody,
];

/// A pod of a third node.
const THIRD_POD: [u8; 4] = [10, 244, 4, 2];

/// The endpoint lets a friend in and nobody else; the client is a friend if the node is asked by [`CLIENT`].
fn restricted<A: Family>(link: Link, protocol: u8) -> Pair<A> {
    let mut pair = Pair::<A>::new(link, protocol);
    for node in [&mut pair.near, &mut pair.far] {
        let snat = !(frontend::KEEP_CLIENT | frontend::DIRECT_RETURN);
        node.tables.frontends.values_mut().for_each(|record| record.flags &= snat);
        node.tables.config.flags |= config::NAME_CLIENTS;
    }
    let far = &mut pair.far;
    far.tables.config.flags |= config::POLICED;
    far.change_policies();
    far.restrict(pair.endpoint, INGRESS, 0);
    far.rule(INGRESS, ANYBODY, deny(1));
    far.rule(INGRESS, FRIEND, allow(2));
    far.is(CLIENT, FRIEND);
    pair
}

fn asks<A: Family>(transport: Transport, client: [u8; 4], port: u16) -> Builder<A> {
    Builder::new(transport, end((client, port)), end(FRONTEND))
}

fn a_client_counts_behind_the_address_of_the_node_that_was_asked<A: Family>() {
    for link in LINKS {
        for (protocol, request, answer) in EXCHANGES {
            let pair = restricted::<A>(link, protocol);
            let sent = pair.asks(&asks(request, CLIENT, 2000));
            let (source, there) = sent.ends();
            assert!([A::at(NODE), A::at(OVERLAY)].contains(&source.0), "its address is replaced");
            assert_eq!((names(&sent), there), (Some(end((CLIENT, 2000))), pair.there()));
            let got = pair.brings(&arrived(&sent));
            got.goes(pair.to_pod(), source, there);
            assert_eq!(names(&got), None, "no pod sees a name");
            let back = pair.far.pod_sends(&got.answer(answer));
            assert_eq!(back.ends(), (there, source), "what answers needs no rule");

            let sent = pair.asks(&asks(request, OUTSIDE, 2001));
            pair.brings(&arrived(&sent)).is_dropped(DropReason::PolicyIngress);
            // Nor does it help to have been let in as somebody else, or to ask once more.
            pair.brings(&arrived(&sent)).is_dropped(DropReason::PolicyIngress);
        }
    }
}

fn only_a_first_packet_names_its_client<A: Family>() {
    for link in LINKS {
        let pair = restricted::<A>(link, protocol::TCP);
        let sent = pair.asks(&asks(Transport::Tcp(tcp::SYN), CLIENT, 2000));
        let got = pair.brings(&arrived(&sent));
        pair.far.pod_sends(&got.answer(Transport::Tcp(tcp::SYN | tcp::ACK)));
        let next = pair.asks(&asks(Transport::Tcp(tcp::ACK), CLIENT, 2000));
        assert_eq!(names(&next), None);
        let (source, there) = next.ends();
        pair.brings(&arrived(&next)).goes(pair.to_pod(), source, there);
        // What has no connections may be forgotten over there at any time.
        let pair = restricted::<A>(link, protocol::UDP);
        for _ in 0..2 {
            let sent = pair.asks(&asks(Transport::Udp, CLIENT, 2000));
            assert_eq!(names(&sent), Some(end((CLIENT, 2000))));
        }
    }
}

/// A third node, with a pod and a way to the one that is asked, which knows it as well.
fn third<A: Family>(link: Link, pair: &mut Pair<A>) -> Node<A> {
    let mut third = Node::<A>::new();
    let tables = &mut third.tables;
    let pod = tables.pods.remove(&A::at(POD)).expect("a pod");
    tables.pods.clear();
    tables.pods.insert(A::at(THIRD_POD), pod);
    tables.interfaces.insert(pod.ifindex, A::at(THIRD_POD).interface());
    tables.pod_range = range(THIRD_PODS);
    tables.routes.clear();
    let (near, own) = (&mut pair.near, Some(THIRD_PODS));
    match link {
        Link::Tunnel => {
            third.route(NODE, 32, route::TUNNEL_NODE, own, NODE_UNDERLAY);
            third.tables.peers.insert(NODE_UNDERLAY, A::at(OVERLAY));
            near.route(THIRD_PODS, 24, route::TUNNEL, Some(OVERLAY), THIRD_UNDERLAY);
        }
        Link::Plain => {
            third.route(NODE, 32, route::DIRECT, Some([192, 0, 2, 4]), [0; 16]);
            near.route(THIRD_PODS, 24, route::DIRECT, Some(NODE), [0; 16]);
        }
    }
    third
}

/// The asked node gets from the third one what its pod sends.
fn from_third<A: Family>(link: Link, pair: &Pair<A>, packet: &Builder<A>) -> Sent<A> {
    match link {
        Link::Tunnel => pair.near.tunnel_brings(packet, &THIRD_UNDERLAY),
        Link::Plain => pair.near.uplink_brings(packet),
    }
}

fn a_pod_counts_behind_the_node_that_it_asked<A: Family>() {
    for link in LINKS {
        for (protocol, request, answer) in EXCHANGES {
            let mut pair = restricted::<A>(link, protocol);
            pair.far.is(THIRD_POD, FRIEND);
            let third = third(link, &mut pair);
            let (pod, there) = (end((THIRD_POD, 2000)), pair.there());
            let asked = third.pod_sends(&Builder::new(request, pod, end(FRONTEND)));
            assert_eq!(asked.ends(), (pod, end(FRONTEND)), "its node knows nothing of the port");
            assert_ne!(asked.verdict, Verdict::Pass);
            let sent = from_third(link, &pair, &arrived(&asked));
            let (source, _) = sent.ends();
            assert_ne!(source.0, A::at(THIRD_POD), "its address is replaced");
            assert_eq!((names(&sent), sent.ends().1), (Some(pod), there));
            let got = pair.brings(&arrived(&sent));
            got.goes(pair.to_pod(), source, there);
            assert_eq!(names(&got), None);
            // And back the same way, under the address that the pod asked.
            let back = pair.far.pod_sends(&got.answer(answer));
            let back = match link {
                Link::Tunnel => pair.near.overlay_brings(&arrived(&back)),
                Link::Plain => pair.near.uplink_brings(&arrived(&back)),
            };
            assert_eq!(back.ends(), (end(FRONTEND), pod));
            assert_ne!(back.verdict, Verdict::Pass);

            // The node that it asks is let in, which does not help who is not.
            pair.far.tables.identities.insert(source.0, FRIEND);
            pair.far.is(THIRD_POD, 0);
            pair.far.change_policies();
            let sent = from_third(link, &pair, &arrived(&asked));
            pair.brings(&arrived(&sent)).is_dropped(DropReason::PolicyIngress);
        }
    }
}

/// Neither by a name of his own, nor by so many options that the node has no room for one. Only behind a full
/// header an IPv4 packet has none.
fn who_asks_a_node_has_it_name_nobody_else<A: Family>() {
    for link in LINKS {
        for who in [THIRD_POD, OUTSIDE] {
            let mut pair = restricted::<A>(link, protocol::UDP);
            third(link, &mut pair);
            let asked = name(Builder::udp(end((who, 2000)), end(FRONTEND)), CLIENT);
            let full =
                if A::FIXED == 20 { asked.clone().option(1, &[1; 30]) } else { asked.clone() };
            for asked in [asked, full] {
                let sent = if who == OUTSIDE {
                    pair.near.uplink_brings(&asked)
                } else {
                    from_third(link, &pair, &asked)
                };
                assert_eq!(names(&sent), Some(end((who, 2000))), "{link:?} {who:?}");
                assert_eq!(sent.frame.bytes.len(), sent.before.bytes.len());
                pair.brings(&arrived(&sent)).is_dropped(DropReason::PolicyIngress);
            }
        }
    }
}

fn no_pod_names_clients<A: Family>() {
    let node = Node::<A>::new();
    for to in [OTHER_POD, REMOTE_POD, OUTSIDE] {
        let packet = Builder::udp(end((POD, 2000)), end((to, 80)));
        node.pod_sends(&name(packet, CLIENT)).is_dropped(DropReason::SpoofedSource);
    }
}

/// Such as an error or a later fragment, which others may have sent by way of a node.
fn what_opens_no_flow_names_nobody<A: Family>() {
    for link in LINKS {
        let mut pair = restricted::<A>(link, protocol::UDP);
        let sent = pair.asks(&asks(Transport::Udp, CLIENT, 2000));
        let got = pair.brings(&arrived(&sent));
        pair.far.pod_sends(&got.answer(Transport::Udp));
        let (source, there) = sent.ends();
        let noted = pair.far.tables.clients.borrow().clone();
        let error = Builder::new(Transport::Icmp(A::UNREACHABLE), (source.0, 0), there);
        let piece = Builder::udp(source, there).piece(8..16, false);
        for packet in [error, piece] {
            pair.brings(&name(packet, OUTSIDE));
            assert_eq!(*pair.far.tables.clients.borrow(), noted);
        }
        pair.far.change_policies();
        let back = pair.far.pod_sends(&got.answer(Transport::Udp));
        assert_eq!(back.ends(), (there, source));
    }
}

/// What the node that was asked sends for another client from the port of this packet's flow, which it has
/// forgotten.
fn from_the_port_of<A: Family>(other: &Sent<A>, client: [u8; 4]) -> Builder<A> {
    let (source, there) = other.ends();
    name(Builder::udp(source, there), client)
}

fn name<A: Family>(packet: Builder<A>, client: [u8; 4]) -> Builder<A> {
    let (address, port) = end::<A>((client, 2000));
    let port = port.to_be_bytes();
    let address = address.as_bytes();
    if A::FIXED == 20 {
        packet.option(0x5e, &[&port[..], address].concat())
    } else {
        packet.option(60, &[&[0x3e, 20], address, &port, &[0, 0]].concat())
    }
}

fn a_flow_of_another_client_from_the_same_port_is_asked_about_anew<A: Family>() {
    for link in LINKS {
        let pair = restricted::<A>(link, protocol::UDP);
        let sent = pair.asks(&asks(Transport::Udp, CLIENT, 2000));
        let got = pair.brings(&arrived(&sent));
        pair.far.pod_sends(&got.answer(Transport::Udp));
        let next = from_the_port_of(&sent, OUTSIDE);
        pair.brings(&next).is_dropped(DropReason::PolicyIngress);
        let again = pair.brings(&from_the_port_of(&sent, CLIENT));
        assert_eq!(again.verdict, pair.to_pod());
    }
}

/// The client has a connection: what reached the pod of it, and what the pod has answered.
fn connected<A: Family>(link: Link) -> (Pair<A>, Sent<A>, Builder<A>) {
    let pair = restricted::<A>(link, protocol::TCP);
    let sent = pair.asks(&asks(Transport::Tcp(tcp::SYN), CLIENT, 2000));
    let got = pair.brings(&arrived(&sent));
    let answer = got.answer(Transport::Tcp(tcp::SYN | tcp::ACK));
    pair.far.pod_sends(&answer);
    (pair, got, answer)
}

fn a_changed_policy_asks_about_the_client_again<A: Family>() {
    for link in LINKS {
        let (mut pair, got, answer) = connected::<A>(link);
        let next = arrived(&pair.asks(&asks(Transport::Tcp(tcp::ACK), CLIENT, 2000)));
        pair.far.change_policies();
        assert_eq!(pair.brings(&next).verdict, pair.to_pod(), "its client is a friend still");
        pair.far.change_policies();
        assert_eq!(pair.far.pod_sends(&answer).ends(), (pair.there(), got.ends().0));
        pair.far.rule(INGRESS, FRIEND, deny(2));
        pair.far.change_policies();
        pair.brings(&next).is_dropped(DropReason::PolicyIngress);
        pair.far.pod_sends(&answer).is_dropped(DropReason::PolicyIngress);
    }
}

fn only_a_peer_names_clients<A: Family>() {
    for link in LINKS {
        let mut pair = restricted::<A>(link, protocol::UDP);
        // A stranger that says that he is a friend, to the pod itself.
        let lie = name(Builder::udp(end((OUTSIDE, 2000)), pair.there()), CLIENT);
        pair.far.uplink_brings(&lie).is_dropped(DropReason::PolicyIngress);
        // And by way of a node port.
        let packet = name(Builder::udp(end((OUTSIDE, 2000)), end(FRONTEND)), CLIENT);
        let sent = pair.asks(&packet);
        assert_eq!(names(&sent), Some(end((OUTSIDE, 2000))));
        pair.brings(&arrived(&sent)).is_dropped(DropReason::PolicyIngress);
        // Let in, such a packet reaches the pod without a name.
        pair.far.rule(INGRESS, ANYBODY, allow(3));
        pair.far.change_policies();
        let got = pair.far.uplink_brings(&lie);
        assert_eq!((got.verdict, names(&got)), (pair.to_pod(), None));
    }
}

fn without_policies_nobody_is_named<A: Family>() {
    for link in LINKS {
        let mut pair = restricted::<A>(link, protocol::UDP);
        pair.near.tables.config.flags &= !config::NAME_CLIENTS;
        let sent = pair.asks(&asks(Transport::Udp, CLIENT, 2000));
        assert_eq!(names(&sent), None);
        // A node that does not name its client is the client.
        pair.brings(&arrived(&sent)).is_dropped(DropReason::PolicyIngress);
        let source = sent.ends().0.0;
        pair.far.tables.identities.insert(source, FRIEND);
        assert_eq!(pair.brings(&arrived(&sent)).verdict, pair.to_pod());
    }
}

fn a_client_that_others_made_forget_counts_as_the_node<A: Family>() {
    for link in LINKS {
        let (mut pair, _, answer) = connected::<A>(link);
        pair.far.tables.clients.borrow_mut().clear();
        let records = pair.far.tables.established.borrow();
        assert!(records.values().all(|record| record.state.get() & flow::CLIENT_NAMED != 0));
        drop(records);
        pair.far.change_policies();
        pair.far.pod_sends(&answer).is_dropped(DropReason::PolicyIngress);
    }
}
