//! Packets by a device without an Ethernet header, as WireGuard's is. A TUN device stands in for it:
//! what the kernel would encrypt is read from it, and what it would have decrypted is written to it.
#![expect(unsafe_code, reason = "making a TUN device has no safe form")]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use fairway_abi::{Config, V4, V6};
use fairway_cni_protocol::{Bandwidth, Endpoint};
use fairway_compile::{Backend, Family, FamilyTables, View, compile, overlay_addresses};
use fairway_model::{
    EndpointState, Endpoints, Model, Node, Object, ObjectName, Protocol, Service, ServicePort,
    TrafficPolicy,
};
use fairway_netlink::{AddressOptions, NetNs, Netlink, Route, Veth, sysctl};
use ipnet::IpNet;
use rustix::net::{AddressFamily, SocketType, eth};

use super::*;
use crate::attachments::Attachments;
use crate::dataplane::Dataplane;
use crate::pods::Pods;
use crate::routes::RouteTable;
use crate::sandbox::sandbox;
use crate::services::ServiceTables;

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_kernel_without_wireguard_is_named_and_left_alone() {
    sandbox(|_| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut netlink = Netlink::open().expect("a socket");
        let device = |netlink: &mut Netlink| netlink.link("fairway-wg").expect("an answer");
        match Tunnel::open(&mut netlink, folder.path(), SETTINGS) {
            Ok(tunnel) => {
                eprintln!("NOT RUN: this kernel has WireGuard");
                let again = Tunnel::open(&mut netlink, folder.path(), SETTINGS).expect("again");
                assert_eq!(again.public_key(), tunnel.public_key());
                assert!(device(&mut netlink).is_some());
            }
            Err(error) => {
                let error = format!("{error:#}");
                assert!(error.contains("modprobe wireguard"), "{error}");
                assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
                assert_eq!(device(&mut netlink), None);
            }
        }
    });
}

const SETTINGS: Settings = Settings { port: 51820, keepalive: 0 };

/// The device, from the side of what encrypts.
struct Tun {
    file: File,
    index: u32,
}

impl Tun {
    fn make(netlink: &mut Netlink, name: &str) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open("/dev/net/tun").expect("/dev/net/tun");
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI;
        request.ifr_ifru.ifru_flags = flags.try_into().expect("small flags");
        // SAFETY: the request outlives the call, and the file is the one it is for.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        let link = netlink.link(name).expect("an answer").expect("the device");
        assert_eq!(link.mac, None, "it has no Ethernet header");
        netlink.set_up(link.index).expect("up");
        Self { file, index: link.index }
    }

    /// The next packet to this UDP port.
    fn receive(&mut self, port: u16) -> Packet {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        loop {
            match self.file.read(&mut buffer) {
                Ok(length) => match Packet::read(&buffer[..length]) {
                    Some(packet) if packet.ports.1 == port => return packet,
                    // The kernel's own, as about multicast.
                    _ => {}
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "nothing came for port {port}");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn send(&mut self, packet: &Packet) {
        self.file.write_all(&packet.to_bytes()).expect("written");
    }
}

/// A UDP packet that begins with its IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packet {
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
    hops: u8,
    text: String,
}

impl Packet {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (header, hops, udp, addresses) = match bytes[0] >> 4 {
            4 => {
                let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
                (20, bytes[8], bytes[9] == 17, (ip(12), ip(16)))
            }
            6 => {
                let ip =
                    |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
                (40, bytes[7], bytes[6] == 17, (ip(8), ip(24)))
            }
            _ => panic!("not an IP header: {bytes:?}"),
        };
        let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        udp.then(|| Self {
            addresses,
            ports: (half(header), half(header + 2)),
            hops,
            text: String::from_utf8_lossy(&bytes[header + 8..]).into_owned(),
        })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.text.len()).unwrap();
        let mut udp = [self.ports.0, self.ports.1, length, 0].map(u16::to_be_bytes).concat();
        udp.extend(self.text.bytes());
        let pseudo = [length, 17].map(u16::to_be_bytes).concat();
        let (mut header, addresses) = match self.addresses {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let total = (20 + length).to_be_bytes();
                let front = [0x45, 0, total[0], total[1], 0, 0, 0, 0, self.hops, 17, 0, 0];
                let addresses = [from.octets(), to.octets()].concat();
                let sum = checksum(&[&front[..], &addresses].concat());
                ([&front[..10], &sum].concat(), addresses)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let length = length.to_be_bytes();
                let front = vec![0x60, 0, 0, 0, length[0], length[1], 17, self.hops];
                (front, [from.octets(), to.octets()].concat())
            }
            mixed => panic!("{mixed:?}"),
        };
        let sum = checksum(&[&addresses[..], &pseudo, &udp].concat());
        udp[6..8].copy_from_slice(&sum);
        header.extend(addresses);
        header.extend(udp);
        header
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let halves = bytes
        .chunks(2)
        .map(|half| u32::from(half[0]) << 8 | half.get(1).map_or(0, |b| u32::from(*b)));
    let mut sum: u32 = halves.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two nodes, each with a range of pods a family, and a Service whose one endpoint is on the first
/// node's own network.
fn model() -> Model {
    let node = |name: &str, last: u8, range: u8| Node {
        name: name.to_owned(),
        addresses: vec![ip(&format!("192.0.2.{last}")), ip(&format!("2001:db8::{last}"))],
        pod_cidrs: vec![
            format!("10.244.{range}.0/24").parse().unwrap(),
            format!("fd00:{range}::/64").parse().unwrap(),
        ],
        wireguard_key: Some(WireGuardKey([last; 32])),
        ..Node::default()
    };
    let name = ObjectName::new("shop", "web");
    let service = Service {
        name: name.clone(),
        cluster_ips: vec![ip("10.96.0.1")],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Udp,
            port: 53,
            node_port: Some(30053),
        }],
        internal_traffic: TrafficPolicy::Cluster,
        external_traffic: TrafficPolicy::Cluster,
        ..Service::default()
    };
    let endpoint = fairway_model::Endpoint {
        address: ip("192.0.2.1"),
        port: 5353,
        node: Some("a".to_owned()),
        state: EndpointState::Ready,
        hints: fairway_model::Hints::default(),
        weight: 1,
        hostname: None,
    };
    let endpoints =
        Endpoints { service: name, ports: [(String::new(), vec![endpoint])].into_iter().collect() };
    let nodes = [node("a", 1, 1), node("b", 2, 2)].into_iter().map(Object::Node);
    nodes.chain([Object::Service(service), Object::Endpoints(endpoints)]).collect()
}

/// Node `a`, with one pod.
struct Here {
    tun: Tun,
    pod: NetNs,
    pod_mac: [u8; 6],
    _dataplane: Dataplane,
    _pods: Pods,
    _state: tempfile::TempDir,
}

const POD: [&str; 2] = ["10.244.1.5", "fd00:1::5"];
const REMOTE_POD: [&str; 2] = ["10.244.2.7", "fd00:2::7"];

fn start(bpffs: &Path) -> Here {
    let mut netlink = Netlink::open().expect("a socket");
    let model = model();
    let node = &model.nodes["a"];
    let nodad = AddressOptions { nodad: true, ..AddressOptions::default() };
    let lo = netlink.link("lo").expect("an answer").expect("lo").index;
    netlink.set_up(lo).expect("up");
    for address in &node.addresses {
        netlink.add_address(lo, IpNet::from(*address), nodad).expect("an address");
    }
    let tun = Tun::make(&mut netlink, SETTINGS.overlay().device());
    sysctl::set("net/ipv4/conf/fairway-wg/rp_filter", "2").expect("a setting");
    for address in overlay_addresses(node) {
        netlink.add_address(tun.index, IpNet::from(address), nodad).expect("an address");
    }
    for (range, source) in model.nodes["b"].pod_cidrs.iter().zip(overlay_addresses(node)) {
        let route = Route {
            device: Some(tun.index),
            scope_link: true,
            source: Some(source),
            ..Route::to(*range)
        };
        netlink.replace_route(&route).expect("a route");
    }

    let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
    let view = View {
        node: "a".to_owned(),
        addresses: [node.addresses.clone(), overlay_addresses(node)].concat(),
        backend: Backend::Wireguard,
        overlay_ifindex: tun.index,
        vni: 1,
        ..View::default()
    };
    let tables = compile(&model, &view).expect("tables");
    dataplane.single::<Config>("config").expect("a table").set(&tables.config).expect("room");
    fill::<V4>(&mut dataplane, "4", &tables.v4);
    fill::<V6>(&mut dataplane, "6", &tables.v6);
    Attachments::default()
        .overlay(&mut dataplane, SETTINGS.overlay(), tun.index)
        .expect("programs on the device");

    let state = tempfile::tempdir().expect("a folder");
    let mut pods = Pods::adopt(&mut dataplane, &mut netlink, state.path()).expect("pods");
    pods.attach(&mut dataplane).expect("nothing to attach to");
    let pod = NetNs::unnamed().expect("a namespace");
    let endpoint = plug(&mut netlink, &pod);
    let pod_mac = endpoint.pod_mac;
    pods.add(&mut dataplane, &mut netlink, endpoint, None).expect("a pod in force");
    Here { tun, pod, pod_mac, _dataplane: dataplane, _pods: pods, _state: state }
}

fn fill<A: Family>(dataplane: &mut Dataplane, suffix: &str, tables: &FamilyTables<A>) {
    let mut routes = RouteTable::<A>::adopt(dataplane, suffix).expect("a table");
    routes.reconcile(&tables.routes).expect("room");
    let mut services = ServiceTables::<A>::adopt(dataplane, suffix).expect("tables");
    services.reconcile(&tables.services, Vec::new()).expect("room");
}

/// Wires a pod as the plugin does.
fn plug(netlink: &mut Netlink, pod: &NetNs) -> Endpoint {
    let veth = Veth { name: "fwpod", peer_name: "eth0", peer_netns: Some(pod), ..Veth::default() };
    let host = netlink.create_veth(&veth).expect("a veth");
    netlink.set_up(host.index).expect("up");
    let mut inside = Netlink::open_in(pod).expect("a socket");
    let eth0 = inside.link("eth0").expect("an answer").expect("the other end");
    inside.set_up(eth0.index).expect("up");
    let host_mac = host.mac.expect("a MAC address");
    let nodad = AddressOptions { nodad: true, ..AddressOptions::default() };
    for (address, gateway) in POD.iter().zip(["169.254.1.1", "fe80::1"]) {
        let (address, gateway) = (ip(address), ip(gateway));
        inside.add_address(eth0.index, IpNet::from(address), nodad).expect("an address");
        let link =
            Route { device: Some(eth0.index), scope_link: true, ..Route::to(IpNet::from(gateway)) };
        inside.replace_route(&link).expect("a route");
        let everything = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let default = Route {
            device: Some(eth0.index),
            gateway: Some(gateway),
            ..Route::to(everything.parse().unwrap())
        };
        inside.replace_route(&default).expect("a route");
        inside.replace_neighbour(eth0.index, gateway, host_mac, true).expect("a neighbour");
    }
    Endpoint {
        container_id: "container".to_owned(),
        interface: "eth0".to_owned(),
        pod_namespace: "shop".to_owned(),
        pod_name: "client".to_owned(),
        pod_uid: String::new(),
        host_interface: host.name,
        host_ifindex: host.index,
        host_mac,
        pod_mac: eth0.mac.expect("a MAC address"),
        addresses: POD.iter().map(|text| ip(text)).collect(),
        host_ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        netns_cookie: None,
        netns: String::new(),
    }
}

/// A socket at an address of this thread's namespace, or of the pod's.
fn socket(pod: Option<&NetNs>, address: IpAddr, port: u16) -> UdpSocket {
    let bind = || {
        let socket = UdpSocket::bind((address, port)).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        socket
    };
    match pod {
        Some(pod) => pod.run(bind).expect("in the namespace"),
        None => bind(),
    }
}

fn hear(socket: &UdpSocket) -> (String, std::net::SocketAddr) {
    let mut buffer = [0; 100];
    let (length, from) = socket.recv_from(&mut buffer).expect("a packet");
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
}

#[test]
fn pods_of_two_nodes_reach_each_other_by_a_device_without_ethernet() {
    sandbox(|bpffs| {
        let mut here = start(bpffs);
        let frames = || {
            let protocol = Some(eth::ALL);
            let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, protocol);
            let socket = socket.expect("a packet socket");
            let timeout = rustix::net::sockopt::Timeout::Recv;
            rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE))
                .expect("an option");
            socket
        };
        let frames = here.pod.run(frames).expect("in the namespace");
        for (own, remote) in POD.iter().zip(REMOTE_POD) {
            let (own, remote) = (ip(own), ip(remote));
            let client = socket(Some(&here.pod), own, 4000);
            client.send_to(b"question", (remote, 7000)).expect("sent");
            let sent = here.tun.receive(7000);
            assert_eq!((sent.addresses, sent.ports), ((own, remote), (4000, 7000)));
            assert_eq!((sent.hops, &*sent.text), (63, "question"));

            // As large as both devices take.
            let headers = if own.is_ipv4() { 28 } else { 48 };
            let largest = "x".repeat(1500 - headers);
            client.send_to(largest.as_bytes(), (remote, 7000)).expect("sent");
            assert_eq!(here.tun.receive(7000).text, largest);

            let answer = Packet {
                addresses: (remote, own),
                ports: (7000, 4000),
                hops: 60,
                text: "answer".to_owned(),
            };
            here.tun.send(&answer);
            assert_eq!(hear(&client), ("answer".to_owned(), (remote, 7000).into()));
            // The pod's interface is an Ethernet device, and that is what it receives.
            let mut frame = [0; 200];
            loop {
                let (length, _) =
                    rustix::net::recv(&frames, &mut frame[..], rustix::net::RecvFlags::empty())
                        .expect("a frame");
                let ethertype: [u8; 2] = if own.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
                if frame[..length].ends_with(b"answer") {
                    assert_eq!(frame[..6], here.pod_mac);
                    assert_eq!(frame[12..14], ethertype);
                    break;
                }
            }
        }
    });
}

#[test]
fn the_host_and_a_remote_pod_reach_each_other_by_a_device_without_ethernet() {
    sandbox(|bpffs| {
        let mut here = start(bpffs);
        for (remote, source) in REMOTE_POD.iter().zip(["10.244.1.0", "fd00:1::"]) {
            let remote = ip(remote);
            let any = if remote.is_ipv4() { "0.0.0.0" } else { "::" };
            let host = socket(None, ip(any), 4001);
            host.send_to(b"question", (remote, 7001)).expect("sent");
            let sent = here.tun.receive(7001);
            assert_eq!((sent.addresses, sent.ports), ((ip(source), remote), (4001, 7001)));
            assert_eq!(sent.text, "question");
            let answer = Packet {
                addresses: (remote, ip(source)),
                ports: (7001, 4001),
                hops: 64,
                text: "answer".to_owned(),
            };
            here.tun.send(&answer);
            assert_eq!(hear(&host), ("answer".to_owned(), (remote, 7001).into()));
        }
    });
}

#[test]
fn a_node_port_is_translated_both_ways_on_a_device_without_ethernet() {
    sandbox(|bpffs| {
        let mut here = start(bpffs);
        let server = socket(None, ip("192.0.2.1"), 5353);
        let question = Packet {
            addresses: (ip(REMOTE_POD[0]), ip("192.0.2.1")),
            ports: (7002, 30053),
            hops: 64,
            text: "question".to_owned(),
        };
        here.tun.send(&question);
        let (text, from) = hear(&server);
        assert_eq!((&*text, from), ("question", (ip(REMOTE_POD[0]), 7002).into()));
        server.send_to(b"answer", from).expect("sent");
        let sent = here.tun.receive(7002);
        assert_eq!(sent.addresses, (ip("192.0.2.1"), ip(REMOTE_POD[0])));
        assert_eq!((sent.ports, &*sent.text), ((30053, 7002), "answer"));
    });
}

#[test]
fn what_the_host_sends_to_nobody_is_dropped_at_the_device() {
    sandbox(|bpffs| {
        let mut here = start(bpffs);
        let mut netlink = Netlink::open().expect("a socket");
        // A route that is none of ours leads there.
        let stray = Route {
            device: Some(here.tun.index),
            scope_link: true,
            ..Route::to("198.51.100.0/24".parse().unwrap())
        };
        netlink.replace_route(&stray).expect("a route");
        let host = socket(None, ip("0.0.0.0"), 4002);
        // The kernel says of some drops that there is no room.
        let _ = host.send_to(b"stray", (ip("198.51.100.1"), 7003));
        host.send_to(b"question", (ip(REMOTE_POD[0]), 7003)).expect("sent");
        assert_eq!(here.tun.receive(7003).text, "question");
    });
}
