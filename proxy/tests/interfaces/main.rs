//! What a node's agent shows and offers around Services, by its own command: it follows a feed that the
//! test writes, and pods are network namespaces that the test registers as the plugin would.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod adoption;
#[path = "../support/sandbox.rs"]
mod sandbox;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use fairway_abi::frontend;
use fairway_cni_protocol::{Bandwidth, Endpoint, Request, Response, encode};
use fairway_feed::server;
use fairway_model::{
    Balancing, EndpointState, Endpoints, Hints, Model, Named, Node, Object, ObjectName, Objects,
    Pod, Protocol, Service, ServicePort,
};
use fairway_netlink::{AddressOptions, NetNs, Netlink, Route, Veth, sysctl};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::sync::watch;

/// Everything that is waited for happens within this time, unless the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NODE_PORT: u16 = 30_080;

#[test]
fn node_ports_follow_the_nodes_addresses() {
    sandbox::sandbox(|bpffs| {
        let machine = Machine::new(bpffs);
        let mut netlink = Netlink::open().unwrap();
        let uplink = netlink.link("eth0").unwrap().unwrap().index;
        let web = machine.make_pod("web", 2);
        web.serve(8080);
        machine.publish(&[&web], |_| {});

        let mut agent = machine.start(&["--localhost-nodeports"]);
        agent.add(&machine, &web);
        let open = |address: &str| machine.get(&machine.netns, address, NODE_PORT).is_some();
        agent.wait_for("the node port", || open("192.0.2.1"));
        assert!(open("127.0.0.1"), "for the node's own processes");
        let other = "198.51.100.7/32".parse().unwrap();
        netlink.add_address(uplink, other, AddressOptions::default()).unwrap();
        // It is no address of the Node object.
        machine.publish(&[&web], |model| {
            change(&mut model.nodes, &"here".to_owned(), |node| {
                node.zone = Some("news".to_owned())
            });
        });
        assert!(!open("198.51.100.7"));
        machine.publish(&[&web], |model| {
            change(&mut model.nodes, &"here".to_owned(), |node| node.addresses.push(other.addr()));
        });
        agent.wait_for("the Node object's new address", || open("198.51.100.7"));
        agent.end();

        // Within ranges, the node's addresses count as they are.
        let mut agent = machine.start(&["--nodeport-addresses=198.51.100.0/24,203.0.113.0/24"]);
        agent.wait_for("the ranges", || !open("192.0.2.1") && open("198.51.100.7"));
        assert!(!open("127.0.0.1"));
        netlink.delete_address(uplink, other).unwrap();
        let third = "203.0.113.1/32".parse().unwrap();
        netlink.add_address(uplink, third, AddressOptions::default()).unwrap();
        agent.wait_for("an address that the node has got", || open("203.0.113.1"));
        agent.wait_for("the address that went", || machine.node_ports() == [third.addr()]);
    });
}

#[test]
fn a_client_stays_with_its_endpoint_whether_its_sockets_are_left_alone_or_not() {
    sandbox::sandbox(|bpffs| {
        let machine = Machine::new(bpffs);
        let servers: Vec<Plugged> =
            (2..10).map(|n| machine.make_pod(&format!("web{n}"), n)).collect();
        servers.iter().for_each(|server| server.serve(8080));
        let clients = [machine.make_pod("one", 20), machine.make_pod("two", 21)];
        let servers: Vec<&Plugged> = servers.iter().collect();
        let with_pods = |exempt: bool| {
            machine.publish(&servers, |model| {
                change(&mut model.services, &name("web"), |web| web.affinity = Some(10_800));
                for pod in servers.iter().copied().chain(&clients) {
                    let sockets_exempt = exempt && pod.name == "one";
                    model.pods.insert(Pod { sockets_exempt, ..pod.object() });
                }
            });
        };
        with_pods(false);
        let mut agent = machine.start(&[]);
        for pod in servers.iter().copied().chain(&clients) {
            agent.add(&machine, pod);
        }
        let ask = |client: &Plugged| machine.get(&client.netns, "10.96.0.1", 80).unwrap();
        let by_socket: Vec<String> = clients.iter().map(&ask).collect();
        assert_eq!(machine.flows(), 0, "what a socket was given needs no record");

        with_pods(true);
        // From the moment on that the pod's sockets are left alone, its requests have records.
        agent.wait_for("requests by the packet", || {
            assert_eq!(ask(&clients[0]), by_socket[0]);
            machine.flows() > 0
        });
        for _ in 0..8 {
            assert_eq!([ask(&clients[0]), ask(&clients[1])], by_socket[..]);
        }
        let records = machine.flows();
        // The other way around, without a word from before.
        with_pods(false);
        agent.wait_for("requests by the socket", || {
            let before = machine.flows();
            assert_eq!(ask(&clients[0]), by_socket[0]);
            machine.flows() == before
        });
        assert!(records > 0);
        agent.end();

        let mut agent = machine.start(&["--no-pod-sockets"]);
        agent.wait_for("all pods' requests by the packet", || {
            let before = machine.flows();
            assert_eq!(ask(&clients[1]), by_socket[1]);
            machine.flows() > before
        });
    });
}

#[test]
fn connections_are_counted_whoever_opens_them_and_stay_when_the_choice_changes() {
    sandbox::sandbox(|bpffs| {
        let machine = Machine::new(bpffs);
        let (one, other) = (machine.make_pod("web2", 2), machine.make_pod("web3", 3));
        let client = machine.make_pod("client", 20);
        for server in [&one, &other] {
            server.serve(8080);
        }
        let with = |balancing: Balancing, weight: u16| {
            machine.publish(&[&one, &other], |model| {
                change(&mut model.services, &name("web"), |web| web.balancing = balancing);
                change(&mut model.endpoints, &name("web"), |web| {
                    web.ports.values_mut().flatten().take(1).for_each(|web| web.weight = weight);
                });
                model.pods.insert(Pod { sockets_exempt: true, ..client.object() });
            });
        };
        with(Balancing::LeastConnections, 1);
        let mut agent = machine.start(&[]);
        for pod in [&one, &other, &client] {
            agent.add(&machine, pod);
        }
        agent.wait_for("the Service", || machine.choice() == frontend::LEAST);
        let of = |loads: &[u32]| loads.iter().sum::<u32>();

        // By sockets of the node, and by packets of a pod.
        let mut held: Vec<Held> = (0..4).map(|_| machine.hold(&machine.netns)).collect();
        agent.wait_for("the node's connections", || of(&machine.loads()) == 4);
        held.extend((0..4).map(|_| machine.hold(&client.netns)));
        agent.wait_for("all connections", || of(&machine.loads()) == 8);
        let loads = machine.loads();
        // A count that came in between may have seen one connection twice.
        assert!(loads.len() == 2 && loads.iter().all(|load| *load >= 2), "{loads:?}");
        assert!(machine.flows() >= 8, "the pod's have records");

        // Whatever the numbers were, they come to what is there; also after an agent that was killed, and
        // a connection that ended meanwhile.
        machine.set_loads(700);
        agent.0.kill().unwrap();
        drop((held.remove(7), held.remove(0)));
        let mut agent = machine.start(&[]);
        agent.wait_for("a count", || of(&machine.loads()) == 6);

        // A socket that ends takes its connection along at once, a flow that is closed with the next count.
        drop((held.pop(), held.remove(0)));
        agent.wait_for("the end of two", || of(&machine.loads()) == 4);

        // What is open stays as another rule comes, and another; new connections follow the last.
        with(Balancing::Maglev, 1);
        agent.wait_for("the first change", || machine.choice() == frontend::BY_FLOW);
        with(Balancing::RoundRobin, 0);
        agent.wait_for("the second change", || machine.choice() == frontend::IN_TURN);
        let answers: Vec<String> = held.into_iter().map(Held::ask).collect();
        let known = |answer: &String| answer.ends_with("web2") || answer.ends_with("web3");
        assert!(answers.len() == 4 && answers.iter().all(known), "{answers:?}");
        for _ in 0..8 {
            assert_eq!(machine.get(&machine.netns, "10.96.0.1", 80).as_deref(), Some("web3"));
            assert_eq!(machine.get(&client.netns, "10.96.0.1", 80).as_deref(), Some("web3"));
        }
        agent.wait_for("the end of all", || machine.loads().is_empty());
    });
}

#[test]
fn load_balancers_are_told_where_endpoints_are_and_which_node_leaves() {
    const PORT: u16 = 31_000;
    sandbox::sandbox(|bpffs| {
        let machine = Machine::new(bpffs);
        let web = machine.make_pod("web", 2);
        let with = |pods: &[&Plugged], port: Option<u16>, leaving: bool| {
            machine.publish(pods, |model| {
                change(&mut model.services, &name("web"), |web| web.health_check_node_port = port);
                change(&mut model.nodes, &"here".to_owned(), |node| node.leaving = leaving);
            });
        };
        let at = |port| SocketAddr::new(NODE, port);
        let healthz = || ask(at(10256), "/healthz").map_or(0, |answer| answer.code);
        let mut agent = machine.start(&[]);
        agent.wait_for("the health checks", || healthz() == 200);
        let code = |path| ask(at(10256), path).unwrap().code;
        assert_eq!([code("/readyz"), code("/livez")], [503, 200], "healthy while it starts");

        with(&[&web], Some(PORT), false);
        agent.wait_for("the Service's health check", || ask(at(PORT), "/").is_some());
        let answer = ask(at(PORT), "/whatever").unwrap();
        assert_eq!(answer.code, 200);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&answer.body).unwrap(),
            serde_json::json!({
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": 1,
                "serviceProxyHealthy": true,
            })
        );
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 1",
        ] {
            assert!(answer.head.contains(header), "{}", answer.head);
        }
        assert!(ask(([127, 0, 0, 1], PORT).into(), "/").is_none(), "no node port is there either");
        assert_eq!(code("/readyz"), 200);

        with(&[], Some(PORT), true);
        agent.wait_for("no endpoints", || {
            let answer = ask(at(PORT), "/").unwrap();
            answer.code == 503 && answer.body.contains("\"localEndpoints\":0")
        });
        agent.wait_for("a node that leaves", || healthz() == 503);
        let changes = |name: &str| metric(&format!("kubeproxy_sync_proxy_rules_{name}"));
        assert_eq!(changes("service_changes_total"), Some(1.0), "it came, and is as it was");
        assert_eq!(changes("endpoint_changes_total"), Some(2.0), "its pod came and went");
        agent
            .wait_for("nothing to be pending", || changes("endpoint_changes_pending") == Some(0.0));
        agent.wait_for("the tables' sizes", || {
            metric("fairway_table_bytes{table=\"flows4\"}").is_some_and(|bytes| bytes > 0.0)
        });
        assert_eq!(code("/livez"), 200);
        assert!(ask(at(10256), "/healthz").unwrap().body.contains("\"nodeEligible\":false"));

        // A port that is somebody else's is waited for.
        let taken = TcpListener::bind(at(PORT + 1)).unwrap();
        with(&[&web], Some(PORT + 1), false);
        agent.wait_for("the port to be closed", || ask(at(PORT), "/").is_none());
        let failures = "fairway_health_check_node_port_failures_total";
        agent.wait_for("a failure", || metric(failures) > Some(0.0));
        drop(taken);
        agent.wait_for("the port", || ask(at(PORT + 1), "/").is_some_and(|a| a.code == 200));
        agent.end();

        let mut agent = machine.start(&["--nodeport-addresses=0.0.0.0/0"]);
        let everywhere = SocketAddr::from(([127, 0, 0, 1], PORT + 1));
        agent.wait_for("the port everywhere", || ask(everywhere, "/").is_some());
        with(&[&web], None, false);
        agent.wait_for("the port to be closed", || ask(everywhere, "/").is_none());
    });
}

#[test]
fn connections_outlive_agents_that_are_killed_while_tables_change_their_size() {
    const SAY: &[u8] = b"word";
    sandbox::sandbox(|bpffs| {
        let machine = Machine::new(bpffs);
        let servers: Vec<Plugged> =
            (2..6).map(|n| machine.make_pod(&format!("web{n}"), n)).collect();
        servers.iter().for_each(|server| server.echo(8080));
        let client = machine.make_pod("client", 20);
        machine.publish(&servers.iter().collect::<Vec<_>>(), |model| {
            model.pods.insert(client.object());
        });
        let mut agent = machine.start(&[]);
        for pod in servers.iter().chain([&client]) {
            agent.add(&machine, pod);
        }
        // The test is in no cgroup of the machine's, so each connection has flow records.
        let connect = || {
            let stream = TcpStream::connect_timeout(&([10, 96, 0, 1], 80).into(), PATIENCE);
            let stream = stream.unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        let mut streams = Vec::new();
        let mut check = |when: &str| {
            streams.extend((0..4).map(|_| client.netns.run(connect).unwrap()));
            for stream in &mut streams {
                let mut answer = [0; SAY.len()];
                let told = stream.write_all(SAY).and_then(|()| stream.read_exact(&mut answer));
                assert!(told.is_ok() && answer == SAY, "{when}: {told:?}");
            }
        };
        check("at first");
        drop(agent);
        // Killed as early as anything can be seen of what it does, and ever later.
        for (number, phase) in [0, 1, 1, 2, 3].into_iter().enumerate() {
            let capacity = format!("--capacity=flows={}", 1000 + number);
            let mut agent = machine.start(&[&capacity]);
            let aside = machine.bpffs.join("aside");
            agent.wait_for("tables aside, or another size of tables", || {
                aside.exists() && machine.phase() >= Some(phase) || machine.phase() == Some(3)
            });
            drop(agent);
            check(&format!("an agent was killed in phase {phase}"));
        }
        let mut agent = machine.start(&["--capacity=flows=2000"]);
        agent.wait_for("tables of another size alone", || {
            let flows = MapInfo::from_pin(machine.table("flows4"));
            let size = flows.map(|flows| flows.max_entries()).ok();
            size == Some(4000) && !machine.bpffs.join("aside").exists()
        });
        check("an agent that was not killed");
        assert!(machine.flows() >= 2 * streams.len(), "every connection has its records");
    });
}

/// A sandbox with an uplink, folders for everything, and a feed.
struct Machine {
    folder: tempfile::TempDir,
    bpffs: PathBuf,
    cgroup: PathBuf,
    /// The node's network namespace.
    netns: NetNs,
    models: watch::Sender<Option<Arc<Model>>>,
    feed: SocketAddr,
}

impl Machine {
    fn new(bpffs: &Path) -> Self {
        Self::beside(None, bpffs)
    }

    /// One whose uplink leads into another network namespace.
    fn beside(world: Option<&NetNs>, bpffs: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cgroups = folder.path().join("cgroups");
        fs::create_dir(&cgroups).unwrap();
        mount("none", &cgroups, "cgroup2", MountFlags::empty(), None).unwrap();
        let name = format!("fairway-node-{}", folder.path().file_name().unwrap().display());
        let cgroup = cgroups.join(name);
        fs::create_dir(&cgroup).unwrap();
        for name in ["all", "default"] {
            sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1").unwrap();
        }
        let mut netlink = Netlink::open().unwrap();
        let veth = Veth { name: "eth0", peer_name: "wire", peer_netns: world, ..Veth::default() };
        let uplink = netlink.create_veth(&veth).unwrap();
        for link in netlink.links().unwrap() {
            netlink.set_up(link.index).unwrap();
        }
        let address = "192.0.2.1/24".parse().unwrap();
        netlink.add_address(uplink.index, address, AddressOptions::default()).unwrap();
        let models = watch::Sender::new(None);
        let feed = serve_feed(models.subscribe());
        let bpffs = bpffs.join("fairway");
        Self { folder, bpffs, cgroup, netns: NetNs::current().unwrap(), models, feed }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self, more: &[&str]) -> Agent {
        let mut agent = self.program();
        agent.args(["--node-name", "here", "--uplink", "eth0"]);
        agent.arg("--feed").arg(format!("http://{}", self.feed));
        agent.arg("--bpffs").arg(&self.bpffs).arg("--cgroup").arg(&self.cgroup);
        agent.arg("--state-dir").arg(self.path("state"));
        agent.arg("--socket").arg(self.socket());
        agent.arg("--cni-data-dir").arg(self.path("cni"));
        Agent(agent.args(more).spawn().unwrap())
    }

    /// The agent's command.
    fn program(&self) -> Command {
        // On another machine than it was built on, it is elsewhere.
        let folder = std::env::var_os("FAIRWAY_BIN_DIR").map(PathBuf::from);
        let built = || PathBuf::from(env!("CARGO_BIN_EXE_fairway-proxy"));
        let program = folder.map_or_else(built, |folder| folder.join("fairway-proxy"));
        Command::new(program)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/agent.sock")
    }

    /// Makes this the model: Service "web", with these pods as its endpoints, and what `edit` does.
    fn publish(&self, servers: &[&Plugged], edit: impl FnOnce(&mut Model)) {
        let node = Node {
            name: "here".to_owned(),
            addresses: vec![NODE],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            ..Node::default()
        };
        let port = ServicePort {
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(NODE_PORT),
            ..ServicePort::default()
        };
        let service = Service {
            name: name("web"),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            ports: vec![port],
            ..Service::default()
        };
        let endpoints = servers.iter().map(|pod| fairway_model::Endpoint {
            address: pod.address,
            port: 8080,
            node: Some("here".to_owned()),
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        });
        let ports = [(String::new(), endpoints.collect())].into();
        let objects = [
            Object::Node(node),
            Object::Service(service),
            Object::Endpoints(Endpoints { service: name("web"), ports }),
        ];
        let pods = servers.iter().map(|pod| Object::Pod(pod.object()));
        let mut model: Model = objects.into_iter().chain(pods).collect();
        edit(&mut model);
        self.models.send_replace(Some(Arc::new(model)));
    }

    /// A pod with an interface, which no agent knows yet.
    fn make_pod(&self, name: &str, last: u8) -> Plugged {
        Plugged::new(name, last)
    }

    /// What a server says to a process that the socket's programs see, in a network namespace.
    fn get(&self, netns: &NetNs, address: &str, port: u16) -> Option<String> {
        let mut shell = Command::new("sh");
        let script = "echo 0 > \"$0\"/cgroup.procs && exec curl -sf --max-time 5 \"http://$1/\"";
        shell.args(["-c", script]).arg(&self.cgroup).arg(format!("{address}:{port}"));
        netns.enter_on_spawn(&mut shell).unwrap();
        let output = shell.output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// How many IPv4 flow records there are.
    fn flows(&self) -> usize {
        let count = |name: &str, kind: fn(MapData) -> Map| {
            let map = MapData::from_pin(self.table(name)).unwrap();
            let map = HashMap::<_, [u8; 16], [u8; 24]>::try_from(kind(map)).unwrap();
            map.keys().count()
        };
        count("half_open4", Map::LruHashMap) + count("flows4", Map::HashMap)
    }

    /// Opens a connection to the Service from a network namespace, and keeps it. What it asks in the end is
    /// one write: a server that closes before it has read all resets the connection.
    fn hold(&self, netns: &NetNs) -> Held {
        let mut shell = Command::new("bash");
        let script = "echo 0 > \"$0\"/cgroup.procs && exec 3<>/dev/tcp/10.96.0.1/80 && echo open && \
                      read && printf 'GET /' >&3 && exec cat <&3";
        shell.args(["-c", script]).arg(&self.cgroup);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        netns.enter_on_spawn(&mut shell).unwrap();
        let mut child = shell.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        Held { child, output }
    }

    /// How many connections each endpoint has, as the programs and the agent count them.
    fn loads(&self) -> Vec<u32> {
        self.load_table().iter().map(|entry| entry.unwrap().1).collect()
    }

    /// Has them all wrong.
    fn set_loads(&self, number: u32) {
        let mut table = self.load_table();
        let keys: Vec<_> = table.keys().map(Result::unwrap).collect();
        keys.iter().for_each(|key| table.insert(key, number, 0).unwrap());
    }

    fn load_table(&self) -> HashMap<MapData, [u8; 8], u32> {
        let map = MapData::from_pin(self.table("loads4")).unwrap();
        HashMap::try_from(Map::HashMap(map)).unwrap()
    }

    /// How the Service chooses: bits of [`frontend`].
    fn choice(&self) -> u32 {
        const FLAGS: usize = 12;
        let Ok(map) = MapData::from_pin(self.table("frontends4")) else { return 0 };
        let map = HashMap::<_, [u8; 8], [u8; 24]>::try_from(Map::HashMap(map)).unwrap();
        let record = map.get(&[10, 96, 0, 1, 0, 80, 6, 0], 0);
        record.map_or(0, |record| u32::from_ne_bytes(*record[FLAGS..].first_chunk().unwrap()))
    }

    /// The addresses that the node port is open on.
    fn node_ports(&self) -> Vec<IpAddr> {
        let map = MapData::from_pin(self.table("frontends4")).unwrap();
        let map = HashMap::<_, [u8; 8], [u8; 24]>::try_from(Map::HashMap(map)).unwrap();
        let keys = map.keys().map(Result::unwrap);
        let keys = keys.filter(|key| key[4..6] == NODE_PORT.to_be_bytes());
        let mut all: Vec<IpAddr> = keys.map(|[a, b, c, d, ..]| [a, b, c, d].into()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// How far the tables have taken the place of others.
    fn phase(&self) -> Option<u32> {
        let map = MapData::from_pin(self.table("phase")).ok()?;
        let phase = Array::<_, u32>::try_from(Map::Array(map)).unwrap();
        Some(phase.get(&0, 0).unwrap())
    }

    fn table(&self, name: &str) -> PathBuf {
        self.bpffs.join("tables").join(name)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The cgroup is the machine's; the mount would go with the sandbox, but not with its folder.
        let _ = fs::remove_dir(&self.cgroup);
        let _ = unmount(self.path("cgroups"), UnmountFlags::DETACH);
    }
}

/// A connection that somebody keeps open.
struct Held {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Held {
    /// Asks, and answers what came back.
    fn ask(mut self) -> String {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
        let mut answer = String::new();
        self.output.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pod: a network namespace and a veth, wired as the plugin does it.
struct Plugged {
    name: String,
    netns: NetNs,
    address: IpAddr,
    endpoint: Endpoint,
}

impl Plugged {
    fn new(name: &str, last: u8) -> Self {
        let netns = NetNs::unnamed().unwrap();
        let (mut node, mut pod) = (Netlink::open().unwrap(), Netlink::open_in(&netns).unwrap());
        let host = node
            .create_veth(&Veth {
                name,
                peer_name: "eth0",
                peer_netns: Some(&netns),
                ..Veth::default()
            })
            .unwrap();
        let eth0 = pod.link("eth0").unwrap().unwrap();
        let address = IpAddr::from([10, 244, 1, last]);
        let gateway: IpAddr = [169, 254, 1, 1].into();
        let (host_mac, pod_mac) = (host.mac.unwrap(), eth0.mac.unwrap());
        pod.set_up(eth0.index).unwrap();
        pod.add_address(eth0.index, address.into(), AddressOptions::default()).unwrap();
        pod.replace_neighbour(eth0.index, gateway, host_mac, true).unwrap();
        let device = Some(eth0.index);
        let link = Route { device, scope_link: true, ..Route::to(gateway.into()) };
        pod.add_route(&link).unwrap();
        let everywhere = Route::to("0.0.0.0/0".parse().unwrap());
        pod.add_route(&Route { gateway: Some(gateway), device, ..everywhere }).unwrap();
        node.set_up(host.index).unwrap();
        node.replace_neighbour(host.index, address, pod_mac, true).unwrap();
        let device = Some(host.index);
        node.add_route(&Route { device, scope_link: true, ..Route::to(address.into()) }).unwrap();
        let endpoint = Endpoint {
            container_id: format!("container-{name}"),
            interface: "eth0".to_owned(),
            pod_namespace: "shop".to_owned(),
            pod_name: name.to_owned(),
            pod_uid: String::new(),
            host_interface: name.to_owned(),
            host_ifindex: host.index,
            host_mac,
            pod_mac,
            addresses: vec![address],
            host_ports: Vec::new(),
            bandwidth: Bandwidth::default(),
            netns_cookie: pod.netns_cookie(),
            netns: String::new(),
        };
        Self { name: name.to_owned(), netns, address, endpoint }
    }

    fn object(&self) -> Pod {
        Pod { name: name(&self.name), node: "here".to_owned(), ..Pod::default() }
    }

    /// Serves its name over HTTP, until the test ends.
    fn serve(&self, port: u16) {
        let listener = self.netns.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
        let name = self.name.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let name = name.clone();
                thread::spawn(move || {
                    // Whoever hangs up early gets no answer.
                    let _ = stream.read(&mut [0; 1024]);
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}",
                        name.len()
                    );
                });
            }
        });
    }
}

impl Plugged {
    /// Says whatever it is told, until the test ends.
    fn echo(&self, port: u16) {
        let listener = self.netns.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
    }
}

/// The agent's process.
struct Agent(Child);

impl Agent {
    /// As a supervisor ends it.
    fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap();
    }

    /// Registers a pod as the plugin does, once the agent takes any.
    fn add(&mut self, machine: &Machine, pod: &Plugged) {
        let request = Request::AddEndpoint { endpoint: pod.endpoint.clone() };
        self.wait_for(&format!("pod {}", pod.name), || {
            let Ok(mut stream) = UnixStream::connect(machine.socket()) else { return false };
            stream.write_all(&encode(&request).unwrap()).unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            match serde_json::from_str(&answer).unwrap() {
                Response::Ok => true,
                Response::Error(refusal) if refusal.try_again => false,
                other => panic!("{other:?}"),
            }
        });
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert_eq!(self.0.try_wait().unwrap(), None, "the agent ended before {what}");
            assert!(begin.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves the model in this network namespace, for as long as the test runs.
fn serve_feed(models: watch::Receiver<Option<Arc<Model>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            server::serve(listener, server::Plain, models, server::Options::default()).await;
        });
    });
    address
}

/// An answer by HTTP.
struct Answer {
    code: u16,
    /// In lower case.
    head: String,
    body: String,
}

/// Asks a server by this thread's network namespace; `None` if there is none.
fn ask(at: SocketAddr, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { code, head: head.to_lowercase(), body: body.to_owned() })
}

/// A number among the agent's metrics, by its name and labels.
fn metric(name: &str) -> Option<f64> {
    let answer = ask(([127, 0, 0, 1], 10249).into(), "/metrics")?;
    let mut lines = answer.body.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

/// Changes the object of this name.
fn change<T: Named + Clone>(objects: &mut Objects<T>, name: &T::Name, edit: impl FnOnce(&mut T)) {
    let mut object = objects.get(name).expect("an object to change").clone();
    edit(&mut object);
    objects.insert(object);
}
