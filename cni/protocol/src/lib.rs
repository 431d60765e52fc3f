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
//!   AddEndpoint ──────────────────────────►  wait for the pod, attach programs, write tables
//!             ◄───────────────────────────  in force: packets may pass
//!   (set our end up, answer ADD)
//! ```
//!
//! # Versions
//!
//! The plugin's binary is replaced while agents run, and agents while the old binary is executed. A
//! request therefore carries a version: the lowest that knows all that it says, so that a plugin
//! that is ahead of its agent is understood as long as it asks for nothing new. Requests are read
//! strictly, because half of what a pod asks for is not what it asks for; a request of a version
//! that the agent does not serve is refused with both versions named, to be tried again once
//! whichever is behind has been replaced. Of answers a reader takes what it knows; so it does of the
//! file in which agents keep endpoints for their successors.
//!
//! | ahead | what happens |
//! |---|---|
//! | a plugin that asks for nothing new | it is served |
//! | a plugin that asks for something new | refused, to be tried again; the agent is named |
//! | an agent | it serves what the plugin asks for; what the plugin does not say is as it was before there was such a thing |
//! | an agent, by more than it serves versions | refused, to be tried again; the plugin is named |
//!
//! A new key of a request, or a new request, belongs to a new version: raise [`VERSION`], and have
//! [`Request::version`] ask for it where it is used. Tests hold the keys of each version.

mod lenient;

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/fairway/agent.sock";

/// The newest version of the requests that this release knows.
pub const VERSION: u32 = 1;
/// The oldest one that its agent serves.
pub const OLDEST_VERSION: u32 = 1;

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
    /// Ports of the node that lead to the pod, each port, protocol and node address once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
    /// How much the pod may send and receive.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// The kernel's cookie of the pod's network namespace: how programs know whose a socket is. `None`
    /// where the kernel tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_cookie: Option<u64>,
    /// `CNI_NETNS`: a file that stands for that namespace. Empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
}

/// An endpoint in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// When it was registered first, in seconds since 1970.
    pub since: u64,
    /// The endpoint, as far as this release knows what another has written.
    #[serde(deserialize_with = "lenient::endpoint")]
    pub endpoint: Endpoint,
}

/// A port of the node that leads to a port of the pod (`portMappings` of the CNI conventions).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostPort {
    /// On the node; never 0.
    pub host_port: u16,
    /// In the pod; never 0.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The one address of the node that the port is open on. Unspecified (`0.0.0.0` or `::`): all of
    /// that family. `None`: all of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl HostPort {
    /// Whether some packet would ask for both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let addresses = match (self.host_ip, other.host_ip) {
            (Some(one), Some(other)) => {
                one == other
                    || (one.is_ipv4() == other.is_ipv4()
                        && (one.is_unspecified() || other.is_unspecified()))
            }
            _ => true,
        };
        addresses && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl fmt::Display for HostPort {
    /// `192.0.2.1:8080/tcp`, or `*:8080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(ip @ IpAddr::V6(_)) => write!(f, "[{ip}]:")?,
            Some(ip) => write!(f, "{ip}:")?,
            None => f.write_str("*:")?,
        }
        write!(f, "{}/{}", self.host_port, self.protocol.name())
    }
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// Its name in small letters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// How much a pod may send and receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bandwidth {
    /// What it receives; `None`: as much as comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// What it sends; `None`: as much as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

impl Bandwidth {
    /// Whether there is no limit at all.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// A limit: over any time, at most `rate` times that time and `burst` more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rate {
    /// Bits a second; never 0.
    pub rate: u64,
    /// Bits; never 0.
    pub burst: u64,
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
    /// Which addresses had this pod and others before the node was started? An agent that does not know this
    /// request refuses it, and then none are to be heeded.
    KnownAddresses {
        /// `K8S_POD_UID`; empty where the runtime gave none.
        uid: String,
    },
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
    /// Which endpoints are there? For people.
    ListEndpoints,
    /// What would a client be told of this name, and why? For people. An agent that does not answer DNS queries
    /// refuses it.
    ResolveName {
        /// The name, from its top.
        name: String,
        /// The type of records, such as `A` or `SRV`.
        kind: String,
        /// The pod that asks, as `namespace/name`; none: a process of the node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "camelCase")]
pub enum Response {
    /// To [`Request::NodeConfig`].
    NodeConfig(NodeConfig),
    /// To [`Request::KnownAddresses`].
    KnownAddresses(KnownAddresses),
    /// To [`Request::ListEndpoints`].
    Endpoints {
        /// In order of their containers' ids.
        endpoints: Vec<Registered>,
    },
    /// To [`Request::ResolveName`].
    Name(Resolved),
    /// Done, and in force.
    Ok,
    /// Refused; nothing was changed.
    Error(Refusal),
}

/// What a client would be told of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// `NOERROR`, `NXDOMAIN`, ...
    pub outcome: String,
    /// Who knows it, in words.
    pub by: String,
    /// The names that were looked for, one after the other, until one was there; none where the cluster's zone knows.
    pub tried: Vec<String>,
    /// The answer, a record each as in a zone file.
    pub answer: Vec<String>,
    /// Whose namespace decided about the search list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// The node's part of a pod's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// The node's name.
    pub node: String,
    /// The ranges its pods are addressed from, at most one a family.
    pub pod_cidrs: Vec<IpNet>,
    /// MTU of a pod's interface: the underlay's, less the tunnel's headers where one is used.
    pub mtu: u32,
}

/// Which addresses other nodes take for whose, as endpoints of Services and in policies. While the control plane is
/// away they go on to do so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownAddresses {
    /// The pod's: it is to have them again.
    pub own: Vec<IpAddr>,
    /// Those of other pods that may come again: they are given out last.
    pub others: Vec<IpAddr>,
}

/// Why the agent said no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// True if the same call may succeed later without anybody changing the request (CNI error 11).
    pub try_again: bool,
    /// What, which object, likely cause; for a person.
    pub message: String,
}

impl Request {
    /// The lowest version that knows all that this request says.
    pub fn version(&self) -> u32 {
        match self {
            // The one that forgets a pod stays in version 1 for good: any agent must take it.
            Self::NodeConfig
            | Self::KnownAddresses { .. }
            | Self::AddEndpoint { .. }
            | Self::DeleteEndpoint { .. }
            | Self::CheckEndpoint { .. }
            | Self::ListEndpoints
            | Self::ResolveName { .. } => 1,
        }
    }
}

/// The request as it is sent: one line with its end.
pub fn encode(request: &Request) -> serde_json::Result<Vec<u8>> {
    let mut document = serde_json::to_value(request)?;
    document["version"] = request.version().into();
    let mut line = serde_json::to_vec(&document)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads what [`encode`] wrote. One that does not say its version has the first.
pub fn decode(line: &[u8]) -> Result<Request, Refusal> {
    let not_a_request = |problem: &dyn std::fmt::Display| Refusal {
        try_again: false,
        message: format!("not a request: {problem}"),
    };
    let mut document: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| not_a_request(&error))?;
    let version = match document.remove("version") {
        None => 1,
        Some(version) => version
            .as_u64()
            .ok_or_else(|| not_a_request(&format!("version {version} is no version")))?,
    };
    if !(u64::from(OLDEST_VERSION)..=u64::from(VERSION)).contains(&version) {
        let behind = if version > VERSION.into() { "agent" } else { "plugin" };
        return Err(Refusal {
            try_again: true,
            message: format!(
                "the plugin asks in version {version} of their protocol, and this agent \
                 (release {}) serves versions {OLDEST_VERSION} to {VERSION}: upgrade the {behind}",
                env!("CARGO_PKG_VERSION")
            ),
        });
    }
    serde_json::from_value(document.into()).map_err(|error| not_a_request(&error))
}

/// The socket to use: what the configuration says, else [`DEFAULT_SOCKET`].
pub fn socket_path(configured: Option<&Path>) -> &Path {
    configured.unwrap_or(Path::new(DEFAULT_SOCKET))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            host_ports: Vec::new(),
            bandwidth: Bandwidth::default(),
            netns_cookie: None,
            netns: String::new(),
        };
        let shown = wire(&Request::AddEndpoint { endpoint: endpoint.clone() });
        assert_eq!(shown["endpoint"]["hostIfindex"], 7);
        assert_eq!(shown["endpoint"]["addresses"], json!(["10.1.0.2", "fd00::2"]));
        assert_eq!(shown["endpoint"].get("hostPorts"), None, "as before there were any");
        wire(&Request::CheckEndpoint { endpoint: endpoint.clone() });

        let port = HostPort {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Sctp,
            host_ip: Some("192.0.2.1".parse().unwrap()),
        };
        let rate = Rate { rate: 1_000_000, burst: 8000 };
        let bandwidth = Bandwidth { ingress: None, egress: Some(rate) };
        let endpoint = Endpoint { host_ports: vec![port], bandwidth, ..endpoint };
        let shown = wire(&Request::AddEndpoint { endpoint });
        assert_eq!(
            shown["endpoint"]["hostPorts"],
            json!([{"hostPort": 8080, "containerPort": 80, "protocol": "sctp", "hostIp": "192.0.2.1"}])
        );
        assert_eq!(
            shown["endpoint"]["bandwidth"],
            json!({"egress": {"rate": 1_000_000, "burst": 8000}})
        );
    }

    #[test]
    fn host_ports_overlap_where_a_packet_could_ask_for_both() {
        let port = |host_port, protocol, ip: &str| HostPort {
            host_port,
            container_port: 80,
            protocol,
            host_ip: (!ip.is_empty()).then(|| ip.parse().unwrap()),
        };
        let check = |one: HostPort, other: HostPort, expected: bool| {
            assert_eq!(one.overlaps(&other), expected, "{one} and {other}");
            assert_eq!(other.overlaps(&one), expected, "{other} and {one}");
        };
        let tcp = |ip| port(80, Protocol::Tcp, ip);
        check(tcp(""), tcp(""), true);
        check(tcp(""), tcp("192.0.2.1"), true);
        check(tcp("0.0.0.0"), tcp("192.0.2.1"), true);
        check(tcp("0.0.0.0"), tcp("::"), false);
        check(tcp("::"), tcp("192.0.2.1"), false);
        check(tcp("192.0.2.1"), tcp("192.0.2.2"), false);
        check(tcp(""), port(80, Protocol::Udp, ""), false);
        check(tcp(""), port(81, Protocol::Tcp, ""), false);
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
    fn what_is_not_known_of_a_request_is_refused() {
        for line in [
            r#"{"request": "deleteEndpoint", "containerId": "c", "interface": "e", "more": 1}"#,
            r#"{"request": "format"}"#,
            r#"{"request": "deleteEndpoint", "containerId": "c"}"#,
            r#"{"request": "nodeConfig", "version": "1"}"#,
            r#"["nodeConfig"]"#,
            "",
        ] {
            let refusal = decode(line.as_bytes()).unwrap_err();
            assert!(refusal.message.starts_with("not a request: "), "{line}: {}", refusal.message);
            assert!(!refusal.try_again, "{line}");
        }
    }

    #[test]
    fn what_is_not_known_of_an_answer_is_left_out() {
        for (line, expected) in [
            (r#"{"response": "ok", "more": 1}"#, Response::Ok),
            (
                r#"{"response": "error", "tryAgain": true, "message": "m", "more": 1}"#,
                Response::Error(Refusal { try_again: true, message: "m".to_owned() }),
            ),
        ] {
            assert_eq!(serde_json::from_str::<Response>(line).unwrap(), expected);
        }
    }

    #[test]
    fn requests_say_their_version() {
        let request =
            Request::DeleteEndpoint { container_id: "c".to_owned(), interface: "eth0".to_owned() };
        let line = encode(&request).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let shown: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(
            shown,
            json!({"version": 1, "request": "deleteEndpoint", "containerId": "c", "interface": "eth0"})
        );
        assert_eq!(decode(&line), Ok(request));
        assert_eq!(decode(br#"{"request": "nodeConfig"}"#), Ok(Request::NodeConfig));
    }

    /// A request that says all there is to say of an endpoint.
    fn fullest() -> Endpoint {
        let port = HostPort {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Sctp,
            host_ip: Some("192.0.2.1".parse().unwrap()),
        };
        let rate = Some(Rate { rate: 1_000_000, burst: 8000 });
        Endpoint {
            container_id: "c".to_owned(),
            interface: "eth0".to_owned(),
            pod_namespace: "shop".to_owned(),
            pod_name: "cart".to_owned(),
            pod_uid: "u".to_owned(),
            host_interface: "fw0".to_owned(),
            host_ifindex: 7,
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_mac: [2, 0, 0, 0, 0, 2],
            addresses: vec!["10.1.0.2".parse().unwrap()],
            host_ports: vec![port],
            bandwidth: Bandwidth { ingress: rate, egress: rate },
            netns_cookie: Some(9),
            netns: "/run/netns/cart".to_owned(),
        }
    }

    /// The keys of a document, those within others after a dot.
    fn keys(value: &Value, above: &str) -> Vec<String> {
        match value {
            Value::Object(map) => map
                .iter()
                .flat_map(|(key, value)| {
                    let key = format!("{above}{key}");
                    let below = keys(value, &format!("{key}."));
                    std::iter::once(key).chain(below)
                })
                .collect(),
            Value::Array(list) => list.first().map_or_else(Vec::new, |one| keys(one, above)),
            _ => Vec::new(),
        }
    }

    /// Whoever adds a key finds this test, and the rule that the module states.
    #[test]
    fn version_1_has_these_keys_and_no_other() {
        let add = Request::AddEndpoint { endpoint: fullest() };
        assert_eq!(add.version(), 1);
        let mut all = keys(&serde_json::to_value(&add).unwrap(), "");
        all.sort();
        assert_eq!(
            all,
            [
                "endpoint",
                "endpoint.addresses",
                "endpoint.bandwidth",
                "endpoint.bandwidth.egress",
                "endpoint.bandwidth.egress.burst",
                "endpoint.bandwidth.egress.rate",
                "endpoint.bandwidth.ingress",
                "endpoint.bandwidth.ingress.burst",
                "endpoint.bandwidth.ingress.rate",
                "endpoint.containerId",
                "endpoint.hostIfindex",
                "endpoint.hostInterface",
                "endpoint.hostMac",
                "endpoint.hostPorts",
                "endpoint.hostPorts.containerPort",
                "endpoint.hostPorts.hostIp",
                "endpoint.hostPorts.hostPort",
                "endpoint.hostPorts.protocol",
                "endpoint.interface",
                "endpoint.netns",
                "endpoint.netnsCookie",
                "endpoint.podMac",
                "endpoint.podName",
                "endpoint.podNamespace",
                "endpoint.podUid",
                "request",
            ]
        );
    }

    #[test]
    fn what_an_older_plugin_does_not_say_is_as_if_there_were_no_such_thing() {
        // As the first release of version 1 said it.
        let line = r#"{"request": "addEndpoint", "endpoint": {
            "containerId": "c", "interface": "eth0", "hostInterface": "fw0", "hostIfindex": 7,
            "hostMac": [2, 0, 0, 0, 0, 1], "podMac": [2, 0, 0, 0, 0, 2], "addresses": ["10.1.0.2"]}}"#;
        let Request::AddEndpoint { endpoint } = decode(line.as_bytes()).unwrap() else {
            panic!("another request");
        };
        let empty = String::new;
        let expected = Endpoint {
            pod_namespace: empty(),
            pod_name: empty(),
            pod_uid: empty(),
            host_ports: Vec::new(),
            bandwidth: Bandwidth::default(),
            netns_cookie: None,
            netns: empty(),
            ..fullest()
        };
        assert_eq!(endpoint, expected);
    }

    #[test]
    fn of_what_a_newer_agent_tells_of_endpoints_the_known_part_is_taken() {
        let registered = Registered { since: 5, endpoint: fullest() };
        let mut document = serde_json::to_value(&registered).unwrap();
        for place in [
            "",
            "/endpoint",
            "/endpoint/hostPorts/0",
            "/endpoint/bandwidth",
            "/endpoint/bandwidth/egress",
        ] {
            document.pointer_mut(place).unwrap()["unheardOf"] = json!({"a": 1});
        }
        let answer = json!({"response": "endpoints", "endpoints": [document.clone()]});
        let read: Response = serde_json::from_str(&answer.to_string()).unwrap();
        assert_eq!(read, Response::Endpoints { endpoints: vec![registered] });
        // A request that says the same is one that this agent cannot carry out as a whole.
        let request = json!({"request": "addEndpoint", "endpoint": document["endpoint"]});
        let refusal = decode(request.to_string().as_bytes()).unwrap_err();
        assert!(refusal.message.contains("unheardOf"), "{}", refusal.message);
    }

    #[test]
    fn whoever_is_behind_is_told_to_be_upgraded() {
        for (version, behind) in [(VERSION + 1, "agent"), (OLDEST_VERSION - 1, "plugin")] {
            let request = json!({"version": version, "request": "nodeConfig", "unheardOf": {}});
            let refusal = decode(request.to_string().as_bytes()).unwrap_err();
            assert!(refusal.try_again);
            for part in
                [&format!("version {version}"), "versions 1 to 1", &format!("upgrade the {behind}")]
            {
                assert!(refusal.message.contains(part), "{part:?} in {}", refusal.message);
            }
        }
    }
}
