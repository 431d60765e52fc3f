//! Bodies on their way through.

use std::collections::VecDeque;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

use crate::message::Upload;
use crate::server::alarm::Alarm;
use crate::upstream::pool::Coming;

/// How long a client may send nothing of a body that it has begun.
const CLIENT: Duration = Duration::from_secs(60);
/// What of a body is kept so that it can be sent again.
const REPLAY: u64 = 64 << 10;
/// The same, whatever an Ingress wants.
const MOST_KEPT: u64 = 1 << 20;
/// What a worker keeps of all bodies together. Beyond that they are passed on as they come.
const ROOM: usize = 64 << 20;

/// Why a body did not arrive in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the client's body is too long")]
    TooLong,
    #[error("the client stopped sending")]
    ClientTimeout,
    #[error("the client went away, or what it sent is no body")]
    Client,
    #[error("the backend stopped sending")]
    BackendTimeout,
    #[error("the backend went away")]
    Backend,
    #[error("the answer cannot be compressed")]
    Compression,
}

/// A request's body as it arrives: no longer than it may be, and not slower.
#[derive(Debug)]
pub(crate) struct Received {
    inner: Upload,
    left: u64,
    timer: Option<Pin<Box<Sleep>>>,
    received: u64,
    listening: Option<Listening>,
}

/// Of a call that goes both ways: whether its client is being answered, and may say nothing for as long as it likes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listening(Arc<AtomicBool>);

impl Listening {
    /// It is answered, until what is returned is dropped.
    pub(crate) fn begin(self) -> Answering {
        self.0.store(true, Ordering::Relaxed);
        Answering(self)
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An answer that is under way.
#[derive(Debug)]
pub(crate) struct Answering(Listening);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

impl Received {
    /// Of at most so many bytes.
    pub(crate) fn new(inner: Upload, most: u64, listening: Option<Listening>) -> Self {
        Self { inner, left: most, timer: None, received: 0, listening }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(CLIENT)));
            ready!(timer.as_mut().poll(cx));
            while self.listening.as_ref().is_some_and(Listening::is) {
                timer.as_mut().reset(tokio::time::Instant::now() + CLIENT);
                ready!(timer.as_mut().poll(cx));
            }
            return Poll::Ready(Some(Err(Cut::ClientTimeout)));
        };
        self.timer = None;
        let frame = match frame {
            None => return Poll::Ready(None),
            Some(Err(cut)) => return Poll::Ready(Some(Err(cut))),
            Some(Ok(frame)) => frame,
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.received += length;
        let Some(left) = self.left.checked_sub(length) else {
            return Poll::Ready(Some(Err(Cut::TooLong)));
        };
        self.left = left;
        Poll::Ready(Some(Ok(frame)))
    }
}

/// How a request's body fares, for whoever waits for the answer.
#[derive(Debug)]
pub(crate) struct Progress {
    born: Instant,
    state: AtomicU8,
    /// Milliseconds since `born`.
    since: AtomicU64,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// The backend is to take more of the body.
    Backend,
    /// The client is to send more of it.
    Client,
    /// Everything is sent: an answer.
    Answer,
}

impl Progress {
    /// Nothing was taken yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { born: now, state: AtomicU8::new(0), since: AtomicU64::new(0) }
    }

    /// Some of what is there in full was taken.
    pub(crate) fn taken(&self) {
        self.set(0);
    }

    /// All of it was.
    pub(crate) fn sent(&self) {
        if self.state.load(Ordering::Relaxed) != 2 {
            self.set(2);
        }
    }

    /// All of it was, as soon as it could be.
    pub(crate) fn sent_at_once(&self) {
        self.state.store(2, Ordering::Relaxed);
    }

    fn set(&self, state: u8) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now, Ordering::Relaxed);
        self.state.store(state, Ordering::Relaxed);
    }

    /// What it waits for, and since when.
    pub(crate) fn waits(&self) -> (Waits, Instant) {
        let state = match self.state.load(Ordering::Relaxed) {
            0 => Waits::Backend,
            1 => Waits::Client,
            _ => Waits::Answer,
        };
        (state, self.born + Duration::from_millis(self.since.load(Ordering::Relaxed)))
    }
}

/// What of a request's body is there, and the rest of it that is not.
#[derive(Debug)]
pub(crate) struct Begun {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    rest: Option<Received>,
    /// The rest is on its way to a backend, and will not come again.
    streamed: bool,
    /// Of what is there.
    length: u64,
    /// What is there takes that much of it, as long as anybody has it.
    room: Option<Arc<OwnedSemaphorePermit>>,
}

/// Bytes of bodies that a worker has room for.
#[derive(Debug)]
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }
}

/// A body as it grows: in one piece, because clients may send it byte by byte.
#[derive(Debug, Default)]
struct Kept {
    bytes: BytesMut,
    room: Option<OwnedSemaphorePermit>,
}

impl Kept {
    /// `false`: there is no room for more.
    fn add(&mut self, data: &[u8], room: &Room) -> bool {
        self.bytes.extend_from_slice(data);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        match Arc::clone(&room.0).try_acquire_many_owned(length) {
            Ok(more) => {
                match &mut self.room {
                    Some(room) => room.merge(more),
                    none => *none = Some(more),
                }
                true
            }
            Err(_) => false,
        }
    }
}

impl Begun {
    /// Nothing.
    pub(crate) fn empty() -> Self {
        Self {
            chunks: VecDeque::new(),
            trailers: None,
            rest: None,
            streamed: false,
            length: 0,
            room: None,
        }
    }

    /// The same once more, if all of it is there.
    pub(crate) fn copy(&self) -> Option<Self> {
        let (chunks, trailers) = (self.chunks.clone(), self.trailers.clone());
        let (length, room) = (self.length, self.room.clone());
        let all = self.rest.is_none() && !self.streamed;
        all.then_some(Self { chunks, trailers, length, room, ..Self::empty() })
    }

    /// Begins with none of it.
    pub(crate) fn stream(rest: Received) -> Self {
        Self { rest: Some(rest), ..Self::empty() }
    }

    /// Waits until all of it is there, or as much as is kept.
    pub(crate) async fn buffer(mut rest: Received, most: u64, room: &Room) -> Result<Self, Cut> {
        let mut begun = Self::empty();
        let most = most.clamp(REPLAY, MOST_KEPT);
        let mut kept = Kept::default();
        while (kept.bytes.len() as u64) < most {
            let Some(frame) = std::future::poll_fn(|cx| rest.poll_frame(cx)).await else {
                begun.keep(kept);
                return Ok(begun);
            };
            match frame?.into_data() {
                Ok(data) => {
                    if !kept.add(&data, room) {
                        break;
                    }
                }
                Err(frame) => begun.trailers = frame.into_trailers().ok(),
            }
        }
        begun.keep(kept);
        begun.rest = Some(rest);
        Ok(begun)
    }

    fn keep(&mut self, kept: Kept) {
        let bytes = kept.bytes.freeze();
        self.length = bytes.len() as u64;
        self.chunks.extend(Some(bytes).filter(|bytes| !bytes.is_empty()));
        self.room = kept.room.map(Arc::new);
    }

    /// How long it is, where that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        self.rest.is_none().then_some(self.length)
    }

    /// Whether all of it is there, in one piece and without trailers.
    pub(crate) fn is_there(&self) -> bool {
        let whole = self.rest.is_none() && !self.streamed;
        whole && self.trailers.is_none() && self.chunks.len() <= 1
    }

    /// All of what [is there](Self::is_there).
    pub(crate) fn whole(&self) -> Bytes {
        self.chunks.front().cloned().unwrap_or_default()
    }

    /// To be sent; it can be again while [`Self::is_whole`].
    pub(crate) fn upload(&mut self, now: Instant) -> (Sending, Arc<Progress>) {
        let progress = Arc::new(Progress::new(now));
        let rest = self.rest.take();
        self.streamed |= rest.is_some();
        if rest.is_none() && self.chunks.is_empty() && self.trailers.is_none() {
            progress.set(2);
        }
        let (chunks, trailers) = (self.chunks.clone(), self.trailers.clone());
        let (left, _room) = (self.length, self.room.clone());
        (Sending { chunks, trailers, rest, left, progress: Arc::clone(&progress), _room }, progress)
    }

    /// Takes back what nothing was sent of.
    pub(crate) fn restore(&mut self, upload: Sending) {
        self.streamed &= upload.rest.is_none();
        self.rest = upload.rest;
    }

    /// Whether [`Self::upload`] may be called again: nothing of it was sent that is not kept.
    pub(crate) fn is_whole(&self) -> bool {
        !self.streamed
    }
}

/// A request's body on its way to a backend.
#[derive(Debug)]
pub(crate) struct Sending {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    rest: Option<Received>,
    /// Of the chunks.
    left: u64,
    progress: Arc<Progress>,
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let me = self.get_mut();
        if let Some(chunk) = me.chunks.pop_front() {
            me.left -= chunk.len() as u64;
            let last = me.chunks.is_empty() && me.trailers.is_none() && me.rest.is_none();
            me.progress.set(if last { 2 } else { 0 });
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        let frame = match &mut me.rest {
            Some(rest) => match rest.poll_frame(cx) {
                Poll::Pending => {
                    me.progress.set(1);
                    return Poll::Pending;
                }
                Poll::Ready(frame) => frame,
            },
            None => me.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
        };
        me.progress.set(if frame.is_some() && me.rest.is_some() { 0 } else { 2 });
        if me.rest.as_ref().is_some_and(|rest| rest.inner.is_end_stream()) {
            me.progress.set(2);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let rest_is_over = self.rest.as_ref().is_none_or(|rest| rest.inner.is_end_stream());
        self.chunks.is_empty() && self.trailers.is_none() && rest_is_over
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or(Some(0), |rest| rest.inner.size_hint().exact());
        match rest {
            Some(rest) => SizeHint::with_exact(self.left + rest),
            None => SizeHint::default(),
        }
    }
}

/// An answer's body as it comes from a backend: each part of it in time.
#[derive(Debug)]
pub(crate) struct Download<L> {
    inner: Coming,
    patience: Duration,
    /// Since when the next part of it is waited for.
    since: Option<tokio::time::Instant>,
    /// The connection that it comes over, to be kept at its end.
    lease: Option<L>,
}

/// A connection that something comes over.
pub(crate) trait Lease: Unpin {
    /// All of `body` has come: the next may.
    fn done(self, body: Coming);

    /// For whoever waits for it.
    fn alarm(&mut self) -> &mut Alarm;
}

impl<L: Lease> Download<L> {
    /// With so much time between two parts.
    pub(crate) fn new(inner: Coming, patience: Duration, lease: L) -> Self {
        let mut download = Self { inner, patience, since: None, lease: Some(lease) };
        download.check_end();
        download
    }

    fn check_end(&mut self) {
        if self.inner.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.done(std::mem::replace(&mut self.inner, Coming::Over));
        }
    }
}

impl<L: Lease> Body for Download<L> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let me = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut me.inner).poll_frame(cx) else {
            let since = *me.since.get_or_insert_with(tokio::time::Instant::now);
            // It is there as long as anything is to come.
            let Some(lease) = &mut me.lease else { return Poll::Pending };
            ready!(lease.alarm().poll(cx, since + me.patience));
            return Poll::Ready(Some(Err(Cut::BackendTimeout)));
        };
        me.since = None;
        match frame {
            None => {
                me.end();
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                me.check_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => Poll::Ready(Some(Err(Cut::Backend))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What a client's body was cut for, if that is why something failed.
pub(crate) fn cut(error: &(dyn Error + 'static)) -> Option<Cut> {
    let mut error = Some(error);
    while let Some(here) = error {
        if let Some(cut) = here.downcast_ref() {
            return Some(*cut);
        }
        error = here.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn what_is_kept_is_in_one_piece_and_bounded_for_all_together() {
        let room = Room(Arc::new(Semaphore::new(1000)));
        let (mut one, mut other) = (Kept::default(), Kept::default());
        for _ in 0..600 {
            assert!(one.add(b"x", &room));
        }
        assert!(other.add(&[0; 400], &room));
        // What has come is not lost.
        assert!(!other.add(&[0; 10], &room));
        assert_eq!(other.bytes.len(), 410);
        let mut begun = Begun::empty();
        begun.keep(one);
        assert_eq!((begun.chunks.len(), begun.length), (1, 600));
        assert_eq!(room.0.available_permits(), 0);
        let copy = begun.copy().unwrap();
        drop((begun, other));
        assert_eq!(room.0.available_permits(), 400);
        drop(copy);
        assert_eq!(room.0.available_permits(), 1000);
    }

    // Where nobody has anything to do, time passes by itself.
    #[tokio::test(start_paused = true)]
    async fn who_is_being_answered_may_keep_still() {
        let (sender, reader) = crate::server::http2::pipe(Some(5));
        let listening = Listening::default();
        let mut received = Received::new(Upload::Http2(reader), 5, Some(listening.clone()));
        let mut next = async || std::future::poll_fn(|cx| received.poll_frame(cx)).await.unwrap();
        let answering = listening.begin();
        assert!(timeout(10 * CLIENT, next()).await.is_err());
        sender.send(b"word");
        assert_eq!(next().await.unwrap().into_data().unwrap(), "word");
        drop(answering);
        let begun = tokio::time::Instant::now();
        assert_eq!(next().await.unwrap_err(), Cut::ClientTimeout);
        assert!((CLIENT..2 * CLIENT).contains(&begun.elapsed()));
    }
}
