//! Ranges of addresses: which of them an address is in.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use ipnet::IpNet;

use super::identities::{Identities, Who};
use crate::Family;

/// The names of ranges that the same addresses are in, in order.
type Names = Arc<[Arc<str>]>;

/// A prefix: its first address, and its length in bits.
pub(super) type Prefix<A> = (A, u8);

/// Addresses from one on, up to before another.
pub(super) type Interval<A> = (Bound<A>, Bound<A>);

/// A range of one family, as a selector means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block<A> {
    pub(super) cidr: Prefix<A>,
    pub(super) except: BTreeSet<Prefix<A>>,
}

impl<A: Family> Block<A> {
    /// `None`: it is of the other family.
    pub(super) fn new(cidr: &IpNet, except: &[IpNet]) -> Option<Self> {
        let except = except.iter().filter_map(prefix).collect();
        Some(Self { cidr: prefix(cidr)?, except })
    }
}

/// All ranges of one family, and what each prefix that begins or ends one is in.
#[derive(Clone, Debug)]
pub(super) struct Blocks<A> {
    /// Every prefix that is somebody's range, or an exception from one.
    pub(super) prefixes: BTreeMap<Prefix<A>, Who>,
    /// Each of those once, to be released.
    pub(super) covers: Vec<Who>,
    /// From each address on, up to the next.
    from: Vec<(A, Who)>,
}

impl<A> Default for Blocks<A> {
    fn default() -> Self {
        Self { prefixes: BTreeMap::new(), covers: Vec::new(), from: Vec::new() }
    }
}

impl<A: Family> Blocks<A> {
    /// At a cost of the number of prefixes, and of the ranges around each.
    pub(super) fn new(ranges: &BTreeMap<Arc<str>, Block<A>>, identities: &mut Identities) -> Self {
        let mut begins: BTreeMap<Prefix<A>, Vec<&Arc<str>>> = BTreeMap::new();
        let mut ends: BTreeMap<Prefix<A>, BTreeSet<&Arc<str>>> = BTreeMap::new();
        for (name, block) in ranges {
            begins.entry(block.cidr).or_default().push(name);
            for except in &block.except {
                begins.entry(*except).or_default();
                ends.entry(*except).or_default().insert(name);
            }
        }
        let mut blocks = Self::default();
        let nothing = Around { names: Arc::new([]), cover: 0, behind: None };
        // The prefixes around the next one, and what is true in each.
        let mut around: Vec<(Prefix<A>, Around<A>)> = Vec::new();
        for (prefix, names) in begins {
            while around.last().is_some_and(|(outer, _)| !covers(*outer, prefix.0)) {
                blocks.leave(&mut around);
            }
            let outside = around.last().map_or(&nothing, |(_, outside)| outside);
            let behind = after(prefix);
            let ended = ends.get(&prefix);
            let inside = if names.is_empty() && ended.is_none() {
                Around { behind, names: Arc::clone(&outside.names), ..*outside }
            } else {
                let mut within: BTreeSet<&Arc<str>> = outside.names.iter().chain(names).collect();
                for name in ended.into_iter().flatten() {
                    within.remove(*name);
                }
                let names: Names = within.into_iter().cloned().collect();
                let cover = identities.hold(Arc::clone(&names), Arc::new([]));
                blocks.covers.push(cover);
                Around { names, cover, behind }
            };
            blocks.note(prefix.0, inside.cover);
            blocks.prefixes.insert(prefix, inside.cover);
            around.push((prefix, inside));
        }
        while !around.is_empty() {
            blocks.leave(&mut around);
        }
        blocks
    }

    /// Goes on behind the innermost prefix.
    fn leave(&mut self, around: &mut Vec<(Prefix<A>, Around<A>)>) {
        let Some((_, left)) = around.pop() else { return };
        let outside = around.last().map_or(0, |(_, outside)| outside.cover);
        if let Some(behind) = left.behind {
            self.note(behind, outside);
        }
    }

    /// From this address on, this is true.
    fn note(&mut self, first: A, cover: Who) {
        if self.from.last().is_some_and(|(known, _)| *known == first) {
            self.from.pop();
        }
        if self.from.last().map_or(0, |(_, known)| *known) != cover {
            self.from.push((first, cover));
        }
    }

    /// Where addresses are in other ranges than before: from each first address on up to before the next, in order,
    /// with what they are in now.
    pub(super) fn since(&self, before: &Self) -> Vec<(Interval<A>, Who)> {
        let mut differing: Vec<(Interval<A>, Who)> = Vec::new();
        let (mut old, mut new) = (before.from.iter().peekable(), self.from.iter().peekable());
        let (mut was, mut is) = (0, 0);
        while let Some(first) =
            [old.peek(), new.peek()].into_iter().flatten().map(|(a, _)| *a).min()
        {
            if let Some(((_, end @ Bound::Unbounded), _)) = differing.last_mut() {
                *end = Bound::Excluded(first);
            }
            if let Some((_, cover)) = old.next_if(|(address, _)| *address == first) {
                was = *cover;
            }
            if let Some((_, cover)) = new.next_if(|(address, _)| *address == first) {
                is = *cover;
            }
            if was != is {
                differing.push(((Bound::Included(first), Bound::Unbounded), is));
            }
        }
        differing
    }

    /// The ranges that an address is in.
    pub(super) fn cover(&self, address: &A) -> Who {
        let behind = self.from.partition_point(|(first, _)| first <= address);
        let last = behind.checked_sub(1).and_then(|index| self.from.get(index));
        last.map_or(0, |(_, cover)| *cover)
    }
}

/// What is true within a prefix.
struct Around<A> {
    names: Names,
    cover: Who,
    /// The first address after it.
    behind: Option<A>,
}

fn prefix<A: Family>(net: &IpNet) -> Option<Prefix<A>> {
    Some((A::of(net.network())?, net.prefix_len()))
}

/// Whether an address is within a prefix.
pub(super) fn covers<A: Family>((network, length): Prefix<A>, address: A) -> bool {
    let mask = A::mask(length);
    let bytes = network.as_bytes().iter().zip(address.as_bytes()).zip(mask.as_bytes());
    bytes.fold(0, |differs, ((one, other), mask)| differs | ((one ^ other) & mask)) == 0
}

/// The last address of a prefix.
fn last<A: Family>((network, length): Prefix<A>) -> A {
    let mut last = network;
    let mask = A::mask(length);
    for (byte, mask) in last.as_mut_bytes().iter_mut().zip(mask.as_bytes()) {
        *byte |= !mask;
    }
    last
}

/// The first address behind a prefix.
fn after<A: Family>(prefix: Prefix<A>) -> Option<A> {
    let mut next = last(prefix);
    for byte in next.as_mut_bytes().iter_mut().rev() {
        let (sum, over) = byte.overflowing_add(1);
        *byte = sum;
        if !over {
            return Some(next);
        }
    }
    None
}
