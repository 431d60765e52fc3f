//! Consistent choice by a flow's bits: the table of Maglev (Eisenbud et al., NSDI 2016, 3.4).
//!
//! Every endpoint has a permutation of all places of its own, made of its address and port alone. In
//! turns, each takes the first place of its permutation that nobody has, until none is left. All nodes
//! that know the same endpoints so make the same table; each endpoint has as many places as the others,
//! give or take one; and when one leaves, few places but its own change hands.

use std::collections::BTreeSet;

use fairway_abi::Endpoint;
use zerocopy::IntoBytes;

use crate::Family;

/// Numbers of places: primes, so that any step from place to place visits all.
const SIZES: [usize; 6] = [251, 1021, 4093, 16_381, 65_521, 131_071];
/// With so many places for each endpoint, their shares differ by one in a hundred.
const PLACES_EACH: usize = 100;

/// The endpoint of each place; empty if there are none.
pub(crate) fn table<A: Family>(endpoints: &BTreeSet<Endpoint<A>>) -> Vec<Endpoint<A>> {
    if endpoints.is_empty() {
        return Vec::new();
    }
    let wanted = endpoints.len() * PLACES_EACH;
    let size = SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1]);
    let mut turns: Vec<Permutation> =
        endpoints.iter().map(|endpoint| Permutation::new(endpoint.as_bytes(), size)).collect();
    let mut places: Vec<Option<usize>> = vec![None; size];
    let mut left = size;
    while left > 0 {
        for (number, turn) in turns.iter_mut().enumerate() {
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
            let table = table(&endpoints(0..count));
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
        let all = table(&endpoints(0..10));
        let without = table(&endpoints((0..10).filter(|last| *last != 4)));
        assert_eq!(all.len(), without.len());
        let moved = all.iter().zip(&without).filter(|(before, after)| before != after).count();
        let own = all.iter().filter(|endpoint| endpoint.address[3] == 4).count();
        assert!(moved >= own && moved - own < all.len() / 20, "{moved} of {} moved", all.len());
    }

    #[test]
    fn nobody_makes_an_empty_table() {
        assert!(table(&endpoints([])).is_empty());
    }
}
