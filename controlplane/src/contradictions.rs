//! What nodes and pods say that contradicts what others say: of two that claim the same, the older one has it.
//!
//! Who is older is read off the objects, so that each replica and each start finds the same. Services have a
//! module of their own for this, [`crate::allocate`].

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::ObjectName;
use ipnet::IpNet;

use crate::changes::{self, Changes};
use crate::kubernetes::{FieldError, Kind, Node, Object, ObjectId, Objects, Pod};

/// Who claims what, kept for the next time. What is found does not depend on what was kept.
#[derive(Default)]
pub(crate) struct Contradictions {
    ranges: Ranges,
    /// The first pod to claim an address, of those that have addresses of their own...
    claims: HashMap<IpAddr, ObjectName>,
    /// ...and the others, where there are some.
    others: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    contests: BTreeMap<IpAddr, Contest>,
    /// What pods do without.
    lost: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
}

/// What came of nodes' ranges.
#[derive(Default)]
struct Ranges {
    errors: Vec<(ObjectId, FieldError)>,
    lost: BTreeMap<String, Vec<IpNet>>,
}

/// What came of an address that several pods claim.
struct Contest {
    losers: Vec<ObjectName>,
    errors: Vec<(ObjectId, FieldError)>,
}

impl Contradictions {
    /// Brings nodes and pods of `settled` to what `objects` have, without what older ones have. Whatever is not
    /// what it was the last time is in `maybe`.
    pub(crate) fn settle(
        &mut self,
        objects: &Objects,
        maybe: &BTreeSet<ObjectId>,
        settled: &mut Objects,
        changes: &mut Changes,
    ) {
        self.settle_nodes(objects, maybe, settled, changes);
        self.settle_pods(objects, maybe, settled, changes);
    }

    /// What objects do without, and why.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &(ObjectId, FieldError)> {
        self.ranges.errors.iter().chain(self.contests.values().flat_map(|of| &of.errors))
    }

    /// Whoever does without something, and so is not among the settled objects as it says it is.
    pub(crate) fn losers(&self) -> impl Iterator<Item = ObjectId> {
        let nodes = self.ranges.lost.keys().map(|name| (Kind::Node, ObjectName::new("", name)));
        let pods = self.lost.keys().map(|name| (Kind::Pod, name.clone()));
        nodes.chain(pods).map(|(kind, name)| ObjectId { kind, name })
    }

    fn settle_nodes(
        &mut self,
        objects: &Objects,
        maybe: &BTreeSet<ObjectId>,
        settled: &mut Objects,
        changes: &mut Changes,
    ) {
        let names = changes::of(maybe, Kind::Node).map(|name| &name.name);
        let mut names: BTreeSet<String> = names.cloned().collect();
        let says = |node: Option<&Arc<Node>>| {
            node.map(|node| (node.metadata.creation_timestamp, pod_ranges(node)))
        };
        let differs = |name: &String| {
            self.ranges.lost.contains_key(name)
                || says(objects.nodes.get(name)) != says(settled.nodes.get(name))
        };
        if names.iter().any(differs) {
            let before = std::mem::replace(&mut self.ranges, ranges(&objects.nodes));
            names.extend(before.lost.into_keys());
            names.extend(self.ranges.lost.keys().cloned());
        }
        for name in names {
            let next = objects.nodes.get(&name).map(|node| match self.ranges.lost.get(&name) {
                Some(lost) => without_ranges(node, lost),
                None => Arc::clone(node),
            });
            let id = ObjectId { kind: Kind::Node, name: ObjectName::new("", name) };
            changes.put(settled, &id, next.map(Object::Node));
        }
    }

    /// Two pods of one address would be taken for one another. A pod that is going away, or whose node is gone,
    /// may well have had the address of another one before, and makes room without a word.
    fn settle_pods(
        &mut self,
        objects: &Objects,
        maybe: &BTreeSet<ObjectId>,
        settled: &mut Objects,
        changes: &mut Changes,
    ) {
        let mut touched = BTreeSet::new();
        for name in changes::of(maybe, Kind::Pod) {
            let (last, next) = (settled.pods.get(name), objects.pods.get(name));
            let lost = self.lost.get(name);
            if lost.is_none() && last == next {
                continue;
            }
            let had = lost.into_iter().flatten().copied();
            let had: Vec<_> = had.chain(last.into_iter().flat_map(|pod| claims(pod))).collect();
            let has: Vec<_> = next.into_iter().flat_map(|pod| claims(pod)).collect();
            had.iter().filter(|ip| !has.contains(ip)).for_each(|ip| self.unclaim(*ip, name));
            has.iter().filter(|ip| !had.contains(ip)).for_each(|ip| self.claim(*ip, name));
            let is_contested =
                |ip: &IpAddr| self.others.contains_key(ip) || self.contests.contains_key(ip);
            touched.extend(had.into_iter().chain(has).filter(is_contested));
        }
        // Where a node is gone, its pods make room.
        let comes_or_goes = |name: &ObjectName| {
            let before = changes.before().nodes.contains_key(&name.name);
            before != settled.nodes.contains_key(&name.name)
        };
        if changes.of(Kind::Node).any(comes_or_goes) {
            touched.extend(self.contests.keys());
        }
        let mut concerned = BTreeSet::new();
        for address in touched {
            let before = self.contests.remove(&address).into_iter().flat_map(|of| of.losers);
            for loser in before {
                if let Some(lost) = self.lost.get_mut(&loser) {
                    lost.remove(&address);
                    if lost.is_empty() {
                        self.lost.remove(&loser);
                    }
                }
                concerned.insert(loser);
            }
            let Some(contest) = self.contest(address, objects, settled) else { continue };
            for loser in &contest.losers {
                self.lost.entry(loser.clone()).or_default().insert(address);
                concerned.insert(loser.clone());
            }
            self.contests.insert(address, contest);
        }
        for name in changes::of(maybe, Kind::Pod).chain(&concerned) {
            let next = objects.pods.get(name).map(|pod| match self.lost.get(name) {
                Some(lost) => without_addresses(pod, lost),
                None => Arc::clone(pod),
            });
            let id = ObjectId { kind: Kind::Pod, name: name.clone() };
            changes.put(settled, &id, next.map(Object::Pod));
        }
    }

    fn claim(&mut self, address: IpAddr, name: &ObjectName) {
        match self.claims.entry(address) {
            Entry::Vacant(first) => drop(first.insert(name.clone())),
            Entry::Occupied(_) => {
                self.others.entry(address).or_default().insert(name.clone());
            }
        }
    }

    fn unclaim(&mut self, address: IpAddr, name: &ObjectName) {
        let others = self.others.get_mut(&address);
        if self.claims.get(&address) == Some(name) {
            match others.and_then(BTreeSet::pop_first) {
                Some(next) => drop(self.claims.insert(address, next)),
                None => drop(self.claims.remove(&address)),
            }
        } else if let Some(others) = others {
            others.remove(name);
        }
        if self.others.get(&address).is_some_and(BTreeSet::is_empty) {
            self.others.remove(&address);
        }
    }

    /// Who has an address that several claim.
    fn contest(&self, address: IpAddr, objects: &Objects, settled: &Objects) -> Option<Contest> {
        let names = self.others.get(&address)?.iter().chain(self.claims.get(&address));
        let names: BTreeSet<_> = names.collect();
        let pods = names.into_iter().filter_map(|name| Some((name, objects.pods.get(name)?)));
        let goes = |pod: &Pod| {
            let node = pod.spec.node_name.as_ref();
            pod.metadata.deletion_timestamp.is_some()
                || node.is_some_and(|node| !settled.nodes.contains_key(node))
        };
        let mut all: Vec<_> = pods.collect();
        // Those of one age stay in the order of their names.
        all.sort_by_key(|(_, pod)| (goes(pod), pod.metadata.creation_timestamp));
        let ((holder, first), others) = all.split_first()?;
        let stays = !goes(first);
        let told = others.iter().filter(|(_, pod)| !(stays && goes(pod)));
        let errors = told.map(|(name, pod)| {
            let message = format!("{address} is already taken by {holder}");
            let id = ObjectId { kind: Kind::Pod, name: (*name).clone() };
            (id, FieldError::new(address_field(pod, address), message))
        });
        let losers = others.iter().map(|(name, _)| (*name).clone()).collect();
        Some(Contest { errors: errors.collect(), losers })
    }
}

/// Pods of overlapping ranges would be reached on one of the nodes by chance.
fn ranges(nodes: &BTreeMap<String, Arc<Node>>) -> Ranges {
    let mut by_age: Vec<_> = nodes.iter().collect();
    // Those of one age stay in the order of their names.
    by_age.sort_by_key(|(_, node)| node.metadata.creation_timestamp);
    let mut found = Ranges::default();
    let mut taken = Taken::default();
    for (name, node) in by_age {
        for (field, range) in pod_ranges(node) {
            if let Some((other, holder)) = taken.overlap(&range) {
                let id = ObjectId { kind: Kind::Node, name: ObjectName::new("", name) };
                let message = format!("{range} overlaps with {other}, which node {holder} has");
                found.errors.push((id, FieldError::new(field, message)));
                found.lost.entry(name.clone()).or_default().push(range);
            } else {
                taken.insert(range, name);
            }
        }
    }
    found
}

fn without_ranges(node: &Arc<Node>, lost: &[IpNet]) -> Arc<Node> {
    let mut node = Node::clone(node);
    node.spec.pod_cidrs.retain(|range| !lost.contains(range));
    node.spec.pod_cidr = node.spec.pod_cidr.filter(|range| !lost.contains(range));
    Arc::new(node)
}

fn without_addresses(pod: &Arc<Pod>, lost: &BTreeSet<IpAddr>) -> Arc<Pod> {
    let mut pod = Pod::clone(pod);
    pod.status.pod_ips.retain(|of| !lost.contains(&of.ip));
    pod.status.pod_ip = pod.status.pod_ip.filter(|ip| !lost.contains(ip));
    Arc::new(pod)
}

/// The fields that say which pods a node has, and what they say.
fn pod_ranges(node: &Node) -> Vec<(String, IpNet)> {
    let spec = &node.spec;
    let single = spec.pod_cidr.filter(|_| spec.pod_cidrs.is_empty());
    let several = spec.pod_cidrs.iter().enumerate();
    let several = several.map(|(index, range)| (format!("spec.podCIDRs[{index}]"), *range));
    several.chain(single.map(|range| ("spec.podCIDR".to_owned(), range))).collect()
}

/// Ranges of which none overlaps with another, by their first address, with whose they are.
#[derive(Default)]
struct Taken<'a>(BTreeMap<IpAddr, (IpNet, &'a str)>);

impl<'a> Taken<'a> {
    fn insert(&mut self, range: IpNet, holder: &'a str) {
        self.0.insert(range.network(), (range, holder));
    }

    /// One that has an address of this range. Of two ranges that overlap one is in the other, so it begins
    /// last before this one or within it.
    fn overlap(&self, range: &IpNet) -> Option<(IpNet, &'a str)> {
        let before = self.0.range(..=range.network()).next_back();
        let within = self.0.range(range.network()..=range.broadcast()).next();
        let found = before.into_iter().chain(within).map(|(_, found)| *found);
        found.into_iter().find(|(other, _)| other.contains(range) || range.contains(other))
    }
}

/// The addresses that a pod says are its own.
fn claims(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    pod.addresses().filter(|_| has_addresses_of_its_own(pod))
}

fn has_addresses_of_its_own(pod: &Pod) -> bool {
    !pod.spec.host_network && !pod.has_ended()
}

fn address_field(pod: &Pod, address: IpAddr) -> String {
    match pod.status.pod_ips.iter().position(|of| of.ip == address) {
        Some(index) => format!("status.podIPs[{index}].ip"),
        None => "status.podIP".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::decode::decode_unchecked;

    /// Objects by kind and name; a name with `/` has a namespace.
    fn objects(all: &[(Kind, &str, Value)]) -> Objects {
        let mut objects = Objects::default();
        for (kind, name, value) in all {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            let object = decode_unchecked(*kind, value.clone()).unwrap();
            objects.insert(ObjectName::new(namespace, name), object);
        }
        objects
    }

    fn settled(objects: &mut Objects) -> Vec<String> {
        let (mut contradictions, mut settled) = (Contradictions::default(), Objects::default());
        let all = changes::differing(objects, &settled);
        contradictions.settle(objects, &all, &mut settled, &mut Changes::default());
        *objects = settled;
        contradictions.errors().map(|(id, error)| format!("{id}: {error}")).collect()
    }

    fn node(created: &str, ranges: &[&str]) -> Value {
        json!({"metadata": {"creationTimestamp": created}, "spec": {"podCIDRs": ranges}})
    }

    #[test]
    fn of_nodes_with_overlapping_ranges_the_older_keeps_its_own() {
        let check = |nodes: &[(&str, Value)], kept: &[(&str, &[&str])], expected: &[&str]| {
            let nodes: Vec<_> =
                nodes.iter().map(|(name, value)| (Kind::Node, *name, value.clone())).collect();
            let mut objects = objects(&nodes);
            assert_eq!(settled(&mut objects), expected, "{nodes:?}");
            for (name, ranges) in kept {
                let left = pod_ranges(&objects.nodes[*name]);
                let left: Vec<_> = left.iter().map(|(_, range)| range.to_string()).collect();
                assert_eq!(left, *ranges, "{name} of {nodes:?}");
            }
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
        // The older one wins, whatever its name; another family is left alone.
        check(
            &[
                ("a", node(new, &["10.244.1.0/24", "fd00:1::/64"])),
                ("b", node(old, &["10.244.1.0/24"])),
            ],
            &[("a", &["fd00:1::/64"]), ("b", &["10.244.1.0/24"])],
            &[
                "Node a: spec.podCIDRs[0]: 10.244.1.0/24 overlaps with 10.244.1.0/24, which node b has",
            ],
        );
        // A wider one, and a narrower one.
        check(
            &[
                ("a", node(old, &["10.244.2.0/24"])),
                ("b", node(new, &["10.244.0.0/16"])),
                ("c", node(new, &["10.244.2.128/25"])),
                ("d", node(new, &["10.244.3.0/24"])),
            ],
            &[("b", &[]), ("c", &[]), ("d", &["10.244.3.0/24"])],
            &[
                "Node b: spec.podCIDRs[0]: 10.244.0.0/16 overlaps with 10.244.2.0/24, which node a has",
                "Node c: spec.podCIDRs[0]: 10.244.2.128/25 overlaps with 10.244.2.0/24, which node a has",
            ],
        );
        // Manifests that people wrote are of one age, and younger than those that say their own.
        check(
            &[
                ("a", json!({"spec": {"podCIDR": "10.244.1.0/24"}})),
                ("b", json!({"spec": {"podCIDR": "10.244.1.0/24"}})),
                ("c", node("2026-01-01", &["10.244.2.0/24"])),
                ("d", node(new, &["10.244.2.0/24"])),
            ],
            &[("a", &["10.244.1.0/24"]), ("b", &[]), ("c", &[]), ("d", &["10.244.2.0/24"])],
            &[
                "Node b: spec.podCIDR: 10.244.1.0/24 overlaps with 10.244.1.0/24, which node a has",
                "Node c: spec.podCIDRs[0]: 10.244.2.0/24 overlaps with 10.244.2.0/24, which node d has",
            ],
        );
    }

    #[test]
    fn of_pods_with_one_address_the_older_has_it() {
        let pod = |created: u8, more: Value| {
            let created = format!("2026-01-01T00:00:0{created}Z");
            let mut pod = json!({"metadata": {"creationTimestamp": created},
                "spec": {"nodeName": "n"}, "status": {"podIPs": [{"ip": "10.0.0.5"}]}});
            for (part, fields) in more.as_object().unwrap() {
                let fields = fields.as_object().unwrap().clone();
                pod[part].as_object_mut().unwrap().extend(fields);
            }
            pod
        };
        let check = |pods: [Value; 2], holders: &[&str], expected: &[&str]| {
            let [a, b] = pods.clone();
            let node = (Kind::Node, "n", json!({}));
            let mut objects = objects(&[node, (Kind::Pod, "shop/a", a), (Kind::Pod, "shop/b", b)]);
            assert_eq!(settled(&mut objects), expected, "{pods:?}");
            let has = objects.pods.iter().filter(|(_, pod)| pod.addresses().next().is_some());
            let has: Vec<_> = has.map(|(name, _)| name.to_string()).collect();
            assert_eq!(has, holders, "{pods:?}");
        };
        let none = || json!({});
        check(
            [pod(2, none()), pod(1, none())],
            &["shop/b"],
            &["Pod shop/a: status.podIPs[0].ip: 10.0.0.5 is already taken by shop/b"],
        );
        let single = json!({"status": {"podIPs": [], "podIP": "10.0.0.5"}});
        check(
            [pod(1, none()), pod(2, single)],
            &["shop/a"],
            &["Pod shop/b: status.podIP: 10.0.0.5 is already taken by shop/a"],
        );
        // Those that go away make room, as their successors have their addresses already.
        let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T01:00:00Z"}});
        check([pod(1, ending), pod(2, none())], &["shop/b"], &[]);
        check([pod(1, json!({"spec": {"nodeName": "gone"}})), pod(2, none())], &["shop/b"], &[]);
        // Those without an address of their own.
        let both = &["shop/a", "shop/b"];
        check([pod(1, json!({"spec": {"hostNetwork": true}})), pod(2, none())], both, &[]);
        check([pod(1, json!({"status": {"phase": "Failed"}})), pod(2, none())], both, &[]);
    }

    #[test]
    fn a_moment_is_written_as_it_was_read() {
        use crate::kubernetes::Created;
        for text in ["2026-11-28T13:52:55Z", "0001-01-01T00:00:00Z"] {
            assert_eq!(Created::from(text).to_string(), text);
        }
        for text in ["", "2026-11-28", "2026-11-28T13:52:55+01:00", "2026-11-28 13:52:55Z"] {
            assert_eq!(Created::from(text), Created::default(), "{text}");
        }
        assert!(Created::from("2026-11-28T13:52:55Z") < Created::from("2026-11-28T13:52:56Z"));
    }
}
