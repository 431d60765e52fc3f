//! Names outside the cluster, and where they lead.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// How long an answer is remembered.
const GOOD: Duration = Duration::from_secs(10);
/// The same of none: what is wrong may be mended soon.
const BAD: Duration = Duration::from_secs(1);
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Names that are remembered at most; with more, all are forgotten.
const MOST: usize = 1024;
/// Look-ups at a time: each takes a thread.
const AT_ONCE: usize = 32;

/// What was found of late.
#[derive(Debug)]
pub(crate) struct Names {
    known: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Found>>>>>,
    turns: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
struct Found {
    address: Result<IpAddr, String>,
    until: Instant,
}

impl Default for Names {
    fn default() -> Self {
        Self { known: Mutex::default(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Names {
    /// An address of `name`: one that is remembered, or what `look_up` says. For one name there is one look-up at
    /// a time. It goes on though nobody waits for it any more: nothing stops its thread.
    ///
    /// # Errors
    /// When there is none, or not in time.
    pub(crate) async fn find<L>(&self, name: &str, look_up: L) -> Result<IpAddr, String>
    where
        L: Future<Output = Result<IpAddr, String>> + Send + 'static,
    {
        let known = {
            let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= MOST && !all.contains_key(name) {
                all.clear();
            }
            Arc::clone(all.entry(name.to_owned()).or_default())
        };
        let turns = Arc::clone(&self.turns);
        let found = async move {
            let mut known = known.lock_owned().await;
            if let Some(found) = known.as_ref().filter(|found| found.until > Instant::now()) {
                return found.address.clone();
            }
            let turn = turns.acquire_owned().await.map_err(|error| error.to_string())?;
            let looking = tokio::spawn(async move {
                let address = look_up.await;
                drop(turn);
                let until = Instant::now() + if address.is_ok() { GOOD } else { BAD };
                *known = Some(Found { address: address.clone(), until });
                address
            });
            looking.await.map_err(|error| error.to_string())?
        };
        let found = timeout(PATIENCE, found).await;
        found.map_err(|_| format!("{name} is not found in time"))?
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicU8, Ordering};

    use tokio::time::{advance, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_once_and_again_when_that_is_old() {
        let (names, asked) = (Names::default(), Arc::new(AtomicU8::new(0)));
        let find = |takes| {
            let asked = Arc::clone(&asked);
            names.find("a.example", async move {
                let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
                sleep(takes).await;
                Ok(Ipv4Addr::new(192, 0, 2, number).into())
            })
        };
        let address = |number| Ok(IpAddr::from([192, 0, 2, number]));
        let soon = Duration::from_millis(1);
        let (one, other) = tokio::join!(find(soon), find(soon));
        assert_eq!((one, other), (address(1), address(1)));
        assert_eq!(find(soon).await, address(1));
        advance(GOOD).await;
        // Who does not wait leaves a look-up that goes on, and nobody begins another meanwhile.
        assert!(timeout(soon, find(3 * PATIENCE)).await.is_err());
        assert!(find(soon).await.is_err());
        assert!(find(soon).await.is_err());
        assert_eq!(find(soon).await, address(2));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn that_there_is_none_is_forgotten_soon() {
        let names = Names::default();
        let none = names.find("a.example", async { Err("none".to_owned()) });
        assert_eq!(none.await, Err("none".to_owned()));
        let address = IpAddr::from([192, 0, 2, 1]);
        assert!(names.find("a.example", async move { Ok(address) }).await.is_err());
        advance(BAD).await;
        assert_eq!(names.find("a.example", async move { Ok(address) }).await, Ok(address));
    }
}
