//! How much of each client is taken: leaky buckets as nginx's `limit_req` has them, and requests at a time.
//!
//! Time is a duration since whatever moment the owner of a [`Limiter`] has chosen.

use std::collections::HashMap;
use std::mem;
use std::net::IpAddr;
use std::time::Duration;

use super::Route;

/// What clients have taken of late. Its size is bounded: those who came longest ago are forgotten.
#[derive(Debug)]
pub struct Limiter {
    /// Whoever has come since the last turn; the next one is when there are `most`.
    recent: HashMap<Key, Bucket>,
    /// Those of the turn before.
    earlier: HashMap<Key, Bucket>,
    most: usize,
    open: HashMap<(u64, IpAddr), u32>,
}

/// What is counted, of whom, and in how many milliseconds.
type Key = (u64, IpAddr, u64);

/// Requests that have come and not run out yet.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In thousandths of a request.
    level: u64,
    /// When that was, in milliseconds.
    at: u64,
}

/// A request that counts as being served until this is given to [`Limiter::leave`].
#[must_use = "the client would stay one request short for ever"]
#[derive(Debug)]
pub struct Seat(u64, IpAddr);

/// A client that has had enough: 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// In a second or a minute.
    #[error("too many requests of the client")]
    Rate,
    /// At once.
    #[error("too many requests of the client at a time")]
    AtOnce,
}

impl Limiter {
    /// One that knows `most` clients, and up to twice as many. A client of several Ingresses counts for each.
    pub fn new(most: usize) -> Self {
        Self { recent: HashMap::new(), earlier: HashMap::new(), most, open: HashMap::new() }
    }

    /// Whether a request of `client` for `route` is served at `now`; to be asked once a request.
    ///
    /// # Errors
    ///
    /// It is not, and does not count.
    pub fn enter(
        &mut self,
        route: &Route,
        client: IpAddr,
        now: Duration,
    ) -> Result<Option<Seat>, Refused> {
        let limits = &route.settings.limits;
        if limits.exempt.iter().any(|net| net.contains(&client)) {
            return Ok(None);
        }
        let person = (route.limits_key, client);
        let open = self.open.get(&person).copied().unwrap_or_default();
        if limits.connections.is_some_and(|most| open >= most) {
            return Err(Refused::AtOnce);
        }
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let factor = limits.burst.unwrap_or(5);
        for (limit, period) in [(limits.per_second, 1000), (limits.per_minute, 60_000)] {
            let Some(limit) = limit.filter(|limit| *limit > 0) else { continue };
            let key = (person.0, person.1, period);
            let known = self.recent.get(&key).or_else(|| self.earlier.get(&key)).copied();
            let burst = u64::from(limit) * u64::from(factor);
            let bucket = fill(known, limit.into(), period, burst, now).ok_or(Refused::Rate)?;
            if self.recent.len() >= self.most {
                self.earlier = mem::take(&mut self.recent);
            }
            self.recent.insert(key, bucket);
        }
        if limits.connections.is_none() {
            return Ok(None);
        }
        self.open.insert(person, open + 1);
        Ok(Some(Seat(person.0, person.1)))
    }

    /// The request is over.
    pub fn leave(&mut self, Seat(key, client): Seat) {
        if let Some(open) = self.open.get_mut(&(key, client)) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&(key, client));
            }
        }
    }
}

/// The bucket with one more request, where `limit` run out in `period` milliseconds; `None`: it would hold more
/// than `burst` beyond the one that is being served.
fn fill(known: Option<Bucket>, limit: u64, period: u64, burst: u64, now: u64) -> Option<Bucket> {
    let Some(Bucket { level, at }) = known else { return Some(Bucket { level: 0, at: now }) };
    // All that fits has run out long before that.
    let passed = now.saturating_sub(at).min(1000 * period);
    let level = (level + 1000).saturating_sub(passed * limit * 1000 / period);
    (level <= burst * 1000).then_some(Bucket { level, at: at.max(now) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `requests` at once are served, `now` being milliseconds.
    fn served(bucket: &mut Option<Bucket>, requests: u32, now: u64) -> u32 {
        let mut served = 0;
        for _ in 0..requests {
            if let Some(next) = fill(*bucket, 2, 1000, 4, now) {
                *bucket = Some(next);
                served += 1;
            }
        }
        served
    }

    #[test]
    fn a_bucket_takes_a_burst_and_then_what_runs_out() {
        let mut bucket = None;
        assert_eq!(served(&mut bucket, 100, 0), 5, "one, and the burst of four");
        assert_eq!(served(&mut bucket, 100, 499), 0);
        assert_eq!(served(&mut bucket, 100, 500), 1);
        assert_eq!(served(&mut bucket, 100, 1500), 2);
        assert_eq!(served(&mut bucket, 100, u64::MAX), 5);
        assert_eq!(served(&mut bucket, 100, 0), 0, "a clock that goes back gives nothing away");
    }
}
