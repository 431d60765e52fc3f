//! The cgroup programs that translate Service addresses at the socket.
#![expect(unsafe_code, reason = "socket contexts are raw pointers")]

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use fairway_abi::{V4, V6};
use fairway_core::packet::words;
use fairway_core::socket::{self, Outcome, SocketAddress};
use zerocopy::network_endian::U16;
use zerocopy::transmute;

use crate::maps::{self, Caller, Kernel};

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    translate4(&ctx, socket::connect)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    translate6(&ctx, socket::connect, socket::connect)
}

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    translate4(&ctx, socket::send)
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    translate6(&ctx, socket::send, socket::send)
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    restore4(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    restore6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    restore4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    restore6(&ctx)
}

#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    maps::release(ctx.sock);
    PROCEED
}

/// What these programs answer: go on with the call, or fail it.
const PROCEED: i32 = 1;
const FAIL: i32 = 0;

/// What `connect` reports for a Service without endpoints, as if the port were closed.
const ECONNREFUSED: i32 = 111;

type Choice<A> = fn(&Kernel, &Caller, &SocketAddress<A>) -> Outcome<A>;

#[inline(always)]
fn translate4(ctx: &SockAddrContext, choose: Choice<V4>) -> i32 {
    let call = Call(ctx.sock_addr);
    if !socket::is_balanced(call.protocol()) {
        return PROCEED;
    }
    match choose(&Kernel, &Caller::of(ctx), &call.address(call.ip4())) {
        Outcome::Unchanged => PROCEED,
        Outcome::Endpoint(endpoint) => {
            call.set_ip4(endpoint.address);
            call.set_port(endpoint.port);
            PROCEED
        }
        Outcome::Refused => refused(),
    }
}

#[inline(always)]
fn translate6(ctx: &SockAddrContext, choose: Choice<V6>, choose_mapped: Choice<V4>) -> i32 {
    let call = Call(ctx.sock_addr);
    if !socket::is_balanced(call.protocol()) {
        return PROCEED;
    }
    let ip = call.ip6();
    if let Some(ip) = unmap(&ip) {
        return match choose_mapped(&Kernel, &Caller::of(ctx), &call.address(ip)) {
            Outcome::Unchanged => PROCEED,
            Outcome::Endpoint(endpoint) => {
                call.set_ip6(map(endpoint.address));
                call.set_port(endpoint.port);
                PROCEED
            }
            Outcome::Refused => refused(),
        };
    }
    match choose(&Kernel, &Caller::of(ctx), &call.address(ip)) {
        Outcome::Unchanged => PROCEED,
        Outcome::Endpoint(endpoint) => {
            call.set_ip6(endpoint.address);
            call.set_port(endpoint.port);
            PROCEED
        }
        Outcome::Refused => refused(),
    }
}

/// Shows the frontend where the kernel would show the endpoint.
#[inline(always)]
fn restore4(ctx: &SockAddrContext) -> i32 {
    let call = Call(ctx.sock_addr);
    if socket::is_balanced(call.protocol())
        && let Some(peer) = socket::peer(&Caller::of(ctx), &call.address(call.ip4()))
    {
        call.set_ip4(peer.address);
        call.set_port(peer.port);
    }
    PROCEED
}

#[inline(always)]
fn restore6(ctx: &SockAddrContext) -> i32 {
    let call = Call(ctx.sock_addr);
    if !socket::is_balanced(call.protocol()) {
        return PROCEED;
    }
    let ip = call.ip6();
    if let Some(ip) = unmap(&ip) {
        if let Some(peer) = socket::peer(&Caller::of(ctx), &call.address(ip)) {
            call.set_ip6(map(peer.address));
            call.set_port(peer.port);
        }
    } else if let Some(peer) = socket::peer(&Caller::of(ctx), &call.address(ip)) {
        call.set_ip6(peer.address);
        call.set_port(peer.port);
    }
    PROCEED
}

#[inline(always)]
fn refused() -> i32 {
    // SAFETY: no preconditions; the program then fails the call with this error.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}

/// The IPv4 address inside `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), which is how an IPv6 socket names
/// an IPv4 peer.
#[inline(always)]
fn unmap(address: &V6) -> Option<V4> {
    let words = words(address);
    (words[0] == 0 && words[1] == 0 && words[2] == 0x0000_ffff_u32.to_be()).then_some([
        address[12],
        address[13],
        address[14],
        address[15],
    ])
}

#[inline(always)]
fn map(address: V4) -> V6 {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The address argument of a socket call.
struct Call(*mut bpf_sock_addr);

impl Call {
    #[inline(always)]
    fn address<A>(&self, address: A) -> SocketAddress<A> {
        SocketAddress { address, port: self.port(), protocol: self.protocol() }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "protocol numbers are 8 bits")]
    fn protocol(&self) -> u8 {
        // SAFETY: reading a context field.
        unsafe { (*self.0).protocol as u8 }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half holds the port")]
    fn port(&self) -> U16 {
        // SAFETY: reading a context field; the port is in network order.
        U16::from_bytes(unsafe { (*self.0).user_port as u16 }.to_ne_bytes())
    }

    #[inline(always)]
    fn set_port(&self, port: U16) {
        // SAFETY: writing a context field the kernel lets these programs write.
        unsafe { (*self.0).user_port = u32::from(u16::from_ne_bytes(port.to_bytes())) };
    }

    #[inline(always)]
    fn ip4(&self) -> V4 {
        // SAFETY: reading a context field, in network order.
        unsafe { (*self.0).user_ip4 }.to_ne_bytes()
    }

    #[inline(always)]
    fn set_ip4(&self, address: V4) {
        // SAFETY: as in `set_port`.
        unsafe { (*self.0).user_ip4 = u32::from_ne_bytes(address) };
    }

    #[inline(always)]
    fn ip6(&self) -> V6 {
        // SAFETY: reading context fields one word at a time, as the kernel asks.
        transmute!(unsafe {
            [
                (*self.0).user_ip6[0],
                (*self.0).user_ip6[1],
                (*self.0).user_ip6[2],
                (*self.0).user_ip6[3],
            ]
        })
    }

    #[inline(always)]
    fn set_ip6(&self, address: V6) {
        let [a, b, c, d] = words(&address);
        // SAFETY: as in `set_port`, one word at a time.
        unsafe {
            (*self.0).user_ip6[0] = a;
            (*self.0).user_ip6[1] = b;
            (*self.0).user_ip6[2] = c;
            (*self.0).user_ip6[3] = d;
        }
    }
}
