//! Services of every shape, in one lab of three nodes that all tests of this file share.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use fairway_model::{ObjectName, Service};
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Key, Kind, Lab, Options, may_run};

/// How long a load goes on after something has happened.
const AFTERMATH: Duration = Duration::from_secs(1);
/// News of an object reach every node's kernel within this time.
const NEWS: Duration = Duration::from_secs(5);

/// Three servers, one a node, behind Services of every shape. One container port has a name that
/// means another number in the "other" pods.
const MANIFESTS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: server
        image: registry.k8s.io/e2e-test-images/agnhost:2.53
        ports:
        - {name: http, containerPort: 8080}
        - {name: admin, containerPort: 9090}
        - {name: dns, containerPort: 5353, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata: {name: other, labels: {app: web, kind: other}}
spec:
  containers:
  - name: server
    image: agnhost
    ports:
    - {name: http, containerPort: 8081}
    - {name: admin, containerPort: 9090}
    - {name: dns, containerPort: 5353, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: multi}
spec:
  type: NodePort
  selector: {app: web}
  ports:
  - {name: web, port: 80, targetPort: http}
  - {name: admin, port: 81, targetPort: 9090}
  - {name: dns, port: 53, targetPort: dns, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: plain}
spec:
  selector: {app: web}
  ports: [{port: 8000, targetPort: 9090}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  type: NodePort
  selector: {app: nobody}
  ports:
  - {name: web, port: 80}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  replicas: 3
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      containers: [{name: server, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: busy}
spec:
  type: NodePort
  selector: {app: busy}
  ports: [{port: 80, targetPort: 8080}]
";

/// A pod may ask for a Service before its node has heard of it.
#[test]
fn a_connection_begun_before_its_service_is_known_reaches_it() {
    const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: late}
spec:
  clusterIP: 10.96.250.250
  selector: {app: web}
  ports: [{port: 80, targetPort: 9090}]
";
    let Some(lab) = lab() else { return };
    // The router between the nodes keeps silent instead of saying that there is no such network.
    let words = ["ip", "route", "replace", "blackhole", "10.96.250.250/32"];
    assert!(lab.exec(Target::Controlplane, &words).unwrap().status.success());
    let child = lab
        .command(pod("other"), "curl")
        .unwrap()
        .args(["--silent", "--max-time", "20", "http://10.96.250.250/hostname"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The first packet has left, and nobody knows the address.
    wait_until(NEWS, "the pod's connection to be on its way", || {
        let sockets = lab.exec(pod("other"), &["cat", "/proc/net/tcp"])?;
        // The destination in the order of /proc/net/tcp, in state SYN_SENT.
        let text = String::from_utf8_lossy(&sockets.stdout).into_owned();
        Ok(text.contains("FAFA600A:0050 02"))
    })
    .unwrap();
    lab.apply(SERVICE).unwrap();
    let output = child.wait_with_output().unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(answer.starts_with("web-") || answer == "other", "{answer:?}, {}", output.status);
}

#[test]
fn a_cluster_ip_reaches_every_endpoint_from_pods_and_nodes() {
    let Some(lab) = lab() else { return };
    let address = format!("http://{}:8000/hostname", cluster_ip(lab, "plain"));
    for (from, url) in [
        (pod("other"), "http://plain:8000/hostname"),
        (pod("other"), &address),
        (node("node1"), &address),
        (node("node3"), &address),
    ] {
        assert_eq!(answers(lab, &from, url).len(), 4, "{url} from {from:?}");
    }
}

#[test]
fn each_port_of_a_service_has_its_own_target() {
    let Some(lab) = lab() else { return };
    let from = pod("other");
    for url in ["http://multi/hostname", "http://multi:81/hostname"] {
        assert_eq!(answers(lab, &from, url).len(), 4, "{url}");
    }
}

#[test]
fn a_named_target_port_may_differ_between_pods() {
    let Some(lab) = lab() else { return };
    let model = lab.model().unwrap();
    let endpoints = &model.endpoints[&name("multi")].ports["web"];
    let ports: BTreeSet<u16> = endpoints.iter().map(|endpoint| endpoint.port).collect();
    assert_eq!(ports, BTreeSet::from([8080, 8081]));
    let url = format!("http://{}/hostname", cluster_ip(lab, "multi"));
    assert!(answers(lab, &node("node2"), &url).contains("other"));
}

#[test]
fn udp_is_balanced_and_the_service_itself_answers() {
    let Some(lab) = lab() else { return };
    let server = SocketAddr::new(cluster_ip(lab, "multi"), 53);
    for from in [pod("other"), node("node1")] {
        let seen = answers_of(|| lab.ask_udp(from.clone(), server, "hostname").unwrap());
        assert_eq!(seen.len(), 4, "from {from:?}: {seen:?}");
    }
    assert_eq!(lab.ask_udp(pod("other"), server, "echo hello").unwrap(), "hello\n");
}

#[test]
fn a_node_port_is_open_on_every_node_by_tcp_and_udp() {
    let Some(lab) = lab() else { return };
    let service = service(lab, "multi");
    let node_port = |name: &str| {
        let mut ports = service.ports.iter();
        ports.find(|port| port.name == name).and_then(|port| port.node_port).unwrap()
    };
    for node in lab.nodes().unwrap() {
        let address = node.addresses[0];
        let url = format!("http://{address}:{}/hostname", node_port("web"));
        assert_eq!(answers(lab, &Target::Client, &url).len(), 4, "{url}");
        let server = SocketAddr::new(address, node_port("dns"));
        for _ in 0..8 {
            let answer = lab.ask_udp(Target::Client, server, "echo hello").unwrap();
            assert_eq!(answer, "hello\n", "{server}");
        }
    }
}

#[test]
fn long_answers_and_questions_arrive_whole() {
    let Some(lab) = lab() else { return };
    let text = "0123456789".repeat(2000);
    let inside = format!("http://plain.default.svc.cluster.local:8000/echo?msg={text}");
    for _ in 0..8 {
        assert_eq!(lab.get(pod("other"), &inside).unwrap(), text);
    }
    let port = service(lab, "busy").ports[0].node_port.unwrap();
    for node in lab.nodes().unwrap() {
        let outside = format!("http://{}:{port}/echo?msg={text}", node.addresses[0]);
        for _ in 0..4 {
            assert_eq!(lab.get(Target::Client, &outside).unwrap(), text);
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    let Some(lab) = lab() else { return };
    wait_until(NEWS, "an answer of the pod that asks", || {
        Ok(lab.get(pod("other"), "http://plain:8000/hostname")? == "other")
    })
    .unwrap();
}

#[test]
fn a_headless_service_has_endpoints_and_no_address() {
    let Some(lab) = lab() else { return };
    let model = lab.model().unwrap();
    assert!(model.services[&name("headless")].cluster_ips.is_empty());
    assert_eq!(model.endpoints[&name("headless")].ports[""].len(), 4);
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let Some(lab) = lab() else { return };
    assert_refused(lab, &pod("other"), "http://nobody/");
    assert_refused(lab, &node("node1"), &format!("http://{}/", cluster_ip(lab, "nobody")));
    let dns = SocketAddr::new(cluster_ip(lab, "nobody"), 53);
    let error = lab.ask_udp(pod("other"), dns, "hostname").unwrap_err();
    assert!(format!("{error:#}").contains("Connection refused"), "{error:#}");
}

/// What no socket of the cluster sends is refused where its packets are seen.
#[test]
fn a_node_port_without_endpoints_refuses_clients_outside() {
    let Some(lab) = lab() else { return };
    let ports = service(lab, "nobody").ports;
    let number = |name| ports.iter().find(|port| port.name == name).unwrap().node_port.unwrap();
    for node in lab.nodes().unwrap() {
        let address = node.addresses[0];
        assert_refused(lab, &Target::Client, &format!("http://{address}:{}/", number("web")));
        let dns = SocketAddr::new(address, number("dns"));
        let error = lab.ask_udp(Target::Client, dns, "hostname").unwrap_err();
        assert!(format!("{error:#}").contains("Connection refused"), "{error:#}");
    }
}

#[test]
fn a_port_that_a_service_does_not_have_is_refused_and_an_address_that_none_has_is_silent() {
    let Some(lab) = lab() else { return };
    assert_refused(lab, &pod("other"), "http://plain:9999/");
    let nowhere = ["curl", "-sS", "--max-time", "1", "http://10.96.255.254/"];
    let output = lab.exec(pod("other"), &nowhere).unwrap();
    assert_eq!(output.status.code(), Some(TIMED_OUT), "{output:?}");
}

/// What curl answers when it could not connect, and when its time was over.
const REFUSED: i32 = 7;
const TIMED_OUT: i32 = 28;

fn assert_refused(lab: &Lab, from: &Target, url: &str) {
    let output = lab.exec(from.clone(), &["curl", "-sS", "--max-time", "5", url]).unwrap();
    assert_eq!(output.status.code(), Some(REFUSED), "{url} from {from:?}: {output:?}");
}

/// All that disturbs runs in one test, so that the disturbances do not overlap.
#[test]
fn nothing_is_lost_when_agents_and_pods_come_and_go() {
    let Some(lab) = lab() else { return };
    let undisturbed = |what: &str, disturb: &dyn Fn()| {
        let inside = vec![format!("http://{}/hostname?delay=20", cluster_ip(lab, "busy"))];
        let port = service(lab, "busy").ports[0].node_port.unwrap();
        let nodes = lab.nodes().unwrap().into_iter();
        let outside: Vec<String> = nodes
            .map(|node| format!("http://{}:{port}/hostname?delay=20", node.addresses[0]))
            .collect();
        let loads = [
            lab.start_load(pod("other"), &inside, 100, 4).unwrap(),
            lab.start_load(Target::Client, &outside, 100, 8).unwrap(),
        ];
        disturb();
        thread::sleep(AFTERMATH);
        for load in loads {
            let summary = load.finish().unwrap();
            assert!(summary.ok > 0, "{what}: {summary:?}");
            assert_eq!(summary.failed, 0, "{what}: {summary:?}");
        }
    };
    let endpoints = |count: usize| lab.wait_for_endpoints(&name("busy"), count).unwrap();
    lab.wait_for_pods("default", "app", "busy", 3).unwrap();
    endpoints(3);

    undisturbed("agents stop and start", &|| {
        for node in lab.nodes().unwrap() {
            lab.restart_agent(&node.name, false).unwrap();
        }
    });
    undisturbed("agents are killed", &|| {
        for node in lab.nodes().unwrap() {
            lab.restart_agent(&node.name, true).unwrap();
        }
    });
    undisturbed("a pod is deleted and replaced", &|| {
        let victim = lab.pods("default", "app", "busy").unwrap().remove(0);
        let name = victim["metadata"]["name"].as_str().unwrap();
        lab.delete(vec![Key::new(Kind::Pod, "default", name)], false).unwrap();
        lab.wait_for_pods("default", "app", "busy", 3).unwrap();
    });
    undisturbed("the Service grows and shrinks", &|| {
        let busy = || Key::new(Kind::Deployment, "default", "busy");
        lab.scale(busy(), 6).unwrap();
        lab.wait_for_pods("default", "app", "busy", 6).unwrap();
        endpoints(6);
        lab.scale(busy(), 2).unwrap();
        lab.wait_for_pods("default", "app", "busy", 2).unwrap();
        endpoints(2);
    });
    undisturbed("a Deployment is rolled", &|| {
        let next = MANIFESTS
            .split("---")
            .find(|document| document.contains("kind: Deployment"))
            .unwrap()
            .replace("image: agnhost", "image: agnhost:next");
        lab.apply(&next).unwrap();
        wait_until(Duration::from_secs(60), "the new pods", || {
            let pods = lab.pods("default", "app", "busy")?;
            let is_new =
                |pod: &serde_json::Value| pod["spec"]["containers"][0]["image"] == "agnhost:next";
            Ok(pods.len() == 3 && pods.iter().all(is_new))
        })
        .unwrap();
        lab.wait_for_pods("default", "app", "busy", 3).unwrap();
    });
    for node in lab.nodes().unwrap() {
        assert!(node.ready, "{node:?}");
        assert_eq!(node.agent_restarts, 2, "{node:?}");
    }
}

/// The lab of this file. It ends with the process: statics are not dropped, but the pipe that ties
/// the lab to the process closes.
fn lab() -> Option<&'static Lab> {
    static LAB: OnceLock<Option<Lab>> = OnceLock::new();
    LAB.get_or_init(|| {
        if !may_run("services") {
            return None;
        }
        let lab = Lab::up(Options::named(fairway_tests::unique_name("services"))).unwrap();
        lab.apply(MANIFESTS).unwrap();
        lab.wait_for_pods("default", "app", "web", 4).unwrap();
        for service in ["multi", "plain", "headless"] {
            lab.wait_for_endpoints(&name(service), 4).unwrap();
        }
        lab.wait_for_endpoints(&name("busy"), 3).unwrap();
        Some(lab)
    })
    .as_ref()
}

/// Which pods answer, asked until all of them have, or long enough.
fn answers(lab: &Lab, from: &Target, url: &str) -> BTreeSet<String> {
    answers_of(|| lab.get(from.clone(), url).unwrap())
}

/// That one of four is missed has a chance of one in 10^49.
fn answers_of(ask: impl Fn() -> String) -> BTreeSet<String> {
    const ALL: usize = 4;
    const ENOUGH: usize = 400;
    let mut seen = BTreeSet::new();
    for _ in 0..ENOUGH {
        seen.insert(ask());
        if seen.len() >= ALL {
            break;
        }
    }
    seen
}

fn cluster_ip(lab: &Lab, service_name: &str) -> IpAddr {
    service(lab, service_name).cluster_ips[0]
}

fn service(lab: &Lab, service_name: &str) -> Service {
    lab.model().unwrap().services[&name(service_name)].clone()
}

fn name(service: &str) -> ObjectName {
    ObjectName::new("default", service)
}

fn pod(name: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: name.to_owned() }
}

fn node(name: &str) -> Target {
    Target::Node { node: name.to_owned() }
}
