//! The streams of a connection: by their numbers, and by their places, which are used again.

use std::collections::VecDeque;

use super::frames::FIRST_WINDOW;
use super::head::Asked;
use super::pipe::{Reader, Sender};
use super::{STREAMS, WINDOW};

/// Streams of either kind that are over and not forgotten: more than may be on their way.
const GONE: usize = 2 * STREAMS as usize;

/// A request and its answer.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// As long as nobody has taken it up.
    pub(super) asked: Option<Asked>,
    /// What the client sends goes here, and comes out there.
    pub(super) body: Option<Sender>,
    pub(super) upload: Option<Reader>,
    /// What the client still has to send as it has said itself.
    pub(super) left: Option<u64>,
    /// The client has sent all, or need not send more.
    pub(super) heard: bool,
    /// Bytes that the client may send.
    pub(super) receives: i64,
    /// Bytes that were read and that the client has not heard of.
    pub(super) owed: u32,
    /// Bytes that came and were not read.
    pub(super) unread: u32,
    /// Bytes that the client takes; less than none if it has changed its mind.
    pub(super) sends: i64,
}

impl Stream {
    /// To whom the client sends all with its head, if `heard`.
    pub(super) fn new(id: u32, asked: Option<Asked>, heard: bool, sends: i64) -> Self {
        let left = asked.as_ref().and_then(|asked| asked.length);
        let (body, upload) = if heard {
            (None, None)
        } else {
            let (body, upload) = super::pipe::pipe(left);
            (Some(body), Some(upload))
        };
        let receives = i64::from(WINDOW);
        Self { id, asked, body, upload, left, heard, receives, owed: 0, unread: 0, sends }
    }
}

/// Whether a number has been seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// It is that of a stream, at this place.
    Open(usize),
    /// The gateway has ended it; what still comes was on its way.
    EndedHere,
    /// The client has ended it, or has left it out.
    Ended {
        /// It was a stream, of late.
        was: bool,
    },
    /// It is none yet.
    Idle,
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    places: Vec<Option<Stream>>,
    free: Vec<usize>,
    /// Number and place of those that are open, in order.
    open: Vec<(u32, usize)>,
    /// Places of those that were, and that nobody has heard of.
    closed: Vec<usize>,
    /// Numbers of those that the client knows to be over; and of those that the gateway has ended, whose client may not.
    gone: VecDeque<u32>,
    ended_here: VecDeque<u32>,
    last: u32,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The greatest number so far.
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    pub(super) fn get(&mut self, place: usize) -> Option<&mut Stream> {
        self.places.get_mut(place)?.as_mut()
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.places.iter_mut().flatten()
    }

    pub(super) fn known(&self, id: u32) -> Number {
        if let Ok(at) = self.open.binary_search_by_key(&id, |(id, _)| *id) {
            return Number::Open(self.open[at].1);
        }
        if id > self.last {
            return Number::Idle;
        }
        if self.ended_here.contains(&id) {
            return Number::EndedHere;
        }
        Number::Ended { was: self.gone.contains(&id) }
    }

    /// No stream with this number or a smaller one is new any more.
    pub(super) fn pass(&mut self, id: u32) {
        self.last = id;
    }

    /// Adds one that is new.
    pub(super) fn add(&mut self, stream: Stream) -> usize {
        let id = stream.id;
        let place = self.free.pop().unwrap_or(self.places.len());
        if place == self.places.len() {
            self.places.push(Some(stream));
        } else {
            self.places[place] = Some(stream);
        }
        self.open.push((id, place));
        self.pass(id);
        place
    }

    /// Ends one; whether the client may not know.
    pub(super) fn close(&mut self, place: usize, here: bool) -> Option<Stream> {
        let stream = self.places.get_mut(place)?.take()?;
        self.open.retain(|(id, _)| *id != stream.id);
        self.closed.push(place);
        self.forget(stream.id, here);
        Some(stream)
    }

    /// A number is that of a stream no more.
    pub(super) fn forget(&mut self, id: u32, here: bool) {
        let gone = if here { &mut self.ended_here } else { &mut self.gone };
        if gone.len() == GONE {
            gone.pop_front();
        }
        gone.push_back(id);
    }

    /// Places that nobody has any more, and that may be used again from then on.
    pub(super) fn closed(&mut self, mut hear: impl FnMut(usize)) {
        for place in self.closed.drain(..) {
            hear(place);
            self.free.push(place);
        }
    }
}

const _: () = assert!(WINDOW as i64 > FIRST_WINDOW, "nobody sends more before it has heard of it");
