//! The kernel's clocks as records hold them, without a program that reads them.

use std::fs;

use rustix::time::{ClockId, clock_getres, clock_gettime};

/// Seconds that jiffies start before zero with: five minutes, so that code which forgets that they wrap
/// fails soon (`INITIAL_JIFFIES`).
const HEAD_START: u64 = 300;
const NANOSECONDS: u64 = 1_000_000_000;

/// The moment now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Low bits of jiffies.
    pub(crate) jiffies: u32,
    /// How many of them make a second.
    rate: u32,
    /// See [`Affinity::since`](fairway_abi::Affinity::since).
    pub(crate) seconds: u32,
}

impl Now {
    /// Reads the clocks. Without `/proc/timer_list`, jiffies are off by as much as the kernel's boot
    /// lost, which is less than seconds.
    #[expect(clippy::cast_possible_truncation, reason = "records hold the low bits")]
    pub(crate) fn read() -> Self {
        let nanoseconds = |clock: rustix::time::Timespec| {
            let whole = u64::try_from(clock.tv_sec).unwrap_or(0) * NANOSECONDS;
            whole + u64::try_from(clock.tv_nsec).unwrap_or(0)
        };
        // The coarse clock moves once a jiffy, and says so.
        let tick = nanoseconds(clock_getres(ClockId::MonotonicCoarse)).max(1);
        let now = nanoseconds(clock_gettime(ClockId::Monotonic));
        let listed = fs::read_to_string("/proc/timer_list").ok();
        let listed = listed.as_deref().and_then(jiffies_in);
        let jiffies =
            listed.unwrap_or_else(|| (now / tick).wrapping_sub(HEAD_START * (NANOSECONDS / tick)));
        Self {
            jiffies: jiffies as u32,
            rate: (NANOSECONDS / tick).max(1) as u32,
            seconds: (now >> 30) as u32,
        }
    }

    /// How many seconds ago a record of jiffies was made; 0 for one made after this was read.
    pub(crate) fn seconds_since(self, stamp: u32) -> u32 {
        let ticks = self.jiffies.wrapping_sub(stamp);
        if ticks > u32::MAX / 2 { 0 } else { ticks / self.rate }
    }
}

/// What the kernel's list of timers says of them.
fn jiffies_in(list: &str) -> Option<u64> {
    list.lines().find_map(|line| line.strip_prefix("jiffies: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_are_read_off_the_list_of_timers() {
        let list = "  .idle_jiffies   : 4295640680\njiffies: 4295654165\n";
        assert_eq!(jiffies_in(list), Some(4_295_654_165));
        assert_eq!(jiffies_in("now at 3 nsecs"), None);
    }

    #[test]
    fn ages_survive_the_wrap_and_records_of_meanwhile() {
        let now = Now { jiffies: 100, rate: 100, seconds: 0 };
        assert_eq!(now.seconds_since(u32::MAX - 99), 2);
        assert_eq!(now.seconds_since(101), 0);
    }
}
