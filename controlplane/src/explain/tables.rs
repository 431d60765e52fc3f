//! What a node would decide: its tables in plain memory, and the code that it runs.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fairway_abi::{Config, Route, Ruling, RulingKey, Subject, TunnelEnd, V4, V6, config, route};
use fairway_compile::Family;
use fairway_compile::policy::{self, LocalPod, Numbers};
use fairway_core::memory::Memory;
use fairway_core::policy::ask;
use fairway_model::Model;
use zerocopy::network_endian::U16;

/// The tables of one node that has all pods.
pub(super) struct Tables {
    v4: Space<V4>,
    v6: Space<V6>,
    pub(super) rules: BTreeMap<u32, policy::RuleName>,
}

struct Space<A: Family> {
    memory: Memory<A>,
    subjects: BTreeMap<A, Subject>,
}

/// What a packet asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) client: IpAddr,
    /// Of the client's family.
    pub(super) endpoint: IpAddr,
    /// IANA number.
    pub(super) protocol: u8,
    pub(super) port: Option<u16>,
}

/// Whose rules are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Both,
    /// The client's.
    Egress,
    /// The endpoint's.
    Ingress,
}

impl Tables {
    /// Those that `model` makes on the node of that name, which has these pods.
    pub(super) fn new(model: &Model, node: &str, local: &[LocalPod]) -> Self {
        let tables = policy::compile(model, node, local, &mut Numbers::default());
        let policy::Tables { v4, v6, rulings, rules } = tables;
        Self { v4: Space::new(v4, &rulings), v6: Space::new(v6, &rulings), rules }
    }

    /// Whether the packet is allowed, and the bits of [`fairway_abi::ruling`] of what decided. `own` are
    /// addresses of the client's own node.
    pub(super) fn ask(&mut self, packet: Packet, asked: Asked, own: &[IpAddr]) -> (bool, u32) {
        match packet.client {
            IpAddr::V4(_) => self.v4.ask(packet, asked, own),
            IpAddr::V6(_) => self.v6.ask(packet, asked, own),
        }
    }

    /// The sets of rules of whoever has the address.
    pub(super) fn subject(&self, address: IpAddr) -> Subject {
        let subject = match address {
            IpAddr::V4(address) => self.v4.subjects.get(&address.octets()),
            IpAddr::V6(address) => self.v6.subjects.get(&address.octets()),
        };
        subject.copied().unwrap_or_default()
    }
}

impl<A: Family> Space<A> {
    fn new(family: policy::Family<A>, rulings: &BTreeMap<RulingKey, Ruling>) -> Self {
        let policy::Family { subjects, identities, blocks } = family;
        let blocks = blocks.into_iter();
        let memory = Memory {
            config: Config { flags: config::POLICED, ..Config::default() },
            identities: identities.into_iter().collect(),
            blocks: blocks.map(|((first, length), who)| (first, length.into(), who)).collect(),
            rulings: rulings.iter().map(|(key, ruling)| (*key, *ruling)).collect(),
            ..Memory::default()
        };
        Self { memory, subjects }
    }

    fn ask(&mut self, packet: Packet, asked: Asked, own: &[IpAddr]) -> (bool, u32) {
        let (Some(client), Some(endpoint)) = (A::of(packet.client), A::of(packet.endpoint)) else {
            return (false, 0);
        };
        let of = |address: &A| self.subjects.get(address).copied().unwrap_or_default();
        let mut subjects = HashMap::<A, Subject>::new();
        if asked != Asked::Ingress {
            subjects.entry(client).or_default().egress = of(&client).egress;
        }
        if asked != Asked::Egress {
            subjects.entry(endpoint).or_default().ingress = of(&endpoint).ingress;
        }
        let host =
            Route { kind: route::HOST.into(), source: A::UNSPECIFIED, peer: TunnelEnd::default() };
        let own = own.iter().filter_map(|address| A::of(*address));
        self.memory.subjects = subjects;
        self.memory.routes = own.map(|address| (A::BITS.into(), address, host)).collect();
        let port = packet.port.map(U16::new);
        match ask(&self.memory, &client, &endpoint, packet.protocol, port) {
            Ok(verdict) => (true, verdict),
            Err((_, verdict)) => (false, verdict),
        }
    }
}
