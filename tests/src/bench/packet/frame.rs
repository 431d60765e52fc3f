//! TCP segments as frames, in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};

/// Flags of a first segment.
pub(in crate::bench) const SYN: u8 = 0x02;
/// Flags of an answer to it.
pub(in crate::bench) const SYN_ACK: u8 = 0x12;
/// Flags of any later segment.
pub(in crate::bench) const ACK: u8 = 0x10;

const ETHERNET: usize = 14;
const TCP: u8 = 6;

/// Where the ports are in a frame of this family.
pub(in crate::bench) fn ports_at(v6: bool) -> usize {
    ETHERNET + if v6 { 40 } else { 20 }
}

/// A segment with two bytes of payload. Its addresses are of one family.
pub(in crate::bench) fn segment(
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
) -> Result<Vec<u8>> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    let mut tcp = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 9, 0, 0, 0, 8, 5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    tcp.extend(*b"fw");
    let length = u16::try_from(tcp.len()).context("a short segment")?;
    let addresses = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 1, 0x40, 0, 64, TCP, 0, 0]);
            let addresses = [source.octets(), destination.octets()].concat();
            header.extend(&addresses);
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
            addresses
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([TCP, 64]);
            let addresses = [source.octets(), destination.octets()].concat();
            frame.extend(&addresses);
            addresses
        }
        _ => bail!("{source} and {destination} are of two families"),
    };
    let sum = checksum(&[&addresses, &[0, TCP], &length.to_be_bytes(), &tcp]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    frame.extend(tcp);
    Ok(frame)
}

/// Source and destination of a segment without options.
pub(in crate::bench) fn ends(frame: &[u8]) -> Result<[SocketAddr; 2]> {
    let v6 = frame.get(12..14).context("read a frame's type")? == [0x86, 0xdd];
    let ports = ports_at(v6);
    let ends = [0, 1].map(|end| -> Option<SocketAddr> {
        let port = u16::from_be_bytes(*frame.get(ports + 2 * end..)?.first_chunk()?);
        let address = if v6 {
            IpAddr::from(Ipv6Addr::from(*frame.get(22 + 16 * end..)?.first_chunk()?))
        } else {
            IpAddr::from(Ipv4Addr::from(*frame.get(26 + 4 * end..)?.first_chunk()?))
        };
        Some(SocketAddr::new(address, port))
    });
    let [source, destination] = ends;
    Ok([source.context("read a frame's source")?, destination.context("and its destination")?])
}

/// RFC 1071; every part is of an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_read_as_it_was_written_and_its_checksums_hold() {
        for (source, destination) in
            [("10.0.0.1:40000", "10.96.0.1:80"), ("[fd00::1]:40000", "[fd00::2]:80")]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let frame = segment(source, destination, SYN).unwrap();
            assert_eq!(ends(&frame).unwrap(), [source, destination]);
            let transport = ports_at(source.is_ipv6());
            let addresses =
                if source.is_ipv6() { &frame[22..transport] } else { &frame[26..transport] };
            let tcp = &frame[transport..];
            // Over what has its own checksum in it, the sum is zero.
            assert_eq!(checksum(&[addresses, &[0, TCP, 0, 22], tcp]), 0);
            if source.is_ipv4() {
                assert_eq!(checksum(&[&frame[14..34]]), 0);
            }
        }
    }

    #[test]
    fn a_segment_between_families_is_refused() {
        let ends = ["10.0.0.1:1".parse().unwrap(), "[fd00::2]:80".parse().unwrap()];
        assert!(segment(ends[0], ends[1], SYN).is_err());
    }
}
