//! Who may talk to whom, read off manifests as the specification says it.
//!
//! NetworkPolicy v1 and ClusterNetworkPolicy v1alpha2, with the two kinds that went before the latter. Everything is
//! looked for anew in the whole list for each question: this is to be right, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

type Labels = BTreeMap<String, String>;

/// A cluster's objects, as far as policies ask for them.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// All pods, also those that no policy concerns.
    pub pods: Vec<Pod>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Whether policies hold for what a pod sends to its own node.
    pub policed_to_node: bool,
    namespaces: BTreeMap<String, Labels>,
    network_policies: Vec<NetworkPolicy>,
    cluster_policies: Vec<ClusterPolicy>,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Of this life of it; may be empty.
    pub uid: String,
    /// Where it runs.
    pub node: String,
    /// All of its addresses.
    pub addresses: Vec<IpAddr>,
    labels: Labels,
    /// It has no addresses of its own.
    host_network: bool,
    /// It has none any more.
    ended: bool,
    ports: Vec<ContainerPort>,
}

impl Pod {
    /// Whether policies are about it: it has addresses that are its own.
    pub fn counts(&self) -> bool {
        !self.host_network && !self.ended
    }
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    labels: Labels,
}

/// What a port is a port of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
    /// ICMP or ICMPv6, which has no ports, for all that has none.
    #[serde(skip)]
    Icmp,
}

/// The beginning of a conversation. Addresses and port are those at its ends: of a Service's endpoint, not of the Service,
/// and of the true client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who begins it.
    pub from: IpAddr,
    /// Whom it is for.
    pub to: IpAddr,
    /// What is spoken.
    pub protocol: Protocol,
    /// The port of `to`; without meaning in ICMP.
    pub port: u16,
    /// Whether a process of the node on which the pod `to` runs began it, in the node's own network.
    pub by_own_node: bool,
}

/// At which of a flow's ends something is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Where it begins.
    Egress,
    /// Where it ends.
    Ingress,
}

/// What is to become of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is let through.
    Allow,
    /// It is not.
    Deny {
        /// Which end forbids it; the beginning is asked first.
        at: Direction,
        /// What forbids it.
        by: String,
    },
}

impl Verdict {
    /// Whether the flow is let through.
    pub fn is_allow(&self) -> bool {
        *self == Self::Allow
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Deny { at, by } => write!(f, "deny at {at:?} by {by}"),
        }
    }
}

/// What a tier makes of a flow.
enum Outcome {
    Accept,
    Deny(String),
    /// The next tier is asked.
    Next,
}

/// The far end of a flow, from where it is judged.
struct Peer<'a> {
    address: IpAddr,
    pod: Option<&'a Pod>,
}

impl Cluster {
    /// Reads manifests, of which those of other kinds do not matter.
    ///
    /// # Errors
    /// One cannot be read; invalid policies are not this model's subject.
    pub fn read(manifests: &[Value]) -> Result<Self> {
        let mut cluster = Self::default();
        for manifest in manifests {
            let name = manifest["metadata"]["name"].as_str().context("metadata.name: missing")?;
            cluster.add(name, manifest).with_context(|| format!("{} {name}", manifest["kind"]))?;
        }
        Ok(cluster)
    }

    fn add(&mut self, name: &str, manifest: &Value) -> Result<()> {
        let name = name.to_owned();
        let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let labels: Labels = optional(&manifest["metadata"]["labels"])?;
        let spec = &manifest["spec"];
        match manifest["kind"].as_str().unwrap_or_default() {
            "Namespace" => {
                self.namespaces.insert(name, labels);
            }
            "Node" => {
                let addresses = addresses(&manifest["status"]["addresses"], "address")?;
                self.nodes.push(Node { name, addresses, labels });
            }
            "Pod" => {
                let spec: PodSpec = Deserialize::deserialize(spec)?;
                let phase = manifest["status"]["phase"].as_str().unwrap_or_default();
                // Of containers that only prepare, those that stay serve as others do.
                let stays = |c: &Container| c.restart_policy.as_deref() == Some("Always");
                let prepare = spec.init_containers.into_iter().filter(stays);
                let ports = spec.containers.into_iter().chain(prepare).flat_map(|c| c.ports);
                self.pods.push(Pod {
                    namespace,
                    name,
                    uid: optional(&manifest["metadata"]["uid"])?,
                    node: spec.node_name,
                    addresses: addresses(&manifest["status"]["podIPs"], "ip")?,
                    labels,
                    host_network: spec.host_network,
                    ended: matches!(phase, "Succeeded" | "Failed"),
                    ports: ports.collect(),
                });
            }
            "NetworkPolicy" => {
                let spec = Deserialize::deserialize(spec)?;
                self.network_policies.push(NetworkPolicy { namespace, name, spec });
            }
            "ClusterNetworkPolicy" => {
                let spec = Deserialize::deserialize(spec)?;
                self.cluster_policies.push(ClusterPolicy { name, spec });
            }
            kind @ ("AdminNetworkPolicy" | "BaselineAdminNetworkPolicy") => {
                let spec = translated(spec, kind == "AdminNetworkPolicy")?;
                self.cluster_policies.push(ClusterPolicy { name, spec });
            }
            _ => {}
        }
        Ok(())
    }

    /// What is to become of a flow.
    pub fn verdict(&self, flow: &Flow) -> Verdict {
        // Both ends must allow it.
        for at in [Direction::Egress, Direction::Ingress] {
            if let Some(by) = self.denial(flow, at) {
                return Verdict::Deny { at, by };
            }
        }
        Verdict::Allow
    }

    /// What forbids a flow at one of its ends, whatever is said at the other; `None`: nothing.
    pub fn denial(&self, flow: &Flow, at: Direction) -> Option<String> {
        let (pod, exempt) = match at {
            Direction::Egress => {
                let pod = self.pod_at(flow.from)?;
                (pod, !self.policed_to_node && self.is_own_node(pod, flow.to))
            }
            Direction::Ingress => (self.pod_at(flow.to)?, flow.by_own_node),
        };
        match self.judge(pod, at, flow) {
            Outcome::Deny(by) if !exempt => Some(by),
            _ => None,
        }
    }

    /// Gives a pod other labels.
    pub fn relabel(&mut self, namespace: &str, name: &str, labels: &BTreeMap<String, String>) {
        let mut pods = self.pods.iter_mut();
        if let Some(pod) = pods.find(|pod| (&*pod.namespace, &*pod.name) == (namespace, name)) {
            pod.labels.clone_from(labels);
        }
    }

    /// The pod that has an address of its own.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.counts() && pod.addresses.contains(&address))
    }

    fn is_own_node(&self, pod: &Pod, address: IpAddr) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| node.name == pod.node && node.addresses.contains(&address))
    }

    fn judge(&self, pod: &Pod, at: Direction, flow: &Flow) -> Outcome {
        let address = if at == Direction::Egress { flow.to } else { flow.from };
        let peer = Peer { address, pod: self.pod_at(address) };
        match self.cluster_tier(Tier::Admin, pod, at, flow, &peer) {
            Outcome::Next => {}
            decided => return decided,
        }
        match self.namespace_tier(pod, at, flow, &peer) {
            Outcome::Next => {}
            decided => return decided,
        }
        match self.cluster_tier(Tier::Baseline, pod, at, flow, &peer) {
            Outcome::Next => Outcome::Accept,
            decided => decided,
        }
    }

    /// The first rule that matches decides: by priority, then as they are written. Policies of one priority may come in any
    /// order; here it is that of their names.
    fn cluster_tier(
        &self,
        tier: Tier,
        pod: &Pod,
        at: Direction,
        flow: &Flow,
        peer: &Peer,
    ) -> Outcome {
        let mut policies: Vec<&ClusterPolicy> =
            self.cluster_policies.iter().filter(|policy| policy.spec.tier == tier).collect();
        policies.sort_by_key(|policy| (policy.spec.priority, &policy.name));
        for policy in policies {
            if !self.is_subject(pod, &policy.spec.subject) {
                continue;
            }
            let rules = match at {
                Direction::Egress => &policy.spec.egress,
                Direction::Ingress => &policy.spec.ingress,
            };
            for (index, rule) in rules.iter().enumerate() {
                let by = || format!("{tier:?} policy {} rule {index}", policy.name);
                let peers = rule.from.as_ref().or(rule.to.as_ref());
                let peers = peers.map(Vec::as_slice).unwrap_or_default();
                // A field that nobody here knows: what was meant must not be let through by mistake.
                if peers.is_empty() || peers.iter().any(ClusterPeer::is_unknown) {
                    match rule.action {
                        Action::Accept => continue,
                        Action::Deny | Action::Pass => return Outcome::Deny(by()),
                    }
                }
                let someone = peers.iter().any(|wanted| self.is_cluster_peer(peer, wanted));
                if !someone || !self.cluster_ports_match(rule.protocols.as_deref(), flow) {
                    continue;
                }
                match rule.action {
                    Action::Accept => return Outcome::Accept,
                    Action::Deny => return Outcome::Deny(by()),
                    Action::Pass => return Outcome::Next,
                }
            }
        }
        Outcome::Next
    }

    fn is_subject(&self, pod: &Pod, subject: &Subject) -> bool {
        match subject {
            Subject::Namespaces(namespaces) => self.is_in_namespace(pod, namespaces),
            Subject::Pods(pods) => self.is_namespaced(pod, pods),
        }
    }

    fn is_cluster_peer(&self, peer: &Peer, wanted: &ClusterPeer) -> bool {
        if let Some(namespaces) = &wanted.namespaces {
            peer.pod.is_some_and(|pod| self.is_in_namespace(pod, namespaces))
        } else if let Some(pods) = &wanted.pods {
            peer.pod.is_some_and(|pod| self.is_namespaced(pod, pods))
        } else if let Some(nodes) = &wanted.nodes {
            let mut all = self.nodes.iter();
            all.any(|node| node.addresses.contains(&peer.address) && nodes.matches(&node.labels))
        } else if let Some(networks) = &wanted.networks {
            networks.iter().any(|network| network.contains(&peer.address))
        } else {
            false
        }
    }

    fn is_namespaced(&self, pod: &Pod, wanted: &NamespacedPod) -> bool {
        self.is_in_namespace(pod, &wanted.namespace_selector)
            && wanted.pod_selector.matches(&pod.labels)
    }

    fn is_in_namespace(&self, pod: &Pod, wanted: &LabelSelector) -> bool {
        let mut labels = self.namespaces.get(&pod.namespace).cloned().unwrap_or_default();
        // The API server sees to it that this one is always there.
        labels.insert("kubernetes.io/metadata.name".to_owned(), pod.namespace.clone());
        wanted.matches(&labels)
    }

    fn cluster_ports_match(&self, protocols: Option<&[ClusterProtocol]>, flow: &Flow) -> bool {
        let Some(protocols) = protocols else { return true };
        protocols.iter().any(|wanted| match wanted {
            ClusterProtocol::Tcp(ports) => {
                flow.protocol == Protocol::Tcp && ports.contain(flow.port)
            }
            ClusterProtocol::Udp(ports) => {
                flow.protocol == Protocol::Udp && ports.contain(flow.port)
            }
            ClusterProtocol::Sctp(ports) => {
                flow.protocol == Protocol::Sctp && ports.contain(flow.port)
            }
            ClusterProtocol::DestinationNamedPort(name) => self.has_named_port(flow, name),
        })
    }

    /// Whether the flow is for a port that its own pod calls so.
    fn has_named_port(&self, flow: &Flow, name: &str) -> bool {
        self.pod_at(flow.to).is_some_and(|pod| {
            pod.ports.iter().any(|port| {
                port.name == name
                    && port.container_port == flow.port
                    && port.protocol == flow.protocol
            })
        })
    }

    /// What one policy of the pod allows is allowed; if there is one about this direction, all else is not.
    fn namespace_tier(&self, pod: &Pod, at: Direction, flow: &Flow, peer: &Peer) -> Outcome {
        let mut restricted_by = BTreeSet::new();
        for policy in &self.network_policies {
            let spec = &policy.spec;
            if policy.namespace != pod.namespace
                || !spec.pod_selector.matches(&pod.labels)
                || !spec.is_about(at)
            {
                continue;
            }
            restricted_by.insert(policy.name.as_str());
            let rules = match at {
                Direction::Egress => &spec.egress,
                Direction::Ingress => &spec.ingress,
            };
            for rule in rules.iter().flatten() {
                let peers = rule.from.as_ref().or(rule.to.as_ref());
                // No list, or an empty one: anybody. The same of ports.
                let anybody = peers.is_none_or(Vec::is_empty);
                let any_port = rule.ports.as_ref().is_none_or(Vec::is_empty);
                let is_peer = |wanted: &&NetworkPeer| self.is_peer(&policy.namespace, peer, wanted);
                let peers: Vec<_> = peers.into_iter().flatten().filter(is_peer).collect();
                // Who is known by an address alone has no names for ports.
                let named = at == Direction::Ingress
                    || anybody
                    || peers.iter().any(|wanted| wanted.ip_block.is_none());
                let mut ports = rule.ports.iter().flatten();
                if (anybody || !peers.is_empty())
                    && (any_port || ports.any(|wanted| self.port_matches(wanted, flow, named)))
                {
                    return Outcome::Accept;
                }
            }
        }
        if restricted_by.is_empty() {
            Outcome::Next
        } else if flow.from == flow.to {
            // A pod always reaches itself.
            Outcome::Accept
        } else {
            let names: Vec<&str> = restricted_by.into_iter().collect();
            Outcome::Deny(format!("isolation of {} ({})", pod.namespace, names.join(", ")))
        }
    }

    fn is_peer(&self, namespace: &str, peer: &Peer, wanted: &NetworkPeer) -> bool {
        if let Some(block) = &wanted.ip_block {
            // `except` takes away from this block alone; another one may name the addresses again.
            return block.cidr.contains(&peer.address)
                && !block.except.iter().any(|except| except.contains(&peer.address));
        }
        let Some(pod) = peer.pod else { return false };
        let in_namespace = match &wanted.namespace_selector {
            Some(selector) => self.is_in_namespace(pod, selector),
            None => pod.namespace == namespace,
        };
        let selected = match (&wanted.pod_selector, &wanted.namespace_selector) {
            (Some(selector), _) => selector.matches(&pod.labels),
            (None, Some(_)) => true,
            // Nothing selects nothing.
            (None, None) => false,
        };
        in_namespace && selected
    }

    fn port_matches(&self, wanted: &NetworkPort, flow: &Flow, named: bool) -> bool {
        match (&wanted.port, wanted.end_port) {
            (Some(PortOrName::Name(name)), _) => {
                named && wanted.protocol == flow.protocol && self.has_named_port(flow, name)
            }
            (Some(PortOrName::Port(first)), last) => {
                wanted.protocol == flow.protocol
                    && (*first..=last.unwrap_or(*first)).contains(&flow.port)
            }
            (None, _) => wanted.protocol == flow.protocol,
        }
    }
}

fn optional<T: Default + for<'a> Deserialize<'a>>(value: &Value) -> Result<T> {
    Ok(if value.is_null() { T::default() } else { T::deserialize(value)? })
}

/// The addresses of a list in a status; what is none, such as a host name, is left out.
fn addresses(list: &Value, field: &str) -> Result<Vec<IpAddr>> {
    let list: Vec<Value> = optional(list)?;
    Ok(list.iter().filter_map(|entry| entry[field].as_str()?.parse().ok()).collect())
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct LabelSelector {
    match_labels: Labels,
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// All that it says must hold; one that says nothing selects everything.
    fn matches(&self, labels: &Labels) -> bool {
        let mut wanted = self.match_labels.iter();
        wanted.all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|expression| {
                let value = labels.get(&expression.key);
                let listed = value.is_some_and(|value| expression.values.contains(value));
                match expression.operator {
                    Operator::In => listed,
                    // What has no such label is not in the list either.
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    host_network: bool,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    ports: Vec<ContainerPort>,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: String,
    protocol: Protocol,
    container_port: u16,
}

#[derive(Clone, Debug)]
struct NetworkPolicy {
    namespace: String,
    name: String,
    spec: NetworkPolicySpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct NetworkPolicySpec {
    pod_selector: LabelSelector,
    policy_types: Option<Vec<String>>,
    ingress: Option<Vec<NetworkRule>>,
    egress: Option<Vec<NetworkRule>>,
}

impl NetworkPolicySpec {
    fn is_about(&self, at: Direction) -> bool {
        match (&self.policy_types, at) {
            (Some(types), _) if !types.is_empty() => {
                types.iter().any(|named| *named == format!("{at:?}"))
            }
            (_, Direction::Ingress) => true,
            // Written, if only as an empty list; which an API server forgets, so that then it is absent.
            (_, Direction::Egress) => self.egress.is_some(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct NetworkRule {
    from: Option<Vec<NetworkPeer>>,
    to: Option<Vec<NetworkPeer>>,
    ports: Option<Vec<NetworkPort>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct NetworkPeer {
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
    ip_block: Option<IpBlock>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IpBlock {
    cidr: IpNet,
    #[serde(default)]
    except: Vec<IpNet>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct NetworkPort {
    protocol: Protocol,
    port: Option<PortOrName>,
    end_port: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PortOrName {
    Port(u16),
    Name(String),
}

#[derive(Clone, Debug)]
struct ClusterPolicy {
    name: String,
    spec: ClusterPolicySpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterPolicySpec {
    tier: Tier,
    priority: u16,
    subject: Subject,
    #[serde(default)]
    ingress: Vec<ClusterRule>,
    #[serde(default)]
    egress: Vec<ClusterRule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Tier {
    Admin,
    Baseline,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Subject {
    Namespaces(LabelSelector),
    Pods(NamespacedPod),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct NamespacedPod {
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterRule {
    #[serde(default, rename = "name")]
    _name: String,
    action: Action,
    from: Option<Vec<ClusterPeer>>,
    to: Option<Vec<ClusterPeer>>,
    protocols: Option<Vec<ClusterProtocol>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Action {
    Accept,
    Deny,
    Pass,
}

/// One field is set, or none that is known here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClusterPeer {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPod>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<IpNet>>,
}

impl ClusterPeer {
    fn is_unknown(&self) -> bool {
        self.namespaces.is_none()
            && self.pods.is_none()
            && self.nodes.is_none()
            && self.networks.is_none()
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum ClusterProtocol {
    Tcp(ClusterPorts),
    Udp(ClusterPorts),
    Sctp(ClusterPorts),
    DestinationNamedPort(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClusterPorts {
    destination_port: Option<Ports>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Ports {
    Number(u16),
    Range { start: u16, end: u16 },
}

impl ClusterPorts {
    fn contain(&self, port: u16) -> bool {
        match &self.destination_port {
            None => true,
            Some(Ports::Number(number)) => *number == port,
            Some(Ports::Range { start, end }) => (*start..=*end).contains(&port),
        }
    }
}

/// What the older kinds say, in the words of the new one: `Allow` became `Accept`, ports became protocols, and the one
/// baseline, which has no priority, comes last.
fn translated(spec: &Value, admin: bool) -> Result<ClusterPolicySpec> {
    let mut spec = spec.clone();
    spec["tier"] = if admin { "Admin" } else { "Baseline" }.into();
    if !admin {
        spec["priority"] = u16::MAX.into();
    }
    for rules in ["ingress", "egress"] {
        for rule in spec.get_mut(rules).and_then(Value::as_array_mut).into_iter().flatten() {
            if rule["action"] == "Allow" {
                rule["action"] = "Accept".into();
            }
            let rule = rule.as_object_mut().context("a rule is an object")?;
            if let Some(ports) = rule.remove("ports") {
                let ports = ports.as_array().context("ports is a list")?;
                let protocols: Result<Vec<Value>> = ports.iter().map(translated_port).collect();
                rule.insert("protocols".to_owned(), protocols?.into());
            }
        }
    }
    Ok(ClusterPolicySpec::deserialize(&spec)?)
}

fn translated_port(port: &Value) -> Result<Value> {
    ensure!(port.as_object().is_some_and(|fields| fields.len() == 1), "{port}: not one field");
    if let Some(name) = port.get("namedPort") {
        return Ok(serde_json::json!({"destinationNamedPort": name}));
    }
    let (protocol, ports) = if let Some(number) = port.get("portNumber") {
        (&number["protocol"], serde_json::json!({"number": number["port"]}))
    } else if let Some(range) = port.get("portRange") {
        (
            &range["protocol"],
            serde_json::json!({"range": {"start": range["start"], "end": range["end"]}}),
        )
    } else {
        bail!("{port}: not a port");
    };
    let protocol = protocol.as_str().unwrap_or("TCP").to_lowercase();
    Ok(serde_json::json!({protocol: {"destinationPort": ports}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two namespaces, two nodes. `shop/web` and `shop/db` run on `n1`, `ops/mon` on `n2`.
    const CLUSTER: &str = "
- {kind: Namespace, metadata: {name: shop, labels: {team: red}}}
- {kind: Namespace, metadata: {name: ops, labels: {team: blue}}}
- {kind: Node, metadata: {name: n1, labels: {role: edge}}, status: {addresses: [{address: 192.168.0.1}, {address: n1}]}}
- {kind: Node, metadata: {name: n2}, status: {addresses: [{address: 192.168.0.2}]}}
- kind: Pod
  metadata: {namespace: shop, name: web, labels: {app: web}}
  spec: {nodeName: n1, containers: [{ports: [{name: http, containerPort: 80}]}]}
  status: {podIPs: [{ip: 10.0.1.1}, {ip: 'fd00::1:1'}]}
- kind: Pod
  metadata: {namespace: shop, name: db, labels: {app: db}}
  spec:
    nodeName: n1
    containers: [{ports: [{name: http, containerPort: 8080}]}]
    initContainers:
    - {restartPolicy: Always, ports: [{name: side, containerPort: 91}]}
    - {ports: [{name: once, containerPort: 92}]}
  status: {podIPs: [{ip: 10.0.1.2}]}
- kind: Pod
  metadata: {namespace: ops, name: mon, labels: {app: web}}
  spec: {nodeName: n2}
  status: {podIPs: [{ip: 10.0.2.1}]}
- kind: Pod
  metadata: {namespace: ops, name: host, labels: {app: web}}
  spec: {nodeName: n2, hostNetwork: true}
  status: {podIPs: [{ip: 192.168.0.2}]}
- kind: Pod
  metadata: {namespace: ops, name: done, labels: {app: db}}
  spec: {nodeName: n2}
  status: {phase: Succeeded, podIPs: [{ip: 10.0.2.1}]}
";
    const WEB: &str = "10.0.1.1";
    const DB: &str = "10.0.1.2";
    const MON: &str = "10.0.2.1";
    const NODE1: &str = "192.168.0.1";
    const NODE2: &str = "192.168.0.2";
    const OUTSIDE: &str = "203.0.113.5";

    fn cluster(policies: &str) -> Cluster {
        let read = |yaml: &str| serde_saphyr::from_str::<Vec<Value>>(yaml).unwrap();
        Cluster::read(&[read(CLUSTER), read(policies)].concat()).unwrap()
    }

    fn ask(cluster: &Cluster, from: &str, to: &str, protocol: Protocol, port: u16) -> bool {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        cluster.verdict(&Flow { from, to, protocol, port, by_own_node: false }).is_allow()
    }

    /// Whether `from` reaches port 80 of `to` by TCP.
    fn reaches(cluster: &Cluster, from: &str, to: &str) -> bool {
        ask(cluster, from, to, Protocol::Tcp, 80)
    }

    fn policy(namespace: &str, spec: &str) -> Cluster {
        cluster(&network_policy(namespace, spec))
    }

    fn network_policy(namespace: &str, spec: &str) -> String {
        format!(
            "- {{kind: NetworkPolicy, metadata: {{namespace: {namespace}, name: p}}, spec: {{{spec}}}}}\n"
        )
    }

    fn cluster_policy(name: &str, spec: &str) -> String {
        format!(
            "- {{kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, spec: {{subject: {{namespaces: {{}}}}, {spec}}}}}\n"
        )
    }

    #[test]
    fn without_policies_everything_is_open() {
        let cluster = cluster("[]");
        for from in [WEB, DB, MON, NODE1, OUTSIDE] {
            assert!(reaches(&cluster, from, WEB) && reaches(&cluster, WEB, from), "{from}");
        }
    }

    #[test]
    fn a_policy_of_one_direction_says_nothing_of_the_other() {
        let denied = policy("shop", "podSelector: {matchLabels: {app: web}}");
        assert!(!reaches(&denied, DB, WEB) && !reaches(&denied, OUTSIDE, WEB));
        assert!(reaches(&denied, WEB, DB) && reaches(&denied, DB, MON));
        let egress = policy("shop", "podSelector: {}, policyTypes: [Egress]");
        assert!(!reaches(&egress, WEB, MON) && !reaches(&egress, WEB, OUTSIDE));
        assert!(reaches(&egress, MON, WEB) && reaches(&egress, OUTSIDE, WEB));
        // Egress is meant where it is written, and ingress always.
        let both = policy("shop", "podSelector: {}, egress: [{}]");
        assert!(reaches(&both, WEB, MON) && !reaches(&both, MON, WEB));
    }

    #[test]
    fn a_policy_allows_as_well_in_its_other_addresses() {
        let rule = "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]";
        let cluster = policy("shop", rule);
        assert!(reaches(&cluster, WEB, DB) && reaches(&cluster, "fd00::1:1", DB));
        assert!(!reaches(&cluster, "fd00::9", DB));
    }

    #[test]
    fn an_empty_rule_is_everything_and_an_empty_list_nothing() {
        let all = policy("shop", "podSelector: {}, ingress: [{}]");
        assert!(reaches(&all, OUTSIDE, WEB) && ask(&all, MON, WEB, Protocol::Icmp, 0));
        let lists = policy("shop", "podSelector: {}, ingress: [{from: [], ports: []}]");
        assert!(reaches(&lists, OUTSIDE, WEB) && ask(&lists, MON, WEB, Protocol::Icmp, 0));
        assert!(!reaches(&policy("shop", "podSelector: {}, ingress: []"), OUTSIDE, WEB));
    }

    #[test]
    fn selectors_in_one_item_are_and_and_in_two_are_or() {
        let rule = |from: &str| {
            policy("shop", &format!("podSelector: {{}}, ingress: [{{from: [{from}]}}]"))
        };
        let namespace = "namespaceSelector: {matchLabels: {team: blue}}";
        let and = rule(&format!("{{{namespace}, podSelector: {{matchLabels: {{app: db}}}}}}"));
        assert!(!reaches(&and, MON, WEB) && !reaches(&and, DB, WEB));
        let or = rule(&format!("{{{namespace}}}, {{podSelector: {{matchLabels: {{app: db}}}}}}"));
        assert!(reaches(&or, MON, WEB) && reaches(&or, DB, WEB));
        // Of this namespace alone.
        let own = rule("{podSelector: {matchLabels: {app: web}}}");
        assert!(!reaches(&own, MON, DB) && reaches(&own, WEB, DB));
        let by_name = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}";
        assert!(reaches(&rule(by_name), MON, WEB) && !reaches(&rule(by_name), DB, WEB));
        assert!(!reaches(&rule("{}"), MON, WEB) && !reaches(&rule("{podSelector: null}"), DB, WEB));
    }

    #[test]
    fn expressions() {
        let rule = |expression: &str| {
            let selector = format!("podSelector: {{matchExpressions: [{{{expression}}}]}}");
            let from = format!("namespaceSelector: {{}}, {selector}");
            policy("shop", &format!("podSelector: {{}}, ingress: [{{from: [{{{from}}}]}}]"))
        };
        let web_db = |expression: &str| {
            let cluster = rule(expression);
            (reaches(&cluster, WEB, DB), reaches(&cluster, DB, WEB))
        };
        assert_eq!(web_db("key: app, operator: In, values: [web, x]"), (true, false));
        assert_eq!(web_db("key: app, operator: NotIn, values: [web]"), (false, true));
        assert_eq!(web_db("key: none, operator: NotIn, values: [web]"), (true, true));
        assert_eq!(web_db("key: app, operator: Exists"), (true, true));
        assert_eq!(web_db("key: app, operator: DoesNotExist"), (false, false));
    }

    #[test]
    fn a_block_is_about_addresses_whoever_has_them() {
        let rule = |blocks: &str| {
            policy("shop", &format!("podSelector: {{}}, ingress: [{{from: [{blocks}]}}]"))
        };
        let block = "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.2.0/24]}}";
        let cluster = rule(block);
        assert!(reaches(&cluster, WEB, DB) && !reaches(&cluster, MON, DB));
        assert!(!reaches(&cluster, OUTSIDE, DB));
        // Another rule may allow what this one leaves out.
        let again = rule(&format!("{block}, {{ipBlock: {{cidr: 10.0.2.1/32}}}}"));
        assert!(reaches(&again, MON, DB) && !reaches(&again, "10.0.2.2", DB));
        assert!(reaches(&rule("{ipBlock: {cidr: 192.168.0.2/32}}"), NODE2, DB));
        assert!(!reaches(&rule("{ipBlock: {cidr: '::/0'}}"), MON, DB));
    }

    #[test]
    fn ports_by_number_range_and_name() {
        let rule = |ports: &str| {
            policy("shop", &format!("podSelector: {{}}, ingress: [{{ports: [{ports}]}}]"))
        };
        use Protocol::{Icmp, Sctp, Tcp, Udp};
        let number = rule("{port: 80}");
        assert!(ask(&number, MON, WEB, Tcp, 80) && !ask(&number, MON, WEB, Udp, 80));
        assert!(!ask(&number, MON, WEB, Tcp, 81) && !ask(&number, MON, WEB, Icmp, 80));
        let range = rule("{protocol: UDP, port: 80, endPort: 82}");
        assert!(ask(&range, MON, WEB, Udp, 80) && ask(&range, MON, WEB, Udp, 82));
        assert!(!ask(&range, MON, WEB, Udp, 83) && !ask(&range, MON, WEB, Tcp, 81));
        let protocol = rule("{protocol: SCTP}");
        assert!(ask(&protocol, MON, WEB, Sctp, 7) && !ask(&protocol, MON, WEB, Tcp, 7));
        // The same name is another number in another pod.
        let name = rule("{port: http}, {port: side}, {port: once}");
        assert!(ask(&name, MON, WEB, Tcp, 80) && !ask(&name, MON, WEB, Tcp, 8080));
        assert!(ask(&name, MON, DB, Tcp, 8080) && !ask(&name, MON, DB, Udp, 8080));
        assert!(ask(&name, MON, DB, Tcp, 91) && !ask(&name, MON, DB, Tcp, 92));
        let to = policy(
            "shop",
            "podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]",
        );
        assert!(ask(&to, WEB, DB, Tcp, 8080) && !ask(&to, WEB, DB, Tcp, 80));
        // Nobody there has names for ports, and nobody whom only his address makes a peer.
        assert!(!ask(&to, WEB, OUTSIDE, Tcp, 80));
        let block = |peers: &str| {
            let rule = format!(
                "{{to: [{{ipBlock: {{cidr: 0.0.0.0/0}}}}{peers}], ports: [{{port: http}}]}}"
            );
            policy("shop", &format!("podSelector: {{}}, policyTypes: [Egress], egress: [{rule}]"))
        };
        assert!(!ask(&block(""), WEB, DB, Tcp, 8080));
        assert!(ask(&block(", {podSelector: {}}"), WEB, DB, Tcp, 8080));
    }

    #[test]
    fn the_own_node_always_comes_in_and_is_reached_unless_policed() {
        let mut cluster = policy("shop", "podSelector: {}, policyTypes: [Ingress, Egress]");
        let (from, to) = (NODE1.parse().unwrap(), WEB.parse().unwrap());
        let mut flow = Flow { from, to, protocol: Protocol::Tcp, port: 80, by_own_node: true };
        assert!(cluster.verdict(&flow).is_allow());
        // Its address alone proves nothing.
        flow.by_own_node = false;
        assert!(!cluster.verdict(&flow).is_allow());
        assert!(reaches(&cluster, WEB, NODE1) && !reaches(&cluster, WEB, NODE2));
        cluster.policed_to_node = true;
        assert!(!reaches(&cluster, WEB, NODE1));
    }

    #[test]
    fn pods_of_the_hosts_network_and_those_that_ended_are_nobody() {
        let cluster = policy("ops", "podSelector: {}");
        assert!(!reaches(&cluster, WEB, MON) && reaches(&cluster, WEB, NODE2));
        let from = "namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: Exists}]}";
        let peers =
            policy("shop", &format!("podSelector: {{}}, ingress: [{{from: [{{{from}}}]}}]"));
        assert!(reaches(&peers, MON, WEB) && !reaches(&peers, NODE2, WEB));
        // The address of the pod that ended belongs to another one.
        let from = "namespaceSelector: {}, podSelector: {matchLabels: {app: db}}";
        let ended =
            policy("shop", &format!("podSelector: {{}}, ingress: [{{from: [{{{from}}}]}}]"));
        assert!(!reaches(&ended, MON, WEB) && reaches(&ended, DB, WEB));
    }

    #[test]
    fn a_pod_reaches_itself_whatever_its_own_policies_say() {
        let own = network_policy("shop", "podSelector: {}, policyTypes: [Ingress, Egress]");
        assert!(reaches(&cluster(&own), WEB, WEB));
        let deny = "tier: Admin, priority: 1, ingress: [{action: Deny, from: [{namespaces: {}}]}]";
        assert!(!reaches(&cluster(&cluster_policy("all", deny)), WEB, WEB));
    }

    #[test]
    fn tiers_come_one_after_the_other() {
        let from = "from: [{namespaces: {}}]";
        let admin = |name: &str, priority: u16, action: &str| {
            let rule = format!("ingress: [{{action: {action}, {from}}}]");
            cluster_policy(name, &format!("tier: Admin, priority: {priority}, {rule}"))
        };
        let baseline = |action: &str| {
            let rule = format!("ingress: [{{action: {action}, {from}}}]");
            cluster_policy("base", &format!("tier: Baseline, priority: 5, {rule}"))
        };
        let deny = network_policy("shop", "podSelector: {}");
        let allow = network_policy("shop", "podSelector: {}, ingress: [{}]");
        let check = |policies: &[&str], expected: bool| {
            let cluster = cluster(&policies.concat());
            assert_eq!(reaches(&cluster, MON, WEB), expected, "{policies:?}");
        };
        check(&[&admin("a", 1, "Accept"), &deny, &baseline("Deny")], true);
        check(&[&admin("a", 1, "Deny"), &allow, &baseline("Accept")], false);
        check(&[&admin("a", 1, "Pass"), &deny, &baseline("Accept")], false);
        check(&[&admin("a", 1, "Pass"), &allow, &baseline("Deny")], true);
        check(&[&admin("a", 1, "Pass"), &baseline("Deny")], false);
        check(&[&baseline("Accept")], true);
        check(&[&admin("a", 1, "Pass"), &admin("b", 2, "Deny")], true);
        check(&[&admin("b", 1, "Deny"), &admin("a", 2, "Accept")], false);
        // Being selected isolates nobody.
        let pods = "ingress: [{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}]}]";
        check(&[&cluster_policy("a", &format!("tier: Admin, priority: 1, {pods}"))], true);
    }

    #[test]
    fn rules_of_a_policy_count_in_their_order() {
        let first = "{action: Accept, to: [{networks: [203.0.113.0/24]}], protocols: [{tcp: {destinationPort: {number: 80}}}]}";
        let second = "{action: Deny, to: [{networks: [0.0.0.0/0]}]}";
        let spec = |rules: &str| format!("tier: Admin, priority: 1, egress: [{rules}]");
        let both = cluster(&cluster_policy("a", &spec(&format!("{first}, {second}"))));
        assert!(reaches(&both, WEB, OUTSIDE) && !reaches(&both, WEB, MON));
        assert!(!ask(&both, WEB, OUTSIDE, Protocol::Icmp, 0));
        let other = cluster(&cluster_policy("a", &spec(&format!("{second}, {first}"))));
        assert!(!reaches(&other, WEB, OUTSIDE));
        let nodes = cluster(&cluster_policy("a", &spec("{action: Deny, to: [{nodes: {}}]}")));
        assert!(!reaches(&nodes, WEB, NODE2) && reaches(&nodes, WEB, OUTSIDE));
        let edge = spec("{action: Deny, to: [{nodes: {matchLabels: {role: edge}}}]}");
        let edge = cluster(&cluster_policy("a", &edge));
        assert!(!reaches(&edge, MON, NODE1) && reaches(&edge, WEB, NODE2));
    }

    #[test]
    fn protocols_of_cluster_policies() {
        let rule = |protocols: &str| {
            let rule =
                format!("{{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{protocols}]}}");
            cluster(&cluster_policy(
                "a",
                &format!("tier: Baseline, priority: 1, ingress: [{rule}]"),
            ))
        };
        use Protocol::{Sctp, Tcp, Udp};
        let range = rule("{udp: {destinationPort: {range: {start: 80, end: 81}}}}");
        assert!(!ask(&range, MON, WEB, Udp, 81) && ask(&range, MON, WEB, Udp, 82));
        assert!(ask(&range, MON, WEB, Tcp, 81) && ask(&range, MON, WEB, Sctp, 81));
        let name = rule("{destinationNamedPort: http}");
        assert!(!ask(&name, MON, WEB, Tcp, 80) && !ask(&name, MON, DB, Tcp, 8080));
        assert!(ask(&name, MON, DB, Tcp, 80) && ask(&name, MON, DB, Udp, 8080));
    }

    #[test]
    fn what_is_not_known_fails_closed() {
        let rule = |action: &str| {
            let rule = format!("{{action: {action}, from: [{{galaxies: {{}}}}]}}");
            format!("tier: Admin, priority: 1, ingress: [{rule}]")
        };
        let deny =
            "tier: Baseline, priority: 2, ingress: [{action: Deny, from: [{namespaces: {}}]}]";
        let closed = [cluster_policy("a", &rule("Accept")), cluster_policy("b", deny)].concat();
        assert!(!reaches(&cluster(&closed), MON, WEB));
        assert!(reaches(&cluster(&cluster_policy("a", &rule("Accept"))), MON, WEB));
        for action in ["Deny", "Pass"] {
            assert!(!reaches(&cluster(&cluster_policy("a", &rule(action))), OUTSIDE, WEB));
        }
    }

    #[test]
    fn the_older_kinds_say_the_same() {
        let admin = "
- kind: AdminNetworkPolicy
  metadata: {name: a}
  spec:
    priority: 7
    subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
    ingress:
    - {action: Allow, from: [{namespaces: {}}], ports: [{portNumber: {protocol: TCP, port: 80}}, {namedPort: http}]}
    - {action: Deny, from: [{namespaces: {}}], ports: [{portRange: {protocol: TCP, start: 1, end: 90}}]}
";
        let baseline = "
- kind: BaselineAdminNetworkPolicy
  metadata: {name: default}
  spec: {subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]}
";
        let admin = cluster(admin);
        assert!(reaches(&admin, DB, WEB) && !ask(&admin, DB, WEB, Protocol::Tcp, 81));
        assert!(ask(&admin, DB, WEB, Protocol::Tcp, 91) && ask(&admin, WEB, DB, Protocol::Tcp, 81));
        let baseline = cluster(baseline);
        assert!(!reaches(&baseline, WEB, OUTSIDE) && reaches(&baseline, OUTSIDE, WEB));
    }

    #[test]
    fn a_denial_says_where_and_by_what() {
        let cluster = policy("shop", "podSelector: {}");
        let (from, to) = (MON.parse().unwrap(), WEB.parse().unwrap());
        let flow = Flow { from, to, protocol: Protocol::Tcp, port: 80, by_own_node: false };
        assert_eq!(cluster.verdict(&flow).to_string(), "deny at Ingress by isolation of shop (p)");
    }
}
