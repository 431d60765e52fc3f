//! Every way between nodes, with nodes in two subnets: each pod reaches each pod, Service and
//! NodePort, with packets of any size.

use std::time::Duration;

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Backend, Lab, Options, may_run, unique_name};
use serde_json::Value;

const MANIFESTS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: server, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

#[test]
fn auto_crosses_the_router_by_vxlan_and_a_subnet_by_routes() {
    let Some(lab) = lab("auto", Backend::Auto) else { return };
    everybody_reaches_everybody(&lab);
    let direct = ["path_mtu", "reach"];
    let tunnelled = ["path_mtu", "path_mtu_tunnel", "reach", "reach_tunnel", "tunnel_checksums"];
    self_tests_pass(&lab, "node1", &[("node2", &tunnelled), ("node3", &direct)]);
    self_tests_pass(&lab, "node2", &[("node1", &tunnelled), ("node3", &tunnelled)]);
    // node1 and node3 share a subnet, node2 is behind the router.
    assert!(leaves_by_uplink(&lab, "node1", "node3"));
    assert!(!leaves_by_uplink(&lab, "node1", "node2"));
}

#[test]
fn vxlan_connects_all() {
    let Some(lab) = lab("vxlan", Backend::Vxlan) else { return };
    everybody_reaches_everybody(&lab);
    assert!(!leaves_by_uplink(&lab, "node1", "node3"));
}

#[test]
fn host_gw_connects_all_when_the_router_knows_the_pod_ranges() {
    let Some(lab) = lab("hostgw", Backend::HostGw) else { return };
    everybody_reaches_everybody(&lab);
    assert!(leaves_by_uplink(&lab, "node1", "node2"));
}

#[test]
fn routes_to_pods_come_back_with_the_uplink() {
    if !may_run("uplink") {
        return;
    }
    let options =
        Options { backend: Backend::HostGw, nodes: 2, ..Options::named(unique_name("uplink")) };
    let lab = Lab::up(options).unwrap();
    lab.apply(MANIFESTS).unwrap();
    lab.wait_for_pods("default", "app", "web", 2).unwrap();
    assert!(leaves_by_uplink(&lab, "node1", "node2"));
    let node1 = Target::Node { node: "node1".to_owned() };
    for state in ["down", "up"] {
        let words = ["ip", "link", "set", "eth0", state];
        assert!(lab.exec(node1.clone(), &words).unwrap().status.success());
    }
    // The kernel has dropped the routes with the link.
    wait_until(Duration::from_secs(10), "the route to node2's pods", || {
        Ok(leaves_by_uplink(&lab, "node1", "node2"))
    })
    .unwrap();
    pods_reach_each_other(&lab, &lab.wait_for_pods("default", "app", "web", 2).unwrap());
}

fn everybody_reaches_everybody(lab: &Lab) {
    let pods = lab.wait_for_pods("default", "app", "web", 3).unwrap();
    let name = ObjectName::new("default", "web");
    lab.wait_for_endpoints(&name, 3).unwrap();
    let service = lab.model().unwrap().services.remove(&name).unwrap();
    let long = "0123456789".repeat(2000);
    pods_reach_each_other(lab, &pods);
    for from in &pods {
        let beside = beside(from);
        for _ in 0..6 {
            let url = format!("http://web/echo?msg={long}");
            assert_eq!(lab.get(beside.clone(), &url).unwrap(), long);
        }
    }
    for node in lab.nodes().unwrap() {
        // A node's own processes, too, reach every pod and Service.
        let beside = Target::Node { node: node.name.clone() };
        for to in &pods {
            let url = format!("http://{}:8080/echo?msg={long}", field(to, "/status/podIP"));
            assert_eq!(lab.get(beside.clone(), &url).unwrap(), long, "from {}", node.name);
        }
        for _ in 0..6 {
            let url = format!("http://{}/echo?msg={long}", service.cluster_ips[0]);
            assert_eq!(lab.get(beside.clone(), &url).unwrap(), long, "from {}", node.name);
        }
        let port = service.ports[0].node_port.unwrap();
        for _ in 0..6 {
            let url = format!("http://{}:{port}/echo?msg={long}", node.addresses[0]);
            assert_eq!(lab.get(Target::Client, &url).unwrap(), long);
        }
    }
}

/// Waits until the agent of a node has tested its ways to its peers, all with these checks passed.
fn self_tests_pass(lab: &Lab, node: &str, peers: &[(&str, &[&str])]) {
    let agent = lab.nodes().unwrap().into_iter().find(|n| n.name == node).unwrap().agent_pid;
    let program = std::fs::read_link(format!("/proc/{}/exe", agent.unwrap())).unwrap();
    let words = [program.to_str().unwrap(), "check", "--json"];
    wait_until(Duration::from_secs(60), "the self-test", || {
        let output = lab.exec(Target::Node { node: node.to_owned() }, &words)?;
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        Ok(peers.iter().all(|(peer, checks)| {
            let of_peer = findings.iter().filter(|finding| finding["peer"] == *peer);
            let passed = of_peer.filter(|finding| finding["outcome"] == "passed");
            passed.map(|finding| finding["check"].as_str().unwrap()).eq(checks.iter().copied())
        }))
    })
    .unwrap();
}

fn pods_reach_each_other(lab: &Lab, pods: &[Value]) {
    let long = "0123456789".repeat(2000);
    for from in pods {
        for to in pods {
            let address = field(to, "/status/podIP");
            let url = format!("http://{address}:8080/hostname");
            assert_eq!(lab.get(beside(from), &url).unwrap(), field(to, "/metadata/name"));
            let url = format!("http://{address}:8080/echo?msg={long}");
            assert_eq!(lab.get(beside(from), &url).unwrap(), long);
            // Between pods, each sees the other's own address.
            let url = format!("http://{address}:8080/clientip");
            let seen = lab.get(beside(from), &url).unwrap();
            assert!(seen.starts_with(&format!("{}:", field(from, "/status/podIP"))), "{seen}");
        }
    }
}

fn beside(pod: &Value) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: field(pod, "/metadata/name") }
}

fn field(pod: &Value, pointer: &str) -> String {
    pod.pointer(pointer).unwrap().as_str().unwrap().to_owned()
}

/// Whether packets from one node to another's pods leave as they are.
fn leaves_by_uplink(lab: &Lab, from: &str, to: &str) -> bool {
    let nodes = lab.nodes().unwrap();
    let to = nodes.iter().find(|node| node.name == to).unwrap();
    let address = to.pod_cidrs[0].hosts().nth(5).unwrap().to_string();
    let target = Target::Node { node: from.to_owned() };
    let output = lab.exec(target, &["ip", "-o", "route", "get", &address]).unwrap();
    String::from_utf8_lossy(&output.stdout).contains(" dev eth0 ")
}

fn lab(name: &str, backend: Backend) -> Option<Lab> {
    if !may_run(name) {
        return None;
    }
    let options = Options { backend, subnets: 2, ..Options::named(unique_name(name)) };
    let lab = Lab::up(options).unwrap();
    lab.apply(MANIFESTS).unwrap();
    Some(lab)
}
