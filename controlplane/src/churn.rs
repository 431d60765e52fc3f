//! A cluster whose pods get other labels all the time, held against what the specification says, at every write on the
//! way into a node's tables: whoever may talk before and after a change may in between, and whoever may not, may not.
//!
//! ```text
//! manifests ─┬─► oracle ──────────────────────────────────────────────────► before, after ─┐
//!            └─► pipeline ─► model ─► numbers ─► changes ─► plan ─► write ─► tables ─► core ┴─ one of the two
//! ```
//!
//! `FAIRWAY_CHURN=POLICIESxPODSxCHANGES` makes it larger, and has it print how fast it was.

#[expect(dead_code, unreachable_pub, reason = "shared with the tests of manifests' tables")]
#[path = "../../tests/src/policy/oracle.rs"]
mod oracle;
#[expect(dead_code, reason = "shared with the agent, which also begins anew")]
#[path = "../../proxy/src/policy/plan.rs"]
mod plan;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fairway_abi::{Config, Subject, V4, config, protocol};
use fairway_compile::policy::{Changes, LocalPod, Numbers};
use fairway_core::memory::Memory;
use fairway_core::policy::ask;
use fairway_model::{Model, ObjectName};
use serde_json::{Value, json};

use crate::allocate::{Allocator, Ranges};
use crate::decode::decode_unchecked;
use crate::kubernetes::{Kind, Objects};
use crate::manifests::DEFAULT_NODE_PORTS;
use crate::pipeline::Pipeline;
use oracle::{Cluster, Direction, Flow, Protocol};
use plan::{FamilyWrite, Write, plan};

/// Policies, pods and changes.
const USUAL: [usize; 3] = [40, 200, 40];
/// Pods of one node, whose tables are looked at.
const LOCAL: usize = 40;
/// Whom the pod that changes is tried with, and pairs of others.
const TRIED: usize = 4;
const NAMESPACES: usize = 5;
const ENDS: [Direction; 2] = [Direction::Egress, Direction::Ingress];
const NODE: &str = "n0";

/// The same numbers each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's MMIX; the high bits are the good ones.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % end
    }
}

fn namespace(pod: usize) -> String {
    format!("ns{}", pod % NAMESPACES)
}

fn address(pod: usize) -> V4 {
    let [.., a, b, c] = u32::try_from(pod).expect("few").to_be_bytes();
    [10, a, b, c]
}

/// One of so many pods is on the node.
fn is_here(pod: usize) -> bool {
    pod < LOCAL
}

fn labels(dice: &mut Dice, apps: usize) -> BTreeMap<String, String> {
    let app = format!("a{}", dice.below(apps));
    let tier = ["front", "back"][dice.below(2)].to_owned();
    [("app".to_owned(), app), ("tier".to_owned(), tier)].into()
}

fn pod(number: usize, labels: &BTreeMap<String, String>) -> Value {
    let ip: std::net::Ipv4Addr = address(number).into();
    let ports = json!([{"name": "http", "containerPort": 80 + number % 2}]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace(number), "name": format!("p{number}"), "uid": format!("u{number}"), "labels": labels},
        "spec": {"nodeName": if is_here(number) { NODE } else { "n1" }, "containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn policy(number: usize, dice: &mut Dice, apps: usize, pods: usize) -> Value {
    let app = |dice: &mut Dice| json!({"matchLabels": {"app": format!("a{}", dice.below(apps))}});
    let mut rules = |field: &str| -> Vec<Value> {
        let peer = |dice: &mut Dice| match dice.below(4) {
            0 => json!({"podSelector": app(dice)}),
            1 => json!({"namespaceSelector": {}, "podSelector": app(dice)}),
            2 => json!({
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace(dice.below(NAMESPACES))}},
                "podSelector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}]},
            }),
            _ => {
                let [a, b, c, _] = address(dice.below(pods));
                let except = format!("{a}.{b}.{c}.{}/30", 4 * dice.below(64));
                json!({"ipBlock": {"cidr": format!("{a}.{b}.{c}.0/24"), "except": [except]}})
            }
        };
        let peers = json!([peer(dice), peer(dice)]);
        let port = [json!(80), json!(81), json!("http")][dice.below(3)].clone();
        vec![json!({field: peers, "ports": [{"port": port}]})]
    };
    let (ingress, egress) = (rules("from"), rules("to"));
    let types = [json!(["Ingress"]), json!(["Ingress", "Egress"])][number % 2].clone();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace(number), "name": format!("np{number}")},
        "spec": {"podSelector": app(dice), "policyTypes": types, "ingress": ingress, "egress": egress},
    })
}

/// Of the whole cluster, with rules that accept, deny and pass on.
fn cluster_policy(number: usize, dice: &mut Dice, apps: usize) -> Value {
    let pods = |dice: &mut Dice| {
        let app = format!("a{}", dice.below(apps));
        let tier = ["front", "back"][dice.below(2)];
        let labels = [json!({"app": app}), json!({"tier": tier})][dice.below(2)].clone();
        json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}})
    };
    let subject = pods(dice);
    let peers: Vec<Value> = (0..6).map(|_| pods(dice)).collect();
    let rules = peers.chunks(2).map(|peers| {
        let action = ["Accept", "Deny", "Pass"][dice.below(3)];
        let port = json!({"tcp": {"destinationPort": {"number": 80 + dice.below(2)}}});
        let to = ["from", "to"][number % 2];
        let mut rule = json!({"action": action, "protocols": [port]});
        rule[to] = json!(peers);
        rule
    });
    let rules: Vec<Value> = rules.collect();
    let tier = ["Admin", "Baseline"][number / 2 % 2];
    let mut spec = json!({"tier": tier, "priority": number % 1000, "subject": subject});
    spec[["ingress", "egress"][number % 2]] = rules.into();
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": format!("cnp{number}")}, "spec": spec,
    })
}

/// The node's tables of IPv4, as one end of flows is judged by them alone: both do not change in the same moment.
struct End {
    at: Direction,
    memory: Memory<V4>,
}

impl End {
    fn new(at: Direction) -> Self {
        let flags = config::POLICED | config::POLICED_TO_NODE;
        let config = Config { flags, ..Config::default() };
        Self { at, memory: Memory { config, ..Memory::default() } }
    }

    fn write(&mut self, write: &Write) {
        let memory = &mut self.memory;
        match write {
            Write::Counters(_) => {}
            Write::Rulings(all) => memory.rulings.extend(all.iter().copied()),
            Write::V4(FamilyWrite::Identities(all)) => {
                memory.identities.extend(all.iter().copied())
            }
            Write::V4(FamilyWrite::Block((first, length), identity)) => {
                memory.blocks.retain(|(a, bits, _)| (a, *bits) != (first, u32::from(*length)));
                memory.blocks.push((*first, u32::from(*length), *identity));
            }
            Write::V4(FamilyWrite::NoBlock((first, length))) => {
                memory.blocks.retain(|(a, bits, _)| (a, *bits) != (first, u32::from(*length)));
            }
            Write::V4(FamilyWrite::NoIdentity(address)) => {
                memory.identities.remove(address);
            }
            Write::V4(FamilyWrite::Subject(address, subject)) => {
                let half = match self.at {
                    Direction::Egress => Subject { ingress: 0, ..*subject },
                    Direction::Ingress => Subject { egress: 0, ..*subject },
                };
                memory.subjects.insert(*address, half);
            }
            Write::V4(FamilyWrite::NoSubject(address)) => {
                memory.subjects.remove(address);
            }
            Write::V6(write) => panic!("there are no such addresses: {write:?}"),
        }
    }

    fn allows(&self, (from, to, port): (usize, usize, u16)) -> bool {
        let (from, to) = (address(from), address(to));
        ask(&self.memory, &from, &to, protocol::TCP, Some(port.into())).is_ok()
    }
}

/// One write for each entry: batches may end anywhere.
fn split(write: Write) -> Vec<Write> {
    match write {
        Write::Rulings(all) => all.into_iter().map(|one| Write::Rulings(vec![one])).collect(),
        Write::V4(FamilyWrite::Identities(all)) => {
            let one = |one| Write::V4(FamilyWrite::Identities(vec![one]));
            all.into_iter().map(one).collect()
        }
        write => vec![write],
    }
}

/// Brings tables to what changes say, and hands out each moment.
fn go(ends: &mut [End; 2], changes: &[Changes], mut moment: impl FnMut(&[End; 2])) {
    for changes in changes {
        for write in plan(changes).into_iter().flat_map(split) {
            ends.iter_mut().for_each(|end| end.write(&write));
            moment(ends);
        }
        for end in ends.iter_mut() {
            for key in &changes.rulings.gone {
                end.memory.rulings.remove(key);
            }
        }
        moment(ends);
    }
}

/// What is tried around a change: from whom, to whom, and at which port, and at which of the node's ends it counts.
fn tried(changing: usize, pods: usize, dice: &mut Dice) -> Vec<(usize, (usize, usize, u16))> {
    let mut pairs = Vec::new();
    for _ in 0..TRIED {
        let (local, other) = (dice.below(LOCAL), dice.below(pods));
        pairs.extend([(changing, local), (local, changing), (local, other), (other, local)]);
        pairs.extend([(changing, other), (other, changing)]);
    }
    // Of a pod and itself, who asks changes as well as the rules, and there is no moment for both.
    pairs.retain(|(from, to)| from != to);
    let ends = pairs.into_iter().flat_map(|(from, to)| {
        let egress = is_here(from).then_some((0, from, to));
        egress.into_iter().chain(is_here(to).then_some((1, from, to)))
    });
    ends.flat_map(|(end, from, to)| [80, 81].map(|port| (end, (from, to, port)))).collect()
}

fn says(cluster: &Cluster, (end, (from, to, port)): (usize, (usize, usize, u16))) -> bool {
    let [from, to] = [from, to].map(|pod| std::net::IpAddr::from(address(pod)));
    let flow = Flow { from, to, protocol: Protocol::Tcp, port, by_own_node: false };
    cluster.denial(&flow, ENDS[end]).is_none()
}

fn put(objects: &mut Objects, kind: Kind, value: &Value) {
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    let name = ObjectName::new(text("namespace"), text("name"));
    objects.insert(name, decode_unchecked(kind, value.clone()).expect("a manifest"));
}

#[test]
fn nobody_notices_that_others_labels_change() {
    let wanted = std::env::var("FAIRWAY_CHURN").ok();
    let size = wanted.as_deref().map_or(USUAL, |text| {
        let numbers: Vec<usize> = text.split('x').map(|n| n.parse().expect("a number")).collect();
        numbers.try_into().expect("policies, pods and changes")
    });
    let [policies, pods, changes] = size;
    let apps = (policies / 4).max(2);
    let mut dice = Dice(1);
    let (mut objects, mut manifests) = (Objects::default(), Vec::new());
    for node in [NODE, "n1"] {
        let value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        put(&mut objects, Kind::Node, &value);
        manifests.push(value);
    }
    for number in 0..NAMESPACES {
        let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(number)}});
        put(&mut objects, Kind::Namespace, &value);
        manifests.push(value);
    }
    for number in 0..policies {
        let value = policy(number, &mut dice, apps, pods);
        put(&mut objects, Kind::NetworkPolicy, &value);
        manifests.push(value);
        if number % 4 == 0 {
            let value = cluster_policy(number / 4, &mut dice, apps);
            put(&mut objects, Kind::ClusterNetworkPolicy, &value);
            manifests.push(value);
        }
    }
    for number in 0..pods {
        let value = pod(number, &labels(&mut dice, apps));
        put(&mut objects, Kind::Pod, &value);
        manifests.push(value);
    }
    let mut cluster = Cluster::read(&manifests).expect("manifests that can be read");
    cluster.policed_to_node = true;
    let services = vec!["10.96.0.0/16".parse().expect("a range")];
    let ranges = Ranges::new(services, DEFAULT_NODE_PORTS).expect("ranges");
    let mut pipeline = Pipeline::new(Allocator::new(ranges), None, BTreeMap::new());
    let local: Vec<LocalPod> = (0..pods.min(LOCAL))
        .map(|number| LocalPod {
            name: ObjectName::new(namespace(number), format!("p{number}")),
            uid: format!("u{number}"),
            addresses: vec![address(number).into()],
        })
        .collect();
    let mut model = |objects: &Objects| -> Model { pipeline.run_all(objects, |_| false).model };
    let mut numbers = Numbers::default();
    let mut ends = ENDS.map(End::new);
    go(&mut ends, &numbers.update(&model(&objects), NODE, &local), |_| {});

    let (mut taken, mut asked, mut different, mut denied) = (Duration::ZERO, 0, 0, 0);
    for number in 0..changes {
        let changing = if number % 2 == 0 { dice.below(LOCAL) } else { dice.below(pods) };
        let tried = tried(changing, pods, &mut dice);
        let before: Vec<bool> = tried.iter().map(|one| says(&cluster, *one)).collect();
        // Sometimes two at once, which is as if one came after the other, in the order of their names.
        let mut all = vec![changing];
        all.extend((number % 4 == 3).then(|| dice.below(LOCAL)).filter(|other| *other != changing));
        all.sort_by_key(|pod| (namespace(*pod), format!("p{pod}")));
        let mut between = Vec::new();
        for changing in all {
            between = tried.iter().map(|one| says(&cluster, *one)).collect::<Vec<bool>>();
            let labels = labels(&mut dice, apps);
            put(&mut objects, Kind::Pod, &pod(changing, &labels));
            cluster.relabel(&namespace(changing), &format!("p{changing}"), &labels);
        }
        let after: Vec<bool> = tried.iter().map(|one| says(&cluster, *one)).collect();

        let start = Instant::now();
        let steps = numbers.update(&model(&objects), NODE, &local);
        taken += start.elapsed();
        go(&mut ends, &steps, |ends| {
            for (place, one) in tried.iter().enumerate() {
                let (end, question) = *one;
                let now = ends[end].allows(question);
                let [before, between, after] = [&before, &between, &after].map(|all| all[place]);
                assert!(
                    before != after || before != between || now == before,
                    "change {number}, of p{changing}: {:?} of {question:?} is {now}, and ought to be {before}",
                    ENDS[end]
                );
                asked += 1;
            }
        });
        for ((end, question), after) in tried.iter().zip(&after) {
            assert_eq!(ends[*end].allows(*question), *after, "change {number}: {question:?}");
        }
        different += before.iter().zip(&after).filter(|(one, other)| one != other).count();
        denied += after.iter().filter(|allowed| !**allowed).count();
    }
    // It is about something.
    assert!(
        different > changes && denied > changes,
        "{different} verdicts changed, {denied} denied"
    );
    if wanted.is_some() {
        let rate = f64::from(u32::try_from(changes).expect("few")) / taken.as_secs_f64();
        println!(
            "{policies} policies, {pods} pods: {changes} changes, {rate:.0} a second from objects to changes of tables; \
             {asked} verdicts on the way, 0 wrong; {different} changed, {} rulings",
            numbers.rulings()
        );
    }
}
