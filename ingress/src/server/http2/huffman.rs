//! The code that HPACK shortens texts with (RFC 7541, 5.2 and Appendix B).
//!
//! It is a canonical one: codes of one length follow each other in the order of their symbols, and longer codes are
//! greater. So the lengths say everything.

/// Bits of each symbol's code; the last symbol is the end of a text (EOS), whose beginning fills up the last byte.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const SYMBOLS: usize = 257;
const EOS: u16 = 256;
/// The longest code.
const MOST: usize = 30;
/// Bits that are looked up at once: enough for letters and digits.
const SHORT: u32 = 8;

static TABLES: Tables = Tables::new();

struct Tables {
    /// Of each symbol.
    codes: [u32; SYMBOLS],
    /// All symbols, those with short codes first.
    sorted: [u16; SYMBOLS],
    /// Of each length: the first 32 bits, as a number, that are too great for it; and how far its symbols are in
    /// `sorted` behind their codes.
    limits: [u64; MOST + 1],
    offsets: [i32; MOST + 1],
    /// The symbol that these bits begin with, and the length of its code; 0 if that is a longer one.
    short: [(u8, u8); 1 << SHORT],
}

impl Tables {
    #[allow(clippy::cast_possible_truncation)] // symbols and lengths are as small as their types
    const fn new() -> Self {
        let mut tables = Self {
            codes: [0; SYMBOLS],
            sorted: [0; SYMBOLS],
            limits: [0; MOST + 1],
            offsets: [0; MOST + 1],
            short: [(0, 0); 1 << SHORT],
        };
        let (mut code, mut at, mut length) = (0_u32, 0, 1);
        while length <= MOST {
            code <<= 1;
            tables.offsets[length] = at as i32 - code as i32;
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as usize == length {
                    tables.codes[symbol] = code;
                    tables.sorted[at] = symbol as u16;
                    if length <= SHORT as usize {
                        let spare = SHORT as usize - length;
                        let mut rest = 0;
                        while rest < 1 << spare {
                            let bits = (code as usize) << spare | rest;
                            tables.short[bits] = (symbol as u8, length as u8);
                            rest += 1;
                        }
                    }
                    code += 1;
                    at += 1;
                }
                symbol += 1;
            }
            tables.limits[length] = (code as u64) << (32 - length);
            length += 1;
        }
        tables
    }
}

/// Bytes of a text when it is encoded.
pub(super) fn length(text: &[u8]) -> usize {
    let bits: usize = text.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum();
    bits.div_ceil(8)
}

/// Appends the code of a text.
pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut count) = (0_u64, 0_u32);
    for byte in text {
        let symbol = usize::from(*byte);
        bits = bits << LENGTHS[symbol] | u64::from(TABLES.codes[symbol]);
        count += u32::from(LENGTHS[symbol]);
        while count >= 8 {
            count -= 8;
            out.push((bits >> count).to_le_bytes()[0]);
        }
    }
    if count > 0 {
        let filled = bits << (8 - count) | (0xff >> count);
        out.push(filled.to_le_bytes()[0]);
    }
}

/// Appends the text behind a code; `None`: it is none.
pub(super) fn decode(code: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut input = code.iter();
    // The lowest `count` bits are those that are not looked at yet.
    let (mut bits, mut count) = (0_u64, 0_u32);
    loop {
        while count <= 56 {
            let Some(byte) = input.next() else { break };
            bits = bits << 8 | u64::from(*byte);
            count += 8;
        }
        while count >= SHORT {
            let next = (bits >> (count - SHORT)).to_le_bytes()[0];
            let (symbol, length) = TABLES.short[usize::from(next)];
            if length == 0 {
                break;
            }
            out.push(symbol);
            count -= u32::from(length);
        }
        if count < 32 && input.len() > 0 {
            continue;
        }
        if count == 0 {
            return Some(());
        }
        // The next 32 bits, with ones behind the end.
        let next = if count >= 32 {
            (bits >> (count - 32)) & 0xffff_ffff
        } else {
            let spare = 32 - count;
            (bits << spare | ((1 << spare) - 1)) & 0xffff_ffff
        };
        let length = (5..=MOST).find(|length| next < TABLES.limits[*length])?;
        if length > count as usize {
            // Less than a byte of ones.
            let ones = next == 0xffff_ffff;
            return (count < 8 && ones).then_some(());
        }
        let code = i32::try_from(next >> (32 - length)).ok()?;
        let symbol = TABLES.sorted[usize::try_from(code + TABLES.offsets[length]).ok()?];
        if symbol == EOS {
            return None;
        }
        out.push(symbol.to_le_bytes()[0]);
        count -= u32::try_from(length).ok()?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut code = Vec::new();
        encode(text, &mut code);
        assert_eq!(code.len(), length(text));
        code
    }

    fn decoded(code: &[u8]) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        decode(code, &mut text).map(|()| text)
    }

    /// RFC 7541, Appendix B and C.4.
    #[test]
    fn codes_are_those_of_the_rfc() {
        let codes: [(u8, u32); 8] = [
            (b'0', 0x0),
            (b'a', 0x3),
            (b' ', 0x14),
            (b'z', 0x7b),
            (b'\\', 0x7fff0),
            (0, 0x1ff8),
            (22, 0x3fff_fffe),
            (255, 0x3ff_ffee),
        ];
        for (symbol, code) in codes {
            assert_eq!(TABLES.codes[usize::from(symbol)], code, "{symbol}");
        }
        assert_eq!(TABLES.codes[usize::from(EOS)], 0x3fff_ffff);
        let host = b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        assert_eq!(encoded(b"www.example.com"), host);
        assert_eq!(decoded(host).as_deref(), Some(&b"www.example.com"[..]));
    }

    #[test]
    fn what_is_no_code_is_not_decoded() {
        for (code, text) in [
            (&b""[..], Some(&b""[..])),
            // "0" and three ones; a zero among them; a whole byte of them; the end of a text in its middle.
            (b"\x07", Some(b"0")),
            (b"\x06", None),
            (b"\x07\xff", None),
            (b"\xff", None),
            (b"\xff\xff\xff\xff", None),
            (b"\xff\xff\xff\xfc", None),
            (b"\xff\xff\xff\xfb", Some(b"\x16")),
            // The beginning of a long code.
            (b"\xff\xfe", None),
        ] {
            assert_eq!(decoded(code).as_deref(), text, "{code:x?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: Vec<u8>) {
            prop_assert_eq!(decoded(&encoded(&text)), Some(text));
        }

        // There is one code for a text, and no other.
        #[test]
        fn what_is_decoded_is_encoded(code: Vec<u8>) {
            if let Some(text) = decoded(&code) {
                prop_assert_eq!(encoded(&text), code);
            }
        }
    }
}
