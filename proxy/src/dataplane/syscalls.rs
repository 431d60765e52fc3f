//! The `bpf(2)` commands that the loader library has no call for, and a socket that no library opens.
#![expect(unsafe_code, reason = "raw system calls and a marker trait of the loader library")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// From `linux/bpf.h`: a table opened so can be read and not written.
const BPF_F_RDONLY: u32 = 1 << 3;

/// `BPF_OBJ_GET`: opens what is pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    open(path, 0)
}

/// The same of a table, which cannot be changed by what this returns.
pub(super) fn open_to_read(path: &Path) -> io::Result<OwnedFd> {
    open(path, BPF_F_RDONLY)
}

fn open(path: &Path, file_flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags };
    let fd = bpf(BPF_OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_OBJ_PIN`: pins what may be pinned elsewhere, too.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes {
        pathname: path.as_ptr() as u64,
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        file_flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attributes).map(|_| ())
}

/// Waits until no program is at work that began before: `membarrier(2)` for all processors is an RCU
/// grace period. A kernel that is told to leave some processors alone (`nohz_full`) has no such call; a
/// program takes no time that comes near what is slept then.
pub(super) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// A hash table or an array with keys and values of any type.
#[derive(Debug)]
pub(super) struct Bytes {
    map: OwnedFd,
    key: usize,
    value: usize,
}

impl Bytes {
    /// One that is pinned at a path, with keys and values of these lengths. The kernel reads and writes
    /// as many bytes, so they have to be what it says of the table.
    pub(super) fn new(map: OwnedFd, key: u32, value: u32) -> Self {
        Self { map, key: key as usize, value: value as usize }
    }

    /// The length of its keys.
    pub(super) fn key_size(&self) -> usize {
        self.key
    }

    /// The length of its values.
    pub(super) fn value_size(&self) -> usize {
        self.value
    }

    /// Shows each entry, up to the first error. Those that come or go meanwhile may or may not be there.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut outcome = Ok(());
        batches(self.map.as_fd(), self.key, self.value, |keys, values| {
            for (key, value) in keys.chunks_exact(self.key).zip(values.chunks_exact(self.value)) {
                if outcome.is_ok() {
                    outcome = visit(key, value);
                }
            }
        })?;
        outcome
    }

    /// The value under a key.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value];
        match self.command(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr() as u64, 0) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds an entry, or replaces one unless `add` is set.
    pub(super) fn put(&self, key: &[u8], value: &[u8], add: bool) -> io::Result<()> {
        if value.len() != self.value {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.command(BPF_MAP_UPDATE_ELEM, key, value.as_ptr() as u64, u64::from(add))
    }

    /// Removes an entry; false if there is none.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        match self.command(BPF_MAP_DELETE_ELEM, key, 0, 0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn command(&self, command: libc::c_int, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        #[repr(C)]
        struct Attributes {
            map_fd: u32,
            padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        if key.len() != self.key {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map_fd = self.map.as_raw_fd().cast_unsigned();
        let key = key.as_ptr() as u64;
        bpf(command, &mut Attributes { map_fd, padding: 0, key, value, flags }).map(|_| ())
    }
}

/// `BPF_LINK_UPDATE`: puts `program` in the place of the one the link runs, without a moment in
/// which neither does. Fails with `ENOLINK` if what the link was attached to is gone.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attributes = Attributes {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(|_| ())
}

/// `BPF_MAP_UPDATE_BATCH`: adds or replaces entries of a map with keys and values of these types, in
/// this order. After an error, the first of them may be written.
pub(super) fn update_batch<K, V>(
    map: BorrowedFd<'_>,
    keys: &[Plain<K>],
    values: &[Plain<V>],
) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    if keys.len() != values.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut attributes = Attributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attributes).map(|_| ())
}

/// `BPF_LINK_DETACH`: takes the link's program from where it is attached. When the last descriptor and
/// pin of a link go, the kernel does so too, but some time later.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut link_fd = link.as_raw_fd().cast_unsigned();
    bpf(BPF_LINK_DETACH, &mut link_fd).map(|_| ())
}

/// `BPF_MAP_LOOKUP_BATCH`: how many entries a hash table or a table of prefixes has, whose keys and
/// values have these lengths. Entries that come or go meanwhile may or may not be counted.
pub(super) fn count_entries(map: BorrowedFd<'_>, key: u32, value: u32) -> io::Result<u64> {
    let (key, value) = (key as usize, value as usize);
    let mut total = 0;
    batches(map, key, value, |keys, _| total += (keys.len() / key) as u64)?;
    Ok(total)
}

/// Reads all keys and values, which have these lengths, some at a time.
fn batches(
    map: BorrowedFd<'_>,
    key: usize,
    value: usize,
    mut read: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    /// Entries a call, at first: what the kernel has in one place of a hash table has to fit.
    const BATCH: u32 = 1024;
    const MOST: u32 = 1 << 20;
    #[repr(C)]
    struct Attributes {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    let buffer = |each: usize, count: u32| vec![0u8; each * count as usize];
    let mut size = BATCH;
    let (mut keys, mut values) = (buffer(key, size), buffer(value, size));
    // Where to go on: a number, or a key.
    let mut place = [vec![0u8; key.max(8)], vec![0u8; key.max(8)]];
    let mut first = true;
    loop {
        let [from, to] = &mut place;
        let mut attributes = Attributes {
            in_batch: if first { 0 } else { from.as_ptr() as u64 },
            out_batch: to.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: size,
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        let ended = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(_) => false,
            // The end; what was read until there counts.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < MOST => {
                size *= 4;
                (keys, values) = (buffer(key, size), buffer(value, size));
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = attributes.count as usize;
        read(&keys[..key * count], &values[..value * count]);
        if ended {
            return Ok(());
        }
        place.swap(0, 1);
        first = false;
    }
}

/// Frames of ARP (`linux/if_ether.h`).
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;

/// A socket that receives the frames of a type that arrive on a device, and sends whole frames on it; it never
/// blocks.
pub(crate) fn frames_of(device: u32, ethertype: u16) -> io::Result<OwnedFd> {
    let socket = packets()?;
    bind(&socket, device, ethertype)?;
    Ok(socket)
}

/// The same, and of frames it receives only neighbour solicitations that no router has passed on (RFC 4861, 4.3
/// and 7.1.1), whoever they are sent to.
pub(crate) fn solicitations_of(device: u32) -> io::Result<OwnedFd> {
    const ETHERTYPE_IPV6: u16 = 0x86dd;
    const ICMPV6: u32 = 58;
    const SOLICITATION: u32 = 135;
    const LENGTH: libc::socklen_t = 16;
    const { assert!(size_of::<libc::sock_fprog>() == LENGTH as usize) };
    let load = |at| libc::sock_filter { code: 0x30, jt: 0, jf: 0, k: at };
    let must_be = |value, or_skip| libc::sock_filter { code: 0x15, jt: 0, jf: or_skip, k: value };
    let take = |bytes| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: bytes };
    // Bytes of the frame: Ethernet's header has 14, then IPv6's next header, its hop limit, and, behind its 40,
    // the message's type.
    let mut filter = [
        load(14 + 6),
        must_be(ICMPV6, 5),
        load(14 + 7),
        must_be(255, 3),
        load(14 + 40),
        must_be(SOLICITATION, 1),
        take(u32::MAX),
        take(0),
    ];
    let program = libc::sock_fprog { len: 8, filter: filter.as_mut_ptr() };
    let socket = packets()?;
    // SAFETY: the program and its instructions live for the call, which copies them; the length is that of its
    // type, which is the one that this option takes.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            LENGTH,
        )
    };
    if attached != 0 {
        return Err(io::Error::last_os_error());
    }
    bind(&socket, device, ETHERTYPE_IPV6)?;
    Ok(socket)
}

/// A socket for frames, of no type yet: nothing gets in before it is bound.
fn packets() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?)
}

fn bind(socket: &OwnedFd, device: u32, ethertype: u16) -> io::Result<()> {
    const LENGTH: libc::socklen_t = 20;
    const { assert!(size_of::<libc::sockaddr_ll>() == LENGTH as usize) };
    let index = i32::try_from(device).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let address = libc::sockaddr_ll {
        sll_family: 17, // AF_PACKET
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address lives for the call, and its length is that of its type, which is the one that
    // sockets of this family take.
    let bound =
        unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), LENGTH) };
    if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `T` is the attribute struct of the command (see the callers), fully initialised, and
    // what it points to outlives the call and is as long as the command fills it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A table key or value in the form the loader library takes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Plain<T>(pub(crate) T);

// SAFETY: the bounds say that any bytes make a `T` and that a `T` is nothing but initialised bytes,
// which is what the trait asks for; the wrapper has the same layout.
unsafe impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> aya::Pod for Plain<T> {}
