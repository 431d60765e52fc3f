//! What holds for every packet and every sequence of packets.

use std::collections::{HashMap, HashSet};

use fairway_abi::{Flow, FlowKey, Subject, V4, V6, config, flow, protocol, route};
use fairway_core::flow::opposite_of;
use fairway_core::memory::{Frame, Lru};
use fairway_core::packet::{Translation, tcp, translate};
use fairway_core::{Tables as _, Verdict, path};
use proptest::prelude::*;
use zerocopy::network_endian::U16;

use crate::frame::{Builder, End, Family, Transport, assert_checksums, ends};
use crate::node::{
    CLIENT, DIRECT_POD, NODE, Node, OTHER_POD, OTHER_VIP, OUTSIDE, PEER, PEER_UNDERLAY, POD,
    REMOTE_POD, Sent, VIP, to_pod,
};

/// Where a packet enters a node.
#[derive(Clone, Copy, Debug)]
enum Entrance {
    Pod,
    Uplink,
    Overlay,
    Host,
    HostTunnel,
}

const ENTRANCES: [Entrance; 5] =
    [Entrance::Pod, Entrance::Uplink, Entrance::Overlay, Entrance::Host, Entrance::HostTunnel];

impl Entrance {
    fn enter<A: Family>(self, node: &Node<A>, frame: &mut Frame) -> Verdict {
        let tables = &node.tables;
        match self {
            Self::Pod => path::from_pod::<A, _, _>(frame, tables, 12),
            Self::Uplink => path::from_uplink::<A, _, _>(frame, tables),
            Self::Overlay => path::from_overlay::<A, _, _>(frame, tables, &PEER_UNDERLAY),
            Self::Host => path::from_host::<A, _, _>(frame, tables),
            Self::HostTunnel => path::to_overlay::<A, _, _>(frame, tables),
        }
    }
}

/// A node with Services whose endpoints are reached in every way.
fn busy_node<A: Family>() -> Node<A> {
    let mut node = Node::new();
    let everywhere = [POD, OTHER_POD, REMOTE_POD, DIRECT_POD, NODE, PEER, OUTSIDE];
    let everywhere = everywhere.map(|endpoint| (endpoint, 8080));
    for protocol in [protocol::TCP, protocol::UDP] {
        node.service((VIP, 80), protocol, &everywhere);
        node.service((OTHER_VIP, 80), protocol, &[(OTHER_POD, 8080)]);
        node.service((NODE, 30_080), protocol, &everywhere);
    }
    node
}

/// A packet that passes without a flow record was not translated, so it must be as it came.
fn survives<A: Family>(mut frame: Frame) -> Result<(), TestCaseError> {
    let before = frame.clone();
    for entrance in ENTRANCES {
        let node = busy_node::<A>();
        frame.clone_from(&before);
        let verdict = entrance.enter(&node, &mut frame);
        // Only what has come too far becomes another packet.
        let expired = A::parse(&before).is_ok_and(|headers| headers.hop_limit <= 1);
        prop_assert!(expired || frame.bytes.len() == before.bytes.len());
        if verdict == Verdict::Pass && node.flows() == (0, 0) {
            prop_assert_eq!(&frame, &before, "{:?}", entrance);
        }
    }
    Ok(())
}

/// A well-formed packet between addresses that mean something, to be damaged.
fn packet<A: Family>() -> impl Strategy<Value = Builder<A>> {
    let address = || {
        prop::sample::select(vec![
            POD, OTHER_POD, REMOTE_POD, DIRECT_POD, VIP, OTHER_VIP, NODE, PEER, CLIENT,
        ])
    };
    let port = || prop::sample::select(vec![0, 53, 80, 5000, 8080, 30_080, 40_000]);
    let transport = prop_oneof![
        any::<u8>().prop_map(Transport::Tcp),
        Just(Transport::Udp),
        Just(Transport::UdpUnchecked),
        Just(Transport::EchoRequest),
        Just(Transport::EchoReply),
        any::<u8>().prop_map(Transport::Icmp),
        any::<u8>().prop_map(Transport::Other),
    ];
    let fragment = prop::option::weighted(0.1, (0..0x2000u16, any::<bool>()));
    (transport, (address(), port()), (address(), port()), any::<u8>(), fragment, any::<bool>())
        .prop_map(|(transport, source, destination, hops, fragment, partial)| {
            let end = |(address, port): ([u8; 4], u16)| (A::at(address), port);
            let packet = Builder::new(transport, end(source), end(destination)).hop_limit(hops);
            let packet = packet.partial(partial);
            match fragment {
                Some((offset, more)) => packet.fragment(offset, more),
                None => packet,
            }
        })
}

/// A frame, some of whose bytes are overwritten and of which perhaps only a part can be reached, or
/// is there at all.
fn damaged<A: Family>() -> impl Strategy<Value = Frame> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<bool>()));
    (packet::<A>(), changes, cut).prop_map(|(packet, changes, cut)| {
        let mut frame = packet.frame();
        for (at, byte) in changes {
            let at = at.index(frame.bytes.len());
            frame.bytes[at] = byte;
        }
        if let Some((linear, truncated)) = cut {
            frame.linear = linear.index(frame.bytes.len());
            if truncated {
                frame.bytes.truncate(frame.linear);
            }
        }
        frame
    })
}

/// Nothing reaches a pod that may receive and send nothing, nor leaves it but to its own node; whatever comes
/// before it.
fn isolates<A: Family>(packets: Vec<(u8, Frame)>) -> Result<(), TestCaseError> {
    let mut node = busy_node::<A>();
    let tables = &mut node.tables;
    tables.config.flags |= config::POLICED;
    tables.config.policy = !flow::REVISION + 1;
    tables.subjects.insert(A::at(POD), Subject { ingress: 1, egress: 1 });
    let tables = &node.tables;
    for (entrance, mut frame) in packets {
        let before = frame.clone();
        let to_itself =
            A::parse_network(&before).is_ok_and(|headers| headers.destination == A::at(POD));
        match entrance % 5 {
            // Its node may tell it that nobody serves what it asked for; nobody else hears of it.
            0 => match path::from_pod::<A, _, _>(&mut frame, tables, 12) {
                Verdict::Drop(_) => {}
                Verdict::Pod(_) => prop_assert_eq!(ends::<A>(&frame).1.0, A::at(POD)),
                Verdict::Pass => {
                    let headers = A::parse(&before).expect("it was read before");
                    let own = tables.route(&headers.destination);
                    let own = own.is_some_and(|route| route.kind.get() == route::HOST);
                    prop_assert!(own || !headers.destination.is_forwarded(), "{:02x?}", before);
                }
                other => prop_assert!(false, "{:?} for {:02x?}", other, before),
            },
            1 => {
                let verdict = path::from_pod::<A, _, _>(&mut frame, tables, 13);
                prop_assert!(verdict != to_pod(POD), "{:02x?}", before);
            }
            2 => {
                let verdict = path::from_uplink::<A, _, _>(&mut frame, tables);
                prop_assert!(verdict != to_pod(POD), "{:02x?}", before);
            }
            3 => {
                let verdict = path::from_overlay::<A, _, _>(&mut frame, tables, &PEER_UNDERLAY);
                prop_assert!(verdict != to_pod(POD), "{:02x?}", before);
            }
            _ => {
                let verdict = path::to_pod::<A, _, _>(&mut frame, tables, false);
                prop_assert!(!to_itself || matches!(verdict, Verdict::Drop(_)), "{:02x?}", before);
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_ipv4_packet_gets_into_or_out_of_an_isolated_pod(
        packets in prop::collection::vec((any::<u8>(), damaged::<V4>()), 1..40),
    ) {
        isolates::<V4>(packets)?;
    }

    #[test]
    fn no_ipv6_packet_gets_into_or_out_of_an_isolated_pod(
        packets in prop::collection::vec((any::<u8>(), damaged::<V6>()), 1..40),
    ) {
        isolates::<V6>(packets)?;
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
        survives::<V4>(Frame::new(bytes.clone()))?;
        survives::<V6>(Frame::new(bytes))?;
    }

    #[test]
    fn no_damaged_ipv4_packet_does_harm(frame in damaged::<V4>()) {
        survives::<V4>(frame)?;
    }

    #[test]
    fn no_damaged_ipv6_packet_does_harm(frame in damaged::<V6>()) {
        survives::<V6>(frame)?;
    }
}

/// A packet that can be translated, whose checksums may be left to the device.
fn translatable<A: Family>(
    address: impl Strategy<Value = A> + Clone,
) -> impl Strategy<Value = (Builder<A>, Translation<A>)> {
    let transport = prop::sample::select(vec![
        Transport::Tcp(tcp::ACK),
        Transport::Udp,
        Transport::UdpUnchecked,
        Transport::EchoRequest,
        Transport::EchoReply,
    ]);
    let end = || (address.clone(), 1..=u16::MAX);
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    (transport, (end(), end()), (end(), end()), payload, any::<bool>()).prop_map(
        |(transport, (source, destination), (new_source, new_destination), payload, partial)| {
            // A device completes the checksums of TCP and UDP alone.
            let partial = partial && matches!(transport, Transport::Tcp(_) | Transport::Udp);
            let packet = Builder::new(transport, source, destination).payload(&payload);
            // An echo carries one identifier.
            let ports = match transport {
                Transport::EchoRequest => (new_source.1, 0),
                Transport::EchoReply => (0, new_destination.1),
                _ => (new_source.1, new_destination.1),
            };
            let to = Translation {
                source: new_source.0,
                destination: new_destination.0,
                source_port: U16::new(ports.0),
                destination_port: U16::new(ports.1),
            };
            (packet.partial(partial), to)
        },
    )
}

/// Translates there and back.
fn returns<A: Family>(packet: &Builder<A>, to: &Translation<A>) -> Result<(), TestCaseError> {
    let original = packet.frame();
    assert_checksums::<A>(&original);
    let mut frame = original.clone();
    let headers = A::parse(&frame).expect("well-formed");
    prop_assert_eq!(translate(&mut frame, &headers, to, true), Some(()));
    assert_checksums::<A>(&frame);
    let (source, destination) = ends::<A>(&frame);
    prop_assert_eq!(source, (to.source, to.source_port.get()));
    prop_assert_eq!(destination, (to.destination, to.destination_port.get()));

    let translated = A::parse(&frame).expect("still well-formed");
    prop_assert_eq!(translated.hop_limit, headers.hop_limit - 1);
    let back = Translation {
        source: headers.source,
        destination: headers.destination,
        source_port: headers.source_port,
        destination_port: headers.destination_port,
    };
    prop_assert_eq!(translate(&mut frame, &translated, &back, false), Some(()));
    assert_checksums::<A>(&frame);
    prop_assert_eq!(ends::<A>(&frame), ends::<A>(&original));
    Ok(())
}

proptest! {
    #[test]
    fn an_ipv4_translation_can_be_undone((packet, to) in translatable(any::<V4>())) {
        returns(&packet, &to)?;
    }

    #[test]
    fn an_ipv6_translation_can_be_undone((packet, to) in translatable(any::<V6>())) {
        returns(&packet, &to)?;
    }
}

/// One step in the life of a node.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A client sends from one of its ports to a destination.
    Ask { client: usize, port: u16, to: usize, transport: Transport },
    /// The receiver of an earlier packet (counted from the latest back) answers it.
    Answer { earlier: usize, transport: Transport },
    /// The Services' endpoints change places.
    Rotate,
}

/// Who sends, and whence.
const CLIENTS: [([u8; 4], Entrance); 4] = [
    (POD, Entrance::Pod),
    (OTHER_POD, Entrance::Pod),
    (CLIENT, Entrance::Uplink),
    (DIRECT_POD, Entrance::Uplink),
];

/// Who is asked: Services, a node port and somebody outside.
const DESTINATIONS: [([u8; 4], u16); 4] =
    [(VIP, 80), (OTHER_VIP, 80), (NODE, 30_080), (OUTSIDE, 8080)];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let transport = || {
        let flags = [
            tcp::SYN,
            tcp::SYN | tcp::ACK,
            tcp::ACK,
            tcp::ACK | tcp::FIN,
            tcp::RST,
            tcp::SYN | tcp::FIN,
        ];
        prop_oneof![
            3 => prop::sample::select(flags.to_vec()).prop_map(Transport::Tcp),
            2 => Just(Transport::Udp),
            1 => Just(Transport::EchoRequest),
        ]
    };
    let ask = (0..CLIENTS.len(), 5000..5003u16, 0..DESTINATIONS.len(), transport())
        .prop_map(|(client, port, to, transport)| Step::Ask { client, port, to, transport });
    let answer = (0..6usize, transport())
        .prop_map(|(earlier, transport)| Step::Answer { earlier, transport });
    let step = prop_oneof![6 => ask, 6 => answer, 1 => Just(Step::Rotate)];
    prop::collection::vec(step, 1..60)
}

/// A node in the course of its steps, and what it has sent.
struct Life<A: Family> {
    node: Node<A>,
    /// The requests that were not dropped.
    sent: Vec<Sent<A>>,
}

impl<A: Family> Life<A> {
    fn new(half_open: usize, established: usize) -> Self {
        let mut node = busy_node();
        node.tables.half_open.replace(Lru::new(half_open));
        node.tables.room = established;
        Self { node, sent: Vec::new() }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Ask { client, port, to, transport } => {
                let (client, entrance) = CLIENTS[client];
                let (client, to) = ((A::at(client), port), DESTINATIONS[to]);
                // An echo has one identifier, and none at its destination.
                let to_port = if transport == Transport::EchoRequest { 0 } else { to.1 };
                let packet = Builder::new(transport, client, (A::at(to.0), to_port));
                let sent = match entrance {
                    Entrance::Pod => self.node.pod_sends(&packet),
                    _ => self.node.uplink_brings(&packet),
                };
                if !matches!(sent.verdict, Verdict::Drop(_)) {
                    self.way_back_leads_to_the_sender(&sent)?;
                    self.sent.push(sent);
                }
            }
            Step::Answer { earlier, transport } => {
                let Some(at) = self.sent.len().checked_sub(1 + earlier) else { return Ok(()) };
                let transport = match A::read(&self.sent[at].frame.bytes).0 {
                    protocol::TCP if matches!(transport, Transport::Tcp(_)) => transport,
                    protocol::TCP => Transport::Tcp(tcp::SYN | tcp::ACK),
                    protocol::UDP => Transport::Udp,
                    _ => Transport::EchoReply,
                };
                self.answer(at, transport)?;
            }
            Step::Rotate => {
                for endpoint in self.node.tables.endpoints.values_mut() {
                    let known = [POD, OTHER_POD, REMOTE_POD, DIRECT_POD, NODE].map(A::at);
                    let at = known.iter().position(|address| *address == endpoint.address);
                    endpoint.address = known[at.map_or(0, |at| (at + 1) % known.len())];
                }
            }
        }
        self.every_established_record_has_its_opposite()
    }

    /// A receiver answers; as long as both records are there, its answer comes to who asked, from
    /// whom they asked.
    fn answer(&mut self, at: usize, transport: Transport) -> Result<(), TestCaseError> {
        let sent = &self.sent[at];
        let (before, after) = (ends::<A>(&sent.before), sent.ends());
        let protocol = A::read(&sent.frame.bytes).0;
        let answers = key(after, protocol, true);
        let known = self
            .record(&answers)
            .is_some_and(|reply| opposite_of(&answers, &reply) == key(before, protocol, false));
        let packet = sent.answer(transport);
        let back = match sent.verdict {
            Verdict::Pod(_) => self.node.pod_sends(&packet),
            Verdict::Tunnel(_) => self.node.overlay_brings(&packet),
            Verdict::Pass => self.node.host_sends(&packet),
            _ => self.node.uplink_brings(&packet),
        };
        if known {
            let (client, asked) = before;
            prop_assert_eq!(back.ends(), (asked, client));
            prop_assert!(!matches!(back.verdict, Verdict::Drop(_)));
        }
        Ok(())
    }

    /// The record under a key, wherever it lies.
    fn record(&self, key: &FlowKey<A>) -> Option<Flow<A>> {
        let tables = &self.node.tables;
        let established = tables.established.borrow().get(key).copied();
        let half_open = tables.half_open.borrow();
        established.or_else(|| half_open.iter().find(|(k, _)| *k == key).map(|(_, flow)| *flow))
    }

    /// Whatever leaves translated is answered to its sender and to nobody else.
    fn way_back_leads_to_the_sender(&self, sent: &Sent<A>) -> Result<(), TestCaseError> {
        let (before, after) = (ends::<A>(&sent.before), sent.ends());
        if before == after {
            return Ok(());
        }
        let protocol = A::read(&sent.frame.bytes).0;
        let answers = key(after, protocol, true);
        let reply = self.record(&answers);
        prop_assert!(reply.is_some(), "no way back for {:?}", after);
        let back = opposite_of(&answers, &reply.expect("just seen"));
        prop_assert_eq!(back, key(before, protocol, false));
        Ok(())
    }

    fn every_established_record_has_its_opposite(&self) -> Result<(), TestCaseError> {
        let established = self.node.tables.established.borrow();
        let mut ways_back = HashSet::new();
        for (key, record) in established.iter() {
            let other_key = opposite_of(key, record);
            let other = established.get(&other_key);
            prop_assert!(other.is_some(), "{:?} {:?}", key, record);
            let other = other.expect("just seen");
            prop_assert_eq!(opposite_of(&other_key, other), *key);
            prop_assert_eq!(
                (record.state.get() ^ other.state.get()) & flow::REPLY,
                flow::REPLY,
                "one of the two is the answer's"
            );
            prop_assert_eq!(record.service, other.service);
            prop_assert!(ways_back.insert(other_key), "two flows share {:?}", other_key);
        }
        Ok(())
    }

    /// Holds only where nothing is ever evicted.
    fn every_flow_has_a_way_back_of_its_own(&self) -> Result<(), TestCaseError> {
        let half_open = self.node.tables.half_open.borrow();
        let records: HashMap<_, _> = half_open.iter().collect();
        let mut ways_back = HashSet::new();
        for (key, record) in &records {
            let other_key = opposite_of(key, record);
            prop_assert!(records.contains_key(&other_key), "{:?} {:?}", key, record);
            prop_assert!(ways_back.insert(other_key), "two flows share {:?}", other_key);
            let established = self.node.tables.established.borrow();
            prop_assert!(!established.contains_key(*key), "{:?} twice", key);
        }
        Ok(())
    }
}

/// The key of a packet with these ends, or of its answer.
fn key<A: Family>((source, destination): (End<A>, End<A>), protocol: u8, back: bool) -> FlowKey<A> {
    let (source, destination) = if back { (destination, source) } else { (source, destination) };
    FlowKey {
        source: source.0,
        destination: destination.0,
        source_port: U16::new(source.1),
        destination_port: U16::new(destination.1),
        protocol,
        reserved: [0; 3],
    }
}

fn lives<A: Family>(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut life = Life::<A>::new(1 << 16, 1 << 17);
    for step in steps {
        life.step(*step)?;
        life.every_flow_has_a_way_back_of_its_own()?;
    }
    Ok(())
}

fn lives_in_want<A: Family>(
    steps: &[Step],
    half_open: usize,
    established: usize,
) -> Result<(), TestCaseError> {
    let mut life = Life::<A>::new(half_open, established);
    steps.iter().try_for_each(|step| life.step(*step))
}

proptest! {
    #[test]
    fn records_come_in_pairs(steps in steps()) {
        lives::<V4>(&steps)?;
        lives::<V6>(&steps)?;
    }

    #[test]
    fn records_come_in_pairs_where_room_is_short(
        steps in steps(),
        half_open in 2..12usize,
        established in 0..8usize,
    ) {
        lives_in_want::<V4>(&steps, half_open, established)?;
        lives_in_want::<V6>(&steps, half_open, established)?;
    }
}
