//! A timer that is set anew all the time and almost never goes off.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// Wakes a task at a time that may be a later one whenever it is asked for. The timer behind it stays at the
/// earlier time until that has come: to ask costs next to nothing.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whom the timer wakes.
    waker: Option<Waker>,
}

impl Alarm {
    /// Whether `deadline` has come. If not, the task of `cx` is woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
            self.waker = None;
        }
        let wakes = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if wakes && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        ready!(sleep.as_mut().poll(cx));
        if sleep.deadline() < deadline {
            sleep.as_mut().reset(deadline);
            ready!(sleep.as_mut().poll(cx));
        }
        self.waker = None;
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    // Where nobody has anything to do, time passes by itself.
    #[tokio::test(start_paused = true)]
    async fn it_goes_off_at_the_time_that_was_said_last() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut alarm = Alarm::default();
        for (asked, last) in [(&[10][..], 10), (&[20, 30, 40], 40), (&[90, 60, 50], 50), (&[9], 50)]
        {
            let mut asked = asked.iter();
            let mut deadline = begun;
            poll_fn(|cx| {
                for seconds in asked.by_ref() {
                    deadline = after(*seconds);
                    if alarm.poll(cx, deadline).is_ready() {
                        return Poll::Ready(());
                    }
                }
                alarm.poll(cx, deadline)
            })
            .await;
            assert_eq!(begun.elapsed(), Duration::from_secs(last));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_wakes_whoever_asks() {
        let mut alarm = Alarm::default();
        let deadline = Instant::now() + Duration::from_secs(10);
        // Somebody who does not wait any more.
        let mut nobody = Context::from_waker(Waker::noop());
        assert!(alarm.poll(&mut nobody, deadline).is_pending());
        poll_fn(|cx| alarm.poll(cx, deadline)).await;
        assert_eq!(Instant::now(), deadline);
    }
}
