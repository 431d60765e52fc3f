//! Typed views of the fields a lab acts on; everything else passes by unread.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use fairway_model::Protocol;
use serde::Deserialize;
use serde_json::Value;

use crate::objects::{Key, Kind, text, view};

/// A Pod.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Pod {
    /// Who it is.
    pub metadata: Metadata,
    /// What runs in it.
    pub spec: PodSpec,
}

/// The part of `metadata` that matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    /// Object name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Set by the lab.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A Pod's `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    /// Where it runs; set by the scheduler.
    pub node_name: Option<String>,
    /// Labels its node must have.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Not run in a lab; listed so that this can be said.
    #[serde(default)]
    pub init_containers: Vec<Value>,
    /// At least one.
    pub containers: Vec<Container>,
    /// Runs in the node's own network namespace.
    #[serde(default)]
    pub host_network: bool,
    /// Whether Services become environment variables.
    pub enable_service_links: Option<bool>,
    /// Time between the polite and the hard signal.
    pub termination_grace_period_seconds: Option<u64>,
    /// The pod's host name, where it is not its name.
    pub hostname: Option<String>,
    /// The headless Service by which it has a name.
    pub subdomain: Option<String>,
    /// Whom it asks for names.
    #[serde(default)]
    pub dns_policy: DnsPolicy,
    /// Beside those.
    #[serde(default)]
    pub dns_config: DnsConfig,
    /// `Always` unless said otherwise.
    pub restart_policy: Option<RestartPolicy>,
}

impl PodSpec {
    /// Seconds between SIGTERM and SIGKILL.
    pub(crate) fn grace_seconds(&self) -> u64 {
        self.termination_grace_period_seconds.unwrap_or(30)
    }
}

/// Where a pod's configuration of DNS comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum DnsPolicy {
    /// The cluster's, unless the pod is on its node's network.
    #[default]
    ClusterFirst,
    /// The cluster's in any case.
    ClusterFirstWithHostNet,
    /// The node's.
    Default,
    /// [`DnsConfig`] alone.
    None,
}

/// What a pod says of its configuration itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DnsConfig {
    /// Addresses.
    pub nameservers: Vec<String>,
    /// Domains.
    pub searches: Vec<String>,
    /// Such as `ndots`; the later of a name counts.
    pub options: Vec<DnsConfigOption>,
}

/// See [`DnsConfig::options`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct DnsConfigOption {
    /// Its name.
    pub name: String,
    /// What it is set to, if it takes a value.
    pub value: Option<String>,
}

/// When a container that ended starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum RestartPolicy {
    /// Whatever its exit code.
    Always,
    /// After an error.
    OnFailure,
    /// Not at all.
    Never,
}

/// One container.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    /// Unique in its pod.
    pub name: String,
    /// Decides, by the image table, which program runs.
    #[serde(default)]
    pub image: String,
    /// Arguments; only those of the test server count.
    #[serde(default)]
    pub args: Vec<String>,
    /// Declared ports.
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
    /// Environment.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// Decides when the container is ready.
    pub readiness_probe: Option<Probe>,
}

/// A declared port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    /// For named target ports.
    #[serde(default)]
    pub name: String,
    /// The port.
    pub container_port: u16,
    /// The node's port that leads there; 0 for none.
    #[serde(default)]
    pub host_port: u16,
    /// The node's address that has it; empty for all.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
    /// TCP unless said otherwise.
    #[serde(default)]
    pub protocol: Protocol,
}

/// An environment variable.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value, in which `$(OTHER)` stands for another variable.
    pub value: Option<String>,
    /// Where else the value comes from.
    pub value_from: Option<EnvSource>,
}

/// Sources of an environment variable's value.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvSource {
    /// A field of the pod itself.
    pub field_ref: Option<FieldRef>,
}

/// A field of the pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FieldRef {
    /// `metadata.name`, `status.podIP`, …
    pub field_path: String,
}

/// A readiness probe. One of another kind than these two is taken for a `tcpSocket` of the
/// container's first port, and so is none at all, until it has passed once.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Probe {
    /// The port accepts a connection.
    pub tcp_socket: Option<PortProbe>,
    /// A GET is answered with 200 to 399.
    pub http_get: Option<PortProbe>,
    /// Seconds before the first probe.
    #[serde(default)]
    pub initial_delay_seconds: u64,
    /// Seconds between probes.
    pub period_seconds: Option<u64>,
}

/// What a probe asks.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PortProbe {
    /// Path of a GET.
    pub path: Option<String>,
    /// Number or name of the port.
    pub port: PortRef,
}

/// A port by number or by a container port's name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum PortRef {
    /// Number.
    Number(u16),
    /// Name.
    Name(String),
}

/// A ReplicationController, ReplicaSet, Deployment, DaemonSet or StatefulSet.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Workload {
    /// What it asks for.
    pub spec: WorkloadSpec,
}

/// A workload's `spec`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct WorkloadSpec {
    /// How many pods; one unless said otherwise.
    pub replicas: Option<u32>,
    /// Labels, or an object that holds them under `matchLabels`.
    pub selector: Option<Value>,
    /// Of a StatefulSet: the headless Service that its pods have names in.
    #[serde(rename = "serviceName")]
    pub service_name: Option<String>,
    /// The pods to make.
    pub template: PodTemplate,
}

/// A pod to be.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PodTemplate {
    /// Its labels and annotations, as they stand.
    #[serde(default)]
    pub metadata: Value,
    /// Its spec, as it stands.
    pub spec: Value,
}

/// Checks that the lab can act on the object, before anything is changed for it.
pub(crate) fn check(key: &Key, object: &Value) -> Result<()> {
    match key.kind {
        Kind::Pod => check_pod(key, &view::<Pod>(key, object)?.spec),
        kind if kind.is_workload() => check_workload(key, object),
        Kind::Node => bail!("{key}: the lab makes its own nodes; use `up --nodes N`"),
        _ => Ok(()),
    }
}

fn check_workload(key: &Key, object: &Value) -> Result<()> {
    let workload: Workload = view(key, object)?;
    let template = &workload.spec.template;
    let labels = template.metadata.get("labels").cloned().unwrap_or_default();
    let selector = match &workload.spec.selector {
        Some(selector) if key.kind == Kind::ReplicationController => selector.clone(),
        Some(selector) => selector.get("matchLabels").cloned().unwrap_or_default(),
        None => Value::Null,
    };
    for (label, value) in selector.as_object().into_iter().flatten() {
        if labels.get(label) != Some(value) {
            bail!(
                "{key}: spec.selector: {label}={value} is not among spec.template.metadata.labels"
            );
        }
    }
    let pod_spec = serde_path_to_error::deserialize(&template.spec).map_err(|error| {
        anyhow::anyhow!("{key}: spec.template.spec.{}: {}", error.path(), error.inner())
    })?;
    check_pod(key, &pod_spec).context("spec.template")
}

fn check_pod(key: &Key, spec: &PodSpec) -> Result<()> {
    if spec.containers.is_empty() {
        bail!("{key}: spec.containers: needs at least one container");
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let earlier = &spec.containers[..index];
        if earlier.iter().any(|other| other.name == container.name) {
            bail!("{key}: spec.containers[{index}].name: {:?} appears twice", container.name);
        }
        let usable = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if container.name.is_empty() || !container.name.bytes().all(usable) {
            bail!("{key}: spec.containers[{index}].name: {:?} is not a DNS label", container.name);
        }
        if let Some(port) = container.ports.iter().find(|port| port.container_port == 0) {
            bail!(
                "{key}: spec.containers[{index}].ports {:?}: containerPort: 0 is no port",
                port.name
            );
        }
    }
    Ok(())
}

/// Whether a Service has, or will get, a ClusterIP.
pub(crate) fn has_cluster_ip(service: &Value) -> bool {
    text(service, "/spec/clusterIP").as_deref() != Some("None")
        && text(service, "/spec/type").as_deref() != Some("ExternalName")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(kind: Kind, spec: Value) -> String {
        let key = Key::new(kind, "default", "x");
        format!("{:#}", check(&key, &json!({"metadata": {}, "spec": spec})).unwrap_err())
    }

    #[test]
    fn errors_name_object_and_field() {
        let check = |error: String, parts: &[&str]| {
            for part in parts {
                assert!(error.contains(part), "{error:?} should name {part:?}");
            }
        };
        check(
            refused(
                Kind::Pod,
                json!({"containers": [{"name": "a", "ports": [{"containerPort": "http"}]}]}),
            ),
            &["Pod default/x", "spec.containers[0].ports[0].containerPort"],
        );
        check(refused(Kind::Pod, json!({"containers": []})), &["spec.containers"]);
        check(
            refused(Kind::Deployment, json!({"replicas": -1, "template": {"spec": {}}})),
            &["Deployment default/x", "spec.replicas"],
        );
        check(
            refused(
                Kind::ReplicaSet,
                json!({
                    "selector": {"matchLabels": {"app": "a"}},
                    "template": {"metadata": {"labels": {"app": "b"}}, "spec": {"containers": [{"name": "c"}]}},
                }),
            ),
            &["spec.selector", "app=\"a\""],
        );
        check(
            refused(
                Kind::Deployment,
                json!({"template": {"spec": {"containers": [{"image": "a"}]}}}),
            ),
            &["spec.template.spec.containers[0]", "name"],
        );
        check(
            refused(Kind::Pod, json!({"containers": [{"name": "a"}, {"name": "a"}]})),
            &["spec.containers[1].name", "twice"],
        );
        check(
            refused(Kind::Pod, json!({"containers": [{"name": "../a"}]})),
            &["spec.containers[0].name", "DNS label"],
        );
    }
}
