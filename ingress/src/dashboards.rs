//! What dashboards for ingress-nginx ask beside what is counted of requests: which controller it is, when its
//! configuration changed, what its process takes, and which Ingresses lead nowhere.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use fairway_controlplane::ingress::CONTROLLER;
use fairway_model::ObjectName;
use rustix::time::{ClockId, clock_gettime};

use crate::metrics::{PREFIX, about, quoted};
use crate::state::Snapshot;
use crate::tls::seconds;

/// This gateway, as one of several of a cluster.
#[derive(Debug)]
pub(crate) struct Controller {
    /// What is the same in each line.
    labels: String,
    /// Models that came into force.
    applied: AtomicU64,
    /// When the last of them did, in seconds since 1970; 0: there was none.
    at: AtomicU64,
}

impl Controller {
    /// A pod of that namespace; outside of clusters both may be empty.
    pub(crate) fn new(namespace: &str, pod: &str) -> Self {
        let labels = format!(
            "controller_class=\"{CONTROLLER}\",controller_namespace=\"{}\",controller_pod=\"{}\"",
            quoted(namespace),
            quoted(pod)
        );
        Self { labels, applied: AtomicU64::new(0), at: AtomicU64::new(0) }
    }

    /// A model is in force.
    pub(crate) fn applied(&self) {
        self.applied.fetch_add(1, Ordering::Relaxed);
        self.at.store(seconds(SystemTime::now()), Ordering::Relaxed);
    }

    /// What each metric with ingress-nginx's names says of whose it is, as it stands between braces.
    pub(crate) fn labels(&self) -> &str {
        &self.labels
    }

    /// Appends what is not about requests.
    pub(crate) fn write(&self, text: &mut String, snapshot: &Snapshot) {
        let applied = self.applied.load(Ordering::Relaxed);
        let at = self.at.load(Ordering::Relaxed);
        let own = &self.labels;
        let mut one = |name: &str, kind: &str, help: &str, value: String| {
            about(text, PREFIX, name, kind, help);
            _ = writeln!(text, "{PREFIX}{name}{{{own}}} {value}");
        };
        one("success", "counter", "Models that came into force", applied.to_string());
        one("config_hash", "gauge", "Number of the model that is in force", applied.to_string());
        one(
            "config_last_reload_successful",
            "gauge",
            "Whether a model is in force; one that cannot be used as a whole there is not",
            u8::from(applied > 0).to_string(),
        );
        one(
            "config_last_reload_successful_timestamp_seconds",
            "gauge",
            "When the model that is in force came to be",
            at.to_string(),
        );
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (name, field, help) in [
            ("resident_memory_bytes", "VmRSS:", "What the gateway takes of the machine's memory"),
            ("virtual_memory_bytes", "VmSize:", "Addresses that the gateway may use"),
        ] {
            if let Some(bytes) = bytes(&status, field) {
                one(&format!("nginx_process_{name}"), "gauge", help, bytes.to_string());
            }
        }
        let spent = clock_gettime(ClockId::ProcessCPUTime);
        let spent = format!("{}.{:09}", spent.tv_sec, spent.tv_nsec);
        one("nginx_process_cpu_seconds_total", "counter", "Time of processors", spent);
        about(text, PREFIX, "orphan_ingress", "gauge", "Ingresses that lead nowhere, and why");
        for (ingress, why) in orphans(snapshot) {
            let (namespace, name) = (quoted(&ingress.namespace), quoted(&ingress.name));
            _ = writeln!(
                text,
                "{PREFIX}orphan_ingress{{{own},ingress=\"{name}\",namespace=\"{namespace}\",type=\"{why}\"}} 1"
            );
        }
    }
}

/// A size in `/proc/PID/status`.
fn bytes(status: &str, field: &str) -> Option<u64> {
    let said = status.lines().find_map(|line| line.strip_prefix(field))?;
    said.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Ingresses with a backend whose Service is missing, or has no endpoint.
fn orphans(snapshot: &Snapshot) -> BTreeSet<(&ObjectName, &'static str)> {
    let mut orphans = BTreeSet::new();
    for ingress in snapshot.model.ingresses.values() {
        let paths = ingress.rules.iter().flat_map(|rule| &rule.paths).map(|path| &path.backend);
        for backend in paths.chain(&ingress.default_backend) {
            let service = ObjectName::new(&ingress.name.namespace, &backend.service);
            if !snapshot.model.services.contains_key(&service) {
                orphans.insert((&ingress.name, "no-service"));
            } else if snapshot.reachable(&service, &backend.port) == 0 {
                orphans.insert((&ingress.name, "no-endpoint"));
            }
        }
    }
    orphans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes() {
        let status = "Name:\tx\nVmSize:\t   12 kB\nVmRSS:\tmany kB\n";
        assert_eq!((bytes(status, "VmSize:"), bytes(status, "VmRSS:")), (Some(12288), None));
    }
}
