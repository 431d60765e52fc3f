//! The one key that the model knows.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A WireGuard public key (Curve25519, RFC 7748), as wg(8) writes it: the base64 of its 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireGuardKey(pub [u8; 32]);

/// A text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no WireGuard key: must be the base64 of 32 bytes, not all zero")]
pub struct NotAKey(String);

impl fmt::Display for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WireGuardKey({self})")
    }
}

impl FromStr for WireGuardKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let bytes = BASE64_STANDARD.decode(text).ok();
        let key = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        // All zero is what the kernel takes for no key at all.
        let key = key.filter(|key| *key != [0; 32]);
        key.map(Self).ok_or_else(|| NotAKey(text.chars().take(64).collect()))
    }
}

impl Serialize for WireGuardKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WireGuardKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_written_as_wg_does() {
        let text = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        let key: WireGuardKey = text.parse().unwrap();
        assert_eq!((key.0[0], key.0[31]), (0x85, 0x6a));
        assert_eq!(key.to_string(), text);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<WireGuardKey>(&json).unwrap(), key);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let zero = BASE64_STANDARD.encode([0; 32]);
        let long = BASE64_STANDARD.encode([1; 33]);
        let unpadded = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo";
        for bad in ["", "key", &zero, &long, unpadded, " hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066Spjqqb="]
        {
            assert!(bad.parse::<WireGuardKey>().is_err(), "{bad}");
        }
    }
}
