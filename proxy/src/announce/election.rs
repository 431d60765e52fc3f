//! Who of an address's candidates announces it: the first that lives. Time comes in as a value.
//!
//! Candidates tell those behind them, several times a second, that they live. Who has heard nothing of any
//! candidate before it for a while announces in their place, and stops as soon as it hears of one. So nobody
//! else is asked, and a control plane that is away changes nothing. For a moment two may announce; all nodes
//! serve all addresses, and the last one that is heard on the link gets what is sent.
//!
//! An agent that is about to be started again says so, and is waited for: its node goes on forwarding, and
//! another one would not know the connections that it has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Between two signs of life.
pub(super) const BEAT: Duration = Duration::from_millis(100);
/// A candidate of which nothing was heard for so long is dead: a few lost packets are not enough.
pub(super) const SILENCE: Duration = Duration::from_millis(450);
/// How long is waited for an agent that is started again.
pub(super) const PAUSE: Duration = Duration::from_secs(5);
/// How long one may take to know that it is a candidate, and for whom.
pub(super) const FIRST: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Election {
    node: String,
    /// The candidates before this node, and those behind it, of each address.
    claims: BTreeMap<IpAddr, (Vec<String>, Vec<String>)>,
    /// Until when those before this node count as alive.
    alive: HashMap<String, Instant>,
}

impl Election {
    /// One in which the node of that name has nothing to do yet.
    pub(super) fn new(node: String) -> Self {
        Self { node, claims: BTreeMap::new(), alive: HashMap::new() }
    }

    /// From now on it is about these addresses, each with its candidates.
    pub(super) fn follow<'a>(
        &mut self,
        claims: impl Iterator<Item = (IpAddr, &'a [String])>,
        now: Instant,
    ) {
        let split = |candidates: &[String]| {
            let own = candidates.iter().position(|name| *name == self.node);
            let own = own.unwrap_or(candidates.len());
            let behind = candidates.get(own + 1..).unwrap_or_default();
            (candidates[..own].to_vec(), behind.to_vec())
        };
        self.claims = claims.map(|(ip, candidates)| (ip, split(candidates))).collect();
        let before: BTreeSet<&String> =
            self.claims.values().flat_map(|(before, _)| before).collect();
        self.alive.retain(|name, _| before.contains(name));
        for name in before {
            self.alive.entry(name.clone()).or_insert(now + FIRST);
        }
    }

    /// A node says that it lives, or that it ends.
    pub(super) fn hear(&mut self, name: &str, lives: bool, now: Instant) {
        if let Some(until) = self.alive.get_mut(name) {
            *until = if lives { now + SILENCE } else { now };
        }
    }

    /// A node says that its agent is about to be started again. One whose place was taken already has nothing
    /// that could be kept for it.
    pub(super) fn wait_for(&mut self, name: &str, now: Instant) {
        if let Some(until) = self.alive.get_mut(name).filter(|until| **until > now) {
            *until = now + PAUSE;
        }
    }

    /// Those that are to hear that this node lives.
    pub(super) fn behind(&self) -> BTreeSet<&str> {
        self.claims.values().flat_map(|(_, behind)| behind).map(String::as_str).collect()
    }

    /// Those whose place this node may take.
    pub(super) fn before(&self) -> BTreeSet<&str> {
        self.claims.values().flat_map(|(before, _)| before).map(String::as_str).collect()
    }

    /// The addresses that this node announces.
    pub(super) fn held(&self, now: Instant) -> BTreeSet<IpAddr> {
        let dead = |name: &String| self.alive.get(name).is_none_or(|until| *until <= now);
        let held = self.claims.iter().filter(|(_, (before, _))| before.iter().all(dead));
        held.map(|(ip, _)| *ip).collect()
    }

    /// When that may change although nothing is heard.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.alive.values().copied().filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// What `node` does about addresses with these candidates.
    fn election(node: &str, claims: &[(u8, &[&str])], now: Instant) -> Election {
        let mut election = Election::new(node.to_owned());
        follow(&mut election, claims, now);
        election
    }

    fn follow(election: &mut Election, claims: &[(u8, &[&str])], now: Instant) {
        let named: Vec<(IpAddr, Vec<String>)> = claims
            .iter()
            .map(|(last, names)| (ip(*last), names.iter().map(ToString::to_string).collect()))
            .collect();
        election.follow(named.iter().map(|(ip, names)| (*ip, names.as_slice())), now);
    }

    #[test]
    fn the_first_announces_at_once_and_the_next_when_it_is_silent() {
        let start = Instant::now();
        let all: [(u8, &[&str]); 2] = [(1, &["a", "b", "c"]), (2, &["b", "a"])];
        let a = election("a", &all, start);
        assert_eq!(a.held(start), [ip(1)].into());
        assert_eq!((a.before(), a.behind()), (["b"].into(), ["b", "c"].into()));
        let mut b = election("b", &all, start);
        assert_eq!(b.held(start), [ip(2)].into());
        let mut now = start;
        for _ in 0..30 {
            now += BEAT;
            b.hear("a", true, now);
            assert_eq!(b.held(now), [ip(2)].into());
        }
        assert_eq!(b.next(now), Some(now + SILENCE));
        assert_eq!(b.held(now + SILENCE), [ip(1), ip(2)].into());
        // It comes back.
        now += 2 * SILENCE;
        b.hear("a", true, now);
        assert_eq!(b.held(now), [ip(2)].into());
        // It is started again.
        b.wait_for("a", now);
        now += 2 * SILENCE;
        assert_eq!(b.held(now), [ip(2)].into());
        b.hear("a", true, now);
        assert_eq!(b.held(now + SILENCE), [ip(1), ip(2)].into());
        // Or says so, and is not.
        b.hear("a", true, now);
        b.wait_for("a", now);
        assert_eq!(b.held(now + PAUSE - BEAT), [ip(2)].into());
        now += PAUSE;
        assert_eq!(b.held(now), [ip(1), ip(2)].into());
        // That comes too late to mean anything.
        b.wait_for("a", now);
        assert_eq!(b.held(now), [ip(1), ip(2)].into());
        // It says that it ends.
        b.hear("a", true, now);
        b.hear("a", false, now);
        assert_eq!(b.held(now), [ip(1), ip(2)].into());
    }

    #[test]
    fn all_before_it_have_to_be_silent() {
        let start = Instant::now();
        let mut c = election("c", &[(1, &["a", "b", "c"])], start);
        assert_eq!(c.held(start + FIRST - BEAT), BTreeSet::new());
        let now = start + FIRST;
        c.hear("b", true, now);
        assert_eq!(c.held(now), BTreeSet::new());
        assert_eq!(c.held(now + SILENCE), [ip(1)].into());
        assert_eq!(c.next(now + SILENCE), None);
    }

    #[test]
    fn who_is_new_gets_time_and_who_is_known_none() {
        let start = Instant::now();
        let mut b = election("b", &[(1, &["a", "b"])], start);
        let now = start + FIRST;
        assert_eq!(b.held(now), [ip(1)].into());
        // Of another address it was known before that it is dead.
        follow(&mut b, &[(1, &["a", "b"]), (2, &["a", "b"]), (3, &["d", "b"])], now);
        assert_eq!(b.held(now), [ip(1), ip(2)].into());
        assert_eq!(b.held(now + FIRST), [ip(1), ip(2), ip(3)].into());
        // Nobody's business any more.
        follow(&mut b, &[], now);
        assert_eq!((b.held(now), b.next(now)), (BTreeSet::new(), None));
        b.hear("a", true, now);
        assert_eq!(b.next(now), None);
    }
}
