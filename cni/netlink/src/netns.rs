//! Network namespaces: open, create, enter.
#![expect(
    unsafe_code,
    reason = "unshare, pre_exec and what tells namespaces apart have no safe form"
)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::fs::FlockOperation;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::Error;

/// A network namespace, held open: it lives at least as long as this value.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    identity: (u64, u64),
}

impl NetNs {
    /// Opens the namespace at `path`; anything that is not a network namespace is refused.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let operation = || format!("open network namespace {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK) // or a FIFO at this path would hold us up
            .open(path)
            .map_err(|e| Error::system(operation(), e))?;
        let metadata = file.metadata().map_err(|e| Error::system(operation(), e))?;
        if !is_network_namespace(&file) {
            return Err(Error::invalid(operation(), "not a network namespace"));
        }
        Ok(Self { file, identity: (metadata.dev(), metadata.ino()) })
    }

    /// The calling thread's namespace.
    pub fn current() -> Result<Self, Error> {
        Self::open(OF_THIS_THREAD)
    }

    /// A new namespace without a name. It is gone when the last value, process and socket in it is.
    pub fn unnamed() -> Result<Self, Error> {
        on_new_thread("create network namespace", || {
            unshare().map_err(|e| Error::system("create network namespace", e))?;
            Self::current()
        })?
    }

    /// A new namespace at [`NetNs::path`]`(name)`, as `ip netns add` makes it. Fails if the name is
    /// taken ([`Error::is_exists`]), and then leaves nothing behind.
    pub fn create(name: &str) -> Result<Self, Error> {
        let operation = || format!("create network namespace {name:?}");
        check_name(name).map_err(|problem| Error::invalid(operation(), problem))?;
        let path = Self::path(name);
        prepare_directory().map_err(|e| Error::system(operation(), e))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&path)
            .map_err(|e| Error::system(operation(), e))?;
        let mounted = on_new_thread(&operation(), || {
            unshare()?;
            rustix::mount::mount_bind(OF_THIS_THREAD, &path)
        });
        let opened = match mounted {
            Ok(Ok(())) => Self::open(&path),
            Ok(Err(errno)) => Err(Error::system(operation(), errno)),
            Err(error) => Err(error),
        };
        if opened.is_err() {
            // The first error is the one to report; the name must not stay taken.
            let _ = Self::delete(name);
        }
        opened
    }

    /// Removes the name, as `ip netns del` does; one that is absent is no error. The namespace goes
    /// when nobody uses it any more.
    pub fn delete(name: &str) -> Result<(), Error> {
        let operation = || format!("delete network namespace {name:?}");
        check_name(name).map_err(|problem| Error::invalid(operation(), problem))?;
        let path = Self::path(name);
        match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // EINVAL: a file that nothing is mounted on, left by an interrupted create.
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(Error::system(operation(), e)),
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::system(operation(), e)),
            _ => Ok(()),
        }
    }

    /// Where ip(8) and [`NetNs::create`] keep the namespace of that name.
    pub fn path(name: &str) -> PathBuf {
        Path::new(DIRECTORY).join(name)
    }

    /// Runs `f` inside the namespace, on a thread that exists for this alone; the caller's thread
    /// stays where it is. A panic in `f` goes on in the caller.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        const OPERATION: &str = "enter network namespace (this takes CAP_SYS_ADMIN)";
        on_new_thread(OPERATION, || {
            enter(self.file.as_fd()).map_err(|e| Error::system(OPERATION, e))?;
            Ok(f())
        })?
    }

    /// Makes `command`'s child process start inside the namespace.
    pub fn enter_on_spawn(&self, command: &mut Command) -> Result<(), Error> {
        let fd: OwnedFd = self
            .file
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Error::system("duplicate network namespace descriptor", e))?;
        // SAFETY: between fork and exec only setns is called, which is async-signal-safe and
        // allocates nothing; the closure owns the descriptor it uses.
        unsafe { command.pre_exec(move || enter(fd.as_fd()).map_err(io::Error::from)) };
        Ok(())
    }

    /// Device and inode number of the namespace: what makes two of them the same.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for NetNs {}

/// The cookie of the network namespace that a socket is in: a number that no other one gets until the
/// machine starts anew. `None` before Linux 5.14.
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    /// `asm-generic/socket.h`; the libc crate does not have it everywhere.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).ok()?;
    // SAFETY: the option is a `u64`; value and length outlive the call and fit each other.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(cookie)
}

const DIRECTORY: &str = "/run/netns";
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" | "." | ".." => Err("not a name"),
        _ if name.contains(['/', '\0']) => Err("a name contains no slash"),
        _ if name.len() > 255 => Err("a name has at most 255 bytes"),
        _ => Ok(()),
    }
}

/// Makes the directory a shared mount, so that a namespace deleted here also disappears from the
/// mount namespaces that were copied from this one, which would keep it alive.
fn prepare_directory() -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    let directory = File::open(DIRECTORY)?;
    // Two creators at once must not both mount the directory over itself. Closing unlocks.
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
    let share = || {
        let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        rustix::mount::mount_change(DIRECTORY, flags)
    };
    match share() {
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(DIRECTORY, DIRECTORY)?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}

fn on_new_thread<T: Send>(operation: &str, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, f)
            .map_err(|e| Error::system(format!("{operation}: start a thread"), e))?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn enter(netns: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
}

fn unshare() -> rustix::io::Result<()> {
    // SAFETY: only unsharing the descriptor table (FILES) can invalidate what other threads hold.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

fn is_network_namespace(file: &File) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // The ioctl number means something else to other files, so ask it of nsfs files alone.
    if rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type == NSFS_MAGIC) {
        // SAFETY: NS_GET_NSTYPE takes no argument and returns the type as the result.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        kind == libc::CLONE_NEWNET
    } else {
        false
    }
}
