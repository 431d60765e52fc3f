//! Queries of the DNS that are plain enough to be answered where they are, and the parts of answers to them
//! (RFC 1035; EDNS: RFC 6891).
//!
//! ```text
//! message ─► parse ─► Query, name in small letters ─► (a table) ─► header │ question as it came │ record │ OPT
//! ```
//!
//! All records here have the question's name, or the zone's within it, so that a pointer stands for it and each
//! part has a fixed size. Numbers are in host order, bytes as they stand in a message.

use core::hint::black_box;

/// Bytes before the question (RFC 1035, 4.1.1).
pub const HEADER: u16 = 12;
/// Bytes of a name at most, lengths of labels and the root's among them (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 255;
/// Bytes of a record that says what its sender takes, without options (RFC 6891, 6.1.2).
pub const OPT_SIZE: usize = 11;
/// Bytes that a datagram may have without EDNS (RFC 1035, 4.2.1).
pub const PLAIN_SIZE: u16 = 512;
/// Bytes of a datagram at most: what no network has to cut (DNS flag day 2020).
pub const MAX_SIZE: u16 = 1232;

/// Types of records (RFC 1035, 3.2.2; RFC 3596; RFC 2782; RFC 6891; RFC 1995; RFC 8482).
pub mod kind {
    /// An address of IPv4.
    pub const A: u16 = 1;
    /// The zone's servers.
    pub const NS: u16 = 2;
    /// Another name of the same.
    pub const CNAME: u16 = 5;
    /// The zone itself.
    pub const SOA: u16 = 6;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// A machine; what is answered to [`ANY`].
    pub const HINFO: u16 = 13;
    /// Text.
    pub const TXT: u16 = 16;
    /// An address of IPv6.
    pub const AAAA: u16 = 28;
    /// Where a service is.
    pub const SRV: u16 = 33;
    /// What the sender takes.
    pub const OPT: u16 = 41;
    /// The zone as far as it changed.
    pub const IXFR: u16 = 251;
    /// The whole zone.
    pub const AXFR: u16 = 252;
    /// All of them.
    pub const ANY: u16 = 255;
}

/// Outcomes (RFC 1035, 4.1.1; RFC 6891, 9).
pub mod rcode {
    /// There is such a name.
    pub const NO_ERROR: u8 = 0;
    /// The query cannot be read.
    pub const FORM_ERR: u8 = 1;
    /// Nobody could be asked.
    pub const SERV_FAIL: u8 = 2;
    /// There is no such name.
    pub const NX_DOMAIN: u8 = 3;
    /// Such queries are not answered by anybody here.
    pub const NOT_IMP: u8 = 4;
    /// Such queries are not answered to this client.
    pub const REFUSED: u8 = 5;
    /// The query's EDNS is of another version; the high bits are in the OPT record.
    pub const BAD_VERS: u8 = 16;
}

/// The Internet's class.
pub const IN: u16 = 1;

/// Bits of a header's third and fourth byte.
pub mod flag {
    /// An answer.
    pub const RESPONSE: u16 = 1 << 15;
    /// What kind of query; 0 for an ordinary one.
    pub const OPCODE: u16 = 0xf << 11;
    /// By who keeps the zone.
    pub const AUTHORITATIVE: u16 = 1 << 10;
    /// There is more than the datagram takes.
    pub const TRUNCATED: u16 = 1 << 9;
    /// The client wants others to be asked.
    pub const RECURSION_DESIRED: u16 = 1 << 8;
    /// Others are asked.
    pub const RECURSION_AVAILABLE: u16 = 1 << 7;
    /// The client does without validation (RFC 4035, 3.2.2).
    pub const CHECKING_DISABLED: u16 = 1 << 4;
}

/// A message, or the part of a packet that is one. `at` counts bytes from its first one.
pub trait Message {
    /// A copy of what lies there; `None` if it ends before.
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]>;

    /// Its bytes.
    fn length(&self) -> u32;

    /// Eight bytes from there on; behind the message's end, any.
    #[inline(always)]
    fn piece(&self, at: u32) -> [u8; 8] {
        self.load(at).unwrap_or_else(|| last_bytes(self, at).to_le_bytes())
    }
}

impl Message for [u8] {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.get(at as usize..)?.first_chunk().copied()
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

/// What a client takes beyond RFC 1035.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Bytes of a datagram.
    pub size: u16,
    /// Of EDNS; 0 is the only one there is.
    pub version: u8,
    /// Wants signatures, too; the bit comes back (RFC 3225, 3).
    pub dnssec: bool,
}

/// A query with one question and nothing else but, perhaps, EDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Which the answer has, too.
    pub id: [u8; 2],
    /// See [`flag`].
    pub flags: u16,
    /// Bytes of the question's name, with the root's; the question begins after the header.
    pub name: u16,
    /// See [`kind`].
    pub kind: u16,
    /// [`IN`], or one of the past.
    pub class: u16,
    /// If the client has it.
    pub edns: Option<Edns>,
}

/// Why a message is no plain query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It ends within its header.
    Short,
    /// It is an answer.
    Answer,
    /// It is another kind of query, or has odd numbers of records.
    Header,
    /// Its question cannot be read: it ends before, its name is too long, or a pointer.
    Question,
    /// What follows the question is not one OPT record to the message's end.
    Rest,
}

/// Reads a message. The question's name is written to `name`, in small letters, and zeros behind it: names that
/// are the same to the DNS become the same bytes. One that does not fit is [`Unfit::Question`].
///
/// # Errors
/// If it is anything but a plain query; `name` is of no use then.
#[inline(always)]
pub fn parse<M: Message + ?Sized, const N: usize>(
    message: &M,
    name: &mut [[u8; 8]; N],
) -> Result<Query, Unfit> {
    let header = read_header(message)?;
    let length = name_length(message).ok_or(Unfit::Question)?;
    parse_behind(message, header, length, name)
}

/// As [`parse`], for one who knows how long the question's name is ([`name_length`]).
///
/// # Errors
/// The same.
#[inline(always)]
pub fn parse_named<M: Message + ?Sized, const N: usize>(
    message: &M,
    length: u32,
    name: &mut [[u8; 8]; N],
) -> Result<Query, Unfit> {
    parse_behind(message, read_header(message)?, length, name)
}

/// Identifier, flags, and how many additional records there are.
#[inline(always)]
fn read_header<M: Message + ?Sized>(message: &M) -> Result<([u8; 2], u16, u8), Unfit> {
    let header: [u8; 12] = message.load(0).ok_or(Unfit::Short)?;
    let [id0, id1, flags0, flags1, counts @ ..] = header;
    let flags = u16::from_be_bytes([flags0, flags1]);
    if flags & flag::RESPONSE != 0 {
        return Err(Unfit::Answer);
    }
    let [0, 1, 0, 0, 0, 0, 0, additional @ 0..=1] = counts else { return Err(Unfit::Header) };
    if flags & (flag::OPCODE | flag::TRUNCATED) != 0 {
        return Err(Unfit::Header);
    }
    Ok(([id0, id1], flags, additional))
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "names have 255 bytes at most")]
fn parse_behind<M: Message + ?Sized, const N: usize>(
    message: &M,
    (id, flags, additional): ([u8; 2], u16, u8),
    length: u32,
    name: &mut [[u8; 8]; N],
) -> Result<Query, Unfit> {
    if length as usize > N * 8 || length as usize > MAX_NAME {
        return Err(Unfit::Question);
    }
    read_name(message, length, name);
    // Linux 6.1's verifier also goes where a name is both longer and shorter than the piece that was read last. There it
    // knows nothing of where the name ends, so that who reads behind it has to bound that again, however well the
    // compiler knows the bounds: it is made to forget them.
    let end = black_box(u32::from(HEADER) + length);
    let [kind0, kind1, class0, class1] = message.load(end).ok_or(Unfit::Question)?;
    let edns = match additional {
        0 if message.length() == end + 4 => None,
        0 => return Err(Unfit::Rest),
        _ => Some(edns(message, end + 4).ok_or(Unfit::Rest)?),
    };
    Ok(Query {
        id,
        flags,
        name: length as u16,
        kind: u16::from_be_bytes([kind0, kind1]),
        class: u16::from_be_bytes([class0, class1]),
        edns,
    })
}

/// The OPT record at `at`, if it is one, and the message's last.
#[inline(always)]
fn edns<M: Message + ?Sized>(message: &M, at: u32) -> Option<Edns> {
    let opt: [u8; OPT_SIZE] = message.load(at)?;
    let [0, 0, 41, size0, size1, 0, version, flags, _, length0, length1] = opt else { return None };
    let options = u32::from(u16::from_be_bytes([length0, length1]));
    if message.length() != at + 11 + options {
        return None;
    }
    let size = u16::from_be_bytes([size0, size1]);
    Some(Edns { size, version, dnssec: flags & 0x80 != 0 })
}

/// How many bytes the question's name has, the root's byte included; `None` if it cannot be read, or is too long.
#[inline(always)]
pub fn name_length<M: Message + ?Sized>(message: &M) -> Option<u32> {
    /// Each label has two bytes at least, and the root one.
    const LABELS: usize = MAX_NAME / 2;
    let mut end: u32 = 0;
    let mut labels = 0;
    while labels <= LABELS {
        let [label] = message.load(u32::from(HEADER) + end)?;
        end += 1 + u32::from(label);
        // The two high bits are those of a pointer.
        if label > 63 || end as usize > MAX_NAME {
            return None;
        }
        if label == 0 {
            return Some(end);
        }
        labels += 1;
    }
    None
}

/// Writes the question's name, of `length` bytes, in small letters and zeros behind it.
#[inline(always)]
fn read_name<M: Message + ?Sized, const N: usize>(
    message: &M,
    length: u32,
    name: &mut [[u8; 8]; N],
) {
    let mut at: u32 = 0;
    for chunk in name.iter_mut() {
        let mut bytes = 0;
        if at < length {
            bytes = u64::from_le_bytes(message.piece(u32::from(HEADER) + at));
            let left = length - at;
            if left < 8 {
                bytes &= (1 << (8 * left)) - 1;
            }
        }
        *chunk = small_letters(bytes).to_le_bytes();
        at += 8;
    }
}

/// The fewer than eight bytes from `at` to the message's end.
#[inline(always)]
fn last_bytes<M: Message + ?Sized>(message: &M, at: u32) -> u64 {
    let mut bytes = 0;
    let mut place = 0;
    while place < 7 {
        if let Some([byte]) = message.load(at + place) {
            bytes |= u64::from(byte) << (8 * place);
        }
        place += 1;
    }
    bytes
}

/// Eight bytes of a name without capital letters (RFC 4343). Lengths of labels are below these.
#[inline(always)]
pub const fn small_letters(bytes: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = bytes & (0x7f * EACH);
    let from_a = low + (0x80 - b'A' as u64) * EACH;
    let above_z = low + (0x7f - b'Z' as u64) * EACH;
    let capital = !bytes & (from_a ^ above_z) & (0x80 * EACH);
    bytes | capital >> 2
}

/// How many records an answer has in each section behind the question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// What was asked for.
    pub answers: u16,
    /// Who says so.
    pub authorities: u16,
    /// What will be asked for next, and OPT.
    pub additional: u16,
}

/// The flags of an answer: those of the query that come back, and what it says itself.
#[inline(always)]
pub const fn answer_flags(query: u16, rcode: u8) -> u16 {
    const BACK: u16 = flag::OPCODE | flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;
    query & BACK | flag::RESPONSE | flag::RECURSION_AVAILABLE | (rcode & 0xf) as u16
}

/// The header of an answer; `flags` as [`answer_flags`] makes them.
#[inline(always)]
pub fn header(id: [u8; 2], flags: u16, counts: Counts) -> [u8; 12] {
    let [f0, f1] = flags.to_be_bytes();
    let [an0, an1] = counts.answers.to_be_bytes();
    let [ns0, ns1] = counts.authorities.to_be_bytes();
    let [ar0, ar1] = counts.additional.to_be_bytes();
    [id[0], id[1], f0, f1, 0, 1, an0, an1, ns0, ns1, ar0, ar1]
}

/// A pointer to the name at this offset of the message, which must be below 2^14 (RFC 1035, 4.1.4).
#[inline(always)]
pub const fn pointer(at: u16) -> [u8; 2] {
    (0xc000 | at).to_be_bytes()
}

/// The pointer to the question's name.
const QUESTION: [u8; 2] = pointer(HEADER);

/// The question's name has this address.
#[inline(always)]
pub fn a(ttl: u32, address: [u8; 4]) -> [u8; 16] {
    let [t0, t1, t2, t3] = ttl.to_be_bytes();
    let [a, b, c, d] = address;
    [QUESTION[0], QUESTION[1], 0, 1, 0, 1, t0, t1, t2, t3, 0, 4, a, b, c, d]
}

/// The question's name has this address.
#[inline(always)]
pub fn aaaa(ttl: u32, address: [u8; 16]) -> [u8; 28] {
    let mut record = [0; 28];
    let [t0, t1, t2, t3] = ttl.to_be_bytes();
    let (head, data) = record.split_at_mut(12);
    head.copy_from_slice(&[QUESTION[0], QUESTION[1], 0, 28, 0, 1, t0, t1, t2, t3, 0, 16]);
    data.copy_from_slice(&address);
    record
}

/// Bytes of what [`soa`] makes.
pub const SOA_SIZE: usize = 54;

/// The zone whose name is at `zone` of the message: who keeps it, and for how long one may know that something is
/// not there, which is the `ttl` (RFC 2308, 3 and 5). The server is `ns.dns` of it, as CoreDNS has it.
#[inline(always)]
pub fn soa(zone: u16, ttl: u32, serial: u32) -> [u8; SOA_SIZE] {
    let [z0, z1] = pointer(zone);
    let [t0, t1, t2, t3] = ttl.to_be_bytes();
    let [s0, s1, s2, s3] = serial.to_be_bytes();
    // Refresh 7200, retry 1800, expire 86400: for secondaries, which there are none of.
    [
        z0, z1, 0, 6, 0, 1, t0, t1, t2, t3, 0, 42, // owner, type, class, TTL, length
        2, b'n', b's', 3, b'd', b'n', b's', z0, z1, // server
        10, b'h', b'o', b's', b't', b'm', b'a', b's', b't', b'e', b'r', z0,
        z1, // whom to write to
        s0, s1, s2, s3, 0, 0, 0x1c, 0x20, 0, 0, 0x07, 0x08, 0, 1, 0x51, 0x80, t0, t1, t2, t3,
    ]
}

/// What we take, in an answer to whoever said it, too; `rcode` in full.
#[inline(always)]
pub fn opt(dnssec: bool, rcode: u8) -> [u8; OPT_SIZE] {
    let [s0, s1] = MAX_SIZE.to_be_bytes();
    [0, 0, 41, s0, s1, rcode >> 4, 0, (dnssec as u8) << 7, 0, 0, 0]
}

impl Query {
    /// Bytes of a datagram that the client takes, as far as we make use of it.
    #[inline(always)]
    pub fn room(&self) -> u16 {
        match self.edns {
            None => PLAIN_SIZE,
            Some(Edns { size, .. }) => size.clamp(PLAIN_SIZE, MAX_SIZE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query with these flags, numbers of records, and bytes behind the header.
    fn query(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        bytes.extend(rest);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Query, Vec<u8>), Unfit> {
        let mut name = [[0xff; 8]; 32];
        let query = parse(bytes, &mut name)?;
        let (name, zeros) = name.as_flattened().split_at(query.name.into());
        assert!(zeros.iter().all(|byte| *byte == 0));
        Ok((query, name.to_vec()))
    }

    #[test]
    fn a_question_is_read_and_its_name_made_small() {
        let bytes = query(0x0100, [1, 0, 0, 0], b"\x03WeB\x06Sh[@z{\0\0\x1c\0\x01");
        let (query, name) = read(&bytes).unwrap();
        assert_eq!(name, b"\x03web\x06sh[@z{\0");
        let (id, flags) = ([0xab, 0xcd], 0x0100);
        assert_eq!(query, Query { id, flags, name: 12, kind: kind::AAAA, class: IN, edns: None });
        assert_eq!(query.room(), 512);
    }

    #[test]
    fn edns_says_what_the_client_takes() {
        let of = |size: u16| {
            let [s0, s1] = size.to_be_bytes();
            let rest = [0, 0, 1, 0, 1, 0, 0, 41, s0, s1, 0, 0, 0x80, 0, 0, 2, 9, 9];
            read(&query(0, [1, 0, 0, 1], &rest)).unwrap().0
        };
        assert_eq!(of(4096).edns, Some(Edns { size: 4096, version: 0, dnssec: true }));
        assert_eq!([0, 600, 4096].map(|size| of(size).room()), [512, 600, 1232]);
    }

    #[test]
    fn what_is_no_plain_query_is_said() {
        let good = query(0x0100, [1, 0, 0, 0], b"\x01a\0\0\x01\0\x01");
        assert!(read(&good).is_ok());
        for length in 0..good.len() {
            let unfit = if length < 12 { Unfit::Short } else { Unfit::Question };
            assert_eq!(read(&good[..length]), Err(unfit), "{length} bytes");
        }
        let question = b"\x01a\0\0\x01\0\x01";
        let with = |rest: &[u8]| [question, rest].concat();
        let long = [&[63; 64 * 4], &[0, 0, 1, 0, 1][..]].concat();
        for (what, bytes, unfit) in [
            ("an answer", query(0x8000, [1, 0, 0, 0], question), Unfit::Answer),
            ("a notice", query(0x2000, [1, 0, 0, 0], question), Unfit::Header),
            ("a truncated one", query(0x0200, [1, 0, 0, 0], question), Unfit::Header),
            ("no question", query(0, [0, 0, 0, 0], question), Unfit::Header),
            ("two questions", query(0, [2, 0, 0, 0], question), Unfit::Header),
            ("257 questions", query(0, [257, 0, 0, 0], question), Unfit::Header),
            ("an answer's record", query(0, [1, 1, 0, 0], question), Unfit::Header),
            ("an authority's record", query(0, [1, 0, 1, 0], question), Unfit::Header),
            ("two more records", query(0, [1, 0, 0, 2], question), Unfit::Header),
            ("a pointer", query(0, [1, 0, 0, 0], b"\xc0\x0c\0\x01\0\x01"), Unfit::Question),
            ("a long name", query(0, [1, 0, 0, 0], &long), Unfit::Question),
            ("bytes behind it", query(0, [1, 0, 0, 0], &with(b"x")), Unfit::Rest),
            ("no OPT", query(0, [1, 0, 0, 1], question), Unfit::Rest),
            (
                "another record",
                query(0, [1, 0, 0, 1], &with(&[0, 0, 1, 4, 208, 0, 0, 0, 0, 0, 0])),
                Unfit::Rest,
            ),
            (
                "OPT of a name",
                query(0, [1, 0, 0, 1], &with(&[1, b'a', 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0])),
                Unfit::Rest,
            ),
            (
                "OPT that ends early",
                query(0, [1, 0, 0, 1], &with(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 1])),
                Unfit::Rest,
            ),
        ] {
            assert_eq!(read(&bytes), Err(unfit), "{what}");
        }
    }

    #[test]
    fn a_name_has_255_bytes_at_most_and_no_more_than_there_is_room_for() {
        let of = |last: u8| {
            let labels = [63, 63, 63, last].map(|n| [&[n][..], &vec![b'x'; n.into()]].concat());
            query(0, [1, 0, 0, 0], &[&labels.concat()[..], &[0, 0, 1, 0, 1]].concat())
        };
        assert_eq!(read(&of(61)).unwrap().0.name, 255);
        assert_eq!(read(&of(62)), Err(Unfit::Question));
        let short = |last: u8| {
            let label = vec![b'x'; last.into()];
            query(0, [1, 0, 0, 0], &[&[last], &label[..], &[0, 0, 1, 0, 1]].concat())
        };
        assert_eq!(parse(&*short(14), &mut [[0; 8]; 2]).unwrap().name, 16);
        assert_eq!(parse(&*short(15), &mut [[0; 8]; 2]), Err(Unfit::Question));
        // As many labels as there can be.
        let many = [&[1, b'x'].repeat(127)[..], &[0, 0, 1, 0, 1]].concat();
        assert_eq!(read(&query(0, [1, 0, 0, 0], &many)).unwrap().0.name, 255);
    }

    #[test]
    fn small_letters_are_those_of_ascii_alone() {
        for byte in 0..=255_u8 {
            let all = u64::from_le_bytes([byte, 0x80, 0xff, byte, b'Z', 0, byte, b'a']);
            let small = small_letters(all).to_le_bytes();
            let byte = byte.to_ascii_lowercase();
            assert_eq!(small, [byte, 0x80, 0xff, byte, b'z', 0, byte, b'a']);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0..=255_u8, 0..600)) {
            let _ = read(&bytes);
            let _ = parse(&bytes[..], &mut [[0; 8]; 16]);
        }
    }
}
