//! What is counted of queries and answers, for each worker by itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fairway_core::dns::kind;

use super::admission::Admission;
use super::family;
use super::log::QueryLog;
use crate::answer::{Client, Reason, Transport};
use crate::metrics::{Histogram, RCODES, Text, rcode_index, rcode_name};

/// Types that have series of their own; all others have one together.
const KINDS: [(u16, &str); 11] = [
    (kind::A, "A"),
    (kind::AAAA, "AAAA"),
    (kind::SRV, "SRV"),
    (kind::PTR, "PTR"),
    (kind::TXT, "TXT"),
    (kind::CNAME, "CNAME"),
    (kind::SOA, "SOA"),
    (kind::NS, "NS"),
    (15, "MX"),
    (65, "HTTPS"),
    (kind::ANY, "ANY"),
];
const TRANSPORTS: [&str; 2] = ["udp", "tcp"];
/// As IANA numbers address families, which is how CoreDNS calls them.
const FAMILIES: [&str; 2] = ["1", "2"];
const REASONS: [&str; 4] = ["short", "answer", "malformed", "unsent"];
/// As CoreDNS calls one server that is asked for everything.
const SERVER: &str = "server=\"dns://:53\",zone=\".\"";

/// Queries that somebody else has answered from the same zone, over UDP and without an error. They have series of their own, as
/// counts that begin anew at another moment could not be added to ours.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// Who, for the label `server`.
    pub server: &'static str,
    /// Whether over IPv6.
    pub v6: bool,
    /// The type that was asked for.
    pub kind: u16,
    /// How many, ever.
    pub count: u64,
}

/// See the module. Workers do not share cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counts {
    requests: [[[AtomicU64; KINDS.len() + 1]; FAMILIES.len()]; TRANSPORTS.len()],
    responses: [AtomicU64; RCODES],
    response_bytes: AtomicU64,
    took: Histogram,
    dropped: [AtomicU64; REASONS.len()],
    connections_refused: AtomicU64,
}

/// A type's place among those that are counted.
fn kind_index(kind: u16) -> usize {
    KINDS.iter().position(|(known, _)| *known == kind).unwrap_or(KINDS.len())
}

/// The name of what is counted at this place.
fn kind_name(index: usize) -> &'static str {
    KINDS.get(index).map_or("other", |(_, name)| name)
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

impl Counts {
    /// A query that can be read.
    pub(super) fn request(&self, client: &Client, kind: u16) {
        let transport = usize::from(client.transport == Transport::Tcp);
        let kind = kind_index(kind);
        add(&self.requests[transport][family(client.address.ip())][kind], 1);
    }

    pub(super) fn response(&self, answer: &[u8]) {
        let rcode = answer.get(3).map_or(0, |flags| flags & 0xf);
        add(&self.responses[rcode_index(rcode)], 1);
        add(&self.response_bytes, answer.len() as u64);
    }

    /// So many answers took that long each.
    pub(super) fn took(&self, took: Duration, count: u64) {
        self.took.add_all(took, count);
    }

    /// A message that is not answered.
    pub(super) fn dropped(&self, reason: Reason) {
        let reason = match reason {
            Reason::Short => 0,
            Reason::Answer => 1,
            Reason::Malformed => 2,
        };
        add(&self.dropped[reason], 1);
    }

    /// An answer that the kernel did not take.
    pub(super) fn unsent(&self) {
        add(&self.dropped[3], 1);
    }

    /// A connection more than there may be.
    pub(super) fn connection_refused(&self) {
        add(&self.connections_refused, 1);
    }
}

fn sum<'a>(all: &'a [Counts], of: impl Fn(&'a Counts) -> &'a AtomicU64) -> u64 {
    all.iter().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
}

/// Writes the counts of all workers together. Series are as many as there are constants here, whatever is asked.
pub(super) fn write(
    all: &[Counts],
    elsewhere: &[Elsewhere],
    admission: &Admission,
    log: &QueryLog,
    out: &mut Text,
) {
    let name = "coredns_dns_requests_total";
    out.family(name, "counter", "Queries that could be read.");
    for (transport, proto) in TRANSPORTS.iter().enumerate() {
        for (family, number) in FAMILIES.iter().enumerate() {
            for kind in 0..=KINDS.len() {
                let count = sum(all, |counts| &counts.requests[transport][family][kind]);
                if count > 0 {
                    let kind = kind_name(kind);
                    let of = format!("proto=\"{proto}\",family=\"{number}\",type=\"{kind}\"");
                    out.line(name, &format!("{SERVER},{of}"), count);
                }
            }
        }
    }
    for Elsewhere { server, v6, kind, count } in elsewhere.iter().filter(|one| one.count > 0) {
        let (number, kind) = (FAMILIES[usize::from(*v6)], kind_name(kind_index(*kind)));
        let of = format!("proto=\"udp\",family=\"{number}\",type=\"{kind}\"");
        out.line(name, &format!("server=\"{server}\",zone=\".\",{of}"), count);
    }
    let name = "coredns_dns_responses_total";
    out.family(name, "counter", "Answers.");
    for rcode in 0..RCODES {
        let count = sum(all, |counts| &counts.responses[rcode]);
        if count > 0 {
            out.line(name, &format!("{SERVER},rcode=\"{}\"", rcode_name(rcode)), count);
        }
    }
    let mut by_server = BTreeMap::<_, u64>::new();
    for one in elsewhere {
        *by_server.entry(one.server).or_default() += one.count;
    }
    for (server, count) in by_server.into_iter().filter(|(_, count)| *count > 0) {
        let of = format!("server=\"{server}\",zone=\".\",rcode=\"{}\"", rcode_name(0));
        out.line(name, &of, count);
    }
    let name = "fairway_dns_response_bytes_total";
    out.family(name, "counter", "Bytes of answers.");
    out.line(name, "", sum(all, |counts| &counts.response_bytes));
    let name = "coredns_dns_request_duration_seconds";
    out.family(name, "histogram", "Time from a query to its answer.");
    let took = Histogram::default();
    for counts in all {
        took.add_counts(&counts.took);
    }
    took.write(out, name, SERVER);
    let name = "fairway_dns_dropped_total";
    out.family(name, "counter", "Messages that were not answered, by the reason.");
    for (reason, text) in REASONS.iter().enumerate() {
        let count = sum(all, |counts| &counts.dropped[reason]);
        out.line(name, &format!("reason=\"{text}\""), count);
    }
    let limited = admission.limited.load(Ordering::Relaxed);
    out.line(name, "reason=\"rate\"", limited);
    for (name, help, count) in [
        (
            "fairway_dns_strangers_total",
            "Queries of clients that may not ask.",
            admission.refused.load(Ordering::Relaxed),
        ),
        (
            "fairway_dns_connections_refused_total",
            "Connections that were more than there may be.",
            sum(all, |counts| &counts.connections_refused),
        ),
        (
            "fairway_dns_log_suppressed_total",
            "Queries that were not written down, as too many were already.",
            log.suppressed.load(Ordering::Relaxed),
        ),
    ] {
        out.family(name, "counter", help);
        out.line(name, "", count);
    }
}
