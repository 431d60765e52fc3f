//! UDP sockets of pods that outlive the endpoint they were connected to.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Key, Kind, Lab, Options, may_run, unique_name};

const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {containers: [{name: c, image: agnhost}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: dns}}
spec: {nodeName: node1, containers: [{name: c, image: agnhost, ports: [{name: dns, containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: other}}
spec: {nodeName: node2, containers: [{name: c, image: agnhost, ports: [{name: dns, containerPort: 5353, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: dns}
spec: {selector: {app: dns}, ports: [{port: 53, targetPort: dns, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {selector: {app: other}, ports: [{port: 53, targetPort: dns, protocol: UDP}]}
";

/// D.5.24: a connected socket whose endpoint no longer serves is ended, so that its owner connects anew;
/// one whose endpoint still serves is left alone.
#[test]
fn a_connected_socket_ends_with_its_endpoint_and_no_other_does() {
    if !may_run("udp_sockets") {
        return;
    }
    let lab = Lab::up(Options { nodes: 2, ..Options::named(unique_name("udpsockets")) }).unwrap();
    lab.apply(MANIFESTS).unwrap();
    for service in ["dns", "other"] {
        lab.wait_for_endpoints(&ObjectName::new("default", service), 1).unwrap();
    }
    let server = |service: &str| {
        let services = lab.model().unwrap().services;
        SocketAddr::new(services[&ObjectName::new("default", service)].cluster_ips[0], 53)
    };
    // A pod with no port but UDP's counts as ready as soon as it runs.
    for service in ["dns", "other"] {
        wait_until(Duration::from_secs(10), "its process to listen", || {
            Ok(lab.ask_udp(pod("client"), server(service), "hostname").is_ok())
        })
        .unwrap();
    }
    let mut doomed = Asking::start(&lab, pod("client"), server("dns"));
    let mut spared = Asking::start(&lab, pod("client"), server("other"));
    let mut of_node = Asking::start(&lab, Target::Node { node: "node1".to_owned() }, server("dns"));
    assert_eq!(doomed.answer(), "one");
    assert_eq!(of_node.answer(), "one");
    assert_eq!(spared.answer(), "two");

    // Another pod takes over, on another node.
    let next = MANIFESTS.split("---").nth(1).unwrap();
    let next = next.replace("name: one", "name: three").replace("node1", "node2");
    lab.apply(&next).unwrap();
    lab.wait_for_endpoints(&ObjectName::new("default", "dns"), 2).unwrap();
    lab.delete(vec![Key::new(Kind::Pod, "default", "one")], true).unwrap();

    for ended in [&mut doomed, &mut of_node] {
        let said = ended.last_words();
        assert!(said.contains("the socket was ended"), "{said}");
    }
    wait_until(Duration::from_secs(10), "the Service to answer again", || {
        Ok(lab.ask_udp(pod("client"), server("dns"), "hostname")?.trim() == "three")
    })
    .unwrap();
    assert_eq!(spared.answer(), "two", "it was asking all the time");
    assert!(spared.child.try_wait().unwrap().is_none(), "and still is");
}

fn pod(name: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: name.to_owned() }
}

/// A process that asks a server again and again on one connected socket.
struct Asking {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Asking {
    fn start(lab: &Lab, from: Target, server: SocketAddr) -> Self {
        let program = lab.program().to_string_lossy().into_owned();
        let mut child = lab
            .command(from, &program)
            .unwrap()
            .args(["app", "udp", &server.to_string(), "hostname", "--every", "50"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// The next answer.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        while line.trim().is_empty() {
            line.clear();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "it has ended");
        }
        line.trim().to_owned()
    }

    /// What it says when it ends, which it does soon.
    fn last_words(&mut self) -> String {
        wait_until(Duration::from_secs(15), "the socket to be ended", || {
            Ok(self.child.try_wait()?.is_some())
        })
        .unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // One that has ended already needs no ending.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
