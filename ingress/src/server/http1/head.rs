//! Heads of requests, out of a buffer that grows.

use std::ops::Range;

use memchr::memchr;

use crate::server::framing::{
    Body, Claims, Field, MAX_HEAD, RequestLine, Violation, line, request_line,
};

/// Reads a head line by line as they come; no byte is looked at again because more have come.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    /// Where the line begins that is not there in full, and up to where no LF is.
    begin: usize,
    looked: usize,
    request: Option<RequestLine>,
    claims: Claims,
    /// Name and value of each field; heads are not so long that places in them would need more bits.
    fields: Vec<[u16; 4]>,
}

const _: () = assert!(MAX_HEAD <= u16::MAX as usize);

/// Where a head ends that is there in full, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) length: usize,
    pub(crate) body: Body,
}

impl HeadReader {
    /// Looks at what has been added to `buffer`, which begins where the head does; `None`: more is to come.
    ///
    /// # Errors
    /// Up to where the bytes were good, and why the next one is not. What is wrong with a line shows at its end.
    pub(crate) fn take(&mut self, buffer: &[u8]) -> Result<Option<End>, (usize, Violation)> {
        let most = &buffer[..buffer.len().min(MAX_HEAD)];
        while let Some(lf) = memchr(b'\n', &most[self.looked..]) {
            let (begin, lf) = (self.begin, self.looked + lf);
            let taken = line(&most[begin..lf], |line| self.line(begin, line));
            (self.begin, self.looked) = (lf + 1, lf + 1);
            if let Some(body) = taken.map_err(|why| (lf, why))? {
                return Ok(Some(End { length: lf + 1, body }));
            }
        }
        self.looked = most.len();
        if buffer.len() > MAX_HEAD {
            return Err((MAX_HEAD, self.too_long(most)));
        }
        Ok(None)
    }

    fn too_long(&self, most: &[u8]) -> Violation {
        match self.request {
            Some(_) => Violation::HeadTooLong,
            // It may be the method that does not end.
            None if memchr(b' ', &most[self.begin..]).is_none() => Violation::RequestLine,
            None => Violation::TargetTooLong,
        }
    }

    /// Takes a line that begins there; says of the last one what follows it.
    fn line(&mut self, begin: usize, line: &[u8]) -> Result<Option<Body>, Violation> {
        let at = |part: Range<usize>| part.start + begin..part.end + begin;
        if self.request.is_none() {
            // One empty line before a request is an old habit (RFC 9112, 2.2).
            if !(line.is_empty() && begin == 0) {
                let RequestLine { method, target, http_10 } = request_line(line)?;
                let (method, target) = (at(method), at(target));
                self.request = Some(RequestLine { method, target, http_10 });
                self.claims = Claims::new(http_10);
            }
            return Ok(None);
        }
        if line.is_empty() {
            return self.claims.body().map(Some);
        }
        let Field { name, value } = self.claims.take(line)?;
        let (name, value) = (at(name), at(value));
        // It is below the limit of heads.
        let place = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
        self.fields.push([name.start, name.end, value.start, value.end].map(place));
        Ok(None)
    }

    /// The first line, as soon as it is there.
    pub(crate) fn request(&self) -> Option<&RequestLine> {
        self.request.as_ref()
    }

    /// Names and values so far, as places in the buffer.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        self.fields.iter().map(|places| {
            let [name, name_end, value, value_end] = places.map(usize::from);
            (name..name_end, value..value_end)
        })
    }

    /// Is to read the next one.
    pub(crate) fn reset(&mut self) {
        self.fields.clear();
        *self = Self { fields: std::mem::take(&mut self.fields), ..Self::default() };
    }
}
