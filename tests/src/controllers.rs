//! Workloads become pods, as the controllers of Kubernetes would make them.
//!
//! [`plan`] looks at all objects and says what to change; it is called again after every change
//! until it has nothing left to say. It reads no clock and keeps nothing.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use anyhow::Result;
use serde_json::{Value, json};

use crate::objects::{Key, Kind, text, view};
use crate::spec::{PodTemplate, Workload};
use crate::store::{Objects, is_ready, is_terminating};

/// One change towards what the workloads ask for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Add this object.
    Create(Key, Value),
    /// Take this one away, a pod in its own time.
    Delete(Key),
    /// Give this workload another number of replicas.
    Scale(Key, u32),
}

/// What the workloads ask for and `objects` lack, given the cluster's `nodes`. `unique` makes the
/// tail of a new pod's name.
pub(crate) fn plan(
    objects: &Objects,
    nodes: &[String],
    mut unique: impl FnMut() -> String,
) -> Result<Vec<Step>> {
    let mut steps = orphans(objects);
    for (key, object) in objects.iter().filter(|(key, _)| key.kind.is_workload()) {
        let owner = Owner {
            key,
            uid: text(object, "/metadata/uid").unwrap_or_default(),
            workload: view(key, object)?,
            objects,
        };
        match key.kind {
            Kind::Deployment => owner.plan_deployment(&mut steps),
            Kind::DaemonSet => owner.plan_daemon_set(nodes, &mut unique, &mut steps),
            Kind::StatefulSet => owner.plan_stateful_set(&mut steps),
            _ => owner.plan_replicas(&mut unique, &mut steps),
        }
    }
    Ok(steps)
}

/// Objects whose owner is gone.
fn orphans(objects: &Objects) -> Vec<Step> {
    let is_orphan = |object: &Value| {
        owner_uid(object).is_some_and(|uid| {
            !objects.values().any(|owner| text(owner, "/metadata/uid").as_ref() == Some(&uid))
        })
    };
    objects
        .iter()
        .filter(|(_, object)| is_orphan(object) && !is_terminating(object))
        .map(|(key, _)| Step::Delete(key.clone()))
        .collect()
}

fn owner_uid(object: &Value) -> Option<String> {
    text(object, "/metadata/ownerReferences/0/uid")
}

/// A workload among all objects.
struct Owner<'a> {
    key: &'a Key,
    uid: String,
    workload: Workload,
    objects: &'a Objects,
}

/// The label by which a Deployment tells its ReplicaSets apart.
const TEMPLATE_HASH: &str = "pod-template-hash";

impl<'a> Owner<'a> {
    fn replicas(&self) -> u32 {
        self.workload.spec.replicas.unwrap_or(1)
    }

    /// What it owns and has not been told to end.
    fn active(&self, kind: Kind) -> Vec<(&'a Key, &'a Value)> {
        self.objects
            .iter()
            .filter(|(key, object)| {
                key.kind == kind
                    && owner_uid(object).as_ref() == Some(&self.uid)
                    && !is_terminating(object)
            })
            .map(|(key, object)| (key, &**object))
            .collect()
    }

    fn plan_replicas(&self, unique: &mut impl FnMut() -> String, steps: &mut Vec<Step>) {
        let wanted = self.replicas() as usize;
        let mut pods: Vec<_> =
            self.active(Kind::Pod).into_iter().filter(|(_, pod)| !has_ended(pod)).collect();
        // Of too many, those that do not serve yet go first.
        pods.sort_by_key(|(_, pod)| !is_ready(pod));
        for (key, _) in pods.iter().skip(wanted) {
            steps.push(Step::Delete(Key::clone(key)));
        }
        for _ in pods.len()..wanted {
            let name = format!("{}-{}", self.key.name, unique());
            steps.push(self.create_pod(&name, None));
        }
    }

    fn plan_daemon_set(
        &self,
        nodes: &[String],
        unique: &mut impl FnMut() -> String,
        steps: &mut Vec<Step>,
    ) {
        let pods = self.active(Kind::Pod);
        for node in nodes {
            let has_one =
                pods.iter().any(|(_, pod)| text(pod, "/spec/nodeName").as_ref() == Some(node));
            if !has_one {
                let name = format!("{}-{}", self.key.name, unique());
                steps.push(self.create_pod(&name, Some(node)));
            }
        }
    }

    /// One pod at a time: number n starts when all before it are ready, and the last goes first.
    fn plan_stateful_set(&self, steps: &mut Vec<Step>) {
        let pod_key = |number| {
            let name = format!("{}-{number}", self.key.name);
            Key::new(Kind::Pod, &self.key.namespace, &name)
        };
        for number in 0..self.replicas() {
            let key = pod_key(number);
            match self.objects.get(&key) {
                None => steps.push(self.create_pod(&key.name, None)),
                Some(pod) if is_ready(pod) && !is_terminating(pod) => continue,
                Some(_) => {}
            }
            return;
        }
        let prefix = format!("{}-", self.key.name);
        let number = |key: &Key| key.name.strip_prefix(&prefix)?.parse::<u32>().ok();
        let last = self
            .active(Kind::Pod)
            .into_iter()
            .filter_map(|(key, _)| Some((number(key)?, key)))
            .filter(|(number, _)| *number >= self.replicas())
            .max();
        if let Some((_, key)) = last {
            steps.push(Step::Delete(key.clone()));
        }
    }

    /// A quarter more pods than asked for may exist, and a quarter fewer be ready, while pods of
    /// an old template give way to the new one's.
    fn plan_deployment(&self, steps: &mut Vec<Step>) {
        let replicas = self.replicas();
        let hash = template_hash(&self.workload.spec.template);
        let name = format!("{}-{hash}", self.key.name);
        let current = Key::new(Kind::ReplicaSet, &self.key.namespace, &name);
        let sets = self.active(Kind::ReplicaSet);
        let old: Vec<_> = sets.iter().filter(|(key, _)| **key != current).collect();
        let Some((_, set)) = sets.iter().find(|(key, _)| **key == current) else {
            let first = if old.is_empty() { replicas } else { 0 };
            steps.push(self.create_replica_set(&current, &hash, first));
            return;
        };

        let old_total: u32 = old.iter().map(|(_, set)| asked(set)).sum();
        let most = replicas + replicas.div_ceil(4);
        let now = replicas.min(most.saturating_sub(old_total));
        if now != asked(set) {
            steps.push(Step::Scale(current.clone(), now));
        }

        let least = replicas - replicas / 4;
        let ready: u32 = sets.iter().map(|(_, set)| self.ready_pods(set)).sum();
        let mut spare = ready.saturating_sub(least);
        for (key, set) in old {
            let unready = asked(set).saturating_sub(self.ready_pods(set));
            let less = asked(set).min(spare + unready);
            spare -= less.saturating_sub(unready).min(spare);
            if asked(set) == 0 && self.pods_of(set).next().is_none() {
                steps.push(Step::Delete(Key::clone(key)));
            } else if less > 0 {
                steps.push(Step::Scale(Key::clone(key), asked(set) - less));
            }
        }
    }

    fn pods_of(&self, set: &Value) -> impl Iterator<Item = &'a Value> {
        let uid = text(set, "/metadata/uid");
        self.objects
            .iter()
            .filter(move |(key, object)| key.kind == Kind::Pod && owner_uid(object) == uid)
            .map(|(_, pod)| &**pod)
    }

    fn ready_pods(&self, set: &Value) -> u32 {
        let ready = self.pods_of(set).filter(|pod| is_ready(pod) && !is_terminating(pod)).count();
        u32::try_from(ready).unwrap_or(u32::MAX)
    }

    fn create_pod(&self, name: &str, node: Option<&str>) -> Step {
        let template = &self.workload.spec.template;
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self.owned(name, &template.metadata),
            "spec": template.spec,
        });
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        if self.key.kind == Kind::StatefulSet {
            pod["spec"]["hostname"] = name.into();
            if let Some(service) = &self.workload.spec.service_name {
                pod["spec"]["subdomain"] = service.as_str().into();
            }
        }
        Step::Create(Key::new(Kind::Pod, &self.key.namespace, name), pod)
    }

    fn create_replica_set(&self, key: &Key, hash: &str, replicas: u32) -> Step {
        let mut template = json!({
            "metadata": self.workload.spec.template.metadata,
            "spec": self.workload.spec.template.spec,
        });
        if template["metadata"].is_null() {
            template["metadata"] = json!({});
        }
        template["metadata"]["labels"][TEMPLATE_HASH] = hash.into();
        let set = json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": self.owned(&key.name, &template["metadata"]),
            "spec": {"replicas": replicas, "template": template},
        });
        Step::Create(key.clone(), set)
    }

    /// Metadata of an object that this workload makes after `template`.
    fn owned(&self, name: &str, template: &Value) -> Value {
        let mut metadata = json!({
            "name": name,
            "namespace": self.key.namespace,
            "ownerReferences": [{
                "kind": self.key.kind.as_str(),
                "name": self.key.name,
                "uid": self.uid,
                "controller": true,
            }],
        });
        for field in ["labels", "annotations"] {
            if let Some(value) = template.get(field) {
                metadata[field] = value.clone();
            }
        }
        metadata
    }
}

/// How many pods a workload's JSON asks for.
fn asked(workload: &Value) -> u32 {
    let replicas = workload.pointer("/spec/replicas").and_then(Value::as_u64);
    replicas.and_then(|replicas| u32::try_from(replicas).ok()).unwrap_or(1)
}

fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase").as_deref(), Some("Succeeded" | "Failed"))
}

fn template_hash(template: &PodTemplate) -> String {
    let mut hasher = DefaultHasher::new();
    template.metadata.to_string().hash(&mut hasher);
    template.spec.to_string().hash(&mut hasher);
    format!("{:08x}", hasher.finish() & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A cluster in memory that takes every step at once.
    #[derive(Default)]
    struct Cluster {
        objects: Objects,
        made: u32,
    }

    impl Cluster {
        fn with(kind: Kind, spec: Value) -> Self {
            let mut cluster = Self::default();
            cluster.put(kind, "web", spec);
            cluster
        }

        fn put(&mut self, kind: Kind, name: &str, spec: Value) {
            let key = Key::new(kind, "default", name);
            let uid = format!("uid-{name}");
            let object = json!({"metadata": {"name": name, "uid": uid}, "spec": spec});
            self.objects.insert(key, Arc::new(object));
        }

        fn step(&mut self) -> Vec<Step> {
            let made = &mut self.made;
            let nodes = ["node1".to_owned(), "node2".to_owned()];
            let steps = plan(&self.objects, &nodes, || {
                *made += 1;
                made.to_string()
            })
            .unwrap();
            for step in &steps {
                match step {
                    Step::Create(key, object) => {
                        let mut object = object.clone();
                        object["metadata"]["uid"] = format!("uid-{}", key.name).into();
                        self.objects.insert(key.clone(), Arc::new(object));
                    }
                    Step::Delete(key) => {
                        self.objects.remove(key);
                    }
                    Step::Scale(key, replicas) => {
                        let object = self.objects.get_mut(key).unwrap();
                        Arc::make_mut(object)["spec"]["replicas"] = (*replicas).into();
                    }
                }
            }
            steps
        }

        /// Steps until nothing is left to do; each pod is ready one round after it was made.
        fn settle(&mut self) {
            for _ in 0..50 {
                let quiet = self.step().is_empty();
                let mut unready = false;
                for (key, object) in &mut self.objects {
                    if key.kind == Kind::Pod && !is_ready(object) {
                        unready = true;
                        Arc::make_mut(object)["status"] =
                            json!({"conditions": [{"type": "Ready", "status": "True"}]});
                    }
                }
                if quiet && !unready {
                    return;
                }
            }
            panic!("does not settle: {:?}", self.objects.keys());
        }

        fn pods(&self) -> Vec<String> {
            self.objects
                .keys()
                .filter(|key| key.kind == Kind::Pod)
                .map(|key| key.name.clone())
                .collect()
        }
    }

    fn template(image: &str) -> Value {
        json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": image}]},
        })
    }

    #[test]
    fn replicas_follow_the_number_asked_for() {
        let mut cluster = Cluster::with(
            Kind::ReplicationController,
            json!({"replicas": 3, "template": template("a")}),
        );
        cluster.settle();
        assert_eq!(cluster.pods(), ["web-1", "web-2", "web-3"]);
        let pod = &cluster.objects[&Key::new(Kind::Pod, "default", "web-1")];
        assert_eq!(pod["metadata"]["labels"]["app"], "web");

        cluster.put(
            Kind::ReplicationController,
            "web",
            json!({"replicas": 1, "template": template("a")}),
        );
        cluster.settle();
        assert_eq!(cluster.pods().len(), 1);

        cluster.objects.remove(&Key::new(Kind::ReplicationController, "default", "web"));
        cluster.settle();
        assert!(cluster.objects.is_empty());
    }

    #[test]
    fn a_terminating_pod_is_replaced_before_it_is_gone() {
        let mut cluster = Cluster::with(Kind::ReplicaSet, json!({"template": template("a")}));
        cluster.settle();
        let key = Key::new(Kind::Pod, "default", "web-1");
        let pod = cluster.objects.get_mut(&key).unwrap();
        Arc::make_mut(pod)["metadata"]["deletionTimestamp"] = "soon".into();
        cluster.settle();
        assert_eq!(cluster.pods(), ["web-1", "web-2"]);
    }

    #[test]
    fn daemon_sets_run_once_a_node() {
        let mut cluster = Cluster::with(Kind::DaemonSet, json!({"template": template("a")}));
        cluster.settle();
        let nodes: Vec<_> =
            cluster.objects.values().filter_map(|object| text(object, "/spec/nodeName")).collect();
        assert_eq!(nodes, ["node1", "node2"]);
    }

    #[test]
    fn stateful_sets_grow_and_shrink_in_order() {
        let spec = json!({"replicas": 3, "serviceName": "pets", "template": template("a")});
        let mut cluster = Cluster::with(Kind::StatefulSet, spec);
        cluster.step();
        cluster.step();
        assert_eq!(cluster.pods(), ["web-0"], "web-1 waits for web-0");
        let pod = &cluster.objects[&Key::new(Kind::Pod, "default", "web-0")];
        assert_eq!(
            (&pod["spec"]["hostname"], &pod["spec"]["subdomain"]),
            (&json!("web-0"), &json!("pets"))
        );
        cluster.settle();
        assert_eq!(cluster.pods(), ["web-0", "web-1", "web-2"]);
        cluster.put(Kind::StatefulSet, "web", json!({"replicas": 1, "template": template("a")}));
        assert!(matches!(&cluster.step()[..], [Step::Delete(key)] if key.name == "web-2"));
        cluster.settle();
        assert_eq!(cluster.pods(), ["web-0"]);
    }

    #[test]
    fn a_deployment_rolls_without_falling_below_three_quarters() {
        let mut cluster =
            Cluster::with(Kind::Deployment, json!({"replicas": 4, "template": template("old")}));
        cluster.settle();
        assert_eq!(cluster.pods().len(), 4);
        let old = cluster.pods();

        cluster.put(Kind::Deployment, "web", json!({"replicas": 4, "template": template("new")}));
        for _ in 0..50 {
            let steps = cluster.step();
            let pods: Vec<_> =
                cluster.objects.iter_mut().filter(|(key, _)| key.kind == Kind::Pod).collect();
            let ready = pods.iter().filter(|(_, pod)| is_ready(pod)).count();
            assert!(ready >= 3, "{ready} ready");
            assert!(pods.len() <= 5, "{} pods", pods.len());
            let mut unready = pods.into_iter().filter(|(_, pod)| !is_ready(pod));
            if let Some((_, pod)) = unready.next() {
                Arc::make_mut(pod)["status"] =
                    json!({"conditions": [{"type": "Ready", "status": "True"}]});
            } else if steps.is_empty() {
                break;
            }
        }
        let new = cluster.pods();
        assert_eq!(new.len(), 4);
        assert!(new.iter().all(|pod| !old.contains(pod)), "{old:?} {new:?}");
        let sets = cluster.objects.keys().filter(|key| key.kind == Kind::ReplicaSet);
        assert_eq!(sets.count(), 1);
    }
}
