//! Nodes that reach each other by WireGuard, on a kernel that has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fairway_model::WireGuardKey;
use fairway_netlink::{NetNs, Netlink};
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Backend, Lab, Options, may_run, unique_name};

const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web}}
spec:
  nodeName: node1
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: web}}
spec:
  nodeName: node2
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
";

/// For a key to come round, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn wireguard_connects_pods_and_nodes_and_outlives_agents_and_keys() {
    let Some(lab) = lab() else { return };
    let addresses = addresses(&lab);
    pods_meet(&lab, &addresses);
    everybody_reaches_everybody(&lab, &addresses);

    // Nothing of a connection is lost when the agents are.
    let server = (addresses[1][0].parse::<std::net::IpAddr>().unwrap(), 8080).into();
    let stream = lab.start_stream(pod("one"), server).unwrap();
    for node in lab.nodes().unwrap() {
        let key = key(&lab, &node.name);
        lab.restart_agent(&node.name, true).unwrap();
        assert_eq!(self::key(&lab, &node.name), key, "a key stays");
    }
    let summary = stream.finish().unwrap();
    assert_eq!(summary.error, None, "{summary:?}");

    // A node that is given a new key is soon known by it.
    let old = key(&lab, "node2").unwrap();
    fs::remove_file(state_dir(&lab, "node2").join("wireguard.key")).unwrap();
    lab.restart_agent("node2", true).unwrap();
    wait_until(PATIENCE, "node2's new key", || Ok(key(&lab, "node2") != Some(old))).unwrap();
    pods_meet(&lab, &addresses);
    everybody_reaches_everybody(&lab, &addresses);
    let shown = run(&lab, "node1", &["ip", "link", "show", "fairway-vxlan"]);
    assert!(!shown.status.success(), "{shown:?}");
}

/// Waits until the pods reach each other: a handshake with a node that does not know the other's key yet is lost, and
/// the next follows after five seconds, as long as a request may take (REKEY_TIMEOUT in section 6.1 of WireGuard's
/// paper).
fn pods_meet(lab: &Lab, addresses: &[Vec<String>]) {
    wait_until(PATIENCE, "pods that reach each other", || {
        Ok(lab.get(pod("one"), &format!("http://{}:8080/hostname", addresses[1][0])).is_ok())
    })
    .unwrap();
}

fn everybody_reaches_everybody(lab: &Lab, addresses: &[Vec<String>]) {
    let long = "0123456789".repeat(2000);
    let nodes = lab.nodes().unwrap();
    // The nodes are in two subnets, and the router between them knows nothing of pods: what arrives
    // came through the tunnel.
    for (from, own, there, theirs) in [
        ("one", &addresses[0], &nodes[1], &addresses[1]),
        ("two", &addresses[1], &nodes[0], &addresses[0]),
    ] {
        for (own, theirs) in own.iter().zip(theirs) {
            let url = |what: &str| format!("http://{}:8080/{what}", in_url(theirs));
            assert_eq!(lab.get(pod(from), &url(&format!("echo?msg={long}"))).unwrap(), long);
            let seen = lab.get(pod(from), &url("clientip")).unwrap();
            assert!(seen.starts_with(&in_url(own)), "{seen}");
        }
        // Pods reach the other node itself, too; its health answer is IPv4's alone.
        for address in there.addresses.iter().filter(|address| address.is_ipv4()) {
            lab.get(pod(from), &format!("http://{address}:10256/livez")).unwrap();
        }
        // A node's own processes reach the other's pods.
        for own in own {
            let url = format!("http://{}:8080/echo?msg={long}", in_url(own));
            let node = Target::Node { node: there.name.clone() };
            assert_eq!(lab.get(node, &url).unwrap(), long, "from {}", there.name);
        }
    }
}

/// The addresses of pods `one` and `two`.
fn addresses(lab: &Lab) -> Vec<Vec<String>> {
    let mut pods = lab.wait_for_pods("default", "app", "web", 2).unwrap();
    pods.sort_by_key(|pod| pod["metadata"]["name"].to_string());
    let addresses = pods.iter().map(|pod| {
        let ips = pod["status"]["podIPs"].as_array().unwrap();
        ips.iter().map(|ip| ip["ip"].as_str().unwrap().to_owned()).collect()
    });
    addresses.collect()
}

fn in_url(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn key(lab: &Lab, node: &str) -> Option<WireGuardKey> {
    lab.model().unwrap().nodes[node].wireguard_key
}

fn state_dir(lab: &Lab, node: &str) -> PathBuf {
    let nodes = lab.nodes().unwrap();
    let pid = nodes.iter().find(|found| found.name == node).unwrap().agent_pid.unwrap();
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let mut words = words.split('\0').skip_while(|word| *word != "--state-dir");
    Path::new(words.nth(1).unwrap()).to_owned()
}

fn pod(name: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: name.to_owned() }
}

fn run(lab: &Lab, node: &str, words: &[&str]) -> std::process::Output {
    lab.exec(Target::Node { node: node.to_owned() }, words).unwrap()
}

fn lab() -> Option<Lab> {
    if !may_run("wireguard") {
        return None;
    }
    let netns = NetNs::unnamed().unwrap();
    if let Err(error) = Netlink::open_in(&netns).unwrap().create_wireguard("probe", None) {
        assert_eq!(
            error.errno(),
            Some(95),
            "EOPNOTSUPP is what a kernel without it says: {error:?}"
        );
        eprintln!(
            "NOT RUN: this kernel has no WireGuard; cargo xtask guest runs it on one that has"
        );
        return None;
    }
    let options = Options {
        backend: Backend::Wireguard,
        nodes: 2,
        subnets: 2,
        ..Options::named(unique_name("wireguard"))
    };
    let lab = Lab::up(options).unwrap();
    lab.apply(MANIFESTS).unwrap();
    Some(lab)
}
