//! What the CNI plugin and the node agent say to each other over the unix socket.
//!
//! One JSON document a line each way, one answer for each request, any number of requests on a
//! connection. The agent owns what must be true before a pod sends its first packet (tables,
//! programs on its veth); the plugin owns the pod's namespace, veth and address.
//!
//! ```text
//! plugin                                   agent
//!   NodeConfig ───────────────────────────►  pod CIDRs, MTU
//!   (reserve address, make veth, our end down)
//!   AddEndpoint ──────────────────────────►  attach programs, write tables
//!             ◄───────────────────────────  in force: packets may pass
//!   (set our end up, answer ADD)
//! ```

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/fairway/agent.sock";

/// A pod's interface as the agent must know it. It stands for one attachment (container and
/// interface name); all addresses belong to that one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the name inside the pod.
    pub interface: String,
    /// `K8S_POD_NAMESPACE` of `CNI_ARGS`; empty where the runtime gave none.
    #[serde(default)]
    pub pod_namespace: String,
    /// `K8S_POD_NAME`.
    #[serde(default)]
    pub pod_name: String,
    /// `K8S_POD_UID`.
    #[serde(default)]
    pub pod_uid: String,
    /// The veth's name on the node.
    pub host_interface: String,
    /// Its index on the node.
    pub host_ifindex: u32,
    /// MAC address of the node's end.
    pub host_mac: [u8; 6],
    /// MAC address of the pod's end.
    pub pod_mac: [u8; 6],
    /// The pod's addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "request",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Request {
    /// What a pod's address and interface have to look like on this node.
    NodeConfig,
    /// Put this endpoint in force; the same endpoint again is no error.
    AddEndpoint {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// Forget it; an unknown one is no error.
    DeleteEndpoint {
        /// `CNI_CONTAINERID`.
        container_id: String,
        /// `CNI_IFNAME`.
        interface: String,
    },
    /// Is this endpoint in force, exactly as given?
    CheckEndpoint {
        /// The endpoint.
        endpoint: Endpoint,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "camelCase", deny_unknown_fields)]
pub enum Response {
    /// To [`Request::NodeConfig`].
    NodeConfig(NodeConfig),
    /// Done, and in force.
    Ok,
    /// Refused; nothing was changed.
    Error(Refusal),
}

/// The node's part of a pod's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name.
    pub node: String,
    /// The ranges its pods are addressed from, at most one a family.
    pub pod_cidrs: Vec<IpNet>,
    /// MTU of a pod's interface: the underlay's, less the tunnel's headers where one is used.
    pub mtu: u32,
}

/// Why the agent said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Refusal {
    /// True if the same call may succeed later without anybody changing the request (CNI error 11).
    pub try_again: bool,
    /// What, which object, likely cause; for a person.
    pub message: String,
}

/// The socket to use: what the configuration says, else [`DEFAULT_SOCKET`].
pub fn socket_path(configured: Option<&Path>) -> &Path {
    configured.unwrap_or(Path::new(DEFAULT_SOCKET))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Writes the value, reads it back, and returns what a capture of the socket would show.
    fn wire<T>(value: &T) -> Value
    where
        T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let line = serde_json::to_string(value).unwrap();
        assert!(!line.contains('\n'), "one line a document");
        assert_eq!(serde_json::from_str::<T>(&line).unwrap(), *value);
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn requests() {
        assert_eq!(wire(&Request::NodeConfig), json!({"request": "nodeConfig"}));
        let delete =
            Request::DeleteEndpoint { container_id: "c".to_owned(), interface: "eth0".to_owned() };
        assert_eq!(
            wire(&delete),
            json!({"request": "deleteEndpoint", "containerId": "c", "interface": "eth0"})
        );
        let endpoint = Endpoint {
            container_id: "c".to_owned(),
            interface: "eth0".to_owned(),
            pod_namespace: "shop".to_owned(),
            pod_name: "cart".to_owned(),
            pod_uid: String::new(),
            host_interface: "fw0".to_owned(),
            host_ifindex: 7,
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_mac: [2, 0, 0, 0, 0, 2],
            addresses: vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        };
        let shown = wire(&Request::AddEndpoint { endpoint: endpoint.clone() });
        assert_eq!(shown["endpoint"]["hostIfindex"], 7);
        assert_eq!(shown["endpoint"]["addresses"], json!(["10.1.0.2", "fd00::2"]));
        wire(&Request::CheckEndpoint { endpoint });
    }

    #[test]
    fn responses() {
        assert_eq!(wire(&Response::Ok), json!({"response": "ok"}));
        let config = NodeConfig {
            node: "n1".to_owned(),
            pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
            mtu: 1450,
        };
        assert_eq!(
            wire(&Response::NodeConfig(config)),
            json!({"response": "nodeConfig", "node": "n1", "podCidrs": ["10.1.0.0/24"], "mtu": 1450})
        );
        let refusal = Refusal { try_again: true, message: "starting".to_owned() };
        assert_eq!(
            wire(&Response::Error(refusal)),
            json!({"response": "error", "tryAgain": true, "message": "starting"})
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in [
            r#"{"request": "deleteEndpoint", "containerId": "c", "interface": "e", "more": 1}"#,
            r#"{"request": "format"}"#,
            r#"{"request": "deleteEndpoint", "containerId": "c"}"#,
        ] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }
}
