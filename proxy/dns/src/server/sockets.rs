//! The sockets that queries come in by: made here, or handed over by a predecessor.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    set_ipv6_v6only, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
    set_socket_reuseaddr, set_socket_reuseport, socket_type,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

/// Bytes of datagrams that wait while a worker is busy: some 4,000 queries, for which the kernel takes about a kilobyte each.
const QUEUE: usize = 4 << 20;
/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;

/// Where a worker takes datagrams, by family.
#[derive(Debug, Default)]
pub(super) struct OfWorker {
    pub(super) v4: Vec<UdpSocket>,
    pub(super) v6: Vec<UdpSocket>,
}

/// Sockets of all addresses; of each one for each worker that takes datagrams, and one that takes connections.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Makes them. Port 0 becomes the same free one for all of an address.
    ///
    /// # Errors
    ///
    /// What the kernel says to one of them; and an address must be one, as an answer comes from the one that was asked.
    pub fn bind(addresses: &[SocketAddr], workers: usize) -> io::Result<Self> {
        let mut sockets = Self { udp: Vec::new(), tcp: Vec::new() };
        for address in addresses {
            if address.ip().is_unspecified() {
                let text = format!("{}: name addresses to listen at, not all", address.ip());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            let tcp: TcpListener = open(*address, SocketType::STREAM)?.into();
            let address = tcp.local_addr()?;
            listen(&tcp, BACKLOG)?;
            sockets.tcp.push(tcp);
            for _ in 0..workers.max(1) {
                sockets.udp.push(open(address, SocketType::DGRAM)?.into());
            }
        }
        Ok(sockets)
    }

    /// Those that somebody else has made with [`bind`](Self::bind), in any order.
    ///
    /// # Errors
    ///
    /// One of them is no socket of either kind.
    pub fn adopt(handed_over: impl IntoIterator<Item = OwnedFd>) -> io::Result<Self> {
        let mut sockets = Self { udp: Vec::new(), tcp: Vec::new() };
        for socket in handed_over {
            match socket_type(&socket)? {
                SocketType::DGRAM => sockets.udp.push(socket.into()),
                SocketType::STREAM => sockets.tcp.push(socket.into()),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no socket of DNS")),
            }
        }
        Ok(sockets)
    }

    /// All of them, to be handed over.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let udp = self.udp.iter().map(AsFd::as_fd);
        udp.chain(self.tcp.iter().map(AsFd::as_fd))
    }

    /// Where they listen.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.tcp.iter().map(TcpListener::local_addr).collect()
    }

    /// How many workers there are sockets for.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn workers(&self) -> io::Result<usize> {
        Ok(self.by_worker()?.len())
    }

    /// One of each address for each worker.
    pub(super) fn by_worker(&self) -> io::Result<Vec<OfWorker>> {
        let (mut workers, mut seen) = (Vec::<OfWorker>::new(), HashMap::<_, usize>::new());
        for socket in &self.udp {
            let address = socket.local_addr()?;
            let number = seen.entry(address).or_default();
            if workers.len() <= *number {
                workers.resize_with(*number + 1, OfWorker::default);
            }
            let OfWorker { v4, v6 } = &mut workers[*number];
            let sockets = if address.is_ipv4() { v4 } else { v6 };
            sockets.push(socket.try_clone()?);
            *number += 1;
        }
        Ok(workers)
    }

    pub(super) fn listeners(&self) -> io::Result<Vec<TcpListener>> {
        self.tcp.iter().map(TcpListener::try_clone).collect()
    }
}

fn open(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::DGRAM {
        // Answers are never cut to fragments, which others could mix with their own, whatever is said of the way to a client (RFC
        // 9715, section 3.1). They are short enough.
        if address.is_ipv4() {
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
        } else {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
        }
        set_socket_reuseport(&socket, true)?;
        // Who may not have all of it has as much as everybody may.
        if set_socket_recv_buffer_size_force(&socket, QUEUE).is_err() {
            set_socket_recv_buffer_size(&socket, QUEUE)?;
        }
    } else {
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::{ip_mtu_discover, ipv6_mtu_discover};

    use super::*;

    #[test]
    fn answers_do_not_become_fragments() {
        let addresses = ["127.0.0.1:0", "[::1]:0"].map(|text| text.parse().unwrap());
        let sockets = Sockets::bind(&addresses, 1).unwrap();
        let [v4, v6] = &sockets.udp[..] else { panic!("{sockets:?}") };
        assert_eq!(ip_mtu_discover(v4).unwrap(), Ipv4PathMtuDiscovery::PROBE);
        assert_eq!(ipv6_mtu_discover(v6).unwrap(), Ipv6PathMtuDiscovery::PROBE);
    }
}
