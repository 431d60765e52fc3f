//! The container runtime's side of CNI: executes the plugin as containerd would.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_netlink::NetNs;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::flannel;
use crate::process::{self, Place};
use crate::spec::{Container, Metadata};

/// A pod's interface is always called so.
const INTERFACE: &str = "eth0";
/// What a recent containerd speaks.
const CNI_VERSION: &str = "1.0.0";
/// A plugin that takes longer is killed, as a runtime would.
const LIMIT: Duration = Duration::from_secs(60);

/// A pod's attachment to the network.
#[derive(Debug)]
pub(crate) struct Attachment<'a> {
    /// The lab.
    pub cluster: &'a Cluster,
    /// The node it is on.
    pub node: &'a str,
    /// The pod.
    pub pod: &'a Metadata,
    /// Those whose host ports it asks for.
    pub containers: &'a [Container],
    /// Name of the pod's network namespace.
    pub netns: &'a str,
}

/// What connects a node's pods.
#[derive(Debug)]
pub(crate) struct Plugin {
    /// The program.
    pub program: PathBuf,
    /// `CNI_PATH`: where those are that it calls.
    pub path: PathBuf,
    /// The network configuration.
    pub config: Value,
}

impl Plugin {
    /// Fairway's, or on a node that flannel runs what flannel's own hands over to.
    pub(crate) fn of(cluster: &Cluster, node: &str) -> Result<Self> {
        let names = &cluster.names;
        if cluster.is_flannel(node) {
            let data_dir = names.node_state(node).join("host-local");
            let path = PathBuf::from(flannel::PLUGINS);
            let config = flannel::delegate(&cluster.topology, cluster.node(node)?, &data_dir);
            return Ok(Self { program: path.join("bridge"), path, config });
        }
        Ok(Self {
            program: cluster.programs.cni.clone(),
            path: cluster.programs.folder.clone(),
            config: json!({
                "cniVersion": CNI_VERSION,
                "name": "fairway",
                "type": "fairway-cni",
                "socket": names.agent_socket(node),
                "dataDir": names.cni_data(node),
                "capabilities": {"portMappings": true, "bandwidth": true},
            }),
        })
    }
}

impl Attachment<'_> {
    /// Connects the namespace; the pod's addresses.
    pub(crate) fn add(&self) -> Result<Vec<IpAddr>> {
        let result = self.run("ADD")?;
        let result: Value = serde_json::from_slice(&result).context("CNI ADD: read the result")?;
        let ips = result["ips"].as_array().context("CNI ADD: the result has no ips")?;
        ips.iter()
            .map(|ip| {
                let text = ip["address"].as_str().unwrap_or_default();
                let address = text.split('/').next().unwrap_or_default();
                address
                    .parse()
                    .with_context(|| format!("CNI ADD: the result has an address {text:?}"))
            })
            .collect()
    }

    /// Disconnects it; of what is not connected, nothing.
    pub(crate) fn delete(&self) -> Result<()> {
        self.run("DEL").map(drop)
    }

    fn run(&self, verb: &str) -> Result<Vec<u8>> {
        let names = &self.cluster.names;
        let pod = self.pod;
        let mut plugin = Plugin::of(self.cluster, self.node)?;
        if plugin.config.get("capabilities").is_some() {
            plugin.config["runtimeConfig"] = runtime_config(pod, self.containers)?;
        }
        let place = Place {
            netns: NetNs::path(&names.node_netns(self.node)),
            cgroup: names.system_cgroup(self.node),
            beside: None,
        };
        let mut command = Command::new(plugin.program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.uid)
            .env("CNI_NETNS", NetNs::path(self.netns))
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", plugin.path)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}{}",
                    pod.namespace, pod.name, pod.uid, pod.uid, wanted_addresses(pod)
                ),
            );
        place.apply(&mut command)?;
        execute(command, &plugin.config.to_string())
            .with_context(|| format!("CNI {verb} {}/{}", pod.namespace, pod.name))
    }
}

/// A pod's annotation that says which addresses it gets, with commas between; no runtime has it.
const ADDRESSES: &str = "lab.fairway.dev/addresses";

/// What asks for them in `CNI_ARGS`.
fn wanted_addresses(pod: &Metadata) -> String {
    pod.annotations.get(ADDRESSES).map_or_else(String::new, |wanted| format!(";IP={wanted}"))
}

/// What containerd passes for the capabilities that the configuration declares.
fn runtime_config(pod: &Metadata, containers: &[Container]) -> Result<Value> {
    let ports = containers.iter().flat_map(|container| &container.ports);
    let mappings: Vec<Value> = ports
        .filter(|port| port.host_port != 0)
        .map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.to_string().to_lowercase(),
                "hostIP": port.host_ip,
            })
        })
        .collect();
    let mut bandwidth = json!({});
    for direction in ["ingress", "egress"] {
        let annotation = format!("kubernetes.io/{direction}-bandwidth");
        if let Some(text) = pod.annotations.get(&annotation) {
            let rate = quantity(text).with_context(|| format!("annotation {annotation}"))?;
            bandwidth[format!("{direction}Rate")] = rate.into();
            // Annotations know no burst, and this is what containerd says then.
            bandwidth[format!("{direction}Burst")] = u32::MAX.into();
        }
    }
    Ok(json!({"portMappings": mappings, "bandwidth": bandwidth}))
}

/// A whole number as Kubernetes writes it: `10M`.
fn quantity(text: &str) -> Result<u64> {
    let units = [("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("", 1)];
    let parsed = units.into_iter().find_map(|(unit, factor)| {
        text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(factor)
    });
    parsed.with_context(|| format!("{text:?} is not a number with k, M or G behind it"))
}

/// What a plugin printed if it succeeded, its own message if not.
fn execute(mut command: Command, config: &str) -> Result<Vec<u8>> {
    let output = process::output_within(&mut command, config.as_bytes(), LIMIT)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match (error["code"].as_u64(), error["msg"].as_str()) {
        (Some(code), Some(message)) => {
            let details = error["details"].as_str().unwrap_or_default();
            let gap = if details.is_empty() { "" } else { ": " };
            bail!("error {code}: {message}{gap}{details}")
        }
        _ => {
            let complaints = String::from_utf8_lossy(&output.stderr);
            bail!("{}, without a CNI error: {}", output.status, complaints.trim())
        }
    }
}
