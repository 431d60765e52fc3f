//! Questions that any IP host answers without a program of ours on it.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, Timeout, set_ip_mtu_discover,
    set_ipv6_mtu_discover, set_socket_timeout,
};
use rustix::net::{AddressFamily, SendFlags, SocketType, bind, connect, ipproto, send, socket};

/// How long an answer may take; nodes of a cluster are milliseconds apart.
const PATIENCE: Duration = Duration::from_millis(500);
/// Packets get lost.
const TRIES: u16 = 3;
/// Header of an ICMP echo.
const ICMP: usize = 8;
/// traceroute's first port: nobody is to listen there.
const NOBODYS_PORT: u16 = 33434;

/// What becomes of an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    /// It was answered.
    Answered,
    /// Nobody answered in time.
    Silent,
    /// This host or a router on the way said that it is too large.
    TooLarge,
}

/// Sends an ICMP echo request that fills an IP packet of `size` bytes and may not be fragmented, up
/// to three times. The answer may be fragmented.
pub(crate) fn echo(from: Option<IpAddr>, to: IpAddr, size: u32) -> io::Result<Echo> {
    let (family, protocol, header) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 20),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 40),
    };
    let socket = socket(family, SocketType::RAW, Some(protocol))?;
    // `PROBE`: not fragmented, and what is remembered of the path's MTU does not count.
    match to {
        IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    if let Some(from) = from {
        bind(&socket, &SocketAddr::new(from, 0))?;
    }
    connect(&socket, &SocketAddr::new(to, 0))?;
    let mut socket = std::fs::File::from(socket);
    let length = (size as usize).saturating_sub(header).max(ICMP);
    let identifier = identifier();
    for sequence in 0..TRIES {
        match send(&socket, &request(to, identifier, sequence, length), SendFlags::empty()) {
            Err(rustix::io::Errno::MSGSIZE) => return Ok(Echo::TooLarge),
            Err(error) if !is_transient(&error.into()) => return Err(error.into()),
            _ => {}
        }
        match wait(&mut socket, to, identifier)? {
            Echo::Silent => {}
            other => return Ok(other),
        }
    }
    Ok(Echo::Silent)
}

/// The largest packet between `low`, which passes, and `high`, which does not.
pub(crate) fn largest(
    from: Option<IpAddr>,
    to: IpAddr,
    mut low: u32,
    mut high: u32,
) -> io::Result<u32> {
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match echo(from, to, middle)? {
            Echo::Answered => low = middle,
            Echo::Silent | Echo::TooLarge => high = middle,
        }
    }
    Ok(low)
}

/// Sends UDP datagrams to a port that nobody listens on; true if the other host says so. It does if
/// the datagram's checksum is right, which this host leaves to devices where it can.
pub(crate) fn is_refused(from: Option<IpAddr>, to: IpAddr) -> io::Result<bool> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind(SocketAddr::new(from.unwrap_or(any), 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    for port in NOBODYS_PORT..NOBODYS_PORT + TRIES {
        socket.connect(SocketAddr::new(to, port))?;
        let results = [socket.send(&[0x5a; 64]), socket.recv(&mut [0; 64])];
        for error in results.into_iter().filter_map(Result::err) {
            if error.kind() == ErrorKind::ConnectionRefused {
                return Ok(true);
            }
            if !is_transient(&error) {
                return Err(error);
            }
        }
    }
    Ok(false)
}

/// Waits for the answer to any request of this identifier.
fn wait(socket: &mut std::fs::File, to: IpAddr, identifier: [u8; 2]) -> io::Result<Echo> {
    let begin = Instant::now();
    let mut packet = [0; 2048];
    loop {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(Echo::Silent);
        }
        set_socket_timeout(&*socket, Timeout::Recv, Some(left.max(Duration::from_millis(1))))?;
        match socket.read(&mut packet) {
            Ok(length) if is_answer(&packet[..length], to, identifier) => {
                return Ok(Echo::Answered);
            }
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                return Ok(Echo::TooLarge);
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What routers and hosts say, or devices that dropped the packet, and what says nothing.
fn is_transient(error: &io::Error) -> bool {
    use ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock,
    };
    let kinds =
        [ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn request(to: IpAddr, identifier: [u8; 2], sequence: u16, length: usize) -> Vec<u8> {
    let mut message = vec![0; length];
    message[0] = if to.is_ipv4() { 8 } else { 128 };
    message[4..6].copy_from_slice(&identifier);
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    if to.is_ipv4() {
        // The kernel computes it for ICMPv6, over a pseudo header.
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
    }
    message
}

fn is_answer(packet: &[u8], to: IpAddr, identifier: [u8; 2]) -> bool {
    let (header, kind) = match to {
        // A raw IPv4 socket shows the IP header, whose length is in its first byte.
        IpAddr::V4(_) => (packet.first().map_or(0, |first| usize::from(first & 15) * 4), 0),
        IpAddr::V6(_) => (0, 129),
    };
    packet.get(header) == Some(&kind) && packet.get(header + 4..header + 6) == Some(&identifier)
}

/// The Internet checksum (RFC 1071) of a message whose own field is 0.
fn checksum(message: &[u8]) -> [u8; 2] {
    let words = message
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let [_, _, high, low] = (!folded).to_be_bytes();
    [high, low]
}

/// Tells the answers to us from those to other programs.
fn identifier() -> [u8; 2] {
    use std::hash::{BuildHasher, RandomState};
    let [first, second, ..] = RandomState::new().hash_one(0).to_ne_bytes();
    [first, second]
}

#[cfg(test)]
mod tests {
    use fairway_netlink::{AddressOptions, NetNs, Netlink, Veth};

    use super::*;
    use crate::sandbox::sandbox;

    /// Two hosts; the second takes packets of up to `mtu` bytes off the wire.
    fn with_hosts(mtu: u32, test: impl FnOnce() + Send) {
        sandbox(|_| {
            let other = NetNs::unnamed().expect("a namespace");
            let mut netlink = Netlink::open().expect("netlink");
            let veth = Veth {
                name: "here",
                peer_name: "there",
                peer_netns: Some(&other),
                ..Veth::default()
            };
            netlink.create_veth(&veth).expect("a veth");
            let mut there = Netlink::open_in(&other).expect("netlink");
            let there_index = there.link("there").expect("a list").expect("a device").index;
            there.set_mtu(there_index, mtu.max(1280)).expect("an MTU");
            for (netlink, name, number) in [(&mut netlink, "here", 1), (&mut there, "there", 2)] {
                let index = netlink.link(name).expect("a list").expect("a device").index;
                netlink.set_up(index).expect("up");
                for address in [format!("192.0.2.{number}/24"), format!("2001:db8::{number}/64")] {
                    let options = AddressOptions { nodad: true, ..AddressOptions::default() };
                    let address = address.parse().expect("an address");
                    netlink.add_address(index, address, options).expect("added");
                }
            }
            if mtu < 1280 {
                there.set_mtu(there_index, mtu).expect("an MTU");
            }
            test();
        });
    }

    const THERE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

    #[test]
    fn full_packets_are_answered_where_they_fit() {
        with_hosts(1500, || {
            for there in THERE.map(|there| there.parse().expect("an address")) {
                assert_eq!(echo(None, there, 1500).expect("sent"), Echo::Answered, "{there}");
                assert_eq!(echo(None, there, 1501).expect("sent"), Echo::TooLarge, "{there}");
                assert!(is_refused(None, there).expect("sent"), "{there}");
            }
            let nobody = "192.0.2.77".parse().expect("an address");
            assert_eq!(echo(None, nobody, 64).expect("sent"), Echo::Silent);
            assert!(!is_refused(None, nobody).expect("sent"));
        });
    }

    #[test]
    fn a_path_that_swallows_large_packets_is_measured() {
        with_hosts(1400, || {
            for there in THERE.map(|there| there.parse().expect("an address")) {
                assert_eq!(echo(None, there, 100).expect("sent"), Echo::Answered, "{there}");
                assert_eq!(echo(None, there, 1500).expect("sent"), Echo::Silent, "{there}");
            }
            // A veth takes a VLAN tag's four bytes more than its MTU.
            let there = "192.0.2.2".parse().expect("an address");
            assert_eq!(largest(None, there, 1390, 1420).expect("sent"), 1404);
        });
    }
}
