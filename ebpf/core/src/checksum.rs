//! The Internet checksum (RFC 1071), changed by difference (RFC 1624).
//!
//! All sums are over words in the machine's own order: the checksum does not care, and it is the
//! form `bpf_l4_csum_replace` takes.

/// What a change adds to a ones'-complement sum: an accumulator with room for many carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// Replacing the word `old` by `new`, both as they lie in memory.
    #[inline(always)]
    pub fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// Replacing the half word `old` by `new`.
    #[inline(always)]
    pub fn half(self, old: [u8; 2], new: [u8; 2]) -> Self {
        // A half word alone complements to 16 bits; the other half of its word does not change.
        Self(self.0 + u64::from(!u16::from_ne_bytes(old)) + u64::from(u16::from_ne_bytes(new)))
    }

    /// A half word that was zero.
    #[inline(always)]
    pub fn half_word(self, new: [u8; 2]) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(new)))
    }

    /// What the kernel's sums (`__wsum`) say of words that were zero.
    #[inline(always)]
    pub fn sum(self, sum: u32) -> Self {
        Self(self.0 + u64::from(sum))
    }

    /// Both changes.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The same sum in 32 bits, the kernel's `__wsum`.
    #[inline(always)]
    pub fn to_u32(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        (sum & 0xffff_ffff) as u32
    }

    /// The same sum in 16 bits.
    #[inline(always)]
    pub(crate) fn to_u16(self) -> u16 {
        let sum = self.to_u32();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        (sum & 0xffff) as u16
    }
}

/// Brings a checksum field up to date after a change.
#[inline(always)]
pub(crate) fn adjust(field: [u8; 2], difference: Difference) -> [u8; 2] {
    let sum = u32::from(!u16::from_ne_bytes(field)) + u32::from(difference.to_u16());
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) as u16)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(bytes: &[u8]) -> [u8; 2] {
        let words = bytes.chunks(2).map(|w| u32::from(u16::from_ne_bytes([w[0], w[1]])));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).expect("folded")).to_ne_bytes()
    }

    proptest! {
        /// RFC 1624: the incremental sum equals the recomputed one.
        #[test]
        fn adjusting_equals_recomputing(
            before in prop::collection::vec(1u8.., 16),
            old in any::<[u8; 6]>(),
            new in any::<[u8; 6]>(),
        ) {
            let with = |part: &[u8; 6]| [before.as_slice(), part].concat();
            let word = |part: &[u8; 6]| u32::from_ne_bytes([part[0], part[1], part[2], part[3]]);
            let difference = Difference::default()
                .word(word(&old), word(&new))
                .half([old[4], old[5]], [new[4], new[5]]);
            prop_assert_eq!(adjust(full(&with(&old)), difference), full(&with(&new)));
        }
    }
}
