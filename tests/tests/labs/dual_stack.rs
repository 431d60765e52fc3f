//! Pods and Services with an address of each family, and with IPv6 alone.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::{Backend, Lab, Options, may_run, unique_name};

const MANIFESTS: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  replicas: 3
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
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: dns, port: 53, targetPort: 5353, protocol: UDP}
";

#[test]
fn both_families_reach_pods_services_and_node_ports() {
    if !may_run("dual stack") {
        return;
    }
    // Two subnets: both families also go through the tunnel.
    let options = Options {
        subnets: 2,
        pod_cidr: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        service_cidr: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..Options::named(unique_name("dual"))
    };
    let lab = Lab::up(options).unwrap();
    lab.apply(MANIFESTS).unwrap();
    let pods = lab.wait_for_pods("default", "app", "web", 3).unwrap();
    let web = ObjectName::new("default", "web");
    lab.wait_for_endpoints(&web, 6).unwrap();
    let from = Target::Pod { namespace: "default".to_owned(), name: "web-0".to_owned() };

    for pod in &pods {
        let addresses = pod["status"]["podIPs"].as_array().unwrap();
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        for address in addresses {
            let address: IpAddr = address["ip"].as_str().unwrap().parse().unwrap();
            let url = format!("http://{}/hostname", SocketAddr::new(address, 8080));
            assert_eq!(lab.get(from.clone(), &url).unwrap(), pod["metadata"]["name"]);
        }
    }

    let service = lab.model().unwrap().services.remove(&web).unwrap();
    assert_eq!(service.cluster_ips.len(), 2);
    assert_eq!(pods_behind(&lab, &from, "web"), 3, "by its name");
    for address in &service.cluster_ips {
        for beside in [from.clone(), Target::Node { node: "node2".to_owned() }] {
            assert_eq!(pods_behind(&lab, &beside, SocketAddr::new(*address, 80)), 3, "{address}");
            let server = SocketAddr::new(*address, 53);
            assert_eq!(lab.ask_udp(beside, server, "echo hello").unwrap(), "hello\n");
        }
    }
    let port = |name: &str| {
        let mut ports = service.ports.iter();
        ports.find(|port| port.name == name).and_then(|port| port.node_port).unwrap()
    };
    for node in lab.nodes().unwrap() {
        for address in node.addresses {
            let server = SocketAddr::new(address, port("http"));
            assert_eq!(pods_behind(&lab, &Target::Client, server), 3, "{server}");
            let server = SocketAddr::new(address, port("dns"));
            assert_eq!(lab.ask_udp(Target::Client, server, "echo hello").unwrap(), "hello\n");
        }
    }
}

#[test]
fn a_cluster_without_ipv4_works_by_every_backend() {
    if !may_run("IPv6 only") {
        return;
    }
    for backend in [Backend::Auto, Backend::Vxlan, Backend::HostGw] {
        let options = Options {
            backend,
            nodes: 2,
            subnets: 2,
            pod_cidr: vec!["fd00:10:244::/56".parse().unwrap()],
            service_cidr: vec!["fd00:10:96::/112".parse().unwrap()],
            ..Options::named(unique_name("six"))
        };
        let lab = Lab::up(options).unwrap();
        lab.apply(&MANIFESTS.replace("RequireDualStack", "SingleStack")).unwrap();
        let pods = lab.wait_for_pods("default", "app", "web", 3).unwrap();
        let web = ObjectName::new("default", "web");
        lab.wait_for_endpoints(&web, 3).unwrap();
        let from = Target::Pod { namespace: "default".to_owned(), name: "web-0".to_owned() };
        let long = "0123456789".repeat(2000);
        for pod in &pods {
            let address: IpAddr = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
            assert!(address.is_ipv6());
            let url = format!("http://{}/echo?msg={long}", SocketAddr::new(address, 8080));
            for beside in [from.clone(), Target::Node { node: "node2".to_owned() }] {
                assert_eq!(lab.get(beside, &url).unwrap(), long, "{backend:?} to {address}");
            }
        }
        let service = lab.model().unwrap().services.remove(&web).unwrap();
        assert_eq!(service.cluster_ips.len(), 1);
        assert_eq!(pods_behind(&lab, &from, "web.default"), 3, "{backend:?}");
        let port = service.ports[0].node_port.unwrap();
        for node in lab.nodes().unwrap() {
            assert!(node.addresses.iter().all(IpAddr::is_ipv6), "{:?}", node.addresses);
            let server = SocketAddr::new(node.addresses[0], port);
            assert_eq!(pods_behind(&lab, &Target::Client, server), 3, "{backend:?}, {server}");
        }
    }
}

/// How many pods answer behind one address, or a name with a port.
fn pods_behind(lab: &Lab, from: &Target, server: impl Display) -> usize {
    let url = format!("http://{server}/hostname");
    let answers: BTreeSet<String> = (0..40).map(|_| lab.get(from.clone(), &url).unwrap()).collect();
    answers.len()
}
