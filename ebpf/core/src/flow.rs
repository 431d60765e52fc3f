//! Flow records: which translation an open flow has, in both directions.
//!
//! ```text
//! first packet   client:p ─► frontend      record  (client:p, frontend)  ─► (source:q, endpoint)
//!                                          record  (endpoint, source:q)  ─► (frontend, client:p)   REPLY
//! answer         endpoint ─► source:q      both move from half-open to established
//! ```
//!
//! Two processors may handle one flow's packets at once. Worst cases, and why they heal:
//! - Both open the flow: the reply record is claimed with "insert if absent", so one of them fails,
//!   finds the winner's record and uses it.
//! - A state bit or time stamp is lost to a concurrent write: the next packet of that direction
//!   writes it again, or the flow lives until its idle time is over.
//! - One moves a flow to the established table while the other looks it up: it is inserted there
//!   before it leaves the half-open table.

use fairway_abi::{Address, DropReason, Flow, FlowKey, flow};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::Tables;
use crate::packet::{Headers, Translation, tcp};
use crate::tables::Stage;

/// How many source ports are tried before a new flow is refused.
const PORT_TRIES: u32 = 8;

/// The translation of an open flow this packet belongs to.
#[inline(always)]
pub fn follow<A: Address, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> Option<Flow<A>> {
    let key = headers.flow();
    let now = tables.now();
    let ends = ends(headers.tcp_flags);
    let seen = |flow: &mut Flow<A>| {
        // Most packets find nothing to write, and so leave the line to other processors' caches.
        if flow.last_seen.get() != now {
            flow.last_seen = U32::new(now);
        }
        if flow.state.get() & ends != ends {
            flow.state = U32::new(flow.state.get() | ends);
        }
    };
    let (stage, found) = match tables.flow(Stage::Established, &key, seen) {
        Some(found) => (Stage::Established, found),
        None => (Stage::HalfOpen, tables.flow(Stage::HalfOpen, &key, seen)?),
    };
    let reply = found.state.get() & flow::REPLY != 0;
    if headers.opens() && !reply && is_over(tables, stage, &key, &found) {
        // The client opens a new connection from a port it used before (RFC 9293, 3.6.1).
        forget(tables, stage, &key, &found);
        return None;
    }
    if reply && matches!(stage, Stage::HalfOpen) && ends & flow::RST == 0 {
        establish(tables, &key, &found);
    }
    Some(found)
}

/// What a new flow becomes, before its source port is known to be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening<A> {
    /// Source address after translation.
    pub source: A,
    /// Destination after translation.
    pub destination: A,
    /// Destination port after translation.
    pub destination_port: U16,
    /// The Service that asks for the translation; 0: none.
    pub service: u32,
    /// First and last port that may replace the client's own.
    pub ports: (u16, u16),
    /// Whether the client's own port is good as long as it is free. It is not where the source
    /// becomes the node's address: ports outside the range above belong to the node's sockets.
    pub any_port: bool,
}

/// Opens a flow: claims a source port and writes both records.
///
/// A function of its own in the kernel too: its records would not fit on one stack with its
/// callers'.
#[inline(never)]
pub fn open<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    opening: &Opening<A>,
) -> Result<Translation<A>, DropReason> {
    let now = U32::new(tables.now());
    let key = headers.flow();
    let echo_reply = headers.source_port == U16::ZERO;
    let (first, last) = opening.ports;
    let mut port = headers.source_port;
    if !opening.any_port && (port.get() < first || port.get() > last) {
        port = draw(tables, first, last);
    }
    let mut tries = 0;
    while tries < PORT_TRIES {
        let reply_key = FlowKey {
            source: opening.destination,
            destination: opening.source,
            // An echo request's identifier comes back in the reply's destination; it has no other.
            source_port: opening.destination_port,
            destination_port: port,
            protocol: headers.protocol,
            reserved: [0; 3],
        };
        let reply = Flow {
            source: headers.destination,
            destination: headers.source,
            source_port: headers.destination_port,
            destination_port: headers.source_port,
            last_seen: now,
            service: U32::new(opening.service),
            state: U32::new(flow::REPLY),
        };
        if tables
            .flow(Stage::Established, &reply_key, |_| {})
            .is_none()
            && tables.insert_flow(Stage::HalfOpen, &reply_key, &reply)
        {
            let translation = Translation {
                source: opening.source,
                destination: opening.destination,
                source_port: port,
                destination_port: opening.destination_port,
            };
            let original = Flow {
                source: translation.source,
                destination: translation.destination,
                source_port: translation.source_port,
                destination_port: translation.destination_port,
                last_seen: now,
                service: U32::new(opening.service),
                state: U32::new(0),
            };
            if tables.insert_flow(Stage::HalfOpen, &key, &original) {
                return Ok(translation);
            }
            // Another processor opened this very flow a moment ago: use its record.
            tables.remove_flow(Stage::HalfOpen, &reply_key);
            let winner = tables
                .flow(Stage::HalfOpen, &key, |_| {})
                .ok_or(DropReason::NoFlowEntry)?;
            return Ok(translation_of(&winner));
        }
        if echo_reply {
            break; // nothing to vary
        }
        port = draw(tables, first, last);
        tries += 1;
    }
    Err(DropReason::NoFlowEntry)
}

/// What a record makes of a packet.
#[inline(always)]
pub fn translation_of<A: Address>(flow: &Flow<A>) -> Translation<A> {
    Translation {
        source: flow.source,
        destination: flow.destination,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
    }
}

/// The key under which the other direction of a flow is recorded.
#[inline(always)]
pub fn opposite<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> FlowKey<A> {
    FlowKey {
        source: flow.destination,
        destination: flow.source,
        source_port: flow.destination_port,
        destination_port: flow.source_port,
        protocol: key.protocol,
        reserved: [0; 3],
    }
}

/// How long a flow may be idle before it is forgotten, in seconds. `states` is what both
/// directions have seen, taken together; `closed` whether each has seen its FIN, or one an RST.
pub fn idle_limit(protocol: u8, stage: Stage, closed: bool) -> u32 {
    match (protocol, stage) {
        (fairway_abi::protocol::TCP, _) if closed => 30,
        (fairway_abi::protocol::TCP, Stage::Established) => 24 * 60 * 60,
        (_, Stage::Established) => 120,
        (_, Stage::HalfOpen) => 30,
    }
}

#[inline(always)]
fn ends(tcp_flags: u8) -> u32 {
    let fin = if tcp_flags & tcp::FIN != 0 {
        flow::FIN
    } else {
        0
    };
    let rst = if tcp_flags & tcp::RST != 0 {
        flow::RST
    } else {
        0
    };
    fin | rst
}

/// Whether an open TCP flow has seen the end of at least one side.
#[inline(always)]
fn is_over<A: Address, T: Tables<A>>(
    tables: &T,
    stage: Stage,
    key: &FlowKey<A>,
    found: &Flow<A>,
) -> bool {
    if found.state.get() & (flow::FIN | flow::RST) != 0 {
        return true;
    }
    let other = tables.flow(stage, &opposite(key, found), |_| {});
    other.is_none_or(|other| other.state.get() & (flow::FIN | flow::RST) != 0)
}

#[inline(always)]
fn forget<A: Address, T: Tables<A>>(tables: &T, stage: Stage, key: &FlowKey<A>, found: &Flow<A>) {
    tables.remove_flow(stage, &opposite(key, found));
    tables.remove_flow(stage, key);
}

/// Moves both records of an answered flow to the table that never evicts. Without room there, the
/// flow stays where it is and lives as long as it is used.
#[inline(never)]
fn establish<A: Address, T: Tables<A>>(tables: &T, reply_key: &FlowKey<A>, reply: &Flow<A>) {
    let key = opposite(reply_key, reply);
    let Some(original) = tables.flow(Stage::HalfOpen, &key, |_| {}) else {
        return;
    };
    if !tables.insert_flow(Stage::Established, reply_key, reply) {
        return;
    }
    if !tables.insert_flow(Stage::Established, &key, &original) {
        tables.remove_flow(Stage::Established, reply_key);
        return;
    }
    tables.remove_flow(Stage::HalfOpen, reply_key);
    tables.remove_flow(Stage::HalfOpen, &key);
}

#[inline(always)]
fn draw<A: Address, T: Tables<A>>(tables: &T, first: u16, last: u16) -> U16 {
    let span = u32::from(last.wrapping_sub(first)) + 1;
    let offset = ((tables.random() & 0xffff) * span) >> 16;
    U16::new(first.wrapping_add(offset as u16))
}
