//! What must hold for an object before anything acts on it.
//!
//! A source converts only what it has checked against the user's own words (file, line, field); the
//! checks here are the last fence, for objects that arrive over a wire or from a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{Endpoints, Model, Node, Object, Pod, Protocol, Service, ServiceRange};

/// An object that breaks a rule of the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {rule}")]
pub struct Invalid {
    /// The object, as `Service shop/web`.
    pub object: String,
    /// The rule that does not hold, with the value that breaks it.
    pub rule: String,
}

impl Object {
    /// Checks the rules that the fields' comments state.
    pub fn validate(&self) -> Result<(), Invalid> {
        let checked = match self {
            Self::Node(node) => node.check(),
            Self::Service(service) => service.check(),
            Self::Endpoints(endpoints) => endpoints.check(),
            Self::Pod(pod) => pod.check(),
            Self::ServiceRange(range) => range.check(),
        };
        checked.map_err(|rule| Invalid { object: self.key().to_string(), rule })
    }
}

impl Model {
    /// Checks every object, and what only the whole can break: a ClusterIP, a node port (health
    /// checks have one, too) or a port of another address held by two Services.
    pub fn validate(&self) -> Result<(), Invalid> {
        for object in self.objects() {
            object.validate()?;
        }
        let mut held = BTreeSet::new();
        let mut node_ports = BTreeSet::new();
        let mut external = BTreeMap::new();
        for service in self.services.values() {
            let taken = |what: String| Invalid {
                object: format!("Service {}", service.name),
                rule: format!("{what} is held by another Service"),
            };
            for address in &service.cluster_ips {
                if !held.insert(*address) {
                    return Err(taken(format!("address {address}")));
                }
            }
            // Health checks are HTTP.
            if let Some(number) = service.health_check_node_port
                && !node_ports.insert((Protocol::Tcp, number))
            {
                return Err(taken(format!("node port {} {number}", Protocol::Tcp)));
            }
            for port in &service.ports {
                if let Some(node_port) = port.node_port
                    && !node_ports.insert((port.protocol, node_port))
                {
                    return Err(taken(format!("node port {} {node_port}", port.protocol)));
                }
                for address in service.external_ips.iter().chain(&service.load_balancer_ips) {
                    let place = (*address, port.protocol, port.port);
                    if *external.entry(place).or_insert(&service.name) != &service.name {
                        return Err(taken(format!("{address} {} {}", port.protocol, port.port)));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Node {
    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name)?;
        one_per_family("podCIDR", self.pod_cidrs.iter().map(|net| net.addr()))?;
        one_per_family("tunnel end", self.vteps.iter().map(|vtep| vtep.underlay))
    }
}

impl Service {
    fn check(&self) -> Result<(), String> {
        not_empty("namespace", &self.name.namespace)?;
        not_empty("name", &self.name.name)?;
        one_per_family("ClusterIP", self.cluster_ips.iter().copied())?;
        once("external IP", &self.external_ips)?;
        once("load balancer's address", &self.load_balancer_ips)?;
        if self.affinity == Some(0) {
            return Err("its clients stay with their endpoints for 0 seconds".to_owned());
        }
        if self.health_check_node_port == Some(0) {
            return Err("its health check has node port 0".to_owned());
        }
        let mut names = BTreeSet::new();
        let mut numbers = BTreeSet::new();
        let mut node_ports = BTreeSet::new();
        for port in &self.ports {
            if port.name.is_empty() && self.ports.len() > 1 {
                return Err(format!("port {} needs a name among several", port.port));
            }
            if !names.insert(&port.name) {
                return Err(format!("port name \"{}\" is there twice", port.name));
            }
            if port.port == 0 || port.node_port == Some(0) {
                return Err(format!("port \"{}\" has number 0", port.name));
            }
            if !numbers.insert((port.protocol, port.port)) {
                return Err(format!("port {} {} is there twice", port.protocol, port.port));
            }
            if let Some(node_port) = port.node_port
                && !node_ports.insert((port.protocol, node_port))
            {
                return Err(format!("node port {} {node_port} is there twice", port.protocol));
            }
        }
        Ok(())
    }
}

impl Endpoints {
    fn check(&self) -> Result<(), String> {
        not_empty("namespace", &self.service.namespace)?;
        not_empty("name", &self.service.name)?;
        for (name, endpoints) in &self.ports {
            if let Some(zero) = endpoints.iter().find(|endpoint| endpoint.port == 0) {
                return Err(format!("port \"{name}\": {} has port 0", zero.address));
            }
            let unordered = endpoints
                .windows(2)
                .find(|pair| (pair[0].address, pair[0].port) >= (pair[1].address, pair[1].port));
            if let Some(pair) = unordered {
                return Err(format!(
                    "port \"{name}\": {} port {} is out of order or there twice",
                    pair[1].address, pair[1].port
                ));
            }
        }
        Ok(())
    }
}

impl Pod {
    fn check(&self) -> Result<(), String> {
        not_empty("namespace", &self.name.namespace)?;
        not_empty("name", &self.name.name)?;
        not_empty("node", &self.node)
    }
}

impl ServiceRange {
    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name)?;
        one_per_family("range", self.cidrs.iter().map(|net| net.addr()))
    }
}

fn once(what: &str, addresses: &[IpAddr]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match addresses.iter().find(|address| !seen.insert(**address)) {
        Some(address) => Err(format!("{address} is there twice as its {what}")),
        None => Ok(()),
    }
}

fn not_empty(what: &str, value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err(format!("its {what} is empty"));
    }
    Ok(())
}

fn one_per_family(what: &str, addresses: impl Iterator<Item = IpAddr>) -> Result<(), String> {
    let (mut v4, mut v6) = (false, false);
    for address in addresses {
        let seen = if address.is_ipv4() { &mut v4 } else { &mut v6 };
        if std::mem::replace(seen, true) {
            return Err(format!("{address} is its second {what} of that family"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Endpoint, EndpointState, Hints, ObjectName, ServicePort};

    fn port(name: &str, port: u16) -> ServicePort {
        ServicePort { name: name.into(), protocol: Protocol::Tcp, port, node_port: None }
    }

    fn service(name: &str, ports: Vec<ServicePort>) -> Service {
        Service {
            name: ObjectName::new("shop", name),
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            ports,
            ..Service::default()
        }
    }

    fn check(object: Object, expected: &str) {
        let got = object.validate().map_err(|error| error.to_string());
        assert_eq!(got.err().as_deref().unwrap_or("ok"), expected);
    }

    #[test]
    fn services() {
        let of = |ports| Object::Service(service("web", ports));
        check(of(vec![port("", 80)]), "ok");
        check(of(vec![port("a", 80), port("b", 81)]), "ok");
        check(
            of(vec![port("a", 80), port("", 81)]),
            "Service shop/web: port 81 needs a name among several",
        );
        check(
            of(vec![port("a", 80), port("a", 81)]),
            "Service shop/web: port name \"a\" is there twice",
        );
        check(
            of(vec![port("a", 80), port("b", 80)]),
            "Service shop/web: port TCP 80 is there twice",
        );
        check(of(vec![port("", 0)]), "Service shop/web: port \"\" has number 0");
        let mut two = service("web", vec![]);
        two.cluster_ips.push("10.96.0.2".parse().unwrap());
        check(
            Object::Service(two),
            "Service shop/web: 10.96.0.2 is its second ClusterIP of that family",
        );
    }

    #[test]
    fn nodes() {
        let node = |cidrs: &[&str]| {
            Object::Node(Node {
                name: "n1".into(),
                pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
                ..Node::default()
            })
        };
        check(node(&["10.244.0.0/24", "fd00::/64"]), "ok");
        check(
            node(&["10.244.0.0/24", "10.244.1.0/24"]),
            "Node n1: 10.244.1.0 is its second podCIDR of that family",
        );
    }

    #[test]
    fn endpoints() {
        let of = |list: &[(&str, u16)]| {
            let list = list.iter().map(|(address, port)| Endpoint {
                address: address.parse().unwrap(),
                port: *port,
                node: None,
                state: EndpointState::Ready,
                hints: Hints::default(),
            });
            Object::Endpoints(Endpoints {
                service: ObjectName::new("shop", "web"),
                ports: BTreeMap::from([("http".into(), list.collect())]),
            })
        };
        check(of(&[("10.0.0.1", 80), ("10.0.0.1", 81)]), "ok");
        check(
            of(&[("10.0.0.2", 80), ("10.0.0.1", 80)]),
            "Endpoints shop/web: port \"http\": 10.0.0.1 port 80 is out of order or there twice",
        );
        check(of(&[("10.0.0.2", 0)]), "Endpoints shop/web: port \"http\": 10.0.0.2 has port 0");
    }

    #[test]
    fn pods() {
        let pod = |namespace: &str, name: &str, node: &str| {
            let name = ObjectName::new(namespace, name);
            Object::Pod(Pod { name, node: node.into(), ..Pod::default() })
        };
        check(pod("shop", "cart", "n1"), "ok");
        check(pod("", "cart", "n1"), "Pod /cart: its namespace is empty");
        check(pod("shop", "", "n1"), "Pod shop/: its name is empty");
        check(pod("shop", "cart", ""), "Pod shop/cart: its node is empty");
    }

    #[test]
    fn two_services_share_an_external_address_but_not_a_port_of_it() {
        let with = |name: &str, number| {
            let external_ips = vec!["203.0.113.1".parse().unwrap()];
            let ports = vec![port("", number)];
            let cluster_ips = Vec::new();
            Object::Service(Service { external_ips, cluster_ips, ..service(name, ports) })
        };
        let model = |numbers: [u16; 2]| -> Model {
            [with("api", numbers[0]), with("web", numbers[1])].into_iter().collect()
        };
        assert_eq!(model([80, 81]).validate(), Ok(()));
        assert_eq!(
            model([80, 80]).validate().unwrap_err().to_string(),
            "Service shop/web: 203.0.113.1 TCP 80 is held by another Service"
        );
    }

    #[test]
    fn no_service_answers_health_checks_on_a_node_port_of_another() {
        let mut web = service("web", vec![port("", 80)]);
        web.health_check_node_port = Some(30000);
        let mut api = service("api", vec![port("", 80)]);
        api.cluster_ips.clear();
        let model = |api: &Service| -> Model {
            [api, &web].map(|service| Object::Service(service.clone())).into_iter().collect()
        };
        api.ports[0].node_port = Some(30001);
        assert_eq!(model(&api).validate(), Ok(()));
        api.ports[0].node_port = Some(30000);
        assert_eq!(
            model(&api).validate().unwrap_err().to_string(),
            "Service shop/web: node port TCP 30000 is held by another Service"
        );
    }

    #[test]
    fn two_services_never_share_an_address() {
        let objects = ["web", "api"].map(|name| Object::Service(service(name, vec![])));
        let model: Model = objects.into_iter().collect();
        assert_eq!(
            model.validate().unwrap_err().to_string(),
            "Service shop/web: address 10.96.0.1 is held by another Service"
        );
    }
}
