//! Every name on the machine that belongs to a lab, derived from the lab's own name.
//!
//! Whoever knows the name can therefore find, and remove, all of it: also what a lab left behind
//! that was killed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Where the state folders of all labs are. Short, because unix socket paths end at 107 bytes.
pub(crate) const STATE_ROOT: &str = "/run/fairway-lab";

/// Where `ip netns` looks for namespaces by name.
const NETNS_ROOT: &str = "/run/netns";

const LONGEST_NAME: usize = 24;

/// A lab's name: lower-case letters and digits.
///
/// No separators: names of namespaces start with `fw-NAME-`, and one lab's names must never be a
/// prefix of another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabName {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let usable = !name.is_empty()
            && name.len() <= LONGEST_NAME
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !usable {
            bail!(
                "lab name {name:?}: use 1 to {LONGEST_NAME} lower-case letters and digits, such as \"lab\" or \"vxlan2\""
            );
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for LabName {
    type Error = anyhow::Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Files, namespaces and cgroups of one lab. Nothing here touches the machine.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    lab: LabName,
    cgroup2: PathBuf,
}

impl Names {
    /// The names of `lab` on this machine, whose first cgroup2 mount is looked up.
    pub(crate) fn of(lab: &LabName) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
        let cgroup2 = first_cgroup2(&mounts)
            .context("find a cgroup2 mount: none in /proc/self/mounts; mount one with `mount -t cgroup2 none /sys/fs/cgroup`")?;
        Ok(Self { lab: lab.clone(), cgroup2 })
    }

    /// The lab these belong to.
    pub(crate) fn lab(&self) -> &LabName {
        &self.lab
    }

    /// The lab's state folder.
    pub(crate) fn root(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(self.lab.as_str())
    }

    /// Locked by the running daemon; beside the state folder so that it survives a sweep.
    pub(crate) fn lock(&self) -> PathBuf {
        Path::new(STATE_ROOT).join(format!("{}.lock", self.lab))
    }

    /// Where the daemon answers.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root().join("lab.sock")
    }

    /// The folder of Kubernetes objects that the control plane reads.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.root().join("manifests")
    }

    /// The lab's own bpffs.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.root().join("bpf")
    }

    /// A node's folder in it.
    pub(crate) fn node_bpffs(&self, node: &str) -> PathBuf {
        self.bpffs().join(node)
    }

    /// What a node keeps on disk.
    pub(crate) fn node_state(&self, node: &str) -> PathBuf {
        self.root().join(node)
    }

    /// The nodes' `/run`: in memory, as on any machine that systemd starts.
    pub(crate) fn run(&self) -> PathBuf {
        self.root().join("run")
    }

    /// Where the CNI plugin keeps a node's addresses.
    pub(crate) fn cni_data(&self, node: &str) -> PathBuf {
        self.run().join(node).join("cni")
    }

    /// The socket on which a node's agent answers the CNI plugin.
    pub(crate) fn agent_socket(&self, node: &str) -> PathBuf {
        self.node_state(node).join("agent.sock")
    }

    /// What the control plane keeps on disk.
    pub(crate) fn controlplane_state(&self) -> PathBuf {
        self.root().join("controlplane")
    }

    /// Private folders of pods, by UID.
    pub(crate) fn pod_state(&self, uid: &str) -> PathBuf {
        self.root().join("pods").join(uid)
    }

    /// What `who` printed: `daemon`, `controlplane`, a node, or a container.
    pub(crate) fn log(&self, who: &str) -> PathBuf {
        self.root().join("log").join(format!("{who}.log"))
    }

    /// What a node's gateway printed, and whom it served.
    pub(crate) fn gateway_log(&self, node: &str) -> PathBuf {
        self.log(&gateway(node))
    }

    /// The lab's cgroup; all its processes are below it.
    pub(crate) fn cgroup(&self) -> PathBuf {
        self.cgroup2.join(format!("fairway-lab-{}", self.lab))
    }

    /// A node's cgroup: what its agent attaches to.
    pub(crate) fn node_cgroup(&self, node: &str) -> PathBuf {
        self.cgroup().join(node)
    }

    /// Where a node's own processes run.
    pub(crate) fn system_cgroup(&self, node: &str) -> PathBuf {
        self.node_cgroup(node).join("system")
    }

    /// Everything that runs in no node: the control plane, the outside client.
    pub(crate) fn outside_cgroup(&self) -> PathBuf {
        self.cgroup().join("outside")
    }

    /// Where a pod's processes run.
    pub(crate) fn pod_cgroup(&self, node: &str, uid: &str) -> PathBuf {
        self.node_cgroup(node).join("pods").join(format!("pod{uid}"))
    }

    /// What all of the lab's namespaces start with.
    pub(crate) fn netns_prefix(&self) -> String {
        format!("fw-{}-", self.lab)
    }

    /// The namespace that holds the bridges and routes between them.
    pub(crate) fn underlay_netns(&self) -> String {
        format!("{}net", self.netns_prefix())
    }

    /// The outside client's namespace.
    pub(crate) fn client_netns(&self) -> String {
        format!("{}client", self.netns_prefix())
    }

    /// A node's namespace.
    pub(crate) fn node_netns(&self, node: &str) -> String {
        format!("{}{node}", self.netns_prefix())
    }

    /// A pod's namespace. A namespace of Kubernetes has no dot, so the dot keeps the halves
    /// apart; the UID keeps a pod and its successor of the same name apart.
    pub(crate) fn pod_netns(&self, namespace: &str, name: &str, uid: &str) -> String {
        let short: String = name.chars().take(100).collect();
        let uid: String = uid.chars().take(8).collect();
        format!("{}pod-{namespace}.{short}-{uid}", self.netns_prefix())
    }
}

/// Who a node's gateway is among those that print.
pub(crate) fn gateway(node: &str) -> String {
    format!("gateway-{node}")
}

/// Names of existing network namespaces that start with `prefix`.
pub(crate) fn netns_with_prefix(prefix: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(NETNS_ROOT) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {NETNS_ROOT}")),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("list {NETNS_ROOT}"))?.file_name();
        if let Some(name) = name.to_str()
            && name.starts_with(prefix)
        {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

/// The mount point of the first cgroup2 in the text of /proc/self/mounts.
fn first_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_mix_up_two_labs_are_refused() {
        for good in ["lab", "a", "vxlan2", "123"] {
            assert!(good.parse::<LabName>().is_ok(), "{good}");
        }
        for bad in ["", "a-b", "a/b", "..", "Lab", "a b", "aaaaaaaaaaaaaaaaaaaaaaaaa"] {
            let error = bad.parse::<LabName>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn the_first_cgroup2_mount_counts() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup2 /mnt cgroup2 rw 0 0\n";
        assert_eq!(first_cgroup2(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(first_cgroup2("proc /proc proc rw 0 0\n"), None);
    }
}
