//! A folder of manifests as the source of the model.
//!
//! ```text
//! folder ─► document ─► store (last good state of each object) ─► pipeline ─► model
//! (texts)   (values      ▲                                        (allocate,
//!            with lines)  └ problems: file, line, object, field    convert)
//! ```
//!
//! One task waits for the folder to change, lets a burst of changes settle and reads everything
//! anew; only files whose text differs are parsed again. Whatever is wrong is reported once when it
//! appears and once when it is gone, and meanwhile the last good state of what it concerns stays,
//! across restarts, too.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fairway_feed::ModelReceiver;
use fairway_model::{Model, Node, ObjectName};
use ipnet::IpNet;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::allocate::{Allocator, Ranges};
use crate::kubernetes::{Kind, ObjectId, Objects};
use crate::pipeline::Pipeline;
use crate::problem::report;
pub use crate::problem::{Problem, Severity};
use folder::Listing;
use last_good::LastGoodFile;
pub(crate) use local::amend;
use store::Store;
use watcher::Watcher;

mod document;
mod folder;
mod last_good;
mod lint;
mod local;
mod resolver;
mod store;
mod watcher;

/// The file in the state folder that remembers who holds which address and node port.
const ALLOCATIONS: &str = "allocations.json";
/// The file in it that remembers the last good objects.
const LAST_GOOD: &str = "last-good.json";
/// The file in it that is locked by whoever uses it.
const LOCK: &str = "lock";
/// A burst of changes is over when this long nothing has changed, and nothing is open or removed...
const PAUSE: Duration = Duration::from_millis(5);
/// ...or when this long nothing has changed in any case...
const SETTLE: Duration = Duration::from_millis(50);
/// ...or when it has gone on for this long.
const BURST: Duration = Duration::from_millis(500);
/// How often the folder is read although nothing was said to have changed: some file systems never
/// say so.
const UNASKED: Duration = Duration::from_secs(30);
/// The same while something outside the manifests is wrong, such as a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// The service range of a cluster that does not say otherwise.
pub const DEFAULT_SERVICE_CIDR: &str = "10.96.0.0/12";
/// The node ports of a cluster that does not say otherwise.
pub const DEFAULT_NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// The DNS server's Service of a cluster that does not say otherwise.
pub fn default_resolver() -> ObjectName {
    ObjectName::new("kube-system", "kube-dns")
}

/// What to read, and what to give out.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of manifests; must be there.
    pub dir: PathBuf,
    /// The folder that remembers who holds which address and node port, and the last good state of
    /// what may be broken at the next start; made if need be, and used by one process at a time.
    pub state_dir: PathBuf,
    /// The ranges ClusterIPs come from, at most one a family; the first one's family is the
    /// default.
    pub service_cidrs: Vec<IpNet>,
    /// The range node ports come from.
    pub node_port_range: RangeInclusive<u16>,
    /// Set on a node that runs alone, without anybody who writes status.
    pub local: Option<LocalNode>,
    /// The Service of the DNS server, which is there although the folder has none: at the tenth address of
    /// each range, unless another Service asks for that.
    pub resolver: Option<ObjectName>,
}

/// A node that runs alone.
#[derive(Clone, Debug)]
pub struct LocalNode {
    /// Used unless the folder has a Node of that name.
    pub node: Node,
    /// The pods that were given addresses on it, always all of them; of those that come at once the
    /// last counts as the latest.
    pub pods: watch::Receiver<Vec<LocalPod>>,
}

/// A pod that was given addresses on a node that runs alone. A Pod of that name in the folder gets
/// them, is on that node and is ready, as far as its own status does not say otherwise. Of several
/// lives of one pod, as while a StatefulSet replaces it, the folder's is the one with its uid or,
/// if it says none, the one that came last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name in it.
    pub name: String,
    /// Of this life of it; empty if not known.
    pub uid: String,
    /// At most one a family.
    pub addresses: Vec<IpAddr>,
}

/// Why reading cannot even begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be read.
    #[error("manifest folder {}: cannot be read", .0.display())]
    Folder(PathBuf, #[source] io::Error),
    /// It is something else.
    #[error("manifest folder {}: is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// It cannot be watched.
    #[error("manifest folder {}: cannot be watched; is fs.inotify.max_user_watches too low?", .0.display())]
    Watch(PathBuf, #[source] notify::Error),
    /// The state folder cannot be used.
    #[error("state folder {}: cannot be used", .0.display())]
    State(PathBuf, #[source] io::Error),
    /// Somebody else gives out addresses from it.
    #[error("state folder {}: in use by another process", .0.display())]
    Busy(PathBuf),
    /// The ranges make no sense.
    #[error("{0}")]
    Ranges(String),
    /// Who holds which address cannot be told.
    #[error(
        "allocations {}: {reason}; it remembers which addresses and node ports Services hold: \
         bring it back, or remove it to have them given out anew", .file.display()
    )]
    Allocations {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A running source. Its task ends when it is dropped.
#[derive(Debug)]
pub struct Source {
    /// The model, once the folder has been read completely for the first time.
    pub model: ModelReceiver,
    /// All that is wrong at the moment, in order of file and line.
    pub problems: watch::Receiver<Vec<Problem>>,
    _task: JoinSet<()>,
    /// Locked as long as this is.
    _state: File,
}

/// Starts to read and watch the folder. Must be called within a Tokio runtime.
pub fn start(options: Options) -> Result<Source, Error> {
    let Options { dir, state_dir, service_cidrs, node_port_range, local, resolver } = options;
    let ranges = Ranges::new(service_cidrs, node_port_range).map_err(Error::Ranges)?;
    let metadata = std::fs::metadata(&dir).map_err(|error| Error::Folder(dir.clone(), error))?;
    if !metadata.is_dir() {
        return Err(Error::NotAFolder(dir));
    }
    let state = lock(&state_dir)?;
    let file = state_dir.join(ALLOCATIONS);
    let allocator = Allocator::load(ranges, &file)
        .map_err(|reason| Error::Allocations { file: file.clone(), reason })?;
    let watcher = Watcher::new(&dir).map_err(|error| Error::Watch(dir.clone(), error))?;

    let (last_good, damaged) = LastGoodFile::load(state_dir.join(LAST_GOOD), &dir);
    let accepted = last_good.remembered().accepted.clone();
    let mut pipeline = Pipeline::new(allocator, Some(file), accepted);
    pipeline.ingresses.remember(last_good.remembered().good_ingresses());
    let reader = Reader {
        store: Store::seeded(last_good.remembered().objects.clone()),
        pipeline,
        last_good,
        damaged,
        begun: false,
        watcher,
        dir,
        resolver,
    };
    let (publish, model) = watch::channel(None);
    let (shown, problems) = watch::channel(Vec::new());
    let mut task = JoinSet::new();
    task.spawn(run(reader, local, publish, shown));
    Ok(Source { model, problems, _task: task, _state: state })
}

/// What a single reading found.
#[derive(Debug)]
pub struct Checked {
    /// The model these manifests make, with addresses as if given out for the first time.
    pub model: Model,
    /// All that is wrong, in order of file and line.
    pub problems: Vec<Problem>,
}

/// Reads files and folders once, together, and remembers nothing.
pub fn check(
    paths: &[PathBuf],
    service_cidrs: Vec<IpNet>,
    node_port_range: RangeInclusive<u16>,
) -> Result<Checked, Error> {
    read(paths, service_cidrs, node_port_range, |_| ())
}

/// What is only likely to be a mistake in files and folders, and what is wrong at that moment with
/// certificates that Ingresses name, in order of file and line.
pub fn lint(paths: &[PathBuf], now: SystemTime) -> Result<Vec<Problem>, Error> {
    let mut problems = lint::lint(&list(paths)?, now);
    problems.sort();
    Ok(problems)
}

/// As [`check`], of the objects as `amend` leaves them.
pub(crate) fn read(
    paths: &[PathBuf],
    service_cidrs: Vec<IpNet>,
    node_port_range: RangeInclusive<u16>,
    amend: impl FnOnce(&mut Objects),
) -> Result<Checked, Error> {
    let ranges = Ranges::new(service_cidrs, node_port_range).map_err(Error::Ranges)?;
    let listing = list(paths)?;
    let mut store = Store::default();
    let mut pipeline = Pipeline::new(Allocator::new(ranges), None, BTreeMap::new());
    // Whoever checks manifests also looks for what is likely to be a mistake, with the Secret's own lines.
    pipeline.ingresses.certificates_apart = true;
    let problems = store.update(listing);
    let mut objects = store.objects();
    amend(&mut objects);
    let Digest { model, problems, .. } = digest(&store, objects, &mut pipeline, problems);
    Ok(Checked { model, problems })
}

fn list(paths: &[PathBuf]) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    for path in paths {
        folder::read(path, &mut listing).map_err(|error| Error::Folder(path.clone(), error))?;
    }
    Ok(listing)
}

fn lock(state_dir: &Path) -> Result<File, Error> {
    let unusable = |error| Error::State(state_dir.to_owned(), error);
    std::fs::create_dir_all(state_dir).map_err(unusable)?;
    let file = File::create(state_dir.join(LOCK)).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Busy(state_dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

/// The state of the task, handed to a blocking thread for each round and back.
struct Reader {
    dir: PathBuf,
    store: Store,
    pipeline: Pipeline,
    last_good: LastGoodFile,
    /// That the file of the last good objects could not be read; said once, since it is replaced.
    damaged: Option<Problem>,
    /// The folder was seen to hold something, or there was nothing to lose.
    begun: bool,
    watcher: Watcher,
    /// See [`Options::resolver`].
    resolver: Option<ObjectName>,
}

/// What came of one reading.
struct Round {
    /// `None` to leave the last one published.
    model: Option<Model>,
    problems: Vec<Problem>,
    /// Something outside the manifests is wrong: try again soon, without being told.
    retry: bool,
}

async fn run(
    mut reader: Reader,
    mut local: Option<LocalNode>,
    publish: watch::Sender<Option<Arc<Model>>>,
    shown: watch::Sender<Vec<Problem>>,
) {
    let changes = reader.watcher.changes();
    let mut pods = Vec::new();
    loop {
        let registered = local.as_mut().map(|local| {
            pods = local::by_arrival(&pods, &local.pods.borrow_and_update());
            (local.node.clone(), pods.clone())
        });
        let round = tokio::task::spawn_blocking(move || {
            let round = reader.round(registered.as_ref());
            (reader, round)
        });
        let Ok((back, round)) = round.await else {
            // It panicked, which has been printed, or the runtime is going down. The last model
            // stays published.
            return;
        };
        reader = back;
        let retry = round.as_ref().map_or(true, |round| round.retry);
        match round {
            Ok(round) => {
                report(&shown, round.problems);
                if let Some(model) = round.model {
                    publish.send_if_modified(|current| {
                        let differs = current.as_deref() != Some(&model);
                        if differs {
                            *current = Some(Arc::new(model));
                        }
                        differs
                    });
                }
            }
            Err(problem) => report(&shown, vec![problem]),
        }

        let something = async {
            tokio::select! {
                () = changes.notified() => {}
                () = registration(&mut local) => {}
            }
        };
        // Nothing heard in all that time is a reason to look, too.
        let heard = timeout(if retry { RETRY } else { UNASKED }, something).await;
        if heard.is_ok() {
            let end = Instant::now() + BURST;
            let settled = async {
                loop {
                    let pause = if changes.are_complete() { PAUSE } else { SETTLE };
                    if timeout(pause, changes.notified()).await.is_err() {
                        break;
                    }
                }
            };
            // Settled or not, it is time.
            let _ = timeout_at(end, settled).await;
            changes.forget();
        }
    }
}

/// Waits for a pod to come or go on a node that runs alone; for ever elsewhere.
async fn registration(local: &mut Option<LocalNode>) {
    if let Some(local) = local
        && local.pods.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

impl Reader {
    fn round(&mut self, local: Option<&(Node, Vec<LocalPod>)>) -> Result<Round, Problem> {
        let gone = |error: &dyn std::fmt::Display| {
            let message = format!("cannot read the folder: {error}; the last good state stays");
            Problem::in_file(&self.dir, message)
        };
        let watched = self.watcher.renew(&self.dir);
        let mut listing = Listing::default();
        read_folder(&self.dir, &mut listing).map_err(|error| gone(&error))?;
        let mut problems = self.store.update(listing);
        let mut retry = watched.is_err();
        problems.extend(watched.err().map(|error| {
            let message =
                format!("cannot watch the folder, reading it every second instead: {error}");
            Problem::in_file(&self.dir, message)
        }));
        problems.extend(self.damaged.clone());
        if !self.begun && self.store.is_empty() && self.remembers() {
            // What it forgot in this reading is still to be fallen back on.
            self.store = Store::seeded(self.last_good.remembered().objects.clone());
            problems.push(self.nothing_there());
            return Ok(Round { model: None, problems, retry: true });
        }
        self.begun = true;
        self.damaged = None;
        let mut objects = self.store.objects();
        if let Some(name) = &self.resolver {
            resolver::add(&mut objects, name, self.pipeline.service_cidrs());
        }
        if let Some((node, pods)) = local {
            local::amend(&mut objects, &node.name, pods);
        }
        let mut digest = digest(&self.store, objects, &mut self.pipeline, problems);
        if let Some((node, _)) = local
            && !digest.model.nodes.contains_key(&node.name)
        {
            digest.model.nodes.insert(node.clone());
        }
        retry |= digest.retry;
        let (accepted, ingresses) = (self.pipeline.accepted(), self.pipeline.ingresses.accepted());
        if let Err(problem) = self.last_good.save(self.store.good(), accepted, ingresses) {
            digest.problems.push(problem);
            retry = true;
        }
        Ok(Round { model: Some(digest.model), problems: digest.problems, retry })
    }

    /// Whether an earlier process left anything behind that an empty folder would wipe out.
    fn remembers(&self) -> bool {
        !self.pipeline.holds_nothing_but(self.resolver.as_ref())
            || !self.last_good.remembered().objects.is_empty()
    }

    /// What a folder looks like before it is mounted.
    fn nothing_there(&self) -> Problem {
        let message = format!(
            "there is nothing in the folder, but there was before the start; is it mounted? \
             Waiting for it; if it is meant to be empty, remove {ALLOCATIONS} and {LAST_GOOD} from \
             the state folder and start anew"
        );
        Problem::in_file(&self.dir, message)
    }
}

fn read_folder(dir: &Path, listing: &mut Listing) -> io::Result<()> {
    if !std::fs::metadata(dir)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    folder::read(dir, listing)
}

/// What came of the objects that were read.
struct Digest {
    model: Model,
    problems: Vec<Problem>,
    /// As in [`Round`].
    retry: bool,
}

/// What the objects of `store` make, with the problems found so far and those found now.
fn digest(
    store: &Store,
    objects: Objects,
    pipeline: &mut Pipeline,
    mut problems: Vec<Problem>,
) -> Digest {
    let service =
        |name: &fairway_model::ObjectName| ObjectId { kind: Kind::Service, name: name.clone() };
    let outcome = pipeline.run_all(&objects, |name| store.may_exist(&service(name)));
    for (name, errors) in &outcome.refused {
        let id = service(name);
        problems.extend(errors.iter().map(|error| store.locate(&id, error, Severity::Error)));
    }
    let contradictions = outcome.contradictions.iter();
    problems.extend(contradictions.map(|(id, error)| store.locate(id, error, Severity::Error)));
    let warnings = outcome.warnings.iter();
    problems.extend(warnings.map(|(id, warning)| store.locate(id, warning, Severity::Warning)));
    let retry = outcome.unsaved.is_some();
    problems.extend(outcome.unsaved.map(Problem::general));
    problems.sort();
    Digest { model: outcome.model, problems, retry }
}
