//! Services: lists of endpoints and the frontends that lead to them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use fairway_abi::{Endpoint, FrontendKey, RESOLVER_PORT, frontend, scope};
use fairway_core::path::any_port;
use fairway_model::{
    Balancing, Endpoint as ModelEndpoint, EndpointState, Forwarding, Model, Node, ObjectName,
    Protocol, Service, ServicePort, TrafficPolicy,
};
use ipnet::IpNet;
use zerocopy::network_endian::U16;

use crate::{Family, View, maglev, resolver, slots};

/// What a list holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListName {
    /// Endpoints of a Service's port.
    Service {
        /// The Service.
        service: ObjectName,
        /// The name of its port.
        port: String,
        /// That port's protocol.
        protocol: Protocol,
        /// Only those on this node.
        local: bool,
    },
    /// No endpoints at all: what is sent to a Service's address, but to none of its ports, ends here.
    ClosedPorts,
    /// A pod that has a port of this node.
    HostPort {
        /// What a person calls the pod.
        pod: String,
        /// The node's port.
        port: u16,
        /// That port's protocol.
        protocol: Protocol,
        /// See [`HostPort::host_ip`](crate::HostPort::host_ip).
        address: Option<IpAddr>,
    },
}

impl ListName {
    /// Whether the list is a pod's, rather than a Service's.
    pub fn is_host_port(&self) -> bool {
        matches!(self, Self::HostPort { .. })
    }
}

impl fmt::Display for ListName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, port, protocol, local } => {
                write!(f, "Service {service} port {port:?} {protocol}")?;
                if *local { f.write_str(" (this node's endpoints)") } else { Ok(()) }
            }
            Self::ClosedPorts => f.write_str("all other ports of Services' addresses"),
            Self::HostPort { pod, port, protocol, address } => {
                write!(f, "host port {port} {protocol} of pod {pod}")?;
                address.map_or(Ok(()), |address| write!(f, " on {address}"))
            }
        }
    }
}

/// A list of endpoints to choose from, and every address that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointList<A> {
    /// What it holds.
    pub name: ListName,
    /// The addresses, ports and scopes that lead to it, each with the bits of [`frontend`] that hold
    /// for it alone.
    pub frontends: BTreeMap<FrontendKey<A>, u32>,
    /// Each once; may be empty, and new connections then get nowhere.
    pub endpoints: BTreeSet<Endpoint<A>>,
    /// How many parts of new connections those get that get others than one; none of them 0.
    pub weights: BTreeMap<Endpoint<A>, u16>,
    /// Those that are not chosen any more, but serve who has come to them before.
    pub lingering: BTreeSet<Endpoint<A>>,
    /// How one of them is chosen.
    pub choice: Choice,
    /// For how long the share of one that comes grows to the whole, as
    /// [`Share::growth`](fairway_abi::Share::growth); 0: not at all.
    pub growth: u32,
    /// The clients that frontends with [`frontend::SOURCE_RANGES`] let in: prefix lengths and networks.
    pub source_ranges: BTreeSet<(u8, A)>,
}

/// How an endpoint of a list is chosen, for all frontends alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Bits of [`frontend`].
    pub flags: u32,
    /// See [`Frontend::affinity`](fairway_abi::Frontend::affinity).
    pub affinity: u32,
}

impl<A: Family> EndpointList<A> {
    /// What is to be in which slot; `None`: the endpoints, in whatever order.
    pub fn layout(&self) -> Option<Vec<Endpoint<A>>> {
        if self.choice.flags & frontend::BY_FLOW != 0 {
            return Some(maglev::table(&self.endpoints, &self.weights));
        }
        (!self.weights.is_empty()).then(|| slots::table(&self.endpoints, &self.weights))
    }

    /// The Service's port whose clients and source ranges it shares with other lists.
    pub fn port(&self) -> Option<(&ObjectName, &str, Protocol)> {
        match &self.name {
            ListName::Service { service, port, protocol, .. } => Some((service, port, *protocol)),
            ListName::ClosedPorts | ListName::HostPort { .. } => None,
        }
    }
}

/// What makes an address and port a Service's. Of two Services that want the same, the one with the
/// earlier kind has it, and among equals the one whose name comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Its address within the cluster.
    ClusterIp,
    /// One of its external addresses.
    ExternalIp,
    /// An address that a load balancer's controller gave it.
    LoadBalancer,
    /// An address of the node, with its node port.
    NodePort,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "external IP",
            Self::LoadBalancer => "load balancer's address",
            Self::NodePort => "node port",
        })
    }
}

/// An address and port that two Services want, which the model does not know: an address of the node
/// is an external one of a Service, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contest {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Who has it.
    pub winner: Claim,
    /// Who does not.
    pub loser: Claim,
}

/// A Service's reason to have an address and port; the lesser one prevails.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// As what.
    pub kind: Kind,
    /// The Service.
    pub service: ObjectName,
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, protocol, winner, loser } = self;
        let address = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        write!(
            f,
            "Services {} and {} both want {address}:{port} {protocol}: it is the first one's {}, and not \
             the other's {}",
            winner.service, loser.service, winner.kind, loser.kind
        )
    }
}

/// The lists of one family that a node needs, of all Services or of some.
pub struct ServiceLists<'a, A> {
    model: &'a Model,
    node: &'a Node,
    view: &'a View,
    places: Places<A>,
}

impl<'a, A: Family> ServiceLists<'a, A> {
    /// Those of `view`'s node, or `None` while the model does not know the node.
    pub fn new(model: &'a Model, view: &'a View) -> Option<Self> {
        model.nodes.get(&view.node).map(|node| Self::of_node(model, node, view))
    }

    pub(crate) fn of_node(model: &'a Model, node: &'a Node, view: &'a View) -> Self {
        Self { model, node, view, places: Places::new(node, view) }
    }

    /// Those of all Services, and [`ListName::ClosedPorts`]; by name. Each address and port is in one of
    /// them alone; what several Services want, one of them gets.
    pub fn all(&self) -> (Vec<EndpointList<A>>, BTreeSet<Contest>) {
        let services = self.model.services.values();
        let mut lists: Vec<_> = services.flat_map(|service| self.of_service(service)).collect();
        let closed = self.model.services.values().flat_map(closed_ports).collect();
        lists.push(closed_list(closed));
        lists.sort_by(|one, other| one.name.cmp(&other.name));
        let contests = self.settle(&mut lists);
        (lists, contests)
    }

    /// Leaves each address and port to one list.
    fn settle(&self, lists: &mut Vec<EndpointList<A>>) -> BTreeSet<Contest> {
        let mut owners: HashMap<FrontendKey<A>, usize> = HashMap::new();
        let mut lost = Vec::new();
        let mut contests = BTreeSet::new();
        for (index, list) in lists.iter().enumerate() {
            for key in list.frontends.keys() {
                let mut owner = match owners.entry(*key) {
                    Entry::Vacant(free) => {
                        free.insert(index);
                        continue;
                    }
                    Entry::Occupied(owner) => owner,
                };
                let claims = [*owner.get(), index].map(|index| self.claim(&lists[index], key));
                let [Some((was, protocol)), Some((is, _))] = claims else { continue };
                let (winner, loser) = if was <= is {
                    lost.push((index, *key));
                    (was, is)
                } else {
                    lost.push((owner.insert(index), *key));
                    (is, was)
                };
                let (address, port) = (key.address.to_ip(), key.port.get());
                contests.insert(Contest { address, port, protocol, winner, loser });
            }
        }
        for (index, key) in lost {
            lists[index].frontends.remove(&key);
        }
        if !contests.is_empty() {
            lists.retain(|list| !list.frontends.is_empty() || list.name == ListName::ClosedPorts);
        }
        contests
    }

    /// As what a list has a frontend, and of which protocol.
    fn claim(&self, list: &EndpointList<A>, key: &FrontendKey<A>) -> Option<(Claim, Protocol)> {
        let (name, port, protocol) = list.port()?;
        let service = self.model.services.get(name)?;
        let is_it = |of: &&ServicePort| of.name == port && of.protocol == protocol;
        let port = service.ports.iter().find(is_it)?;
        let cluster_ip = cluster_ip(service)?;
        let places = places_of(service, port, cluster_ip, &self.places, false);
        let kinds = places.iter().filter(|place| place.key == *key).map(|place| place.kind);
        Some((Claim { kind: kinds.min()?, service: name.clone() }, protocol))
    }

    /// Those of the Services with these names, as far as they exist, and what there is of
    /// [`ListName::ClosedPorts`] for them. What they and others want, they have all the same.
    pub fn some<'n>(
        &self,
        names: impl IntoIterator<Item = &'n ObjectName>,
    ) -> Vec<EndpointList<A>> {
        let mut lists = Vec::new();
        let mut closed = BTreeSet::new();
        for service in names.into_iter().filter_map(|name| self.model.services.get(name)) {
            lists.extend(self.of_service(service));
            closed.extend(closed_ports::<A>(service));
        }
        lists.push(closed_list(closed));
        lists
    }

    fn of_service(&self, service: &Service) -> Vec<EndpointList<A>> {
        let mut lists = of_service(self.model, self.node, &self.places, service);
        for list in &mut lists {
            let Some((_, name, protocol)) = list.port() else { continue };
            let is_it = |port: &&ServicePort| port.name == name && port.protocol == protocol;
            let port = service.ports.iter().find(is_it);
            if port.is_some_and(|port| resolver::answers(self.view, &service.name, port)) {
                self.put_agents(list);
            }
        }
        lists
    }

    /// Has this node's agent answer what is asked from inside; where the list has nobody else, peers' agents, which
    /// nobody outside is to reach.
    fn put_agents(&self, list: &mut EndpointList<A>) {
        for (key, flags) in &mut list.frontends {
            if key.scope == scope::INTERNAL {
                *flags |= frontend::RESOLVER;
            }
        }
        if !list.endpoints.is_empty() || list.choice.flags & frontend::ELSEWHERE != 0 {
            return;
        }
        let port = U16::new(RESOLVER_PORT);
        let peers = resolver::peers(self.model, self.node).into_iter();
        list.endpoints =
            peers.map(|address| Endpoint { address, port, reserved: [0; 2] }).collect();
        list.choice = Choice::default();
        list.frontends.retain(|key, _| key.scope == scope::INTERNAL);
    }
}

/// Where on a node a port of all Services is open.
struct Places<A> {
    /// Addresses of the node.
    node_ports: Vec<A>,
    /// Those by which other nodes know it; none if node ports are not open where they would look for its own.
    known: Vec<A>,
    /// The node's own processes reach it on the loopback address, too.
    loopback: bool,
    /// How clients from outside reach endpoints of other nodes, unless the Service says.
    forwarding: Forwarding,
}

impl<A: Family> Places<A> {
    fn new(node: &Node, view: &View) -> Self {
        let ranges = &view.node_port_ranges;
        let within = |ip: &IpAddr| ranges.iter().any(|range| range.contains(ip));
        let chosen: Vec<IpAddr> = if ranges.is_empty() {
            node.addresses.clone()
        } else {
            view.addresses.iter().copied().filter(within).collect()
        };
        let addresses = chosen.iter().filter_map(|ip| A::of(*ip));
        let node_ports: Vec<A> = addresses.filter(|address| *address != A::LOOPBACK).collect();
        let mut known: Vec<A> = node.addresses.iter().filter_map(|ip| A::of(*ip)).collect();
        if !known.first().is_some_and(|first| node_ports.contains(first)) {
            known.clear();
        }
        Self { node_ports, known, loopback: view.loopback_node_ports, forwarding: view.forwarding }
    }
}

fn of_service<A: Family>(
    model: &Model,
    node: &Node,
    places: &Places<A>,
    service: &Service,
) -> Vec<EndpointList<A>> {
    // A Service without an address of a family does not exist in it, node ports included.
    let Some(cluster_ip) = cluster_ip(service) else { return Vec::new() };
    let source_ranges: BTreeSet<(u8, A)> =
        service.source_ranges.iter().filter_map(|range| prefix(*range)).collect();
    let mut lists = Vec::new();
    for port in &service.ports {
        let mut by_policy: [BTreeMap<FrontendKey<A>, u32>; 2] = Default::default();
        for Place { key, policy, flags, .. } in
            places_of(service, port, cluster_ip, places, !source_ranges.is_empty())
        {
            // An address that is several things lets in whom all of them do.
            let frontends = &mut by_policy[usize::from(policy == TrafficPolicy::Local)];
            *frontends.entry(key).or_default() |= flags;
        }
        let all = model.endpoints.get(&service.name).and_then(|all| all.ports.get(&port.name));
        let all: Vec<&ModelEndpoint> =
            all.into_iter().flatten().filter(|one| A::of(one.address).is_some()).collect();
        for (local, frontends) in [false, true].into_iter().zip(by_policy) {
            if frontends.is_empty() {
                continue;
            }
            let chosen = chosen(&all, node, local);
            let endpoints: BTreeSet<Endpoint<A>> =
                chosen.iter().filter_map(|one| entry(one)).collect();
            let serves = all.iter().filter(|one| one.state != EndpointState::NotReady);
            let serves = serves.filter_map(|one| entry(one));
            // All nodes choose by the flow alike, and each learns at another moment that one is new.
            let slow = service.slow_start.filter(|_| service.balancing != Balancing::Maglev);
            let growth = slow.map_or(0, ticks);
            let growing = if growth > 0 { frontend::GROWING } else { 0 };
            let weights: BTreeMap<Endpoint<A>, u16> = weights(&chosen);
            let least = service.balancing == Balancing::LeastConnections;
            let weighed = if least && !weights.is_empty() { frontend::WEIGHED } else { 0 };
            let elsewhere =
                local && endpoints.is_empty() && !serving(all.iter().copied()).is_empty();
            let name = ListName::Service {
                service: service.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                local,
            };
            lists.push(EndpointList {
                name,
                frontends,
                lingering: serves.filter(|one| !endpoints.contains(one)).collect(),
                weights,
                endpoints,
                choice: Choice {
                    flags: balancing(service.balancing)
                        | growing
                        | weighed
                        | if elsewhere { frontend::ELSEWHERE } else { 0 },
                    affinity: service.affinity.map_or(0, ticks),
                },
                growth,
                source_ranges: source_ranges.clone(),
            });
        }
    }
    lists
}

/// An address and port of a Service.
struct Place<A> {
    key: FrontendKey<A>,
    kind: Kind,
    /// Which endpoints it leads to.
    policy: TrafficPolicy,
    /// Bits of [`frontend`].
    flags: u32,
}

/// A Service's address within the cluster, of one family.
fn cluster_ip<A: Family>(service: &Service) -> Option<A> {
    service.cluster_ips.iter().find_map(|ip| A::of(*ip))
}

/// Every place of a Service port.
fn places_of<A: Family>(
    service: &Service,
    port: &ServicePort,
    cluster_ip: A,
    places: &Places<A>,
    restricted: bool,
) -> Vec<Place<A>> {
    let forwarding = forwarding(service.forwarding.unwrap_or(places.forwarding));
    let place = |kind, (address, number): (A, u16), scope, policy, flags| {
        let protocol = port.protocol.number();
        let key = FrontendKey { address, port: U16::new(number), protocol, scope };
        let mut forwarding = if scope == scope::EXTERNAL { forwarding } else { 0 };
        // No other node would answer as an address that it does not know.
        if places.node_ports.contains(&address) && !places.known.contains(&address) {
            forwarding &= !frontend::DIRECT_RETURN;
        }
        Place { key, kind, policy, flags: flags | forwarding }
    };
    // From the inside, an external address reaches the whole Service whatever its external policy, as
    // if the packet had gone out to a load balancer and come back.
    let external = |kind, at, flags| {
        [
            place(kind, at, scope::INTERNAL, TrafficPolicy::Cluster, flags),
            place(kind, at, scope::EXTERNAL, service.external_traffic, flags),
        ]
    };
    let (internal, at) = (service.internal_traffic, (cluster_ip, port.port));
    let mut all = vec![
        place(Kind::ClusterIp, at, scope::INTERNAL, internal, 0),
        place(Kind::ClusterIp, at, scope::EXTERNAL, internal, 0),
    ];
    if let Some(number) = port.node_port {
        let addresses = places.node_ports.iter();
        all.extend(addresses.flat_map(|address| external(Kind::NodePort, (*address, number), 0)));
        if places.loopback {
            let (policy, at) = (TrafficPolicy::Cluster, (A::LOOPBACK, number));
            all.push(place(Kind::NodePort, at, scope::LOOPBACK, policy, 0));
        }
    }
    let restricted = if restricted { frontend::SOURCE_RANGES } else { 0 };
    for (kind, addresses, flags) in [
        (Kind::ExternalIp, &service.external_ips, 0),
        (Kind::LoadBalancer, &service.load_balancer_ips, restricted),
    ] {
        let addresses = addresses.iter().filter_map(|ip| A::of(*ip));
        all.extend(addresses.flat_map(|address| external(kind, (address, port.port), flags)));
    }
    all
}

/// What catches packets to the addresses of a Service, but to none of its ports.
pub fn closed_ports<A: Family>(service: &Service) -> impl Iterator<Item = FrontendKey<A>> {
    service.cluster_ips.iter().filter_map(|ip| A::of(*ip)).map(any_port)
}

fn closed_list<A: Family>(frontends: BTreeSet<FrontendKey<A>>) -> EndpointList<A> {
    EndpointList {
        name: ListName::ClosedPorts,
        frontends: frontends.into_iter().map(|key| (key, 0)).collect(),
        endpoints: BTreeSet::new(),
        weights: BTreeMap::new(),
        lingering: BTreeSet::new(),
        choice: Choice::default(),
        growth: 0,
        source_ranges: BTreeSet::new(),
    }
}

/// The endpoints that take new connections here: of all, those that their hints mean for this node; or
/// those on it alone. The two fall back independently.
fn chosen<'a>(all: &[&'a ModelEndpoint], node: &Node, local: bool) -> Vec<&'a ModelEndpoint> {
    let here = |endpoint: &&ModelEndpoint| endpoint.node.as_deref() == Some(&*node.name);
    if local {
        weighing(serving(all.iter().copied().filter(here)))
    } else {
        close_by(weighing(serving(all.iter().copied())), node)
    }
}

/// Those with a weight, or all if none has one.
fn weighing(mut serving: Vec<&ModelEndpoint>) -> Vec<&ModelEndpoint> {
    if serving.iter().any(|endpoint| endpoint.weight > 0) {
        serving.retain(|endpoint| endpoint.weight > 0);
    }
    serving
}

/// The weights of those that were chosen, as [`EndpointList`] has them; none if all are the same.
fn weights<A: Family>(chosen: &[&ModelEndpoint]) -> BTreeMap<Endpoint<A>, u16> {
    let same =
        chosen.iter().zip(chosen.iter().skip(1)).all(|(one, other)| one.weight == other.weight);
    let uneven = chosen.iter().filter(|one| !same && one.weight != 1);
    uneven.filter_map(|one| Some((entry(one)?, one.weight))).collect()
}

fn entry<A: Family>(endpoint: &ModelEndpoint) -> Option<Endpoint<A>> {
    let port = U16::new(endpoint.port);
    Some(Endpoint { address: A::of(endpoint.address)?, port, reserved: [0; 2] })
}

/// The ready ones; if there is none, those that still serve while they go away.
fn serving<'a>(
    endpoints: impl Iterator<Item = &'a ModelEndpoint> + Clone,
) -> Vec<&'a ModelEndpoint> {
    let of = |state| endpoints.clone().filter(move |endpoint| endpoint.state == state).collect();
    let ready: Vec<_> = of(EndpointState::Ready);
    if ready.is_empty() { of(EndpointState::ServingTerminating) } else { ready }
}

/// Those that hints mean for clients of this node, if all ready ones have hints of that kind and some
/// are: by node before by zone. Otherwise all, as also where none is ready (KEP-2433, KEP-3015).
fn close_by<'a>(serving: Vec<&'a ModelEndpoint>, node: &Node) -> Vec<&'a ModelEndpoint> {
    fn hinted<'a>(
        serving: &[&'a ModelEndpoint],
        hints: impl Fn(&ModelEndpoint) -> &[String],
        to: &str,
    ) -> Option<Vec<&'a ModelEndpoint>> {
        if serving.iter().any(|endpoint| hints(endpoint).is_empty()) {
            return None;
        }
        let meant = |endpoint: &&&ModelEndpoint| hints(endpoint).iter().any(|hint| hint == to);
        let close: Vec<_> = serving.iter().filter(meant).copied().collect();
        (!close.is_empty()).then_some(close)
    }
    if serving.iter().any(|endpoint| endpoint.state != EndpointState::Ready) {
        return serving;
    }
    let by_node = hinted(&serving, |endpoint| &endpoint.hints.nodes, &node.name);
    let by_zone = || hinted(&serving, |endpoint| &endpoint.hints.zones, node.zone.as_deref()?);
    by_node.or_else(by_zone).unwrap_or(serving)
}

fn balancing(balancing: Balancing) -> u32 {
    match balancing {
        Balancing::Random => 0,
        Balancing::RoundRobin => frontend::IN_TURN,
        Balancing::LeastConnections => frontend::LEAST,
        Balancing::Maglev => frontend::BY_FLOW,
    }
}

fn forwarding(forwarding: Forwarding) -> u32 {
    match forwarding {
        Forwarding::Snat => 0,
        Forwarding::Keep => frontend::KEEP_CLIENT,
        Forwarding::Dsr => frontend::KEEP_CLIENT | frontend::DIRECT_RETURN,
    }
}

/// Seconds in the units of [`Affinity::since`](fairway_abi::Affinity::since), at least one.
fn ticks(seconds: u32) -> u32 {
    const NANOSECONDS: u64 = 1_000_000_000;
    let ticks = (u64::from(seconds) * NANOSECONDS) >> 30;
    u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
}

/// A range's length and first address, if it is of this family.
fn prefix<A: Family>(range: IpNet) -> Option<(u8, A)> {
    Some((range.prefix_len(), A::of(range.network())?))
}

#[cfg(test)]
mod tests {
    use fairway_abi::V4;
    use fairway_model::{Endpoints, Hints};

    use super::*;

    const READY: EndpointState = EndpointState::Ready;
    const LEAVING: EndpointState = EndpointState::ServingTerminating;
    const NOT_READY: EndpointState = EndpointState::NotReady;

    /// Service shop/web, 10.96.0.1:80 and node port 30080, with these endpoints (last octet, node,
    /// state), compiled on node `a` (192.0.2.1).
    fn lists(
        internal: TrafficPolicy,
        external: TrafficPolicy,
        endpoints: &[(u8, &str, EndpointState)],
    ) -> Vec<EndpointList<V4>> {
        lists_of(Protocol::Tcp, internal, external, endpoints)
    }

    /// The same for a port of this protocol.
    fn lists_of(
        protocol: Protocol,
        internal: TrafficPolicy,
        external: TrafficPolicy,
        endpoints: &[(u8, &str, EndpointState)],
    ) -> Vec<EndpointList<V4>> {
        let endpoints: Vec<_> =
            endpoints.iter().map(|(octet, node, state)| (*octet, *node, *state, 1)).collect();
        weighted(protocol, internal, external, &endpoints)
    }

    /// The same with endpoints that have weights.
    fn weighted(
        protocol: Protocol,
        internal: TrafficPolicy,
        external: TrafficPolicy,
        endpoints: &[(u8, &str, EndpointState, u16)],
    ) -> Vec<EndpointList<V4>> {
        let name = ObjectName::new("shop", "web");
        let mut model = Model::default();
        let port = ServicePort { name: "http".into(), protocol, port: 80, node_port: Some(30080) };
        let service = Service {
            name: name.clone(),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            ports: vec![port],
            internal_traffic: internal,
            external_traffic: external,
            ..Service::default()
        };
        let endpoints = endpoints.iter().map(|(octet, node, state, weight)| ModelEndpoint {
            address: [10, 244, 0, *octet].into(),
            port: 8080,
            node: Some((*node).to_owned()),
            state: *state,
            hints: Hints::default(),
            weight: *weight,
            hostname: None,
        });
        let ports = BTreeMap::from([("http".to_owned(), endpoints.collect())]);
        model.services.insert(service);
        model.endpoints.insert(Endpoints { service: name, ports });
        let node = Node {
            name: "a".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ..Node::default()
        };
        let (mut lists, contests) = ServiceLists::of_node(&model, &node, &View::default()).all();
        assert_eq!(contests, BTreeSet::new());
        lists.retain(|list| list.name != ListName::ClosedPorts);
        lists
    }

    #[test]
    fn some_services_have_the_lists_that_they_have_among_all() {
        let service = |name: &str, last: u8| Service {
            name: ObjectName::new("shop", name),
            cluster_ips: vec![[10, 96, 0, last].into()],
            ports: vec![ServicePort { port: 80, ..ServicePort::default() }],
            ..Service::default()
        };
        let services = [service("api", 1), service("web", 2)].into_iter().collect();
        let model = Model { services, ..Model::default() };
        let node = Node { name: "a".into(), ..Node::default() };
        let view = View::default();
        let lists = ServiceLists::<V4>::of_node(&model, &node, &view);
        let [api, web] = ["api", "web"].map(|name| ObjectName::new("shop", name));
        assert_eq!(lists.some([&api, &web]), lists.all().0);
        let some = lists.some([&web, &ObjectName::new("shop", "gone")]);
        let [of_web, closed] = &some[..] else { panic!("{some:?}") };
        assert_eq!(Some(of_web), lists.all().0.get(1));
        assert_eq!(
            closed.frontends.keys().copied().collect::<Vec<_>>(),
            [any_port([10, 96, 0, 2])]
        );
        assert!(closed_ports::<V4>(&model.services[&web]).eq([any_port([10, 96, 0, 2])]));
    }

    #[test]
    fn each_protocol_has_frontends_of_its_own() {
        const CLUSTER: TrafficPolicy = TrafficPolicy::Cluster;
        for (protocol, number) in [(Protocol::Tcp, 6), (Protocol::Udp, 17), (Protocol::Sctp, 132)] {
            let lists = lists_of(protocol, CLUSTER, CLUSTER, &[(2, "a", READY)]);
            let numbers: Vec<_> = lists
                .iter()
                .flat_map(|list| list.frontends.keys())
                .map(|key| key.protocol)
                .collect();
            assert_eq!(
                numbers, [number; 4],
                "{protocol}: ClusterIP and node port, each from inside and outside"
            );
        }
    }

    /// `address:port/scope -> endpoints` of every frontend, by last octet.
    fn shown(lists: &[EndpointList<V4>]) -> Vec<String> {
        let mut lines: Vec<_> = lists
            .iter()
            .flat_map(|list| {
                list.frontends.keys().map(|key| {
                    let scope = if key.scope == scope::EXTERNAL { "ext" } else { "int" };
                    let to: Vec<_> = list.endpoints.iter().map(|e| e.address[3]).collect();
                    format!("{}:{}/{scope} -> {to:?}", key.address.to_ip(), key.port)
                })
            })
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn cluster_policy_takes_every_ready_endpoint() {
        use TrafficPolicy::Cluster;
        let lists =
            lists(Cluster, Cluster, &[(2, "a", READY), (3, "b", READY), (4, "b", NOT_READY)]);
        assert_eq!(
            shown(&lists),
            [
                "10.96.0.1:80/ext -> [2, 3]",
                "10.96.0.1:80/int -> [2, 3]",
                "192.0.2.1:30080/ext -> [2, 3]",
                "192.0.2.1:30080/int -> [2, 3]",
            ]
        );
    }

    #[test]
    fn external_local_policy_keeps_to_this_node_but_not_for_inside_clients() {
        use TrafficPolicy::{Cluster, Local};
        let lists = lists(Cluster, Local, &[(2, "a", READY), (3, "b", READY)]);
        assert_eq!(
            shown(&lists),
            [
                "10.96.0.1:80/ext -> [2, 3]",
                "10.96.0.1:80/int -> [2, 3]",
                "192.0.2.1:30080/ext -> [2]",
                "192.0.2.1:30080/int -> [2, 3]",
            ]
        );
    }

    #[test]
    fn terminating_endpoints_serve_only_when_none_is_ready_and_sets_fall_back_independently() {
        use TrafficPolicy::{Cluster, Local};
        let lists = lists(Local, Cluster, &[(2, "a", LEAVING), (3, "b", READY), (4, "b", LEAVING)]);
        assert_eq!(
            shown(&lists),
            [
                "10.96.0.1:80/ext -> [2]",
                "10.96.0.1:80/int -> [2]",
                "192.0.2.1:30080/ext -> [3]",
                "192.0.2.1:30080/int -> [3]",
            ]
        );
    }

    type Edit = fn(&mut Service);

    /// Which Service has which address and port on node `a` (192.0.2.1), and what is said of it. Each of
    /// `services` has port 80, and what `edit` gives it.
    fn owners(services: &[(&str, Edit)]) -> (Vec<String>, Vec<String>) {
        let mut model = Model::default();
        for (last, (name, edit)) in (1..).zip(services) {
            let port = ServicePort { name: "http".into(), port: 80, ..ServicePort::default() };
            let mut service = Service {
                name: ObjectName::new("shop", *name),
                cluster_ips: vec![[10, 96, 0, last].into()],
                ports: vec![port],
                ..Service::default()
            };
            edit(&mut service);
            model.services.insert(service);
        }
        let node = Node {
            name: "a".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ..Node::default()
        };
        let (lists, contests) = ServiceLists::<V4>::of_node(&model, &node, &View::default()).all();
        let mut owners = BTreeSet::new();
        let mut keys = BTreeSet::new();
        for list in lists.iter().filter(|list| list.name != ListName::ClosedPorts) {
            let (service, ..) = list.port().expect("a Service's");
            for key in list.frontends.keys() {
                assert!(keys.insert(*key), "{key:?} is in two lists");
                if key.address[0] != 10 {
                    let address = key.address.to_ip();
                    owners.insert(format!("{address}:{} {}", key.port, service.name));
                }
            }
        }
        let contests = contests.iter().map(ToString::to_string);
        (owners.into_iter().collect(), contests.collect())
    }

    #[test]
    fn an_address_that_two_services_want_goes_to_one_and_both_are_told() {
        let here: Edit = |service| service.external_ips = vec!["192.0.2.1".parse().unwrap()];
        let node_port: Edit = |service| {
            service.ports[0].node_port = Some(30080);
            service.ports[0].port = 443;
        };
        let external: Edit = |service| {
            service.external_ips = vec!["192.0.2.1".parse().unwrap()];
            service.ports[0].port = 30080;
        };
        let balancer: Edit = |service| {
            service.load_balancer_ips = vec!["192.0.2.1".parse().unwrap()];
            service.ports[0].port = 30080;
        };
        let said = |winner: &str, loser: &str, as_what: &str| {
            vec![format!(
                "Services shop/{winner} and shop/{loser} both want 192.0.2.1:30080 TCP: it is the first \
                 one's {as_what}, and not the other's node port"
            )]
        };
        // Whatever their names are.
        for (winner, loser) in [("a", "b"), ("b", "a")] {
            let one = vec![format!("192.0.2.1:30080 {winner}")];
            assert_eq!(
                owners(&[(winner, external), (loser, node_port)]),
                (one.clone(), said(winner, loser, "external IP"))
            );
            assert_eq!(
                owners(&[(loser, node_port), (winner, balancer)]),
                (one, said(winner, loser, "load balancer's address"))
            );
        }
        let both = vec!["192.0.2.1:30080 a".to_owned(), "192.0.2.1:80 b".to_owned()];
        assert_eq!(owners(&[("a", node_port), ("b", here)]), (both, vec![]), "no port in common");
        // Among equals, which the model does not let happen.
        let (owners, contests) = owners(&[("b", external), ("a", external)]);
        assert_eq!((owners, contests.len()), (vec!["192.0.2.1:30080 a".to_owned()], 1));
    }

    /// Each endpoint's slots in the list of the ClusterIP, by last octet, and who lingers.
    fn shares(
        external: TrafficPolicy,
        endpoints: &[(u8, &str, EndpointState, u16)],
        local: bool,
    ) -> (Vec<(u8, usize)>, Vec<u8>) {
        let lists = weighted(Protocol::Tcp, TrafficPolicy::Cluster, external, endpoints);
        let wanted = |list: &&EndpointList<V4>| matches!(list.name, ListName::Service { local: of, .. } if of == local);
        let list = lists.iter().find(wanted).expect("such a list");
        let slots = list.layout().unwrap_or_else(|| list.endpoints.iter().copied().collect());
        let count = |one: &Endpoint<V4>| slots.iter().filter(|slot| *slot == one).count();
        let shares = list.endpoints.iter().map(|one| (one.address[3], count(one))).collect();
        (shares, list.lingering.iter().map(|one| one.address[3]).collect())
    }

    #[test]
    fn endpoints_have_slots_by_their_weights() {
        use TrafficPolicy::{Cluster, Local};
        let all = [(2, "a", READY, 30), (3, "b", READY, 10), (4, "b", READY, 0)];
        assert_eq!(shares(Cluster, &all, false), (vec![(2, 3), (3, 1)], vec![4]));
        // Who is alone, or like all others, needs no more than one.
        assert_eq!(shares(Local, &all, true), (vec![(2, 1)], vec![3, 4]));
        let same = [(2, "a", READY, 7), (3, "b", READY, 7)];
        assert_eq!(shares(Cluster, &same, false), (vec![(2, 1), (3, 1)], vec![]));
    }

    #[test]
    fn an_endpoint_of_weight_0_serves_where_there_is_nobody_else() {
        use TrafficPolicy::{Cluster, Local};
        let none = [(2, "a", READY, 0), (3, "b", READY, 0)];
        assert_eq!(shares(Cluster, &none, false), (vec![(2, 1), (3, 1)], vec![]));
        // Each list for itself, and who is ready before who goes away.
        let here = [(2, "a", READY, 0), (3, "b", READY, 5), (4, "a", LEAVING, 5)];
        assert_eq!(shares(Local, &here, true), (vec![(2, 1)], vec![3, 4]));
        assert_eq!(shares(Local, &here, false), (vec![(3, 1)], vec![2, 4]));
    }

    #[test]
    fn shares_grow_but_not_where_all_nodes_choose_alike() {
        let growth = |balancing, slow_start| {
            let name = ObjectName::new("shop", "web");
            let service = Service {
                cluster_ips: vec!["10.96.0.1".parse().unwrap()],
                ports: vec![ServicePort { port: 80, ..ServicePort::default() }],
                name,
                balancing,
                slow_start,
                ..Service::default()
            };
            let mut model = Model::default();
            model.services.insert(service);
            let node = Node { name: "a".into(), ..Node::default() };
            let (lists, _) = ServiceLists::<V4>::of_node(&model, &node, &View::default()).all();
            let list = lists.into_iter().find(|list| list.name != ListName::ClosedPorts);
            let list = list.expect("a list");
            (list.growth, list.choice.flags)
        };
        const GROWING: u32 = frontend::GROWING;
        assert_eq!(growth(Balancing::Random, None), (0, 0));
        assert_eq!(growth(Balancing::Random, Some(30)), (27, GROWING));
        assert_eq!(growth(Balancing::RoundRobin, Some(1)), (1, GROWING | frontend::IN_TURN));
        assert_eq!(growth(Balancing::Maglev, Some(30)), (0, frontend::BY_FLOW));
        assert_eq!(growth(Balancing::LeastConnections, None), (0, frontend::LEAST));
        let both = GROWING | frontend::LEAST;
        assert_eq!(growth(Balancing::LeastConnections, Some(30)), (27, both));
    }

    #[test]
    fn hints_are_about_endpoints_that_have_a_weight() {
        let endpoint = |last: u8, zone: &str, weight| ModelEndpoint {
            address: [10, 244, 0, last].into(),
            port: 8080,
            node: None,
            state: READY,
            hints: Hints { zones: vec![zone.to_owned()], nodes: Vec::new() },
            weight,
            hostname: None,
        };
        let node = Node { name: "n".into(), zone: Some("a".into()), ..Node::default() };
        let chosen = |weight| {
            let all = [endpoint(2, "a", weight), endpoint(3, "b", 1)];
            let chosen = chosen(&all.iter().collect::<Vec<_>>(), &node, false);
            chosen.into_iter().map(|one| one.address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(chosen(1), ["10.244.0.2"]);
        assert_eq!(chosen(0), ["10.244.0.3"], "a zone can be emptied");
    }

    #[test]
    fn only_clients_from_outside_are_forwarded_as_a_service_or_its_node_says() {
        use Forwarding::{Dsr, Keep, Snat};
        let dsr = frontend::KEEP_CLIENT | frontend::DIRECT_RETURN;
        for (says, node, flags) in [
            (Some(Dsr), Snat, dsr),
            (None, Dsr, dsr),
            (None, Snat, 0),
            (None, Keep, frontend::KEEP_CLIENT),
            (Some(Snat), Keep, 0),
            (Some(Keep), Snat, frontend::KEEP_CLIENT),
        ] {
            let port = ServicePort { port: 80, node_port: Some(30080), ..ServicePort::default() };
            let service = Service {
                name: ObjectName::new("shop", "web"),
                cluster_ips: vec!["10.96.0.1".parse().unwrap()],
                external_ips: vec!["203.0.113.1".parse().unwrap()],
                ports: vec![port],
                forwarding: says,
                ..Service::default()
            };
            let model: Model = [fairway_model::Object::Service(service)].into_iter().collect();
            let addresses = vec!["192.0.2.1".parse().unwrap()];
            let here = Node { name: "a".into(), addresses, ..Node::default() };
            let view = View { forwarding: node, ..View::default() };
            let (lists, _) = ServiceLists::<V4>::of_node(&model, &here, &view).all();
            let places: Vec<_> = lists.iter().flat_map(|list| &list.frontends).collect();
            assert_eq!(places.len(), 7, "three places from inside and outside, and closed ports");
            for (key, has) in places {
                let expected = if key.scope == scope::EXTERNAL { flags } else { 0 };
                assert_eq!(*has, expected, "{key:?}");
            }
        }
    }

    #[test]
    fn no_node_is_to_answer_as_an_address_that_it_does_not_know() {
        let known: IpAddr = "192.0.2.1".parse().unwrap();
        let unknown: IpAddr = "203.0.113.9".parse().unwrap();
        let mut model = Model::default();
        let port = ServicePort { port: 80, node_port: Some(30080), ..ServicePort::default() };
        model.services.insert(Service {
            name: ObjectName::new("shop", "web"),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            ports: vec![port],
            forwarding: Some(Forwarding::Dsr),
            ..Service::default()
        });
        let here = Node { name: "a".into(), addresses: vec![known], ..Node::default() };
        let direct = |ranges: &[&str]| {
            let node_port_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
            let addresses = vec![known, unknown];
            let view = View { addresses, node_port_ranges, ..View::default() };
            let (lists, _) = ServiceLists::<V4>::of_node(&model, &here, &view).all();
            let frontends = lists.iter().flat_map(|list| list.frontends.clone());
            let direct = frontends.filter(|(key, flags)| {
                key.port.get() == 30080 && flags & frontend::DIRECT_RETURN != 0
            });
            direct.map(|(key, _)| key.address.to_ip()).collect::<Vec<_>>()
        };
        assert_eq!(direct(&[]), [known]);
        assert_eq!(direct(&["0.0.0.0/0"]), [known]);
        assert!(direct(&["203.0.113.0/24"]).is_empty(), "nobody knows its own node ports");
    }

    #[test]
    fn a_service_without_endpoints_keeps_its_frontends() {
        use TrafficPolicy::Cluster;
        assert_eq!(shown(&lists(Cluster, Cluster, &[])).len(), 4);
    }
}
