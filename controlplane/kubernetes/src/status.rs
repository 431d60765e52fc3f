//! What is written, by the leader alone: of nodes their ranges of pods where the cluster gives none, that
//! their network is there, and where flannel's nodes find them; of Services and Ingresses where they can be
//! reached.
//!
//! What is to be written is a function of the objects as they are. One that seems to want something is read
//! anew, and written under the version that was read; if somebody else was faster, it is read again, later. A range of
//! pods cannot be taken back once a node has it, so which node gets which is first noted in the Lease: two
//! leaders can never give out the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fairway_controlplane::flannel;
use fairway_controlplane::kubernetes::{Kind, NETWORK_UNAVAILABLE, Node, Object, ObjectId};
use fairway_controlplane::live;
use fairway_controlplane::publish::{Statuses, said};
use http::Method;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::follow::jitter;
use crate::lease::Lease;
pub use crate::lease::Options as LeaseOptions;
pub use crate::ranges::NodeRanges;
use crate::rest::{self, Error};
use crate::source::Nodes;

const NODES: &str = "/api/v1/nodes";
/// How many pauses long a node is left alone after it was written about...
const PATIENCE: u32 = 100;
/// ...and another object, whose owner may have changed it in the meantime.
const SHORT_PATIENCE: u32 = 10;
/// Nodes that ranges are noted for at a time.
const BATCH: usize = 200;
/// Nodes a page.
const PAGE: usize = 500;
/// The longest pause before a node is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who is the leader.
    pub lease: LeaseOptions,
    /// Ranges for nodes that have none.
    pub ranges: NodeRanges,
    /// Nodes without flannel's annotations get them, so that nodes that still run flannel reach them.
    pub flannel: bool,
    /// Between two writes, and after a first error.
    pub pause: Duration,
    /// For an answer.
    pub answer: Duration,
}

impl Options {
    /// Ranges and annotations are left alone; ten writes a second at most.
    pub fn new(lease: LeaseOptions) -> Self {
        Self {
            lease,
            ranges: NodeRanges::default(),
            flannel: false,
            pause: Duration::from_millis(100),
            answer: Duration::from_secs(5),
        }
    }
}

/// A replica that may become the leader. It stops when it is dropped.
#[derive(Debug)]
pub struct Writer {
    /// Whether this replica is the leader.
    pub leads: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Stops, and lets another replica lead at once.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // It ends by itself: each of its requests is bounded in time.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts to apply for being the leader, and to write while that is so. Must be called within a Tokio runtime.
pub fn start(
    client: Client,
    nodes: watch::Receiver<Option<Nodes>>,
    statuses: watch::Receiver<Arc<Statuses>>,
    options: Options,
) -> Writer {
    let (lead, leads) = watch::channel(false);
    let (stop, stopped) = watch::channel(false);
    let lease = Lease::new(client.clone(), options.lease.clone());
    let state = State {
        client,
        options,
        lease,
        nodes,
        statuses,
        lead,
        open: BTreeMap::new(),
        settled: BTreeMap::new(),
        full: false,
    };
    Writer { leads, stop, task: tokio::spawn(state.run(stopped)) }
}

struct State {
    client: Client,
    options: Options,
    lease: Lease,
    nodes: watch::Receiver<Option<Nodes>>,
    statuses: watch::Receiver<Arc<Statuses>>,
    lead: watch::Sender<bool>,
    /// Objects that want something.
    open: BTreeMap<Target, Try>,
    /// When objects were last written about.
    settled: BTreeMap<Target, Instant>,
    /// There was no range left; said once.
    full: bool,
}

/// What is written about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Node(String),
    /// Of its status, where it can be reached.
    Other(ObjectId),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Other(id) => id.fmt(f),
        }
    }
}

/// When an object is tried next, and how often it was in vain.
struct Try {
    due: Instant,
    failures: u32,
}

impl State {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut renewal = Instant::now();
        loop {
            if Instant::now() >= renewal {
                let kept = self.lease.keep().await;
                renewal = Instant::now() + jitter(self.options.lease.renewal);
                self.tell(kept.err().as_ref());
            }
            let mut next = renewal;
            if self.lease.is_held() {
                self.look();
                next = next.min(self.work().await);
            } else {
                self.open.clear();
                self.nodes.mark_changed();
                self.statuses.mark_changed();
            }
            self.tell(None);
            tokio::select! {
                () = sleep_until(next) => {}
                Ok(()) = self.nodes.changed(), if self.lease.is_held() => {}
                Ok(()) = self.statuses.changed(), if self.lease.is_held() => {}
                stop = stopped.changed() => {
                    if stop.is_ok() {
                        self.lease.release().await;
                    }
                    return;
                }
            }
        }
    }

    fn tell(&self, error: Option<&Error>) {
        let now = self.lease.is_held();
        let name = &self.options.lease.identity;
        if self.lead.send_if_modified(|leads| std::mem::replace(leads, now) != now) {
            match now {
                true => tracing::info!(name, "leads: writes status"),
                false => tracing::info!(name, "does not lead any more"),
            }
        }
        if let Some(error) = error.filter(|error| error.code() != Some(409)) {
            tracing::warn!(%error, "cannot keep the lease; trying again");
        }
    }

    /// Finds objects that want something.
    fn look(&mut self) {
        let nodes = self.nodes.borrow_and_update().clone();
        let Some(nodes) = nodes else { return };
        let statuses = self.statuses.borrow_and_update().clone();
        let of_nodes =
            nodes.iter().filter(|(name, node)| wants_anything(name, node, &self.options));
        let wanting: BTreeSet<_> = of_nodes
            .map(|(name, _)| Target::Node(name.clone()))
            .chain(statuses.keys().cloned().map(Target::Other))
            .collect();
        let pause = self.options.pause;
        let rest = |target: &Target| match target {
            Target::Node(_) => pause * PATIENCE,
            Target::Other(_) => pause * SHORT_PATIENCE,
        };
        let now = Instant::now();
        self.open.retain(|target, _| wanting.contains(target));
        self.settled.retain(|target, at| match target {
            Target::Node(name) => nodes.contains_key(name),
            Target::Other(_) => now < *at + rest(target),
        });
        for target in wanting {
            // Where somebody else wants it otherwise, both are not to write all the time.
            let last = self.settled.get(&target).map(|at| *at + rest(&target));
            let due = last.unwrap_or(now).max(now);
            self.open.entry(target).or_insert(Try { due, failures: 0 });
        }
    }

    /// Tries one object that is due; says when to come again.
    async fn work(&mut self) -> Instant {
        let now = Instant::now();
        let far = now + LONGEST_PAUSE;
        let due =
            self.open.iter().filter(|(_, of)| of.due <= now).map(|(target, _)| target.clone());
        let Some(target) = due.min() else {
            return self.open.values().map(|of| of.due).min().unwrap_or(far);
        };
        let settled = match &target {
            Target::Node(name) => self.settle(name).await,
            Target::Other(id) => self.publish(id).await,
        };
        let failed = settled.err();
        let pause = self.options.pause;
        if failed.is_none() {
            self.settled.insert(target.clone(), Instant::now());
        }
        if let Some(of) = self.open.get_mut(&target) {
            let waits = match (&failed, &target) {
                // Until the objects are seen as they are now.
                (None, Target::Node(_)) => LONGEST_PAUSE,
                (None, Target::Other(_)) => pause * SHORT_PATIENCE,
                (Some(error), _) if error.code() == Some(409) => pause,
                (Some(error), _) => {
                    of.failures += 1;
                    let doubled = pause * 2u32.saturating_pow(of.failures.min(16));
                    doubled.min(LONGEST_PAUSE).max(error.again().unwrap_or_default())
                }
            };
            of.due = Instant::now() + jitter(waits);
        }
        if let Some(error) = failed.filter(|error| error.code() != Some(409)) {
            tracing::warn!(object = %target, %error, "cannot be written about; trying again later");
        }
        Instant::now() + pause
    }

    /// Reads the node and writes what is to be written.
    async fn settle(&mut self, name: &str) -> Result<(), Error> {
        let path = format!("{NODES}/{name}");
        let (node, meta) = match self.read(&path).await {
            Err(error) if error.code() == Some(404) => return Ok(()),
            read => read?,
        };
        let mut ranges = Vec::new();
        if wants_range(&node, &self.options) {
            ranges = self.range_for(name).await?;
        }
        let mut version = meta;
        if let Some(mut patch) = node_patch(name, &node, &ranges, &self.options) {
            patch["metadata"]["resourceVersion"] = version["resourceVersion"].clone();
            patch["metadata"]["uid"] = version["uid"].clone();
            let written = self.write(&path, "application/merge-patch+json", &patch).await?;
            version = written["metadata"].clone();
        }
        if let Some(mut patch) = status_patch(&node, !ranges.is_empty()) {
            patch["metadata"] =
                json!({"resourceVersion": version["resourceVersion"], "uid": version["uid"]});
            let path = format!("{path}/status");
            self.write(&path, "application/strategic-merge-patch+json", &patch).await?;
        }
        Ok(())
    }

    /// Reads a Service or an Ingress, and writes where it can be reached if it does not say so.
    async fn publish(&mut self, id: &ObjectId) -> Result<(), Error> {
        let Some(points) = self.statuses.borrow().get(id).cloned() else { return Ok(()) };
        let collection = match id.kind {
            Kind::Service => "/api/v1",
            _ => "/apis/networking.k8s.io/v1",
        };
        let plural = if id.kind == Kind::Service { "services" } else { "ingresses" };
        let path =
            format!("{collection}/namespaces/{}/{plural}/{}", id.name.namespace, id.name.name);
        let text = match rest::get(&self.client, &path, self.options.answer).await {
            Err(error) if error.code() == Some(404) => return Ok(()),
            got => got?,
        };
        let object: Value = rest::decode(&text)?;
        let version = object["metadata"].clone();
        let found = live::read(id.kind, object).ok().and_then(|read| read.into_object().ok());
        let found = found.as_ref().and_then(said);
        if found.ok_or_else(|| Error::Nonsense(format!("{id} cannot be read")))? == points {
            return Ok(());
        }
        // A list is replaced as a whole; without one, the field goes.
        let ingress = if points.is_empty() { Value::Null } else { points.into() };
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}},
            "metadata": {"resourceVersion": version["resourceVersion"], "uid": version["uid"]}});
        self.write(&format!("{path}/status"), "application/merge-patch+json", &patch).await?;
        Ok(())
    }

    async fn read(&self, path: &str) -> Result<(Arc<Node>, Value), Error> {
        let text = rest::get(&self.client, path, self.options.answer).await?;
        let object: Value = rest::decode(&text)?;
        let metadata = object["metadata"].clone();
        Ok((node_of(object)?, metadata))
    }

    async fn write(&self, path: &str, kind: &str, patch: &Value) -> Result<Value, Error> {
        if !self.lease.is_held() {
            return Err(Error::Nonsense("the lease is not held any more".into()));
        }
        let limit = self.options.answer;
        rest::write(&self.client, Method::PATCH, path, (kind, patch), limit).await
    }

    /// The ranges that are noted for a node; if there are none, they are noted for it and others first.
    async fn range_for(&mut self, name: &str) -> Result<Vec<IpNet>, Error> {
        let mut reserved = self.lease.reserved();
        if let Some(ranges) = reserved.get(name) {
            return Ok(ranges.clone());
        }
        let nodes = self.all_nodes().await?;
        reserved.retain(|name, _| nodes.get(name).is_some_and(|node| own_ranges(node).is_empty()));
        let wanting = nodes.iter().filter(|(name, node)| {
            wants_range(node, &self.options) && !reserved.contains_key(*name)
        });
        // The one that was asked for is first: it may be one of many.
        let mut wanting: Vec<_> = wanting.map(|(name, _)| name.clone()).collect();
        wanting.sort_by_key(|other| other != name);
        wanting.truncate(BATCH);
        let taken = nodes.values().flat_map(|node| own_ranges(node));
        let taken = taken.chain(reserved.values().flatten().copied());
        let chosen = self.options.ranges.choose(taken, wanting.len());
        let full = chosen.len() < wanting.len();
        if full && !self.full {
            let left = wanting.len() - chosen.len();
            tracing::error!(
                nodes = left,
                "no range of pods is left for nodes; --cluster-cidr is used up"
            );
        }
        self.full = full;
        reserved.extend(wanting.into_iter().zip(chosen));
        self.lease.reserve(&reserved).await?;
        let found = reserved.remove(name);
        found.ok_or_else(|| Error::Nonsense("no range of pods is left".into()))
    }

    /// All nodes as they are now, whatever was heard of them.
    async fn all_nodes(&self) -> Result<BTreeMap<String, Arc<Node>>, Error> {
        let mut all = BTreeMap::new();
        let mut next = String::new();
        loop {
            let uri = match next.is_empty() {
                true => format!("{NODES}?limit={PAGE}"),
                false => format!("{NODES}?limit={PAGE}&continue={}", crate::follow::escaped(&next)),
            };
            let text = rest::get(&self.client, &uri, self.options.answer).await?;
            let mut page: Value = rest::decode(&text)?;
            let Value::Array(items) = page["items"].take() else {
                return Err(Error::Nonsense("a list without items".into()));
            };
            for item in items {
                let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                all.insert(name, node_of(item)?);
            }
            match page["metadata"]["continue"].as_str() {
                Some(more) if !more.is_empty() => next = more.to_owned(),
                _ => return Ok(all),
            }
        }
    }
}

fn node_of(object: Value) -> Result<Arc<Node>, Error> {
    let wrong = |text: String| Error::Nonsense(format!("a node that cannot be read: {text}"));
    let read = live::read(Kind::Node, object).map_err(|error| wrong(error.to_string()))?;
    match read.into_object() {
        Ok(Object::Node(node)) => Ok(node),
        Ok(_) => Err(wrong("it is something else".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn own_ranges(node: &Node) -> Vec<IpNet> {
    let spec = &node.spec;
    let single = spec.pod_cidr.filter(|_| spec.pod_cidrs.is_empty());
    spec.pod_cidrs.iter().copied().chain(single).collect()
}

fn wants_range(node: &Node, options: &Options) -> bool {
    let leaves = node.metadata.deletion_timestamp.is_some();
    options.ranges.are_given() && !leaves && own_ranges(node).is_empty()
}

fn wants_anything(name: &str, node: &Node, options: &Options) -> bool {
    wants_range(node, options)
        || node_patch(name, node, &[], options).is_some()
        || status_patch(node, false).is_some()
}

/// What changes of the node itself, if it gets these ranges.
fn node_patch(name: &str, node: &Node, ranges: &[IpNet], options: &Options) -> Option<Value> {
    let mut patch = Map::new();
    let mut own = own_ranges(node);
    if let (true, [first, ..]) = (own.is_empty(), ranges) {
        patch.insert("spec".to_owned(), json!({"podCIDR": first, "podCIDRs": ranges}));
        own = ranges.to_vec();
    }
    if options.flannel && !own.is_empty() {
        let annotations = flannel::missing(name, node, &own);
        if !annotations.is_empty() {
            patch.insert("metadata".to_owned(), json!({"annotations": annotations}));
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// What changes of its status, once it has a range of pods.
fn status_patch(node: &Node, gets_range: bool) -> Option<Value> {
    let has_range = gets_range || !own_ranges(node).is_empty();
    let mut conditions = node.status.conditions.iter();
    let of_network = conditions.find(|condition| condition.r#type == NETWORK_UNAVAILABLE);
    let is_so = of_network.is_some_and(|condition| condition.status == "False");
    let leaves = node.metadata.deletion_timestamp.is_some();
    (has_range && !is_so && !leaves).then(|| {
        let now = format!("{:.0}", Timestamp::now());
        json!({"status": {"conditions": [{
            "type": NETWORK_UNAVAILABLE,
            "status": "False",
            "reason": "FairwayKnowsNode",
            "message": "all nodes are told how its pods are reached",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }]}})
    })
}
