//! Ranges of pods for nodes that have none.

use std::collections::HashSet;

use ipnet::IpNet;

/// What ranges are cut from, and how large each is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRanges {
    /// At most one a family; none to give out nothing.
    cluster: Vec<(IpNet, u8)>,
}

impl NodeRanges {
    /// Ranges of prefix lengths `v4` and `v6`, cut from `cluster`.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn new(cluster: &[IpNet], v4: u8, v6: u8) -> Result<Self, String> {
        let mut ranges: Vec<(IpNet, u8)> = Vec::new();
        for cidr in cluster {
            let of_v4 = cidr.addr().is_ipv4();
            if ranges.iter().any(|(other, _)| other.addr().is_ipv4() == of_v4) {
                return Err("two ranges of pods of one family are given".into());
            }
            let length = if of_v4 { v4 } else { v6 };
            if length <= cidr.prefix_len() || length > cidr.max_prefix_len() - 2 {
                return Err(format!("{cidr} cannot be cut into ranges of /{length} for nodes"));
            }
            ranges.push((cidr.trunc(), length));
        }
        Ok(Self { cluster: ranges })
    }

    /// Whether nodes are to be given ranges at all.
    pub(crate) fn are_given(&self) -> bool {
        !self.cluster.is_empty()
    }

    /// For each of `wanting` nodes the first ranges that overlap nothing that is taken; fewer where there are
    /// no more.
    pub(crate) fn choose(
        &self,
        taken: impl Iterator<Item = IpNet>,
        wanting: usize,
    ) -> Vec<Vec<IpNet>> {
        let taken: Vec<IpNet> = taken.collect();
        let mut found: Vec<Vec<IpNet>> = Vec::new();
        for (index, (cluster, length)) in self.cluster.iter().enumerate() {
            let same: HashSet<IpNet> = taken
                .iter()
                .filter(|cidr| cidr.prefix_len() == *length)
                .map(IpNet::trunc)
                .collect();
            let others: Vec<_> = taken.iter().filter(|cidr| cidr.prefix_len() != *length).collect();
            let free = |cidr: &IpNet| {
                !same.contains(cidr)
                    && !others.iter().any(|other| other.contains(cidr) || cidr.contains(*other))
            };
            let subnets = cluster.subnets(*length).ok().into_iter().flatten();
            let of_family: Vec<IpNet> = subnets.filter(free).take(wanting).collect();
            if index == 0 {
                found = of_family.into_iter().map(|cidr| vec![cidr]).collect();
            } else {
                // A node has ranges of all families or none.
                found.truncate(of_family.len());
                for (ranges, cidr) in found.iter_mut().zip(of_family) {
                    ranges.push(cidr);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_the_first_that_overlap_nothing() {
        let ranges = NodeRanges::new(&cidrs(&["10.244.0.0/22", "fd00::/62"]), 24, 64).unwrap();
        let choose = |taken: &[&str], wanting| {
            let chosen = ranges.choose(cidrs(taken).into_iter(), wanting);
            let texts = chosen
                .iter()
                .map(|cidrs| cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" "));
            texts.collect::<Vec<_>>()
        };
        assert_eq!(choose(&[], 1), ["10.244.0.0/24 fd00::/64"]);
        // Whatever the size of what is taken.
        let taken = ["10.244.0.0/24", "10.244.1.128/25", "fd00:0:0:1::/64"];
        assert_eq!(choose(&taken, 9), ["10.244.2.0/24 fd00::/64", "10.244.3.0/24 fd00:0:0:2::/64"]);
        assert_eq!(choose(&["10.0.0.0/8"], 1), [""; 0]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (cluster, v4) in [
            (&["10.0.0.0/24", "10.1.0.0/16"][..], 26),
            (&["10.0.0.0/24"], 24),
            (&["10.0.0.0/24"], 31),
        ] {
            assert!(NodeRanges::new(&cidrs(cluster), v4, 64).is_err(), "{cluster:?} {v4}");
        }
        assert!(!NodeRanges::new(&[], 24, 64).unwrap().are_given());
    }
}
