//! Two ends that speak something else than HTTP.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until};

use crate::record::Record;
use crate::upstream::balance::Pending;
use crate::worker::Worker;

/// Client and endpoint, when both have agreed. It belongs to no configuration: it lasts until one of the ends
/// has enough, or nobody says anything.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel(Arc<std::sync::Mutex<Option<Ends>>>);

/// What is kept as long as the tunnel that a request becomes.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    _kept: Arc<dyn Any + Send + Sync>,
}

impl Kept {
    pub(crate) fn new(kept: Arc<dyn Any + Send + Sync>) -> Self {
        Self { _kept: kept }
    }
}

#[derive(Debug)]
struct Ends {
    client: OnUpgrade,
    endpoint: OnUpgrade,
    patience: Duration,
    pending: Pending,
}

impl Tunnel {
    /// With so much time in which nobody says anything.
    pub(crate) fn new(
        client: OnUpgrade,
        endpoint: OnUpgrade,
        patience: Duration,
        pending: Pending,
    ) -> Self {
        let ends = Ends { client, endpoint, patience, pending };
        Self(Arc::new(std::sync::Mutex::new(Some(ends))))
    }

    /// Waits for the client to hear of it, and carries what both say.
    pub(crate) fn start(self, worker: &Arc<Worker>, mut record: Box<Record>, kept: Option<Kept>) {
        let ends = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(ends) = ends else { return };
        let worker = Arc::clone(worker);
        tokio::spawn(async move {
            let open = worker.open();
            let result = ends.carry(&mut record).await;
            record.reason = result.err().map(|error| error.to_string());
            record.finish(&worker.log, &worker.metrics);
            drop((open, kept));
        });
    }
}

impl Ends {
    async fn carry(self, record: &mut Record) -> io::Result<()> {
        let (client, endpoint) = (self.client.await, self.endpoint.await);
        let client = client.map_err(io::Error::other)?;
        let endpoint = endpoint.map_err(io::Error::other)?;
        let (received, sent) =
            both(TokioIo::new(client), TokioIo::new(endpoint), self.patience).await?;
        record.received += received;
        record.sent += sent;
        drop(self.pending);
        Ok(())
    }
}

/// Carries bytes both ways until both ends have closed, or nobody has said anything for so long. How many
/// each of them sent.
pub(crate) async fn both(
    one: impl AsyncRead + AsyncWrite + Unpin,
    other: impl AsyncRead + AsyncWrite + Unpin,
    patience: Duration,
) -> io::Result<(u64, u64)> {
    let heard = Heard::new();
    let mut one = Listened { inner: one, heard: &heard };
    let mut other = Listened { inner: other, heard: &heard };
    let mut copying = std::pin::pin!(copy_bidirectional(&mut one, &mut other));
    loop {
        let last = heard.last();
        tokio::select! {
            biased;
            copied = copying.as_mut() => return copied,
            () = sleep_until(last + patience) => {
                if heard.last() == last {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody said anything"));
                }
            }
        }
    }
}

/// When something was heard from either end.
struct Heard {
    born: Instant,
    /// Milliseconds since.
    last: AtomicU64,
}

impl Heard {
    fn new() -> Self {
        Self { born: Instant::now(), last: AtomicU64::new(0) }
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
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
