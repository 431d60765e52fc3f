//! The kernel's clock, as flow records hold it.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::dataplane::Dataplane;

/// Turns the kernel's ticks into seconds. How many make a second is a choice of its builder that it
/// does not tell, so it is measured.
#[derive(Debug)]
pub(crate) struct Clock {
    start: (Instant, u32),
}

/// The choices there are (`CONFIG_HZ`).
const RATES: [u32; 4] = [100, 250, 300, 1000];

impl Clock {
    /// Starts to measure.
    pub(crate) fn start(dataplane: &mut Dataplane) -> Result<Self> {
        Ok(Self { start: (Instant::now(), dataplane.clock()?) })
    }

    /// The moment now, once enough time has passed to tell how long a tick is.
    pub(crate) fn now(&self, dataplane: &mut Dataplane) -> Result<Option<Moment>> {
        let ticks = dataplane.clock()?;
        let elapsed = self.start.0.elapsed();
        if elapsed < Duration::from_secs(1) {
            return Ok(None);
        }
        Ok(Some(Moment { ticks, rate: rate(ticks.wrapping_sub(self.start.1), elapsed) }))
    }
}

/// A moment on the kernel's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    ticks: u32,
    rate: u32,
}

impl Moment {
    /// How many seconds before this moment a time stamp was made; 0 for one made after it, by a
    /// packet that passed meanwhile.
    pub(crate) fn seconds_since(self, stamp: u32) -> u32 {
        let ticks = self.ticks.wrapping_sub(stamp);
        if ticks > u32::MAX / 2 { 0 } else { ticks / self.rate }
    }
}

/// The rate nearest to `ticks` in `elapsed`.
fn rate(ticks: u32, elapsed: Duration) -> u32 {
    let measured = f64::from(ticks) / elapsed.as_secs_f64();
    let distance = |rate: &u32| (f64::from(*rate) / measured).ln().abs();
    RATES.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(RATES[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tick_rate_is_the_nearest_choice() {
        for (ticks, rate_is) in [(2_490, 250), (9_800, 1000), (1_010, 100), (3_030, 300)] {
            assert_eq!(rate(ticks, Duration::from_secs(10)), rate_is);
        }
    }

    #[test]
    fn a_packet_that_passes_while_the_tables_are_read_is_not_old() {
        let now = Moment { ticks: 1000, rate: 250 };
        assert_eq!(now.seconds_since(0), 4);
        assert_eq!(now.seconds_since(1000), 0);
        assert_eq!(now.seconds_since(1001), 0);
        assert_eq!(Moment { ticks: 100, rate: 100 }.seconds_since(u32::MAX - 99), 2);
    }
}
