//! Endpoints whose nodes answer clients themselves, although another node was asked. Two nodes play, as in
//! `forwarding`: with a tunnel between them, or on one link.

use fairway_abi::{DropReason, Flow, Pod, flow, frontend, protocol, route, scope};
use fairway_core::Verdict;
use fairway_core::packet::tcp;
use fairway_core::tables::{Stage, Tables as _};
use zerocopy::native_endian::U32;

use crate::errors::{ROUTER, WHOLE, complaint, tells};
use crate::for_both_families;
use crate::forwarding::{EXCHANGES, FRONTEND, NODE_UNDERLAY, PORT, arrived, end, far};
use crate::fragments::pieces;
use crate::frame::{Builder, Family, Transport};
use crate::node::{
    CLIENT, DIRECT_POD, NODE, Node, OVERLAY, PEER_END, POD, REMOTE_POD, Sent, VIP, range,
};

for_both_families![
    an_endpoints_node_answers_the_client_as_the_frontend,
    a_pod_never_sees_a_name,
    what_belongs_to_an_open_connection_names_nothing,
    the_clients_next_packet_establishes_the_flow_where_it_was_asked,
    a_packet_that_two_programs_see_is_the_first_one_for_both,
    a_flow_that_could_not_be_told_from_another_is_answered_by_way_of_the_node,
    only_a_known_frontend_is_answered_as,
    only_clients_from_outside_are_answered_directly,
    a_client_names_nobody,
    a_clients_source_range_counts_on_both_nodes,
    the_frontend_of_the_last_packet_answers_but_an_open_connection_keeps_its_own,
    a_flow_that_its_endpoints_node_has_forgotten_is_answered_through_the_tunnel,
    errors_find_both_ends_of_a_flow_that_is_answered_directly,
    fragments_follow_the_first_which_names_the_frontend,
    a_packet_without_room_for_a_name_goes_without,
    other_options_stay,
];

const ACK: Transport = Transport::Tcp(tcp::ACK);
const SYN: Transport = Transport::Tcp(tcp::SYN);

/// Another node's link or its tunnel, as the nodes use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Tunnel,
    Plain,
}

pub(crate) const LINKS: [Link; 2] = [Link::Tunnel, Link::Plain];

/// The node that is asked and the endpoint's, with the frontend on both.
pub(crate) struct Pair<A: Family> {
    pub(crate) near: Node<A>,
    pub(crate) far: Node<A>,
    link: Link,
    pub(crate) endpoint: [u8; 4],
}

impl<A: Family> Pair<A> {
    pub(crate) fn new(link: Link, protocol: u8) -> Self {
        let mut far = far::<A>();
        let endpoint = if link == Link::Tunnel { REMOTE_POD } else { DIRECT_POD };
        if link == Link::Plain {
            let pod = far.tables.pods.remove(&A::at(REMOTE_POD)).expect("a pod");
            far.tables.pods.insert(A::at(DIRECT_POD), pod);
            far.tables.interfaces.insert(pod.ifindex, A::at(DIRECT_POD).interface());
            far.tables.pod_range = range([10, 244, 3, 0]);
            far.tables.routes.clear();
            let own = Some([192, 0, 2, 3]);
            far.route([192, 0, 2, 3], 32, route::HOST, None, [0; 16]);
            far.route([10, 244, 3, 0], 24, route::HOST, None, [0; 16]);
            far.route(OVERLAY, 24, route::DIRECT, own, [0; 16]);
            far.route(NODE, 32, route::DIRECT, own, [0; 16]);
        }
        let mut pair = Self { near: Node::new(), far, link, endpoint };
        let other = fairway_abi::V4::at(crate::node::PEER);
        assert_eq!(pair.far.tables.config.masquerade4, other);
        pair.serves(protocol, FRONTEND);
        // Its node port is open on its own address.
        pair.far.tables.frontends.clear();
        pair.far.service((crate::node::PEER, FRONTEND.1), protocol, &[(endpoint, PORT)]);
        pair
    }

    /// Both nodes have this frontend, too.
    fn serves(&mut self, protocol: u8, frontend: ([u8; 4], u16)) {
        for node in [&mut self.near, &mut self.far] {
            node.service(frontend, protocol, &[(self.endpoint, PORT)]);
            for (key, record) in &mut node.tables.frontends {
                if key.scope == scope::EXTERNAL {
                    record.flags |= frontend::KEEP_CLIENT | frontend::DIRECT_RETURN;
                }
            }
        }
    }

    pub(crate) fn asks(&self, packet: &Builder<A>) -> Sent<A> {
        let sent = self.near.uplink_brings(packet);
        let way =
            if self.link == Link::Tunnel { Verdict::Tunnel(PEER_END) } else { Verdict::Forward };
        assert_eq!(sent.verdict, way);
        sent
    }

    pub(crate) fn brings(&self, packet: &Builder<A>) -> Sent<A> {
        match self.link {
            Link::Tunnel => self.far.tunnel_brings(packet, &NODE_UNDERLAY),
            Link::Plain => self.far.uplink_brings(packet),
        }
    }

    pub(crate) fn to_pod(&self) -> Verdict {
        let pods: Vec<Pod> = self.far.tables.pods.values().copied().collect();
        Verdict::Pod(pods[0])
    }

    pub(crate) fn there(&self) -> (A, u16) {
        end((self.endpoint, PORT))
    }

    /// A packet that names this frontend, as the endpoint's node gets it.
    fn named(
        &self,
        transport: Transport,
        client: ([u8; 4], u16),
        frontend: ([u8; 4], u16),
    ) -> Builder<A> {
        let packet = Builder::new(transport, end(client), self.there());
        name(packet, end(frontend))
    }
}

/// As the option that [`Named`] writes.
fn name<A: Family>(packet: Builder<A>, (address, port): (A, u16)) -> Builder<A> {
    let port = port.to_be_bytes();
    let address = address.as_bytes();
    if size_of::<A>() == 4 {
        packet.option(30, &[&port[..], address].concat())
    } else {
        packet.option(60, &[&[30, 20], address, &port, &[0, 0]].concat())
    }
}

fn client<A: Family>() -> (A, u16) {
    end((CLIENT, 50_000))
}

pub(crate) fn names<A: Family>(sent: &Sent<A>) -> Option<(A, u16)> {
    A::named(&sent.frame).map(|(_, address, port)| (address, port.get()))
}

fn an_endpoints_node_answers_the_client_as_the_frontend<A: Family>() {
    for link in LINKS {
        for (protocol, request, answer) in EXCHANGES {
            let mut pair = Pair::<A>::new(link, protocol);
            pair.serves(protocol, (VIP, 80));
            for (frontend, port) in [(FRONTEND, 50_000), ((VIP, 80), 50_001)] {
                let client = end((CLIENT, port));
                for _ in 0..2 {
                    let sent = pair.asks(&Builder::new(request, client, end(frontend)));
                    assert_eq!(sent.ends(), (client, pair.there()));
                    assert_eq!(names(&sent), Some(end(frontend)));
                    let there = pair.brings(&arrived(&sent));
                    there.goes(pair.to_pod(), client, pair.there());
                    assert_eq!(there.frame.bytes.len(), sent.before.bytes.len());
                    let back = pair.far.pod_sends(&there.answer(answer));
                    back.goes(Verdict::Forward, end(frontend), client);
                }
            }
            assert_eq!(pair.far.flows(), (0, 4));
        }
    }
}

fn a_pod_never_sees_a_name<A: Family>() {
    for link in LINKS {
        let pair = Pair::<A>::new(link, protocol::TCP);
        for partial in [false, true] {
            let asked = Builder::new(SYN, client(), end(FRONTEND)).partial(partial);
            let sent = pair.asks(&asked);
            let mut there = pair.brings(&arrived(&sent)).frame;
            // But for addresses, ports, hop limit and checksums it is what the client sent.
            let mut plain = Builder::new(SYN, client(), pair.there());
            plain = plain.partial(partial).hop_limit(62);
            there.bytes[..12].copy_from_slice(&plain.frame().bytes[..12]);
            assert_eq!(there, plain.frame());
        }
    }
}

fn what_belongs_to_an_open_connection_names_nothing<A: Family>() {
    for link in LINKS {
        let pair = Pair::<A>::new(link, protocol::TCP);
        let there = pair.brings(&arrived(&pair.asks(&Builder::new(SYN, client(), end(FRONTEND)))));
        pair.far.pod_sends(&there.answer(Transport::Tcp(tcp::SYN | tcp::ACK)));
        for flags in [tcp::ACK, tcp::ACK | tcp::FIN, tcp::RST] {
            let sent = pair.asks(&Builder::tcp(flags, client(), end(FRONTEND)));
            assert_eq!(names(&sent), None);
            pair.brings(&arrived(&sent)).goes(pair.to_pod(), client(), pair.there());
        }
        // The first packet was lost.
        let pair = Pair::<A>::new(link, protocol::TCP);
        for _ in 0..3 {
            let sent = pair.asks(&Builder::new(SYN, client(), end(FRONTEND)));
            assert_eq!(names(&sent), Some(end(FRONTEND)));
        }
    }
}

fn the_clients_next_packet_establishes_the_flow_where_it_was_asked<A: Family>() {
    let next =
        [(protocol::TCP, ACK), (protocol::UDP, Transport::Udp), (protocol::SCTP, Transport::Sctp)];
    for ((protocol, next), (_, request, _)) in next.into_iter().zip(EXCHANGES) {
        let pair = Pair::<A>::new(Link::Plain, protocol);
        let ask = |transport| pair.asks(&Builder::new(transport, client(), end(FRONTEND)));
        ask(request);
        assert_eq!(pair.near.flows(), (2, 0));
        if protocol == protocol::TCP {
            ask(request);
            ask(Transport::Tcp(tcp::RST));
            assert_eq!(pair.near.flows(), (2, 0), "nobody has answered that it knew of");
            ask(request);
        }
        ask(next);
        assert_eq!(pair.near.flows(), (0, 2));
        ask(next);
        assert_eq!(pair.near.flows(), (0, 2));
    }
    // Without room it stays where it is, and is known for what it is.
    let mut pair = Pair::<A>::new(Link::Plain, protocol::UDP);
    pair.near.tables.room = 1;
    for _ in 0..2 {
        pair.asks(&Builder::udp(client(), end(FRONTEND)));
    }
    assert_eq!(pair.near.flows(), (2, 0));
    let half_open = pair.near.tables.half_open.borrow();
    assert!(half_open.iter().any(|(_, record)| record.state.get() & flow::ANSWERED != 0));
}

fn a_packet_that_two_programs_see_is_the_first_one_for_both<A: Family>() {
    // A connection that another node was asked for before.
    let pair = Pair::<A>::new(Link::Plain, protocol::TCP);
    let ask = || pair.asks(&Builder::new(ACK, client(), end(FRONTEND)));
    ask();
    // As if the driver's program had opened it, and left the packet to the classifier.
    let tables = &pair.near.tables;
    let delegated = |record: &Flow<A>| record.state.get() & flow::DELEGATED != 0;
    let all: Vec<_> = tables.half_open.borrow().iter().map(|(key, flow)| (*key, *flow)).collect();
    let (key, _) = all.into_iter().find(|(_, flow)| delegated(flow)).expect("its record");
    tables.see_flow(Stage::HalfOpen, &key, |record| {
        record.state = U32::new(record.state.get() | flow::UNSEEN);
    });
    let sent = ask();
    assert_eq!(pair.near.flows(), (2, 0), "the client has sent one packet");
    let there = pair.brings(&arrived(&sent));
    let back = pair.far.pod_sends(&there.answer(ACK));
    back.goes(Verdict::Forward, end(FRONTEND), client());
    ask();
    assert_eq!(pair.near.flows(), (0, 2));
}

fn a_flow_that_could_not_be_told_from_another_is_answered_by_way_of_the_node<A: Family>() {
    for (link, seen) in [(Link::Tunnel, OVERLAY), (Link::Plain, NODE)] {
        for (protocol, request, answer) in EXCHANGES {
            let mut pair = Pair::<A>::new(link, protocol);
            pair.serves(protocol, (VIP, 80));
            pair.asks(&Builder::new(request, client(), end(FRONTEND)));
            for _ in 0..2 {
                let sent = pair.asks(&Builder::new(request, client(), end((VIP, 80))));
                assert_eq!((names(&sent), sent.ends().0.0), (None, A::at(seen)));
                let back = match link {
                    Link::Tunnel => pair.near.overlay_brings(&sent.answer(answer)),
                    Link::Plain => pair.near.uplink_brings(&sent.answer(answer)),
                };
                back.goes(Verdict::Forward, end((VIP, 80)), client());
            }
        }
    }
}

fn only_a_known_frontend_is_answered_as<A: Family>() {
    for link in LINKS {
        let pair = Pair::<A>::new(link, protocol::TCP);
        let (own, port) = (crate::node::PEER, FRONTEND.1);
        for wrong in [
            // No address of a Service, nor of a node; no node port; another protocol's.
            (ROUTER, port),
            (POD, port),
            (OVERLAY, port),
            (NODE, 1),
            (NODE, PORT),
            (own, 1),
        ] {
            let packet = pair.named(SYN, (CLIENT, 50_000), wrong);
            pair.brings(&packet).is_dropped(DropReason::ForeignFrontend);
        }
        let packet = pair.named(Transport::Udp, (CLIENT, 50_000), FRONTEND);
        pair.brings(&packet).is_dropped(DropReason::ForeignFrontend);
        assert_eq!(pair.far.flows(), (0, 0));
        let packet = pair.named(SYN, (CLIENT, 50_000), FRONTEND);
        pair.brings(&packet).goes(pair.to_pod(), client(), pair.there());
    }
}

fn only_clients_from_outside_are_answered_directly<A: Family>() {
    let pair = Pair::<A>::new(Link::Plain, protocol::TCP);
    // Another node's pod makes of options what it likes.
    let packet = pair.named(SYN, (POD, 50_000), FRONTEND);
    let there = pair.brings(&packet);
    assert_eq!((there.verdict, names(&there)), (pair.to_pod(), Some(end(FRONTEND))));
    assert_eq!(pair.far.flows(), (0, 0));
    // What is not for a pod here is not for us to read.
    let elsewhere =
        name(Builder::tcp(tcp::SYN, client(), end(([10, 244, 3, 99], PORT))), end(FRONTEND));
    pair.brings(&elsewhere).is_untouched();

    for who in [POD, DIRECT_POD] {
        let pair = Pair::<A>::new(Link::Tunnel, protocol::TCP);
        let packet = Builder::tcp(tcp::SYN, end((who, 50_000)), end(FRONTEND));
        let sent = if who == POD {
            pair.near.pod_sends(&packet)
        } else {
            pair.near.uplink_brings(&packet)
        };
        assert_eq!((sent.verdict, names(&sent)), (Verdict::Tunnel(PEER_END), None), "{who:?}");
    }
}

fn a_client_names_nobody<A: Family>() {
    for link in LINKS {
        for direct in [true, false] {
            let mut pair = Pair::<A>::new(link, protocol::UDP);
            pair.serves(protocol::UDP, (VIP, 80));
            if !direct {
                let frontends = pair.near.tables.frontends.values_mut();
                frontends.for_each(|record| record.flags &= !frontend::DIRECT_RETURN);
            }
            let packet = Builder::udp(client(), end(FRONTEND));
            let sent = pair.asks(&name(packet, end((VIP, 80))));
            assert_eq!(names(&sent), direct.then(|| end(FRONTEND)), "{link:?}");
        }
        // What is for nobody here goes as it came.
        let pair = Pair::<A>::new(link, protocol::UDP);
        let sent = pair.near.uplink_brings(&name(Builder::udp(client(), pair.there()), client()));
        assert_eq!(names(&sent), Some(client()));
    }
}

fn a_clients_source_range_counts_on_both_nodes<A: Family>() {
    for link in LINKS {
        let mut pair = Pair::<A>::new(link, protocol::TCP);
        pair.serves(protocol::TCP, (VIP, 80));
        for node in [&mut pair.near, &mut pair.far] {
            let key = node
                .tables
                .frontends
                .keys()
                .find(|key| key.address == A::at(VIP) && key.scope == scope::EXTERNAL);
            let key = *key.expect("a frontend");
            let record = node.tables.frontends.get_mut(&key).expect("a frontend");
            record.flags |= frontend::SOURCE_RANGES;
            let network = A::at([198, 51, 100, 0]);
            node.tables.source_ranges.push((record.port, A::ADDRESS_BITS - 8, network));
        }
        let within = pair.named(SYN, (CLIENT, 50_000), (VIP, 80));
        assert_eq!(pair.brings(&within).verdict, pair.to_pod());
        let beyond = pair.named(SYN, ([203, 0, 113, 9], 50_000), (VIP, 80));
        pair.brings(&beyond).is_dropped(DropReason::ForeignFrontend);
    }
}

fn the_frontend_of_the_last_packet_answers_but_an_open_connection_keeps_its_own<A: Family>() {
    for link in LINKS {
        for (protocol, request, answer) in EXCHANGES {
            let mut pair = Pair::<A>::new(link, protocol);
            pair.serves(protocol, (VIP, 80));
            let hears = |named: ([u8; 4], u16), expected: ([u8; 4], u16)| {
                let there = pair.brings(&pair.named(request, (CLIENT, 50_000), named));
                let back = pair.far.pod_sends(&there.answer(answer));
                back.goes(Verdict::Forward, end(expected), client());
            };
            // The client gave one up before it was answered.
            pair.brings(&pair.named(request, (CLIENT, 50_000), (VIP, 80)));
            hears(FRONTEND, FRONTEND);
            hears(FRONTEND, FRONTEND);
            let connected = protocol == protocol::TCP;
            hears((VIP, 80), if connected { FRONTEND } else { (VIP, 80) });
            assert_eq!(pair.far.flows(), (0, 2));
        }
    }
}

fn a_flow_that_its_endpoints_node_has_forgotten_is_answered_through_the_tunnel<A: Family>() {
    let pair = Pair::<A>::new(Link::Tunnel, protocol::TCP);
    pair.asks(&Builder::new(SYN, client(), end(FRONTEND)));
    // Of all that came there, this is the first.
    let sent = pair.asks(&Builder::new(ACK, client(), end(FRONTEND)));
    let there = pair.brings(&arrived(&sent));
    there.goes(pair.to_pod(), client(), pair.there());
    let back = pair.far.pod_sends(&there.answer(ACK));
    let home = pair.near.overlay_brings(&arrived(&back));
    home.goes(Verdict::Forward, end(FRONTEND), client());
    // A new connection says it again.
    let there = pair.brings(&pair.named(SYN, (CLIENT, 50_001), FRONTEND));
    let back = pair.far.pod_sends(&there.answer(ACK));
    back.goes(Verdict::Forward, end(FRONTEND), end((CLIENT, 50_001)));
}

fn errors_find_both_ends_of_a_flow_that_is_answered_directly<A: Family>() {
    for link in LINKS {
        let pair = Pair::<A>::new(link, protocol::UDP);
        let sent = pair.asks(&Builder::udp(client(), end(FRONTEND)));
        let there = pair.brings(&arrived(&sent));
        let back = pair.far.pod_sends(&there.answer(Transport::Udp));

        // A router about the answer: it writes to the node that seems to have sent it.
        let error = pair.asks(&complaint(A::at(ROUTER), &back.frame, WHOLE));
        let error = pair.brings(&arrived(&error));
        tells(&error, pair.to_pod(), A::at(ROUTER), &back.before);

        // The endpoint about the request.
        let error = pair.far.pod_sends(&complaint(A::at(pair.endpoint), &there.frame, WHOLE));
        tells(&error, Verdict::Forward, A::at(NODE), &sent.before);
    }
}

fn fragments_follow_the_first_which_names_the_frontend<A: Family>() {
    for link in LINKS {
        let pair = Pair::<A>::new(link, protocol::UDP);
        for (number, piece) in pieces(&Builder::udp(client(), end(FRONTEND))).iter().enumerate() {
            let sent = pair.asks(piece);
            assert_eq!(names(&sent).is_some(), number == 0);
            let there = pair.brings(&arrived(&sent));
            let (_, source, destination, ..) = A::read(&there.frame.bytes);
            assert_eq!(
                (there.verdict, source, destination),
                (pair.to_pod(), client::<A>().0, pair.there().0)
            );
            assert_eq!(there.frame.bytes.len(), sent.before.bytes.len());
        }
        assert_eq!(pair.far.flows(), (2, 0));
    }
}

fn a_packet_without_room_for_a_name_goes_without<A: Family>() {
    let pair = Pair::<A>::new(Link::Plain, protocol::UDP);
    let asked = if size_of::<A>() == 4 {
        // 36 of at most 40 bytes.
        Builder::udp(client(), end(FRONTEND)).option(0x44, &[0; 34])
    } else {
        Builder::udp(client(), end(FRONTEND)).payload(&vec![0; 65_520])
    };
    let sent = pair.asks(&asked);
    assert_eq!((names(&sent), sent.ends()), (None, (client(), pair.there())));
    assert_eq!(sent.frame.bytes.len(), sent.before.bytes.len());
}

fn other_options_stay<A: Family>() {
    for link in LINKS {
        let pair = Pair::<A>::new(link, protocol::UDP);
        let kind = if size_of::<A>() == 4 { 0x44 } else { 60 };
        let asked = Builder::udp(client(), end(FRONTEND)).option(kind, &[0; 6]);
        let sent = pair.asks(&asked);
        assert_eq!(names(&sent), Some(end(FRONTEND)));
        let there = pair.brings(&arrived(&sent));
        there.goes(pair.to_pod(), client(), pair.there());
        assert_eq!(there.frame.bytes.len(), sent.before.bytes.len());
    }
}
