//! How the agent fares: what health checks and metrics show.

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fairway_abi::DropReason;

use crate::selftest::{Finding, Outcome};

/// A change that waits longer than this means that something is wrong.
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

    /// The body of health answers.
    pub(crate) fn health(&self) -> String {
        let inner = self.lock();
        serde_json::json!({
            "lastUpdated": inner.last_synced.map(seconds),
            "currentTime": seconds(SystemTime::now()),
        })
        .to_string()
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
