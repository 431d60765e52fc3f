//! What policies take of the tables that nodes have, told before it is too much.
//!
//! Every node knows all who are meant, by their addresses and ranges. What rules come to, a node has only for
//! its own pods; here it can only be said what a policy may come to wherever a pod is that it restricts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use fairway_model::PortMatch;
use ipnet::IpNet;

use super::draft::{Draft, DraftRule, Whom};
use crate::kubernetes::{FieldError, ObjectId};

/// What nodes have room for (`ebpf/src/maps.rs`): addresses of somebody who is meant, and ranges with their
/// exceptions, each of a family; and what rules come to.
pub(super) const ADDRESSES: usize = 262_144;
pub(super) const RANGES: usize = 131_072;
pub(super) const RULINGS: usize = 524_288;

/// Parts of that, in percent, from which on it is told; of rulings, what one policy may take.
const FULL: usize = 75;
const POLICY_FULL: usize = 10;

/// Who is there for policies to mean.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// How many IPv4 and IPv6 addresses those have who are meant at all.
    pub(super) addresses: [usize; 2],
    /// How many addresses those have whom each one means, and in how many groups they are.
    pub(super) whoms: HashMap<Arc<Whom>, (usize, usize)>,
}

/// Whether this many is near what there is room for.
pub(super) fn is_much(count: usize, room: usize) -> bool {
    count > room / 100 * FULL
}

/// What comes near to what nodes have room for, and because of which policy above all.
pub(super) fn warnings<'a>(
    policies: impl Iterator<Item = (&'a ObjectId, &'a Draft)> + Clone,
    census: &Census,
) -> Vec<(ObjectId, FieldError)> {
    let mut warnings = Vec::new();
    let mut warn = |id: &ObjectId, field: &str, message: String| {
        warnings.push((id.clone(), FieldError::new(field, message)));
    };
    for (count, family) in census.addresses.into_iter().zip(["IPv4", "IPv6"]) {
        if !is_much(count, ADDRESSES) {
            continue;
        }
        let reach = |draft: &Draft| {
            let meant = peers(draft).filter_map(|whom| census.whoms.get(whom));
            meant.map(|(addresses, _)| addresses).sum::<usize>()
        };
        if let Some((id, _)) = policies.clone().max_by_key(|(_, draft)| reach(draft)) {
            let message = format!(
                "it and others speak of pods and nodes with {count} {family} addresses, it of most; \
                 nodes have room for {ADDRESSES}"
            );
            warn(id, "spec", message);
        }
    }
    let mut ranges = BTreeSet::new();
    let mut largest = (0, None);
    for (id, draft) in policies.clone() {
        let own: BTreeSet<_> = peers(draft).flat_map(prefixes).collect();
        if own.len() > largest.0 {
            largest = (own.len(), Some(id));
        }
        ranges.extend(own);
    }
    let of_v4 = ranges.iter().filter(|range| range.addr().is_ipv4()).count();
    for (count, family) in [(of_v4, "IPv4"), (ranges.len() - of_v4, "IPv6")] {
        if let (true, (own, Some(id))) = (is_much(count, RANGES), largest) {
            let message = format!(
                "it and others speak of {count} {family} ranges and exceptions, it of most: {own}; \
                 nodes have room for {RANGES}"
            );
            warn(id, "spec", message);
        }
    }
    for (id, draft) in policies {
        for (rules, direction) in [(&draft.ingress, "ingress"), (&draft.egress, "egress")] {
            let count = rules.iter().flatten().map(|rule| rulings(rule, census)).sum::<usize>();
            if count > RULINGS / 100 * POLICY_FULL {
                let message = format!(
                    "its peers times its ports may take {count} entries for pods that it restricts; \
                     a node has room for {RULINGS} for all of its pods: name ranges of ports that \
                     begin at multiples of their size, or fewer kinds of peers"
                );
                warn(id, &format!("spec.{direction}"), message);
            }
        }
    }
    warnings
}

fn peers(draft: &Draft) -> impl Iterator<Item = &Whom> {
    let rules = draft.ingress.iter().flatten().chain(draft.egress.iter().flatten());
    rules.flat_map(|rule| rule.peers.iter().flatten())
}

fn prefixes(whom: &Whom) -> impl Iterator<Item = IpNet> {
    let block = match whom {
        Whom::Block { cidr, except } => Some((cidr, except)),
        Whom::Pods { .. } | Whom::Nodes(_) => None,
    };
    block.into_iter().flat_map(|(cidr, except)| except.iter().chain([cidr]).copied())
}

/// The most that a rule comes to: for each that can be told apart, each prefix of its ports.
fn rulings(rule: &DraftRule, census: &Census) -> usize {
    let kinds = rule.peers.as_ref().map(|peers| {
        let kinds = peers.iter().map(|whom| match whom {
            Whom::Block { .. } => 1,
            Whom::Pods { .. } | Whom::Nodes(_) => {
                census.whoms.get(whom).map_or(0, |(_, groups)| *groups)
            }
        });
        kinds.sum()
    });
    let ports = rule.ports.as_ref().map(|ports| ports.iter().map(expansion).sum());
    kinds.unwrap_or(1) * ports.unwrap_or(1)
}

/// How many prefixes make up the ports.
fn expansion(ports: &PortMatch) -> usize {
    let PortMatch::Range(_, first, last) = ports else { return 1 };
    let (mut first, end) = (u32::from(*first), u32::from(*last) + 1);
    let mut count = 0;
    while first < end {
        // The largest that begins here and does not reach too far.
        let mut size = if first == 0 { 1 << 16 } else { 1 << first.trailing_zeros() };
        while first + size > end {
            size /= 2;
        }
        first += size;
        count += 1;
    }
    count
}

/// Counts who is meant: groups, with whom all they are and how many addresses of each family they have.
pub(super) fn census<'a, G: Ord + 'a>(
    groups: impl Iterator<Item = (G, impl Iterator<Item = &'a Arc<Whom>>, [usize; 2])>,
) -> Census {
    let mut census = Census::default();
    let mut seen = BTreeMap::<&Arc<Whom>, BTreeSet<usize>>::new();
    let mut numbers = BTreeMap::new();
    for (group, whoms, addresses) in groups {
        let next = numbers.len();
        let number = *numbers.entry(group).or_insert(next);
        for (all, own) in census.addresses.iter_mut().zip(addresses) {
            *all += own;
        }
        for whom in whoms {
            let groups = seen.entry(whom).or_default();
            groups.insert(number);
            let entry = census.whoms.entry(Arc::clone(whom)).or_default();
            *entry = (entry.0 + addresses.iter().sum::<usize>(), groups.len());
        }
    }
    census
}

#[cfg(test)]
mod tests {
    use fairway_model::Protocol;

    use super::*;

    #[test]
    fn ports_are_counted_by_their_prefixes() {
        let range = |first, last| expansion(&PortMatch::Range(Protocol::Tcp, first, last));
        assert_eq!([range(80, 80), range(1024, 2047), range(0, 65535)], [1; 3]);
        assert_eq!([range(1, 65535), range(1, 65534), range(1000, 1100)], [16, 30, 6]);
        assert_eq!(expansion(&PortMatch::All(Protocol::Udp)), 1);
    }
}
