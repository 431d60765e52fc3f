//! Numbers of those who are somebody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use fairway_model::{Group, Model, NamedPort};

use super::sets::{Sets, Used};

/// One of the two things that make somebody who he is: a group's selectors and ports, or the ranges that an
/// address is in. By its number; 0: nothing.
pub(super) type Who = u32;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Identities {
    numbers: HashMap<(Who, Who), u32>,
    known: BTreeMap<u32, Identity>,
    parts: HashMap<Who, Part>,
    by_content: HashMap<Content, Who>,
    /// Parts that a selector means.
    meant: HashMap<Arc<str>, BTreeSet<Who>>,
    /// Parts whose pods have ports with names.
    with_ports: BTreeSet<Who>,
    /// Numbers of groups, by name; not of those that are nothing.
    groups: HashMap<String, Who>,
    /// Groups of the model that a selector means, and that have a port of a name.
    by_selector: HashMap<String, BTreeSet<String>>,
    by_port: HashMap<String, BTreeSet<String>>,
    next_part: u32,
    next: u32,
    come: BTreeSet<u32>,
    went: BTreeSet<u32>,
}

impl Default for Identities {
    fn default() -> Self {
        Self::from(1)
    }
}

#[derive(Clone, Debug)]
struct Identity {
    group: Who,
    cover: Who,
    users: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Part {
    content: Content,
    users: usize,
    /// Whose part it is.
    identities: BTreeSet<u32>,
}

/// Selectors and ports, in order.
type Content = (Arc<[Arc<str>]>, Arc<[NamedPort]>);

/// What is to be done once nobody has what was numbered.
#[derive(Debug, Default)]
pub(super) struct Regrouped {
    /// To be released.
    pub(super) parts: Vec<Who>,
    /// Groups that are not what they were: members that are as they were are somebody else now.
    pub(super) regrouped: Vec<String>,
}

impl Identities {
    /// None yet; the first will get this number.
    pub(super) fn from(first: u32) -> Self {
        Self {
            numbers: HashMap::new(),
            known: BTreeMap::new(),
            parts: HashMap::new(),
            by_content: HashMap::new(),
            meant: HashMap::new(),
            with_ports: BTreeSet::new(),
            groups: HashMap::new(),
            by_selector: HashMap::new(),
            by_port: HashMap::new(),
            next_part: 1,
            next: first.max(1),
            come: BTreeSet::new(),
            went: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Notes whom selectors and ports' names mean.
    pub(super) fn index(&mut self, before: Option<&Arc<Group>>, after: Option<&Arc<Group>>) {
        if let Some(group) = before {
            for selector in &group.selectors {
                remove(&mut self.by_selector, selector, &group.name);
            }
            for port in &group.ports {
                remove(&mut self.by_port, &port.name, &group.name);
            }
        }
        if let Some(group) = after {
            for selector in &group.selectors {
                self.by_selector.entry(selector.clone()).or_default().insert(group.name.clone());
            }
            for port in &group.ports {
                self.by_port.entry(port.name.clone()).or_default().insert(group.name.clone());
            }
        }
    }

    /// Groups that these have to do with.
    pub(super) fn groups_with(&self, used: &Used) -> BTreeSet<String> {
        let selectors = used.selectors.iter().filter_map(|name| self.by_selector.get(name));
        let ports = used.ports.iter().filter_map(|name| self.by_port.get(name));
        selectors.chain(ports).flatten().cloned().collect()
    }

    /// Finds out what these groups stand for, given what sets speak of.
    pub(super) fn regroup(
        &mut self,
        names: &BTreeSet<String>,
        model: &Model,
        sets: &Sets,
    ) -> Regrouped {
        let mut regrouped = Regrouped::default();
        for name in names {
            let group = model.groups.get(name);
            let part = group.map_or(0, |group| self.hold_group(group, sets));
            let old = match part {
                0 => self.groups.remove(name),
                part => self.groups.insert(name.clone(), part),
            };
            regrouped.parts.extend(old);
            if old.unwrap_or(0) != part {
                regrouped.regrouped.push(name.clone());
            }
        }
        regrouped
    }

    fn hold_group(&mut self, group: &Group, sets: &Sets) -> Who {
        let selectors = group.selectors.iter().filter(|name| sets.speak_of(name));
        let mut selectors: Vec<Arc<str>> = selectors.map(|name| self.name(name)).collect();
        selectors.sort_unstable();
        let ports = group.ports.iter().filter(|port| sets.speak_of_port(&port.name));
        self.hold(selectors.into(), ports.cloned().collect())
    }

    /// The name, shared with whoever has it already.
    fn name(&self, name: &str) -> Arc<str> {
        self.meant.get_key_value(name).map_or_else(|| name.into(), |(known, _)| Arc::clone(known))
    }

    /// The number of a group's name.
    pub(super) fn group(&self, name: &str) -> Who {
        self.groups.get(name).copied().unwrap_or(0)
    }

    /// The number of these, to be released again.
    pub(super) fn hold(&mut self, selectors: Arc<[Arc<str>]>, ports: Arc<[NamedPort]>) -> Who {
        if selectors.is_empty() && ports.is_empty() {
            return 0;
        }
        let content = (selectors, ports);
        if let Some(who) = self.by_content.get(&content).copied() {
            self.hold_again(who);
            return who;
        }
        let who = self.next_part;
        self.next_part = self.next_part.wrapping_add(1).max(1);
        for selector in content.0.iter() {
            self.meant.entry(Arc::clone(selector)).or_default().insert(who);
        }
        if !content.1.is_empty() {
            self.with_ports.insert(who);
        }
        self.by_content.insert(content.clone(), who);
        self.parts.insert(who, Part { content, users: 1, identities: BTreeSet::new() });
        who
    }

    fn hold_again(&mut self, who: Who) {
        if let Some(part) = self.parts.get_mut(&who) {
            part.users += 1;
        }
    }

    /// The end of what [`Self::hold`] began.
    pub(super) fn release(&mut self, who: Who) {
        let Some(part) = self.parts.get_mut(&who) else { return };
        part.users -= 1;
        if part.users > 0 {
            return;
        }
        let Some(Part { content, .. }) = self.parts.remove(&who) else { return };
        for selector in content.0.iter() {
            if let Some(parts) = self.meant.get_mut(selector) {
                parts.remove(&who);
                if parts.is_empty() {
                    self.meant.remove(selector);
                }
            }
        }
        self.with_ports.remove(&who);
        self.by_content.remove(&content);
    }

    /// The identity that both make, one user more; 0 if they are nothing.
    pub(super) fn take(&mut self, group: Who, cover: Who) -> u32 {
        if (group, cover) == (0, 0) {
            return 0;
        }
        if let Some(number) = self.numbers.get(&(group, cover)) {
            if let Some(identity) = self.known.get_mut(number) {
                identity.users += 1;
            }
            return *number;
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        self.numbers.insert((group, cover), number);
        self.known.insert(number, Identity { group, cover, users: 1 });
        for part in [group, cover] {
            if let Some(part) = self.parts.get_mut(&part) {
                part.users += 1;
                part.identities.insert(number);
            }
        }
        self.come.insert(number);
        number
    }

    /// So many users more of one that is taken.
    pub(super) fn take_again(&mut self, number: u32, users: usize) {
        if let Some(identity) = self.known.get_mut(&number) {
            identity.users += users;
        }
    }

    /// One user less.
    pub(super) fn give_back(&mut self, number: u32) {
        self.give_back_some(number, 1);
    }

    /// So many users less.
    pub(super) fn give_back_some(&mut self, number: u32, users: usize) {
        let Some(identity) = self.known.get_mut(&number) else { return };
        identity.users -= users;
        if identity.users > 0 {
            return;
        }
        let Some(Identity { group, cover, .. }) = self.known.remove(&number) else { return };
        self.numbers.remove(&(group, cover));
        for part in [group, cover] {
            if let Some(known) = self.parts.get_mut(&part) {
                known.identities.remove(&number);
            }
            self.release(part);
        }
        if !self.come.remove(&number) {
            self.went.insert(number);
        }
    }

    /// Identities that have come, and that have gone, since this was asked last.
    pub(super) fn take_news(&mut self) -> (BTreeSet<u32>, BTreeSet<u32>) {
        (std::mem::take(&mut self.come), std::mem::take(&mut self.went))
    }

    /// What an identity is made of.
    pub(super) fn made_of(&self, identity: u32) -> [Who; 2] {
        self.known.get(&identity).map_or([0, 0], |known| [known.group, known.cover])
    }

    /// All parts that a selector means.
    pub(super) fn meant_by(&self, selector: &str) -> impl Iterator<Item = Who> + '_ {
        self.meant.get(selector).into_iter().flatten().copied()
    }

    /// All parts with ports that have names.
    pub(super) fn with_ports(&self) -> impl Iterator<Item = Who> + '_ {
        self.with_ports.iter().copied()
    }

    /// Whose part it is.
    pub(super) fn identities_of(&self, part: Who) -> impl Iterator<Item = u32> + '_ {
        self.parts.get(&part).into_iter().flat_map(|part| part.identities.iter().copied())
    }

    /// Selectors that mean a part.
    pub(super) fn selectors(&self, part: Who) -> &[Arc<str>] {
        self.parts.get(&part).map_or(&[], |part| &part.content.0)
    }

    /// Ports with names.
    pub(super) fn ports(&self, part: Who) -> &[NamedPort] {
        self.parts.get(&part).map_or(&[], |part| &part.content.1)
    }
}

fn remove(index: &mut HashMap<String, BTreeSet<String>>, key: &str, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
