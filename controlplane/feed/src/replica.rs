//! The client's copy of the model and the rules by which lines change it.
//!
//! Pure: lines go in, whole steps come out. A line that breaks a rule yields an error and leaves
//! the copy as it was; the caller drops the connection and starts anew.
//!
//! Of pods a node keeps its own alone: there are more pods than anything else in a cluster, they
//! come and go all the time, and a node has to know those that it is to start. Those of others are
//! checked with the rest of a step and then let go, so that they are no news, here or on the disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fairway_model::{Change, Claims, Invalid, Key, Model, Object};
use serde_json::value::RawValue;

use crate::digest::{Digest, hash};
use crate::wire::{Kind, Line, MAX_LINE, Position, Sync};

/// The largest step taken, in bytes: many times a cluster at the limits of Kubernetes.
const MAX_BATCH: usize = 1 << 30;

/// What the other end did that no server of ours does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Misbehaved {
    #[error("a line is longer than {MAX_LINE} bytes")]
    LineTooLong,
    #[error("a step is larger than {MAX_BATCH} bytes")]
    BatchTooLarge,
    #[error("cannot read the line {excerpt:?}; is that a Fairway control plane, and no older?")]
    Unreadable { excerpt: String, source: serde_json::Error },
    #[error("the stream does not begin with a reset or a resume")]
    NoStart,
    #[error("a second start in the middle of the stream's step")]
    SecondStart,
    #[error("it resumes from another place than was asked for")]
    WrongResume,
    #[error("revision {got} comes where {least} is the least possible")]
    RevisionOrder { least: u64, got: u64 },
    #[error("the {kind} objects are not those the server has (digest {have}, the server's {want})")]
    Digest { kind: &'static str, have: Digest, want: Digest },
    #[error("an object breaks the rules")]
    Invalid(#[source] Invalid),
    #[error("the stream ended in the middle of a step")]
    Truncated,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Replica {
    /// Whose copy this is.
    node: String,
    /// The last complete state; `None` until there is one.
    model: Option<Arc<Model>>,
    /// Where it stands, and the hashes of its objects' texts; `None` for a model from the disk and
    /// after an error, when only a complete model helps.
    held: Option<Held>,
    /// The step in progress.
    step: Option<Step>,
    skipped: u64,
}

struct Held {
    position: Position,
    hashes: HashMap<Key, u64>,
    /// Over `hashes`, by kind.
    digests: BTreeMap<&'static str, Digest>,
    /// Of the model's Services.
    claims: Claims,
}

struct Step {
    /// The epoch of a reset; `None` for a step on top of what is held.
    reset: Option<String>,
    changes: Vec<(Change, u64)>,
    bytes: usize,
}

/// A step taken.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The new model; `None` if it equals the one before.
    pub(crate) changed: Option<Arc<Model>>,
}

impl Replica {
    /// The copy of `node`, that starts from the disk's last good state, if there is one.
    pub(crate) fn new(node: String, model: Option<Arc<Model>>) -> Self {
        Self { node, model, ..Self::default() }
    }

    /// The last complete model.
    pub(crate) fn model(&self) -> Option<&Arc<Model>> {
        self.model.as_ref()
    }

    /// Where it stands, if a server may continue from there.
    pub(crate) fn position(&self) -> Option<&Position> {
        self.held.as_ref().map(|held| &held.position)
    }

    /// Whether the stream has said where it stands, and nothing unfinished since.
    pub(crate) fn in_step(&self) -> bool {
        let step = self.step.as_ref();
        step.is_some_and(|step| step.reset.is_none() && step.changes.is_empty())
    }

    /// How many records of kinds unknown to this version were left out so far.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// A new stream begins; what an earlier one left unfinished is forgotten.
    pub(crate) fn begin(&mut self) {
        self.step = None;
    }

    /// The stream has ended.
    pub(crate) fn end(&mut self) -> Result<(), Misbehaved> {
        match self.step.take() {
            Some(step) if step.reset.is_some() || !step.changes.is_empty() => {
                Err(Misbehaved::Truncated)
            }
            _ => Ok(()),
        }
    }

    /// Takes one line, without its end. After an error the next stream must be a complete one:
    /// [`Self::position`] is `None`.
    pub(crate) fn line(&mut self, line: &[u8]) -> Result<Option<Taken>, Misbehaved> {
        let taken = self.take(line);
        if taken.is_err() {
            self.step = None;
            self.held = None;
        }
        taken
    }

    fn take(&mut self, text: &[u8]) -> Result<Option<Taken>, Misbehaved> {
        let unreadable = |source| Misbehaved::Unreadable {
            excerpt: String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned(),
            source,
        };
        match serde_json::from_slice(text).map_err(unreadable)? {
            Line::Ping {} => {}
            Line::Reset { epoch } => match &self.step {
                Some(step) if step.reset.is_some() || !step.changes.is_empty() => {
                    return Err(Misbehaved::SecondStart);
                }
                _ => self.step = Some(Step::new(Some(epoch))),
            },
            Line::Resume(position) => {
                if self.step.is_some() {
                    return Err(Misbehaved::SecondStart);
                }
                if self.position() != Some(&position) {
                    return Err(Misbehaved::WrongResume);
                }
                self.step = Some(Step::new(None));
            }
            Line::Put(raw) => {
                let change = put(raw).map_err(unreadable)?;
                self.record(change, raw)?;
            }
            Line::Delete(raw) => {
                let change = delete(raw).map_err(unreadable)?;
                self.record(change, raw)?;
            }
            Line::Sync(sync) => return self.sync(&sync).map(Some),
        }
        Ok(None)
    }

    fn record(&mut self, change: Option<Change>, raw: &RawValue) -> Result<(), Misbehaved> {
        let step = self.step.as_mut().ok_or(Misbehaved::NoStart)?;
        step.bytes += raw.get().len();
        if step.bytes > MAX_BATCH {
            return Err(Misbehaved::BatchTooLarge);
        }
        match change {
            Some(change) => step.changes.push((change, hash(raw.get().as_bytes()))),
            None => self.skipped += 1,
        }
        Ok(())
    }

    fn sync(&mut self, sync: &Sync) -> Result<Taken, Misbehaved> {
        let step = self.step.take().ok_or(Misbehaved::NoStart)?;
        let least = match (&step.reset, &self.held) {
            // Of the epoch that is held, a complete model may at most repeat what is held.
            (Some(epoch), Some(held)) if *epoch == held.position.epoch => held.position.revision,
            (Some(_), _) => 1,
            (None, Some(held)) => held.position.revision + 1,
            (None, None) => return Err(Misbehaved::NoStart),
        };
        if sync.revision < least {
            let got = sync.revision;
            return Err(Misbehaved::RevisionOrder { least, got });
        }
        // Taken out and changed in place: if the step turns out wrong, nothing of it is of use.
        let (before, mut held) = match (step.reset, self.held.take()) {
            (None, Some(held)) => (self.model.clone(), held),
            (epoch, _) => (None, Held::new(epoch.unwrap_or_default())),
        };
        held.position.revision = sync.revision;
        let mut changes = Vec::new();
        for (change, hash) in step.changes {
            held.take(&change, hash);
            let change = self.own(change);
            if !before.as_ref().is_some_and(|model| is_nothing_to(model, &change)) {
                changes.push(change);
            }
        }
        held.check(sync)?;
        if before.is_some() && changes.is_empty() {
            self.held = Some(held);
            self.step = Some(Step::new(None));
            return Ok(Taken { changed: None });
        }
        let before = before.unwrap_or_default();
        let mut model = Model::clone(&before);
        changes.into_iter().for_each(|change| model.apply(change));
        held.claims.follow(&before, &model).map_err(Misbehaved::Invalid)?;

        self.held = Some(held);
        self.step = Some(Step::new(None));
        let changed = self.model.as_deref() != Some(&model);
        if changed {
            // A complete model seldom says much that is new.
            let model = self.model.as_ref().map_or(model.clone(), |had| had.becoming(&model));
            self.model = Some(Arc::new(model));
        }
        Ok(Taken { changed: self.model.clone().filter(|_| changed) })
    }
}

impl Replica {
    /// What a change means to this node: another node's pod is none.
    fn own(&self, change: Change) -> Change {
        match change {
            Change::Put(Object::Pod(pod)) if pod.node != self.node => {
                Change::Delete(Key::Pod(pod.name))
            }
            change => change,
        }
    }
}

/// Whether the change is that a pod goes that the model does not have.
fn is_nothing_to(model: &Model, change: &Change) -> bool {
    matches!(change, Change::Delete(Key::Pod(name)) if !model.pods.contains_key(name))
}

impl Held {
    fn new(epoch: String) -> Self {
        Self {
            position: Position { epoch, revision: 0 },
            hashes: HashMap::new(),
            digests: Key::KINDS.iter().map(|kind| (*kind, Digest::default())).collect(),
            claims: Claims::default(),
        }
    }

    fn take(&mut self, change: &Change, hash: u64) {
        let (key, old) = match change {
            Change::Put(object) => {
                let key = object.key();
                self.digests.entry(key.kind()).or_default().add(hash);
                let old = self.hashes.insert(key.clone(), hash);
                (key, old)
            }
            Change::Delete(key) => (key.clone(), self.hashes.remove(key)),
        };
        if let Some(old) = old {
            self.digests.entry(key.kind()).or_default().remove(old);
        }
    }

    /// Compares with the server's digests, for the kinds known here.
    fn check(&self, sync: &Sync) -> Result<(), Misbehaved> {
        for (kind, have) in &self.digests {
            let want = sync.digest.get(*kind).copied().unwrap_or_default();
            if *have != want {
                return Err(Misbehaved::Digest { kind, have: *have, want });
            }
        }
        Ok(())
    }
}

impl Step {
    fn new(reset: Option<String>) -> Self {
        Self { reset, changes: Vec::new(), bytes: 0 }
    }
}

fn put(raw: &RawValue) -> Result<Option<Change>, serde_json::Error> {
    if !known(raw)? {
        return Ok(None);
    }
    let object: Object = serde_json::from_str(raw.get())?;
    Ok(Some(Change::Put(object)))
}

fn delete(raw: &RawValue) -> Result<Option<Change>, serde_json::Error> {
    if !known(raw)? {
        return Ok(None);
    }
    let key: Key = serde_json::from_str(raw.get())?;
    Ok(Some(Change::Delete(key)))
}

/// Whether this version knows the record's kind. A newer server's further kinds are no error: what
/// it says in the known ones is complete without them.
fn known(raw: &RawValue) -> Result<bool, serde_json::Error> {
    let record: Kind = serde_json::from_str(raw.get())?;
    Ok(Key::KINDS.contains(&record.kind.as_str()))
}

#[cfg(test)]
mod tests {
    use fairway_model::{Node, ObjectName, Pod};

    use super::*;
    use crate::history::History;

    fn model(names: &[&str]) -> Arc<Model> {
        let nodes =
            names.iter().map(|name| Object::Node(Node { name: (*name).into(), ..Node::default() }));
        Arc::new(nodes.collect())
    }

    fn feed(replica: &mut Replica, lines: &[u8]) -> Result<Option<Taken>, Misbehaved> {
        let mut last = None;
        for line in lines.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
            if let Some(taken) = replica.line(line)? {
                last = Some(taken);
            }
        }
        Ok(last)
    }

    fn followed(history: &mut History) -> Replica {
        let mut replica = Replica::default();
        feed(&mut replica, &history.start(None).lines).unwrap();
        replica
    }

    #[test]
    fn follows_a_history() {
        let mut history = History::new("e".into(), model(&["a"]));
        let mut replica = followed(&mut history);
        assert_eq!(replica.model(), Some(&model(&["a"])));

        history.push(model(&["b"]));
        feed(&mut replica, &history.after(1).unwrap().lines).unwrap();
        assert_eq!(replica.model(), Some(&model(&["b"])));
        assert!(history.after(2).is_none());

        // A new stream resumes; its first line alone brings no step.
        history.push(model(&["b", "c"]));
        replica.begin();
        let position = replica.position().cloned();
        let start = history.start(position.as_ref());
        assert!(feed(&mut replica, &start.lines).unwrap().is_none());
        let next = history.after(start.revision).unwrap();
        feed(&mut replica, &next.lines).unwrap();
        assert_eq!(replica.model(), Some(&model(&["b", "c"])));
    }

    #[test]
    fn of_pods_a_node_keeps_its_own() {
        let pods = |places: &[(&str, &str)]| {
            let pods = places.iter().map(|(name, node)| {
                let name = ObjectName::new("shop", *name);
                Object::Pod(Pod { name, node: (*node).into(), ..Pod::default() })
            });
            Arc::new(model(&["n1", "n2"]).objects().chain(pods).collect::<Model>())
        };
        let mut history = History::new("e".into(), pods(&[("a", "n1"), ("b", "n2")]));
        let mut replica = Replica::new("n1".into(), None);
        feed(&mut replica, &history.start(None).lines).unwrap();
        assert_eq!(replica.model(), Some(&pods(&[("a", "n1")])));

        let mut step = |next: &[(&str, &str)]| {
            let revision = history.current().1.revision;
            history.push(pods(next));
            let taken = feed(&mut replica, &history.after(revision).unwrap().lines).unwrap();
            assert_eq!(replica.position(), Some(&history.current().1));
            (taken.unwrap().changed.is_some(), replica.model().unwrap().pods.len())
        };
        // Others' pods are no news, but a pod that starts anew elsewhere is.
        assert_eq!(step(&[("a", "n1"), ("b", "n2"), ("c", "n2")]), (false, 1));
        assert_eq!(step(&[("a", "n1"), ("c", "n2")]), (false, 1));
        assert_eq!(step(&[("a", "n2"), ("c", "n2")]), (true, 0));
        assert_eq!(step(&[("a", "n2"), ("c", "n1")]), (true, 1));
        assert_eq!(step(&[("a", "n2")]), (true, 0));
    }

    #[test]
    fn another_epoch_with_the_same_content_changes_nothing() {
        let mut replica = followed(&mut History::new("e".into(), model(&["a"])));
        replica.begin();
        let start = History::new("f".into(), model(&["a"])).start(replica.position());
        let taken = feed(&mut replica, &start.lines).unwrap().unwrap();
        assert!(taken.changed.is_none());
        assert_eq!(replica.position().unwrap().epoch, "f");
    }

    #[test]
    fn a_step_counts_only_when_it_is_whole() {
        let mut history = History::new("e".into(), model(&["a"]));
        let mut replica = followed(&mut history);
        history.push(model(&["a", "b", "c"]));
        let lines = history.after(1).unwrap().lines;
        let whole: Vec<_> = lines.split_inclusive(|byte| *byte == b'\n').collect();
        feed(&mut replica, &whole[..whole.len() - 1].concat()).unwrap();
        assert_eq!(replica.model(), Some(&model(&["a"])));
        assert!(matches!(replica.end(), Err(Misbehaved::Truncated)));
        assert_eq!(replica.position().unwrap().revision, 1);
    }

    #[test]
    fn unknown_kinds_are_skipped_and_counted() {
        let mut history = History::new("e".into(), model(&["a"]));
        let mut replica = followed(&mut history);
        let news = [
            r#"{"put":{"kind":"shape","name":"p","sides":[]}}"#,
            r#"{"delete":{"kind":"shape","key":"p"}}"#,
        ];
        feed(&mut replica, news.join("\n").as_bytes()).unwrap();
        history.push(model(&["b"]));
        feed(&mut replica, &history.after(1).unwrap().lines).unwrap();
        assert_eq!(replica.model(), Some(&model(&["b"])));
        assert_eq!(replica.skipped(), 2);
    }

    #[test]
    fn bad_lines_change_nothing_and_ask_for_a_complete_model() {
        let put = r#"{"put":{"kind":"node","name":"z"}}"#;
        let sync = |revision: u64| format!(r#"{{"sync":{{"revision":{revision},"digest":{{}}}}}}"#);
        let (sync0, sync1, sync2) = (sync(0), sync(1), sync(2));
        let cases = [
            ("not json", "cannot read"),
            (r#"{"future":{}}"#, "cannot read"),
            (r#"{"put":{"kind":"node"}}"#, "cannot read"),
            (r#"{"put":{"name":"z"}}"#, "cannot read"),
            (r#"{"resume":{"epoch":"x","revision":1}}"#, "a second start"),
            (&*sync1, "revision 1 comes where 2 is"),
            (&*sync0, "revision 0 comes where 2 is"),
            (&*sync2, "the node objects are not those"),
            (&format!("{put}\n{}", sync(2)), "the node objects are not"),
            (&format!("{put}\n{}", r#"{"reset":{"epoch":"e"}}"#), "a second start"),
            (
                &format!("{}\n{}", r#"{"reset":{"epoch":"e"}}"#, sync(0)),
                "revision 0 comes where 1 is",
            ),
        ];
        for (lines, expected) in cases {
            let mut replica = followed(&mut History::new("e".into(), model(&["a"])));
            let error = feed(&mut replica, lines.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{lines}: {error}");
            assert_eq!(replica.model(), Some(&model(&["a"])), "{lines}");
            assert_eq!(replica.position(), None, "{lines}");
        }
    }

    #[test]
    fn a_stream_must_begin() {
        let mut replica = Replica::default();
        let error = replica.line(br#"{"put":{"kind":"node","name":"z"}}"#);
        assert!(matches!(error, Err(Misbehaved::NoStart)));
        assert!(replica.model().is_none());
    }

    #[test]
    fn an_object_that_breaks_the_rules_is_refused() {
        let mut replica = followed(&mut History::new("e".into(), model(&["a"])));
        let raw = r#"{"kind":"node","name":""}"#;
        let mut digest = Digest::default();
        digest.add(hash(br#"{"kind":"node","name":"a"}"#));
        digest.add(hash(raw.as_bytes()));
        let lines = format!(
            r#"{{"put":{raw}}}{}{{"sync":{{"revision":2,"digest":{{"node":"{digest}"}}}}}}"#,
            '\n'
        );
        let error = feed(&mut replica, lines.as_bytes()).unwrap_err();
        assert!(matches!(error, Misbehaved::Invalid(_)), "{error}");
    }
}
