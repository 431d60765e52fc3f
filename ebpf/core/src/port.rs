//! The choice of a source port: for whatever leaves a node under an address that many share, be it
//! masqueraded, from a node port's client, or a pod that reaches itself.
//!
//! A port is taken by writing the record for the flow's answers, if nobody has one under its key:
//! whoever writes first has the port. What an address shares with others is its ports towards one
//! destination; towards another, the same port is another record.
//!
//! The client's own port comes first. Then a range that is nearly empty and one that is nearly full
//! ask for different things: numbers drawn at random find a free port soon as long as some are free
//! anywhere (of a range of which 95 in 100 are taken, one flow in seven hundred is left without), and
//! a walk from port to port finds the last one of a small range for certain.
//!
//! A connection that both ends have closed keeps its port for as long as its server may take packets from
//! there for the old connection's (TIME_WAIT). Only if there is no other does a walk take it away: the new
//! connection may then be refused, which without a port it would be for certain.

use fairway_abi::{Address, FrontendKey, protocol, scope};
use zerocopy::network_endian::U16;

use crate::Tables;
use crate::flow::{self, Scratch};
use crate::tables::Stage;

/// How many ports are drawn.
pub const DRAWS: u32 = 128;
/// How many are tried after them, one after the other: a range no larger is used to its last port.
pub const WALK: u32 = 128;
/// All of them, the client's own included. What a refused flow costs is bounded by it.
pub const TRIES: u32 = 1 + DRAWS + WALK;

/// The host that the node's addresses belong to.
pub trait Host<A: Address> {
    /// Whether a socket of the host would be given a packet like this. A translated flow must not take
    /// the answers of a socket, however the socket came by its port.
    fn receives(&self, packet: &fairway_abi::FlowKey<A>) -> bool;

    /// Calls [`attempt`] with each number below [`TRIES`] until it is content.
    #[inline(always)]
    fn search<T: Tables<A>>(&self, tables: &T, scratch: &mut Scratch<A>)
    where
        Self: Sized,
    {
        let mut number = 0;
        while number < TRIES && !attempt(tables, self, scratch, number) {
            number += 1;
        }
    }
}

/// What came of looking for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Claim {
    /// None was free.
    Exhausted,
    /// The record for answers is written, and its port is the flow's.
    Taken,
    /// The table has no room for the record.
    NoRoom,
}

/// One try to find a port for the flow in `scratch`; true ends the search.
#[inline(always)]
pub fn attempt<A: Address, T: Tables<A>, H: Host<A>>(
    tables: &T,
    host: &H,
    scratch: &mut Scratch<A>,
    number: u32,
) -> bool {
    let (first, last) = scratch.opening.ports;
    let tried = scratch.answers.destination_port.get();
    let port = if number == 0 {
        if !scratch.opening.any_port && (tried < first || tried > last) {
            return false;
        }
        tried
    } else if number <= DRAWS {
        draw(tables, first, last)
    } else if tried < last {
        tried + 1
    } else {
        first
    };
    scratch.answers.destination_port = U16::new(port);
    scratch.original.source_port = U16::new(port);
    take(tables, host, scratch, number > DRAWS)
}

/// Tries to take the port that is in the records of `scratch`; `last`: even from a connection that is closed.
#[inline(always)]
fn take<A: Address, T: Tables<A>, H: Host<A>>(
    tables: &T,
    host: &H,
    scratch: &mut Scratch<A>,
    last: bool,
) -> bool {
    let key = &scratch.answers;
    // Looking is cheaper than a refused insertion, for which the table may already have made room.
    if tables.has_flow(Stage::HalfOpen, key) {
        return false;
    }
    if tables.has_flow(Stage::Established, key) && !(last && flow::end_closed(tables, scratch)) {
        return false;
    }
    let key = &scratch.answers;
    // Where the source stays the client's own, the node has no part in its ports.
    if !scratch.opening.any_port && (is_frontend(tables, scratch) || host.receives(key)) {
        return false;
    }
    if tables.insert_flow(Stage::HalfOpen, key, &scratch.reply) {
        // Another flow's record may have moved from one table to the other between the looks above.
        // It was in the second one before it left the first, so by now it can be seen there.
        if tables.has_flow(Stage::Established, key) {
            tables.remove_flow(Stage::HalfOpen, key);
            return false;
        }
        scratch.claim = Claim::Taken;
        return true;
    }
    if tables.has_flow(Stage::HalfOpen, key) {
        return false; // another processor was quicker
    }
    scratch.claim = Claim::NoRoom;
    true
}

/// Whether others reach a Service at the address and port: their packets are not this flow's answers.
#[inline(always)]
fn is_frontend<A: Address, T: Tables<A>>(tables: &T, scratch: &Scratch<A>) -> bool {
    let key = &scratch.answers;
    // An echo's identifier is no port.
    if matches!(key.protocol, protocol::ICMP | protocol::ICMPV6) {
        return false;
    }
    let frontend = FrontendKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol,
        scope: scope::EXTERNAL,
    };
    tables.frontend(&frontend).is_some()
}

#[inline(always)]
fn draw<A: Address, T: Tables<A>>(tables: &T, first: u16, last: u16) -> u16 {
    let span = u32::from(last.wrapping_sub(first)) + 1;
    let offset = ((tables.random() & 0xffff) * span) >> 16;
    first.wrapping_add(offset as u16)
}
