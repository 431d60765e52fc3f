//! The steps from one state of policies to the next.
//!
//! A reader in the kernel takes a pod's set, then the identity of the other end, then what the one makes of
//! the other. The steps are in an order in which every moment is good for it:
//!
//! ```text
//! counters ─► rulings ─► who addresses are ─► who is in a range ─► who is in it no more ─► who is nobody
//!          ─► who is restricted, and by what ─► who is no more
//! ```
//!
//! Of ranges, the longest prefix counts. If those that come are written from the longest to the shortest, and
//! those that go are removed from the shortest to the longest, no address is ever in a range that it is in
//! neither before nor after: what is excepted from a range is there before the range is.
//!
//! Rulings that nothing leads to any more are left to readers that are on their way to them.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use fairway_abi::{Ruling, RulingKey, Subject, V4, V6};
use fairway_compile::policy::{Changes, Delta, Family, FamilyChanges, Tables};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

/// The least of all keys.
const FIRST_RULING: RulingKey =
    RulingKey { set: U32::ZERO, identity: U32::ZERO, protocol: 0, length: 0, port: U16::ZERO };

/// What is done in one call of the kernel, or in one that may end in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Rules that are counted from now on.
    Counters(Vec<u32>),
    /// What sets make of identities; nobody has one of the two yet.
    Rulings(Vec<(RulingKey, Ruling)>),
    /// In a table of IPv4.
    V4(FamilyWrite<V4>),
    /// In a table of IPv6.
    V6(FamilyWrite<V6>),
}

/// See [`Write`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FamilyWrite<A> {
    /// Who has these addresses.
    Identities(Vec<(A, u32)>),
    /// Who has those of a prefix.
    Block((A, u8), u32),
    /// A prefix is like those around it.
    NoBlock((A, u8)),
    /// An address is like those around it.
    NoIdentity(A),
    /// What holds for a pod.
    Subject(A, Subject),
    /// Nothing does.
    NoSubject(A),
}

/// The steps that bring changes in force; what nothing leads to afterwards is [`left_over`].
pub(crate) fn plan(changes: &Changes) -> Vec<Write> {
    let mut writes = Vec::new();
    let counters: Vec<u32> = changes.rules.put.keys().copied().collect();
    if !counters.is_empty() {
        writes.push(Write::Counters(counters));
    }
    let rulings = changes.rulings.put.iter().map(|(key, ruling)| (*key, *ruling));
    let rulings: Vec<_> = rulings.collect();
    if !rulings.is_empty() {
        writes.push(Write::Rulings(rulings));
    }
    writes.extend(identities(&changes.v4).into_iter().map(Write::V4));
    writes.extend(identities(&changes.v6).into_iter().map(Write::V6));
    writes.extend(subjects(&changes.v4).map(Write::V4));
    writes.extend(subjects(&changes.v6).map(Write::V6));
    writes
}

fn identities<A: Ord + Copy>(changes: &FamilyChanges<A>) -> Vec<FamilyWrite<A>> {
    let mut writes = Vec::new();
    let put: Vec<_> = changes.identities.put.iter().map(|(a, identity)| (*a, *identity)).collect();
    if !put.is_empty() {
        writes.push(FamilyWrite::Identities(put));
    }
    let mut blocks: Vec<_> = changes.blocks.put.iter().collect();
    blocks.sort_by_key(|((_, length), _)| Reverse(*length));
    writes.extend(blocks.into_iter().map(|(prefix, i)| FamilyWrite::Block(*prefix, *i)));
    let mut gone: Vec<_> = changes.blocks.gone.iter().copied().collect();
    gone.sort_by_key(|(_, length)| *length);
    writes.extend(gone.into_iter().map(FamilyWrite::NoBlock));
    writes.extend(changes.identities.gone.iter().copied().map(FamilyWrite::NoIdentity));
    writes
}

fn subjects<A: Copy>(changes: &FamilyChanges<A>) -> impl Iterator<Item = FamilyWrite<A>> + '_ {
    let put = changes.subjects.put.iter().map(|(a, subject)| FamilyWrite::Subject(*a, *subject));
    put.chain(changes.subjects.gone.iter().copied().map(FamilyWrite::NoSubject))
}

/// How the tables that are to be differ from those that are. Names of rules are as in `want`.
pub(crate) fn difference(have: &Tables, want: &Tables) -> Changes {
    Changes {
        v4: of_family(&have.v4, &want.v4),
        v6: of_family(&have.v6, &want.v6),
        rulings: delta(&have.rulings, &want.rulings),
        rules: delta(&have.rules, &want.rules),
    }
}

fn of_family<A: Ord + Copy>(have: &Family<A>, want: &Family<A>) -> FamilyChanges<A> {
    FamilyChanges {
        subjects: delta(&have.subjects, &want.subjects),
        identities: delta(&have.identities, &want.identities),
        blocks: delta(&have.blocks, &want.blocks),
    }
}

type Map<K, V> = std::collections::BTreeMap<K, V>;

fn delta<K: Ord + Clone, V: PartialEq + Clone>(have: &Map<K, V>, want: &Map<K, V>) -> Delta<K, V> {
    let put = want.iter().filter(|(key, value)| have.get(*key) != Some(*value));
    let gone = have.keys().filter(|key| !want.contains_key(*key));
    Delta {
        put: put.map(|(key, value)| (key.clone(), value.clone())).collect(),
        gone: gone.cloned().collect(),
    }
}

/// Rulings to which nothing leads now or later: what attempts left that found no room for all of theirs.
pub(crate) fn idle(have: &Tables, want: &Tables) -> BTreeSet<RulingKey> {
    let subjects = have.v4.subjects.values().chain(have.v6.subjects.values());
    let sets: BTreeSet<u32> =
        subjects.flat_map(|subject| [subject.ingress, subject.egress]).collect();
    let identities = have.v4.identities.values().chain(have.v6.identities.values());
    let blocks = have.v4.blocks.values().chain(have.v6.blocks.values());
    let somebody: BTreeSet<u32> = identities.chain(blocks).copied().chain([0]).collect();
    let is_used =
        |key: &&RulingKey| sets.contains(&key.set.get()) && somebody.contains(&key.identity.get());
    let all = have.rulings.keys().filter(|key| !want.rulings.contains_key(key));
    all.filter(|key| !is_used(key)).copied().collect()
}

/// From a predecessor's tables, whose numbers mean nothing to us, to ours, whose numbers are beyond those:
/// until its pods are given our sets, the sets that they have make of our identities what ours will.
pub(crate) fn succession(have: &Tables, want: &Tables) -> Changes {
    let mut changes = difference(have, want);
    let v4 = pairs(&have.v4, &want.v4);
    let v6 = pairs(&have.v6, &want.v6);
    let mut seen = BTreeSet::new();
    for (old, new) in v4.into_iter().chain(v6).filter(|(old, new)| *old != 0 && *new != 0) {
        if !seen.insert(old) {
            continue;
        }
        let first = RulingKey { set: new.into(), ..FIRST_RULING };
        let rulings = want.rulings.range(first..).take_while(|(key, _)| key.set.get() == new);
        for (key, ruling) in rulings.filter(|(key, _)| key.identity.get() != 0) {
            let alias = RulingKey { set: old.into(), ..*key };
            changes.rulings.put.insert(alias, *ruling);
            changes.rulings.gone.insert(alias);
        }
    }
    changes
}

fn pairs<A: Ord>(have: &Family<A>, want: &Family<A>) -> Vec<(u32, u32)> {
    let both = want.subjects.iter();
    let both = both.filter_map(|(address, new)| Some((have.subjects.get(address)?, new)));
    both.flat_map(|(old, new)| [(old.ingress, new.ingress), (old.egress, new.egress)]).collect()
}

/// The highest number of a set or an identity that tables hold.
pub(crate) fn highest(have: &Tables) -> u32 {
    let rulings = have.rulings.keys().flat_map(|key| [key.set.get(), key.identity.get()]);
    let of_family = |subjects: Vec<Subject>| {
        subjects.into_iter().flat_map(|subject| [subject.ingress, subject.egress])
    };
    let v4 = of_family(have.v4.subjects.values().copied().collect());
    let v6 = of_family(have.v6.subjects.values().copied().collect());
    let identities = have.v4.identities.values().chain(have.v6.identities.values());
    let blocks = have.v4.blocks.values().chain(have.v6.blocks.values());
    rulings.chain(v4).chain(v6).chain(identities.chain(blocks).copied()).max().unwrap_or(0)
}
