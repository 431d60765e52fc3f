//! Answers as they are written to a client (RFC 9112, 4 to 7).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName};
use hyper::body::{Body, Frame};
use tokio::io::AsyncWrite as _;

use super::inbound::{Inbound, lock};
use crate::body::Cut;
use crate::headers;
use crate::message::{Fields, Known, Response, digits};
use crate::server::date;
use crate::server::stream::Stream;

/// Bytes of a part of a body that are copied sooner than they are written from where they are.
const COPIED: usize = 4 << 10;
/// Copied bytes that are sent before more are taken.
const ENOUGH: usize = 16 << 10;

/// What a request says of the answer that it can have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Nothing is to follow the head.
    pub(super) head_only: bool,
    pub(super) http_10: bool,
    /// Whoever asks reads what comes behind the last chunk.
    pub(super) trailers: bool,
    /// There may be another request over the same connection.
    pub(super) keep: bool,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// There is none.
    Nothing,
    /// So many bytes are to come.
    Bytes(u64),
    Chunks,
    /// With the connection.
    ToEnd,
}

/// An answer on its way, bytes of which wait for the client to take them.
#[derive(Debug)]
pub(super) struct Sending<B> {
    body: B,
    length: Length,
    asked: Asked,
    /// All of it has been taken from where it comes.
    taken: bool,
    /// It has broken off.
    broken: bool,
    /// What goes first, and how much of that has gone.
    out: BytesMut,
    gone: usize,
    /// Goes behind it, and what goes behind that.
    part: Bytes,
    tail: &'static [u8],
}

impl<B: Body<Data = Bytes, Error = Cut> + Unpin> Sending<B> {
    /// Begins with the head. `out`: room for it, and what goes before.
    pub(super) fn new(mut out: BytesMut, answer: Response<B>, mut asked: Asked) -> Self {
        let Response { status, fields, body } = answer;
        let length = write_head(&mut out, status, &fields, body.size_hint().exact(), &mut asked);
        let (taken, part, tail) =
            (matches!(length, Length::Nothing | Length::Bytes(0)), Bytes::new(), &b""[..]);
        Self { body, length, asked, taken, broken: false, out, gone: 0, part, tail }
    }

    /// Whether the client may ask again, as it has been told.
    pub(super) fn keeps(&self) -> bool {
        self.asked.keep
    }

    /// Whether it has broken off.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether it would end with the connection.
    pub(super) fn is_open(&self) -> bool {
        self.length == Length::ToEnd
    }

    /// Room that is not needed any more.
    pub(super) fn into_room(self) -> BytesMut {
        self.out
    }

    /// Sends all that there is, and waits for more, until that is all; or it breaks off.
    ///
    /// # Errors
    /// The client takes nothing more.
    pub(super) fn poll(
        &mut self,
        inbound: &Mutex<Inbound>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            // Who gives the answer may read the request meanwhile.
            let more = !self.taken && self.part.is_empty() && self.out.len() < ENOUGH;
            if more && let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
                self.take(frame);
                continue;
            }
            let stream = &mut lock(inbound).stream;
            if self.out.is_empty() && self.part.is_empty() {
                // Some of it may wait in TLS.
                ready!(Pin::new(stream).poll_flush(cx))?;
                return if self.taken { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            ready!(self.poll_write(stream, cx))?;
        }
    }

    fn take(&mut self, frame: Option<Result<Frame<Bytes>, Cut>>) {
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => self.take_data(data),
            Some(Ok(Err(frame))) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.end(&trailers);
                }
            }
            Some(Err(_)) => self.break_off(),
            None => self.end(&HeaderMap::new()),
        }
    }

    fn take_data(&mut self, data: Bytes) {
        let tail = match &mut self.length {
            Length::Bytes(left) => {
                let Some(less) = left.checked_sub(data.len() as u64) else {
                    return self.break_off();
                };
                *left = less;
                self.taken = less == 0;
                ""
            }
            // It would be the end.
            Length::Chunks if data.is_empty() => return,
            Length::Chunks => {
                put_number::<16>(&mut self.out, data.len() as u64);
                self.out.put_slice(b"\r\n");
                self.taken = self.body.is_end_stream();
                if self.taken { "\r\n0\r\n\r\n" } else { "\r\n" }
            }
            Length::ToEnd => {
                self.taken = self.body.is_end_stream();
                ""
            }
            Length::Nothing => return,
        };
        if data.len() <= COPIED {
            self.out.put_slice(&data);
            self.out.put_slice(tail.as_bytes());
        } else {
            (self.part, self.tail) = (data, tail.as_bytes());
        }
    }

    fn break_off(&mut self) {
        (self.broken, self.taken) = (true, true);
    }

    fn end(&mut self, trailers: &HeaderMap) {
        self.taken = true;
        match self.length {
            // Less than it was said to be.
            Length::Bytes(1..) => self.break_off(),
            Length::Chunks => {
                self.out.put_slice(b"0\r\n");
                let trailers = trailers.iter().filter(|(name, _)| !NO_TRAILERS.contains(name));
                for (name, value) in trailers.filter(|_| self.asked.trailers) {
                    put_field(&mut self.out, name.as_str().as_bytes(), value.as_bytes());
                }
                self.out.put_slice(b"\r\n");
            }
            Length::Bytes(0) | Length::Nothing | Length::ToEnd => {}
        }
    }

    fn poll_write(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let first = &self.out[self.gone..];
        let stream = Pin::new(stream);
        let written = ready!(if self.part.is_empty() {
            stream.poll_write(cx, first)
        } else {
            let pieces = [first, &*self.part, self.tail].map(IoSlice::new);
            stream.poll_write_vectored(cx, &pieces)
        })?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let of_first = written.min(first.len());
        let of_part = (written - of_first).min(self.part.len());
        self.gone += of_first;
        self.part.advance(of_part);
        if self.gone == self.out.len() {
            self.out.clear();
            self.gone = 0;
        }
        if self.part.is_empty() {
            // Even of no length it would hold on to the memory that it was in.
            self.part = Bytes::new();
            let tail = std::mem::take(&mut self.tail);
            self.out.put_slice(&tail[written - of_first - of_part..]);
        }
        Poll::Ready(Ok(()))
    }
}

/// What must not come behind a body (RFC 9110, 6.5.1): it says how to read what was before.
const NO_TRAILERS: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];

/// Writes the head of an answer with a body of so many bytes, where that is known; and finds where the body ends, and
/// whether another request may come.
fn write_head(
    out: &mut BytesMut,
    status: StatusCode,
    fields: &Fields,
    exact: Option<u64>,
    asked: &mut Asked,
) -> Length {
    let said = fields.text(Known::ContentLength).and_then(|length| length.parse().ok());
    let never = status.is_informational() || status == StatusCode::NO_CONTENT;
    let length = match said.or(exact) {
        _ if never || asked.head_only || status == StatusCode::NOT_MODIFIED => Length::Nothing,
        Some(length) => Length::Bytes(length),
        None if asked.http_10 => Length::ToEnd,
        None => Length::Chunks,
    };
    let changes = status == StatusCode::SWITCHING_PROTOCOLS;
    asked.keep &=
        !changes && length != Length::ToEnd && !headers::says(fields, Known::Connection, "close");
    out.put_slice(if asked.http_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
    for field in fields {
        match field.known {
            Some(Known::TransferEncoding) => continue,
            Some(Known::ContentLength) if never || said.is_none() => continue,
            Some(Known::Connection) if !changes => continue,
            _ => put_field(out, field.name, field.value),
        }
    }
    match length {
        Length::Bytes(length) if said.is_none() => put_length(out, length),
        // That of what would follow, where it is known.
        Length::Nothing if said.is_none() && asked.head_only && !never => {
            exact.filter(|length| *length > 0).into_iter().for_each(|it| put_length(out, it));
        }
        Length::Chunks => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Length::Nothing | Length::Bytes(_) | Length::ToEnd => {}
    }
    match asked.keep {
        false if !changes => out.put_slice(b"connection: close\r\n"),
        true if asked.http_10 => out.put_slice(b"connection: keep-alive\r\n"),
        _ => {}
    }
    if !fields.contains(Known::Date) {
        date::with(|date| put_field(out, b"date", date.as_bytes()));
    }
    out.put_slice(b"\r\n");
    length
}

fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn put_length(out: &mut BytesMut, length: u64) {
    out.put_slice(b"content-length: ");
    put_number::<10>(out, length);
    out.put_slice(b"\r\n");
}

fn put_number<const RADIX: u64>(out: &mut BytesMut, number: u64) {
    out.put_slice(digits::<RADIX>(number, &mut [0; 20]));
}
