//! Sets of rules: what holds for pods in one direction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use fairway_abi::{Ruling, RulingKey, Subject, ruling};
use fairway_model::{
    Action, Model, NamedPort, Pod, Policy, PolicyKind, PolicyName, PortMatch, Rule, Tier,
};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use super::flatten::{Answers, NumberedRule, flatten};
use super::identities::{Identities, Who};
use super::tracked::Tracked;
use super::{LocalPod, RuleName};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    numbers: HashMap<Arc<Content>, u32>,
    sets: BTreeMap<u32, Set>,
    /// What policies say, by direction (whether it is of what pods receive), numbered.
    versions: BTreeMap<(PolicyName, bool), Version>,
    rules: BTreeMap<RuleId, NumberOfRule>,
    names: Tracked<u32, RuleName>,
    locals: BTreeMap<LocalPod, Local>,
    /// How many sets speak of selectors, and of ports by name at the other end.
    used: Uses,
    used_ports: Uses,
    /// Sets that speak of a selector, and those that call ports of the other end by name.
    speakers: HashMap<String, BTreeSet<u32>>,
    namers: BTreeSet<u32>,
    /// Sets that make something of an identity that is not what they make of nobody.
    of_identity: HashMap<u32, Vec<u32>>,
    /// Sets that know nothing of any identity yet.
    unmet: BTreeSet<u32>,
    next_version: u64,
    next_rule: u32,
    next: u32,
}

impl Default for Sets {
    fn default() -> Self {
        Self::from(1)
    }
}

/// How many sets use a name.
#[derive(Clone, Debug, Default)]
struct Uses {
    counts: HashMap<String, usize>,
    /// Names that came into use, or out of it.
    news: BTreeSet<String>,
}

impl Uses {
    fn add(&mut self, name: &str) {
        if let Some(count) = self.counts.get_mut(name) {
            *count += 1;
        } else {
            self.counts.insert(name.to_owned(), 1);
            self.news.insert(name.to_owned());
        }
    }

    fn remove(&mut self, name: &str) {
        let Some(count) = self.counts.get_mut(name) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(name);
            self.news.insert(name.to_owned());
        }
    }
}

/// What sets have begun or ceased to speak of.
#[derive(Debug, Default)]
pub(super) struct Used {
    pub(super) selectors: BTreeSet<String>,
    pub(super) ports: BTreeSet<String>,
}

/// What tells a set from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Content {
    ingress: bool,
    /// Numbers of what its policies say, in the order in which they have their say.
    versions: Vec<u64>,
    /// Ports of the pod that rules may call by name.
    ports: Vec<NamedPort>,
}

#[derive(Clone, Debug)]
struct Version {
    policy: Arc<Policy>,
    number: u64,
}

/// A policy's rule; without a place, its isolation.
type RuleId = (PolicyName, bool, Option<usize>);

#[derive(Clone, Debug)]
struct NumberOfRule {
    number: u32,
    users: usize,
}

/// What holds for a pod of this node.
#[derive(Clone, Debug, Default)]
struct Local {
    /// The pod as it was last known: one that has left the model is restricted for as long as it runs.
    told: Option<Arc<Pod>>,
    subject: Subject,
}

#[derive(Clone, Debug)]
struct Set {
    content: Arc<Content>,
    users: usize,
    /// In order.
    rules: Vec<NumberedRule>,
    ids: Vec<RuleId>,
    isolation: Option<u32>,
    /// Places of rules about everybody.
    always: Vec<usize>,
    /// Places of rules about those whom a selector means.
    about: BTreeMap<String, Vec<usize>>,
    /// What rules call ports of the other end.
    port_names: BTreeSet<String>,
    /// For who is nobody.
    base: Answers,
}

/// Places of the rules of a set about somebody, and his ports that it calls by name: what it makes of him.
type Alike<'a> = (BTreeSet<usize>, &'a [NamedPort]);

impl Sets {
    /// None yet; the first will get this number, as will the first rule.
    pub(super) fn from(first: u32) -> Self {
        Self {
            numbers: HashMap::new(),
            sets: BTreeMap::new(),
            versions: BTreeMap::new(),
            rules: BTreeMap::new(),
            names: Tracked::default(),
            locals: BTreeMap::new(),
            used: Uses::default(),
            used_ports: Uses::default(),
            speakers: HashMap::new(),
            namers: BTreeSet::new(),
            of_identity: HashMap::new(),
            unmet: BTreeSet::new(),
            next_version: 0,
            next_rule: first & ruling::RULE,
            next: first.max(1),
        }
    }

    pub(super) fn names(&self) -> &BTreeMap<u32, RuleName> {
        self.names.now()
    }

    pub(super) fn take_names(&mut self) -> super::Delta<u32, RuleName> {
        self.names.take()
    }

    /// Whether a model has told of the pod.
    pub(super) fn knows(&self, pod: &LocalPod) -> bool {
        self.locals.get(pod).is_some_and(|local| local.told.is_some())
    }

    /// Whether some set speaks of a selector.
    pub(super) fn speak_of(&self, selector: &str) -> bool {
        self.used.counts.contains_key(selector)
    }

    /// Whether some set calls ports of the other end so.
    pub(super) fn speak_of_port(&self, name: &str) -> bool {
        self.used_ports.counts.contains_key(name)
    }

    /// What sets have begun or ceased to speak of since this was asked last.
    pub(super) fn take_used(&mut self) -> Used {
        Used {
            selectors: std::mem::take(&mut self.used.news),
            ports: std::mem::take(&mut self.used_ports.news),
        }
    }

    /// Whether one of these policies restricts the pod.
    pub(super) fn is_any_for(&self, pod: &LocalPod, policies: &BTreeSet<PolicyName>) -> bool {
        let told = self.locals.get(pod).and_then(|local| local.told.as_ref());
        !policies.is_empty()
            && told.is_some_and(|told| told.policies.iter().any(|name| policies.contains(name)))
    }

    /// What holds for a pod of this node. `told` is what the model knows of it.
    pub(super) fn restrict(
        &mut self,
        pod: &LocalPod,
        told: Option<&Arc<Pod>>,
        model: &Model,
    ) -> Subject {
        let mut local = self.locals.remove(pod).unwrap_or_default();
        local.told = told.cloned().or(local.told);
        let mut subject = Subject::default();
        if let Some(told) = &local.told {
            subject.ingress = self.hold(told, true, model);
            subject.egress = self.hold(told, false, model);
        }
        let old = std::mem::replace(&mut local.subject, subject);
        self.let_go(old);
        self.locals.insert(pod.clone(), local);
        subject
    }

    /// The pod is here no more.
    pub(super) fn release(&mut self, pod: &LocalPod) {
        if let Some(local) = self.locals.remove(pod) {
            self.let_go(local.subject);
        }
    }

    fn let_go(&mut self, subject: Subject) {
        for number in [subject.ingress, subject.egress] {
            if let Some(set) = self.sets.get_mut(&number) {
                set.users -= 1;
            }
        }
    }

    /// A policy is not what it was.
    pub(super) fn forget_policy(&mut self, name: &PolicyName, model: &Model) {
        if !model.policies.contains_key(name) {
            self.versions.remove(&(name.clone(), true));
            self.versions.remove(&(name.clone(), false));
        }
    }

    /// Ends sets that nobody has any more.
    pub(super) fn discard(&mut self, rulings: &mut Tracked<RulingKey, Ruling>) {
        let unused = self.sets.iter().filter(|(_, set)| set.users == 0);
        let unused: Vec<u32> = unused.map(|(number, _)| *number).collect();
        for number in unused {
            let Some(set) = self.sets.remove(&number) else { continue };
            self.numbers.remove(&set.content);
            self.namers.remove(&number);
            for selector in set.about.keys() {
                self.used.remove(selector);
                if let Some(speakers) = self.speakers.get_mut(selector) {
                    speakers.remove(&number);
                    if speakers.is_empty() {
                        self.speakers.remove(selector);
                    }
                }
            }
            set.port_names.iter().for_each(|name| self.used_ports.remove(name));
            for key in keys(rulings, RulingKey { set: U32::new(number), ..FIRST }, |key| key.set) {
                rulings.remove(&key);
                if key.length == 0 && key.protocol == 0 {
                    self.no_more_of(key.identity.get(), number);
                }
            }
            for id in set.ids {
                self.let_rule_go(&id);
            }
        }
    }

    fn let_rule_go(&mut self, id: &RuleId) {
        let Some(rule) = self.rules.get_mut(id) else { return };
        rule.users -= 1;
        if rule.users == 0 {
            self.names.remove(&rule.number);
            self.rules.remove(id);
        }
    }

    /// A set makes nothing of an identity any more.
    fn no_more_of(&mut self, identity: u32, set: u32) {
        if let Some(sets) = self.of_identity.get_mut(&identity) {
            sets.retain(|known| *known != set);
            if sets.is_empty() {
                self.of_identity.remove(&identity);
            }
        }
    }

    /// An identity is there no more.
    pub(super) fn forget(&mut self, identity: u32, rulings: &mut Tracked<RulingKey, Ruling>) {
        for set in self.of_identity.remove(&identity).into_iter().flatten() {
            let first = RulingKey { set: U32::new(set), identity: U32::new(identity), ..FIRST };
            for key in keys(rulings, first, |key| (key.set, key.identity)) {
                rulings.remove(&key);
            }
        }
    }

    /// These identities are new; sets that are new learn of all that there are.
    pub(super) fn meet(
        &mut self,
        come: &BTreeSet<u32>,
        identities: &Identities,
        rulings: &mut Tracked<RulingKey, Ruling>,
    ) {
        let unmet = std::mem::take(&mut self.unmet);
        let Self { sets, speakers, namers, of_identity, .. } = self;
        // Many are alike to a set.
        let mut known = HashMap::<(u32, Alike), Option<Answers>>::new();
        for identity in come {
            let [group, cover] = identities.made_of(*identity);
            let ports = identities.ports(group);
            let mut about: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
            for name in [group, cover].into_iter().flat_map(|part| identities.selectors(part)) {
                for number in speakers.get(&**name).into_iter().flatten() {
                    let places = sets.get(number).and_then(|set| set.about.get(&**name));
                    about.entry(*number).or_default().extend(places.into_iter().flatten());
                }
            }
            if !ports.is_empty() {
                for number in namers.iter() {
                    about.entry(*number).or_default();
                }
            }
            for (number, places) in about {
                let Some(set) = sets.get(&number).filter(|_| !unmet.contains(&number)) else {
                    continue;
                };
                let named: &[NamedPort] = if set.port_names.is_empty() { &[] } else { ports };
                let answers = known
                    .entry((number, (places, named)))
                    .or_insert_with_key(|(_, (places, named))| set.answers(places.clone(), named));
                if let Some(answers) = answers {
                    of_identity.entry(*identity).or_default().push(number);
                    put(rulings, answers.rulings(number, *identity));
                }
            }
        }
        for number in unmet {
            if let Some(set) = sets.get(&number) {
                set.meet_all(number, identities, rulings, of_identity);
            }
        }
    }

    /// The number of the set of all that holds for the pod in a direction, one user more; 0: nothing does.
    fn hold(&mut self, pod: &Pod, ingress: bool, model: &Model) -> u32 {
        let mut policies: Vec<(u64, Arc<Policy>)> = Vec::with_capacity(pod.policies.len());
        for name in &pod.policies {
            let (number, policy) = self.version(name, ingress, model);
            if rules_of(&policy, ingress)
                .is_some_and(|rules| policy.tier == Tier::Namespace || !rules.is_empty())
            {
                policies.push((number, policy));
            }
        }
        policies.sort_by(|(_, one), (_, other)| turn(one).cmp(&turn(other)));
        let is_isolated = policies.iter().any(|(_, policy)| policy.tier == Tier::Namespace);
        if is_isolated {
            policies.retain(|(_, policy)| policy.tier != Tier::Baseline);
        }
        let all = || policies.iter().filter_map(|(_, policy)| rules_of(policy, ingress)).flatten();
        if !is_isolated && !all().any(|rule| rule.action == Action::Deny) {
            return 0;
        }
        let ports = if ingress { names_in(all()) } else { BTreeSet::new() };
        let ports = pod.ports.iter().filter(|port| ports.contains(port.name.as_str()));
        let versions = policies.iter().map(|(number, _)| *number).collect();
        let content = Arc::new(Content { ingress, versions, ports: ports.cloned().collect() });
        if let Some(number) = self.numbers.get(&content) {
            if let Some(set) = self.sets.get_mut(number) {
                set.users += 1;
            }
            return *number;
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        let set = self.make(Arc::clone(&content), policies.into_iter().map(|(_, policy)| policy));
        for selector in set.about.keys() {
            self.used.add(selector);
            if let Some(speakers) = self.speakers.get_mut(selector) {
                speakers.insert(number);
            } else {
                self.speakers.insert(selector.clone(), BTreeSet::from([number]));
            }
        }
        if !set.port_names.is_empty() {
            self.namers.insert(number);
        }
        set.port_names.iter().for_each(|name| self.used_ports.add(name));
        self.unmet.insert(number);
        self.numbers.insert(content, number);
        self.sets.insert(number, set);
        number
    }

    /// What a policy says in a direction, and the number of that.
    fn version(&mut self, name: &PolicyName, ingress: bool, model: &Model) -> (u64, Arc<Policy>) {
        let policy = match model.policies.get_shared(name) {
            Some(policy) => Arc::clone(policy),
            // What cannot be read denies.
            None => Arc::new(Policy {
                name: name.clone(),
                ingress: Some(Vec::new()),
                egress: Some(Vec::new()),
                ..Policy::default()
            }),
        };
        let key = (name.clone(), ingress);
        if let Some(known) = self.versions.get_mut(&key) {
            let says = |policy: &Policy| (policy.tier, policy.priority);
            let is_same = Arc::ptr_eq(&known.policy, &policy)
                || says(&known.policy) == says(&policy)
                    && rules_of(&known.policy, ingress) == rules_of(&policy, ingress);
            if is_same {
                known.policy = Arc::clone(&policy);
                return (known.number, policy);
            }
        }
        let number = self.next_version;
        self.next_version += 1;
        self.versions.insert(key, Version { policy: Arc::clone(&policy), number });
        (number, policy)
    }

    fn make(&mut self, content: Arc<Content>, policies: impl Iterator<Item = Arc<Policy>>) -> Set {
        let ingress = content.ingress;
        let mut set = Set {
            content,
            users: 1,
            rules: Vec::new(),
            ids: Vec::new(),
            isolation: None,
            always: Vec::new(),
            about: BTreeMap::new(),
            port_names: BTreeSet::new(),
            base: flatten(std::iter::empty(), None, &[]),
        };
        for policy in policies {
            let rules = rules_of(&policy, ingress).unwrap_or_default();
            if policy.tier == Tier::Namespace && set.isolation.is_none() {
                let id = (policy.name.clone(), ingress, None);
                set.isolation = Some(self.number_rule(&id, ""));
                set.ids.push(id);
            }
            if !ingress {
                set.port_names.extend(names_in(rules).into_iter().map(str::to_owned));
            }
            for (index, rule) in rules.iter().enumerate() {
                let id = (policy.name.clone(), ingress, Some(index));
                let number = self.number_rule(&id, &rule.name);
                set.ids.push(id);
                let place = set.rules.len();
                match &rule.peers {
                    None => set.always.push(place),
                    Some(peers) => {
                        for peer in peers {
                            set.about.entry(peer.clone()).or_default().push(place);
                        }
                    }
                }
                let (tier, action, ports) = (policy.tier, rule.action, rule.ports.clone());
                set.rules.push(NumberedRule { number, tier, action, ports });
            }
        }
        set.base = set.flatten(&set.always, &set.content.ports);
        set
    }

    /// The number of a rule, one user more.
    fn number_rule(&mut self, id: &RuleId, name: &str) -> u32 {
        let number = match self.rules.get_mut(id) {
            Some(rule) => {
                rule.users += 1;
                rule.number
            }
            None => {
                while self.next_rule == 0 || self.names.now().contains_key(&self.next_rule) {
                    self.next_rule = (self.next_rule + 1) & ruling::RULE;
                }
                let number = self.next_rule;
                self.next_rule = (number + 1) & ruling::RULE;
                self.rules.insert(id.clone(), NumberOfRule { number, users: 1 });
                number
            }
        };
        let (policy, ingress, index) = id.clone();
        self.names.put(number, RuleName { policy, ingress, index, name: name.to_owned() });
        number
    }
}

impl Set {
    fn flatten(&self, places: &[usize], ports: &[NamedPort]) -> Answers {
        let rules = places.iter().filter_map(|place| self.rules.get(*place));
        flatten(rules, self.isolation, ports)
    }

    /// What it makes of somebody, given the rules about him and his ports; `None`: what it makes of nobody.
    fn answers(&self, about: BTreeSet<usize>, ports: &[NamedPort]) -> Option<Answers> {
        let is_named = ports.iter().any(|port| self.port_names.contains(&port.name));
        if about.is_empty() && !is_named {
            return None;
        }
        let ports = if self.content.ingress { &self.content.ports } else { ports };
        let mut places: Vec<usize> = about.into_iter().chain(self.always.iter().copied()).collect();
        places.sort_unstable();
        places.dedup();
        let answers = self.flatten(&places, ports);
        (answers != self.base).then_some(answers)
    }

    /// What it makes of everybody it says something about.
    fn meet_all(
        &self,
        number: u32,
        identities: &Identities,
        rulings: &mut Tracked<RulingKey, Ruling>,
        of_identity: &mut HashMap<u32, Vec<u32>>,
    ) {
        put(rulings, self.base.rulings(number, 0));
        let mut about: BTreeMap<Who, BTreeSet<usize>> = BTreeMap::new();
        for (selector, places) in &self.about {
            for part in identities.meant_by(selector) {
                about.entry(part).or_default().extend(places);
            }
        }
        if !self.port_names.is_empty() {
            for part in identities.with_ports() {
                about.entry(part).or_default();
            }
        }
        let whom: BTreeSet<u32> =
            about.keys().flat_map(|part| identities.identities_of(*part)).collect();
        // Many are alike to the set.
        let mut known = HashMap::<Alike, Option<Answers>>::new();
        for identity in whom {
            let [group, cover] = identities.made_of(identity);
            let places = [group, cover].into_iter().filter_map(|part| about.get(&part)).flatten();
            let places: BTreeSet<usize> = places.copied().collect();
            let named: &[NamedPort] =
                if self.port_names.is_empty() { &[] } else { identities.ports(group) };
            let answers = known
                .entry((places, named))
                .or_insert_with_key(|(places, named)| self.answers(places.clone(), named));
            if let Some(answers) = answers {
                of_identity.entry(identity).or_default().push(number);
                put(rulings, answers.rulings(number, identity));
            }
        }
    }
}

fn put(rulings: &mut Tracked<RulingKey, Ruling>, some: impl Iterator<Item = (RulingKey, Ruling)>) {
    for (key, ruling) in some {
        rulings.put(key, ruling);
    }
}

const FIRST: RulingKey =
    RulingKey { set: U32::ZERO, identity: U32::ZERO, protocol: 0, length: 0, port: U16::ZERO };

/// The keys from `first` on that have this in common with it.
fn keys<T: PartialEq>(
    rulings: &Tracked<RulingKey, Ruling>,
    first: RulingKey,
    common: impl Fn(&RulingKey) -> T,
) -> Vec<RulingKey> {
    let keys = rulings.now().range(first..).map(|(key, _)| *key);
    keys.take_while(|key| common(key) == common(&first)).collect()
}

fn rules_of(policy: &Policy, ingress: bool) -> Option<&[Rule]> {
    let rules = if ingress { &policy.ingress } else { &policy.egress };
    rules.as_deref()
}

/// When it has its say, among others.
fn turn(policy: &Policy) -> (Tier, u16, PolicyKind, &str, &str) {
    let PolicyName { kind, namespace, name } = &policy.name;
    let priority = if policy.tier == Tier::Namespace { 0 } else { policy.priority };
    (policy.tier, priority, *kind, namespace, name)
}

/// What rules call ports.
fn names_in<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> BTreeSet<&'a str> {
    let ports = rules.into_iter().flat_map(|rule| rule.ports.iter().flatten());
    ports
        .filter_map(|ports| match ports {
            PortMatch::Named(_, name) => Some(name.as_str()),
            PortMatch::All(_) | PortMatch::Range(..) => None,
        })
        .collect()
}
