//! Bodies of requests, out of a buffer that is read into.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use memchr::memchr;

use crate::server::framing::{
    self, Body, Field, MAX_CHUNK_LINE, MAX_TRAILERS, Violation, chunk_end, chunk_size, trailer,
};

/// Takes a body apart.
#[derive(Debug, Default)]
pub(crate) struct BodyReader {
    left: Left,
    /// Of a line that is not there in full: up to where no LF is.
    looked: usize,
    /// Bytes of trailers that have been taken.
    taken: usize,
    trailers: HeaderMap,
}

/// What of a body is to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Left {
    #[default]
    Nothing,
    Bytes(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

/// A part of a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Never empty.
    Data(Bytes),
    /// What is behind the last chunk, if there is anything. Nothing comes behind that.
    Trailers(HeaderMap),
}

impl BodyReader {
    pub(crate) fn new(body: Body) -> Self {
        let left = match body {
            Body::Nothing => Left::Nothing,
            Body::Bytes(length) => Left::Bytes(length),
            Body::Chunks => Left::ChunkSize,
        };
        Self { left, ..Self::default() }
    }

    /// Whether all of it was taken.
    pub(crate) fn is_over(&self) -> bool {
        self.left == Left::Nothing
    }

    /// How many bytes are to come, where that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self.left {
            Left::Nothing => Some(0),
            Left::Bytes(left) => Some(left),
            _ => None,
        }
    }

    /// Takes the next part out of what was read; `None`: it is not there, or there is none.
    ///
    /// # Errors
    /// How much of what is left of `read` was good, and why the next byte is not. What is wrong with a line shows
    /// at its end.
    pub(crate) fn take(&mut self, read: &mut BytesMut) -> Result<Option<Part>, (usize, Violation)> {
        while !read.is_empty() {
            match self.left {
                Left::Nothing => return Ok(None),
                Left::Bytes(left) => {
                    let (data, left) = part(read, left);
                    self.left = if left == 0 { Left::Nothing } else { Left::Bytes(left) };
                    return Ok(Some(Part::Data(data)));
                }
                Left::Chunk(left) => {
                    let (data, left) = part(read, left);
                    self.left = if left == 0 { Left::ChunkEnd } else { Left::Chunk(left) };
                    return Ok(Some(Part::Data(data)));
                }
                Left::ChunkSize => {
                    let size = self.line(read, MAX_CHUNK_LINE, Violation::Chunk, chunk_size)?;
                    self.left = match size {
                        None => return Ok(None),
                        Some((_, 0)) => Left::Trailers,
                        Some((_, size)) => Left::Chunk(size),
                    };
                }
                Left::ChunkEnd => {
                    let Some(_) = self.line(read, 2, Violation::Chunk, chunk_end)? else {
                        return Ok(None);
                    };
                    self.left = Left::ChunkSize;
                }
                Left::Trailers => {
                    let most = MAX_TRAILERS - self.taken;
                    let read = self.line(read, most, Violation::Trailer, |line| {
                        Ok(if line.is_empty() { None } else { Some(trailer(line)?) })
                    })?;
                    match read {
                        None => return Ok(None),
                        Some((line, Some(field))) => self.keep(&line, field),
                        Some((_, None)) => {
                            self.left = Left::Nothing;
                            let trailers = std::mem::take(&mut self.trailers);
                            return Ok((!trailers.is_empty()).then_some(Part::Trailers(trailers)));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    /// Takes a line out of what was read, if all of it is there, with what `rule` makes of it.
    fn line<T>(
        &mut self,
        read: &mut BytesMut,
        most: usize,
        too_long: Violation,
        rule: impl FnOnce(&[u8]) -> Result<T, Violation>,
    ) -> Result<Option<(BytesMut, T)>, (usize, Violation)> {
        let near = &read[..read.len().min(most)];
        let Some(lf) = memchr(b'\n', &near[self.looked..]) else {
            self.looked = near.len();
            return if read.len() > most { Err((most, too_long)) } else { Ok(None) };
        };
        let lf = self.looked + lf;
        let made = framing::line(&read[..lf], rule).map_err(|why| (lf, why))?;
        self.looked = 0;
        Ok(Some((read.split_to(lf + 1), made)))
    }

    fn keep(&mut self, line: &[u8], field: Field) {
        self.taken += line.len();
        let name = HeaderName::from_bytes(&line[field.name]);
        let value = HeaderValue::from_bytes(&line[field.value]);
        // They are what the rules of a head let pass.
        if let (Ok(name), Ok(value)) = (name, value) {
            self.trailers.append(name, value);
        }
    }
}

/// As much as is there of what has so many bytes to come, and how many are to come then.
fn part(read: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let length = usize::try_from(left).map_or(read.len(), |left| left.min(read.len()));
    let data = if length == read.len() { read.split() } else { read.split_to(length) };
    (data.freeze(), left - length as u64)
}
