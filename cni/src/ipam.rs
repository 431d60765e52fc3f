//! Which addresses of this node's ranges are taken, and by whom.
//!
//! One directory for all networks, as the ranges are the node's whatever a network is called; in
//! it one file per address, whose content names its owner. An address is taken if and only if its
//! file exists, and the file appears with its content in one step, so a crash at any point leaves
//! a store that is right: at worst an address stays taken until the DEL that follows a failed ADD.
//! A lock file keeps concurrent calls apart while they choose and name; what they have named they
//! force to disk without it, as a disk under load takes its time. Power lost in between leaves an
//! address of a pod that never was, at worst with an empty file.
//!
//! ```text
//! <dataDir>/addresses/lock
//!                     10.1.0.2     {"network": "pods", "containerID": "...", "ifname": "eth0"}
//!                     fd00::2      {"network": "pods", "containerID": "...", "ifname": "eth0"}
//!                     last.10.1.0.2             what was given last of the pool that begins there
//!                     damaged-10.1.0.9          what was there when it could not be read
//! ```
//!
//! The store may be lost, or another one be configured, while pods live. So an address that the
//! node has a route of its own to is never given to anybody either; callers hand these in.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use fairway_cni_protocol::KnownAddresses;
use serde::{Deserialize, Serialize};

use crate::call::Attachment;
use crate::failure::{Code, Failure, chain};
use crate::pool::{Pool, Wanted};

/// The addresses of this node's pods.
pub(crate) struct Store {
    directory: PathBuf,
}

/// Who holds an address: an attachment, for the network it was added to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// Empty in an entry that was restored: the pod is there, but not the name of its network.
    pub(crate) network: String,
    #[serde(flatten)]
    pub(crate) attachment: Attachment,
}

/// What [`Store::reserve`] has done.
#[derive(Debug)]
pub(crate) struct Reservation {
    /// One address of each pool.
    pub(crate) addresses: Vec<IpAddr>,
    /// Those of them that the owner did not hold before.
    pub(crate) fresh: Vec<IpAddr>,
}

/// An address that is taken; nobody can say by whom if its file was damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) address: IpAddr,
    pub(crate) owner: Option<Owner>,
}

/// What a store differed in from what is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Addresses that were taken although nobody has them any more.
    pub freed: Vec<IpAddr>,
    /// Addresses of pods that were not taken, or taken for somebody else.
    pub restored: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no address is free in {pool}: {used} of {size} are used \
         (do deleted pods still hold theirs? GC frees them)"
    )]
    Exhausted { pool: String, used: usize, size: u128 },
    #[error("key {:?}: address {} is taken: {by}", wanted.key, wanted.address)]
    Taken { wanted: Wanted, by: String },
    #[error("address store {}: other calls have held its lock for {waited:?}", directory.display())]
    Busy { directory: PathBuf, waited: Duration },
    #[error("address store: {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Exhausted { .. } | Error::Taken { .. } | Error::Busy { .. } => Code::TryAgain,
            Error::Io { .. } => Code::Io,
        };
        Self::new(code, chain(&error))
    }
}

impl Store {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("addresses") }
    }

    /// Reserves one address of each pool, none of them `routed`, on disk when this returns. What
    /// the owner holds already in one of the pools is used again, what its attachment holds
    /// elsewhere is freed: an earlier call for it did not finish. What the pod had before comes before
    /// others, and what other pods had comes last. On failure nothing is reserved
    /// that was not before.
    pub(crate) fn reserve(
        &self,
        owner: &Owner,
        pools: &[Pool],
        routed: &HashSet<IpAddr>,
        known: &KnownAddresses,
    ) -> Result<Reservation, Error> {
        self.make()?;
        let reservation = self.choose(owner, pools, routed, known)?;
        // Not under the lock.
        if let Err(error) = self.sync(&reservation.fresh) {
            self.give_back(owner, &reservation.fresh)?;
            return Err(error);
        }
        Ok(reservation)
    }

    fn choose(
        &self,
        owner: &Owner,
        pools: &[Pool],
        routed: &HashSet<IpAddr>,
        known: &KnownAddresses,
    ) -> Result<Reservation, Error> {
        let _lock = self.lock()?;
        self.sweep()?;
        let entries = self.entries()?;
        let mut taken = routed.clone();
        taken.extend(entries.iter().map(|entry| entry.address));
        let mut held: Vec<IpAddr> = Vec::new();
        let mut stale: Vec<IpAddr> = Vec::new();
        for entry in &entries {
            match &entry.owner {
                Some(known) if known == owner && !routed.contains(&entry.address) => {
                    held.push(entry.address);
                }
                Some(known) if known.attachment == owner.attachment => stale.push(entry.address),
                _ => {}
            }
        }

        let nobodys: HashSet<IpAddr> = taken.iter().chain(&known.others).copied().collect();
        // All choices first: refused or not, nothing is written until each pool has one.
        let choose = |pool: &Pool| match &pool.wanted {
            Some(wanted) if held.contains(&wanted.address) => Ok(wanted.address),
            Some(wanted) if taken.contains(&wanted.address) => {
                Err(Error::Taken { wanted: wanted.clone(), by: holder(wanted.address, &entries) })
            }
            Some(wanted) => Ok(wanted.address),
            None => {
                let own = known.own.iter().filter(|address| !taken.contains(*address));
                let mut own = held.iter().chain(own).filter(|address| pool.contains(**address));
                own.next()
                    .copied()
                    .or_else(|| pool.first_free_after(self.last(pool), &nobodys))
                    .or_else(|| pool.first_free_after(self.last(pool), &taken))
                    .ok_or_else(|| exhausted(pool, &taken))
            }
        };
        let chosen = pools.iter().map(choose).collect::<Result<Vec<_>, _>>()?;

        stale.extend(held.iter().filter(|address| !chosen.contains(address)));

        let mut fresh = Vec::new();
        let mut write = || {
            for (address, pool) in chosen.iter().zip(pools) {
                if !held.contains(address) {
                    self.write_entry(*address, owner)?;
                    fresh.push(*address);
                    self.remember_last(pool, *address)?;
                }
            }
            stale.iter().try_for_each(|address| self.remove(*address))
        };
        if let Err(error) = write() {
            for address in fresh {
                self.remove(address)?;
            }
            return Err(error);
        }
        Ok(Reservation { addresses: chosen, fresh })
    }

    /// Frees all that the attachment holds, in whichever network: it has one interface, and that is
    /// gone. Nothing to free is no error.
    pub(crate) fn release(&self, attachment: &Attachment) -> Result<(), Error> {
        self.remove_where(|entry| {
            entry.owner.as_ref().is_some_and(|owner| owner.attachment == *attachment)
        })
    }

    /// Frees those of the addresses that the owner holds.
    pub(crate) fn give_back(&self, owner: &Owner, addresses: &[IpAddr]) -> Result<(), Error> {
        self.remove_where(|entry| {
            entry.owner.as_ref() == Some(owner) && addresses.contains(&entry.address)
        })
    }

    /// Frees an address of which nobody can say who holds it. Its file is kept under another name.
    pub(crate) fn discard_damaged(&self, address: IpAddr) -> Result<(), Error> {
        let lock = self.lock()?;
        let found = |entry: &Entry| entry.address == address && entry.owner.is_none();
        if self.entries()?.iter().any(found) {
            self.set_aside(address)?;
        }
        drop(lock);
        self.sync(&[])
    }

    /// Brings the store to what is true: each address in `held` belongs to that attachment, and of
    /// the others those stay taken that `in_use` says so of. Calls that run meanwhile wait.
    pub(crate) fn reconcile(
        &self,
        held: &BTreeMap<IpAddr, Attachment>,
        in_use: impl Fn(IpAddr, Option<&Attachment>) -> bool,
    ) -> Result<Reconciled, Error> {
        if held.is_empty() && !self.directory.exists() {
            return Ok(Reconciled::default());
        }
        self.make()?;
        let lock = self.lock()?;
        self.sweep()?;
        let mut result = Reconciled::default();
        let mut missing = held.clone();
        for Entry { address, owner } in self.entries()? {
            let holder = owner.as_ref().map(|owner| &owner.attachment);
            match held.get(&address) {
                Some(attachment) if holder == Some(attachment) => {
                    missing.remove(&address);
                }
                None if in_use(address, holder) => {}
                _ => {
                    if owner.is_none() {
                        self.set_aside(address)?;
                    } else {
                        self.remove(address)?;
                    }
                    if !held.contains_key(&address) {
                        result.freed.push(address);
                    }
                }
            }
        }
        for (address, attachment) in missing {
            self.write_entry(address, &Owner { network: String::new(), attachment })?;
            result.restored.push(address);
        }
        drop(lock);
        self.sync(&result.restored)?;
        result.freed.sort();
        Ok(result)
    }

    /// Removes what killed calls left of their writing.
    pub(crate) fn tidy(&self) -> Result<(), Error> {
        self.remove_where(|_| false)
    }

    /// All addresses taken, in no order.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for name in self.names()? {
            // The lock, what was reserved last, and what an interrupted call left are no addresses.
            let Ok(address) = name.parse() else {
                continue;
            };
            let path = self.directory.join(&name);
            match fs::read(&path) {
                Ok(content) => {
                    entries.push(Entry { address, owner: serde_json::from_slice(&content).ok() });
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // freed meanwhile
                Err(e) => return Err(io_error("read", &path)(e)),
            }
        }
        Ok(entries)
    }

    /// The addresses that this owner holds.
    pub(crate) fn held_by(&self, owner: &Owner) -> Result<Vec<IpAddr>, Error> {
        let entries = self.entries()?.into_iter();
        let held = entries.filter(|entry| entry.owner.as_ref() == Some(owner));
        Ok(held.map(|entry| entry.address).collect())
    }

    /// An error if no address of the pool is free, and not `routed`.
    pub(crate) fn check_free(&self, pool: &Pool, routed: &HashSet<IpAddr>) -> Result<(), Error> {
        let mut taken = routed.clone();
        taken.extend(self.entries()?.iter().map(|entry| entry.address));
        pool.first_free_after(None, &taken).map(drop).ok_or_else(|| exhausted(pool, &taken))
    }

    fn remove_where(&self, is_free: impl Fn(&Entry) -> bool) -> Result<(), Error> {
        if !self.directory.exists() {
            return Ok(());
        }
        let lock = self.lock()?;
        self.sweep()?;
        for entry in self.entries()?.iter().filter(|entry| is_free(entry)) {
            self.remove(entry.address)?;
        }
        drop(lock);
        self.sync(&[])
    }

    /// Makes the directory for root alone: whoever may open the lock may hold it, and no pod would start.
    fn make(&self) -> Result<(), Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(io_error("create", &self.directory))
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let listing = match fs::read_dir(&self.directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("list", &self.directory))?,
        };
        let mut names = Vec::new();
        for file in listing {
            let file = file.map_err(io_error("list", &self.directory))?;
            // Whatever is not UTF-8 is none of ours.
            names.extend(file.file_name().into_string());
        }
        Ok(names)
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.directory.join("lock");
        let file = File::create(&path).map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(io_error("lock", &path)(e)),
            Err(TryLockError::WouldBlock) => {}
        }
        // The kernel serves who waits in order, which asking again and again would not; but it
        // knows no end of patience, hence the thread.
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let locked = file.lock().map(|()| file);
            let _ = sender.send(locked); // nobody waits any more: unlocked again
        });
        match receiver.recv_timeout(LOCK_PATIENCE) {
            Ok(locked) => locked.map_err(io_error("lock", &path)),
            Err(_) => Err(Error::Busy { directory: self.directory.clone(), waited: LOCK_PATIENCE }),
        }
    }

    /// Removes what interrupted calls left. Only under the lock: nobody else is writing.
    fn sweep(&self) -> Result<(), Error> {
        for name in self.names()?.iter().filter(|name| name.starts_with(TEMPORARY)) {
            let path = self.directory.join(name);
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// Written aside, and then linked to its name, which fails if that exists.
    fn write_entry(&self, address: IpAddr, owner: &Owner) -> Result<(), Error> {
        let aside = self.directory.join(format!("{TEMPORARY}{address}"));
        let path = self.directory.join(address.to_string());
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(&serde_json::to_vec(owner)?)
        };
        let linked = write()
            .map_err(io_error("write", &aside))
            .and_then(|()| fs::hard_link(&aside, &path).map_err(io_error("create", &path)));
        // Nothing depends on it: the next call sweeps what is left.
        let _ = fs::remove_file(&aside);
        linked
    }

    /// Not forced to disk: should it be lost, an address is reused a little early.
    fn remember_last(&self, pool: &Pool, address: IpAddr) -> Result<(), Error> {
        let Some(path) = self.last_file(pool) else { return Ok(()) };
        let aside = self.directory.join(format!("{TEMPORARY}last"));
        let written =
            fs::write(&aside, address.to_string()).and_then(|()| fs::rename(&aside, &path));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written.map_err(io_error("write", &path))
    }

    fn last(&self, pool: &Pool) -> Option<IpAddr> {
        let text = fs::read_to_string(self.last_file(pool)?).ok()?;
        text.trim().parse().ok()
    }

    /// Each pool its own: another's last address says nothing about which of this were freed when.
    fn last_file(&self, pool: &Pool) -> Option<PathBuf> {
        pool.first().map(|first| self.directory.join(format!("last.{first}")))
    }

    fn remove(&self, address: IpAddr) -> Result<(), Error> {
        let path = self.directory.join(address.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Frees an address whose file nobody can read, and keeps the file for who wants to know why.
    fn set_aside(&self, address: IpAddr) -> Result<(), Error> {
        let path = self.directory.join(address.to_string());
        let aside = self.directory.join(format!("{DAMAGED}{address}"));
        fs::rename(&path, &aside).map_err(io_error("set aside", &path))
    }

    /// Forces to disk what these addresses' files say, and which addresses are taken.
    fn sync(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let files = addresses.iter().map(|address| self.directory.join(address.to_string()));
        for path in files.chain([self.directory.clone()]) {
            File::open(&path).and_then(|file| file.sync_all()).map_err(io_error("sync", &path))?;
        }
        Ok(())
    }
}

/// Begins with a character that no address begins with.
const TEMPORARY: &str = "tmp-";
/// The same is true of this one.
const DAMAGED: &str = "damaged-";

/// A call holds the lock for the time of a few file operations, and hundreds of calls may come at
/// once.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

fn exhausted(pool: &Pool, taken: &HashSet<IpAddr>) -> Error {
    let used = taken.iter().filter(|address| pool.contains(**address)).count();
    Error::Exhausted { pool: pool.to_string(), used, size: pool.size() }
}

/// Who is in the way of whom an address was asked for.
fn holder(address: IpAddr, entries: &[Entry]) -> String {
    match entries.iter().find(|entry| entry.address == address) {
        Some(Entry { owner: Some(Owner { network, attachment }), .. }) => format!(
            "container {} has it on {:?}, in network {network:?}",
            attachment.container_id, attachment.interface
        ),
        Some(Entry { owner: None, .. }) => "its file cannot be read".to_owned(),
        None => "a route of the node leads there".to_owned(),
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { operation, path, source }
}

#[cfg(test)]
mod tests;
