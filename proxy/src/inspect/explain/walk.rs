//! A packet's way, told step by step.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Result, anyhow, bail};
use fairway_abi::{
    AffinityKey, DropReason, Endpoint, EndpointKey, Frontend, FrontendKey, MemberKey, Subject, V6,
    config, flow, frontend, protocol, route, ruling, scope,
};
use fairway_compile::Family;
use fairway_core::flow::{Scratch, opposite};
use fairway_core::memory::Memory;
use fairway_core::path::{self, Todo, Verdict, any_port};
use fairway_core::policy;
use fairway_core::query;
use fairway_core::service::{self, Burden, Request, WHOLE, flow_bits, load_key, strength};
use fairway_core::socket::{self, Outcome, SocketAddress};
use fairway_core::tables::{Stage, Tables};
use fairway_core::{Ip, packet::Translation};
use fairway_model::ObjectName;
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use super::super::clock::Now;
use super::super::known::Known;
use super::super::maps::prefix;
use super::super::odds::odds;
use super::super::pods::PodNames;
use super::super::services::{Choosing, Scope, seconds};
use super::super::{at, protocol_name};
use super::parse::{Port, To, Who};
use super::world::{self, End, at_address};
use super::{Destination, Dropped, Explanation, Source, Step, Topic, Way};
use crate::dataplane::Pinned;
use crate::names::Name;

/// Stands for whatever port the client's kernel gives it.
const ANY_PORT: u16 = 50_000;
/// A socket's number that nobody has.
const SOCKET: u64 = u64::MAX;

/// What is asked, and where answers are looked up.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) pinned: &'a Pinned,
    pub(super) known: &'a Known,
    pub(super) pods: &'a PodNames,
    pub(super) now: Now,
    pub(super) source: &'a Source,
    pub(super) destination: &'a Destination,
}

/// Who sends.
#[derive(Clone, Debug)]
enum Client {
    /// A pod of this node behind this interface.
    Pod(u32),
    /// The node itself.
    Node,
    /// Somebody behind the tunnel's end with this underlay address.
    Peer(V6),
    /// Anybody else.
    Network,
}

/// What a packet is to have, once names are looked up.
struct Target<A> {
    address: A,
    port: u16,
    protocol: u8,
}

impl Asked<'_> {
    /// Whether pods that are named are this node's.
    pub(super) fn check_pod(&self) -> Result<()> {
        let from = match &self.source.who {
            Who::Pod(name) => Some(name),
            Who::Host | Who::Address(_) => None,
        };
        let to = match &self.destination.to {
            To::Pod(name) => Some(name),
            To::Service(_) | To::Address(_) => None,
        };
        match from.into_iter().chain(to).find(|name| self.pods.named(name).is_none()) {
            Some(name) => bail!(
                "this node has no pod {name} in its list; name a pod of another node by its address"
            ),
            None => Ok(()),
        }
    }

    /// Why there is nothing to explain in either family.
    pub(super) fn why_nothing(&self) -> anyhow::Error {
        match &self.destination.to {
            To::Service(name) => {
                let doubt = self.known.doubt().map(|doubt| format!("; {doubt}"));
                anyhow!(
                    "this node knows no address of Service {name} that the source could send to{}",
                    doubt.unwrap_or_default()
                )
            }
            To::Address(_) | To::Pod(_) => {
                anyhow!("source and destination are not of one address family")
            }
        }
    }

    /// What becomes of the packet in one family; `None` if it has none there.
    pub(super) fn explain<A: Family + Ip>(&self) -> Result<Option<Explanation>> {
        let mut memory = world::tables::<A>(self.pinned, self.now)?;
        let Some((client, address)) = self.client(&memory) else { return Ok(None) };
        let Some(target) = self.target(&memory)? else { return Ok(None) };
        let asks_as = socket_client(&memory, &client, address);
        world::add(&mut memory, self.pinned, target.address, &[address, asks_as])?;
        let to = (target.address, target.port, target.protocol);
        world::add_policies(&mut memory, self.pinned, &[address, asks_as], to)?;
        let mut teller = Teller {
            asked: *self,
            source: (address, self.source.port.unwrap_or(ANY_PORT)),
            client,
            asks_as,
            target,
            memory,
            steps: Vec::new(),
            denied: None,
        };
        let found = teller.tell().and_then(|ways| teller.police(ways));
        let (ways, drop) = match found {
            Ok(ways) => (ways, None),
            Err(reason) => (Vec::new(), Some(teller.dropped(reason))),
        };
        Ok(Some(Explanation {
            source: address.to_ip(),
            source_port: self.source.port,
            client: teller.describe_client(),
            destination: teller.target.address.to_ip(),
            port: teller.target.port,
            protocol: protocol_name(teller.target.protocol),
            steps: teller.steps,
            ways,
            drop,
        }))
    }

    fn client<A: Family + Ip>(&self, memory: &Memory<A>) -> Option<(Client, A)> {
        let address = match &self.source.who {
            Who::Host => {
                let address = A::masquerade(&memory.config);
                return (address != A::UNSPECIFIED).then_some((Client::Node, address));
            }
            Who::Pod(name) => {
                let pod = self.pods.named(name)?;
                let address = pod.addresses.iter().find_map(|ip| A::of(*ip))?;
                return Some((Client::Pod(pod.host_ifindex), address));
            }
            Who::Address(ip) => A::of(*ip)?,
        };
        if let Some(pod) = memory.pod(&address) {
            return Some((Client::Pod(pod.ifindex), address));
        }
        // Of the node's own addresses each has a route of its own.
        let own = |(length, network, found): &(u32, A, fairway_abi::Route<A>)| {
            *length == A::WIDTH && *network == address && found.kind.get() == route::HOST
        };
        if address.is_loopback() || memory.routes.iter().any(own) {
            return Some((Client::Node, address));
        }
        let client = match memory.route(&address) {
            Some(found) if found.kind.get() == route::TUNNEL => Client::Peer(found.peer.underlay),
            _ => Client::Network,
        };
        Some((client, address))
    }

    fn target<A: Family + Ip>(&self, memory: &Memory<A>) -> Result<Option<Target<A>>> {
        let Destination { to, port, protocol } = self.destination;
        match to {
            To::Address(ip) => {
                let Port::Number(port) = port else { return Ok(None) };
                let protocol = protocol.unwrap_or(protocol::TCP);
                Ok(A::of(*ip).map(|address| Target { address, port: *port, protocol }))
            }
            To::Pod(name) => {
                let Port::Number(port) = port else { return Ok(None) };
                let protocol = protocol.unwrap_or(protocol::TCP);
                let pod = self.pods.named(name);
                let address = pod.and_then(|pod| pod.addresses.iter().find_map(|ip| A::of(*ip)));
                Ok(address.map(|address| Target { address, port: *port, protocol }))
            }
            To::Service(name) => self.service_port(memory, name),
        }
    }

    /// The ClusterIP and port that are meant by a Service's name.
    fn service_port<A: Family + Ip>(
        &self,
        memory: &Memory<A>,
        wanted: &ObjectName,
    ) -> Result<Option<Target<A>>> {
        let ports: BTreeMap<u32, &str> = self
            .known
            .names::<A>()
            .filter_map(|(number, name)| match name {
                Name::Service { service, port, .. } if service == wanted => {
                    Some((number, port.as_str()))
                }
                _ => None,
            })
            .collect();
        let mut frontends: Vec<(&FrontendKey<A>, &str)> = memory
            .frontends
            .iter()
            .filter(|(key, _)| memory.frontends.contains_key(&any_port(key.address)))
            .filter_map(|(key, record)| Some((key, *ports.get(&record.service)?)))
            .collect();
        frontends.sort_unstable();
        let Some((first, _)) = frontends.first() else { return Ok(None) };
        let Destination { port, protocol, .. } = self.destination;
        let is_meant = |(key, name): &&(&FrontendKey<A>, &str)| {
            protocol.is_none_or(|number| key.protocol == number)
                && match port {
                    Port::Number(number) => key.port.get() == *number,
                    Port::Name(meant) => name == meant,
                }
        };
        let target = |(key, _): &(&FrontendKey<A>, &str)| Target {
            address: key.address,
            port: key.port.get(),
            protocol: key.protocol,
        };
        match (frontends.iter().find(is_meant), port) {
            (Some(found), _) => Ok(Some(target(found))),
            (None, Port::Number(number)) => Ok(Some(Target {
                address: first.address,
                port: *number,
                protocol: protocol.unwrap_or(protocol::TCP),
            })),
            (None, Port::Name(name)) => {
                let names: std::collections::BTreeSet<&str> =
                    ports.into_values().filter(|name| !name.is_empty()).collect();
                let has = if names.is_empty() {
                    "without names".to_owned()
                } else {
                    format!("{names:?}")
                };
                bail!(
                    "Service {wanted} has no port {name:?} for that protocol: its ports are {has}"
                )
            }
        }
    }
}

/// Who the sockets of a client are to a Service.
fn socket_client<A: Family + Ip>(memory: &Memory<A>, client: &Client, address: A) -> A {
    match memory.namespace(netns(memory, client, address)) {
        Some(namespace) => A::of_interface(&namespace.addresses),
        None => A::masquerade(&memory.config),
    }
}

/// The cookie of a client's network namespace; of a pod that has no record, one that nobody has.
fn netns<A: Family + Ip>(memory: &Memory<A>, client: &Client, address: A) -> u64 {
    match client {
        Client::Node => memory.config.netns.get(),
        _ => {
            let mut all = memory.namespaces.iter();
            let own = all.find(|(_, found)| A::of_interface(&found.addresses) == address);
            own.map_or(u64::MAX, |(cookie, _)| *cookie)
        }
    }
}

/// An endpoint that may be chosen, and how many of so many slots it has.
struct Candidate<A> {
    endpoint: Endpoint<A>,
    slots: u32,
    of: u32,
}

/// What the programs make of a packet.
struct Walked<A> {
    verdict: Verdict,
    /// The packet as it leaves.
    becomes: Translation<A>,
    /// The endpoint's node is told to answer it.
    delegated: bool,
}

/// Tells the way of one packet.
struct Teller<'a, A: Family + Ip> {
    asked: Asked<'a>,
    client: Client,
    source: End<A>,
    /// Who its sockets are to a Service.
    asks_as: A,
    target: Target<A>,
    memory: Memory<A>,
    steps: Vec<Step>,
    /// What a policy says against it.
    denied: Option<String>,
}

impl<A: Family + Ip> Teller<'_, A> {
    fn tell(&mut self) -> Result<Vec<Way>, DropReason> {
        if self.may_be_answered_at_once() {
            let says =
                "at the pod's device, if it asks the DNS for addresses of a Service: by the kernel";
            self.say(Topic::Decided, says.to_owned());
        }
        let has_socket = matches!(self.client, Client::Pod(_) | Client::Node)
            && socket::is_balanced(self.target.protocol);
        if has_socket && let Some(found) = self.at_socket() {
            return found;
        }
        self.at_packet()
    }

    /// Whether the kernel answers such a packet if it likes what is in it.
    fn may_be_answered_at_once(&self) -> bool {
        let Client::Pod(ifindex) = self.client else { return false };
        let Target { address, port, protocol } = self.target;
        let packet = world::packet(protocol, self.source, (address, port), false);
        self.memory.zone().length > 0
            && path::read_from_pod(&packet, &self.memory, ifindex).is_ok_and(|headers| {
                query::is_query(&headers) && query::is_for_resolver(&self.memory, &headers)
            })
    }

    /// What policies of this node's pods say of each way.
    fn police(&mut self, mut ways: Vec<Way>) -> Result<Vec<Way>, DropReason> {
        if self.memory.config.flags & config::POLICED == 0 {
            return Ok(ways);
        }
        let mut refused = None;
        for way in ways.iter_mut().filter(|way| !way.next_hop.starts_with(DROPPED)) {
            let Some(address) = A::of(way.address) else { continue };
            if let Err(reason) = self.ask(address, way.port) {
                way.next_hop = format!("{DROPPED}{}", reason.name());
                refused = refused.or(Some(reason));
            }
        }
        let all_dropped = ways.iter().all(|way| way.next_hop.starts_with(DROPPED));
        match refused {
            Some(reason) if all_dropped => Err(reason),
            _ => Ok(ways),
        }
    }

    /// Asks the policies of both ends, and tells of those that are restricted here.
    fn ask(&mut self, endpoint: A, port: u16) -> Result<(), DropReason> {
        let client = self.source.0;
        let at = at(endpoint.to_ip(), Some(port));
        if matches!(self.client, Client::Node) {
            if self.memory.subject(&endpoint).is_some_and(|subject| subject.ingress != 0) {
                let says = format!(
                    "ingress of {}: what its own node sends is allowed",
                    self.who(endpoint)
                );
                self.say_once(says);
            }
            return Ok(());
        }
        for ingress in [false, true] {
            let end = if ingress { endpoint } else { client };
            let is_restricted = |subject: Subject| {
                if ingress { subject.ingress != 0 } else { subject.egress != 0 }
            };
            if !self.memory.subject(&end).is_some_and(is_restricted) {
                continue;
            }
            let answer = self.of_one_end(end, ingress, endpoint, port);
            let direction = if ingress { "ingress" } else { "egress" };
            let (verdict, bits) = match answer {
                Ok(bits) => ("allowed", bits),
                Err((_, bits)) => ("denied", bits),
            };
            let says =
                format!("{direction} of {} to {at}: {verdict} {}", self.who(end), self.rule(bits));
            self.say_once(says.clone());
            if let Err((reason, _)) = answer {
                self.denied.get_or_insert(says);
                return Err(reason);
            }
        }
        Ok(())
    }

    /// What one end's rules say, whatever the other's do.
    fn of_one_end(
        &mut self,
        end: A,
        ingress: bool,
        endpoint: A,
        port: u16,
    ) -> Result<u32, (DropReason, u32)> {
        let subjects = std::mem::take(&mut self.memory.subjects);
        if let Some(subject) = subjects.get(&end) {
            let half = match ingress {
                true => Subject { egress: 0, ..*subject },
                false => Subject { ingress: 0, ..*subject },
            };
            self.memory.subjects.insert(end, half);
        }
        let (client, protocol) = (self.source.0, self.target.protocol);
        let answer = policy::ask(&self.memory, &client, &endpoint, protocol, Some(U16::new(port)));
        self.memory.subjects = subjects;
        answer
    }

    fn who(&self, address: A) -> String {
        let address = address.to_ip();
        self.asked.pods.at(address).map_or_else(|| address.to_string(), |pod| format!("pod {pod}"))
    }

    /// By what, to be added to what was decided.
    fn rule(&self, verdict: u32) -> String {
        let number = verdict & ruling::RULE;
        let mark = if self.asked.known.fit() { "" } else { "?" };
        match self.asked.known.rule(number) {
            Some(rule) => format!("by {rule}{mark}"),
            None if number != 0 => format!("by rule {number}, whose name is not known"),
            None if verdict & ruling::DENIED != 0 => "as nothing is known of it".to_owned(),
            None => "as no rule says otherwise".to_owned(),
        }
    }

    fn say_once(&mut self, says: String) {
        let step = Step { what: Topic::Policy, says };
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }

    /// What is decided when the client connects; `None`: its packets go where it wants them to.
    fn at_socket(&mut self) -> Option<Result<Vec<Way>, DropReason>> {
        let Target { address, port, protocol } = self.target;
        let loopback = address.is_loopback();
        let scope = if loopback { scope::LOOPBACK } else { scope::INTERNAL };
        let key = FrontendKey { address, port: U16::new(port), protocol, scope };
        let record = self.memory.frontend(&key)?;
        let netns = netns(&self.memory, &self.client, self.source.0);
        let to = SocketAddress { address, port: U16::new(port), protocol };
        let outcome =
            self.undone(|memory| socket::connect(memory, &memory.socket_in(SOCKET, netns), &to));
        if let Outcome::Unchanged = outcome {
            let whose =
                if matches!(self.client, Client::Node) { "the node's" } else { "the pod's" };
            let choice = self.choose(&key, &record, self.asks_as, None);
            let why = match choice {
                Err(reason) => {
                    // As for a packet, though this stays with the host's stack if the node sends it.
                    self.say(
                        Topic::Decided,
                        format!("at {whose} packets, as nobody may be chosen"),
                    );
                    if matches!(self.client, Client::Node) {
                        self.say_frontend(&key, &record);
                        return Some(Err(reason));
                    }
                    return None;
                }
                Ok(_) if loopback => "a pod's loopback address is its own",
                Ok(_) => "its sockets are left alone",
            };
            self.say(Topic::Decided, format!("at {whose} packets: {why}"));
            return None;
        }
        self.say(Topic::Decided, "at the socket, when it connects or sends".to_owned());
        self.say_frontend(&key, &record);
        let candidates = match self.candidates(&key, &record, self.asks_as, None) {
            Ok(candidates) => candidates,
            Err(reason) => return Some(Err(reason)),
        };
        let ways = candidates.into_iter().map(|candidate| {
            let to = (candidate.endpoint.address, candidate.endpoint.port.get());
            let walked = self.walk(to);
            self.way(&candidate, &walked)
        });
        Some(Ok(ways.collect()))
    }

    fn at_packet(&mut self) -> Result<Vec<Way>, DropReason> {
        let Target { address, port, protocol } = self.target;
        let to = (address, port);
        if !matches!(self.client, Client::Pod(_) | Client::Node)
            || !self.steps.iter().any(|step| step.what == Topic::Decided)
        {
            let place = match self.client {
                Client::Pod(_) => "where the pod's packets come out of it",
                Client::Node => "by the node's own stack",
                Client::Peer(_) => "where the tunnel's packets arrive",
                Client::Network => "where packets arrive from the network",
            };
            self.say(Topic::Decided, place.to_owned());
        }
        if self.say_flow() {
            let walked = self.walk(to);
            return self.only(walked);
        }
        let scope = match self.client {
            Client::Pod(_) => scope::INTERNAL,
            _ => scope::EXTERNAL,
        };
        let key = FrontendKey { address, port: U16::new(port), protocol, scope };
        let record = match self.client {
            // Its stack sends to whom it is told.
            Client::Node => None,
            _ => self.memory.frontend(&key),
        };
        let Some(record) = record else {
            self.say(Topic::Frontend, "none: the packet keeps its destination".to_owned());
            let walked = self.walk(to);
            return self.only(walked);
        };
        self.say_frontend(&key, &record);
        // What refuses the packet itself comes before anything is chosen.
        let by_flow = record.flags & frontend::BY_FLOW != 0 && self.asked.source.port.is_some();
        let bits = by_flow.then(|| flow_bits(&self.source.0, U16::new(self.source.1), &key));
        let candidates = self.candidates(&key, &record, self.source.0, bits)?;
        let mut ways = Vec::new();
        let mut refused = None;
        for candidate in candidates {
            let walked =
                self.with_only(&key, &record, &candidate.endpoint, |teller| teller.walk(to));
            match walked.verdict {
                Verdict::Drop(reason) => refused = refused.or(Some(reason)),
                _ if ways.is_empty() => self.say_masquerade(&walked),
                _ => {}
            }
            ways.push(self.way(&candidate, &walked));
        }
        let all_dropped = ways.iter().all(|way| way.next_hop.starts_with(DROPPED));
        match refused {
            Some(reason) if all_dropped => Err(reason),
            _ => Ok(ways),
        }
    }

    /// The one way of a packet that has no choice.
    fn only(&mut self, walked: Walked<A>) -> Result<Vec<Way>, DropReason> {
        if let Verdict::Drop(reason) = walked.verdict {
            return Err(reason);
        }
        self.say_masquerade(&walked);
        let Translation { destination: address, destination_port: port, .. } = walked.becomes;
        let endpoint = Endpoint { address, port, reserved: [0; 2] };
        Ok(vec![self.way(&Candidate { endpoint, slots: 1, of: 1 }, &walked)])
    }

    /// The steps of the program that sees the packet, one after the other as it takes them.
    fn walk(&mut self, to: End<A>) -> Walked<A> {
        let Self { memory, client, source, target, .. } = self;
        let open = is_open(memory, target.protocol, *source, to);
        let mut frame = world::packet(target.protocol, *source, to, !open);
        let mut scratch = Scratch::default();
        let entered = match client {
            Client::Pod(ifindex) => path::enter_from_pod(&frame, memory, *ifindex),
            Client::Peer(peer) => path::enter_from_overlay(&frame).and_then(|headers| {
                scratch.peer = *peer;
                let checked = path::check_peer(memory, &headers, &mut scratch);
                checked.map(|()| headers).map_err(Verdict::Drop)
            }),
            Client::Network => path::enter_from_uplink(&frame, memory),
            Client::Node => path::enter_from_host(&frame),
        };
        let unchanged = Translation {
            source: source.0,
            destination: to.0,
            source_port: U16::new(source.1),
            destination_port: U16::new(to.1),
        };
        let headers = match entered {
            Ok(headers) => headers,
            Err(verdict) => return Walked { verdict, becomes: unchanged, delegated: false },
        };
        let decided = match client {
            Client::Pod(_) => path::decide_from_pod(memory, &headers, &mut scratch),
            Client::Peer(_) => path::decide_from_overlay(memory, &headers, &mut scratch),
            Client::Network => path::decide_from_uplink(memory, &headers, &mut scratch),
            Client::Node => {
                path::decide_from_host(memory, &headers, &mut scratch);
                Ok(Todo::Apply)
            }
        };
        let opened = matches!(decided, Ok(Todo::Open));
        let decided = decided.and_then(|todo| match todo {
            Todo::Apply => Ok(()),
            Todo::Open => path::open(memory, memory, &headers, &mut scratch),
        });
        let verdict = match decided {
            Ok(()) => path::apply(&mut frame, &headers, &scratch),
            Err(reason) => Verdict::Drop(reason),
        };
        let translated = decided.is_ok() && scratch.decision.is_translated();
        let becomes = if translated { scratch.translation } else { unchanged };
        if opened && decided.is_ok() {
            // The next candidate's flow is another one.
            memory.remove_flow(Stage::HalfOpen, &headers.flow());
            memory.remove_flow(Stage::HalfOpen, &opposite(headers.protocol, &becomes));
        }
        let delegated = translated && scratch.state() & flow::DELEGATED != 0;
        Walked { verdict, becomes, delegated }
    }

    /// The endpoints that may be chosen; tells how.
    fn candidates(
        &mut self,
        key: &FrontendKey<A>,
        record: &Frontend,
        client: A,
        bits: Option<u32>,
    ) -> Result<Vec<Candidate<A>>, DropReason> {
        self.say_source_ranges(record, client);
        let chosen = self.choose(key, record, client, bits)?;
        let alone = |endpoint| Ok(vec![Candidate { endpoint, slots: 1, of: 1 }]);
        if record.flags & frontend::RESOLVER != 0 && chosen.address == A::RESOLVER {
            let why = "this node's agent, which answers DNS queries for the Service";
            self.say(Topic::Choice, why.to_owned());
            return alone(chosen);
        }
        if record.affinity != 0 {
            let stays = seconds(record.affinity);
            let affinity = AffinityKey { port: U32::new(record.port), client };
            let known = self.memory.affinity(&affinity);
            let known = known.filter(|known| service::stays(&self.memory, record, known));
            let client = client.to_ip();
            if let Some(known) = known {
                let age = self.memory.seconds().wrapping_sub(known.since.get());
                let to = at(known.endpoint.address.to_ip(), Some(known.endpoint.port.get()));
                let ago = seconds(age);
                self.say(
                    Topic::Affinity,
                    format!("{client} stays with {to}: it came {ago}s ago, and may stay {stays}s"),
                );
                return alone(known.endpoint);
            }
            self.say(Topic::Affinity, format!("{client} will stay with its endpoint for {stays}s"));
        }
        if bits.is_some() {
            self.say(Topic::Choice, "by flow: this one leads to the same on every node".to_owned());
            return alone(chosen);
        }
        let mut shares: BTreeMap<Endpoint<A>, u32> = BTreeMap::new();
        let Frontend { service, generation, .. } = *record;
        let slots = (0..record.endpoints)
            .filter_map(|slot| self.memory.endpoint(&EndpointKey { service, generation, slot }));
        let new = record.flags & frontend::GROWING != 0;
        let growing = new && record.flags & frontend::LEAST == 0;
        let seconds = self.memory.seconds();
        for endpoint in slots {
            let key = MemberKey { service: U32::new(service), endpoint };
            let share = self.memory.share(&key).filter(|_| growing);
            let parts = share.map_or(WHOLE, |share| service::portion(&share, seconds));
            *shares.entry(endpoint).or_default() += if growing { parts } else { 1 };
        }
        if record.flags & frontend::LEAST != 0 {
            let burden = |endpoint: &Endpoint<A>| {
                let loads = self.memory.loads.borrow();
                let load = loads.get(&load_key(endpoint, key.protocol)).copied().unwrap_or(0);
                let key = MemberKey { service: U32::new(service), endpoint: *endpoint };
                Burden { load, strength: strength(self.memory.share(&key), seconds) }
            };
            let ends: Vec<_> = shares.iter().map(|(one, slots)| (*slots, burden(one))).collect();
            if let Some(odds) = odds(&ends) {
                shares.values_mut().zip(odds).for_each(|(slots, odds)| *slots = odds);
            }
        }
        let of = shares.values().sum();
        let says = match Choosing::of(record) {
            Choosing::Random => format!("random, one of {}", shares.len()),
            Choosing::InTurn => {
                let next = at(chosen.address.to_ip(), Some(chosen.port.get()));
                format!("in turn, one of {}; {next} is next", shares.len())
            }
            Choosing::LeastConnections => {
                format!("the less busy of two at random, of {}", shares.len())
            }
            Choosing::ByFlow => format!(
                "by flow, one of {}, each with its share of a table of {of}; a source port would tell \
                 which",
                shares.len()
            ),
        };
        let says = if new { says + "; those that are new get less" } else { says };
        self.say(Topic::Choice, says);
        let candidates = shares.into_iter();
        Ok(candidates.map(|(endpoint, slots)| Candidate { endpoint, slots, of }).collect())
    }

    /// What the core chooses, without leaving a trace.
    fn choose(
        &mut self,
        key: &FrontendKey<A>,
        record: &Frontend,
        client: A,
        bits: Option<u32>,
    ) -> Result<Endpoint<A>, DropReason> {
        let mut request =
            Request { client, bits: bits.unwrap_or(0), ..Request::new(*key, *record) };
        self.undone(|memory| service::choose(memory, &mut request)).map(|()| request.endpoint)
    }

    /// Runs something that may note a choice, which is forgotten again.
    fn undone<T>(&mut self, run: impl FnOnce(&Memory<A>) -> T) -> T {
        let affinity = self.memory.affinity.borrow().clone();
        let turns = self.memory.turns.borrow().clone();
        let loads = self.memory.loads.borrow().clone();
        let result = run(&self.memory);
        *self.memory.affinity.borrow_mut() = affinity;
        *self.memory.turns.borrow_mut() = turns;
        *self.memory.loads.borrow_mut() = loads;
        result
    }

    /// Runs something while a frontend leads to one endpoint alone.
    fn with_only<T>(
        &mut self,
        key: &FrontendKey<A>,
        record: &Frontend,
        endpoint: &Endpoint<A>,
        run: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let slot = EndpointKey { service: record.service, generation: record.generation, slot: 0 };
        let before = self.memory.endpoints.insert(slot, *endpoint);
        self.memory.frontends.insert(*key, Frontend { endpoints: 1, affinity: 0, ..*record });
        let result = run(self);
        self.memory.frontends.insert(*key, *record);
        if let Some(before) = before {
            self.memory.endpoints.insert(slot, before);
        }
        result
    }

    fn way(&self, candidate: &Candidate<A>, walked: &Walked<A>) -> Way {
        let address = candidate.endpoint.address.to_ip();
        Way {
            address,
            port: candidate.endpoint.port.get(),
            slots: candidate.slots,
            of: candidate.of,
            pod: self.asked.pods.at(address),
            source: self.source_there(walked).to_ip(),
            next_hop: self.next_hop(&walked.verdict, walked.becomes.destination)
                + self.way_back(walked),
        }
    }

    /// How the answers of an endpoint elsewhere reach a client that kept its address.
    fn way_back(&self, walked: &Walked<A>) -> &'static str {
        let kept = matches!(self.client, Client::Network)
            && walked.becomes.source == self.source.0
            && walked.becomes.destination != self.target.address;
        match walked.verdict {
            _ if walked.delegated => "; that node answers the client",
            Verdict::Tunnel(_) if kept => ", and answers back through it",
            _ => "",
        }
    }

    /// What the packet's source is when it arrives.
    fn source_there(&self, walked: &Walked<A>) -> A {
        // The node's stack takes the address that the route to there has.
        let stack = matches!(self.asked.source.who, Who::Host);
        let found = self.memory.route(&walked.becomes.destination).filter(|_| stack);
        match found.map(|found| (found.kind.get(), found.source)) {
            Some((route::TUNNEL, source)) if source != A::UNSPECIFIED => source,
            _ => walked.becomes.source,
        }
    }

    fn next_hop(&self, verdict: &Verdict, destination: A) -> String {
        let pods = self.asked.pods;
        let kind = self.memory.route(&destination).map(|found| found.kind.get());
        match verdict {
            Verdict::Pod(pod) => format!("pod here, {}", pods.interface(pod.ifindex)),
            Verdict::Tunnel(end) => tunnel(end.underlay),
            Verdict::Forward if kind == Some(route::DIRECT) => "plain route".to_owned(),
            Verdict::Forward => "outside, by the node's routes".to_owned(),
            Verdict::Drop(reason) => format!("{DROPPED}{}", reason.name()),
            Verdict::Pass => {
                // The host's own stack takes over, and knows the same ways.
                if let Some(pod) = self.memory.pod(&destination) {
                    return format!("pod here, {}", pods.interface(pod.ifindex));
                }
                match (kind, self.memory.route(&destination)) {
                    (Some(route::HOST), _) => "this node itself".to_owned(),
                    (Some(route::TUNNEL), Some(found)) if matches!(self.client, Client::Node) => {
                        tunnel(found.peer.underlay)
                    }
                    (Some(route::DIRECT), _) => "plain route".to_owned(),
                    (Some(route::SERVICES), _) => {
                        "nowhere: the node's own stack knows of nobody there".to_owned()
                    }
                    _ => "wherever the node's own stack sends it".to_owned(),
                }
            }
        }
    }

    fn say(&mut self, what: Topic, says: String) {
        self.steps.push(Step { what, says });
    }

    fn say_frontend(&mut self, key: &FrontendKey<A>, record: &Frontend) {
        let at = at(key.address.to_ip(), Some(key.port.get()));
        let (protocol, scope) = (protocol_name(key.protocol), Scope::of(key.scope));
        let list = self.list(record);
        self.say(Topic::Frontend, format!("{at}/{protocol} from {scope}: {list}"));
    }

    /// What a list is called, with a question mark if that may be wrong.
    fn list(&self, record: &Frontend) -> String {
        let mark = if self.asked.known.fit() { "" } else { "?" };
        match self.asked.known.name::<A>(record.service) {
            Some(name @ Name::Service { local: true, .. }) => {
                format!("{name}{mark} (this node's endpoints)")
            }
            Some(name) => format!("{name}{mark}"),
            None => format!("list {}", record.service),
        }
    }

    fn say_source_ranges(&mut self, record: &Frontend, client: A) {
        if record.flags & frontend::SOURCE_RANGES != 0 {
            let within = self.memory.is_in_source_range(record.port, &client);
            let ranges = self.source_ranges(record.port);
            let client = client.to_ip();
            let is = if within { "is" } else { "is not" };
            self.say(Topic::SourceRanges, format!("{client} {is} in {ranges}"));
        }
    }

    fn source_ranges(&self, port: u32) -> String {
        let ranges = self.memory.source_ranges.iter().filter(|(of, ..)| *of == port);
        let ranges = ranges.filter_map(|(_, length, network)| {
            prefix(u8::try_from(*length).ok()?, *network).map(|range| range.to_string())
        });
        let ranges: Vec<String> = ranges.collect();
        if ranges.is_empty() { "any range: there is none".to_owned() } else { ranges.join(", ") }
    }

    /// Tells of an open flow; true if the packet belongs to it.
    fn say_flow(&mut self) -> bool {
        let Target { address, port, protocol } = self.target;
        if self.asked.source.port.is_some() {
            let open = is_open(&self.memory, protocol, self.source, (address, port));
            let says = if open { "open: its record decides" } else { "not open yet" };
            self.say(Topic::Flow, says.to_owned());
            return open;
        }
        let source = self.source.0;
        let of_these = |key: &fairway_abi::FlowKey<A>| {
            (key.source, key.destination) == (source, address)
                && (key.destination_port.get(), key.protocol) == (port, protocol)
        };
        let half_open =
            self.memory.half_open.borrow().iter().filter(|(key, _)| of_these(key)).count();
        let established =
            self.memory.established.borrow().keys().filter(|key| of_these(key)).count();
        let says = match half_open + established {
            0 => "none is open between these".to_owned(),
            open => format!("{open} open between these; this is about a new one"),
        };
        self.say(Topic::Flow, says);
        false
    }

    fn say_masquerade(&mut self, walked: &Walked<A>) {
        let Translation { source, .. } = walked.becomes;
        if source == self.source.0 {
            return;
        }
        let (first, last) = (self.memory.config.first_port, self.memory.config.last_port);
        let source = source.to_ip();
        self.say(
            Topic::Masquerade,
            format!("the source becomes {source}, with a free port of {first}-{last}"),
        );
    }

    fn describe_client(&self) -> String {
        let address = self.source.0.to_ip();
        match self.client {
            Client::Pod(index) => match self.asked.pods.at(address) {
                Some(pod) => format!("pod {pod}"),
                None => format!("a pod here, {}", self.asked.pods.interface(index)),
            },
            Client::Node => "this node".to_owned(),
            Client::Peer(underlay) => format!("behind node {}", underlay_address(underlay)),
            Client::Network => {
                match self.memory.route(&self.source.0).map(|found| found.kind.get()) {
                    Some(route::DIRECT | route::TUNNEL_NODE) => "in the cluster".to_owned(),
                    _ => "outside".to_owned(),
                }
            }
        }
    }

    fn dropped(&self, reason: DropReason) -> Dropped {
        let because = self.because(reason).unwrap_or_default();
        Dropped { reason: reason.name(), meaning: reason.meaning(), because }
    }

    /// What it is about this packet that it is dropped for.
    fn because(&self, reason: DropReason) -> Option<String> {
        let Target { address, port, protocol } = self.target;
        let to = at(address.to_ip(), Some(port));
        let (from, protocol) = (self.source.0.to_ip(), (protocol, protocol_name(protocol)));
        let scopes = match self.client {
            Client::Pod(_) => &[scope::INTERNAL][..],
            Client::Node => &[scope::LOOPBACK, scope::INTERNAL],
            _ => &[scope::EXTERNAL],
        };
        let keys = scopes.iter().map(|scope| FrontendKey {
            address,
            port: U16::new(port),
            protocol: protocol.0,
            scope: *scope,
        });
        let record = keys.filter_map(|key| self.memory.frontend(&key)).next();
        let list = record.map(|record| self.list(&record));
        match reason {
            DropReason::NoEndpoint => Some(format!("{to} leads to {}, which has none.", list?)),
            DropReason::NoLocalEndpoint => {
                let is_cluster_ip = self.memory.frontends.contains_key(&any_port(address));
                let policy = if is_cluster_ip { "internal" } else { "external" };
                Some(format!("{to} leads to {}, with {policy}TrafficPolicy: Local.", list?))
            }
            DropReason::SourceRange => {
                let ranges = self.source_ranges(record?.port);
                Some(format!("{from} may not use {}: it is not in {ranges}.", list?))
            }
            DropReason::ClosedPort => {
                let mut ports: Vec<String> = at_address(&self.memory, address)
                    .filter(|(key, _)| key.port.get() != 0)
                    .map(|(key, record)| {
                        let protocol = protocol_name(key.protocol);
                        format!("{}/{protocol} ({})", key.port, self.list(record))
                    })
                    .collect();
                ports.sort();
                ports.dedup();
                let port = format!("{port}/{}", protocol.1);
                let address = address.to_ip();
                Some(if ports.is_empty() {
                    format!("{address} has no port {port}, nor any other.")
                } else {
                    format!("{address} has no port {port}, but {}.", ports.join(", "))
                })
            }
            DropReason::UnallocatedAddress => {
                let ranges = self.memory.routes.iter();
                let mut ranges = ranges.filter(|(.., found)| found.kind.get() == route::SERVICES);
                let range = ranges.find_map(|(length, network, _)| {
                    let range = prefix(u8::try_from(*length).ok()?, *network)?;
                    range.contains(&address.to_ip()).then_some(range)
                });
                Some(format!("{} is in {}.", address.to_ip(), range?))
            }
            DropReason::SpoofedSource => {
                Some(format!("The pod's interface may not send from {from}."))
            }
            DropReason::ForeignSource => Some(format!(
                "{from} is an address of this node's pods, or of pods behind the tunnel."
            )),
            DropReason::PolicyEgress | DropReason::PolicyIngress => {
                self.denied.as_ref().map(|denied| format!("{denied}."))
            }
            DropReason::NoSourcePort => {
                let (first, last) = (self.memory.config.first_port, self.memory.config.last_port);
                Some(format!("No port of {first}-{last} is free towards the endpoint."))
            }
            _ => None,
        }
    }
}

/// Begins the next hop of a packet that has none.
const DROPPED: &str = "dropped: ";

fn is_open<A: Family + Ip>(memory: &Memory<A>, protocol: u8, from: End<A>, to: End<A>) -> bool {
    let key = fairway_abi::FlowKey {
        source: from.0,
        destination: to.0,
        source_port: U16::new(from.1),
        destination_port: U16::new(to.1),
        protocol,
        reserved: [0; 3],
    };
    memory.has_flow(Stage::HalfOpen, &key) || memory.has_flow(Stage::Established, &key)
}

fn tunnel(underlay: V6) -> String {
    format!("tunnel to node {}", underlay_address(underlay))
}

fn underlay_address(underlay: V6) -> IpAddr {
    Ipv6Addr::from(underlay).to_canonical()
}
