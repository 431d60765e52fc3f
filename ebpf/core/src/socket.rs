//! Service addresses at the socket: a process that connects to a frontend is connected to an
//! endpoint, and never learns of it.
//!
//! Such a connection costs nothing per packet, and its packets need no flow record: they carry the
//! endpoint's address from the start.

use fairway_abi::{
    Address, Config, Endpoint, FrontendKey, SocketPeer, config, frontend, namespace, protocol,
    scope,
};
use zerocopy::network_endian::U16;

use crate::packet::Ip;
use crate::service::{self, Request};
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

/// The socket a call is made on, and what is remembered of it.
pub trait Socket<A: Address> {
    /// A number that no other socket has.
    fn cookie(&self) -> u64;
    /// The cookie of the network namespace it is in.
    fn netns(&self) -> u64;
    /// The frontend for which the socket was given `endpoint`.
    fn recall(&self, endpoint: &SocketAddress<A>) -> Option<SocketPeer<A>>;
    /// Remembers that the socket was given `endpoint` for `frontend`.
    fn remember(&self, endpoint: &SocketAddress<A>, frontend: &SocketPeer<A>);
}

/// `connect(2)`.
#[inline(always)]
pub fn connect<A: Ip, T: Tables<A>, S: Socket<A>>(
    tables: &T,
    socket: &S,
    to: &SocketAddress<A>,
) -> Outcome<A> {
    let outcome = choose(tables, socket, to, 0, || tables.random());
    if let Outcome::Endpoint(endpoint) = &outcome {
        socket.remember(&called(endpoint, to), &asked(to));
    }
    outcome
}

/// `sendto(2)` and `sendmsg(2)` with an address. One socket's datagrams to one frontend stay with
/// one endpoint for as long as the Service's list of endpoints does not change.
#[inline(always)]
pub fn send<A: Ip, T: Tables<A>, S: Socket<A>>(
    tables: &T,
    socket: &S,
    to: &SocketAddress<A>,
) -> Outcome<A> {
    // A datagram opens nothing that could be counted, and must not go to another endpoint than the one
    // before it because it is another's turn, or has less to do or a larger share by now.
    const BY_MOMENT: u32 = frontend::LEAST | frontend::IN_TURN | frontend::GROWING;
    let outcome = choose(tables, socket, to, BY_MOMENT, || mix(socket.cookie()));
    if let Outcome::Endpoint(endpoint) = &outcome {
        let (endpoint, frontend) = (called(endpoint, to), asked(to));
        // A sender of many datagrams finds its record; reading is far cheaper than writing again.
        if !is_remembered(socket, &endpoint, &frontend) {
            socket.remember(&endpoint, &frontend);
        }
    }
    outcome
}

/// The frontend behind `from`, an endpoint's address that the kernel is about to show to the
/// process: the sender of a datagram, or the peer of a connection.
#[inline(always)]
pub fn peer<A: Address, S: Socket<A>>(
    socket: &S,
    from: &SocketAddress<A>,
) -> Option<SocketPeer<A>> {
    socket.recall(from)
}

/// Whether calls for this kind of socket are looked at.
#[inline(always)]
pub fn is_balanced(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP)
}

/// Apart, for the stack that it takes.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn is_remembered<A: Address, S: Socket<A>>(
    socket: &S,
    endpoint: &SocketAddress<A>,
    frontend: &SocketPeer<A>,
) -> bool {
    socket.recall(endpoint) == Some(*frontend)
}

/// The choice of a frontend, but for these bits of [`frontend`].
#[inline(always)]
fn choose<A: Ip, T: Tables<A>, S: Socket<A>>(
    tables: &T,
    socket: &S,
    to: &SocketAddress<A>,
    without: u32,
    dice: impl FnOnce() -> u32,
) -> Outcome<A> {
    let scope = if to.address.is_loopback() {
        // A pod that names a loopback address means itself.
        let node = tables.config().map_or(0, |config| config.netns.get());
        if node == 0 || socket.netns() != node {
            return Outcome::Unchanged;
        }
        scope::LOOPBACK
    } else {
        scope::INTERNAL
    };
    let key = FrontendKey { address: to.address, port: to.port, protocol: to.protocol, scope };
    let Some(mut frontend) = tables.frontend(&key) else { return Outcome::Unchanged };
    frontend.flags &= !without;
    let config = tables.config().unwrap_or_default();
    if is_exempt(tables, socket, &config) {
        return Outcome::Unchanged;
    }
    let mut request = Request { bits: dice(), ..Request::new(key, frontend) };
    if request.asks_who() {
        request.client = client(tables, socket, &config);
    }
    match service::choose(tables, &mut request) {
        Ok(()) => Outcome::Endpoint(request.endpoint),
        Err(reason) if service::is_told(reason) => Outcome::Refused,
        // As it is, its packets are dropped for that reason where they are seen.
        Err(_) => Outcome::Unchanged,
    }
}

/// Whether a socket is to be left alone, because somebody between it and the network (a mesh's proxy, a
/// virtual machine's monitor) has to see where it goes. Those of the node itself never are.
#[inline(always)]
fn is_exempt<A: Ip, T: Tables<A>, S: Socket<A>>(tables: &T, socket: &S, config: &Config) -> bool {
    if config.flags & (config::EXEMPT_PODS | config::NO_POD_SOCKETS) == 0 {
        return false;
    }
    let netns = socket.netns();
    if netns == config.netns.get() {
        return false;
    }
    config.flags & config::NO_POD_SOCKETS != 0
        || tables.namespace(netns).is_some_and(|found| found.flags & namespace::EXEMPT != 0)
}

/// The address that a socket's packets would come from: its pod's, or the node's.
#[inline(always)]
fn client<A: Ip, T: Tables<A>, S: Socket<A>>(tables: &T, socket: &S, config: &Config) -> A {
    match tables.namespace(socket.netns()) {
        Some(namespace) => A::of_interface(&namespace.addresses),
        None => A::masquerade(config),
    }
}

#[inline(always)]
fn called<A: Address>(endpoint: &Endpoint<A>, to: &SocketAddress<A>) -> SocketAddress<A> {
    SocketAddress { address: endpoint.address, port: endpoint.port, protocol: to.protocol }
}

#[inline(always)]
fn asked<A: Address>(to: &SocketAddress<A>) -> SocketPeer<A> {
    SocketPeer { address: to.address, port: to.port, ..SocketPeer::BLANK }
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
