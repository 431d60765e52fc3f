//! Policies in the kernel: what is there, what ought to be, and the steps between.
//!
//! [`Numbers`] says what differs when the model or the node's pods change; [`plan`] puts that in an order,
//! which [`PolicyTables`] carries out. What an agent finds when it starts, and what an error may have left
//! half done, it reads from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_abi::{RuleCount, Ruling, RulingKey, Subject, V4, V6, ruling};
use fairway_cni_protocol::Endpoint;
use fairway_compile::policy::{
    Changes, Family as FamilyTables, LocalPod, Numbers, RuleName, Tables,
};
use fairway_model::{Model, ObjectName, PolicyName};
use tracing::warn;

use crate::dataplane::{Counters, Dataplane, PrefixTable, Table};
use crate::names::NamedConfig;
use plan::{FamilyWrite, Write, difference, highest, idle, plan, succession};

pub(crate) mod opened;
mod plan;

/// How long rulings that nothing leads to any more are left to readers that are on their way to them.
const GRACE: Duration = Duration::from_secs(1);

/// The least time between two states of policies that flows are held against: each flow is asked about once a
/// state.
const PACE: Duration = Duration::from_millis(50);

/// Entries that are handed to the kernel in one call.
const MOST_AT_ONCE: usize = 4096;

/// The tables, and what they hold.
pub(crate) struct PolicyTables {
    numbers: Numbers,
    v4: Maps<V4>,
    v6: Maps<V6>,
    rulings: Table<RulingKey, Ruling>,
    counters: Counters<RuleCount>,
    state: State,
    /// Rulings and rules that nothing leads to any more, and since when.
    left_over: Vec<(Instant, LeftOver)>,
    /// What became of names of rules since somebody asked.
    renamed: Vec<(u32, Option<RuleName>)>,
    /// When flows were last told that policies have changed.
    told: Option<Instant>,
    /// Addresses that are restricted in the kernel.
    restricted: BTreeSet<IpAddr>,
    /// What a predecessor has restricted, and no model has told us of: pods that run longer than they are known.
    kept: Vec<Kept>,
    /// What was last said of addresses that several claim.
    contested: BTreeMap<IpAddr, Vec<ObjectName>>,
}

/// What is known of what the kernel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A predecessor's tables.
    Inherited,
    /// What the numbers say.
    Known,
    /// Some of it.
    Uncertain,
}

struct Maps<A: fairway_compile::Family> {
    subjects: Table<A, Subject>,
    identities: Table<A, u32>,
    blocks: PrefixTable<A, u32>,
}

#[derive(Debug, Default)]
struct LeftOver {
    rulings: BTreeSet<RulingKey>,
    rules: BTreeSet<u32>,
}

/// A pod that stays restricted as a predecessor's tables say: by sets whose rules nobody knows, so that
/// whoever is somebody by what has changed since is nobody to them.
struct Kept {
    pod: LocalPod,
    v4: BTreeSet<V4>,
    v6: BTreeSet<V6>,
    rulings: BTreeSet<RulingKey>,
}

impl Kept {
    /// `None`: the pod was not restricted.
    fn of(pod: &LocalPod, have: &Tables) -> Option<Self> {
        let v4 = pod.addresses.iter().filter_map(|ip| fairway_compile::Family::of(*ip));
        let v4: BTreeSet<V4> = v4.filter(|ip| have.v4.subjects.contains_key(ip)).collect();
        let v6 = pod.addresses.iter().filter_map(|ip| fairway_compile::Family::of(*ip));
        let v6: BTreeSet<V6> = v6.filter(|ip| have.v6.subjects.contains_key(ip)).collect();
        let subjects = v4.iter().map(|ip| have.v4.subjects[ip]);
        let subjects = subjects.chain(v6.iter().map(|ip| have.v6.subjects[ip]));
        let sets: BTreeSet<u32> =
            subjects.flat_map(|subject| [subject.ingress, subject.egress]).collect();
        let rulings = have.rulings.keys().filter(|key| sets.contains(&key.set.get()));
        let rulings = rulings.copied().collect();
        (!sets.is_empty()).then(|| Self { pod: pod.clone(), v4, v6, rulings })
    }

    fn keep(&self, changes: &mut Changes) {
        changes.v4.subjects.gone.retain(|address| !self.v4.contains(address));
        changes.v6.subjects.gone.retain(|address| !self.v6.contains(address));
        changes.rulings.gone.retain(|key| !self.rulings.contains(key));
    }

    /// What it comes to when the pod is gone, or known after all.
    fn end(self, tables: &Tables) -> Changes {
        let mut changes = Changes::default();
        let is_free4 = |address: &V4| !tables.v4.subjects.contains_key(address);
        changes.v4.subjects.gone = self.v4.into_iter().filter(is_free4).collect();
        let is_free6 = |address: &V6| !tables.v6.subjects.contains_key(address);
        changes.v6.subjects.gone = self.v6.into_iter().filter(is_free6).collect();
        changes.rulings.gone = self.rulings;
        changes
    }
}

/// How many there are of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Pods' addresses that are restricted.
    pub(crate) subjects: usize,
    /// Rules that are in force for one of them, with policies' isolations.
    pub(crate) rules: usize,
    /// Those whom rules tell apart.
    pub(crate) identities: usize,
    /// What rules make of those.
    pub(crate) rulings: usize,
    /// The state that flows are held against.
    pub(crate) revision: u32,
}

impl<A: fairway_compile::Family> Maps<A> {
    fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        Ok(Self {
            subjects: dataplane.table(&format!("subjects{suffix}"))?,
            identities: dataplane.table(&format!("identities{suffix}"))?,
            blocks: dataplane.prefixes(&format!("blocks{suffix}"))?,
        })
    }

    fn read(&self) -> Result<FamilyTables<A>> {
        let blocks = self.blocks.entries()?.into_iter();
        Ok(FamilyTables {
            subjects: self.subjects.entries()?.into_iter().collect(),
            identities: self.identities.entries()?.into_iter().collect(),
            blocks: blocks.map(|((length, network), i)| ((network, length), i)).collect(),
        })
    }

    fn write(&mut self, write: FamilyWrite<A>) -> Result<()> {
        match write {
            FamilyWrite::Identities(all) => {
                all.chunks(MOST_AT_ONCE).try_for_each(|some| self.identities.put_all(some))
            }
            FamilyWrite::Block((network, length), identity) => {
                self.blocks.put((length, network), &identity)
            }
            FamilyWrite::NoBlock((network, length)) => self.blocks.remove((length, network)),
            FamilyWrite::NoIdentity(address) => self.identities.remove(&address),
            FamilyWrite::Subject(address, subject) => self.subjects.put(&address, &subject),
            FamilyWrite::NoSubject(address) => self.subjects.remove(&address),
        }
    }
}

impl PolicyTables {
    /// Takes over what a predecessor left, which stays in force until the first model is here.
    pub(crate) fn adopt(dataplane: &mut Dataplane) -> Result<Self> {
        Ok(Self {
            numbers: Numbers::default(),
            v4: Maps::adopt(dataplane, "4")?,
            v6: Maps::adopt(dataplane, "6")?,
            rulings: dataplane.table("rulings")?,
            counters: dataplane.counters("rule_counts")?,
            state: State::Inherited,
            left_over: Vec::new(),
            renamed: Vec::new(),
            told: None,
            restricted: BTreeSet::new(),
            kept: Vec::new(),
            contested: BTreeMap::new(),
        })
    }

    /// Brings the kernel to what the model says of these pods of this node. When this returns, all of it is
    /// in force, but for flows that are open: see [`Self::tell_flows`]. False: nothing changed. `open` is told
    /// of addresses that are about to be restricted, and were not so far: their flows have no records.
    pub(crate) fn reconcile(
        &mut self,
        model: &Model,
        node: &str,
        local: &[LocalPod],
        config: &mut NamedConfig,
        mut open: impl FnMut(&BTreeSet<IpAddr>),
    ) -> Result<bool> {
        let mut changes = match self.state {
            State::Known => self.numbers.update(model, node, local),
            State::Inherited => {
                let have = self.read()?;
                self.restricted = restricted(&have);
                self.numbers = Numbers::beyond(highest(&have).saturating_add(1));
                self.numbers.update(model, node, local);
                let unknown = local.iter().filter(|pod| !self.numbers.knows(pod));
                self.kept = unknown.filter_map(|pod| Kept::of(pod, &have)).collect();
                vec![succession(&have, &self.numbers.tables())]
            }
            State::Uncertain => {
                self.numbers.update(model, node, local);
                let mut have = self.read()?;
                self.restricted = restricted(&have);
                let want = self.numbers.tables();
                self.make_room(&mut have, &want)?;
                vec![difference(&have, &want)]
            }
        };
        let (kept, over) = std::mem::take(&mut self.kept)
            .into_iter()
            .partition(|kept| local.contains(&kept.pod) && !self.numbers.knows(&kept.pod));
        self.kept = kept;
        let over: Vec<Kept> = over;
        if !over.is_empty() {
            let tables = self.numbers.tables();
            changes.extend(over.into_iter().map(|kept| kept.end(&tables)));
        }
        for kept in &self.kept {
            changes.iter_mut().for_each(|changes| kept.keep(changes));
        }
        changes.retain(|changes| !changes.is_empty());
        let changed = !changes.is_empty();
        // An attempt that fails leaves some of it; what a predecessor left is ours from the first step on.
        self.state = State::Uncertain;
        let restricts = self.numbers.restricts() || !self.kept.is_empty();
        if restricts {
            config.set_policed(true)?;
        }
        for changes in changes {
            let v4 = changes.v4.subjects.put.keys().map(|address| IpAddr::from(*address));
            let v6 = changes.v6.subjects.put.keys().map(|address| IpAddr::from(*address));
            let new: BTreeSet<IpAddr> =
                v4.chain(v6).filter(|address| !self.restricted.contains(address)).collect();
            if !new.is_empty() {
                open(&new);
            }
            for write in plan(&changes) {
                self.write(write)?;
            }
            self.note(changes);
        }
        if !restricts {
            config.set_policed(false)?;
        }
        self.state = State::Known;
        self.tell_contested();
        Ok(changed)
    }

    /// Removes what attempts that failed left of rulings, which may be why there is no room for others. What was in
    /// force a moment ago is left to [`Self::sweep`].
    fn make_room(&mut self, have: &mut Tables, want: &Tables) -> Result<()> {
        for key in idle(have, want) {
            if self.left_over.iter().any(|(_, left)| left.rulings.contains(&key)) {
                continue;
            }
            self.rulings.remove(&key)?;
            have.rulings.remove(&key);
        }
        Ok(())
    }

    fn write(&mut self, write: Write) -> Result<()> {
        match write {
            Write::Counters(rules) => rules.iter().try_for_each(|rule| self.counters.add(*rule)),
            Write::Rulings(all) => {
                let mut some = all.chunks(MOST_AT_ONCE);
                let put = some.try_for_each(|some| self.rulings.put_all(some));
                put.with_context(|| self.heaviest())
            }
            Write::V4(write) => self.v4.write(write),
            Write::V6(write) => self.v6.write(write),
        }
    }

    fn note(&mut self, changes: Changes) {
        let Changes { v4, v6, rulings, rules } = changes;
        self.restricted.extend(v4.subjects.put.into_keys().map(IpAddr::from));
        self.restricted.extend(v6.subjects.put.into_keys().map(IpAddr::from));
        let gone = v4.subjects.gone.into_iter().map(IpAddr::from);
        for address in gone.chain(v6.subjects.gone.into_iter().map(IpAddr::from)) {
            self.restricted.remove(&address);
        }
        if !rulings.gone.is_empty() || !rules.gone.is_empty() {
            let gone = LeftOver { rulings: rulings.gone, rules: rules.gone.clone() };
            self.left_over.push((Instant::now(), gone));
        }
        self.renamed.extend(rules.put.into_iter().map(|(number, name)| (number, Some(name))));
        self.renamed.extend(rules.gone.into_iter().map(|number| (number, None)));
    }

    /// Lets flows that are open be asked about again, but not more often than they can be: if it is too early,
    /// nothing happens, and the answer is when to ask for it again.
    pub(crate) fn tell_flows(
        &mut self,
        config: &mut NamedConfig,
        now: Instant,
    ) -> Result<Option<Instant>> {
        let due = self.told.map(|told| told + PACE).filter(|due| *due > now);
        if due.is_none() {
            config.bump_policy()?;
            self.told = Some(now);
        }
        Ok(due)
    }

    /// What became of names of rules since this was asked last.
    pub(crate) fn take_renamed(&mut self) -> Vec<(u32, Option<RuleName>)> {
        std::mem::take(&mut self.renamed)
    }

    /// Removes what nothing has led to for long enough.
    pub(crate) fn sweep(&mut self, now: Instant) -> Result<()> {
        while let Some((since, left)) = self.left_over.first_mut() {
            if now.duration_since(*since) < GRACE {
                break;
            }
            while let Some(key) = left.rulings.pop_last() {
                if let Err(error) = self.rulings.remove(&key) {
                    left.rulings.insert(key);
                    return Err(error);
                }
            }
            let names = self.numbers.rules();
            while let Some(rule) = left.rules.pop_last() {
                // The number may be another rule's by now.
                if !names.contains_key(&rule) {
                    self.counters.remove(rule)?;
                }
            }
            self.left_over.remove(0);
        }
        Ok(())
    }

    /// Whose rules take most of the table of rulings, for people.
    fn heaviest(&self) -> String {
        let Tables { rulings, rules, .. } = self.numbers.tables();
        let mut counts = BTreeMap::<&PolicyName, usize>::new();
        for ruling in rulings.values() {
            if let Some(rule) = rules.get(&(ruling.verdict & ruling::RULE)) {
                *counts.entry(&rule.policy).or_default() += 1;
            }
        }
        let all = rulings.len();
        match counts.into_iter().max_by_key(|(_, count)| *count) {
            Some((policy, count)) => {
                format!("write what rules come to: {all} entries, {count} of them by {policy}")
            }
            None => format!("write what rules come to: {all} entries"),
        }
    }

    /// Everything that the kernel holds. Rules have no names there.
    fn read(&self) -> Result<Tables> {
        let rules = self.counters.keys()?.into_iter().map(|rule| (rule, RuleName::default()));
        Ok(Tables {
            v4: self.v4.read()?,
            v6: self.v6.read()?,
            rulings: self.rulings.entries()?.into_iter().collect(),
            rules: rules.collect(),
        })
    }

    /// How many flows and packets rules have allowed and denied.
    pub(crate) fn counts(&self) -> Result<Vec<(RuleName, RuleCount)>> {
        let names = self.numbers.rules();
        let mut counts = Vec::with_capacity(names.len());
        for (rule, name) in names {
            let all = self.counters.get(*rule)?;
            let sum = |of: fn(&RuleCount) -> u64| all.iter().map(of).sum();
            let count = RuleCount { allowed: sum(|c| c.allowed), denied: sum(|c| c.denied) };
            counts.push((name.clone(), count));
        }
        Ok(counts)
    }

    /// How many there are of what.
    pub(crate) fn census(&self, config: &NamedConfig) -> Census {
        Census {
            subjects: self.numbers.subjects(),
            rules: self.numbers.rules().len(),
            identities: self.numbers.identities(),
            rulings: self.numbers.rulings(),
            revision: config.policy_revision(),
        }
    }

    /// Says, once, which address several pods claim.
    fn tell_contested(&mut self) {
        let contested = self.numbers.contested();
        for (address, pods) in &contested {
            if self.contested.get(address) != Some(pods) {
                let pods: Vec<String> = pods.iter().map(ToString::to_string).collect();
                warn!(%address, ?pods, "several pods claim an address; for policies, it is nobody's");
            }
        }
        self.contested = contested;
    }
}

fn restricted(tables: &Tables) -> BTreeSet<IpAddr> {
    let v4 = tables.v4.subjects.keys().map(|address| IpAddr::from(*address));
    v4.chain(tables.v6.subjects.keys().map(|address| IpAddr::from(*address))).collect()
}

/// A pod of this node, as policies know it.
pub(crate) fn local_pod(endpoint: &Endpoint) -> LocalPod {
    LocalPod {
        name: ObjectName::new(&endpoint.pod_namespace, &endpoint.pod_name),
        uid: endpoint.pod_uid.clone(),
        addresses: endpoint.addresses.clone(),
    }
}

#[cfg(test)]
mod tests;
