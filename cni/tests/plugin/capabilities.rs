//! What a runtime passes for a capability reaches the agent, and what is wrong with it the runtime.

use serde_json::json;

use crate::support::{Node, Pod, root};

#[test]
fn host_ports_and_rates_go_to_the_agent_with_the_pod() {
    if !root() {
        return;
    }
    let node = Node::new(&["10.1.0.0/24"]);
    let pod = Pod::new("ports", "eth0");
    let config = node.config_with(
        "runtimeConfig",
        &json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
                {"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
            ],
            "bandwidth": {"egressRate": 1_000_000, "egressBurst": 80_000},
        }),
    );
    let result = node.call("ADD", &pod, &config).success();
    let endpoints = node.agent.endpoints();
    let [endpoint] = endpoints.as_slice() else { panic!("one pod, not {endpoints:?}") };
    let ports: Vec<String> = endpoint.host_ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["*:8080/tcp", "192.0.2.1:53/udp"]);
    assert_eq!(endpoint.bandwidth.egress.map(|limit| limit.rate), Some(1_000_000));
    assert_eq!(endpoint.bandwidth.ingress, None);

    let mut check = config.clone();
    check["prevResult"] = result;
    node.call("CHECK", &pod, &check).success();
    check["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(8081);
    node.call("CHECK", &pod, &check).failure(102, &["not in force"]);

    node.call("DEL", &pod, &config).success();
    assert!(node.agent.endpoints().is_empty());
}

#[test]
fn a_wrong_host_port_or_rate_is_refused_before_anything_is_made() {
    let node = Node::without_namespace();
    let pod = [("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/proc/1/ns/net")];
    let env = |verb| [&[("CNI_COMMAND", verb)], pod.as_slice()].concat();
    let port = node.config_with(
        "runtimeConfig",
        &json!({"portMappings": [{"hostPort": 70_000, "containerPort": 80}]}),
    );
    let texts = ["runtimeConfig.portMappings[0].hostPort", "70000"];
    node.exec(&env("ADD"), &port.to_string()).failure(7, &texts);
    let rate = node.config_with("runtimeConfig", &json!({"bandwidth": {"ingressRate": 5}}));
    let texts = ["runtimeConfig.bandwidth.ingressBurst"];
    node.exec(&env("ADD"), &rate.to_string()).failure(7, &texts);
}
