//! The cluster's names, as a snapshot that is cheap to follow the model with.
//!
//! ```text
//! Model ─► diff ─► names: by Service's name and namespace, what is known by it and below it
//!                  namespaces: by name, how many Services they have
//!                  reverse: by address, the Services that have names for it
//! ```
//!
//! A change costs the Services that it is about, and of these the addresses that come and go.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use fairway_model::{Endpoints, Model, ObjectName, Objects, Service};
use ipnet::IpNet;

use crate::name::Name;
use names::{Key, Names, What, is_headless};
use table::Table;

pub(crate) mod names;
mod table;

/// What a zone does not know from the model.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's domain.
    pub zone: Name,
    /// Seconds that answers may be kept; and that something is not there.
    pub ttl: u32,
    /// Whether addresses have names of the form `10-1-2-3.NAMESPACE.pod.ZONE`.
    pub pods: PodNames,
    /// Whether a name of a pod's search list that is not there is looked for along the list at once.
    pub autopath: bool,
    /// The node's own search list, which follows that of the cluster.
    pub search: Vec<Name>,
    /// The Service whose addresses are those of the zone's server.
    pub server: ObjectName,
}

/// Of [`Options`]: which addresses have names of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// None.
    Disabled,
    /// Any address, in any namespace.
    #[default]
    Insecure,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            zone: "cluster.local".parse().unwrap_or_else(|_| Name::root()),
            ttl: 5,
            pods: PodNames::default(),
            autopath: true,
            search: Vec::new(),
            server: ObjectName::new("kube-system", "kube-dns"),
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Zone {
    pub(crate) options: Arc<Options>,
    pub(crate) serial: u32,
    hasher: RandomState,
    /// What it is made of.
    services: Objects<Service>,
    endpoints: Objects<Endpoints>,
    sources: Objects<fairway_model::ServiceRange>,
    nodes: Objects<fairway_model::Node>,
    names: Table<Arc<Names>>,
    namespaces: Table<Arc<Namespace>>,
    /// By addresses, the hashes by which Services are found that have names for them.
    reverse: Table<u64>,
    /// Where no address has a name but those that are known here.
    ranges: Arc<Vec<IpNet>>,
}

/// What is answered by one address of each family, at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterAddresses {
    /// Of the Service.
    pub name: Name,
    /// Its ClusterIP of that family.
    pub v4: Option<Ipv4Addr>,
    /// Likewise.
    pub v6: Option<Ipv6Addr>,
}

/// A namespace that has Services.
#[derive(Debug)]
struct Namespace {
    /// With its length.
    label: Box<[u8]>,
    services: usize,
}

impl Zone {
    /// Of an empty cluster.
    pub fn new(options: Options) -> Self {
        Self {
            options: Arc::new(options),
            serial: 0,
            hasher: RandomState::new(),
            services: Objects::default(),
            endpoints: Objects::default(),
            sources: Objects::default(),
            nodes: Objects::default(),
            names: Table::default(),
            namespaces: Table::default(),
            reverse: Table::default(),
            ranges: Arc::default(),
        }
    }

    /// That of `model`; what has not changed since is shared. If names have changed, `serial` tells it from the zone
    /// before; it grows, as seconds do.
    #[must_use]
    pub fn next(&self, model: &Model, serial: u32) -> Self {
        let mut next = self.clone();
        let services = self.services.diff(&model.services).map(|one| one.name().clone());
        let mut concerned: BTreeSet<ObjectName> = services.collect();
        for change in self.endpoints.diff(&model.endpoints) {
            if model.services.get(change.name()).is_some_and(is_headless) {
                concerned.insert(change.name().clone());
            }
        }
        if !concerned.is_empty() {
            next.serial = serial;
        }
        next.services = model.services.clone();
        next.endpoints = model.endpoints.clone();
        for name in &concerned {
            next.put(name);
        }
        if self.sources != model.service_ranges || self.nodes != model.nodes {
            next.sources = model.service_ranges.clone();
            next.nodes = model.nodes.clone();
            let ranges = model.service_ranges.values().flat_map(|range| &range.cidrs);
            let pods = model.nodes.values().flat_map(|node| &node.pod_cidrs);
            let all: Vec<_> = ranges.chain(pods).copied().collect();
            next.ranges = Arc::new(IpNet::aggregate(&all));
        }
        next
    }

    /// Brings what is known of a Service to what it is now.
    fn put(&mut self, name: &ObjectName) {
        let Some(key) = Key::of(&name.name, &name.namespace) else { return };
        let hash = self.hasher.hash_one(key.as_wire());
        let before = self.names.find(hash).find(|names| names.key == key).cloned();
        let service = self.services.get_shared(name);
        let endpoints = self.endpoints.get_shared(name);
        let after = service.and_then(|service| Names::of(key.clone(), service, endpoints));
        let addresses = |of: Option<&Names>| -> Vec<IpAddr> {
            of.into_iter().flat_map(Names::addresses).collect()
        };
        let (had, has) = (addresses(before.as_deref()), addresses(after.as_ref()));
        // Both are sorted.
        for gone in had.iter().filter(|ip| has.binary_search(ip).is_err()) {
            self.reverse.remove(self.hasher.hash_one(gone), |of| *of == hash);
        }
        for new in has.iter().filter(|ip| had.binary_search(ip).is_err()) {
            self.reverse.insert(self.hasher.hash_one(new), hash);
        }
        match (before.is_some(), after) {
            (is_known, Some(after)) => {
                self.names.replace(hash, Arc::new(after), |of| of.key == key);
                if !is_known {
                    self.count(key.namespace(), true);
                }
            }
            (true, None) => {
                self.names.remove(hash, |of| of.key == key);
                self.count(key.namespace(), false);
            }
            (false, None) => {}
        }
    }

    /// Counts a Service that a namespace has, or has no more.
    fn count(&mut self, label: &[u8], comes: bool) {
        let hash = self.hasher.hash_one(label);
        let before = self.namespaces.find(hash).find(|of| *of.label == *label);
        let services = before.map_or(0, |of| of.services);
        let services = if comes { services + 1 } else { services.saturating_sub(1) };
        if services == 0 {
            self.namespaces.remove(hash, |of| *of.label == *label);
        } else {
            let namespace = Arc::new(Namespace { label: label.into(), services });
            self.namespaces.replace(hash, namespace, |of| *of.label == *label);
        }
    }

    /// What is known of the Service whose name and namespace these are, as in a message and in small letters.
    pub(crate) fn service(&self, wire: &[u8]) -> Option<&Names> {
        let found = self.names.find(self.hasher.hash_one(wire));
        found.map(|names| &**names).find(|names| names.key.as_wire() == wire)
    }

    /// Whether a namespace has Services; `label` has its length before it.
    pub(crate) fn has_namespace(&self, label: &[u8]) -> bool {
        let mut found = self.namespaces.find(self.hasher.hash_one(label));
        found.any(|namespace| *namespace.label == *label)
    }

    /// The Services that have names for an address.
    pub(crate) fn services_of(&self, address: IpAddr) -> impl Iterator<Item = &Names> {
        let services = self.reverse.find(self.hasher.hash_one(address));
        let all = services.flat_map(|service| self.names.find(*service)).map(|names| &**names);
        all.filter(move |names| names.has(address))
    }

    /// Whether nobody but this zone can know a name of an address.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }

    /// The cluster's domain.
    pub fn name(&self) -> &Name {
        &self.options.zone
    }

    /// Seconds that answers may be kept.
    pub fn ttl(&self) -> u32 {
        self.options.ttl
    }

    /// Of the newest change of names.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The whole name of a Service that has addresses of its own, and these; `None` of any other.
    pub fn cluster_addresses(&self, service: &ObjectName) -> Option<ClusterAddresses> {
        let key = Key::of(&service.name, &service.namespace)?;
        let What::Balanced { v4, v6, .. } = self.service(key.as_wire())?.what else { return None };
        Some(ClusterAddresses { name: self.service_name(service)?, v4, v6 })
    }

    /// The whole name that a Service has, if there is one; `None` if it is called as nothing in the DNS can be.
    pub fn service_name(&self, service: &ObjectName) -> Option<Name> {
        let key = Key::of(&service.name, &service.namespace)?;
        Name::below(&[key.as_wire(), b"\x03svc"].concat(), &self.options.zone)
    }

    /// The Services that are not what they were in the zone before; without one, all.
    pub fn services_since(&self, before: Option<&Self>) -> Vec<ObjectName> {
        match before {
            None => self.services.values().map(|service| service.name.clone()).collect(),
            Some(before) => {
                before.services.diff(&self.services).map(|change| change.name().clone()).collect()
            }
        }
    }

    /// How many Services have names.
    pub fn len(&self) -> usize {
        self.names.values().count()
    }

    /// Whether no Service has a name.
    pub fn is_empty(&self) -> bool {
        self.names.values().next().is_none()
    }
}
