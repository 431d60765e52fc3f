//! Everything against the running kernel, in network namespaces that exist for one test alone.
//! It takes root; see [`root`].

mod links;
mod namespaces;
mod queues;
mod routing;
mod settings;
mod sockets;
mod tracking;
mod watch;
mod wireguard;

use std::net::IpAddr;

use fairway_netlink::{NetNs, Netlink, Veth};

/// A namespace for one test; it is gone when the test is over, however it ends.
pub(crate) fn netns() -> Option<NetNs> {
    root().then(|| NetNs::unnamed().expect("a new network namespace"))
}

/// These tests need root. Where they cannot run they say so, and fail where CI is to run them.
pub(crate) fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI has to run these tests as root");
    if !root {
        eprintln!("NOT RUN: this test needs root");
    }
    root
}

/// Some device that is up and has a carrier.
pub(crate) fn device(node: &mut Netlink, name: &str) -> u32 {
    let peer_name = &format!("{name}-peer");
    let veth = node.create_veth(&Veth { name, peer_name, ..Veth::default() });
    let index = veth.expect("a veth pair").index;
    let peer = node.link(peer_name).expect("an answer").expect("the other end").index;
    for index in [index, peer] {
        node.set_up(index).expect("up");
    }
    index
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
