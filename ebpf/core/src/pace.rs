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
//! What a pod sends beyond its limit waits where it can: if it leaves by a device that holds packets
//! until a moment they carry (`fq` of Linux), the moment is where it lies on the line above, less the
//! burst. Everything else that is over a limit is dropped: what pods of one node send each other, and
//! what they receive. Of what waits there is a bound in time, and one in packets, because the device
//! has it, too, and drops what the meter has counted. It is a bound of the meter's moment as well: a
//! device that turns out to hold nothing lets a pod have so much in advance, and no more.
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

/// How far ahead of its burst a pod's traffic may be, in nanoseconds. `fq` takes what is to depart within
/// ten seconds.
const HORIZON: u64 = 2 * SECOND;
/// How many packets of a pod may wait, of the size they have on average. `fq` lets a flow have a hundred;
/// a socket that sends datagrams of full size has room for 92 by default, and then waits itself.
const WAITING: u64 = 96;

/// Where meters are kept.
pub trait Meters {
    /// The meter of an interface's direction.
    fn meter(&self, key: &MeterKey) -> Option<Meter>;
    /// Writes a meter's moment and its packets' distance.
    fn move_meter(&self, key: &MeterKey, moved: &Moved);
    /// The kernel's monotonic clock in nanoseconds.
    fn nanoseconds(&self) -> u64;
}

/// Counts a packet that the interface's pod receives; `Err`: it is over the limit.
#[inline(always)]
pub fn receive<M: Meters>(meters: &M, ifindex: u32, bytes: u32) -> Result<(), DropReason> {
    let key = MeterKey { ifindex, direction: meter::INGRESS };
    police(meters, &key, bytes).then_some(()).ok_or(DropReason::IngressRate)
}

/// What a pod's limit says of a packet that it sends, before it is known which way the packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Sending {
    /// Within the limit, and counted.
    Within,
    /// Over it, and not counted: it may [`wait`] if something holds it on its way.
    Ahead,
    /// Over it, and more waits already than may.
    Over,
}

/// Counts a packet that the interface's pod sends, if it is within the limit.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn send<M: Meters>(meters: &M, ifindex: u32, bytes: u32) -> Sending {
    let key = MeterKey { ifindex, direction: meter::EGRESS };
    let Some(meter) = meters.meter(&key) else { return Sending::Within };
    let now = meters.nanoseconds();
    if let Some(moved) = advance(&meter, now, bytes) {
        meters.move_meter(&key, &moved);
        return Sending::Within;
    }
    if may_wait(&meter, now) { Sending::Ahead } else { Sending::Over }
}

/// Counts a packet that is [`Sending::Ahead`] and goes where it is held. Answers the moment of the
/// monotonic clock, in nanoseconds, at which it is to depart, and which is never before the one that its
/// sender asked for (`wish`; 0: none); 0: it is over the limit.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn wait<M: Meters>(meters: &M, ifindex: u32, bytes: u32, wish: u64) -> u64 {
    let key = MeterKey { ifindex, direction: meter::EGRESS };
    let now = meters.nanoseconds();
    // Nobody limits it any more.
    let Some(meter) = meters.meter(&key) else { return now };
    if !may_wait(&meter, now) {
        return 0;
    }
    meters.move_meter(&key, &count(&meter, now, bytes));
    let departure = now + ahead(&meter, now);
    if wish > departure { wish } else { departure }
}

/// Whether a packet of so many bytes is within the limit. An interface without a meter has none.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn police<M: Meters>(meters: &M, key: &MeterKey, bytes: u32) -> bool {
    let Some(meter) = meters.meter(key) else { return true };
    let Some(moved) = advance(&meter, meters.nanoseconds(), bytes) else { return false };
    meters.move_meter(key, &moved);
    true
}

/// What a packet changes of its meter: [`Meter::next`] and [`Meter::spacing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// See [`Meter::next`].
    pub next: u64,
    /// See [`Meter::spacing`].
    pub spacing: u64,
}

/// The meter after a packet of so many bytes; `None` if the packet is over the limit.
///
/// A packet passes if the meter is not full before it, so one may overdraw it, and even a burst
/// smaller than a packet lets each through in its time.
#[inline(always)]
pub fn advance(meter: &Meter, now: u64, bytes: u32) -> Option<Moved> {
    if ahead(meter, now) != 0 {
        return None;
    }
    Some(count(meter, now, bytes))
}

/// For how long a packet would have to wait; 0: it passes at once.
#[inline(always)]
fn ahead(meter: &Meter, now: u64) -> u64 {
    meter.next.saturating_sub(now).saturating_sub(meter.patience)
}

/// Whether few enough packets wait for one more.
#[inline(always)]
fn may_wait(meter: &Meter, now: u64) -> bool {
    let ahead = ahead(meter, now);
    ahead <= HORIZON && ahead / WAITING <= meter.spacing
}

#[inline(always)]
fn count(meter: &Meter, now: u64, bytes: u32) -> Moved {
    let start = if meter.next > now { meter.next } else { now };
    let bytes = if bytes < MAX_BYTES { bytes } else { MAX_BYTES };
    // The agent writes no rate of 0; this says so to the compiler.
    let rate = if meter.rate == 0 { 1 } else { meter.rate };
    let time = u64::from(bytes) * 8 * SECOND / rate;
    // An average of as many packets as may wait.
    let spacing = match meter.spacing {
        0 => time,
        spacing => spacing - spacing / WAITING + time / WAITING,
    };
    Moved { next: start.saturating_add(time), spacing }
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
        Meter { rate, patience: patience(rate, burst), next: 0, spacing: 0 }
    }

    fn apply(meter: &mut Meter, moved: &Moved) {
        *meter = Meter { next: moved.next, spacing: moved.spacing, ..*meter };
    }

    /// Bits that pass of packets that come at these moments.
    fn passed(meter: &mut Meter, packets: &[(u64, u32)]) -> u64 {
        let mut bits = 0;
        for (now, bytes) in packets {
            if let Some(moved) = advance(meter, *now, *bytes) {
                apply(meter, &moved);
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
        let slow = Meter { rate: 1, patience: u64::MAX, next: u64::MAX - 5, spacing: 0 };
        let longest = u64::from(MAX_BYTES) * 8 * SECOND;
        let moved = Moved { next: u64::MAX, spacing: longest };
        assert_eq!(advance(&slow, 7, u32::MAX), Some(moved));
        let spaced = Meter { spacing: longest, ..slow };
        assert_eq!(advance(&spaced, 7, u32::MAX), Some(moved), "it stays at most what it was");
        assert!(may_wait(&Meter { patience: 0, next: 7, spacing: u64::MAX, ..slow }, 7));
        let none = Meter { rate: 0, patience: 0, next: 0, spacing: 0 };
        assert!(advance(&none, 7, u32::MAX).is_some());
        assert_eq!(patience(1, u64::MAX), u64::MAX);
        assert_eq!(patience(u64::MAX, 1), 0);
        assert_eq!(wire_bytes(64_000, 54, 45), 64_000 + 44 * 54);
        assert_eq!(wire_bytes(60, 54, 0), 60);
    }

    #[test]
    fn a_direction_has_its_own_meter_and_its_own_reason() {
        let meters = World::new(&[(3, super::meter::EGRESS, meter(MEGABIT, 8))]);
        assert_eq!(send(&meters, 3, 1500), Sending::Within);
        assert_eq!(send(&meters, 3, 1500), Sending::Ahead);
        assert_eq!(receive(&meters, 3, 1500), Ok(()), "it may receive what it likes");
        assert_eq!(send(&meters, 4, 1500), Sending::Within, "nobody limits this one");
        assert_eq!(wait(&meters, 4, 1500, 0), SECOND, "nor makes it wait");
        let meters = World::new(&[(3, super::meter::INGRESS, meter(MEGABIT, 8))]);
        assert_eq!(receive(&meters, 3, 1500), Ok(()));
        assert_eq!(receive(&meters, 3, 1500), Err(DropReason::IngressRate));
        assert_eq!(send(&meters, 3, 1500), Sending::Within, "it may send what it likes");
    }

    #[test]
    fn what_is_ahead_departs_at_the_rate() {
        let meters = World::new(&[(3, super::meter::EGRESS, meter(MEGABIT, 16_000))]);
        // 2000 bytes of burst, and one packet more that overdraws it.
        for _ in 0..3 {
            assert_eq!(send(&meters, 3, 1000), Sending::Within);
        }
        // Asking counts nothing, whatever becomes of the packet.
        for _ in 0..2 {
            assert_eq!(send(&meters, 3, 1000), Sending::Ahead);
        }
        let departures: Vec<_> = (0..3).map(|_| wait(&meters, 3, 1000, 0) - SECOND).collect();
        assert_eq!(departures, [8_000_000, 16_000_000, 24_000_000]);
        assert_eq!(wait(&meters, 3, 1000, 7), SECOND + 32_000_000, "not before its turn");
        assert_eq!(wait(&meters, 3, 1000, 9 * SECOND), 9 * SECOND, "not before it is meant to");
        // What is dropped where nothing holds it leaves the others their turns.
        assert_eq!(send(&meters, 3, 1000), Sending::Ahead);
        assert_eq!(wait(&meters, 3, 1000, 0), SECOND + 48_000_000);
    }

    #[test]
    fn no_more_waits_than_the_queue_takes() {
        // A queue of its own for each size: of small packets as many wait as of large ones.
        for bytes in [64, 1500] {
            let meters = World::new(&[(3, super::meter::EGRESS, meter(MEGABIT, 8))]);
            assert_eq!(send(&meters, 3, bytes), Sending::Within);
            let waiting = (0..200).take_while(|_| wait(&meters, 3, bytes, 0) != 0).count();
            assert_eq!(waiting, 96, "packets of {bytes} bytes");
            assert_eq!(send(&meters, 3, bytes), Sending::Over);
        }
        // At a low rate, time ends it first.
        let meters = World::new(&[(3, super::meter::EGRESS, meter(10_000, 8))]);
        assert_eq!(send(&meters, 3, 1250), Sending::Within);
        // A bit less than a second apart: the burst of one byte goes first.
        let burst = patience(10_000, 8);
        assert_eq!(wait(&meters, 3, 1250, 0), 2 * SECOND - burst);
        assert_eq!(wait(&meters, 3, 1250, 0), 3 * SECOND - burst);
        assert_eq!(send(&meters, 3, 1250), Sending::Over);
        assert_eq!(wait(&meters, 3, 1250, 0), 0);
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
                if let Some(moved) = advance(&limit, now, *bytes) {
                    apply(&mut limit, &moved);
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
                if let Some(moved) = advance(&limit, SECOND + turn * step, bytes) {
                    apply(&mut limit, &moved);
                    bits += u128::from(bytes) * 8;
                }
            }
            let budget = u128::from(rate) * u128::from(199 * step) / u128::from(SECOND);
            prop_assert!(bits + u128::from(bytes) * 8 >= budget.min(200 * u128::from(bytes) * 8));
        }
    }

    proptest! {
        /// Whoever sends without end, in packets of any size, gets the rate and no more, and of what is
        /// held, never more packets are there than a queue takes, nor for longer than it takes them.
        #[test]
        fn what_is_held_departs_at_the_rate(
            rate in 100_000u64..1_000_000_000,
            burst in 1u64..1_000_000,
            sizes in prop::collection::vec(60u32..9_000, 400..600),
            hurry in 2u64..20,
        ) {
            let meters = World::new(&[(3, super::meter::EGRESS, meter(rate, burst))]);
            let time = |bytes: u32| u64::from(bytes) * 8 * SECOND / rate;
            let (mut bits, mut longest, mut last) = (0u128, 0, SECOND);
            let mut held = Vec::new();
            for bytes in &sizes {
                let now = meters.now.get();
                longest = longest.max(time(*bytes));
                let departure = match send(&meters, 3, *bytes) {
                    Sending::Within => now,
                    Sending::Ahead => wait(&meters, 3, *bytes, 0),
                    Sending::Over => 0,
                };
                if departure != 0 {
                    prop_assert!(departure >= last, "nothing overtakes");
                    prop_assert!(departure <= now + HORIZON);
                    last = departure;
                    bits += u128::from(*bytes) * 8;
                    held.retain(|departure| *departure > now);
                    held.push(departure);
                    // Of random sizes, more small ones may be there than the average says.
                    prop_assert!(held.len() <= 150, "{} packets wait", held.len());
                }
                meters.now.set(now + time(*bytes) / hurry);
            }
            let spent = u128::from(last - SECOND);
            let budget = u128::from(rate) * spent / u128::from(SECOND);
            let slack = u128::from(rate) * u128::from(longest) / u128::from(SECOND);
            let rounding = u128::from(rate) * sizes.len() as u128 / u128::from(SECOND) + 1;
            prop_assert!(bits <= budget + u128::from(burst) + 2 * slack + rounding);
            prop_assert!(bits + 2 * slack + rounding >= budget);
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

        fn move_meter(&self, key: &MeterKey, moved: &Moved) {
            apply(self.meters.borrow_mut().get_mut(key).expect("a meter"), moved);
        }

        fn nanoseconds(&self) -> u64 {
            self.now.get()
        }
    }
}
