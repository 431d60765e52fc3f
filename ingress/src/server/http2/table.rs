//! The tables of HPACK: one that all have, and what two ends remember of what they have said (RFC 7541, 2.3).

use std::collections::VecDeque;

/// Fields that have a number of their own (RFC 7541, Appendix A); the first one has 1.
pub(super) const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
/// Fields of answers that have a number with no value, from `accept-charset` on.
const FIRST_NAME: usize = 15;

/// The number of a name, if it has one.
pub(super) fn static_name(name: &[u8]) -> Option<usize> {
    let names = &STATIC[FIRST_NAME - 1..];
    let at = names.iter().position(|(known, _)| known.as_bytes() == name)?;
    Some(FIRST_NAME + at)
}

/// What a field takes of a table or of a limit, besides its bytes (RFC 7541, 4.1).
pub(super) const OVERHEAD: usize = 32;

/// The size of a field, as the RFC counts it.
pub(super) fn size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + OVERHEAD
}

/// What two ends remember, the newest field first.
#[derive(Debug)]
pub(super) struct Dynamic {
    fields: VecDeque<Field>,
    size: usize,
    most: usize,
}

#[derive(Debug)]
struct Field {
    /// Name and value.
    bytes: Box<[u8]>,
    name: usize,
    /// Of both, for who looks for it.
    hash: u32,
}

impl Field {
    fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.name)
    }
}

impl Dynamic {
    /// Of at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { fields: VecDeque::new(), size: 0, most }
    }

    /// Name and value of the field that was put there so many fields ago.
    pub(super) fn get(&self, age: usize) -> Option<(&[u8], &[u8])> {
        self.fields.get(age).map(Field::parts)
    }

    /// How many fields ago this one was put there.
    pub(super) fn find(&self, hash: u32, name: &[u8], value: &[u8]) -> Option<usize> {
        self.fields.iter().position(|field| field.hash == hash && field.parts() == (name, value))
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// From now on it has no more bytes than these.
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most;
        self.make_room(0);
    }

    /// Takes a field, whose name is so many of its bytes; one that does not fit leaves nothing behind (RFC 7541, 4.4).
    pub(super) fn put(&mut self, hash: u32, name: usize, bytes: Vec<u8>) {
        let size = bytes.len() + OVERHEAD;
        self.make_room(size);
        if size <= self.most {
            self.fields.push_front(Field { bytes: bytes.into(), name, hash });
            self.size += size;
        }
    }

    fn make_room(&mut self, size: usize) {
        while self.size + size > self.most {
            let Some(oldest) = self.fields.pop_back() else { return };
            self.size -= oldest.bytes.len() + OVERHEAD;
        }
    }
}
