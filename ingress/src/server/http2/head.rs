//! Heads of requests, out of fields as they are decoded (RFC 9113, 8.2 and 8.3).

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};

use super::HEAD;
use super::frames::Reason;
use super::table;
use crate::message::{Fields, Head, Known, Span};
use crate::server::framing;

/// What of a head must not be exceeded by more than this factor; a client of a smaller one is told so.
const FAR: usize = 4;

/// A request as its head has it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) head: Head,
    /// `:protocol` (RFC 8441).
    pub(super) protocol: Option<Bytes>,
    /// `Content-Length`.
    pub(super) length: Option<u64>,
    /// It waits to be told to go on (RFC 9110, 10.1.1).
    pub(super) expects: bool,
}

/// Why a request is none.
#[derive(Debug)]
pub(in crate::server) enum Bad {
    Malformed,
    /// With as much of the head as may be there, if that is one.
    TooLong(Option<Box<Head>>),
}

impl Bad {
    /// What it is answered with, if it is.
    pub(in crate::server) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::TooLong(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "HTTP/2: a malformed request",
            Self::TooLong(_) => "HTTP/2: a head that is too long",
        })
    }
}

/// A head as far as it is decoded.
#[derive(Debug, Default)]
pub(super) struct Reading {
    fields: Fields,
    method: Option<Method>,
    scheme: bool,
    path: Option<Span>,
    authority: Option<Span>,
    protocol: Option<Bytes>,
    length: Option<u64>,
    expects: bool,
    /// Fields have come that are no pseudo-headers.
    regular: bool,
    malformed: bool,
    /// Octets as RFC 9113, 10.5.1 counts them.
    size: usize,
}

impl Reading {
    pub(super) fn new() -> Self {
        Self { fields: Fields::new(), ..Self::default() }
    }

    /// Takes a field. What is wrong with it is said at the end, as all of a block must be read.
    ///
    /// # Errors
    /// It is so much too long that nothing more is read.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), Reason> {
        self.size += table::size(name, value);
        if self.size > FAR * HEAD as usize {
            return Err(Reason::EnhanceYourCalm);
        }
        if self.size <= HEAD as usize && !self.malformed {
            self.malformed = self.field(name, value).is_none();
        }
        Ok(())
    }

    /// `None`: it may not be there.
    fn field(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        if let [b':', rest @ ..] = name {
            return if self.regular { None } else { self.pseudo(rest, value) };
        }
        self.regular = true;
        let known = Known::of(name);
        if !is_value(value) || (known.is_none() && !is_name(name)) {
            return None;
        }
        match known {
            // Recognised in any case.
            Some(known) if known.as_str().as_bytes() != name => None,
            Some(
                Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::TransferEncoding
                | Known::Upgrade,
            ) => None,
            Some(Known::Te) if !value.eq_ignore_ascii_case(b"trailers") => None,
            Some(Known::ContentLength) if self.length.is_some() => None,
            Some(known) => {
                match known {
                    Known::ContentLength => self.length = Some(number(value)?),
                    Known::Expect => self.expects |= value.eq_ignore_ascii_case(b"100-continue"),
                    _ => {}
                }
                self.fields.push_known(known, value);
                Some(())
            }
            None => {
                self.fields.push(name, value);
                Some(())
            }
        }
    }

    /// Each of them once, and not without a value.
    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        match name {
            b"method" if self.method.is_none() => {
                self.method = Some(Method::from_bytes(value).ok()?);
            }
            b"scheme" if !self.scheme => {
                let is = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                self.scheme = !value.is_empty() && value.iter().all(is);
                return self.scheme.then_some(());
            }
            b"path" if self.path.is_none() => {
                let path = if value == b"*" { value } else { framing::path(value)? };
                self.path = Some(self.fields.keep(path));
            }
            b"authority" if self.authority.is_none() && is_authority(value) => {
                self.authority = Some(self.fields.keep(value));
            }
            b"protocol" if self.protocol.is_none() && is_value(value) && !value.is_empty() => {
                self.protocol = Some(Bytes::copy_from_slice(value));
            }
            _ => return None,
        }
        Some(())
    }

    /// The request, when all has come; `ends`: with no body.
    pub(super) fn finish(mut self, ends: bool) -> Result<Asked, Bad> {
        if self.malformed {
            return Err(Bad::Malformed);
        }
        if self.size > HEAD as usize {
            let (Some(method), Some(path)) = (self.method, self.path) else {
                return Err(Bad::TooLong(None));
            };
            let head = Head::new(method, Version::HTTP_2, path, self.authority, self.fields);
            return Err(Bad::TooLong(head.map(Box::new)));
        }
        let method = self.method.ok_or(Bad::Malformed)?;
        let connect = method == Method::CONNECT;
        let plain = connect && self.protocol.is_none();
        // A CONNECT has nothing but its authority (RFC 9113, 8.5); one with a protocol is like others (RFC 8441, 4).
        let whole = match (self.scheme, self.path) {
            (false, None) if plain => self.authority.is_some(),
            (true, Some(path)) if !plain => {
                let all = self.fields.bytes(path) == b"*";
                (!all || method == Method::OPTIONS)
                    && (self.protocol.is_none() || connect && self.authority.is_some())
            }
            _ => false,
        };
        let short = ends && self.length.is_some_and(|length| length > 0);
        if !whole || short {
            return Err(Bad::Malformed);
        }
        let path = self.path.unwrap_or_else(|| self.fields.keep(b"/"));
        let head = Head::new(method, Version::HTTP_2, path, self.authority, self.fields);
        let head = head.ok_or(Bad::Malformed)?;
        let (protocol, length, expects) = (self.protocol, self.length, self.expects && !ends);
        Ok(Asked { head, protocol, length, expects })
    }

    /// What is behind a body, if it may be there (RFC 9113, 8.1).
    pub(super) fn into_trailers(self) -> Option<HeaderMap> {
        let pseudo = self.method.is_some()
            || self.scheme
            || self.path.is_some()
            || self.authority.is_some()
            || self.protocol.is_some();
        let good = !self.malformed && !pseudo && self.size <= HEAD as usize;
        good.then(|| HeaderMap::from(&self.fields))
    }
}

/// Digits and nothing else.
fn number(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    if digits { str::from_utf8(value).ok()?.parse().ok() } else { None }
}

/// A token in lower case (RFC 9113, 8.2.1).
fn is_name(name: &[u8]) -> bool {
    let is =
        |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9') || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is)
}

/// Without control characters, and without space around it.
fn is_value(value: &[u8]) -> bool {
    let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !space(value.first())
        && !space(value.last())
        && value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
}

/// A name or an address, and perhaps a port; what it means is found out later.
fn is_authority(value: &[u8]) -> bool {
    let is = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%@".contains(byte);
    !value.is_empty() && value.iter().all(is)
}
