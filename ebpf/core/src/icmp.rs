//! ICMP errors about translated packets (RFC 5508, RFC 5597's requirements for NATs).
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

use fairway_abi::{DropReason, FlowKey, protocol};
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::Tables;
use crate::checksum::{Difference, adjust};
use crate::flow::{Scratch, translation_of};
use crate::packet::{
    Covers, ETHERNET, Headers, Ip, Message, Packet, Ports, Translation, adjust_complete_checksum,
};
use crate::path::Verdict;
use crate::tables::Stage;

/// Where the quoted packet begins, from an ICMP header on.
const QUOTE: u32 = 8;

/// Reads the packet that an error quotes into `scratch`; false if nothing of it can be translated.
#[inline(always)]
pub fn read_quote<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> bool {
    match quoted_headers(&Quoted::in_error(packet, headers)) {
        Some(quoted) => {
            scratch.quoted = quoted;
            true
        }
        None => false,
    }
}

/// The headers of a quoted packet, of which there may be no more than eight bytes of transport
/// header (RFC 792).
#[inline(always)]
fn quoted_headers<A: Ip, P: Packet>(packet: &P) -> Option<Headers<A>> {
    let mut headers = A::parse_network(packet).ok()?;
    if matches!(headers.ports, Ports::Fragment) {
        return None;
    }
    let at = headers.transport;
    match headers.protocol {
        protocol::TCP | protocol::UDP => {
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
        reserved: [0; 3],
    };
    let translation = &mut scratch.translation;
    let mut see =
        |stage| tables.see_flow(stage, &scratch.key, |flow| *translation = translation_of(flow));
    if !see(Stage::Established) && !see(Stage::HalfOpen) {
        return false;
    }
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
    let mut change = translate_quote(&mut Quoted::in_error(packet, headers), quoted, translation)?;
    let outer = A::write(packet, headers, complainant, &translation.destination, hop)?;
    if headers.protocol == protocol::ICMPV6 {
        change = change.and(outer); // the pseudo header (RFC 4443, 2.3)
    }
    let at = headers.transport + 2;
    let field: [u8; 2] = packet.load(at)?;
    packet.store(at, adjust(field, change))
}

/// Makes of a quoted packet the one that `answer` is the translated answer to; says what that
/// changes in a sum over all of it.
#[inline(always)]
fn translate_quote<A: Ip, P: Packet>(
    packet: &mut P,
    quoted: &Headers<A>,
    answer: &Translation<A>,
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
    let echo = !matches!(quoted.protocol, protocol::TCP | protocol::UDP);
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
    // It may lie behind the end of the quote.
    if let Some(before) = packet.load::<[u8; 2]>(at + checksum) {
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
