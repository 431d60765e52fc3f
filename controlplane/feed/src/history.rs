//! The server's memory: the current model, and the last steps that led to it.
//!
//! Pure: a model goes in, lines come out. What several subscribers get is encoded and compressed once,
//! when the first of them asks; what is one node's alone is kept apart and goes to nobody else.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use fairway_model::{Change, Endpoint, Endpoints, Key, Model, Object, Pod};

use crate::digest::Digest;
use crate::lines::Lines;
use crate::wire::{
    Edit, POD, Position, Say, Sync, VERSION, encode, endpoint_hash, endpoints_hash, text_hash,
};

/// How many steps are kept for readers that lag or return.
const MAX_STEPS: usize = 1024;
/// By how many steps a snapshot may be old.
const OLD: u64 = 100;
/// And how many bytes of them: beyond that a snapshot is cheaper than the steps.
const MAX_BYTES: usize = 32 << 20;

/// Whom the model goes to, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subscriber {
    /// What is for all, and the pods that are to run on it.
    Node(String),
    /// What is for all.
    Gateway(String),
}

/// Whom an object is for. Whatever is added to the model finds its place here.
enum Audience {
    All,
    /// A node, by its name.
    Node(String),
}

impl Audience {
    fn of(object: &Object) -> Self {
        match object {
            // What others run is of no use to a node; whose addresses are whose, members tell.
            Object::Pod(pod) => Self::Node(pod.node.clone()),
            Object::Node(_)
            | Object::Service(_)
            | Object::Endpoints(_)
            | Object::ServiceRange(_)
            | Object::Selector(_)
            | Object::Group(_)
            | Object::Member(_)
            | Object::Policy(_)
            | Object::Pool(_) => Self::All,
            // No node is called so.
            Object::Ingress(_) | Object::Gateway(_) | Object::Secret(_) | Object::TicketKey(_) => {
                Self::Node(String::new())
            }
        }
    }
}

/// See the module.
pub(crate) struct History {
    epoch: String,
    revision: u64,
    model: Arc<Model>,
    hashes: HashMap<Key, u64>,
    /// Of what is for all, by kind.
    digests: BTreeMap<&'static str, Digest>,
    /// Of each node's own pods.
    pods: HashMap<String, Digest>,
    /// The step that led to each revision; the last one to the current.
    steps: VecDeque<Arc<Step>>,
    steps_bytes: usize,
    /// Of this revision or one not long before, made when a reader asks.
    snapshot: Option<Snapshot>,
}

/// A complete model. One that is somewhat old, and the steps since, serve as well as a new one, which
/// takes a second to make while hundreds may be waiting.
struct Snapshot {
    revision: u64,
    /// What is for all: a reset and objects.
    shared: Arc<Lines>,
    digests: BTreeMap<&'static str, Digest>,
    pods: HashMap<String, (Vec<Arc<Pod>>, Digest)>,
}

/// From one revision to the next.
struct Step {
    /// What is for all.
    shared: Arc<Lines>,
    /// The same, and the sync that ends it: for readers who have no part of their own in it.
    whole: Arc<Lines>,
    /// What is one node's alone, and its digest of that after the step.
    own: HashMap<String, (Vec<u8>, Digest)>,
    sync: Sync,
}

/// What a reader sends next: one after the other, whole lines that end with a sync (or, after a resume
/// without news, that one line).
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) parts: Vec<Arc<Lines>>,
    /// Where the reader stands after them.
    pub(crate) revision: u64,
    /// They are a complete model.
    pub(crate) complete: bool,
}

impl History {
    /// An epoch that starts with `model`, at revision 1.
    pub(crate) fn new(epoch: String, model: Arc<Model>) -> Self {
        let shared = Key::KINDS.iter().filter(|kind| **kind != POD);
        let mut history = Self {
            epoch,
            revision: 0,
            model: Arc::default(),
            hashes: HashMap::new(),
            digests: shared.map(|kind| (*kind, Digest::default())).collect(),
            pods: HashMap::new(),
            steps: VecDeque::new(),
            steps_bytes: 0,
            snapshot: None,
        };
        history.take(model);
        // The step from nothing to the first model is a snapshot in all but name.
        history.steps.clear();
        history.steps_bytes = 0;
        history
    }

    /// Makes `next` the current model. One that does not differ is no new revision: false.
    pub(crate) fn push(&mut self, next: Arc<Model>) -> bool {
        let differs = *next != *self.model;
        if differs {
            self.take(next);
        }
        differs
    }

    /// The current revision.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The first lines for a reader that has `position`, or nothing at all.
    pub(crate) fn start(&mut self, subscriber: &Subscriber, position: Option<&Position>) -> Next {
        match position {
            Some(position) if position.epoch == self.epoch && self.reaches(position.revision) => {
                let mut lines = Vec::new();
                let Position { epoch, revision } = position;
                Say::Resume { epoch, revision: *revision, version: VERSION }.write(&mut lines);
                Next { parts: vec![Lines::new(lines)], revision: *revision, complete: false }
            }
            _ => self.snapshot(subscriber),
        }
    }

    /// What comes after `revision`: the next step, a snapshot if that step is no longer kept, or
    /// nothing if there is none yet.
    pub(crate) fn after(&mut self, subscriber: &Subscriber, revision: u64) -> Option<Next> {
        if revision == self.revision {
            return None;
        }
        let steps_back = self.revision.checked_sub(revision);
        let index = steps_back
            .and_then(|steps| usize::try_from(steps).ok())
            .and_then(|steps| self.steps.len().checked_sub(steps));
        match index.and_then(|index| self.steps.get(index)) {
            Some(step) => {
                let parts = step.parts(subscriber);
                Some(Next { parts, revision: revision + 1, complete: false })
            }
            None => Some(self.snapshot(subscriber)),
        }
    }

    fn reaches(&self, revision: u64) -> bool {
        self.revision.checked_sub(revision).is_some_and(|steps| steps <= self.steps.len() as u64)
    }

    fn take(&mut self, next: Arc<Model>) {
        let before = std::mem::replace(&mut self.model, next);
        let mut shared = Vec::new();
        let mut own: HashMap<String, (Vec<u8>, Digest)> = HashMap::new();
        let mut sync = Sync { revision: self.revision + 1, digest: BTreeMap::new() };
        for change in before.diff(&self.model) {
            let key = match &change {
                Change::Put(object) => object.key(),
                Change::Delete(key) => key.clone(),
            };
            // A pod that moves leaves one node and comes to another.
            let leaves = match &key {
                Key::Pod(name) => before.pods.get(name).map(|pod| pod.node.clone()),
                _ => None,
            };
            let comes = match &change {
                Change::Put(object) => match Audience::of(object) {
                    Audience::Node(node) => Some(node),
                    Audience::All => None,
                },
                Change::Delete(_) => None,
            };
            if leaves.is_none() && comes.is_none() {
                self.take_shared(&before, &change, key.clone(), &mut shared);
                sync.digest.insert(key.kind().to_owned(), self.digests[key.kind()]);
                continue;
            }
            let old = self.hashes.remove(&key);
            if let Some(node) = &leaves {
                let digest = self.pods.entry(node.clone()).or_default();
                digest.remove(old.unwrap_or_default());
                let (lines, after) = own.entry(node.clone()).or_default();
                *after = *digest;
                if comes.as_ref() != Some(node) {
                    Say::Delete(&key).write(lines);
                }
            }
            if let (Some(node), Change::Put(object)) = (comes, &change) {
                let text = encode(object);
                let hash = text_hash(text.get());
                self.hashes.insert(key, hash);
                let digest = self.pods.entry(node.clone()).or_default();
                digest.add(hash);
                let (lines, after) = own.entry(node).or_default();
                *after = *digest;
                Say::Put(&text).write(lines);
            }
        }
        self.pods.retain(|_, digest| *digest != Digest::default());
        self.revision += 1;
        let mut whole = shared.clone();
        Say::Sync(&sync).write(&mut whole);
        let own_bytes: usize = own.values().map(|(lines, _)| lines.len()).sum();
        self.steps_bytes += shared.len() + whole.len() + own_bytes;
        let (shared, whole) = (Lines::new(shared), Lines::new(whole));
        self.steps.push_back(Arc::new(Step { shared, whole, own, sync }));
        while self.steps.len() > MAX_STEPS || self.steps_bytes > MAX_BYTES {
            let Some(oldest) = self.steps.pop_front() else {
                break;
            };
            self.steps_bytes -= oldest.bytes();
        }
    }

    /// A change of what is for all.
    fn take_shared(&mut self, before: &Model, change: &Change, key: Key, lines: &mut Vec<u8>) {
        let digest = self.digests.entry(key.kind()).or_default();
        let old = self.hashes.get(&key).copied();
        let new = match change {
            Change::Delete(key) => {
                Say::Delete(key).write(lines);
                None
            }
            Change::Put(Object::Endpoints(next)) => {
                let edits = before.endpoints.get(&next.service).and_then(|had| edits(had, next));
                match (edits, old) {
                    (Some(edits), Some(old)) => {
                        let mut hash = Digest::of(old);
                        for edit in edits {
                            edit.hash(&mut hash);
                            edit.write(lines);
                        }
                        Some(hash.value())
                    }
                    _ => {
                        Say::Put(&encode(&Object::Endpoints(next.clone()))).write(lines);
                        Some(endpoints_hash(next))
                    }
                }
            }
            Change::Put(object) => {
                let text = encode(object);
                Say::Put(&text).write(lines);
                Some(text_hash(text.get()))
            }
        };
        if let Some(old) = old {
            digest.remove(old);
        }
        match new {
            Some(new) => {
                digest.add(new);
                self.hashes.insert(key, new);
            }
            None => {
                self.hashes.remove(&key);
            }
        }
    }

    fn snapshot(&mut self, subscriber: &Subscriber) -> Next {
        let snapshot = match &self.snapshot {
            Some(snapshot)
                if self.revision - snapshot.revision <= OLD && self.reaches(snapshot.revision) =>
            {
                snapshot
            }
            _ => {
                let snapshot = self.make_snapshot();
                self.snapshot.insert(snapshot)
            }
        };
        let mut own = Vec::new();
        let digest = snapshot.digests.iter().map(|(kind, digest)| ((*kind).to_owned(), *digest));
        let mut sync = Sync { revision: snapshot.revision, digest: digest.collect() };
        if let Subscriber::Node(node) = subscriber
            && let Some((pods, digest)) = snapshot.pods.get(node)
        {
            sync.digest.insert(POD.to_owned(), *digest);
            for pod in pods {
                Say::Put(&encode(&Object::Pod(Pod::clone(pod)))).write(&mut own);
            }
        }
        Say::Sync(&sync).write(&mut own);
        let parts = vec![Arc::clone(&snapshot.shared), Lines::new(own)];
        Next { parts, revision: snapshot.revision, complete: true }
    }

    fn make_snapshot(&self) -> Snapshot {
        let mut lines = Vec::new();
        Say::Reset { epoch: &self.epoch, version: VERSION }.write(&mut lines);
        for object in self.model.objects() {
            if matches!(Audience::of(&object), Audience::All) {
                Say::Put(&encode(&object)).write(&mut lines);
            }
        }
        let mut pods: HashMap<String, (Vec<Arc<Pod>>, Digest)> = HashMap::new();
        for pod in self.model.pods.shared() {
            let (own, digest) = pods.entry(pod.node.clone()).or_default();
            *digest = self.pods.get(&pod.node).copied().unwrap_or_default();
            own.push(Arc::clone(pod));
        }
        let (revision, digests) = (self.revision, self.digests.clone());
        Snapshot { revision, shared: Lines::large(lines), digests, pods }
    }
}

impl Step {
    fn bytes(&self) -> usize {
        let own: usize = self.own.values().map(|(lines, _)| lines.len()).sum();
        self.shared.len() + self.whole.len() + own
    }

    fn parts(&self, subscriber: &Subscriber) -> Vec<Arc<Lines>> {
        let own = match subscriber {
            Subscriber::Node(node) => self.own.get(node),
            Subscriber::Gateway(_) => None,
        };
        let Some((own, digest)) = own else {
            return vec![Arc::clone(&self.whole)];
        };
        let mut sync = self.sync.clone();
        sync.digest.insert(POD.to_owned(), *digest);
        let mut own = own.clone();
        Say::Sync(&sync).write(&mut own);
        vec![Arc::clone(&self.shared), Lines::new(own)]
    }
}

/// A change of some elements of one list.
struct Splice<'a> {
    service: &'a Endpoints,
    port: &'a str,
    at: usize,
    removed: &'a [Endpoint],
    put: &'a [Endpoint],
}

impl Splice<'_> {
    fn hash(&self, hash: &mut Digest) {
        let element = |endpoint| endpoint_hash(&self.service.service, self.port, endpoint);
        self.removed.iter().for_each(|endpoint| hash.remove(element(endpoint)));
        self.put.iter().for_each(|endpoint| hash.add(element(endpoint)));
    }

    fn write(&self, lines: &mut Vec<u8>) {
        Say::Edit(Edit {
            key: Key::Endpoints(self.service.service.clone()),
            port: self.port,
            at: self.at,
            remove: self.removed.len(),
            put: self.put,
        })
        .write(lines);
    }
}

/// How to get from one set of endpoints to the next, if that is less to say than all of it.
fn edits<'a>(had: &'a Endpoints, next: &'a Endpoints) -> Option<Vec<Splice<'a>>> {
    if !had.ports.keys().eq(next.ports.keys()) {
        return None;
    }
    let mut splices = Vec::new();
    let (mut said, mut all) = (0, 0);
    for ((port, before), after) in had.ports.iter().zip(next.ports.values()) {
        all += after.len();
        let (mut i, mut j) = (0, 0);
        while i < before.len() || j < after.len() {
            let alike =
                |i: usize, j: usize| before.get(i).is_some() && before.get(i) == after.get(j);
            if alike(i, j) {
                (i, j) = (i + 1, j + 1);
                continue;
            }
            // Lists are sorted: what is less than the other's next is missing there.
            let (first_removed, first_put) = (i, j);
            while (i < before.len() || j < after.len()) && !alike(i, j) {
                match (before.get(i), after.get(j)) {
                    (Some(old), Some(new)) if old > new => j += 1,
                    (Some(_), _) => i += 1,
                    (None, _) => j += 1,
                }
            }
            said += j - first_put;
            // What is before that place is as it shall be by then.
            let (removed, put) = (&before[first_removed..i], &after[first_put..j]);
            splices.push(Splice { service: next, port, at: first_put, removed, put });
        }
    }
    (said * 2 <= all).then_some(splices)
}

#[cfg(test)]
impl History {
    /// Where it stands.
    pub(crate) fn position(&self) -> Position {
        Position { epoch: self.epoch.clone(), revision: self.revision }
    }
}

#[cfg(test)]
impl Next {
    /// All of it, as text.
    pub(crate) fn lines(&self) -> Vec<u8> {
        self.parts.iter().flat_map(|lines| lines.plain().to_vec()).collect()
    }
}
