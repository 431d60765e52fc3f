//! Questions by SCTP (RFC 9260), and who answers them. A line is a question, another one its answer.
//!
//! Sockets of the one-to-one style (RFC 6458, 4) are used like those of TCP, once they are there. Each has
//! addresses of one family: an association between hosts that have several would know all of them, and
//! no translation changes those that an INIT names.
//!
//! Where the kernel has no such sockets, servers answer, and who tries to reach them sends, the first packets of an
//! association alone.

mod packets;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::drain;

/// Whom to ask what.
#[derive(Debug, Args)]
pub struct Options {
    /// ADDRESS:PORT
    server: SocketAddr,
    /// What to ask, one after the other on one association
    #[arg(required = true)]
    questions: Vec<String>,
    /// How long to wait for the association and for each answer, in milliseconds
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
}

/// Associations that wait to be accepted.
const BACKLOG: i32 = 128;

/// Whether this kernel has sockets of SCTP.
///
/// # Errors
/// When it has none for another reason than that it does not know the protocol.
pub fn kernel_has_it() -> Result<bool> {
    match socket(AddressFamily::INET) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::PROTONOSUPPORT | rustix::io::Errno::SOCKTNOSUPPORT) => Ok(false),
        Err(error) => Err(error).context("open an SCTP socket"),
    }
}

/// Asks, and prints each answer on a line.
pub(super) fn run(options: &Options) -> Result<()> {
    let about = || format!("ask {}", options.server);
    let family = if options.server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // What std does to a stream of TCP are the system calls that one of SCTP takes as well.
    let stream = TcpStream::from(socket(family).context("open an SCTP socket")?);
    let timeout = Some(Duration::from_millis(options.timeout.max(1)));
    stream.set_read_timeout(timeout).with_context(about)?;
    // Bounds the opening as well.
    stream.set_write_timeout(timeout).with_context(about)?;
    rustix::net::connect(&stream, &options.server)
        .with_context(|| format!("open an association with {}", options.server))?;
    let mut stream = BufReader::new(stream);
    for question in &options.questions {
        stream.get_mut().write_all(format!("{question}\n").as_bytes()).with_context(about)?;
        let mut answer = String::new();
        if stream.read_line(&mut answer).with_context(about)? == 0 {
            bail!("{} hung up", options.server);
        }
        print!("{answer}");
    }
    Ok(())
}

/// Whether somebody at this address takes an association within this time, as far as the kernel can tell.
pub(super) fn associates(server: SocketAddr, limit: Duration) -> bool {
    let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let Ok(socket) = socket(family) else {
        return packets::associates(server, limit).unwrap_or(false);
    };
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(limit)).is_ok() && rustix::net::connect(&stream, &server).is_ok()
}

/// Answers each question that comes in at a port, in both families or in IPv4 alone where the kernel has
/// no IPv6; returns when it listens.
pub(super) fn serve(port: u16, answer: fn(&str, SocketAddr) -> String) -> Result<()> {
    let about = || format!("listen on SCTP port {port}");
    if !kernel_has_it()? {
        return packets::serve(port).with_context(about);
    }
    let mut listeners = vec![listen((Ipv4Addr::UNSPECIFIED, port).into()).with_context(about)?];
    match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(listener) => listeners.push(listener),
        Err(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL) => {}
        Err(error) => return Err(error).with_context(about),
    }
    for listener in listeners {
        thread::spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        thread::spawn(move || converse(stream, peer, answer));
                    }
                    Err(error) => eprintln!("accept: {error}"),
                }
            }
        });
    }
    Ok(())
}

/// Answers until the other end goes away, in whatever way.
fn converse(stream: TcpStream, peer: SocketAddr, answer: fn(&str, SocketAddr) -> String) {
    let mut stream = BufReader::new(stream);
    let mut question = String::new();
    loop {
        question.clear();
        match stream.read_line(&mut question) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return eprintln!("receive from {peer}: {error}"),
        }
        let line = answer(question.trim_end(), drain::canonical(peer)) + "\n";
        if let Err(error) = stream.get_mut().write_all(line.as_bytes()) {
            return eprintln!("answer {peer}: {error}");
        }
    }
}

fn listen(address: SocketAddr) -> rustix::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn socket(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(family, kind, flags, Some(ipproto::SCTP))?;
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}
