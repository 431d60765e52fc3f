//! Routes: the kernel's table of prefixes for packets that the programs forward, and the host's own
//! routes to peers' pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use fairway_abi::{Route, V6};
use fairway_compile::{Family, HostRoute, Peers, Routes, Via};
use fairway_netlink::{Netlink, Route as KernelRoute, RouteKind};
use ipnet::IpNet;

use crate::dataplane::{Dataplane, PrefixTable, Table};

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

/// The peers of one family that may bring packets of clients from outside.
pub(crate) struct PeerTable<A: Family>(Table<V6, A>);

impl<A: Family> PeerTable<A> {
    /// Adopts what is in the kernel. `suffix` is `4` or `6`.
    pub(crate) fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        Ok(Self(dataplane.table(&format!("peers{suffix}"))?))
    }

    /// Brings the kernel to `want`, additions first.
    pub(crate) fn reconcile(&mut self, want: &Peers<A>) -> Result<()> {
        let have: BTreeMap<V6, A> = self.0.entries()?.into_iter().collect();
        for (end, address) in want.iter().filter(|(end, address)| have.get(*end) != Some(*address))
        {
            self.0.put(end, address)?;
        }
        for end in have.keys().filter(|end| !want.contains_key(*end)) {
            self.0.remove(end)?;
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
        let old = have.remove(&route.destination);
        let same = old.as_ref().is_some_and(|old| {
            (old.kind, old.gateway, old.source) == (kernel.kind, kernel.gateway, kernel.source)
                && (old.device == kernel.device || kernel.kind == RouteKind::Unreachable)
        });
        if same {
            continue;
        }
        // Only what is ours is replaced.
        let made =
            if old.is_some() { netlink.replace_route(&kernel) } else { netlink.add_route(&kernel) };
        let Err(error) = made else { continue };
        let reason = if error.is_exists() {
            let theirs = in_place_of(netlink, &kernel)?;
            format!("{theirs} is not Fairway's, and is left alone; remove it if nobody needs it")
        } else {
            format!("{:#}; is that node on this one's link?", anyhow::Error::new(error))
        };
        refused.push(format!("no route to the pods of {}: {reason}", route.destination));
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

/// The route that keeps this one out, as a person would write it.
fn in_place_of(netlink: &mut Netlink, wanted: &KernelRoute) -> Result<String> {
    let family = match wanted.destination {
        IpNet::V4(_) => fairway_netlink::Family::V4,
        IpNet::V6(_) => fairway_netlink::Family::V6,
    };
    let mut routes = netlink.routes(family, Some(wanted.table))?.into_iter();
    let same = |route: &KernelRoute| {
        route.destination == wanted.destination
            && route.metric.unwrap_or(0) == wanted.metric.unwrap_or(0)
    };
    let mut text = format!("the route {}", wanted.destination);
    if let Some(found) = routes.find(same) {
        if let Some(gateway) = found.gateway {
            text += &format!(" via {gateway}");
        }
        let device = found.device.map(|index| netlink.link_by_index(index)).transpose()?;
        if let Some(device) = device.flatten() {
            text += &format!(" dev {}", device.name);
        }
        text += &format!(" proto {}", found.protocol);
    }
    Ok(text)
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

#[cfg(test)]
mod tests {
    use fairway_netlink::{AddressOptions, Veth};

    use super::*;
    use crate::sandbox::sandbox;

    const OURS: &str = "10.244.1.0/24";
    const THEIRS: [&str; 2] = ["10.244.2.0/24", "fd00:10:244:2::/64"];

    fn unreachable(destination: &str) -> HostRoute {
        HostRoute { destination: destination.parse().expect("a range"), via: Via::Unreachable }
    }

    fn table(netlink: &mut Netlink) -> Vec<(String, u8)> {
        let mut routes = Vec::new();
        for family in [fairway_netlink::Family::V4, fairway_netlink::Family::V6] {
            routes.extend(netlink.routes(family, Some(KernelRoute::MAIN)).expect("routes"));
        }
        routes.retain(|route| route.destination.prefix_len() > 0);
        let shown = routes.into_iter().map(|r| (r.destination.to_string(), r.protocol));
        shown.filter(|(_, protocol)| *protocol != KERNEL).collect()
    }

    /// Of routes that come with an address.
    const KERNEL: u8 = 2;

    #[test]
    fn a_route_that_somebody_else_made_is_left_alone_and_named() {
        sandbox(|_| {
            let mut netlink = Netlink::open().expect("netlink");
            let pair = Veth { name: "eth0", peer_name: "peer0", ..Veth::default() };
            let device = netlink.create_veth(&pair).expect("a device").index;
            netlink.set_up(device).expect("up");
            let own = "192.0.2.1/24".parse().expect("an address");
            netlink.add_address(device, own, AddressOptions::default()).expect("an address");
            for theirs in THEIRS {
                let mut route = KernelRoute::to(theirs.parse().expect("a range"));
                route.device = Some(device);
                if route.destination.addr().is_ipv4() {
                    route.gateway = Some("192.0.2.7".parse().expect("an address"));
                }
                netlink.add_route(&route).expect("a route");
            }
            let want: Vec<_> = [OURS].into_iter().chain(THEIRS).map(unreachable).collect();
            for _ in 0..2 {
                let refused = reconcile_host(&mut netlink, &want, 0, device).expect("reconciled");
                assert_eq!(refused.len(), 2, "{refused:?}");
                for (refusal, theirs) in refused.iter().zip(THEIRS) {
                    for part in [theirs, "dev eth0", "proto 4"] {
                        assert!(refusal.contains(part), "{part}: {refusal}");
                    }
                }
                assert!(refused[0].contains("via 192.0.2.7"), "{refused:?}");
                let expected = [
                    (OURS.to_owned(), PROTOCOL),
                    (THEIRS[0].to_owned(), KernelRoute::STATIC),
                    (THEIRS[1].to_owned(), KernelRoute::STATIC),
                ];
                assert_eq!(table(&mut netlink), expected);
            }
            // It goes, and ours takes its place; what was ours before is replaced as ever.
            let [v4, _] = THEIRS.map(|theirs| KernelRoute::to(theirs.parse().expect("a range")));
            netlink.delete_route(&v4).expect("deleted");
            let refused = reconcile_host(&mut netlink, &want, 0, device).expect("reconciled");
            assert_eq!(refused.len(), 1, "{refused:?}");
            assert_eq!(table(&mut netlink)[1], (THEIRS[0].to_owned(), PROTOCOL));
            assert_eq!(remove_host(&mut netlink).expect("removed"), 2);
            let left = (THEIRS[1].to_owned(), KernelRoute::STATIC);
            assert_eq!(table(&mut netlink), [left]);
        });
    }
}
