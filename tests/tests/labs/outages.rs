//! Parts of Fairway die while connections are made and held.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use fairway_model::{Model, ObjectName, Service};
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, Options, may_run, unique_name};

/// How long clients go on after something has happened.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Asked on node2, by "asker" on node3 and by the client through node1.
const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node2
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: asker, labels: {app: asker}}
spec:
  nodeName: node3
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  type: NodePort
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
";

#[test]
fn without_the_control_plane_nodes_go_on_also_with_new_agents() {
    const LATER: &str = "
apiVersion: v1
kind: Service
metadata: {name: later}
spec:
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
";
    let Some(lab) = lab("away") else { return };
    let (inside, outside) = ways(&lab);
    let load = |from: Target, server: SocketAddr| {
        lab.start_load(from, &[format!("http://{server}/hostname?delay=20")], 100, 4).unwrap()
    };
    let loads = [load(asker(), inside), load(Target::Client, outside)];
    wait_for_snapshots(&lab);
    lab.kill_controlplane().unwrap();
    for node in lab.nodes().unwrap() {
        lab.restart_agent(&node.name, true).unwrap();
    }
    assert!(lab.model().is_err(), "the control plane should be away");
    for node in lab.nodes().unwrap() {
        assert!(node.ready && node.agent_restarts == 1, "{node:?}");
    }
    thread::sleep(AFTERMATH);
    lab.start_controlplane().unwrap();
    thread::sleep(AFTERMATH);
    for load in loads {
        let summary = load.finish().unwrap();
        assert!(summary.ok > 0, "{summary:?}");
        assert_eq!(summary.failed, 0, "{summary:?}");
    }
    assert_eq!(ways(&lab), (inside, outside), "the Service keeps its address and port");
    lab.apply(LATER).unwrap();
    lab.wait_for_endpoints(&name("later"), 1).unwrap();
    assert_eq!(lab.get(asker(), "http://later/hostname").unwrap(), "server");
}

#[test]
fn a_connection_outlives_the_agents_and_the_coming_and_going_of_links() {
    let Some(lab) = lab("stream") else { return };
    let (inside, outside) = ways(&lab);
    let streams = [
        ("inside", lab.start_stream(asker(), inside).unwrap()),
        ("outside", lab.start_stream(Target::Client, outside).unwrap()),
    ];
    for node in lab.nodes().unwrap() {
        lab.restart_agent(&node.name, true).unwrap();
        let on_node = Target::Node { node: node.name };
        for words in [
            "ip link add stranger0 type veth peer name stranger1",
            "ip link set stranger0 up",
            "ip link set stranger1 up",
            "ip link set stranger0 down",
            "ip link set stranger0 up",
            "ip link del stranger0",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            let output = lab.exec(on_node.clone(), &words).unwrap();
            assert!(output.status.success(), "{words:?}: {output:?}");
        }
    }
    thread::sleep(AFTERMATH);
    for (way, stream) in streams {
        let summary = stream.finish().unwrap();
        assert_eq!(summary.error, None, "{way}: {summary:?}");
        assert!(summary.answered > 100, "{way}: {summary:?}");
        // A client that sent again for seconds would hide a gap.
        assert!(summary.slowest_ms < 1000, "{way}: {summary:?}");
    }
}

/// Agents write down what they know at most once a second; waits until they have.
fn wait_for_snapshots(lab: &Lab) {
    let endpoints = lab.model().unwrap().endpoints;
    for node in lab.nodes().unwrap() {
        let words = fs::read_to_string(format!("/proc/{}/cmdline", node.agent_pid.unwrap()));
        let words = words.unwrap();
        let mut words = words.split('\0').skip_while(|word| *word != "--state-dir");
        let snapshot = Path::new(words.nth(1).unwrap()).join("snapshot");
        wait_until(Duration::from_secs(10), "the endpoints in the snapshot", || {
            let text = fs::read_to_string(&snapshot)?;
            let model = text.lines().nth(1).context("a snapshot has a second line")?;
            Ok(serde_json::from_str::<Model>(model)?.endpoints == endpoints)
        })
        .unwrap();
    }
}

/// Where the server is asked: its ClusterIP, and its NodePort on a node without endpoints.
fn ways(lab: &Lab) -> (SocketAddr, SocketAddr) {
    let service = service(lab, "server");
    let port = &service.ports[0];
    let node = lab.nodes().unwrap().remove(0);
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

fn asker() -> Target {
    Target::Pod { namespace: "default".to_owned(), name: "asker".to_owned() }
}

fn lab(tag: &str) -> Option<Lab> {
    if !may_run(tag) {
        return None;
    }
    let lab = Lab::up(Options::named(unique_name(tag))).unwrap();
    lab.apply(MANIFESTS).unwrap();
    for app in ["server", "asker"] {
        lab.wait_for_pods("default", "app", app, 1).unwrap();
    }
    lab.wait_for_endpoints(&name("server"), 1).unwrap();
    Some(lab)
}
