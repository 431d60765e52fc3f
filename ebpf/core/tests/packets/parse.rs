//! What is read of a packet's headers, whatever their shape.

use fairway_abi::{DropReason, V4, V6, protocol};
use fairway_core::Ip;
use fairway_core::memory::Frame;
use fairway_core::packet::{Headers, Ports, tcp};
use zerocopy::network_endian::U16;

use crate::for_both_families;
use crate::frame::{
    Builder, DESTINATION, End, FRAGMENT, Family, HOP_BY_HOP, ROUTING, Transport, ends,
};
use crate::node::{CLIENT, POD};

for_both_families![
    the_shape_of_a_transport_header_decides_what_ports_are_worth,
    every_field_is_read_from_its_place,
    a_frame_that_ends_within_its_headers_is_malformed,
    headers_beyond_the_linear_part_are_malformed,
    the_other_version_is_malformed,
    a_fragment_has_no_ports,
];

fn packet<A: Family>(transport: Transport) -> Builder<A> {
    Builder::new(transport, (A::at(POD), 40_000), (A::at(CLIENT), 443))
}

fn parse<A: Family>(packet: &Builder<A>) -> Result<Headers<A>, DropReason> {
    A::parse(&packet.frame())
}

fn the_shape_of_a_transport_header_decides_what_ports_are_worth<A: Family>() {
    const GRE: u8 = 47;
    const INFORMATION: u8 = 200;
    let foreign_icmp = if A::ICMP == protocol::ICMP { protocol::ICMPV6 } else { protocol::ICMP };
    let cases = [
        ("TCP", Transport::Tcp(tcp::SYN), Ports::Known, (40_000, 443)),
        ("UDP", Transport::Udp, Ports::Known, (40_000, 443)),
        ("UDP without a checksum", Transport::UdpUnchecked, Ports::Known, (40_000, 443)),
        ("SCTP", Transport::Sctp, Ports::Known, (40_000, 443)),
        ("an echo request", Transport::EchoRequest, Ports::Known, (40_000, 0)),
        ("an echo reply", Transport::EchoReply, Ports::Known, (0, 443)),
        ("an ICMP error", Transport::Icmp(A::UNREACHABLE), Ports::Error, (0, 0)),
        ("another ICMP message", Transport::Icmp(INFORMATION), Ports::None, (0, 0)),
        ("the other family's ICMP", Transport::Other(foreign_icmp), Ports::None, (0, 0)),
        ("a protocol without ports of ours", Transport::Other(GRE), Ports::None, (0, 0)),
        ("no transport header at all", Transport::Other(59), Ports::None, (0, 0)),
    ];
    for (shape, transport, ports, numbers) in cases {
        // Its first byte would be an echo request's to ICMP for IPv4.
        let packet = packet::<A>(transport).payload(&[8, 0, 0, 0, 0, 7, 0, 1]);
        let headers = parse(&packet).unwrap_or_else(|e| panic!("{shape}: {e:?}"));
        let read = (headers.source_port.get(), headers.destination_port.get());
        assert_eq!((headers.ports, read), (ports, numbers), "{shape}");
    }
}

fn every_field_is_read_from_its_place<A: Family>() {
    let flags = tcp::SYN | tcp::ACK;
    let headers = parse(&packet::<A>(Transport::Tcp(flags)).hop_limit(17)).expect("well-formed");
    let expected = Headers {
        source: A::at(POD),
        destination: A::at(CLIENT),
        source_port: U16::new(40_000),
        destination_port: U16::new(443),
        protocol: protocol::TCP,
        tcp_flags: flags,
        hop_limit: 17,
        ports: Ports::Known,
        transport: if A::ADDRESS_BITS == 32 { 34 } else { 54 },
    };
    assert_eq!(headers, expected);
    assert!(!headers.opens(), "an answer to a SYN opens nothing");
    assert!(parse(&packet::<A>(Transport::Tcp(tcp::SYN))).is_ok_and(|syn| syn.opens()));
    assert!(parse(&packet::<A>(Transport::Udp)).is_ok_and(|datagram| !datagram.opens()));
}

/// How much of each transport header is read: all of its fixed part.
const READ: [(Transport, usize); 4] = [
    (Transport::Tcp(tcp::SYN), 20),
    (Transport::Udp, 8),
    (Transport::EchoRequest, 8),
    (Transport::Icmp(3), 8),
];

fn a_frame_that_ends_within_its_headers_is_malformed<A: Family>() {
    for (transport, read) in READ {
        let whole = packet::<A>(transport).frame();
        let needed = transport_offset::<A>(&whole) + read;
        for length in 0..=whole.bytes.len() {
            let cut = Frame::new(whole.bytes[..length].to_vec());
            match A::parse(&cut) {
                Ok(_) => assert!(length >= needed, "{transport:?} in {length} bytes"),
                Err(reason) => {
                    assert_eq!(reason, DropReason::Malformed);
                    assert!(length < needed, "{transport:?} in {length} bytes");
                }
            }
        }
    }
}

fn headers_beyond_the_linear_part_are_malformed<A: Family>() {
    let mut frame = packet::<A>(Transport::Udp).frame();
    frame.linear = transport_offset::<A>(&frame) + 7;
    assert_eq!(A::parse(&frame), Err(DropReason::Malformed));
    frame.linear += 1;
    assert!(A::parse(&frame).is_ok());
}

fn the_other_version_is_malformed<A: Family>() {
    for version in (0..16).filter(|version| *version != if A::ADDRESS_BITS == 32 { 4 } else { 6 }) {
        let mut frame = packet::<A>(Transport::Udp).frame();
        frame.bytes[14] = frame.bytes[14] & 0x0f | version << 4;
        assert_eq!(A::parse(&frame), Err(DropReason::Malformed), "version {version}");
    }
}

fn a_fragment_has_no_ports<A: Family>() {
    for (place, offset, more) in
        [("first", 0, true), ("middle", 185, true), ("last", 185, false), ("far", 0x1fff, false)]
    {
        let headers = parse(&packet::<A>(Transport::Udp).fragment(offset, more));
        let headers = headers.unwrap_or_else(|e| panic!("{place}: {e:?}"));
        let ports = (headers.source_port.get(), headers.destination_port.get());
        assert_eq!((headers.ports, ports), (Ports::Fragment, (0, 0)), "{place}");
        assert_eq!(headers.protocol, protocol::UDP, "{place}");
    }
    // Some stacks send a fragment header on whole packets (RFC 6946); IPv4 has its fields anyway.
    let headers = parse(&packet::<A>(Transport::Udp).fragment(0, false)).expect("well-formed");
    assert_eq!((headers.ports, headers.source_port.get()), (Ports::Known, 40_000));
}

/// What only IPv4 headers can be like.
mod ipv4 {
    use super::*;

    #[test]
    fn options_move_the_transport_header() {
        const NO_OPERATION: u8 = 1;
        for words in 1..=10 {
            let mut packet = packet::<V4>(Transport::Tcp(tcp::SYN));
            for _ in 0..words {
                packet = packet.option(NO_OPERATION, &[1, 1]);
            }
            assert_eq!(parse(&packet).map(|h| h.transport), Ok(34 + 4 * words));
            assert_eq!(parse(&packet).map(|h| h.destination_port.get()), Ok(443));
        }
    }

    #[test]
    fn a_header_shorter_than_its_fixed_part_is_malformed() {
        for words in 0..5 {
            let mut frame = packet::<V4>(Transport::Udp).frame();
            frame.bytes[14] = 0x40 | words;
            assert_eq!(V4::parse(&frame), Err(DropReason::Malformed), "{words} words");
        }
    }

    #[test]
    fn a_packet_that_may_not_be_fragmented_is_no_fragment() {
        let mut frame = packet::<V4>(Transport::Udp).frame();
        frame.bytes[20] |= 0x40;
        assert_eq!(V4::parse(&frame).map(|h| h.ports), Ok(Ports::Known));
    }
}

/// What only IPv6 headers can be like.
mod ipv6 {
    use super::*;

    const FROM_TO: (End<V6>, End<V6>) = ((address(POD), 40_000), (address(CLIENT), 443));

    const fn address([a, b, c, d]: [u8; 4]) -> V6 {
        [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
    }

    #[test]
    fn extension_headers_in_front_of_the_ports_are_walked() {
        const SIX: &[u8] = &[0; 6];
        const FOURTEEN: &[u8] = &[0; 14];
        let cases: [&[(u8, &[u8])]; 5] = [
            &[(HOP_BY_HOP, SIX)],
            &[(DESTINATION, FOURTEEN)],
            &[(HOP_BY_HOP, SIX), (ROUTING, FOURTEEN)],
            &[(HOP_BY_HOP, FOURTEEN), (DESTINATION, SIX), (ROUTING, SIX), (DESTINATION, SIX)],
            &[(FRAGMENT, &[0, 0, 0, 0, 0, 7])],
        ];
        for chain in cases {
            let mut packet = packet::<V6>(Transport::Udp);
            for (kind, content) in chain {
                packet = packet.option(*kind, content);
            }
            let headers = parse(&packet).unwrap_or_else(|e| panic!("{chain:?}: {e:?}"));
            assert_eq!(headers.transport as usize, transport_offset::<V6>(&packet.frame()));
            assert_eq!((headers.protocol, headers.ports), (protocol::UDP, Ports::Known));
            assert_eq!(ends(&packet.frame()), FROM_TO);
            assert_eq!(headers.source_port.get(), 40_000, "{chain:?}");
        }
    }

    #[test]
    fn a_longer_chain_is_known_by_its_addresses_alone() {
        let mut packet = packet::<V6>(Transport::Udp);
        for _ in 0..5 {
            packet = packet.option(DESTINATION, &[0; 6]);
        }
        let headers = parse(&packet).expect("well-formed");
        assert_eq!((headers.ports, headers.source_port.get()), (Ports::None, 0));
        assert_eq!((headers.source, headers.destination), (address(POD), address(CLIENT)));
    }

    #[test]
    fn a_chain_that_leaves_the_packet_is_malformed() {
        let mut frame = packet::<V6>(Transport::Udp).option(HOP_BY_HOP, &[0; 6]).frame();
        frame.bytes[14 + 40 + 1] = 255;
        assert_eq!(V6::parse(&frame), Err(DropReason::Malformed));
    }

    #[test]
    fn a_fragment_header_behind_others_is_seen() {
        let packet = packet::<V6>(Transport::Udp).option(HOP_BY_HOP, &[0; 6]).fragment(1, false);
        assert_eq!(parse(&packet).map(|h| h.ports), Ok(Ports::Fragment));
    }
}

fn transport_offset<A: Family>(frame: &Frame) -> usize {
    A::read(&frame.bytes).4
}
