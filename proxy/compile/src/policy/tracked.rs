//! A table that knows how it differs from what it was.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use super::Delta;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Tracked<K, V> {
    now: BTreeMap<K, V>,
    /// What was there, where something has changed.
    before: BTreeMap<K, Option<V>>,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { now: BTreeMap::new(), before: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Tracked<K, V> {
    pub(super) fn now(&self) -> &BTreeMap<K, V> {
        &self.now
    }

    /// Returns what was there until now.
    pub(super) fn put(&mut self, key: K, value: V) -> Option<V> {
        let old = match self.now.entry(key.clone()) {
            Entry::Occupied(known) if *known.get() == value => return Some(value),
            Entry::Occupied(mut known) => Some(known.insert(value)),
            Entry::Vacant(place) => {
                place.insert(value);
                None
            }
        };
        self.before.entry(key).or_insert_with(|| old.clone());
        old
    }

    /// Gives the values within these ranges, which are in order and apart, the ones that `value` makes of them and
    /// of what goes with their range; at a cost of one walk, however many there are.
    pub(super) fn rewrite<C>(
        &mut self,
        ranges: impl IntoIterator<Item = ((Bound<K>, Bound<K>), C)>,
        mut value: impl FnMut(&V, &C) -> V,
    ) {
        let mut before = Vec::new();
        for (range, with) in ranges {
            for (key, now) in self.now.range_mut(range) {
                let new = value(now, &with);
                if new != *now {
                    before.push((key.clone(), Some(std::mem::replace(now, new))));
                }
            }
        }
        if self.before.is_empty() {
            self.before = before.into_iter().collect();
            return;
        }
        for (key, old) in before {
            self.before.entry(key).or_insert(old);
        }
    }

    /// Returns what was there.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.now.remove(key)?;
        self.before.entry(key.clone()).or_insert_with(|| Some(old.clone()));
        Some(old)
    }

    /// How it differs from what it was when this was asked last.
    pub(super) fn take(&mut self) -> Delta<K, V> {
        let before = std::mem::take(&mut self.before);
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        let mut compare = |key: K, old: Option<V>, now: Option<&V>| match (now, old) {
            (Some(now), old) if old.as_ref() != Some(now) => put.push((key, now.clone())),
            (None, Some(_)) => gone.push(key),
            _ => {}
        };
        let many = before.len() > self.now.len() / 16;
        if let Some((first, _)) = before.first_key_value().filter(|_| many) {
            // One walk through both is cheaper than so many searches.
            let mut walk = self.now.range(first..).peekable();
            for (key, old) in before {
                while walk.next_if(|(known, _)| **known < key).is_some() {}
                let now = walk.peek().filter(|(known, _)| **known == key).map(|(_, now)| *now);
                compare(key, old, now);
            }
        } else {
            for (key, old) in before {
                let now = self.now.get(&key);
                compare(key, old, now);
            }
        }
        // What is in order is made a tree of at once.
        Delta { put: put.into_iter().collect(), gone: gone.into_iter().collect() }
    }
}
