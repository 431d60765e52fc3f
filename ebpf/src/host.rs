//! The sockets of the host that a program runs on.
#![expect(unsafe_code, reason = "socket lookups take the program's context by pointer")]

use core::ffi::c_void;
use core::mem::offset_of;

use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use fairway_abi::{Address, FlowKey, protocol};

/// The network namespace of the packet's device.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether a socket of this host would be given such a packet: a connection with these very ends, or
/// a socket that listens there. A socket that is bound to another device than the one at whose hook
/// the program runs is not found.
#[inline(always)]
pub(crate) fn receives<A: Address>(ctx: *mut c_void, packet: &FlowKey<A>) -> bool {
    // Both addresses, then both ports, in network order: a key begins as the kernel's tuple does
    // (`struct bpf_sock_tuple`), which tells the families apart by its length.
    let length = const {
        let length = 2 * A::WIDTH / 8 + 4;
        assert!(length as usize == offset_of!(FlowKey<A>, destination_port) + 2);
        length
    };
    let tuple = (&raw const *packet).cast_mut().cast();
    let socket = match packet.protocol {
        // SAFETY: the context is that of the running program; the tuple is only read, and of the
        // length given.
        protocol::TCP => unsafe { bpf_skc_lookup_tcp(ctx, tuple, length, CURRENT_NETNS, 0) },
        // SAFETY: as above.
        protocol::UDP => unsafe { bpf_sk_lookup_udp(ctx, tuple, length, CURRENT_NETNS, 0) },
        // No helper of the kernel finds a socket of SCTP.
        _ => return false,
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the lookup answered a reference, which is given back here.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}
