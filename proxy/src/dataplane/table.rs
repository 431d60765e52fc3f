//! Kernel tables with typed keys and values.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::sys::SyscallError;
use aya::util::nr_cpus;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::handover::{Handover, Predecessor};
use super::{Plain, capacity, syscalls};

/// What can be a key or a value.
pub(crate) trait Entry: FromBytes + IntoBytes + Immutable + Copy + 'static {}
impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> Entry for T {}

/// A hash table. One that takes the place of another shows and removes what is in that, too, as long as
/// programs use it.
pub(crate) struct Table<K: Entry, V: Entry> {
    name: String,
    map: HashMap<MapData, Plain<K>, Plain<V>>,
    /// The same map, for calls that the loader library does not have.
    fd: OwnedFd,
    before: Option<(Arc<Handover>, Predecessor)>,
}

/// What became of an entry that was to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    Yes,
    /// There is one under its key.
    Known,
    Full,
}

impl<K: Entry, V: Entry> Table<K, V> {
    pub(super) fn new(name: &str, map: Map, handover: &Arc<Handover>) -> Result<Self> {
        let about = || format!("table {name}");
        let (Map::HashMap(data) | Map::LruHashMap(data)) = &map else {
            bail!("table {name} is no hash table");
        };
        let fd = data.fd().as_fd().try_clone_to_owned().with_context(about)?;
        let map = HashMap::try_from(map).with_context(about)?;
        let before = handover.of(name)?.map(|before| (Arc::clone(handover), before));
        Ok(Self { name: name.to_owned(), map, fd, before })
    }

    /// Everything in it. Entries that come or go meanwhile may or may not be there.
    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>> {
        let entries = self.map.iter().filter_map(|entry| match entry {
            Ok((key, value)) => Some(Ok((key.0, value.0))),
            // Gone between the listing of its key and the look at its value.
            Err(MapError::KeyNotFound) => None,
            Err(error) => Some(Err(error)),
        });
        let entries = entries.collect::<Result<Vec<_>, _>>();
        let mut entries = entries.with_context(|| format!("read table {}", self.name))?;
        if let Some(before) = self.before() {
            let known: HashSet<Vec<u8>> =
                entries.iter().map(|(key, _)| key.as_bytes().to_vec()).collect();
            let more = before.entries().with_context(|| format!("read table {}", self.name))?;
            let more = more.into_iter().filter(|(key, _)| !known.contains(key));
            entries.extend(more.filter_map(|(key, value)| {
                Some((K::read_from_bytes(&key).ok()?, V::read_from_bytes(&value).ok()?))
            }));
        }
        Ok(entries)
    }

    /// How many entries there are, at a call of the kernel each.
    pub(crate) fn count(&self) -> Result<usize> {
        if self.before().is_some() {
            return Ok(self.entries()?.len());
        }
        let keys = self.map.keys().map(|key| key.map(|_| 1));
        keys.sum::<Result<usize, _>>().with_context(|| format!("read table {}", self.name))
    }

    /// The value under a key.
    pub(crate) fn get(&self, key: &K) -> Result<Option<V>> {
        match self.map.get(&Plain(*key), 0) {
            Ok(value) => return Ok(Some(value.0)),
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).with_context(|| format!("read table {}", self.name)),
        }
        let Some(before) = self.before() else { return Ok(None) };
        let value =
            before.get(key.as_bytes()).with_context(|| format!("read table {}", self.name))?;
        Ok(value.and_then(|value| V::read_from_bytes(&value).ok()))
    }

    /// Adds or replaces an entry.
    pub(crate) fn put(&mut self, key: &K, value: &V) -> Result<()> {
        let Self { name, map, .. } = self;
        map.insert(Plain(*key), Plain(*value), 0).with_context(|| refusal(name))
    }

    /// Adds an entry if there is none under its key.
    pub(crate) fn add(&mut self, key: &K, value: &V) -> Result<Added> {
        const NOEXIST: u64 = 1; // BPF_NOEXIST
        let error = match self.map.insert(Plain(*key), Plain(*value), NOEXIST) {
            Ok(()) => return Ok(Added::Yes),
            Err(error) => error,
        };
        match error {
            MapError::SyscallError(SyscallError { ref io_error, .. }) => {
                match io_error.raw_os_error() {
                    Some(libc::EEXIST) => Ok(Added::Known),
                    Some(libc::E2BIG) => Ok(Added::Full),
                    _ => Err(error).with_context(|| refusal(&self.name)),
                }
            }
            error => Err(error).with_context(|| refusal(&self.name)),
        }
    }

    /// Adds or replaces entries in this order, at a third of what it costs one by one. After an error,
    /// none of them or some are written.
    pub(crate) fn put_all(&mut self, entries: &[(K, V)]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = entries.iter().map(|(key, _)| Plain(*key)).collect();
        let values: Vec<_> = entries.iter().map(|(_, value)| Plain(*value)).collect();
        syscalls::update_batch(self.fd.as_fd(), &keys, &values).with_context(|| refusal(&self.name))
    }

    /// Removes an entry; one that is not there is no error.
    pub(crate) fn remove(&mut self, key: &K) -> Result<()> {
        absent_is_fine(self.map.remove(&Plain(*key)))
            .with_context(|| format!("shrink table {}", self.name))?;
        let Some(before) = self.before() else { return Ok(()) };
        before.remove(key.as_bytes()).with_context(|| format!("shrink table {}", self.name))
    }

    /// The table in whose place this one is.
    fn before(&self) -> Option<&Predecessor> {
        self.before.as_ref().filter(|(handover, _)| handover.is_pending()).map(|(_, before)| before)
    }
}

/// A table of address prefixes.
pub(crate) struct PrefixTable<A: Entry, V: Entry> {
    name: String,
    map: LpmTrie<MapData, Plain<A>, Plain<V>>,
}

impl<A: Entry, V: Entry> PrefixTable<A, V> {
    pub(super) fn new(name: &str, map: Map) -> Result<Self> {
        let map = LpmTrie::try_from(map).with_context(|| format!("table {name}"))?;
        Ok(Self { name: name.to_owned(), map })
    }

    /// Everything in it, by prefix length and address.
    pub(crate) fn entries(&self) -> Result<Vec<((u8, A), V)>> {
        let mut all = Vec::new();
        for entry in self.map.iter() {
            let (key, value) = match entry {
                // Gone between the listing of its key and the look at its value.
                Err(MapError::KeyNotFound) => continue,
                entry => entry.with_context(|| format!("read table {}", self.name))?,
            };
            let length = u8::try_from(key.prefix_len()).context("a prefix is too long")?;
            all.push(((length, key.data().0), value.0));
        }
        Ok(all)
    }

    /// Adds or replaces an entry.
    pub(crate) fn put(&mut self, (length, address): (u8, A), value: &V) -> Result<()> {
        let key = Key::new(length.into(), Plain(address));
        self.map.insert(&key, Plain(*value), 0).with_context(|| refusal(&self.name))
    }

    /// Removes an entry; one that is not there is no error.
    pub(crate) fn remove(&mut self, (length, address): (u8, A)) -> Result<()> {
        let key = Key::new(length.into(), Plain(address));
        absent_is_fine(self.map.remove(&key)).with_context(|| format!("shrink table {}", self.name))
    }
}

/// A table of one entry.
pub(crate) struct Single<V: Entry> {
    name: String,
    map: Array<MapData, Plain<V>>,
}

impl<V: Entry> Single<V> {
    pub(super) fn new(name: &str, map: Map) -> Result<Self> {
        let map = Array::try_from(map).with_context(|| format!("table {name}"))?;
        Ok(Self { name: name.to_owned(), map })
    }

    /// The entry.
    pub(crate) fn get(&self) -> Result<V> {
        let entry = self.map.get(&0, 0).with_context(|| format!("read table {}", self.name))?;
        Ok(entry.0)
    }

    /// Replaces the entry.
    pub(crate) fn set(&mut self, value: &V) -> Result<()> {
        self.map.set(0, Plain(*value), 0).with_context(|| format!("write table {}", self.name))
    }
}

/// A table of counters, each of which every processor has for itself.
pub(crate) struct Counters<V: Entry> {
    name: String,
    map: PerCpuHashMap<MapData, u32, Plain<V>>,
}

impl<V: Entry> Counters<V> {
    pub(super) fn new(name: &str, map: Map) -> Result<Self> {
        let map = PerCpuHashMap::try_from(map).with_context(|| format!("table {name}"))?;
        Ok(Self { name: name.to_owned(), map })
    }

    /// What is counted.
    pub(crate) fn keys(&self) -> Result<Vec<u32>> {
        let keys = self.map.keys().collect::<Result<Vec<_>, _>>();
        keys.with_context(|| format!("read table {}", self.name))
    }

    /// Each processor's counter; none if there is no such key.
    pub(crate) fn get(&self, key: u32) -> Result<Vec<V>> {
        match self.map.get(&key, 0) {
            Ok(values) => Ok(values.iter().map(|value| value.0).collect()),
            Err(MapError::KeyNotFound) => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("read table {}", self.name)),
        }
    }

    /// Counts from zero, unless it is counted already.
    pub(crate) fn add(&mut self, key: u32) -> Result<()> {
        const NOEXIST: u64 = 1; // BPF_NOEXIST
        let cpus = nr_cpus().map_err(|(path, error)| {
            anyhow::Error::new(error).context(format!("count processors by {path}"))
        })?;
        let zeros: Vec<_> = (0..cpus).map(|_| Plain(V::new_zeroed())).collect();
        let zeros = PerCpuValues::try_from(zeros).context("a counter for each processor")?;
        match self.map.insert(key, zeros, NOEXIST) {
            Err(MapError::SyscallError(SyscallError { ref io_error, .. }))
                if io_error.raw_os_error() == Some(libc::EEXIST) =>
            {
                Ok(())
            }
            result => result.with_context(|| refusal(&self.name)),
        }
    }

    /// Counts it no more; one that is not counted is no error.
    pub(crate) fn remove(&mut self, key: u32) -> Result<()> {
        absent_is_fine(self.map.remove(&key)).with_context(|| format!("shrink table {}", self.name))
    }
}

fn refusal(table: &str) -> String {
    let more = match capacity::name_of(table) {
        Some(name) => format!(", and --capacity {name}=NUMBER gives it room"),
        None => String::new(),
    };
    format!("write table {table} (\"Argument list too long\" means that it is full{more})")
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other,
    }
}
