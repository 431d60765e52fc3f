//! Clients whose address another node has replaced, and who count for the endpoint's policies all the same:
//! that node names them. Two nodes play, as in `direct`.

use fairway_abi::{DropReason, config, flow, frontend, protocol};
use fairway_core::packet::tcp;

use crate::direct::{LINKS, Link, Pair, names};
use crate::for_both_families;
use crate::forwarding::{EXCHANGES, FRONTEND, arrived, end};
use crate::frame::{Builder, Family, Transport};
use crate::node::{CLIENT, NODE, OUTSIDE, OVERLAY, Sent};
use crate::policy::{ANYBODY, FRIEND, INGRESS, allow, deny};

for_both_families![
    a_client_counts_behind_the_address_of_the_node_that_was_asked,
    only_a_first_packet_names_its_client,
    a_flow_of_another_client_from_the_same_port_is_asked_about_anew,
    a_changed_policy_asks_about_the_client_again,
    only_a_peer_names_clients,
    without_policies_nobody_is_named,
    a_client_that_others_made_forget_counts_as_the_node,
];

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

fn a_changed_policy_asks_about_the_client_again<A: Family>() {
    for link in LINKS {
        let mut pair = restricted::<A>(link, protocol::TCP);
        let sent = pair.asks(&asks(Transport::Tcp(tcp::SYN), CLIENT, 2000));
        let got = pair.brings(&arrived(&sent));
        let answer = got.answer(Transport::Tcp(tcp::SYN | tcp::ACK));
        pair.far.pod_sends(&answer);
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
        let mut pair = restricted::<A>(link, protocol::TCP);
        let sent = pair.asks(&asks(Transport::Tcp(tcp::SYN), CLIENT, 2000));
        let got = pair.brings(&arrived(&sent));
        let answer = got.answer(Transport::Tcp(tcp::SYN | tcp::ACK));
        pair.far.pod_sends(&answer);
        pair.far.tables.clients.borrow_mut().clear();
        let records = pair.far.tables.established.borrow();
        assert!(records.values().all(|record| record.state.get() & flow::CLIENT_NAMED != 0));
        drop(records);
        pair.far.change_policies();
        pair.far.pod_sends(&answer).is_dropped(DropReason::PolicyIngress);
    }
}
