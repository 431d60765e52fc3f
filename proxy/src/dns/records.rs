//! Records as text, as in a zone's file (RFC 1035, 5.1), for people. Of types that are not known here, the bytes
//! (RFC 3597, 5).

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Types by name.
const KINDS: [(&str, u16); 15] = [
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("PTR", 12),
    ("HINFO", 13),
    ("MX", 15),
    ("TXT", 16),
    ("AAAA", 28),
    ("SRV", 33),
    ("DS", 43),
    ("DNSKEY", 48),
    ("HTTPS", 65),
    ("ANY", 255),
    ("CAA", 257),
];

/// Outcomes by number (RFC 1035, 4.1.1).
const OUTCOMES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];

/// A type by its name, or its number as `TYPE65`.
pub(super) fn kind(text: &str) -> Option<u16> {
    let text = text.to_uppercase();
    let known = KINDS.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
    known.or_else(|| text.strip_prefix("TYPE")?.parse().ok())
}

/// The outcome and the answers of a message; `None` if it is cut.
pub(super) fn read(message: &[u8]) -> Option<(String, Vec<String>)> {
    let outcome = usize::from(message.get(3)? & 0xf);
    let outcome =
        OUTCOMES.get(outcome).map_or_else(|| format!("RCODE{outcome}"), ToString::to_string);
    let mut reader = Reader { message, at: 4 };
    let [questions, answers] = [reader.number()?, reader.number()?];
    reader.at = 12;
    for _ in 0..questions {
        reader.name()?;
        reader.take(4)?;
    }
    let answers = (0..answers).map(|_| reader.record()).collect::<Option<_>>()?;
    Some((outcome, answers))
}

/// A message, and how far it was read.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn long(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// With the dot at its end. Pointers lead back, and not for ever (RFC 1035, 4.1.4).
    fn name(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut end = None;
        for _ in 0..256 {
            let length = self.take(1)?[0];
            match length {
                0 => {
                    self.at = end.unwrap_or(self.at);
                    return Some(if text.is_empty() { ".".to_owned() } else { text });
                }
                1..64 => {
                    text.push_str(&self.take(length.into())?.escape_ascii().to_string());
                    text.push('.');
                }
                192.. => {
                    let low = self.take(1)?[0];
                    end.get_or_insert(self.at);
                    self.at = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                }
                64..192 => return None,
            }
        }
        None
    }

    fn record(&mut self) -> Option<String> {
        let name = self.name()?;
        let (kind, _class, ttl) = (self.number()?, self.number()?, self.long()?);
        let length = usize::from(self.number()?);
        let end = self.at.checked_add(length)?;
        let data = self.data(kind, end)?;
        self.at = end;
        let known = KINDS.iter().find(|(_, number)| *number == kind);
        let kind = known.map_or_else(|| format!("TYPE{kind}"), |(name, _)| (*name).to_owned());
        Some(format!("{name} {ttl} IN {kind} {data}"))
    }

    fn data(&mut self, kind: u16, end: usize) -> Option<String> {
        let bytes = self.message.get(self.at..end)?;
        Some(match kind {
            1 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string(),
            28 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string(),
            2 | 5 | 12 => self.name()?,
            15 => format!("{} {}", self.number()?, self.name()?),
            33 => {
                let [priority, weight, port] = [self.number()?, self.number()?, self.number()?];
                format!("{priority} {weight} {port} {}", self.name()?)
            }
            6 => {
                let mut text = format!("{} {}", self.name()?, self.name()?);
                for _ in 0..5 {
                    // Writing to a string cannot fail.
                    let _ = write!(text, " {}", self.long()?);
                }
                text
            }
            13 | 16 => {
                let mut texts = Vec::new();
                while self.at < end {
                    let length = self.take(1)?[0];
                    texts.push(format!("\"{}\"", self.take(length.into())?.escape_ascii()));
                }
                texts.join(" ")
            }
            _ => {
                let mut text = format!("\\# {}", bytes.len());
                for (number, byte) in bytes.iter().enumerate() {
                    let space = if number == 0 { " " } else { "" };
                    let _ = write!(text, "{space}{byte:02x}");
                }
                text
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer for `a.b` with a record of this type and data, whose name is a pointer to the question's.
    fn message(kind: u8, data: &[u8]) -> Vec<u8> {
        let length = u8::try_from(data.len()).expect("short data");
        let head = [0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        let question = [1, b'a', 1, b'b', 0, 0, kind, 0, 1];
        [&head[..], &question, &[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 9, 0, length], data].concat()
    }

    #[test]
    fn records_are_shown_as_in_a_zones_file() {
        for (kind, data, expected) in [
            (1, &[10, 0, 0, 1][..], "A 10.0.0.1"),
            (28, &[0; 16], "AAAA ::"),
            (5, &[1, b'c', 0xc0, 14], "CNAME c.b."),
            (33, &[0, 1, 0, 2, 0, 53, 0], "SRV 1 2 53 ."),
            (16, &[2, b'h', b'i', 1, b'"'], "TXT \"hi\" \"\\\"\""),
            (99, &[1, 0xab], "TYPE99 \\# 2 01ab"),
        ] {
            let (outcome, answer) = read(&message(kind, data)).expect("a good message");
            assert_eq!((&*outcome, &*answer), ("NOERROR", &[format!("a.b. 9 IN {expected}")][..]));
        }
    }

    #[test]
    fn what_is_cut_or_goes_round_is_not_shown() {
        let good = message(5, &[1, b'c', 0xc0, 14]);
        for length in 0..good.len() {
            assert_eq!(read(&good[..length]), None, "{length}");
        }
        assert_eq!(read(&message(5, &[0xc0, 33])), None, "a pointer to itself");
        assert_eq!(read(&message(1, &[10, 0, 0])), None);
    }

    #[test]
    fn types_have_names_and_numbers() {
        assert_eq!([kind("srv"), kind("TYPE65"), kind("NOPE")], [Some(33), Some(65), None]);
    }
}
