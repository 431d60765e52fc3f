//! Clients' connections: from the listener to requests.
//!
//! ```text
//! listener ─► PROXY header ─► TLS ─► preface ─┬─► HTTP/2 ─┬─► proxy::serve
//!        one a worker                          └─► HTTP/1 ─┘
//! ```

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Version;
use tokio::io::AsyncRead;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::answer::{self, Answer};
use crate::message;
use crate::proxy;
use crate::worker::Worker;
use alarm::Alarm;
use framing::Violation;
use handshake::{Handshake, Session};
use http2::{Bad, End};
use preface::Beginning;
use stream::Stream;

pub(crate) mod alarm;
pub(crate) mod buffers;
mod date;
pub(crate) mod framing;
mod handshake;
pub(crate) mod http1;
pub(crate) mod http2;
#[cfg(test)]
mod patience;
mod preface;
pub(crate) mod stream;

/// How long a client may take to say who it is, where it has to.
pub(crate) const PROXY_HEADER: Duration = Duration::from_secs(5);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long the first request of a connection is waited for that came just before the gateway took no more.
const FIRST: Duration = Duration::from_secs(5);
/// How long a client is listened to that is not served any more.
const LINGER: Duration = Duration::from_secs(2);

/// Whether a gateway takes requests; one phase comes after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It does not know what to serve, or another gateway does, with the same listeners.
    Waiting,
    /// It does where no certificate is needed: it knows none.
    Plain,
    /// It does.
    Serving,
    /// It takes no connections and no requests but those that are there.
    Closing,
}

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Who has connected, as the connection or its PROXY header says.
    pub(crate) address: SocketAddr,
    /// The port that was connected to, as the PROXY header says, the gateway's options or else the connection.
    pub(crate) port: u16,
    /// Of a connection with TLS.
    pub(crate) tls: Option<Session>,
    /// What the connection takes, also when it has become a tunnel.
    _room: Arc<OwnedSemaphorePermit>,
}

/// Takes connections until the phase changes.
pub(crate) async fn accept(
    worker: Arc<Worker>,
    listener: TcpListener,
    tls: bool,
    mut phase: watch::Receiver<Phase>,
) {
    let room = Arc::new(Semaphore::new(worker.most_connections));
    loop {
        let accepted = async {
            let Ok(room) = Arc::clone(&room).acquire_owned().await else {
                return std::future::pending().await;
            };
            listener.accept().await.map(|accepted| (accepted, room))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => return,
        };
        match accepted {
            Ok(((stream, peer), room)) => {
                let (worker, phase, room) = (Arc::clone(&worker), phase.clone(), Arc::new(room));
                tokio::spawn(async move {
                    worker.metrics.accepted.fetch_add(1, Ordering::Relaxed);
                    let open = worker.open();
                    if let Err(error) = connection(&worker, stream, peer, tls, phase, &room).await {
                        debug!(%peer, %error, "a connection ended badly");
                    }
                    drop((open, room));
                });
            }
            Err(error) => {
                debug!(%error, "cannot take a connection");
                // Out of descriptors, most likely: give others time to return some.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    worker: &Arc<Worker>,
    mut stream: TcpStream,
    peer: SocketAddr,
    tls: bool,
    phase: watch::Receiver<Phase>,
    room: &Arc<OwnedSemaphorePermit>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let public = worker.state.public;
    let public = if tls { public.https } else { public.http };
    let mut port = public.map_or_else(|| stream.local_addr().map(|at| at.port()), Ok)?;
    let mut address = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if worker.state.peek().gateway.proxy_protocol {
        let header = timeout(PROXY_HEADER, stream::proxy_header(&mut stream)).await?;
        // Whoever is not trusted may say what he wants.
        if let Some(said) = header?.filter(|_| is_trusted(worker, address.ip())) {
            (address, port) = (said.client, said.server.port());
        }
    }
    let peer = |tls| Peer { address, port, tls, _room: Arc::clone(room) };
    if !tls {
        let peer = peer(None);
        return match begins(&mut stream, phase.clone()).await? {
            None => Ok(()),
            Some(Beginning::Http1(bytes)) => {
                let stream = Stream::plain(stream).after(bytes);
                Box::pin(http_1(worker, stream, peer, phase)).await
            }
            Some(Beginning::Http2(bytes)) => {
                let stream = Stream::plain(stream).after(bytes);
                Box::pin(http_2(worker, stream, peer, phase)).await
            }
            Some(Beginning::Slow) => {
                let (status, why) = (Violation::Slow.status(), Violation::Slow.to_string());
                worker.metrics.violation(&why);
                proxy::unreadable(worker, &peer, Version::HTTP_11, status, why);
                Ok(())
            }
        };
    }
    // Each part has its own memory, so that a connection that waits has none of the other parts'.
    let shaken = timeout(HANDSHAKE, Box::pin(handshake::shake(worker, stream))).await;
    let shaken = shaken.unwrap_or_else(|late| Err(late.into())).inspect_err(|_| {
        worker.metrics.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    })?;
    match shaken {
        Handshake::Ended(stream, session) if session.http2 => {
            let peer = peer(Some(session));
            let mut stream = Stream::tls(stream);
            match begins(&mut stream, phase.clone()).await? {
                // What is no HTTP/2 is told so there.
                Some(Beginning::Http1(bytes) | Beginning::Http2(bytes)) => {
                    Box::pin(http_2(worker, stream.after(bytes), peer, phase)).await
                }
                Some(Beginning::Slow) | None => Ok(()),
            }
        }
        Handshake::Ended(stream, session) => {
            let peer = peer(Some(session));
            Box::pin(http_1(worker, Stream::tls(stream), peer, phase)).await
        }
        Handshake::Passed(target, read, stream) => {
            Box::pin(handshake::pass(worker, &target, &read, stream)).await
        }
    }
}

/// What a connection begins with; `None` if it does not, and the gateway takes nothing new any more.
async fn begins(
    stream: &mut (impl AsyncRead + Unpin),
    phase: watch::Receiver<Phase>,
) -> io::Result<Option<Beginning>> {
    tokio::select! {
        biased;
        beginning = preface::read(stream) => beginning.map(Some),
        // Who has just come is about to ask, and has nobody else to ask.
        () = async { closing(phase).await; sleep(FIRST).await } => Ok(None),
    }
}

pub(crate) fn is_trusted(worker: &Worker, address: IpAddr) -> bool {
    worker.state.peek().gateway.trusted.iter().any(|range| range.contains(&address))
}

async fn http_1(
    worker: &Arc<Worker>,
    stream: Stream,
    peer: Peer,
    phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let service = Clients { worker, peer: Arc::new(peer) };
    let (ended, violation) = http1::serve(service, stream, phase).await;
    if let Some(why) = violation {
        worker.metrics.violation(&why.to_string());
    }
    ended?.end().await
}

/// Answers requests as the gateway does.
struct Clients<'a> {
    worker: &'a Arc<Worker>,
    peer: Arc<Peer>,
}

impl http1::Service for Clients<'_> {
    type Body = Answer;

    fn serve(
        &self,
        request: message::Request,
        alarm: &mut Alarm,
    ) -> impl Future<Output = message::Response<Answer>> + Send {
        proxy::serve(self.worker, &self.peer, request, Some(alarm))
    }

    fn refuse(&self, head: Option<message::Head>, why: Violation) -> message::Response<Answer> {
        if let Some(head) = head {
            return proxy::refused(self.worker, &self.peer, head, why);
        }
        let (status, said) = (why.status(), why.to_string());
        proxy::unreadable(self.worker, &self.peer, Version::HTTP_11, status, said);
        answer::plain(why.status())
    }
}

async fn http_2(
    worker: &Arc<Worker>,
    stream: Stream,
    peer: Peer,
    phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let peer = Arc::new(peer);
    let answer = |request| {
        let (worker, peer) = (Arc::clone(worker), Arc::clone(&peer));
        async move { proxy::serve(&worker, &peer, request, None).await }
    };
    let refused = |bad: Bad| {
        let why = bad.to_string();
        worker.metrics.violation(&why);
        match bad {
            Bad::TooLong(Some(head)) => {
                // It is answered already.
                drop(proxy::refused(worker, &peer, *head, Violation::HeadTooLong));
            }
            bad => proxy::unreadable(worker, &peer, Version::HTTP_2, bad.status(), why),
        }
    };
    match http2::serve(stream, closing(phase), answer, refused).await {
        Ok(()) => Ok(()),
        Err(End::Io(error)) => Err(error),
        Err(End::Fault(fault)) => {
            worker.metrics.violation(&fault.to_string());
            Err(io::Error::other(fault.to_string()))
        }
    }
}

/// Waits until the gateway takes requests, with TLS or without.
pub(crate) async fn begun(mut phase: watch::Receiver<Phase>, tls: bool) {
    let wanted = if tls { Phase::Serving } else { Phase::Plain };
    // Also if whoever decides is gone.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

/// Waits until the gateway takes nothing new any more.
pub(crate) async fn closing(mut phase: watch::Receiver<Phase>) {
    // Also if whoever decides is gone.
    let _ = phase.wait_for(|phase| *phase == Phase::Closing).await;
}
