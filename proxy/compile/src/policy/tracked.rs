//! A table that knows how it differs from what it was.

use std::collections::BTreeMap;

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
        if self.now.get(&key) == Some(&value) {
            return Some(value);
        }
        let old = self.now.insert(key.clone(), value);
        self.before.entry(key).or_insert_with(|| old.clone());
        old
    }

    /// Returns what was there.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.now.remove(key)?;
        self.before.entry(key.clone()).or_insert_with(|| Some(old.clone()));
        Some(old)
    }

    /// How it differs from what it was when this was asked last.
    pub(super) fn take(&mut self) -> Delta<K, V> {
        let mut delta = Delta::default();
        for (key, old) in std::mem::take(&mut self.before) {
            match self.now.get(&key) {
                Some(now) if old.as_ref() != Some(now) => {
                    delta.put.insert(key, now.clone());
                }
                None if old.is_some() => {
                    delta.gone.insert(key);
                }
                _ => {}
            }
        }
        delta
    }
}
