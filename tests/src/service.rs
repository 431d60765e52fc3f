//! A process that has to run: started again when it dies, as a service manager would.

use std::cell::Cell;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::process::{self, TICK};

/// How long a service has to end before it is made to.
const GRACE: Duration = Duration::from_secs(5);
/// One that dies sooner than this after its start waits before the next one.
const STEADY: Duration = Duration::from_secs(1);

/// What the keeper is told.
#[derive(Clone, Copy, Debug)]
enum Order {
    Signal(Signal),
    KillAndHold,
    Release,
}

/// Makes the command anew for each start.
type MakeCommand = Box<dyn Fn() -> Result<Command> + Send>;

/// A supervised process; stopped on drop.
#[derive(Debug)]
pub(crate) struct Service {
    /// Closed when it shall stop.
    orders: Mutex<Option<Sender<Order>>>,
    status: Arc<Mutex<Status>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How a service is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// Of the running process.
    pub pid: Option<u32>,
    /// How often it had to be started again.
    pub restarts: u32,
    /// How it ended last.
    pub last_end: Option<String>,
}

impl Service {
    /// Starts it and keeps it running. Fails if it cannot be started at all.
    pub(crate) fn start(
        name: &str,
        make: impl Fn() -> Result<Command> + Send + 'static,
    ) -> Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (first, started) = mpsc::channel();
        let status = Arc::new(Mutex::new(Status::default()));
        let keeper = Keeper {
            name: name.to_owned(),
            make: Box::new(make),
            orders: inbox,
            held: Cell::new(false),
            status: Arc::clone(&status),
        };
        // Spawned on the thread that keeps it: a child dies with the thread that made it.
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || match keeper.spawn() {
                Ok(child) => {
                    let _ = first.send(Ok(()));
                    keeper.keep(child);
                }
                Err(error) => {
                    let _ = first.send(Err(error));
                }
            })
            .with_context(|| format!("start a thread for {name}"))?;
        started.recv().with_context(|| format!("start {name}: its thread ended"))??;
        Ok(Self { orders: Mutex::new(Some(orders)), status, thread: Mutex::new(Some(thread)) })
    }

    /// Sends it a signal; if it dies of it, it is started again.
    pub(crate) fn signal(&self, signal: Signal) {
        self.order(Order::Signal(signal));
    }

    /// Kills it, and does not start it again before [`Self::release`].
    pub(crate) fn kill_and_hold(&self) {
        self.order(Order::KillAndHold);
    }

    /// Starts what was killed to be held.
    pub(crate) fn release(&self) {
        self.order(Order::Release);
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &*lock(&self.orders) {
            // Only a panicked keeper does not listen, and its status tells.
            let _ = orders.send(order);
        }
    }

    /// How it is doing.
    pub(crate) fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    /// Tells it to stop, and does not wait.
    pub(crate) fn begin_stop(&self) {
        drop(lock(&self.orders).take());
    }

    /// Stops it; it is gone when this returns.
    pub(crate) fn stop(&self) {
        self.begin_stop();
        if let Some(thread) = lock(&self.thread).take() {
            // A panic of the keeper has been reported by itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Every change under these locks is complete in one step, also when a thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Keeper {
    name: String,
    make: MakeCommand,
    orders: Receiver<Order>,
    /// Not to be started again before it is released.
    held: Cell<bool>,
    status: Arc<Mutex<Status>>,
}

impl Keeper {
    fn keep(&self, mut child: Child) {
        loop {
            let started = Instant::now();
            let Some(end) = self.watch(&mut child) else {
                if let Err(error) = process::end(&mut child, GRACE) {
                    tracing::error!("stop {}: {error}", self.name);
                }
                return;
            };
            tracing::warn!("{} ended: {end}; starting it again", self.name);
            self.note(|status| {
                status.pid = None;
                status.last_end = Some(end);
            });
            let mut wait = STEADY.saturating_sub(started.elapsed());
            child = loop {
                if !self.pause(wait) {
                    return;
                }
                match self.spawn() {
                    Ok(child) => break child,
                    Err(error) => tracing::error!("{error:#}"),
                }
                wait = STEADY;
            };
            self.note(|status| status.restarts += 1);
        }
    }

    /// Passes signals on until the process ends (how?) or the service is to stop (`None`).
    fn watch(&self, child: &mut Child) -> Option<String> {
        loop {
            match self.orders.recv_timeout(TICK) {
                Ok(order) => {
                    self.note_hold(order);
                    match order {
                        Order::Signal(signal) => process::signal(child, signal),
                        Order::KillAndHold => process::signal(child, Signal::KILL),
                        Order::Release => {}
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => match child.try_wait() {
                    Ok(Some(status)) => return Some(status.to_string()),
                    Ok(None) => {}
                    Err(error) => return Some(format!("cannot be watched: {error}")),
                },
            }
        }
    }

    /// Waits, also for a release if held; false if the service is to stop. A signal meanwhile has
    /// nobody to go to.
    fn pause(&self, wait: Duration) -> bool {
        let end = Instant::now() + wait;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.orders.recv_timeout(if self.held.get() { TICK } else { left }) {
                Ok(order) => self.note_hold(order),
                Err(RecvTimeoutError::Timeout) if self.held.get() => {}
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn note_hold(&self, order: Order) {
        match order {
            Order::Signal(_) => {}
            Order::KillAndHold => self.held.set(true),
            Order::Release => self.held.set(false),
        }
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = (self.make)().with_context(|| format!("prepare {}", self.name))?;
        let child = command
            .spawn()
            .with_context(|| format!("start {}: {}", self.name, command.get_program().display()))?;
        self.note(|status| status.pid = Some(child.id()));
        Ok(child)
    }

    fn note(&self, change: impl FnOnce(&mut Status)) {
        change(&mut lock(&self.status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::wait_until;

    fn sleeper() -> Result<Command> {
        let mut command = Command::new("sleep");
        command.arg("60");
        Ok(command)
    }

    #[test]
    fn what_dies_is_started_again_and_what_is_dropped_is_gone() {
        let service = Service::start("sleeper", sleeper).unwrap();
        let first = service.status().pid.unwrap();
        service.signal(Signal::KILL);
        wait_until(Duration::from_secs(10), "a restart", || Ok(service.status().restarts == 1))
            .unwrap();
        let status = service.status();
        assert!(status.last_end.unwrap().contains("signal: 9"));
        let second = status.pid.unwrap();
        assert_ne!(first, second);
        drop(service);
        assert!(!std::path::Path::new(&format!("/proc/{second}")).exists());
    }

    #[test]
    fn what_is_held_stays_away_until_it_is_released() {
        let service = Service::start("sleeper", sleeper).unwrap();
        let wait = |what, is_there: &dyn Fn(Status) -> bool| {
            wait_until(Duration::from_secs(10), what, || Ok(is_there(service.status()))).unwrap();
        };
        service.kill_and_hold();
        wait("its end", &|status| status.pid.is_none());
        // Longer than the pause after an early death.
        let deadline = Instant::now() + STEADY + STEADY / 4;
        wait("nothing to happen", &|status| status.restarts > 0 || Instant::now() > deadline);
        assert_eq!(service.status().pid, None);
        service.release();
        wait("its return", &|status| status.pid.is_some() && status.restarts == 1);
    }

    #[test]
    fn what_cannot_start_is_an_error_with_its_name() {
        let error = Service::start("ghost", || Ok(Command::new("/nonexistent"))).unwrap_err();
        assert!(format!("{error:#}").contains("start ghost: /nonexistent"), "{error:#}");
    }
}
