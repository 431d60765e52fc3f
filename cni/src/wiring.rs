//! The veth pair between node and pod, and what each end needs to be of use.
//!
//! ```text
//!  pod namespace                              node
//!  eth0  10.1.0.2/32 ───────────── veth ───── fw4f1d...
//!  default via 169.254.1.1 onlink             10.1.0.2/32 dev fw4f1d... scope link
//!  169.254.1.1 lladdr <node's end> permanent  10.1.0.2 lladdr <pod's end> permanent
//! ```
//!
//! The same for IPv6 with `fe80::1`. Nobody owns the gateway addresses; they only name the node's
//! end. MAC addresses follow from the attachment, so that a repeated ADD makes the same pod.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use fairway_netlink::grace::{self, Expedited};
use fairway_netlink::{
    AddressOptions, Error, Family, Link, Mac, NetNs, Netlink, Route, Veth, sysctl,
};
use ipnet::IpNet;

use crate::call::Attachment;

/// The names and MAC addresses that belong to an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    /// The node's end: `fw` and twelve hexadecimal digits.
    pub(crate) host_interface: String,
    pub(crate) host_mac: Mac,
    /// The pod's end: `CNI_IFNAME`.
    pub(crate) pod_interface: String,
    pub(crate) pod_mac: Mac,
}

impl Wire {
    pub(crate) fn of(attachment: &Attachment) -> Self {
        let id = |what: &str| {
            let parts = [what, &attachment.container_id, &attachment.interface];
            // Neither an id nor an interface name contains a slash.
            let [_, _, digits @ ..] = hash(parts.join("/").as_bytes()).to_be_bytes();
            digits
        };
        let [a, b, c, d, e, f] = id("name");
        Self {
            host_interface: format!("fw{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}"),
            host_mac: local(id("host")),
            pod_interface: attachment.interface.clone(),
            pod_mac: local(id("pod")),
        }
    }

    /// Could it be the node's end of some attachment?
    pub(crate) fn is_name(interface: &str) -> bool {
        let digits = interface.strip_prefix("fw").unwrap_or_default();
        digits.len() == 12 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }

    /// The same with another MAC address at the pod's end.
    pub(crate) fn with_pod_mac(self, mac: Option<Mac>) -> Self {
        Self { pod_mac: mac.unwrap_or(self.pod_mac), ..self }
    }

    /// Makes the veth pair, one end in the pod; the node's end is returned. [`Error::is_exists`] if
    /// there is one of either name: it may be a running pod's, so it is never replaced.
    pub(crate) fn create(&self, node: &mut Netlink, pod: &NetNs, mtu: u32) -> Result<Link, Error> {
        node.create_veth(&Veth {
            name: &self.host_interface,
            peer_name: &self.pod_interface,
            mtu: Some(mtu),
            mac: Some(self.host_mac),
            peer_mac: Some(self.pod_mac),
            peer_netns: Some(pod),
        })
    }

    /// Removes both ends, and with them all addresses, routes and neighbours on them.
    pub(crate) fn delete(&self, node: &mut Netlink) -> Result<(), Error> {
        match node.link(&self.host_interface)? {
            Some(link) => {
                let _short = Expedited::begin();
                node.delete_link(link.index)
            }
            None => {
                // A call before this one may have been killed as soon as it had removed it.
                grace::restore();
                Ok(())
            }
        }
    }

    /// Sets up the pod's end: addresses, routes to `destinations`, and the gateways' MAC address.
    /// `pod` speaks to the kernel in `netns`.
    pub(crate) fn set_up_pod(
        &self,
        netns: &NetNs,
        pod: &mut Netlink,
        addresses: &[IpAddr],
        destinations: &[IpNet],
    ) -> Result<(), Error> {
        netns.run(|| self.set_up_pod_settings(addresses))??;
        if let Some(loopback) = pod.links()?.into_iter().find(|link| link.loopback) {
            pod.set_up(loopback.index)?;
        }
        let device = existing(pod, &self.pod_interface)?.index;
        pod.set_up(device)?;
        for address in addresses {
            let options = AddressOptions { nodad: true, noprefixroute: true };
            pod.add_address(device, IpNet::from(*address), options)?;
            let gateway = gateway(*address);
            pod.replace_neighbour(device, gateway, self.host_mac, true)?;
            match pod.add_route(&to_gateway(gateway, device)) {
                // Of another interface of the pod; the routes below do not depend on it.
                Err(error) if error.is_exists() => {}
                other => other?,
            }
        }
        for destination in destinations {
            // Added, not replaced: a pod that has such a route already keeps its own.
            pod.add_route(&by_gateway(*destination, device))?;
        }
        Ok(())
    }

    fn set_up_pod_settings(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let set = |family: &str, key: &str, value: &str| {
            sysctl::set(&format!("net/{family}/conf/{}/{key}", self.pod_interface), value)
        };
        if addresses.iter().any(IpAddr::is_ipv4) {
            set("ipv4", "arp_notify", "1")?; // for `announce`
        }
        if addresses.iter().any(IpAddr::is_ipv6) {
            // Some runtimes turn IPv6 off in new namespaces.
            set("ipv6", "disable_ipv6", "0")?;
            // On a link of two, the link-local address has no duplicate to be searched for.
            set("ipv6", "accept_dad", "0")?;
            set("ipv6", "accept_ra", "0")?;
            set("ipv6", "ndisc_notify", "1")?;
        }
        Ok(())
    }

    /// Waits until both ends carry packets and the pod takes those for its addresses, which the
    /// kernel sees to in its own time; false if it takes too long.
    pub(crate) fn wait_until_running(
        &self,
        node: &mut Netlink,
        pod: &mut Netlink,
        addresses: &[IpAddr],
    ) -> Result<bool, Error> {
        let begin = Instant::now();
        let mut pause = Duration::from_millis(1);
        while !existing(node, &self.host_interface)?.running
            || !existing(pod, &self.pod_interface)?.running
            || !takes_packets_for(pod, addresses)?
        {
            if begin.elapsed() > RUNNING_PATIENCE {
                return Ok(false);
            }
            thread::sleep(pause);
            // Each question takes the kernel's lock on all of its links.
            pause = Duration::min(pause * 2, Duration::from_millis(8));
        }
        Ok(true)
    }

    /// Tells whoever listens at the node's end whose the addresses are now, which may have been
    /// another pod's a moment ago: gratuitous ARP (RFC 5227, 3) and unsolicited neighbour
    /// advertisements (RFC 4861, 7.2.6).
    ///
    /// The kernel sends them when an interface is given a MAC address, if only the one it has. A
    /// packet socket would do as well, but the kernel takes ten milliseconds to close one.
    pub(crate) fn announce(&self, pod: &mut Netlink, addresses: &[IpAddr]) -> Result<(), Error> {
        let device = existing(pod, &self.pod_interface)?.index;
        pod.set_mac(device, self.pod_mac)?;
        for address in addresses {
            // With a MAC address of before, the kernel forgets all neighbours.
            pod.replace_neighbour(device, gateway(*address), self.host_mac, true)?;
        }
        Ok(())
    }

    /// Makes the node's end forward whatever the programs there let pass. Whether a packet really
    /// comes from this pod is decided before it gets to the host's own filter, and a reply whose
    /// source was translated back must not be taken for a forgery.
    pub(crate) fn accept_any_source(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        if addresses.iter().any(IpAddr::is_ipv4) {
            self.set_host("ipv4", "rp_filter", "0")?;
            self.set_host("ipv4", "forwarding", "1")?;
        }
        if addresses.iter().any(IpAddr::is_ipv6) {
            self.set_host("ipv6", "forwarding", "1")?;
        }
        Ok(())
    }

    fn set_host(&self, family: &str, key: &str, value: &str) -> Result<(), Error> {
        sysctl::set(&format!("net/{family}/conf/{}/{key}", self.host_interface), value)
    }

    /// Leaves the node's end without a link-local address, which nobody speaks to. A router has an
    /// anycast address beside it, whose route holds the interface for two grace periods one after the
    /// other, and the interface's removal waits for both. No more than that time depends on it, and a
    /// kernel without IPv6 has none of it.
    fn keep_simple(&self, addresses: &[IpAddr]) {
        let _ = if addresses.iter().any(IpAddr::is_ipv6) {
            self.set_host("ipv6", "addr_gen_mode", "1")
        } else {
            self.set_host("ipv6", "disable_ipv6", "1")
        };
    }

    /// Sets up the node's end: a route to each of the pod's addresses, and its MAC address.
    /// [`Error::is_exists`] if there is a route to one of them already.
    pub(crate) fn set_up_host(
        &self,
        node: &mut Netlink,
        device: u32,
        addresses: &[IpAddr],
    ) -> Result<(), Error> {
        self.accept_any_source(addresses)?;
        if addresses.iter().any(IpAddr::is_ipv6) {
            self.set_host("ipv6", "disable_ipv6", "0")?;
            self.set_host("ipv6", "accept_ra", "0")?;
            self.set_host("ipv6", "accept_dad", "0")?;
        }
        self.keep_simple(addresses);
        node.set_up(device)?;
        for address in addresses {
            node.replace_neighbour(device, *address, self.pod_mac, true)?;
            // Added, not replaced: a route that is there leads to another pod.
            node.add_route(&to_pod(*address, device))?;
        }
        Ok(())
    }
}

/// The kernel takes milliseconds to notice that both ends are up, or a second at worst, as it does
/// so once a second for what it takes to be of no urgency; hundreds of calls at once wait for each
/// other's changes besides.
const RUNNING_PATIENCE: Duration = Duration::from_secs(20);

/// What the pod's routes point to.
pub(crate) const fn gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    }
}

pub(crate) const fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// `0.0.0.0/0` or `::/0`, as the address's family wants it.
pub(crate) fn everywhere(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(Default::default()),
        IpAddr::V6(_) => IpNet::V6(Default::default()),
    }
}

/// Where a pod with these addresses sends through its interface: everywhere, unless the
/// configuration says where. What it says of a family that the pod has no address of is nothing.
pub(crate) fn destinations(configured: Option<&[IpNet]>, addresses: &[IpAddr]) -> Vec<IpNet> {
    let has_address =
        |net: &IpNet| addresses.iter().any(|address| address.is_ipv4() == net.addr().is_ipv4());
    match configured {
        None => addresses.iter().map(|address| everywhere(*address)).collect(),
        Some(nets) => nets.iter().copied().filter(has_address).collect(),
    }
}

/// The route on the node that leads to the pod.
pub(crate) fn to_pod(address: IpAddr, device: u32) -> Route {
    Route { device: Some(device), scope_link: true, ..Route::to(address.into()) }
}

/// Whether the node routes all of these addresses to this interface.
pub(crate) fn leads_to(
    node: &mut Netlink,
    interface: &str,
    addresses: &[IpAddr],
) -> Result<bool, Error> {
    let device = node.link(interface)?.map(|link| link.index);
    for address in addresses {
        let expected = to_pod(*address, 0).destination;
        let mut routes = node.routes(family_of(*address), Some(Route::MAIN))?.into_iter();
        if !routes.any(|route| route.destination == expected && route.device == device) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The addresses that a route of the node leads to, and to nothing else.
pub(crate) fn routed(node: &mut Netlink) -> Result<HashSet<IpAddr>, Error> {
    let routes = routes_to_hosts(node)?.into_iter();
    Ok(routes.map(|route| route.destination.addr()).collect())
}

/// The node's routes that lead to one address each.
pub(crate) fn routes_to_hosts(node: &mut Netlink) -> Result<Vec<Route>, Error> {
    let mut routes = node.routes(Family::V4, Some(Route::MAIN))?;
    routes.extend(node.routes(Family::V6, Some(Route::MAIN))?);
    routes.retain(|route| route.destination.prefix_len() == route.destination.max_prefix_len());
    Ok(routes)
}

fn to_gateway(gateway: IpAddr, device: u32) -> Route {
    Route { device: Some(device), scope_link: true, ..Route::to(gateway.into()) }
}

fn by_gateway(destination: IpNet, device: u32) -> Route {
    Route {
        gateway: Some(gateway(destination.addr())),
        device: Some(device),
        // The kernel would refuse a gateway that no route of its family covers.
        onlink: true,
        ..Route::to(destination)
    }
}

/// An IPv6 address, unlike one of IPv4, gets its local route some time after it was added.
fn takes_packets_for(pod: &mut Netlink, addresses: &[IpAddr]) -> Result<bool, Error> {
    for address in addresses.iter().filter(|address| address.is_ipv6()) {
        let lookup = pod.route_to(*address)?;
        if !lookup.is_some_and(|lookup| lookup.local) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The interface of that name, or an error like the kernel's.
fn existing(netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
    netlink.link(name)?.ok_or_else(|| Error::Invalid {
        operation: format!("set up {name:?}"),
        problem: "it has vanished",
    })
}

/// 64-bit FNV-1a: the same in every build, as names made by one have to be found by the next.
/// Container ids are random, so 48 of its bits keep the pods of a node apart.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Locally administered, and not a group address.
const fn local(mut mac: Mac) -> Mac {
    mac[0] = mac[0] & 0xfe | 0x02;
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(container_id: &str, interface: &str) -> Wire {
        Wire::of(&Attachment { container_id: container_id.into(), interface: interface.into() })
    }

    #[test]
    fn names_are_stable_distinct_and_fit() {
        let name = wire("cafe", "eth0").host_interface;
        assert_eq!(name, "fwaf20f15025d2");
        assert!(Wire::is_name(&name));
        for other in ["fwaf20f15025d", "fwaf20f15025d2a", "fwAF20f15025d2", "gwaf20f15025d2", "fw"]
        {
            assert!(!Wire::is_name(other), "{other}");
        }
        let names = [wire("cafe", "eth1"), wire("caff", "eth0"), wire("cafee", "th0")];
        for other in names {
            assert_ne!(other.host_interface, name);
            assert!(other.host_interface.len() <= 15);
        }
    }

    #[test]
    fn mac_addresses_are_local_unicast_and_differ() {
        for n in 0..100 {
            let wire = wire(&format!("c{n}"), "eth0");
            assert_ne!(wire.host_mac, wire.pod_mac);
            assert_eq!([wire.host_mac, wire.pod_mac].map(|mac| mac[0] & 3), [2, 2]);
        }
    }
}
