//! Frames for tests: how they are built, read and verified, without a line of the code under test.

use std::fmt::Debug;
use std::hash::Hash;
use std::ops::Range;

use fairway_abi::{Interface, V4, V6, protocol};
use fairway_core::Ip;
use fairway_core::memory::Frame;

/// What a test needs to know of an address family.
pub(crate) trait Family: Ip + Debug + Hash {
    /// Bits of an address.
    const ADDRESS_BITS: u32;
    /// The address of a machine itself.
    const LOOPBACK: Self;
    /// Its ICMP's protocol number.
    const ICMP: u8;
    /// Its ICMP's type of an echo request.
    const ECHO_REQUEST: u8;
    /// Its ICMP's type of an echo reply.
    const ECHO_REPLY: u8;
    /// Its ICMP's type of the error that tells of a destination out of reach.
    const UNREACHABLE: u8;

    /// An address that the family's four last bytes tell apart.
    fn at(last: [u8; 4]) -> Self;
    /// A pod's interface that has this address alone.
    fn interface(self) -> Interface;
    /// The network header in front of `length` bytes, extensions included.
    fn header(builder: &Builder<Self>, length: u16) -> Vec<u8>;
    /// Reads protocol, addresses, hop limit and where the transport header begins.
    fn read(frame: &[u8]) -> (u8, Self, Self, u8, usize);
    /// The pseudo header's sum for a segment of `length` bytes.
    fn pseudo(protocol: u8, source: Self, destination: Self, length: usize) -> u32;
    /// Whether the network header is as its own checksum says.
    fn header_is_valid(frame: &[u8]) -> bool;
}

/// An address and port; for ICMP echo, the port is the identifier where the message has it, else 0.
pub(crate) type End<A> = (A, u16);

/// What lies behind the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// With these flags.
    Tcp(u8),
    /// With a checksum.
    Udp,
    /// With zero in the checksum's place.
    UdpUnchecked,
    /// With a checksum, unless it is left to the device.
    Sctp,
    /// From the source's identifier.
    EchoRequest,
    /// To the destination's identifier.
    EchoReply,
    /// An ICMP message of another type.
    Icmp(u8),
    /// The payload alone, under this protocol number.
    Other(u8),
}

/// Builds a frame.
#[derive(Clone, Debug)]
pub(crate) struct Builder<A> {
    source: End<A>,
    destination: End<A>,
    transport: Transport,
    hop_limit: u8,
    payload: Vec<u8>,
    /// IPv4 options, or IPv6 extension headers: type and content, from the outermost on.
    options: Vec<(u8, Vec<u8>)>,
    /// Offset in units of eight bytes, and whether more follow.
    fragment: Option<(u16, bool)>,
    partial: bool,
    /// Which bytes of transport header and payload there are; all if none.
    slice: Option<Range<usize>>,
    /// It may not be fragmented.
    pub(crate) whole: bool,
    /// The very frame.
    literal: Option<Frame>,
}

impl<A: Family> Builder<A> {
    pub(crate) fn new(transport: Transport, source: End<A>, destination: End<A>) -> Self {
        Self {
            source,
            destination,
            transport,
            hop_limit: 64,
            payload: b"fairway".to_vec(),
            options: Vec::new(),
            fragment: None,
            partial: false,
            slice: None,
            whole: false,
            literal: None,
        }
    }

    pub(crate) fn tcp(flags: u8, source: End<A>, destination: End<A>) -> Self {
        Self::new(Transport::Tcp(flags), source, destination)
    }

    pub(crate) fn udp(source: End<A>, destination: End<A>) -> Self {
        Self::new(Transport::Udp, source, destination)
    }

    /// An echo request with this identifier.
    pub(crate) fn ping(source: A, destination: A, identifier: u16) -> Self {
        Self::new(Transport::EchoRequest, (source, identifier), (destination, 0))
    }

    /// What the receiver of a frame answers: its ends exchanged.
    pub(crate) fn answer(frame: &Frame, transport: Transport) -> Self {
        let (source, destination) = ends(frame);
        Self::new(transport, destination, source)
    }

    /// This frame.
    pub(crate) fn literal(frame: &Frame) -> Self {
        let nobody = (A::UNSPECIFIED, 0);
        Self { literal: Some(frame.clone()), ..Self::new(Transport::Other(0), nobody, nobody) }
    }

    pub(crate) fn hop_limit(self, hop_limit: u8) -> Self {
        Self { hop_limit, ..self }
    }

    pub(crate) fn payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// Adds an IPv4 option (its content two bytes short of a multiple of four) or an IPv6
    /// extension header (two bytes short of a multiple of eight).
    pub(crate) fn option(mut self, kind: u8, content: &[u8]) -> Self {
        self.options.push((kind, content.to_vec()));
        self
    }

    pub(crate) fn fragment(self, offset: u16, more: bool) -> Self {
        Self { fragment: Some((offset, more)), ..self }
    }

    /// The fragment with these bytes of transport header and payload, as far as there are so many.
    pub(crate) fn piece(self, bytes: Range<usize>, more: bool) -> Self {
        let offset = u16::try_from(bytes.start / 8).expect("a short packet");
        Self { slice: Some(bytes), ..self.fragment(offset, more) }
    }

    /// Forbids fragments, which IPv6 does anyway.
    pub(crate) fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// Leaves the transport checksum to the device.
    pub(crate) fn partial(self, partial: bool) -> Self {
        Self { partial, ..self }
    }

    pub(crate) fn frame(&self) -> Frame {
        if let Some(frame) = &self.literal {
            return frame.clone();
        }
        let mut segment = self.segment();
        if let Some(bytes) = &self.slice {
            segment.truncate(bytes.end);
            segment.drain(..bytes.start);
        }
        let length = u16::try_from(segment.len()).expect("a packet of less than 64 KiB");
        let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        bytes.extend(A::ETHERTYPE);
        bytes.extend(A::header(self, length));
        bytes.extend(segment);
        Frame { partial: self.partial, ..Frame::new(bytes) }
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp(_) => protocol::TCP,
            Transport::Udp | Transport::UdpUnchecked => protocol::UDP,
            Transport::Sctp => protocol::SCTP,
            Transport::EchoRequest | Transport::EchoReply | Transport::Icmp(_) => A::ICMP,
            Transport::Other(number) => number,
        }
    }

    /// Transport header and payload.
    fn segment(&self) -> Vec<u8> {
        let ((source, source_port), (destination, destination_port)) =
            (self.source, self.destination);
        let ports = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
        let echo = |kind, identifier: u16| {
            [&[kind, 0, 0, 0], identifier.to_be_bytes().as_slice(), &[0, 1]].concat()
        };
        let mut segment = match self.transport {
            Transport::Tcp(flags) => {
                let rest = [0, 0, 0, 9, 0, 0, 0, 8, 5 << 4, flags, 0x20, 0, 0, 0, 0, 0];
                [ports.as_slice(), &rest].concat()
            }
            Transport::Udp | Transport::UdpUnchecked => {
                let length = u16::try_from(8 + self.payload.len()).expect("a short payload");
                [ports.as_slice(), &length.to_be_bytes(), &[0, 0]].concat()
            }
            Transport::Sctp => [ports.as_slice(), &[1, 2, 3, 4, 0, 0, 0, 0]].concat(),
            Transport::EchoRequest => echo(A::ECHO_REQUEST, source_port),
            Transport::EchoReply => echo(A::ECHO_REPLY, destination_port),
            Transport::Icmp(kind) => vec![kind, 0, 0, 0, 0, 0, 0, 0],
            Transport::Other(_) => Vec::new(),
        };
        segment.extend(&self.payload);
        let checksum = match self.transport {
            Transport::UdpUnchecked => None,
            _ => checksum_offset(self.protocol()),
        };
        if self.transport == Transport::Sctp && !self.partial {
            let checksum = crc32c(&segment);
            segment[8..12].copy_from_slice(&checksum);
        }
        // A segment of another protocol's number may be too short to have one.
        if let Some(at) = checksum.filter(|at| at + 2 <= segment.len()) {
            let pseudo = A::pseudo(self.protocol(), source, destination, segment.len());
            let sum = if self.partial { fold(pseudo) } else { !fold(pseudo + sum(&segment)) };
            let zero_is_none = self.transport == Transport::Udp && sum == 0;
            let sum = if zero_is_none { 0xffff } else { sum };
            segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        segment
    }
}

/// Source and destination with their ports, as a receiver reads them.
pub(crate) fn ends<A: Family>(frame: &Frame) -> (End<A>, End<A>) {
    let (protocol, source, destination, _, at) = A::read(&frame.bytes);
    let half = |at: usize| u16::from_be_bytes([frame.bytes[at], frame.bytes[at + 1]]);
    let (source_port, destination_port) = match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => (half(at), half(at + 2)),
        _ if protocol == A::ICMP && frame.bytes[at] == A::ECHO_REQUEST => (half(at + 4), 0),
        _ if protocol == A::ICMP && frame.bytes[at] == A::ECHO_REPLY => (0, half(at + 4)),
        _ => (0, 0),
    };
    ((source, source_port), (destination, destination_port))
}

/// Time to live, or hop limit.
pub(crate) fn hop_limit<A: Family>(frame: &Frame) -> u8 {
    A::read(&frame.bytes).3
}

/// The transport checksum as it stands in the frame.
pub(crate) fn checksum<A: Family>(frame: &Frame) -> u16 {
    let (protocol, .., transport) = A::read(&frame.bytes);
    let at = transport + checksum_offset(protocol).expect("a protocol with a checksum");
    u16::from_be_bytes([frame.bytes[at], frame.bytes[at + 1]])
}

/// Verifies every checksum of a frame that is no fragment, as its receiver or, for a partial one,
/// the device would.
///
/// # Panics
/// If one is wrong.
pub(crate) fn assert_checksums<A: Family>(frame: &Frame) {
    assert!(A::header_is_valid(&frame.bytes), "network header checksum of {frame:02x?}");
    let (protocol, source, destination, _, at) = A::read(&frame.bytes);
    if protocol == protocol::SCTP {
        let mut segment = frame.bytes[at..].to_vec();
        let field = segment[8..12].to_vec();
        segment[8..12].fill(0);
        let expected = if frame.partial { [0; 4] } else { crc32c(&segment) };
        assert_eq!(field, expected, "CRC32c of {frame:02x?}");
    }
    if checksum_offset(protocol).is_none() {
        return;
    }
    let segment = &frame.bytes[at..];
    let pseudo = A::pseudo(protocol, source, destination, segment.len());
    let field = checksum::<A>(frame);
    if frame.partial {
        assert_eq!(field, fold(pseudo), "pseudo header sum of {frame:02x?}");
    } else if protocol != protocol::UDP || field != 0 {
        assert_eq!(fold(pseudo + sum(segment)), 0xffff, "transport checksum of {frame:02x?}");
    }
}

/// Where a transport header has its checksum.
fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        protocol::ICMP | protocol::ICMPV6 => Some(2),
        _ => None,
    }
}

/// RFC 9260, appendix A, as it stands in a packet.
pub(crate) fn crc32c(segment: &[u8]) -> [u8; 4] {
    let mut register = u32::MAX;
    for byte in segment {
        register ^= u32::from(*byte);
        for _ in 0..8 {
            register = register >> 1 ^ if register & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!register).to_le_bytes()
}

/// The sum of RFC 1071 over big-endian words, not folded.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

/// The same, folded.
pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

const ETHERNET: usize = 14;

impl Family for V4 {
    const ADDRESS_BITS: u32 = 32;
    const LOOPBACK: Self = std::net::Ipv4Addr::LOCALHOST.octets();
    const ICMP: u8 = protocol::ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const UNREACHABLE: u8 = 3;

    fn at(last: [u8; 4]) -> Self {
        last
    }

    fn interface(self) -> Interface {
        Interface { address4: self, address6: [0; 16] }
    }

    fn header(builder: &Builder<Self>, length: u16) -> Vec<u8> {
        let mut options = Vec::new();
        for (kind, content) in &builder.options {
            options.extend([*kind, u8::try_from(2 + content.len()).expect("a short option")]);
            options.extend(content);
        }
        let words = u8::try_from(5 + options.len() / 4).expect("at most 40 bytes of options");
        let total = u16::from(words) * 4 + length;
        let (offset, more) = builder.fragment.unwrap_or((0, false));
        let mut header = vec![0x40 | words, 0];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34]);
        let flags = u16::from(more) << 13 | u16::from(builder.whole) << 14;
        header.extend((offset | flags).to_be_bytes());
        header.extend([builder.hop_limit, builder.protocol(), 0, 0]);
        header.extend(builder.source.0);
        header.extend(builder.destination.0);
        header.extend(options);
        let checksum = !fold(sum(&header));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn read(frame: &[u8]) -> (u8, Self, Self, u8, usize) {
        let header = &frame[ETHERNET..];
        let address = |at: usize| header[at..at + 4].try_into().expect("four bytes");
        let length = usize::from(header[0] & 0x0f) * 4;
        (header[9], address(12), address(16), header[8], ETHERNET + length)
    }

    fn pseudo(protocol: u8, source: Self, destination: Self, length: usize) -> u32 {
        if protocol == protocol::ICMP {
            return 0; // RFC 792 knows none
        }
        let length = u32::try_from(length).expect("a short segment");
        sum(&source) + sum(&destination) + u32::from(protocol) + length
    }

    fn header_is_valid(frame: &[u8]) -> bool {
        let length = usize::from(frame[ETHERNET] & 0x0f) * 4;
        fold(sum(&frame[ETHERNET..ETHERNET + length])) == 0xffff
    }
}

impl Family for V6 {
    const ADDRESS_BITS: u32 = 128;
    const LOOPBACK: Self = std::net::Ipv6Addr::LOCALHOST.octets();
    const ICMP: u8 = protocol::ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const UNREACHABLE: u8 = 1;

    fn at(last: [u8; 4]) -> Self {
        let [a, b, c, d] = last;
        [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
    }

    fn interface(self) -> Interface {
        Interface { address4: [0; 4], address6: self }
    }

    fn header(builder: &Builder<Self>, length: u16) -> Vec<u8> {
        let mut chain: Vec<(u8, Vec<u8>)> = Vec::new();
        for (kind, content) in &builder.options {
            let units = u8::try_from((2 + content.len()) / 8 - 1).expect("a short extension");
            chain.push((*kind, [&[units], content.as_slice()].concat()));
        }
        if let Some((offset, more)) = builder.fragment {
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            chain.push((FRAGMENT, vec![0, high, low, 0, 0, 0x12, 0x34]));
        }
        let kinds: Vec<u8> =
            chain.iter().map(|(kind, _)| *kind).chain([builder.protocol()]).collect();
        let mut extensions = Vec::new();
        for ((_, content), next) in chain.iter().zip(&kinds[1..]) {
            extensions.push(*next);
            extensions.extend(content);
        }
        let length = length + u16::try_from(extensions.len()).expect("short extensions");
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([kinds[0], builder.hop_limit]);
        header.extend(builder.source.0);
        header.extend(builder.destination.0);
        header.extend(extensions);
        header
    }

    fn read(frame: &[u8]) -> (u8, Self, Self, u8, usize) {
        let header = &frame[ETHERNET..];
        let address = |at: usize| header[at..at + 16].try_into().expect("sixteen bytes");
        let (mut protocol, mut at) = (header[6], 40);
        while matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            let units = if protocol == FRAGMENT { 0 } else { usize::from(header[at + 1]) };
            protocol = header[at];
            at += 8 * (units + 1);
        }
        (protocol, address(8), address(24), header[7], ETHERNET + at)
    }

    fn pseudo(protocol: u8, source: Self, destination: Self, length: usize) -> u32 {
        let length = u32::try_from(length).expect("a short segment");
        sum(&source) + sum(&destination) + u32::from(protocol) + length
    }

    fn header_is_valid(_frame: &[u8]) -> bool {
        true // RFC 8200 knows no checksum
    }
}

/// IPv6 extension headers.
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION: u8 = 60;
