//! What strangers send, read as a gateway reads it, without a connection: for who holds that against inputs of any kind.

use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::server::framing::Framing;
use crate::server::stream;

/// What of a connection's bytes are requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Those of which at least the head is there.
    pub passed: Vec<Passed>,
    /// How many bytes were good before one that is not, and why it is not.
    pub refused: Option<(usize, String)>,
}

/// A request that a parser gets. All numbers are of bytes from the connection's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Where it begins; an empty line before it is its own.
    pub begin: usize,
    /// Where its body begins.
    pub body: usize,
    /// Where the next one begins, if all of it is there.
    pub end: Option<usize>,
}

/// Follows HTTP/1, byte by byte.
pub fn requests(bytes: &[u8]) -> Requests {
    let (mut framing, mut requests) = (Framing::default(), Requests::default());
    let mut begin = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let in_head = framing.in_head();
        if framing.is_between() {
            begin = at;
        }
        if let Err((passed, why)) = framing.take(&[*byte]) {
            requests.refused = Some((at + passed, why.to_string()));
            return requests;
        }
        let after = at + 1;
        if in_head && !framing.in_head() {
            requests.passed.push(Passed { begin, body: after, end: None });
        }
        if let Some(last) = requests.passed.last_mut().filter(|_| framing.is_between()) {
            last.end.get_or_insert(after);
        }
    }
    requests
}

/// The same, of bytes that come all at once: what is refused.
pub fn refused(bytes: &[u8]) -> Option<(usize, String)> {
    let refused = Framing::default().take(bytes).err();
    refused.map(|(passed, why)| (passed, why.to_string()))
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
