//! `ss --udp state connected` and `ss --kill`: sockets of the calling thread's network namespace
//! (sock_diag(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::Error;

/// A UDP socket that was connected to somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedSocket {
    /// The kernel's number for it, which no other socket has.
    pub cookie: u64,
    /// Whom it sends to. An IPv6 socket that speaks IPv4 is shown with the IPv4 address.
    pub peer: SocketAddr,
    /// `AF_INET` or `AF_INET6`.
    family: u8,
    /// `struct inet_diag_sockid`, as the kernel gave it.
    identity: [u8; IDENTITY],
}

/// A socket for questions about sockets.
pub struct Sockets(netlink_sys::Socket);

const OPERATION: &str = "list sockets";
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`: ports, addresses, interface and cookie.
const IDENTITY: usize = 48;
/// `struct inet_diag_req_v2` is this and the identity; so begins `struct inet_diag_msg`.
const PROLOGUE: usize = 8;
const REQUEST: usize = HEADER + PROLOGUE + IDENTITY;
const UDP: u8 = 17;
/// `1 << TCP_ESTABLISHED`, which is what the kernel calls a connected UDP socket's state.
const CONNECTED: u32 = 1 << 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

impl Sockets {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
            set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5)))?;
            Ok(socket)
        };
        open().map(Self).map_err(|error: io::Error| Error::system("open sock_diag", error))
    }

    /// The connected UDP sockets of both families.
    pub fn connected_udp(&mut self) -> Result<Vec<ConnectedSocket>, Error> {
        let mut sockets = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.list(family, &mut sockets).map_err(|error| Error::system(OPERATION, error))?;
        }
        Ok(sockets)
    }

    /// Ends a socket as if the other end had broken off (`ECONNABORTED`): whoever waits on it learns of
    /// it, and sends no more where it did. False if it is gone.
    pub fn destroy(&mut self, socket: &ConnectedSocket) -> Result<bool, Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        let message = request(SOCK_DESTROY, flags, socket.family, &socket.identity);
        let answered = self.0.send(&message, 0).and_then(|_| self.0.recv_from_full());
        let outcome = answered.and_then(|(datagram, _)| read(&datagram, &mut Vec::new()));
        match outcome {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(Error::system("destroy a socket", error)),
        }
    }

    fn list(&mut self, family: u8, sockets: &mut Vec<ConnectedSocket>) -> io::Result<()> {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        self.0.send(&request(SOCK_DIAG_BY_FAMILY, flags, family, &[0; IDENTITY]), 0)?;
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            if read(&datagram, sockets)? {
                return Ok(());
            }
        }
    }
}

fn request(kind: u16, flags: u16, family: u8, identity: &[u8; IDENTITY]) -> [u8; REQUEST] {
    const LENGTH: u32 = 72;
    const { assert!(LENGTH as usize == REQUEST) };
    let mut message = [0; REQUEST];
    message[..4].copy_from_slice(&LENGTH.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    // Sequence and sender stay 0: one thing at a time is asked on this socket.
    message[HEADER] = family;
    message[HEADER + 1] = UDP;
    message[HEADER + 4..HEADER + PROLOGUE].copy_from_slice(&CONNECTED.to_ne_bytes());
    message[HEADER + PROLOGUE..].copy_from_slice(identity);
    message
}

/// Adds a datagram's sockets; true at the end of the list.
fn read(datagram: &[u8], sockets: &mut Vec<ConnectedSocket>) -> io::Result<bool> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = rest.get(HEADER..length).ok_or_else(malformed)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body.first_chunk().ok_or_else(malformed)?;
                return match i32::from_ne_bytes(*code) {
                    0 => Ok(true),
                    code => Err(io::Error::from_raw_os_error(-code)),
                };
            }
            SOCK_DIAG_BY_FAMILY => sockets.push(socket(body).ok_or_else(malformed)?),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions, then the identity.
fn socket(body: &[u8]) -> Option<ConnectedSocket> {
    const MESSAGE_PROLOGUE: usize = 4;
    let family = *body.first()?;
    let identity: [u8; IDENTITY] = *body.get(MESSAGE_PROLOGUE..)?.first_chunk()?;
    let [_, _, port @ ..] = *identity.first_chunk::<4>()?;
    let address: [u8; 16] = *identity.get(20..)?.first_chunk()?;
    let address = if family == AF_INET {
        IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
    };
    let peer = SocketAddr::new(address, u16::from_be_bytes(port));
    let cookie = u64::from_ne_bytes(*identity.get(40..)?.first_chunk()?);
    Some(ConnectedSocket { cookie, peer, family, identity })
}
