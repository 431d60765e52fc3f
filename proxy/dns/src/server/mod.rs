//! Where queries come in, and answers go out.
//!
//! ```text
//! datagrams ─► worker (a thread) ─► decide ─┬─► answer                         ─► in batches
//! streams ───► task of a connection ────────┴─► task that waits for upstreams  ─► when it is there
//! ```
//!
//! A worker has its own socket of each address, takes what is there, and looks at one zone meanwhile; it never waits for anybody
//! but clients. Sockets come from outside and are only read from: when the server stops they have lost nothing, and whoever has
//! copies of them goes on.

mod admission;
mod counts;
mod log;
mod signs;
mod sockets;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fairway_core::dns::rcode;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};
use tracing::error;

pub use self::admission::{Access, Clients};
pub use self::counts::Elsewhere;
pub use self::log::LogOptions;
pub use self::signs::Signs;
pub use self::sockets::Sockets;

use self::admission::{Admission, Ruling};
use self::counts::Counts;
use self::log::QueryLog;
use self::udp::Waker;
use crate::answer::{Buffer, Client, Forward, Transport, Verdict, outcome};
use crate::forward::{Asked, Forwarder, Place};
use crate::metrics::{Histogram, Text};
use crate::zone::Zone;

/// What a [`Server`] is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Queries a second of one client that are answered; 0: all.
    pub rate: u32,
    /// Connections at a time, and of one client.
    pub connections: usize,
    /// See there.
    pub connections_of_one: usize,
    /// Which queries are written down.
    pub log: LogOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self { rate: 20_000, connections: 1024, connections_of_one: 64, log: LogOptions::default() }
    }
}

/// All that answers have in common, wherever their queries come in.
pub struct Service {
    zone: ArcSwap<Zone>,
    forwarder: Forwarder,
    admission: Admission,
    log: QueryLog,
    /// Of each worker, and at last of all tasks.
    counts: Vec<Counts>,
    programmed: Histogram,
    options: Options,
}

impl fmt::Debug for Service {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Service").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Service {
    /// For up to `workers` threads that take datagrams.
    pub fn new(
        zone: Zone,
        forwarder: Forwarder,
        clients: Box<dyn Clients>,
        workers: usize,
        options: Options,
    ) -> Self {
        Self {
            zone: ArcSwap::from_pointee(zone),
            forwarder,
            admission: Admission::new(clients, options.rate),
            log: QueryLog::new(options.log),
            counts: (0..=workers).map(|_| Counts::default()).collect(),
            programmed: Histogram::default(),
            options,
        }
    }

    /// Answers from this zone from now on.
    pub fn set_zone(&self, zone: Zone) {
        self.zone.store(Arc::new(zone));
    }

    /// The zone that is answered from.
    pub fn zone(&self) -> Arc<Zone> {
        self.zone.load_full()
    }

    /// So long it took from a model's arrival until it was answered from.
    pub fn programmed(&self, took: Duration) {
        self.programmed.add(took);
    }

    /// All that was counted, here and elsewhere, in the text format of Prometheus.
    pub fn metrics(&self, elsewhere: &[Elsewhere]) -> String {
        let mut text = Text::default();
        counts::write(&self.counts, elsewhere, &self.admission, &self.log, &mut text);
        let name = "fairway_dns_programming_duration_seconds";
        text.family(
            name,
            "histogram",
            "Time from a model's arrival at this agent to answers that have it.",
        );
        self.programmed.write(&mut text, name, "");
        self.forwarder.write_metrics(&mut text);
        text.into_string()
    }

    /// Counts of whoever is no worker.
    fn tasks(&self) -> &Counts {
        &self.counts[self.counts.len() - 1]
    }

    /// What becomes of a message; an answer lies in `out`.
    fn decide(
        &self,
        zone: &Zone,
        message: &[u8],
        client: &Client,
        now: Instant,
        counts: &Counts,
        out: &mut Buffer,
    ) -> Step {
        let forward = match zone.answer(message, client, out) {
            Verdict::Answer { kind, .. } => {
                counts.request(client, kind);
                return Step::Say;
            }
            Verdict::Drop(reason) => {
                counts.dropped(reason);
                return Step::Silence;
            }
            Verdict::Forward(forward) => forward,
        };
        counts.request(client, forward.query.kind);
        let asked = Asked { forward: &forward, message, transport: client.transport };
        if self.forwarder.recall(&asked, zone, now, out).is_some() {
            return Step::Say;
        }
        match self.forwarder.place(client.address.ip()) {
            Some(place) => Step::Ask(forward, place),
            None => {
                if self.forwarder.recall_stale(&asked, zone, now, out).is_none() {
                    asked.fail(out);
                }
                Step::Say
            }
        }
    }

    /// Whether the client is answered, and as whom.
    fn admit(&self, address: SocketAddr, transport: Transport, now: Instant) -> (Ruling, Client) {
        let (ruling, namespace) = self.admission.rule(address.ip().to_canonical(), now);
        (ruling, Client { address, namespace, transport })
    }

    /// Notes an answer that goes out.
    fn answered(&self, client: &Client, answer: &[u8], began: Instant, counts: &Counts) {
        counts.response(answer);
        if self.log.wants(began) {
            self.log.write(client, answer, began.elapsed());
        }
    }
}

/// See [`Service::decide`].
enum Step {
    /// It is answered.
    Say,
    /// Others are to be asked, and there is a place to wait at.
    Ask(Box<Forward>, Place),
    /// It is not answered.
    Silence,
}

/// A query that waits for others.
struct Waiting {
    service: Arc<Service>,
    client: Client,
    message: Box<[u8]>,
    forward: Box<Forward>,
    _place: Place,
    began: Instant,
}

impl Waiting {
    /// Waits for the answer, and notes it.
    async fn answer(self, out: &mut Buffer) -> &[u8] {
        let transport = self.client.transport;
        let asked = Asked { forward: &self.forward, message: &self.message, transport };
        let zone = self.service.zone();
        let answer = self.service.forwarder.resolve(&asked, &zone, out).await;
        let counts = self.service.tasks();
        counts.took(self.began.elapsed(), 1);
        self.service.answered(&self.client, answer, self.began, counts);
        answer
    }
}

/// Refuses in so many words. `None`: what came is not even a query.
fn refuse(message: &[u8], transport: Transport, out: &mut Buffer) -> bool {
    outcome(message, rcode::REFUSED, transport, out).is_some()
}

/// Answers on sockets until it is stopped.
#[derive(Debug)]
pub struct Server {
    workers: Vec<JoinHandle<()>>,
    signs: Arc<Signs>,
    waker: Waker,
    stopping: watch::Sender<bool>,
    /// Ends when nobody waits for upstreams any more.
    waiting: mpsc::Receiver<()>,
}

impl Server {
    /// Begins. Each worker takes datagrams on a thread of its own; all else runs on `runtime`.
    ///
    /// # Errors
    ///
    /// What the kernel says to a thread more, or to one of the sockets.
    pub fn start(service: &Arc<Service>, sockets: &Sockets, runtime: &Handle) -> io::Result<Self> {
        let (stopping, stop) = watch::channel(false);
        let (alive, waiting) = mpsc::channel(1);
        let waker = Waker::new()?;
        let mut workers = Vec::new();
        let by_worker = sockets.by_worker()?;
        let signs = Arc::new(Signs::new(by_worker.len() + 1));
        runtime.spawn(give_signs(Arc::clone(&signs), by_worker.len(), stop.clone()));
        for (number, sockets) in by_worker.into_iter().enumerate() {
            let context = udp::Context {
                service: Arc::clone(service),
                signs: Arc::clone(&signs),
                number,
                runtime: runtime.clone(),
                alive: alive.clone(),
            };
            let woken = waker.listener()?;
            let thread = thread::Builder::new().name(format!("dns-{number}"));
            workers.push(thread.spawn(|| udp::Worker::new(context, sockets, woken).run())?);
        }
        for listener in sockets.listeners()? {
            let _on_runtime = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let context = tcp::Context { service: Arc::clone(service), alive: alive.clone() };
            runtime.spawn(tcp::serve(context, listener, stop.clone()));
        }
        Ok(Self { workers, signs, waker, stopping, waiting })
    }

    /// Whether it answers: when each of its threads, and the runtime that all else runs on, was last seen at it.
    pub fn signs(&self) -> Arc<Signs> {
        Arc::clone(&self.signs)
    }

    /// Takes nothing any more, and gives those who wait for upstreams until `patience` is over. Returns whether all of them were
    /// answered.
    pub async fn stop(self, patience: Duration) -> bool {
        let Self { workers, waker, stopping, mut waiting, .. } = self;
        waker.wake();
        stopping.send_replace(true);
        let ended = tokio::task::spawn_blocking(|| {
            for worker in workers {
                if worker.join().is_err() {
                    error!("a worker for datagrams has panicked");
                }
            }
        });
        let all = async {
            // A thread that ends has nothing to say.
            let _ = ended.await;
            // Nobody sends anything; the last one who could is gone.
            let _ = waiting.recv().await;
        };
        timeout(patience, all).await.is_ok()
    }
}

/// Has the runtime give signs until it is to stop.
async fn give_signs(signs: Arc<Signs>, number: usize, mut stop: watch::Receiver<bool>) {
    let mut ticks = interval(signs::EVERY);
    let stopped = stop.wait_for(|stop| *stop);
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            _ = ticks.tick() => signs.give(number),
            _ = &mut stopped => return,
        }
    }
}

/// Where a client is without a port.
fn family(address: IpAddr) -> usize {
    usize::from(!address.to_canonical().is_ipv4())
}
