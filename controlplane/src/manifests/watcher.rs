//! Word of changes in a folder. What changed is not asked: whoever hears of it reads all.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Watches one folder and all below it, and follows the folder's path when another folder takes
/// its place.
pub(super) struct Watcher {
    changes: Arc<Notify>,
    /// What is watched and by which device and inode number; `None` while it cannot be watched.
    watched: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Watcher {
    /// Begins to watch.
    pub(super) fn new(folder: &Path) -> notify::Result<Self> {
        let mut watcher = Self { changes: Arc::default(), watched: None };
        watcher.renew(folder)?;
        Ok(watcher)
    }

    /// Is notified of changes, those included that happen before anyone waits.
    pub(super) fn changes(&self) -> Arc<Notify> {
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
        let hear = move |event: notify::Result<Event>| {
            // An error means that something may have been missed, which is all the more a reason.
            if event.is_err() || event.is_ok_and(|event| is_change(&event)) {
                changes.notify_one();
            }
        };
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(hear, config)?;
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
