//! Policies to the model: whom their selectors mean, and which pods they restrict.
//!
//! ```text
//! policies ─► drafts ─► book: whom some policy speaks of or restricts, each once
//!                         │ asked once a class
//! pods, namespaces ─► classes: those that have in common what policies ask for
//!                         └─► Pod.policies, Pod.ports, Member, Group
//! ```
//!
//! All of it is kept for the next time, when most is as it was: a pod that changes costs a look at its
//! labels and, only if no other pod has such labels, the question whom they match. What comes out does
//! not depend on what was kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::{
    Group, Member, NamedPort, ObjectName, Pod, Policy, PolicyName, PortMatch, Protocol, Rule,
    Selection, Selector,
};

use self::draft::{Draft, DraftRule, NAMESPACE_NAME, Whom};
use crate::kubernetes::{self, FieldError, Kind, Labels, Namespace, Object, ObjectId, Objects};

pub(crate) use self::check::stray_list;
pub(crate) use self::labels::Requirements;
pub(crate) use self::stand_in::stand_in;

mod check;
mod draft;
mod labels;
mod limits;
mod stand_in;

/// What the policies and pods of the last time came to. See the module.
pub(crate) struct Resolver {
    hash: fn(&str) -> u64,
    drafts: BTreeMap<PolicyName, Drafted>,
    book: Book,
    classes: Classes,
    pods: Vec<KnownPod>,
    nodes: Vec<KnownNode>,
    /// What comes near to what nodes have room for.
    limits: Vec<(ObjectId, FieldError)>,
    outcome: Resolved,
}

/// The part of the model that comes out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) pods: fairway_model::Objects<Pod>,
    pub(crate) policies: fairway_model::Objects<Policy>,
    pub(crate) selectors: fairway_model::Objects<Selector>,
    pub(crate) groups: fairway_model::Objects<Group>,
    pub(crate) members: fairway_model::Objects<Member>,
    /// What is in force in another way than one might think.
    pub(crate) warnings: Vec<(ObjectId, FieldError)>,
}

/// A policy, as it came and as it was read.
struct Drafted {
    id: ObjectId,
    object: Object,
    draft: Draft,
}

/// All policies, put together.
#[derive(Default)]
struct Book {
    whoms: BTreeMap<Arc<Whom>, Spoken>,
    keys: Keys,
}

/// What policies say of somebody.
#[derive(Default)]
struct Spoken {
    /// What rules that have him as a peer call him.
    selector: Option<String>,
    /// The names of ports in rules about what is sent to him.
    ports: BTreeSet<Wanted>,
    /// The policies that restrict him, and the names of ports in their rules about what he receives.
    restricted: BTreeMap<PolicyName, BTreeSet<Wanted>>,
}

/// The name of a port, and its protocol if not any will do.
type Wanted = (String, Option<Protocol>);

/// What policies ask for. Nothing else tells pods apart.
#[derive(Default, PartialEq, Eq)]
struct Keys {
    namespaces: BTreeSet<String>,
    pods: BTreeSet<String>,
    nodes: BTreeSet<String>,
    ports: BTreeSet<String>,
}

/// Classes by number; no number is given out twice.
#[derive(Default)]
struct Classes {
    numbers: HashMap<Traits, u64>,
    by_number: HashMap<u64, Class>,
    next: u64,
    /// How often it was asked of a class whether somebody means it.
    asked: u64,
}

/// What was known when policies asked for other labels.
struct Former {
    whoms: BTreeMap<Arc<Whom>, Spoken>,
    classes: HashMap<u64, Class>,
}

/// All whom somebody is, of all whom it was asked of.
type Known<'a> = (&'a BTreeSet<Arc<Whom>>, &'a BTreeMap<Arc<Whom>, Spoken>);

/// Pods that no policy tells apart, or such nodes.
struct Class {
    traits: Traits,
    /// All whom it is.
    is: BTreeSet<Arc<Whom>>,
    standing: Arc<Standing>,
    /// Whether there is anybody in it, and how many addresses of each family they have.
    used: bool,
    addresses: [usize; 2],
}

/// What those in a class have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Traits {
    Pod { namespace: Labels, labels: Labels, ports: Vec<NamedPort> },
    Node(Labels),
}

/// What comes of being in a class.
#[derive(Debug, Default, PartialEq, Eq)]
struct Standing {
    policies: Vec<PolicyName>,
    ports: Vec<NamedPort>,
    group: Option<Unnamed>,
}

/// A group before it has its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Unnamed {
    selectors: Vec<String>,
    ports: Vec<NamedPort>,
}

/// A pod as it was the last time.
struct KnownPod {
    name: ObjectName,
    object: Arc<kubernetes::Pod>,
    namespace: Option<Arc<Namespace>>,
    /// None if it is on its node's network, or has ended.
    class: Option<u64>,
    /// What the model has of it.
    standing: Arc<Standing>,
    group: Option<Arc<str>>,
    /// It is not in the model as it is.
    stale: bool,
}

/// A node as it was the last time.
struct KnownNode {
    object: Arc<kubernetes::Node>,
    name: String,
    class: u64,
    group: Option<Arc<str>>,
    stale: bool,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            hash: fnv1a,
            drafts: BTreeMap::new(),
            book: Book::default(),
            classes: Classes::default(),
            pods: Vec::new(),
            nodes: Vec::new(),
            limits: Vec::new(),
            outcome: Resolved::default(),
        }
    }
}

impl Resolver {
    /// What the objects come to. `pod` makes a pod for the model, without what concerns policies, if it
    /// is to be in there.
    pub(crate) fn resolve(
        &mut self,
        objects: &Objects,
        pod: impl Fn(&ObjectName, &kubernetes::Pod, Option<&Namespace>) -> Option<Pod>,
    ) -> Resolved {
        let changed = self.take_policies(objects);
        let before = if changed { self.take_book() } else { None };
        for class in self.classes.by_number.values_mut() {
            (class.used, class.addresses) = (false, [0; 2]);
        }
        self.take_pods(objects, before.as_ref());
        self.take_nodes(objects, before.as_ref());
        self.classes.drop_unused();
        let groups = self.outcome.groups.clone();
        let names = self.name_groups();
        self.put_pods(&names, pod);
        self.put_nodes(&names);
        if changed || groups != self.outcome.groups || self.means_many() {
            self.limits = self.count();
        }
        let mut outcome = self.outcome.clone();
        outcome.warnings.extend(self.limits.iter().cloned());
        outcome
    }

    /// Whether any is not what it was.
    fn take_policies(&mut self, objects: &Objects) -> bool {
        let mut before = std::mem::take(&mut self.drafts);
        let mut changed = false;
        for (id, object) in policies(objects) {
            let Some(kind) = id.kind.policy() else { continue };
            let ObjectName { namespace, name } = id.name.clone();
            let name = PolicyName { kind, namespace, name };
            let same = before.remove(&name).filter(|known| known.object == object);
            changed |= same.is_none();
            let drafted = same.or_else(|| {
                let draft = draft(&name, &object)?;
                Some(Drafted { id, object, draft })
            });
            self.drafts.extend(drafted.map(|drafted| (name, drafted)));
        }
        changed || !before.is_empty()
    }

    /// Puts the policies together. If they ask for other labels than before, nobody is in a class any
    /// more; what there was is returned.
    fn take_book(&mut self) -> Option<Former> {
        let (book, policies, selectors) = Book::new(self.drafts.values(), self.hash);
        let before = std::mem::replace(&mut self.book, book);
        let drafts = self.drafts.values();
        let warnings = drafts.flat_map(|drafted| {
            drafted.draft.warnings.iter().map(|warning| (drafted.id.clone(), warning.clone()))
        });
        self.outcome.warnings = warnings.collect();
        self.outcome.policies = policies.into_iter().collect();
        self.outcome.selectors = selectors.into_iter().collect();
        if self.book.keys == before.keys {
            self.classes.take_book(&before, &self.book);
            return None;
        }
        self.classes.numbers.clear();
        let classes = std::mem::take(&mut self.classes.by_number);
        Some(Former { whoms: before.whoms, classes })
    }

    fn take_pods(&mut self, objects: &Objects, former: Option<&Former>) {
        let mut before = std::mem::take(&mut self.pods).into_iter().peekable();
        let mut gone = Vec::new();
        for (name, object) in &objects.pods {
            while let Some(known) = before.next_if(|known| known.name < *name) {
                gone.push(known.name);
            }
            let known = before.next_if(|known| known.name == *name);
            let namespace = objects.namespaces.get(&name.namespace);
            let mut pod = match known {
                // Mostly the very same ones, which costs no comparison.
                Some(known) if known.object == *object && known.namespace.as_ref() == namespace => {
                    known
                }
                known => KnownPod {
                    name: name.clone(),
                    object: Arc::clone(object),
                    namespace: namespace.cloned(),
                    class: None,
                    standing: Arc::default(),
                    group: known.and_then(|known| known.group),
                    stale: true,
                },
            };
            let concerned = !object.spec.host_network && !object.has_ended();
            if (former.is_some() || pod.stale) && concerned {
                let traits = self.book.keys.of_pod(name, object, namespace.map(|space| &**space));
                let known = former.and_then(|former| former.of(pod.class?));
                pod.class = Some(self.classes.number(traits, &self.book, known));
            }
            let class = pod.class.and_then(|class| self.classes.by_number.get_mut(&class));
            let standing = class.map(|class| {
                class.count(object.addresses());
                Arc::clone(&class.standing)
            });
            let standing = standing.unwrap_or_default();
            if !Arc::ptr_eq(&standing, &pod.standing) {
                pod.stale |= standing != pod.standing;
                pod.standing = standing;
            }
            self.pods.push(pod);
        }
        gone.extend(before.map(|known| known.name));
        for name in gone {
            self.outcome.pods.remove(&name);
            self.outcome.members.remove(&name);
        }
    }

    fn take_nodes(&mut self, objects: &Objects, former: Option<&Former>) {
        let mut before = std::mem::take(&mut self.nodes).into_iter().peekable();
        let mut gone = Vec::new();
        for (name, object) in &objects.nodes {
            while let Some(known) = before.next_if(|known| known.name < *name) {
                gone.push(known.name);
            }
            let known = before.next_if(|known| known.name == *name);
            let same = known.filter(|known| known.object == *object);
            let node = same.filter(|_| former.is_none()).unwrap_or_else(|| {
                let traits = self.book.keys.of_node(object);
                let class = self.classes.number(traits, &self.book, None);
                let (object, name) = (Arc::clone(object), name.clone());
                KnownNode { object, name, class, group: None, stale: true }
            });
            if let Some(class) = self.classes.by_number.get_mut(&node.class) {
                class.count(object.addresses());
            }
            self.nodes.push(node);
        }
        gone.extend(before.map(|known| known.name));
        for name in gone {
            self.outcome.members.remove(&ObjectName::new("", name));
        }
    }

    /// The names of all groups that have members; they are in the model then.
    fn name_groups(&mut self) -> HashMap<Unnamed, Arc<str>> {
        let groups = self.members().map(|(group, _)| (group.to_string(), group.clone()));
        let groups: BTreeMap<String, Unnamed> = groups.collect();
        let names = names(groups.keys(), self.hash);
        let mut named = HashMap::new();
        let mut unused: BTreeSet<String> = self.outcome.groups.keys().cloned().collect();
        for (text, group) in groups {
            let name = names[&text].clone();
            unused.remove(&name);
            let Unnamed { selectors, ports } = group.clone();
            named.insert(group, Arc::from(name.as_str()));
            let group = Group { name, selectors, ports };
            if self.outcome.groups.get(&group.name) != Some(&group) {
                self.outcome.groups.insert(group);
            }
        }
        for name in unused {
            self.outcome.groups.remove(&name);
        }
        named
    }

    fn members(&self) -> impl Iterator<Item = (&Unnamed, &Class)> {
        let classes = self.classes.by_number.values().filter(|class| class.has_members());
        classes.filter_map(|class| Some((class.standing.group.as_ref()?, class)))
    }

    /// Whether it matters how many exactly, or did.
    fn means_many(&self) -> bool {
        !self.limits.is_empty()
            || (0..2).any(|family| {
                let count = self.members().map(|(_, class)| class.addresses[family]).sum();
                limits::is_much(count, limits::ADDRESSES)
            })
    }

    fn count(&self) -> Vec<(ObjectId, FieldError)> {
        let groups = self.members();
        let groups = groups.map(|(group, class)| (group, class.is.iter(), class.addresses));
        let census = limits::census(groups);
        limits::warnings(self.drafts.values().map(|drafted| (&drafted.id, &drafted.draft)), &census)
    }

    fn put_pods(
        &mut self,
        names: &HashMap<Unnamed, Arc<str>>,
        convert: impl Fn(&ObjectName, &kubernetes::Pod, Option<&Namespace>) -> Option<Pod>,
    ) {
        let Resolved { pods, members, .. } = &mut self.outcome;
        for pod in &mut self.pods {
            let group = pod.standing.group.as_ref().and_then(|group| names.get(group));
            if !pod.stale && group == pod.group.as_ref() {
                continue;
            }
            let KnownPod { name, object, namespace, standing, .. } = pod;
            match convert(name, object, namespace.as_deref()) {
                Some(converted) => pods.insert(Pod {
                    policies: standing.policies.clone(),
                    ports: standing.ports.clone(),
                    ..converted
                }),
                None => drop(pods.remove(name)),
            }
            put_member(members, name, object.addresses(), group);
            pod.group = group.cloned();
            pod.stale = false;
        }
    }

    fn put_nodes(&mut self, names: &HashMap<Unnamed, Arc<str>>) {
        for node in &mut self.nodes {
            let class = self.classes.by_number.get(&node.class);
            let group = class.and_then(|class| class.standing.group.as_ref());
            let group = group.and_then(|group| names.get(group));
            if node.stale || group != node.group.as_ref() {
                let name = ObjectName::new("", &node.name);
                let addresses = node.object.addresses();
                put_member(&mut self.outcome.members, &name, addresses, group);
                node.group = group.cloned();
                node.stale = false;
            }
        }
    }
}

fn put_member(
    members: &mut fairway_model::Objects<Member>,
    name: &ObjectName,
    addresses: impl Iterator<Item = IpAddr>,
    group: Option<&Arc<str>>,
) {
    let mut seen = HashSet::new();
    let addresses: Vec<_> = addresses.filter(|address| seen.insert(*address)).collect();
    match group {
        Some(group) if !addresses.is_empty() => {
            let (name, group) = (name.clone(), group.to_string());
            members.insert(Member { name, addresses, group });
        }
        _ => drop(members.remove(name)),
    }
}

/// All policies there are.
fn policies(objects: &Objects) -> impl Iterator<Item = (ObjectId, Object)> {
    let in_cluster = |kind: Kind, name: &String| {
        let name = ObjectName::new("", name);
        ObjectId { kind, name }
    };
    let namespaced = objects.network_policies.iter().map(|(name, policy)| {
        let id = ObjectId { kind: Kind::NetworkPolicy, name: name.clone() };
        (id, Object::NetworkPolicy(Arc::clone(policy)))
    });
    let cluster = objects.cluster_network_policies.iter().map(move |(name, policy)| {
        let id = in_cluster(Kind::ClusterNetworkPolicy, name);
        (id, Object::ClusterNetworkPolicy(Arc::clone(policy)))
    });
    let admin = objects.admin_network_policies.iter().map(move |(name, policy)| {
        let id = in_cluster(Kind::AdminNetworkPolicy, name);
        (id, Object::AdminNetworkPolicy(Arc::clone(policy)))
    });
    let baseline = objects.baseline_admin_network_policies.iter().map(move |(name, policy)| {
        let id = in_cluster(Kind::BaselineAdminNetworkPolicy, name);
        (id, Object::BaselineAdminNetworkPolicy(Arc::clone(policy)))
    });
    namespaced.chain(cluster).chain(admin).chain(baseline)
}

/// What it says, if it is a policy.
fn draft(name: &PolicyName, object: &Object) -> Option<Draft> {
    let name = name.clone();
    Some(match object {
        Object::NetworkPolicy(policy) => Draft::of_namespace(name, policy),
        Object::ClusterNetworkPolicy(policy) => Draft::of_cluster(name, policy),
        Object::AdminNetworkPolicy(policy) => Draft::of_admin(name, policy),
        Object::BaselineAdminNetworkPolicy(policy) => Draft::of_baseline(name, policy),
        Object::Namespace(_)
        | Object::Node(_)
        | Object::Pod(_)
        | Object::Service(_)
        | Object::Endpoints(_)
        | Object::EndpointSlice(_)
        | Object::ServiceCIDR(_)
        | Object::IPAddressPool(_)
        | Object::L2Advertisement(_)
        | Object::Ingress(_) => return None,
    })
}

impl Book {
    fn new<'a>(
        drafts: impl Iterator<Item = &'a Drafted> + Clone,
        hash: fn(&str) -> u64,
    ) -> (Self, Vec<Policy>, Vec<Selector>) {
        let mut book = Self::default();
        let mut peers = BTreeMap::<String, &Whom>::new();
        for Drafted { draft, .. } in drafts.clone() {
            let ingress = draft.ingress.iter().flatten();
            let egress = draft.egress.iter().flatten();
            for whom in
                ingress.clone().chain(egress.clone()).flat_map(|rule| rule.peers.iter().flatten())
            {
                peers.insert(whom.to_string(), whom);
            }
            let received = ingress.flat_map(DraftRule::port_names).collect();
            book.spoken(&draft.subject).restricted.insert(draft.name.clone(), received);
            for rule in egress {
                let sent: BTreeSet<_> = rule.port_names().collect();
                for whom in rule.peers.iter().flatten().filter(|_| !sent.is_empty()) {
                    book.spoken(whom).ports.extend(sent.iter().cloned());
                }
            }
        }
        let names = names(peers.keys(), hash);
        let mut selectors = Vec::new();
        for (text, whom) in &peers {
            let name = names[text].clone();
            let means = match whom {
                Whom::Pods { .. } | Whom::Nodes(_) => Selection::Members(text.clone()),
                Whom::Block { cidr, except } => {
                    Selection::Block { cidr: *cidr, except: except.iter().copied().collect() }
                }
            };
            book.spoken(whom).selector = Some(name.clone());
            selectors.push(Selector { name, means });
        }
        let policies = drafts.map(|Drafted { draft, .. }| {
            let rule = |rule: &DraftRule| {
                let peers = rule.peers.as_ref().map(|peers| {
                    let names = peers.iter().filter_map(|whom| names.get(&whom.to_string()));
                    names.cloned().collect()
                });
                Rule {
                    name: rule.name.clone(),
                    action: rule.action,
                    peers,
                    ports: rule.ports.clone(),
                }
            };
            let rules = |rules: &Option<Vec<DraftRule>>| {
                rules.as_ref().map(|rules| rules.iter().map(rule).collect())
            };
            Policy {
                name: draft.name.clone(),
                tier: draft.tier,
                priority: draft.priority,
                ingress: rules(&draft.ingress),
                egress: rules(&draft.egress),
            }
        });
        let policies = policies.collect();
        book.collect_keys();
        (book, policies, selectors)
    }

    fn spoken(&mut self, whom: &Whom) -> &mut Spoken {
        if !self.whoms.contains_key(whom) {
            self.whoms.insert(Arc::new(whom.clone()), Spoken::default());
        }
        self.whoms.get_mut(whom).expect("it has just been put there")
    }

    fn collect_keys(&mut self) {
        let keys = &mut self.keys;
        let own = |keys: &mut BTreeSet<String>, requirements: &labels::Requirements| {
            keys.extend(requirements.keys().map(str::to_owned));
        };
        for (whom, spoken) in &self.whoms {
            match &**whom {
                Whom::Pods { namespaces, pods } => {
                    own(&mut keys.namespaces, namespaces);
                    own(&mut keys.pods, pods);
                }
                Whom::Nodes(nodes) => own(&mut keys.nodes, nodes),
                Whom::Block { .. } => {}
            }
            let received = spoken.restricted.values().flatten();
            keys.ports.extend(received.chain(&spoken.ports).map(|(name, _)| name.clone()));
        }
    }
}

impl DraftRule {
    fn port_names(&self) -> impl Iterator<Item = Wanted> {
        self.ports.iter().flatten().filter_map(|port| match port {
            PortMatch::Named(protocol, name) => Some((name.clone(), *protocol)),
            PortMatch::All(_) | PortMatch::Range(..) => None,
        })
    }
}

impl Keys {
    fn of_pod(
        &self,
        name: &ObjectName,
        pod: &kubernetes::Pod,
        namespace: Option<&Namespace>,
    ) -> Traits {
        let given = namespace.map(|namespace| &namespace.metadata.labels);
        let mut of_namespace =
            given.map_or_else(Labels::new, |labels| some(labels, &self.namespaces));
        if self.namespaces.contains(NAMESPACE_NAME) {
            of_namespace.insert(NAMESPACE_NAME.to_owned(), name.namespace.clone());
        }
        let named = pod.named_ports().filter(|port| self.ports.contains(&port.name));
        let mut seen = BTreeMap::new();
        for port in named {
            seen.entry((port.name, port.protocol)).or_insert(port.port);
        }
        let ports = seen.into_iter();
        let ports = ports.map(|((name, protocol), port)| NamedPort { name, protocol, port });
        Traits::Pod {
            namespace: of_namespace,
            labels: some(&pod.metadata.labels, &self.pods),
            ports: ports.collect(),
        }
    }

    fn of_node(&self, node: &kubernetes::Node) -> Traits {
        Traits::Node(some(&node.metadata.labels, &self.nodes))
    }
}

/// The labels with these keys.
fn some(labels: &Labels, keys: &BTreeSet<String>) -> Labels {
    let known = keys.iter().filter_map(|key| labels.get_key_value(key));
    known.map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl Former {
    fn of(&self, class: u64) -> Option<Known<'_>> {
        self.classes.get(&class).map(|class| (&class.is, &self.whoms))
    }
}

impl Classes {
    /// The number of the class with these traits, of whom something may be known already.
    fn number(&mut self, traits: Traits, book: &Book, known: Option<Known>) -> u64 {
        if let Some(number) = self.numbers.get(&traits) {
            return *number;
        }
        let mut class = Class {
            traits: traits.clone(),
            is: BTreeSet::new(),
            standing: Arc::default(),
            used: true,
            addresses: [0; 2],
        };
        for whom in book.whoms.keys() {
            match known.filter(|(_, whoms)| whoms.contains_key(whom)) {
                Some((is, _)) => class.is.extend(is.get(whom).cloned()),
                None => class.ask(whom, &mut self.asked),
            }
        }
        class.standing = Arc::new(class.stand(book));
        let number = self.next;
        self.next += 1;
        self.numbers.insert(traits, number);
        self.by_number.insert(number, class);
        number
    }

    /// Brings all classes from one book to the next, which asks for the same.
    fn take_book(&mut self, before: &Book, book: &Book) {
        let new: Vec<_> =
            book.whoms.keys().filter(|whom| !before.whoms.contains_key(*whom)).collect();
        for class in self.by_number.values_mut() {
            class.is.retain(|whom| book.whoms.contains_key(whom));
            for whom in &new {
                class.ask(whom, &mut self.asked);
            }
            let standing = class.stand(book);
            if *class.standing != standing {
                class.standing = Arc::new(standing);
            }
        }
    }

    fn drop_unused(&mut self) {
        self.by_number.retain(|_, class| class.used);
        self.numbers.retain(|_, number| self.by_number.contains_key(number));
    }
}

impl Class {
    /// Has one more in it, with these addresses.
    fn count(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        self.used = true;
        for address in addresses {
            self.addresses[usize::from(address.is_ipv6())] += 1;
        }
    }

    fn has_members(&self) -> bool {
        self.addresses != [0; 2]
    }

    /// Learns whether it is this one.
    fn ask(&mut self, whom: &Arc<Whom>, asked: &mut u64) {
        let is = match (&**whom, &self.traits) {
            (Whom::Pods { namespaces, pods }, Traits::Pod { namespace, labels, .. }) => {
                pods.hold(labels) && namespaces.hold(namespace)
            }
            (Whom::Nodes(nodes), Traits::Node(labels)) => nodes.hold(labels),
            _ => return,
        };
        *asked += 1;
        if is {
            self.is.insert(Arc::clone(whom));
        }
    }

    fn stand(&self, book: &Book) -> Standing {
        let spoken = || self.is.iter().filter_map(|whom| book.whoms.get(whom));
        let restricted = || spoken().flat_map(|spoken| &spoken.restricted);
        let policies: BTreeSet<_> = restricted().map(|(policy, _)| policy).collect();
        let received = restricted().flat_map(|(_, ports)| ports).collect();
        let selectors: BTreeSet<_> =
            spoken().filter_map(|spoken| spoken.selector.as_ref()).collect();
        let sent = spoken().flat_map(|spoken| &spoken.ports).collect();
        let group = Unnamed {
            selectors: selectors.into_iter().cloned().collect(),
            ports: self.ports(&sent),
        };
        Standing {
            policies: policies.into_iter().cloned().collect(),
            ports: self.ports(&received),
            group: Some(group).filter(|group| !group.selectors.is_empty()),
        }
    }

    fn ports(&self, wanted: &BTreeSet<&Wanted>) -> Vec<NamedPort> {
        let Traits::Pod { ports, .. } = &self.traits else { return Vec::new() };
        let is_wanted = |port: &&NamedPort| {
            wanted.contains(&(port.name.clone(), None))
                || wanted.contains(&(port.name.clone(), Some(port.protocol)))
        };
        ports.iter().filter(is_wanted).cloned().collect()
    }
}

/// All that it is, once.
impl std::fmt::Display for Unnamed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.selectors.join(","))?;
        for NamedPort { name, protocol, port } in &self.ports {
            write!(f, " {name}/{protocol}/{port}")?;
        }
        Ok(())
    }
}

/// Names for texts that are in order and each once: the same for the same, wherever it is. Where two have
/// the same hash, the later gets something behind it.
fn names<'a>(
    texts: impl Iterator<Item = &'a String>,
    hash: fn(&str) -> u64,
) -> BTreeMap<String, String> {
    let mut taken = HashMap::<u64, u32>::new();
    let names = texts.map(|text| {
        let hash = hash(text);
        let count = taken.entry(hash).or_default();
        *count += 1;
        let name = match *count {
            1 => format!("{hash:016x}"),
            count => format!("{hash:016x}-{count}"),
        };
        (text.clone(), name)
    });
    names.collect()
}

/// Fowler, Noll and Vo's hash 1a, 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::decode::decode_unchecked;

    /// An object that is put there, or taken away.
    #[derive(Clone, Debug)]
    struct Step {
        kind: Kind,
        name: ObjectName,
        value: Option<Value>,
    }

    fn take(objects: &mut Objects, Step { kind, name, value }: &Step) {
        match value {
            Some(value) => {
                objects.insert(name.clone(), decode_unchecked(*kind, value.clone()).unwrap());
            }
            None => match kind {
                Kind::Namespace => drop(objects.namespaces.remove(&name.name)),
                Kind::Node => drop(objects.nodes.remove(&name.name)),
                Kind::Pod => drop(objects.pods.remove(name)),
                Kind::NetworkPolicy => drop(objects.network_policies.remove(name)),
                _ => drop(objects.cluster_network_policies.remove(&name.name)),
            },
        }
    }

    fn resolve(resolver: &mut Resolver, objects: &Objects) -> Resolved {
        resolver.resolve(objects, |name, object, _| {
            let node = object.spec.node_name.clone()?;
            Some(Pod { name: name.clone(), node, ..Pod::default() })
        })
    }

    fn labels() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[abc]", "[xy]", 0..3).prop_map(|labels| json!(labels))
    }

    fn selector() -> impl Strategy<Value = Value> {
        let expression = ("[abc]", prop_oneof![Just("In"), Just("NotIn")], "[xy]");
        let expression = expression.prop_map(
            |(key, operator, value)| json!({"key": key, "operator": operator, "values": [value]}),
        );
        (labels(), prop::collection::vec(expression, 0..2)).prop_map(
            |(labels, expressions)| json!({"matchLabels": labels, "matchExpressions": expressions}),
        )
    }

    fn peer() -> impl Strategy<Value = Value> {
        prop_oneof![
            selector().prop_map(|pods| json!({"podSelector": pods})),
            selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
            (selector(), selector()).prop_map(|(namespaces, pods)| {
                json!({"namespaceSelector": namespaces, "podSelector": pods})
            }),
            (0..3_u8).prop_map(|net| json!({"ipBlock": {"cidr": format!("10.{net}.0.0/16")}})),
        ]
    }

    fn ports() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!([])),
            Just(json!([{"port": 80}])),
            Just(json!([{"port": "http"}])),
            Just(json!([{"port": "http", "protocol": "UDP"}, {"port": 5}])),
        ]
    }

    fn network_policy() -> impl Strategy<Value = Value> {
        let peers = || prop::collection::vec(peer(), 0..3);
        (selector(), peers(), ports(), prop::option::of((peers(), ports()))).prop_map(
            |(pods, from, ports, egress)| {
                let egress = egress.map(|(to, ports)| json!([{"to": to, "ports": ports}]));
                let mut spec =
                    json!({"podSelector": pods, "ingress": [{"from": from, "ports": ports}]});
                if let Some(egress) = egress {
                    spec["egress"] = egress;
                }
                json!({"spec": spec})
            },
        )
    }

    fn cluster_policy() -> impl Strategy<Value = Value> {
        (selector(), selector(), selector()).prop_map(|(subject, namespaces, nodes)| {
            let protocols = json!([{"destinationNamedPort": "http"}]);
            json!({"spec": {
                "tier": "Admin", "priority": 3, "subject": {"namespaces": subject},
                "egress": [
                    {"action": "Deny", "to": [{"namespaces": namespaces}], "protocols": protocols},
                    {"action": "Accept", "to": [{"nodes": nodes}, {"networks": ["10.0.0.0/8"]}]},
                ],
            }})
        })
    }

    fn pod() -> impl Strategy<Value = Value> {
        let phase = prop_oneof![4 => Just("Running"), 1 => Just("Failed")];
        let port = prop::option::of((1..3_u16, any::<bool>()));
        (labels(), 0..4_u8, phase, prop::bool::weighted(0.1), port).prop_map(
            |(labels, last, phase, host, port)| {
                let ports = port.map(|(port, udp)| {
                    let protocol = if udp { "UDP" } else { "TCP" };
                    json!({"name": "http", "containerPort": port, "protocol": protocol})
                });
                let ports: Vec<_> = ports.into_iter().collect();
                let ips: Vec<_> =
                    (1..last).map(|net| json!({"ip": format!("10.{net}.0.{last}")})).collect();
                json!({"metadata": {"labels": labels}, "status": {"phase": phase, "podIPs": ips},
                    "spec": {"nodeName": "n", "hostNetwork": host, "containers": [{"ports": ports}]}})
            },
        )
    }

    fn step() -> impl Strategy<Value = Step> {
        let node = (labels(), 0..3_u8).prop_map(|(labels, last)| {
            let address = json!({"type": "InternalIP", "address": format!("192.0.2.{last}")});
            json!({"metadata": {"labels": labels}, "status": {"addresses": [address]}})
        });
        let namespace = labels().prop_map(|labels| json!({"metadata": {"labels": labels}}));
        let kind = prop_oneof![
            1 => namespace.prop_map(|value| (Kind::Namespace, value)),
            1 => node.prop_map(|value| (Kind::Node, value)),
            4 => pod().prop_map(|value| (Kind::Pod, value)),
            2 => network_policy().prop_map(|value| (Kind::NetworkPolicy, value)),
            1 => cluster_policy().prop_map(|value| (Kind::ClusterNetworkPolicy, value)),
        ];
        (kind, "[pq]", "[pqrs]", prop::bool::weighted(0.8)).prop_map(
            |((kind, value), namespace, name, there)| {
                let namespace = if kind.is_namespaced() { namespace } else { String::new() };
                let name = ObjectName::new(namespace, name);
                Step { kind, name, value: there.then_some(value) }
            },
        )
    }

    /// The same for all texts of the same length.
    fn length(text: &str) -> u64 {
        text.len() as u64
    }

    proptest! {
        #[test]
        fn what_was_kept_makes_no_difference(
            rounds in prop::collection::vec(prop::collection::vec(step(), 1..12), 1..8),
            collide in any::<bool>(),
        ) {
            let fresh = || Resolver { hash: if collide { length } else { fnv1a }, ..Resolver::default() };
            let mut objects = Objects::default();
            let mut kept = fresh();
            for round in rounds {
                for step in &round {
                    take(&mut objects, step);
                }
                let found = resolve(&mut kept, &objects);
                prop_assert_eq!(&found, &resolve(&mut fresh(), &objects));
                let model = fairway_model::Model {
                    pods: found.pods,
                    policies: found.policies,
                    selectors: found.selectors,
                    groups: found.groups,
                    members: found.members,
                    ..fairway_model::Model::default()
                };
                prop_assert_eq!(model.validate(), Ok(()));
                for policy in model.policies.values() {
                    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
                    for name in rules.flat_map(|rule| rule.peers.iter().flatten()) {
                        prop_assert!(model.selectors.contains_key(name));
                    }
                }
                prop_assert!(model.members.values().all(|member| model.groups.contains_key(&member.group)));
                let used = |group: &Group| model.members.values().any(|member| member.group == group.name);
                prop_assert!(model.groups.values().all(used));
            }
        }
    }

    #[test]
    fn names_are_hashes_of_what_they_stand_for() {
        // The function's own test vectors.
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
        let texts = ["a".to_owned(), "b".to_owned(), "ccc".to_owned()];
        let found: Vec<_> = names(texts.iter(), length).into_values().collect();
        assert_eq!(found, ["0000000000000001", "0000000000000001-2", "0000000000000003"]);
    }

    /// `count` pods in ten namespaces, with fifty applications' labels and one of their own each.
    fn many(count: usize) -> Objects {
        let mut objects = Objects::default();
        for index in 0..count {
            let (space, app) = (index % 10, index % 50);
            let name = ObjectName::new(format!("s{space}"), format!("p{index:05}"));
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + u32::try_from(index).unwrap());
            let labels = json!({"app": format!("a{app}"), "hash": format!("h{index}")});
            let value = json!({"metadata": {"labels": labels},
                "spec": {"nodeName": "n"}, "status": {"phase": "Running", "podIP": ip}});
            take(&mut objects, &Step { kind: Kind::Pod, name, value: Some(value) });
        }
        objects
    }

    /// The warnings of a policy whose rules have these peers and ports.
    fn warned(objects: &Objects, peers: Value, ports: Value) -> Vec<String> {
        let mut objects = objects.clone();
        let rule = json!({"from": peers, "ports": ports});
        let value = json!({"spec": {"podSelector": {}, "ingress": [rule]}});
        let name = ObjectName::new("shop", "p");
        take(&mut objects, &Step { kind: Kind::NetworkPolicy, name, value: Some(value) });
        let warnings = resolve(&mut Resolver::default(), &objects).warnings;
        warnings.into_iter().map(|(id, error)| format!("{id}: {error}")).collect()
    }

    #[test]
    fn what_comes_near_to_what_nodes_have_room_for_is_told() {
        let mut objects = many(100);
        let block = |net: usize| {
            let cidr = format!("11.{}.{}.0/24", net >> 8, net & 255);
            json!({"ipBlock": {"cidr": cidr, "except": [cidr.replace("/24", "/32")]}})
        };
        let blocks = |count| Value::from((0..count).map(block).collect::<Vec<_>>());
        assert_eq!(warned(&objects, blocks(20_000), json!([])), [""; 0]);
        let many_blocks = warned(&objects, blocks(55_000), json!([]));
        assert_eq!(
            many_blocks,
            [
                "NetworkPolicy shop/p: spec: it and others speak of 110000 IPv4 ranges and \
                 exceptions, it of most: 110000; nodes have room for 131072",
                "NetworkPolicy shop/p: spec.ingress: its peers times its ports may take 55000 \
                 entries for pods that it restricts; a node has room for 524288 for all of its \
                 pods: name ranges of ports that begin at multiples of their size, or fewer kinds \
                 of peers",
            ]
        );
        let ports = |count| {
            let one = json!({"port": 1, "endPort": 65534});
            Value::from(vec![one; count])
        };
        assert_eq!(warned(&objects, json!([]), ports(1700)), [""; 0]);
        assert_eq!(warned(&objects, json!([]), ports(1800)).len(), 1);

        // One pod with more addresses than nodes have room for stands for as many pods.
        let ips: Vec<_> = (0..200_000_u32)
            .map(|index| json!({"ip": std::net::Ipv4Addr::from(0x0b00_0000 + index)}))
            .collect();
        let value = json!({"spec": {"nodeName": "n"}, "status": {"podIPs": ips}});
        let name = ObjectName::new("shop", "many");
        take(&mut objects, &Step { kind: Kind::Pod, name, value: Some(value) });
        let none = json!([{"namespaceSelector": {"matchLabels": {"none": "such"}}}]);
        assert_eq!(warned(&objects, none, json!([])), [""; 0]);
        let expected = "NetworkPolicy shop/p: spec: it and others speak of pods and nodes with \
                        200000 IPv4 addresses, it of most; nodes have room for 262144";
        assert_eq!(warned(&objects, json!([{"podSelector": {}}]), json!([])), [expected]);
    }

    fn policy(index: usize, peer: &Value) -> Step {
        let name = ObjectName::new(format!("s{}", index % 10), format!("n{index}"));
        let value = json!({"spec": {
            "podSelector": {"matchLabels": {"app": format!("a{}", index % 50)}},
            "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": peer}}]}],
        }});
        Step { kind: Kind::NetworkPolicy, name, value: Some(value) }
    }

    #[test]
    fn a_label_that_changes_costs_nothing_for_other_pods() {
        let mut objects = many(2_000);
        for index in 0..1_000 {
            take(&mut objects, &policy(index, &json!({"app": format!("a{}", index / 20)})));
        }
        let mut resolver = Resolver::default();
        let first = resolve(&mut resolver, &objects);
        let (classes, whoms) =
            (resolver.classes.by_number.len() as u64, resolver.book.whoms.len() as u64);
        // By namespace and application; fifty subjects, and fifty peers.
        assert_eq!((classes, whoms), (50, 100));
        assert_eq!(resolver.classes.asked, classes * whoms, "not once a pod");
        assert_eq!(first.members.len(), 2_000);

        let asked = |resolver: &mut Resolver, objects: &Objects| {
            let before = resolver.classes.asked;
            let found = resolve(resolver, objects);
            (resolver.classes.asked - before, found)
        };
        let (none, same) = asked(&mut resolver, &objects);
        assert_eq!((none, &same), (0, &first));
        // Nothing new was made of what stayed: the two share all of it.
        assert!(std::ptr::eq(
            first.pods.get(&ObjectName::new("s0", "p00000")).unwrap(),
            same.pods.get(&ObjectName::new("s0", "p00000")).unwrap(),
        ));

        let relabel = |objects: &mut Objects, labels: Value| {
            let pod = objects.pods.get_mut(&ObjectName::new("s3", "p00003")).unwrap();
            Arc::make_mut(pod).metadata.labels = serde_json::from_value(labels).unwrap();
        };
        // What nobody asks for, what others have, and what is new.
        relabel(&mut objects, json!({"app": "a3", "hash": "other"}));
        assert_eq!(asked(&mut resolver, &objects).0, 0);
        relabel(&mut objects, json!({"app": "a13"}));
        let (none, moved) = asked(&mut resolver, &objects);
        assert_eq!((none, moved.members.diff(&first.members).count()), (0, 1));
        relabel(&mut objects, json!({"app": "new"}));
        assert_eq!(asked(&mut resolver, &objects).0, whoms);
        relabel(&mut objects, json!({"app": "a3"}));
        assert_eq!(asked(&mut resolver, &objects).0, 0);

        // A policy that is new is asked of each class: with its peer, and its subject if that is new.
        take(&mut objects, &policy(7, &json!({"app": "b"})));
        assert_eq!(asked(&mut resolver, &objects).0, classes);
        // Also if it looks at a label that no other did, which tells more pods apart; of those that it does
        // tell apart, what is known is not asked again.
        take(&mut objects, &policy(8, &json!({"hash": "h1"})));
        assert_eq!(asked(&mut resolver, &objects).0, 2_000);
        assert_eq!(resolver.classes.by_number.len(), 2_000);
    }
}
