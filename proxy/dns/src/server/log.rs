//! Queries that are written down: one of so many, and so many a second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fairway_core::dns::HEADER;
use tracing::info;

use crate::answer::{Client, Transport};
use crate::metrics::{rcode_index, rcode_name};
use crate::name::Name;

/// Which queries are written down.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// One of so many; 0: none.
    pub one_of: u32,
    /// So many a second at most.
    pub per_second: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { one_of: 0, per_second: 100 }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct QueryLog {
    options: LogOptions,
    start: Instant,
    queries: AtomicU64,
    /// The second in its upper half, and what was written in it.
    written: AtomicU64,
    pub(super) suppressed: AtomicU64,
}

impl QueryLog {
    pub(super) fn new(options: LogOptions) -> Self {
        Self {
            options,
            start: Instant::now(),
            queries: AtomicU64::new(0),
            written: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Whether the query at `now` is one of those.
    pub(super) fn wants(&self, now: Instant) -> bool {
        let one_of = u64::from(self.options.one_of);
        if one_of == 0 || !self.queries.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_of) {
            return false;
        }
        let second = now.saturating_duration_since(self.start).as_secs() << 32;
        let most = u64::from(self.options.per_second);
        let next = |before: u64| {
            if before >> 32 << 32 < second {
                return (most > 0).then_some(second | 1);
            }
            (before & u64::from(u32::MAX) < most).then_some(before + 1)
        };
        let wants = self.written.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok();
        self.suppressed.fetch_add(u64::from(!wants), Ordering::Relaxed);
        wants
    }

    pub(super) fn write(&self, client: &Client, answer: &[u8], took: Duration) {
        let question = answer.get(HEADER.into()..).unwrap_or_default();
        let mut name = 0;
        while let Some(length) = question.get(name).filter(|length| **length != 0) {
            name += 1 + usize::from(*length);
        }
        let kind = question.get(name + 1..).and_then(|rest| rest.first_chunk()).copied();
        let name = question.get(..=name).and_then(Name::from_wire).unwrap_or_else(Name::root);
        let rcode = answer.get(3).map_or(0, |flags| rcode_index(flags & 0xf));
        info!(
            target: "fairway_dns::query",
            client = %client.address,
            namespace = client.namespace.as_deref(),
            by = if client.transport == Transport::Udp { "udp" } else { "tcp" },
            %name,
            kind = u16::from_be_bytes(kind.unwrap_or_default()),
            rcode = rcode_name(rcode),
            bytes = answer.len(),
            microseconds = took.as_micros(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(one_of: u32, per_second: u32) -> QueryLog {
        QueryLog::new(LogOptions { one_of, per_second })
    }

    fn written(log: &QueryLog, queries: u32, at: Instant) -> usize {
        (0..queries).filter(|_| log.wants(at)).count()
    }

    #[test]
    fn one_of_so_many_is_written() {
        let log = log(10, 1000);
        assert_eq!(written(&log, 1000, log.start), 100);
    }

    #[test]
    fn so_many_a_second_are_written_and_the_rest_is_counted() {
        let log = log(1, 5);
        assert_eq!(written(&log, 100, log.start), 5);
        assert_eq!(written(&log, 100, log.start + Duration::from_secs(1)), 5);
        assert_eq!(log.suppressed.load(Ordering::Relaxed), 190);
    }

    #[test]
    fn nothing_is_written_unless_it_is_asked_for() {
        let log = QueryLog::new(LogOptions::default());
        assert_eq!(written(&log, 100, log.start), 0);
        assert_eq!(log.suppressed.load(Ordering::Relaxed), 0);
    }
}
