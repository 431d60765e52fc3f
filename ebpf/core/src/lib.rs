//! Every decision the dataplane takes, as code without I/O or clock.
//!
//! The same functions run in the kernel (over eBPF maps), in tests and in explanations (over
//! `memory`): a [`Packet`] and [`Tables`] go in; table changes, a changed packet and a [`Verdict`]
//! come out.
//!
//! | function | hook | what it sees |
//! |---|---|---|
//! | [`path::from_pod`] | ingress of a pod's veth | what a pod sends |
//! | [`path::from_uplink`] | ingress of the node's uplink, or XDP there | what arrives from the network |
//! | [`path::from_overlay`] | ingress of the overlay device | what peers sent through the tunnel |
//! | [`path::from_host`] | egress of uplinks | answers the host's stack sends |
//! | [`path::to_pod`] | egress of a pod's veth | what the host's stack delivers to a pod |
//! | [`path::to_overlay`] | egress of the overlay device | what the host's stack sends to peers |
//! | [`pace::send`], [`pace::receive`] | both sides of a limited pod's veth | what it sends and receives |
//! | [`pace::wait`] | where the way of what it sends is known | what is over its limit and can wait |
//! | [`query::answer`] | ingress of a pod's veth | queries of the DNS for addresses of Services |
//! | [`socket::connect`], [`socket::send`], [`socket::peer`] | cgroup socket hooks | addresses processes use |
//!
//! What keeps it loadable: nearly everything is inlined, there is no slice and no panic path, lookups
//! return copies, records and decisions are plain data without undefined bytes, and what is too
//! large for a program's stack lies in a [`flow::Scratch`] that the caller hands in.
#![cfg_attr(not(any(test, feature = "std")), no_std)]

mod checksum;
pub mod direct;
pub mod dns;
pub mod flow;
pub mod fragment;
pub mod handover;
pub mod icmp;
#[cfg(any(test, feature = "std"))]
pub mod memory;
pub mod neighbour;
pub mod pace;
pub mod packet;
pub mod path;
pub mod policy;
pub mod port;
pub mod query;
pub mod sctp;
pub mod service;
pub mod socket;
pub mod tables;

pub use packet::{Ip, Packet};
pub use path::Verdict;
pub use port::Host;
pub use tables::Tables;
