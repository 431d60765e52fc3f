//! HTTP/1.1 as far as a load generator and its backend need it.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Read at a time.
const PIECE: usize = 64 << 10;

/// A request's or an answer's head.
pub(super) struct Head<'a> {
    first_line: &'a str,
    /// `Content-Length`.
    pub length: Option<usize>,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
    /// `Connection: close`.
    pub closes: bool,
}

impl<'a> Head<'a> {
    /// Reads it, the empty line at its end included.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).context("a head that is no text")?;
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap_or_default();
        let mut head = Self { first_line, length: None, chunked: false, closes: false };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("content-length") {
                head.length = Some(value.trim().parse().context("Content-Length")?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = true;
            } else if name.eq_ignore_ascii_case("connection") {
                head.closes = value.trim().eq_ignore_ascii_case("close");
            }
        }
        Ok(head)
    }

    /// A request's path and query.
    pub(super) fn target(&self) -> &'a str {
        self.first_line.split(' ').nth(1).unwrap_or_default()
    }

    /// An answer's status.
    pub(super) fn status(&self) -> Result<u16> {
        let word = self.first_line.split(' ').nth(1);
        word.and_then(|word| word.parse().ok())
            .with_context(|| format!("no status in {:?}", self.first_line))
    }
}

/// Where the head ends: behind its empty line.
pub(super) fn find_head(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == b'\r') {
        let at = from + at;
        if bytes[at..].starts_with(b"\r\n\r\n") {
            return Some(at + 4);
        }
        from = at + 1;
    }
    None
}

/// The client's end of a connection.
#[derive(Debug)]
pub(super) struct Connection<S> {
    /// The bytes below.
    pub stream: S,
    /// Read, and not looked at yet.
    pub buffer: BytesMut,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its status.
    pub status: u16,
    /// Bytes of its body.
    pub length: usize,
    /// The server will take no other request on this connection.
    pub closes: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(8 << 10) }
    }

    /// Sends a request and reads the whole answer; its body is counted and forgotten.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await.context("send a request")?;
        self.stream.flush().await.context("send a request")?;
        let end = loop {
            if let Some(end) = find_head(&self.buffer) {
                break end;
            }
            self.read().await?;
        };
        let head = Head::parse(&self.buffer[..end])?;
        let (status, length, closes) = (head.status()?, head.length, head.closes);
        let chunked = head.chunked;
        self.buffer.advance(end);
        let length = match length {
            _ if status == 101 => 0,
            Some(length) => self.skip(length).await.map(|()| length)?,
            None if chunked => self.skip_chunks().await?,
            None => bail!("an answer {status} without a length"),
        };
        Ok(Answer { status, length, closes })
    }

    /// As [`Self::exchange`], when the answer has to be 200 with a body of so many bytes.
    pub(super) async fn expect(&mut self, request: &[u8], length: usize) -> Result<Answer> {
        let answer = self.exchange(request).await?;
        ensure!(answer.status == 200, "the answer is {}", answer.status);
        ensure!(answer.length == length, "the answer has {} bytes", answer.length);
        Ok(answer)
    }

    /// Waits until the server closes the connection, while it is asked for nothing.
    pub(super) async fn closed(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await;
        ensure!(!matches!(read, Ok(1..)), "an answer to nothing");
        Ok(())
    }

    /// Reads some more.
    pub(super) async fn read(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await.context("read an answer")?;
        ensure!(read > 0, "the connection ends before the answer");
        Ok(())
    }

    async fn skip(&mut self, mut length: usize) -> Result<()> {
        loop {
            let here = length.min(self.buffer.len());
            self.buffer.advance(here);
            length -= here;
            if length == 0 {
                return Ok(());
            }
            self.buffer.reserve(length.min(PIECE));
            self.read().await?;
        }
    }

    async fn skip_chunks(&mut self) -> Result<usize> {
        let mut all = 0;
        loop {
            let line = loop {
                if let Some(at) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                    break self.buffer.split_to(at + 2);
                }
                self.read().await?;
            };
            let digits = std::str::from_utf8(&line)?.trim();
            let length = usize::from_str_radix(digits, 16).context("the length of a chunk")?;
            self.skip(length + 2).await?;
            all += length;
            if length == 0 {
                return Ok(all);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(bytes: &'static [u8]) -> Result<Answer> {
        let (client, mut server) = tokio::io::duplex(64);
        let server = tokio::spawn(async move {
            let mut request = [0; 3];
            server.read_exact(&mut request).await.unwrap();
            // The client may have heard enough.
            let _ = server.write_all(bytes).await;
        });
        let answer = Connection::new(client).exchange(b"ask").await;
        server.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_end() {
        for (bytes, status, length, closes) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..], 200, 5, false),
            (b"HTTP/1.1 404 No\r\ncontent-length:0\r\nconnection: close\r\n\r\n", 404, 0, true),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
                200,
                13,
                false,
            ),
            (b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n", 101, 0, false),
        ] {
            assert_eq!(answered(bytes).await.unwrap(), Answer { status, length, closes });
        }
        for cut in [&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"[..], b"HTTP/1.1 200", b""]
        {
            assert!(answered(cut).await.is_err());
        }
    }
}
