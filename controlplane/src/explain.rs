//! What policies make of a packet, told from manifests alone.
//!
//! Nothing is decided here. The manifests become the tables of a node that has all pods, and the code that
//! nodes run answers; so does it, of tables of one rule each, which rules match and which nearly do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use fairway_abi::{protocol, ruling};
use fairway_compile::policy::{LocalPod, RuleName};
use fairway_model::{
    Action, EndpointState, Model, NamedPort, ObjectName, Pod, Policy, PolicyKind, PolicyName,
    Protocol, Rule, Tier,
};
use ipnet::IpNet;
use serde::Serialize;

use crate::kubernetes::Objects;
use crate::manifests::{self, Checked, Problem, amend};

pub use self::cases::{Failure, run_cases};
pub use self::question::{Destination, Port, Who};

mod cases;
mod question;
mod tables;

use tables::{Asked, Packet, Tables};

/// The node that all pods are on.
const HERE: &str = "here";
/// The first addresses of pods that the manifests give none: of ranges that nobody has.
const STAND_IN_V4: u32 = 0xf000_0001;
const STAND_IN_V6: u128 = (0x100 << 112) + 1;

/// A cluster, as manifests tell of it.
pub struct Cluster {
    model: Model,
    pods: BTreeMap<ObjectName, KnownPod>,
    /// The pod that has an address of its own.
    owners: HashMap<IpAddr, ObjectName>,
    /// All addresses of each node.
    nodes: BTreeMap<String, Vec<IpAddr>>,
    tables: Tables,
}

struct KnownPod {
    addresses: Vec<IpAddr>,
    /// The manifests say none; they have been made up.
    made_up: bool,
    node: Option<String>,
    host_network: bool,
    ports: Vec<NamedPort>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(String);

/// What becomes of packets from one address to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Who sends.
    pub from: End,
    /// Who is to receive it, after a Service chose.
    pub to: End,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: String,
    /// The destination's, after a Service chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether both ends allow it.
    pub allowed: bool,
    /// What the sender's policies say.
    pub egress: Side,
    /// What the receiver's say.
    pub ingress: Side,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// As `pod/shop/web`, where it is somebody that is known.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// What one end's policies say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Whether they allow it.
    pub allowed: bool,
    /// What decided, in words.
    pub because: String,
    /// Rules that match, or would if either the other end or the port were another; in the order in which
    /// they are asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Near>,
    /// How many others there are.
    pub others: usize,
    /// Whether its rules have been asked at all, and the one that decided.
    #[serde(skip)]
    asked: bool,
    #[serde(skip)]
    decided: Option<RuleName>,
}

/// A rule that matches or nearly does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Near {
    /// As `NetworkPolicy shop/db`.
    pub policy: String,
    /// As `ingress[0]`, and its name.
    pub rule: String,
    /// What it does.
    pub action: String,
    /// Whether it means the other end.
    pub peer: bool,
    /// Whether it means the port.
    pub port: bool,
    /// Whether it is the one that decided.
    pub decides: bool,
}

/// Somebody who was asked about.
#[derive(Clone)]
struct Found {
    name: String,
    address: IpAddr,
    pod: Option<ObjectName>,
    /// The node whose address it is.
    node: Option<String>,
}

impl Cluster {
    /// Reads files and folders of manifests, and says what is wrong with them. A pod needs neither a node
    /// nor an address nor a status.
    pub fn read(
        paths: &[PathBuf],
        service_cidrs: Vec<IpNet>,
        node_port_range: RangeInclusive<u16>,
    ) -> Result<(Self, Vec<Problem>), manifests::Error> {
        let (mut pods, mut nodes) = (BTreeMap::new(), BTreeMap::new());
        let learn = |objects: &mut Objects| {
            pods = complete(objects);
            let all = objects.nodes.iter();
            nodes = all.map(|(name, node)| (name.clone(), node.addresses().collect())).collect();
        };
        let Checked { mut model, problems } =
            manifests::read(paths, service_cidrs, node_port_range, learn)?;
        let here = |pod: &Pod| Pod { node: HERE.to_owned(), ..pod.clone() };
        model.pods = model.pods.values().map(here).collect();
        let local: Vec<_> = model.pods.keys().map(|name| local_pod(name, &pods)).collect();
        let tables = Tables::new(&model, HERE, &local);
        let on_their_own = pods.iter().filter(|(_, pod)| !pod.host_network);
        let owners = on_their_own
            .flat_map(|(name, pod)| pod.addresses.iter().map(|address| (*address, name.clone())));
        let owners = owners.collect();
        Ok((Self { model, pods, owners, nodes, tables }, problems))
    }

    /// What becomes of what `from` sends to `to`: once for each address that it may go to; what differs in
    /// nothing but addresses, once. An error is one in the question.
    pub fn explain(&mut self, from: &Who, to: &Destination) -> Result<Vec<Answer>, NoAnswer> {
        self.answers(from, to, true)
    }

    /// As [`Self::explain`], with rules only if they are asked for: those are most of the work.
    fn answers(
        &mut self,
        from: &Who,
        to: &Destination,
        with_rules: bool,
    ) -> Result<Vec<Answer>, NoAnswer> {
        let senders = match from {
            Who::Service(_) => {
                return Err(NoAnswer(format!("{from} sends nothing; name a pod of it")));
            }
            from => self.find(from)?,
        };
        let targets = self.targets(to)?;
        let mut answers = Vec::<Answer>::new();
        for sender in &senders {
            for (target, protocol, port) in &targets {
                if sender.address.is_ipv4() != target.address.is_ipv4() {
                    continue;
                }
                let mut answer = self.answer(sender, target, *protocol, *port);
                if with_rules {
                    self.add_rules(&mut answer, sender, target, *protocol);
                }
                let same = |other: &Answer| {
                    let (mut from, mut to) = (other.from.clone(), other.to.clone());
                    (from.address, to.address) = (answer.from.address, answer.to.address);
                    Answer { from, to, ..other.clone() } == answer
                };
                if !answers.iter().any(same) {
                    answers.push(answer);
                }
            }
        }
        if answers.is_empty() {
            let message = format!("{from} and {} have no addresses of one family", to.who);
            return Err(NoAnswer(message));
        }
        Ok(answers)
    }

    fn find(&self, who: &Who) -> Result<Vec<Found>, NoAnswer> {
        let missing = || NoAnswer(format!("there is no {who}"));
        let found = |address: &IpAddr| self.owner(*address);
        let all = match who {
            Who::Pod(name) => {
                let pod = self.pods.get(name).ok_or_else(missing)?;
                let named = |address: &IpAddr| Found { name: who.to_string(), ..found(address) };
                pod.addresses.iter().map(named).collect()
            }
            Who::Node(name) => {
                let node = self.nodes.get(name).ok_or_else(missing)?;
                node.iter().map(found).collect()
            }
            Who::Service(_) => Vec::new(),
            Who::Address(address) => vec![found(address)],
        };
        if all.is_empty() { Err(NoAnswer(format!("{who} has no address"))) } else { Ok(all) }
    }

    /// Who has an address.
    fn owner(&self, address: IpAddr) -> Found {
        let pod = self.find_pod(address).cloned();
        let node = self.nodes.iter().find(|(_, addresses)| addresses.contains(&address));
        let node = node.map(|(name, _)| name.clone());
        let name = match (&pod, &node) {
            (Some(pod), _) => format!("pod/{pod}"),
            (None, Some(node)) => format!("node/{node}"),
            (None, None) => address.to_string(),
        };
        Found { name, address, pod, node }
    }

    /// The pod that has an address of its own.
    fn find_pod(&self, address: IpAddr) -> Option<&ObjectName> {
        self.owners.get(&address)
    }

    /// Where packets to a destination may go: with protocol and port.
    fn targets(&self, to: &Destination) -> Result<Vec<(Found, Option<Protocol>, u16)>, NoAnswer> {
        let service = match &to.who {
            Who::Service(name) => {
                let missing = || NoAnswer(format!("there is no {}", to.who));
                Some(self.model.services.get(name).ok_or_else(missing)?)
            }
            Who::Address(address) => {
                let has = |service: &&fairway_model::Service| {
                    let outside = service.external_ips.iter().chain(&service.load_balancer_ips);
                    service.cluster_ips.iter().chain(outside).any(|own| own == address)
                };
                self.model.services.values().find(has)
            }
            Who::Pod(_) | Who::Node(_) => None,
        };
        if let Some(service) = service {
            return self.endpoints(service, to);
        }
        let found = self.find(&to.who)?;
        let (protocol, port) = match (&to.port, &to.who) {
            (Port::Icmp, _) => (None, 0),
            (Port::Number(number, protocol), _) => (Some(*protocol), *number),
            (Port::Name(wanted, protocol), Who::Pod(name)) => {
                let mut ports = self.pods.get(name).into_iter().flat_map(|pod| &pod.ports);
                let fits = |port: &&NamedPort| {
                    port.name == *wanted && protocol.is_none_or(|wanted| wanted == port.protocol)
                };
                let port = ports.find(fits);
                let missing = || NoAnswer(format!("{} has no port \"{wanted}\"", to.who));
                let port = port.ok_or_else(missing)?;
                (Some(port.protocol), port.port)
            }
            (Port::Name(wanted, _), who) => {
                let message = format!("{who} has no ports with names such as \"{wanted}\"");
                return Err(NoAnswer(message));
            }
        };
        Ok(found.into_iter().map(|found| (found, protocol, port)).collect())
    }

    fn endpoints(
        &self,
        service: &fairway_model::Service,
        to: &Destination,
    ) -> Result<Vec<(Found, Option<Protocol>, u16)>, NoAnswer> {
        let mut ports = service.ports.iter();
        let port = match &to.port {
            Port::Icmp => {
                let message = format!("{} is no destination of echo requests", to.who);
                return Err(NoAnswer(message));
            }
            Port::Number(number, protocol) => {
                ports.find(|port| port.port == *number && port.protocol == *protocol)
            }
            Port::Name(name, protocol) => ports.find(|port| {
                port.name == *name && protocol.is_none_or(|protocol| protocol == port.protocol)
            }),
        };
        let port =
            port.ok_or_else(|| NoAnswer(format!("svc/{} has no such port as {to}", service.name)))?;
        let endpoints = self.model.endpoints.get(&service.name);
        let all = endpoints.and_then(|all| all.ports.get(&port.name));
        let all = all.map_or(&[][..], Vec::as_slice);
        let in_state = |state| all.iter().filter(move |endpoint| endpoint.state == state);
        let ready: Vec<_> = in_state(EndpointState::Ready).collect();
        let used = match ready.is_empty() {
            true => in_state(EndpointState::ServingTerminating).collect(),
            false => ready,
        };
        if used.is_empty() {
            return Err(NoAnswer(format!("svc/{} has no endpoint", service.name)));
        }
        let target = |endpoint: &fairway_model::Endpoint| {
            (self.owner(endpoint.address), Some(port.protocol), endpoint.port)
        };
        Ok(used.into_iter().map(target).collect())
    }

    fn answer(&mut self, from: &Found, to: &Found, of: Option<Protocol>, port: u16) -> Answer {
        let packet = packet(from, to, of, port);
        let node_of = |found: &Found| {
            let pod = found.pod.as_ref().and_then(|name| self.pods.get(name)?.node.clone());
            pod.or_else(|| found.node.clone())
        };
        let own = node_of(from).and_then(|name| self.nodes.get(&name).cloned()).unwrap_or_default();
        let is_own_pod = from.pod.is_none() && from.node.is_some() && from.node == node_of(to);
        let (allowed, _) = self.tables.ask(packet, Asked::Both, &own);
        let egress = self.side(from, to, packet, Asked::Egress, &own);
        let ingress = if is_own_pod && to.pod.is_some() {
            Side::open("a node always reaches its own pods")
        } else {
            self.side(to, from, packet, Asked::Ingress, &own)
        };
        let made_up = |found: &&Found| {
            let pod = found.pod.as_ref().and_then(|name| self.pods.get(name));
            pod.is_some_and(|pod| pod.made_up)
        };
        let notes = [from, to].into_iter().filter(made_up).map(|found| {
            format!(
                "the manifests give {} no address; the one here is made up, and in no range but those \
                 of all addresses",
                found.name
            )
        });
        let notes: BTreeSet<_> = notes.collect();
        let end = |found: &Found| End { name: found.name.clone(), address: found.address };
        Answer {
            from: end(from),
            to: end(to),
            protocol: of.map_or_else(|| "ICMP".to_owned(), |protocol| protocol.to_string()),
            port: packet.port,
            allowed: allowed || (is_own_pod && egress.allowed && ingress.allowed),
            egress,
            ingress,
            notes: notes.into_iter().collect(),
        }
    }

    /// What the policies of one end say, of which `other` is the other.
    fn side(
        &mut self,
        end: &Found,
        other: &Found,
        packet: Packet,
        asked: Asked,
        own: &[IpAddr],
    ) -> Side {
        let ingress = asked == Asked::Ingress;
        let subject = self.tables.subject(end.address);
        let set = if ingress { subject.ingress } else { subject.egress };
        if end.pod.is_none() {
            return Side::open("it is no pod, and not restricted");
        }
        if set == 0 {
            return Side::open("no policy restricts it");
        }
        if !ingress && other.pod.is_none() && own.contains(&other.address) {
            return Side::open(
                "what a pod sends to its own node is not restricted, unless the agent is told so",
            );
        }
        let (allowed, verdict) = self.tables.ask(packet, asked, own);
        let decided = self.tables.rules.get(&(verdict & ruling::RULE)).cloned();
        let because = match &decided {
            _ if allowed && verdict & ruling::DENIED != 0 => {
                "a pod's own policies leave it alone with itself".to_owned()
            }
            Some(RuleName { policy, index: None, .. }) => {
                format!("{policy} restricts it, and no rule allows this")
            }
            Some(rule) => {
                let does = if allowed { "accepts" } else { "denies" };
                format!("{} {} {does} this", rule.policy, rule_text(rule))
            }
            None if allowed => "no rule of its policies decides".to_owned(),
            None => "its policies are not known".to_owned(),
        };
        Side { allowed, because, rules: Vec::new(), others: 0, asked: true, decided }
    }

    /// Adds the rules of each end that has been asked.
    fn add_rules(&self, answer: &mut Answer, from: &Found, to: &Found, of: Option<Protocol>) {
        let packet = packet(from, to, of, answer.port.unwrap_or_default());
        for (side, end, ingress) in
            [(&mut answer.egress, from, false), (&mut answer.ingress, to, true)]
        {
            if let (Some(pod), true) = (&end.pod, side.asked) {
                (side.rules, side.others) = self.near(pod, packet, ingress, side.decided.as_ref());
            }
        }
    }

    /// The rules that match or nearly do, and how many others there are.
    fn near(
        &self,
        pod: &ObjectName,
        packet: Packet,
        ingress: bool,
        decided: Option<&RuleName>,
    ) -> (Vec<Near>, usize) {
        let policies = self.model.pods.get(pod).map_or(&[][..], |pod| pod.policies.as_slice());
        let policies = policies.iter().filter_map(|name| self.model.policies.get(name));
        let mut policies: Vec<_> = policies.collect();
        policies.sort_by_key(|policy| (policy.tier, policy.priority, &policy.name));
        let (mut near, mut others) = (Vec::new(), 0);
        for policy in policies {
            let rules = if ingress { &policy.ingress } else { &policy.egress };
            for (index, rule) in rules.iter().flatten().enumerate() {
                let (peer, port) = self.matches(pod, packet, ingress, rule);
                if !peer && !port {
                    others += 1;
                    continue;
                }
                let name = RuleName {
                    policy: policy.name.clone(),
                    ingress,
                    index: Some(index),
                    name: rule.name.clone(),
                };
                near.push(Near {
                    policy: policy.name.to_string(),
                    rule: rule_text(&name),
                    action: format!("{:?}", rule.action),
                    peer,
                    port,
                    decides: decided == Some(&name),
                });
            }
        }
        (near, others)
    }

    /// Whether a rule means the other end, and the port.
    fn matches(
        &self,
        pod: &ObjectName,
        packet: Packet,
        ingress: bool,
        rule: &Rule,
    ) -> (bool, bool) {
        let other = if ingress { packet.client } else { packet.endpoint };
        let other = self.find_pod(other);
        let member = other.and_then(|name| self.model.members.get(name));
        // Anybody, but somebody by whose name his ports are known, if there is such a name.
        let anybody = member.and_then(|member| self.model.groups.get(&member.group));
        let anybody = anybody.map(|group| group.selectors.clone());
        let denies = |peers: &Option<Vec<String>>, ports| {
            let (peers, action) = (peers.clone(), Action::Deny);
            let rule = Rule { name: String::new(), action, peers, ports };
            !self.alone(pod, other, ingress, &rule).ask(packet, Asked::Both, &[]).0
        };
        if denies(&rule.peers, rule.ports.clone()) {
            return (true, true);
        }
        (denies(&rule.peers, None), denies(&anybody, rule.ports.clone()))
    }

    /// Tables that know of the pod and one other, in which it is restricted by one rule alone.
    fn alone(
        &self,
        pod: &ObjectName,
        other: Option<&ObjectName>,
        ingress: bool,
        rule: &Rule,
    ) -> Tables {
        let kind = PolicyKind::ClusterNetworkPolicy;
        let name = PolicyName { kind, namespace: String::new(), name: HERE.to_owned() };
        let rules = |wanted: bool| wanted.then(|| vec![rule.clone()]);
        let policy = Policy {
            name: name.clone(),
            tier: Tier::Admin,
            priority: 0,
            ingress: rules(ingress),
            egress: rules(!ingress),
        };
        let peers = rule.peers.iter().flatten();
        let selectors = peers.filter_map(|name| self.model.selectors.get(name)).cloned();
        let restricted = self.model.pods.get(pod).cloned().unwrap_or_default();
        let restricted = Pod { policies: vec![name], ..restricted };
        let other = other.filter(|other| *other != pod);
        let members = [Some(pod), other].into_iter().flatten();
        let members = members.filter_map(|name| self.model.members.get(name)).cloned();
        let members: fairway_model::Objects<_> = members.collect();
        let groups = members.values().filter_map(|member| self.model.groups.get(&member.group));
        let other = other.and_then(|name| self.model.pods.get(name));
        let other = other.map(|other| Pod { policies: Vec::new(), ..other.clone() });
        let model = Model {
            selectors: selectors.collect(),
            groups: groups.cloned().collect(),
            members,
            policies: [policy].into_iter().collect(),
            pods: other.into_iter().chain([restricted]).collect(),
            ..Model::default()
        };
        let local: Vec<_> = model.pods.keys().map(|name| local_pod(name, &self.pods)).collect();
        Tables::new(&model, HERE, &local)
    }
}

impl Side {
    /// One whose rules are not asked.
    fn open(because: &str) -> Self {
        let (rules, decided) = (Vec::new(), None);
        Self { allowed: true, because: because.to_owned(), rules, others: 0, asked: false, decided }
    }
}

fn packet(from: &Found, to: &Found, of: Option<Protocol>, port: u16) -> Packet {
    let icmp = if from.address.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    Packet {
        client: from.address,
        endpoint: to.address,
        protocol: of.map_or(icmp, Protocol::number),
        port: of.map(|_| port),
    }
}

fn local_pod(name: &ObjectName, pods: &BTreeMap<ObjectName, KnownPod>) -> LocalPod {
    let addresses = pods.get(name).map(|pod| pod.addresses.clone()).unwrap_or_default();
    LocalPod { name: name.clone(), uid: String::new(), addresses }
}

fn rule_text(rule: &RuleName) -> String {
    let direction = if rule.ingress { "ingress" } else { "egress" };
    let place = rule.index.map(|index| format!("[{index}]")).unwrap_or_default();
    let name = if rule.name.is_empty() { String::new() } else { format!(" ({})", rule.name) };
    format!("{direction}{place}{name}")
}

/// Gives pods what a cluster would give them, and tells of all that have not ended.
fn complete(objects: &mut Objects) -> BTreeMap<ObjectName, KnownPod> {
    let mut known = BTreeMap::new();
    let mut registered = Vec::new();
    for (index, (name, pod)) in (0..).zip(&objects.pods) {
        if pod.has_ended() {
            continue;
        }
        let host_network = pod.spec.host_network;
        let mut addresses: Vec<_> = pod.addresses().collect();
        let node = pod.spec.node_name.clone().filter(|node| !node.is_empty());
        let made_up = addresses.is_empty() && !host_network;
        if made_up {
            let v4 = Ipv4Addr::from(STAND_IN_V4 + index);
            let v6 = Ipv6Addr::from(STAND_IN_V6 + u128::from(index));
            addresses = vec![v4.into(), v6.into()];
        } else if addresses.is_empty() {
            let node = node.as_ref().and_then(|node| objects.nodes.get(node));
            addresses = node.map(|node| node.internal_ips().collect()).unwrap_or_default();
        }
        registered.push(manifests::LocalPod {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            uid: String::new(),
            addresses: addresses.clone(),
        });
        let ports = pod.named_ports().collect();
        let pod = KnownPod { addresses, made_up, node, host_network, ports };
        known.insert(name.clone(), pod);
    }
    amend(objects, HERE, &registered);
    known
}

/// As a table for people.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, protocol, port, allowed, egress, ingress, notes } = self;
        let port = port.map(|port| format!(" {port}")).unwrap_or_default();
        let verdict = if *allowed { "ALLOWED" } else { "DENIED" };
        writeln!(f, "{from} -> {to} {protocol}{port}: {verdict}")?;
        for (side, end, direction) in [(egress, from, "egress"), (ingress, to, "ingress")] {
            let verdict = if side.allowed { "allowed" } else { "denied" };
            writeln!(f, "  {direction} of {}: {verdict}: {}", end.name, side.because)?;
            write_rules(f, &side.rules)?;
            if side.others > 0 {
                writeln!(f, "    ({} more match neither)", side.others)?;
            }
        }
        notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, address } = self;
        if *name == address.to_string() {
            f.write_str(name)
        } else {
            write!(f, "{name} ({address})")
        }
    }
}

fn write_rules(f: &mut fmt::Formatter<'_>, rules: &[Near]) -> fmt::Result {
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let rows = rules.iter().map(|rule| {
        let does = format!("{}{}", rule.action, if rule.decides { "  <- decides" } else { "" });
        [&rule.policy, &rule.rule, yes(rule.peer), yes(rule.port), &does].map(str::to_owned)
    });
    let head = ["POLICY", "RULE", "PEER", "PORT", "DOES"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    if rows.len() == 1 {
        return Ok(());
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths = [0, 1, 2, 3].map(|column| width(column).unwrap_or_default());
    rows.iter().try_for_each(|[policy, rule, peer, port, does]| {
        let [a, b, c, d] = widths;
        writeln!(f, "    {policy:a$}  {rule:b$}  {peer:c$}  {port:d$}  {does}")
    })
}
