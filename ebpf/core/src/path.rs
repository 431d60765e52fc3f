//! A packet's way through the node: one function for each place a packet enters.
//!
//! Each reads as four steps: parse, look up, decide, apply. A decision is a [`Decision`]: where the
//! packet goes and what becomes of its addresses; only [`apply`] touches the packet.

use fairway_abi::{Address, DropReason, Frontend, Pod, V4, V6, protocol, route, scope};

use crate::flow::{self, Opening, translation_of};
use crate::packet::{self, ETHERNET, Headers, Ip, Packet, Ports, Translation};
use crate::service;
use crate::tables::Tables;

/// What the attach point has to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it to the host's stack.
    Pass,
    /// Drop and count it.
    Drop(DropReason),
    /// Hand it to this pod.
    Pod(Pod),
    /// Send it as the host's routes say.
    Forward,
    /// Send it to this peer through the overlay; IPv4 peers as `::ffff:a.b.c.d`.
    Tunnel(V6),
}

/// What a pod sends.
#[inline(always)]
pub fn from_pod<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
) -> Verdict {
    let headers = match A::parse(packet) {
        Ok(headers) => headers,
        Err(reason) => return Verdict::Drop(reason),
    };
    let Some(interface) = tables.interface(ifindex) else {
        return Verdict::Drop(DropReason::SpoofedSource);
    };
    if !headers.source.may_send(&interface, &headers.destination) {
        return Verdict::Drop(DropReason::SpoofedSource);
    }
    if !headers.destination.is_forwarded() {
        return Verdict::Pass;
    }
    let decision = decide_from_pod(tables, &headers);
    apply(packet, &headers, decision)
}

/// What announces ARP in an Ethernet header, network order.
pub const ARP: [u8; 2] = [0x08, 0x06];

/// An ARP packet a pod sends: it may speak only for its own address (RFC 826), or ask with none
/// (RFC 5227).
#[inline(always)]
pub fn arp_from_pod<P: Packet, T: Tables<V4>>(packet: &P, tables: &T, ifindex: u32) -> Verdict {
    let Some(sender) = packet.load::<V4>(ETHERNET + 14) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    match tables.interface(ifindex) {
        Some(interface) if sender == interface.address4 || sender == V4::UNSPECIFIED => {
            Verdict::Pass
        }
        _ => Verdict::Drop(DropReason::SpoofedSource),
    }
}

/// What arrives from the network.
#[inline(always)]
pub fn from_uplink<A: Ip, P: Packet, T: Tables<A>>(packet: &mut P, tables: &T) -> Verdict {
    let headers = match A::parse(packet) {
        Ok(headers) => headers,
        // Not ours to judge: the host's stack has its own counters for broken packets.
        Err(_) => return Verdict::Pass,
    };
    let decision = decide_from_uplink(tables, &headers);
    apply(packet, &headers, decision)
}

/// What `peer` sent through the overlay.
#[inline(always)]
pub fn from_overlay<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    peer: &V6,
) -> Verdict {
    let headers = match A::parse(packet) {
        Ok(headers) => headers,
        Err(reason) => return Verdict::Drop(reason),
    };
    // A node may only speak for the addresses that are routed to it.
    match tables.route(&headers.source) {
        Some(route) if route.tunnel == *peer => {}
        _ => return Verdict::Drop(DropReason::ForeignTunnel),
    }
    let decision = match follow(tables, &headers) {
        Some(decision) => decision,
        None => deliver_here(tables, &headers),
    };
    apply(packet, &headers, Ok(decision))
}

/// What the host's own stack sends: only answers to translated flows change.
#[inline(always)]
pub fn from_host<A: Ip, P: Packet, T: Tables<A>>(packet: &mut P, tables: &T) -> Verdict {
    let Ok(headers) = A::parse(packet) else {
        return Verdict::Pass;
    };
    let Some(found) = (matches!(headers.ports, Ports::Known))
        .then(|| flow::follow(tables, &headers))
        .flatten()
    else {
        return Verdict::Pass;
    };
    match packet::translate(packet, &headers, &translation_of(&found), false) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(DropReason::Rewrite),
    }
}

/// The peer that a packet of the host's stack on the overlay device goes to.
#[inline(always)]
pub fn tunnel_from_host<A: Ip, P: Packet, T: Tables<A>>(packet: &P, tables: &T) -> Verdict {
    let Ok(headers) = A::parse(packet) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    match tables.route(&headers.destination) {
        Some(route) if route.kind.get() == route::TUNNEL => Verdict::Tunnel(route.tunnel),
        _ => Verdict::Drop(DropReason::ForeignTunnel),
    }
}

/// Where a packet goes, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<A> {
    /// Where it goes.
    pub verdict: Verdict,
    /// Its new addresses and ports, if they change.
    pub translation: Option<Translation<A>>,
}

#[inline(always)]
fn decide_from_pod<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
) -> Result<Decision<A>, DropReason> {
    if let Some(decision) = follow(tables, headers) {
        return Ok(decision);
    }
    if let Some((frontend, key)) = frontend(tables, headers, scope::INTERNAL) {
        let endpoint = service::choose(tables, &key, &frontend, tables.random())?;
        let config = tables.config().unwrap_or_default();
        let next = next_hop(tables, &endpoint.address);
        // A pod that reaches itself must see another address than its own, or it would answer to
        // itself without passing here.
        let hairpin = endpoint.address == headers.source;
        let masquerade = next.outside || hairpin;
        let opening = Opening {
            source: if masquerade {
                A::masquerade(&config)
            } else {
                headers.source
            },
            destination: endpoint.address,
            destination_port: endpoint.port,
            service: frontend.service,
            ports: (config.first_port, config.last_port),
            any_port: !masquerade,
        };
        return open(tables, headers, &opening, next.verdict);
    }
    let next = next_hop(tables, &headers.destination);
    if !next.outside {
        return Ok(Decision {
            verdict: next.verdict,
            translation: None,
        });
    }
    let config = tables.config().unwrap_or_default();
    if A::masquerade(&config) == A::UNSPECIFIED {
        return Ok(Decision {
            verdict: next.verdict,
            translation: None,
        });
    }
    translatable(headers)?;
    let opening = Opening {
        source: A::masquerade(&config),
        destination: headers.destination,
        destination_port: headers.destination_port,
        service: 0,
        ports: (config.first_port, config.last_port),
        any_port: false,
    };
    open(tables, headers, &opening, next.verdict)
}

/// The decision of [`from_uplink`], with nothing done to the packet yet.
#[inline(always)]
pub fn decide_from_uplink<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
) -> Result<Decision<A>, DropReason> {
    if let Some(decision) = follow(tables, headers) {
        return Ok(decision);
    }
    let Some((frontend, key)) = frontend(tables, headers, scope::EXTERNAL) else {
        return Ok(deliver_here(tables, headers));
    };
    let endpoint = service::choose(tables, &key, &frontend, tables.random())?;
    let config = tables.config().unwrap_or_default();
    let next = next_hop(tables, &endpoint.address);
    let away = matches!(next.verdict, Verdict::Forward | Verdict::Tunnel(_));
    let opening = Opening {
        // The answer of an endpoint elsewhere must come back through this node; an endpoint here
        // sees the client's own address.
        source: match (away, next.outside) {
            (false, _) => headers.source,
            (true, false) => next.source,
            (true, true) => A::masquerade(&config),
        },
        destination: endpoint.address,
        destination_port: endpoint.port,
        service: frontend.service,
        ports: (config.first_port, config.last_port),
        any_port: !away,
    };
    open(tables, headers, &opening, next.verdict)
}

/// The decision for a packet of an open flow.
#[inline(always)]
fn follow<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> Option<Decision<A>> {
    if !matches!(headers.ports, Ports::Known) {
        return None;
    }
    let found = flow::follow(tables, headers)?;
    let translation = translation_of(&found);
    let verdict = next_hop(tables, &translation.destination).verdict;
    Some(Decision {
        verdict,
        translation: Some(translation),
    })
}

/// The frontend a packet asks for, with the key that found it.
#[inline(always)]
fn frontend<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scope: u8,
) -> Option<(Frontend, fairway_abi::FrontendKey<A>)> {
    if !matches!(headers.ports, Ports::Known) {
        return None;
    }
    let key = headers.frontend(scope);
    tables.frontend(&key).map(|frontend| (frontend, key))
}

/// The decision for a packet that keeps its addresses: to a pod of this node, else to the host.
#[inline(always)]
fn deliver_here<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> Decision<A> {
    let verdict = match tables.pod(&headers.destination) {
        Some(pod) => Verdict::Pod(pod),
        None => Verdict::Pass,
    };
    Decision {
        verdict,
        translation: None,
    }
}

/// Opens a flow for a decision that translates.
#[inline(always)]
fn open<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    opening: &Opening<A>,
    verdict: Verdict,
) -> Result<Decision<A>, DropReason> {
    let translation = flow::open(tables, headers, opening)?;
    Ok(Decision {
        verdict,
        translation: Some(translation),
    })
}

/// How a destination is reached.
struct NextHop<A> {
    verdict: Verdict,
    /// The source that lets answers come back to this node.
    source: A,
    /// Pods appear there under the node's address.
    outside: bool,
}

#[inline(always)]
fn next_hop<A: Ip, T: Tables<A>>(tables: &T, destination: &A) -> NextHop<A> {
    if let Some(pod) = tables.pod(destination) {
        return NextHop {
            verdict: Verdict::Pod(pod),
            source: A::UNSPECIFIED,
            outside: false,
        };
    }
    let Some(found) = tables.route(destination) else {
        return NextHop {
            verdict: Verdict::Forward,
            source: A::UNSPECIFIED,
            outside: true,
        };
    };
    let (verdict, outside) = match found.kind.get() {
        route::HOST => (Verdict::Pass, false),
        route::DIRECT => (Verdict::Forward, false),
        route::TUNNEL => (Verdict::Tunnel(found.tunnel), false),
        _ => (Verdict::Forward, true),
    };
    NextHop {
        verdict,
        source: found.source,
        outside,
    }
}

/// Refuses what cannot be translated.
#[inline(always)]
fn translatable<A: Ip>(headers: &Headers<A>) -> Result<(), DropReason> {
    let icmp = matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6);
    match headers.ports {
        // An answer to a question that never passed here.
        Ports::Known if icmp && headers.source_port.get() == 0 => {
            Err(DropReason::UnsupportedProtocol)
        }
        Ports::Known => Ok(()),
        Ports::Fragment => Err(DropReason::Fragment),
        Ports::None => Err(DropReason::UnsupportedProtocol),
    }
}

/// Carries a decision out on the packet.
#[inline(always)]
pub fn apply<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    decision: Result<Decision<A>, DropReason>,
) -> Verdict {
    let decision = match decision {
        Ok(decision) => decision,
        Err(reason) => return Verdict::Drop(reason),
    };
    let leaves = !matches!(decision.verdict, Verdict::Pass);
    let expires = leaves && headers.hop_limit <= 1;
    let done = match &decision.translation {
        Some(_) if expires => return Verdict::Drop(DropReason::HopLimit),
        Some(to) => packet::translate(packet, headers, to, leaves),
        // The host's stack takes the same way and answers "time exceeded" itself.
        None if expires => return Verdict::Pass,
        None if leaves => packet::hop(packet, headers),
        None => Some(()),
    };
    match done {
        Some(()) => decision.verdict,
        None => Verdict::Drop(DropReason::Rewrite),
    }
}
