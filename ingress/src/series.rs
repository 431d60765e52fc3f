//! Which series of metrics there are, in the whole process: so few that Prometheus can fetch them.
//!
//! Routes are what their owners make them, statuses what backends say: somebody may make many. A series with its histograms is
//! some 27 kB of text, and one that only counts requests 300 bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Series that count requests.
const COUNTED: usize = 10_000;
/// Those of them that have histograms.
const DETAILED: usize = 1_000;

/// The labels that have series of their own: those that came first.
#[derive(Debug)]
pub(crate) struct Known {
    counted: usize,
    detailed: usize,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    by_labels: HashMap<String, Entry>,
    detailed: usize,
}

#[derive(Debug)]
struct Entry {
    detailed: bool,
    used: Weak<()>,
}

/// A worker has a series.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// With histograms.
    pub(crate) detailed: bool,
    _used: Arc<()>,
}

impl Default for Known {
    fn default() -> Self {
        Self::new(COUNTED, DETAILED)
    }
}

impl Known {
    pub(crate) fn new(counted: usize, detailed: usize) -> Self {
        Self { counted, detailed, all: Mutex::default() }
    }

    /// A place for a series, of all workers the same; `None`: there are enough others.
    pub(crate) fn place(&self, labels: &str) -> Option<Place> {
        let mut all = self.lock();
        if let Some(entry) = all.by_labels.get_mut(labels) {
            let used = entry.used.upgrade().unwrap_or_default();
            entry.used = Arc::downgrade(&used);
            return Some(Place { detailed: entry.detailed, _used: used });
        }
        if all.by_labels.len() >= self.counted {
            return None;
        }
        let detailed = all.detailed < self.detailed;
        all.detailed += usize::from(detailed);
        let used = Arc::default();
        let entry = Entry { detailed, used: Arc::downgrade(&used) };
        all.by_labels.insert(labels.to_owned(), entry);
        Some(Place { detailed, _used: used })
    }

    /// Gives away the places that nobody has any more.
    pub(crate) fn tidy(&self) {
        let mut all = self.lock();
        all.by_labels.retain(|_, entry| entry.used.strong_count() > 0);
        all.detailed = all.by_labels.values().filter(|entry| entry.detailed).count();
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        // Nothing panics while it is held.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_first_has_a_place_until_nobody_needs_it() {
        let known = Known::new(2, 1);
        let detailed = |labels| known.place(labels).map(|place| place.detailed);
        let (first, second) = (known.place("a"), known.place("b"));
        assert_eq!([detailed("a"), detailed("b"), detailed("c")], [Some(true), Some(false), None]);
        drop(first);
        known.tidy();
        assert_eq!([detailed("c"), detailed("b"), detailed("a")], [Some(true), Some(false), None]);
        drop(second);
    }
}
