//! What was said of late about who may pass.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use http::header::{CACHE_CONTROL, SET_COOKIE};
use http::{HeaderMap, StatusCode};

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
pub(crate) fn may_be_kept(headers: &HeaderMap) -> bool {
    let said = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut said = said.flat_map(|value| value.split(','));
    let forbids = |said: &str| {
        let name = said.split_once('=').map_or(said, |(name, _)| name).trim();
        ["private", "no-store", "no-cache"].iter().any(|no| name.eq_ignore_ascii_case(no))
    };
    !headers.contains_key(SET_COOKIE) && !said.any(forbids)
}

#[derive(Debug)]
struct Said {
    /// Kept, so that no other route comes to lie where this one does. When an Ingress changes, its routes are
    /// others, and nothing has been said about them.
    _route: Arc<Route>,
    until: Instant,
    answer: (StatusCode, HeaderMap),
}

impl Verdicts {
    /// What was said, if that still holds.
    pub(crate) fn get(
        &self,
        route: &Arc<Route>,
        depends_on: &[u8],
        now: Instant,
    ) -> Option<(StatusCode, HeaderMap)> {
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
        answer: (StatusCode, HeaderMap),
    ) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        let said = Said { _route: Arc::clone(route), until, answer };
        all.insert(key(route, depends_on), said);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_is_said_for_one_alone_is_not_kept() {
        let kept = |name, value: &'static str| {
            may_be_kept(&[(name, HeaderValue::from_static(value))].into_iter().collect())
        };
        assert!(may_be_kept(&HeaderMap::new()));
        assert!(kept(CACHE_CONTROL, "public, max-age=60"));
        for no in ["no-store", "max-age=60, Private", "private=\"set-cookie\"", "no-cache"] {
            assert!(!kept(CACHE_CONTROL, no), "{no}");
        }
        assert!(!kept(SET_COOKIE, "session=1"));
    }
}
