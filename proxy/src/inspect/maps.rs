//! The pinned tables of one family, read as they are asked for.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use fairway_abi::{
    Affinity, AffinityKey, Config, Endpoint, EndpointKey, Flow, FlowKey, Frontend, FrontendKey,
    Interface, LoadKey, MemberKey, Namespace, Pod, PodRange, RangeKey, Route, Share, V6, frontend,
};
use fairway_compile::Family;
use fairway_core::service::{Burden, WHOLE, load_key, portion, strength};
use fairway_core::tables::Stage;
use ipnet::IpNet;
use zerocopy::native_endian::U32;

use super::odds::odds;
use crate::dataplane::{Pinned, Table};

/// The part of a [`RangeKey`]'s prefix that is not the range's.
const PORT_BITS: u8 = 32;

/// What holds for the whole node.
pub(crate) fn config(pinned: &Pinned) -> Result<Config> {
    pinned.single("config")?.get()
}

/// The pods' interfaces by index.
pub(crate) fn interfaces(pinned: &Pinned) -> Result<HashMap<u32, Interface>> {
    Ok(pinned.table("interfaces")?.entries()?.into_iter().collect())
}

/// Whose processes are in which network namespace.
pub(crate) fn namespaces(pinned: &Pinned) -> Result<HashMap<u64, Namespace>> {
    Ok(pinned.table("namespaces")?.entries()?.into_iter().collect())
}

/// The tables of one family.
pub(crate) struct Maps<'a, A: Family> {
    pinned: &'a Pinned,
    endpoints: Table<EndpointKey, Endpoint<A>>,
}

impl<'a, A: Family> Maps<'a, A> {
    pub(crate) fn open(pinned: &'a Pinned) -> Result<Self> {
        Ok(Self { endpoints: pinned.table(&name::<A>("endpoints"))?, pinned })
    }

    /// Every frontend.
    pub(crate) fn frontends(&self) -> Result<BTreeMap<FrontendKey<A>, Frontend>> {
        Ok(self.pinned.table(&name::<A>("frontends"))?.entries()?.into_iter().collect())
    }

    /// What is in the slots of a frontend's list, by slot; those that went while they were read are left
    /// out.
    pub(crate) fn slots(&self, frontend: &Frontend) -> Result<Vec<(EndpointKey, Endpoint<A>)>> {
        let Frontend { service, generation, endpoints, .. } = *frontend;
        let mut slots = Vec::new();
        for slot in 0..endpoints {
            let key = EndpointKey { service, generation, slot };
            slots.extend(self.endpoints.get(&key)?.map(|endpoint| (key, endpoint)));
        }
        Ok(slots)
    }

    /// Each endpoint of a list once, and how many slots it has.
    pub(crate) fn shares(&self, frontend: &Frontend) -> Result<BTreeMap<Endpoint<A>, u32>> {
        let mut shares = BTreeMap::new();
        for (_, endpoint) in self.slots(frontend)? {
            *shares.entry(endpoint).or_default() += 1;
        }
        Ok(shares)
    }

    /// The same; where endpoints start slowly, each slot counts for as many parts as have grown of it by
    /// that second, and where connections are counted, it is what [`odds`] says.
    pub(crate) fn parts(
        &self,
        frontend: &Frontend,
        protocol: u8,
        seconds: u32,
    ) -> Result<BTreeMap<Endpoint<A>, u32>> {
        let mut shares = self.shares(frontend)?;
        if frontend.flags & frontend::LEAST != 0 {
            let mut ends = Vec::new();
            for (endpoint, slots) in &shares {
                let key = MemberKey { service: U32::new(frontend.service), endpoint: *endpoint };
                let load = self.load(&load_key(endpoint, protocol))?;
                let strength = strength(self.share(&key)?, seconds);
                ends.push((*slots, Burden { load, strength }));
            }
            if let Some(odds) = odds(&ends) {
                shares.values_mut().zip(odds).for_each(|(slots, odds)| *slots = odds);
            }
        } else if frontend.flags & frontend::GROWING != 0 {
            for (endpoint, slots) in &mut shares {
                let key = MemberKey { service: U32::new(frontend.service), endpoint: *endpoint };
                let share = self.share(&key)?;
                *slots *= share.map_or(WHOLE, |share| portion(&share, seconds));
            }
        }
        Ok(shares)
    }

    /// What an endpoint of a list gets, where that is not its slots alone.
    pub(crate) fn share(&self, member: &MemberKey<A>) -> Result<Option<Share>> {
        let table: Table<MemberKey<A>, Share> = self.pinned.table(&name::<A>("shares"))?;
        table.get(member)
    }

    /// How many connections an endpoint has open, where that is counted.
    pub(crate) fn load(&self, key: &LoadKey<A>) -> Result<u32> {
        let table: Table<LoadKey<A>, u32> = self.pinned.table(&name::<A>("loads"))?;
        Ok(table.get(key)?.unwrap_or(0))
    }

    /// The source ranges of every port: its number, and a prefix's length and network.
    pub(crate) fn source_ranges(&self) -> Result<Vec<(u32, u8, A)>> {
        let entries: Vec<((u8, RangeKey<A>), u32)> =
            self.pinned.prefixes(&name::<A>("source_ranges"))?.entries()?;
        let ranges = entries.into_iter().filter_map(|((length, key), _)| {
            Some((key.port.get(), length.checked_sub(PORT_BITS)?, key.network))
        });
        let mut ranges: Vec<_> = ranges.collect();
        ranges.sort_unstable();
        Ok(ranges)
    }

    /// Whether an endpoint is in a list whose clients stay with theirs.
    pub(crate) fn is_member(&self, member: &MemberKey<A>) -> Result<bool> {
        let table: Table<MemberKey<A>, u32> = self.pinned.table(&name::<A>("members"))?;
        Ok(table.get(member)?.is_some())
    }

    /// The endpoint that a client stays with.
    pub(crate) fn affinity(&self, port: u32, client: A) -> Result<Option<Affinity<A>>> {
        let table: Table<AffinityKey<A>, Affinity<A>> =
            self.pinned.table(&name::<A>("affinity"))?;
        table.get(&AffinityKey { port: U32::new(port), client })
    }

    /// Turns taken of a list.
    pub(crate) fn turns(&self, service: u32) -> Result<Option<u32>> {
        self.pinned.table("turns")?.get(&service)
    }

    /// Where this node's pods are.
    pub(crate) fn pod_range(&self) -> Result<PodRange<A>> {
        self.pinned.single(&name::<A>("pod_range"))?.get()
    }

    /// This node's pods by address.
    pub(crate) fn pods(&self) -> Result<HashMap<A, Pod>> {
        Ok(self.pinned.table(&name::<A>("pods"))?.entries()?.into_iter().collect())
    }

    /// Every route: length and network of its prefix, and where it leads.
    pub(crate) fn routes(&self) -> Result<Vec<(u32, A, Route<A>)>> {
        let entries: Vec<((u8, A), Route<A>)> =
            self.pinned.prefixes(&name::<A>("routes"))?.entries()?;
        let routes = entries.into_iter();
        Ok(routes.map(|((length, network), route)| (length.into(), network, route)).collect())
    }

    /// The peers that may bring packets of clients from outside.
    pub(crate) fn peers(&self) -> Result<HashMap<V6, A>> {
        Ok(self.pinned.table(&name::<A>("peers"))?.entries()?.into_iter().collect())
    }

    /// The flow records of a table that `wanted` wants.
    pub(crate) fn flows(
        &self,
        stage: Stage,
        wanted: impl Fn(&FlowKey<A>, &Flow<A>) -> bool,
    ) -> Result<BTreeMap<FlowKey<A>, Flow<A>>> {
        let table: Table<FlowKey<A>, Flow<A>> = self.pinned.table(&flow_table::<A>(stage))?;
        let entries = table.entries()?.into_iter();
        Ok(entries.filter(|(key, flow)| wanted(key, flow)).collect())
    }

    /// A table of flow records, to be changed.
    pub(crate) fn flows_to_change(&self, stage: Stage) -> Result<Table<FlowKey<A>, Flow<A>>> {
        self.pinned.table_to_change(&flow_table::<A>(stage))
    }
}

/// A table's name with the family's number.
pub(crate) fn name<A: Family>(table: &str) -> String {
    format!("{table}{}", if A::BITS == 32 { 4 } else { 6 })
}

/// A prefix as it is written; `None` if it is longer than an address.
pub(crate) fn prefix<A: Family>(length: u8, network: A) -> Option<IpNet> {
    IpNet::new(network.to_ip(), length).ok()
}

fn flow_table<A: Family>(stage: Stage) -> String {
    name::<A>(match stage {
        Stage::HalfOpen => "half_open",
        Stage::Established => "flows",
    })
}
