//! The eBPF programs and tables in this node's kernel.
//!
//! Tables and links are pinned in one folder of a BPF file system and outlive the agent:
//!
//! ```text
//! <bpffs>/tables/<name>  adopted if version, type and sizes match, else made anew
//! <bpffs>/aside/<name>   in whose place those are, while a switch is under way: see `handover`
//! <bpffs>/earlier/<name> of the version before: what TCP sockets were given, for as long as they live
//! <bpffs>/links/<name>   one per attachment; its program is replaced in place
//! ```
//!
//! Before Linux 6.6 a classifier's attachment is no link but a filter, which outlives the agent by
//! itself and carries the name that a link's pin has (see `filters`).
//!
//! A starting agent therefore finds its predecessor's state in force, and nothing stops while one
//! replaces the other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::maps::{Map, MapData, MapInfo, PerCpuArray};
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    CgroupAttachMode, Program, ProgramError, SchedClassifier, TcAttachType, TestRun,
    TestRunOptions, Xdp, XdpMode,
};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use fairway_abi::layout::Layout;
use fairway_netlink::grace::Expedited;
use filters::Filters;
use handover::Handover;
use table::Entry;
use tracing::{debug, info, warn};
use zerocopy::FromBytes as _;

pub use capacity::Capacity;
pub(crate) use filters::remove_filters;
pub(crate) use pinned::Pinned;
pub(crate) use syscalls::{ETHERTYPE_ARP, Plain, frames_of, solicitations_of};
pub(crate) use table::{Added, Counters, PrefixTable, Single, Table};

mod capacity;
mod filters;
mod handover;
mod pinned;
mod syscalls;
mod table;
pub(crate) mod usage;

/// The object `proxy/build.rs` built, at the alignment its parser wants.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FAIRWAY_EBPF_OBJECT"));
/// The same of programs that look into the tables before theirs.
static OBJECT_ASIDE: &[u8] = aya::include_bytes_aligned!(env!("FAIRWAY_EBPF_OBJECT_ASIDE"));

/// The socket-level programs, all attached to the node's cgroup.
const SOCKET_PROGRAMS: [&str; 9] = [
    "sock_release",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
];

/// Starts the names of their pins; the cgroup's inode number and the program's name follow.
const SOCKET_PIN: &str = "cgroup-";

/// The packet-level programs, the one that takes the kernel longest to check first.
const CLASSIFIERS: [&str; 11] = [
    "pod_ingress",
    "uplink_ingress",
    "overlay_ingress",
    "wireguard_ingress",
    "pod_egress",
    "uplink_egress",
    "overlay_egress",
    "wireguard_egress",
    "pod_sends",
    "pod_receives",
    "clock",
];

/// The programs of VXLAN devices, at their ingress and egress.
pub(crate) const VXLAN: [&str; 2] = ["overlay_ingress", "overlay_egress"];

/// Those of WireGuard devices.
pub(crate) const WIREGUARD: [&str; 2] = ["wireguard_ingress", "wireguard_egress"];

/// The loaded programs, and where they are attached.
pub struct Dataplane {
    ebpf: Ebpf,
    /// The folder of all versions.
    bpffs: PathBuf,
    links: PathBuf,
    attach: Attach,
    filters: Filters,
    object: Object,
    handover: Arc<Handover>,
    /// The programs look into the tables before theirs.
    looks_aside: bool,
    /// What was attached since the programs were loaded, by the name of its pin.
    attached: BTreeMap<String, Attached>,
}

/// What an attachment runs, and where.
enum Attached {
    /// A socket-level program, or the XDP program.
    Link(&'static str),
    Classifier {
        program: String,
        device: String,
        side: Side,
        order: Order,
    },
}

impl Attached {
    fn program(&self) -> &str {
        match self {
            Self::Link(program) => program,
            Self::Classifier { program, .. } => program,
        }
    }
}

/// How classifiers are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// By tcx links, which came with Linux 6.6.
    Tcx,
    /// By filters of the devices' `clsact`.
    Clsact,
}

impl Attach {
    /// The best way that the running kernel has.
    pub fn of_kernel() -> Self {
        let tcx = KernelVersion::new(6, 6, 0);
        let old = KernelVersion::current().is_ok_and(|kernel| kernel < tcx);
        if old { Self::Clsact } else { Self::Tcx }
    }
}

/// Which side of a device a classifier sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

/// Where a classifier comes among others on its side of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    First,
    Last,
}

impl Dataplane {
    /// Loads the programs over the tables pinned under `bpffs`, or over new ones.
    pub fn load(bpffs: &Path) -> Result<Self> {
        Self::load_sized(bpffs, &[])
    }

    /// The same, with some tables of other sizes than the usual ones. Fails if more is in them already.
    pub fn load_sized(bpffs: &Path, capacities: &[Capacity]) -> Result<Self> {
        Self::load_object(bpffs, Object::new(OBJECT, OBJECT_ASIDE)?, capacities)
    }

    /// The same, but for some programs, which the node is likely not to need: each is loaded when it is
    /// first attached.
    pub(crate) fn load_without(
        bpffs: &Path,
        capacities: &[Capacity],
        later: &[&str],
    ) -> Result<Self> {
        let mut object = Object::new(OBJECT, OBJECT_ASIDE)?;
        object.programs.retain(|name| !later.contains(name));
        Self::load_object(bpffs, object, capacities)
    }

    /// The tables, and each program once it is attached.
    #[cfg(test)]
    pub(crate) fn load_tables(bpffs: &Path, capacities: &[Capacity]) -> Result<Self> {
        let mut object = Object::new(OBJECT, OBJECT_ASIDE)?;
        object.programs.clear();
        Self::load_object(bpffs, object, capacities)
    }

    /// The same, with the programs of any object of ours.
    fn load_object(bpffs: &Path, mut object: Object, capacities: &[Capacity]) -> Result<Self> {
        let links = bpffs.join("links");
        fs::create_dir_all(&links).with_context(|| {
            format!("make folder {}: is a BPF file system mounted there?", links.display())
        })?;
        capacity::apply(capacities, &mut object.tables);
        let handover = Arc::new(Handover::begin(bpffs, &object)?);
        let (mut ebpf, looks_aside) = load_tables(&object, &handover)?;
        handover.open(&object, looks_aside)?;
        load_programs(&mut ebpf, &object.programs)?;
        let filters = Filters::adopt().context("look for filters that are ours")?;
        let attach = Attach::of_kernel();
        let bpffs = bpffs.to_owned();
        let attached = BTreeMap::new();
        Ok(Self { ebpf, bpffs, links, attach, filters, object, handover, looks_aside, attached })
    }

    /// Lets classifiers be attached in another way than the kernel's best. What is attached
    /// the other way stays until it is attached again, or detached.
    #[must_use]
    pub fn attaching_by(self, attach: Attach) -> Self {
        Self { attach, ..self }
    }

    /// Loads programs that are about to be attached, at the same time, if they are not loaded yet.
    pub(crate) fn prepare(&mut self, programs: &[&str]) -> Result<()> {
        load_programs(&mut self.ebpf, programs)
    }

    /// Hands out a hash table.
    pub(crate) fn table<K: Entry, V: Entry>(&mut self, name: &str) -> Result<Table<K, V>> {
        Table::new(name, self.open(name)?, &self.handover)
    }

    /// As [`Self::table`], for prefixes.
    pub(crate) fn prefixes<A: Entry, V: Entry>(&mut self, name: &str) -> Result<PrefixTable<A, V>> {
        PrefixTable::new(name, self.open(name)?)
    }

    /// As [`Self::table`], for a single entry.
    pub(crate) fn single<V: Entry>(&mut self, name: &str) -> Result<Single<V>> {
        Single::new(name, self.open(name)?)
    }

    /// As [`Self::table`], for counters.
    pub(crate) fn counters<V: Entry>(&mut self, name: &str) -> Result<Counters<V>> {
        Counters::new(name, self.open(name)?)
    }

    /// Packets dropped so far, by [`fairway_abi::DropReason`] number.
    pub(crate) fn drops(&self) -> Result<Vec<u64>> {
        self.sums("drops")
    }

    /// Queries that programs have answered so far, by their kind, a sum of [`fairway_abi::answered`].
    pub(crate) fn answers(&self) -> Result<Vec<u64>> {
        self.sums("answers")
    }

    /// What all processors have counted, by number.
    fn sums(&self, table: &str) -> Result<Vec<u64>> {
        let map = self.ebpf.map(table).ok_or_else(|| anyhow!("no table {table}"))?;
        let map = PerCpuArray::<_, u64>::try_from(map)?;
        (0..map.len()).map(|number| Ok(map.get(&number, 0)?.iter().sum())).collect()
    }

    /// Opens a table once more. Programs that are not loaded yet know tables by the numbers of those files that
    /// the loader has opened, which therefore stay open.
    fn open(&self, name: &str) -> Result<Map> {
        let map = self.ebpf.map(name).ok_or_else(|| anyhow!("no table {name}"))?;
        let (Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)) = map
        else {
            bail!("table {name} is of a kind that nobody here reads");
        };
        let file = data.fd().as_fd().try_clone_to_owned();
        let file = file.with_context(|| format!("open table {name}"))?;
        let data = MapData::from_fd(file).with_context(|| format!("look at table {name}"))?;
        Map::from_map_data(data).with_context(|| format!("table {name}"))
    }

    /// Attaches the socket-level programs to a cgroup, for every process in and below it, and takes
    /// them away from any other.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<()> {
        let folder =
            fs::File::open(cgroup).with_context(|| format!("open cgroup {}", cgroup.display()))?;
        // A cgroup's inode number is its identity, and is not used again.
        let inode = folder.metadata().map(|metadata| metadata.ino());
        let inode = inode.with_context(|| format!("look at cgroup {}", cgroup.display()))?;
        let mut wanted = BTreeSet::new();
        self.prepare(&SOCKET_PROGRAMS)?;
        for name in SOCKET_PROGRAMS {
            let called = format!("{SOCKET_PIN}{inode}-{name}");
            let pin = self.links.join(&called);
            self.attached.insert(called.clone(), Attached::Link(name));
            wanted.insert(called);
            let program =
                self.ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
            let fd = program.fd().map_err(anyhow::Error::from)?.try_clone()?;
            if replace(&pin, fd.as_fd())? {
                continue;
            }
            let link = attach_to_cgroup(program, &folder).with_context(|| {
                format!("attach {name} to {}: is it in a cgroup v2 hierarchy?", cgroup.display())
            })?;
            link.pin(&pin).with_context(|| format!("pin {}", pin.display()))?;
        }
        for pin in self.attachments()? {
            if pin.starts_with(SOCKET_PIN) && !wanted.contains(&pin) {
                self.detach(&pin);
            }
        }
        Ok(())
    }

    /// Whether no program of ours has been attached here yet, of this or another version.
    pub(crate) fn is_first(&self) -> Result<bool> {
        let folders =
            fs::read_dir(&self.bpffs).with_context(|| format!("list {}", self.bpffs.display()))?;
        for folder in folders {
            if is_of_old(&folder?.file_name().to_string_lossy()) {
                return Ok(false);
            }
        }
        Ok(self.attachments()?.is_empty())
    }

    /// Ends what came before, once no program is in force that uses it: tables in whose place ours are, and
    /// what agents left that knew no such thing, whose programs would run after ours, over tables that nobody
    /// keeps up to date.
    pub(crate) fn discard_predecessors(&mut self) {
        if let Err(error) = self.settle() {
            warn!(error = format!("{error:#}"), "cannot end tables whose place others have taken");
        }
        let Ok(folders) = fs::read_dir(&self.bpffs) else { return };
        for folder in folders.flatten() {
            if !is_of_old(&folder.file_name().to_string_lossy()) {
                continue;
            }
            if let Err(error) = fs::remove_dir_all(folder.path()) {
                warn!(folder = %folder.path().display(), %error, "cannot remove another version's state");
            }
        }
    }

    /// Ends the tables before ours, and puts programs in force that do not look for any. Those in force
    /// until then would go on as well, but hold what they may look into.
    fn settle(&mut self) -> Result<()> {
        if self.handover.is_pending() {
            // A pod that the list of pods has lost: nothing is taken from it, nor can it be given anything.
            for pin in self.attachments()?.iter().filter(|pin| !self.attached.contains_key(*pin)) {
                warn!(pin, "a program from before stays where it is, with tables that end");
            }
        }
        self.handover.finish()?;
        if !self.looks_aside {
            return Ok(());
        }
        let (mut ebpf, looks_aside) = load_tables(&self.object, &self.handover)?;
        let attached = self.attached.values().map(Attached::program);
        let programs: Vec<&str> = self.object.programs.iter().copied().chain(attached).collect();
        load_programs(&mut ebpf, &programs)?;
        self.ebpf = ebpf;
        for (pin, attached) in &self.attached {
            let path = self.links.join(pin);
            match attached {
                // Where the driver has refused it, there is none.
                Attached::Link("uplink_xdp") if !path.exists() => {}
                Attached::Link(name) => {
                    let program =
                        self.ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
                    replace(&path, program.fd().map_err(anyhow::Error::from)?.as_fd())?;
                }
                Attached::Classifier { program: name, device, side, order } => {
                    let program: &mut SchedClassifier = program(&mut self.ebpf, name)?;
                    let fd = program.fd().map_err(anyhow::Error::from)?.as_fd();
                    if self.attach == Attach::Clsact {
                        self.filters.put(pin, device, (*side, *order), fd)?;
                    } else {
                        replace(&path, fd)?;
                    }
                }
            }
        }
        self.looks_aside = looks_aside;
        Ok(())
    }

    /// Does again what [`Self::discard_predecessors`] could not do.
    pub(crate) fn settle_again(&mut self) -> Result<()> {
        if self.handover.is_pending() || self.looks_aside { self.settle() } else { Ok(()) }
    }

    /// Attaches a classifier to a device of this network namespace, in front of all that are there.
    /// `pin` names the attachment. One that is there already keeps its place.
    pub(crate) fn attach_classifier(
        &mut self,
        name: &str,
        device: &str,
        side: Side,
        pin: &str,
    ) -> Result<()> {
        self.attach_at(name, device, side, pin, Order::First)
    }

    /// As [`Self::attach_classifier`], behind all that are there.
    pub(crate) fn attach_last(
        &mut self,
        name: &str,
        device: &str,
        side: Side,
        pin: &str,
    ) -> Result<()> {
        self.attach_at(name, device, side, pin, Order::Last)
    }

    fn attach_at(
        &mut self,
        name: &str,
        device: &str,
        side: Side,
        pin: &str,
        order: Order,
    ) -> Result<()> {
        let path = self.links.join(pin);
        self.prepare(&[name])?;
        let program: &mut SchedClassifier = program(&mut self.ebpf, name)?;
        let fd = program.fd().map_err(anyhow::Error::from)?.try_clone()?;
        let about = || format!("attach {name} to {device}");
        let (program_name, device_name) = (name.to_owned(), device.to_owned());
        let attached =
            Attached::Classifier { program: program_name, device: device_name, side, order };
        self.attached.insert(pin.to_owned(), attached);
        if self.attach == Attach::Clsact {
            self.filters.put(pin, device, (side, order), fd.as_fd()).with_context(about)?;
            return unpin(&path);
        }
        if !replace(&path, fd.as_fd())? {
            let attach_type = match side {
                Side::Ingress => TcAttachType::Ingress,
                Side::Egress => TcAttachType::Egress,
            };
            let order = TcAttachOptions::TcxOrder(match order {
                Order::First => LinkOrder::first(),
                Order::Last => LinkOrder::last(),
            });
            let _short = Expedited::begin();
            let link = program
                .attach_with_options(device, attach_type, order)
                .and_then(|id| program.take_link(id))
                .map_err(explain)
                .with_context(about)?;
            let link: FdLink =
                link.try_into().map_err(|_| anyhow!("{name} on {device}: no link"))?;
            link.pin(&path).with_context(|| format!("pin {}", path.display()))?;
        }
        self.filters.remove(pin);
        Ok(())
    }

    /// Attaches the XDP program to a device.
    pub(crate) fn attach_xdp(&mut self, device: &str, mode: XdpMode, pin: &str) -> Result<()> {
        self.attached.insert(pin.to_owned(), Attached::Link("uplink_xdp"));
        let pin = self.links.join(pin);
        self.prepare(&["uplink_xdp"])?;
        let program: &mut Xdp = program(&mut self.ebpf, "uplink_xdp")?;
        let fd = program.fd().map_err(anyhow::Error::from)?.try_clone()?;
        if replace(&pin, fd.as_fd())? {
            return Ok(());
        }
        let link = program
            .attach(device, mode)
            .and_then(|id| program.take_link(id))
            .with_context(|| format!("attach uplink_xdp to {device}"))?;
        let link: FdLink = link.try_into().map_err(|_| anyhow!("uplink_xdp: no link"))?;
        link.pin(&pin).with_context(|| format!("pin {}", pin.display()))?;
        Ok(())
    }

    /// Takes an attachment away; one that is not there is no error.
    pub(crate) fn detach(&mut self, pin: &str) {
        self.filters.remove(pin);
        self.attached.remove(pin);
        let pin = self.links.join(pin);
        // At once, so that the same program can be attached there again. Of a device that has gone, the
        // kernel has detached it already.
        if let Ok(link) = syscalls::open_pin(&pin) {
            let _short = Expedited::begin();
            if let Err(error) = syscalls::detach_link(link.as_fd()) {
                debug!(%error, pin = %pin.display(), "cannot detach a program; its pin is removed");
            }
        }
        if let Err(error) = unpin(&pin) {
            warn!(error = format!("{error:#}"), "cannot remove an attachment's pin");
        }
    }

    /// The names of all attachments, those of vanished devices included.
    pub(crate) fn attachments(&self) -> Result<Vec<String>> {
        let folder =
            fs::read_dir(&self.links).with_context(|| format!("list {}", self.links.display()))?;
        let mut names: Vec<String> = self.filters.names().cloned().collect();
        for entry in folder {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// The kernel's clock as flow records hold it: low bits of jiffies.
    pub(crate) fn clock(&mut self) -> Result<u32> {
        self.prepare(&["clock"])?;
        let program: &mut SchedClassifier = program(&mut self.ebpf, "clock")?;
        // The kernel refuses test packets shorter than an Ethernet header.
        let packet = [0u8; 64];
        let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::new() };
        let result = program.test_run(options).context("read the kernel's clock")?;
        Ok(result.return_value)
    }

    /// The programs, for tests that run them by hand.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Puts a program into the link pinned at `pin`; false if there is none that still leads anywhere.
fn replace(pin: &Path, program: std::os::fd::BorrowedFd<'_>) -> Result<bool> {
    let link = match syscalls::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("open pin {}", pin.display())),
    };
    match syscalls::update_link(link.as_fd(), program) {
        Ok(()) => Ok(true),
        // What it was attached to is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            info!(pin = %pin.display(), "a pinned attachment leads nowhere, making a new one");
            fs::remove_file(pin).with_context(|| format!("remove pin {}", pin.display()))?;
            Ok(false)
        }
        Err(error) => Err(error)
            .with_context(|| format!("replace the program of the attachment {}", pin.display())),
    }
}

/// Removes the pin of a link, and with it the link; one that is not there is no error.
fn unpin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove pin {}", pin.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a folder is an agent's.
pub(crate) fn is_ours(folder: &str) -> bool {
    folder == "links" || handover::FOLDERS.contains(&folder) || is_of_old(folder)
}

/// Whether a folder is one of those that agents had by versions, once.
fn is_of_old(folder: &str) -> bool {
    folder.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Opens or makes an object's tables, and prepares its programs; whether these look into tables before
/// theirs.
fn load_tables(object: &Object, handover: &Handover) -> Result<(Ebpf, bool)> {
    // The loader reads them itself, which is most of what it does.
    ensure!(
        Path::new(KERNEL_TYPES).exists(),
        "the kernel describes no types: Fairway needs one built with CONFIG_DEBUG_INFO_BTF"
    );
    let (before, pins_before) = handover.before()?;
    let looks_aside = before.there != 0;
    let bytes = if looks_aside || before.connections != 0 { object.aside } else { object.bytes };
    let before = Plain(before);
    let mut loader = EbpfLoader::new();
    discard_partial_policies(object, handover.tables())?;
    for table in &object.tables {
        let pin = handover.tables().join(&table.name);
        table.discard_if_foreign(&pin)?;
        loader.map_pin_path(&table.name, pin);
        loader.map_max_entries(&table.name, table.max_entries);
    }
    for (name, pin) in &pins_before {
        loader.map_pin_path(name, pin);
    }
    loader.override_global("BEFORE", &before, true);
    let ebpf = loader.load(bytes).map_err(explain).context("load the eBPF programs")?;
    Ok((ebpf, looks_aside))
}

/// The kernel's description of its own types.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Tables of policies refer to each other by numbers.
const POLICIES: [&str; 7] =
    ["subjects4", "subjects6", "identities4", "identities6", "blocks4", "blocks6", "rulings"];

/// Removes the pins of all tables of policies if one of them is not as declared. What is in force keeps
/// its own as it was, until programs take its place whose tables were written anew: numbers of the one would
/// mean nothing to the other.
fn discard_partial_policies(object: &Object, folder: &Path) -> Result<()> {
    let policies = object.tables.iter().filter(|table| POLICIES.contains(&&*table.name));
    let mut is_whole = true;
    for table in policies {
        let pin = folder.join(&table.name);
        is_whole &= pin.exists()
            && table.is_same(
                &MapInfo::from_pin(&pin).with_context(|| format!("read {}", pin.display()))?,
            );
    }
    for pin in POLICIES.map(|name| folder.join(name)) {
        if !is_whole && pin.exists() {
            fs::remove_file(&pin).with_context(|| format!("remove {}", pin.display()))?;
        }
    }
    Ok(())
}

/// Has the kernel check those of the programs that are not loaded yet, on several processors, the first
/// ones first: that is most of the time that an agent takes to start.
fn load_programs(ebpf: &mut Ebpf, programs: &[&str]) -> Result<()> {
    for name in programs {
        ensure!(ebpf.program(name).is_some(), "no program {name}");
    }
    let place = |name: &str| programs.iter().position(|wanted| *wanted == name);
    let wanted = ebpf.programs_mut().filter_map(|(name, program)| {
        (program.fd().is_err()).then_some((place(name)?, name, program))
    });
    let mut wanted: Vec<_> = wanted.collect();
    wanted.sort_by_key(|(place, ..)| Reverse(*place));
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(8).min(wanted.len());
    let queue = Mutex::new(wanted);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let load_some = || {
        while let Some((_, name, program)) = next() {
            let loaded = match program {
                Program::SchedClassifier(program) => unless_interrupted(|| program.load()),
                Program::CgroupSockAddr(program) => unless_interrupted(|| program.load()),
                Program::CgroupSock(program) => unless_interrupted(|| program.load()),
                Program::Xdp(program) => unless_interrupted(|| program.load()),
                _ => bail!("program {name} is of a kind that nothing attaches"),
            };
            loaded.map_err(explain).with_context(|| format!("load program {name}"))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(load_some)).collect();
        let own = load_some();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All are waited for; the first error is told.
        others.into_iter().map(join).fold(own, Result::and)
    })
}

fn attach_to_cgroup(program: &mut Program, folder: &fs::File) -> Result<FdLink> {
    let none = || anyhow!("there is no link");
    match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(folder, CgroupAttachMode::Single)?;
            program.take_link(id)?.try_into().map_err(|_| none())
        }
        Program::CgroupSock(program) => {
            let id = program.attach(folder, CgroupAttachMode::Single)?;
            program.take_link(id)?.try_into().map_err(|_| none())
        }
        _ => bail!("it is no program for cgroups"),
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))?;
    program.try_into().with_context(|| format!("program {name}"))
}

/// Loads a program. The kernel gives up verifying one when a signal comes, which says nothing of the
/// program; it is then loaded anew, a few times.
fn unless_interrupted(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    const TRIES: usize = 5;
    let interrupted = |outcome: &Result<(), ProgramError>| {
        matches!(outcome, Err(ProgramError::LoadError { io_error, .. })
            if io_error.kind() == io::ErrorKind::WouldBlock)
    };
    let mut outcome = load();
    for _ in 1..TRIES {
        if !interrupted(&outcome) {
            break;
        }
        outcome = load();
    }
    outcome
}

/// Adds the likely cause to errors of the loader library that have one.
fn explain(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    let text = format!("{:#}", chain(&error));
    let error = anyhow::Error::new(error);
    if text.contains("Operation not permitted") || text.contains("os error 1)") {
        return error.context("the capabilities CAP_BPF and CAP_NET_ADMIN (or root) are needed");
    }
    error
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The programs, with the tables that they declare.
struct Object {
    bytes: &'static [u8],
    /// The same for programs that look into the tables before theirs.
    aside: &'static [u8],
    /// Those that are loaded before anything is attached; others are where they are.
    programs: Vec<&'static str>,
    tables: Vec<Declared>,
    layout: Layout,
}

/// A table as the object declares it.
struct Declared {
    name: String,
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

impl Declared {
    /// Removes the pin of a table that does not look as declared: the loader itself adopts anything.
    fn discard_if_foreign(&self, pin: &Path) -> Result<()> {
        if !pin.exists() {
            return Ok(());
        }
        let found = MapInfo::from_pin(pin).with_context(|| format!("read {}", pin.display()))?;
        if !self.is_same(&found) {
            warn!(table = self.name, "the pinned table was made differently; it is made anew");
            fs::remove_file(pin).with_context(|| format!("remove {}", pin.display()))?;
        }
        Ok(())
    }

    /// Whether a table is as declared.
    fn is_same(&self, found: &MapInfo) -> bool {
        self.is_like(found) && found.max_entries() == self.max_entries
    }

    /// Whether a table differs in its size at most.
    fn is_like(&self, found: &MapInfo) -> bool {
        found.map_type().is_ok_and(|kind| kind as u32 == self.kind)
            && found.key_size() == self.key_size
            && found.value_size() == self.value_size
            && found.map_flags() == self.flags
    }
}

impl Object {
    fn new(bytes: &'static [u8], aside: &'static [u8]) -> Result<Self> {
        let object = aya_obj::Object::parse(bytes).context("parse an eBPF object")?;
        let layout = object.maps.get(".rodata.layout");
        let layout = layout.and_then(|section| Layout::read_from_bytes(section.data()).ok());
        let layout = layout.context("an eBPF object does not say what its tables hold")?;
        let mut tables = Vec::new();
        for (name, map) in object.maps {
            // Sections of constants are not tables, and belong to one load alone; so do the names for tables
            // of others.
            if name.starts_with('.') || name.ends_with(handover::BEFORE) {
                continue;
            }
            tables.push(Declared {
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: map.map_flags(),
                name,
            });
        }
        let programs = CLASSIFIERS.into_iter().chain(SOCKET_PROGRAMS).collect();
        Ok(Self { bytes, aside, programs, tables, layout })
    }
}

#[cfg(test)]
mod tests;
