//! Frames of HTTP/2 that ask for nothing.
//!
//! The library behind this answers each frame before it reads the next one, so that no flood fills the memory. But
//! of some kinds it reads as many as a client sends: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, kinds that
//! nobody knows, and requests that are taken back when they have been taken up. The worker has nothing else to do then.
//! So frames pass by this first. What a client may send of them is earned by what it is sent, and by waiting.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Frames that may come at once, and after which none is left.
const MOST: u32 = 1024;
/// What is earned in a second of waiting.
const PER_SECOND: u32 = 200;
/// Bytes for a client that earn one frame: it may acknowledge each part of an answer, however small, for the stream
/// and for the connection, and measure how long that takes.
const PER_FRAME: u64 = 4;

/// `PRI * HTTP/2.0` and so on, before the first frame.
const PREFACE: u64 = 24;
/// Of a frame, before its payload.
const HEADER: usize = 9;
/// A PING that is too short, which no parser takes: it tells the client that the connection is over.
const POISON: [u8; HEADER] = [0, 0, 0, 0x6, 0, 0, 0, 0, 0];

/// What the client may still send.
#[derive(Debug)]
struct Credit {
    left: u32,
    since: Instant,
    /// Bytes of answers to such frames, which earn nothing.
    owed: u64,
}

impl Credit {
    fn new() -> Self {
        Self { left: MOST, since: Instant::now(), owed: 0 }
    }

    fn earn(&mut self, more: u64) {
        let more = u32::try_from(more).unwrap_or(MOST);
        self.left = self.left.saturating_add(more).min(MOST);
    }

    /// `false`: there is not as much.
    fn spend(&mut self, cost: u32) -> bool {
        if self.left < cost {
            // The clock is looked at only now.
            let waited = self.since.elapsed().as_millis().saturating_mul(PER_SECOND.into()) / 1000;
            self.earn(u64::try_from(waited).unwrap_or(u64::MAX));
            self.since = Instant::now();
        }
        let left = self.left.checked_sub(cost);
        self.left = left.unwrap_or_default();
        left.is_some()
    }

    /// So many bytes go to the client.
    fn sent(&mut self, bytes: u64) {
        let answers = bytes.min(self.owed);
        self.owed -= answers;
        self.earn((bytes - answers) / PER_FRAME);
    }

    /// A frame begins; `false` if it is one too many.
    fn take(&mut self, header: [u8; HEADER]) -> bool {
        const END_STREAM: u8 = 0x1;
        const ACK: u8 = 0x1;
        let [a, b, c, kind, flags, ..] = header;
        match kind {
            // DATA, also the last one, which may be empty.
            0x0 if [a, b, c] != [0; 3] || flags & END_STREAM != 0 => true,
            // HEADERS: a request.
            0x1 => {
                self.earn(1);
                true
            }
            // RST_STREAM: it is taken back. Of many every second one may be.
            0x3 => self.spend(2),
            // SETTINGS and PING, and what they are answered with.
            0x4 | 0x6 => {
                if flags & ACK == 0 {
                    self.owed += if kind == 0x4 { 9 } else { 17 };
                }
                self.spend(1)
            }
            _ => self.spend(1),
        }
    }
}

/// Follows the frames that a client sends.
#[derive(Debug)]
struct Frames {
    header: [u8; HEADER],
    /// Of the header.
    there: usize,
    /// Bytes that come before the next header.
    left: u64,
    credit: Credit,
    /// There was one too many.
    over: bool,
}

impl Frames {
    fn new() -> Self {
        let (header, credit) = ([0; HEADER], Credit::new());
        Self { header, there: 0, left: PREFACE, credit, over: false }
    }

    /// Takes what has arrived; or says after how much of it a frame ends that was one too many.
    fn take(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let most = usize::try_from(self.left).unwrap_or(usize::MAX);
                let passed = most.min(bytes.len() - at);
                self.left -= passed as u64;
                at += passed;
            } else {
                let passed = (HEADER - self.there).min(bytes.len() - at);
                self.header[self.there..][..passed].copy_from_slice(&bytes[at..at + passed]);
                self.there += passed;
                at += passed;
                if self.there == HEADER {
                    self.there = 0;
                    let [a, b, c, ..] = self.header;
                    self.left = u32::from_be_bytes([0, a, b, c]).into();
                    self.over = !self.credit.take(self.header);
                }
            }
            if self.over && self.left == 0 {
                return Err(at);
            }
        }
        Ok(())
    }
}

/// Whether a connection was cut because its client did not keep calm.
#[derive(Clone, Debug, Default)]
pub(crate) struct Excess(Arc<AtomicBool>);

impl Excess {
    /// It was.
    pub(crate) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lets frames of HTTP/2 pass as long as the client keeps calm. Behind the frame that was one too many the library gets
/// [`POISON`]: it says goodbye (GOAWAY) and closes the connection.
#[derive(Debug)]
pub(crate) struct Calm<S> {
    inner: S,
    frames: Frames,
    excess: Excess,
    poison: &'static [u8],
}

impl<S> Calm<S> {
    pub(crate) fn new(inner: S, excess: Excess) -> Self {
        Self { inner, frames: Frames::new(), excess, poison: &POISON }
    }

    fn sent(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(written)) = written {
            self.frames.credit.sent(*written as u64);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Calm<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if !me.excess.is() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut me.inner).poll_read(cx, buf))?;
            let Err(at) = me.frames.take(&buf.filled()[before..]) else {
                return Poll::Ready(Ok(()));
            };
            buf.set_filled(before + at);
            me.excess.0.store(true, Ordering::Relaxed);
        }
        let (now, later) = me.poison.split_at(me.poison.len().min(buf.remaining()));
        buf.put_slice(now);
        me.poison = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Calm<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.inner).poll_write(cx, buf);
        me.sent(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.inner).poll_write_vectored(cx, bufs);
        me.sent(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::advance;

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const HEADERS: u8 = 0x1;
    const RESET: u8 = 0x3;
    const PING: u8 = 0x6;
    const WINDOW_UPDATE: u8 = 0x8;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER + usize::from(length), 0);
        frame
    }

    fn begun() -> Frames {
        let mut frames = Frames::new();
        frames.take(PREFACE).unwrap();
        frames
    }

    /// How many rounds of this pass.
    fn rounds(frames: &mut Frames, round: &[Vec<u8>]) -> u32 {
        let round = round.concat();
        (0..10_000).take_while(|_| frames.take(&round).is_ok()).count().try_into().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_asks_for_nothing_comes_to_an_end() {
        for (kind, flags, length) in [
            (0x0, 0, 0),
            (0x2, 0, 5),
            (0x4, 0, 0),
            (0x4, 1, 0),
            (PING, 0, 8),
            (PING, 1, 8),
            (0x7, 0, 8),
            (WINDOW_UPDATE, 0, 4),
            (0x9, 0, 1),
            (0xfa, 0, 0),
        ] {
            let most = rounds(&mut begun(), &[frame(kind, flags, length)]);
            assert_eq!(most, MOST, "{kind:#x} {flags:#x}");
        }
        let taken_back = [frame(HEADERS, 5, 20), frame(RESET, 0, 4)];
        assert_eq!(rounds(&mut begun(), &taken_back), MOST - 1);
        let every_second = [frame(HEADERS, 5, 20), frame(HEADERS, 5, 20), frame(RESET, 0, 4)];
        assert_eq!(rounds(&mut begun(), &every_second), 10_000);
        let upload = [frame(HEADERS, 4, 20), frame(0x0, 0, 1), frame(0x0, 1, 0)];
        assert_eq!(rounds(&mut begun(), &upload), 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_or_is_answered_may_send_more() {
        let mut frames = begun();
        let ping = [frame(PING, 0, 8)];
        assert_eq!(rounds(&mut frames, &ping), MOST);
        let mut frames = begun();
        for _ in 0..10 {
            for _ in 0..PER_SECOND {
                frames.take(&ping[0]).unwrap();
                // The answers to these, and a small part of somebody's answer.
                frames.credit.sent(17);
            }
            advance(Duration::from_secs(1)).await;
        }
        let mut frames = begun();
        for _ in 0..10_000 {
            let updates = [frame(WINDOW_UPDATE, 0, 4), frame(WINDOW_UPDATE, 0, 4), ping[0].clone()];
            frames.take(&updates.concat()).unwrap();
            frames.credit.sent(17 + HEADER as u64 + 15);
        }
        // The shortest message of a WebSocket, for a client that acknowledges each one twice.
        let mut frames = begun();
        for _ in 0..10_000 {
            frames.take(&frame(WINDOW_UPDATE, 0, 4).repeat(2)).unwrap();
            frames.credit.sent(HEADER as u64 + 2);
        }
        // But answers to PINGs pay for none.
        let mut frames = begun();
        let paid = (0..10_000).take_while(|_| {
            frames.credit.sent(17);
            frames.take(&ping[0]).is_ok()
        });
        assert!(paid.count() < 2 * MOST as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn the_frame_that_was_one_too_many_is_followed_by_poison() {
        let (mut client, served) = tokio::io::duplex(1 << 20);
        let excess = Excess::default();
        let mut served = Calm::new(served, excess.clone());
        let good = [PREFACE, &frame(PING, 0, 8).repeat(MOST as usize)].concat();
        let bad = frame(PING, 0, 8);
        client.write_all(&good).await.unwrap();
        // In pieces, and more of them.
        for piece in bad.repeat(3).chunks(4) {
            client.write_all(piece).await.unwrap();
        }
        let mut read = Vec::new();
        served.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), good.len() + bad.len() + POISON.len());
        assert!(read.ends_with(&[&bad[..], &POISON].concat()) && excess.is());
    }
}
