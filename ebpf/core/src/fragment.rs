//! Packets in pieces: the later ones follow the first.
//!
//! Only the first fragment has ports. If it belongs to a translated flow, it leaves a note of them for
//! those that follow, under what all of them carry: addresses, protocol and identification. Each of
//! them is then translated as the first was, by the record of the flow. Fragments of packets that
//! nothing changes need no note, and come and go in any order.
//!
//! What has no business after the first fragment is refused (RFC 1858, RFC 3128, RFC 5722): one that
//! reaches back into it could give its receiver other ports than those that were looked at here.
//! Whether the others overlap among themselves is for the receiver to see.

use fairway_abi::{Address, DropReason, FragmentKey, Fragments, protocol};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::Tables;
use crate::flow::Scratch;
use crate::packet::{Headers, Ip, Packet, Ports};

/// For how long a note is good: as long as receivers wait for the rest (`ipfrag_time` of Linux).
pub const LIFE: u32 = 30;

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What all fragments of a packet have in common, network order.
    pub identification: [u8; 4],
    /// Where it begins, in bytes from the end of the network header.
    pub begin: u32,
    /// Where it ends.
    pub end: u32,
}

/// Finds the ports of a fragment: in itself if it is the first, else where that left them. A later one
/// whose first did not pass, or was not translated, stays without.
#[inline(always)]
pub fn enter<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    tables: &T,
    headers: &mut Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<(), DropReason> {
    let piece = A::piece(packet, headers).ok_or(DropReason::Malformed)?;
    scratch.fragment = FragmentKey {
        source: headers.source,
        destination: headers.destination,
        identification: piece.identification,
        protocol: headers.protocol,
        reserved: [0; 3],
    };
    scratch.first_end = piece.end;
    if piece.begin == 0 {
        return first(packet, headers, piece.end);
    }
    let Some(note) = tables.fragments(&scratch.fragment) else { return Ok(()) };
    if tables.seconds().wrapping_sub(note.noted.get()) > LIFE {
        return Ok(());
    }
    if piece.begin < note.first_end.get() {
        return Err(DropReason::FragmentOverlap);
    }
    headers.source_port = note.source_port;
    headers.destination_port = note.destination_port;
    headers.ports = Ports::Noted;
    Ok(())
}

/// The first fragment must have all of a transport header that has ports.
#[inline(always)]
fn first<A: Ip, P: Packet>(
    packet: &P,
    headers: &mut Headers<A>,
    end: u32,
) -> Result<(), DropReason> {
    let header = match headers.protocol {
        protocol::TCP => 20,
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
        _ => 0,
    };
    headers.ports = Ports::None;
    if headers.protocol == protocol::SCTP {
        // Its checksum changes with the length of the whole packet (`crate::sctp`), which is not known
        // yet. Its senders make packets as small as the path asks.
        return Ok(());
    }
    if end < header || A::parse_transport(packet, headers).is_err() {
        return Err(DropReason::FragmentTiny);
    }
    if matches!(headers.ports, Ports::Known) {
        headers.ports = Ports::First;
    }
    Ok(())
}

/// Leaves a note of the first fragment at hand for those that follow.
#[inline(always)]
pub fn note<A: Address, T: Tables<A>>(tables: &T, headers: &Headers<A>, scratch: &Scratch<A>) {
    let note = Fragments {
        source_port: headers.source_port,
        destination_port: headers.destination_port,
        first_end: U32::new(scratch.first_end),
        noted: U32::new(tables.seconds()),
    };
    tables.note_fragments(&scratch.fragment, &note);
}

/// Where IPv4 keeps it (RFC 791, 3.1).
#[inline(always)]
pub(crate) fn piece4<P: Packet>(packet: &P, network: u32, transport: u32) -> Option<Piece> {
    let length: U16 = packet.load(network + 2)?;
    let [high, low]: [u8; 2] = packet.load(network + 4)?;
    let offset: U16 = packet.load(network + 6)?;
    let begin = u32::from(offset.get() & 0x1fff) * 8;
    let end = begin + u32::from(length.get()).checked_sub(transport - network)?;
    Some(Piece { identification: [0, 0, high, low], begin, end })
}

/// Where IPv6 keeps it: in the header in front of `transport` (RFC 8200, 4.5).
#[inline(always)]
pub(crate) fn piece6<P: Packet>(packet: &P, network: u32, transport: u32) -> Option<Piece> {
    let length: U16 = packet.load(network + 4)?;
    let offset: U16 = packet.load(transport - 6)?;
    let identification = packet.load(transport - 4)?;
    let begin = u32::from(offset.get() & 0xfff8);
    let headers = transport - network - 40;
    let end = begin + u32::from(length.get()).checked_sub(headers)?;
    Some(Piece { identification, begin, end })
}
