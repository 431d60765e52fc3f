//! `ss --udp state connected`, `ss --tcp` and `ss --kill`: sockets of the calling thread's network namespace
//! (sock_diag(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::Error;
use crate::raw::{self, Raw};

/// A socket that was connected to somebody.
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

/// A TCP or UDP socket, and whom it speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSocket {
    /// IANA number.
    pub protocol: u8,
    /// Its own end. An IPv6 socket that speaks IPv4 is shown with IPv4 addresses.
    pub local: SocketAddr,
    /// The other end; `None`: it waits for whoever comes.
    pub peer: Option<SocketAddr>,
    /// Somebody has answered.
    pub is_answered: bool,
}

/// A socket for questions about sockets.
pub struct Sockets(Raw);

const OPERATION: &str = "list sockets";
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_sockid`: ports, addresses, interface and cookie.
const IDENTITY: usize = 48;
/// `struct inet_diag_req_v2` is this and the identity; so begins `struct inet_diag_msg`.
const PROLOGUE: usize = 8;
const REQUEST: usize = PROLOGUE + IDENTITY;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// `1 << TCP_ESTABLISHED`, which is what the kernel calls a connected UDP socket's state.
const CONNECTED: u32 = 1 << 1;
/// `1 << TCP_ESTABLISHED | 1 << TCP_SYN_SENT | 1 << TCP_CLOSE_WAIT`: connections that this end wants.
const OPEN: u32 = 1 << 1 | 1 << 2 | 1 << 8;
/// `1 << TCP_LISTEN`.
const LISTENS: u32 = 1 << 10;
/// `1 << TCP_CLOSE`, the state of a UDP socket that is not connected.
const UNCONNECTED: u32 = 1 << 7;
/// All states of a TCP socket that has another end, but `TCP_TIME_WAIT`: from `TCP_ESTABLISHED` to
/// `TCP_FIN_WAIT2`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK` and `TCP_CLOSING`.
const CONNECTIONS: u32 = OPEN | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11;
/// `TCP_SYN_SENT` and `TCP_SYN_RECV`.
const UNANSWERED: [u8; 2] = [2, 3];
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

impl Sockets {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let open = Raw::open(NETLINK_SOCK_DIAG);
        open.map(Self).map_err(|error: io::Error| Error::system("open sock_diag", error))
    }

    /// The connected UDP sockets of both families.
    pub fn connected_udp(&mut self) -> Result<Vec<ConnectedSocket>, Error> {
        let mut sockets = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.list(family, (UDP, CONNECTED), |socket| sockets.push(socket))
                .map_err(|error| Error::system(OPERATION, error))?;
        }
        Ok(sockets)
    }

    /// Whom the TCP sockets of both families are connected to, or about to be, one by one; those that have
    /// been closed here are left out.
    pub fn open_tcp(&mut self, mut see: impl FnMut(SocketAddr)) -> Result<(), Error> {
        for family in [AF_INET, AF_INET6] {
            self.list(family, (TCP, OPEN), |socket| see(socket.peer))
                .map_err(|error| Error::system(OPERATION, error))?;
        }
        Ok(())
    }

    /// The TCP sockets of both families that are connected or listen, and all UDP sockets.
    pub fn all(&mut self) -> Result<Vec<OpenSocket>, Error> {
        let mut sockets = Vec::new();
        for wanted in [(TCP, CONNECTIONS | LISTENS), (UDP, CONNECTED | UNCONNECTED)] {
            for family in [AF_INET, AF_INET6] {
                let request = request(family, wanted, &[0; IDENTITY]);
                self.0
                    .dump(SOCK_DIAG_BY_FAMILY, &request, |kind, body| {
                        if kind == SOCK_DIAG_BY_FAMILY {
                            sockets.push(open_socket(wanted.0, body)?);
                        }
                        Some(ControlFlow::Continue(()))
                    })
                    .map_err(|error| Error::system(OPERATION, error))?;
            }
        }
        Ok(sockets)
    }

    /// Ends a socket as if the other end had broken off (`ECONNABORTED`): whoever waits on it learns of
    /// it, and sends no more where it did. False if it is gone.
    pub fn destroy(&mut self, socket: &ConnectedSocket) -> Result<bool, Error> {
        let request = request(socket.family, (UDP, CONNECTED), &socket.identity);
        let message = raw::acknowledged(SOCK_DESTROY, 0, &request);
        match message.and_then(|message| self.0.change(&message)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(Error::system("destroy a socket", error)),
        }
    }

    /// Sockets of this protocol in these states.
    fn list(
        &mut self,
        family: u8,
        wanted: (u8, u32),
        mut see: impl FnMut(ConnectedSocket),
    ) -> io::Result<()> {
        let request = request(family, wanted, &[0; IDENTITY]);
        self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |kind, body| {
            if kind == SOCK_DIAG_BY_FAMILY {
                see(socket(body)?);
            }
            Some(ControlFlow::Continue(()))
        })
    }
}

fn request(family: u8, (protocol, states): (u8, u32), identity: &[u8; IDENTITY]) -> [u8; REQUEST] {
    let mut message = [0; REQUEST];
    message[0] = family;
    message[1] = protocol;
    message[4..PROLOGUE].copy_from_slice(&states.to_ne_bytes());
    message[PROLOGUE..].copy_from_slice(identity);
    message
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions, then the identity.
fn socket(body: &[u8]) -> Option<ConnectedSocket> {
    const MESSAGE_PROLOGUE: usize = 4;
    let family = *body.first()?;
    let identity: [u8; IDENTITY] = *body.get(MESSAGE_PROLOGUE..)?.first_chunk()?;
    let [_, _, port @ ..] = *identity.first_chunk::<4>()?;
    let address: [u8; 16] = *identity.get(20..)?.first_chunk()?;
    let peer = SocketAddr::new(address_of(family, address)?, u16::from_be_bytes(port));
    let cookie = u64::from_ne_bytes(*identity.get(40..)?.first_chunk()?);
    Some(ConnectedSocket { cookie, peer, family, identity })
}

fn open_socket(protocol: u8, body: &[u8]) -> Option<OpenSocket> {
    let ConnectedSocket { peer, family, identity, .. } = socket(body)?;
    let state = *body.get(1)?;
    let port = u16::from_be_bytes(*identity.first_chunk()?);
    let address: [u8; 16] = *identity.get(4..)?.first_chunk()?;
    let local = SocketAddr::new(address_of(family, address)?, port);
    let waits = (1u32 << state.min(31)) & (LISTENS | UNCONNECTED) != 0;
    let is_answered = !waits && !UNANSWERED.contains(&state);
    Some(OpenSocket { protocol, local, peer: (!waits).then_some(peer), is_answered })
}

fn address_of(family: u8, address: [u8; 16]) -> Option<IpAddr> {
    Some(if family == AF_INET {
        IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
    })
}
