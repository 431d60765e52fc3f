//! What may stand in the lines of an HTTP/1 request, as strictly as RFC 9112 lets one be.
//!
//! Parsers repair some of what is ambiguous: they prefer `Transfer-Encoding` to a `Content-Length`, join equal
//! lengths, take a bare LF for the end of a line. Somebody before or behind the gateway may repair differently,
//! and then takes for a request what was a body here. So what is not said in one way only is refused.

use std::fmt;
use std::ops::Range;

use http::StatusCode;
use http::uri::PathAndQuery;

/// Bytes of a head, lines' ends and all; browsers' stay below 16 KiB.
pub(crate) const MAX_HEAD: usize = 32 << 10;
/// Headers of a head, as many as browsers and proxies ever need.
pub(crate) const MAX_FIELDS: usize = 99;
/// Bytes of the line that says how long a chunk is; nobody uses what else may stand there.
pub(crate) const MAX_CHUNK_LINE: usize = 256;
/// Bytes of what follows the last chunk.
pub(crate) const MAX_TRAILERS: usize = 8 << 10;

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
    /// Neither a path nor an address.
    Target,
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
            Self::Target => "neither a path nor an address",
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
}

/// What a request's body is, as its head says (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// There is none.
    Nothing,
    /// So many bytes.
    Bytes(u64),
    Chunks,
}

/// The first line of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestLine {
    pub(crate) method: Range<usize>,
    pub(crate) target: Range<usize>,
    /// Not HTTP/1.1.
    pub(crate) http_10: bool,
}

/// A line with a name and a value, the latter without spaces around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: Range<usize>,
    pub(crate) value: Range<usize>,
}

/// What the fields of a head say of its body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Claims {
    http_10: bool,
    fields: usize,
    hosts: u8,
    length: Option<u64>,
    chunked: bool,
}

impl Claims {
    /// None yet.
    pub(crate) fn new(http_10: bool) -> Self {
        Self { http_10, ..Self::default() }
    }

    /// Takes one more line of a head, without its end.
    pub(crate) fn take(&mut self, line: &[u8]) -> Result<Field, Violation> {
        let field = field(line)?;
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(Violation::Fields);
        }
        let is = |known: &[u8]| line[field.name.clone()].eq_ignore_ascii_case(known);
        let value = &line[field.value.clone()];
        match field.name.len() {
            4 if is(b"host") => self.hosts = self.hosts.saturating_add(1),
            14 if is(b"content-length") => {
                if self.length.is_some() {
                    return Err(Violation::ContentLength);
                }
                self.length = Some(number(value, 10).ok_or(Violation::ContentLength)?);
            }
            17 if is(b"transfer-encoding") => {
                if self.chunked || self.http_10 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Violation::TransferEncoding);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(field)
    }

    /// What follows the head, which ends here.
    pub(crate) fn body(&self) -> Result<Body, Violation> {
        if self.hosts > 1 || (self.hosts == 0 && !self.http_10) {
            return Err(Violation::Host);
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Violation::LengthAndEncoding),
            (true, None) => Ok(Body::Chunks),
            (false, None | Some(0)) => Ok(Body::Nothing),
            (false, Some(length)) => Ok(Body::Bytes(length)),
        }
    }
}

/// A line without its end, out of what lies before an LF; `rule` says what is in it.
///
/// # Errors
/// That of `rule`, which must not let CR pass; or what is wrong with the end.
pub(crate) fn line<T>(
    before_lf: &[u8],
    rule: impl FnOnce(&[u8]) -> Result<T, Violation>,
) -> Result<T, Violation> {
    let Some(line) = before_lf.strip_suffix(b"\r") else { return Err(Violation::BareLf) };
    rule(line).map_err(|why| if line.contains(&b'\r') { Violation::BareCr } else { why })
}

/// `METHOD TARGET HTTP/1.1`, or `1.0`.
pub(crate) fn request_line(line: &[u8]) -> Result<RequestLine, Violation> {
    let wrong = Violation::RequestLine;
    let method = memchr::memchr(b' ', line).ok_or(wrong)?;
    let (rest, version) = line.split_at_checked(line.len().wrapping_sub(8)).ok_or(wrong)?;
    let target = rest.get(method + 1..).and_then(|it| it.strip_suffix(b" ")).ok_or(wrong)?;
    let printable = |byte: &u8| *byte > b' ' && *byte != 0x7f;
    if !is_token(&line[..method]) || target.is_empty() || !all(target, printable) {
        return Err(wrong);
    }
    if &line[..method] == b"CONNECT" {
        return Err(Violation::Connect);
    }
    let http_10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(wrong),
    };
    Ok(RequestLine { method: 0..method, target: method + 1..rest.len() - 1, http_10 })
}

/// `NAME: VALUE`.
pub(crate) fn field(line: &[u8]) -> Result<Field, Violation> {
    let name = line.iter().position(|byte| !TOKEN[usize::from(*byte)]).unwrap_or(line.len());
    if name == 0 || line.get(name) != Some(&b':') {
        return Err(match line.first() {
            Some(b' ' | b'\t') => Violation::Fold,
            _ => Violation::FieldName,
        });
    }
    let value = &line[name + 1..];
    if !all(value, is_text) {
        return Err(Violation::FieldValue);
    }
    let begin = line.len() - value.trim_ascii_start().len();
    Ok(Field { name: 0..name, value: begin..begin + value.trim_ascii().len() })
}

/// The size that a chunk's first line says, whatever else may stand there.
pub(crate) fn chunk_size(line: &[u8]) -> Result<u64, Violation> {
    let (size, extension) =
        line.split_at(line.iter().position(|byte| *byte == b';').unwrap_or(line.len()));
    number(size, 16).filter(|_| all(extension, is_text)).ok_or(Violation::Chunk)
}

/// The line behind a chunk.
pub(crate) fn chunk_end(line: &[u8]) -> Result<(), Violation> {
    if line.is_empty() { Ok(()) } else { Err(Violation::Chunk) }
}

/// A field behind the last chunk.
pub(crate) fn trailer(line: &[u8]) -> Result<Field, Violation> {
    let field = field(line)?;
    let framing = ["content-length", "transfer-encoding", "host"];
    let name = &line[field.name.clone()];
    if framing.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes())) {
        return Err(Violation::Trailer);
    }
    Ok(field)
}

/// Digits alone: no sign, no space.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = !text.is_empty() && text.chars().all(|digit| digit.is_digit(radix));
    digits.then(|| u64::from_str_radix(text, radix).ok()).flatten()
}

/// Without a branch for each byte, as almost all are good.
fn all(text: &[u8], good: impl Fn(&u8) -> bool) -> bool {
    text.iter().fold(true, |so_far, byte| so_far & good(byte))
}

/// Whether it may stand in a value.
fn is_text(byte: &u8) -> bool {
    *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f)
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| TOKEN[usize::from(*byte)])
}

/// Path and query of a target that begins with `/`, without what follows a `#`. `None`: it is none (RFC 9112, 3.2.1; RFC
/// 9113, 8.3.1).
pub(crate) fn path(target: &[u8]) -> Option<&[u8]> {
    if target.first() != Some(&b'/') {
        return None;
    }
    if target.iter().all(|byte| PLAIN[usize::from(*byte)]) {
        return Some(target);
    }
    let path = PathAndQuery::try_from(target).ok()?;
    target.get(..path.as_str().len())
}

/// What is as it should be in a path and a query (RFC 3986, 3.3 and 3.4); something else may be.
static PLAIN: [bool; 256] = alphanumeric_and(b"-._~%!$&'()*+,;=:@/?");

/// What names are made of (RFC 9110, 5.6.2).
static TOKEN: [bool; 256] = alphanumeric_and(b"!#$%&'*+-.^_`|~");

/// A table of letters and digits of ASCII, and others.
const fn alphanumeric_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::path;

    #[test]
    fn a_path_is_what_may_be_asked_of_every_endpoint() {
        for byte in 0..=u8::MAX {
            for (before, after) in [("/x", "y"), ("/x?y", "z"), ("/x#y", "z"), ("", "/x")] {
                let target = [before.as_bytes(), &[byte], after.as_bytes()].concat();
                let asked = Uri::try_from(&target[..]).ok().filter(|_| target[0] == b'/');
                let asked = asked.as_ref().and_then(|uri| uri.path_and_query());
                let asked = asked.map(|path| path.as_str().as_bytes());
                assert_eq!(path(&target), asked, "{}", target.escape_ascii());
            }
        }
    }
}
