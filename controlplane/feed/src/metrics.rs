//! What the server counts, in the text format of Prometheus.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use fairway_model::{Model, Pool};

/// Upper bounds of the histogram's buckets, in seconds. kube-proxy's begin at a quarter of a second.
const BUCKETS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Revisions whose time is remembered: whoever acknowledges an older one was far behind.
const REMEMBERED: usize = 4096;
/// Nodes that are named: those that are furthest behind.
const NAMED: usize = 20;

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    sent_bytes: AtomicU64,
    snapshots: AtomicU64,
    acks: AtomicU64,
    programming: Mutex<Programming>,
}

/// From a change's arrival here to its acknowledgement, for each node and change.
#[derive(Debug, Default)]
struct Programming {
    /// The last revisions and when they came; of consecutive numbers.
    came: VecDeque<(u64, Instant)>,
    /// Those in each bucket, not those in all before; the last is for what is above all bounds.
    counts: [u64; BUCKETS.len() + 1],
    sum: f64,
}

impl Metrics {
    /// A revision came just now.
    pub(crate) fn revision(&self, revision: u64, came: Instant) {
        let mut programming = self.programming();
        programming.came.push_back((revision, came));
        if programming.came.len() > REMEMBERED {
            programming.came.pop_front();
        }
    }

    /// A node that had all up to `known` now has all up to `revision`.
    pub(crate) fn applied(&self, known: u64, revision: u64) {
        self.acks.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut programming = self.programming();
        let Programming { came, counts, sum } = &mut *programming;
        let Some((oldest, _)) = came.front() else { return };
        let first = usize::try_from((known + 1).saturating_sub(*oldest)).unwrap_or(usize::MAX);
        let new = came.iter().skip(first).take_while(|(number, _)| *number <= revision);
        for (_, came) in new {
            let took = now.duration_since(*came).as_secs_f64();
            let bucket = BUCKETS.iter().position(|bound| took <= *bound);
            counts[bucket.unwrap_or(BUCKETS.len())] += 1;
            *sum += took;
        }
    }

    /// So many bytes go to a subscriber.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A subscriber gets a complete model.
    pub(crate) fn snapshot(&self) {
        self.snapshots.fetch_add(1, Ordering::Relaxed);
    }

    fn programming(&self) -> std::sync::MutexGuard<'_, Programming> {
        self.programming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it. `subscribers` are those that are connected, and how many revisions each is behind.
    pub(crate) fn text(
        &self,
        model: Option<&Model>,
        revision: u64,
        mut subscribers: Vec<(&str, u64)>,
    ) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, values: &[(String, f64)]| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let one = |value: u64| vec![(String::new(), number(value))];
        if let Some(model) = model {
            let objects = [
                ("node", model.nodes.len()),
                ("service", model.services.len()),
                ("endpoints", model.endpoints.len()),
                ("pod", model.pods.len()),
                ("serviceRange", model.service_ranges.len()),
                ("selector", model.selectors.len()),
                ("group", model.groups.len()),
                ("member", model.members.len()),
                ("policy", model.policies.len()),
                ("pool", model.pools.len()),
            ];
            let objects =
                objects.map(|(kind, count)| (format!("{{kind=\"{kind}\"}}"), number(count as u64)));
            family("fairway_feed_objects", "gauge", "Objects of the model, by kind.", &objects);
            let (sizes, uses) = pools(model);
            let help = "Usable addresses for Services of type LoadBalancer, by pool.";
            family("metallb_allocator_addresses_total", "gauge", help, &sizes);
            let help = "Those of them that Services have.";
            family("metallb_allocator_addresses_in_use_total", "gauge", help, &uses);
        }
        family("fairway_feed_revision", "gauge", "The current revision.", &one(revision));
        let count = subscribers.len() as u64;
        family("fairway_feed_subscribers", "gauge", "Subscribers that are connected.", &one(count));
        subscribers.retain(|(_, lag)| *lag > 0);
        subscribers.sort_by_key(|(name, lag)| (std::cmp::Reverse(*lag), *name));
        let behind = subscribers.len() as u64;
        let help = "Connected subscribers that have not put the current revision in force.";
        family("fairway_feed_subscribers_behind", "gauge", help, &one(behind));
        let lags = subscribers.iter().take(NAMED);
        // Names are checked when they come: there is nothing in them to escape.
        let lags = lags.map(|(name, lag)| (format!("{{node=\"{name}\"}}"), number(*lag)));
        let help = "Revisions by which a subscriber is behind, of those that are furthest.";
        family("fairway_feed_node_lag_revisions", "gauge", help, &lags.collect::<Vec<_>>());
        for (name, value, help) in [
            (
                "fairway_feed_sent_bytes_total",
                &self.sent_bytes,
                "Bytes sent on streams, compressed, before TLS.",
            ),
            ("fairway_feed_snapshots_total", &self.snapshots, "Complete models sent."),
            ("fairway_feed_acks_total", &self.acks, "Acknowledgements heard."),
        ] {
            family(name, "counter", help, &one(value.load(Ordering::Relaxed)));
        }
        let programming = self.programming();
        let name = "kubeproxy_network_programming_duration_seconds";
        let mut values = Vec::new();
        let mut below = 0;
        for (bound, count) in BUCKETS.iter().zip(&programming.counts) {
            below += count;
            values.push((format!("_bucket{{le=\"{bound}\"}}"), number(below)));
        }
        let all = programming.counts.iter().sum();
        values.push(("_bucket{le=\"+Inf\"}".to_owned(), number(all)));
        values.push(("_sum".to_owned(), programming.sum));
        values.push(("_count".to_owned(), number(all)));
        let help =
            "From the arrival of a change at the control plane until a node has it in force.";
        family(name, "histogram", help, &values);
        out
    }
}

/// Counts stay far below what a float holds exactly.
#[expect(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

/// Labels and values.
type Series = Vec<(String, f64)>;

/// How many addresses each pool has, and how many of them are in use; one that is shared counts once.
fn pools(model: &Model) -> (Series, Series) {
    let mut used = BTreeMap::<&str, BTreeSet<IpAddr>>::new();
    for service in model.services.values() {
        if let Some(pool) = &service.pool {
            used.entry(pool).or_default().extend(&service.load_balancer_ips);
        }
    }
    let label = |pool: &Pool| format!("{{pool=\"{}\"}}", pool.name);
    let sizes = model.pools.values().map(|pool| (label(pool), number(pool.size)));
    let uses = model.pools.values().map(|pool| {
        let used = used.get(pool.name.as_str()).map_or(0, BTreeSet::len);
        (label(pool), number(used as u64))
    });
    (sizes.collect(), uses.collect())
}

#[cfg(test)]
mod tests {
    use fairway_model::{ObjectName, Service};

    use super::*;

    #[test]
    fn each_change_counts_once_for_each_node_that_has_it() {
        let metrics = Metrics::default();
        let now = Instant::now();
        for revision in 1..=5 {
            metrics.revision(revision, now);
        }
        // One that joined at 3, and one that got all of it.
        metrics.applied(3, 5);
        metrics.applied(0, 4);
        metrics.applied(4, 4);
        assert_eq!(metrics.programming().counts.iter().sum::<u64>(), 2 + 4);

        let lagging = (0..30).map(|n| format!("n{n}")).collect::<Vec<_>>();
        let lagging = lagging.iter().zip(0..).map(|(name, lag)| (name.as_str(), lag)).collect();
        let pool = Pool { name: "main".into(), size: 8, announcements: Vec::new() };
        let mut model = Model { pools: [pool].into_iter().collect(), ..Model::default() };
        for name in ["a", "b"] {
            model.services.insert(Service {
                name: ObjectName::new("shop", name),
                load_balancer_ips: vec![IpAddr::from([192, 0, 2, 1])],
                pool: Some("main".into()),
                ..Service::default()
            });
        }
        let text = metrics.text(Some(&model), 5, lagging);
        for line in [
            "fairway_feed_objects{kind=\"pod\"} 0",
            "fairway_feed_subscribers 30",
            "metallb_allocator_addresses_total{pool=\"main\"} 8",
            "metallb_allocator_addresses_in_use_total{pool=\"main\"} 1",
            "fairway_feed_subscribers_behind 29",
            "fairway_feed_node_lag_revisions{node=\"n29\"} 29",
            "kubeproxy_network_programming_duration_seconds_count 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert_eq!(text.matches("{node=").count(), NAMED);
    }
}
