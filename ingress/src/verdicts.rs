//! What was said of late about who may pass.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{HeaderMap, StatusCode};

use crate::route::Route;

/// Answers that are remembered at most; with more, all are forgotten.
const MOST: usize = 10_000;

/// Answers by route and by what they depend on.
#[derive(Debug, Default)]
pub(crate) struct Verdicts(Mutex<HashMap<(usize, Vec<u8>), Said>>);

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
        key: &[u8],
        now: Instant,
    ) -> Option<(StatusCode, HeaderMap)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Arc::as_ptr(route).addr(), key.to_vec());
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
        key: &[u8],
        until: Instant,
        answer: (StatusCode, HeaderMap),
    ) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        let said = Said { _route: Arc::clone(route), until, answer };
        all.insert((Arc::as_ptr(route).addr(), key.to_vec()), said);
    }
}
