//! What `get` shows to people.

use comfy_table::{Table, presets};
use fairway_model::{EndpointState, Endpoints, Service};
use serde_json::Value;

use crate::api::NodeInfo;
use crate::lab::LabState;
use crate::names::LabName;
use crate::objects::text;
use crate::store::is_terminating;

pub(crate) fn labs(labs: &[(LabName, LabState)]) -> String {
    let rows = labs.iter().map(|(name, state)| {
        let state = match state {
            LabState::Running => "running",
            LabState::Busy => "busy",
            LabState::Dead => "dead; `down` removes what it left",
        };
        vec![name.to_string(), state.to_owned()]
    });
    table(&["NAME", "STATE"], rows)
}

pub(crate) fn pods(pods: &[Value]) -> String {
    let rows = pods.iter().map(|pod| {
        let field = |pointer| text(pod, pointer).unwrap_or_default();
        let containers = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
        let containers = containers.map(Vec::as_slice).unwrap_or_default();
        let ready = containers.iter().filter(|container| container["ready"] == true).count();
        let restarts: u64 =
            containers.iter().filter_map(|container| container["restartCount"].as_u64()).sum();
        let addresses = pod.pointer("/status/podIPs").and_then(Value::as_array);
        let addresses: Vec<&str> =
            addresses.into_iter().flatten().filter_map(|address| address["ip"].as_str()).collect();
        vec![
            field("/metadata/namespace"),
            field("/metadata/name"),
            format!("{ready}/{}", pod["spec"]["containers"].as_array().map_or(0, Vec::len)),
            pod_state(pod, containers),
            restarts.to_string(),
            addresses.join(","),
            field("/spec/nodeName"),
        ]
    });
    table(&["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "IP", "NODE"], rows)
}

pub(crate) fn services(services: &[Service]) -> String {
    let rows = services.iter().map(|service| {
        let addresses: Vec<String> = service.cluster_ips.iter().map(ToString::to_string).collect();
        let ports: Vec<String> = service
            .ports
            .iter()
            .map(|port| match port.node_port {
                Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol),
                None => format!("{}/{}", port.port, port.protocol),
            })
            .collect();
        vec![
            service.name.namespace.clone(),
            service.name.name.clone(),
            if addresses.is_empty() { "None".to_owned() } else { addresses.join(",") },
            ports.join(","),
        ]
    });
    table(&["NAMESPACE", "NAME", "CLUSTER-IP", "PORTS"], rows)
}

pub(crate) fn endpoints(all: &[Endpoints]) -> String {
    let rows = all.iter().flat_map(|endpoints| {
        endpoints.ports.iter().flat_map(move |(port, list)| {
            list.iter().map(move |endpoint| {
                let state = match endpoint.state {
                    EndpointState::Ready => "ready",
                    EndpointState::ServingTerminating => "serving, terminating",
                    EndpointState::NotReady => "not ready",
                };
                vec![
                    endpoints.service.to_string(),
                    port.clone(),
                    std::net::SocketAddr::new(endpoint.address, endpoint.port).to_string(),
                    endpoint.node.clone().unwrap_or_default(),
                    state.to_owned(),
                ]
            })
        })
    });
    table(&["SERVICE", "PORT", "ENDPOINT", "NODE", "STATE"], rows)
}

pub(crate) fn nodes(nodes: &[NodeInfo]) -> String {
    let rows = nodes.iter().map(|node| {
        let list = |texts: Vec<String>| texts.join(",");
        vec![
            node.name.clone(),
            if node.ready { "ready" } else { "not ready" }.to_owned(),
            list(node.addresses.iter().map(ToString::to_string).collect()),
            list(node.pod_cidrs.iter().map(ToString::to_string).collect()),
            node.agent_pid.map(|pid| pid.to_string()).unwrap_or_default(),
            node.agent_restarts.to_string(),
            node.agent_last_end.clone().unwrap_or_default(),
            node.gateway_pid.map(|pid| pid.to_string()).unwrap_or_default(),
        ]
    });
    table(
        &["NAME", "STATUS", "ADDRESSES", "POD-CIDRS", "AGENT", "RESTARTS", "LAST END", "GATEWAY"],
        rows,
    )
}

/// In a few words: what does not fit is in `-o json`.
fn pod_state(pod: &Value, containers: &[Value]) -> String {
    const MOST: usize = 60;
    let state = whole_pod_state(pod, containers);
    match state.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}... (-o json)", state[..end].trim_end()),
        None => state,
    }
}

fn whole_pod_state(pod: &Value, containers: &[Value]) -> String {
    if is_terminating(pod) {
        return "Terminating".to_owned();
    }
    if let Some(message) = text(pod, "/status/message") {
        return message;
    }
    let waiting = containers.iter().find_map(|container| container.pointer("/state/waiting"));
    match waiting {
        Some(waiting) => {
            let reason = text(waiting, "/reason").unwrap_or_default();
            match text(waiting, "/message").filter(|message| !message.is_empty()) {
                Some(message) => format!("{reason}: {message}"),
                None => reason,
            }
        }
        None => text(pod, "/status/phase").unwrap_or_else(|| "Pending".to_owned()),
    }
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    let mut text = String::new();
    for line in table.lines() {
        // The preset pads every cell on both sides; the outermost blanks serve nobody.
        text += line.strip_prefix(' ').unwrap_or(&line).trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_long_reason_is_cut() {
        let state = |message: String| {
            let container =
                json!({"state": {"waiting": {"reason": "NoNetwork", "message": message}}});
            pod_state(&json!({}), &[container])
        };
        assert_eq!(state("short".to_owned()), "NoNetwork: short");
        let cut = state("\u{e4}".repeat(100));
        assert!(
            cut.starts_with("NoNetwork: \u{e4}") && cut.ends_with("\u{e4}... (-o json)"),
            "{cut}"
        );
        assert_eq!(cut.chars().count(), 60 + "... (-o json)".len());
    }
}
