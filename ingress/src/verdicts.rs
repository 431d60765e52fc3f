//! What was said of late about who may pass.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use http::StatusCode;

use crate::message::{Fields, Known};
use crate::route::Route;

/// Answers that are remembered at most; with more, all are forgotten.
const MOST: usize = 10_000;

/// Answers by route and by what they depend on, as a hash: clients may make that long.
#[derive(Debug, Default)]
pub(crate) struct Verdicts(Mutex<HashMap<Key, Said>>);

type Key = (usize, [u8; 32]);

fn key(route: &Arc<Route>, depends_on: &[u8]) -> Key {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, depends_on).as_ref());
    (Arc::as_ptr(route).addr(), hash)
}

/// Whether an answer may be given to others, as nginx has it: not what is said for one alone, least of all the
/// cookies of one.
pub(crate) fn may_be_kept(headers: &Fields) -> bool {
    let mut said = headers.texts(Known::CacheControl).flat_map(|value| value.split(','));
    let forbids = |said: &str| {
        let name = said.split_once('=').map_or(said, |(name, _)| name).trim();
        ["private", "no-store", "no-cache"].iter().any(|no| name.eq_ignore_ascii_case(no))
    };
    !headers.contains(Known::SetCookie) && !said.any(forbids)
}

#[derive(Debug)]
struct Said {
    /// Kept, so that no other route comes to lie where this one does. When an Ingress changes, its routes are
    /// others, and nothing has been said about them.
    _route: Arc<Route>,
    until: Instant,
    answer: (StatusCode, Fields),
}

impl Verdicts {
    /// What was said, if that still holds.
    pub(crate) fn get(
        &self,
        route: &Arc<Route>,
        depends_on: &[u8],
        now: Instant,
    ) -> Option<(StatusCode, Fields)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(route, depends_on);
        let said = all.get(&key)?;
        if said.until <= now {
            all.remove(&key);
            return None;
        }
        Some(said.answer.clone())
    }

    /// Remembers it.
    pub(crate) fn put(
        &self,
        route: &Arc<Route>,
        depends_on: &[u8],
        until: Instant,
        (status, fields): (StatusCode, &Fields),
    ) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        // A copy, and not all that was read along with it.
        let mut copy = Fields::new();
        copy.extend(fields);
        let said = Said { _route: Arc::clone(route), until, answer: (status, copy) };
        all.insert(key(route, depends_on), said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_for_one_alone_is_not_kept() {
        let kept = |name: Known, value| may_be_kept(&Fields::from_iter([(name, value)]));
        assert!(may_be_kept(&Fields::new()));
        assert!(kept(Known::CacheControl, "public, max-age=60"));
        for no in ["no-store", "max-age=60, Private", "private=\"set-cookie\"", "no-cache"] {
            assert!(!kept(Known::CacheControl, no), "{no}");
        }
        assert!(!kept(Known::SetCookie, "session=1"));
    }
}
