//! Answers that are taken from backends as fast as these give them (`proxy-buffering`), so that a client that takes
//! its time does not hold a backend. What waits is in memory, and there is so much of it and no more: nothing is
//! written to a disk.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use crate::body::Cut;
use crate::message::{Fields, Known};

/// Bytes of an answer that wait for its client, each part with its cost.
const MOST: u32 = 4 << 20;
/// Bytes of all answers of a worker that wait. What comes beyond that goes as fast as its client.
const ROOM: usize = 64 << 20;
/// What each part of an answer takes, however short it is: a backend may send one byte at a time.
const PART: usize = 256;
/// An answer of no more bytes is taken in one go anyhow.
const SMALL: u64 = 16 << 10;

/// Whether an answer with a body of so many bytes, where that is known, is taken ahead of its client: as the Ingress
/// says, unless the backend says otherwise, as nginx lets it.
pub(crate) fn is_wanted(said: bool, headers: &mut Fields, length: Option<u64>) -> bool {
    // A backend's own word about its answer, which is not for clients.
    let wanted = match headers.get(Known::XAccelBuffering) {
        Some(word) if word.eq_ignore_ascii_case(b"yes") => true,
        Some(word) if word.eq_ignore_ascii_case(b"no") => false,
        _ => said,
    };
    headers.remove(Known::XAccelBuffering);
    wanted && length.is_none_or(|length| length > SMALL)
}

/// What a worker keeps of all answers together.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }
}

/// An answer's body, as far as it has come and the client has not taken it.
#[derive(Debug)]
pub(crate) struct Ahead {
    // Bounded by what its parts hold.
    parts: UnboundedReceiver<Part>,
    /// Bytes that are not taken, where that is known.
    left: Option<u64>,
    over: bool,
    taking: AbortHandle,
}

#[derive(Debug)]
struct Part {
    frame: Result<Frame<Bytes>, Cut>,
    last: bool,
    _own: OwnedSemaphorePermit,
    _room: Option<OwnedSemaphorePermit>,
}

impl Ahead {
    /// Takes it by itself, and holds something until it has come in full.
    pub(crate) fn new<B>(body: B, room: &Room, held: impl Send + 'static) -> Self
    where
        B: Body<Data = Bytes, Error = Cut> + Send + Unpin + 'static,
    {
        let (say, parts) = unbounded_channel();
        let left = body.size_hint().exact();
        let room = Arc::clone(&room.0);
        let taking = tokio::spawn(async move {
            take(body, room, say).await;
            drop(held);
        });
        Self { parts, left, over: false, taking: taking.abort_handle() }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.taking.abort();
    }
}

async fn take<B>(mut body: B, room: Arc<Semaphore>, say: UnboundedSender<Part>)
where
    B: Body<Data = Bytes, Error = Cut> + Unpin,
{
    let own = Arc::new(Semaphore::new(MOST as usize));
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let length = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        let cost = u32::try_from(length + PART).unwrap_or(MOST).min(MOST);
        let room = Arc::clone(&room).try_acquire_many_owned(cost).ok();
        // Where there is no room for it, it waits until the client has taken all before it.
        let needed = if room.is_some() { cost } else { MOST };
        let Ok(own) = Arc::clone(&own).acquire_many_owned(needed).await else { return };
        let last = frame.is_err() || body.is_end_stream();
        if say.send(Part { frame, last, _own: own, _room: room }).is_err() || last {
            return;
        }
    }
}

impl Body for Ahead {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let me = self.get_mut();
        if me.over {
            return Poll::Ready(None);
        }
        let Some(Part { frame, last, .. }) = ready!(me.parts.poll_recv(cx)) else {
            me.over = true;
            return Poll::Ready(None);
        };
        me.over = last && frame.is_ok();
        if let (Some(left), Ok(frame)) = (&mut me.left, &frame) {
            *left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::BodyExt as _;

    use super::*;

    /// Bytes of a part, so that it costs 64 KiB.
    const LONG: usize = (64 << 10) - PART;

    /// So many parts of so many bytes; counts those that were taken.
    struct Parts(usize, usize, Arc<AtomicUsize>);

    impl Body for Parts {
        type Data = Bytes;
        type Error = Cut;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
            let Some(left) = self.0.checked_sub(1) else {
                return Poll::Ready(Some(Err(Cut::Backend)));
            };
            self.0 = left;
            self.2.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Some(Ok(Frame::data(vec![0; self.1].into()))))
        }

        fn is_end_stream(&self) -> bool {
            self.0 == 0
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact((self.0 * self.1) as u64)
        }
    }

    /// Taken in full, one part at a time, with nobody else at work.
    async fn taken(parts: usize, room: &Room) -> (Ahead, Arc<AtomicUsize>, Arc<()>) {
        let (counted, held) = (Arc::default(), Arc::new(()));
        let ahead = Ahead::new(Parts(parts, LONG, Arc::clone(&counted)), room, Arc::clone(&held));
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        (ahead, counted, held)
    }

    #[tokio::test]
    async fn a_backend_is_done_before_its_client_is() {
        let (mut ahead, counted, held) = taken(10, &Room::default()).await;
        assert_eq!((counted.load(Ordering::Relaxed), Arc::strong_count(&held)), (10, 1));
        let mut length = 0;
        while !ahead.is_end_stream() {
            assert_eq!(ahead.size_hint().exact(), Some((10 * LONG - length) as u64));
            length += ahead.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        assert_eq!(length, 10 * LONG);
        assert!(ahead.frame().await.is_none());
    }

    #[tokio::test]
    async fn what_waits_for_clients_is_bounded() {
        let room = Room::default();
        let cost = LONG + PART;
        let most = MOST as usize / cost;
        let (ahead, counted, held) = taken(10 * most, &room).await;
        // One more waits for its turn.
        assert_eq!((counted.load(Ordering::Relaxed), Arc::strong_count(&held)), (most + 1, 2));
        assert_eq!(ahead.collect().await.unwrap().to_bytes().len(), 10 * most * LONG);
        assert_eq!(room.0.available_permits(), ROOM);

        let room = Room(Arc::new(Semaphore::new(4 * cost)));
        let (one, counted, _) = taken(4, &room).await;
        assert_eq!(counted.load(Ordering::Relaxed), 4);
        let (other, counted, _) = taken(10, &room).await;
        assert_eq!(counted.load(Ordering::Relaxed), 2, "one is there, one waits");
        assert_eq!(other.collect().await.unwrap().to_bytes().len(), 10 * LONG);
        drop(one);
        assert_eq!(room.0.available_permits(), 4 * cost);
    }

    #[tokio::test]
    async fn short_parts_are_not_free() {
        let (room, counted) = (Room::default(), Arc::default());
        let _ahead = Ahead::new(Parts(100_000, 1, Arc::clone(&counted)), &room, ());
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(counted.load(Ordering::Relaxed), MOST as usize / (PART + 1) + 1);
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_none_that_is_over() {
        let (ahead, _, held) = taken(0, &Room::default()).await;
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(!ahead.is_end_stream());
        assert_eq!(ahead.collect().await.unwrap_err(), Cut::Backend);
        let (ahead, _, held) = taken(1000, &Room::default()).await;
        drop(ahead);
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_backend_has_a_word_in_it() {
        let wanted = |said, word: Option<&'static str>, length| {
            let word = word.map(|word| (Known::XAccelBuffering, word));
            let mut headers: Fields = word.into_iter().collect();
            let wanted = is_wanted(said, &mut headers, length);
            assert!(headers.is_empty());
            wanted
        };
        assert!(wanted(true, None, None) && wanted(false, Some("yes"), None));
        assert!(wanted(true, Some("?"), Some(SMALL + 1)));
        assert!(!wanted(false, None, None) && !wanted(true, Some("No"), None));
        assert!(!wanted(true, Some("yes"), Some(SMALL)));
    }
}
