//! What values of fields are made of, other than bytes.

use std::io::Write as _;
use std::net::IpAddr;

/// What is written as a value; where each request has some, without the machinery of formatting.
pub trait Value {
    /// Writes it.
    fn write(&self, to: &mut Vec<u8>);
}

impl Value for &str {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.as_bytes());
    }
}

impl Value for u16 {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(digits::<10>((*self).into(), &mut [0; 20]));
    }
}

impl Value for IpAddr {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::V4(address) => {
                for (at, octet) in address.octets().into_iter().enumerate() {
                    if at > 0 {
                        to.push(b'.');
                    }
                    u16::from(octet).write(to);
                }
            }
            // Into memory nothing fails to be written.
            Self::V6(address) => _ = write!(to, "{address}"),
        }
    }
}

/// A number in digits, for which 20 places are enough from base 10 on.
pub(crate) fn digits<const RADIX: u64>(mut number: u64, room: &mut [u8; 20]) -> &[u8] {
    const { assert!(RADIX >= 10) };
    let mut at = room.len();
    loop {
        at -= 1;
        let digit = u8::try_from(number % RADIX).unwrap_or_default();
        room[at] = digit + if digit < 10 { b'0' } else { b'a' - 10 };
        number /= RADIX;
        if number == 0 {
            return &room[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_they_are_formatted() {
        fn check<V: Value + ToString>(value: V) {
            let mut written = b"-".to_vec();
            value.write(&mut written);
            assert_eq!(String::from_utf8(written).unwrap(), format!("-{}", value.to_string()));
        }
        check("text");
        [0, 9, 10, 80, 443, 65_535].into_iter().for_each(check::<u16>);
        for address in ["0.0.0.0", "192.0.2.1", "255.255.255.255", "::", "2001:db8::1"] {
            check::<IpAddr>(address.parse().unwrap());
        }
        for number in [0, 15, 16, 0x186a0, u64::MAX] {
            assert_eq!(digits::<16>(number, &mut [0; 20]), format!("{number:x}").as_bytes());
            assert_eq!(digits::<10>(number, &mut [0; 20]), format!("{number}").as_bytes());
        }
    }
}
