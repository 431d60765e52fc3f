//! What nodes and pods say that contradicts what others say: of two that claim the same, the older one has it.
//!
//! Who is older is read off the objects, so that each replica and each start finds the same. Services have a
//! module of their own for this, [`crate::allocate`].

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::ObjectName;
use ipnet::IpNet;

use crate::kubernetes::{FieldError, Kind, Node, ObjectId, Objects, Pod};

/// Takes from each object what an older one has, and says what that was.
pub(crate) fn settle(objects: &mut Objects) -> Vec<(ObjectId, FieldError)> {
    let mut errors = ranges(&mut objects.nodes);
    errors.extend(addresses(objects));
    errors
}

/// Pods of overlapping ranges would be reached on one of the nodes by chance.
fn ranges(nodes: &mut BTreeMap<String, Arc<Node>>) -> Vec<(ObjectId, FieldError)> {
    let mut by_age: Vec<_> = nodes.iter_mut().collect();
    // Those of one age stay in the order of their names.
    by_age.sort_by_key(|(_, node)| node.metadata.creation_timestamp);
    let mut errors = Vec::new();
    let mut taken = Taken::default();
    for (name, node) in by_age {
        let mut lost = Vec::new();
        for (field, range) in pod_ranges(node) {
            if let Some((other, holder)) = taken.overlap(&range) {
                let id = ObjectId { kind: Kind::Node, name: ObjectName::new("", name) };
                let message = format!("{range} overlaps with {other}, which node {holder} has");
                errors.push((id, FieldError::new(field, message)));
                lost.push(range);
            } else {
                taken.insert(range, name);
            }
        }
        if !lost.is_empty() {
            let spec = &mut Arc::make_mut(node).spec;
            spec.pod_cidrs.retain(|range| !lost.contains(range));
            spec.pod_cidr = spec.pod_cidr.filter(|range| !lost.contains(range));
        }
    }
    errors
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

/// Two pods of one address would be taken for one another. A pod that is going away, or whose node is gone,
/// may well have had the address of another one before, and makes room without a word.
fn addresses(objects: &mut Objects) -> Vec<(ObjectId, FieldError)> {
    let Objects { pods, nodes, .. } = objects;
    let mut first = HashMap::<IpAddr, &ObjectName>::new();
    let mut shared = BTreeMap::<IpAddr, Vec<ObjectName>>::new();
    for (name, pod) in pods.iter().filter(|(_, pod)| has_addresses_of_its_own(pod)) {
        for address in pod.addresses() {
            let holder = *first.entry(address).or_insert(name);
            if holder != name {
                let all = shared.entry(address).or_insert_with(|| vec![holder.clone()]);
                all.push(name.clone());
            }
        }
    }
    let goes = |pod: &Pod| {
        let node = pod.spec.node_name.as_ref();
        pod.metadata.deletion_timestamp.is_some()
            || node.is_some_and(|node| !nodes.contains_key(node))
    };
    let mut errors = Vec::new();
    for (address, mut all) in shared {
        all.sort_by_key(|name| (goes(&pods[name]), pods[name].metadata.creation_timestamp));
        let stays = !goes(&pods[&all[0]]);
        let (holder, others) = all.split_first().expect("there are several");
        for name in others {
            let Some(pod) = pods.get_mut(name) else { continue };
            if !(stays && goes(pod)) {
                let message = format!("{address} is already taken by {holder}");
                let id = ObjectId { kind: Kind::Pod, name: name.clone() };
                errors.push((id, FieldError::new(address_field(pod, address), message)));
            }
            let status = &mut Arc::make_mut(pod).status;
            status.pod_ips.retain(|of| of.ip != address);
            status.pod_ip = status.pod_ip.filter(|ip| *ip != address);
        }
    }
    errors
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
        let errors = settle(objects);
        errors.iter().map(|(id, error)| format!("{id}: {error}")).collect()
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
