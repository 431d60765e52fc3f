//! Sockets that clients come to, of all workers.
//!
//! Each worker has sockets of its own on the same port, and the kernel spreads connections among them. What is
//! kept here are duplicates, so that a socket lasts as long as its port is wanted, whoever waits at it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fairway_model::Protocol;
use tokio::net::TcpSocket;

/// Connections that wait to be accepted, of each worker.
const BACKLOG: u32 = 4096;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    Https,
    /// A port that is passed on as it is.
    Port(Protocol, u16),
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
    open: Mutex<BTreeMap<Purpose, Vec<OwnedFd>>>,
}

impl Listeners {
    /// For so many workers, who share no sockets.
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, own: Vec::new(), open: Mutex::default() }
    }

    /// Nobody is to listen for anything else there.
    pub(crate) fn reserve(&mut self, address: SocketAddr) {
        self.own.push(address);
    }

    /// Listens on `address`, whose port is chosen where it is 0; where it listens then.
    pub(crate) fn open(&self, purpose: Purpose, address: SocketAddr) -> Result<SocketAddr, Deaf> {
        let mut address = here(address);
        let listens = match purpose {
            Purpose::Port(Protocol::Tcp, port) if self.own.iter().any(|own| own.port() == port) => {
                return Err(Deaf::Own);
            }
            Purpose::Http | Purpose::Https | Purpose::Port(Protocol::Tcp, _) => listen,
            Purpose::Port(protocol, _) => return Err(Deaf::Protocol(protocol)),
        };
        let mut sockets = Vec::new();
        for _ in 0..self.workers {
            let (socket, at) = listens(address).map_err(|error| Deaf::Listen(address, error))?;
            address = at;
            sockets.push(socket);
        }
        self.lock().insert(purpose, sockets);
        Ok(address)
    }

    /// Of the sockets that are open for this, those that a worker waits at.
    pub(crate) fn of_worker(&self, purpose: Purpose, worker: usize) -> io::Result<Vec<OwnedFd>> {
        let open = self.lock();
        let sockets = open.get(&purpose).into_iter().flatten();
        sockets.skip(worker).step_by(self.workers).map(OwnedFd::try_clone).collect()
    }

    /// Nobody comes there any more, as soon as nobody waits there.
    pub(crate) fn close(&self, purpose: Purpose) {
        self.lock().remove(&purpose);
    }

    /// The same, everywhere.
    pub(crate) fn close_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Purpose, Vec<OwnedFd>>> {
        // Nothing panics while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of all addresses those of IPv4 alone, where the kernel has no others.
fn here(address: SocketAddr) -> SocketAddr {
    let any = address.is_ipv6() && address.ip().is_unspecified();
    if any && TcpSocket::new_v6().is_err() {
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    }
    address
}

/// A listener beside others on the same port, and where it is.
fn listen(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    let address = listener.local_addr()?;
    Ok((listener.into(), address))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn each_worker_has_its_own_and_nobody_a_port_of_the_gateway() {
        let mut listeners = Listeners::new(2);
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
}
