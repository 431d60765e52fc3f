//! What a node that runs alone knows better than its manifests.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairway_model::ObjectName;

use super::LocalPod;
use crate::kubernetes::{Condition, Objects, Phase, PodIp};

/// Fills in what the status of each registered pod leaves open. On a node with a kubelet that would
/// be the kubelet's work.
pub(super) fn amend(objects: &mut Objects, node: &str, registered: &[LocalPod]) {
    let registered: BTreeMap<_, _> =
        registered.iter().map(|pod| (ObjectName::new(&pod.namespace, &pod.name), pod)).collect();
    for (name, found) in registered {
        let Some(pod) = objects.pods.get_mut(&name) else {
            continue;
        };
        let pod = Arc::make_mut(pod);
        pod.spec.node_name.get_or_insert_with(|| node.to_owned());
        let status = &mut pod.status;
        if status.pod_ips.is_empty() && status.pod_ip.is_none() {
            status.pod_ips = found.addresses.iter().map(|ip| PodIp { ip: *ip }).collect();
        }
        status.phase.get_or_insert(Phase::Running);
        if !status.conditions.iter().any(|condition| condition.r#type == "Ready") {
            status.conditions.push(Condition { r#type: "Ready".into(), status: "True".into() });
        }
    }
}
