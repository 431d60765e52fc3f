//! Policies, in one lab of two nodes and both families that all tests share, one after the other. Only that of plain
//! routes has another.

mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use fairway_abi::{Flow, FlowKey, V4};
use fairway_model::{ObjectName, Protocol};
use fairway_tests::api::Target;
use fairway_tests::apps::reach::Port;
use fairway_tests::apps::stream::milliseconds;
use fairway_tests::policy::cases::{self, Case, Party, Probe, Step, Table, cases, labels_of};
use fairway_tests::policy::oracle;
use fairway_tests::wait::wait_until;
use fairway_tests::{Backend, Key, Kind, Lab, Options, two_nodes};
use serde_json::{Value, json};

/// What is to be has come to all nodes within this time.
const SOON: Duration = Duration::from_secs(20);
/// Who does not answer within this time is taken not to.
const SILENCE: Duration = Duration::from_millis(400);
/// A flow that is forbidden ends within this time.
const CUT: Duration = Duration::from_secs(1);
/// The outside client, by family.
const OUTSIDE: [&str; 2] = ["192.168.250.2", "fd00:240:a::2"];
/// An address that stays on its link by its kind, and at which clouds tell machines their secrets.
const METADATA: &str = "169.254.169.254";

/// The pods whose container asks for `$(SERVER)` before anything else, and says whether somebody answered.
const IMAGES: &str = "
- image: eager
  command: ['@lab@', app, reach, --timeout, '2500', 'tcp:$(SERVER):80', 'udp:$(SERVER):80']
";

/// The lab, the pods of the cases in it, and who serves outside.
struct Scene {
    lab: Lab,
    protocols: Vec<oracle::Protocol>,
    /// Of all parties of the cases, in each family.
    addresses: [BTreeMap<String, IpAddr>; 2],
    _servers: Vec<Child>,
}

/// The one scene, which one test has at a time. It ends with the process, which closes the pipe that ties the lab to it.
fn scene() -> Option<MutexGuard<'static, Scene>> {
    static SCENE: OnceLock<Option<Mutex<Scene>>> = OnceLock::new();
    let scene = SCENE.get_or_init(|| Scene::start("policy", |_| {}).map(Mutex::new));
    let scene = scene.as_ref()?.lock();
    Some(scene.unwrap_or_else(|failed: PoisonError<_>| {
        // Another test's policies are none of this one's.
        let scene = failed.into_inner();
        scene.clear();
        scene
    }))
}

impl Scene {
    fn start(tag: &str, change: impl FnOnce(&mut Options)) -> Option<Self> {
        let images = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&images, IMAGES).unwrap();
        let lab = two_nodes(tag, |options| {
            Options::dual_stack(options);
            options.images = Some(images.path().to_owned());
            change(options);
        })?;
        Some(Self::new(lab))
    }

    fn new(lab: Lab) -> Self {
        let protocols = vec![oracle::Protocol::Tcp, oracle::Protocol::Udp, oracle::Protocol::Sctp];
        let mut all = String::new();
        for namespace in cases::NAMESPACES {
            all += &document(&cases::namespace(namespace, &labels_of(namespace)));
        }
        for pod in cases::pods() {
            all += &document(&pod_manifest(&pod.to_string(), None, &protocols));
        }
        lab.apply(&all).unwrap();
        for namespace in cases::NAMESPACES {
            for pod in cases::PODS {
                lab.wait_for_pods(namespace, "pod", pod, 1).unwrap();
            }
        }
        let mut addresses = [BTreeMap::new(), BTreeMap::new()];
        let mut add = |name: &str, all: [IpAddr; 2]| {
            for (family, address) in addresses.iter_mut().zip(all) {
                family.insert(name.to_owned(), address);
            }
        };
        for pod in lab.list(Kind::Pod).unwrap() {
            let name = format!("{}/{}", text(&pod, "namespace"), text(&pod, "name"));
            add(&name, pod_addresses(&pod));
        }
        for node in lab.nodes().unwrap() {
            add(&node.name, node.addresses.try_into().unwrap());
        }
        add("outside", OUTSIDE.map(|address| address.parse().unwrap()));

        // The router knows where pods are, and answers for the cloud.
        let router = |words: &[&str]| {
            let output = lab.exec(Target::Controlplane, &[&["ip"], words].concat()).unwrap();
            assert!(output.status.success(), "{words:?}: {output:?}");
        };
        for node in lab.nodes().unwrap() {
            for (range, address) in node.pod_cidrs.iter().zip(&node.addresses) {
                router(&["route", "replace", &range.to_string(), "via", &address.to_string()]);
            }
        }
        router(&["address", "add", METADATA, "dev", "lo"]);
        let servers =
            [Target::Client, Target::Controlplane].map(|target| serve(&lab, target, &protocols));
        Self { lab, protocols, addresses, _servers: servers.into() }
    }

    /// Takes away what a test left that failed.
    fn clear(&self) {
        for kind in [Kind::NetworkPolicy, Kind::ClusterNetworkPolicy] {
            let objects = self.lab.list(kind).unwrap();
            let keys = objects
                .iter()
                .map(|object| Key::new(kind, text(object, "namespace"), text(object, "name")));
            self.lab.delete(keys.collect(), true).unwrap();
        }
        self.settle("what a failed test left to go", &[0, 1], &Table::default());
    }

    /// The address of a party of the cases, or a pod that came later, in IPv4.
    fn v4(&self, name: &str) -> IpAddr {
        self.addresses[0].get(name).copied().unwrap_or_else(|| {
            let (namespace, name) = name.split_once('/').unwrap();
            pod_addresses(&self.pod(namespace, name))[0]
        })
    }

    fn pod(&self, namespace: &str, name: &str) -> Value {
        let pods = self.lab.list(Kind::Pod).unwrap();
        let is = |pod: &Value| text(pod, "namespace") == namespace && text(pod, "name") == name;
        pods.into_iter().find(is).unwrap()
    }

    /// Applies the objects, in which kinds have their versions.
    fn apply(&self, objects: &[Value]) {
        let all: String = objects.iter().map(document).collect();
        self.lab.apply(&all).unwrap();
    }

    fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        self.lab.delete(vec![Key::new(kind, namespace, name)], false).unwrap();
    }

    /// Which of the ports `from` reaches.
    fn reach(&self, from: &str, ports: &[Port]) -> BTreeSet<Port> {
        self.lab.start_reach(target(from), ports, SILENCE).unwrap().finish().unwrap()
    }

    /// Waits until `from` reaches port 80 of `to` by TCP, or does not.
    fn wait_for(&self, from: &str, to: &str, reached: bool) {
        let port = tcp(self.v4(to), 80);
        wait_until(SOON, &format!("{from} -> {to}: {reached}"), || {
            Ok(self.reach(from, &[port]).contains(&port) == reached)
        })
        .unwrap();
    }

    /// Who reaches whom and should not, or does not and should, in these families.
    fn mismatches(&self, families: &[usize], expect: &Table) -> Vec<String> {
        let mut by_client: BTreeMap<Party, Vec<Probe>> = BTreeMap::new();
        for probe in Probe::all(&self.protocols) {
            by_client.entry(probe.from.clone()).or_default().push(probe);
        }
        let clients: Vec<_> = by_client
            .into_iter()
            .map(|(from, probes)| {
                let mut ports = Vec::new();
                for family in families {
                    let address = |probe: &Probe| self.addresses[*family][&probe.to.to_string()];
                    ports.extend(probes.iter().map(|probe| port(probe, address(probe))));
                }
                let reach = self.lab.start_reach(target(&from.to_string()), &ports, SILENCE);
                (probes, ports, reach.unwrap())
            })
            .collect();
        let mut mismatches = Vec::new();
        for (probes, ports, reach) in clients {
            let reached = reach.finish().unwrap();
            for (probe, port) in probes.iter().cycle().zip(ports) {
                if reached.contains(&port) != expect.allows(probe) {
                    let verb = if reached.contains(&port) { "reached" } else { "not reached" };
                    mismatches.push(format!("{probe} ({port}): {verb}"));
                }
            }
        }
        mismatches
    }

    /// Waits until exactly those reach each other who should.
    fn settle(&self, about: &str, families: &[usize], expect: &Table) {
        let mut mismatches = Vec::new();
        let settled = wait_until(SOON, about, || {
            mismatches = self.mismatches(families, expect);
            Ok(mismatches.is_empty())
        });
        mismatches.truncate(40);
        settled.unwrap_or_else(|error| panic!("{error:#}:\n{}", mismatches.join("\n")));
    }

    fn run(&self, case: &Case, families: &[usize]) {
        let mut applied: BTreeSet<(String, String, String)> = BTreeSet::new();
        let mut labelled = BTreeSet::new();
        for (number, step) in case.steps.iter().enumerate() {
            self.take(step);
            let key = |object: &Value| {
                let kind = object["kind"].as_str().unwrap();
                (
                    kind.to_owned(),
                    text(object, "namespace").to_owned(),
                    text(object, "name").to_owned(),
                )
            };
            applied.extend(step.apply.iter().map(key));
            applied.retain(|key| !step.delete.contains(key));
            labelled.extend(step.labels.keys().cloned());
            self.settle(&format!("{}, step {number}", case.name), families, &step.expect);
        }
        let gone =
            applied.iter().map(|(kind, namespace, name)| (policy_kind(kind), namespace, name));
        let keys = gone.map(|(kind, namespace, name)| Key::new(kind, namespace, name)).collect();
        self.lab.delete(keys, false).unwrap();
        labelled.iter().for_each(|name| self.label(name, &labels_of(name)));
    }

    fn take(&self, step: &Step) {
        if !step.apply.is_empty() {
            self.apply(&step.apply);
        }
        for (kind, namespace, name) in &step.delete {
            self.delete(policy_kind(kind), namespace, name);
        }
        step.labels.iter().for_each(|(name, labels)| self.label(name, labels));
    }

    /// Lets an hour pass at once, or more, for all that the nodes know of a pod's flows over IPv4; how many records
    /// of them there are.
    fn age(&self, name: &str) -> usize {
        /// Ticks of the kernel's clock, at the most that there are in a second.
        const HOUR: u32 = 3600 * 1000;
        const LAST_SEEN: usize = offset_of!(Flow<V4>, last_seen);
        type Key = [u8; size_of::<FlowKey<V4>>()];
        type Record = [u8; size_of::<Flow<V4>>()];
        let IpAddr::V4(address) = self.v4(name) else { panic!("{name} has no IPv4 address") };
        // All of them begin with their two addresses.
        let has_it = |bytes: &[u8]| bytes[..8].chunks(4).any(|part| part == address.octets());
        let mut aged = 0;
        for node in ["node1", "node2"] {
            let flows = MapData::from_pin(self.lab.table(node, "flows4")).unwrap();
            let mut flows: HashMap<_, Key, Record> = Map::HashMap(flows).try_into().unwrap();
            let all: Vec<_> = flows.iter().map(Result::unwrap).collect();
            for (key, mut record) in all {
                if has_it(&key) || has_it(&record) {
                    let stamp = &mut record[LAST_SEEN..LAST_SEEN + 4];
                    let seen = u32::from_ne_bytes(stamp.try_into().unwrap());
                    stamp.copy_from_slice(&seen.wrapping_sub(HOUR).to_ne_bytes());
                    flows.insert(key, record, 0).unwrap();
                    aged += 1;
                }
            }
        }
        aged
    }

    fn label(&self, name: &str, labels: &BTreeMap<String, String>) {
        let object = if name.contains('/') {
            pod_manifest(name, Some(labels), &self.protocols)
        } else {
            cases::namespace(name, labels)
        };
        self.apply(&[object]);
    }
}

#[test]
fn the_classic_cases_hold_among_real_pods() {
    let Some(scene) = scene() else { return };
    scene.settle("an open cluster", &[0, 1], &Table::default());
    let [v4, v6] = [0, 1].map(|family| cases(&scene.addresses[family]).unwrap());
    for (v4, v6) in v4.iter().zip(&v6).filter(|(case, _)| case.lab) {
        let start = Instant::now();
        let same = v4.steps.iter().zip(&v6.steps).all(|(v4, v6)| v4.apply == v6.apply);
        if same {
            scene.run(v4, &[0, 1]);
        } else {
            // Its blocks are of one family.
            scene.run(v4, &[0]);
            scene.run(v6, &[1]);
        }
        println!("{}: {} ms", v4.name, start.elapsed().as_millis());
    }
    scene.settle("an open cluster, again", &[0, 1], &Table::default());
}

/// Those that no policy is about reach the server with their first packet, so that what the others do not reach is the
/// policy's doing.
#[test]
fn a_pod_is_restricted_from_its_first_instruction_on() {
    let Some(scene) = scene() else { return };
    scene.apply(&[network_policy(
        "first",
        "deny",
        json!({
            "podSelector": {"matchLabels": {"closed": "yes"}}, "policyTypes": ["Ingress", "Egress"],
        }),
    )]);
    let server = scene.v4("x/a");
    let pods: Vec<(String, bool)> =
        (0..12).map(|number| (format!("eager{number}"), number % 3 != 0)).collect();
    let manifests = pods.iter().zip([server, scene.addresses[1]["x/a"]].into_iter().cycle());
    let manifests = manifests.map(|((name, closed), server)| {
        let closed = if *closed { "yes" } else { "no" };
        eager("first", name, server, json!({"closed": closed}), None)
    });
    scene.apply(&manifests.collect::<Vec<_>>());
    for (name, closed) in &pods {
        let lines = said(&scene, "first", name);
        assert_eq!(lines, if *closed { 0 } else { 2 }, "{name}, closed: {closed}");
    }
    scene.delete(Kind::Namespace, "", "first");
}

#[test]
fn a_forbidden_connection_ends_and_an_allowed_one_goes_on() {
    let Some(scene) = scene() else { return };
    // To a pod of the same node, and to one of the other.
    for server in ["x/a", "x/b"] {
        let address = SocketAddr::new(scene.v4(server), 80);
        // Its node may be behind the other one.
        for from in ["y/a", "z/a", "x/c"] {
            scene.wait_for(from, server, true);
        }
        let start = |from: &str| {
            scene.lab.start_stream_with(target(from), address, &["--timeout", "1000"]).unwrap()
        };
        let (cut, kept, own) = (start("y/a"), start("z/a"), start("x/c"));
        let applied = milliseconds();
        scene.apply(&[only_z(&json!({}))]);
        scene.wait_for("y/c", server, false);
        let cut_after =
            Duration::from_millis(cut.finish().unwrap().last_ms.saturating_sub(applied));
        println!("to {server}: cut {cut_after:?} after the policy was written");
        assert!(cut_after < CUT, "{server}: {cut_after:?}");
        let own = own.finish().unwrap();
        assert!(own.error.is_some(), "x/c -> {server}: {own:?}");
        let kept = kept.finish().unwrap();
        assert_eq!(kept.error, None, "{kept:?}");
        scene.delete(Kind::NetworkPolicy, "x", "only-z");
        scene.wait_for("y/c", server, true);
    }
}

/// What a pod opened itself stays open both ways, whatever it may receive, and however long nobody said a word.
#[test]
fn replies_need_no_rule_also_after_a_policy_came() {
    let Some(scene) = scene() else { return };
    let half = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]});
    let from = "x/a";
    for (server, restricted) in
        [("y/b", false), ("y/b", true), ("outside", false), ("outside", true)]
    {
        let about = format!("{from}, restricted before: {restricted}, -> {server}");
        let address = SocketAddr::new(scene.v4(server), 80);
        if restricted {
            scene.apply(&[network_policy("x", "half", half.clone())]);
            let closed = tcp(scene.v4(from), 81);
            wait_until(SOON, &about, || Ok(scene.reach("y/c", &[closed]).is_empty())).unwrap();
        }
        let on_request = ["--on-request"];
        let mut stream = scene.lab.start_stream_with(target(from), address, &on_request).unwrap();
        let aged = scene.age(from);
        assert!(aged >= 2 || !restricted, "{about}: {aged}");
        scene.apply(&[network_policy("x", "deny", json!({"podSelector": {}}))]);
        if restricted {
            scene.delete(Kind::NetworkPolicy, "x", "half");
        }
        scene.wait_for("y/c", from, false);
        assert!(scene.age(from) >= 2, "{about}");
        stream.ask().unwrap();
        let summary = stream.finish().unwrap();
        assert_eq!((summary.answered, &summary.error), (2, &None), "{about}: {summary:?}");
        scene.delete(Kind::NetworkPolicy, "x", "deny");
        scene.wait_for("y/c", from, true);
    }
}

#[test]
fn services_are_judged_by_their_endpoints() {
    if let Some(scene) = scene() {
        judge_services(&scene);
    }
}

fn judge_services(scene: &Scene) {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "x", "name": "web"},
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"pod": "a"},
            "ports": [{"port": 8000, "targetPort": 80, "nodePort": 30_800}],
        },
    });
    scene.apply(std::slice::from_ref(&service));
    let name = ObjectName::new("x", "web");
    // One of each family.
    scene.lab.wait_for_endpoints(&name, 2).unwrap();
    let virtual_ips = scene.lab.model().unwrap().services[&name].cluster_ips.clone();
    let ports: Vec<Port> = virtual_ips.iter().map(|ip| tcp(*ip, 8000)).collect();
    let reached = |from: &str, ports: &[Port], count: usize| {
        let mut seen = BTreeSet::new();
        let settled = wait_until(SOON, &format!("{from} to reach {count} of {ports:?}"), || {
            seen = scene.reach(from, ports);
            Ok(seen.len() == count)
        });
        settled.unwrap_or_else(|error| panic!("{error:#}, reached {seen:?}"));
    };
    // Port 8000 is the Service's alone.
    let rule = |port: u16| {
        let from = json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]);
        let spec =
            json!({"podSelector": {}, "ingress": [{"from": from, "ports": [{"port": port}]}]});
        scene.apply(&[network_policy("x", "web", spec)]);
    };
    // At a port of the pod's own node and of the other one; x/a is on node1.
    let node_ports: Vec<Port> = ["node1", "node2"]
        .iter()
        .flat_map(|node| scene.addresses.iter().map(|family| tcp(family[*node], 30_800)))
        .collect();
    rule(80);
    for (from, allowed) in [("z/a", 0), ("z/b", 0), ("y/a", 1), ("y/b", 1)] {
        reached(from, &ports, 2 * allowed);
        // The other node stands between y/a and x/a, and says for whom.
        reached(from, &node_ports, 4 * allowed);
    }
    rule(8000);
    for from in ["y/a", "y/b"] {
        reached(from, &ports, 0);
    }

    // The true client from outside, whatever address the pod sees.
    let ports = node_ports;
    let from = |cidrs: [&str; 2]| {
        let blocks = cidrs.map(|cidr| json!({"ipBlock": {"cidr": cidr}}));
        let spec = json!({"podSelector": {}, "ingress": [{"from": blocks}]});
        scene.apply(&[network_policy("x", "web", spec)]);
    };
    for forwarding in ["snat", "keep", "dsr"] {
        let mut service = service.clone();
        service["metadata"]["annotations"] = json!({"fairway.dev/forwarding": forwarding});
        scene.apply(&[service]);
        from(["192.168.250.2/32", "fd00:240:a::2/128"]);
        reached("outside", &ports, 4);
        from(["192.168.250.3/32", "fd00:240:a::3/128"]);
        reached("outside", &ports, 0);
    }
    scene.delete(Kind::NetworkPolicy, "x", "web");
    reached("outside", &ports, 4);
    scene.delete(Kind::Service, "x", "web");
}

/// A pod that is isolated becomes ready, because its node asks it from a socket of its own, and is not let out to what
/// its node alone should ask.
#[test]
fn the_nodes_own_sockets_always_reach_their_pods() {
    let Some(scene) = scene() else { return };
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    scene.apply(&[network_policy("probed", "deny", deny)]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "probed", "name": "web", "labels": {"app": "web"}},
        "spec": {
            "nodeName": "node1", "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": "agnhost", "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 80}, "periodSeconds": 1},
            }],
        },
    });
    scene.apply(&[pod]);
    scene.lab.wait_for_pods("probed", "app", "web", 1).unwrap();
    let address = scene.v4("probed/web");
    for (from, expected) in [("node1", true), ("node2", false), ("x/a", false), ("outside", false)]
    {
        let reached = !scene.reach(from, &[tcp(address, 80)]).is_empty();
        assert_eq!(reached, expected, "{from}");
    }
    // What nothing restricts reaches that address.
    let metadata = tcp(METADATA.parse().unwrap(), 80);
    wait_until(SOON, "an open pod to reach the metadata", || {
        Ok(!scene.reach("x/a", &[metadata]).is_empty())
    })
    .unwrap();
    assert_eq!(scene.reach("probed/web", &[metadata]), BTreeSet::new());
    scene.delete(Kind::Namespace, "", "probed");
}

#[test]
fn an_address_that_is_used_again_inherits_nothing() {
    if let Some(scene) = scene() {
        use_an_address_again(&scene);
    }
}

fn use_an_address_again(scene: &Scene) {
    scene.apply(&[network_policy(
        "x",
        "friends",
        json!({
            "podSelector": {"matchLabels": {"pod": "a"}},
            "ingress": [{"from": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "again"}},
                "podSelector": {"matchLabels": {"friend": "yes"}},
            }]}],
        }),
    )]);
    scene.wait_for("y/c", "x/a", false);
    let server = scene.v4("x/a");
    let at = "10.244.0.200,fd00:10:244::200";
    scene.apply(&[eager("again", "friend", server, json!({"friend": "yes"}), Some(at))]);
    // Allow rules may come a moment late.
    wait_until(SOON, "a friend to be let in", || {
        if said(scene, "again", "friend") == 2 {
            return Ok(true);
        }
        scene.delete(Kind::Pod, "again", "friend");
        scene.apply(&[eager("again", "friend", server, json!({"friend": "yes"}), Some(at))]);
        Ok(false)
    })
    .unwrap();
    scene.delete(Kind::Pod, "again", "friend");
    scene.apply(&[eager("again", "stranger", server, json!({}), Some(at))]);
    assert_eq!(said(scene, "again", "stranger"), 0);
    assert_eq!(pod_addresses(&scene.pod("again", "stranger"))[0].to_string(), "10.244.0.200");
    scene.delete(Kind::NetworkPolicy, "x", "friends");
    scene.delete(Kind::Namespace, "", "again");
}

/// Where addresses alone say who somebody is: a sample of the same. The other lab waits meanwhile.
#[test]
fn plain_routes_between_nodes_make_no_difference() {
    const SAMPLE: [&str; 2] = [
        "by pod labels, in the same namespace",
        "a block of addresses with exceptions matches pods",
    ];
    let Some(_others) = scene() else { return };
    let start = Instant::now();
    let plain = Scene::start("plain", |options| {
        options.backend = Backend::HostGw;
        options.subnets = 1;
    });
    let Some(scene) = plain else { return };
    println!("a lab with plain routes: {} ms", start.elapsed().as_millis());
    for (number, addresses) in scene.addresses.iter().enumerate() {
        let all = cases(addresses).unwrap();
        let chosen: Vec<_> = all.iter().filter(|case| SAMPLE.contains(&&*case.name)).collect();
        assert_eq!(chosen.len(), SAMPLE.len());
        chosen.into_iter().for_each(|case| scene.run(case, &[number]));
    }
    judge_services(&scene);
    use_an_address_again(&scene);
    println!("and what was tried in it: {} ms", start.elapsed().as_millis());
}

#[test]
fn verdicts_stay_while_agents_come_and_go() {
    let Some(scene) = scene() else { return };
    scene.apply(&[only_z(&json!({}))]);
    scene.wait_for("y/a", "x/a", false);
    scene.wait_for("y/a", "x/b", false);
    let ports = ["x/a", "x/b"].map(|name| tcp(scene.v4(name), 80));
    let check = |when: &str| {
        assert_eq!(scene.reach("y/a", &ports), BTreeSet::new(), "{when}");
        assert_eq!(scene.reach("z/a", &ports), BTreeSet::from(ports), "{when}");
    };
    let urls = [format!("http://{}/hostname", scene.v4("x/b"))];
    let load = scene.lab.start_load(target("z/a"), &urls, 50, 4).unwrap();
    for node in ["node1", "node2"] {
        scene.lab.kill_agent(node).unwrap();
    }
    check("without agents");
    for node in ["node1", "node2"] {
        scene.lab.start_agent(node).unwrap();
    }
    check("with new agents");
    // And what changes meanwhile does not disturb what is allowed.
    for number in 0..10 {
        let mut labels = labels_of("z/b");
        labels.insert("number".to_owned(), number.to_string());
        scene.label("z/b", &labels);
        let port = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 9000 + number}]}]});
        scene.apply(&[network_policy("x", "other", port)]);
    }
    check("after changes");
    let summary = load.finish().unwrap();
    assert!(summary.ok > 0 && summary.failed == 0, "{summary:?}");
    scene.label("z/b", &labels_of("z/b"));
    scene.delete(Kind::NetworkPolicy, "x", "other");
    scene.delete(Kind::NetworkPolicy, "x", "only-z");
    scene.wait_for("y/a", "x/b", true);
}

fn network_policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

/// Lets the pods of namespace z, and nobody else, to these of x.
fn only_z(pods: &Value) -> Value {
    let from = json!([{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]);
    network_policy("x", "only-z", json!({"podSelector": pods, "ingress": [{"from": from}]}))
}

fn policy_kind(name: &str) -> Kind {
    match name {
        "NetworkPolicy" => Kind::NetworkPolicy,
        "ClusterNetworkPolicy" => Kind::ClusterNetworkPolicy,
        other => panic!("{other} is no kind of policies"),
    }
}

fn pod_manifest(
    name: &str,
    labels: Option<&BTreeMap<String, String>>,
    protocols: &[oracle::Protocol],
) -> Value {
    let (namespace, pod) = name.split_once('/').unwrap();
    let own = labels_of(name);
    cases::pod(namespace, pod, labels.unwrap_or(&own), protocols)
}

/// A pod on node1 that asks `server` first, and once; `at` are addresses that it wants.
fn eager(namespace: &str, name: &str, server: IpAddr, labels: Value, at: Option<&str>) -> Value {
    let server = SocketAddr::new(server, 0).to_string();
    let server = server.strip_suffix(":0").unwrap();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {
            "nodeName": "node1", "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "eager", "env": [{"name": "SERVER", "value": server}]}],
        },
    });
    if let Some(at) = at {
        pod["metadata"]["annotations"] = json!({"lab.fairway.dev/addresses": at});
    }
    pod
}

/// How many ports an eager pod reached.
fn said(scene: &Scene, namespace: &str, name: &str) -> usize {
    let target = target(&format!("{namespace}/{name}"));
    let mut reached = 0;
    wait_until(SOON, &format!("{namespace}/{name} to say what it reached"), || {
        let logs = scene.lab.logs(target.clone())?;
        reached = logs.lines().filter(|line| line.contains(':')).count();
        Ok(logs.lines().any(|line| line == "done"))
    })
    .unwrap();
    reached
}

/// A test server beside somebody, on the ports of the cases.
fn serve(lab: &Lab, target: Target, protocols: &[oracle::Protocol]) -> Child {
    let mut command = lab.command(target, lab.program().to_str().unwrap()).unwrap();
    command.args(["app", "netexec"]);
    for port in cases::PORTS {
        command.arg(format!("--http-port={port}")).arg(format!("--udp-port={port}"));
        if protocols.contains(&oracle::Protocol::Sctp) {
            command.arg(format!("--sctp-port={port}"));
        }
    }
    command.stdin(Stdio::null()).spawn().unwrap()
}

fn tcp(address: IpAddr, port: u16) -> Port {
    Port(Protocol::Tcp, SocketAddr::new(address, port))
}

fn port(probe: &Probe, address: IpAddr) -> Port {
    let protocol = match probe.protocol {
        oracle::Protocol::Udp => Protocol::Udp,
        oracle::Protocol::Sctp => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    Port(protocol, SocketAddr::new(address, probe.port))
}

fn target(name: &str) -> Target {
    match name.split_once('/') {
        Some((namespace, name)) => {
            Target::Pod { namespace: namespace.to_owned(), name: name.to_owned() }
        }
        None if name == "outside" => Target::Client,
        None => Target::Node { node: name.to_owned() },
    }
}

fn document(object: &Value) -> String {
    format!("---\n{object}\n")
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

fn pod_addresses(pod: &Value) -> [IpAddr; 2] {
    let ips = pod["status"]["podIPs"].as_array().unwrap();
    [0, 1].map(|family| ips[family]["ip"].as_str().unwrap().parse().unwrap())
}
