//! What the files have said so far: the last good state of every object in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::document::{self, Located};
use super::folder::Listing;
use crate::decode::{Broken, InForce, NEVER_GOOD, decode, identify, settle, some_name, stand_in};
use crate::kubernetes::{FieldError, Kind, METALLB, Object, ObjectId, Objects};
use crate::problem::{Problem, Severity};

/// See the module.
#[derive(Default)]
pub(super) struct Store {
    files: BTreeMap<PathBuf, File>,
    good: BTreeMap<ObjectId, Good>,
    /// What is in force instead of objects that have no good state.
    stand_ins: BTreeMap<ObjectId, Good>,
    /// Objects that are there, readable or not, and where.
    present: BTreeMap<ObjectId, Origin>,
    /// Objects that were taken out of files that could be read, since some file cannot be: whatever
    /// that one holds, it is not them.
    gone: BTreeSet<ObjectId>,
    /// Folders whose contents are not known.
    unknown: Vec<PathBuf>,
}

/// A file as it was last read.
struct File {
    text: String,
    contents: Contents,
}

/// What a text says.
#[derive(Default)]
struct Contents {
    entries: Vec<Entry>,
    problems: Vec<Problem>,
    /// Part of it could not even be named, so an object that is missing may still be there.
    opaque: bool,
}

/// An object that at least says which one it is.
struct Entry {
    id: ObjectId,
    /// Document of the file, from 0, and the path of the object within it.
    document: usize,
    prefix: String,
    line: u64,
    object: Result<Object, Broken>,
    /// Of each of its errors.
    lines: Vec<u64>,
}

/// An object's last good state, and the file that had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Good {
    pub(super) object: Object,
    pub(super) file: PathBuf,
}

#[derive(Clone)]
struct Origin {
    file: PathBuf,
    document: usize,
    prefix: String,
}

impl Store {
    /// One that takes `good` for the last good states until it has read the folder: of those it
    /// keeps what is there and cannot be read.
    pub(super) fn seeded(good: BTreeMap<ObjectId, Good>) -> Self {
        Self { good, ..Self::default() }
    }

    /// Takes in what the folder holds now and says what is wrong with it. What is wrong leaves the
    /// last good state of its objects in place.
    pub(super) fn update(&mut self, listing: Listing) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (folder, reason) in &listing.unknown {
            let message = format!("cannot read the folder: {reason}");
            problems.push(Problem::in_file(folder, message));
        }
        self.take_files(listing);
        problems.extend(self.files.values().flat_map(|file| file.contents.problems.clone()));
        self.take_objects(&mut problems);
        problems
    }

    /// The last good state of every object, and what stands in for those that have none.
    pub(super) fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        for (id, good) in self.good.iter().chain(&self.stand_ins) {
            objects.insert(id.name.clone(), good.object.clone());
        }
        objects
    }

    /// The same with the files that had them.
    pub(super) fn good(&self) -> &BTreeMap<ObjectId, Good> {
        &self.good
    }

    /// Whether nothing was read and nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.present.is_empty() && self.good.is_empty()
    }

    /// Whether an object of that name may be there, also if it cannot be read.
    pub(super) fn may_exist(&self, id: &ObjectId) -> bool {
        self.present.contains_key(id) || (self.is_opaque() && !self.gone.contains(id))
    }

    /// A problem with an object that showed only beside the others.
    pub(super) fn locate(&self, id: &ObjectId, error: &FieldError, severity: Severity) -> Problem {
        let origin = self.present.get(id);
        let line = origin.and_then(|origin| {
            let text = &self.files.get(&origin.file)?.text;
            let located = document::split(text).get(origin.document)?.read().ok()??;
            Some(located.line_of(&format!("{}{}", origin.prefix, error.field)))
        });
        Problem {
            file: origin.map(|origin| origin.file.clone()),
            line,
            object: Some(id.to_string()),
            field: Some(error.field.clone()).filter(|field| !field.is_empty()),
            message: error.message.clone(),
            severity,
        }
    }

    fn take_files(&mut self, listing: Listing) {
        let Listing { mut files, unknown } = listing;
        self.unknown = unknown.into_keys().collect();
        let lost = |path: &Path| self.unknown.iter().any(|folder| path.starts_with(folder));
        self.files.retain(|path, _| files.contains_key(path) || lost(path));
        // Held something before this process began, as far as this process has not read it.
        let held: BTreeSet<_> = self.good.values().map(|good| good.file.clone()).collect();
        for (path, text) in std::mem::take(&mut files) {
            let old = self.files.get_mut(&path);
            match (text, old) {
                // Byte for byte what was read before, and read without a problem then.
                (Ok(text), Some(old)) if old.text == text && !old.contents.opaque => {}
                // Somebody is about to write it, or meant to remove it; both have better ways.
                (Ok(text), old) if text.is_empty() && (old.is_some() || held.contains(&path)) => {
                    let contents = Contents::unreadable(
                        &path,
                        "the file is empty; what it held stays in force until the file has \
                         contents again or is removed",
                    );
                    self.keep_text(path, contents);
                }
                (Ok(text), _) => {
                    let contents = parse(&path, &text);
                    self.files.insert(path, File { text, contents });
                }
                (Err(reason), _) => {
                    let contents =
                        Contents::unreadable(&path, &format!("cannot read it: {reason}"));
                    self.keep_text(path, contents);
                }
            }
        }
    }

    /// Changes what is known of a file whose text cannot be had.
    fn keep_text(&mut self, path: PathBuf, contents: Contents) {
        let text = self.files.remove(&path).map(|old| old.text).unwrap_or_default();
        self.files.insert(path, File { text, contents });
    }

    fn take_objects(&mut self, problems: &mut Vec<Problem>) {
        let mut before = std::mem::take(&mut self.good);
        let mut stood_in = std::mem::take(&mut self.stand_ins);
        let mut first = BTreeMap::<&ObjectId, (&Path, &Entry)>::new();
        let entries = self.files.iter().flat_map(|(path, file)| {
            let entries = file.contents.entries.iter();
            entries.map(move |entry| (path.as_path(), entry))
        });
        for (path, entry) in entries {
            if let Some((other, winner)) = first.get(&entry.id) {
                // Most are for others, who may well have several of one name.
                if entry.id.kind == Kind::ConfigMap {
                    continue;
                }
                problems.push(Problem {
                    line: Some(entry.line),
                    object: Some(entry.id.to_string()),
                    ..Problem::in_file(
                        path,
                        format!("it is also in {}:{}, which wins", other.display(), winner.line),
                    )
                });
            } else {
                first.insert(&entry.id, (path, entry));
            }
        }
        self.present.clear();
        for (id, (path, entry)) in first {
            let origin = Origin {
                file: path.to_owned(),
                document: entry.document,
                prefix: entry.prefix.clone(),
            };
            self.present.insert(id.clone(), origin);
            let last = before.remove(id);
            stood_in.remove(id);
            let problem = |(error, line): (&FieldError, u64)| Problem {
                file: Some(path.to_owned()),
                line: Some(line),
                object: Some(id.to_string()),
                field: Some(error.field.clone()).filter(|field| !field.is_empty()),
                message: error.message.clone(),
                severity: Severity::Error,
            };
            if let Err(Broken { errors, .. }) = &entry.object {
                problems.extend(errors.iter().zip(entry.lines.iter().copied()).map(problem));
            }
            let file = path.to_owned();
            match settle(&entry.object, last.map(|good| good.object)) {
                InForce::Good(object) => {
                    self.good.insert(id.clone(), Good { object, file });
                }
                InForce::StandIn(object) => {
                    if id.kind.is_policy() {
                        problems.push(problem((&FieldError::new("", NEVER_GOOD), entry.line)));
                    }
                    self.stand_ins.insert(id.clone(), Good { object, file });
                }
                InForce::Nothing => {}
            }
        }
        // What no file names any more is gone, unless its file cannot be read in full.
        let unread = |good: &Good| match self.files.get(&good.file) {
            Some(file) => file.contents.opaque,
            None => self.unknown.iter().any(|folder| good.file.starts_with(folder)),
        };
        for (id, good) in before {
            if unread(&good) {
                self.good.insert(id, good);
            } else {
                self.gone.insert(id);
            }
        }
        self.stand_ins.extend(stood_in.into_iter().filter(|(_, stand_in)| unread(stand_in)));
        if self.is_opaque() {
            self.gone.retain(|id| !self.good.contains_key(id));
        } else {
            self.gone.clear();
        }
    }

    /// Whether there is something that cannot even be named.
    fn is_opaque(&self) -> bool {
        !self.unknown.is_empty() || self.files.values().any(|file| file.contents.opaque)
    }
}

impl Contents {
    fn unreadable(path: &Path, message: &str) -> Self {
        Self { problems: vec![Problem::in_file(path, message)], opaque: true, ..Self::default() }
    }

    /// Part of the file cannot be named.
    fn lost(&mut self, path: &Path, line: Option<u64>, field: Option<&str>, message: String) {
        self.opaque = true;
        self.problems.push(Problem {
            line,
            field: field.map(str::to_owned),
            ..Problem::in_file(path, message)
        });
    }

    fn take(&mut self, path: &Path, document: usize, located: &Located) {
        let kind = located.get("kind").and_then(Located::as_str);
        let list = kind.and_then(|kind| kind.strip_suffix("List"));
        let items = located.get("items").and_then(Located::items);
        let (Some(list), Some(items)) = (list, items) else {
            let prefix = String::new();
            self.take_object(path, document, prefix, located, None);
            return;
        };
        // The items of a PodList need not say that they are Pods.
        let version = located.get("apiVersion").and_then(Located::as_str);
        let of_list = Some((version.unwrap_or_default(), list)).filter(|_| !list.is_empty());
        for (index, item) in items.iter().enumerate() {
            let prefix = format!("items[{index}].");
            self.take_object(path, document, prefix, item, of_list);
        }
    }

    fn take_object(
        &mut self,
        path: &Path,
        document: usize,
        prefix: String,
        located: &Located,
        of_list: Option<(&str, &str)>,
    ) {
        let text = |field: &str| located.get(field).and_then(Located::as_str);
        let line = Some(located.line());
        let version = text("apiVersion").or(of_list.map(|(version, _)| version));
        let Some(kind) = text("kind").or(of_list.map(|(_, kind)| kind)) else {
            let message = "not a Kubernetes object: it says no kind".to_owned();
            return self.lost(path, line, Some("kind"), message);
        };
        let Some(kind) = Kind::of(version.unwrap_or_default(), kind) else {
            let version = version.unwrap_or_default();
            if let Some(warning) =
                not_a_policy(version, kind).or_else(|| not_announced(version, kind))
            {
                let severity = Severity::Warning;
                let problem = Problem { line, severity, ..Problem::in_file(path, warning) };
                self.problems.push(problem);
                return;
            }
            tracing::debug!(file = %path.display(), kind, "ignored: nothing for the network in it");
            return;
        };
        let metadata = located.get("metadata");
        let text = |field: &str| metadata.and_then(|metadata| metadata.get(field)?.as_str());
        let value = located.to_value();
        let line = located.line();
        let id = match identify(kind, text) {
            Ok(id) => id,
            // Nobody can name it, so that it does not matter here.
            Err(_) if matches!(kind, Kind::Secret | Kind::ConfigMap) => return,
            Err((field, message)) => {
                let of_field = Some(located.line_of(field));
                self.lost(path, of_field, Some(field), format!("{kind}: {message}"));
                if let Some(object) = stand_in(kind, &value) {
                    let id = ObjectId { kind, name: some_name(kind, text) };
                    let object = Err(Broken { errors: Vec::new(), stand_in: Some(object) });
                    let lines = Vec::new();
                    self.entries.push(Entry { id, document, prefix, line, object, lines });
                }
                return;
            }
        };
        let object = decode(kind, value);
        let errors = object.as_ref().err().map(|broken| broken.errors.as_slice());
        let errors = errors.unwrap_or_default().iter();
        let lines = errors.map(|error| located.line_of(&error.field)).collect();
        self.entries.push(Entry { id, document, prefix, line, object, lines });
    }
}

fn parse(path: &Path, text: &str) -> Contents {
    let mut contents = Contents::default();
    for (index, document) in document::split(text).iter().enumerate() {
        match document.read() {
            Ok(Some(located)) => contents.take(path, index, &located),
            Ok(None) => {}
            Err(error) => contents.lost(path, error.line, None, error.message),
        }
    }
    contents
}

/// What says how others are to be told of addresses, by a way that there is not here.
fn not_announced(version: &str, kind: &str) -> Option<String> {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    (group == METALLB).then(|| {
        format!(
            "not supported: a {kind} changes nothing here; load balancers' addresses are announced by ARP \
             and neighbour discovery alone (L2Advertisement)"
        )
    })
}

/// What looks like a policy that is known here, but is not.
fn not_a_policy(version: &str, kind: &str) -> Option<String> {
    let groups = ["networking.k8s.io/v1", "policy.networking.k8s.io/v1alpha2"];
    let known =
        groups.iter().find(|version| Kind::of(version, kind).is_some_and(Kind::is_policy))?;
    Some(format!(
        "not in force: a {kind} of \"{version}\" is nothing that is known here; is it one of {known}?"
    ))
}
