//! A cluster that moves from flannel to Fairway node by node: classic VXLAN (a forwarding entry, a
//! neighbour and a route for each peer) on one node, Fairway on the others.

use std::net::{IpAddr, SocketAddr};

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::{Backend, Key, Kind, Lab, Options, may_run, unique_name};
use serde_json::Value;

/// The one that is flannel's at first.
const LAST: &str = "node3";

fn pod(name: &str, node: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: server, image: agnhost, ports: [{{containerPort: 8080}}]}}]
"
    )
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

#[test]
fn a_node_is_converted_while_traffic_flows_between_the_others() {
    if !may_run("flannel") {
        return;
    }
    let options = Options {
        backend: Backend::Vxlan,
        flannel_nodes: 1,
        pod_cidr: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        service_cidr: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..Options::named(unique_name("flannel"))
    };
    let lab = Lab::up(options).unwrap();
    for node in ["node1", "node2"] {
        // Who does not expect the answers of a peer by the device they come from drops them.
        let words = ["sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1"];
        let on_node = Target::Node { node: node.to_owned() };
        assert!(lab.exec(on_node, &words).unwrap().status.success());
    }
    let manifests = [SERVICE.to_owned(), pod("a", "node1"), pod("b", "node2"), pod("c", LAST)];
    lab.apply(&manifests.concat()).unwrap();
    let pods = lab.wait_for_pods("default", "app", "web", 3).unwrap();
    let web = ObjectName::new("default", "web");
    lab.wait_for_endpoints(&web, 6).unwrap();
    assert_eq!(mac_of_overlay(&lab, LAST).as_deref(), Some("ce:a2:f5:01:00:02"));
    pods_and_nodes_reach_each_other(&lab, &pods);

    let stay = address(&pods, "b", IpAddr::is_ipv4);
    let stream = lab.start_stream(beside("a"), SocketAddr::new(stay, 8080)).unwrap();
    let load = lab.start_load(beside("a"), &[format!("http://{stay}:8080/hostname")], 100, 4);
    let load = load.unwrap();
    lab.delete(vec![Key::new(Kind::Pod, "default", "c")], false).unwrap();
    lab.convert(LAST).unwrap();
    lab.apply(&pod("c", LAST)).unwrap();
    let pods = lab.wait_for_pods("default", "app", "web", 3).unwrap();
    lab.wait_for_endpoints(&web, 6).unwrap();
    let (stream, load) = (stream.finish().unwrap(), load.finish().unwrap());
    assert!(stream.error.is_none() && stream.answered > 0, "{stream:?}");
    assert!(load.failed == 0 && load.ok > 0, "{load:?}");

    assert_eq!(mac_of_overlay(&lab, LAST), None);
    pods_and_nodes_reach_each_other(&lab, &pods);
}

/// In both families, with packets of any size, each seeing the other's own address.
fn pods_and_nodes_reach_each_other(lab: &Lab, pods: &[Value]) {
    let long = "0123456789".repeat(2000);
    for is_family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        for to in ["a", "b", "c"] {
            let to = SocketAddr::new(address(pods, to, is_family), 8080);
            for from in ["a", "b", "c"] {
                let own = address(pods, from, is_family);
                let seen = lab.get(beside(from), &format!("http://{to}/clientip")).unwrap();
                let seen: SocketAddr = seen.trim().parse().unwrap();
                assert_eq!(seen.ip(), own, "from {from} to {to}");
                let url = format!("http://{to}/echo?msg={long}");
                assert_eq!(lab.get(beside(from), &url).unwrap(), long, "from {from} to {to}");
            }
            for node in ["node1", "node2", LAST] {
                let from = Target::Node { node: node.to_owned() };
                let url = format!("http://{to}/echo?msg={long}");
                assert_eq!(lab.get(from, &url).unwrap(), long, "from {node} to {to}");
            }
        }
    }
}

fn beside(pod: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: pod.to_owned() }
}

fn address(pods: &[Value], name: &str, is_family: fn(&IpAddr) -> bool) -> IpAddr {
    let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
    let addresses = pod["status"]["podIPs"].as_array().unwrap().iter();
    let mut addresses = addresses.map(|ip| ip["ip"].as_str().unwrap().parse().unwrap());
    addresses.find(is_family).unwrap()
}

/// Of flannel's device on a node; none if it has none.
fn mac_of_overlay(lab: &Lab, node: &str) -> Option<String> {
    let on_node = Target::Node { node: node.to_owned() };
    let words = ["ip", "-o", "link", "show", "flannel.1"];
    let output = lab.exec(on_node, &words).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mac = text.split("link/ether ").nth(1)?.split(' ').next()?;
    Some(mac.to_owned())
}
