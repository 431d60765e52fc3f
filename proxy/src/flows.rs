//! Housekeeping of flow records: what ended or fell silent is forgotten.
//!
//! The programs only ever add and mark; deciding that a flow is over needs both its records and
//! time, which is cheaper here.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Result;
use fairway_abi::{Endpoint, Flow, FlowKey, LoadKey, flow, protocol};
use fairway_compile::Family;
use fairway_core::flow::{idle_limit, opposite_of, translation_of};
use fairway_core::tables::Stage;

use crate::adoption::Adopted;
use crate::dataplane::{Added, Dataplane, Table};
use crate::options::Options;
use crate::services::ServiceTables;

/// Flow tables of one family.
pub(crate) struct FlowTables<A: Family> {
    half_open: Table<FlowKey<A>, Flow<A>>,
    established: Table<FlowKey<A>, Flow<A>>,
}

/// What became of a flow that was to be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adoption {
    /// It has its records.
    Done,
    /// Its packets or its answers have a record of their own.
    Known,
    /// There is no room for it.
    Full,
}

impl<A: Family + std::hash::Hash> FlowTables<A> {
    /// Takes the tables over. `suffix` is `4` or `6`.
    pub(crate) fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        Ok(Self {
            half_open: dataplane.table(&format!("half_open{suffix}"))?,
            established: dataplane.table(&format!("flows{suffix}"))?,
        })
    }

    /// Forgets flows that ended or were idle for too long; answers how many are left. `age` tells a
    /// time stamp's age in seconds.
    pub(crate) fn expire(&mut self, limits: IdleLimits, age: impl Fn(u32) -> u32) -> Result<usize> {
        let half_open = expire(&mut self.half_open, Stage::HalfOpen, limits, &age)?;
        Ok(half_open + expire(&mut self.established, Stage::Established, limits, &age)?)
    }

    /// Writes the records of a flow that others have translated so far, the answers' first as always. One
    /// that a program has just opened from a packet in the midst of it is wrong, if it differs.
    pub(crate) fn go_on_with(&mut self, flow: &Adopted<A>) -> Result<Adoption> {
        if let Some(guess) = self.half_open.get(&flow.key)? {
            if translation_of(&guess) == translation_of(&flow.original) {
                return Ok(Adoption::Known);
            }
            self.half_open.remove(&flow.key)?;
            self.half_open.remove(&opposite_of(&flow.key, &guess))?;
        }
        let table = if flow.answered { &mut self.established } else { &mut self.half_open };
        match table.add(&flow.answers, &flow.reply)? {
            Added::Yes => {}
            Added::Known => return Ok(Adoption::Known),
            Added::Full => return Ok(Adoption::Full),
        }
        let added = table.add(&flow.key, &flow.original)?;
        if added != Added::Yes {
            table.remove(&flow.answers)?;
        }
        Ok(match added {
            Added::Yes => Adoption::Done,
            Added::Known => Adoption::Known,
            Added::Full => Adoption::Full,
        })
    }

    /// Writes the records of a flow that has none, the answers' first as always; false if a record is in its
    /// place, or there is no room.
    pub(crate) fn begin(&mut self, flow: &Adopted<A>) -> Result<bool> {
        for key in [&flow.key, &flow.answers] {
            if self.half_open.get(key)?.is_some() || self.established.get(key)?.is_some() {
                return Ok(false);
            }
        }
        let table = if flow.answered { &mut self.established } else { &mut self.half_open };
        if table.add(&flow.answers, &flow.reply)? != Added::Yes {
            return Ok(false);
        }
        if table.add(&flow.key, &flow.original)? != Added::Yes {
            table.remove(&flow.answers)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether a flow's packets become what it says.
    pub(crate) fn translates(&self, flow: &Adopted<A>) -> Result<bool> {
        let found = match self.established.get(&flow.key)? {
            Some(found) => Some(found),
            None => self.half_open.get(&flow.key)?,
        };
        Ok(found.is_some_and(|found| translation_of(&found) == translation_of(&flow.original)))
    }

    /// Gives a flow of the node's own stack, which the kernel still translates, its records; `forget` ends
    /// the kernel's part. Nobody gets the client's packets meanwhile.
    pub(crate) fn take_over(
        &mut self,
        flow: &Adopted<A>,
        forget: impl FnOnce() -> Result<bool>,
    ) -> Result<()> {
        let table = if flow.answered { &mut self.established } else { &mut self.half_open };
        table.put(&flow.answers, &flow.reply)?;
        table.put(&flow.key, &flow.nowhere())?;
        if let Err(error) = forget() {
            // The kernel goes on.
            table.put(&flow.key, &flow.untouched().original)?;
            table.remove(&flow.answers)?;
            return Err(error);
        }
        table.put(&flow.key, &flow.original)?;
        table.remove(&flow.untouched().answers)
    }

    /// Shows the endpoint of every flow to a Service that is not closed, once for each.
    pub(crate) fn open(&self, mut see: impl FnMut(LoadKey<A>)) -> Result<()> {
        let mut records: HashMap<FlowKey<A>, Flow<A>> =
            self.half_open.entries()?.into_iter().collect();
        records.extend(self.established.entries()?);
        for (key, flow) in &records {
            let state = flow.state.get();
            if flow.service.get() == 0 || state & flow::REPLY != 0 {
                continue;
            }
            let other = records.get(&opposite_of(key, flow));
            let other = other.map_or(0, |other| other.state.get());
            let both = state | other;
            // What the endpoint says passes elsewhere: that its client has ended it has to do.
            let ended = both & flow::DELEGATED != 0 && both & flow::FIN != 0;
            if both & flow::RST == 0 && state & other & flow::FIN == 0 && !ended {
                let (address, port) = (flow.destination, flow.destination_port);
                see(LoadKey { address, port, protocol: key.protocol, reserved: 0 });
            }
        }
        Ok(())
    }

    /// Forgets every flow of a pod that is gone: its address may soon be another's.
    pub(crate) fn forget_address(&mut self, address: A) -> Result<()> {
        let of_pod = |key: &FlowKey<A>, flow: &Flow<A>| {
            [key.source, key.destination, flow.source, flow.destination].contains(&address)
        };
        forget(&mut self.half_open, of_pod)?;
        forget(&mut self.established, of_pod)
    }

    /// Forgets flows that a new one would not be like, so that the client's next packet finds its
    /// way anew: to endpoints that no longer serve, and past a Service that was not known when they
    /// began. That holds for UDP, and for TCP connections nobody has answered yet; an open connection
    /// stays with its endpoint until one of them ends it.
    pub(crate) fn forget_outdated(&mut self, services: &ServiceTables<A>) -> Result<()> {
        let outdated = |key: &FlowKey<A>, flow: &Flow<A>| {
            let state = flow.state.get();
            let reply = state & flow::REPLY != 0;
            // What is behind it, only the node knows that the client asked.
            if state & (flow::BY_PEER | flow::ON_BEHALF) != 0 {
                return false;
            }
            let wanted = (key.destination, key.destination_port);
            let got = (flow.destination, flow.destination_port);
            let (wanted, got) = if reply {
                ((flow.source, flow.source_port), (key.source, key.source_port))
            } else {
                (wanted, got)
            };
            match flow.service.get() {
                0 => services.leads(wanted.0, wanted.1, key.protocol),
                service => {
                    let endpoint = Endpoint { address: got.0, port: got.1, reserved: [0; 2] };
                    !services.serves(service, &endpoint)
                }
            }
        };
        forget(&mut self.half_open, outdated)?;
        forget(&mut self.established, |key, flow| {
            key.protocol == protocol::UDP && outdated(key, flow)
        })
    }
}

/// The clock of flow records begins anew some weeks after it began.
const LONGEST: u32 = 14 * 24 * 60 * 60;

/// For how many seconds a connection that its client has ended may be idle if what the endpoint says of it
/// passes elsewhere: as long as TCP itself waits (`FIN_WAIT` of `nf_conntrack`).
const HALF_SEEN: u32 = 120;

/// For how many seconds such a connection may be idle while its client has not ended it: the endpoint may
/// have reset it. Longer than it takes Linux to find out whether the other end is there
/// (`tcp_keepalive_time` and nine probes of `tcp_keepalive_intvl`), to which a client says something, too.
const UNHEARD: u32 = 7_200 + 9 * 75 + 125;

/// How long the server of a closed connection may take packets from its port for that connection's, in
/// seconds, and a little more: Linux remembers one for 60.
const TIME_WAIT: u32 = 65;

/// How long flows may be idle, in seconds, where somebody wants it otherwise than [`idle_limit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdleLimits {
    tcp: Option<u32>,
    udp: Option<u32>,
    udp_stream: Option<u32>,
}

impl IdleLimits {
    /// What is asked for. Nothing at all, as for kube-proxy, is as if it were not asked for.
    pub(crate) fn new(options: &Options) -> Self {
        let seconds = |time: Option<Duration>| {
            let time = time.filter(|time| !time.is_zero())?;
            Some(u32::try_from(time.as_secs()).unwrap_or(u32::MAX).clamp(1, LONGEST))
        };
        Self {
            tcp: seconds(options.tcp_idle),
            udp: seconds(options.udp_idle),
            udp_stream: seconds(options.udp_stream_idle),
        }
    }

    fn of(self, protocol: u8, stage: Stage, closed: bool) -> u32 {
        let wanted = match (protocol, stage) {
            (protocol::TCP, Stage::Established) if !closed => self.tcp,
            (protocol::UDP, Stage::HalfOpen) => self.udp,
            (protocol::UDP, Stage::Established) => self.udp_stream,
            _ => None,
        };
        wanted.unwrap_or_else(|| idle_limit(protocol, stage, closed))
    }
}

/// Whether a TCP connection leaves under another address than its client's.
fn is_borrowed<A: Family>(key: &FlowKey<A>, record: &Flow<A>) -> bool {
    let [had, has] = match record.state.get() & flow::REPLY {
        0 => [key.source, record.source],
        _ => [record.destination, key.destination],
    };
    key.protocol == protocol::TCP && had != has
}

fn expire<A: Family>(
    table: &mut Table<FlowKey<A>, Flow<A>>,
    stage: Stage,
    limits: IdleLimits,
    age: &impl Fn(u32) -> u32,
) -> Result<usize> {
    let records: HashMap<FlowKey<A>, Flow<A>> = table.entries()?.into_iter().collect();
    let mut over = HashSet::new();
    for (key, record) in &records {
        let other_key = opposite_of(key, record);
        let other = records.get(&other_key);
        let idle = age(record.last_seen.get());
        let idle = other.map_or(idle, |other| idle.min(age(other.last_seen.get())));
        let state = record.state.get();
        let other_state = other.map_or(0, |other| other.state.get());
        let closed = (state | other_state) & flow::RST != 0
            || (state & other_state & flow::FIN != 0)
            // Half of a flow is of no use to anybody.
            || other.is_none();
        let answered = (state | other_state) & flow::ANSWERED != 0;
        let stage = if answered { Stage::Established } else { stage };
        let both = state | other_state;
        let usual = |closed| limits.of(key.protocol, stage, closed);
        let limit = match both & flow::DELEGATED != 0 && !closed {
            true if both & flow::FIN != 0 => usual(true).max(HALF_SEEN),
            true => usual(false).min(UNHEARD),
            // The port belongs to an address that others share, and is to stay free of them until then.
            false if closed && is_borrowed(key, record) => usual(true).max(TIME_WAIT),
            false => usual(closed),
        };
        if idle >= limit {
            over.insert(*key);
            over.insert(other_key);
        }
    }
    for key in &over {
        // A port may have been taken into use again since the table was read.
        let read = records.get(key).map(|record| record.last_seen);
        if table.get(key)?.map(|record| record.last_seen) == read {
            table.remove(key)?;
        }
    }
    Ok(records.keys().filter(|key| !over.contains(*key)).count() / 2)
}

fn forget<A: Family>(
    table: &mut Table<FlowKey<A>, Flow<A>>,
    matches: impl Fn(&FlowKey<A>, &Flow<A>) -> bool,
) -> Result<()> {
    for (key, flow) in table.entries()? {
        if matches(&key, &flow) {
            table.remove(&key)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
