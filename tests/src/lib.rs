//! The lab: a cluster on one machine.
//!
//! Nodes, pods and an outside client are network namespaces, pods are real processes, and the
//! binaries under test are the real ones, started as on a real node. One daemon owns a lab; people
//! talk to it with `fairway-lab`, tests with [`Lab`].
//!
//! ```text
//! fairway-lab, tests ──(unix socket)──► daemon ── underlay     namespaces, bridges, router
//!                                         ├────── manager      controllers, scheduler
//!                                         ├────── kubelet      CNI, processes, probes
//!                                         ├────── store ─► manifests/ or API server ─► fairway-controlplane
//!                                         └────── service      keeps the binaries running
//! ```
//!
//! The binaries read nothing of the lab's but the folder of manifests. Or, with [`Source::Api`], what the API
//! server of [`apiserver`] has in its place: it gives Services their addresses and ports then, and the manager
//! makes their EndpointSlices.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use fairway_tests::api::Target;
//! use fairway_tests::{Lab, Options};
//!
//! let lab = Lab::up(Options::named("shop".parse()?))?;
//! lab.apply_files(&["tests/examples/guestbook".into()])?;
//! lab.wait_for_pods("default", "tier", "frontend", 3)?;
//! let page = lab.get(Target::Client, "http://192.168.240.11:30080/")?;
//! # drop(page);
//! # Ok(())
//! # } // the lab ends with the value
//! ```

pub mod api;
pub mod apiserver;
pub mod apps;
pub mod bench;
pub mod binaries;
pub mod cli;
mod cluster;
mod controllers;
mod daemon;
mod demo;
mod flannel;
pub mod http;
mod kubelet;
mod lab;
mod manager;
mod manifest;
mod names;
mod objects;
mod older;
pub mod policy;
mod process;
mod scheduler;
mod service;
mod slices;
mod spec;
mod store;
mod sweep;
mod topology;
mod underlay;
pub mod wait;
mod xdp_pass;

pub use cluster::{Options, Source, Xdp};
pub use lab::Lab;
pub use names::LabName;
pub use objects::{Key, Kind};
pub use topology::Backend;

use std::sync::atomic::{AtomicU32, Ordering};

/// Whether a test that builds a lab may run here. Without root it says so; in CI it fails.
pub fn may_run(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "test {test} needs root");
    if !root {
        eprintln!("NOT RUN: test {test} needs root");
    }
    root
}

/// Whether the objects of this run's labs are in a folder of manifests. A test that is about that folder says
/// so, and why, where they are not.
pub fn needs_manifests(test: &str, why: &str) -> bool {
    let is_so = Source::of_environment() == Source::Manifests;
    if !is_so {
        eprintln!("NOT RUN from an API server: test {test}: {why}");
    }
    is_so
}

/// A lab of two nodes for one test, changed as it likes; `None` where it [may not run](may_run). Each node
/// has a subnet of its own, so that the way between them leads through the tunnel.
///
/// # Panics
/// The lab cannot be made.
pub fn two_nodes(tag: &str, change: impl FnOnce(&mut Options)) -> Option<Lab> {
    if !may_run(tag) {
        return None;
    }
    let mut options = Options { nodes: 2, subnets: 2, ..Options::named(unique_name(tag)) };
    change(&mut options);
    let lab = Lab::up(options);
    Some(lab.unwrap_or_else(|error| panic!("the lab of {tag} does not come up: {error:#}")))
}

/// A name that no other lab on this machine has; `tag` is at most eight letters.
pub fn unique_name(tag: &str) -> LabName {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // The number of the process and the count are of any length; the letter keeps them apart.
    let name = format!("{tag}{}x{count}", std::process::id());
    name.parse().expect("tag and numbers make a name")
}
