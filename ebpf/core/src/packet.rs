//! Reading and changing headers.

use fairway_abi::{
    Address, Config, DropReason, FlowKey, FrontendKey, Interface, PodRange, V4, V6, protocol,
};
use zerocopy::network_endian::{U16, U32};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, native_endian as ne, transmute,
};

pub use crate::checksum::Difference;
use crate::checksum::adjust;
use crate::direct::Named;
use crate::fragment::{self, Piece};
use crate::icmp::Compose;
use crate::sctp;

/// An Ethernet frame. `at` counts bytes from its first one.
///
/// An access outside the frame (in the kernel: outside its linear part) is `None`; nothing panics.
pub trait Packet {
    /// A copy of what lies there.
    fn load<T: FromBytes + Unaligned>(&self, at: u32) -> Option<T>;
    /// Overwrites what lies there.
    fn store<T: IntoBytes + Immutable + Unaligned>(&mut self, at: u32, value: T) -> Option<()>;
    /// Brings a transport checksum up to date with a change of `difference` to what it covers.
    ///
    /// A sender whose device finishes checksums leaves only the pseudo header's sum in the field;
    /// such a packet takes the change only if it is to that header.
    fn adjust_transport_checksum(
        &mut self,
        at: u32,
        difference: Difference,
        covers: Covers,
    ) -> Option<()>;
    /// As [`sctp::adjust`].
    #[inline(always)]
    fn adjust_sctp_checksum(field: [u8; 4], was: [U16; 2], is: [U16; 2], length: u32) -> [u8; 4] {
        sctp::adjust(field, was, is, length)
    }
}

/// What a changed byte that a transport checksum covers belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covers {
    /// The pseudo header: addresses.
    PseudoHeader {
        /// Zero in the field means that there is no checksum (UDP over IPv4, RFC 768).
        zero_is_none: bool,
    },
    /// The segment itself: ports.
    Segment {
        /// As above.
        zero_is_none: bool,
    },
}

/// Length of an Ethernet header; a VLAN tag never shows here, the kernel keeps it beside the frame.
pub const ETHERNET: u32 = 14;

/// What is read of a packet, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port; the identifier of an ICMP echo request; else 0.
    pub source_port: U16,
    /// Destination port; the identifier of an ICMP echo reply; else 0.
    pub destination_port: U16,
    /// IANA number of the transport protocol.
    pub protocol: u8,
    /// Flags of a TCP segment; [`tcp::ACK`] for the ICMP echo reply, which is an answer as well; else 0.
    pub tcp_flags: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// What the ports above are worth.
    pub ports: Ports,
    /// Where the transport header begins.
    pub transport: u32,
}

/// Whether a packet's ports can be read and changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// They are in the headers.
    Known,
    /// The same, but the packet is the first of several fragments, and the others will ask for them.
    First,
    /// The packet is a later fragment, and the first one left a note of them.
    Noted,
    /// A fragment that [`crate::fragment`] has not looked at, or has found nothing about.
    Fragment,
    /// An ICMP error has none, but the packet it quotes may.
    Error,
    /// The protocol has none that we translate.
    None,
}

impl Ports {
    /// Whether the flow of the packet can be named.
    #[inline(always)]
    pub fn are_known(self) -> bool {
        matches!(self, Self::Known | Self::First | Self::Noted)
    }
}

/// TCP flag bits (RFC 9293, 3.1).
pub mod tcp {
    /// No more data from this side.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 1 << 1;
    /// Ends it at once.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 1 << 4;
}

impl<A: Address> Headers<A> {
    /// Of no packet.
    pub const NOTHING: Self = Self {
        source: A::UNSPECIFIED,
        destination: A::UNSPECIFIED,
        source_port: U16::ZERO,
        destination_port: U16::ZERO,
        protocol: 0,
        tcp_flags: 0,
        hop_limit: 0,
        ports: Ports::None,
        transport: 0,
    };

    /// The flow this packet belongs to.
    #[inline(always)]
    pub fn flow(&self) -> FlowKey<A> {
        FlowKey {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
            ..FlowKey::BLANK
        }
    }

    /// The frontend this packet would ask for.
    #[inline(always)]
    pub fn frontend(&self, scope: u8) -> FrontendKey<A> {
        FrontendKey {
            address: self.destination,
            port: self.destination_port,
            protocol: self.protocol,
            scope,
        }
    }

    /// The translation that changes nothing.
    #[inline(always)]
    pub fn translation(&self) -> Translation<A> {
        Translation {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
        }
    }

    /// A TCP segment that opens a connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}

/// A packet's addresses and ports after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(target_arch = "bpf", repr(align(4)))]
pub struct Translation<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port (or echo request identifier).
    pub source_port: U16,
    /// Destination port (or echo reply identifier).
    pub destination_port: U16,
}

/// An IP version: where its fields are and what its special addresses mean.
pub trait Ip: Compose + Named {
    /// What announces it in an Ethernet header, network order.
    const ETHERTYPE: [u8; 2];

    /// Reads the headers of a packet that [`Self::ETHERTYPE`] announced.
    #[inline(always)]
    fn parse<P: Packet>(packet: &P) -> Result<Headers<Self>, DropReason> {
        let mut headers = Self::parse_network(packet)?;
        if !matches!(headers.ports, Ports::Fragment) {
            Self::parse_transport(packet, &mut headers)?;
        }
        Ok(headers)
    }

    /// Reads the transport header of a packet that has all of it: its ports and what they are worth.
    #[inline(always)]
    fn parse_transport<P: Packet>(
        packet: &P,
        headers: &mut Headers<Self>,
    ) -> Result<(), DropReason> {
        parse_transport(packet, headers)
    }

    /// Where a fragment belongs in its packet; `None` if its headers contradict each other.
    fn piece<P: Packet>(packet: &P, headers: &Headers<Self>) -> Option<Piece>;

    /// Reads the network header alone: no ports yet, and whether it is a fragment's.
    fn parse_network<P: Packet>(packet: &P) -> Result<Headers<Self>, DropReason>;

    /// What an ICMP message of this family is.
    fn message(protocol: u8, kind: u8) -> Message;

    /// Writes addresses and, if `hop` says so, a hop limit one lower, and brings the network
    /// header's own checksum up to date. Answers what the addresses changed for a pseudo header.
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        source: &Self,
        destination: &Self,
        hop: bool,
    ) -> Option<Difference>;

    /// Whether packets to this address are forwarded at all; others (multicast, link-local,
    /// loopback) stay on their link and are the host's business.
    fn is_forwarded(&self) -> bool;

    /// Whether packets to this address are to stay on their link, and hosts forward them all the same where
    /// they have a route: link-local ones of IPv4, as Linux sees them (RFC 3927, 2.7 forbids it).
    fn is_forwarded_from_link(&self) -> bool;

    /// The packet's length as its network header says, that header included.
    fn length<P: Packet>(packet: &P) -> Option<u32>;

    /// Whether this is an address by which a machine reaches itself.
    fn is_loopback(&self) -> bool;

    /// Whether the pod behind `interface` may send from this address to `destination`.
    fn may_send(&self, interface: &Interface, destination: &Self) -> bool;

    /// The node's masquerade address of this family.
    fn masquerade(config: &Config) -> Self;

    /// A pod's address of this family.
    fn of_interface(interface: &Interface) -> Self;

    /// The address as one of IPv6: of IPv4, `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
    fn to_v6(&self) -> V6;

    /// Whether the address is in a range that is known.
    fn is_within(&self, range: &PodRange<Self>) -> bool;
}

/// RFC 791, 3.1.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Ipv4Header {
    version_and_length: u8,
    traffic_class: u8,
    total_length: U16,
    identification: U16,
    flags_and_offset: U16,
    hop_limit: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: ne::U32,
    destination: ne::U32,
}

impl Ip for V4 {
    const ETHERTYPE: [u8; 2] = [0x08, 0x00];

    #[inline(always)]
    fn parse_network<P: Packet>(packet: &P) -> Result<Headers<Self>, DropReason> {
        const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;
        let ip: Ipv4Header = packet.load(ETHERNET).ok_or(DropReason::Malformed)?;
        let length = u32::from(ip.version_and_length & 0x0f) * 4;
        if ip.version_and_length >> 4 != 4 || length < 20 {
            return Err(DropReason::Malformed);
        }
        let mut headers = Headers {
            source: ip.source.get().to_ne_bytes(),
            destination: ip.destination.get().to_ne_bytes(),
            source_port: U16::ZERO,
            destination_port: U16::ZERO,
            protocol: ip.protocol,
            tcp_flags: 0,
            hop_limit: ip.hop_limit,
            ports: Ports::None,
            transport: ETHERNET + length,
        };
        if ip.flags_and_offset.get() & MORE_FRAGMENTS_OR_OFFSET != 0 {
            headers.ports = Ports::Fragment;
        }
        Ok(headers)
    }

    #[inline(always)]
    fn piece<P: Packet>(packet: &P, headers: &Headers<Self>) -> Option<Piece> {
        fragment::piece4(packet, ETHERNET, headers.transport)
    }

    #[inline(always)]
    fn message(protocol: u8, kind: u8) -> Message {
        match (protocol, kind) {
            (protocol::ICMP, 8) => Message::EchoRequest,
            (protocol::ICMP, 0) => Message::EchoReply,
            // Unreachable, source quench, time exceeded, parameter problem. A redirect tells of the
            // link it is on, and is nobody's beyond.
            (protocol::ICMP, 3 | 4 | 11 | 12) => Message::Error,
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        source: &Self,
        destination: &Self,
        hop: bool,
    ) -> Option<Difference> {
        let word = |address: &Self| u32::from_ne_bytes(*address);
        let addresses = Difference::default()
            .word(word(&headers.source), word(source))
            .word(word(&headers.destination), word(destination));
        let mut header = addresses;
        if hop {
            let now = headers.hop_limit.wrapping_sub(1);
            header = header.half([headers.hop_limit, headers.protocol], [now, headers.protocol]);
            packet.store(ETHERNET + 8, now)?;
        }
        let sum: [u8; 2] = packet.load(ETHERNET + 10)?;
        packet.store(ETHERNET + 10, adjust(sum, header))?;
        packet.store(ETHERNET + 12, *source)?;
        packet.store(ETHERNET + 16, *destination)?;
        Some(addresses)
    }

    #[inline(always)]
    fn is_forwarded(&self) -> bool {
        let address = u32::from_be_bytes(*self);
        let first = address >> 24;
        // 224/4 multicast and above (RFC 5771, RFC 1112, broadcast), 169.254/16 (RFC 3927),
        // 127/8 and 0/8 (RFC 1122).
        first < 224 && first != 127 && first != 0 && address >> 16 != 0xa9fe
    }

    #[inline(always)]
    fn is_forwarded_from_link(&self) -> bool {
        self[0] == 169 && self[1] == 254
    }

    #[inline(always)]
    fn length<P: Packet>(packet: &P) -> Option<u32> {
        let total: U16 = packet.load(ETHERNET + 2)?;
        Some(u32::from(total.get()))
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self[0] == 127 // RFC 1122, 3.2.1.3
    }

    #[inline(always)]
    fn may_send(&self, interface: &Interface, _destination: &Self) -> bool {
        *self == interface.address4 && *self != Self::UNSPECIFIED
    }

    #[inline(always)]
    fn masquerade(config: &Config) -> Self {
        config.masquerade4
    }

    #[inline(always)]
    fn to_v6(&self) -> V6 {
        let [a, b, c, d] = *self;
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    #[inline(always)]
    fn of_interface(interface: &Interface) -> Self {
        interface.address4
    }

    #[inline(always)]
    fn is_within(&self, range: &PodRange<Self>) -> bool {
        let word = |address: &Self| u32::from_ne_bytes(*address);
        let network = word(&range.network);
        network != 0 && word(self) & word(&range.mask) == network
    }
}

/// RFC 8200, 3.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Ipv6Header {
    version_and_flow: [u8; 4],
    payload_length: U16,
    next_header: u8,
    hop_limit: u8,
    source: [ne::U32; 4],
    destination: [ne::U32; 4],
}

impl Ip for V6 {
    const ETHERTYPE: [u8; 2] = [0x86, 0xdd];

    #[inline(always)]
    fn parse_network<P: Packet>(packet: &P) -> Result<Headers<Self>, DropReason> {
        let ip: Ipv6Header = packet.load(ETHERNET).ok_or(DropReason::Malformed)?;
        if ip.version_and_flow[0] >> 4 != 6 {
            return Err(DropReason::Malformed);
        }
        let mut headers = Headers {
            source: transmute!(ip.source.map(ne::U32::get)),
            destination: transmute!(ip.destination.map(ne::U32::get)),
            source_port: U16::ZERO,
            destination_port: U16::ZERO,
            protocol: ip.next_header,
            tcp_flags: 0,
            hop_limit: ip.hop_limit,
            ports: Ports::None,
            transport: ETHERNET + 40,
        };
        // Extension headers in front of the transport header (RFC 8200, 4.1): a packet with more
        // than these few is forwarded by address alone.
        let mut i = 0;
        while i < MAX_EXTENSIONS {
            match headers.protocol {
                extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                    let [next, length]: [u8; 2] =
                        packet.load(headers.transport).ok_or(DropReason::Malformed)?;
                    headers.protocol = next;
                    headers.transport += (u32::from(length) + 1) * 8;
                }
                extension::FRAGMENT => {
                    let [next, _, high, low]: [u8; 4] =
                        packet.load(headers.transport).ok_or(DropReason::Malformed)?;
                    headers.protocol = next;
                    headers.transport += 8;
                    // An offset or the more-fragments bit; neither is an atomic fragment (RFC 6946).
                    if high != 0 || low & 0xf9 != 0 {
                        headers.ports = Ports::Fragment;
                        return Ok(headers);
                    }
                }
                _ => break,
            }
            i += 1;
        }
        Ok(headers)
    }

    #[inline(always)]
    fn piece<P: Packet>(packet: &P, headers: &Headers<Self>) -> Option<Piece> {
        fragment::piece6(packet, ETHERNET, headers.transport)
    }

    #[inline(always)]
    fn message(protocol: u8, kind: u8) -> Message {
        match (protocol, kind) {
            (protocol::ICMPV6, 128) => Message::EchoRequest,
            (protocol::ICMPV6, 129) => Message::EchoReply,
            // RFC 4443, 2.1: the highest bit is zero.
            (protocol::ICMPV6, 0..128) => Message::Error,
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn write<P: Packet>(
        packet: &mut P,
        headers: &Headers<Self>,
        source: &Self,
        destination: &Self,
        hop: bool,
    ) -> Option<Difference> {
        if hop {
            packet.store(ETHERNET + 7, headers.hop_limit.wrapping_sub(1))?;
        }
        packet.store(ETHERNET + 8, *source)?;
        packet.store(ETHERNET + 24, *destination)?;
        let (was, is) = (words(&headers.source), words(source));
        let mut sum = Difference::default();
        sum = sum.word(was[0], is[0]).word(was[1], is[1]).word(was[2], is[2]).word(was[3], is[3]);
        let (was, is) = (words(&headers.destination), words(destination));
        Some(sum.word(was[0], is[0]).word(was[1], is[1]).word(was[2], is[2]).word(was[3], is[3]))
    }

    #[inline(always)]
    fn is_forwarded(&self) -> bool {
        // ff00::/8 multicast, fe80::/10 link-local, ::/96 with ::1 and :: (RFC 4291, 2.4).
        let [first, second, third, _] = words(self);
        u32::from_be(first) >> 24 != 0xff
            && !is_link_local(self)
            && (first != 0 || second != 0 || third != 0)
    }

    #[inline(always)]
    fn is_forwarded_from_link(&self) -> bool {
        false
    }

    #[inline(always)]
    fn length<P: Packet>(packet: &P) -> Option<u32> {
        let payload: U16 = packet.load(ETHERNET + 4)?;
        Some(u32::from(payload.get()) + 40)
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        words(self) == [0, 0, 0, 1u32.to_be()] // RFC 4291, 2.5.3
    }

    #[inline(always)]
    fn may_send(&self, interface: &Interface, destination: &Self) -> bool {
        // Neighbour discovery, duplicate address detection and MLD never leave the link.
        (*self == interface.address6 && *self != Self::UNSPECIFIED)
            || ((is_link_local(self) || *self == Self::UNSPECIFIED) && !destination.is_forwarded())
    }

    #[inline(always)]
    fn masquerade(config: &Config) -> Self {
        config.masquerade6
    }

    #[inline(always)]
    fn to_v6(&self) -> V6 {
        *self
    }

    #[inline(always)]
    fn of_interface(interface: &Interface) -> Self {
        interface.address6
    }

    #[inline(always)]
    fn is_within(&self, range: &PodRange<Self>) -> bool {
        let (address, mask) = (words(self), words(&range.mask));
        let [a, b, c, d] = words(&range.network);
        a | b | c | d != 0
            && address[0] & mask[0] == a
            && address[1] & mask[1] == b
            && address[2] & mask[2] == c
            && address[3] & mask[3] == d
    }
}

/// An IPv6 address in the words it is handled by, each as it lies in memory. Byte by byte, it would
/// cost a program's small stack a slot for each; the headers above are read in words for the same
/// reason.
#[inline(always)]
pub fn words(address: &V6) -> [u32; 4] {
    transmute!(*address)
}

/// How many IPv6 extension headers are walked.
const MAX_EXTENSIONS: u32 = 4;

/// IPv6 extension headers (RFC 8200, 4).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// Whether a protocol number is that of an extension header, with the transport header still to come.
#[inline(always)]
pub(crate) fn is_extension(protocol: u8) -> bool {
    use extension::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}

/// fe80::/10 (RFC 4291, 2.5.6).
#[inline(always)]
pub(crate) fn is_link_local(address: &V6) -> bool {
    u32::from_be(words(address)[0]) >> 22 == 0xfe80 >> 6
}

/// RFC 9293, 3.1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct TcpHeader {
    pub(crate) source_port: U16,
    pub(crate) destination_port: U16,
    pub(crate) sequence: U32,
    pub(crate) acknowledgement: U32,
    /// The header's length in words of 32 bits, in the upper half.
    pub(crate) offset: u8,
    pub(crate) flags: u8,
    pub(crate) window: U16,
    pub(crate) checksum: [u8; 2],
    pub(crate) urgent: U16,
}

/// RFC 768.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct UdpHeader {
    source_port: U16,
    destination_port: U16,
    length: U16,
    checksum: [u8; 2],
}

/// RFC 9260, 3.1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SctpHeader {
    source_port: U16,
    destination_port: U16,
    verification_tag: [u8; 4],
    checksum: [u8; 4],
}

/// RFC 792 and RFC 4443: an echo request or reply; other types have something else in the end.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    identifier: U16,
    sequence: U16,
}

/// What an ICMP message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A question that carries an identifier.
    EchoRequest,
    /// Its answer.
    EchoReply,
    /// Something went wrong with the packet that the message quotes.
    Error,
    /// Anything else.
    Other,
}

#[inline(always)]
fn parse_transport<A: Ip, P: Packet>(
    packet: &P,
    headers: &mut Headers<A>,
) -> Result<(), DropReason> {
    let at = headers.transport;
    match headers.protocol {
        protocol::TCP => {
            let tcp: TcpHeader = packet.load(at).ok_or(DropReason::Malformed)?;
            headers.source_port = tcp.source_port;
            headers.destination_port = tcp.destination_port;
            headers.tcp_flags = tcp.flags;
            headers.ports = Ports::Known;
        }
        protocol::UDP => {
            let udp: UdpHeader = packet.load(at).ok_or(DropReason::Malformed)?;
            headers.source_port = udp.source_port;
            headers.destination_port = udp.destination_port;
            headers.ports = Ports::Known;
        }
        protocol::SCTP => {
            let sctp: SctpHeader = packet.load(at).ok_or(DropReason::Malformed)?;
            headers.source_port = sctp.source_port;
            headers.destination_port = sctp.destination_port;
            headers.ports = Ports::Known;
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let icmp: IcmpHeader = packet.load(at).ok_or(DropReason::Malformed)?;
            match A::message(headers.protocol, icmp.kind) {
                Message::EchoRequest => {
                    headers.source_port = icmp.identifier;
                    headers.ports = Ports::Known;
                }
                Message::EchoReply => {
                    headers.destination_port = icmp.identifier;
                    headers.tcp_flags = tcp::ACK;
                    headers.ports = Ports::Known;
                }
                Message::Error => headers.ports = Ports::Error,
                Message::Other => {}
            }
        }
        _ => {}
    }
    Ok(())
}

/// Gives the packet its translated addresses and ports and, if `hop`, a hop limit one lower.
/// `None`: the packet may be half changed and must be dropped.
#[inline(always)]
pub fn translate<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    to: &Translation<A>,
    hop: bool,
) -> Option<()> {
    let addresses = A::write(packet, headers, &to.source, &to.destination, hop)?;
    if matches!(headers.ports, Ports::Noted) {
        return Some(()); // what else there is to change is in the first fragment
    }
    let ports = Difference::default()
        .half(headers.source_port.to_bytes(), to.source_port.to_bytes())
        .half(headers.destination_port.to_bytes(), to.destination_port.to_bytes());
    let at = headers.transport;
    match headers.protocol {
        protocol::TCP => {
            packet.store(at, to.source_port)?;
            packet.store(at + 2, to.destination_port)?;
            adjust_both(packet, at + 16, addresses, ports, false)
        }
        protocol::UDP => {
            packet.store(at, to.source_port)?;
            packet.store(at + 2, to.destination_port)?;
            adjust_both(packet, at + 6, addresses, ports, true)
        }
        protocol::SCTP => {
            // As a whole: of two places with one bound, the verifier would know only one's.
            let mut header: SctpHeader = packet.load(at)?;
            let (was, is) = (
                [headers.source_port, headers.destination_port],
                [to.source_port, to.destination_port],
            );
            let length = A::length(packet)?.checked_sub(at - ETHERNET)?;
            [header.source_port, header.destination_port] = is;
            header.checksum = P::adjust_sctp_checksum(header.checksum, was, is, length);
            packet.store(at, header)
        }
        protocol::ICMP | protocol::ICMPV6 => {
            // An echo carries one identifier: in the request's source or the reply's destination.
            let request = headers.source_port != U16::ZERO || to.source_port != U16::ZERO;
            let identifier = if request { to.source_port } else { to.destination_port };
            packet.store(at + 4, identifier)?;
            if headers.protocol == protocol::ICMPV6 {
                adjust_both(packet, at + 2, addresses, ports, false)
            } else {
                // ICMP for IPv4 has no pseudo header (RFC 792).
                let covers = Covers::Segment { zero_is_none: false };
                packet.adjust_transport_checksum(at + 2, ports, covers)
            }
        }
        _ => Some(()),
    }
}

/// Lowers the hop limit of a packet that keeps its addresses.
#[inline(always)]
pub fn hop<A: Ip, P: Packet>(packet: &mut P, headers: &Headers<A>) -> Option<()> {
    A::write(packet, headers, &headers.source, &headers.destination, true).map(|_| ())
}

#[inline(always)]
fn adjust_both<P: Packet>(
    packet: &mut P,
    at: u32,
    addresses: Difference,
    ports: Difference,
    zero_is_none: bool,
) -> Option<()> {
    packet.adjust_transport_checksum(at, addresses, Covers::PseudoHeader { zero_is_none })?;
    packet.adjust_transport_checksum(at, ports, Covers::Segment { zero_is_none })
}

/// [`Packet::adjust_transport_checksum`] for a packet whose checksum is complete, which is every
/// packet but those that a local sender left to its device.
#[inline(always)]
pub fn adjust_complete_checksum<P: Packet>(
    packet: &mut P,
    at: u32,
    difference: Difference,
    covers: Covers,
) -> Option<()> {
    let (Covers::PseudoHeader { zero_is_none } | Covers::Segment { zero_is_none }) = covers;
    let field: [u8; 2] = packet.load(at)?;
    if zero_is_none && field == [0; 2] {
        return Some(());
    }
    let mut sum = adjust(field, difference);
    if zero_is_none && sum == [0; 2] {
        sum = [0xff; 2]; // RFC 768: a sum of zero is sent as all ones
    }
    packet.store(at, sum)
}
