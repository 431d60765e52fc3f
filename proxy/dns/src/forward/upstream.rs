//! Who is asked, in which order, and whether somebody is worth asking.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use fairway_core::dns::kind;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};

use super::exchange::{Failure, Manner, Said, exchange};
use super::message::{Reply, Wanted};
use crate::metrics::{Histogram, RCODES, rcode_index};
use crate::name::Name;

/// How long the others wait for an upstream until the next one is asked as well.
const STEP: Duration = Duration::from_millis(500);
/// How long anybody is waited for: a client's resolver asks again after five seconds (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_millis(4500);
/// How often everybody is asked.
const ROUNDS: usize = 2;
/// Questions at least, however few upstreams there are: datagrams get lost.
const TRIES: usize = 3;
/// Failures in a row after which an upstream is asked only if there is no better one.
const FAILURES: u32 = 2;
/// How long between probes, and for each of them.
const PROBE: Duration = Duration::from_millis(500);
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// Somebody who resolves names.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// Failures since it last answered.
    failures: AtomicU32,
    probing: AtomicBool,
    /// It repeats the letters of a name as they were.
    keeps_letters: AtomicBool,
    knows_edns: AtomicBool,
    pub(crate) counts: Counts,
}

/// What has been counted of an upstream.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: AtomicU64,
    pub(crate) responses: [AtomicU64; RCODES],
    pub(crate) took: Histogram,
    pub(crate) failed_probes: AtomicU64,
}

impl Upstream {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            failures: AtomicU32::new(0),
            probing: AtomicBool::new(false),
            keeps_letters: AtomicBool::new(true),
            knows_edns: AtomicBool::new(true),
            counts: Counts::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < FAILURES
    }

    async fn ask(&self, wanted: &Wanted) -> Result<Reply, Failure> {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let manner = Manner {
            mixed_letters: self.keeps_letters.load(Ordering::Relaxed),
            edns: self.knows_edns.load(Ordering::Relaxed),
        };
        let Said { reply, manner } = exchange(self.address, wanted, manner).await?;
        if !manner.mixed_letters {
            self.keeps_letters.store(false, Ordering::Relaxed);
        }
        // One that does not understand the query without EDNS either does not understand something else of it.
        if !manner.edns && !reply.is_failure() {
            self.knows_edns.store(false, Ordering::Relaxed);
        }
        self.counts.responses[rcode_index(reply.rcode())].fetch_add(1, Ordering::Relaxed);
        self.counts.took.add(began.elapsed());
        self.answered();
        Ok(reply)
    }

    fn answered(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= FAILURES {
            info!(upstream = %self.address, "an upstream answers again");
        }
    }

    fn failed(&self) {
        let before = self.failures.fetch_add(1, Ordering::Relaxed);
        if before + 1 == FAILURES {
            info!(upstream = %self.address, "an upstream does not answer");
        }
    }

    /// Asks it something that costs nobody anything until it answers, or until nobody knows it any more.
    fn probe(self: &Arc<Self>) {
        if self.probing.swap(true, Ordering::Relaxed) {
            return;
        }
        let upstream = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(upstream) = upstream.upgrade() {
                // The root's servers, as CoreDNS asks: every resolver has an answer at hand.
                let root = Name::root();
                let wanted =
                    Wanted { name: root, kind: kind::NS, signatures: false, unchecked: false };
                let manner = Manner { mixed_letters: false, edns: true };
                let probe = exchange(upstream.address, &wanted, manner);
                if let Ok(Ok(_)) = timeout(PROBE_PATIENCE, probe).await {
                    upstream.answered();
                    upstream.probing.store(false, Ordering::Relaxed);
                    return;
                }
                upstream.failed();
                upstream.counts.failed_probes.fetch_add(1, Ordering::Relaxed);
                drop(upstream);
                sleep(PROBE).await;
            }
        });
    }
}

/// Upstreams that know the same names, the preferred one first.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) upstreams: Vec<Arc<Upstream>>,
}

impl Group {
    /// Of those that are known already, what is known of them stays.
    pub(crate) fn new(addresses: &[SocketAddr], known: &[Arc<Upstream>]) -> Self {
        let upstream = |address: &SocketAddr| {
            let known = known.iter().find(|known| known.address == *address);
            known.cloned().unwrap_or_else(|| Arc::new(Upstream::new(*address)))
        };
        Self { upstreams: addresses.iter().map(upstream).collect() }
    }

    /// Those worth asking in their order; all, if none is. None of our own addresses, where we would ask ourselves.
    fn order(&self, own: &[IpAddr]) -> Vec<Arc<Upstream>> {
        let others = self.upstreams.iter().filter(|upstream| !own.contains(&upstream.address.ip()));
        let up: Vec<_> = others.clone().filter(|upstream| upstream.is_up()).cloned().collect();
        if up.is_empty() { others.cloned().collect() } else { up }
    }

    /// Whether nobody seems worth asking.
    pub(crate) fn is_broken(&self) -> bool {
        !self.upstreams.iter().any(|upstream| upstream.is_up())
    }

    /// Asks one after the other until one answers; whoever is late may still be the first. Otherwise the last one's word that it
    /// does not know, or nothing.
    pub(crate) async fn ask(&self, wanted: &Arc<Wanted>, own: &[IpAddr]) -> Option<Reply> {
        let order = self.order(own);
        let tries = (order.len() * ROUNDS).max(TRIES);
        let mut next: VecDeque<_> = order.iter().cycle().take(tries).cloned().collect();
        let (mut end, mut best) = (Instant::now() + PATIENCE, None);
        let (mut attempts, mut last) = (JoinSet::new(), None);
        let mut step = end;
        loop {
            if let Some(upstream) = next.pop_front() {
                attempts.spawn(attempt(Arc::clone(&upstream), Arc::clone(wanted)));
                last = Some(upstream);
                step = Instant::now() + STEP;
            } else if attempts.is_empty() {
                return best;
            }
            tokio::select! {
                Some(Ok((upstream, said))) = attempts.join_next() => match said {
                    Ok(reply) if !reply.is_failure() => return Some(reply),
                    Ok(reply) => {
                        best = Some(reply);
                        next.retain(|other| !Arc::ptr_eq(other, &upstream));
                        end = end.min(Instant::now() + 2 * STEP);
                    }
                    Err(failure) => {
                        debug!(upstream = %upstream.address, %failure, "an upstream failed");
                        upstream.failed();
                        upstream.probe();
                    }
                },
                () = sleep_until(step.min(end)) => {
                    if let Some(late) = last.take() {
                        late.probe();
                    }
                    if Instant::now() >= end {
                        return best;
                    }
                    step = end;
                }
            }
        }
    }
}

async fn attempt(
    upstream: Arc<Upstream>,
    wanted: Arc<Wanted>,
) -> (Arc<Upstream>, Result<Reply, Failure>) {
    let said = upstream.ask(&wanted).await;
    (upstream, said)
}
