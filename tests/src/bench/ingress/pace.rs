//! When the next request is due: as soon as there is a connection for it, or by the clock.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

/// Says when requests are due.
#[derive(Debug)]
pub(super) enum Pace {
    /// At once: as many as there are answers.
    Closed,
    /// One after each interval, whether others have been answered or not.
    Open {
        /// Of the request with number 0.
        start: Instant,
        /// Between two.
        interval: Duration,
        /// The number of the next one that somebody takes.
        next: Cell<u32>,
        /// How many are due and not taken.
        due: Semaphore,
    },
}

impl Pace {
    /// So many a second; [`Self::keep`] has to run then.
    pub(super) fn of_rate(rate: f64) -> Self {
        let interval = Duration::from_secs_f64(1.0 / rate);
        let start = Instant::now() + interval;
        Self::Open { start, interval, next: Cell::new(0), due: Semaphore::new(0) }
    }

    /// Waits for the next request, and says when it was due: who comes to it late has made it wait.
    pub(super) async fn turn(&self) -> Instant {
        match self {
            Self::Closed => Instant::now(),
            Self::Open { start, interval, next, due } => {
                if let Ok(permit) = due.acquire().await {
                    permit.forget();
                }
                let number = next.replace(next.get().wrapping_add(1));
                *start + *interval * number
            }
        }
    }

    /// Whether a request is due now, and since when.
    pub(super) fn turn_now(&self) -> Option<Instant> {
        match self {
            Self::Closed => Some(Instant::now()),
            Self::Open { start, interval, next, due } => {
                due.try_acquire().ok()?.forget();
                let number = next.replace(next.get().wrapping_add(1));
                Some(*start + *interval * number)
            }
        }
    }

    /// Makes requests due by a timer of the kernel: the runtime's own counts milliseconds.
    pub(super) async fn keep(&self) -> Result<()> {
        let Self::Open { interval, due, .. } = self else { return std::future::pending().await };
        let timer = timer(*interval).context("set a timer")?;
        #[expect(
            deprecated,
            reason = "an OwnedFd keeps its descriptor, which is what the unsafe successor asks for"
        )]
        let timer =
            AsyncFd::with_interest(timer, Interest::READABLE).context("wait for a timer")?;
        loop {
            let mut times = [0; 8];
            let read = |timer: &OwnedFd| Ok(rustix::io::read(timer, &mut times)?);
            timer.async_io(Interest::READABLE, read).await.context("wait for a timer")?;
            due.add_permits(usize::try_from(u64::from_ne_bytes(times))?);
        }
    }
}

fn timer(interval: Duration) -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let interval = Timespec::try_from(interval).map_err(io::Error::other)?;
    let times = Itimerspec { it_interval: interval, it_value: interval };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
    Ok(timer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_due_by_the_clock_and_not_by_who_takes_them() {
        let pace = Pace::of_rate(10_000.0);
        let Pace::Open { start, .. } = pace else { unreachable!() };
        let taken = async {
            let mut last = Instant::now();
            for _ in 0..50 {
                last = pace.turn().await;
            }
            last
        };
        let last = tokio::select! {
            last = taken => last,
            kept = pace.keep() => panic!("{kept:?}"),
        };
        assert_eq!(last - start, Duration::from_micros(4900));
        // None was taken before it was due, but for what the clock was read apart.
        assert!(start.elapsed() > Duration::from_micros(4500));
    }
}
