//! Sockets that clients come to, of all workers.
//!
//! Each worker has sockets of its own on the same port, and the kernel spreads connections among them. What is
//! kept here are duplicates, so that a socket lasts as long as its port is wanted, whoever waits at it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fairway_model::Protocol;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, getsockname, listen, socket, socket_with,
};

/// Connections that wait to be accepted, of each worker.
const BACKLOG: i32 = 4096;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    Https,
    /// For who asks how the gateway fares; of no worker.
    Admin,
    /// A port that is passed on as it is.
    Port(Protocol, u16),
}

impl Purpose {
    fn is_of_datagrams(self) -> bool {
        matches!(self, Self::Port(Protocol::Udp, _))
    }
}

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Deaf {
    #[error("it is the gateway's own")]
    Own,
    #[error("gateways pass no {0} on")]
    Protocol(Protocol),
    #[error("listen on {0}: {1}; is somebody else there, or is it a port for root alone?")]
    Listen(SocketAddr, #[source] io::Error),
}

/// The sockets.
#[derive(Debug)]
pub(crate) struct Listeners {
    workers: usize,
    /// On whose ports nobody else is.
    own: Vec<SocketAddr>,
    open: Mutex<Sockets>,
    /// Those of the gateway that ran before, as long as it is not known whether they are wanted.
    inherited: Mutex<Sockets>,
    /// What opens listens at once.
    begun: AtomicBool,
}

/// By what they are for.
pub(crate) type Sockets = BTreeMap<Purpose, Vec<OwnedFd>>;

impl Listeners {
    /// For so many workers, who share no sockets; with those of the gateway that ran before.
    pub(crate) fn new(workers: usize, inherited: Sockets) -> Self {
        let inherited = Mutex::new(inherited);
        let (own, open, begun) = (Vec::new(), Mutex::default(), AtomicBool::new(false));
        Self { workers, own, open, inherited, begun }
    }

    /// Nobody is to listen for anything else there.
    pub(crate) fn reserve(&mut self, address: SocketAddr) {
        self.own.push(address);
    }

    /// Takes `address`, whose port is chosen where it is 0; answers which that is. What was inherited for
    /// it is used, all of it: in each of these sockets clients may wait. Others listen only when
    /// this [begins](Self::begin), but for those who ask how the gateway fares.
    pub(crate) fn open(&self, purpose: Purpose, address: SocketAddr) -> Result<SocketAddr, Deaf> {
        let mut address = here(address);
        match purpose {
            Purpose::Port(Protocol::Tcp, port) if self.own.iter().any(|own| own.port() == port) => {
                return Err(Deaf::Own);
            }
            Purpose::Port(Protocol::Sctp, _) => return Err(Deaf::Protocol(Protocol::Sctp)),
            Purpose::Port(..) | Purpose::Http | Purpose::Https | Purpose::Admin => {}
        }
        let mut sockets = lock(&self.inherited).remove(&purpose).unwrap_or_default();
        sockets.retain(|socket| {
            let at = at(socket).ok();
            let at =
                at.filter(|at| *at == address || (at.ip(), 0) == (address.ip(), address.port()));
            address = at.unwrap_or(address);
            at.is_some()
        });
        let inherited = !sockets.is_empty();
        let listens = self.begun.load(Ordering::Relaxed) || purpose == Purpose::Admin;
        let wanted = match purpose {
            Purpose::Admin => 1,
            // Datagrams come as soon as there is an address.
            _ if inherited && purpose.is_of_datagrams() => 0,
            _ => self.workers,
        };
        while sockets.len() < wanted {
            let bound = bind(purpose, address).and_then(|socket| {
                if listens && !purpose.is_of_datagrams() {
                    listen(&socket, BACKLOG)?;
                }
                address = at(&socket)?;
                Ok(socket)
            });
            sockets.push(bound.map_err(|error| Deaf::Listen(address, error))?);
        }
        lock(&self.open).insert(purpose, sockets);
        Ok(address)
    }

    /// From now on this has clients; over TLS only if that is said.
    pub(crate) fn begin(&self, tls: bool) -> io::Result<()> {
        // What was inherited and is not open is not wanted.
        lock(&self.inherited).clear();
        self.begun.store(true, Ordering::Relaxed);
        let open = lock(&self.open);
        let listens =
            |purpose: &Purpose| !purpose.is_of_datagrams() && (tls || *purpose != Purpose::Https);
        let streams = open.iter().filter(|(purpose, _)| listens(purpose));
        for socket in streams.flat_map(|(_, sockets)| sockets) {
            // To those that listen it makes no difference.
            listen(socket, BACKLOG)?;
        }
        Ok(())
    }

    /// Of the sockets that are open for this, those that a worker waits at.
    pub(crate) fn of_worker(&self, purpose: Purpose, worker: usize) -> io::Result<Vec<OwnedFd>> {
        let open = lock(&self.open);
        let sockets = open.get(&purpose).into_iter().flatten();
        sockets.skip(worker).step_by(self.workers).map(OwnedFd::try_clone).collect()
    }

    /// Nobody comes there any more, as soon as nobody waits there.
    pub(crate) fn close(&self, purpose: Purpose) {
        lock(&self.open).remove(&purpose);
    }

    /// The same, everywhere.
    pub(crate) fn close_all(&self) {
        lock(&self.open).clear();
    }

    /// Copies of all that are open.
    pub(crate) fn all(&self) -> io::Result<Vec<(Purpose, OwnedFd)>> {
        let open = lock(&self.open);
        let each = open.iter().flat_map(|(purpose, all)| all.iter().map(|one| (*purpose, one)));
        each.map(|(purpose, one)| Ok((purpose, one.try_clone()?))).collect()
    }
}

fn lock(sockets: &Mutex<Sockets>) -> MutexGuard<'_, Sockets> {
    // Nothing panics while it is held.
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of all addresses those of IPv4 alone, where the kernel has no others.
fn here(address: SocketAddr) -> SocketAddr {
    let any = address.is_ipv6() && address.ip().is_unspecified();
    if any && socket(AddressFamily::INET6, SocketType::STREAM, None).is_err() {
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    }
    address
}

/// A socket with this address; but for that of no worker, beside others.
fn bind(purpose: Purpose, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if purpose.is_of_datagrams() { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    // Of datagrams, two processes would share an address by that, whoever they are.
    set_socket_reuseaddr(&socket, !purpose.is_of_datagrams())?;
    set_socket_reuseport(&socket, purpose != Purpose::Admin)?;
    if purpose.is_of_datagrams() {
        // Each datagram is to say to which address it was sent: the first one, too, so before there is an address.
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Where a socket is.
fn at(socket: &OwnedFd) -> io::Result<SocketAddr> {
    Ok(getsockname(socket)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn each_worker_has_its_own_and_nobody_a_port_of_the_gateway() {
        let mut listeners = Listeners::new(2, Sockets::new());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let http = listeners.open(Purpose::Http, any).unwrap();
        listeners.reserve(http);
        for worker in 0..2 {
            let sockets = listeners.of_worker(Purpose::Http, worker).unwrap();
            let [socket] = <[OwnedFd; 1]>::try_from(sockets).unwrap();
            assert_eq!(TcpListener::from(socket).local_addr().unwrap(), http);
        }
        let taken = listeners.open(Purpose::Port(Protocol::Tcp, http.port()), http);
        assert!(matches!(taken, Err(Deaf::Own)), "{taken:?}");
        listeners.close_all();
        assert!(std::net::TcpStream::connect(http).is_err());
        let other = TcpListener::bind(http).unwrap();
        let taken = listeners.open(Purpose::Https, other.local_addr().unwrap());
        assert!(matches!(taken, Err(Deaf::Listen(..))), "{taken:?}");
    }

    #[test]
    fn nobody_comes_before_it_begins() {
        let listeners = Listeners::new(1, Sockets::new());
        let connects = |at| std::net::TcpStream::connect(at).is_ok();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let [http, https, port] = [Purpose::Http, Purpose::Https, Purpose::Port(Protocol::Tcp, 1)]
            .map(|purpose| listeners.open(purpose, any).unwrap());
        assert_eq!([http, https, port].map(connects), [false, false, false]);
        listeners.begin(false).unwrap();
        assert_eq!([http, https, port].map(connects), [true, false, true]);
        listeners.begin(true).unwrap();
        assert!(connects(https));
        let late = listeners.open(Purpose::Port(Protocol::Tcp, 2), any).unwrap();
        assert!(connects(late));
    }

    #[test]
    fn what_is_inherited_is_kept_whatever_the_number_of_workers() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let before = Listeners::new(3, Sockets::new());
        let http = before.open(Purpose::Http, any).unwrap();
        before.open(Purpose::Https, any).unwrap();
        before.begin(true).unwrap();
        let connect = || std::net::TcpStream::connect(http).unwrap();
        // Of those who wait at some of its sockets.
        let waiting = |listeners: &Listeners, worker| {
            let sockets = listeners.of_worker(Purpose::Http, worker).unwrap();
            let listeners = sockets.into_iter().map(TcpListener::from);
            listeners
                .map(|listener| listener.incoming().map_while(Result::ok).count())
                .sum::<usize>()
        };
        for (workers, shares) in [(1, &[3][..]), (2, &[2, 1]), (4, &[1, 1, 1, 1])] {
            let mut inherited = Sockets::new();
            for (purpose, socket) in before.all().unwrap() {
                inherited.entry(purpose).or_default().push(socket);
            }
            let after = Listeners::new(workers, inherited);
            assert_eq!(after.open(Purpose::Http, http).unwrap(), http);
            // Somewhere else is somewhere else.
            let other = (Ipv4Addr::new(127, 0, 0, 2), 0).into();
            assert_eq!(after.open(Purpose::Https, other).unwrap().ip(), other.ip());
            let of = |worker| after.of_worker(Purpose::Http, worker).unwrap().len();
            assert_eq!((0..workers).map(of).collect::<Vec<_>>(), shares);
            // Nobody comes to another one yet: it may never begin.
            let _clients: Vec<_> = (0..32).map(|_| connect()).collect();
            let waited: usize = (0..3).map(|worker| waiting(&before, worker)).sum();
            assert_eq!(waited, 32);
            after.begin(true).unwrap();
            let _clients: Vec<_> = (0..32).map(|_| connect()).collect();
            let waited: usize = (0..workers).map(|worker| waiting(&after, worker)).sum();
            assert_eq!(waited, 32);
        }
    }
}
