//! Where benchmarks run: the nodes of a lab without its daemon, and pods on them.
//!
//! It has a lab's names, so `fairway-lab list` shows it and `fairway-lab down` removes what is left
//! of one that was killed.

use std::fmt;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_netlink::{AddressOptions, NetNs, Netlink, Route, Veth, sysctl};
use ipnet::{IpNet, Ipv4Net};

use crate::cluster::{Cluster, Options};
use crate::daemon;
use crate::kubelet::cni::Attachment;
use crate::process::{self, Place};
use crate::spec::Metadata;
use crate::sweep::{kill_all, sweep};
use crate::topology::NodePlan;
use crate::underlay::{self, UPLINK};
use crate::unique_name;
use crate::wait::wait_until;

/// What pods of benchmarks have as namespace.
pub(super) const NAMESPACE: &str = "bench";
/// Nobody has it; it names the node's end of a pod's cable.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Nodes for benchmarks.
#[derive(Debug)]
pub(super) struct Bed {
    /// Names, network and programs.
    pub cluster: Cluster,
    interrupted: Arc<AtomicBool>,
    /// Held until swept.
    lock: Option<File>,
}

/// Somebody pressed Ctrl-C, or sent another signal that asks to end.
#[derive(Debug)]
pub(super) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A pod's network.
#[derive(Debug)]
pub(super) struct Pod {
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// All of its addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its processes belong.
    pub place: Place,
}

/// Makes `nodes` nodes, the last `flannel_nodes` of them for the reference plugins, does `work` on them and sweeps everything from the machine, whatever comes
/// of it. The other binaries are in `bin_dir`, or beside this program.
pub(super) fn run<T>(
    nodes: u8,
    flannel_nodes: u8,
    bin_dir: Option<PathBuf>,
    work: impl FnOnce(&Bed) -> Result<T>,
) -> Result<T> {
    run_planned(Options { nodes, flannel_nodes, bin_dir, ..options() }, work)
}

/// A lab's options under a name that nobody else has.
pub(super) fn options() -> Options {
    Options::named(unique_name("bench"))
}

/// As [`run`], with whatever else a lab can be.
pub(super) fn run_planned<T>(options: Options, work: impl FnOnce(&Bed) -> Result<T>) -> Result<T> {
    let cluster = Cluster::plan(options)?;
    let Some(lock) = daemon::try_lock(&cluster.names)? else {
        bail!("a lab {} is running already", cluster.names.lab());
    };
    let mut bed = Bed { cluster, interrupted: Arc::default(), lock: Some(lock) };
    let outcome = bed.make().and_then(|()| work(&bed));
    let swept = bed.sweep();
    if bed.interrupted.load(Ordering::Relaxed) {
        // What failed, failed because of it.
        return Err(swept.err().map_or(Interrupted.into(), |error| error.context(Interrupted)));
    }
    outcome.and_then(|value| swept.map(|()| value))
}

impl Bed {
    /// The node of this index.
    pub(super) fn node(&self, index: usize) -> Result<&NodePlan> {
        self.cluster.topology.nodes.get(index).with_context(|| format!("find node {index}"))
    }

    /// This program, to be started again as a worker.
    pub(super) fn worker(&self) -> Command {
        Command::new(&self.cluster.programs.lab)
    }

    /// Where a node's own processes belong.
    pub(super) fn host(&self, node: &NodePlan) -> Place {
        Place {
            netns: NetNs::path(&self.cluster.names.node_netns(&node.name)),
            cgroup: self.cluster.names.system_cgroup(&node.name),
            beside: None,
        }
    }

    /// Runs a command on a node to its good end, at most for `limit`.
    pub(super) fn run_on(
        &self,
        node: &NodePlan,
        words: &[&str],
        input: &str,
        limit: Duration,
    ) -> Result<Output> {
        self.check()?;
        let (program, arguments) = words.split_first().context("a command without a name")?;
        let mut command = Command::new(program);
        command.args(arguments);
        self.host(node).apply(&mut command)?;
        let output = process::output_within(&mut command, input.as_bytes(), limit)?;
        if !output.status.success() {
            let complaints = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}: {}", words.join(" "), output.status, complaints.trim());
        }
        Ok(output)
    }

    /// Waits for a state, but not longer than anybody wants to have it.
    pub(super) fn wait_until(
        &self,
        limit: Duration,
        what: &str,
        mut is_there: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let interrupted = || self.interrupted.load(Ordering::Relaxed);
        wait_until(limit, what, || if interrupted() { Ok(true) } else { is_there() })?;
        self.check()
    }

    /// An error if somebody wants an end.
    pub(super) fn check(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
        Ok(())
    }

    /// Makes a pod that the node's kernel routes to, wired as the CNI plugin does it: one cable, no
    /// bridge, both ends know each other's MAC address.
    pub(super) fn routed_pod(&self, node: &NodePlan, name: &str, number: u8) -> Result<Pod> {
        let (pod_netns, place) = self.sandbox(node, name)?;
        let range = pod_range(node)?;
        let address = Ipv4Addr::from_bits(range.network().to_bits() + u32::from(number));
        let host_netns = NetNs::open(self.host(node).netns)?;
        host_netns.run(|| sysctl::set("net/ipv4/ip_forward", "1"))??;
        let mut host = Netlink::open_in(&host_netns)?;
        let mut pod = Netlink::open_in(&pod_netns)?;
        let host_end = host.create_veth(&Veth {
            name: &format!("pod{number}"),
            peer_name: UPLINK,
            peer_netns: Some(&pod_netns),
            ..Veth::default()
        })?;
        let pod_end = pod.link(UPLINK)?.context("find the pod's end of the veth")?;
        let (host_mac, pod_mac) = host_end.mac.zip(pod_end.mac).context("find the veth's MACs")?;

        let loopback = pod.link("lo")?.context("find link \"lo\"")?;
        pod.set_up(loopback.index)?;
        pod.set_up(pod_end.index)?;
        pod.add_address(
            pod_end.index,
            IpAddr::from(address).into(),
            AddressOptions { noprefixroute: true, ..AddressOptions::default() },
        )?;
        pod.replace_neighbour(pod_end.index, GATEWAY.into(), host_mac, true)?;
        pod.replace_route(&Route {
            gateway: Some(GATEWAY.into()),
            device: Some(pod_end.index),
            onlink: true,
            ..Route::to(Ipv4Net::default().into())
        })?;

        host.set_up(host_end.index)?;
        host.replace_neighbour(host_end.index, address.into(), pod_mac, true)?;
        host.replace_route(&Route {
            device: Some(host_end.index),
            scope_link: true,
            ..Route::to(IpAddr::from(address).into())
        })?;
        Ok(Pod { address, addresses: vec![address.into()], place })
    }

    /// Makes a pod and has the node's CNI plugin connect it.
    pub(super) fn cni_pod(&self, node: &NodePlan, name: &str) -> Result<Pod> {
        let (_, place) = self.sandbox(node, name)?;
        let uid = uid(node, name);
        let addresses = Attachment {
            cluster: &self.cluster,
            node: &node.name,
            pod: &Metadata {
                name: name.to_owned(),
                namespace: NAMESPACE.to_owned(),
                uid: uid.clone(),
                ..Metadata::default()
            },
            containers: &[],
            netns: &self.cluster.names.pod_netns(NAMESPACE, name, &uid),
        }
        .add()?;
        let mut v4 = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let address = v4.next().context("the CNI plugin gave no IPv4 address")?;
        Ok(Pod { address, addresses, place })
    }

    /// A pod's namespace and cgroup.
    pub(super) fn sandbox(&self, node: &NodePlan, name: &str) -> Result<(NetNs, Place)> {
        self.check()?;
        let names = &self.cluster.names;
        let uid = uid(node, name);
        let netns_name = names.pod_netns(NAMESPACE, name, &uid);
        let netns = NetNs::create(&netns_name)?;
        let cgroup = names.pod_cgroup(&node.name, &uid);
        fs::create_dir_all(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        Ok((netns, Place { netns: NetNs::path(&netns_name), cgroup, beside: None }))
    }

    fn make(&self) -> Result<()> {
        let names = &self.cluster.names;
        let mut folders = Vec::new();
        for node in &self.cluster.topology.nodes {
            folders.push(names.node_state(&node.name));
            folders.push(names.system_cgroup(&node.name));
        }
        for folder in folders {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        self.watch_for_signals()?;
        daemon::mount_file_systems(names)?;
        underlay::build(names, &self.cluster.topology, self.cluster.options.backend)
            .context("build the underlay")
    }

    /// A signal ends the processes, so that whatever is waiting for them gives up.
    fn watch_for_signals(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("start the runtime that waits for signals")?;
        let cgroup = self.cluster.names.cgroup();
        let interrupted = Arc::clone(&self.interrupted);
        let wait = async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hangup = signal(SignalKind::hangup())?;
            std::io::Result::Ok(async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            })
        };
        let signalled = runtime.block_on(wait).context("wait for signals")?;
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(signalled);
                interrupted.store(true, Ordering::Relaxed);
                if let Err(error) = kill_all(&cgroup) {
                    eprintln!("{error:#}");
                }
            })
            .context("start a thread for signals")?;
        Ok(())
    }

    fn sweep(&mut self) -> Result<()> {
        let Some(lock) = self.lock.take() else {
            return Ok(());
        };
        let swept = sweep(&self.cluster.names);
        daemon::unlock(&self.cluster.names, lock);
        swept
    }
}

impl Drop for Bed {
    /// After a panic.
    fn drop(&mut self) {
        if let Err(error) = self.sweep() {
            eprintln!("{error:#}");
        }
    }
}

/// The IPv4 range of a node's pods.
pub(super) fn pod_range(node: &NodePlan) -> Result<Ipv4Net> {
    let mut ranges = node.pod_cidrs.iter().filter_map(|range| match range {
        IpNet::V4(range) => Some(*range),
        IpNet::V6(_) => None,
    });
    ranges.next().with_context(|| format!("{} has no IPv4 range for pods", node.name))
}

/// What a pod is known by on its node.
pub(super) fn uid(node: &NodePlan, pod: &str) -> String {
    format!("{}-{pod}", node.name)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;
    use crate::may_run;
    use crate::names::netns_with_prefix;

    #[test]
    fn nothing_is_left_whether_the_work_succeeds_fails_or_panics() {
        if !may_run("bed") {
            return;
        }
        let mut prefixes = Vec::new();
        let mut attempt = |work: fn(&Bed) -> Result<()>| {
            let mut prefix = String::new();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                run(1, 0, Some(crate::binaries::binaries().unwrap().to_owned()), |bed| {
                    prefix = bed.cluster.names.netns_prefix();
                    let node = bed.node(0)?;
                    let pod = bed.routed_pod(node, "client", 2)?;
                    assert_eq!(pod.address, Ipv4Addr::new(10, 244, 0, 2));
                    // It answers, if only to say that nobody listens.
                    let (target, limit) = ((pod.address, 9).into(), Duration::from_secs(5));
                    let host = NetNs::open(bed.host(node).netns)?;
                    let answer = host.run(|| TcpStream::connect_timeout(&target, limit))?;
                    assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused);
                    work(bed)
                })
            }));
            assert_eq!(netns_with_prefix(&prefix).unwrap(), [""; 0]);
            prefixes.push(prefix);
            outcome.map_err(drop).map(|outcome| outcome.map_err(|error| error.to_string()))
        };
        assert_eq!(attempt(|_| Ok(())), Ok(Ok(())));
        assert_eq!(attempt(|_| bail!("no luck")), Ok(Err("no luck".to_owned())));
        assert_eq!(attempt(|_| panic!("worse")), Err(()));
        assert!(prefixes.iter().all(|prefix| prefix.starts_with("fw-bench")));
    }
}
