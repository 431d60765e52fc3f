//! Kernel settings under `/proc/sys`. Those below `net/` are the calling thread's namespace's own;
//! use [`NetNs::run`](crate::NetNs::run) for another's.

use std::fs;
use std::path::PathBuf;

use rustix::fs::StatVfsMountFlags;
use rustix::mount::MountFlags;

use crate::Error;

const SYSCTL: &str = "/proc/sys";

/// Writes a setting, as in `set("net/ipv4/ip_forward", "1")`. Interface names may contain dots,
/// hence slashes between the parts.
pub fn set(path: &str, value: &str) -> Result<(), Error> {
    // The newline lets an empty value be written at all.
    fs::write(file(path), format!("{value}\n"))
        .map_err(|e| Error::system(format!("set sysctl {path} to {value:?}"), e))
}

/// Reads a setting, without the newline at its end.
pub fn get(path: &str) -> Result<String, Error> {
    let text = fs::read_to_string(file(path))
        .map_err(|e| Error::system(format!("read sysctl {path}"), e))?;
    Ok(text.trim_end().to_owned())
}

/// Makes settings writable where they are mounted read-only, as container runtimes do it to whoever may not do
/// everything; asks for `CAP_SYS_ADMIN` then, and is seen by all who share the caller's mounts.
pub fn make_writable() -> Result<(), Error> {
    let mount =
        rustix::fs::statvfs(SYSCTL).map_err(|e| Error::system(format!("look at {SYSCTL}"), e))?;
    if !mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    // As runtimes have it otherwise, and without the one flag.
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount_remount(SYSCTL, flags, c"")
        .map_err(|e| Error::system(format!("make {SYSCTL} writable"), e))
}

fn file(path: &str) -> PathBuf {
    PathBuf::from(SYSCTL).join(path.trim_start_matches('/'))
}
