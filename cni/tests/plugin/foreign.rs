//! What another implementation of the specification reads of what this one writes.

use rscni_types::error::Error;
use rscni_types::legacy;
use rscni_types::types::{CNIResult, CNIResultWithVersion, ErrorResult, NetConfList};
use rscni_types::version::{PluginInfo, SpecVersion};
use serde_json::{Value, json};

use crate::support::{Node, Pod, root};
use crate::{V4, V6};

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error} in {value}"))
}

#[test]
fn results_mean_the_same_to_another_implementation() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new("aaa", "eth0");
        let config = node.config_with("cniVersion", &version.into());
        let written = node.call("ADD", &pod, &config).success();
        let theirs: CNIResult = read(&written);
        assert_eq!(theirs.interfaces[1].name, "eth0");
        assert_eq!(theirs.interfaces[1].sandbox.as_deref(), Some(pod.netns_path()));
        assert_eq!(theirs.interfaces[1].mtu, (version == "1.1.0").then_some(1450));
        let addresses: Vec<_> = theirs.ips.iter().map(|ip| ip.address.addr()).collect();
        assert_eq!(addresses, node.agent.endpoints()[0].addresses);
        assert!(theirs.ips.iter().all(|ip| ip.interface == Some(1)));
        assert_eq!(theirs.routes.len(), 2);

        // And they write what we wrote.
        let spec: SpecVersion = read(&version.into());
        let again = if spec.is_legacy() {
            let mut again = serde_json::to_value(legacy::CNIResult::new(spec, theirs)).unwrap();
            assert_eq!(again.as_object_mut().unwrap().remove("dns"), Some(json!({})));
            again
        } else {
            serde_json::to_value(CNIResultWithVersion::new(spec, theirs)).unwrap()
        };
        assert_eq!(again, written);
        node.call("DEL", &pod, &config).success();
    }
}

#[test]
fn errors_versions_and_configurations_mean_the_same_to_another_implementation() {
    let node = Node::without_namespace();
    let list = json!({
        "cniVersion": "1.1.0", "name": "pods", "plugins": [node.config_with("mtu", &json!(1))],
    });
    let list: NetConfList = read(&list);
    assert_eq!(list.plugins[0].r#type, "fairway-cni");
    let env = [("CNI_COMMAND", "STATUS")];
    let refused = node.exec(&env, &serde_json::to_string(&list.plugins[0]).unwrap());
    let error = Error::from(read::<ErrorResult>(&refused.failure(7, &["\"mtu\""])));
    assert_eq!(u32::from(&error), 7);
    assert_eq!(error.msg(), "Invalid network config");
    let versions = node.exec(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion": "1.1.0"}"#).success();
    assert_eq!(read::<PluginInfo>(&versions).supported_versions().len(), 5);
}

/// An older implementation, archived since, which knows neither GC nor STATUS. It takes `dns` and every
/// `sandbox` of a result, and an error's `details`, for mandatory, so that it reads those that have them.
mod archived {
    use cni_plugin::config::NetworkConfig;
    use cni_plugin::reply::{ErrorReply, SuccessReply, VersionReply};
    use serde::Deserialize;

    use super::*;

    /// What the agent's list makes of a plugin's configuration once a runtime has filled it in.
    fn configuration(node: &Node, version: &str) -> Value {
        let mut config = node.config_with("cniVersion", &version.into());
        config["capabilities"] = json!({"ips": true, "mac": true, "portMappings": true});
        config["dns"] = json!({"nameservers": ["10.96.0.10"], "search": ["cluster.local"]});
        config["ipam"] = json!({
            "type": "fairway",
            "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        });
        config["runtimeConfig"] = json!({
            "ips": ["10.1.0.77/24", "fd00:1::77/64"],
            "mac": "02:00:00:00:00:77",
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000},
            "ipRanges": [[{"subnet": "10.1.0.0/25"}], [{"subnet": "fd00:1::/80"}]],
        });
        config
    }

    #[test]
    fn configurations_and_results_mean_the_same_to_an_archived_implementation() {
        if !root() {
            return;
        }
        let node = Node::new(&[V4, V6]);
        for version in ["0.4.0", "1.0.0", "1.1.0"] {
            let config = configuration(&node, version);
            let theirs: NetworkConfig = read(&config);
            assert_eq!((theirs.name.as_str(), theirs.plugin.as_str()), ("pods", "fairway-cni"));
            assert_eq!(theirs.cni_version.to_string(), version);
            for own in ["socket", "dataDir", "capabilities"] {
                assert_eq!(theirs.specific[own], config[own]);
            }
            let ipam = theirs.ipam.as_ref().unwrap();
            assert_eq!(ipam.plugin, "fairway");
            assert_eq!(ipam.specific["ranges"], config["ipam"]["ranges"]);
            let runtime = theirs.runtime.as_ref().unwrap();
            let port = &runtime.port_mappings[0];
            assert_eq!((port.host_port, port.container_port), (8080, 80));
            assert_eq!(runtime.ips[0].to_string(), "10.1.0.77/24");
            assert_eq!(runtime.mac.unwrap().to_string(), "02:00:00:00:00:77");
            assert_eq!(runtime.bandwidth.as_ref().unwrap().ingress_rate, Some(8_000_000));

            // What they write of it we read, and answer as if it had come as it was.
            let pod = Pod::new("aaa", "eth0");
            let written = node.call("ADD", &pod, &serde_json::to_value(&theirs).unwrap()).success();
            node.call("DEL", &pod, &config).success();
            let again = Pod::new("aaa", "eth0");
            let mut same = node.call("ADD", &again, &config).success();
            same["interfaces"][1]["sandbox"] = pod.netns_path().into();
            assert_eq!(without_node_mac(&same), without_node_mac(&written));

            let mut whole = written.clone();
            whole["interfaces"][0]["sandbox"] = "".into();
            let theirs: SuccessReply = read(&whole);
            assert_eq!(theirs.cni_version.to_string(), version);
            let [_, interface] = &theirs.interfaces[..] else { panic!("{written}") };
            assert_eq!(interface.name, "eth0");
            assert_eq!(interface.sandbox.to_str(), Some(pod.netns_path()));
            assert_eq!(interface.mac.unwrap().to_string(), "02:00:00:00:00:77");
            let addresses: Vec<_> = theirs.ips.iter().map(|ip| ip.address.ip()).collect();
            assert_eq!(addresses, node.agent.endpoints()[0].addresses);
            assert_eq!(addresses[0].to_string(), "10.1.0.77");
            assert!(theirs.ips.iter().all(|ip| ip.interface == Some(1)));
            let routes: Vec<_> = theirs.routes.iter().map(|route| route.dst.to_string()).collect();
            assert_eq!(routes, ["0.0.0.0/0", "::/0"]);
            assert_eq!(theirs.dns.nameservers[0].to_string(), "10.96.0.10");
            assert_eq!(theirs.dns.search, ["cluster.local"]);

            // An error that has details: what is not as ADD left it.
            let mut check = config.clone();
            check["prevResult"] = same;
            check["prevResult"]["interfaces"][1]["sandbox"] = again.netns_path().into();
            assert_eq!(read::<NetworkConfig>(&check).prev_result.as_ref(), check.get("prevResult"));
            again.ip(&["route", "del", "default"]);
            let written = node.call("CHECK", &again, &check).failure(103, &[]);
            let theirs = ErrorReply::deserialize(&written).unwrap();
            assert_eq!((theirs.code, theirs.cni_version.to_string().as_str()), (103, version));
            assert_eq!((theirs.msg, theirs.details.as_str()), {
                (written["msg"].as_str().unwrap(), written["details"].as_str().unwrap())
            });
            node.call("DEL", &again, &config).success();
        }
    }

    /// The node's end of each pair has an address of its own.
    fn without_node_mac(result: &Value) -> Value {
        let mut result = result.clone();
        result["interfaces"][0]["mac"].take();
        result
    }

    #[test]
    fn versions_mean_the_same_to_an_archived_implementation() {
        let node = Node::without_namespace();
        let env = [("CNI_COMMAND", "VERSION")];
        let written = node.exec(&env, r#"{"cniVersion": "1.0.0"}"#).success();
        let theirs: VersionReply = read(&written);
        let versions: Vec<_> = theirs.supported_versions.iter().map(ToString::to_string).collect();
        assert_eq!(json!(versions), written["supportedVersions"]);
    }
}
