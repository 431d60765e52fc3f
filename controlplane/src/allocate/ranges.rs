//! The ranges that numbers come from, and the order in which free ones are looked for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::kubernetes::IpFamily;

/// The numbers there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges {
    service_cidrs: Vec<IpNet>,
    /// Beside them: a Service may ask for an address of these, and is given none unasked.
    also: Vec<IpNet>,
    pub(super) node_ports: RangeInclusive<u16>,
}

impl Ranges {
    /// At most one range a family and at least one in all, each with room for a few Services.
    pub(crate) fn new(
        service_cidrs: Vec<IpNet>,
        node_ports: RangeInclusive<u16>,
    ) -> Result<Self, String> {
        let service_cidrs: Vec<_> = service_cidrs.iter().map(IpNet::trunc).collect();
        if service_cidrs.is_empty() {
            return Err("no service range is given".into());
        }
        check(&service_cidrs)?;
        if node_ports.is_empty() || *node_ports.start() == 0 {
            return Err(format!(
                "node port range {}-{} is empty or begins with 0",
                node_ports.start(),
                node_ports.end()
            ));
        }
        Ok(Self { service_cidrs, also: Vec::new(), node_ports })
    }

    /// Those of a cluster whose API server gives numbers out; perhaps none are known.
    pub(crate) fn told(service_cidrs: Vec<IpNet>) -> Result<Self, String> {
        let service_cidrs: Vec<_> = service_cidrs.iter().map(IpNet::trunc).collect();
        check(&service_cidrs)?;
        Ok(Self { service_cidrs, also: Vec::new(), node_ports: 1..=u16::MAX })
    }

    /// Replaces the ranges that addresses are given out from.
    pub(super) fn follow(&mut self, service_cidrs: &[IpNet]) {
        self.service_cidrs = service_cidrs.iter().map(IpNet::trunc).collect();
    }

    /// The families there are, in order.
    pub(crate) fn families(&self) -> Vec<IpFamily> {
        self.service_cidrs.iter().map(family).collect()
    }
    /// The ranges that addresses are given out from.
    pub(crate) fn service_cidrs(&self) -> &[IpNet] {
        &self.service_cidrs
    }

    /// Sets the other ranges that a Service may ask for an address of.
    pub(super) fn accept(&mut self, also: Vec<IpNet>) {
        self.also = also;
    }

    /// The range of a family that addresses are given out from.
    pub(super) fn of(&self, wanted: IpFamily) -> Option<&IpNet> {
        self.service_cidrs.iter().find(|cidr| family(cidr) == wanted)
    }

    /// The range that an address is in.
    pub(super) fn around(&self, address: IpAddr) -> Option<&IpNet> {
        self.all().find(|cidr| cidr.contains(&address))
    }

    /// Whether a Service may have the address.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.all().any(|cidr| usable(cidr, address))
    }

    /// The ranges of a family, as a person would list them.
    pub(super) fn list(&self, wanted: IpFamily) -> String {
        let cidrs = self.all().filter(|cidr| family(cidr) == wanted);
        cidrs.map(IpNet::to_string).collect::<Vec<_>>().join(", ")
    }

    fn all(&self) -> impl Iterator<Item = &IpNet> {
        self.service_cidrs.iter().chain(&self.also)
    }
}

/// At most one a family, each with room for a few Services.
fn check(service_cidrs: &[IpNet]) -> Result<(), String> {
    let families: BTreeSet<_> = service_cidrs.iter().map(family).collect();
    if families.len() != service_cidrs.len() {
        return Err("two service ranges of one family are given".into());
    }
    let small = |cidr: &&IpNet| cidr.max_prefix_len() - cidr.prefix_len() < 3;
    match service_cidrs.iter().find(small) {
        Some(small) => {
            Err(format!("service range {small} is too small; 8 addresses are the least"))
        }
        None => Ok(()),
    }
}

pub(super) fn family(cidr: &IpNet) -> IpFamily {
    IpFamily::of(cidr.addr())
}

/// All addresses of the range, capped where nobody could use them up.
pub(super) fn size(cidr: &IpNet) -> u128 {
    1 << (cidr.max_prefix_len() - cidr.prefix_len()).min(64)
}

/// The low part of a range, used last, so that numbers people ask for are mostly still free.
pub(super) fn band(size: u128, most: u128) -> u128 {
    (size / 16).clamp(1, most).min(size - 1)
}

/// Every offset below `size` once: from a place that `seed` decides upwards and around within the
/// part above `band`, then the band from its end.
pub(super) fn probe(seed: &str, size: u128, band: u128) -> impl Iterator<Item = u128> + use<> {
    let upper = size - band;
    let start = u128::from(hash(seed)) % upper;
    let around = (0..upper).map(move |step| band + (start + step) % upper);
    around.chain((0..band).rev())
}

/// FNV-1a: unlike the standard library's hashers the same in every version and on every machine,
/// which addresses that outlive both depend on.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

pub(crate) fn nth(cidr: &IpNet, offset: u128) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(network) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            Ipv4Addr::from_bits(network.to_bits().wrapping_add(offset)).into()
        }
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits().wrapping_add(offset)).into(),
    }
}

pub(crate) fn usable(cidr: &IpNet, address: IpAddr) -> bool {
    let edge = address == cidr.network() || (address.is_ipv4() && address == cidr.broadcast());
    cidr.contains(&address) && !edge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let of = |cidrs: &[&str], ports| {
            let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
            Ranges::new(cidrs, ports)
        };
        assert!(of(&["10.96.0.0/12", "fd00::/108"], 30000..=32767).is_ok());
        assert!(of(&[], 30000..=32767).is_err());
        assert!(of(&["10.96.0.0/12", "10.0.0.0/16"], 30000..=32767).is_err());
        assert!(of(&["10.96.0.0/30"], 30000..=32767).is_err());
        assert!(of(&["10.96.0.0/12"], 0..=1).is_err());
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = 2..=1;
        assert!(of(&["10.96.0.0/12"], reversed).is_err());
    }
}
