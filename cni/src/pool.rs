//! From which addresses a pod gets its own: those of the node's pod CIDRs, or of ranges within them
//! that the configuration or the runtime gives. Pure: what is taken is the store's to know.
//!
//! An address outside of the node's pod CIDRs is routed to another node or to none, so it is
//! refused. Of a pod CIDR the first two addresses are kept, which are the node's on the overlay and
//! the customary gateway, and the last of an IPv4 one, its broadcast address.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

use crate::failure::{Code, Failure};

/// Lists of ranges as the reference plugin `host-local` takes them: one address comes of each list.
#[derive(Debug, Default)]
pub(crate) struct RangeSets {
    /// Where they were given, for error messages.
    pub(crate) key: &'static str,
    pub(crate) sets: Vec<Vec<GivenRange>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GivenRange {
    subnet: IpNet,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    /// Somebody's in this subnet, so no pod's. A pod's gateway is another; see [`crate::wiring`].
    gateway: Option<IpAddr>,
}

/// An address that is asked for, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) key: String,
    pub(crate) address: IpAddr,
}

/// Addresses of one family, of which a pod gets one. Shown as a person would write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Not empty, and in order.
    ranges: Vec<Range>,
    ipv4: bool,
    name: String,
    /// The one it has to be.
    pub(crate) wanted: Option<Wanted>,
}

/// The pools of a pod, at most one a family; everything that is wrong with what was given is found
/// here.
pub(crate) fn pools(
    cidrs: &[IpNet],
    given: Option<&RangeSets>,
    wanted: &[Wanted],
) -> Result<Vec<Pool>, Failure> {
    let mut pools = match given {
        Some(given) => given_pools(cidrs, given)?,
        None => node_pools(cidrs),
    };
    for wanted in wanted {
        let pool = pools.iter_mut().find(|pool| pool.contains(wanted.address));
        let Some(pool) = pool else {
            let names: Vec<_> = pools.iter().map(Pool::to_string).collect();
            return Err(wrong(
                &wanted.key,
                format!(
                    "{} is not among the addresses that pods of this node may have: {}",
                    wanted.address,
                    names.join(", ")
                ),
            ));
        };
        match &pool.wanted {
            Some(other) if other.address != wanted.address => {
                let problem = format!(
                    "{} cannot be had beside {} of {:?}: a pod has one address of a family",
                    wanted.address, other.address, other.key
                );
                return Err(wrong(&wanted.key, problem));
            }
            Some(_) => {}
            None => pool.wanted = Some(wanted.clone()),
        }
    }
    Ok(pools)
}

/// All pod CIDRs of a family are one pool.
fn node_pools(cidrs: &[IpNet]) -> Vec<Pool> {
    let mut pools: Vec<Pool> = Vec::new();
    for cidr in cidrs {
        let ipv4 = cidr.addr().is_ipv4();
        let ranges = Range::of_pods(*cidr).into_iter();
        match pools.iter_mut().find(|pool| pool.ipv4 == ipv4) {
            Some(pool) => {
                pool.ranges.extend(ranges);
                pool.name = format!("{}, {cidr}", pool.name);
            }
            None => pools.push(Pool {
                ranges: ranges.collect(),
                ipv4,
                name: cidr.to_string(),
                wanted: None,
            }),
        }
    }
    pools
}

fn given_pools(cidrs: &[IpNet], given: &RangeSets) -> Result<Vec<Pool>, Failure> {
    let mut pools: Vec<Pool> = Vec::new();
    for (n, set) in given.sets.iter().enumerate() {
        let key = format!("{}[{n}]", given.key);
        let Some(first) = set.first() else {
            return Err(wrong(&key, "the list of ranges is empty"));
        };
        let ipv4 = first.subnet.addr().is_ipv4();
        if pools.iter().any(|pool| pool.ipv4 == ipv4) {
            let problem = "is the second of its family, and a pod has one address of each";
            return Err(wrong(&key, problem));
        }
        let mut ranges = Vec::new();
        let mut names = Vec::new();
        for (m, range) in set.iter().enumerate() {
            let key = format!("{key}[{m}]");
            if range.subnet.addr().is_ipv4() != ipv4 {
                return Err(wrong(&key, "is of another family than those before it in its list"));
            }
            let usable = range.usable(cidrs, &key)?;
            if usable.iter().any(|range| ranges.iter().any(|other: &Range| other.overlaps(range))) {
                return Err(wrong(&key, format!("{} overlaps one before it", range.subnet)));
            }
            ranges.extend(usable);
            names.push(range.to_string());
        }
        pools.push(Pool { ranges, ipv4, name: names.join(", "), wanted: None });
    }
    if pools.is_empty() {
        return Err(wrong(given.key, "has no range to give a pod its address from"));
    }
    Ok(pools)
}

impl GivenRange {
    /// The addresses of it that pods may have: at most two ranges, as the gateway splits it.
    fn usable(&self, cidrs: &[IpNet], key: &str) -> Result<Vec<Range>, Failure> {
        let subnet = self.subnet;
        if subnet.addr() != subnet.network() {
            let problem = format!("{subnet} is an address; the subnet is {}", subnet.trunc());
            return Err(wrong(&format!("{key}.subnet"), problem));
        }
        let Some(cidr) = cidrs.iter().find(|cidr| cidr.contains(&subnet)) else {
            let problem = format!("{subnet} is in none of this node's pod CIDRs, {cidrs:?}");
            return Err(wrong(&format!("{key}.subnet"), problem));
        };
        let number_in_subnet = |address: Option<IpAddr>, name: &str| match address {
            Some(address) if !subnet.contains(&address) => {
                Err(wrong(&format!("{key}.{name}"), format!("{address} is not in {subnet}")))
            }
            address => Ok(address.map(to_number)),
        };
        let start = number_in_subnet(self.range_start, "rangeStart")?;
        let end = number_in_subnet(self.range_end, "rangeEnd")?;
        let gateway = number_in_subnet(self.gateway, "gateway")?;
        if let (Some(start), Some(end)) = (start, end)
            && end < start
        {
            return Err(wrong(&format!("{key}.rangeEnd"), "comes before rangeStart"));
        }
        // As everywhere, the subnet's own first address and IPv4 broadcast are nobody's.
        let first = to_number(subnet.network()).saturating_add(1).max(start.unwrap_or(0));
        let last = last_number(subnet).min(end.unwrap_or(u128::MAX));
        let usable = Range::of_pods(*cidr).and_then(|pods| pods.within(first, last));
        let ranges: Vec<_> = match (usable, gateway) {
            (None, _) => Vec::new(),
            (Some(range), None) => vec![range],
            (Some(range), Some(gateway)) => {
                let before = gateway.checked_sub(1).and_then(|last| range.within(0, last));
                let after = gateway.checked_add(1).and_then(|first| range.within(first, u128::MAX));
                before.into_iter().chain(after).collect()
            }
        };
        if ranges.is_empty() {
            return Err(wrong(key, format!("{self} has no address that a pod may have")));
        }
        Ok(ranges)
    }
}

impl fmt::Display for GivenRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.subnet)?;
        match (self.range_start, self.range_end) {
            (None, None) => Ok(()),
            (Some(start), None) => write!(f, " from {start}"),
            (None, Some(end)) => write!(f, " to {end}"),
            (Some(start), Some(end)) => write!(f, " from {start} to {end}"),
        }
    }
}

impl Pool {
    pub(crate) const fn is_ipv4(&self) -> bool {
        self.ipv4
    }

    /// How many addresses there are.
    pub(crate) fn size(&self) -> u128 {
        let sizes = self.ranges.iter().map(|range| (range.last - range.first).saturating_add(1));
        sizes.fold(0, u128::saturating_add)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let number = to_number(address);
        self.ipv4 == address.is_ipv4() && self.ranges.iter().any(|range| range.contains(number))
    }

    /// What tells it from the node's other pools, today and tomorrow.
    pub(crate) fn first(&self) -> Option<IpAddr> {
        self.ranges.first().map(|range| to_address(range.first, self.ipv4))
    }

    /// The next free address behind `last`, going round at the end, so that an address just freed
    /// is the last to be given to somebody else.
    pub(crate) fn first_free_after(
        &self,
        last: Option<IpAddr>,
        taken: &HashSet<IpAddr>,
    ) -> Option<IpAddr> {
        let last = last.filter(|last| self.contains(*last)).map(to_number);
        let found = last.and_then(|number| {
            let index = self.ranges.iter().position(|range| range.contains(number))?;
            Some((index, number))
        });
        let mut addresses: Box<dyn Iterator<Item = u128>> = match found {
            None => Box::new(numbers(&self.ranges)),
            Some((index, last)) => {
                let Range { first, last: end } = self.ranges[index];
                Box::new(
                    (last..=end)
                        .skip(1)
                        .chain(numbers(&self.ranges[index + 1..]))
                        .chain(numbers(&self.ranges[..index]))
                        .chain(first..=last),
                )
            }
        };
        // At most one step more than there are addresses taken, however large the range.
        addresses.find_map(|number| {
            Some(to_address(number, self.ipv4)).filter(|address| !taken.contains(address))
        })
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Addresses as numbers, from `first` to `last` inclusive; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
}

impl Range {
    /// What pods may have of a pod CIDR.
    fn of_pods(cidr: IpNet) -> Option<Self> {
        let all = Self { first: to_number(cidr.network()), last: last_number(cidr) };
        all.within(all.first.saturating_add(2), u128::MAX)
    }

    /// The part of it between these, inclusive.
    fn within(self, first: u128, last: u128) -> Option<Self> {
        let (first, last) = (self.first.max(first), self.last.min(last));
        (first <= last).then_some(Self { first, last })
    }

    fn contains(self, number: u128) -> bool {
        self.first <= number && number <= self.last
    }

    fn overlaps(self, other: &Self) -> bool {
        self.within(other.first, other.last).is_some()
    }
}

fn numbers(ranges: &[Range]) -> impl Iterator<Item = u128> {
    ranges.iter().flat_map(|range| range.first..=range.last)
}

/// The last address but for the broadcast address of IPv4; IPv6 has none.
fn last_number(net: IpNet) -> u128 {
    let last = to_number(net.broadcast());
    if net.addr().is_ipv4() { last.saturating_sub(1) } else { last }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn to_address(number: u128, ipv4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if ipv4 => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

fn wrong(key: &str, problem: impl fmt::Display) -> Failure {
    Failure::new(Code::InvalidConfig, format!("key {key:?}: {problem}"))
}

#[cfg(test)]
pub(crate) fn node_pools_of(cidrs: &[&str]) -> Vec<Pool> {
    let cidrs: Vec<_> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    node_pools(&cidrs)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const CIDRS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];

    fn given(sets: Value) -> RangeSets {
        RangeSets { key: "ipam.ranges", sets: serde_json::from_value(sets).unwrap() }
    }

    fn pools_of(sets: Value, wanted: &[&str]) -> Result<Vec<Pool>, Failure> {
        let wanted = wanted.iter().map(|address| Wanted {
            key: "runtimeConfig.ips".to_owned(),
            address: address.parse().unwrap(),
        });
        pools(
            &CIDRS.map(|cidr| cidr.parse().unwrap()),
            Some(&given(sets)),
            &wanted.collect::<Vec<_>>(),
        )
    }

    /// Its addresses in the order they would be given, up to six.
    fn addresses(pool: &Pool) -> Vec<String> {
        let mut taken = HashSet::new();
        let mut given = Vec::new();
        while given.len() < 6
            && let Some(address) = pool.first_free_after(None, &taken)
        {
            taken.insert(address);
            given.push(address.to_string());
        }
        given
    }

    #[test]
    fn without_ranges_all_of_the_node_is_one_pool_a_family() {
        let pools = node_pools_of(&["10.1.0.0/30", "fd00:1::/64", "10.2.0.0/29"]);
        assert_eq!(pools.len(), 2);
        assert_eq!(pools[0].to_string(), "10.1.0.0/30, 10.2.0.0/29");
        let expected = ["10.1.0.2", "10.2.0.2", "10.2.0.3", "10.2.0.4", "10.2.0.5", "10.2.0.6"];
        assert_eq!(addresses(&pools[0]), expected);
        assert_eq!(pools[0].size(), 6);
        assert_eq!(addresses(&pools[1])[..2], ["fd00:1::2", "fd00:1::3"]);
        assert_eq!(pools[1].size(), (1 << 64) - 2);
    }

    #[test]
    fn ranges_are_cut_to_what_pods_may_have() {
        let check = |range: Value, expected: &[&str]| {
            let pools = pools_of(json!([[range]]), &[]).unwrap();
            assert_eq!(addresses(&pools[0]), expected, "{range}");
        };
        check(
            json!({"subnet": "10.1.0.0/29"}),
            &["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"],
        );
        check(json!({"subnet": "10.1.0.8/30"}), &["10.1.0.9", "10.1.0.10"]);
        check(json!({"subnet": "10.1.0.252/30"}), &["10.1.0.253", "10.1.0.254"]);
        check(
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.12",
                   "gateway": "10.1.0.10"}),
            &["10.1.0.9", "10.1.0.11", "10.1.0.12"],
        );
        check(json!({"subnet": "fd00:1::/126"}), &["fd00:1::2", "fd00:1::3"]);
        check(
            json!({"subnet": "fd00:1::fffc/126", "gateway": "fd00:1::fffd"}),
            &["fd00:1::fffe", "fd00:1::ffff"],
        );
    }

    #[test]
    fn a_list_of_ranges_is_used_in_turn_and_round() {
        let sets = json!([[{"subnet": "10.1.0.16/30"}, {"subnet": "10.1.0.4/30"}]]);
        let pool = pools_of(sets, &[]).unwrap().remove(0);
        assert_eq!(addresses(&pool), ["10.1.0.17", "10.1.0.18", "10.1.0.5", "10.1.0.6"]);
        let after = |last: &str, taken: &[&str]| {
            let taken = taken.iter().map(|address| address.parse().unwrap()).collect();
            let found = pool.first_free_after(Some(last.parse().unwrap()), &taken);
            found.map(|address| address.to_string())
        };
        assert_eq!(after("10.1.0.17", &[]).unwrap(), "10.1.0.18");
        assert_eq!(after("10.1.0.18", &[]).unwrap(), "10.1.0.5");
        assert_eq!(after("10.1.0.6", &[]).unwrap(), "10.1.0.17");
        assert_eq!(after("10.1.0.5", &["10.1.0.6", "10.1.0.17", "10.1.0.18"]).unwrap(), "10.1.0.5");
        assert_eq!(after("10.9.0.1", &[]).unwrap(), "10.1.0.17", "of another range");
        assert_eq!(after("::1", &[]).unwrap(), "10.1.0.17");
        let all = ["10.1.0.5", "10.1.0.6", "10.1.0.17", "10.1.0.18"];
        assert_eq!(after("10.1.0.5", &all), None);
    }

    #[test]
    fn at_either_end_of_the_address_space() {
        let [v4, v6] = &node_pools_of(&["0.0.0.0/0", "::/0"])[..] else { panic!("two") };
        assert_eq!([addresses(v4)[0].as_str(), &addresses(v6)[0]], ["0.0.0.2", "::2"]);
        let end = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
        let around = v6.first_free_after(Some(end), &HashSet::new()).unwrap();
        assert_eq!(around.to_string(), "::2");
        assert_eq!(v6.size(), u128::MAX - 1);
    }

    #[test]
    fn an_address_asked_for_belongs_to_its_pool() {
        let sets = json!([[{"subnet": "10.1.0.0/25"}], [{"subnet": "fd00:1::/120"}]]);
        let pools = pools_of(sets, &["fd00:1::7", "10.1.0.9", "10.1.0.9"]).unwrap();
        let wanted = |pool: &Pool| pool.wanted.as_ref().map(|wanted| wanted.address.to_string());
        assert_eq!(wanted(&pools[0]).unwrap(), "10.1.0.9");
        assert_eq!(wanted(&pools[1]).unwrap(), "fd00:1::7");
    }

    #[test]
    fn each_mistake_names_its_key() {
        let check = |sets: Value, wanted: &[&str], texts: &[&str]| {
            let failure = pools_of(sets.clone(), wanted).expect_err("a mistake");
            assert_eq!(failure.code, Code::InvalidConfig);
            for text in texts {
                assert!(failure.message.contains(text), "{text:?} in {:?}", failure.message);
            }
        };
        let one = |range: Value| json!([[range]]);
        check(json!([]), &[], &["\"ipam.ranges\"", "no range"]);
        check(json!([[]]), &[], &["\"ipam.ranges[0]\"", "empty"]);
        check(one(json!({"subnet": "10.1.0.1/25"})), &[], &["[0][0].subnet", "10.1.0.0/25"]);
        check(one(json!({"subnet": "10.2.0.0/24"})), &[], &["[0][0].subnet", "10.1.0.0/24"]);
        check(one(json!({"subnet": "10.0.0.0/8"})), &[], &["[0][0].subnet", "pod CIDRs"]);
        check(one(json!({"subnet": "10.1.0.0/31"})), &[], &["[0][0]", "no address"]);
        check(one(json!({"subnet": "10.1.0.8/32"})), &[], &["[0][0]", "no address"]);
        let with = |key: &str, value: &str| {
            let mut range = json!({"subnet": "10.1.0.0/25", "rangeStart": "10.1.0.9"});
            range[key] = value.into();
            one(range)
        };
        check(with("rangeStart", "10.1.0.128"), &[], &["[0][0].rangeStart", "10.1.0.128"]);
        check(with("rangeEnd", "10.1.0.8"), &[], &["[0][0].rangeEnd", "before"]);
        check(with("rangeEnd", "fd00:1::8"), &[], &["[0][0].rangeEnd", "fd00:1::8"]);
        check(with("gateway", "10.1.0.200"), &[], &["[0][0].gateway"]);
        let two = |one: &str, other: &str| json!([[{"subnet": one}], [{"subnet": other}]]);
        check(two("10.1.0.0/25", "10.1.0.128/25"), &[], &["\"ipam.ranges[1]\"", "second"]);
        let list = |one: &str, other: &str| json!([[{"subnet": one}, {"subnet": other}]]);
        check(list("10.1.0.0/25", "fd00:1::/96"), &[], &["ipam.ranges[0][1]", "family"]);
        check(list("10.1.0.0/25", "10.1.0.64/26"), &[], &["ipam.ranges[0][1]", "overlaps"]);

        let half = one(json!({"subnet": "10.1.0.0/25"}));
        for address in ["10.1.0.128", "10.1.0.0", "10.1.0.1", "10.1.0.127", "fd00:1::2"] {
            check(half.clone(), &[address], &["runtimeConfig.ips", address, "10.1.0.0/25"]);
        }
        check(half, &["10.1.0.5", "10.1.0.6"], &["runtimeConfig.ips", "10.1.0.6", "10.1.0.5"]);
    }
}
