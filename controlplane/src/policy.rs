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
//! labels and, only if no other pod has such labels, the question whom they match; a policy that changes,
//! a look at the pods that it is about. What comes out does not depend on what was kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::{
    Group, Member, Named, NamedPort, ObjectName, Pod, Policy, PolicyName, PortMatch, Protocol,
    Rule, Selection, Selector,
};

use self::draft::{Draft, DraftRule, NAMESPACE_NAME, Whom};
use crate::changes::Changes;
use crate::kubernetes::{self, FieldError, Kind, Labels, Namespace, Object, ObjectId, Objects};

pub(crate) use self::check::stray_list;
pub(crate) use self::labels::Requirements;
pub(crate) use self::stand_in::stand_in;

mod check;
mod draft;
mod labels;
mod limits;
mod resolver;
mod stand_in;

/// The kinds of policies.
const POLICIES: [Kind; 4] = [
    Kind::NetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::AdminNetworkPolicy,
    Kind::BaselineAdminNetworkPolicy,
];

/// What the policies and pods of the last time came to. See the module.
pub(crate) struct Resolver {
    hash: fn(&str) -> u64,
    drafts: BTreeMap<PolicyName, Drafted>,
    book: Book,
    classes: Classes,
    groups: Groups,
    /// Who is in a class: pods but for those on their node's network and those that have ended; and nodes, by
    /// names without a namespace.
    members: BTreeMap<Arc<ObjectName>, Membership>,
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
#[derive(Default, PartialEq, Eq)]
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
    nodes: BTreeSet<String>,
    /// Of pods in any namespace...
    everywhere: PodKeys,
    /// ...and of those in this one alone.
    within: BTreeMap<String, PodKeys>,
}

/// Keys of labels, and names of ports.
#[derive(Default, PartialEq, Eq)]
struct PodKeys {
    labels: BTreeSet<String>,
    ports: BTreeSet<String>,
}

/// Classes by number; no number is given out twice.
#[derive(Default)]
struct Classes {
    numbers: HashMap<Traits, u64>,
    by_number: BTreeMap<u64, Class>,
    next: u64,
    /// Those that may be in another group than before, or in none, or of which nobody is left.
    touched: BTreeSet<u64>,
    /// How often it was asked of a class whether somebody means it.
    asked: u64,
}

/// What was known when policies said something else.
struct Former {
    book: Book,
    /// Classes from this number on are newer.
    next: u64,
}

/// Pods that no policy tells apart, or such nodes.
struct Class {
    traits: Traits,
    /// All whom it is.
    is: BTreeSet<Arc<Whom>>,
    standing: Arc<Standing>,
    members: BTreeSet<Arc<ObjectName>>,
    /// How many of each family they have.
    addresses: [usize; 2],
    /// The group that it was counted in, by its text, with so many addresses.
    counted: Option<(String, [usize; 2])>,
}

/// In which class somebody is, with how many addresses of each family.
struct Membership {
    class: u64,
    addresses: [u32; 2],
}

/// The groups that have members.
#[derive(Default)]
struct Groups {
    by_text: BTreeMap<String, Known>,
    /// Their texts by what their names are made of.
    by_hash: HashMap<u64, BTreeSet<String>>,
    /// How many addresses of each family their members have.
    addresses: [usize; 2],
}

/// A group, and the classes that make it up.
struct Known {
    group: Unnamed,
    /// Empty until it has one.
    name: String,
    classes: BTreeSet<u64>,
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

impl Default for Resolver {
    fn default() -> Self {
        Self {
            hash: fnv1a,
            drafts: BTreeMap::new(),
            book: Book::default(),
            classes: Classes::default(),
            groups: Groups::default(),
            members: BTreeMap::new(),
            limits: Vec::new(),
            outcome: Resolved::default(),
        }
    }
}

/// Those who are not in the model as they are, some of them more than once.
type Stale = Vec<Arc<ObjectName>>;

impl Resolver {
    /// What the objects come to, of which these are not what they were the last time. `pod` makes a pod for
    /// the model, without what concerns policies, if it is to be in there.
    pub(crate) fn resolve(
        &mut self,
        objects: &Objects,
        changes: &Changes,
        pod: impl Fn(&ObjectName, &kubernetes::Pod, Option<&Namespace>) -> Option<Pod>,
    ) -> Resolved {
        let changed = changes.any(&POLICIES) && self.take_policies(objects);
        let former = changed.then(|| self.take_book());
        let mut stale = Stale::new();
        self.take_members(objects, changes, former.as_ref(), &mut stale);
        if let Some(former) = &former {
            self.classes.take_book(former, &self.book, &mut stale);
        }
        let regrouped = self.take_groups(&mut stale);
        stale.sort();
        stale.dedup();
        self.put(objects, &stale, pod);
        if changed || regrouped || self.means_many() {
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

    /// Puts the policies together; what was known before is returned.
    fn take_book(&mut self) -> Former {
        let (book, policies, selectors) = Book::new(self.drafts.values(), self.hash);
        let drafts = self.drafts.values();
        let warnings = drafts.flat_map(|drafted| {
            drafted.draft.warnings.iter().map(|warning| (drafted.id.clone(), warning.clone()))
        });
        self.outcome.warnings = warnings.collect();
        self.outcome.policies = policies.into_iter().collect();
        self.outcome.selectors = selectors.into_iter().collect();
        Former { book: std::mem::replace(&mut self.book, book), next: self.classes.next }
    }

    /// Finds the class of everybody who may be in another one than before.
    fn take_members(
        &mut self,
        objects: &Objects,
        changes: &Changes,
        former: Option<&Former>,
        stale: &mut Stale,
    ) {
        let keys = &self.book.keys;
        let mut changed: BTreeSet<&ObjectName> =
            changes.of(Kind::Pod).chain(changes.of(Kind::Node)).collect();
        for name in changes.of(Kind::Namespace) {
            let (before, after) = (&changes.before().namespaces, &objects.namespaces);
            let [before, after] = [before, after].map(|all| all.get(&name.name));
            let asked = former.map(|former| &former.book.keys).into_iter().chain([keys]);
            if tells_apart(before, after, asked) {
                changed.extend(objects.pods_of(&name.name).map(|(name, _)| name));
            }
        }
        let mut known = BTreeSet::new();
        if let Some(former) = former.filter(|former| former.book.keys != *keys) {
            known.extend(former.book.keys.told_apart_otherwise(keys, objects));
            known.insert(resolver::NAME.clone());
        }
        let of_resolver = ObjectName::new("", &resolver::NAME.namespace);
        let first = !self.members.contains_key(&*resolver::NAME);
        if first || changes.of(Kind::Namespace).any(|name| *name == of_resolver) {
            changed.insert(&resolver::NAME);
        }
        // Of those who are what they were it is known whom they are, as far as it was asked before.
        for name in known {
            if !changed.contains(&name) {
                self.take_member(objects, &name, former.map(|former| &former.book), stale);
            }
        }
        for name in changed {
            self.take_member(objects, name, None, stale);
        }
    }

    /// Finds the class of a pod or node, anew. `former` is what was asked of the one that it was in.
    fn take_member(
        &mut self,
        objects: &Objects,
        name: &ObjectName,
        former: Option<&Book>,
        stale: &mut Stale,
    ) {
        let (shared, was) = match self.members.remove_entry(name) {
            Some((shared, was)) => (shared, Some(was)),
            None => (Arc::new(name.clone()), None),
        };
        stale.push(Arc::clone(&shared));
        if let Some(was) = &was {
            self.classes.leave(&shared, was);
        }
        let keys = &self.book.keys;
        let (traits, addresses) = if name.namespace.is_empty() {
            let Some(node) = objects.nodes.get(&name.name) else { return };
            (keys.of_node(node), count(node.addresses()))
        } else {
            let pod = resolver::pod(objects, name);
            let pod = pod.filter(|pod| !pod.spec.host_network && !pod.has_ended());
            let Some(pod) = pod else { return };
            let namespace = objects.namespaces.get(&name.namespace);
            (keys.of_pod(name, pod, namespace.map(|space| &**space)), count(pod.addresses()))
        };
        let former = former.zip(was.map(|was| was.class));
        let class = self.classes.number(traits, &self.book, former);
        let membership = Membership { class, addresses };
        self.classes.join(&shared, &membership);
        self.members.insert(shared, membership);
    }

    /// Counts classes in the groups that they are in now, and forgets those that nobody is in; groups that have
    /// members have a name then, and are in the model. Whether these are others than before.
    fn take_groups(&mut self, stale: &mut Stale) -> bool {
        let mut hashes = BTreeSet::new();
        for number in std::mem::take(&mut self.classes.touched) {
            let Some(class) = self.classes.by_number.get_mut(&number) else { continue };
            let group = class.standing.group.as_ref().filter(|_| class.has_members());
            let next = group.map(|group| (group.to_string(), class.addresses));
            if class.counted != next {
                if let Some((text, addresses)) = &class.counted {
                    self.groups.leave(number, text, *addresses);
                    hashes.insert((self.hash)(text));
                }
                if let (Some((text, addresses)), Some(group)) = (&next, group) {
                    let hash = (self.hash)(text);
                    self.groups.join(number, text, hash, group, *addresses);
                    hashes.insert(hash);
                }
                class.counted = next;
            }
            if class.members.is_empty() {
                self.classes.drop(number);
            }
        }
        let mut regrouped = false;
        for hash in hashes {
            regrouped |= self.name_groups(hash, stale);
        }
        regrouped
    }

    /// Names the groups whose names are made of this hash, and says whether any is another one than before.
    fn name_groups(&mut self, hash: u64, stale: &mut Stale) -> bool {
        let texts = self.groups.by_hash.entry(hash).or_default();
        let gone = |text: &String| self.groups.by_text[text].classes.is_empty();
        let (gone, texts): (BTreeSet<_>, BTreeSet<_>) =
            std::mem::take(texts).into_iter().partition(gone);
        let mut renamed = Vec::new();
        for text in &gone {
            self.groups.by_text.remove(text).inspect(|known| renamed.push(known.name.clone()));
        }
        let mut named = Vec::new();
        for (text, name) in names(texts.iter(), self.hash) {
            let Some(known) = self.groups.by_text.get_mut(&text).filter(|of| of.name != name)
            else {
                continue;
            };
            renamed.push(std::mem::replace(&mut known.name, name.clone()));
            let Unnamed { selectors, ports } = known.group.clone();
            named.push(Group { name, selectors, ports });
            let classes = known.classes.iter().filter_map(|of| self.classes.by_number.get(of));
            stale.extend(classes.flat_map(|class| class.members.iter().cloned()));
        }
        let differs = !renamed.is_empty() || !named.is_empty();
        for name in renamed {
            self.outcome.groups.remove(&name);
        }
        for group in named {
            self.outcome.groups.insert(group);
        }
        if texts.is_empty() {
            self.groups.by_hash.remove(&hash);
        } else {
            self.groups.by_hash.insert(hash, texts);
        }
        differs
    }

    /// Whether it matters how many exactly, or did.
    fn means_many(&self) -> bool {
        let much = |count: &usize| limits::is_much(*count, limits::ADDRESSES);
        !self.limits.is_empty() || self.groups.addresses.iter().any(much)
    }

    fn count(&self) -> Vec<(ObjectId, FieldError)> {
        let classes = self.classes.by_number.values().filter(|class| class.has_members());
        let groups = classes.filter_map(|class| Some((class.standing.group.as_ref()?, class)));
        let groups = groups.map(|(group, class)| (group, class.is.iter(), class.addresses));
        let census = limits::census(groups);
        limits::warnings(self.drafts.values().map(|drafted| (&drafted.id, &drafted.draft)), &census)
    }

    fn put(
        &mut self,
        objects: &Objects,
        stale: &[Arc<ObjectName>],
        convert: impl Fn(&ObjectName, &kubernetes::Pod, Option<&Namespace>) -> Option<Pod>,
    ) {
        let Resolved { pods, members, .. } = &mut self.outcome;
        for name in stale {
            let class = self.members.get(name).map(|of| &self.classes.by_number[&of.class]);
            let counted = class.and_then(|class| class.counted.as_ref());
            let group = counted.map(|(text, _)| &*self.groups.by_text[text].name);
            if name.namespace.is_empty() {
                let node = objects.nodes.get(&name.name).into_iter();
                put_member(members, name, node.flat_map(|node| node.addresses()), group);
                continue;
            }
            let pod = resolver::pod(objects, name);
            let namespace = objects.namespaces.get(&name.namespace).map(|space| &**space);
            let is_resolver = **name == *resolver::NAME;
            let converted = pod.filter(|_| !is_resolver);
            let converted = converted.and_then(|pod| convert(name, pod, namespace));
            match converted {
                Some(converted) => {
                    let standing = class.map(|class| &*class.standing);
                    put_changed(
                        pods,
                        Pod {
                            policies: standing.map_or_else(Vec::new, |of| of.policies.clone()),
                            ports: standing.map_or_else(Vec::new, |of| of.ports.clone()),
                            ..converted
                        },
                    );
                }
                None => drop(pods.remove(&**name)),
            }
            put_member(members, name, pod.into_iter().flat_map(|pod| pod.addresses()), group);
        }
    }
}

/// Puts an object there unless it is there already, so that nobody takes it for another one.
pub(crate) fn put_changed<T: Named + PartialEq>(all: &mut fairway_model::Objects<T>, object: T) {
    if all.get(object.name()) != Some(&object) {
        all.insert(object);
    }
}

/// How many there are of each family.
fn count(addresses: impl Iterator<Item = IpAddr>) -> [u32; 2] {
    let mut count = [0; 2];
    addresses.for_each(|address| count[usize::from(address.is_ipv6())] += 1);
    count
}

/// Whether that a namespace changed can matter to the pods in it, whoever of `asked` asks for its labels.
fn tells_apart<'a>(
    before: Option<&Arc<Namespace>>,
    after: Option<&Arc<Namespace>>,
    mut asked: impl Iterator<Item = &'a Keys>,
) -> bool {
    let none = Arc::default();
    let [before, after] = [before, after].map(|of| &of.unwrap_or(&none).metadata);
    before.annotations != after.annotations
        || asked.any(|keys| {
            some(&before.labels, &keys.namespaces) != some(&after.labels, &keys.namespaces)
        })
}

fn put_member(
    members: &mut fairway_model::Objects<Member>,
    name: &ObjectName,
    addresses: impl Iterator<Item = IpAddr>,
    group: Option<&str>,
) {
    let mut seen = HashSet::new();
    let addresses: Vec<_> = addresses.filter(|address| seen.insert(*address)).collect();
    match group {
        Some(group) if !addresses.is_empty() => {
            let (name, group) = (name.clone(), group.to_owned());
            put_changed(members, Member { name, addresses, group });
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
        | Object::Ingress(_)
        | Object::IngressClass(_)
        | Object::Secret(_)
        | Object::ConfigMap(_) => return None,
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
                    let of_pods = match namespaces.only(NAMESPACE_NAME) {
                        Some(name) => keys.within.entry(name.to_owned()).or_default(),
                        None => &mut keys.everywhere,
                    };
                    own(&mut of_pods.labels, pods);
                    let wanted = spoken.restricted.values().flatten().chain(&spoken.ports);
                    of_pods.ports.extend(wanted.map(|(name, _)| name.clone()));
                }
                Whom::Nodes(nodes) => own(&mut keys.nodes, nodes),
                Whom::Block { .. } => {}
            }
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
        let asked = self.of_namespace(&name.namespace);
        let is_asked = |port: &NamedPort| asked.clone().any(|of| of.ports.contains(&port.name));
        let named = pod.named_ports().filter(is_asked);
        let mut seen = BTreeMap::new();
        for port in named {
            seen.entry((port.name, port.protocol)).or_insert(port.port);
        }
        let ports = seen.into_iter();
        let ports = ports.map(|((name, protocol), port)| NamedPort { name, protocol, port });
        Traits::Pod {
            namespace: of_namespace,
            labels: asked.flat_map(|of| some(&pod.metadata.labels, &of.labels)).collect(),
            ports: ports.collect(),
        }
    }

    fn of_node(&self, node: &kubernetes::Node) -> Traits {
        Traits::Node(some(&node.metadata.labels, &self.nodes))
    }

    /// What is asked of pods in a namespace.
    fn of_namespace(&self, name: &str) -> impl Iterator<Item = &PodKeys> + Clone {
        self.within.get(name).into_iter().chain([&self.everywhere])
    }

    /// All who have something that one asks for and the other does not.
    fn told_apart_otherwise(&self, other: &Self, objects: &Objects) -> BTreeSet<ObjectName> {
        let mut found = BTreeSet::new();
        let namespaces = differing(&self.namespaces, &other.namespaces);
        let everywhere = self.everywhere.differing(&other.everywhere);
        if namespaces.contains(NAMESPACE_NAME) {
            found.extend(objects.pods.keys().cloned());
        } else if everywhere != PodKeys::default() {
            let concerned = objects.pods.iter().filter(|(_, pod)| everywhere.any(pod));
            found.extend(concerned.map(|(name, _)| name.clone()));
        }
        for (name, namespace) in &objects.namespaces {
            if namespaces.iter().any(|key| namespace.metadata.labels.contains_key(key)) {
                found.extend(objects.pods_of(name).map(|(name, _)| name.clone()));
            }
        }
        let none = PodKeys::default();
        for name in self.within.keys().chain(other.within.keys()) {
            let [one, other] = [self, other].map(|keys| keys.within.get(name).unwrap_or(&none));
            let differ = one.differing(other);
            if differ != none {
                let concerned = objects.pods_of(name).filter(|(_, pod)| differ.any(pod));
                found.extend(concerned.map(|(name, _)| name.clone()));
            }
        }
        let nodes = differing(&self.nodes, &other.nodes);
        if !nodes.is_empty() {
            let has = |labels: &Labels| nodes.iter().any(|key| labels.contains_key(key));
            let concerned = objects.nodes.iter().filter(|(_, node)| has(&node.metadata.labels));
            found.extend(concerned.map(|(name, _)| ObjectName::new("", name)));
        }
        found
    }
}

impl PodKeys {
    /// Those that are of one and not of the other.
    fn differing(&self, other: &Self) -> Self {
        Self {
            labels: differing(&self.labels, &other.labels),
            ports: differing(&self.ports, &other.ports),
        }
    }

    /// Whether the pod has one of them.
    fn any(&self, pod: &kubernetes::Pod) -> bool {
        self.labels.iter().any(|key| pod.metadata.labels.contains_key(key))
            || !self.ports.is_empty()
                && pod.named_ports().any(|port| self.ports.contains(&port.name))
    }
}

fn differing(one: &BTreeSet<String>, other: &BTreeSet<String>) -> BTreeSet<String> {
    one.symmetric_difference(other).cloned().collect()
}

/// The labels with these keys.
fn some(labels: &Labels, keys: &BTreeSet<String>) -> Labels {
    let known = keys.iter().filter_map(|key| labels.get_key_value(key));
    known.map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl Classes {
    /// The number of the class with these traits. Of whom is in `former`, a class and what was asked of it, it
    /// is known already whether it is them.
    fn number(&mut self, traits: Traits, book: &Book, former: Option<(&Book, u64)>) -> u64 {
        if let Some(number) = self.numbers.get(&traits) {
            return *number;
        }
        let mut class = Class {
            traits: traits.clone(),
            is: BTreeSet::new(),
            standing: Arc::default(),
            members: BTreeSet::new(),
            addresses: [0; 2],
            counted: None,
        };
        let former =
            former.and_then(|(book, class)| Some((&book.whoms, &self.by_number.get(&class)?.is)));
        for whom in book.whoms.keys() {
            match former.filter(|(whoms, _)| whoms.contains_key(whom)) {
                Some((_, is)) => class.is.extend(is.get(whom).cloned()),
                None => drop(class.ask(whom, &mut self.asked)),
            }
        }
        class.standing = Arc::new(class.stand(book));
        let number = self.next;
        self.next += 1;
        self.numbers.insert(traits, number);
        self.by_number.insert(number, class);
        number
    }

    fn join(&mut self, name: &Arc<ObjectName>, membership: &Membership) {
        if let Some(class) = self.by_number.get_mut(&membership.class) {
            class.members.insert(Arc::clone(name));
            for (all, own) in class.addresses.iter_mut().zip(membership.addresses) {
                *all += own as usize;
            }
            self.touched.insert(membership.class);
        }
    }

    fn leave(&mut self, name: &ObjectName, membership: &Membership) {
        if let Some(class) = self.by_number.get_mut(&membership.class) {
            class.members.remove(name);
            for (all, own) in class.addresses.iter_mut().zip(membership.addresses) {
                *all -= own as usize;
            }
            self.touched.insert(membership.class);
        }
    }

    fn drop(&mut self, number: u64) {
        if let Some(class) = self.by_number.remove(&number) {
            self.numbers.remove(&class.traits);
        }
    }

    /// Brings the classes that there were from one book to the next.
    fn take_book(&mut self, former: &Former, book: &Book, stale: &mut Stale) {
        let before = &former.book.whoms;
        let new = book.whoms.keys().filter(|whom| !before.contains_key(*whom));
        let new: Vec<_> = new.collect();
        let changed = before.iter().filter(|(whom, spoken)| book.whoms.get(*whom) != Some(spoken));
        let changed: Vec<_> = changed.map(|(whom, _)| whom).collect();
        for (number, class) in self.by_number.range_mut(..former.next) {
            if class.members.is_empty() {
                continue;
            }
            let mut concerned = false;
            for whom in &changed {
                // It was asked before; to find it among all others takes longer.
                if class.means(whom) == Some(true) {
                    concerned = true;
                    if !book.whoms.contains_key(*whom) {
                        class.is.remove(*whom);
                    }
                }
            }
            for whom in &new {
                concerned |= class.ask(whom, &mut self.asked);
            }
            if !concerned {
                continue;
            }
            let standing = class.stand(book);
            if *class.standing != standing {
                class.standing = Arc::new(standing);
                stale.extend(class.members.iter().cloned());
                self.touched.insert(*number);
            }
        }
    }
}

impl Groups {
    fn join(&mut self, class: u64, text: &str, hash: u64, group: &Unnamed, addresses: [usize; 2]) {
        self.by_hash.entry(hash).or_default().insert(text.to_owned());
        let new = || Known { group: group.clone(), name: String::new(), classes: BTreeSet::new() };
        self.by_text.entry(text.to_owned()).or_insert_with(new).classes.insert(class);
        for (all, own) in self.addresses.iter_mut().zip(addresses) {
            *all += own;
        }
    }

    fn leave(&mut self, class: u64, text: &str, addresses: [usize; 2]) {
        if let Some(known) = self.by_text.get_mut(text) {
            known.classes.remove(&class);
        }
        for (all, own) in self.addresses.iter_mut().zip(addresses) {
            *all -= own;
        }
    }
}

impl Class {
    fn has_members(&self) -> bool {
        self.addresses != [0; 2]
    }

    /// Learns and says whether it is this one.
    fn ask(&mut self, whom: &Arc<Whom>, asked: &mut u64) -> bool {
        let Some(is) = self.means(whom) else { return false };
        *asked += 1;
        if is {
            self.is.insert(Arc::clone(whom));
        }
        is
    }

    /// Whether it is this one, if it can be at all.
    fn means(&self, whom: &Whom) -> Option<bool> {
        match (whom, &self.traits) {
            (Whom::Pods { namespaces, pods }, Traits::Pod { namespace, labels, .. }) => {
                Some(pods.hold(labels) && namespaces.hold(namespace))
            }
            (Whom::Nodes(nodes), Traits::Node(labels)) => Some(nodes.hold(labels)),
            _ => None,
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

    /// A resolver, and the objects that it has seen.
    #[derive(Default)]
    struct Kept {
        resolver: Resolver,
        objects: Objects,
    }

    impl Kept {
        fn resolve(&mut self, objects: &Objects) -> Resolved {
            let mut changes = Changes::default();
            for id in crate::changes::differing(objects, &self.objects) {
                changes.put(&mut self.objects, &id, objects.get(&id));
            }
            self.resolver.resolve(objects, &changes, |name, object, _| {
                let node = object.spec.node_name.clone()?;
                Some(Pod { name: name.clone(), node, ..Pod::default() })
            })
        }
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
            let hash = if collide { length } else { fnv1a };
            let fresh = || Kept { resolver: Resolver { hash, ..Resolver::default() }, ..Kept::default() };
            let mut objects = Objects::default();
            let mut kept = fresh();
            for round in rounds {
                for step in &round {
                    take(&mut objects, step);
                }
                let found = kept.resolve(&objects);
                prop_assert_eq!(&found, &fresh().resolve(&objects));
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
        let warnings = Kept::default().resolve(&objects).warnings;
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
        let mut kept = Kept::default();
        let first = kept.resolve(&objects);
        let resolver = &kept.resolver;
        let (classes, whoms) =
            (resolver.classes.by_number.len() as u64, resolver.book.whoms.len() as u64);
        // By namespace and application, and the DNS server; fifty subjects, and fifty peers.
        assert_eq!((classes, whoms), (51, 100));
        assert_eq!(resolver.classes.asked, classes * whoms, "not once a pod");
        assert_eq!(first.members.len(), 2_000);

        let asked = |kept: &mut Kept, objects: &Objects| {
            let before = kept.resolver.classes.asked;
            let found = kept.resolve(objects);
            (kept.resolver.classes.asked - before, found)
        };
        let (none, same) = asked(&mut kept, &objects);
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
        assert_eq!(asked(&mut kept, &objects).0, 0);
        relabel(&mut objects, json!({"app": "a13"}));
        let (none, moved) = asked(&mut kept, &objects);
        assert_eq!((none, moved.members.diff(&first.members).count()), (0, 1));
        relabel(&mut objects, json!({"app": "new"}));
        assert_eq!(asked(&mut kept, &objects).0, whoms);
        relabel(&mut objects, json!({"app": "a3"}));
        assert_eq!(asked(&mut kept, &objects).0, 0);

        // A policy that is new is asked of each class: with its peer, and its subject if that is new.
        take(&mut objects, &policy(7, &json!({"app": "b"})));
        assert_eq!(asked(&mut kept, &objects).0, classes);
        // Also if it looks at a label that no other did, which tells more pods apart; of those that it does
        // tell apart, what is known is not asked again.
        take(&mut objects, &policy(8, &json!({"hash": "h1"})));
        assert_eq!(asked(&mut kept, &objects).0, 2_001);
        assert_eq!(kept.resolver.classes.by_number.len(), 2_001);
    }
}
