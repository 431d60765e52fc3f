//! What restricts pods' traffic: policies, and who they speak of.
//!
//! Selectors are resolved where all pods' labels are known; nodes get what came of it. A rule names
//! its peers by [`Selector`]s. Pods that the same selectors match are one [`Group`], and a [`Member`] has a
//! group's addresses; so a pod that comes or changes its labels is one small object, whatever rules speak of it.
//! Ranges of addresses are selectors, too, but nobody's group: which addresses are in a range, a node finds out.
//!
//! ```text
//! Pod ── policies ──► Policy ── rules ── peers ──► Selector ◄── selectors ── Group ◄── group ── Member
//! (who is restricted)                                  └─ block: a range          (who an address is)
//! ```

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{ObjectName, Protocol};

/// Where a policy comes from.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    #[default]
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`.
    ClusterNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`, a forerunner.
    AdminNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha1`, the other one.
    BaselineAdminNetworkPolicy,
}

/// A policy's name. What belongs to the whole cluster has an empty namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyName {
    /// See [`PolicyKind`].
    pub kind: PolicyKind,
    /// The Kubernetes namespace; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// As `NetworkPolicy shop/deny`, `ClusterNetworkPolicy quarantine`.
impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        if namespace.is_empty() {
            write!(f, "{kind:?} {name}")
        } else {
            write!(f, "{kind:?} {namespace}/{name}")
        }
    }
}

/// When a policy has its say, in this order.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Tier {
    /// First: the cluster's administrators. What no rule of theirs accepts or denies goes on.
    Admin,
    /// Then a pod's own policies, NetworkPolicies: what one of them allows is allowed, and if at least
    /// one restricts the pod in a direction, all else is denied.
    #[default]
    Namespace,
    /// Last, if none of those restricts the pod: what administrators want where nobody says otherwise.
    Baseline,
}

/// A policy, and what it says. It restricts the pods that name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: PolicyName,
    /// When it has its say.
    #[serde(default)]
    pub tier: Tier,
    /// Within tiers [`Tier::Admin`] and [`Tier::Baseline`], the lower comes first.
    #[serde(default)]
    pub priority: u16,
    /// Of what pods receive; `None`: it says nothing of it. In tier [`Tier::Namespace`], an empty list
    /// denies all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Vec<Rule>>,
    /// The same for what they send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<Rule>>,
}

/// What a rule does with traffic that it matches.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It is allowed.
    #[default]
    Accept,
    /// It is denied.
    Deny,
    /// What follows in the tier is skipped.
    Pass,
}

/// One rule of a policy. The first one of a tier that matches counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What its author calls it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// In tier [`Tier::Namespace`] always [`Action::Accept`].
    #[serde(default)]
    pub action: Action,
    /// The other end, as names of [`Selector`]s, any of which is enough; `None`: anybody. An empty list
    /// matches nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<String>>,
    /// The destination's ports, any of which is enough; `None`: any port of any protocol, and what has no
    /// ports. An empty list matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PortMatch>>,
}

/// Ports of a destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PortMatch {
    /// All of a protocol.
    All(Protocol),
    /// From the first to the last, both included; the first is not the greater.
    Range(Protocol, u16, u16),
    /// Those of its containers' ports with this name, and with this protocol if one is given.
    Named(Option<Protocol>, String),
}

/// Somebody whom rules speak of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// What rules and groups call it: the same wherever it means the same.
    pub name: String,
    /// Whom it means.
    pub means: Selection,
}

/// Whom a [`Selector`] means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Selection {
    /// Addresses in a range, whoever has them, except those in others within it.
    Block {
        /// The range.
        cidr: IpNet,
        /// Ranges within it that it does not mean.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        except: Vec<IpNet>,
    },
    /// The pods, or nodes, of the groups that have it; in words for people, such as
    /// `pods app=web in namespaces env=prod`.
    Members(String),
}

/// A port of a pod's containers that has a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Its number, host byte order; never 0.
    pub port: u16,
}

/// Pods that no rule tells apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// What members call it.
    pub name: String,
    /// Names of the [`Selector`]s that match its members, sorted; none of them is a range.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<String>,
    /// Their ports with names that rules about destinations use, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
}

/// A pod (or node) that a selector matches, and its addresses. Pods without an address yet are none, nor
/// are those that have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The pod's namespace and name; of a node, its name, and no namespace.
    pub name: ObjectName,
    /// All of its addresses, each once.
    pub addresses: Vec<IpAddr>,
    /// Its [`Group`].
    pub group: String,
}
