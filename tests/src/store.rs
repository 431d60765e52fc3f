//! The lab's objects, where the control plane reads them: a folder of manifests, or an API server.
//!
//! In the folder each object is one file, replaced atomically: a reader sees the old or the new object,
//! never half of one. What a writer is busy with has a leading dot and no manifest's extension. The API
//! server completes what is written, as any does, and others write there, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::objects::{Key, Kind, text};

/// All objects at one moment.
pub(crate) type Objects = BTreeMap<Key, Arc<Value>>;

/// The one place where objects change.
#[derive(Debug)]
pub(crate) enum Store {
    /// In memory and in a folder.
    Folder(Folder),
    /// In an API server alone.
    Server(ApiServer),
}

/// Objects of which each is a file, too.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    objects: Objects,
    /// Grows with each change.
    revision: u64,
}

impl Store {
    /// An empty store over an existing, empty folder.
    pub(crate) fn folder(path: PathBuf) -> Self {
        Self::Folder(Folder { path, state: Mutex::default(), changed: Condvar::new() })
    }

    /// The API server that has the objects, if one has.
    pub(crate) fn server(&self) -> Option<&ApiServer> {
        match self {
            Self::Folder(_) => None,
            Self::Server(server) => Some(server),
        }
    }

    /// All objects, and the revision they stand for.
    pub(crate) fn snapshot(&self) -> (Objects, u64) {
        match self {
            Self::Folder(folder) => {
                let state = folder.lock();
                (state.objects.clone(), state.revision)
            }
            Self::Server(server) => {
                let (objects, revision) = server.snapshot();
                // Others are of kinds that the lab leaves to whoever writes them.
                let of_ours = objects.into_iter();
                (of_ours.filter_map(|object| Some((Key::of(&object)?, object))).collect(), revision)
            }
        }
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        match self {
            Self::Folder(folder) => folder.lock().objects.get(key).cloned(),
            Self::Server(server) => {
                server.get(key.kind.as_str(), &key.namespace, &key.name).map(Arc::new)
            }
        }
    }

    /// Adds an object, or replaces it and keeps what the lab put into the old one (UID, time of
    /// creation, status). Says whether it is new.
    pub(crate) fn put(&self, key: &Key, mut object: Value) -> Result<bool> {
        let uid = new_uid()?;
        let mut is_new = false;
        self.alter(key, |old| {
            is_new = old.is_none();
            match old {
                Some(old) => {
                    for field in ["uid", "creationTimestamp"] {
                        object["metadata"][field] = old["metadata"][field].clone();
                    }
                    if let Some(status) = old.get("status") {
                        object["status"] = status.clone();
                    }
                }
                None => {
                    object["metadata"]["uid"] = uid.into();
                    object["metadata"]["creationTimestamp"] = timestamp(SystemTime::now()).into();
                }
            }
            Some(object)
        })?;
        Ok(is_new)
    }

    /// Changes an object in place; of an absent one, nothing. Says whether it is there.
    pub(crate) fn update(&self, key: &Key, change: impl FnOnce(&mut Value)) -> Result<bool> {
        let mut is_there = false;
        self.alter(key, |old| {
            let mut object = old?.clone();
            is_there = true;
            change(&mut object);
            Some(object)
        })?;
        Ok(is_there)
    }

    /// Makes the object what `make` makes of what is there, if anything, in one step.
    fn alter(&self, key: &Key, make: impl FnOnce(Option<&Value>) -> Option<Value>) -> Result<()> {
        match self {
            Self::Folder(folder) => {
                let mut state = folder.lock();
                let old = state.objects.get(key).cloned();
                make(old.as_deref()).map_or(Ok(()), |object| folder.write(&mut state, key, object))
            }
            Self::Server(server) => {
                let name = (key.kind.as_str(), &*key.namespace, &*key.name);
                server.alter(name, make).map_err(|refusal| anyhow!("{key}: {refusal}"))
            }
        }
    }

    /// Takes an object away at once; of an absent one, nothing.
    pub(crate) fn remove(&self, key: &Key) -> Result<()> {
        match self {
            Self::Folder(folder) => folder.remove(key),
            Self::Server(server) => {
                server.delete(key.kind.as_str(), &key.namespace, &key.name);
                Ok(())
            }
        }
    }

    /// Takes an object away as a user asks for it: a pod that runs is marked and ends in its own
    /// time, anything else goes at once. `now` skips a pod's own time. Says whether it was there.
    pub(crate) fn delete(&self, key: &Key, now: bool) -> Result<bool> {
        let Some(object) = self.get(key) else {
            return Ok(false);
        };
        let runs = key.kind == Kind::Pod && object.pointer("/spec/nodeName").is_some();
        if !runs || now {
            self.remove(key)?;
        } else {
            self.update(key, |pod| {
                let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
                if pod["metadata"].get("deletionTimestamp").is_none() {
                    let end = SystemTime::now() + Duration::from_secs(grace);
                    pod["metadata"]["deletionTimestamp"] = timestamp(end).into();
                    pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
                }
            })?;
        }
        Ok(true)
    }

    /// Blocks until something has changed since `revision`, at most for `limit`.
    pub(crate) fn wait_past(&self, revision: u64, limit: Duration) {
        match self {
            Self::Folder(folder) => {
                let state = folder.lock();
                let same = |state: &mut State| state.revision == revision;
                // Waking up early or late only makes a caller look again.
                drop(folder.changed.wait_timeout_while(state, limit, same));
            }
            Self::Server(server) => server.wait_past(revision, limit),
        }
    }
}

impl Folder {
    fn remove(&self, key: &Key) -> Result<()> {
        let mut state = self.lock();
        if state.objects.remove(key).is_some() {
            state.revision += 1;
            self.changed.notify_all();
            let file = self.path.join(key.file_name());
            fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        }
        Ok(())
    }

    fn write(&self, state: &mut State, key: &Key, object: Value) -> Result<()> {
        if state.objects.get(key).is_some_and(|old| **old == object) {
            return Ok(());
        }
        let name = key.file_name();
        let draft = self.path.join(format!(".{name}.draft"));
        let file = self.path.join(&name);
        let text = serde_json::to_vec_pretty(&object).with_context(|| format!("encode {key}"))?;
        fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, &file).with_context(|| format!("rename to {}", file.display()))?;
        state.objects.insert(key.clone(), Arc::new(object));
        state.revision += 1;
        self.changed.notify_all();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete before the lock is let go, also when a thread panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a pod has been told to end.
pub(crate) fn is_terminating(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

/// Whether a pod takes traffic.
pub(crate) fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|status| status == "True")
}

/// The status of one of an object's conditions.
pub(crate) fn condition(object: &Value, kind: &str) -> Option<String> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    text(found, "/status")
}

/// A UUID from the kernel.
pub(crate) fn new_uid() -> Result<String> {
    const SOURCE: &str = "/proc/sys/kernel/random/uuid";
    let uid = fs::read_to_string(SOURCE).with_context(|| format!("read {SOURCE}"))?;
    Ok(uid.trim().to_owned())
}

/// RFC 3339 in UTC with whole seconds, as Kubernetes writes times.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day counted from 1 January 1970.
///
/// Counts in years that start on 1 March, so that a leap day is the last day of its year; 719,468
/// days lie between 1 March of year 0 and 1970.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097; // days in 400 years
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / ERA, shifted % ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("fairway-store-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn files(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pod(name: &str, node: Option<&str>) -> (Key, Value) {
        let mut pod = json!({"kind": "Pod", "metadata": {"name": name}, "spec": {}});
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        (Key::new(Kind::Pod, "default", name), pod)
    }

    #[test]
    fn the_folder_follows_the_store() {
        let folder = Folder::new("follows");
        let store = Store::folder(folder.0.clone());
        let (key, object) = pod("a", None);
        assert!(store.put(&key, object.clone()).unwrap());
        assert_eq!(folder.files(), ["pod.default.a.json"]);

        let uid = store.get(&key).unwrap()["metadata"]["uid"].clone();
        store.update(&key, |pod| pod["status"] = json!({"phase": "Running"})).unwrap();
        assert!(!store.put(&key, object).unwrap());
        let now = store.get(&key).unwrap();
        assert_eq!(now["metadata"]["uid"], uid);
        assert_eq!(now["status"]["phase"], "Running");

        assert!(store.delete(&key, false).unwrap());
        assert!(folder.files().is_empty());
        assert!(!store.delete(&key, false).unwrap());
    }

    #[test]
    fn a_pod_that_runs_is_marked_before_it_goes() {
        let folder = Folder::new("marked");
        let store = Store::folder(folder.0.clone());
        let (key, object) = pod("a", Some("node1"));
        store.put(&key, object).unwrap();
        let (_, before) = store.snapshot();
        store.delete(&key, false).unwrap();
        assert!(is_terminating(&store.get(&key).unwrap()));
        store.wait_past(before, Duration::from_secs(60));
        store.delete(&key, true).unwrap();
        assert!(store.get(&key).is_none());
    }

    #[test]
    fn times_are_written_as_kubernetes_does() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_868_799), "2000-02-29T23:59:59Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(at(1_795_219_200), "2026-11-21T00:00:00Z");
    }
}
