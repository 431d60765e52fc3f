//! Names in the form that messages have.

use std::fmt;
use std::str::FromStr;

use fairway_core::dns::MAX_NAME;

/// A name: labels with their lengths before them, the root's empty one at last (RFC 1035, 3.1), without pointers and in
/// small letters. Names that are the same to the DNS are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no name of the DNS: labels of 1 to 63 letters, digits, '-' and '_' with dots between, 253 in all"
)]
pub struct NotAName;

impl Name {
    /// The name above all.
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// Of the bytes that a name has in a message; `None` unless they are a whole name without pointers.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        loop {
            let (length, behind) = rest.split_first()?;
            if *length == 0 {
                let fits = behind.is_empty() && bytes.len() <= MAX_NAME;
                return fits.then(|| Self(bytes.to_ascii_lowercase().into()));
            }
            rest = behind.get(usize::from(*length)..).filter(|_| *length < 64)?;
        }
    }

    /// As in a message.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// From the most special one on, without the root's.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        labels(&self.0)
    }

    /// Whether it is `zone`, or below it.
    pub fn is_within(&self, zone: &Self) -> bool {
        self.prefix_in(zone).is_some()
    }

    /// Its labels below `zone`, if it is within it.
    pub fn prefix_in(&self, zone: &Self) -> Option<&[u8]> {
        let mut rest = &self.0[..];
        while rest.len() > zone.0.len() {
            rest = rest.get(usize::from(rest[0]) + 1..)?;
        }
        (*rest == *zone.0).then(|| &self.0[..self.0.len() - rest.len()])
    }

    /// These labels, in the form of messages and without the root's, below `zone`; `None` if that is too long.
    pub fn below(labels: &[u8], zone: &Self) -> Option<Self> {
        Self::from_wire(&[labels, &zone.0].concat())
    }
}

/// Labels in the form of messages, up to the root's or the end.
pub(crate) fn labels(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, behind) = wire.split_first()?;
        let label = behind.get(..usize::from(*length)).filter(|label| !label.is_empty())?;
        wire = &behind[label.len()..];
        Some(label)
    })
}

/// With or without a dot at the end; `.` is the root.
impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            let length = u8::try_from(label.len()).map_err(|_| NotAName)?;
            if !(1..64).contains(&length) || !label.bytes().all(good) {
                return Err(NotAName);
            }
            wire.push(length);
            wire.extend(label.bytes());
        }
        wire.push(0);
        Self::from_wire(&wire).ok_or(NotAName)
    }
}

/// With the dot at the end; what is no printable ASCII, a dot or a backslash as in a zone's file (RFC 1035, 5.1).
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 {
            return f.write_str(".");
        }
        for label in self.labels() {
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..0x7f => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn texts_and_wires() {
        assert_eq!(name("Web.Shop.").as_wire(), b"\x03web\x04shop\0");
        assert_eq!(name("web.shop"), name("WEB.shop."));
        assert_eq!(name(".").as_wire(), b"\0");
        assert_eq!(name("_http._tcp.web").to_string(), "_http._tcp.web.");
        assert_eq!(Name::root().to_string(), ".");
        let odd = Name::from_wire(b"\x04a.\\ \x01\xff\0").unwrap();
        assert_eq!(odd.to_string(), "a\\.\\\\\\032.\\255.");
        let long = format!("{}.{}", vec!["x".repeat(63); 3].join("."), "x".repeat(61));
        assert_eq!(name(&long).as_wire().len(), 255);
        for bad in ["", "a..b", ".a", "a b", "ä", &"x".repeat(64), &format!("{long}x")] {
            let bad = bad.parse::<Name>();
            assert!(bad == Err(NotAName) || bad == Ok(Name::root()), "{bad:?}");
        }
        for bad in [&b""[..], b"\x01", b"\x01a", b"\x01a\0b", b"\xc0\x0c", b"\x40a\0"] {
            assert_eq!(Name::from_wire(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn within_a_zone_is_what_ends_with_its_labels() {
        let zone = name("cluster.local");
        assert_eq!(name("web.cluster.local").prefix_in(&zone), Some(&b"\x03web"[..]));
        assert_eq!(zone.prefix_in(&zone), Some(&b""[..]));
        assert!(!name("xcluster.local").is_within(&zone));
        assert!(!name("local").is_within(&zone));
        assert!(name("local").is_within(&Name::root()));
        // The bytes are those of the zone, but begin within a label.
        let trap = Name::from_wire(b"\x0ex\x07cluster\x05local\0").unwrap_or_else(Name::root);
        assert!(!trap.is_within(&zone));
    }

    #[test]
    fn labels_go_below_a_zone_as_far_as_there_is_room() {
        let zone = name("cluster.local");
        assert_eq!(Name::below(b"\x03web", &zone), Some(name("web.cluster.local")));
        assert_eq!(Name::below(&[&[63][..], &[b'x'; 63]].concat().repeat(4), &zone), None);
    }
}
