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
    let address = if family == AF_INET {
        IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
    };
    let peer = SocketAddr::new(address, u16::from_be_bytes(port));
    let cookie = u64::from_ne_bytes(*identity.get(40..)?.first_chunk()?);
    Some(ConnectedSocket { cookie, peer, family, identity })
}
