//! What can be read and is probably a mistake all the same: for whoever checks manifests before they count.
//!
//! Manifests that people keep have Deployments rather than pods, so the pods that a workload would make count
//! like others. What no manifest has at all is not missed, nor pods where a namespace has none: somebody else
//! may make it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use fairway_model::ObjectName;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::document::{self, Located};
use super::folder::Listing;
use crate::kubernetes::policy::{LabelSelector, NetworkPolicy, PolicyType};
use crate::kubernetes::{EndpointSlice, Labels, Pod, Service, ServicePort, TargetPort};
use crate::policy::Requirements;
use crate::problem::{Problem, Severity};

mod certificates;
mod fields;
mod ingresses;

/// What is wrong with these manifests at that moment.
pub(super) fn lint(listing: &Listing, now: SystemTime) -> Vec<Problem> {
    let mut documents = Vec::new();
    for (path, text) in &listing.files {
        for document in document::split(text.as_deref().unwrap_or_default()) {
            // What cannot be read is told by whoever reads it for what it says.
            documents.extend(document.read().ok().flatten().map(|located| (&**path, located)));
        }
    }
    let items: Vec<_> =
        documents.iter().flat_map(|(path, located)| Item::all(path, located)).collect();
    let mut problems: Vec<_> = items.iter().flat_map(fields::unknown).collect();
    let pods = Pods::of(&items);
    problems.extend(services(&items, &pods));
    problems.extend(policies(&items, &pods));
    problems.extend(certificates::check(&items, now));
    problems.extend(ingresses::check(&items));
    problems
}

/// An object of any kind.
struct Item<'a> {
    path: &'a Path,
    located: &'a Located,
    /// Without its version.
    group: &'a str,
    kind: &'a str,
    name: ObjectName,
}

impl<'a> Item<'a> {
    /// The object, or all of a list.
    fn all(path: &'a Path, located: &'a Located) -> Vec<Self> {
        let kind = located.get("kind").and_then(Located::as_str).unwrap_or_default();
        match (kind.strip_suffix("List"), located.get("items").and_then(Located::items)) {
            (Some(kind), Some(items)) => items
                .iter()
                .filter_map(|item| Self::of(path, item, Some((located, kind))))
                .collect(),
            _ => Self::of(path, located, None).into_iter().collect(),
        }
    }

    fn of(
        path: &'a Path,
        located: &'a Located,
        list: Option<(&'a Located, &'a str)>,
    ) -> Option<Self> {
        fn text<'a>(of: &'a Located, field: &str) -> Option<&'a str> {
            of.get(field)?.as_str()
        }
        let version = text(located, "apiVersion").or_else(|| text(list?.0, "apiVersion"));
        let group = version?.split_once('/').map_or("", |(group, _)| group);
        let kind = text(located, "kind").or(list.map(|(_, kind)| kind))?;
        let metadata = located.get("metadata")?;
        let namespace = text(metadata, "namespace").unwrap_or("default");
        let name = ObjectName::new(namespace, text(metadata, "name")?);
        Some(Self { path, located, group, kind, name })
    }

    fn is(&self, group: &str, kind: &str) -> bool {
        (self.group, self.kind) == (group, kind)
    }

    fn is_ingress(&self) -> bool {
        self.is("networking.k8s.io", "Ingress") || self.is("extensions", "Ingress")
    }

    /// What it says, if that can be read.
    fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_value(self.located.to_value()).ok()
    }

    fn problem(&self, severity: Severity, field: &str, message: String) -> Problem {
        Problem {
            line: Some(self.located.line_of(field)),
            object: Some(format!("{} {}", self.kind, self.name)),
            field: Some(field.to_owned()),
            severity,
            ..Problem::in_file(self.path, message)
        }
    }

    fn warning(&self, field: &str, message: String) -> Problem {
        self.problem(Severity::Warning, field, message)
    }
}

/// The pods that there are or would be, by namespace; of those namespaces that have any.
struct Pods(BTreeMap<String, Vec<Pod>>);

impl Pods {
    fn of(items: &[Item<'_>]) -> Self {
        let mut pods = BTreeMap::<_, Vec<_>>::new();
        for item in items {
            let value = item.located.to_value();
            let made = match (item.group, item.kind) {
                ("", "Pod") => Some(value),
                ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
                | ("", "ReplicationController")
                | ("batch", "Job") => value.pointer("/spec/template").cloned(),
                ("batch", "CronJob") => value.pointer("/spec/jobTemplate/spec/template").cloned(),
                _ => None,
            };
            let made = made.and_then(|value: Value| serde_json::from_value(value).ok());
            pods.entry(item.name.namespace.clone()).or_default().extend(made);
        }
        pods.retain(|_, pods| !pods.is_empty());
        Self(pods)
    }

    /// Whether the namespace has any; if not, its pods may be in other manifests.
    fn are_in(&self, namespace: &str) -> bool {
        self.0.contains_key(namespace)
    }

    fn selected(&self, namespace: &str, fits: impl Fn(&Labels) -> bool) -> Vec<&Pod> {
        let all = self.0.get(namespace).into_iter().flatten();
        all.filter(|pod| fits(&pod.metadata.labels)).collect()
    }
}

/// Services that no pod is behind, or not with that port.
fn services(items: &[Item<'_>], pods: &Pods) -> Vec<Problem> {
    let slices = items.iter().filter(|item| item.is("discovery.k8s.io", "EndpointSlice"));
    let given: BTreeSet<_> = slices
        .filter_map(|item| {
            let labels = item.read::<EndpointSlice>()?.metadata.labels;
            let service = labels.get(crate::endpoints::SERVICE_NAME)?;
            Some(ObjectName::new(item.name.namespace.clone(), service))
        })
        .collect();
    let mut problems = Vec::new();
    for item in items.iter().filter(|item| item.is("", "Service") && !given.contains(&item.name)) {
        let Some(service) = item.read::<Service>() else { continue };
        let selector = &service.spec.selector;
        let namespace = &item.name.namespace;
        if selector.is_empty() || !service.may_hold_numbers() || !pods.are_in(namespace) {
            continue;
        }
        let behind = pods.selected(namespace, |labels| {
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        if behind.is_empty() {
            if !selector.keys().any(|key| is_added(key)) {
                problems.push(item.warning("spec.selector", NOBODY.to_owned()));
            }
            continue;
        }
        for (index, port) in service.spec.ports.iter().enumerate() {
            let message = match &port.target_port {
                _ if behind.iter().any(|pod| may_answer(pod, port)) => continue,
                Some(TargetPort::Name(name)) => {
                    format!(
                        "none of the pods that it selects has a {} port \"{name}\"",
                        port.protocol
                    )
                }
                Some(TargetPort::Number(_)) | None => {
                    let number = target(port);
                    format!(
                        "the pods that it selects have ports, but no {} {number}",
                        port.protocol
                    )
                }
            };
            let field = if port.target_port.is_some() { "targetPort" } else { "port" };
            problems.push(item.warning(&format!("spec.ports[{index}].{field}"), message));
        }
    }
    problems
}

const NOBODY: &str = "selects none of the pods in these manifests";

/// Labels that controllers add to the pods that they make.
const ADDED: &[&str] = &[
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// Whether controllers add this label. No template has it, so whom it selects cannot be told from manifests.
fn is_added(key: &str) -> bool {
    ADDED.contains(&key)
}

fn target(port: &ServicePort) -> u16 {
    match port.target_port {
        Some(TargetPort::Number(number)) => number.get(),
        _ => port.port.get(),
    }
}

/// Whether the pod has the port, as far as it says what ports it has; nobody has to say numbers.
fn may_answer(pod: &Pod, port: &ServicePort) -> bool {
    let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let mut declared = containers.flat_map(|container| &container.ports).peekable();
    if let Some(TargetPort::Name(name)) = &port.target_port {
        return declared.any(|of| of.name == *name && of.protocol == port.protocol);
    }
    let number = target(port);
    declared.peek().is_none()
        || declared.any(|of| of.container_port.get() == number && of.protocol == port.protocol)
}

/// Policies that restrict nobody, and peers of their own namespace that are nobody.
fn policies(items: &[Item<'_>], pods: &Pods) -> Vec<Problem> {
    let mut problems = Vec::new();
    for item in items.iter().filter(|item| item.is("networking.k8s.io", "NetworkPolicy")) {
        let mut value = item.located.to_value();
        let Some(spec) = value.get_mut("spec").map(Value::take) else { continue };
        let Ok(NetworkPolicy { spec }) = serde_json::from_value(serde_json::json!({"spec": spec}))
        else {
            continue;
        };
        let namespace = &item.name.namespace;
        if !pods.are_in(namespace) {
            continue;
        }
        let selected = |selector: &LabelSelector| {
            let means = Requirements::from(selector);
            pods.selected(namespace, |labels| means.hold(labels))
        };
        let means_nobody = |selector: &LabelSelector| {
            selected(selector).is_empty() && !Requirements::from(selector).keys().any(is_added)
        };
        let restricted = selected(&spec.pod_selector);
        if means_nobody(&spec.pod_selector) {
            problems.push(item.warning("spec.podSelector", NOBODY.to_owned()));
        }
        let from = spec.ingress.iter().flatten().enumerate();
        let from = from.flat_map(|(at, rule)| {
            let peers = rule.from.iter().enumerate();
            peers.map(move |(index, peer)| (format!("spec.ingress[{at}].from[{index}]"), peer))
        });
        let to = spec.egress.iter().flatten().enumerate();
        let to = to.flat_map(|(at, rule)| {
            let peers = rule.to.iter().enumerate();
            peers.map(move |(index, peer)| (format!("spec.egress[{at}].to[{index}]"), peer))
        });
        for (field, peer) in from.chain(to) {
            if let (Some(selector), None) = (&peer.pod_selector, &peer.namespace_selector)
                && means_nobody(selector)
            {
                problems.push(item.warning(&format!("{field}.podSelector"), NOBODY.to_owned()));
            }
        }
        let restricts_ingress =
            spec.policy_types.is_empty() || spec.policy_types.contains(&PolicyType::Ingress);
        for (at, rule) in spec.ingress.iter().flatten().enumerate().filter(|_| restricts_ingress) {
            for (index, port) in rule.ports.iter().enumerate() {
                let Some(TargetPort::Name(name)) = &port.port else { continue };
                let has = |pod: &&Pod| {
                    pod.named_ports().any(|of| of.name == *name && of.protocol == port.protocol)
                };
                if !restricted.is_empty() && !restricted.iter().any(has) {
                    let field = format!("spec.ingress[{at}].ports[{index}].port");
                    let protocol = port.protocol;
                    let message = format!(
                        "none of the pods that it restricts has a {protocol} port \"{name}\""
                    );
                    problems.push(item.warning(&field, message));
                }
            }
        }
    }
    problems
}
