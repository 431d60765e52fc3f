//! Which streams of a connection have something to do: they share its task, and only those are looked at that were
//! woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

/// All who were woken, and the task that looks after them.
#[derive(Debug, Default)]
pub(super) struct Wakers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared(Mutex<Woken>);

#[derive(Debug, Default)]
struct Woken {
    places: Vec<usize>,
    task: Option<Waker>,
    /// The task sleeps, and is to be woken with the first of them.
    sleeps: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Woken> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes what is at one place.
#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    place: usize,
    /// It is among those that were woken.
    woken: AtomicBool,
}

/// Of one place: what is polled with it, and whether it was woken.
#[derive(Debug)]
pub(super) struct PlaceWaker {
    place: Arc<Place>,
    pub(super) waker: Waker,
}

impl Wakers {
    /// One for a place.
    pub(super) fn at(&self, place: usize) -> PlaceWaker {
        let (shared, woken) = (Arc::clone(&self.0), AtomicBool::new(false));
        let place = Arc::new(Place { shared, place, woken });
        PlaceWaker { waker: Waker::from(Arc::clone(&place)), place }
    }

    /// Those who were woken since this was asked last; what is at their places [begins](PlaceWaker::begin) anew. `places`
    /// is empty.
    pub(super) fn take(&self, places: &mut Vec<usize>) {
        let mut woken = self.0.lock();
        woken.sleeps = false;
        std::mem::swap(&mut woken.places, places);
    }

    /// Whether the task of `cx` may sleep: nobody was woken, and the next one wakes it.
    pub(super) fn may_sleep(&self, cx: &Context<'_>) -> bool {
        let mut woken = self.0.lock();
        woken.sleeps = woken.places.is_empty();
        if woken.sleeps && !woken.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            woken.task = Some(cx.waker().clone());
        }
        woken.sleeps
    }
}

impl PlaceWaker {
    /// It is looked at: what wakes it from now on does so anew.
    pub(super) fn begin(&self) {
        self.place.woken.store(false, Ordering::Release);
    }
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut woken = self.shared.lock();
        woken.places.push(self.place);
        let task = if std::mem::take(&mut woken.sleeps) { woken.task.clone() } else { None };
        drop(woken);
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_is_woken_once_and_the_task_with_the_first() {
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let cx = Context::from_waker(&waker);
        let (wakers, mut places) = (Wakers::default(), Vec::new());
        let (one, other) = (wakers.at(1), wakers.at(2));
        let wake = |places: &[&PlaceWaker]| {
            places.iter().for_each(|place| place.waker.wake_by_ref());
            task.0.load(Ordering::Relaxed)
        };
        assert_eq!(wake(&[&one]), 0, "it does not sleep");
        assert!(!wakers.may_sleep(&cx));
        wakers.take(&mut places);
        assert_eq!(places, [1]);
        places.clear();
        one.begin();
        assert!(wakers.may_sleep(&cx));
        assert_eq!(wake(&[&other, &one, &other]), 1);
        wakers.take(&mut places);
        assert_eq!(places, [2, 1]);
        places.clear();
        one.begin();
        assert!(wakers.may_sleep(&cx));
        assert_eq!(wake(&[&other]), 1, "nobody has begun anew with it");
        assert_eq!(wake(&[&one]), 2);
    }
}
