//! The client's copy of the model and the rules by which lines change it.
//!
//! Pure: lines go in, whole steps come out. A line that breaks a rule yields an error and leaves
//! the copy as it was; the caller drops the connection and starts anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use fairway_model::{Change, Claims, Endpoint, Endpoints, Invalid, Key, Model, Object, ObjectName};
use serde_json::value::RawValue;

use crate::digest::Digest;
use crate::wire::{
    Kind, Line, MAX_LINE, Position, RawEdit, RawEndpoints, Sync, VERSION, element_hash, list_hash,
    text_hash,
};

/// The kind whose objects are edited.
const ENDPOINTS: &str = "endpoints";

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
    #[error(
        "it speaks version {0} of the feed, this end reads no more than {VERSION}; it was asked for that"
    )]
    Version(u32),
    #[error("it changes endpoints of {0} that are not there")]
    Edit(ObjectName),
    #[error("a pod of node {0} came here")]
    Foreign(String),
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
    /// Of each element of each list of endpoints.
    elements: HashMap<ObjectName, BTreeMap<String, Vec<u64>>>,
    /// Over `hashes`, by kind.
    digests: BTreeMap<&'static str, Digest>,
    /// Of the model's Services.
    claims: Claims,
}

struct Step {
    /// The epoch of a reset; `None` for a step on top of what is held.
    reset: Option<String>,
    changes: Vec<Said>,
    bytes: usize,
}

/// A change, with what stands for its object in digests.
enum Said {
    Put(Object, u64),
    PutEndpoints(Endpoints, BTreeMap<String, Vec<u64>>),
    Edit { service: ObjectName, port: String, at: usize, remove: usize, put: Vec<(Endpoint, u64)> },
    Delete(Key),
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
        let unreadable = |source| unreadable(text, source);
        match serde_json::from_slice(text).map_err(unreadable)? {
            Line::Ping {} => {}
            Line::Reset { version, .. } | Line::Resume { version, .. } if version > VERSION => {
                return Err(Misbehaved::Version(version));
            }
            Line::Reset { epoch, .. } => match &self.step {
                Some(step) if step.reset.is_some() || !step.changes.is_empty() => {
                    return Err(Misbehaved::SecondStart);
                }
                _ => self.step = Some(Step::new(Some(epoch))),
            },
            Line::Resume { epoch, revision, .. } => {
                if self.step.is_some() {
                    return Err(Misbehaved::SecondStart);
                }
                if self.position() != Some(&Position { epoch, revision }) {
                    return Err(Misbehaved::WrongResume);
                }
                self.step = Some(Step::new(None));
            }
            Line::Put(raw) => {
                let said = put(raw).map_err(unreadable)?;
                self.record(said, raw)?;
            }
            Line::Edit(raw) => {
                let said = edit(raw).map_err(unreadable)?;
                self.record(said, raw)?;
            }
            Line::Delete(raw) => {
                let said = delete(raw).map_err(unreadable)?;
                self.record(said, raw)?;
            }
            Line::Sync(sync) => return self.sync(&sync).map(Some),
        }
        Ok(None)
    }

    fn record(&mut self, said: Option<Said>, raw: &RawValue) -> Result<(), Misbehaved> {
        let step = self.step.as_mut().ok_or(Misbehaved::NoStart)?;
        step.bytes += raw.get().len();
        if step.bytes > MAX_BATCH {
            return Err(Misbehaved::BatchTooLarge);
        }
        match said {
            Some(Said::Put(Object::Pod(pod), _)) if pod.node != self.node => {
                return Err(Misbehaved::Foreign(pod.node));
            }
            Some(said) => step.changes.push(said),
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
        let complete = before.is_none();
        let changes = !step.changes.is_empty();
        let before = before.unwrap_or_default();
        let mut model = Model::clone(&before);
        let mut kinds = BTreeSet::new();
        for said in step.changes {
            let change = held.take(said, &model)?;
            kinds.insert(match &change {
                Change::Put(object) => object.key().kind(),
                Change::Delete(key) => key.kind(),
            });
            model.apply(change);
        }
        held.check(sync, complete, &kinds)?;
        if !complete && !changes {
            self.held = Some(held);
            self.step = Some(Step::new(None));
            return Ok(Taken { changed: None });
        }
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

impl Held {
    fn new(epoch: String) -> Self {
        Self {
            position: Position { epoch, revision: 0 },
            hashes: HashMap::new(),
            elements: HashMap::new(),
            digests: Key::KINDS.iter().map(|kind| (*kind, Digest::default())).collect(),
            claims: Claims::default(),
        }
    }

    /// Follows what was said, and turns it into a change of `model`, in which all that was said before is.
    fn take(&mut self, said: Said, model: &Model) -> Result<Change, Misbehaved> {
        let change = match said {
            Said::Put(object, hash) => {
                self.put(object.key(), hash);
                Change::Put(object)
            }
            Said::PutEndpoints(endpoints, elements) => {
                let name = endpoints.service.clone();
                self.put(Key::Endpoints(name.clone()), sum(&name, &elements));
                self.elements.insert(name, elements);
                Change::Put(Object::Endpoints(endpoints))
            }
            Said::Edit { service, port, at, remove, put } => {
                let missing = || Misbehaved::Edit(service.clone());
                let mut endpoints = model.endpoints.get(&service).cloned().ok_or_else(missing)?;
                let list = endpoints.ports.get_mut(&port).ok_or_else(missing)?;
                let lists = self.elements.get_mut(&service).ok_or_else(missing)?;
                let hashes = lists.get_mut(&port).ok_or_else(missing)?;
                let range = at..at.checked_add(remove).ok_or_else(missing)?;
                if range.end > list.len() || list.len() != hashes.len() {
                    return Err(missing());
                }
                let key = Key::Endpoints(service.clone());
                let mut hash = Digest::of(self.hashes.get(&key).copied().ok_or_else(missing)?);
                let (put, added): (Vec<_>, Vec<_>) = put.into_iter().unzip();
                added.iter().for_each(|added| hash.add(*added));
                hashes.splice(range.clone(), added).for_each(|removed| hash.remove(removed));
                list.splice(range, put);
                self.put(key, hash.value());
                Change::Put(Object::Endpoints(endpoints))
            }
            Said::Delete(key) => {
                if let Some(old) = self.hashes.remove(&key) {
                    self.digests.entry(key.kind()).or_default().remove(old);
                }
                if let Key::Endpoints(service) = &key {
                    self.elements.remove(service);
                }
                Change::Delete(key)
            }
        };
        Ok(change)
    }

    fn put(&mut self, key: Key, hash: u64) {
        let digest = self.digests.entry(key.kind()).or_default();
        digest.add(hash);
        if let Some(old) = self.hashes.insert(key, hash) {
            digest.remove(old);
        }
    }

    /// Compares with the server's digests, for the kinds known here: all of them after a complete model,
    /// otherwise those that it speaks of and those that changed here.
    fn check(
        &self,
        sync: &Sync,
        complete: bool,
        changed: &BTreeSet<&'static str>,
    ) -> Result<(), Misbehaved> {
        for (kind, have) in &self.digests {
            let said = sync.digest.get(*kind);
            if said.is_none() && !complete && !changed.contains(kind) {
                continue;
            }
            let want = said.copied().unwrap_or_default();
            if *have != want {
                return Err(Misbehaved::Digest { kind, have: *have, want });
            }
        }
        Ok(())
    }
}

/// What stands for a Service's endpoints, of which these are the elements.
fn sum(service: &ObjectName, elements: &BTreeMap<String, Vec<u64>>) -> u64 {
    let mut sum = Digest::of(list_hash(service, None));
    for (port, list) in elements {
        sum.add(list_hash(service, Some(port)));
        list.iter().for_each(|element| sum.add(*element));
    }
    sum.value()
}

impl Step {
    fn new(reset: Option<String>) -> Self {
        Self { reset, changes: Vec::new(), bytes: 0 }
    }
}

/// An error that goes into a log, and so shows nothing of a line about what is nobody's business.
fn unreadable(text: &[u8], source: serde_json::Error) -> Misbehaved {
    let whole = String::from_utf8_lossy(text);
    if [r#""secret""#, r#""ticketKey""#].iter().any(|kind| whole.contains(kind)) {
        let source = serde::de::Error::custom("what is wrong with it is not shown");
        return Misbehaved::Unreadable { excerpt: "(about a secret)".to_owned(), source };
    }
    let excerpt = String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned();
    Misbehaved::Unreadable { excerpt, source }
}

fn put(raw: &RawValue) -> Result<Option<Said>, serde_json::Error> {
    let kind = kind(raw)?;
    if !Key::KINDS.contains(&kind.as_str()) {
        return Ok(None);
    }
    if kind != ENDPOINTS {
        let object: Object = serde_json::from_str(raw.get())?;
        return Ok(Some(Said::Put(object, text_hash(raw.get()))));
    }
    let RawEndpoints { service, ports } = serde_json::from_str(raw.get())?;
    let (mut lists, mut elements) = (BTreeMap::new(), BTreeMap::new());
    for (port, raw) in ports {
        let (list, hashes) = list(&service, &port, &raw)?.into_iter().unzip();
        lists.insert(port.clone(), list);
        elements.insert(port, hashes);
    }
    Ok(Some(Said::PutEndpoints(Endpoints { service, ports: lists }, elements)))
}

fn edit(raw: &RawValue) -> Result<Option<Said>, serde_json::Error> {
    let kind = kind(raw)?;
    if kind != ENDPOINTS {
        let known = Key::KINDS.contains(&kind.as_str());
        // Of what is known here nothing may be missed.
        let error = || serde::de::Error::custom(format!("edits of {kind} are not known"));
        return if known { Err(error()) } else { Ok(None) };
    }
    let RawEdit { key, port, at, remove, put } = serde_json::from_str(raw.get())?;
    let put = list(&key, &port, &put)?;
    Ok(Some(Said::Edit { service: key, port, at, remove, put }))
}

fn list(
    service: &ObjectName,
    port: &str,
    raw: &[&RawValue],
) -> Result<Vec<(Endpoint, u64)>, serde_json::Error> {
    let hash = list_hash(service, Some(port));
    let element =
        |raw: &&RawValue| Ok((serde_json::from_str(raw.get())?, element_hash(hash, raw.get())));
    raw.iter().map(element).collect()
}

fn delete(raw: &RawValue) -> Result<Option<Said>, serde_json::Error> {
    if !Key::KINDS.contains(&kind(raw)?.as_str()) {
        return Ok(None);
    }
    let key: Key = serde_json::from_str(raw.get())?;
    Ok(Some(Said::Delete(key)))
}

/// The record's kind. A newer server's further kinds are no error: what it says in the known ones is
/// complete without them.
fn kind(raw: &RawValue) -> Result<String, serde_json::Error> {
    serde_json::from_str(raw.get()).map(|Kind { kind }| kind)
}

#[cfg(test)]
mod tests {
    use fairway_model::{EndpointState, Hints, Node, Pod};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::digest::hash;
    use crate::history::History;
    use crate::scope::Subscriber;

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

    fn of(node: &str) -> Subscriber {
        Subscriber::Node(node.to_owned())
    }

    fn followed(history: &mut History) -> Replica {
        let mut replica = Replica::default();
        feed(&mut replica, &history.start(&of("n1"), None).lines()).unwrap();
        replica
    }

    #[test]
    fn follows_a_history() {
        let mut history = History::new("e".into(), model(&["a"]));
        let mut replica = followed(&mut history);
        assert_eq!(replica.model(), Some(&model(&["a"])));

        history.push(model(&["b"]));
        feed(&mut replica, &history.after(&of("n1"), 1).unwrap().lines()).unwrap();
        assert_eq!(replica.model(), Some(&model(&["b"])));
        assert!(history.after(&of("n1"), 2).is_none());

        // A new stream resumes; its first line alone brings no step.
        history.push(model(&["b", "c"]));
        replica.begin();
        let position = replica.position().cloned();
        let start = history.start(&of("n1"), position.as_ref());
        assert!(feed(&mut replica, &start.lines()).unwrap().is_none());
        let next = history.after(&of("n1"), start.revision).unwrap();
        feed(&mut replica, &next.lines()).unwrap();
        assert_eq!(replica.model(), Some(&model(&["b", "c"])));
    }

    #[test]
    fn of_pods_a_node_gets_its_own() {
        let pods = |places: &[(&str, &str)]| {
            let pods = places.iter().map(|(name, node)| {
                let name = ObjectName::new("shop", *name);
                Object::Pod(Pod { name, node: (*node).into(), ..Pod::default() })
            });
            Arc::new(model(&["n1", "n2"]).objects().chain(pods).collect::<Model>())
        };
        let mut history = History::new("e".into(), pods(&[("a", "n1"), ("b", "n2")]));
        let mut replica = Replica::new("n1".into(), None);
        feed(&mut replica, &history.start(&of("n1"), None).lines()).unwrap();
        assert_eq!(replica.model(), Some(&pods(&[("a", "n1")])));

        let mut step = |next: &[(&str, &str)]| {
            let revision = history.revision();
            history.push(pods(next));
            let taken =
                feed(&mut replica, &history.after(&of("n1"), revision).unwrap().lines()).unwrap();
            assert_eq!(replica.position(), Some(&history.position()));
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
        let start = History::new("f".into(), model(&["a"])).start(&of("n1"), replica.position());
        let taken = feed(&mut replica, &start.lines()).unwrap().unwrap();
        assert!(taken.changed.is_none());
        assert_eq!(replica.position().unwrap().epoch, "f");
    }

    #[test]
    fn a_step_counts_only_when_it_is_whole() {
        let mut history = History::new("e".into(), model(&["a"]));
        let mut replica = followed(&mut history);
        history.push(model(&["a", "b", "c"]));
        let lines = history.after(&of("n1"), 1).unwrap().lines();
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
        feed(&mut replica, &history.after(&of("n1"), 1).unwrap().lines()).unwrap();
        assert_eq!(replica.model(), Some(&model(&["b"])));
        assert_eq!(replica.skipped(), 2);
    }

    #[test]
    fn unknown_fields_are_left_out_of_account() {
        let mut replica = followed(&mut History::new("e".into(), model(&["a"])));
        let raw = r#"{"kind":"node","name":"b","mood":{"is":["good"]}}"#;
        let mut digest = Digest::default();
        digest.add(hash(br#"{"kind":"node","name":"a"}"#));
        digest.add(hash(raw.as_bytes()));
        let sync =
            format!(r#"{{"sync":{{"revision":2,"digest":{{"node":"{digest}"}},"weather":1}}}}"#);
        feed(&mut replica, format!("{{\"put\":{raw}}}\n{sync}").as_bytes()).unwrap();
        assert_eq!(replica.model(), Some(&model(&["a", "b"])));
    }

    #[test]
    fn bad_lines_change_nothing_and_ask_for_a_complete_model() {
        let put = r#"{"put":{"kind":"node","name":"z"}}"#;
        let sync = |revision: u64| format!(r#"{{"sync":{{"revision":{revision},"digest":{{}}}}}}"#);
        let (sync0, sync1) = (sync(0), sync(1));
        let cases = [
            ("not json", "cannot read"),
            (r#"{"future":{}}"#, "cannot read"),
            (r#"{"put":{"kind":"node"}}"#, "cannot read"),
            (r#"{"put":{"name":"z"}}"#, "cannot read"),
            (r#"{"resume":{"epoch":"x","revision":1,"version":2}}"#, "a second start"),
            (&*sync1, "revision 1 comes where 2 is"),
            (&*sync0, "revision 0 comes where 2 is"),
            (
                r#"{"sync":{"revision":2,"digest":{"node":"0000000000000000"}}}"#,
                "the node objects are not those",
            ),
            (&format!("{put}\n{}", sync(2)), "the node objects are not"),
            (&format!("{put}\n{}", r#"{"reset":{"epoch":"e","version":2}}"#), "a second start"),
            (
                &format!("{}\n{}", r#"{"reset":{"epoch":"e","version":2}}"#, sync(0)),
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
    fn no_error_shows_a_secret() {
        let name = r#""name":{"namespace":"a","name":"b"}"#;
        for line in [
            format!(r#"{{"put":{{"kind":"secret",{name},"users":"bob:5ec2e7"#),
            format!(r#"{{"put":{{"kind":"secret",{name},"ocsp":{{"users":"5ec2e7"}}}}}}"#),
            r#"{"put":{"kind":"ticketKey","name":"t","key":"5ec2e7","since":"5ec2e7"}}"#.to_owned(),
        ] {
            let mut replica = followed(&mut History::new("e".into(), model(&["a"])));
            let error = replica.line(line.as_bytes()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("about a secret") && !shown.contains("5ec2e7"), "{shown}");
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

    #[test]
    fn anothers_pod_and_a_newer_version_are_refused() {
        let mut replica = Replica::new("n1".into(), None);
        let start = r#"{"reset":{"epoch":"e","version":2}}"#;
        let pod = r#"{"put":{"kind":"pod","name":{"namespace":"a","name":"b"},"node":"n2"}}"#;
        let error = feed(&mut replica, format!("{start}\n{pod}").as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "a pod of node n2 came here");
        replica.begin();
        let error = replica.line(start.replace('2', "3").as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("it speaks version 3 of the feed"), "{error}");
    }

    #[test]
    fn an_edit_of_what_is_not_there_is_refused() {
        let key = r#""kind":"endpoints","key":{"namespace":"a","name":"b"}"#;
        for edit in [
            format!(r#"{{"edit":{{{key},"port":"x","at":0,"remove":0,"put":[]}}}}"#),
            format!(r#"{{"edit":{{{key},"port":"p","at":1,"remove":1,"put":[]}}}}"#),
            format!(r#"{{"edit":{{{key},"port":"p","at":0,"remove":{},"put":[]}}}}"#, usize::MAX),
            r#"{"edit":{"kind":"node","key":"a"}}"#.to_owned(),
        ] {
            let first = endpoints(&[&[1]]);
            let mut replica = followed(&mut History::new("e".into(), Arc::clone(&first)));
            assert!(
                feed(
                    &mut replica,
                    format!("{edit}\n{}", r#"{"sync":{"revision":2,"digest":{}}}"#).as_bytes()
                )
                .is_err(),
                "{edit}"
            );
            assert_eq!(replica.model(), Some(&first), "{edit}");
        }
        // Of a kind that is not known here it changes nothing here.
        let mut replica = followed(&mut History::new("e".into(), endpoints(&[&[1]])));
        feed(&mut replica, br#"{"edit":{"kind":"shape","key":"a","of":"later"}}"#).unwrap();
        assert_eq!(replica.skipped(), 1);
    }

    /// A model of Services with these endpoints.
    fn endpoints(services: &[&[u8]]) -> Arc<Model> {
        let endpoint = |last: &u8| Endpoint {
            address: [10, 0, 0, *last].into(),
            port: 80,
            node: None,
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        };
        let service = |(at, list): (usize, &&[u8])| {
            // Two Services of two ports, so that one step edits several lists of one object.
            let service = ObjectName::new("a", ["b", "c"][at % 2]);
            let ports = [("p", *list), ("q", &list[..list.len() / 2])]
                .map(|(port, list)| (port.to_owned(), list.iter().map(endpoint).collect()));
            Object::Endpoints(Endpoints { service, ports: ports.into() })
        };
        Arc::new(services.iter().enumerate().map(service).collect())
    }

    #[test]
    fn of_many_endpoints_one_that_changes_is_said_alone() {
        let all: Vec<u8> = (0..30).collect();
        let mut history = History::new("e".into(), endpoints(&[&all]));
        let mut next = all[1..].to_vec();
        next.push(200);
        history.push(endpoints(&[&next]));
        let lines = history.after(&of("n1"), 1).unwrap().lines();
        let lines = String::from_utf8(lines).unwrap();
        // Of port p the first goes and another comes last; of port q, half of them, the same.
        assert_eq!(lines.matches("edit").count(), 4, "{lines}");
        assert_eq!(lines.matches("address").count(), 2, "{lines}");
    }

    proptest! {
        #[test]
        fn endpoints_are_followed_by_whatever_steps(
            steps in vec(vec(proptest::collection::btree_set(0..40_u8, 0..30), 1..3), 1..8)
        ) {
            let step = |lists: &Vec<std::collections::BTreeSet<u8>>| {
                let lists: Vec<Vec<u8>> = lists.iter().map(|set| set.iter().copied().collect()).collect();
                endpoints(&lists.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            let mut history = History::new("e".into(), step(&steps[0]));
            let mut replica = followed(&mut history);
            for lists in &steps[1..] {
                let revision = history.revision();
                if history.push(step(lists)) {
                    feed(&mut replica, &history.after(&of("n1"), revision).unwrap().lines()).unwrap();
                }
                prop_assert_eq!(replica.model(), Some(&step(lists)));
            }
            // Who comes later gets the same.
            let mut late = followed(&mut history);
            while let Some(next) = history.after(&of("n1"), late.position().unwrap().revision) {
                feed(&mut late, &next.lines()).unwrap();
            }
            prop_assert_eq!(late.model(), replica.model());
        }
    }
}
