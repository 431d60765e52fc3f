//! What upstreams have said, as long as it holds, and longer while they say nothing.
//!
//! It is bounded in bytes. What has to go is what came first and was not asked for since it was last looked at (CLOCK). All of it
//! is in a few parts with a lock each, so that those who ask for different names do not wait for each other.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fairway_core::dns::MAX_NAME;

use super::message::{Reply, Ttl, Wanted};

/// How many locks.
const PARTS: usize = 16;
/// What an entry takes besides its name and its answer: its places in the table and in the queue.
const ENTRY: usize = 160;
/// Who asks for something more seldom than that does not want it fetched ahead (CoreDNS' prefetch).
const GAP: Duration = Duration::from_secs(60);
/// How long nobody tries again to replace what is stale (RFC 8767, section 5: failure recheck timer).
const RECHECK: Duration = Duration::from_secs(30);
/// How long it is remembered that nobody could say anything (RFC 9520, section 3.2: a second at least).
const FAILURE: Duration = Duration::from_secs(2);

/// How much is kept, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of all answers with their names.
    pub bytes: usize,
    /// The longest that an answer with records is kept.
    pub positive: Duration,
    /// The longest that it is kept that there is none.
    pub negative: Duration,
    /// How long an answer that does not hold any more serves while upstreams fail (RFC 8767).
    pub stale: Duration,
    /// What has been asked for so often, with no minute's pause, is fetched anew before it ends; 0: nothing is.
    pub prefetch: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bytes: 8 << 20,
            positive: Duration::from_secs(3600),
            negative: Duration::from_secs(1800),
            stale: Duration::from_secs(24 * 3600),
            prefetch: 10,
        }
    }
}

/// Whom answers are kept for: the name in small letters, the type, and what changes what is answered.
#[derive(Clone)]
pub(crate) struct Key {
    bytes: [u8; MAX_NAME + 3],
    length: usize,
}

impl Key {
    pub(crate) fn of(wanted: &Wanted) -> Self {
        let name = wanted.name.as_wire();
        let mut bytes = [0; MAX_NAME + 3];
        bytes[..name.len()].copy_from_slice(name);
        let [high, low] = wanted.kind.to_be_bytes();
        let wants = u8::from(wanted.signatures) | u8::from(wanted.unchecked) << 1;
        bytes[name.len()..name.len() + 3].copy_from_slice(&[high, low, wants]);
        Self { bytes, length: name.len() + 3 }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What there is.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) reply: Arc<Reply>,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It holds, and is to be told with these TTLs.
    Fresh(Ttl),
    /// It holds; whoever is told this is to fetch it anew, and nobody else will be told so.
    Ending(Ttl),
    /// It does not hold any more, and serves if nobody knows better.
    Stale,
    /// The same, and it has just been found out that nobody knows better.
    StaleForNow,
    /// The same, but it is time to look again; nobody else will be told so.
    StaleForNowEnding,
}

#[derive(Debug)]
struct Entry {
    reply: Arc<Reply>,
    came: Instant,
    /// From when it came.
    holds: Duration,
    /// Since it was last looked at for its place.
    used: bool,
    fetching: bool,
    hits: u32,
    last: Instant,
    /// When a failed attempt to replace it may be repeated.
    recheck: Option<Instant>,
}

impl Entry {
    /// Whether it holds, or has ended not longer than `stale` ago. A failure says nothing once it has ended.
    fn serves(&self, now: Instant, stale: Duration) -> bool {
        let stale = if self.reply.is_failure() { Duration::ZERO } else { stale };
        now.saturating_duration_since(self.came) < self.holds.saturating_add(stale)
    }
}

#[derive(Debug, Default)]
struct Part {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// Each key once.
    queue: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    options: Options,
    parts: [Mutex<Part>; PARTS],
    hasher: RandomState,
    evicted: AtomicU64,
}

impl Part {
    fn remove(&mut self, key: &[u8]) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= cost(key, &entry.reply);
            self.queue.retain(|other| **other != *key);
        }
    }
}

fn cost(key: &[u8], reply: &Reply) -> usize {
    key.len() + reply.size() + ENTRY
}

impl Cache {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            options,
            parts: Default::default(),
            hasher: RandomState::new(),
            evicted: AtomicU64::new(0),
        }
    }

    fn part(&self, key: &[u8]) -> MutexGuard<'_, Part> {
        // The table inside hashes with other keys, so that its places do not follow from the part.
        let number = usize::try_from(self.hasher.hash_one(key) % PARTS as u64).unwrap_or_default();
        // Nothing panics while it is held.
        self.parts[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known at `now`.
    pub(crate) fn find(&self, key: &Key, now: Instant) -> Option<Found> {
        let mut part = self.part(key.bytes());
        let entry = part.entries.get_mut(key.bytes())?;
        if !entry.serves(now, self.options.stale) {
            return None;
        }
        entry.used = true;
        let reply = Arc::clone(&entry.reply);
        let age = now.saturating_duration_since(entry.came);
        if age >= entry.holds {
            let state = match entry.recheck {
                Some(recheck) if now < recheck => State::StaleForNow,
                // Who asks all the time would wait in vain again and again.
                Some(recheck) if now < recheck + RECHECK => {
                    entry.recheck = Some(now + RECHECK);
                    State::StaleForNowEnding
                }
                _ => State::Stale,
            };
            return Some(Found { reply, state });
        }
        let in_a_row = now.saturating_duration_since(entry.last) < GAP;
        entry.hits = if in_a_row { entry.hits.saturating_add(1) } else { 1 };
        entry.last = now;
        let left = entry.holds - age;
        let often = self.options.prefetch > 0 && entry.hits >= self.options.prefetch;
        let ttl = Ttl::Aged {
            by: u32::try_from(age.as_secs()).unwrap_or(u32::MAX),
            most: u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1),
        };
        let may_fetch = !entry.fetching && entry.recheck.is_none_or(|recheck| now >= recheck);
        if often && may_fetch && !reply.is_failure() && left <= entry.holds / 10 {
            entry.fetching = true;
            return Some(Found { reply, state: State::Ending(ttl) });
        }
        Some(Found { reply, state: State::Fresh(ttl) })
    }

    /// Keeps what came at `now`, if it may be; what was known before is not any more.
    pub(crate) fn keep(&self, key: &Key, reply: &Arc<Reply>, now: Instant) {
        let most = if reply.has_answers() { self.options.positive } else { self.options.negative };
        let holds = reply.ttl().map(|ttl| ttl.min(most)).unwrap_or_default();
        self.put(key, reply, holds, now);
    }

    /// Nobody could say anything newer at `now` than that he does not know.
    pub(crate) fn failed(&self, key: &Key, failure: &Arc<Reply>, now: Instant) {
        if let Some(entry) = self.part(key.bytes()).entries.get_mut(key.bytes())
            && !entry.reply.is_failure()
            && entry.serves(now, self.options.stale)
        {
            entry.fetching = false;
            entry.recheck = Some(now + RECHECK);
            return;
        }
        self.put(key, failure, FAILURE, now);
    }

    fn put(&self, key: &Key, reply: &Arc<Reply>, holds: Duration, now: Instant) {
        let allowed = self.options.bytes / PARTS;
        let takes = cost(key.bytes(), reply);
        let mut part = self.part(key.bytes());
        let part = &mut *part;
        if holds.is_zero() || takes > allowed {
            part.remove(key.bytes());
            return;
        }
        if let Some(entry) = part.entries.get_mut(key.bytes()) {
            part.bytes -= cost(key.bytes(), &entry.reply);
            (entry.reply, entry.came, entry.holds) = (Arc::clone(reply), now, holds);
            (entry.fetching, entry.recheck) = (false, None);
        } else {
            let name: Arc<[u8]> = key.bytes().into();
            part.queue.push_back(Arc::clone(&name));
            let entry = Entry {
                reply: Arc::clone(reply),
                came: now,
                holds,
                used: false,
                fetching: false,
                hits: 0,
                last: now,
                recheck: None,
            };
            part.entries.insert(name, entry);
        }
        part.bytes += takes;
        while part.bytes > allowed {
            let Some(oldest) = part.queue.pop_front() else { break };
            let Some(entry) = part.entries.get_mut(&oldest) else { continue };
            if entry.used {
                entry.used = false;
                part.queue.push_back(oldest);
            } else {
                part.bytes -= cost(&oldest, &entry.reply);
                part.entries.remove(&oldest);
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How many answers there are, how many bytes they take, and how many had to go for others.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage { evicted: self.evicted.load(Ordering::Relaxed), ..Usage::default() };
        for part in &self.parts {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            usage.entries += part.entries.len();
            usage.bytes += part.bytes;
        }
        usage
    }
}

/// See [`Cache::usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
    pub(crate) evicted: u64,
}

#[cfg(test)]
mod tests {
    use super::super::message::Received;
    use super::super::testing::{reply_to, wanted};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(name: &str) -> Key {
        Key::of(&wanted(name))
    }

    fn positive(name: &str, ttl: u32) -> Arc<Reply> {
        received(name, |asked| reply_to(asked).a([192, 0, 2, 1], ttl).bytes())
    }

    fn negative(name: &str, soa: u32, minimum: u32) -> Arc<Reply> {
        received(name, |asked| reply_to(asked).rcode(3).soa(soa, minimum).bytes())
    }

    fn failure(name: &str) -> Arc<Reply> {
        Arc::new(Reply::failure(&wanted(name)))
    }

    fn received(name: &str, answer: impl Fn(&[u8]) -> Vec<u8>) -> Arc<Reply> {
        let query = wanted(name).query([0x12, 0x34], &[], true);
        match Reply::receive(&answer(&query), &query) {
            Received::Reply(reply) => Arc::new(reply),
            other => panic!("{other:?}"),
        }
    }

    fn state(cache: &Cache, name: &str, at: Instant) -> Option<State> {
        cache.find(&key(name), at).map(|found| found.state)
    }

    fn fresh(by: u32, most: u32) -> Option<State> {
        Some(State::Fresh(Ttl::Aged { by, most }))
    }

    #[test]
    fn an_answer_is_kept_for_its_ttl_and_then_is_stale() {
        let (cache, start) = (Cache::new(Options::default()), Instant::now());
        cache.keep(&key("a.example"), &positive("a.example", 60), start);
        assert_eq!(state(&cache, "A.Example", start), fresh(0, 60), "names have no case");
        assert_eq!(state(&cache, "a.example", start + 59 * SECOND), fresh(59, 1));
        assert_eq!(state(&cache, "a.example", start + 60 * SECOND), Some(State::Stale));
        let day = Options::default().stale;
        assert_eq!(state(&cache, "a.example", start + 60 * SECOND + day), None);
        assert_eq!(state(&cache, "b.example", start), None);
    }

    #[test]
    fn no_answer_is_kept_longer_than_the_soa_says() {
        let (cache, start) = (Cache::new(Options::default()), Instant::now());
        cache.keep(&key("a.example"), &negative("a.example", 300, 30), start);
        assert_eq!(state(&cache, "a.example", start + 29 * SECOND), fresh(29, 1));
        assert_eq!(state(&cache, "a.example", start + 30 * SECOND), Some(State::Stale));
        cache.keep(&key("b.example"), &negative("b.example", 30, 300), start);
        assert_eq!(state(&cache, "b.example", start + 30 * SECOND), Some(State::Stale));
    }

    #[test]
    fn what_nothing_says_may_be_kept_is_not() {
        let (cache, start) = (Cache::new(Options::default()), Instant::now());
        let bare = |rcode| move |asked: &[u8]| reply_to(asked).rcode(rcode).bytes();
        for (name, rcode) in
            [("nodata.example", 0), ("servfail.example", 2), ("nxdomain.example", 3)]
        {
            cache.keep(&key(name), &received(name, bare(rcode)), start);
            assert_eq!(state(&cache, name, start), None, "{name}");
        }
        cache.keep(&key("zero.example"), &positive("zero.example", 0), start);
        assert_eq!(state(&cache, "zero.example", start), None);
        // Its highest bit set, a TTL is none.
        cache.keep(&key("odd.example"), &positive("odd.example", 1 << 31), start);
        assert_eq!(state(&cache, "odd.example", start), None);
    }

    #[test]
    fn longest_times_bound_what_upstreams_say() {
        let options = Options { positive: 30 * SECOND, negative: 5 * SECOND, ..Options::default() };
        let (cache, start) = (Cache::new(options), Instant::now());
        cache.keep(&key("a.example"), &positive("a.example", 600), start);
        cache.keep(&key("b.example"), &negative("b.example", 600, 600), start);
        assert_eq!(state(&cache, "a.example", start + 10 * SECOND), fresh(10, 20));
        assert_eq!(state(&cache, "a.example", start + 30 * SECOND), Some(State::Stale));
        assert_eq!(state(&cache, "b.example", start + 5 * SECOND), Some(State::Stale));
    }

    #[test]
    fn what_is_asked_for_often_is_fetched_by_one_before_it_ends() {
        let options = Options { prefetch: 3, ..Options::default() };
        let (cache, start) = (Cache::new(options), Instant::now());
        cache.keep(&key("a.example"), &positive("a.example", 100), start);
        for second in [50, 60] {
            assert!(matches!(
                state(&cache, "a.example", start + second * SECOND),
                Some(State::Fresh(_))
            ));
        }
        let late = start + 90 * SECOND;
        assert!(matches!(state(&cache, "a.example", late), Some(State::Ending(_))));
        assert!(matches!(state(&cache, "a.example", late), Some(State::Fresh(_))), "once");
        cache.keep(&key("a.example"), &positive("a.example", 100), late);
        assert_eq!(state(&cache, "a.example", late + 50 * SECOND), fresh(50, 50));
    }

    #[test]
    fn what_is_asked_for_with_pauses_is_not_fetched_ahead() {
        let options = Options { prefetch: 2, ..Options::default() };
        let (cache, start) = (Cache::new(options), Instant::now());
        cache.keep(&key("a.example"), &positive("a.example", 1000), start);
        for second in [700, 800, 950] {
            assert!(matches!(
                state(&cache, "a.example", start + second * SECOND),
                Some(State::Fresh(_))
            ));
        }
    }

    #[test]
    fn upstreams_that_failed_are_left_alone_for_half_a_minute() {
        let (cache, start) = (Cache::new(Options::default()), Instant::now());
        cache.keep(&key("a.example"), &positive("a.example", 1), start);
        let late = start + 2 * SECOND;
        assert_eq!(state(&cache, "a.example", late), Some(State::Stale));
        cache.failed(&key("a.example"), &failure("a.example"), late);
        assert_eq!(state(&cache, "a.example", late + 29 * SECOND), Some(State::StaleForNow));
        // Then one looks again, for whom nobody waits, if it is asked for all the time.
        let again = late + 30 * SECOND;
        assert_eq!(state(&cache, "a.example", again), Some(State::StaleForNowEnding));
        assert_eq!(state(&cache, "a.example", again), Some(State::StaleForNow));
        assert_eq!(state(&cache, "a.example", again + 60 * SECOND), Some(State::Stale));
    }

    #[test]
    fn a_fetch_ahead_that_failed_is_not_repeated_at_once() {
        let options = Options { prefetch: 3, ..Options::default() };
        let (cache, start) = (Cache::new(options), Instant::now());
        cache.keep(&key("a.example"), &positive("a.example", 1000), start);
        for second in [880, 930] {
            state(&cache, "a.example", start + second * SECOND);
        }
        let late = start + 940 * SECOND;
        assert!(matches!(state(&cache, "a.example", late), Some(State::Ending(_))));
        cache.failed(&key("a.example"), &failure("a.example"), late);
        for second in 0..30 {
            let now = state(&cache, "a.example", late + second * SECOND);
            assert!(matches!(now, Some(State::Fresh(_))), "after {second} s: {now:?}");
        }
        let again = state(&cache, "a.example", late + 30 * SECOND);
        assert!(matches!(again, Some(State::Ending(_))), "{again:?}");
    }

    #[test]
    fn failures_are_remembered_for_a_moment_and_never_for_an_answer() {
        let (cache, start) = (Cache::new(Options::default()), Instant::now());
        cache.failed(&key("a.example"), &failure("a.example"), start);
        let remembered = |at| cache.find(&key("a.example"), at).map(|found| found.reply.rcode());
        assert_eq!(remembered(start + SECOND), Some(2));
        assert_eq!(remembered(start + FAILURE), None);
        cache.failed(&key("a.example"), &failure("a.example"), start + FAILURE);
        cache.keep(&key("a.example"), &positive("a.example", 60), start + FAILURE);
        assert_eq!(remembered(start + FAILURE), Some(0));
        cache.failed(&key("a.example"), &failure("a.example"), start + 61 * SECOND);
        assert_eq!(remembered(start + 63 * SECOND), Some(0), "it is stale, and serves");
        let late = start + 63 * SECOND + Options::default().stale;
        cache.failed(&key("a.example"), &failure("a.example"), late);
        assert_eq!(remembered(late), Some(2), "it was too old");
    }

    #[test]
    fn what_may_not_be_kept_takes_the_place_of_what_was() {
        let (cache, start) = (Cache::new(Options::default()), Instant::now());
        let gone = received("a.example", |asked| reply_to(asked).rcode(3).bytes());
        for now in [gone, positive("a.example", 0)] {
            cache.keep(&key("a.example"), &positive("a.example", 60), start);
            cache.keep(&key("a.example"), &now, start + 61 * SECOND);
            assert_eq!(state(&cache, "a.example", start + 61 * SECOND), None);
            assert_eq!(cache.usage(), Usage::default());
            assert!(cache.parts.iter().all(|part| part.lock().expect("no panic").queue.is_empty()));
        }
    }

    #[test]
    fn bytes_are_bounded_and_what_is_used_stays() {
        let options = Options { bytes: 64 << 10, ..Options::default() };
        let (cache, start) = (Cache::new(options), Instant::now());
        cache.keep(&key("kept.example"), &positive("kept.example", 600), start);
        for number in 0..5_000 {
            let name = format!("n{number}.example");
            cache.keep(&key(&name), &positive(&name, 600), start);
            assert!(state(&cache, "kept.example", start).is_some(), "after {number}");
        }
        let usage = cache.usage();
        assert!(usage.bytes <= 64 << 10, "{usage:?}");
        assert!(usage.entries > 100, "{usage:?}");
        assert_eq!(usage.evicted, 5_001 - usage.entries as u64);
    }

    #[test]
    fn other_wishes_have_other_answers() {
        let (cache, start) = (Cache::new(Options::default()), Instant::now());
        cache.keep(&key("a.example"), &positive("a.example", 60), start);
        let other = |change: fn(&mut Wanted)| {
            let mut wanted = wanted("a.example");
            change(&mut wanted);
            cache.find(&Key::of(&wanted), start)
        };
        assert!(other(|_| ()).is_some());
        assert!(other(|wanted| wanted.signatures = true).is_none());
        assert!(other(|wanted| wanted.unchecked = true).is_none());
        assert!(other(|wanted| wanted.kind = 28).is_none());
    }
}
