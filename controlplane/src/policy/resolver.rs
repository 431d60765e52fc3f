//! The DNS server that the agent of each node is: to policies a pod as CoreDNS' are, so that what lets pods ask
//! those lets them ask it.

use std::sync::LazyLock;

use fairway_abi::{Address as _, V4, V6};
use fairway_model::ObjectName;

use crate::kubernetes::{Objects, Pod, PodIp};

/// What it is called. No pod can have such a name.
pub(super) static NAME: LazyLock<ObjectName> =
    LazyLock::new(|| ObjectName::new("kube-system", "DNS of each node"));

/// As what it is known: by the addresses that it has on all nodes.
static POD: LazyLock<Pod> = LazyLock::new(|| {
    let mut pod = Pod::default();
    pod.metadata.labels.insert("k8s-app".to_owned(), "kube-dns".to_owned());
    pod.spec.containers = serde_json::from_value(serde_json::json!([{"ports": [
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
    ]}]))
    .expect("containers as they are written");
    pod.status.pod_ips = [V4::RESOLVER.into(), V6::RESOLVER.into()].map(|ip| PodIp { ip }).into();
    pod
});

/// The pod of that name, or the DNS server if it is that one's.
pub(super) fn pod<'a>(objects: &'a Objects, name: &ObjectName) -> Option<&'a Pod> {
    if *name == *NAME { Some(&*POD) } else { objects.pods.get(name).map(|pod| &**pod) }
}
