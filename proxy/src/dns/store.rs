//! The service manager's keeping of sockets, so that queries wait for the next agent instead of being lost
//! (`sd_pid_notify_with_fds(3)`, `FDSTORE=1`, and `sd_listen_fds(3)`).

use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::close;
use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, sendmsg_addr, socket,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tracing::warn;

/// The name of our sockets there.
const NAME: &str = "dns";
/// The first descriptor that is passed.
const FIRST: RawFd = 3;
/// The kernel passes so many at once (SCM_MAX_FD).
const AT_ONCE: usize = 250;

/// The sockets that the service manager has kept since the last agent; the first time that it is asked for them.
/// Nothing else in this process has them, or a port would be taken for as long as it runs.
pub(super) fn take() -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let ours = number("LISTEN_PID") == Some(getpid().as_raw_pid());
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let named = names.split(':').zip(FIRST..FIRST.saturating_add(count));
    let dns = named.filter(|(name, _)| *name == NAME).map(|(_, number)| number);
    dns.filter_map(|number| {
        let copied = copy(number).and_then(|copied| Ok(close(number).map(|()| copied)?));
        copied.inspect_err(|error| warn!(%error, "cannot take over a DNS socket")).ok()
    })
    .collect()
}

/// A descriptor of this process by its number, which the next program does not inherit.
fn copy(number: RawFd) -> io::Result<OwnedFd> {
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?)
}

/// Has the service manager, if there is one, keep these sockets in the place of those before.
pub(super) fn keep<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>) {
    let Some(manager) = env::var_os("NOTIFY_SOCKET") else { return };
    let sockets: Vec<BorrowedFd<'_>> = sockets.take(AT_ONCE).collect();
    let said = tell(&manager, &format!("FDSTOREREMOVE=1\nFDNAME={NAME}"), &[])
        .and_then(|()| tell(&manager, &format!("FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0"), &sockets));
    if let Err(error) = said {
        warn!(%error, "the service manager cannot keep the DNS sockets for the next agent");
    }
}

/// Has it keep none any more.
pub(super) fn forget() {
    if let Some(manager) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = tell(&manager, &format!("FDSTOREREMOVE=1\nFDNAME={NAME}"), &[])
    {
        warn!(%error, "the service manager keeps DNS sockets that nobody needs");
    }
}

fn tell(manager: &OsStr, state: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let address = match manager.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(OsStr::from_bytes(path))?,
    };
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(sockets));
    }
    let own = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    let text = [IoSlice::new(state.as_bytes())];
    sendmsg_addr(own, &address, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::{AsFd as _, AsRawFd as _};
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    #[test]
    fn a_service_manager_gets_the_sockets_themselves() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let kept = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        tell(path.as_os_str(), "FDSTORE=1\nFDNAME=dns", &[kept.as_fd()]).expect("it hears");
        let mut text = [0; 64];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let heard = recvmsg(&manager, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let bytes = heard.expect("a message").bytes;
        let sockets: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(sockets) => sockets.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(&text[..bytes], b"FDSTORE=1\nFDNAME=dns");
        let [socket] = <[OwnedFd; 1]>::try_from(sockets).expect("one socket");
        assert_eq!(UdpSocket::from(socket).local_addr().ok(), kept.local_addr().ok());
        assert!(tell(OsStr::new("@fairway-nobody-listens"), "", &[]).is_err());
    }

    #[test]
    fn what_is_handed_over_is_known_by_its_number() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let taken = copy(socket.as_raw_fd()).expect("the same socket");
        assert_eq!(UdpSocket::from(taken).local_addr().ok(), socket.local_addr().ok());
        assert!(copy(1_000_000).is_err());
    }

    /// Run by itself, this begins itself anew as a service manager would begin an agent.
    #[test]
    fn whoever_takes_sockets_over_can_give_their_port_free() {
        if env::var_os("LISTEN_FDS").is_some() {
            let taken = take();
            let [socket] = <[OwnedFd; 1]>::try_from(taken).expect("one socket");
            let listener = TcpListener::from(socket);
            let address = listener.local_addr().expect("an address");
            assert!(TcpListener::bind(address).is_err(), "it is taken");
            drop(listener);
            TcpListener::bind(address).expect("a port that nobody has");
            assert!(take().is_empty());
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let begin = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=dns exec \"$0\" --exact \"$1\" 3<&0 </dev/null";
        let test = "dns::store::tests::whoever_takes_sockets_over_can_give_their_port_free";
        let child = Command::new("sh")
            .args(["-c", begin])
            .arg(env::current_exe().expect("this program"))
            .arg(test)
            .stdin(OwnedFd::from(listener))
            .spawn();
        let status = child.and_then(|mut child| child.wait());
        assert!(status.expect("a child").success());
    }
}
