//! The classic cases.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairway_tests::policy::cases::{self, NAMESPACES, Party, Probe, cases, labels_of};
use fairway_tests::policy::oracle::{Cluster, Flow, Protocol};
use serde_json::{Value, json};

use crate::nodes::{File, Nodes};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The addresses of all parties in a family, as labs have them.
fn addresses(v4: bool) -> BTreeMap<String, IpAddr> {
    let mut addresses = BTreeMap::new();
    let mut add = |party: String, in_v4: String, in_v6: String| {
        let text = if v4 { in_v4 } else { in_v6 };
        addresses.insert(party, text.parse().unwrap());
    };
    for (number, pod) in cases::pods().enumerate() {
        let Party::Pod(_, name) = &pod else { unreachable!("a pod") };
        let node = if cases::node_of(name) == "node1" { 0 } else { 1 };
        let host = number + 2;
        let in_v6 = format!("fd00:10:244:{node}::{host:x}");
        add(pod.to_string(), format!("10.244.{node}.{host}"), in_v6);
    }
    for node in [1, 2] {
        let host = 10 + node;
        add(format!("node{node}"), format!("192.168.240.{host}"), format!("fd00:240::{host}"));
    }
    add("outside".to_owned(), "192.168.250.2".to_owned(), "fd00:240:a::2".to_owned());
    addresses
}

/// The cluster of the cases, without policies.
struct World {
    /// By kind, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
}

fn key(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

impl World {
    fn new() -> Self {
        let mut world = Self { objects: BTreeMap::new() };
        for node in ["node1", "node2"] {
            let number = &node[4..];
            let index = if number == "1" { 0 } else { 1 };
            world.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
                "spec": {"podCIDRs": [format!("10.244.{index}.0/24"), format!("fd00:10:244:{index}::/64")]},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": addresses(true)[node].to_string()},
                    {"type": "InternalIP", "address": addresses(false)[node].to_string()},
                ]},
            }));
        }
        for namespace in NAMESPACES {
            world.label(namespace, &labels_of(namespace));
        }
        for pod in cases::pods() {
            world.label(&pod.to_string(), &labels_of(&pod.to_string()));
        }
        world
    }

    fn put(&mut self, object: Value) {
        self.objects.insert(key(&object), object);
    }

    fn label(&mut self, name: &str, labels: &BTreeMap<String, String>) {
        let Some((namespace, pod)) = name.split_once('/') else {
            return self.put(cases::namespace(name, labels));
        };
        let mut object = cases::pod(namespace, pod, labels, &PROTOCOLS);
        let ips = [true, false].map(|v4| json!({"ip": addresses(v4)[name].to_string()}));
        object["status"] = json!({"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips});
        self.put(object);
    }

    fn step(&mut self, step: &cases::Step) {
        step.apply.iter().for_each(|object| self.put(object.clone()));
        for gone in &step.delete {
            assert!(self.objects.remove(gone).is_some(), "{gone:?} is not there");
        }
        step.labels.iter().for_each(|(name, labels)| self.label(name, labels));
    }

    fn manifests(&self) -> Vec<Value> {
        self.objects.values().cloned().collect()
    }
}

/// Goes through all cases in both families, and asks for every verdict.
fn all(mut ask: impl FnMut(&str, &[Value], &[(Probe, Flow, bool)])) {
    for v4 in [true, false] {
        let addresses = addresses(v4);
        let flow = |probe: &Probe| Flow {
            from: addresses[&probe.from.to_string()],
            to: addresses[&probe.to.to_string()],
            protocol: probe.protocol,
            port: probe.port,
            by_own_node: probe.is_by_own_node(),
        };
        for case in cases(&addresses).unwrap() {
            let mut world = World::new();
            for (number, step) in case.steps.iter().enumerate() {
                world.step(step);
                let probes = Probe::all(&PROTOCOLS).into_iter().map(|probe| {
                    let (flow, allowed) = (flow(&probe), step.expect.allows(&probe));
                    (probe, flow, allowed)
                });
                let about = format!("{}, step {number}", case.name);
                ask(&about, &world.manifests(), &probes.collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn the_oracle_says_what_the_cases_expect() {
    all(|about, manifests, probes| {
        let cluster = Cluster::read(manifests).unwrap();
        for (probe, flow, allowed) in probes {
            let verdict = cluster.verdict(flow);
            assert_eq!(verdict.is_allow(), *allowed, "{about}: {probe}: {verdict}");
        }
    });
}

#[test]
fn nodes_do_what_the_cases_expect() {
    // Numbers are kept from case to case, as an agent keeps them from change to change.
    let mut nodes = Nodes::default();
    all(|about, manifests, probes| {
        let cluster = Cluster::read(manifests).unwrap();
        nodes.update(&cluster, &File::of(manifests).model());
        for (probe, flow, allowed) in probes {
            let verdict = nodes.verdict(&cluster, flow);
            assert_eq!(verdict.is_ok(), *allowed, "{about}: {probe}: {verdict:?}");
        }
    });
}
