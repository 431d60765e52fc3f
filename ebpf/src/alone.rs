//! Steps that the verifier checks by themselves, once a program, and not on every way that leads to them: they are
//! visible functions, and take numbers and the context. What else they work on lies in the processor's slot.
#![expect(unsafe_code, reason = "a function's name is made visible, which could clash with others")]

use core::hint::black_box;

use aya_ebpf::bindings::__sk_buff;
use fairway_abi::{V4, V6};
use fairway_core::sctp;
use zerocopy::network_endian::U16;
use zerocopy::transmute;

use crate::classifier::{answer_query, compose_error};

/// [`compose_error`] of IPv4.
// SAFETY: the name exists once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn compose_error4(skb: *mut __sk_buff, mtu: u32) -> i32 {
    compose_error::<V4>(skb, mtu)
}

/// [`compose_error`] of IPv6.
// SAFETY: the name exists once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn compose_error6(skb: *mut __sk_buff, mtu: u32) -> i32 {
    compose_error::<V6>(skb, mtu)
}

/// [`answer_query`] of IPv4.
// SAFETY: the name exists once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn answer_query4(skb: *mut __sk_buff) -> i32 {
    answer_query::<V4>(skb)
}

/// [`answer_query`] of IPv6.
// SAFETY: the name exists once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn answer_query6(skb: *mut __sk_buff) -> i32 {
    answer_query::<V6>(skb)
}

/// As [`sctp::adjust`].
#[inline(always)]
pub(crate) fn sctp_checksum(field: [u8; 4], was: [U16; 2], is: [U16; 2], length: u32) -> [u8; 4] {
    transmute!(adjust_sctp(transmute!(field), transmute!(was), transmute!(is), length))
}

/// The same with all of these as they lie in memory.
// SAFETY: the name exists once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn adjust_sctp(field: u32, was: u32, is: u32, length: u32) -> u32 {
    transmute!(sctp::adjust(transmute!(field), transmute!(was), transmute!(is), black_box(length)))
}
