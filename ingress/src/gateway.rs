//! A gateway that runs: its threads, and how it comes to its end.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fairway_feed::ModelReceiver;
use fairway_model::Model;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::admin;
use crate::listeners::{Listeners, Purpose};
use crate::ports::Ports;
use crate::record::{Log, LogFormat, Metrics};
use crate::server::{self, Phase};
use crate::state::State;
use crate::worker::Worker;

/// How often session tickets' keys are looked at.
const KEYS: Duration = Duration::from_secs(600);
/// How often it is tried again to listen on a port that somebody else has.
const RETRY: Duration = Duration::from_secs(10);

/// What a gateway is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name that its replicas have in common.
    pub name: String,
    /// Where it takes HTTP.
    pub http: SocketAddr,
    /// Where it takes HTTP over TLS.
    pub https: SocketAddr,
    /// Where it tells how it fares.
    pub admin: SocketAddr,
    /// Threads that serve.
    pub workers: usize,
    /// Connections of each of them.
    pub connections: usize,
    /// How requests are logged.
    pub log: LogFormat,
}

impl Default for Options {
    /// On ports that nobody has, with one worker.
    fn default() -> Self {
        let here = (Ipv4Addr::LOCALHOST, 0).into();
        Self {
            name: String::new(),
            http: here,
            https: here,
            admin: here,
            workers: 1,
            connections: 16_384,
            log: LogFormat::Off,
        }
    }
}

/// Threads that serve. They end when it is dropped, and what is open with them.
#[derive(Debug)]
pub struct Gateway {
    /// Where it takes HTTP.
    pub http: SocketAddr,
    /// Where it takes HTTP over TLS.
    pub https: SocketAddr,
    /// Where it tells how it fares.
    pub admin: SocketAddr,
    pub(crate) shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
    stop: watch::Sender<bool>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// What is told of a gateway.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: Arc<State>,
    pub(crate) metrics: Vec<Arc<Metrics>>,
    pub(crate) log: Log,
    pub(crate) ports: Ports,
    listeners: Arc<Listeners>,
    /// A whole model has been applied.
    pub(crate) served: AtomicBool,
    /// It is about to end.
    pub(crate) leaving: AtomicBool,
}

impl Gateway {
    /// Starts to serve, nothing at first. Within a Tokio runtime, which then answers who asks how it fares.
    ///
    /// # Errors
    /// When it cannot listen where it is to.
    pub async fn start(options: &Options) -> Result<Self> {
        let state = Arc::new(State::new(&options.name)?);
        let log = Log::start(options.log).context("start the access log")?;
        let (phase, phases) = watch::channel(Phase::Serving);
        let (stop, stops) = watch::channel(false);
        let admin = TcpListener::bind(options.admin).await;
        let admin = admin.with_context(|| format!("listen on {}", options.admin))?;
        let address = admin.local_addr()?;
        let workers = options.workers.max(1);
        let mut listeners = Listeners::new(workers);
        let http = listeners.open(Purpose::Http, options.http).context("--http")?;
        let https = listeners.open(Purpose::Https, options.https).context("--https")?;
        [address, http, https].into_iter().for_each(|own| listeners.reserve(own));
        let listeners = Arc::new(listeners);
        let ports = Ports::new(Arc::clone(&listeners), http.ip());
        let (mut threads, mut metrics) = (Vec::new(), Vec::new());
        for number in 0..workers {
            let worker = Worker::new(Arc::clone(&state), log.clone(), options.connections)?;
            metrics.push(Arc::clone(&worker.metrics));
            let worker = Arc::new(worker);
            let mut sockets = Vec::new();
            for (purpose, tls) in [(Purpose::Http, false), (Purpose::Https, true)] {
                let own = listeners.of_worker(purpose, number).context("share the listeners")?;
                sockets.extend(own.into_iter().map(|socket| (socket, tls)));
            }
            let ports = ports.look_after(Arc::clone(&worker), number, phases.clone());
            let (phases, stops) = (phases.clone(), stops.clone());
            let thread = thread::Builder::new().name(format!("worker-{number}"));
            let run = move || work(&worker, sockets, ports, &phases, stops);
            threads.push(thread.spawn(run).context("start a worker")?);
        }
        let (served, leaving) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Shared { state, metrics, log, ports, listeners, served, leaving };
        let shared = Arc::new(shared);
        tokio::spawn(admin::serve(admin, Arc::clone(&shared)));
        Ok(Self { http, https, admin: address, shared, phase, stop, threads })
    }

    /// Serves `model` from now on.
    pub fn apply(&self, model: &Arc<Model>) {
        self.shared.state.apply(model);
        self.shared.ports.apply(&self.shared.state.snapshot());
        self.shared.served.store(true, Ordering::Release);
    }

    /// Serves whatever comes, and tells when it is in force; returns when nothing will come any more.
    pub async fn follow(&self, mut models: ModelReceiver, applied: impl Fn(&Arc<Model>)) {
        loop {
            let whole = self.shared.ports.problems().is_empty();
            match timeout(if whole { KEYS } else { RETRY }, models.changed()).await {
                Err(_) => {
                    self.shared.state.renew();
                    self.shared.ports.apply(&self.shared.state.snapshot());
                }
                Ok(Err(_)) => return,
                Ok(Ok(())) => {
                    let model = models.borrow_and_update().clone();
                    if let Some(model) = model {
                        self.apply(&model);
                        applied(&model);
                    }
                }
            }
        }
    }

    /// Is ready for nothing more from now on, but serves for `wait`, so that whoever sends clients here hears
    /// of it; then ends connections as soon as nothing is under way, and all that are left after `patience`.
    pub async fn drain(&self, wait: Duration, patience: Duration) {
        self.shared.leaving.store(true, Ordering::Release);
        sleep(wait).await;
        self.phase.send_replace(Phase::Closing);
        self.shared.listeners.close_all();
        let end = Instant::now() + patience;
        while self.open() > 0 && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
        info!(cut = self.open(), "the gateway has drained");
    }

    /// Connections of clients.
    pub fn open(&self) -> u64 {
        self.shared.metrics.iter().map(|one| one.open.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Closing);
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A worker's thread.
fn work(
    worker: &Arc<Worker>,
    sockets: Vec<(OwnedFd, bool)>,
    ports: impl Future<Output = ()> + Send + 'static,
    phase: &watch::Receiver<Phase>,
    mut stop: watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker cannot start");
            return;
        }
    };
    runtime.block_on(async {
        for (socket, tls) in sockets {
            match TcpListener::from_std(socket.into()) {
                Ok(listener) => {
                    let (worker, phase) = (Arc::clone(worker), phase.clone());
                    tokio::spawn(server::accept(worker, listener, tls, phase));
                }
                Err(error) => tracing::error!(%error, "a worker cannot listen"),
            }
        }
        tokio::spawn(ports);
        tokio::spawn(Arc::clone(worker).tidy());
        // Also if whoever decides is gone.
        let _ = stop.wait_for(|stop| *stop).await;
    });
}
