//! This plugin in a chain with the reference plugins, executed as libcni does.

use std::path::Path;

use fairway_netlink::Netlink;
use serde_json::{Map, Value, json};

use crate::support::{Node, Pod, Reply, exchange, root};
use crate::{V4, V6};

/// Where the package of the reference plugins puts them.
const FOLDER: &str = "/usr/lib/cni";

/// A test that cannot run says so, and fails where it was to run.
fn may_run() -> bool {
    let there = Path::new(FOLDER).join("portmap").exists();
    assert!(there || std::env::var_os("CI").is_none(), "CI has to have the plugins in {FOLDER}");
    if !there {
        eprintln!("NOT RUN: this test needs the reference plugins in {FOLDER}");
    }
    root() && there
}

/// A network configuration list, and what a runtime says of one pod.
struct Chain<'a> {
    node: &'a Node,
    version: &'static str,
    plugins: Vec<Value>,
    runtime: Value,
}

impl<'a> Chain<'a> {
    fn new(node: &'a Node, version: &'static str, plugins: Vec<Value>, runtime: Value) -> Self {
        Self { node, version, plugins, runtime }
    }

    /// The configuration of one plugin: the list's keys, the previous result, and of what the
    /// runtime says that for which the plugin declares a capability.
    fn config(&self, plugin: &Value, previous: &Value) -> Value {
        let mut config = plugin.clone();
        config["cniVersion"] = self.version.into();
        config["name"] = "pods".into();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let declared = |key: &str| plugin["capabilities"][key] == true;
        let said = self.runtime.as_object().expect("an object").iter();
        let said: Map<_, _> =
            said.filter(|(key, _)| declared(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        config["runtimeConfig"] = said.into();
        config
    }

    fn call(&self, verb: &'static str, pod: &Pod, plugin: &Value, previous: &Value) -> Reply {
        let config = self.config(plugin, previous).to_string();
        let mut env = pod.env_with(verb, "CNI_PATH", FOLDER);
        // The reference plugins look for iptables.
        env.push(("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
        match plugin["type"].as_str().expect("a type") {
            "fairway-cni" => self.node.exec(&env, &config),
            other => self.node.exec_other(&Path::new(FOLDER).join(other), &env, &config),
        }
    }

    /// ADD of each in order, each given the result of the one before.
    #[track_caller]
    fn add(&self, pod: &Pod) -> Value {
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = self.call("ADD", pod, plugin, &result).success();
        }
        result
    }

    #[track_caller]
    fn check(&self, pod: &Pod, result: &Value) {
        // portmap 1.1 cannot: it looks for the rules of IPv4 among those of IPv6, and fails.
        for plugin in self.plugins.iter().filter(|plugin| plugin["type"] != "portmap") {
            self.call("CHECK", pod, plugin, result).success();
        }
    }

    /// DEL of each in reverse order, all given the last result of ADD.
    #[track_caller]
    fn delete(&self, pod: &Pod, result: &Value) {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", pod, plugin, result).success();
        }
    }
}

fn ours(node: &Node) -> Value {
    let mut config = node.config();
    config["capabilities"] = json!({"ips": true, "mac": true});
    config
}

#[test]
fn first_in_a_chain_its_result_is_what_portmap_bandwidth_and_tuning_need() {
    if !may_run() {
        return;
    }
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let node = Node::new(&[V4, V6]);
        node.ip(&["link", "set", "lo", "up"]);
        let plugins = vec![
            ours(&node),
            json!({"type": "tuning", "sysctl": {"net.ipv4.conf.all.log_martians": "1"}, "mtu": 1400,
                   "dataDir": node.folder().join("tuning")}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
            json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
        ];
        let runtime = json!({
            "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
                          "egressRate": 8_000_000, "egressBurst": 800_000},
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        });
        let chain = Chain::new(&node, version, plugins, runtime);
        let pod = Pod::new("aaa", "eth0");
        let result = chain.add(&pod);

        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["address"], "10.1.0.2/32");
        let host = result["interfaces"][0]["name"].as_str().unwrap();
        assert!(pod.ip(&["link", "show", "eth0"]).contains("mtu 1400"), "tuning found it");
        let shaped = node.run("tc", &["qdisc", "show", "dev", host]);
        assert!(shaped.contains("tbf") && shaped.contains("ingress"), "bandwidth: {shaped}");
        let mapped = node.run("iptables-save", &["-t", "nat"]);
        assert!(mapped.contains("10.1.0.2:80"), "portmap: {mapped}");
        node.own_address("10.1.0.0/32");
        exchange((node.netns(), "10.1.0.0"), (pod.netns(), "10.1.0.2"));

        if version != "0.3.1" {
            chain.check(&pod, &result);
        }
        chain.delete(&pod, &result);
        // The runtime may not know whether that was all.
        chain.delete(&pod, &result);
        assert!(!pod.has_link("eth0") && node.reserved().is_empty());
        assert!(node.agent.endpoints().is_empty());
        assert!(!node.run("iptables-save", &["-t", "nat"]).contains("10.1.0.2"));
    }
}

fn ptp(node: &Node, ranges: &[&str]) -> Value {
    let ranges: Vec<_> = ranges.iter().map(|range| json!([{"subnet": range}])).collect();
    json!({
        "type": "ptp",
        "ipam": {"type": "host-local", "dataDir": node.folder().join("host-local"),
                 "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    })
}

#[test]
fn an_interface_that_ptp_made_is_registered_and_left_as_it_is() {
    if !may_run() {
        return;
    }
    let node = Node::new(&[V4, V6]);
    node.ip(&["link", "set", "lo", "up"]);
    let plugins = vec![ptp(&node, &[V4, V6]), ours(&node)];
    let chain = Chain::new(&node, "1.0.0", plugins, json!({}));
    let pod = Pod::new("aaa", "eth0");

    let made = chain.call("ADD", &pod, &chain.plugins[0], &Value::Null).success();
    let shown = (pod.ip(&["addr"]), pod.ip(&["route"]), node.ip(&["link"]), node.ip(&["route"]));
    let result = chain.call("ADD", &pod, &chain.plugins[1], &made).success();
    let mut passed_on = made.clone();
    // Empty; ours leaves out what says nothing.
    passed_on.as_object_mut().unwrap().remove("dns");
    assert_eq!(result, passed_on);
    let after = (pod.ip(&["addr"]), pod.ip(&["route"]), node.ip(&["link"]), node.ip(&["route"]));
    assert_eq!(shown, after);
    assert_eq!(node.reserved(), Vec::<String>::new(), "its addresses are host-local's");

    let [known] = &node.agent.endpoints()[..] else { panic!("one endpoint") };
    assert_eq!(known.host_interface, made["interfaces"][0]["name"]);
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    assert_eq!(mac(known.host_mac), made["interfaces"][0]["mac"]);
    assert_eq!(mac(known.pod_mac), made["interfaces"][1]["mac"]);
    let addresses: Vec<_> = known.addresses.iter().map(ToString::to_string).collect();
    let told: Vec<_> = made["ips"].as_array().unwrap().iter().collect();
    for (address, ip) in addresses.iter().zip(&told) {
        assert!(ip["address"].as_str().unwrap().starts_with(&format!("{address}/")), "{ip}");
    }
    assert_eq!(addresses.len(), 2);

    chain.check(&pod, &result);
    // Asked again, the same.
    chain.call("ADD", &pod, &chain.plugins[1], &made).success();
    // The address is taken for the pods that get theirs from this plugin, too.
    let other = Pod::new("bbb", "eth0");
    let given = node.call("ADD", &other, &node.config()).success();
    assert_ne!(given["ips"][0]["address"], format!("{}/32", addresses[0]));
    node.call("DEL", &other, &node.config()).success();

    let complains = |texts: &[&str]| {
        chain.call("CHECK", &pod, &chain.plugins[1], &result).failure(103, texts);
    };
    node.ip(&["route", "del", &addresses[0]]);
    complains(&["shop/aaa", "prevResult", "does not route"]);
    chain.call("DEL", &pod, &chain.plugins[1], &result).success();
    assert!(node.agent.endpoints().is_empty(), "no more than the registration goes");
    assert!(pod.has_link("eth0"));
    chain.delete(&pod, &result);
    assert!(!pod.has_link("eth0"));
    complains(&["prevResult", "it is not in"]);
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[test]
fn an_interface_that_does_not_fit_is_refused_and_left_alone() {
    if !may_run() {
        return;
    }
    let node = Node::new(&[V4]);
    node.ip(&["link", "set", "lo", "up"]);
    let pod = Pod::new("aaa", "eth0");
    let refused = |first: Value, texts: &[&str]| {
        let chain = Chain::new(&node, "1.0.0", vec![first, ours(&node)], json!({}));
        let made = chain.call("ADD", &pod, &chain.plugins[0], &Value::Null).success();
        let before = (node.state(), pod.ip(&["addr"]));
        chain.call("ADD", &pod, &chain.plugins[1], &made).failure(7, &["prevResult", "\"eth0\""]);
        let reply = chain.call("ADD", &pod, &chain.plugins[1], &made);
        reply.failure(7, texts);
        assert_eq!((node.state(), pod.ip(&["addr"])), before);
        assert!(node.agent.endpoints().is_empty());
        chain.delete(&pod, &made);
        assert!(!pod.has_link("eth0"));
    };
    let mut bridge = ptp(&node, &[V4]);
    bridge["type"] = "bridge".into();
    bridge["bridge"] = "br0".into();
    refused(bridge, &["a port of \"br0\"", "ptp"]);
    refused(ptp(&node, &["10.9.0.0/24"]), &["10.9.0.2", "10.1.0.0/24", "no other node"]);

    // What the previous result says and what is there have to agree.
    let says = |name: &str| {
        let mut config = ours(&node);
        config["prevResult"] = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": name, "sandbox": pod.netns_path()}],
            "ips": [{"address": "10.1.0.9/32", "interface": 0}],
        });
        config
    };
    let before = node.state();
    node.call("ADD", &pod, &says("eth0")).failure(7, &["prevResult", "eth0", "it is not in"]);
    Netlink::open_in(pod.netns()).unwrap().create_bridge("eth0").unwrap();
    node.call("ADD", &pod, &says("eth0")).failure(7, &["no veth", "but bridge"]);
    node.call("ADD", &pod, &says("net1")).failure(101, &["\"eth0\" already exists"]);
    assert!(node.state() == before && node.agent.endpoints().is_empty());
}
