//! Two ends that speak something else than HTTP.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::message::Upgrade;
use crate::record::Record;
use crate::state::Snapshot;
use crate::upstream::balance::{Method, Pending, Upstream};
use crate::worker::Worker;

/// Until an endpoint must have been connected to.
const CONNECT: Duration = Duration::from_secs(5);
/// Endpoints that are tried for a connection.
const TRIES: usize = 3;

/// Connects to an endpoint of those that `upstream` finds, or to another one if that fails; `asks` hears of each.
pub(crate) async fn connect(
    worker: &Worker,
    upstream: impl Fn(&Snapshot) -> Option<Arc<Upstream>>,
    mut asks: impl FnMut(SocketAddr),
) -> io::Result<(TcpStream, Pending)> {
    let mut tried = Vec::new();
    let mut last = io::Error::other("its Service has no endpoints");
    while tried.len() < TRIES {
        let upstream = upstream(&worker.state.peek());
        let endpoint = upstream
            .and_then(|upstream| upstream.choose(Method::Ewma, &tried, worker.dice()).cloned());
        let Some(endpoint) = endpoint.filter(|one| !tried.contains(&one.address)) else { break };
        if !tried.is_empty() {
            worker.metrics.retries.fetch_add(1, Ordering::Relaxed);
        }
        let address = endpoint.address;
        tried.push(address);
        asks(address);
        let pending = endpoint.begin();
        let connected = timeout(CONNECT, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|late| Err(late.into())) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok((stream, pending));
            }
            Err(error) => {
                endpoint.failed();
                last =
                    io::Error::new(error.kind(), format!("cannot connect to {address}: {error}"));
            }
        }
    }
    Err(last)
}

/// Client and endpoint, when both have agreed. It belongs to no configuration: it lasts until one of the ends
/// has enough, or nobody says anything.
#[derive(Debug)]
pub(crate) struct Tunnel {
    client: Upgrade,
    endpoint: OnUpgrade,
    patience: Duration,
    pending: Pending,
}

impl Tunnel {
    /// With so much time in which nobody says anything.
    pub(crate) fn new(
        client: Upgrade,
        endpoint: OnUpgrade,
        patience: Duration,
        pending: Pending,
    ) -> Self {
        Self { client, endpoint, patience, pending }
    }

    /// Waits for the client to hear of it, and carries what both say; keeps something as long as that lasts.
    pub(crate) fn start(
        self,
        worker: &Arc<Worker>,
        mut record: Box<Record>,
        kept: impl Send + 'static,
    ) {
        let worker = Arc::clone(worker);
        tokio::spawn(async move {
            let open = worker.open();
            let result = self.carry(&mut record).await;
            record.reason = result.err().map(|error| error.to_string());
            record.finish(&worker.log, &worker.metrics);
            drop((open, kept));
        });
    }

    async fn carry(self, record: &mut Record) -> io::Result<()> {
        let (client, endpoint) = (self.client.stream().await, self.endpoint.await);
        let (client, endpoint) = (client?, endpoint.map_err(io::Error::other)?);
        let heard = Heard::new();
        let result = carry(client, TokioIo::new(endpoint), self.patience, &heard).await;
        // Also where it ends badly.
        record.received += heard.to_other.load(Ordering::Relaxed);
        record.sent += heard.to_one.load(Ordering::Relaxed);
        drop(self.pending);
        result
    }
}

/// Carries bytes both ways until both ends have closed, or nobody has said anything for so long.
pub(crate) async fn both(
    one: impl AsyncRead + AsyncWrite + Unpin,
    other: impl AsyncRead + AsyncWrite + Unpin,
    patience: Duration,
) -> io::Result<()> {
    carry(one, other, patience, &Heard::new()).await
}

async fn carry(
    one: impl AsyncRead + AsyncWrite + Unpin,
    other: impl AsyncRead + AsyncWrite + Unpin,
    patience: Duration,
    heard: &Heard,
) -> io::Result<()> {
    let mut one = Listened { inner: one, heard, written: &heard.to_one };
    let mut other = Listened { inner: other, heard, written: &heard.to_other };
    let mut copying = std::pin::pin!(copy_bidirectional(&mut one, &mut other));
    loop {
        let last = heard.last();
        tokio::select! {
            biased;
            copied = copying.as_mut() => return copied.map(drop),
            () = sleep_until(last + patience) => {
                if heard.last() == last {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody said anything"));
                }
            }
        }
    }
}

/// When something was heard from either end, and how many bytes each was given.
struct Heard {
    born: Instant,
    /// Milliseconds since.
    last: AtomicU64,
    to_one: AtomicU64,
    to_other: AtomicU64,
}

impl Heard {
    fn new() -> Self {
        let (last, to_one, to_other) = Default::default();
        Self { born: Instant::now(), last, to_one, to_other }
    }

    fn now(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.born + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

struct Listened<'a, S> {
    inner: S,
    heard: &'a Heard,
    written: &'a AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listened<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        ready!(Pin::new(&mut me.inner).poll_read(cx, buf))?;
        me.heard.now();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listened<'_, S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = ready!(Pin::new(&mut me.inner).poll_write(cx, buf))?;
        me.written.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    // Where nobody has anything to do, time passes by itself.
    #[tokio::test(start_paused = true)]
    async fn what_was_carried_is_known_however_it_ends() {
        let (mut client, one) = duplex(100);
        let (mut endpoint, other) = duplex(100);
        let heard = Heard::new();
        let patience = Duration::from_secs(60);
        let talk = async {
            client.write_all(b"four").await.unwrap();
            endpoint.read_exact(&mut [0; 4]).await.unwrap();
            endpoint.write_all(b"fives").await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
        };
        let (result, ()) = tokio::join!(carry(one, other, patience, &heard), talk);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!((heard.to_other.into_inner(), heard.to_one.into_inner()), (4, 5));
    }
}
