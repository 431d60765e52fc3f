//! Packets through a node: frames go in at the places where the programs are attached, and what
//! comes out is read as its receiver would.

mod clients;
mod complaints;
mod direct;
mod errors;
mod flows;
mod forwarding;
mod fragments;
mod frame;
mod hostile;
mod node;
mod parse;
mod path;
mod policy;
mod ports;
mod properties;
mod queries;
mod racing;
mod refusals;
mod resolver;
mod services;
mod sockets;
mod sources;
#[path = "../../fuzz/story.rs"]
mod story;

/// Runs each of the named tests once for IPv4 and once for IPv6.
macro_rules! for_both_families {
    ($($name:ident),* $(,)?) => {
        mod v4 {
            $(#[test] fn $name() { super::$name::<fairway_abi::V4>(); })*
        }
        mod v6 {
            $(#[test] fn $name() { super::$name::<fairway_abi::V6>(); })*
        }
    };
}
pub(crate) use for_both_families;
