//! How likely each endpoint is where the less busy of two is chosen.

use fairway_core::service::Burden;

/// What all of [`odds`] come to, give or take what is rounded.
pub(crate) const OF: u32 = 1_000_000;
/// With more endpoints than this, comparing all with all takes too long.
const MOST: usize = 2000;

/// For each endpoint, by how many slots it has and what it has to do, how many of [`OF`] new connections
/// would be its own now; `None`: there are too many.
pub(crate) fn odds(ends: &[(u32, Burden)]) -> Option<Vec<u32>> {
    if ends.len() > MOST {
        return None;
    }
    let slots: u128 = ends.iter().map(|(slots, _)| u128::from(*slots)).sum();
    if slots < 2 {
        return Some(vec![OF; ends.len()]);
    }
    let wins = ends.iter().enumerate().map(|(at, (own, burden))| {
        let own = u128::from(*own);
        let others = ends.iter().enumerate().filter(|(other, _)| *other != at);
        // Both may come first, and who does stays unless the other one has less to do.
        let won = others.map(|(_, (slots, other))| {
            let stays = u128::from(!other.is_less_than(burden));
            let comes = u128::from(burden.is_less_than(other));
            own * u128::from(*slots) * (stays + comes)
        });
        own * (own - 1) + won.sum::<u128>()
    });
    let parts = wins.map(|won| won * u128::from(OF) / (slots * (slots - 1)));
    Some(parts.map(|parts| u32::try_from(parts).unwrap_or(OF)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ends: &[(u32, u32)]) -> Vec<u32> {
        let burden = |load: u32| Burden { load, strength: 256 };
        let ends: Vec<_> = ends.iter().map(|(slots, load)| (*slots, burden(*load))).collect();
        odds(&ends).expect("few endpoints")
    }

    #[test]
    fn the_less_busy_of_two_slots_is_chosen() {
        assert_eq!(of(&[(1, 5)]), [OF]);
        assert_eq!(of(&[(1, 5), (1, 5)]), [500_000, 500_000]);
        assert_eq!(of(&[(1, 5), (1, 4)]), [0, OF]);
        assert_eq!(of(&[(1, 0), (1, 1), (1, 2)]), [666_666, 333_333, 0]);
        // Two of three slots are one's own: a third of all pairs has no other.
        assert_eq!(of(&[(2, 9), (1, 0)]), [333_333, 666_666]);
        assert_eq!(of(&[]), [0; 0]);
    }
}
