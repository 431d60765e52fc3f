//! Listeners go from one gateway to the next.
//!
//! A connection that waits at a listener is reset when the listener is closed, whoever else listens on the same port.
//! So none is closed: a gateway that starts asks the one that runs for its sockets, over a Unix socket, and both have
//! them. When the new one knows what to serve it says so; only then the old one takes nothing new any more.
//!
//! ```text
//! new: connects ──────────────────────────────► old: accepts, looks who it is
//!      version, sockets one by one, the end ◄──────  goes on serving
//!      follows, applies its first model, serves
//!      ready ─────────────────────────────────────►  closes its listeners, drains, ends
//! ```
//!
//! If the new one ends before that, nothing has happened. If the old one ends, the new one has its sockets.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::process;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fairway_model::Protocol;
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::listeners::Purpose;

/// Whoever has not sent everything by then does not.
const PATIENCE: Duration = Duration::from_secs(10);
/// By then whoever has been given everything must be ready.
const BEGIN: Duration = Duration::from_secs(90);
/// How often somebody is asked who has just made way for another.
const TRIES: usize = 5;

/// What is said, in four bytes. Those that name a socket come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// How the rest is to be read.
    Version(u16),
    Socket(Purpose),
    /// That was all.
    End,
    /// The new one serves.
    Ready,
    /// It has taken too long; the old one stays.
    Withdrawn,
}

/// This version.
const VERSION: u16 = 1;

impl Word {
    fn bytes(self) -> [u8; 4] {
        let (kind, number) = match self {
            Self::Version(version) => (b'v', version),
            Self::Socket(Purpose::Http) => (b'h', 0),
            Self::Socket(Purpose::Https) => (b's', 0),
            Self::Socket(Purpose::Admin) => (b'a', 0),
            Self::Socket(Purpose::Port(Protocol::Tcp, port)) => (b't', port),
            Self::Socket(Purpose::Port(Protocol::Udp, port)) => (b'u', port),
            Self::Socket(Purpose::Port(Protocol::Sctp, port)) => (b'c', port),
            Self::End => (b'e', 0),
            Self::Ready => (b'r', 0),
            Self::Withdrawn => (b'w', 0),
        };
        let [high, low] = number.to_be_bytes();
        [kind, 0, high, low]
    }

    fn read([kind, _, high, low]: [u8; 4]) -> io::Result<Self> {
        let number = u16::from_be_bytes([high, low]);
        Ok(match kind {
            b'v' => Self::Version(number),
            b'h' => Self::Socket(Purpose::Http),
            b's' => Self::Socket(Purpose::Https),
            b'a' => Self::Socket(Purpose::Admin),
            b't' => Self::Socket(Purpose::Port(Protocol::Tcp, number)),
            b'u' => Self::Socket(Purpose::Port(Protocol::Udp, number)),
            b'c' => Self::Socket(Purpose::Port(Protocol::Sctp, number)),
            b'e' => Self::End,
            b'r' => Self::Ready,
            b'w' => Self::Withdrawn,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no such word")),
        })
    }
}

/// The gateway that runs, from which sockets were taken.
#[derive(Debug)]
pub(crate) struct Predecessor(UnixStream);

/// Takes the sockets of the gateway that offers them at `path`, if there is one.
pub(crate) async fn take(
    path: &Path,
) -> Result<Option<(Predecessor, BTreeMap<Purpose, Vec<OwnedFd>>)>> {
    for _ in 0..TRIES {
        let stream = match UnixStream::connect(path).await.map_err(|error| (error.kind(), error)) {
            Ok(stream) => stream,
            // What is left of one that has ended refuses.
            Err((io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused, _)) => {
                return Ok(None);
            }
            // No socket of this user's, or no path for one.
            Err((io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput, error)) => {
                tracing::warn!(%error, "{}: nothing is taken over", path.display());
                return Ok(None);
            }
            Err((_, error)) => {
                return Err(error).context("ask the gateway that runs here for its sockets");
            }
        };
        is_ours(&stream)?;
        match timeout(PATIENCE, receive(&stream)).await {
            Ok(Ok(sockets)) => return Ok(Some((Predecessor(stream), sockets))),
            // It has ended, or made way for yet another one.
            Ok(Err(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) => {}
            Ok(Err(error)) => return Err(error).context("take over from the gateway that runs"),
            Err(_) => bail!("the gateway that runs here does not hand its sockets over"),
        }
    }
    bail!("gateways that run here end all the time")
}

impl Predecessor {
    /// Whether it waits for this one; also if it has ended.
    ///
    /// # Errors
    /// When it has waited for too long, and stays.
    pub(crate) fn waits(&self) -> Result<()> {
        let mut word = [0; 4];
        if self.0.try_read(&mut word).is_ok_and(|read| read == word.len())
            && Word::read(word)? == Word::Withdrawn
        {
            bail!("it took too long to take over; the gateway that runs goes on");
        }
        Ok(())
    }

    /// Says that this one serves.
    pub(crate) fn ready(self) {
        // One that has ended need not hear it.
        let _ = self.0.try_write(&Word::Ready.bytes());
    }
}

/// Waits at `path` for a gateway that starts, in place of whoever did so before.
pub(crate) fn offer(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.exists()) {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut own = path.as_os_str().to_owned();
    own.push(format!(".{}", process::id()));
    let listener = UnixListener::bind(&own)?;
    let named = fs::set_permissions(&own, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&own, path));
    if named.is_err() {
        let _ = fs::remove_file(&own);
    }
    named.map(|()| listener)
}

/// The next one that asks.
pub(crate) async fn asked(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match is_ours(&stream) {
                Ok(()) => return stream,
                Err(error) => tracing::warn!("nothing is handed over: {error}"),
            },
            Err(error) => {
                tracing::debug!(%error, "cannot hear who would take over");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Gives copies of all sockets to whoever has asked, and waits until he serves.
///
/// # Errors
/// When he does not.
pub(crate) async fn give(stream: &UnixStream, sockets: &[(Purpose, OwnedFd)]) -> io::Result<()> {
    let given = async {
        send(stream, Word::Version(VERSION), None).await?;
        for (purpose, socket) in sockets {
            send(stream, Word::Socket(*purpose), Some(socket.as_fd())).await?;
        }
        send(stream, Word::End, None).await
    };
    timeout(PATIENCE, given).await??;
    match timeout(BEGIN, hear(stream)).await {
        Ok(heard) => match heard? {
            (Word::Ready, _) => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        },
        Err(late) => {
            let _ = stream.try_write(&Word::Withdrawn.bytes());
            Err(late.into())
        }
    }
}

/// Sockets are for a process of the same user, and from one.
fn is_ours(stream: &UnixStream) -> io::Result<()> {
    let (own, other) = (geteuid().as_raw(), stream.peer_cred()?.uid());
    if own == other {
        return Ok(());
    }
    let text = format!("the other process is of user {other}, not of {own}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

async fn receive(stream: &UnixStream) -> io::Result<BTreeMap<Purpose, Vec<OwnedFd>>> {
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
    if hear(stream).await?.0 != Word::Version(VERSION) {
        return Err(invalid("the gateway that runs is of a version that hands over differently"));
    }
    let mut sockets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    loop {
        match hear(stream).await? {
            (Word::Socket(purpose), Some(socket)) => {
                sockets.entry(purpose).or_default().push(socket);
            }
            (Word::End, None) => return Ok(sockets),
            _ => return Err(invalid("the gateway that runs says what makes no sense")),
        }
    }
}

async fn send(stream: &UnixStream, word: Word, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = word.bytes();
    let sockets = socket.as_slice();
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !sockets.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(sockets));
            }
            let sent = sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
            if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        })
        .await
}

/// The next word, which is never cut as all are of one length, and the socket that comes with it.
async fn hear(stream: &UnixStream) -> io::Result<(Word, Option<OwnedFd>)> {
    stream
        .async_io(Interest::READABLE, || {
            let mut bytes = [0; 4];
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let read = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
            let socket = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
                _ => None,
            });
            match read {
                4 => Ok((Word::read(bytes)?, socket)),
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn sockets() -> Vec<(Purpose, OwnedFd)> {
        let tcp = |_| TcpListener::bind("127.0.0.1:0").unwrap().into();
        [Purpose::Http, Purpose::Http, Purpose::Https, Purpose::Port(Protocol::Tcp, 9000)]
            .map(|purpose| (purpose, tcp(purpose)))
            .into()
    }

    #[tokio::test]
    async fn sockets_arrive_as_what_they_are_and_he_who_has_them_says_that_he_is_ready() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/handover");
        assert!(take(&path).await.unwrap().is_none());
        assert!(take(&path.join("x".repeat(200))).await.unwrap().is_none());
        // What is left of one that has ended.
        drop(offer(&path).unwrap());
        assert!(take(&path).await.unwrap().is_none());

        let listener = offer(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let sockets = sockets();
        let old = async {
            // The first one that asks ends at once; that is seen, and the next one is given all.
            let stream = asked(&listener).await;
            let gone = give(&stream, &sockets).await.unwrap_err();
            let stream = asked(&listener).await;
            (gone, give(&stream, &sockets).await)
        };
        let new = async {
            drop(UnixStream::connect(&path).await.unwrap());
            let (old, taken) = take(&path).await.unwrap().unwrap();
            old.waits().unwrap();
            old.ready();
            taken
        };
        let ((gone, given), taken) = tokio::join!(old, new);
        assert!(
            matches!(
                gone.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
            ),
            "{gone}"
        );
        given.unwrap();
        let address =
            |socket: &OwnedFd| TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
        let taken = taken.iter().flat_map(|(purpose, all)| all.iter().map(|one| (*purpose, one)));
        let taken: Vec<_> = taken.map(|(purpose, one)| (purpose, address(one))).collect();
        let sent: Vec<_> = sockets.iter().map(|(purpose, one)| (*purpose, address(one))).collect();
        assert_eq!(taken, sent);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    // Where nobody has anything to do, time passes by itself.
    #[tokio::test(start_paused = true)]
    async fn he_who_takes_too_long_takes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let listener = offer(&path).unwrap();
        let old = async {
            let stream = asked(&listener).await;
            give(&stream, &sockets()).await
        };
        let (given, taken) = tokio::join!(old, take(&path));
        assert_eq!(given.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let (old, _) = taken.unwrap().unwrap();
        assert!(old.waits().unwrap_err().to_string().contains("too long"));
    }
}
