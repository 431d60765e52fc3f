//! A node's life with Fairway, by the agent's own command: it starts, announces itself to the
//! container runtime, ends, and is uninstalled, after which the machine is as it was.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/sandbox.rs"]
mod sandbox;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TcAttachType};
use fairway_netlink::{AddressOptions, Family, Netlink, Veth, sysctl};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

/// This node, and one that plain routes do not reach.
const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: here}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: there}
spec: {podCIDR: 10.244.2.0/24}
status: {addresses: [{type: InternalIP, address: 198.51.100.2}]}
";
const NET_CONF: &str =
    r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
const SIDES: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn an_uninstalled_node_is_as_it_was() {
    sandbox::sandbox(|bpffs| {
        let node = Machine::new(bpffs);
        let before = node.state();
        let mut agent = node.start();
        wait_for("the network configuration", &mut agent, || node.conf().exists());
        let with = node.state();
        assert!(with.links.contains("fairway-vxlan") && with.routes.contains("10.244.2.0/24"));
        assert!(with.programs.contains("uplink_ingress") && with.programs.contains("connect4"));
        assert_eq!((with.forwarding.as_str(), with.reserved.as_str()), ("1", "1024-29999"));
        assert!(node.subnet_env().contains("FLANNEL_SUBNET=10.244.1.1/24\n"));

        for locked in [&node.path("state"), &node.bpffs] {
            let mode = fs::metadata(locked).unwrap().permissions().mode();
            assert_eq!(mode & 0o77, 0, "{}: anybody could lock it", locked.display());
        }

        let refused = node.uninstall(&[]);
        assert!(!refused.status.success());
        assert!(text(&refused.stderr).contains("an agent is running"), "{refused:?}");
        assert!(node.conf().exists(), "a refusal changes nothing");
        agent.end();
        assert!(node.conf().exists(), "a node whose agent restarts stays ready");
        assert_eq!(node.state(), with);

        // While there is a pod, it says so and only keeps new ones away.
        let pod = node.make_pod();
        fs::create_dir_all(node.data().join("addresses")).unwrap();
        let stopped = node.uninstall_by_what_was_noted();
        assert!(!stopped.status.success());
        assert!(text(&stopped.stdout).contains("fw0123456789ab"), "{stopped:?}");
        assert!(!node.conf().exists());
        assert_eq!(node.state().programs, with.programs);

        // What it joined with, and settings as container runtimes mount them.
        fs::create_dir(node.path("state/feed")).unwrap();
        fs::write(node.path("state/feed/node.pem"), "a key").unwrap();
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_bind("/proc/sys", "/proc/sys").unwrap();
        mount_remount("/proc/sys", flags, c"").unwrap();
        let forced = node.uninstall(&["--all"]);
        assert!(!forced.status.success(), "a pod is left, and what deletes it");
        assert!(text(&forced.stdout).contains("still running"), "{forced:?}");
        assert_eq!(node.state().programs, before.programs);
        assert!(node.plugin().exists());
        node.delete_pod(pod);

        let last = node.uninstall(&[]);
        assert!(last.status.success(), "{last:?}");
        assert_eq!(node.state(), before);
        for gone in ["bin/fairway-cni", "state", "flannel/subnet.env", "fairway"] {
            assert!(!node.path(gone).exists(), "{gone}");
        }
        assert!(!bpffs.join("fairway").exists());
        let again = node.uninstall(&[]);
        assert!(again.status.success() && text(&again.stdout).contains("nothing"), "{again:?}");
    });
}

#[test]
fn whoever_cannot_see_iptables_says_so() {
    sandbox::sandbox(|_| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairway-proxy"));
        let output = command.args(["cleanup", "--kube-proxy"]).env("PATH", "/nowhere").output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output.stdout).contains("note: there is no iptables here"), "{output:?}");
    });
}

#[test]
fn a_new_mtu_of_the_underlay_reaches_the_overlay_and_who_asks_for_it() {
    sandbox::sandbox(|bpffs| {
        let node = Machine::new(bpffs);
        let mut agent = node.start();
        wait_for("the network configuration", &mut agent, || node.conf().exists());
        assert!(node.subnet_env().contains("FLANNEL_MTU=1450\n"));
        let mut netlink = Netlink::open().unwrap();
        let uplink = netlink.link("eth0").unwrap().unwrap().index;
        for mtu in [1400, 1500] {
            netlink.set_mtu(uplink, mtu).unwrap();
            let line = format!("FLANNEL_MTU={}\n", mtu - 50);
            wait_for(&line, &mut agent, || node.subnet_env().contains(&line));
            assert_eq!(netlink.link("fairway-vxlan").unwrap().unwrap().mtu, mtu - 50);
        }
    });
}

#[test]
fn no_core_shows_the_agents_keys() {
    sandbox::sandbox(|bpffs| {
        let node = Machine::new(bpffs);
        fs::create_dir(node.path("cores")).unwrap();
        let agent = node.agent();
        // Cores are as large as they like, and lie where it runs unless the machine says otherwise.
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""]).arg(agent.get_program());
        shell.args(agent.get_args()).current_dir(node.path("cores"));
        let mut agent = Agent(shell.spawn().unwrap());
        wait_for("the network configuration", &mut agent, || node.conf().exists());
        let pid = rustix::process::Pid::from_child(&agent.0);
        rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
        let status = agent.0.wait().unwrap();
        assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
        assert_eq!(fs::read_dir(node.path("cores")).unwrap().count(), 0);
    });
}

/// A sandbox with an uplink and folders for everything.
struct Machine {
    folder: tempfile::TempDir,
    bpffs: PathBuf,
    cgroup: PathBuf,
}

impl Machine {
    fn new(bpffs: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cgroups = folder.path().join("cgroups");
        fs::create_dir(&cgroups).unwrap();
        mount("none", &cgroups, "cgroup2", MountFlags::empty(), None).unwrap();
        let cgroup =
            cgroups.join(format!("fairway-node-{}", folder.path().file_name().unwrap().display()));
        let machine = Self { folder, bpffs: bpffs.join("fairway"), cgroup };
        fs::create_dir(&machine.cgroup).unwrap();
        for folder in ["manifests", "bin", "net.d"] {
            fs::create_dir(machine.path(folder)).unwrap();
        }
        fs::write(machine.path("manifests/nodes.yaml"), NODES).unwrap();
        fs::write(machine.plugin(), "").unwrap();
        fs::write(machine.path("net-conf.json"), NET_CONF).unwrap();

        sysctl::set("net/ipv4/ip_forward", "0").unwrap();
        for name in ["all", "default"] {
            sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1").unwrap();
        }
        let mut netlink = Netlink::open().unwrap();
        let veth = Veth { name: "eth0", peer_name: "wire", ..Veth::default() };
        let uplink = netlink.create_veth(&veth).unwrap();
        for link in netlink.links().unwrap() {
            netlink.set_up(link.index).unwrap();
        }
        let address = "192.0.2.1/24".parse().unwrap();
        netlink.add_address(uplink.index, address, AddressOptions::default()).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn conf(&self) -> PathBuf {
        self.path("net.d/10-fairway.conflist")
    }

    fn plugin(&self) -> PathBuf {
        self.path("bin/fairway-cni")
    }

    fn subnet_env(&self) -> String {
        fs::read_to_string(self.path("flannel/subnet.env")).unwrap()
    }

    fn start(&self) -> Agent {
        Agent(self.agent().spawn().unwrap())
    }

    fn agent(&self) -> Command {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_fairway-proxy"));
        agent.args(["--node-name", "here", "--uplink", "eth0"]);
        agent.arg("--flannel-net-conf").arg(self.path("net-conf.json"));
        agent.arg("--subnet-env").arg(self.path("flannel/subnet.env"));
        agent.arg("--manifests").arg(self.path("manifests"));
        agent.arg("--cgroup").arg(&self.cgroup);
        agent.args(self.places()).arg("--cni-conf").arg(self.conf());
        agent.arg("--cni-data-dir").arg(self.data());
        agent
    }

    fn uninstall(&self, more: &[&str]) -> Output {
        self.uninstall_of(&self.conf(), more)
    }

    /// The agent has noted where its network configuration is.
    fn uninstall_by_what_was_noted(&self) -> Output {
        self.uninstall_of(&self.path("net.d/none.conflist"), &[])
    }

    fn uninstall_of(&self, conf: &Path, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairway-proxy"));
        command.arg("uninstall").args(self.places()).args(more);
        command.arg("--cni-bin-dir").arg(self.path("bin"));
        command.arg("--cni-conf").arg(conf);
        command.arg("--cni-data-dir").arg(self.data());
        command.output().unwrap()
    }

    /// The plugin's folder beside the agent's socket, as it is by default.
    fn data(&self) -> PathBuf {
        self.path("fairway/cni")
    }

    fn places(&self) -> [PathBuf; 6] {
        let state = self.path("state");
        let socket = self.path("fairway/agent.sock");
        [
            "--state-dir".into(),
            state,
            "--bpffs".into(),
            self.bpffs.clone(),
            "--socket".into(),
            socket,
        ]
    }

    /// The node's end of a pod that no agent knows, as the plugin names it.
    fn make_pod(&self) -> u32 {
        let mut netlink = Netlink::open().unwrap();
        let veth = Veth { name: "fw0123456789ab", peer_name: "pod", ..Veth::default() };
        netlink.create_veth(&veth).unwrap().index
    }

    fn delete_pod(&self, index: u32) {
        Netlink::open().unwrap().delete_link(index).unwrap();
    }

    fn state(&self) -> State {
        let mut netlink = Netlink::open().unwrap();
        let links: BTreeMap<_, _> =
            netlink.links().unwrap().into_iter().map(|l| (l.name, (l.index, l.up))).collect();
        let routes = netlink.routes(Family::V4, None).unwrap();
        let mut programs = String::new();
        for (device, side) in links.keys().flat_map(|device| SIDES.map(|side| (device, side))) {
            for program in SchedClassifier::query_tcx(device, side).unwrap().1 {
                let name = program.name_as_str().unwrap_or_default().to_owned();
                programs += &format!("{device} {side:?} {name}\n");
            }
        }
        let shown = Command::new("bpftool").args(["cgroup", "show"]).arg(&self.cgroup).output();
        programs += text(&shown.expect("bpftool, which xtask setup installs").stdout);
        State {
            links: format!("{links:#?}"),
            routes: format!("{routes:#?}"),
            programs,
            forwarding: sysctl::get("net/ipv4/ip_forward").unwrap(),
            reserved: sysctl::get("net/ipv4/ip_local_reserved_ports").unwrap(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The cgroup is the machine's; the mount would go with the sandbox, but not with its folder.
        let _ = fs::remove_dir(&self.cgroup);
        let _ = unmount(self.path("cgroups"), UnmountFlags::DETACH);
    }
}

/// What people look at.
#[derive(Debug, PartialEq, Eq)]
struct State {
    links: String,
    routes: String,
    programs: String,
    forwarding: String,
    reserved: String,
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
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
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, agent: &mut Agent, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert_eq!(agent.0.try_wait().unwrap(), None, "the agent ended before {what}");
        assert!(begin.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
