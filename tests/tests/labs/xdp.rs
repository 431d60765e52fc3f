//! NodePorts taken at the uplink by XDP, in the driver and in the stack.

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::{Lab, Options, Xdp, may_run, unique_name};

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
        image: agnhost
        ports: [{containerPort: 8080}, {containerPort: 5353, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: dns, port: 53, targetPort: 5353, protocol: UDP}
";

#[test]
fn node_ports_in_the_driver() {
    node_ports_reach_both_nodes_pods("native", Xdp::Native);
}

#[test]
fn node_ports_in_the_stack() {
    node_ports_reach_both_nodes_pods("generic", Xdp::Generic);
}

fn node_ports_reach_both_nodes_pods(name: &str, xdp: Xdp) {
    if !may_run(name) {
        return;
    }
    let options = Options { nodes: 2, xdp, ..Options::named(unique_name(name)) };
    let lab = Lab::up(options).unwrap();
    lab.apply(MANIFESTS).unwrap();
    lab.wait_for_pods("default", "app", "web", 2).unwrap();
    let web = ObjectName::new("default", "web");
    lab.wait_for_endpoints(&web, 2).unwrap();
    let service = lab.model().unwrap().services.remove(&web).unwrap();
    let node_port = |name: &str| {
        let mut ports = service.ports.iter();
        ports.find(|port| port.name == name).and_then(|port| port.node_port).unwrap()
    };
    let long = "0123456789".repeat(2000);
    for node in lab.nodes().unwrap() {
        let target = Target::Node { node: node.name.clone() };
        let link = lab.exec(target, &["ip", "link", "show", "dev", "eth0"]).unwrap();
        let link = String::from_utf8_lossy(&link.stdout).into_owned();
        assert!(link.contains("xdp"), "{}: {link}", node.name);

        let address = node.addresses[0];
        let url = |path: &str| format!("http://{address}:{}/{path}", node_port("http"));
        let mut pods = std::collections::BTreeSet::new();
        for _ in 0..24 {
            pods.insert(lab.get(Target::Client, &url("hostname")).unwrap());
        }
        assert_eq!(pods.len(), 2, "{}", node.name);
        for _ in 0..6 {
            assert_eq!(lab.get(Target::Client, &url(&format!("echo?msg={long}"))).unwrap(), long);
            let server = (address, node_port("dns")).into();
            assert_eq!(lab.ask_udp(Target::Client, server, "echo hello").unwrap(), "hello\n");
        }
    }
}
