//! One question to one upstream, by UDP and, where that does not do, by TCP.
//!
//! Who is not on the way has to guess the id, the port, and which letters of the name are large ones (draft-vixie-dnsext-dns0x20)
//! to have an answer of his own taken (RFC 5452).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::message::{HEADER, Received, Reply, Wanted};

/// Messages that answer something else and are passed over; more of them are somebody's guesses.
const GUESSES: usize = 16;
/// More than we ask for, as some upstreams do not listen.
const LONGEST_UDP: usize = 4096;

/// Why an upstream did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("what it says is damaged, or answers something else")]
    Nonsense,
}

/// What was said, and whether the upstream keeps the letters of a name as they were.
pub(super) struct Said {
    pub(super) reply: Reply,
    pub(super) kept_letters: bool,
}

/// What by UDP came of it.
enum ByUdp {
    Said(Reply),
    /// It is too long, or what comes cannot be told from guesses.
    Unfit,
}

/// Asks, and waits for as long as it takes.
pub(super) async fn exchange(
    upstream: SocketAddr,
    wanted: &Wanted,
    mix_letters: bool,
) -> Result<Said, Failure> {
    let mut random = [0; 34];
    getrandom(&mut random, GetRandomFlags::empty()).map_err(io::Error::from)?;
    let [high, low, letters @ ..] = random;
    let query = wanted.query([high, low], if mix_letters { &letters } else { &[] });
    match by_udp(upstream, &query).await? {
        ByUdp::Said(reply) => Ok(Said { reply, kept_letters: true }),
        ByUdp::Unfit => by_tcp(upstream, &query, wanted).await,
    }
}

async fn by_udp(upstream: SocketAddr, query: &[u8]) -> Result<ByUdp, Failure> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port at random: Linux begins to look for a free one at a random place. Connected, it hears the upstream alone.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut buffer = [0; LONGEST_UDP];
    for _ in 0..GUESSES {
        let length = socket.recv(&mut buffer).await?;
        match Reply::receive(&buffer[..length], query) {
            Received::Reply(reply) => return Ok(ByUdp::Said(reply)),
            Received::Truncated | Received::OtherLetters => return Ok(ByUdp::Unfit),
            Received::Malformed => return Err(Failure::Nonsense),
            Received::Unrelated => {}
        }
    }
    Ok(ByUdp::Unfit)
}

async fn by_tcp(upstream: SocketAddr, query: &[u8], wanted: &Wanted) -> Result<Said, Failure> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(query.len()).map_err(|_| Failure::Nonsense)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    // Nobody else can speak here: letters do not matter, and say what the upstream does with them.
    let mut kept_letters = true;
    let received = match Reply::receive(&message, query) {
        Received::OtherLetters => {
            kept_letters = false;
            let name = HEADER..HEADER + wanted.name.as_wire().len();
            message[name.clone()].copy_from_slice(&query[name]);
            Reply::receive(&message, query)
        }
        received => received,
    };
    match received {
        Received::Reply(reply) => Ok(Said { reply, kept_letters }),
        _ => Err(Failure::Nonsense),
    }
}
