//! No more than so many lines a second.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often something is said that many requests may give reason to.
#[derive(Debug, Default)]
pub(crate) struct Few {
    second: AtomicU64,
    said: AtomicU64,
}

impl Few {
    /// Whether it is said once more in this second, of which there are `most` at most. Who asks at the same moment as
    /// a second begins may be one too many.
    pub(crate) fn may(&self, second: u64, most: u64) -> bool {
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.said.store(0, Ordering::Relaxed);
        }
        self.said.fetch_add(1, Ordering::Relaxed) < most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_share() {
        let few = Few::default();
        let said = |second| (0..100).filter(|_| few.may(second, 10)).count();
        assert_eq!([said(1), said(1), said(2), said(7)], [10, 0, 10, 10]);
    }
}
