//! A place of a test's own to load programs in: a network namespace and a BPF file system.
//!
//! Both belong to one thread and are gone with it, however the test ends. The unit tests of the
//! crate and its tests beside it share this file.
#![expect(unsafe_code, reason = "leaving a mount namespace has no safe form")]

use std::path::Path;

use fairway_netlink::NetNs;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs a test with the folder of its own BPF file system, inside its own network namespace.
///
/// Without root it cannot run: it then says so, and fails where CI is to run it.
pub(crate) fn sandbox(test: impl FnOnce(&Path) + Send) {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI has to run these tests as root");
    if !root {
        eprintln!("NOT RUN: this test needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let network = NetNs::unnamed().expect("a new network namespace");
    let run = || {
        // SAFETY: only unsharing the descriptor table (FILES) can invalidate what other threads
        // hold; this thread ends with the test.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("a new mount namespace");
        let keep_to_ourselves = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", keep_to_ourselves).expect("mounts of our own");
        mount("bpf", folder.path(), "bpf", MountFlags::empty(), None).expect("a BPF file system");
        test(folder.path());
    };
    network.run(run).expect("a thread in the network namespace");
}
