//! Services: lists of endpoints and the frontends that lead to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use fairway_abi::{Endpoint, FrontendKey, scope};
use fairway_model::{
    EndpointState, Model, Node, ObjectName, Protocol, Service, ServicePort, TrafficPolicy,
};
use zerocopy::network_endian::U16;

use crate::Family;

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
            Self::HostPort { pod, port, protocol, address } => {
                write!(f, "host port {port} {protocol} of pod {pod}")?;
                address.map_or(Ok(()), |address| write!(f, " on {address}"))
            }
        }
    }
}

/// A list of endpoints to choose from at random, and every address that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointList<A> {
    /// What it holds.
    pub name: ListName,
    /// The addresses, ports and scopes that lead to it.
    pub frontends: BTreeSet<FrontendKey<A>>,
    /// Each once; may be empty, and new connections are then refused.
    pub endpoints: BTreeSet<Endpoint<A>>,
}

/// The lists of one family that `node` needs, by name.
pub(crate) fn compile<A: Family>(model: &Model, node: &Node) -> Vec<EndpointList<A>> {
    let node_addresses: Vec<A> = node.addresses.iter().filter_map(|ip| A::of(*ip)).collect();
    let mut lists = BTreeMap::new();
    for service in model.services.values() {
        // A Service without an address of a family does not exist in it, node ports included.
        let Some(cluster_ip) = service.cluster_ips.iter().find_map(|ip| A::of(*ip)) else {
            continue;
        };
        for port in &service.ports {
            for (frontend, policy) in frontends(service, port, cluster_ip, &node_addresses) {
                let local = policy == TrafficPolicy::Local;
                let name = ListName::Service {
                    service: service.name.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                    local,
                };
                let list = lists.entry(name).or_insert_with_key(|name| EndpointList {
                    name: name.clone(),
                    frontends: BTreeSet::new(),
                    endpoints: endpoints(model, &service.name, &port.name, local.then_some(node)),
                });
                list.frontends.insert(frontend);
            }
        }
    }
    lists.into_values().collect()
}

/// Every frontend of a Service port, with the policy that decides which endpoints it leads to.
fn frontends<A: Family>(
    service: &Service,
    port: &ServicePort,
    cluster_ip: A,
    node_addresses: &[A],
) -> Vec<(FrontendKey<A>, TrafficPolicy)> {
    let key = |address, number, scope| FrontendKey {
        address,
        port: U16::new(number),
        protocol: port.protocol.number(),
        scope,
    };
    let mut all = vec![(key(cluster_ip, port.port, scope::INTERNAL), service.internal_traffic)];
    if let Some(number) = port.node_port {
        for address in node_addresses {
            // From the inside, an external address reaches the whole Service whatever its external
            // policy, as if the packet had gone out to a load balancer and come back.
            all.push((key(*address, number, scope::INTERNAL), TrafficPolicy::Cluster));
            all.push((key(*address, number, scope::EXTERNAL), service.external_traffic));
        }
    }
    all
}

/// The endpoints that take new connections: the ready ones; if there is none, those that still serve
/// while they go away. The local choice, which is that of `on` one node, and the cluster-wide one fall
/// back independently.
fn endpoints<A: Family>(
    model: &Model,
    service: &ObjectName,
    port: &str,
    on: Option<&Node>,
) -> BTreeSet<Endpoint<A>> {
    let all = model.endpoints.get(service).and_then(|endpoints| endpoints.ports.get(port));
    let of_state = |state: EndpointState| -> BTreeSet<Endpoint<A>> {
        all.into_iter()
            .flatten()
            .filter(|endpoint| endpoint.state == state)
            .filter(|endpoint| on.is_none_or(|on| endpoint.node.as_deref() == Some(&*on.name)))
            .filter_map(|endpoint| {
                Some(Endpoint {
                    address: A::of(endpoint.address)?,
                    port: U16::new(endpoint.port),
                    reserved: [0; 2],
                })
            })
            .collect()
    };
    let ready = of_state(EndpointState::Ready);
    if ready.is_empty() { of_state(EndpointState::ServingTerminating) } else { ready }
}

#[cfg(test)]
mod tests {
    use fairway_abi::V4;
    use fairway_model::{Endpoint as ModelEndpoint, Endpoints};

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
        let name = ObjectName::new("shop", "web");
        let mut model = Model::default();
        let port = ServicePort { name: "http".into(), protocol, port: 80, node_port: Some(30080) };
        let service = Service {
            name: name.clone(),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            ports: vec![port],
            internal_traffic: internal,
            external_traffic: external,
        };
        let endpoints = endpoints.iter().map(|(octet, node, state)| ModelEndpoint {
            address: [10, 244, 0, *octet].into(),
            port: 8080,
            node: Some((*node).to_owned()),
            state: *state,
        });
        let ports = BTreeMap::from([("http".to_owned(), endpoints.collect())]);
        model.services.insert(name.clone(), service);
        model.endpoints.insert(name.clone(), Endpoints { service: name, ports });
        let node = Node {
            name: "a".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ..Node::default()
        };
        compile(&model, &node)
    }

    #[test]
    fn each_protocol_has_frontends_of_its_own() {
        const CLUSTER: TrafficPolicy = TrafficPolicy::Cluster;
        for (protocol, number) in [(Protocol::Tcp, 6), (Protocol::Udp, 17), (Protocol::Sctp, 132)] {
            let lists = lists_of(protocol, CLUSTER, CLUSTER, &[(2, "a", READY)]);
            let numbers: Vec<_> =
                lists.iter().flat_map(|list| &list.frontends).map(|key| key.protocol).collect();
            assert_eq!(
                numbers, [number; 3],
                "{protocol}: the ClusterIP and both scopes of the node"
            );
        }
    }

    /// `address:port/scope -> endpoints` of every frontend, by last octet.
    fn shown(lists: &[EndpointList<V4>]) -> Vec<String> {
        let mut lines: Vec<_> = lists
            .iter()
            .flat_map(|list| {
                list.frontends.iter().map(|key| {
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
            ["10.96.0.1:80/int -> [2]", "192.0.2.1:30080/ext -> [3]", "192.0.2.1:30080/int -> [3]",]
        );
    }

    #[test]
    fn a_service_without_endpoints_keeps_its_frontends() {
        use TrafficPolicy::Cluster;
        assert_eq!(shown(&lists(Cluster, Cluster, &[])).len(), 3);
    }
}
