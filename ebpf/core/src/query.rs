//! Queries of the DNS that are answered where pods send them: those for the addresses of Services.
//!
//! ```text
//! is_query ─► copy ─► measure, parse ─► look_up: a name of the table? may the pod ask? ─► compose ─► turn the packet round
//! ```
//!
//! What is not answered is left as it is, whatever the reason, and goes on to the DNS' server. That one answers
//! the same, byte for byte, to the same query. So nothing here has to be complete: a query is left alone whose
//! answer would not be longer than it is itself, for one, as a packet's end is only ever moved outwards. (Of a
//! packet that is to be shortened, a sum over all of it may be known, which would have to be changed, too.)
//!
//! Who may not ask is not answered either, and the packet goes the way on which it is refused.
//!
//! The kernel's programs call the steps one by one, each on a stack of its own. What goes from one to the next
//! lies in a [`Room`].
#![expect(clippy::cast_possible_truncation, reason = "messages have a few bytes")]

use fairway_abi::{
    DropReason, NameAddresses, NameKey, RESOLVER_PORT, Zone, answered, frontend, protocol, scope,
};
use zerocopy::network_endian::U16;

use crate::dns::{self, Counts, HEADER, Message, flag, kind, rcode};
use crate::flow::Scratch;
use crate::icmp::Quotable;
use crate::packet::{Covers, Difference, ETHERNET, Headers, Ip, Ports};
use crate::path::{NextHop, Verdict};
use crate::policy;
use crate::tables::Tables;

/// Bytes of a UDP header (RFC 768).
const UDP: u32 = 8;

/// What a query is read into, and its answer's records are written to. Plain data without holes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Room {
    /// The message, and what was there before behind it.
    bytes: [u8; Self::BYTES],
    name: NameKey,
    records: [u8; Self::RECORDS],
    /// Bytes of the message.
    length: u32,
    /// Bytes of the records.
    answer: u32,
    addresses: NameAddresses,
    zone: Zone,
    /// A sum of [`answered`].
    kind: u32,
    /// Bytes from the message's first to the question's last.
    end: u32,
    /// As in [`dns::Query`].
    id: [u8; 2],
    flags: u16,
    /// Whether the client has EDNS, and wants signatures; 0 or 1.
    edns: u16,
    dnssec: u16,
}

impl Room {
    /// A power of two, as the kernel's copies have it.
    const BYTES: usize = 256;
    /// Of what is looked at in one piece.
    const PIECE: usize = 16;
    /// A power of two as well.
    const RECORDS: usize = 128;

    /// Nothing was read yet.
    pub const EMPTY: Self = Self {
        bytes: [0; Self::BYTES],
        name: NameKey([[0; 8]; NameKey::CHUNKS]),
        records: [0; Self::RECORDS],
        length: 0,
        answer: 0,
        addresses: NameAddresses { address4: [0; 4], address6: [0; 16] },
        zone: Zone { length: 0, ttl: 0, serial: 0 },
        kind: 0,
        end: 0,
        id: [0; 2],
        flags: 0,
        edns: 0,
        dnssec: 0,
    };
}

/// The longest query that is read: a name of the table, EDNS, and few options.
const LONGEST: u32 = (Room::BYTES - Room::PIECE) as u32;

/// A message in a [`Room`].
struct Copied<'a> {
    bytes: &'a [u8; Room::BYTES],
    length: u32,
}

impl Message for Copied<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        const { assert!(N <= Room::PIECE) };
        if at + N as u32 > self.length {
            return None;
        }
        // No message is longer than this; the verifier sees it here.
        let at = at as usize & (Room::BYTES - 1);
        if at > Room::BYTES - Room::PIECE {
            return None;
        }
        self.bytes.get(at..)?.first_chunk().copied()
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.length
    }

    /// There is always room for it, whatever lies there.
    #[inline(always)]
    fn piece(&self, at: u32) -> [u8; 8] {
        let at = at as usize & (Room::BYTES - 1);
        self.bytes.get(at..).and_then(|from| from.first_chunk()).copied().unwrap_or_default()
    }
}

/// Whether a packet may be a query.
#[inline(always)]
pub fn is_query<A>(headers: &Headers<A>) -> bool {
    headers.destination_port.get() == RESOLVER_PORT
        && headers.protocol == protocol::UDP
        && matches!(headers.ports, Ports::Known)
}

/// Makes of a packet that [`is_query`] and comes from a pod the answer to it; the verdict then sends it back.
/// `None`: it is not answered here, and has not changed.
pub fn answer<A: Ip, P: Quotable, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> Option<Verdict> {
    let mut room = Room::EMPTY;
    let found = copy(packet, tables, headers, &mut room)
        && measure(&mut room)
        && parse(&mut room)
        && look_up(tables, headers, &mut room, scratch);
    if !found {
        return None;
    }
    compose(&mut room);
    turn(packet, tables, headers, &room, scratch)
}

/// Copies the message of a packet that is for an agent. False, of this step and each that follows: the packet
/// is not answered here.
#[inline(always)]
pub fn copy<A: Ip, P: Quotable, T: Tables<A>>(
    packet: &P,
    tables: &T,
    headers: &Headers<A>,
    room: &mut Room,
) -> bool {
    if !is_for_resolver(tables, headers) {
        return false;
    }
    let Some(length) = message_length(packet, headers) else { return false };
    room.length = length;
    packet.read(headers.transport + UDP, length, &mut room.bytes).is_some()
}

/// Whether a packet is for an agent: at an address of this node's, or of one that its socket was led to while this
/// node's is away, or at that of a Service in whose place they answer.
#[inline(always)]
pub fn is_for_resolver<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> bool {
    let is_of =
        |flags: u32| flags & (frontend::RESOLVER | frontend::SOURCE_RANGES) == frontend::RESOLVER;
    policy::has_resolver(tables, &headers.destination)
        || tables.frontend(&headers.frontend(scope::INTERNAL)).is_some_and(|of| is_of(of.flags))
}

/// How long the message is in a packet that holds nothing else: no options, nothing behind it.
#[inline(always)]
fn message_length<A: Ip, P: Quotable>(packet: &P, headers: &Headers<A>) -> Option<u32> {
    let udp: U16 = packet.load(headers.transport + 4)?;
    let length = u32::from(udp.get());
    let whole = headers.transport + length;
    if headers.transport != ETHERNET + A::FIXED
        || ETHERNET + A::network_length(packet)? != whole
        || packet.length() != whole
        || length < UDP
        || length - UDP > LONGEST
    {
        return None;
    }
    Some(length - UDP)
}

/// Finds the end of the question's name. A step of its own, as each number of labels is a way of its own through it,
/// and the steps that follow need not be checked for each.
#[inline(always)]
pub fn measure(room: &mut Room) -> bool {
    let message = Copied { bytes: &room.bytes, length: room.length };
    let Some(length) = dns::name_length(&message) else { return false };
    room.end = length;
    true
}

/// Reads what is asked for; likewise.
#[inline(always)]
pub fn parse(room: &mut Room) -> bool {
    let message = Copied { bytes: &room.bytes, length: room.length };
    let Ok(query) = dns::parse_named(&message, room.end, &mut room.name.0) else { return false };
    let has_addresses = matches!(query.kind, kind::A | kind::AAAA) && query.class == dns::IN;
    if !has_addresses || query.edns.is_some_and(|edns| edns.version != 0) {
        return false;
    }
    room.kind = if query.kind == kind::A { 0 } else { answered::AAAA };
    room.end = u32::from(HEADER + query.name) + 4;
    room.id = query.id;
    room.flags = query.flags;
    room.edns = query.edns.is_some().into();
    room.dnssec = query.edns.is_some_and(|edns| edns.dnssec).into();
    true
}

/// Looks up the name, and whether the pod may ask for it, which is to be answered: that is left in `scratch`.
#[inline(always)]
pub fn look_up<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    room: &mut Room,
    scratch: &mut Scratch<A>,
) -> bool {
    room.zone = tables.zone();
    if room.zone.length == 0 {
        return false;
    }
    let Some(addresses) = tables.name_addresses(&room.name) else { return false };
    room.addresses = addresses;
    let is_there =
        if room.kind == 0 { addresses.address4 != [0; 4] } else { addresses.address6 != [0; 16] };
    let family = if size_of::<A>() == 16 { answered::BY_V6 } else { 0 };
    room.kind += family + if is_there { 0 } else { answered::NO_DATA };
    let Some(pod) = tables.pod(&headers.source) else { return false };
    scratch.decision = NextHop::<A>::pod(pod).decision();
    policy::allows_query(tables, headers, scratch)
}

/// Writes what comes behind the question: a record and, if the client has EDNS, what is said to that.
#[inline(always)]
pub fn compose(room: &mut Room) {
    let Room { records, addresses, zone, kind, end, edns, dnssec, .. } = room;
    *records = [0; Room::RECORDS];
    let edns = (*edns != 0).then_some(*dnssec != 0);
    room.answer = if *kind & answered::NO_DATA != 0 {
        // The zone's name ends with the question's.
        let of_zone = (*end - 4 - zone.length) as u16;
        put(records, dns::soa(of_zone, zone.ttl, zone.serial), edns)
    } else if *kind & answered::AAAA != 0 {
        put(records, dns::aaaa(zone.ttl, addresses.address6), edns)
    } else {
        put(records, dns::a(zone.ttl, addresses.address4), edns)
    };
}

/// Writes a record and EDNS, where there are zeros. How many bytes they are.
#[inline(always)]
fn put<const N: usize>(
    records: &mut [u8; Room::RECORDS],
    record: [u8; N],
    edns: Option<bool>,
) -> u32 {
    const { assert!(N.is_multiple_of(2) && N + dns::OPT_SIZE <= SUMMED) };
    let (first, rest) = records.split_at_mut(N);
    first.copy_from_slice(&record);
    let Some(dnssec) = edns else { return N as u32 };
    if let Some(place) = rest.first_chunk_mut() {
        *place = dns::opt(dnssec, rcode::NO_ERROR);
    }
    (N + dns::OPT_SIZE) as u32
}

/// Makes the packet its own answer, counts that, and answers the verdict that sends it back. `None`: it would not be
/// longer, or cannot become so, and has not changed.
#[inline(always)]
pub fn turn<A: Ip, P: Quotable, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<A>,
    room: &Room,
    scratch: &Scratch<A>,
) -> Option<Verdict> {
    let length = headers.transport + UDP + room.end + room.answer;
    if length <= packet.length() {
        return None;
    }
    packet.extend(length)?;
    tables.count_answer(room.kind);
    Some(match rewrite(packet, headers, room) {
        Some(()) => scratch.decision.verdict(),
        None => Verdict::Drop(DropReason::Rewrite),
    })
}

/// `None`: the packet may be half changed.
#[inline(always)]
fn rewrite<A: Ip, P: Quotable>(packet: &mut P, headers: &Headers<A>, room: &Room) -> Option<()> {
    let at = headers.transport + UDP;
    packet.write(at + room.end, room.answer, &room.records)?;
    let message = Copied { bytes: &room.bytes, length: room.length };
    let (was, is) = (sum_from(&message, room.end), sum_of(&room.records));
    // A sum of what begins within a word has its bytes the other way round.
    let turned = if room.end & 1 == 0 { 0 } else { 8 };
    let changed = Difference::default()
        .word(was.to_u32().rotate_right(turned), is.to_u32().rotate_right(turned));

    let flags = dns::answer_flags(room.flags, rcode::NO_ERROR) | flag::AUTHORITATIVE;
    let no_data = u16::from(room.kind & answered::NO_DATA != 0);
    let counts = Counts { answers: 1 - no_data, authorities: no_data, additional: room.edns };
    let header = dns::header(room.id, flags, counts);
    packet.store(at, header)?;
    let [_, _, f0, f1, _, _, an0, an1, ns0, ns1, ..] = header;
    let length = U16::new((UDP + room.end + room.answer) as u16);
    let before = U16::new((UDP + room.length) as u16);
    let lengths = Difference::default().half(before.to_bytes(), length.to_bytes());
    let segment = changed
        .and(lengths)
        .half(room.flags.to_be_bytes(), [f0, f1])
        .half_word([an0, an1])
        .half_word([ns0, ns1]);

    packet.store(headers.transport, headers.destination_port)?;
    packet.store(headers.transport + 2, headers.source_port)?;
    packet.store(headers.transport + 4, length)?;
    A::turn_around(packet, headers, headers.transport - ETHERNET + u32::from(length.get()))?;
    let (at, zero_is_none) = (headers.transport + 6, true);
    packet.adjust_transport_checksum(at, lengths, Covers::PseudoHeader { zero_is_none })?;
    packet.adjust_transport_checksum(at, segment, Covers::Segment { zero_is_none })
}

/// How many bytes of records there are at most, in whole pieces of eight.
const SUMMED: usize = 72;

/// The sum of all records.
#[inline(always)]
fn sum_of(records: &[u8; Room::RECORDS]) -> Difference {
    let mut sum = Difference::default();
    let mut at = 0;
    while at < SUMMED {
        let word = [records[at], records[at + 1], records[at + 2], records[at + 3]];
        sum = sum.sum(u32::from_ne_bytes(word));
        at += 4;
    }
    sum
}

/// The sum of what lies from `at` to the message's end, as if it began with a word. That is EDNS and its options,
/// and no longer than what takes their place.
#[inline(always)]
fn sum_from(message: &Copied<'_>, at: u32) -> Difference {
    const PIECES: u32 = SUMMED as u32 / 8;
    let mut sum = Difference::default();
    let mut piece = 0;
    while piece < PIECES {
        let here = at + piece * 8;
        if here >= message.length {
            break;
        }
        let mut bytes = u64::from_le_bytes(message.piece(here));
        let left = message.length - here;
        if left < 8 {
            bytes &= (1 << (8 * left)) - 1;
        }
        let [a, b, c, d, e, f, g, h] = bytes.to_le_bytes();
        let (one, other) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
        sum = sum.sum(one).sum(other);
        piece += 1;
    }
    sum
}
