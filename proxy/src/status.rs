//! How the agent fares: what threads tell of it, and the answers to health checks. [`metrics`] has the
//! numbers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fairway_abi::RuleCount;
use fairway_compile::policy::RuleName;
use metrics::Durations;
pub(crate) use metrics::{Changes, NoLocal};
use serde::{Deserialize, Serialize};

use crate::dataplane::usage::Usage;
use crate::policy::Census;
use crate::selftest::Finding;

mod metrics;

/// A change that waits longer than this means that something is wrong: twice the period in which
/// kube-proxy looks at everything again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shared between the thread that changes the kernel and those that tell of it.
#[derive(Debug)]
pub(crate) struct Status {
    inner: Mutex<Inner>,
    /// What answers DNS queries, if anything does.
    dns: OnceLock<Arc<fairway_dns::server::Service>>,
}

/// Services, as `NAMESPACE/NAME`, with an address each.
pub(crate) type Announced = BTreeSet<(String, IpAddr)>;

#[derive(Debug)]
struct Inner {
    /// Since when a new model waits to be looked at.
    queued: Option<Instant>,
    /// Since when the kernel has not held what it should.
    behind: Option<Instant>,
    last_queued: SystemTime,
    last_synced: Option<SystemTime>,
    /// No load balancer is to send more to this node.
    leaving: bool,
    /// Answers given to whoever asked for health, good ones and others.
    probes: [[u64; 2]; Probe::ALL.len()],
    health_check_failures: u64,
    failures: u64,
    /// Services and endpoints of Services that changed: since the agent started, in models that wait to
    /// be looked at, and in those that are not in force yet.
    changes: [Changes; 3],
    /// Ports of Services that have endpoints, but none here that their policy lets them use.
    no_local_endpoints: NoLocal,
    tables: Vec<Usage>,
    syncs: Durations,
    drops: Vec<u64>,
    answers: Vec<u64>,
    flows: usize,
    frontends: usize,
    pods: usize,
    unreachable: usize,
    paced: usize,
    selftest: Vec<Finding>,
    waiting: usize,
    adds: Durations,
    refused_adds: u64,
    policies: Census,
    verdicts: Vec<(RuleName, RuleCount)>,
    announced: (String, Announced),
    /// See [`Summary::held`] and [`Summary::in_force`].
    held: Option<String>,
    in_force: Option<String>,
}

/// How the agent fares, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    /// The first complete state is in the kernel.
    pub(crate) ready: bool,
    /// No change has waited for too long.
    pub(crate) live: bool,
    /// For how many seconds the kernel has not held what it should; `None`: it does.
    pub(crate) behind: Option<u64>,
    /// When the kernel was last brought to a new state, in seconds since 1970.
    pub(crate) synced: Option<u64>,
    /// Attempts to do so that failed.
    pub(crate) failures: u64,
    /// The control plane's revision that came last.
    pub(crate) held: Option<String>,
    /// The one that the kernel was last brought to.
    pub(crate) in_force: Option<String>,
    /// The load balancers' addresses that this node announces; older agents do not say.
    #[serde(default)]
    pub(crate) announced: Vec<IpAddr>,
}

/// What a health check asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Whether a load balancer is to send new connections to this node.
    Healthz,
    /// Whether the agent does its work.
    Livez,
}

impl Probe {
    const ALL: [Self; 2] = [Self::Healthz, Self::Livez];
}

impl Status {
    /// What answers DNS queries from now on.
    pub(crate) fn answers_dns(&self, service: &Arc<fairway_dns::server::Service>) {
        // There is one in an agent's life.
        let _ = self.dns.set(Arc::clone(service));
    }

    /// Of an agent that has done nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            dns: OnceLock::new(),
            inner: Mutex::new(Inner {
                queued: None,
                behind: None,
                last_queued: SystemTime::now(),
                last_synced: None,
                leaving: false,
                probes: Default::default(),
                health_check_failures: 0,
                failures: 0,
                changes: Default::default(),
                no_local_endpoints: NoLocal::default(),
                tables: Vec::new(),
                syncs: Durations::default(),
                drops: Vec::new(),
                answers: Vec::new(),
                flows: 0,
                frontends: 0,
                pods: 0,
                unreachable: 0,
                paced: 0,
                selftest: Vec::new(),
                waiting: 0,
                adds: Durations::default(),
                refused_adds: 0,
                policies: Census::default(),
                verdicts: Vec::new(),
                announced: Default::default(),
                held: None,
                in_force: None,
            }),
        }
    }

    /// A new model waits to be put in force, in which this changed.
    pub(crate) fn queued(&self, changes: Changes) {
        let mut inner = self.lock();
        inner.queued.get_or_insert_with(Instant::now);
        inner.last_queued = SystemTime::now();
        let [total, queued, _] = &mut inner.changes;
        total.add(changes);
        queued.add(changes);
    }

    /// All models that were queued are being looked at.
    pub(crate) fn taken(&self) {
        let mut inner = self.lock();
        inner.queued = None;
        let [_, queued, behind] = &mut inner.changes;
        behind.add(std::mem::take(queued));
    }

    /// Since when the kernel has not held what it should; `None`: it does.
    pub(crate) fn behind(&self, since: Option<Instant>) {
        let mut inner = self.lock();
        inner.behind = since;
        if since.is_none() {
            inner.changes[2] = Changes::default();
        }
    }

    /// Service ports of the model in force that drop for want of an endpoint on this node.
    pub(crate) fn no_local_endpoints(&self, ports: NoLocal) {
        self.lock().no_local_endpoints = ports;
    }

    /// How full the kernel's tables are.
    pub(crate) fn tables(&self, tables: Vec<Usage>) {
        self.lock().tables = tables;
    }

    /// The kernel was brought to a new state.
    pub(crate) fn synced(&self, took: Duration) {
        let mut inner = self.lock();
        inner.last_synced = Some(SystemTime::now());
        inner.syncs.add(took);
    }

    /// A model could not be put in force.
    pub(crate) fn failed(&self) {
        self.lock().failures += 1;
    }

    /// Packets dropped so far, by reason number.
    pub(crate) fn drops(&self, drops: Vec<u64>) {
        self.lock().drops = drops;
    }

    /// Queries of the DNS that the kernel has answered so far, by kind, a sum of [`fairway_abi::answered`].
    pub(crate) fn answers(&self, answers: Vec<u64>) {
        self.lock().answers = answers;
    }

    /// Open flows with a record.
    pub(crate) fn flows(&self, flows: usize) {
        self.lock().flows = flows;
    }

    /// Service addresses in the kernel.
    pub(crate) fn frontends(&self, frontends: usize) {
        self.lock().frontends = frontends;
    }

    /// Nodes that no packet of this node's pods can be encrypted to.
    pub(crate) fn unreachable(&self, nodes: usize) {
        self.lock().unreachable = nodes;
    }

    /// Devices out of the node where what pods send beyond their limits waits.
    pub(crate) fn paced(&self, devices: usize) {
        self.lock().paced = devices;
    }

    /// Pods in force.
    pub(crate) fn pods(&self, pods: usize) {
        self.lock().pods = pods;
    }

    /// ADDs that wait until the node has heard of their pod.
    pub(crate) fn waiting(&self, adds: usize) {
        self.lock().waiting = adds;
    }

    /// An ADD was answered, this long after it was asked.
    pub(crate) fn added(&self, took: Duration, refused: bool) {
        let mut inner = self.lock();
        inner.adds.add(took);
        inner.refused_adds += u64::from(refused);
    }

    /// What there is of policies.
    pub(crate) fn policies(&self, census: Census) {
        self.lock().policies = census;
    }

    /// What rules have said so far.
    pub(crate) fn verdicts(&self, verdicts: Vec<(RuleName, RuleCount)>) {
        self.lock().verdicts = verdicts;
    }

    /// The load balancers' addresses that this node announces, and their Services.
    pub(crate) fn announces(&self, node: &str, announced: Announced) {
        self.lock().announced = (node.to_owned(), announced);
    }

    /// All that the self-test has found so far.
    pub(crate) fn found(&self, findings: Vec<Finding>) {
        self.lock().selftest = findings;
    }

    /// What the self-test has found, as JSON.
    pub(crate) fn selftest(&self) -> String {
        serde_json::json!(self.lock().selftest).to_string()
    }

    /// The control plane's epoch and revision that came last, and whether the kernel holds it.
    pub(crate) fn revision(&self, held: Option<&(String, u64)>, in_force: bool) {
        let mut inner = self.lock();
        inner.held = held.map(|(epoch, revision)| format!("revision {revision} of {epoch}"));
        if in_force {
            inner.in_force = inner.held.clone();
        }
    }

    /// How the agent fares, as JSON ([`Summary`]).
    pub(crate) fn summary(&self) -> String {
        let (ready, live) = (self.is_ready(), self.is_live());
        let inner = self.lock();
        let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok();
        let waits = [inner.queued, inner.behind];
        serde_json::json!(Summary {
            ready,
            live,
            behind: waits.into_iter().flatten().min().map(|since| since.elapsed().as_secs()),
            synced: inner.last_synced.and_then(since_1970).map(|since| since.as_secs()),
            failures: inner.failures,
            held: inner.held.clone(),
            in_force: inner.in_force.clone(),
            announced: inner
                .announced
                .1
                .iter()
                .map(|(_, ip)| *ip)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        })
        .to_string()
    }

    /// Whether the first complete state is in the kernel.
    pub(crate) fn is_ready(&self) -> bool {
        self.lock().last_synced.is_some()
    }

    /// Whether no change has waited for too long. A control plane that is away changes nothing.
    pub(crate) fn is_live(&self) -> bool {
        let inner = self.lock();
        let waits = [inner.queued, inner.behind];
        waits.into_iter().flatten().all(|since| since.elapsed() < PATIENCE)
    }

    /// Whether the node is being taken out of the cluster.
    pub(crate) fn leaving(&self, leaving: bool) {
        self.lock().leaving = leaving;
    }

    /// A port on which load balancers ask for a Service's endpoints could not be listened on.
    pub(crate) fn health_check_failed(&self) {
        self.lock().health_check_failures += 1;
    }

    /// Answers a health check: whether all is well, and a body like kube-proxy's. There, the last update
    /// is now as long as all is well, also if nothing changed for long.
    pub(crate) fn probe(&self, probe: Probe) -> (bool, String) {
        let live = self.is_live();
        let mut inner = self.lock();
        let good = live && !(probe == Probe::Healthz && inner.leaving);
        inner.probes[probe as usize][usize::from(!good)] += 1;
        let now = SystemTime::now();
        let updated = if good { Some(now) } else { inner.last_synced };
        let mut body = serde_json::json!({
            "lastUpdated": updated.map_or_else(|| NEVER.to_owned(), timestamp),
            "currentTime": timestamp(now),
        });
        if probe == Probe::Healthz {
            body["nodeEligible"] = (!inner.leaving).into();
        }
        (good, body.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whatever a panicking holder left is still a set of numbers.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a moment is that never was, as those who read such bodies know it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A moment as RFC 3339 writes it, in UTC.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanoseconds) = (since.as_secs(), since.subsec_nanos());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    // Years that begin in March, in eras of 400 years that begin in the year 0 (Howard Hinnant,
    // "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_synced_and_live_while_nothing_waits_for_long() {
        let status = Status::new();
        assert!(!status.is_ready() && status.is_live());
        status.queued(Changes::default());
        assert!(status.is_live());
        status.taken();
        status.synced(Duration::from_millis(3));
        assert!(status.is_ready());
        status.behind(Instant::now().checked_sub(PATIENCE * 2));
        assert!(!status.is_live());
        status.behind(None);
        assert!(status.is_live());
    }

    #[test]
    fn the_revision_in_force_is_the_last_one_that_got_there() {
        let status = Status::new();
        let summary = || serde_json::from_str::<Summary>(&status.summary()).unwrap();
        assert_eq!((summary().held, summary().behind), (None, None));
        let revision = |number| Some(format!("revision {number} of e"));
        status.revision(Some(&("e".to_owned(), 7)), true);
        status.revision(Some(&("e".to_owned(), 8)), false);
        status.behind(Some(Instant::now()));
        assert_eq!((summary().held, summary().in_force), (revision(8), revision(7)));
        assert_eq!(summary().behind, Some(0));
    }

    #[test]
    fn a_node_that_leaves_is_alive_and_not_to_be_sent_to() {
        let status = Status::new();
        let body = |probe| {
            let (good, body) = status.probe(probe);
            (good, serde_json::from_str::<serde_json::Value>(&body).unwrap())
        };
        let (good, said) = body(Probe::Healthz);
        assert!(good, "while it starts");
        assert_eq!(said["nodeEligible"], true);
        assert_eq!(said["lastUpdated"], said["currentTime"]);
        status.leaving(true);
        let (good, said) = body(Probe::Healthz);
        assert!(!good);
        assert_eq!((&said["nodeEligible"], &said["lastUpdated"]), (&false.into(), &NEVER.into()));
        let (good, said) = body(Probe::Livez);
        assert!(good && said.get("nodeEligible").is_none(), "{said}");
        status.leaving(false);
        status.behind(Instant::now().checked_sub(PATIENCE * 2));
        assert!(!body(Probe::Livez).0 && !body(Probe::Healthz).0);
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 2",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
        ] {
            assert!(status.metrics().lines().any(|l| l == line), "{line}");
        }
    }

    #[test]
    fn moments_are_written_as_everybody_reads_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000001Z"),
            (951_782_400, "2000-02-29T00:00:00.000000001Z"),
            (1_234_567_890, "2009-02-13T23:31:30.000000001Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000001Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000001Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(seconds, 1)), text);
        }
    }
}
