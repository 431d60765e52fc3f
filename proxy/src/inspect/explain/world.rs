//! The kernel's tables in memory, as far as one packet can tell, and the packet.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use fairway_abi::{
    AffinityKey, Frontend, FrontendKey, MemberKey, Ruling, RulingKey, Subject, config, frontend,
    protocol,
};
use fairway_compile::Family;
use fairway_core::Ip;
use fairway_core::memory::{Frame, Lru, Memory};
use fairway_core::packet::tcp;
use fairway_core::service::load_key;
use fairway_core::tables::{Stage, Tables};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use super::super::clock::Now;
use super::super::maps::{self, Maps, interfaces, name, namespaces};
use crate::dataplane::Pinned;

/// Room for all records that a table of flows may have.
const ROOM: usize = 1 << 20;

/// Reads everything that does not depend on the packet. What sockets of the host have is the kernel's
/// alone to know.
pub(super) fn tables<A: Family + Ip>(pinned: &Pinned, now: Now) -> Result<Memory<A>> {
    let maps = Maps::<A>::open(pinned)?;
    let ranges = maps.source_ranges()?.into_iter();
    Ok(Memory {
        config: maps::config(pinned)?,
        frontends: maps.frontends()?.into_iter().collect(),
        source_ranges: ranges.map(|(port, length, at)| (port, length.into(), at)).collect(),
        namespaces: namespaces(pinned)?,
        pod_range: maps.pod_range()?,
        pods: maps.pods()?,
        interfaces: interfaces(pinned)?,
        routes: maps.routes()?,
        peers: maps.peers()?,
        half_open: RefCell::new(Lru::new(ROOM)),
        room: ROOM,
        now: Cell::new(now.jiffies),
        seconds: Cell::new(now.seconds),
        // An agent before this one's version had no such table.
        resolver: Cell::new(
            pinned
                .single::<u64>("resolver")
                .is_ok_and(|table| table.get().is_ok_and(crate::dns::is_later)),
        ),
        // Nor this one.
        zone: pinned.single("zone").and_then(|table| table.get()).unwrap_or_default(),
        ..Memory::default()
    })
}

/// Adds what is known of a packet's Service and flow: the endpoints of every frontend at its
/// destination, what these clients are known to stay with, and the flows of all of them.
pub(super) fn add<A: Family + Ip>(
    memory: &mut Memory<A>,
    pinned: &Pinned,
    destination: A,
    clients: &[A],
) -> Result<()> {
    let maps = Maps::<A>::open(pinned)?;
    let here = memory.frontends.iter().filter(|(key, _)| key.address == destination);
    let lists: BTreeMap<u32, (Frontend, u8)> =
        here.map(|(key, record)| (record.service, (*record, key.protocol))).collect();
    let mut concerned: BTreeSet<A> = clients.iter().copied().chain([destination]).collect();
    for (service, (frontend, protocol)) in &lists {
        for (key, endpoint) in maps.slots(frontend)? {
            concerned.insert(endpoint.address);
            memory.endpoints.insert(key, endpoint);
            let member = MemberKey { service: U32::new(*service), endpoint };
            if frontend.affinity != 0 && maps.is_member(&member)? {
                memory.members.insert(member);
            }
            if frontend.flags & frontend::LEAST != 0 {
                let key = load_key(&endpoint, *protocol);
                memory.loads.borrow_mut().insert(key, maps.load(&key)?);
            }
            if frontend.flags & (frontend::GROWING | frontend::WEIGHED) != 0
                && let Some(share) = maps.share(&member)?
            {
                memory.shares.insert(member, share);
            }
        }
        for client in clients {
            let key = AffinityKey { port: U32::new(frontend.port), client: *client };
            if frontend.affinity != 0
                && let Some(known) = maps.affinity(frontend.port, *client)?
            {
                // It may stay with an endpoint that no slot has.
                let member = MemberKey { service: U32::new(*service), endpoint: known.endpoint };
                if maps.is_member(&member)? {
                    memory.members.insert(member);
                }
                memory.affinity.borrow_mut().insert(key, known);
            }
        }
        if let Some(turns) = maps.turns(*service)? {
            memory.turns.borrow_mut().insert(*service, turns);
        }
    }
    for stage in [Stage::HalfOpen, Stage::Established] {
        let read = maps.flows(stage, |key, flow| {
            [key.source, key.destination, flow.source, flow.destination]
                .iter()
                .any(|address| concerned.contains(address))
        })?;
        for (key, flow) in read {
            match stage {
                Stage::HalfOpen => drop(memory.half_open.borrow_mut().insert(key, flow)),
                Stage::Established => drop(memory.established.borrow_mut().insert(key, flow)),
            }
        }
    }
    Ok(())
}

/// Adds what policies say of all that was added, as clients or endpoints at any of these ports.
pub(super) fn add_policies<A: Family + Ip>(
    memory: &mut Memory<A>,
    pinned: &Pinned,
    clients: &[A],
    (destination, port, protocol): (A, u16, u8),
) -> Result<()> {
    if memory.config.flags & config::POLICED == 0 {
        return Ok(());
    }
    let endpoints: Vec<_> = memory.endpoints.values().copied().collect();
    let addresses: BTreeSet<A> = clients
        .iter()
        .copied()
        .chain([destination, A::RESOLVER])
        .chain(endpoints.iter().map(|endpoint| endpoint.address))
        .collect();
    let ports = endpoints.iter().map(|endpoint| endpoint.port.get());
    let ports: BTreeSet<u16> = ports.chain([port]).collect();
    let subjects = pinned.table::<A, Subject>(&name::<A>("subjects"))?;
    let identities = pinned.table::<A, u32>(&name::<A>("identities"))?;
    let blocks = pinned.prefixes::<A, u32>(&name::<A>("blocks"))?.entries()?.into_iter();
    memory.blocks = blocks.map(|((length, at), i)| (at, length.into(), i)).collect();
    for address in &addresses {
        if let Some(identity) = identities.get(address)? {
            memory.identities.insert(*address, identity);
        }
        if let Some(subject) = subjects.get(address)? {
            memory.subjects.insert(*address, subject);
        }
    }
    let rulings = pinned.table::<RulingKey, Ruling>("rulings")?;
    let sets = memory.subjects.values().flat_map(|subject| [subject.ingress, subject.egress]);
    let sets: BTreeSet<u32> = sets.filter(|set| *set != 0).collect();
    let identities = addresses.iter().map(|address| memory.identity(address));
    let identities: BTreeSet<u32> = identities.chain([0]).collect();
    for (set, identity) in
        sets.iter().flat_map(|set| identities.iter().map(move |identity| (*set, *identity)))
    {
        let (set, identity) = (U32::new(set), U32::new(identity));
        let first = RulingKey { set, identity, protocol: 0, length: 0, port: U16::ZERO };
        let Some(ruling) = rulings.get(&first)? else { continue };
        memory.rulings.insert(first, ruling);
        let lengths = (0..=16_u8).filter(|length| ruling.lengths & 1 << length != 0);
        for (length, port) in
            lengths.flat_map(|length| ports.iter().map(move |port| (length, port)))
        {
            let mask = u16::MAX.checked_shl(16 - u32::from(length)).unwrap_or(0);
            let key = RulingKey { protocol, length, port: U16::new(port & mask), ..first };
            if let Some(ruling) = rulings.get(&key)? {
                memory.rulings.insert(key, ruling);
            }
        }
    }
    Ok(())
}

/// One end of a packet.
pub(super) type End<A> = (A, u16);

/// A packet, as short as its protocol lets it be; of TCP the first one of a connection, or one in its
/// midst.
pub(super) fn packet<A: Family + Ip>(
    protocol: u8,
    source: End<A>,
    destination: End<A>,
    first: bool,
) -> Frame {
    const HOP_LIMIT: u8 = 64;
    let ports = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    let rest: Vec<u8> = match protocol {
        protocol::TCP => {
            let flags = if first { tcp::SYN } else { tcp::ACK };
            [&[0; 8][..], &[5 << 4, flags], &[0; 6]].concat()
        }
        protocol::UDP => vec![0, 8, 0, 0],
        // A verification tag, a checksum, and no chunk.
        _ => vec![0; 8],
    };
    let length = u8::try_from(ports.len() + rest.len()).unwrap_or(u8::MAX);
    let addresses = [source.0.as_bytes(), destination.0.as_bytes()].concat();
    let header: Vec<u8> = if A::BITS == 32 {
        let fixed = [0x45, 0, 0, 20 + length, 0, 0, 0, 0, HOP_LIMIT, protocol, 0, 0];
        [&fixed[..], &addresses].concat()
    } else {
        [&[0x60, 0, 0, 0, 0, length, protocol, HOP_LIMIT][..], &addresses].concat()
    };
    let ethernet = [&[0; 12][..], &A::ETHERTYPE].concat();
    Frame::new([ethernet, header, ports, rest].concat())
}

/// The frontends that stand for one address.
pub(super) fn at_address<A: Family>(
    memory: &Memory<A>,
    address: A,
) -> impl Iterator<Item = (&FrontendKey<A>, &Frontend)> {
    memory.frontends.iter().filter(move |(key, _)| key.address == address)
}

#[cfg(test)]
mod tests {
    use fairway_core::packet::Ports;

    use super::*;

    #[test]
    fn packets_are_what_they_are_to_be() {
        fn check<A: Family + Ip>(source: A, destination: A) {
            for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                for first in [true, false] {
                    let frame = packet(number, (source, 40_000), (destination, 80), first);
                    let headers = A::parse(&frame).expect("a good packet");
                    assert_eq!((headers.source, headers.destination), (source, destination));
                    let ports = (headers.source_port.get(), headers.destination_port.get());
                    assert_eq!((ports, headers.ports), ((40_000, 80), Ports::Known));
                    assert_eq!(headers.protocol, number);
                    assert_eq!(headers.hop_limit, 64);
                    assert_eq!(headers.opens(), first && number == protocol::TCP);
                    assert_eq!(A::length(&frame), u32::try_from(frame.bytes.len() - 14).ok());
                }
            }
        }
        check([10, 0, 0, 1], [10, 0, 0, 2]);
        check([1; 16], [2; 16]);
    }
}
