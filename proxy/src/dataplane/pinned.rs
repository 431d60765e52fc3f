//! The tables that an agent pinned, for whoever only looks.
//!
//! Nothing is loaded, locked or made. The tables may change while they are read, and an agent need not
//! run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData, MapInfo, PerCpuArray};

use super::syscalls::{open_pin, open_to_read};
use super::table::{Entry, PrefixTable, Single, Table};

/// The folder of the tables of this program's version.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    tables: PathBuf,
}

impl Pinned {
    /// Looks for them under the agent's folder. The error says which version is there instead, if one
    /// is.
    pub(crate) fn open(bpffs: &Path) -> Result<Self> {
        let ours = super::version();
        let tables = bpffs.join(&ours).join("tables");
        match fs::metadata(&tables) {
            Ok(_) => return Ok(Self { tables }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("look at {}", tables.display()));
            }
        }
        let others = fs::read_dir(bpffs).into_iter().flatten().flatten();
        let mut others: Vec<String> = others
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| super::is_other_version(name))
            .collect();
        others.sort();
        let folder = bpffs.display();
        if others.is_empty() {
            bail!(
                "there are no tables in {folder}: has an agent been started since the machine was, \
                 with this folder (--bpffs)?"
            );
        }
        bail!(
            "the tables in {folder} have version {} and this program reads version {ours}: use the \
             fairway-proxy of the agent that made them",
            others.join(", ")
        );
    }

    /// A hash table, to be read.
    pub(crate) fn table<K: Entry, V: Entry>(&self, name: &str) -> Result<Table<K, V>> {
        Table::new(name, self.read(name)?, None)
    }

    /// A hash table, to be read and changed.
    pub(crate) fn table_to_change<K: Entry, V: Entry>(&self, name: &str) -> Result<Table<K, V>> {
        let fd = open_pin(&self.pin(name)).with_context(|| format!("open table {name}"))?;
        Table::new(name, map(name, MapData::from_fd(fd)?)?, None)
    }

    /// A table of prefixes, to be read.
    pub(crate) fn prefixes<A: Entry, V: Entry>(&self, name: &str) -> Result<PrefixTable<A, V>> {
        PrefixTable::new(name, self.read(name)?)
    }

    /// A table of one entry, to be read.
    pub(crate) fn single<V: Entry>(&self, name: &str) -> Result<Single<V>> {
        Single::new(name, self.read(name)?)
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
            format!("open table {name} in {}: are you root?", self.tables.display())
        })?;
        map(name, MapData::from_fd(fd)?)
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.tables.join(name)
    }
}

fn map(name: &str, data: MapData) -> Result<Map> {
    Map::from_map_data(data).with_context(|| format!("table {name}"))
}
