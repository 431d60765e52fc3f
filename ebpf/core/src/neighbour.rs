//! What a pod says on its link about who has which address: ARP, and neighbour discovery.
//!
//! A pod speaks for its own addresses alone, and is no router. The link-layer address that it names
//! must be the one its frame comes from, but need not be the one of its interface: a pod that puts
//! its interface into a bridge of its own speaks with the bridge's, and on a link with nobody else
//! but the node it harms no one. For the same reason no other packet is held against its MAC address.

use core::hint::black_box;

use fairway_abi::{Address, DropReason, Interface, V4, V6, protocol};
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::packet::{ETHERNET, Headers, Ip, Packet, is_extension, is_link_local};
use crate::path::Verdict;
use crate::tables::Tables;

/// What announces ARP in an Ethernet header, network order.
pub const ARP: [u8; 2] = [0x08, 0x06];

/// Where an Ethernet header has its source.
const ETHERNET_SOURCE: u32 = 6;

/// RFC 826, for IPv4 over Ethernet.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ArpPacket {
    /// Ethernet, IPv4, and the lengths of their addresses.
    kind: [u8; 6],
    operation: U16,
    sender_mac: [u8; 6],
    sender: V4,
    target_mac: [u8; 6],
    target: V4,
}

/// An ARP packet that a pod sends: a question or an answer from its own address (RFC 826), or a
/// question from none, by which it asks whether somebody has an address already (RFC 5227).
#[inline(always)]
pub fn arp_from_pod<P: Packet, T: Tables<V4>>(packet: &P, tables: &T, ifindex: u32) -> Verdict {
    const REQUEST: u16 = 1;
    const REPLY: u16 = 2;
    let (Some(arp), Some(mac)) =
        (packet.load::<ArpPacket>(ETHERNET), packet.load::<[u8; 6]>(ETHERNET_SOURCE))
    else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let operation = arp.operation.get();
    if arp.kind != [0, 1, 0x08, 0, 6, 4] || !matches!(operation, REQUEST | REPLY) {
        return Verdict::Drop(DropReason::Malformed);
    }
    let Some(interface) = tables.interface(ifindex) else {
        return Verdict::Drop(DropReason::SpoofedSource);
    };
    let asks_for_itself = arp.sender == V4::UNSPECIFIED && operation == REQUEST;
    let own = arp.sender != V4::UNSPECIFIED && arp.sender == interface.address4;
    if !asks_for_itself && !own {
        return Verdict::Drop(DropReason::SpoofedSource);
    }
    if !is_same(arp.sender_mac, mac) {
        return Verdict::Drop(DropReason::SpoofedSource);
    }
    Verdict::Pass
}

/// Compares MAC addresses in one number: byte by byte, the kernel's verifier meets registers that were
/// never written.
#[inline(always)]
fn is_same(one: [u8; 6], other: [u8; 6]) -> bool {
    let number = |[a, b, c, d, e, f]: [u8; 6]| u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
    number(one) == number(other)
}

/// ICMP types by which routers lead hosts (RFC 792, RFC 4861).
mod kind {
    pub(super) const REDIRECT4: u8 = 5;
    pub(super) const ADVERTISED_ROUTER: u8 = 134;
    pub(super) const SOLICITED_NEIGHBOUR: u8 = 135;
    pub(super) const ADVERTISED_NEIGHBOUR: u8 = 136;
    pub(super) const REDIRECT6: u8 = 137;
}

/// Whether a packet may hide a message about neighbours behind more extension headers than are walked:
/// receivers take such messages only with the greatest hop limit (RFC 4861, 7.1; RFC 7113).
#[inline(always)]
pub(crate) fn may_be_hidden<A: Address>(headers: &Headers<A>) -> bool {
    A::WIDTH == V6::WIDTH && headers.hop_limit == 255 && is_extension(headers.protocol)
}

/// Whether a pod may send this ICMP message, whose source was found to be its own. Others than those
/// about neighbours and routers are none of this module's business.
#[inline(always)]
pub(crate) fn may_say<A: Ip, P: Packet>(
    packet: &P,
    headers: &Headers<A>,
    interface: &Interface,
) -> bool {
    // From bounds that were checked already the compiler concludes others, which the verifier cannot
    // follow it in: it is made to forget them.
    let packet = black_box(packet);
    let at = headers.transport;
    // The code beside the type comes along: the verifier does not follow the bounds of a single byte.
    let Some([kind, _]) = packet.load::<[u8; 2]>(at) else { return false };
    // Neither family's protocol means anything in the other.
    if A::WIDTH != V6::WIDTH {
        return headers.protocol != protocol::ICMP || kind != kind::REDIRECT4;
    }
    if headers.protocol != protocol::ICMPV6 {
        return true;
    }
    match kind {
        kind::ADVERTISED_ROUTER | kind::REDIRECT6 => false,
        kind::SOLICITED_NEIGHBOUR | kind::ADVERTISED_NEIGHBOUR => {
            let Some(target) = packet.load::<V6>(at + 8) else { return false };
            // Who asks without a source asks for an address it is about to take (RFC 4862, 5.4.2).
            let claims = kind == kind::ADVERTISED_NEIGHBOUR || headers.source == A::UNSPECIFIED;
            if claims && !is_own(&target, interface) {
                return false;
            }
            names_its_own_mac(packet, at + 24)
        }
        _ => true,
    }
}

/// A pod chooses its link-local addresses itself; they mean nothing beyond its link.
#[inline(always)]
fn is_own(target: &V6, interface: &Interface) -> bool {
    let global = *target == interface.address6 && *target != V6::UNSPECIFIED;
    global || is_link_local(target)
}

/// Whether each link-layer address among a message's options (RFC 4861, 4.6.1) is the frame's source.
/// More options than these few have no place in such a message, and what cannot be read is refused.
#[inline(always)]
fn names_its_own_mac<P: Packet>(packet: &P, options: u32) -> bool {
    const MAX_OPTIONS: u32 = 4;
    const SOURCE_MAC: u8 = 1;
    const TARGET_MAC: u8 = 2;
    let packet = black_box(packet); // as in `may_say`
    let (Some(length), Some(mac)) =
        (packet.load::<U16>(ETHERNET + 4), packet.load::<[u8; 6]>(ETHERNET_SOURCE))
    else {
        return false;
    };
    let end = ETHERNET + 40 + u32::from(length.get());
    let mut at = options;
    let mut i = 0;
    while i < MAX_OPTIONS && at < end {
        let Some([kind, length]) = packet.load::<[u8; 2]>(at) else { return false };
        if length == 0 {
            return false;
        }
        if matches!(kind, SOURCE_MAC | TARGET_MAC) {
            let Some(named) = packet.load::<[u8; 6]>(at + 2) else { return false };
            if !is_same(named, mac) {
                return false;
            }
        }
        at += u32::from(length) * 8;
        i += 1;
    }
    at >= end
}
