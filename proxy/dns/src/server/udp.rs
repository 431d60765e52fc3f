//! Datagrams, as many at a time as there are.
//!
//! With two system calls for a batch, a query costs little more than the kernel's work on its way in and its answer's way out.

use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg, sendmmsg,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::write;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::admission::Ruling;
use super::counts::Counts;
use super::signs::{self, Signs};
use super::sockets::OfWorker;
use super::{Service, Step, Waiting, refuse};
use crate::answer::{Buffer, Transport};
use crate::zone::Zone;

/// Datagrams of a batch.
const BATCH: usize = 64;
/// The longest query that is taken whole: a name and EDNS with some options.
const LONGEST: usize = 1232;
/// Batches of a socket before the others have their turn.
const TURNS: usize = 16;

/// Wakes all workers, for good.
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// What becomes readable, and stays so.
    pub(super) fn listener(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    pub(super) fn wake(&self) {
        // It has room for 2^64 of them.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// What a worker needs besides its sockets.
pub(super) struct Context {
    pub(super) service: Arc<Service>,
    pub(super) signs: Arc<Signs>,
    /// Of the worker, whose counts and signs these are.
    pub(super) number: usize,
    /// Where those wait who wait for upstreams.
    pub(super) runtime: Handle,
    /// Kept by all of them.
    pub(super) alive: mpsc::Sender<()>,
}

/// Takes datagrams until it is woken up.
pub(super) struct Worker {
    context: Context,
    v4: Vec<Socket<SockaddrIn>>,
    v6: Vec<Socket<SockaddrIn6>>,
    woken: OwnedFd,
    buffers: Buffers,
}

/// Room for a batch: queries, and answers to them.
struct Buffers {
    queries: Vec<[u8; LONGEST]>,
    answers: Vec<Buffer>,
}

impl Worker {
    /// What it has may not leave the thread.
    pub(super) fn new(context: Context, sockets: OfWorker, woken: OwnedFd) -> Self {
        let seeds = RandomState::new();
        let answers = (0..BATCH).map(|place| Buffer::new(seeds.hash_one(place))).collect();
        let buffers = Buffers { queries: vec![[0; LONGEST]; BATCH], answers };
        let v4 = sockets.v4.into_iter().map(Socket::new).collect();
        let v6 = sockets.v6.into_iter().map(Socket::new).collect();
        Self { context, v4, v6, woken, buffers }
    }

    pub(super) fn run(mut self) {
        let longest = Timespec::try_from(signs::EVERY).ok();
        loop {
            self.context.signs.give(self.context.number);
            let mut all = vec![PollFd::new(&self.woken, PollFlags::IN)];
            let in_ = PollFlags::IN;
            all.extend(self.v4.iter().map(|socket| PollFd::new(&socket.socket, in_)));
            all.extend(self.v6.iter().map(|socket| PollFd::new(&socket.socket, in_)));
            match poll(&mut all, longest.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    error!(%error, "a worker cannot wait for datagrams, and ends");
                    return;
                }
            }
            let ready: Vec<_> = all.iter().map(|one| !one.revents().is_empty()).collect();
            // What has come until now is answered by whoever has the sockets next, or by nobody.
            if ready[0] {
                return;
            }
            let (v4, v6) = ready[1..].split_at(self.v4.len());
            for (socket, _) in self.v4.iter_mut().zip(v4).filter(|(_, ready)| **ready) {
                socket.serve(&self.context, &mut self.buffers);
            }
            for (socket, _) in self.v6.iter_mut().zip(v6).filter(|(_, ready)| **ready) {
                socket.serve(&self.context, &mut self.buffers);
            }
        }
    }
}

/// An address of the kernel's, and ours.
trait Address: SockaddrLike + Copy {
    fn public(self) -> SocketAddr;
}

impl Address for SockaddrIn {
    fn public(self) -> SocketAddr {
        SocketAddrV4::from(self).into()
    }
}

impl Address for SockaddrIn6 {
    fn public(self) -> SocketAddr {
        SocketAddrV6::from(self).into()
    }
}

struct Socket<A> {
    socket: Arc<UdpSocket>,
    incoming: MultiHeaders<A>,
    outgoing: MultiHeaders<A>,
    /// Of the batch: how long each query is, and who sent it.
    queries: Vec<(usize, Option<A>)>,
    /// Of the batch: which answers go out, and where to.
    answers: Vec<usize>,
    clients: Vec<Option<A>>,
}

impl<A: Address> Socket<A> {
    fn new(socket: UdpSocket) -> Self {
        Self {
            socket: Arc::new(socket),
            incoming: MultiHeaders::preallocate(BATCH, None),
            outgoing: MultiHeaders::preallocate(BATCH, None),
            queries: Vec::with_capacity(BATCH),
            answers: Vec::with_capacity(BATCH),
            clients: Vec::with_capacity(BATCH),
        }
    }

    /// Answers what is there.
    fn serve(&mut self, context: &Context, buffers: &mut Buffers) {
        let service = &context.service;
        let counts = &service.counts[context.number.min(service.counts.len() - 1)];
        for _ in 0..TURNS {
            match self.receive(&mut buffers.queries) {
                Ok(()) => {}
                // An answer could not be delivered: that is its client's concern.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    warn!(%error, "cannot take datagrams");
                    return;
                }
            }
            let began = Instant::now();
            let zone = service.zone.load();
            self.answer(context, &zone, buffers, began, counts);
            self.send(&buffers.answers, counts);
            let answered = self.answers.len() as u64;
            if answered > 0 {
                counts.took(began.elapsed(), answered);
            }
            if self.queries.len() < BATCH {
                return;
            }
        }
    }

    fn receive(&mut self, buffers: &mut [[u8; LONGEST]]) -> io::Result<()> {
        let mut buffers = buffers.iter_mut();
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] = std::array::from_fn(|_| {
            [IoSliceMut::new(buffers.next().map_or(&mut [], |buffer| &mut buffer[..]))]
        });
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let received = recvmmsg(fd, &mut self.incoming, slices.iter_mut(), flags, None)?;
        self.queries.clear();
        self.queries.extend(received.map(|message| (message.bytes, message.address)));
        Ok(())
    }

    /// Writes answers to the batch's queries.
    fn answer(
        &mut self,
        context: &Context,
        zone: &Arc<Zone>,
        buffers: &mut Buffers,
        began: Instant,
        counts: &Counts,
    ) {
        self.answers.clear();
        self.clients.clear();
        let service = &context.service;
        let all = self.queries.iter().zip(&buffers.queries).zip(&mut buffers.answers);
        for (place, (((length, address), query), out)) in all.enumerate() {
            let Some(from) = address else { continue };
            let message = &query[..*length];
            let (ruling, client) = service.admit(from.public(), Transport::Udp, began);
            let answers = match ruling {
                Ruling::Serve => match service.decide(zone, message, &client, began, counts, out) {
                    Step::Say => true,
                    Step::Silence => false,
                    Step::Ask(forward, _place) => {
                        let (message, service) = (message.into(), Arc::clone(service));
                        let waiting = Waiting { service, client, message, forward, _place, began };
                        self.ask(context, waiting);
                        continue;
                    }
                },
                Ruling::Refuse => refuse(message, Transport::Udp, out),
                Ruling::Silence => false,
            };
            if answers {
                service.answered(&client, out.bytes(), began, counts);
                self.answers.push(place);
                self.clients.push(Some(*from));
            }
        }
    }

    /// Has the query wait for others elsewhere.
    fn ask(&self, context: &Context, waiting: Waiting) {
        let (socket, alive) = (Arc::clone(&self.socket), context.alive.clone());
        context.runtime.spawn(async move {
            let (service, address) = (Arc::clone(&waiting.service), waiting.client.address);
            let mut out = Buffer::new(0);
            let answer = waiting.answer(&mut out).await;
            if socket.send_to(answer, address).is_err() {
                service.tasks().unsent();
            }
            drop(alive);
        });
    }

    /// Sends the batch's answers. One that the kernel does not take is left out.
    fn send(&mut self, buffers: &[Buffer], counts: &Counts) {
        let mut slices: [[IoSlice<'_>; 1]; BATCH] = std::array::from_fn(|_| [IoSlice::new(&[])]);
        for (slice, place) in slices.iter_mut().zip(&self.answers) {
            *slice = [IoSlice::new(buffers[*place].bytes())];
        }
        let (all, mut sent) = (self.answers.len(), 0);
        let (fd, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        while sent < all {
            let (rest, clients) = (&slices[sent..all], &self.clients[sent..]);
            let results = sendmmsg(fd, &mut self.outgoing, rest, clients, [], flags);
            match results.map(Iterator::count) {
                Ok(count) => sent += count,
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) if self.waits_until_it_can_send() => {}
                Err(_) => {
                    counts.unsent();
                    sent += 1;
                }
            }
        }
    }

    /// Whether the kernel has room again within a moment.
    fn waits_until_it_can_send(&self) -> bool {
        let moment = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let mut socket = [PollFd::new(&self.socket, PollFlags::OUT)];
        poll(&mut socket, Some(&moment)).is_ok_and(|ready| ready > 0)
    }
}
