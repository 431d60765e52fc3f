//! What a node that runs alone knows better than its manifests.

use std::sync::Arc;

use fairway_model::ObjectName;

use super::LocalPod;
use crate::kubernetes::{Condition, Objects, Phase, Pod, PodIp};

/// The pods of `now`, those first that were among `known` before, in that order.
pub(super) fn by_arrival(known: &[LocalPod], now: &[LocalPod]) -> Vec<LocalPod> {
    let old = known.iter().filter(|pod| now.contains(pod));
    let new = now.iter().filter(|pod| !known.contains(pod));
    old.chain(new).cloned().collect()
}

/// Fills in what the status of each registered pod leaves open. On a node with a kubelet that would
/// be the kubelet's work. `registered` is in order of arrival.
pub(crate) fn amend(objects: &mut Objects, node: &str, registered: &[LocalPod]) {
    // The latest first: of the lives of a pod that fit, the first one fills in all that is open.
    for found in registered.iter().rev() {
        let name = ObjectName::new(&found.namespace, &found.name);
        let Some(pod) = objects.pods.get_mut(&name).filter(|pod| is_life_of(found, pod)) else {
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
            let (r#type, status_is) = ("Ready".into(), "True".into());
            status.conditions.push(Condition { r#type, status: status_is, message: None });
        }
    }
}

fn is_life_of(found: &LocalPod, pod: &Pod) -> bool {
    let uid = &pod.metadata.uid;
    uid.is_empty() || found.uid.is_empty() || found.uid == *uid
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn life(uid: &str, address: &str) -> LocalPod {
        let (namespace, name) = ("shop".into(), "db-0".into());
        LocalPod { namespace, name, uid: uid.into(), addresses: vec![address.parse().unwrap()] }
    }

    #[test]
    fn of_two_lives_of_a_pod_the_right_one_counts() {
        let check = |uid: &str, lives: &[LocalPod], expected: &[&str]| {
            let mut objects = Objects::default();
            let mut pod = Pod::default();
            pod.metadata.uid = uid.to_owned();
            objects.pods.insert(ObjectName::new("shop", "db-0"), Arc::new(pod));
            amend(&mut objects, "n1", lives);
            let pod = objects.pods.values().next().unwrap();
            let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(pod.addresses().collect::<Vec<_>>(), expected, "{uid} {lives:?}");
        };
        let (old, new) = (life("a", "10.0.0.1"), life("b", "10.0.0.2"));
        let both = [old.clone(), new.clone()];
        check("", &both, &["10.0.0.2"]);
        check("a", &both, &["10.0.0.1"]);
        check("b", &both, &["10.0.0.2"]);
        check("c", &both, &[]);
        // Who registered it did not say.
        check("c", &[life("", "10.0.0.3")], &["10.0.0.3"]);

        assert_eq!(by_arrival(&[], &both), both);
        // Listed in another order than they came in.
        let (second, swapped) = ([new.clone()], [new, old]);
        assert_eq!(by_arrival(&second, &both), swapped);
        assert_eq!(by_arrival(&both, &second), second);
    }
}
