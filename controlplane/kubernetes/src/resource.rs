//! Where the API server has objects of each kind.

use fairway_controlplane::kubernetes::Kind;

/// A kind's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resource {
    pub(crate) kind: Kind,
    /// Of its collection, across namespaces.
    pub(crate) path: &'static str,
    /// Some clusters do not have it: it comes with a newer release, or by a definition of its own.
    pub(crate) optional: bool,
}

/// Everything that is read. Endpoints are not: the cluster's own controllers make slices of those that people
/// write, and newer clusters warn whoever reads the older kind.
pub(crate) const ALL: [Resource; 12] = [
    of(Kind::Namespace, "/api/v1/namespaces"),
    of(Kind::Node, "/api/v1/nodes"),
    of(Kind::Pod, "/api/v1/pods"),
    of(Kind::Service, "/api/v1/services"),
    of(Kind::EndpointSlice, "/apis/discovery.k8s.io/v1/endpointslices"),
    of(Kind::NetworkPolicy, "/apis/networking.k8s.io/v1/networkpolicies"),
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

/// Read only where something is to be written about them.
pub(crate) const INGRESSES: Resource = of(Kind::Ingress, "/apis/networking.k8s.io/v1/ingresses");

const fn of(kind: Kind, path: &'static str) -> Resource {
    Resource { kind, path, optional: false }
}

const fn perhaps(kind: Kind, path: &'static str) -> Resource {
    Resource { kind, path, optional: true }
}
