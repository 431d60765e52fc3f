//! Frames of WebSocket (RFC 6455), as small as the echo needs them: not in parts, below 126 bytes.

use anyhow::{Result, ensure};
use bytes::Buf as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::http1::Connection;

/// The example of the RFC: what a client asks with, and what shows that the server has read it.
pub(super) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(super) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A final frame of bytes.
const BINARY: u8 = 0x82;
const MASKED: u8 = 0x80;
/// A length that says that the length follows.
const LONG: u8 = 126;

/// A frame that has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// What the payload is masked with; clients' are.
    mask: Option<[u8; 4]>,
    /// As it came.
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame in `bytes` and its length, if it is there in full.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>> {
        let [kind, length, rest @ ..] = bytes else { return Ok(None) };
        ensure!(*kind == BINARY, "a frame of kind {kind:#x}");
        let (masked, length) = (length & MASKED != 0, length & !MASKED);
        ensure!(length < LONG, "a long frame");
        let (mask, rest) = match (masked, rest.split_first_chunk()) {
            (false, _) => (None, rest),
            (true, Some((mask, rest))) => (Some(*mask), rest),
            (true, None) => return Ok(None),
        };
        let Some(payload) = rest.get(..usize::from(length)) else { return Ok(None) };
        let whole = bytes.len() - rest.len() + payload.len();
        Ok(Some((Self { mask, payload }, whole)))
    }

    /// The same, as a server sends it.
    pub(super) fn write_unmasked(&self, to: &mut Vec<u8>) {
        // It was below 126.
        to.extend([BINARY, u8::try_from(self.payload.len()).unwrap_or_default()]);
        let mask = self.mask.unwrap_or_default();
        to.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
}

/// A client's frame with this payload of less than 126 bytes.
pub(super) fn masked(payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    let length = u8::try_from(payload.len()).unwrap_or(LONG);
    let mut frame = vec![BINARY, MASKED | length];
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Sends a frame, and reads the one that has to come back with the same payload.
    pub(super) async fn echo(&mut self, frame: &[u8], payload: &[u8]) -> Result<()> {
        self.stream.write_all(frame).await?;
        self.stream.flush().await?;
        let length = loop {
            if let Some((frame, length)) = Frame::parse(&self.buffer)? {
                ensure!(frame.mask.is_none() && frame.payload == payload, "another echo");
                break length;
            }
            self.read().await?;
        };
        self.buffer.advance(length);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let sent = masked(b"hello");
        for short in 0..sent.len() {
            assert_eq!(Frame::parse(&sent[..short]).unwrap(), None);
        }
        let (frame, length) = Frame::parse(&sent).unwrap().unwrap();
        assert_eq!(length, sent.len());
        let mut back = Vec::new();
        frame.write_unmasked(&mut back);
        assert_eq!(back, b"\x82\x05hello");
        let (frame, _) = Frame::parse(&back).unwrap().unwrap();
        assert_eq!((frame.mask, frame.payload), (None, &b"hello"[..]));
    }
}
