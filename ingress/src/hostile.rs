//! What strangers send, read as a gateway reads it, without a connection: for who holds that against inputs of any kind.

use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, BytesMut};

use crate::server::framing::Violation;
use crate::server::http1::body::{BodyReader, Part};
use crate::server::http1::head::HeadReader;
use crate::server::http2;
use crate::server::stream;

/// What of a connection's bytes are requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Those of which at least the head is there.
    pub passed: Vec<Passed>,
    /// How many bytes were good before one that is not, and why it is not.
    pub refused: Option<(usize, String)>,
}

/// A request. All numbers are of bytes from the connection's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Where it begins; an empty line before it is its own.
    pub begin: usize,
    /// Where its body begins.
    pub body: usize,
    /// Where the next one begins, if all of it is there.
    pub end: Option<usize>,
    /// What of its body has come, without what it was wrapped in.
    pub received: Vec<u8>,
}

/// Reads HTTP/1 that comes in pieces of so many bytes.
pub fn requests(bytes: &[u8], piece: usize) -> Requests {
    let mut connection = Connection::default();
    for piece in bytes.chunks(piece) {
        connection.read.extend_from_slice(piece);
        connection.come += piece.len();
        loop {
            match connection.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err((good, why)) => {
                    let good = connection.taken() + good;
                    return Requests {
                        refused: Some((good, why.to_string())),
                        ..connection.requests
                    };
                }
            }
        }
    }
    connection.requests
}

#[derive(Default)]
struct Connection {
    /// Of all that has come, what is not taken.
    read: BytesMut,
    come: usize,
    head: HeadReader,
    /// Of the request that was passed last, unless that has come in full.
    body: Option<BodyReader>,
    requests: Requests,
}

impl Connection {
    fn taken(&self) -> usize {
        self.come - self.read.len()
    }

    /// Whether there was something to take.
    fn step(&mut self) -> Result<bool, (usize, Violation)> {
        let Some(body) = &mut self.body else {
            let Some(end) = self.head.take(&self.read)? else { return Ok(false) };
            let begin = self.taken();
            let (body, received) = (begin + end.length, Vec::new());
            self.requests.passed.push(Passed { begin, body, end: None, received });
            self.read.advance(end.length);
            self.head.reset();
            self.body = Some(BodyReader::new(end.body));
            return Ok(true);
        };
        let part = body.take(&mut self.read)?;
        let over = part.is_none() && body.is_over();
        if over {
            self.body = None;
        }
        let end = over.then_some(self.taken());
        if let Some(passed) = self.requests.passed.last_mut() {
            passed.end = end;
            if let Some(Part::Data(data)) = &part {
                passed.received.extend_from_slice(data);
            }
        }
        Ok(over || part.is_some())
    }
}

/// Whom a header of the PROXY protocol names, a client and what it has connected to, if it names somebody; and how many
/// bytes it has. `None` if it is none, or not there in full.
pub fn proxy_header(bytes: &[u8]) -> Option<(Option<(SocketAddr, SocketAddr)>, usize)> {
    let mut rest = bytes;
    let read = pin!(stream::proxy_header(&mut rest)).poll(&mut Context::from_waker(Waker::noop()));
    let read = match read {
        Poll::Ready(read) => read.ok()?,
        // It waits for nothing: all that there will be is there.
        Poll::Pending => return None,
    };
    let named = read.map(|named| (named.client, named.server));
    Some((named, bytes.len() - rest.len()))
}

/// What the bytes of a connection over HTTP/2 come to, behind the preface.
#[derive(Debug, PartialEq, Eq)]
pub struct Streams {
    /// Method and target of each request, and its body as far as it came.
    pub asked: Vec<(String, String, Vec<u8>)>,
    /// All that the client is sent.
    pub sent: Vec<u8>,
    /// Why it is not listened to any more.
    pub ended: Option<String>,
}

/// Follows HTTP/2 in pieces of so many bytes. Requests are answered with their bodies as these come, if `answers`.
///
/// # Panics
/// What the client is sent is no HTTP/2.
pub fn streams(bytes: &[u8], size: usize, answers: bool) -> Streams {
    let http2::hostile::Played { asked, sent, ended } = http2::hostile::play(bytes, size, answers);
    Streams { asked, sent, ended }
}
