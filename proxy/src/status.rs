//! How the agent fares: what health checks and metrics show.

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fairway_abi::DropReason;
use fairway_model::{Endpoint, EndpointState, Model, ServicePort, TrafficPolicy};
use serde::{Deserialize, Serialize};

use crate::dataplane::usage::Usage;
use crate::selftest::{Finding, Outcome};

/// A change that waits longer than this means that something is wrong: twice the period in which
/// kube-proxy looks at everything again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Upper bounds of the buckets of durations, in seconds: kube-proxy's.
const BUCKETS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
    8.192, 16.384,
];

/// Shared between the thread that changes the kernel and those that tell of it.
#[derive(Debug)]
pub(crate) struct Status {
    inner: Mutex<Inner>,
}

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
    flows: usize,
    frontends: usize,
    pods: usize,
    unreachable: usize,
    paced: usize,
    selftest: Vec<Finding>,
    waiting: usize,
    adds: Durations,
    refused_adds: u64,
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
}

/// What changed between two models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    services: u64,
    /// Of so many Services.
    endpoints: u64,
}

impl Changes {
    /// From one model to the next.
    pub(crate) fn between(old: &Model, new: &Model) -> Self {
        Self {
            services: old.services.diff(&new.services).count() as u64,
            endpoints: old.endpoints.diff(&new.endpoints).count() as u64,
        }
    }

    fn add(&mut self, more: Self) {
        self.services += more.services;
        self.endpoints += more.endpoints;
    }
}

/// Ports of Services that have endpoints, but none on the node, by the policy that asks for one there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NoLocal {
    internal: usize,
    external: usize,
}

impl NoLocal {
    /// On this node, of this model.
    pub(crate) fn of(model: &Model, node: &str) -> Self {
        let mut counts = Self::default();
        for service in model.services.values() {
            let is_outside = !service.external_ips.is_empty()
                || !service.load_balancer_ips.is_empty()
                || service.ports.iter().any(|port| port.node_port.is_some());
            let internal = service.internal_traffic == TrafficPolicy::Local;
            let external = service.external_traffic == TrafficPolicy::Local && is_outside;
            if service.cluster_ips.is_empty() || !(internal || external) {
                continue;
            }
            let endpoints = model.endpoints.get(&service.name);
            let elsewhere = |port: &&ServicePort| {
                let of_port = endpoints.and_then(|all| all.ports.get(&port.name));
                let mut serve = of_port.into_iter().flatten();
                let serves = |one: &&Endpoint| one.state != EndpointState::NotReady;
                let here = |one: &Endpoint| one.node.as_deref() == Some(node);
                serve.clone().any(|one| serves(&one)) && !serve.any(|one| serves(&one) && here(one))
            };
            let count = service.ports.iter().filter(elsewhere).count();
            counts.internal += if internal { count } else { 0 };
            counts.external += if external { count } else { 0 };
        }
        counts
    }
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

/// How long something took, each time.
#[derive(Debug, Default)]
struct Durations {
    /// At most as long as the bucket's bound.
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

impl Durations {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.seconds += took.as_secs_f64();
        for (bound, count) in BUCKETS.iter().zip(&mut self.buckets) {
            *count += u64::from(took.as_secs_f64() <= *bound);
        }
    }

    /// As the lines of a histogram, without its name.
    fn lines(&self) -> Vec<(String, f64)> {
        let bucket = |bound: &str, count: u64| (format!("_bucket{{le=\"{bound}\"}}"), count as f64);
        let buckets = BUCKETS.iter().zip(self.buckets);
        let mut lines: Vec<_> =
            buckets.map(|(bound, count)| bucket(&bound.to_string(), count)).collect();
        lines.push(bucket("+Inf", self.count));
        lines.push(("_sum".to_owned(), self.seconds));
        lines.push(("_count".to_owned(), self.count as f64));
        lines
    }
}

impl Status {
    /// Of an agent that has done nothing yet.
    pub(crate) fn new() -> Self {
        Self {
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
                flows: 0,
                frontends: 0,
                pods: 0,
                unreachable: 0,
                paced: 0,
                selftest: Vec::new(),
                waiting: 0,
                adds: Durations::default(),
                refused_adds: 0,
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

    /// All metrics in the Prometheus text format, under kube-proxy's names where they mean the same.
    pub(crate) fn metrics(&self) -> String {
        let inner = self.lock();
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let plain = |value: f64| [(String::new(), value)];

        family(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "histogram",
            "Time it took to bring the kernel to a new state.",
            &inner.syncs.lines(),
        );
        family(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "gauge",
            "When the kernel was last brought to a new state.",
            &plain(inner.last_synced.map_or(0.0, seconds)),
        );
        family(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "gauge",
            "When a new state was last asked for.",
            &plain(seconds(inner.last_queued)),
        );
        family(
            "fairway_sync_failures_total",
            "counter",
            "Attempts to bring the kernel to a new state that failed.",
            &plain(inner.failures as f64),
        );
        let [total, queued, behind] = inner.changes;
        for (name, object, total, pending) in [
            ("service", "Services", total.services, queued.services + behind.services),
            ("endpoint", "endpoints", total.endpoints, queued.endpoints + behind.endpoints),
        ] {
            family(
                &format!("kubeproxy_sync_proxy_rules_{name}_changes_total"),
                "counter",
                &format!("Changes of {object} that were heard of."),
                &plain(total as f64),
            );
            family(
                &format!("kubeproxy_sync_proxy_rules_{name}_changes_pending"),
                "gauge",
                &format!("Changes of {object} that are not in force yet."),
                &plain(pending as f64),
            );
        }
        let NoLocal { internal, external } = inner.no_local_endpoints;
        family(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            "Ports of Services that have endpoints, but none here where their policy wants one.",
            &[("internal", internal), ("external", external)]
                .map(|(policy, count)| (format!("{{traffic_policy=\"{policy}\"}}"), count as f64)),
        );
        let tables = |of: fn(&Usage) -> Option<f64>| -> Vec<_> {
            let tables = inner.tables.iter();
            let label = |usage: &Usage| format!("{{table=\"{}\"}}", usage.table);
            tables.filter_map(|usage| Some((label(usage), of(usage)?))).collect()
        };
        family(
            "fairway_table_entries",
            "gauge",
            "Entries in a table of the kernel, as of the last half minute.",
            &tables(|usage| Some(usage.entries?.now as f64)),
        );
        family(
            "fairway_table_max_entries",
            "gauge",
            "Entries that a table of the kernel has room for.",
            &tables(|usage| Some(usage.entries?.most.into())),
        );
        family(
            "fairway_table_bytes",
            "gauge",
            "Memory that a table takes, as the kernel says.",
            &tables(|usage| Some(usage.bytes? as f64)),
        );
        for (probe, name) in Probe::ALL.into_iter().zip(["healthz", "livez"]) {
            let counts = inner.probes[probe as usize];
            let codes = [200, 503].map(|code| format!("{{code=\"{code}\"}}"));
            let lines: Vec<_> = codes.into_iter().zip(counts.map(|count| count as f64)).collect();
            family(
                &format!("kubeproxy_proxy_{name}_total"),
                "counter",
                &format!("Answers to /{name}, by status."),
                &lines,
            );
        }
        family(
            "fairway_health_check_node_port_failures_total",
            "counter",
            "Attempts to listen on a Service's healthCheckNodePort that failed.",
            &plain(inner.health_check_failures as f64),
        );
        let drops: Vec<_> = DropReason::ALL
            .iter()
            .map(|reason| {
                let count = inner.drops.get(*reason as usize).copied().unwrap_or(0);
                (format!("{{reason=\"{}\"}}", reason.name()), count as f64)
            })
            .collect();
        family("fairway_drops_total", "counter", "Packets dropped, by reason.", &drops);
        family(
            "fairway_flows",
            "gauge",
            "Open flows that have a record.",
            &plain(inner.flows as f64),
        );
        family(
            "fairway_frontends",
            "gauge",
            "Service addresses in the kernel.",
            &plain(inner.frontends as f64),
        );
        family(
            "fairway_wireguard_unreachable_nodes",
            "gauge",
            "Nodes that have no usable WireGuard key, so that no pod here and there reach each other.",
            &plain(inner.unreachable as f64),
        );
        family(
            "fairway_paced_devices",
            "gauge",
            "Devices out of the node with fq, where what pods send beyond their limits waits and is not dropped.",
            &plain(inner.paced as f64),
        );
        family("fairway_pods", "gauge", "Pods of this node.", &plain(inner.pods as f64));
        let tests = inner.selftest.iter().map(|Finding { check, peer, outcome, .. }| {
            let good = f64::from(u8::from(*outcome != Outcome::Failed));
            (format!("{{check=\"{check}\",peer=\"{peer}\"}}"), good)
        });
        family(
            "fairway_selftest",
            "gauge",
            "Whether a test of the node, or of the way to a peer, ended well.",
            &tests.collect::<Vec<_>>(),
        );
        family(
            "fairway_cni_waiting",
            "gauge",
            "Pods whose start waits until the control plane has told this node of them.",
            &plain(inner.waiting as f64),
        );
        family(
            "fairway_cni_add_duration_seconds",
            "histogram",
            "Time from a pod's registration by the CNI plugin to the answer, waiting included.",
            &inner.adds.lines(),
        );
        family(
            "fairway_cni_add_refused_total",
            "counter",
            "Registrations by the CNI plugin that were refused.",
            &plain(inner.refused_adds as f64),
        );
        text
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whatever a panicking holder left is still a set of numbers.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a moment is that never was, as those who read such bodies know it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A moment as RFC 3339 writes it, in UTC.
fn timestamp(time: SystemTime) -> String {
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

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fairway_model::{Endpoints, Hints, Object, ObjectName, Service};

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
    fn changes_wait_until_they_are_in_force() {
        let named = |names: &[&str], port: u16| -> Model {
            let port = ServicePort { port, ..ServicePort::default() };
            let services = names.iter().map(|name| Service {
                name: ObjectName::new("shop", *name),
                ports: vec![port.clone()],
                ..Service::default()
            });
            services.map(Object::Service).collect()
        };
        let changes = |old: &Model, new: &Model| Changes::between(old, new).services;
        assert_eq!(changes(&named(&["a", "b"], 1), &named(&["b", "c"], 1)), 2);
        assert_eq!(changes(&named(&["a", "b"], 1), &named(&["a", "b"], 2)), 2);
        let status = Status::new();
        let seen = |name: &str| {
            let text = status.metrics();
            let name = format!("kubeproxy_sync_proxy_rules_{name} ");
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
        };
        let pending = || seen("endpoint_changes_pending");
        status.queued(Changes { services: 0, endpoints: 2 });
        assert_eq!(pending(), "2");
        status.taken();
        status.queued(Changes { services: 1, endpoints: 1 });
        status.behind(Some(Instant::now()));
        assert_eq!(pending(), "3");
        status.behind(None);
        assert_eq!(pending(), "1", "what came meanwhile");
        status.taken();
        status.behind(None);
        assert_eq!([pending(), seen("service_changes_pending")], ["0", "0"]);
        let totals = ["endpoint_changes_total", "service_changes_total"].map(seen);
        assert_eq!(totals, ["3", "1"]);
    }

    #[test]
    fn ports_without_an_endpoint_here_count_where_a_policy_wants_one() {
        use TrafficPolicy::{Cluster, Local};
        let count = |internal, external, node_port, endpoints: &[(&str, EndpointState)]| {
            let name = ObjectName::new("shop", "web");
            let service = Service {
                name: name.clone(),
                cluster_ips: vec!["10.96.0.1".parse().unwrap()],
                ports: vec![ServicePort { node_port, port: 80, ..ServicePort::default() }],
                internal_traffic: internal,
                external_traffic: external,
                ..Service::default()
            };
            let endpoints = endpoints.iter().map(|(node, state)| Endpoint {
                address: "10.244.0.2".parse().unwrap(),
                port: 8080,
                node: Some((*node).to_owned()),
                state: *state,
                hints: Hints::default(),
            });
            let ports = [(String::new(), endpoints.collect())].into();
            let endpoints = Endpoints { service: name, ports };
            let model = [Object::Service(service), Object::Endpoints(endpoints)];
            let NoLocal { internal, external } = NoLocal::of(&model.into_iter().collect(), "a");
            [internal, external]
        };
        use EndpointState::{NotReady, Ready, ServingTerminating};
        let elsewhere = &[("b", Ready)][..];
        assert_eq!(count(Local, Local, Some(30_000), elsewhere), [1, 1]);
        assert_eq!(count(Local, Local, None, elsewhere), [1, 0], "nobody outside reaches it");
        assert_eq!(count(Cluster, Cluster, Some(30_000), elsewhere), [0, 0]);
        assert_eq!(count(Local, Cluster, None, &[]), [0, 0], "no endpoints at all");
        assert_eq!(count(Local, Cluster, None, &[("b", NotReady)]), [0, 0]);
        let leaving = [("a", ServingTerminating), ("b", Ready)];
        assert_eq!(count(Local, Cluster, None, &leaving), [0, 0], "it still serves");
    }

    #[test]
    fn each_metric_is_described_once_and_each_series_is_there_once() {
        let status = Status::new();
        let usage = |table: &str| Usage {
            table: table.to_owned(),
            entries: Some(crate::dataplane::usage::Entries { now: 3, most: 4 }),
            bytes: Some(4096),
        };
        status.tables(vec![usage("flows4"), usage("flows6")]);
        let text = status.metrics();
        assert!(text.contains("\nfairway_table_max_entries{table=\"flows6\"} 4\n"), "{text}");
        let mut kinds = BTreeMap::new();
        let mut series = std::collections::BTreeSet::new();
        let mut described = "";
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                described = help.split_once(' ').expect("a text").0;
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a kind");
                assert_eq!(name, described);
                assert_eq!(kinds.insert(name, kind), None, "{name} twice");
                let is_counter = name.ends_with("_total") && !name.contains("no_local_endpoints");
                assert_eq!(kind == "counter", is_counter, "{name}");
            } else {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                assert!(value.parse::<f64>().is_ok() && series.insert(name), "{line}");
                let end = name.strip_prefix(described).expect(line);
                assert!(end.is_empty() || end.starts_with('{') || kinds[described] == "histogram");
            }
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

    #[test]
    fn findings_are_shown_until_they_change() {
        let status = Status::new();
        let finding = |outcome| Finding {
            check: "path_mtu".to_owned(),
            peer: "n2".to_owned(),
            outcome,
            message: String::new(),
        };
        status.found(vec![finding(Outcome::Failed)]);
        let line = |good: u8| format!("fairway_selftest{{check=\"path_mtu\",peer=\"n2\"}} {good}");
        assert!(status.metrics().contains(&line(0)));
        assert!(status.selftest().contains("\"outcome\":\"failed\""), "{}", status.selftest());
        status.found(vec![finding(Outcome::Noted)]);
        assert!(status.metrics().contains(&line(1)));
    }

    #[test]
    fn metrics_carry_the_names_dashboards_know() {
        let status = Status::new();
        status.synced(Duration::from_millis(3));
        status.drops(vec![0, 0, 7]);
        status.waiting(2);
        status.paced(1);
        status.added(Duration::from_millis(3), false);
        status.added(Duration::from_secs(11), true);
        let text = status.metrics();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "fairway_drops_total{reason=\"spoofed_source\"} 7",
            "fairway_cni_waiting 2",
            "fairway_paced_devices 1",
            "fairway_cni_add_duration_seconds_bucket{le=\"0.004\"} 1",
            "fairway_cni_add_duration_seconds_count 2",
            "fairway_cni_add_refused_total 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }
}
