//! Agents of two versions, and of two sizes of tables, take over from each other while connections are
//! made and held, and are killed between links whose programs are replaced (at each third of them: what is
//! before and behind such a place is of every kind there is), and between the steps that end the tables before.
//!
//! An agent is what an agent does to the kernel, in its order. One that is killed leaves what is pinned,
//! and nothing else; so does one that is dropped.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use fairway_abi::{Config, Flow, FlowKey, V4, V6};
use fairway_cni_protocol::{Bandwidth, Endpoint};
use fairway_compile::{Backend, Family, FamilyTables, View, compile};
use fairway_model::{
    EndpointState, Endpoints, Hints, Model, Node, ObjectName, Protocol, Service, ServicePort,
};
use fairway_netlink::{AddressOptions, NetNs, Netlink, Route, Veth};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use zerocopy::native_endian::U32;

use super::*;
use crate::dataplane::{
    Attach, Capacity, Dataplane, OBJECT, OBJECT_ASIDE, SOCKET_PROGRAMS, Side, replace,
};
use crate::pods::Pods;
use crate::routes::RouteTable;
use crate::sandbox::sandbox;
use crate::services::ServiceTables;

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(10);
const NODE: [u8; 4] = [192, 0, 2, 1];
const SERVICE: [u8; 4] = [10, 96, 0, 1];
/// Another, whose clients stay with their endpoints.
const STICKY: [u8; 4] = [10, 96, 0, 2];
const PORT: u16 = 80;
/// So many that a connection whose flow was lost hardly ever finds the same one again.
const SERVERS: std::ops::Range<u16> = 8080..8088;

/// An agent's version, and its tables' sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    next: bool,
    flows: Option<u32>,
}

const OURS: Kind = Kind { next: false, flows: None };
const NEXT: Kind = Kind { next: true, flows: None };
const LARGER: Kind = Kind { next: false, flows: Some(300_000) };

/// A machine with a server's pod, one of clients that are translated by packets and one of those whose
/// sockets are (a port that both took could not be told apart), and a cgroup.
struct Machine {
    bpffs: PathBuf,
    folder: tempfile::TempDir,
    /// How programs are attached to devices.
    attach: Attach,
    client: Arc<NetNs>,
    caller: NetNs,
    endpoints: Vec<Endpoint>,
    server: Arc<Server>,
}

/// The server: at each of its ports it says which one that is, to every byte and datagram.
struct Server {
    /// Who has sent a datagram, to which port.
    asked: Mutex<Vec<(UdpSocket, SocketAddr)>>,
}

/// What an agent has in its hands.
struct Agent {
    dataplane: Dataplane,
    _pods: Pods,
}

impl Machine {
    fn new(bpffs: &Path, attach: Attach) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let cgroups = folder.path().join("cgroups");
        fs::create_dir(&cgroups).expect("a folder");
        mount("none", &cgroups, "cgroup2", MountFlags::empty(), None).expect("the cgroups");
        let name =
            format!("fairway-handover-{}", folder.path().file_name().expect("one").display());
        fs::create_dir(cgroups.join(&name)).expect("a cgroup");
        let mut netlink = Netlink::open().expect("a socket");
        let lo = netlink.link("lo").expect("an answer").expect("lo").index;
        netlink.set_up(lo).expect("up");
        let node = IpAddr::from(NODE).into();
        netlink.add_address(lo, node, AddressOptions::default()).expect("an address");
        let [client, caller, serving] = [(); 3].map(|()| NetNs::unnamed().expect("a namespace"));
        let endpoints = vec![
            plug(&mut netlink, &client, "client", [10, 244, 1, 2]),
            plug(&mut netlink, &serving, "server", [10, 244, 1, 3]),
            plug(&mut netlink, &caller, "caller", [10, 244, 1, 4]),
        ];
        let server = serving.run(serve).expect("in the namespace");
        Self {
            bpffs: bpffs.to_owned(),
            folder,
            attach,
            client: Arc::new(client),
            caller,
            endpoints,
            server,
        }
    }

    fn cgroup(&self) -> PathBuf {
        let name = self.folder.path().file_name().expect("a name").display();
        self.folder.path().join(format!("cgroups/fairway-handover-{name}"))
    }

    /// An agent up to where it would replace the first program.
    fn begin(&self, kind: Kind) -> Agent {
        let next = fairway_next::OBJECT;
        let (bytes, aside) = if kind.next { (next, next) } else { (OBJECT, OBJECT_ASIDE) };
        let mut object = Object::new(bytes, aside).expect("an object");
        object.programs.retain(|name| name.starts_with("pod_") || SOCKET_PROGRAMS.contains(name));
        let capacity = kind.flows.map(|flows| format!("flows={flows}").parse::<Capacity>());
        let capacity: Vec<_> = capacity.into_iter().map(|c| c.expect("a capacity")).collect();
        let dataplane = Dataplane::load_object(&self.bpffs, object, &capacity);
        let mut dataplane = dataplane.expect("programs that load").attaching_by(self.attach);
        let model = model();
        let view = View {
            node: "a".to_owned(),
            addresses: vec![NODE.into()],
            backend: Backend::HostGw,
            ..View::default()
        };
        let tables = compile(&model, &view).expect("tables");
        dataplane.single::<Config>("config").expect("a table").set(&tables.config).expect("room");
        fill::<V4>(&mut dataplane, "4", &tables.v4);
        fill::<V6>(&mut dataplane, "6", &tables.v6);
        let mut netlink = Netlink::open().expect("a socket");
        let pods = Pods::adopt(&mut dataplane, &mut netlink, self.folder.path()).expect("pods");
        Agent { dataplane, _pods: pods }
    }

    /// The first agent, which finds nothing.
    fn first(&self, kind: Kind) {
        let mut agent = self.begin(kind);
        agent.dataplane.attach_sockets(&self.cgroup()).expect("programs at the cgroup");
        let mut netlink = Netlink::open().expect("a socket");
        for endpoint in self.endpoints.clone() {
            let added = agent._pods.add(&mut agent.dataplane, &mut netlink, endpoint, None);
            added.expect("a pod in force");
        }
    }

    /// All attachments, and what belongs there.
    fn attachments(&self, agent: &Agent) -> Vec<(String, String)> {
        let mut pins = agent.dataplane.attachments().expect("names");
        // In an order that mixes pods and directions.
        pins.sort_by_key(|pin| pin.bytes().rev().collect::<Vec<_>>());
        let program = |pin: &String| {
            let sockets = SOCKET_PROGRAMS.iter().find(|name| pin.ends_with(&format!("-{name}")));
            sockets.map_or_else(
                || format!("pod_{}", pin.rsplit('-').next().expect("a part")),
                |name| (*name).to_owned(),
            )
        };
        pins.into_iter().map(|pin| (pin.clone(), program(&pin))).collect()
    }

    /// Replaces the program of one attachment.
    fn switch(&self, agent: &mut Agent, pin: &str, name: &str) {
        let dataplane = &mut agent.dataplane;
        if SOCKET_PROGRAMS.contains(&name) {
            let program = dataplane.ebpf.program_mut(name).expect("a program");
            let fd = program.fd().expect("loaded").try_clone().expect("a descriptor");
            assert!(replace(&dataplane.links.join(pin), fd.as_fd()).expect("a link"), "{pin}");
            return;
        }
        let side = if name == "pod_ingress" { Side::Ingress } else { Side::Egress };
        let of = |endpoint: &&Endpoint| pin.contains(&format!("-{}-", endpoint.host_interface));
        let device = &self.endpoints.iter().find(of).expect("a pod").host_interface;
        dataplane.attach_last(name, device, side, pin).expect("a program in the other's place");
    }

    /// An agent that is killed after it has replaced some programs.
    fn killed(&self, kind: Kind, after: usize) {
        let mut agent = self.begin(kind);
        for (pin, name) in self.attachments(&agent).iter().take(after) {
            self.switch(&mut agent, pin, name);
        }
    }

    /// An agent that replaces all programs, but has not ended what came before.
    fn switched(&self, kind: Kind) -> Agent {
        let mut agent = self.begin(kind);
        agent.dataplane.attach_sockets(&self.cgroup()).expect("programs at the cgroup");
        for (pin, name) in self.attachments(&agent) {
            if !SOCKET_PROGRAMS.contains(&&*name) {
                self.switch(&mut agent, &pin, &name);
            }
        }
        agent
    }

    /// An agent that does all that it does.
    fn done(&self, kind: Kind) -> Agent {
        let mut agent = self.switched(kind);
        agent.dataplane.discard_predecessors();
        assert!(!self.bpffs.join("aside").exists(), "nothing is left to end");
        agent
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The cgroup is the machine's; the mount would go with the sandbox, but not with its folder.
        let _ = fs::remove_dir(self.cgroup());
        let _ = unmount(self.folder.path().join("cgroups"), UnmountFlags::DETACH);
    }
}

fn model() -> Model {
    let port = |name: &str, protocol| ServicePort {
        name: name.to_owned(),
        protocol,
        port: PORT,
        ..ServicePort::default()
    };
    let service = |name, address: [u8; 4], affinity| Service {
        name: ObjectName::new("shop", name),
        cluster_ips: vec![address.into()],
        ports: vec![port("stream", Protocol::Tcp), port("datagrams", Protocol::Udp)],
        affinity,
        ..Service::default()
    };
    let endpoints = SERVERS.map(|port| fairway_model::Endpoint {
        address: [10, 244, 1, 3].into(),
        port,
        node: Some("a".to_owned()),
        state: EndpointState::Ready,
        hints: Hints::default(),
        weight: 1,
        hostname: None,
    });
    let endpoints: Vec<_> = endpoints.collect();
    let ports = ["stream", "datagrams"].map(|port| (port.to_owned(), endpoints.clone()));
    let endpoints = |name| {
        let service = ObjectName::new("shop", name);
        fairway_model::Object::Endpoints(Endpoints { service, ports: ports.clone().into() })
    };
    let node = Node {
        name: "a".to_owned(),
        addresses: vec![NODE.into()],
        pod_cidrs: vec!["10.244.1.0/24".parse().expect("a range")],
        ..Node::default()
    };
    let objects = [
        fairway_model::Object::Node(node),
        fairway_model::Object::Service(service("web", SERVICE, None)),
        fairway_model::Object::Service(service("sticky", STICKY, Some(10_800))),
        endpoints("web"),
        endpoints("sticky"),
    ];
    objects.into_iter().collect()
}

fn fill<A: Family>(dataplane: &mut Dataplane, suffix: &str, tables: &FamilyTables<A>) {
    let mut routes = RouteTable::<A>::adopt(dataplane, suffix).expect("a table");
    routes.reconcile(&tables.routes).expect("room");
    let mut services = ServiceTables::<A>::adopt(dataplane, suffix).expect("tables");
    services.reconcile(&tables.services, Vec::new()).expect("room");
}

/// Wires a pod as the plugin does.
fn plug(netlink: &mut Netlink, pod: &NetNs, name: &str, address: [u8; 4]) -> Endpoint {
    let veth = Veth { name, peer_name: "eth0", peer_netns: Some(pod), ..Veth::default() };
    let host = netlink.create_veth(&veth).expect("a veth");
    netlink.set_up(host.index).expect("up");
    let mut inside = Netlink::open_in(pod).expect("a socket");
    let eth0 = inside.link("eth0").expect("an answer").expect("the other end");
    inside.set_up(eth0.index).expect("up");
    let host_mac = host.mac.expect("a MAC address");
    let (address, gateway) = (IpAddr::from(address), IpAddr::from([169, 254, 1, 1]));
    inside.add_address(eth0.index, address.into(), AddressOptions::default()).expect("an address");
    let device = Some(eth0.index);
    let link = Route { device, scope_link: true, ..Route::to(gateway.into()) };
    inside.replace_route(&link).expect("a route");
    let everything = Route::to("0.0.0.0/0".parse().expect("a range"));
    let default = Route { device, gateway: Some(gateway), ..everything };
    inside.replace_route(&default).expect("a route");
    inside.replace_neighbour(eth0.index, gateway, host_mac, true).expect("a neighbour");
    Endpoint {
        container_id: name.to_owned(),
        interface: "eth0".to_owned(),
        pod_namespace: "shop".to_owned(),
        pod_name: name.to_owned(),
        pod_uid: String::new(),
        host_interface: host.name,
        host_ifindex: host.index,
        host_mac,
        pod_mac: eth0.mac.expect("a MAC address"),
        addresses: vec![address],
        host_ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        netns_cookie: None,
        netns: String::new(),
    }
}

/// Serves until the test's process ends.
fn serve() -> Arc<Server> {
    let server = Arc::new(Server { asked: Mutex::default() });
    for port in SERVERS {
        let listener = TcpListener::bind(("0.0.0.0", port)).expect("a port");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    while let Ok(1) = stream.read(&mut [0]) {
                        if stream.write_all(&port.to_be_bytes()).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a port");
        let asked = Arc::clone(&server);
        std::thread::spawn(move || {
            let mut byte = [0];
            while let Ok((_, from)) = socket.recv_from(&mut byte) {
                if byte == *b"w" {
                    // An answer that waits.
                    let socket = socket.try_clone().expect("a socket");
                    asked.asked.lock().expect("no panic").push((socket, from));
                } else {
                    let _ = socket.send_to(&port.to_be_bytes(), from);
                }
            }
        });
    }
    server
}

impl Server {
    /// Answers all that wait, once so many do.
    fn answer(&self, count: usize) {
        let start = std::time::Instant::now();
        while self.asked.lock().expect("no panic").len() < count {
            assert!(start.elapsed() < PATIENCE, "not everybody has asked");
            std::thread::sleep(Duration::from_millis(1));
        }
        for (socket, from) in self.asked.lock().expect("no panic").iter() {
            socket.send_to(b"answer", from).expect("sent");
        }
    }
}

/// A connection by packets, and the server's port that it got.
enum Connection {
    Stream(TcpStream, u16),
    Datagrams(UdpSocket, u16),
}

impl Connection {
    fn stream(client: &NetNs, service: [u8; 4]) -> Self {
        let connect = || TcpStream::connect_timeout(&(service, PORT).into(), PATIENCE);
        let mut stream =
            client.run(connect).expect("in the namespace").expect("a connection to the Service");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        let port = ask_stream(&mut stream).expect("an answer to a new connection");
        Self::Stream(stream, port)
    }

    fn datagrams(client: &NetNs) -> Self {
        let connect = || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
            socket.connect((IpAddr::from(SERVICE), PORT)).expect("a peer");
            socket
        };
        let socket = client.run(connect).expect("in the namespace");
        socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        let port = ask_datagram(&socket).expect("an answer to a new socket");
        Self::Datagrams(socket, port)
    }

    /// Asks once more; the same server has to answer.
    #[track_caller]
    fn check(&mut self, when: &str) {
        let (port, answer) = match self {
            Self::Stream(stream, port) => (*port, ask_stream(stream)),
            Self::Datagrams(socket, port) => (*port, ask_datagram(socket)),
        };
        let answer = answer.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(answer, port, "{when}: the server changed");
    }
}

fn ask_stream(stream: &mut TcpStream) -> io::Result<u16> {
    stream.write_all(b"q")?;
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    Ok(u16::from_be_bytes(port))
}

fn ask_datagram(socket: &UdpSocket) -> io::Result<u16> {
    socket.send(b"q")?;
    let mut port = [0; 2];
    socket.recv(&mut port)?;
    Ok(u16::from_be_bytes(port))
}

/// Connections that are held, and made, all the time.
struct Load {
    ended: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(client: &Arc<NetNs>) -> Self {
        let (ended, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = [false, true].map(|anew| {
            let client = Arc::clone(client);
            let (ended, asked) = (Arc::clone(&ended), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut all =
                    [Connection::stream(&client, SERVICE), Connection::datagrams(&client)];
                while !ended.load(Ordering::Relaxed) {
                    if anew {
                        all =
                            [Connection::stream(&client, SERVICE), Connection::datagrams(&client)];
                    }
                    all.iter_mut().for_each(|connection| connection.check("under load"));
                    asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        });
        Self { ended, asked, threads: threads.into() }
    }

    /// No connection has failed.
    fn finish(self) {
        self.ended.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .for_each(|thread| thread.join().expect("no connection that fails"));
        assert!(self.asked.load(Ordering::Relaxed) > 100, "there was some load");
    }
}

/// A process in the cgroup and the caller's pod, whose sockets are given their endpoints.
struct Sockets {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    open: usize,
}

/// Makes this test\'s executable the process of [`Sockets`]: the cgroup that it is to be in.
const CGROUP: &str = "FAIRWAY_TEST_CGROUP";
/// Begins what that process answers, among what the harness prints.
const MARK: &str = "> ";

impl Sockets {
    fn start(machine: &Machine) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command.args(["--exact", "dataplane::handover::tests::sockets_of_another_process"]);
        command.args(["--nocapture", "--test-threads=1"]).env(CGROUP, machine.cgroup());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        machine.caller.enter_on_spawn(&mut command).expect("a namespace");
        let mut process = command.spawn().expect("a process");
        let orders = process.stdin.take().expect("a pipe");
        let answers = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, orders, answers, open: 0 }
    }

    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").expect("a process that listens");
        loop {
            let mut line = String::new();
            let length = self.answers.read_line(&mut line).expect("a line");
            assert!(length > 0, "the process with the sockets ended at {order:?}");
            // The harness may have begun the line.
            if let Some((_, answer)) = line.split_once(MARK) {
                return answer.trim().to_owned();
            }
        }
    }

    /// One more of each kind.
    fn open(&mut self) {
        self.open += 1;
        assert_eq!(self.order("open"), "done");
    }

    /// All sockets still see the Service, whoever remembers that for them.
    fn check(&mut self, server: &Server, when: &str) {
        assert_eq!(self.order("peers"), "10.96.0.1:80 ".repeat(self.open).trim(), "{when}");
        server.answer(self.open);
        assert_eq!(self.order("hear"), "10.96.0.1:80 ".repeat(self.open).trim(), "{when}");
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test: see [`Sockets`].
#[test]
fn sockets_of_another_process() {
    let Some(cgroup) = std::env::var_os(CGROUP) else { return };
    fs::write(Path::new(&cgroup).join("cgroup.procs"), "0").expect("a place in the cgroup");
    let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
    for order in io::stdin().lines() {
        let answer = match order.expect("an order").as_str() {
            "open" => {
                let stream = TcpStream::connect((IpAddr::from(SERVICE), PORT));
                streams.push(stream.expect("a connection to the Service"));
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
                socket.set_read_timeout(Some(PATIENCE)).expect("an option");
                socket.send_to(b"w", (IpAddr::from(SERVICE), PORT)).expect("sent");
                datagrams.push(socket);
                "done".to_owned()
            }
            "peers" => {
                let peers = streams.iter_mut().map(|stream| {
                    ask_stream(stream).expect("an answer");
                    stream.peer_addr().expect("a peer").to_string()
                });
                peers.collect::<Vec<_>>().join(" ")
            }
            _ => {
                let heard = datagrams.iter().map(|socket| {
                    let heard = socket.recv_from(&mut [0; 16]).expect("a datagram");
                    heard.1.to_string()
                });
                heard.collect::<Vec<_>>().join(" ")
            }
        };
        println!("{MARK}{answer}");
    }
    // What opens when its agent ends would be seen as another\'s.
    std::process::exit(0);
}

/// Everything that is open, and what opens at each step.
struct Traffic<'a> {
    machine: &'a Machine,
    connections: Vec<Connection>,
    /// The server that the client stays with.
    sticky: Option<u16>,
    sockets: Sockets,
}

impl<'a> Traffic<'a> {
    fn start(machine: &'a Machine) -> Self {
        let sockets = Sockets::start(machine);
        Self { machine, connections: Vec::new(), sticky: None, sockets }
    }

    /// All that was open still is, and more opens.
    fn check(&mut self, when: &str) {
        self.connections.iter_mut().for_each(|connection| connection.check(when));
        self.sockets.check(&self.machine.server, when);
        for _ in 0..4 {
            self.connections.push(Connection::stream(&self.machine.client, SERVICE));
        }
        let Connection::Stream(_, port) = Connection::stream(&self.machine.client, STICKY) else {
            unreachable!("it is a stream")
        };
        assert_eq!(*self.sticky.get_or_insert(port), port, "{when}: the client did not stay");
        self.connections.push(Connection::datagrams(&self.machine.client));
        self.sockets.open();
    }
}

/// Agents of one kind and the other are killed after each number of replaced programs that is a multiple of
/// `step`, and agents of either kind go on.
fn killed_between_two_links(one: Kind, other: Kind, step: usize) {
    sandbox(|bpffs| {
        let machine = Machine::new(bpffs, Attach::of_kernel());
        machine.first(one);
        let load = Load::start(&machine.client);
        let mut traffic = Traffic::start(&machine);
        let links = SOCKET_PROGRAMS.len() + 2 * machine.endpoints.len();
        let (mut now, mut next) = (one, other);
        for after in (0..=links).step_by(step) {
            traffic.check(&format!("{now:?} before {next:?}"));
            machine.killed(next, after);
            traffic.check(&format!("{next:?} was killed after {after} of {links} links"));
            // Who comes then is the one that began, or one of before.
            let back = (after / step) % 3 == 2;
            let heir = if back { now } else { next };
            machine.killed(heir, links - after);
            traffic.check(&format!("{heir:?} was killed after {next:?} was, after {after} links"));
            let agent = machine.done(heir);
            assert_eq!(machine.attachments(&agent).len(), links, "every attachment was switched");
            drop(agent);
            traffic.check(&format!("{heir:?} is alone after {next:?} was killed"));
            if !back {
                (now, next) = (next, now);
            }
        }
        load.finish();
    });
}

#[test]
fn no_connection_is_lost_on_the_way_to_another_version_and_back() {
    killed_between_two_links(OURS, NEXT, 3);
}

#[test]
fn no_connection_is_lost_on_the_way_to_another_capacity_and_back() {
    killed_between_two_links(OURS, LARGER, 5);
}

/// An agent is killed between the steps that end the tables before, and any other goes on. Programs are
/// attached in the way that every kernel has.
#[test]
fn no_connection_is_lost_by_who_is_killed_while_the_old_tables_end() {
    let steps: [fn(&Handover); 4] = [
        |handover| handover.set_phase(phase::DRAINING).expect("written"),
        |handover| {
            handover.set_phase(phase::DRAINING).expect("written");
            handover.copy(|kept| kept.by_programs && kept.name != "flows").expect("copied");
        },
        |handover| {
            handover.set_phase(phase::DRAINING).expect("written");
            handover.copy(|kept| kept.by_programs).expect("copied");
            handover.set_phase(phase::DONE).expect("written");
        },
        |handover| {
            handover.finish().expect("an end");
        },
    ];
    sandbox(|bpffs| {
        let machine = Machine::new(bpffs, Attach::Clsact);
        machine.first(OURS);
        let mut traffic = Traffic::start(&machine);
        let mut kinds = [NEXT, LARGER, OURS].into_iter().cycle();
        for (number, step) in steps.into_iter().enumerate() {
            traffic.check("before the agent");
            let kind = kinds.next().expect("a kind");
            let agent = machine.switched(kind);
            traffic.check(&format!("{kind:?} has switched"));
            step(&agent.dataplane.handover);
            drop(agent);
            traffic.check(&format!("{kind:?} was killed in step {number}"));
            let kind = kinds.next().expect("a kind");
            machine.done(kind);
            traffic.check(&format!("{kind:?} has brought step {number} to its end"));
        }
    });
}

#[test]
fn records_move_field_by_field() {
    let theirs = Object::new(fairway_next::OBJECT, fairway_next::OBJECT).expect("an object").layout;
    let ours = fairway_abi::layout::OWN;
    assert_eq!(theirs.version.get(), ours.version.get() + 1);
    let key = FlowKey::<V4> {
        source: [1, 2, 3, 4],
        destination: [5, 6, 7, 8],
        protocol: 17,
        ..FlowKey::BLANK
    };
    let up = Conversion::new(&ours, &theirs, record::FLOW_KEY, 20);
    let wider = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0];
    assert_eq!(up.convert(key.as_bytes()), wider);
    let down = Conversion::new(&theirs, &ours, record::FLOW_KEY, 16);
    assert_eq!(down.convert(&wider), key.as_bytes());

    let flow = Flow::<V6> {
        source: [1; 16],
        last_seen: U32::new(77),
        service: U32::new(5),
        ..Flow::BLANK
    };
    let up = Conversion::new(&ours, &theirs, record::FLOW | record::V6, 52);
    let down = Conversion::new(&theirs, &ours, record::FLOW | record::V6, 48);
    assert_eq!(down.convert(&up.convert(flow.as_bytes())), flow.as_bytes());
    // A description that does not fit reads nothing that is not there.
    assert_eq!(up.convert(&[9; 3]).len(), 52);
}
