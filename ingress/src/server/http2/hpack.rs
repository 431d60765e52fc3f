//! Heads as HPACK has them (RFC 7541).

use super::frames::Reason;
use super::huffman;
use super::table::{Dynamic, STATIC, static_name};

/// Bytes of what is remembered in either direction, as long as nobody says less (RFC 9113, 6.5.2).
const TABLE: usize = 4096;

/// Reads heads.
#[derive(Debug)]
pub(super) struct Decoder {
    remembered: Dynamic,
}

/// A text: in the block, or what its code says.
#[derive(Clone, Copy)]
enum Text<'b> {
    Plain(&'b [u8]),
    /// Where in the texts that are decoded it begins and ends.
    Decoded(usize, usize),
}

impl Text<'_> {
    fn of<'a>(&'a self, decoded: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Decoded(start, end) => &decoded[*start..*end],
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self { remembered: Dynamic::new(TABLE) }
    }
}

impl Decoder {
    /// Hands out the fields of a block, which must all be read for those that follow. Texts are decoded into `room`.
    ///
    /// # Errors
    /// It is no such block, or whoever gets the fields has enough of them. The connection is of no use then.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        room: &mut Vec<u8>,
        mut field: impl FnMut(&[u8], &[u8]) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        let mut begun = false;
        while let Some(first) = block.first().copied() {
            let (bits, remembers) = match first {
                0x80.. => {
                    let (name, value) = self.get(integer(&mut block, 7)?)?;
                    field(name, value)?;
                    begun = true;
                    continue;
                }
                0x40.. => (6, true),
                // Only before the first field (RFC 7541, 4.2).
                0x20.. => {
                    let most = integer(&mut block, 5)?;
                    if begun || most > TABLE {
                        return Err(Reason::Compression);
                    }
                    self.remembered.limit(most);
                    continue;
                }
                _ => (4, false),
            };
            begun = true;
            room.clear();
            let index = integer(&mut block, bits)?;
            let name = if index == 0 { Some(text(&mut block, room)?) } else { None };
            let value = text(&mut block, room)?;
            let name = match &name {
                Some(name) => name.of(room),
                None => self.get(index)?.0,
            };
            let value = value.of(room);
            field(name, value)?;
            if remembers {
                // A copy, as its own name may be of what makes room for it.
                let (name, bytes) = (name.len(), [name, value].concat());
                self.remembered.put(0, name, bytes);
            }
        }
        Ok(())
    }

    fn get(&self, index: usize) -> Result<(&[u8], &[u8]), Reason> {
        let at = index.checked_sub(1).ok_or(Reason::Compression)?;
        match STATIC.get(at) {
            Some((name, value)) => Ok((name.as_bytes(), value.as_bytes())),
            None => self.remembered.get(at - STATIC.len()).ok_or(Reason::Compression),
        }
    }
}

/// An integer whose first byte has so many bits for it (RFC 7541, 5.1); none that matters is greater than 2^28.
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Reason> {
    let mut next = || {
        let (first, rest) = block.split_first().ok_or(Reason::Compression)?;
        *block = rest;
        Ok(usize::from(*first))
    };
    let most = (1 << bits) - 1;
    let mut value = next()? & most;
    if value < most {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Reason::Compression)
}

/// A text (RFC 7541, 5.2).
fn text<'b>(block: &mut &'b [u8], room: &mut Vec<u8>) -> Result<Text<'b>, Reason> {
    let encoded = block.first().is_some_and(|first| *first >= 0x80);
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Reason::Compression)?;
    *block = rest;
    if !encoded {
        return Ok(Text::Plain(text));
    }
    let start = room.len();
    huffman::decode(text, room).ok_or(Reason::Compression)?;
    Ok(Text::Decoded(start, room.len()))
}

/// Fields whose hashes are known to have been written.
const SEEN: usize = 64;
/// What is never remembered, so that nobody finds it out by the length of what he sees (RFC 7541, 7.1.3).
const SECRET: [&[u8]; 3] = [b"set-cookie", b"authorization", b"proxy-authorization"];

/// Writes heads.
///
/// A field is remembered when it comes for the second time: what is another one with each answer would only take the
/// place of those that are not.
#[derive(Debug)]
pub(super) struct Encoder {
    remembered: Dynamic,
    /// Hashes, each at a place that it says itself.
    seen: Box<[u32; SEEN]>,
    /// The least size of the table since the last block, if its size has changed.
    least: Option<usize>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { remembered: Dynamic::new(TABLE), seen: Box::new([0; SEEN]), least: None }
    }
}

impl Encoder {
    /// The other end remembers no more than so many bytes.
    pub(super) fn limit(&mut self, most: u32) {
        let most = usize::try_from(most).map_or(TABLE, |most| most.min(TABLE));
        if most != self.remembered.most() {
            self.remembered.limit(most);
            self.least = Some(self.least.map_or(most, |least| least.min(most)));
        }
    }

    /// Begins a block.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(least) = self.least.take() {
            let most = self.remembered.most();
            if least < most {
                put_integer(out, 0x20, 5, least);
            }
            put_integer(out, 0x20, 5, most);
        }
    }

    /// The status of an answer, of three digits.
    pub(super) fn status(&mut self, status: &str, out: &mut Vec<u8>) {
        match status {
            "200" => out.push(0x88),
            "204" => out.push(0x89),
            "206" => out.push(0x8a),
            "304" => out.push(0x8b),
            "400" => out.push(0x8c),
            "404" => out.push(0x8d),
            "500" => out.push(0x8e),
            status => {
                out.push(0x08);
                put_plain(out, status.as_bytes());
            }
        }
    }

    /// A field, with a name in lower case.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
        let hash = hash(name, value);
        if let Some(age) = self.remembered.find(hash, name, value) {
            put_integer(out, 0x80, 7, STATIC.len() + 1 + age);
            return;
        }
        let index = static_name(name).unwrap_or_default();
        let secret = SECRET.contains(&name);
        let seen = &mut self.seen[(hash >> 1) as usize % SEEN];
        let remember = *seen == hash && !secret;
        *seen = hash;
        let put = if remember { put_shortest } else { put_plain };
        match (remember, secret) {
            (true, _) => put_integer(out, 0x40, 6, index),
            (false, true) => put_integer(out, 0x10, 4, index),
            (false, false) => put_integer(out, 0, 4, index),
        }
        if index == 0 {
            put(out, name);
        }
        put(out, value);
        if remember {
            self.remembered.put(hash, name.len(), [name, value].concat());
        }
    }
}

/// Not for who chooses what is hashed: what is found by it is compared.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
    let mut hash = name.len() as u64;
    for text in [name, value] {
        let (words, rest) = text.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain([&last]) {
            hash = (hash.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(FACTOR);
        }
    }
    let [.., a, b, c, d] = hash.to_le_bytes();
    // 0 is nobody's.
    u32::from_le_bytes([a, b, c, d]) | 1
}

fn put_integer(out: &mut Vec<u8>, pattern: u8, bits: u32, value: usize) {
    let most = (1 << bits) - 1;
    let byte = |value: usize| value.to_le_bytes()[0];
    if value < most {
        return out.push(pattern | byte(value));
    }
    out.push(pattern | byte(most));
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(byte(rest) | 0x80);
        rest >>= 7;
    }
    out.push(byte(rest));
}

fn put_plain(out: &mut Vec<u8>, text: &[u8]) {
    put_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

fn put_shortest(out: &mut Vec<u8>, text: &[u8]) {
    let length = huffman::length(text);
    if length < text.len() {
        put_integer(out, 0x80, 7, length);
        huffman::encode(text, out);
    } else {
        put_plain(out, text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Fields = Vec<(String, String)>;

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Reason> {
        let mut fields = Vec::new();
        decoder.decode(block, &mut Vec::new(), |name, value| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            fields.push((text(name), text(value)));
            Ok(())
        })?;
        Ok(fields)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn fields(fields: &[(&str, &str)]) -> Fields {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn remembered(table: &Dynamic) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fields = (0..).map_while(|age| table.get(age));
        fields.map(|(name, value)| (text(name), text(value))).collect()
    }

    /// RFC 7541, C.2.
    #[test]
    fn a_field_is_read_in_each_of_its_forms() {
        for (block, field, kept) in [
            (
                "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
                ("custom-key", "custom-header"),
                1,
            ),
            ("040c 2f73 616d 706c 652f 7061 7468", (":path", "/sample/path"), 0),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", ("password", "secret"), 0),
            ("82", (":method", "GET"), 0),
        ] {
            let mut decoder = Decoder::default();
            assert_eq!(read(&mut decoder, &bytes(block)), Ok(fields(&[field])));
            assert_eq!(remembered(&decoder.remembered).len(), kept, "{block}");
        }
    }

    /// RFC 7541, C.3 and C.4: the same requests as they are, and in Huffman's code.
    #[test]
    fn requests_are_read_that_follow_each_other() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let encoded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        let [authority, get] = [(":authority", "www.example.com"), (":method", "GET")];
        let own = ("custom-key", "custom-value");
        let requests = [
            fields(&[get, (":scheme", "http"), (":path", "/"), authority]),
            fields(&[
                get,
                (":scheme", "http"),
                (":path", "/"),
                authority,
                ("cache-control", "no-cache"),
            ]),
            fields(&[get, (":scheme", "https"), (":path", "/index.html"), authority, own]),
        ];
        for blocks in [plain, encoded] {
            let mut decoder = Decoder::default();
            for (block, request) in blocks.iter().zip(&requests) {
                assert_eq!(read(&mut decoder, &bytes(block)).as_ref(), Ok(request), "{block}");
            }
            let kept = fields(&[own, ("cache-control", "no-cache"), authority]);
            assert_eq!(remembered(&decoder.remembered), kept);
        }
    }

    /// RFC 7541, C.6: with a table that has no room for all.
    #[test]
    fn what_is_oldest_is_forgotten() {
        let blocks = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ];
        let cookie = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
        let [old, new] = ["Mon, 21 Oct 2013 20:13:21 GMT", "Mon, 21 Oct 2013 20:13:22 GMT"];
        let location = ("location", "https://www.example.com");
        let private = ("cache-control", "private");
        let answers = [
            fields(&[(":status", "302"), private, ("date", old), location]),
            fields(&[(":status", "307"), private, ("date", old), location]),
            fields(&[
                (":status", "200"),
                private,
                ("date", new),
                location,
                ("content-encoding", "gzip"),
                cookie,
            ]),
        ];
        let mut decoder = Decoder::default();
        decoder.remembered.limit(256);
        for (block, answer) in blocks.iter().zip(&answers) {
            assert_eq!(read(&mut decoder, &bytes(block)).as_ref(), Ok(answer), "{block}");
        }
        let kept = fields(&[cookie, ("content-encoding", "gzip"), ("date", new)]);
        assert_eq!(remembered(&decoder.remembered), kept);
        // A field that is greater than the table empties it.
        decoder.remembered.limit(60);
        assert_eq!(
            read(&mut decoder, &[&b"\x40\x01a\x1d"[..], &[b'x'; 29]].concat()).unwrap().len(),
            1
        );
        assert_eq!(remembered(&decoder.remembered), []);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for (name, block) in [
            ("index 0", "80"),
            ("an index of nobody", "be"),
            ("a name of nobody", "7e00"),
            ("an integer without an end", "ff80808080808001"),
            ("an integer beyond all", "ffffffffff0f"),
            ("an integer that ends too early", "ff80"),
            ("a text that ends too early", "000361"),
            ("no value", "000161"),
            ("bad code", "00816102 00"),
            ("the end of a text in its code", "0084ffffffff0161"),
            ("a table that is too large", "3fe21f"),
            ("a size behind a field", "8220"),
        ] {
            assert_eq!(
                read(&mut Decoder::default(), &bytes(block)),
                Err(Reason::Compression),
                "{name}"
            );
        }
        // A size that may be, and another one.
        let sizes = bytes("20 3fe11f 82");
        assert_eq!(read(&mut Decoder::default(), &sizes), Ok(fields(&[(":method", "GET")])));
    }

    #[test]
    fn a_field_is_remembered_when_it_comes_again() {
        let (mut encoder, mut lengths) = (Encoder::default(), Vec::new());
        for _ in 0..4 {
            let mut out = Vec::new();
            encoder.begin(&mut out);
            encoder.status("200", &mut out);
            encoder.field(b"x-kind", b"of a certain kind", &mut out);
            lengths.push(out.len());
        }
        let [first, second, third, fourth] = lengths[..] else { panic!("{lengths:?}") };
        assert!(second < first && (third, fourth) == (2, 2), "{lengths:?}");
        for round in 0..4 {
            let mut out = Vec::new();
            encoder.field(b"set-cookie", b"secret", &mut out);
            encoder.field(b"etag", round.to_string().as_bytes(), &mut out);
            assert_eq!(out.len(), 2 + 7 + 2 + 2, "neither is");
        }
    }

    #[test]
    fn the_other_end_says_how_much_is_remembered() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        for (limits, said) in [
            (&[][..], &b""[..]),
            (&[0][..], b"\x20"),
            (&[0], b""),
            (&[100], b"\x3f\x45"),
            (&[0, 4096], b"\x20\x3f\xe1\x1f"),
            (&[1 << 20], b""),
        ] {
            limits.iter().for_each(|most| encoder.limit(*most));
            let mut out = Vec::new();
            encoder.begin(&mut out);
            assert_eq!(out, said);
            for _ in 0..3 {
                encoder.field(b"name", b"value", &mut out);
            }
            assert_eq!(read(&mut decoder, &out), Ok(fields(&[("name", "value"); 3])));
        }
    }

    proptest! {
        // Of few names and values, so that they come again.
        #[test]
        fn what_is_written_is_read(
            blocks in prop::collection::vec(
                prop::collection::vec(("[a-e]{1,3}|vary|set-cookie", "[a-c ]{0,3}|[ -~]{0,80}"), 0..20),
                0..20,
            ),
            limits in prop::collection::vec(prop::option::weighted(0.2, 0_u32..200), 20),
        ) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            for (block, limit) in blocks.into_iter().zip(limits) {
                limit.into_iter().for_each(|most| encoder.limit(most));
                let mut out = Vec::new();
                encoder.begin(&mut out);
                for (name, value) in &block {
                    encoder.field(name.as_bytes(), value.as_bytes(), &mut out);
                }
                prop_assert_eq!(read(&mut decoder, &out), Ok(block));
                prop_assert_eq!(remembered(&decoder.remembered), remembered(&encoder.remembered));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(block: Vec<u8>) {
            let _ = read(&mut Decoder::default(), &block);
        }
    }
}
