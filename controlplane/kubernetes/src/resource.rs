//! Where the API server has objects of each kind.

use std::borrow::Cow;
use std::fmt;

use fairway_controlplane::kubernetes::{Kind, ObjectId};
use fairway_model::ObjectName;

/// A kind's place, or that of one object.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) kind: Kind,
    /// The only object that is meant; `None`: all.
    pub(crate) name: Option<ObjectName>,
    /// Of its collection; of a kind, across namespaces.
    pub(crate) path: Cow<'static, str>,
    /// Some clusters do not have it: it comes with a newer release, or by a definition of its own.
    pub(crate) optional: bool,
}

/// Everything that is read, but for what objects name. Endpoints are not: the cluster's own controllers make slices of those that people
/// write, and newer clusters warn whoever reads the older kind.
pub(crate) const ALL: [Resource; 14] = [
    of(Kind::Namespace, "/api/v1/namespaces"),
    of(Kind::Node, "/api/v1/nodes"),
    of(Kind::Pod, "/api/v1/pods"),
    of(Kind::Service, "/api/v1/services"),
    of(Kind::EndpointSlice, "/apis/discovery.k8s.io/v1/endpointslices"),
    of(Kind::NetworkPolicy, "/apis/networking.k8s.io/v1/networkpolicies"),
    of(Kind::Ingress, "/apis/networking.k8s.io/v1/ingresses"),
    of(Kind::IngressClass, "/apis/networking.k8s.io/v1/ingressclasses"),
    perhaps(Kind::ServiceCIDR, "/apis/networking.k8s.io/v1/servicecidrs"),
    perhaps(
        Kind::ClusterNetworkPolicy,
        "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
    ),
    perhaps(
        Kind::AdminNetworkPolicy,
        "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies",
    ),
    perhaps(
        Kind::BaselineAdminNetworkPolicy,
        "/apis/policy.networking.k8s.io/v1alpha1/baselineadminnetworkpolicies",
    ),
    perhaps(Kind::IPAddressPool, "/apis/metallb.io/v1beta1/ipaddresspools"),
    perhaps(Kind::L2Advertisement, "/apis/metallb.io/v1beta1/l2advertisements"),
];

/// A Secret or ConfigMap. Who may read but this one may ask for it in this way (RBAC, `resourceNames`).
pub(crate) fn one(id: &ObjectId) -> Resource {
    let plural = if id.kind == Kind::Secret { "secrets" } else { "configmaps" };
    let path = format!("/api/v1/namespaces/{}/{plural}", id.name.namespace);
    Resource { name: Some(id.name.clone()), path: path.into(), ..of(id.kind, "") }
}

impl Resource {
    /// What is asked for, with a query that may be empty.
    pub(crate) fn uri(&self, query: &str) -> String {
        let path = &self.path;
        let one = self.name.as_ref();
        let one = one.map(|name| format!("fieldSelector=metadata.name%3D{}", name.name));
        let parts = one.as_deref().into_iter().chain([query]).filter(|part| !part.is_empty());
        match parts.collect::<Vec<_>>() {
            parts if parts.is_empty() => path.to_string(),
            parts => format!("{path}?{}", parts.join("&")),
        }
    }
}

/// `Pod`, `Secret shop/web`.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            None => self.kind.fmt(f),
            Some(name) => write!(f, "{} {name}", self.kind),
        }
    }
}

const fn of(kind: Kind, path: &'static str) -> Resource {
    place(kind, path, false)
}

const fn perhaps(kind: Kind, path: &'static str) -> Resource {
    place(kind, path, true)
}

const fn place(kind: Kind, path: &'static str, optional: bool) -> Resource {
    Resource { kind, name: None, path: Cow::Borrowed(path), optional }
}
