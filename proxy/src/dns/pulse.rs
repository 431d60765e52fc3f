//! How the kernel knows that queries are answered here: a moment in a table, which is moved on as long as they are.
//!
//! So nobody has to notice that the agent is gone. Sockets that a service manager keeps would look as if somebody
//! read them, and an agent that hangs still has its own: the moment is so long after each of the threads that answer
//! was seen at it.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use fairway_dns::server::Signs;
use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

use crate::dataplane::Single;

/// Between two beats.
const BEAT: Duration = Duration::from_millis(200);
/// For so long after a sign of life, queries are led here.
const LIFE: Duration = Duration::from_millis(800);

/// Whether queries are answered, and by whom. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Serving(Arc<ArcSwapOption<Signs>>);

impl Serving {
    /// They are as long as these give signs.
    pub(super) fn begin(&self, signs: Arc<Signs>) {
        self.0.store(Some(signs));
    }

    pub(super) fn end(&self) {
        self.0.store(None);
    }

    /// For how much longer they are: so long after the last sign of whoever answers.
    pub(super) fn left(&self) -> Duration {
        let signs = self.0.load();
        signs.as_ref().map_or(Duration::ZERO, |signs| LIFE.saturating_sub(signs.since().elapsed()))
    }
}

/// Tells the kernel. When it is dropped, queries are led elsewhere at once.
pub(super) struct Pulse {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Begins; the table holds until when queries are answered, in nanoseconds of the monotonic clock. On a thread of
    /// its own, as those that answer may be busy answering.
    pub(super) fn start(mut table: Single<u64>, serving: Serving) -> Result<Self> {
        let (end, ended) = mpsc::channel();
        let beat = move || {
            let mut tell = |until| {
                if let Err(error) = table.set(&until) {
                    warn!(
                        error = format!("{error:#}"),
                        "the kernel does not learn who answers DNS queries"
                    );
                }
            };
            loop {
                let left = serving.left();
                if !left.is_zero() {
                    tell(now() + u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
                }
                match ended.recv_timeout(BEAT) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return tell(0),
                }
            }
        };
        let thread = thread::Builder::new().name("dns-pulse".to_owned()).spawn(beat);
        Ok(Self { end: Some(end), thread: Some(thread.context("start the pulse of DNS")?) })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

/// Whether a moment that a table holds has not passed.
pub(crate) fn is_later(until: u64) -> bool {
    until > now()
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::dataplane::Dataplane;
    use crate::sandbox::sandbox;

    #[test]
    fn the_kernel_is_told_as_long_as_queries_are_answered() {
        sandbox(|bpffs| {
            let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("tables");
            let table = dataplane.single::<u64>("resolver").expect("the table");
            let until = |dataplane: &mut Dataplane| {
                dataplane.single::<u64>("resolver").and_then(|table| table.get()).expect("a value")
            };
            let serving = Serving::default();
            let pulse = Pulse::start(table, serving.clone()).expect("a thread");
            thread::sleep(BEAT * 2);
            assert_eq!(until(&mut dataplane), 0, "nobody answers yet");
            let signs = Arc::new(Signs::new(2));
            serving.begin(Arc::clone(&signs));
            let begin = Instant::now();
            let mut first = 0;
            while first == 0 {
                signs.give(0);
                signs.give(1);
                first = until(&mut dataplane);
                assert!(begin.elapsed().as_secs() < 10, "it is never told");
                thread::sleep(BEAT / 10);
            }
            // It goes on...
            while until(&mut dataplane) == first {
                signs.give(0);
                signs.give(1);
                assert!(begin.elapsed().as_secs() < 20, "it is told once");
                thread::sleep(BEAT / 10);
            }
            // ...until one of them is not seen any more...
            let last = Instant::now();
            while is_later(until(&mut dataplane)) {
                signs.give(0);
                assert!(begin.elapsed().as_secs() < 30, "somebody hangs");
                thread::sleep(BEAT / 10);
            }
            assert!(last.elapsed() < LIFE + BEAT, "{:?}", last.elapsed());
            // ...and ends at once.
            while !is_later(until(&mut dataplane)) {
                signs.give(0);
                signs.give(1);
                assert!(begin.elapsed().as_secs() < 40, "it does not go on");
                thread::sleep(BEAT / 10);
            }
            drop(pulse);
            assert_eq!(until(&mut dataplane), 0);
        });
    }
}
