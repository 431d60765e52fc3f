//! A node and pods out of network namespaces, and an agent out of a thread.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fairway_cni_protocol::{
    Endpoint, KnownAddresses, NodeConfig, Refusal, Registered, Request, Response, decode,
};
use fairway_netlink::{NetNs, Netlink, sysctl};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::tracer::{self, Ending, Moment};

/// Where root is missing, a test says that it does not run, and fails if CI was to run it.
pub(crate) fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI has to run these tests as root");
    if !root {
        eprintln!("NOT RUN: this test needs root");
    }
    root
}

pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_fairway-cni");

/// A node: a network namespace, a folder and an agent. All of it goes with the value.
pub(crate) struct Node {
    netns: Option<NetNs>,
    folder: PathBuf,
    pub(crate) agent: Agent,
}

impl Node {
    /// A node whose pods are addressed from these ranges.
    pub(crate) fn new(ranges: &[&str]) -> Self {
        let netns = NetNs::unnamed().expect("a new network namespace");
        Self::on(Some(netns), ranges)
    }

    /// A node that nothing is to be changed on, so that no root is needed.
    pub(crate) fn without_namespace() -> Self {
        Self::on(None, &[])
    }

    fn on(netns: Option<NetNs>, ranges: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("fairway-cni-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a folder for the test");
        let config = NodeConfig {
            node: "n1".to_owned(),
            pod_cidrs: ranges.iter().map(|range| range.parse().expect("a range")).collect(),
            mtu: 1450,
        };
        let agent = Agent::start(&folder.join("agent.sock"), config);
        Self { netns, folder, agent }
    }

    /// A network configuration for this node.
    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "fairway-cni",
            "socket": self.folder.join("agent.sock"),
            "dataDir": self.folder,
        })
    }

    pub(crate) fn config_with(&self, key: &str, value: &Value) -> Value {
        let mut config = self.config();
        config[key] = value.clone();
        config
    }

    /// Executes the plugin for a pod.
    pub(crate) fn call(&self, verb: &'static str, pod: &Pod, config: &Value) -> Reply {
        self.exec(&pod.env(verb), &config.to_string())
    }

    /// Executes the plugin.
    pub(crate) fn exec(&self, env: &[(&str, &str)], stdin: &str) -> Reply {
        self.spawn(Command::new(PLUGIN), env, stdin)
    }

    /// Executes another plugin.
    pub(crate) fn exec_other(&self, plugin: &Path, env: &[(&str, &str)], stdin: &str) -> Reply {
        self.spawn(Command::new(plugin), env, stdin)
    }

    /// Executes a program that executes the plugin.
    pub(crate) fn exec_with(
        &self,
        program: &str,
        arguments: &[&str],
        env: &[(&str, &str)],
        stdin: &str,
    ) -> Reply {
        let mut command = Command::new(program);
        command.args(arguments);
        self.spawn(command, env, stdin)
    }

    /// Executes the plugin without one of root's capabilities.
    pub(crate) fn exec_without(
        &self,
        capability: &str,
        env: &[(&str, &str)],
        stdin: &str,
    ) -> Reply {
        let without = format!("--bounding-set=-{capability}");
        self.exec_with("/usr/bin/setpriv", &[&without, "--", PLUGIN], env, stdin)
    }

    /// Executes the plugin until it is about to make its `step`th change.
    pub(crate) fn kill_before(&self, env: &[(&str, &str)], stdin: &str, moment: Moment) -> Ending {
        let mut command = Command::new(PLUGIN);
        command.env_clear().envs(env.iter().copied());
        self.netns().enter_on_spawn(&mut command).expect("the node's namespace");
        tracer::kill_before(command, stdin, moment)
    }

    fn spawn(&self, mut command: Command, env: &[(&str, &str)], stdin: &str) -> Reply {
        command.env_clear().envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(netns) = &self.netns {
            netns.enter_on_spawn(&mut command).expect("the node's namespace");
        }
        let mut child = command.spawn().expect("the plugin");
        // It may have answered, and gone, without reading.
        let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
        Reply(child.wait_with_output().expect("an exit status"))
    }

    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        self.run("ip", arguments)
    }

    /// What a program prints on this node.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        run(self.netns(), program, arguments)
    }

    /// A folder of this node's.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// An address of the node itself, on its loopback device.
    pub(crate) fn own_address(&self, address: &str) {
        self.ip(&["link", "set", "lo", "up"]);
        if address.contains(':') {
            self.ip(&["addr", "add", address, "dev", "lo", "nodad"]);
            // The kernel routes packets to it from when it finds the time.
            let plain = address.trim_end_matches("/128");
            let begin = Instant::now();
            while !self.ip(&["-6", "route", "show", "table", "local"]).contains(plain) {
                assert!(begin.elapsed() < Duration::from_secs(10), "no local route to {address}");
                std::thread::sleep(Duration::from_millis(1));
            }
        } else {
            self.ip(&["addr", "add", address, "dev", "lo"]);
        }
    }

    /// Forwards between pods, which is the agent's to turn on.
    pub(crate) fn forward(&self) {
        let forward = || {
            sysctl::set("net/ipv4/ip_forward", "1").expect("a sysctl");
            sysctl::set("net/ipv6/conf/all/forwarding", "1").expect("a sysctl");
        };
        self.netns().run(forward).expect("the node's namespace");
    }

    /// All that a call could leave behind: links, routes, neighbours, and reserved addresses. Routes
    /// that the kernel makes on a link, when it finds the time, are left out.
    pub(crate) fn state(&self) -> Vec<String> {
        let mut netlink = Netlink::open_in(self.netns()).expect("netlink");
        let links = netlink.links().expect("links").into_iter().filter(|link| !link.loopback);
        let mut state: Vec<_> = links.map(|link| link.name).collect();
        for family in ["-4", "-6"] {
            let routes = self.ip(&[family, "route", "show", "table", "all"]);
            let routes = routes
                .lines()
                .filter(|line| !line.contains("dev lo") && !line.contains("proto kernel"));
            state.extend(routes.map(str::to_owned));
        }
        state.extend(self.ip(&["neigh"]).lines().map(str::to_owned));
        state.extend(self.reserved());
        state
    }

    /// The addresses taken, by the store's own file names.
    pub(crate) fn reserved(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.store()) else {
            return Vec::new();
        };
        let names = files.map(|file| file.expect("a file").file_name().into_string());
        let mut names: Vec<_> = names.map(|name| name.expect("a name")).collect();
        names.retain(|name| {
            name != "lock" && !["last.", "damaged-"].iter().any(|p| name.starts_with(p))
        });
        names.sort();
        names
    }

    /// Files in the store that are neither addresses nor the store's own bookkeeping.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut names = self.reserved();
        names.retain(|name| name.parse::<IpAddr>().is_err() && !name.starts_with("damaged-"));
        names
    }

    pub(crate) fn remove_reservation(&self, address: &str) {
        fs::remove_file(self.store().join(address)).expect("a reservation");
    }

    pub(crate) fn damage_reservation(&self, address: &str) {
        fs::write(self.store().join(address), "").expect("a reservation");
    }

    /// Makes the address store unusable, even for root: its lock is not a file.
    pub(crate) fn break_store(&self) {
        fs::remove_file(self.store().join("lock")).expect("a lock");
        fs::create_dir(self.store().join("lock")).expect("a directory");
    }

    pub(crate) fn mend_store(&self) {
        fs::remove_dir(self.store().join("lock")).expect("a directory");
    }

    /// As if the disk had been lost, with the pods alive.
    pub(crate) fn lose_store(&self) {
        fs::remove_dir_all(self.store()).expect("a store");
    }

    /// What the agent does at its start about the addresses.
    pub(crate) fn reconcile(&self, endpoints: &[Endpoint]) -> fairway_cni::Reconciled {
        let mut netlink = Netlink::open_in(self.netns()).expect("netlink");
        fairway_cni::reconcile_addresses(Some(&self.folder), &mut netlink, endpoints)
            .expect("a store and a kernel")
    }

    /// As if that node's disk were this one's.
    pub(crate) fn take_store_of(&self, other: &Self) {
        fs::create_dir(self.store()).expect("a store");
        for name in other.reserved() {
            fs::copy(other.store().join(&name), self.store().join(&name)).expect("a reservation");
        }
    }

    fn store(&self) -> PathBuf {
        self.folder.join("addresses")
    }

    pub(crate) fn netns(&self) -> &NetNs {
        self.netns.as_ref().expect("a node with a namespace")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.agent.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A pod's namespace as a runtime prepares it, and what the runtime says of the pod.
pub(crate) struct Pod {
    netns: NetNs,
    netns_path: String,
    container_id: String,
    interface: String,
    arguments: String,
}

impl Pod {
    pub(crate) fn new(container_id: &str, interface: &str) -> Self {
        let netns = NetNs::unnamed().expect("a new network namespace");
        // The namespace has no name, but whoever may see this process may open it.
        let netns_path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        Self {
            netns,
            netns_path,
            container_id: container_id.to_owned(),
            interface: interface.to_owned(),
            arguments: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container_id}"
            ),
        }
    }

    pub(crate) fn netns_path(&self) -> &str {
        &self.netns_path
    }

    /// The environment of a call for this pod.
    pub(crate) fn env(&self, verb: &'static str) -> Vec<(&'static str, &str)> {
        vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &self.container_id),
            ("CNI_NETNS", &self.netns_path),
            ("CNI_IFNAME", &self.interface),
            ("CNI_ARGS", &self.arguments),
            ("CNI_PATH", "/opt/cni/bin"),
        ]
    }

    /// The same with one variable set to something else.
    pub(crate) fn env_with<'a>(
        &'a self,
        verb: &'static str,
        key: &'static str,
        value: &'a str,
    ) -> Vec<(&'static str, &'a str)> {
        let mut env = self.env(verb);
        env.retain(|(name, _)| *name != key);
        env.push((key, value));
        env
    }

    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        run(&self.netns, "ip", arguments)
    }

    pub(crate) fn netns(&self) -> &NetNs {
        &self.netns
    }

    pub(crate) fn has_link(&self, name: &str) -> bool {
        let mut netlink = Netlink::open_in(&self.netns).expect("netlink");
        netlink.link(name).expect("an answer").is_some()
    }
}

/// What the plugin answered.
pub(crate) struct Reply(Output);

impl Reply {
    /// The document it printed; `null` if none.
    #[track_caller]
    pub(crate) fn success(self) -> Value {
        let (stdout, stderr) = self.text();
        assert!(self.0.status.success(), "{stdout}{stderr}");
        if stdout.is_empty() { Value::Null } else { serde_json::from_str(&stdout).expect("JSON") }
    }

    /// The error it printed, which has this code and contains these texts.
    #[track_caller]
    pub(crate) fn failure(self, code: u64, texts: &[&str]) -> Value {
        let (stdout, stderr) = self.text();
        assert_eq!(self.0.status.code(), Some(1), "{stdout}{stderr}");
        let error: Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!(error["code"], code, "{error}");
        let message = error["msg"].as_str().expect("a message");
        for text in texts {
            assert!(message.contains(text), "{text:?} in {message:?}");
        }
        error
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.0.status.success()
    }

    /// It was killed before it printed anything.
    #[track_caller]
    pub(crate) fn killed(self) {
        let (stdout, stderr) = self.text();
        assert_eq!(self.0.status.signal(), Some(9), "{stdout}{stderr}");
        assert_eq!(stdout, "");
    }

    /// What it told whoever reads the runtime's log.
    pub(crate) fn complaints(&self) -> String {
        self.text().1
    }

    fn text(&self) -> (String, String) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&self.0.stdout), text(&self.0.stderr))
    }
}

/// Stands in for the node's agent: it remembers what it is told, and answers as it is told to.
pub(crate) struct Agent {
    socket: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    config: NodeConfig,
    endpoints: Mutex<Vec<Endpoint>>,
    behaviour: Mutex<Behaviour>,
    stopping: AtomicBool,
}

type Answer = dyn Fn(&Request) -> Option<Response> + Send;

/// Some other answer, or none at all, instead of the agent's own.
enum Behaviour {
    Answer(Box<Answer>),
    HangUp(fn(&Request) -> bool),
    /// The plugin never sees the answer.
    Kill(fn(&Request) -> bool),
}

impl Agent {
    fn start(socket: &Path, config: NodeConfig) -> Self {
        let listener = UnixListener::bind(socket).expect("the agent's socket");
        let shared = Arc::new(Shared {
            config,
            endpoints: Mutex::default(),
            behaviour: Mutex::new(Behaviour::Answer(Box::new(|_| None))),
            stopping: AtomicBool::new(false),
        });
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serving.clone();
                // Ends when the plugin closes its connection.
                std::thread::spawn(move || shared.serve(&stream.expect("a connection")));
            }
        });
        Self { socket: socket.to_owned(), shared, thread: Some(thread) }
    }

    /// As if killed: nobody listens any more.
    pub(crate) fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.stopping.store(true, Ordering::SeqCst);
            let _ = UnixStream::connect(&self.socket);
            thread.join().expect("the agent's thread");
            let _ = fs::remove_file(&self.socket);
        }
    }

    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        locked(&self.shared.endpoints).clone()
    }

    pub(crate) fn forget(&self, container_id: &str) {
        locked(&self.shared.endpoints).retain(|known| known.container_id != container_id);
    }

    pub(crate) fn answer_with(
        &self,
        answer: impl Fn(&Request) -> Option<Response> + Send + 'static,
    ) {
        *locked(&self.shared.behaviour) = Behaviour::Answer(Box::new(answer));
    }

    pub(crate) fn hang_up_on(&self, request: fn(&Request) -> bool) {
        *locked(&self.shared.behaviour) = Behaviour::HangUp(request);
    }

    /// Kills the plugin when it asks this.
    pub(crate) fn kill_on(&self, request: fn(&Request) -> bool) {
        *locked(&self.shared.behaviour) = Behaviour::Kill(request);
    }

    pub(crate) fn refusal(try_again: bool, message: &str) -> Response {
        Response::Error(Refusal { try_again, message: message.to_owned() })
    }
}

impl Shared {
    fn serve(&self, stream: &UnixStream) {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let request = decode(line.as_bytes()).expect("a request");
            let Some(response) = self.respond(request, stream) else { return };
            let mut line = serde_json::to_string(&response).expect("JSON");
            line.push('\n');
            let mut stream = stream;
            if stream.write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn respond(&self, request: Request, stream: &UnixStream) -> Option<Response> {
        match &*locked(&self.behaviour) {
            Behaviour::HangUp(on) if on(&request) => return None,
            Behaviour::Kill(on) if on(&request) => {
                let plugin = socket_peercred(stream).expect("the plugin's process id").pid;
                kill_process(plugin, Signal::KILL).expect("killed");
            }
            Behaviour::HangUp(_) | Behaviour::Kill(_) => {}
            Behaviour::Answer(answer) => {
                if let Some(response) = answer(&request) {
                    return Some(response);
                }
            }
        }
        let mut endpoints = locked(&self.endpoints);
        Some(match request {
            Request::NodeConfig => Response::NodeConfig(self.config.clone()),
            Request::KnownAddresses { .. } => Response::KnownAddresses(KnownAddresses::default()),
            Request::AddEndpoint { endpoint } => {
                endpoints.push(endpoint);
                Response::Ok
            }
            Request::DeleteEndpoint { container_id, interface } => {
                endpoints.retain(|known| {
                    (&known.container_id, &known.interface) != (&container_id, &interface)
                });
                Response::Ok
            }
            Request::CheckEndpoint { endpoint } if endpoints.contains(&endpoint) => Response::Ok,
            Request::CheckEndpoint { .. } => Agent::refusal(false, "not in force"),
            Request::ListEndpoints => {
                let listed =
                    |endpoint: &Endpoint| Registered { endpoint: endpoint.clone(), since: 0 };
                Response::Endpoints { endpoints: endpoints.iter().map(listed).collect() }
            }
            Request::ResolveName { .. } => Agent::refusal(false, "no name is known"),
        })
    }
}

/// All packets that arrive anywhere in a namespace from now on.
pub(crate) struct Capture(OwnedFd);

impl Capture {
    pub(crate) fn begin(netns: &NetNs) -> Self {
        const ALL: u16 = 0x0003; // ETH_P_ALL
        let protocol = NonZeroU32::new(ALL.to_be().into()).map(Protocol::from_raw);
        let open =
            || socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
        let socket = netns.run(open).expect("the namespace").expect("a packet socket");
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5)))
            .expect("a timeout");
        Self(socket)
    }

    /// The next frame that is what is looked for.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, is_it: impl Fn(&[u8]) -> bool) {
        let mut frame = [0; 2048];
        loop {
            let received = recv(&self.0, &mut frame[..], RecvFlags::empty());
            let (length, _) = received.unwrap_or_else(|error| panic!("no {what}: {error}"));
            if is_it(&frame[..length]) {
                return;
            }
        }
    }
}

/// A datagram from one address to the other, and its answer, each of which is in its namespace.
#[track_caller]
pub(crate) fn exchange(from: (&NetNs, &str), to: (&NetNs, &str)) {
    let socket = |(netns, address): (&NetNs, &str)| {
        let address: IpAddr = address.parse().expect("an address");
        let socket = netns.run(|| UdpSocket::bind((address, 0))).expect("the namespace");
        let socket = socket.unwrap_or_else(|error| panic!("bind to {address}: {error}"));
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket
    };
    let (here, there) = (socket(from), socket(to));
    here.send_to(b"ping", there.local_addr().expect("an address")).expect("sent");
    let mut buffer = [0; 8];
    let (length, sender) = there.recv_from(&mut buffer).unwrap_or_else(|error| {
        panic!("nothing from {} arrived at {}: {error}", from.1, to.1);
    });
    assert_eq!((&buffer[..length], sender), (&b"ping"[..], here.local_addr().expect("an address")));
    there.send_to(b"pong", sender).expect("sent");
    let length = here.recv(&mut buffer).unwrap_or_else(|error| {
        panic!("no answer of {} arrived at {}: {error}", to.1, from.1);
    });
    assert_eq!(&buffer[..length], b"pong");
}

/// A panic elsewhere is reported there.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[track_caller]
fn run(netns: &NetNs, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    netns.enter_on_spawn(&mut command).expect("the namespace");
    let output = command.output().expect(program);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
