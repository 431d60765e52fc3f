//! A digest over a set of texts that follows single insertions and removals.
//!
//! It finds bugs and damage, not forgery: who may speak at all is the connection's business.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// FNV-1a, 64 bits: a few lines, the same on every machine, good enough to notice damage.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    hash_on(HASH_OF_NOTHING, bytes)
}

/// Where [`hash_on`] begins.
pub(crate) const HASH_OF_NOTHING: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of what has `hash`, and then these bytes.
pub(crate) fn hash_on(hash: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The wrapping sum of the members' hashes: independent of order, and undone by subtraction. On the
/// wire sixteen hexadecimal digits, because a JSON number that large does not survive every reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    /// Of a single member, or of several that one number stands for.
    pub(crate) fn of(hash: u64) -> Self {
        Self(hash)
    }

    /// What takes part in a digest over digests.
    pub(crate) fn value(self) -> u64 {
        self.0
    }

    /// Takes a member's hash in.
    pub(crate) fn add(&mut self, hash: u64) {
        self.0 = self.0.wrapping_add(hash);
    }

    /// Takes it out again.
    pub(crate) fn remove(&mut self, hash: u64) {
        self.0 = self.0.wrapping_sub(hash);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16)
            .map(Self)
            .map_err(|_| serde::de::Error::custom(format!("\"{text}\" is not a digest")))
    }
}
