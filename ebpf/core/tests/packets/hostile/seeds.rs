//! What the corpus begins with: ordinary traffic, and everything about it that can be wrong.

use std::ops::Range;

use fairway_abi::{V4, V6, protocol};
use fairway_core::neighbour::ARP;
use fairway_core::packet::tcp::{ACK, FIN, RST, SYN};

use crate::frame::{Builder, DESTINATION, End, FRAGMENT, Family, HOP_BY_HOP, ROUTING, Transport};
use crate::node::{CLIENT, DIRECT_POD, NODE, OTHER_POD, OTHER_VIP, OUTSIDE, POD, REMOTE_POD, VIP};
use crate::story::Arrival;
use crate::story::Place::{self, Host, HostTunnel, Overlay, Pod, Uplink};

const ETHERNET: usize = 14;
const PLACES: [Place; 5] = [Pod, Uplink, Overlay, Host, HostTunnel];

/// Stories by the names of their files.
pub(crate) fn all() -> Vec<(String, Vec<Arrival>)> {
    let mut all = of_family::<V4>("4");
    all.extend(of_family::<V6>("6"));
    all.push(("lengths-4".into(), lengths4()));
    all.push(("lengths-6".into(), lengths6()));
    all.push(("options-4".into(), options4()));
    all.push(("extensions-6".into(), extensions6()));
    all.push(("arp".into(), arp()));
    all.push(("neighbours-6".into(), neighbours6()));
    all.push(("short-frames".into(), short_frames()));
    all
}

fn of_family<A: Family>(version: &str) -> Vec<(String, Vec<Arrival>)> {
    let stories = [
        ("connection", connection::<A>()),
        ("datagrams", datagrams::<A>()),
        ("ways", ways::<A>()),
        ("cuts", cuts::<A>()),
        ("fragments", fragments::<A>()),
        ("fragments-overlapping", overlapping::<A>()),
        ("tcp-odd", odd_tcp::<A>()),
        ("udp-odd", odd_udp::<A>()),
        ("sctp", sctp::<A>()),
        ("errors", errors::<A>()),
        ("errors-short", short_errors::<A>()),
        ("errors-followed", followed_errors::<A>()),
        ("icmp-types", icmp_types::<A>()),
        ("hop-limits", hop_limits::<A>()),
        ("refusals", refusals::<A>()),
        ("spoofed", spoofed::<A>()),
        ("unfinished", unfinished::<A>()),
        ("crowd", crowd::<A>()),
    ];
    stories.into_iter().map(|(name, story)| (format!("{name}-{version}"), story)).collect()
}

fn end<A: Family>(address: [u8; 4], port: u16) -> End<A> {
    (A::at(address), port)
}

fn at<A: Family>(place: Place, packet: &Builder<A>) -> Arrival {
    let frame = packet.frame();
    Arrival { place, partial: frame.partial, bytes: frame.bytes }
}

/// A packet, some of whose bytes are others.
fn with<A: Family>(place: Place, packet: &Builder<A>, changes: &[(usize, u8)]) -> Arrival {
    let mut arrival = at(place, packet);
    for (at, byte) in changes {
        arrival.bytes[*at] = *byte;
    }
    arrival
}

/// A packet without its last bytes, for each length.
fn cut<A: Family>(place: Place, packet: &Builder<A>, lengths: Range<usize>) -> Vec<Arrival> {
    let whole = at(place, packet);
    let lengths = lengths.filter(|length| *length <= whole.bytes.len());
    lengths
        .map(|length| Arrival { bytes: whole.bytes[..length].to_vec(), ..whole.clone() })
        .collect()
}

/// Where the transport header of a packet without options begins.
const fn transport<A>() -> usize {
    ETHERNET + if size_of::<A>() == 4 { 20 } else { 40 }
}

/// A pod asks a Service, is answered, and both go.
fn connection<A: Family>() -> Vec<Arrival> {
    let (client, vip) = (end::<A>(POD, 5000), end(VIP, 80));
    let endpoint = end(OTHER_POD, 8080);
    let asks = |flags| at(Pod, &Builder::tcp(flags, client, vip));
    // The other pod's interface is none that a story can name: its answers come by the host's stack.
    let answers = |flags| at(Host, &Builder::tcp(flags, endpoint, client));
    vec![
        asks(SYN),
        answers(SYN | ACK),
        asks(ACK),
        asks(SYN),
        answers(ACK),
        asks(ACK | FIN),
        answers(ACK | FIN),
        asks(SYN),
        answers(SYN | ACK),
        answers(RST),
        asks(ACK),
    ]
}

fn datagrams<A: Family>() -> Vec<Arrival> {
    let (client, vip) = (end::<A>(CLIENT, 5000), end(VIP, 80));
    let endpoint = end(OTHER_POD, 8080);
    let outside = end::<A>(OUTSIDE, 53);
    vec![
        at(Uplink, &Builder::udp(client, vip)),
        at(Host, &Builder::udp(endpoint, client)),
        at(Uplink, &Builder::new(Transport::UdpUnchecked, client, vip)),
        at(Pod, &Builder::udp(end(POD, 5001), outside)),
        at(Uplink, &Builder::udp(outside, end(NODE, 5001))),
        at(Pod, &Builder::ping(A::at(POD), A::at(OUTSIDE), 5002)),
        at(Uplink, &Builder::new(Transport::EchoReply, outside, end(NODE, 5002))),
        at(Pod, &Builder::udp(end::<A>(POD, 5003), end(VIP, 443))),
    ]
}

/// Everybody asks everybody, everywhere.
fn ways<A: Family>() -> Vec<Arrival> {
    let to = [POD, OTHER_POD, REMOTE_POD, DIRECT_POD, OTHER_VIP, NODE, OUTSIDE];
    let mut story = Vec::new();
    for (place, from) in
        [(Pod, POD), (Uplink, CLIENT), (Uplink, DIRECT_POD), (Overlay, REMOTE_POD), (Host, NODE)]
    {
        for to in to {
            let port = if to == NODE { 30_080 } else { 80 };
            story.push(at(place, &Builder::udp(end::<A>(from, 6000), end(to, port))));
        }
    }
    story.push(at(HostTunnel, &Builder::udp(end::<A>(NODE, 6000), end(REMOTE_POD, 80))));
    story.push(at(HostTunnel, &Builder::udp(end::<A>(NODE, 6000), end(OUTSIDE, 80))));
    story
}

/// At the boundary of each header, and one byte before.
fn cuts<A: Family>() -> Vec<Arrival> {
    let (client, vip) = (end::<A>(POD, 5000), end(VIP, 80));
    let transport = transport::<A>();
    let mut story = Vec::new();
    for (kind, header) in [
        (Transport::Tcp(SYN), 20),
        (Transport::Udp, 8),
        (Transport::Sctp, 12),
        (Transport::EchoRequest, 8),
        (Transport::Icmp(A::UNREACHABLE), 8),
        (Transport::Other(47), 0),
    ] {
        let packet = Builder::new(kind, client, vip);
        for boundary in [transport, transport + 4, transport + header, transport + header + 1] {
            story.extend(cut(Pod, &packet, boundary - 1..boundary + 1));
        }
        // Its network header is there for once, and says so.
        let piece = packet.piece(0..header.saturating_sub(1), false).fragment(0, false);
        story.push(at(Pod, &piece));
    }
    story
}

fn fragments<A: Family>() -> Vec<Arrival> {
    let (client, vip) = (end::<A>(POD, 5000), end(VIP, 80));
    let packet = Builder::udp(client, vip).payload(&[7; 64]);
    let (first, second) = (packet.clone().piece(0..40, true), packet.clone().piece(40..72, false));
    let plain = Builder::udp(client, end(OTHER_POD, 80)).payload(&[7; 64]);
    vec![
        at(Pod, &second),
        at(Pod, &first),
        at(Pod, &second),
        at(Pod, &first),
        at(Pod, &plain.clone().piece(40..72, false)),
        at(Pod, &plain.piece(0..40, true)),
        at(Host, &second),
        at(Overlay, &first),
        at(Uplink, &Builder::tcp(ACK, client, vip).piece(0..24, true)),
        at(Pod, &Builder::new(Transport::Sctp, client, vip).piece(0..16, true)),
        at(Pod, &Builder::ping(A::at(POD), A::at(OUTSIDE), 9).payload(&[7; 64]).piece(0..40, true)),
        at(Pod, &Builder::new(Transport::Icmp(A::UNREACHABLE), client, vip).piece(0..8, true)),
        at(Pod, &packet.clone().fragment(0, true)),
        at(Pod, &packet.fragment(0x1fff, true)),
    ]
}

fn overlapping<A: Family>() -> Vec<Arrival> {
    let (client, vip) = (end::<A>(POD, 5000), end(VIP, 80));
    let packet = Builder::tcp(SYN, client, vip).payload(&[7; 128]);
    let piece = |range, more| at(Pod, &packet.clone().piece(range, more));
    vec![
        piece(0..48, true),
        piece(40..80, true),
        piece(8..56, true),
        piece(0..48, true),
        piece(48..96, true),
        piece(56..148, false),
        piece(0..8, true),
        piece(0..16, true),
        piece(8..24, false),
        piece(0..48, false),
        piece(48..48, true),
        piece(48..53, true),
    ]
}

fn odd_tcp<A: Family>() -> Vec<Arrival> {
    let (client, vip) = (end::<A>(POD, 5000), end(VIP, 80));
    let flags = transport::<A>() + 13;
    let offset = transport::<A>() + 12;
    let syn = Builder::tcp(SYN, client, vip);
    let mut story: Vec<_> = [0, SYN | FIN, SYN | RST, 0x29, 0xff, FIN, RST, SYN | ACK, 0x80, 0x40]
        .map(|odd| with(Pod, &syn, &[(flags, odd)]))
        .into();
    // What comes without an endpoint is answered with a reset, which reads the offset.
    let nobody = Builder::tcp(SYN, client, end(OTHER_VIP, 443));
    for words in [0, 4, 6, 15] {
        story.push(with(Pod, &syn, &[(offset, words << 4)]));
        story.push(with(Pod, &nobody, &[(offset, words << 4)]));
    }
    for (from, to) in [(0, 80), (5000, 0), (0, 0), (u16::MAX, u16::MAX)] {
        story.push(at(Pod, &Builder::tcp(SYN, end::<A>(POD, from), end(VIP, to))));
    }
    story
}

fn odd_udp<A: Family>() -> Vec<Arrival> {
    let (client, vip) = (end::<A>(POD, 5000), end(VIP, 80));
    let at_length = transport::<A>() + 4;
    let packet = Builder::udp(client, vip);
    let mut story: Vec<_> = [[0, 0], [0, 7], [0, 8], [0xff, 0xff]]
        .map(|[high, low]| with(Pod, &packet, &[(at_length, high), (at_length + 1, low)]))
        .into();
    let sum = transport::<A>() + 6;
    story.push(with(Pod, &packet, &[(sum, 0), (sum + 1, 0)]));
    story.push(with(Pod, &packet, &[(sum, 0xff), (sum + 1, 0xff)]));
    story.push(at(Pod, &packet.clone().payload(&[])));
    story.push(at(Pod, &packet.payload(&[0xff; 600])));
    story.push(at(Pod, &Builder::udp(end::<A>(POD, 0), end(VIP, 0))));
    story
}

fn sctp<A: Family>() -> Vec<Arrival> {
    let (client, vip) = (end::<A>(POD, 5000), end(VIP, 80));
    let packet = Builder::new(Transport::Sctp, client, vip).payload(&[1, 0, 0, 20, 0, 0, 0, 1]);
    let transport = transport::<A>();
    let mut story = vec![
        at(Pod, &packet),
        at(Host, &Builder::new(Transport::Sctp, end(OTHER_POD, 8080), client)),
        with(Pod, &packet, &[(transport + 8, 0)]),
        at(Pod, &Builder::new(Transport::Sctp, client, vip).payload(&[])),
        at(Pod, &Builder::new(Transport::Sctp, client, end(OTHER_VIP, 443))),
        at(Pod, &Builder::new(Transport::Sctp, client, vip).payload(&[0; 700])),
    ];
    // Its checksum needs the length that the network header says.
    let length = if size_of::<A>() == 4 { ETHERNET + 2 } else { ETHERNET + 4 };
    for odd in [[0, 0], [0, 21], [0xff, 0xff]] {
        story.push(with(Pod, &packet, &[(length, odd[0]), (length + 1, odd[1])]));
    }
    story
}

/// An error about `quoted`, of which only so many bytes are quoted.
fn error<A: Family>(kind: u8, from: [u8; 4], to: [u8; 4], quoted: &[u8]) -> Builder<A> {
    Builder::new(Transport::Icmp(kind), end(from, 0), end(to, 0)).payload(quoted)
}

/// A pod's masqueraded packet as it was seen outside.
fn seen_outside<A: Family>(transport: Transport) -> Vec<u8> {
    let packet = Builder::new(transport, end::<A>(NODE, 5000), end(OUTSIDE, 53));
    packet.frame().bytes[ETHERNET..].to_vec()
}

/// Opens the flows that errors are about.
fn flows_outside<A: Family>() -> Vec<Arrival> {
    let sends =
        |transport| at(Pod, &Builder::new(transport, end::<A>(POD, 5000), end(OUTSIDE, 53)));
    vec![
        sends(Transport::Udp),
        sends(Transport::Tcp(SYN)),
        sends(Transport::Sctp),
        at(Pod, &Builder::ping(A::at(POD), A::at(OUTSIDE), 5000)),
    ]
}

fn errors<A: Family>() -> Vec<Arrival> {
    let mut story = flows_outside::<A>();
    let transports =
        [Transport::Udp, Transport::Tcp(SYN), Transport::Sctp, Transport::UdpUnchecked];
    for quoted in transports.map(seen_outside::<A>) {
        for kind in [A::UNREACHABLE, 2, 3, 4, 11, 12] {
            story.push(at(Uplink, &error::<A>(kind, OUTSIDE, NODE, &quoted)));
        }
        // From a router, to somebody else, and by other ways.
        story.push(at(Uplink, &error::<A>(A::UNREACHABLE, CLIENT, NODE, &quoted)));
        story.push(at(Uplink, &error::<A>(A::UNREACHABLE, CLIENT, POD, &quoted)));
        story.push(at(Pod, &error::<A>(A::UNREACHABLE, POD, NODE, &quoted)));
        story.push(at(Host, &error::<A>(A::UNREACHABLE, NODE, POD, &quoted)));
        story.push(at(Overlay, &error::<A>(A::UNREACHABLE, REMOTE_POD, NODE, &quoted)));
    }
    let ping = Builder::ping(A::at(NODE), A::at(OUTSIDE), 5000).frame().bytes;
    story.push(at(Uplink, &error::<A>(A::UNREACHABLE, OUTSIDE, NODE, &ping[ETHERNET..])));
    // About an error, and about a fragment.
    let about = error::<A>(A::UNREACHABLE, NODE, OUTSIDE, &ping[ETHERNET..]).frame().bytes;
    story.push(at(Uplink, &error::<A>(A::UNREACHABLE, OUTSIDE, NODE, &about[ETHERNET..])));
    for offset in [0, 4] {
        let piece = Builder::udp(end::<A>(NODE, 5000), end(OUTSIDE, 53)).fragment(offset, true);
        let piece = piece.frame().bytes;
        story.push(at(Uplink, &error::<A>(A::UNREACHABLE, OUTSIDE, NODE, &piece[ETHERNET..])));
    }
    story
}

fn short_errors<A: Family>() -> Vec<Arrival> {
    let mut story = flows_outside::<A>();
    let network = transport::<A>() - ETHERNET;
    for transport in [Transport::Udp, Transport::Tcp(SYN), Transport::Sctp] {
        let quoted = seen_outside::<A>(transport);
        for length in [0, 1, 4, 19, network - 1, network, network + 2, network + 4, network + 7] {
            let quoted = &quoted[..length];
            story.push(at(Uplink, &error::<A>(A::UNREACHABLE, OUTSIDE, NODE, quoted)));
        }
        for length in network + 7..=quoted.len().min(network + 20) {
            let quoted = &quoted[..length];
            story.push(at(Uplink, &error::<A>(A::UNREACHABLE, OUTSIDE, NODE, quoted)));
        }
        // The quoted header is of another version, or longer than what there is.
        for first in [0, 0x41, 0x4f, 0x55, 0x65] {
            let mut quoted = quoted.clone();
            quoted[0] = first;
            story.push(at(Uplink, &error::<A>(A::UNREACHABLE, OUTSIDE, NODE, &quoted)));
        }
    }
    story
}

/// A link has added to the packet what would be more of its quote.
fn followed_errors<A: Family>() -> Vec<Arrival> {
    let mut story = flows_outside::<A>();
    let network = transport::<A>() - ETHERNET;
    for transport in [Transport::Udp, Transport::Tcp(SYN), Transport::Sctp, Transport::EchoRequest]
    {
        let quoted = seen_outside::<A>(transport);
        for length in [network, network + 4, network + 8, network + 16] {
            let (quoted, trailer) = quoted.split_at(length.min(quoted.len()));
            let mut arrival = at(Uplink, &error::<A>(A::UNREACHABLE, OUTSIDE, NODE, quoted));
            arrival.bytes.extend(trailer);
            story.push(arrival);
        }
    }
    story
}

/// Each type that means something in either family, at a pod and from the network.
fn icmp_types<A: Family>() -> Vec<Arrival> {
    let mut story = Vec::new();
    for kind in [0, 1, 3, 4, 5, 8, 9, 10, 11, 13, 17, 127, 128, 130, 133, 134, 135, 136, 137, 255] {
        let message = |from| Builder::new(Transport::Icmp(kind), end::<A>(from, 0), end(NODE, 0));
        story.push(at(Pod, &message(POD)));
        story.push(at(Uplink, &message(CLIENT)));
    }
    // The other family's.
    let other = if A::ICMP == protocol::ICMP { protocol::ICMPV6 } else { protocol::ICMP };
    for kind in [1, 3, 8, 128, 136] {
        let message = Builder::new(Transport::Other(other), end::<A>(POD, 0), end(VIP, 0));
        story.push(at(Pod, &message.payload(&[kind, 0, 0, 0, 0, 9, 0, 1])));
    }
    story
}

fn hop_limits<A: Family>() -> Vec<Arrival> {
    let mut story = Vec::new();
    for hops in [0, 1, 2, 255] {
        for to in [VIP, OTHER_POD, REMOTE_POD, OUTSIDE, NODE] {
            let packet = Builder::udp(end::<A>(POD, 5000), end(to, 80)).hop_limit(hops);
            story.push(at(Pod, &packet));
            story.push(at(
                Uplink,
                &Builder::tcp(SYN, end::<A>(CLIENT, 5000), end(to, 80)).hop_limit(hops),
            ));
        }
        story.push(at(
            Pod,
            &Builder::udp(end::<A>(POD, 5), end(OUTSIDE, 8)).hop_limit(hops).whole(),
        ));
    }
    story
}

/// Nobody serves, or nobody has the address.
fn refusals<A: Family>() -> Vec<Arrival> {
    let mut story = Vec::new();
    for (address, port) in [(OTHER_VIP, 443), (VIP, 81), ([10, 96, 0, 99], 80)] {
        for transport in [
            Transport::Tcp(SYN),
            Transport::Tcp(ACK),
            Transport::Tcp(RST),
            Transport::Tcp(SYN | FIN),
            Transport::Udp,
            Transport::UdpUnchecked,
            Transport::Sctp,
            Transport::EchoRequest,
            Transport::Other(47),
        ] {
            for (place, from) in [(Pod, POD), (Uplink, CLIENT), (Overlay, REMOTE_POD)] {
                let packet = Builder::new(transport, end::<A>(from, 5000), end(address, port));
                story.push(at(place, &packet));
            }
        }
    }
    let long = Builder::udp(end::<A>(POD, 5000), end(OTHER_VIP, 443)).payload(&[3; 1300]);
    story.push(at(Pod, &long));
    story.push(at(Pod, &long.piece(0..64, true)));
    story
}

/// Sources that are not the sender's, and addresses that are nobody's.
fn spoofed<A: Family>() -> Vec<Arrival> {
    let mut story = Vec::new();
    for from in [OTHER_POD, NODE, CLIENT, VIP, REMOTE_POD, [0; 4], [127, 0, 0, 1], [255; 4]] {
        for place in PLACES {
            story.push(at(place, &Builder::udp(end::<A>(from, 5000), end(VIP, 80))));
        }
    }
    for to in [[0; 4], [127, 0, 0, 1], [169, 254, 169, 254], [224, 0, 0, 1], [255; 4], POD] {
        story.push(at(Pod, &Builder::udp(end::<A>(POD, 5000), end(to, 80))));
        story.push(at(Uplink, &Builder::udp(end::<A>(to, 5000), end(to, 5000))));
    }
    let loopback = Builder::udp((A::LOOPBACK, 5000), (A::LOOPBACK, 80));
    story.extend(PLACES.map(|place| at(place, &loopback)));
    story
}

/// Checksums that a device is to finish.
fn unfinished<A: Family>() -> Vec<Arrival> {
    let client = end::<A>(POD, 5000);
    let mut story = Vec::new();
    for to in [(VIP, 80), (OTHER_VIP, 443), (OUTSIDE, 53)] {
        for transport in [Transport::Tcp(SYN), Transport::Udp, Transport::Sctp] {
            let packet = Builder::new(transport, client, end(to.0, to.1)).partial(true);
            story.push(at(Pod, &packet));
            story.push(at(Pod, &packet.hop_limit(1)));
        }
    }
    story
}

/// More flows than the node has room for, all answered.
fn crowd<A: Family>() -> Vec<Arrival> {
    let mut story = Vec::new();
    for port in 5000..5012 {
        let (client, endpoint) = (end::<A>(POD, port), end(OTHER_POD, 8080));
        story.push(at(Pod, &Builder::tcp(SYN, client, end(VIP, 80))));
        story.push(at(Host, &Builder::tcp(SYN | ACK, endpoint, client)));
    }
    story.push(at(Pod, &Builder::tcp(ACK, end::<A>(POD, 5000), end(VIP, 80))));
    story.push(at(Pod, &Builder::tcp(ACK, end::<A>(POD, 5011), end(VIP, 80))));
    story
}

fn ask<A: Family>() -> Builder<A> {
    Builder::udp(end(POD, 5000), end(VIP, 80))
}

fn lengths4() -> Vec<Arrival> {
    let mut story = Vec::new();
    for place in PLACES {
        for total in [[0, 0], [0, 19], [0, 20], [0, 27], [0, 28], [0, 36], [0xff, 0xff]] {
            story.push(with(place, &ask::<V4>(), &[(16, total[0]), (17, total[1])]));
        }
        for version_and_length in [0x00, 0x40, 0x44, 0x46, 0x4f, 0x55, 0x65, 0xff] {
            story.push(with(place, &ask::<V4>(), &[(14, version_and_length)]));
        }
        // Its own checksum is wrong.
        story.push(with(place, &ask::<V4>(), &[(24, 0), (25, 0)]));
    }
    story
}

fn lengths6() -> Vec<Arrival> {
    let mut story = Vec::new();
    for place in PLACES {
        for length in [[0, 0], [0, 7], [0, 8], [0, 16], [0xff, 0xff]] {
            story.push(with(place, &ask::<V6>(), &[(18, length[0]), (19, length[1])]));
        }
        for version in [0x00, 0x40, 0x45, 0x70, 0xff] {
            story.push(with(place, &ask::<V6>(), &[(14, version)]));
        }
    }
    story
}

fn options4() -> Vec<Arrival> {
    const LOOSE_ROUTE: u8 = 131;
    const RECORD_ROUTE: u8 = 7;
    const TIMESTAMP: u8 = 68;
    let mut story = Vec::new();
    for (kind, content) in [
        (LOOSE_ROUTE, vec![4, 10, 96, 0, 10, 0]),
        (RECORD_ROUTE, vec![4, 0, 0, 0, 0, 0]),
        (TIMESTAMP, vec![5, 0, 0, 0, 0, 0]),
        (RECORD_ROUTE, vec![0; 38]),
    ] {
        let packet = ask::<V4>().option(kind, &content);
        story.push(at(Pod, &packet));
        story.push(at(Pod, &packet.clone().hop_limit(1)));
        // The option's own length is nobody's business here.
        story.push(with(Pod, &packet, &[(35, 0)]));
        story.push(with(Pod, &packet, &[(35, 255)]));
        story.extend(cut(Pod, &packet, 33..38));
        story.extend(cut(Uplink, &packet, 33..38));
        let long =
            Builder::tcp(SYN, end::<V4>(POD, 5000), end(OTHER_VIP, 443)).option(kind, &content);
        story.push(at(Pod, &long));
    }
    story
}

fn extensions6() -> Vec<Arrival> {
    const AUTHENTICATION: u8 = 51;
    const NO_NEXT: u8 = 59;
    let mut story = Vec::new();
    for kind in [HOP_BY_HOP, ROUTING, DESTINATION, AUTHENTICATION] {
        let packet = ask::<V6>().option(kind, &[0; 6]);
        story.push(at(Pod, &packet));
        story.push(at(Pod, &packet.clone().hop_limit(1)));
        story.extend(cut(Pod, &packet, 53..64));
        // It reaches beyond the packet.
        story.push(with(Pod, &packet, &[(55, 1)]));
        story.push(with(Pod, &packet, &[(55, 255)]));
    }
    for count in [2, 4, 5, 9] {
        let chain = |packet: Builder<V6>| {
            (0..count).fold(packet, |packet, _| packet.option(DESTINATION, &[0; 6]))
        };
        story.push(at(Pod, &chain(ask())));
        story.push(at(Pod, &chain(ask()).hop_limit(255)));
        story.push(at(Pod, &chain(Builder::tcp(SYN, end(POD, 5000), end(OTHER_VIP, 443)))));
        story.push(at(Pod, &chain(ask()).piece(0..8, true)));
        story.push(at(Uplink, &chain(ask())));
    }
    story.push(at(Pod, &ask::<V6>().option(DESTINATION, &[0; 558])));
    // An atomic fragment, two fragment headers, and one that is cut.
    let atomic = ask::<V6>().fragment(0, false);
    story.push(at(Pod, &atomic));
    story.push(with(Pod, &atomic, &[(54, FRAGMENT)]));
    story.extend(cut(Pod, &ask::<V6>().fragment(1, true), 54..63));
    story.push(at(Pod, &Builder::new(Transport::Other(NO_NEXT), end::<V6>(POD, 0), end(VIP, 0))));
    story
}

fn arp() -> Vec<Arrival> {
    let arp = |operation: u8, mac: u8, sender: [u8; 4], kind: [u8; 6]| {
        let frame = Builder::udp(end::<V4>(POD, 1), end(VIP, 1)).frame();
        let mut bytes = frame.bytes[..12].to_vec();
        bytes.extend(ARP);
        bytes.extend(kind);
        bytes.extend([0, operation, 0x02, 0, 0, 0, 0, mac]);
        bytes.extend(sender);
        bytes.extend([0; 6]);
        bytes.extend(OTHER_POD);
        Arrival { place: Pod, partial: false, bytes }
    };
    const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let mut story = Vec::new();
    for operation in [0, 1, 2, 3] {
        for sender in [POD, OTHER_POD, NODE, [0; 4]] {
            story.push(arp(operation, 2, sender, KIND));
            story.push(arp(operation, 3, sender, KIND));
        }
    }
    story.push(arp(1, 2, POD, [0, 6, 8, 0, 6, 4]));
    story.push(arp(1, 2, POD, [0, 1, 0x86, 0xdd, 6, 16]));
    story.push(arp(1, 2, POD, [0, 1, 8, 0, 255, 255]));
    for length in [14, 15, 22, 28, 32, 41] {
        let mut short = arp(1, 2, POD, KIND);
        short.bytes.truncate(length);
        story.push(short);
    }
    story
}

fn neighbours6() -> Vec<Arrival> {
    let own = [1, 1, 2, 0, 0, 0, 0, 2];
    let foreign = [2, 1, 2, 0, 0, 0, 0, 3];
    let mut story = Vec::new();
    for kind in [133, 134, 135, 136, 137] {
        for (target, options) in [
            (POD, own.to_vec()),
            (POD, foreign.to_vec()),
            (OTHER_POD, own.to_vec()),
            (POD, vec![]),
            (POD, vec![1, 0]),
            (POD, vec![1]),
            (POD, vec![1, 255]),
            (POD, [14, 1, 0, 0, 0, 0, 0, 0].repeat(5)),
        ] {
            let body = [V6::at(target).as_slice(), &options].concat();
            let message = Builder::new(Transport::Icmp(kind), end::<V6>(POD, 0), end(VIP, 0));
            let message = message.payload(&body).hop_limit(255);
            story.push(at(Pod, &message));
            if options.len() == 8 {
                let hidden =
                    (0..5).fold(message.clone(), |packet, _| packet.option(HOP_BY_HOP, &[0; 6]));
                story.push(at(Pod, &hidden));
                story.push(at(Pod, &message.clone().piece(0..24, true)));
            }
        }
        let short = Builder::new(Transport::Icmp(kind), end::<V6>(POD, 0), end(VIP, 0));
        story.push(at(Pod, &short.payload(&[])));
    }
    story
}

/// Frames with next to nothing in them.
fn short_frames() -> Vec<Arrival> {
    let mut story = Vec::new();
    for place in PLACES {
        let whole = [at(place, &ask::<V4>()), at(place, &ask::<V6>())];
        for whole in whole {
            for length in [0, 1, 12, 13, 14, 15, 33, 53] {
                let bytes = whole.bytes[..length.min(whole.bytes.len())].to_vec();
                story.push(Arrival { bytes, ..whole.clone() });
            }
            // It announces something else.
            for kind in [[0x08, 0x00], [0x86, 0xdd], [0x88, 0xcc], [0x81, 0x00], [0, 40]] {
                let mut bytes = whole.bytes.clone();
                bytes[12..14].copy_from_slice(&kind);
                story.push(Arrival { bytes, ..whole.clone() });
            }
        }
    }
    story
}
