//! Generated nodes: their Services and routes, among few enough addresses and ports that what is
//! generated meets.

use std::collections::BTreeMap;

use fairway_abi::{
    Endpoint, Frontend, FrontendKey, MemberKey, Pod, PodRange, RangeKey, Route, Ruling, RulingKey,
    Share, Subject, TunnelEnd, V4, V6, config, flow, frontend, peer, protocol, route, ruling,
    scope,
};
use fairway_core::memory::Memory;
use fairway_core::path::any_port;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::frame::Family;
use crate::kernel::{Devices, Kernel, Side};

/// Ranges of 24 bits and what lies in them; `kernel` says where the host's routes lead.
pub(crate) const PODS: [u8; 3] = [10, 244, 1];
pub(crate) const REMOTE: [u8; 3] = [10, 244, 2];
pub(crate) const DIRECT: [u8; 3] = [10, 244, 3];
pub(crate) const LOST: [u8; 3] = [203, 0, 113];

pub(crate) const fn within([a, b, c]: [u8; 3], d: u8) -> [u8; 4] {
    [a, b, c, d]
}

/// This node's pods.
pub(crate) const POD: [u8; 4] = within(PODS, 2);
pub(crate) const OTHER_POD: [u8; 4] = within(PODS, 3);
pub(crate) const NODE: [u8; 4] = [192, 0, 2, 1];
pub(crate) const PEER: [u8; 4] = [192, 0, 2, 2];
const VIPS: [u8; 3] = [10, 96, 0];
pub(crate) const VIP: [u8; 4] = within(VIPS, 10);
const OTHER_VIP: [u8; 4] = within(VIPS, 11);
pub(crate) const CLIENT: [u8; 4] = [198, 51, 100, 7];
const METADATA: [u8; 4] = [169, 254, 169, 254];

/// Everybody there is.
pub(crate) fn host<A: Special>() -> impl Strategy<Value = A> {
    let usual = [
        POD,
        OTHER_POD,
        VIP,
        OTHER_VIP,
        within(VIPS, 99), // no Service has it
        NODE,
        CLIENT,
        PEER,
        within(PODS, 9), // nobody has it
        within(REMOTE, 2),
        within(DIRECT, 2),
        within(LOST, 9),
    ];
    prop_oneof![24 => select(usual.map(A::at).to_vec()), 1 => select(A::special())]
}

/// The ports in use; 2000 is the one of a node with a single port.
pub(crate) fn port() -> impl Strategy<Value = u16> {
    let usual = [80, 443, 2000, 1500, 8080, 29_999];
    prop_oneof![12 => select(usual.to_vec()), 1 => select(vec![0, 1, 40_000, 65_535])]
}

/// Where packets come from: many of them from this node's pods.
pub(crate) fn source<A: Special>() -> impl Strategy<Value = (A, u16)> {
    let pod = select([POD, OTHER_POD].map(A::at).to_vec());
    (prop_oneof![pod, host::<A>()], port())
}

/// Where packets go: half of them where a Service may be.
pub(crate) fn destination<A: Special>() -> impl Strategy<Value = (A, u16)> {
    prop_oneof![frontend::<A>(), (host::<A>(), port())]
}

fn frontend<A: Family>() -> impl Strategy<Value = (A, u16)> {
    (select([VIP, OTHER_VIP, NODE].map(A::at).to_vec()), select(vec![80, 443]))
}

/// Addresses that are never forwarded.
pub(crate) trait Special: Family {
    fn special() -> Vec<Self>;
}

impl Special for V4 {
    fn special() -> Vec<Self> {
        vec![[0; 4], [127, 0, 0, 1], [169, 254, 1, 1], METADATA, [224, 0, 0, 1], [255; 4]]
    }
}

impl Special for V6 {
    fn special() -> Vec<Self> {
        let mut link_local = [0; 16];
        (link_local[0], link_local[1], link_local[15]) = (0xfe, 0x80, 1);
        let mut multicast = [0; 16];
        (multicast[0], multicast[1], multicast[15]) = (0xff, 0x02, 1);
        vec![[0; 16], std::net::Ipv6Addr::LOCALHOST.octets(), link_local, multicast]
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct World<A> {
    services: Vec<Service<A>>,
    masquerade: bool,
    /// First and last port for source translation.
    ports: (u16, u16),
    /// Which of the routes below there are.
    routes: [bool; 9],
    /// The peer's underlay is IPv6.
    underlay6: bool,
    /// What the peer's device wants to see inside; zero: anything.
    peer_mac: [u8; 6],
    /// The range of this node's pods is nobody else's.
    own_range: bool,
    policies: Option<Policies<A>>,
}

/// What restricts the pods.
#[derive(Clone, Debug)]
struct Policies<A> {
    /// Of each pod, its sets for ingress and for egress, if it is restricted.
    subjects: [Option<(u32, u32)>; 2],
    identities: Vec<(A, u32)>,
    /// Identities of those of [`BLOCKS`] that there are.
    blocks: [Option<u32>; BLOCKS.len()],
    rulings: BTreeMap<RulingKey, Ruling>,
    /// Bits of [`config`].
    flags: u32,
}

/// Ranges that rules may speak of, as of IPv4.
const BLOCKS: [([u8; 4], u32); 7] = [
    ([0; 4], 0),
    (within(PODS, 0), 24),
    (within(REMOTE, 0), 24),
    (CLIENT, 32),
    (within([198, 51, 100], 0), 25),
    (METADATA, 32),
    (NODE, 32),
];

/// Sets of rules, of which 0 is none; and how many identities there are.
const SETS: u32 = 3;
const IDENTITIES: u32 = 4;
/// What rules are numbered up to.
pub(crate) const RULES: u32 = 6;

fn policies<A: Special>() -> impl Strategy<Value = Policies<A>> {
    let subject = prop::option::weighted(0.7, (0..=SETS, 0..=SETS));
    let subjects = [subject.clone(), subject];
    let identities = vec((host::<A>(), 0..IDENTITIES), 0..6);
    let blocks = std::array::from_fn(|_| prop::option::weighted(0.4, 0..IDENTITIES));
    let verdict = (0..=RULES, prop::bool::weighted(0.35), any::<bool>());
    let verdict = verdict.prop_map(|(rule, denied, namespaced)| {
        let denied = if denied { ruling::DENIED } else { 0 };
        rule | denied | if namespaced { ruling::NAMESPACED } else { 0 }
    });
    let protocols =
        select(vec![protocol::TCP, protocol::TCP, protocol::UDP, protocol::SCTP, 1, 58]);
    let of_port = (protocols, port(), select(vec![0, 3, 10, 15, 16, 16]), verdict.clone());
    let of_somebody = (1..=SETS, 0..IDENTITIES, verdict, vec(of_port, 0..4));
    let to_node = select(vec![0, config::POLICED_TO_NODE]);
    let names = select(vec![0, config::NAME_CLIENTS]);
    let flags = (to_node, names).prop_map(|(to_node, names)| config::POLICED | to_node | names);
    (subjects, identities, blocks, vec(of_somebody, 0..10), flags).prop_map(
        |(subjects, identities, blocks, all, flags)| {
            let mut rulings = BTreeMap::new();
            for (set, identity, verdict, of_ports) in all {
                let (set, identity) = (U32::new(set), U32::new(identity));
                let first = RulingKey { set, identity, ..RulingKey::default() };
                let mut lengths = 0;
                for (protocol, port, length, verdict) in of_ports {
                    lengths |= 1 << length;
                    let mask = u16::MAX.checked_shl(16 - u32::from(length)).unwrap_or(0);
                    let port = U16::new(port & mask);
                    let key = RulingKey { protocol, length, port, ..first };
                    rulings.insert(key, Ruling { verdict, lengths: 0 });
                }
                let before = rulings.get(&first).map_or(0, |first: &Ruling| first.lengths);
                rulings.insert(first, Ruling { verdict, lengths: lengths | before });
            }
            Policies { subjects, identities, blocks, rulings, flags }
        },
    )
}

#[derive(Clone, Debug)]
struct Service<A> {
    frontend: (A, u16),
    protocol: u8,
    scopes: Vec<u8>,
    endpoints: Vec<(A, u16)>,
    /// Bits of [`frontend`].
    flags: u32,
    /// Clients stay with their endpoints, for longer than a test takes.
    stays: bool,
    /// Who is let in, where that is restricted: the 256 addresses around this one.
    lets_in: [u8; 3],
}

/// One port makes the choice of a port certain, and soon there is none left.
const ONE_PORT: (u16, u16) = (2000, 2000);
const MANY_PORTS: (u16, u16) = (1024, 29_999);

pub(crate) fn world<A: Special>() -> impl Strategy<Value = World<A>> {
    let protocols = select(vec![protocol::TCP, protocol::TCP, protocol::UDP, protocol::SCTP]);
    let usual = select([POD, OTHER_POD, within(DIRECT, 2)].map(A::at).to_vec());
    let endpoint = prop_oneof![usual, host::<A>()];
    let scopes = select(vec![
        vec![scope::INTERNAL, scope::EXTERNAL],
        vec![scope::INTERNAL, scope::EXTERNAL],
        vec![scope::INTERNAL],
        vec![scope::EXTERNAL],
    ]);
    // Some have several slots.
    let endpoints = vec(((endpoint, port()), select(vec![1, 1, 1, 3])), 0..4);
    let endpoints = endpoints.prop_map(|of_each| {
        of_each.into_iter().flat_map(|(one, slots)| std::iter::repeat_n(one, slots)).collect()
    });
    let flags = select(vec![
        0,
        0,
        0,
        frontend::ELSEWHERE,
        frontend::BY_FLOW,
        frontend::IN_TURN,
        frontend::GROWING,
        frontend::GROWING | frontend::IN_TURN,
        frontend::LEAST,
        frontend::LEAST | frontend::GROWING,
        frontend::LEAST | frontend::WEIGHED,
        frontend::SOURCE_RANGES,
        frontend::KEEP_CLIENT,
        frontend::KEEP_CLIENT | frontend::BY_FLOW,
        frontend::KEEP_CLIENT | frontend::DIRECT_RETURN,
        frontend::KEEP_CLIENT | frontend::DIRECT_RETURN,
    ]);
    let lets_in = select(vec![PODS, DIRECT, [198, 51, 100]]);
    let stays = prop::bool::weighted(0.3);
    let service = (frontend::<A>(), protocols, scopes, endpoints, flags, stays, lets_in);
    let service =
        service.prop_map(|(frontend, protocol, scopes, endpoints, flags, stays, lets_in)| {
            Service { frontend, protocol, scopes, endpoints, flags, stays, lets_in }
        });
    let ports = prop_oneof![Just(MANY_PORTS), Just(ONE_PORT)];
    let masquerade = prop::bool::weighted(0.8);
    let routes = std::array::from_fn(|at| {
        prop::bool::weighted(match at {
            // A range of Services ends most stories about other ways.
            7 => 0.3,
            // The last one leaves nothing to masquerade.
            8 => 0.1,
            _ => 0.85,
        })
    });
    let peer_mac = select(vec![[0; 6], [2, 0, 0, 0, 0, 9]]);
    let own_range = prop::bool::weighted(0.4);
    let policies = prop::option::weighted(0.25, policies::<A>());
    (vec(service, 1..11), masquerade, ports, routes, any::<bool>(), peer_mac, own_range, policies)
        .prop_map(
            |(services, masquerade, ports, routes, underlay6, peer_mac, own_range, policies)| {
                World {
                    services,
                    masquerade,
                    ports,
                    routes,
                    underlay6,
                    peer_mac,
                    own_range,
                    policies,
                }
            },
        )
}

/// The 256 addresses from this one on.
fn range<A: Family>(network: [u8; 4]) -> PodRange<A> {
    let mut mask = vec![0xff; size_of::<A>()];
    mask[size_of::<A>() - 1] = 0;
    let mask = A::read_from_bytes(&mask).expect("as long as an address");
    PodRange { network: A::at(network), mask }
}

impl<A: Special> World<A> {
    /// Its tables in memory.
    pub(crate) fn memory(&self, devices: &Devices) -> Memory<A> {
        let mut memory = Memory::<A>::default();
        if self.masquerade {
            memory.config.masquerade4 = V4::at(NODE);
            memory.config.masquerade6 = V6::at(NODE);
        }
        (memory.config.first_port, memory.config.last_port) = self.ports;
        memory.config.overlay_ifindex = devices.uplink;
        memory.config.vni = 1;
        for (address, ifindex) in [POD, OTHER_POD].into_iter().zip(devices.pods) {
            let last = address[3];
            let (mac, host_mac) = ([0x02, 0, 0, 0, 1, last], [0x02, 0, 0, 0, 2, last]);
            memory.pods.insert(A::at(address), Pod { ifindex, mac, host_mac, flags: 0 });
            memory.interfaces.insert(ifindex, A::at(address).interface());
        }
        for service in &self.services {
            let (address, port) = service.frontend;
            let key = memory.service(address, port, service.protocol, &service.endpoints);
            let record = Frontend {
                flags: service.flags,
                affinity: if service.stays { 10_000 } else { 0 },
                ..memory.frontends[&key]
            };
            let outside = FrontendKey { scope: scope::EXTERNAL, ..key };
            memory.frontends.extend([(key, record), (outside, record)]);
            memory.frontends.insert(any_port(address), Frontend { endpoints: 0, ..record });
            if service.flags & (frontend::GROWING | frontend::WEIGHED) != 0 {
                // One is new for longer than any test takes, the next not any more, of another
                // nothing is known.
                for (number, (address, port)) in service.endpoints.iter().enumerate() {
                    let (address, port) = (*address, U16::new(*port));
                    let endpoint = Endpoint { address, port, reserved: [0; 2] };
                    let key = MemberKey { service: U32::new(record.service), endpoint };
                    let share = |growth| Share {
                        since: U32::ZERO,
                        growth: U32::new(growth),
                        weight: U32::new(1 + growth % 3),
                    };
                    match number % 3 {
                        0 => drop(memory.shares.insert(key, share(u32::MAX))),
                        1 => drop(memory.shares.insert(key, share(0))),
                        _ => {}
                    }
                }
            }
            let length = 8 * u32::try_from(size_of::<A>()).expect("small") - 8;
            let network = A::at(within(service.lets_in, 0));
            // A Service in another's place has its number, too.
            if !memory.source_ranges.contains(&(record.port, length, network)) {
                memory.source_ranges.push((record.port, length, network));
            }
            for scope in [scope::INTERNAL, scope::EXTERNAL] {
                if !service.scopes.contains(&scope) {
                    let (port, protocol) = (U16::new(port), service.protocol);
                    memory.frontends.remove(&FrontendKey { address, port, protocol, scope });
                }
            }
        }
        memory.routes = self.routes();
        if self.own_range {
            memory.pod_range = range(within(PODS, 0));
        }
        if let Some(policies) = &self.policies {
            policies.put(&mut memory);
        }
        memory
    }

    fn routes(&self) -> Vec<(u32, A, Route<A>)> {
        let mut end = [0; 16];
        (end[10], end[11]) = (0xff, 0xff);
        end[12..].copy_from_slice(&PEER);
        let end = if self.underlay6 { V6::at(PEER) } else { end };
        let (own, overlay) = (A::at(NODE), A::at(within(PODS, 0)));
        let all = [
            (NODE, 32, route::HOST, A::UNSPECIFIED, [0; 16]),
            (within(PODS, 0), 24, route::HOST, A::UNSPECIFIED, [0; 16]),
            (within(REMOTE, 0), 24, route::TUNNEL, overlay, end),
            (within(DIRECT, 0), 24, route::DIRECT, own, [0; 16]),
            (PEER, 32, route::TUNNEL_NODE, overlay, end),
            (within(LOST, 0), 24, route::DIRECT, own, [0; 16]),
            (METADATA, 32, route::OUTSIDE, own, [0; 16]),
            (within(VIPS, 0), 24, route::SERVICES, A::UNSPECIFIED, [0; 16]),
            ([0; 4], 0, route::DIRECT, own, [0; 16]),
        ];
        let there = all.into_iter().zip(self.routes).filter(|(_, there)| *there);
        let bits = |of_four: u32| match of_four {
            0 => 0,
            _ => 8 * u32::try_from(size_of::<A>()).expect("small") - 32 + of_four,
        };
        there
            .map(|((prefix, length, kind, source, underlay), _)| {
                let known = [within(REMOTE, 0), within(DIRECT, 0), PEER].contains(&prefix);
                let pods = [within(REMOTE, 0), within(DIRECT, 0)].contains(&prefix);
                let takes_clients = pods && self.peer_mac == [0; 6];
                let flags = if known { peer::KNOWN } else { 0 }
                    | if prefix == PEER { peer::NODE } else { 0 }
                    | if takes_clients { peer::TAKES_CLIENTS } else { 0 };
                let mac = self.peer_mac;
                let peer = TunnelEnd { mac, flags: [flags, 0], ..TunnelEnd::at(underlay) };
                (bits(length), A::at(prefix), Route { kind: U32::new(kind), source, peer })
            })
            .collect()
    }
}

impl<A: Special> Policies<A> {
    fn put(&self, memory: &mut Memory<A>) {
        memory.config.flags |= self.flags;
        memory.config.policy = !flow::REVISION + 1;
        for (address, subject) in [POD, OTHER_POD].into_iter().zip(self.subjects) {
            if let Some((ingress, egress)) = subject {
                memory.subjects.insert(A::at(address), Subject { ingress, egress });
            }
        }
        memory.identities.extend(self.identities.iter().copied());
        for ((network, length), identity) in BLOCKS.into_iter().zip(self.blocks) {
            if let Some(identity) = identity {
                let bits = match length {
                    0 => 0,
                    _ => A::ADDRESS_BITS - 32 + length,
                };
                memory.blocks.push((
                    if bits == 0 { A::UNSPECIFIED } else { A::at(network) },
                    bits,
                    identity,
                ));
            }
        }
        memory.rulings.extend(self.rulings.iter().map(|(key, ruling)| (*key, *ruling)));
    }
}

/// Lets one of the rulings say the opposite, and has all flows be asked about anew; in memory and in the
/// kernel.
pub(crate) fn change_policies<A: Side>(
    memory: &mut Memory<A>,
    kernel: &mut Kernel<A>,
    which: &Index,
) {
    if memory.config.flags & config::POLICED == 0 {
        return;
    }
    let mut keys: Vec<_> = memory.rulings.keys().copied().collect();
    keys.sort_unstable();
    if !keys.is_empty() {
        let key = which.get(&keys);
        let ruling = memory.rulings.get_mut(key).expect("one of them");
        ruling.verdict ^= ruling::DENIED;
        kernel.rulings.put(key, ruling);
    }
    memory.config.policy = memory.config.policy.wrapping_add(!flow::REVISION + 1);
    kernel.configure(&memory.config);
}

/// The node of a [`World`] with its masquerade and routes, and without Services.
pub(crate) fn plain<A: Special>(devices: &Devices) -> Memory<A> {
    bare(Vec::new()).memory(devices)
}

fn bare<A>(services: Vec<Service<A>>) -> World<A> {
    World {
        services,
        masquerade: true,
        ports: MANY_PORTS,
        routes: [true, true, true, true, true, true, false, true, false],
        underlay6: false,
        peer_mac: [0; 6],
        own_range: true,
        policies: None,
    }
}

/// The node of a [`World`] with every route but the last, and Services of each protocol: one whose
/// endpoint is here, one that leads a pod to itself, one that anybody serves, and one that nobody does.
pub(crate) fn busy<A: Special>(devices: &Devices) -> Memory<A> {
    let everywhere = [POD, OTHER_POD, within(REMOTE, 2), within(DIRECT, 2), NODE, PEER, CLIENT];
    let everywhere: Vec<_> = everywhere.map(|endpoint| (A::at(endpoint), 8080)).into();
    let mut services = Vec::new();
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        for (address, port, endpoints) in [
            (VIP, 80, vec![(A::at(OTHER_POD), 8080)]),
            (VIP, 443, vec![(A::at(POD), 8443)]),
            (OTHER_VIP, 80, everywhere.clone()),
            (OTHER_VIP, 443, Vec::new()),
            (NODE, 30_080, everywhere.clone()),
        ] {
            services.push(Service {
                frontend: (A::at(address), port),
                protocol,
                scopes: vec![scope::INTERNAL, scope::EXTERNAL],
                endpoints,
                flags: 0,
                stays: false,
                lets_in: PODS,
            });
        }
    }
    bare(services).memory(devices)
}

/// The node of a [`World`] with every route, and VIP:80 in front of a pod behind the tunnel to `peer`;
/// answers who asks for it, too.
pub(crate) fn tunnelled<A: Special>(devices: &Devices, peer: V6) -> (Memory<A>, [(A, u16); 2]) {
    let (client, frontend) = ((A::at(POD), 40_000), (A::at(VIP), 80));
    let service = Service {
        frontend,
        protocol: protocol::TCP,
        scopes: vec![scope::INTERNAL],
        endpoints: vec![(A::at(within(REMOTE, 2)), 8080)],
        flags: 0,
        stays: false,
        lets_in: PODS,
    };
    let world = bare(vec![service]);
    let mut memory = world.memory(devices);
    for (.., route) in &mut memory.routes {
        if route.kind.get() == route::TUNNEL {
            route.peer = TunnelEnd::at(peer);
        }
    }
    (memory, [client, frontend])
}

/// Writes what is in memory to the kernel.
pub(crate) fn install<A: Side>(memory: &Memory<A>, kernel: &mut Kernel<A>) {
    kernel.configure(&memory.config);
    kernel.set_pod_range(&memory.pod_range);
    for (index, interface) in &memory.interfaces {
        kernel.add_interface(*index, interface);
    }
    let tables = &mut kernel.tables;
    memory.pods.iter().for_each(|(key, value)| tables.pods.put(key, value));
    memory.frontends.iter().for_each(|(key, value)| tables.frontends.put(key, value));
    memory.endpoints.iter().for_each(|(key, value)| tables.endpoints.put(key, value));
    memory.members.iter().for_each(|key| tables.members.put(key, &0));
    memory.shares.iter().for_each(|(key, share)| tables.shares.put(key, share));
    memory.source_ranges.iter().for_each(|(port, length, network)| {
        tables.source_ranges.put(&(32 + length, range_key(*port, *network)), &0);
    });
    memory.routes.iter().for_each(|(length, prefix, route)| {
        tables.routes.put(&(*length, *prefix), route);
    });
    memory.subjects.iter().for_each(|(key, value)| tables.subjects.put(key, value));
    memory.identities.iter().for_each(|(key, value)| tables.identities.put(key, value));
    memory.blocks.iter().for_each(|(network, length, identity)| {
        tables.blocks.put(&(*length, *network), identity);
    });
    memory.rulings.iter().for_each(|(key, value)| kernel.rulings.put(key, value));
    (1..=RULES).for_each(|rule| kernel.count_rule(rule));
}

fn range_key<A>(port: u32, network: A) -> RangeKey<A> {
    RangeKey { port: U32::new(port), network }
}

/// Takes it away again.
pub(crate) fn remove<A: Side>(memory: &Memory<A>, kernel: &mut Kernel<A>) {
    let tables = &mut kernel.tables;
    memory.frontends.keys().for_each(|key| tables.frontends.remove(key));
    memory.endpoints.keys().for_each(|key| tables.endpoints.remove(key));
    memory.members.iter().for_each(|key| tables.members.remove(key));
    memory.shares.keys().for_each(|key| tables.shares.remove(key));
    memory.source_ranges.iter().for_each(|(port, length, network)| {
        tables.source_ranges.remove(&(32 + length, range_key(*port, *network)));
    });
    memory.routes.iter().for_each(|(length, prefix, _)| tables.routes.remove(&(*length, *prefix)));
    memory.subjects.keys().for_each(|key| tables.subjects.remove(key));
    memory.identities.keys().for_each(|key| tables.identities.remove(key));
    memory.blocks.iter().for_each(|(network, length, _)| {
        tables.blocks.remove(&(*length, *network));
    });
    memory.rulings.keys().for_each(|key| kernel.rulings.remove(key));
}
