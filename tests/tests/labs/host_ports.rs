//! Host ports: from everywhere that may ask for one, to the pod behind it, in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Key, Kind, Lab, Options, two_nodes};

/// News reach a node's kernel, and a client that asks again its new server, within this time.
const SOON: Duration = Duration::from_secs(10);

const CLIENTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: client}}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: client}}
spec:
  nodeSelector: {kubernetes.io/hostname: node2}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
";

/// A server on node1 with these ports.
fn server(name: &str, ports: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: node1}}
  terminationGracePeriodSeconds: 0
  containers: [{{name: c, image: agnhost, ports: [{ports}]}}]
"
    )
}

const BOTH: &str = "{containerPort: 8080, hostPort: 8081},
    {containerPort: 5353, hostPort: 5300, protocol: UDP}";

#[test]
fn a_host_port_is_open_to_everybody_and_outlives_agents_and_pods() {
    let Some(lab) = two_nodes("ports", Options::dual_stack) else { return };
    lab.apply(CLIENTS).unwrap();
    lab.apply(&server("web", BOTH)).unwrap();
    lab.wait_for_pods("default", "app", "client", 2).unwrap();
    lab.wait_for_pods("default", "app", "web", 1).unwrap();
    open_to_everybody(&lab, "web");
    client_addresses_are_kept(&lab);

    for kill in [false, true] {
        lab.restart_agent("node1", kill).unwrap();
        open_to_everybody(&lab, "web");
    }

    // A client that asks from one port again and again reaches the next pod with the port, too.
    let v4 = SocketAddr::new(node_address(&lab, Ipv4Addr::LOCALHOST.into()), 5300);
    assert_eq!(ask_from(&lab, v4, 40_000).unwrap(), "web\n");
    lab.delete(vec![Key::new(Kind::Pod, "default", "web")], false).unwrap();
    wait_until(SOON, "the port to be closed", || Ok(ask_from(&lab, v4, 40_000).is_err())).unwrap();
    refused_everywhere(&lab);
    lab.apply(&server("heir", BOTH)).unwrap();
    lab.wait_for_pods("default", "app", "heir", 1).unwrap();
    wait_until(SOON, "the next pod's answer", || {
        Ok(ask_from(&lab, v4, 40_000).is_ok_and(|answer| answer == "heir\n"))
    })
    .unwrap();
    open_to_everybody(&lab, "heir");
}

#[test]
fn a_host_ip_keeps_a_port_to_its_address() {
    let Some(lab) = two_nodes("hostip", Options::dual_stack) else { return };
    let address = node_address(&lab, Ipv4Addr::LOCALHOST.into());
    let ports = format!(
        "{{containerPort: 8080, hostPort: 8081, hostIP: {address}}},
        {{containerPort: 9090, hostPort: 9091, hostIP: 127.0.0.1}},
        {{containerPort: 7070, hostPort: 7071, hostIP: \"::\"}}"
    );
    lab.apply(&server("web", &ports)).unwrap();
    lab.wait_for_pods("default", "app", "web", 1).unwrap();
    let get = |from: &Target, address: IpAddr, port: u16| {
        let url = format!("http://{}/hostname", SocketAddr::new(address, port));
        lab.get(from.clone(), &url)
    };
    let (loopback, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into());
    let other = node_address(&lab, v6);
    assert_eq!(get(&Target::Client, address, 8081).unwrap(), "web");
    assert!(get(&node("node1"), loopback, 8081).is_err());
    assert!(get(&Target::Client, other, 8081).is_err());
    assert_eq!(get(&node("node1"), loopback, 9091).unwrap(), "web");
    assert!(get(&Target::Client, address, 9091).is_err());
    assert_eq!(get(&Target::Client, other, 7071).unwrap(), "web");
    assert_eq!(get(&node("node1"), v6, 7071).unwrap(), "web");
    assert!(get(&Target::Client, address, 7071).is_err());
}

/// From the outside, from pods here and there, from the nodes themselves, and from the pod behind
/// the port: on the node's addresses, and on its loopback addresses.
#[track_caller]
fn open_to_everybody(lab: &Lab, server: &str) {
    for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let address = node_address(lab, loopback);
        let everybody =
            [Target::Client, pod("near"), pod("far"), node("node1"), node("node2"), pod(server)];
        for from in everybody {
            answers(lab, &from, address, server);
        }
        answers(lab, &node("node1"), loopback, server);
        // A pod's loopback address is its own, and another node's port another one.
        for from in [pod("near"), pod(server), node("node2")] {
            let url = format!("http://{}/hostname", SocketAddr::new(loopback, 8081));
            assert!(lab.get(from.clone(), &url).is_err(), "{from:?} at {url}");
        }
    }
}

#[track_caller]
fn answers(lab: &Lab, from: &Target, address: IpAddr, server: &str) {
    let url = format!("http://{}/hostname", SocketAddr::new(address, 8081));
    let answer = lab.get(from.clone(), &url);
    assert_eq!(answer.unwrap_or_else(|error| panic!("{from:?} at {url}: {error:#}")), server);
    let udp = SocketAddr::new(address, 5300);
    for options in [&[][..], &["--unconnected"]] {
        let answer = ask(lab, from, udp, options);
        let answer = answer.unwrap_or_else(|error| panic!("{from:?} at {udp}: {error:#}"));
        assert_eq!(answer, format!("{server}\n"));
    }
}

/// The endpoint of a host port is on the node that was asked: nothing has to be masqueraded.
fn client_addresses_are_kept(lab: &Lab) {
    let address = node_address(lab, Ipv4Addr::LOCALHOST.into());
    let url = format!("http://{address}:8081/clientip");
    let seen: SocketAddr = lab.get(Target::Client, &url).unwrap().parse().unwrap();
    let own = lab.exec(Target::Client, &["hostname", "-I"]).unwrap();
    let own = String::from_utf8(own.stdout).unwrap();
    assert!(own.split_whitespace().any(|ip| ip == seen.ip().to_string()), "{seen} of {own}");
}

fn refused_everywhere(lab: &Lab) {
    let address = node_address(lab, Ipv4Addr::LOCALHOST.into());
    let loopback = Ipv4Addr::LOCALHOST.into();
    for (from, address) in
        [(Target::Client, address), (pod("far"), address), (node("node1"), loopback)]
    {
        let url = format!("http://{}/", SocketAddr::new(address, 8081));
        let output = lab.exec(from.clone(), &["curl", "-sS", "--max-time", "5", &url]).unwrap();
        // 7: could not connect; 28 would be a timeout.
        assert_eq!(output.status.code(), Some(7), "from {from:?}: {output:?}");
    }
}

fn ask_from(lab: &Lab, server: SocketAddr, port: u16) -> Result<String> {
    ask(lab, &Target::Client, server, &["--timeout", "500", "--from-port", &port.to_string()])
}

fn ask(lab: &Lab, from: &Target, server: SocketAddr, options: &[&str]) -> Result<String> {
    lab.ask_udp_with(from.clone(), server, "hostname", options)
}

/// node1's address of the family of `like`.
fn node_address(lab: &Lab, like: IpAddr) -> IpAddr {
    let nodes = lab.nodes().unwrap();
    let node = nodes.iter().find(|node| node.name == "node1").unwrap();
    *node.addresses.iter().find(|ip| ip.is_ipv4() == like.is_ipv4()).unwrap()
}

fn pod(name: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: name.to_owned() }
}

fn node(name: &str) -> Target {
    Target::Node { node: name.to_owned() }
}
