//! Messages between us and an upstream.
//!
//! What an upstream sends is checked as a whole before anybody relies on it, and kept as it came: names in it point to each other
//! by their place, so that only its question, its times to live and what follows the last record are ever written anew.

use std::ops::Range;
use std::time::Duration;

use fairway_core::dns::{self, Counts, Query, flag, kind, rcode};

use crate::answer::{self, Data, Owner, Section, Transport};
use crate::name::Name;

/// Bytes of a header.
pub(crate) const HEADER: usize = dns::HEADER as usize;

/// Types of records with names or a fixed length in them that clients do not ask this crate for
/// (RFC 1035, 3.3; RFC 6672; RFC 8945).
mod other {
    pub(super) const MX: u16 = 15;
    pub(super) const DNAME: u16 = 39;
    pub(super) const TSIG: u16 = 250;
}

/// That what is said has been verified, in a header's fourth byte (RFC 4035, 3.2.3).
const AUTHENTIC: u8 = 0x20;

/// What is asked of others, whoever wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: Name,
    pub(crate) kind: u16,
    /// With signatures.
    pub(crate) signatures: bool,
    /// What cannot be verified, too.
    pub(crate) unchecked: bool,
}

impl Wanted {
    /// What `query` asks for, of this name.
    pub(crate) fn new(query: &Query, name: Name) -> Self {
        Self {
            name,
            kind: query.kind,
            signatures: query.edns.is_some_and(|edns| edns.dnssec),
            unchecked: query.flags & flag::CHECKING_DISABLED != 0,
        }
    }

    /// The query to an upstream: with this id, and the letters of the name that `letters` says bit by bit as large ones.
    pub(crate) fn query(&self, id: [u8; 2], letters: &[u8], edns: bool) -> Vec<u8> {
        let name = self.name.as_wire();
        let unchecked = if self.unchecked { flag::CHECKING_DISABLED } else { 0 };
        let counts = Counts { additional: edns.into(), ..Counts::default() };
        let mut query = Vec::with_capacity(HEADER + name.len() + 4 + dns::OPT_SIZE);
        query.extend_from_slice(&dns::header(id, flag::RECURSION_DESIRED | unchecked, counts));
        // Lengths of labels are below the letters.
        query.extend(name.iter().enumerate().map(|(at, byte)| {
            let large = letters.get(at / 8).is_some_and(|bits| bits >> (at % 8) & 1 == 1);
            if large { byte.to_ascii_uppercase() } else { *byte }
        }));
        query.extend_from_slice(&self.kind.to_be_bytes());
        query.extend_from_slice(&dns::IN.to_be_bytes());
        if edns {
            query.extend_from_slice(&dns::opt(self.signatures, rcode::NO_ERROR));
        }
        query
    }
}

/// Why a message is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Malformed {
    /// It ends before what it announces, or is longer than any is.
    Length,
    /// A name is too long, or its parts do not point backwards.
    Name,
    /// A record's data is not of its type.
    Data,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|two| u16::from_be_bytes(*two))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

/// A record's place in a message.
#[derive(Debug)]
struct Record {
    kind: u16,
    ttl: u32,
    /// Where the TTL is.
    ttl_at: usize,
    data: Range<usize>,
}

impl Record {
    /// The record that begins there. Its names have been followed to their ends.
    fn at(message: &[u8], at: usize) -> Result<Self, Malformed> {
        let owner = follow(message, at, |_| ())?;
        let field = |offset| u16_at(message, owner + offset).ok_or(Malformed::Length);
        let (kind, length) = (field(0)?, field(8)?);
        let ttl = u32_at(message, owner + 4).ok_or(Malformed::Length)?;
        let data = owner + 10..owner + 10 + usize::from(length);
        if data.end > message.len() {
            return Err(Malformed::Length);
        }
        let name_in_data = |before: usize, names: usize, after: usize| {
            let mut end = data.start + before;
            for _ in 0..names {
                end = follow(message, end, |_| ())?;
            }
            if end + after == data.end { Ok(()) } else { Err(Malformed::Data) }
        };
        match kind {
            kind::A if data.len() != 4 => return Err(Malformed::Data),
            kind::AAAA if data.len() != 16 => return Err(Malformed::Data),
            _ => {
                if let Some((before, names, after)) = names_in(kind) {
                    name_in_data(before, names, after)?;
                }
            }
        }
        Ok(Self { kind, ttl, ttl_at: owner + 4, data })
    }
}

/// Bytes before names in a record's data, how many names, and the bytes behind them; `None`: no names that may be pointers.
fn names_in(kind: u16) -> Option<(usize, usize, usize)> {
    Some(match kind {
        kind::NS | kind::CNAME | kind::PTR | other::DNAME => (0, 1, 0),
        other::MX => (2, 1, 0),
        kind::SRV => (6, 1, 0),
        kind::SOA => (0, 2, 20),
        _ => return None,
    })
}

/// Goes through a name label by label; returns where it ends at its own place. Pointers lead backwards alone, so that it ends.
fn follow(message: &[u8], at: usize, mut label: impl FnMut(&[u8])) -> Result<usize, Malformed> {
    let (mut at, mut end, mut length) = (at, None, 0);
    let mut before = at;
    loop {
        let first = *message.get(at).ok_or(Malformed::Length)?;
        match first {
            0 => {
                label(&[]);
                return Ok(end.unwrap_or(at + 1));
            }
            1..=63 => {
                let text = at + 1..at + 1 + usize::from(first);
                length += text.len() + 1;
                // And the root.
                if length >= dns::MAX_NAME {
                    return Err(Malformed::Name);
                }
                label(message.get(text.clone()).ok_or(Malformed::Length)?);
                at = text.end;
            }
            0xc0.. => {
                let to = usize::from(u16_at(message, at).ok_or(Malformed::Length)? & 0x3fff);
                if to < HEADER || to >= before {
                    return Err(Malformed::Name);
                }
                end = end.or(Some(at + 2));
                (at, before) = (to, to);
            }
            _ => return Err(Malformed::Name),
        }
    }
}

/// An upstream's answer, checked: without its OPT record and whatever came behind that.
#[derive(Debug)]
pub(crate) struct Reply {
    bytes: Box<[u8]>,
    /// Where the records begin.
    records: u16,
    /// Where the TTLs are, in order.
    ttls: Box<[u16]>,
    /// The upstream has verified it.
    authentic: bool,
    /// How long it holds; `None`: nothing says that it may be kept.
    ttl: Option<Duration>,
}

/// What came, seen from the question that was asked.
#[derive(Debug)]
pub(crate) enum Received {
    Reply(Reply),
    /// There is more, by TCP.
    Truncated,
    /// It answers something else: another id or question, or no answer at all.
    Unrelated,
    /// The same question in other letters.
    OtherLetters,
    /// It does not understand the query, as servers from before EDNS do not (RFC 6891, section 7).
    NoEdns,
    /// It answers the question, and is damaged.
    Malformed,
}

impl Reply {
    /// That nobody could say anything.
    pub(crate) fn failure(wanted: &Wanted) -> Self {
        let mut bytes = wanted.query([0; 2], &[], false);
        bytes[3] = rcode::SERV_FAIL;
        let records = u16::try_from(bytes.len()).unwrap_or_default();
        Self { bytes: bytes.into(), records, ttls: Box::default(), authentic: false, ttl: None }
    }

    /// Holds what came against the query that was sent, as [`Wanted::query`] makes them.
    pub(crate) fn receive(message: &[u8], query: &[u8]) -> Received {
        let has_edns = query[11] != 0;
        let end = query.len() - if has_edns { dns::OPT_SIZE } else { 0 };
        let Some(header) = message.first_chunk::<HEADER>() else { return Received::Unrelated };
        let flags = u16::from_be_bytes([header[2], header[3]]);
        let is_answer = header[..2] == query[..2] && flags & flag::RESPONSE != 0;
        if !is_answer || flags & flag::OPCODE != 0 {
            return Received::Unrelated;
        }
        let is_puzzled = matches!(header[3] & 0xf, rcode::FORM_ERR | rcode::NOT_IMP);
        let puzzled = if has_edns { Received::NoEdns } else { Received::Malformed };
        if is_puzzled && header[4..6] == [0, 0] {
            return puzzled;
        }
        let (Some(came), [0, 1]) = (message.get(HEADER..end), &header[4..6]) else {
            return Received::Unrelated;
        };
        let asked = &query[HEADER..end];
        if !came.eq_ignore_ascii_case(asked) {
            return Received::Unrelated;
        }
        if came != asked {
            return Received::OtherLetters;
        }
        if is_puzzled && has_edns && header[10..12] == [0, 0] {
            return Received::NoEdns;
        }
        if flags & flag::TRUNCATED != 0 {
            return Received::Truncated;
        }
        match Self::read(message, end) {
            Ok(reply) => Received::Reply(reply),
            Err(_) => Received::Malformed,
        }
    }

    fn read(message: &[u8], records: usize) -> Result<Self, Malformed> {
        let count = |at| u16_at(message, at).unwrap_or_default();
        let (answers, authorities, additional) = (count(6), count(8), count(10));
        let (mut at, mut ttls, mut least, mut negative) = (records, Vec::new(), u32::MAX, None);
        let wanted = u16_at(message, records - 4).unwrap_or_default();
        let mut has_wanted = wanted == kind::ANY;
        for number in 0..u32::from(answers) + u32::from(authorities) {
            let record = Record::at(message, at)?;
            if matches!(record.kind, kind::OPT | other::TSIG) {
                return Err(Malformed::Data);
            }
            least = least.min(normal(record.ttl));
            ttls.push(u16::try_from(record.ttl_at).map_err(|_| Malformed::Length)?);
            has_wanted |= number < u32::from(answers) && record.kind == wanted;
            if number >= u32::from(answers) && record.kind == kind::SOA {
                let minimum = u32_at(message, record.data.end - 4).ok_or(Malformed::Length)?;
                negative = Some(normal(record.ttl).min(normal(minimum)));
            }
            at = record.data.end;
        }
        let (mut kept, mut extended, mut beyond) = (0_u16, 0, false);
        let mut end = at;
        for _ in 0..additional {
            let record = Record::at(message, at)?;
            at = record.data.end;
            if matches!(record.kind, kind::OPT | other::TSIG) {
                beyond = true;
                if record.kind == kind::OPT {
                    extended = record.ttl >> 24;
                }
            } else if !beyond {
                kept += 1;
                least = least.min(normal(record.ttl));
                ttls.push(u16::try_from(record.ttl_at).map_err(|_| Malformed::Length)?);
                end = at;
            }
        }
        let mut bytes: Box<[u8]> = message[..end].into();
        bytes[10..12].copy_from_slice(&kept.to_be_bytes());
        let mut rcode = message[3] & 0xf;
        if extended != 0 {
            rcode = rcode::SERV_FAIL;
            bytes[3] = bytes[3] & 0xf0 | rcode;
        }
        // RFC 2308, section 5: what does not exist is kept as long as its zone's SOA says; also at the end of aliases (2.2).
        let ttl = match rcode {
            rcode::NO_ERROR if answers > 0 && has_wanted => Some(least),
            rcode::NO_ERROR | rcode::NX_DOMAIN => {
                negative.map(|negative| if answers == 0 { negative } else { negative.min(least) })
            }
            _ => None,
        };
        Ok(Self {
            bytes,
            records: u16::try_from(records).map_err(|_| Malformed::Length)?,
            ttls: ttls.into(),
            authentic: message[3] & AUTHENTIC != 0,
            ttl: ttl.map(|ttl| Duration::from_secs(ttl.into())),
        })
    }

    /// How it went: 0 well, 2 the server failed, 3 there is no such name (RFC 1035, section 4.1.1).
    pub(crate) fn rcode(&self) -> u8 {
        self.bytes[3] & 0xf
    }

    /// Whether it says neither what there is nor that there is nothing.
    pub(crate) fn is_failure(&self) -> bool {
        !matches!(self.rcode(), rcode::NO_ERROR | rcode::NX_DOMAIN)
    }

    /// Whether there is anything in its answer section.
    pub(crate) fn has_answers(&self) -> bool {
        self.bytes[6..8] != [0, 0]
    }

    /// How long it holds from when it came; `None`: not at all.
    pub(crate) fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    /// Bytes that it takes in memory.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + 2 * self.ttls.len() + size_of::<Self>()
    }

    /// Writes it as the answer to `query`, which was read of `message` and asks for the same.
    pub(crate) fn write(
        &self,
        query: &Query,
        message: &[u8],
        transport: Transport,
        ttl: Ttl,
        out: &mut Vec<u8>,
    ) {
        out.clear();
        let records = usize::from(self.records);
        let most = match transport {
            Transport::Udp => usize::from(query.room()),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let opt = query.edns.map(|edns| dns::opt(edns.dnssec, self.rcode()));
        let mut counts = Counts::default();
        let mut flags = dns::answer_flags(query.flags, self.rcode());
        let wants =
            query.edns.is_some_and(|edns| edns.dnssec) || query.flags & u16::from(AUTHENTIC) != 0;
        if self.authentic && wants {
            flags |= u16::from(AUTHENTIC);
        }
        if self.bytes.len() + opt.map_or(0, |opt| opt.len()) > most {
            // The client asks by TCP.
            flags |= flag::TRUNCATED;
            out.extend_from_slice(message.get(..records).unwrap_or(message));
        } else {
            out.extend_from_slice(&self.bytes);
            if let (Some(question), Some(asked)) =
                (out.get_mut(HEADER..records), message.get(HEADER..records))
            {
                question.copy_from_slice(asked);
            }
            for &at in &self.ttls {
                let at = usize::from(at);
                if let (Some(now), Some(place)) = (u32_at(&self.bytes, at), out.get_mut(at..at + 4))
                {
                    place.copy_from_slice(&ttl.of(normal(now)).to_be_bytes());
                }
            }
            let count = |at| u16_at(&self.bytes, at).unwrap_or_default();
            counts = Counts { answers: count(6), authorities: count(8), additional: count(10) };
        }
        if let Some(opt) = opt {
            out.extend_from_slice(&opt);
            counts.additional += 1;
        }
        let header = dns::header(query.id, flags, counts);
        out[..HEADER].copy_from_slice(&header);
    }

    /// Appends its answers, and who says that there are none, to an answer that was begun with aliases.
    pub(crate) fn append(&self, ttl: Ttl, out: &mut answer::Reply<'_>) {
        let count = |at| u16_at(&self.bytes, at).unwrap_or_default();
        let sections = [(Section::Answer, count(6)), (Section::Authority, count(8))];
        let sections =
            sections.into_iter().flat_map(|(section, count)| (0..count).map(move |_| section));
        let mut at = usize::from(self.records);
        for section in sections {
            // It has been read before.
            let Ok(record) = Record::at(&self.bytes, at) else { return };
            let owner = self.name_at(at).0;
            at = record.data.end;
            let data = self.data(&record);
            let data = match record.kind {
                kind::CNAME | kind::NS | kind::PTR => Data::Name(&data),
                _ => Data::Bytes(&data),
            };
            let ttl = ttl.of(normal(record.ttl));
            out.record(section, Owner::Name(&owner), record.kind, ttl, data);
        }
    }

    /// The record's data without pointers.
    fn data(&self, record: &Record) -> Vec<u8> {
        let Some((before, names, _)) = names_in(record.kind) else {
            return self.bytes[record.data.clone()].to_vec();
        };
        let mut at = record.data.start + before;
        let mut data = self.bytes[record.data.start..at].to_vec();
        for _ in 0..names {
            let (name, end) = self.name_at(at);
            data.extend(name);
            at = end;
        }
        data.extend_from_slice(&self.bytes[at..record.data.end]);
        data
    }

    /// The name there without pointers, and where it ends.
    fn name_at(&self, at: usize) -> (Vec<u8>, usize) {
        let mut name = Vec::with_capacity(dns::MAX_NAME);
        let end = follow(&self.bytes, at, |label| {
            name.push(u8::try_from(label.len()).unwrap_or_default());
            name.extend_from_slice(label);
        });
        // It has been followed before.
        (name, end.unwrap_or(at))
    }
}

/// A TTL with its highest bit set means none (RFC 2181, section 8).
fn normal(ttl: u32) -> u32 {
    if ttl > u32::MAX >> 1 { 0 } else { ttl }
}

/// What becomes of the TTLs of an answer that was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ttl {
    /// So many seconds have gone by; and none is told more than so many.
    Aged {
        /// Since it came.
        by: u32,
        /// Of what is left.
        most: u32,
    },
    /// It is older than it was to become (RFC 8767, section 4: at most 30 seconds are recommended).
    Stale,
}

impl Ttl {
    /// As it came.
    pub(crate) const NEW: Self = Self::Aged { by: 0, most: u32::MAX };

    fn of(self, ttl: u32) -> u32 {
        match self {
            Self::Aged { by, most } => ttl.saturating_sub(by).min(most),
            Self::Stale => 30,
        }
    }
}
