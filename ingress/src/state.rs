//! What is served now: a snapshot that is made from a model beside the traffic, and swapped in whole.
//!
//! Requests take the snapshot that there is when they arrive, and keep it to their end. Connections belong to
//! none: whatever changes, they stay.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime};

use arc_swap::{ArcSwap, Guard};
use aws_lc_rs::digest::{Context, SHA256};
use fairway_model::{
    BackendPort, Endpoints, Gateway, Ingress, Limits, Model, ObjectName, Protocol, Service,
    ServicePort, Stream, VerifyClient,
};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use crate::route::{Limiter, Password, Problem, Public, Refused, Route, Seat, Table, Target};
use crate::series::Known;
use crate::tls::{self, Certificates, Tickets};
use crate::upstream::balance::{Endpoint, Method, Upstream};
use crate::upstream::tls::Configs;

/// Everything that a request or a handshake needs to know.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) model: Arc<Model>,
    pub(crate) table: Arc<Table>,
    /// What holds for the gateway as a whole.
    pub(crate) gateway: Gateway,
    pub(crate) certificates: Certificates,
    /// TLS to backends.
    pub(crate) clients: Configs,
    /// Whom clients' certificates must be of, by Secret.
    authorities: HashMap<ObjectName, Authority>,
    upstreams: HashMap<ObjectName, Reached>,
    endpoints: HashMap<SocketAddr, Arc<Endpoint>>,
    /// What is left out of it, and why.
    pub(crate) problems: Vec<Problem>,
}

/// What is behind a Service, by the names of its ports, and what that was made of.
#[derive(Clone, Debug)]
struct Reached {
    service: Option<Arc<Service>>,
    endpoints: Option<Arc<Endpoints>>,
    ports: BTreeMap<String, Arc<Upstream>>,
    /// By the Service's own addresses.
    virtual_ports: BTreeMap<String, Arc<Upstream>>,
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
    /// The name that this gateway's replicas have in common.
    name: String,
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
    current: ArcSwap<Snapshot>,
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
        let snapshot = Snapshot {
            table: Arc::default(),
            gateway: Gateway::default(),
            certificates: Certificates::new(&provider)?,
            clients: Configs::new(&provider, None, &model),
            authorities: HashMap::new(),
            upstreams: HashMap::new(),
            endpoints: HashMap::new(),
            problems: Vec::new(),
            model,
        };
        let current = ArcSwap::from_pointee(snapshot);
        let tickets = Arc::new(Tickets::new());
        let limiter = Mutex::new(Limiter::new(CLIENTS));
        let (name, born, known) = (name.to_owned(), Instant::now(), Mutex::default());
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let slowly = Slowly::new((processors / 4).max(1), WAITING);
        let series = Arc::default();
        Ok(Self { name, public, provider, tickets, limiter, born, known, slowly, current, series })
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
    pub(crate) async fn check(
        &self,
        password: &Password,
        headers: &HeaderMap,
    ) -> Result<bool, Busy> {
        if !password.is_slow(headers) {
            return Ok(password.check(headers));
        }
        let mut hash = Context::new(&SHA256);
        hash.update(&password.version().to_be_bytes());
        for said in headers.get_all(AUTHORIZATION) {
            hash.update(said.as_bytes());
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

    /// Serves `model` from now on. Not to be called by two at a time.
    pub(crate) fn apply(&self, model: &Arc<Model>) {
        self.tickets.update(model, SystemTime::now());
        let before = self.current.load_full();
        let next = before.next(model, &self.name, self.public, &self.provider);
        tell(&before.problems, &next.problems);
        self.current.store(Arc::new(next));
    }
}

/// Says what has come to be wrong, and what is no longer.
pub(crate) fn tell(before: &[Problem], after: &[Problem]) {
    for problem in after.iter().filter(|new| !before.contains(new)) {
        warn!("{}: {}", problem.object, problem.text);
    }
    for problem in before.iter().filter(|old| !after.contains(old)) {
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
    fn next(
        &self,
        model: &Arc<Model>,
        name: &str,
        public: Public,
        provider: &Arc<CryptoProvider>,
    ) -> Self {
        let (table, problems) = if Table::differs(&self.model, model) {
            let (table, problems) = Table::compile(model, name, Some(&self.table));
            (Arc::new(table.at(public)), problems)
        } else {
            (Arc::clone(&self.table), self.problems.clone())
        };
        let gateway = model.gateways.get(name).or_else(|| model.gateways.get(""));
        let certificates = if self.model.secrets.diff(&model.secrets).next().is_none() {
            self.certificates.same()
        } else {
            self.certificates.next(model, provider, &mut |secret, why| {
                warn!("Secret {secret}: {why}; the certificate before it stays, if there was one");
            })
        };
        let mut next = Self {
            model: Arc::clone(model),
            table,
            gateway: gateway.cloned().unwrap_or_default(),
            certificates,
            clients: Configs::new(provider, Some(&self.clients), model),
            authorities: self.authorities(model, provider),
            upstreams: HashMap::new(),
            endpoints: HashMap::new(),
            problems,
        };
        next.reach(self);
        next
    }

    /// Fills in what is behind the Services that routes lead to.
    fn reach(&mut self, before: &Self) {
        let same_services = self.model.services.diff(&before.model.services).next().is_none()
            && self.model.endpoints.diff(&before.model.endpoints).next().is_none();
        if same_services && Arc::ptr_eq(&self.table, &before.table) {
            self.upstreams.clone_from(&before.upstreams);
            self.endpoints.clone_from(&before.endpoints);
            return;
        }
        let model = Arc::clone(&self.model);
        for name in services(&model, &self.gateway) {
            let service = model.services.get_shared(&name).cloned();
            let endpoints = model.endpoints.get_shared(&name).cloned();
            let known = before.upstreams.get(&name);
            let same = known.filter(|known| {
                same(known.service.as_ref(), service.as_ref())
                    && same(known.endpoints.as_ref(), endpoints.as_ref())
            });
            let reached = same.cloned().unwrap_or_else(|| {
                let mut endpoint = |address| {
                    let known = before.endpoints.get(&address);
                    let known = known.or_else(|| self.endpoints.get(&address)).cloned();
                    let known = known.unwrap_or_else(|| Arc::new(Endpoint::new(address)));
                    self.endpoints.insert(address, Arc::clone(&known));
                    known
                };
                Reached::new(service, endpoints, &mut endpoint)
            });
            for upstream in reached.ports.values().chain(reached.virtual_ports.values()) {
                for endpoint in upstream.endpoints() {
                    self.endpoints.insert(endpoint.address, Arc::clone(endpoint));
                }
            }
            self.upstreams.insert(name, reached);
        }
    }

    fn authorities(
        &self,
        model: &Model,
        provider: &Arc<CryptoProvider>,
    ) -> HashMap<ObjectName, Authority> {
        let named = model.ingresses.values().filter_map(|ingress| {
            let client = ingress.options.client_tls.as_ref()?;
            (client.verify != VerifyClient::Off).then_some(&client.secret)
        });
        let mut authorities = HashMap::new();
        for name in named {
            let pem = model.secrets.get(name).and_then(|secret| secret.ca.clone());
            let pem = pem.unwrap_or_default();
            let before = self.authorities.get(name).filter(|before| before.pem == pem).cloned();
            let authority = before.unwrap_or_else(|| {
                let verifier = tls::roots(&pem).and_then(|roots: RootCertStore| {
                    let roots = Arc::new(roots);
                    WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
                        .build()
                        .map_err(|error| error.to_string())
                });
                Authority { pem, verifier }
            });
            authorities.insert(name.clone(), authority);
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

/// All Services that requests may go to.
fn services(model: &Model, gateway: &Gateway) -> BTreeSet<ObjectName> {
    let mut names: BTreeSet<_> = model.ingresses.values().flat_map(of_ingress).collect();
    names.extend(gateway.default_backend.iter().map(|(service, _)| service.clone()));
    names.extend(gateway.streams.iter().map(|stream| stream.service.clone()));
    names
}

fn of_ingress(ingress: &Ingress) -> impl Iterator<Item = ObjectName> + '_ {
    let paths = ingress.rules.iter().flat_map(|rule| &rule.paths).map(|path| &path.backend);
    let backends = paths.chain(&ingress.default_backend).chain(&ingress.options.default_backend);
    backends.map(|backend| ObjectName::new(&ingress.name.namespace, &backend.service))
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::task::{Context as Poller, Waker};

    use super::*;

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
