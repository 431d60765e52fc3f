//! What a runtime passes for a capability reaches the agent, and what is wrong with it the runtime.

use serde_json::{Value, json};

use crate::support::{Node, Pod, exchange, root};
use crate::{V4, V6};

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

fn addresses(result: &Value) -> Vec<&str> {
    let ips = result["ips"].as_array().expect("a list").iter();
    ips.map(|ip| ip["address"].as_str().expect("an address")).collect()
}

#[test]
fn addresses_and_a_mac_asked_for_are_the_pods() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let pod = Pod::new("aaa", "eth0");
    let runtime = json!({
        "ips": ["10.1.0.77/24", "fd00:1::77"], "mac": "02:00:00:00:00:77", "aliases": ["web"],
    });
    let config = node.config_with("runtimeConfig", &runtime);
    let result = node.call("ADD", &pod, &config).success();
    assert_eq!(addresses(&result), ["10.1.0.77/32", "fd00:1::77/128"]);
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:77");
    assert!(pod.ip(&["link", "show", "eth0"]).contains("02:00:00:00:00:77"));
    assert_eq!(node.agent.endpoints()[0].pod_mac, [2, 0, 0, 0, 0, 0x77]);
    node.own_address("10.1.0.0/32");
    exchange((node.netns(), "10.1.0.0"), (pod.netns(), "10.1.0.77"));
    // Also by a runtime that does not repeat what it asked for.
    node.call("CHECK", &pod, &node.config_with("prevResult", &result)).success();

    let other = Pod::new("bbb", "eth0");
    let before = node.state();
    let taken = ["runtimeConfig.ips[0]", "10.1.0.77", "container aaa"];
    node.call("ADD", &other, &config).failure(11, &taken);
    let outside = node.config_with("runtimeConfig", &json!({"ips": ["10.2.0.7"]}));
    node.call("ADD", &other, &outside).failure(7, &["runtimeConfig.ips[0]", "10.2.0.7", V4]);
    assert_eq!(node.state(), before);
    node.call("DEL", &pod, &config).success();
    node.call("ADD", &other, &config).success();
    node.call("DEL", &other, &config).success();

    // By the older conventions.
    let args = node.config_with("args", &json!({"cni": {"ips": ["10.1.0.78"]}}));
    let env =
        pod.env_with("ADD", "CNI_ARGS", "IgnoreUnknown=1;IP=fd00:1::78;MAC=02:00:00:00:00:78");
    let result = node.exec(&env, &args.to_string()).success();
    assert_eq!(addresses(&result), ["10.1.0.78/32", "fd00:1::78/128"]);
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:78");
    node.call("DEL", &pod, &args).success();
    let env = pod.env_with("ADD", "CNI_ARGS", "IP=10.1.0.300");
    node.exec(&env, &node.config().to_string()).failure(4, &["CNI_ARGS", "IP", "10.1.0.300"]);
}

#[test]
fn ranges_and_routes_replace_the_nodes() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let (a, b) = (Pod::new("aaa", "eth0"), Pod::new("bbb", "eth0"));
    let mut config = node.config_with(
        "ipam",
        &json!({
            "type": "fairway",
            "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.40", "rangeEnd": "10.1.0.42",
                         "gateway": "10.1.0.41"}]],
            "routes": [{"dst": "10.0.0.0/8"}, {"dst": "fd00::/8"}],
        }),
    );
    let result = node.call("ADD", &a, &config).success();
    assert_eq!(addresses(&result), ["10.1.0.40/32"], "of one family, as there is one list");
    assert_eq!(result["routes"], json!([{"dst": "10.0.0.0/8", "gw": "169.254.1.1"}]));
    assert!(!a.ip(&["route"]).contains("default"));
    assert!(a.ip(&["route"]).contains("10.0.0.0/8 via 169.254.1.1 dev eth0"));
    let mut check = config.clone();
    check["prevResult"] = result;
    node.call("CHECK", &a, &check).success();
    a.ip(&["route", "del", "10.0.0.0/8"]);
    let error = node.call("CHECK", &a, &check).failure(103, &[]);
    assert!(error["details"].as_str().unwrap().contains("10.0.0.0/8"), "{error}");

    assert_eq!(addresses(&node.call("ADD", &b, &config).success()), ["10.1.0.42/32"]);
    let full = Pod::new("ccc", "eth0");
    let texts = ["10.1.0.0/24 from 10.1.0.40 to 10.1.0.42", "2 of 2"];
    node.call("ADD", &full, &config).failure(11, &texts);
    node.call("STATUS", &full, &config).failure(50, &texts);
    node.call("STATUS", &full, &node.config()).success();
    // What no waiting would mend is the configuration's fault, as it is at ADD.
    let foreign = json!({"type": "fairway", "ranges": [[{"subnet": "10.9.0.0/24"}]]});
    let foreign = node.config_with("ipam", &foreign);
    for verb in ["ADD", "STATUS"] {
        node.call(verb, &full, &foreign).failure(7, &["\"ipam.ranges[0][0]", "10.9.0.0/24"]);
    }
    // The runtime has the last word.
    let runtime = json!({"ipRanges": [[{"subnet": "fd00:1::100/120"}]]});
    config["runtimeConfig"] = runtime;
    assert_eq!(addresses(&node.call("ADD", &full, &config).success()), ["fd00:1::101/128"]);
    assert_eq!(full.ip(&["-4", "route"]), "");
    node.own_address("fd00:1::/128");
    exchange((node.netns(), "fd00:1::"), (full.netns(), "fd00:1::101"));
}

#[test]
fn a_second_interface_has_routes_of_its_own() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let pod = Pod::new("aaa", "eth0");
    node.call("ADD", &pod, &node.config()).success();
    let routes = pod.ip(&["route"]);
    let ipam = json!({"routes": [{"dst": "198.51.100.0/24"}]});
    let config = node.config_with("ipam", &ipam).to_string();
    let result = node.exec(&pod.env_with("ADD", "CNI_IFNAME", "net1"), &config).success();
    assert_eq!(addresses(&result), ["10.1.0.3/32", "fd00:1::3/128"]);
    assert!(pod.ip(&["route"]).contains("198.51.100.0/24 via 169.254.1.1 dev net1"));
    node.exec(&pod.env_with("DEL", "CNI_IFNAME", "net1"), &config).success();
    assert_eq!(pod.ip(&["route"]), routes);
}

#[test]
fn a_node_may_have_ipv6_alone() {
    if !root() {
        return;
    }
    let node = Node::new(&[V6]);
    let (a, b) = (Pod::new("aaa", "eth0"), Pod::new("bbb", "eth0"));
    for version in ["0.3.0", "1.1.0"] {
        let config = node.config_with("cniVersion", &version.into());
        let result = node.call("ADD", &a, &config).success();
        assert_eq!(result["ips"].as_array().unwrap().len(), 1);
        assert_eq!(result["ips"][0]["gateway"], "fe80::1");
        assert_eq!(result["routes"], json!([{"dst": "::/0", "gw": "fe80::1"}]));
        assert_eq!(a.ip(&["-4", "addr", "show", "dev", "eth0"]), "");
        assert_eq!(a.ip(&["-4", "route"]), "");
        node.call("ADD", &b, &config).success();
        node.forward();
        let known = node.agent.endpoints();
        let [from, to] = [0, 1].map(|n| known[n].addresses[0].to_string());
        exchange((a.netns(), &from), (b.netns(), &to));
        node.call("DEL", &a, &config).success();
        node.call("DEL", &b, &config).success();
        assert_eq!(node.state(), Vec::<String>::new());
    }
}

#[test]
fn dns_is_passed_on_as_the_runtime_says() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "eth0");
    let mut config =
        node.config_with("dns", &json!({"nameservers": ["192.0.2.1"], "search": ["a"]}));
    config["runtimeConfig"] = json!({"dns": {"servers": ["10.96.0.10"], "options": ["ndots:5"]}});
    let result = node.call("ADD", &pod, &config).success();
    let expected = json!({"nameservers": ["10.96.0.10"], "search": ["a"], "options": ["ndots:5"]});
    assert_eq!(result["dns"], expected);
}
