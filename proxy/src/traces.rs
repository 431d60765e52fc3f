//! What the agent changed outside its own folders, so that an uninstall can take it back.
//!
//! The file `changes.json` in the state folder is written before each change it tells of: after a
//! crash it may name a change that was not made, never the other way round.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use fairway_netlink::sysctl;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// The file's name in the state folder.
pub(crate) const FILE: &str = "changes.json";

/// The record. Its methods may be called from any thread.
pub(crate) struct Traces {
    path: PathBuf,
    record: Mutex<Record>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Record {
    /// The boot of the kernel whose settings these are: with the next one all of them are as others
    /// want them.
    boot: String,
    /// Kernel settings by their path under `/proc/sys`.
    settings: BTreeMap<String, Setting>,
    /// Files of ours in folders of others.
    files: BTreeSet<PathBuf>,
    /// Addresses of ours on the loopback device, as of the same boot.
    addresses: BTreeSet<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Setting {
    /// What it was when the agent first touched it.
    before: String,
    /// What the agent made of it.
    ours: String,
}

impl Traces {
    /// Reads the record; one that cannot be read is set aside, as it only serves an uninstall.
    pub(crate) fn open(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(FILE);
        let record = match fs::read(&path) {
            Ok(contents) => serde_json::from_slice(&contents).or_else(|error| {
                let aside = path.with_extension("damaged");
                warn!(%error, file = %path.display(), aside = %aside.display(), "not a record of changes; it is set aside");
                fs::rename(&path, aside).map(|()| Record::default())
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error),
        };
        let mut record = record.with_context(|| format!("read {}", path.display()))?;
        let boot = sysctl::get("kernel/random/boot_id")?;
        if record.boot != boot {
            record = Record { boot, files: record.files, ..Record::default() };
        }
        Ok(Self { path, record: Mutex::new(record) })
    }

    /// Sets a kernel setting (`net/ipv4/ip_forward`) that holds something else, and notes what it
    /// was. True if it had to be changed.
    pub(crate) fn set(&self, setting: &str, value: &str) -> Result<bool> {
        let before = sysctl::get(setting)?;
        if before == value {
            return Ok(false);
        }
        self.note(|record| {
            let noted = record.settings.entry(setting.to_owned());
            noted.or_insert(Setting { before, ours: String::new() }).ours = value.to_owned();
        })?;
        sysctl::set(setting, value)?;
        Ok(true)
    }

    /// Gives one setting the value back that it had before, unless somebody has changed it since, and
    /// notes no more of it. One that was never touched stays as it is.
    pub(crate) fn take_back(&self, name: &str) -> Result<()> {
        let Some((before, ours)) = self.setting(name) else { return Ok(()) };
        if sysctl::get(name)? == ours {
            sysctl::set(name, &before)?;
        }
        self.note(|record| drop(record.settings.remove(name)))
    }

    /// What a setting was before the agent first touched it, and what the agent made of it; none if it
    /// never did.
    pub(crate) fn setting(&self, name: &str) -> Option<(String, String)> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.settings.get(name).map(|setting| (setting.before.clone(), setting.ours.clone()))
    }

    /// Notes a file that is about to be written in a folder that is not the agent's.
    pub(crate) fn file(&self, path: &Path) -> Result<()> {
        self.note(|record| {
            record.files.insert(path.to_owned());
        })
    }

    /// The noted files.
    pub(crate) fn files(&self) -> BTreeSet<PathBuf> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).files.clone()
    }

    /// Notes an address that the loopback device is about to get.
    pub(crate) fn address(&self, address: IpAddr) -> Result<()> {
        self.note(|record| {
            record.addresses.insert(address);
        })
    }

    /// The noted addresses.
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).addresses.clone()
    }

    /// Gives each setting that still is as the agent left it the value it had before. Answers, for
    /// each, what was done.
    pub(crate) fn restore_settings(&self) -> Vec<Result<String>> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record
            .settings
            .iter()
            .map(|(name, Setting { before, ours })| {
                let now = sysctl::get(name)?;
                if now != *ours {
                    return Ok(format!("left setting {name} alone: somebody made it {now:?}"));
                }
                sysctl::set(name, before)?;
                Ok(format!("set {name} back to {before:?}"))
            })
            .collect()
    }

    fn note(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = record.clone();
        change(&mut changed);
        if changed != *record {
            let contents = serde_json::to_vec_pretty(&changed).context("encode the changes")?;
            fairway_feed::disk::replace(&self.path, &contents)
                .with_context(|| format!("write {}", self.path.display()))?;
            *record = changed;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::sandbox;

    const FORWARD: &str = "net/ipv4/ip_forward";

    #[test]
    fn a_setting_goes_back_to_what_it_was_at_first() {
        sandbox(|_| {
            let state = tempfile::tempdir().expect("a folder");
            sysctl::set(FORWARD, "0").expect("a setting");
            assert!(Traces::open(state.path()).expect("new").set(FORWARD, "1").expect("set"));
            // The next agent finds it as it wants it, and must not forget what it was.
            let again = Traces::open(state.path()).expect("the record");
            assert!(!again.set(FORWARD, "1").expect("set"));
            assert_eq!(again.restore_settings().len(), 1);
            assert_eq!(sysctl::get(FORWARD).expect("a setting"), "0");
            // What is not as we left it is somebody else's by now.
            let said = again.restore_settings().pop().expect("one").expect("no error");
            assert!(said.contains("left") && said.contains(FORWARD), "{said}");
        });
    }

    #[test]
    fn what_a_setting_was_before_a_reboot_is_nothing_to_go_back_to() {
        sandbox(|_| {
            let state = tempfile::tempdir().expect("a folder");
            sysctl::set(FORWARD, "0").expect("a setting");
            let traces = Traces::open(state.path()).expect("new");
            traces.set(FORWARD, "1").expect("set");
            traces.file(Path::new("/x/y")).expect("noted");
            // Somebody has switched it on for good, and the machine was started anew.
            let file = state.path().join(FILE);
            let mut record: Record =
                serde_json::from_slice(&fs::read(&file).expect("a file")).expect("a record");
            record.boot = "an earlier one".to_owned();
            fs::write(&file, serde_json::to_vec(&record).expect("JSON")).expect("a file");
            let after = Traces::open(state.path()).expect("the record");
            assert!(!after.set(FORWARD, "1").expect("as it is"));
            assert_eq!(after.restore_settings().len(), 0);
            assert_eq!(sysctl::get(FORWARD).expect("a setting"), "1");
            assert_eq!(after.files().len(), 1, "files outlive a reboot");
        });
    }

    #[test]
    fn a_damaged_record_is_set_aside_and_files_are_remembered() {
        let state = tempfile::tempdir().expect("a folder");
        fs::write(state.path().join(FILE), "{").expect("a file");
        let traces = Traces::open(state.path()).expect("a new record");
        assert!(state.path().join("changes.damaged").exists());
        traces.file(Path::new("/x/y")).expect("noted");
        let again = Traces::open(state.path()).expect("the record");
        assert_eq!(again.files(), BTreeSet::from([PathBuf::from("/x/y")]));
    }
}
