//! Limits of what a pod sends and receives, on every way that a packet takes to or from it.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::{IpAddr, SocketAddr};

use fairway_tests::api::Target;
use fairway_tests::{Lab, two_nodes};

/// Bits a second.
const LIMIT: f64 = 8e6;
/// Bytes: two seconds' worth.
const SIZE: u32 = 2_000_000;

const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: sender
  labels: {app: limits}
  annotations: {kubernetes.io/egress-bandwidth: 8M}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080, hostPort: 8081}]}]
---
apiVersion: v1
kind: Pod
metadata:
  name: receiver
  labels: {app: limits}
  annotations: {kubernetes.io/ingress-bandwidth: 8M}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: limits}}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080, hostPort: 8082}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: host, labels: {app: limits}}
spec:
  hostNetwork: true
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8090}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: limits}}
spec:
  nodeSelector: {kubernetes.io/hostname: node2}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
";

#[test]
fn a_limited_pod_gets_its_rate_on_every_way_and_others_what_there_is() {
    let Some(lab) = two_nodes("limits", |_| {}) else { return };
    lab.apply(MANIFESTS).unwrap();
    let pods = lab.wait_for_pods("default", "app", "limits", 5).unwrap();
    let address = |name: &str| -> SocketAddr {
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
        let ip: IpAddr = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
        SocketAddr::new(ip, 8080)
    };
    let nodes = lab.nodes().unwrap();
    let node1 = nodes.iter().find(|node| node.name == "node1").unwrap().addresses[0];
    let pod = |name: &str| Target::Pod { namespace: "default".to_owned(), name: name.to_owned() };
    let node = || Target::Node { node: "node1".to_owned() };
    let host_port = |port| SocketAddr::new(node1, port);

    for (who, server) in [
        (pod("near"), address("sender")),
        (pod("far"), address("sender")),
        (node(), address("sender")),
        (Target::Client, host_port(8081)),
        (pod("receiver"), address("near")),
        (pod("receiver"), address("far")),
        (pod("receiver"), host_port(8082)),
        (pod("receiver"), SocketAddr::new(node1, 8090)),
    ] {
        let rate = rate(&lab, &who, server);
        println!("{who:?} from {server}: {:.2} of the limit", rate / LIMIT);
        // TCP is free to stay below, and a burst comes on top.
        assert!(rate < 1.3 * LIMIT, "{who:?} from {server}: {rate} bits a second");
        assert!(rate > 0.3 * LIMIT, "{who:?} from {server}: {rate} bits a second");
    }
    // Each direction is limited on its own, and nobody else is.
    for (who, server) in [
        (pod("sender"), address("near")),
        (pod("near"), address("receiver")),
        (pod("near"), address("far")),
        (Target::Client, host_port(8082)),
    ] {
        let rate = rate(&lab, &who, server);
        assert!(rate > 4.0 * LIMIT, "{who:?} from {server}: {rate} bits a second");
    }
    let drops = lab.exec(node(), &["curl", "-sS", "http://127.0.0.1:10249/metrics"]).unwrap();
    let metrics = String::from_utf8(drops.stdout).unwrap();
    for reason in ["egress_rate", "ingress_rate"] {
        let counted = metrics.lines().find(|line| line.contains(reason));
        let counted = counted.unwrap_or_else(|| panic!("no {reason} in {metrics}"));
        assert!(!counted.ends_with(" 0"), "{counted}");
    }
}

/// Bits a second of a download.
fn rate(lab: &Lab, who: &Target, server: SocketAddr) -> f64 {
    let url = format!("http://{server}/bytes?count={SIZE}");
    let format = "%{size_download} %{time_total}";
    let words = ["curl", "-gsSf", "--max-time", "40", "-o", "/dev/null", "-w", format, &url];
    let output = lab.exec(who.clone(), &words).unwrap();
    assert!(output.status.success(), "{who:?} from {server}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (size, time) = text.split_once(' ').unwrap();
    assert_eq!(size.parse::<u32>().unwrap(), SIZE);
    f64::from(SIZE) * 8.0 / time.parse::<f64>().unwrap()
}
