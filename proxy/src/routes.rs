//! Routes: the kernel's table of prefixes for packets that the programs forward, and the host's own
//! routes to peers' pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use fairway_abi::Route;
use fairway_compile::{Family, HostRoute, Routes, Via};
use fairway_netlink::{Netlink, Route as KernelRoute, RouteKind};
use ipnet::IpNet;

use crate::dataplane::{Dataplane, PrefixTable};

/// Marks routes of ours among those of others (`ip route show proto 0xfa`); the number is not
/// assigned in rtnetlink's list of routing protocols.
const PROTOCOL: u8 = 0xfa;

/// The routes of one family that the programs follow.
pub(crate) struct RouteTable<A: Family> {
    table: PrefixTable<A, Route<A>>,
    have: BTreeMap<(u8, A), Route<A>>,
}

impl<A: Family> RouteTable<A> {
    /// Adopts what is in the kernel. `suffix` is `4` or `6`.
    pub(crate) fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        let table: PrefixTable<A, Route<A>> = dataplane.prefixes(&format!("routes{suffix}"))?;
        let have = table.entries()?.into_iter().collect();
        Ok(Self { table, have })
    }

    /// Brings the kernel to `want`, additions first.
    pub(crate) fn reconcile(&mut self, want: &Routes<A>) -> Result<()> {
        for (prefix, route) in want {
            if self.have.get(prefix) != Some(route) {
                self.table.put(*prefix, route)?;
                self.have.insert(*prefix, *route);
            }
        }
        let gone: Vec<_> = self.have.keys().filter(|p| !want.contains_key(*p)).copied().collect();
        for prefix in gone {
            self.table.remove(prefix)?;
            self.have.remove(&prefix);
        }
        Ok(())
    }
}

/// Brings the host's routes to pods to `want`; answers what the kernel refused, which concerns
/// those ranges alone. Routes of others are never touched.
pub(crate) fn reconcile_host(
    netlink: &mut Netlink,
    want: &[HostRoute],
    overlay: u32,
    uplink: u32,
) -> Result<Vec<String>> {
    let mut have = of_ours(netlink)?;
    let mut refused = Vec::new();
    for route in want {
        let kernel = to_kernel(route, overlay, uplink);
        let same = have.remove(&route.destination).is_some_and(|old| {
            (old.kind, old.gateway, old.source) == (kernel.kind, kernel.gateway, kernel.source)
                && (old.device == kernel.device || kernel.kind == RouteKind::Unreachable)
        });
        if same {
            continue;
        }
        if let Err(error) = netlink.replace_route(&kernel) {
            let error = anyhow::Error::new(error);
            refused.push(format!("no route to the pods of {}: {error:#}", route.destination));
        }
    }
    for (_, stale) in have {
        netlink.delete_route(&stale)?;
    }
    Ok(refused)
}

/// Removes the host's routes to pods of other nodes; answers how many there were.
pub(crate) fn remove_host(netlink: &mut Netlink) -> Result<usize> {
    let routes = of_ours(netlink)?;
    for route in routes.values() {
        netlink.delete_route(route)?;
    }
    Ok(routes.len())
}

fn of_ours(netlink: &mut Netlink) -> Result<BTreeMap<IpNet, KernelRoute>> {
    let mut ours = BTreeMap::new();
    for family in [fairway_netlink::Family::V4, fairway_netlink::Family::V6] {
        let routes = netlink.routes(family, Some(KernelRoute::MAIN))?.into_iter();
        let routes = routes.filter(|route| route.protocol == PROTOCOL);
        ours.extend(routes.map(|route| (route.destination, route)));
    }
    Ok(ours)
}

fn to_kernel(route: &HostRoute, overlay: u32, uplink: u32) -> KernelRoute {
    let mut kernel = KernelRoute::to(route.destination);
    kernel.protocol = PROTOCOL;
    match route.via {
        Via::Overlay { source } => {
            kernel.device = Some(overlay);
            kernel.scope_link = true;
            kernel.source = Some(source);
        }
        Via::Gateway { gateway, source } => {
            kernel.gateway = Some(gateway);
            kernel.device = Some(uplink);
            kernel.source = Some(source);
        }
        Via::Unreachable => kernel.kind = RouteKind::Unreachable,
    }
    if kernel.destination.addr().is_ipv6() {
        // What the kernel would fill in, so that the route read back is the route written.
        kernel.metric = Some(1024);
    }
    kernel
}

/// A host address as a prefix of its own.
pub(crate) fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
