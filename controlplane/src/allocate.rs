//! ClusterIPs, node ports and the ports of addresses from elsewhere: who holds which.
//!
//! Who has a number keeps it until the Service is gone or asks for another; who asks for a taken one
//! is refused by name, and of several who ask at once the oldest gets it. Where others give numbers out,
//! nothing is remembered, so that all replicas see the same: the oldest that names a number has it, and
//! the others are in force without; but an address that a load balancer has been given is taken from it by no
//! Service that names it as an external one, however old. A Service that others balance holds the numbers it names, and gets no others.
//! An address nobody asked for is chosen by the Service's name, so that a Service made anew usually
//! finds its old address, and two control planes with the same manifests agree.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::{ObjectName, Protocol};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::changes::Changes;
use crate::kubernetes::{FieldError, IpFamily, Kind, ObjectId, Port, Service, ServicePort};

pub(crate) use ranges::{Ranges, nth, usable};
use ranges::{band, family, probe, size};

mod file;
mod ranges;

/// What one Service holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Allocation {
    /// At most one a family, in the order of the Service's families.
    #[serde(rename = "clusterIPs")]
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// By protocol and port, as `TCP/80`.
    pub(crate) node_ports: BTreeMap<String, u16>,
    /// Where nodes answer a load balancer's health checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) health_check_node_port: Option<u16>,
    /// Where it answers at addresses from elsewhere.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    external: BTreeSet<External>,
}

/// A port of an address from elsewhere: two Services may share the address, but not the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct External {
    address: IpAddr,
    protocol: Protocol,
    port: u16,
}

impl Allocation {
    /// Whether the Service exists in a family.
    pub(crate) fn has_family(&self, family: IpFamily) -> bool {
        self.cluster_ips.iter().any(|ip| IpFamily::of(*ip) == family)
    }

    /// Whether the Service answers at this address from elsewhere.
    pub(crate) fn is_at(&self, address: IpAddr) -> bool {
        self.external.iter().any(|external| external.address == address)
    }

    /// Its numbers on the nodes.
    fn numbers(&self) -> impl Iterator<Item = &u16> {
        self.node_ports.values().chain(&self.health_check_node_port)
    }

    /// The number on the nodes for a port of the Service.
    pub(crate) fn node_port(&self, port: &ServicePort) -> Option<u16> {
        self.node_ports.get(&port_key(port.protocol, port.port.get())).copied()
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Allocator {
    ranges: Ranges,
    /// Somebody else gives numbers out, and Services say what they got.
    told: bool,
    held: BTreeMap<ObjectName, Allocation>,
    addresses: HashMap<IpAddr, ObjectName>,
    node_ports: HashMap<u16, ObjectName>,
    external: HashMap<External, ObjectName>,
    /// Where others give numbers out: who names what, and what Services do without.
    claims: HashMap<Claim, Vec<ObjectName>>,
    contested: BTreeMap<ObjectName, Vec<FieldError>>,
    /// Why nothing may change at the moment.
    frozen: Option<String>,
}

/// What only one Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Claim {
    Address(IpAddr),
    NodePort(u16),
    External(External),
}

/// What this round's Services ask for; never given to one that does not ask.
struct Requested {
    addresses: BTreeSet<IpAddr>,
    node_ports: BTreeSet<u16>,
}

impl Allocator {
    /// One that remembers nothing.
    pub(crate) fn new(ranges: Ranges) -> Self {
        Self {
            ranges,
            told: false,
            held: BTreeMap::new(),
            addresses: HashMap::new(),
            node_ports: HashMap::new(),
            external: HashMap::new(),
            claims: HashMap::new(),
            contested: BTreeMap::new(),
            frozen: None,
        }
    }

    /// One that gives out nothing, and takes note of what Services have been given.
    pub(crate) fn told(ranges: Ranges) -> Self {
        Self { told: true, ..Self::new(ranges) }
    }

    /// Whether it gives out nothing.
    pub(crate) fn is_told(&self) -> bool {
        self.told
    }

    /// The ranges that numbers come from.
    pub(crate) fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// The Services that do not hold the same with both.
    pub(crate) fn differing(&self, other: &Self) -> BTreeSet<ObjectName> {
        let names = self.held.keys().chain(other.held.keys());
        names.filter(|name| self.held.get(*name) != other.held.get(*name)).cloned().collect()
    }

    /// Where others give addresses out: the ranges that they say these come from.
    pub(crate) fn follow(&mut self, service_cidrs: &[IpNet]) {
        if self.told && !service_cidrs.is_empty() {
            self.ranges.follow(service_cidrs);
        }
    }

    /// Whether nobody else holds anything.
    pub(crate) fn holds_nothing_but(&self, of: Option<&ObjectName>) -> bool {
        self.held.keys().all(|name| Some(name) == of)
    }

    /// Whether both hold the same.
    pub(crate) fn holds_the_same(&self, other: &Self) -> bool {
        self.held == other.held
    }

    /// From now on every change is refused for this reason.
    pub(crate) fn freeze(&mut self, reason: String) {
        self.frozen = Some(reason);
    }

    /// What the Service holds.
    pub(crate) fn get(&self, name: &ObjectName) -> Option<&Allocation> {
        self.held.get(name)
    }

    /// The addresses from elsewhere at which the Service answers, once each.
    pub(crate) fn external_addresses(&self, name: &ObjectName) -> BTreeSet<IpAddr> {
        let held = self.held.get(name).into_iter();
        held.flat_map(|held| &held.external).map(|place| place.address).collect()
    }

    /// The families of the cluster, in order.
    pub(crate) fn families(&self) -> Vec<IpFamily> {
        match self.ranges.families() {
            // Of a cluster that does not say, each Service says it for itself.
            none if none.is_empty() => vec![IpFamily::V4, IpFamily::V6],
            families => families,
        }
    }

    /// The ranges that addresses are given out from.
    pub(crate) fn service_cidrs(&self) -> &[IpNet] {
        self.ranges.service_cidrs()
    }

    /// Sets the other ranges that a Service may ask for an address of.
    pub(crate) fn accept(&mut self, also: Vec<IpNet>) {
        self.ranges.accept(also);
    }

    /// Gives each of `services` what it asks for or needs, and takes from those for whom `exists`
    /// says no. A Service gets all of it or, with all reasons returned, keeps what it had.
    pub(crate) fn round(
        &mut self,
        services: &BTreeMap<ObjectName, Arc<Service>>,
        exists: impl Fn(&ObjectName) -> bool,
    ) -> BTreeMap<ObjectName, Vec<FieldError>> {
        if self.frozen.is_none() {
            let gone: Vec<_> = self.held.keys().filter(|name| !exists(name)).cloned().collect();
            for name in gone {
                self.set(name, Allocation::default());
            }
        }
        let requested = Requested::of(services.values());
        let asks = |service: &Service| {
            !service.requested_ips().is_empty() || service.requested_numbers().next().is_some()
        };
        let (first, then): (Vec<_>, Vec<_>) =
            by_age(services).into_iter().partition(|(_, service)| asks(service));
        let mut open: Vec<_> = first.into_iter().chain(then).collect();
        loop {
            let before = open.len();
            let mut refused = BTreeMap::new();
            open.retain(|(name, service)| match self.assign(name, service, &requested) {
                Ok(()) => false,
                Err(errors) => {
                    refused.insert((*name).clone(), errors);
                    true
                }
            });
            // Whoever moved may have made room for one that was refused before.
            if open.is_empty() || open.len() == before {
                return refused;
            }
        }
    }

    /// Of Services that others have given numbers to: each holds what it names and no older one does. `changes`
    /// has those that are not what they were the last time, all if the ranges are others than then. Returns
    /// which Services hold something else now.
    pub(crate) fn take_note(
        &mut self,
        services: &BTreeMap<ObjectName, Arc<Service>>,
        changes: &Changes,
        all: bool,
    ) -> BTreeSet<ObjectName> {
        let mut open = BTreeSet::new();
        let mut concerned: BTreeSet<ObjectName> = changes.of(Kind::Service).cloned().collect();
        for name in &concerned {
            for claim in changes.before().services.get(name).iter().flat_map(|of| claims(of)) {
                if let Entry::Occupied(mut by) = self.claims.entry(claim) {
                    by.get_mut().retain(|other| other != name);
                    if by.get().is_empty() {
                        by.remove();
                    }
                }
                open.insert(claim);
            }
            for claim in services.get(name).iter().flat_map(|service| claims(service)) {
                let by = self.claims.entry(claim).or_default();
                if !by.contains(name) {
                    by.push(name.clone());
                }
                open.insert(claim);
            }
        }
        // Whoever names the same as one of these, and so on.
        let mut seen = open.clone();
        while let Some(claim) = open.pop_first() {
            for name in self.claims.get(&claim).into_iter().flatten() {
                if concerned.insert(name.clone()) {
                    let also = services.get(name).into_iter().flat_map(|service| claims(service));
                    open.extend(also.filter(|claim| seen.insert(*claim)));
                }
            }
        }
        if all {
            concerned.extend(services.keys().cloned());
        }
        self.note(services, concerned)
    }

    /// What Services do without, and why.
    pub(crate) fn contradictions(&self) -> impl Iterator<Item = (ObjectId, FieldError)> {
        self.contested.iter().flat_map(|(name, errors)| {
            let id = ObjectId { kind: Kind::Service, name: name.clone() };
            errors.iter().map(move |error| (id.clone(), error.clone()))
        })
    }

    /// Takes note anew of what these name. Nobody else names any of it.
    fn note(
        &mut self,
        services: &BTreeMap<ObjectName, Arc<Service>>,
        mut concerned: BTreeSet<ObjectName>,
    ) -> BTreeSet<ObjectName> {
        let mut before = BTreeMap::new();
        for name in &concerned {
            before
                .extend(self.held.get_key_value(name).map(|(name, of)| (name.clone(), of.clone())));
            self.set(name.clone(), Allocation::default());
            self.contested.remove(name);
        }
        let present = concerned.iter().filter_map(|name| services.get_key_value(name));
        let mut by_age: Vec<_> = present.collect();
        sort_by_age(&mut by_age);
        for (name, service) in &by_age {
            let (next, errors) = self.named(name, service);
            self.set((*name).clone(), next);
            self.contest(name, errors);
        }
        for (name, service) in by_age.iter().filter(|(_, service)| service.is_ours()) {
            let Some(mut next) = self.held.get(*name).cloned() else { continue };
            let (external, errors) = self.external(name, service, &next, service.external_ips());
            next.external.extend(external);
            self.set((*name).clone(), next);
            self.contest(name, errors);
        }
        concerned.retain(|name| before.get(name) != self.held.get(name));
        concerned
    }

    fn contest(&mut self, name: &ObjectName, errors: Vec<FieldError>) {
        if !errors.is_empty() {
            self.contested.entry(name.clone()).or_default().extend(errors);
        }
    }

    fn assign(
        &mut self,
        name: &ObjectName,
        service: &Service,
        requested: &Requested,
    ) -> Result<(), Vec<FieldError>> {
        let held = self.held.get(name).cloned().unwrap_or_default();
        let next = if service.is_ours() {
            self.needed(name, service, &held, requested)?
        } else {
            self.reserved(name, service).map_err(|error| vec![error])?
        };
        if next != held {
            if let Some(reason) = &self.frozen {
                return Err(vec![FieldError::new("spec", reason.clone())]);
            }
            self.log_moves(name, service, &held, &next);
            self.set(name.clone(), next);
        }
        Ok(())
    }

    /// All that a Service of ours asks for or needs.
    fn needed(
        &self,
        name: &ObjectName,
        service: &Service,
        held: &Allocation,
        requested: &Requested,
    ) -> Result<Allocation, Vec<FieldError>> {
        let mut next = Allocation::default();
        let mut errors = Vec::new();
        match self.cluster_ips(name, service, held, requested) {
            Ok(cluster_ips) => next.cluster_ips = cluster_ips,
            Err(error) => errors.push(error),
        }
        match self.node_ports(name, service, held, requested) {
            Ok(node_ports) => next.node_ports = node_ports,
            Err(of_ports) => errors.extend(of_ports),
        }
        match self.health_check_node_port(name, service, held, requested, &next) {
            Ok(number) => next.health_check_node_port = number,
            Err(error) => errors.push(error),
        }
        let all = service.external_ips().chain(service.load_balancer_ips());
        let (external, of_external) = self.external(name, service, &next, all);
        next.external = external;
        errors.extend(of_external);
        if errors.is_empty() { Ok(next) } else { Err(errors) }
    }

    /// What a Service has been given and nobody else holds, with what is wrong about the rest; what it asks for
    /// by itself is not among it. Nothing as long as it has no address.
    fn named(&self, name: &ObjectName, service: &Service) -> (Allocation, Vec<FieldError>) {
        let mut next = Allocation::default();
        let mut errors = Vec::new();
        for address in service.requested_ips() {
            match self.check_address(name, service, address) {
                Ok(()) => next.cluster_ips.push(address),
                Err(error) => errors.push(error),
            }
        }
        if next.cluster_ips.is_empty() {
            return (next, errors);
        }
        for (index, port) in service.spec.ports.iter().enumerate() {
            if let Some(number) = port.node_port.map(Port::get) {
                match self.check_node_port(name, node_port_field(index), number) {
                    Ok(()) => {
                        let key = port_key(port.protocol, port.port.get());
                        next.node_ports.insert(key, number);
                    }
                    Err(error) => errors.push(error),
                }
            }
        }
        if let Some(number) = service.requested_health_check().map(Port::get) {
            match self.check_node_port(name, HEALTH_CHECK.to_owned(), number) {
                Ok(()) => next.health_check_node_port = Some(number),
                Err(error) => errors.push(error),
            }
        }
        if service.is_ours() {
            let given = service.load_balancer_ips();
            let (external, of_external) = self.external(name, service, &next, given);
            next.external = external;
            errors.extend(of_external);
        }
        (next, errors)
    }

    /// The numbers of our ranges that a Service of others names. What is outside them is between it
    /// and whoever balances it.
    fn reserved(&self, name: &ObjectName, service: &Service) -> Result<Allocation, FieldError> {
        let mut reserved = Allocation::default();
        for address in service.requested_ips() {
            if self.ranges.has(address) {
                self.check_address(name, service, address)?;
                reserved.cluster_ips.push(address);
            }
        }
        for (index, port) in service.spec.ports.iter().enumerate() {
            let number = port.node_port.map(Port::get);
            if let Some(number) = number.filter(|number| self.ranges.node_ports.contains(number)) {
                self.check_node_port(name, node_port_field(index), number)?;
                reserved.node_ports.insert(port_key(port.protocol, port.port.get()), number);
            }
        }
        let number = service.requested_health_check().map(Port::get);
        if let Some(number) = number.filter(|number| self.ranges.node_ports.contains(number)) {
            self.check_node_port(name, HEALTH_CHECK.to_owned(), number)?;
            reserved.health_check_node_port = Some(number);
        }
        Ok(reserved)
    }

    /// Whether the Service may have the address it asks for.
    fn check_address(
        &self,
        name: &ObjectName,
        service: &Service,
        address: IpAddr,
    ) -> Result<(), FieldError> {
        match self.addresses.get(&address) {
            Some(holder) if holder != name => {
                let message = format!("{address} is already taken by {holder}");
                Err(FieldError::new(address_field(service, address), message))
            }
            _ => Ok(()),
        }
    }

    /// Whether the Service may have the number it asks for.
    fn check_node_port(
        &self,
        name: &ObjectName,
        field: String,
        number: u16,
    ) -> Result<(), FieldError> {
        match self.node_ports.get(&number) {
            Some(holder) if holder != name => {
                let message = format!("{number} is already taken by {holder}");
                Err(FieldError::new(field, message))
            }
            _ => Ok(()),
        }
    }

    /// The same, also of numbers out of the range.
    fn check_asked_node_port(
        &self,
        name: &ObjectName,
        field: String,
        number: u16,
    ) -> Result<(), FieldError> {
        let range = &self.ranges.node_ports;
        if !range.contains(&number) {
            let (start, end) = (range.start(), range.end());
            let message = format!("{number} is not in the node port range {start}-{end}");
            return Err(FieldError::new(field, message));
        }
        self.check_node_port(name, field, number)
    }

    /// Says which addresses change although nobody asked for it: those that a changed service range
    /// does not hold any more. Clients that remember them are cut off.
    fn log_moves(
        &self,
        name: &ObjectName,
        service: &Service,
        held: &Allocation,
        next: &Allocation,
    ) {
        let asked = service.requested_ips();
        for new in next.cluster_ips.iter().filter(|new| !asked.contains(new)) {
            let same_family = |old: &&IpAddr| IpFamily::of(**old) == IpFamily::of(*new);
            if let Some(old) = held.cluster_ips.iter().find(same_family).filter(|old| *old != new) {
                tracing::warn!(
                    service = %name, %old, %new,
                    "the Service moves to another ClusterIP: the old one is not in the service \
                     range"
                );
            }
        }
    }

    fn cluster_ips(
        &self,
        name: &ObjectName,
        service: &Service,
        held: &Allocation,
        requested: &Requested,
    ) -> Result<Vec<IpAddr>, FieldError> {
        let families = service.families(&self.ranges.families())?;
        if service.is_headless() {
            return Ok(Vec::new());
        }
        let asked = service.requested_ips();
        let mut addresses = Vec::new();
        for family in families {
            let Some(cidr) = self.ranges.of(family) else {
                continue;
            };
            let of_family = |address: &&IpAddr| IpFamily::of(**address) == family;
            let kept = || held.cluster_ips.iter().find(of_family).copied();
            addresses.push(match asked.iter().find(of_family).copied() {
                Some(address) => {
                    if !self.ranges.has(address) {
                        let ranges = self.ranges.list(family);
                        let message = format!(
                            "{address} is not a usable address of the service range {ranges}"
                        );
                        return Err(FieldError::new(address_field(service, address), message));
                    }
                    self.check_address(name, service, address)?;
                    address
                }
                None => match kept().filter(|address| self.ranges.has(*address)) {
                    Some(address) => address,
                    None => self.free_address(name, cidr, requested).ok_or_else(|| {
                        FieldError::new("spec.clusterIP", format!("service range {cidr} is full"))
                    })?,
                },
            });
        }
        Ok(addresses)
    }

    fn node_ports(
        &self,
        name: &ObjectName,
        service: &Service,
        held: &Allocation,
        requested: &Requested,
    ) -> Result<BTreeMap<String, u16>, Vec<FieldError>> {
        let mut numbers = BTreeMap::new();
        let mut errors = Vec::new();
        for (index, port) in service.spec.ports.iter().enumerate() {
            let field = node_port_field(index);
            let key = port_key(port.protocol, port.port.get());
            let is_own = |number: u16| {
                service.requested_numbers().any(|asked| asked.get() == number)
                    || numbers.values().any(|other| *other == number)
            };
            let number = match port.node_port.map(Port::get) {
                Some(number) => match self.check_asked_node_port(name, field, number) {
                    Ok(()) => number,
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                },
                None if !service.wants_node_ports() => continue,
                None => {
                    let seed = format!("{name} {key}");
                    let old = held.node_port(port);
                    match self.any_node_port(&seed, old, requested, is_own) {
                        Some(number) => number,
                        None => {
                            errors.push(FieldError::new(field, "all node ports are taken"));
                            continue;
                        }
                    }
                }
            };
            numbers.insert(key, number);
        }
        if errors.is_empty() { Ok(numbers) } else { Err(errors) }
    }

    /// The number for its health checks; `next` has its node ports.
    fn health_check_node_port(
        &self,
        name: &ObjectName,
        service: &Service,
        held: &Allocation,
        requested: &Requested,
        next: &Allocation,
    ) -> Result<Option<u16>, FieldError> {
        if !service.needs_health_check() {
            return Ok(None);
        }
        if let Some(number) = service.requested_health_check().map(Port::get) {
            return self
                .check_asked_node_port(name, HEALTH_CHECK.to_owned(), number)
                .map(|()| Some(number));
        }
        let is_own = |number| next.numbers().any(|other| *other == number);
        let seed = format!("{name} health check");
        let number = self.any_node_port(&seed, held.health_check_node_port, requested, is_own);
        let none = || FieldError::new(HEALTH_CHECK, "all node ports are taken");
        number.map(Some).ok_or_else(none)
    }

    /// The number that was held before, or else a free one; none that the Service has for something
    /// else.
    fn any_node_port(
        &self,
        seed: &str,
        held: Option<u16>,
        requested: &Requested,
        is_own: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let range = &self.ranges.node_ports;
        let free = |number: &u16| {
            !self.node_ports.contains_key(number)
                && !requested.node_ports.contains(number)
                && !is_own(*number)
        };
        held.filter(|number| range.contains(number) && !is_own(*number)).or_else(|| {
            let size = u128::from(range.end() - range.start()) + 1;
            let number = |offset| u16::try_from(offset).map(|at| range.start() + at);
            let mut tries = probe(seed, size, band(size, 128));
            tries.find_map(|at| number(at).ok().filter(free))
        })
    }

    /// At which of these addresses from elsewhere the Service answers, in the families of `next`, and what is
    /// wrong about the others: one is either its with all of its ports or not at all.
    fn external(
        &self,
        name: &ObjectName,
        service: &Service,
        next: &Allocation,
        addresses: impl Iterator<Item = (String, IpAddr)>,
    ) -> (BTreeSet<External>, Vec<FieldError>) {
        let mut external = BTreeSet::new();
        let mut errors = Vec::new();
        for (field, address) in addresses {
            if !next.has_family(IpFamily::of(address)) {
                continue;
            }
            if let Some(range) = self.ranges.around(address) {
                let message = format!(
                    "{address} is in the service range {range}, whose addresses are ClusterIPs"
                );
                errors.push(FieldError::new(field, message));
                continue;
            }
            let places = places(service, address);
            let holder = |place: &External| self.external.get(place).filter(|of| *of != name);
            match places.clone().find_map(|place| Some((place, holder(&place)?))) {
                None => external.extend(places),
                Some((External { protocol, port, .. }, holder)) => {
                    let message =
                        format!("{address} {protocol} {port} is already taken by {holder}");
                    errors.push(FieldError::new(field, message));
                }
            }
        }
        (external, errors)
    }

    fn free_address(
        &self,
        name: &ObjectName,
        cidr: &IpNet,
        requested: &Requested,
    ) -> Option<IpAddr> {
        let size = size(cidr);
        // Network address first, in IPv4 broadcast address last: `usable` knows.
        probe(&format!("{name} {}", family(cidr)), size, band(size, 256))
            .map(|offset| nth(cidr, offset))
            .find(|address| {
                usable(cidr, *address)
                    && !self.addresses.contains_key(address)
                    && !requested.addresses.contains(address)
            })
    }

    /// Replaces what the Service holds; nothing at all forgets the Service.
    fn set(&mut self, name: ObjectName, allocation: Allocation) {
        if let Some(old) = self.held.remove(&name) {
            for address in &old.cluster_ips {
                self.addresses.remove(address);
            }
            for number in old.numbers() {
                self.node_ports.remove(number);
            }
            for place in &old.external {
                self.external.remove(place);
            }
        }
        for address in &allocation.cluster_ips {
            self.addresses.insert(*address, name.clone());
        }
        for number in allocation.numbers() {
            self.node_ports.insert(*number, name.clone());
        }
        for place in &allocation.external {
            self.external.insert(*place, name.clone());
        }
        if allocation != Allocation::default() {
            self.held.insert(name, allocation);
        }
    }

    fn taken(&self, name: &ObjectName, allocation: &Allocation) -> Option<&ObjectName> {
        let addresses = allocation.cluster_ips.iter();
        let external = allocation.external.iter();
        addresses
            .filter_map(|address| self.addresses.get(address))
            .chain(allocation.numbers().filter_map(|number| self.node_ports.get(number)))
            .chain(external.filter_map(|place| self.external.get(place)))
            .find(|holder| *holder != name)
    }
}

/// The oldest first; those of one age in the order of their names.
fn by_age(services: &BTreeMap<ObjectName, Arc<Service>>) -> Vec<(&ObjectName, &Arc<Service>)> {
    let mut by_age: Vec<_> = services.iter().collect();
    sort_by_age(&mut by_age);
    by_age
}

/// The oldest first; those of one age stay in their order.
fn sort_by_age(services: &mut [(&ObjectName, &Arc<Service>)]) {
    services.sort_by_key(|(_, service)| service.metadata.creation_timestamp);
}

/// All that a Service names and only one can have.
fn claims(service: &Service) -> impl Iterator<Item = Claim> {
    let addresses = service.requested_ips().into_iter().map(Claim::Address);
    let numbers = service.requested_numbers().map(|number| Claim::NodePort(number.get()));
    let external = service.external_ips().chain(service.load_balancer_ips());
    let external = external.flat_map(|(_, address)| places(service, address));
    addresses.chain(numbers).chain(external.map(Claim::External))
}

/// All ports of the Service at an address from elsewhere.
fn places(service: &Service, address: IpAddr) -> impl Iterator<Item = External> + Clone {
    service.spec.ports.iter().map(move |port| External {
        address,
        protocol: port.protocol,
        port: port.port.get(),
    })
}

impl Requested {
    fn of<'a>(services: impl Iterator<Item = &'a Arc<Service>>) -> Self {
        let mut requested = Self { addresses: BTreeSet::new(), node_ports: BTreeSet::new() };
        for service in services {
            requested.addresses.extend(service.requested_ips());
            requested.node_ports.extend(service.requested_numbers().map(Port::get));
        }
        requested
    }
}

impl Service {
    /// The number that it asks for to have its health checked.
    fn requested_health_check(&self) -> Option<Port> {
        self.spec.health_check_node_port.filter(|_| self.needs_health_check())
    }

    /// All numbers on the nodes that it asks for.
    fn requested_numbers(&self) -> impl Iterator<Item = Port> {
        let ports = self.spec.ports.iter().filter_map(|port| port.node_port);
        ports.chain(self.requested_health_check())
    }
}

/// The field by which a Service asks for a number to have its health checked.
const HEALTH_CHECK: &str = "spec.healthCheckNodePort";

/// The field by which a Service asks for a number for a port.
fn node_port_field(index: usize) -> String {
    format!("spec.ports[{index}].nodePort")
}

/// The field by which the Service asks for the address.
fn address_field(service: &Service, address: IpAddr) -> String {
    let index = service.requested_ips().iter().position(|other| *other == address);
    match index {
        Some(index) if !service.spec.cluster_ips.is_empty() => format!("spec.clusterIPs[{index}]"),
        _ => "spec.clusterIP".to_owned(),
    }
}

/// Names a port of a Service: what stays the same when only its name or target changes.
fn port_key(protocol: Protocol, port: u16) -> String {
    format!("{protocol}/{port}")
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn ranges(cidrs: &[&str], ports: RangeInclusive<u16>) -> Ranges {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        Ranges::new(cidrs, ports).unwrap()
    }

    fn services(specs: &[(&str, serde_json::Value)]) -> BTreeMap<ObjectName, Arc<Service>> {
        let named = specs.iter().map(|(name, spec)| {
            let service = serde_json::from_value(json!({ "spec": spec })).unwrap();
            (ObjectName::new("shop", *name), Arc::new(service))
        });
        named.collect()
    }

    /// One round, every Service of which exists; the refusals as text.
    fn round(allocator: &mut Allocator, specs: &[(&str, serde_json::Value)]) -> Vec<String> {
        let services = services(specs);
        let refused = allocator.round(&services, |name| services.contains_key(name));
        texts(&refused)
    }

    fn texts(refused: &BTreeMap<ObjectName, Vec<FieldError>>) -> Vec<String> {
        let each = refused
            .iter()
            .flat_map(|(name, errors)| errors.iter().map(move |error| format!("{name}: {error}")));
        each.collect()
    }

    fn held<'a>(allocator: &'a Allocator, name: &str) -> &'a Allocation {
        allocator.get(&ObjectName::new("shop", name)).unwrap()
    }

    #[test]
    fn the_older_holder_keeps_it() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/24"], 30000..=30010));
        let asks = json!({"type": "NodePort", "clusterIP": "10.96.0.9",
            "ports": [{"port": 80, "nodePort": 30005}]});
        assert_eq!(round(&mut allocator, &[("web", asks.clone())]), [""; 0]);
        // `api` comes first by name, `web` in time.
        let both = [("api", asks.clone()), ("web", asks.clone())];
        assert_eq!(
            round(&mut allocator, &both),
            [
                "shop/api: spec.clusterIP: 10.96.0.9 is already taken by shop/web",
                "shop/api: spec.ports[0].nodePort: 30005 is already taken by shop/web",
            ]
        );
        let port_only = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30005}]});
        assert_eq!(
            round(&mut allocator, &[("api", port_only), ("web", asks.clone())]),
            ["shop/api: spec.ports[0].nodePort: 30005 is already taken by shop/web"]
        );
        // Gone, and free in the same round.
        assert_eq!(round(&mut allocator, &[("api", asks)]), [""; 0]);
        assert_eq!(held(&allocator, "api").node_ports["TCP/80"], 30005);
    }

    #[test]
    fn a_moved_service_makes_room_in_the_same_round() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/24"], 30000..=30010));
        let at = |address: &str| json!({"clusterIP": address, "ports": [{"port": 80}]});
        round(&mut allocator, &[("web", at("10.96.0.9"))]);
        let moved = [("api", at("10.96.0.9")), ("web", at("10.96.0.10"))];
        assert_eq!(round(&mut allocator, &moved), [""; 0]);
    }

    #[test]
    fn refusals_say_why() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/24"], 30000..=30001));
        let cases = [
            (
                json!({"clusterIP": "10.97.0.1", "ports": [{"port": 80}]}),
                "spec.clusterIP: 10.97.0.1 is not a usable address of the service range 10.96.0.0/24",
            ),
            (
                json!({"clusterIPs": ["10.96.0.255"], "ports": [{"port": 80}]}),
                "spec.clusterIPs[0]: 10.96.0.255 is not a usable address of the service range 10.96.0.0/24",
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
                "spec.ports[0].nodePort: 80 is not in the node port range 30000-30001",
            ),
            (
                json!({"type": "NodePort", "ports": [
                    {"name": "a", "port": 80}, {"name": "b", "port": 81}, {"name": "c", "port": 82}]}),
                "spec.ports[2].nodePort: all node ports are taken",
            ),
        ];
        for (spec, expected) in cases {
            let refused = round(&mut allocator, &[("web", spec)]);
            assert_eq!(refused, [format!("shop/web: {expected}")]);
            // All or nothing.
            assert!(allocator.held.is_empty());
        }
    }

    #[test]
    fn a_full_range_is_said_to_be_full() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/29"], 30000..=30001));
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        let specs = names.map(|name| (name, json!({"ports": [{"port": 80}]})));
        let refused = round(&mut allocator, &specs);
        assert_eq!(refused, ["shop/g: spec.clusterIP: service range 10.96.0.0/29 is full"]);
    }

    #[test]
    fn both_families() {
        let ranges = ranges(&["fd00:96::/112", "10.96.0.0/24"], 30000..=30001);
        let mut allocator = Allocator::new(ranges);
        let spec = json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "fd00:96::7",
            "ports": [{"port": 80}]});
        assert_eq!(round(&mut allocator, &[("web", spec)]), [""; 0]);
        let addresses = &held(&allocator, "web").cluster_ips;
        assert_eq!(addresses[0], "fd00:96::7".parse::<IpAddr>().unwrap());
        assert!(addresses[1].is_ipv4());
        assert_eq!(addresses.len(), 2);
    }

    #[test]
    fn a_service_of_others_holds_what_it_names_and_no_more() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/24"], 30000..=30010));
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.9",
            "ports": [{"name": "a", "port": 80, "nodePort": 30005}, {"name": "b", "port": 81}]});
        let mut both = services(&[("theirs", spec.clone()), ("web", spec)]);
        let theirs = Arc::make_mut(both.get_mut(&ObjectName::new("shop", "theirs")).unwrap());
        let label = "service.kubernetes.io/service-proxy-name";
        theirs.metadata.labels.insert(label.into(), "other".into());
        let refused = allocator.round(&both, |_| true);
        assert_eq!(
            texts(&refused),
            [
                "shop/web: spec.clusterIP: 10.96.0.9 is already taken by shop/theirs",
                "shop/web: spec.ports[0].nodePort: 30005 is already taken by shop/theirs",
            ]
        );
        let held = held(&allocator, "theirs");
        assert_eq!(held.cluster_ips, ["10.96.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(held.node_ports, BTreeMap::from([("TCP/80".to_owned(), 30005)]));
    }

    #[test]
    fn a_port_makes_room_for_one_that_asks_for_its_number() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/24"], 30000..=30010));
        let old = json!({"name": "a", "port": 80});
        let spec = |ports: &[&serde_json::Value]| json!({"type": "NodePort", "ports": ports});
        round(&mut allocator, &[("web", spec(&[&old]))]);
        let number = held(&allocator, "web").node_ports["TCP/80"];
        let new = json!({"name": "b", "port": 81, "nodePort": number});
        assert_eq!(round(&mut allocator, &[("web", spec(&[&old, &new]))]), [""; 0]);
        let ports = &held(&allocator, "web").node_ports;
        assert_eq!(ports["TCP/81"], number);
        assert_ne!(ports["TCP/80"], number);
    }

    #[test]
    fn health_checks_have_a_node_port_of_their_own_and_keep_it() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/24"], 30000..=30003));
        let local = |health_check: u16, node_port: u16| {
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": health_check,
                "ports": [{"port": 80, "nodePort": node_port}]})
        };
        assert_eq!(round(&mut allocator, &[("web", local(0, 0))]), [""; 0]);
        let first = held(&allocator, "web").clone();
        let number = first.health_check_node_port.unwrap();
        assert_ne!(number, first.node_ports["TCP/80"]);
        // Neither a port nor a health check of another Service gets it.
        let port = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]});
        let both = [("api", port), ("cart", local(number, 0)), ("web", local(0, 0))];
        assert_eq!(
            round(&mut allocator, &both),
            [
                format!("shop/api: spec.ports[0].nodePort: {number} is already taken by shop/web"),
                format!(
                    "shop/cart: spec.healthCheckNodePort: {number} is already taken by shop/web"
                ),
            ]
        );
        assert_eq!(*held(&allocator, "web"), first);
        // Its own port may have it, and the health check then moves.
        assert_eq!(round(&mut allocator, &[("web", local(0, number))]), [""; 0]);
        let next = held(&allocator, "web");
        assert_eq!(next.node_ports["TCP/80"], number);
        assert!(next.health_check_node_port.is_some_and(|other| other != number));
        // And the other way round.
        let next = next.health_check_node_port.unwrap();
        assert_eq!(round(&mut allocator, &[("web", local(number, 0))]), [""; 0]);
        assert_eq!(held(&allocator, "web").health_check_node_port, Some(number));
        assert_ne!(held(&allocator, "web").node_ports["TCP/80"], number);
        assert_eq!(
            round(&mut allocator, &[("web", local(99, 0)), ("api", local(next, 0))]),
            ["shop/web: spec.healthCheckNodePort: 99 is not in the node port range 30000-30003"]
        );
        // Not needed, not held.
        let plain = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
        assert_eq!(round(&mut allocator, &[("web", plain)]), [""; 0]);
        assert_eq!(held(&allocator, "web").health_check_node_port, None);
    }

    #[test]
    fn an_external_address_is_shared_but_not_its_ports() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/24"], 30000..=30010));
        let at = |port: u16, protocol: &str| {
            let ports = json!([{"port": port, "protocol": protocol}]);
            json!({"externalIPs": ["203.0.113.1"], "ports": ports})
        };
        let all = [("web", at(80, "TCP")), ("udp", at(80, "UDP")), ("zzz", at(81, "TCP"))];
        assert_eq!(round(&mut allocator, &all), [""; 0]);
        // By name `api` comes first, by time `web` did.
        let both = [("api", at(80, "TCP")), ("web", at(80, "TCP"))];
        let taken =
            "shop/api: spec.externalIPs[0]: 203.0.113.1 TCP 80 is already taken by shop/web";
        assert_eq!(round(&mut allocator, &both), [taken]);
        let moved = [("api", at(80, "TCP")), ("web", at(81, "TCP"))];
        assert_eq!(round(&mut allocator, &moved), [""; 0]);
        let inside = json!({"externalIPs": ["10.96.0.9"], "ports": [{"port": 80}]});
        assert_eq!(
            round(&mut allocator, &[("in", inside)]),
            [
                "shop/in: spec.externalIPs[0]: 10.96.0.9 is in the service range 10.96.0.0/24, whose \
                 addresses are ClusterIPs"
            ]
        );
    }

    #[test]
    fn frozen_means_no_change_and_says_why() {
        let mut allocator = Allocator::new(ranges(&["10.96.0.0/24"], 30000..=30001));
        let spec = json!({"ports": [{"port": 80}]});
        round(&mut allocator, &[("old", spec.clone())]);
        let before = allocator.clone();
        allocator.freeze("the disk is full".into());
        let refused = round(&mut allocator, &[("new", spec)]);
        assert_eq!(refused, ["shop/new: spec: the disk is full"]);
        assert!(allocator.holds_the_same(&before));
    }

    /// A few Services that ask for little or for the same.
    fn specs() -> impl Strategy<Value = BTreeMap<String, serde_json::Value>> {
        let number = || prop::option::of(30000..30004_u16);
        let types = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer"]);
        let address = prop::option::of(1..6_u8);
        let external = prop::option::of(1..3_u8);
        let spec = (types, address, number(), number(), external);
        let spec = spec.prop_map(|(r#type, address, number, health_check, external)| {
            let address = address.map_or(String::new(), |last| format!("10.96.0.{last}"));
            let number = number.filter(|_| r#type != "ClusterIP").unwrap_or(0);
            let health_check = health_check.filter(|_| r#type == "LoadBalancer").unwrap_or(0);
            let health_check = if health_check == number { 0 } else { health_check };
            let external: Vec<_> =
                external.into_iter().map(|last| format!("203.0.113.{last}")).collect();
            json!({"type": r#type, "clusterIP": address, "externalIPs": external,
                "externalTrafficPolicy": "Local", "healthCheckNodePort": health_check,
                "ports": [{"port": 80, "nodePort": number}]})
        });
        prop::collection::btree_map("[a-h]", spec, 0..8)
    }

    proptest! {
        #[test]
        fn nobody_shares_and_nobody_moves_unasked(rounds in prop::collection::vec(specs(), 1..5)) {
            let mut allocator = Allocator::new(ranges(&["10.96.0.0/27"], 30000..=30007));
            for specs in rounds {
                let specs: Vec<_> = specs.iter().map(|(n, s)| (n.as_str(), s.clone())).collect();
                let services = services(&specs);
                let before = allocator.clone();
                let refused = allocator.round(&services, |name| services.contains_key(name));

                let mut addresses = BTreeSet::new();
                let mut numbers = BTreeSet::new();
                let mut external = BTreeSet::new();
                for (name, allocation) in &allocator.held {
                    prop_assert!(services.contains_key(name), "{} is gone", name);
                    for address in &allocation.cluster_ips {
                        prop_assert!(addresses.insert(*address), "{} is shared", address);
                    }
                    for number in allocation.numbers() {
                        prop_assert!(numbers.insert(*number), "{} is shared", number);
                    }
                    for place in &allocation.external {
                        prop_assert!(external.insert(*place), "{:?} is shared", place);
                    }
                }
                for (name, service) in &services {
                    let (old, new) = (before.get(name), allocator.get(name));
                    if refused.contains_key(name) {
                        prop_assert_eq!(old, new, "{} was refused and still moved", name);
                    } else if let Some(asked) = service.requested_ips().first() {
                        prop_assert_eq!(&new.unwrap().cluster_ips, &vec![*asked]);
                    } else if let Some(old) = old {
                        prop_assert_eq!(&new.unwrap().cluster_ips, &old.cluster_ips);
                    }
                }

                // Remembered across a restart, and then nothing is left to change.
                let folder = tempfile::tempdir().unwrap();
                let file = folder.path().join("allocations.json");
                std::fs::write(&file, allocator.to_file()).unwrap();
                let mut again = Allocator::load(allocator.ranges.clone(), &file).unwrap();
                prop_assert!(again.holds_the_same(&allocator));
                let refused_again = again.round(&services, |name| services.contains_key(name));
                prop_assert_eq!(refused_again, refused);
                prop_assert!(again.holds_the_same(&allocator));
            }
        }
    }
}
