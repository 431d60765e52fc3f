//! Tables on which another processor works between two steps of this one.

use std::cell::Cell;

use fairway_abi::{
    Affinity, AffinityKey, Config, Endpoint, EndpointKey, Flow, FlowKey, FragmentKey, Fragments,
    Frontend, FrontendKey, Interface, LoadKey, MemberKey, NameAddresses, NameKey, Namespace, Pod,
    PodRange, Route, Ruling, RulingKey, Share, Subject, V6, Zone,
};
use fairway_core::Host;
use fairway_core::memory::Memory;
use fairway_core::tables::{Stage, Tables};

use crate::frame::Family;

/// Before which step the other processor works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// The first random number is drawn.
    Random,
    /// The first record is written.
    Insert,
}

/// What the other processor does, once.
type Work<'a, A> = Box<dyn FnOnce(&Memory<A>) + 'a>;

/// See above.
pub(crate) struct Racing<'a, A: Family> {
    tables: &'a Memory<A>,
    before: Before,
    other: Cell<Option<Work<'a, A>>>,
}

impl<'a, A: Family> Racing<'a, A> {
    pub(crate) fn new(
        tables: &'a Memory<A>,
        before: Before,
        other: impl FnOnce(&Memory<A>) + 'a,
    ) -> Self {
        Self { tables, before, other: Cell::new(Some(Box::new(other))) }
    }

    fn reached(&self, step: Before) {
        if self.before == step
            && let Some(other) = self.other.take()
        {
            other(self.tables);
        }
    }
}

impl<A: Family> Tables<A> for Racing<'_, A> {
    fn random(&self) -> u32 {
        self.reached(Before::Random);
        self.tables.random()
    }
    fn insert_flow(&self, stage: Stage, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.reached(Before::Insert);
        self.tables.insert_flow(stage, key, flow)
    }

    fn config(&self) -> Option<Config> {
        self.tables.config()
    }
    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        self.tables.frontend(key)
    }
    fn endpoint(&self, key: &EndpointKey) -> Option<Endpoint<A>> {
        self.tables.endpoint(key)
    }
    fn is_member(&self, key: &MemberKey<A>) -> bool {
        self.tables.is_member(key)
    }
    fn share(&self, key: &MemberKey<A>) -> Option<Share> {
        self.tables.share(key)
    }
    fn load(&self, key: &LoadKey<A>) -> Option<u32> {
        self.tables.load(key)
    }
    fn add_load(&self, key: &LoadKey<A>) {
        self.tables.add_load(key);
    }
    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>> {
        <Memory<A> as Tables<A>>::affinity(self.tables, key)
    }
    fn note_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity<A>) {
        self.tables.note_affinity(key, affinity);
    }
    fn is_in_source_range(&self, port: u32, client: &A) -> bool {
        self.tables.is_in_source_range(port, client)
    }
    fn turn(&self, service: u32) -> u32 {
        self.tables.turn(service)
    }
    fn namespace(&self, cookie: u64) -> Option<Namespace> {
        self.tables.namespace(cookie)
    }
    fn pod_range(&self) -> PodRange<A> {
        self.tables.pod_range()
    }
    fn pod(&self, address: &A) -> Option<Pod> {
        self.tables.pod(address)
    }
    fn interface(&self, ifindex: u32) -> Option<Interface> {
        <Memory<A> as Tables<A>>::interface(self.tables, ifindex)
    }
    fn route(&self, destination: &A) -> Option<Route<A>> {
        self.tables.route(destination)
    }
    fn peer(&self, underlay: &V6) -> Option<A> {
        self.tables.peer(underlay)
    }
    fn see_flow(&self, stage: Stage, key: &FlowKey<A>, seen: impl FnMut(&mut Flow<A>)) -> bool {
        self.tables.see_flow(stage, key, seen)
    }
    fn promote_flow(&self, key: &FlowKey<A>) -> bool {
        self.tables.promote_flow(key)
    }
    fn fragments(&self, key: &FragmentKey<A>) -> Option<Fragments> {
        <Memory<A> as Tables<A>>::fragments(self.tables, key)
    }
    fn note_fragments(&self, key: &FragmentKey<A>, note: &Fragments) {
        self.tables.note_fragments(key, note);
    }
    fn client(&self, packets: &FlowKey<A>) -> Option<A> {
        self.tables.client(packets)
    }
    fn note_client(&self, packets: &FlowKey<A>, client: &A) {
        self.tables.note_client(packets, client);
    }
    fn subject(&self, address: &A) -> Option<Subject> {
        self.tables.subject(address)
    }
    fn identity(&self, address: &A) -> u32 {
        self.tables.identity(address)
    }
    fn ruling(&self, key: &RulingKey) -> Option<Ruling> {
        self.tables.ruling(key)
    }
    fn count_rule(&self, rule: u32, denied: bool) {
        self.tables.count_rule(rule, denied);
    }
    fn zone(&self) -> Zone {
        <Memory<A> as Tables<A>>::zone(self.tables)
    }
    fn name_addresses(&self, name: &NameKey) -> Option<NameAddresses> {
        self.tables.name_addresses(name)
    }
    fn count_answer(&self, kind: u32) {
        self.tables.count_answer(kind);
    }
    fn seconds(&self) -> u32 {
        <Memory<A> as Tables<A>>::seconds(self.tables)
    }
    fn is_resolver_alive(&self) -> bool {
        self.tables.is_resolver_alive()
    }
    fn may_complain(&self) -> bool {
        self.tables.may_complain()
    }
    fn remove_flow(&self, stage: Stage, key: &FlowKey<A>) {
        self.tables.remove_flow(stage, key);
    }
    fn now(&self) -> u32 {
        <Memory<A> as Tables<A>>::now(self.tables)
    }
}

impl<A: Family> Host<A> for Racing<'_, A> {
    fn receives(&self, packet: &FlowKey<A>) -> bool {
        self.tables.receives(packet)
    }
}
