//! An API server for tests: as a real one for what is asked of it here, and as bad as one is told to be.
//!
//! It keeps objects of the kinds in `store`, gives each change a version of its own, and answers lists
//! (in pages, or as the beginning of a watch), watches with bookmarks, reads and writes by the rules of the
//! API of Kubernetes 1.32 to 1.36. [`ApiServer::fail`], [`ApiServer::behave`] and the verbs beside them make it
//! forget, break off, refuse, hesitate or begin a new history. What it was asked is kept.

mod answer;
mod service;
mod store;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use store::Store;

pub use tls::Authority;

/// A server, with whatever it answers on. That ends when it is dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    task: JoinSet<()>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What all connections share.
struct Shared {
    state: Mutex<State>,
    /// Told of all that [`Self::signal`] is told of.
    changed: Condvar,
    /// Moved on whenever watches have to look.
    signal: watch::Sender<Signal>,
}

struct State {
    store: Store,
    behaviour: Behaviour,
    faults: Vec<Fault>,
    asked: Vec<Asked>,
    connections: usize,
    tokens: BTreeMap<String, Bearer>,
}

/// Whose a token is.
struct Bearer {
    /// Whom it is for.
    audience: String,
    /// As in a TokenReview's status.
    user: Value,
}

/// Counters: one that moved says what happened.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Signal {
    changes: u64,
    bookmarks: u64,
    cuts: u64,
    ends: u64,
}

/// How it is as a whole.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Lists are streamed where that is asked for; otherwise the asking is refused.
    pub streams_lists: bool,
    /// A version that is not known any more is told by the answer's status, not by an event.
    pub gone_by_status: bool,
    /// The answer to a watch is cut into pieces of so many bytes, wherever they end.
    pub pieces: Option<usize>,
    /// Who asks must say `Bearer` and this, unless a certificate has told who it is.
    pub token: Option<String>,
    /// Nobody gets an answer.
    pub is_down: bool,
    /// Definitions that are not installed, by their plural.
    pub without: BTreeSet<&'static str>,
}

/// Something to go wrong with the next requests of a kind.
#[derive(Clone, Debug)]
pub struct Fault {
    /// `list`, `watch`, `get`, `create`, `update`, `patch` or `delete`; any if empty.
    pub verb: &'static str,
    /// As `pods`; any if empty.
    pub resource: &'static str,
    /// How many of them.
    pub times: usize,
    /// What happens to each.
    pub what: What,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum What {
    /// The answer is this code and reason.
    Refuse(u16, &'static str),
    /// 429, and to come again after so many seconds.
    Throttle(u64),
    /// The connection ends instead of an answer.
    Reset,
    /// The answer takes this long.
    Wait(Duration),
    /// A watch begins, and its first word is an error of this code and reason.
    ErrorEvent(u16, &'static str),
    /// The connection ends after so many bytes of a watch.
    CutAfter(usize),
    /// What is to be written was changed by somebody else in between.
    Overtake,
}

/// What was asked once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// As in rules of RBAC.
    pub verb: &'static str,
    /// Empty for the oldest kinds.
    pub group: String,
    /// As `nodes`, or `nodes/status`.
    pub resource: String,
    /// Of the object, if one was named.
    pub name: String,
    /// The query.
    pub query: BTreeMap<String, String>,
}

impl ApiServer {
    /// Starts one without objects on a port of loopback. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// There is no port for it.
    pub async fn start() -> std::io::Result<Self> {
        Self::start_with(None).await
    }

    /// The same behind TLS, with a certificate of this CA for these names and addresses. Clients may show
    /// certificates of the same CA.
    ///
    /// # Errors
    /// There is no port for it, or a name is none.
    pub async fn start_tls(authority: &Authority, names: &[&str]) -> std::io::Result<Self> {
        Self::start_with(Some(authority.acceptor(names)?)).await
    }

    async fn start_with(acceptor: Option<TlsAcceptor>) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut server = Self { acceptor, ..Self::at(listener.local_addr()?) };
        server.task.spawn(server.serve(listener));
        Ok(server)
    }

    /// One without objects, which nobody can ask before it [serves](Self::serve) at this address.
    pub fn at(address: SocketAddr) -> Self {
        let behaviour = Behaviour {
            streams_lists: true,
            gone_by_status: false,
            pieces: None,
            token: None,
            is_down: false,
            without: BTreeSet::new(),
        };
        let (faults, asked) = (Vec::new(), Vec::new());
        let (store, tokens) = (Store::new(), BTreeMap::new());
        let state = State { store, behaviour, faults, asked, connections: 0, tokens };
        let shared = Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            signal: watch::Sender::default(),
        };
        Self { shared: Arc::new(shared), address, acceptor: None, task: JoinSet::new() }
    }

    /// Answers whoever connects, until the future is dropped.
    pub fn serve(&self, listener: TcpListener) -> impl Future<Output = ()> + Send + use<> {
        accept(listener, self.acceptor.clone(), Arc::clone(&self.shared))
    }

    /// Where it is.
    pub fn url(&self) -> String {
        let scheme = if self.acceptor.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Its address and port, as a pod's environment has them.
    pub fn address(&self) -> (String, String) {
        (self.address.ip().to_string(), self.address.port().to_string())
    }

    /// Changes how it is.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.lock().behaviour);
        self.shared.signal(|signal| signal.changes += 1);
    }

    /// Has something go wrong.
    pub fn fail(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// How many faults have not been used up.
    pub fn faults_left(&self) -> usize {
        self.lock().faults.len()
    }

    /// Makes the object, or replaces it, as somebody else's write; returns it as it is then.
    ///
    /// # Panics
    /// It is of no kind that is known here, or refused.
    pub fn put(&self, object: Value) -> Value {
        let put = self.lock().store.put(object);
        self.shared.signal(|signal| signal.changes += 1);
        Value::clone(&put.unwrap_or_else(|(_, _, message)| panic!("{message}")))
    }

    /// Makes the object what `make` makes of what is there, in one step; if that is nothing, all stays as it is.
    ///
    /// # Errors
    /// It is refused, and why.
    ///
    /// # Panics
    /// It is of no kind that is known here.
    pub fn alter(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        make: impl FnOnce(Option<&Value>) -> Option<Value>,
    ) -> Result<(), String> {
        let altered = {
            let store = &mut self.lock().store;
            let made = make(store.find(kind, namespace, name).as_deref());
            made.map_or(Ok(()), |object| store.put(object).map(drop))
        };
        self.shared.signal(|signal| signal.changes += 1);
        altered.map_err(|(_, _, message)| message)
    }

    /// Removes the object, as somebody else's write.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.lock().store.delete(kind, namespace, name);
        self.shared.signal(|signal| signal.changes += 1);
    }

    /// The object, if it is there.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().store.find(kind, namespace, name).as_deref().cloned()
    }

    /// All objects.
    pub fn objects(&self) -> Vec<Value> {
        let (objects, _) = self.snapshot();
        objects.iter().map(|object| Value::clone(object)).collect()
    }

    /// All objects, and the version they stand for.
    pub fn snapshot(&self) -> (Vec<Arc<Value>>, u64) {
        let store = &self.lock().store;
        (store.objects(), store.version)
    }

    /// Blocks until the version is another one, at most for `limit`.
    pub fn wait_past(&self, version: u64, limit: Duration) {
        let same = |state: &mut State| state.store.version == version;
        // Waking up early or late only makes a caller look again.
        drop(self.shared.changed.wait_timeout_while(self.lock(), limit, same));
    }

    /// Makes a token for `audience` known, whose bearer a TokenReview is to tell as `user`.
    pub fn issue(&self, token: &str, audience: &str, user: Value) {
        let bearer = Bearer { audience: audience.to_owned(), user };
        self.lock().tokens.insert(token.to_owned(), bearer);
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// Forgets all versions but the newest, and lists whose pages are still asked for.
    pub fn compact(&self) {
        self.lock().store.compact();
    }

    /// Breaks all watches off in the middle of a line.
    pub fn cut(&self) {
        self.shared.signal(|signal| signal.cuts += 1);
    }

    /// Ends all watches, as their time being over does.
    pub fn end_watches(&self) {
        self.shared.signal(|signal| signal.ends += 1);
    }

    /// Tells all watches how far they are.
    pub fn bookmark(&self) {
        self.shared.signal(|signal| signal.bookmarks += 1);
    }

    /// Begins a new history at a lower version, with the objects as they are, as from a backup.
    pub fn restore(&self) {
        self.lock().store.restore();
        self.cut();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, change: impl FnOnce(&mut Signal)) {
        self.signal.send_modify(change);
        self.changed.notify_all();
    }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                shared.lock().connections += 1;
                let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => serve(stream, &shared, false).await,
                        // A client that does not like what it sees is gone.
                        Some(acceptor) => if let Ok(stream) = acceptor.accept(stream).await {
                            let is_known = stream.get_ref().1.peer_certificates().is_some();
                            serve(stream, &shared, is_known).await;
                        }
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Arc<Shared>, is_known: bool) {
    let service = service_fn(|request| answer::answer(shared, request, is_known));
    // How it ended is for the client to find out.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
