//! What comes from the client of a connection: heads for the connection itself, and a body for whoever has the
//! request's upload. Both read from the same stream and the same buffer, and nothing is read that nobody asks for.

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};

use super::body::{BodyReader, Part};
use crate::body::Cut;
use crate::message::Upload;
use crate::server::buffers;
use crate::server::framing::{Body, Violation};
use crate::server::stream::Stream;

/// Bytes that are read at a time when more and more of them are there.
const MOST_READ: usize = 64 << 10;
/// Before a body that a client sends only if it is told to (RFC 9110, 10.1.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// One side has it at a time.
pub(super) type Shared = Arc<Mutex<Inbound>>;

pub(super) fn lock(inbound: &Mutex<Inbound>) -> MutexGuard<'_, Inbound> {
    inbound.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client's stream, and what of it has been read.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(super) stream: Stream,
    pub(super) read: BytesMut,
    /// Bytes that are asked for next.
    step: usize,
    /// The rest of the body of the request under way.
    body: BodyReader,
    /// What is wrong with that.
    violation: Option<Violation>,
    /// What is to be sent before it is read; of no length if it only has to be flushed.
    interim: Option<&'static [u8]>,
    /// Somebody has the upload.
    uploading: bool,
    /// Some of that was taken since this was asked last.
    moved: bool,
    /// Nobody is to read any more.
    over: bool,
    /// The connection, which waits for the upload to end; and who waits for more of that.
    connection: Option<Waker>,
    reader: Option<Waker>,
}

impl Inbound {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            step: buffers::LENGTH,
            body: BodyReader::default(),
            violation: None,
            interim: None,
            uploading: false,
            moved: false,
            over: false,
            connection: None,
            reader: None,
        }
    }

    /// Reads more; nothing is the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.is_empty() {
            ready!(self.stream.poll_readable(cx))?;
            if self.read.capacity() == 0 {
                self.read = buffers::take();
            }
        }
        if self.read.capacity() - self.read.len() < self.step / 2 {
            self.read.reserve(self.step);
        }
        let room = self.read.capacity() - self.read.len();
        let read = ready!(pin!(self.stream.read_buf(&mut self.read)).poll(cx))?;
        self.step = if read == room { (2 * self.step).min(MOST_READ) } else { buffers::LENGTH };
        Poll::Ready(Ok(read))
    }

    /// Nothing is awaited but the next request.
    pub(super) fn rest(&mut self) {
        if self.read.is_empty() {
            buffers::give(std::mem::take(&mut self.read));
        }
    }

    /// Waits for the client to go away while its request is under way. It may have sent the next one.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.body.is_over() {
            // Who has the upload sees it.
            self.wake_at_end(cx);
            return Poll::Pending;
        }
        if !self.read.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.poll_fill(cx)) {
            Ok(1..) => Poll::Pending,
            Ok(0) | Err(_) => Poll::Ready(()),
        }
    }

    fn wake_at_end(&mut self, cx: &Context<'_>) {
        remember(&mut self.connection, cx);
    }

    /// Waits until nobody has the upload, or the client is gone. Whether the next request comes then: all of this one is
    /// there.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.uploading && !self.body.is_over() {
            self.wake_at_end(cx);
            // Who has it may wait for something else, and sees no end of the connection.
            while self.read.len() < buffers::LENGTH && !self.is_there() {
                if ready!(self.poll_fill(cx))? == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                wake(&mut self.reader);
            }
            return Poll::Pending;
        }
        loop {
            match self.take_part() {
                Ok(Some(_)) => {}
                Ok(None) => return Poll::Ready(Ok(self.body.is_over())),
                Err(_) => return Poll::Ready(Ok(false)),
            }
        }
    }

    /// Whether all of the upload has come, where that is known.
    fn is_there(&self) -> bool {
        self.body.length().is_some_and(|left| left <= self.read.len() as u64)
    }

    /// Whether whoever has the upload has taken any of it since this was asked before.
    pub(super) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Whether something is left of the request under way that nobody will read.
    pub(super) fn is_abandoned(&self) -> bool {
        !self.uploading && !self.body.is_over()
    }

    fn take_part(&mut self) -> Result<Option<Part>, Violation> {
        if let Some(why) = self.violation {
            return Err(why);
        }
        let part = self.body.take(&mut self.read);
        self.moved |= matches!(part, Ok(Some(_)));
        part.map_err(|(_, why)| *self.violation.insert(why))
    }

    /// What is wrong with the body that was read last.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// Whether all of the request was read, and nothing behind it.
    pub(super) fn is_clean(&self) -> bool {
        self.body.is_over() && self.read.is_empty()
    }

    /// The stream, with what was read of it. Nobody is to read from now on, and whoever has the upload hears of that.
    pub(super) fn end(&mut self) -> Stream {
        self.over = true;
        wake(&mut self.reader);
        self.stream.hand_over().after(std::mem::take(&mut self.read).freeze())
    }

    /// What of an interim answer has to go before others; none is sent from now on.
    pub(super) fn take_interim(&mut self) -> &'static [u8] {
        let left = self.interim.take().unwrap_or_default();
        if left.len() == CONTINUE.len() { b"" } else { left }
    }

    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left @ [_, ..]) = self.interim {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim = Some(&left[written..]);
        }
        if self.interim.is_some() {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.interim = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, Cut>>> {
        loop {
            if self.over {
                return Poll::Ready(Some(Err(Cut::Client)));
            }
            match self.take_part() {
                Ok(Some(part)) => return Poll::Ready(Some(Ok(part))),
                Ok(None) if self.body.is_over() => return Poll::Ready(None),
                Ok(None) => {}
                Err(_) => return Poll::Ready(Some(Err(Cut::Client))),
            }
            if ready!(self.poll_interim(cx)).is_err() {
                return Poll::Ready(Some(Err(Cut::Client)));
            }
            match ready!(self.poll_fill(cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(Cut::Client))),
            }
        }
    }
}

/// The body of a request whose head was taken out of what was read. `expected`: its client waits for
/// [`CONTINUE`].
pub(super) fn upload(inbound: &Shared, body: Body, expected: bool) -> Upload {
    let mut here = lock(inbound);
    let there = here.read.len();
    match body {
        Body::Nothing => Upload::Empty,
        Body::Bytes(length) if usize::try_from(length).is_ok_and(|length| length <= there) => {
            let length = usize::try_from(length).unwrap_or_default();
            Upload::Whole(here.read.split_to(length).freeze())
        }
        Body::Bytes(_) | Body::Chunks => {
            here.body = BodyReader::new(body);
            here.interim = (expected && there == 0).then_some(CONTINUE);
            here.uploading = true;
            Upload::Http1(Incoming(Arc::clone(inbound)))
        }
    }
}

/// A body as it comes.
#[derive(Debug)]
pub(crate) struct Incoming(Shared);

impl Incoming {
    /// The next part of it.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut inbound = lock(&self.0);
        let Poll::Ready(part) = inbound.poll_part(cx) else {
            remember(&mut inbound.reader, cx);
            return Poll::Pending;
        };
        if inbound.body.is_over() {
            wake(&mut inbound.connection);
        }
        Poll::Ready(part.map(|part| {
            Ok(match part? {
                Part::Data(data) => Frame::data(data),
                Part::Trailers(trailers) => Frame::trailers(trailers),
            })
        }))
    }

    /// Whether all of it was taken.
    pub(crate) fn is_end_stream(&self) -> bool {
        lock(&self.0).body.is_over()
    }

    /// How much of it is to come.
    pub(crate) fn size_hint(&self) -> SizeHint {
        lock(&self.0).body.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut inbound = lock(&self.0);
        inbound.uploading = false;
        wake(&mut inbound.connection);
    }
}

fn remember(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
