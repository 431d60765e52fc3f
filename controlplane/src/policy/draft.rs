//! What a policy says, in the words of the model but for its selectors, which are still as they are.
//!
//! The older kinds become what the newer one would be:
//!
//! | AdminNetworkPolicy | ClusterNetworkPolicy |
//! |---|---|
//! | the kind itself | `tier: Admin`, with its `priority` |
//! | BaselineAdminNetworkPolicy | `tier: Baseline`, `priority: 1000`, after others of that priority |
//! | `action: Allow` | `action: Accept` |
//! | `ports[].portNumber`, `.portRange` | `protocols[].tcp`, `.udp`, `.sctp` with a `number` or a `range` |
//! | `ports[].namedPort` | `protocols[].destinationNamedPort` |
//! | subjects and peers | the same |

use std::collections::BTreeSet;
use std::fmt;

use fairway_model::{Action, PolicyName, PortMatch, Protocol, Tier};
use ipnet::IpNet;

use super::check::LAST_PRIORITY;
use super::labels::Requirements;
use crate::kubernetes::policy::{
    AdminAction, AdminEgressRule, AdminIngressRule, AdminNetworkPolicy, AdminPort,
    BaselineAdminNetworkPolicy, ClusterAction, ClusterEgressRule, ClusterIngressRule,
    ClusterNetworkPolicy, ClusterPeer, ClusterPorts, ClusterProtocol, ClusterTier, EgressRule,
    IngressRule, IpBlock, LabelSelector, NamespacedPod, NetworkPolicy, Peer, PolicyPort,
    PolicyType, Subject,
};
use crate::kubernetes::{FieldError, TargetPort};

/// The label that every namespace has, with its name.
pub(crate) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// The only name that Kubernetes lets a BaselineAdminNetworkPolicy have.
const BASELINE_NAME: &str = "default";

/// Somebody whom a policy speaks of. As text, each means somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Whom {
    /// Pods by the labels of their namespaces and their own.
    Pods { namespaces: Requirements, pods: Requirements },
    /// Nodes by their labels.
    Nodes(Requirements),
    /// Whoever has an address in the first range and in none of the others.
    Block { cidr: IpNet, except: BTreeSet<IpNet> },
}

/// A policy. See the module.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(super) name: PolicyName,
    pub(super) tier: Tier,
    pub(super) priority: u16,
    /// The pods that it restricts.
    pub(super) subject: Whom,
    pub(super) ingress: Option<Vec<DraftRule>>,
    pub(super) egress: Option<Vec<DraftRule>>,
    /// What is in force in another way than one might think.
    pub(super) warnings: Vec<FieldError>,
}

/// A rule of a policy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DraftRule {
    pub(super) name: String,
    pub(super) action: Action,
    pub(super) peers: Option<Vec<Whom>>,
    pub(super) ports: Option<Vec<PortMatch>>,
}

impl Whom {
    /// All pods there are.
    fn all_pods() -> Self {
        Self::Pods { namespaces: Requirements::default(), pods: Requirements::default() }
    }

    fn pods_in(namespace: &str, pods: &LabelSelector) -> Self {
        let namespaces = Requirements::label(NAMESPACE_NAME, namespace);
        Self::Pods { namespaces, pods: pods.into() }
    }

    fn block(cidr: &IpNet) -> Self {
        Self::Block { cidr: cidr.trunc(), except: BTreeSet::new() }
    }
}

/// As `pods app=web in namespace shop`, `all pods in namespaces env=prod`, `nodes disk=ssd`,
/// `10.0.0.0/8 except 10.1.0.0/16`.
impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods { namespaces, pods } => {
                some(f, "pods", pods)?;
                f.write_str(" in ")?;
                match namespaces.only(NAMESPACE_NAME) {
                    Some(name) => write!(f, "namespace {name}"),
                    None => some(f, "namespaces", namespaces),
                }
            }
            Self::Nodes(nodes) => some(f, "nodes", nodes),
            Self::Block { cidr, except } => {
                write!(f, "{cidr}")?;
                let parts = except.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
                if parts.is_empty() { Ok(()) } else { write!(f, " except {parts}") }
            }
        }
    }
}

fn some(f: &mut fmt::Formatter<'_>, what: &str, requirements: &Requirements) -> fmt::Result {
    if requirements.are_none() {
        write!(f, "all {what}")
    } else {
        write!(f, "{what} {requirements}")
    }
}

impl Draft {
    /// Of the NetworkPolicy of that name.
    pub(crate) fn of_namespace(name: PolicyName, policy: &NetworkPolicy) -> Self {
        let spec = &policy.spec;
        let mut warnings = Vec::new();
        let said = !spec.policy_types.is_empty();
        let has_egress = spec.egress.is_some();
        let ingress = !said || spec.policy_types.contains(&PolicyType::Ingress);
        let egress =
            if said { spec.policy_types.contains(&PolicyType::Egress) } else { has_egress };
        if !said && spec.egress.as_ref().is_some_and(Vec::is_empty) {
            let message = "it denies all that the pods send; an API server drops an empty list \
                           unless policyTypes says Egress";
            warnings.push(FieldError::new("spec.egress", message));
        }
        let idle = |rules: bool, field: &str, direction: PolicyType| {
            let message = format!("not in force: policyTypes does not say {direction:?}");
            rules.then(|| FieldError::new(field, message))
        };
        if !ingress {
            let rules = spec.ingress.as_ref().is_some_and(|rules| !rules.is_empty());
            warnings.extend(idle(rules, "spec.ingress", PolicyType::Ingress));
        }
        if !egress {
            let rules = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
            warnings.extend(idle(rules, "spec.egress", PolicyType::Egress));
        }
        let rules = spec.ingress.iter().flatten();
        let received = rules.map(|IngressRule { from, ports }| {
            let peers = from.iter().map(|peer| peer_of(&name.namespace, peer)).collect::<Vec<_>>();
            accept(Some(peers).filter(|peers| !peers.is_empty()), ports_of(ports))
        });
        let received = ingress.then(|| received.collect());
        let (mut sent, mut by_name) = (Vec::new(), Vec::new());
        for (index, EgressRule { to, ports }) in spec.egress.iter().flatten().enumerate() {
            let named =
                ports.iter().position(|port| matches!(port.port, Some(TargetPort::Name(_))));
            let blocks = to.iter().any(|peer| peer.ip_block.is_some());
            if let Some(port) = named.filter(|_| egress && blocks) {
                let message = "a name means nothing to those who only an ipBlock matches";
                let field = format!("spec.egress[{index}].ports[{port}].port");
                warnings.push(FieldError::new(field, message));
            }
            let peers = to.iter().map(|peer| peer_of(&name.namespace, peer)).collect::<Vec<_>>();
            let (rule, rest) = destinations(index, peers, ports_of(ports));
            sent.push(rule);
            by_name.extend(rest);
        }
        // Behind all others: those have their places as written, and which comes first does not matter.
        sent.extend(by_name);
        let sent = egress.then_some(sent);
        Self {
            subject: Whom::pods_in(&name.namespace, &spec.pod_selector),
            name,
            tier: Tier::Namespace,
            priority: 0,
            ingress: received,
            egress: sent,
            warnings,
        }
    }

    /// Of the ClusterNetworkPolicy of that name.
    pub(crate) fn of_cluster(name: PolicyName, policy: &ClusterNetworkPolicy) -> Self {
        let spec = &policy.spec;
        let tier = match spec.tier {
            ClusterTier::Admin => Tier::Admin,
            ClusterTier::Baseline => Tier::Baseline,
        };
        let mut rules = ClusterRules::default();
        let ingress = spec.ingress.iter().map(|rule| {
            let ClusterIngressRule { name, action, from, protocols } = rule;
            rules.ingress(name, (*action).into(), from, protocols.as_deref().map(protocols_of))
        });
        let ingress = ingress.collect();
        let egress = spec.egress.iter().map(|rule| {
            let ClusterEgressRule { name, action, to, protocols } = rule;
            rules.egress(name, (*action).into(), to, protocols.as_deref().map(protocols_of))
        });
        let egress = egress.collect();
        rules.draft(name, tier, priority(spec.priority), &spec.subject, ingress, egress)
    }

    /// Of the AdminNetworkPolicy of that name.
    pub(crate) fn of_admin(name: PolicyName, policy: &AdminNetworkPolicy) -> Self {
        let spec = &policy.spec;
        let mut rules = ClusterRules::default();
        let (ingress, egress) = rules.admin(&spec.ingress, &spec.egress);
        rules.draft(name, Tier::Admin, priority(spec.priority), &spec.subject, ingress, egress)
    }

    /// Of the BaselineAdminNetworkPolicy of that name: it comes last.
    pub(crate) fn of_baseline(name: PolicyName, policy: &BaselineAdminNetworkPolicy) -> Self {
        let spec = &policy.spec;
        let mut rules = ClusterRules::default();
        if name.name != BASELINE_NAME {
            let message = format!("an API server takes only one that is named \"{BASELINE_NAME}\"");
            rules.warnings.push(FieldError::new("metadata.name", message));
        }
        let (ingress, egress) = rules.admin(&spec.ingress, &spec.egress);
        rules.draft(name, Tier::Baseline, LAST_PRIORITY, &spec.subject, ingress, egress)
    }
}

fn accept(peers: Option<Vec<Whom>>, ports: Option<Vec<PortMatch>>) -> DraftRule {
    DraftRule { name: String::new(), action: Action::Accept, peers, ports }
}

fn peer_of(namespace: &str, peer: &Peer) -> Whom {
    let Peer { pod_selector, namespace_selector, ip_block } = peer;
    if let Some(IpBlock { cidr, except }) = ip_block {
        let except = except.iter().map(IpNet::trunc).collect();
        return Whom::Block { cidr: cidr.trunc(), except };
    }
    let all = LabelSelector::default();
    let pods = pod_selector.as_ref().unwrap_or(&all);
    match namespace_selector {
        Some(namespaces) => Whom::Pods { namespaces: namespaces.into(), pods: pods.into() },
        None => Whom::pods_in(namespace, pods),
    }
}

/// A rule about what is sent, and, where it cannot say so itself, another one of the ports that it names:
/// only pods have such, and only of pods that are meant as pods they are known.
fn destinations(
    index: usize,
    peers: Vec<Whom>,
    ports: Option<Vec<PortMatch>>,
) -> (DraftRule, Option<DraftRule>) {
    let is_named = |port: &PortMatch| matches!(port, PortMatch::Named(..));
    let (named, others): (Vec<_>, Vec<_>) = ports.iter().flatten().cloned().partition(is_named);
    let anybody = peers.is_empty();
    let pods: Vec<_> = match anybody {
        true => vec![Whom::all_pods()],
        false => peers.iter().filter(|whom| !matches!(whom, Whom::Block { .. })).cloned().collect(),
    };
    let peers = Some(peers).filter(|_| !anybody);
    if named.is_empty() {
        return (accept(peers, ports), None);
    }
    let no_pods = pods.is_empty();
    let by_name = accept(Some(pods), Some(named));
    if others.is_empty() {
        return (by_name, None);
    }
    let name = format!("ports that egress[{index}] names");
    let rest = Some(DraftRule { name, ..by_name }).filter(|_| !no_pods);
    (accept(peers, Some(others)), rest)
}

fn ports_of(ports: &[PolicyPort]) -> Option<Vec<PortMatch>> {
    let ports = ports.iter().map(|PolicyPort { protocol, port, end_port }| match port {
        None => PortMatch::All(*protocol),
        Some(TargetPort::Name(name)) => PortMatch::Named(Some(*protocol), name.clone()),
        Some(TargetPort::Number(first)) => {
            PortMatch::Range(*protocol, first.get(), end_port.unwrap_or(*first).get())
        }
    });
    Some(ports.collect::<Vec<_>>()).filter(|ports| !ports.is_empty())
}

fn protocols_of(protocols: &[ClusterProtocol]) -> Vec<PortMatch> {
    let each = protocols.iter().flat_map(|protocol| {
        let ClusterProtocol { tcp, udp, sctp, destination_named_port } = protocol;
        let numbers = [(Protocol::Tcp, tcp), (Protocol::Udp, udp), (Protocol::Sctp, sctp)];
        let numbers = numbers.into_iter().filter_map(|(protocol, ports)| {
            let ClusterPorts { destination_port: port } = ports.as_ref()?;
            let range = port.range.map(|range| (range.start, range.end));
            let (first, last) = port.number.map(|number| (number, number)).or(range)?;
            Some(PortMatch::Range(protocol, first.get(), last.get()))
        });
        let named = destination_named_port.clone();
        numbers.chain(named.map(|name| PortMatch::Named(None, name)))
    });
    each.collect()
}

fn admin_ports_of(ports: &[AdminPort]) -> Vec<PortMatch> {
    let each = ports.iter().flat_map(|AdminPort { port_number, named_port, port_range }| {
        let number = port_number
            .map(|number| PortMatch::Range(number.protocol, number.port.get(), number.port.get()));
        let range = port_range
            .map(|range| PortMatch::Range(range.protocol, range.start.get(), range.end.get()));
        let named = named_port.clone().map(|name| PortMatch::Named(None, name));
        number.into_iter().chain(range).chain(named)
    });
    each.collect()
}

/// One that was checked.
fn priority(priority: i64) -> u16 {
    u16::try_from(priority).unwrap_or(LAST_PRIORITY)
}

impl From<ClusterAction> for Action {
    fn from(action: ClusterAction) -> Self {
        match action {
            ClusterAction::Accept => Self::Accept,
            ClusterAction::Deny => Self::Deny,
            ClusterAction::Pass => Self::Pass,
        }
    }
}

impl From<AdminAction> for Action {
    fn from(action: AdminAction) -> Self {
        match action {
            AdminAction::Allow => Self::Accept,
            AdminAction::Deny => Self::Deny,
            AdminAction::Pass => Self::Pass,
        }
    }
}

/// What is alike in all kinds of policies of a whole cluster.
#[derive(Default)]
struct ClusterRules {
    /// Rules so far, in each direction.
    ingress: usize,
    egress: usize,
    warnings: Vec<FieldError>,
}

impl ClusterRules {
    fn admin(
        &mut self,
        ingress: &[AdminIngressRule],
        egress: &[AdminEgressRule],
    ) -> (Vec<DraftRule>, Vec<DraftRule>) {
        let ingress = ingress.iter().map(|AdminIngressRule { name, action, from, ports }| {
            self.ingress(name, (*action).into(), from, ports.as_deref().map(admin_ports_of))
        });
        let ingress = ingress.collect();
        let egress = egress.iter().map(|AdminEgressRule { name, action, to, ports }| {
            self.egress(name, (*action).into(), to, ports.as_deref().map(admin_ports_of))
        });
        (ingress, egress.collect())
    }

    fn ingress(
        &mut self,
        name: &str,
        action: Action,
        from: &[ClusterPeer],
        ports: Option<Vec<PortMatch>>,
    ) -> DraftRule {
        let field = format!("spec.ingress[{}]", self.ingress);
        self.ingress += 1;
        let known = |peer: &ClusterPeer| pods_of(peer).map(|pods| vec![pods]);
        self.rule(name, action, (&field, "from"), from, known, ports)
    }

    fn egress(
        &mut self,
        name: &str,
        action: Action,
        to: &[ClusterPeer],
        ports: Option<Vec<PortMatch>>,
    ) -> DraftRule {
        let field = format!("spec.egress[{}]", self.egress);
        self.egress += 1;
        let known = |peer: &ClusterPeer| {
            let networks = peer.networks.as_ref();
            let networks = networks.map(|all| all.iter().map(Whom::block).collect());
            let nodes = peer.nodes.as_ref().map(|nodes| Whom::Nodes(nodes.into()));
            networks.or_else(|| pods_of(peer).or(nodes).map(|whom| vec![whom]))
        };
        self.rule(name, action, (&field, "to"), to, known, ports)
    }

    /// A rule one of whose peers says nothing known fails closed: nobody knows whom it means.
    fn rule(
        &mut self,
        name: &str,
        action: Action,
        (field, list): (&str, &str),
        peers: &[ClusterPeer],
        known: impl Fn(&ClusterPeer) -> Option<Vec<Whom>>,
        ports: Option<Vec<PortMatch>>,
    ) -> DraftRule {
        let name = name.to_owned();
        let mut all = Vec::new();
        for (index, peer) in peers.iter().enumerate() {
            let Some(whom) = known(peer) else {
                let field = format!("{field}.{list}[{index}]");
                let others = peer.others.keys().map(String::as_str);
                let networks = peer.networks.as_ref().map(|_| "networks");
                let nodes = peer.nodes.as_ref().map(|_| "nodes");
                let said = others.chain(networks).chain(nodes).collect::<Vec<_>>().join(", ");
                let what = if said.is_empty() { "nothing".to_owned() } else { said };
                let (outcome, rule) = if action == Action::Accept {
                    let nobody = Some(Vec::new());
                    ("matches nobody", DraftRule { name, action, peers: nobody, ports })
                } else {
                    let action = Action::Deny;
                    ("denies everything", DraftRule { name, action, peers: None, ports: None })
                };
                let message =
                    format!("says {what}, which is no peer that is known here: its rule {outcome}");
                self.warnings.push(FieldError::new(field, message));
                return rule;
            };
            all.extend(whom);
        }
        DraftRule { name, action, peers: Some(all), ports }
    }

    fn draft(
        self,
        name: PolicyName,
        tier: Tier,
        priority: u16,
        subject: &Subject,
        ingress: Vec<DraftRule>,
        egress: Vec<DraftRule>,
    ) -> Draft {
        // One that says both or neither has been refused.
        let subject = match (&subject.namespaces, &subject.pods) {
            (_, Some(pods)) => pods.into(),
            (Some(namespaces), None) => all_in(namespaces),
            (None, None) => Whom::all_pods(),
        };
        let restricts = |rules: Vec<_>| Some(rules).filter(|rules| !rules.is_empty());
        let (ingress, egress) = (restricts(ingress), restricts(egress));
        Draft { name, tier, priority, subject, ingress, egress, warnings: self.warnings }
    }
}

fn pods_of(peer: &ClusterPeer) -> Option<Whom> {
    peer.pods.as_ref().map(Whom::from).or_else(|| peer.namespaces.as_ref().map(all_in))
}

fn all_in(namespaces: &LabelSelector) -> Whom {
    Whom::Pods { namespaces: namespaces.into(), pods: Requirements::default() }
}

impl From<&NamespacedPod> for Whom {
    fn from(NamespacedPod { namespace_selector, pod_selector }: &NamespacedPod) -> Self {
        Self::Pods { namespaces: namespace_selector.into(), pods: pod_selector.into() }
    }
}
