//! What stands behind a Service: given by slices, given by the older kind, or derived from selector
//! and pods as Kubernetes' own controllers do it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fairway_model::{Endpoint, EndpointState, Endpoints, Hints, NamedPort, ObjectName};

use crate::kubernetes::{
    self, AddressType, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, IpFamily,
    Labels, Objects, Phase, Pod, Service, ServicePort, TargetPort, TrafficDistribution,
};
use crate::service::PROXY_NAME;
use crate::weights::Weights;

/// The label by which a slice names its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label of a slice whose Service has no address to balance at.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The bytes that the endpoints of one Service may take as JSON, with what else is in their line of the feed.
pub(crate) const ROOM: usize = fairway_feed::MAX_LINE - (1 << 20);

/// What the endpoints of all Services are looked up in, so that the cost of one does not depend on
/// the number of pods.
pub(crate) struct Sources<'a> {
    objects: &'a Objects,
    slices: HashMap<ObjectName, Vec<&'a EndpointSlice>>,
    /// By namespace and one label.
    pods: HashMap<(&'a str, &'a str, &'a str), Vec<NamedPod<'a>>>,
}

/// A pod and its name within its namespace.
type NamedPod<'a> = (&'a str, &'a Pod);

impl<'a> Sources<'a> {
    /// Indexes what `objects` holds.
    pub(crate) fn new(objects: &'a Objects) -> Self {
        let mut slices = HashMap::<_, Vec<_>>::new();
        for (name, slice) in &objects.endpoint_slices {
            let labels = &slice.metadata.labels;
            let ours = !labels.contains_key(PROXY_NAME);
            if let Some(service) = labels.get(SERVICE_NAME).filter(|_| ours) {
                let service = ObjectName::new(name.namespace.clone(), service);
                slices.entry(service).or_default().push(&**slice);
            }
        }
        let mut pods = HashMap::<_, Vec<_>>::new();
        for (name, pod) in &objects.pods {
            for (key, value) in &pod.metadata.labels {
                let label = (name.namespace.as_str(), key.as_str(), value.as_str());
                pods.entry(label).or_default().push((&*name.name, &**pod));
            }
        }
        Self { objects, slices, pods }
    }

    /// The endpoints of a Service in these families: an entry for each of its ports, if only an
    /// empty one. Slices win over the older kind, and what is given over what could be derived.
    pub(crate) fn of(
        &self,
        name: &ObjectName,
        service: &Service,
        families: &[IpFamily],
    ) -> Endpoints {
        let mut found = Found::new(self.objects, service, families);
        if self.has_slices(name, service) {
            self.slices_of(name, service).for_each(|slice| found.add_slice(slice));
        } else if let Some(endpoints) = self.objects.endpoints.get(name) {
            found.add_legacy(endpoints);
        } else if !service.spec.selector.is_empty() {
            for (pod_name, pod) in self.selected(&name.namespace, &service.spec.selector) {
                found.add_pod(pod_name, pod);
            }
        }
        found.finish(name)
    }

    /// Whether slices say what stands behind a Service.
    pub(crate) fn has_slices(&self, name: &ObjectName, service: &Service) -> bool {
        self.slices_of(name, service).next().is_some()
    }

    fn slices_of<'b>(
        &'b self,
        name: &ObjectName,
        service: &Service,
    ) -> impl Iterator<Item = &'a EndpointSlice> + use<'a, 'b> {
        let headless = service.is_headless();
        let slices = self.slices.get(name).into_iter().flatten().copied();
        // Those of a headless Service of that name are not those of its successor.
        slices.filter(move |slice| headless || !slice.metadata.labels.contains_key(HEADLESS))
    }

    fn selected<'b>(
        &'b self,
        namespace: &'b str,
        selector: &'b Labels,
    ) -> impl Iterator<Item = NamedPod<'a>> + 'b {
        let candidates = selector.iter().map(|(key, value)| {
            let label = (namespace, key.as_str(), value.as_str());
            self.pods.get(&label).map_or(&[][..], Vec::as_slice)
        });
        let fewest = candidates.min_by_key(|pods| pods.len()).unwrap_or_default();
        let fits = |(_, pod): &NamedPod<'a>| {
            let labels = &pod.metadata.labels;
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        fewest.iter().copied().filter(fits)
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
        }
    }

    fn finish(self, name: &ObjectName) -> Endpoints {
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
                let like = Endpoint { address, port: 0, node, state, hints, weight };
                self.add_given(&like, &subset.ports);
            }
        }
    }

    /// Adds an endpoint `like` this on each of the ports.
    fn add_given(&mut self, like: &Endpoint, ports: &[EndpointPort]) {
        for given in ports {
            let same =
                |port: &&ServicePort| port.name == given.name && port.protocol == given.protocol;
            if let (Some(number), true) =
                (given.port, self.service.spec.ports.iter().any(|port| same(&port)))
            {
                self.add(&given.name, Endpoint { port: number.get(), ..like.clone() });
            }
        }
    }

    /// Where a node is.
    fn zone(&self, node: Option<&str>) -> Option<&'a str> {
        self.objects.nodes.get(node?)?.zone()
    }

    /// Adds a pod of this name.
    fn add_pod(&mut self, name: &str, pod: &Pod) {
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
            ready: Some(service.spec.publish_not_ready_addresses || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        });
        let hints = match state {
            EndpointState::Ready => hints_for(service, node, zone),
            // Nobody asks.
            EndpointState::ServingTerminating | EndpointState::NotReady => Hints::default(),
        };
        for port in &service.spec.ports {
            let Some(number) = pod.target_of(port) else {
                continue;
            };
            for address in pod.addresses() {
                let endpoint = Endpoint {
                    address,
                    port: number,
                    node: pod.spec.node_name.clone(),
                    state,
                    hints: hints.clone(),
                    weight,
                };
                self.add(&port.name, endpoint);
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
    const WITHOUT_NAMES: usize = 192;
    let Hints { zones, nodes } = &endpoint.hints;
    let names = endpoint.node.iter().chain(zones).chain(nodes);
    WITHOUT_NAMES + names.map(|name| name.len() + 3).sum::<usize>()
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
