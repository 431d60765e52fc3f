//! The address families as the kernel's helpers name them.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup as FibLookup};
use fairway_abi::{V4, V6};
use fairway_core::packet::{ETHERNET, words};
use fairway_core::{Ip, Packet};

use crate::alone;
use crate::maps::Slotted;

/// How the kernel's helpers name addresses of a family.
pub(crate) trait Family: Ip + Slotted {
    /// Length of Ethernet, IP and TCP headers without options.
    const HEADERS: u32;
    /// What every link takes: of a packet no longer than this, no MTU is looked up (RFC 791, 3.2, where
    /// it is what every host takes; RFC 8200, 5).
    const LEAST_MTU: u32;
    /// Fills the question of a route lookup.
    fn describe(lookup: &mut FibLookup, source: Self, destination: Self);
    /// Source and destination as they stand in the packet now.
    fn addresses<P: Packet>(packet: &P) -> Option<(Self, Self)>;
    /// As [`classifier::compose_error`](crate::classifier::compose_error), checked alone.
    fn compose_error(skb: *mut __sk_buff, mtu: u32) -> i32;
    /// As [`classifier::answer_query`](crate::classifier::answer_query), checked alone.
    fn answer_query(skb: *mut __sk_buff) -> i32;
}

impl Family for V4 {
    const HEADERS: u32 = ETHERNET + 20 + 20;
    const LEAST_MTU: u32 = 576;

    #[inline(always)]
    fn describe(lookup: &mut FibLookup, source: Self, destination: Self) {
        lookup.family = 2; // AF_INET
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P) -> Option<(Self, Self)> {
        Some((packet.load(ETHERNET + 12)?, packet.load(ETHERNET + 16)?))
    }

    #[inline(always)]
    fn compose_error(skb: *mut __sk_buff, mtu: u32) -> i32 {
        alone::compose_error4(skb, mtu)
    }

    #[inline(always)]
    fn answer_query(skb: *mut __sk_buff) -> i32 {
        alone::answer_query4(skb)
    }
}

impl Family for V6 {
    const HEADERS: u32 = ETHERNET + 40 + 20;
    const LEAST_MTU: u32 = 1280;

    #[inline(always)]
    fn describe(lookup: &mut FibLookup, source: Self, destination: Self) {
        lookup.family = 10; // AF_INET6
        lookup.__bindgen_anon_3.ipv6_src = words(&source);
        lookup.__bindgen_anon_4.ipv6_dst = words(&destination);
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P) -> Option<(Self, Self)> {
        Some((packet.load(ETHERNET + 8)?, packet.load(ETHERNET + 24)?))
    }

    #[inline(always)]
    fn compose_error(skb: *mut __sk_buff, mtu: u32) -> i32 {
        alone::compose_error6(skb, mtu)
    }

    #[inline(always)]
    fn answer_query(skb: *mut __sk_buff) -> i32 {
        alone::answer_query6(skb)
    }
}
