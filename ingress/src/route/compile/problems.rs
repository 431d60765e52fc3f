//! What cannot be served, by what it was found in.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::Problem;

/// Problems by what they were found in; the same one may be found in several.
#[derive(Debug)]
pub(super) struct Problems<S> {
    found: HashMap<S, Vec<Problem>>,
    /// How often each was found.
    all: BTreeMap<Problem, usize>,
    /// Those that were found or left since the last [`Self::news`], and whether they were there then.
    before: BTreeMap<Problem, bool>,
}

/// What has changed about problems, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Those that were not there before.
    pub(crate) new: Vec<Problem>,
    /// Those that are no longer.
    pub(crate) over: Vec<Problem>,
}

impl<S> Default for Problems<S> {
    fn default() -> Self {
        Self { found: HashMap::new(), all: BTreeMap::new(), before: BTreeMap::new() }
    }
}

impl<S: Hash + Eq> Problems<S> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// These were found in `source`, in place of what was.
    pub(super) fn set(&mut self, source: S, problems: Vec<Problem>) {
        let gone = match problems.is_empty() {
            true => self.found.remove(&source).unwrap_or_default(),
            false => {
                problems.iter().for_each(|problem| self.count(problem, true));
                self.found.insert(source, problems).unwrap_or_default()
            }
        };
        gone.iter().for_each(|problem| self.count(problem, false));
    }

    /// None was found in anything.
    pub(super) fn clear(&mut self) {
        for problem in std::mem::take(&mut self.found).into_values().flatten() {
            self.count(&problem, false);
        }
    }

    fn count(&mut self, problem: &Problem, more: bool) {
        let times = self.all.get(problem).copied().unwrap_or(0);
        self.before.entry(problem.clone()).or_insert(times > 0);
        match if more { times + 1 } else { times.saturating_sub(1) } {
            0 => _ = self.all.remove(problem),
            times => _ = self.all.insert(problem.clone(), times),
        }
    }

    /// What has changed since the last time.
    pub(super) fn news(&mut self) -> News {
        let mut news = News::default();
        for (problem, was) in std::mem::take(&mut self.before) {
            match (was, self.all.contains_key(&problem)) {
                (false, true) => news.new.push(problem),
                (true, false) => news.over.push(problem),
                _ => {}
            }
        }
        news
    }
}
