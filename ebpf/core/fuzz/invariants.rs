//! What holds for any packets in any order, however hostile. The fuzz target and the test that replays
//! the corpus share it.

use fairway_abi::{Interface, Route, V4, V6, flow, frontend, protocol, route, scope};
use fairway_core::direct::has_options;
use fairway_core::flow::opposite_of;
use fairway_core::memory::{Frame, Lru, Memory};
use fairway_core::neighbour;
use fairway_core::packet::{Headers, Ports};
use fairway_core::{Ip, Verdict, path};

use crate::frame::{Family, crc32c, fold, sum};
use crate::node::{
    DIRECT_POD, NODE, Node, OTHER_POD, OTHER_VIP, OUTSIDE, PEER, PEER_UNDERLAY, POD, REMOTE_POD,
    VIP,
};
use crate::story::{Arrival, Place};

/// Records that fit: few enough that every story meets the ends of the tables.
const HALF_OPEN: usize = 8;
const ESTABLISHED: usize = 6;

/// Where programs do not look any further.
const FURTHEST: usize = 512;

const ETHERNET: usize = 14;

/// The interface of [`POD`].
const INTERFACE: u32 = 12;

/// Lets the packets into a node, one after the other.
///
/// # Panics
/// What becomes of one is not as it should be.
pub(crate) fn check(story: &[Arrival]) {
    let (v4, v6) = (node::<V4>(), node::<V6>());
    for arrival in story {
        match arrival.bytes.get(12..ETHERNET) {
            Some(kind) if kind == V4::ETHERTYPE => enter(&v4, arrival),
            Some(kind) if kind == V6::ETHERTYPE => enter(&v6, arrival),
            Some(kind) if kind == neighbour::ARP => says_of_itself(&v4.tables, arrival),
            Some(_) => {}
            // The kernel tells an announcement even where there is no room for one.
            None => {
                enter(&v4, arrival);
                enter(&v6, arrival);
            }
        }
    }
}

/// A node with Services of every kind, and endpoints that are reached in every way.
fn node<A: Family>() -> Node<A> {
    let mut node = Node::<A>::new();
    node.tables.half_open.replace(Lru::new(HALF_OPEN));
    node.tables.room = ESTABLISHED;
    let everywhere = [POD, OTHER_POD, REMOTE_POD, DIRECT_POD, NODE, PEER, OUTSIDE];
    let everywhere = everywhere.map(|endpoint| (endpoint, 8080));
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        node.service((VIP, 80), protocol, &[(OTHER_POD, 8080)]);
        node.service((VIP, 443), protocol, &[(POD, 8443)]);
        node.service((OTHER_VIP, 80), protocol, &everywhere);
        node.service((OTHER_VIP, 443), protocol, &[]);
        node.service((NODE, 30_080), protocol, &everywhere);
    }
    for (key, frontend) in &mut node.tables.frontends {
        if key.address == A::at(NODE) && key.scope == scope::EXTERNAL {
            frontend.flags |= frontend::KEEP_CLIENT;
        }
    }
    node.tables.peers.insert(PEER_UNDERLAY, A::at([10, 244, 2, 0]));
    let vip = A::at(VIP);
    if let Some(frontend) = node.tables.frontends.values().next().copied() {
        node.tables.frontends.insert(path::any_port(vip), frontend);
    }
    node.route([10, 96, 0, 0], 24, route::SERVICES, None, [0; 16]);
    node
}

/// A packet of any kind enters a node.
fn enter<A: Family>(node: &Node<A>, arrival: &Arrival) {
    let tables = &node.tables;
    let linear = arrival.bytes.len().min(FURTHEST);
    let before = Frame { partial: arrival.partial, linear, ..Frame::new(arrival.bytes.clone()) };
    let mut after = before.clone();
    let verdict = match arrival.place {
        Place::Pod => path::from_pod::<A, _, _>(&mut after, tables, INTERFACE),
        Place::Uplink => path::from_uplink::<A, _, _>(&mut after, tables),
        Place::Overlay => path::from_overlay::<A, _, _>(&mut after, tables, &PEER_UNDERLAY),
        Place::Host => path::from_host::<A, _, _>(&mut after, tables),
        Place::HostTunnel => path::to_overlay::<A, _, _>(&mut after, tables),
    };
    records_are_in_order(tables);
    if matches!(verdict, Verdict::Drop(_)) {
        return;
    }
    if before != after && is_an_answer::<A>(&before, &after) {
        // In an error, a device finishes what is quoted: the tests of such errors do that for it.
        let judged = !before.partial && is_sound::<A>(&before);
        assert!(!judged || is_sound::<A>(&after), "{before:02x?} is answered with {after:02x?}");
    } else {
        stays_what_it_is::<A>(&before, &after);
    }
    match verdict {
        Verdict::Pass | Verdict::Drop(_) => return,
        Verdict::Pod(pod) => {
            let to = destination::<A>(&after);
            assert_eq!(tables.pods.get(&to), Some(&pod), "{after:02x?} goes to somebody else");
        }
        Verdict::Tunnel(peer) => {
            let known = |(.., route): &(u32, A, Route<A>)| route.peer.alone() == peer;
            assert!(tables.routes.iter().any(known), "a tunnel to nobody for {after:02x?}");
        }
        Verdict::Forward => {}
    }
    let forwarded = !matches!(arrival.place, Place::Host | Place::HostTunnel);
    assert!(!forwarded || before != after, "{before:02x?} is handed on with its hop limit");
    if arrival.place == Place::Pod {
        let source = A::parse(&before).expect("it was read").source;
        assert_eq!(source, A::at(POD), "a pod spoke for somebody else: {before:02x?}");
    }
}

/// Whether a packet became another one, which goes to its sender.
fn is_an_answer<A: Family>(before: &Frame, after: &Frame) -> bool {
    let (Ok(before), Ok(there)) = (A::parse(before), A::parse(after)) else { return false };
    let reset = before.protocol == protocol::TCP
        && there.protocol == protocol::TCP
        && (there.source, there.source_port) == (before.destination, before.destination_port);
    let error = there.ports == Ports::Error && (before.ports != Ports::Error);
    there.destination == before.source && (reset || error)
}

/// What is not answered has the same length, content, and checksums that are right if they were.
fn stays_what_it_is<A: Family>(before: &Frame, after: &Frame) {
    if A::parse(before).is_ok_and(|headers| has_options(&headers)) && A::named(before).is_some() {
        return;
    }
    assert_eq!(before.bytes.len(), after.bytes.len(), "{before:02x?} became {after:02x?}");
    let Ok(headers) = A::parse(before) else {
        return assert_eq!(before, after, "what cannot be read is left alone");
    };
    let about = || format!("{before:02x?} became {after:02x?}");
    if headers.ports != Ports::Error {
        let content = content(&headers).min(before.bytes.len());
        assert_eq!(before.bytes[content..], after.bytes[content..], "{}", about());
    }
    let there = A::parse(after).unwrap_or_else(|_| panic!("{}", about()));
    assert_eq!(
        (headers.protocol, headers.transport, headers.ports),
        (there.protocol, there.transport, there.ports),
        "{}",
        about()
    );
    assert!(there.hop_limit == headers.hop_limit || there.hop_limit + 1 == headers.hop_limit);
    assert!(!is_sound::<A>(before) || is_sound::<A>(after), "{}", about());
}

/// Where what no translation changes begins.
fn content<A>(headers: &Headers<A>) -> usize {
    let header = match headers.protocol {
        protocol::TCP => 20,
        protocol::SCTP => 12,
        _ => 8,
    };
    headers.transport as usize + header
}

fn destination<A: Family>(frame: &Frame) -> A {
    A::parse(frame).expect("it was read before").destination
}

/// Whether lengths fit, and every checksum is right.
fn is_sound<A: Family>(frame: &Frame) -> bool {
    let Ok(headers) = A::parse(frame) else { return false };
    let (at, bytes) = (headers.transport as usize, &frame.bytes);
    let end = A::length(frame).map_or(0, |length| ETHERNET + length as usize);
    if at > end || end > bytes.len() || !A::header_is_valid(bytes) {
        return false;
    }
    let segment = &bytes[at..end];
    let checksum = match headers.protocol {
        _ if headers.ports == Ports::Fragment => return true,
        protocol::SCTP => {
            let mut segment = segment.to_vec();
            let Some(field) = segment.get_mut(8..12) else { return false };
            let field = std::mem::take(field.first_chunk_mut::<4>().expect("four bytes"));
            return field == if frame.partial { [0; 4] } else { crc32c(&segment) };
        }
        protocol::TCP => 16,
        protocol::UDP => 6,
        protocol::ICMP | protocol::ICMPV6 if frame.partial => return false, // there is no such thing
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => return true,
    };
    let Some(field) = segment.get(checksum..checksum + 2) else { return false };
    let field = u16::from_be_bytes([field[0], field[1]]);
    let pseudo = A::pseudo(headers.protocol, headers.source, headers.destination, segment.len());
    // Zero has two forms in this arithmetic.
    let unfinished = field % 0xffff == fold(pseudo) % 0xffff;
    if frame.partial {
        return unfinished;
    }
    // Whose field has the sum of the pseudo header is taken for one that a device is to finish.
    let none = headers.protocol == protocol::UDP && field == 0;
    none || !unfinished && fold(pseudo + sum(segment)) == 0xffff
}

/// No table outgrows its room, and answered flows have both their records, each other's opposite.
fn records_are_in_order<A: Family>(tables: &Memory<A>) {
    let established = tables.established.borrow();
    assert!(tables.half_open.borrow().len() <= HALF_OPEN);
    assert!(established.len() <= ESTABLISHED);
    for (key, record) in established.iter() {
        let other_key = opposite_of(key, record);
        let other = established.get(&other_key);
        let other = other.unwrap_or_else(|| panic!("half a flow: {key:?} {record:?}"));
        assert_eq!(opposite_of(&other_key, other), *key);
        assert_eq!((record.state.get() ^ other.state.get()) & flow::REPLY, flow::REPLY);
    }
}

/// ARP passes or not, and a pod says nothing but who it is itself.
fn says_of_itself(tables: &Memory<V4>, arrival: &Arrival) {
    let verdict = neighbour::arp_from_pod(&Frame::new(arrival.bytes.clone()), tables, INTERFACE);
    if verdict == Verdict::Pass {
        let Interface { address4, .. } = tables.interfaces[&INTERFACE];
        let sender = &arrival.bytes[28..32];
        assert!(sender == address4 || sender == [0; 4], "{:02x?}", arrival.bytes);
        assert_eq!(arrival.bytes[6..12], arrival.bytes[22..28]);
    } else {
        assert!(matches!(verdict, Verdict::Drop(_)));
    }
}
