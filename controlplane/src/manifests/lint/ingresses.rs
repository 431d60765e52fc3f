//! Ingresses that lead nowhere, that want what an older one has, or that newer API servers do not know.

use std::collections::{BTreeMap, BTreeSet};

use fairway_model::{Backend, BackendPort, ObjectName};

use super::Item;
use crate::ingress::annotations;
use crate::kubernetes::ingress::IngressBackend;
use crate::kubernetes::{Ingress, Service, ServiceType};
use crate::manifests::document::Located;
use crate::problem::Problem;

/// The version that API servers have since 1.19, and alone since 1.22.
const V1: &str = "networking.k8s.io/v1";

/// What is likely to be a mistake.
pub(super) fn check(items: &[Item<'_>]) -> Vec<Problem> {
    let mut problems = old_versions(items);
    let ingresses: Vec<_> = items
        .iter()
        .filter(|item| item.is_ingress())
        .filter_map(|item| Some((item, item.read::<Ingress>()?)))
        .collect();
    let services: BTreeMap<_, _> = items
        .iter()
        .filter(|item| item.is("", "Service"))
        .filter_map(|item| Some((&item.name, item.read::<Service>()?)))
        .collect();
    let namespaces: BTreeSet<_> = services.keys().map(|name| &name.namespace).collect();
    for (item, ingress) in &ingresses {
        // Where none is written down, others may make them.
        if !namespaces.contains(&item.name.namespace) {
            continue;
        }
        for (field, backend) in backends(ingress) {
            let Ok(Some(Backend { service, port })) = backend.port() else { continue };
            let name = ObjectName::new(&item.name.namespace, &service);
            let (of_service, of_port) = match &backend.service {
                Some(_) => (".service.name", ".service.port"),
                None => (".serviceName", ".servicePort"),
            };
            let Some(found) = services.get(&name) else {
                let message = format!("these manifests have no Service {name}");
                problems.push(item.warning(&format!("{field}{of_service}"), message));
                continue;
            };
            let has = found.spec.ports.iter().any(|of| match &port {
                BackendPort::Number(number) => of.port.get() == *number,
                BackendPort::Name(name) => of.name == *name,
            });
            if !has && found.spec.r#type != ServiceType::ExternalName {
                let message = format!("Service {name} has no port {port}");
                problems.push(item.warning(&format!("{field}{of_port}"), message));
            }
        }
    }
    problems.extend(contested(ingresses));
    problems
}

fn old_versions(items: &[Item<'_>]) -> Vec<Problem> {
    let old = items.iter().filter_map(|item| {
        let is_one = item.is_ingress() || item.is("networking.k8s.io", "IngressClass");
        let version = item.located.get("apiVersion").and_then(Located::as_str)?;
        let message = format!("API servers since 1.22 do not know {version}; say {V1}");
        (is_one && version != V1).then(|| item.warning("apiVersion", message))
    });
    old.collect()
}

/// All backends, with their fields.
fn backends(ingress: &Ingress) -> impl Iterator<Item = (String, &IngressBackend)> {
    let default = ingress.default_backend();
    let default = default.map(|(field, backend)| (field.to_owned(), backend));
    let of_paths = ingress.paths().map(|(rule, at, path)| {
        (format!("spec.rules[{rule}].http.paths[{at}].backend"), &path.backend)
    });
    default.into_iter().chain(of_paths)
}

/// Paths that another Ingress of the class has, which goes before.
fn contested(mut ingresses: Vec<(&Item<'_>, Ingress)>) -> Vec<Problem> {
    // A canary is to have the path of another one.
    ingresses.retain(|(_, ingress)| annotations::value(ingress, "canary") != Some("true"));
    ingresses
        .sort_by_key(|(item, ingress)| (ingress.metadata.creation_timestamp, item.name.clone()));
    let mut first = BTreeMap::new();
    let mut problems = Vec::new();
    for (item, ingress) in &ingresses {
        for (rule, at, path) in ingress.paths() {
            let host = ingress.spec.rules[rule].host.to_ascii_lowercase();
            let exact = path.path_type == Some(crate::kubernetes::ingress::PathType::Exact);
            let text = if path.path.is_empty() { "/" } else { path.path.as_str() };
            let key = (ingress.class(), host, text, exact);
            let holder = *first.entry(key).or_insert(&item.name);
            if *holder != item.name {
                let field = format!("spec.rules[{rule}].http.paths[{at}].path");
                let message = format!(
                    "Ingress {holder} has the same host and path, and goes before: it is older or, of \
                     one age, the first by name"
                );
                problems.push(item.warning(&field, message));
            }
        }
    }
    problems
}
