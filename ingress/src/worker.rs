//! What belongs to one of the threads that serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::body::Room;
use crate::buffer;
use crate::compress::Lender;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::record::Log;
use crate::state::State;
use crate::upstream::balance::mix;
use crate::upstream::pool::Pool;
use crate::verdicts::Verdicts;

/// One thread's own; only what counts is looked at by others.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) state: Arc<State>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Log,
    pub(crate) most_connections: usize,
    pub(crate) budget: Budget,
    /// Copies of requests that are under way; there are no more of them.
    pub(crate) mirrors: Arc<Semaphore>,
    /// For what is kept of requests' bodies.
    pub(crate) room: Room,
    /// For what is kept of answers.
    pub(crate) ahead: buffer::Room,
    /// For answers that are compressed.
    pub(crate) compressors: Arc<Lender>,
    /// Where names outside the cluster lead.
    pub(crate) names: Names,
    /// Of those who say who may pass.
    pub(crate) verdicts: Verdicts,
    dice: AtomicU64,
}

impl Worker {
    pub(crate) fn new(
        state: Arc<State>,
        log: Log,
        most_connections: usize,
    ) -> anyhow::Result<Self> {
        let mut seed = [0; 8];
        aws_lc_rs::rand::fill(&mut seed)?;
        let metrics = Arc::new(Metrics::new(Arc::clone(&state.series)));
        Ok(Self {
            state,
            pool: Arc::default(),
            metrics,
            log,
            most_connections,
            budget: Budget::default(),
            mirrors: Arc::new(Semaphore::new(1024)),
            room: Room::default(),
            ahead: buffer::Room::default(),
            compressors: Arc::default(),
            names: Names::default(),
            verdicts: Verdicts::default(),
            dice: AtomicU64::new(u64::from_ne_bytes(seed)),
        })
    }

    /// A number at random, to choose by; not for secrets.
    pub(crate) fn dice(&self) -> u64 {
        mix(self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed))
    }

    /// Something is open, until what is returned is dropped.
    pub(crate) fn open(&self) -> Open {
        self.metrics.open.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(&self.metrics))
    }

    /// Drops what nobody needs, from time to time: connections and routes.
    pub(crate) async fn tidy(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(2));
        loop {
            ticks.tick().await;
            self.pool.purge(Instant::now());
            self.metrics.forget(&self.state.snapshot().table);
        }
    }
}

/// Counts something that is open.
#[derive(Debug)]
pub(crate) struct Open(Arc<Metrics>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps tries from making a bad moment worse: no more than a fifth of the requests is sent again, but for a
/// few that are always allowed.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In fifths of a try.
    left: AtomicI64,
}

const FULL: i64 = 5 * 100;

impl Default for Budget {
    fn default() -> Self {
        Self { left: AtomicI64::new(FULL) }
    }
}

impl Budget {
    /// A request came.
    pub(crate) fn earn(&self) {
        if self.left.load(Ordering::Relaxed) < FULL {
            self.left.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether one may be sent again.
    pub(crate) fn spend(&self) -> bool {
        let spent = |left: i64| (left >= 5).then_some(left - 5);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent).is_ok()
    }
}

/// Random hexadecimal digits to know a request by.
pub(crate) fn request_id(worker: &Worker) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let number = u128::from(worker.dice()) << 64 | u128::from(worker.dice());
    // Without the machinery of formatting, as each request has one.
    std::array::from_fn(|at| DIGITS[(number >> (124 - 4 * at)) as usize & 15])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_may_be_sent_again() {
        let budget = Budget::default();
        let at_once = (0..1000).filter(|_| budget.spend()).count();
        assert_eq!(at_once, 100);
        let later = (0..1000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(later.count(), 200);
    }
}
