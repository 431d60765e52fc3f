//! What is counted here, and how it is shown to Prometheus: under CoreDNS' names, as dashboards and alarms know them.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Response codes by CoreDNS' names; the last one is for all others.
const RCODE_NAMES: [&str; RCODES] =
    ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "OTHER"];
pub(crate) const RCODES: usize = 7;

/// Upper bounds of the histogram's buckets, in microseconds: those of CoreDNS, from a quarter of a millisecond to 8 seconds, and
/// four below them.
const BUCKETS: [u64; 20] = [
    16, 32, 64, 128, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000,
    256_000, 512_000, 1_024_000, 2_048_000, 4_096_000, 8_192_000,
];

/// How long something took, each time.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Those in each bucket, not those in all before; the last is for what is above all bounds.
    counts: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub(crate) fn add(&self, took: Duration) {
        self.add_all(took, 1);
    }

    /// So many took that long, each.
    pub(crate) fn add_all(&self, took: Duration, count: u64) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|bound| *bound < microseconds);
        self.counts[bucket].fetch_add(count, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds.saturating_mul(count), Ordering::Relaxed);
    }

    /// As if all that `other` has seen had been seen here.
    pub(crate) fn add_counts(&self, other: &Self) {
        for (count, other) in self.counts.iter().zip(&other.counts) {
            count.fetch_add(other.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(other.nanoseconds.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Writes its lines; `labels` without braces.
    pub(crate) fn write(&self, out: &mut Text, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        let bounds = BUCKETS.iter().map(|bound| (*bound as f64 / 1e6).to_string());
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            out.line(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), total);
        }
        let seconds = self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        out.line(&format!("{name}_sum"), labels, seconds);
        out.line(&format!("{name}_count"), labels, total);
    }
}

/// Metrics in the text format of Prometheus.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

impl Text {
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(crate) fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name} {value}")
        } else {
            writeln!(self.0, "{name}{{{labels}}} {value}")
        };
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

/// A response code's place among those that are counted.
pub(crate) fn rcode_index(rcode: u8) -> usize {
    usize::from(rcode).min(RCODES - 1)
}

/// The name of what is counted at this place.
pub(crate) fn rcode_name(index: usize) -> &'static str {
    RCODE_NAMES[index.min(RCODES - 1)]
}
