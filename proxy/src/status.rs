//! How the agent fares: what health checks and metrics show.

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fairway_abi::DropReason;

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
            }),
        }
    }

    /// A new model waits to be put in force.
    pub(crate) fn queued(&self) {
        let mut inner = self.lock();
        inner.queued.get_or_insert_with(Instant::now);
        inner.last_queued = SystemTime::now();
    }

    /// All models that were queued are being looked at.
    pub(crate) fn taken(&self) {
        self.lock().queued = None;
    }

    /// Since when the kernel has not held what it should; `None`: it does.
    pub(crate) fn behind(&self, since: Option<Instant>) {
        self.lock().behind = since;
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
    use super::*;

    #[test]
    fn ready_once_synced_and_live_while_nothing_waits_for_long() {
        let status = Status::new();
        assert!(!status.is_ready() && status.is_live());
        status.queued();
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
