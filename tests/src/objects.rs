//! Kubernetes objects as the lab keeps them: the JSON a user gave, under a checked identity.
//!
//! The JSON stays as it came, so that whoever reads the folder of manifests sees the fields that
//! the lab itself does not know. The typed views of `spec` are taken where they are needed.

use std::fmt;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kinds that a lab can act on.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[value(rename_all = "lower")]
pub enum Kind {
    /// Scope of names.
    Namespace,
    /// Written by the lab alone.
    Node,
    /// Stable frontends for pods.
    #[value(alias = "svc", alias = "services")]
    Service,
    /// Given endpoints of a Service, old shape.
    #[value(alias = "ep")]
    Endpoints,
    /// Given endpoints of a Service.
    EndpointSlice,
    /// Whom the pods of a namespace may talk to.
    #[value(alias = "netpol")]
    NetworkPolicy,
    /// Whom pods may talk to, said for the whole cluster.
    #[value(alias = "cnp")]
    ClusterNetworkPolicy,
    /// The same, before.
    #[value(alias = "anp")]
    AdminNetworkPolicy,
    /// The same where nobody else says anything, before.
    #[value(alias = "banp")]
    BaselineAdminNetworkPolicy,
    /// Addresses for Services of type LoadBalancer.
    IPAddressPool,
    /// Where these are announced.
    L2Advertisement,
    /// What somebody calls classes of Ingresses, and who serves them.
    IngressClass,
    /// What is nobody else's business, such as the keys of certificates.
    Secret,
    /// Settings of gateways, among others.
    #[value(alias = "cm")]
    ConfigMap,
    /// Hosts and paths that lead to Services.
    #[value(alias = "ing")]
    Ingress,
    /// One instance of a workload.
    #[value(alias = "po", alias = "pods")]
    Pod,
    /// The oldest way to ask for copies of a pod.
    #[value(alias = "rc")]
    ReplicationController,
    /// Copies of a pod.
    #[value(alias = "rs")]
    ReplicaSet,
    /// ReplicaSets, rolled from one template to the next.
    #[value(alias = "deploy")]
    Deployment,
    /// One pod on every node.
    #[value(alias = "ds")]
    DaemonSet,
    /// Numbered pods, started in order.
    #[value(alias = "sts")]
    StatefulSet,
}

impl Kind {
    const ALL: [Self; 21] = [
        Self::Namespace,
        Self::Node,
        Self::Service,
        Self::Endpoints,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::IPAddressPool,
        Self::L2Advertisement,
        Self::IngressClass,
        Self::Secret,
        Self::ConfigMap,
        Self::Ingress,
        Self::Pod,
        Self::ReplicationController,
        Self::ReplicaSet,
        Self::Deployment,
        Self::DaemonSet,
        Self::StatefulSet,
    ];

    /// As `kind:` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::Endpoints => "Endpoints",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::IPAddressPool => "IPAddressPool",
            Self::L2Advertisement => "L2Advertisement",
            Self::IngressClass => "IngressClass",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::Ingress => "Ingress",
            Self::Pod => "Pod",
            Self::ReplicationController => "ReplicationController",
            Self::ReplicaSet => "ReplicaSet",
            Self::Deployment => "Deployment",
            Self::DaemonSet => "DaemonSet",
            Self::StatefulSet => "StatefulSet",
        }
    }

    /// Makes pods.
    pub fn is_workload(self) -> bool {
        matches!(
            self,
            Self::ReplicationController
                | Self::ReplicaSet
                | Self::Deployment
                | Self::DaemonSet
                | Self::StatefulSet
        )
    }

    /// Lives in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(
            self,
            Self::Namespace
                | Self::Node
                | Self::IngressClass
                | Self::ClusterNetworkPolicy
                | Self::AdminNetworkPolicy
                | Self::BaselineAdminNetworkPolicy
        )
    }

    /// The API versions under which tutorials of any age spell this kind.
    fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace
            | Self::Node
            | Self::Service
            | Self::Endpoints
            | Self::Secret
            | Self::ConfigMap
            | Self::Pod
            | Self::ReplicationController => &["v1"],
            Self::IngressClass => &["networking.k8s.io/v1", "networking.k8s.io/v1beta1"],
            Self::Ingress => {
                &["networking.k8s.io/v1", "networking.k8s.io/v1beta1", "extensions/v1beta1"]
            }
            Self::EndpointSlice => &["discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"],
            Self::NetworkPolicy => &["networking.k8s.io/v1"],
            Self::ClusterNetworkPolicy => &["policy.networking.k8s.io/v1alpha2"],
            Self::IPAddressPool | Self::L2Advertisement => &["metallb.io/v1beta1"],
            Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy => {
                &["policy.networking.k8s.io/v1alpha1"]
            }
            Self::ReplicaSet | Self::Deployment | Self::DaemonSet | Self::StatefulSet => {
                &["apps/v1", "apps/v1beta2", "apps/v1beta1", "extensions/v1beta1"]
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An object's identity; displayed as `Kind namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Empty for kinds without namespace.
    pub namespace: String,
    /// Unique within kind and namespace.
    pub name: String,
}

impl Key {
    /// The key of a namespaced object, or of another one, whose namespace is then dropped.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.is_namespaced() { namespace } else { "" };
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Of an object as a lab keeps it; `None` if it is of another kind.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let kind = object["kind"].as_str()?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        Some(Self::new(kind, text("namespace"), text("name")))
    }

    /// A file name that no other object has.
    pub fn file_name(&self) -> String {
        let kind = self.kind.as_str().to_lowercase();
        if self.namespace.is_empty() {
            format!("{kind}.{}.json", self.name)
        } else {
            format!("{kind}.{}.{}.json", self.namespace, self.name)
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// What a document turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Document {
    /// An object to act on, with `metadata.namespace` filled in.
    Object(Key, Value),
    /// Something well-formed that a lab has no use for, by its name.
    Unknown(String),
}

impl Document {
    /// Reads the identity of one Kubernetes object.
    pub(crate) fn of(mut object: Value) -> Result<Self> {
        let kind_name = text(&object, "/kind").context("kind: missing; every object has one")?;
        let name = text(&object, "/metadata/name");
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == kind_name) else {
            return Ok(Self::Unknown(format!("{kind_name} {}", name.unwrap_or_default())));
        };
        let name = name.with_context(|| format!("{kind}: metadata.name: missing"))?;
        check_name(&name, 253).with_context(|| format!("{kind} {name:?}: metadata.name"))?;
        let namespace = match text(&object, "/metadata/namespace") {
            Some(namespace) if kind.is_namespaced() => namespace,
            _ => "default".to_owned(),
        };
        if namespace.contains('.') {
            bail!("{kind} {name}: metadata.namespace: {namespace:?} contains a dot");
        }
        check_name(&namespace, 63)
            .with_context(|| format!("{kind} {name}: metadata.namespace {namespace:?}"))?;

        let key = Key::new(kind, &namespace, &name);
        let version = text(&object, "/apiVersion").with_context(|| {
            format!("{key}: apiVersion: missing; use {}", kind.api_versions()[0])
        })?;
        if !kind.api_versions().contains(&version.as_str()) {
            bail!(
                "{key}: apiVersion: {version:?} has no {kind}; it is in {}",
                kind.api_versions().join(", ")
            );
        }
        if kind.is_namespaced() {
            object["metadata"]["namespace"] = namespace.into();
        }
        Ok(Self::Object(key, object))
    }
}

/// A typed view of `object`; an error names the object and the path of the field.
pub(crate) fn view<T: DeserializeOwned>(key: &Key, object: &Value) -> Result<T> {
    serde_path_to_error::deserialize(object)
        .map_err(|error| anyhow::anyhow!("{key}: {}: {}", error.path(), error.inner()))
}

/// The string at a JSON pointer.
pub(crate) fn text(object: &Value, pointer: &str) -> Option<String> {
    object.pointer(pointer)?.as_str().map(str::to_owned)
}

/// DNS subdomain or label: what may be part of a file's or namespace's name.
fn check_name(name: &str, longest: usize) -> Result<()> {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let labels_are_fine = name.split('.').all(|label| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
            && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
    });
    if !labels_are_fine || name.len() > longest {
        bail!(
            "not a DNS name: lower-case letters, digits, '-' and '.', at most {longest} characters"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(object: Value) -> String {
        format!("{:#}", Document::of(object).unwrap_err())
    }

    #[test]
    fn identity_is_read_and_the_namespace_filled_in() {
        let document = Document::of(json!({
            "apiVersion": "extensions/v1beta1", "kind": "Deployment", "metadata": {"name": "web"},
        }))
        .unwrap();
        let Document::Object(key, object) = document else {
            panic!("{document:?}");
        };
        assert_eq!(key.to_string(), "Deployment default/web");
        assert_eq!(key.file_name(), "deployment.default.web.json");
        assert_eq!(object["metadata"]["namespace"], "default");

        let unknown =
            Document::of(json!({"kind": "ServiceCIDR", "metadata": {"name": "door"}})).unwrap();
        assert_eq!(unknown, Document::Unknown("ServiceCIDR door".to_owned()));
    }

    #[test]
    fn objects_without_identity_are_refused_by_field() {
        let check = |object, expected: &str| {
            let error = refused(object);
            assert!(error.contains(expected), "{error}");
        };
        check(json!({"metadata": {"name": "a"}}), "kind: missing");
        check(json!({"kind": "Pod"}), "Pod: metadata.name: missing");
        check(
            json!({"kind": "Pod", "metadata": {"name": "../../etc"}}),
            "metadata.name: not a DNS name",
        );
        check(
            json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "b.c"}}),
            "metadata.namespace",
        );
        check(
            json!({"kind": "Pod", "metadata": {"name": "a"}}),
            "Pod default/a: apiVersion: missing",
        );
        check(
            json!({"kind": "Deployment", "apiVersion": "v1", "metadata": {"name": "a"}}),
            "\"v1\" has no Deployment",
        );
    }
}
