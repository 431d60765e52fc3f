//! Who answers the cluster's DNS queries where this node's agent does not.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};

use fairway_abi::RESOLVER_PORT;
use fairway_model::{Model, Node, ObjectName, Protocol, ServicePort};
use ipnet::IpNet;

use crate::{Family, View};

/// How many peers' agents a node falls back to, so that a large cluster costs no more than a few routes.
const MOST: usize = 8;

/// Whether this node's agent answers what is sent to this port of a Service.
pub(crate) fn answers(view: &View, service: &ObjectName, port: &ServicePort) -> bool {
    view.resolver.as_ref() == Some(service)
        && port.port == RESOLVER_PORT
        && matches!(port.protocol, Protocol::Udp | Protocol::Tcp)
}

/// Where other nodes' agents are asked: the first address of a node's range of pods, which every node can
/// reach and no pod has. Each node has others, so that all of them share what there is to do; the same ones as
/// long as they are there (rendezvous hashing).
pub(crate) fn peers<A: Family>(model: &Model, node: &Node) -> Vec<A> {
    let weight = |peer: &Node| {
        let mut hasher = DefaultHasher::new();
        (&node.name, &peer.name).hash(&mut hasher);
        hasher.finish()
    };
    let others = model.nodes.values().filter(|peer| peer.resolver && peer.name != node.name);
    let mut others: Vec<(u64, A)> =
        others.filter_map(|peer| Some((weight(peer), address(peer)?))).collect();
    others.sort_unstable_by_key(|(weight, _)| Reverse(*weight));
    others.truncate(MOST);
    others.into_iter().map(|(_, address)| address).collect()
}

fn address<A: Family>(node: &Node) -> Option<A> {
    node.pod_cidrs.iter().map(IpNet::network).find_map(A::of)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fairway_abi::{V4, frontend, peer, scope};
    use fairway_model::{Endpoint, EndpointState, Endpoints, Hints, Object, Service};

    use super::*;
    use crate::{FamilyTables, ListName, compile};

    fn cluster(nodes: u8) -> Model {
        let node = |number: u8| Node {
            name: format!("n{number}"),
            addresses: vec![[192, 0, 2, number].into()],
            pod_cidrs: vec![format!("10.244.{number}.0/24").parse().expect("a range")],
            resolver: number != 3,
            ..Node::default()
        };
        (0..nodes).map(node).map(Object::Node).collect()
    }

    fn peers_of(model: &Model, node: &str) -> Vec<V4> {
        peers::<V4>(model, &model.nodes[node])
    }

    #[test]
    fn peers_are_those_that_answer_at_the_first_address_of_their_pods() {
        let mut found = peers_of(&cluster(5), "n1");
        found.sort_unstable();
        assert_eq!(found, [[10, 244, 0, 0], [10, 244, 2, 0], [10, 244, 4, 0]]);
        assert!(peers::<[u8; 16]>(&cluster(5), &cluster(5).nodes["n1"]).is_empty());
    }

    #[test]
    fn a_few_are_enough_and_differ_from_node_to_node() {
        let model = cluster(100);
        let [one, other] = ["n1", "n2"].map(|node| peers_of(&model, node));
        assert_eq!((one.len(), other.len()), (MOST, MOST));
        assert_ne!(one, other);
        let mut smaller = model.clone();
        smaller.nodes.insert(Node { resolver: false, ..model.nodes["n50"].clone() });
        let stayed = peers_of(&smaller, "n1");
        assert!(one.iter().filter(|peer| !stayed.contains(peer)).count() <= 1);
    }

    fn kube_dns() -> ObjectName {
        ObjectName::new("kube-system", "kube-dns")
    }

    /// What node n1 of three holds, whose Service has these endpoints.
    fn tables(resolver: Option<ObjectName>, endpoints: &[V4]) -> FamilyTables<V4> {
        let mut model = cluster(3);
        let port = |name: &str, protocol, port| ServicePort {
            name: name.to_owned(),
            protocol,
            port,
            node_port: None,
        };
        model.services.insert(Service {
            name: kube_dns(),
            cluster_ips: vec![[10, 96, 0, 10].into()],
            ports: vec![port("dns", Protocol::Udp, 53), port("metrics", Protocol::Tcp, 9153)],
            ..Service::default()
        });
        let endpoints = endpoints.iter().map(|address| Endpoint {
            address: (*address).into(),
            port: 5353,
            node: None,
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        });
        let ports = BTreeMap::from([("dns".to_owned(), endpoints.collect())]);
        model.endpoints.insert(Endpoints { service: kube_dns(), ports });
        compile(&model, &View { node: "n1".into(), resolver, ..View::default() })
            .expect("the node is known")
            .v4
    }

    /// Port, scope, flags.
    type Frontend = (u16, u8, u32);

    /// Each frontend, and the last two bytes of each endpoint.
    fn list(tables: &FamilyTables<V4>, wanted: &str) -> (Vec<Frontend>, Vec<[u8; 2]>) {
        let is_it =
            |name: &ListName| matches!(name, ListName::Service { port, .. } if port == wanted);
        let list = tables.services.iter().find(|list| is_it(&list.name)).expect("the list");
        let frontends = list.frontends.iter();
        let frontends = frontends.map(|(key, flags)| (key.port.get(), key.scope, *flags));
        let endpoints = list.endpoints.iter().map(|of| [of.address[2], of.address[3]]);
        (frontends.collect(), endpoints.collect())
    }

    const ANSWERED: Frontend = (53, scope::INTERNAL, frontend::RESOLVER);

    #[test]
    fn this_nodes_agent_comes_before_the_endpoints_for_who_asks_from_inside() {
        let tables = tables(Some(kube_dns()), &[[10, 244, 2, 7]]);
        let expected = (vec![ANSWERED, (53, scope::EXTERNAL, 0)], vec![[2, 7]]);
        assert_eq!(list(&tables, "dns"), expected);
        let (frontends, _) = list(&tables, "metrics");
        assert!(frontends.iter().all(|(.., flags)| *flags == 0), "{frontends:?}");
        assert!(tables.routes.contains_key(&(32, [169, 254, 20, 10])));
    }

    #[test]
    fn without_endpoints_come_the_agents_of_peers_and_nobody_outside_reaches_them() {
        let tables = tables(Some(kube_dns()), &[]);
        assert_eq!(list(&tables, "dns"), (vec![ANSWERED], vec![[0, 0], [2, 0]]));
        let flags = |address| tables.routes[&(32, address)].peer.flags[0];
        assert_ne!(flags([10, 244, 2, 0]) & peer::RESOLVER, 0);
        assert_eq!(flags([192, 0, 2, 2]) & peer::RESOLVER, 0);
    }

    #[test]
    fn a_node_whose_agent_does_not_answer_has_the_endpoints_alone() {
        let tables = tables(None, &[]);
        let both = vec![(53, scope::INTERNAL, 0), (53, scope::EXTERNAL, 0)];
        assert_eq!(list(&tables, "dns"), (both, vec![]));
        assert!(!tables.routes.contains_key(&(32, [169, 254, 20, 10])));
    }
}
