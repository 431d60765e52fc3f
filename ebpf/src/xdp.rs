//! The XDP program on uplinks.
//!
//! It finishes what needs no packet buffer: a packet that is translated and leaves by a route whose
//! neighbour is known. For anything else it leaves the frame untouched; the flow record it may have
//! opened is the one `uplink_ingress` then follows.
#![expect(unsafe_code, reason = "packet bytes and helpers are reached through raw pointers")]
#![expect(clippy::cast_possible_truncation, reason = "helpers take and answer C ints")]

use core::hint::black_box;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup, xdp_action, xdp_md,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use fairway_abi::{DropReason, V4, V6, flow};
use fairway_core::flow::Errand;
use fairway_core::packet::{Covers, Difference, ETHERNET, Ports, adjust_complete_checksum};
use fairway_core::path::Todo;
use fairway_core::{Host, Ip, Packet, Tables, Verdict, direct, path, service};

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::alone;
use crate::bytes::Span;
use crate::classifier::{decide_from_uplink, name_client, open};
use crate::family::Family;
use crate::maps::{self, Here, Kernel, Slot};

#[xdp]
pub(crate) fn uplink_xdp(ctx: XdpContext) -> u32 {
    match (Frame { xdp: ctx.ctx }).load::<[u8; 2]>(12) {
        Some(V4::ETHERTYPE) => forward::<V4>(ctx.ctx),
        Some(V6::ETHERTYPE) => forward::<V6>(ctx.ctx),
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn forward<A: Family>(xdp: *mut xdp_md) -> u32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let Some(slot) = A::slot() else { return xdp_action::XDP_PASS };
    if let Some(action) = enter(xdp, slot) {
        if action == xdp_action::XDP_DROP {
            tell(xdp, slot, slot.refused);
        }
        return action;
    }
    let decided = decide_from_uplink(slot).and_then(|todo| match todo {
        Todo::Apply => Ok(()),
        Todo::Open => {
            // Its packets are named, or go into a tunnel: the classifier has to see to this one as well.
            name_client(slot);
            if slot.scratch.opening.state & (flow::DELEGATED | flow::NAMES_CLIENT) != 0 {
                slot.scratch.opening.state |= flow::UNSEEN;
            }
            open(xdp.cast(), slot)
        }
    });
    match decided {
        Ok(()) => finish(xdp, slot),
        // The classifier decides the same, and tells the client.
        Err(reason) if service::is_told(reason) => xdp_action::XDP_PASS,
        Err(reason) => {
            maps::count(reason);
            tell(xdp, slot, reason as u32);
            xdp_action::XDP_DROP
        }
    }
}

/// Tells those who watch of a frame that was dropped.
#[inline(never)]
fn tell<A: Family>(xdp: *mut xdp_md, slot: &Slot<A>, reason: u32) {
    // SAFETY: reading a context field.
    let ifindex = unsafe { (*Frame::new(xdp).xdp).ingress_ifindex };
    maps::tell(slot, ifindex, reason);
}

/// Keeps the headers of a frame to decide on; otherwise answers what becomes of it.
#[inline(never)]
fn enter<A: Family>(xdp: *mut xdp_md, slot: &mut Slot<A>) -> Option<u32>
where
    Kernel: Tables<A>,
{
    let Ok(headers) = path::enter_from_host::<A, _>(&Frame::new(xdp)) else {
        return Some(xdp_action::XDP_PASS);
    };
    let headers = slot.headers.write(headers);
    if let Err(reason) = path::check_source(&Kernel, headers) {
        maps::count(reason);
        slot.refused = reason as u32;
        return Some(xdp_action::XDP_DROP);
    }
    // What an error quotes, or the first of several fragments had, names their flows: as rare as they are, they can
    // wait. What another node names in an option, and what is to be named there, can wait, too.
    if matches!(headers.ports, Ports::Error | Ports::Fragment) || direct::has_options(headers) {
        return Some(xdp_action::XDP_PASS);
    }
    slot.scratch.errand = Errand::NONE;
    None
}

/// Translates a frame and sends it by the host's routes, if they know the neighbour.
#[inline(never)]
fn finish<A: Family>(xdp: *mut xdp_md, slot: &Slot<A>) -> u32 {
    // SAFETY: an earlier step wrote the headers.
    let headers = unsafe { slot.headers.assume_init_ref() };
    let decision = &slot.scratch.decision;
    if !matches!(decision.verdict(), Verdict::Forward)
        || !decision.is_translated()
        || decision.is_named()
    {
        return xdp_action::XDP_PASS;
    }
    let to = &slot.scratch.translation;
    let mut frame = Frame::new(xdp);
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
    A::describe(&mut lookup, to.source, to.destination);
    // SAFETY: reading a context field.
    let ingress = unsafe { (*frame.xdp).ingress_ifindex };
    lookup.ifindex = ingress;
    // A frame that is too big for the route is the classifier's, which tells its sender.
    lookup.__bindgen_anon_1.tot_len = (frame.length() - ETHERNET) as u16;
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the struct outlives the call and its true size is given.
    let found = unsafe { bpf_fib_lookup(frame.xdp.cast(), &raw mut lookup, size, 0) };
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return xdp_action::XDP_PASS;
    }
    match path::apply(&mut frame, headers, &slot.scratch) {
        Verdict::Forward => {}
        // As it came, so that the classifier can tell its sender.
        Verdict::Drop(DropReason::HopLimit) => return xdp_action::XDP_PASS,
        Verdict::Drop(reason) => {
            maps::count(reason);
            return xdp_action::XDP_DROP;
        }
        _ => return xdp_action::XDP_PASS,
    }
    if frame.store(0, lookup.dmac).is_none() || frame.store(6, lookup.smac).is_none() {
        return xdp_action::XDP_DROP;
    }
    if lookup.ifindex == ingress {
        return xdp_action::XDP_TX;
    }
    // SAFETY: no preconditions.
    unsafe { bpf_redirect(lookup.ifindex, 0) as u32 }
}

/// A frame in the driver's buffer.
struct Frame {
    xdp: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    fn new(xdp: *mut xdp_md) -> Self {
        // As for `Skb::new` in the classifier.
        Self { xdp: black_box(xdp) }
    }

    /// At least an Ethernet header, as every frame that comes this far.
    #[inline(always)]
    fn length(&self) -> u32 {
        let Span { start, end } = self.span();
        (end - start) as u32
    }

    #[inline(always)]
    fn span(&self) -> Span {
        // SAFETY: reading context fields.
        let (start, end) = unsafe { ((*self.xdp).data as usize, (*self.xdp).data_end as usize) };
        Span { start, end }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn load<T: FromBytes + Unaligned>(&self, at: u32) -> Option<T> {
        self.span().load(at)
    }

    #[inline(always)]
    fn store<T: IntoBytes + Immutable + Unaligned>(&mut self, at: u32, value: T) -> Option<()> {
        self.span().store(at, value)
    }

    #[inline(always)]
    fn adjust_transport_checksum(
        &mut self,
        at: u32,
        difference: Difference,
        covers: Covers,
    ) -> Option<()> {
        adjust_complete_checksum(self, at, difference, covers)
    }

    #[inline(always)]
    fn adjust_sctp_checksum(field: [u8; 4], was: [U16; 2], is: [U16; 2], length: u32) -> [u8; 4] {
        alone::sctp_checksum(field, was, is, length)
    }
}
