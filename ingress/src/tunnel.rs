//! Two ends that speak something else than HTTP.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::message::Upgrade;
use crate::record::Record;
use crate::server::alarm::Alarm;
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
        let mut carried = Carried::default();
        let result = carry(client, TokioIo::new(endpoint), self.patience, &mut carried).await;
        // Also where it ends badly.
        record.received += carried.to_other;
        record.sent += carried.to_one;
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
    carry(one, other, patience, &mut Carried::default()).await
}

/// How many bytes each end was given.
#[derive(Debug, Default, PartialEq, Eq)]
struct Carried {
    to_one: u64,
    to_other: u64,
}

async fn carry(
    mut one: impl AsyncRead + AsyncWrite + Unpin,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
    patience: Duration,
    carried: &mut Carried,
) -> io::Result<()> {
    let (mut forth, mut back) = (Way::default(), Way::default());
    let mut last = Instant::now();
    let mut alarm = Alarm::default();
    std::future::poll_fn(|cx| {
        let ended = forth.poll(cx, &mut one, &mut other, &mut carried.to_other)?.is_ready();
        if back.poll(cx, &mut other, &mut one, &mut carried.to_one)?.is_ready() && ended {
            return Poll::Ready(Ok(()));
        }
        // The clock is read once for all that was said.
        if std::mem::take(&mut forth.heard) | std::mem::take(&mut back.heard) {
            last = Instant::now();
        }
        ready!(alarm.poll(cx, last + patience));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nobody said anything")))
    })
    .await
}

/// Read at a time.
const PIECE: usize = 16 << 10;

/// What goes from one end to the other. Bytes lie on the stack on their way, so that tunnels in which nobody says
/// anything, as most do most of the time, have no room for any.
#[derive(Debug, Default)]
struct Way {
    /// What the one who is written to has not taken yet.
    rest: Vec<u8>,
    /// Of that.
    taken: usize,
    /// Something was read since somebody asked.
    heard: bool,
    unflushed: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Open,
    /// Nothing more will come.
    Ending,
    /// And the other one knows.
    Ended,
}

impl Way {
    /// Carries what there is; ready when the end of it has been passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        carried: &mut u64,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.taken < self.rest.len() {
                let taken = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.taken..]))?;
                self.took(taken, carried)?;
                self.taken += taken;
            }
            // A burst's room is not kept.
            (self.rest, self.taken) = (Vec::new(), 0);
            match self.phase {
                Phase::Open => {}
                Phase::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.phase = Phase::Ended;
                    return Poll::Ready(Ok(()));
                }
                Phase::Ended => return Poll::Ready(Ok(())),
            }
            let mut room = [MaybeUninit::uninit(); PIECE];
            let mut buf = ReadBuf::uninit(&mut room);
            let read = Pin::new(&mut *from).poll_read(cx, &mut buf)?;
            if read.is_pending() {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            self.heard = true;
            let mut piece = buf.filled();
            if piece.is_empty() {
                self.phase = Phase::Ending;
                continue;
            }
            if let Poll::Ready(taken) = Pin::new(&mut *to).poll_write(cx, piece)? {
                self.took(taken, carried)?;
                piece = &piece[taken..];
            }
            self.rest.extend_from_slice(piece);
        }
    }

    fn took(&mut self, taken: usize, carried: &mut u64) -> io::Result<()> {
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *carried += taken as u64;
        self.unflushed = true;
        Ok(())
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
        let mut carried = Carried::default();
        let patience = Duration::from_secs(60);
        let talk = async {
            client.write_all(b"four").await.unwrap();
            endpoint.read_exact(&mut [0; 4]).await.unwrap();
            endpoint.write_all(b"fives").await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
        };
        let (result, ()) = tokio::join!(carry(one, other, patience, &mut carried), talk);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(carried, Carried { to_other: 4, to_one: 5 });
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_what_was_said_last() {
        let (mut client, one) = duplex(100);
        let (mut endpoint, other) = duplex(100);
        let patience = Duration::from_secs(60);
        let begun = Instant::now();
        let talk = async {
            for number in [1, 2] {
                tokio::time::sleep(Duration::from_secs(45)).await;
                client.write_all(&[number]).await.unwrap();
                assert_eq!(endpoint.read_u8().await.unwrap(), number);
            }
        };
        let (result, ()) = tokio::join!(both(one, other, patience), talk);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let waited = begun.elapsed();
        assert!(
            waited >= 2 * Duration::from_secs(45) + patience && waited < patience * 3,
            "{waited:?}"
        );
    }

    #[tokio::test]
    async fn all_arrives_at_who_takes_little_at_a_time_and_ends_are_passed_on() {
        let (client, one) = duplex(7);
        let (endpoint, other) = duplex(3);
        let (said, answered) = (vec![1; 100_000], vec![2; 50_000]);
        let say = async |stream: tokio::io::DuplexStream, bytes: &[u8]| {
            let (mut read, mut write) = tokio::io::split(stream);
            let mut heard = Vec::new();
            let speak = async {
                write.write_all(bytes).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(speak, async { read.read_to_end(&mut heard).await.unwrap() });
            heard
        };
        let mut carried = Carried::default();
        let carry = carry(one, other, Duration::from_secs(60), &mut carried);
        let (result, heard, asked) =
            tokio::join!(carry, say(client, &said), say(endpoint, &answered));
        result.unwrap();
        assert!(heard == answered && asked == said);
        assert_eq!(carried, Carried { to_other: 100_000, to_one: 50_000 });
    }
}
