//! Ports of the node that lead to one of its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairway_abi::{Endpoint, FrontendKey, scope};
use fairway_model::Protocol;
use zerocopy::network_endian::U16;

use crate::{Choice, EndpointList, Family, ListName};

/// A port of the node and the pod behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// What a person calls the pod.
    pub pod: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The port in the pod.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port on the node.
    pub port: u16,
    /// The one address of the node that has the port; unspecified: all of that family; `None`: all.
    pub host_ip: Option<IpAddr>,
}

/// The lists of one family for the host ports of a node with these addresses: each has one endpoint.
///
/// A port on all addresses is open on the loopback address, too, but there for the node's own
/// processes alone. One on an address that the node does not have (now) is open nowhere.
pub fn host_ports<A: Family>(ports: &[HostPort], node: &[IpAddr]) -> Vec<EndpointList<A>> {
    let mut lists = Vec::new();
    for port in ports {
        let Some(address) = port.addresses.iter().find_map(|ip| A::of(*ip)) else { continue };
        let frontends = frontends::<A>(port, node);
        if frontends.is_empty() {
            continue;
        }
        let name = ListName::HostPort {
            pod: port.pod.clone(),
            port: port.port,
            protocol: port.protocol,
            address: port.host_ip,
        };
        let endpoint = Endpoint { address, port: U16::new(port.container_port), reserved: [0; 2] };
        lists.push(EndpointList {
            name,
            frontends,
            endpoints: BTreeSet::from([endpoint]),
            weights: BTreeMap::new(),
            lingering: BTreeSet::new(),
            choice: Choice::default(),
            growth: 0,
            source_ranges: BTreeSet::new(),
        });
    }
    lists
}

/// Takes from `lists` the frontends that somebody `else` has, and the lists that nothing is left of;
/// answers what a person should know of it.
pub fn yield_to<'a, A: Family>(
    lists: &mut Vec<EndpointList<A>>,
    other: impl Fn(&FrontendKey<A>) -> Option<&'a ListName>,
) -> BTreeMap<ListName, ListName> {
    let mut yielded = BTreeMap::new();
    for EndpointList { name, frontends, .. } in lists.iter_mut() {
        frontends.retain(|key, _| match other(key) {
            Some(owner) => {
                yielded.insert(name.clone(), owner.clone());
                false
            }
            None => true,
        });
    }
    lists.retain(|list| !list.frontends.is_empty());
    yielded
}

fn frontends<A: Family>(port: &HostPort, node: &[IpAddr]) -> BTreeMap<FrontendKey<A>, u32> {
    let key = |address, scope| FrontendKey {
        address,
        port: U16::new(port.port),
        protocol: port.protocol.number(),
        scope,
    };
    let wanted = |address: A| match port.host_ip {
        None => true,
        Some(ip) => A::of(ip).is_some_and(|ip| ip == A::UNSPECIFIED || ip == address),
    };
    let addresses = node.iter().filter_map(|ip| A::of(*ip)).filter(|address| wanted(*address));
    let scopes = [scope::INTERNAL, scope::EXTERNAL];
    let mut all: BTreeMap<FrontendKey<A>, u32> =
        addresses.flat_map(|address| scopes.map(|scope| (key(address, scope), 0))).collect();
    if wanted(A::LOOPBACK) {
        all.insert(key(A::LOOPBACK, scope::LOOPBACK), 0);
    }
    all
}

#[cfg(test)]
mod tests {
    use fairway_abi::{V4, V6};
    use fairway_model::ObjectName;

    use super::*;

    fn port(host_ip: &str) -> HostPort {
        HostPort {
            pod: "shop/web".to_owned(),
            addresses: vec!["10.244.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            container_port: 80,
            protocol: Protocol::Udp,
            port: 8080,
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        }
    }

    /// `address/scope` of every frontend.
    fn shown<A: Family>(port: HostPort) -> Vec<String> {
        let node = ["192.0.2.1", "192.0.2.9", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let lists = host_ports::<A>(&[port], &node);
        for list in &lists {
            let to: Vec<_> = list.endpoints.iter().map(|e| (e.address.to_ip(), e.port)).collect();
            let address = if A::BITS == 32 { "10.244.0.2" } else { "fd00::2" };
            assert_eq!(to, [(address.parse().unwrap(), U16::new(80))]);
        }
        let keys = lists.iter().flat_map(|list| list.frontends.keys());
        keys.map(|key| {
            let scope = ["int", "ext", "lo"][usize::from(key.scope)];
            assert_eq!((key.port.get(), key.protocol), (8080, 17));
            format!("{}/{scope}", key.address.to_ip())
        })
        .collect()
    }

    #[test]
    fn a_port_without_an_address_is_open_on_all() {
        assert_eq!(
            shown::<V4>(port("")),
            ["127.0.0.1/lo", "192.0.2.1/int", "192.0.2.1/ext", "192.0.2.9/int", "192.0.2.9/ext"]
        );
        assert_eq!(shown::<V6>(port("")), ["::1/lo", "2001:db8::1/int", "2001:db8::1/ext"]);
    }

    #[test]
    fn an_address_limits_a_port_to_it_and_an_unspecified_one_to_its_family() {
        assert_eq!(shown::<V4>(port("192.0.2.9")), ["192.0.2.9/int", "192.0.2.9/ext"]);
        assert!(shown::<V6>(port("192.0.2.9")).is_empty());
        assert!(shown::<V4>(port("::")).is_empty());
        assert_eq!(shown::<V6>(port("::")).len(), 3);
        assert_eq!(shown::<V4>(port("127.0.0.1")), ["127.0.0.1/lo"]);
        assert!(shown::<V4>(port("203.0.113.1")).is_empty(), "not an address of this node");
    }

    #[test]
    fn a_pod_without_an_address_of_the_family_has_no_port_in_it() {
        let v4 = HostPort { addresses: vec!["10.244.0.2".parse().unwrap()], ..port("") };
        assert!(host_ports::<V6>(&[v4], &["2001:db8::1".parse().unwrap()]).is_empty());
    }

    #[test]
    fn a_services_port_comes_first() {
        let node = ["192.0.2.1", "192.0.2.9"].map(|ip| ip.parse().unwrap());
        let mut lists = host_ports::<V4>(&[port("")], &node);
        let service = ListName::Service {
            service: ObjectName::new("shop", "dns"),
            port: "dns".to_owned(),
            protocol: Protocol::Udp,
            local: false,
        };
        let taken = yield_to(&mut lists, |key| (key.address[3] == 9).then_some(&service));
        assert_eq!(taken.values().collect::<Vec<_>>(), [&service]);
        let left: Vec<_> = lists[0].frontends.keys().map(|key| key.address[3]).collect();
        assert_eq!(left, [1, 1, 1], "loopback and both scopes of the other address");
        yield_to(&mut lists, |_| Some(&service));
        assert!(lists.is_empty());
    }
}
