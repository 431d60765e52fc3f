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
