//! Which nodes may announce a load balancer's address, and in which order: the first that lives does.
//!
//! All nodes compute the same from the same model. An address keeps its node when another node comes or
//! goes, unless that one is better (rendezvous hashing).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairway_model::{EndpointState, Endpoints, Model, Node, ObjectName, Service, TrafficPolicy};

/// How many nodes are candidates of an address. What they tell each other of their lives grows with this,
/// and not with the number of nodes; if as many die at once, the others wait until the cluster says that
/// they are not ready.
pub const CANDIDATES: usize = 4;

/// An address that a node announces, or would in others' place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// By name; the first that lives announces.
    pub candidates: Vec<String>,
    /// The Services that have the address.
    pub services: BTreeSet<ObjectName>,
    /// Whether this node announces it on its uplink...
    pub uplink: bool,
    /// ...and on which other devices, by name.
    pub interfaces: BTreeSet<String>,
}

/// The addresses that `node` is a candidate of.
pub fn claims(model: &Model, node: &str) -> BTreeMap<IpAddr, Claim> {
    let mut wanted: BTreeMap<IpAddr, Wanted> = BTreeMap::new();
    for service in model.services.values() {
        let Some(pool) = service.pool.as_ref().and_then(|name| model.pools.get(name)) else {
            continue;
        };
        for ip in &service.load_balancer_ips {
            let wanted = wanted.entry(*ip).or_default();
            wanted.services.push(service);
            wanted.announcements = &pool.announcements;
        }
    }
    let mut claims = BTreeMap::new();
    for (ip, Wanted { services, announcements }) in wanted {
        let local = services.iter().filter(|service| is_local(service));
        let local: Vec<_> = local.map(|service| serving(model, service)).collect();
        let may = |name: &str| {
            announcements.iter().any(|one| of(one.nodes.as_ref(), name))
                && (local.is_empty() || local.iter().any(|nodes| nodes.contains(name)))
        };
        let fit = |of: &&Node| !of.excluded && may(&of.name);
        let candidates = order(ip, model.nodes.values().filter(fit));
        if !candidates.iter().any(|name| name == node) {
            continue;
        }
        let mut claim = Claim { candidates, ..Claim::default() };
        claim.services = services.iter().map(|service| service.name.clone()).collect();
        for one in announcements.iter().filter(|one| of(one.nodes.as_ref(), node)) {
            claim.uplink |= one.interfaces.is_empty();
            claim.interfaces.extend(one.interfaces.iter().cloned());
        }
        claims.insert(ip, claim);
    }
    claims
}

/// Whether the claims of two models may differ.
pub fn claims_differ(before: &Model, next: &Model) -> bool {
    let has = |model: &Model, name: &ObjectName| {
        model.services.get(name).is_some_and(|service| service.pool.is_some())
    };
    before.pools != next.pools
        || (!next.pools.is_empty()
            && (before.nodes != next.nodes
                || before.services.diff(&next.services).any(|one| {
                    let sides = [one.before, one.after].into_iter().flatten();
                    sides.into_iter().any(|service| service.pool.is_some())
                })
                || before
                    .endpoints
                    .diff(&next.endpoints)
                    .any(|one| has(before, one.name()) || has(next, one.name()))))
}

#[derive(Default)]
struct Wanted<'a> {
    services: Vec<&'a Service>,
    announcements: &'a [fairway_model::Announcement],
}

fn of(nodes: Option<&Vec<String>>, name: &str) -> bool {
    nodes.is_none_or(|nodes| nodes.iter().any(|one| one == name))
}

fn is_local(service: &Service) -> bool {
    service.external_traffic == TrafficPolicy::Local
}

/// The nodes with endpoints that take new connections, or else with such as still serve.
fn serving<'a>(model: &'a Model, service: &Service) -> BTreeSet<&'a str> {
    let endpoints = || {
        let all = model.endpoints.get(&service.name).into_iter();
        all.flat_map(|all: &Endpoints| all.ports.values()).flatten()
    };
    let with = |state: EndpointState| {
        let such = endpoints().filter(move |endpoint| endpoint.state == state);
        such.filter_map(|endpoint| endpoint.node.as_deref()).collect::<BTreeSet<_>>()
    };
    let mut nodes = with(EndpointState::Ready);
    if nodes.is_empty() {
        nodes = with(EndpointState::ServingTerminating);
    }
    nodes
}

/// The first candidates: ready ones before others, and then whoever has the highest number.
fn order<'a>(ip: IpAddr, nodes: impl Iterator<Item = &'a Node>) -> Vec<String> {
    let rank = |node: &&Node| (node.unready, Reverse(number(&node.name, ip)));
    let mut nodes: Vec<_> = nodes.collect();
    nodes.sort_by_cached_key(rank);
    nodes.into_iter().take(CANDIDATES).map(|node| node.name.clone()).collect()
}

/// FNV-1a, and then a multiplication that lets every byte count for every bit: the same in all releases,
/// because nodes of two of them must agree.
fn number(name: &str, ip: IpAddr) -> u64 {
    let text = format!("{name}#{ip}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use fairway_model::{Announcement, Endpoint, Hints, Pool};

    use super::*;

    const VIP: &str = "192.0.2.10";

    fn ip() -> IpAddr {
        VIP.parse().unwrap()
    }

    fn model(nodes: usize) -> Model {
        let mut model = Model::default();
        for number in 0..nodes {
            model.nodes.insert(Node { name: format!("n{number}"), ..Node::default() });
        }
        let announcements = vec![Announcement::default()];
        model.pools.insert(Pool { name: "main".into(), size: 1, announcements });
        model.services.insert(service(TrafficPolicy::Cluster));
        model
    }

    fn service(external_traffic: TrafficPolicy) -> Service {
        Service {
            name: ObjectName::new("shop", "web"),
            load_balancer_ips: vec![ip()],
            pool: Some("main".into()),
            external_traffic,
            ..Service::default()
        }
    }

    /// The candidates that all of them agree on.
    fn candidates(model: &Model) -> Vec<String> {
        let mut found = Vec::new();
        for node in model.nodes.keys() {
            if let Some(claim) = claims(model, node).remove(&ip()) {
                assert!(found.is_empty() || found == claim.candidates);
                assert!(claim.candidates.contains(node));
                found = claim.candidates;
            }
        }
        found
    }

    #[test]
    fn all_nodes_agree_on_a_few_and_keep_to_them() {
        let many = model(50);
        let first = candidates(&many);
        assert_eq!(first.len(), CANDIDATES);
        // Others come and go.
        let mut fewer = many.clone();
        let other = many.nodes.keys().find(|name| !first.contains(name)).unwrap().clone();
        fewer.nodes.remove(&other);
        assert_eq!(candidates(&fewer), first);
        // One of them goes: the rest stays in its order.
        fewer.nodes.remove(&first[1]);
        let next = candidates(&fewer);
        assert_eq!((&next[0], &next[1..3]), (&first[0], &first[2..4]));
    }

    #[test]
    fn addresses_are_spread_over_nodes() {
        let nodes = model(4);
        let mut counts = BTreeMap::<String, usize>::new();
        for last in 0..200_u8 {
            let order = order([192, 0, 2, last].into(), nodes.nodes.values());
            *counts.entry(order[0].clone()).or_default() += 1;
        }
        assert!(
            counts.len() == 4 && counts.values().all(|count| (25..75).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn excluded_nodes_never_do_and_unready_ones_come_last() {
        let mut model = model(3);
        let first = candidates(&model)[0].clone();
        model.nodes.insert(Node { name: first.clone(), unready: true, ..Node::default() });
        assert_eq!(candidates(&model)[2], first);
        model.nodes.insert(Node { name: first.clone(), excluded: true, ..Node::default() });
        assert!(!candidates(&model).contains(&first));
    }

    #[test]
    fn only_nodes_with_endpoints_where_traffic_stays_local() {
        let mut model = model(3);
        model.services.insert(service(TrafficPolicy::Local));
        assert_eq!(candidates(&model), [""; 0]);
        let mut put = |states: &[(&str, EndpointState)]| {
            let endpoints = states.iter().map(|(node, state)| Endpoint {
                address: [10, 0, 0, 1].into(),
                port: 80,
                node: Some((*node).to_owned()),
                state: *state,
                hints: Hints::default(),
                weight: 1,
                hostname: None,
            });
            let ports = BTreeMap::from([(String::new(), endpoints.collect())]);
            model.endpoints.insert(Endpoints { service: ObjectName::new("shop", "web"), ports });
            candidates(&model)
        };
        assert_eq!(
            put(&[("n1", EndpointState::Ready), ("n2", EndpointState::ServingTerminating)]),
            ["n1"]
        );
        assert_eq!(put(&[("n2", EndpointState::ServingTerminating)]), ["n2"]);
    }

    #[test]
    fn as_the_pool_says() {
        let mut model = model(3);
        let only = Announcement {
            nodes: Some(vec!["n1".to_owned()]),
            interfaces: vec!["eth1".to_owned()],
        };
        let pool = |announcements| Pool { name: "main".into(), size: 1, announcements };
        model.pools.insert(pool(vec![only]));
        assert_eq!(candidates(&model), ["n1"]);
        let claim = &claims(&model, "n1")[&ip()];
        assert_eq!(
            (claim.uplink, &claim.interfaces),
            (false, &BTreeSet::from(["eth1".to_owned()]))
        );
        model.pools.insert(pool(Vec::new()));
        assert_eq!(candidates(&model), [""; 0]);
    }

    #[test]
    fn what_has_nothing_to_do_with_it_makes_no_difference() {
        let before = model(2);
        let mut next = before.clone();
        let other = Service { name: ObjectName::new("shop", "db"), ..Service::default() };
        next.services.insert(other.clone());
        next.endpoints.insert(Endpoints { service: other.name, ports: BTreeMap::new() });
        assert!(!claims_differ(&before, &next));
        next.endpoints
            .insert(Endpoints { service: ObjectName::new("shop", "web"), ports: BTreeMap::new() });
        assert!(claims_differ(&before, &next));
        assert!(claims_differ(&Model::default(), &before));
    }
}
