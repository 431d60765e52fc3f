//! Header fields in their order: where they lie, and no map of them.

use std::cell::RefCell;
use std::fmt;
use std::io::Write as _;
use std::ops::Range;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::names::Known;
use super::value::Value;

/// The name of a field, compared without regard to case.
#[derive(Clone, Copy, Debug)]
pub enum Name<'a> {
    /// One that is known.
    Known(Known),
    /// Another one.
    Other(&'a str),
}

impl From<Known> for Name<'_> {
    fn from(known: Known) -> Self {
        Self::Known(known)
    }
}

impl<'a> From<&'a str> for Name<'a> {
    fn from(name: &'a str) -> Self {
        Known::of(name.as_bytes()).map_or(Self::Other(name), Self::Known)
    }
}

impl<'a> From<&'a HeaderName> for Name<'a> {
    fn from(name: &'a HeaderName) -> Self {
        name.as_str().into()
    }
}

/// A piece of what a [`Fields`] has: of its block, or of its own bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// With [`OWN`], as `end`, if it is of the own bytes.
    start: u32,
    end: u32,
}

const OWN: u32 = 1 << 31;
/// Of the value of a field that is to be removed, in [`Edits`].
const NOTHING: Span = Span { start: u32::MAX, end: u32::MAX };

impl Span {
    /// A piece of it, as a range of bytes from its beginning.
    ///
    /// # Panics
    /// The piece is longer than it.
    #[must_use]
    pub fn part(self, part: Range<usize>) -> Self {
        let (start, end) = (self.start + offset(part.start), self.start + offset(part.end));
        assert!(start <= end && end <= self.end, "it is a part");
        Self { start, end }
    }

    fn of_own(bytes: Range<usize>) -> Self {
        Self { start: offset(bytes.start) | OWN, end: offset(bytes.end) | OWN }
    }
}

fn offset(length: usize) -> u32 {
    let offset = u32::try_from(length).ok().filter(|offset| *offset < OWN);
    offset.expect("heads are shorter than 2 GiB")
}

/// The field's name is not [`Known`].
const OTHER: u8 = 254;
/// There is no field any more.
const GONE: u8 = 255;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Of [`Known`], [`OTHER`] or [`GONE`].
    number: u8,
    /// Of no bytes: as [`Known`] has it.
    name: Span,
    value: Span,
}

/// A field, as bytes that are good for a head: the name a token (RFC 9110, 5.6.2), the value without control characters
/// (5.5) and spaces around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name if that is known.
    pub known: Option<Known>,
    /// Its name in the case that it came in.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Field<'a> {
    /// Writes its line as HTTP/1 has it.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        to.reserve(self.name.len() + self.value.len() + 4);
        to.extend_from_slice(self.name);
        to.extend_from_slice(b": ");
        to.extend_from_slice(self.value);
        to.extend_from_slice(b"\r\n");
    }

    /// Its name, to look for others by.
    pub fn name(&self) -> Name<'a> {
        match self.known {
            Some(known) => Name::Known(known),
            None => Name::Other(text(self.name).unwrap_or_default()),
        }
    }
}

/// Where fields are noted. A thread keeps some of it for the next ones.
#[derive(Clone, Default)]
struct Room {
    own: Vec<u8>,
    entries: Vec<Entry>,
}

/// How much of it a thread keeps, and how large each may be: for some 2 MiB at most.
const SPARE: usize = 256;
const OWN_BYTES: usize = 4 << 10;
const ENTRIES: usize = 128;

thread_local! {
    static ROOMS: RefCell<Vec<(Vec<u8>, Vec<Entry>)>> = const { RefCell::new(Vec::new()) };
}

impl Room {
    fn take() -> Self {
        let spare = ROOMS.with_borrow_mut(Vec::pop);
        let (own, entries) =
            spare.unwrap_or_else(|| (Vec::with_capacity(512), Vec::with_capacity(32)));
        Self { own, entries }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Self { own, entries } = self;
        let fits = |capacity, most| (1..=most).contains(&capacity);
        if fits(own.capacity(), OWN_BYTES) && fits(entries.capacity(), ENTRIES) {
            own.clear();
            entries.clear();
            // A thread that ends has none any more.
            let _ = ROOMS.try_with(|rooms| {
                let mut rooms = rooms.borrow_mut();
                if rooms.len() < SPARE {
                    rooms.push((std::mem::take(own), std::mem::take(entries)));
                }
            });
        }
    }
}

/// Header fields in their order.
///
/// What a parser has found are places in the block that it has read, and nothing of it is copied; what comes later
/// is written into bytes of their own. Nothing moves when a field goes, so a [`Span`] stays what it is until
/// [`Fields::clear`].
#[derive(Clone, Default)]
pub struct Fields {
    block: Bytes,
    room: Room,
    /// A bit for each known name that there may be a field of.
    seen: u128,
}

impl Fields {
    /// None yet, with room for some.
    pub fn new() -> Self {
        Self::with_block(Bytes::new())
    }

    /// None yet, with a block that they are in.
    pub fn with_block(block: Bytes) -> Self {
        Self { block, room: Room::take(), seen: 0 }
    }

    /// Forgets all of them and the block, but not where others find room.
    pub fn clear(&mut self) {
        self.block = Bytes::new();
        self.room.own.clear();
        self.room.entries.clear();
        self.seen = 0;
    }

    /// The same with another block.
    pub fn reset(&mut self, block: Bytes) {
        self.clear();
        self.block = block;
    }

    /// A piece of the block, as a range of its bytes.
    ///
    /// # Panics
    /// The block is shorter.
    pub fn span(&self, range: Range<usize>) -> Span {
        assert!(range.start <= range.end && range.end <= self.block.len(), "it is in the block");
        Span { start: offset(range.start), end: offset(range.end) }
    }

    /// Copies something that is kept with the fields.
    pub fn keep(&mut self, bytes: &[u8]) -> Span {
        let start = self.room.own.len();
        self.room.own.extend_from_slice(bytes);
        Span::of_own(start..self.room.own.len())
    }

    /// What is there.
    pub fn bytes(&self, span: Span) -> &[u8] {
        let range = (span.start & !OWN) as usize..(span.end & !OWN) as usize;
        if span.start & OWN == 0 { &self.block[range] } else { &self.room.own[range] }
    }

    /// Adds a field that lies in the block, as ranges of its bytes. Whoever read it has found it to be one: see
    /// [`Field`].
    ///
    /// # Panics
    /// The block is shorter.
    pub fn push_span(&mut self, name: Range<usize>, value: Range<usize>) {
        let (name, value) = (self.span(name), self.span(value));
        let known = Known::of(self.bytes(name));
        self.add(known, name, value);
    }

    /// The same of a block that is still being read, and given in the end to [`Fields::come`].
    pub(crate) fn push_early(&mut self, block: &[u8], name: Range<usize>, value: Range<usize>) {
        let span =
            |range: &Range<usize>| Span { start: offset(range.start), end: offset(range.end) };
        let known = Known::of(&block[name.clone()]);
        self.add(known, span(&name), span(&value));
    }

    /// The block of [`Fields::push_early`] is there.
    pub(crate) fn come(&mut self, block: Bytes) {
        self.block = block;
    }

    /// Adds a copy of a field. Whoever read it has found it to be one: see [`Field`].
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        match Known::of(name) {
            Some(known) => self.push_known(known, value),
            None => {
                let (name, value) = (self.keep(name), self.keep(value));
                self.add(None, name, value);
            }
        }
    }

    /// The same of a known name, which is in lower case.
    pub fn push_known(&mut self, name: Known, value: &[u8]) {
        let value = self.keep(value);
        self.add(Some(name), Span::default(), value);
    }

    fn add(&mut self, known: Option<Known>, name: Span, value: Span) {
        if let Some(known) = known {
            self.seen |= bit(known);
        }
        self.room.entries.push(Entry {
            number: known.map_or(OTHER, |known| known as u8),
            name,
            value,
        });
    }

    /// The first value of a name.
    pub fn get<'n>(&self, name: impl Into<Name<'n>>) -> Option<&[u8]> {
        self.place(name).map(|value| self.bytes(value))
    }

    /// The same, if it is visible ASCII with spaces and tabs.
    pub fn text<'n>(&self, name: impl Into<Name<'n>>) -> Option<&str> {
        text(self.get(name)?)
    }

    /// Where the first value of a name is.
    pub fn place<'n>(&self, name: impl Into<Name<'n>>) -> Option<Span> {
        let name = name.into();
        self.entries_of(name).next().map(|entry| entry.value)
    }

    /// All values of a name.
    pub fn get_all<'a, 'n: 'a>(
        &'a self,
        name: impl Into<Name<'n>>,
    ) -> impl Iterator<Item = &'a [u8]> {
        self.entries_of(name.into()).map(|entry| self.bytes(entry.value))
    }

    /// Those that are visible ASCII with spaces and tabs.
    pub fn texts<'a, 'n: 'a>(&'a self, name: impl Into<Name<'n>>) -> impl Iterator<Item = &'a str> {
        self.get_all(name).filter_map(text)
    }

    /// Whether there is a field of that name.
    pub fn contains<'n>(&self, name: impl Into<Name<'n>>) -> bool {
        let name = name.into();
        self.entries_of(name).next().is_some()
    }

    fn entries_of<'a, 'n: 'a>(&'a self, name: Name<'n>) -> impl Iterator<Item = &'a Entry> {
        let may_be = match name {
            Name::Known(known) => self.seen & bit(known) != 0,
            Name::Other(_) => true,
        };
        let entries = if may_be { &*self.room.entries } else { &[] };
        entries.iter().filter(move |entry| self.is(entry, name))
    }

    fn is(&self, entry: &Entry, name: Name<'_>) -> bool {
        match name {
            Name::Known(known) => entry.number == known as u8,
            Name::Other(name) => {
                entry.number == OTHER
                    && self.bytes(entry.name).eq_ignore_ascii_case(name.as_bytes())
            }
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Adds a field. Control characters in its value are encoded; without a good name it is none.
    pub fn append<'n>(&mut self, name: impl Into<Name<'n>>, value: impl AsRef<[u8]>) {
        let value = self.keep_value(value.as_ref());
        self.append_span(name.into(), value);
    }

    fn append_span(&mut self, name: Name<'_>, value: Span) {
        match name {
            Name::Known(known) => self.add(Some(known), Span::default(), value),
            Name::Other(other) if is_token(other) => {
                let name = self.keep(other.as_bytes());
                self.add(None, name, value);
            }
            Name::Other(_) => {}
        }
    }

    /// Puts a field in the place of all others of its name. Control characters in its value are encoded.
    pub fn set<'n>(&mut self, name: impl Into<Name<'n>>, value: impl AsRef<[u8]>) {
        let value = self.keep_value(value.as_ref());
        self.set_span(name.into(), value);
    }

    /// The same with what is there already, and is good for a value.
    fn set_span(&mut self, name: Name<'_>, value: Span) {
        let mut first = true;
        self.change(name, |entry| {
            entry.value = value;
            if !std::mem::take(&mut first) {
                entry.number = GONE;
            }
        });
        if first {
            self.append_span(name, value);
        }
    }

    /// Takes away all fields of a name.
    pub fn remove<'n>(&mut self, name: impl Into<Name<'n>>) {
        let name = name.into();
        self.change(name, |entry| entry.number = GONE);
        if let Name::Known(known) = name {
            self.seen &= !bit(known);
        }
    }

    /// Does something with each entry of a name.
    fn change(&mut self, name: Name<'_>, mut change: impl FnMut(&mut Entry)) {
        if let Name::Known(known) = name
            && self.seen & bit(known) == 0
        {
            return;
        }
        for at in 0..self.room.entries.len() {
            if self.is(&self.room.entries[at], name) {
                change(&mut self.room.entries[at]);
            }
        }
    }

    /// Of fields whose names are not known, keeps those alone whose names `keep` wants.
    pub fn retain_others(&mut self, mut keep: impl FnMut(&[u8]) -> bool) {
        for at in 0..self.room.entries.len() {
            let Entry { number, name, .. } = self.room.entries[at];
            if number == OTHER && !keep(self.bytes(name)) {
                self.room.entries[at].number = GONE;
            }
        }
    }

    /// Changes each value of a name for which there is another one. Control characters in that are encoded.
    pub fn rewrite<'n>(
        &mut self,
        name: impl Into<Name<'n>>,
        mut rewrite: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) {
        let name = name.into();
        for at in 0..self.room.entries.len() {
            let entry = self.room.entries[at];
            if self.is(&entry, name)
                && let Some(value) = rewrite(self.bytes(entry.value))
            {
                self.room.entries[at].value = self.keep_value(&value);
            }
        }
    }

    /// Adds all of `others`.
    pub fn extend(&mut self, others: &Self) {
        for field in others {
            self.push(field.name, field.value);
        }
    }

    /// Sets and removes fields.
    pub fn apply(&mut self, edits: &Edits) {
        let Edits(edits) = edits;
        let base = self.room.own.len();
        self.room.own.extend_from_slice(&edits.room.own);
        let moved = |span: Span| {
            let [start, end] = [span.start, span.end].map(|it| (it & !OWN) as usize + base);
            Span::of_own(start..end)
        };
        for entry in &edits.room.entries {
            let name = match edits.known(entry) {
                Some(known) => Name::Known(known),
                None => Name::Other(text(edits.bytes(entry.name)).unwrap_or_default()),
            };
            if entry.value == NOTHING {
                self.remove(name);
            } else {
                self.set_span(name, moved(entry.value));
            }
        }
    }

    fn known(&self, entry: &Entry) -> Option<Known> {
        Known::ALL.get(usize::from(entry.number)).copied()
    }

    fn field(&self, entry: &Entry) -> Option<Field<'_>> {
        let known = self.known(entry);
        let name = match known {
            _ if entry.number == GONE => return None,
            Some(known) if entry.name == Span::default() => known.as_str().as_bytes(),
            _ => self.bytes(entry.name),
        };
        Some(Field { known, name, value: self.bytes(entry.value) })
    }

    /// All of them, in their order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { fields: self, entries: self.room.entries.iter() }
    }

    /// Keeps a value. What may not be in one is encoded: nobody ends a field, or a head, from within.
    fn keep_value(&mut self, value: &[u8]) -> Span {
        if is_value(value) {
            return self.keep(value);
        }
        let start = self.room.own.len();
        for byte in value {
            match byte {
                b' ' | 0x21..=0x7e => self.room.own.push(*byte),
                // Into memory nothing fails to be written.
                _ => _ = write!(self.room.own, "%{byte:02X}"),
            }
        }
        Span::of_own(start..self.room.own.len())
    }
}

fn bit(known: Known) -> u128 {
    1 << known as u8
}

/// `value` if it is visible ASCII with spaces and tabs.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let visible = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    str::from_utf8(value).ok().filter(|_| value.iter().all(visible))
}

/// Whether `value` may be a field's (RFC 9110, 5.5).
fn is_value(value: &[u8]) -> bool {
    // All of them are looked at, many at a time.
    !value.iter().fold(false, |odd, byte| odd | (*byte < b' ' && *byte != b'\t') | (*byte == 0x7f))
}

/// Whether `name` may be a field's (RFC 9110, 5.6.2).
fn is_token(name: &str) -> bool {
    let is = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is)
}

/// The fields of a [`Fields`].
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    fields: &'a Fields,
    entries: std::slice::Iter<'a, Entry>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        self.entries.by_ref().find_map(|entry| self.fields.field(entry))
    }
}

impl<'a> IntoIterator for &'a Fields {
    type Item = Field<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes| String::from_utf8_lossy(bytes);
        f.debug_list().entries(self.iter().map(|it| (text(it.name), text(it.value)))).finish()
    }
}

impl<'n, N: Into<Name<'n>>, V: AsRef<[u8]>> FromIterator<(N, V)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(all: I) -> Self {
        let mut fields = Self::new();
        all.into_iter().for_each(|(name, value)| fields.append(name, value));
        fields
    }
}

impl From<&HeaderMap> for Fields {
    fn from(headers: &HeaderMap) -> Self {
        let mut fields = Self::new();
        for (name, value) in headers {
            fields.push(name.as_str().as_bytes(), value.as_bytes());
        }
        fields
    }
}

impl From<&Fields> for HeaderMap {
    fn from(fields: &Fields) -> Self {
        let mut headers = Self::with_capacity(fields.room.entries.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name);
            let value = HeaderValue::from_bytes(field.value);
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        headers
    }
}

/// Fields to set and to remove: the last word about each name.
#[derive(Clone, Default)]
pub struct Edits(Fields);

impl Edits {
    /// None yet, with room for some.
    pub fn new() -> Self {
        Self(Fields::new())
    }

    /// A field is set. Control characters in its value are encoded.
    pub fn set<'n>(&mut self, name: impl Into<Name<'n>>, value: impl AsRef<[u8]>) {
        self.0.set(name, value);
    }

    /// The same, if there is a value; else it is removed.
    pub fn change<'n>(&mut self, name: impl Into<Name<'n>>, value: Option<impl AsRef<[u8]>>) {
        match value {
            Some(value) => self.set(name, value),
            None => self.remove(name),
        }
    }

    /// Fields of these names are set to the same. Control characters in it are encoded.
    pub fn set_all(&mut self, names: &[Known], value: impl Value) {
        let start = self.0.room.own.len();
        value.write(&mut self.0.room.own);
        let mut span = Span::of_own(start..self.0.room.own.len());
        if !is_value(&self.0.room.own[start..]) {
            let odd = self.0.room.own.split_off(start);
            span = self.0.keep_value(&odd);
        }
        names.iter().for_each(|name| self.0.set_span((*name).into(), span));
    }

    /// A field is removed.
    pub fn remove<'n>(&mut self, name: impl Into<Name<'n>>) {
        self.0.set_span(name.into(), NOTHING);
    }

    /// What becomes of a name: its value, if it is set, and nothing if it is removed; `None`: it stays.
    pub fn get<'n>(&self, name: impl Into<Name<'n>>) -> Option<Option<&[u8]>> {
        let value = self.0.place(name)?;
        Some(if value == NOTHING { None } else { Some(self.0.bytes(value)) })
    }
}

impl fmt::Debug for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(fields) = self;
        let edits = fields.room.entries.iter().map(|entry| {
            let (nothing, entry) =
                (entry.value == NOTHING, Entry { value: Span::default(), ..*entry });
            let name = fields.field(&entry).map(|field| String::from_utf8_lossy(field.name));
            (name, nothing)
        });
        f.debug_list().entries(edits).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read() -> Fields {
        let block = Bytes::from_static(b"Host: a\r\nX-Own: b\r\nCookie: c\r\nx-own: d\r\n\r\n");
        let mut fields = Fields::with_block(block);
        fields.push_span(0..4, 6..7);
        fields.push_span(9..14, 16..17);
        fields.push_span(19..25, 27..28);
        fields.push_span(30..35, 37..38);
        fields
    }

    fn all(fields: &Fields) -> String {
        let text = |bytes| String::from_utf8_lossy(bytes);
        let lines = fields.iter().map(|it| format!("{}: {}", text(it.name), text(it.value)));
        lines.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn fields_keep_their_order_and_the_case_of_their_names() {
        let mut fields = read();
        assert_eq!(all(&fields), "Host: a; X-Own: b; Cookie: c; x-own: d");
        fields.push(b"x-forwarded-for", b"e");
        fields.append("X-Own", "f");
        fields.append(Known::Host, "g");
        assert_eq!(
            all(&fields),
            "Host: a; X-Own: b; Cookie: c; x-own: d; x-forwarded-for: e; X-Own: f; host: g"
        );
        let known: Vec<_> = fields.iter().map(|field| field.known).collect();
        assert_eq!(known[..3], [Some(Known::Host), None, Some(Known::Cookie)]);
    }

    #[test]
    fn names_are_compared_without_case() {
        let fields = read();
        assert_eq!(fields.get("HOST"), fields.get(Known::Host));
        assert_eq!(fields.get_all("X-OWN").collect::<Vec<_>>(), [b"b", b"d"]);
        assert_eq!(fields.get(&HeaderName::from_static("x-own")), Some(&b"b"[..]));
        assert!(fields.contains(Known::Cookie) && !fields.contains("x-ow"));
        assert!(!fields.contains(Known::Te) && !fields.contains(""));
    }

    #[test]
    fn a_field_that_is_set_stands_where_the_first_one_did() {
        let mut fields = read();
        fields.set("x-own", "e");
        fields.set(Known::Te, "trailers");
        fields.set(Known::Host, "b");
        assert_eq!(all(&fields), "Host: b; X-Own: e; Cookie: c; te: trailers");
        fields.remove(Known::Host);
        fields.remove("X-OWN");
        assert_eq!(all(&fields), "Cookie: c; te: trailers");
        fields.set(Known::Host, "c");
        fields.rewrite(Known::Cookie, |value| Some([value, b"+"].concat()));
        fields.remove(Known::Te);
        fields.push(b"x_own", b"d");
        fields.retain_others(|name| !name.contains(&b'_'));
        assert_eq!(all(&fields), "Cookie: c+; host: c");
        fields.reset(Bytes::new());
        assert_eq!(all(&fields), "");
        assert!(!fields.contains(Known::Host));
    }

    #[test]
    fn a_place_stays_what_it_is() {
        let mut fields = read();
        let kept = fields.keep(b"/path?query");
        let (host, path) = (fields.place(Known::Host).unwrap(), kept.part(0..5));
        fields.set(Known::Host, "other");
        fields.remove("x-own");
        let copy = fields.clone();
        assert_eq!([copy.bytes(host), copy.bytes(kept)], [&b"a"[..], b"/path?query"]);
        assert_eq!(copy.bytes(path), b"/path");
    }

    #[test]
    #[should_panic(expected = "it is a part")]
    fn a_part_is_no_longer_than_the_whole() {
        let _ = read().keep(b"word").part(2..5);
    }

    #[test]
    fn nobody_ends_a_field_from_within() {
        let mut fields = Fields::new();
        fields.set(Known::Location, "/a b\r\nSet-Cookie: x=\u{e9}");
        fields.append("x-\u{e9}", "\0\t\x7f");
        fields.append("x y", "1");
        fields.append("x:", "1");
        fields.append("X-1", "\u{e9}\t");
        assert_eq!(all(&fields), "location: /a b%0D%0ASet-Cookie: x=%C3%A9; X-1: \u{e9}\t");
    }

    #[test]
    fn the_last_word_about_a_name_counts() {
        let mut edits = Edits::new();
        edits.set_all(&[Known::XRealIp, Known::XForwardedFor], "192.0.2.1");
        edits.set_all(&[Known::Via], "a\n");
        assert_eq!(edits.get(Known::Via), Some(Some(&b"a%0A"[..])));
        edits.remove(Known::Via);
        edits.set("X-Own", "1");
        edits.remove(Known::Cookie);
        edits.change(Known::Host, Some("b"));
        edits.change(Known::XRealIp, None::<&str>);
        edits.set("x-new", "2");
        assert_eq!(edits.get("x-own"), Some(Some(&b"1"[..])));
        assert_eq!((edits.get(Known::Cookie), edits.get(Known::Te)), (Some(None), None));
        let mut fields = read();
        fields.push(b"x-real-ip", b"192.0.2.2");
        fields.apply(&edits);
        assert_eq!(all(&fields), "Host: b; X-Own: 1; x-forwarded-for: 192.0.2.1; x-new: 2");
    }

    #[test]
    fn maps_are_the_same_in_other_words() {
        let map = HeaderMap::from(&read());
        assert_eq!(map.get_all("x-own").iter().count(), 2);
        assert_eq!(Fields::from(&map).get(Known::Cookie), Some(&b"c"[..]));
    }
}
