//! What the agent finds out about its node and the ways to its peers, once they are in force.
//!
//! The node: settings, rules, devices and daemons of others that would get into the way. A peer: does
//! it answer, do packets of full size arrive, and do those whose checksum a device completes? For all
//! of it the peer's kernel is enough, so a peer that runs flannel is tested like any other.
//!
//! Each finding is logged once, shown in the metrics, and listed by `fairway-proxy check`. Where there
//! is a safe way around, it is taken and told; everything else says what to do.
//!
//! In a large cluster a node tests a sample of its peers, and new ones at leisure: what is wrong with a
//! network is seldom wrong for one pair alone, and probes must not become a load.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_model::{Model, Node};
use fairway_netlink::nftables::{self, Chain};
use fairway_netlink::offload::{self, Offload};
use fairway_netlink::{Link, Netlink, sysctl};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::node::{LOOSE, Overlay, source_filter};
use crate::probe::{self, Echo};
use crate::status::Status;
use crate::traces::Traces;

/// Peers that are tested as soon as they are known; others follow one by one.
const AT_ONCE: usize = 20;
/// Between two peers after that.
const PAUSE: Duration = Duration::from_secs(10);
/// Between two looks at the node itself, in pauses: other people's rules may be many.
const LOOK: u32 = 6;
/// The most peers that are tested.
const SAMPLE: usize = 100;
/// Until what failed is tried again.
const AGAIN: Duration = Duration::from_secs(300);
/// The same for a peer that has not answered: its agent may be starting, too.
const SOON: Duration = Duration::from_secs(30);
/// A packet that every way takes.
const SMALL: u32 = 128;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// It was not, and the agent has put it right.
    Repaired,
    /// It works, and somebody should know this.
    Noted,
    /// Something will not work.
    Failed,
}

/// A test and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Finding {
    /// What was tested: one of a few names.
    pub check: String,
    /// The other node's name; empty for the node itself.
    pub peer: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found and what to do; empty if there is nothing to say.
    pub message: String,
}

fn finding(check: &str, outcome: Outcome, message: impl Into<String>) -> Finding {
    Finding { check: check.to_owned(), peer: String::new(), outcome, message: message.into() }
}

fn passed(check: &str) -> Finding {
    finding(check, Outcome::Passed, "")
}

/// Tests the node, and peers as the model in force names them, for as long as there is an agent.
pub(crate) async fn run(
    node: String,
    underlay_mtu: Option<u32>,
    mut applied: watch::Receiver<Option<Arc<Model>>>,
    traces: Arc<Traces>,
    status: Arc<Status>,
) {
    if applied.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut plan = Plan::new(node);
    let mut known: BTreeMap<(String, String), Finding> = BTreeMap::new();
    let mut looks = tokio::time::interval(PAUSE);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for round in 0u32.. {
        looks.tick().await;
        // The agent has ended.
        if applied.has_changed().is_err() {
            return;
        }
        let Some(model) = applied.borrow_and_update().clone() else { continue };
        let due = plan.due(&model, Instant::now());
        let traces = Arc::clone(&traces);
        let tested = tokio::task::spawn_blocking(move || {
            let about = round.is_multiple_of(LOOK).then(|| {
                let failed =
                    |e| vec![finding("node", Outcome::Failed, format!("cannot be tested: {e:#}"))];
                of_node(&traces).unwrap_or_else(failed)
            });
            let peers = due.into_iter().map(|peer| {
                let findings = of_peer(&peer, underlay_mtu).unwrap_or_else(|error| {
                    vec![finding("reach", Outcome::Failed, format!("cannot be tested: {error:#}"))]
                });
                (peer, findings)
            });
            (about, peers.collect::<Vec<_>>())
        });
        let Ok((about, peers)) = tested.await else { return };
        let of_node_too = about.is_some();
        let mut found = about.unwrap_or_default();
        let before = std::mem::take(&mut known);
        for (peer, findings) in &peers {
            plan.tested(peer, findings, Instant::now());
            let findings = findings.iter().cloned();
            found.extend(findings.map(|finding| Finding { peer: peer.name.clone(), ..finding }));
        }
        known.extend(found.into_iter().map(|f| ((f.check.clone(), f.peer.clone()), f)));
        // What was found of who was not tested now still holds.
        let kept = before.iter().filter(|((_, of), _)| match of.as_str() {
            "" => !of_node_too,
            peer => plan.knows(peer) && !peers.iter().any(|(tested, _)| tested.name == peer),
        });
        known.extend(kept.map(|(key, finding)| (key.clone(), finding.clone())));
        for (key, finding) in &known {
            tell(finding, before.get(key));
        }
        status.found(known.values().cloned().collect());
    }
}

/// Logs what is new about a finding.
fn tell(finding: &Finding, before: Option<&Finding>) {
    if before == Some(finding) {
        return;
    }
    let Finding { check, peer, outcome, message } = finding;
    match outcome {
        Outcome::Passed if before.is_some() => info!(check, peer, "self-test passes now"),
        Outcome::Passed => debug!(check, peer, "self-test passed"),
        Outcome::Repaired | Outcome::Noted => info!(check, peer, "self-test: {message}"),
        Outcome::Failed => warn!(check, peer, "self-test: {message}"),
    }
}

/// Which peers to test, and when.
struct Plan {
    node: String,
    /// The peers of the sample, with the time of their next test; none if they passed.
    peers: BTreeMap<String, (Node, Option<Instant>)>,
    /// The first have been tested, the rest has time.
    at_leisure: bool,
}

impl Plan {
    fn new(node: String) -> Self {
        Self { node, peers: BTreeMap::new(), at_leisure: false }
    }

    fn knows(&self, peer: &str) -> bool {
        self.peers.contains_key(peer)
    }

    /// The peers to test now.
    fn due(&mut self, model: &Model, now: Instant) -> Vec<Node> {
        self.peers.retain(|name, _| model.nodes.contains_key(name));
        for (name, (node, next)) in &mut self.peers {
            if model.nodes[name] != *node {
                (*node, *next) = (model.nodes[name].clone(), Some(now));
            }
        }
        let room = SAMPLE - self.peers.len();
        let strangers = model.nodes.values().filter(|node| {
            node.name != self.node && !node.addresses.is_empty() && !self.knows(&node.name)
        });
        let mut strangers: Vec<Node> = strangers.cloned().collect();
        // Another order on each node, or all would test the same peers.
        strangers.sort_by_cached_key(|node| {
            let mut hasher = DefaultHasher::new();
            (&self.node, &node.name).hash(&mut hasher);
            hasher.finish()
        });
        for node in strangers.into_iter().take(room) {
            self.peers.insert(node.name.clone(), (node, Some(now)));
        }
        let limit = if std::mem::replace(&mut self.at_leisure, true) { 1 } else { AT_ONCE };
        let due = self.peers.values().filter(|(_, next)| next.is_some_and(|next| next <= now));
        let mut due: Vec<_> = due.map(|(node, next)| (*next, node.clone())).collect();
        due.sort_by_key(|(next, _)| *next);
        due.into_iter().take(limit).map(|(_, node)| node).collect()
    }

    fn tested(&mut self, peer: &Node, findings: &[Finding], now: Instant) {
        let failed = |check: &str| {
            findings.iter().any(|f| f.outcome == Outcome::Failed && f.check.contains(check))
        };
        if let Some((_, next)) = self.peers.get_mut(&peer.name) {
            let pause = if failed("reach") { SOON } else { AGAIN };
            *next = failed("").then(|| now + pause);
        }
    }
}

/// Everything that is tested of the node itself. Needs no agent, and changes what it repairs.
fn of_node(traces: &Traces) -> Result<Vec<Finding>> {
    let mut findings = vec![forwarding(traces), rp_filter()?];
    findings.extend(beside_us(Path::new("/"))?);
    Ok(findings)
}

/// What of others is there that may get into the way: rules, devices, daemons. Changes nothing.
pub fn beside_us(root: &Path) -> Result<Vec<Finding>> {
    let chains = nftables::chains()?;
    let links = Netlink::open()?.links()?;
    let mut findings = vec![forward_policy(&chains), kube_proxy(&chains, &links), flannel(&links)];
    findings.extend(daemons(root));
    Ok(findings)
}

fn forwarding(traces: &Traces) -> Finding {
    const CHECK: &str = "forwarding";
    match crate::node::enable_forwarding(traces) {
        Ok(false) => passed(CHECK),
        Ok(true) => finding(
            CHECK,
            Outcome::Repaired,
            "somebody had switched IP forwarding off; it is on again (look for ip_forward and \
             forwarding in /etc/sysctl.conf and /etc/sysctl.d)",
        ),
        Err(error) => finding(CHECK, Outcome::Failed, format!("{error:#}")),
    }
}

/// Packets of the host to peers may leave by the underlay and be answered through the tunnel; strict
/// filters drop such answers. Other devices may filter as strictly as they like: what arrives by
/// them is routed back by them.
fn rp_filter() -> Result<Finding> {
    const CHECK: &str = "rp_filter";
    for setting in Overlay::ALL.map(|overlay| source_filter(overlay.device())) {
        match sysctl::get(&setting) {
            // Without the device there is nothing to filter.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
            Ok(value) if value == LOOSE => {}
            Ok(value) => {
                sysctl::set(&setting, LOOSE)?;
                return Ok(finding(
                    CHECK,
                    Outcome::Repaired,
                    format!(
                        "somebody had set {setting} to {value}; it is {LOOSE} again (a pattern in \
                         /etc/sysctl.d or /usr/lib/sysctl.d may match the device)"
                    ),
                ));
            }
        }
    }
    Ok(passed(CHECK))
}

fn forward_policy(chains: &[Chain]) -> Finding {
    const CHECK: &str = "forward_policy";
    let dropping = chains.iter().filter(|c| c.hook == Some(Chain::FORWARD) && c.drops);
    let names: Vec<String> = dropping.map(|c| format!("{} {}", c.table, c.name)).collect();
    if names.is_empty() {
        return passed(CHECK);
    }
    finding(
        CHECK,
        Outcome::Noted,
        format!(
            "the host's firewall drops what it forwards without a rule for it (chain {}); Fairway's \
             programs hand packets on before it, so pods and Services do not need such rules",
            names.join(", chain ")
        ),
    )
}

fn kube_proxy(chains: &[Chain], links: &[Link]) -> Finding {
    const CHECK: &str = "kube_proxy";
    let is_its = |c: &&Chain| c.table == "kube-proxy" || c.name == "KUBE-SERVICES";
    let mut left: Vec<String> = chains
        .iter()
        .filter(is_its)
        .map(|c| format!("chain {} of table {}", c.name, c.table))
        .take(3)
        .collect();
    left.extend(
        links.iter().filter(|l| l.name == "kube-ipvs0").map(|l| format!("device {}", l.name)),
    );
    if left.is_empty() {
        return passed(CHECK);
    }
    finding(
        CHECK,
        Outcome::Failed,
        format!(
            "kube-proxy runs here or left its rules ({}), which may send Services elsewhere than \
             Fairway does; remove kube-proxy from this node, then run fairway-proxy cleanup \
             --kube-proxy or restart the node",
            left.join(", ")
        ),
    )
}

fn flannel(links: &[Link]) -> Finding {
    const CHECK: &str = "flannel";
    let left = links.iter().filter(|link| {
        link.name == "cni0"
            || link.name.starts_with("flannel.")
            || link.name.starts_with("flannel-")
    });
    let left: Vec<&str> = left.map(|link| link.name.as_str()).collect();
    if left.is_empty() {
        return passed(CHECK);
    }
    finding(
        CHECK,
        Outcome::Noted,
        format!(
            "flannel runs here or left devices ({}); when no pod of its time runs any more, remove \
             flannel from this node and them by ip link delete",
            left.join(", ")
        ),
    )
}

/// Daemons that manage devices and routes, and may think that ours are theirs.
fn daemons(root: &Path) -> Vec<Finding> {
    let mut findings = vec![passed("network_manager"), passed("systemd_networkd")];
    if root.join("run/NetworkManager").is_dir()
        && !says(root, "NetworkManager", |line| {
            line.contains("unmanaged-devices") && line.contains("interface-name:fw*")
        })
    {
        findings[0] = finding(
            "network_manager",
            Outcome::Noted,
            "NetworkManager runs here and is not told to leave pods' interfaces alone; write to \
             /etc/NetworkManager/conf.d/fairway.conf: [keyfile] and, on a line of its own, \
             unmanaged-devices=interface-name:fw*;interface-name:fairway-* and reload it",
        );
    }
    if root.join("run/systemd/netif/state").exists()
        && !says(root, "systemd/networkd", |line| {
            let line = line.replace(' ', "").to_lowercase();
            ["no", "false", "0", "off"].iter().any(|no| line == format!("manageforeignroutes={no}"))
        })
    {
        findings[1] = finding(
            "systemd_networkd",
            Outcome::Noted,
            "systemd-networkd runs here and removes routes of others when it sets up a device again; \
             the agent puts them back, with a moment without them in between. To keep them, write to \
             /etc/systemd/networkd.conf.d/fairway.conf: [Network] and, on lines of their own, \
             ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no, and restart it",
        );
    }
    findings
}

/// Whether a line of a daemon's configuration matches: of `etc/<name>.conf` or any file in
/// `<name>.conf.d` or, as NetworkManager has it, `<name>/conf.d`, below `etc`, `run` or `usr/lib`.
fn says(root: &Path, name: &str, matches: impl Fn(&str) -> bool) -> bool {
    let mut files = Vec::new();
    for base in ["etc", "run", "usr/lib"].map(|base| root.join(base)) {
        let (folder, file) = name.rsplit_once('/').unwrap_or((name, name));
        files.push(base.join(folder).join(format!("{file}.conf")));
        for dropped in [base.join(format!("{name}.conf.d")), base.join(name).join("conf.d")] {
            let entries = fs::read_dir(dropped).into_iter().flatten().flatten();
            files.extend(entries.map(|entry| entry.path()));
        }
    }
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.into_iter().any(|text| text.lines().map(str::trim).any(&matches))
}

/// A way to a peer.
struct Way {
    to: IpAddr,
    from: Option<IpAddr>,
    device: Link,
}

impl Way {
    fn is_tunnel(&self) -> bool {
        Overlay::ALL.iter().any(|overlay| overlay.device() == self.device.name)
    }
}

fn way(netlink: &mut Netlink, to: IpAddr) -> Result<Option<Way>> {
    let Some(route) = netlink.route_to(to)?.filter(|route| !route.local) else { return Ok(None) };
    let device = netlink.link_by_index(route.device)?.context("the device has gone")?;
    Ok(Some(Way { to, from: route.source, device }))
}

fn of_peer(peer: &Node, underlay_mtu: Option<u32>) -> Result<Vec<Finding>> {
    let mut netlink = Netlink::open()?;
    // By its address on the overlay: the first of its pods' range. The node's own is beside the tunnel.
    let mut tunnel = None;
    for cidr in &peer.pod_cidrs {
        tunnel = tunnel.or(way(&mut netlink, cidr.network())?.filter(Way::is_tunnel));
    }
    let mut direct = None;
    for address in &peer.addresses {
        direct = direct.or(way(&mut netlink, *address)?);
    }
    let mut findings = Vec::new();
    if let Some(way) = &tunnel {
        findings.push(reach(way, "reach_tunnel")?);
        if findings[0].outcome == Outcome::Passed {
            findings.push(path_mtu(way, way.device.mtu, "path_mtu_tunnel")?);
            // WireGuard's are computed before it encrypts.
            if way.device.vxlan.is_some() {
                findings.push(checksums(way)?);
            }
        }
    }
    match &direct {
        Some(way) => {
            let reached = reach(way, "reach")?;
            if reached.outcome == Outcome::Passed {
                let mtu = underlay_mtu.unwrap_or(way.device.mtu);
                findings.push(path_mtu(way, mtu, "path_mtu")?);
            }
            // Where the tunnel works, a peer may well not answer beside it.
            if tunnel.is_none() || reached.outcome == Outcome::Passed {
                findings.push(reached);
            }
        }
        None => findings.push(finding(
            "reach",
            Outcome::Failed,
            "this node has no route to any of its addresses (Node.status.addresses)",
        )),
    }
    Ok(findings)
}

fn reach(way: &Way, check: &str) -> Result<Finding> {
    let Way { to, from, device } = way;
    let tunnel = way.is_tunnel();
    if probe::echo(*from, *to, SMALL).context("send an ICMP echo request")? == Echo::Answered {
        return Ok(passed(check));
    }
    let why = if tunnel {
        "is the tunnel's UDP port open between the nodes, has it the same number on both, and does an \
         agent run there?"
    } else {
        "is the node up, and does its firewall take ICMP echo requests?"
    };
    let message = format!("no answer from {to} by {}: {why}", device.name);
    Ok(finding(check, Outcome::Failed, message))
}

/// Whether a packet that fills the way's MTU arrives in one piece.
fn path_mtu(way: &Way, mtu: u32, check: &str) -> Result<Finding> {
    let Way { to, from, device } = way;
    // A device with a huge MTU, such as loopback, cannot be filled by an IP packet.
    let mtu = mtu.min(65535);
    if probe::echo(*from, *to, mtu)? == Echo::Answered {
        return Ok(passed(check));
    }
    let largest = probe::largest(*from, *to, SMALL, mtu)?;
    let less = mtu - largest;
    let message = if way.is_tunnel() {
        format!(
            "packets of {mtu} bytes get lost in the tunnel to {to}, those of {largest} pass: pods will \
             see connections that hang. Give the agents --underlay-mtu with the underlay's real MTU \
             ({less} less than now), or mend the path"
        )
    } else {
        format!(
            "packets of {mtu} bytes do not get to {to} in one piece, those of {largest} do: the network \
             between the nodes has a smaller MTU than {}. Give the agents --underlay-mtu {largest}, or \
             mend the path",
            device.name
        )
    };
    Ok(finding(check, Outcome::Failed, message))
}

/// Whether packets arrive whose checksum is left to a device below the tunnel. Some devices and
/// drivers spoil them, and connections through the tunnel stall.
fn checksums(way: &Way) -> Result<Finding> {
    let device = &way.device.name;
    judge_checksums(
        (way.to, device),
        || probe::is_refused(way.from, way.to).context("send UDP through the tunnel"),
        || Ok(offload::get(device, Offload::TxChecksum)?),
        |on| Ok(offload::set(device, Offload::TxChecksum, on)?),
    )
}

fn judge_checksums(
    (to, device): (IpAddr, &str),
    refused: impl Fn() -> Result<bool>,
    is_offloaded: impl Fn() -> Result<bool>,
    offload: impl Fn(bool) -> Result<()>,
) -> Result<Finding> {
    const CHECK: &str = "tunnel_checksums";
    if refused()? {
        return Ok(passed(CHECK));
    }
    let unknown = finding(
        CHECK,
        Outcome::Noted,
        format!("{to} does not say that nobody listens on a UDP port, so checksums are not tested"),
    );
    // Where they are computed by the host already, it is a firewall, most likely.
    if !is_offloaded()? {
        return Ok(unknown);
    }
    offload(false)?;
    if refused()? {
        return Ok(finding(
            CHECK,
            Outcome::Repaired,
            format!(
                "the network device under {device} spoils checksums of tunnelled packets; they are now \
                 computed before the tunnel (ethtool -K {device} tx off), which costs some throughput. \
                 A newer kernel or driver may do better"
            ),
        ));
    }
    offload(true)?;
    Ok(unknown)
}

#[cfg(test)]
mod tests;
