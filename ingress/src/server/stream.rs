//! Byte streams between a client's socket and the HTTP parser.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::alarm::Alarm;

/// From the first byte of a request's head to its last.
pub(super) const HEAD: Duration = Duration::from_secs(30);

/// How long a client may take nothing of what is sent to it.
pub(super) const STALL: Duration = Duration::from_secs(60);

/// What HTTP is spoken over. A client that takes nothing for too long is cut.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Of what comes from `io`: what is read already.
    early: Bytes,
    io: Io,
    /// Since when the client takes nothing of what is there for it.
    stalled: Option<Instant>,
    alarm: Alarm,
}

#[derive(Debug)]
enum Io {
    /// As it comes.
    Plain(TcpStream),
    /// In TLS that ends here.
    Tls(Box<TlsStream<Recorder<TcpStream>>>),
    /// Somebody else has it.
    Gone,
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
            Io::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

impl Stream {
    /// Over TCP as it comes.
    pub(crate) fn plain(io: TcpStream) -> Self {
        Self { early: Bytes::new(), io: Io::Plain(io), stalled: None, alarm: Alarm::default() }
    }

    /// The same, when these bytes of it are read already.
    pub(crate) fn after(self, early: Bytes) -> Self {
        Self { early, ..self }
    }

    /// What is behind this, which is at its end from then on.
    pub(super) fn hand_over(&mut self) -> Self {
        let gone =
            Self { early: Bytes::new(), io: Io::Gone, stalled: None, alarm: Alarm::default() };
        std::mem::replace(self, gone)
    }

    /// In TLS that ends here.
    pub(crate) fn tls(io: Box<TlsStream<Recorder<TcpStream>>>) -> Self {
        Self { early: Bytes::new(), io: Io::Tls(io), stalled: None, alarm: Alarm::default() }
    }

    /// Waits until something can be read, or the end of it, without room for it.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match &mut self.io {
            Io::Plain(io) => io.poll_read_ready(cx),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_fill_buf(cx).map_ok(drop),
            Io::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Has the client see that it was cut, where a connection's end could be taken for the end of what was said.
    pub(super) fn reset(&self) {
        let io = match &self.io {
            Io::Plain(io) => io,
            Io::Tls(io) => &io.get_ref().0.inner,
            Io::Gone => return,
        };
        // If that fails, it is an end like others.
        let _ = io.set_zero_linger();
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
        let stalled = *self.stalled.get_or_insert_with(Instant::now);
        ready!(self.alarm.poll(cx, stalled + STALL));
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
            Io::Gone => false,
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
    let room = room.get_mut(..bufs.iter().map(|buf| buf.len()).sum())?;
    let mut left = &mut *room;
    for buf in bufs {
        let (here, more) = left.split_at_mut(buf.len());
        here.copy_from_slice(buf);
        left = more;
    }
    Some(room)
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
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut served = Stream::plain(listener.accept().await.unwrap().0);
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
