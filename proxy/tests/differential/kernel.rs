//! The loaded programs and their tables, in a network around them that a route lookup can answer
//! from.
//!
//! ```text
//! pod, other ── the pods' veths        everything else ── GATEWAY behind `uplink`
//!                                      DIRECT          ── NEIGHBOUR behind `second`
//!                                      REMOTE, LOST    ── nowhere
//! ```
//!
//! The ranges that lead nowhere tell apart what the programs answer alike: a packet for the tunnel
//! that took the plain way would come back to the stack.

use std::path::Path;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf,
};
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunOptions, TestRunResult, Xdp};
use fairway_abi::{
    Affinity, AffinityKey, Config, DropReason, Endpoint, EndpointKey, Event, Flow, FlowKey,
    FragmentKey, Fragments, Frontend, FrontendKey, Interface, LoadKey, MemberKey, Meter, MeterKey,
    NameAddresses, NameKey, Pod, PodRange, RangeKey, Route, RuleCount, Ruling, RulingKey, Share,
    Subject, V4, V6, Zone,
};
use fairway_core::tables::Stage;
use fairway_netlink::{Netlink, Route as HostRoute, RouteKind, Veth, sysctl};
use fairway_proxy::dataplane::Dataplane;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::frame::Family;
use crate::world::{DIRECT, LOST, REMOTE};

const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 9, 1];
const NEIGHBOUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 9, 2];
const UPLINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 8, 1];
const SECOND_MAC: [u8; 6] = [0x02, 0, 0, 0, 8, 2];

/// The programs, with the tables of one family.
pub(crate) struct Kernel<A> {
    dataplane: Dataplane,
    pub(crate) devices: Devices,
    pub(crate) tables: Tables<A>,
    config: Array<MapData, [u8; size_of::<Config>()]>,
    pod_range: Box<dyn Table<u32, PodRange<A>>>,
    interfaces: Bytes<4, { size_of::<Interface>() }>,
    turns: Box<dyn Table<u32, u32>>,
    pub(crate) rulings: Box<dyn Table<RulingKey, Ruling>>,
    pub(crate) names: Box<dyn Table<NameKey, NameAddresses>>,
    pub(crate) zone: Box<dyn Table<u32, Zone>>,
    rule_counts: PerCpuHashMap<MapData, u32, [u8; size_of::<RuleCount>()]>,
    /// Drops counted before the last packet.
    drops: Vec<u64>,
}

/// The tables of limits.
pub(crate) struct Limits {
    pub(crate) meters: Box<dyn Table<MeterKey, Meter>>,
    pub(crate) paced: Box<dyn Table<u32, u32>>,
}

/// What programs have told and nobody has read yet.
pub(crate) struct Events(RingBuf<MapData>);

impl Events {
    /// Reads all of it, without the times.
    pub(crate) fn read(&mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(item) = self.0.next() {
            let event: Event = from_bytes(&item);
            assert!(event.time > 0);
            all.push(Event { time: 0, ..event });
        }
        all
    }
}

/// Interface indexes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    pub(crate) uplink: u32,
    pub(crate) pods: [u32; 2],
}

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// What it answered.
    pub(crate) action: i32,
    /// The frame afterwards; none where it is dropped.
    pub(crate) frame: Option<Vec<u8>>,
    /// Which drop it counted.
    pub(crate) dropped: Option<DropReason>,
}

impl<A: Side> Kernel<A> {
    pub(crate) fn start(bpffs: &Path) -> Self {
        Self::start_sized(bpffs, &[])
    }

    /// With tables of other sizes than the usual ones, as the agent's option says them.
    pub(crate) fn start_sized(bpffs: &Path, capacities: &[&str]) -> Self {
        let devices = build_network();
        let capacities: Vec<_> =
            capacities.iter().map(|capacity| capacity.parse().expect("a capacity")).collect();
        let dataplane = Dataplane::load_sized(bpffs, &capacities);
        let mut dataplane = dataplane.expect("programs that load");
        let ebpf = dataplane.ebpf();
        let config = Array::try_from(take(ebpf, "config")).expect("an array");
        let interfaces = Bytes::take(ebpf, "interfaces");
        let turns = Box::new(Bytes::<4, 4>::take(ebpf, "turns"));
        let rulings = Box::new(Bytes::<12, 8>::take(ebpf, "rulings"));
        let names = Box::new(Bytes::<128, 20>::take(ebpf, "names"));
        let zone = Box::new(Only::<12>::take(ebpf, "zone"));
        let rule_counts = PerCpuHashMap::try_from(take(ebpf, "rule_counts"));
        let rule_counts = rule_counts.expect("a hash table of counts");
        let pod_range = A::pod_range(ebpf);
        let tables = A::tables(ebpf);
        let drops = vec![0; DropReason::TABLE as usize];
        Self {
            dataplane,
            devices,
            tables,
            config,
            pod_range,
            interfaces,
            turns,
            rulings,
            names,
            zone,
            rule_counts,
            drops,
        }
    }

    /// What programs tell.
    pub(crate) fn events(&mut self) -> Events {
        let map = take(self.dataplane.ebpf(), "events");
        Events(RingBuf::try_from(map).expect("a ring"))
    }

    /// Begins to count what a rule decides.
    pub(crate) fn count_rule(&mut self, rule: u32) {
        let cpus = aya::util::nr_cpus().expect("a number of processors");
        let zeros = PerCpuValues::try_from(vec![[0; 16]; cpus]).expect("one value a processor");
        self.rule_counts.insert(rule, zeros, 0).expect("a table with room");
    }

    /// What a rule has decided.
    pub(crate) fn rule_count(&self, rule: u32) -> RuleCount {
        let counts = found(self.rule_counts.get(&rule, 0));
        let mut total = RuleCount::default();
        for count in counts.iter().flat_map(|counts| counts.iter()) {
            let count: RuleCount = from_bytes(count);
            total.allowed += count.allowed;
            total.denied += count.denied;
        }
        total
    }

    pub(crate) fn configure(&mut self, config: &Config) {
        self.config.set(0, to_bytes(config), 0).expect("a table to write");
    }

    pub(crate) fn set_pod_range(&mut self, range: &PodRange<A>) {
        self.pod_range.put(&0, range);
    }

    pub(crate) fn add_interface(&mut self, index: u32, interface: &Interface) {
        self.interfaces.put(&index, interface);
    }

    /// How often the lists have been chosen from, by their numbers; to be counted anew afterwards.
    pub(crate) fn turns(&self) -> Vec<(u32, u32)> {
        self.turns.entries()
    }

    pub(crate) fn forget_turns(&mut self) {
        for (service, _) in self.turns() {
            self.turns.remove(&service);
        }
    }

    /// Runs a classifier on a frame that came in through `device`.
    pub(crate) fn classify(&mut self, program: &str, device: u32, frame: &[u8]) -> Outcome {
        self.classify_in(program, &skb_context(device), frame)
    }

    /// The same with a packet that is a list of parts, each to be sent under a copy of its headers.
    pub(crate) fn classify_list(&mut self, program: &str, device: u32, frame: &[u8]) -> Outcome {
        const SEGMENT: usize = 176; // in struct __sk_buff
        const BY_PARTS: u32 = 0xffff;
        let mut context = [0; SEGMENT + 4];
        let front = skb_context(device);
        context[..front.len()].copy_from_slice(&front);
        context[SEGMENT..].copy_from_slice(&BY_PARTS.to_ne_bytes());
        self.classify_in(program, &context, frame)
    }

    fn classify_in(&mut self, program: &str, context: &[u8], frame: &[u8]) -> Outcome {
        let program = self.dataplane.ebpf().program_mut(program).expect("a program");
        let program: &mut SchedClassifier = program.try_into().expect("a classifier");
        let ran = run(program, context, frame);
        self.outcome(ran, SHOT)
    }

    /// The same, and the moment at which the packet is to depart; 0: at once.
    pub(crate) fn classify_in_time(
        &mut self,
        program: &str,
        device: u32,
        frame: &[u8],
    ) -> (Outcome, u64) {
        const TSTAMP: usize = 152; // in struct __sk_buff
        let context = skb_context(device);
        let mut left = [0; 192];
        let program = self.dataplane.ebpf().program_mut(program).expect("a program");
        let program: &mut SchedClassifier = program.try_into().expect("a classifier");
        let mut changed = vec![0; frame.len() + 256];
        let ran = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut changed),
            ctx_in: Some(&context),
            ctx_out: Some(&mut left),
            ..TestRunOptions::new()
        });
        let ran = ran.expect("a test run");
        changed.truncate(ran.data_size_out as usize);
        let outcome = self.outcome((ran.return_value.cast_signed(), changed), SHOT);
        let moment = u64::from_ne_bytes(*left[TSTAMP..].first_chunk().expect("eight bytes"));
        (outcome, moment)
    }

    /// The limits of pods, and the devices that hold packets.
    pub(crate) fn limits(&mut self) -> Limits {
        let ebpf = self.dataplane.ebpf();
        Limits {
            meters: Box::new(Bytes::<8, 32>::take(ebpf, "meters")),
            paced: Box::new(Bytes::<4, 4>::take(ebpf, "paced")),
        }
    }

    /// Two classifiers, to be run by hand.
    pub(crate) fn classifiers(
        &mut self,
        one: &str,
        other: &str,
    ) -> (&SchedClassifier, &SchedClassifier) {
        let ebpf = &*self.dataplane.ebpf();
        let find = |name| -> &SchedClassifier {
            let program = ebpf.program(name).expect("a program");
            program.try_into().expect("a classifier")
        };
        (find(one), find(other))
    }

    /// Runs the XDP program on a frame from the uplink.
    pub(crate) fn xdp(&mut self, frame: &[u8]) -> Outcome {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let length = u32::try_from(frame.len()).expect("a short frame");
        let fields = [0, length, 0, self.devices.uplink, 0, 0];
        let program = self.dataplane.ebpf().program_mut("uplink_xdp").expect("a program");
        let program: &mut Xdp = program.try_into().expect("an XDP program");
        if program.fd().is_err() {
            program.load().expect("a program that loads");
        }
        let ran = run(program, fields.as_bytes(), frame);
        self.outcome(ran, XDP_DROP)
    }

    /// Attaches a classifier to what a device receives; it stays as long as the programs do.
    pub(crate) fn attach(&mut self, program: &str, device: &str) {
        self.attach_at(program, device, TcAttachType::Ingress);
    }

    /// The same, to what a device sends.
    pub(crate) fn attach_to_egress(&mut self, program: &str, device: &str) {
        self.attach_at(program, device, TcAttachType::Egress);
    }

    fn attach_at(&mut self, program: &str, device: &str, side: TcAttachType) {
        // Where a program is attached before Linux 6.6; later kernels do not need it. It may be there.
        let _ = qdisc_add_clsact(device);
        let program = self.dataplane.ebpf().program_mut(program).expect("a program");
        let program: &mut SchedClassifier = program.try_into().expect("a classifier");
        program.attach(device, side).expect("an attachment");
    }

    fn outcome(&mut self, (action, frame): (i32, Vec<u8>), drop: i32) -> Outcome {
        let counted = self.count_drops();
        let dropped = DropReason::ALL
            .into_iter()
            .find(|reason| counted[*reason as usize] != self.drops[*reason as usize]);
        let total = |counters: &[u64]| counters.iter().sum::<u64>();
        let more = total(&counted) - total(&self.drops);
        assert_eq!(more, u64::from(dropped.is_some()), "at most one drop a packet is counted");
        self.drops = counted;
        Outcome { action, frame: (action != drop).then_some(frame), dropped }
    }

    /// Takes what was dropped so far for what it is: programs were run by hand.
    pub(crate) fn overlook_drops(&mut self) {
        self.drops = self.count_drops();
    }

    /// Drops so far, by reason.
    pub(crate) fn count_drops(&mut self) -> Vec<u64> {
        let map = self.dataplane.ebpf().map("drops").expect("a table");
        let map = PerCpuArray::<_, u64>::try_from(map).expect("counters");
        let count = |reason| map.get(&reason, 0).expect("a counter").iter().sum();
        (0..map.len()).map(count).collect()
    }
}

/// What the programs answer (`TC_ACT_*`, `XDP_*`).
pub(crate) const UNSPEC: i32 = -1;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;
pub(crate) const XDP_DROP: i32 = 1;
pub(crate) const XDP_PASS: i32 = 2;
pub(crate) const XDP_TX: i32 = 3;
pub(crate) const XDP_REDIRECT: i32 = 4;

/// The context of a packet that came in through `device`.
pub(crate) fn skb_context(device: u32) -> [u8; 44] {
    const IFINDEX: usize = 40; // in struct __sk_buff
    let mut context = [0; IFINDEX + 4];
    context[IFINDEX..].copy_from_slice(&device.to_ne_bytes());
    context
}

pub(crate) fn run(
    program: &impl for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
    context: &[u8],
    frame: &[u8],
) -> (i32, Vec<u8>) {
    let mut changed = vec![0; frame.len() + 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut changed),
        ctx_in: Some(context),
        ..TestRunOptions::new()
    };
    let ran = program.test_run(options);
    let ran = ran.unwrap_or_else(|error| panic!("a test run of {frame:02x?}: {error:?}"));
    changed.truncate(ran.data_size_out as usize);
    (ran.return_value.cast_signed(), changed)
}

/// The devices, routes and neighbours that the picture above shows.
fn build_network() -> Devices {
    let mut netlink = Netlink::open().expect("a netlink socket");
    for family in ["ipv4", "ipv6"] {
        sysctl::set(&format!("net/{family}/conf/all/forwarding"), "1").expect("forwarding");
    }
    // Without any address the kernel has no table to tell a gateway from a broadcast by.
    let loopback = netlink.link("lo").expect("an answer").expect("a loopback device").index;
    netlink.set_up(loopback).expect("up");
    let mut device = |name: &str, mac| {
        let peer_name = &format!("{name}-peer");
        let veth = Veth { name, peer_name, mac: Some(mac), ..Veth::default() };
        let index = netlink.create_veth(&veth).expect("a veth").index;
        let peer = netlink.link(peer_name).expect("an answer").expect("the other end").index;
        for index in [index, peer] {
            netlink.set_up(index).expect("up");
        }
        index
    };
    let uplink = device("uplink", UPLINK_MAC);
    let second = device("second", SECOND_MAC);
    let pods = [device("pod", [0x02, 0, 0, 0, 2, 2]), device("other", [0x02, 0, 0, 0, 2, 3])];
    let mut reach = |net: &str, gateway: &str, device, mac| {
        let gateway = gateway.parse().expect("an address");
        netlink.replace_neighbour(device, gateway, mac, true).expect("a neighbour");
        let route = HostRoute::to(net.parse().expect("a range"));
        let route =
            HostRoute { gateway: Some(gateway), device: Some(device), onlink: true, ..route };
        netlink.add_route(&route).expect("a route");
    };
    reach("0.0.0.0/0", "192.0.2.254", uplink, GATEWAY_MAC);
    reach("::/0", "fe80::254", uplink, GATEWAY_MAC);
    let [direct4, direct6] = both(DIRECT);
    reach(&direct4, "192.0.2.253", second, NEIGHBOUR_MAC);
    reach(&direct6, "fe80::253", second, NEIGHBOUR_MAC);
    for net in [REMOTE, LOST].into_iter().flat_map(both) {
        let route = HostRoute::to(net.parse().expect("a range"));
        let lost = HostRoute { kind: RouteKind::Blackhole, ..route };
        netlink.add_route(&lost).expect("a route to nowhere");
    }
    Devices { uplink, pods }
}

/// How the host sends a packet on: the device's own address and that of the neighbour behind it;
/// none if it does not.
pub(crate) fn way<A: Side>(source: A, destination: A) -> Option<Way> {
    let within = |range: [u8; 3]| {
        let [a, b, c] = range;
        let (range, address) = (A::at([a, b, c, 0]), destination);
        range.as_bytes().split_last().map(|(_, prefix)| prefix)
            == address.as_bytes().split_last().map(|(_, prefix)| prefix)
    };
    // Of IPv4, the lookup does not care who the sender is.
    let refused = size_of::<A>() == 16 && source.stays_on_link() || destination.stays_on_link();
    if within(REMOTE) || within(LOST) || refused {
        None
    } else if within(DIRECT) {
        Some(Way { back: false, macs: [NEIGHBOUR_MAC, SECOND_MAC] })
    } else {
        Some(Way { back: true, macs: [GATEWAY_MAC, UPLINK_MAC] })
    }
}

/// See [`way`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// Through the uplink.
    pub(crate) back: bool,
    /// Destination and source.
    pub(crate) macs: [[u8; 6]; 2],
}

/// A range of 24 bits, and the one that takes its place in IPv6.
fn both([a, b, c]: [u8; 3]) -> [String; 2] {
    let v6 = std::net::Ipv6Addr::from(V6::at([a, b, c, 0]));
    [format!("{a}.{b}.{c}.0/24"), format!("{v6}/120")]
}

/// A family with tables in the kernel.
pub(crate) trait Side: Family {
    fn tables(ebpf: &mut Ebpf) -> Tables<Self>;
    fn pod_range(ebpf: &mut Ebpf) -> Box<dyn Table<u32, PodRange<Self>>>;
    /// Whether the kernel refuses to look for a route from or to this address.
    fn stays_on_link(&self) -> bool;
}

/// The tables of a family.
pub(crate) struct Tables<A> {
    pub(crate) frontends: Box<dyn Table<FrontendKey<A>, Frontend>>,
    pub(crate) endpoints: Box<dyn Table<EndpointKey, Endpoint<A>>>,
    pub(crate) members: Box<dyn Table<MemberKey<A>, u32>>,
    pub(crate) shares: Box<dyn Table<MemberKey<A>, Share>>,
    pub(crate) loads: Box<dyn Table<LoadKey<A>, u32>>,
    pub(crate) affinity: Box<dyn Table<AffinityKey<A>, Affinity<A>>>,
    /// By length in bits and prefix.
    pub(crate) source_ranges: Box<dyn Table<(u32, RangeKey<A>), u32>>,
    pub(crate) pods: Box<dyn Table<A, Pod>>,
    /// By length in bits and prefix.
    pub(crate) routes: Box<dyn Table<(u32, A), Route<A>>>,
    pub(crate) clients: Box<dyn Table<FlowKey<A>, A>>,
    pub(crate) fragments: Box<dyn Table<FragmentKey<A>, Fragments>>,
    pub(crate) subjects: Box<dyn Table<A, Subject>>,
    pub(crate) identities: Box<dyn Table<A, u32>>,
    /// By length in bits and prefix.
    pub(crate) blocks: Box<dyn Table<(u32, A), u32>>,
    half_open: Box<dyn Table<FlowKey<A>, Flow<A>>>,
    established: Box<dyn Table<FlowKey<A>, Flow<A>>>,
}

impl<A> Tables<A> {
    pub(crate) fn flows(&mut self, stage: Stage) -> &mut dyn Table<FlowKey<A>, Flow<A>> {
        match stage {
            Stage::HalfOpen => &mut *self.half_open,
            Stage::Established => &mut *self.established,
        }
    }
}

impl Side for V4 {
    fn tables(ebpf: &mut Ebpf) -> Tables<Self> {
        Tables {
            frontends: Box::new(Bytes::<8, 24>::take(ebpf, "frontends4")),
            endpoints: Box::new(Bytes::<12, 8>::take(ebpf, "endpoints4")),
            members: Box::new(Bytes::<12, 4>::take(ebpf, "members4")),
            shares: Box::new(Bytes::<12, 12>::take(ebpf, "shares4")),
            loads: Box::new(Bytes::<8, 4>::take(ebpf, "loads4")),
            affinity: Box::new(Bytes::<8, 12>::take(ebpf, "affinity4")),
            source_ranges: Box::new(Prefixes::<8, 4>::take(ebpf, "source_ranges4")),
            pods: Box::new(Bytes::<4, 20>::take(ebpf, "pods4")),
            routes: Box::new(Prefixes::<4, 32>::take(ebpf, "routes4")),
            clients: Box::new(Bytes::<16, 4>::take(ebpf, "clients4")),
            fragments: Box::new(Bytes::<16, 12>::take(ebpf, "fragments4")),
            subjects: Box::new(Bytes::<4, 8>::take(ebpf, "subjects4")),
            identities: Box::new(Bytes::<4, 4>::take(ebpf, "identities4")),
            blocks: Box::new(Prefixes::<4, 4>::take(ebpf, "blocks4")),
            half_open: Box::new(Bytes::<16, 24>::take(ebpf, "half_open4")),
            established: Box::new(Bytes::<16, 24>::take(ebpf, "flows4")),
        }
    }

    fn pod_range(ebpf: &mut Ebpf) -> Box<dyn Table<u32, PodRange<Self>>> {
        Box::new(Only::<8>::take(ebpf, "pod_range4"))
    }

    fn stays_on_link(&self) -> bool {
        self[0] == 127
    }
}

impl Side for V6 {
    fn tables(ebpf: &mut Ebpf) -> Tables<Self> {
        Tables {
            frontends: Box::new(Bytes::<20, 24>::take(ebpf, "frontends6")),
            endpoints: Box::new(Bytes::<12, 20>::take(ebpf, "endpoints6")),
            members: Box::new(Bytes::<24, 4>::take(ebpf, "members6")),
            shares: Box::new(Bytes::<24, 12>::take(ebpf, "shares6")),
            loads: Box::new(Bytes::<20, 4>::take(ebpf, "loads6")),
            affinity: Box::new(Bytes::<20, 24>::take(ebpf, "affinity6")),
            source_ranges: Box::new(Prefixes::<20, 4>::take(ebpf, "source_ranges6")),
            pods: Box::new(Bytes::<16, 20>::take(ebpf, "pods6")),
            routes: Box::new(Prefixes::<16, 44>::take(ebpf, "routes6")),
            clients: Box::new(Bytes::<40, 16>::take(ebpf, "clients6")),
            fragments: Box::new(Bytes::<40, 12>::take(ebpf, "fragments6")),
            subjects: Box::new(Bytes::<16, 8>::take(ebpf, "subjects6")),
            identities: Box::new(Bytes::<16, 4>::take(ebpf, "identities6")),
            blocks: Box::new(Prefixes::<16, 4>::take(ebpf, "blocks6")),
            half_open: Box::new(Bytes::<40, 48>::take(ebpf, "half_open6")),
            established: Box::new(Bytes::<40, 48>::take(ebpf, "flows6")),
        }
    }

    fn pod_range(ebpf: &mut Ebpf) -> Box<dyn Table<u32, PodRange<Self>>> {
        Box::new(Only::<32>::take(ebpf, "pod_range6"))
    }

    fn stays_on_link(&self) -> bool {
        let address = std::net::Ipv6Addr::from(*self);
        address.is_multicast() || address.is_unicast_link_local() || address.is_loopback()
    }
}

/// A kernel table seen with the types of its records.
pub(crate) trait Table<K, V> {
    fn get(&self, key: &K) -> Option<V>;
    fn put(&mut self, key: &K, value: &V);
    fn remove(&mut self, key: &K);
    fn entries(&self) -> Vec<(K, V)>;
}

/// An array of one value of this size.
struct Only<const V: usize>(Array<MapData, [u8; V]>);

impl<const V: usize> Only<V> {
    fn take(ebpf: &mut Ebpf, name: &str) -> Self {
        Self(Array::try_from(take(ebpf, name)).expect("an array of this size"))
    }
}

impl<Value, const V: usize> Table<u32, Value> for Only<V>
where
    Value: FromBytes + IntoBytes + Immutable,
{
    fn get(&self, key: &u32) -> Option<Value> {
        found(self.0.get(key, 0)).map(|value| from_bytes(&value))
    }

    fn put(&mut self, key: &u32, value: &Value) {
        self.0.set(*key, to_bytes::<_, V>(value), 0).expect("a table to write");
    }

    fn remove(&mut self, key: &u32) {
        self.0.set(*key, [0; V], 0).expect("a table to write");
    }

    fn entries(&self) -> Vec<(u32, Value)> {
        self.get(&0).map(|value| (0, value)).into_iter().collect()
    }
}

/// A hash table of keys and values of these sizes.
struct Bytes<const K: usize, const V: usize>(HashMap<MapData, [u8; K], [u8; V]>);

impl<const K: usize, const V: usize> Bytes<K, V> {
    fn take(ebpf: &mut Ebpf, name: &str) -> Self {
        Self(HashMap::try_from(take(ebpf, name)).expect("a hash table of these sizes"))
    }
}

impl<Key, Value, const K: usize, const V: usize> Table<Key, Value> for Bytes<K, V>
where
    Key: FromBytes + IntoBytes + Immutable,
    Value: FromBytes + IntoBytes + Immutable,
{
    fn get(&self, key: &Key) -> Option<Value> {
        found(self.0.get(&to_bytes(key), 0)).map(|value| from_bytes(&value))
    }

    fn put(&mut self, key: &Key, value: &Value) {
        let put = self.0.insert(to_bytes::<_, K>(key), to_bytes::<_, V>(value), 0);
        put.expect("a table with room");
    }

    fn remove(&mut self, key: &Key) {
        self.0.remove(&to_bytes(key)).expect("a record to remove");
    }

    fn entries(&self) -> Vec<(Key, Value)> {
        let entries = self.0.iter().map(|entry| entry.expect("nobody else changes the table"));
        entries.map(|(key, value)| (from_bytes(&key), from_bytes(&value))).collect()
    }
}

/// A table of prefixes of such addresses.
struct Prefixes<const K: usize, const V: usize>(LpmTrie<MapData, [u8; K], [u8; V]>);

impl<const K: usize, const V: usize> Prefixes<K, V> {
    fn take(ebpf: &mut Ebpf, name: &str) -> Self {
        Self(LpmTrie::try_from(take(ebpf, name)).expect("a table of prefixes of these sizes"))
    }
}

impl<A, Value, const K: usize, const V: usize> Table<(u32, A), Value> for Prefixes<K, V>
where
    A: FromBytes + IntoBytes + Immutable,
    Value: FromBytes + IntoBytes + Immutable,
{
    fn get(&self, (length, prefix): &(u32, A)) -> Option<Value> {
        found(self.0.get(&Key::new(*length, to_bytes(prefix)), 0)).map(|value| from_bytes(&value))
    }

    fn put(&mut self, (length, prefix): &(u32, A), value: &Value) {
        let key = Key::new(*length, to_bytes(prefix));
        self.0.insert(&key, to_bytes::<_, V>(value), 0).expect("a table with room");
    }

    fn remove(&mut self, (length, prefix): &(u32, A)) {
        self.0.remove(&Key::new(*length, to_bytes(prefix))).expect("a prefix to remove");
    }

    fn entries(&self) -> Vec<((u32, A), Value)> {
        let entries = self.0.iter().map(|entry| entry.expect("nobody else changes the table"));
        let typed = |key: Key<[u8; K]>| (key.prefix_len(), from_bytes(&key.data()));
        entries.map(|(key, value)| (typed(key), from_bytes(&value))).collect()
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Map {
    ebpf.take_map(name).expect("a table of this name")
}

fn found<T>(result: Result<T, MapError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(MapError::KeyNotFound) => None,
        Err(error) => panic!("cannot read a table: {error}"),
    }
}

fn to_bytes<T: IntoBytes + Immutable, const N: usize>(value: &T) -> [u8; N] {
    value.as_bytes().try_into().expect("the table's sizes are those of its records")
}

fn from_bytes<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).expect("the table's sizes are those of its records")
}
