//! The tables that an agent pinned, for whoever only looks.
//!
//! Nothing is loaded, locked or made. The tables may change while they are read, and an agent need not
//! run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData, MapInfo, PerCpuArray, RingBuf};

use super::handover::{Handover, layout_of};
use super::syscalls::{open_pin, open_to_read};
use super::table::{Entry, PrefixTable, Single, Table};

/// The tables in force, if they are of this program's version.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    handover: Arc<Handover>,
}

impl Pinned {
    /// Looks for them under the agent's folder. The error says which version is there instead, if one
    /// is.
    pub(crate) fn open(bpffs: &Path) -> Result<Self> {
        let handover = Handover::look(bpffs)?;
        let (tables, folder) = (handover.tables(), bpffs.display());
        let is_there = fs::exists(tables.join("layout"));
        if !is_there.with_context(|| format!("look at {}", tables.display()))? {
            bail!(
                "there are no tables in {folder}: has an agent been started since the machine was, \
                 with this folder (--bpffs)?"
            );
        }
        let ours = fairway_abi::VERSION;
        match layout_of(tables)?.map(|layout| layout.version.get()) {
            Some(version) if version == ours => Ok(Self { handover: Arc::new(handover) }),
            Some(version) => bail!(
                "the tables in {folder} have version {version} and this program reads version {ours}: \
                 use the fairway-proxy of the agent that made them"
            ),
            None => bail!("the tables in {folder} are only being made"),
        }
    }

    /// A hash table, to be read.
    pub(crate) fn table<K: Entry, V: Entry>(&self, name: &str) -> Result<Table<K, V>> {
        Table::new(name, self.read(name)?, &self.handover)
    }

    /// A hash table, to be read and changed.
    pub(crate) fn table_to_change<K: Entry, V: Entry>(&self, name: &str) -> Result<Table<K, V>> {
        let fd = open_pin(&self.pin(name)).with_context(|| format!("open table {name}"))?;
        Table::new(name, map(name, MapData::from_fd(fd)?)?, &self.handover)
    }

    /// A table of prefixes, to be read.
    pub(crate) fn prefixes<A: Entry, V: Entry>(&self, name: &str) -> Result<PrefixTable<A, V>> {
        PrefixTable::new(name, self.read(name)?)
    }

    /// A table of one entry, to be read.
    pub(crate) fn single<V: Entry>(&self, name: &str) -> Result<Single<V>> {
        Single::new(name, self.read(name)?)
    }

    /// A table of one entry, to be read and changed.
    pub(crate) fn single_to_change<V: Entry>(&self, name: &str) -> Result<Single<V>> {
        let fd = open_pin(&self.pin(name)).with_context(|| format!("open table {name}"))?;
        Single::new(name, map(name, MapData::from_fd(fd)?)?)
    }

    /// What programs tell; whoever reads it has it alone.
    pub(crate) fn events(&self) -> Result<RingBuf<MapData>> {
        let fd = open_pin(&self.pin("events")).context("open table events: are you root?")?;
        RingBuf::try_from(map("events", MapData::from_fd(fd)?)?).context("table events")
    }

    /// Packets dropped so far, by [`fairway_abi::DropReason`] number.
    pub(crate) fn drops(&self) -> Result<Vec<u64>> {
        let map = PerCpuArray::<_, u64>::try_from(self.read("drops")?)?;
        (0..map.len()).map(|reason| Ok(map.get(&reason, 0)?.iter().sum())).collect()
    }

    /// How many entries a table has room for.
    pub(crate) fn capacity(&self, name: &str) -> Result<u32> {
        let info = MapInfo::from_pin(self.pin(name));
        Ok(info.with_context(|| format!("look at table {name}"))?.max_entries())
    }

    fn read(&self, name: &str) -> Result<Map> {
        let fd = open_to_read(&self.pin(name)).with_context(|| {
            format!("open table {name} in {}: are you root?", self.handover.tables().display())
        })?;
        map(name, MapData::from_fd(fd)?)
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.handover.tables().join(name)
    }
}

fn map(name: &str, data: MapData) -> Result<Map> {
    Map::from_map_data(data).with_context(|| format!("table {name}"))
}
