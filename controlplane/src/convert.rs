//! Kubernetes objects to the model, whatever brought the objects here.
//!
//! The same objects and allocations always make the same model; what is kept in between makes it sooner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairway_model::{
    Balancing, Endpoints, Model, Named, Node, ObjectName, Pod, Service, ServicePort, ServiceRange,
};
use ipnet::IpNet;

use crate::allocate::{Allocation, Allocator};
use crate::changes::Changes;
use crate::endpoints::{self, Sources};
use crate::flannel;
use crate::kubernetes::{self, FieldError, IpFamily, Kind, Metadata, ObjectId, Objects};
use crate::load_balancer::Pools;
use crate::policy::{Resolver, put_changed};

/// What Kubernetes names the ranges that its own options say.
pub(crate) const KUBERNETES: &str = "kubernetes";

/// What objects make.
pub(crate) struct Converted {
    pub(crate) model: Model,
    /// What objects ask for and do not get; they are in force without.
    pub(crate) warnings: Vec<(ObjectId, FieldError)>,
}

/// What is known beside the objects.
pub(crate) struct Given<'a> {
    pub(crate) changes: &'a Changes,
    pub(crate) allocator: &'a Allocator,
    /// Services that have been allocated something else than the last time.
    pub(crate) allocated: &'a BTreeSet<ObjectName>,
    pub(crate) pools: &'a Pools<'a>,
    /// Services that are but other names of something, and of what.
    pub(crate) aliases: &'a BTreeMap<ObjectName, Box<str>>,
    /// Those of which that is something else than the last time, or that are none any more.
    pub(crate) renamed: &'a BTreeSet<ObjectName>,
    /// Families, ranges or whose load balancer we are may be others than the last time.
    pub(crate) anew: bool,
}

/// Makes models, each of the one before and of what has changed since.
#[derive(Default)]
pub(crate) struct Converter {
    sources: Sources,
    resolver: Resolver,
    /// Without pods and policies.
    model: Model,
    /// Of each Service.
    warnings: BTreeMap<ObjectName, Vec<FieldError>>,
    /// Of ranges and pools.
    general: Vec<(ObjectId, FieldError)>,
}

impl Converter {
    /// What `objects` and what was allocated to them make.
    pub(crate) fn convert(&mut self, objects: &Objects, given: &Given) -> Converted {
        let Given { changes, allocator, pools, .. } = *given;
        self.put_services(objects, given);
        for name in changes.of(Kind::Node).map(|name| &name.name) {
            match objects.nodes.get(name) {
                Some(object) => put_changed(&mut self.model.nodes, node(name, object)),
                None => drop(self.model.nodes.remove(name)),
            }
        }
        let kinds = [Kind::Node, Kind::ServiceCIDR, Kind::IPAddressPool, Kind::L2Advertisement];
        if given.anew || changes.any(&kinds) {
            let general = other_ranges(objects, allocator).into_iter().chain(inhabited(objects));
            self.general = general.chain(pools.warnings()).collect();
            replace(&mut self.model.service_ranges, ranges(objects, allocator).collect());
            replace(&mut self.model.pools, pools.model().collect());
        }
        let resolved = self.resolver.resolve(objects, changes, pod);
        let of_services = self.warnings.iter().flat_map(|(name, errors)| {
            let id = ObjectId { kind: Kind::Service, name: name.clone() };
            errors.iter().map(move |error| (id.clone(), error.clone()))
        });
        let mut warnings: Vec<_> = of_services.chain(self.general.iter().cloned()).collect();
        warnings.extend(resolved.warnings);
        let model = Model {
            pods: resolved.pods,
            policies: resolved.policies,
            selectors: resolved.selectors,
            groups: resolved.groups,
            members: resolved.members,
            ..self.model.clone()
        };
        Converted { model, warnings }
    }

    /// Converts the Services that may be others than before, or have other endpoints.
    fn put_services(&mut self, objects: &Objects, given: &Given) {
        let mut concerned = self.sources.update(objects, given.changes);
        concerned.extend(given.allocated.iter().chain(given.renamed).cloned());
        if given.anew || given.changes.any(&[Kind::IPAddressPool]) {
            concerned.extend(objects.services.keys().cloned());
        }
        let cluster = given.allocator.families();
        for name in concerned {
            let object = objects.services.get(&name).filter(|object| object.is_ours());
            let mut warnings = Vec::new();
            if let Some(object) = object {
                warnings.extend(topology(objects, &self.sources, &name, object));
                warnings.extend(slow_maglev(object));
            }
            let Model { services, endpoints, .. } = &mut self.model;
            match object.and_then(|object| {
                converted(objects, &self.sources, &name, object, &cluster, given)
            }) {
                Some((service, its, too_many)) => {
                    put_changed(services, service);
                    put_changed(endpoints, its);
                    warnings.extend(too_many);
                }
                None => {
                    let foreign = || foreign(&name, objects.services.get(&name)?);
                    let alias = given.aliases.get(&name).map(|alias| alias_of(&name, alias));
                    match alias.or_else(foreign) {
                        Some(service) => put_changed(services, service),
                        None => drop(services.remove(&name)),
                    }
                    endpoints.remove(&name);
                }
            }
            if warnings.is_empty() {
                self.warnings.remove(&name);
            } else {
                self.warnings.insert(name, warnings);
            }
        }
    }
}

/// Replaces objects by `next` if these differ, so that nobody takes the same ones for others.
fn replace<T: Named + PartialEq>(
    all: &mut fairway_model::Objects<T>,
    next: fairway_model::Objects<T>,
) {
    if *all != next {
        *all = next;
    }
}

/// The Service of ours in the model and its endpoints, if only empty ones; none without an allocation, if it
/// needs one. If it has more endpoints than there is room for, that is said beside them.
fn converted(
    objects: &Objects,
    sources: &Sources,
    name: &ObjectName,
    object: &kubernetes::Service,
    cluster: &[IpFamily],
    given: &Given,
) -> Option<(Service, Endpoints, Option<FieldError>)> {
    let families = object.families(cluster).ok()?;
    let allocation = match given.allocator.get(name) {
        Some(allocation) => allocation.clone(),
        None if object.is_headless() => Allocation::default(),
        None => return None,
    };
    let mut endpoints = sources.of(objects, name, object, &families);
    let left_out = endpoints::fit(&mut endpoints, endpoints::ROOM);
    let too_many = (left_out > 0).then(|| {
        let message = format!(
            "{left_out} of its endpoints are left out: nodes take no more of one Service than \
             {} MiB of JSON tell",
            endpoints::ROOM >> 20
        );
        FieldError::new("", message)
    });
    let mut service = service(name, object, &allocation);
    service.pool = given.pools.announced_by(object, &service.load_balancer_ips);
    Some((service, endpoints, too_many))
}

/// The ranges that Services have addresses of: those that addresses are given out from, under the name
/// that Kubernetes has for them, and those that only objects tell of.
fn ranges(objects: &Objects, allocator: &Allocator) -> impl Iterator<Item = ServiceRange> {
    let own = (KUBERNETES, allocator.service_cidrs().to_vec());
    let own = Some(own).filter(|(_, cidrs)| !cidrs.is_empty());
    let all = own.into_iter().chain(ranges_of_others(objects));
    all.map(|(name, cidrs)| ServiceRange { name: name.to_owned(), cidrs })
}

/// The ranges that only objects tell of, by name.
pub(crate) fn ranges_of_others(objects: &Objects) -> impl Iterator<Item = (&str, Vec<IpNet>)> {
    let others = objects.service_cidrs.iter().filter(|(name, _)| *name != KUBERNETES);
    let others = others.map(|(name, object)| {
        let cidrs = object.spec.cidrs.iter().filter(|cidr| inhabitant(objects, cidr).is_none());
        (name.as_str(), cidrs.copied().collect::<Vec<_>>())
    });
    others.filter(|(_, cidrs)| !cidrs.is_empty())
}

/// What is in the range although only Services may be: nodes would not reach it any more.
fn inhabitant(objects: &Objects, cidr: &IpNet) -> Option<String> {
    objects.nodes.iter().find_map(|(name, node)| {
        let address = node.internal_ips().find(|ip| cidr.contains(ip));
        let address = address.map(|ip| format!("{ip}, an address of node {name}"));
        let pods = || pod_cidrs(node).find(|pods| cidr.contains(pods) || pods.contains(cidr));
        address.or_else(|| Some(format!("pods of node {name} ({})", pods()?)))
    })
}

/// Which ranges of objects are left out for what is in them.
fn inhabited(objects: &Objects) -> impl Iterator<Item = (ObjectId, FieldError)> {
    let others = objects.service_cidrs.iter().filter(|(name, _)| *name != KUBERNETES);
    others.flat_map(move |(name, object)| {
        object.spec.cidrs.iter().enumerate().filter_map(move |(index, cidr)| {
            let message = format!("not honoured: in {cidr} are {}", inhabitant(objects, cidr)?);
            let error = FieldError::new(format!("spec.cidrs[{index}]"), message);
            let name = ObjectName::new("", name);
            Some((ObjectId { kind: Kind::ServiceCIDR, name }, error))
        })
    })
}

/// That an object tells of other ranges than those that addresses are given out from.
fn other_ranges(objects: &Objects, allocator: &Allocator) -> Option<(ObjectId, FieldError)> {
    let sorted = |cidrs: &[IpNet]| cidrs.iter().copied().collect::<BTreeSet<_>>();
    let told = objects.service_cidrs.get(KUBERNETES)?;
    let own = allocator.service_cidrs();
    if sorted(&told.spec.cidrs) == sorted(own) {
        return None;
    }
    let own = own.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
    let message = format!("not honoured: --service-cidr says {own}");
    let name = ObjectName::new("", KUBERNETES);
    Some((ObjectId { kind: Kind::ServiceCIDR, name }, FieldError::new("spec.cidrs", message)))
}

/// That a Service asks for endpoints that are shared out among zones, although nobody does that: slices
/// say who is meant for which zone, and there are none.
fn topology(
    objects: &Objects,
    sources: &Sources,
    name: &ObjectName,
    service: &kubernetes::Service,
) -> Option<FieldError> {
    let (annotation, _) = service.topology()?;
    if service.is_headless() || sources.has_slices(objects, name, service) {
        return None;
    }
    let message = "not honoured without EndpointSlices: endpoints are chosen without regard to \
                   where they are";
    Some(FieldError::new(format!("metadata.annotations.{annotation}"), message))
}

/// That a Service wants endpoints to start slowly where they are chosen by the connection. All nodes are
/// to choose alike, and each learns by itself, and at another moment, that an endpoint is new.
fn slow_maglev(service: &kubernetes::Service) -> Option<FieldError> {
    let both =
        service.balancing() == Ok(Balancing::Maglev) && matches!(service.slow_start(), Ok(Some(_)));
    both.then(|| {
        let field = "metadata.annotations.fairway.dev/slow-start";
        let message = "not honoured with the balancing maglev, by which all nodes choose alike: \
                       endpoints that are new get their whole share at once";
        FieldError::new(field, message)
    })
}

fn node(name: &str, object: &kubernetes::Node) -> Node {
    Node {
        name: name.to_owned(),
        addresses: object.internal_ips().collect(),
        pod_cidrs: pod_cidrs(object).collect(),
        vteps: flannel::vteps(&object.metadata.annotations).collect(),
        wireguard_key: object.wireguard_key().and_then(Result::ok),
        resolver: false,
        zone: object.zone().map(str::to_owned),
        leaving: object.is_leaving(),
        excluded: object.is_excluded(),
        unready: object.is_unready(),
    }
}

fn pod_cidrs(object: &kubernetes::Node) -> impl Iterator<Item = IpNet> {
    let spec = &object.spec;
    let single = spec.pod_cidr.filter(|_| spec.pod_cidrs.is_empty());
    spec.pod_cidrs.iter().copied().chain(single)
}

/// The pod, if it is to have an interface of its own on some node; without what restricts it.
fn pod(
    name: &ObjectName,
    object: &kubernetes::Pod,
    namespace: Option<&kubernetes::Namespace>,
) -> Option<Pod> {
    let node = object.spec.node_name.as_ref().filter(|node| !node.is_empty())?;
    if object.spec.host_network || object.has_ended() {
        return None;
    }
    let metadata = &object.metadata;
    // A pod from a file of the kubelet goes by the uid that the kubelet gave it.
    let uid = metadata.annotations.mirrored_uid.as_ref().unwrap_or(&metadata.uid);
    let said = |of: &Metadata| of.annotations.sockets_exempt().and_then(Result::ok);
    let sockets_exempt = said(metadata).or_else(|| said(&namespace?.metadata)).unwrap_or_default();
    Some(Pod {
        name: name.clone(),
        uid: uid.clone(),
        node: node.clone(),
        sockets_exempt,
        ..Pod::default()
    })
}

fn service(name: &ObjectName, object: &kubernetes::Service, allocation: &Allocation) -> Service {
    let ports = object.spec.ports.iter().map(|port| ServicePort {
        name: port.name.clone(),
        protocol: port.protocol,
        port: port.port.get(),
        node_port: allocation.node_port(port),
    });
    let is_its = |ip: &IpAddr| allocation.is_at(*ip);
    let external_ips = object.external_ips().map(|(_, ip)| ip).filter(is_its);
    let load_balancer_ips = object.load_balancer_ips().map(|(_, ip)| ip).filter(is_its);
    Service {
        name: name.clone(),
        cluster_ips: allocation.cluster_ips.clone(),
        foreign_ips: Vec::new(),
        external_ips: once(external_ips),
        load_balancer_ips: once(load_balancer_ips),
        pool: None,
        source_ranges: once(object.source_ranges().map(|range| range.trunc())),
        ports: ports.collect(),
        external_name: None,
        internal_traffic: object.spec.internal_traffic_policy,
        external_traffic: object.spec.external_traffic_policy,
        affinity: object.affinity(),
        health_check_node_port: allocation.health_check_node_port,
        balancing: object.balancing().unwrap_or_default(),
        slow_start: object.slow_start().unwrap_or_default(),
        forwarding: object.forwarding().unwrap_or_default(),
    }
}

/// A Service that is another name of something.
fn alias_of(name: &ObjectName, alias: &str) -> Service {
    Service { name: name.clone(), external_name: Some(alias.into()), ..Service::default() }
}

/// A Service that somebody else balances at the addresses it has.
fn foreign(name: &ObjectName, object: &kubernetes::Service) -> Option<Service> {
    let foreign_ips = object.requested_ips();
    if object.is_ours() || foreign_ips.is_empty() {
        return None;
    }
    let ports = object.spec.ports.iter().map(|port| ServicePort {
        name: port.name.clone(),
        protocol: port.protocol,
        port: port.port.get(),
        node_port: None,
    });
    Some(Service { name: name.clone(), foreign_ips, ports: ports.collect(), ..Service::default() })
}

/// Each of `all` at its first place.
fn once<T: Copy + Ord>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    all.filter(|one| seen.insert(*one)).collect()
}
