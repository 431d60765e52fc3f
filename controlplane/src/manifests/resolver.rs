//! The Service of the cluster's DNS server, where manifests have none: the agents answer in its place.

use std::net::IpAddr;
use std::sync::Arc;

use fairway_model::ObjectName;
use ipnet::IpNet;
use serde_json::json;

use crate::allocate::{nth, usable};
use crate::kubernetes::{Objects, Service};

/// Its place in each range of Services: where kubeadm puts it, and kubelets look for it.
const PLACE: u128 = 10;

/// Adds the Service of that name to the objects, unless they have it, or another one asks for an address of
/// its: then that is the DNS server's.
pub(super) fn add(objects: &mut Objects, name: &ObjectName, ranges: &[IpNet]) {
    let addresses: Vec<IpAddr> = ranges.iter().filter_map(address).collect();
    let asks = |service: &Arc<Service>| {
        service.requested_ips().iter().any(|asked| addresses.contains(asked))
    };
    if objects.services.contains_key(name) || objects.services.values().any(asks) {
        return;
    }
    let port = |name, protocol| json!({"name": name, "protocol": protocol, "port": 53});
    let service = json!({
        "metadata": {"labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true"}},
        "spec": {
            "clusterIPs": addresses,
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    });
    let service: Service = serde_json::from_value(service).expect("a Service as they are written");
    objects.services.insert(name.clone(), Arc::new(service));
}

/// None where the range is too small.
fn address(range: &IpNet) -> Option<IpAddr> {
    Some(nth(range, PLACE)).filter(|address| usable(range, *address))
}
