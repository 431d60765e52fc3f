//! What is served now: a snapshot that is made from a model beside the traffic, and swapped in whole.
//!
//! Requests take the snapshot that there is when they arrive, and keep it to their end. Connections belong to
//! none: whatever changes, they stay.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime};

use arc_swap::{ArcSwap, Guard};
use aws_lc_rs::digest::{Context, SHA256};
use fairway_model::{
    BackendPort, Endpoints, Gateway, Limits, Model, ObjectName, Protocol, Service, ServicePort,
    Stream,
};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use crate::message::{self, Fields};
use crate::route::{
    Compiler, Limiter, Password, Problem, Public, Refused, Route, Seat, Table, Target, Update,
};
use crate::series::Known;
use crate::shared::{Made, Shared};
use crate::tls::{self, Certificates, Tickets};
use crate::upstream::balance::{Endpoint, Method, Upstream};
use crate::upstream::tls::Configs;

/// Everything that a request or a handshake needs to know. What two of them have in common they share.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) model: Arc<Model>,
    pub(crate) table: Arc<Table>,
    /// What holds for the gateway as a whole.
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) certificates: Certificates,
    /// TLS to backends.
    pub(crate) clients: Arc<Configs>,
    /// Whom clients' certificates must be of, by Secret.
    authorities: Shared<ObjectName, Authority>,
    upstreams: Shared<ObjectName, Arc<Reached>>,
    /// How much of it cannot be served as it stands.
    pub(crate) problems: usize,
}

/// What is behind a Service, by the names of its ports, and what that was made of.
#[derive(Debug)]
struct Reached {
    service: Option<Arc<Service>>,
    endpoints: Option<Arc<Endpoints>>,
    ports: BTreeMap<String, Arc<Upstream>>,
    /// By the Service's own addresses.
    virtual_ports: BTreeMap<String, Arc<Upstream>>,
}

/// What snapshots are made with, one after the other.
#[derive(Debug)]
struct Making {
    compiler: Compiler,
    endpoints: Made<SocketAddr, Endpoint>,
}

/// A CA of clients.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    pub(crate) pem: String,
    pub(crate) verifier: Result<Arc<dyn ClientCertVerifier>, String>,
}

/// The snapshot that holds, and what outlives them all.
#[derive(Debug)]
pub(crate) struct State {
    /// The ports that clients connect to.
    pub(crate) public: Public,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) tickets: Arc<Tickets>,
    /// What clients have taken of late, whichever worker they came to.
    limiter: Mutex<Limiter>,
    born: Instant,
    /// Names and passwords that were good, as hashes along with what they were checked against.
    known: Mutex<HashSet<[u8; 32]>>,
    slowly: Slowly,
    making: Mutex<Making>,
    current: ArcSwap<Snapshot>,
    /// How many hosts were made so far, because something about them had changed.
    pub(crate) compiled: AtomicU64,
    /// The series that workers' metrics may have.
    pub(crate) series: Arc<Known>,
}

/// Clients that are remembered, about.
const CLIENTS: usize = 65_536;

/// Passwords that wait to be checked.
const WAITING: usize = 256;

/// Whose turn it is to do what takes long, of all workers together: most processors are for the traffic.
#[derive(Debug)]
struct Slowly {
    turns: Arc<Semaphore>,
    /// For those whose turn it is, and those who wait for theirs.
    room: Arc<Semaphore>,
}

/// Too many wait for passwords to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many wait for passwords to be checked")]
pub(crate) struct Busy;

impl Slowly {
    fn new(turns: usize, waiting: usize) -> Self {
        let room = Arc::new(Semaphore::new(turns + waiting));
        Self { turns: Arc::new(Semaphore::new(turns)), room }
    }

    /// Waits for a turn, which lasts until what is returned is dropped.
    async fn turn(&self) -> Result<[OwnedSemaphorePermit; 2], Busy> {
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| Busy)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Busy)?;
        Ok([turn, room])
    }
}

/// A client's request that counts, until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    seat: Option<Seat>,
    state: Arc<State>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            lock(&self.state.limiter).leave(seat);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Serves nothing yet.
    pub(crate) fn new(name: &str, public: Public) -> anyhow::Result<Self> {
        let provider = tls::provider();
        let model = Arc::new(Model::default());
        let compiler = Compiler::new(name, public);
        let snapshot = Snapshot {
            table: Arc::clone(compiler.table()),
            gateway: Arc::clone(compiler.gateway()),
            certificates: Certificates::new(&provider)?,
            clients: Arc::new(Configs::new(&provider, None, &model)),
            authorities: Shared::default(),
            upstreams: Shared::default(),
            problems: 0,
            model,
        };
        let making = Mutex::new(Making { compiler, endpoints: Made::default() });
        let current = ArcSwap::from_pointee(snapshot);
        let tickets = Arc::new(Tickets::new());
        let limiter = Mutex::new(Limiter::new(CLIENTS));
        let (born, known) = (Instant::now(), Mutex::default());
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let slowly = Slowly::new((processors / 4).max(1), WAITING);
        let (compiled, series) = (AtomicU64::new(0), Arc::default());
        Ok(Self {
            public,
            provider,
            tickets,
            limiter,
            born,
            known,
            slowly,
            making,
            current,
            compiled,
            series,
        })
    }

    /// Whether a client is served once more.
    pub(crate) fn enter(
        self: &Arc<Self>,
        route: &Route,
        client: IpAddr,
    ) -> Result<Option<Taken>, Refused> {
        if route.settings.limits == Limits::default() {
            return Ok(None);
        }
        let seat = lock(&self.limiter).enter(route, client, self.born.elapsed())?;
        Ok(seat.map(|seat| Taken { seat: Some(seat), state: Arc::clone(self) }))
    }

    /// Whether a name and a password are good. Where finding out takes long it is done beside the traffic,
    /// by few at a time, and remembered.
    pub(crate) async fn check(&self, password: &Password, headers: &Fields) -> Result<bool, Busy> {
        if !password.is_slow(headers) {
            return Ok(password.check(headers));
        }
        let mut hash = Context::new(&SHA256);
        hash.update(&password.version().to_be_bytes());
        for said in headers.get_all(message::Known::Authorization) {
            hash.update(said);
            hash.update(&[0]);
        }
        let Ok(hash) = <[u8; 32]>::try_from(hash.finish().as_ref()) else { return Ok(false) };
        if lock(&self.known).contains(&hash) {
            return Ok(true);
        }
        let turn = self.slowly.turn().await?;
        // Somebody may have found out meanwhile: clients ask for many things at once.
        if lock(&self.known).contains(&hash) {
            return Ok(true);
        }
        let (password, headers) = (password.clone(), headers.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let good = password.check(&headers);
            drop(turn);
            good
        });
        let good = checked.await.unwrap_or(false);
        if good {
            let mut known = lock(&self.known);
            if known.len() >= CLIENTS {
                known.clear();
            }
            known.insert(hash);
        }
        Ok(good)
    }

    /// To keep over a wait.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// To look at.
    pub(crate) fn peek(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Serves `model` from now on.
    pub(crate) fn apply(&self, model: &Arc<Model>) {
        self.tickets.update(model, SystemTime::now());
        let mut making = lock(&self.making);
        let update = making.compiler.update(model);
        let next = self.peek().next(model, &mut making, &update, &self.provider);
        self.current.store(Arc::new(next));
        self.compiled.fetch_add(update.hosts as u64, Ordering::Relaxed);
        say(&update.problems.new, &update.problems.over);
    }
}

/// Says what has come to be wrong, and what is no longer.
pub(crate) fn say<'p>(
    new: impl IntoIterator<Item = &'p Problem>,
    over: impl IntoIterator<Item = &'p Problem>,
) {
    for problem in new {
        warn!("{}: {}", problem.object, problem.text);
    }
    for problem in over {
        info!("{}: no longer: {}", problem.object, problem.text);
    }
}

impl State {
    /// Looks after session tickets' keys.
    pub(crate) fn renew(&self) {
        self.tickets.update(&self.peek().model, SystemTime::now());
    }
}

impl Snapshot {
    /// The one after this, of `model` and the table that was made of it.
    fn next(
        &self,
        model: &Arc<Model>,
        making: &mut Making,
        update: &Update,
        provider: &Arc<CryptoProvider>,
    ) -> Self {
        let secrets_differ = self.model.secrets.diff(&model.secrets).next().is_some();
        let certificates = self.certificates.next(
            &self.model.secrets,
            &model.secrets,
            provider,
            &mut |secret, why| {
                warn!("Secret {secret}: {why}; the certificate before it stays, if there was one");
            },
        );
        let clients = match secrets_differ {
            true => Arc::new(Configs::new(provider, Some(&self.clients), model)),
            false => Arc::clone(&self.clients),
        };
        let gateway = Arc::clone(making.compiler.gateway());
        Self {
            model: Arc::clone(model),
            table: Arc::clone(making.compiler.table()),
            certificates,
            clients,
            authorities: self.authorities(model, &making.compiler, update, provider),
            upstreams: self.upstreams(model, making, update),
            problems: making.compiler.problems(),
            gateway,
        }
    }

    /// What is behind the Services that requests may go to.
    fn upstreams(
        &self,
        model: &Model,
        making: &mut Making,
        update: &Update,
    ) -> Shared<ObjectName, Arc<Reached>> {
        let Making { compiler, endpoints } = making;
        let gateway = compiler.gateway();
        let services = self.model.services.diff(&model.services);
        let lists = self.model.endpoints.diff(&model.endpoints);
        let mut names: BTreeSet<_> = services.map(|one| one.name().clone()).collect();
        names.extend(lists.map(|one| one.name().clone()));
        names.extend(update.services.iter().cloned());
        if !Arc::ptr_eq(gateway, &self.gateway) {
            names.extend(of_gateway(&self.gateway).chain(of_gateway(gateway)).cloned());
        }
        let mut upstreams = self.upstreams.clone();
        for name in names {
            if !(compiler.leads_to(&name) || of_gateway(gateway).any(|own| *own == name)) {
                upstreams.remove(&name);
                continue;
            }
            let service = model.services.get_shared(&name);
            let list = model.endpoints.get_shared(&name);
            let is_same = |known: &Arc<Reached>| {
                same(known.service.as_ref(), service) && same(known.endpoints.as_ref(), list)
            };
            if !upstreams.get(&name).is_some_and(is_same) {
                let mut endpoint = |address: SocketAddr| {
                    let Ok(known) = endpoints
                        .get(address, |address| Ok::<_, Infallible>(Endpoint::new(*address)));
                    known
                };
                let reached = Reached::new(service.cloned(), list.cloned(), &mut endpoint);
                upstreams.insert(name, Arc::new(reached));
            }
        }
        upstreams
    }

    fn authorities(
        &self,
        model: &Model,
        compiler: &Compiler,
        update: &Update,
        provider: &Arc<CryptoProvider>,
    ) -> Shared<ObjectName, Authority> {
        let mut authorities = self.authorities.clone();
        for name in &update.secrets {
            if !compiler.checks_by(name) {
                authorities.remove(name);
                continue;
            }
            let pem = model.secrets.get(name).and_then(|secret| secret.ca.as_deref());
            let pem = pem.unwrap_or_default();
            if authorities.get(name).is_some_and(|before| before.pem == pem) {
                continue;
            }
            let verifier = tls::roots(pem).and_then(|roots: RootCertStore| {
                let roots = Arc::new(roots);
                WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
                    .build()
                    .map_err(|error| error.to_string())
            });
            authorities.insert(name.clone(), Authority { pem: pem.to_owned(), verifier });
        }
        authorities
    }

    /// The CA of a Secret that some Ingress names for clients' certificates.
    pub(crate) fn authority(&self, secret: &ObjectName) -> Option<&Authority> {
        self.authorities.get(secret)
    }

    /// What is behind a port of a Service; by its own address where `itself` says so.
    pub(crate) fn upstream(&self, target: &Target, itself: bool) -> Option<&Arc<Upstream>> {
        let service = self.upstreams.get(&target.service)?;
        let ports = if itself { &service.virtual_ports } else { &service.ports };
        ports.get(&target.port_name)
    }

    /// Some endpoint of a port of a Service, which no route need lead to.
    pub(crate) fn any_endpoint(
        &self,
        service: &ObjectName,
        port: &BackendPort,
        dice: u64,
    ) -> Option<SocketAddr> {
        let name = &self.port(service, port)?.name;
        let endpoints = self.model.endpoints.get(service)?.ports.get(name)?;
        let upstream = Upstream::new(endpoints, &mut |address| Arc::new(Endpoint::new(address)));
        upstream.choose(Method::Ewma, &[], dice).map(|endpoint| endpoint.address)
    }

    /// Where a port that is passed on leads.
    pub(crate) fn stream(&self, protocol: Protocol, port: u16) -> Option<&Stream> {
        let mut streams = self.gateway.streams.iter();
        streams.find(|stream| (stream.protocol, stream.port) == (protocol, port))
    }

    /// What is behind it; `None`: there is no such Service, or it has no such port.
    pub(crate) fn behind(&self, stream: &Stream) -> Option<&Arc<Upstream>> {
        static NOBODY: LazyLock<Arc<Upstream>> = LazyLock::new(Arc::default);
        let mut ports = self.model.services.get(&stream.service)?.ports.iter();
        let port = ports.find(|known| {
            known.protocol == stream.protocol && is_meant(known, &stream.backend_port)
        })?;
        let known = self.upstreams.get(&stream.service)?.ports.get(&port.name);
        Some(known.unwrap_or(&NOBODY))
    }

    fn port(&self, service: &ObjectName, port: &BackendPort) -> Option<&ServicePort> {
        let mut ports = self.model.services.get(service)?.ports.iter();
        ports.find(|known| is_meant(known, port))
    }

    /// How many endpoints of a port of a Service take requests.
    pub(crate) fn reachable(&self, service: &ObjectName, port: &BackendPort) -> usize {
        let name = self.port(service, port).map(|port| &port.name);
        let upstream = self.upstreams.get(service).zip(name);
        upstream.and_then(|(known, name)| known.ports.get(name)).map_or(0, |known| known.len())
    }
}

impl Reached {
    fn new(
        service: Option<Arc<Service>>,
        endpoints: Option<Arc<Endpoints>>,
        endpoint: &mut impl FnMut(SocketAddr) -> Arc<Endpoint>,
    ) -> Self {
        let mut ports = BTreeMap::new();
        for (port, list) in endpoints.iter().flat_map(|endpoints| &endpoints.ports) {
            ports.insert(port.clone(), Arc::new(Upstream::new(list, endpoint)));
        }
        let mut virtual_ports = BTreeMap::new();
        if let Some(service) = &service {
            for port in &service.ports {
                let itself: Vec<_> = service
                    .cluster_ips
                    .iter()
                    .map(|address| fairway_model::Endpoint {
                        address: *address,
                        port: port.port,
                        node: None,
                        state: Default::default(),
                        hints: Default::default(),
                        weight: 1,
                        hostname: None,
                    })
                    .collect();
                let upstream = Upstream::new(&itself, endpoint);
                virtual_ports.insert(port.name.clone(), Arc::new(upstream));
            }
        }
        Self { service, endpoints, ports, virtual_ports }
    }
}

fn is_meant(known: &ServicePort, port: &BackendPort) -> bool {
    match port {
        BackendPort::Number(number) => known.port == *number,
        BackendPort::Name(name) => known.name == *name,
    }
}

fn same<T: PartialEq>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
        (None, None) => true,
        _ => false,
    }
}

/// The Services that a gateway itself leads to.
fn of_gateway(gateway: &Gateway) -> impl Iterator<Item = &ObjectName> {
    let default = gateway.default_backend.iter().map(|(service, _)| service);
    default.chain(gateway.streams.iter().map(|stream| &stream.service))
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::task::{Context as Poller, Waker};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::route::change;

    /// All that a snapshot knows beside its table, in an order.
    fn said(snapshot: &Snapshot) -> Vec<String> {
        let addresses =
            |ports: &BTreeMap<String, Arc<Upstream>>| -> Vec<(String, Vec<SocketAddr>)> {
                let of = |upstream: &Upstream| {
                    upstream.endpoints().iter().map(|one| one.address).collect()
                };
                ports.iter().map(|(name, upstream)| (name.clone(), of(upstream))).collect()
            };
        let reached = snapshot.upstreams.iter().map(|(service, reached)| {
            let Reached { ports, virtual_ports, .. } = &**reached;
            format!("{service}: {:?} {:?}", addresses(ports), addresses(virtual_ports))
        });
        let authorities = snapshot.authorities.iter();
        let authorities = authorities.map(|(secret, authority)| {
            format!("{secret}: {:?} {:?}", authority.pem, authority.verifier.as_ref().err())
        });
        let mut said: Vec<_> = reached.chain(authorities).collect();
        said.push(format!("{:?} {}", snapshot.gateway, snapshot.problems));
        said.sort();
        said
    }

    proptest! {
        #[test]
        fn snapshots_one_after_the_other_come_to_what_one_at_once_does(
            steps in vec(vec(change(), 1..4), 1..10),
        ) {
            let mut model = Model::default();
            let state = State::new("own", Public::default()).unwrap();
            for step in steps {
                step.into_iter().for_each(|change| model.apply(change));
                state.apply(&Arc::new(model.clone()));
                let fresh = State::new("own", Public::default()).unwrap();
                fresh.apply(&Arc::new(model.clone()));
                prop_assert_eq!(said(&state.peek()), said(&fresh.peek()));
            }
        }
    }

    #[tokio::test]
    async fn few_do_what_takes_long_and_not_all_the_others_wait() {
        let slowly = Slowly::new(1, 1);
        let first = slowly.turn().await.unwrap();
        let mut second = std::pin::pin!(slowly.turn());
        assert!(second.as_mut().poll(&mut Poller::from_waker(Waker::noop())).is_pending());
        assert_eq!(slowly.turn().await.err(), Some(Busy));
        drop(first);
        assert!(second.await.is_ok());
        assert!(slowly.turn().await.is_ok());
    }
}
