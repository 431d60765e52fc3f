//! The rules that a policy can break all by itself: what an API server would refuse.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::kubernetes::policy::{
    AdminAction, AdminEgressRule, AdminIngressRule, AdminNetworkPolicy, AdminPort,
    BaselineAdminNetworkPolicy, ClusterNetworkPolicy, ClusterPeer, ClusterPort, ClusterProtocol,
    IpBlock, LabelSelector, NamespacedPod, NetworkPolicy, Operator, Peer, PolicyPort, Subject,
};
use crate::kubernetes::{FieldError, Port, TargetPort};

/// The most of each: rules a direction, peers and ports a rule.
const CLUSTER_MOST: usize = 25;
/// The same for the older kinds.
const ADMIN_MOST: usize = 100;
/// The most ranges a peer.
const NETWORKS_MOST: usize = 25;
/// The longest name of a rule, in characters.
const NAME_MOST: usize = 100;
/// The least urgent priority.
pub(super) const LAST_PRIORITY: u16 = 1000;

impl NetworkPolicy {
    pub(crate) fn check(&self) -> Vec<FieldError> {
        let mut found = Findings::default();
        let spec = &self.spec;
        found.selector("spec.podSelector", &spec.pod_selector);
        if spec.policy_types.len() > 2 {
            found.add("spec.policyTypes", "there are only two, Ingress and Egress");
        }
        for (index, rule) in spec.ingress.iter().flatten().enumerate() {
            found.rule(&format!("spec.ingress[{index}]"), "from", &rule.from, &rule.ports);
        }
        for (index, rule) in spec.egress.iter().flatten().enumerate() {
            found.rule(&format!("spec.egress[{index}]"), "to", &rule.to, &rule.ports);
        }
        found.0
    }
}

impl ClusterNetworkPolicy {
    pub(crate) fn check(&self) -> Vec<FieldError> {
        let mut found = Findings::default();
        let spec = &self.spec;
        found.priority(spec.priority);
        found.subject(&spec.subject);
        found.most("spec.ingress", "rules", spec.ingress.len(), CLUSTER_MOST);
        for (index, rule) in spec.ingress.iter().enumerate() {
            let field = format!("spec.ingress[{index}]");
            found.rule_name(&field, &rule.name);
            found.peers(&format!("{field}.from"), &rule.from, true, CLUSTER_MOST);
            found.protocols(&field, rule.protocols.as_deref());
        }
        found.most("spec.egress", "rules", spec.egress.len(), CLUSTER_MOST);
        for (index, rule) in spec.egress.iter().enumerate() {
            let field = format!("spec.egress[{index}]");
            found.rule_name(&field, &rule.name);
            found.peers(&format!("{field}.to"), &rule.to, false, CLUSTER_MOST);
            found.protocols(&field, rule.protocols.as_deref());
            for (index, protocol) in rule.protocols.iter().flatten().enumerate() {
                if protocol.destination_named_port.is_some() {
                    let field = format!("{field}.protocols[{index}].destinationNamedPort");
                    found.name_needs_pods(&field, &rule.to);
                }
            }
        }
        found.0
    }
}

impl AdminNetworkPolicy {
    pub(crate) fn check(&self) -> Vec<FieldError> {
        let mut found = Findings::default();
        found.priority(self.spec.priority);
        found.subject(&self.spec.subject);
        found.admin_rules(&self.spec.ingress, &self.spec.egress);
        found.0
    }
}

impl BaselineAdminNetworkPolicy {
    pub(crate) fn check(&self) -> Vec<FieldError> {
        let mut found = Findings::default();
        let spec = &self.spec;
        found.subject(&spec.subject);
        found.admin_rules(&spec.ingress, &spec.egress);
        let ingress = spec.ingress.iter().map(|rule| ("ingress", rule.action)).enumerate();
        let egress = spec.egress.iter().map(|rule| ("egress", rule.action)).enumerate();
        for (index, (direction, action)) in ingress.chain(egress) {
            if action == AdminAction::Pass {
                let field = format!("spec.{direction}[{index}].action");
                found.add(field, "nothing comes after this policy that it could pass to");
            }
        }
        found.0
    }
}

/// The fields that are lists.
const LISTS: [&str; 11] = [
    "policyTypes",
    "ingress",
    "egress",
    "from",
    "to",
    "ports",
    "protocols",
    "except",
    "networks",
    "values",
    "matchExpressions",
];
/// Those that have fields themselves.
const RECORDS: [&str; 15] = [
    "spec",
    "podSelector",
    "namespaceSelector",
    "ipBlock",
    "subject",
    "namespaces",
    "pods",
    "nodes",
    "tcp",
    "udp",
    "sctp",
    "destinationPort",
    "range",
    "portNumber",
    "portRange",
];

/// A list where there can be none. It would be taken for something with its fields in order, or, empty, for
/// something that says nothing, which is often everything.
pub(crate) fn stray_list(value: &Value) -> Option<FieldError> {
    stray_list_at("", value, false)
}

fn stray_list_at(field: &str, value: &Value, may_be: bool) -> Option<FieldError> {
    match value {
        Value::Array(_) if !may_be => Some(FieldError::new(field, "a list is not expected here")),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(at, item)| stray_list_at(&format!("{field}[{at}]"), item, false))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let (name, dot) = (name.as_str(), if field.is_empty() { "" } else { "." });
            let may_be = LISTS.contains(&name);
            let field = format!("{field}{dot}{name}");
            // Of what is in others, their types know.
            let known = may_be || RECORDS.contains(&name);
            known.then(|| stray_list_at(&field, value, may_be)).flatten()
        }),
        _ => None,
    }
}

/// Whether a selector is fine.
pub(super) fn is_good(selector: &LabelSelector) -> bool {
    let mut found = Findings::default();
    found.selector("", selector);
    found.0.is_empty()
}

/// What is wrong, in the order of the fields.
#[derive(Default)]
struct Findings(Vec<FieldError>);

impl Findings {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError::new(field, message));
    }

    fn most(&mut self, field: &str, what: &str, count: usize, most: usize) {
        if count > most {
            self.add(field, format!("{count} {what}, of which there can be {most}"));
        }
    }

    fn selector(&mut self, field: &str, selector: &LabelSelector) {
        for (key, value) in &selector.match_labels {
            let field = format!("{field}.matchLabels.{key}");
            self.key(&field, key);
            self.value(&field, value);
        }
        for (index, expression) in selector.match_expressions.iter().enumerate() {
            let field = format!("{field}.matchExpressions[{index}]");
            self.key(&format!("{field}.key"), &expression.key);
            let values = format!("{field}.values");
            let operator = expression.operator;
            match operator {
                Operator::In | Operator::NotIn if expression.values.is_empty() => {
                    self.add(&values, format!("operator {operator:?} needs values"));
                }
                Operator::Exists | Operator::DoesNotExist if !expression.values.is_empty() => {
                    self.add(&values, format!("operator {operator:?} takes no values"));
                }
                _ => {}
            }
            for (index, value) in expression.values.iter().enumerate() {
                self.value(&format!("{values}[{index}]"), value);
            }
        }
    }

    fn key(&mut self, field: &str, key: &str) {
        let (prefix, name) = match key.split_once('/') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, key),
        };
        let is_domain = |prefix: &str| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let is_label = |label: &str| has_form(label, plain, |byte| plain(byte) || byte == b'-');
            prefix.len() <= 253 && prefix.split('.').all(is_label)
        };
        if !is_label_text(name) || !prefix.is_none_or(is_domain) {
            self.add(field, format!("\"{key}\" is no label's key"));
        }
    }

    fn value(&mut self, field: &str, value: &str) {
        if !value.is_empty() && !is_label_text(value) {
            self.add(field, format!("\"{value}\" is no label's value"));
        }
    }

    fn cidr(&mut self, field: &str, cidr: &IpNet) {
        if let IpAddr::V6(address) = cidr.addr()
            && address.to_ipv4_mapped().is_some()
        {
            self.add(field, format!("{cidr} is an IPv4 range within IPv6"));
        }
    }

    fn rule(&mut self, field: &str, peers: &str, all: &[Peer], ports: &[PolicyPort]) {
        for (index, peer) in all.iter().enumerate() {
            self.peer(&format!("{field}.{peers}[{index}]"), peer);
        }
        for (index, port) in ports.iter().enumerate() {
            self.port(&format!("{field}.ports[{index}]"), port);
        }
    }

    fn peer(&mut self, field: &str, peer: &Peer) {
        let Peer { pod_selector, namespace_selector, ip_block } = peer;
        if let Some(selector) = pod_selector {
            self.selector(&format!("{field}.podSelector"), selector);
        }
        if let Some(selector) = namespace_selector {
            self.selector(&format!("{field}.namespaceSelector"), selector);
        }
        let selects = pod_selector.is_some() || namespace_selector.is_some();
        let Some(IpBlock { cidr, except }) = ip_block else {
            if !selects {
                self.add(field, "needs a podSelector, a namespaceSelector or an ipBlock");
            }
            return;
        };
        let field = format!("{field}.ipBlock");
        if selects {
            self.add(&field, "cannot stand beside selectors in one peer");
        }
        self.cidr(&format!("{field}.cidr"), cidr);
        for (index, part) in except.iter().enumerate() {
            let field = format!("{field}.except[{index}]");
            self.cidr(&field, part);
            if !cidr.contains(part) || cidr.prefix_len() == part.prefix_len() {
                self.add(&field, format!("{part} is no part of {cidr}"));
            }
        }
    }

    fn port(&mut self, field: &str, port: &PolicyPort) {
        if let Some(TargetPort::Name(name)) = &port.port {
            self.port_name(&format!("{field}.port"), name);
        }
        let Some(end) = port.end_port else { return };
        let field = format!("{field}.endPort");
        match &port.port {
            Some(TargetPort::Number(first)) if end < *first => {
                self.add(field, format!("{} is less than port {}", end.get(), first.get()));
            }
            Some(TargetPort::Number(_)) => {}
            Some(TargetPort::Name(name)) => {
                self.add(field, format!("no range begins with a name such as \"{name}\""));
            }
            None => self.add(field, "no range is without a port to begin with"),
        }
    }

    /// RFC 6335, 5.1.
    fn port_name(&mut self, field: &str, name: &str) {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let inner = |byte: u8| plain(byte) || byte == b'-';
        let fits = name.len() <= 15
            && has_form(name, plain, inner)
            && name.bytes().any(|byte| byte.is_ascii_lowercase())
            && !name.contains("--");
        if !fits {
            self.add(field, format!("\"{name}\" is neither a port's number nor its name"));
        }
    }

    fn priority(&mut self, priority: i64) {
        if !(0..=i64::from(LAST_PRIORITY)).contains(&priority) {
            let message = format!("{priority} is no priority; they are 0 to {LAST_PRIORITY}");
            self.add("spec.priority", message);
        }
    }

    fn subject(&mut self, Subject { namespaces, pods }: &Subject) {
        match (namespaces, pods) {
            (Some(selector), None) => self.selector("spec.subject.namespaces", selector),
            (None, Some(pods)) => self.pods("spec.subject.pods", pods),
            _ => self.add("spec.subject", "needs either namespaces or pods"),
        }
    }

    fn pods(&mut self, field: &str, pods: &NamespacedPod) {
        self.selector(&format!("{field}.namespaceSelector"), &pods.namespace_selector);
        self.selector(&format!("{field}.podSelector"), &pods.pod_selector);
    }

    fn rule_name(&mut self, field: &str, name: &str) {
        let field = format!("{field}.name");
        self.most(&field, "characters", name.chars().count(), NAME_MOST);
    }

    fn peers(&mut self, field: &str, peers: &[ClusterPeer], ingress: bool, most: usize) {
        if peers.is_empty() {
            self.add(field, "needs a peer");
        }
        self.most(field, "peers", peers.len(), most);
        for (index, peer) in peers.iter().enumerate() {
            self.cluster_peer(&format!("{field}[{index}]"), peer, ingress);
        }
    }

    fn cluster_peer(&mut self, field: &str, peer: &ClusterPeer, ingress: bool) {
        let ClusterPeer { namespaces, pods, nodes, networks, others } = peer;
        if let Some(selector) = namespaces {
            self.selector(&format!("{field}.namespaces"), selector);
        }
        if let Some(pods) = pods {
            self.pods(&format!("{field}.pods"), pods);
        }
        if let Some(selector) = nodes {
            self.selector(&format!("{field}.nodes"), selector);
        }
        if let Some(networks) = networks {
            let field = format!("{field}.networks");
            if networks.is_empty() {
                self.add(&field, "needs a range");
            }
            self.most(&field, "ranges", networks.len(), NETWORKS_MOST);
            for (index, cidr) in networks.iter().enumerate() {
                self.cidr(&format!("{field}[{index}]"), cidr);
            }
        }
        let known = usize::from(namespaces.is_some()) + usize::from(pods.is_some());
        let outside = usize::from(nodes.is_some()) + usize::from(networks.is_some());
        if known + outside > 1 {
            self.add(field, "says more than one of namespaces, pods, nodes and networks");
        } else if let Some(other) = others.keys().next()
            && known + outside == 1
            && !(ingress && known == 0)
        {
            self.add(format!("{field}.{other}"), format!("unknown field `{other}`"));
        }
    }

    fn protocols(&mut self, field: &str, protocols: Option<&[ClusterProtocol]>) {
        let Some(protocols) = protocols else { return };
        let field = format!("{field}.protocols");
        if protocols.is_empty() {
            self.add(&field, "needs a protocol, or is to be left out");
        }
        self.most(&field, "protocols", protocols.len(), CLUSTER_MOST);
        for (index, protocol) in protocols.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let ClusterProtocol { tcp, udp, sctp, destination_named_port } = protocol;
            let numbers = [("tcp", tcp), ("udp", udp), ("sctp", sctp)];
            let numbers = numbers.map(|(name, ports)| ports.as_ref().map(|ports| (name, ports)));
            let said = numbers.iter().flatten().count();
            if said + usize::from(destination_named_port.is_some()) != 1 {
                self.add(&field, "needs exactly one of tcp, udp, sctp and destinationNamedPort");
            }
            for (name, ports) in numbers.into_iter().flatten() {
                let field = format!("{field}.{name}.destinationPort");
                match &ports.destination_port {
                    ClusterPort { number: Some(_), range: None } => {}
                    ClusterPort { number: None, range: Some(range) } => {
                        self.range(&format!("{field}.range"), range.start, range.end);
                    }
                    _ => self.add(field, "needs either a number or a range"),
                }
            }
            if let Some(name) = destination_named_port {
                self.port_name(&format!("{field}.destinationNamedPort"), name);
            }
        }
    }

    fn range(&mut self, field: &str, start: Port, end: Port) {
        if start >= end {
            let (start, end) = (start.get(), end.get());
            self.add(field, format!("start {start} is not less than end {end}"));
        }
    }

    fn name_needs_pods(&mut self, field: &str, peers: &[ClusterPeer]) {
        if peers.iter().any(|peer| peer.networks.is_some() || peer.nodes.is_some()) {
            self.add(field, "networks and nodes have no ports with names");
        }
    }

    fn admin_rules(&mut self, ingress: &[AdminIngressRule], egress: &[AdminEgressRule]) {
        self.most("spec.ingress", "rules", ingress.len(), ADMIN_MOST);
        for (index, rule) in ingress.iter().enumerate() {
            let field = format!("spec.ingress[{index}]");
            self.rule_name(&field, &rule.name);
            self.peers(&format!("{field}.from"), &rule.from, true, ADMIN_MOST);
            self.admin_ports(&field, rule.ports.as_deref());
        }
        self.most("spec.egress", "rules", egress.len(), ADMIN_MOST);
        for (index, rule) in egress.iter().enumerate() {
            let field = format!("spec.egress[{index}]");
            self.rule_name(&field, &rule.name);
            self.peers(&format!("{field}.to"), &rule.to, false, ADMIN_MOST);
            self.admin_ports(&field, rule.ports.as_deref());
            for (index, port) in rule.ports.iter().flatten().enumerate() {
                if port.named_port.is_some() {
                    self.name_needs_pods(&format!("{field}.ports[{index}].namedPort"), &rule.to);
                }
            }
        }
    }

    fn admin_ports(&mut self, field: &str, ports: Option<&[AdminPort]>) {
        let Some(ports) = ports else { return };
        let field = format!("{field}.ports");
        if ports.is_empty() {
            self.add(&field, "needs a port, or is to be left out");
        }
        self.most(&field, "ports", ports.len(), ADMIN_MOST);
        for (index, port) in ports.iter().enumerate() {
            let field = format!("{field}[{index}]");
            match port {
                AdminPort { port_number: Some(_), named_port: None, port_range: None } => {}
                AdminPort { port_number: None, named_port: Some(name), port_range: None } => {
                    self.port_name(&format!("{field}.namedPort"), name);
                }
                AdminPort { port_number: None, named_port: None, port_range: Some(range) } => {
                    self.range(&format!("{field}.portRange"), range.start, range.end);
                }
                _ => self.add(field, "needs exactly one of portNumber, namedPort and portRange"),
            }
        }
    }
}

/// The name in a label's key, or a value.
fn is_label_text(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    text.len() <= 63 && has_form(text, plain, |byte| plain(byte) || b"-_.".contains(&byte))
}

/// Not empty, `ends` at both ends and `inner` all through.
fn has_form(text: &str, ends: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let both = [text.bytes().next(), text.bytes().last()];
    both.iter().all(|end| end.is_some_and(&ends)) && text.bytes().all(inner)
}
