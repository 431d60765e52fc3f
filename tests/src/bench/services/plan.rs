//! The Services of a run, and what the rules for them have in common.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

/// The port of every Service.
pub(super) const PORT: u16 = 80;
/// The port of every endpoint.
pub(super) const TARGET_PORT: u16 = 8080;
/// The bit that kube-proxy marks packets with whose source it will translate.
pub(super) const MASQUERADE_MARK: &str = "0x4000";

/// A number of Services with the same two endpoints.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// How many.
    pub services: u32,
    /// Where ClusterIPs come from.
    pub service_range: Ipv4Net,
    /// Where the node's pods get their addresses from.
    pub pod_range: Ipv4Net,
    /// The servers.
    pub endpoints: [Ipv4Addr; 2],
}

/// One Service of a plan.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// Its name.
    pub name: String,
    /// Its ClusterIP.
    pub address: Ipv4Addr,
    /// What tells its chains from others': sixteen characters, as kube-proxy's hashes have.
    pub hash: String,
    /// The same of each of its endpoints, with its address.
    pub endpoints: [(String, Ipv4Addr); 2],
}

impl Plan {
    /// All Services in the order of the rules.
    pub(super) fn services(&self) -> impl Iterator<Item = Service> {
        (0..self.services).map(|number| Service {
            name: format!("service-{number}"),
            address: self.address(number),
            hash: hash(number, 0),
            endpoints: [(hash(number, 1), self.endpoints[0]), (hash(number, 2), self.endpoints[1])],
        })
    }

    /// Where the last Service is asked: the one that a walk through the rules finds last.
    pub(super) fn last(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address(self.services.saturating_sub(1)), PORT)
    }

    /// The first addresses of a range belong to the cluster's own Services.
    fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.service_range.network().to_bits() + 11 + number)
    }
}

/// A number that looks like a hash: a bijection of 64-bit numbers (SplitMix64's), in hexadecimal.
fn hash(service: u32, part: u8) -> String {
    let mut bits = (u64::from(service) << 8 | u64::from(part)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)] {
        bits = (bits ^ (bits >> shift)).wrapping_mul(factor);
    }
    format!("{:016X}", bits ^ (bits >> 31))
}

#[cfg(test)]
pub(super) fn example(services: u32) -> Plan {
    Plan {
        services,
        service_range: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
        pod_range: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 24),
        endpoints: [Ipv4Addr::new(10, 244, 0, 3), Ipv4Addr::new(10, 244, 0, 4)],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn services_differ_in_address_and_hash_and_the_last_is_the_last() {
        let plan = example(1000);
        let services: Vec<Service> = plan.services().collect();
        let addresses: BTreeSet<_> = services.iter().map(|service| service.address).collect();
        assert_eq!(addresses.len(), 1000);
        assert!(addresses.iter().all(|address| plan.service_range.contains(address)));
        let hashes: BTreeSet<_> = services
            .iter()
            .flat_map(|service| {
                let endpoints = service.endpoints.iter().map(|(hash, _)| hash.clone());
                endpoints.chain([service.hash.clone()])
            })
            .collect();
        assert_eq!(hashes.len(), 3000);
        assert!(hashes.iter().all(|hash| hash.len() == 16));
        assert_eq!(plan.last(), SocketAddrV4::new(services[999].address, 80));
    }
}
