//! What becomes of a query: who asks, the verdict, and what is left to others.

use std::net::SocketAddr;
use std::sync::Arc;

use fairway_core::dns::{MAX_NAME, Query, Unfit, parse};

pub use writer::{Buffer, Data, Owner, Reply, Section};

use crate::name::Name;

mod decide;
mod find;
mod writer;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where from.
    pub address: SocketAddr,
    /// Of the pod that it is, if it is one of this node's.
    pub namespace: Option<Arc<str>>,
    /// How.
    pub transport: Transport,
}

/// What carries a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram: an answer has as many bytes as its client takes.
    Udp,
    /// A stream: an answer has up to 65,535 bytes.
    Tcp,
}

/// What becomes of a query.
#[derive(Debug)]
pub enum Verdict<'a> {
    /// It is answered.
    Answer {
        /// The message, in the buffer that was handed in.
        bytes: &'a [u8],
        /// The type that was asked for; 0 if that could not be read.
        kind: u16,
    },
    /// Somebody else knows.
    Forward(Box<Forward>),
    /// It is not answered at all.
    Drop(Reason),
}

/// Why a message gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It has no header.
    Short,
    /// It is an answer itself: two servers would never come to an end.
    Answer,
    /// Its question cannot be read.
    Malformed,
}

/// What others are to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// As the client asked. Its name is the one that was asked for; see [`question`](Self::question).
    pub query: Query,
    /// The name that the client asked for.
    pub question: Name,
    /// The names to ask others for, one after the other as long as there is no such name (NXDOMAIN); one at least.
    /// Of one that is there the records are the answer, if only none.
    pub names: Vec<Name>,
    /// Names in between: the name that was asked for is an alias of the first, that one of the next, and the last of
    /// the one that was found.
    pub via: Vec<Name>,
    /// The names are those of a search list, and the zone is ours: if none of them is there, the name that was asked
    /// for is not there either, and [`Zone::absent`](crate::Zone::absent) says so. Otherwise the outcome is whatever
    /// the others said.
    pub search: bool,
    /// Seconds that aliases may be kept.
    pub ttl: u32,
}

impl Forward {
    /// The client's own question.
    pub(crate) fn plain(query: Query, question: Name) -> Self {
        let names = vec![question.clone()];
        Self { query, question, names, via: Vec::new(), search: false, ttl: 0 }
    }

    /// Begins the answer: the question of `message`, which was the client's, and the aliases that lead to
    /// `names[found]`, whose records are to follow. `None` if there is no such name in the list.
    pub fn reply<'a>(
        &self,
        message: &[u8],
        transport: Transport,
        found: usize,
        out: &'a mut Buffer,
    ) -> Option<Reply<'a>> {
        let found = self.names.get(found)?;
        let mut reply = Reply::begin(&self.query, message, transport, out);
        let names = [&self.question].into_iter().chain(&self.via).chain([found]);
        reply.aliases(names, self.ttl);
        Some(reply)
    }
}

/// Answers a query by an outcome alone, one of [`rcode`](fairway_core::dns::rcode). Of a message that cannot be
/// read but for its header, that header is all there is; `None` if it has none, or is an answer.
pub fn outcome<'a>(
    message: &[u8],
    rcode: u8,
    transport: Transport,
    out: &'a mut Buffer,
) -> Option<&'a [u8]> {
    let mut name = [[0; 8]; NAME_CHUNKS];
    match parse(message, &mut name) {
        Ok(query) => Some(Reply::begin(&query, message, transport, out).finish(rcode)),
        Err(Unfit::Short | Unfit::Answer) => None,
        Err(_) => writer::header_alone(message, rcode, out),
    }
}

/// Room for a name in chunks of eight bytes.
pub(crate) const NAME_CHUNKS: usize = 32;
const _: () = assert!(NAME_CHUNKS * 8 > MAX_NAME);
