//! Consistent choice by a flow's bits: the table of Maglev (Eisenbud et al., NSDI 2016, 3.4).
//!
//! Every endpoint has a permutation of all places of its own, made of its address and port alone. In
//! turns, each takes the first place of its permutation that nobody has, until none is left. All nodes
//! that know the same endpoints so make the same table; each endpoint has as many places as the others,
//! give or take one; and when one leaves, few places but its own change hands.
//!
//! Where weights differ, the heaviest has a place in every turn, one of half its weight in every other,
//! and so on; all begin with one.

use std::collections::{BTreeMap, BTreeSet};

use fairway_abi::Endpoint;
use zerocopy::IntoBytes;

use crate::Family;

/// Numbers of places: primes, so that any step from place to place visits all.
const SIZES: [usize; 6] = [251, 1021, 4093, 16_381, 65_521, 131_071];
/// With so many places for each endpoint, their shares differ by one in a hundred.
const PLACES_EACH: usize = 100;
/// Where weights differ, the lightest has as many if that makes no more than so many times the places.
const MOST_TIMES: usize = 16;

/// The endpoint of each place, where endpoints have weights other than 1 as `weights` says; empty if there
/// are none.
pub(crate) fn table<A: Family>(
    endpoints: &BTreeSet<Endpoint<A>>,
    weights: &BTreeMap<Endpoint<A>, u16>,
) -> Vec<Endpoint<A>> {
    let weights: Vec<usize> = endpoints
        .iter()
        .map(|endpoint| usize::from(weights.get(endpoint).copied().unwrap_or(1)).max(1))
        .collect();
    let (Some(lightest), Some(heaviest)) = (weights.iter().min(), weights.iter().max()) else {
        return Vec::new();
    };
    let shares = weights.iter().sum::<usize>().div_ceil(*lightest);
    let wanted = shares.min(endpoints.len() * MOST_TIMES) * PLACES_EACH;
    let size = SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1]);
    let mut due: Vec<usize> = weights.iter().map(|weight| heaviest - weight).collect();
    let mut turns: Vec<Permutation> =
        endpoints.iter().map(|endpoint| Permutation::new(endpoint.as_bytes(), size)).collect();
    let mut places: Vec<Option<usize>> = vec![None; size];
    let mut left = size;
    while left > 0 {
        for (number, turn) in turns.iter_mut().enumerate() {
            due[number] += weights[number];
            if due[number] < *heaviest {
                continue;
            }
            due[number] -= heaviest;
            let Some(free) = turn.find(|place| places[*place].is_none()) else { continue };
            places[free] = Some(number);
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    let endpoints: Vec<&Endpoint<A>> = endpoints.iter().collect();
    places.into_iter().flatten().map(|number| *endpoints[number]).collect()
}

/// All places in an order of their own.
struct Permutation {
    next: usize,
    step: usize,
    size: usize,
    left: usize,
}

impl Permutation {
    fn new(name: &[u8], size: usize) -> Self {
        let start = hash(name, 0x9ae1_6a3b_2f90_404f);
        let step = hash(name, 0xc949_d7c7_509e_6557);
        let within = |number: u64, size: usize| {
            usize::try_from(number % size as u64).expect("less than a size is a size")
        };
        Self { next: within(start, size), step: within(step, size - 1) + 1, size, left: size }
    }
}

impl Iterator for Permutation {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let place = self.next;
        self.next = (place + self.step) % self.size;
        Some(place)
    }
}

/// FNV-1a from a start of its own, and the finalizer of MurmurHash3 for what is short.
fn hash(bytes: &[u8], start: u64) -> u64 {
    let mut hash = start;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fairway_abi::V4;
    use zerocopy::network_endian::U16;

    use super::*;

    fn endpoints(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<Endpoint<V4>> {
        let endpoint =
            |last| Endpoint { address: [10, 244, 0, last], port: U16::new(8080), reserved: [0; 2] };
        numbers.into_iter().map(endpoint).collect()
    }

    #[test]
    fn shares_are_equal() {
        for count in [1, 2, 3, 7, 40, 163] {
            let table = table(&endpoints(0..count), &BTreeMap::new());
            assert!(table.len() >= usize::from(count) * PLACES_EACH, "{count}: {}", table.len());
            let mut shares = BTreeMap::<_, usize>::new();
            for endpoint in &table {
                *shares.entry(endpoint).or_default() += 1;
            }
            let (least, most) = (shares.values().min(), shares.values().max());
            assert_eq!(shares.len(), usize::from(count));
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{shares:?}");
        }
    }

    #[test]
    fn whoever_leaves_takes_few_others_along() {
        let weights = BTreeMap::new();
        let all = table(&endpoints(0..10), &weights);
        let without = table(&endpoints((0..10).filter(|last| *last != 4)), &weights);
        assert_eq!(all.len(), without.len());
        let moved = all.iter().zip(&without).filter(|(before, after)| before != after).count();
        let own = all.iter().filter(|endpoint| endpoint.address[3] == 4).count();
        assert!(moved >= own && moved - own < all.len() / 20, "{moved} of {} moved", all.len());
    }

    #[test]
    fn shares_are_as_the_weights() {
        for weights in [&[3, 1][..], &[1000, 1], &[100, 50, 25, 1], &[2, 2, 2]] {
            let all = endpoints(0..u8::try_from(weights.len()).unwrap());
            let of: BTreeMap<_, u16> = all.iter().copied().zip(weights.iter().copied()).collect();
            let table = table(&all, &of);
            let sum: u16 = weights.iter().sum();
            for (endpoint, weight) in &of {
                let share = table.iter().filter(|one| *one == endpoint).count();
                let exact = table.len() as f64 * f64::from(*weight) / f64::from(sum);
                assert!(share > 0 && (share as f64 - exact).abs() <= 2.0, "{weights:?}: {share}");
            }
        }
    }

    #[test]
    fn a_weight_that_changes_moves_little_more_than_what_it_says() {
        let all = endpoints(0..9);
        let heavier = all.first().copied().map(|one| (one, 2)).into_iter().collect();
        let (before, after) = (table(&all, &BTreeMap::new()), table(&all, &heavier));
        assert_eq!(before.len(), after.len());
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        // It gets 2 of 10 where it had 1 of 9.
        assert!(moved < before.len() * 3 / 20, "{moved} of {} moved", before.len());
    }

    #[test]
    fn nobody_makes_an_empty_table() {
        assert!(table(&endpoints([]), &BTreeMap::new()).is_empty());
    }
}
