//! Whether those who answer are at it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often whoever has nothing to do says that he is there.
pub(super) const EVERY: Duration = Duration::from_millis(100);

/// When each of those who answer was last seen at it.
#[derive(Debug)]
pub struct Signs {
    began: Instant,
    /// Milliseconds after that.
    all: Vec<AtomicU64>,
}

impl Signs {
    /// Of so many, all of whom have just begun.
    pub fn new(count: usize) -> Self {
        Self { began: Instant::now(), all: (0..count).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The one of this number is at it.
    pub fn give(&self, number: usize) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.all[number].store(now, Ordering::Relaxed);
    }

    /// Since when somebody has given no sign.
    pub fn since(&self) -> Instant {
        let all = self.all.iter().map(|sign| sign.load(Ordering::Relaxed));
        self.began + Duration::from_millis(all.min().unwrap_or_default())
    }
}
