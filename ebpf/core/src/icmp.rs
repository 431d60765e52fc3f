//! ICMP errors: those about translated packets on their way to who sent them (RFC 5508), and those that
//! the node sends itself, about packets that it forwards past its own stack.
//!
//! An error quotes the packet it complains about as that packet was seen where it failed: after
//! translation. Its sender knows it as it was before. The record for the other direction says how:
//! what it makes of an answer to the quoted packet, read backwards, is the packet as it was sent.
//!
//! ```text
//! sent       pod:p    ─► outside:q       record  (outside:q, node:r) ─► (outside:q, pod:p)
//! seen       node:r   ─► outside:q
//! error      router   ─► node    quotes  node:r ─► outside:q
//! delivered  router   ─► pod     quotes  pod:p  ─► outside:q
//! ```
#![expect(clippy::cast_possible_truncation, reason = "lengths of packets and MTUs have 16 bits")]

use fairway_abi::{Address, DropReason, FlowKey, V4, V6, flow as bits, protocol};
use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::Tables;
use crate::checksum::{Difference, adjust};
use crate::flow::{self, Scratch};
use crate::packet::{
    Covers, ETHERNET, Headers, Ip, Message, Packet, Ports, TcpHeader, Translation,
    adjust_complete_checksum, tcp, words,
};
use crate::path::{Decision, Verdict, next_hop};
use crate::tables::Stage;

/// Where the quoted packet begins, from an ICMP header on.
const QUOTE: u32 = 8;

/// How much of a transport header is quoted at least (RFC 792). Where the error itself ends earlier,
/// what seems to be quoted is a trailer that its link added to it, and no checksum covers.
const LEAST: u32 = 8;

/// Reads the packet that an error quotes into `scratch`; false if nothing of it can be translated.
#[inline(always)]
pub fn read_quote<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> bool {
    let Some(length) = A::length(packet) else { return false };
    let quote = Quoted::in_error(packet, headers);
    let Some(quoted) = quoted_headers(&quote) else { return false };
    if quote.by + quoted.transport + LEAST > ETHERNET + length {
        return false;
    }
    scratch.quoted = quoted;
    true
}

/// The headers of a quoted packet, of which there may be no more than eight bytes of transport
/// header (RFC 792).
#[inline(always)]
fn quoted_headers<A: Ip, P: Packet>(packet: &P) -> Option<Headers<A>> {
    let mut headers = A::parse_network(packet).ok()?;
    // Of fragments, the first one has the ports.
    if matches!(headers.ports, Ports::Fragment) && A::piece(packet, &headers)?.begin != 0 {
        return None;
    }
    let at = headers.transport;
    match headers.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            headers.source_port = packet.load(at)?;
            headers.destination_port = packet.load(at + 2)?;
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let [kind, _]: [u8; 2] = packet.load(at)?;
            let identifier: U16 = packet.load(at + 4)?;
            match A::message(headers.protocol, kind) {
                Message::EchoRequest => headers.source_port = identifier,
                Message::EchoReply => headers.destination_port = identifier,
                // There are no errors about errors.
                Message::Error | Message::Other => return None,
            }
        }
        _ => return None,
    }
    headers.ports = Ports::Known;
    Some(headers)
}

/// Looks for the flow that the quoted packet in `scratch` belongs to, and leaves there what the
/// error is to become; false if there is none. A router's complaint is no sign of life: it does not
/// make the flow younger.
#[inline(always)]
pub fn follow<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> bool {
    let quoted = &scratch.quoted;
    // It goes to whom the quoted packet shows as its sender.
    if quoted.source != headers.destination {
        return false;
    }
    let complainant_was_asked = quoted.destination == headers.source;
    scratch.key = FlowKey {
        source: quoted.destination,
        destination: quoted.source,
        source_port: quoted.destination_port,
        destination_port: quoted.source_port,
        protocol: quoted.protocol,
        ..FlowKey::BLANK
    };
    let mut see = |stage| {
        tables.see_flow(stage, &scratch.key, |flow| {
            scratch.state = flow.state.get();
            scratch.translation = flow::translation_of(flow);
        })
    };
    if !see(Stage::Established) && !see(Stage::HalfOpen) {
        return false;
    }
    flow::resolve(scratch);
    // Behind a translated destination there is nobody that the sender knows of. On the way to one
    // that keeps its address, each router is itself.
    let hidden = scratch.translation.source != scratch.key.source;
    scratch.complainant =
        if complainant_was_asked || hidden { scratch.translation.source } else { headers.source };
    true
}

/// Gives an error its translated addresses and the packet it quotes those it was sent with.
#[inline(always)]
pub fn apply<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    scratch: &Scratch<A>,
) -> Verdict {
    let leaves = scratch.decision.leaves();
    if leaves && headers.hop_limit <= 1 {
        return Verdict::Drop(DropReason::HopLimit);
    }
    match translate(packet, headers, scratch, leaves) {
        Some(()) => scratch.decision.verdict(),
        None => Verdict::Drop(DropReason::Rewrite),
    }
}

#[inline(always)]
fn translate<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    scratch: &Scratch<A>,
    hop: bool,
) -> Option<()> {
    let Scratch { quoted, translation, complainant, .. } = scratch;
    let end = ETHERNET + A::length(packet)?;
    let mut quote = Quoted::in_error(packet, headers);
    let mut change = translate_quote(&mut quote, quoted, translation, end)?;
    let outer = A::write(packet, headers, complainant, &translation.destination, hop)?;
    if headers.protocol == protocol::ICMPV6 {
        change = change.and(outer); // the pseudo header (RFC 4443, 2.3)
    }
    let at = headers.transport + 2;
    let field: [u8; 2] = packet.load(at)?;
    packet.store(at, adjust(field, change))
}

/// Makes of a quoted packet the one that `answer` is the translated answer to; says what that
/// changes in a sum over all of it. The error ends at `end`.
#[inline(always)]
fn translate_quote<A: Ip, P: Packet>(
    packet: &mut Quoted<'_, P>,
    quoted: &Headers<A>,
    answer: &Translation<A>,
    end: u32,
) -> Option<Difference> {
    let addresses = A::write(packet, quoted, &answer.destination, &answer.source, false)?;
    let (source_port, destination_port) = (answer.destination_port, answer.source_port);
    let ports = Difference::default()
        .half(quoted.source_port.to_bytes(), source_port.to_bytes())
        .half(quoted.destination_port.to_bytes(), destination_port.to_bytes());
    // The checksum of an IPv4 header takes back what its addresses add.
    let v6 = size_of::<A>() == 16;
    let mut change = if v6 { addresses.and(ports) } else { ports };

    let at = quoted.transport;
    let echo = matches!(quoted.protocol, protocol::ICMP | protocol::ICMPV6);
    let checksum = match quoted.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 2,
    };
    if echo {
        let request = quoted.source_port != U16::ZERO || source_port != U16::ZERO;
        packet.store(at + 4, if request { source_port } else { destination_port })?;
    } else {
        packet.store(at, source_port)?;
        packet.store(at + 2, destination_port)?;
    }
    // It may lie behind the end of the quote. SCTP's is behind what has to be quoted, and covers what is
    // not: nobody can check it, so it stays.
    if quoted.protocol == protocol::SCTP {
        return Some(change);
    }
    let is_quoted = packet.by + at + checksum + 2 <= end;
    if let Some(before) = packet.load::<[u8; 2]>(at + checksum)
        && is_quoted
    {
        let covered = if echo && !v6 { ports } else { addresses.and(ports) };
        let covers = Covers::Segment { zero_is_none: quoted.protocol == protocol::UDP };
        adjust_complete_checksum(packet, at + checksum, covered, covers)?;
        change = change.half(before, packet.load(at + checksum)?);
    }
    Some(change)
}

/// The packet that an error quotes, its network header where a frame has it.
struct Quoted<'a, P> {
    error: &'a mut P,
    /// How much further back it lies.
    by: u32,
}

impl<'a, P: Packet> Quoted<'a, P> {
    #[inline(always)]
    fn in_error<A>(error: &'a mut P, headers: &Headers<A>) -> Self {
        Self { error, by: headers.transport + QUOTE - ETHERNET }
    }
}

impl<P: Packet> Packet for Quoted<'_, P> {
    #[inline(always)]
    fn load<T: FromBytes + Unaligned>(&self, at: u32) -> Option<T> {
        self.error.load(self.by + at)
    }

    #[inline(always)]
    fn store<T: IntoBytes + Immutable + Unaligned>(&mut self, at: u32, value: T) -> Option<()> {
        self.error.store(self.by + at, value)
    }

    /// What is quoted is data: no device will finish its sum.
    #[inline(always)]
    fn adjust_transport_checksum(
        &mut self,
        at: u32,
        difference: Difference,
        covers: Covers,
    ) -> Option<()> {
        adjust_complete_checksum(self, at, difference, covers)
    }
}

/// A packet that may become an error about itself.
pub trait Quotable: Packet {
    /// How long the frame is.
    fn length(&self) -> u32;
    /// The sum (RFC 1071) of `length` bytes from `at` on, wherever they lie; `at` is even.
    fn sum(&self, at: u32, length: u32) -> Option<Difference>;
    /// Shortens the frame to `keep` bytes behind its Ethernet header, and puts a header in front of
    /// them. `None`: it may be half changed and must be dropped.
    fn precede<T: IntoBytes + Immutable>(&mut self, keep: u32, header: &T) -> Option<()>;
    /// Copies `length` bytes from `at` on, wherever they lie, to the front of `to`. `None`: there are not so many, or
    /// none are asked for; `N` is a power of two.
    fn read<const N: usize>(&self, at: u32, length: u32, to: &mut [u8; N]) -> Option<()>;
    /// Copies the first `length` bytes of `from` to where they are `at`. `None` as above.
    fn write<const N: usize>(&mut self, at: u32, length: u32, from: &[u8; N]) -> Option<()>;
    /// Shortens the frame to `length` bytes. `None` as above.
    fn truncate(&mut self, length: u32) -> Option<()>;
    /// Lengthens it to so many; all of it can be reached then. `None`: nothing has changed.
    fn extend(&mut self, length: u32) -> Option<()>;
    /// Makes room of so many bytes, all zero, behind the fixed part of the network header; or takes away
    /// what is there, if `by` is negative. `None`: nothing has changed.
    fn resize(&mut self, by: i32) -> Option<()>;
    /// As [`Packet::store`], for bytes that a sum of the whole packet may cover which its device has made.
    fn overwrite<T: IntoBytes + Immutable>(&mut self, at: u32, value: &T) -> Option<()>;
}

/// What [`complain`] calls the end of a hop limit, in place of an MTU.
pub const TIME_EXCEEDED: u32 = 0;
/// What it calls a Service's port that nobody serves.
pub const UNREACHABLE: u32 = 1;

/// Makes of a packet that cannot go on the ICMP error that tells its sender (RFC 792, RFC 4443): that
/// it is too big for a way of this MTU, that its hop limit ended ([`TIME_EXCEEDED`]), or that nobody
/// serves the port ([`UNREACHABLE`]), which TCP is told by a reset. The packet is as it came; answers
/// where the error goes, which is then also the decision in `scratch`.
///
/// An IPv4 packet that may be fragmented ([`may_exceed`] aside) is left to the host's stack, which does
/// so; unless it is to be translated, which the stack cannot do. Its sender is told then, as if it had
/// asked not to be fragmented.
pub fn complain<A: Ip, P: Quotable, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
    mtu: u32,
) -> Verdict {
    answer(packet, tables, headers, scratch, mtu)
        .unwrap_or_else(|| compose(packet, headers, scratch, mtu))
}

/// The first step of [`complain`]; `None`: there is to be an error, and [`compose`] makes it.
#[inline(always)]
pub fn answer<A: Ip, P: Quotable, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
    mtu: u32,
) -> Option<Verdict> {
    let reason = reason(mtu);
    let too_big = matches!(reason, DropReason::TooBig);
    // Nothing was decided on what nobody serves, and nobody else would tell its sender.
    let stays = !matches!(reason, DropReason::NoEndpoint) && !Decision::changes(headers, scratch);
    if too_big && stays && !A::forbids_fragments(packet) {
        return Some(Verdict::Pass);
    }
    if !may_be_complained_about(headers) {
        return Some(Verdict::Drop(reason));
    }
    // Who brought the packet knows what its sender takes it for.
    let brought = scratch.errand.state & bits::BY_PEER != 0;
    let back = if brought { scratch.errand.source } else { headers.source };
    let next = next_hop(tables, &back);
    if matches!(reason, DropReason::NoEndpoint) && headers.protocol == protocol::TCP {
        // The reset would be a fragment, too.
        let whole = matches!(headers.ports, Ports::Known);
        if !whole || !tables.may_complain() || reset(packet, headers).is_none() {
            return Some(Verdict::Drop(reason));
        }
        scratch.decision = next.decision();
        return Some(scratch.decision.verdict());
    }
    let source = if next.source == A::UNSPECIFIED {
        A::masquerade(&tables.config().unwrap_or_default())
    } else {
        next.source
    };
    if source == A::UNSPECIFIED {
        // The host's stack takes the same way, and has addresses of its own.
        return Some(if stays { Verdict::Pass } else { Verdict::Drop(reason) });
    }
    if !tables.may_complain() {
        // What nobody serves was counted already.
        let limited = !matches!(reason, DropReason::NoEndpoint);
        return Some(Verdict::Drop(if limited { DropReason::IcmpRateLimit } else { reason }));
    }
    scratch.complainant = source;
    scratch.decision = next.decision();
    None
}

/// The second step of [`complain`], which needs nothing of the first but what that left in `scratch`.
#[inline(always)]
pub fn compose<A: Ip, P: Quotable>(
    packet: &mut P,
    headers: &Headers<A>,
    scratch: &Scratch<A>,
    mtu: u32,
) -> Verdict {
    match write(packet, headers, scratch.complainant, mtu) {
        Some(()) => scratch.decision.verdict(),
        None => Verdict::Drop(reason(mtu)),
    }
}

/// What [`complain`] calls an MTU, as the reason for which a packet cannot go on.
#[inline(always)]
fn reason(mtu: u32) -> DropReason {
    match mtu {
        TIME_EXCEEDED => DropReason::HopLimit,
        UNREACHABLE => DropReason::NoEndpoint,
        _ => DropReason::TooBig,
    }
}

/// Whether a packet may go its way although it is bigger than that way's MTU: it may be fragmented, and
/// either a pod receives it, for which it is not too long, or it is the tunnel's outside that is cut.
///
/// SCTP may also if it forbids fragments. A chunk of it that was sent once stays as long as it is
/// (RFC 9260, 6.9): told of the MTU, its sender would send fragments, which are not translated.
#[inline(always)]
pub fn may_exceed<A: Ip, P: Packet>(
    packet: &P,
    headers: &Headers<A>,
    scratch: &Scratch<A>,
) -> bool {
    let takes_all = matches!(scratch.decision.verdict(), Verdict::Pod(_) | Verdict::Tunnel(_));
    takes_all && (headers.protocol == protocol::SCTP || !A::forbids_fragments(packet))
}

/// RFC 1122, 3.2.2 and RFC 4443, 2.4: nobody is told of what became of an error, of a fragment but
/// the first, or of what has no single sender.
#[inline(always)]
fn may_be_complained_about<A: Ip>(headers: &Headers<A>) -> bool {
    let icmp = matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6);
    let ports = match headers.ports {
        Ports::Known | Ports::First => true,
        // Rather nothing about an unknown message than an error about an error.
        Ports::None => !icmp,
        Ports::Error | Ports::Noted | Ports::Fragment => false,
    };
    ports && headers.source.is_forwarded()
}

#[inline(always)]
fn write<A: Ip, P: Quotable>(
    packet: &mut P,
    headers: &Headers<A>,
    source: A,
    mtu: u32,
) -> Option<()> {
    let whole = A::network_length(packet)?;
    let there = packet.length().checked_sub(ETHERNET)?;
    let mut keep = if whole < there { whole } else { there };
    if keep > A::QUOTE_LIMIT {
        keep = A::QUOTE_LIMIT;
    }
    // Whatever finishes a checksum makes the sum of its segment, as far as it is quoted, the complement
    // of what is in the field now.
    let (summed, rest) = match unfinished_checksum(packet, headers, whole) {
        Some(field) => (headers.transport - ETHERNET, [!field[0], !field[1]]),
        None => (keep, [0; 2]),
    };
    let quote = packet.sum(ETHERNET, summed)?.half_word(rest);
    packet.precede(keep, &A::compose(source, headers.source, mtu, keep, quote))
}

/// Makes of a TCP segment the reset that answers it (RFC 9293, 3.10.7.1); `None` if it is one itself.
/// The headers stay where they are, since a device may be about to finish their checksum.
#[inline(always)]
fn reset<A: Ip, P: Quotable>(packet: &mut P, headers: &Headers<A>) -> Option<()> {
    const LENGTH: u32 = size_of::<TcpHeader>() as u32;
    let segment: TcpHeader = packet.load(headers.transport)?;
    if segment.flags & tcp::RST != 0 {
        return None;
    }
    let whole = A::network_length(packet)?;
    let network = headers.transport - ETHERNET;
    let unfinished = unfinished_checksum(packet, headers, whole).is_some();
    let (sequence, acknowledgement, flags) = if segment.flags & tcp::ACK != 0 {
        (segment.acknowledgement, U32::ZERO, tcp::RST)
    } else {
        let data = whole.wrapping_sub(network + u32::from(segment.offset >> 4) * 4);
        let ends =
            u32::from(segment.flags & tcp::SYN != 0) + u32::from(segment.flags & tcp::FIN != 0);
        let next = segment.sequence.get().wrapping_add(data).wrapping_add(ends);
        (U32::ZERO, U32::new(next), tcp::RST | tcp::ACK)
    };
    let mut answer = TcpHeader {
        source_port: segment.destination_port,
        destination_port: segment.source_port,
        sequence,
        acknowledgement,
        offset: (LENGTH as u8 / 4) << 4,
        flags,
        window: U16::ZERO,
        checksum: [0; 2],
        urgent: U16::ZERO,
    };
    let pseudo = Difference::default()
        .sum(headers.source.sum())
        .sum(headers.destination.sum())
        .half_word([0, protocol::TCP])
        .sum(LENGTH.to_be());
    answer.checksum = if unfinished {
        pseudo.to_u16().to_ne_bytes()
    } else {
        let [a, b, c, d, e]: [u32; 5] = zerocopy::transmute!(answer);
        (!pseudo.sum(a).sum(b).sum(c).sum(d).sum(e).to_u16()).to_ne_bytes()
    };
    A::turn_around(packet, headers, network + LENGTH)?;
    packet.store(headers.transport, answer)?;
    packet.truncate(headers.transport + LENGTH)
}

/// The field of a checksum that a device is still to finish: it holds the sum of the pseudo header.
#[inline(always)]
fn unfinished_checksum<A: Ip, P: Packet>(
    packet: &P,
    headers: &Headers<A>,
    whole: u32,
) -> Option<[u8; 2]> {
    let at = match headers.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return None,
    };
    let field: [u8; 2] = packet.load(headers.transport + at)?;
    let length = whole.wrapping_sub(headers.transport - ETHERNET);
    let pseudo = Difference::default()
        .sum(headers.source.sum())
        .sum(headers.destination.sum())
        .half_word([0, headers.protocol])
        .sum(length.to_be());
    (pseudo.to_u16().to_ne_bytes() == field).then_some(field)
}

/// An IP version's part in making ICMP errors.
pub trait Compose: Address {
    /// The headers in front of what an error quotes.
    type Header: IntoBytes + Immutable;
    /// How much is quoted at most: with its headers, an error fits through any link (RFC 1812,
    /// 4.3.2.3; RFC 4443, 2.4).
    const QUOTE_LIMIT: u32;

    /// How long the packet is from its network header on, as that says.
    fn network_length<P: Packet>(packet: &P) -> Option<u32>;
    /// Whether the packet may not be fragmented on its way.
    fn forbids_fragments<P: Packet>(packet: &P) -> bool;
    /// The sum of an address, as the kernel's sums.
    fn sum(&self) -> u32;
    /// Sends a packet back from where it was to go to where it came from, with this length from its
    /// network header on; what it carries is the caller's to write.
    fn turn_around<P: Packet>(packet: &mut P, headers: &Headers<Self>, length: u32) -> Option<()>;
    /// The headers of an error about `quoted` bytes with that sum; `mtu` as for [`complain`].
    fn compose(source: Self, to: Self, mtu: u32, quoted: u32, quote: Difference) -> Self::Header;
}

/// Hops that an error may take.
const HOP_LIMIT: u8 = 64;

/// RFC 791 and RFC 792.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct Message4 {
    version_and_length: u8,
    /// Internetwork control (RFC 1812, 4.3.2.5).
    traffic_class: u8,
    total_length: U16,
    identification: U16,
    flags_and_offset: U16,
    hop_limit: u8,
    protocol: u8,
    header_checksum: [u8; 2],
    source: V4,
    destination: V4,
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    unused: U16,
    mtu: U16,
}

impl Compose for V4 {
    type Header = Message4;
    const QUOTE_LIMIT: u32 = 576 - size_of::<Message4>() as u32;

    #[inline(always)]
    fn network_length<P: Packet>(packet: &P) -> Option<u32> {
        packet.load::<U16>(ETHERNET + 2).map(|length| length.get().into())
    }

    #[inline(always)]
    fn forbids_fragments<P: Packet>(packet: &P) -> bool {
        const DONT_FRAGMENT: u16 = 1 << 14;
        packet.load::<U16>(ETHERNET + 6).is_some_and(|flags| flags.get() & DONT_FRAGMENT != 0)
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        u32::from_ne_bytes(*self)
    }

    #[inline(always)]
    fn turn_around<P: Packet>(packet: &mut P, headers: &Headers<Self>, length: u32) -> Option<()> {
        let before: [u8; 2] = packet.load(ETHERNET + 2)?;
        let sum: [u8; 2] = packet.load(ETHERNET + 10)?;
        let after = U16::new(length as u16).to_bytes();
        let change = Difference::default()
            .half(before, after)
            .half([headers.hop_limit, headers.protocol], [HOP_LIMIT, headers.protocol]);
        packet.store(ETHERNET + 2, after)?;
        packet.store(ETHERNET + 8, HOP_LIMIT)?;
        packet.store(ETHERNET + 10, adjust(sum, change))?;
        packet.store(ETHERNET + 12, headers.destination)?;
        packet.store(ETHERNET + 16, headers.source)
    }

    #[inline(always)]
    fn compose(source: Self, to: Self, mtu: u32, quoted: u32, quote: Difference) -> Message4 {
        const VERSION_AND_LENGTH: u8 = 0x45;
        const TRAFFIC_CLASS: u8 = 0xc0;
        const DONT_FRAGMENT: U16 = U16::new(1 << 14);
        // Time exceeded in transit; destination unreachable: port unreachable, fragmentation needed
        // (RFC 1191).
        let (kind, code, mtu) = match mtu {
            TIME_EXCEEDED => (11, 0, 0),
            UNREACHABLE => (3, 3, 0),
            mtu => (3, 4, mtu),
        };
        let mtu = U16::new(mtu as u16);
        let total_length = U16::new((quoted + size_of::<Message4>() as u32) as u16);
        let header = Difference::default()
            .half_word([VERSION_AND_LENGTH, TRAFFIC_CLASS])
            .half_word(total_length.to_bytes())
            .half_word(DONT_FRAGMENT.to_bytes())
            .half_word([HOP_LIMIT, protocol::ICMP])
            .sum(source.sum())
            .sum(to.sum());
        let message = quote.half_word([kind, code]).half_word(mtu.to_bytes());
        Message4 {
            version_and_length: VERSION_AND_LENGTH,
            traffic_class: TRAFFIC_CLASS,
            total_length,
            identification: U16::ZERO,
            flags_and_offset: DONT_FRAGMENT,
            hop_limit: HOP_LIMIT,
            protocol: protocol::ICMP,
            header_checksum: (!header.to_u16()).to_ne_bytes(),
            source,
            destination: to,
            kind,
            code,
            checksum: (!message.to_u16()).to_ne_bytes(),
            unused: U16::ZERO,
            mtu,
        }
    }
}

/// RFC 8200 and RFC 4443.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct Message6 {
    version_and_flow: [u8; 4],
    payload_length: U16,
    next_header: u8,
    hop_limit: u8,
    source: V6,
    destination: V6,
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    mtu: U32,
}

impl Compose for V6 {
    type Header = Message6;
    const QUOTE_LIMIT: u32 = 1280 - size_of::<Message6>() as u32;

    #[inline(always)]
    fn network_length<P: Packet>(packet: &P) -> Option<u32> {
        packet.load::<U16>(ETHERNET + 4).map(|length| u32::from(length.get()) + 40)
    }

    #[inline(always)]
    fn forbids_fragments<P: Packet>(_packet: &P) -> bool {
        true
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        let [a, b, c, d] = words(self);
        Difference::default().sum(a).sum(b).sum(c).sum(d).to_u32()
    }

    #[inline(always)]
    fn turn_around<P: Packet>(packet: &mut P, headers: &Headers<Self>, length: u32) -> Option<()> {
        packet.store(ETHERNET + 4, U16::new((length - 40) as u16))?;
        packet.store(ETHERNET + 7, HOP_LIMIT)?;
        packet.store(ETHERNET + 8, headers.destination)?;
        packet.store(ETHERNET + 24, headers.source)
    }

    #[inline(always)]
    fn compose(source: Self, to: Self, mtu: u32, quoted: u32, quote: Difference) -> Message6 {
        // Hop limit exceeded in transit; destination unreachable: port unreachable; packet too big.
        let (kind, code, mtu) = match mtu {
            TIME_EXCEEDED => (3, 0, 0),
            UNREACHABLE => (1, 4, 0),
            mtu => (2, 0, mtu),
        };
        let (mtu, length) = (U32::new(mtu), quoted + 8);
        let message = quote
            .sum(source.sum())
            .sum(to.sum())
            .sum(length.to_be())
            .half_word([0, protocol::ICMPV6])
            .half_word([kind, code])
            .sum(u32::from_ne_bytes(mtu.to_bytes()));
        Message6 {
            version_and_flow: [0x60, 0, 0, 0],
            payload_length: U16::new(length as u16),
            next_header: protocol::ICMPV6,
            hop_limit: HOP_LIMIT,
            source,
            destination: to,
            kind,
            code,
            checksum: (!message.to_u16()).to_ne_bytes(),
            mtu,
        }
    }
}

/// What one processor may still tell senders. An error costs more than the packet it is about, and
/// goes to whatever address that packet bore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    tokens: u32,
    /// When tokens were last added, in jiffies.
    filled: u32,
}

impl Bucket {
    /// How many errors may follow at once.
    pub const DEPTH: u32 = 50;

    /// Takes a token if there is one; each jiffy adds one.
    #[inline(always)]
    pub fn take(&mut self, now: u32) -> bool {
        let added = now.wrapping_sub(self.filled);
        self.filled = now;
        self.tokens = if added > Self::DEPTH { Self::DEPTH } else { self.tokens + added };
        if self.tokens > Self::DEPTH {
            self.tokens = Self::DEPTH;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_in_a_burst_and_then_one_a_jiffy() {
        let mut bucket = Bucket::default();
        let mut taken = |now, tries| (0..tries).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(1_000, 80), 50);
        assert_eq!(taken(1_001, 80), 1);
        assert_eq!(taken(1_011, 80), 10);
        assert_eq!(taken(9_000, 80), 50);
        assert_eq!(taken(9_000u32.wrapping_sub(1), 80), 50, "a clock that went round");
    }
}
