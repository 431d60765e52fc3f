//! Controllers and scheduler at work on the store, and what users ask of its objects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::controllers::{self, Step};
use crate::flannel;
use crate::kubelet::status;
use crate::objects::{Key, Kind, text, view};
use crate::older::converted;
use crate::scheduler::Scheduler;
use crate::slices;
use crate::spec::Pod;
use crate::store::{condition, is_terminating, new_uid};
use crate::wait::wait_until;

/// What keeps pods away from a node.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// Turns workloads into pods on nodes until the lab stops.
pub(crate) fn run(cluster: &Cluster) {
    let nodes = cluster.node_names();
    let mut scheduler = Scheduler::default();
    while !cluster.is_stopping() {
        let (objects, revision) = cluster.store.snapshot();
        let acted = controllers::plan(&objects, &nodes, unique_tail)
            .and_then(|steps| steps.into_iter().try_for_each(|step| act(cluster, step)))
            .and_then(|()| schedule(cluster, &mut scheduler, &nodes))
            .and_then(|()| write_slices(cluster));
        if let Err(error) = acted {
            tracing::error!("{error:#}");
        }
        cluster.store.wait_past(revision, Duration::from_millis(500));
    }
}

/// Adds or replaces objects, all of one call before any pod starts; a line for each.
pub(crate) fn apply(cluster: &Cluster, objects: Vec<(Key, Value)>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    // Pods find their Services' variables only if the Services came first.
    let mut ordered = objects;
    ordered.sort_by_key(|(key, _)| key.kind);
    for (key, object) in &ordered {
        if key.kind == Kind::Pod {
            check_replacement(cluster, key, object)?;
        }
    }
    for (key, object) in ordered {
        let namespace = Key::new(Kind::Namespace, "", &key.namespace);
        if key.kind.is_namespaced() && cluster.store.get(&namespace).is_none() {
            create_namespace(cluster, &key.namespace)?;
        }
        let object = match cluster.store.get(&key) {
            Some(old) if key.kind == Kind::Pod => {
                let mut object = object;
                object["spec"] = old["spec"].clone();
                object
            }
            _ => object,
        };
        // As a cluster's API server had it, when that still knew older versions.
        let object = if cluster.store.server().is_some() { converted(object) } else { object };
        let before = cluster.store.get(&key);
        let is_new = cluster.store.put(&key, object)?;
        let verb = if is_new {
            "created"
        } else if before == cluster.store.get(&key) {
            "unchanged"
        } else {
            "configured"
        };
        lines.push(format!("{key} {verb}"));
    }
    Ok(lines)
}

/// Takes objects away and waits until the last pod is gone; a line for each.
pub(crate) fn delete(cluster: &Cluster, keys: &[Key], force: bool) -> Result<Vec<String>> {
    let (objects, _) = cluster.store.snapshot();
    if let Some(missing) = keys.iter().find(|key| !objects.contains_key(key)) {
        bail!("{missing}: not found");
    }
    if let Some(node) = keys.iter().find(|key| key.kind == Kind::Node) {
        bail!("{node}: the lab's nodes stay as long as the lab");
    }
    let inside = |key: &Key| {
        keys.iter()
            .any(|namespace| namespace.kind == Kind::Namespace && namespace.name == key.namespace)
    };
    let mut doomed: Vec<&Key> = keys.iter().collect();
    doomed.extend(objects.keys().filter(|key| inside(key) && !keys.contains(key)));
    for key in &doomed {
        cluster.store.delete(key, force)?;
    }
    let uids: Vec<String> =
        doomed.iter().filter_map(|key| text(objects.get(key)?, "/metadata/uid")).collect();
    let longest = objects
        .values()
        .filter_map(|object| object.pointer("/spec/terminationGracePeriodSeconds")?.as_u64())
        .max();
    let limit = Duration::from_secs(longest.unwrap_or(30).max(30) + 15);
    wait_until(limit, "the pods to end", || {
        let (now, _) = cluster.store.snapshot();
        Ok(!now.values().any(|object| {
            let is = |pointer| text(object, pointer).is_some_and(|uid| uids.contains(&uid));
            is("/metadata/uid") || is("/metadata/ownerReferences/0/uid")
        }))
    })?;
    Ok(keys.iter().map(|key| format!("{key} deleted")).collect())
}

/// Gives a workload another number of replicas.
pub(crate) fn scale(cluster: &Cluster, key: &Key, replicas: u32) -> Result<Vec<String>> {
    if !key.kind.is_workload() || key.kind == Kind::DaemonSet {
        bail!("{key}: has no replicas to scale");
    }
    let found = cluster.store.update(key, |object| object["spec"]["replicas"] = replicas.into())?;
    if !found {
        bail!("{key}: not found");
    }
    Ok(vec![format!("{key} scaled to {replicas}")])
}

/// Waits until every node and every gateway has in force what the control plane knows now.
pub(crate) fn wait_in_step(cluster: &Cluster) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(10);
    let wanted = cluster.progress()?.revision;
    let gateways: Vec<_> = cluster.gateways().iter().map(|node| gateway_name(&node.name)).collect();
    wait_until(LIMIT, &format!("all nodes to apply revision {wanted}"), || {
        let progress = cluster.progress()?;
        let mut nodes = cluster.topology.nodes.iter();
        Ok(nodes.all(|node| {
            cluster.is_flannel(&node.name) || progress.applied(&node.name) >= Some(wanted)
        }) && gateways
            .iter()
            .all(|name| progress.applied(&format!("gateway/{name}")) >= Some(wanted)))
    })
}

/// What the gateway of a node is called.
pub(crate) fn gateway_name(node: &str) -> String {
    format!("lab/{node}")
}

/// Writes the objects of the cluster's nodes.
pub(crate) fn write_nodes(cluster: &Cluster) -> Result<()> {
    let has_server = cluster.store.server().is_some();
    for (number, node) in cluster.topology.nodes.iter().enumerate() {
        let labels: BTreeMap<_, _> = crate::scheduler::node_labels(&node.name);
        // Where somebody can write them, those of a node that flannel never ran are for the control plane.
        let is_annotated = match cluster.options.flannel_nodes {
            0 => false,
            _ => !has_server || cluster.is_flannel(&node.name),
        };
        let annotations = if is_annotated { flannel::annotations(node, number) } else { json!({}) };
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": labels, "annotations": annotations},
            "spec": {"podCIDR": node.pod_cidrs[0], "podCIDRs": node.pod_cidrs},
            "status": status::node_status(&node.addresses.ips(), &node.name, false),
        });
        if has_server {
            // As in many a cloud, until somebody says otherwise.
            status::set_condition(&mut object, NETWORK_UNAVAILABLE, true);
        }
        cluster.store.put(&Key::new(Kind::Node, "", &node.name), object)?;
    }
    Ok(())
}

/// Waits until the control plane has written on all nodes that pods can be reached there.
pub(crate) fn wait_for_networks(cluster: &Cluster) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(30);
    if cluster.store.server().is_none() {
        return Ok(());
    }
    wait_until(LIMIT, "the networks of all nodes", || {
        let is_there = |object: &Value| {
            condition(object, NETWORK_UNAVAILABLE).as_deref() == Some("False")
                && (cluster.options.flannel_nodes == 0
                    || flannel::annotated(object).iter().any(Option::is_some))
        };
        let nodes = nodes(cluster);
        Ok(cluster.is_stopping() || nodes.iter().all(|node| is_there(node)))
    })
}

/// The objects of the cluster's nodes, in the order of their numbers.
pub(crate) fn nodes(cluster: &Cluster) -> Vec<Arc<Value>> {
    let nodes = cluster.topology.nodes.iter();
    nodes.filter_map(|node| cluster.store.get(&Key::new(Kind::Node, "", &node.name))).collect()
}

/// Says of every node that it is ready.
pub(crate) fn mark_nodes_ready(cluster: &Cluster) -> Result<()> {
    for node in &cluster.topology.nodes {
        let key = Key::new(Kind::Node, "", &node.name);
        cluster.store.update(&key, |object| status::set_condition(object, "Ready", true))?;
    }
    Ok(())
}

/// A pod's spec is fixed for its life.
fn check_replacement(cluster: &Cluster, key: &Key, object: &Value) -> Result<()> {
    if let Some(old) = cluster.store.get(key)
        && old.pointer("/spec/containers") != object.pointer("/spec/containers")
    {
        bail!("{key}: spec.containers: cannot change in a pod that exists; delete it first");
    }
    Ok(())
}

fn create_namespace(cluster: &Cluster, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    cluster.store.put(&Key::new(Kind::Namespace, "", name), object)?;
    Ok(())
}

fn act(cluster: &Cluster, step: Step) -> Result<()> {
    match step {
        Step::Create(key, object) => {
            // A template may ask for what no pod can be; the user is told by the log.
            tracing::info!("{key}: created");
            cluster.store.put(&key, object).map(drop)
        }
        Step::Delete(key) => {
            tracing::info!("{key}: no longer wanted");
            cluster.store.delete(&key, false).map(drop)
        }
        Step::Scale(key, replicas) => scale(cluster, &key, replicas).map(drop),
    }
}

fn schedule(cluster: &Cluster, scheduler: &mut Scheduler, nodes: &[String]) -> Result<()> {
    let (objects, _) = cluster.store.snapshot();
    for (key, object) in &objects {
        let waits = key.kind == Kind::Pod
            && object.pointer("/spec/nodeName").is_none()
            && !is_terminating(object);
        if !waits {
            continue;
        }
        let pod: Pod = view(key, object)?;
        let chosen = scheduler.choose(&pod.spec, nodes);
        cluster.store.update(key, |object| match chosen {
            Some(node) => object["spec"]["nodeName"] = node.into(),
            None => {
                let message = format!("no node has the labels {:?}", pod.spec.node_selector);
                object["status"] = status::unschedulable(&message);
            }
        })?;
    }
    Ok(())
}

/// Without an API server, the control plane finds the pods of a Service by itself.
fn write_slices(cluster: &Cluster) -> Result<()> {
    if cluster.store.server().is_none() {
        return Ok(());
    }
    let (objects, _) = cluster.store.snapshot();
    for (key, change) in slices::plan(&objects) {
        match change {
            Some(slice) => drop(cluster.store.put(&key, slice)?),
            None => cluster.store.remove(&key)?,
        }
    }
    Ok(())
}

/// Five letters and digits that make no words, as Kubernetes puts behind a pod's name.
fn unique_tail() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let uid = new_uid().unwrap_or_default();
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).collect::<Vec<_>>();
    let letters = digits.chunks(3).take(5).map(|three| {
        let number = three.iter().fold(0_usize, |sum, byte| sum * 31 + usize::from(*byte));
        char::from(ALPHABET[number % ALPHABET.len()])
    });
    letters.collect()
}

/// A pod by name.
pub(crate) fn pod_of(cluster: &Cluster, namespace: &str, name: &str) -> Result<(Key, Pod)> {
    let key = Key::new(Kind::Pod, namespace, name);
    let object = cluster.store.get(&key).with_context(|| format!("{key}: not found"))?;
    let pod = view(&key, &object)?;
    Ok((key, pod))
}
