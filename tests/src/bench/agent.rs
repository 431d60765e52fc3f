//! Fairway itself: the real agent, over a folder of manifests or after a control plane.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::json;

use super::bed::Bed;
use crate::kubelet::status::node_status;
use crate::process;
use crate::topology::{Backend, NodePlan};
use crate::underlay::UPLINK;

/// How long an agent has until it is ready.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it has to end.
const GRACE: Duration = Duration::from_secs(5);

/// A node's agent; ends with this value.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    /// Where it reads manifests, if it does.
    manifests: PathBuf,
}

impl Agent {
    /// Starts it over a folder of manifests that knows `node` and its `peers`; returns when it is
    /// ready.
    pub(super) fn start(
        bed: &Bed,
        node: &NodePlan,
        backend: Backend,
        peers: &[&NodePlan],
    ) -> Result<Self> {
        let names = &bed.cluster.names;
        let manifests = names.node_state(&node.name).join("manifests");
        fs::create_dir_all(&manifests)
            .with_context(|| format!("create {}", manifests.display()))?;
        for node in peers.iter().chain([&node]) {
            let object = json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": node.name},
                "spec": {"podCIDRs": node.pod_cidrs},
                "status": node_status(&node.addresses.ips(), &node.name, true),
            });
            let file = manifests.join(format!("{}.yaml", node.name)); // JSON is YAML
            fs::write(&file, object.to_string())
                .with_context(|| format!("write {}", file.display()))?;
        }
        let ranges = &bed.cluster.options.service_cidr;
        let service_cidr = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut command = command(bed, node, backend);
        command.arg("--manifests").arg(&manifests).args(["--service-cidr", &service_cidr]);
        let mut agent = Self::spawn(bed, node, command)?;
        agent.manifests = manifests;
        agent.wait_until_ready(bed, node)?;
        Ok(agent)
    }

    /// Starts it after the control plane that `feed` is; returns at once.
    pub(super) fn follow(bed: &Bed, node: &NodePlan, feed: SocketAddr) -> Result<Self> {
        Self::follow_with(bed, node, feed, &[])
    }

    /// The same, with more on its command line.
    pub(super) fn follow_with(
        bed: &Bed,
        node: &NodePlan,
        feed: SocketAddr,
        more: &[&str],
    ) -> Result<Self> {
        let mut command = command(bed, node, Backend::Auto);
        command.args(["--feed", &format!("http://{feed}")]).args(more);
        Self::spawn(bed, node, command)
    }

    /// What it keeps on the node's disk.
    pub(super) fn state(bed: &Bed, node: &NodePlan) -> PathBuf {
        bed.cluster.names.node_state(&node.name).join("agent")
    }

    /// Removes what agents left on the node, in the kernel and on the disk; what a running one has
    /// there is its own affair.
    pub(super) fn forget(bed: &Bed, node: &NodePlan) -> Result<()> {
        Self::forget_tables(bed, node)?;
        remove(&Self::state(bed, node))
    }

    /// The same, in the kernel alone.
    pub(super) fn forget_tables(bed: &Bed, node: &NodePlan) -> Result<()> {
        remove(&bed.cluster.names.node_bpffs(&node.name))
    }

    /// Ends it without a warning.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the agent")?;
        self.child.wait().context("wait for the agent's end").map(drop)
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn spawn(bed: &Bed, node: &NodePlan, mut command: Command) -> Result<Self> {
        let log = bed.cluster.names.log(&node.name);
        process::supervised(&mut command, &log)?;
        bed.host(node).apply(&mut command)?;
        bed.check()?;
        let child = command.spawn().context("start fairway-proxy")?;
        Ok(Self { child, manifests: PathBuf::new() })
    }

    /// Waits until the kernel holds what it is to hold.
    pub(super) fn wait_until_ready(&mut self, bed: &Bed, node: &NodePlan) -> Result<()> {
        bed.wait_until(START_LIMIT, &format!("the agent of {}", node.name), || {
            if let Some(status) = self.child.try_wait().context("watch the agent")? {
                bail!("it has ended: {status}");
            }
            Ok(bed.cluster.ask_agent(&node.name, "/readyz")?.status == 200)
        })
        .with_context(|| {
            format!("its log ends with:\n{}\n", tail(&bed.cluster.names.log(&node.name)))
        })
    }

    /// Gives it more manifests: one file, which appears with its whole content.
    pub(super) fn write(&self, name: &str, manifests: &str) -> Result<()> {
        let file = self.manifests.join(name);
        let draft = self.manifests.with_extension("draft");
        fs::write(&draft, manifests)
            .and_then(|()| fs::rename(&draft, &file))
            .with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        process::signal(&self.child, Signal::TERM);
        if let Err(error) = process::end(&mut self.child, GRACE) {
            eprintln!("end an agent: {error}");
        }
    }
}

/// Its command line, but for where the model comes from.
fn command(bed: &Bed, node: &NodePlan, backend: Backend) -> Command {
    let names = &bed.cluster.names;
    let mut command = Command::new(&bed.cluster.programs.proxy);
    command
        .args(["--node-name", &node.name])
        .args(["--backend", backend.as_str()])
        .args(["--uplink", UPLINK])
        .arg("--bpffs")
        .arg(names.node_bpffs(&node.name))
        .arg("--cgroup")
        .arg(names.node_cgroup(&node.name))
        .arg("--state-dir")
        .arg(Agent::state(bed, node))
        .arg("--cni-data-dir")
        .arg(names.cni_data(&node.name))
        .arg("--socket")
        .arg(names.agent_socket(&node.name));
    command
}

/// Removes a folder, if it is there.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
