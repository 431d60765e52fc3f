//! A server gives its sockets to a successor, which is another process, while 10,000 queries a second come in: none is lost.
//!
//! This program is both of them; what it is stands in its environment.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fairway_dns::forward::{Forwarder, Options as ForwardOptions};
use fairway_dns::server::{Access, Options, Server, Service, Sockets};
use fairway_dns::{Zone, zone};
use rustix::cmsg_space;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::runtime::{Handle, Runtime};

/// Where the sockets are given away.
const PLACE: &str = "FAIRWAY_DNS_HANDOVER";
/// Queries a second, and for how long.
const RATE: u32 = 10_000;
const SECONDS: u32 = 4;
/// Servers that follow each other meanwhile.
const SUCCESSORS: usize = 3;
const CLIENTS: usize = 8;
const WORKERS: usize = 2;

#[test]
fn no_query_is_lost_while_servers_follow_each_other() -> Result<(), Box<dyn Error>> {
    match std::env::var_os(PLACE) {
        Some(place) => succeed(Path::new(&place)),
        None => hand_over(),
    }
}

/// A server of an empty cluster: whatever is in its zone is not there.
fn serve(sockets: &Sockets, runtime: &Handle) -> io::Result<Server> {
    let forwarder = Forwarder::new(ForwardOptions::default(), runtime.clone());
    let zone = Zone::new(zone::Options::default());
    let options = Options { rate: 0, ..Options::default() };
    let service = Service::new(zone, forwarder, Box::new(|_| Access::Known), WORKERS, options);
    Server::start(&Arc::new(service), sockets, runtime)
}

/// Serves with the sockets of whoever runs until that closes the connection.
fn succeed(place: &Path) -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::new()?;
    let mut stream = UnixStream::connect(place)?;
    let sockets = Sockets::adopt(receive(&stream)?)?;
    let server = serve(&sockets, runtime.handle())?;
    stream.write_all(b"r")?;
    stream.read_exact(&mut [0])?;
    if !runtime.block_on(server.stop(Duration::from_secs(10))) {
        return Err("somebody was not answered".into());
    }
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(16))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

fn send(stream: &UnixStream, sockets: &Sockets) -> io::Result<()> {
    let all: Vec<_> = sockets.all().collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&all)));
    sendmsg(stream.as_fd(), &[IoSlice::new(b"s")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

fn hand_over() -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::new()?;
    let sockets = Sockets::bind(&["127.0.0.1:0".parse()?], WORKERS)?;
    let address = sockets.addresses()?[0];
    let first = serve(&sockets, runtime.handle())?;
    let load = thread::spawn(move || load(address));

    let folder = tempfile::tempdir()?;
    let place = folder.path().join("socket");
    let listener = UnixListener::bind(&place)?;
    let (mut first, mut before) = (Some(first), None::<(std::process::Child, UnixStream)>);
    for number in 0..SUCCESSORS {
        thread::sleep(Duration::from_secs(SECONDS.into()) / 5);
        // What this test is there says nothing to who counts tests here.
        let mut successor = Command::new(std::env::current_exe()?);
        let child = successor.env(PLACE, &place).stdout(Stdio::null()).spawn()?;
        let (mut stream, _) = listener.accept()?;
        send(&stream, &sockets)?;
        stream.read_exact(&mut [0])?;
        // It serves; now the one before may end.
        if let Some(first) = first.take() {
            assert!(runtime.block_on(first.stop(Duration::from_secs(10))));
        }
        if let Some((mut child, mut stream)) = before.replace((child, stream)) {
            stream.write_all(b"e")?;
            assert!(child.wait()?.success(), "successor {number}");
        }
    }
    let Load { sent, lost, late } = load.join().map_err(|_| "the load has panicked")??;
    if let Some((mut child, mut stream)) = before {
        stream.write_all(b"e")?;
        assert!(child.wait()?.success());
    }
    println!("{sent} queries, {SUCCESSORS} successors: {lost} lost, the slowest after {late:?}");
    assert_eq!(usize::try_from(RATE * SECONDS)?, sent);
    assert_eq!(lost, 0, "queries without an answer");
    Ok(())
}

struct Load {
    sent: usize,
    lost: usize,
    late: Duration,
}

/// Asks at a steady rate from several ports, and waits for all answers.
fn load(server: SocketAddr) -> io::Result<Load> {
    let ends = AtomicBool::new(false);
    let heard = AtomicUsize::new(0);
    let clients = (0..CLIENTS).map(|_| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        // Whoever listens is not to be the one who loses something.
        set_socket_recv_buffer_size_force(&socket, 32 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.connect(server)?;
        Ok(socket)
    });
    let clients = clients.collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now();
    let per_client = usize::try_from(RATE * SECONDS).unwrap_or(usize::MAX) / CLIENTS;
    thread::scope(|scope| {
        let receivers: Vec<_> = clients
            .iter()
            .map(|socket| {
                let (ends, heard) = (&ends, &heard);
                scope.spawn(move || {
                    let mut arrivals = BTreeMap::new();
                    let mut answer = [0; 1000];
                    while !ends.load(Ordering::Relaxed) {
                        let Ok(length) = socket.recv(&mut answer) else { continue };
                        assert!(length > 12 && answer[3] & 0xf == 3, "there is no such name");
                        let id = u16::from_be_bytes([answer[0], answer[1]]);
                        if arrivals.insert(id, start.elapsed()).is_none() {
                            heard.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    arrivals
                })
            })
            .collect();
        let mut sent = 0;
        let mut departures = BTreeMap::new();
        let every = Duration::from_secs(1) / RATE;
        for number in 0..per_client {
            for (client, socket) in clients.iter().enumerate() {
                let due = every * u32::try_from(sent).unwrap_or(u32::MAX);
                if let Some(early) = due.checked_sub(start.elapsed()) {
                    thread::sleep(early);
                }
                let id = u16::try_from(number).unwrap_or(u16::MAX);
                departures.insert((client, id), start.elapsed());
                socket.send(&query(id))?;
                sent += 1;
            }
        }
        // A client's first retry.
        let patience = Instant::now() + Duration::from_secs(5);
        while heard.load(Ordering::Relaxed) < sent && Instant::now() < patience {
            thread::sleep(Duration::from_millis(10));
        }
        ends.store(true, Ordering::Relaxed);
        let mut late = Duration::ZERO;
        for (client, receiver) in receivers.into_iter().enumerate() {
            for (id, arrival) in receiver.join().map_err(|_| io::Error::other("a client"))? {
                if let Some(departure) = departures.remove(&(client, id)) {
                    late = late.max(arrival.saturating_sub(departure));
                }
            }
        }
        Ok(Load { sent, lost: departures.len(), late })
    })
}

fn query(id: u16) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend(b"\x03web\x04shop\x03svc\x07cluster\x05local\0\0\x01\0\x01");
    query
}
