//! SCTP by real sockets, on a kernel that has them: pods, Services, node ports, host ports and
//! masquerade, in both families, whoever makes the checksums.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::Duration;

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::apps::sctp;
use fairway_tests::binaries::binaries;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, Options, may_run, unique_name};

const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web}}
spec:
  nodeName: node1
  containers:
  - name: c
    image: agnhost
    ports: [{containerPort: 8080}, {containerPort: 9000, hostPort: 9001, protocol: SCTP}]
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: web, only: two}}
spec:
  nodeName: node2
  containers:
  - name: c
    image: agnhost
    ports: [{containerPort: 8080}, {containerPort: 9000, protocol: SCTP}]
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 90, targetPort: 9000, protocol: SCTP}]
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {only: two}
  ports: [{port: 90, targetPort: 9000, nodePort: 30090, protocol: SCTP}]
";

const PORT: u16 = 9000;
const HOST_PORT: u16 = 9001;
const NODE_PORT: u16 = 30_090;
/// The outside client's addresses.
const CLIENT: [&str; 2] = ["192.168.250.2", "fd00:240:a::2"];

/// For a server to listen, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn associations_are_translated_in_both_families() {
    let Some(lab) = lab() else { return };
    let _server = Server::start(&lab);
    // Between devices like a lab's, no packet has a checksum unless it goes through the tunnel, and what
    // a socket sends at once goes as a list of parts.
    lists_arrive(&lab);
    // From a list of parts that the tunnel makes too long for the way, the kernel cuts parts with a wrong
    // one, and they are sent again.
    let before = refused(&lab);
    // Each packet's sender makes it now, and its receiver looks at it.
    for who in [pod("one"), pod("two"), Target::Client] {
        let output = lab.exec(who, &["ethtool", "-K", "eth0", "tx", "off"]).unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    everybody_is_answered(&lab);
    assert_eq!(refused(&lab), before);
}

/// Through the tunnel, to an endpoint for which the parts are too long, and to the outside.
#[track_caller]
fn lists_arrive(lab: &Lab) {
    let (one, node1) = (pod_ips(lab, "one"), &lab.nodes().unwrap()[0].addresses);
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let of = |addresses: &[IpAddr]| *addresses.iter().find(|ip| family(ip)).unwrap();
        is_answered(lab, &pod("two"), (of(&one), PORT), "one");
        is_answered(lab, &Target::Client, (of(node1), NODE_PORT), "two");
        let outside = (of(&client()), PORT);
        let long = "0123456789".repeat(1000);
        assert_eq!(ask(lab, &pod("two"), outside, &[&format!("echo {long}")]), long + "\n");
    }
}

#[track_caller]
fn everybody_is_answered(lab: &Lab) {
    let both = cluster_ips(lab, "both");
    let one = pod_ips(lab, "one");
    let two = pod_ips(lab, "two");
    let nodes = lab.nodes().unwrap();
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let of = |addresses: &[IpAddr]| *addresses.iter().find(|ip| family(ip)).unwrap();
        let [node1, node2] = [0, 1].map(|number| of(&nodes[number].addresses));

        // From pod to pod nothing changes, and so a node's own processes reach pods, too.
        let node = Target::Node { node: "node2".to_owned() };
        is_answered(lab, &pod("two"), (of(&one), PORT), "one");
        is_answered(lab, &node, (of(&one), PORT), "one");

        // A Service: by its endpoint here, and by the one behind the tunnel.
        let mut seen = BTreeSet::new();
        for _ in 0..MOST {
            seen.insert(ask(lab, &pod("one"), (of(&both), 90), &["hostname"]));
            if seen.len() == 2 {
                break;
            }
        }
        assert_eq!(seen, ["one\n", "two\n"].map(str::to_owned).into());

        // A node port: of the node that has the endpoint, which sees the client, and of the other one.
        is_answered(lab, &Target::Client, (node1, NODE_PORT), "two");
        is_answered(lab, &Target::Client, (node2, NODE_PORT), "two");
        assert_eq!(seen_by(lab, &Target::Client, (node2, NODE_PORT)), of(&client()));
        is_answered(lab, &pod("one"), (node2, NODE_PORT), "two");

        // A host port: from outside, and from a pod of another node.
        is_answered(lab, &Target::Client, (node1, HOST_PORT), "one");
        is_answered(lab, &pod("two"), (node1, HOST_PORT), "one");

        // The outside sees a pod as its node.
        assert_eq!(seen_by(lab, &pod("two"), (of(&client()), PORT)), node2);
        assert_eq!(of(&two), seen_by(lab, &pod("two"), (of(&one), PORT)));
    }
}

/// That one of two is missed has a chance of one in 10^18.
const MOST: usize = 60;

/// Asks who answers, and for something that takes many packets each way, with chunks of all lengths.
#[track_caller]
fn is_answered(lab: &Lab, from: &Target, server: (IpAddr, u16), name: &str) {
    let long = "0123456789".repeat(1000);
    let questions = [format!("echo {long}"), "hostname".to_owned(), "echo a".to_owned()];
    let answer = ask(lab, from, server, &questions.each_ref().map(String::as_str));
    assert!(answer == format!("{long}\n{name}\na\n"), "{from:?} asks {server:?}: {answer}");
}

/// As whom the server sees who asks.
#[track_caller]
fn seen_by(lab: &Lab, from: &Target, server: (IpAddr, u16)) -> IpAddr {
    let answer = ask(lab, from, server, &["clientip"]);
    answer.trim().parse::<SocketAddr>().unwrap().ip()
}

#[track_caller]
fn ask(lab: &Lab, from: &Target, server: (IpAddr, u16), questions: &[&str]) -> String {
    let answer = lab.ask_sctp(from.clone(), server.into(), questions);
    answer.unwrap_or_else(|error| panic!("{from:?} asks {server:?}: {error:#}"))
}

/// Who has received packets whose checksum was wrong, and how many.
fn refused(lab: &Lab) -> Vec<String> {
    let everybody = [pod("one"), pod("two"), Target::Client];
    let shown = everybody.into_iter().flat_map(|who| {
        let output = lab.exec(who.clone(), &["cat", "/proc/net/sctp/snmp"]).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("SctpChecksumErrors"), "{who:?}: {text}");
        let bad = text.lines().filter(|line| line.starts_with("SctpChecksumErrors"));
        let bad = bad.filter(|line| line.split_whitespace().nth(1) != Some("0"));
        bad.map(|line| format!("{who:?}: {line}")).collect::<Vec<_>>()
    });
    shown.collect()
}

fn client() -> [IpAddr; 2] {
    CLIENT.map(|address| address.parse().unwrap())
}

fn pod(name: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: name.to_owned() }
}

fn pod_ips(lab: &Lab, name: &str) -> Vec<IpAddr> {
    let pods = lab.pods("default", "app", "web").unwrap();
    let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
    let ips = pod["status"]["podIPs"].as_array().unwrap().iter();
    ips.map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect()
}

fn cluster_ips(lab: &Lab, name: &str) -> Vec<IpAddr> {
    let service = ObjectName::new("default", name);
    lab.model().unwrap().services.remove(&service).unwrap().cluster_ips.clone()
}

/// Two nodes with a router between them, or nothing where the kernel lacks what this is about.
fn lab() -> Option<Lab> {
    if !may_run("sctp") {
        return None;
    }
    if !sctp::kernel_has_it().unwrap() {
        eprintln!("NOT RUN: this kernel has no SCTP; cargo xtask guest runs it on one that has");
        return None;
    }
    let options = Options {
        nodes: 2,
        subnets: 2,
        pod_cidr: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        service_cidr: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..Options::named(unique_name("sctp"))
    };
    let lab = Lab::up(options).unwrap();
    lab.apply(MANIFESTS).unwrap();
    lab.wait_for_pods("default", "app", "web", 2).unwrap();
    lab.wait_for_endpoints(&ObjectName::new("default", "both"), 4).unwrap();
    lab.wait_for_endpoints(&ObjectName::new("default", "two"), 2).unwrap();
    Some(lab)
}

/// A server beside the outside client; gone with this value.
struct Server(Child);

impl Server {
    fn start(lab: &Lab) -> Self {
        let program = binaries().unwrap().join("fairway-lab");
        let mut command = lab.command(Target::Client, program.to_str().unwrap()).unwrap();
        command.args(["app", "netexec", "--sctp-port", &PORT.to_string()]);
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let server = Self(server);
        wait_until(PATIENCE, "the client's server", || {
            lab.ask_sctp(Target::Client, (client()[0], PORT).into(), &["hostname"])?;
            lab.ask_sctp(Target::Client, (client()[1], PORT).into(), &["hostname"]).map(|_| true)
        })
        .unwrap();
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
