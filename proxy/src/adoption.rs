//! Connections that were open before Fairway's programs came, and that the kernel's connection tracking
//! has translated so far: kube-proxy's to Services, and those of pods that leave the cluster under the
//! node's address.
//!
//! Where our programs see a packet of such a connection, they have to go on as it began, so it gets a
//! flow's two records from what the kernel knows of it. That is done right before the programs are
//! attached for the first time, and once more right after, for what was opened meanwhile. Tracking then
//! sees none of their packets any more, and would remember for days what was true once: its entries go.
//! A later start does not look.
//!
//! | who opened it | what becomes of it |
//! |---|---|
//! | a pod of ours | a flow like others, translated as before |
//! | somebody else, to a frontend or to a pod of ours | the same |
//! | either, and the node itself answers | see below |
//! | a process of the node | nothing: the kernel goes on, as no program sees its packets before translation |
//!
//! Programs come to one device after the other, so that for a moment connection tracking sees one
//! direction of a connection alone. By default it leaves TCP packets untranslated that do not fit into
//! the windows it has seen, and their receiver resets the connection; it is told to tolerate them for
//! that long ([`Tolerance`]).
//!
//! What a program hands to the host's stack passes connection tracking, which would take a translated
//! packet for a new connection's, find its answers' addresses taken by the old one, and give it
//! another port. Until the programs are attached, the records of those change nothing, so that the
//! kernel goes on; then, one by one, packets are led nowhere, tracking's entry goes, and the flow is
//! ours: a packet that comes within these microseconds is lost and sent again, and none can reach
//! another endpoint.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_abi::{Endpoint, Flow, FlowKey, FrontendKey, V4, V6, flow, protocol, scope};
use fairway_compile::Family;
use fairway_netlink::conntrack::{self, Connection, Eraser, Phase};
use tracing::{info, warn};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::flows::{Adoption, FlowTables};
use crate::services::ServiceTables;
use crate::traces::Traces;

/// How long one look may take, however much the kernel tracks: nothing else is done meanwhile.
const MOST_TIME: Duration = Duration::from_secs(20);
/// How often it is told how far a look is.
const PROGRESS: Duration = Duration::from_secs(2);

/// Whose addresses are whose.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// Of pods of this node.
    pub(crate) pods: HashSet<IpAddr>,
    /// The node's own.
    pub(crate) node: HashSet<IpAddr>,
    /// Of others that are behind devices without our programs: pods that another plugin has connected.
    pub(crate) unseen: HashSet<IpAddr>,
}

/// The Services that a connection may be to.
pub(crate) trait Services<A> {
    /// The list that a frontend leads to.
    fn list_of(&self, frontend: &FrontendKey<A>) -> Option<u32>;
    /// Whether flows to an endpoint of a list may go on.
    fn serves(&self, list: u32, endpoint: &Endpoint<A>) -> bool;
}

/// A flow as its records will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Adopted<A> {
    /// The client's packets.
    pub(crate) key: FlowKey<A>,
    /// What becomes of them.
    pub(crate) original: Flow<A>,
    /// The answers.
    pub(crate) answers: FlowKey<A>,
    /// What becomes of those.
    pub(crate) reply: Flow<A>,
    /// An answer was seen.
    pub(crate) answered: bool,
    /// The node's own stack gets the packets.
    pub(crate) to_host: bool,
}

const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// While it lasts, connection tracking translates TCP packets outside the windows that it has seen.
pub(crate) struct Tolerance<'a>(&'a Traces);

impl<'a> Tolerance<'a> {
    /// Begins, where the kernel tracks connections at all.
    pub(crate) fn begin(traces: &'a Traces) -> Option<Self> {
        if conntrack::count() == 0 {
            return None;
        }
        if let Err(error) = traces.set(LIBERAL, "1") {
            warn!(
                error = format!("{error:#}"),
                "connection tracking may break connections while the programs are attached"
            );
        }
        Some(Self(traces))
    }

    /// Ends what an agent that was killed has begun.
    pub(crate) fn end(traces: &Traces) {
        if let Err(error) = traces.take_back(LIBERAL) {
            warn!(error = format!("{error:#}"), "cannot set {LIBERAL} back to what it was");
        }
    }
}

impl Drop for Tolerance<'_> {
    fn drop(&mut self) {
        Self::end(self.0);
    }
}

/// What the records of a connection are to be at a moment of the kernel's clock; `None`: nothing is to be
/// done about it.
pub(crate) fn adopt<A: Family>(
    connection: &Connection,
    around: &Surroundings,
    services: &impl Services<A>,
    now: u32,
) -> Option<Adopted<A>> {
    let (there, back) = (&connection.original, &connection.answers);
    if !connection.is_translated() || connection.phase == Phase::Closed {
        return None;
    }
    let from_pod = around.pods.contains(&there.source.ip());
    let from = there.source.ip();
    if !from_pod && (around.node.contains(&from) || around.unseen.contains(&from)) {
        return None;
    }
    let key = FlowKey {
        source: A::of(there.source.ip())?,
        destination: A::of(there.destination.ip())?,
        source_port: U16::new(there.source.port()),
        destination_port: U16::new(there.destination.port()),
        protocol: connection.protocol,
        reserved: [0; 3],
    };
    let answers = FlowKey {
        source: A::of(back.source.ip())?,
        destination: A::of(back.destination.ip())?,
        source_port: U16::new(back.source.port()),
        destination_port: U16::new(back.destination.port()),
        ..key
    };
    let list = services.list_of(&FrontendKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol,
        scope: if from_pod { scope::INTERNAL } else { scope::EXTERNAL },
    });
    if !from_pod && list.is_none() && !around.pods.contains(&back.source.ip()) {
        return None;
    }
    let endpoint =
        Endpoint { address: answers.source, port: answers.source_port, reserved: [0; 2] };
    let led = (key.destination, key.destination_port) != (endpoint.address, endpoint.port);
    let serves = list.is_some_and(|list| services.serves(list, &endpoint));
    // A connection of TCP or SCTP stays with its endpoint until one of them ends it.
    if connection.protocol == protocol::UDP && led && !serves {
        return None;
    }
    let closing = if connection.phase == Phase::Closing { flow::FIN } else { 0 };
    let record = |becomes: FlowKey<A>, state| Flow {
        source: becomes.source,
        destination: becomes.destination,
        source_port: becomes.source_port,
        destination_port: becomes.destination_port,
        last_seen: U32::new(now),
        service: U32::new(list.filter(|_| led).unwrap_or_default()),
        state: U32::new(state | closing),
    };
    Some(Adopted {
        key,
        original: record(reverse(&answers), 0),
        answers,
        reply: record(reverse(&key), flow::REPLY),
        answered: connection.answered,
        to_host: around.node.contains(&back.source.ip()),
    })
}

impl<A: Family> Adopted<A> {
    /// The same flow while the kernel still translates it.
    pub(crate) fn untouched(&self) -> Self {
        let Self { key, original, reply, .. } = *self;
        let back = reverse(&key);
        Self {
            original: becomes(original, &key),
            answers: back,
            reply: becomes(reply, &back),
            ..*self
        }
    }

    /// What the client's packets become so that nobody gets them: nothing listens on port 0.
    pub(crate) fn nowhere(&self) -> Flow<A> {
        Flow { destination_port: U16::ZERO, ..becomes(self.original, &self.key) }
    }
}

fn becomes<A: Family>(flow: Flow<A>, key: &FlowKey<A>) -> Flow<A> {
    Flow {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        ..flow
    }
}

fn reverse<A: Family>(key: &FlowKey<A>) -> FlowKey<A> {
    FlowKey {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        ..*key
    }
}

/// The tables of one family, as far as they are needed.
pub(crate) struct Tables<'a, A: Family> {
    pub(crate) flows: &'a mut FlowTables<A>,
    pub(crate) services: &'a ServiceTables<A>,
}

/// What a look at the kernel's connections came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Services that processes of the node are connected to by the kernel's translation.
    pub(crate) own: BTreeSet<IpAddr>,
    read: u64,
    adopted: u64,
    full: u64,
}

/// Which of the two looks it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// No program of ours sees a packet yet.
    Before,
    /// All do.
    After,
}

/// Adopts what the kernel tracks in the calling thread's network namespace.
pub(crate) fn look(
    mut v4: Tables<'_, V4>,
    mut v6: Tables<'_, V6>,
    around: &Surroundings,
    now: u32,
    moment: Moment,
) -> Result<Found> {
    let tracked = conntrack::count();
    let mut found = Found::default();
    if tracked == 0 {
        return Ok(found);
    }
    let (start, mut told) = (Instant::now(), Instant::now());
    // What tracking is to forget once its list is read.
    let (mut over4, mut over6) = (Vec::new(), Vec::new());
    let mut outcome = Ok(());
    conntrack::connections(|connection| {
        found.read += 1;
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            info!(read = found.read, of = tracked, "adopting connections that the kernel tracks");
        }
        let place = (around, now, moment);
        let taken = if connection.original.source.is_ipv4() {
            v4.take(&connection, place, &mut found, &mut over4)
        } else {
            v6.take(&connection, place, &mut found, &mut over6)
        };
        let late = start.elapsed() > MOST_TIME;
        if late {
            warn!(
                read = found.read,
                of = tracked,
                "the kernel tracks more than can be adopted in time"
            );
        }
        outcome = taken;
        if outcome.is_err() || late { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    outcome?;
    let eraser = Eraser::open()?;
    let ended = v4.take_over(&over4, &eraser);
    v6.take_over(&over6, &eraser).and(ended)?;
    if found.adopted > 0 {
        let (adopted, seconds) = (found.adopted, start.elapsed().as_secs_f32());
        info!(adopted, of = tracked, seconds, "adopted connections that the kernel has translated");
    }
    if found.full > 0 {
        let left = found.full;
        warn!(left, "the table of flows has no room for more connections (--capacity flows=...)");
    }
    Ok(found)
}

/// The Services that processes of the node are still connected to by the kernel's translation.
pub(crate) fn own_connections(
    v4: &ServiceTables<V4>,
    v6: &ServiceTables<V6>,
    around: &Surroundings,
) -> Result<BTreeSet<IpAddr>> {
    let (start, mut own) = (Instant::now(), BTreeSet::new());
    if conntrack::count() > 0 {
        conntrack::connections(|connection| {
            let is_v4 = connection.original.source.is_ipv4();
            own.extend(if is_v4 {
                v4.own(&connection, around)
            } else {
                v6.own(&connection, around)
            });
            let late = start.elapsed() > MOST_TIME;
            if late { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
    }
    Ok(own)
}

impl<A: Family> ServiceTables<A> {
    /// The Service's address, if a process of the node reaches a Service by the kernel's translation.
    fn own(&self, connection: &Connection, around: &Surroundings) -> Option<IpAddr> {
        let (from, to) = (connection.original.source, connection.original.destination);
        let by_host = connection.phase == Phase::Open
            && around.node.contains(&from.ip())
            && (to != connection.answers.source);
        let service = || {
            let address = A::of(to.ip());
            address.is_some_and(|ip| self.leads(ip, U16::new(to.port()), connection.protocol))
        };
        (by_host && service()).then_some(to.ip())
    }
}

impl<A: Family + std::hash::Hash> Tables<'_, A> {
    fn take(
        &mut self,
        connection: &Connection,
        (around, now, moment): (&Surroundings, u32, Moment),
        found: &mut Found,
        over: &mut Vec<(Connection, Adopted<A>)>,
    ) -> Result<()> {
        found.own.extend(self.services.own(connection, around));
        let Some(adopted) = adopt(connection, around, self.services, now) else { return Ok(()) };
        let as_it_is = if adopted.to_host { adopted.untouched() } else { adopted };
        match self.flows.go_on_with(&as_it_is)? {
            Adoption::Done => found.adopted += 1,
            Adoption::Known => {}
            Adoption::Full => found.full += 1,
        }
        let ours = moment == Moment::After && self.flows.translates(&as_it_is)?;
        over.extend(ours.then_some((*connection, adopted)));
        Ok(())
    }

    fn take_over(&mut self, over: &[(Connection, Adopted<A>)], eraser: &Eraser) -> Result<()> {
        let mut outcome = Ok(());
        for (connection, adopted) in over {
            let forget = || {
                let forgotten = eraser.forget(connection);
                forgotten.context("end the kernel's translation of a connection")
            };
            let taken = if adopted.to_host {
                self.flows.take_over(adopted, forget)
            } else {
                forget().map(drop)
            };
            // One that the kernel keeps to itself is no reason to leave it the others.
            outcome = outcome.and(taken);
        }
        outcome
    }
}

impl<A: Family> Services<A> for ServiceTables<A> {
    fn list_of(&self, frontend: &FrontendKey<A>) -> Option<u32> {
        ServiceTables::list_of(self, frontend)
    }

    fn serves(&self, list: u32, endpoint: &Endpoint<A>) -> bool {
        ServiceTables::serves(self, list, endpoint)
    }
}

#[cfg(test)]
mod tests {
    use fairway_netlink::conntrack::Ends;

    use super::*;

    const POD: &str = "10.244.1.2:40000";
    const OTHER_POD: &str = "10.244.1.3:8080";
    const REMOTE_POD: &str = "10.244.2.2:8080";
    const OUTSIDE: &str = "203.0.113.9:40000";
    const SERVICE: &str = "10.96.0.1:80";
    const NODE_PORT: &str = "192.0.2.1:30080";
    const MASQUERADED: &str = "192.0.2.1:50000";
    const HOST: &str = "192.0.2.1:6443";

    /// Service number 7 at the address and, from outside, the node port; its endpoints are these.
    struct Web(Vec<&'static str>);

    impl Services<V4> for Web {
        fn list_of(&self, frontend: &FrontendKey<V4>) -> Option<u32> {
            let address = format!("{}:{}", frontend.address.to_ip(), frontend.port);
            let known =
                address == SERVICE || address == NODE_PORT && frontend.scope == scope::EXTERNAL;
            known.then_some(7)
        }

        fn serves(&self, list: u32, endpoint: &Endpoint<V4>) -> bool {
            let address = format!("{}:{}", endpoint.address.to_ip(), endpoint.port);
            list == 7 && self.0.contains(&&*address)
        }
    }

    fn around() -> Surroundings {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an IP")).collect();
        Surroundings {
            pods: all(&["10.244.1.2", "10.244.1.3"]),
            node: all(&["192.0.2.1", "10.244.1.1"]),
            unseen: all(&["10.88.0.2"]),
        }
    }

    /// A TCP connection from, to; translated to, answered to.
    fn connection([from, to, translated, as_from]: [&str; 4]) -> Connection {
        let ends = |source: &str, destination: &str| Ends {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        };
        Connection::new(protocol::TCP, ends(from, to), ends(translated, as_from), true, Phase::Open)
    }

    fn adopted(connection: &Connection) -> Option<Adopted<V4>> {
        adopt(connection, &around(), &Web(vec![OTHER_POD, REMOTE_POD]), 5)
    }

    /// `from -> to = from -> to` of both records, and the Service's number.
    fn shown(adopted: &Adopted<V4>) -> String {
        let key = |key: &FlowKey<V4>| {
            let (from, to) = (key.source.to_ip(), key.destination.to_ip());
            format!("{from}:{} -> {to}:{}", key.source_port, key.destination_port)
        };
        let flow = |flow: &Flow<V4>| key(&becomes_key(flow));
        format!(
            "{} = {}; {} = {}; {}",
            key(&adopted.key),
            flow(&adopted.original),
            key(&adopted.answers),
            flow(&adopted.reply),
            adopted.original.service
        )
    }

    fn becomes_key(flow: &Flow<V4>) -> FlowKey<V4> {
        FlowKey {
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            protocol: 0,
            reserved: [0; 3],
        }
    }

    #[test]
    fn each_kind_of_connection_goes_on_as_it_began() {
        for (what, connection_of, expected) in [
            (
                "a pod to a ClusterIP",
                [POD, SERVICE, REMOTE_POD, POD],
                "10.244.1.2:40000 -> 10.96.0.1:80 = 10.244.1.2:40000 -> 10.244.2.2:8080; \
                 10.244.2.2:8080 -> 10.244.1.2:40000 = 10.96.0.1:80 -> 10.244.1.2:40000; 7",
            ),
            (
                "somebody outside to a node port, masqueraded",
                [OUTSIDE, NODE_PORT, REMOTE_POD, MASQUERADED],
                "203.0.113.9:40000 -> 192.0.2.1:30080 = 192.0.2.1:50000 -> 10.244.2.2:8080; \
                 10.244.2.2:8080 -> 192.0.2.1:50000 = 192.0.2.1:30080 -> 203.0.113.9:40000; 7",
            ),
            (
                "and not masqueraded",
                [OUTSIDE, NODE_PORT, OTHER_POD, OUTSIDE],
                "203.0.113.9:40000 -> 192.0.2.1:30080 = 203.0.113.9:40000 -> 10.244.1.3:8080; \
                 10.244.1.3:8080 -> 203.0.113.9:40000 = 192.0.2.1:30080 -> 203.0.113.9:40000; 7",
            ),
            (
                "a pod to the outside, masqueraded",
                [POD, OUTSIDE, OUTSIDE, MASQUERADED],
                "10.244.1.2:40000 -> 203.0.113.9:40000 = 192.0.2.1:50000 -> 203.0.113.9:40000; \
                 203.0.113.9:40000 -> 192.0.2.1:50000 = 203.0.113.9:40000 -> 10.244.1.2:40000; 0",
            ),
        ] {
            let adopted = adopted(&connection(connection_of)).expect(what);
            assert_eq!(shown(&adopted), expected, "{what}");
            assert!(adopted.answered && !adopted.to_host, "{what}");
            assert_eq!(adopted.original.last_seen.get(), 5);
            assert_eq!((adopted.original.state.get(), adopted.reply.state.get()), (0, flow::REPLY));
        }
    }

    #[test]
    fn what_no_program_of_ours_sees_is_left_to_the_kernel() {
        for (what, of) in [
            ("a process of the node", [HOST, SERVICE, REMOTE_POD, MASQUERADED]),
            ("a pod without our programs", ["10.88.0.2:40000", SERVICE, REMOTE_POD, MASQUERADED]),
            ("what is not translated", [POD, REMOTE_POD, REMOTE_POD, POD]),
            ("a port of somebody else's", [OUTSIDE, "192.0.2.1:8080", "172.17.0.2:80", OUTSIDE]),
        ] {
            assert_eq!(adopted(&connection(of)), None, "{what}");
        }
        let of = [POD, SERVICE, REMOTE_POD, POD];
        let reset = Connection { phase: Phase::Closed, ..connection(of) };
        assert_eq!(adopted(&reset), None);
        let closing = Connection { phase: Phase::Closing, ..connection(of) };
        let closing = adopted(&closing).expect("its last packets");
        assert_eq!(closing.original.state.get(), flow::FIN);
    }

    #[test]
    fn only_datagrams_are_taken_from_an_endpoint_that_is_gone() {
        let gone = connection([POD, SERVICE, "10.244.9.9:8080", POD]);
        assert_eq!(adopted(&gone).map(|flow| flow.original.service.get()), Some(7));
        let udp = |of| Connection { protocol: protocol::UDP, ..connection(of) };
        assert_eq!(adopted(&udp([POD, SERVICE, "10.244.9.9:8080", POD])), None);
        assert!(adopted(&udp([POD, SERVICE, REMOTE_POD, POD])).is_some());
        assert!(adopted(&udp([POD, OUTSIDE, OUTSIDE, MASQUERADED])).is_some());
        // The Service itself is gone.
        let of = [POD, "10.96.0.9:80", REMOTE_POD, POD];
        assert_eq!(adopted(&connection(of)).map(|flow| flow.original.service.get()), Some(0));
        assert_eq!(adopted(&udp(of)), None);
    }

    #[test]
    fn what_the_node_answers_stays_the_kernels_until_its_entry_goes() {
        let adopted = adopted(&connection([POD, SERVICE, HOST, POD])).expect("a flow");
        assert!(adopted.to_host);
        assert_eq!(
            shown(&adopted.untouched()),
            "10.244.1.2:40000 -> 10.96.0.1:80 = 10.244.1.2:40000 -> 10.96.0.1:80; \
             10.96.0.1:80 -> 10.244.1.2:40000 = 10.96.0.1:80 -> 10.244.1.2:40000; 7"
        );
        assert_eq!(adopted.nowhere().destination_port.get(), 0);
    }
}
