//! What the node that a client asked tells the endpoint's node: whom the client asked, or who it is.
//!
//! The first is direct server return: an endpoint's node answers a client itself, although another node was
//! asked.
//!
//! ```text
//! client ─► frontend    node that was asked    client ─► endpoint, names the frontend
//!                       endpoint's node        takes the name off, and keeps it with the flow
//! client ◄─ frontend                           translates the answers, and sends them by its own routes
//! ```
//!
//! The other is for policies: where the endpoint sees the address of the node that was asked, its own node can
//! still ask about the client, which may be a pod of a third node. Such a name is believed of the address of a
//! peer alone, and only in front of a pod. No pod can send under that address; and who asks a node is not
//! to have it say what he made up, so the names of others are taken off, and pods' refused.
//!
//! ```text
//! client ─► frontend    node that was asked    itself ─► endpoint, names the client
//!                       endpoint's node        takes the name off, keeps it beside the flow, asks about it
//! ```
//!
//! A name is an IPv4 option or an option of an IPv6 Destination Options header, of numbers that are for
//! experiments (RFC 4727). It stands directly behind the fixed part of the network header, and is not
//! copied to later fragments. Routers may dislike options, but between nodes on one link there are none,
//! and in a tunnel none sees them.
//!
//! Whoever can send to a pod could name a frontend, so a node answers only as what it knows for one: an
//! address and port of a Service, or of a peer a port that is a node port here, too.
#![expect(clippy::cast_possible_truncation, reason = "headers have a few bytes")]

use fairway_abi::{Address, DropReason, FrontendKey, V4, V6, flow, peer, scope};
use zerocopy::network_endian::U16;

use crate::Tables;
use crate::checksum::{Difference, adjust};
use crate::flow::Errand;
use crate::icmp::Quotable;
use crate::packet::{ETHERNET, Headers, Ip, Packet};
use crate::path::is_client;

/// The number of the option that names a frontend, in IPv4 not copied to fragments, in IPv6 to be skipped by
/// who does not know it.
const FRONTEND: u8 = 0x1e;
/// The same of one that names a client. In IPv6 it says in addition that the option may change on the way.
const CLIENT4: u8 = 0x5e;
const CLIENT6: u8 = 0x3e;
/// IANA number of the IPv6 Destination Options header.
const DESTINATION_OPTIONS: u8 = 60;

/// How an IP version names a frontend.
pub trait Named: Address {
    /// Length of the fixed part of a network header.
    const FIXED: u32;
    /// How many bytes a name takes.
    const NAME: u32;

    /// The address and port that a packet names, and whether they are a client's.
    fn named<P: Packet>(packet: &P) -> Option<(bool, Self, U16)>;
    /// Names an address and port, a client's or a frontend's. `Some(false)`: there is no room, and nothing has
    /// changed; `None`: the packet may be half changed.
    fn insert<P: Quotable>(packet: &mut P, client: bool, address: &Self, port: U16)
    -> Option<bool>;
    /// Takes the name off again; `None` as above.
    fn remove<P: Quotable>(packet: &mut P) -> Option<()>;
}

/// Whether a packet has options, of which a name may be one.
#[inline(always)]
pub fn has_options<A: Named>(headers: &Headers<A>) -> bool {
    headers.transport != ETHERNET + A::FIXED
}

/// Whether a packet names a client, which no pod may do.
#[inline(always)]
pub fn names_client<A: Named, P: Packet>(packet: &P, headers: &Headers<A>) -> bool {
    has_options(headers) && A::named(packet).is_some_and(|(of_client, ..)| of_client)
}

/// Has a packet name the frontend that it was sent to, or its client, as `state` says (bits of [`flow`]). One
/// that has no room for it goes without: where its flow is known to the endpoint's node that is as good, and
/// through a tunnel, answers come back here.
///
/// # Errors
/// The packet is half changed.
#[inline(always)]
pub fn name<A: Ip, P: Quotable>(
    packet: &mut P,
    headers: &mut Headers<A>,
    state: u32,
) -> Result<(), DropReason> {
    let client = state & flow::NAMES_CLIENT != 0;
    let (address, port) = if client {
        (&headers.source, headers.source_port)
    } else {
        (&headers.destination, headers.destination_port)
    };
    if A::insert(packet, client, address, port).ok_or(DropReason::Rewrite)? {
        headers.transport += A::NAME;
    }
    Ok(())
}

/// Takes the name off a packet if it has one; says how long it was.
///
/// # Errors
/// As above.
#[inline(always)]
pub fn unname<A: Ip, P: Quotable>(
    packet: &mut P,
    headers: &mut Headers<A>,
) -> Result<u32, DropReason> {
    if !has_options(headers) || A::named(packet).is_none() {
        return Ok(0);
    }
    A::remove(packet).ok_or(DropReason::Rewrite)?;
    headers.transport -= A::NAME;
    Ok(A::NAME)
}

/// Takes the name off a packet, as [`read_name`] says.
///
/// # Errors
/// The packet may not have such answers, or is half changed.
#[inline(always)]
pub fn take_name<A: Ip, P: Quotable, T: Tables<A>>(
    packet: &mut P,
    tables: &T,
    headers: &mut Headers<A>,
    errand: &mut Errand<A>,
) -> Result<(), DropReason> {
    if has_options(headers) && read_name(packet, tables, headers, errand)? {
        unname(packet, headers)?;
    }
    Ok(())
}

/// Whether a packet with options names somebody, and the name is to be taken off. From somebody outside to a
/// pod of this node, the answers, as `errand` says then, are to leave as the frontend's that is named. Who asks for
/// a Service has nobody to name: the endpoint's node would believe this one that passes the name on.
///
/// # Errors
/// The packet may not have such answers.
#[inline(always)]
pub fn read_name<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    tables: &T,
    headers: &Headers<A>,
    errand: &mut Errand<A>,
) -> Result<bool, DropReason> {
    let Some((of_client, source, port)) = A::named(packet) else { return Ok(false) };
    let is_here = tables.pod(&headers.destination).is_some();
    if of_client {
        // Only what opens flows names anybody.
        if is_here && headers.ports.are_known() && is_peer(tables, &headers.source) {
            errand.client = source;
        }
        return Ok(true); // nobody is to pretend to be somebody
    }
    // A pod may make of other options what it likes.
    if !is_client(tables, &headers.source) {
        return Ok(false);
    }
    if !is_here {
        // What is for somebody else is passed on as it is.
        let asked = headers.ports.are_known().then(|| headers.frontend(scope::EXTERNAL));
        return Ok(asked.is_some_and(|key| tables.frontend(&key).is_some()));
    }
    *errand = Errand { state: flow::ON_BEHALF, source, port, ..Errand::NONE };
    if is_frontend(tables, headers, errand) { Ok(true) } else { Err(DropReason::ForeignFrontend) }
}

/// Whether an address is a peer's own: on its link, or of its end of the tunnel.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn is_peer<A: Ip, T: Tables<A>>(tables: &T, address: &A) -> bool {
    let Some(route) = tables.route(address) else { return false };
    route.peer.flags[0] & peer::NODE != 0
        || tables.peer(&route.peer.underlay).is_some_and(|itself| itself == *address)
}

/// Whether a client may reach a Service at the address and port.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn is_frontend<A: Ip, T: Tables<A>>(tables: &T, headers: &Headers<A>, errand: &Errand<A>) -> bool {
    let mut key = FrontendKey {
        address: errand.source,
        port: errand.port,
        protocol: headers.protocol,
        scope: scope::EXTERNAL,
    };
    let mut found = tables.frontend(&key);
    // All nodes have the same node ports, each at its own addresses.
    if found.is_none()
        && tables.route(&errand.source).is_some_and(|route| route.peer.flags[0] & peer::NODE != 0)
    {
        key.address = A::masquerade(&tables.config().unwrap_or_default());
        found = tables.frontend(&key);
    }
    found.is_some_and(|found| {
        found.flags & fairway_abi::frontend::SOURCE_RANGES == 0
            || tables.is_in_source_range(found.port, &headers.source)
    })
}

impl Named for V4 {
    const FIXED: u32 = 20;
    const NAME: u32 = 8;

    #[inline(always)]
    fn named<P: Packet>(packet: &P) -> Option<(bool, Self, U16)> {
        let [kind, length, high, low, a, b, c, d]: [u8; 8] = packet.load(ETHERNET + Self::FIXED)?;
        let is_name = matches!(kind, FRONTEND | CLIENT4) && u32::from(length) == Self::NAME;
        is_name.then_some((kind == CLIENT4, [a, b, c, d], U16::from_bytes([high, low])))
    }

    #[inline(always)]
    fn insert<P: Quotable>(
        packet: &mut P,
        client: bool,
        address: &Self,
        port: U16,
    ) -> Option<bool> {
        /// Of a header, in words of 32 bits.
        const LONGEST: u8 = 15;
        let header: [u8; 12] = packet.load(ETHERNET)?;
        let longest = LONGEST - (Self::NAME / 4) as u8;
        if header[0] & 0x0f > longest || packet.resize(Self::NAME as i32).is_none() {
            return Some(false);
        }
        let ([high, low], [a, b, c, d]) = (port.to_bytes(), *address);
        let kind = if client { CLIENT4 } else { FRONTEND };
        let option = [kind, Self::NAME as u8, high, low, a, b, c, d];
        packet.overwrite(ETHERNET + Self::FIXED, &option)?;
        let sum = Difference::default()
            .half_word([option[0], option[1]])
            .half_word([high, low])
            .sum(u32::from_ne_bytes(*address));
        lengthen(packet, header, Self::NAME as u16, sum)?;
        Some(true)
    }

    #[inline(always)]
    fn remove<P: Quotable>(packet: &mut P) -> Option<()> {
        let header: [u8; 12] = packet.load(ETHERNET)?;
        let [one, other]: [[u8; 4]; 2] = packet.load(ETHERNET + Self::FIXED)?;
        packet.resize(-(Self::NAME as i32))?;
        let sum = Difference::default()
            .word(u32::from_ne_bytes(one), 0)
            .word(u32::from_ne_bytes(other), 0);
        lengthen(packet, header, (Self::NAME as u16).wrapping_neg(), sum)
    }
}

/// Writes an IPv4 header whose length has changed by so much, modulo 2^16, through options that add this
/// to its sum.
#[inline(always)]
fn lengthen<P: Quotable>(
    packet: &mut P,
    header: [u8; 12],
    by: u16,
    options: Difference,
) -> Option<()> {
    let [version, class, high, low, i, j, k, l, hops, protocol, c, d] = header;
    let version_now = version.wrapping_add((by as i16 / 4) as u8);
    let [high_now, low_now] = u16::from_be_bytes([high, low]).wrapping_add(by).to_be_bytes();
    let sum =
        options.half([version, class], [version_now, class]).half([high, low], [high_now, low_now]);
    let [c, d] = adjust([c, d], sum);
    let header = [version_now, class, high_now, low_now, i, j, k, l, hops, protocol, c, d];
    packet.overwrite(ETHERNET, &header)
}

impl Named for V6 {
    const FIXED: u32 = 40;
    const NAME: u32 = 24;

    #[inline(always)]
    fn named<P: Packet>(packet: &P) -> Option<(bool, Self, U16)> {
        let next: u8 = packet.load(ETHERNET + 6)?;
        let [_, length, kind, inside]: [u8; 4] = packet.load(ETHERNET + Self::FIXED)?;
        let is_name = matches!(kind, FRONTEND | CLIENT6) && [length, inside] == [LENGTH, INSIDE];
        if next != DESTINATION_OPTIONS || !is_name {
            return None;
        }
        let address = packet.load(ETHERNET + Self::FIXED + 4)?;
        Some((kind == CLIENT6, address, packet.load(ETHERNET + Self::FIXED + 20)?))
    }

    #[inline(always)]
    fn insert<P: Quotable>(
        packet: &mut P,
        client: bool,
        address: &Self,
        port: U16,
    ) -> Option<bool> {
        let [high, low, next, hops]: [u8; 4] = packet.load(ETHERNET + 4)?;
        let length = u16::from_be_bytes([high, low]).checked_add(Self::NAME as u16);
        let Some(length) = length else { return Some(false) };
        if packet.resize(Self::NAME as i32).is_none() {
            return Some(false);
        }
        let at = ETHERNET + Self::FIXED;
        let kind = if client { CLIENT6 } else { FRONTEND };
        packet.overwrite(at, &[next, LENGTH, kind, INSIDE])?;
        packet.overwrite(at + 4, address)?;
        packet.overwrite(at + 20, &port)?;
        let [high, low] = length.to_be_bytes();
        packet.overwrite(ETHERNET + 4, &[high, low, DESTINATION_OPTIONS, hops])?;
        Some(true)
    }

    #[inline(always)]
    fn remove<P: Quotable>(packet: &mut P) -> Option<()> {
        let [high, low, _, hops]: [u8; 4] = packet.load(ETHERNET + 4)?;
        let next: u8 = packet.load(ETHERNET + Self::FIXED)?;
        let length = u16::from_be_bytes([high, low]).checked_sub(Self::NAME as u16)?;
        packet.resize(-(Self::NAME as i32))?;
        let [high, low] = length.to_be_bytes();
        packet.overwrite(ETHERNET + 4, &[high, low, next, hops])
    }
}

/// Of an IPv6 Destination Options header, in units of eight bytes behind the first.
const LENGTH: u8 = 2;
/// The option's length: address, port, and two zeros.
const INSIDE: u8 = 20;
