//! How fast a pod may send and receive.
//!
//! A limit is a rate and a burst, kept as one moment: when the meter would be empty again if nothing
//! more came (the "theoretical arrival time" of GCRA, ITU-T I.371). A packet moves it on by the time
//! that its bits take at the rate. As long as the moment is no further ahead than the burst takes, a
//! packet passes at once; what is further ahead either waits for so long, or is over the limit.
//!
//! ```text
//!            now          full                      full: the burst is used up
//! ────────────┼──────────────┼──────────────► time
//!   idle      │  passes      │  over the limit
//! ```
//!
//! Two processors may meet in one meter: both read the same moment, and what the one writes is lost to
//! the other's write. A pod then gets one of the two packets for nothing. That takes two packets within
//! the tens of nanoseconds between read and write; only if all of a pod's packets met so would it get as
//! many times its rate as there are processors.

use fairway_abi::{DropReason, Meter, MeterKey, meter};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// No packet is longer; a bound for the arithmetic below: so many bits times [`SECOND`] fit into 64.
const MAX_BYTES: u32 = 1 << 20;

/// Where meters are kept.
pub trait Meters {
    /// The meter of an interface's direction.
    fn meter(&self, key: &MeterKey) -> Option<Meter>;
    /// Writes a meter's moment.
    fn move_meter(&self, key: &MeterKey, next: u64);
    /// The kernel's monotonic clock in nanoseconds.
    fn nanoseconds(&self) -> u64;
}

/// Counts a packet that the interface's pod receives; `Err`: it is over the limit.
#[inline(always)]
pub fn receive<M: Meters>(meters: &M, ifindex: u32, bytes: u32) -> Result<(), DropReason> {
    let key = MeterKey { ifindex, direction: meter::INGRESS };
    police(meters, &key, bytes).then_some(()).ok_or(DropReason::IngressRate)
}

/// Counts a packet that the interface's pod sends; `Err`: it is over the limit.
#[inline(always)]
pub fn send<M: Meters>(meters: &M, ifindex: u32, bytes: u32) -> Result<(), DropReason> {
    let key = MeterKey { ifindex, direction: meter::EGRESS };
    police(meters, &key, bytes).then_some(()).ok_or(DropReason::EgressRate)
}

/// Whether a packet of so many bytes is within the limit. An interface without a meter has none.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn police<M: Meters>(meters: &M, key: &MeterKey, bytes: u32) -> bool {
    let Some(meter) = meters.meter(key) else { return true };
    let Some(next) = advance(&meter, meters.nanoseconds(), bytes) else { return false };
    meters.move_meter(key, next);
    true
}

/// The meter's moment after a packet of so many bytes; `None` if the packet is over the limit.
///
/// A packet passes if the meter is not full before it, so one may overdraw it, and even a burst
/// smaller than a packet lets each through in its time.
#[inline(always)]
pub fn advance(meter: &Meter, now: u64, bytes: u32) -> Option<u64> {
    let start = if meter.next > now { meter.next } else { now };
    if start - now > meter.patience {
        return None;
    }
    let bytes = if bytes < MAX_BYTES { bytes } else { MAX_BYTES };
    // The agent writes no rate of 0; this says so to the compiler.
    let rate = if meter.rate == 0 { 1 } else { meter.rate };
    Some(start.saturating_add(u64::from(bytes) * 8 * SECOND / rate))
}

/// How long a burst of so many bits takes at a rate in bits a second: [`Meter::patience`].
pub fn patience(rate: u64, burst: u64) -> u64 {
    let time = u128::from(burst) * u128::from(SECOND) / u128::from(rate.max(1));
    u64::try_from(time).unwrap_or(u64::MAX)
}

/// What a packet buffer of `length` bytes with its headers counts on the wire, where the device cuts
/// it into `segments`: each has headers of its own.
#[inline(always)]
pub fn wire_bytes(length: u32, headers: u32, segments: u32) -> u32 {
    // A packet has no more than 65,535 segments, and headers end within 255 bytes.
    let more = segments.saturating_sub(1) & 0xffff;
    length.wrapping_add(more * (headers & 0xff))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const MEGABIT: u64 = 1_000_000;

    fn meter(rate: u64, burst: u64) -> Meter {
        Meter { rate, patience: patience(rate, burst), next: 0 }
    }

    /// Bits that pass of packets that come at these moments.
    fn passed(meter: &mut Meter, packets: &[(u64, u32)]) -> u64 {
        let mut bits = 0;
        for (now, bytes) in packets {
            if let Some(next) = advance(meter, *now, *bytes) {
                meter.next = next;
                bits += u64::from(*bytes) * 8;
            }
        }
        bits
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let mut meter = meter(MEGABIT, 80_000);
        // 10,000 bytes of burst, and the packet that overdraws it.
        let burst: Vec<_> = (0..100).map(|_| (5, 1000)).collect();
        assert_eq!(passed(&mut meter, &burst), 88_000);
        // From then on one each 8 ms: the first after 9 ms, the last after 993.
        let later: Vec<_> = (1..=1000).map(|ms| (ms * 1_000_000, 1000)).collect();
        assert_eq!(passed(&mut meter, &later), 124 * 8000);
    }

    #[test]
    fn a_packet_longer_than_the_burst_passes_in_its_time() {
        let mut meter = meter(MEGABIT, 1);
        assert_eq!(passed(&mut meter, &[(10, 1500), (11, 1500), (12_000_100, 1500)]), 24_000);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let slow = Meter { rate: 1, patience: u64::MAX, next: u64::MAX - 5 };
        assert_eq!(advance(&slow, 7, u32::MAX), Some(u64::MAX));
        let none = Meter { rate: 0, patience: 0, next: 0 };
        assert!(advance(&none, 7, u32::MAX).is_some());
        assert_eq!(patience(1, u64::MAX), u64::MAX);
        assert_eq!(patience(u64::MAX, 1), 0);
        assert_eq!(wire_bytes(64_000, 54, 45), 64_000 + 44 * 54);
        assert_eq!(wire_bytes(60, 54, 0), 60);
    }

    #[test]
    fn a_direction_has_its_own_meter_and_its_own_reason() {
        let meters = World::new(&[(3, super::meter::EGRESS, meter(MEGABIT, 8))]);
        assert_eq!(send(&meters, 3, 1500), Ok(()));
        assert_eq!(send(&meters, 3, 1500), Err(DropReason::EgressRate));
        assert_eq!(receive(&meters, 3, 1500), Ok(()), "it may receive what it likes");
        assert_eq!(send(&meters, 4, 1500), Ok(()), "nobody limits this one");
    }

    proptest! {
        /// Over any time, never more than the rate, the burst and one packet; and of a sender that
        /// always has something, never less than the rate but for one packet.
        #[test]
        fn what_passes_is_what_was_promised(
            rate in 1_000u64..10_000_000_000,
            burst in 1u64..100_000_000,
            gaps in prop::collection::vec((0u64..50_000_000, 40u32..65_000), 1..300),
        ) {
            let longest = gaps.iter().map(|(_, bytes)| u64::from(*bytes) * 8).max().unwrap();
            let mut now = SECOND;
            let mut limit = meter(rate, burst);
            let mut bits = 0u64;
            for (gap, bytes) in &gaps {
                now += gap;
                if let Some(next) = advance(&limit, now, *bytes) {
                    limit.next = next;
                    bits += u64::from(*bytes) * 8;
                }
            }
            let time = u128::from(now - SECOND);
            let budget = u128::from(rate) * time / u128::from(SECOND);
            // Rounding takes less than a nanosecond of each packet's time.
            let rounding = u128::from(rate) * gaps.len() as u128 / u128::from(SECOND) + 1;
            prop_assert!(u128::from(bits) <= budget + u128::from(burst + longest) + rounding);

            // Somebody who asks again and again, a packet at a time.
            let (mut limit, mut bits) = (meter(rate, burst), 0u128);
            let bytes = gaps[0].1;
            let step = (u64::from(bytes) * 8 * SECOND / rate / 4).max(1);
            for turn in 0..200u64 {
                if let Some(next) = advance(&limit, SECOND + turn * step, bytes) {
                    limit.next = next;
                    bits += u128::from(bytes) * 8;
                }
            }
            let budget = u128::from(rate) * u128::from(199 * step) / u128::from(SECOND);
            prop_assert!(bits + u128::from(bytes) * 8 >= budget.min(200 * u128::from(bytes) * 8));
        }
    }

    struct World {
        meters: RefCell<HashMap<MeterKey, Meter>>,
        now: Cell<u64>,
    }

    impl World {
        fn new(meters: &[(u32, u32, Meter)]) -> Self {
            let meters = meters.iter().map(|(ifindex, direction, meter)| {
                (MeterKey { ifindex: *ifindex, direction: *direction }, *meter)
            });
            Self { meters: RefCell::new(meters.collect()), now: Cell::new(SECOND) }
        }
    }

    impl Meters for World {
        fn meter(&self, key: &MeterKey) -> Option<Meter> {
            self.meters.borrow().get(key).copied()
        }

        fn move_meter(&self, key: &MeterKey, next: u64) {
            self.meters.borrow_mut().get_mut(key).expect("a meter").next = next;
        }

        fn nanoseconds(&self) -> u64 {
            self.now.get()
        }
    }
}
