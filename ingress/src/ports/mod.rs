//! Ports that are passed on as they are, to a Service each.
//!
//! ```text
//! model ─► Ports::apply ─► listeners open and close ─► each worker waits at its own ─► tcp, udp
//! ```
//!
//! A port is a listener and what it counts. Where it leads the snapshot says, whenever somebody comes: so nothing
//! happens to a port, and to whoever is connected, when that changes.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fairway_model::{Key, Protocol, Stream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::error;

use crate::listeners::{Listeners, Purpose};
use crate::metrics::about;
use crate::route::Problem;
use crate::server::Phase;
use crate::state::{self, Snapshot};
use crate::worker::Worker;

mod places;
mod session;
mod tcp;
mod udp;

use places::Places;
pub(crate) use places::most as most_flows;

/// Protocol and number.
type Number = (Protocol, u16);

/// All ports that are open.
#[derive(Debug)]
pub(crate) struct Ports {
    listeners: Arc<Listeners>,
    address: IpAddr,
    open: watch::Sender<Arc<BTreeMap<Number, Arc<Port>>>>,
    problems: Mutex<Vec<Problem>>,
    /// For flows of all ports and workers.
    places: Arc<Places>,
}

/// A port that is open.
#[derive(Debug)]
pub(crate) struct Port {
    protocol: Protocol,
    number: u16,
    /// Connections so far; of UDP what a port of a client says, until nobody says anything.
    connections: AtomicU64,
    /// Connections now.
    open: AtomicU64,
    /// Connections that no endpoint has had.
    failed: AtomicU64,
    /// Bytes of clients.
    received: AtomicU64,
    /// Bytes to clients.
    sent: AtomicU64,
}

/// `9000/TCP`.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

impl Port {
    fn new((protocol, number): Number) -> Self {
        let zero = || AtomicU64::new(0);
        let (connections, open, failed, received, sent) = (zero(), zero(), zero(), zero(), zero());
        Self { protocol, number, connections, open, failed, received, sent }
    }

    fn purpose(&self) -> Purpose {
        Purpose::Port(self.protocol, self.number)
    }
}

impl Ports {
    /// None yet; then on this address.
    pub(crate) fn new(listeners: Arc<Listeners>, address: IpAddr) -> Self {
        let open = watch::Sender::new(Arc::default());
        let places = Arc::new(Places::new(most_flows()));
        Self { listeners, address, open, problems: Mutex::default(), places }
    }

    /// Opens and closes what the snapshot says. What cannot be opened is tried again each time.
    pub(crate) fn apply(&self, snapshot: &Snapshot) {
        let before = Arc::clone(&self.open.borrow());
        let mut after = BTreeMap::new();
        let mut problems = Vec::new();
        for stream in &snapshot.gateway.streams {
            let number = (stream.protocol, stream.port);
            let port = before.get(&number).map_or_else(
                || {
                    let port = Arc::new(Port::new(number));
                    let address = (self.address, stream.port).into();
                    self.listeners.open(port.purpose(), address).map(|_| port)
                },
                |port| Ok(Arc::clone(port)),
            );
            let object = || Key::Gateway(snapshot.gateway.name.clone());
            match port {
                Ok(port) => {
                    if snapshot.behind(stream).is_none() {
                        let Stream { service, backend_port, .. } = stream;
                        let text = format!(
                            "port {port}: there is no Service {service} with the port {backend_port}"
                        );
                        problems.push(Problem { object: object(), text });
                    }
                    after.insert(number, port);
                }
                Err(why) => {
                    let text = format!("port {}/{} is closed: {why}", number.1, number.0);
                    problems.push(Problem { object: object(), text });
                }
            }
        }
        let gone: Vec<_> =
            before.iter().filter(|(number, _)| !after.contains_key(number)).collect();
        if !gone.is_empty() || before.len() != after.len() {
            self.open.send_replace(Arc::new(after));
        }
        for (_, port) in gone {
            self.listeners.close(port.purpose());
        }
        let mut known = self.lock();
        let news = |now: &[Problem], then: &[Problem]| -> Vec<_> {
            now.iter().filter(|problem| !then.contains(problem)).cloned().collect()
        };
        state::say(&news(&problems, &known), &news(&known, &problems));
        *known = problems;
    }

    /// What cannot be done as it is wanted.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Problem>> {
        // Nothing panics while it is held.
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one worker's share of whatever ports there are.
    pub(crate) fn look_after(
        &self,
        worker: Arc<Worker>,
        number: usize,
        phase: watch::Receiver<Phase>,
    ) -> impl Future<Output = ()> + use<> {
        let (listeners, mut open) = (Arc::clone(&self.listeners), self.open.subscribe());
        let places = Arc::clone(&self.places);
        async move {
            let mut waiting: HashMap<Number, (Arc<Port>, JoinSet<()>)> = HashMap::new();
            loop {
                let ports = Arc::clone(&open.borrow_and_update());
                // A set that is dropped waits no more; whoever has come already is not of it.
                waiting.retain(|number, (port, _)| {
                    ports.get(number).is_some_and(|now| Arc::ptr_eq(now, port))
                });
                for (key, port) in &*ports {
                    if waiting.contains_key(key) {
                        continue;
                    }
                    let mut set = JoinSet::new();
                    match listeners.of_worker(port.purpose(), number) {
                        Ok(sockets) => {
                            for socket in sockets {
                                let (worker, port) = (Arc::clone(&worker), Arc::clone(port));
                                let phase = phase.clone();
                                if port.protocol == Protocol::Udp {
                                    let places = Arc::clone(&places);
                                    set.spawn(udp::serve(worker, port, places, socket, phase));
                                } else {
                                    set.spawn(tcp::accept(worker, port, socket, phase));
                                }
                            }
                        }
                        Err(error) => error!(%error, "a worker cannot listen on port {port}"),
                    }
                    waiting.insert(*key, (Arc::clone(port), set));
                }
                if open.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// What they count, in Prometheus' text format.
    pub(crate) fn render(&self, text: &mut String) {
        type Count = fn(&Port) -> &AtomicU64;
        let counts: [(&str, &str, &str, Count); 5] = [
            ("connections_total", "counter", "Connections to ports that are passed on", |port| {
                &port.connections
            }),
            ("connections", "gauge", "Those that are open", |port| &port.open),
            ("failed_total", "counter", "Those that no endpoint has had", |port| &port.failed),
            ("received_bytes_total", "counter", "Bytes of their clients", |port| &port.received),
            ("sent_bytes_total", "counter", "Bytes to their clients", |port| &port.sent),
        ];
        const PREFIX: &str = "fairway_ingress_stream_";
        let ports = Arc::clone(&self.open.borrow());
        for (name, kind, help, count) in counts {
            about(text, PREFIX, name, kind, help);
            for port in ports.values() {
                let Port { protocol, number, .. } = **port;
                let count = count(port).load(Ordering::Relaxed);
                _ = writeln!(
                    text,
                    "{PREFIX}{name}{{port=\"{number}\",protocol=\"{protocol}\"}} {count}"
                );
            }
        }
    }
}
