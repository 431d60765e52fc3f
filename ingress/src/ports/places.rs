//! How many flows of datagrams there may be, in the whole process.
//!
//! Each takes a port of those that the node gives to whoever asks for any: so they are few, and shared with all others
//! on the node.

use std::collections::VecDeque;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

/// Flows at a time, however many ports the node has.
const MOST: usize = 8192;
/// Flows that are looked at for one to give up.
const LOOKED_AT: usize = 64;

/// How many flows the process may have: half of the ports that the node gives to whoever asks for any, at most 8,192.
pub(crate) fn most() -> usize {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let bounds = range.split_whitespace().map(str::parse::<usize>);
    match bounds.collect::<Result<Vec<_>, _>>().as_deref() {
        Ok([first, last]) => (last.saturating_sub(*first) / 2).clamp(1, MOST),
        _ => MOST,
    }
}

/// Places of flows.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    /// Who may be without an answer, in the order in which they came.
    unanswered: VecDeque<Weak<Place>>,
}

/// A flow's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    answered: AtomicBool,
    /// Another flow has it.
    given_up: AtomicBool,
    /// It is to be left: wakes who has it.
    pub(super) leave: Notify,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default() }
    }

    /// A place; where there is none left, that of the flow that has been without an answer the longest.
    pub(super) fn take(self: &Arc<Self>) -> Option<Arc<Place>> {
        // Dropped after the lock is, as to drop a place takes it.
        let mut looked_at = Vec::new();
        let mut taken = self.lock();
        if taken.count < self.most {
            taken.count += 1;
        } else {
            while let Some(place) = taken.unanswered.pop_front() {
                if let Some(place) = place.upgrade() {
                    let answered = place.is_answered();
                    looked_at.push(Arc::clone(&place));
                    if !answered {
                        place.given_up.store(true, Ordering::Relaxed);
                        place.leave.notify_one();
                        break;
                    }
                }
                if looked_at.len() >= LOOKED_AT {
                    return None;
                }
            }
            let last = looked_at.last();
            last.filter(|place| place.is_given_up())?;
        }
        let place = Arc::new(Place {
            places: Arc::clone(self),
            answered: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            leave: Notify::new(),
        });
        if taken.unanswered.len() >= self.most.saturating_mul(2) {
            taken.unanswered.retain(|place| place.strong_count() > 0);
        }
        taken.unanswered.push_back(Arc::downgrade(&place));
        Some(place)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether it is to be left at once.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if !self.is_given_up() {
            taken.count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_longest_for_an_answer_makes_room() {
        let places = Arc::new(Places::new(3));
        let mut flows: Vec<_> = (0..3).map(|_| places.take().unwrap()).collect();
        flows[0].answer();
        let fourth = places.take().unwrap();
        let given_up = |flows: &[Arc<Place>]| flows.iter().position(|flow| flow.is_given_up());
        assert_eq!(given_up(&flows), Some(1));
        flows.remove(1);
        flows[1].answer();
        fourth.answer();
        assert!(places.take().is_none(), "all have answers");
        drop(fourth);
        let fifth = places.take().unwrap();
        assert_eq!(given_up(&flows), None);
        let sixth = places.take().unwrap();
        assert!(fifth.is_given_up() && !sixth.is_given_up());
        drop((fifth, sixth, flows));
        assert_eq!(places.lock().count, 0);
    }

    #[test]
    fn flows_that_are_over_are_not_remembered() {
        let places = Arc::new(Places::new(4));
        for _ in 0..100 {
            assert!(places.take().is_some());
        }
        assert!(places.lock().unanswered.len() <= 8);
    }
}
