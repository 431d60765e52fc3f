//! `fairway-proxy uninstall`: takes everything of Fairway's from the node.
//!
//! The order is that of a node that is being left: first nothing new comes, then what is in force
//! goes, last what pods still need in order to be deleted. Each step is tried although another
//! fails, one whose object is gone succeeds, and all of it may be done again.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use fairway_netlink::{Netlink, sysctl};

use crate::agent::{hold_bpffs, hold_state};
use crate::node::Overlay;
use crate::traces::Traces;
use crate::{cni_conf, dataplane, dns, install, node, pods, routes};

/// How the names of what agent and control plane keep in the state folder begin, apart from the dot of
/// temporary files; whatever else is there is somebody else's.
const STATE: [&str; 9] = [
    "agent.",
    "allocations.",
    "changes.",
    "endpoints.",
    "last-good.",
    "lock",
    "names.",
    "snapshot",
    "wireguard",
];

/// The folder in it that has this node's certificate, and its key.
const IDENTITY: &str = "feed";

/// What `fairway-proxy uninstall` takes: where the agent was told to keep things.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Go on although pods are running: they keep their interfaces and addresses, but no Service,
    /// policy, tunnel or masquerade works for them any more
    #[arg(long)]
    pub all: bool,

    /// As given to the agent
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairway")]
    pub state_dir: PathBuf,

    /// As given to the agent
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/fairway")]
    pub bpffs: PathBuf,

    /// As given to the agent
    #[arg(long, value_name = "PATH", default_value = fairway_cni_protocol::DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// As given to the agent
    #[arg(long, value_name = "PATH", default_value = cni_conf::DEFAULT)]
    pub cni_conf: PathBuf,

    /// As given to `fairway-proxy install`
    #[arg(long, value_name = "DIR", default_value = install::BIN_DIR)]
    pub cni_bin_dir: PathBuf,

    /// As in the network configuration's key dataDir
    #[arg(long, value_name = "DIR", default_value = fairway_cni::DEFAULT_DATA_DIR)]
    pub cni_data_dir: PathBuf,
}

/// What has been done and what has not, for a person.
#[derive(Debug)]
pub struct Report {
    /// What there is to say if there was nothing to do.
    nothing: &'static str,
    done: Vec<String>,
    failed: Vec<anyhow::Error>,
    /// Pods that run, with what that means.
    left: Option<String>,
}

impl Report {
    /// Of nothing done yet, which `nothing` says.
    pub(crate) fn or(nothing: &'static str) -> Self {
        Self { nothing, done: Vec::new(), failed: Vec::new(), left: None }
    }

    /// Whether nothing is left that was to go.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.left.is_none()
    }

    /// Whether something was done.
    pub(crate) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Takes in what a step did, or why it failed.
    pub(crate) fn step(&mut self, result: Result<impl IntoIterator<Item = String>>) {
        match result {
            Ok(done) => self.done.extend(done),
            Err(error) => self.failed.push(error),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        if self.done.is_empty() && self.is_complete() {
            text.push_str(self.nothing);
        }
        for line in &self.done {
            writeln!(text, "{line}")?;
        }
        for error in &self.failed {
            writeln!(text, "FAILED: {error:#}")?;
        }
        if let Some(left) = &self.left {
            text.push_str(left);
        }
        f.write_str(text.trim_end())
    }
}

/// Uninstalls, in the network namespace of the calling thread. An error means that nothing was done.
pub fn run(options: &Options) -> Result<Report> {
    // An agent that runs would put back what is taken away.
    let _no_agent = [hold_state(&options.state_dir)?, hold_bpffs(&options.bpffs)?];
    let mut netlink = Netlink::open()?;
    let pods = running_pods(&mut netlink, &options.state_dir)?;
    let traces = match options.state_dir.exists() {
        true => Some(Traces::open(&options.state_dir)?),
        false => None,
    };

    let mut report = Report::or("nothing of Fairway's is on this node");
    // First of all, no new pods.
    let noted = traces.as_ref().map(Traces::files).unwrap_or_default();
    let is_conf = |file: &PathBuf| file.extension().is_some_and(|e| e == "conflist");
    let (confs, files): (BTreeSet<_>, BTreeSet<_>) = noted.into_iter().partition(is_conf);
    for conf in confs.union(&[options.cni_conf.clone()].into()) {
        report.step(remove_conf(conf));
    }
    if !pods.is_empty() && !options.all {
        report.left = Some(why_it_stops(&pods));
        return Ok(report);
    }
    // Programs next: what is gone after them is no longer asked for by any packet.
    report.step(remove_filters());
    report.step(remove_pins(&options.bpffs));
    report.step(remove_routes(&mut netlink));
    if let Some(traces) = &traces {
        let removed = dns::remove_addresses(&mut netlink, traces).context("remove DNS addresses");
        let said = |address: IpAddr| format!("removed address {address}, where DNS was answered");
        report.step(removed.map(|removed| removed.into_iter().map(said)));
    }
    for overlay in Overlay::ALL {
        report.step(remove_overlay(&mut netlink, overlay));
    }
    report.step(sysctl::make_writable().map(|()| None).map_err(anyhow::Error::from));
    for result in traces.iter().flat_map(Traces::restore_settings) {
        report.step(result.map(Some));
    }
    for file in &files {
        report.step(remove_file(file));
    }
    if pods.is_empty() {
        report.step(remove_file(&options.cni_bin_dir.join(cni_conf::PLUGIN)));
        report.step(remove_addresses(&options.cni_data_dir));
    } else {
        report.left = Some(what_they_have(&pods));
    }
    // After the addresses, which are in its folder unless they were told to be elsewhere.
    report.step(remove_socket(&options.socket));
    if report.failed.is_empty() {
        // Without it, a second try would not know what to take back.
        report.step(remove_state(&options.state_dir));
    }
    Ok(report)
}

/// What to call each pod that has an interface here: those in the list of pods, and those that the
/// list lost but that look like the plugin's.
fn running_pods(netlink: &mut Netlink, state_dir: &Path) -> Result<BTreeSet<String>> {
    let links = netlink.links()?;
    let registered = match state_dir.exists() {
        true => pods::read(&state_dir.join("endpoints.json"))?,
        false => Default::default(),
    };
    let running = links.iter().filter_map(|link| {
        let mut pods = registered.iter().map(|pod| &pod.endpoint);
        match pods.find(|pod| (&pod.host_interface, pod.host_ifindex) == (&link.name, link.index)) {
            Some(pod) => Some(format!("{} ({})", pods::describe(pod), link.name)),
            None if is_plugins(&link.name, link.kind.as_deref()) => {
                Some(format!("a pod without a name ({})", link.name))
            }
            None => None,
        }
    });
    Ok(running.collect())
}

/// Whether it is named as the plugin names the node's end of a pod's veth.
fn is_plugins(name: &str, kind: Option<&str>) -> bool {
    let number = name.strip_prefix("fw").unwrap_or_default();
    kind == Some("veth") && number.len() == 12 && number.bytes().all(|b| b.is_ascii_hexdigit())
}

fn why_it_stops(pods: &BTreeSet<String>) -> String {
    format!(
        "{} pods are running here, so no more than the network configuration was removed:\n{}\n\
         Delete them (kubectl drain --ignore-daemonsets=false, or restart the node) and uninstall \
         again, or leave them without a network with --all.\n",
        pods.len(),
        list(pods)
    )
}

fn what_they_have(pods: &BTreeSet<String>) -> String {
    format!(
        "{} pods are still running:\n{}\nThey have their interfaces and addresses, and no Services, \
         policies, tunnels or masquerade. The plugin and its address store stay, because deleting \
         the pods needs them; uninstall again when they are gone.\n",
        pods.len(),
        list(pods)
    )
}

fn list(pods: &BTreeSet<String>) -> String {
    let lines: Vec<String> = pods.iter().map(|pod| format!("  {pod}")).collect();
    lines.join("\n")
}

fn remove_conf(path: &Path) -> Result<Option<String>> {
    Ok(cni_conf::remove(path)?.then(|| format!("removed {}", path.display())))
}

/// Before Linux 6.6 attachments are filters, which have no pins.
fn remove_filters() -> Result<Option<String>> {
    let count = dataplane::remove_filters().context("remove the programs on devices")?;
    Ok((count > 0).then(|| format!("removed {count} filters from devices")))
}

/// With its pin, an attachment goes, and with the last program that uses it, a table.
fn remove_pins(bpffs: &Path) -> Result<Option<String>> {
    let about = || format!("remove the programs and tables in {}", bpffs.display());
    let folders = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(about),
    };
    for folder in folders {
        let folder = folder.with_context(about)?;
        // Anything else was not made by an agent.
        if dataplane::is_ours(&folder.file_name().to_string_lossy()) {
            fs::remove_dir_all(folder.path()).with_context(about)?;
        }
    }
    match fs::remove_dir(bpffs) {
        // A file system of its own is the administrator's to unmount.
        Err(error) if error.kind() != ErrorKind::ResourceBusy => Err(error).with_context(about),
        _ => Ok(Some(format!("removed all programs and tables ({})", bpffs.display()))),
    }
}

fn remove_routes(netlink: &mut Netlink) -> Result<Option<String>> {
    let count = routes::remove_host(netlink)?;
    Ok((count > 0).then(|| format!("removed {count} routes to other nodes' pods")))
}

fn remove_overlay(netlink: &mut Netlink, overlay: Overlay) -> Result<Option<String>> {
    let was_there = node::remove_overlay(netlink, overlay)?;
    Ok(was_there.then(|| format!("removed device {}", overlay.device())))
}

fn remove_socket(socket: &Path) -> Result<Option<String>> {
    let removed = remove_file(socket)?;
    if let Some(folder) = socket.parent().filter(|folder| folder.ends_with("fairway")) {
        remove_if_empty(folder)?;
    }
    Ok(removed)
}

fn remove_state(folder: &Path) -> Result<Option<String>> {
    let about = || format!("remove the agent's state in {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(about),
    };
    for entry in entries {
        let entry = entry.with_context(about)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = name.strip_prefix('.').unwrap_or(&name);
        if STATE.iter().any(|ours| name.starts_with(ours)) {
            fs::remove_file(entry.path()).with_context(about)?;
        } else if name == IDENTITY {
            fs::remove_dir_all(entry.path()).with_context(about)?;
        }
    }
    remove_if_empty(folder)?;
    let left = if folder.exists() { ", but for files that are not the agent's" } else { "" };
    Ok(Some(format!("removed the agent's state ({}){left}", folder.display())))
}

fn remove_file(path: &Path) -> Result<Option<String>> {
    match fs::remove_file(path) {
        Ok(()) => Ok(Some(format!("removed {}", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

/// The plugin's store of addresses.
fn remove_addresses(data_dir: &Path) -> Result<Option<String>> {
    let store = data_dir.join("addresses");
    match fs::remove_dir_all(&store) {
        Ok(()) => {
            remove_if_empty(data_dir)?;
            Ok(Some(format!("removed {}", store.display())))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("remove {}", store.display())),
    }
}

fn remove_if_empty(folder: &Path) -> Result<()> {
    use ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match fs::remove_dir(folder) {
        Err(error) if ![DirectoryNotEmpty, NotFound, ResourceBusy].contains(&error.kind()) => {
            Err(error).with_context(|| format!("remove folder {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugins_interfaces_are_known_by_their_names() {
        assert!(is_plugins("fw0123456789ab", Some("veth")));
        for (name, kind) in [
            ("fw0123456789ab", Some("dummy")),
            ("fw0123456789", Some("veth")),
            ("fwuplink-12345", Some("veth")),
            ("eth0", None),
        ] {
            assert!(!is_plugins(name, kind), "{name}");
        }
    }
}
