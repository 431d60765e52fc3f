//! Who is answered, and how often.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many locks.
const PARTS: usize = 16;
/// Clients of each part whose queries are counted one by one; more of them than there are pods and nodes.
const CLIENTS: usize = 4096;
/// Refusals a second, of all strangers together: whoever sends more asks in the name of somebody else.
const REFUSALS: u32 = 100;

/// What somebody may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Stranger,
    /// Anything, such as a program of the node.
    Known,
    /// Anything, as a pod of this namespace.
    Pod(Arc<str>),
}

/// Who knows the clients.
pub trait Clients: Send + Sync {
    /// What whoever has this address may ask. It is called for each query, or nearly so.
    fn access(&self, address: IpAddr) -> Access;
}

impl<F: Fn(IpAddr) -> Access + Send + Sync> Clients for F {
    fn access(&self, address: IpAddr) -> Access {
        self(address)
    }
}

/// What is done for a client just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    Serve,
    Refuse,
    Silence,
}

/// Queries at a steady rate, and a second's worth of them at once (the generic cell rate algorithm, ITU-T I.371): for each client
/// the moment at which all that it has asked would have been asked at that rate.
#[derive(Debug, Default)]
struct Part {
    done: HashMap<IpAddr, Instant>,
    /// That of all for whom there is no room.
    others: Option<Instant>,
}

/// See the module.
pub(super) struct Admission {
    clients: Box<dyn Clients>,
    /// Between two queries of a client; `None`: any.
    every: Option<Duration>,
    parts: [Mutex<Part>; PARTS],
    hasher: RandomState,
    refusals: Mutex<Option<Instant>>,
    pub(super) refused: AtomicU64,
    pub(super) limited: AtomicU64,
}

/// How much may be asked at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Whether one more is within the rate of one each `every`.
fn take(done: &mut Option<Instant>, every: Duration, now: Instant) -> bool {
    let begin = done.map_or(now, |done| done.max(now));
    if begin - now > AT_ONCE {
        return false;
    }
    *done = Some(begin + every);
    true
}

impl Admission {
    pub(super) fn new(clients: Box<dyn Clients>, rate: u32) -> Self {
        Self {
            clients,
            every: (rate > 0).then(|| Duration::from_secs(1) / rate),
            parts: Default::default(),
            hasher: RandomState::new(),
            refusals: Mutex::default(),
            refused: AtomicU64::new(0),
            limited: AtomicU64::new(0),
        }
    }

    /// What is done for a query that this client sends at `now`, and the namespace that it is of.
    pub(super) fn rule(&self, client: IpAddr, now: Instant) -> (Ruling, Option<Arc<str>>) {
        let namespace = match self.clients.access(client) {
            Access::Stranger => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let every = Duration::from_secs(1) / REFUSALS;
                // Nothing panics while it is held.
                let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
                let refuses = take(&mut refusals, every, now);
                return (if refuses { Ruling::Refuse } else { Ruling::Silence }, None);
            }
            Access::Known => None,
            Access::Pod(namespace) => Some(namespace),
        };
        let ruling = if self.is_within_rate(client, now) {
            Ruling::Serve
        } else {
            self.limited.fetch_add(1, Ordering::Relaxed);
            Ruling::Silence
        };
        (ruling, namespace)
    }

    fn is_within_rate(&self, client: IpAddr, now: Instant) -> bool {
        let Some(every) = self.every else { return true };
        let hash = self.hasher.hash_one(client) % PARTS as u64;
        let number = usize::try_from(hash).unwrap_or_default();
        // Nothing panics while it is held.
        let mut part = self.parts[number].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = part.done.get_mut(&client) {
            let mut known = Some(*done);
            let within = take(&mut known, every, now);
            *done = known.unwrap_or(now);
            return within;
        }
        if part.done.len() >= CLIENTS {
            part.done.retain(|_, done| *done > now);
        }
        if part.done.len() >= CLIENTS {
            return take(&mut part.others, every, now);
        }
        part.done.insert(client, now + every);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn all(rate: u32) -> Admission {
        Admission::new(Box::new(|_| Access::Known), rate)
    }

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 | number).into()
    }

    fn served(admission: &Admission, client: IpAddr, queries: u32, at: Instant) -> u32 {
        (0..queries).map(|_| u32::from(admission.rule(client, at).0 == Ruling::Serve)).sum()
    }

    #[test]
    fn a_client_has_a_seconds_worth_at_once_and_then_its_rate() {
        let (admission, start) = (all(100), Instant::now());
        // The last of them begins when the second is over.
        assert_eq!(served(&admission, client(1), 500, start), 101);
        assert_eq!(served(&admission, client(1), 500, start + Duration::from_millis(500)), 50);
        assert_eq!(served(&admission, client(2), 50, start), 50, "another one");
        assert_eq!(admission.limited.load(Ordering::Relaxed), 399 + 450);
    }

    #[test]
    fn without_a_rate_everything_is_answered() {
        assert_eq!(served(&all(0), client(1), 10_000, Instant::now()), 10_000);
    }

    #[test]
    fn strangers_are_refused_and_hear_nothing_when_they_are_many() {
        let strangers = Admission::new(Box::new(|_| Access::Stranger), 0);
        let start = Instant::now();
        let rulings: Vec<_> =
            (0..1000).map(|number| strangers.rule(client(number), start).0).collect();
        assert_eq!(rulings.iter().filter(|ruling| **ruling == Ruling::Refuse).count(), 101);
        assert_eq!(rulings.iter().filter(|ruling| **ruling == Ruling::Silence).count(), 899);
        assert_eq!(strangers.refused.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn clients_that_are_counted_are_bounded() {
        let (admission, start) = (all(1), Instant::now());
        for number in 0..200_000 {
            admission.rule(client(number), start);
        }
        let counted = |part: &Mutex<Part>| part.lock().expect("no panic").done.len();
        assert!(admission.parts.iter().all(|part| counted(part) <= CLIENTS));
        // Those that ask no more make room.
        let later = start + Duration::from_secs(10);
        assert_eq!(served(&admission, client(1_000_000), 1, later), 1);
    }
}
