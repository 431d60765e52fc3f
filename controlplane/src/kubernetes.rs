//! The Kubernetes objects this crate reads, as plain data: the fields that matter here, every other
//! field ignored. A manifest folder and an API server both end in these types.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::{ObjectName, PolicyKind, Protocol, TrafficPolicy};
use ipnet::IpNet;
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub mod data;
pub mod ingress;
pub mod policy;
pub mod pool;

use data::{ConfigMap, Secret};
pub use ingress::{Ingress, IngressClass};
use policy::{AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy, NetworkPolicy};
use pool::{IPAddressPool, L2Advertisement};

/// Labels a pod or slice carries, or a selector wants.
pub type Labels = BTreeMap<String, String>;

/// The condition of a node by which pods are kept away until it has a network.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// The condition of a node that its kubelet keeps, and the cluster takes away from one that is silent.
pub(crate) const READY: &str = "Ready";
/// The condition of a Service or node that says what of it an older object has.
pub const CONTRADICTION: &str = "fairway.dev/Contradiction";
/// The group of cluster-wide policies.
const POLICIES: &str = "policy.networking.k8s.io";
/// The group of pools of addresses for load balancers.
pub(crate) const METALLB: &str = "metallb.io";

/// The kinds that become part of the model or decide what does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// v1.
    Namespace,
    /// v1.
    Node,
    /// v1.
    Pod,
    /// v1.
    Service,
    /// v1, superseded by slices.
    Endpoints,
    /// discovery.k8s.io.
    EndpointSlice,
    /// networking.k8s.io.
    ServiceCIDR,
    /// networking.k8s.io.
    NetworkPolicy,
    /// policy.networking.k8s.io.
    ClusterNetworkPolicy,
    /// policy.networking.k8s.io, superseded by the one before.
    AdminNetworkPolicy,
    /// policy.networking.k8s.io, superseded likewise.
    BaselineAdminNetworkPolicy,
    /// metallb.io.
    IPAddressPool,
    /// metallb.io.
    L2Advertisement,
    /// networking.k8s.io, formerly extensions.
    Ingress,
    /// networking.k8s.io.
    IngressClass,
    /// v1; of these, those that others name.
    Secret,
    /// v1; likewise.
    ConfigMap,
}

impl Kind {
    /// The kind of that name, if its group is the right one and it matters here.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        match (group, kind) {
            ("", "Namespace") => Some(Self::Namespace),
            ("", "Node") => Some(Self::Node),
            ("", "Pod") => Some(Self::Pod),
            ("", "Service") => Some(Self::Service),
            ("", "Endpoints") => Some(Self::Endpoints),
            ("discovery.k8s.io", "EndpointSlice") => Some(Self::EndpointSlice),
            ("networking.k8s.io", "ServiceCIDR") => Some(Self::ServiceCIDR),
            ("networking.k8s.io", "NetworkPolicy") => Some(Self::NetworkPolicy),
            (POLICIES, "ClusterNetworkPolicy") => Some(Self::ClusterNetworkPolicy),
            (POLICIES, "AdminNetworkPolicy") => Some(Self::AdminNetworkPolicy),
            (POLICIES, "BaselineAdminNetworkPolicy") => Some(Self::BaselineAdminNetworkPolicy),
            (METALLB, "IPAddressPool") => Some(Self::IPAddressPool),
            (METALLB, "L2Advertisement") => Some(Self::L2Advertisement),
            ("networking.k8s.io" | "extensions", "Ingress") => Some(Self::Ingress),
            ("networking.k8s.io", "IngressClass") => Some(Self::IngressClass),
            ("", "Secret") => Some(Self::Secret),
            ("", "ConfigMap") => Some(Self::ConfigMap),
            _ => None,
        }
    }

    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::Endpoints,
        Self::EndpointSlice,
        Self::ServiceCIDR,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::IPAddressPool,
        Self::L2Advertisement,
        Self::Ingress,
        Self::IngressClass,
        Self::Secret,
        Self::ConfigMap,
    ];

    /// Whether its objects live in a namespace.
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::Pod
            | Self::Service
            | Self::Endpoints
            | Self::EndpointSlice
            | Self::NetworkPolicy
            | Self::IPAddressPool
            | Self::L2Advertisement
            | Self::Ingress
            | Self::Secret
            | Self::ConfigMap => true,
            Self::Namespace
            | Self::Node
            | Self::ServiceCIDR
            | Self::ClusterNetworkPolicy
            | Self::AdminNetworkPolicy
            | Self::BaselineAdminNetworkPolicy
            | Self::IngressClass => false,
        }
    }

    /// Whether the names of its objects are labels of the DNS.
    pub(crate) fn has_short_names(self) -> bool {
        matches!(self, Self::Namespace | Self::Service)
    }

    /// Whether its objects restrict pods, and are to be read to the letter.
    pub fn is_policy(self) -> bool {
        self.policy().is_some()
    }

    /// What the model calls it, if it is a policy.
    pub(crate) fn policy(self) -> Option<PolicyKind> {
        match self {
            Self::NetworkPolicy => Some(PolicyKind::NetworkPolicy),
            Self::ClusterNetworkPolicy => Some(PolicyKind::ClusterNetworkPolicy),
            Self::AdminNetworkPolicy => Some(PolicyKind::AdminNetworkPolicy),
            Self::BaselineAdminNetworkPolicy => Some(PolicyKind::BaselineAdminNetworkPolicy),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Which object: `Service shop/web`, `Node n1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its name; the namespace is empty for kinds that have none.
    pub name: ObjectName,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_namespaced() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}", self.kind, self.name.name)
        }
    }
}

/// What is wrong with an object, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// As `spec.ports[1].nodePort`.
    pub field: String,
    /// What is wrong with its value.
    pub message: String,
}

impl FieldError {
    /// Of a field and what is wrong with it.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// One object of any kind. Serializes as the fields that this crate reads of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Object {
    /// See [`Namespace`].
    Namespace(Arc<Namespace>),
    /// See [`Node`].
    Node(Arc<Node>),
    /// See [`Pod`].
    Pod(Arc<Pod>),
    /// See [`Service`].
    Service(Arc<Service>),
    /// See [`Endpoints`].
    Endpoints(Arc<Endpoints>),
    /// See [`EndpointSlice`].
    EndpointSlice(Arc<EndpointSlice>),
    /// See [`ServiceCIDR`].
    ServiceCIDR(Arc<ServiceCIDR>),
    /// See [`NetworkPolicy`].
    NetworkPolicy(Arc<NetworkPolicy>),
    /// See [`ClusterNetworkPolicy`].
    ClusterNetworkPolicy(Arc<ClusterNetworkPolicy>),
    /// See [`AdminNetworkPolicy`].
    AdminNetworkPolicy(Arc<AdminNetworkPolicy>),
    /// See [`BaselineAdminNetworkPolicy`].
    BaselineAdminNetworkPolicy(Arc<BaselineAdminNetworkPolicy>),
    /// See [`IPAddressPool`].
    IPAddressPool(Arc<IPAddressPool>),
    /// See [`L2Advertisement`].
    L2Advertisement(Arc<L2Advertisement>),
    /// See [`Ingress`].
    Ingress(Arc<Ingress>),
    /// See [`IngressClass`].
    IngressClass(Arc<IngressClass>),
    /// See [`Secret`].
    Secret(Arc<Secret>),
    /// See [`ConfigMap`].
    ConfigMap(Arc<ConfigMap>),
}

/// All objects at one moment, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// By name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// By node name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// By namespace and name.
    pub pods: BTreeMap<ObjectName, Arc<Pod>>,
    /// By namespace and name.
    pub services: BTreeMap<ObjectName, Arc<Service>>,
    /// By namespace and name, which are their Service's.
    pub endpoints: BTreeMap<ObjectName, Arc<Endpoints>>,
    /// By namespace and name, which are their own.
    pub endpoint_slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    /// By name.
    pub service_cidrs: BTreeMap<String, Arc<ServiceCIDR>>,
    /// By namespace and name.
    pub network_policies: BTreeMap<ObjectName, Arc<NetworkPolicy>>,
    /// By name.
    pub cluster_network_policies: BTreeMap<String, Arc<ClusterNetworkPolicy>>,
    /// By name.
    pub admin_network_policies: BTreeMap<String, Arc<AdminNetworkPolicy>>,
    /// By name.
    pub baseline_admin_network_policies: BTreeMap<String, Arc<BaselineAdminNetworkPolicy>>,
    /// By namespace and name.
    pub address_pools: BTreeMap<ObjectName, Arc<IPAddressPool>>,
    /// By namespace and name.
    pub l2_advertisements: BTreeMap<ObjectName, Arc<L2Advertisement>>,
    /// By namespace and name.
    pub ingresses: BTreeMap<ObjectName, Arc<Ingress>>,
    /// By name.
    pub ingress_classes: BTreeMap<String, Arc<IngressClass>>,
    /// By namespace and name: at least those that others name.
    pub secrets: BTreeMap<ObjectName, Arc<Secret>>,
    /// By namespace and name: likewise.
    pub config_maps: BTreeMap<ObjectName, Arc<ConfigMap>>,
}

impl Object {
    /// Without what never matters where others say what is so: an API server's objects are many.
    pub(crate) fn compact(mut self) -> Self {
        if let Self::Pod(pod) = &mut self {
            Arc::make_mut(pod).compact();
        }
        if let Self::Node(node) = &mut self {
            let conditions = &mut Arc::make_mut(node).status.conditions;
            let matters = [NETWORK_UNAVAILABLE, READY, CONTRADICTION];
            conditions.retain(|condition| matters.contains(&&*condition.r#type));
        }
        if let Self::Service(service) = &mut self {
            let conditions = &mut Arc::make_mut(service).status.conditions;
            conditions.retain(|condition| condition.r#type == CONTRADICTION);
        }
        if let Self::Ingress(ingress) = &mut self {
            Arc::make_mut(ingress).metadata.compact();
        }
        if let Self::IngressClass(class) = &mut self {
            Arc::make_mut(class).metadata.compact();
        }
        self
    }
}

impl Pod {
    fn compact(&mut self) {
        let PodStatus { pod_ip, pod_ips, conditions, .. } = &mut self.status;
        conditions.retain(|condition| condition.r#type == READY);
        conditions.iter_mut().for_each(|condition| condition.message = None);
        conditions.shrink_to_fit();
        if !pod_ips.is_empty() {
            *pod_ip = None;
        }
        let judged = !conditions.is_empty();
        for containers in [&mut self.spec.containers, &mut self.spec.init_containers] {
            for container in containers.iter_mut().filter(|_| judged) {
                container.readiness_probe = None;
            }
            containers.retain(|of| !of.ports.is_empty() || of.readiness_probe.is_some());
            containers.shrink_to_fit();
        }
    }
}

impl Objects {
    /// The object of that name.
    pub fn get(&self, id: &ObjectId) -> Option<Object> {
        let ObjectId { kind, name } = id;
        let plain = &name.name;
        match kind {
            Kind::Namespace => self.namespaces.get(plain).cloned().map(Object::Namespace),
            Kind::Node => self.nodes.get(plain).cloned().map(Object::Node),
            Kind::Pod => self.pods.get(name).cloned().map(Object::Pod),
            Kind::Service => self.services.get(name).cloned().map(Object::Service),
            Kind::Endpoints => self.endpoints.get(name).cloned().map(Object::Endpoints),
            Kind::EndpointSlice => {
                self.endpoint_slices.get(name).cloned().map(Object::EndpointSlice)
            }
            Kind::ServiceCIDR => self.service_cidrs.get(plain).cloned().map(Object::ServiceCIDR),
            Kind::NetworkPolicy => {
                self.network_policies.get(name).cloned().map(Object::NetworkPolicy)
            }
            Kind::ClusterNetworkPolicy => {
                self.cluster_network_policies.get(plain).cloned().map(Object::ClusterNetworkPolicy)
            }
            Kind::AdminNetworkPolicy => {
                self.admin_network_policies.get(plain).cloned().map(Object::AdminNetworkPolicy)
            }
            Kind::BaselineAdminNetworkPolicy => self
                .baseline_admin_network_policies
                .get(plain)
                .cloned()
                .map(Object::BaselineAdminNetworkPolicy),
            Kind::IPAddressPool => self.address_pools.get(name).cloned().map(Object::IPAddressPool),
            Kind::L2Advertisement => {
                self.l2_advertisements.get(name).cloned().map(Object::L2Advertisement)
            }
            Kind::Ingress => self.ingresses.get(name).cloned().map(Object::Ingress),
            Kind::IngressClass => {
                self.ingress_classes.get(plain).cloned().map(Object::IngressClass)
            }
            Kind::Secret => self.secrets.get(name).cloned().map(Object::Secret),
            Kind::ConfigMap => self.config_maps.get(name).cloned().map(Object::ConfigMap),
        }
    }

    /// Takes the object of that name out, if it is there.
    pub fn remove(&mut self, id: &ObjectId) {
        let ObjectId { kind, name } = id;
        let plain = &name.name;
        match kind {
            Kind::Namespace => drop(self.namespaces.remove(plain)),
            Kind::Node => drop(self.nodes.remove(plain)),
            Kind::Pod => drop(self.pods.remove(name)),
            Kind::Service => drop(self.services.remove(name)),
            Kind::Endpoints => drop(self.endpoints.remove(name)),
            Kind::EndpointSlice => drop(self.endpoint_slices.remove(name)),
            Kind::ServiceCIDR => drop(self.service_cidrs.remove(plain)),
            Kind::NetworkPolicy => drop(self.network_policies.remove(name)),
            Kind::ClusterNetworkPolicy => drop(self.cluster_network_policies.remove(plain)),
            Kind::AdminNetworkPolicy => drop(self.admin_network_policies.remove(plain)),
            Kind::BaselineAdminNetworkPolicy => {
                drop(self.baseline_admin_network_policies.remove(plain));
            }
            Kind::IPAddressPool => drop(self.address_pools.remove(name)),
            Kind::L2Advertisement => drop(self.l2_advertisements.remove(name)),
            Kind::Ingress => drop(self.ingresses.remove(name)),
            Kind::IngressClass => drop(self.ingress_classes.remove(plain)),
            Kind::Secret => drop(self.secrets.remove(name)),
            Kind::ConfigMap => drop(self.config_maps.remove(name)),
        }
    }

    /// The names of all objects of a kind.
    pub fn names(&self, kind: Kind) -> Vec<ObjectName> {
        let plain = |name: &String| ObjectName::new("", name);
        match kind {
            Kind::Namespace => self.namespaces.keys().map(plain).collect(),
            Kind::Node => self.nodes.keys().map(plain).collect(),
            Kind::Pod => self.pods.keys().cloned().collect(),
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::Endpoints => self.endpoints.keys().cloned().collect(),
            Kind::EndpointSlice => self.endpoint_slices.keys().cloned().collect(),
            Kind::ServiceCIDR => self.service_cidrs.keys().map(plain).collect(),
            Kind::NetworkPolicy => self.network_policies.keys().cloned().collect(),
            Kind::ClusterNetworkPolicy => self.cluster_network_policies.keys().map(plain).collect(),
            Kind::AdminNetworkPolicy => self.admin_network_policies.keys().map(plain).collect(),
            Kind::BaselineAdminNetworkPolicy => {
                self.baseline_admin_network_policies.keys().map(plain).collect()
            }
            Kind::IPAddressPool => self.address_pools.keys().cloned().collect(),
            Kind::L2Advertisement => self.l2_advertisements.keys().cloned().collect(),
            Kind::Ingress => self.ingresses.keys().cloned().collect(),
            Kind::IngressClass => self.ingress_classes.keys().map(plain).collect(),
            Kind::Secret => self.secrets.keys().cloned().collect(),
            Kind::ConfigMap => self.config_maps.keys().cloned().collect(),
        }
    }

    /// Adds the object, or replaces the one of that name.
    pub fn insert(&mut self, name: ObjectName, object: Object) {
        match object {
            Object::Namespace(namespace) => {
                self.namespaces.insert(name.name, namespace);
            }
            Object::Node(node) => {
                self.nodes.insert(name.name, node);
            }
            Object::Pod(pod) => {
                self.pods.insert(name, pod);
            }
            Object::Service(service) => {
                self.services.insert(name, service);
            }
            Object::Endpoints(endpoints) => {
                self.endpoints.insert(name, endpoints);
            }
            Object::EndpointSlice(slice) => {
                self.endpoint_slices.insert(name, slice);
            }
            Object::ServiceCIDR(ranges) => {
                self.service_cidrs.insert(name.name, ranges);
            }
            Object::NetworkPolicy(policy) => {
                self.network_policies.insert(name, policy);
            }
            Object::ClusterNetworkPolicy(policy) => {
                self.cluster_network_policies.insert(name.name, policy);
            }
            Object::AdminNetworkPolicy(policy) => {
                self.admin_network_policies.insert(name.name, policy);
            }
            Object::BaselineAdminNetworkPolicy(policy) => {
                self.baseline_admin_network_policies.insert(name.name, policy);
            }
            Object::IPAddressPool(pool) => {
                self.address_pools.insert(name, pool);
            }
            Object::L2Advertisement(advertisement) => {
                self.l2_advertisements.insert(name, advertisement);
            }
            Object::Ingress(ingress) => {
                self.ingresses.insert(name, ingress);
            }
            Object::IngressClass(class) => {
                self.ingress_classes.insert(name.name, class);
            }
            Object::Secret(secret) => {
                self.secrets.insert(name, secret);
            }
            Object::ConfigMap(map) => {
                self.config_maps.insert(name, map);
            }
        }
    }
}

/// What every object says about itself. Name and namespace are read apart from the rest, so that an
/// object that cannot be read can still be named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Of this life of the object; manifests written by people have none.
    pub uid: String,
    /// Free labels.
    pub labels: Labels,
    /// Those annotations that matter here.
    #[serde(skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// When it came into being, where that is known.
    #[serde(skip_serializing_if = "Created::is_unknown")]
    pub creation_timestamp: Created,
    /// Set while the object is being deleted; the moment itself does not matter here.
    pub deletion_timestamp: Option<String>,
}

/// When an object came into being, as far as it matters here: who is older. Who does not say it, as
/// manifests written by people, is younger than who does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Created(u64);

impl Created {
    fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// Seconds since 1970; where it is unknown, later than all.
    pub(crate) fn seconds(self) -> u64 {
        if self.is_unknown() {
            return u64::MAX;
        }
        let Self(number) = self;
        let part = |above: u64, size: u64| number / above % size;
        let (year, month, day) =
            (number / 10_000_000_000, part(100_000_000, 100), part(1_000_000, 100));
        // Years begin in March, so that a leap day is a year's last.
        let (year, month) =
            if month > 2 { (year, month - 3) } else { (year.saturating_sub(1), month + 9) };
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
        const UNTIL_1970: u64 = 719_469;
        days.saturating_sub(UNTIL_1970) * 86_400
            + part(10_000, 100) * 3600
            + part(100, 100) * 60
            + part(1, 100)
    }
}

impl Default for Created {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

impl From<&str> for Created {
    /// Of a time as API servers write it, `2026-11-20T10:00:00Z`; any other form says nothing.
    fn from(text: &str) -> Self {
        let shape = "0000-00-00T00:00:00Z";
        let fits = text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(byte, like)| match like {
                b'0' => byte.is_ascii_digit(),
                _ => byte == like,
            });
        let digits = text.bytes().filter(u8::is_ascii_digit);
        let number = || digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        if fits { Self(number()) } else { Self::default() }
    }
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number) = self;
        let part = |above: u64, size: u64| number / above % size;
        let (year, month, day) =
            (number / 10_000_000_000, part(100_000_000, 100), part(1_000_000, 100));
        let (hour, minute, second) = (part(10_000, 100), part(100, 100), part(1, 100));
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl Serialize for Created {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Created {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&*String::deserialize(deserializer)?))
    }
}

/// Of [`Metadata`]; all others are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Annotations {
    /// Set on what a kubelet shows of a pod that it has from a file of its own: the uid by which the
    /// kubelet and its container runtime know that pod. The object has a uid of its own beside it.
    #[serde(rename = "kubernetes.io/config.mirror", skip_serializing_if = "Option::is_none")]
    pub mirrored_uid: Option<String>,
    /// Of a pod, or of a namespace for all pods in it that say nothing: whether what they send to
    /// Services is given its endpoint at the socket.
    #[serde(rename = "fairway.dev/socket-balancing", skip_serializing_if = "Option::is_none")]
    pub socket_balancing: Option<String>,
    /// Of a Service: what `spec.loadBalancerSourceRanges` says today, between commas.
    #[serde(
        rename = "service.beta.kubernetes.io/load-balancer-source-ranges",
        skip_serializing_if = "Option::is_none"
    )]
    pub source_ranges: Option<String>,
    /// Of a Service: how its endpoints are chosen.
    #[serde(rename = "fairway.dev/balancing", skip_serializing_if = "Option::is_none")]
    pub balancing: Option<String>,
    /// Of a Service: which of its endpoints get more new connections than others.
    #[serde(rename = "fairway.dev/weights", skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Of a Service: for how long an endpoint that is new gets less than others.
    #[serde(rename = "fairway.dev/slow-start", skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<String>,
    /// Of a Service: how clients from outside reach endpoints of other nodes.
    #[serde(rename = "fairway.dev/forwarding", skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<String>,
    /// Of a Service: what `spec.publishNotReadyAddresses` says today.
    #[serde(
        rename = "service.alpha.kubernetes.io/tolerate-unready-endpoints",
        skip_serializing_if = "Option::is_none"
    )]
    pub tolerate_unready: Option<String>,
    /// Of a Service: whether its endpoints are shared out among zones. The older name counts first.
    #[serde(
        rename = "service.kubernetes.io/topology-aware-hints",
        skip_serializing_if = "Option::is_none"
    )]
    pub topology_hints: Option<String>,
    /// The same.
    #[serde(
        rename = "service.kubernetes.io/topology-mode",
        skip_serializing_if = "Option::is_none"
    )]
    pub topology_mode: Option<String>,
    /// Of a Service: the pool that its load balancer's addresses are to come from. Of these three, the
    /// newer name counts first.
    #[serde(rename = "metallb.io/address-pool", skip_serializing_if = "Option::is_none")]
    pub address_pool: Option<String>,
    /// The same.
    #[serde(rename = "metallb.universe.tf/address-pool", skip_serializing_if = "Option::is_none")]
    pub old_address_pool: Option<String>,
    /// Of a Service: the addresses that its load balancer is to have, between commas.
    #[serde(rename = "metallb.io/loadBalancerIPs", skip_serializing_if = "Option::is_none")]
    pub load_balancer_ips: Option<String>,
    /// The same.
    #[serde(
        rename = "metallb.universe.tf/loadBalancerIPs",
        skip_serializing_if = "Option::is_none"
    )]
    pub old_load_balancer_ips: Option<String>,
    /// Of a Service: those that say the same may have an address in common.
    #[serde(rename = "metallb.io/allow-shared-ip", skip_serializing_if = "Option::is_none")]
    pub allow_shared_ip: Option<String>,
    /// The same.
    #[serde(
        rename = "metallb.universe.tf/allow-shared-ip",
        skip_serializing_if = "Option::is_none"
    )]
    pub old_allow_shared_ip: Option<String>,
}

impl Annotations {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A v1 Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Its annotations.
    pub metadata: Metadata,
}

/// A v1 Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// Labels, annotations and deletion.
    #[serde(skip_serializing_if = "NodeMetadata::is_empty")]
    pub metadata: NodeMetadata,
    /// What its owner wants.
    pub spec: NodeSpec,
    /// What is so.
    pub status: NodeStatus,
}

/// Of a [`Node`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeMetadata {
    /// Free labels; one says where it is.
    pub labels: Labels,
    /// What programs leave for each other.
    pub annotations: NodeAnnotations,
    /// When it came into being, where that is known.
    #[serde(skip_serializing_if = "Created::is_unknown")]
    pub creation_timestamp: Created,
    /// Set while the object is being deleted; the moment itself does not matter here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<String>,
}

impl NodeMetadata {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Of [`NodeMetadata`]; all others are left out. Most are flannel's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAnnotations {
    /// How its pods are reached; `vxlan` is one of several.
    #[serde(rename = "flannel.alpha.coreos.com/backend-type")]
    pub flannel_type: Option<String>,
    /// JSON: its device for IPv4, or `null`.
    #[serde(rename = "flannel.alpha.coreos.com/backend-data")]
    pub flannel_v4: Option<String>,
    /// Its address for that.
    #[serde(rename = "flannel.alpha.coreos.com/public-ip")]
    pub flannel_v4_address: Option<String>,
    /// JSON: its device for IPv6, or `null`.
    #[serde(rename = "flannel.alpha.coreos.com/backend-v6-data")]
    pub flannel_v6: Option<String>,
    /// Its address for that.
    #[serde(rename = "flannel.alpha.coreos.com/public-ipv6")]
    pub flannel_v6_address: Option<String>,
    /// The base64 of the key that encrypts to it. It takes precedence over what the node itself says.
    #[serde(rename = "fairway.dev/wireguard-public-key", skip_serializing_if = "Option::is_none")]
    pub wireguard_key: Option<String>,
}

/// Of a [`Node`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// The older, single form of `pod_cidrs`.
    #[serde(
        rename = "podCIDR",
        deserialize_with = "cidr",
        skip_serializing_if = "Option::is_none"
    )]
    pub pod_cidr: Option<IpNet>,
    /// At most one a family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// What keeps pods away from it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

/// Of a [`NodeSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// What it is about.
    pub key: String,
}

/// Of a [`Node`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Of all types.
    pub addresses: Vec<NodeAddress>,
    /// Of all types; whether its network is unavailable matters here, and what of it an older node has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Of a [`NodeStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAddress {
    /// InternalIP, ExternalIP, Hostname and others.
    pub r#type: String,
    /// An address or, of some types, a name.
    pub address: String,
}

/// A v1 Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// Its uid, labels and deletion.
    pub metadata: Metadata,
    /// What its owner wants.
    pub spec: PodSpec,
    /// What is so.
    pub status: PodStatus,
}

/// Of a [`Pod`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Where it runs.
    pub node_name: Option<String>,
    /// On its node's network, with no interface of its own.
    pub host_network: bool,
    /// Its name below that of the Service that `subdomain` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Box<str>>,
    /// A headless Service that it has a name of its own in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<Box<str>>,
    /// Those that run side by side.
    pub containers: Vec<Container>,
    /// Those that run before; the restartable among them stay.
    pub init_containers: Vec<Container>,
}

/// Of a [`PodSpec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Those it declares.
    pub ports: Vec<ContainerPort>,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<String>,
    /// Only its presence matters here: who runs the pod runs the probe.
    pub readiness_probe: Option<Probe>,
}

/// Of a [`Container`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {}

/// Of a [`Container`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// A name that Services may use instead of the number.
    #[serde(default)]
    pub name: String,
    /// The number.
    pub container_port: Port,
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Of a [`Pod`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// How far its life has come.
    pub phase: Option<Phase>,
    /// The older, single form of `pod_ips`.
    #[serde(
        rename = "podIP",
        deserialize_with = "address",
        skip_serializing_if = "Option::is_none"
    )]
    pub pod_ip: Option<IpAddr>,
    /// At most one a family.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// Of all types; `Ready` matters here.
    pub conditions: Vec<Condition>,
}

/// Of a [`PodStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: IpAddr,
}

/// Of a [`PodStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not all containers have started.
    Pending,
    /// At least one runs.
    Running,
    /// All have ended well.
    Succeeded,
    /// All have ended, not all well.
    Failed,
    /// Its node cannot be asked.
    Unknown,
}

/// Of a [`PodStatus`], a [`NodeStatus`] or a [`ServiceStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What it is about.
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A v1 Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Labels and annotations.
    pub metadata: Metadata,
    /// What its owner wants.
    pub spec: ServiceSpec,
    /// What is so.
    #[serde(skip_serializing_if = "ServiceStatus::is_empty")]
    pub status: ServiceStatus,
}

/// Of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// From where it can be reached.
    pub r#type: ServiceType,
    /// The first of `cluster_ips`: an address, `None`, or nothing.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// At most one a family, or the single word `None`.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// The families wanted, in order.
    pub ip_families: Vec<IpFamily>,
    /// How many families.
    pub ip_family_policy: Option<IpFamilyPolicy>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// The labels of the pods behind it; empty if somebody else names its endpoints.
    pub selector: Labels,
    /// Of traffic to the ClusterIP.
    #[serde(deserialize_with = "traffic_policy")]
    pub internal_traffic_policy: TrafficPolicy,
    /// Of traffic from outside.
    #[serde(deserialize_with = "traffic_policy")]
    pub external_traffic_policy: TrafficPolicy,
    /// Whether pods take traffic before they are ready and while they end.
    pub publish_not_ready_addresses: bool,
    /// Of the type ExternalName: the name that its own stands for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub external_name: String,
    /// Whether a LoadBalancer also gets node ports; true unless said otherwise.
    pub allocate_load_balancer_node_ports: Option<bool>,
    /// Addresses from elsewhere at which it answers, if somebody routes them to the nodes.
    #[serde(rename = "externalIPs", skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<IpAddr>,
    /// The address that its load balancer is to have, where a certain one is wanted.
    #[serde(
        rename = "loadBalancerIP",
        deserialize_with = "address",
        skip_serializing_if = "Option::is_none"
    )]
    pub load_balancer_ip: Option<IpAddr>,
    /// Who is its load balancer, where it does not take whoever there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer_class: Option<String>,
    /// The clients that a load balancer lets in; white space around a range does not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Whether a client stays with its endpoint.
    #[serde(deserialize_with = "session_affinity")]
    pub session_affinity: SessionAffinity,
    /// For how long.
    #[serde(skip_serializing_if = "SessionAffinityConfig::is_empty")]
    pub session_affinity_config: SessionAffinityConfig,
    /// Where nodes answer a load balancer's health checks, where a certain number is wanted; 0 says
    /// the same as nothing.
    #[serde(deserialize_with = "node_port", skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<Port>,
    /// Which endpoints are better for a client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<TrafficDistribution>,
}

/// Of a [`ServiceSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficDistribution {
    /// The older name of the next one.
    PreferClose,
    /// Those in its zone.
    PreferSameZone,
    /// Those on its node, then those in its zone.
    PreferSameNode,
}

/// Of a [`ServiceSpec`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionAffinity {
    /// Each connection may reach another endpoint.
    #[default]
    None,
    /// By the client's address.
    ClientIP,
}

/// Of a [`ServiceSpec`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// Of [`SessionAffinity::ClientIP`].
    #[serde(rename = "clientIP")]
    pub client_ip: ClientIpConfig,
}

impl SessionAffinityConfig {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Of a [`SessionAffinityConfig`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// Seconds after its last new connection.
    pub timeout_seconds: Option<i64>,
}

/// Of a [`Service`] or an [`Ingress`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Of a Service of that type, and of an Ingress.
    pub load_balancer: LoadBalancerStatus,
    /// Of all types; what of it an older object has matters here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl ServiceStatus {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Of a [`ServiceStatus`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// Where it can be reached.
    pub ingress: Vec<LoadBalancerIngress>,
}

/// Of a [`LoadBalancerStatus`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// The address; there is none where there is a host name.
    #[serde(deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// The host name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// What becomes of packets to it.
    pub ip_mode: IpMode,
}

/// Of a [`LoadBalancerIngress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpMode {
    /// They come to the nodes as they are.
    #[default]
    VIP,
    /// They come to the nodes with another destination, or not at all.
    Proxy,
}

/// Of a [`ServiceSpec`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// By its ClusterIP, within the cluster.
    #[default]
    ClusterIP,
    /// Also by a port on every node.
    NodePort,
    /// Also by addresses from elsewhere.
    LoadBalancer,
    /// A name in the DNS and nothing more.
    ExternalName,
}

impl fmt::Display for ServiceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// How many families a Service wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpFamilyPolicy {
    /// One.
    SingleStack,
    /// Both, where the cluster has both.
    PreferDualStack,
    /// Both, or it is refused.
    RequireDualStack,
}

/// Of a [`ServiceSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// May be empty for an only port.
    #[serde(default)]
    pub name: String,
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
    /// On the ClusterIP.
    pub port: Port,
    /// On the pods; the same as `port` unless said otherwise.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    /// On the nodes, where a certain one is wanted; 0 says the same as nothing.
    #[serde(default, deserialize_with = "node_port", skip_serializing_if = "Option::is_none")]
    pub node_port: Option<Port>,
}

/// Of a [`ServicePort`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// The same on all pods.
    Number(Port),
    /// What each pod's containers call so.
    Name(String),
}

/// A v1 Endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// Sets of addresses that have their ports in common.
    pub subsets: Vec<Subset>,
}

/// Of an [`Endpoints`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Those that take traffic.
    pub addresses: Vec<EndpointAddress>,
    /// Those that do not.
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// On each of the addresses.
    pub ports: Vec<EndpointPort>,
}

/// Of a [`Subset`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointAddress {
    /// The address.
    pub ip: IpAddr,
    /// The node behind it, where known.
    #[serde(default)]
    pub node_name: Option<String>,
    /// What has the address, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Its name below that of the Service, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Box<str>>,
}

/// Of an [`EndpointAddress`] or a [`SliceEndpoint`]: an object in the namespace of the Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Of a [`Subset`] or an [`EndpointSlice`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// The name of the Service's port.
    #[serde(default)]
    pub name: String,
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
    /// A slice may leave it out, meaning all ports, which nobody can balance.
    #[serde(default)]
    pub port: Option<Port>,
}

/// A discovery.k8s.io EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Labels; one names the Service.
    #[serde(default)]
    pub metadata: Metadata,
    /// Of all its endpoints.
    pub address_type: AddressType,
    /// The endpoints.
    #[serde(default)]
    pub endpoints: Vec<SliceEndpoint>,
    /// On each of the endpoints.
    #[serde(default)]
    pub ports: Vec<EndpointPort>,
}

/// Of an [`EndpointSlice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressType {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
    /// Names, which nobody can balance.
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// Of an [`EndpointSlice`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// Interchangeable ones; the first is the one to use.
    pub addresses: Vec<String>,
    /// What it is fit for.
    #[serde(default)]
    pub conditions: EndpointConditions,
    /// The node behind it, where known.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Where that is, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What has the address, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Whose clients it is meant for.
    #[serde(default, skip_serializing_if = "EndpointHints::is_empty")]
    pub hints: EndpointHints,
    /// Its name below that of the Service, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Box<str>>,
}

/// Of a [`SliceEndpoint`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// Those of these zones.
    pub for_zones: Vec<Hint>,
    /// Those on these nodes.
    pub for_nodes: Vec<Hint>,
}

impl EndpointHints {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Of [`EndpointHints`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// Of a zone or a node.
    pub name: String,
}

/// Of a [`SliceEndpoint`]; each has a default that depends on the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    /// Takes new connections; true unless said otherwise.
    pub ready: Option<bool>,
    /// Answers; the same as `ready` unless said otherwise.
    pub serving: Option<bool>,
    /// Is going away; false unless said otherwise.
    pub terminating: Option<bool>,
}

/// A networking.k8s.io ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceCIDR {
    /// What its owner wants.
    pub spec: ServiceCIDRSpec,
}

/// Of a [`ServiceCIDR`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceCIDRSpec {
    /// The ranges, at most one a family.
    pub cidrs: Vec<IpNet>,
}

/// A port number, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Port(std::num::NonZeroU16);

impl Port {
    /// The number, host byte order.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<i64> for Port {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        let port = u16::try_from(number).ok().and_then(std::num::NonZeroU16::new);
        port.map(Self).ok_or_else(|| format!("{number} is no port; ports are 1 to 65535"))
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(deserializer.deserialize_i64(Number)?).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(name) if name.is_empty() => {
                Err(D::Error::custom("the name is empty"))
            }
            serde_json::Value::String(name) => Ok(Self::Name(name)),
            serde_json::Value::Number(number) => {
                let number = number.as_i64().unwrap_or(0);
                Port::try_from(number).map(Self::Number).map_err(D::Error::custom)
            }
            _ => Err(D::Error::invalid_type(
                Unexpected::Other("something else"),
                &"a port number or a port's name",
            )),
        }
    }
}

/// A number that is to be a port, whatever its size.
struct Number;

impl Visitor<'_> for Number {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port number")
    }

    fn visit_i64<E>(self, number: i64) -> Result<i64, E> {
        Ok(number)
    }

    fn visit_u64<E>(self, number: u64) -> Result<i64, E> {
        Ok(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

fn node_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Port>, D::Error> {
    match deserializer.deserialize_i64(Number)? {
        0 => Ok(None),
        number => Port::try_from(number).map(Some).map_err(D::Error::custom),
    }
}

/// An empty text is what a status without an address carries in older manifests.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    parse_or_empty(deserializer, "an IP address")
}

fn cidr<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
    parse_or_empty(deserializer, "a range such as 10.244.0.0/24")
}

fn parse_or_empty<'de, D: Deserializer<'de>, T: std::str::FromStr>(
    deserializer: D,
    expected: &'static str,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().map(Some);
    parsed.map_err(|_| D::Error::invalid_value(Unexpected::Str(&text), &expected))
}

fn session_affinity<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SessionAffinity, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "" | "None" => Ok(SessionAffinity::None),
        "ClientIP" => Ok(SessionAffinity::ClientIP),
        other => Err(D::Error::unknown_variant(other, &["None", "ClientIP"])),
    }
}

fn traffic_policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TrafficPolicy, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "" | "Cluster" => Ok(TrafficPolicy::Cluster),
        "Local" => Ok(TrafficPolicy::Local),
        other => Err(D::Error::unknown_variant(other, &["Cluster", "Local"])),
    }
}
