//! Keys and values of the kernel's tables: the one definition that eBPF programs and user space
//! share.
//!
//! Addresses and ports are byte arrays in network order; every other number is in the machine's own
//! order. A record that holds an address is generic over it ([`V4`], [`V6`]), so both families
//! share source and neither pays for the other. Nothing here has padding: a type with a hole does
//! not derive [`IntoBytes`], and each size is asserted below, a multiple of four. Programs find records at
//! multiples of four, as the kernel places them, and so copy words; user space finds them wherever bytes are.
//!
//! | table | key | value |
//! |---|---|---|
//! | `config` | 0 | [`Config`] |
//! | `frontends{4,6}` | [`FrontendKey`] | [`Frontend`] |
//! | `endpoints{4,6}` | [`EndpointKey`] | [`Endpoint`] |
//! | `members{4,6}` | [`MemberKey`] | slot, `u32` |
//! | `shares{4,6}` | [`MemberKey`] | [`Share`] |
//! | `loads{4,6}` | [`LoadKey`] | open connections, `u32` |
//! | `affinity{4,6}` | [`AffinityKey`] | [`Affinity`] |
//! | `source_ranges{4,6}` | prefix length and [`RangeKey`] | `u32`, zero |
//! | `turns` | number of a list, `u32` | turns taken, `u32` |
//! | `namespaces` | cookie of a network namespace, `u64` | [`Namespace`] |
//! | `pods{4,6}` | address | [`Pod`] |
//! | `pod_range{4,6}` | 0 | [`PodRange`] |
//! | `interfaces` | interface index, `u32` | [`Interface`] |
//! | `meters` | [`MeterKey`] | [`Meter`] |
//! | `paced` | index of a device that holds packets until they are to depart, `u32` | 1, `u32` |
//! | `routes{4,6}` | prefix length and address | [`Route`] |
//! | `peers{4,6}` | a peer's underlay address, as in [`TunnelEnd`] | an address that is routed to it |
//! | `half_open{4,6}`, `flows{4,6}` | [`FlowKey`] | [`Flow`] |
//! | `fragments{4,6}` | [`FragmentKey`] | [`Fragments`] |
//! | `connections{4,6}` | a TCP socket | [`Connection`] |
//! | `sockets{4,6}` | [`SocketKey`], for UDP | [`SocketPeer`] |
//! | `subjects{4,6}` | address of a pod of this node | [`Subject`] |
//! | `identities{4,6}` | address | identity, `u32` |
//! | `blocks{4,6}` | prefix length and address | identity, `u32` |
//! | `clients{4,6}` | [`FlowKey`] of packets with another node's address as their source | the client's address |
//! | `rulings` | [`RulingKey`] | [`Ruling`] |
//! | `rule_counts` | number of a rule, `u32` | [`RuleCount`] a CPU |
//! | `events` | | [`Event`], a ring |
//! | `names` | [`NameKey`] | [`NameAddresses`] |
//! | `zone` | 0 | [`Zone`] |
//! | `answers` | a sum of [`answered`], `u32` | packets, `u64` a CPU |
//! | `drops` | reason number, `u32` | packets, `u64` a CPU |
//! | `layout` | 0 | [`layout::Layout`] |
//! | `phase` | 0 | one of [`phase`], `u32` |
//! | `resolver` | 0 | until when this node's agent answers DNS queries: nanoseconds of the monotonic clock, `u64` |
//!
//! With the feature `next`, records that outlive programs (flows, and what sockets were given) have one
//! field more: a version for tests, which nobody runs, to go up to and down from.
#![no_std]

use zerocopy::network_endian::U16 as NetU16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, native_endian as ne};

pub use dns::{NameAddresses, NameKey, Zone, answered};
pub use policy::{Event, RuleCount, Ruling, RulingKey, Subject, event, ruling};

mod dns;
pub mod layout;
mod policy;

/// Names this set of layouts. Raise it when a record changes its size, its fields or their meaning: an
/// agent adopts only tables of its own version, and takes over what is in those of others by [`layout`].
pub const VERSION: u32 = if cfg!(feature = "next") { 5 } else { 4 };

/// An IPv4 address in network order.
pub type V4 = [u8; 4];
/// An IPv6 address in network order.
pub type V6 = [u8; 16];

/// What a record asks of an address: plain bytes of a fixed length.
pub trait Address:
    Copy + Eq + FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + 'static
{
    /// All bits zero.
    const UNSPECIFIED: Self;
    /// Length in bits.
    const WIDTH: u32;
    /// Where the agent of each node answers the DNS queries of that node, on [`RESOLVER_PORT`]. The address
    /// of IPv4 is the link-local one that NodeLocal DNSCache has, so that a kubelet that names it to pods
    /// need not be told anything. That of IPv6 is a unique local one (RFC 4193, 3.2.2): to use a link-local
    /// one, a socket has to name an interface, which no program can do for it.
    const RESOLVER: Self;
}

/// See [`Address::RESOLVER`].
pub const RESOLVER_PORT: u16 = 53;

impl Address for V4 {
    const UNSPECIFIED: Self = [0; 4];
    const WIDTH: u32 = 32;
    const RESOLVER: Self = [169, 254, 20, 10];
}

impl Address for V6 {
    const UNSPECIFIED: Self = [0; 16];
    const WIDTH: u32 = 128;
    const RESOLVER: Self = [0xfd, 0xed, 0xa7, 0xe2, 0x7c, 0x16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a];
}

/// IANA protocol numbers as they stand in an IP header.
pub mod protocol {
    /// RFC 792.
    pub const ICMP: u8 = 1;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
    /// RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// RFC 9260.
    pub const SCTP: u8 = 132;
}

/// What holds for the whole node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Config {
    /// Source of what leaves the cluster's pods for the outside; unspecified: no masquerade.
    pub masquerade4: V4,
    /// The same for IPv6.
    pub masquerade6: V6,
    /// Index of the overlay device; 0 where there is none.
    pub overlay_ifindex: u32,
    /// VXLAN network identifier of the overlay.
    pub vni: u32,
    /// First port (host order) that source translation may take when a client's own is not free.
    pub first_port: u16,
    /// Last one, inclusive.
    pub last_port: u16,
    /// The kernel's cookie of the node's network namespace; 0 where the kernel tells none.
    pub netns: ne::U64,
    /// Bits of [`config`].
    pub flags: u32,
    /// Which names the agent has written down for the lists of endpoints; 0 while lists come or go.
    /// No program looks at it: it is for whoever reads tables and names without the agent.
    pub names: u32,
    /// The state of policies that flows are held against: one that was allowed under another is asked for
    /// anew. Bits of [`flow::REVISION`]; never 0 where there are policies.
    pub policy: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`Config::flags`].
pub mod config {
    /// Some pods' sockets are left alone: see [`namespace`](super::namespace).
    pub const EXEMPT_PODS: u32 = 1;
    /// All pods' sockets are left alone.
    pub const NO_POD_SOCKETS: u32 = 1 << 1;
    /// Some device holds packets until they are to depart: table `paced` is not empty.
    pub const PACED: u32 = 1 << 2;
    /// Some pod is restricted: table `subjects` is not empty.
    pub const POLICED: u32 = 1 << 3;
    /// What pods send to this node itself is restricted as well.
    pub const POLICED_TO_NODE: u32 = 1 << 4;
    /// Some pod of the cluster is restricted, so nodes tell each other of clients whose address they replace.
    pub const NAME_CLIENTS: u32 = 1 << 7;
    /// Somebody watches drops.
    pub const WATCH_DROPS: u32 = 1 << 5;
    /// Somebody watches flows that are allowed.
    pub const WATCH_FLOWS: u32 = 1 << 6;
}

/// Whose processes are in a network namespace.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Namespace {
    /// The pod's addresses: who its sockets are as clients of a Service.
    pub addresses: Interface,
    /// Bits of [`namespace`].
    pub flags: u32,
}

/// Bits of [`Namespace::flags`].
pub mod namespace {
    /// Its sockets are left alone; what they send to Services is translated packet by packet.
    pub const EXEMPT: u32 = 1;
}

/// The addresses of this node's pods, which no packet from the network carries as its source: those
/// that are `network` under `mask`. All zeros: not known, and nothing is held against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct PodRange<A> {
    /// The first address.
    pub network: A,
    /// All ones for the prefix, all zeros for the rest.
    pub mask: A,
}

/// Where a packet that asks for a Service comes from.
pub mod scope {
    /// From a pod of this node or from the node itself.
    pub const INTERNAL: u8 = 0;
    /// From anywhere else.
    pub const EXTERNAL: u8 = 1;
    /// From a process of the node itself, by a loopback address. Pods have loopback addresses of their
    /// own.
    pub const LOOPBACK: u8 = 2;
}

/// An address and port at which a Service is reached.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct FrontendKey<A> {
    /// ClusterIP, or node address for a node port.
    pub address: A,
    /// Port.
    pub port: NetU16,
    /// IANA number.
    pub protocol: u8,
    /// See [`scope`].
    pub scope: u8,
}

/// The endpoints behind a frontend: slots `0..endpoints` of (`service`, `generation`), and how one of
/// them is chosen.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Frontend {
    /// Names the list of endpoints.
    pub service: u32,
    /// Tells a list from an earlier one under the same number.
    pub generation: u32,
    /// Length of the list.
    pub endpoints: u32,
    /// Bits of [`frontend`].
    pub flags: u32,
    /// Names the Service's port, which may have several lists: its clients' [`Affinity`] and its source
    /// ranges are kept under this number.
    pub port: u32,
    /// How long a client stays with its endpoint after its last new connection, in the units of
    /// [`Affinity::since`]; 0: each connection for itself.
    pub affinity: u32,
}

/// Bits of [`Frontend::flags`].
pub mod frontend {
    /// Only clients within one of the port's source ranges are let in.
    pub const SOURCE_RANGES: u32 = 1;
    /// There are endpoints, but none that may be used from here: what finds an empty list is dropped,
    /// so that a load balancer tries another node, and not refused.
    pub const ELSEWHERE: u32 = 1 << 1;
    /// The same flow finds the same slot on every node.
    pub const BY_FLOW: u32 = 1 << 2;
    /// The slots take turns.
    pub const IN_TURN: u32 = 1 << 3;
    /// Endpoints that are new get less than others: table `shares` has them.
    pub const GROWING: u32 = 1 << 4;
    /// Of two slots, the one whose endpoint has fewer connections open: table `loads` has them.
    pub const LEAST: u32 = 1 << 5;
    /// Beside [`LEAST`]: table `shares` says how many connections of one endpoint are as much as how many
    /// of another.
    pub const WEIGHED: u32 = 1 << 6;
    /// An endpoint behind a peer's tunnel sees the address of a client from outside.
    pub const KEEP_CLIENT: u32 = 1 << 7;
    /// An endpoint of a peer sees that address whatever the way there, and its node answers the client
    /// itself.
    pub const DIRECT_RETURN: u32 = 1 << 8;
    /// The agent of this node answers in the place of the endpoints, at [`Address::RESOLVER`](super::Address::RESOLVER),
    /// as long as it does (table `resolver`), or if there is no endpoint.
    pub const RESOLVER: u32 = 1 << 9;
}

/// An endpoint that is in a list whose clients stay with their endpoints.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct MemberKey<A> {
    /// As in [`Frontend`].
    pub service: ne::U32,
    /// The endpoint.
    pub endpoint: Endpoint<A>,
}

/// What an endpoint of a list gets, where that is not its slots alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(Unaligned))]
pub struct Share {
    /// When it came into the list, in the units of [`Affinity::since`].
    pub since: ne::U32,
    /// For how long from then on its share grows to the whole, in the same units; 0: it is whole.
    pub growth: ne::U32,
    /// How many connections of it are as much as one of an endpoint of weight 1.
    pub weight: ne::U32,
}

/// An endpoint whose connections are counted, whatever Services it is behind.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct LoadKey<A> {
    /// Its address.
    pub address: A,
    /// Its port.
    pub port: NetU16,
    /// IANA number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// A client of a Service's port.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct AffinityKey<A> {
    /// See [`Frontend::port`].
    pub port: ne::U32,
    /// The client's address.
    pub client: A,
}

/// The endpoint that a client stays with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct Affinity<A> {
    /// The endpoint.
    pub endpoint: Endpoint<A>,
    /// When the client last made a new connection: low bits of the seconds since the machine started,
    /// roughly (2^30 nanoseconds each).
    pub since: ne::U32,
}

/// A range of clients of a Service's port, to be looked up with the 32 bits of `port` and as many of
/// the address as the range has.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct RangeKey<A> {
    /// See [`Frontend::port`].
    pub port: ne::U32,
    /// The range's first address.
    pub network: A,
}

/// One place in a Service's list of endpoints.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct EndpointKey {
    /// As in [`Frontend`].
    pub service: u32,
    /// As in [`Frontend`].
    pub generation: u32,
    /// From 0.
    pub slot: u32,
}

/// What serves a Service.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct Endpoint<A> {
    /// Pod or node address.
    pub address: A,
    /// Port.
    pub port: NetU16,
    /// Zero.
    pub reserved: [u8; 2],
}

/// A pod of this node, found by one of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Pod {
    /// Index of the node's end of its veth.
    pub ifindex: u32,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// MAC address of the node's end.
    pub host_mac: [u8; 6],
    /// Bits of [`pod`].
    pub flags: u32,
}

/// Bits of [`Pod::flags`].
pub mod pod {
    /// What the pod receives is limited: there is a [`Meter`](super::Meter) for it.
    pub const INGRESS_LIMITED: u32 = 1;
}

/// Which traffic of a pod a [`Meter`] measures.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct MeterKey {
    /// Index of the node's end of the pod's veth.
    pub ifindex: u32,
    /// One of [`meter`].
    pub direction: u32,
}

/// Directions of a pod's traffic.
pub mod meter {
    /// What the pod receives.
    pub const INGRESS: u32 = 0;
    /// What the pod sends.
    pub const EGRESS: u32 = 1;
}

/// A limit of a pod's traffic, and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Meter {
    /// Bits a second; never 0.
    pub rate: u64,
    /// How far ahead of the clock `next` may be: the time that the burst takes at that rate, in
    /// nanoseconds.
    pub patience: u64,
    /// When all that has passed would have passed at that rate: a moment of the kernel's monotonic
    /// clock, in nanoseconds.
    pub next: u64,
    /// How far apart packets are at that rate, of late and on average, in nanoseconds; 0: none has passed.
    pub spacing: u64,
}

/// Who may send from the node's end of a pod's veth.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Interface {
    /// The pod's IPv4 address; unspecified if it has none.
    pub address4: V4,
    /// The pod's IPv6 address; unspecified if it has none.
    pub address6: V6,
}

/// What becomes of a packet for a destination that is not a pod of this node.
pub mod route {
    /// The node itself, or a range it answers for: up to the host's stack.
    pub const HOST: u32 = 0;
    /// A peer reached by plain routing, or a range outside where pods appear under their own
    /// addresses: forwarded untranslated as the host's routes say.
    pub const DIRECT: u32 = 1;
    /// A peer's pods, reached through the overlay.
    pub const TUNNEL: u32 = 2;
    /// A peer itself, reached through the overlay. Its own packets may come by either way.
    pub const TUNNEL_NODE: u32 = 3;
    /// Outside, as what has no route at all; for a range within another, or one that would else stay
    /// on its link.
    pub const OUTSIDE: u32 = 4;
    /// A range that Services get their addresses from: nobody else is there.
    pub const SERVICES: u32 = 5;
}

/// How a range of addresses is reached. A destination without a route is outside the cluster: it is
/// reached by plain routing, and pods appear there under the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct Route<A> {
    /// One of [`route`].
    pub kind: ne::U32,
    /// The source a translated packet takes so that the answer finds its way back here.
    pub source: A,
    /// The peer's end of the tunnel for [`route::TUNNEL`], else zero but for its flags.
    pub peer: TunnelEnd,
}

/// A peer's end of the overlay.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(Unaligned))]
pub struct TunnelEnd {
    /// Its underlay address, IPv4 as `::ffff:a.b.c.d`.
    pub underlay: V6,
    /// The destination MAC address that its device wants to see on a packet inside; zero where it
    /// takes any.
    pub mac: [u8; 6],
    /// In a route, bits of [`peer`] in the first byte; else zero.
    pub flags: [u8; 2],
}

impl TunnelEnd {
    /// One that takes any MAC address.
    pub const fn at(underlay: V6) -> Self {
        Self { underlay, mac: [0; 6], flags: [0; 2] }
    }

    /// Where it is, without what a route says of it.
    #[inline(always)]
    pub const fn alone(self) -> Self {
        Self { flags: [0; 2], ..self }
    }
}

/// Bits of [`TunnelEnd::flags`].
pub mod peer {
    /// A peer's address or its pods', rather than a range outside.
    pub const KNOWN: u8 = 1 << 1;
    /// A peer's own address.
    pub const NODE: u8 = 1 << 2;
    /// Pods of a peer that knows what to do with packets of clients from outside.
    pub const TAKES_CLIENTS: u8 = 1;
    /// An address at which an agent answers DNS queries, this node's or a peer's: to policies, its port for
    /// that is the cluster's DNS server, which they know as [`Address::RESOLVER`](super::Address::RESOLVER).
    pub const RESOLVER: u8 = 1 << 3;
}

/// A flow in one direction, as its packets look before translation.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct FlowKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port; the identifier of an ICMP echo request.
    pub source_port: NetU16,
    /// Destination port; the identifier of an ICMP echo reply.
    pub destination_port: NetU16,
    /// Zero.
    #[cfg(feature = "next")]
    pub zone: ne::U32,
    /// IANA number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

impl<A: Address> FlowKey<A> {
    /// All zeros: for the fields that a caller leaves as they are.
    pub const BLANK: Self = Self {
        #[cfg(feature = "next")]
        zone: ne::U32::ZERO,
        source: A::UNSPECIFIED,
        destination: A::UNSPECIFIED,
        source_port: NetU16::ZERO,
        destination_port: NetU16::ZERO,
        protocol: 0,
        reserved: [0; 3],
    };
}

/// What a flow's packets become, and what has been seen of it. Each flow has two records, one a
/// direction; each is the other's translation read backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct Flow<A> {
    /// Zero.
    #[cfg(feature = "next")]
    pub mark: ne::U32,
    /// Source address after translation; see [`flow::BY_PEER`] for what else it may be.
    pub source: A,
    /// Destination address after translation.
    pub destination: A,
    /// Source port after translation.
    pub source_port: NetU16,
    /// Destination port after translation.
    pub destination_port: NetU16,
    /// When this direction last carried a packet: low bits of the kernel's jiffies.
    pub last_seen: ne::U32,
    /// The Service that caused the translation, as in [`Frontend`]; 0 for masquerade alone.
    pub service: ne::U32,
    /// Bits of [`flow`].
    pub state: ne::U32,
}

impl<A: Address> Flow<A> {
    /// All zeros: for the fields that a caller leaves as they are.
    pub const BLANK: Self = Self {
        #[cfg(feature = "next")]
        mark: ne::U32::ZERO,
        source: A::UNSPECIFIED,
        destination: A::UNSPECIFIED,
        source_port: NetU16::ZERO,
        destination_port: NetU16::ZERO,
        last_seen: ne::U32::ZERO,
        service: ne::U32::ZERO,
        state: ne::U32::ZERO,
    };
}

/// Bits of [`Flow::state`]. Each record knows only its own direction's packets.
pub mod flow {
    /// This record translates answers.
    pub const REPLY: u32 = 1;
    /// A FIN passed in this direction.
    pub const FIN: u32 = 1 << 1;
    /// An RST passed in this direction.
    pub const RST: u32 = 1 << 2;
    /// An answer passed while the flow was half-open; it still is if there was no room elsewhere.
    pub const ANSWERED: u32 = 1 << 3;
    /// This record's answers go back through the tunnel to the peer that sent the client's packets,
    /// which translates them. They keep their source here; in its place, the record has an address that
    /// is routed to that peer.
    pub const BY_PEER: u32 = 1 << 4;
    /// Of the record of a client's packets: the endpoint's node answers them. It is told the frontend, and
    /// no answer is ever seen here.
    pub const DELEGATED: u32 = 1 << 5;
    /// The counterpart there, of the record of answers: they leave as those of a frontend that the client's
    /// packets do not have as their destination any more.
    pub const ON_BEHALF: u32 = 1 << 6;
    /// Opened by a program that left its packet to another one, which takes this away: the packet that it
    /// finds the record for is the first one still.
    pub const UNSEEN: u32 = 1 << 7;
    /// A process of this node opened it, so no policy is asked.
    pub const BY_HOST: u32 = 1 << 8;
    /// Of the record of a client's packets that leave under this node's address: they name the client, which
    /// may be a pod of a third node, for the endpoint's node to ask its policies about.
    pub const NAMES_CLIENT: u32 = 1 << 9;
    /// The counterpart there: table `clients` has the client that was named.
    pub const CLIENT_NAMED: u32 = 1 << 10;
    /// In these bits, the [`Config::policy`](super::Config::policy) under which it was allowed last; 0: it
    /// was not yet.
    pub const REVISION: u32 = !0 << 11;
}

/// Fragments of one packet, as they look before translation (RFC 791, 3.2; RFC 8200, 4.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, Immutable, KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// What they have in common; of IPv4 the last two bytes.
    pub identification: [u8; 4],
    /// IANA number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What the first fragment of a packet left for those that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(Unaligned))]
pub struct Fragments {
    /// Source port; the identifier of an ICMP echo request.
    pub source_port: NetU16,
    /// Destination port; the identifier of an ICMP echo reply.
    pub destination_port: NetU16,
    /// Where it ended, in bytes from the end of the network header.
    pub first_end: ne::U32,
    /// When it passed: low bits of the seconds since the machine started, roughly.
    pub noted: ne::U32,
}

/// What a TCP socket was given instead of the frontend it asked for; kept with the socket itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct Connection<A> {
    /// The endpoint.
    pub endpoint: SocketPeer<A>,
    /// The frontend that the socket believes it talks to.
    pub frontend: SocketPeer<A>,
}

/// A UDP socket and an endpoint it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct SocketKey<A> {
    /// Zero.
    #[cfg(feature = "next")]
    pub zone: ne::U32,
    /// The kernel's socket cookie.
    pub cookie: ne::U64,
    /// The endpoint's address.
    pub address: A,
    /// The endpoint's port.
    pub port: NetU16,
    /// IANA number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

impl<A: Address> SocketKey<A> {
    /// All zeros: for the fields that a caller leaves as they are.
    pub const BLANK: Self = Self {
        #[cfg(feature = "next")]
        zone: ne::U32::ZERO,
        cookie: ne::U64::ZERO,
        address: A::UNSPECIFIED,
        port: NetU16::ZERO,
        protocol: 0,
        reserved: 0,
    };
}

/// The other end of a socket: the frontend it believes to talk to, or the endpoint it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C), derive(IntoBytes, Unaligned))]
pub struct SocketPeer<A> {
    /// Zero.
    #[cfg(feature = "next")]
    pub mark: ne::U32,
    /// Its address.
    pub address: A,
    /// Its port.
    pub port: NetU16,
    /// Zero.
    pub reserved: [u8; 2],
}

impl<A: Address> SocketPeer<A> {
    /// All zeros: for the fields that a caller leaves as they are.
    pub const BLANK: Self = Self {
        #[cfg(feature = "next")]
        mark: ne::U32::ZERO,
        address: A::UNSPECIFIED,
        port: NetU16::ZERO,
        reserved: [0; 2],
    };
}

/// Why a packet was dropped. A number, once given, keeps its meaning for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum DropReason {
    /// The headers do not fit into the packet, or contradict each other.
    Malformed = 1,
    /// A pod sent from an address that is not its own, spoke for one, as a router, or as a node of its clients.
    SpoofedSource = 2,
    /// The Service has no endpoint; its client is told.
    NoEndpoint = 3,
    /// The table of flows has no room.
    NoFlowEntry = 4,
    /// The packet needs translation, but is a fragment and came before the first one, or without it.
    Fragment = 5,
    /// The packet needs translation, but its protocol has no ports that could be translated.
    UnsupportedProtocol = 6,
    /// The hop limit ended at this node, and the sender cannot be told.
    HopLimit = 7,
    /// A tunnelled packet did not come from the node its inner source belongs to, or what the host
    /// sent into the tunnel is for no peer.
    ForeignTunnel = 8,
    /// The kernel refused a change to the packet.
    Rewrite = 9,
    /// No source port was free that the packet could leave with.
    NoSourcePort = 10,
    /// The packet's sender was to be told why it goes no further, but too many were told of late.
    IcmpRateLimit = 11,
    /// The packet is too big for its way on, and its sender cannot be told.
    TooBig = 12,
    /// A packet from the network has a source that cannot be behind the device it came by.
    ForeignSource = 13,
    /// A fragment reaches back into the first one.
    FragmentOverlap = 14,
    /// A first fragment does not have all of its transport header.
    FragmentTiny = 15,
    /// A pod sent more than its limit allows.
    EgressRate = 16,
    /// A pod was sent more than its limit allows.
    IngressRate = 17,
    /// The Service has endpoints, but none that may be used from here.
    NoLocalEndpoint = 18,
    /// The client is in none of the Service's source ranges.
    SourceRange = 19,
    /// The Service at this address has no such port; the client is told.
    ClosedPort = 20,
    /// No Service has this address.
    UnallocatedAddress = 21,
    /// A packet asks for answers from an address and port that are no Service's, or not for its sender.
    ForeignFrontend = 22,
    /// No policy of the pod that sends allows it.
    PolicyEgress = 23,
    /// No policy of the pod that is to receive it allows it.
    PolicyIngress = 24,
}

impl DropReason {
    /// Every reason, in number order.
    pub const ALL: [Self; 24] = [
        Self::Malformed,
        Self::SpoofedSource,
        Self::NoEndpoint,
        Self::NoFlowEntry,
        Self::Fragment,
        Self::UnsupportedProtocol,
        Self::HopLimit,
        Self::ForeignTunnel,
        Self::Rewrite,
        Self::NoSourcePort,
        Self::IcmpRateLimit,
        Self::TooBig,
        Self::ForeignSource,
        Self::FragmentOverlap,
        Self::FragmentTiny,
        Self::EgressRate,
        Self::IngressRate,
        Self::NoLocalEndpoint,
        Self::SourceRange,
        Self::ClosedPort,
        Self::UnallocatedAddress,
        Self::ForeignFrontend,
        Self::PolicyEgress,
        Self::PolicyIngress,
    ];

    /// Room a table indexed by reason number needs.
    pub const TABLE: u32 = 32;

    /// Short name for metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::SpoofedSource => "spoofed_source",
            Self::NoEndpoint => "no_endpoint",
            Self::NoFlowEntry => "no_flow_entry",
            Self::Fragment => "fragment",
            Self::UnsupportedProtocol => "unsupported_protocol",
            Self::HopLimit => "hop_limit",
            Self::ForeignTunnel => "foreign_tunnel",
            Self::Rewrite => "rewrite",
            Self::NoSourcePort => "no_source_port",
            Self::IcmpRateLimit => "icmp_rate_limit",
            Self::TooBig => "too_big",
            Self::ForeignSource => "foreign_source",
            Self::FragmentOverlap => "fragment_overlap",
            Self::FragmentTiny => "fragment_tiny",
            Self::EgressRate => "egress_rate",
            Self::IngressRate => "ingress_rate",
            Self::NoLocalEndpoint => "no_local_endpoint",
            Self::SourceRange => "source_range",
            Self::ClosedPort => "closed_port",
            Self::UnallocatedAddress => "unallocated_address",
            Self::ForeignFrontend => "foreign_frontend",
            Self::PolicyEgress => "policy_egress",
            Self::PolicyIngress => "policy_ingress",
        }
    }

    /// What it means and, where there is something to do about it, what; for people. One line.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Malformed => "The packet's headers do not fit into it, or contradict each other.",
            Self::SpoofedSource => {
                "A pod sent from an address that is not its own, spoke for one in ARP or neighbour \
                 discovery, spoke as a router, or named another as the client, which nodes alone do."
            }
            Self::NoEndpoint => {
                "The Service has no endpoint that is ready; the client is told at once. Do its \
                 selector and its pods' labels agree, and are the pods ready?"
            }
            Self::NoFlowEntry => {
                "The table of flows is full; flows that end or fall silent make room."
            }
            Self::Fragment => {
                "The packet needs translation but is a fragment, and came before the first one or \
                 without it."
            }
            Self::UnsupportedProtocol => {
                "The packet needs translation, but its protocol has no ports that could be translated."
            }
            Self::HopLimit => "The hop limit ended at this node, and the sender cannot be told.",
            Self::ForeignTunnel => {
                "A packet in the tunnel came from another node than the one its source belongs to, or \
                 what the host sent into the tunnel is for no peer."
            }
            Self::Rewrite => "The kernel refused a change to the packet.",
            Self::NoSourcePort => {
                "No source port was free that the packet could leave the node with; \
                 --masquerade-ports says how many there are."
            }
            Self::IcmpRateLimit => {
                "The packet's sender was to be told why it goes no further, but too many were told of \
                 late."
            }
            Self::TooBig => "The packet is too big for its way on, and its sender cannot be told.",
            Self::ForeignSource => {
                "A packet from the network has a source that cannot be behind the device it came by."
            }
            Self::FragmentOverlap => "A fragment reaches back into the first one.",
            Self::FragmentTiny => "A first fragment does not have all of its transport header.",
            Self::EgressRate => {
                "A pod sent more than its limit allows (kubernetes.io/egress-bandwidth)."
            }
            Self::IngressRate => {
                "A pod was sent more than its limit allows (kubernetes.io/ingress-bandwidth)."
            }
            Self::NoLocalEndpoint => {
                "The Service has endpoints, but none on this node, and its traffic policy is Local; a \
                 load balancer finds a node that has one by the health check."
            }
            Self::SourceRange => {
                "The client is in none of the Service's source ranges (loadBalancerSourceRanges)."
            }
            Self::ClosedPort => {
                "A Service has the address, but not this port; the client is told at once."
            }
            Self::UnallocatedAddress => {
                "The address is in a range of Services, but no Service has it: the Service is gone, or \
                 not known to this node yet."
            }
            Self::ForeignFrontend => {
                "The packet asks for answers from an address and port that are no Service's as far as \
                 this node knows, or that do not let its sender in: another node forwards here by dsr, or \
                 somebody pretends to."
            }
            Self::PolicyEgress => {
                "A policy of the pod that sends does not allow it; fairway-proxy explain names the rule."
            }
            Self::PolicyIngress => {
                "A policy of the pod that is to receive it does not allow it; fairway-proxy explain names \
                 the rule."
            }
        }
    }
}

/// How far a switch from one set of tables to another is; see [`layout`]. The set has one phase, which its
/// programs read before they look anything up.
pub mod phase {
    /// Nothing was begun, or not all of it.
    pub const NONE: u32 = 0;
    /// Programs of either set are in force: what is new goes into the old tables, where all find it.
    pub const SWITCHING: u32 = 1;
    /// The new set's programs alone are in force: what is new goes into its tables, and what is in the old
    /// ones moves there.
    pub const DRAINING: u32 = 2;
    /// Nobody looks into the old tables any more.
    pub const DONE: u32 = 3;
}

/// What the feature `next` adds to a record.
const MORE: usize = if cfg!(feature = "next") { 4 } else { 0 };

/// A size that user space and a running kernel agree on must not change by accident.
const _: () = {
    assert!(size_of::<Config>() == 56 && size_of::<Namespace>() == 24);
    assert!(size_of::<PodRange<V4>>() == 8 && size_of::<PodRange<V6>>() == 32);
    assert!(size_of::<FrontendKey<V4>>() == 8 && size_of::<FrontendKey<V6>>() == 20);
    assert!(size_of::<Frontend>() == 24 && size_of::<EndpointKey>() == 12);
    assert!(size_of::<MemberKey<V4>>() == 12 && size_of::<MemberKey<V6>>() == 24);
    assert!(size_of::<Share>() == 12);
    assert!(size_of::<LoadKey<V4>>() == 8 && size_of::<LoadKey<V6>>() == 20);
    assert!(size_of::<AffinityKey<V4>>() == 8 && size_of::<AffinityKey<V6>>() == 20);
    assert!(size_of::<Affinity<V4>>() == 12 && size_of::<Affinity<V6>>() == 24);
    assert!(size_of::<RangeKey<V4>>() == 8 && size_of::<RangeKey<V6>>() == 20);
    assert!(size_of::<Endpoint<V4>>() == 8 && size_of::<Endpoint<V6>>() == 20);
    assert!(size_of::<Pod>() == 20 && size_of::<Interface>() == 20);
    assert!(size_of::<Route<V4>>() == 32 && size_of::<Route<V6>>() == 44);
    assert!(size_of::<TunnelEnd>() == 24);
    assert!(size_of::<MeterKey>() == 8 && size_of::<Meter>() == 32);
    assert!(size_of::<FlowKey<V4>>() == 16 + MORE && size_of::<FlowKey<V6>>() == 40 + MORE);
    assert!(size_of::<FragmentKey<V4>>() == 16 && size_of::<FragmentKey<V6>>() == 40);
    assert!(size_of::<Fragments>() == 12);
    assert!(size_of::<Flow<V4>>() == 24 + MORE && size_of::<Flow<V6>>() == 48 + MORE);
    assert!(size_of::<SocketKey<V4>>() == 16 + MORE && size_of::<SocketKey<V6>>() == 28 + MORE);
    assert!(
        size_of::<Connection<V4>>() == 16 + 2 * MORE
            && size_of::<Connection<V6>>() == 40 + 2 * MORE
    );
    assert!(size_of::<SocketPeer<V4>>() == 8 + MORE && size_of::<SocketPeer<V6>>() == 20 + MORE);
};
