//! An XDP program that lets everything pass.
//!
//! A veth takes frames that XDP sends back or redirects to it only while its peer has an XDP
//! program of its own; this is the least one.
#![expect(
    unsafe_code,
    reason = "the bpf system call takes a pointer to a structure of each command"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};

/// The program's attachment; ends with this value.
#[derive(Debug)]
pub(crate) struct Attachment {
    _link: OwnedFd,
}

/// Attaches it, in the driver, to a device of the calling thread's network namespace.
pub(crate) fn attach(device: u32) -> Result<Attachment> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

    #[repr(C)]
    struct LinkCreate {
        program: u32,
        device: u32,
        attach_type: u32,
        flags: u32,
    }
    let program = load().context("load an XDP program")?;
    let attributes = LinkCreate {
        program: descriptor(&program),
        device,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    // SAFETY: the structure is what this command reads, has no padding, and holds no pointer.
    let link = unsafe { bpf(BPF_LINK_CREATE, &attributes) }
        .with_context(|| format!("attach an XDP program to device {device}"))?;
    Ok(Attachment { _link: link })
}

fn load() -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    /// One instruction each: opcode, registers, offset, immediate; in host byte order.
    const RETURN_PASS: [[u8; 8]; 2] = [
        with_immediate(0xb7, 2), // r0 = XDP_PASS
        with_immediate(0x95, 0), // exit
    ];
    const LICENSE: &[u8] = b"GPL\0";

    #[repr(C)]
    struct ProgLoad {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
    }
    let attributes = ProgLoad {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: 2,
        instructions: RETURN_PASS.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
    };
    // SAFETY: the structure is the head of what this command reads (the kernel takes the rest for
    // zero) and has no padding; its two pointers are to constants of the lengths it says.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }
}

const fn with_immediate(opcode: u8, immediate: i32) -> [u8; 8] {
    let i = immediate.to_ne_bytes();
    [opcode, 0, 0, 0, i[0], i[1], i[2], i[3]]
}

fn descriptor(fd: &OwnedFd) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}

/// Calls a command of bpf(2) that answers with a new descriptor.
///
/// # Safety
/// `attributes` is what `command` reads, without padding, and its pointers are valid for what the
/// command does with them.
unsafe fn bpf<A>(command: libc::c_int, attributes: &A) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller; pointer and size are those of one live value.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<A>()) };
    match RawFd::try_from(answer) {
        // SAFETY: the command has just made this descriptor for us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
