//! The keys of TLS tickets: what gateways seal sessions with, so that a client that comes back to another
//! replica is known there.
//!
//! Time is cut into periods of six hours, and each has a key, which is made of a secret and the period's number.
//! Those of the period before, this one and the next are given out: gateways whose clocks differ have them in
//! time, and a ticket is good for six to twelve hours. Control planes of one CA make the same keys, and keep none.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use fairway_model::{Model, Sensitive, TicketKey};

use crate::authority::{Authority, seconds};
use crate::derive::derive;
use crate::identity::hex;

/// In seconds.
const PERIOD: u64 = 6 * 3600;
/// Between two looks at the clock, at most: it may jump.
const LOOK: Duration = Duration::from_secs(60);

/// What they are made of.
#[derive(Clone)]
pub struct TicketKeys([u8; 32]);

/// Shows nothing.
impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKeys(…)")
    }
}

impl TicketKeys {
    /// Those of all control planes that have this CA. Who knows its key can make them.
    pub fn of(authority: &Authority) -> Self {
        Self(derive(authority.key_der(), &[b"fairway ticket keys"]))
    }

    /// Those of nobody else, for as long as this is there.
    pub fn random() -> io::Result<Self> {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| io::Error::other("no random numbers"))?;
        Ok(Self(secret))
    }

    /// What a model is with the keys of this time; one that has nothing for gateways stays as it is.
    pub(crate) fn added_to(&self, model: &Model, now: SystemTime) -> Option<Model> {
        if model.ingresses.is_empty() && model.gateways.is_empty() {
            return None;
        }
        let mut model = model.clone();
        self.at(now).into_iter().for_each(|key| model.ticket_keys.insert(key));
        Some(model)
    }

    fn at(&self, now: SystemTime) -> [TicketKey; 3] {
        // The first has none before it.
        let period = (seconds(now) / PERIOD).max(1);
        [period - 1, period, period + 1].map(|period| {
            let made: [u8; 48] = derive(&self.0, &[b"fairway ticket key ", &period.to_be_bytes()]);
            let (name, key) = made.split_at(16);
            TicketKey { name: hex(name), since: period * PERIOD, key: Sensitive::new(hex(key)) }
        })
    }
}

/// When to look whether others are due.
pub(crate) fn until_next(now: SystemTime) -> Duration {
    Duration::from_secs(PERIOD - seconds(now) % PERIOD).min(LOOK)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use fairway_model::{Gateway, Object};

    use super::*;
    use crate::history::History;
    use crate::scope::Subscriber;

    fn at(period: u64, second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(period * PERIOD + second)
    }

    #[test]
    fn control_planes_of_one_ca_make_the_same_keys() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let made = folders.each_ref().map(|folder| {
            // Each start reads the CA from its files.
            [(); 2].map(|()| TicketKeys::of(&Authority::open(folder.path()).unwrap()).at(at(9, 0)))
        });
        assert_eq!(made[0][0], made[0][1]);
        assert_ne!(made[0][0], made[1][0]);
        assert_ne!(
            TicketKeys::random().unwrap().at(at(9, 0)),
            TicketKeys::random().unwrap().at(at(9, 0))
        );
    }

    #[test]
    fn each_period_has_a_key_and_is_there_before_and_after() {
        let keys = TicketKeys([7; 32]);
        let all = keys.at(at(9, 0));
        assert_eq!(all.each_ref().map(|key| key.since / PERIOD), [8, 9, 10]);
        assert_eq!(keys.at(at(9, PERIOD - 1)), all);
        let next = keys.at(at(10, 0));
        assert_eq!(next[..2], all[1..]);
        let mut names: Vec<_> = all.iter().chain(&next).map(|key| &key.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 4);
        assert_eq!(keys.at(UNIX_EPOCH)[0].since, 0);
        for (now, wait) in [(at(9, 0), LOOK), (at(9, PERIOD - 7), Duration::from_secs(7))] {
            assert_eq!(until_next(now), wait);
        }
        assert!(!format!("{keys:?}").contains('7'));
    }

    #[test]
    fn a_new_period_is_one_key_more_and_one_less() {
        let keys = TicketKeys([7; 32]);
        let gateway = Object::Gateway(Gateway::default());
        let model: Model = [gateway].into_iter().collect();
        let with = |now| Arc::new(keys.added_to(&model, now).unwrap());
        with(at(9, 0)).validate().unwrap();
        let mut history = History::new("e".into(), with(at(9, 0)));
        assert!(!history.push(with(at(9, 60))));
        assert!(history.push(with(at(10, 0))));
        let lines = |subscriber, history: &mut History| {
            String::from_utf8(history.after(&subscriber, 1).unwrap().lines()).unwrap()
        };
        let heard = lines(Subscriber::Gateway("edge".parse().unwrap()), &mut history);
        let verbs =
            ["put", "delete", "sync"].map(|verb| heard.matches(&format!("{{\"{verb}\":")).count());
        assert_eq!(verbs, [1, 1, 1], "{heard}");
        assert!(heard.len() < 500, "{heard}");
        assert_eq!(
            lines(Subscriber::Node("n1".into()), &mut history),
            "{\"sync\":{\"revision\":2,\"digest\":{}}}\n"
        );
        // Where there are no gateways, there are no keys.
        assert!(keys.added_to(&Model::default(), at(9, 0)).is_none());
    }
}
