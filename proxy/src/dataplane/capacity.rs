//! How many entries the large tables have room for, and how a table of another size takes the place of
//! one that is in use.
//!
//! ```text
//! load     tables/flows4 ─► aside/flows4-<id>, a new tables/flows4     programs in force use the old one
//! attach   everything copied, then programs replaced one by one       some use the old one, some the new
//! finish   what came meanwhile copied, aside/flows4-<id> removed      all use the new one
//! ```
//!
//! Until the end, [`Table`] shows both as one and removes from both. What the agent alone writes is copied
//! at once: programs in force keep their old tables as they were, and get along with them. An agent that
//! is killed on the way leaves a table aside, and its successor goes on from there.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData, MapInfo};
use fairway_abi::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Flow, FlowKey, Frontend, FrontendKey, MemberKey,
    Share, SocketKey, SocketPeer, V4, V6,
};
use tracing::{info, warn};

use super::Declared;
use super::table::{Added, Entry, Table};

/// How much one of the large tables is to hold, as it is typed: `NAME=NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    of: Of,
    number: u32,
}

/// What a capacity is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Flows,
    HalfOpenFlows,
    UdpSockets,
    Affinity,
    Frontends,
    Endpoints,
}

/// Names, and how many entries of which tables one of them takes.
const ALL: [(&str, Of, u32, &[&str]); 6] = [
    ("flows", Of::Flows, 2, &["flows4", "flows6"]),
    ("half-open-flows", Of::HalfOpenFlows, 2, &["half_open4", "half_open6"]),
    ("udp-sockets", Of::UdpSockets, 1, &["sockets4", "sockets6"]),
    ("affinity", Of::Affinity, 1, &["affinity4", "affinity6"]),
    ("frontends", Of::Frontends, 1, &["frontends4", "frontends6"]),
    (
        "endpoints",
        Of::Endpoints,
        1,
        &["endpoints4", "endpoints6", "members4", "members6", "shares4", "shares6"],
    ),
];

impl Capacity {
    /// Fewer make no sense on any node; more take memory for their buckets alone.
    const BOUNDS: std::ops::RangeInclusive<u32> = 64..=16_777_216;

    /// The tables that it is about, and the entries that each of them is to have room for.
    fn tables(self) -> impl Iterator<Item = (&'static str, u32)> {
        let about = ALL.into_iter().filter(move |(_, of, ..)| *of == self.of);
        about.flat_map(move |(_, _, entries, tables)| {
            tables.iter().map(move |table| (*table, self.number * entries))
        })
    }
}

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let names = || ALL.map(|(name, ..)| name).join(", ");
        let (name, number) = text.split_once('=').ok_or("must look like flows=500000")?;
        let known = ALL.iter().find(|(known, ..)| *known == name.trim());
        let (_, of, ..) = known.ok_or_else(|| format!("{name:?} is none of {}", names()))?;
        let number: u32 = number.trim().parse().map_err(|error| format!("{number:?}: {error}"))?;
        if !Self::BOUNDS.contains(&number) {
            let (least, most) = (Self::BOUNDS.start(), Self::BOUNDS.end());
            return Err(format!("{number} is not within {least} and {most}"));
        }
        Ok(Self { of: *of, number })
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ALL.into_iter().find(|(_, of, ..)| *of == self.of).map_or("", |(name, ..)| name);
        write!(f, "{name}={}", self.number)
    }
}

/// Gives tables the sizes that are asked for; of two that are for the same, the latter counts.
pub(super) fn apply(capacities: &[Capacity], tables: &mut [Declared]) {
    for (name, entries) in capacities.iter().flat_map(|capacity| capacity.tables()) {
        if let Some(table) = tables.iter_mut().find(|table| table.name == name) {
            table.max_entries = entries;
        }
    }
}

/// Tables whose place others have taken, while there are programs that use them.
#[derive(Debug)]
pub(super) struct Aside {
    folder: PathBuf,
    tables: PathBuf,
    /// There may be some; otherwise nobody needs to look.
    pending: AtomicBool,
}

/// What can be done with a table of some keys and values.
struct Carried {
    /// Programs write it; otherwise the agent alone does.
    by_programs: bool,
    /// With what is in the tables put aside for it.
    count: fn(&str, &Path, &Arc<Aside>) -> Result<usize>,
    copy: fn(&Path, &Path) -> Result<Copied>,
}

/// Entries that were not there, and those that found no room.
struct Copied {
    added: u64,
    lost: u64,
}

impl Carried {
    fn of<K: Entry, V: Entry>(by_programs: bool) -> Self {
        Self { by_programs, count: count::<K, V>, copy: copy::<K, V> }
    }

    /// None: a table of this name does not change its size.
    fn by_name(table: &str) -> Option<Self> {
        Some(match table {
            "flows4" | "half_open4" => Self::of::<FlowKey<V4>, Flow<V4>>(true),
            "flows6" | "half_open6" => Self::of::<FlowKey<V6>, Flow<V6>>(true),
            "sockets4" => Self::of::<SocketKey<V4>, SocketPeer<V4>>(true),
            "sockets6" => Self::of::<SocketKey<V6>, SocketPeer<V6>>(true),
            "affinity4" => Self::of::<AffinityKey<V4>, Affinity<V4>>(true),
            "affinity6" => Self::of::<AffinityKey<V6>, Affinity<V6>>(true),
            "frontends4" => Self::of::<FrontendKey<V4>, Frontend>(false),
            "frontends6" => Self::of::<FrontendKey<V6>, Frontend>(false),
            "endpoints4" => Self::of::<EndpointKey, Endpoint<V4>>(false),
            "endpoints6" => Self::of::<EndpointKey, Endpoint<V6>>(false),
            "members4" => Self::of::<MemberKey<V4>, u32>(false),
            "members6" => Self::of::<MemberKey<V6>, u32>(false),
            "shares4" => Self::of::<MemberKey<V4>, Share>(false),
            "shares6" => Self::of::<MemberKey<V6>, Share>(false),
            _ => return None,
        })
    }
}

impl Aside {
    /// Looks for what an agent before this one left in the version's folder `root`.
    pub(super) fn new(root: &Path) -> Result<Self> {
        let (folder, tables) = (root.join("aside"), root.join("tables"));
        let aside = Self { folder, tables, pending: AtomicBool::new(true) };
        aside.pending.store(!aside.all()?.is_empty(), Ordering::Relaxed);
        Ok(aside)
    }

    /// Puts the pinned tables aside that differ from these in their size alone, if what is in them has
    /// room in the others; else nothing is changed.
    pub(super) fn put(self: &Arc<Self>, declared: &[Declared]) -> Result<()> {
        let mut outgrown = Vec::new();
        for table in declared {
            let pin = self.tables.join(&table.name);
            let Some(carried) = Carried::by_name(&table.name).filter(|_| pin.exists()) else {
                continue;
            };
            let found =
                MapInfo::from_pin(&pin).with_context(|| format!("read {}", pin.display()))?;
            if table.max_entries == found.max_entries() || !table.is_like(&found) {
                continue;
            }
            let entries = (carried.count)(&table.name, &pin, self)?;
            if entries > table.max_entries as usize {
                bail!(
                    "table {} has {entries} entries and was to shrink from {} to {}: what is in force \
                     stays, choose a larger --capacity",
                    table.name,
                    found.max_entries(),
                    table.max_entries
                );
            }
            outgrown.push((table, pin, found));
        }
        for (table, pin, found) in outgrown {
            let Declared { name, max_entries, .. } = table;
            info!(
                table = name,
                from = found.max_entries(),
                to = max_entries,
                "a table changes its size"
            );
            let aside = self.folder.join(format!("{name}-{}", found.id()));
            fs::create_dir_all(&self.folder)
                .and_then(|()| fs::rename(&pin, &aside))
                .with_context(|| format!("put {} aside", pin.display()))?;
            self.pending.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies what the agent alone writes into the tables in their places.
    pub(super) fn carry_lists(&self) -> Result<()> {
        for pin in self.copy(false)? {
            remove(&pin)?;
        }
        self.pending.store(!self.all()?.is_empty(), Ordering::Relaxed);
        Ok(())
    }

    /// Copies what programs have written into the tables in their places, as far as it is not there.
    pub(super) fn carry(&self) -> Result<()> {
        self.copy(true).map(drop)
    }

    /// The same for the last time: no program uses these tables any more.
    pub(super) fn finish(&self) -> Result<()> {
        self.carry()?;
        for (_, pin) in self.all()? {
            remove(&pin)?;
        }
        self.pending.store(false, Ordering::Relaxed);
        match fs::remove_dir(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// The tables in whose place the one of this name is.
    pub(super) fn of<K: Entry, V: Entry>(&self, table: &str) -> Result<Vec<Table<K, V>>> {
        let all = self.all()?.into_iter().filter(|(name, _)| name == table);
        all.map(|(name, pin)| open(&name, &pin, None)).collect()
    }

    /// Copies the tables that programs write, or those they do not; answers their pins.
    fn copy(&self, by_programs: bool) -> Result<Vec<PathBuf>> {
        let mut pins = Vec::new();
        for (name, pin) in self.all()? {
            let carried = Carried::by_name(&name);
            let Some(carried) = carried.filter(|table| table.by_programs == by_programs) else {
                continue;
            };
            let Copied { added, lost } = (carried.copy)(&pin, &self.tables.join(&name))
                .with_context(|| format!("copy table {name} into one of another size"))?;
            info!(table = name, entries = added, "copied into a table of another size");
            if lost > 0 {
                warn!(table = name, entries = lost, "more came than its new size has room for");
            }
            pins.push(pin);
        }
        Ok(pins)
    }

    /// Name and pin of each table, the latest first.
    fn all(&self) -> Result<Vec<(String, PathBuf)>> {
        if !self.pending.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let about = || format!("list {}", self.folder.display());
        let pins = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            pins => pins.with_context(about)?,
        };
        let mut all = Vec::new();
        for pin in pins {
            let pin = pin.with_context(about)?.path();
            let name = pin.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            if let Some((name, id)) = name.rsplit_once('-')
                && let Ok(id) = id.parse::<u32>()
            {
                all.push((id, name.to_owned(), pin));
            }
        }
        all.sort_by_key(|(id, ..)| std::cmp::Reverse(*id));
        Ok(all.into_iter().map(|(_, name, pin)| (name, pin)).collect())
    }
}

fn open<K: Entry, V: Entry>(
    name: &str,
    pin: &Path,
    before: Option<Arc<Aside>>,
) -> Result<Table<K, V>> {
    let map = MapData::from_pin(pin).with_context(|| format!("open {}", pin.display()))?;
    let map = Map::from_map_data(map).with_context(|| format!("open {}", pin.display()))?;
    Table::new(name, map, before)
}

fn count<K: Entry, V: Entry>(name: &str, pin: &Path, before: &Arc<Aside>) -> Result<usize> {
    Ok(open::<K, V>(name, pin, Some(Arc::clone(before)))?.entries()?.len())
}

/// Adds the entries of one table to another.
fn copy<K: Entry, V: Entry>(from: &Path, to: &Path) -> Result<Copied> {
    let from = open::<K, V>("aside", from, None)?;
    let mut to = open::<K, V>("in its place", to, None)?;
    let mut copied = Copied { added: 0, lost: 0 };
    for (key, value) in from.entries()? {
        match to.add(&key, &value)? {
            Added::Yes => copied.added += 1,
            Added::Known => {}
            Added::Full => copied.lost += 1,
        }
    }
    Ok(copied)
}

fn remove(pin: &Path) -> Result<()> {
    fs::remove_file(pin).with_context(|| format!("remove pin {}", pin.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_names_what_it_is_of() {
        let read = |text: &str| text.parse::<Capacity>();
        let flows = read("flows=1000").expect("a capacity");
        assert_eq!(flows.tables().collect::<Vec<_>>(), [("flows4", 2000), ("flows6", 2000)]);
        assert_eq!(flows.to_string(), "flows=1000");
        let endpoints = read("endpoints = 64").expect("a capacity");
        assert_eq!(endpoints.tables().count(), 6);
        for bad in
            ["flows", "flows=", "flows=0", "flows=63", "flows=16777217", "flows=-1", "flow=1000"]
        {
            let error = read(bad).expect_err(bad);
            assert!(!error.is_empty());
        }
        assert!(read("flow=1000").expect_err("no such name").contains("half-open-flows"));
    }

    #[test]
    fn every_name_leads_to_tables_that_can_change_their_size() {
        for table in ALL.into_iter().flat_map(|(.., tables)| tables) {
            assert!(Carried::by_name(table).is_some(), "{table}");
        }
    }
}
