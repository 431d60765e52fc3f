//! HTTP/2 (RFC 9113) as far as a load generator needs it: it asks for one thing again and again, in streams beside
//! each other, and costs next to nothing.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Padded, or with a priority.
const UNUSUAL: u8 = 8 | 0x20;
/// A frame's head.
const HEAD: usize = 9;
/// What a server may send before it is told that it was read. The streams' own windows are larger than answers.
const WINDOW: u32 = 1 << 30;

/// A connection.
#[derive(Debug)]
pub(super) struct Session<S> {
    stream: S,
    buffer: BytesMut,
    /// Written with the next flush.
    out: Vec<u8>,
    next_stream: u32,
    open: Vec<Open>,
    /// Of the window.
    used: u32,
}

/// A request on its way.
#[derive(Debug)]
struct Open {
    stream: u32,
    due: Instant,
    length: usize,
}

/// A request that was answered with 200.
#[derive(Debug)]
pub(super) struct Answered {
    /// What was said with the request.
    pub due: Instant,
    /// Bytes of the answer's body.
    pub length: usize,
}

/// A GET over TLS, as HPACK without anything to remember: the same bytes each time.
pub(super) fn header_block(host: &str, path: &str) -> Result<Vec<u8>> {
    // :method GET and :scheme https of the static table, :path and :authority by its names.
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(0x04, path), (0x01, host)] {
        let length = u8::try_from(value.len()).ok().filter(|length| *length < 127);
        block.extend([name, length.context("a short name")?]);
        block.extend(value.as_bytes());
    }
    Ok(block)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Begins to speak; what it says goes with the first request.
    pub(super) fn new(stream: S) -> Self {
        let mut out = PREFACE.to_vec();
        // SETTINGS_ENABLE_PUSH = 0
        write_frame(&mut out, SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 0]);
        write_frame(&mut out, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        let buffer = BytesMut::with_capacity(64 << 10);
        Self { stream, buffer, out, next_stream: 1, open: Vec::new(), used: 0 }
    }

    /// Requests that are not answered yet.
    pub(super) fn under_way(&self) -> usize {
        self.open.len()
    }

    /// Asks; sent with the next [`Self::flush`].
    pub(super) fn ask(&mut self, block: &[u8], due: Instant) {
        write_frame(&mut self.out, HEADERS, END_STREAM | END_HEADERS, self.next_stream, block);
        self.open.push(Open { stream: self.next_stream, due, length: 0 });
        self.next_stream += 2;
    }

    /// Sends what there is to be sent.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out).await.context("send")?;
            self.stream.flush().await.context("send")?;
            self.out.clear();
        }
        Ok(())
    }

    /// Reads some more. Nothing is lost when it is given up.
    pub(super) async fn read(&mut self) -> Result<()> {
        self.buffer.reserve(16 << 10);
        let read = self.stream.read_buf(&mut self.buffer).await.context("read")?;
        ensure!(read > 0, "the connection ends");
        Ok(())
    }

    /// The next answer that has been read to its end.
    pub(super) fn next(&mut self) -> Result<Option<Answered>> {
        while let Some(head) = self.buffer.first_chunk::<HEAD>() {
            let length =
                usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            if self.buffer.len() < HEAD + length {
                break;
            }
            self.buffer.advance(HEAD);
            let payload = self.buffer.split_to(length);
            match kind {
                DATA => {
                    self.used += u32::try_from(length)?;
                    if self.used > WINDOW / 2 {
                        let used = std::mem::take(&mut self.used).to_be_bytes();
                        write_frame(&mut self.out, WINDOW_UPDATE, 0, 0, &used);
                    }
                    self.find(stream)?.length += length;
                }
                HEADERS => {
                    ensure!(flags & UNUSUAL == 0, "a HEADERS frame with flags {flags:#x}");
                    // Behind a change of its table's size, the encoder says :status 200 by its number.
                    let first = payload.iter().find(|byte| *byte & 0xe0 != 0x20);
                    ensure!(first == Some(&0x88), "the answer is not 200");
                }
                SETTINGS if flags & ACK == 0 => write_frame(&mut self.out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => write_frame(&mut self.out, PING, ACK, 0, &payload),
                RST_STREAM => bail!("a stream is reset: {payload:?}"),
                GOAWAY => bail!("the server goes away: {payload:?}"),
                _ => {}
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                let at = self.open.iter().position(|open| open.stream == stream);
                let open = self.open.swap_remove(at.context("an answer to nothing")?);
                return Ok(Some(Answered { due: open.due, length: open.length }));
            }
        }
        Ok(None)
    }

    fn find(&mut self, stream: u32) -> Result<&mut Open> {
        self.open.iter_mut().find(|open| open.stream == stream).context("an answer to nothing")
    }
}

fn write_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    // None is longer than a frame may be.
    let [_, _, a, b] = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    out.extend([0, a, b, kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write_frame(&mut frame, kind, flags, stream, payload);
        frame
    }

    async fn session(answers: Vec<Vec<u8>>) -> Session<tokio::io::DuplexStream> {
        let (client, mut server) = tokio::io::duplex(1 << 16);
        let mut session = Session::new(client);
        let block = header_block("a.example", "/x").unwrap();
        for _ in 0..2 {
            session.ask(&block, Instant::now());
        }
        session.flush().await.unwrap();
        server.write_all(&answers.concat()).await.unwrap();
        session.read().await.unwrap();
        session
    }

    #[tokio::test]
    async fn streams_are_answered_in_any_order() {
        let mut session = session(vec![
            frame(SETTINGS, 0, 0, &[]),
            frame(HEADERS, END_HEADERS, 3, &[0x3f, 0x88, 0x5c]),
            frame(HEADERS, END_HEADERS, 1, &[0x88]),
            frame(DATA, 0, 1, b"abc"),
            frame(DATA, END_STREAM, 3, b"hello"),
            frame(DATA, END_STREAM, 1, b"d"),
        ])
        .await;
        assert_eq!(session.under_way(), 2);
        assert_eq!(session.next().unwrap().unwrap().length, 5);
        assert_eq!(session.next().unwrap().unwrap().length, 4);
        assert!(session.next().unwrap().is_none());
        assert_eq!(session.under_way(), 0);
        assert_eq!(session.out, frame(SETTINGS, ACK, 0, &[]));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for bad in [
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x8d]),
            frame(RST_STREAM, 0, 1, &[0; 4]),
            frame(GOAWAY, 0, 0, &[0; 8]),
            frame(DATA, END_STREAM, 9, b"x"),
        ] {
            assert!(session(vec![bad.clone()]).await.next().is_err(), "{bad:?}");
        }
    }
}
