//! Maps that outlive what is made of them: copies that share, and values that are known while somebody has them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Arc, Weak};

/// A map whose copies share what they have in common. Copying one costs a count; the first change of a copy costs a
/// pointer for each [`FULL`] values, and few values.
///
/// ```text
/// copy a ─► [ bucket │ bucket  │ bucket ]    by the hash of the key
///                │               │
/// copy b ─► [ bucket │ bucket' │ bucket ]    b has changed a value of the second one
/// ```
pub(crate) struct Shared<K, V> {
    hasher: RandomState,
    /// None, or a power of two.
    buckets: Arc<Vec<Arc<Bucket<K, V>>>>,
    len: usize,
}

type Bucket<K, V> = Vec<Entry<K, V>>;

#[derive(Clone)]
struct Entry<K, V> {
    hash: u64,
    key: K,
    value: V,
}

/// Values in a bucket, on average and at most: so few that looking at all of their hashes takes no time.
const FULL: usize = 8;

impl<K, V> Shared<K, V> {
    /// All, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let entries = self.buckets.iter().flat_map(|bucket| bucket.iter());
        entries.map(|entry| (&entry.key, &entry.value))
    }
}

impl<K: Hash + Eq, V> Shared<K, V> {
    /// That of `key`.
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        if self.len == 0 {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        let bucket = &self.buckets[place(hash, self.buckets.len())];
        let at = find(bucket, hash, key)?;
        Some(&bucket[at].value)
    }

    /// Whether there is one of `key`.
    pub(crate) fn contains_key<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Clone + Hash + Eq, V: Clone> Shared<K, V> {
    /// Takes a value in, instead of another one of `key`.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.len >= self.buckets.len() * FULL {
            self.grow();
        }
        let hash = self.hasher.hash_one(&key);
        let bucket = self.bucket(hash);
        match find(bucket, hash, &key) {
            Some(at) => bucket[at].value = value,
            None => {
                bucket.push(Entry { hash, key, value });
                self.len += 1;
            }
        }
    }

    /// Removes the value of `key`.
    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        // What is not there costs no copy.
        self.get(key)?;
        let hash = self.hasher.hash_one(key);
        let bucket = self.bucket(hash);
        let at = find(bucket, hash, key)?;
        let entry = bucket.swap_remove(at);
        self.len -= 1;
        Some(entry.value)
    }

    /// The bucket of a hash, of nobody else.
    fn bucket(&mut self, hash: u64) -> &mut Bucket<K, V> {
        let buckets = Arc::make_mut(&mut self.buckets);
        let at = place(hash, buckets.len());
        Arc::make_mut(&mut buckets[at])
    }

    /// Makes room for twice as many.
    fn grow(&mut self) {
        let count = (self.buckets.len() * 2).max(1);
        let mut buckets = vec![Vec::new(); count];
        for entry in self.buckets.iter().flat_map(|bucket| bucket.iter()) {
            buckets[place(entry.hash, count)].push(entry.clone());
        }
        self.buckets = Arc::new(buckets.into_iter().map(Arc::new).collect());
    }
}

/// The bucket of a hash among `count`.
fn place(hash: u64, count: usize) -> usize {
    usize::try_from(hash & (count as u64 - 1)).unwrap_or_default()
}

fn find<K: Borrow<Q>, V, Q: Eq + ?Sized>(
    bucket: &Bucket<K, V>,
    hash: u64,
    key: &Q,
) -> Option<usize> {
    bucket.iter().position(|entry| entry.hash == hash && entry.key.borrow() == key)
}

impl<K, V> Clone for Shared<K, V> {
    fn clone(&self) -> Self {
        let (hasher, buckets) = (self.hasher.clone(), Arc::clone(&self.buckets));
        Self { hasher, buckets, len: self.len }
    }
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), buckets: Arc::default(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Values that are made once, and known by a key for as long as somebody has them.
#[derive(Debug)]
pub(crate) struct Made<K, V> {
    known: HashMap<K, Weak<V>>,
    /// With more, those are forgotten that nobody has.
    most: usize,
}

impl<K, V> Default for Made<K, V> {
    fn default() -> Self {
        Self { known: HashMap::new(), most: 64 }
    }
}

impl<K: Hash + Eq, V> Made<K, V> {
    /// That of `key`, or a new one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn get<E>(
        &mut self,
        key: K,
        make: impl FnOnce(&K) -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        if let Some(known) = self.known.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let value = Arc::new(make(&key)?);
        if self.known.len() >= self.most {
            self.known.retain(|_, value| value.strong_count() > 0);
            self.most = 64 + 2 * self.known.len();
        }
        self.known.insert(key, Arc::downgrade(&value));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_its_copies_stay_as_they_are(
            changes in vec((0..200_u32, any::<Option<u8>>()), 0..400),
            copied in 0..400_usize,
        ) {
            let (mut map, mut expected) = (Shared::default(), HashMap::new());
            let mut copy = None;
            for (at, (key, value)) in changes.into_iter().enumerate() {
                if at == copied {
                    copy = Some((map.clone(), expected.clone()));
                }
                match value {
                    Some(value) => {
                        map.insert(key, value);
                        expected.insert(key, value);
                    }
                    None => prop_assert_eq!(map.remove(&key), expected.remove(&key)),
                }
            }
            for (map, expected) in copy.into_iter().chain([(map, expected)]) {
                prop_assert_eq!(map.len, expected.len());
                prop_assert!((0..200).all(|key| map.get(&key) == expected.get(&key)));
                let all: HashMap<_, _> = map.iter().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(all, expected);
            }
        }
    }

    #[test]
    fn a_change_copies_one_bucket() {
        let mut map = Shared::default();
        (0..1000_u32).for_each(|key| map.insert(key, 0));
        let before = map.clone();
        map.insert(7, 1);
        let pairs = map.buckets.iter().zip(&*before.buckets);
        assert_eq!(pairs.filter(|(one, other)| !Arc::ptr_eq(one, other)).count(), 1);
    }

    #[test]
    fn what_nobody_has_is_made_anew_and_forgotten() {
        let mut made = Made::default();
        let mut get = |key: u32| made.get(key, |key| Ok::<_, Infallible>(*key)).unwrap();
        let one = get(1);
        assert!(Arc::ptr_eq(&one, &get(1)));
        (2..1000).for_each(|key| _ = get(key));
        assert!(Arc::ptr_eq(&one, &get(1)));
        assert!(made.known.len() <= 70, "{}", made.known.len());
    }
}
