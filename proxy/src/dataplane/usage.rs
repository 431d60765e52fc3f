//! How full the kernel's tables are.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{MapInfo, MapType};

use super::syscalls;

/// How full one table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) table: String,
    /// Of tables whose entries come and go.
    pub(crate) entries: Option<Entries>,
    /// Memory that the kernel says it takes.
    pub(crate) bytes: Option<u64>,
}

/// How many entries there are, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) now: u64,
    pub(crate) most: u32,
}

/// The folder of the tables.
pub(crate) fn tables(bpffs: &Path) -> PathBuf {
    bpffs.join("tables")
}

/// How full each table of a folder is. Reads large tables as a whole, in few calls of the kernel.
pub(crate) fn usage(tables: &Path) -> Result<Vec<Usage>> {
    let about = || format!("look at the tables in {}", tables.display());
    let mut all = Vec::new();
    for pin in fs::read_dir(tables).with_context(about)? {
        let path = pin.with_context(about)?.path();
        let table = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let table = table.unwrap_or_default();
        let about = || format!("look at table {table}");
        let info = MapInfo::from_pin(&path).with_context(about)?;
        let fd = syscalls::open_pin(&path).with_context(about)?;
        let entries = match info.map_type() {
            Ok(MapType::Hash | MapType::LruHash | MapType::LpmTrie) => {
                let (key, value) = (info.key_size(), info.value_size());
                let now = syscalls::count_entries(fd.as_fd(), key, value).with_context(about)?;
                let now = now + before(tables, &table, info.id()).with_context(about)?;
                Some(Entries { now, most: info.max_entries() })
            }
            _ => None,
        };
        let bytes = bytes(fd.as_fd());
        all.push(Usage { table, entries, bytes });
    }
    all.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(all)
}

/// How many entries there are in the table whose place another takes, for as long as that lasts. What is
/// copied in that moment counts twice.
fn before(tables: &Path, table: &str, id: u32) -> Result<u64> {
    let pin = tables.with_file_name("aside").join(table);
    let Ok(info) = MapInfo::from_pin(&pin) else { return Ok(0) };
    let programs_write_it = ["flows", "half_open", "sockets", "affinity"];
    if info.id() == id || !programs_write_it.contains(&table.trim_end_matches(['4', '6'])) {
        return Ok(0);
    }
    let fd = syscalls::open_pin(&pin)?;
    Ok(syscalls::count_entries(fd.as_fd(), info.key_size(), info.value_size())?)
}

/// What the kernel says in a descriptor's file.
fn bytes(map: BorrowedFd<'_>) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use fairway_abi::{Interface, Namespace, RangeKey, V4};
    use zerocopy::native_endian::U32;

    use super::*;
    use crate::dataplane::Dataplane;
    use crate::sandbox::sandbox;

    #[test]
    fn entries_are_counted_in_every_kind_of_table() {
        sandbox(|bpffs| {
            let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
            let mut namespaces = dataplane.table("namespaces").expect("a table");
            // More than fit into one answer of the kernel's.
            for cookie in 0..3000u64 {
                let namespace = Namespace { addresses: Interface::default(), flags: 0 };
                namespaces.put(&cookie, &namespace).expect("room");
            }
            let mut ranges = dataplane.prefixes::<RangeKey<V4>, u32>("source_ranges4");
            for port in 0..5 {
                let key = RangeKey { port: U32::new(port), network: [10, 0, 0, 0] };
                ranges.as_mut().expect("a table").put((40, key), &0).expect("room");
            }
            let all = usage(&tables(bpffs)).expect("tables");
            let of = |name: &str| all.iter().find(|usage| usage.table == name).expect(name);
            assert_eq!(of("namespaces").entries, Some(Entries { now: 3000, most: 4096 }));
            assert_eq!(of("source_ranges4").entries.map(|entries| entries.now), Some(5));
            assert_eq!(of("flows4").entries.map(|entries| entries.now), Some(0));
            assert_eq!(of("config").entries, None);
            for table in ["namespaces", "source_ranges4", "flows4", "config"] {
                assert!(of(table).bytes.is_some_and(|bytes| bytes > 0), "{table}");
            }
        });
    }
}
