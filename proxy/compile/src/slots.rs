//! Slots in proportion to weights, for lists that are chosen from at random or in turn.
//!
//! An endpoint of weight 3 has three slots for each one of an endpoint of weight 1. Weights are taken
//! as they are, divided by what they have in common, as long as that makes no more than
//! [`MOST`] slots, or [`MOST_EACH`] for each endpoint if there are many; beyond that shares are rounded
//! to so many slots, and everybody has one at least.
//!
//! The slots of one endpoint are as far apart as those of the others allow, so that turns do not send it
//! one connection after the other. Each lays its slots evenly over a circle, and those of one weight begin
//! at places that are far from each other however many there are: multiples of the golden ratio.

use std::collections::{BTreeMap, BTreeSet};

use fairway_abi::Endpoint;

use crate::Family;

/// Slots that a list of few endpoints may have.
const MOST: u64 = 1024;
/// Slots that a list of many may have for each of them.
const MOST_EACH: u64 = 16;

/// The endpoint of each slot, where endpoints have weights other than 1 as `weights` says.
pub(crate) fn table<A: Family>(
    endpoints: &BTreeSet<Endpoint<A>>,
    weights: &BTreeMap<Endpoint<A>, u16>,
) -> Vec<Endpoint<A>> {
    /// 2^64 by the golden ratio.
    const RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
    let weight = |endpoint: &Endpoint<A>| weights.get(endpoint).copied().unwrap_or(1);
    let mut by_weight: Vec<_> = endpoints.iter().map(|one| (weight(one), one)).collect();
    by_weight.sort_unstable();
    let weights: Vec<u64> = by_weight.iter().map(|(weight, _)| u64::from(*weight)).collect();
    let mut slots = Vec::new();
    for (number, ((_, endpoint), count)) in (0_u64..).zip(by_weight.iter().zip(counts(&weights))) {
        let start = number.wrapping_mul(RATIO) >> 32;
        slots.extend((0..count).map(|slot| (((slot << 32) + start) / count, endpoint)));
    }
    slots.sort_unstable();
    slots.into_iter().map(|(_, endpoint)| **endpoint).collect()
}

/// How many slots each of these weights has; none of them is 0.
fn counts(weights: &[u64]) -> Vec<u64> {
    let common = weights.iter().copied().fold(0, gcd).max(1);
    let number = weights.len() as u64;
    let (sum, most) = (weights.iter().sum::<u64>(), MOST.max(number * MOST_EACH));
    if sum / common <= most {
        return weights.iter().map(|weight| weight / common).collect();
    }
    // One each, and the rest by weight, so that who has less never gets more.
    let spare = most - number;
    weights.iter().map(|weight| 1 + weight * spare / sum).collect()
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
}

#[cfg(test)]
mod tests {
    use fairway_abi::V4;
    use zerocopy::network_endian::U16;

    use super::*;

    fn endpoint(number: usize) -> Endpoint<V4> {
        let [.., high, low] = number.to_be_bytes();
        Endpoint { address: [10, 244, high, low], port: U16::new(8080), reserved: [0; 2] }
    }

    /// The slots of endpoints with these weights, each by its number.
    fn slots(weights: &[u16]) -> Vec<usize> {
        let all = (0..weights.len()).map(endpoint).collect();
        let weights = weights.iter().enumerate().map(|(at, weight)| (endpoint(at), *weight));
        let table = table(&all, &weights.collect());
        let number = |endpoint: &Endpoint<V4>| {
            usize::from(u16::from_be_bytes([endpoint.address[2], endpoint.address[3]]))
        };
        table.iter().map(number).collect()
    }

    fn shares(slots: &[usize], of: usize) -> Vec<usize> {
        (0..of).map(|one| slots.iter().filter(|slot| **slot == one).count()).collect()
    }

    #[test]
    fn shares_are_the_weights_without_what_they_have_in_common() {
        for (weights, expected) in [
            (&[1, 1, 1][..], &[1, 1, 1][..]),
            (&[300, 100], &[3, 1]),
            (&[4, 6], &[2, 3]),
            (&[999, 1], &[999, 1]),
            (&[7], &[1]),
            (&[], &[]),
        ] {
            assert_eq!(shares(&slots(weights), weights.len()), expected, "{weights:?}");
        }
    }

    #[test]
    fn a_heavy_endpoint_gets_no_runs() {
        // The longest row of one endpoint's slots, round the end: none can be shorter than what is
        // to be laid between as many others.
        let longest = |weights: &[u16]| {
            let slots = slots(weights);
            let twice: Vec<_> = slots.iter().chain(&slots).collect();
            let runs = twice.chunk_by(|one, other| one == other).map(<[_]>::len);
            runs.max().unwrap_or(0)
        };
        for (weights, most) in [
            (&[5, 1, 1][..], 3),
            (&[1, 5, 1], 3),
            (&[1, 1, 5], 3),
            (&[2, 2, 2, 1], 1),
            (&[4, 1, 1, 1, 1], 2),
            (&[3, 1], 3),
            (&[10, 10, 1], 2),
        ] {
            assert!(longest(weights) <= most, "{weights:?}: {:?}", slots(weights));
        }
    }

    #[test]
    fn slots_are_bounded_and_in_the_order_of_the_weights() {
        for number in [2_usize, 3, 50, 64, 65, 200] {
            let weights: Vec<u16> = (0..number)
                .map(|at| u16::try_from(1 + at * 7919 % 1000).expect("at most 1000"))
                .collect();
            let slots = slots(&weights);
            let shares = shares(&slots, number);
            let most = MOST.max(MOST_EACH * number as u64);
            assert!(slots.len() as u64 <= most, "{number}: {}", slots.len());
            let sum: f64 = weights.iter().copied().map(f64::from).sum();
            let of = slots.len() as f64;
            for (weight, share) in weights.iter().zip(&shares) {
                // One slot is everybody's, and one may be rounded away.
                let exact = f64::from(*weight) / sum * of;
                let got = *share as f64;
                let each = exact * number as f64 / of;
                assert!(*share > 0 && (got - exact).abs() <= each + 2.0, "{weight}: {got} {exact}");
            }
            let pairs: Vec<_> = weights.iter().zip(&shares).collect();
            for (one, other) in pairs.iter().zip(pairs.iter().skip(1)) {
                assert!(one.0 <= other.0 || one.1 >= other.1, "{one:?} {other:?}");
            }
        }
    }
}
