//! What is found by a hash, in a form that costs little to copy and to change.
//!
//! ```text
//! root: 64 nodes ─► node: 64 leaves ─► leaf: the values whose hashes begin alike
//! ```
//!
//! A change makes a leaf anew, and copies the pointers of its node and of the root; all else is shared with the table before. In
//! a leaf of a table with 100,000 values there are about 25. Each arrow is a place in memory that most queries find in no cache,
//! so there is nothing between them.

use std::array;
use std::iter::once;
use std::sync::Arc;

/// Values by a hash of something that they know of themselves.
#[derive(Debug)]
pub(crate) struct Table<T> {
    root: Arc<[Node<T>; FAN_OUT]>,
}

type Node<T> = Arc<[Leaf<T>; FAN_OUT]>;
type Leaf<T> = Arc<[(u64, T)]>;

/// Nodes, and leaves of a node.
const FAN_OUT: usize = 64;

/// The places of a hash in the root and in its node.
fn places(hash: u64) -> (usize, usize) {
    let [.., node, leaf] = hash.to_le_bytes();
    (usize::from(node) % FAN_OUT, usize::from(leaf) % FAN_OUT)
}

impl<T: Clone> Table<T> {
    /// The values of that hash; others may be among them.
    pub(crate) fn find(&self, hash: u64) -> impl Iterator<Item = &T> {
        let (node, leaf) = places(hash);
        let leaf = self.root[node][leaf].iter();
        leaf.filter(move |(other, _)| *other == hash).map(|(_, value)| value)
    }

    /// Adds a value, although there is one of that hash.
    pub(crate) fn insert(&mut self, hash: u64, value: T) {
        let leaf = self.leaf(hash);
        *leaf = leaf.iter().cloned().chain(once((hash, value))).collect();
    }

    /// Puts a value in the place of the one that `is` it, or adds it.
    pub(crate) fn replace(&mut self, hash: u64, value: T, is: impl Fn(&T) -> bool) {
        let leaf = self.leaf(hash);
        match leaf.iter().position(|(other, value)| *other == hash && is(value)) {
            Some(place) => Arc::make_mut(leaf)[place].1 = value,
            None => self.insert(hash, value),
        }
    }

    /// Takes out the value that `is` it, if there is one.
    pub(crate) fn remove(&mut self, hash: u64, is: impl Fn(&T) -> bool) {
        let leaf = self.leaf(hash);
        if let Some(place) = leaf.iter().position(|(other, value)| *other == hash && is(value)) {
            *leaf = leaf[..place].iter().chain(&leaf[place + 1..]).cloned().collect();
        }
    }

    /// All values.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.root
            .iter()
            .flat_map(|node| node.iter())
            .flat_map(|leaf| leaf.iter())
            .map(|(_, value)| value)
    }

    fn leaf(&mut self, hash: u64) -> &mut Leaf<T> {
        let (node, leaf) = places(hash);
        &mut Arc::make_mut(&mut Arc::make_mut(&mut self.root)[node])[leaf]
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root) }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        let leaf = Leaf::default();
        let node = Arc::new(array::from_fn(|_| Arc::clone(&leaf)));
        Self { root: Arc::new(array::from_fn(|_| Arc::clone(&node))) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few hashes, so that several values have one.
    fn hash(name: u8) -> u64 {
        u64::from(name % 5) << 56
    }

    fn all(table: &Table<(u8, u8)>) -> BTreeMap<u8, u8> {
        let found = (0..20).filter_map(|name| {
            let value = table.find(hash(name)).find(|value| value.0 == name)?;
            Some((name, value.1))
        });
        found.collect()
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_a_copy_stays(
            first in vec((0..20_u8, prop::option::of(0..9_u8)), 0..60),
            second in vec((0..20_u8, prop::option::of(0..9_u8)), 0..20),
        ) {
            let mut table = Table::default();
            let mut map = BTreeMap::new();
            let mut take = |table: &mut Table<(u8, u8)>, changes: Vec<(u8, Option<u8>)>| {
                for (name, value) in changes {
                    match value {
                        Some(value) => {
                            table.replace(hash(name), (name, value), |of| of.0 == name);
                            map.insert(name, value);
                        }
                        None => {
                            table.remove(hash(name), |of| of.0 == name);
                            map.remove(&name);
                        }
                    }
                }
                map.clone()
            };
            let had = take(&mut table, first);
            prop_assert_eq!(all(&table), had.clone());
            prop_assert_eq!(table.values().count(), had.len());
            let before = table.clone();
            let has = take(&mut table, second);
            prop_assert_eq!(all(&table), has);
            prop_assert_eq!(all(&before), had);
        }
    }

    #[test]
    fn a_change_copies_one_leaf() {
        let mut table: Table<u32> = Table::default();
        for value in 0..10_000_u32 {
            table.insert(u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15), value);
        }
        let before = table.clone();
        table.insert(0, 7);
        let nodes = table.root.iter().zip(before.root.iter());
        assert_eq!(nodes.filter(|(one, other)| !Arc::ptr_eq(one, other)).count(), 1);
        let leaves = table.root[0].iter().zip(before.root[0].iter());
        assert_eq!(leaves.filter(|(one, other)| !Arc::ptr_eq(one, other)).count(), 1);
    }
}
