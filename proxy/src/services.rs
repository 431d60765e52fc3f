//! Services in the kernel: what is there, what ought to be, and the steps between.
//!
//! [`plan`] is a pure function; [`ServiceTables::apply`] carries its steps out one by one and notes
//! each as soon as it is true, so that after an error the next plan starts from what really is.
//!
//! A reader in the kernel takes a frontend's record and then a slot of its list. The steps are in
//! an order in which every moment is good for it: slots before the length that covers them, lengths
//! before slots go, frontends last to leave.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairway_abi::{Endpoint, EndpointKey, Frontend, FrontendKey, scope};
use fairway_compile::{EndpointList, Family, ListName, yield_to};
use zerocopy::network_endian::U16;

use crate::dataplane::{Dataplane, Table};

/// How long a slot that no length covers any more is left to readers that took the length before.
const GRACE: Duration = Duration::from_secs(1);

/// Service tables of one family.
pub(crate) struct ServiceTables<A: Family> {
    frontends: Table<FrontendKey<A>, Frontend>,
    endpoints: Table<EndpointKey, Endpoint<A>>,
    state: State<A>,
}

/// What the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State<A: Family> {
    /// Which list an address leads to.
    frontends: HashMap<FrontendKey<A>, u32>,
    lists: BTreeMap<u32, List<A>>,
}

/// One list of endpoints as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct List<A> {
    /// Known once the list was matched with the model.
    name: Option<ListName>,
    /// By slot; those from `length` on are covered by no frontend.
    slots: Vec<Endpoint<A>>,
    length: usize,
    /// When the slots past `length` became uncovered.
    spare_since: Option<Instant>,
    /// The addresses that lead here.
    frontends: BTreeSet<FrontendKey<A>>,
    /// Their records may not all say `length`.
    uneven: bool,
}

/// One change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step<A: Family> {
    /// Write a slot.
    PutEndpoint { service: u32, slot: usize, endpoint: Endpoint<A> },
    /// From now on this is the list's length and its name.
    Resize { service: u32, name: ListName, length: usize },
    /// Lead an address to a list, at the list's length.
    PutFrontend { key: FrontendKey<A>, service: u32 },
    /// An address leads nowhere any more.
    RemoveFrontend { key: FrontendKey<A> },
    /// Forget a list that nothing leads to.
    Retire { service: u32 },
}

/// What a reconciliation came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Flows that are open may be outdated by it.
    pub(crate) outdates: bool,
    /// Host ports that are not open everywhere they should be, and the Services that are in their way.
    pub(crate) yielded: BTreeMap<ListName, ListName>,
}

/// One call of the kernel: each is a moment that a reader may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write<A> {
    Endpoint(EndpointKey, Endpoint<A>),
    Frontend(FrontendKey<A>, Frontend),
    NoFrontend(FrontendKey<A>),
}

impl<A: Family> ServiceTables<A> {
    /// Adopts what is in the kernel. `suffix` is `4` or `6`.
    pub(crate) fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        let frontends = dataplane.table(&format!("frontends{suffix}"))?;
        let endpoints = dataplane.table(&format!("endpoints{suffix}"))?;
        let state = State::read(frontends.entries()?, endpoints.entries()?);
        Ok(Self { frontends, endpoints, state })
    }

    /// Brings the kernel to these Services and host ports.
    pub(crate) fn reconcile(
        &mut self,
        services: &[EndpointList<A>],
        mut host_ports: Vec<EndpointList<A>>,
    ) -> Result<Outcome> {
        let yielded = if host_ports.is_empty() {
            BTreeMap::new()
        } else {
            let lists = services.iter();
            let taken: HashMap<&FrontendKey<A>, &ListName> =
                lists.flat_map(|list| list.frontends.iter().map(|key| (key, &list.name))).collect();
            yield_to(&mut host_ports, |key| taken.get(key).copied())
        };
        let all: Vec<&EndpointList<A>> = services.iter().chain(&host_ports).collect();
        let steps = plan(&self.state, &all);
        Ok(Outcome { outdates: self.carry_out(steps)?, yielded })
    }

    /// Brings the kernel to these host ports beside the Services it holds, at a cost that does not
    /// depend on how many those are but for one look at each.
    pub(crate) fn reconcile_host_ports(
        &mut self,
        mut host_ports: Vec<EndpointList<A>>,
    ) -> Result<Outcome> {
        let yielded = yield_to(&mut host_ports, |key| self.state.service_of(key));
        let steps = plan_from(&self.state.host_ports(), &host_ports, self.state.next_number());
        Ok(Outcome { outdates: self.carry_out(steps)?, yielded })
    }

    /// Whether the kernel's tables hold a host port's list, but for what a Service has of it.
    pub(crate) fn check(&self, list: &EndpointList<A>) -> Result<()> {
        for key in list.frontends.iter().filter(|key| self.state.service_of(key).is_none()) {
            let record = self.frontends.get(key)?;
            let slot = record.map(|record| slot_key(record.service, 0)).transpose()?;
            let endpoint = slot.map(|slot| self.endpoints.get(&slot)).transpose()?.flatten();
            if endpoint.as_ref() != list.endpoints.first() {
                bail!(
                    "the table of frontends does not hold {} at {}",
                    list.name,
                    key.address.to_ip()
                );
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, steps: Vec<Step<A>>) -> Result<bool> {
        let mut outdates = false;
        for step in steps {
            outdates |= self.state.outdates_flows(&step);
            self.apply(step)?;
        }
        Ok(outdates)
    }

    /// Removes slots that nobody can be reading any more; true if some have to wait.
    pub(crate) fn sweep(&mut self, now: Instant) -> Result<bool> {
        let mut waiting = false;
        for (service, list) in &mut self.state.lists {
            let Some(since) = list.spare_since else { continue };
            if now.duration_since(since) < GRACE {
                waiting = true;
                continue;
            }
            while list.slots.len() > list.length {
                self.endpoints.remove(&slot_key(*service, list.slots.len() - 1)?)?;
                list.slots.pop();
            }
            list.spare_since = None;
        }
        self.state.lists.retain(|_, list| list.name.is_some() || !list.slots.is_empty());
        Ok(waiting)
    }

    /// Number of frontends in the kernel.
    pub(crate) fn frontends(&self) -> usize {
        self.state.frontends.len()
    }

    /// Whether this is a Service's address, from wherever it is asked for.
    pub(crate) fn leads(&self, address: A, port: U16, protocol: u8) -> bool {
        [scope::INTERNAL, scope::EXTERNAL].into_iter().any(|scope| {
            self.state.frontends.contains_key(&FrontendKey { address, port, protocol, scope })
        })
    }

    /// Whether an endpoint is in a list that is in use.
    pub(crate) fn serves(&self, service: u32, endpoint: &Endpoint<A>) -> bool {
        let list = self.state.lists.get(&service);
        list.is_some_and(|list| list.slots[..list.length].contains(endpoint))
    }

    fn apply(&mut self, step: Step<A>) -> Result<()> {
        let writes = self.state.writes(&step)?;
        if let Step::Resize { service, .. } = &step
            && let Some(list) = self.state.lists.get_mut(service)
        {
            list.uneven = true; // until the last of its frontends is written
        }
        for write in writes {
            match write {
                Write::Endpoint(key, endpoint) => self.endpoints.put(&key, &endpoint)?,
                Write::Frontend(key, record) => self.frontends.put(&key, &record)?,
                Write::NoFrontend(key) => self.frontends.remove(&key)?,
            }
        }
        self.state.note(step, Instant::now());
        Ok(())
    }
}

impl<A: Family> State<A> {
    fn read(
        frontends: Vec<(FrontendKey<A>, Frontend)>,
        endpoints: Vec<(EndpointKey, Endpoint<A>)>,
    ) -> Self {
        let mut slots: BTreeMap<u32, BTreeMap<usize, Endpoint<A>>> = BTreeMap::new();
        for (key, endpoint) in endpoints {
            slots.entry(key.service).or_default().insert(key.slot as usize, endpoint);
        }
        let mut lists: BTreeMap<u32, List<A>> = BTreeMap::new();
        for (service, slots) in slots {
            let list = lists.entry(service).or_insert_with(List::new);
            // A predecessor that died between two writes leaves no gap below the length; what lies
            // behind a gap is covered by nothing.
            list.slots = (0..).map_while(|slot| slots.get(&slot).copied()).collect();
            list.spare_since = Some(Instant::now());
        }
        for (key, record) in &frontends {
            let list = lists.entry(record.service).or_insert_with(List::new);
            // Frontends of one list differ in length only if a predecessor died while it wrote them;
            // the shortest is covered by slots in any case.
            let length = (record.endpoints as usize).min(list.slots.len());
            let first = list.frontends.is_empty();
            list.uneven |= length != record.endpoints as usize || (!first && length != list.length);
            list.length = if first { length } else { list.length.min(length) };
            list.frontends.insert(*key);
        }
        let frontends = frontends.into_iter().map(|(key, record)| (key, record.service)).collect();
        Self { frontends, lists }
    }

    /// What carries a step out, in order.
    fn writes(&self, step: &Step<A>) -> Result<Vec<Write<A>>> {
        Ok(match step {
            Step::PutEndpoint { service, slot, endpoint } => {
                vec![Write::Endpoint(slot_key(*service, *slot)?, *endpoint)]
            }
            Step::Resize { service, length, .. } => {
                let record = record(*service, *length)?;
                let frontends = self.lists.get(service).into_iter().flat_map(|l| &l.frontends);
                frontends.map(|key| Write::Frontend(*key, record)).collect()
            }
            Step::PutFrontend { key, service } => {
                let length = self.lists.get(service).map_or(0, |list| list.length);
                vec![Write::Frontend(*key, record(*service, length)?)]
            }
            Step::RemoveFrontend { key } => vec![Write::NoFrontend(*key)],
            Step::Retire { .. } => Vec::new(),
        })
    }

    /// Notes that a step was carried out.
    fn note(&mut self, step: Step<A>, now: Instant) {
        match step {
            Step::PutEndpoint { service, slot, endpoint } => {
                let list = self.lists.entry(service).or_insert_with(List::new);
                if slot < list.slots.len() {
                    list.slots[slot] = endpoint;
                } else {
                    list.slots.push(endpoint);
                }
            }
            Step::Resize { service, name, length } => {
                let list = self.lists.entry(service).or_insert_with(List::new);
                list.name = Some(name);
                list.length = length;
                list.spare_since = (list.slots.len() > length).then_some(now);
                list.uneven = false;
            }
            Step::PutFrontend { key, service } => {
                self.unlink(&key);
                self.frontends.insert(key, service);
                self.lists.entry(service).or_insert_with(List::new).frontends.insert(key);
            }
            Step::RemoveFrontend { key } => self.unlink(&key),
            Step::Retire { service } => {
                if let Some(list) = self.lists.get_mut(&service) {
                    list.name = None;
                    list.length = 0;
                    list.spare_since = Some(now);
                }
            }
        }
    }

    /// Whether an endpoint may leave its list by this step, or an address become a Service's.
    fn outdates_flows(&self, step: &Step<A>) -> bool {
        let length = |service: &u32| self.lists.get(service).map_or(0, |list| list.length);
        match step {
            Step::PutEndpoint { service, slot, .. } => *slot < length(service),
            Step::Resize { service, length: new, .. } => *new < length(service),
            Step::Retire { service } => length(service) > 0,
            Step::PutFrontend { key, .. } => !self.frontends.contains_key(key),
            Step::RemoveFrontend { .. } => false,
        }
    }

    /// The Service that an address leads to.
    fn service_of(&self, key: &FrontendKey<A>) -> Option<&ListName> {
        let list = self.lists.get(self.frontends.get(key)?)?;
        list.name.as_ref().filter(|name| !name.is_host_port())
    }

    /// Only what belongs to host ports.
    fn host_ports(&self) -> Self {
        let is_host_port = |list: &&List<A>| list.name.as_ref().is_some_and(ListName::is_host_port);
        let lists = self.lists.iter().filter(|(_, list)| is_host_port(list));
        let lists: BTreeMap<u32, List<A>> =
            lists.map(|(service, list)| (*service, list.clone())).collect();
        let frontends = lists
            .iter()
            .flat_map(|(service, list)| list.frontends.iter().map(|key| (*key, *service)))
            .collect();
        Self { frontends, lists }
    }

    /// A number that no list has.
    fn next_number(&self) -> u32 {
        self.lists.keys().next_back().map_or(1, |last| last + 1)
    }

    fn unlink(&mut self, key: &FrontendKey<A>) {
        let service = self.frontends.remove(key);
        if let Some(list) = service.and_then(|service| self.lists.get_mut(&service)) {
            list.frontends.remove(key);
        }
    }

    /// The adopted list, not yet matched with a name, that an address of `wanted` leads to.
    fn adopted(&self, wanted: &EndpointList<A>, taken: &BTreeSet<u32>) -> Option<u32> {
        let unnamed = |service: &u32| self.lists.get(service).is_some_and(|l| l.name.is_none());
        let led_to = wanted.frontends.iter().filter_map(|key| self.frontends.get(key).copied());
        led_to.into_iter().find(|service| unnamed(service) && !taken.contains(service))
    }
}

impl<A> List<A> {
    fn new() -> Self {
        Self {
            name: None,
            slots: Vec::new(),
            length: 0,
            spare_since: None,
            frontends: BTreeSet::new(),
            uneven: false,
        }
    }
}

/// The steps from what is to what ought to be.
pub(crate) fn plan<A: Family>(
    have: &State<A>,
    want: &[impl Borrow<EndpointList<A>>],
) -> Vec<Step<A>> {
    plan_from(have, want, have.next_number())
}

/// As [`plan`], where lists up to the number `next` may be in use.
fn plan_from<A: Family>(
    have: &State<A>,
    want: &[impl Borrow<EndpointList<A>>],
    mut next: u32,
) -> Vec<Step<A>> {
    let want = || want.iter().map(Borrow::<EndpointList<A>>::borrow);
    // Names first: after a restart, an address decides, and each list goes to one name.
    let names: HashMap<&ListName, u32> = have
        .lists
        .iter()
        .filter_map(|(service, list)| Some((list.name.as_ref()?, *service)))
        .collect();
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    let mut chosen = Vec::new();
    for list in want() {
        let found = match names.get(&list.name) {
            Some(service) => Some(*service),
            None => have.adopted(list, &taken),
        };
        let found = found.filter(|service| !moves(&have.lists[service], list));
        let service = found.unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        taken.insert(service);
        chosen.push(service);
    }

    let mut slots = Vec::new();
    let mut sizes = Vec::new();
    let mut frontends = Vec::new();
    let mut wanted_keys: BTreeSet<&FrontendKey<A>> = BTreeSet::new();
    let empty = List::new();
    for (list, service) in want().zip(chosen) {
        let now = have.lists.get(&service).unwrap_or(&empty);
        for (slot, endpoint) in arrange(now, &list.endpoints) {
            slots.push(Step::PutEndpoint { service, slot, endpoint });
        }
        let length = list.endpoints.len();
        if now.length != length || now.name.as_ref() != Some(&list.name) || now.uneven {
            sizes.push(Step::Resize { service, name: list.name.clone(), length });
        }
        for key in &list.frontends {
            wanted_keys.insert(key);
            if have.frontends.get(key) != Some(&service) {
                frontends.push(Step::PutFrontend { key: *key, service });
            }
        }
    }
    let gone = have.frontends.keys().filter(|key| !wanted_keys.contains(key));
    let mut gone: Vec<_> = gone.map(|key| Step::RemoveFrontend { key: *key }).collect();
    gone.sort_by_key(|step| match step {
        Step::RemoveFrontend { key } => Some(*key),
        _ => None,
    });
    let unused = have.lists.iter().filter(|(service, list)| {
        !taken.contains(service) && (list.name.is_some() || list.length > 0)
    });
    let retired = unused.map(|(service, _)| Step::Retire { service: *service });
    slots.into_iter().chain(sizes).chain(frontends).chain(gone).chain(retired).collect()
}

/// Whether a list has to be made anew to become `want`: an address that leaves it must not lead to
/// what comes into it.
fn moves<A: Family>(now: &List<A>, want: &EndpointList<A>) -> bool {
    let leaves = |key| !want.frontends.contains(key);
    let changes = now.uneven
        || now.length != want.endpoints.len()
        || !arrange(now, &want.endpoints).is_empty();
    changes && now.frontends.iter().any(leaves)
}

/// The slots to write so that `0..want.len()` holds exactly `want`: whoever can keeps its slot, so
/// that a concurrent choice seldom sees anything move.
fn arrange<A: Family>(now: &List<A>, want: &BTreeSet<Endpoint<A>>) -> Vec<(usize, Endpoint<A>)> {
    let covered = &now.slots[..now.length];
    let mut stays: BTreeSet<&Endpoint<A>> = BTreeSet::new();
    let mut keeps = vec![false; want.len()];
    for (slot, endpoint) in covered.iter().enumerate().take(want.len()) {
        keeps[slot] = want.contains(endpoint) && stays.insert(endpoint);
    }
    let mut moving = want.iter().filter(|endpoint| !stays.contains(endpoint));
    let free = keeps.iter().enumerate().filter(|(_, keeps)| !**keeps).map(|(slot, _)| slot);
    free.filter_map(|slot| Some((slot, *moving.next()?))).collect()
}

fn record(service: u32, length: usize) -> Result<Frontend> {
    let endpoints = u32::try_from(length).context("too many endpoints in one Service")?;
    Ok(Frontend { service, generation: 0, endpoints, flags: 0 })
}

fn slot_key(service: u32, slot: usize) -> Result<EndpointKey> {
    let slot = u32::try_from(slot).context("too many endpoints in one Service")?;
    Ok(EndpointKey { service, generation: 0, slot })
}

#[cfg(test)]
mod tests;
