//! The desired state of a cluster's network, in Fairway's own words.
//!
//! A source (a folder of manifests, the Kubernetes API) is converted to a [`Model`] in one place;
//! everything after that point (feed, agent, gateway, `explain`) speaks only these types. The crate
//! opens no file or socket, reads no clock and knows no Kubernetes type.
//!
//! ```text
//! source ─► Vec<Object> ─► Model::apply ─► Model ─► diff ─► feed, compile
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use ingress::{
    Affinity, Backend, BackendPort, BackendProtocol, BackendTls, BasicAuth, Canary, Choice,
    ClientTls, Cors, ExternalAuth, Failure, Gateway, Gzip, Hsts, Ingress, IngressPath, IngressRule,
    IngressTls, Limits, Mirror, NextUpstream, NotATemplate, Options, Part, PathType, Redirect,
    Stream, Template, TlsVersion, Variable, VerifyClient,
};
pub use key::{NotAKey, WireGuardKey};
pub use objects::{Difference, Differences, Named, Objects};
pub use policy::{
    Action, Group, Member, NamedPort, Policy, PolicyKind, PolicyName, PortMatch, Rule, Selection,
    Selector, Tier,
};
pub use secret::{MAX_CHAIN, Secret, Sensitive, TicketKey};
pub use validate::{Claims, Invalid};

mod ingress;
mod key;
mod objects;
mod policy;
mod secret;
mod validate;

/// A namespaced object's name: unique per kind, ordered by namespace first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The object's name within it.
    pub name: String,
}

impl ObjectName {
    /// `namespace/name` from its two halves.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that a Service or container port can name.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293; what a port without a protocol means.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number as it stands in an IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A machine (or a lab's stand-in for one) that runs pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The Kubernetes node name.
    pub name: String,
    /// Its addresses of type InternalIP, in the order given; the first of a family is the one
    /// tunnels and routes of that family use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The ranges its pods are addressed from, at most one a family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<IpNet>,
    /// Its ends of a VXLAN tunnel, at most one a family of pods, where they differ from what Fairway
    /// would make of the addresses above: flannel made them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vteps: Vec<Vtep>,
    /// What encrypts to it, where its pods are reached by WireGuard; none while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard_key: Option<WireGuardKey>,
    /// Its agent answers DNS queries, those of other nodes at the first address of each of its ranges of pods.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resolver: bool,
    /// Where it is (its label `topology.kubernetes.io/zone`), where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// It is being deleted, or about to be removed by the cluster autoscaler: load balancers are to
    /// send no new connections to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// It is to announce no load balancer's address (its label
    /// `node.kubernetes.io/exclude-from-external-load-balancers`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excluded: bool,
    /// The cluster says that it is not ready: others are to announce in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unready: bool,
}

/// A device that ends a VXLAN tunnel and takes only frames to its own MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vtep {
    /// Where tunnel packets go; pods of the same family are behind it.
    pub underlay: IpAddr,
    /// The device's MAC address, in the order of transmission.
    pub mac: [u8; 6],
}

/// Which endpoints a Service's traffic may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on the node that took the packet.
    Local,
}

/// How a Service's port chooses an endpoint for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Balancing {
    /// Each with the same chance.
    #[default]
    Random,
    /// One after the other.
    RoundRobin,
    /// One of two at random, whichever has fewer connections from the node.
    LeastConnections,
    /// By the connection's addresses and ports, the same on every node (Eisenbud et al., "Maglev",
    /// NSDI 2016, 3.4).
    Maglev,
}

/// How packets of clients from outside reach an endpoint on another node than the one that they asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Forwarding {
    /// With an address of the node that was asked as their source.
    #[default]
    Snat,
    /// With the client's address, where a tunnel leads there; answers come back through it.
    Keep,
    /// With the client's address; the endpoint's node answers the client itself (direct server return).
    Dsr,
}

/// A Service: stable frontends for a changing set of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its namespace and name.
    pub name: ObjectName,
    /// ClusterIPs, at most one a family; empty for a headless Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<IpAddr>,
    /// ClusterIPs at which somebody else balances it; it has no others then, and all there is to do about it is to know
    /// its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign_ips: Vec<IpAddr>,
    /// Addresses outside of the cluster's ranges at which it answers, whoever routes them here; of
    /// either family, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<IpAddr>,
    /// Addresses of a load balancer that hands packets on with their destination unchanged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_ips: Vec<IpAddr>,
    /// The [`Pool`] that these are of, by whose announcements nodes attract what is sent to them; `None`:
    /// somebody else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The clients that are let in at the load balancer's addresses. Of a family without a range, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<IpNet>,
    /// Its ports; names are unique, and only a single port may have the empty name.
    pub ports: Vec<ServicePort>,
    /// The name of which its own is an alias; it has nothing but that then (type ExternalName).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_name: Option<Box<str>>,
    /// For traffic that arrives at a ClusterIP.
    #[serde(default)]
    pub internal_traffic: TrafficPolicy,
    /// For traffic that arrives at a node port or another address from outside the cluster.
    #[serde(default)]
    pub external_traffic: TrafficPolicy,
    /// How many seconds after its last new connection a client still gets the same endpoint; `None`:
    /// each connection may get another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
    /// Where nodes tell load balancers whether they have endpoints of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
    /// See [`Balancing`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub balancing: Balancing,
    /// For how many seconds the share of an endpoint that is new grows to the whole; `None`: it has all of
    /// it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<u32>,
    /// See [`Forwarding`]; `None`: as the node that is asked does it for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<Forwarding>,
}

/// One port of a [`Service`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name within the Service; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port on the ClusterIP, host byte order.
    pub port: u16,
    /// The port on every node, for Services of type NodePort and LoadBalancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// The endpoints of one Service, merged over all its EndpointSlices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The Service they serve.
    pub service: ObjectName,
    /// By Service port name; each list is sorted by address and port and has no duplicates. Those of a
    /// headless Service that are on none of its ports, and so have nothing but their names, are under the empty name if
    /// no port has it, with the port [`Endpoint::NO_PORT`].
    pub ports: BTreeMap<String, Vec<Endpoint>>,
}

/// One address and port that serves a Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Pod (or, for host-network pods, node) address.
    pub address: IpAddr,
    /// Port on it, host byte order; may differ between endpoints of one Service port.
    pub port: u16,
    /// The node it runs on, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it is fit for.
    pub state: EndpointState,
    /// Whose clients it is meant for; nobody's in particular if that is not said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hints: Hints,
    /// How many parts of new connections it gets, where others get theirs; none if that is 0, unless
    /// there is nobody else.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u16,
    /// Of a headless Service: its name below that of the Service; one is made of its address if that is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Box<str>>,
}

impl Endpoint {
    /// The port of one that is on no port of its Service: older agents refuse 0.
    pub const NO_PORT: u16 = 1;
}

/// Whose clients an endpoint is meant for (EndpointSlice `hints`, KEP-2433 and KEP-3015).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hints {
    /// Those on nodes of these zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Those on these nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

/// What an endpoint is fit for: the EndpointSlice conditions, folded to what a balancer asks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum EndpointState {
    /// Takes new connections.
    #[default]
    Ready,
    /// Still answers, but is going away: used for new connections only when nothing is ready.
    ServingTerminating,
    /// Exists, takes nothing new; connections that are open stay.
    NotReady,
}

/// A pod that has, or will have, an interface of its own on some node: neither one on the node's
/// own network nor one that has ended. A node puts a pod in force once it knows it from here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Of this life of it, as its node's container runtime knows it; empty if whoever wrote the pod
    /// gave it none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The node that it was given to.
    pub node: String,
    /// Its sockets are to be left alone: what they send to Services is translated packet by packet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sockets_exempt: bool,
    /// Those that restrict it, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyName>,
    /// Its containers' ports with names that rules use, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NamedPort>,
}

/// Ranges that Services get their addresses from (Kubernetes' `ServiceCIDR`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRange {
    /// Its name.
    pub name: String,
    /// The ranges, at most one a family.
    pub cidrs: Vec<IpNet>,
}

/// Addresses that Services of type LoadBalancer get, as nodes see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// How many addresses it has.
    pub size: u64,
    /// How its addresses are announced; in none of these ways: not by nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub announcements: Vec<Announcement>,
}

/// Of a [`Pool`]: one of the nodes answers for its addresses on the link (ARP, neighbour discovery).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Those that may, by name; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<String>>,
    /// The devices that they answer on, by name; none: each node's uplink.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

/// Declares the kinds of objects, and all that is alike for each of them.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, $tag:literal, $objects:ident, $name:ident: $key:ty;)+) => {
        /// One object of the model.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "camelCase")]
        pub enum Object {
            $(
                $(#[$doc])*
                $kind($kind),
            )+
        }

        impl Object {
            /// What identifies it: an object with an equal key replaces this one.
            pub fn key(&self) -> Key {
                match self {
                    $(Self::$kind(object) => Key::$kind(object.$name.clone()),)+
                }
            }
        }

        /// An object's identity.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(tag = "kind", content = "key", rename_all = "camelCase")]
        pub enum Key {
            $(
                $(#[$doc])*
                $kind($key),
            )+
        }

        impl Key {
            /// The kinds, as they stand in the JSON of objects and keys.
            pub const KINDS: &'static [&'static str] = &[$($tag),+];

            /// Its kind.
            pub const fn kind(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => $tag,)+
                }
            }
        }

        /// As a person would say it: `Node n1`, `Service shop/web`, `Pod shop/web-0`,
        /// `Policy NetworkPolicy shop/deny`.
        impl fmt::Display for Key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$kind(name) => write!(f, "{} {name}", stringify!($kind)),)+
                }
            }
        }

        $(
            impl Named for $kind {
                type Name = $key;

                fn name(&self) -> &$key {
                    &self.$name
                }
            }
        )+

        /// The whole desired state at one moment. A copy shares with the original what neither changes.
        ///
        /// As JSON it is one document, `{"nodes":[...],"services":[...]}`, each list in key order, and
        /// only if it is not empty. Of two objects with one key the later stays. Nothing else is checked:
        /// see [`Model::validate`].
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct Model {
            $(
                $(#[$doc])*
                #[serde(skip_serializing_if = "Objects::is_empty")]
                pub $objects: Objects<$kind>,
            )+
        }

        impl Model {
            /// Takes one change in.
            pub fn apply(&mut self, change: Change) {
                match change {
                    $(
                        Change::Put(Object::$kind(object)) => self.$objects.insert(object),
                        Change::Delete(Key::$kind(name)) => {
                            self.$objects.remove(&name);
                        }
                    )+
                }
            }

            /// Every object, kind by kind, each in key order.
            pub fn objects(&self) -> impl Iterator<Item = Object> + '_ {
                let all = std::iter::empty();
                $(let all = all.chain(self.$objects.values().cloned().map(Object::$kind));)+
                all
            }

            /// The changes that turn `self` into `next`: what is new or different first, kind by kind,
            /// removals after all additions. What both share costs nothing.
            pub fn diff(&self, next: &Self) -> Vec<Change> {
                let mut puts = Vec::new();
                let mut deletes = Vec::new();
                $(diff(
                    &self.$objects,
                    &next.$objects,
                    Object::$kind,
                    Key::$kind,
                    &mut puts,
                    &mut deletes,
                );)+
                puts.append(&mut deletes);
                puts
            }

            /// Equal to `next`, and shares with `self` what the two have in common.
            #[must_use]
            pub fn becoming(&self, next: &Self) -> Self {
                let mut same = self.clone();
                $(share(&mut same.$objects, &self.$objects, &next.$objects);)+
                same
            }
        }
    };
}

kinds! {
    /// By name.
    Node, "node", nodes, name: String;
    /// By namespace and name.
    Service, "service", services, name: ObjectName;
    /// By their Service.
    Endpoints, "endpoints", endpoints, service: ObjectName;
    /// By namespace and name: those of all nodes, and in a node's copy its own.
    Pod, "pod", pods, name: ObjectName;
    /// By name.
    ServiceRange, "serviceRange", service_ranges, name: String;
    /// By name: whom rules speak of.
    Selector, "selector", selectors, name: String;
    /// By name: pods that no rule tells apart.
    Group, "group", groups, name: String;
    /// By pod: whose addresses are whose.
    Member, "member", members, name: ObjectName;
    /// By name.
    Policy, "policy", policies, name: PolicyName;
    /// By name.
    Pool, "pool", pools, name: String;
    /// By namespace and name.
    Ingress, "ingress", ingresses, name: ObjectName;
    /// By the name that its replicas have in common.
    Gateway, "gateway", gateways, name: String;
    /// By namespace and name: those that Ingresses name, for gateways alone.
    Secret, "secret", secrets, name: ObjectName;
    /// By name: for gateways alone.
    TicketKey, "ticketKey", ticket_keys, name: String;
}

/// One step from a model to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// Adds the object, or replaces the one with the same key.
    Put(Object),
    /// Removes it; of an unknown key, nothing.
    Delete(Key),
}

impl FromIterator<Object> for Model {
    fn from_iter<T: IntoIterator<Item = Object>>(objects: T) -> Self {
        let mut model = Self::default();
        for object in objects {
            model.apply(Change::Put(object));
        }
        model
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The weight of what nothing is said about.
fn one() -> u16 {
    1
}

fn is_one(weight: &u16) -> bool {
    *weight == 1
}

fn diff<T: Named<Name: Clone> + PartialEq + Clone>(
    have: &Objects<T>,
    want: &Objects<T>,
    object: impl Fn(T) -> Object,
    key: impl Fn(T::Name) -> Key,
    puts: &mut Vec<Change>,
    deletes: &mut Vec<Change>,
) {
    for Difference { before, after } in have.diff(want) {
        if let Some(after) = after {
            puts.push(Change::Put(object(T::clone(after))));
        } else if let Some(before) = before {
            deletes.push(Change::Delete(key(before.name().clone())));
        }
    }
}

/// Brings `same`, a copy of `before`, to `after`.
fn share<T: Named + PartialEq>(same: &mut Objects<T>, before: &Objects<T>, after: &Objects<T>) {
    for difference in before.diff(after) {
        if let Some(after) = difference.after {
            same.insert(Arc::clone(after));
        } else if let Some(before) = difference.before {
            same.remove(before.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    /// Few names and few values, so that two models of a pair share some of both.
    fn model() -> impl Strategy<Value = Model> {
        vec(object(), 0..12).prop_map(|objects| objects.into_iter().collect())
    }

    fn object() -> impl Strategy<Value = Object> {
        let node = ("[ab]", vec(address(), 0..2)).prop_map(|(name, addresses)| {
            Object::Node(Node { name, addresses, ..Node::default() })
        });
        let service = (name(), vec(address(), 0..2), option::of(1..3_u16)).prop_map(
            |(name, cluster_ips, node_port)| {
                Object::Service(Service {
                    name,
                    cluster_ips,
                    ports: vec![ServicePort {
                        name: String::new(),
                        protocol: Protocol::Tcp,
                        port: 80,
                        node_port,
                    }],
                    external_traffic: TrafficPolicy::Local,
                    ..Service::default()
                })
            },
        );
        let endpoint = address().prop_map(|address| Endpoint {
            address,
            port: 8080,
            node: None,
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        });
        let endpoints = (name(), btree_map("[xy]", vec(endpoint, 0..2), 0..2))
            .prop_map(|(service, ports)| Object::Endpoints(Endpoints { service, ports }));
        let pod = (name(), "[uv]?", "[ab]")
            .prop_map(|(name, uid, node)| Object::Pod(Pod { name, uid, node, ..Pod::default() }));
        let range = ("[ab]", 1..3_u8).prop_map(|(name, last)| {
            let cidrs = vec![IpNet::new([10, last, 0, 0].into(), 16).unwrap()];
            Object::ServiceRange(ServiceRange { name, cidrs })
        });
        let pool = ("[ab]", 1..3_u64)
            .prop_map(|(name, size)| Object::Pool(Pool { name, size, announcements: Vec::new() }));
        prop_oneof![node, service, endpoints, pod, range, pool]
    }

    fn name() -> impl Strategy<Value = ObjectName> {
        ("[pq]", "[vw]").prop_map(|(namespace, name)| ObjectName::new(namespace, name))
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        (0..4_u8).prop_map(|last| IpAddr::from([10, 0, 0, last]))
    }

    proptest! {
        #[test]
        fn a_diff_leads_from_one_model_to_the_other(have in model(), want in model()) {
            let changes = have.diff(&want);
            let mut next = have.clone();
            for change in changes.iter().cloned() {
                next.apply(change);
            }
            prop_assert_eq!(&next, &want);
            prop_assert!(next.diff(&want).is_empty());
            let first_delete = changes.iter().position(|change| matches!(change, Change::Delete(_)));
            let last_put = changes.iter().rposition(|change| matches!(change, Change::Put(_)));
            if let (Some(delete), Some(put)) = (first_delete, last_put) {
                prop_assert!(put < delete, "a removal comes before an addition");
            }
        }

        #[test]
        fn a_model_becomes_the_other(have in model(), want in model()) {
            prop_assert_eq!(have.becoming(&want), want);
        }

        #[test]
        fn what_follows_a_good_model_is_checked_as_if_it_came_alone(models in vec(model(), 1..6)) {
            let mut claims = Claims::default();
            let mut good = Model::default();
            for next in models {
                let checked = claims.clone().follow(&good, &next);
                prop_assert_eq!(checked.is_ok(), next.validate().is_ok());
                if checked.is_ok() {
                    claims.follow(&good, &next).unwrap();
                    good = next;
                    let mut alone = Claims::default();
                    alone.follow(&Model::default(), &good).unwrap();
                    prop_assert_eq!(&claims, &alone);
                }
            }
        }

        #[test]
        fn a_model_survives_json(model in model()) {
            let text = serde_json::to_string(&model).unwrap();
            prop_assert_eq!(serde_json::from_str::<Model>(&text).unwrap(), model);
        }
    }

    #[test]
    fn a_model_is_one_json_document() {
        let node = Object::Node(Node { name: "n1".into(), ..Node::default() });
        let model: Model = [node].into_iter().collect();
        assert_eq!(serde_json::to_string(&model).unwrap(), r#"{"nodes":[{"name":"n1"}]}"#);
    }
}
