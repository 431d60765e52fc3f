//! The objects that say which addresses Services of type LoadBalancer get and who announces them, as users
//! know them from MetalLB.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::policy::LabelSelector;
use super::{IpFamily, Labels};

/// A metallb.io IPAddressPool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IPAddressPool {
    /// Its labels.
    pub metadata: Labelled,
    /// What its owner wants.
    pub spec: IPAddressPoolSpec,
}

/// What matters here of such an object's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Labelled {
    /// Free labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Of an [`IPAddressPool`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IPAddressPoolSpec {
    /// The addresses, of either family.
    pub addresses: Vec<AddressRange>,
    /// Whether Services that do not name the pool get addresses of it; true unless said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_assign: Option<bool>,
    /// Leaves out IPv4 addresses that end with 0 or 255, which some equipment does not take.
    #[serde(rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// The Services that it is for; all unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,
}

/// Of an [`IPAddressPoolSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAllocation {
    /// Pools with a lower number come first; 0 is none, and comes last.
    pub priority: u32,
    /// Those of these namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// And those of namespaces with such labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespace_selectors: Vec<LabelSelector>,
    /// Of all these, those with such labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_selectors: Vec<LabelSelector>,
}

/// A metallb.io L2Advertisement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct L2Advertisement {
    /// What its owner wants.
    pub spec: L2AdvertisementSpec,
}

/// Of an [`L2Advertisement`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct L2AdvertisementSpec {
    /// The pools that it is about, by name; all if neither these nor selectors are given.
    #[serde(rename = "ipAddressPools", skip_serializing_if = "Vec::is_empty")]
    pub ip_address_pools: Vec<String>,
    /// And those with such labels.
    #[serde(rename = "ipAddressPoolSelectors", skip_serializing_if = "Vec::is_empty")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,
    /// The nodes that may announce; all unless said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_selectors: Vec<LabelSelector>,
    /// The devices that they announce on; the node's uplink unless said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

/// The addresses from a first to a last one, both of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// Whether an address is among them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.family() == IpFamily::of(address) && (self.first..=self.last).contains(&address)
    }

    /// Whether some address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// Of all of them.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.first)
    }

    /// How many there are, capped where nobody could use them up.
    pub fn size(&self) -> u64 {
        let distance = bits(self.last) - bits(self.first);
        u64::try_from(distance).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// All of them, upwards.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let family = self.family();
        (bits(self.first)..=bits(self.last)).map(move |bits| match family {
            IpFamily::V4 => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
            IpFamily::V6 => Ipv6Addr::from_bits(bits).into(),
        })
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// `192.0.2.0/24`, `192.0.2.10-192.0.2.20`, and the same of IPv6.
impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is neither a range such as 192.0.2.0/28 nor FIRST-LAST");
        let range = match text.split_once('-') {
            Some((first, last)) => {
                let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| wrong());
                Self { first: parse(first)?, last: parse(last)? }
            }
            None => {
                let net = text.trim().parse::<IpNet>().map_err(|_| wrong())?;
                Self { first: net.network(), last: net.broadcast() }
            }
        };
        if range.family() != IpFamily::of(range.last) {
            return Err(format!("\"{text}\" begins and ends in different families"));
        }
        if range.first > range.last {
            return Err(format!("\"{text}\" ends before it begins"));
        }
        Ok(range)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_people_write_them() {
        for (text, shown, size) in [
            ("192.0.2.0/30", "192.0.2.0-192.0.2.3", 4),
            ("192.0.2.9 - 192.0.2.10", "192.0.2.9-192.0.2.10", 2),
            ("2001:db8::/126", "2001:db8::-2001:db8::3", 4),
            ("2001:db8::/32", "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", u64::MAX),
        ] {
            let range: AddressRange = text.parse().unwrap();
            assert_eq!((range.to_string().as_str(), range.size()), (shown, size));
            assert_eq!(shown.parse(), Ok(range));
        }
        for (text, wrong) in [
            ("192.0.2.1", "neither"),
            ("192.0.2.9-192.0.2.1", "ends before"),
            ("192.0.2.1-2001:db8::", "different families"),
            ("a-b", "neither"),
        ] {
            let refused = text.parse::<AddressRange>().unwrap_err();
            assert!(refused.contains(wrong), "{refused}");
        }
        let range: AddressRange = "192.0.2.254-192.0.3.1".parse().unwrap();
        let all: Vec<_> = range.addresses().map(|address| address.to_string()).collect();
        assert_eq!(all, ["192.0.2.254", "192.0.2.255", "192.0.3.0", "192.0.3.1"]);
        assert!(range.contains("192.0.3.0".parse().unwrap()));
        assert!(!range.contains("192.0.3.2".parse().unwrap()));
        assert!(!range.contains("::".parse().unwrap()));
    }
}
