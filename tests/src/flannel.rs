//! Nodes that flannel runs, for a cluster that moves from it to Fairway node by node.
//!
//! What flanneld and the plugin of its name leave in the kernel, made with the tools of iproute2:
//! a VXLAN device a family, for each peer a route, a permanent neighbour and a forwarding entry; a
//! bridge for the pods, which the reference plugins `bridge` and `host-local` connect; masquerade by
//! iptables. Source addresses are checked strictly.
//!
//! Every node of such a cluster carries flannel's annotations: those of a node that has moved stay, and one that
//! flannel never ran is given some in the manifests, or by the control plane of a cluster with an API server.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_netlink::{Mac, NetNs, sysctl};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::process;
use crate::topology::{NodePlan, Topology};
use crate::underlay::UPLINK;

/// Where Debian has the reference plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";
/// The bridge of a node's pods.
const BRIDGE: &str = "cni0";
/// The devices of both families, IPv4 first.
const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];
const VNI: u32 = 1;
const PORT: u16 = 8472;
/// What VXLAN takes of the underlay's 1500 bytes, a family.
const MTU: [u32; 2] = [1450, 1430];
const LIMIT: Duration = Duration::from_secs(10);

/// What flanneld writes on a node's object.
pub(crate) fn annotations(node: &NodePlan, number: usize) -> Value {
    let data = |family| json!({"VNI": VNI, "VtepMAC": show(mac(number, family))}).to_string();
    let mut all = json!({
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
    });
    for range in &node.pod_cidrs {
        let family = family_of(range);
        let (key, address) =
            [("backend-data", "public-ip"), ("backend-v6-data", "public-ipv6")][family];
        all[format!("flannel.alpha.coreos.com/{key}")] = data(family).into();
        all[format!("flannel.alpha.coreos.com/{address}")] = json!(node.addresses.beside(range));
    }
    all
}

/// The device at which a node's annotations say that its tunnel ends, of IPv4 and of IPv6.
pub(crate) fn annotated(node: &Value) -> [Option<Mac>; 2] {
    ["backend-data", "backend-v6-data"].map(|key| {
        let data = &node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{key}")];
        let data: Value = serde_json::from_str(data.as_str()?).ok()?;
        let bytes = data["VtepMAC"].as_str()?.split(':');
        let bytes: Option<Vec<u8>> = bytes.map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes?.try_into().ok()
    })
}

/// The devices of a topology's nodes, if flannel runs all of them.
pub(crate) fn devices(topology: &Topology) -> Vec<[Option<Mac>; 2]> {
    let nodes = 0..topology.nodes.len();
    nodes.map(|number| [0, 1].map(|family| Some(mac(number, family)))).collect()
}

/// Makes a node flannel's. Tunnels of others end at `devices`.
pub(crate) fn set_up(
    netns: &NetNs,
    topology: &Topology,
    node: &NodePlan,
    devices: &[[Option<Mac>; 2]],
) -> Result<()> {
    connect(netns, topology, node, devices)?;
    for rule in masquerade(topology, "-A") {
        run(netns, &rule, "")?;
    }
    Ok(())
}

/// Gives a node flannel's tunnels to all others, but no rule for what leaves the cluster: such rules
/// turn connection tracking on.
pub(crate) fn connect(
    netns: &NetNs,
    topology: &Topology,
    node: &NodePlan,
    devices: &[[Option<Mac>; 2]],
) -> Result<()> {
    if !Path::new(PLUGINS).join("bridge").exists() {
        bail!("no plugin \"bridge\" in {PLUGINS}: run `cargo xtask setup`");
    }
    netns.run(|| {
        sysctl::set("net/ipv4/ip_forward", "1")?;
        sysctl::set("net/ipv6/conf/all/forwarding", "1")?;
        sysctl::set("net/ipv4/conf/all/rp_filter", "1")?;
        sysctl::set("net/ipv4/conf/default/rp_filter", "1")
    })??;
    let own = number(topology, node);
    for range in &node.pod_cidrs {
        let family = family_of(range);
        let device = DEVICES[family];
        let local = node.addresses.beside(range).context("an underlay of the pods' family")?;
        let mut links = vec![
            format!(
                "link add {device} address {} mtu {} type vxlan id {VNI} dev {UPLINK} local {local} \
                 dstport {PORT} nolearning",
                show(mac(own, family)),
                MTU[family],
            ),
            format!("address add {} dev {device} nodad", IpNet::from(range.network())),
            format!("link set {device} up"),
        ];
        let mut forwarding = Vec::new();
        for (number, peer) in topology.nodes.iter().enumerate().filter(|(n, _)| *n != own) {
            let pods = peer.pod_cidrs.iter().find(|pods| family_of(pods) == family);
            let Some((pods, underlay)) = pods.zip(peer.addresses.beside(range)) else { continue };
            let Some(mac) = devices.get(number).and_then(|of| of[family]) else { continue };
            let (gateway, mac) = (pods.network(), show(mac));
            links.push(format!(
                "neighbour replace {gateway} lladdr {mac} dev {device} nud permanent"
            ));
            links.push(format!("route replace {pods} via {gateway} dev {device} onlink"));
            forwarding.push(format!("fdb replace {mac} dev {device} dst {underlay}"));
        }
        batch(netns, "ip", &links)?;
        batch(netns, "bridge", &forwarding)?;
    }
    Ok(())
}

/// Takes away what flannel leaves on a node that it is removed from; its pods are gone before.
pub(crate) fn take_down(netns: &NetNs, topology: &Topology, node: &NodePlan) -> Result<()> {
    let devices = node.pod_cidrs.iter().map(|range| DEVICES[family_of(range)]);
    let gone: Vec<_> =
        devices.chain([BRIDGE]).map(|device| format!("link delete {device}")).collect();
    batch(netns, "ip", &gone)?;
    for rule in masquerade(topology, "-D") {
        run(netns, &rule, "")?;
    }
    Ok(())
}

/// The network configuration that flannel's plugin hands to the reference plugins.
pub(crate) fn delegate(topology: &Topology, node: &NodePlan, data_dir: &Path) -> Value {
    let ranges: Vec<Value> =
        node.pod_cidrs.iter().map(|range| json!([{"subnet": range.to_string()}])).collect();
    let routes: Vec<Value> =
        cluster_ranges(topology).iter().map(|range| json!({"dst": range.to_string()})).collect();
    let mtu = node.pod_cidrs.iter().map(|range| MTU[family_of(range)]).min();
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "bridge",
        "bridge": BRIDGE,
        "mtu": mtu,
        "isGateway": true,
        "isDefaultGateway": true,
        "hairpinMode": true,
        "ipMasq": false,
        "ipam": {
            "type": "host-local",
            "dataDir": data_dir,
            "ranges": ranges,
            "routes": routes,
        },
    })
}

/// All pods' ranges: of each family, the smallest that holds every node's.
fn cluster_ranges(topology: &Topology) -> Vec<IpNet> {
    let all = |family| {
        topology
            .nodes
            .iter()
            .flat_map(|node| &node.pod_cidrs)
            .filter(move |r| family_of(r) == family)
    };
    let cover = |family| {
        let mut cover = *all(family).next()?;
        while !all(family).all(|range| cover.contains(range)) {
            cover = cover.supernet()?;
        }
        Some(cover)
    };
    [0, 1].into_iter().filter_map(cover).collect()
}

fn masquerade(topology: &Topology, verb: &str) -> Vec<Vec<String>> {
    let rule = |range: &IpNet| {
        let program = if range.addr().is_ipv4() { "iptables" } else { "ip6tables" };
        let words = format!(
            "{program} -w 5 -t nat {verb} POSTROUTING -s {range} ! -d {range} -j MASQUERADE"
        );
        words.split(' ').map(str::to_owned).collect()
    };
    cluster_ranges(topology).iter().map(rule).collect()
}

fn number(topology: &Topology, node: &NodePlan) -> usize {
    topology.nodes.iter().position(|other| other.name == node.name).unwrap_or_default()
}

/// 0 for IPv4, 1 for IPv6.
fn family_of(range: &IpNet) -> usize {
    usize::from(range.addr().is_ipv6())
}

/// Of a node's device: as random as flannel's, but known to its peers before it exists.
fn mac(number: usize, family: usize) -> Mac {
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    [0xce, 0xa2, 0xf5, 0x01, byte(family), byte(number)]
}

fn show(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Commands of one tool of iproute2's, a line each.
pub(crate) fn batch(netns: &NetNs, tool: &str, lines: &[String]) -> Result<()> {
    run(netns, &[tool, "-batch", "-"].map(str::to_owned), &lines.join("\n"))
}

fn run(netns: &NetNs, words: &[String], input: &str) -> Result<()> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    netns.enter_on_spawn(&mut command)?;
    let output = process::output_within(&mut command, input.as_bytes(), LIMIT)
        .with_context(|| words.join(" "))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}\n{input}", words.join(" "), output.status, complaint.trim());
    }
    Ok(())
}
