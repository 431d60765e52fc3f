//! Source ports under load: two processors open flows to one destination at once, beside sockets of
//! the host. Nobody gets what another one has, and every flow that got nothing is counted.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;

use aya::programs::SchedClassifier;
use fairway_abi::{DropReason, V4, V6};
use fairway_core::memory::{Frame, Memory};
use fairway_core::packet::tcp;
use fairway_core::tables::Stage;
use fairway_netlink::{AddressOptions, Netlink};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::frame::{Builder, End, Family as _, Transport, ends};
use crate::kernel::{Kernel, SHOT, Side, run, skb_context};
use crate::overlay::wait_until;
use crate::sandbox::sandbox;
use crate::world::{OTHER_POD, POD, Special, install, plain};

const NODE: [u8; 4] = [192, 0, 2, 1];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const PORT: u16 = 443;

#[test]
fn sixty_thousand_flows_share_nothing_over_ipv4() {
    sandbox(sixty_thousand_flows_share_nothing::<V4>);
}

#[test]
fn sixty_thousand_flows_share_nothing_over_ipv6() {
    sandbox(sixty_thousand_flows_share_nothing::<V6>);
}

#[test]
fn a_range_is_used_to_its_last_port_over_ipv4() {
    sandbox(a_range_is_used_to_its_last_port::<V4>);
}

#[test]
fn a_range_is_used_to_its_last_port_over_ipv6() {
    sandbox(a_range_is_used_to_its_last_port::<V6>);
}

/// The sockets of the host that packets from CLIENT's port may be for, each on one of these ports.
struct Sockets {
    _tcp: (TcpListener, TcpStream),
    _listener: TcpListener,
    _udp: UdpSocket,
    ports: [u16; 3],
}

impl Sockets {
    /// One connected to CLIENT's very port, one that listens, and one for datagrams from anybody.
    fn open<A: Address>(ports: [u16; 3]) -> Self {
        let mut netlink = Netlink::open().expect("a netlink socket");
        let loopback = netlink.link("lo").expect("an answer").expect("a loopback device").index;
        for host in [NODE, CLIENT] {
            let options = AddressOptions { nodad: true, ..AddressOptions::default() };
            netlink.add_address(loopback, A::ip(host).into(), options).expect("an address");
        }
        let node = |port| (A::ip(NODE), port);
        let server = TcpListener::bind((A::ip(CLIENT), PORT)).expect("a server");
        let mut client = None;
        // The kernel adds IPv6 routes a moment after the address.
        wait_until("a way to the server", || {
            client = connect(node(ports[0]).into(), (A::ip(CLIENT), PORT).into()).ok();
            client.is_some()
        });
        let client = client.expect("just connected");
        Self {
            _tcp: (server, client),
            _listener: TcpListener::bind(node(ports[1])).expect("a listener"),
            _udp: UdpSocket::bind(node(ports[2])).expect("a socket"),
            ports,
        }
    }
}

/// A connection from a port of one's own choice.
fn connect(from: SocketAddr, to: SocketAddr) -> rustix::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    bind(&socket, &from)?;
    connect(&socket, &to)?;
    Ok(socket.into())
}

/// An address of the family as the standard library names it.
trait Address: Side + Special {
    fn ip(address: [u8; 4]) -> IpAddr;
}

impl Address for V4 {
    fn ip(address: [u8; 4]) -> IpAddr {
        Ipv4Addr::from(Self::at(address)).into()
    }
}

impl Address for V6 {
    fn ip(address: [u8; 4]) -> IpAddr {
        Ipv6Addr::from(Self::at(address)).into()
    }
}

/// A pod opens flows to CLIENT on a processor of its own.
struct Opener<'a> {
    program: &'a SchedClassifier,
    uplink: &'a SchedClassifier,
    devices: (u32, u32),
    processor: usize,
}

impl Opener<'_> {
    /// Opens one flow from each port, and brings its answer. Answers the ports that CLIENT sees, and
    /// how many flows were refused.
    fn open<A: Address>(
        &self,
        pod: [u8; 4],
        transport: Transport,
        ports: impl Iterator<Item = u16>,
    ) -> (Vec<u16>, usize) {
        let mut processors = CpuSet::new();
        processors.set(self.processor);
        // On a machine with one processor both take turns, as the scheduler pleases.
        let _ = sched_setaffinity(None, &processors);
        let answer = match transport {
            Transport::Tcp(_) => Transport::Tcp(tcp::SYN | tcp::ACK),
            other => other,
        };
        let (mut seen, mut refused) = (Vec::new(), 0);
        for port in ports {
            let packet = Builder::<A>::new(transport, (A::at(pod), port), outside());
            let context = skb_context(self.devices.0);
            let (action, sent) = run(self.program, &context, &packet.frame().bytes);
            if action == SHOT {
                refused += 1;
                continue;
            }
            let sent = Frame::new(sent);
            let (source, _): (End<A>, End<A>) = ends(&sent);
            assert_eq!(source.0, A::at(NODE));
            seen.push(source.1);
            let back = Builder::<A>::answer(&sent, answer).frame();
            let (_, back) = run(self.uplink, &skb_context(self.devices.1), &back.bytes);
            assert_eq!(ends::<A>(&Frame::new(back)), (outside(), (A::at(pod), port)));
        }
        (seen, refused)
    }
}

fn outside<A: Address>() -> End<A> {
    (A::at(CLIENT), PORT)
}

/// Both pods open flows from the same ports of theirs at once.
fn open_at_once<A: Address>(
    kernel: &mut Kernel<A>,
    transport: Transport,
    ports: std::ops::Range<u16>,
) -> (Vec<u16>, usize) {
    let devices = kernel.devices;
    let (program, uplink) = kernel.classifiers("pod_ingress", "uplink_ingress");
    let open = |pod, at: usize| {
        let ports = ports.clone();
        move || {
            let devices = (devices.pods[at], devices.uplink);
            Opener { program, uplink, devices, processor: at }.open::<A>(pod, transport, ports)
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(open(OTHER_POD, 1));
        let (mut seen, mut refused) = open(POD, 0)();
        let (others, more) = other.join().expect("a thread that ends");
        seen.extend(others);
        refused += more;
        (seen, refused)
    })
}

fn started<A: Address>(bpffs: &Path, first: u16, last: u16) -> Kernel<A> {
    let mut kernel = Kernel::<A>::start(bpffs);
    let mut memory: Memory<A> = plain(&kernel.devices);
    (memory.config.first_port, memory.config.last_port) = (first, last);
    install(&memory, &mut kernel);
    kernel
}

fn sixty_thousand_flows_share_nothing<A: Address>(bpffs: &Path) {
    const FLOWS: usize = 60_000;
    let mut kernel = started::<A>(bpffs, 1024, 65_535);
    let sockets = Sockets::open::<A>([5000, 5001, 5002]);
    let syn = Transport::Tcp(tcp::SYN);
    // Half of them find their own port taken by the other pod.
    let (seen, refused) = open_at_once(&mut kernel, syn, 2000..32_000);
    // A search among so few free ports may end without one, some time in very many.
    assert_eq!(seen.len() + refused, FLOWS);
    assert!(refused <= 5, "{refused} refused");
    let taken: HashSet<u16> = seen.iter().copied().collect();
    assert_eq!(taken.len(), seen.len(), "two flows share a port");
    // A connection and a listener; the third socket is for another protocol.
    for port in &sockets.ports[..2] {
        assert!(!taken.contains(port), "the host's port {port} was taken");
    }
    assert_eq!(kernel.tables.flows(Stage::Established).entries().len(), 2 * seen.len());
    assert_eq!(kernel.count_drops()[DropReason::NoSourcePort as usize], refused as u64);

    // What CLIENT sends to the host's connection stays the host's.
    kernel.overlook_drops();
    for port in sockets.ports {
        let packet = Builder::<A>::tcp(tcp::ACK, outside(), (A::at(NODE), port)).frame();
        let device = kernel.devices.uplink;
        let seen = kernel.classify("uplink_ingress", device, &packet.bytes);
        if port != sockets.ports[2] {
            assert_eq!(seen.frame.as_deref(), Some(packet.bytes.as_slice()));
        }
    }
}

fn a_range_is_used_to_its_last_port<A: Address>(bpffs: &Path) {
    const PORTS: u16 = 100;
    let mut kernel = started::<A>(bpffs, 5000, 4999 + PORTS);
    let _sockets = Sockets::open::<A>([5000, 5001, 5002]);
    for (transport, taken_by_host) in [(Transport::Tcp(tcp::SYN), 2), (Transport::Udp, 1)] {
        let before = kernel.count_drops()[DropReason::NoSourcePort as usize];
        let (seen, refused) = open_at_once(&mut kernel, transport, 40_000..40_000 + PORTS);
        let free = usize::from(PORTS) - taken_by_host;
        assert_eq!(seen.iter().collect::<HashSet<_>>().len(), free);
        assert_eq!((seen.len(), refused), (free, 2 * usize::from(PORTS) - free));
        let counted = kernel.count_drops()[DropReason::NoSourcePort as usize] - before;
        assert_eq!(counted, refused as u64);
    }
}
