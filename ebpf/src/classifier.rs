//! The traffic-control programs.
#![expect(
    unsafe_code,
    reason = "the context and what steps hand each other are reached by pointer"
)]

use core::ffi::c_void;
use core::hint::black_box;
use core::mem;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use fairway_abi::{DropReason, V4, V6, config};
use fairway_core::flow::Errand;
use fairway_core::icmp::{TIME_EXCEEDED, UNREACHABLE};
use fairway_core::pace::Sending;
use fairway_core::packet::{Headers, Ports};
use fairway_core::path::{Todo, Whence};
use fairway_core::query::Room;
use fairway_core::{
    Host, Ip, Tables, Verdict, direct, icmp, neighbour, pace, path, policy, query, service,
};

use crate::family::Family;
use crate::maps::{self, Here, Kernel, Slot};
use crate::skb::{FITS, QUOTING, Skb, refuse};

#[classifier]
pub(crate) fn pod_ingress(ctx: TcContext) -> i32 {
    match ethertype(&ctx) {
        V4::ETHERTYPE => pod_ingress_ip::<V4>(ctx.skb.skb),
        V6::ETHERTYPE => pod_ingress_ip::<V6>(ctx.skb.skb),
        neighbour::ARP => arp_from_pod(ctx.skb.skb),
        _ => TC_ACT_UNSPEC,
    }
}

#[classifier]
pub(crate) fn pod_egress(ctx: TcContext) -> i32 {
    match ethertype(&ctx) {
        V4::ETHERTYPE => pod_egress_ip::<V4>(ctx.skb.skb),
        V6::ETHERTYPE => pod_egress_ip::<V6>(ctx.skb.skb),
        _ => TC_ACT_UNSPEC,
    }
}

/// In front of `pod_ingress` where what the pod sends is limited. What is over the limit is dropped here
/// if nothing could hold it; else there, unless it goes where something does.
#[classifier]
pub(crate) fn pod_sends(ctx: TcContext) -> i32 {
    let packet = Skb::of(ctx.skb.skb);
    let ahead = match pace::send(&Kernel, packet.ifindex(), packet.wire_bytes()) {
        Sending::Within => 0,
        Sending::Ahead if maps::config().flags & config::PACED != 0 => packet.ifindex(),
        Sending::Ahead | Sending::Over => return refuse(DropReason::EgressRate),
    };
    let noted = match ethertype(&ctx) {
        V4::ETHERTYPE => note_ahead::<V4>(ahead),
        V6::ETHERTYPE => note_ahead::<V6>(ahead),
        _ => false,
    };
    if noted || ahead == 0 { TC_ACT_UNSPEC } else { refuse(DropReason::EgressRate) }
}

/// In front of `pod_egress` where what the pod receives is limited.
#[classifier]
pub(crate) fn pod_receives(ctx: TcContext) -> i32 {
    let packet = Skb::of(ctx.skb.skb);
    match pace::receive(&Kernel, packet.ifindex(), packet.wire_bytes()) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(reason) => refuse(reason),
    }
}

#[classifier]
pub(crate) fn uplink_ingress(ctx: TcContext) -> i32 {
    match ethertype(&ctx) {
        V4::ETHERTYPE => uplink_ingress_ip::<V4>(ctx.skb.skb),
        V6::ETHERTYPE => uplink_ingress_ip::<V6>(ctx.skb.skb),
        _ => TC_ACT_UNSPEC,
    }
}

#[classifier]
pub(crate) fn uplink_egress(ctx: TcContext) -> i32 {
    from_host(&ctx)
}

#[classifier]
pub(crate) fn overlay_ingress(ctx: TcContext) -> i32 {
    match ethertype(&ctx) {
        V4::ETHERTYPE => overlay_ingress_ip::<V4>(ctx.skb.skb),
        V6::ETHERTYPE => overlay_ingress_ip::<V6>(ctx.skb.skb),
        _ => refuse(DropReason::ForeignTunnel),
    }
}

#[classifier]
pub(crate) fn overlay_egress(ctx: TcContext) -> i32 {
    // What another program redirected here is translated and addressed already.
    if Skb::new(ctx.skb.skb, V4::HEADERS).is_tunnelled() {
        return TC_ACT_UNSPEC;
    }
    overlay_egress_frame(&ctx)
}

#[inline(always)]
fn overlay_egress_frame(ctx: &TcContext) -> i32 {
    let action = from_host(ctx);
    if action != TC_ACT_UNSPEC {
        return action;
    }
    match ethertype(ctx) {
        V4::ETHERTYPE => tunnel_from_host::<V4>(ctx.skb.skb),
        V6::ETHERTYPE => tunnel_from_host::<V6>(ctx.skb.skb),
        _ => refuse(DropReason::ForeignTunnel),
    }
}

/// The ingress of a WireGuard device. Its packets have no Ethernet header, and come from who may send
/// them: the device takes from a peer only sources that it sends to that peer.
#[classifier]
pub(crate) fn wireguard_ingress(ctx: TcContext) -> i32 {
    if !Skb::add_ethernet(ctx.skb.skb, ethertype(&ctx)) {
        return refuse(DropReason::Rewrite);
    }
    match ethertype(&ctx) {
        V4::ETHERTYPE => wireguard_ingress_ip::<V4>(ctx.skb.skb),
        V6::ETHERTYPE => wireguard_ingress_ip::<V6>(ctx.skb.skb),
        _ => refuse(DropReason::ForeignTunnel),
    }
}

/// The egress of a WireGuard device. The Ethernet header that the steps work on goes when the packet
/// is sent to the same device once more; addressed to a peer then, which tells the two times apart.
/// The device itself drops that address, and finds the peer by the destination.
#[classifier]
pub(crate) fn wireguard_egress(ctx: TcContext) -> i32 {
    if Skb::new(ctx.skb.skb, 0).is_tunnelled() {
        return TC_ACT_UNSPEC;
    }
    if !Skb::add_ethernet(ctx.skb.skb, ethertype(&ctx)) {
        return refuse(DropReason::Rewrite);
    }
    match overlay_egress_frame(&ctx) {
        TC_ACT_UNSPEC => Skb::new(ctx.skb.skb, 0).send_again(),
        action => action,
    }
}

/// Answers the kernel's clock to whoever runs it (`BPF_PROG_TEST_RUN`), so that user space can tell
/// a record's age.
#[classifier]
pub(crate) fn clock(_ctx: TcContext) -> i32 {
    maps::jiffies().cast_signed()
}

// A program's stack has 512 bytes, and the steps of both families together would not fit on it: each
// step is a function of its own, and what goes from one to the next lies in the processor's slot.

/// Leaves it to `pod_ingress_ip` whether the packet is held.
#[inline(always)]
fn note_ahead<A: Family>(ahead: u32) -> bool {
    let Some(slot) = A::slot() else { return false };
    slot.ahead = ahead;
    true
}

#[inline(always)]
fn pod_ingress_ip<A: Family>(skb: *mut __sk_buff) -> i32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let Some(slot) = A::slot() else { return TC_ACT_UNSPEC };
    slot.way = 0;
    let action = send_on(skb, slot);
    if slot.ahead == 0 {
        return action;
    }
    hold(skb, action, mem::take(&mut slot.ahead), slot.way)
}

/// Lets a packet that is over its pod's limit wait if it goes by a device that holds it, and else drops
/// it. So is what goes to pods of this node, to the host's stack, and encrypted: WireGuard forgets what
/// clock a moment is of.
#[inline(never)]
fn hold(skb: *mut __sk_buff, action: i32, ahead: u32, way: u32) -> i32 {
    // As in `Skb::new`.
    let packet = Skb::of(black_box(skb));
    if action == TC_ACT_SHOT || ahead != packet.ifindex() {
        return action;
    }
    if !maps::is_paced(way) {
        return refuse(DropReason::EgressRate);
    }
    let moment = pace::wait(&Kernel, ahead, packet.wire_bytes(), packet.wish());
    if moment != 0 && packet.depart_at(moment) { action } else { refuse(DropReason::EgressRate) }
}

#[inline(always)]
fn send_on<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> i32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    if let Some(action) = enter_from_pod::<A>(skb, slot) {
        return end_unread(skb, slot, action);
    }
    if let Some(action) = look_at_query(skb, slot) {
        return action;
    }
    if let Some(action) = look_closer(skb, slot, Whence::Pod) {
        return action;
    }
    if maps::is_policed() && is_near(slot) {
        decide_from_host(slot);
        return carry_on(skb, slot, Ok(Todo::Apply), Whence::Link, false);
    }
    let todo = decide_from_pod(slot);
    carry_on(skb, slot, todo, Whence::Pod, false)
}

#[inline(always)]
fn uplink_ingress_ip<A: Family>(skb: *mut __sk_buff) -> i32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let Some(slot) = A::slot() else { return TC_ACT_UNSPEC };
    if let Some(action) = enter_from_uplink::<A>(skb, slot) {
        return end_unread(skb, slot, action);
    }
    if let Some(action) = look_for_name(skb, slot) {
        return action;
    }
    if let Some(action) = look_closer(skb, slot, Whence::Network) {
        return action;
    }
    let todo = decide_from_uplink(slot);
    carry_on(skb, slot, todo, Whence::Network, true)
}

/// WireGuard itself has held the source against the peer.
#[inline(always)]
fn wireguard_ingress_ip<A: Family>(skb: *mut __sk_buff) -> i32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let Some(slot) = A::slot() else { return TC_ACT_UNSPEC };
    if let Some(action) = enter_from_uplink::<A>(skb, slot) {
        return end_unread(skb, slot, action);
    }
    if let Some(action) = look_closer(skb, slot, Whence::Network) {
        return action;
    }
    let todo = decide_from_overlay(slot);
    carry_on(skb, slot, todo, Whence::Network, false)
}

#[inline(always)]
fn overlay_ingress_ip<A: Family>(skb: *mut __sk_buff) -> i32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let Some(slot) = A::slot() else { return TC_ACT_UNSPEC };
    if let Some(action) = enter_from_overlay::<A>(skb, slot) {
        return end_unread(skb, slot, action);
    }
    if let Err(reason) = check_peer(slot) {
        tell(skb, slot, reason as u32);
        return refuse(reason);
    }
    if let Some(action) = look_for_name(skb, slot) {
        return action;
    }
    if let Some(action) = look_closer(skb, slot, Whence::Network) {
        return action;
    }
    let todo = decide_from_overlay(slot);
    carry_on(skb, slot, todo, Whence::Network, true)
}

#[inline(never)]
fn arp_from_pod(skb: *mut __sk_buff) -> i32 {
    let packet = Skb::new(skb, V4::HEADERS);
    match neighbour::arp_from_pod(&packet, &Kernel, packet.ifindex()) {
        Verdict::Drop(reason) => refuse(reason),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(never)]
fn enter_from_pod<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> Option<i32>
where
    Kernel: Tables<A>,
{
    let packet = Skb::new(skb, A::HEADERS);
    slot.scratch.errand = Errand::NONE;
    let headers = path::read_from_pod(&packet, &Kernel, packet.ifindex());
    if let Ok(headers) = &headers
        && !query::is_query(headers)
        && path::stays(&Kernel, headers)
    {
        return Some(TC_ACT_UNSPEC);
    }
    keep(slot, headers)
}

/// What becomes of a query of the DNS that is answered at once, or stays; none: the packet is to be decided on.
#[inline(always)]
fn look_at_query<A: Family>(skb: *mut __sk_buff, slot: &Slot<A>) -> Option<i32> {
    // SAFETY: the step before this one wrote the headers.
    let headers = unsafe { slot.headers.assume_init_ref() };
    if !query::is_query(headers) {
        return None;
    }
    match A::answer_query(skb) {
        GO_ON => None,
        action => Some(action),
    }
}

/// Answers a query.
#[inline(always)]
pub(crate) fn answer_query<A: Family>(skb: *mut __sk_buff) -> i32
where
    Kernel: Tables<A>,
{
    let (Some(slot), Some(room)) = (A::slot(), maps::query()) else { return GO_ON };
    if copy_query(skb, slot, room)
        && measure_name(room)
        && parse_query(room)
        && look_up_name(slot, room)
    {
        compose_records(room);
        let action = turn_query(skb, slot, room);
        if action != GO_ON {
            if policy::is_news(&slot.scratch) {
                tell(skb, slot, ALLOWED);
            }
            return action;
        }
    }
    // SAFETY: as in `look_at_query`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    if path::stays(&Kernel, headers) { TC_ACT_UNSPEC } else { GO_ON }
}

#[inline(never)]
fn copy_query<A: Family>(skb: *mut __sk_buff, slot: &Slot<A>, room: &mut Room) -> bool
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `look_at_query`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    let packet = Skb::new(skb, A::HEADERS);
    !packet.is_segmented() && query::copy(&packet, &Kernel, headers, room)
}

#[inline(never)]
fn measure_name(room: &mut Room) -> bool {
    query::measure(room)
}

#[inline(never)]
fn parse_query(room: &mut Room) -> bool {
    query::parse(room)
}

#[inline(never)]
fn look_up_name<A: Family>(slot: &mut Slot<A>, room: &mut Room) -> bool
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `look_at_query`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    query::look_up(&Kernel, headers, room, &mut slot.scratch)
}

#[inline(never)]
fn compose_records(room: &mut Room) {
    query::compose(room);
}

#[inline(never)]
fn turn_query<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>, room: &Room) -> i32
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `look_at_query`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    let mut packet = Skb::new(skb, A::HEADERS);
    match query::turn(&mut packet, &Kernel, headers, room, &slot.scratch) {
        Some(verdict) => packet.carry_out::<A>(verdict, &mut slot.way),
        None => GO_ON,
    }
}

#[inline(never)]
fn enter_from_uplink<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> Option<i32>
where
    Kernel: Tables<A>,
{
    slot.scratch.errand = Errand::NONE;
    keep(slot, path::enter_from_uplink(&Skb::new(skb, A::HEADERS), &Kernel))
}

#[inline(never)]
fn enter_from_host<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> Option<i32> {
    slot.scratch.whence = Whence::Host;
    keep(slot, path::enter_from_host(&Skb::new(skb, A::HEADERS)))
}

#[inline(never)]
fn enter_to_pod<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> Option<i32>
where
    Kernel: Tables<A>,
{
    keep(slot, path::enter_to_pod(&Skb::new(skb, A::HEADERS), &Kernel, slot.scratch.whence))
}

#[inline(never)]
fn enter_from_overlay<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> Option<i32> {
    let packet = Skb::new(skb, A::HEADERS);
    let Some(peer) = packet.tunnel_peer() else {
        return Some(refuse_untold(slot, DropReason::ForeignTunnel));
    };
    packet.mark_ours();
    slot.scratch.errand = Errand::NONE;
    slot.scratch.peer = peer;
    keep(slot, path::enter_from_overlay(&packet))
}

#[inline(never)]
fn check_peer<A: Family>(slot: &mut Slot<A>) -> Result<(), DropReason>
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::check_peer(&Kernel, headers, &mut slot.scratch)
}

/// Keeps the headers of a packet to decide on; otherwise answers what becomes of it.
#[inline(always)]
fn keep<A>(slot: &mut Slot<A>, entered: Result<Headers<A>, Verdict>) -> Option<i32> {
    match entered {
        Ok(headers) => {
            slot.headers.write(headers);
            None
        }
        Err(Verdict::Drop(reason)) => Some(refuse_untold(slot, reason)),
        Err(_) => Some(TC_ACT_UNSPEC),
    }
}

/// Refuses a packet in a step that tells nobody, and leaves that to whoever called the step.
#[inline(always)]
fn refuse_untold<A>(slot: &mut Slot<A>, reason: DropReason) -> i32 {
    slot.refused = reason as u32;
    refuse(reason)
}

/// Tells those who watch of a packet if such a step has refused it; what becomes of it.
#[inline(always)]
fn end_early<A: Family>(skb: *mut __sk_buff, slot: &Slot<A>, action: i32) -> i32 {
    if action == TC_ACT_SHOT {
        tell(skb, slot, slot.refused);
    }
    action
}

/// The same of one whose headers are not kept.
#[inline(always)]
fn end_unread<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>, action: i32) -> i32 {
    if action == TC_ACT_SHOT && maps::is_watched() {
        read_refused(skb, slot);
        tell(skb, slot, slot.refused);
    }
    action
}

#[inline(never)]
fn read_refused<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) {
    maps::read_refused(&Skb::new(skb, A::HEADERS), slot);
}

#[inline(never)]
fn decide_from_pod<A: Family>(slot: &mut Slot<A>) -> Result<Todo, DropReason>
where
    Kernel: Tables<A>,
{
    // SAFETY: the step before this one wrote the headers.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::decide_from_pod(&Kernel, headers, &mut slot.scratch)
}

#[inline(never)]
pub(crate) fn decide_from_uplink<A: Family>(slot: &mut Slot<A>) -> Result<Todo, DropReason>
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::decide_from_uplink(&Kernel, headers, &mut slot.scratch)
}

#[inline(never)]
fn decide_from_overlay<A: Family>(slot: &mut Slot<A>) -> Result<Todo, DropReason>
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::decide_from_overlay(&Kernel, headers, &mut slot.scratch)
}

/// Takes the name of a frontend off a packet that has one. What becomes of the packet; none: it is to be
/// decided on.
#[inline(always)]
fn look_for_name<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> Option<i32>
where
    Kernel: Tables<A>,
{
    // SAFETY: the step before this one wrote the headers.
    let headers = unsafe { slot.headers.assume_init_ref() };
    if !direct::has_options(headers) {
        return None;
    }
    match read_name(skb, slot) {
        UNNAMED => None,
        NAMED if unname(skb, slot) == HALF_CHANGED => Some(refuse(DropReason::Rewrite)),
        NAMED => None,
        action => Some(end_early(skb, slot, action)),
    }
}

/// What [`read_name`] answers instead of an action.
const UNNAMED: i32 = 0;
const NAMED: i32 = 1;

#[inline(never)]
fn read_name<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> i32
where
    Kernel: Tables<A>,
{
    let packet = Skb::new(skb, A::HEADERS);
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    match direct::read_name(&packet, &Kernel, headers, &mut slot.scratch.errand) {
        Ok(true) => NAMED,
        Ok(false) => UNNAMED,
        Err(reason) => refuse_untold(slot, reason),
    }
}

/// Has packets of a flow that is to be opened name their client, where that is asked for.
#[inline(never)]
pub(crate) fn name_client<A: Family>(slot: &mut Slot<A>)
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::name_client(&Kernel, headers, Whence::Network, &mut slot.scratch);
}

/// Has a packet name its frontend or its client; false if it is half changed.
#[inline(never)]
fn name<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> bool {
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_mut() };
    direct::name(&mut Skb::new(skb, A::HEADERS), headers, slot.scratch.state()).is_ok()
}

/// Takes that name off again: how long it was, or [`HALF_CHANGED`].
#[inline(never)]
fn unname<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> u32 {
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_mut() };
    direct::unname(&mut Skb::new(skb, A::HEADERS), headers).unwrap_or(HALF_CHANGED)
}

/// No name is so long.
const HALF_CHANGED: u32 = 1 << 8;

/// Sees to packets whose flow is not in their own headers: ICMP errors and fragments. What becomes of
/// such a packet; none: it is to be decided on like others.
#[inline(always)]
fn look_closer<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>, whence: Whence) -> Option<i32>
where
    Kernel: Tables<A>,
{
    // SAFETY: the step before this one wrote the headers.
    let ports = unsafe { slot.headers.assume_init_ref() }.ports;
    if matches!(ports, Ports::Fragment) {
        let action = enter_fragment(skb, slot, whence)?;
        return Some(end_early(skb, slot, action));
    }
    look_at_error(skb, slot, whence)
}

/// As [`look_closer`], for ICMP errors alone.
#[inline(always)]
fn look_at_error<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>, whence: Whence) -> Option<i32>
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `look_closer`.
    let ports = unsafe { slot.headers.assume_init_ref() }.ports;
    if !matches!(ports, Ports::Error) || !read_quote(skb, slot) || !decide_on_error(slot, whence) {
        return None;
    }
    if !whence.is_host() && maps::is_policed() {
        slot.opened = 0;
        if let Err(reason) = judge(slot, whence) {
            tell(skb, slot, reason as u32);
            return Some(refuse(reason));
        }
    }
    let action = finish_error(skb, slot);
    Some(if action == DEPART { depart(skb, slot) } else { action })
}

#[inline(never)]
fn enter_fragment<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>, whence: Whence) -> Option<i32>
where
    Kernel: Tables<A>,
{
    let packet = Skb::new(skb, A::HEADERS);
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_mut() };
    match path::enter_fragment(&packet, &Kernel, whence, headers, &mut slot.scratch) {
        Ok(()) => None,
        Err(Verdict::Drop(reason)) => Some(refuse_untold(slot, reason)),
        Err(_) => Some(TC_ACT_UNSPEC),
    }
}

/// Lets fragments find the flow of the first one.
#[inline(always)]
fn note_fragment<A: Family>(slot: &Slot<A>)
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::note_fragment(&Kernel, headers, &slot.scratch);
}

#[inline(never)]
fn read_quote<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> bool {
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    icmp::read_quote(&mut Skb::new(skb, QUOTING), headers, &mut slot.scratch)
}

#[inline(never)]
fn decide_on_error<A: Family>(slot: &mut Slot<A>, whence: Whence) -> bool
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::decide_on_error(&Kernel, headers, whence, &mut slot.scratch)
}

#[inline(never)]
fn finish_error<A: Family>(skb: *mut __sk_buff, slot: &Slot<A>) -> i32 {
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    let mut packet = Skb::new(skb, QUOTING);
    match icmp::apply(&mut packet, headers, &slot.scratch) {
        Verdict::Drop(reason) => refuse(reason),
        _ => DEPART,
    }
}

/// What follows once a step has decided; `names`: packets that enter here may have to name their frontend or
/// their client.
#[inline(always)]
fn carry_on<A: Family>(
    skb: *mut __sk_buff,
    slot: &mut Slot<A>,
    todo: Result<Todo, DropReason>,
    whence: Whence,
    names: bool,
) -> i32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let found = find_flow(skb, slot, todo, whence, names);
    if let Err(reason) = found {
        tell(skb, slot, reason as u32);
    }
    let action = match found {
        Ok(()) => {
            note_fragment(slot);
            if names && slot.scratch.decision.is_named() && !name(skb, slot) {
                return refuse(DropReason::Rewrite);
            }
            if Skb::is_small::<A>(skb) { finish_small(skb, slot) } else { finish_large(skb, slot) }
        }
        Err(reason) if service::is_told(reason) => {
            maps::count(reason);
            COMPLAIN + UNREACHABLE.cast_signed()
        }
        Err(reason) => return refuse(reason),
    };
    let action = if action < COMPLAIN {
        action
    } else {
        let mut mtu = (action - COMPLAIN).cast_unsigned();
        // Who is told has sent the packet without the name, and may send so much less.
        if names && slot.scratch.decision.is_named() {
            let length = unname(skb, slot);
            if length == HALF_CHANGED {
                return refuse(DropReason::Rewrite);
            }
            if mtu != TIME_EXCEEDED && mtu != UNREACHABLE {
                mtu -= length;
            }
        }
        complain(skb, slot, mtu)
    };
    match action {
        DEPART => depart(skb, slot),
        GO_ON => finish_small(skb, slot),
        action => action,
    }
}

/// Opens a flow if there is to be one, and asks policies, where some pod is restricted.
#[inline(always)]
fn find_flow<A: Family>(
    skb: *mut __sk_buff,
    slot: &mut Slot<A>,
    todo: Result<Todo, DropReason>,
    whence: Whence,
    names: bool,
) -> Result<(), DropReason>
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let policed = maps::is_policed();
    let todo = match todo {
        Ok(Todo::Apply) if policed => police(slot, whence),
        todo => todo,
    };
    slot.opened = 0;
    match todo {
        Ok(Todo::Apply) => {}
        Ok(Todo::Open) => {
            if names {
                name_client(slot);
            }
            open(skb.cast(), slot)?;
            slot.opened = 1;
        }
        Err(reason) => return Err(reason),
    }
    if !policed {
        return Ok(());
    }
    judge(slot, whence)?;
    if policy::is_news(&slot.scratch) {
        tell(skb, slot, ALLOWED);
    }
    Ok(())
}

/// In place of a reason: the packet's flow is allowed.
const ALLOWED: u32 = 0;

/// Apart from what is common, of which it is no part.
#[inline(never)]
fn tell<A: Family>(skb: *mut __sk_buff, slot: &Slot<A>, reason: u32) {
    // As in `Skb::new`.
    let ifindex = Skb::of(black_box(skb)).ifindex();
    maps::tell(slot, ifindex, reason);
}

#[inline(never)]
fn police<A: Family>(slot: &mut Slot<A>, whence: Whence) -> Result<Todo, DropReason>
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    policy::police(&Kernel, headers, whence, &mut slot.scratch)
}

#[inline(never)]
fn judge<A: Family>(slot: &mut Slot<A>, whence: Whence) -> Result<(), DropReason>
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    policy::judge(&Kernel, headers, whence, slot.opened != 0, &mut slot.scratch)
}

#[inline(always)]
fn is_near<A: Family>(slot: &Slot<A>) -> bool
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    policy::is_near(&Kernel, headers)
}

/// `ctx` is the program's context, whatever kind it is of.
#[inline(never)]
pub(crate) fn open<A: Family>(ctx: *mut c_void, slot: &mut Slot<A>) -> Result<(), DropReason>
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    // As in `Skb::new`.
    let here = Here { ctx: black_box(ctx) };
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::open(&Kernel, &here, headers, &mut slot.scratch)
}

/// Carries a decision out on a packet that is small enough for its way.
#[inline(never)]
fn finish_small<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> i32 {
    // SAFETY: an earlier step wrote the headers.
    let headers = unsafe { slot.headers.assume_init_ref() };
    let mut packet = Skb::new(skb, A::HEADERS);
    match path::apply(&mut packet, headers, &slot.scratch) {
        Verdict::Drop(DropReason::HopLimit) => COMPLAIN + TIME_EXCEEDED.cast_signed(),
        verdict => packet.carry_out::<A>(verdict, &mut slot.way),
    }
}

/// The same for any packet: no device looks at what is redirected to it.
#[inline(always)]
fn finish_large<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> i32 {
    let device = match slot.scratch.decision.verdict() {
        Verdict::Pod(pod) => pod.ifindex,
        Verdict::Tunnel(_) => maps::config().overlay_ifindex,
        Verdict::Forward => return forward_large(skb, slot),
        Verdict::Pass | Verdict::Drop(_) => return finish_small(skb, slot),
    };
    match Skb::exceeded_mtu(skb, device) {
        FITS => finish_small(skb, slot),
        mtu => COMPLAIN + mtu.cast_signed(),
    }
}

/// The same by the host's routes, which know an MTU of their own.
#[inline(never)]
fn forward_large<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> i32 {
    // SAFETY: as in `finish_small`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    let mut packet = Skb::new(skb, A::HEADERS);
    let (source, destination) = slot.scratch.addresses(headers);
    let way = packet.look_up(source, destination, packet.network_length(headers));
    if way.exceeded != FITS {
        return COMPLAIN + way.exceeded.cast_signed();
    }
    match path::apply(&mut packet, headers, &slot.scratch) {
        Verdict::Forward if way.found => way.take(&mut slot.way),
        Verdict::Drop(DropReason::HopLimit) => COMPLAIN + TIME_EXCEEDED.cast_signed(),
        Verdict::Drop(reason) => refuse(reason),
        _ => TC_ACT_UNSPEC,
    }
}

/// What a step answers instead of an action if the packet's sender is to be told why it cannot go on:
/// this much, and what `icmp::complain` takes for an MTU. It is called from where the stack is flat.
const COMPLAIN: i32 = 1 << 16;

#[inline(never)]
fn complain<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>, mtu: u32) -> i32
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `finish_small`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    let mut packet = Skb::new(skb, A::HEADERS);
    let too_big = mtu != TIME_EXCEEDED && mtu != UNREACHABLE;
    if too_big && icmp::may_exceed(&packet, headers, &slot.scratch) {
        return GO_ON;
    }
    match icmp::answer(&mut packet, &Kernel, headers, &mut slot.scratch, mtu) {
        Some(verdict) => told(verdict, mtu),
        None => A::compose_error(skb, mtu),
    }
}

/// Makes the error about a packet.
#[inline(always)]
pub(crate) fn compose_error<A: Family>(skb: *mut __sk_buff, mtu: u32) -> i32 {
    let Some(slot) = A::slot() else { return TC_ACT_SHOT };
    // SAFETY: as in `finish_small`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    let mut packet = Skb::new(skb, A::HEADERS);
    told(icmp::compose(&mut packet, headers, &slot.scratch, mtu), mtu)
}

/// What becomes of a packet whose sender has been told, or could not be.
#[inline(always)]
fn told(verdict: Verdict, mtu: u32) -> i32 {
    match verdict {
        // Counted when it was decided.
        Verdict::Drop(_) if mtu == UNREACHABLE => TC_ACT_SHOT,
        Verdict::Drop(reason) => refuse(reason),
        Verdict::Pass => TC_ACT_UNSPEC,
        _ => DEPART,
    }
}

/// What a step answers instead of an action if the packet is ready to [`depart`].
const DEPART: i32 = COMPLAIN - 1;

/// What a step answers instead of an action if the packet may go its way all the same.
const GO_ON: i32 = COMPLAIN - 2;

/// Sends a packet that needs no change any more where it was decided.
#[inline(never)]
fn depart<A: Family>(skb: *mut __sk_buff, slot: &mut Slot<A>) -> i32 {
    let verdict = slot.scratch.decision.verdict();
    Skb::new(skb, A::HEADERS).carry_out::<A>(verdict, &mut slot.way)
}

#[inline(always)]
fn from_host_ip<A: Family>(skb: *mut __sk_buff) -> i32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let Some(slot) = A::slot() else { return TC_ACT_UNSPEC };
    if let Some(action) = enter_from_host::<A>(skb, slot) {
        return action;
    }
    if let Some(action) = look_closer(skb, slot, Whence::Host) {
        return action;
    }
    decide_from_host(slot);
    note_fragment(slot);
    finish_small(skb, slot)
}

/// What the host's stack delivers to a pod.
#[inline(always)]
fn pod_egress_ip<A: Family>(skb: *mut __sk_buff) -> i32
where
    Kernel: Tables<A>,
    Here: Host<A>,
{
    let Some(slot) = A::slot() else { return TC_ACT_UNSPEC };
    let by_socket = Skb::of(skb).is_of_socket();
    slot.scratch.whence = if by_socket { Whence::Socket } else { Whence::Stack };
    if let Some(action) = enter_to_pod::<A>(skb, slot) {
        return end_unread(skb, slot, action);
    }
    // The verifier does not know what it reads here, and walks through what follows once, not twice.
    let whence = slot.scratch.whence;
    if let Some(action) = look_closer(skb, slot, Whence::Host) {
        return action;
    }
    decide_from_host(slot);
    if let Err(reason) = find_flow(skb, slot, Ok(Todo::Apply), whence, false) {
        tell(skb, slot, reason as u32);
        return refuse(reason);
    }
    note_fragment(slot);
    finish_small(skb, slot)
}

#[inline(never)]
fn decide_from_host<A: Family>(slot: &mut Slot<A>)
where
    Kernel: Tables<A>,
{
    // SAFETY: as in `decide_from_pod`.
    let headers = unsafe { slot.headers.assume_init_ref() };
    path::decide_from_host(&Kernel, headers, &mut slot.scratch);
}

#[inline(always)]
fn from_host(ctx: &TcContext) -> i32 {
    match ethertype(ctx) {
        V4::ETHERTYPE => from_host_ip::<V4>(ctx.skb.skb),
        V6::ETHERTYPE => from_host_ip::<V6>(ctx.skb.skb),
        _ => TC_ACT_UNSPEC,
    }
}

/// Addresses what the host's stack sends to the peer it is for.
#[inline(never)]
fn tunnel_from_host<A: Family>(skb: *mut __sk_buff) -> i32
where
    Kernel: Tables<A>,
{
    let mut packet = Skb::new(skb, A::HEADERS);
    match path::tunnel_from_host::<A, _, _>(&packet, &Kernel) {
        Verdict::Tunnel(peer) if packet.address_to(&peer) => TC_ACT_UNSPEC,
        Verdict::Drop(reason) => refuse(reason),
        _ => refuse(DropReason::Rewrite),
    }
}

/// What the frame's Ethernet header announces, network order.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the field holds 16 bits")]
fn ethertype(ctx: &TcContext) -> [u8; 2] {
    // SAFETY: reading a context field. It holds 16 bits in network order.
    unsafe { ((*ctx.skb.skb).protocol as u16).to_ne_bytes() }
}
