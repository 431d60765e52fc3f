//! Generated traffic: packets of every kind, valid and mutilated, and what follows on them.

use fairway_abi::V6;
use fairway_core::memory::Frame;
use fairway_core::neighbour;
use fairway_core::packet::{Headers, Ports, tcp};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::frame::{Builder, DESTINATION, Family, HOP_BY_HOP, ROUTING, Transport};
use crate::world::{OTHER_POD, POD, Special, destination, source};

/// Where a packet enters, and so which program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// A pod sends it: `pod_ingress`.
    Pod(usize),
    /// It arrives from the network: `uplink_ingress`.
    Uplink,
    /// The same, at `uplink_xdp` first.
    Xdp,
    /// A socket of the host sends it to a pod: `pod_egress`.
    ToPod,
    /// The host's stack sends it: `uplink_egress`.
    ToUplink,
    /// It is on the overlay device without a tunnel key: `overlay_ingress`.
    Overlay,
    /// The host's stack sends it there: `overlay_egress`.
    ToOverlay,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event<A> {
    /// A packet of its own.
    Fresh { entry: Entry, packet: Packet<A> },
    /// The receiver of an earlier packet answers, the way it would or another one.
    Answer { of: Index, flags: u8, entry: Option<Entry> },
    /// The sender of an earlier packet goes on, of a fragment with another one.
    Again { of: Index, flags: u8 },
    /// The receiver of an earlier packet complains about it, or somebody on its way does, and quotes
    /// some of it.
    Error { of: Index, complainant: Option<A>, kind: u8, quoted: u8, entry: Option<Entry> },
    /// Policies change: one of the rulings says the opposite from now on.
    Policies { ruling: Index },
}

/// A packet and where it entered.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) entry: Entry,
    pub(crate) before: Vec<u8>,
    /// As it left; none if it was dropped.
    pub(crate) after: Option<Vec<u8>>,
}

/// A packet to be built.
#[derive(Clone, Debug)]
pub(crate) struct Packet<A> {
    source: A,
    builder: Builder<A>,
    mutilation: Option<Mutilation>,
}

/// What went wrong with a packet.
#[derive(Clone, Debug)]
enum Mutilation {
    /// Some bits behind the Ethernet header changed.
    Flip { at: Index, bits: u8 },
    /// It ends early.
    Truncate(Index),
    /// It announces something else.
    Ethertype([u8; 2]),
    /// It is an ARP packet of this operation from this address, and names the MAC address it comes from
    /// or another.
    Arp { operation: u8, sender: [u8; 4], own_mac: bool },
}

const ETHERNET: usize = 14;

/// The kernel refuses to run programs on IP packets shorter than the fixed header of the version
/// they announce.
pub(crate) const fn shortest<A>() -> usize {
    if size_of::<A>() == 4 { ETHERNET + 20 } else { ETHERNET + 40 }
}

pub(crate) fn event<A: Special>() -> impl Strategy<Value = Event<A>> {
    let packet = prop_oneof![24 => packet::<A>(), 1 => about_neighbours::<A>()];
    let fresh = (any::<Index>(), packet).prop_map(|(way, packet)| {
        let ways = ways(packet.source);
        Event::Fresh { entry: *way.get(&ways), packet }
    });
    let answer = (any::<Index>(), flags(), prop::option::weighted(0.2, detour()))
        .prop_map(|(of, flags, entry)| Event::Answer { of, flags, entry });
    let again = (any::<Index>(), flags()).prop_map(|(of, flags)| Event::Again { of, flags });
    let error = (
        any::<Index>(),
        prop::option::of(source::<A>().prop_map(|(address, _)| address)),
        select(vec![A::UNREACHABLE, 2, 3, 4, 11, 12, 5, 128]),
        prop_oneof![3 => Just(u8::MAX), 2 => 0..90u8],
        prop::option::weighted(0.2, detour()),
    )
        .prop_map(|(of, complainant, kind, quoted, entry)| Event::Error {
            of,
            complainant,
            kind,
            quoted,
            entry,
        });
    let policies = any::<Index>().prop_map(|ruling| Event::Policies { ruling });
    prop_oneof![10 => fresh, 8 => answer, 6 => again, 8 => error, 1 => policies]
}

/// The places where a packet from this source may enter, likely ones more than once.
fn ways<A: Family>(source: A) -> Vec<Entry> {
    use Entry::{Overlay, Pod, ToOverlay, ToPod, ToUplink, Uplink, Xdp};
    let mut ways = vec![Pod(0), Uplink, Xdp, ToPod, ToUplink, Overlay, ToOverlay];
    let natural = natural(source);
    ways.extend([natural; 8]);
    if natural == Uplink {
        ways.extend([Xdp; 6]);
    }
    ways
}

/// Where a packet from this source enters.
fn natural<A: Family>(source: A) -> Entry {
    match source {
        source if source == A::at(POD) => Entry::Pod(0),
        source if source == A::at(OTHER_POD) => Entry::Pod(1),
        _ => Entry::Uplink,
    }
}

fn detour() -> impl Strategy<Value = Entry> {
    use Entry::{Pod, ToPod, ToUplink, Xdp};
    select(vec![Pod(0), Pod(1), Xdp, Xdp, ToPod, ToUplink])
}

fn flags() -> impl Strategy<Value = u8> {
    use tcp::{ACK, FIN, RST, SYN};
    let usual = [SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK];
    prop_oneof![15 => select(usual.to_vec()), 1 => any::<u8>()]
}

fn packet<A: Special>() -> impl Strategy<Value = Packet<A>> {
    let transport = prop_oneof![
        8 => flags().prop_map(Transport::Tcp),
        4 => Just(Transport::Udp),
        2 => Just(Transport::Sctp),
        1 => Just(Transport::UdpUnchecked),
        2 => Just(Transport::EchoRequest),
        1 => Just(Transport::EchoReply),
        1 => any::<u8>().prop_map(Transport::Icmp),
        1 => select(vec![2, 47, 50, 59, 132, 255]).prop_map(Transport::Other),
    ];
    let ends = (source::<A>(), destination::<A>());
    let hop_limit = prop_oneof![8 => Just(64), 1 => select(vec![0, 1, 2, 255])];
    let fragment = (select(vec![0, 0, 0, 1, 2, 4, 185]), any::<bool>());
    (
        (transport, ends, hop_limit),
        vec(any::<u8>(), 0..32),
        prop::option::weighted(0.15, vec(option::<A>(), 1..4)),
        prop::option::weighted(0.25, fragment),
        prop::option::weighted(0.15, mutilation()),
    )
        .prop_map(
            |((transport, (from, to), hop_limit), payload, options, fragment, mutilation)| {
                let builder =
                    Builder::new(transport, from, to).hop_limit(hop_limit).payload(&payload);
                let add = |builder: Builder<A>, (kind, content): (u8, Vec<u8>)| {
                    builder.option(kind, &content)
                };
                let builder = options.into_iter().flatten().fold(builder, add);
                let builder = match fragment {
                    Some((offset, more)) => builder.fragment(offset, more),
                    None => builder,
                };
                Packet { source: from.0, builder, mutilation }
            },
        )
}

/// A message about neighbours or routers: a target, and an option that names a MAC address.
fn about_neighbours<A: Special>() -> impl Strategy<Value = Packet<A>> {
    let kind = select(vec![5, 133, 134, 135, 136, 136, 137]);
    let sources = [vec![A::at(POD), A::at(OTHER_POD)], A::special()].concat();
    let target = select([vec![V6::at(POD), V6::at(OTHER_POD)], V6::special()].concat());
    let option = select(vec![
        vec![],
        vec![1, 1, 2, 0, 0, 0, 0, 2],
        vec![2, 1, 2, 0, 0, 0, 0, 2],
        vec![2, 1, 2, 0, 0, 0, 0, 3],
        vec![14, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 2],
        vec![1, 0],
    ]);
    let extensions = prop_oneof![8 => Just(0), 1 => 1..6];
    (kind, select(sources), select(A::special()), target, option, extensions).prop_map(
        |(kind, from, to, target, option, extensions)| {
            let body = [target.as_slice(), &option].concat();
            let message = Builder::new(Transport::Icmp(kind), (from, 0), (to, 0));
            let mut builder = message.payload(&body).hop_limit(255);
            if size_of::<A>() == 16 {
                for _ in 0..extensions {
                    builder = builder.option(DESTINATION, &[0; 6]);
                }
            }
            Packet { source: from, builder, mutilation: None }
        },
    )
}

/// An IPv4 option or an IPv6 extension header: some name a frontend for another node to answer as.
fn option<A: Special>() -> BoxedStrategy<(u8, Vec<u8>)> {
    let names = destination::<A>().prop_map(|(address, port)| {
        let (address, port) = (address.as_bytes(), port.to_be_bytes());
        if size_of::<A>() == 4 {
            (30, [&port[..], address].concat())
        } else {
            (DESTINATION, [&[30, 20], address, &port, &[0, 0]].concat())
        }
    });
    prop_oneof![1 => other_option::<A>(), 1 => names].boxed()
}

/// Any other, some of which reach beyond where programs look.
fn other_option<A: Family>() -> BoxedStrategy<(u8, Vec<u8>)> {
    if size_of::<A>() == 4 {
        let kinds = select(vec![7, 68, 131, 148, 136]);
        return (kinds, select(vec![2, 6])).prop_map(|(kind, n)| (kind, vec![0; n])).boxed();
    }
    let kinds = select(vec![HOP_BY_HOP, ROUTING, DESTINATION]);
    let lengths = prop_oneof![8 => select(vec![6, 14]), 1 => Just(558)];
    (kinds, lengths).prop_map(|(kind, n)| (kind, vec![0; n])).boxed()
}

fn mutilation() -> impl Strategy<Value = Mutilation> {
    prop_oneof![
        4 => (any::<Index>(), 1..=255u8).prop_map(|(at, bits)| Mutilation::Flip { at, bits }),
        3 => any::<Index>().prop_map(Mutilation::Truncate),
        1 => select(vec![[0x08, 0x00], [0x86, 0xdd], [0x88, 0xcc], [0x00, 0x10]])
            .prop_map(Mutilation::Ethertype),
        2 => (1..4u8, select(vec![POD, OTHER_POD, [0; 4], [192, 0, 2, 1]]), prop::bool::weighted(0.8))
            .prop_map(|(operation, sender, own_mac)| Mutilation::Arp { operation, sender, own_mac }),
    ]
}

impl<A: Family> Packet<A> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.builder.frame().bytes;
        match &self.mutilation {
            Some(Mutilation::Flip { at, bits }) => {
                let at = ETHERNET + at.index(bytes.len() - ETHERNET);
                bytes[at] ^= bits;
            }
            Some(Mutilation::Truncate(at)) => {
                // Mostly within the transport header, where a cut matters.
                bytes.truncate(shortest::<A>() + at.index(32));
            }
            Some(Mutilation::Ethertype(kind)) => {
                bytes[12..ETHERNET].copy_from_slice(kind);
                bytes.resize(bytes.len().max(shortest::<V6>()), 0);
            }
            Some(Mutilation::Arp { operation, sender, own_mac }) => {
                let mut mac: [u8; 6] = bytes[6..12].try_into().expect("six bytes");
                mac[5] ^= u8::from(!own_mac);
                bytes[12..ETHERNET].copy_from_slice(&neighbour::ARP);
                bytes.resize(bytes.len().max(ETHERNET + 28), 0);
                let head = [0, 1, 0x08, 0, 6, 4, 0, *operation];
                let arp = [head.as_slice(), &mac, sender].concat();
                bytes[ETHERNET..ETHERNET + arp.len()].copy_from_slice(&arp);
            }
            None => {}
        }
        bytes
    }
}

impl<A: Family> Event<A> {
    /// The packet that the event brings, after what was sent before; none if there is nothing to
    /// answer or to repeat.
    pub(crate) fn packet(&self, before: &[Sent]) -> Option<(Entry, Vec<u8>)> {
        let earlier = |of: &Index| (!before.is_empty()).then(|| of.get(before));
        match self {
            Self::Fresh { entry, packet } => Some((*entry, packet.bytes())),
            Self::Again { of, flags } => {
                let Sent { entry, before, .. } = earlier(of)?;
                let mut bytes = before.clone();
                let headers = A::parse(&Frame::new(bytes.clone()));
                if let Ok(headers) = headers
                    && headers.ports == Ports::Fragment
                {
                    // Another fragment of the same packet; its header need not be valid here.
                    let v4 = size_of::<A>() == 4;
                    let offset = if v4 { 21 } else { headers.transport as usize - 5 };
                    bytes[offset] = if v4 { *flags >> 3 } else { *flags };
                }
                if let Ok(headers) = headers
                    && headers.protocol == fairway_abi::protocol::TCP
                    && headers.ports == Ports::Known
                {
                    bytes[headers.transport as usize + 13] = *flags;
                }
                Some((*entry, bytes))
            }
            Self::Answer { of, flags, entry } => {
                let received = Frame::new(earlier(of)?.after.clone()?);
                let headers = A::parse(&received).ok()?;
                let builder = answer(&headers, *flags)?;
                Some((entry.unwrap_or(natural(headers.destination)), builder.frame().bytes))
            }
            Self::Policies { .. } => None,
            Self::Error { of, complainant, kind, quoted: quoted_length, entry } => {
                let received = earlier(of)?.after.clone()?;
                let headers = A::parse(&Frame::new(received.clone())).ok()?;
                let from = complainant.unwrap_or(headers.destination);
                let quoted = &received[ETHERNET..];
                let quoted = &quoted[..quoted.len().min(usize::from(*quoted_length))];
                let error = Transport::Icmp(*kind);
                let builder = Builder::new(error, (from, 0), (headers.source, 0)).payload(quoted);
                Some((entry.unwrap_or(natural(from)), builder.frame().bytes))
            }
        }
    }
}

fn answer<A: Family>(to: &Headers<A>, flags: u8) -> Option<Builder<A>> {
    if to.ports != Ports::Known {
        return None;
    }
    let transport = match to.protocol {
        fairway_abi::protocol::TCP => Transport::Tcp(flags),
        fairway_abi::protocol::UDP => Transport::Udp,
        fairway_abi::protocol::SCTP => Transport::Sctp,
        _ if to.source_port.get() != 0 => Transport::EchoReply,
        _ => Transport::EchoRequest,
    };
    let from = (to.destination, to.destination_port.get());
    Some(Builder::new(transport, from, (to.source, to.source_port.get())))
}
