//! What stands behind a Service: given by slices, given by the older kind, or derived from selector
//! and pods as Kubernetes' own controllers do it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fairway_model::{Endpoint, EndpointState, Endpoints, Hints, ObjectName};

use crate::kubernetes::{
    self, AddressType, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, IpFamily,
    Labels, Objects, Phase, Pod, Service, ServicePort, TargetPort, TrafficDistribution,
};
use crate::service::PROXY_NAME;

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label of a slice whose Service has no address to balance at.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What the endpoints of all Services are looked up in, so that the cost of one does not depend on
/// the number of pods.
pub(crate) struct Sources<'a> {
    objects: &'a Objects,
    slices: HashMap<ObjectName, Vec<&'a EndpointSlice>>,
    /// By namespace and one label.
    pods: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Pod>>,
}

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
                pods.entry(label).or_default().push(&**pod);
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
        let mut found = Found::new(service, families);
        if self.has_slices(name, service) {
            self.slices_of(name, service).for_each(|slice| found.add_slice(slice));
        } else if let Some(endpoints) = self.objects.endpoints.get(name) {
            found.add_legacy(endpoints);
        } else if !service.spec.selector.is_empty() {
            for pod in self.selected(&name.namespace, &service.spec.selector) {
                let node = pod.spec.node_name.as_ref();
                let node = node.and_then(|node| self.objects.nodes.get(node));
                found.add_pod(pod, node.and_then(|node| node.zone()));
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
    ) -> impl Iterator<Item = &'a Pod> + 'b {
        let candidates = selector.iter().map(|(key, value)| {
            let label = (namespace, key.as_str(), value.as_str());
            self.pods.get(&label).map_or(&[][..], Vec::as_slice)
        });
        let fewest = candidates.min_by_key(|pods| pods.len()).unwrap_or_default();
        let fits = |pod: &&Pod| {
            let labels = &pod.metadata.labels;
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        fewest.iter().copied().filter(fits)
    }
}

/// Endpoints as they are found, by port.
struct Found<'a> {
    service: &'a Service,
    families: &'a [IpFamily],
    /// By port name; of two finds of one address and port the fitter stays.
    ports: BTreeMap<&'a str, BTreeMap<(IpAddr, u16), Endpoint>>,
}

impl<'a> Found<'a> {
    fn new(service: &'a Service, families: &'a [IpFamily]) -> Self {
        let ports = service.spec.ports.iter();
        Self {
            service,
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
            let like = Endpoint {
                address,
                port: 0,
                node: given.node_name.clone(),
                state: state_of(given.conditions),
                hints: hints_of(&given.hints),
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
                let like = Endpoint { address, port: 0, node, state, hints: Hints::default() };
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

    /// Adds a pod on a node of that zone.
    fn add_pod(&mut self, pod: &Pod, zone: Option<&str>) {
        if pod.has_ended() {
            return;
        }
        let service = self.service;
        let serving = pod.is_ready();
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let state = state_of(EndpointConditions {
            ready: Some(service.spec.publish_not_ready_addresses || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        });
        let hints = match state {
            EndpointState::Ready => hints_for(service, pod.spec.node_name.as_deref(), zone),
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
                };
                self.add(&port.name, endpoint);
            }
        }
    }
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
