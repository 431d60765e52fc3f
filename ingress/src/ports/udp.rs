//! Datagrams that are passed on.
//!
//! ```text
//! client ─► listener ─► flow by client and asked address ─► its socket ─► endpoint
//!        ◄─ listener ◄─────────────── answer ◄───────────── its socket ◄─
//! ```
//!
//! A flow is what one port of a client says to one address of the gateway. It has an endpoint, and a socket connected to
//! that, by which its answers are known; they come from the address that was asked. A task for each listener knows
//! the flows, and one for each flow waits for answers.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};
use rustix::net::{SendFlags, getsockname, send};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, interval, sleep_until};
use tracing::{debug, error};

use super::Port;
use super::places::{Place, Places};
use super::session::{Session, Status};
use crate::server::{Phase, closing};
use crate::state::Snapshot;
use crate::upstream::balance::{Endpoint, Method, Upstream};
use crate::worker::{Open, Worker};

/// How long nobody may say anything in a flow with questions and answers in turn.
const SILENCE: Duration = Duration::from_secs(600);
/// How long a first answer is waited for.
const UNANSWERED: Duration = Duration::from_secs(60);
/// How long a flow lasts whose client has said nothing since it was answered: most ask once.
const ANSWERED: Duration = Duration::from_secs(5);
/// How long a flow that is over waits for what is on its way.
const LAST: Duration = Duration::from_secs(2);
/// Endpoints that are tried for a datagram.
const TRIES: usize = 3;
/// Datagrams that are taken before others on this thread have their turn.
const BATCH: usize = 64;
/// The longest that there are.
const LONGEST: usize = 1 << 16;

thread_local! {
    /// For answers, each of which is passed on before the next one is read.
    static ANSWER: RefCell<Vec<u8>> = RefCell::new(vec![0; LONGEST]);
}

/// Passes datagrams on until the phase changes, and answers for a little longer.
pub(super) async fn serve(
    worker: Arc<Worker>,
    port: Arc<Port>,
    places: Arc<Places>,
    socket: OwnedFd,
    phase: watch::Receiver<Phase>,
) {
    let listener = match Listener::new(socket) {
        Ok(listener) => Arc::new(listener),
        Err(error) => {
            error!(%error, "a worker cannot listen on port {port}");
            return;
        }
    };
    let snapshot = worker.state.snapshot();
    let mut flows = Flows {
        upstream: upstream(&snapshot, &port),
        snapshot,
        worker,
        port,
        places,
        listener: Arc::clone(&listener),
        phase: phase.clone(),
        known: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let mut buffer = vec![0; LONGEST];
    let mut ticks = interval(Duration::from_secs(1));
    let mut closing = std::pin::pin!(closing(phase));
    loop {
        tokio::select! {
            ready = listener.socket.readable() => {
                if ready.is_err() {
                    return;
                }
                for _ in 0..BATCH {
                    match listener.receive(&mut buffer) {
                        Ok((key, length)) => flows.pass(key, &buffer[..length]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => debug!(%error, "cannot take a datagram"),
                    }
                }
                // Whoever never waits lets nobody else do anything.
                task::yield_now().await;
                while let Some(ended) = flows.tasks.try_join_next_with_id() {
                    flows.forget(ended);
                }
            }
            Some(ended) = flows.tasks.join_next_with_id() => flows.forget(ended),
            _ = ticks.tick() => flows.renew(),
            () = &mut closing => break,
        }
    }
    while flows.tasks.join_next().await.is_some() {}
}

/// A flow by who asks whom, as the listener's family has addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    client: SocketAddr,
    asked: IpAddr,
}

/// The flows of a listener.
struct Flows {
    worker: Arc<Worker>,
    port: Arc<Port>,
    places: Arc<Places>,
    listener: Arc<Listener>,
    phase: watch::Receiver<Phase>,
    /// What was looked at last, and what is behind the port by that.
    snapshot: Arc<Snapshot>,
    upstream: Option<Arc<Upstream>>,
    known: HashMap<Key, Flow>,
    tasks: JoinSet<Key>,
}

struct Flow {
    task: task::Id,
    way: Arc<Way>,
    endpoint: Arc<Endpoint>,
    heard: Arc<Heard>,
    /// Bytes of the client.
    received: Arc<AtomicU64>,
}

/// To an endpoint. The place is free when the socket is closed.
#[derive(Debug)]
struct Way {
    socket: UdpSocket,
    place: Arc<Place>,
}

fn upstream(snapshot: &Snapshot, port: &Port) -> Option<Arc<Upstream>> {
    let stream = snapshot.stream(port.protocol, port.number)?;
    snapshot.behind(stream).cloned()
}

impl Flows {
    /// Looks for what has changed. Flows of endpoints that are no more are no more.
    fn renew(&mut self) {
        let snapshot = self.worker.state.peek();
        if Arc::ptr_eq(&snapshot, &self.snapshot) {
            return;
        }
        self.snapshot = Arc::clone(&snapshot);
        let now = upstream(&self.snapshot, &self.port);
        let same = match (&now, &self.upstream) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            _ => false,
        };
        if same {
            return;
        }
        let endpoints = now.iter().flat_map(|now| now.endpoints()).map(|one| one.address);
        let endpoints: HashSet<_> = endpoints.collect();
        self.known.retain(|_, flow| {
            let stays = endpoints.contains(&flow.endpoint.address);
            if !stays {
                flow.way.place.leave.notify_one();
            }
            stays
        });
        self.upstream = now;
    }

    fn forget(&mut self, ended: Result<(task::Id, Key), JoinError>) {
        let Ok((task, key)) = ended else { return };
        if self.known.get(&key).is_some_and(|flow| flow.task == task) {
            self.known.remove(&key);
        }
    }

    fn pass(&mut self, key: Key, datagram: &[u8]) {
        self.renew();
        let mut tried = Vec::new();
        while tried.len() < TRIES {
            if !self.known.contains_key(&key) {
                let Some(flow) = self.open(key, &tried) else { return };
                self.known.insert(key, flow);
            }
            let Some(flow) = self.known.get(&key) else { return };
            if flow.send(datagram, &self.port) {
                return;
            }
            tried.push(flow.endpoint.address);
            self.known.remove(&key);
        }
    }

    /// A flow to an endpoint that is not `tried`.
    fn open(&mut self, key: Key, tried: &[SocketAddr]) -> Option<Flow> {
        let Some(place) = self.places.take() else {
            self.port.failed.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let client = SocketAddr::new(key.client.ip().to_canonical(), key.client.port());
        let mut session = Session::new(Arc::clone(&self.port), self.worker.log.clone(), client);
        let stream = self.snapshot.stream(self.port.protocol, self.port.number);
        session.service = stream.map(|stream| stream.service.clone());
        let upstream = self.upstream.as_ref()?;
        let endpoint = upstream.choose(Method::Ewma, tried, self.worker.dice())?;
        if tried.contains(&endpoint.address) {
            return None;
        }
        let endpoint = Arc::clone(endpoint);
        session.endpoint = Some(endpoint.address);
        session.status = Status::BadGateway;
        let way = match connect(endpoint.address) {
            Ok(socket) => Arc::new(Way { socket, place }),
            Err(error) => {
                session.reason = Some(error.to_string());
                return None;
            }
        };
        session.status = Status::Done;
        let (heard, received) = (Arc::new(Heard::new()), Arc::clone(&session.received));
        let waiting = Waiting {
            listener: Arc::clone(&self.listener),
            key,
            way: Arc::clone(&way),
            endpoint: Arc::clone(&endpoint),
            heard: Arc::clone(&heard),
            session,
            _open: self.worker.open(),
        };
        let task = self.tasks.spawn(waiting.answer(self.phase.clone())).id();
        Some(Flow { task, way, endpoint, heard, received })
    }
}

fn connect(endpoint: SocketAddr) -> io::Result<UdpSocket> {
    let any = match endpoint {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(endpoint)?;
    UdpSocket::from_std(socket)
}

impl Flow {
    /// Whether the endpoint is there, as far as is known.
    fn send(&self, datagram: &[u8], port: &Port) -> bool {
        let sent = send(&self.way.socket, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        match sent.map_err(|error| io::Error::from(error).kind()) {
            Err(
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable,
            ) => {
                self.endpoint.failed();
                self.way.place.leave.notify_one();
                return false;
            }
            // There is no room for it; whoever sends datagrams knows that some are lost.
            Err(_) => {}
            Ok(_) => {
                let bytes = u64::try_from(datagram.len()).unwrap_or_default();
                self.received.fetch_add(bytes, Ordering::Relaxed);
                port.received.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        self.heard.question();
        true
    }
}

/// What is known of a flow by both tasks.
#[derive(Debug)]
struct Heard {
    born: Instant,
    /// Milliseconds from then until somebody said something last.
    last: AtomicU64,
    answered: AtomicBool,
    /// The client has said something after an answer.
    talks: AtomicBool,
}

impl Heard {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            last: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            talks: AtomicBool::new(false),
        }
    }

    fn now(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn question(&self) {
        self.now();
        if self.answered.load(Ordering::Relaxed) {
            self.talks.store(true, Ordering::Relaxed);
        }
    }

    fn answer(&self) {
        self.now();
        self.answered.store(true, Ordering::Relaxed);
    }

    /// When it is over, if nobody says anything.
    fn end(&self) -> Instant {
        let patience =
            match (self.talks.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed)) {
                (true, _) => SILENCE,
                (false, true) => ANSWERED,
                (false, false) => UNANSWERED,
            };
        self.born + Duration::from_millis(self.last.load(Ordering::Relaxed)) + patience
    }
}

/// A flow as whoever waits for its answers has it.
struct Waiting {
    listener: Arc<Listener>,
    key: Key,
    way: Arc<Way>,
    endpoint: Arc<Endpoint>,
    heard: Arc<Heard>,
    session: Session,
    _open: Open,
}

impl Waiting {
    /// Passes answers on until the flow is over.
    async fn answer(mut self, phase: watch::Receiver<Phase>) -> Key {
        let pending = self.endpoint.begin();
        let mut closing = std::pin::pin!(closing(phase));
        // When it is over, whoever says anything.
        let mut last = None;
        loop {
            let end = last.unwrap_or_else(|| self.heard.end());
            tokio::select! {
                ready = self.way.socket.readable() => {
                    if let Err(error) = ready.and_then(|()| self.take()) {
                        if error.kind() == io::ErrorKind::ConnectionRefused {
                            self.endpoint.failed();
                        }
                        self.fails(error.to_string());
                        break;
                    }
                }
                () = sleep_until(end) => {
                    if last.unwrap_or_else(|| self.heard.end()) <= Instant::now() {
                        break;
                    }
                }
                () = self.way.place.leave.notified() => {
                    if self.way.place.is_given_up() {
                        self.fails("it has no answer, and another flow needs its place".to_owned());
                        break;
                    }
                    last.get_or_insert(Instant::now() + LAST);
                }
                () = &mut closing, if last.is_none() => last = Some(Instant::now() + LAST),
            }
        }
        drop(pending);
        self.key
    }

    fn fails(&mut self, why: String) {
        self.session.status = Status::BadGateway;
        self.session.reason = Some(why);
    }

    /// Passes on what is there.
    fn take(&mut self) -> io::Result<()> {
        ANSWER.with_borrow_mut(|buffer| {
            for _ in 0..BATCH {
                let length = match self.way.socket.try_recv(buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                self.heard.answer();
                self.way.place.answer();
                match self.listener.answer(&self.key, &buffer[..length]) {
                    Ok(()) => self.session.sent(length),
                    // As it would be on any other way.
                    Err(error) => debug!(%error, "an answer is lost"),
                }
            }
            Ok(())
        })
    }
}

/// Where datagrams of clients arrive.
struct Listener {
    socket: UdpSocket,
    v6: bool,
}

impl Listener {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        let v6 = SocketAddr::try_from(getsockname(&socket)?)?.is_ipv6();
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, v6 })
    }

    /// The next datagram's flow and length.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<(Key, usize)> {
        self.socket.try_io(Interest::READABLE, || self.receive_now(buffer))
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<(Key, usize)> {
        let mut space = nix::cmsg_space!(in6_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let received = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let asked = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into())
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into())
            }
            _ => None,
        });
        let client = received.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|address| SocketAddr::from(*address));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::from(*address)))
        });
        match client.zip(asked) {
            Some((client, asked)) => Ok((Key { client, asked }, received.bytes)),
            None => Err(io::Error::other("a datagram says not whom it is of and for")),
        }
    }

    /// Sends to the client of a flow, as the address that it has asked.
    fn answer(&self, key: &Key, datagram: &[u8]) -> io::Result<()> {
        let to = SockaddrStorage::from(key.client);
        let parts = [IoSlice::new(datagram)];
        let send = |from: ControlMessage<'_>| {
            let socket = self.socket.as_raw_fd();
            sendmsg(socket, &parts, &[from], MsgFlags::MSG_DONTWAIT, Some(&to))
        };
        match (key.asked, self.v6) {
            (IpAddr::V4(from), false) => send(ControlMessage::Ipv4PacketInfo(&in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(from.octets()) },
                ipi_addr: in_addr { s_addr: 0 },
            })),
            (from, _) => {
                let from = match from {
                    IpAddr::V4(from) => from.to_ipv6_mapped(),
                    IpAddr::V6(from) => from,
                };
                send(ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
                    ipi6_addr: in6_addr { s6_addr: from.octets() },
                    ipi6_ifindex: 0,
                }))
            }
        }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flow_lasts_as_long_as_it_is_likely_to_be_needed() {
        let heard = Heard::new();
        advance(Duration::from_secs(1)).await;
        heard.question();
        heard.question();
        let left = || heard.end() - Instant::now();
        assert_eq!(left(), UNANSWERED);
        heard.answer();
        advance(Duration::from_secs(1)).await;
        assert_eq!(left(), ANSWERED - Duration::from_secs(1));
        heard.question();
        assert_eq!(left(), SILENCE);
        heard.answer();
        assert_eq!(left(), SILENCE);
    }
}
