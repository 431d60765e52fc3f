//! Service addresses at the socket: a process that connects to a frontend is connected to an
//! endpoint, and never learns of it.
//!
//! Such a connection costs nothing per packet, and its packets need no flow record: they carry the
//! endpoint's address from the start.

use fairway_abi::{Address, Endpoint, FrontendKey, SocketKey, SocketPeer, protocol, scope};
use zerocopy::native_endian::U64;
use zerocopy::network_endian::U16;

use crate::service;
use crate::tables::Tables;

/// An address as a socket call names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAddress<A> {
    /// Address.
    pub address: A,
    /// Port.
    pub port: U16,
    /// IANA number.
    pub protocol: u8,
}

/// What becomes of a socket call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<A> {
    /// It names no frontend: let it be.
    Unchanged,
    /// It goes to this endpoint instead.
    Endpoint(Endpoint<A>),
    /// The Service has no endpoint: refuse it, as a closed port would.
    Refused,
}

/// `connect(2)` of the socket `cookie`.
#[inline(always)]
pub fn connect<A: Address, T: Tables<A>>(
    tables: &T,
    cookie: u64,
    to: &SocketAddress<A>,
) -> Outcome<A> {
    choose(tables, cookie, to, tables.random())
}

/// `sendto(2)` and `sendmsg(2)` with an address. One socket's datagrams to one frontend stay with
/// one endpoint for as long as the Service's list of endpoints does not change.
#[inline(always)]
pub fn send<A: Address, T: Tables<A>>(
    tables: &T,
    cookie: u64,
    to: &SocketAddress<A>,
) -> Outcome<A> {
    choose(tables, cookie, to, mix(cookie))
}

/// The frontend behind `from`, an endpoint's address that the kernel is about to show to the
/// process: the sender of a datagram, or the peer of a connection.
#[inline(always)]
pub fn peer<A: Address, T: Tables<A>>(
    tables: &T,
    cookie: u64,
    from: &SocketAddress<A>,
) -> Option<SocketPeer<A>> {
    tables.socket(&key(cookie, from.address, from.port, from.protocol))
}

/// Whether calls for this kind of socket are looked at.
#[inline(always)]
pub fn is_balanced(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP)
}

#[inline(always)]
fn choose<A: Address, T: Tables<A>>(
    tables: &T,
    cookie: u64,
    to: &SocketAddress<A>,
    dice: u32,
) -> Outcome<A> {
    let frontend_key = FrontendKey {
        address: to.address,
        port: to.port,
        protocol: to.protocol,
        scope: scope::INTERNAL,
    };
    let Some(frontend) = tables.frontend(&frontend_key) else {
        return Outcome::Unchanged;
    };
    let Ok(endpoint) = service::choose(tables, &frontend_key, &frontend, dice) else {
        return Outcome::Refused;
    };
    let key = key(cookie, endpoint.address, endpoint.port, to.protocol);
    let peer = SocketPeer { address: to.address, port: to.port, reserved: [0; 2] };
    // A sender of many datagrams finds its record; reading is far cheaper than writing again.
    if tables.socket(&key) != Some(peer) {
        tables.remember_socket(&key, &peer);
    }
    Outcome::Endpoint(endpoint)
}

#[inline(always)]
fn key<A: Address>(cookie: u64, address: A, port: U16, protocol: u8) -> SocketKey<A> {
    SocketKey { cookie: U64::new(cookie), address, port, protocol, reserved: 0 }
}

/// Spreads a counter over 32 bits (the finalizer of MurmurHash3).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the upper half is dropped on purpose")]
fn mix(cookie: u64) -> u32 {
    let mut bits = cookie ^ (cookie >> 33);
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (bits ^ (bits >> 33)) as u32
}
