//! Calls beside a pod that lives already, and whose route, address and interface have to stay.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};

use fairway_cni::Reconciled;
use fairway_cni_protocol::{Request, Response};
use fairway_netlink::{Family, NetNs, Netlink, Route, RouteKind};
use serde_json::{Value, json};

use crate::support::{Agent, Node, Pod, exchange, root};
use crate::{V4, V6};

/// A node with one pod, "aaa", that answers at 10.1.0.2 and fd00:1::2.
fn node_with_a_pod() -> (Node, Pod) {
    let node = Node::new(&[V4, V6]);
    let pod = Pod::new("aaa", "eth0");
    node.call("ADD", &pod, &node.config()).success();
    node.own_address("10.1.0.0/32");
    node.own_address("fd00:1::/128");
    node.forward();
    answers(&node, &pod);
    (node, pod)
}

#[track_caller]
fn answers(node: &Node, pod: &Pod) {
    for (own, address) in [("10.1.0.0", "10.1.0.2"), ("fd00:1::", "fd00:1::2")] {
        exchange((node.netns(), own), (pod.netns(), address));
    }
}

fn refuse_add(request: &Request) -> Option<Response> {
    matches!(request, Request::AddEndpoint { .. }).then(|| Agent::refusal(false, "map is full"))
}

#[test]
fn another_network_on_the_node_has_other_addresses() {
    if !root() {
        return;
    }
    let (node, living) = node_with_a_pod();
    let before = node.state();
    let other = node.config_with("name", &"other".into());
    let pod = Pod::new("bbb", "eth0");

    node.agent.answer_with(refuse_add);
    node.call("ADD", &pod, &other).failure(102, &["map is full"]);
    assert_eq!(node.state(), before);
    answers(&node, &living);

    node.agent.answer_with(|_| None);
    let result = node.call("ADD", &pod, &other).success();
    assert_eq!(result["ips"][0]["address"], "10.1.0.4/32", "the one refused is not tried again");
    exchange((living.netns(), "10.1.0.2"), (pod.netns(), "10.1.0.4"));

    // What is not listed for one network is not garbage of the other.
    let mut nothing_valid = other.clone();
    nothing_valid["cni.dev/valid-attachments"] = json!([]);
    node.exec(&[("CNI_COMMAND", "GC")], &nothing_valid.to_string()).success();
    assert!(!pod.has_link("eth0"));
    assert_eq!(node.state(), before);
    answers(&node, &living);

    // Its network has been renamed when the pod goes.
    node.call("DEL", &living, &other).success();
    assert_eq!(node.reserved(), Vec::<String>::new());
}

#[test]
fn a_lost_store_takes_no_address_from_a_pod() {
    if !root() {
        return;
    }
    let (node, living) = node_with_a_pod();
    node.lose_store();
    let before = node.state();
    let pod = Pod::new("bbb", "eth0");

    node.agent.answer_with(refuse_add);
    node.call("ADD", &pod, &node.config()).failure(102, &["map is full"]);
    assert_eq!(node.state(), before);
    answers(&node, &living);

    node.agent.answer_with(|_| None);
    node.call("ADD", &pod, &node.config()).success();
    answers(&node, &living);
    exchange((node.netns(), "10.1.0.0"), (pod.netns(), "10.1.0.4"));
    node.call("DEL", &pod, &node.config()).success();
    assert_eq!(node.state(), before);
    answers(&node, &living);
}

#[test]
fn an_address_taken_in_the_middle_of_add_stays_with_its_taker() {
    if !root() {
        return;
    }
    let (node, living) = node_with_a_pod();
    let pod = Pod::new("bbb", "eth0");
    let here = format!("/proc/self/fd/{}", node.netns().as_fd().as_raw_fd());
    let netns = NetNs::open(here).unwrap();
    let taker = Route { kind: RouteKind::Unreachable, ..Route::to("10.1.0.3/32".parse().unwrap()) };
    // After the address was chosen.
    node.agent.answer_with(move |request| {
        if matches!(request, Request::AddEndpoint { .. }) {
            Netlink::open_in(&netns).unwrap().add_route(&taker).unwrap();
        }
        None
    });
    let mut expected = node.state();
    node.call("ADD", &pod, &node.config()).failure(11, &["10.1.0.3/32", "taken"]);
    node.agent.answer_with(|_| None);
    let found = node.state();
    expected.extend(found.iter().find(|line| line.starts_with("unreachable 10.1.0.3")).cloned());
    expected.sort();
    let mut found = found;
    found.sort();
    assert_eq!(found, expected);
    assert!(!pod.has_link("eth0"));
    let result = node.call("ADD", &pod, &node.config()).success();
    assert_eq!(result["ips"][0]["address"], "10.1.0.4/32");
    answers(&node, &living);
}

#[test]
fn nothing_passes_before_the_agent_has_attached() {
    if !root() {
        return;
    }
    let (node, _living) = node_with_a_pod();
    let here = format!("/proc/self/fd/{}", node.netns().as_fd().as_raw_fd());
    let netns = NetNs::open(here).unwrap();
    let seen = Arc::new(Mutex::new(None));
    let seeing = seen.clone();
    node.agent.answer_with(move |request| {
        if let Request::AddEndpoint { endpoint } = request {
            let mut netlink = Netlink::open_in(&netns).unwrap();
            let link = netlink.link_by_index(endpoint.host_ifindex).unwrap().unwrap();
            let routes = netlink.routes(Family::V4, Some(Route::MAIN)).unwrap();
            let routed = routes.iter().any(|route| route.device == Some(link.index));
            *seeing.lock().unwrap() = Some((link.name == endpoint.host_interface, link.up, routed));
        }
        None
    });
    let pod = Pod::new("bbb", "eth0");
    node.call("ADD", &pod, &node.config()).success();
    assert_eq!(seen.lock().unwrap().take(), Some((true, false, false)), "there, down, no route");
    exchange((pod.netns(), "10.1.0.3"), (node.netns(), "10.1.0.0"));
}

#[test]
fn a_second_add_in_another_namespace_leaves_the_first_alone() {
    if !root() {
        return;
    }
    let (node, living) = node_with_a_pod();
    let before = node.state();
    let endpoints = node.agent.endpoints();
    let twin = Pod::new("aaa", "eth0");
    for refuses in [false, true] {
        node.agent.answer_with(move |request| if refuses { refuse_add(request) } else { None });
        let reply = node.call("ADD", &twin, &node.config());
        reply.failure(101, &["already exists", "on the node", "DEL comes first"]);
        assert_eq!(node.state(), before);
        assert_eq!(node.agent.endpoints(), endpoints);
        assert!(living.has_link("eth0") && !twin.has_link("eth0"));
        answers(&node, &living);
    }
}

#[test]
fn a_failed_add_keeps_what_an_earlier_one_reserved() {
    if !root() {
        return;
    }
    let (node, pod) = node_with_a_pod();
    let before = node.reserved();
    let host = node.agent.endpoints()[0].host_interface.clone();
    node.ip(&["link", "del", &host]);
    node.agent.answer_with(refuse_add);
    node.call("ADD", &pod, &node.config()).failure(102, &["map is full"]);
    assert_eq!(node.reserved(), before, "DEL gives it back");
    node.call("DEL", &pod, &node.config()).success();
    assert_eq!(node.reserved(), Vec::<String>::new());
}

#[test]
fn a_store_is_reconciled_with_the_pods_there_are() {
    if !root() {
        return;
    }
    let (node, living) = node_with_a_pod();
    let endpoints = node.agent.endpoints();
    let before = node.state();
    assert_eq!(node.reconcile(&endpoints), Reconciled::default(), "all is well");

    // Lost or damaged, the pods' addresses are theirs again.
    let own = ["10.1.0.2", "fd00:1::2"].map(|address| address.parse::<IpAddr>().unwrap());
    node.lose_store();
    assert_eq!(node.reconcile(&endpoints).restored, own);
    assert_eq!(node.state(), before);
    node.damage_reservation("10.1.0.2");
    assert_eq!(node.reconcile(&endpoints).restored, own[..1]);
    assert_eq!(node.state(), before);

    // One that nobody registered keeps what is routed to it; one that is gone loses its own.
    let pod = Pod::new("bbb", "eth0");
    let result = node.call("ADD", &pod, &node.config()).success();
    let with_both = node.state();
    assert_eq!(node.reconcile(&endpoints), Reconciled::default());
    assert_eq!(node.state(), with_both);
    node.ip(&["link", "del", result["interfaces"][0]["name"].as_str().unwrap()]);
    assert_eq!(node.reconcile(&endpoints).freed.len(), 2);
    assert_eq!(node.state(), before);
    answers(&node, &living);

    // After a reboot nothing is left but the store.
    let rebooted = Node::new(&[V4, V6]);
    let stale = ["10.1.0.2", "fd00:1::2"];
    rebooted.take_store_of(&node);
    assert_eq!(rebooted.reserved(), stale);
    assert_eq!(rebooted.reconcile(&[]).freed.len(), 2);
    assert_eq!(rebooted.state(), Vec::<String>::new());

    node.call("DEL", &living, &node.config()).success();
    assert_eq!(node.reserved(), Vec::<String>::new(), "restored, it is freed as any other");
}

#[test]
fn a_restored_address_passes_check_and_is_garbage_when_its_interface_is_gone() {
    if !root() {
        return;
    }
    let node = Node::new(&[V4]);
    let pod = Pod::new("aaa", "eth0");
    let result = node.call("ADD", &pod, &node.config()).success();
    let endpoints = node.agent.endpoints();
    node.lose_store();
    assert_eq!(node.reconcile(&endpoints).restored.len(), 1);
    node.call("CHECK", &pod, &node.config_with("prevResult", &result)).success();

    // Its network's name is lost, so that a list of another one's attachments says nothing of it.
    let gc = |config: &Value| node.exec(&[("CNI_COMMAND", "GC")], &config.to_string()).success();
    let none = node.config_with("cni.dev/valid-attachments", &json!([]));
    let valid = json!([{"containerID": "aaa", "ifname": "eth0"}]);
    gc(&none);
    assert!(pod.has_link("eth0") && node.reserved() == ["10.1.0.2"]);
    node.ip(&["link", "del", result["interfaces"][0]["name"].as_str().unwrap()]);
    gc(&node.config_with("cni.dev/valid-attachments", &valid));
    assert_eq!(node.reserved(), ["10.1.0.2"], "it is valid");
    gc(&none);
    assert_eq!(node.reserved(), Vec::<String>::new());
}
