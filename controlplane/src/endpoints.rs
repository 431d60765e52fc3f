//! What stands behind a Service: given by slices, given by the older kind, or derived from selector
//! and pods as Kubernetes' own controllers do it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::{Endpoint, EndpointState, Endpoints, Hints, NamedPort, ObjectName};

use crate::changes::Changes;
use crate::kubernetes::{
    self, AddressType, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, IpFamily,
    Kind, Labels, Node, Objects, Phase, Pod, Service, ServicePort, TargetPort, TrafficDistribution,
};
use crate::service::{PROXY_NAME, is_dns_label};
use crate::weights::Weights;

/// The label by which a slice names its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label of a slice whose Service has no address to balance at.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The bytes that the endpoints of one Service may take as JSON, with what else is in their line of the feed.
pub(crate) const ROOM: usize = fairway_feed::MAX_LINE - (1 << 20);

/// What the endpoints of all Services are looked up in, so that the cost of one does not depend on the number
/// of pods, nor that of a change on the number of Services. Kept for the next time.
#[derive(Default)]
pub(crate) struct Sources {
    /// Services and their slices, both in this namespace.
    slices: BTreeSet<(ObjectName, String)>,
    /// The selectors of Services whose endpoints are derived from pods.
    deriving: BTreeMap<ObjectName, Labels>,
    labels: Labelled,
}

/// Who has labels that are looked for, by namespace, key and value.
type Labelled = HashMap<String, HashMap<String, HashMap<String, Bearers>>>;

/// Names in a namespace.
#[derive(Default)]
struct Bearers {
    /// Services that look for the label.
    services: BTreeSet<String>,
    /// Pods that have it.
    pods: BTreeSet<String>,
}

impl Sources {
    /// Takes in what has changed, and returns whose endpoints may be others for it.
    pub(crate) fn update(&mut self, objects: &Objects, changes: &Changes) -> BTreeSet<ObjectName> {
        let before = changes.before();
        let mut concerned: BTreeSet<ObjectName> = changes.of(Kind::Service).cloned().collect();
        concerned.extend(changes.of(Kind::Endpoints).cloned());
        for name in changes.of(Kind::EndpointSlice) {
            if let Some(service) =
                before.endpoint_slices.get(name).and_then(|of| service_of(name, of))
            {
                self.slices.remove(&(service.clone(), name.name.clone()));
                concerned.insert(service);
            }
            if let Some(service) =
                objects.endpoint_slices.get(name).and_then(|of| service_of(name, of))
            {
                self.slices.insert((service.clone(), name.name.clone()));
                concerned.insert(service);
            }
        }
        for name in changes.of(Kind::Pod) {
            let lives = [before.pods.get(name), objects.pods.get(name)];
            let labels = lives.map(|pod| pod.map(|pod| &pod.metadata.labels));
            if labels[0] != labels[1] {
                self.relabel(name, labels);
            }
            for labels in labels.into_iter().flatten() {
                concerned.extend(self.selecting(name, labels));
            }
        }
        self.look_for_labels(objects, &concerned);
        let zone = |node: Option<&Arc<Node>>| node?.zone().map(str::to_owned);
        let mut nodes = changes.of(Kind::Node).map(|name| &name.name);
        if nodes.any(|name| zone(before.nodes.get(name)) != zone(objects.nodes.get(name))) {
            let look = objects.services.iter().filter(|(_, service)| service.looks_at_zones());
            concerned.extend(look.map(|(name, _)| name.clone()));
        }
        concerned
    }

    /// The endpoints of a Service in these families: an entry for each of its ports, if only an
    /// empty one. Slices win over the older kind, and what is given over what could be derived.
    pub(crate) fn of(
        &self,
        objects: &Objects,
        name: &ObjectName,
        service: &Service,
        families: &[IpFamily],
    ) -> Endpoints {
        let mut found = Found::new(objects, service, families);
        if self.has_slices(objects, name, service) {
            self.slices_of(objects, name, service).for_each(|slice| found.add_slice(slice));
        } else if let Some(endpoints) = objects.endpoints.get(name) {
            found.add_legacy(endpoints);
        } else if !service.spec.selector.is_empty() {
            for pod in self.selected(&name.namespace, &service.spec.selector) {
                let full = ObjectName::new(&name.namespace, pod);
                let object = objects.pods.get(&full);
                if let Some(object) = object.filter(|pod| has(pod, &service.spec.selector)) {
                    found.add_pod(&name.name, pod, object);
                }
            }
        }
        found.finish(name)
    }

    /// Whether slices say what stands behind a Service.
    pub(crate) fn has_slices(
        &self,
        objects: &Objects,
        name: &ObjectName,
        service: &Service,
    ) -> bool {
        self.slices_of(objects, name, service).next().is_some()
    }

    fn slices_of<'a>(
        &'a self,
        objects: &'a Objects,
        name: &'a ObjectName,
        service: &Service,
    ) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
        let headless = service.is_headless();
        let all = self.slices.range((name.clone(), String::new())..);
        let slices = all.take_while(move |(of, _)| of == name).filter_map(|(of, slice)| {
            objects
                .endpoint_slices
                .get(&ObjectName::new(&of.namespace, slice))
                .map(|slice| &**slice)
        });
        // Those of a headless Service of that name are not those of its successor.
        slices.filter(move |slice| headless || !slice.metadata.labels.contains_key(HEADLESS))
    }

    /// Pods that have the label of the selector that the fewest have, in order.
    fn selected<'a>(
        &'a self,
        namespace: &str,
        selector: &Labels,
    ) -> impl Iterator<Item = &'a String> + use<'a> {
        let labels = self.labels.get(namespace);
        let bearers = selector.iter().map(|(key, value)| {
            labels.and_then(|labels| labels.get(key)?.get(value)).map(|bearers| &bearers.pods)
        });
        let fewest = bearers.min_by_key(|pods| pods.map_or(0, BTreeSet::len));
        fewest.flatten().into_iter().flatten()
    }

    /// Services whose selector these labels of a pod fit.
    fn selecting(&self, pod: &ObjectName, labels: &Labels) -> BTreeSet<ObjectName> {
        let Some(known) = self.labels.get(&pod.namespace) else { return BTreeSet::new() };
        let bearers = labels.iter().filter_map(|(key, value)| known.get(key)?.get(value));
        let names = bearers.flat_map(|bearers| &bearers.services);
        let names = names.map(|name| ObjectName::new(&pod.namespace, name));
        let fits = |name: &ObjectName| {
            let selector = self.deriving.get(name);
            selector.is_some_and(|selector| are_among(selector, labels))
        };
        names.filter(fits).collect()
    }

    /// Notes that a pod has other labels than before.
    fn relabel(&mut self, pod: &ObjectName, [before, after]: [Option<&Labels>; 2]) {
        let Some(known) = self.labels.get_mut(&pod.namespace) else { return };
        for (key, value) in before.into_iter().flatten() {
            if let Some(bearers) = known.get_mut(key).and_then(|of| of.get_mut(value)) {
                bearers.pods.remove(&pod.name);
            }
        }
        for (key, value) in after.into_iter().flatten() {
            if let Some(bearers) = known.get_mut(key).and_then(|of| of.get_mut(value)) {
                bearers.pods.insert(pod.name.clone());
            }
        }
    }

    /// Sees to it that for those of the Services whose endpoints are derived it is known who has the labels.
    fn look_for_labels(&mut self, objects: &Objects, services: &BTreeSet<ObjectName>) {
        let mut new = BTreeSet::new();
        for name in services {
            let service = objects.services.get(name).filter(|service| {
                service.is_ours()
                    && !objects.endpoints.contains_key(name)
                    && !self.has_slices(objects, name, service)
            });
            let selector = service.map(|service| &service.spec.selector);
            let selector = selector.filter(|selector| !selector.is_empty());
            if self.deriving.get(name) == selector {
                continue;
            }
            if let Some(before) = self.deriving.remove(name) {
                self.forget(name, &before);
            }
            let Some(selector) = selector else { continue };
            let known = self.labels.entry(name.namespace.clone()).or_default();
            for (key, value) in selector {
                let of_key = known.entry(key.clone()).or_default();
                let bearers = of_key.entry(value.clone()).or_insert_with(|| {
                    new.insert(name.namespace.clone());
                    Bearers::default()
                });
                bearers.services.insert(name.name.clone());
            }
            self.deriving.insert(name.clone(), selector.clone());
        }
        for namespace in new {
            for (name, pod) in objects.pods_of(&namespace) {
                self.relabel(name, [None, Some(&pod.metadata.labels)]);
            }
        }
    }

    /// Notes that a Service looks for these labels no more.
    fn forget(&mut self, name: &ObjectName, selector: &Labels) {
        let Some(known) = self.labels.get_mut(&name.namespace) else { return };
        for (key, value) in selector {
            let Some(of_key) = known.get_mut(key) else { continue };
            if let Some(bearers) = of_key.get_mut(value) {
                bearers.services.remove(&name.name);
                if bearers.services.is_empty() {
                    of_key.remove(value);
                }
            }
            if of_key.is_empty() {
                known.remove(key);
            }
        }
        if known.is_empty() {
            self.labels.remove(&name.namespace);
        }
    }
}

/// The Service that a slice of this name is of, if it is ours.
fn service_of(name: &ObjectName, slice: &EndpointSlice) -> Option<ObjectName> {
    let labels = &slice.metadata.labels;
    let service = labels.get(SERVICE_NAME).filter(|_| !labels.contains_key(PROXY_NAME))?;
    Some(ObjectName::new(&name.namespace, service))
}

fn has(pod: &Pod, selector: &Labels) -> bool {
    are_among(selector, &pod.metadata.labels)
}

fn are_among(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl Service {
    /// Whether its endpoints may depend on where nodes are.
    fn looks_at_zones(&self) -> bool {
        self.metadata.annotations.weights.is_some() || self.distribution().is_some()
    }
}

impl Objects {
    /// The pods in a namespace, by name.
    pub(crate) fn pods_of(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        let all = self.pods.range(ObjectName::new(namespace, "")..);
        all.take_while(move |(name, _)| name.namespace == namespace)
    }
}

/// Endpoints as they are found, by port.
struct Found<'a> {
    objects: &'a Objects,
    service: &'a Service,
    weights: Weights<'a>,
    families: &'a [IpFamily],
    /// By port name; of two finds of one address and port the fitter stays.
    ports: BTreeMap<&'a str, BTreeMap<(IpAddr, u16), Endpoint>>,
    /// Of a headless Service: those that were on none of its ports when they were found.
    portless: BTreeMap<IpAddr, Endpoint>,
}

impl<'a> Found<'a> {
    fn new(objects: &'a Objects, service: &'a Service, families: &'a [IpFamily]) -> Self {
        let ports = service.spec.ports.iter();
        Self {
            objects,
            service,
            // What is wrong was said where the Service was checked.
            weights: service.weights().unwrap_or_default(),
            families,
            ports: ports.map(|port| (port.name.as_str(), BTreeMap::new())).collect(),
            portless: BTreeMap::new(),
        }
    }

    fn finish(mut self, name: &ObjectName) -> Endpoints {
        for (address, _) in self.ports.values().flat_map(BTreeMap::keys) {
            self.portless.remove(address);
        }
        if !self.portless.is_empty() && !self.ports.contains_key("") {
            let portless = self.portless.into_iter();
            let portless = portless.map(|(address, of)| ((address, Endpoint::NO_PORT), of));
            self.ports.insert("", portless.collect());
        }
        let ports = self.ports.into_iter();
        Endpoints {
            service: name.clone(),
            ports: ports
                .map(|(port, found)| (port.to_owned(), found.into_values().collect()))
                .collect(),
        }
    }

    fn add(&mut self, port: &str, endpoint: Endpoint) {
        if !self.families.contains(&IpFamily::of(endpoint.address)) {
            return;
        }
        if let Some(found) = self.ports.get_mut(port) {
            let fitter = |old: &Endpoint| endpoint.state < old.state;
            let place = (endpoint.address, endpoint.port);
            if found.get(&place).is_none_or(fitter) {
                found.insert(place, endpoint);
            }
        }
    }

    /// Adds an endpoint that is on no port: one of a headless Service has a name all the same.
    fn add_portless(&mut self, like: &Endpoint) {
        let family = IpFamily::of(like.address);
        let fitter = |old: &Endpoint| like.state < old.state;
        if self.service.is_headless()
            && self.families.contains(&family)
            && self.portless.get(&like.address).is_none_or(fitter)
        {
            let endpoint = Endpoint { port: Endpoint::NO_PORT, ..like.clone() };
            self.portless.insert(like.address, endpoint);
        }
    }

    /// The name that an endpoint has in the Service.
    fn hostname(&self, given: Option<&str>) -> Option<Box<str>> {
        let named = given.filter(|name| self.service.is_headless() && is_dns_label(name));
        named.map(Box::from)
    }

    fn add_slice(&mut self, slice: &EndpointSlice) {
        if slice.address_type == AddressType::Fqdn {
            return;
        }
        for given in &slice.endpoints {
            // The addresses of one entry are interchangeable; everybody uses the first.
            let Some(Ok(address)) = given.addresses.first().map(|address| address.parse()) else {
                continue;
            };
            let node = given.node_name.as_deref();
            let zone = given.zone.as_deref().or_else(|| self.zone(node));
            let like = Endpoint {
                address,
                port: 0,
                node: given.node_name.clone(),
                state: state_of(given.conditions),
                hints: hints_of(&given.hints),
                weight: self.weights.of(pod_of(given.target_ref.as_ref()), node, zone),
                hostname: self.hostname(given.hostname.as_deref()),
            };
            self.add_given(&like, &slice.ports);
        }
    }

    fn add_legacy(&mut self, endpoints: &kubernetes::Endpoints) {
        for subset in &endpoints.subsets {
            let ready = subset.addresses.iter().map(|at| (at, EndpointState::Ready));
            let not_ready = subset.not_ready_addresses.iter();
            let not_ready = not_ready.map(|at| (at, EndpointState::NotReady));
            for (at, state) in ready.chain(not_ready) {
                let (address, node) = (at.ip, at.node_name.clone());
                let (pod, zone) = (pod_of(at.target_ref.as_ref()), self.zone(node.as_deref()));
                let weight = self.weights.of(pod, node.as_deref(), zone);
                let hints = Hints::default();
                let hostname = self.hostname(at.hostname.as_deref());
                let like = Endpoint { address, port: 0, node, state, hints, weight, hostname };
                self.add_given(&like, &subset.ports);
            }
        }
    }

    /// Adds an endpoint `like` this on each of the ports.
    fn add_given(&mut self, like: &Endpoint, ports: &[EndpointPort]) {
        let mut is_on_none = true;
        for given in ports {
            let same =
                |port: &&ServicePort| port.name == given.name && port.protocol == given.protocol;
            if let (Some(number), true) =
                (given.port, self.service.spec.ports.iter().any(|port| same(&port)))
            {
                self.add(&given.name, Endpoint { port: number.get(), ..like.clone() });
                is_on_none = false;
            }
        }
        if is_on_none {
            self.add_portless(like);
        }
    }

    /// Where a node is.
    fn zone(&self, node: Option<&str>) -> Option<&'a str> {
        self.objects.nodes.get(node?)?.zone()
    }

    /// Adds a pod of this name to the Service called `of`.
    fn add_pod(&mut self, of: &str, name: &str, pod: &Pod) {
        if pod.has_ended() {
            return;
        }
        let node = pod.spec.node_name.as_deref();
        let zone = self.zone(node);
        let weight = self.weights.of(Some(name), node, zone);
        let service = self.service;
        let serving = pod.is_ready();
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let state = state_of(EndpointConditions {
            ready: Some(service.publishes_all() || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        });
        let hints = match state {
            EndpointState::Ready => hints_for(service, node, zone),
            // Nobody asks.
            EndpointState::ServingTerminating | EndpointState::NotReady => Hints::default(),
        };
        let is_in_it = pod.spec.subdomain.as_deref() == Some(of);
        let hostname = self.hostname(pod.spec.hostname.as_deref().filter(|_| is_in_it));
        for address in pod.addresses() {
            let like = Endpoint {
                address,
                port: 0,
                node: pod.spec.node_name.clone(),
                state,
                hints: hints.clone(),
                weight,
                hostname: hostname.clone(),
            };
            let mut is_on_none = true;
            for port in &service.spec.ports {
                if let Some(number) = pod.target_of(port) {
                    self.add(&port.name, Endpoint { port: number, ..like.clone() });
                    is_on_none = false;
                }
            }
            if is_on_none {
                self.add_portless(&like);
            }
        }
    }
}

/// Leaves out what is more than `room` bytes of JSON can tell, the last addresses first, and says how many
/// endpoints that were.
pub(crate) fn fit(endpoints: &mut Endpoints, room: usize) -> usize {
    let mut left = room;
    let mut left_out = 0;
    for (name, list) in &mut endpoints.ports {
        left = left.saturating_sub(name.len() + 8);
        let mut keep = 0;
        for endpoint in &*list {
            let size = most_json(endpoint);
            if size > left {
                break;
            }
            left -= size;
            keep += 1;
        }
        left_out += list.len() - keep;
        list.truncate(keep);
    }
    left_out
}

/// The bytes of its JSON at most; names have no characters that are escaped.
fn most_json(endpoint: &Endpoint) -> usize {
    const WITHOUT_NAMES: usize = 208;
    let Hints { zones, nodes } = &endpoint.hints;
    let hostname = endpoint.hostname.as_ref().map_or(0, |name| name.len());
    let names = endpoint.node.iter().chain(zones).chain(nodes);
    WITHOUT_NAMES + hostname + names.map(|name| name.len() + 3).sum::<usize>()
}

impl Pod {
    /// Whether none of its containers will ever run again.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status.phase, Some(Phase::Succeeded | Phase::Failed))
    }

    /// Its addresses, in order.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let single = self.status.pod_ip.filter(|_| self.status.pod_ips.is_empty());
        let several = self.status.pod_ips.iter().map(|pod_ip| pod_ip.ip);
        several.chain(single)
    }

    /// Its ports that have names, in order.
    pub(crate) fn named_ports(&self) -> impl Iterator<Item = NamedPort> {
        let ports = self.lasting_containers().flat_map(|container| &container.ports);
        ports.filter(|port| !port.name.is_empty()).map(|port| NamedPort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.container_port.get(),
        })
    }

    /// Whether it takes traffic: its `Ready` condition says so. A manifest without that condition
    /// is believed to be ready once it runs and has an address, unless it declares a probe whose
    /// outcome nobody reports.
    fn is_ready(&self) -> bool {
        let conditions = &self.status.conditions;
        match conditions.iter().find(|condition| condition.r#type == "Ready") {
            Some(ready) => ready.status == "True",
            None => {
                let probed =
                    |container: &kubernetes::Container| container.readiness_probe.is_some();
                self.status.phase == Some(Phase::Running) && !self.lasting_containers().any(probed)
            }
        }
    }

    /// The number behind a Service's port, if this pod has one.
    fn target_of(&self, port: &ServicePort) -> Option<u16> {
        match &port.target_port {
            None => Some(port.port.get()),
            Some(TargetPort::Number(number)) => Some(number.get()),
            Some(TargetPort::Name(name)) => {
                let mut declared = self.lasting_containers().flat_map(|of| &of.ports);
                let named = declared
                    .find(|declared| declared.name == *name && declared.protocol == port.protocol);
                named.map(|declared| declared.container_port.get())
            }
        }
    }

    /// Its containers, and those init containers that stay beside them.
    fn lasting_containers(&self) -> impl Iterator<Item = &kubernetes::Container> {
        let sidecars = self.spec.init_containers.iter();
        let sidecars =
            sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        self.spec.containers.iter().chain(sidecars)
    }
}

/// The name of the pod that an address is.
fn pod_of(target: Option<&kubernetes::TargetRef>) -> Option<&str> {
    target.filter(|target| target.kind == "Pod").map(|target| &*target.name)
}

/// Whose clients an endpoint on that node is meant for; nodes use hints only where all ready
/// endpoints have some.
fn hints_for(service: &Service, node: Option<&str>, zone: Option<&str>) -> Hints {
    let one = |name: Option<&str>| name.map(str::to_owned).into_iter().collect();
    match service.distribution() {
        None => Hints::default(),
        Some(TrafficDistribution::PreferClose | TrafficDistribution::PreferSameZone) => {
            Hints { zones: one(zone), nodes: Vec::new() }
        }
        Some(TrafficDistribution::PreferSameNode) => Hints { zones: one(zone), nodes: one(node) },
    }
}

fn hints_of(given: &EndpointHints) -> Hints {
    let names = |hints: &[kubernetes::Hint]| hints.iter().map(|hint| hint.name.clone()).collect();
    Hints { zones: names(&given.for_zones), nodes: names(&given.for_nodes) }
}

fn state_of(conditions: EndpointConditions) -> EndpointState {
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    match (ready, serving, conditions.terminating.unwrap_or(false)) {
        (true, _, _) => EndpointState::Ready,
        (false, true, true) => EndpointState::ServingTerminating,
        (false, _, _) => EndpointState::NotReady,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_for_a_line_is_left_out() {
        let endpoint = |number: u16| Endpoint {
            address: "fd00:ffff:ffff:ffff:ffff:ffff:255.255.255.255".parse().unwrap(),
            port: number,
            node: Some("n".repeat(253)),
            state: EndpointState::ServingTerminating,
            hints: Hints { zones: vec!["z".repeat(63); 8], nodes: vec!["n".repeat(253); 8] },
            weight: u16::MAX,
            hostname: Some("h".repeat(63).into()),
        };
        let list: Vec<_> = (1..=100).map(endpoint).collect();
        let one = serde_json::to_string(&endpoint(u16::MAX)).unwrap().len() + 1;
        let ports = [("a".to_owned(), list.clone()), ("b".to_owned(), list)].into();
        let mut endpoints = Endpoints { service: ObjectName::new("shop", "web"), ports };
        let whole = endpoints.clone();
        assert_eq!(fit(&mut endpoints, 2 * 200 * one), 0);
        assert_eq!(endpoints, whole);
        let room = 120 * one;
        let left_out = fit(&mut endpoints, room);
        let kept = [endpoints.ports["a"].len(), endpoints.ports["b"].len()];
        assert_eq!((kept[0], kept[1] + left_out), (100, 100));
        let written = serde_json::to_string(&endpoints.ports).unwrap().len();
        assert!(kept[1] > 0 && written <= room, "{kept:?}: {written} of {room}");
    }
}
