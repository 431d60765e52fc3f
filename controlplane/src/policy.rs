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
use std::sync::Arc;

use fairway_model::{
    Group, Member, NamedPort, ObjectName, Pod, Policy, PolicyName, PortMatch, Protocol, Rule,
    Selection, Selector,
};

use self::draft::{Draft, DraftRule, NAMESPACE_NAME, Whom};
use crate::kubernetes::{self, FieldError, Kind, Labels, Namespace, Object, ObjectId, Objects};

pub(crate) use self::check::stray_list;
pub(crate) use self::stand_in::stand_in;

mod check;
mod draft;
mod labels;
mod stand_in;

/// What the policies and pods of the last time came to. See the module.
pub(crate) struct Resolver {
    hash: fn(&str) -> u64,
    drafts: BTreeMap<PolicyName, Drafted>,
    book: Book,
    classes: Classes,
    pods: Vec<KnownPod>,
    nodes: Vec<KnownNode>,
    outcome: Resolved,
}

/// The part of the model that comes out.
#[derive(Clone, Default)]
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

/// Pods that no policy tells apart, or such nodes.
struct Class {
    traits: Traits,
    /// All whom it is.
    is: BTreeSet<Arc<Whom>>,
    standing: Arc<Standing>,
    /// Whether there is anybody in it, and whether somebody of them has an address.
    used: bool,
    has_members: bool,
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
        let anew = self.take_policies(objects) && self.take_book();
        for class in self.classes.by_number.values_mut() {
            (class.used, class.has_members) = (false, false);
        }
        self.take_pods(objects, anew);
        self.take_nodes(objects, anew);
        self.classes.drop_unused();
        let names = self.name_groups();
        self.put_pods(&names, pod);
        self.put_nodes(&names);
        self.outcome.clone()
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

    /// Puts the policies together. Whether they ask for other labels than before.
    fn take_book(&mut self) -> bool {
        let (book, policies, selectors) = Book::new(self.drafts.values(), self.hash);
        let before = std::mem::replace(&mut self.book, book);
        let drafts = self.drafts.values();
        let warnings = drafts.flat_map(|drafted| {
            drafted.draft.warnings.iter().map(|warning| (drafted.id.clone(), warning.clone()))
        });
        self.outcome.warnings = warnings.collect();
        self.outcome.policies = policies.into_iter().collect();
        self.outcome.selectors = selectors.into_iter().collect();
        let anew = self.book.keys != before.keys;
        if anew {
            self.classes.numbers.clear();
            self.classes.by_number.clear();
        } else {
            self.classes.take_book(&before, &self.book);
        }
        anew
    }

    fn take_pods(&mut self, objects: &Objects, anew: bool) {
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
            if (anew || pod.stale) && !object.spec.host_network && !object.has_ended() {
                let traits = self.book.keys.of_pod(name, object, namespace.map(|space| &**space));
                pod.class = Some(self.classes.number(traits, &self.book));
            }
            let class = pod.class.and_then(|class| self.classes.by_number.get_mut(&class));
            let standing = class.map(|class| {
                class.used = true;
                class.has_members |= object.addresses().next().is_some();
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

    fn take_nodes(&mut self, objects: &Objects, anew: bool) {
        let mut before = std::mem::take(&mut self.nodes).into_iter().peekable();
        let mut gone = Vec::new();
        for (name, object) in &objects.nodes {
            while let Some(known) = before.next_if(|known| known.name < *name) {
                gone.push(known.name);
            }
            let known = before.next_if(|known| known.name == *name);
            let same = known.filter(|known| !anew && known.object == *object);
            let node = same.unwrap_or_else(|| {
                let traits = self.book.keys.of_node(object);
                let class = self.classes.number(traits, &self.book);
                let (object, name) = (Arc::clone(object), name.clone());
                KnownNode { object, name, class, group: None, stale: true }
            });
            if let Some(class) = self.classes.by_number.get_mut(&node.class) {
                class.used = true;
                class.has_members |= object.addresses().next().is_some();
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
        let classes = self.classes.by_number.values().filter(|class| class.has_members);
        let groups = classes.filter_map(|class| class.standing.group.as_ref());
        let groups: BTreeMap<String, &Unnamed> =
            groups.map(|group| (group.to_string(), group)).collect();
        let names = names(groups.keys(), self.hash);
        let mut named = HashMap::new();
        let mut unused: BTreeSet<String> = self.outcome.groups.keys().cloned().collect();
        for (text, group) in groups {
            let name = names[&text].clone();
            unused.remove(&name);
            named.insert(group.clone(), Arc::from(name.as_str()));
            let Unnamed { selectors, ports } = group.clone();
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
    addresses: impl Iterator<Item = std::net::IpAddr>,
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
        | Object::ServiceCIDR(_) => return None,
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

impl Classes {
    /// The number of the class with these traits.
    fn number(&mut self, traits: Traits, book: &Book) -> u64 {
        if let Some(number) = self.numbers.get(&traits) {
            return *number;
        }
        let mut class = Class {
            traits: traits.clone(),
            is: BTreeSet::new(),
            standing: Arc::default(),
            used: true,
            has_members: false,
        };
        for whom in book.whoms.keys() {
            class.ask(whom, &mut self.asked);
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
