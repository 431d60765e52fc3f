//! How the kernel knows that queries are answered here: a moment in a table, which is moved on as long as they are.
//!
//! So nobody has to notice that the agent is gone. Sockets that a service manager keeps would look as if somebody
//! read them, and an agent that hangs still has its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

use crate::dataplane::Single;

/// Between two beats.
const BEAT: Duration = Duration::from_millis(200);
/// For so long after one, queries are led here.
const LIFE: Duration = Duration::from_millis(800);

/// Whether queries are answered. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Serving(Arc<AtomicBool>);

impl Serving {
    pub(super) fn set(&self, serving: bool) {
        self.0.store(serving, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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
                if serving.0.load(Ordering::Relaxed) {
                    tell(now() + u64::try_from(LIFE.as_nanos()).unwrap_or(u64::MAX));
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
            serving.set(true);
            let begin = now();
            let mut first = 0;
            while first == 0 {
                first = until(&mut dataplane);
                assert!(now() - begin < 10_000_000_000, "it is never told");
                thread::sleep(BEAT / 10);
            }
            assert!(first > begin);
            // It goes on, and ends at once.
            while until(&mut dataplane) == first {
                assert!(now() - begin < 20_000_000_000, "it is told once");
                thread::sleep(BEAT / 10);
            }
            drop(pulse);
            assert_eq!(until(&mut dataplane), 0);
        });
    }
}
