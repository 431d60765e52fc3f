//! Writes answers: names as pointers where they stand already, never more bytes than the client takes.

use std::iter;

use fairway_core::dns::{self, Counts, HEADER, OPT_SIZE, Query, flag};

use super::Transport;
use crate::name::{Name, labels};

/// Where answers are written, again and again; and what their order is at random by.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    dice: u64,
}

impl Buffer {
    /// An empty one, whose numbers follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { bytes: Vec::with_capacity(dns::MAX_SIZE.into()), dice: seed | 1 }
    }

    /// What was written last.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// To write what comes from elsewhere.
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// A number at random, as good as the order of records needs it (xorshift64*; Vigna 2016).
    pub(crate) fn dice(&mut self) -> u32 {
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        (self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

/// The sections of an answer behind the question, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// What was asked for.
    Answer,
    /// Who says so, or that there is nothing.
    Authority,
    /// What will be asked for next.
    Additional,
}

/// Whose record it is.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// That of the name at this offset of the answer.
    At(u16),
    /// That of this name, in the form of messages.
    Name(&'a [u8]),
}

impl Owner<'_> {
    /// That of the question.
    pub const QUESTION: Self = Self::At(HEADER);
}

/// What a record says.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// These bytes, which hold no pointers.
    Bytes(&'a [u8]),
    /// A name, which may become a pointer.
    Name(&'a [u8]),
    /// A name in full, behind these bytes (RFC 2782: of SRV, no pointer).
    Plain(&'a [u8], &'a [u8]),
}

/// An answer that is being written. Sections are written in their order.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    query: Query,
    /// Bytes that it may have without OPT.
    room: usize,
    counts: Counts,
    flags: u16,
    /// Offsets of names, each with all that is behind it, that pointers may lead to.
    known: [u16; 24],
    known_count: usize,
}

impl<'a> Reply<'a> {
    /// An answer to `query`, which was read of `message`, without any record yet.
    pub fn begin(query: &Query, message: &[u8], transport: Transport, out: &'a mut Buffer) -> Self {
        let room = match transport {
            Transport::Udp => usize::from(query.room()),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let room = room - query.edns.map_or(0, |_| OPT_SIZE);
        let out = &mut out.bytes;
        out.clear();
        let end = usize::from(HEADER + query.name) + 4;
        out.extend_from_slice(message.get(..end).unwrap_or(message));
        Self {
            out,
            query: *query,
            room,
            counts: Counts::default(),
            flags: 0,
            known: [0; 24],
            known_count: 0,
        }
    }

    /// Says that it comes from who keeps the zone.
    pub fn authoritative(&mut self) {
        self.flags |= flag::AUTHORITATIVE;
    }

    /// Says that there is more than it has room for.
    pub fn truncated(&mut self) {
        self.flags |= flag::TRUNCATED;
    }

    /// Whether it has been said that there is more.
    pub fn is_truncated(&self) -> bool {
        self.flags & flag::TRUNCATED != 0
    }

    /// How many records the answer section has.
    pub fn count(&self) -> u16 {
        self.counts.answers
    }

    /// Whether the answer section has no record.
    pub fn is_empty(&self) -> bool {
        self.counts.answers == 0
    }

    /// Where the next record begins.
    pub fn position(&self) -> usize {
        self.out.len()
    }

    /// Appends a record; says so if there is no room for it. One that does not fit makes the answer a truncated one,
    /// unless it is additional.
    pub fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        kind: u16,
        ttl: u32,
        data: Data<'_>,
    ) -> bool {
        let start = self.out.len();
        match owner {
            Owner::At(at) => self.out.extend_from_slice(&dns::pointer(at)),
            Owner::Name(name) => self.name(name),
        }
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&dns::IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        let length = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        match data {
            Data::Bytes(bytes) => self.out.extend_from_slice(bytes),
            Data::Name(name) => self.name(name),
            Data::Plain(bytes, name) => {
                self.out.extend_from_slice(bytes);
                self.out.extend_from_slice(name);
            }
        }
        let size = u16::try_from(self.out.len() - length - 2).unwrap_or(u16::MAX);
        self.out[length..length + 2].copy_from_slice(&size.to_be_bytes());
        self.keep(section, start)
    }

    /// Appends that each of the names is an alias of the next, unless that is the same.
    pub(super) fn aliases<'n>(&mut self, names: impl Iterator<Item = &'n Name>, ttl: u32) {
        let mut owner: Option<&Name> = None;
        for name in names {
            if let Some(owner) = owner.filter(|owner| *owner != name) {
                let data = Data::Name(name.as_wire());
                let owner = Owner::Name(owner.as_wire());
                self.record(Section::Answer, owner, dns::kind::CNAME, ttl, data);
            }
            owner = Some(name);
        }
    }

    /// Appends a record that is already in the form of messages.
    pub(crate) fn ready<const N: usize>(&mut self, section: Section, record: [u8; N]) -> bool {
        let start = self.out.len();
        self.out.extend_from_slice(&record);
        self.keep(section, start)
    }

    /// Counts the record from `start` on, or takes it back.
    fn keep(&mut self, section: Section, start: usize) -> bool {
        if self.out.len() > self.room {
            self.out.truncate(start);
            self.known_count =
                self.known[..self.known_count].partition_point(|at| usize::from(*at) < start);
            if section != Section::Additional {
                self.truncated();
            }
            return false;
        }
        let count = match section {
            Section::Answer => &mut self.counts.answers,
            Section::Authority => &mut self.counts.authorities,
            Section::Additional => &mut self.counts.additional,
        };
        *count += 1;
        true
    }

    /// Appends a name, of which as much as possible is a pointer.
    fn name(&mut self, name: &[u8]) {
        if self.known_count == 0 {
            self.remember(HEADER.into());
        }
        let (mut rest, begin) = (name, self.out.len());
        while let Some((length, _)) = rest.split_first().filter(|(length, _)| **length != 0) {
            let known = self.known[..self.known_count].iter();
            // This one has no end yet, and would seem to be each part of itself.
            let mut known = known.copied().take_while(|at| usize::from(*at) < begin);
            if let Some(at) = known.find(|at| self.is_at(*at, rest)) {
                self.out.extend_from_slice(&dns::pointer(at));
                return;
            }
            let label = &rest[..rest.len().min(usize::from(*length) + 1)];
            self.know(self.out.len());
            self.out.extend_from_slice(label);
            rest = &rest[label.len()..];
        }
        self.out.push(0);
    }

    /// Notes the name at `at`, which has no pointers, and all that are above it.
    fn remember(&mut self, mut at: usize) {
        while let Some(length) = self.out.get(at).filter(|length| (1..64).contains(*length)) {
            let next = at + usize::from(*length) + 1;
            self.know(at);
            at = next;
        }
    }

    fn know(&mut self, at: usize) {
        if let (Some(place), Ok(at)) = (self.known.get_mut(self.known_count), u16::try_from(at))
            && at < 1 << 14
        {
            *place = at;
            self.known_count += 1;
        }
    }

    /// Whether `name` stands at `at`. Pointers lead backwards, so this comes to an end.
    fn is_at(&self, at: u16, name: &[u8]) -> bool {
        let mut at = usize::from(at);
        let there = iter::from_fn(|| {
            while self.out.get(at)? & 0xc0 == 0xc0 {
                let before =
                    usize::from(self.out[at] & 0x3f) << 8 | usize::from(*self.out.get(at + 1)?);
                at = Some(before).filter(|before| *before < at)?;
            }
            let length = usize::from(self.out[at]);
            let label = self.out.get(at + 1..at + 1 + length).filter(|label| !label.is_empty())?;
            at += 1 + length;
            Some(label)
        });
        let mut there = there.fuse();
        labels(name)
            .all(|label| there.next().is_some_and(|other| other.eq_ignore_ascii_case(label)))
            && there.next().is_none()
    }

    /// The whole answer.
    pub fn finish(mut self, rcode: u8) -> &'a [u8] {
        if let Some(edns) = self.query.edns {
            self.out.extend_from_slice(&dns::opt(edns.dnssec, rcode));
            self.counts.additional += 1;
        }
        let flags = dns::answer_flags(self.query.flags, rcode) | self.flags;
        let header = dns::header(self.query.id, flags, self.counts);
        self.out[..header.len()].copy_from_slice(&header);
        self.out
    }
}

/// The header of an answer to a message of which there is no more to be read.
pub(super) fn header_alone<'a>(message: &[u8], rcode: u8, out: &'a mut Buffer) -> Option<&'a [u8]> {
    let [id0, id1, flags0, flags1, ..] = *message.first_chunk::<12>()?;
    let flags = dns::answer_flags(u16::from_be_bytes([flags0, flags1]), rcode);
    let mut header = dns::header([id0, id1], flags, Counts::default());
    header[5] = 0;
    out.bytes.clear();
    out.bytes.extend_from_slice(&header);
    Some(&out.bytes)
}
