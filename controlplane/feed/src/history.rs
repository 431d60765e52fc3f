//! The server's memory: the current model as sent, and the last steps that led to it.
//!
//! Pure: a model goes in, lines come out. Each change is encoded once, whoever reads it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use fairway_model::{Change, Key, Model};
use serde_json::value::RawValue;

use crate::digest::{Digest, hash};
use crate::wire::{Position, Say, Sync, encode};

/// How many steps are kept for readers that lag or return.
const MAX_BATCHES: usize = 1024;
/// And how many bytes of them: beyond that a snapshot is cheaper than the steps.
const MAX_BYTES: usize = 32 << 20;

/// See the module.
pub(crate) struct History {
    epoch: String,
    revision: u64,
    model: Arc<Model>,
    objects: BTreeMap<Key, Box<RawValue>>,
    digests: BTreeMap<&'static str, Digest>,
    /// The step that led to each revision; the last one to the current.
    batches: VecDeque<Bytes>,
    batches_bytes: usize,
    /// Of the current revision, made when the first reader asks.
    snapshot: Option<Bytes>,
}

/// What a reader sends next.
#[derive(Debug)]
pub(crate) struct Next {
    /// Whole lines, ending with a sync (or, after a resume without news, with that one line).
    pub(crate) lines: Bytes,
    /// Where the reader stands after them.
    pub(crate) revision: u64,
}

impl History {
    /// An epoch that starts with `model`, at revision 1.
    pub(crate) fn new(epoch: String, model: Arc<Model>) -> Self {
        let mut history = Self {
            epoch,
            revision: 0,
            model: Arc::default(),
            objects: BTreeMap::new(),
            digests: Key::KINDS.iter().map(|kind| (*kind, Digest::default())).collect(),
            batches: VecDeque::new(),
            batches_bytes: 0,
            snapshot: None,
        };
        history.take(model);
        // The step from nothing to the first model is a snapshot in all but name.
        history.batches.clear();
        history.batches_bytes = 0;
        history
    }

    /// Makes `next` the current model. One that does not differ is no new revision.
    pub(crate) fn push(&mut self, next: Arc<Model>) {
        if *next != *self.model {
            self.take(next);
        }
    }

    /// The current model and where it stands.
    pub(crate) fn current(&self) -> (&Arc<Model>, Position) {
        let position = Position { epoch: self.epoch.clone(), revision: self.revision };
        (&self.model, position)
    }

    /// The first lines for a reader that has `position`, or nothing at all.
    pub(crate) fn start(&mut self, position: Option<&Position>) -> Next {
        match position {
            Some(position) if position.epoch == self.epoch && self.reaches(position.revision) => {
                let mut lines = Vec::new();
                Say::Resume(position).write(&mut lines);
                Next { lines: lines.into(), revision: position.revision }
            }
            _ => self.snapshot(),
        }
    }

    /// What comes after `revision`: the next step, a snapshot if that step is no longer kept, or
    /// nothing if there is none yet.
    pub(crate) fn after(&mut self, revision: u64) -> Option<Next> {
        if revision == self.revision {
            return None;
        }
        let steps_back = self.revision.checked_sub(revision);
        let index = steps_back
            .and_then(|steps| usize::try_from(steps).ok())
            .and_then(|steps| self.batches.len().checked_sub(steps));
        match index.and_then(|index| self.batches.get(index)) {
            Some(lines) => Some(Next { lines: lines.clone(), revision: revision + 1 }),
            None => Some(self.snapshot()),
        }
    }

    fn reaches(&self, revision: u64) -> bool {
        self.revision.checked_sub(revision).is_some_and(|steps| steps <= self.batches.len() as u64)
    }

    fn take(&mut self, next: Arc<Model>) {
        let mut lines = Vec::new();
        for change in self.model.diff(&next) {
            match change {
                Change::Put(object) => {
                    let text = encode(&object);
                    Say::Put(&text).write(&mut lines);
                    let key = object.key();
                    let digest = self.digests.entry(key.kind()).or_default();
                    digest.add(hash(text.get().as_bytes()));
                    if let Some(old) = self.objects.insert(key, text) {
                        digest.remove(hash(old.get().as_bytes()));
                    }
                }
                Change::Delete(key) => {
                    Say::Delete(&key).write(&mut lines);
                    if let Some(old) = self.objects.remove(&key) {
                        let digest = self.digests.entry(key.kind()).or_default();
                        digest.remove(hash(old.get().as_bytes()));
                    }
                }
            }
        }
        self.model = next;
        self.revision += 1;
        self.snapshot = None;
        Say::Sync(&self.sync()).write(&mut lines);
        self.batches_bytes += lines.len();
        self.batches.push_back(lines.into());
        while self.batches.len() > MAX_BATCHES || self.batches_bytes > MAX_BYTES {
            let Some(oldest) = self.batches.pop_front() else {
                break;
            };
            self.batches_bytes -= oldest.len();
        }
    }

    fn sync(&self) -> Sync {
        let digest = self.digests.iter();
        Sync {
            revision: self.revision,
            digest: digest.map(|(kind, digest)| ((*kind).to_owned(), *digest)).collect(),
        }
    }

    fn snapshot(&mut self) -> Next {
        let lines = match &self.snapshot {
            Some(lines) => lines.clone(),
            None => {
                let mut lines = Vec::new();
                Say::Reset { epoch: &self.epoch }.write(&mut lines);
                for text in self.objects.values() {
                    Say::Put(text).write(&mut lines);
                }
                Say::Sync(&self.sync()).write(&mut lines);
                self.snapshot.insert(lines.into()).clone()
            }
        };
        Next { lines, revision: self.revision }
    }
}
