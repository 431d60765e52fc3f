//! A kubelet for all nodes: each pod that has a node gets a thread that runs it from its network
//! namespace to its end.

pub(crate) mod cni;
mod container;
pub(crate) mod environment;
pub(crate) mod images;
mod pod;
pub(crate) mod status;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::objects::{Key, Kind, text};

pub(crate) use pod::log_name;

/// Runs pods until the lab stops; then waits for their threads.
pub(crate) fn run(cluster: &Arc<Cluster>) {
    let mut pods: HashMap<String, JoinHandle<()>> = HashMap::new();
    while !cluster.is_stopping() {
        let (objects, revision) = cluster.store.snapshot();
        for (key, object) in objects.iter().filter(|(key, _)| key.kind == Kind::Pod) {
            let (Some(uid), Some(_)) =
                (text(object, "/metadata/uid"), text(object, "/spec/nodeName"))
            else {
                continue;
            };
            if pods.contains_key(&uid) {
                continue;
            }
            let started = start(cluster, key.clone(), uid.clone());
            match started {
                Ok(thread) => {
                    pods.insert(uid, thread);
                }
                Err(error) => tracing::error!("{key}: {error:#}"),
            }
        }
        // A thread that ended has removed its pod, so its UID does not come again.
        pods.retain(|uid, thread| {
            let known = || {
                objects.values().any(|object| text(object, "/metadata/uid").as_ref() == Some(uid))
            };
            !thread.is_finished() || known()
        });
        cluster.store.wait_past(revision, Duration::from_millis(200));
    }
    for thread in pods.into_values() {
        // A panic of a pod's thread has been reported by itself.
        let _ = thread.join();
    }
}

fn start(cluster: &Arc<Cluster>, key: Key, uid: String) -> Result<JoinHandle<()>> {
    let cluster = Arc::clone(cluster);
    thread::Builder::new()
        .name(format!("pod {}", key.name))
        .spawn(move || pod::run(&cluster, &key, &uid))
        .context("start a thread")
}
