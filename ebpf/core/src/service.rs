//! The choice of an endpoint.

use fairway_abi::{Address, DropReason, Endpoint, EndpointKey, Frontend, FrontendKey};

use crate::Tables;

/// Picks the endpoint for a new flow to `key`'s frontend by `dice`.
///
/// The list may shrink between the two reads: a missing slot is then looked for once more with the
/// frontend's new length. Only a list that shrinks twice within that time loses the packet, counted
/// as [`DropReason::NoEndpoint`]; the sender's retransmission heals it.
#[inline(always)]
pub fn choose<A: Address, T: Tables<A>>(
    tables: &T,
    key: &FrontendKey<A>,
    frontend: &Frontend,
    dice: u32,
) -> Result<Endpoint<A>, DropReason> {
    if let Some(endpoint) = pick(tables, frontend, dice) {
        return Ok(endpoint);
    }
    let frontend = tables.frontend(key).ok_or(DropReason::NoEndpoint)?;
    pick(tables, &frontend, dice).ok_or(DropReason::NoEndpoint)
}

#[inline(always)]
fn pick<A: Address, T: Tables<A>>(
    tables: &T,
    frontend: &Frontend,
    dice: u32,
) -> Option<Endpoint<A>> {
    if frontend.endpoints == 0 {
        return None;
    }
    tables.endpoint(&EndpointKey {
        service: frontend.service,
        generation: frontend.generation,
        slot: scale(dice, frontend.endpoints),
    })
}

/// Maps 32 uniform bits to `0..length` without a division (Lemire, "Fast random integer generation
/// in an interval"); the bias is below `length / 2^32`.
#[inline(always)]
fn scale(dice: u32, length: u32) -> u32 {
    ((u64::from(dice) * u64::from(length)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn selection_is_uniform_over_the_list() {
        let mut counts = [0u32; 3];
        for i in 0..30_000u32 {
            counts[scale(i.wrapping_mul(0x9e37_79b9), 3) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (9_800..10_200).contains(&n)), "{counts:?}");
    }

    #[test]
    fn a_list_that_shrank_is_read_again() {
        let mut tables = Memory::<[u8; 4]>::default();
        let key = tables.service([10, 96, 0, 1], 80, 6, &[([10, 244, 0, 2], 8080)]);
        let stale = Frontend { endpoints: 9, ..tables.frontends[&key] };
        let endpoint = choose(&tables, &key, &stale, u32::MAX).expect("the frontend has one");
        assert_eq!(endpoint.address, [10, 244, 0, 2]);
    }

    #[test]
    fn an_empty_list_is_a_counted_drop() {
        let mut tables = Memory::<[u8; 4]>::default();
        let key = tables.service([10, 96, 0, 1], 80, 6, &[]);
        let frontend = tables.frontends[&key];
        assert_eq!(choose(&tables, &key, &frontend, 7), Err(DropReason::NoEndpoint));
    }
}
