//! What must hold for an object before anything acts on it.
//!
//! A source converts only what it has checked against the user's own words (file, line, field); the
//! checks here are the last fence, for objects that arrive over a wire or from a disk.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use crate::{
    Action, Endpoints, Gateway, Group, Ingress, Key, Member, Model, Named, NamedPort, Node, Object,
    ObjectName, Objects, Pod, Policy, Pool, PortMatch, Protocol, Rule, Secret, Selection, Selector,
    Service, ServiceRange, TicketKey, Tier,
};

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
        match self {
            Self::Node(node) => valid(node),
            Self::Service(service) => valid(service),
            Self::Endpoints(endpoints) => valid(endpoints),
            Self::Pod(pod) => valid(pod),
            Self::ServiceRange(range) => valid(range),
            Self::Selector(selector) => valid(selector),
            Self::Group(group) => valid(group),
            Self::Member(member) => valid(member),
            Self::Policy(policy) => valid(policy),
            Self::Pool(pool) => valid(pool),
            Self::Ingress(ingress) => valid(ingress),
            Self::Gateway(gateway) => valid(gateway),
            Self::Secret(secret) => valid(secret),
            Self::TicketKey(key) => valid(key),
        }
    }
}

impl Model {
    /// Checks every object, and what only the whole can break: a ClusterIP, a node port (health
    /// checks have one, too) or a port of another address held by two Services.
    pub fn validate(&self) -> Result<(), Invalid> {
        Claims::default().follow(&Self::default(), self)
    }
}

/// What the Services of a model hold, each for itself, so that the next model can be checked at the cost
/// of what is new in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(HashSet<Claim>);

/// What one Service at a time may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Claim {
    ClusterIp(IpAddr),
    NodePort(Protocol, u16),
    External(IpAddr, Protocol, u16),
}

impl Claims {
    /// Checks `next` as [`Model::validate`] does, given that `before` is good and these are its claims.
    /// They are those of `next` then; after an error they are of no use.
    pub fn follow(&mut self, before: &Model, next: &Model) -> Result<(), Invalid> {
        check(&before.nodes, &next.nodes)?;
        check(&before.services, &next.services)?;
        check(&before.endpoints, &next.endpoints)?;
        check(&before.pods, &next.pods)?;
        check(&before.service_ranges, &next.service_ranges)?;
        check(&before.selectors, &next.selectors)?;
        check(&before.groups, &next.groups)?;
        check(&before.members, &next.members)?;
        check(&before.policies, &next.policies)?;
        check(&before.pools, &next.pools)?;
        check(&before.ingresses, &next.ingresses)?;
        check(&before.gateways, &next.gateways)?;
        check(&before.secrets, &next.secrets)?;
        check(&before.ticket_keys, &next.ticket_keys)?;
        let changed = || before.services.diff(&next.services);
        for service in changed().filter_map(|one| one.before) {
            for claim in claims(service) {
                self.0.remove(&claim);
            }
        }
        for service in changed().filter_map(|one| one.after) {
            for claim in claims(service) {
                if !self.0.insert(claim) {
                    return Err(Invalid {
                        object: format!("Service {}", service.name),
                        rule: format!("{claim} is held by another Service"),
                    });
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterIp(address) => write!(f, "address {address}"),
            Self::NodePort(protocol, number) => write!(f, "node port {protocol} {number}"),
            Self::External(address, protocol, port) => write!(f, "{address} {protocol} {port}"),
        }
    }
}

/// Each once, although an address may be among the external ones and the load balancer's.
fn claims(service: &Service) -> BTreeSet<Claim> {
    let mut claims: BTreeSet<Claim> =
        service.cluster_ips.iter().copied().map(Claim::ClusterIp).collect();
    // Health checks are HTTP.
    claims.extend(
        service.health_check_node_port.map(|number| Claim::NodePort(Protocol::Tcp, number)),
    );
    for port in &service.ports {
        claims.extend(port.node_port.map(|number| Claim::NodePort(port.protocol, number)));
        let addresses = service.external_ips.iter().chain(&service.load_balancer_ips);
        claims.extend(addresses.map(|address| Claim::External(*address, port.protocol, port.port)));
    }
    claims
}

/// What follows rules of its own.
trait Check: Named + PartialEq {
    /// Its key.
    const KEY: fn(&Self) -> Key;

    /// The rule that does not hold.
    fn check(&self) -> Result<(), String>;
}

fn valid<T: Check>(object: &T) -> Result<(), Invalid> {
    object.check().map_err(|rule| Invalid { object: (T::KEY)(object).to_string(), rule })
}

/// Checks what is new.
fn check<T: Check>(before: &Objects<T>, next: &Objects<T>) -> Result<(), Invalid> {
    before.diff(next).filter_map(|one| one.after).try_for_each(|object| valid(&**object))
}

impl Check for Node {
    const KEY: fn(&Self) -> Key = |node| Key::Node(node.name.clone());

    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name)?;
        one_per_family("podCIDR", self.pod_cidrs.iter().map(|net| net.addr()))?;
        one_per_family("tunnel end", self.vteps.iter().map(|vtep| vtep.underlay))
    }
}

impl Check for Service {
    const KEY: fn(&Self) -> Key = |service| Key::Service(service.name.clone());

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
        if let Some(number) = self.health_check_node_port
            && node_ports.contains(&(Protocol::Tcp, number))
        {
            return Err(format!("node port {} {number} is there twice", Protocol::Tcp));
        }
        Ok(())
    }
}

impl Check for Endpoints {
    const KEY: fn(&Self) -> Key = |endpoints| Key::Endpoints(endpoints.service.clone());

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

impl Check for Pod {
    const KEY: fn(&Self) -> Key = |pod| Key::Pod(pod.name.clone());

    fn check(&self) -> Result<(), String> {
        not_empty("namespace", &self.name.namespace)?;
        not_empty("name", &self.name.name)?;
        not_empty("node", &self.node)?;
        sorted("policies", &self.policies)?;
        named_ports(&self.ports)
    }
}

impl Check for ServiceRange {
    const KEY: fn(&Self) -> Key = |range| Key::ServiceRange(range.name.clone());

    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name)?;
        one_per_family("range", self.cidrs.iter().map(|net| net.addr()))
    }
}

impl Check for Pool {
    const KEY: fn(&Self) -> Key = |pool| Key::Pool(pool.name.clone());

    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name)
    }
}

impl Check for Ingress {
    const KEY: fn(&Self) -> Key = |ingress| Key::Ingress(ingress.name.clone());

    fn check(&self) -> Result<(), String> {
        named(&self.name)?;
        let hosts = self.rules.iter().map(|rule| &rule.host).filter(|host| !host.is_empty());
        let aliases = &self.options.server_aliases;
        hosts
            .chain(self.tls.iter().flat_map(|tls| &tls.hosts))
            .chain(aliases)
            .try_for_each(host)?;
        if let Some(redirect) = &self.options.redirect
            && !(300..400).contains(&redirect.status)
        {
            return Err(format!("a redirect has a status of 3xx, not {}", redirect.status));
        }
        Ok(())
    }
}

/// Names are compared byte by byte, and stand in headers.
fn host(name: &String) -> Result<(), String> {
    let bare = name.strip_prefix("*.").unwrap_or(name);
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    if bare.is_empty() || !bare.bytes().all(good) {
        return Err(format!("{name:?} is not the name of a host in lower case"));
    }
    Ok(())
}

impl Check for Gateway {
    const KEY: fn(&Self) -> Key = |gateway| Key::Gateway(gateway.name.clone());

    fn check(&self) -> Result<(), String> {
        let mut ports = BTreeSet::new();
        for stream in &self.streams {
            if stream.port == 0 || !ports.insert((stream.protocol.number(), stream.port)) {
                return Err(format!(
                    "port {}/{} is 0 or there twice",
                    stream.port, stream.protocol
                ));
            }
        }
        Ok(())
    }
}

impl Check for Secret {
    const KEY: fn(&Self) -> Key = |secret| Key::Secret(secret.name.clone());

    fn check(&self) -> Result<(), String> {
        named(&self.name)
    }
}

impl Check for TicketKey {
    const KEY: fn(&Self) -> Key = |key| Key::TicketKey(key.name.clone());

    fn check(&self) -> Result<(), String> {
        let digits = |text: &str, bytes: usize| {
            text.len() == 2 * bytes && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        if !digits(&self.name, 16) || !digits(self.key.reveal(), 32) {
            return Err("a name has 32 hexadecimal digits and a key 64".to_owned());
        }
        Ok(())
    }
}

impl Check for Selector {
    const KEY: fn(&Self) -> Key = |selector| Key::Selector(selector.name.clone());

    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name)?;
        let Selection::Block { cidr, except } = &self.means else { return Ok(()) };
        match except.iter().find(|except| !cidr.contains(*except)) {
            Some(outside) => Err(format!("{outside} is no part of {cidr}")),
            None => Ok(()),
        }
    }
}

impl Check for Group {
    const KEY: fn(&Self) -> Key = |group| Key::Group(group.name.clone());

    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name)?;
        sorted("selectors", &self.selectors)?;
        named_ports(&self.ports)
    }
}

impl Check for Member {
    const KEY: fn(&Self) -> Key = |member| Key::Member(member.name.clone());

    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name.name)?;
        not_empty("group", &self.group)?;
        once("address", &self.addresses)
    }
}

impl Check for Policy {
    const KEY: fn(&Self) -> Key = |policy| Key::Policy(policy.name.clone());

    fn check(&self) -> Result<(), String> {
        not_empty("name", &self.name.name)?;
        let directions = [("ingress", &self.ingress), ("egress", &self.egress)];
        for (direction, rules) in directions {
            for (number, rule) in rules.iter().flatten().enumerate() {
                self.check_rule(rule).map_err(|error| format!("{direction}[{number}]: {error}"))?;
            }
        }
        Ok(())
    }
}

impl Policy {
    fn check_rule(&self, rule: &Rule) -> Result<(), String> {
        if self.tier == Tier::Namespace && rule.action != Action::Accept {
            return Err("no rule of its tier can do anything but accept".to_owned());
        }
        rule.ports.iter().flatten().try_for_each(|ports| match ports {
            PortMatch::Range(protocol, first, last) if first > last => {
                Err(format!("ports {protocol} {first} to {last} are none"))
            }
            PortMatch::Named(_, name) => not_empty("port's name", name),
            PortMatch::All(_) | PortMatch::Range(..) => Ok(()),
        })
    }
}

fn sorted<T: Ord>(what: &str, all: &[T]) -> Result<(), String> {
    if all.windows(2).all(|pair| pair[0] < pair[1]) {
        return Ok(());
    }
    Err(format!("its {what} are out of order, or one is there twice"))
}

fn named_ports(ports: &[NamedPort]) -> Result<(), String> {
    sorted("named ports", ports)?;
    match ports.iter().find(|port| port.port == 0) {
        Some(zero) => Err(format!("its port \"{}\" has number 0", zero.name)),
        None => Ok(()),
    }
}

fn once(what: &str, addresses: &[IpAddr]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match addresses.iter().find(|address| !seen.insert(**address)) {
        Some(address) => Err(format!("{address} is there twice as its {what}")),
        None => Ok(()),
    }
}

fn named(name: &ObjectName) -> Result<(), String> {
    not_empty("namespace", &name.namespace)?;
    not_empty("name", &name.name)
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
    use std::collections::BTreeMap;

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
                weight: 1,
                hostname: None,
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
