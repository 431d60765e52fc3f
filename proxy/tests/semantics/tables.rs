//! A story's tables: from its objects by way of the control plane and the compiler, in memory and in
//! the kernel.

use std::collections::HashMap;

use fairway_abi::{EndpointKey, Frontend, MemberKey, Namespace, Pod, RangeKey, Share};
use fairway_compile::{Backend, Family, FamilyTables, View};
use fairway_core::memory::Memory;
use fairway_core::tables::Stage;
use zerocopy::native_endian::U32;

use crate::kernel::{Devices, Kernel, Side};
use crate::story::{self, Story};
use crate::{NODE_NETNS, POD_NETNS};

/// The tables of the story's node.
pub(crate) fn compile<A: Side + Family + OfFamily>(story: &Story, devices: &Devices) -> Memory<A> {
    let model = story.model();
    let view = View {
        node: story::NODE_NAME.to_owned(),
        addresses: story.addresses(),
        on_link: story.on_link(),
        backend: Backend::Auto,
        overlay_ifindex: devices.uplink,
        vni: 1,
        netns: NODE_NETNS,
        node_port_ranges: story.node_port_ranges(),
        loopback_node_ports: story.options.localhost_node_ports || story.options.iptables_compat,
        unserved_passes: story.options.iptables_compat,
        forwarding: story.options.forwarding,
        no_pod_sockets: story.options.no_pod_sockets,
        ..View::default()
    };
    let tables = fairway_compile::compile(&model, &view).expect("the story has node n1");
    let mut memory = Memory::<A> { config: tables.config, ..Memory::default() };
    // One of the two is of this family.
    let of_family = A::family(&tables);
    fill(&mut memory, of_family);
    for (number, (address, ifindex)) in (0..).zip(story::PODS.into_iter().zip(devices.pods)) {
        let last = address[3];
        let (mac, host_mac) = ([0x02, 0, 0, 0, 1, last], [0x02, 0, 0, 0, 2, last]);
        memory.pods.insert(A::at(address), Pod { ifindex, mac, host_mac, flags: 0 });
        let addresses = A::at(address).interface();
        memory.interfaces.insert(ifindex, addresses);
        memory.namespaces.insert(POD_NETNS + number, Namespace { addresses, flags: 0 });
    }
    memory
}

/// Picks the tables of a family.
pub(crate) trait OfFamily: Sized {
    fn family(tables: &fairway_compile::Tables) -> &FamilyTables<Self>;
}

impl OfFamily for fairway_abi::V4 {
    fn family(tables: &fairway_compile::Tables) -> &FamilyTables<Self> {
        &tables.v4
    }
}

impl OfFamily for fairway_abi::V6 {
    fn family(tables: &fairway_compile::Tables) -> &FamilyTables<Self> {
        &tables.v6
    }
}

fn fill<A: Side + Family>(memory: &mut Memory<A>, tables: &FamilyTables<A>) {
    memory.pod_range = tables.pod_range;
    memory.peers = tables.peers.iter().map(|(end, address)| (*end, *address)).collect();
    let mut ports = HashMap::new();
    for (service, list) in (1..).zip(&tables.services) {
        let port = list.port().map_or(service, |port| *ports.entry(port).or_insert(service));
        let slots =
            list.layout().unwrap_or_else(|| list.endpoints.iter().copied().collect::<Vec<_>>());
        let record = Frontend {
            service,
            generation: 0,
            endpoints: u32::try_from(slots.len()).expect("few endpoints"),
            flags: list.choice.flags,
            port,
            affinity: list.choice.affinity,
        };
        for (key, flags) in &list.frontends {
            memory.frontends.insert(*key, Frontend { flags: record.flags | flags, ..record });
        }
        for (slot, endpoint) in (0..).zip(slots) {
            memory.endpoints.insert(EndpointKey { service, generation: 0, slot }, endpoint);
            let member = MemberKey { service: U32::new(service), endpoint };
            memory.members.insert(member);
            if list.growth != 0 {
                // All are new, in memory more so than in the kernel.
                let (growth, weight) = (U32::new(u32::MAX), U32::new(1));
                let share = Share { since: U32::ZERO, growth, weight };
                memory.shares.insert(member, share);
            }
        }
        for (length, network) in &list.source_ranges {
            let range = (port, u32::from(*length), *network);
            if !memory.source_ranges.contains(&range) {
                memory.source_ranges.push(range);
            }
        }
    }
    let routes = tables.routes.iter();
    memory.routes =
        routes.map(|((length, prefix), route)| (u32::from(*length), *prefix, *route)).collect();
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
        let key = RangeKey { port: U32::new(*port), network: *network };
        tables.source_ranges.put(&(32 + length, key), &0);
    });
    memory.routes.iter().for_each(|(length, prefix, route)| {
        tables.routes.put(&(*length, *prefix), route);
    });
}

/// Has the kernel forget whom it has seen.
pub(crate) fn forget<A: Side>(kernel: &mut Kernel<A>) {
    for stage in [Stage::HalfOpen, Stage::Established] {
        let flows = kernel.tables.flows(stage);
        flows.entries().iter().for_each(|(key, _)| flows.remove(key));
    }
    let loads = &mut kernel.tables.loads;
    loads.entries().iter().for_each(|(key, _)| loads.remove(key));
    let affinity = &mut kernel.tables.affinity;
    affinity.entries().iter().for_each(|(key, _)| affinity.remove(key));
}
