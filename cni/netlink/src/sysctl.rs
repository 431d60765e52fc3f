//! Kernel settings under `/proc/sys`. Those below `net/` are the calling thread's namespace's own;
//! use [`NetNs::run`](crate::NetNs::run) for another's.

use std::fs;
use std::path::PathBuf;

use crate::Error;

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

fn file(path: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(path.trim_start_matches('/'))
}
