//! A packet's way through the node: one function for each place a packet enters.
//!
//! Each reads as steps: enter (parse, and refuse what may not come this way), decide (look up and
//! choose, without touching the packet), [`police`](policy::police), [`open`] a flow if it needs one,
//! [`judge`](policy::judge), [`apply`]. The kernel's programs call the steps one by one, each on a stack of
//! its own; tests and explanations call the whole.

use fairway_abi::{
    Config, DropReason, FrontendKey, Pod, Route, TunnelEnd, V6, config, flow as bits, frontend,
    peer, protocol, route, scope,
};
use zerocopy::network_endian::U16;
use zerocopy::transmute;

use crate::direct;
use crate::flow::{self, Errand, Opening, Scratch};
use crate::fragment;
use crate::icmp::{self, Quotable};
use crate::neighbour;
use crate::packet::{self, Headers, Ip, Packet, Ports, tcp};
use crate::policy;
use crate::port::Host;
use crate::query;
use crate::service::{self, Request};
use crate::tables::Tables;

/// What the attach point has to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it to the host's stack.
    Pass,
    /// Drop and count it.
    Drop(DropReason),
    /// Hand it to this pod.
    Pod(Pod),
    /// Send it as the host's routes say.
    Forward,
    /// Send it to this peer through the overlay.
    Tunnel(TunnelEnd),
}

/// What a pod sends.
pub fn from_pod<A: Ip, P: Quotable, T: Tables<A> + Host<A>>(
    packet: &mut P,
    tables: &T,
    ifindex: u32,
) -> Verdict {
    if let Ok(headers) = read_from_pod(packet, tables, ifindex)
        && query::is_query(&headers)
        && let Some(verdict) = query::answer(packet, tables, &headers, &mut Scratch::default())
    {
        return verdict;
    }
    match enter_from_pod(packet, tables, ifindex) {
        Ok(headers) if policy::is_near(tables, &headers) => {
            finish(packet, tables, headers, Whence::Link, |headers, scratch| {
                decide_from_host(tables, headers, scratch);
                Ok(Todo::Apply)
            })
        }
        Ok(headers) => finish(packet, tables, headers, Whence::Pod, |headers, scratch| {
            decide_from_pod(tables, headers, scratch)
        }),
        Err(verdict) => verdict,
    }
}

/// Parses what a pod sends; `Err` is the verdict on a packet that is not to be decided on.
#[inline(always)]
pub fn enter_from_pod<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    tables: &T,
    ifindex: u32,
) -> Result<Headers<A>, Verdict> {
    let headers = read_from_pod(packet, tables, ifindex)?;
    if stays(tables, &headers) { Err(Verdict::Pass) } else { Ok(headers) }
}

/// The same with what is not to be decided on as it [`stays`]: a query of the DNS may still be answered.
#[inline(always)]
pub fn read_from_pod<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    tables: &T,
    ifindex: u32,
) -> Result<Headers<A>, Verdict> {
    const SPOOFED: Verdict = Verdict::Drop(DropReason::SpoofedSource);
    let headers = A::parse(packet).map_err(Verdict::Drop)?;
    let interface = tables.interface(ifindex).ok_or(SPOOFED)?;
    if !headers.source.may_send(&interface, &headers.destination)
        || direct::names_client(packet, &headers)
    {
        return Err(SPOOFED);
    }
    let icmp = matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6);
    let says = match headers.ports {
        Ports::None => true,
        // The first of a message's pieces says what it is.
        Ports::Fragment if icmp => A::piece(packet, &headers).is_some_and(|piece| piece.begin == 0),
        _ => false,
    };
    if says {
        if icmp && !neighbour::may_say(packet, &headers, &interface) {
            return Err(SPOOFED);
        }
        if neighbour::may_be_hidden(&headers) {
            return Err(Verdict::Drop(DropReason::Malformed));
        }
    }
    Ok(headers)
}

/// Whether what a pod sends stays on its link, and so is the host's business; unless it is said to be outside: a
/// cloud's metadata service has a link-local address, yet answers none but the node's; or policies have to be
/// asked.
#[inline(always)]
pub fn stays<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> bool {
    !headers.destination.is_forwarded()
        && !is_led_outside(tables, &headers.destination)
        && !policy::is_near(tables, headers)
}

/// What arrives from the network.
pub fn from_uplink<A: Ip, P: Quotable, T: Tables<A> + Host<A>>(
    packet: &mut P,
    tables: &T,
) -> Verdict {
    match enter_from_uplink(packet, tables) {
        Ok(headers) => finish(packet, tables, headers, Whence::Network, |headers, scratch| {
            decide_from_uplink(tables, headers, scratch)
        }),
        Err(verdict) => verdict,
    }
}

/// Parses what arrives from the network. Broken packets are not ours to judge: the host's stack has
/// its own counters for them.
///
/// No pod of this node is out there, whatever takes a packet back that one sent: what leaves the
/// cluster by way of a router or a load balancer and returns has the node's address. The node's own
/// address is therefore a possible source here; the host's stack refuses it for itself.
#[inline(always)]
pub fn enter_from_uplink<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    tables: &T,
) -> Result<Headers<A>, Verdict> {
    let headers: Headers<A> = enter_from_host(packet)?;
    check_source(tables, &headers).map_err(Verdict::Drop)?;
    Ok(headers)
}

/// Whether what [`enter_from_uplink`] parses may come from there.
#[inline(always)]
pub fn check_source<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
) -> Result<(), DropReason> {
    if headers.source.is_within(&tables.pod_range()) {
        Err(DropReason::ForeignSource)
    } else {
        Ok(())
    }
}

/// Parses what the host's own stack sends.
#[inline(always)]
pub fn enter_from_host<A: Ip, P: Packet>(packet: &P) -> Result<Headers<A>, Verdict> {
    A::parse(packet).map_err(|_| Verdict::Pass)
}

/// What `peer` sent through the overlay.
pub fn from_overlay<A: Ip, P: Quotable, T: Tables<A> + Host<A>>(
    packet: &mut P,
    tables: &T,
    peer: &V6,
) -> Verdict {
    let headers = match enter_from_overlay(packet) {
        Ok(headers) => headers,
        Err(verdict) => return verdict,
    };
    let mut scratch = Scratch { peer: *peer, ..Scratch::default() };
    match check_peer(tables, &headers, &mut scratch) {
        Ok(()) => {
            finish_in(packet, tables, headers, Whence::Network, scratch, |headers, scratch| {
                decide_from_overlay(tables, headers, scratch)
            })
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Parses what a peer sent through the overlay, which [`check_peer`] is to look at.
#[inline(always)]
pub fn enter_from_overlay<A: Ip, P: Packet>(packet: &P) -> Result<Headers<A>, Verdict> {
    A::parse(packet).map_err(Verdict::Drop)
}

/// Whether the peer in `scratch` may send a packet. A node may speak for the addresses that are routed to
/// it, and to pods of this node for clients from outside, whose answers then go back to it.
#[inline(always)]
pub fn check_peer<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<(), DropReason> {
    let found = tables.route(&headers.source);
    if found.is_some_and(|route| route.peer.underlay == scratch.peer) {
        return Ok(());
    }
    if !is_client(tables, &headers.source) || tables.pod(&headers.destination).is_none() {
        return Err(DropReason::ForeignTunnel);
    }
    let source = tables.peer(&scratch.peer).ok_or(DropReason::ForeignTunnel)?;
    scratch.errand = Errand { state: bits::BY_PEER, source, ..Errand::NONE };
    Ok(())
}

/// What the host's own stack sends: only answers to translated flows change.
pub fn from_host<A: Ip, P: Quotable, T: Tables<A> + Host<A>>(
    packet: &mut P,
    tables: &T,
) -> Verdict {
    match enter_from_host(packet) {
        Ok(headers) => finish(packet, tables, headers, Whence::Host, |headers, scratch| {
            decide_from_host(tables, headers, scratch);
            Ok(Todo::Apply)
        }),
        Err(verdict) => verdict,
    }
}

/// What the host's stack delivers to a pod of this node: as [`from_host`], and policies are asked of what
/// it forwards. `by_socket`: a socket of this node sent it, which always may.
pub fn to_pod<A: Ip, P: Quotable, T: Tables<A> + Host<A>>(
    packet: &mut P,
    tables: &T,
    by_socket: bool,
) -> Verdict {
    let whence = if by_socket { Whence::Socket } else { Whence::Stack };
    match enter_to_pod(packet, tables, whence) {
        Ok(headers) => finish(packet, tables, headers, whence, |headers, scratch| {
            decide_from_host(tables, headers, scratch);
            Ok(Todo::Apply)
        }),
        Err(verdict) => verdict,
    }
}

/// Parses what the host's stack delivers to a pod. What is broken is not ours to judge, unless the pod is
/// restricted and somebody else sent it.
#[inline(always)]
pub fn enter_to_pod<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    tables: &T,
    whence: Whence,
) -> Result<Headers<A>, Verdict> {
    A::parse(packet).map_err(|reason| {
        let passes = match A::parse_network(packet) {
            Ok(headers) => !policy::is_guarded(tables, &headers, whence),
            // Nor could the host's stack read so much.
            Err(_) => true,
        };
        if passes { Verdict::Pass } else { Verdict::Drop(reason) }
    })
}

/// What the host's own stack sends to peers: as [`from_host`], and then addressed to the peer.
pub fn to_overlay<A: Ip, P: Quotable, T: Tables<A> + Host<A>>(
    packet: &mut P,
    tables: &T,
) -> Verdict {
    match from_host(packet, tables) {
        Verdict::Pass => tunnel_from_host(packet, tables),
        verdict => verdict,
    }
}

/// The peer that a packet of the host's stack on the overlay device goes to.
#[inline(always)]
pub fn tunnel_from_host<A: Ip, P: Packet, T: Tables<A>>(packet: &P, tables: &T) -> Verdict {
    let Ok(headers) = A::parse(packet) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    match tables.route(&headers.destination) {
        Some(route) if matches!(route.kind.get(), route::TUNNEL | route::TUNNEL_NODE) => {
            Verdict::Tunnel(route.peer.alone())
        }
        _ => Verdict::Drop(DropReason::ForeignTunnel),
    }
}

/// Where a packet goes, and whether the translation at hand applies to it.
///
/// Plain data without holes: of an enum that carries values, some bytes are undefined in some
/// variants; the compiler may spill them, and the verifier refuses a program that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    way: Way,
    payload: Payload,
    translated: bool,
    /// The packet has to name the frontend that it was sent to, for the endpoint's node to answer it, or its
    /// client, for that node's policies.
    names: bool,
    /// The translation is known to change nothing.
    same: bool,
}

impl Decision {
    /// Nothing decided: to the host's stack, unchanged.
    pub const NONE: Self =
        Self { way: Way::Pass, payload: [0; 6], translated: false, names: false, same: false };

    /// Whether anything about the packet changes but its hop limit.
    #[inline(always)]
    pub(crate) fn changes<A: Ip>(headers: &Headers<A>, scratch: &Scratch<A>) -> bool {
        scratch.decision.translated && scratch.translation != headers.translation()
    }

    /// Whether the packet goes past the host's stack.
    #[inline(always)]
    pub(crate) fn leaves(&self) -> bool {
        !matches!(self.way, Way::Pass)
    }

    /// What the attach point has to do once the packet is changed.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        match self.way {
            Way::Pass => Verdict::Pass,
            Way::Pod => {
                let [a, b, c, d, e, _] = self.payload;
                Verdict::Pod(transmute!([a, b, c, d, e]))
            }
            Way::Forward => Verdict::Forward,
            Way::Tunnel => Verdict::Tunnel(transmute!(self.payload)),
        }
    }

    /// Whether the packet goes to a pod of this node.
    #[inline(always)]
    pub(crate) fn leads_to_pod(&self) -> bool {
        matches!(self.way, Way::Pod)
    }

    /// Notes that the translation at hand changes nothing about the packet.
    #[inline(always)]
    pub(crate) fn change_nothing(&mut self) {
        self.same = true;
    }

    /// Leaves the packet to the host's stack, which has it already.
    #[inline(always)]
    pub(crate) fn leave_to_stack(&mut self) {
        self.way = Way::Pass;
    }

    /// Whether the packet gets new addresses and ports.
    #[inline(always)]
    pub fn is_translated(&self) -> bool {
        self.translated
    }

    /// Whether the packet is to name its frontend or its client before it is changed ([`direct::name`]).
    #[inline(always)]
    pub fn is_named(&self) -> bool {
        self.names
    }

    #[inline(always)]
    fn new<A>(next: &NextHop<A>, translated: bool) -> Self {
        Self { way: next.way, payload: next.payload, translated, names: false, same: false }
    }
}

/// What is left to do once a step has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// The decision is in the scratch: [`apply`] it.
    Apply,
    /// The packet needs a flow of its own: [`open`] it first.
    Open,
}

/// What a verdict carries: a [`Pod`] and zeros, or a [`TunnelEnd`].
type Payload = [u32; 6];

/// [`Verdict`] without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Way {
    Pass,
    Pod,
    Forward,
    Tunnel,
}

/// Decides on [`from_pod`]'s packet, and leaves the decision in `scratch`; `Err`: a drop.
#[inline(always)]
pub fn decide_from_pod<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<Todo, DropReason> {
    if follow(tables, headers, scratch) {
        return Ok(Todo::Apply);
    }
    let target = target(tables, headers, scope::INTERNAL, scratch)?;
    let next = next_hop(tables, &target.destination);
    if next.services && target.service == 0 {
        return Err(unserved(tables, headers));
    }
    // A pod that reaches itself through a Service must see another address than its own, or it
    // would answer to itself without passing here.
    let hairpin = target.service != 0 && target.destination == headers.source;
    let config = tables.config().unwrap_or_default();
    let masquerade = (next.outside || hairpin) && A::masquerade(&config) != A::UNSPECIFIED;
    if target.service == 0 && !masquerade {
        scratch.decision = Decision::new(&next, false);
        return Ok(Todo::Apply);
    }
    let source = if masquerade { A::masquerade(&config) } else { headers.source };
    prepare(headers, &target, source, &config, scratch)
}

/// As [`decide_from_pod`], for [`from_uplink`].
#[inline(always)]
pub fn decide_from_uplink<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<Todo, DropReason> {
    decide_from_network(tables, headers, scratch, true)
}

/// As [`decide_from_pod`], for [`from_overlay`]: a peer's pods reach this node's ports like anybody
/// else.
#[inline(always)]
pub fn decide_from_overlay<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<Todo, DropReason> {
    decide_from_network(tables, headers, scratch, false)
}

/// `plain`: not through the tunnel. Where a packet claims to come from is looked at when it is to reach
/// a pod or open a flow. What is for the host itself is not looked at: its stack has its own rules
/// (`rp_filter`), and the tunnel's outer packets are among it, which no lookup may slow down.
#[inline(always)]
fn decide_from_network<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
    plain: bool,
) -> Result<Todo, DropReason> {
    if headers.ports.are_known() && flow::follow(tables, headers, scratch) {
        if scratch.errand.state != 0 && scratch.state & bits::REPLY == 0 {
            flow::reassign(tables, headers, scratch);
        }
        go_on(tables, headers, scratch, false);
        return Ok(Todo::Apply);
    }
    let target = target(tables, headers, scope::EXTERNAL, scratch)?;
    if target.service == 0 {
        return deliver_here(tables, headers, scratch, plain);
    }
    if plain && matches!(origin(tables, &headers.source), Origin::Tunnel) {
        return Err(DropReason::ForeignSource);
    }
    let next = next_hop(tables, &target.destination);
    let config = tables.config().unwrap_or_default();
    // The answer of an endpoint elsewhere must come back through this node; an endpoint here sees
    // the client's own address, and so does one whose node brings its answers back here.
    let flags = scratch.request.frontend.flags;
    let asked = match next.way {
        Way::Tunnel => frontend::KEEP_CLIENT,
        Way::Forward => frontend::DIRECT_RETURN,
        Way::Pod | Way::Pass => 0,
    };
    let kept = next.takes_clients && flags & asked != 0 && is_client(tables, &headers.source);
    let source = match next.way {
        Way::Pod | Way::Pass => headers.source,
        Way::Forward if next.outside => A::masquerade(&config),
        Way::Forward | Way::Tunnel => next.source,
    };
    // Where the node has no such address, the client's own has at least somebody behind it.
    let source = if source == A::UNSPECIFIED { headers.source } else { source };
    if !kept {
        return prepare(headers, &target, source, &config, scratch);
    }
    let todo = prepare(headers, &target, headers.source, &config, scratch)?;
    scratch.opening.instead = source;
    if flags & frontend::DIRECT_RETURN != 0 {
        scratch.opening.state = bits::DELEGATED;
    }
    Ok(todo)
}

/// As [`decide_from_pod`], for [`from_host`].
#[inline(always)]
pub fn decide_from_host<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) {
    let translated = headers.ports.are_known() && flow::follow(tables, headers, scratch);
    scratch.decision = Decision { translated, ..Decision::NONE };
}

/// Finds a fragment's ports, as [`fragment::enter`]; `Err` is the verdict on one that is not to be
/// decided on. What the host's stack sends or might receive is its own to refuse, unless it was
/// cut so that another packet would come of it, or is for a pod that is restricted.
#[inline(always)]
pub fn enter_fragment<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    tables: &T,
    whence: Whence,
    headers: &mut Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<(), Verdict> {
    fragment::enter(packet, tables, headers, scratch).map_err(|reason| {
        let broken = matches!(reason, DropReason::Malformed);
        let of_host = whence.is_host() && !policy::is_guarded(tables, headers, scratch.whence);
        if of_host || broken && matches!(whence, Whence::Network) {
            Verdict::Pass
        } else {
            Verdict::Drop(reason)
        }
    })
}

/// Lets the fragments that follow the first one find its flow, once that is decided on.
#[inline(always)]
pub fn note_fragment<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>, scratch: &Scratch<A>) {
    if matches!(headers.ports, Ports::First) && scratch.decision.translated {
        fragment::note(tables, headers, scratch);
    }
}

/// Who sends a packet, where that makes a difference to what is rare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Whence {
    /// A pod, whose ICMP errors can be only about what it received.
    Pod,
    /// A pod, to an address on its link that the host forwards to all the same ([`policy::is_near`]).
    Link,
    /// Anybody, through the network or the overlay.
    Network,
    /// The host's stack, which has chosen the packet's way already: out of the node.
    Host,
    /// The same, to a pod: something that it forwards.
    Stack,
    /// The same, to a pod: something that a socket of this node sends.
    Socket,
}

impl Whence {
    /// Whether the host's stack has chosen the packet's way.
    #[inline(always)]
    pub fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::Stack | Self::Socket)
    }
}

/// Decides on an ICMP error whose quoted packet is in `scratch`; false if it is about no translated
/// flow, and so a packet like others.
#[inline(always)]
pub fn decide_on_error<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    whence: Whence,
    scratch: &mut Scratch<A>,
) -> bool {
    if !icmp::follow(tables, headers, scratch) {
        return false;
    }
    if whence.is_host() {
        scratch.decision = Decision { translated: true, ..Decision::NONE };
        // To somebody else it would have to go another way.
        return scratch.translation.destination == headers.destination;
    }
    let next = next_hop(tables, scratch.towards());
    scratch.decision = Decision::new(&next, true);
    matches!(whence, Whence::Network) || scratch.quoted.destination == headers.source
}

/// Decides on a packet of an open flow; false if there is none.
#[inline(always)]
fn follow<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>, scratch: &mut Scratch<A>) -> bool {
    if !headers.ports.are_known() || !flow::follow(tables, headers, scratch) {
        return false;
    }
    go_on(tables, headers, scratch, false);
    true
}

/// Decides on a packet whose flow was found or is `new`.
#[inline(always)]
fn go_on<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
    new: bool,
) {
    let next = next_hop(tables, scratch.towards());
    scratch.decision = Decision::new(&next, true);
    // A connection is known from its first packet on. What has no connections may be forgotten by the
    // endpoint's node at any time, and one packet may be all there is.
    let first = new || scratch.state & bits::UNSEEN != 0 || headers.opens();
    let first = first || headers.protocol != protocol::TCP;
    let tells = scratch.state & (bits::DELEGATED | bits::NAMES_CLIENT) != 0;
    scratch.decision.names = tells && first && !matches!(headers.ports, Ports::Noted);
}

/// Where a packet without an open flow wants to go.
struct Target<A> {
    destination: A,
    port: U16,
    /// The Service that chose the destination; 0: the packet itself named it.
    service: u32,
}

#[inline(always)]
fn target<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scope: u8,
    scratch: &mut Scratch<A>,
) -> Result<Target<A>, DropReason> {
    let mut target =
        Target { destination: headers.destination, port: headers.destination_port, service: 0 };
    if headers.ports.are_known() {
        let key = headers.frontend(scope);
        if let Some(frontend) = tables.frontend(&key) {
            let bits = if frontend.flags & frontend::BY_FLOW != 0 {
                service::flow_bits(&headers.source, headers.source_port, &key)
            } else {
                tables.random()
            };
            scratch.request =
                Request { client: headers.source, bits, ..Request::new(key, frontend) };
            service::choose(tables, &mut scratch.request)?;
            target.destination = scratch.request.endpoint.address;
            target.port = scratch.request.endpoint.port;
            target.service = frontend.service;
        }
    }
    Ok(target)
}

/// Why nobody serves the destination, which is in a range of Services' addresses.
#[inline(always)]
fn unserved<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> DropReason {
    if matches!(headers.ports, Ports::Fragment) {
        return DropReason::Fragment;
    }
    if tables.frontend(&any_port(headers.destination)).is_some() {
        DropReason::ClosedPort
    } else {
        DropReason::UnallocatedAddress
    }
}

/// The frontend that says of an address that a Service has it, whatever its ports.
#[inline(always)]
pub fn any_port<A>(address: A) -> FrontendKey<A> {
    FrontendKey { address, port: U16::ZERO, protocol: 0, scope: scope::INTERNAL }
}

/// Decides on a packet that keeps its addresses: to a pod of this node, else to the host.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn deliver_here<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
    plain: bool,
) -> Result<Todo, DropReason> {
    scratch.decision = match tables.pod(&headers.destination) {
        Some(pod) => Decision::new(&NextHop::<A>::pod(pod), false),
        None => Decision::NONE,
    };
    if !matches!(scratch.decision.way, Way::Pod) {
        return Ok(Todo::Apply);
    }
    let origin = origin(tables, &headers.source);
    let foreign = match origin {
        // Unless others share the range of its pods, and so may be out there.
        Origin::Node => tables.pod_range().network != A::UNSPECIFIED,
        Origin::Tunnel => true,
        Origin::Cluster | Origin::Outside => false,
    };
    if plain && foreign {
        return Err(DropReason::ForeignSource);
    }
    let brought = scratch.errand.state != 0;
    if !matches!(origin, Origin::Outside) && !brought || translatable(headers).is_err() {
        return Ok(Todo::Apply);
    }
    let config = tables.config().unwrap_or_default();
    if A::masquerade(&config) == A::UNSPECIFIED && !brought {
        return Ok(Todo::Apply);
    }
    // Somebody outside who has a route to the pod, or was brought by a peer. The pod's answer must not be
    // masqueraded, and goes back to that peer: a flow that changes nothing says so.
    scratch.opening = Opening {
        source: headers.source,
        destination: headers.destination,
        destination_port: headers.destination_port,
        service: 0,
        ports: (config.first_port, config.last_port),
        any_port: true,
        answers: scratch.errand,
        state: 0,
        instead: headers.source,
    };
    Ok(Todo::Open)
}

/// Writes down what a packet that needs translation asks [`open`] for.
#[inline(always)]
fn prepare<A: Ip>(
    headers: &Headers<A>,
    target: &Target<A>,
    source: A,
    config: &Config,
    scratch: &mut Scratch<A>,
) -> Result<Todo, DropReason> {
    translatable(headers)?;
    scratch.opening = Opening {
        source,
        destination: target.destination,
        destination_port: target.port,
        service: target.service,
        ports: (config.first_port, config.last_port),
        any_port: source == headers.source,
        answers: Errand::NONE,
        state: 0,
        instead: source,
    };
    Ok(Todo::Open)
}

/// Has the packets of a flow that is to be opened name their client, somebody outside or of another node, if its
/// address is replaced on the way to a pod of a peer: a step of its own before [`open`].
#[inline(always)]
pub fn name_client<A: Ip, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    whence: Whence,
    scratch: &mut Scratch<A>,
) {
    let flags = tables.config().unwrap_or_default().flags;
    let Opening { source, destination, state, .. } = &mut scratch.opening;
    if flags & config::NAME_CLIENTS == 0
        || !matches!(whence, Whence::Network)
        || *source == headers.source
    {
        return;
    }
    let takes = |route: Route<A>| route.peer.flags[0] & peer::TAKES_CLIENTS != 0;
    let far = tables.pod(destination).is_none() && tables.route(destination).is_some_and(takes);
    if far && headers.source.is_forwarded() {
        *state |= bits::NAMES_CLIENT;
    }
}

/// Opens the flow that a step which decides asked for, and decides by what came of it: another
/// processor may have opened the same flow to another endpoint.
#[inline(always)]
pub fn open<A: Ip, T: Tables<A>, H: Host<A>>(
    tables: &T,
    host: &H,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
) -> Result<(), DropReason> {
    flow::open(tables, host, headers, scratch)?;
    go_on(tables, headers, scratch, true);
    Ok(())
}

/// How a destination is reached; plain data as in [`Decision`].
pub(crate) struct NextHop<A> {
    way: Way,
    /// The pod, or the tunnel's peer.
    payload: Payload,
    /// The source that lets answers come back to this node.
    pub(crate) source: A,
    /// Pods appear there under the node's address.
    outside: bool,
    /// Services have their addresses there, and nobody else.
    services: bool,
    /// A peer is there that takes packets of clients from outside to its pods.
    takes_clients: bool,
}

impl<A: Ip> NextHop<A> {
    /// To go there unchanged.
    #[inline(always)]
    pub(crate) fn decision(&self) -> Decision {
        Decision::new(self, false)
    }

    #[inline(always)]
    fn way(way: Way) -> Self {
        Self {
            way,
            payload: [0; 6],
            source: A::UNSPECIFIED,
            outside: false,
            services: false,
            takes_clients: false,
        }
    }

    #[inline(always)]
    pub(crate) fn pod(pod: Pod) -> Self {
        let [a, b, c, d, e]: [u32; 5] = transmute!(pod);
        Self { payload: [a, b, c, d, e, 0], ..Self::way(Way::Pod) }
    }
}

#[cfg_attr(target_arch = "bpf", inline(never))]
pub(crate) fn next_hop<A: Ip, T: Tables<A>>(tables: &T, destination: &A) -> NextHop<A> {
    if let Some(pod) = tables.pod(destination) {
        return NextHop::pod(pod);
    }
    let Some(found) = tables.route(destination) else {
        return NextHop { outside: true, ..NextHop::way(Way::Forward) };
    };
    let (way, outside) = match found.kind.get() {
        route::HOST | route::SERVICES => (Way::Pass, false),
        route::DIRECT => (Way::Forward, false),
        route::TUNNEL | route::TUNNEL_NODE => (Way::Tunnel, false),
        _ => (Way::Forward, true),
    };
    let services = found.kind.get() == route::SERVICES;
    let takes_clients = found.peer.flags[0] & peer::TAKES_CLIENTS != 0;
    let payload = transmute!(found.peer.alone());
    NextHop { way, payload, source: found.source, outside, services, takes_clients }
}

/// Where packets from an address come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Origin {
    /// From this node or its pods: by no device that leads out of it.
    Node,
    /// From a peer's pods that are behind the tunnel: through it alone.
    Tunnel,
    /// From the cluster, by whatever device.
    Cluster,
    /// From outside.
    Outside,
}

#[cfg_attr(target_arch = "bpf", inline(never))]
fn origin<A: Ip, T: Tables<A>>(tables: &T, source: &A) -> Origin {
    if tables.pod(source).is_some() {
        return Origin::Node;
    }
    match kind_of(tables, source) {
        Some(route::HOST) => Origin::Node,
        Some(route::TUNNEL) => Origin::Tunnel,
        Some(route::DIRECT | route::TUNNEL_NODE) => Origin::Cluster,
        _ => Origin::Outside,
    }
}

/// Whether an address is that of somebody outside, to whom packets can be sent from every node. Ranges where
/// pods appear under their own addresses are outside, too.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub(crate) fn is_client<A: Ip, T: Tables<A>>(tables: &T, address: &A) -> bool {
    let outside = match tables.route(address) {
        None => true,
        Some(found) => match found.kind.get() {
            route::OUTSIDE => true,
            route::DIRECT => found.peer.flags[0] & peer::KNOWN == 0,
            _ => false,
        },
    };
    outside && address.is_forwarded()
}

#[inline(always)]
fn kind_of<A: Ip, T: Tables<A>>(tables: &T, address: &A) -> Option<u32> {
    tables.route(address).map(|route| route.kind.get())
}

/// Whether an address is outside although it is link-local.
#[inline(always)]
pub(crate) fn is_led_outside<A: Ip, T: Tables<A>>(tables: &T, destination: &A) -> bool {
    kind_of(tables, destination) == Some(route::OUTSIDE)
}

/// Refuses what cannot be translated.
#[inline(always)]
pub(crate) fn translatable<A: Ip>(headers: &Headers<A>) -> Result<(), DropReason> {
    let icmp = matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6);
    match headers.ports {
        // An answer to a question that never passed here. Its identifier does not tell: 0 is one.
        Ports::Known | Ports::First if icmp && headers.tcp_flags & tcp::ACK != 0 => {
            Err(DropReason::UnsupportedProtocol)
        }
        Ports::Known | Ports::First => Ok(()),
        // Its flow has ended since the first one passed.
        Ports::Noted | Ports::Fragment => Err(DropReason::Fragment),
        Ports::Error | Ports::None => Err(DropReason::UnsupportedProtocol),
    }
}

/// Carries the decision in `scratch` out on the packet. One whose hop limit ends here is dropped as it
/// came, so that [`icmp::complain`] can tell its sender.
#[inline(always)]
pub fn apply<A: Ip, P: Packet>(
    packet: &mut P,
    headers: &Headers<A>,
    scratch: &Scratch<A>,
) -> Verdict {
    let decision = &scratch.decision;
    let leaves = decision.leaves();
    if leaves && headers.hop_limit <= 1 {
        return Verdict::Drop(DropReason::HopLimit);
    }
    let done = if decision.translated && !decision.same {
        packet::translate(packet, headers, &scratch.translation, leaves)
    } else if leaves {
        packet::hop(packet, headers)
    } else {
        Some(())
    };
    match done {
        Some(()) => decision.verdict(),
        None => Verdict::Drop(DropReason::Rewrite),
    }
}

/// As [`apply`], for a packet that is bigger than the MTU of the way that was decided on.
pub fn apply_large<A: Ip, P: Quotable, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<A>,
    scratch: &mut Scratch<A>,
    mtu: u32,
) -> Verdict {
    if icmp::may_exceed(packet, headers, scratch) {
        apply(packet, headers, scratch)
    } else {
        icmp::complain(packet, tables, headers, scratch, mtu)
    }
}

fn finish<A: Ip, P: Quotable, T: Tables<A> + Host<A>>(
    packet: &mut P,
    tables: &T,
    headers: Headers<A>,
    whence: Whence,
    decide: impl FnOnce(&Headers<A>, &mut Scratch<A>) -> Result<Todo, DropReason>,
) -> Verdict {
    finish_in(packet, tables, headers, whence, Scratch::default(), decide)
}

fn finish_in<A: Ip, P: Quotable, T: Tables<A> + Host<A>>(
    packet: &mut P,
    tables: &T,
    mut headers: Headers<A>,
    whence: Whence,
    mut scratch: Scratch<A>,
    decide: impl FnOnce(&Headers<A>, &mut Scratch<A>) -> Result<Todo, DropReason>,
) -> Verdict {
    scratch.whence = whence;
    if matches!(whence, Whence::Network)
        && let Err(reason) = direct::take_name(packet, tables, &mut headers, &mut scratch.errand)
    {
        return Verdict::Drop(reason);
    }
    let whole = !matches!(headers.ports, Ports::Fragment);
    if !whole
        && let Err(verdict) = enter_fragment(packet, tables, whence, &mut headers, &mut scratch)
    {
        return verdict;
    }
    // Of an error in pieces, the others could not follow the first one.
    if whole
        && matches!(headers.ports, Ports::Error)
        && icmp::read_quote(packet, &headers, &mut scratch)
        && decide_on_error(tables, &headers, whence, &mut scratch)
    {
        // It goes where the flow goes, also from a pod to who is near, and no further than that may.
        let from = if matches!(whence, Whence::Link) { Whence::Pod } else { whence };
        if !from.is_host()
            && let Err(reason) = policy::judge(tables, &headers, from, false, &mut scratch)
        {
            return Verdict::Drop(reason);
        }
        return icmp::apply(packet, &headers, &scratch);
    }
    let decided = decide(&headers, &mut scratch).and_then(|todo| {
        let todo = match todo {
            Todo::Apply => policy::police(tables, &headers, whence, &mut scratch)?,
            Todo::Open => Todo::Open,
        };
        let opened = matches!(todo, Todo::Open);
        if opened {
            name_client(tables, &headers, whence, &mut scratch);
            open(tables, tables, &headers, &mut scratch)?;
        }
        policy::judge(tables, &headers, whence, opened, &mut scratch)
    });
    let verdict = match decided {
        Ok(()) => {
            note_fragment(tables, &headers, &scratch);
            let names = scratch.decision.names;
            match if names { direct::name(packet, &mut headers, scratch.state) } else { Ok(()) } {
                Ok(()) => apply(packet, &headers, &scratch),
                Err(reason) => Verdict::Drop(reason),
            }
        }
        Err(reason) => Verdict::Drop(reason),
    };
    match verdict {
        Verdict::Drop(DropReason::HopLimit) => {
            // Its sender knows nothing of the name.
            if scratch.decision.names
                && let Err(reason) = direct::unname(packet, &mut headers)
            {
                return Verdict::Drop(reason);
            }
            icmp::complain(packet, tables, &headers, &mut scratch, icmp::TIME_EXCEEDED)
        }
        Verdict::Drop(reason) if service::is_told(reason) => {
            match icmp::complain(packet, tables, &headers, &mut scratch, icmp::UNREACHABLE) {
                Verdict::Drop(_) => Verdict::Drop(reason),
                told => told,
            }
        }
        verdict => verdict,
    }
}
