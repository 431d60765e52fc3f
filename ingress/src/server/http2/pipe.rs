//! Bytes on their way between a stream and whoever reads or writes its body, in the same task or in another one.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::Cut;

/// Bytes that whoever writes a tunnel's may be ahead.
const ROOM: usize = 64 << 10;
/// Bytes that are taken before the stream hears of it. All streams of a connection together must leave some of its window.
pub(super) const QUIET: usize = 4 << 10;

/// Both ends of a pipe; of as many bytes as are said to come, if that is known.
pub(crate) fn pipe(length: Option<u64>) -> (Sender, Reader) {
    let state = State { left: length, ..State::default() };
    let shared = Arc::new(Shared(Mutex::new(state)));
    (Sender(Arc::clone(&shared)), Reader(shared))
}

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    trailers: Option<HeaderMap>,
    end: End,
    /// Bytes that are to be read, where that is known.
    left: Option<u64>,
    /// Bytes that were read and that the sender has not heard of.
    taken: usize,
    /// Somebody has waited for bytes; and the sender is told of the first time.
    awaited: bool,
    told: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    sender: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// All has been sent.
    Over,
    /// There will be no more, and that is not all.
    Broken,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and wakes whoever that says.
    fn change(&self, change: impl FnOnce(&mut State) -> Option<Waker>) {
        let woken = change(&mut self.lock());
        if let Some(waker) = woken {
            waker.wake();
        }
    }
}

/// The end that is written to.
#[derive(Debug)]
pub(crate) struct Sender(Arc<Shared>);

impl Sender {
    /// Adds bytes, however many are there.
    pub(crate) fn send(&self, bytes: &[u8]) {
        self.0.change(|state| {
            if !state.reader_gone {
                state.bytes.extend_from_slice(bytes);
            } else {
                state.taken += bytes.len();
            }
            state.reader.take()
        });
    }

    /// That was all.
    pub(super) fn end(&self, trailers: Option<HeaderMap>) {
        self.0.change(|state| {
            state.trailers = trailers;
            state.end = End::Over;
            state.reader.take()
        });
    }

    /// Who is told of what is read; and, if `first`, of when that is waited for.
    pub(super) fn tell(&self, waker: Waker, first: bool) {
        let mut state = self.0.lock();
        (state.sender, state.told) = (Some(waker), !first);
    }

    /// Bytes that were read since this was asked last, or will not be read at all.
    pub(super) fn taken(&self) -> usize {
        std::mem::take(&mut self.0.lock().taken)
    }

    /// Whether nobody reads what is sent.
    pub(super) fn is_idle(&self) -> bool {
        self.0.lock().reader_gone
    }

    /// Whether somebody waits for the first byte.
    pub(super) fn is_awaited(&self) -> bool {
        let state = self.0.lock();
        state.awaited && state.end == End::Open
    }
}

/// What was not said to be all, is not.
impl Drop for Sender {
    fn drop(&mut self) {
        self.0.change(|state| {
            if state.end == End::Open {
                state.end = End::Broken;
            }
            state.sender = None;
            state.reader.take()
        });
    }
}

/// The end that is read from: a body.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Shared>);

impl Reader {
    /// All of it, if it has come and has no trailers.
    pub(super) fn whole(&self) -> Option<Bytes> {
        let mut state = self.0.lock();
        let whole = state.end == End::Over && state.trailers.is_none();
        whole.then(|| {
            state.taken += state.bytes.len();
            state.bytes.split().freeze()
        })
    }
}

impl State {
    /// So many bytes are read; who is to hear of it.
    fn take(&mut self, length: usize) -> Option<Waker> {
        self.taken += length;
        self.left = self.left.map(|left| left.saturating_sub(length as u64));
        (self.taken >= QUIET).then(|| self.sender.clone()).flatten()
    }

    /// Nothing is there.
    fn wait(&mut self, cx: &mut Context<'_>) -> Option<Waker> {
        if !self.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.reader = Some(cx.waker().clone());
        }
        self.awaited = true;
        let told = std::mem::replace(&mut self.told, true);
        if told { None } else { self.sender.clone() }
    }
}

impl Body for Reader {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut frame = Poll::Pending;
        self.0.change(|state| {
            if !state.bytes.is_empty() {
                let bytes = state.bytes.split().freeze();
                let woken = state.take(bytes.len());
                frame = Poll::Ready(Some(Ok(Frame::data(bytes))));
                return woken;
            }
            frame = match state.end {
                End::Open => return state.wait(cx),
                End::Over => Poll::Ready(state.trailers.take().map(|it| Ok(Frame::trailers(it)))),
                End::Broken => Poll::Ready(Some(Err(Cut::Client))),
            };
            None
        });
        frame
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.end == End::Over && state.bytes.is_empty() && state.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.0.lock();
        let left = match state.end {
            End::Over => Some(state.bytes.len() as u64),
            _ => state.left,
        };
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.change(|state| {
            state.reader_gone = true;
            state.taken += state.bytes.len();
            state.bytes = BytesMut::new();
            state.sender.take()
        });
    }
}

/// A stream that two ends speak over in whatever protocol they have agreed upon (RFC 8441).
#[derive(Debug)]
pub(super) struct Tunnel {
    incoming: Reader,
    outgoing: Sender,
}

impl Tunnel {
    /// What comes in is read from `incoming`; what goes out is read from the other end that is returned.
    pub(super) fn new(incoming: Reader) -> (Self, Reader) {
        let (outgoing, sent) = pipe(None);
        (Self { incoming, outgoing }, sent)
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut read = Poll::Ready(Ok(()));
        self.incoming.0.change(|state| {
            let length = state.bytes.len().min(buf.remaining());
            if length > 0 {
                buf.put_slice(&state.bytes[..length]);
                state.bytes.advance(length);
                return state.take(length);
            }
            match state.end {
                End::Open => {
                    read = Poll::Pending;
                    return state.wait(cx);
                }
                End::Over => {}
                End::Broken => read = Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
            None
        });
        read
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut written = Poll::Pending;
        self.outgoing.0.change(|state| {
            if state.reader_gone {
                written = Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                return None;
            }
            let length = ROOM.saturating_sub(state.bytes.len()).min(buf.len());
            if length == 0 && !buf.is_empty() {
                state.sender = Some(cx.waker().clone());
                return None;
            }
            state.bytes.extend_from_slice(&buf[..length]);
            // It hears of what is read from now on.
            state.taken = 0;
            written = Poll::Ready(Ok(length));
            state.reader.take()
        });
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.end(None);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_body_is_read_as_it_comes() {
        let (sender, mut reader) = pipe(Some(6));
        sender.send(b"abc");
        assert_eq!(reader.size_hint().exact(), Some(6));
        assert_eq!(reader.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
        assert_eq!((reader.size_hint().exact(), sender.taken(), sender.taken()), (Some(3), 3, 0));
        assert!(!sender.is_awaited());
        let ending = async {
            tokio::task::yield_now().await;
            assert!(sender.is_awaited());
            sender.send(b"d");
            sender.send(b"ef");
            let trailers = [("a".parse().unwrap(), "b".parse().unwrap())];
            sender.end(Some(trailers.into_iter().collect()));
        };
        let (rest, ()) = tokio::join!(async { (&mut reader).collect().await.unwrap() }, ending);
        assert_eq!(rest.trailers().unwrap()["a"], "b");
        assert_eq!(rest.to_bytes(), "def");
        assert!(reader.is_end_stream() && reader.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_none_that_is_over() {
        let (sender, mut reader) = pipe(None);
        sender.send(b"abc");
        drop(sender);
        assert!(reader.whole().is_none());
        assert!(reader.frame().await.unwrap().is_ok());
        assert!(!reader.is_end_stream());
        assert_eq!(reader.frame().await.unwrap().unwrap_err(), Cut::Client);
    }

    #[test]
    fn what_nobody_reads_counts_as_read() {
        let (sender, reader) = pipe(None);
        sender.send(b"abc");
        drop(reader);
        assert!(sender.is_idle());
        sender.send(b"de");
        assert_eq!(sender.taken(), 5);
    }

    #[tokio::test]
    async fn who_writes_into_a_tunnel_is_not_far_ahead() {
        let (_sender, incoming) = pipe(None);
        let (mut tunnel, mut sent) = Tunnel::new(incoming);
        let all = vec![7; 3 * ROOM];
        let writing = async {
            tunnel.write_all(&all).await.unwrap();
            tunnel.shutdown().await.unwrap();
            tunnel
        };
        let reading = async {
            let mut length = 0;
            while let Some(frame) = sent.frame().await {
                let part = frame.unwrap().into_data().unwrap().len();
                assert!(part <= ROOM);
                length += part;
            }
            length
        };
        assert_eq!(tokio::join!(writing, reading).1, all.len());
    }

    #[tokio::test]
    async fn a_tunnel_ends_as_its_stream_does() {
        let (sender, incoming) = pipe(None);
        let (mut tunnel, sent) = Tunnel::new(incoming);
        sender.send(b"abc");
        let mut read = [0; 2];
        tunnel.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ab");
        drop((sender, sent));
        let end = tunnel.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
        let end = tunnel.write_all(b"x").await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::BrokenPipe);
    }
}
