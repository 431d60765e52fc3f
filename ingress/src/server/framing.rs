//! Where the requests of an HTTP/1 connection begin and end, as strictly as RFC 9112 lets one be.
//!
//! The parser behind it repairs some of what is ambiguous: it prefers `Transfer-Encoding` to a
//! `Content-Length`, joins equal lengths, takes a bare LF for the end of a line. Somebody before or behind the
//! gateway may repair differently, and then takes for a request what was a body here. So the bytes pass by
//! this first, and what is not said in one way only is refused.

use std::fmt;

use http::StatusCode;

/// Bytes of a head, lines' ends and all; browsers' stay below 16 KiB.
pub(crate) const MAX_HEAD: usize = 32 << 10;
/// Headers of a head, as many as browsers and proxies ever need. One more is for whoever answers, and there the parser
/// ends, too.
pub(crate) const MAX_FIELDS: usize = 99;
/// Bytes of the line that says how long a chunk is; nobody uses what else may stand there.
const MAX_CHUNK_LINE: usize = 256;
/// Bytes of what follows the last chunk.
const MAX_TRAILERS: usize = 8 << 10;

/// Why bytes are not taken for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// A line ends without CR.
    BareLf,
    /// CR where no line ends.
    BareCr,
    /// Not `METHOD TARGET HTTP/1.0` or `1.1`.
    RequestLine,
    /// CONNECT: a gateway is no proxy for clients to choose.
    Connect,
    /// A header goes on in the next line.
    Fold,
    /// No colon, or a name with what no name may have, such as a space before the colon.
    FieldName,
    /// A control character.
    FieldValue,
    /// More than one `Content-Length`, or none that is a number.
    ContentLength,
    /// `Content-Length` and `Transfer-Encoding`.
    LengthAndEncoding,
    /// `Transfer-Encoding` other than `chunked`, more than once, or of HTTP/1.0.
    TransferEncoding,
    /// More than one `Host`, or none with HTTP/1.1.
    Host,
    /// The request line alone is longer than [`MAX_HEAD`].
    TargetTooLong,
    /// [`MAX_HEAD`].
    HeadTooLong,
    /// [`MAX_FIELDS`].
    Fields,
    /// A head that takes too long to come.
    Slow,
    /// A chunk that does not begin with its size or end where that says.
    Chunk,
    /// What must not come after a body, or too much of it.
    Trailer,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BareLf => "a line ends without CR",
            Self::BareCr => "CR where no line ends",
            Self::RequestLine => "not a request line of HTTP/1.0 or HTTP/1.1",
            Self::Connect => "CONNECT",
            Self::Fold => "a header that is folded",
            Self::FieldName => "not a header's name and a colon",
            Self::FieldValue => "a control character in a header",
            Self::ContentLength => "Content-Length twice, or not a number",
            Self::LengthAndEncoding => "Content-Length and Transfer-Encoding",
            Self::TransferEncoding => "a Transfer-Encoding other than chunked",
            Self::Host => "Host missing or twice",
            Self::TargetTooLong => "a request line that is too long",
            Self::HeadTooLong => "a head that is too long",
            Self::Fields => "too many headers",
            Self::Slow => "a head that comes too slowly",
            Self::Chunk => "not a chunk",
            Self::Trailer => "trailers that may not be there",
        })
    }
}

impl Violation {
    /// What it is answered with.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLong | Self::Fields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// What the parser gets in place of what is wrong. A head that is only too long is brought to an end with it, so
    /// that somebody answers; else it is a byte that is wrong everywhere, and the end of a head, before which the parser does
    /// not look.
    pub(crate) fn poison(self) -> &'static [u8] {
        match self {
            Self::TargetTooLong => b" HTTP/1.1\r\n\r\n",
            Self::HeadTooLong => b"\r\n\r\n",
            // The line that is one too many has come but for its LF.
            Self::Fields => b"\n\r\n",
            _ => b"\0\r\n\r\n",
        }
    }
}

/// Follows the bytes of one connection.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    state: State,
    /// The line so far, where lines are read.
    line: Vec<u8>,
    /// Bytes of the head or the trailers so far.
    taken: usize,
    head: Head,
    /// Requests of which anything has come.
    begun: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a request.
    #[default]
    Start,
    RequestLine,
    Fields,
    /// So many bytes of a body are to come.
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
}

/// What the fields of a head say of its body.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    http_10: bool,
    fields: usize,
    hosts: u8,
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    /// Whether a head has begun and not ended.
    pub(crate) fn in_head(&self) -> bool {
        matches!(self.state, State::RequestLine | State::Fields)
    }

    /// Whether nothing of a request is to come that has begun.
    pub(crate) fn is_between(&self) -> bool {
        self.state == State::Start
    }

    /// Requests of which anything has come.
    pub(crate) fn begun(&self) -> u64 {
        self.begun
    }

    /// Takes what has arrived; or says how much of it was good, and why the next byte is not.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), (usize, Violation)> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.state {
                State::Body(left) => {
                    let (passed, left) = skip(rest, left);
                    self.state = if left == 0 { State::Start } else { State::Body(left) };
                    passed
                }
                State::ChunkData(left) => {
                    let (passed, left) = skip(rest, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    passed
                }
                _ => self.lines(rest).map_err(|(passed, violation)| (at + passed, violation))?,
            };
        }
        Ok(())
    }

    /// Takes the rest of a line, if it is there; what is wrong shows at the line's last byte.
    fn lines(&mut self, bytes: &[u8]) -> Result<usize, (usize, Violation)> {
        let (limit, too_long) = match self.state {
            State::ChunkSize => (MAX_CHUNK_LINE, Violation::Chunk),
            State::ChunkEnd => (2, Violation::Chunk),
            State::Trailers => (MAX_TRAILERS, Violation::Trailer),
            State::Fields => (MAX_HEAD, Violation::HeadTooLong),
            _ => (MAX_HEAD, Violation::TargetTooLong),
        };
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let passed = end.map_or(bytes.len(), |end| end + 1);
        if self.state == State::Start {
            self.state = State::RequestLine;
            self.begun += 1;
        }
        if self.taken + passed > limit {
            return Err((limit - self.taken, too_long));
        }
        self.taken += passed;
        let Some(end) = end else {
            self.line.extend_from_slice(bytes);
            return Ok(passed);
        };
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(&bytes[..end]);
        let result = match line.strip_suffix(b"\r") {
            None => Err(Violation::BareLf),
            Some(line) if line.contains(&b'\r') => Err(Violation::BareCr),
            Some(line) => self.line(line),
        };
        line.clear();
        self.line = line;
        result.map_err(|violation| (end, violation))?;
        Ok(passed)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Violation> {
        match self.state {
            // One empty line before a request is an old habit (RFC 9112, 2.2).
            State::RequestLine if line.is_empty() && self.taken == 2 => {}
            State::RequestLine => {
                self.head = Head { http_10: request_line(line)?, ..Head::default() };
                self.state = State::Fields;
            }
            State::Fields if line.is_empty() => {
                self.state = self.head.body()?;
                self.taken = 0;
            }
            State::Fields => self.head.field(line)?,
            State::ChunkSize => {
                self.state = match chunk_size(line)? {
                    0 => State::Trailers,
                    size => State::ChunkData(size),
                };
                self.taken = 0;
            }
            State::ChunkEnd => {
                if !line.is_empty() {
                    return Err(Violation::Chunk);
                }
                self.state = State::ChunkSize;
                self.taken = 0;
            }
            State::Trailers if line.is_empty() => {
                self.state = State::Start;
                self.taken = 0;
            }
            State::Trailers => trailer(line)?,
            State::Start | State::Body(_) | State::ChunkData(_) => {}
        }
        Ok(())
    }
}

impl Head {
    fn field(&mut self, line: &[u8]) -> Result<(), Violation> {
        let (name, value) = field(line)?;
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(Violation::Fields);
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("host") {
            self.hosts = self.hosts.saturating_add(1);
        } else if is("content-length") {
            if self.length.is_some() {
                return Err(Violation::ContentLength);
            }
            self.length = Some(number(value, 10).ok_or(Violation::ContentLength)?);
        } else if is("transfer-encoding") {
            if self.chunked || self.http_10 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::TransferEncoding);
            }
            self.chunked = true;
        }
        Ok(())
    }

    /// What follows the head.
    fn body(&self) -> Result<State, Violation> {
        if self.hosts > 1 || (self.hosts == 0 && !self.http_10) {
            return Err(Violation::Host);
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Violation::LengthAndEncoding),
            (true, None) => Ok(State::ChunkSize),
            (false, None | Some(0)) => Ok(State::Start),
            (false, Some(length)) => Ok(State::Body(length)),
        }
    }
}

/// How many of the bytes are of a body that has so many to come, and how many are then.
fn skip(bytes: &[u8], left: u64) -> (usize, u64) {
    let passed = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (passed, left - passed as u64)
}

/// Whether it is of HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Violation> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    let printable = |byte: &u8| *byte > b' ' && *byte != 0x7f;
    if !is_token(method) || target.is_empty() || !target.iter().all(printable) {
        return Err(Violation::RequestLine);
    }
    if method == b"CONNECT" {
        return Err(Violation::Connect);
    }
    match version {
        b"HTTP/1.1" => Ok(false),
        b"HTTP/1.0" => Ok(true),
        _ => Err(Violation::RequestLine),
    }
}

/// Name and value.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(Violation::Fold);
    }
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Violation::FieldName)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err(Violation::FieldName);
    }
    if !value.iter().all(is_text) {
        return Err(Violation::FieldValue);
    }
    Ok((name, value.trim_ascii()))
}

fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let (size, extension) =
        line.split_at(line.iter().position(|byte| *byte == b';').unwrap_or(line.len()));
    number(size, 16).filter(|_| extension.iter().all(is_text)).ok_or(Violation::Chunk)
}

fn trailer(line: &[u8]) -> Result<(), Violation> {
    let (name, _) = field(line)?;
    let framing = ["content-length", "transfer-encoding", "host"];
    if framing.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes())) {
        return Err(Violation::Trailer);
    }
    Ok(())
}

/// Digits alone: no sign, no space.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = !text.is_empty() && text.chars().all(|digit| digit.is_digit(radix));
    digits.then(|| u64::from_str_radix(text, radix).ok()).flatten()
}

/// Whether it may stand in a value.
fn is_text(byte: &u8) -> bool {
    *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f)
}

fn is_token(text: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows however the bytes arrive: all at once, and one by one.
    fn take(bytes: &[u8]) -> Result<Framing, Violation> {
        let mut at_once = Framing::default();
        let whole = at_once.take(bytes);
        let mut slowly = Framing::default();
        let mut one_by_one = Ok(());
        for (at, byte) in bytes.iter().enumerate() {
            if let Err((passed, violation)) = slowly.take(&[*byte]) {
                one_by_one = Err((at + passed, violation));
                break;
            }
        }
        assert_eq!(whole, one_by_one, "{}", bytes.escape_ascii());
        whole.map(|()| at_once).map_err(|(_, violation)| violation)
    }

    #[test]
    fn requests_that_say_one_thing_pass() {
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET http://a/x?y HTTP/1.1\r\nhost:a\r\nX: \ta b\t\r\nEmpty:\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\n\r\0",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\n\n\r\0\r\n0\r\nT: 1\r\n\r\n",
        ] {
            let framing =
                take(request.as_bytes()).unwrap_or_else(|why| panic!("{request:?}: {why}"));
            assert_eq!(framing.state, State::Start, "{request:?}");
            take(request.repeat(2).as_bytes()).unwrap();
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        use Violation::*;
        let post = "POST / HTTP/1.1\r\nHost: a\r\n";
        let chunked = format!("{post}Transfer-Encoding: chunked\r\n");
        for (request, why) in [
            ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), BareLf),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(), BareLf),
            ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n".to_owned(), BareCr),
            ("\r\n\r\nGET / HTTP/1.1\r\n".to_owned(), RequestLine),
            ("GET  / HTTP/1.1\r\n".to_owned(), RequestLine),
            ("GET /\t HTTP/1.1\r\n".to_owned(), RequestLine),
            ("GET / HTTP/1.1 \r\n".to_owned(), RequestLine),
            ("GET / HTTP/2.0\r\n".to_owned(), RequestLine),
            ("GET /\r\n".to_owned(), RequestLine),
            ("G(T / HTTP/1.1\r\n".to_owned(), RequestLine),
            ("CONNECT a:443 HTTP/1.1\r\n".to_owned(), Connect),
            (format!("{post}A: b\r\n c\r\n\r\n"), Fold),
            (format!("{post}Content-Length : 5\r\n\r\n"), FieldName),
            (format!("{post}Content Length: 5\r\n\r\n"), FieldName),
            (format!("{post}: 5\r\n\r\n"), FieldName),
            (format!("{post}no colon\r\n\r\n"), FieldName),
            (format!("{post}A: \0\r\n\r\n"), FieldValue),
            (format!("{post}Content-Length: 5\r\nContent-Length: 5\r\n\r\n"), ContentLength),
            (format!("{post}Content-Length: 5, 5\r\n\r\n"), ContentLength),
            (format!("{post}Content-Length: +5\r\n\r\n"), ContentLength),
            (format!("{post}Content-Length: \r\n\r\n"), ContentLength),
            (format!("{post}Content-Length: 99999999999999999999\r\n\r\n"), ContentLength),
            (format!("{chunked}Content-Length: 5\r\n\r\n"), LengthAndEncoding),
            (
                format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
                LengthAndEncoding,
            ),
            (format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n"), TransferEncoding),
            (format!("{post}Transfer-Encoding: identity\r\n\r\n"), TransferEncoding),
            (format!("{post}Transfer-Encoding: xchunked\r\n\r\n"), TransferEncoding),
            (format!("{chunked}Transfer-Encoding: chunked\r\n\r\n"), TransferEncoding),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), TransferEncoding),
            (format!("{post}Host: b\r\n\r\n"), Host),
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), Host),
            (format!("GET /{}", "a".repeat(MAX_HEAD)), TargetTooLong),
            (format!("{post}A: {}\r\n\r\n", "b".repeat(MAX_HEAD)), HeadTooLong),
            (format!("{post}{}\r\n\r\n", "A:\r\n".repeat(MAX_FIELDS)), Fields),
            (format!("{post}Content-Length: 0x5\r\n\r\n"), ContentLength),
            (format!("{post}Content-Length: 5 5\r\n\r\n"), ContentLength),
            (format!("{post}Content-Length: -5\r\n\r\n"), ContentLength),
            (format!("{post}Content-Length: 5\r\n 5\r\n\r\n"), Fold),
            (format!("{post}Transfer-Encoding: chunked, chunked\r\n\r\n"), TransferEncoding),
            (format!("{post}Transfer-Encoding: \x0bchunked\r\n\r\n"), FieldValue),
            (format!("{post}Transfer-Encoding: \"chunked\"\r\n\r\n"), TransferEncoding),
            (format!("{post}Transfer\u{131}-Encoding: chunked\r\n\r\n"), FieldName),
            (format!("{post}A: b\r\r\n\r\n"), BareCr),
            (format!("{chunked}\r\n-1\r\n"), Chunk),
            (format!("{chunked}\r\n0x1\r\n"), Chunk),
            (format!("{chunked}\r\n 1\r\n"), Chunk),
            (format!("{chunked}\r\n1 \r\n"), Chunk),
            (format!("{chunked}\r\n\r\n"), Chunk),
            (format!("{chunked}\r\n10000000000000000\r\n"), Chunk),
            (format!("{chunked}\r\n1\nA\r\n"), BareLf),
            (format!("{chunked}\r\n1;a\n\r\n"), BareLf),
            (format!("{chunked}\r\n1;a\rb\r\n"), BareCr),
            (format!("{chunked}\r\n1;a=\0\r\n"), Chunk),
            (format!("{chunked}\r\n\u{661}\r\n"), Chunk),
            (format!("{chunked}\r\n1\r\nA0\r\n\r\n"), Chunk),
            (format!("{chunked}\r\n1\r\nA\n0\r\n\r\n"), BareLf),
            (format!("{chunked}\r\nfffffffffffffffff\r\n"), Chunk),
            (format!("{chunked}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"), Trailer),
            (format!("{chunked}\r\n0\r\nHost: b\r\n\r\n"), Trailer),
            (format!("{chunked}\r\n0\r\nA: b\r\n c\r\n\r\n"), Fold),
            (format!("{chunked}\r\n1\r\nAB\r\n"), Chunk),
            (format!("{chunked}\r\n1;{}\r\n", "a".repeat(MAX_CHUNK_LINE)), Chunk),
            (format!("{chunked}\r\n0\r\nContent-Length: 5\r\n\r\n"), Trailer),
            (format!("{chunked}\r\n0\r\nA: {}\r\n", "b".repeat(MAX_TRAILERS)), Trailer),
        ] {
            let taken = take(request.as_bytes());
            assert_eq!(taken.err(), Some(why), "{:?}", &request[..request.len().min(120)]);
        }
        take(format!("{post}{}\r\n", "A:\r\n".repeat(MAX_FIELDS - 1)).as_bytes()).unwrap();
    }

    #[test]
    fn requests_are_counted_when_they_begin() {
        let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
        for (bytes, begun) in [("", 0), ("P", 1), (request, 1), (&format!("{request}\r"), 2)] {
            assert_eq!(take(bytes.as_bytes()).unwrap().begun(), begun, "{bytes:?}");
        }
        assert_eq!(take(request.repeat(3).as_bytes()).unwrap().begun(), 3);
    }
}
