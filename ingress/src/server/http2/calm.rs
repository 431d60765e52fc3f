//! How much of a client's frames ask for nothing, are taken back, or break the rules.
//!
//! Each frame is answered before the next one is read, so that no flood fills the memory. But of some kinds a client could
//! send as many as it likes: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, DATA without any, kinds that nobody knows, what belongs
//! to streams that are over, and requests that are taken back when they have been taken up. The worker would have nothing
//! else to do then. So what a client may send of them is earned: by what it asks for and is sent, and by waiting.

use tokio::time::Instant;

use super::ERRORS;
use super::frames::{self, Header};

/// Frames that ask for nothing, or requests taken back, that may come at once, and after which none is left.
const MOST: u32 = 1024;
/// What of each is earned in a second of waiting.
const PER_SECOND: u32 = 200;
/// Bytes for a client that earn one frame: it may acknowledge each part of an answer, however small, for the stream
/// and for the connection, and measure how long that takes.
const PER_FRAME: u64 = 4;

/// A token bucket, full at first.
#[derive(Debug)]
struct Bucket {
    left: u32,
    most: u32,
    per_second: u32,
    since: Instant,
}

impl Bucket {
    fn new(most: u32, per_second: u32) -> Self {
        Self { left: most, most, per_second, since: Instant::now() }
    }

    fn earn(&mut self, more: u64) {
        let more = u32::try_from(more).unwrap_or(self.most);
        self.left = self.left.saturating_add(more).min(self.most);
    }

    /// `false`: there is nothing left.
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            // The clock is looked at only now.
            let waited = self.since.elapsed().as_millis().saturating_mul(self.per_second.into());
            self.earn(u64::try_from(waited / 1000).unwrap_or(u64::MAX));
            self.since = Instant::now();
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or_default();
        left.is_some()
    }
}

/// What the client may still do.
#[derive(Debug)]
pub(super) struct Credit {
    /// Frames that ask for nothing.
    frames: Bucket,
    /// Requests that are taken back. Bytes earn none: those of one short answer would pay for ten.
    resets: Bucket,
    /// Streams that have to be reset because of what it does with them.
    errors: Bucket,
    /// Bytes of answers to frames that ask for nothing, which earn nothing.
    owed: u64,
}

impl Default for Credit {
    fn default() -> Self {
        Self {
            frames: Bucket::new(MOST, PER_SECOND),
            resets: Bucket::new(MOST, PER_SECOND),
            errors: Bucket::new(ERRORS, 1),
            owed: 0,
        }
    }
}

impl Credit {
    /// A frame comes, whatever it asks for; `false` if it is one too many.
    pub(super) fn take(&mut self, header: Header) -> bool {
        match header.kind {
            // Which of them ask for nothing depends on their streams.
            frames::DATA | frames::HEADERS => true,
            frames::RST_STREAM => self.resets.spend(),
            kind => {
                // What they are answered with.
                match kind {
                    frames::SETTINGS if !header.has(frames::ACK) => self.owed += 9,
                    frames::PING if !header.has(frames::ACK) => self.owed += 17,
                    _ => {}
                }
                self.frames.spend()
            }
        }
    }

    /// A frame that came asks for nothing; `false` if it is one too many.
    pub(super) fn nothing(&mut self) -> bool {
        self.frames.spend()
    }

    /// A stream has to be reset because of what the client does with it; `false` if it is one too many.
    pub(super) fn error(&mut self) -> bool {
        self.errors.spend()
    }

    /// A request has come.
    pub(super) fn asked(&mut self) {
        self.frames.earn(1);
    }

    /// One is answered: of many requests every second one may be taken back.
    pub(super) fn answered(&mut self) {
        self.resets.earn(1);
    }

    /// So many bytes go to the client.
    pub(super) fn sent(&mut self, bytes: u64) {
        let answers = bytes.min(self.owed);
        self.owed -= answers;
        self.frames.earn((bytes - answers) / PER_FRAME);
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

    /// How many rounds pass.
    fn rounds(mut round: impl FnMut(&mut Credit) -> bool) -> u32 {
        let mut credit = Credit::default();
        (0..10_000).take_while(|_| round(&mut credit)).count().try_into().unwrap()
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
            (frames::RST_STREAM, 0),
            (0xfa, 0),
        ] {
            let most = rounds(|credit| credit.take(frame(kind, flags)));
            assert_eq!(most, MOST, "{kind:#x} {flags:#x}");
        }
        assert_eq!(rounds(Credit::nothing), MOST);
        assert_eq!(rounds(Credit::error), ERRORS);
        // What carries something does not.
        for kind in [frames::HEADERS, frames::DATA] {
            assert_eq!(rounds(|credit| credit.take(frame(kind, 0))), 10_000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_requests_every_second_one_may_be_taken_back() {
        let reset = frame(frames::RST_STREAM, 0);
        let every_second = rounds(|credit| {
            credit.answered();
            credit.take(reset)
        });
        assert_eq!(every_second, 10_000);
        // But the bytes of an answer pay for none.
        let most_of_them = rounds(|credit| {
            (0..15).for_each(|_| credit.asked());
            let taken = (0..14).all(|_| credit.take(reset));
            credit.answered();
            credit.sent(53);
            taken
        });
        assert_eq!(most_of_them, MOST / 13);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_or_asks_or_is_answered_may_send_more() {
        let (ping, update) = (frame(frames::PING, 0), frame(frames::WINDOW_UPDATE, 0));
        let mut credit = Credit::default();
        while credit.take(ping) {}
        for _ in 0..10 {
            advance(Duration::from_secs(1)).await;
            for _ in 0..PER_SECOND {
                assert!(credit.take(ping));
                // The answers to these, and a small part of somebody's answer.
                credit.sent(17);
            }
        }
        let asks = rounds(|credit| {
            credit.asked();
            credit.take(ping)
        });
        assert_eq!(asks, 10_000);
        let answered = rounds(|credit| {
            let taken = [update, update, ping].into_iter().all(|frame| credit.take(frame));
            credit.sent(17 + 9 + 15);
            taken
        });
        assert_eq!(answered, 10_000);
        // The shortest message of a WebSocket, for a client that acknowledges each one twice.
        let messages = rounds(|credit| {
            let taken = [update, update].into_iter().all(|frame| credit.take(frame));
            credit.sent(9 + 2);
            taken
        });
        assert_eq!(messages, 10_000);
        // But answers to PINGs pay for none.
        let paid = rounds(|credit| {
            credit.sent(17);
            credit.take(ping)
        });
        assert!(paid < 2 * MOST);
    }
}
