//! Word of changes in a folder. What changed is not asked: whoever hears of it reads all.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Watches one folder and all below it, and follows the folder's path when another folder takes
/// its place.
pub(super) struct Watcher {
    changes: Arc<Changes>,
    /// What is watched and by which device and inode number; `None` while it cannot be watched.
    watched: Option<(RecommendedWatcher, (u64, u64))>,
}

/// That something has changed, and whether somebody is still at it.
#[derive(Default)]
pub(super) struct Changes {
    heard: Notify,
    /// Files that have been written to and not closed since, or removed, as some do who write them anew.
    open: Mutex<BTreeSet<PathBuf>>,
}

impl Changes {
    /// Waits for a change, or hears of one that has happened before.
    pub(super) async fn notified(&self) {
        self.heard.notified().await;
    }

    /// Whether every file that was written to was closed again, and none was removed, as far as is known.
    pub(super) fn are_complete(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Files that nobody does anything to are not waited for any longer.
    pub(super) fn forget(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn hear(&self, event: notify::Result<Event>) {
        // An error means that something may have been missed, which is all the more a reason.
        let Ok(event) = event else { return self.heard.notify_one() };
        if !is_change(&event) {
            return;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match event.kind {
            EventKind::Create(CreateKind::Folder) | EventKind::Modify(ModifyKind::Metadata(_)) => {}
            EventKind::Create(_)
            | EventKind::Remove(_)
            | EventKind::Modify(
                ModifyKind::Data(_) | ModifyKind::Any | ModifyKind::Name(RenameMode::From),
            ) => open.extend(event.paths),
            // Closed, or of another name now.
            _ => event.paths.iter().for_each(|path| {
                open.remove(path);
            }),
        }
        drop(open);
        self.heard.notify_one();
    }
}

impl Watcher {
    /// Begins to watch.
    pub(super) fn new(folder: &Path) -> notify::Result<Self> {
        let mut watcher = Self { changes: Arc::default(), watched: None };
        watcher.renew(folder)?;
        Ok(watcher)
    }

    /// Is notified of changes, those included that happen before anyone waits.
    pub(super) fn changes(&self) -> Arc<Changes> {
        Arc::clone(&self.changes)
    }

    /// Makes sure that what is watched is what lies at that path now. To be called before reading:
    /// what changes after it is heard of.
    pub(super) fn renew(&mut self, folder: &Path) -> notify::Result<()> {
        let metadata = std::fs::metadata(folder)?;
        let identity = (metadata.dev(), metadata.ino());
        if self.watched.as_ref().is_some_and(|(_, watched)| *watched == identity) {
            return Ok(());
        }
        self.watched = None;
        let changes = Arc::clone(&self.changes);
        changes.forget();
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(move |event| changes.hear(event), config)?;
        watcher.watch(folder, RecursiveMode::Recursive)?;
        self.watched = Some((watcher, identity));
        Ok(())
    }
}

/// Reading a file is an event too, and ours would never end.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Long enough for any event, reached only by a failing test.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_is_being_written_is_not_complete() {
        use std::io::Write as _;

        let folder = tempfile::tempdir().unwrap();
        let watcher = Watcher::new(folder.path()).unwrap();
        let changes = watcher.changes();
        let become_complete = async |wanted: bool| {
            let found = tokio::time::timeout(PATIENCE, async {
                while changes.are_complete() != wanted {
                    changes.notified().await;
                }
            });
            found.await.expect("it never became so");
        };
        // Each step waits for the last thing that is heard of it.
        let path = folder.path().join("a.yaml");
        let mut file = std::fs::File::create(&path).unwrap();
        become_complete(false).await;
        file.write_all(b"kind: ").unwrap();
        drop(file);
        become_complete(true).await;

        // Somebody may be about to write it anew.
        std::fs::remove_file(&path).unwrap();
        become_complete(false).await;
        std::fs::write(&path, "kind: ").unwrap();
        become_complete(true).await;

        // Somebody has it at hand, and then it has another name.
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"x").unwrap();
        become_complete(false).await;
        std::fs::rename(&path, folder.path().join("b.txt")).unwrap();
        become_complete(true).await;
        drop(file);

        std::fs::hard_link(folder.path().join("b.txt"), &path).unwrap();
        become_complete(false).await;
        changes.forget();
        assert!(changes.are_complete());
    }
}
