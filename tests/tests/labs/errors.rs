//! What goes wrong with a packet on its way reaches who sent it, through everything that was translated
//! in between: hop limits, path MTUs, closed ports. And packets in pieces arrive.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use fairway_model::{ObjectName, Service};
use fairway_tests::api::Target;
use fairway_tests::binaries::binaries;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, Options, may_run, unique_name};

/// A server on each node, and Services for ports that it serves and for one that it does not.
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
kind: Pod
metadata: {name: guest, labels: {app: guest}}
spec:
  nodeName: node1
  containers: [{name: server, image: agnhost, ports: [{containerPort: 8080}]}]
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
  - {name: closed, port: 9, targetPort: 9, protocol: UDP}
";

/// The outside client, and the router in front of it.
const CLIENT: [&str; 2] = ["192.168.250.2", "fd00:240:a::2"];
const ROUTER: [&str; 2] = ["192.168.240.1", "fd00:240::1"];

/// Tries to reach every endpoint of a Service at least once.
const TRIES: usize = 16;

#[test]
fn each_hop_answers_for_itself() {
    let Some(lab) = lab() else { return };
    let guest = pod("guest");
    let node = |number: usize, family: usize| lab.nodes().unwrap()[number - 1].addresses[family];
    for family in [0, 1] {
        let here = node(1, family);
        // By the node alone, by routes, by VXLAN, and out of the cluster under the node's address.
        let cases = [
            (address(lab, "node1", family), vec![here]),
            (address(lab, "node3", family), vec![here, node(3, family)]),
            (address(lab, "node2", family), vec![here, overlay(lab, "node2", family)]),
            (parse(CLIENT[family]), vec![here, parse(ROUTER[family])]),
        ];
        for (destination, hops) in cases {
            for (hop_limit, hop) in (1..).zip(&hops) {
                let seen = ping(lab, &guest, destination, &["-t", &hop_limit.to_string()]);
                assert!(seen.tells(*hop, "exceeded"), "{destination} in {hop_limit}: {seen:?}");
            }
            let enough = (hops.len() + 1).to_string();
            let seen = ping(lab, &guest, destination, &["-t", &enough]);
            assert!(seen.answered, "{destination} in {enough}: {seen:?}");
        }
    }
}

#[test]
fn a_client_is_told_when_its_hops_end_at_a_node_port() {
    let Some(lab) = &own_lab("hops") else { return };
    // Two hops take it past the router and no further than the node.
    for (node, hops, reaches) in
        [("node1", "2", false), ("node2", "2", false), ("node1", "64", true)]
    {
        let nodes = lab.nodes().unwrap();
        let server = nodes.iter().find(|known| known.name == node).unwrap().addresses[0];
        let before = counter(lab, &Target::Client, "Icmp", "InTimeExcds");
        set(lab, &Target::Client, "net/ipv4/ip_default_ttl", hops);
        let server = SocketAddr::new(server, node_port(&service(lab), "dns"));
        // Who is not answered waits for two seconds.
        let tries = if reaches { TRIES } else { 3 };
        let ask = |_: &usize| lab.ask_udp(Target::Client, server, "echo hello").is_ok();
        let answered = (0..tries).filter(ask).count();
        set(lab, &Target::Client, "net/ipv4/ip_default_ttl", "64");
        assert_eq!(answered, if reaches { tries } else { 0 }, "{node} {hops}");
        let told = counter(lab, &Target::Client, "Icmp", "InTimeExcds") - before;
        assert_eq!(told > 0, !reaches, "{node} {hops}");
    }
}

#[test]
fn a_closed_port_refuses_through_everything() {
    let Some(lab) = lab() else { return };
    let service = service(lab);
    // A kernel tells each other one no more than once a second, if it is not asked to do otherwise.
    for pod in lab.pods("default", "app", "web").unwrap() {
        let beside = self::pod(pod["metadata"]["name"].as_str().unwrap());
        set(lab, &beside, "net/ipv4/icmp_ratelimit", "0");
        set(lab, &beside, "net/ipv6/icmp/ratelimit", "0");
    }
    let refuses = |from: &Target, server: SocketAddr| {
        let error = lab.ask_udp(from.clone(), server, "hello").unwrap_err();
        assert!(format!("{error:#}").contains("refused"), "{server}: {error:#}");
    };
    for family in [0, 1] {
        refuses(&pod("guest"), SocketAddr::new(parse(CLIENT[family]), 9));
        for node in ["node1", "node2", "node3"] {
            refuses(&pod("guest"), SocketAddr::new(address(lab, node, family), 9));
        }
        for _ in 0..TRIES {
            refuses(&pod("guest"), SocketAddr::new(service.cluster_ips[family], 9));
        }
        for node in lab.nodes().unwrap() {
            let server = SocketAddr::new(node.addresses[family], node_port(&service, "closed"));
            for _ in 0..TRIES {
                refuses(&Target::Client, server);
            }
        }
    }
}

/// A hop behind the nodes takes less than they do: whoever sends through it learns so, also behind
/// translated addresses, and connections go on.
#[test]
fn a_path_mtu_is_learned_through_translation() {
    const MTU: &str = "1300";
    let Some(lab) = own_lab("pmtu") else { return };
    let server = serve(&lab, &Target::Client);
    let router = Target::Controlplane; // which lives in the router's namespace
    let device = device_to(&lab, &router, CLIENT[0]);
    run(&lab, &router, &["ip", "link", "set", "dev", &device, "mtu", MTU]);
    let service = service(&lab);
    let long = "0123456789".repeat(2000);
    for family in [0, 1] {
        // A pod that is masqueraded.
        let client = parse(CLIENT[family]);
        let url = format!("http://{}/echo?msg={long}", SocketAddr::new(client, 8080));
        assert_eq!(lab.get(pod("guest"), &url).unwrap(), long);
        assert_eq!(learned_mtu(&lab, &pod("guest"), client), Some(1300));
        // And those that answer a client of a node port, here and elsewhere.
        for node in lab.nodes().unwrap() {
            let server = SocketAddr::new(node.addresses[family], node_port(&service, "http"));
            for _ in 0..TRIES {
                let url = format!("http://{server}/echo?msg={long}");
                assert_eq!(lab.get(Target::Client, &url).unwrap(), long, "{server}");
            }
        }
    }
    drop(server);
}

/// What is too big for the way that a node's programs send it is told so by them.
#[test]
fn a_packet_too_big_for_its_way_is_answered_by_the_node() {
    let Some(lab) = own_lab("toobig") else { return };
    let node1 = Target::Node { node: "node1".to_owned() };
    let guest = pod("guest");
    let server = serve(&lab, &Target::Client);
    let long = "0123456789".repeat(2000);
    // The pod may send more than the tunnel takes.
    let guest_device = device_to(&lab, &node1, &pod_address(&lab, "guest", 0).to_string());
    run(&lab, &node1, &["ip", "link", "set", "dev", &guest_device, "mtu", "1500"]);
    run(&lab, &guest, &["ip", "link", "set", "dev", "eth0", "mtu", "1500"]);
    let neighbour = address(&lab, "node1", 0);
    let neighbour_device = device_to(&lab, &node1, &neighbour.to_string());
    run(&lab, &node1, &["ip", "link", "set", "dev", &neighbour_device, "mtu", "1320"]);
    for family in [0, 1] {
        let here = lab.nodes().unwrap()[0].addresses[family];
        let client = parse(CLIENT[family]);
        let (words, net) = if family == 0 { ("-4", 32) } else { ("-6", 128) };
        let via = ROUTER[family];
        let route = format!("{client}/{net}");
        // A route's MTU counts for what is forwarded if it is locked.
        let limited = ["ip", words, "route", "add", &route, "via", via, "mtu", "lock", "1310"];
        run(&lab, &node1, &limited);
        let by_vxlan = address(&lab, "node2", family);
        for (destination, mtu) in
            [(address(&lab, "node1", family), 1320), (by_vxlan, 1450), (client, 1310)]
        {
            let seen = ping(&lab, &guest, destination, &["-M", "do", "-s", "1440"]);
            assert!(
                seen.tells(here, &format!("mtu = {mtu}"))
                    || seen.tells(here, &format!("mtu={mtu}")),
                "{destination}: {seen:?}"
            );
            assert_eq!(learned_mtu(&lab, &guest, destination), Some(mtu));
            let fits = ping(&lab, &guest, destination, &["-M", "do", "-s", "1200"]);
            assert!(fits.answered, "{destination}: {fits:?}");
        }
        // A pod that has learned nothing yet, and sends what is cut into segments on the way.
        run(&lab, &guest, &["ip", words, "route", "flush", "cache"]);
        for destination in [address(&lab, "node1", family), by_vxlan, client] {
            let url = format!("http://{}/echo?msg={long}", SocketAddr::new(destination, 8080));
            assert_eq!(lab.get(guest.clone(), &url).unwrap(), long, "{destination}");
            // The other end of the tunnel has asked for segments that fit.
            let learned = learned_mtu(&lab, &guest, destination).is_some();
            assert_eq!(learned, destination != by_vxlan, "{destination}");
        }
    }
    drop(server);
}

/// Datagrams longer than any MTU here.
#[test]
fn datagrams_in_pieces_arrive_through_translation() {
    let Some(lab) = lab() else { return };
    let service = service(lab);
    let server = serve(lab, &Target::Client);
    let long = "0123456789".repeat(400);
    let question = format!("echo {long}");
    let echoes = |from: &Target, server: SocketAddr| {
        let answer = lab.ask_udp(from.clone(), server, &question).unwrap();
        assert_eq!(answer.trim_end(), long, "{server}");
    };
    for family in [0, 1] {
        // Pods take a little less than the client sends: its first IPv6 datagrams tell it so.
        let outside = SocketAddr::new(parse(CLIENT[family]), 5353);
        let learns = |from: &Target, server: SocketAddr| {
            wait_until(Duration::from_secs(20), "an answer in pieces", || {
                Ok(lab.ask_udp(from.clone(), server, &question).is_ok())
            })
            .unwrap();
        };
        if family == 1 {
            learns(&pod("guest"), outside);
            for node in lab.nodes().unwrap() {
                let server = SocketAddr::new(node.addresses[1], node_port(&service, "dns"));
                (0..TRIES).for_each(|_| learns(&Target::Client, server));
            }
        }
        echoes(&pod("guest"), outside);
        for node in lab.nodes().unwrap() {
            echoes(&pod("guest"), SocketAddr::new(address(lab, &node.name, family), 5353));
            let server = SocketAddr::new(node.addresses[family], node_port(&service, "dns"));
            for _ in 0..TRIES {
                echoes(&Target::Client, server);
                echoes(&pod("guest"), SocketAddr::new(service.cluster_ips[family], 53));
            }
        }
        let seen = ping(lab, &pod("guest"), parse(CLIENT[family]), &["-s", "4000"]);
        assert!(seen.answered, "{seen:?}");
    }
    drop(server);
}

/// A pod may put its interface into a bridge and speak from there under another MAC address; what is sent
/// to it still bears the one of its interface, which the bridge takes for its own.
#[test]
fn a_pod_that_bridges_its_interface_stays_reachable() {
    let Some(lab) = own_lab("bridge") else { return };
    let server = serve(&lab, &Target::Client);
    let guest = pod("guest");
    let bridge = r#"
        set -e
        gateway4=$(ip -4 route show default | sed 's/.*via \([^ ]*\).*/\1/')
        gateway6=$(ip -6 route show default | sed 's/.*via \([^ ]*\).*/\1/')
        neighbours=$(ip neigh show nud permanent)
        address4=$(ip -4 -o addr show dev eth0 scope global | awk '{print $4}')
        address6=$(ip -6 -o addr show dev eth0 scope global | awk '{print $4}')
        ip link add br0 address 02:00:00:00:00:77 type bridge
        ip addr flush dev eth0 scope global
        ip link set dev br0 up
        ip link set dev eth0 master br0
        ip addr add $address4 dev br0
        ip -6 addr add $address6 dev br0 nodad
        echo "$neighbours" | while read -r to dev name lladdr mac rest; do
            [ -z "$to" ] || ip neigh replace $to lladdr $mac dev br0 nud permanent
        done
        ip -4 route replace $gateway4/32 dev br0
        ip -4 route replace default via $gateway4 dev br0
        ip -6 route replace $gateway6/128 dev br0
        ip -6 route replace default via $gateway6 dev br0
    "#;
    run(&lab, &guest, &["sh", "-c", bridge]);
    for family in [0, 1] {
        let own = pod_address(&lab, "guest", family);
        for node in lab.nodes().unwrap() {
            let server = SocketAddr::new(address(&lab, &node.name, family), 8080);
            lab.get(guest.clone(), &format!("http://{server}/hostname")).unwrap();
            let url = format!("http://{}/hostname", SocketAddr::new(own, 8080));
            let beside = Target::Node { node: node.name.clone() };
            assert_eq!(lab.get(beside, &url).unwrap(), "guest");
        }
        let outside = SocketAddr::new(parse(CLIENT[family]), 8080);
        lab.get(guest.clone(), &format!("http://{outside}/hostname")).unwrap();
    }
    drop(server);
}

/// A firewall on the nodes that forwards nothing but what it has seen begin: both directions go past it.
#[test]
fn a_host_firewall_sees_both_directions_or_none() {
    const RULES: &str = "
table inet firewall {
  chain input {
    type filter hook input priority 0; policy accept;
    ct state invalid drop
  }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    ct state established,related accept
  }
}
";
    let Some(lab) = own_lab("firewall") else { return };
    let server = serve(&lab, &Target::Client);
    for node in lab.nodes().unwrap() {
        let beside = Target::Node { node: node.name };
        run(&lab, &beside, &["sh", "-c", &format!("nft -f - <<'EOF'{RULES}EOF")]);
    }
    let service = service(&lab);
    let long = "0123456789".repeat(2000);
    let echoes = |from: &Target, server: SocketAddr| {
        let url = format!("http://{server}/echo?msg={long}");
        assert_eq!(lab.get(from.clone(), &url).unwrap(), long, "{from:?} {server}");
    };
    for family in [0, 1] {
        echoes(&pod("guest"), SocketAddr::new(parse(CLIENT[family]), 8080));
        for node in lab.nodes().unwrap() {
            let beside = Target::Node { node: node.name.clone() };
            let server = SocketAddr::new(address(&lab, &node.name, family), 8080);
            echoes(&pod("guest"), server);
            echoes(&beside, server);
            echoes(&beside, SocketAddr::new(pod_address(&lab, "guest", family), 8080));
            let server = SocketAddr::new(node.addresses[family], node_port(&service, "http"));
            for _ in 0..TRIES {
                echoes(&Target::Client, server);
            }
        }
        for _ in 0..TRIES {
            echoes(&pod("guest"), SocketAddr::new(service.cluster_ips[family], 80));
        }
    }
    drop(server);
}

/// A lab whose nodes reach each other by routes and by VXLAN, with addresses of both families.
fn own_lab(name: &str) -> Option<Lab> {
    if !may_run(name) {
        return None;
    }
    let options = Options {
        subnets: 2,
        pod_cidr: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        service_cidr: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..Options::named(unique_name(name))
    };
    let lab = Lab::up(options).unwrap();
    lab.apply(MANIFESTS).unwrap();
    lab.wait_for_pods("default", "app", "web", 3).unwrap();
    lab.wait_for_pods("default", "app", "guest", 1).unwrap();
    lab.wait_for_endpoints(&ObjectName::new("default", "web"), 6).unwrap();
    Some(lab)
}

/// One that the tests which change nothing of it share.
fn lab() -> Option<&'static Lab> {
    static LAB: OnceLock<Option<Lab>> = OnceLock::new();
    LAB.get_or_init(|| own_lab("errors")).as_ref()
}

fn pod(name: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: name.to_owned() }
}

fn parse(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn service(lab: &Lab) -> Service {
    lab.model().unwrap().services[&ObjectName::new("default", "web")].clone()
}

fn node_port(service: &Service, name: &str) -> u16 {
    service.ports.iter().find(|port| port.name == name).unwrap().node_port.unwrap()
}

fn addresses_of(pod: &serde_json::Value) -> Vec<IpAddr> {
    let addresses = pod["status"]["podIPs"].as_array().unwrap();
    addresses.iter().map(|address| parse(address["ip"].as_str().unwrap())).collect()
}

/// The address of the server on a node.
fn address(lab: &Lab, node: &str, family: usize) -> IpAddr {
    let pods = lab.pods("default", "app", "web").unwrap();
    addresses_of(pods.iter().find(|pod| pod["spec"]["nodeName"] == node).unwrap())[family]
}

fn pod_address(lab: &Lab, app: &str, family: usize) -> IpAddr {
    addresses_of(&lab.pods("default", "app", app).unwrap()[0])[family]
}

/// The address under which a node is known in the tunnel.
fn overlay(lab: &Lab, node: &str, family: usize) -> IpAddr {
    let nodes = lab.nodes().unwrap();
    nodes.iter().find(|known| known.name == node).unwrap().pod_cidrs[family].network()
}

/// What came of a ping.
#[derive(Debug)]
struct Ping {
    answered: bool,
    said: String,
}

impl Ping {
    /// Whether `who` sent an error with these words.
    fn tells(&self, who: IpAddr, words: &str) -> bool {
        let from = format!("From {who} ");
        self.said.lines().any(|line| line.starts_with(&from) && line.contains(words))
    }
}

fn ping(lab: &Lab, from: &Target, destination: IpAddr, options: &[&str]) -> Ping {
    let destination = destination.to_string();
    let words = [&["ping", "-n", "-c", "1", "-W", "5"], options, &[&*destination]].concat();
    let output = lab.exec(from.clone(), &words).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    Ping { answered: output.status.success(), said }
}

/// Runs a command and takes what it prints; it must succeed.
fn run(lab: &Lab, beside: &Target, words: &[&str]) -> String {
    let output = lab.exec(beside.clone(), words).unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn set(lab: &Lab, beside: &Target, sysctl: &str, value: &str) {
    run(lab, beside, &["sh", "-c", &format!("echo {value} > /proc/sys/{sysctl}")]);
}

/// A number of /proc/net/snmp.
fn counter(lab: &Lab, beside: &Target, section: &str, name: &str) -> u64 {
    let text = run(lab, beside, &["cat", "/proc/net/snmp"]);
    let mut lines = text.lines().filter(|line| line.starts_with(&format!("{section}: ")));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|known| known == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

fn word_after(text: &str, word: &str) -> Option<String> {
    text.split_whitespace().skip_while(|found| *found != word).nth(1).map(str::to_owned)
}

/// The device through which packets leave for an address.
fn device_to(lab: &Lab, beside: &Target, address: &str) -> String {
    word_after(&run(lab, beside, &["ip", "-o", "route", "get", address]), "dev").unwrap()
}

/// The path MTU that somebody was told of.
fn learned_mtu(lab: &Lab, beside: &Target, destination: IpAddr) -> Option<u32> {
    let text = run(lab, beside, &["ip", "-o", "route", "get", &destination.to_string()]);
    word_after(&text, "mtu")?.parse().ok()
}

/// A test server that ends with the value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a test server outside of any pod, on the ports that pods use.
fn serve(lab: &Lab, beside: &Target) -> Server {
    let program = binaries().unwrap().join("fairway-lab");
    let words = ["app", "netexec", "--http-port", "8080", "--udp-port", "5353"];
    let mut command = lab.command(beside.clone(), program.to_str().unwrap()).unwrap();
    let server = Server(command.args(words).stdin(Stdio::null()).spawn().unwrap());
    wait_until(Duration::from_secs(10), "the server to answer", || {
        Ok(lab.get(beside.clone(), "http://localhost:8080/healthz").is_ok())
    })
    .unwrap();
    server
}
