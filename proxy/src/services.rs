//! Services in the kernel: what is there, what ought to be, and the steps between.
//!
//! [`plan`] is a pure function; [`ServiceTables::apply`] carries its steps out one by one and notes
//! each as soon as it is true, so that after an error the next plan starts from what really is.
//!
//! A reader in the kernel takes a frontend's record and then a slot of its list. The steps are in
//! an order in which every moment is good for it: slots before the length that covers them, lengths
//! before slots go, frontends last to leave.
//!
//! Where only some Services changed, the same plan is made of their part of the state, so that its
//! cost is that of the change ([`ServiceTables::reconcile_some`]).

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairway_abi::{
    Endpoint, EndpointKey, Frontend, FrontendKey, MemberKey, RangeKey, Share, frontend, scope,
};
use fairway_compile::{Choice, EndpointList, Family, ListName, yield_to};
use fairway_model::{ObjectName, Protocol};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::dataplane::{Dataplane, PrefixTable, Table};
use crate::inspect::Now;
use crate::names::{Name, Renamed};

/// How long a slot that no length covers any more is left to readers that took the length before.
const GRACE: Duration = Duration::from_secs(1);

/// Entries that are handed to the kernel in one call.
const MOST_AT_ONCE: usize = 4096;

/// Service tables of one family.
pub(crate) struct ServiceTables<A: Family> {
    frontends: Table<FrontendKey<A>, Frontend>,
    endpoints: Table<EndpointKey, Endpoint<A>>,
    members: Table<MemberKey<A>, u32>,
    shares: Table<MemberKey<A>, Share>,
    ranges: PrefixTable<RangeKey<A>, u32>,
    state: State<A>,
    /// What became of lists' names since somebody asked.
    renamed: Vec<Renamed>,
    /// Two lists want the same address, or would if each got what it asks for, so that what one of them
    /// gets depends on the other.
    contested: bool,
}

/// Services that changed, and what they are to have now.
#[derive(Clone, Debug)]
pub(crate) struct Affected<'a, A> {
    /// Their names.
    pub(crate) services: &'a BTreeSet<ObjectName>,
    /// What they had of [`ListName::ClosedPorts`].
    pub(crate) closed: BTreeSet<FrontendKey<A>>,
    /// All their lists, and what they have of [`ListName::ClosedPorts`] now.
    pub(crate) lists: Vec<EndpointList<A>>,
}

/// What the kernel holds, and where to find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State<A: Family> {
    /// Which list an address leads to, and the bits of [`frontend`] that it has for itself.
    frontends: HashMap<FrontendKey<A>, (u32, u32)>,
    lists: BTreeMap<u32, List<A>>,
    /// Endpoints of lists whose clients stay with theirs.
    members: BTreeSet<(u32, Endpoint<A>)>,
    /// Since when endpoints are in lists where the share of a new one grows, and how much they weigh where
    /// their connections are counted. One that is in neither case, or was there before its share could
    /// grow, has none.
    shares: BTreeMap<(u32, Endpoint<A>), Share>,
    /// Who is let in: number of a port, and a prefix's length and network.
    ranges: BTreeSet<(u32, u8, A)>,
    /// Lists that have a name.
    names: BTreeMap<Arc<ListName>, u32>,
    /// Lists with slots past their length.
    spare: BTreeSet<u32>,
    /// A number that neither a list nor a port has or had since the agent started.
    next: u32,
}

/// The bits of a frontend's record that are not its list's.
const OF_ADDRESS: u32 =
    frontend::SOURCE_RANGES | frontend::KEEP_CLIENT | frontend::DIRECT_RETURN | frontend::RESOLVER;

/// One list of endpoints as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct List<A> {
    /// Known once the list was matched with the model.
    name: Option<Arc<ListName>>,
    /// By slot; those from `length` on are covered by no frontend.
    slots: Vec<Endpoint<A>>,
    length: usize,
    /// How a slot is chosen.
    choice: Choice,
    /// See [`Frontend::port`]; 0 where that is not known yet.
    port: u32,
    /// See [`EndpointList::lingering`].
    lingering: BTreeSet<Endpoint<A>>,
    /// When the slots past `length` became uncovered.
    spare_since: Option<Instant>,
    /// The addresses that lead here.
    frontends: BTreeSet<FrontendKey<A>>,
    /// Their records may not all say the same of the list.
    uneven: bool,
}

/// One change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step<A: Family> {
    /// Clients may stay with an endpoint of a list.
    PutMember { service: u32, endpoint: Endpoint<A> },
    /// What an endpoint of a list gets beside its slots.
    PutShare { service: u32, endpoint: Endpoint<A>, share: Share },
    /// Write a slot.
    PutEndpoint { service: u32, slot: usize, endpoint: Endpoint<A> },
    /// From now on this is the list.
    Shape { service: u32, shape: Shape<A> },
    /// Let clients in.
    PutRange { port: u32, length: u8, network: A },
    /// Lead an address to a list, as that is.
    PutFrontend { key: FrontendKey<A>, service: u32, flags: u32 },
    /// An address leads nowhere any more.
    RemoveFrontend { key: FrontendKey<A> },
    /// Forget a list that nothing leads to.
    Retire { service: u32 },
    /// No client stays with an endpoint any more.
    RemoveMember { service: u32, endpoint: Endpoint<A> },
    /// An endpoint is in no such list any more, or what it gets is up to its slots.
    RemoveShare { service: u32, endpoint: Endpoint<A> },
    /// Let clients in no more.
    RemoveRange { port: u32, length: u8, network: A },
}

/// What holds for all of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape<A> {
    name: Arc<ListName>,
    length: usize,
    choice: Choice,
    port: u32,
    lingering: BTreeSet<Endpoint<A>>,
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
    Member(MemberKey<A>),
    Share(MemberKey<A>, Share),
    Endpoint(EndpointKey, Endpoint<A>),
    Range(u8, RangeKey<A>),
    Frontend(FrontendKey<A>, Frontend),
    NoFrontend(FrontendKey<A>),
    NoMember(MemberKey<A>),
    NoShare(MemberKey<A>),
    NoRange(u8, RangeKey<A>),
}

impl<A: Family> ServiceTables<A> {
    /// Adopts what is in the kernel. `suffix` is `4` or `6`.
    pub(crate) fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        let frontends = dataplane.table(&format!("frontends{suffix}"))?;
        let endpoints = dataplane.table(&format!("endpoints{suffix}"))?;
        let members = dataplane.table(&format!("members{suffix}"))?;
        let shares = dataplane.table(&format!("shares{suffix}"))?;
        let ranges = dataplane.prefixes(&format!("source_ranges{suffix}"))?;
        let mut state = State::read(frontends.entries()?, endpoints.entries()?);
        let known: Vec<(MemberKey<A>, u32)> = members.entries()?;
        state.members = known.iter().map(|(key, _)| (key.service.get(), key.endpoint)).collect();
        let known: Vec<(MemberKey<A>, Share)> = shares.entries()?;
        let known = known.iter().map(|(key, share)| ((key.service.get(), key.endpoint), *share));
        state.shares = known.collect();
        let known: Vec<((u8, RangeKey<A>), u32)> = ranges.entries()?;
        let known = known.iter().filter_map(|((length, key), _)| {
            Some((key.port.get(), length.checked_sub(PORT_BITS)?, key.network))
        });
        state.ranges = known.collect();
        Ok(Self {
            frontends,
            endpoints,
            members,
            shares,
            ranges,
            state,
            renamed: Vec::new(),
            contested: false,
        })
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
                lists.flat_map(|list| list.frontends.keys().map(|key| (key, &list.name))).collect();
            yield_to(&mut host_ports, |key| taken.get(key).copied())
        };
        let all: Vec<&EndpointList<A>> = services.iter().chain(&host_ports).collect();
        let steps = plan(&self.state, &all, seconds());
        let outdates = self.carry_out(steps)?;
        let wanted: usize = all.iter().map(|list| list.frontends.len()).sum();
        self.contested = !yielded.is_empty() || wanted != self.state.frontends.len();
        Ok(Outcome { outdates, yielded })
    }

    /// Some of the Services had to do without what others have, and may get it when those change.
    pub(crate) fn are_contested(&mut self) {
        self.contested = true;
    }

    /// Brings some Services to what they are to be, where all others and the host ports stay as they
    /// are, at a cost that depends on the former alone. `None`, and nothing done: what they want has
    /// to do with others, and only a complete reconciliation will do.
    pub(crate) fn reconcile_some(&mut self, some: &Affected<'_, A>) -> Result<Option<Outcome>> {
        if self.contested {
            return Ok(None);
        }
        let Some(steps) = plan_some(&self.state, some, seconds()) else { return Ok(None) };
        Ok(Some(Outcome { outdates: self.carry_out(steps)?, yielded: BTreeMap::new() }))
    }

    /// Brings the kernel to these host ports beside the Services it holds, at a cost that does not
    /// depend on how many those are but for one look at each.
    pub(crate) fn reconcile_host_ports(
        &mut self,
        mut host_ports: Vec<EndpointList<A>>,
    ) -> Result<Outcome> {
        let yielded = yield_to(&mut host_ports, |key| self.state.service_of(key));
        self.contested |= !yielded.is_empty();
        let steps = plan(&self.state.host_ports(), &host_ports, seconds());
        Ok(Outcome { outdates: self.carry_out(steps)?, yielded })
    }

    /// Whether the kernel's tables hold a host port's list, but for what a Service has of it.
    pub(crate) fn check(&self, list: &EndpointList<A>) -> Result<()> {
        for key in list.frontends.keys().filter(|key| self.state.service_of(key).is_none()) {
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
        let mut steps = steps.into_iter().peekable();
        while let Some(first) = steps.next() {
            let mut run = vec![first];
            while run.len() < MOST_AT_ONCE
                && let Some(next) = steps.next_if(|next| is_same_put(&run[0], next))
            {
                run.push(next);
            }
            outdates |= run.iter().any(|step| self.state.outdates_flows(step));
            self.apply_run(run)?;
        }
        Ok(outdates)
    }

    /// Carries steps out that [`is_same_put`], in one call of the kernel if there are several.
    fn apply_run(&mut self, run: Vec<Step<A>>) -> Result<()> {
        if run.len() == 1 {
            return run.into_iter().try_for_each(|step| self.apply(step));
        }
        let (mut endpoints, mut frontends) = (Vec::new(), Vec::new());
        for step in &run {
            for write in self.state.writes(step)? {
                match write {
                    Write::Endpoint(key, endpoint) => endpoints.push((key, endpoint)),
                    Write::Frontend(key, record) => frontends.push((key, record)),
                    other => bail!("{other:?} is not written with others"),
                }
            }
        }
        let put =
            self.endpoints.put_all(&endpoints).and_then(|()| self.frontends.put_all(&frontends));
        if put.is_err() {
            // One by one, it is known which are there.
            return run.into_iter().try_for_each(|step| self.apply(step));
        }
        let now = Instant::now();
        run.into_iter().for_each(|step| self.state.note(step, now));
        Ok(())
    }

    /// Removes slots that nobody can be reading any more; true if some have to wait.
    pub(crate) fn sweep(&mut self, now: Instant) -> Result<bool> {
        let mut waiting = false;
        for service in self.state.spare.clone() {
            let Some(list) = self.state.lists.get_mut(&service) else { continue };
            if list.spare_since.is_some_and(|since| now.duration_since(since) < GRACE) {
                waiting = true;
                continue;
            }
            while list.slots.len() > list.length {
                self.endpoints.remove(&slot_key(service, list.slots.len() - 1)?)?;
                list.slots.pop();
            }
            list.spare_since = None;
            if list.name.is_none() && list.slots.is_empty() {
                self.state.lists.remove(&service);
            }
            self.state.spare.remove(&service);
        }
        Ok(waiting)
    }

    /// What became of lists' names since the last call.
    pub(crate) fn take_renamed(&mut self) -> Vec<Renamed> {
        std::mem::take(&mut self.renamed)
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

    /// The number of the list that a frontend leads to.
    pub(crate) fn list_of(&self, frontend: &FrontendKey<A>) -> Option<u32> {
        self.state.frontends.get(frontend).map(|(list, _)| *list)
    }

    /// Whether a socket that asked for this address may go on with the endpoint that it was given.
    pub(crate) fn keeps(&self, asked: (A, U16), protocol: u8, endpoint: &Endpoint<A>) -> bool {
        [scope::INTERNAL, scope::LOOPBACK].into_iter().any(|scope| {
            let key = FrontendKey { address: asked.0, port: asked.1, protocol, scope };
            let list = self.state.frontends.get(&key);
            list.is_some_and(|(service, _)| self.serves(*service, endpoint))
        })
    }

    /// Whether flows to an endpoint may go on: it is in a list that is in use, or still serves who came
    /// to it before; or the Service has nobody else that they could go to.
    pub(crate) fn serves(&self, service: u32, endpoint: &Endpoint<A>) -> bool {
        let list = self.state.lists.get(&service);
        list.is_some_and(|list| {
            if endpoint.address == A::RESOLVER {
                let flags = list.frontends.iter().filter_map(|key| self.state.frontends.get(key));
                return flags.into_iter().any(|(_, flags)| flags & frontend::RESOLVER != 0);
            }
            let nobody = list.length == 0 && list.lingering.is_empty() && list.name.is_some();
            nobody
                || list.slots[..list.length].contains(endpoint)
                || list.lingering.contains(endpoint)
        })
    }

    fn apply(&mut self, step: Step<A>) -> Result<()> {
        let writes = self.state.writes(&step)?;
        if let Step::Shape { service, .. } = &step
            && let Some(list) = self.state.lists.get_mut(service)
        {
            list.uneven = true; // until the last of its frontends is written
        }
        for write in writes {
            match write {
                Write::Member(key) => self.members.put(&key, &0)?,
                Write::NoMember(key) => self.members.remove(&key)?,
                Write::Share(key, share) => self.shares.put(&key, &share)?,
                Write::NoShare(key) => self.shares.remove(&key)?,
                Write::Range(length, key) => self.ranges.put((length, key), &0)?,
                Write::NoRange(length, key) => self.ranges.remove((length, key))?,
                Write::Endpoint(key, endpoint) => self.endpoints.put(&key, &endpoint)?,
                Write::Frontend(key, record) => self.frontends.put(&key, &record)?,
                Write::NoFrontend(key) => self.frontends.remove(&key)?,
            }
        }
        self.renamed.extend(self.state.renaming(&step));
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
            let choice = Choice { flags: record.flags & !OF_ADDRESS, affinity: record.affinity };
            let same = (length, choice, record.port) == (list.length, list.choice, list.port);
            list.uneven |= length != record.endpoints as usize || (!first && !same);
            list.length = if first { length } else { list.length.min(length) };
            (list.choice, list.port) = (choice, record.port);
            list.frontends.insert(*key);
        }
        let of_address = |record: &Frontend| (record.service, record.flags & OF_ADDRESS);
        let frontends =
            frontends.into_iter().map(|(key, record)| (key, of_address(&record))).collect();
        Self::of(frontends, lists)
    }

    /// One with these lists and the frontends that lead to them.
    fn of(frontends: HashMap<FrontendKey<A>, (u32, u32)>, lists: BTreeMap<u32, List<A>>) -> Self {
        let named = |(service, list): (&u32, &List<A>)| Some((list.name.clone()?, *service));
        let spare = lists.iter().filter(|(_, list)| list.spare_since.is_some());
        let ports = lists.values().map(|list| list.port);
        let last = lists.keys().copied().chain(ports).max();
        Self {
            names: lists.iter().filter_map(named).collect(),
            spare: spare.map(|(service, _)| *service).collect(),
            next: last.map_or(1, |last| last + 1),
            members: BTreeSet::new(),
            shares: BTreeMap::new(),
            ranges: BTreeSet::new(),
            frontends,
            lists,
        }
    }

    /// The part that plans for these Services are made of.
    fn part(&self, some: &Affected<'_, A>) -> Self {
        let mut lists = BTreeMap::new();
        for number in some.services.iter().flat_map(|name| self.lists_of(name)) {
            lists.insert(number, self.lists[&number].clone());
        }
        if let Some(number) = self.names.get(&ListName::ClosedPorts) {
            let closed = &self.lists[number];
            let has = |key: &&FrontendKey<A>| closed.frontends.contains(key);
            let frontends = some.closed.iter().filter(has).copied().collect();
            // All there is of it but its other frontends.
            let part = List { frontends, ..closed.without_frontends() };
            lists.insert(*number, part);
        }
        let keys = lists.values().flat_map(|list| &list.frontends);
        let frontends = keys.filter_map(|key| Some((*key, *self.frontends.get(key)?))).collect();
        let mut part = Self::of(frontends, lists);
        part.next = self.next;
        let nobody = Endpoint { address: A::UNSPECIFIED, port: U16::ZERO, reserved: [0; 2] };
        for (number, list) in &part.lists {
            let members = self.members.range((*number, nobody)..);
            part.members.extend(members.take_while(|(service, _)| service == number));
            let shares = self.shares.range((*number, nobody)..);
            let shares = shares.take_while(|((service, _), _)| service == number);
            part.shares.extend(shares.map(|(key, share)| (*key, *share)));
            let ranges = self.ranges.range((list.port, 0, A::UNSPECIFIED)..);
            part.ranges.extend(ranges.take_while(|(port, ..)| *port == list.port));
        }
        part
    }

    /// The lists of a Service.
    fn lists_of(&self, name: &ObjectName) -> impl Iterator<Item = u32> {
        let first = ListName::Service {
            service: name.clone(),
            port: String::new(),
            protocol: Protocol::Tcp, // the least of them
            local: false,
        };
        let is_its = move |list: &ListName| matches!(list, ListName::Service { service, .. } if service == name);
        let from = self.names.range::<ListName, _>(&first..);
        from.take_while(move |(list, _)| is_its(list)).map(|(_, number)| *number)
    }

    /// What carries a step out, in order.
    fn writes(&self, step: &Step<A>) -> Result<Vec<Write<A>>> {
        let member = |service: u32, endpoint: Endpoint<A>| MemberKey {
            service: U32::new(service),
            endpoint,
        };
        let range = |port: u32, network: A| RangeKey { port: U32::new(port), network };
        Ok(match step {
            Step::PutMember { service, endpoint } => {
                vec![Write::Member(member(*service, *endpoint))]
            }
            Step::PutShare { service, endpoint, share } => {
                vec![Write::Share(member(*service, *endpoint), *share)]
            }
            Step::PutEndpoint { service, slot, endpoint } => {
                vec![Write::Endpoint(slot_key(*service, *slot)?, *endpoint)]
            }
            Step::Shape { service, shape } => {
                let record = record(*service, shape.length, shape.choice, shape.port)?;
                let frontends = self.lists.get(service).into_iter().flat_map(|l| &l.frontends);
                let flags = |key| self.frontends.get(key).map_or(0, |(_, flags)| *flags);
                let with = |key| Frontend { flags: record.flags | flags(key), ..record };
                frontends.map(|key| Write::Frontend(*key, with(key))).collect()
            }
            Step::RemoveShare { service, endpoint } => {
                vec![Write::NoShare(member(*service, *endpoint))]
            }
            Step::PutRange { port, length, network } => {
                vec![Write::Range(length + PORT_BITS, range(*port, *network))]
            }
            Step::PutFrontend { key, service, flags } => {
                let list = self.lists.get(service);
                let (length, choice, port) = list.map_or((0, Choice::default(), 0), |list| {
                    (list.length, list.choice, list.port)
                });
                let record = record(*service, length, choice, port)?;
                vec![Write::Frontend(*key, Frontend { flags: record.flags | flags, ..record })]
            }
            Step::RemoveFrontend { key } => vec![Write::NoFrontend(*key)],
            Step::Retire { .. } => Vec::new(),
            Step::RemoveMember { service, endpoint } => {
                vec![Write::NoMember(member(*service, *endpoint))]
            }
            Step::RemoveRange { port, length, network } => {
                vec![Write::NoRange(length + PORT_BITS, range(*port, *network))]
            }
        })
    }

    /// Notes that a step was carried out.
    fn note(&mut self, step: Step<A>, now: Instant) {
        if let Step::PutMember { service, .. }
        | Step::PutShare { service, .. }
        | Step::PutEndpoint { service, .. }
        | Step::Shape { service, .. } = &step
        {
            self.next = self.next.max(service + 1);
        }
        match step {
            Step::PutMember { service, endpoint } => drop(self.members.insert((service, endpoint))),
            Step::PutShare { service, endpoint, share } => {
                self.shares.insert((service, endpoint), share);
            }
            Step::PutEndpoint { service, slot, endpoint } => {
                let list = self.lists.entry(service).or_insert_with(List::new);
                if slot < list.slots.len() {
                    list.slots[slot] = endpoint;
                } else {
                    list.slots.push(endpoint);
                }
            }
            Step::Shape { service, shape } => {
                let list = self.lists.entry(service).or_insert_with(List::new);
                let before = list.name.replace(Arc::clone(&shape.name));
                list.length = shape.length;
                list.choice = shape.choice;
                list.port = shape.port;
                list.lingering = shape.lingering;
                list.spare_since = (list.slots.len() > list.length).then_some(now);
                list.uneven = false;
                if list.spare_since.is_some() {
                    self.spare.insert(service);
                } else {
                    self.spare.remove(&service);
                }
                self.unname(before, service);
                self.names.insert(shape.name, service);
            }
            Step::PutRange { port, length, network } => {
                self.ranges.insert((port, length, network));
            }
            Step::PutFrontend { key, service, flags } => {
                self.unlink(&key);
                self.frontends.insert(key, (service, flags));
                self.lists.entry(service).or_insert_with(List::new).frontends.insert(key);
            }
            Step::RemoveFrontend { key } => self.unlink(&key),
            Step::Retire { service } => {
                if let Some(list) = self.lists.get_mut(&service) {
                    let before = list.name.take();
                    list.length = 0;
                    list.lingering.clear();
                    list.spare_since = Some(now);
                    self.spare.insert(service);
                    self.unname(before, service);
                }
            }
            Step::RemoveMember { service, endpoint } => {
                self.members.remove(&(service, endpoint));
            }
            Step::RemoveShare { service, endpoint } => {
                self.shares.remove(&(service, endpoint));
            }
            Step::RemoveRange { port, length, network } => {
                self.ranges.remove(&(port, length, network));
            }
        }
    }

    /// What a step makes of the name of its list, if that changes.
    fn renaming(&self, step: &Step<A>) -> Option<Renamed> {
        match step {
            Step::Shape { service, shape } => {
                let known = self.lists.get(service).and_then(|list| list.name.as_ref());
                (known != Some(&shape.name)).then(|| (*service, Some(Name::from(&*shape.name))))
            }
            Step::Retire { service } => Some((*service, None)),
            _ => None,
        }
    }

    /// Whether an endpoint may leave its list by this step, or an address become a Service's.
    fn outdates_flows(&self, step: &Step<A>) -> bool {
        let length = |service: &u32| self.lists.get(service).map_or(0, |list| list.length);
        match step {
            Step::PutEndpoint { service, slot, .. } => *slot < length(service),
            Step::Shape { service, shape } => {
                let lingering = self.lists.get(service).map(|list| &list.lingering);
                shape.length < length(service)
                    || lingering.is_some_and(|before| !before.is_subset(&shape.lingering))
            }
            Step::Retire { service } => length(service) > 0,
            Step::PutFrontend { key, .. } => !self.frontends.contains_key(key),
            Step::PutMember { .. }
            | Step::PutShare { .. }
            | Step::RemoveShare { .. }
            | Step::PutRange { .. }
            | Step::RemoveFrontend { .. }
            | Step::RemoveMember { .. }
            | Step::RemoveRange { .. } => false,
        }
    }

    /// The Service that an address leads to.
    fn service_of(&self, key: &FrontendKey<A>) -> Option<&ListName> {
        let (service, _) = self.frontends.get(key)?;
        let list = self.lists.get(service)?;
        list.name.as_deref().filter(|name| !name.is_host_port())
    }

    /// Only what belongs to host ports.
    fn host_ports(&self) -> Self {
        let host_ports = self.names.iter().filter(|(name, _)| name.is_host_port());
        let lists: BTreeMap<u32, List<A>> =
            host_ports.map(|(_, service)| (*service, self.lists[service].clone())).collect();
        let frontends = lists
            .iter()
            .flat_map(|(service, list)| list.frontends.iter().map(|key| (*key, (*service, 0))))
            .collect();
        Self { next: self.next, ..Self::of(frontends, lists) }
    }

    /// A list has this name no more. Its successor may have it already.
    fn unname(&mut self, name: Option<Arc<ListName>>, service: u32) {
        if let Some(name) = name
            && self.names.get(&name) == Some(&service)
        {
            self.names.remove(&name);
        }
    }

    fn unlink(&mut self, key: &FrontendKey<A>) {
        let led = self.frontends.remove(key);
        if let Some(list) = led.and_then(|(service, _)| self.lists.get_mut(&service)) {
            list.frontends.remove(key);
        }
    }

    /// The adopted list, not yet matched with a name, that an address of `wanted` leads to.
    fn adopted(&self, wanted: &EndpointList<A>, taken: &BTreeSet<u32>) -> Option<u32> {
        let unnamed = |service: &u32| self.lists.get(service).is_some_and(|l| l.name.is_none());
        let led_to = wanted.frontends.keys().filter_map(|key| self.frontends.get(key));
        let mut led_to = led_to.map(|(service, _)| *service);
        led_to.find(|service| unnamed(service) && !taken.contains(service))
    }
}

impl<A> List<A> {
    fn new() -> Self {
        Self {
            name: None,
            slots: Vec::new(),
            length: 0,
            choice: Choice::default(),
            port: 0,
            lingering: BTreeSet::new(),
            spare_since: None,
            frontends: BTreeSet::new(),
            uneven: false,
        }
    }
}

impl<A: Family> List<A> {
    fn without_frontends(&self) -> Self {
        Self {
            name: self.name.clone(),
            slots: self.slots.clone(),
            lingering: self.lingering.clone(),
            frontends: BTreeSet::new(),
            ..*self
        }
    }
}

/// The steps that bring some Services to what they are to be and leave all others alone; `None` if an
/// address that one of them wants is another's.
pub(crate) fn plan_some<A: Family>(
    have: &State<A>,
    some: &Affected<'_, A>,
    now: u32,
) -> Option<Vec<Step<A>>> {
    let part = have.part(some);
    let mut wanted = HashSet::new();
    for key in some.lists.iter().flat_map(|list| list.frontends.keys()) {
        let is_anothers = have.frontends.contains_key(key) && !part.frontends.contains_key(key);
        if is_anothers || !wanted.insert(key) {
            return None;
        }
    }
    Some(plan(&part, &some.lists, now))
}

/// The steps from what is to what ought to be. An endpoint that comes now comes at the second `now`, in the
/// units of [`Share::since`].
pub(crate) fn plan<A: Family>(
    have: &State<A>,
    want: &[impl Borrow<EndpointList<A>>],
    now: u32,
) -> Vec<Step<A>> {
    let mut next = have.next;
    let want = || want.iter().map(Borrow::<EndpointList<A>>::borrow);
    // Names first: after a restart, an address decides, and each list goes to one name.
    let names: HashMap<&ListName, u32> = have
        .lists
        .iter()
        .filter_map(|(service, list)| Some((list.name.as_deref()?, *service)))
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

    let ports = port_numbers(have, want().zip(&chosen));

    let second = now;
    let mut members = Vec::new();
    let mut shares = Vec::new();
    let mut slots = Vec::new();
    let mut shapes = Vec::new();
    let mut ranges = Vec::new();
    let mut frontends = Vec::new();
    let mut wanted_keys: BTreeSet<&FrontendKey<A>> = BTreeSet::new();
    let mut wanted_members: BTreeSet<(u32, Endpoint<A>)> = BTreeSet::new();
    let mut wanted_shares: BTreeSet<(u32, Endpoint<A>)> = BTreeSet::new();
    let mut wanted_ranges: BTreeSet<(u32, u8, A)> = BTreeSet::new();
    let empty = List::new();
    for (list, service) in want().zip(chosen.iter().copied()) {
        let now = have.lists.get(&service).unwrap_or(&empty);
        let port = list.port().map_or(service, |port| ports[&port]);
        if list.choice.affinity != 0 {
            for endpoint in &list.endpoints {
                wanted_members.insert((service, *endpoint));
                if !have.members.contains(&(service, *endpoint)) {
                    members.push(Step::PutMember { service, endpoint: *endpoint });
                }
            }
        }
        // A list that is made anew knows its endpoints from the one that has its name so far.
        let was = names.get(&list.name).copied().unwrap_or(service);
        let before = have.lists.get(&was).unwrap_or(&empty);
        for (endpoint, share) in shares_of(have, was, before, list, second) {
            wanted_shares.insert((service, endpoint));
            if have.shares.get(&(service, endpoint)) != Some(&share) {
                shares.push(Step::PutShare { service, endpoint, share });
            }
        }
        let (changed, length) = arrange(now, list);
        for (slot, endpoint) in changed {
            slots.push(Step::PutEndpoint { service, slot, endpoint });
        }
        let same = now.length == length
            && now.name.as_deref() == Some(&list.name)
            && (now.choice, now.port) == (list.choice, port)
            && now.lingering == list.lingering
            && !now.uneven;
        if !same {
            let known = now.name.as_ref().filter(|name| ***name == list.name);
            let shape = Shape {
                name: known.map_or_else(|| Arc::new(list.name.clone()), Arc::clone),
                length,
                choice: list.choice,
                port,
                lingering: list.lingering.clone(),
            };
            shapes.push(Step::Shape { service, shape });
        }
        for (length, network) in &list.source_ranges {
            let (length, network) = (*length, *network);
            if wanted_ranges.insert((port, length, network))
                && !have.ranges.contains(&(port, length, network))
            {
                ranges.push(Step::PutRange { port, length, network });
            }
        }
        for (key, flags) in &list.frontends {
            wanted_keys.insert(key);
            if have.frontends.get(key) != Some(&(service, *flags)) {
                frontends.push(Step::PutFrontend { key: *key, service, flags: *flags });
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
    let strangers = have.members.difference(&wanted_members);
    let strangers = strangers
        .map(|(service, endpoint)| Step::RemoveMember { service: *service, endpoint: *endpoint });
    let whole = have.shares.keys().filter(|key| !wanted_shares.contains(key));
    let whole = whole
        .map(|(service, endpoint)| Step::RemoveShare { service: *service, endpoint: *endpoint });
    let closed = have.ranges.difference(&wanted_ranges).map(|(port, length, network)| {
        Step::RemoveRange { port: *port, length: *length, network: *network }
    });
    let additions = members.into_iter().chain(shares).chain(slots).chain(shapes);
    let additions = additions.chain(ranges).chain(frontends);
    additions.chain(gone).chain(retired).chain(strangers).chain(whole).chain(closed).collect()
}

/// Seconds that are longer than any share grows, on a clock that begins anew at some time.
const EVER: u32 = 1 << 31;

/// What the table is to say of a list's endpoints if the share of a new one grows, or their weights count.
/// Who is in the list, and not in the table, was there before that was asked for.
fn shares_of<A: Family>(
    have: &State<A>,
    service: u32,
    now: &List<A>,
    want: &EndpointList<A>,
    second: u32,
) -> Vec<(Endpoint<A>, Share)> {
    let weighed = want.choice.flags & frontend::WEIGHED != 0;
    if want.growth == 0 && !weighed {
        return Vec::new();
    }
    let there: BTreeSet<&Endpoint<A>> = now.slots[..now.length].iter().collect();
    let growth = U32::new(want.growth);
    let share = |endpoint: &Endpoint<A>| {
        let weight = want.weights.get(endpoint).copied().filter(|_| weighed).unwrap_or(1);
        let weight = U32::new(weight.into());
        match have.shares.get(&(service, *endpoint)) {
            Some(known) => Some(Share { growth, weight, ..*known }),
            None if want.growth > 0 && !there.contains(endpoint) => {
                Some(Share { since: U32::new(second), growth, weight })
            }
            None if weighed => {
                Some(Share { since: U32::new(second.wrapping_sub(EVER)), growth, weight })
            }
            None => None,
        }
    };
    want.endpoints.iter().filter_map(|endpoint| Some((*endpoint, share(endpoint)?))).collect()
}

/// The second it is, as programs know it.
fn seconds() -> u32 {
    Now::read().seconds
}

/// A Service's port, as clients and source ranges know it.
type PortName<'a> = (&'a ObjectName, &'a str, Protocol);

/// The number of each wanted port: what one of its lists has, or the number of its first list.
fn port_numbers<'a, A: Family>(
    have: &State<A>,
    chosen: impl Iterator<Item = (&'a EndpointList<A>, &'a u32)> + Clone,
) -> HashMap<PortName<'a>, u32> {
    let mut numbers = HashMap::new();
    for (list, service) in chosen.clone() {
        let known = have.lists.get(service).map_or(0, |list| list.port);
        if let Some(port) = list.port().filter(|_| known != 0) {
            numbers.entry(port).or_insert(known);
        }
    }
    for (list, service) in chosen {
        if let Some(port) = list.port() {
            numbers.entry(port).or_insert(*service);
        }
    }
    numbers
}

/// Whether a list has to be made anew to become `want`: an address that leaves it must not lead to
/// what comes into it.
fn moves<A: Family>(now: &List<A>, want: &EndpointList<A>) -> bool {
    let leaves = |key| !want.frontends.contains_key(key);
    if !now.frontends.iter().any(leaves) {
        return false;
    }
    let (changed, length) = arrange(now, want);
    now.uneven || now.length != length || !changed.is_empty()
}

/// The slots to write so that a list holds exactly what is wanted, and how many there are then. Unless
/// each has its place, whoever can keeps its slot, so that a concurrent choice seldom sees anything
/// move.
fn arrange<A: Family>(now: &List<A>, want: &EndpointList<A>) -> (Vec<(usize, Endpoint<A>)>, usize) {
    if let Some(layout) = want.layout() {
        let length = layout.len();
        let differs =
            |(slot, endpoint): &(usize, Endpoint<A>)| now.slots.get(*slot) != Some(endpoint);
        return (layout.into_iter().enumerate().filter(differs).collect(), length);
    }
    let want = &want.endpoints;
    let covered = &now.slots[..now.length];
    let mut stays: BTreeSet<&Endpoint<A>> = BTreeSet::new();
    let mut keeps = vec![false; want.len()];
    for (slot, endpoint) in covered.iter().enumerate().take(want.len()) {
        keeps[slot] = want.contains(endpoint) && stays.insert(endpoint);
    }
    let mut moving = want.iter().filter(|endpoint| !stays.contains(endpoint));
    let free = keeps.iter().enumerate().filter(|(_, keeps)| !**keeps).map(|(slot, _)| slot);
    (free.filter_map(|slot| Some((slot, *moving.next()?))).collect(), want.len())
}

/// Whether both add to one table, each at a place that has nothing to do with the other's.
fn is_same_put<A: Family>(one: &Step<A>, other: &Step<A>) -> bool {
    matches!(
        (one, other),
        (Step::PutEndpoint { .. }, Step::PutEndpoint { .. })
            | (Step::PutFrontend { .. }, Step::PutFrontend { .. })
    )
}

fn record(service: u32, length: usize, choice: Choice, port: u32) -> Result<Frontend> {
    let endpoints = u32::try_from(length).context("too many endpoints in one Service")?;
    let Choice { flags, affinity } = choice;
    Ok(Frontend { service, generation: 0, endpoints, flags, port, affinity })
}

/// The part of a [`RangeKey`]'s prefix that is not the range's.
const PORT_BITS: u8 = 32;

fn slot_key(service: u32, slot: usize) -> Result<EndpointKey> {
    let slot = u32::try_from(slot).context("too many endpoints in one Service")?;
    Ok(EndpointKey { service, generation: 0, slot })
}

#[cfg(test)]
mod tests;
