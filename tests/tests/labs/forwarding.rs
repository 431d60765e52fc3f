//! Clients from outside keep their address on the way to an endpoint of another node than the one that
//! they asked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Backend, Lab, Options, may_run, unique_name};

/// For a server to listen, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server on node2, and node ports that lead to it in each way; clients ask node1 for them.
const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec:
  nodeSelector: {kubernetes.io/hostname: node2}
  containers:
  - name: server
    image: agnhost
    ports: [{containerPort: 8080}, {containerPort: 5353, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: snat}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: far}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: udp, port: 53, targetPort: 5353, nodePort: 30053, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: keep, annotations: {fairway.dev/forwarding: keep}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: far}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 31080}
  - {name: udp, port: 53, targetPort: 5353, nodePort: 31053, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: dsr, annotations: {fairway.dev/forwarding: dsr}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: far}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 32080}
  - {name: udp, port: 53, targetPort: 5353, nodePort: 32053, protocol: UDP}
";

/// The number of a Service's node port for HTTP, and the same for UDP.
type Ports = (u16, u16);

const SNAT: Ports = (30_080, 30_053);
const KEEP: Ports = (31_080, 31_053);
const DSR: Ports = (32_080, 32_053);

#[test]
fn clients_keep_their_address_through_the_tunnel() {
    let Some(lab) = lab("keep", Backend::Vxlan) else { return };
    for (asked, client) in ends(&lab) {
        assert_ne!(seen(&lab, asked, SNAT), [client; 2]);
        assert_eq!(seen(&lab, asked, KEEP), [client; 2]);
    }
    goes_on(&lab, KEEP, "answers through 10.244.0.0");
    answers_directly(&lab);
}

#[test]
fn endpoints_answer_clients_directly_by_plain_routes() {
    let Some(lab) = lab("dsr", Backend::HostGw) else { return };
    for (asked, client) in ends(&lab) {
        // On a plain route, answers would not come back through the node that was asked.
        for ports in [SNAT, KEEP] {
            assert_ne!(seen(&lab, asked, ports), [client; 2]);
        }
    }
    answers_directly(&lab);
}

/// What node2 answers never comes by node1.
fn answers_directly(lab: &Lab) {
    for (asked, client) in ends(lab) {
        // Whether the client's device makes checksums, which nobody looks at here, or the client itself.
        for checksums in ["off", "on"] {
            let words = ["ethtool", "-K", "eth0", "tx", checksums];
            assert!(lab.exec(Target::Client, &words).unwrap().status.success());
            assert_eq!(seen(lab, asked, DSR), [client; 2]);
        }
        for (ports, comes_by) in [(SNAT, true), (DSR, false)] {
            let before = sent_by_node1(lab);
            let url = format!("http://{}/bytes?count=1000000", SocketAddr::new(asked, ports.0));
            assert_eq!(lab.get(Target::Client, &url).unwrap().len(), 1_000_000);
            let sent = sent_by_node1(lab) - before;
            assert_eq!(sent > 500_000, comes_by, "node1 sent {sent} bytes on");
        }
    }
    goes_on(lab, DSR, &format!("answers as {}", (SocketAddr::new(ends(lab)[0].0, DSR.0))));
}

/// How many bytes have left node1 by its uplink.
fn sent_by_node1(lab: &Lab) -> u64 {
    const SENT: usize = 8; // behind eight numbers about what was received
    let node1 = Target::Node { node: "node1".to_owned() };
    let output = lab.exec(node1, &["cat", "/proc/net/dev"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let numbers = lines.find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
    numbers.split_whitespace().nth(SENT).unwrap().parse().unwrap()
}

/// A connection outlives the agents of both nodes, and long packets arrive. `says` is what node2 tells of
/// the flow.
fn goes_on(lab: &Lab, ports: Ports, says: &str) {
    for (asked, _) in ends(lab) {
        let stream = lab.start_stream(Target::Client, (asked, ports.0).into()).unwrap();
        let flows = flows(lab, "node2");
        assert!(!asked.is_ipv4() || flows.contains(says), "{flows}");
        for node in ["node1", "node2"] {
            lab.restart_agent(node, true).unwrap();
        }
        let summary = stream.finish().unwrap();
        assert!(summary.error.is_none() && summary.answered > 1, "{summary:?}");
        let long = "0123456789".repeat(4000);
        let url = format!("http://{}/echo?msg={long}", SocketAddr::new(asked, ports.0));
        assert_eq!(lab.get(Target::Client, &url).unwrap(), long);
        // In pieces, both ways; once the client has heard how long they may be.
        let (server, question) = ((asked, ports.1).into(), format!("echo {}", &long[..4000]));
        wait_until(PATIENCE, "a long datagram's echo", || {
            let answer = lab.ask_udp(Target::Client, server, &question);
            Ok(answer.is_ok_and(|answer| answer.trim_end() == &long[..4000]))
        })
        .unwrap();
    }
}

/// Node1's addresses, and who the client is to each.
fn ends(lab: &Lab) -> Vec<(IpAddr, IpAddr)> {
    let nodes = lab.nodes().unwrap();
    // Whom the endpoint's own node lets in as it is.
    let direct = |asked: &IpAddr| {
        let own = nodes[1].addresses.iter().find(|ip| ip.is_ipv4() == asked.is_ipv4()).unwrap();
        let [client, again] = seen(lab, *own, SNAT);
        assert_eq!(client, again);
        client
    };
    nodes[0].addresses.iter().map(|asked| (*asked, direct(asked))).collect()
}

/// Whom the endpoint sees by TCP and by UDP.
fn seen(lab: &Lab, asked: IpAddr, ports: Ports) -> [IpAddr; 2] {
    let url = format!("http://{}/clientip", SocketAddr::new(asked, ports.0));
    let tcp = lab.get(Target::Client, &url).unwrap();
    let udp = lab.ask_udp(Target::Client, (asked, ports.1).into(), "clientip").unwrap();
    [tcp, udp].map(|seen| seen.trim().parse::<SocketAddr>().unwrap().ip())
}

/// What a node says of its open flows.
fn flows(lab: &Lab, node: &str) -> String {
    let agent = lab.nodes().unwrap().into_iter().find(|n| n.name == node).unwrap().agent_pid;
    let agent = agent.unwrap();
    let program = std::fs::read_link(format!("/proc/{agent}/exe")).unwrap();
    let told = std::fs::read_to_string(format!("/proc/{agent}/cmdline")).unwrap();
    let told: Vec<&str> = told.split('\0').collect();
    let place = ["--bpffs", "--state-dir"].into_iter().flat_map(|option| {
        let at = told.iter().position(|word| *word == option).unwrap();
        [option, told[at + 1]]
    });
    let list = [program.to_str().unwrap(), "conntrack", "list", "--protocol", "tcp"];
    let words: Vec<&str> = list.into_iter().chain(place).collect();
    let output = lab.exec(Target::Node { node: node.to_owned() }, &words).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn lab(name: &str, backend: Backend) -> Option<Lab> {
    if !may_run(name) {
        return None;
    }
    let options = Options {
        backend,
        nodes: 2,
        pod_cidr: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        service_cidr: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..Options::named(unique_name(name))
    };
    let lab = Lab::up(options).unwrap();
    lab.apply(MANIFESTS).unwrap();
    lab.wait_for_pods("default", "app", "far", 1).unwrap();
    for service in ["snat", "keep", "dsr"] {
        lab.wait_for_endpoints(&ObjectName::new("default", service), 2).unwrap();
    }
    let node2 = lab.nodes().unwrap()[1].addresses[0];
    wait_until(PATIENCE, "the server", || {
        let udp = lab.ask_udp(Target::Client, (node2, SNAT.1).into(), "hostname");
        let url = format!("http://{node2}:{}/hostname", SNAT.0);
        Ok(udp.is_ok() && lab.get(Target::Client, &url).is_ok())
    })
    .unwrap();
    Some(lab)
}
