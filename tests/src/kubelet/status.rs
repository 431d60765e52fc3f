//! A pod's `status`, as a kubelet writes it.

use std::net::IpAddr;

use serde_json::{Value, json};

/// How one container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// What it was asked to be.
    pub image: String,
    /// What it does.
    pub state: ContainerState,
    /// Passes its readiness probe.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// Not started, and why.
    Waiting {
        /// In one word.
        reason: &'static str,
        /// In a sentence.
        message: String,
    },
    /// Runs.
    Running,
    /// Ended for good.
    Terminated {
        /// 128 and the signal's number, for one that was killed.
        exit_code: i32,
    },
}

/// The status of a pod at `addresses` on a node at `host`.
pub(crate) fn pod_status(
    host: &[IpAddr],
    addresses: &[IpAddr],
    containers: &[ContainerStatus],
) -> Value {
    let all_ready = containers.iter().all(|container| container.ready);
    let mut status = json!({
        "phase": phase(containers),
        "hostIP": host[0],
        "hostIPs": host.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
        "conditions": [
            condition("PodScheduled", true),
            condition("Initialized", true),
            condition("ContainersReady", all_ready),
            condition("Ready", all_ready),
        ],
        "containerStatuses": containers.iter().map(container_status).collect::<Vec<_>>(),
    });
    if let Some(first) = addresses.first() {
        status["podIP"] = json!(first);
        status["podIPs"] = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    }
    status
}

/// The status of a pod for which there is no node.
pub(crate) fn unschedulable(message: &str) -> Value {
    json!({
        "phase": "Pending",
        "conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
        }],
    })
}

/// The status of a node whose agent serves, or does not yet.
pub(crate) fn node_status(addresses: &[IpAddr], name: &str, ready: bool) -> Value {
    let mut all: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    all.push(json!({"type": "Hostname", "address": name}));
    json!({"addresses": all, "conditions": [condition("Ready", ready)]})
}

/// Says of an object that a condition holds, or does not, and leaves the others alone.
pub(crate) fn set_condition(object: &mut Value, kind: &str, is: bool) {
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Some(all) = conditions.as_array_mut() {
        all.retain(|condition| condition["type"] != kind);
        all.push(condition(kind, is));
    }
}

fn condition(kind: &str, is: bool) -> Value {
    json!({"type": kind, "status": if is { "True" } else { "False" }})
}

fn phase(containers: &[ContainerStatus]) -> &'static str {
    let mut codes = Vec::new();
    for container in containers {
        match container.state {
            ContainerState::Terminated { exit_code } => codes.push(exit_code),
            ContainerState::Running => return "Running",
            // Between two runs a pod counts as running.
            ContainerState::Waiting { .. } if container.restarts > 0 => return "Running",
            ContainerState::Waiting { .. } => {}
        }
    }
    if codes.len() < containers.len() {
        "Pending"
    } else if codes.iter().all(|code| *code == 0) {
        "Succeeded"
    } else {
        "Failed"
    }
}

fn container_status(container: &ContainerStatus) -> Value {
    let state = match &container.state {
        ContainerState::Waiting { reason, message } => {
            json!({"waiting": {"reason": reason, "message": message}})
        }
        ContainerState::Running => json!({"running": {}}),
        ContainerState::Terminated { exit_code } => json!({"terminated": {"exitCode": exit_code}}),
    };
    json!({
        "name": container.name,
        "image": container.image,
        "ready": container.ready,
        "restartCount": container.restarts,
        "state": state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_follows_the_containers() {
        let status = |state, restarts| ContainerStatus {
            name: "c".into(),
            image: String::new(),
            state,
            ready: false,
            restarts,
        };
        let waiting =
            || ContainerState::Waiting { reason: "CrashLoopBackOff", message: String::new() };
        let ended = |exit_code| ContainerState::Terminated { exit_code };
        for (containers, expected) in [
            (vec![status(waiting(), 0)], "Pending"),
            (vec![status(waiting(), 1)], "Running"),
            (vec![status(ContainerState::Running, 0), status(ended(0), 0)], "Running"),
            (vec![status(waiting(), 0), status(ended(0), 0)], "Pending"),
            (vec![status(ended(0), 0)], "Succeeded"),
            (vec![status(ended(0), 0), status(ended(1), 0)], "Failed"),
        ] {
            assert_eq!(phase(&containers), expected, "{containers:?}");
        }
    }
}
