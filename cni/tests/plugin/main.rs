//! The built binary, executed as a container runtime would, on a node that is a network namespace
//! and with an agent that is a thread. They need root; see [`support::root`].

mod bystanders;
mod capabilities;
mod chain;
mod foreign;
mod killed;
mod support;
mod tracer;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use fairway_cni_protocol::{Request, Response};
use fairway_netlink::Netlink;
use serde_json::{Value, json};

use crate::support::{Agent, Capture, Node, PLUGIN, Pod, Reply, exchange, root};

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd00:1::/64";

#[test]
fn two_pods_are_added_reached_checked_and_deleted() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let before = node.state();
    let (a, b) = (Pod::new("aaa", "eth0"), Pod::new("bbb", "eth0"));
    let added = [node.call("ADD", &a, &node.config()), node.call("ADD", &b, &node.config())]
        .map(Reply::success);

    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": added[0]["interfaces"][0]["name"], "mac": added[0]["interfaces"][0]["mac"],
             "mtu": 1450},
            {"name": "eth0", "mac": added[0]["interfaces"][1]["mac"], "mtu": 1450,
             "sandbox": a.netns_path()},
        ],
        "ips": [
            {"address": "10.1.0.2/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00:1::2/128", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ],
    });
    assert_eq!(added[0], expected);
    assert_eq!(added[1]["ips"][0]["address"], "10.1.0.3/32");

    let host = added[0]["interfaces"][0]["name"].as_str().unwrap();
    assert_eq!(
        a.ip(&["-4", "route"]),
        "default via 169.254.1.1 dev eth0 proto static onlink \n\
         169.254.1.1 dev eth0 proto static scope link \n"
    );
    assert!(
        a.ip(&["-6", "addr", "show", "dev", "eth0"]).contains("inet6 fd00:1::2/128 scope global")
    );
    assert!(!a.ip(&["-6", "addr"]).contains("tentative"));
    assert!(a.ip(&["neigh"]).contains("169.254.1.1 dev eth0 lladdr"));
    assert!(a.ip(&["neigh"]).contains("fe80::1 dev eth0 lladdr"));
    assert!(a.ip(&["link", "show", "lo"]).contains("UP"));
    assert!(
        node.ip(&["-4", "route"]).contains(&format!("10.1.0.2 dev {host} proto static scope link"))
    );
    assert!(node.ip(&["-6", "route"]).contains(&format!("fd00:1::2 dev {host} proto static")));
    assert!(node.ip(&["neigh"]).contains(&format!("10.1.0.2 dev {host} lladdr")));

    node.own_address("10.1.0.0/32");
    node.own_address("fd00:1::/128");
    node.forward();
    for (own, of_a, of_b) in
        [("10.1.0.0", "10.1.0.2", "10.1.0.3"), ("fd00:1::", "fd00:1::2", "fd00:1::3")]
    {
        exchange((node.netns(), own), (a.netns(), of_a));
        exchange((b.netns(), of_b), (node.netns(), own));
        exchange((a.netns(), of_a), (b.netns(), of_b));
    }

    let endpoints = node.agent.endpoints();
    assert_eq!(endpoints.len(), 2);
    let known = endpoints.iter().find(|endpoint| endpoint.container_id == "aaa").unwrap();
    assert_eq!((known.pod_namespace.as_str(), known.pod_name.as_str()), ("shop", "aaa"));
    assert_eq!(known.host_interface, host);
    let cookie = Netlink::open_in(a.netns()).unwrap().netns_cookie();
    assert!(cookie.is_some() && cookie != Netlink::open().unwrap().netns_cookie());
    assert_eq!(known.netns_cookie, cookie, "by which programs know whose a socket is");
    assert_eq!(known.addresses, ["10.1.0.2", "fd00:1::2"].map(|ip| ip.parse::<IpAddr>().unwrap()));

    for (pod, result) in [&a, &b].into_iter().zip(&added) {
        let config = node.config_with("prevResult", result);
        assert_eq!(node.call("CHECK", pod, &config).success(), Value::Null);
    }
    for pod in [&a, &b, &a] {
        assert_eq!(node.call("DEL", pod, &node.config()).success(), Value::Null);
        assert!(!pod.has_link("eth0"));
    }
    assert_eq!(node.state(), before);
    assert!(node.agent.endpoints().is_empty());
}

/// The interface's removal would wait for a router's anycast address twice as long as for all else.
#[test]
fn the_nodes_end_has_no_ipv6_address_of_its_own() {
    if !root() {
        return;
    }
    for ranges in [&[V4][..], &[V4, V6], &[V6]] {
        let node = Node::new(ranges);
        node.forward();
        let pod = Pod::new("aaa", "eth0");
        let result = node.call("ADD", &pod, &node.config()).success();
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        assert_eq!(node.ip(&["-6", "address", "show", "dev", host]), "", "with {ranges:?}");
        let anycast = node.run("cat", &["/proc/net/anycast6"]);
        assert!(!anycast.contains(host), "with {ranges:?}: {anycast}");
    }
}

#[test]
fn addresses_are_announced() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    for name in ["aaa", "bbb"] {
        let pod = Pod::new(name, "eth0");
        let config = node.config_with("runtimeConfig", &json!({"ips": ["10.1.0.9", "fd00:1::9"]}));
        let capture = Capture::begin(node.netns());
        node.call("ADD", &pod, &config).success();
        let mac = node.agent.endpoints()[0].pod_mac;
        capture.wait_for("gratuitous ARP", |frame| {
            let (address, all) = ([10, 1, 0, 9], [0xff; 6]);
            frame[..14] == [&all[..], &mac, &[8, 6]].concat()
                && frame[22..28] == mac
                && [&frame[28..32], &frame[38..42]] == [address, address]
        });
        let address: [u8; 16] = "fd00:1::9".parse::<Ipv6Addr>().unwrap().octets();
        capture.wait_for("neighbour advertisement", |frame| {
            frame.len() >= 86
                && frame[12..14] == [0x86, 0xdd]
                && [frame[20], frame[54]] == [58, 136]
                && frame[58] & 0xe0 == 0x20 // unsolicited, and to be believed
                && frame[62..78] == address
                && frame[78..86] == [&[2, 1][..], &mac].concat()
        });
        // The gateway is known all the same.
        node.own_address("10.1.0.0/32");
        exchange((pod.netns(), "10.1.0.9"), (node.netns(), "10.1.0.0"));
        assert!(pod.ip(&["neigh"]).contains("fe80::1 dev eth0 lladdr"));
        node.ip(&["addr", "del", "10.1.0.0/32", "dev", "lo"]);
        node.call("DEL", &pod, &config).success();
    }
}

#[test]
fn each_version_gets_its_own_shape() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new("aaa", "eth0");
        let config = node.config_with("cniVersion", &version.into());
        let result = node.call("ADD", &pod, &config).success();
        assert_eq!(result["cniVersion"], version);
        let old = version.starts_with("0.");
        assert_eq!(result["ips"][0]["version"], if old { json!("4") } else { Value::Null });
        let newest = version == "1.1.0";
        assert_eq!(result["interfaces"][1]["mtu"], if newest { json!(1450) } else { Value::Null });
        node.call("DEL", &pod, &config).success();
    }
}

#[test]
fn version_is_told_to_everybody() {
    let node = Node::without_namespace();
    let all = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (input, version) in [
        (r#"{"cniVersion": "0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion": "9.0.0"}"#, "1.1.0"),
        ("", "1.1.0"),
    ] {
        let answer = node.exec(&[("CNI_COMMAND", "VERSION")], input).success();
        assert_eq!(answer, json!({"cniVersion": version, "supportedVersions": all}));
    }
}

#[test]
fn options_of_the_configuration_are_followed() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "net1");
    let mut config = node.config();
    config["mtu"] = 1300.into();
    config["dns"] = json!({"nameservers": ["10.96.0.10"]});
    let result = node.call("ADD", &pod, &config).success();
    assert_eq!(result["interfaces"][1]["mtu"], 1300);
    assert_eq!(result["dns"], config["dns"]);
    assert!(pod.ip(&["link", "show", "net1"]).contains("mtu 1300"));
}

#[test]
fn a_chained_plugin_keeps_what_came_before() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "other0"}, {"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 1}],
        "dns": {"nameservers": ["192.0.2.1"]},
    });
    let pod = Pod::new("aaa", "net1");
    let config = node.config_with("prevResult", &previous);
    let result = node.call("ADD", &pod, &config).success();
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
    assert_eq!(result["ips"][0], previous["ips"][0]);
    assert_eq!(result["ips"][1]["interface"], 3);
    assert_eq!(result["dns"], previous["dns"]);
    node.call("CHECK", &pod, &node.config_with("prevResult", &result)).success();
}

#[test]
fn a_refused_add_says_why_and_leaves_nothing() {
    if !root() {
        return;
    }
    let node = Node::new(&["10.1.0.0/29"]);
    let before = node.state();
    let pod = Pod::new("aaa", "eth0");
    let refused = |reply: Reply, code: u64, texts: &[&str]| {
        reply.failure(code, texts);
        assert_eq!(node.state(), before, "{texts:?}");
        assert!(!pod.has_link("eth0"));
        assert!(node.agent.endpoints().is_empty());
    };

    refused(node.exec(&pod.env("ADD"), "{\"cniVersion\""), 6, &["JSON"]);
    let config = node.config_with("cniVersion", &"0.2.0".into());
    refused(node.call("ADD", &pod, &config), 1, &["\"0.2.0\"", "1.1.0"]);
    let config = node.config_with("mtu", &"big".into());
    refused(node.call("ADD", &pod, &config), 7, &["\"mtu\"", "\"big\""]);
    let config = node.config_with("ipam", &json!({"type": "dhcp"}));
    refused(node.call("ADD", &pod, &config), 2, &["\"ipam.type\"", "dhcp"]);
    let config = node.config_with("prevResult", &json!({"ips": [{"address": "x"}]}));
    refused(node.call("ADD", &pod, &config), 6, &["prevResult"]);
    refused(node.exec(&[], ""), 4, &["CNI_COMMAND is not set"]);
    refused(node.exec(&[("CNI_COMMAND", "REMOVE")], ""), 4, &["\"REMOVE\"", "STATUS"]);

    let with = |key, value| node.exec(&pod.env_with("ADD", key, value), &node.config().to_string());
    refused(with("CNI_NETNS", ""), 4, &["CNI_NETNS is not set"]);
    refused(with("CNI_NETNS", "/run/netns/nonexistent"), 4, &["CNI_NETNS", "nonexistent"]);
    refused(with("CNI_NETNS", "/dev/null"), 4, &["CNI_NETNS", "not a network namespace"]);
    refused(with("CNI_NETNS", "/proc/self/ns/net"), 4, &["CNI_NETNS", "the node's own"]);
    refused(with("CNI_CONTAINERID", "../x"), 4, &["CNI_CONTAINERID"]);
    refused(with("CNI_IFNAME", "an-interface-name-too-long"), 4, &["CNI_IFNAME"]);
    refused(with("CNI_ARGS", "K8S"), 4, &["CNI_ARGS"]);
    // The kernel has a say in names as well, after the address was reserved.
    refused(with("CNI_IFNAME", "all"), 100, &["create veth"]);
}

#[test]
fn a_missing_capability_is_named() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let before = node.state();
    let pod = Pod::new("aaa", "eth0");
    for (capability, name) in [("sys_admin", "CAP_SYS_ADMIN"), ("net_admin", "CAP_NET_ADMIN")] {
        let reply = node.exec_without(capability, &pod.env("ADD"), &node.config().to_string());
        reply.failure(100, &[name]);
        assert_eq!(node.state(), before);
    }
}

#[test]
fn an_interface_that_exists_is_left_alone() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "eth0");
    node.call("ADD", &pod, &node.config()).success();
    // The kernel is still looking whether anybody else has the link-local address that it made.
    let addresses = || pod.ip(&["addr"]).replace(" tentative", "");
    let (state, shown) = (node.state(), addresses());
    node.call("ADD", &pod, &node.config())
        .failure(101, &["shop/aaa", "\"eth0\"", "already exists"]);
    assert_eq!((node.state(), addresses()), (state, shown));
    assert_eq!(node.agent.endpoints().len(), 1);
    // Nor is lo taken for free.
    let env = Pod::new("bbb", "lo");
    node.call("ADD", &env, &node.config()).failure(101, &["\"lo\""]);
}

#[test]
fn a_second_interface_does_not_take_the_first_ones_routes() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "eth0");
    node.call("ADD", &pod, &node.config()).success();
    let before = (node.state(), pod.ip(&["route"]));
    let second = pod.env_with("ADD", "CNI_IFNAME", "net1");
    let reply = node.exec(&second, &node.config().to_string());
    reply.failure(100, &["add route", "already exists"]);
    assert_eq!((node.state(), pod.ip(&["route"])), before);
}

#[test]
fn an_exhausted_range_is_named() {
    if !root() {
        return;
    }
    let node = Node::new(&["10.1.0.0/30", V6]); // one address
    let (a, b) = (Pod::new("aaa", "eth0"), Pod::new("bbb", "eth0"));
    node.call("STATUS", &a, &node.config()).success();
    node.call("ADD", &a, &node.config()).success();
    let before = node.state();
    node.call("ADD", &b, &node.config()).failure(11, &["10.1.0.0/30", "1 of 1"]);
    assert_eq!(node.state(), before);
    node.call("STATUS", &a, &node.config()).failure(50, &["10.1.0.0/30"]);
    node.call("DEL", &a, &node.config()).success();
    node.call("ADD", &b, &node.config()).success();
}

#[test]
fn without_its_agent_add_can_be_tried_again_and_del_succeeds() {
    if !root() {
        return;
    }
    let mut node = Node::new(&[V4]);
    let (a, b) = (Pod::new("aaa", "eth0"), Pod::new("bbb", "eth0"));
    let result = node.call("ADD", &a, &node.config()).success();
    let before = node.state();
    node.agent.stop();
    node.call("ADD", &b, &node.config()).failure(11, &["agent.sock", "fairway-proxy"]);
    let config = node.config_with("prevResult", &result);
    node.call("CHECK", &a, &config).failure(11, &["agent.sock"]);
    node.call("STATUS", &a, &node.config()).failure(50, &["agent.sock"]);
    assert_eq!(node.state(), before);
    node.call("DEL", &a, &node.config()).success();
    assert_eq!(node.state(), Vec::<String>::new());
}

#[test]
fn what_the_agent_refuses_is_undone() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let before = node.state();
    let pod = Pod::new("aaa", "eth0");
    let refuse = |try_again| {
        move |request: &Request| match request {
            Request::AddEndpoint { .. } => Some(Agent::refusal(try_again, "map is full")),
            _ => None,
        }
    };
    for (try_again, code) in [(true, 11), (false, 102)] {
        node.agent.answer_with(refuse(try_again));
        node.call("ADD", &pod, &node.config()).failure(code, &["shop/aaa", "map is full"]);
        assert_eq!(node.state(), before);
        assert!(!pod.has_link("eth0"));
    }
    // An agent that dies in the middle, and one that has lost its mind.
    node.agent.hang_up_on(|request| matches!(request, Request::AddEndpoint { .. }));
    node.call("ADD", &pod, &node.config()).failure(11, &["closed without an answer"]);
    node.agent
        .answer_with(|request| matches!(request, Request::NodeConfig).then_some(Response::Ok));
    node.call("ADD", &pod, &node.config()).failure(11, &["another question"]);
    assert_eq!(node.state(), before);
    assert!(!pod.has_link("eth0"));
    node.agent.answer_with(|_| None);
    node.call("ADD", &pod, &node.config()).success();
}

#[test]
fn check_finds_each_difference() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "eth0");
    let result = node.call("ADD", &pod, &node.config()).success();
    let host = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let config = node.config_with("prevResult", &result);
    let differs = |text: &str| {
        let error = node.call("CHECK", &pod, &config).failure(103, &["shop/aaa"]);
        let details = error["details"].as_str().unwrap();
        assert!(details.contains(text), "{text:?} in {details:?}");
    };
    node.call("CHECK", &pod, &node.config()).failure(7, &["prevResult"]);
    node.call("CHECK", &pod, &config).success();
    // What others in the chain say they have made, wherever it is, is theirs to check.
    let mut chained = config.clone();
    let foreign = json!({"dst": "198.51.100.0/24", "gw": "192.0.2.1", "table": 100});
    chained["prevResult"]["routes"].as_array_mut().unwrap().push(foreign);
    node.call("CHECK", &pod, &chained).success();

    pod.ip(&["route", "del", "default"]);
    differs("the route to 0.0.0.0/0 via 169.254.1.1 is missing");
    pod.ip(&["addr", "del", "10.1.0.2/32", "dev", "eth0"]);
    differs("10.1.0.2 is missing on \"eth0\"");
    node.ip(&["route", "del", "10.1.0.2"]);
    differs("the node's route to 10.1.0.2");
    node.ip(&["link", "set", &host, "down"]);
    differs("is down");
    node.remove_reservation("10.1.0.2");
    differs("10.1.0.2 is not reserved");
    node.ip(&["link", "del", &host]);
    differs("is missing on the node");

    let pod = Pod::new("bbb", "eth0");
    let result = node.call("ADD", &pod, &node.config()).success();
    node.agent.forget("bbb");
    let config = node.config_with("prevResult", &result);
    node.call("CHECK", &pod, &config).failure(102, &["not in force"]);
}

#[test]
fn del_works_without_namespace_previous_result_or_agent() {
    if !root() {
        return;
    }
    let mut node = Node::new(&[V4]);
    let before = node.state();
    let pod = Pod::new("aaa", "eth0");
    node.call("DEL", &pod, &node.config()).success();
    assert_eq!(node.state(), before, "DEL of what never was makes nothing");

    node.call("ADD", &pod, &node.config()).success();
    drop(pod);
    let env = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "aaa"), ("CNI_IFNAME", "eth0")];
    node.agent.stop();
    let config = node.config_with("prevResult", &"not a result".into());
    node.exec(&env, &config.to_string()).success();
    assert_eq!(node.state(), Vec::<String>::new());
}

#[test]
fn del_does_not_stumble_over_what_it_does_not_need() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "eth0");
    for (key, value) in [
        ("mtu", json!("big")),
        ("dns", json!([1])),
        ("ipam", json!({"type": "host-local"})),
        ("cni.dev/valid-attachments", json!("all")),
    ] {
        node.call("ADD", &pod, &node.config()).success();
        let reply = node.call("DEL", &pod, &node.config_with(key, &value));
        assert!(reply.complaints().contains(key), "{key} in {}", reply.complaints());
        reply.success();
        assert_eq!(node.state(), Vec::<String>::new());
    }
    node.call("ADD", &pod, &node.config()).success();
    let env = pod.env_with("DEL", "CNI_ARGS", "K8S");
    let reply = node.exec(&env, &node.config().to_string());
    assert!(reply.complaints().contains("CNI_ARGS"), "{}", reply.complaints());
    reply.success();
    assert_eq!(node.state(), Vec::<String>::new());
}

#[test]
fn del_does_what_it_can_and_says_what_it_could_not() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "eth0");
    node.call("ADD", &pod, &node.config()).success();
    node.break_store();
    let error = node.call("DEL", &pod, &node.config()).failure(104, &["shop/aaa"]);
    let details = error["details"].as_str().unwrap();
    assert!(details.contains("addresses/lock"), "{details}");
    assert!(!pod.has_link("eth0") && node.agent.endpoints().is_empty());
    assert_eq!(node.state(), ["10.1.0.2"], "the address alone is left");

    node.call("ADD", &pod, &node.config()).failure(5, &["address store", "lock"]);
    assert!(!pod.has_link("eth0"));
    node.mend_store();
    node.call("DEL", &pod, &node.config()).success();
    assert_eq!(node.state(), Vec::<String>::new());
}

#[test]
fn what_a_killed_add_left_is_removed_by_del_or_made_anew_by_add() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "eth0");
    let is_add: fn(&Request) -> bool = |request| matches!(request, Request::AddEndpoint { .. });
    node.agent.kill_on(is_add);
    node.call("ADD", &pod, &node.config()).killed();
    assert!(pod.has_link("eth0") && node.reserved() == ["10.1.0.2"], "it came that far");
    node.call("DEL", &pod, &node.config()).success();
    assert_eq!(node.state(), Vec::<String>::new());
    assert!(!pod.has_link("eth0"));

    // The runtime that should have called DEL was killed as well, and the pod starts anew.
    node.call("ADD", &pod, &node.config()).killed();
    node.agent.answer_with(|_| None);
    let anew = Pod::new("aaa", "eth0");
    let result = node.call("ADD", &anew, &node.config()).success();
    assert!(!pod.has_link("eth0"));
    assert_eq!(node.reserved(), ["10.1.0.3"]);
    assert_eq!(result["ips"][0]["address"], "10.1.0.3/32");
    node.own_address("10.1.0.0/32");
    exchange((node.netns(), "10.1.0.0"), (anew.netns(), "10.1.0.3"));
    node.call("DEL", &anew, &node.config()).success();
}

#[test]
fn garbage_is_what_is_not_listed() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pods = ["aaa", "bbb", "ccc"].map(|name| Pod::new(name, "eth0"));
    let results = pods.each_ref().map(|pod| node.call("ADD", pod, &node.config()).success());
    let gc = |config: &Value| node.exec(&[("CNI_COMMAND", "GC")], &config.to_string()).success();

    let host = results[2]["interfaces"][0]["name"].as_str().unwrap();
    node.ip(&["link", "del", host]);
    gc(&node.config());
    assert_eq!(node.reserved(), ["10.1.0.2", "10.1.0.3"], "without a list, only dead ones go");

    let valid = json!([{"containerID": "bbb", "ifname": "eth0"}]);
    gc(&node.config_with("cni.dev/valid-attachments", &valid));
    assert_eq!(node.reserved(), ["10.1.0.3"]);
    assert!(!pods[0].has_link("eth0") && pods[1].has_link("eth0"));
    assert_eq!(node.agent.endpoints().len(), 1);

    gc(&node.config_with("cni.dev/valid-attachments", &json!([])));
    assert_eq!(node.reserved(), Vec::<String>::new());
}

#[test]
fn interfaces_that_are_nobodys_are_garbage() {
    if !root() {
        return;
    }
    let mut node = Node::new(&[V4]);
    let (pod, other) = (Pod::new("aaa", "eth0"), Pod::new("bbb", "eth0"));
    node.call("ADD", &pod, &node.config()).success();
    node.call("ADD", &other, &node.config_with("name", &"other".into())).success();
    let before = node.state();
    let make = |name: &str| node.ip(&["link", "add", name, "type", "veth", "peer", "name", "p"]);
    let gc = |node: &Node, valid: &Value| {
        let config = node.config_with("cni.dev/valid-attachments", valid);
        node.exec(&[("CNI_COMMAND", "GC")], &config.to_string())
    };
    let valid = json!([{"containerID": "aaa", "ifname": "eth0"}]);

    make("fw0123456789ab");
    gc(&node, &Value::Null).success();
    assert_ne!(node.state(), before, "not without a list of who is valid");
    let reply = gc(&node, &valid);
    assert!(reply.complaints().contains("fw0123456789ab"), "{}", reply.complaints());
    reply.success();
    assert_eq!(node.state(), before, "and of another network nothing");

    // Nor what the agent knows, the store being lost; nor what a route leads to; nor other names.
    node.lose_store();
    gc(&node, &json!([])).success();
    assert!(pod.has_link("eth0") && other.has_link("eth0"));
    node.agent.forget("aaa");
    gc(&node, &json!([])).success();
    assert!(pod.has_link("eth0"), "it may be a pod that works");
    node.ip(&["route", "del", "10.1.0.2"]);
    make("fw0123456789");
    gc(&node, &valid).success();
    assert!(pod.has_link("eth0"), "it is valid");
    gc(&node, &json!([])).success();
    assert!(!pod.has_link("eth0") && other.has_link("eth0"));
    assert!(node.state().contains(&"fw0123456789".to_owned()));

    // Without the agent, nobody can say.
    node.ip(&["link", "del", "fw0123456789"]);
    make("fw0123456789ab");
    node.agent.stop();
    gc(&node, &json!([])).success();
    assert!(node.state().contains(&"fw0123456789ab".to_owned()));
}

#[test]
fn damaged_reservations_are_freed_when_no_route_leads_there() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pods = ["aaa", "bbb"].map(|name| Pod::new(name, "eth0"));
    for pod in &pods {
        node.call("ADD", pod, &node.config()).success();
    }
    node.damage_reservation("10.1.0.2");
    node.damage_reservation("10.1.0.3");
    let host = node.agent.endpoints()[0].host_interface.clone();
    node.ip(&["link", "del", &host]);
    let gc = || node.exec(&[("CNI_COMMAND", "GC")], &node.config().to_string());
    let error = gc().failure(104, &["GC"]);
    let details = error["details"].as_str().unwrap();
    assert!(details.contains("10.1.0.3") && !details.contains("10.1.0.2"), "{details}");
    assert_eq!(node.reserved(), ["10.1.0.3"]);

    node.call("DEL", &pods[1], &node.config()).success();
    assert_eq!(node.reserved(), ["10.1.0.3"], "nobody can say whose it is");
    let reply = gc();
    assert!(reply.complaints().contains("10.1.0.3"), "{}", reply.complaints());
    reply.success();
    assert_eq!(node.reserved(), Vec::<String>::new());
}

#[test]
fn verbs_newer_than_the_configuration_are_refused() {
    let node = Node::without_namespace();
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        let config = node.config_with("cniVersion", &version.into());
        let reply = node.exec(&[("CNI_COMMAND", verb)], &config.to_string());
        let error = reply.failure(1, &[verb, version]);
        assert_eq!(error["cniVersion"], version);
    }
}

#[test]
fn two_hundred_calls_at_once_each_do_their_own() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let pods = |from: u32| -> Vec<_> {
        (from..from + 100).map(|n| Pod::new(&format!("pod{n}"), "eth0")).collect()
    };
    let (first, second) = (pods(0), pods(100));
    let all_at_once = |calls: &[(&'static str, &Vec<Pod>)]| -> Vec<Value> {
        std::thread::scope(|scope| {
            let node = &node;
            let pods =
                calls.iter().flat_map(|(verb, pods)| pods.iter().map(move |pod| (*verb, pod)));
            let calls: Vec<_> = pods
                .map(|(verb, pod)| {
                    scope.spawn(move || node.call(verb, pod, &node.config()).success())
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        })
    };
    let distinct = |results: &[Value]| {
        let ips: HashSet<_> = results.iter().map(|result| result["ips"].to_string()).collect();
        ips.len()
    };
    assert_eq!(distinct(&all_at_once(&[("ADD", &first)])), 100);
    let results = all_at_once(&[("ADD", &second), ("DEL", &first)]);
    assert_eq!(distinct(&results[..100]), 100);
    assert_eq!(node.agent.endpoints().len(), 100);
    assert_eq!(node.reserved().len(), 200);
    assert!(first.iter().all(|pod| !pod.has_link("eth0")));
    assert!(second.iter().all(|pod| pod.has_link("eth0")));
    all_at_once(&[("DEL", &second)]);
    assert_eq!(node.state(), Vec::<String>::new());
    assert!(node.agent.endpoints().is_empty());
}

#[test]
fn a_full_disk_takes_no_pod_and_lets_pods_go() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    let (a, b) = (Pod::new("aaa", "eth0"), Pod::new("bbb", "eth0"));
    let disk = node.folder().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let config = node.config_with("dataDir", &disk.to_str().unwrap().into());
    // A disk that goes with the shell that made it: a mount namespace of its own.
    let script = r#"
        mount -t tmpfs -o size=16k,nr_inodes=64 none "$DISK" || exit 90
        config=$(cat)
        call() { printf %s "$config" | "$PLUGIN"; }
        CNI_COMMAND=ADD call >/dev/null || exit 91
        head -c 1000000 /dev/zero >"$DISK/full" 2>/dev/null
        CNI_COMMAND=ADD CNI_CONTAINERID=bbb CNI_NETNS=$OTHER call && exit 92
        echo full: $(ls -A "$DISK/addresses") >&2
        CNI_COMMAND=DEL call >&2 || exit 93
        echo gone: $(ls -A "$DISK/addresses") >&2
        exit 1
    "#;
    let disk = disk.to_str().unwrap();
    let mut env = a.env_with("ADD", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    env.extend([("DISK", disk), ("PLUGIN", PLUGIN), ("OTHER", b.netns_path()), ("SCRIPT", script)]);
    let arguments = ["--mount", "--propagation", "private", "/bin/sh", "-c", "eval \"$SCRIPT\""];
    let reply = node.exec_with("/usr/bin/unshare", &arguments, &env, &config.to_string());
    let told = reply.complaints();
    reply.failure(5, &["shop/aaa", "address store", "No space left"]);
    assert!(told.contains("full: 10.1.0.2 fd00:1::2 last.10.1.0.2 last.fd00:1::2 lock"), "{told}");
    assert!(told.contains("gone: last.10.1.0.2 last.fd00:1::2 lock"), "{told}");
    assert!(!a.has_link("eth0") && !b.has_link("eth0"));
    assert_eq!(node.state(), Vec::<String>::new());
    assert!(node.agent.endpoints().is_empty());
}
