//! This node's pods by name, as the agent's file has them.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use fairway_cni_protocol::{Endpoint, Registered};
use fairway_model::ObjectName;

use crate::pods::describe;

/// The pods that the file names.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodNames(Vec<Endpoint>);

impl PodNames {
    /// Reads the file; what cannot be read is not known, and left alone for the agent.
    pub(crate) fn read(state_dir: &Path) -> Self {
        let contents = fs::read(state_dir.join("endpoints.json")).unwrap_or_default();
        let pods: Vec<Registered> = serde_json::from_slice(&contents).unwrap_or_default();
        Self(pods.into_iter().map(|pod| pod.endpoint).collect())
    }

    /// What a person calls the pod with an address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<String> {
        let pod = self.0.iter().find(|pod| pod.addresses.contains(&address))?;
        // What the runtime said must not steer the reader's terminal.
        Some(describe(pod).escape_default().to_string())
    }

    /// The pod of that name.
    pub(crate) fn named(&self, name: &ObjectName) -> Option<&Endpoint> {
        let is_it =
            |pod: &&Endpoint| pod.pod_namespace == name.namespace && pod.pod_name == name.name;
        self.0.iter().find(is_it)
    }

    /// What the node's end of a pod's veth is called.
    pub(crate) fn interface(&self, index: u32) -> String {
        let pod = self.0.iter().find(|pod| pod.host_ifindex == index);
        pod.map_or_else(
            || format!("interface {index}"),
            |pod| format!("interface {}", pod.host_interface.escape_default()),
        )
    }
}
