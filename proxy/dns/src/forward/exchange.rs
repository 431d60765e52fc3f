//! One question to one upstream, by UDP and, where that does not do, by TCP.
//!
//! Who is not on the way has to guess the id, the port, and which letters of the name are large ones (draft-vixie-dnsext-dns0x20)
//! to have an answer of his own taken (RFC 5452).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{HEADER, Received, Reply, Wanted};

/// Messages that answer something else and are passed over; more of them are somebody's guesses.
const GUESSES: usize = 16;
/// More than we ask for, as some upstreams do not listen.
const LONGEST_UDP: usize = 4096;

/// How long an upstream that may have none is waited for by TCP.
const BY_TCP: Duration = Duration::from_secs(1);

/// Why an upstream did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("what it says is damaged, or answers something else")]
    Nonsense,
}

/// How an upstream is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Letters of the name are large ones at random, and it is believed only if it repeats them.
    pub(super) mixed_letters: bool,
    pub(super) edns: bool,
}

/// What was said, and how it was asked for at last.
pub(super) struct Said {
    pub(super) reply: Reply,
    pub(super) manner: Manner,
}

/// Asks, and waits for as long as it takes. An upstream that cannot be asked in this manner is asked in a plainer one.
pub(super) async fn exchange(
    upstream: SocketAddr,
    wanted: &Wanted,
    mut manner: Manner,
) -> Result<Said, Failure> {
    let mut random = [0; 34];
    getrandom(&mut random, GetRandomFlags::empty()).map_err(io::Error::from)?;
    loop {
        let [high, low, letters @ ..] = &random;
        let letters = if manner.mixed_letters { &letters[..] } else { &[] };
        let query = wanted.query([*high, *low], letters, manner.edns);
        let received = match by_udp(upstream, &query, wanted, manner).await? {
            Received::OtherLetters => {
                let Ok(Ok((received, kept))) =
                    timeout(BY_TCP, by_tcp(upstream, &query, wanted)).await
                else {
                    manner.mixed_letters = false;
                    continue;
                };
                manner.mixed_letters = kept;
                received
            }
            Received::Truncated | Received::Unrelated => by_tcp(upstream, &query, wanted).await?.0,
            received => received,
        };
        match received {
            Received::Reply(reply) => return Ok(Said { reply, manner }),
            Received::NoEdns => manner.edns = false,
            _ => return Err(Failure::Nonsense),
        }
    }
}

/// What it says by UDP; unrelated, if that cannot be told from guesses.
async fn by_udp(
    upstream: SocketAddr,
    query: &[u8],
    wanted: &Wanted,
    manner: Manner,
) -> Result<Received, Failure> {
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
        let message = &mut buffer[..length];
        let received = if manner.mixed_letters {
            Reply::receive(message, query)
        } else {
            in_any_letters(message, query, wanted).0
        };
        if !matches!(received, Received::Unrelated) {
            return Ok(received);
        }
    }
    Ok(Received::Unrelated)
}

/// What it says by TCP, where nobody else can speak, and whether it has kept the letters of the name.
async fn by_tcp(
    upstream: SocketAddr,
    query: &[u8],
    wanted: &Wanted,
) -> Result<(Received, bool), Failure> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(query.len()).map_err(|_| Failure::Nonsense)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(in_any_letters(&mut message, query, wanted))
}

/// As [`Reply::receive`] where letters of the name say nothing about who speaks; and whether they were kept.
fn in_any_letters(message: &mut [u8], query: &[u8], wanted: &Wanted) -> (Received, bool) {
    match Reply::receive(message, query) {
        Received::OtherLetters => {
            let name = HEADER..HEADER + wanted.name.as_wire().len();
            message[name.clone()].copy_from_slice(&query[name]);
            (Reply::receive(message, query), false)
        }
        received => (received, true),
    }
}
