//! A change of a policy from the file it is written in to the last table: control plane and agent in one process, over a
//! folder that has the pods of a whole cluster.

use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{CHANGE_LIMIT, Figure, LOOK, PAUSE, Subjects};
use crate::bench::agent::Agent;
use crate::bench::bed::{self, Bed, Pod};
use crate::bench::progress;
use crate::bench::services::millis;
use crate::bench::stats::percentile;
use crate::topology::{Backend, NodePlan};

/// Pods of the node; all others are another's.
const LOCAL: u32 = 100;
/// The files.
const PODS: &str = "pods.yaml";
const POLICY: &str = "policy.yaml";
/// What the pods that the policy is about are called by.
const LABEL: &str = "measured";

/// How long changes take for each of these numbers of pods.
pub(super) fn measure(
    bed: &Bed,
    [node, other]: [&NodePlan; 2],
    counts: &[u32],
    changes: u32,
) -> Result<Vec<Figure>> {
    let Some(most) = counts.iter().copied().max() else { return Ok(Vec::new()) };
    let local = most.min(LOCAL);
    progress(&format!("a folder of manifests, and {local} pods"));
    let agent = Agent::start(bed, node, Backend::Auto, &[other])?;
    let names: Vec<String> = (0..local).map(name).collect();
    agent.write(PODS, &pods_of(node, other, local, 0))?;
    let pods = names.iter().map(|name| bed.cni_pod(node, name));
    let pods: Vec<Pod> = pods.collect::<Result<_>>()?;
    let subjects = Subjects::open(bed, node)?;
    let mut figures = Vec::new();
    for count in counts {
        progress(&format!("changes in manifests, of a policy of {count} pods"));
        agent.write(PODS, &pods_of(node, other, local.max(*count), *count))?;
        agent.write(POLICY, &policy(0))?;
        let ours = &pods[..usize::try_from(local.min(*count))?];
        let addresses: Vec<_> = ours.iter().map(|pod| pod.address).collect();
        subjects.wait(bed, &addresses, |now| now.is_some())?;
        let mut times = Vec::new();
        for turn in 1..=changes {
            thread::sleep(PAUSE);
            let before: Vec<_> = addresses.iter().map(|address| subjects.of(*address)).collect();
            let start = Instant::now();
            agent.write(POLICY, &policy(turn))?;
            for (address, before) in addresses.iter().zip(&before) {
                while subjects.of(*address) == *before {
                    bed.check()?;
                    ensure!(start.elapsed() < CHANGE_LIMIT, "no change for {address}");
                    thread::sleep(LOOK);
                }
            }
            times.push(millis(start.elapsed()));
        }
        times.sort_by(f64::total_cmp);
        for (metric, percent) in [("manifest_p50", 50), ("manifest_p99", 99)] {
            figures.push(Figure::of_pods(metric, "ms", *count, percentile(&times, percent)));
        }
        agent.write(POLICY, &list(&[]))?;
        subjects.wait(bed, &addresses, |now| now.is_none())?;
    }
    Ok(figures)
}

fn name(number: u32) -> String {
    format!("of-folder-{number}")
}

/// So many pods, the first ones of `node`; of them the policy is about the first `measured`.
fn pods_of(node: &NodePlan, other: &NodePlan, total: u32, measured: u32) -> String {
    let pods = (0..total).map(|number| {
        let name = name(number);
        let label = if number < measured { "yes" } else { "no" };
        let mut metadata = json!({"name": name, "namespace": bed::NAMESPACE, "labels": {LABEL: label}});
        let mut spec = json!({"nodeName": other.name, "containers": [{"name": "c", "image": "i"}]});
        if number < LOCAL {
            metadata["uid"] = bed::uid(node, &name).into();
            spec["nodeName"] = node.name.clone().into();
            return json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        }
        let [_, a, b, c] = number.to_be_bytes();
        let ip = format!("10.{}.{b}.{c}", 128 | a);
        let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
    });
    let pods: Vec<Value> = pods.collect();
    list(&pods)
}

fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// One that lets in those that it is about at a port that is another each time.
fn policy(turn: u32) -> String {
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "changes", "namespace": bed::NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {LABEL: "yes"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {LABEL: "yes"}}}],
                "ports": [{"port": 1 + turn % 60_000}],
            }],
        },
    });
    policy.to_string()
}
