//! SCTP's checksum, changed by difference.
//!
//! RFC 9260, 6.8: a CRC32c over the whole packet with zero in the checksum's place, and no pseudo header:
//! other addresses change nothing, other ports do. A CRC is linear. Where a few bytes change, it changes
//! by the CRC (begun with zero, not inverted) of their difference with zeros for all that follows, and
//! nothing of the packet but its length need be known. What follows counts as a power of x, by which the
//! difference is multiplied modulo the CRC's polynomial.
//!
//! A sender whose device finishes checksums leaves zero in the field. Programs are not told so by the
//! kernel, but zero is also what a checksum is once in four billion packets, so a field of zero is left
//! alone: the device covers the ports as they are then. In the rare other case the receiver drops the
//! packet and its sender sends it again, with another checksum if only because of its other neighbours.

use core::hint::black_box;

use zerocopy::network_endian::U16;

/// The Castagnoli polynomial; in all of these numbers the highest bit stands for the lowest power of x.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The number that changes nothing when multiplied with.
const ONE: u32 = 1 << 31;

/// `SKIP[k][i][nibble]` is what 2^k bytes of zeros make of a register that holds `nibble` in its i-th
/// four bits, the lowest first, and nothing else. Looked up because the programs' verifier counts what a
/// multiplication bit by bit would cost on every way that a packet may take to here.
static SKIP: [[[u32; 16]; 8]; 16] = {
    let mut tables = [[[0; 16]; 8]; 16];
    let mut power = ONE >> 1; // x
    let mut squared = 0;
    while squared < 3 {
        power = multiply(power, power);
        squared += 1;
    }
    let mut at: u32 = 0;
    while at < 16 * 8 * 16 {
        let (k, i, nibble) = (at / 128, at / 16 % 8, at % 16);
        tables[k as usize][i as usize][nibble as usize] = multiply(nibble << (4 * i), power);
        at += 1;
        if at.is_multiple_of(128) {
            power = multiply(power, power);
        }
    }
    tables
};

/// The checksum field of a packet of `length` bytes, counted from its SCTP header, when its ports were
/// and are these.
#[inline(always)]
pub fn adjust(field: [u8; 4], was: [U16; 2], is: [U16; 2], length: u32) -> [u8; 4] {
    if field == [0; 4] {
        return field;
    }
    let word = |[source, destination]: [U16; 2]| {
        let ([a, b], [c, d]) = (source.to_bytes(), destination.to_bytes());
        u32::from_le_bytes([a, b, c, d])
    };
    // The ports are the packet's first four bytes; a CRC register takes them in by their own length.
    let mut difference = word(was) ^ word(is);
    let mut k = 0;
    while k < 16 {
        let mut skipped = 0;
        let mut i = 0;
        while i < 8 {
            skipped ^= SKIP[k][i][(difference >> (4 * i) & 15) as usize];
            i += 1;
        }
        // A mask instead of a branch, and unknown to the compiler, which would make a branch of it: the
        // verifier would walk both sides of each, 2^16 ways in all.
        let mask = black_box((length >> k & 1).wrapping_neg());
        difference ^= (skipped ^ difference) & mask;
        k += 1;
    }
    (u32::from_le_bytes(field) ^ difference).to_le_bytes()
}

/// The product modulo the polynomial.
const fn multiply(mut a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= a & ((b << bit) >> 31).wrapping_neg();
        a = (a >> 1) ^ (POLYNOMIAL & (a & 1).wrapping_neg());
        bit += 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 9260, appendix A, bit by bit.
    fn full(packet: &[u8]) -> [u8; 4] {
        let mut register = u32::MAX;
        for byte in packet {
            register ^= u32::from(*byte);
            for _ in 0..8 {
                let carry = register & 1;
                register >>= 1;
                if carry == 1 {
                    register ^= POLYNOMIAL;
                }
            }
        }
        (!register).to_le_bytes()
    }

    #[test]
    fn the_reference_is_the_known_one() {
        assert_eq!(full(b"123456789"), 0xe306_9283_u32.to_le_bytes());
    }

    proptest! {
        #[test]
        fn adjusting_equals_recomputing(
            rest in prop::collection::vec(any::<u8>(), 8..2000),
            was in any::<[u16; 2]>(),
            is in any::<[u16; 2]>(),
        ) {
            let packet = |[source, destination]: [u16; 2]| {
                let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                [ports.as_slice(), &rest].concat()
            };
            let length = u32::try_from(packet(was).len()).unwrap();
            let field = full(&packet(was));
            prop_assume!(field != [0; 4]);
            let adjusted = adjust(field, was.map(U16::new), is.map(U16::new), length);
            prop_assert_eq!(adjusted, full(&packet(is)));
        }

        #[test]
        fn a_field_left_to_a_device_stays_so(is in any::<[u16; 2]>(), length in 12u32..65_536) {
            prop_assert_eq!(adjust([0; 4], [U16::ZERO; 2], is.map(U16::new), length), [0; 4]);
        }
    }
}
