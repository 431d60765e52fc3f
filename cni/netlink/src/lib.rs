//! Network namespaces and rtnetlink verbs, as one would say them with ip(8); and wg(8)'s.
//!
//! Everything is synchronous: the kernel answers a netlink request before `sendmsg` returns, so
//! there is nothing to wait for. Two floors:
//!
//! ```text
//! link, address, route, neighbour    verbs: create_veth, add_address, replace_route, ...
//! wireguard                          keys and peers of a device, over generic netlink
//! filter, queue                      the same for programs on a device's hooks and for what its packets
//!                                    wait in, as tc(8) says it
//! grace                              shorter waits for the kernel while something changes
//! watch                              the same nouns, when others change them
//! conntrack, diag, nftables          what the kernel tracks, has open and filters by, as conntrack(8),
//!                                    ss(8) and nft(8) show it; over raw, which knows messages as bytes
//! socket                             sequence numbers, acks, dumps, the kernel's explanations
//! ```
//!
//! A network namespace belongs to a thread. [`NetNs::run`] therefore enters it on a thread of its
//! own, and a [`Netlink`] stays in the namespace of the thread that opened it, wherever it is used.
//!
//! ```no_run
//! # use fairway_netlink::{Netlink, NetNs, Route, Veth};
//! # fn main() -> Result<(), fairway_netlink::Error> {
//! let pod = NetNs::create("pod")?;
//! let mut node = Netlink::open()?;
//! let veth = node.create_veth(&Veth {
//!     name: "fwpod",
//!     peer_name: "eth0",
//!     peer_netns: Some(&pod),
//!     ..Veth::default()
//! })?;
//! node.set_up(veth.index)?;
//! node.replace_route(&Route {
//!     device: Some(veth.index),
//!     scope_link: true,
//!     ..Route::to("10.1.0.7/32".parse().expect("a prefix"))
//! })?;
//! # Ok(())
//! # }
//! ```

mod address;
pub mod conntrack;
mod diag;
mod error;
mod filter;
pub mod grace;
mod link;
mod neighbour;
mod netns;
pub mod nftables;
pub mod offload;
mod queue;
mod raw;
mod route;
mod socket;
pub mod sysctl;
mod watch;
mod wireguard;

pub use address::{Address, AddressOptions};
pub use diag::{ConnectedSocket, OpenSocket, Sockets};
pub use error::{Error, Refusal};
pub use filter::{Filter, FilterPlace, Hook};
pub use link::{Link, Mac, Veth, Vxlan, VxlanKey};
pub use neighbour::Neighbour;
pub use netns::NetNs;
pub use queue::QueueDiscipline;
pub use route::{Family, Route, RouteKind, RouteLookup};
pub use socket::Netlink;
pub use watch::{Event, Group, Watch};
pub use wireguard::{
    DeviceChange, PeerChange, PrivateKey, PublicKey, WireGuard, WireGuardDevice, WireGuardPeer,
};
