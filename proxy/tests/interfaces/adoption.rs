//! A node that moves from kube-proxy: what is open goes on, whoever opened it and whoever answers.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::ControlFlow;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use fairway_model::{
    EndpointState, Endpoints, Hints, Model, Node, Protocol, Service, ServicePort, ServiceRange,
};
use fairway_netlink::{AddressOptions, NetNs, Netlink, Route, conntrack, sysctl};

use super::{Machine, PATIENCE, name, sandbox};

/// A pod of another node, which is in the other network namespace and so has no wire of its own.
const REMOTE: [u8; 4] = [10, 244, 2, 2];
const THERE: [u8; 4] = [192, 0, 2, 2];
const OUTSIDE: [u8; 4] = [203, 0, 113, 9];
const LOCAL: u8 = 2;
const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// As kube-proxy's nftables mode: the ports of Service "old" lead to a local pod, a remote one, and the
/// node itself, whatever other endpoints there are; what comes from outside is masqueraded, and so is
/// what leaves the cluster.
const RULES: &str = "
add table ip kube-proxy
add chain ip kube-proxy services
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy services ip daddr 192.0.2.1 th dport 31000-31100 mark set mark or 0x4000
add rule ip kube-proxy services ip daddr 10.96.0.2 meta l4proto { tcp, udp } th dport 80 dnat to 10.244.1.2:8080
add rule ip kube-proxy services ip daddr 10.96.0.2 meta l4proto { tcp, udp } th dport 81 dnat to 10.244.2.2:8080
add rule ip kube-proxy services ip daddr 10.96.0.2 meta l4proto { tcp, udp } th dport 82 dnat to 192.0.2.1:8080
add rule ip kube-proxy services ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 31080 dnat to 10.244.1.2:8080
add rule ip kube-proxy services ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 31081 dnat to 10.244.2.2:8080
add rule ip kube-proxy services ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 31082 dnat to 192.0.2.1:8080
add rule ip kube-proxy nat-postrouting mark and 0x4000 != 0 masquerade fully-random
add rule ip kube-proxy nat-postrouting ip saddr 10.244.1.0/24 ip daddr 203.0.113.0/24 masquerade fully-random
";

#[test]
fn connections_that_kube_proxys_nftables_mode_translates_go_on() {
    connections_go_on(|| feed("nft", &["-f", "-"], RULES), "table ip kube-proxy");
}

#[test]
fn connections_that_kube_proxys_iptables_mode_translates_go_on() {
    let set_up = || feed("iptables-nft-restore", &[], &iptables_rules());
    connections_go_on(set_up, "chains of iptables-nft");
}

/// The same rules as [`RULES`], as kube-proxy's iptables mode has them.
fn iptables_rules() -> String {
    let mut text = "*nat\n\
        :KUBE-SERVICES - [0:0]\n\
        :KUBE-NODEPORTS - [0:0]\n\
        :KUBE-POSTROUTING - [0:0]\n\
        :KUBE-MARK-MASQ - [0:0]\n\
        -A PREROUTING -j KUBE-SERVICES\n\
        -A OUTPUT -j KUBE-SERVICES\n\
        -A POSTROUTING -j KUBE-POSTROUTING\n\
        -A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully\n\
        -A KUBE-POSTROUTING -s 10.244.1.0/24 -d 203.0.113.0/24 -j MASQUERADE --random-fully\n\
        -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n"
        .to_owned();
    for protocol in ["tcp", "udp"] {
        for (port, to) in [(80, "10.244.1.2"), (81, "10.244.2.2"), (82, "192.0.2.1")] {
            let dnat = format!("-j DNAT --to-destination {to}:8080\n");
            let node_port = format!("-A KUBE-NODEPORTS -p {protocol} --dport {}", 31_000 + port);
            text += &format!(
                "-A KUBE-SERVICES -d 10.96.0.2/32 -p {protocol} --dport {port} {dnat}\
                 {node_port} -j KUBE-MARK-MASQ\n{node_port} {dnat}"
            );
        }
    }
    text + "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n"
}

/// By rules that are set up so, and of whose end a clean-up says `removed`.
fn connections_go_on(set_up: impl FnOnce() + Send, removed: &str) {
    sandbox::sandbox(|bpffs| {
        let world = NetNs::unnamed().unwrap();
        let machine = Machine::beside(Some(&world), bpffs);
        connect(&world);
        let (local, client) = (machine.make_pod("local", LOCAL), machine.make_pod("client", 20));
        let publish = |with_range: bool| {
            machine.publish(&[&local], |model| {
                model.pods.insert(client.object());
                extend(model, with_range);
            });
        };
        // Pods are registered, and then it is as if no program had ever been here.
        publish(false);
        let mut agent = machine.start(&[]);
        agent.add(&machine, &local);
        agent.add(&machine, &client);
        agent.end();
        std::fs::remove_dir_all(&machine.bpffs).unwrap();
        wait_for_no_programs(&["local", "client", "eth0"]);
        sysctl::set("net/ipv4/ip_forward", "1").unwrap();
        set_up();

        let echo_at = [(&local.netns, local.address), (&world, REMOTE.into())];
        let host = (&machine.netns, IpAddr::from([192, 0, 2, 1]));
        for (netns, address) in echo_at.into_iter().chain([host, (&world, OUTSIDE.into())]) {
            echo(netns, SocketAddr::new(address, 8080));
        }
        let mut open = Vec::new();
        let pod = &client.netns;
        for (from, address, port) in [
            (pod, [10, 96, 0, 2], 80),
            (pod, [10, 96, 0, 2], 81),
            (pod, [10, 96, 0, 2], 82),
            (pod, OUTSIDE, 8080),
            (&world, [192, 0, 2, 1], 31_080),
            (&world, [192, 0, 2, 1], 31_081),
            (&world, [192, 0, 2, 1], 31_082),
        ] {
            let to = SocketAddr::from((address, port));
            open.push(Open::tcp(from, to));
            open.push(Open::udp(from, to));
        }
        let own = Open::tcp(&machine.netns, ([10, 96, 0, 2], 80).into());
        let both_ways = |when: &str| open.iter().for_each(|open| open.exchange(when));
        both_ways("by kube-proxy's rules");

        publish(true);
        let traffic = open.iter().map(Open::keep_talking).collect::<Vec<_>>();
        let mut agent = machine.start(&[]);
        agent.wait_for("the agent to be ready", || {
            super::ask(([127, 0, 0, 1], 10256).into(), "/readyz").is_some_and(|a| a.code == 200)
        });
        traffic.into_iter().for_each(Talk::end);
        both_ways("with Fairway's programs");
        own.exchange("with Fairway's programs");
        assert_eq!(tracked(), [([10, 96, 0, 2], 80).into()], "the node's own alone");
        assert_eq!(sysctl::get(LIBERAL).unwrap(), "0", "tolerance for the moment");
        let flows = machine.flows();
        assert_eq!(flows, 2 * open.len(), "each has a record a direction");

        let cleaned = machine.program().args(["cleanup", "--kube-proxy"]).output().unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        let said = String::from_utf8_lossy(&cleaned.stdout).into_owned();
        assert!(said.contains(removed), "{said}");
        assert!(said.contains("still translates 1 open connections"), "the node's own: {said}");
        both_ways("without kube-proxy's rules");

        agent.end();
        let mut agent = machine.start(&[]);
        agent.wait_for("the agent to be ready again", || {
            super::ask(([127, 0, 0, 1], 10256).into(), "/readyz").is_some_and(|a| a.code == 200)
        });
        both_ways("after a restart");
        assert_eq!(machine.flows(), flows);
    });
}

/// A link whose pin is removed is freed a moment later.
fn wait_for_no_programs(devices: &[&str]) {
    let begin = Instant::now();
    let attached = |device: &&&str| {
        [TcAttachType::Ingress, TcAttachType::Egress].into_iter().any(|side| {
            SchedClassifier::query_tcx(device, side).is_ok_and(|(_, programs)| !programs.is_empty())
        })
    };
    while let Some(device) = devices.iter().find(attached) {
        assert!(begin.elapsed() < PATIENCE, "there are programs on {device}");
        thread::yield_now();
    }
}

/// Where the connections go that the kernel translates.
fn tracked() -> Vec<SocketAddr> {
    let mut all = Vec::new();
    conntrack::connections(|connection| {
        let to = connection.original.destination;
        all.extend(connection.is_translated().then_some(to));
        ControlFlow::Continue(())
    })
    .unwrap();
    all
}

/// The world beyond the uplink: another node with its pod, and somebody outside.
fn connect(world: &NetNs) {
    let mut there = Netlink::open_in(world).unwrap();
    let index = |netlink: &mut Netlink, name| netlink.link(name).unwrap().unwrap().index;
    let (wire, lo) = (index(&mut there, "wire"), index(&mut there, "lo"));
    for device in [lo, wire] {
        there.set_up(device).unwrap();
    }
    let options = AddressOptions::default();
    there.add_address(wire, "192.0.2.2/24".parse().unwrap(), options).unwrap();
    for address in [REMOTE, OUTSIDE] {
        there.add_address(lo, IpAddr::from(address).into(), options).unwrap();
    }
    let here = Some(IpAddr::from([192, 0, 2, 1]));
    let pods = "10.244.1.0/24".parse().unwrap();
    there.add_route(&Route { gateway: here, ..Route::to(pods) }).unwrap();
    let there = Some(IpAddr::from(THERE));
    for range in ["10.244.2.0/24", "0.0.0.0/0"] {
        let route = Route { gateway: there, ..Route::to(range.parse().unwrap()) };
        Netlink::open().unwrap().add_route(&route).unwrap();
    }
}

/// Adds the other node and Service "old", of whose endpoints only a few exist: whoever chooses anew in the
/// midst of a connection chooses wrong.
fn extend(model: &mut Model, with_range: bool) {
    let there = Node {
        name: "there".to_owned(),
        addresses: vec![THERE.into()],
        pod_cidrs: vec!["10.244.2.0/24".parse().unwrap()],
        ..Node::default()
    };
    let mut ports = Vec::new();
    let mut endpoints = Endpoints { service: name("old"), ports: Default::default() };
    for (protocol, label) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
        for number in [80, 81, 82] {
            let name = format!("{label}{number}");
            let node_port = Some(31_000 + number);
            ports.push(ServicePort { name: name.clone(), protocol, port: number, node_port });
            let pods = (100..140).map(|last| [10, 244, 1, last]);
            let all = [[10, 244, 1, LOCAL], REMOTE, [192, 0, 2, 1]].into_iter().chain(pods);
            let endpoint = |address: [u8; 4]| fairway_model::Endpoint {
                address: address.into(),
                port: 8080,
                node: None,
                state: EndpointState::Ready,
                hints: Hints::default(),
                weight: 1,
                hostname: None,
            };
            let mut all: Vec<_> = all.map(endpoint).collect();
            all.sort();
            endpoints.ports.insert(name, all);
        }
    }
    let service = Service {
        name: name("old"),
        cluster_ips: vec!["10.96.0.2".parse().unwrap()],
        ports,
        ..Service::default()
    };
    model.nodes.insert(there);
    model.services.insert(service);
    model.endpoints.insert(endpoints);
    if with_range {
        let cidrs = vec!["10.96.0.0/16".parse().unwrap()];
        let ranges = ServiceRange { name: "kubernetes".to_owned(), cidrs };
        model.service_ranges.insert(ranges);
    }
}

fn feed(program: &str, words: &[&str], rules: &str) {
    let mut tool = Command::new(program).args(words).stdin(Stdio::piped()).spawn().unwrap();
    tool.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(tool.wait().unwrap().success());
}

/// Serves TCP and UDP until the test ends: what is said is said back.
fn echo(netns: &NetNs, at: SocketAddr) {
    let (listener, socket) =
        netns.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut message = [0; 8];
                while stream.read_exact(&mut message).is_ok() {
                    if stream.write_all(&message).is_err() {
                        return;
                    }
                }
            });
        }
    });
    thread::spawn(move || {
        let mut message = [0; 8];
        while let Ok((length, from)) = socket.recv_from(&mut message) {
            let _ = socket.send_to(&message[..length], from);
        }
    });
}

/// A connection that stays open.
struct Open {
    what: String,
    socket: Transport,
}

enum Transport {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Open {
    fn tcp(from: &NetNs, to: SocketAddr) -> Self {
        let connect = || TcpStream::connect_timeout(&to, PATIENCE);
        let stream = from.run(connect).unwrap().unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let what = format!("TCP from {} to {to}", stream.local_addr().unwrap());
        Self { what, socket: Transport::Tcp(stream) }
    }

    fn udp(from: &NetNs, to: SocketAddr) -> Self {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let what = format!("UDP from {} to {to}", socket.local_addr().unwrap());
        Self { what, socket: Transport::Udp(socket) }
    }

    #[track_caller]
    fn exchange(&self, when: &str) {
        if let Err(error) = self.try_exchange(*b"question") {
            panic!("{} {when}: {error}", self.what);
        }
    }

    fn try_exchange(&self, message: [u8; 8]) -> std::io::Result<()> {
        let mut answer = [0; 8];
        match &self.socket {
            Transport::Tcp(stream) => {
                let mut stream = stream;
                stream.write_all(&message)?;
                stream.read_exact(&mut answer)?;
            }
            // What was lost is asked again.
            Transport::Udp(socket) => {
                socket.send(&message)?;
                while answer != message {
                    socket.recv(&mut answer)?;
                }
            }
        }
        assert_eq!(answer, message, "{}", self.what);
        Ok(())
    }

    /// Asks again and again while the node changes. A lost datagram is nobody's to repeat; without any,
    /// the kernel would soon forget the connection.
    fn keep_talking(&self) -> Talk {
        const PACE: Duration = Duration::from_millis(1);
        let (end, ended) = mpsc::channel::<()>();
        let is_udp = matches!(self.socket, Transport::Udp(_));
        let socket = match &self.socket {
            Transport::Tcp(stream) => Transport::Tcp(stream.try_clone().unwrap()),
            Transport::Udp(socket) => Transport::Udp(socket.try_clone().unwrap()),
        };
        let open = Self { what: self.what.clone(), socket };
        open.be_patient(if is_udp { Duration::from_millis(100) } else { PATIENCE });
        let thread = thread::spawn(move || {
            let mut number = 0u64;
            while ended.recv_timeout(PACE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let outcome = open.try_exchange(number.to_be_bytes());
                if !is_udp && let Err(error) = outcome {
                    panic!("{} at message {number}: {error}", open.what);
                }
                number += 1;
            }
            open.be_patient(PATIENCE);
        });
        Talk { end, thread }
    }

    fn be_patient(&self, limit: Duration) {
        match &self.socket {
            Transport::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Transport::Udp(socket) => socket.set_read_timeout(Some(limit)),
        }
        .unwrap();
    }
}

struct Talk {
    end: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Talk {
    fn end(self) {
        drop(self.end);
        self.thread.join().unwrap();
    }
}
