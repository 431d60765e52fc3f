//! One end of a connection, without the connection (RFC 9113): bytes go in, requests and bytes come out.

use http::{HeaderMap, StatusCode};

use super::calm::Credit;
use super::frames::{self, Fault, Header, MOST_PAYLOAD, MOST_WINDOW, PREFACE, Reason, Settings};
use super::head::{Asked, Bad, Reading};
use super::hpack::{Decoder, Encoder};
use super::streams::{Number, Stream, Streams};
use super::{CONNECTION_WINDOW, HEAD, RESETS, STREAMS, WINDOW};
use crate::message::{Field, Fields, Known, Upload};

/// Bytes of a head as it is on the wire, and frames that it goes on in.
const BLOCK: usize = 4 * HEAD as usize;
const CONTINUATIONS: usize = 16;
/// Bytes that the client hears of at once that it may send again, for a stream and for all.
const ANNOUNCED: u32 = WINDOW / 8;
const ALL_ANNOUNCED: u32 = CONNECTION_WINDOW / 16;
/// Bytes of a buffer that are kept for later.
const MOST_KEPT: usize = 512;
/// PINGs of the gateway's own: whether somebody is there, and whether he has heard that this is the end.
const THERE: [u8; 8] = *b"?there?\0";
const HEARD: [u8; 8] = *b"?heard?\0";

/// How far it has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// The client is told, and what it has sent before it heard is taken.
    Told,
    /// Streams behind this number are not.
    Now(u32),
}

/// A head that goes on in frames to come.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
    frames: usize,
}

/// What both ends know of each other.
#[derive(Debug)]
pub(super) struct Connection {
    /// To be sent.
    pub(super) out: Vec<u8>,
    /// A frame of which a part has come.
    partial: Vec<u8>,
    /// Bytes of the preface that have come.
    greeted: usize,
    /// So has what the client says of itself.
    introduced: bool,
    block: Option<Block>,
    decoder: Decoder,
    encoder: Encoder,
    /// For what is decoded of a field.
    text: Vec<u8>,
    streams: Streams,
    /// Places of streams that nobody has taken up.
    fresh: Vec<usize>,
    /// Of those, how many were reset before.
    taken_back: usize,
    /// Requests that are none.
    bad: Vec<Bad>,
    credit: Credit,
    /// Bytes that the client may send, and those that were read and that it has not heard of.
    receives: i64,
    owed: u32,
    /// Bytes that the client takes; and how many of each stream at first.
    sends: i64,
    window: i64,
    /// The client takes more since this was looked at.
    wider: bool,
    leaving: Leaving,
    /// Why, if the client is to blame.
    blamed: Option<Fault>,
    /// The client does.
    left: bool,
    /// It was asked whether it is there.
    asked: bool,
}

impl Default for Connection {
    /// One that begins: the client's preface is to come.
    fn default() -> Self {
        let mut out = Vec::new();
        frames::settings(&mut out, STREAMS, WINDOW, HEAD);
        let more = i64::from(CONNECTION_WINDOW) - frames::FIRST_WINDOW;
        frames::window_update(&mut out, 0, u32::try_from(more).unwrap_or_default());
        Self {
            out,
            partial: Vec::new(),
            greeted: 0,
            introduced: false,
            block: None,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            text: Vec::new(),
            streams: Streams::default(),
            fresh: Vec::new(),
            taken_back: 0,
            bad: Vec::new(),
            credit: Credit::default(),
            receives: CONNECTION_WINDOW.into(),
            owed: 0,
            sends: frames::FIRST_WINDOW,
            window: frames::FIRST_WINDOW,
            wider: false,
            leaving: Leaving::No,
            blamed: None,
            left: false,
            asked: false,
        }
    }
}

/// What the client says.
impl Connection {
    /// Takes what has come; and says goodbye if the client breaks the rules.
    ///
    /// # Errors
    /// It does: nothing more is to be taken, and the connection ends when the client has heard why. What it was told to leave
    /// for is the reason, if it was.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let Err(fault) = self.take(bytes) else { return Ok(()) };
        // What was said before holds (RFC 9113, 6.8).
        let last = match self.leaving {
            Leaving::Now(last) => last,
            Leaving::No | Leaving::Told => self.streams.last(),
        };
        frames::goaway(&mut self.out, last, fault.reason());
        Err(self.blamed.unwrap_or(fault))
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            if self.greeted < PREFACE.len() {
                let expected = &PREFACE[self.greeted..];
                let length = expected.len().min(bytes.len());
                if bytes[..length] != expected[..length] {
                    return Err(Reason::Protocol.into());
                }
                self.greeted += length;
                bytes = &bytes[length..];
            } else if self.partial.is_empty() {
                let Some(length) = whole(bytes)? else {
                    self.partial.extend_from_slice(bytes);
                    return Ok(());
                };
                let (frame, rest) = bytes.split_at(length);
                bytes = rest;
                self.frame(frame)?;
            } else {
                let there = self.partial.len();
                let length = match Header::read(&self.partial) {
                    Some(header) => frames::HEADER + header.length,
                    None => frames::HEADER,
                };
                let (more, rest) = bytes.split_at(bytes.len().min(length - there));
                bytes = rest;
                self.partial.extend_from_slice(more);
                if whole(&self.partial)?.is_some() {
                    let mut frame = std::mem::take(&mut self.partial);
                    let taken = self.frame(&frame);
                    frame.clear();
                    self.partial = frame;
                    taken?;
                }
            }
        }
        Ok(())
    }

    /// Takes a frame in full.
    fn frame(&mut self, frame: &[u8]) -> Result<(), Fault> {
        let header = Header::read(frame).ok_or(Reason::FrameSize)?;
        let payload = &frame[frames::HEADER..];
        let greeting = header.kind == frames::SETTINGS && !header.has(frames::ACK);
        if !self.introduced && !greeting {
            return Err(Reason::Protocol.into());
        }
        if !self.credit.take(header) {
            return Err(Fault::Nothing);
        }
        let goes_on = header.kind == frames::CONTINUATION
            && self.block.as_ref().is_some_and(|block| block.stream == header.stream);
        // Nothing comes between the parts of a head (RFC 9113, 4.3).
        if self.block.is_some() && !goes_on {
            return Err(Reason::Protocol.into());
        }
        match header.kind {
            frames::DATA => self.data(header, payload),
            frames::HEADERS => self.headers(header, payload),
            frames::PRIORITY => self.priority(header),
            frames::RST_STREAM => self.rst_stream(header, payload),
            frames::SETTINGS => self.settings(header, payload),
            frames::PUSH_PROMISE => Err(Reason::Protocol.into()),
            frames::PING => self.ping(header, payload),
            frames::GOAWAY if header.stream != 0 => Err(Reason::Protocol.into()),
            frames::GOAWAY if header.length < 8 => Err(Reason::FrameSize.into()),
            frames::GOAWAY => {
                self.left = true;
                Ok(())
            }
            frames::WINDOW_UPDATE => self.window_update(header, payload),
            frames::CONTINUATION => self.continuation(header, payload),
            // RFC 9113, 5.5
            _ => Ok(()),
        }
    }

    fn data(&mut self, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if header.stream == 0 {
            return Err(Reason::Protocol.into());
        }
        let ends = header.has(frames::END_STREAM);
        let data = header.unpadded(payload)?;
        let length = u32::try_from(payload.len()).map_err(|_| Reason::FrameSize)?;
        self.receives -= i64::from(length);
        if self.receives < 0 {
            return Err(Reason::FlowControl.into());
        }
        let known = self.streams.known(header.stream);
        if data.is_empty() && !(ends && matches!(known, Number::Open(_))) {
            self.asks_for_nothing()?;
        }
        let place = match known {
            Number::Open(place) => place,
            Number::EndedHere => {
                self.read(length);
                return Ok(());
            }
            Number::Ended { .. } => return Err(Reason::StreamClosed.into()),
            Number::Idle => return Err(Reason::Protocol.into()),
        };
        let Some(stream) = self.streams.get(place) else { return Ok(()) };
        if stream.heard {
            return Err(Reason::StreamClosed.into());
        }
        stream.receives -= i64::from(length);
        stream.unread += length;
        let short = match &mut stream.left {
            Some(left) => {
                let fits = left.checked_sub(data.len() as u64);
                *left = fits.unwrap_or_default();
                fits.is_none() || (ends && fits != Some(0))
            }
            None => false,
        };
        if stream.receives < 0 {
            self.broken(place, Reason::FlowControl);
            return Ok(());
        }
        if short {
            self.broken(place, Reason::Protocol);
            return Ok(());
        }
        // Padding is read as soon as it is there.
        let mut read = payload.len() - data.len();
        if let Some(body) = &stream.body {
            body.send(data);
            if ends {
                body.end(None);
            }
            read += body.taken();
        }
        stream.heard |= ends;
        self.is_read(place, u32::try_from(read).unwrap_or_default());
        Ok(())
    }

    fn headers(&mut self, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if header.stream.is_multiple_of(2) {
            return Err(Reason::Protocol.into());
        }
        let block = header.unpadded(payload)?;
        let ends = header.has(frames::END_STREAM);
        if header.has(frames::END_HEADERS) {
            return self.head(header.stream, ends, block);
        }
        self.block = Some(Block { stream: header.stream, ends, bytes: block.to_vec(), frames: 0 });
        Ok(())
    }

    fn continuation(&mut self, header: Header, payload: &[u8]) -> Result<(), Fault> {
        let mut block = self.block.take().ok_or(Reason::Protocol)?;
        block.frames += 1;
        block.bytes.extend_from_slice(payload);
        if block.bytes.len() > BLOCK || block.frames > CONTINUATIONS {
            return Err(Reason::EnhanceYourCalm.into());
        }
        if header.has(frames::END_HEADERS) {
            return self.head(block.stream, block.ends, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    /// Takes a head in full: of a request, or what is behind its body.
    fn head(&mut self, id: u32, ends: bool, block: &[u8]) -> Result<(), Fault> {
        let known = self.streams.known(id);
        if let Number::Ended { was } = known {
            let reason = if was { Reason::StreamClosed } else { Reason::Protocol };
            return Err(reason.into());
        }
        let mut reading = Reading::new();
        let field = |name: &[u8], value: &[u8]| reading.take(name, value);
        self.decoder.decode(block, &mut self.text, field)?;
        match known {
            Number::Open(place) => self.trailers(place, ends, reading),
            Number::Idle => return self.request(id, ends, reading),
            Number::Ended { .. } | Number::EndedHere => return self.asks_for_nothing(),
        }
        Ok(())
    }

    fn request(&mut self, id: u32, ends: bool, reading: Reading) -> Result<(), Fault> {
        if let Leaving::Now(last) = self.leaving
            && id > last
        {
            self.streams.pass(id);
            self.streams.forget(id, true);
            return self.asks_for_nothing();
        }
        if self.streams.len() >= STREAMS as usize {
            self.refuse(id, Reason::RefusedStream);
            return Ok(());
        }
        match reading.finish(ends) {
            Ok(asked) => {
                let place = self.streams.add(Stream::new(id, Some(asked), ends, self.window));
                self.fresh.push(place);
                self.credit.asked();
            }
            Err(bad) => {
                match bad {
                    Bad::Malformed => self.refuse(id, Reason::Protocol),
                    Bad::TooLong(_) => {
                        let stream = Stream::new(id, None, ends, self.window);
                        let place = self.streams.add(stream);
                        self.answer(place, bad.status(), &Fields::new(), true);
                    }
                }
                self.bad.push(bad);
            }
        }
        Ok(())
    }

    fn trailers(&mut self, place: usize, ends: bool, reading: Reading) {
        let Some(stream) = self.streams.get(place) else { return };
        if stream.heard {
            return self.broken(place, Reason::StreamClosed);
        }
        let short = stream.left.is_some_and(|left| left > 0);
        let trailers = reading.into_trailers().filter(|_| ends && !short);
        let Some(trailers) = trailers else {
            return self.broken(place, Reason::Protocol);
        };
        stream.heard = true;
        if let Some(body) = &stream.body {
            body.end(Some(trailers).filter(|trailers| !trailers.is_empty()));
        }
    }

    fn priority(&mut self, header: Header) -> Result<(), Fault> {
        match (header.stream, header.length) {
            (0, _) => return Err(Reason::Protocol.into()),
            (_, 5) => {}
            (id, _) => match self.streams.known(id) {
                Number::Open(place) => self.broken(place, Reason::FrameSize),
                Number::Idle => return Err(Reason::FrameSize.into()),
                Number::EndedHere | Number::Ended { .. } => {}
            },
        }
        Ok(())
    }

    fn rst_stream(&mut self, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if payload.len() != 4 {
            return Err(Reason::FrameSize.into());
        }
        match self.streams.known(header.stream) {
            _ if header.stream == 0 => return Err(Reason::Protocol.into()),
            Number::Idle => return Err(Reason::Protocol.into()),
            Number::EndedHere | Number::Ended { .. } => {}
            Number::Open(place) => {
                let stream = self.close(place, false);
                if stream.is_some_and(|stream| stream.asked.is_some()) {
                    self.taken_back += 1;
                    if self.taken_back > RESETS {
                        return Err(Reason::EnhanceYourCalm.into());
                    }
                }
            }
        }
        Ok(())
    }

    fn settings(&mut self, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if header.stream != 0 {
            return Err(Reason::Protocol.into());
        }
        if header.has(frames::ACK) {
            return if payload.is_empty() { Ok(()) } else { Err(Reason::FrameSize.into()) };
        }
        let settings = Settings::read(payload)?;
        self.introduced = true;
        for most in settings.table_sizes.into_iter().flatten() {
            self.encoder.limit(most);
        }
        if let Some(window) = settings.window {
            let more = i64::from(window) - self.window;
            self.window = window.into();
            for stream in self.streams.all() {
                stream.sends += more;
                if stream.sends > MOST_WINDOW {
                    return Err(Reason::FlowControl.into());
                }
            }
            self.wider = true;
        }
        frames::write(&mut self.out, frames::SETTINGS, frames::ACK, 0, &[]);
        Ok(())
    }

    fn ping(&mut self, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if header.stream != 0 {
            return Err(Reason::Protocol.into());
        }
        let payload: [u8; 8] = payload.try_into().map_err(|_| Reason::FrameSize)?;
        if !header.has(frames::ACK) {
            frames::write(&mut self.out, frames::PING, frames::ACK, 0, &payload);
        } else if payload == THERE {
            self.asked = false;
        } else if payload == HEARD && self.leaving == Leaving::Told {
            self.leave_now();
        }
        Ok(())
    }

    fn window_update(&mut self, header: Header, payload: &[u8]) -> Result<(), Fault> {
        let more: [u8; 4] = payload.try_into().map_err(|_| Reason::FrameSize)?;
        let more = i64::from(frames::number(more));
        if header.stream == 0 {
            self.sends += more;
            self.wider = true;
            return match more {
                0 => Err(Reason::Protocol.into()),
                _ if self.sends > MOST_WINDOW => Err(Reason::FlowControl.into()),
                _ => Ok(()),
            };
        }
        let place = match self.streams.known(header.stream) {
            Number::Open(place) => place,
            Number::Idle => return Err(Reason::Protocol.into()),
            Number::EndedHere | Number::Ended { .. } => return Ok(()),
        };
        let Some(stream) = self.streams.get(place) else { return Ok(()) };
        stream.sends += more;
        let sends = stream.sends;
        self.wider = true;
        match more {
            0 => self.broken(place, Reason::Protocol),
            _ if sends > MOST_WINDOW => self.broken(place, Reason::FlowControl),
            _ => {}
        }
        Ok(())
    }

    /// A frame that came does.
    fn asks_for_nothing(&mut self) -> Result<(), Fault> {
        if self.credit.nothing() { Ok(()) } else { Err(Fault::Nothing) }
    }

    /// Ends a stream because of what the client has done with it.
    fn broken(&mut self, place: usize, reason: Reason) {
        if let Some(stream) = self.close(place, true) {
            self.blame(stream.id, reason);
        }
    }

    /// The same of one that does not become one.
    fn refuse(&mut self, id: u32, reason: Reason) {
        self.streams.pass(id);
        self.streams.forget(id, true);
        self.blame(id, reason);
    }

    /// Who is to blame too often is served to the end of what is under way, and no more.
    fn blame(&mut self, id: u32, reason: Reason) {
        frames::reset(&mut self.out, id, reason);
        if !self.credit.error() && self.blamed.is_none() {
            self.blamed = Some(Reason::EnhanceYourCalm.into());
            self.stop(Reason::EnhanceYourCalm);
        }
    }
}

/// What whoever answers says.
impl Connection {
    /// Places of requests that nobody has taken up, in place of `places`, which are none.
    pub(super) fn fresh(&mut self, places: &mut Vec<usize>) {
        self.taken_back = 0;
        std::mem::swap(&mut self.fresh, places);
    }

    /// What was none, and that nobody has heard of.
    pub(super) fn bad(&mut self) -> std::vec::Drain<'_, Bad> {
        self.bad.drain(..)
    }

    /// Takes one up: what is asked, and its body.
    pub(super) fn begin(&mut self, place: usize) -> Option<(Asked, Upload)> {
        let stream = self.streams.get(place)?;
        let asked = stream.asked.take()?;
        let upload = match stream.upload.take() {
            None => Upload::Empty,
            Some(reader) => match reader.whole() {
                Some(bytes) if bytes.is_empty() => Upload::Empty,
                Some(bytes) => Upload::Whole(bytes),
                None => Upload::Http2(reader),
            },
        };
        Some((asked, upload))
    }

    /// Places that are free again.
    pub(super) fn closed(&mut self, hear: impl FnMut(usize)) {
        self.streams.closed(hear);
    }

    pub(super) fn stream(&mut self, place: usize) -> Option<&mut Stream> {
        self.streams.get(place)
    }

    /// Whether somebody waits for a body of which nothing has come.
    pub(super) fn awaits(&mut self, place: usize) -> bool {
        let Some(stream) = self.streams.get(place) else { return false };
        let untouched = !stream.heard && stream.receives == i64::from(WINDOW);
        untouched && stream.body.as_ref().is_some_and(super::pipe::Sender::is_awaited)
    }

    /// Tells the client to send the body that it waits with.
    pub(super) fn go_on(&mut self, place: usize) {
        self.write_head(place, 0, |encoder, out| encoder.status("100", out));
    }

    /// Sends the head of an answer; `ends`: that is all of it.
    pub(super) fn answer(&mut self, place: usize, status: StatusCode, fields: &Fields, ends: bool) {
        self.credit.answered();
        self.write_head(place, flag(ends), |encoder, out| {
            encoder.status(status.as_str(), out);
            for Field { known, name, value } in fields {
                match known {
                    // There is no such thing here (RFC 9113, 8.2.2).
                    Some(
                        Known::Connection
                        | Known::KeepAlive
                        | Known::ProxyConnection
                        | Known::TransferEncoding
                        | Known::Upgrade,
                    ) => {}
                    Some(known) => encoder.field(known.as_str().as_bytes(), value, out),
                    None if name.iter().any(u8::is_ascii_uppercase) => {
                        encoder.field(&name.to_ascii_lowercase(), value, out);
                    }
                    None => encoder.field(name, value, out),
                }
            }
        });
        self.answered(place, ends);
    }

    /// Bytes of a body that may be sent next.
    pub(super) fn room(&mut self, place: usize) -> usize {
        let sends = self.streams.get(place).map_or(0, |stream| stream.sends);
        usize::try_from(sends.min(self.sends)).unwrap_or_default().min(MOST_PAYLOAD)
    }

    /// Sends as many; `ends`: that is all of it.
    pub(super) fn send(&mut self, place: usize, bytes: &[u8], ends: bool) {
        let Some(stream) = self.streams.get(place) else { return };
        frames::write(&mut self.out, frames::DATA, flag(ends), stream.id, bytes);
        let length = i64::try_from(bytes.len()).unwrap_or(MOST_WINDOW);
        stream.sends -= length;
        self.sends -= length;
        self.answered(place, ends);
    }

    /// Sends what is behind a body.
    pub(super) fn end(&mut self, place: usize, trailers: &HeaderMap) {
        self.write_head(place, frames::END_STREAM, |encoder, out| {
            for (name, value) in trailers {
                encoder.field(name.as_str().as_bytes(), value.as_bytes(), out);
            }
        });
        self.answered(place, true);
    }

    /// Ends a stream.
    pub(super) fn reset(&mut self, place: usize, reason: Reason) {
        if let Some(stream) = self.close(place, true) {
            frames::reset(&mut self.out, stream.id, reason);
        }
    }

    /// Hears of what was read of a body.
    pub(super) fn look_after(&mut self, place: usize) {
        let body = self.streams.get(place).and_then(|stream| stream.body.as_ref());
        let read = body.map_or(0, super::pipe::Sender::taken);
        self.is_read(place, u32::try_from(read).unwrap_or_default());
    }

    fn write_head(
        &mut self,
        place: usize,
        flags: u8,
        fields: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) {
        let Some(stream) = self.streams.get(place) else { return };
        let (id, begin) = (stream.id, self.out.len());
        frames::begin(&mut self.out, 0, frames::HEADERS, flags | frames::END_HEADERS, id);
        self.encoder.begin(&mut self.out);
        fields(&mut self.encoder, &mut self.out);
        let length = self.out.len() - begin - frames::HEADER;
        if length <= MOST_PAYLOAD {
            frames::set_length(&mut self.out[begin..], length);
            return;
        }
        let block = self.out.split_off(begin + frames::HEADER);
        self.out.truncate(begin);
        let parts = block.chunks(MOST_PAYLOAD).count();
        for (number, part) in block.chunks(MOST_PAYLOAD).enumerate() {
            let last = if number + 1 == parts { frames::END_HEADERS } else { 0 };
            let (kind, flags) = match number {
                0 => (frames::HEADERS, flags),
                _ => (frames::CONTINUATION, 0),
            };
            frames::write(&mut self.out, kind, flags | last, id, part);
        }
    }

    fn answered(&mut self, place: usize, ends: bool) {
        if !ends {
            return;
        }
        let heard = self.streams.get(place).is_some_and(|stream| stream.heard);
        if heard {
            self.close(place, false);
        } else {
            // Nobody needs what else there is (RFC 9113, 8.1).
            self.reset(place, Reason::NoError);
        }
    }

    fn close(&mut self, place: usize, here: bool) -> Option<Stream> {
        let stream = self.streams.close(place, here)?;
        self.fresh.retain(|fresh| *fresh != place);
        self.read(stream.unread);
        Some(stream)
    }

    /// So many bytes of a stream were read.
    fn is_read(&mut self, place: usize, length: u32) {
        let Some(stream) = self.streams.get(place).filter(|_| length > 0) else { return };
        stream.unread -= length.min(stream.unread);
        // Who has all, or wants no more, leaves nothing to send.
        if !stream.heard && !stream.body.as_ref().is_none_or(super::pipe::Sender::is_idle) {
            stream.owed += length;
            if stream.owed >= ANNOUNCED {
                stream.receives += i64::from(stream.owed);
                let owed = std::mem::take(&mut stream.owed);
                frames::window_update(&mut self.out, stream.id, owed);
            }
        }
        self.read(length);
    }

    fn read(&mut self, length: u32) {
        self.owed += length;
        if self.owed >= ALL_ANNOUNCED {
            self.receives += i64::from(self.owed);
            frames::window_update(&mut self.out, 0, std::mem::take(&mut self.owed));
        }
    }
}

/// The connection as a whole.
impl Connection {
    /// So many bytes were written.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.credit.sent(bytes as u64);
    }

    /// Whether the client takes more than when this was asked before.
    pub(super) fn is_wider(&mut self) -> bool {
        std::mem::take(&mut self.wider)
    }

    /// Asks whether the client is there.
    pub(super) fn ask(&mut self) {
        self.asked = true;
        frames::write(&mut self.out, frames::PING, 0, 0, &THERE);
    }

    /// Whether it was asked, and has not answered.
    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Takes nothing new, but what the client sends before it hears of that.
    pub(super) fn leave(&mut self) {
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Told;
            frames::goaway(&mut self.out, (1 << 31) - 1, Reason::NoError);
            frames::write(&mut self.out, frames::PING, 0, 0, &HEARD);
        }
    }

    /// Takes nothing new.
    pub(super) fn leave_now(&mut self) {
        self.stop(Reason::NoError);
    }

    fn stop(&mut self, reason: Reason) {
        if !matches!(self.leaving, Leaving::Now(_)) {
            self.leaving = Leaving::Now(self.streams.last());
            frames::goaway(&mut self.out, self.streams.last(), reason);
        }
    }

    /// Why it takes nothing new, if the client is to blame.
    pub(super) fn blamed(&self) -> Option<Fault> {
        self.blamed
    }

    /// Whether the client is told to go, and may not have heard it.
    pub(super) fn is_told(&self) -> bool {
        self.leaving == Leaving::Told
    }

    /// Whether it waits for requests of a client that has none.
    pub(super) fn is_idle(&self) -> bool {
        self.leaving == Leaving::No && self.streams.is_empty()
    }

    /// Whether all is answered, and nothing more is to come.
    pub(super) fn is_over(&self) -> bool {
        let ends = self.left || matches!(self.leaving, Leaving::Now(_));
        ends && self.streams.is_empty()
    }

    /// Gives back memory that few need.
    pub(super) fn rest(&mut self) {
        self.text.clear();
        for buffer in [&mut self.text, &mut self.partial] {
            if buffer.is_empty() && buffer.capacity() > MOST_KEPT {
                *buffer = Vec::new();
            }
        }
    }
}

fn flag(ends: bool) -> u8 {
    if ends { frames::END_STREAM } else { 0 }
}

/// How long the frame is that these bytes begin with, if it is there in full.
fn whole(bytes: &[u8]) -> Result<Option<usize>, Reason> {
    let Some(header) = Header::read(bytes) else { return Ok(None) };
    if header.length > MOST_PAYLOAD {
        return Err(Reason::FrameSize);
    }
    let length = frames::HEADER + header.length;
    Ok((bytes.len() >= length).then_some(length))
}
