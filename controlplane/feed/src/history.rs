//! The server's memory: the current model, and the last steps that led to it.
//!
//! Pure: a model goes in, lines come out. What several subscribers get is encoded and compressed once,
//! when the first of them asks; what is not for all is kept apart by whom it is for, and goes to nobody else.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use fairway_model::{Change, Endpoint, Endpoints, Key, Model, Object, Pod};

use crate::digest::Digest;
use crate::lines::Lines;
use crate::scope::{Audience, Named, Subscriber, audiences};
use crate::wire::{
    Edit, POD, Position, Say, Sync, VERSION, encode, endpoint_hash, endpoints_hash, text_hash,
};

/// How many steps are kept for readers that lag or return.
const MAX_STEPS: usize = 1024;
/// By how many steps a snapshot may be old.
const OLD: u64 = 100;
/// And how many bytes of them: beyond that a snapshot is cheaper than the steps.
const MAX_BYTES: usize = 32 << 20;

/// By kind; none of what there is nothing of.
type Digests = BTreeMap<&'static str, Digest>;

/// See the module.
pub(crate) struct History {
    epoch: String,
    revision: u64,
    model: Arc<Model>,
    named: Named,
    /// Of what is for anybody.
    hashes: HashMap<Key, u64>,
    /// Of what is for each audience. A subscriber's digest is the sum of those that it is of.
    digests: HashMap<Audience, Digests>,
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
    /// A reset, and what is for all.
    shared: Arc<Lines>,
    nodes: Arc<Lines>,
    gateways: Arc<Lines>,
    /// Of gateways with a name, for their replicas.
    named: HashMap<String, Arc<Lines>>,
    /// By node; encoded for whoever asks.
    pods: HashMap<String, Vec<Arc<Pod>>>,
    digests: HashMap<Audience, Digests>,
}

/// From one revision to the next.
struct Step {
    revision: u64,
    /// What is for each audience.
    lines: HashMap<Audience, Arc<Lines>>,
    /// After it, of the kinds that it touches for that audience. Of kinds that it touches for any gateways, all
    /// that gateways have is there: what one of them gets is a sum.
    digests: HashMap<Audience, Digests>,
    /// All of it for nodes that have no part of their own in it.
    nodes: Arc<Lines>,
    /// The same for gateways, made when the first of them asks.
    gateways: OnceLock<Arc<Lines>>,
    /// All of it for gateways of a name that has a part in it, likewise.
    named: HashMap<String, OnceLock<Arc<Lines>>>,
}

/// What a step says to an audience.
#[derive(Default)]
struct Draft {
    puts: Vec<u8>,
    deletes: Vec<u8>,
    touched: BTreeSet<&'static str>,
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
        let mut history = Self {
            epoch,
            revision: 0,
            model: Arc::default(),
            named: Named::default(),
            hashes: HashMap::new(),
            digests: HashMap::new(),
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

    /// The model that this is.
    pub(crate) fn model(&self) -> &Arc<Model> {
        &self.model
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
        let before = std::mem::replace(&mut self.model, Arc::clone(&next));
        // Secrets that become others' without a change of their own.
        let mut moved = self.named.follow(&before, &next);
        let mut drafts = HashMap::new();
        for change in before.diff(&next) {
            let (key, object) = match change {
                Change::Put(object) => (object.key(), Some(object)),
                Change::Delete(key) => (key, None),
            };
            let was = match &key {
                Key::Secret(name) => moved.remove(name),
                _ => None,
            };
            let was = was.unwrap_or_else(|| audiences(&before, &self.named, &key));
            self.take_object(&before, key, object, (was, true), &mut drafts);
        }
        for (name, was) in moved {
            let Some(secret) = next.secrets.get(&name) else { continue };
            let object = Object::Secret(secret.clone());
            self.take_object(&before, Key::Secret(name), Some(object), (was, false), &mut drafts);
        }
        self.revision += 1;
        let step = Step::new(self.revision, drafts, &self.digests);
        // Of the audiences that it touches: there are as many as nodes.
        for audience in step.digests.keys() {
            let Some(digests) = self.digests.get_mut(audience) else { continue };
            digests.retain(|_, digest| *digest != Digest::default());
            if digests.is_empty() {
                self.digests.remove(audience);
            }
        }
        self.steps_bytes += step.bytes();
        self.steps.push_back(Arc::new(step));
        while self.steps.len() > MAX_STEPS || self.steps_bytes > MAX_BYTES {
            let Some(oldest) = self.steps.pop_front() else {
                break;
            };
            self.steps_bytes -= oldest.bytes();
        }
    }

    /// An object that has changed, or is for others than before. `was` is for whom it was.
    fn take_object(
        &mut self,
        before: &Model,
        key: Key,
        object: Option<Object>,
        (was, changed): (Vec<Audience>, bool),
        drafts: &mut HashMap<Audience, Draft>,
    ) {
        let is = match &object {
            Some(_) => audiences(&self.model, &self.named, &key),
            None => Vec::new(),
        };
        let kind = key.kind();
        let old = self.hashes.remove(&key);
        if let Some(old) = old {
            for audience in &was {
                let digests = self.digests.entry(audience.clone()).or_default();
                digests.entry(kind).or_default().remove(old);
                drafts.entry(audience.clone()).or_default().touched.insert(kind);
                // Who gets it by another way gets it in place of what there is.
                if !is.iter().any(|is| is.covers(audience)) {
                    let draft = drafts.entry(audience.clone()).or_default();
                    Say::Delete(&key).write(&mut draft.deletes);
                }
            }
        }
        let Some(object) = object.filter(|_| !is.is_empty()) else { return };
        let (lines, hash) = put(before, &object, old.filter(|_| was == is));
        for audience in is {
            let digests = self.digests.entry(audience.clone()).or_default();
            digests.entry(kind).or_default().add(hash);
            let had = old.is_some() && was.contains(&audience);
            let draft = drafts.entry(audience).or_default();
            draft.touched.insert(kind);
            if changed || !had {
                draft.puts.extend_from_slice(&lines);
            }
        }
        self.hashes.insert(key, hash);
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
        let mut parts = vec![Arc::clone(&snapshot.shared)];
        let mut own = Vec::new();
        match subscriber {
            Subscriber::Node(node) => {
                parts.push(Arc::clone(&snapshot.nodes));
                for pod in snapshot.pods.get(node).into_iter().flatten() {
                    Say::Put(&encode(&Object::Pod(Pod::clone(pod)))).write(&mut own);
                }
            }
            Subscriber::Gateway(name) => {
                parts.push(Arc::clone(&snapshot.gateways));
                parts.extend(snapshot.named.get(&name.group).cloned());
            }
        }
        let digest = sum(&snapshot.digests, &subscriber.audiences());
        Say::Sync(&Sync { revision: snapshot.revision, digest }).write(&mut own);
        parts.push(Lines::new(own));
        Next { parts, revision: snapshot.revision, complete: true }
    }

    fn make_snapshot(&self) -> Snapshot {
        let mut shared = Vec::new();
        Say::Reset { epoch: &self.epoch, version: VERSION }.write(&mut shared);
        let (mut nodes, mut gateways) = (Vec::new(), Vec::new());
        let mut named: HashMap<String, Vec<u8>> = HashMap::new();
        for object in self.model.objects() {
            let key = object.key();
            if key.kind() == POD {
                continue;
            }
            let is = audiences(&self.model, &self.named, &key);
            if is.is_empty() {
                continue;
            }
            let text = encode(&object);
            for audience in is {
                let lines = match audience {
                    Audience::All => &mut shared,
                    Audience::Nodes => &mut nodes,
                    Audience::Gateways => &mut gateways,
                    Audience::Gateway(name) => named.entry(name).or_default(),
                    // Pods.
                    Audience::Node(_) => continue,
                };
                Say::Put(&text).write(lines);
            }
        }
        let mut pods: HashMap<String, Vec<Arc<Pod>>> = HashMap::new();
        for pod in self.model.pods.shared() {
            pods.entry(pod.node.clone()).or_default().push(Arc::clone(pod));
        }
        Snapshot {
            revision: self.revision,
            shared: Lines::large(shared),
            nodes: Lines::large(nodes),
            gateways: Lines::large(gateways),
            named: named.into_iter().map(|(name, lines)| (name, Lines::large(lines))).collect(),
            pods,
            digests: self.digests.clone(),
        }
    }
}

/// The lines that say what an object is, and its hash; `old` is that of what all who get it have.
fn put(before: &Model, object: &Object, old: Option<u64>) -> (Vec<u8>, u64) {
    let mut lines = Vec::new();
    let Object::Endpoints(next) = object else {
        let text = encode(object);
        Say::Put(&text).write(&mut lines);
        return (lines, text_hash(text.get()));
    };
    let edits = before.endpoints.get(&next.service).and_then(|had| edits(had, next));
    let (Some(edits), Some(old)) = (edits, old) else {
        Say::Put(&encode(object)).write(&mut lines);
        return (lines, endpoints_hash(next));
    };
    let mut hash = Digest::of(old);
    for edit in edits {
        edit.hash(&mut hash);
        edit.write(&mut lines);
    }
    (lines, hash.value())
}

/// The digests of who is of these audiences, of the kinds that any of them speaks of.
fn sum(digests: &HashMap<Audience, Digests>, of: &[Audience]) -> BTreeMap<String, Digest> {
    let mut sum: BTreeMap<String, Digest> = BTreeMap::new();
    for (kind, digest) in of.iter().filter_map(|audience| digests.get(audience)).flatten() {
        sum.entry((*kind).to_owned()).or_default().add(digest.value());
    }
    sum
}

impl Step {
    /// `after` are the digests of all there is.
    fn new(
        revision: u64,
        drafts: HashMap<Audience, Draft>,
        after: &HashMap<Audience, Digests>,
    ) -> Self {
        let (mut lines, mut digests) = (HashMap::new(), HashMap::<Audience, Digests>::new());
        let known = |audience: &Audience, kind: &'static str| {
            let digest = after.get(audience).and_then(|digests| digests.get(kind));
            (kind, digest.copied().unwrap_or_default())
        };
        let is_gateways =
            |audience: &Audience| matches!(audience, Audience::Gateways | Audience::Gateway(_));
        let of_gateways = drafts.iter().filter(|(audience, _)| is_gateways(audience));
        let of_gateways: BTreeSet<_> =
            of_gateways.flat_map(|(_, draft)| draft.touched.iter().copied()).collect();
        if !of_gateways.is_empty() {
            for (audience, has) in after.iter().filter(|(audience, _)| is_gateways(audience)) {
                let touched = of_gateways.iter().filter(|kind| has.contains_key(**kind));
                let touched: Digests = touched.map(|kind| known(audience, kind)).collect();
                if !touched.is_empty() {
                    digests.insert(audience.clone(), touched);
                }
            }
        }
        for (audience, draft) in drafts {
            let touched = draft.touched.iter().map(|kind| known(&audience, kind));
            digests.entry(audience.clone()).or_default().extend(touched);
            let said = [draft.puts, draft.deletes].concat();
            if !said.is_empty() {
                lines.insert(audience, Lines::new(said));
            }
        }
        let named = digests.keys().filter_map(|audience| match audience {
            Audience::Gateway(name) => Some((name.clone(), OnceLock::new())),
            _ => None,
        });
        let named = named.collect();
        let nodes = Lines::new(Vec::new());
        let mut step = Self { revision, lines, digests, nodes, gateways: OnceLock::new(), named };
        step.nodes = step.whole(&[Audience::All, Audience::Nodes]);
        step
    }

    /// What is kept for sure; what gateways share is at most as much again.
    fn bytes(&self) -> usize {
        self.nodes.len() + self.lines.values().map(|lines| lines.len()).sum::<usize>()
    }

    /// All of it for who is of these audiences.
    fn whole(&self, of: &[Audience]) -> Arc<Lines> {
        let mut whole = Vec::new();
        for lines in of.iter().filter_map(|audience| self.lines.get(audience)) {
            whole.extend_from_slice(&lines.plain());
        }
        Say::Sync(&self.sync(of)).write(&mut whole);
        Lines::new(whole)
    }

    fn parts(&self, subscriber: &Subscriber) -> Vec<Arc<Lines>> {
        let of = subscriber.audiences();
        match subscriber {
            Subscriber::Node(_) if self.digests.contains_key(&of[2]) => {
                let [all, nodes, own] = &of;
                let shared = [all, nodes].into_iter().filter_map(|part| self.lines.get(part));
                let mut parts: Vec<_> = shared.cloned().collect();
                let own = self.lines.get(own).map(|lines| lines.plain().to_vec());
                let mut own = own.unwrap_or_default();
                Say::Sync(&self.sync(&of)).write(&mut own);
                parts.push(Lines::new(own));
                parts
            }
            Subscriber::Node(_) => vec![Arc::clone(&self.nodes)],
            Subscriber::Gateway(name) => {
                let made = self.named.get(&name.group).unwrap_or(&self.gateways);
                vec![Arc::clone(made.get_or_init(|| self.whole(&of)))]
            }
        }
    }

    fn sync(&self, of: &[Audience]) -> Sync {
        Sync { revision: self.revision, digest: sum(&self.digests, of) }
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
