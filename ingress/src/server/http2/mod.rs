//! HTTP/2 (RFC 9113): one task for a connection, whatever many streams it has.
//!
//! ```text
//! bytes ─► connection: frames, HPACK, windows ─► requests ─► proxy::serve ─┐
//! bytes ◄─ connection ◄────────── serve: heads, parts of bodies ◄─ answers ┘
//! ```
//!
//! Requests are futures that the connection's task looks at when they are woken. All that is to be said in one turn is
//! written at once; and what a client is to be sent is asked for when there is room for it.

mod calm;
mod connection;
mod frames;
mod head;
pub(crate) mod hostile;
mod hpack;
mod huffman;
mod pipe;
#[cfg(test)]
mod rules;
mod serve;
#[cfg(test)]
mod serving;
mod streams;
mod table;
mod wakers;

pub(super) use head::Bad;
pub(crate) use pipe::Reader;
#[cfg(test)]
pub(crate) use pipe::pipe;
pub(super) use serve::{End, serve};

/// Requests of a connection at a time.
const STREAMS: u32 = 128;
/// Bytes of a head as RFC 9113, 10.5.1 counts them: as much as of HTTP/1.
const HEAD: u32 = 32 << 10;
/// Bytes that a client may send of a request, or of all requests of a connection, that nobody has taken.
const WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Streams that a client has reset before they were taken up: more are an attack (CVE-2023-44487).
const RESETS: usize = 32;
/// Streams that were reset because the client broke the rules, beside one a second: who does that more often is told to
/// leave (CVE-2025-8671).
const ERRORS: u32 = 128;

const _: () = assert!(
    pipe::QUIET * (STREAMS as usize) <= CONNECTION_WINDOW as usize / 2,
    "what was read and not told of leaves room for more"
);
