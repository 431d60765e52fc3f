//! A cluster whose machines come up in any order, the control plane last.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use fairway_model::{Model, ObjectName, Service};
use fairway_tests::api::{Power, Target};
use fairway_tests::wait::wait_until;
use fairway_tests::{Kind, Lab, Options, may_run, unique_name};
use serde_json::Value;

/// What takes no machine's start arrives within this time.
const NEWS: Duration = Duration::from_secs(10);
/// A machine's agent loads its programs, and its pods start, within this time.
const START: Duration = Duration::from_secs(60);

/// "server" on node2 lets "asker" on node3 in, and the client; "stranger" on node1 is denied. Variables of
/// Services would have to come from the control plane.
const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node2
  enableServiceLinks: false
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: asker, labels: {app: asker}}
spec:
  nodeName: node3
  enableServiceLinks: false
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger}}
spec:
  nodeName: node1
  enableServiceLinks: false
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  type: NodePort
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: asker}}
    - ipBlock: {cidr: 192.168.250.0/24}
";

/// Starts after "server", and comes before it by name.
const NEIGHBOUR: &str = "
apiVersion: v1
kind: Pod
metadata: {name: neighbour, labels: {app: asker}}
spec:
  nodeName: node2
  enableServiceLinks: false
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
";

const LATER: &str = "
apiVersion: v1
kind: Service
metadata: {name: later}
spec:
  selector: {app: server}
  ports: [{port: 81, targetPort: 8080}]
";

const NODES: [&str; 3] = ["node1", "node2", "node3"];

#[test]
fn nodes_come_up_in_any_order_and_the_control_plane_last() {
    if !may_run("bootstrap") {
        return;
    }
    let lab = Lab::up(Options { subnets: 2, ..Options::named(unique_name("boot")) }).unwrap();
    lab.apply(MANIFESTS).unwrap();
    for app in ["server", "asker", "stranger"] {
        lab.wait_for_pods("default", "app", app, 1).unwrap();
    }
    lab.wait_for_endpoints(&name("server"), 1).unwrap();
    lab.apply(NEIGHBOUR).unwrap();
    lab.wait_for_pods("default", "app", "asker", 2).unwrap();
    let (inside, outside) = ways(&lab);
    all_is_well(&lab, inside, outside);
    wait_for_snapshots(&lab);
    let pods = ["server", "neighbour", "asker", "stranger"];
    let addresses = || pods.map(|name| pod(&lab, name).unwrap()["status"]["podIPs"].clone());
    let before = addresses();

    // All power fails, and nothing that knows the objects comes back with it.
    lab.kill_controlplane().unwrap();
    for node in NODES {
        lab.power(node, Power::Off).unwrap();
    }
    for node in ["node3", "node1", "node2"] {
        lab.power(node, Power::On).unwrap();
    }
    assert!(lab.model().is_err(), "the control plane is to be away");
    for pod in pods {
        wait_for_start(&lab, pod, 1);
    }
    // Other nodes know pods by these, and nobody could tell them of others.
    let logs = lab.logs(Target::Node { node: "node2".to_owned() }).unwrap();
    assert_eq!(addresses(), before, "{logs}");
    all_is_well(&lab, inside, outside);

    // What changes goes on to arrive once there is a control plane.
    lab.start_controlplane().unwrap();
    lab.apply(LATER).unwrap();
    lab.wait_for_endpoints(&name("later"), 1).unwrap();
    all_is_well(&lab, inside, outside);
    let answer = lab.get(beside("asker"), "http://later:81/hostname").unwrap();
    assert_eq!(answer, "server");
}

#[test]
fn a_new_machines_pods_wait_for_the_control_plane_and_say_so() {
    if !may_run("a new machine") {
        return;
    }
    let lab = Lab::up(Options { subnets: 2, ..Options::named(unique_name("newnode")) }).unwrap();
    lab.apply(MANIFESTS).unwrap();
    for app in ["server", "asker", "stranger"] {
        lab.wait_for_pods("default", "app", app, 1).unwrap();
    }
    lab.wait_for_endpoints(&name("server"), 1).unwrap();
    let (inside, outside) = ways(&lab);
    // What the control plane remembers, as somebody who makes copies of it at night has it.
    let copy = tempfile::tempdir().unwrap();
    copy_files(&lab.controlplane_state(), copy.path());
    lab.apply(LATER).unwrap();
    lab.wait_for_endpoints(&name("later"), 1).unwrap();

    lab.kill_controlplane().unwrap();
    lab.power("node1", Power::Off).unwrap();
    lab.power("node1", Power::New).unwrap();
    wait_until(START, "the pod's complaint", || {
        let pod = pod(&lab, "stranger")?;
        let message = pod["status"]["message"].as_str().unwrap_or_default();
        Ok(["node1", "control plane"].iter().all(|part| message.contains(part)))
    })
    .with_context(|| pod(&lab, "stranger").unwrap()["status"].to_string())
    .unwrap();
    let node = lab.nodes().unwrap().remove(0);
    assert!(!node.ready && node.agent_pid.is_some() && node.agent_restarts == 1, "{node:?}");
    for (from, server) in [(beside("asker"), inside), (Target::Client, outside)] {
        assert_eq!(lab.get(from, &format!("http://{server}/hostname")).unwrap(), "server");
    }

    // It comes back with what it remembered before the last change.
    copy_files(copy.path(), &lab.controlplane_state());
    lab.start_controlplane().unwrap();
    wait_for_start(&lab, "stranger", 1);
    let node = lab.nodes().unwrap().remove(0);
    assert!(node.ready && node.agent_restarts == 1, "{node:?}");
    lab.wait_for_endpoints(&name("later"), 1).unwrap();
    assert_eq!(ways(&lab), (inside, outside), "the Service keeps its address and port");
    all_is_well(&lab, inside, outside);
    let answer = lab.get(beside("asker"), "http://later:81/hostname").unwrap();
    assert_eq!(answer, "server");
}

/// Who is allowed to asks the Service, and who is not is not answered.
fn all_is_well(lab: &Lab, inside: SocketAddr, outside: SocketAddr) {
    for (from, server) in [(beside("asker"), inside), (Target::Client, outside)] {
        let url = format!("http://{server}/hostname");
        wait_until(NEWS, "an answer", || Ok(lab.get(from.clone(), &url)? == "server")).unwrap();
    }
    let words = ["curl", "-sS", "--max-time", "1", &format!("http://{inside}/")];
    let output = lab.exec(beside("stranger"), &words).unwrap();
    // It has waited in vain.
    assert_eq!(output.status.code(), Some(28), "{output:?}");
}

/// Waits until a pod is ready that was started again so often.
fn wait_for_start(lab: &Lab, name: &str, restarts: u64) {
    wait_until(START, &format!("{name} to be ready again"), || {
        let pod = pod(lab, name)?;
        let container = &pod["status"]["containerStatuses"][0];
        Ok(container["ready"] == true && container["restartCount"] == restarts)
    })
    .with_context(|| pod(lab, name).unwrap()["status"].to_string())
    .unwrap();
}

fn pod(lab: &Lab, name: &str) -> anyhow::Result<Value> {
    let pods = lab.list(Kind::Pod)?.into_iter();
    let mut pods = pods.filter(|pod| pod["metadata"]["name"] == name);
    pods.next().with_context(|| format!("no pod {name}"))
}

/// Agents write down what they know at most once a second; waits until they have.
fn wait_for_snapshots(lab: &Lab) {
    for node in lab.nodes().unwrap() {
        let words = fs::read_to_string(format!("/proc/{}/cmdline", node.agent_pid.unwrap()));
        let words = words.unwrap();
        let mut words = words.split('\0').skip_while(|word| *word != "--state-dir");
        let snapshot = Path::new(words.nth(1).unwrap()).join("snapshot");
        wait_until(NEWS, "all that is known in the snapshot", || {
            let text = fs::read_to_string(&snapshot)?;
            let written = text.lines().nth(1).context("a snapshot has a second line")?;
            let written: Model = serde_json::from_str(written)?;
            let has_own = written.pods.values().any(|pod| pod.node == node.name);
            let model = lab.model()?;
            Ok(written.endpoints == model.endpoints && written.members == model.members && has_own)
        })
        .unwrap();
    }
}

/// Copies the files of a folder, but no folders.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// Where the server is asked: its ClusterIP, and its NodePort on a node without endpoints.
fn ways(lab: &Lab) -> (SocketAddr, SocketAddr) {
    let service = service(lab, "server");
    let port = &service.ports[0];
    let node = lab.nodes().unwrap().remove(2);
    (
        SocketAddr::new(service.cluster_ips[0], port.port),
        SocketAddr::new(node.addresses[0], port.node_port.unwrap()),
    )
}

fn service(lab: &Lab, service: &str) -> Service {
    lab.model().unwrap().services[&name(service)].clone()
}

fn name(service: &str) -> ObjectName {
    ObjectName::new("default", service)
}

fn beside(pod: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: pod.to_owned() }
}
