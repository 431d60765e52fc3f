//! The eBPF programs: attach points around [`fairway_core`].
//!
//! | program | attached to | decides with |
//! |---|---|---|
//! | `pod_ingress` | ingress of the node's end of a pod's veth | `path::from_pod`, `query::answer`, `pace::wait` |
//! | `pod_egress` | its egress: what the host's stack sends to the pod | `path::to_pod` |
//! | `pod_sends` | in front of `pod_ingress`, where what the pod sends is limited | `pace::send` |
//! | `pod_receives` | in front of `pod_egress`, where what it receives is limited | `pace::receive` |
//! | `uplink_ingress` | ingress of the node's uplinks | `path::from_uplink` |
//! | `uplink_xdp` | the same place, before the kernel builds a packet buffer | `path::decide_from_uplink` |
//! | `uplink_egress` | egress of the uplinks | `path::from_host` |
//! | `overlay_ingress` | ingress of the overlay device | `path::from_overlay` |
//! | `overlay_egress` | its egress: what the host's stack sends to peers | `path::to_overlay` |
//! | `wireguard_ingress` | ingress of the overlay device, where that is WireGuard's | `path::from_uplink` |
//! | `wireguard_egress` | its egress | `path::to_overlay` |
//! | `connect{4,6}`, `sendmsg{4,6}` | a cgroup | `socket::connect`, `socket::send` |
//! | `recvmsg{4,6}`, `getpeername{4,6}` | a cgroup | `socket::peer` |
//! | `clock` | nothing; run on request | answers the kernel's jiffies |
//!
//! Each program reads its context, calls the steps of `core` (enter, decide, apply) with the maps as
//! its tables, and carries the verdict out. A program without an opinion lets the next one on the
//! hook run.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod alone;
mod before;
mod bytes;
mod classifier;
mod family;
mod host;
mod maps;
mod skb;
mod sockets;
mod xdp;

/// Several helpers are reserved to programs under a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[expect(unsafe_code, reason = "the kernel looks for this section and this symbol")]
// SAFETY: the section is the one loaders read the licence from; the symbol exists once.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: nothing in these programs panics, and the verifier would refuse this loop.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
