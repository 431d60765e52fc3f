//! SCTP where the kernel has no sockets of it: an INIT, and the INIT ACK that answers it (RFC 9260, 3.3.2 and 3.3.3), by
//! raw sockets. No association comes of it, but a node treats these packets as those of one.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

/// The types of chunks.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// What both have in front: type, flags, length, tag, window, streams both ways, and the first number.
const CHUNK: usize = 20;
/// A parameter that an INIT ACK must have: type, length and four bytes.
const COOKIE: [u8; 8] = [0, 7, 0, 8, 1, 2, 3, 4];
/// Ports, verification tag and checksum.
const HEADER: usize = 12;
/// Clients ask from this port on.
const FIRST_PORT: u16 = 32_768;

/// A packet with one of these chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    source: u16,
    destination: u16,
    /// The tag that its receiver has asked for; an INIT has none.
    verification: u32,
    kind: u8,
    /// The tag that its sender asks for.
    initiate: u32,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let cookie: &[u8] = if self.kind == INIT_ACK { &COOKIE } else { &[] };
        let mut bytes = Vec::with_capacity(HEADER + CHUNK + cookie.len());
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.verification.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind, 0, 0, if cookie.is_empty() { 20 } else { 28 }]);
        bytes.extend(self.initiate.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 1, 0, 1]);
        bytes.extend(self.initiate.to_be_bytes());
        bytes.extend(cookie);
        let checksum = crc32c(&bytes);
        bytes[8..HEADER].copy_from_slice(&checksum);
        bytes
    }

    /// `None`: it is none, has a wrong checksum, or another chunk.
    fn read(bytes: &[u8]) -> Option<Self> {
        let chunk = bytes.get(HEADER..HEADER + CHUNK)?;
        let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let word = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let mut blank = bytes.to_vec();
        blank[8..HEADER].fill(0);
        let is_sound = crc32c(&blank) == bytes[8..HEADER];
        (is_sound && matches!(chunk[0], INIT | INIT_ACK)).then(|| Self {
            source: half(0),
            destination: half(2),
            verification: word(&bytes[4..8]),
            kind: chunk[0],
            initiate: word(&chunk[4..8]),
        })
    }

    fn answer(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            verification: self.initiate,
            kind: INIT_ACK,
            initiate: tag(),
        }
    }
}

/// Whether somebody at this address answers an INIT. One that was lost is sent again, once.
pub(super) fn associates(server: SocketAddr, limit: Duration) -> io::Result<bool> {
    let socket = open(server.is_ipv4())?;
    socket.connect(SocketAddr::new(server.ip(), 0))?;
    socket.set_read_timeout(Some((limit / 2).max(Duration::from_millis(1))))?;
    let tag = tag();
    let [high, low, ..] = tag.to_be_bytes();
    let init = Packet {
        source: u16::from_be_bytes([high, low]) | FIRST_PORT,
        destination: server.port(),
        verification: 0,
        kind: INIT,
        initiate: tag,
    };
    let is_answer = |packet: Packet| {
        (packet.kind, packet.verification) == (INIT_ACK, tag)
            && (packet.source, packet.destination) == (init.destination, init.source)
    };
    let end = Instant::now() + limit;
    let mut buffer = [0; 1500];
    while Instant::now() < end {
        if socket.send(&init.bytes()).is_ok() {
            while let Ok(length) = socket.recv(&mut buffer) {
                if behind_ip(server, &buffer[..length])
                    .and_then(Packet::read)
                    .is_some_and(is_answer)
                {
                    return Ok(true);
                }
                if Instant::now() >= end {
                    return Ok(false);
                }
            }
        }
        // Somebody who refuses lets neither in.
        thread::sleep(Duration::from_millis(10));
    }
    Ok(false)
}

/// Answers each INIT for a port, in both families or in IPv4 alone where the kernel has no IPv6; returns when it
/// listens.
pub(super) fn serve(port: u16) -> io::Result<()> {
    let mut sockets = vec![open(true)?];
    match open(false) {
        Ok(socket) => sockets.push(socket),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        Err(error) => return Err(error),
    }
    for socket in sockets {
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            loop {
                let (length, client) = match socket.recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) => {
                        eprintln!("receive: {error}");
                        continue;
                    }
                };
                let packet = behind_ip(client, &buffer[..length]).and_then(Packet::read);
                let Some(packet) = packet.filter(|p| (p.kind, p.destination) == (INIT, port))
                else {
                    continue;
                };
                if let Err(error) = socket.send_to(&packet.answer().bytes(), client) {
                    eprintln!("answer {client}: {error}");
                }
            }
        });
    }
    Ok(())
}

/// A raw socket. What std does to one of UDP are the system calls that it takes as well.
fn open(is_v4: bool) -> io::Result<UdpSocket> {
    let family = if is_v4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::RAW, flags, Some(ipproto::SCTP))?.into())
}

/// What follows the network header, which a raw socket of IPv4 gives as well.
fn behind_ip(peer: SocketAddr, bytes: &[u8]) -> Option<&[u8]> {
    let length = if peer.is_ipv4() { usize::from(bytes.first()? & 0x0f) * 4 } else { 0 };
    bytes.get(length..)
}

/// A tag, which is never 0.
fn tag() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d]).max(1)
}

/// As it stands in a packet (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> [u8; 4] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ POLYNOMIAL };
    let crc = bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step));
    (!crc).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283_u32.to_le_bytes());
    }

    #[test]
    fn packets_are_read_as_they_are_written() {
        let init =
            Packet { source: 40_000, destination: 80, verification: 0, kind: INIT, initiate: 7 };
        let answer = init.answer();
        assert_eq!((answer.source, answer.destination, answer.verification), (80, 40_000, 7));
        for packet in [init, answer] {
            let mut bytes = packet.bytes();
            assert_eq!(Packet::read(&bytes), Some(packet));
            assert_eq!(Packet::read(&bytes[..HEADER + CHUNK - 1]), None);
            bytes[0] ^= 1;
            assert_eq!(Packet::read(&bytes), None, "a wrong checksum");
        }
    }
}
