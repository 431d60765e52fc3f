//! Policies: who somebody is to this node, and what its pods' rules make of him.
//!
//! An address is somebody by the selectors that mean it: those of its [`Group`](fairway_model::Group), and
//! the ranges that it is in. Whoever has the same of both has one number, an *identity*; the rules that hold
//! for a pod in one direction have another, a *set*. Both numbers are of what they stand for: if that changes,
//! so does the number. Only selectors that some set speaks of count. So what a set makes of an identity never changes, it only comes and goes, and whoever
//! puts tables in force can have all that is new there before anything leads to it.
//!
//! ```text
//! Selector (ranges) ─► Blocks ─► cover ─┐
//! Group, Member ─────► claims ─► group ─┴─► identity ─┐
//!                                                     ├─► flatten ─► rulings
//! Pod, Policy, LocalPod ─► set of rules in order ─────┘
//! ```
//!
//! [`Numbers`] knows the model that it was given last, and looks at what differs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_abi::{Ruling, RulingKey, Subject, V4, V6};
use fairway_model::{Member, Model, ObjectName, Pod, PolicyName, Selection};

use crate::overlay_addresses;
use blocks::Block;
use identities::{Identities, Who};
use sets::Sets;
use space::Space;
use tracked::Tracked;

mod blocks;
mod flatten;
mod identities;
mod sets;
mod space;
mod stages;
mod tracked;

/// A pod's network namespace that is on this node, and the addresses that it has now.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalPod {
    /// Whose it is; empty if its runtime did not say.
    pub name: ObjectName,
    /// Of this life of it; empty if its runtime did not say.
    pub uid: String,
    /// All of its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Everything that a node's kernel has to hold of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The IPv4 tables.
    pub v4: Family<V4>,
    /// The IPv6 tables.
    pub v6: Family<V6>,
    /// What sets of rules make of identities.
    pub rulings: BTreeMap<RulingKey, Ruling>,
    /// What the numbers of rules stand for.
    pub rules: BTreeMap<u32, RuleName>,
}

/// The tables of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family<A> {
    /// Who is restricted, by address.
    pub subjects: BTreeMap<A, Subject>,
    /// Identities of addresses that are somebody beside the ranges that they are in.
    pub identities: BTreeMap<A, u32>,
    /// Identities of ranges, by first address and length in bits; the longest counts.
    pub blocks: BTreeMap<(A, u8), u32>,
}

impl<A> Default for Family<A> {
    fn default() -> Self {
        Self { subjects: BTreeMap::new(), identities: BTreeMap::new(), blocks: BTreeMap::new() }
    }
}

/// What decides, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleName {
    /// Whose rule it is.
    pub policy: PolicyName,
    /// It is about what pods receive.
    pub ingress: bool,
    /// Its place among the policy's rules of that direction; `None`: it is no rule, but that the policy
    /// restricts its pods, and no rule allows.
    pub index: Option<usize>,
    /// What its author calls it; may be empty.
    pub name: String,
}

/// How tables differ from what they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of the IPv4 tables.
    pub v4: FamilyChanges<V4>,
    /// Of the IPv6 tables.
    pub v6: FamilyChanges<V6>,
    /// See [`Tables::rulings`].
    pub rulings: Delta<RulingKey, Ruling>,
    /// See [`Tables::rules`].
    pub rules: Delta<u32, RuleName>,
}

impl Changes {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let Self { v4, v6, rulings, rules } = self;
        v4.is_empty() && v6.is_empty() && rulings.is_empty() && rules.is_empty()
    }
}

/// The part of [`Changes`] that is one family's; see [`Family`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyChanges<A> {
    /// Of [`Family::subjects`].
    pub subjects: Delta<A, Subject>,
    /// Of [`Family::identities`].
    pub identities: Delta<A, u32>,
    /// Of [`Family::blocks`].
    pub blocks: Delta<(A, u8), u32>,
}

impl<A> FamilyChanges<A> {
    fn is_empty(&self) -> bool {
        self.subjects.is_empty() && self.identities.is_empty() && self.blocks.is_empty()
    }
}

impl<A> Default for FamilyChanges<A> {
    fn default() -> Self {
        Self { subjects: Delta::default(), identities: Delta::default(), blocks: Delta::default() }
    }
}

/// How one table differs from what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// What is new, or not what it was.
    pub put: BTreeMap<K, V>,
    /// What is there no more.
    pub gone: BTreeSet<K>,
}

impl<K, V> Delta<K, V> {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }
}

impl<K, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self { put: BTreeMap::new(), gone: BTreeSet::new() }
    }
}

/// What a node has to hold. Numbers are those that `numbers` has given before, where it has; the same
/// models in the same order get the same numbers.
pub fn compile(model: &Model, node: &str, local: &[LocalPod], numbers: &mut Numbers) -> Tables {
    numbers.update(model, node, local);
    numbers.tables()
}

/// What has been numbered so far, and what tables came of it.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    node: String,
    model: Model,
    local: BTreeSet<LocalPod>,
    /// How many members groups have.
    users: HashMap<String, usize>,
    identities: Identities,
    sets: Sets,
    v4: Space<V4>,
    v6: Space<V6>,
    rulings: Tracked<RulingKey, Ruling>,
}

impl Numbers {
    /// The same, with numbers from `first` on: for tables that hold others' below.
    pub fn beyond(first: u32) -> Self {
        let (identities, sets) = (Identities::from(first), Sets::from(first));
        Self { identities, sets, ..Self::default() }
    }

    /// The tables as of the last update.
    pub fn tables(&self) -> Tables {
        Tables {
            v4: self.v4.tables(),
            v6: self.v6.tables(),
            rulings: self.rulings.now().clone(),
            rules: self.sets.names().clone(),
        }
    }

    /// What the numbers of rules stand for.
    pub fn rules(&self) -> &BTreeMap<u32, RuleName> {
        self.sets.names()
    }

    /// Whether a model has told of a pod of this node, in this life of it.
    pub fn knows(&self, pod: &LocalPod) -> bool {
        self.sets.knows(pod)
    }

    /// Whether anybody is restricted.
    pub fn restricts(&self) -> bool {
        self.subjects() > 0
    }

    /// How many addresses are restricted.
    pub fn subjects(&self) -> usize {
        self.v4.subjects() + self.v6.subjects()
    }

    /// How many entries there are of what sets make of identities.
    pub fn rulings(&self) -> usize {
        self.rulings.now().len()
    }

    /// How many identities there are, beside 0.
    pub fn identities(&self) -> usize {
        self.identities.len()
    }

    /// Addresses that are nobody's because several members claim them, with those, by name.
    pub fn contested(&self) -> BTreeMap<IpAddr, Vec<ObjectName>> {
        self.v4.contested().chain(self.v6.contested()).collect()
    }

    /// Brings the tables to another model, and says what differs then, in one or more steps: whoever puts each
    /// of them in force before the next, and of each what is new before what leads to it, sees nobody denied
    /// who is allowed before and after. A member that comes, goes or changes
    /// costs as much as it has addresses, once more for each set that speaks of an identity that is new; a
    /// policy costs what its sets make of those they speak of; a range, what is within it, and one look at
    /// all ranges.
    pub fn update(&mut self, model: &Model, node: &str, local: &[LocalPod]) -> Vec<Changes> {
        let local: BTreeSet<LocalPod> = local.iter().cloned().collect();
        let mut changes = Vec::new();
        let mut between = stages::between(&self.model, model);
        if let Some(last) = between.pop() {
            for first in between {
                changes.extend(self.step(&first, node, self.local.clone()));
            }
            changes.extend(self.step(&last, node, local.clone()));
        }
        changes.extend(self.step(model, node, local));
        changes.retain(|changes| !changes.is_empty());
        changes
    }

    /// In two steps: sets that nobody has any more stay until nobody has them in the kernel, and with them
    /// what makes somebody of those they speak of.
    fn step(&mut self, model: &Model, node: &str, local: BTreeSet<LocalPod>) -> [Changes; 2] {
        let before = std::mem::replace(&mut self.model, model.clone());
        let moved = self.node != node;
        node.clone_into(&mut self.node);
        let known = std::mem::replace(&mut self.local, local);

        let subjects = self.subject(&before, &known, moved);
        let mut fresh = HashMap::new();
        let mut touched = self.claim(&before, model, &known, &mut fresh);
        if moved {
            touched.extend(self.v4.claimed().chain(self.v6.claimed()));
        }
        touched.extend(self.name_nodes(&before, model));
        let mut differing = Differing { touched, ..Differing::default() };
        for difference in before.groups.diff(&model.groups) {
            self.identities.index(difference.before, difference.after);
            differing.groups.insert(difference.name().clone());
        }
        for difference in before.selectors.diff(&model.selectors) {
            differing.selectors.insert(difference.name().clone());
        }
        self.follow(differing, &fresh);
        for (address, subject) in subjects {
            self.v4.restrict(address, subject);
            self.v6.restrict(address, subject);
        }
        let first = self.take_changes();

        for difference in before.policies.diff(&model.policies) {
            self.sets.forget_policy(difference.name(), model);
        }
        self.sets.discard(&mut self.rulings);
        self.follow(Differing::default(), &HashMap::new());
        [first, self.take_changes()]
    }

    fn take_changes(&mut self) -> Changes {
        Changes {
            v4: self.v4.take_changes(),
            v6: self.v6.take_changes(),
            rulings: self.rulings.take(),
            rules: self.sets.take_names(),
        }
    }

    /// Gives addresses the identities that they have now, and sets rulings about those that are new. Only
    /// what some set speaks of makes anybody somebody.
    fn follow(&mut self, mut differing: Differing, fresh: &HashMap<String, usize>) {
        let used = self.sets.take_used();
        differing.groups.extend(self.identities.groups_with(&used));
        differing.selectors.extend(used.selectors);
        let Differing { groups, selectors, mut touched } = differing;
        let gone = self.identities.regroup(&groups, &self.model, &self.sets);
        // Of some, all members are new anyway.
        let has_others = |name: &String| self.users.get(name) != fresh.get(name);
        let regrouped: HashSet<String> = gone.regrouped.into_iter().filter(has_others).collect();
        if !regrouped.is_empty() {
            touched.extend(self.v4.in_groups(&regrouped).chain(self.v6.in_groups(&regrouped)));
        }
        let covers = self.range(&selectors, &mut touched);
        let aliases: Vec<IpAddr> =
            self.v4.aliases(&touched).chain(self.v6.aliases(&touched)).collect();
        touched.extend(aliases);
        for address in touched {
            self.identify(address);
        }
        // Until here, they were somebody's.
        for part in gone.parts.into_iter().chain(covers) {
            self.identities.release(part);
        }
        let (come, went) = self.identities.take_news();
        for identity in went {
            self.sets.forget(identity, &mut self.rulings);
        }
        self.sets.meet(&come, &self.identities, &mut self.rulings);
    }

    /// Notes whose addresses are whose, in the model and on this node, and how many of a group's members are
    /// `fresh`. Returns addresses that may be somebody else's now.
    fn claim(
        &mut self,
        before: &Model,
        model: &Model,
        known: &BTreeSet<LocalPod>,
        fresh: &mut HashMap<String, usize>,
    ) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        for difference in before.members.diff(&model.members) {
            if let Some(users) = difference.before.and_then(|m| self.users.get_mut(&m.group)) {
                *users -= 1;
                if *users == 0
                    && let Some(member) = difference.before
                {
                    self.users.remove(&member.group);
                }
            }
            if let Some(member) = difference.after {
                *self.users.entry(member.group.clone()).or_default() += 1;
                *fresh.entry(member.group.clone()).or_default() += 1;
            }
            for address in difference.before.iter().flat_map(|member| &member.addresses) {
                self.v4.unclaim(*address, difference.name());
                self.v6.unclaim(*address, difference.name());
                touched.insert(*address);
            }
            if let Some(member) = difference.after {
                for address in &member.addresses {
                    self.v4.claim(*address, member);
                    self.v6.claim(*address, member);
                    touched.insert(*address);
                }
            }
        }
        for pod in known.difference(&self.local) {
            for address in &pod.addresses {
                self.v4.disown(*address);
                self.v6.disown(*address);
                touched.insert(*address);
            }
        }
        for pod in self.local.difference(known) {
            for address in &pod.addresses {
                self.v4.own(*address, pod);
                self.v6.own(*address, pod);
                touched.insert(*address);
            }
        }
        for difference in before.pods.diff(&model.pods) {
            let is_here = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| pod.node == self.node);
            if is_here(difference.before) || is_here(difference.after) {
                let member = model.members.get(difference.name());
                touched.extend(member.iter().flat_map(|member| &member.addresses));
            }
        }
        touched
    }

    /// Notes under which addresses nodes send through the tunnel: whoever means the node by its own address
    /// means them, too. Returns those that may be somebody else's now.
    fn name_nodes(&mut self, before: &Model, model: &Model) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        for difference in before.nodes.diff(&model.nodes) {
            for (node, is) in [(difference.before, false), (difference.after, true)] {
                let Some(node) = node else { continue };
                for alias in overlay_addresses(node) {
                    let mut all = node.addresses.iter();
                    let itself = all.find(|address| address.is_ipv4() == alias.is_ipv4());
                    self.v4.alias(alias, itself.copied().filter(|_| is));
                    self.v6.alias(alias, itself.copied().filter(|_| is));
                    touched.insert(alias);
                }
            }
        }
        touched
    }

    /// Notes which addresses are in which ranges, where those may differ. Returns what held the numbers of
    /// ranges so far.
    fn range(&mut self, names: &BTreeSet<String>, touched: &mut BTreeSet<IpAddr>) -> Vec<Who> {
        let (mut some4, mut some6) = (Vec::new(), Vec::new());
        for name in names {
            let selector = self.model.selectors.get(name).filter(|_| self.sets.speak_of(name));
            let (v4, v6) = match selector.map(|selector| &selector.means) {
                Some(Selection::Block { cidr, except }) => {
                    (Block::new(cidr, except), Block::new(cidr, except))
                }
                Some(Selection::Members(_)) | None => (None, None),
            };
            some4.push((name.as_str(), v4));
            some6.push((name.as_str(), v6));
        }
        let mut old = self.v4.range(some4, &mut self.identities, touched);
        old.extend(self.v6.range(some6, &mut self.identities, touched));
        old
    }

    /// Gives an address the identity that it has now.
    fn identify(&mut self, address: IpAddr) {
        let Self { v4, v6, identities, model, node, .. } = self;
        let group = |member: &Member, owner: Option<&LocalPod>| match owner {
            // Whoever else claims it: the node knows who has it.
            Some(owner) => {
                member.name == owner.name
                    && model.pods.get(&member.name).is_none_or(|pod| is_same_life(pod, owner))
            }
            // Those of this node that do not have it, have none yet, or no more.
            None => model.pods.get(&member.name).is_none_or(|pod| pod.node != *node),
        };
        match address {
            IpAddr::V4(address) => v4.identify(address.octets(), group, identities),
            IpAddr::V6(address) => v6.identify(address.octets(), group, identities),
        }
    }

    /// Finds out what holds for which of this node's pods, where that differs.
    fn subject(
        &mut self,
        before: &Model,
        known: &BTreeSet<LocalPod>,
        moved: bool,
    ) -> Vec<(IpAddr, Subject)> {
        let Self { model, local, node, sets, .. } = self;
        let mut policies = BTreeSet::new();
        for difference in before.policies.diff(&model.policies) {
            policies.insert(difference.name().clone());
        }
        let mut pods = BTreeSet::new();
        for difference in before.pods.diff(&model.pods) {
            pods.insert(difference.name().clone());
        }
        let mut subjects = Vec::new();
        for pod in known.difference(local) {
            sets.release(pod);
            subjects.extend(pod.addresses.iter().map(|address| (*address, Subject::default())));
        }
        for pod in local.iter().filter(|pod| !pod.name.name.is_empty()) {
            let is_same = known.contains(pod) && !moved && !pods.contains(&pod.name);
            if is_same && !sets.is_any_for(pod, &policies) {
                continue;
            }
            let told = model.pods.get_shared(&pod.name);
            let told = told.filter(|told| told.node == *node && is_same_life(told, pod));
            let subject = sets.restrict(pod, told, model);
            subjects.extend(pod.addresses.iter().map(|address| (*address, subject)));
        }
        subjects
    }
}

/// What may be something else now.
#[derive(Debug, Default)]
struct Differing {
    groups: BTreeSet<String>,
    selectors: BTreeSet<String>,
    /// Addresses that may be somebody else's.
    touched: BTreeSet<IpAddr>,
}

/// Whether what is known of a pod is of the life that it has on this node. Not every runtime says the uid,
/// nor every manifest.
fn is_same_life(pod: &Pod, here: &LocalPod) -> bool {
    pod.uid == here.uid || pod.uid.is_empty() || here.uid.is_empty()
}

#[cfg(test)]
mod tests;
