//! Keys made of other keys (HKDF-SHA256, RFC 5869), each for one purpose, which its label says.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Bytes that nobody can tell from random ones who does not know `secret`, the same for the same label. At
/// most 8,160 of them.
pub(crate) fn derive<const N: usize>(secret: &[u8], label: &[&[u8]]) -> [u8; N] {
    let mut made = [0; N];
    Salt::none(HKDF_SHA256)
        .extract(secret)
        .expand(label, Length(N))
        .and_then(|key| key.fill(&mut made))
        .expect("HKDF fails for its length alone");
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::hex;

    #[test]
    fn it_is_hkdf_as_everybody_has_it() {
        // RFC 5869, A.3.
        let made: [u8; 42] = derive(&[0x0b; 22], &[]);
        let wanted =
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8";
        assert_eq!(hex(&made), wanted);
    }
}
