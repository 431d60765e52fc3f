//! What the node itself knows: its uplink, addresses and MTU, and the overlay device.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};
use fairway_compile::Backend;
use fairway_netlink::{AddressOptions, Link, Netlink, Vxlan, VxlanKey, sysctl};
use ipnet::IpNet;
use tracing::info;

use crate::routes::host_prefix;
use crate::traces::Traces;

/// How the names of all our devices begin, but for pods' interfaces.
const DEVICES: &str = "fairway-";

/// A kind of device that takes packets to peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overlay {
    /// One that a program gives each packet's peer.
    Vxlan {
        /// UDP port, sent to and listened on.
        port: u16,
    },
    /// One that knows its peers, and encrypts.
    WireGuard {
        /// UDP port, sent to and listened on.
        port: u16,
    },
}

impl Overlay {
    /// One of each kind, for who looks for what there is.
    pub(crate) const ALL: [Self; 2] = [Self::Vxlan { port: 0 }, Self::WireGuard { port: 0 }];

    /// What the node's device of this kind is called.
    pub(crate) fn device(self) -> &'static str {
        match self {
            Self::Vxlan { .. } => "fairway-vxlan",
            Self::WireGuard { .. } => "fairway-wg",
        }
    }

    /// UDP port of its packets.
    fn port(self) -> u16 {
        match self {
            Self::Vxlan { port } | Self::WireGuard { port } => port,
        }
    }

    /// Whether a device of that name will do as it is. WireGuard's is configured afterwards.
    fn is_as_wanted(self, link: &Link) -> bool {
        match self {
            Self::Vxlan { port } => {
                link.vxlan == Some(VxlanKey { port, vni: 0, collect_metadata: true })
            }
            Self::WireGuard { .. } => link.kind.as_deref() == Some(self.kind()),
        }
    }

    /// What the kernel calls the kind.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Vxlan { .. } => "vxlan",
            Self::WireGuard { .. } => "wireguard",
        }
    }
}

/// A filter of sources that takes what could be answered by any device.
pub(crate) const LOOSE: &str = "2";
/// What VXLAN puts around a packet: outer IPv4, UDP, VXLAN and inner Ethernet headers (RFC 7348).
const VXLAN_OVERHEAD: u32 = 50;
/// The same over IPv6.
const VXLAN_OVERHEAD_V6: u32 = 70;
/// What WireGuard puts around a packet: outer IPv4 and UDP headers, 16 bytes before the packet and 16
/// behind it (the protocol's paper, 5.4.6).
const WIREGUARD_OVERHEAD: u32 = 60;
/// The same over IPv6.
const WIREGUARD_OVERHEAD_V6: u32 = 80;

/// The device that leads to the other nodes and the outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uplink {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// Addresses with the prefixes on its link.
    pub(crate) networks: Vec<IpNet>,
}

impl Uplink {
    /// The named device, else the one that has an address by which other nodes know this one, else
    /// the one of the default route.
    pub(crate) fn find(
        netlink: &mut Netlink,
        name: Option<&str>,
        known_by: &[IpAddr],
    ) -> Result<Self> {
        let link = match name {
            Some(name) => {
                netlink.link(name)?.ok_or_else(|| anyhow!("uplink {name}: no such device"))?
            }
            None => match carrier_of(netlink, known_by)? {
                Some(link) => link,
                None => of_default_route(netlink)?,
            },
        };
        let networks = netlink.addresses(link.index)?.into_iter().map(|a| a.net);
        // A link-local address is on every link and says nothing about this one.
        let networks = networks.filter(|net| !is_link_local(net.addr())).collect();
        Ok(Self { index: link.index, name: link.name, mtu: link.mtu, networks })
    }

    /// Its addresses, IPv4 first as the kernel lists them.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.networks.iter().map(IpNet::addr).collect()
    }
}

/// Every address of this node, for packets that are the host's own.
pub(crate) fn addresses(netlink: &mut Netlink) -> Result<Vec<IpAddr>> {
    let all = netlink.all_addresses()?.into_iter().map(|address| address.net.addr());
    // An IPv6 link-local address means nothing beyond its link; of IPv4, pods are to reach it.
    let is_local = |address: &IpAddr| address.is_ipv6() && is_link_local(*address);
    let mut all: Vec<IpAddr> =
        all.filter(|address| !is_local(address) && !address.is_loopback()).collect();
    all.sort();
    all.dedup();
    Ok(all)
}

/// Whether a device that is not ours has an address in one of these ranges, as the bridge of another
/// network plugin has that this node was converted from: its pods are in the range, too.
pub(crate) fn is_shared(netlink: &mut Netlink, ranges: &[IpNet]) -> Result<bool> {
    let addresses = netlink.all_addresses()?.into_iter();
    let within = addresses.filter(|a| ranges.iter().any(|range| range.contains(&a.net.addr())));
    let devices: BTreeSet<u32> = within.map(|address| address.device).collect();
    let links = netlink.links()?.into_iter();
    let foreign = |link: &Link| !link.name.starts_with(DEVICES) && link.name != "lo";
    Ok(links.filter(|link| devices.contains(&link.index)).any(|link| foreign(&link)))
}

/// The devices that lead out of the node: all that are up and have an address of their own, but for
/// the overlay and the pods' interfaces.
pub(crate) fn carriers(
    netlink: &mut Netlink,
    pods: &BTreeSet<u32>,
) -> Result<BTreeSet<(String, u32)>> {
    let addressed = netlink.all_addresses()?.into_iter().filter(|a| {
        let address = a.net.addr();
        !is_link_local(address) && !address.is_loopback()
    });
    let addressed: BTreeSet<u32> = addressed.map(|address| address.device).collect();
    let links = netlink
        .links()?
        .into_iter()
        .filter(|link| link.up && addressed.contains(&link.index) && !pods.contains(&link.index));
    // The programs read an Ethernet header first, and a device without one has no address for it.
    let links = links.filter(|link| link.mac.is_some() && !link.loopback);
    let carriers = links.filter(|link| !Overlay::ALL.iter().any(|o| o.device() == link.name));
    Ok(carriers.map(|link| (link.name, link.index)).collect())
}

/// The MTU of a pod's interface: a packet for the tunnel must fit into one of the underlay.
///
/// It is that of pods to come. Where the underlay's MTU shrinks, the programs tell running pods of the
/// new limit, packet by packet; the interfaces that pods have are left as they are: a node's end with
/// a smaller MTU than the pod's drops what is larger without a word.
pub(crate) fn pod_mtu(uplink: u32, backend: Backend, underlay_is_v6: bool) -> u32 {
    match backend {
        Backend::HostGw => uplink,
        Backend::Auto | Backend::Vxlan if underlay_is_v6 => {
            uplink.saturating_sub(VXLAN_OVERHEAD_V6)
        }
        Backend::Auto | Backend::Vxlan => uplink.saturating_sub(VXLAN_OVERHEAD),
        Backend::Wireguard if underlay_is_v6 => uplink.saturating_sub(WIREGUARD_OVERHEAD_V6),
        Backend::Wireguard => uplink.saturating_sub(WIREGUARD_OVERHEAD),
    }
}

/// Makes the overlay device, or brings an existing one up to date; answers its index.
pub(crate) fn ensure_overlay(
    netlink: &mut Netlink,
    overlay: Overlay,
    mtu: u32,
    addresses: &[IpAddr],
) -> Result<u32> {
    let device = overlay.device();
    let link = match netlink.link(device)? {
        Some(link) if overlay.is_as_wanted(&link) => link,
        Some(link) => {
            if link.kind.as_deref() != Some(overlay.kind()) {
                let kind = link.kind.as_deref().unwrap_or("plain device");
                bail!(
                    "device {device} is a {kind}, not a {} device of ours; remove it \
                     (ip link delete {device})",
                    overlay.kind()
                );
            }
            info!(was = ?link.vxlan, wanted = ?overlay, "the overlay device is made anew");
            netlink.delete_link(link.index)?;
            create_overlay(netlink, overlay, mtu)?
        }
        None => create_overlay(netlink, overlay, mtu)?,
    };
    if link.mtu != mtu {
        netlink.set_mtu(link.index, mtu)?;
    }
    // The program at its egress knows every peer; there is nobody to ask.
    netlink.disable_arp(link.index)?;
    // Only now the device wants its port.
    match netlink.set_up(link.index) {
        Err(error) if error.errno() == Some(libc::EADDRINUSE) => {
            return Err(explain_taken(netlink, error, link.index, overlay)?);
        }
        other => other?,
    }
    // Loose, whatever holds for all devices: a peer's own packets may arrive by the underlay and be
    // answered through the tunnel.
    sysctl::set(&source_filter(device), LOOSE)?;
    let have = netlink.addresses(link.index)?;
    for address in addresses {
        if !have.iter().any(|a| a.net.addr() == *address) {
            netlink.add_address(
                link.index,
                host_prefix(*address),
                AddressOptions { nodad: true, ..AddressOptions::default() },
            )?;
        }
    }
    for stale in have.iter().map(|a| a.net) {
        if !is_link_local(stale.addr()) && !addresses.contains(&stale.addr()) {
            netlink.delete_address(link.index, stale)?;
        }
    }
    Ok(link.index)
}

/// Takes the overlay device of a kind away, where nothing goes by it; answers whether there was one.
pub(crate) fn remove_overlay(netlink: &mut Netlink, overlay: Overlay) -> Result<bool> {
    match netlink.link(overlay.device())? {
        Some(link) if link.kind.as_deref() == Some(overlay.kind()) => {
            netlink.delete_link(link.index)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The setting of a device's filter of sources.
pub(crate) fn source_filter(device: &str) -> String {
    format!("net/ipv4/conf/{device}/rp_filter")
}

/// Lets the host's stack forward what the programs leave to it; true if it did not.
pub(crate) fn enable_forwarding(traces: &Traces) -> Result<bool> {
    let mut changed = traces.set("net/ipv4/ip_forward", "1").context("enable IPv4 forwarding")?;
    // A kernel without IPv6 has no such file, and nothing to forward.
    if sysctl::get("net/ipv6/conf/all/forwarding").is_ok() {
        let v6 = traces.set("net/ipv6/conf/all/forwarding", "1");
        changed |= v6.context("enable IPv6 forwarding")?;
    }
    Ok(changed)
}

fn create_overlay(netlink: &mut Netlink, overlay: Overlay, mtu: u32) -> Result<Link> {
    let name = overlay.device();
    let made = match overlay {
        Overlay::Vxlan { port } => {
            let mtu = Some(mtu);
            let vxlan = Vxlan { name, port, collect_metadata: true, mtu, ..Vxlan::default() };
            netlink.create_vxlan(&vxlan)
        }
        Overlay::WireGuard { .. } => netlink.create_wireguard(name, Some(mtu)),
    };
    match made {
        Ok(link) => Ok(link),
        // Another device takes the packets of every identifier on this port.
        Err(error) if error.is_exists() => Err(explain_taken(netlink, error, 0, overlay)?),
        Err(error) => Err(error).context("make the overlay device"),
    }
}

/// Says who has the overlay's port; `ours` is the index of our own device.
fn explain_taken(
    netlink: &mut Netlink,
    error: fairway_netlink::Error,
    ours: u32,
    overlay: Overlay,
) -> Result<anyhow::Error> {
    let port = overlay.port();
    let links = netlink.links()?.into_iter().filter(|link| link.index != ours);
    let mut on_port = links.filter_map(|link| Some((link.vxlan?, link.name)));
    let who = match on_port.find(|(key, _)| key.port == port) {
        Some((key, name)) => format!(
            "it belongs to VXLAN device {name} (VNI {}), which is not Fairway's; remove it \
             (ip link delete {name}) when nothing uses it any more",
            key.vni
        ),
        None => format!("a process listens on it (ss -ulnp 'sport = :{port}'); end it"),
    };
    Ok(anyhow::Error::new(error).context(format!(
        "bring up the overlay device {} on UDP port {port}: {who}, or choose another port with \
         --{}-port, the same on every node",
        overlay.device(),
        overlay.kind()
    )))
}

/// The device that has the first of these addresses that any device has. One that is kept on a
/// loopback or dummy device to be reached by several ways says nothing about them.
fn carrier_of(netlink: &mut Netlink, addresses: &[IpAddr]) -> Result<Option<Link>> {
    let here = netlink.all_addresses()?;
    for address in addresses {
        if let Some(found) = here.iter().find(|here| here.net.addr() == *address)
            && let Some(link) = netlink.link_by_index(found.device)?
            && !link.loopback
            && link.kind.as_deref() != Some("dummy")
        {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

fn of_default_route(netlink: &mut Netlink) -> Result<Link> {
    for family in [fairway_netlink::Family::V4, fairway_netlink::Family::V6] {
        let routes = netlink.routes(family, Some(fairway_netlink::Route::MAIN))?;
        let default = routes.into_iter().find(|r| r.destination.prefix_len() == 0);
        if let Some(device) = default.and_then(|route| route.device)
            && let Some(link) = netlink.link_by_index(device)?
        {
            return Ok(link);
        }
    }
    bail!("no uplink: there is no default route; name the device with --uplink")
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
