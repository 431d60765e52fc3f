//! Byte streams between a client's socket and the HTTP parser.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::server::TlsStream;

use super::framing::{Framing, Violation};

/// From the first byte of a request's head to its last.
pub(super) const HEAD: Duration = Duration::from_secs(30);

/// How long a client may take nothing of what is sent to it.
pub(super) const STALL: Duration = Duration::from_secs(60);
/// How long a client is listened to that is not served any more.
const LINGER: Duration = Duration::from_secs(2);

/// What HTTP is spoken over. A client that takes nothing for too long is cut.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Of what comes from `io`: what is read already.
    early: Bytes,
    io: Io,
    stalled: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Io {
    /// As it comes.
    Plain(TcpStream),
    /// In TLS that ends here.
    Tls(Box<TlsStream<Recorder<TcpStream>>>),
}

macro_rules! delegate {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.io {
            Io::Plain($io) => {
                let $io = Pin::new($io);
                $call
            }
            Io::Tls($io) => {
                let $io = Pin::new($io.as_mut());
                $call
            }
        }
    };
}

impl Stream {
    /// Over TCP as it comes.
    pub(crate) fn plain(io: TcpStream) -> Self {
        Self { early: Bytes::new(), io: Io::Plain(io), stalled: None }
    }

    /// The same, when these bytes of it are read already.
    pub(crate) fn after(self, early: Bytes) -> Self {
        Self { early, ..self }
    }

    /// In TLS that ends here.
    pub(crate) fn tls(io: Box<TlsStream<Recorder<TcpStream>>>) -> Self {
        Self { early: Bytes::new(), io: Io::Tls(io), stalled: None }
    }

    /// `written`, unless that has been awaited for too long.
    fn in_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if !me.early.is_empty() {
            let part = me.early.split_to(me.early.len().min(buf.remaining()));
            buf.put_slice(&part);
            // What else is there comes along; what is wrong is still so the next time.
            if buf.remaining() > 0 {
                let _ = delegate!(me, io => io.poll_read(cx, buf));
            }
            return Poll::Ready(Ok(()));
        }
        delegate!(me, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = delegate!(me, io => io.poll_write(cx, buf));
        me.in_time(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = match small(bufs, &mut [0; SMALL]) {
            Some(buf) => delegate!(me, io => io.poll_write(cx, buf)),
            None => delegate!(me, io => io.poll_write_vectored(cx, bufs)),
        };
        me.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let flushed = delegate!(me, io => io.poll_flush(cx));
        me.in_time(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let shut = delegate!(me, io => io.poll_shutdown(cx));
        me.in_time(cx, shut)
    }
}

/// Bytes that are copied sooner than the kernel takes them from several places.
const SMALL: usize = 1024;

/// All that is to be written in one piece, if it is not much.
fn small<'b>(bufs: &[io::IoSlice<'_>], room: &'b mut [u8; SMALL]) -> Option<&'b [u8]> {
    let mut length = 0;
    for buf in bufs {
        room.get_mut(length..length + buf.len())?.copy_from_slice(buf);
        length += buf.len();
    }
    Some(&room[..length])
}

/// Keeps a copy of what is read, until told not to: what a client says first decides whether TLS ends here,
/// and if not, whoever ends it must hear it, too.
#[derive(Debug)]
pub(crate) struct Recorder<S> {
    inner: S,
    record: Option<Vec<u8>>,
}

impl<S> Recorder<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, record: Some(Vec::new()) }
    }

    /// From now on nothing is kept.
    pub(crate) fn stop(&mut self) {
        self.record = None;
    }

    /// What was read so far, and the rest.
    pub(crate) fn into_parts(self) -> (Vec<u8>, S) {
        (self.record.unwrap_or_default(), self.inner)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorder<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut me.inner).poll_read(cx, buf))?;
        if let Some(record) = &mut me.record {
            record.extend_from_slice(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Recorder<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// Between a [`Strict`] stream and whoever answers its requests.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: AtomicBool,
    /// Requests of which anything has come, and those that somebody answers or has answered.
    begun: AtomicU64,
    taken: AtomicU64,
    violation: OnceLock<Violation>,
}

impl Gate {
    /// A request is to be answered; why it cannot be, if its client is to blame.
    pub(crate) fn take(&self) -> Option<Violation> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        // There may be good ones before the one that is none.
        self.violation().filter(|_| taken == self.begun.load(Ordering::Relaxed))
    }

    /// Whether something has come that nobody was given to answer.
    pub(crate) fn is_behind(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > self.taken.load(Ordering::Relaxed)
    }

    /// What comes now is no HTTP: another protocol was agreed upon for the request that was taken last. `false`
    /// if something has come behind it already, which nobody can tell from a request.
    pub(crate) fn open(&self) -> bool {
        let good = self.begun.load(Ordering::Relaxed) <= self.taken.load(Ordering::Relaxed);
        if good {
            self.open.store(true, Ordering::Relaxed);
        }
        good
    }

    /// Whether nothing of any request has come.
    pub(crate) fn is_fresh(&self) -> bool {
        self.begun.load(Ordering::Relaxed) == 0
    }

    /// Why the connection was cut, if its client is to blame.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.violation.get().copied()
    }
}

/// Lets nothing pass but HTTP/1 as [`Framing`] has it, and no head that takes too long. In place of what is
/// wrong the parser gets [`Violation::poison`]: it answers 400 by itself, or somebody does who asks [`Gate::take`].
#[derive(Debug)]
pub(crate) struct Strict {
    /// There until this is dropped.
    inner: Option<Stream>,
    framing: Framing,
    gate: Arc<Gate>,
    /// What is left of it for the parser.
    poison: &'static [u8],
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Strict {
    pub(crate) fn new(inner: Stream, gate: Arc<Gate>) -> Self {
        Self { inner: Some(inner), framing: Framing::default(), gate, poison: &[], deadline: None }
    }

    fn inner(&mut self) -> &mut Stream {
        self.inner.as_mut().expect("it is there until this is dropped")
    }

    fn poison(&mut self, buf: &mut ReadBuf<'_>) {
        let (now, later) = self.poison.split_at(self.poison.len().min(buf.remaining()));
        buf.put_slice(now);
        self.poison = later;
    }

    fn check(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if self.gate.open.load(Ordering::Relaxed) {
            return;
        }
        if let Err((at, violation)) = self.framing.take(&buf.filled()[before..]) {
            buf.set_filled(before + at);
            self.poison = violation.poison();
            self.poison(buf);
            // There is but one.
            let _ = self.gate.violation.set(violation);
        }
        self.gate.begun.store(self.framing.begun(), Ordering::Relaxed);
        if !self.framing.in_head() {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = Some(Box::pin(sleep_until(Instant::now() + HEAD)));
        }
    }
}

impl AsyncRead for Strict {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.gate.violation().is_some() {
            if let Some(deadline) = me.deadline.as_mut().filter(|_| me.poison.is_empty()) {
                // To the parser an end would be the client's, who does not want an answer then.
                ready!(deadline.as_mut().poll(cx));
            }
            me.poison(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if Pin::new(me.inner()).poll_read(cx, buf)?.is_ready() {
            me.check(buf, before);
            return Poll::Ready(Ok(()));
        }
        match &mut me.deadline {
            Some(deadline) => {
                ready!(deadline.as_mut().poll(cx));
                let _ = me.gate.violation.set(Violation::Slow);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Strict {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().inner()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().inner()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().inner()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().inner()).poll_shutdown(cx)
    }
}

/// If a request was answered before its end, or was none, what is left of it is read and forgotten for a while:
/// a client that is cut while it sends never reads the answer.
impl Drop for Strict {
    fn drop(&mut self) {
        let unread = self.gate.violation().is_some() || !self.framing.is_between();
        let Some(mut stream) = self.inner.take().filter(|_| unread) else { return };
        // Without a runtime nobody is served any more.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(timeout(LINGER, async move {
            let _ = stream.shutdown().await;
            let mut forgotten = [0; 4096];
            while let Ok(1..) = stream.read(&mut forgotten).await {}
        }));
    }
}

/// A connection as a header of the PROXY protocol tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The client.
    pub(crate) client: SocketAddr,
    /// What the client connected to.
    pub(crate) server: SocketAddr,
}

impl Named {
    fn new(client: impl Into<SocketAddr>, server: impl Into<SocketAddr>) -> Self {
        let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        Self { client: canonical(client.into()), server: canonical(server.into()) }
    }
}

/// Reads the header of the PROXY protocol (versions 1 and 2) and not a byte more: the connection that whoever
/// connects names, `None` if he speaks for himself.
pub(crate) async fn proxy_header<S>(stream: &mut S) -> io::Result<Option<Named>>
where
    S: AsyncRead + Unpin,
{
    const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if start != *SIGNATURE {
        return proxy_line(stream, &start).await;
    }
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await?;
    let [version, family, length @ ..] = fixed;
    let mut rest = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut rest).await?;
    binary(version, family, &rest)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a PROXY header, version 2"))
}

/// What a header of version 2 names, if it makes sense.
fn binary(version: u8, family: u8, rest: &[u8]) -> Option<Option<Named>> {
    let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    match (version, family) {
        // LOCAL: a health check of whoever connects; or a family that nobody connects over.
        (0x20, _) | (0x21, 0x00) => Some(None),
        (0x21, 0x11) => {
            let address = |at: usize| <[u8; 4]>::try_from(rest.get(at..at + 4)?).ok();
            Some(Some(Named::new((address(0)?, port(8)?), (address(4)?, port(10)?))))
        }
        (0x21, 0x21) => {
            let address = |at: usize| <[u8; 16]>::try_from(rest.get(at..at + 16)?).ok();
            Some(Some(Named::new((address(0)?, port(32)?), (address(16)?, port(34)?))))
        }
        _ => None,
    }
}

async fn proxy_line<S>(stream: &mut S, start: &[u8]) -> io::Result<Option<Named>>
where
    S: AsyncRead + Unpin,
{
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not a PROXY header");
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == 107 || !line.starts_with(b"PROXY ") {
            return Err(invalid());
        }
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line).map_err(|_| invalid())?;
    text(line.trim_end_matches("\r\n")).ok_or_else(invalid)
}

/// What a line of version 1 names, if it makes sense.
fn text(line: &str) -> Option<Option<Named>> {
    let mut words = line.strip_prefix("PROXY ")?.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let mut address = || words.next()?.parse::<IpAddr>().ok();
    let (source, destination) = (address()?, address()?);
    // A number of digits alone.
    let digits = |word: &&str| word.bytes().all(|byte| byte.is_ascii_digit());
    let mut port = || words.next().filter(digits)?.parse::<u16>().ok();
    let (from, to) = (port()?, port()?);
    let ipv4 = match family {
        "TCP4" => true,
        "TCP6" => false,
        _ => return None,
    };
    let same = source.is_ipv4() == ipv4 && destination.is_ipv4() == ipv4;
    (same && words.next().is_none()).then(|| Some(Named::new((source, from), (destination, to))))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Two ends of a connection; the first is a client's.
    async fn ends() -> (TcpStream, Strict) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        (client, Strict::new(Stream::plain(stream), Arc::default()))
    }

    // Where nobody has anything to do, time passes by itself.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_comes_too_slowly_is_not_waited_for() {
        let (mut client, mut served) = ends().await;
        let begun = Instant::now();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
        let mut read = Vec::new();
        let error = loop {
            match served.read_buf(&mut read).await {
                Ok(_) if begun.elapsed() < HEAD => {
                    // A byte now and then does not help.
                    sleep(HEAD / 4).await;
                    let _ = client.write_all(b"X").await;
                }
                Ok(_) => panic!("still read after {:?}", begun.elapsed()),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < 2 * HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut() {
        let (_client, mut served) = ends().await;
        let begun = Instant::now();
        let error = loop {
            if let Err(error) = served.write_all(&[0; 1 << 16]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= STALL);
    }

    #[test]
    fn who_a_proxy_header_names() {
        let named = |client: &str, server: &str| {
            let address = |text: &str| text.parse().unwrap();
            Some(Some(Named { client: address(client), server: address(server) }))
        };
        let v4 = named("192.0.2.1:1234", "192.0.2.2:80");
        assert_eq!(text("PROXY TCP4 192.0.2.1 192.0.2.2 1234 80"), v4);
        let v6 = named("[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!(text("PROXY TCP6 2001:db8::1 2001:db8::2 1 2"), v6);
        let mapped = "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1234 80";
        assert_eq!(text(mapped), named("192.0.2.1:1234", "192.0.2.2:80"));
        assert_eq!(text("PROXY UNKNOWN"), Some(None));
        for bad in [
            "PROXY",
            "PROXY TCP4 x y 1 2",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1",
            "PROXY TCP4 192.0.2.1 192.0.2.2 70000 1",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 1",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 1 1",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 1",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 1",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 1",
            "GET /",
        ] {
            assert_eq!(text(bad), None, "{bad}");
        }
        let v4 = [192, 0, 2, 1, 192, 0, 2, 2, 0x04, 0xd2, 0, 80];
        assert_eq!(binary(0x21, 0x11, &v4), named("192.0.2.1:1234", "192.0.2.2:80"));
        assert_eq!(binary(0x20, 0, &[]), Some(None));
        assert_eq!(binary(0x21, 0x11, &v4[..11]), None);
        assert_eq!(binary(0x21, 0x12, &v4), None);
        assert_eq!(binary(0x31, 0x11, &v4), None);
    }
}
