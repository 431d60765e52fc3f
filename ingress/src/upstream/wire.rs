//! HTTP/1.1 to a backend without a task of its own.
//!
//! hyper's client runs each connection in a task: a request, its answer's head and each part of the body are handed
//! from one task to the other and back. A request that is there in full, as almost all are, needs none of that:
//! whoever asks writes it, reads the answer as its body is asked for, and puts the connection back. What is
//! sent while it arrives and what changes to another protocol goes by hyper's client.

use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::task::unconstrained;

use super::Ask;
use crate::body::Progress;
use crate::headers;
use crate::message::{Fields, Known, Response};

/// Bytes of an answer's head, and its fields; how much of it may pass is each route's own.
pub(super) const HEAD: u32 = 256 << 10;
pub(super) const FIELDS: usize = 256;
/// Bytes that are read at a time: at first, and when more and more of them are there.
const READ: usize = 8 << 10;
const MOST_READ: usize = 64 << 10;
/// Bytes of a body that are sent along with the head, in one piece.
const SMALL: usize = 4 << 10;
/// Bytes of a line that says how long a chunk is.
const CHUNK_LINE: usize = 1 << 10;
/// Bytes of what follows the last chunk, and fields in it.
const TRAILERS: usize = 16 << 10;
const TRAILER_FIELDS: usize = 64;

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Nothing of the request was sent.
    #[error("closed before anything was sent: {0}")]
    Unsent(io::Error),
    /// Nothing was answered.
    #[error("closed before an answer")]
    Closed,
    #[error("closed before the end of an answer")]
    Incomplete,
    #[error("not an answer of HTTP/1: {0}")]
    Invalid(&'static str),
    #[error("{0}")]
    Io(io::Error),
}

/// A connection, and the exchange that is under way.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    io: S,
    /// What of the request is to be sent: the head, how much of that has gone, the body.
    head: Vec<u8>,
    gone: usize,
    body: Bytes,
    /// All of it has been taken, and not only by a buffer; or will never be.
    flushed: bool,
    /// What was read and not looked at, and how much of it is known to be less than a head.
    read: BytesMut,
    looked: usize,
    /// Bytes that are asked for next.
    step: usize,
    left: Left,
    /// There may be another request.
    keep: bool,
    /// An answer to this has no body.
    bodiless: bool,
}

/// What of an answer's body is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Bytes(u64),
    ToEnd,
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(io: S) -> Self {
        Self {
            io,
            head: Vec::new(),
            gone: 0,
            body: Bytes::new(),
            flushed: true,
            read: BytesMut::new(),
            looked: 0,
            step: READ,
            left: Left::Nothing,
            keep: true,
            bodiless: false,
        }
    }

    /// Sends a request with all of its body, and waits for the head of the answer.
    pub(crate) async fn ask(
        &mut self,
        ask: &Ask<'_>,
        body: Bytes,
        progress: &Progress,
    ) -> Result<Response<()>, Broken> {
        self.begin(ask, body);
        std::future::poll_fn(|cx| self.poll_answer(cx, progress)).await
    }

    fn begin(&mut self, ask: &Ask<'_>, body: Bytes) {
        self.head.clear();
        self.gone = 0;
        encode(ask, body.len(), &mut self.head);
        self.body = body;
        if self.body.len() <= SMALL {
            self.head.extend_from_slice(&self.body);
            self.body = Bytes::new();
        }
        (self.flushed, self.looked, self.keep) = (false, 0, true);
        self.bodiless = *ask.method == Method::HEAD;
    }

    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        progress: &Progress,
    ) -> Poll<Result<Response<()>, Broken>> {
        if !self.flushed {
            let before = (self.gone, self.body.len());
            match self.poll_send(cx) {
                Poll::Ready(Ok(())) if before.0 == 0 => progress.sent_at_once(),
                Poll::Ready(Ok(())) => progress.sent(),
                Poll::Pending if (self.gone, self.body.len()) == before => {}
                Poll::Pending => progress.taken(),
                Poll::Ready(Err(error)) if self.gone == 0 => {
                    return Poll::Ready(Err(Broken::Unsent(error)));
                }
                // It may have said why before it closed.
                Poll::Ready(Err(_)) => self.give_up(),
            }
        }
        loop {
            if let Some(response) = self.parse()? {
                return Poll::Ready(Ok(response));
            }
            let read = match ready!(self.poll_read(cx)) {
                Err(error) if is_end(&error) => 0,
                read => read.map_err(Broken::Io)?,
            };
            if read == 0 {
                let nothing = self.read.is_empty();
                return Poll::Ready(Err(if nothing { Broken::Closed } else { Broken::Incomplete }));
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flushed {
            return Poll::Ready(Ok(()));
        }
        while self.gone < self.head.len() || !self.body.is_empty() {
            let head = &self.head[self.gone..];
            let io = Pin::new(&mut self.io);
            let written = if self.body.is_empty() {
                io.poll_write(cx, head)
            } else {
                io.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(&self.body)])
            };
            let written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(head.len());
            self.gone += of_head;
            self.body.advance(written - of_head);
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.flushed = true;
        // Even of no length it would hold on to the memory that it was in.
        self.body = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Sends nothing more.
    fn give_up(&mut self) {
        (self.flushed, self.keep) = (true, false);
        self.body = Bytes::new();
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // Where nobody has what was read before any more, this takes the same memory again.
        if self.read.capacity() - self.read.len() < self.step / 2 {
            self.read.reserve(self.step);
        }
        let room = self.read.capacity() - self.read.len();
        let read = ready!(pin!(self.io.read_buf(&mut self.read)).poll(cx))?;
        self.step = if read == room { (2 * self.step).min(MOST_READ) } else { READ };
        Poll::Ready(Ok(read))
    }

    /// The head of the answer, if it is there. Those that only tell of one to come are left out.
    fn parse(&mut self) -> Result<Option<Response<()>>, Broken> {
        loop {
            // Most come in one piece; of others each byte is looked at twice, and not each time one comes.
            let known = self.looked.saturating_sub(3);
            if self.read.is_empty() || self.looked > 0 && !has_end(&self.read[known..]) {
                self.looked = self.read.len();
                return if self.looked > HEAD as usize { Err(TOO_LONG) } else { Ok(None) };
            }
            let Some(response) = self.parse_head()? else {
                self.looked = self.read.len();
                return if self.looked > HEAD as usize { Err(TOO_LONG) } else { Ok(None) };
            };
            self.looked = 0;
            let status = response.status;
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(Some(response));
            }
        }
    }

    fn parse_head(&mut self) -> Result<Option<Response<()>>, Broken> {
        let mut room = [const { MaybeUninit::uninit() }; FIELDS];
        let mut answer = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut answer,
            &self.read,
            &mut room,
        );
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(TOO_LONG),
            Err(_) => return Err(Broken::Invalid("its head")),
        };
        let mut fields = Fields::with_block(Bytes::new());
        let start = self.read.as_ptr().addr();
        for field in answer.headers.iter() {
            let (name, value) = (field.name.as_bytes(), field.value);
            let [name, value] = [name, value].map(|piece| {
                let at = piece.as_ptr().addr() - start;
                at..at + piece.len()
            });
            fields.push_early(&self.read, name, value);
        }
        let status = answer.code.and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.ok_or(Broken::Invalid("its status"))?;
        let http_10 = answer.version == Some(0);
        fields.come(self.read.split_to(length).freeze());
        // What may be read in two ways is no answer.
        if let Some(why) = headers::two_ends(&fields) {
            return Err(Broken::Invalid(why));
        }
        let response = Response { status, fields, body: () };
        self.left = self.body_of(&response, http_10)?;
        Ok(Some(response))
    }

    /// What follows a head (RFC 9112, 6.3).
    fn body_of(&mut self, head: &Response<()>, http_10: bool) -> Result<Left, Broken> {
        let (status, fields) = (head.status, &head.fields);
        let chunked = fields.contains(Known::TransferEncoding);
        let length = fields.get(Known::ContentLength).map(|length| {
            let digits = str::from_utf8(length).ok();
            let length = digits.and_then(|digits| digits.parse::<u64>().ok());
            length.ok_or(Broken::Invalid("the answer's Content-Length is no number"))
        });
        let length = length.transpose()?;
        let mut keep = !http_10;
        for value in fields.get_all(Known::Connection) {
            for word in value.split(|byte| *byte == b',') {
                let word = word.trim_ascii();
                if word.eq_ignore_ascii_case(b"close") {
                    keep = false;
                    break;
                }
                keep |= http_10 && word.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        if http_10 && chunked {
            return Err(Broken::Invalid("a Transfer-Encoding of HTTP/1.0"));
        }
        let left = match (chunked, length) {
            _ if self.bodiless
                || status.is_informational()
                || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) =>
            {
                Left::Nothing
            }
            (true, _) => Left::ChunkSize,
            (false, Some(0)) => Left::Nothing,
            (false, Some(length)) => Left::Bytes(length),
            (false, None) => {
                keep = false;
                Left::ToEnd
            }
        };
        self.keep &= keep || status.is_informational();
        self.keep &= status != StatusCode::SWITCHING_PROTOCOLS;
        Ok(left)
    }

    /// The next part of the answer's body.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        // Who answers before he has heard everything may still want to hear it.
        if let Poll::Ready(Err(_)) = self.poll_send(cx) {
            self.give_up();
        }
        loop {
            match self.next() {
                Err(broken) => return Poll::Ready(Some(Err(broken))),
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.left == Left::Nothing => return Poll::Ready(None),
                Ok(None) => {}
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) if self.left == Left::ToEnd => self.left = Left::Nothing,
                Ok(0) => return Poll::Ready(Some(Err(Broken::Incomplete))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(Broken::Io(error)))),
            }
        }
    }

    /// What of the body has been read.
    fn next(&mut self) -> Result<Option<Frame<Bytes>>, Broken> {
        while !self.read.is_empty() {
            match self.left {
                Left::Nothing => return Ok(None),
                Left::ToEnd => return Ok(Some(Frame::data(self.read.split().freeze()))),
                Left::Bytes(left) => {
                    let (data, left) = self.part(left);
                    self.left = if left == 0 { Left::Nothing } else { Left::Bytes(left) };
                    return Ok(Some(Frame::data(data)));
                }
                Left::Chunk(left) => {
                    let (data, left) = self.part(left);
                    self.left = if left == 0 { Left::ChunkEnd } else { Left::Chunk(left) };
                    return Ok(Some(Frame::data(data)));
                }
                Left::ChunkSize => {
                    let Some(line) = self.line(CHUNK_LINE)? else { return Ok(None) };
                    self.left = match chunk_size(&line)? {
                        0 => Left::Trailers,
                        size => Left::Chunk(size),
                    };
                }
                Left::ChunkEnd => {
                    // Of two bytes, which are those of the line's end.
                    let Some(_) = self.line(2)? else { return Ok(None) };
                    self.left = Left::ChunkSize;
                }
                Left::Trailers => {
                    let trailers = self.trailers()?;
                    return Ok(trailers.filter(|all| !all.is_empty()).map(Frame::trailers));
                }
            }
        }
        Ok(None)
    }

    /// As much as is there of what has so many bytes to come, and how many are to come then.
    fn part(&mut self, left: u64) -> (Bytes, u64) {
        let length =
            usize::try_from(left).map_or(self.read.len(), |left| left.min(self.read.len()));
        (self.read.split_to(length).freeze(), left - length as u64)
    }

    /// The next line without its end, if all of it is there.
    fn line(&mut self, most: usize) -> Result<Option<BytesMut>, Broken> {
        let end = self.read.iter().take(most).position(|byte| *byte == b'\n');
        let Some(end) = end else {
            let long = self.read.len() >= most;
            return if long { Err(Broken::Invalid("a chunk's line")) } else { Ok(None) };
        };
        let mut line = self.read.split_to(end + 1);
        if !line.ends_with(b"\r\n") {
            return Err(Broken::Invalid("the end of a line"));
        }
        line.truncate(end - 1);
        Ok(Some(line))
    }

    /// What follows the last chunk, if all of it is there.
    fn trailers(&mut self) -> Result<Option<HeaderMap>, Broken> {
        let mut fields = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
        let mut trailers = HeaderMap::new();
        let length = match httparse::parse_headers(&self.read, &mut fields) {
            Ok(httparse::Status::Complete((length, fields))) => {
                for field in fields {
                    let name = HeaderName::from_bytes(field.name.as_bytes());
                    let name = name.map_err(|_| Broken::Invalid("a trailer's name"))?;
                    let value = HeaderValue::from_bytes(field.value);
                    trailers.append(name, value.map_err(|_| Broken::Invalid("a trailer"))?);
                }
                length
            }
            Ok(httparse::Status::Partial) if self.read.len() <= TRAILERS => return Ok(None),
            _ => return Err(Broken::Invalid("its trailers")),
        };
        self.read.advance(length);
        self.left = Left::Nothing;
        Ok(Some(trailers))
    }

    /// Whether all of the answer has come.
    pub(crate) fn is_over(&self) -> bool {
        self.left == Left::Nothing
    }

    /// How much of the body is to come.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.left {
            Left::Nothing => SizeHint::with_exact(0),
            Left::Bytes(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// Whether there may be another request: both sides have said all there was to say, and no more.
    pub(crate) fn is_reusable(&self) -> bool {
        self.keep && self.flushed && self.is_over() && self.read.is_empty()
    }

    /// Whether nothing has come while nobody asked: neither an end nor an answer to nothing.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        let reading = std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_read(cx, &mut buf));
        let reading = pin!(unconstrained(reading));
        reading.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Nobody needs it for a while.
    pub(crate) fn rest(&mut self) {
        self.read = BytesMut::new();
        self.head = Vec::new();
    }
}

const TOO_LONG: Broken = Broken::Invalid("its head is too long");

/// Whether a connection was closed, if nothing was to come: also without the last word of TLS, as many do it.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
}

/// Whether a head may end here: an empty line does.
fn has_end(bytes: &[u8]) -> bool {
    let mut ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    ends.any(|(at, _)| matches!(bytes[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

fn chunk_size(line: &[u8]) -> Result<u64, Broken> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    let invalid = Broken::Invalid("a chunk's size");
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(invalid);
    }
    let digits = std::str::from_utf8(digits).ok();
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or(invalid)
}

/// Whether a request is to say how many bytes its body has. Some servers ask for that where there may be a body.
pub(super) fn says_length(method: &Method, length: u64) -> bool {
    length > 0 || [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// Writes a head whose body has so many bytes. A client's `Content-Length: 0` stays with any method.
fn encode(ask: &Ask<'_>, length: usize, to: &mut Vec<u8>) {
    let says_length = says_length(ask.method, length as u64);
    to.extend_from_slice(ask.method.as_str().as_bytes());
    to.push(b' ');
    to.extend_from_slice(ask.target.as_bytes());
    to.extend_from_slice(b" HTTP/1.1\r\n");
    for field in ask.fields {
        match field.known {
            Some(Known::TransferEncoding) => {}
            Some(Known::ContentLength) if says_length || field.value != b"0" => {}
            _ => field.write(to),
        }
    }
    if says_length {
        // Into memory nothing fails to be written.
        let _ = write!(to, "content-length: {length}\r\n");
    }
    to.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};
    use std::time::Instant;

    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Asks without a head of its own.
    fn plain(method: &Method) -> Ask<'_> {
        static NONE: LazyLock<Fields> = LazyLock::new(Fields::new);
        Ask { method, target: "/x?y", fields: &NONE, uri: None }
    }

    /// A connection whose other end says this and, if `closes`, nothing more.
    async fn wire(bytes: &[u8], closes: bool) -> (Wire<DuplexStream>, DuplexStream) {
        let (near, mut far) = duplex(1 << 20);
        far.write_all(bytes).await.unwrap();
        if closes {
            far.shutdown().await.unwrap();
        }
        (Wire::new(near), far)
    }

    async fn ask(wire: &mut Wire<DuplexStream>, method: Method) -> Result<Response<()>, Broken> {
        let progress = Progress::new(Instant::now());
        wire.ask(&plain(&method), Bytes::new(), &progress).await
    }

    /// The body, with the trailers' names behind it.
    async fn body(wire: &mut Wire<DuplexStream>) -> Result<String, Broken> {
        let mut text = String::new();
        while let Some(frame) = std::future::poll_fn(|cx| wire.poll_frame(cx)).await {
            match frame?.into_data() {
                Ok(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                Err(frame) => {
                    for name in frame.into_trailers().unwrap().keys() {
                        text.push_str(name.as_str());
                    }
                }
            }
        }
        Ok(text)
    }

    /// What is made of an answer that comes in one piece, and byte by byte: status, body, whether the connection
    /// may be used again.
    async fn answer(method: Method, bytes: &str) -> Result<(u16, String, bool), String> {
        let at_once = async {
            let (mut wire, _far) = wire(bytes.as_bytes(), true).await;
            let response = ask(&mut wire, method.clone()).await?;
            let body = body(&mut wire).await?;
            Ok::<_, Broken>((response.status.as_u16(), body, wire.is_reusable()))
        };
        let in_bytes = async {
            let (near, mut far) = duplex(1);
            let mut wire = Wire::new(near);
            let (mut reads, mut writes) = tokio::io::split(&mut far);
            let mut sink = tokio::io::sink();
            let says = async {
                writes.write_all(bytes.as_bytes()).await.unwrap();
                writes.shutdown().await.unwrap();
                std::future::pending::<()>().await;
            };
            let hears = tokio::io::copy(&mut reads, &mut sink);
            let asks = async {
                let response = ask(&mut wire, method.clone()).await?;
                let body = body(&mut wire).await?;
                Ok::<_, Broken>((response.status.as_u16(), body, wire.is_reusable()))
            };
            tokio::select! {
                answered = asks => answered,
                _ = async { tokio::join!(says, hears) } => unreachable!(),
            }
        };
        let (at_once, in_bytes) = (at_once.await, in_bytes.await);
        let text = |answer: Result<_, Broken>| answer.map_err(|error| error.to_string());
        let (at_once, in_bytes) = (text(at_once), text(in_bytes));
        assert_eq!(at_once, in_bytes, "{bytes:?}");
        at_once
    }

    #[tokio::test]
    async fn where_an_answer_ends() {
        for (head, body, reusable) in [
            ("200 OK\r\nContent-Length: 4\r\n\r\nword", "word", true),
            ("200 OK\r\nContent-Length: 4\r\nConnection: x, close\r\n\r\nword", "word", false),
            ("200 OK\r\nContent-Length: 0\r\n\r\n", "", true),
            ("200 OK\r\n\r\nto the end", "to the end", false),
            ("204 No Content\r\nContent-Length: 4\r\n\r\n", "", true),
            ("304 Not Modified\r\nContent-Length: 4\r\n\r\n", "", true),
            (
                "100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
                "",
                true,
            ),
            ("101 Else\r\nUpgrade: x\r\n\r\n", "", false),
            (
                "200\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nwo\r\n2;x\r\nrd\r\n0\r\n\r\n",
                "word",
                true,
            ),
            (
                "200\r\nTransfer-Encoding: CHUNKED\r\n\r\nA \r\n0123456789\r\n0\r\nZ: 1\r\n\r\n",
                "0123456789z",
                true,
            ),
        ] {
            let answered = answer(Method::GET, &format!("HTTP/1.1 {head}")).await;
            let status = head[..3].parse().unwrap();
            let status = if status == 100 { 204 } else { status };
            assert_eq!(answered, Ok((status, body.to_owned(), reusable)), "{head:?}");
        }
        let of_10 = "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n";
        let closes = answer(Method::GET, &format!("{of_10}\r\nx")).await;
        assert_eq!(closes, Ok((200, "x".to_owned(), false)));
        let keeps = answer(Method::GET, &format!("{of_10}Connection: Keep-Alive\r\n\r\nx")).await;
        assert_eq!(keeps, Ok((200, "x".to_owned(), true)));
        let nothing = answer(Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await;
        assert_eq!(nothing, Ok((200, String::new(), true)));
    }

    #[tokio::test]
    async fn what_is_no_answer() {
        let chunked = "200 OK\r\nTransfer-Encoding: chunked\r\n";
        for (answered, why) in [
            (String::new(), "closed before an answer"),
            ("200 OK\r\nContent-Le".to_owned(), "closed before the end of an answer"),
            ("200 OK\r\nContent-Length: 5\r\n\r\nword".to_owned(), "closed before the end"),
            (format!("{chunked}\r\n4\r\nwor"), "closed before the end"),
            (format!("{chunked}\r\n4\r\nword\r\n"), "closed before the end"),
            (format!("{chunked}\r\n4\r\nword\r\n0\r\n"), "closed before the end"),
            (format!("{chunked}\r\n4\r\nwords\r\n"), "a chunk's line"),
            (format!("{chunked}\r\n4\nword\r\n"), "the end of a line"),
            (format!("{chunked}\r\n-4\r\nword\r\n"), "a chunk's size"),
            (format!("{chunked}\r\n\r\n"), "a chunk's size"),
            (format!("{chunked}\r\n10000000000000000\r\n"), "a chunk's size"),
            (format!("{chunked}\r\n1;{}\r\n", "x".repeat(CHUNK_LINE)), "a chunk's line"),
            (format!("{chunked}Content-Length: 4\r\n\r\n"), "Content-Length and"),
            (format!("{chunked}Transfer-Encoding: chunked\r\n\r\n"), "Transfer-Encoding"),
            ("200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned(), "Transfer-Encoding"),
            ("200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n".to_owned(), "Length"),
            ("200 OK\r\nContent-Length: 4, 4\r\n\r\n".to_owned(), "Length"),
            ("200 OK\r\nContent-Length: +4\r\n\r\n".to_owned(), "Length"),
            ("200 OK\r\nA : b\r\n\r\n".to_owned(), "its head"),
            ("200 OK\r\nA: b\r\n c\r\n\r\n".to_owned(), "its head"),
            ("20x OK\r\n\r\n".to_owned(), "its head"),
            (format!("200 OK\r\n{}\r\n", "a: b\r\n".repeat(FIELDS + 1)), "too long"),
        ] {
            let line = if answered.is_empty() { "" } else { "HTTP/1.1 " };
            let bytes = format!("{line}{answered}");
            let error = answer(Method::GET, &bytes).await.unwrap_err();
            assert!(error.contains(why), "{:?}: {error}", &bytes[..bytes.len().min(90)]);
        }
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(HEAD as usize + MOST_READ));
        let (mut wire, _far) = wire(long.as_bytes(), true).await;
        let error = ask(&mut wire, Method::GET).await.unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }

    #[tokio::test]
    async fn what_comes_while_nobody_asks_ends_a_connection() {
        let (mut connection, mut far) = wire(b"HTTP/1.1 204 No\r\n\r\n", false).await;
        ask(&mut connection, Method::GET).await.unwrap();
        assert!(connection.is_reusable() && connection.is_quiet());
        far.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        assert!(!connection.is_quiet());

        let (mut connection, far) = wire(b"HTTP/1.1 204 No\r\n\r\n", false).await;
        ask(&mut connection, Method::GET).await.unwrap();
        drop(far);
        assert!(!connection.is_quiet());

        // Along with the answer: of which request would it be?
        let twice = b"HTTP/1.1 204 No\r\n\r\nHTTP/1.1 204 No\r\n\r\n";
        let (mut connection, _far) = wire(twice, false).await;
        ask(&mut connection, Method::GET).await.unwrap();
        assert!(!connection.is_reusable());
    }

    #[tokio::test]
    async fn what_is_sent() {
        async fn sent(
            method: Method,
            headers: &[(&'static str, &'static str)],
            body: Bytes,
        ) -> String {
            let fields = headers.iter().copied().collect();
            let ask = Ask { fields: &fields, ..plain(&method) };
            let (near, mut far) = duplex(1 << 20);
            let mut wire = Wire::new(near);
            let progress = Progress::new(Instant::now());
            far.write_all(b"HTTP/1.1 204 No\r\n\r\n").await.unwrap();
            wire.ask(&ask, body, &progress).await.unwrap();
            drop(wire);
            let mut text = String::new();
            far.read_to_string(&mut text).await.unwrap();
            text
        }
        let headers = [("host", "a"), ("content-length", "7"), ("a", "b"), ("a", "c")];
        assert_eq!(
            sent(Method::GET, &headers, Bytes::new()).await,
            "GET /x?y HTTP/1.1\r\nhost: a\r\na: b\r\na: c\r\n\r\n"
        );
        let zero = [("content-length", "0")];
        assert_eq!(
            sent(Method::POST, &zero, Bytes::new()).await,
            "POST /x?y HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
        );
        for method in [Method::POST, Method::PUT, Method::PATCH] {
            let text = sent(method.clone(), &[], Bytes::new()).await;
            assert_eq!(text, format!("{method} /x?y HTTP/1.1\r\ncontent-length: 0\r\n\r\n"));
        }
        for (headers, said) in [(&[][..], ""), (&zero[..], "content-length: 0\r\n")] {
            let text = sent(Method::DELETE, headers, Bytes::new()).await;
            assert_eq!(text, format!("DELETE /x?y HTTP/1.1\r\n{said}\r\n"));
        }
        for length in [1, SMALL, SMALL + 1, 100_000] {
            let text = sent(Method::POST, &zero, "x".repeat(length).into()).await;
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert_eq!(head, format!("POST /x?y HTTP/1.1\r\ncontent-length: {length}"));
            assert_eq!(body.len(), length);
        }
    }

    #[tokio::test]
    async fn an_answer_that_comes_first_is_not_waited_with() {
        // Who does not listen to all of it, and says so.
        let (near, mut far) = duplex(1000);
        let mut wire = Wire::new(near);
        far.write_all(b"HTTP/1.1 413 Long\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        let progress = Progress::new(Instant::now());
        let body = Bytes::from(vec![0; 100_000]);
        let answered = wire.ask(&plain(&Method::POST), body, &progress).await.unwrap();
        assert_eq!(answered.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(!wire.is_reusable());
    }

    #[tokio::test]
    async fn a_body_that_is_sent_takes_no_memory() {
        for length in [1, SMALL + 1] {
            let (mut wire, _far) = wire(b"HTTP/1.1 204 No\r\n\r\n", false).await;
            let (body, progress) = (Arc::new(vec![0_u8; length]), Progress::new(Instant::now()));
            let sent = Bytes::from_owner(Owner(Arc::clone(&body)));
            wire.ask(&plain(&Method::POST), sent, &progress).await.unwrap();
            assert!(wire.is_reusable());
            assert_eq!(Arc::strong_count(&body), 1, "{length}");
        }
    }

    struct Owner(Arc<Vec<u8>>);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    /// TLS that ends without a last word.
    struct Torn;

    impl AsyncRead for Torn {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    #[tokio::test]
    async fn tls_may_end_without_a_word_where_no_answer_has_begun() {
        let torn = |said: &'static [u8]| {
            let said = tokio::io::AsyncReadExt::chain(said, Torn);
            Wire::new(tokio::io::join(said, tokio::io::sink()))
        };
        let progress = Progress::new(Instant::now());
        let head = plain(&Method::GET);
        let error = torn(b"").ask(&head, Bytes::new(), &progress).await.unwrap_err();
        assert!(matches!(error, Broken::Closed), "{error:?}");
        let error = torn(b"HTTP/1.1 200 OK\r\n").ask(&head, Bytes::new(), &progress).await;
        assert!(matches!(error, Err(Broken::Incomplete)), "{error:?}");
        // Whoever sits between may have cut it.
        let mut wire = torn(b"HTTP/1.1 200 OK\r\n\r\nhalf");
        wire.ask(&head, Bytes::new(), &progress).await.unwrap();
        let mut frame = async || std::future::poll_fn(|cx| wire.poll_frame(cx)).await.unwrap();
        assert!(frame().await.is_ok());
        assert!(matches!(frame().await, Err(Broken::Io(_))));
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_told_from_what_was_not_answered() {
        let (near, far) = duplex(1000);
        drop(far);
        let mut wire = Wire::new(near);
        let error = ask(&mut wire, Method::GET).await.unwrap_err();
        assert!(matches!(error, Broken::Unsent(_)), "{error:?}");
    }
}
