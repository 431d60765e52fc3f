//! Ingresses that lead nowhere, that want what an older one has, or that newer API servers do not know.

use std::collections::{BTreeMap, BTreeSet};

use fairway_model::ObjectName;

use super::Item;
use crate::ingress::annotations;
use crate::ingress::notices::{self, backends, leads_nowhere};
use crate::kubernetes::{Ingress, Service};
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
            let find = |name: &ObjectName| services.get(name);
            if let Some(error) = leads_nowhere(&item.name.namespace, &field, backend, find) {
                let message = error.message.replace("there is no", "these manifests have no");
                problems.push(item.warning(&error.field, message));
            }
        }
    }
    problems.extend(contested(&ingresses));
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

/// Paths that another Ingress of the class has, which goes before.
fn contested(ingresses: &[(&Item<'_>, Ingress)]) -> Vec<Problem> {
    // A canary is to have the path of another one.
    let ingresses: Vec<_> = ingresses
        .iter()
        .filter(|(_, ingress)| annotations::value(ingress, "canary") != Some("true"))
        .collect();
    let items: BTreeMap<_, _> = ingresses.iter().map(|(item, _)| (&item.name, item)).collect();
    let errors = notices::contested(
        // Those without a class have one in common.
        ingresses
            .iter()
            .map(|(item, of)| (&item.name, of, Some(of.class().map_or("", String::as_str))))
            .collect(),
    );
    let errors = errors.into_iter();
    errors.map(|(name, error)| items[name].warning(&error.field, error.message)).collect()
}
