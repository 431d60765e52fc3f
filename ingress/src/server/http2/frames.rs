//! Frames as they are on the wire (RFC 9113, 4 and 6). All numbers are in network byte order.

use std::fmt;

/// What a client says before its first frame (RFC 9113, 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame before its payload.
pub(super) const HEADER: usize = 9;
/// Bytes of a frame's payload: what each end takes where it has not said more.
pub(super) const MOST_PAYLOAD: usize = 16 << 10;
/// The largest window, and the largest number of a stream.
pub(super) const MOST_WINDOW: i64 = (1 << 31) - 1;
/// The window of a stream or a connection where nobody has said anything.
pub(super) const FIRST_WINDOW: i64 = 65_535;

pub(super) const DATA: u8 = 0x0;
pub(super) const HEADERS: u8 = 0x1;
pub(super) const PRIORITY: u8 = 0x2;
pub(super) const RST_STREAM: u8 = 0x3;
pub(super) const SETTINGS: u8 = 0x4;
pub(super) const PUSH_PROMISE: u8 = 0x5;
pub(super) const PING: u8 = 0x6;
pub(super) const GOAWAY: u8 = 0x7;
pub(super) const WINDOW_UPDATE: u8 = 0x8;
pub(super) const CONTINUATION: u8 = 0x9;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITIZED: u8 = 0x20;

/// Why a stream or a connection ends (RFC 9113, 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Reason {
    NoError,
    Protocol,
    Internal,
    FlowControl,
    StreamClosed,
    FrameSize,
    RefusedStream,
    Cancel,
    Compression,
    EnhanceYourCalm,
}

impl Reason {
    pub(super) fn code(self) -> u32 {
        match self {
            Self::NoError => 0x0,
            Self::Protocol => 0x1,
            Self::Internal => 0x2,
            Self::FlowControl => 0x3,
            Self::StreamClosed => 0x5,
            Self::FrameSize => 0x6,
            Self::RefusedStream => 0x7,
            Self::Cancel => 0x8,
            Self::Compression => 0x9,
            Self::EnhanceYourCalm => 0xb,
        }
    }
}

/// As the RFC writes it.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoError => "NO_ERROR",
            Self::Protocol => "PROTOCOL_ERROR",
            Self::Internal => "INTERNAL_ERROR",
            Self::FlowControl => "FLOW_CONTROL_ERROR",
            Self::StreamClosed => "STREAM_CLOSED",
            Self::FrameSize => "FRAME_SIZE_ERROR",
            Self::RefusedStream => "REFUSED_STREAM",
            Self::Cancel => "CANCEL",
            Self::Compression => "COMPRESSION_ERROR",
            Self::EnhanceYourCalm => "ENHANCE_YOUR_CALM",
        })
    }
}

/// Why a connection comes to an end, if its client is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Fault {
    Rule(Reason),
    /// Too many frames that ask for nothing.
    Nothing,
}

impl Fault {
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Rule(reason) => reason,
            Self::Nothing => Reason::EnhanceYourCalm,
        }
    }
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Self {
        Self::Rule(reason)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(reason) => write!(f, "HTTP/2: {reason}"),
            Self::Nothing => f.write_str("HTTP/2: too many frames that ask for nothing"),
        }
    }
}

/// What is before a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the payload.
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 0 is the connection.
    pub(super) stream: u32,
}

impl Header {
    /// Of bytes that begin a frame, if there are enough of them.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEADER>()?;
        Some(Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream: number(stream),
        })
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload of DATA or HEADERS without padding, and without what says how to prioritize (RFC 9113, 5.3.2: nobody
    /// does).
    ///
    /// # Errors
    /// It is not as long as it says.
    pub(super) fn unpadded(self, payload: &[u8]) -> Result<&[u8], Reason> {
        let (payload, padding) = if self.has(PADDED) {
            let (padding, payload) = payload.split_first().ok_or(Reason::FrameSize)?;
            (payload, usize::from(*padding))
        } else {
            (payload, 0)
        };
        let skipped = if self.kind == HEADERS && self.has(PRIORITIZED) { 5 } else { 0 };
        let payload = payload.get(skipped..).ok_or(Reason::FrameSize)?;
        let length = payload.len().checked_sub(padding).ok_or(Reason::Protocol)?;
        Ok(&payload[..length])
    }
}

/// A number of 31 bits; the first one means nothing.
pub(super) fn number(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes) & 0x7fff_ffff
}

/// Writes what comes before a payload of so many bytes, 16 MiB at most.
pub(super) fn begin(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [.., a, b, c] = (length as u64).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, d, e, f, g]);
}

/// Says how long the payload has become of the frame that begins there.
pub(super) fn set_length(frame: &mut [u8], length: usize) {
    let [.., a, b, c] = (length as u64).to_be_bytes();
    frame[..3].copy_from_slice(&[a, b, c]);
}

/// Writes a frame.
pub(super) fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    begin(out, payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
}

/// Ends a stream.
pub(super) fn reset(out: &mut Vec<u8>, stream: u32, reason: Reason) {
    write(out, RST_STREAM, 0, stream, &reason.code().to_be_bytes());
}

/// Says that streams behind `last` are not looked at.
pub(super) fn goaway(out: &mut Vec<u8>, last: u32, reason: Reason) {
    begin(out, 8, GOAWAY, 0, 0);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&reason.code().to_be_bytes());
}

/// Gives back so many bytes of a window.
pub(super) fn window_update(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    write(out, WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
}

/// What a client says of itself (RFC 9113, 6.5.2), as far as it matters here. What is not said stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// The least one, and the last one: in between a table forgets (RFC 7541, 4.2).
    pub(super) table_sizes: Option<[u32; 2]>,
    pub(super) window: Option<u32>,
}

impl Settings {
    /// # Errors
    /// Its length is wrong, or a value may not be.
    pub(super) fn read(payload: &[u8]) -> Result<Self, Reason> {
        let (each, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(Reason::FrameSize);
        }
        let mut settings = Self::default();
        for [a, b, value @ ..] in each {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*a, *b]) {
                0x1 => {
                    let least = settings.table_sizes.map_or(value, |[least, _]| least.min(value));
                    settings.table_sizes = Some([least, value]);
                }
                // ENABLE_PUSH, and ENABLE_CONNECT_PROTOCOL of RFC 8441
                0x2 | 0x8 if value > 1 => return Err(Reason::Protocol),
                0x4 if i64::from(value) > MOST_WINDOW => return Err(Reason::FlowControl),
                0x4 => settings.window = Some(value),
                // MAX_FRAME_SIZE: no frame of ours is longer than what everybody takes.
                0x5 if !(1 << 14..1 << 24).contains(&value) => return Err(Reason::Protocol),
                _ => {}
            }
        }
        Ok(settings)
    }
}

/// Writes what the gateway says of itself.
pub(super) fn settings(out: &mut Vec<u8>, streams: u32, window: u32, head: u32) {
    let said: [(u16, u32); 4] = [(0x3, streams), (0x4, window), (0x6, head), (0x8, 1)];
    begin(out, 6 * said.len(), SETTINGS, 0, 0);
    for (name, value) in said {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frames_header_is_read_as_it_is_written() {
        let mut out = Vec::new();
        write(&mut out, PING, ACK, 0x7fff_fffe, b"12345678");
        let header = Header { length: 8, kind: PING, flags: ACK, stream: 0x7fff_fffe };
        assert_eq!(Header::read(&out), Some(header));
        out[5] |= 0x80;
        assert_eq!(Header::read(&out), Some(header), "a bit that means nothing");
        assert_eq!(Header::read(&out[..8]), None);
    }

    #[test]
    fn padding_is_no_longer_than_its_frame() {
        for (kind, flags, payload, rest) in [
            (DATA, 0, &b"\x01ab"[..], Ok(&b"\x01ab"[..])),
            (DATA, PADDED, b"\x01ab", Ok(b"a")),
            (DATA, PADDED, b"\x02ab", Ok(b"")),
            (DATA, PADDED, b"\x03ab", Err(Reason::Protocol)),
            (DATA, PADDED, b"", Err(Reason::FrameSize)),
            (HEADERS, PRIORITIZED, b"12345a", Ok(b"a")),
            (HEADERS, PRIORITIZED, b"1234", Err(Reason::FrameSize)),
            (HEADERS, PADDED | PRIORITIZED, b"\x0112345ab", Ok(b"a")),
            (HEADERS, PADDED | PRIORITIZED, b"\x0312345ab", Err(Reason::Protocol)),
        ] {
            let header = Header { length: payload.len(), kind, flags, stream: 1 };
            assert_eq!(header.unpadded(payload), rest, "{kind} {flags:#x} {payload:?}");
        }
    }
}
