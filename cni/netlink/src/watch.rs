//! `ip monitor`: what changes in a namespace, as it changes.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::socket::split_message;
use crate::{Address, Error, Link, NetNs, QueueDiscipline, Route, address, link, queue, route};

/// What to be told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Interfaces.
    Links,
    /// Addresses, both families.
    Addresses,
    /// Routes, both families.
    Routes,
    /// Queueing disciplines.
    QueueDisciplines,
}

/// Something that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interface is new, or looks like this now.
    Link(Link),
    /// An interface is gone.
    LinkGone(Link),
    /// An address is new, or looks like this now.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is new, or looks like this now.
    Route(Route),
    /// A route is gone. The kernel says nothing of the routes that go with their interface.
    RouteGone(Route),
    /// A queueing discipline is new, or looks like this now. The kernel says nothing of one that it makes
    /// by itself for a device that goes up; the device says so.
    QueueDiscipline(QueueDiscipline),
    /// A queueing discipline is gone.
    QueueDisciplineGone(QueueDiscipline),
    /// Events were lost because they were not read fast enough: list again what matters.
    Lost,
}

/// A subscription, in the network namespace of the thread that opened it.
///
/// To miss nothing, open it first, then list what there is, then read the events.
pub struct Watch {
    socket: netlink_sys::Socket,
}

impl Watch {
    /// Subscribes in the calling thread's network namespace.
    pub fn open(groups: &[Group]) -> Result<Self, Error> {
        let open = || {
            let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // From now on nobody but the kernel can send to it.
            socket.connect(&SocketAddr::new(0, 0))?;
            for group in groups.iter().flat_map(|group| group.numbers()) {
                socket.add_membership(*group)?;
            }
            Ok(Self { socket })
        };
        open().map_err(failed)
    }

    /// Subscribes in another network namespace; it can be read from any thread.
    pub fn open_in(netns: &NetNs, groups: &[Group]) -> Result<Self, Error> {
        netns.run(|| Self::open(groups))?
    }

    /// Waits for events for at most `timeout`; none if nothing has happened.
    pub fn next(&mut self, timeout: Duration) -> Result<Vec<Event>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            // What is in the queue is read also at the deadline; a timeout of zero means for ever.
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_micros(1));
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left))
                .map_err(|e| failed(e.into()))?;
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => {
                    let events = read(&datagram)?;
                    if !events.is_empty() {
                        return Ok(events);
                    }
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(vec![Event::Lost]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Vec::new()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

/// Readable when there are events.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Group {
    /// `RTNLGRP_*` of the kernel.
    const fn numbers(self) -> &'static [u32] {
        match self {
            Self::Links => &[1],
            Self::Addresses => &[5, 9],
            Self::Routes => &[7, 11],
            Self::QueueDisciplines => &[4],
        }
    }
}

const OPERATION: &str = "watch the network namespace";

fn failed(source: io::Error) -> Error {
    Error::Socket { operation: OPERATION.to_owned(), source }
}

fn read(datagram: &[u8]) -> Result<Vec<Event>, Error> {
    let malformed = |source| Error::Malformed { operation: OPERATION.to_owned(), source };
    let mut events = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let (message, next) = split_message(rest).map_err(malformed)?;
        rest = next;
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
        if let NetlinkPayload::InnerMessage(message) = message.map_err(malformed)?.payload {
            events.extend(event(message));
        }
    }
    Ok(events)
}

fn event(message: RouteNetlinkMessage) -> Option<Event> {
    use RouteNetlinkMessage as Message;
    match message {
        // A bridge tells in the same group of its ports: one that leaves it is not gone.
        Message::NewLink(message) | Message::DelLink(message)
            if message.header.interface_family != AddressFamily::Unspec =>
        {
            None
        }
        Message::NewLink(message) => Some(Event::Link(link::read(message))),
        Message::DelLink(message) => Some(Event::LinkGone(link::read(message))),
        Message::NewAddress(message) => address::read(message).map(Event::Address),
        Message::DelAddress(message) => address::read(message).map(Event::AddressGone),
        Message::NewRoute(message) => route::read(&message).map(Event::Route),
        Message::DelRoute(message) => route::read(&message).map(Event::RouteGone),
        Message::NewQueueDiscipline(message) => queue::read(message).map(Event::QueueDiscipline),
        Message::DelQueueDiscipline(message) => {
            queue::read(message).map(Event::QueueDisciplineGone)
        }
        _ => None,
    }
}
