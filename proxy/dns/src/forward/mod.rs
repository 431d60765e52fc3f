//! What the cluster's zone does not answer: asked of others, and remembered.
//!
//! ```text
//! question ─► cache ── holds ─────────────────────────────────► answer
//!               │ stale, missing                                  ▲
//!               ▼                                                 │
//!             flight (one for all who ask the same) ─► group ─► upstream, the next one if it is late ─► cache
//! ```
//!
//! Which group is asked depends on the name: that of the longest stub domain it is in, or all others'. What an upstream says is
//! checked before it is kept (`message`), and what does not hold any more serves while nobody says anything newer (RFC 8767).

mod cache;
mod exchange;
mod message;
mod resolv_conf;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fairway_core::dns::rcode;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant as Moment, interval, timeout_at};
use tracing::{info, warn};

pub use self::cache::Options as CacheOptions;
pub use self::resolv_conf::ResolvConf;

use self::cache::{Cache, Found, Key, State};
use self::message::{Reply, Ttl, Wanted};
use self::upstream::{Group, Upstream};
use crate::answer::{Buffer, Forward, Transport, outcome};
use crate::metrics::{Text, rcode_name};
use crate::name::Name;
use crate::zone::Zone;

/// How long upstreams have to say something newer than what is stale (RFC 8767, section 5: client response timer).
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// How often a resolv.conf is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Whom to ask.
#[derive(Clone, Debug)]
pub enum Upstreams {
    /// These, the preferred one first.
    These(Vec<SocketAddr>),
    /// Those that resolv.conf names at the time.
    OfResolvConf,
}

/// What a [`Forwarder`] is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom to ask.
    pub upstreams: Upstreams,
    /// The node's, which is watched: it says in which domains pods look for names, too.
    pub resolv_conf: Option<PathBuf>,
    /// Whom to ask instead for names of these domains.
    pub stubs: BTreeMap<Name, Vec<SocketAddr>>,
    /// How many clients' questions may wait for upstreams at a time.
    pub most: usize,
    /// And how many of one client.
    pub most_of_one: usize,
    /// What is remembered.
    pub cache: CacheOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            upstreams: Upstreams::These(Vec::new()),
            resolv_conf: None,
            stubs: BTreeMap::new(),
            most: 1000,
            most_of_one: 250,
            cache: CacheOptions::default(),
        }
    }
}

/// Asks others. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Forwarder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Where we answer ourselves, and so must not ask.
    own: ArcSwap<Vec<IpAddr>>,
    cache: Cache,
    others: ArcSwap<Group>,
    /// By the domain's name as it is in messages.
    stubs: HashMap<Box<[u8]>, Group>,
    flights: Mutex<HashMap<Box<[u8]>, Flight>>,
    places: Arc<Places>,
    runtime: Handle,
    /// What resolv.conf says to search in.
    search: ArcSwap<Vec<String>>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    denied_hits: AtomicU64,
    misses: AtomicU64,
    prefetched: AtomicU64,
    stale: AtomicU64,
    rejected: AtomicU64,
    broken: AtomicU64,
}

/// A question on its way to upstreams, and what it has brought once it is there.
type Flight = watch::Receiver<Option<Arc<Reply>>>;

/// Who waits for upstreams.
#[derive(Debug)]
struct Places {
    most: usize,
    most_of_one: usize,
    taken: AtomicUsize,
    by_client: Mutex<HashMap<IpAddr, usize>>,
}

/// A client's question may wait; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

impl Places {
    fn by_client(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Nothing panics while it is held.
        self.by_client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_client = self.places.by_client();
        if let Some(count) = by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                by_client.remove(&self.client);
            }
        }
        self.places.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Forwarder {
    /// Begins to follow resolv.conf, if there is one. Its tasks run on `runtime`, and end with the last clone.
    pub fn new(options: Options, runtime: Handle) -> Self {
        let Options { upstreams, resolv_conf, stubs, most, most_of_one, cache } = options;
        let (names_upstreams, addresses) = match upstreams {
            Upstreams::These(addresses) => (false, addresses),
            Upstreams::OfResolvConf => (true, Vec::new()),
        };
        let mut known = Vec::new();
        let stub = |(domain, addresses): (Name, Vec<SocketAddr>)| {
            let group = Group::new(&addresses, &known);
            known.extend(group.upstreams.iter().cloned());
            (domain.as_wire().into(), group)
        };
        let inner = Inner {
            own: ArcSwap::default(),
            cache: Cache::new(cache),
            others: ArcSwap::default(),
            stubs: stubs.into_iter().map(stub).collect(),
            flights: Mutex::default(),
            places: Arc::new(Places {
                most,
                most_of_one,
                taken: AtomicUsize::new(0),
                by_client: Mutex::default(),
            }),
            runtime,
            search: ArcSwap::default(),
            counts: Counts::default(),
        };
        inner.ask_these(&addresses);
        let forwarder = Self(Arc::new(inner));
        if let Some(path) = resolv_conf {
            forwarder.follow(path, names_upstreams);
        }
        forwarder
    }

    /// We answer at these addresses: from now on nobody is asked there.
    pub fn answers_at(&self, own: Vec<IpAddr>) {
        self.0.own.store(Arc::new(own));
    }

    /// Reads the file now, and whenever it is another one.
    fn follow(&self, path: PathBuf, names_upstreams: bool) {
        let mut known = self.0.look(&path, names_upstreams, None);
        let inner = Arc::downgrade(&self.0);
        self.0.runtime.spawn(async move {
            let mut ticks = interval(LOOK);
            loop {
                ticks.tick().await;
                let Some(inner) = inner.upgrade() else { return };
                known = inner.look(&path, names_upstreams, known);
            }
        });
    }

    /// The domains that the node's own names are looked for in, as far as there is a resolv.conf.
    pub fn search(&self) -> Arc<Vec<String>> {
        self.0.search.load_full()
    }

    /// The answer, if all that it takes is remembered.
    pub fn recall<'a>(
        &self,
        asked: &Asked<'_>,
        zone: &Zone,
        now: Instant,
        out: &'a mut Buffer,
    ) -> Option<&'a [u8]> {
        let known = |wanted: &Wanted| self.0.recall(&Key::of(wanted), now, wanted);
        Self::remembered(asked, zone, known, out)
    }

    /// The answer, if all that it takes is remembered, however old it is: for whom there is no [`place`](Self::place).
    pub fn recall_stale<'a>(
        &self,
        asked: &Asked<'_>,
        zone: &Zone,
        now: Instant,
        out: &'a mut Buffer,
    ) -> Option<&'a [u8]> {
        let known = |wanted: &Wanted| {
            let key = Key::of(wanted);
            let stale = || Some(self.0.stale(self.0.cache.find(&key, now)?.reply));
            self.0.recall(&key, now, wanted).or_else(stale)
        };
        Self::remembered(asked, zone, known, out)
    }

    /// Whether the client may wait; `None`: too many do.
    pub fn place(&self, client: IpAddr) -> Option<Place> {
        let places = &self.0.places;
        if places.taken.fetch_add(1, Ordering::Relaxed) >= places.most {
            places.taken.fetch_sub(1, Ordering::Relaxed);
            self.0.counts.rejected.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let mut by_client = places.by_client();
        let count = by_client.entry(client).or_default();
        if *count >= places.most_of_one {
            drop(by_client);
            places.taken.fetch_sub(1, Ordering::Relaxed);
            self.0.counts.rejected.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *count += 1;
        drop(by_client);
        Some(Place { places: Arc::clone(places), client })
    }

    /// The answer, whatever it takes, but no longer than a client waits.
    pub async fn resolve<'a>(
        &self,
        asked: &Asked<'_>,
        zone: &Zone,
        out: &'a mut Buffer,
    ) -> &'a [u8] {
        let forward = asked.forward;
        // All at once: those who are late are waited for once.
        let begin = |name: &Name| self.0.begin(&Wanted::new(&forward.query, name.clone()));
        let begun: Vec<_> = forward.names.iter().map(begin).collect();
        let enough = Moment::now() + STALE_AFTER;
        let mut settled = None;
        for (number, begun) in begun.into_iter().enumerate() {
            let known = self.0.find(begun, enough, forward.search).await;
            if let ControlFlow::Break(known) = asked.settle(known) {
                settled = known.map(|known| (number, known));
                break;
            }
        }
        asked.conclude(settled, zone, out)
    }

    /// The answer, if `recall` knows of each name that it takes.
    fn remembered<'a>(
        asked: &Asked<'_>,
        zone: &Zone,
        recall: impl Fn(&Wanted) -> Option<Known>,
        out: &'a mut Buffer,
    ) -> Option<&'a [u8]> {
        let mut settled = None;
        for (number, name) in asked.forward.names.iter().enumerate() {
            let known = recall(&Wanted::new(&asked.forward.query, name.clone()))?;
            if let ControlFlow::Break(known) = asked.settle(Some(known)) {
                settled = known.map(|known| (number, known));
                break;
            }
        }
        Some(asked.conclude(settled, zone, out))
    }

    pub(crate) fn write_metrics(&self, out: &mut Text) {
        self.0.write_metrics(out);
    }
}

/// A query that others have to answer.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'q> {
    /// What they are to be asked.
    pub forward: &'q Forward,
    /// The query itself.
    pub message: &'q [u8],
    /// How it came.
    pub transport: Transport,
}

impl Asked<'_> {
    /// What is known of a name is the answer, or nothing is known of it, or it is not there and the search goes on.
    fn settle(&self, known: Option<Known>) -> ControlFlow<Option<Known>> {
        match known {
            Some(known) if !self.forward.search => ControlFlow::Break(Some(known)),
            Some(known) if known.reply.rcode() == rcode::NX_DOMAIN => ControlFlow::Continue(()),
            known => ControlFlow::Break(known.filter(|known| !known.reply.is_failure())),
        }
    }

    /// Answers with what is known of the name of that number. Where a search has found nothing, or cannot go on, the name that
    /// was asked for is not there: its client goes on itself, and hears of the name that nobody knows of when it asks for that.
    fn conclude<'a>(
        &self,
        settled: Option<(usize, Known)>,
        zone: &Zone,
        out: &'a mut Buffer,
    ) -> &'a [u8] {
        match settled {
            Some((number, known)) => self.answer(number, &known, out),
            None if self.forward.search => {
                zone.absent(self.forward, self.message, self.transport, out)
            }
            None => self.fail(out),
        }
    }

    /// What is known of the name of that number is the answer.
    fn answer<'a>(&self, number: usize, known: &Known, out: &'a mut Buffer) -> &'a [u8] {
        let Known { reply, ttl } = known;
        let forward = self.forward;
        if forward.via.is_empty() && forward.names[number] == forward.question {
            reply.write(&forward.query, self.message, self.transport, *ttl, out.bytes_mut());
            return out.bytes();
        }
        let Some(mut answer) = forward.reply(self.message, self.transport, number, out) else {
            return &[];
        };
        reply.append(*ttl, &mut answer);
        answer.finish(reply.rcode())
    }

    /// Nobody could be asked.
    pub fn fail<'a>(&self, out: &'a mut Buffer) -> &'a [u8] {
        outcome(self.message, rcode::SERV_FAIL, self.transport, out).unwrap_or_default()
    }
}

/// What is known of a name at once, or is on its way.
enum Begun {
    Known(Known),
    Flies { flight: Flight, stale: Option<Arc<Reply>> },
}

/// What is to be told.
struct Known {
    reply: Arc<Reply>,
    ttl: Ttl,
}

impl Known {
    fn new(reply: Arc<Reply>) -> Self {
        Self { reply, ttl: Ttl::NEW }
    }
}

impl Inner {
    fn ask_these(&self, addresses: &[SocketAddr]) {
        let group = Group::new(addresses, &self.upstreams());
        self.others.store(Arc::new(group));
    }

    /// Takes over what the file says, if it is not what is known; returns what is known then.
    fn look(
        &self,
        path: &Path,
        names_upstreams: bool,
        known: Option<ResolvConf>,
    ) -> Option<ResolvConf> {
        match ResolvConf::read(path) {
            Ok(conf) if known.as_ref() == Some(&conf) => known,
            // While somebody writes it, a file is empty.
            Ok(conf) if conf == ResolvConf::default() && known.is_some() => known,
            Ok(conf) => {
                self.search.store(Arc::new(conf.search.clone()));
                if names_upstreams {
                    let upstreams = conf.upstreams_or_local();
                    info!(file = %path.display(), ?upstreams, "ask these for other names");
                    self.ask_these(&upstreams);
                }
                Some(conf)
            }
            Err(error) => {
                if known.is_none() {
                    warn!(%error, file = %path.display(), "cannot read whom to ask for other names");
                }
                known.or_else(|| Some(ResolvConf::default()))
            }
        }
    }

    /// What holds, or is known to be the best there is for now. Begins to fetch what ends soon.
    fn recall(self: &Arc<Self>, key: &Key, now: Instant, wanted: &Wanted) -> Option<Known> {
        let Found { reply, state } = self.cache.find(key, now)?;
        let ttl = match state {
            State::Fresh(ttl) => ttl,
            State::Ending(ttl) => {
                self.counts.prefetched.fetch_add(1, Ordering::Relaxed);
                let _flight = self.depart(key, wanted);
                ttl
            }
            State::Stale => return None,
            State::StaleForNow => return Some(self.stale(reply)),
            State::StaleForNowEnding => {
                let _flight = self.depart(key, wanted);
                return Some(self.stale(reply));
            }
        };
        let hits = if reply.has_answers() { &self.counts.hits } else { &self.counts.denied_hits };
        hits.fetch_add(1, Ordering::Relaxed);
        Some(Known { reply, ttl })
    }

    fn stale(&self, reply: Arc<Reply>) -> Known {
        self.counts.stale.fetch_add(1, Ordering::Relaxed);
        Known { reply, ttl: Ttl::Stale }
    }

    /// What is known, or begins to be found out.
    fn begin(self: &Arc<Self>, wanted: &Wanted) -> Begun {
        let (key, now) = (Key::of(wanted), Moment::now().into_std());
        if let Some(known) = self.recall(&key, now, wanted) {
            return Begun::Known(known);
        }
        self.counts.misses.fetch_add(1, Ordering::Relaxed);
        let stale = self.cache.find(&key, now).map(|found| found.reply);
        Begun::Flies { flight: self.depart(&key, wanted), stale }
    }

    /// What it has come to; until `enough` if `hurries`, or if there is something else to be told.
    async fn find(&self, begun: Begun, enough: Moment, hurries: bool) -> Option<Known> {
        let (mut flight, stale) = match begun {
            Begun::Known(known) => return Some(known),
            Begun::Flies { flight, stale } => (flight, stale),
        };
        let landed = async {
            let landed = flight.wait_for(Option::is_some).await;
            landed.ok().and_then(|landed| landed.clone())
        };
        let landed = if hurries || stale.is_some() {
            timeout_at(enough, landed).await.ok().flatten()
        } else {
            landed.await
        };
        match (landed, stale) {
            (Some(reply), stale) if !reply.is_failure() || stale.is_none() => {
                Some(Known::new(reply))
            }
            (_, stale) => stale.map(|reply| self.stale(reply)),
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Flight>> {
        // Nothing panics while it is held.
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the flight that asks the same, or sends one. It lands whoever still waits.
    fn depart(self: &Arc<Self>, key: &Key, wanted: &Wanted) -> Flight {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(key.bytes()) {
            return flight.clone();
        }
        let (landing, flight) = watch::channel(None);
        flights.insert(key.bytes().into(), flight.clone());
        drop(flights);
        let (inner, key, wanted) = (Arc::clone(self), key.clone(), Arc::new(wanted.clone()));
        self.runtime.spawn(async move {
            let said = inner.ask(&wanted).await;
            let landed = Arc::new(said.unwrap_or_else(|| Reply::failure(&wanted)));
            let now = Moment::now().into_std();
            if landed.is_failure() {
                inner.cache.failed(&key, &landed, now);
            } else {
                inner.cache.keep(&key, &landed, now);
            }
            // Whoever comes from now on finds it in the cache, or asks again.
            inner.flights().remove(key.bytes());
            landing.send_replace(Some(landed));
        });
        flight
    }

    /// Asks the group that is to know the name.
    async fn ask(&self, wanted: &Arc<Wanted>) -> Option<Reply> {
        let others = self.others.load_full();
        let group = self.stub(wanted.name.as_wire()).unwrap_or(&others);
        if group.is_broken() {
            self.counts.broken.fetch_add(1, Ordering::Relaxed);
        }
        let own = self.own.load_full();
        group.ask(wanted, &own).await
    }

    /// The group of the longest domain that the name is in.
    fn stub(&self, name: &[u8]) -> Option<&Group> {
        if self.stubs.is_empty() {
            return None;
        }
        let mut rest = name;
        loop {
            if let Some(group) = self.stubs.get(rest) {
                return Some(group);
            }
            let label = usize::from(*rest.first().filter(|length| **length > 0)?);
            rest = &rest[1 + label..];
        }
    }

    /// Everybody who may be asked, each once.
    fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let others = self.others.load_full();
        let stubs = self.stubs.values().flat_map(|group| &group.upstreams);
        let mut all: Vec<_> = others.upstreams.iter().chain(stubs).cloned().collect();
        all.sort_by_key(|upstream| upstream.address);
        all.dedup_by_key(|upstream| upstream.address);
        all
    }

    fn write_metrics(&self, out: &mut Text) {
        let upstreams = self.upstreams();
        let to = |upstream: &Upstream| format!("to=\"{}\"", upstream.address);
        let mut by_upstream = |name, help, count: fn(&Upstream) -> &AtomicU64| {
            out.family(name, "counter", help);
            for upstream in &upstreams {
                out.line(name, &to(upstream), count(upstream).load(Ordering::Relaxed));
            }
        };
        by_upstream("coredns_forward_requests_total", "Questions to an upstream.", |upstream| {
            &upstream.counts.requests
        });
        by_upstream(
            "coredns_forward_healthcheck_failures_total",
            "Questions to an upstream that show whether it is there, and were not answered.",
            |upstream| &upstream.counts.failed_probes,
        );
        let name = "coredns_forward_responses_total";
        out.family(name, "counter", "Answers of an upstream.");
        for upstream in &upstreams {
            for (rcode, count) in upstream.counts.responses.iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let labels = format!("{},rcode=\"{}\"", to(upstream), rcode_name(rcode));
                    out.line(name, &labels, count);
                }
            }
        }
        let name = "coredns_forward_request_duration_seconds";
        out.family(name, "histogram", "How long an upstream took to answer.");
        for upstream in &upstreams {
            upstream.counts.took.write(out, name, &to(upstream));
        }
        let counts = &self.counts;
        let usage = self.cache.usage();
        for (name, help, count) in [
            (
                "coredns_forward_healthcheck_broken_total",
                "Times that no upstream seemed to be there.",
                &counts.broken,
            ),
            (
                "coredns_forward_max_concurrent_rejects_total",
                "Questions that were not passed on, as too many were already.",
                &counts.rejected,
            ),
            ("coredns_cache_misses_total", "Questions whose answer was not known.", &counts.misses),
            (
                "coredns_cache_prefetch_total",
                "Answers that were fetched anew before they ended.",
                &counts.prefetched,
            ),
            (
                "coredns_cache_served_stale_total",
                "Answers that had ended, as nobody knew better ones.",
                &counts.stale,
            ),
        ] {
            out.family(name, "counter", help);
            out.line(name, "", count.load(Ordering::Relaxed));
        }
        let name = "coredns_cache_hits_total";
        out.family(name, "counter", "Questions whose answer was known.");
        out.line(name, "type=\"success\"", counts.hits.load(Ordering::Relaxed));
        out.line(name, "type=\"denial\"", counts.denied_hits.load(Ordering::Relaxed));
        out.family(
            "coredns_cache_evictions_total",
            "counter",
            "Answers that had to go for others.",
        );
        out.line("coredns_cache_evictions_total", "", usage.evicted);
        out.family("coredns_cache_entries", "gauge", "Answers that are known.");
        out.line("coredns_cache_entries", "", usage.entries);
        out.family("fairway_dns_cache_bytes", "gauge", "What they take in memory.");
        out.line("fairway_dns_cache_bytes", "", usage.bytes);
    }
}
