//! Frames of HTTP/2 that ask for nothing.
//!
//! Each frame is answered before the next one is read, so that no flood fills the memory. But of some kinds a client could
//! send as many as it likes: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, kinds that nobody knows, and requests that are
//! taken back when they have been taken up. The worker would have nothing else to do then. So what a client may send of
//! them is earned by what it is sent, and by waiting.

use tokio::time::Instant;

use super::frames::{self, Header};

/// Frames that may come at once, and after which none is left.
const MOST: u32 = 1024;
/// What is earned in a second of waiting.
const PER_SECOND: u32 = 200;
/// Bytes for a client that earn one frame: it may acknowledge each part of an answer, however small, for the stream
/// and for the connection, and measure how long that takes.
const PER_FRAME: u64 = 4;

/// What the client may still send.
#[derive(Debug)]
pub(super) struct Credit {
    left: u32,
    since: Instant,
    /// Bytes of answers to such frames, which earn nothing.
    owed: u64,
}

impl Default for Credit {
    fn default() -> Self {
        Self { left: MOST, since: Instant::now(), owed: 0 }
    }
}

impl Credit {
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
    pub(super) fn sent(&mut self, bytes: u64) {
        let answers = bytes.min(self.owed);
        self.owed -= answers;
        self.earn((bytes - answers) / PER_FRAME);
    }

    /// A frame comes; `false` if it is one too many.
    pub(super) fn take(&mut self, header: Header) -> bool {
        match header.kind {
            // Empty ones are counted by themselves.
            frames::DATA => true,
            // A request.
            frames::HEADERS => {
                self.earn(1);
                true
            }
            // It is taken back. Of many every second one may be.
            frames::RST_STREAM => self.spend(2),
            // And what they are answered with.
            kind @ (frames::SETTINGS | frames::PING) => {
                if !header.has(frames::ACK) {
                    self.owed += if kind == frames::SETTINGS { 9 } else { 17 };
                }
                self.spend(1)
            }
            _ => self.spend(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    fn frame(kind: u8, flags: u8) -> Header {
        Header { length: 8, kind, flags, stream: 1 }
    }

    /// How many rounds of this pass.
    fn rounds(credit: &mut Credit, round: &[Header]) -> u32 {
        let passes = |_: &u32| round.iter().all(|frame| credit.take(*frame));
        (0..10_000).take_while(passes).count().try_into().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_asks_for_nothing_comes_to_an_end() {
        for (kind, flags) in [
            (frames::PRIORITY, 0),
            (frames::SETTINGS, 0),
            (frames::SETTINGS, frames::ACK),
            (frames::PING, 0),
            (frames::PING, frames::ACK),
            (frames::GOAWAY, 0),
            (frames::WINDOW_UPDATE, 0),
            (frames::CONTINUATION, 0),
            (0xfa, 0),
        ] {
            let most = rounds(&mut Credit::default(), &[frame(kind, flags)]);
            assert_eq!(most, MOST, "{kind:#x} {flags:#x}");
        }
        let [request, reset] = [frame(frames::HEADERS, 5), frame(frames::RST_STREAM, 0)];
        assert_eq!(rounds(&mut Credit::default(), &[request, reset]), MOST - 1);
        let every_second = [request, request, reset];
        assert_eq!(rounds(&mut Credit::default(), &every_second), 10_000);
        let upload = [request, frame(frames::DATA, 0), frame(frames::DATA, 1)];
        assert_eq!(rounds(&mut Credit::default(), &upload), 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_or_is_answered_may_send_more() {
        let (ping, update) = (frame(frames::PING, 0), frame(frames::WINDOW_UPDATE, 0));
        let mut credit = Credit::default();
        assert_eq!(rounds(&mut credit, &[ping]), MOST);
        let mut credit = Credit::default();
        for _ in 0..10 {
            for _ in 0..PER_SECOND {
                assert!(credit.take(ping));
                // The answers to these, and a small part of somebody's answer.
                credit.sent(17);
            }
            advance(Duration::from_secs(1)).await;
        }
        let mut credit = Credit::default();
        for _ in 0..10_000 {
            assert!([update, update, ping].into_iter().all(|frame| credit.take(frame)));
            credit.sent(17 + 9 + 15);
        }
        // The shortest message of a WebSocket, for a client that acknowledges each one twice.
        let mut credit = Credit::default();
        for _ in 0..10_000 {
            assert!([update, update].into_iter().all(|frame| credit.take(frame)));
            credit.sent(9 + 2);
        }
        // But answers to PINGs pay for none.
        let mut credit = Credit::default();
        let paid = (0..10_000).take_while(|_| {
            credit.sent(17);
            credit.take(ping)
        });
        assert!(paid.count() < 2 * MOST as usize);
    }
}
