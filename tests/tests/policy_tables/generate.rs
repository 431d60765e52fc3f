//! Random clusters, with policies about what is in them.
//!
//! Names, labels, ports and addresses come from small sets, so that rules and pods often meet.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const KEYS: [&str; 3] = ["app", "tier", "role"];
const VALUES: [&str; 2] = ["a", "b"];
const NAMES: [&str; 3] = ["http", "dns", "admin"];
/// Ports that rules, pods and questions are about.
pub(crate) const PORTS: [u16; 6] = [1, 79, 80, 81, 8080, u16::MAX];
/// Of machines outside the cluster.
pub(crate) const OUTSIDE: [&str; 4] =
    ["203.0.113.5", "203.0.113.77", "2001:db8::5", "169.254.169.254"];
/// More pods are never made.
const MOST_PODS: usize = 7;
/// Priorities are of a policy's number and so many more, so that each is another.
const MOST_POLICIES: u16 = 8;

/// Namespaces, nodes and pods.
pub(crate) fn cluster() -> impl Strategy<Value = Vec<Value>> {
    let namespaces = vec(labels(), NAMESPACES.len());
    (namespaces, vec(labels(), 2), vec(pod(), 1..=MOST_PODS)).prop_map(
        |(namespaces, nodes, pods)| {
            let mut objects = Vec::new();
            for (name, labels) in NAMESPACES.iter().zip(namespaces) {
                objects.push(json!({
                    "apiVersion": "v1", "kind": "Namespace",
                    "metadata": {"name": name, "labels": labels},
                }));
            }
            for (index, labels) in nodes.into_iter().enumerate() {
                objects.push(node(index, &labels));
            }
            objects.extend(pods.into_iter().enumerate().map(|(index, pod)| pod.manifest(index)));
            objects
        },
    )
}

/// Of all kinds.
pub(crate) fn policies() -> impl Strategy<Value = Vec<Value>> {
    (vec(network_policy(), 0..5), vec(cluster_policy(), 0..5)).prop_map(|(network, cluster)| {
        let network = network.into_iter().enumerate().map(|(index, mut policy)| {
            policy["metadata"]["name"] = format!("np{index}").into();
            policy
        });
        let mut has_baseline = false;
        let cluster = (0..MOST_POLICIES).zip(cluster).filter_map(|(index, policy)| {
            // There is one at most of that kind.
            let is_baseline = policy.older && policy.spec["tier"] == "Baseline";
            let is_second = is_baseline && has_baseline;
            has_baseline |= is_baseline;
            (!is_second).then(|| policy.manifest(index))
        });
        network.chain(cluster).collect::<Vec<_>>()
    })
}

fn v4(node: usize, host: usize) -> String {
    format!("10.1.{node}.{host}")
}

fn v6(node: usize, host: usize) -> String {
    format!("fd00:1:{node}::{host}")
}

fn node_addresses(index: usize) -> [String; 2] {
    let host = index + 1;
    [format!("192.168.0.{host}"), format!("fd00:2::{host}")]
}

fn node(index: usize, labels: &Labels) -> Value {
    let addresses = node_addresses(index);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("n{index}"), "labels": labels},
        "spec": {"podCIDRs": [format!("10.1.{index}.0/24"), format!("fd00:1:{index}::/64")]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": addresses[0]},
            {"type": "InternalIP", "address": addresses[1]},
            {"type": "Hostname", "address": format!("n{index}")},
        ]},
    })
}

type Labels = BTreeMap<&'static str, &'static str>;

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(select(&KEYS), select(&VALUES), 0..=KEYS.len())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Runs,
    Ends,
    /// Another pod has its address now, which is the one before it.
    Ended,
}

#[derive(Clone, Debug)]
struct Pod {
    namespace: &'static str,
    labels: Labels,
    node: usize,
    dual: bool,
    host_network: bool,
    life: Life,
    /// By name; where they are declared is 0: in a container, 1: in one that prepares and stays, 2: in one that prepares.
    ports: BTreeMap<&'static str, (&'static str, u16, u8)>,
}

fn pod() -> impl Strategy<Value = Pod> {
    let life = prop_oneof![6 => Just(Life::Runs), 1 => Just(Life::Ends), 1 => Just(Life::Ended)];
    let port =
        (protocol(), select(&PORTS), prop_oneof![4 => Just(0_u8), 1 => Just(1), 1 => Just(2)]);
    let ports = btree_map(select(&NAMES), port, 0..3);
    let node = 0..2_usize;
    let dual = prop::bool::weighted(0.8);
    let host = prop::bool::weighted(0.1);
    (select(&NAMESPACES), labels(), node, dual, host, life, ports).prop_map(
        |(namespace, labels, node, dual, host_network, life, ports)| Pod {
            namespace,
            labels,
            node,
            dual,
            host_network,
            life,
            ports,
        },
    )
}

impl Pod {
    fn manifest(self, index: usize) -> Value {
        let Self { namespace, labels, node, dual, host_network, life, ports } = self;
        let name = format!("p{index}");
        let host = if life == Life::Ended { index.max(1) } else { index + 1 };
        let mut ips = if host_network {
            node_addresses(node).to_vec()
        } else {
            vec![v4(node, host), v6(node, host)]
        };
        ips.truncate(if dual { 2 } else { 1 });
        let ips: Vec<Value> = ips.into_iter().map(|ip| json!({"ip": ip})).collect();
        let ports = |wanted: u8| {
            let here = ports.iter().filter(|(_, (.., place))| *place == wanted);
            here.map(|(name, (protocol, port, _))| {
                json!({"name": name, "protocol": protocol, "containerPort": port})
            })
            .collect::<Vec<_>>()
        };
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "labels": labels},
            "spec": {
                "nodeName": format!("n{node}"),
                "hostNetwork": host_network,
                "containers": [{"name": "c", "ports": ports(0)}],
                "initContainers": [
                    {"name": "stays", "restartPolicy": "Always", "ports": ports(1)},
                    {"name": "prepares", "ports": ports(2)},
                ],
            },
            "status": {
                "phase": if life == Life::Ended { "Succeeded" } else { "Running" },
                "podIP": ips[0]["ip"], "podIPs": ips,
            },
        });
        if life == Life::Ends {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        pod
    }
}

fn protocol() -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => Just("TCP"), 1 => Just("UDP"), 1 => Just("SCTP")]
}

fn selector() -> impl Strategy<Value = Value> {
    let expression = (select(&KEYS), 0..4_u8, btree_set(select(&VALUES), 1..3)).prop_map(
        |(key, operator, values)| match operator {
            0 => json!({"key": key, "operator": "In", "values": values}),
            1 => json!({"key": key, "operator": "NotIn", "values": values}),
            2 => json!({"key": key, "operator": "Exists"}),
            _ => json!({"key": key, "operator": "DoesNotExist"}),
        },
    );
    let words = btree_map(select(&KEYS), select(&VALUES), 0..2);
    (words, vec(expression, 0..2)).prop_map(
        |(words, expressions)| json!({"matchLabels": words, "matchExpressions": expressions}),
    )
}

/// Of namespaces, sometimes by the label that each has of itself.
fn namespace_selector() -> impl Strategy<Value = Value> {
    let by_name = select(&NAMESPACES)
        .prop_map(|name| json!({"matchLabels": {"kubernetes.io/metadata.name": name}}));
    prop_oneof![3 => selector(), 1 => by_name]
}

/// Ranges around addresses that somebody may have.
fn range() -> impl Strategy<Value = IpNet> {
    let mut addresses: Vec<String> = OUTSIDE.iter().map(|text| (*text).to_owned()).collect();
    for node in 0..2 {
        addresses.extend(node_addresses(node));
        for host in 1..=3 {
            addresses.extend([v4(node, host), v6(node, host)]);
        }
    }
    let bits = select(&[0_u8, 1, 8, 16, 24, 30, 31, 32][..]);
    (select(addresses), bits).prop_map(|(address, bits)| {
        let address: std::net::IpAddr = address.parse().unwrap();
        // In IPv6 they are the lengths of what remains.
        let bits = if address.is_ipv4() || bits == 0 { bits } else { 128 - (32 - bits) * 2 };
        IpNet::new(address, bits).unwrap().trunc()
    })
}

fn block() -> impl Strategy<Value = Value> {
    (range(), vec(range(), 0..3)).prop_map(|(cidr, excepts)| {
        let within = |except: &IpNet| cidr.contains(except) && *except != cidr;
        let excepts: Vec<IpNet> = excepts.into_iter().filter(within).collect();
        json!({"ipBlock": {"cidr": cidr, "except": excepts}})
    })
}

fn network_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        namespace_selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), namespace_selector()).prop_map(
            |(pods, namespaces)| json!({"podSelector": pods, "namespaceSelector": namespaces})
        ),
        block(),
    ]
}

fn network_port() -> impl Strategy<Value = Value> {
    prop_oneof![
        protocol().prop_map(|protocol| json!({"protocol": protocol})),
        select(&PORTS).prop_map(|port| json!({"port": port})),
        (protocol(), select(&PORTS))
            .prop_map(|(protocol, port)| json!({"protocol": protocol, "port": port})),
        (protocol(), select(&PORTS), select(&PORTS)).prop_map(|(protocol, one, other)| {
            json!({"protocol": protocol, "port": one.min(other), "endPort": one.max(other)})
        }),
        (protocol(), select(&NAMES))
            .prop_map(|(protocol, name)| json!({"protocol": protocol, "port": name})),
    ]
}

fn network_rules(peers: &'static str) -> impl Strategy<Value = Vec<Value>> {
    let rule = (vec(network_peer(), 0..3), vec(network_port(), 0..3))
        .prop_map(move |(wanted, ports)| json!({peers: wanted, "ports": ports}));
    vec(rule, 0..3)
}

fn network_policy() -> impl Strategy<Value = Value> {
    const TYPES: &[&[&str]] = &[&[], &["Ingress"], &["Egress"], &["Ingress", "Egress"]];
    let types = select(TYPES);
    let rules = (prop::option::of(network_rules("from")), prop::option::of(network_rules("to")));
    (select(&NAMESPACES), selector(), types, rules).prop_map(
        |(namespace, pods, types, (ingress, egress))| {
            let mut spec = json!({"podSelector": pods});
            for (field, value) in [("ingress", ingress), ("egress", egress)] {
                if let Some(value) = value {
                    spec[field] = value.into();
                }
            }
            if !types.is_empty() {
                spec["policyTypes"] = types.into();
            }
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": namespace}, "spec": spec,
            })
        },
    )
}

fn pods_of_namespaces() -> impl Strategy<Value = Value> {
    prop_oneof![
        namespace_selector().prop_map(|namespaces| json!({"namespaces": namespaces})),
        (namespace_selector(), selector()).prop_map(
            |(namespaces, pods)| json!({"pods": {"namespaceSelector": namespaces, "podSelector": pods}})
        ),
    ]
}

fn cluster_port() -> impl Strategy<Value = Value> {
    let protocol = || select(&["tcp", "udp", "sctp"][..]);
    prop_oneof![
        3 => (protocol(), select(&PORTS))
            .prop_map(|(protocol, port)| json!({protocol: {"destinationPort": {"number": port}}})),
        2 => (protocol(), btree_set(select(&PORTS), 2)).prop_map(|(protocol, ports)| {
            let (start, end) = (ports.first(), ports.last());
            json!({protocol: {"destinationPort": {"range": {"start": start, "end": end}}}})
        }),
        1 => select(&NAMES).prop_map(|name| json!({"destinationNamedPort": name})),
    ]
}

fn cluster_rule(egress: bool) -> impl Strategy<Value = Value> {
    let action = select(&["Accept", "Deny", "Pass"][..]);
    let peer = prop_oneof![
        4 => pods_of_namespaces(),
        1 => selector().prop_map(|nodes| json!({"nodes": nodes})),
        2 => btree_set(range(), 1..4).prop_map(|networks| json!({"networks": networks})),
    ];
    let ingress_peer = pods_of_namespaces();
    let peers = if egress { vec(peer, 1..3).boxed() } else { vec(ingress_peer, 1..3).boxed() };
    let peers = prop_oneof![
        20 => peers,
        1 => Just(vec![json!({"galaxies": {}})]),
    ];
    let ports = prop::option::of(vec(cluster_port(), 1..3));
    (action, peers, ports).prop_map(move |(action, peers, ports)| {
        let of_pods = |peer: &Value| peer.get("namespaces").is_some() || peer.get("pods").is_some();
        let mut rule = json!({"action": action});
        if let Some(mut ports) = ports {
            if !peers.iter().all(of_pods) {
                // Ports have names at pods alone.
                ports.retain(|port| port.get("destinationNamedPort").is_none());
            }
            if !ports.is_empty() {
                rule["protocols"] = ports.into();
            }
        }
        rule[if egress { "to" } else { "from" }] = peers.into();
        rule
    })
}

#[derive(Clone, Debug)]
struct ClusterPolicy {
    spec: Value,
    priority: u16,
    /// As one of the kinds before it.
    older: bool,
}

fn cluster_policy() -> impl Strategy<Value = ClusterPolicy> {
    let tier = select(&["Admin", "Baseline"][..]);
    let rules = (vec(cluster_rule(false), 0..3), vec(cluster_rule(true), 0..3));
    let older = prop::bool::weighted(0.2);
    (tier, pods_of_namespaces(), rules, 0..1000 / MOST_POLICIES, older).prop_map(
        |(tier, subject, (ingress, egress), priority, older)| ClusterPolicy {
            spec: json!({"tier": tier, "subject": subject, "ingress": ingress, "egress": egress}),
            priority,
            older,
        },
    )
}

impl ClusterPolicy {
    fn manifest(self, index: u16) -> Value {
        let Self { mut spec, priority, older } = self;
        let priority = priority * MOST_POLICIES + index;
        let admin = spec["tier"] == "Admin";
        if !older {
            spec["priority"] = priority.into();
            return json!({
                "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
                "metadata": {"name": format!("cnp{index}")}, "spec": spec,
            });
        }
        spec.as_object_mut().unwrap().remove("tier");
        for rules in ["ingress", "egress"] {
            spec[rules].as_array_mut().unwrap().iter_mut().for_each(as_before);
        }
        let (kind, name) = if admin {
            spec["priority"] = priority.into();
            ("AdminNetworkPolicy", format!("cnp{index}"))
        } else {
            // Rules of this kind do not pass on: nothing follows.
            for rules in ["ingress", "egress"] {
                spec[rules].as_array_mut().unwrap().retain(|rule| rule["action"] != "Pass");
            }
            ("BaselineAdminNetworkPolicy", "default".to_owned())
        };
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        })
    }
}

/// A rule in the words of the kinds before.
fn as_before(rule: &mut Value) {
    if rule["action"] == "Accept" {
        rule["action"] = "Allow".into();
    }
    let rule = rule.as_object_mut().unwrap();
    let Some(protocols) = rule.remove("protocols") else { return };
    let port = |protocol: &Value| {
        if let Some(name) = protocol.get("destinationNamedPort") {
            return json!({"namedPort": name});
        }
        let (protocol, ports) = protocol.as_object().unwrap().iter().next().unwrap();
        let (protocol, ports) = (protocol.to_uppercase(), &ports["destinationPort"]);
        match ports.get("range") {
            Some(range) => json!({"portRange": {
                "protocol": protocol, "start": range["start"], "end": range["end"],
            }}),
            None => json!({"portNumber": {"protocol": protocol, "port": ports["number"]}}),
        }
    };
    let ports: Vec<Value> = protocols.as_array().unwrap().iter().map(port).collect();
    rule.insert("ports".to_owned(), ports.into());
}
