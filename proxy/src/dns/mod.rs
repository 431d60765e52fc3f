//! The cluster's DNS server, as far as this node is concerned: where it listens, who may ask, how the kernel knows
//! that it answers, and how one agent follows another.
//!
//! ```text
//! model ─────────► zone ───┐
//! pods, nodes ───► known ──┴─► service ─► server at 169.254.20.10   (this node's pods and processes)
//!                                   └───► server at the range's .0  (other nodes, whose agents are away)
//! is it serving? ─► pulse ─► table `resolver`, by which programs lead queries here or elsewhere
//! ```
//!
//! Queries that come while there is no agent wait in the sockets, if a service manager keeps those (`store`).

use std::collections::BTreeMap;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use fairway_compile::overlay_addresses;
use fairway_controlplane::manifests::LocalPod;
use fairway_dns::forward::{self, Forwarder, Upstreams};
use fairway_dns::server::{self, LogOptions, Server, Service, Sockets};
use fairway_dns::{Name, Zone, zone};
use fairway_feed::ModelReceiver;
use fairway_model::{Model, ObjectName};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::dataplane::Single;
use crate::status::Status;
use crate::traces::Traces;
use clients::Known;
use pulse::{Pulse, Serving};

pub(crate) use explain::Explainer;
pub(crate) use kernel::{KernelNames, NameTables};
pub(crate) use listener::remove_addresses;
pub use options::{Options, Switch};
pub(crate) use pulse::is_later;

mod clients;
mod explain;
mod kernel;
mod listener;
mod options;
mod pulse;
mod records;
mod store;
#[cfg(test)]
mod tests;

pub mod query;

/// The node's own configuration of DNS.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Between two tries to listen.
const AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked whether the node searches in other domains.
const LOOK: Duration = Duration::from_secs(2);
/// Once programs lead queries elsewhere, those that were on their way here have arrived after so long...
const ON_THEIR_WAY: Duration = Duration::from_millis(50);
/// ...and who waits for upstreams has got an answer, or will get none in time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Threads that take datagrams, where there are as many processors.
const WORKERS: usize = 4;

/// What answers. Ends with its process, or when it is told to.
pub(crate) struct Dns {
    explainer: Arc<Explainer>,
    serving: Serving,
    pulse: Option<Pulse>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What it goes by.
pub(crate) struct Inputs {
    pub(crate) node: String,
    pub(crate) options: Options,
    /// In whose place queries are answered.
    pub(crate) service: ObjectName,
    pub(crate) models: ModelReceiver,
    pub(crate) pods: watch::Receiver<Vec<LocalPod>>,
    pub(crate) traces: Arc<Traces>,
    pub(crate) status: Arc<Status>,
    /// What the kernel answers by itself.
    pub(crate) names: KernelNames,
}

impl Dns {
    /// Begins to answer, as soon as there is a model. Within a Tokio runtime.
    pub(crate) fn start(inputs: Inputs) -> Self {
        let serving = Serving::default();
        let (stop, stopping) = watch::channel(false);
        let explainer = Arc::new(Explainer::new(inputs.pods.clone(), inputs.names.clone()));
        // What this process begins from now on does not inherit them.
        let kept = store::take();
        let task =
            tokio::spawn(run(inputs, kept, serving.clone(), Arc::clone(&explainer), stopping));
        Self { explainer, serving, pulse: None, stop, task }
    }

    /// Whoever can say why queries are answered as they are.
    pub(crate) fn explainer(&self) -> Arc<Explainer> {
        Arc::clone(&self.explainer)
    }

    /// From now on programs are told in this table whether queries are answered here.
    pub(crate) fn tell(&mut self, table: Single<u64>) -> Result<()> {
        self.pulse = Some(Pulse::start(table, self.serving.clone())?);
        Ok(())
    }

    /// Answers what has come, and no more.
    pub(crate) async fn stop(self) {
        let Self { pulse, stop, task, .. } = self;
        drop(pulse);
        sleep(ON_THEIR_WAY).await;
        stop.send_replace(true);
        // Whoever still waits for an upstream asks somebody else then.
        let _ = timeout(PATIENCE * 2, task).await;
    }
}

/// Has nobody keep sockets for an agent that does not answer.
pub(crate) fn forgo() {
    if !store::take().is_empty() {
        store::forget();
    }
}

async fn run(
    inputs: Inputs,
    kept: Vec<OwnedFd>,
    serving: Serving,
    explainer: Arc<Explainer>,
    mut stopping: watch::Receiver<bool>,
) {
    tokio::select! {
        result = answer(&inputs, kept, &serving, &explainer, stopping.clone()) => if let Err(error) = result {
            warn!(error = format!("{error:#}"), "DNS is not answered by this node's agent any more");
            // Nobody tells the kernel from now on what changes.
            inputs.names.forget();
        },
        // It is told itself, and given time; but not to begin.
        () = async {
            told(&mut stopping).await;
            sleep(PATIENCE).await;
        } => {}
    }
    serving.end();
}

async fn answer(
    inputs: &Inputs,
    kept: Vec<OwnedFd>,
    serving: &Serving,
    explainer: &Explainer,
    mut stopping: watch::Receiver<bool>,
) -> Result<()> {
    let workers = thread::available_parallelism().map_or(1, |count| count.get().min(WORKERS));
    let mut models = inputs.models.clone();
    let model = tokio::select! {
        model = first(&mut models) => model?,
        () = told(&mut stopping) => return Ok(()),
    };
    let mut answers = Answers::new(inputs, model, workers).await?;
    explainer.knows(&answers.service, &answers.forwarder);
    let result = answers.follow(inputs, kept, models, serving, stopping).await;
    serving.end();
    let stop = async |server: Option<Server>| {
        if let Some(server) = server {
            server.stop(PATIENCE).await;
        }
    };
    tokio::join!(stop(answers.local.take()), stop(answers.peers.take().map(|(_, server)| server)));
    result
}

/// Waits to be told to stop; for ever, if nobody can tell any more.
async fn told(stopping: &mut watch::Receiver<bool>) {
    if stopping.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn first(models: &mut ModelReceiver) -> Result<Arc<Model>> {
    let model = models.wait_for(Option::is_some).await;
    Ok(model.context("the source of the model ended")?.clone().unwrap_or_default())
}

/// Sockets, once they can be had.
async fn listen(traces: &Arc<Traces>, mut handed_over: Vec<OwnedFd>, workers: usize) -> Sockets {
    let mut said = String::new();
    loop {
        let (traces, mut taken) = (Arc::clone(traces), mem::take(&mut handed_over));
        let opened = spawn_blocking(move || {
            let opened = listener::open(&traces, &listener::local(), &mut taken, workers);
            (opened, taken)
        });
        let opened = opened.await.context("open sockets").and_then(|(opened, left)| {
            handed_over = left;
            opened
        });
        match opened {
            Ok(sockets) => return sockets,
            Err(error) => {
                let error = format!("{error:#}");
                if said != error {
                    warn!(error, "cannot answer DNS queries; trying again");
                }
                said = error;
            }
        }
        sleep(AGAIN).await;
    }
}

/// What is answered, kept up to date.
struct Answers {
    service: Arc<Service>,
    forwarder: Forwarder,
    known: Arc<ArcSwap<Known>>,
    model: Arc<Model>,
    search: Arc<Vec<String>>,
    serial: u32,
    names: KernelNames,
    /// Threads that take datagrams.
    workers: usize,
    /// What answers where this node asks, once it can be listened there.
    local: Option<Server>,
    /// Where other nodes ask, and what answers them.
    peers: Option<(Vec<IpAddr>, Server)>,
    /// Why nothing does, if it has been said.
    said: String,
}

impl Answers {
    async fn new(inputs: &Inputs, model: Arc<Model>, workers: usize) -> Result<Self> {
        let options = &inputs.options;
        let upstreams = match &options.dns_upstream[..] {
            [] => Upstreams::OfResolvConf,
            some => Upstreams::These(some.iter().map(|upstream| upstream.0).collect()),
        };
        let mut stubs: BTreeMap<Name, Vec<SocketAddr>> = BTreeMap::new();
        for stub in &options.dns_stub {
            stubs.entry(stub.zone.clone()).or_default().push(stub.server);
        }
        let resolv_conf = Some(RESOLV_CONF.into());
        let options =
            forward::Options { upstreams, resolv_conf, stubs, ..forward::Options::default() };
        let forwarder = Forwarder::new(options, Handle::current());
        let search = forwarder.search();
        let known = Known::default().next(&model, &inputs.pods.borrow());
        let known = Arc::new(ArcSwap::from_pointee(known));
        let clients = {
            let known = Arc::clone(&known);
            move |address| known.load().access(address)
        };
        let zone = Zone::new(zone_options(inputs, &search));
        let log = LogOptions { one_of: inputs.options.dns_log, ..LogOptions::default() };
        let rate = inputs.options.dns_rate;
        let options = server::Options { rate, log, ..server::Options::default() };
        let service = Service::new(zone, forwarder.clone(), Box::new(clients), workers, options);
        let service = Arc::new(service);
        inputs.status.answers_dns(&service);
        let mut answers = Self {
            service,
            forwarder,
            known,
            model,
            search,
            serial: 0,
            names: inputs.names.clone(),
            workers,
            local: None,
            peers: None,
            said: String::new(),
        };
        answers.put(inputs, answers.service.zone()).await?;
        answers.open_to_peers(inputs);
        Ok(answers)
    }

    /// Keeps up with what there is to say, until it is to stop; and answers, once it can listen. What the kernel
    /// answers by itself does not wait for that.
    async fn follow(
        &mut self,
        inputs: &Inputs,
        kept: Vec<OwnedFd>,
        mut models: ModelReceiver,
        serving: &Serving,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<()> {
        let mut pods = inputs.pods.clone();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let listening = listen(&inputs.traces, kept, self.workers);
        tokio::pin!(listening);
        loop {
            tokio::select! {
                sockets = &mut listening, if self.local.is_none() => {
                    store::keep(sockets.all());
                    let server = Server::start(&self.service, &sockets, &Handle::current());
                    let server = server.context("answer DNS queries")?;
                    serving.begin(server.signs());
                    self.local = Some(server);
                    let addresses = sockets.addresses().unwrap_or_default();
                    info!(?addresses, "DNS queries are answered");
                }
                changed = models.changed() => {
                    changed.context("the source of the model ended")?;
                    let began = Instant::now();
                    let Some(model) = models.borrow_and_update().clone() else { continue };
                    self.model = model;
                    self.put(inputs, self.service.zone()).await?;
                    self.service.programmed(began.elapsed());
                    self.know(&pods.borrow());
                    self.open_to_peers(inputs);
                }
                changed = pods.changed() => {
                    changed.context("nobody tells of pods any more")?;
                    self.know(&pods.borrow_and_update());
                }
                _ = looks.tick() => {
                    self.look(inputs).await?;
                    self.open_to_peers(inputs);
                }
                () = told(&mut stopping) => return Ok(()),
            }
        }
    }

    /// Answers from the zone that comes after this one.
    async fn put(&mut self, inputs: &Inputs, zone: Arc<Zone>) -> Result<()> {
        let server = self.model.services.get(&inputs.service);
        let led_here = server.into_iter().flat_map(|server| server.cluster_ips.iter().copied());
        self.forwarder.answers_at(led_here.chain(listener::local()).collect());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = u32::try_from(now & u64::from(u32::MAX)).unwrap_or_default();
        self.serial = now.max(self.serial.wrapping_add(1));
        let (model, serial) = (Arc::clone(&self.model), self.serial);
        let next = spawn_blocking(move || zone.next(&model, serial)).await;
        self.service.set_zone(next.context("make a zone of the model")?);
        let (names, zone) = (self.names.clone(), self.service.zone());
        spawn_blocking(move || names.follow(zone)).await.context("have the kernel know names")
    }

    fn know(&self, pods: &[LocalPod]) {
        self.known.store(Arc::new(self.known.load().next(&self.model, pods)));
    }

    /// Where the node searches in other domains than before, so do its pods.
    async fn look(&mut self, inputs: &Inputs) -> Result<()> {
        let search = self.forwarder.search();
        if search == self.search {
            return Ok(());
        }
        self.search = search;
        let zone = Zone::new(zone_options(inputs, &self.search));
        self.put(inputs, Arc::new(zone)).await
    }

    /// Listens where other nodes ask. Without, they ask each other.
    fn open_to_peers(&mut self, inputs: &Inputs) {
        let node = self.model.nodes.get(&inputs.node);
        let wanted = node.map(overlay_addresses).unwrap_or_default();
        let open = self.peers.as_ref().map(|(open, _)| &open[..]).unwrap_or_default();
        if open == wanted {
            return;
        }
        if let Some((_, server)) = self.peers.take() {
            tokio::spawn(server.stop(PATIENCE));
        }
        if wanted.is_empty() {
            return;
        }
        let sockets = listener::open(&inputs.traces, &wanted, &mut Vec::new(), 1);
        let started = sockets
            .and_then(|sockets| Ok(Server::start(&self.service, &sockets, &Handle::current())?));
        match started {
            Ok(server) => {
                self.peers = Some((wanted, server));
                self.said.clear();
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.said != error {
                    warn!(error, "cannot answer other nodes' DNS queries; trying again");
                }
                self.said = error;
            }
        }
    }
}

fn zone_options(inputs: &Inputs, search: &[String]) -> zone::Options {
    zone::Options {
        zone: inputs.options.dns_zone.clone(),
        server: inputs.service.clone(),
        search: search.iter().filter_map(|domain| domain.parse().ok()).collect(),
        autopath: inputs.options.dns_search_path == Switch::On,
        ..zone::Options::default()
    }
}
