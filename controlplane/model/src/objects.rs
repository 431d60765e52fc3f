//! Objects of one kind, in a form that costs little to copy, to change and to compare.
//!
//! A model is copied whenever one of its objects changes, and compared with the one before to find
//! out which; in a large cluster both must not cost the cluster. Objects therefore lie in chunks, in
//! the order of their names, and copies share the chunks that neither has changed:
//!
//! ```text
//! copy a ─► [ a..f │ g..m │ n..z ]
//!              │      ╲      │        copy b has changed an object between g and m;
//! copy b ─► [ a..f │ g..m' │ n..z ]   whoever compares the two looks at nothing else
//! ```

use std::borrow::Borrow;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::Arc;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What has a name that tells it from others of its kind.
pub trait Named {
    /// The kind's names.
    type Name: Ord;

    /// Its name.
    fn name(&self) -> &Self::Name;
}

/// Objects by name. Copying one costs a count; the first change of a copy costs about the square root
/// of how many objects there are.
pub struct Objects<T> {
    /// None is empty; names grow within a chunk, and from one to the next.
    chunks: Arc<Vec<Arc<Chunk<T>>>>,
}

type Chunk<T> = Vec<Arc<T>>;

/// Objects in one chunk. A change copies a chunk's pointers and the pointers to all chunks, so this is
/// about the square root of a large cluster's Services.
const MOST: usize = 256;

/// An object that differs between two sets; one of the sides may not have it.
#[derive(Debug)]
pub struct Difference<'a, T> {
    /// As it was.
    pub before: Option<&'a Arc<T>>,
    /// As it is.
    pub after: Option<&'a Arc<T>>,
}

impl<T: Named> Difference<'_, T> {
    /// Of the object.
    pub fn name(&self) -> &T::Name {
        let object = self.before.or(self.after).expect("one of the sides has it");
        object.name()
    }
}

impl<T: Named> Objects<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The object of this name.
    pub fn get<Q: Ord + ?Sized>(&self, name: &Q) -> Option<&T>
    where
        T::Name: Borrow<Q>,
    {
        self.get_shared(name).map(|object| &**object)
    }

    /// The same, to be kept.
    pub fn get_shared<Q: Ord + ?Sized>(&self, name: &Q) -> Option<&Arc<T>>
    where
        T::Name: Borrow<Q>,
    {
        let (chunk, place) = self.find(name);
        place.ok().map(|index| &self.chunks[chunk][index])
    }

    /// Whether there is one of this name.
    pub fn contains_key<Q: Ord + ?Sized>(&self, name: &Q) -> bool
    where
        T::Name: Borrow<Q>,
    {
        self.get(name).is_some()
    }

    /// All objects, by name.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.shared().map(|object| &**object)
    }

    /// Their names, in order.
    pub fn keys(&self) -> impl Iterator<Item = &T::Name> {
        self.values().map(Named::name)
    }

    /// Takes an object in, instead of one of its name.
    pub fn insert(&mut self, object: impl Into<Arc<T>>) {
        let object = object.into();
        let (at, place) = self.find(object.name());
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![object]));
            return;
        };
        let chunk = Arc::make_mut(chunk);
        match place {
            Ok(index) => chunk[index] = object,
            Err(index) => {
                chunk.insert(index, object);
                if chunk.len() > MOST {
                    // What comes in order, as a whole model does, leaves full chunks behind.
                    let keep = if index == MOST { MOST } else { MOST / 2 };
                    let rest = chunk.split_off(keep);
                    chunks.insert(at + 1, Arc::new(rest));
                }
            }
        }
    }

    /// Removes the object of this name.
    pub fn remove<Q: Ord + ?Sized>(&mut self, name: &Q) -> Option<Arc<T>>
    where
        T::Name: Borrow<Q>,
    {
        let (at, Ok(index)) = self.find(name) else { return None };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        let object = chunk.remove(index);
        if chunk.is_empty() {
            chunks.remove(at);
        }
        Some(object)
    }

    /// Where they differ from `next`, by name. What both share is not looked at.
    pub fn diff<'a>(&'a self, next: &'a Self) -> Differences<'a, T> {
        Differences { before: Cursor::new(self), after: Cursor::new(next) }
    }

    /// The same, each as it is shared.
    pub fn shared(&self) -> impl Iterator<Item = &Arc<T>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The chunk where this name belongs, and its place there: that of the object, or where it would be.
    fn find<Q: Ord + ?Sized>(&self, name: &Q) -> (usize, Result<usize, usize>)
    where
        T::Name: Borrow<Q>,
    {
        let behind = self.chunks.partition_point(|chunk| chunk[0].name().borrow() <= name);
        let at = behind.saturating_sub(1);
        let place = match self.chunks.get(at) {
            Some(chunk) => chunk.binary_search_by(|object| object.name().borrow().cmp(name)),
            None => Err(0),
        };
        (at, place)
    }
}

/// See [`Objects::diff`].
pub struct Differences<'a, T> {
    before: Cursor<'a, T>,
    after: Cursor<'a, T>,
}

/// A place among the objects of a set.
struct Cursor<'a, T> {
    chunks: &'a [Arc<Chunk<T>>],
    index: usize,
}

impl<'a, T> Cursor<'a, T> {
    fn new(objects: &'a Objects<T>) -> Self {
        Self { chunks: &objects.chunks, index: 0 }
    }

    fn get(&self) -> Option<&'a Arc<T>> {
        self.chunks.first().map(|chunk| &chunk[self.index])
    }

    fn step(&mut self) {
        self.index += 1;
        if self.chunks.first().is_some_and(|chunk| chunk.len() == self.index) {
            self.skip();
        }
    }

    /// To the next chunk.
    fn skip(&mut self) {
        (self.chunks, self.index) = (&self.chunks[1..], 0);
    }

    /// The chunk that begins here.
    fn chunk(&self) -> Option<&'a Arc<Chunk<T>>> {
        self.chunks.first().filter(|_| self.index == 0)
    }
}

impl<'a, T: Named + PartialEq> Iterator for Differences<'a, T> {
    type Item = Difference<'a, T>;

    fn next(&mut self) -> Option<Self::Item> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let Self { before, after } = self;
        loop {
            if let (Some(had), Some(has)) = (before.chunk(), after.chunk())
                && Arc::ptr_eq(had, has)
            {
                before.skip();
                after.skip();
                continue;
            }
            let (had, has) = (before.get(), after.get());
            let order = match (had, has) {
                (Some(had), Some(has)) => had.name().cmp(has.name()),
                (Some(_), None) => Less,
                (None, Some(_)) => Greater,
                (None, None) => return None,
            };
            if order != Greater {
                before.step();
            }
            if order != Less {
                after.step();
            }
            match (order, had, has) {
                (Less, had, _) => return Some(Difference { before: had, after: None }),
                (Greater, _, has) => return Some(Difference { before: None, after: has }),
                (Equal, Some(one), Some(other)) if !Arc::ptr_eq(one, other) && one != other => {
                    return Some(Difference { before: had, after: has });
                }
                (Equal, ..) => {}
            }
        }
    }
}

impl<T: Named + PartialEq> FusedIterator for Differences<'_, T> {}

impl<T> Clone for Objects<T> {
    fn clone(&self) -> Self {
        Self { chunks: Arc::clone(&self.chunks) }
    }
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Self { chunks: Arc::default() }
    }
}

impl<T: Named + PartialEq> PartialEq for Objects<T> {
    fn eq(&self, other: &Self) -> bool {
        self.diff(other).next().is_none()
    }
}

impl<T: Named + Eq> Eq for Objects<T> {}

impl<T: Named + fmt::Debug> fmt::Debug for Objects<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.shared()).finish()
    }
}

/// The object of a name that is known to be there.
impl<T: Named, Q: Ord + ?Sized> Index<&Q> for Objects<T>
where
    T::Name: Borrow<Q>,
{
    type Output = T;

    fn index(&self, name: &Q) -> &T {
        self.get(name).expect("an object of that name")
    }
}

impl<T: Named> FromIterator<T> for Objects<T> {
    fn from_iter<I: IntoIterator<Item = T>>(objects: I) -> Self {
        let mut all = Self::default();
        objects.into_iter().for_each(|object| all.insert(object));
        all
    }
}

/// As a list, by name.
impl<T: Named + Serialize> Serialize for Objects<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.values())
    }
}

/// Of two objects with one name the later stays.
impl<'de, T: Named + Deserialize<'de>> Deserialize<'de> for Objects<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(List(PhantomData))
    }
}

struct List<T>(PhantomData<T>);

impl<'de, T: Named + Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Objects<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Objects<T>, A::Error> {
        let mut all = Objects::default();
        while let Some(object) = list.next_element::<T>()? {
            all.insert(object);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A number as name, and something about it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Thing(u16, u8);

    impl Named for Thing {
        type Name = u16;

        fn name(&self) -> &u16 {
            &self.0
        }
    }

    /// Puts a thing, or removes one.
    fn change() -> impl Strategy<Value = (u16, Option<u8>)> {
        (0..700_u16, prop::option::weighted(0.7, 0..3_u8))
    }

    fn take(
        objects: &mut Objects<Thing>,
        map: &mut BTreeMap<u16, u8>,
        changes: &[(u16, Option<u8>)],
    ) {
        for (name, value) in changes {
            match value {
                Some(value) => {
                    objects.insert(Thing(*name, *value));
                    map.insert(*name, *value);
                }
                None => assert_eq!(objects.remove(name).map(|thing| thing.1), map.remove(name)),
            }
        }
    }

    fn all(objects: &Objects<Thing>) -> Vec<(u16, u8)> {
        objects.values().map(|thing| (thing.0, thing.1)).collect()
    }

    proptest! {
        #[test]
        fn they_are_a_map(
            start in 0..700_u16,
            first in vec(change(), 0..300),
            second in vec(change(), 0..20),
        ) {
            let mut map: BTreeMap<u16, u8> = (0..start).map(|name| (name, 9)).collect();
            let mut objects: Objects<Thing> = map.iter().map(|(n, v)| Thing(*n, *v)).collect();
            take(&mut objects, &mut map, &first);
            prop_assert_eq!(all(&objects), map.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!(objects.len(), map.len());
            prop_assert_eq!(objects.is_empty(), map.is_empty());
            for name in 0..700 {
                prop_assert_eq!(objects.get(&name).map(|thing| thing.1), map.get(&name).copied());
            }

            let (before, had) = (objects.clone(), map.clone());
            take(&mut objects, &mut map, &second);
            prop_assert_eq!(all(&before), had.clone().into_iter().collect::<Vec<_>>(), "a copy stays");
            let told: Vec<_> = before
                .diff(&objects)
                .map(|one| (one.before.map(|thing| thing.1), one.after.map(|thing| thing.1)))
                .collect();
            let names: std::collections::BTreeSet<u16> = had.keys().chain(map.keys()).copied().collect();
            let differ = names.iter().map(|name| (had.get(name).copied(), map.get(name).copied()));
            prop_assert_eq!(told, differ.filter(|(had, has)| had != has).collect::<Vec<_>>());
            prop_assert_eq!(before == objects, had == map);
        }
    }

    /// A thing that is not to be compared.
    #[derive(Debug)]
    struct Shy(u32);

    impl Named for Shy {
        type Name = u32;

        fn name(&self) -> &u32 {
            &self.0
        }
    }

    impl PartialEq for Shy {
        fn eq(&self, _: &Self) -> bool {
            panic!("what is shared is looked at")
        }
    }

    #[test]
    fn what_is_shared_is_not_compared() {
        let many: Objects<Shy> = (0..10_000).map(|name| Shy(2 * name)).collect();
        let mut next = many.clone();
        next.insert(Shy(4_001));
        next.remove(&6_000);
        let names: Vec<_> = many
            .diff(&next)
            .map(|one| (one.before.map(|shy| shy.0), one.after.map(|shy| shy.0)))
            .collect();
        assert_eq!(names, [(None, Some(4_001)), (Some(6_000), None)]);
    }
}
