//! How one set of tables takes the place of another while programs use both: one of other sizes, or one of
//! another version of the programs, older or newer.
//!
//! ```text
//! begin     tables/ becomes aside/, a new tables/ is made             the old programs use what is aside
//! SWITCHING programs are replaced one by one                          all write into what is aside
//! DRAINING  what is aside is copied into tables/                      new programs alone, writing there
//! DONE      aside/ goes                                               nobody looks there
//! ```
//!
//! What is in force is always one of the two folders as a whole, and the [`phase`] in `tables/` says which:
//! until DRAINING it is what is aside, and tables/ holds nothing that anybody needs. So an agent that finds
//! the traces of one that was killed goes on with what that one began (SWITCHING and the tables are as it
//! would have made them), takes it back, whoever began it (renames aside/ to tables/: programs of the agent
//! that was killed keep writing there), or brings it to its end (DRAINING, DONE), which takes no programs of
//! its own. Only then it begins something itself. There are never three sets.
//!
//! Nothing here knows another version's types: each set has a description of its records pinned beside it
//! (`fairway_abi::layout`), and a record is carried from one to the other field by field. Sizes of one
//! version's tables are the case in which the two descriptions are equal.
//!
//! Programs find what is in force by `core::handover`. What the agent alone writes it writes anew before it
//! replaces a program; only the numbers of Services' lists have to be what flows and clients are known by,
//! so lists are copied at once. Old programs keep theirs as they were, for the moment they have left.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use aya::maps::{MapInfo, MapType};
use fairway_abi::layout::{Before, Layout, ROOM, ROOM_OF_CLIENT, ROOM_OF_SOCKET, record};
use fairway_abi::phase;
use fairway_netlink::grace::Expedited;
use tracing::{info, warn};
use zerocopy::{FromBytes, IntoBytes};

use super::syscalls::{self, Bytes};
use super::{Declared, Object};

/// A table of which nothing is lost.
struct Kept {
    /// Without its family.
    name: &'static str,
    /// Numbers of its key's and its value's record.
    records: [u8; 2],
    /// Programs write it; otherwise the agent alone does.
    by_programs: bool,
}

/// In the order in which they are copied: a flow moves from the half-open ones to the others.
const KEPT: [Kept; 8] = [
    Kept { name: "half_open", records: [record::FLOW_KEY, record::FLOW], by_programs: true },
    Kept { name: "sockets", records: [record::SOCKET_KEY, record::SOCKET_PEER], by_programs: true },
    Kept { name: "affinity", records: [record::AFFINITY_KEY, record::AFFINITY], by_programs: true },
    Kept { name: "flows", records: [record::FLOW_KEY, record::FLOW], by_programs: true },
    Kept {
        name: "frontends",
        records: [record::FRONTEND_KEY, record::FRONTEND],
        by_programs: false,
    },
    Kept {
        name: "endpoints",
        records: [record::ENDPOINT_KEY, record::ENDPOINT],
        by_programs: false,
    },
    Kept { name: "members", records: [record::MEMBER_KEY, record::MEMBER], by_programs: false },
    Kept { name: "shares", records: [record::MEMBER_KEY, record::SHARE], by_programs: false },
];

/// What TCP sockets were given lies with the sockets, for as long as these live, and cannot be copied.
/// Versions that describe it alike share the table. Otherwise that of the version before is looked into
/// further on, and kept in a folder of its own, from which that version takes it if it comes back.
const CONNECTIONS: &str = "connections";

/// Records that are the same in both families.
const OF_BOTH: [u8; 4] = [record::FRONTEND, record::ENDPOINT_KEY, record::MEMBER, record::SHARE];

const FAMILIES: [(&str, u8); 2] = [("4", 0), ("6", record::V6)];

/// The folders of tables.
pub(super) const FOLDERS: [&str; 3] = ["tables", "aside", "earlier"];

/// Ends the names by which programs know the tables before theirs.
pub(super) const BEFORE: &str = "_before";

impl Kept {
    fn by_name(table: &str) -> Option<(&'static Self, u8)> {
        KEPT.iter().find_map(|kept| {
            let suffix = table.strip_prefix(kept.name)?;
            FAMILIES.iter().find(|(family, _)| *family == suffix).map(|(_, bits)| (kept, *bits))
        })
    }

    /// The numbers of its records in a family.
    fn records(&self, family: u8) -> [u8; 2] {
        self.records.map(|number| if OF_BOTH.contains(&number) { number } else { number | family })
    }
}

/// Whether nothing of a table is lost when its place is taken.
#[cfg(test)]
pub(super) fn is_kept(table: &str) -> bool {
    Kept::by_name(table).is_some()
}

/// The tables of an agent's folder, and those whose place they take.
#[derive(Debug)]
pub(super) struct Handover {
    tables: PathBuf,
    aside: PathBuf,
    /// Tables of connections that another version made, and their description.
    earlier: PathBuf,
    /// There is something aside that programs use.
    pending: AtomicBool,
}

impl Handover {
    fn new(bpffs: &Path, pending: bool) -> Self {
        let pending = AtomicBool::new(pending);
        let [tables, aside, earlier] = FOLDERS.map(|folder| bpffs.join(folder));
        Self { tables, aside, earlier, pending }
    }

    /// What is there, for who only looks.
    pub(super) fn look(bpffs: &Path) -> Result<Self> {
        let mut found = Self::new(bpffs, false);
        if found.aside.exists() {
            match phase_of(&found.tables)? {
                phase::SWITCHING | phase::DRAINING => found.pending = AtomicBool::new(true),
                phase::DONE => {}
                // Nothing is in the others yet.
                _ => found.tables.clone_from(&found.aside),
            }
        }
        Ok(found)
    }

    /// Brings what an agent before this one left to a state that this one can go on from, and makes room
    /// for its tables. What is in the tables stays in force. Fails, and changes nothing, if more is in them
    /// than is to have room.
    pub(super) fn begin(bpffs: &Path, object: &Object) -> Result<Self> {
        let mut handover = Self::new(bpffs, false);
        if handover.aside.exists() {
            match phase_of(&handover.tables)? {
                phase::SWITCHING if handover.has_tables_of(object)? => {
                    info!("going on with tables that take the place of others");
                    handover.pending = AtomicBool::new(true);
                    return Ok(handover);
                }
                phase::DRAINING => handover.drain()?,
                phase::DONE => handover.end()?,
                _ => handover.take_back()?,
            }
        }
        make_folder(&handover.tables)?;
        if handover.differs(object)? {
            handover.put_aside(object)?;
            handover.pending = AtomicBool::new(true);
        }
        Ok(handover)
    }

    /// Whether tables take the place of others.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// The folder of the tables that programs are to be loaded over.
    pub(super) fn tables(&self) -> &Path {
        &self.tables
    }

    /// What programs are to know of the tables before theirs, and where those are pinned, by the names by
    /// which programs know them.
    pub(super) fn before(&self) -> Result<(Before, Vec<(String, PathBuf)>)> {
        let (mut before, mut pins) = (Before::NONE, Vec::new());
        if self.is_pending()
            && let Some(aside) = readable(&self.aside)?
        {
            before = Before { connections: 0, ..aside };
            for kept in KEPT.iter().filter(|kept| kept.by_programs) {
                for (family, _) in FAMILIES {
                    let name = format!("{}{family}", kept.name);
                    pins.push((format!("{name}{BEFORE}"), self.aside.join(name)));
                }
            }
        }
        for folder in [&self.aside, &self.earlier] {
            if let Some(found) = self.connections(folder)? {
                before.connections = 1;
                before.v4.connection = found.v4.connection;
                before.v6.connection = found.v6.connection;
                for (family, _) in FAMILIES {
                    let name = format!("{CONNECTIONS}{family}");
                    pins.push((format!("{name}{BEFORE}"), folder.join(name)));
                }
                break;
            }
        }
        Ok((before, pins))
    }

    /// Where fields are in the tables of connections of a folder, if there are some that can be read and
    /// are others than those in `tables/`.
    fn connections(&self, folder: &Path) -> Result<Option<Before>> {
        let Some(before) = layout_of(folder)?.as_ref().and_then(Before::of) else {
            return Ok(None);
        };
        for (family, _) in FAMILIES {
            let name = format!("{CONNECTIONS}{family}");
            let Some(found) = info(&folder.join(&name))? else { return Ok(None) };
            let own = info(&self.tables.join(&name))?;
            if own.is_some_and(|own| own.id() == found.id()) || found.value_size() as usize > ROOM {
                return Ok(None);
            }
        }
        Ok(Some(before))
    }

    /// Once the tables are made: says what they hold, and lets programs that use them come. `before`: these
    /// programs look into what is aside.
    pub(super) fn open(&self, object: &Object, before: bool) -> Result<()> {
        let layout = open_single(&self.tables.join("layout"))?;
        layout.put(&[0; 4], object.layout.as_bytes(), false).context("write table layout")?;
        if !before || phase_of(&self.tables)? == phase::SWITCHING {
            return Ok(());
        }
        for (name, copied) in self.copy(|kept| !kept.by_programs)? {
            info!(table = name, entries = copied.added, "copied a table of lists");
        }
        self.set_phase(phase::SWITCHING)
    }

    /// Ends what came before, once no program is in force but those that use the tables.
    pub(super) fn finish(&self) -> Result<()> {
        if !self.is_pending() {
            return Ok(());
        }
        match phase_of(&self.tables)? {
            phase::SWITCHING | phase::DRAINING => self.drain(),
            _ => self.end(),
        }
    }

    /// A table that programs write, in whose place the one of this name is.
    pub(super) fn of(&self, table: &str) -> Result<Option<Predecessor>> {
        if !self.is_pending() {
            return Ok(None);
        }
        let Some((kept, family)) = Kept::by_name(table).filter(|(kept, _)| kept.by_programs) else {
            return Ok(None);
        };
        let Some(before) = layout_of(&self.aside)? else { return Ok(None) };
        let Some(own) = layout_of(&self.tables)? else { return Ok(None) };
        let there = open_bytes(&self.aside.join(table))?;
        let here = open_bytes(&self.tables.join(table))?;
        let [key, value] = kept.records(family);
        Ok(Some(Predecessor {
            key_there: Conversion::new(&own, &before, key, there.key_size()),
            key_here: Conversion::new(&before, &own, key, here.key_size()),
            value_here: Conversion::new(&before, &own, value, here.value_size()),
            table: there,
        }))
    }

    /// Whether what is in `tables/` is of another version than the object, or has tables of other sizes of
    /// which nothing is to be lost.
    fn differs(&self, object: &Object) -> Result<bool> {
        if fs::read_dir(&self.tables)?.next().is_none() {
            return Ok(false);
        }
        match layout_of(&self.tables)? {
            Some(layout) if layout.version == object.layout.version => {}
            _ => return Ok(true),
        }
        for table in object.tables.iter().filter(|table| Kept::by_name(&table.name).is_some()) {
            if let Some(found) = info(&self.tables.join(&table.name))?
                && table.is_like(&found)
                && found.max_entries() != table.max_entries
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the tables are those that the object's programs would be loaded over.
    fn has_tables_of(&self, object: &Object) -> Result<bool> {
        if layout_of(&self.tables)?.is_none_or(|layout| layout != object.layout) {
            return Ok(false);
        }
        for table in &object.tables {
            let found = info(&self.tables.join(&table.name))?;
            if !found.is_some_and(|found| table.is_same(&found)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts the tables aside, but for those that any programs of this version share.
    fn put_aside(&self, object: &Object) -> Result<()> {
        let layout = layout_of(&self.tables)?;
        if readable(&self.tables)?.is_some() {
            for table in &object.tables {
                self.check_room(table)?;
            }
        } else {
            warn!("the tables that are pinned cannot be read by this version; their flows end");
        }
        let version = layout.as_ref().map_or(0, |layout| layout.version.get());
        info!(version, "tables take the place of others");
        fs::rename(&self.tables, &self.aside)
            .with_context(|| format!("put {} aside", self.tables.display()))?;
        make_folder(&self.tables)?;
        let same_version = version == object.layout.version.get();
        // Lists lead to endpoints: old programs get along with all of both, or with none of either.
        let is_list = |name: &str| Kept::by_name(name).is_some_and(|(kept, _)| !kept.by_programs);
        let mut same_lists = same_version;
        for table in object.tables.iter().filter(|table| is_list(&table.name)) {
            let found = info(&self.aside.join(&table.name))?;
            same_lists &= found.is_some_and(|found| table.is_same(&found));
        }
        for table in &object.tables {
            let all_use_it = same_version
                && (Kept::by_name(&table.name).is_none() || is_list(&table.name))
                && !["phase", "layout"].contains(&&*table.name);
            let from = if is_list(&table.name) && !same_lists {
                None
            } else if all_use_it {
                Some(&self.aside)
            } else {
                let folders = [&self.aside, &self.earlier];
                let alike = |folder: &&PathBuf| is_alike(&table.name, folder, &object.layout);
                folders.into_iter().find(alike)
            };
            let pin = from.map(|folder| folder.join(&table.name));
            if let Some(pin) = pin
                && info(&pin)?.is_some_and(|found| table.is_same(&found))
            {
                let map = syscalls::open_pin(&pin);
                map.and_then(|map| syscalls::pin(map.as_fd(), &self.tables.join(&table.name)))
                    .with_context(|| format!("share table {}", table.name))?;
            }
        }
        Ok(())
    }

    /// Refuses to put more into a table than it will have room for.
    fn check_room(&self, table: &Declared) -> Result<()> {
        let pin = self.tables.join(&table.name);
        let Some((found, _)) = info(&pin)?.zip(Kept::by_name(&table.name)) else { return Ok(()) };
        if found.max_entries() <= table.max_entries {
            return Ok(());
        }
        let map = syscalls::open_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let entries = syscalls::count_entries(map.as_fd(), found.key_size(), found.value_size())
            .with_context(|| format!("read table {}", table.name))?;
        if entries > u64::from(table.max_entries) {
            bail!(
                "table {} has {entries} entries and was to shrink from {} to {}: what is in force stays, \
                 choose a larger --capacity",
                table.name,
                found.max_entries(),
                table.max_entries
            );
        }
        Ok(())
    }

    /// Before any program writes into `tables/`: what is aside comes back.
    fn take_back(&self) -> Result<()> {
        info!("taking back tables that were to take the place of others");
        remove_folder(&self.tables)?;
        fs::rename(&self.aside, &self.tables)
            .with_context(|| format!("take {} back", self.aside.display()))
    }

    /// Copies what programs have written aside, and ends that. Each step waits for the programs that began
    /// before it; what one of them does later, it does where the next step finds it.
    fn drain(&self) -> Result<()> {
        self.set_phase(phase::DRAINING)?;
        wait_for_programs();
        let mut all = self.copy(|kept| kept.by_programs && kept.name != "flows")?;
        wait_for_programs();
        all.extend(self.copy(|kept| kept.name == "flows")?);
        wait_for_programs();
        for (name, Copied { added, lost }) in all {
            if added > 0 {
                info!(table = name, entries = added, "took over what was in a table");
            }
            if lost > 0 {
                warn!(table = name, entries = lost, "more came than its new size has room for");
            }
        }
        self.end()
    }

    /// Nobody looks aside any more.
    fn end(&self) -> Result<()> {
        self.set_phase(phase::DONE)?;
        self.pending.store(false, Ordering::Relaxed);
        let connections = FAMILIES.map(|(family, _)| format!("{CONNECTIONS}{family}"));
        // What describes them goes last, and so stays for who has to do this again.
        for name in connections.iter().map(String::as_str).chain(["layout"]) {
            let others = self.aside.join(name);
            let own = layout_of(&self.tables)?;
            let differs = layout_of(&self.aside)?.is_some_and(|layout| Some(layout) != own);
            if differs && others.exists() {
                make_folder(&self.earlier)?;
                fs::rename(&others, self.earlier.join(name))
                    .with_context(|| format!("keep {}", others.display()))?;
            }
        }
        remove_folder(&self.aside)
    }

    fn set_phase(&self, phase: u32) -> Result<()> {
        let table = open_single(&self.tables.join("phase"))?;
        table.put(&[0; 4], &phase.to_ne_bytes(), false).context("write table phase")
    }

    /// Copies entries of tables aside into those in their place, as far as they are not there.
    fn copy(&self, which: impl Fn(&Kept) -> bool) -> Result<Vec<(String, Copied)>> {
        let layouts = layout_of(&self.aside)?.zip(layout_of(&self.tables)?);
        let (before, own) = layouts.context("there is no description of the tables")?;
        let mut all = Vec::new();
        for kept in KEPT.iter().filter(|kept| which(kept)) {
            for (suffix, family) in FAMILIES {
                let name = format!("{}{suffix}", kept.name);
                let pins = [self.aside.join(&name), self.tables.join(&name)];
                let found = [info(&pins[0])?, info(&pins[1])?];
                let [Some(from), Some(to)] = found else { continue };
                if from.id() == to.id() {
                    continue;
                }
                let [from, to] = [open_bytes(&pins[0])?, open_bytes(&pins[1])?];
                let [key, value] = kept.records(family);
                let key = Conversion::new(&before, &own, key, to.key_size());
                let value = Conversion::new(&before, &own, value, to.value_size());
                let copied = copy(&from, &to, &key, &value)
                    .with_context(|| format!("copy table {name} into the one in its place"))?;
                all.push((name, copied));
            }
        }
        Ok(all)
    }
}

/// Waits until no program is at work that began before.
fn wait_for_programs() {
    let _short = Expedited::begin();
    syscalls::wait_for_programs();
}

/// Entries that were not there, and those that found no room.
struct Copied {
    added: u64,
    lost: u64,
}

fn copy(from: &Bytes, to: &Bytes, keys: &Conversion, values: &Conversion) -> io::Result<Copied> {
    let mut copied = Copied { added: 0, lost: 0 };
    from.each(|key, value| {
        let (new_key, new_value) = (keys.convert(key), values.convert(value));
        match to.put(&new_key, &new_value, true) {
            Ok(()) => {
                copied.added += 1;
                // A program may have removed it since it was read, from both tables, and even have written
                // another since.
                if from.get(key)?.is_none() && to.get(&new_key)?.as_ref() == Some(&new_value) {
                    to.remove(&new_key)?;
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => copied.lost += 1,
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok(copied)
}

/// A table aside, by the keys and values of the one in its place.
#[derive(Debug)]
pub(super) struct Predecessor {
    table: Bytes,
    key_there: Conversion,
    key_here: Conversion,
    value_here: Conversion,
}

impl Predecessor {
    pub(super) fn entries(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut entries = Vec::new();
        self.table.each(|key, value| {
            entries.push((self.key_here.convert(key), self.value_here.convert(value)));
            Ok(())
        })?;
        Ok(entries)
    }

    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let value = self.table.get(&self.key_there.convert(key))?;
        Ok(value.map(|value| self.value_here.convert(&value)))
    }

    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.table.remove(&self.key_there.convert(key)).map(drop)
    }
}

/// How a record of one set of tables becomes one of another: fields that both have are copied, the rest is
/// zero.
#[derive(Debug)]
struct Conversion {
    /// Where a field begins in either, and its length.
    fields: Vec<[usize; 3]>,
    length: usize,
}

impl Conversion {
    /// To records of a length.
    fn new(from: &Layout, to: &Layout, record: u8, length: usize) -> Self {
        let fields = to.record(record).filter_map(|field| {
            let mut there = from.record(record);
            let there = there.find(|f| f.number == field.number && f.size == field.size)?;
            Some([there.offset, field.offset, field.size].map(usize::from))
        });
        Self { fields: fields.collect(), length }
    }

    /// What lies beyond a record, by a description that does not fit it, is left out.
    fn convert(&self, record: &[u8]) -> Vec<u8> {
        let mut converted = vec![0; self.length];
        for [from, to, size] in &self.fields {
            let field = record.get(*from..from + size);
            if let Some((field, place)) = field.zip(converted.get_mut(*to..to + size)) {
                place.copy_from_slice(field);
            }
        }
        converted
    }
}

/// Whether a table is one of connections that a folder's version describes like another.
fn is_alike(table: &str, folder: &Path, own: &Layout) -> bool {
    let family = table.strip_prefix(CONNECTIONS);
    let family = FAMILIES.iter().find(|(suffix, _)| Some(*suffix) == family);
    let layout = layout_of(folder).ok().flatten();
    family.zip(layout).is_some_and(|((_, bits), layout)| {
        let number = record::CONNECTION | bits;
        layout.record(number).eq(own.record(number))
    })
}

/// What a folder's tables hold; `None` if nobody has said so.
pub(super) fn layout_of(folder: &Path) -> Result<Option<Layout>> {
    let value = read_single(&folder.join("layout"))?;
    let layout = value.and_then(|value| Layout::read_from_bytes(&value).ok());
    Ok(layout.filter(|layout| layout.version.get() != 0))
}

/// What programs are to know of a folder's tables; `None` if they could not read them.
fn readable(folder: &Path) -> Result<Option<Before>> {
    let Some(before) = layout_of(folder)?.as_ref().and_then(Before::of) else { return Ok(None) };
    for kept in KEPT.iter().filter(|kept| kept.by_programs) {
        let room = match kept.name {
            "sockets" => ROOM_OF_SOCKET,
            "affinity" => ROOM_OF_CLIENT,
            _ => ROOM,
        };
        for (family, _) in FAMILIES {
            let found = info(&folder.join(format!("{}{family}", kept.name)))?;
            let fits = found
                .is_some_and(|found| found.key_size().max(found.value_size()) as usize <= room);
            if !fits {
                return Ok(None);
            }
        }
    }
    Ok(Some(before))
}

fn phase_of(folder: &Path) -> Result<u32> {
    let value = read_single(&folder.join("phase"))?;
    let value = value.and_then(|value| <[u8; 4]>::try_from(value).ok());
    Ok(value.map_or(phase::NONE, u32::from_ne_bytes))
}

fn read_single(pin: &Path) -> Result<Option<Vec<u8>>> {
    if !pin.exists() {
        return Ok(None);
    }
    let table = open_single(pin)?;
    table.get(&[0; 4]).with_context(|| format!("read {}", pin.display()))
}

/// A table of one entry.
fn open_single(pin: &Path) -> Result<Bytes> {
    let found = MapInfo::from_pin(pin).with_context(|| format!("open {}", pin.display()))?;
    if !matches!(found.map_type(), Ok(MapType::Array)) || found.key_size() != 4 {
        bail!("{} is no table of one entry", pin.display());
    }
    open_bytes(pin)
}

fn open_bytes(pin: &Path) -> Result<Bytes> {
    let about = || format!("open {}", pin.display());
    let found = MapInfo::from_pin(pin).with_context(about)?;
    let map = syscalls::open_pin(pin).with_context(about)?;
    Ok(Bytes::new(map, found.key_size(), found.value_size()))
}

/// What the kernel knows of a pinned table; `None` if there is none.
fn info(pin: &Path) -> Result<Option<MapInfo>> {
    if !pin.exists() {
        return Ok(None);
    }
    MapInfo::from_pin(pin).map(Some).with_context(|| format!("read {}", pin.display()))
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| {
        format!("make folder {}: is a BPF file system mounted there?", folder.display())
    })
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
