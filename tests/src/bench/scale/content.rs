//! What a cluster holds: as a model, and as the shortest rules that nft has for it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::Ipv4Addr;

use fairway_model::{
    Endpoint, EndpointState, Endpoints, Hints, Model, Node, ObjectName, Protocol, Service,
    ServicePort,
};

/// The port of every Service.
pub(super) const PORT: u16 = 80;
/// The port of every endpoint.
pub(super) const TARGET_PORT: u16 = 8080;
/// Where ClusterIPs come from.
const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);
/// Where endpoints' addresses come from.
const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// Addresses that one endpoint may have, one after the other, without getting out of order.
const TURNS: u32 = 8;
/// Nodes that endpoints are said to be on.
const NODES: u32 = 1000;

/// How many Services there are, and of how many endpoints each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// How many.
    pub services: u32,
    /// Of each of them.
    pub endpoints: u32,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Services of {} endpoints", self.services, self.endpoints)
    }
}

impl Content {
    /// Endpoints of all Services.
    pub(super) fn total(self) -> u64 {
        u64::from(self.services) * u64::from(self.endpoints)
    }

    /// All of it, for this node.
    pub(super) fn model(self, node: Node) -> Model {
        let mut model = Model::default();
        model.nodes.insert(node);
        for number in 0..self.services {
            model.services.insert(Service {
                name: name(number),
                cluster_ips: vec![address(number).into()],
                ports: vec![ServicePort {
                    name: "http".to_owned(),
                    protocol: Protocol::Tcp,
                    port: PORT,
                    node_port: None,
                }],
                ..Service::default()
            });
            model.endpoints.insert(self.endpoints_of(number, 0));
        }
        model
    }

    /// The endpoints of a Service after the first of them has changed so often.
    pub(super) fn endpoints_of(self, number: u32, turn: u32) -> Endpoints {
        let endpoint = |index: u32| Endpoint {
            address: self.endpoint(number, index, turn).into(),
            port: TARGET_PORT,
            node: Some(format!("node-{}", (number * self.endpoints + index) % NODES)),
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        };
        let endpoints = (0..self.endpoints).map(endpoint).collect();
        let ports = BTreeMap::from([("http".to_owned(), endpoints)]);
        Endpoints { service: name(number), ports }
    }

    /// The address of an endpoint; that of the first changes with every turn.
    pub(super) fn endpoint(self, number: u32, index: u32, turn: u32) -> Ipv4Addr {
        let turn = if index == 0 { turn % TURNS } else { 0 };
        let place = (number * self.endpoints + index) * TURNS + turn;
        Ipv4Addr::from_bits(PODS.to_bits() + place)
    }

    /// The input of `nft -f -`: a map that leads to a Service's chain, and there one rule that draws
    /// an endpoint. kube-proxy has a chain for each endpoint as well.
    pub(super) fn rules(self) -> String {
        let mut text = String::from(
            "add table ip scale\n\
             add map ip scale services { type ipv4_addr . inet_proto . inet_service : verdict ; }\n\
             add chain ip scale prerouting { type nat hook prerouting priority -100 ; }\n\
             add rule ip scale prerouting ip daddr . meta l4proto . th dport vmap @services\n",
        );
        let mut elements = String::new();
        for number in 0..self.services {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "add chain ip scale s{number}");
            text += &self.rule(number, 0);
            let _ = write!(elements, "{} . tcp . {PORT} : goto s{number} , ", address(number));
        }
        let _ = writeln!(text, "add element ip scale services {{ {elements} }}");
        text
    }

    /// The same for a change of one Service's endpoints.
    pub(super) fn changed_rule(self, number: u32, turn: u32) -> String {
        format!("flush chain ip scale s{number}\n{}", self.rule(number, turn))
    }

    fn rule(self, number: u32, turn: u32) -> String {
        let mut text =
            format!("add rule ip scale s{number} meta l4proto tcp dnat ip to numgen random mod ");
        let _ = write!(text, "{} map {{ ", self.endpoints);
        for index in 0..self.endpoints {
            let endpoint = self.endpoint(number, index, turn);
            let _ = write!(text, "{index} : {endpoint} . {TARGET_PORT} , ");
        }
        text + "}\n"
    }
}

/// The first addresses of a range belong to the cluster's own Services.
pub(super) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(SERVICES.to_bits() + 11 + number)
}

fn name(number: u32) -> ObjectName {
    ObjectName::new(format!("team-{:03}", number % 200), format!("service-{number:05}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_good_also_after_changes() {
        let content = Content { services: 300, endpoints: 3 };
        let mut model = content.model(Node { name: "n".to_owned(), ..Node::default() });
        assert_eq!((model.services.len(), model.endpoints.len()), (300, 300));
        for turn in 0..2 * TURNS {
            model.endpoints.insert(content.endpoints_of(7, turn));
            model.validate().unwrap();
        }
    }

    #[test]
    fn the_rules_lead_to_every_endpoint() {
        let content = Content { services: 2, endpoints: 2 };
        let text = content.rules();
        assert!(text.contains("10.96.0.12 . tcp . 80 : goto s1"), "{text}");
        let rule = "add rule ip scale s1 meta l4proto tcp dnat ip to numgen random mod 2 map \
                    { 0 : 10.128.0.16 . 8080 , 1 : 10.128.0.24 . 8080 , }\n";
        assert!(text.contains(rule), "{text}");
        assert!(content.changed_rule(1, 1).contains("0 : 10.128.0.17 . 8080"));
    }
}
