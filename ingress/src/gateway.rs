//! A gateway that runs: its threads, and how it comes to its end.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fairway_feed::{ModelReceiver, names_secrets};
use fairway_model::Model;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::admin;
use crate::dashboards::Controller;
use crate::handover::{self, Predecessor};
use crate::listeners::{Listeners, Purpose};
use crate::metrics::Metrics;
use crate::ports::{Ports, most_flows};
use crate::record::{Log, LogFormat};
use crate::route::Public;
use crate::server::{self, Phase};
use crate::state::State;
use crate::worker::Worker;

/// How often session tickets' keys are looked at.
const KEYS: Duration = Duration::from_secs(600);
/// How often it is tried again to listen on a port that somebody else has.
const RETRY: Duration = Duration::from_secs(10);

/// Tasks that a worker lets go on before it asks what else has come. A request has three turns, and those that have
/// come together are to be read together, and written together.
const TURNS: u32 = 256;

/// What a gateway is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name that its replicas have in common.
    pub name: String,
    /// Where it takes HTTP.
    pub http: SocketAddr,
    /// Where it takes HTTP over TLS.
    pub https: SocketAddr,
    /// The ports that clients connect to.
    pub public: Public,
    /// Where it tells how it fares.
    pub admin: SocketAddr,
    /// Threads that serve.
    pub workers: usize,
    /// Connections of each of them.
    pub connections: usize,
    /// How requests are logged.
    pub log: LogFormat,
    /// The Unix socket at which the listeners of a gateway that runs are taken over, and given to the next one;
    /// `None`: neither.
    pub handover: Option<PathBuf>,
    /// The namespace and the name of its pod, for its metrics; empty outside of clusters.
    pub pod: (String, String),
}

impl Options {
    /// How many descriptors that may take: of each worker, connections for HTTP and as many for TLS, with another one
    /// to a backend; and flows of datagrams.
    pub fn descriptors(&self) -> u64 {
        let connections = self.workers.max(1).saturating_mul(self.connections).saturating_mul(4);
        u64::try_from(connections.saturating_add(most_flows())).unwrap_or(u64::MAX)
    }
}

impl Default for Options {
    /// On ports that nobody has, with one worker.
    fn default() -> Self {
        let here = (Ipv4Addr::LOCALHOST, 0).into();
        Self {
            name: String::new(),
            http: here,
            https: here,
            public: Public::default(),
            admin: here,
            workers: 1,
            connections: 16_384,
            log: LogFormat::Off,
            handover: None,
            pod: Default::default(),
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
    /// Where it hands over.
    handover: Option<PathBuf>,
    /// Who waits there for the next one.
    offer: watch::Sender<Option<Arc<UnixListener>>>,
    /// From whom it has its listeners, until it serves.
    before: Mutex<Option<Predecessor>>,
    telling: AbortHandle,
    threads: Vec<thread::JoinHandle<()>>,
}

/// Somebody who wants to take over.
#[derive(Debug)]
pub struct Asked(UnixStream);

/// What is told of a gateway.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: Arc<State>,
    pub(crate) metrics: Vec<Arc<Metrics>>,
    pub(crate) log: Log,
    pub(crate) controller: Controller,
    pub(crate) ports: Ports,
    listeners: Arc<Listeners>,
    /// A whole model has been applied, with its secrets.
    pub(crate) served: AtomicBool,
    /// It is about to end.
    pub(crate) leaving: AtomicBool,
}

impl Gateway {
    /// Starts threads that serve, but takes no clients until it [follows](Self::follow) a model, or is told to
    /// [begin](Self::begin). Within a Tokio runtime, which answers who asks how it fares. If it has the listeners of a
    /// gateway that runs, it leaves clients to that so long.
    ///
    /// # Errors
    /// When it cannot listen where it is to.
    pub async fn start(options: &Options) -> Result<Self> {
        let state = Arc::new(State::new(&options.name, options.public)?);
        let log = Log::start(options.log).context("start the access log")?;
        let taken = match &options.handover {
            Some(path) => handover::take(path).await?,
            None => None,
        };
        let (before, inherited) = taken.map_or_else(Default::default, |(before, sockets)| {
            info!("takes over from the gateway that runs");
            (Some(before), sockets)
        });
        let (phase, phases) = watch::channel(Phase::Waiting);
        let (stop, stops) = watch::channel(false);
        let workers = options.workers.max(1);
        let mut listeners = Listeners::new(workers, inherited);
        let admin = listeners.open(Purpose::Admin, options.admin).context("--admin")?;
        let http = listeners.open(Purpose::Http, options.http).context("--http")?;
        let https = listeners.open(Purpose::Https, options.https).context("--https")?;
        [admin, http, https].into_iter().for_each(|own| listeners.reserve(own));
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
        let controller = Controller::new(&options.pod.0, &options.pod.1);
        let shared = Shared { state, metrics, log, controller, ports, listeners, served, leaving };
        let shared = Arc::new(shared);
        let telling = shared.listeners.of_worker(Purpose::Admin, 0)?.into_iter().next();
        let telling = telling.context("--admin")?;
        let telling = TcpListener::from_std(telling.into()).context("--admin")?;
        let telling = {
            let (shared, phases) = (Arc::clone(&shared), phases.clone());
            let succeeds = before.is_some();
            tokio::spawn(async move {
                if succeeds {
                    server::begun(phases, false).await;
                }
                admin::serve(telling, shared).await;
            })
        };
        let gateway = Self {
            http,
            https,
            admin,
            shared,
            phase,
            stop,
            handover: options.handover.clone(),
            offer: watch::Sender::new(None),
            before: Mutex::new(before),
            telling: telling.abort_handle(),
            threads,
        };
        if !gateway.succeeds() {
            gateway.offer();
        }
        Ok(gateway)
    }

    /// Whether another gateway still serves with the same listeners.
    pub fn succeeds(&self) -> bool {
        self.before().is_some()
    }

    fn before(&self) -> MutexGuard<'_, Option<Predecessor>> {
        // Nothing panics while it is held.
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next gateway.
    fn offer(&self) {
        let Some(path) = &self.handover else { return };
        match handover::offer(path) {
            Ok(listener) => _ = self.offer.send_replace(Some(Arc::new(listener))),
            Err(error) => {
                warn!(%error, "{}: the next gateway cannot take over", path.display());
            }
        }
    }

    /// Takes clients from now on, in place of the gateway that its listeners are from, and is ready.
    ///
    /// # Errors
    /// When it cannot listen, or that gateway goes on.
    pub fn begin(&self) -> Result<()> {
        self.enter(Phase::Serving)
    }

    fn enter(&self, next: Phase) -> Result<()> {
        if *self.phase.borrow() >= next {
            return Ok(());
        }
        let before = self.before().take();
        if let Some(before) = &before {
            before.waits()?;
        }
        let whole = next == Phase::Serving;
        self.shared.listeners.begin(whole).context("listen")?;
        if whole {
            self.shared.served.store(true, Ordering::Release);
        }
        if let Some(before) = before {
            // Whoever looks for a gateway from now on is to find this one.
            self.offer();
            before.ready();
            info!("has taken over");
        }
        self.phase.send_replace(next);
        Ok(())
    }

    /// Waits for a process of the same user that wants to take over.
    pub async fn asked(&self) -> Asked {
        let mut offer = self.offer.subscribe();
        loop {
            let listener = offer.borrow_and_update().clone();
            if let Some(listener) = listener {
                return Asked(handover::asked(&listener).await);
            }
            // It is never dropped before this.
            let _ = offer.changed().await;
        }
    }

    /// Gives all listeners to who has asked, and answers which process that is when it serves. Until then this one
    /// serves.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn hand_over(&self, asked: Asked) -> Result<Option<i32>> {
        let sockets = self.shared.listeners.all().context("copy the listeners")?;
        handover::give(&asked.0, &sockets).await.context("hand over to another gateway")?;
        Ok(asked.0.peer_cred()?.pid())
    }

    /// Serves `model` from now on, or as soon as it [begins](Self::begin).
    pub fn apply(&self, model: &Arc<Model>) {
        self.shared.state.apply(model);
        self.open_ports();
        self.shared.controller.applied();
    }

    fn open_ports(&self) {
        if *self.phase.borrow() != Phase::Closing {
            self.shared.ports.apply(&self.shared.state.snapshot());
        }
    }

    /// Serves whatever comes, from the first model on, and tells when it is in force; returns when nothing will come any
    /// more. A model whose secrets are kept nowhere is served without TLS, and nobody is called here for it before
    /// `told` is over: he would be shown a certificate that is nobody's.
    ///
    /// # Errors
    /// When another gateway serves with the same listeners, and goes on.
    pub async fn follow(
        &self,
        mut models: ModelReceiver,
        told: impl Future<Output = ()>,
        applied: impl Fn(&Arc<Model>),
    ) -> Result<()> {
        let mut told = pin!(told);
        let mut waits = true;
        loop {
            let whole = self.shared.ports.problems().is_empty();
            tokio::select! {
                // What has come is in force before it counts that all has come.
                biased;
                changed = models.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let model = models.borrow_and_update().clone();
                    let Some(model) = model else { continue };
                    self.apply(&model);
                    if !(waits && model.secrets.is_empty() && names_secrets(&model)) {
                        self.begin()?;
                    } else if !self.succeeds() {
                        self.enter(Phase::Plain)?;
                    }
                    applied(&model);
                }
                () = &mut told, if waits => {
                    waits = false;
                    if models.borrow().is_some() {
                        self.begin()?;
                    }
                }
                () = sleep(if whole { KEYS } else { RETRY }) => {
                    self.shared.state.renew();
                    self.open_ports();
                }
            }
        }
    }

    /// Is ready for nothing more from now on, but serves, so that whoever sends clients here hears of it.
    pub fn leave(&self) {
        self.shared.leaving.store(true, Ordering::Release);
    }

    /// Takes no more clients; ends connections as soon as nothing is under way, and all that are left after `patience`.
    pub async fn drain(&self, patience: Duration) {
        self.leave();
        self.end(patience).await;
    }

    /// Leaves clients to another gateway, which has the listeners; then ends as when it [drains](Self::drain).
    pub async fn give_way(&self, patience: Duration) {
        self.leave();
        self.telling.abort();
        self.end(patience).await;
    }

    async fn end(&self, patience: Duration) {
        // Who starts now is not to wait for this one.
        self.offer.send_replace(None);
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
        self.shared.listeners.close_all();
        self.telling.abort();
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
        self.shared.log.flush();
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
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().event_interval(TURNS).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker cannot start");
            return;
        }
    };
    runtime.block_on(async {
        tokio::spawn(Arc::clone(worker).tidy());
        for (socket, tls) in sockets {
            let (worker, phase) = (Arc::clone(worker), phase.clone());
            tokio::spawn(async move {
                server::begun(phase.clone(), tls).await;
                match TcpListener::from_std(socket.into()) {
                    Ok(listener) => server::accept(worker, listener, tls, phase).await,
                    Err(error) => tracing::error!(%error, "a worker cannot listen"),
                }
            });
        }
        let phase = phase.clone();
        tokio::spawn(async move {
            server::begun(phase, false).await;
            ports.await;
        });
        // Also if whoever decides is gone.
        let _ = stop.wait_for(|stop| *stop).await;
    });
}
