//! The policies among the Kubernetes objects: NetworkPolicy, ClusterNetworkPolicy, and the two that were
//! before the latter.
//!
//! Unlike other objects they are read to the letter: a field that nobody here knows is refused, because a
//! rule that is misspelt must not open anything. Only the peers of cluster-wide policies take any field;
//! what a rule does with a peer that says nothing known is for `policy` to decide.

use std::collections::BTreeMap;
use std::fmt;

use fairway_model::Protocol;
use ipnet::IpNet;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Labels, Port, TargetPort};

/// Which of what has labels is meant; an empty one means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LabelSelector {
    /// All of these it has, with these values.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub match_labels: Labels,
    /// And all of these hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Expression>,
}

/// Of a [`LabelSelector`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// What must be so.
    pub operator: Operator,
    /// For those operators that compare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// Of an [`Expression`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The label is there with one of the values.
    In,
    /// The label is not there, or with another value.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// A networking.k8s.io NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkPolicy {
    /// What its owner wants.
    pub spec: NetworkPolicySpec,
}

/// Of a [`NetworkPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NetworkPolicySpec {
    /// The pods of its namespace that it restricts.
    pub pod_selector: LabelSelector,
    /// The directions that it restricts; of its rules' unless said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy_types: Vec<PolicyType>,
    /// What those pods may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<IngressRule>>,
    /// What they may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<EgressRule>>,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyType {
    /// What pods receive.
    Ingress,
    /// What pods send.
    Egress,
}

/// Of a [`NetworkPolicySpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngressRule {
    /// Who may send it; anybody if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Peer>,
    /// On which ports; anything at all if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PolicyPort>,
}

/// Of a [`NetworkPolicySpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressRule {
    /// To whom; anybody if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Peer>,
    /// On which of their ports; anything at all if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PolicyPort>,
}

/// Of a rule of a [`NetworkPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Peer {
    /// Pods with these labels: in the policy's namespace, unless the next one says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// In namespaces with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Or a range of addresses, which stands alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// Of a [`Peer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpBlock {
    /// The range.
    pub cidr: IpNet,
    /// Parts of it that are not meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
}

/// Of a rule of a [`NetworkPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PolicyPort {
    /// TCP unless said otherwise.
    pub protocol: Protocol,
    /// A number, or what the destination's containers call a port; all ports if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<TargetPort>,
    /// The last of a range that begins with the number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<Port>,
}

/// A policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterNetworkPolicy {
    /// What its owner wants.
    pub spec: ClusterNetworkPolicySpec,
}

/// Of a [`ClusterNetworkPolicy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterNetworkPolicySpec {
    /// When it has its say.
    pub tier: ClusterTier,
    /// Within the tier, the lower first.
    pub priority: i64,
    /// The pods that it restricts.
    pub subject: Subject,
    /// Of what they receive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<ClusterIngressRule>,
    /// Of what they send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<ClusterEgressRule>,
}

/// Of a [`ClusterNetworkPolicySpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterTier {
    /// Before NetworkPolicies.
    Admin,
    /// After them.
    Baseline,
}

/// Of a cluster-wide policy: exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subject {
    /// All pods of the namespaces with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Some of their pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// Pods by their own labels and those of their namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespacedPod {
    /// The namespaces.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
    /// The pods in them.
    pub pod_selector: LabelSelector,
}

/// Of a [`ClusterNetworkPolicySpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterIngressRule {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What becomes of what matches.
    pub action: ClusterAction,
    /// Who sends it.
    pub from: Vec<ClusterPeer>,
    /// On which ports; anything at all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// Of a [`ClusterNetworkPolicySpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterEgressRule {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What becomes of what matches.
    pub action: ClusterAction,
    /// To whom.
    pub to: Vec<ClusterPeer>,
    /// On which of their ports; anything at all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// Of a rule of a [`ClusterNetworkPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterAction {
    /// It may pass, whatever others say.
    Accept,
    /// It may not.
    Deny,
    /// The next tier decides.
    Pass,
}

/// The other end, by exactly one field. Senders are pods only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPeer {
    /// All pods of the namespaces with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    /// Some of their pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// Nodes with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// Ranges of addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<IpNet>>,
    /// Whatever else it says.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// Of a rule of a [`ClusterNetworkPolicy`]: exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClusterProtocol {
    /// TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ClusterPorts>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<ClusterPorts>,
    /// SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ClusterPorts>,
    /// What the destination's containers call a port, of whatever protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

/// Of a [`ClusterProtocol`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPorts {
    /// The destination's.
    pub destination_port: ClusterPort,
}

/// Of [`ClusterPorts`]: exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterPort {
    /// One.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<Port>,
    /// Several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// Of a [`ClusterPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// The first.
    pub start: Port,
    /// The last, which is greater.
    pub end: Port,
}

/// A policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminNetworkPolicy {
    /// What its owner wants.
    pub spec: AdminNetworkPolicySpec,
}

/// Of an [`AdminNetworkPolicy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminNetworkPolicySpec {
    /// The lower first.
    pub priority: i64,
    /// The pods that it restricts.
    pub subject: Subject,
    /// Of what they receive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<AdminIngressRule>,
    /// Of what they send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<AdminEgressRule>,
}

/// A policy.networking.k8s.io/v1alpha1 BaselineAdminNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineAdminNetworkPolicy {
    /// What its owner wants.
    pub spec: BaselineAdminNetworkPolicySpec,
}

/// Of a [`BaselineAdminNetworkPolicy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineAdminNetworkPolicySpec {
    /// The pods that it restricts.
    pub subject: Subject,
    /// Of what they receive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<AdminIngressRule>,
    /// Of what they send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<AdminEgressRule>,
}

/// Of an [`AdminNetworkPolicySpec`] or a [`BaselineAdminNetworkPolicySpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminIngressRule {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What becomes of what matches.
    pub action: AdminAction,
    /// Who sends it.
    pub from: Vec<ClusterPeer>,
    /// On which ports; anything at all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<AdminPort>>,
}

/// Of an [`AdminNetworkPolicySpec`] or a [`BaselineAdminNetworkPolicySpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminEgressRule {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What becomes of what matches.
    pub action: AdminAction,
    /// To whom.
    pub to: Vec<ClusterPeer>,
    /// On which of their ports; anything at all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<AdminPort>>,
}

/// Of an [`AdminIngressRule`] or an [`AdminEgressRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminAction {
    /// What is now called Accept.
    Allow,
    /// It may not pass.
    Deny,
    /// The next tier decides. Not in a BaselineAdminNetworkPolicy.
    Pass,
}

/// Of a rule of an [`AdminNetworkPolicy`]: exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AdminPort {
    /// One.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_number: Option<AdminPortNumber>,
    /// What the destination's containers call a port, of whatever protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_port: Option<String>,
    /// Several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_range: Option<AdminPortRange>,
}

/// Of an [`AdminPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminPortNumber {
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
    /// The number.
    pub port: Port,
}

/// Of an [`AdminPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminPortRange {
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
    /// The first.
    pub start: Port,
    /// The last, which is greater.
    pub end: Port,
}

/// By hand, because a derived one that takes any field no longer knows where an error is.
impl<'de> Deserialize<'de> for ClusterPeer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PeerVisitor)
    }
}

struct PeerVisitor;

impl<'de> Visitor<'de> for PeerVisitor {
    type Value = ClusterPeer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a peer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<ClusterPeer, A::Error> {
        let mut peer = ClusterPeer::default();
        while let Some(field) = fields.next_key::<String>()? {
            match field.as_str() {
                "namespaces" => peer.namespaces = Some(fields.next_value()?),
                "pods" => peer.pods = Some(fields.next_value()?),
                "nodes" => peer.nodes = Some(fields.next_value()?),
                "networks" => peer.networks = Some(fields.next_value()?),
                _ => {
                    peer.others.insert(field, fields.next_value()?);
                }
            }
        }
        Ok(peer)
    }
}
