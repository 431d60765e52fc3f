//! The machine room: a namespace for the router, one for each node, one for the outside client,
//! and the cables between them.

use anyhow::{Context, Result};
use fairway_netlink::offload::{self, Offload};
use fairway_netlink::{AddressOptions, NetNs, Netlink, Route, Veth, sysctl};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::names::Names;
use crate::topology::{Addresses, Backend, NodePlan, Subnet, Topology};
use crate::xdp_pass::{self, Attachment};

/// A node's and the client's interface to the underlay; a pod's is called the same.
pub(crate) const UPLINK: &str = "eth0";

/// Makes the whole network of `topology`. What it made when it fails is left to the sweep.
pub(crate) fn build(names: &Names, topology: &Topology, backend: Backend) -> Result<()> {
    let router = Machine::create(&names.underlay_netns())?;
    router.netns.run(|| {
        sysctl::set("net/ipv4/ip_forward", "1")?;
        sysctl::set("net/ipv6/conf/all/forwarding", "1")
    })??;
    let mut router_links = router.netlink()?;
    for (number, subnet) in (0..).zip(topology.subnets.iter().chain([&topology.client_subnet])) {
        let bridge = router_links.create_bridge(&subnet.bridge)?;
        // Otherwise it changes as machines come and go, and the others do not hear of it.
        router_links.set_mac(bridge.index, [0x02, 0, 0, 0, 0xf0, number])?;
        for address in subnet.router.nets() {
            router_links.add_address(bridge.index, address, NO_DAD)?;
        }
        router_links.set_up(bridge.index)?;
    }

    let client = Machine::create(&names.client_netns())?;
    client.plug_in(&router, &topology.client_subnet, "client0", &topology.client)?;
    topology.nodes.iter().try_for_each(|node| add_node(names, topology, backend, node))
}

/// Makes a node of the network's, and connects it.
pub(crate) fn add_node(
    names: &Names,
    topology: &Topology,
    backend: Backend,
    node: &NodePlan,
) -> Result<()> {
    let router = Machine::open(&names.underlay_netns())?;
    let machine = Machine::create(&names.node_netns(&node.name))?;
    let subnet = &topology.subnets[node.subnet];
    machine.plug_in(&router, subnet, &node.name, &node.addresses)?;
    if backend == Backend::HostGw && topology.subnets.len() > 1 {
        for pods in &node.pod_cidrs {
            let gateway = node.addresses.beside(pods);
            router.netlink()?.replace_route(&Route { gateway, ..Route::to(*pods) })?;
        }
    }
    Ok(())
}

/// Takes a node out of the network, with all that its kernel has.
pub(crate) fn remove_node(names: &Names, node: &NodePlan) -> Result<()> {
    let router = Machine::open(&names.underlay_netns())?;
    let mut links = router.netlink()?;
    if let Some(port) = links.link(&node.name)? {
        links.delete_link(port.index)?;
    }
    Ok(NetNs::delete(&names.node_netns(&node.name))?)
}

/// Makes the underlay fit for XDP on the uplinks: the router's ends get a program of their own, and
/// every sender finishes its checksums, which XDP does not see as unfinished. The result has to
/// live as long as the lab.
pub(crate) fn prepare_for_xdp(names: &Names, topology: &Topology) -> Result<Vec<Attachment>> {
    let mut attachments = Vec::new();
    let router = NetNs::open(NetNs::path(&names.underlay_netns()))?;
    let mut links = Netlink::open_in(&router)?;
    for link in links.links()?.iter().filter(|link| link.kind.as_deref() == Some("veth")) {
        let attached = router.run(|| {
            offload::set(&link.name, Offload::TxChecksum, false)?;
            xdp_pass::attach(link.index)
        })?;
        attachments.push(attached.with_context(|| format!("link {:?}", link.name))?);
    }
    let nodes = topology.nodes.iter().map(|node| names.node_netns(&node.name));
    for machine in nodes.chain([names.client_netns()]) {
        finish_checksums(&machine)?;
    }
    Ok(attachments)
}

/// Makes a machine or pod finish the checksums of what it sends.
pub(crate) fn finish_checksums(netns: &str) -> Result<()> {
    let sender = NetNs::open(NetNs::path(netns))?;
    sender.run(|| offload::set(UPLINK, Offload::TxChecksum, false))??;
    Ok(())
}

/// IPv6 addresses that are usable at once.
const NO_DAD: AddressOptions = AddressOptions { nodad: true, noprefixroute: false };

/// A namespace that stands for a machine.
struct Machine {
    name: String,
    netns: NetNs,
}

impl Machine {
    fn create(name: &str) -> Result<Self> {
        let machine = Self { name: name.to_owned(), netns: NetNs::create(name)? };
        machine.netns.run(|| {
            // Link-local addresses too are usable at once.
            sysctl::set("net/ipv6/conf/all/accept_dad", "0")?;
            sysctl::set("net/ipv6/conf/default/accept_dad", "0")
        })??;
        let mut links = machine.netlink()?;
        let loopback = links.link("lo")?.context("find link \"lo\"")?;
        links.set_up(loopback.index)?;
        Ok(machine)
    }

    fn open(name: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), netns: NetNs::open(NetNs::path(name))? })
    }

    fn netlink(&self) -> Result<Netlink> {
        Netlink::open_in(&self.netns).with_context(|| format!("in {}", self.name))
    }

    /// Connects [`UPLINK`] to a bridge of the router's, whose end is called `port`.
    fn plug_in(&self, router: &Self, subnet: &Subnet, port: &str, own: &Addresses) -> Result<()> {
        let mut links = self.netlink()?;
        let uplink = links.create_veth(&Veth {
            name: UPLINK,
            peer_name: port,
            peer_netns: Some(&router.netns),
            ..Veth::default()
        })?;
        let mut router_links = router.netlink()?;
        let bridge = router_links
            .link(&subnet.bridge)?
            .with_context(|| format!("find bridge {:?}", subnet.bridge))?;
        let port = router_links.link(port)?.with_context(|| format!("find link {port:?}"))?;
        router_links.set_master(port.index, Some(bridge.index))?;
        router_links.set_up(port.index)?;
        for address in own.nets() {
            links.add_address(uplink.index, address, NO_DAD)?;
        }
        links.set_up(uplink.index)?;
        for default in [Ipv4Net::default().into(), Ipv6Net::default().into()] {
            if let gateway @ Some(_) = subnet.router.beside(&default) {
                links.replace_route(&Route { gateway, ..Route::to(default) })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{may_run, sweep, unique_name};

    #[test]
    fn machines_reach_each_other_through_the_router_in_both_families() {
        if !may_run("underlay") {
            return;
        }
        let lab = unique_name("underlay");
        let names = Names::of(&lab).unwrap();
        let _swept = sweep::OnDrop(&names);
        let range = |text: &str| vec![text.parse().unwrap()];
        let topology =
            Topology::plan(2, 2, &range("10.244.0.0/16"), &range("10.96.0.0/16")).unwrap();
        build(&names, &topology, Backend::HostGw).unwrap();

        let server = NetNs::open(NetNs::path(&names.node_netns("node2"))).unwrap();
        for address in topology.nodes[1].addresses.ips() {
            let listener =
                server.run(|| std::net::TcpListener::bind((address, 0))).unwrap().unwrap();
            let target = listener.local_addr().unwrap();
            for from in [names.client_netns(), names.node_netns("node1")] {
                let netns = NetNs::open(NetNs::path(&from)).unwrap();
                let limit = std::time::Duration::from_secs(5);
                netns
                    .run(|| std::net::TcpStream::connect_timeout(&target, limit))
                    .unwrap()
                    .unwrap_or_else(|error| panic!("{from} to {target}: {error}"));
            }
        }
    }
}
