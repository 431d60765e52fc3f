//! The result of ADD, in the shape of each version of the specification.

use std::net::IpAddr;

use fairway_netlink::Mac;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::call::{ContainerCall, parse_mac};
use crate::version::Version;

/// All that any version can say. Fields of the older versions that say nothing (`ips[].version`)
/// are written, and ignored when read. A list or object may be absent or `null`, as programs in Go
/// write their empty ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AddResult {
    #[serde(deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub(crate) interfaces: Vec<Interface>,
    #[serde(deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub(crate) ips: Vec<Ip>,
    #[serde(deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub(crate) routes: Vec<Route>,
    #[serde(deserialize_with = "or_null", skip_serializing_if = "Dns::is_empty")]
    pub(crate) dns: Dns,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Interface {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<String>,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// Path of the network namespace; absent on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) socket_path: Option<String>,
    /// Since 1.1.0.
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub(crate) pci_id: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ip {
    /// Before 1.0.0: "4" or "6".
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<&'static str>,
    pub(crate) address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    /// The rest since 1.1.0.
    #[serde(flatten)]
    pub(crate) more: RouteDetails,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RouteDetails {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub(crate) nameservers: Vec<String>,
    #[serde(deserialize_with = "or_null", skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
    #[serde(deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub(crate) search: Vec<String>,
    #[serde(deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

impl Dns {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Interface {
    /// Is it in a container, and not on the node?
    pub(crate) fn is_in_sandbox(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty())
    }
}

impl AddResult {
    /// The number of the interface that this call is about, if it is there.
    pub(crate) fn interface_of(&self, call: &ContainerCall) -> Option<usize> {
        self.interfaces.iter().position(|interface| {
            interface.name == call.attachment.interface && interface.is_in_sandbox()
        })
    }

    /// The addresses on the interface that this call is about.
    pub(crate) fn addresses_of(&self, call: &ContainerCall) -> Vec<IpAddr> {
        let ours = self.interface_of(call);
        let on_it = self.ips.iter().filter(|ip| ip.interface.is_some() && ip.interface == ours);
        on_it.map(|ip| ip.address.addr()).collect()
    }

    /// The MAC address of the interface that this call is about, if it says one.
    pub(crate) fn mac_of(&self, call: &ContainerCall) -> Option<Mac> {
        let interface = &self.interfaces[self.interface_of(call)?];
        interface.mac.as_deref().and_then(parse_mac)
    }

    /// What is wrong with it although each part alone is well-formed.
    pub(crate) fn contradiction(&self) -> Option<String> {
        let count = self.interfaces.len();
        self.ips.iter().enumerate().find_map(|(n, ip)| match ip.interface {
            Some(index) if index >= count => {
                Some(format!("ips[{n}].interface is {index}, and there are {count} interfaces"))
            }
            _ => None,
        })
    }

    /// What the plugins before have made, and then this. Their DNS stands unless this one has some.
    pub(crate) fn after(self, mut previous: Self) -> Self {
        let offset = previous.interfaces.len();
        previous.interfaces.extend(self.interfaces);
        previous.ips.extend(
            self.ips
                .into_iter()
                .map(|ip| Ip { interface: ip.interface.map(|index| index + offset), ..ip }),
        );
        previous.routes.extend(self.routes);
        if !self.dns.is_empty() {
            previous.dns = self.dns;
        }
        previous
    }

    /// The document to print.
    pub(crate) fn into_json(mut self, version: Version) -> Value {
        if version < Version::V1_1_0 {
            for interface in &mut self.interfaces {
                interface.mtu = None;
                interface.socket_path = None;
                interface.pci_id = None;
            }
            for route in &mut self.routes {
                route.more = RouteDetails::default();
            }
        }
        if version < Version::V1_0_0 {
            for ip in &mut self.ips {
                ip.version = Some(if ip.address.addr().is_ipv4() { "4" } else { "6" });
            }
        }
        let mut document = serde_json::Map::new();
        document.insert("cniVersion".to_owned(), version.name().into());
        // Every part of it is a struct, a list, a number or text: nothing that could fail.
        if let Ok(Value::Object(result)) = serde_json::to_value(self) {
            document.extend(result);
        }
        Value::Object(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn full() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "fw1", "mac": "02:00:00:00:00:01", "mtu": 1450},
                {"name": "eth0", "sandbox": "/run/netns/pod", "socketPath": "/s", "pciID": "0:1"},
            ],
            "ips": [
                {"address": "10.1.0.2/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00::2/128"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1400, "advmss": 1360,
                        "priority": 7, "table": 100, "scope": 0}],
            "dns": {"nameservers": ["10.96.0.10"], "search": ["cluster.local"]},
        })
    }

    fn read(json: &Value) -> AddResult {
        serde_json::from_value(json.clone()).unwrap()
    }

    #[test]
    fn the_newest_version_says_everything() {
        assert_eq!(read(&full()).into_json(Version::V1_1_0), full());
    }

    #[test]
    fn older_versions_say_what_they_can() {
        let expected = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "fw1", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "sandbox": "/run/netns/pod"},
            ],
            "ips": [
                {"address": "10.1.0.2/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00::2/128"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
            "dns": {"nameservers": ["10.96.0.10"], "search": ["cluster.local"]},
        });
        assert_eq!(read(&full()).into_json(Version::V1_0_0), expected);
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let mut expected = expected.clone();
            expected["cniVersion"] = version.name().into();
            expected["ips"][0]["version"] = "4".into();
            expected["ips"][1]["version"] = "6".into();
            let written = read(&full()).into_json(version);
            assert_eq!(written, expected);
            // What a runtime of that version hands back is understood.
            assert_eq!(read(&written).ips, read(&full()).ips);
        }
    }

    #[test]
    fn a_chain_keeps_what_came_before() {
        let ours = AddResult {
            interfaces: vec![Interface { name: "net1".to_owned(), ..Interface::default() }],
            ips: vec![Ip {
                version: None,
                address: "10.2.0.2/32".parse().unwrap(),
                gateway: None,
                interface: Some(0),
            }],
            ..AddResult::default()
        };
        let merged = ours.after(read(&full())).into_json(Version::V1_1_0);
        assert_eq!(merged["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(merged["ips"][2], json!({"address": "10.2.0.2/32", "interface": 2}));
        assert_eq!(merged["routes"], full()["routes"]);
        assert_eq!(merged["dns"], full()["dns"]);
    }

    #[test]
    fn empty_parts_are_read_however_they_are_written() {
        let sparse = json!({
            "interfaces": [{"name": "eth0", "mac": "", "sandbox": ""}],
            "ips": null, "routes": null, "dns": {"nameservers": null, "domain": null},
        });
        let read = read(&sparse);
        assert!(!read.interfaces[0].is_in_sandbox());
        assert_eq!((read.ips.len(), read.routes.len(), read.dns.is_empty()), (0, 0, true));
        assert!(AddResult { interfaces: Vec::new(), ..read }.contradiction().is_none());
    }

    #[test]
    fn an_address_on_no_interface_is_a_contradiction() {
        let mut result = read(&full());
        assert_eq!(result.contradiction(), None);
        result.interfaces.pop();
        let found = result.contradiction().unwrap();
        assert_eq!(found, "ips[0].interface is 1, and there are 1 interfaces");
    }

    #[test]
    fn nothing_to_say_is_not_said() {
        let written = AddResult::default().into_json(Version::V1_1_0);
        assert_eq!(written, json!({"cniVersion": "1.1.0"}));
    }
}
