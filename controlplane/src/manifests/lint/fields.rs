//! Fields that Kubernetes does not know, and annotations that look like ours and are not.

use serde::de::{Deserialize, Deserializer, Error as _, Visitor};

use super::Item;
use crate::kubernetes::{Annotations, NodeAnnotations};
use crate::manifests::document::Located;
use crate::problem::Problem;

/// The beginning of our annotations.
const OURS: &str = "fairway.dev/";

const OBJECT: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];
const SERVICE: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "ports",
    "publishNotReadyAddresses",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "topologyKeys",
    "trafficDistribution",
    "type",
];
const SERVICE_PORT: &[&str] =
    &["appProtocol", "name", "nodePort", "port", "protocol", "targetPort"];
const SLICE: &[&str] = &["addressType", "apiVersion", "endpoints", "kind", "metadata", "ports"];
const ENDPOINT: &[&str] = &[
    "addresses",
    "conditions",
    "deprecatedTopology",
    "hints",
    "hostname",
    "nodeName",
    "targetRef",
    "zone",
];
const INGRESS: &[&str] = &["backend", "defaultBackend", "ingressClassName", "rules", "tls"];
const INGRESS_TLS: &[&str] = &["hosts", "secretName"];
const OF_INGRESSES: &[&str] = &["fairway.dev/nginx-paths"];
const OF_CLASSES: &[&str] = &["fairway.dev/gateway"];

/// Policies are not here: what nobody knows in them is refused.
pub(super) fn unknown(item: &Item<'_>) -> Vec<Problem> {
    let mut found = Found { item, problems: Vec::new() };
    let whole = item.located;
    match (item.group, item.kind) {
        ("", "Service") => {
            found.check("", Some(whole), OBJECT);
            found.check("spec", whole.get("spec"), SERVICE);
            found.check_all("spec.ports", whole.get("spec"), "ports", SERVICE_PORT);
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            found.check("", Some(whole), SLICE);
            found.check_all("endpoints", Some(whole), "endpoints", ENDPOINT);
        }
        ("networking.k8s.io" | "extensions", "Ingress") => {
            found.check("", Some(whole), OBJECT);
            found.check("spec", whole.get("spec"), INGRESS);
            found.check_all("spec.tls", whole.get("spec"), "tls", INGRESS_TLS);
        }
        ("", "Node" | "Pod") => found.check("", Some(whole), OBJECT),
        ("", "Namespace") | ("networking.k8s.io", "NetworkPolicy" | "IngressClass") => {}
        _ => return found.problems,
    }
    let metadata = whole.get("metadata");
    found.check("metadata", metadata, METADATA);
    let own = match item.kind {
        "Node" => known::<NodeAnnotations>(),
        "Ingress" => OF_INGRESSES,
        "IngressClass" => OF_CLASSES,
        _ => known::<Annotations>(),
    };
    found.annotations(metadata.and_then(|metadata| metadata.get("annotations")), own);
    found.problems
}

struct Found<'a> {
    item: &'a Item<'a>,
    problems: Vec<Problem>,
}

impl Found<'_> {
    /// Of the map `at` there: keys that are none of those known.
    fn check(&mut self, at: &str, map: Option<&Located>, known: &[&str]) {
        let unknown = map.into_iter().flat_map(Located::keys).filter(|key| !known.contains(key));
        for key in unknown {
            let field = if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
            let message = format!("no such field; it is ignored{}", meant(key, known));
            self.problems.push(self.item.warning(&field, message));
        }
    }

    /// The same of each map in a list.
    fn check_all(&mut self, at: &str, parent: Option<&Located>, list: &str, known: &[&str]) {
        let items = parent.and_then(|parent| parent.get(list)?.items()).unwrap_or_default();
        for (index, item) in items.iter().enumerate() {
            self.check(&format!("{at}[{index}]"), Some(item), known);
        }
    }

    fn annotations(&mut self, annotations: Option<&Located>, known: &[&str]) {
        let keys = annotations.into_iter().flat_map(Located::keys);
        for key in keys.filter(|key| key.starts_with(OURS) && !known.contains(key)) {
            let message = format!("no such annotation; it is ignored{}", meant(key, known));
            let field = format!("metadata.annotations.{key}");
            self.problems.push(self.item.warning(&field, message));
        }
    }
}

/// What was probably meant, if it is near.
fn meant(key: &str, known: &[&str]) -> String {
    let near = known.iter().map(|known| (distance(key, known), known)).min();
    match near {
        Some((distance, known)) if distance <= 3 && distance < known.len() / 2 => {
            format!("; is it {known}?")
        }
        _ => String::new(),
    }
}

/// How many letters have to be put in, left out or changed, whatever their case.
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (at, left) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (index, right) in other.chars().enumerate() {
            let changed = diagonal + usize::from(left != right);
            diagonal = row[index + 1];
            row[index + 1] = changed.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// The names by which a type's fields are read, so that none of ours is forgotten here.
fn known<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // It never gets a value, only asks for one.
    let _ = T::deserialize(Names(&mut names));
    names
}

struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_annotations_are_those_that_are_read() {
        assert!(known::<Annotations>().contains(&"fairway.dev/balancing"));
        assert!(known::<NodeAnnotations>().contains(&"fairway.dev/wireguard-public-key"));
    }

    #[test]
    fn what_is_near_was_meant() {
        assert_eq!(meant("sesionAffinity", SERVICE), "; is it sessionAffinity?");
        assert_eq!(meant("externalIps", SERVICE), "; is it externalIPs?");
        assert_eq!(meant("replicas", SERVICE), "");
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
