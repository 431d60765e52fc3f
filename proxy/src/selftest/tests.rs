use std::collections::HashSet;
use std::process::Command;

use fairway_netlink::{AddressOptions, NetNs, Veth};

use super::*;
use crate::node;
use crate::sandbox::sandbox;

fn peer(name: &str, address: &str, pod_cidr: &str) -> Node {
    let json = serde_json::json!({"name": name, "addresses": [address], "pod_cidrs": [pod_cidr]});
    serde_json::from_value(json).expect("a node")
}

fn model(count: usize) -> Model {
    let nodes = (0..count).map(|number| peer(&format!("n{number}"), "192.0.2.2", "10.1.0.0/24"));
    Model { nodes: nodes.collect(), ..Model::default() }
}

fn names(peers: &[Node]) -> Vec<&str> {
    peers.iter().map(|peer| peer.name.as_str()).collect()
}

#[test]
fn a_few_peers_at_once_then_one_by_one_and_a_sample_in_all() {
    let mut plan = Plan::new("n0".to_owned());
    let model = model(5000);
    let now = Instant::now();
    let mut tested = HashSet::new();
    for round in 0..SAMPLE * 2 {
        let due = plan.due(&model, now);
        assert!(due.len() <= if round == 0 { AT_ONCE } else { 1 });
        for peer in due {
            plan.tested(&peer, &[passed("reach")], now);
            assert!(tested.insert(peer.name), "what passed is not tested again");
        }
    }
    assert_eq!(tested.len(), SAMPLE);
    assert!(!tested.contains("n0"), "not the node itself");
    let others = names(&Plan::new("n1".to_owned()).due(&model, now)).len();
    assert_eq!(others, AT_ONCE);
}

#[test]
fn what_failed_is_tried_again_and_what_changed_at_once() {
    let mut plan = Plan::new("n0".to_owned());
    let mut two = model(2);
    let now = Instant::now();
    let due = plan.due(&two, now);
    assert_eq!(names(&due), ["n1"]);
    plan.tested(&due[0], &[finding("reach_tunnel", Outcome::Failed, "")], now);
    assert!(plan.due(&two, now).is_empty());
    assert_eq!(names(&plan.due(&two, now + SOON)), ["n1"]);
    plan.tested(&due[0], &[finding("path_mtu", Outcome::Failed, "")], now);
    assert!(plan.due(&two, now + SOON).is_empty());
    assert_eq!(names(&plan.due(&two, now + AGAIN)), ["n1"]);
    plan.tested(&due[0], &[passed("reach")], now);
    assert!(plan.due(&two, now + AGAIN).is_empty());
    two.nodes.insert(peer("n1", "192.0.2.3", "10.1.0.0/24"));
    assert_eq!(names(&plan.due(&two, now)), ["n1"]);
    two.nodes.remove("n1");
    assert!(plan.due(&two, now).is_empty() && !plan.knows("n1"));
}

/// The outcome of a check, and what it says.
fn outcome<'a>(findings: &'a [Finding], check: &str) -> (Outcome, &'a str) {
    let found = findings.iter().find(|finding| finding.check == check);
    let found = found.unwrap_or_else(|| panic!("no {check} in {findings:?}"));
    (found.outcome, &found.message)
}

#[test]
fn settings_that_somebody_changed_are_put_right() {
    sandbox(|_| {
        let state = tempfile::tempdir().expect("a folder");
        let traces = Traces::open(state.path()).expect("a record");
        let mut netlink = Netlink::open().expect("netlink");
        let vxlan = Overlay::Vxlan { port: 8472 };
        node::ensure_overlay(&mut netlink, vxlan, 1450, &[]).expect("an overlay");
        let filter = source_filter(vxlan.device());
        of_node(&traces).expect("tested");
        let again = of_node(&traces).expect("tested");
        assert!(again.iter().all(|finding| finding.outcome == Outcome::Passed), "{again:?}");

        sysctl::set("net/ipv4/ip_forward", "0").expect("a setting");
        sysctl::set(&filter, "1").expect("a setting");
        let found = of_node(&traces).expect("tested");
        for check in ["forwarding", "rp_filter"] {
            let (outcome, message) = outcome(&found, check);
            assert_eq!(outcome, Outcome::Repaired);
            assert!(message.contains("sysctl.d"), "{message}");
        }
        assert_eq!(sysctl::get("net/ipv4/ip_forward").expect("a setting"), "1");
        assert_eq!(sysctl::get(&filter).expect("a setting"), "2");
    });
}

#[test]
fn rules_and_devices_of_others_are_named() {
    sandbox(|root| {
        let nft = |words: &str| {
            let done = Command::new("nft").arg(words).status();
            assert!(done.expect("nft, which xtask setup installs").success(), "{words}");
        };
        nft("add table ip filter");
        nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }");
        let found = beside_us(root).expect("tested");
        let (noted, message) = outcome(&found, "forward_policy");
        assert_eq!(noted, Outcome::Noted);
        assert!(message.contains("filter FORWARD"), "{message}");
        assert_eq!(outcome(&found, "kube_proxy").0, Outcome::Passed);

        nft("add table ip nat");
        nft("add chain ip nat KUBE-SERVICES");
        let mut netlink = Netlink::open().expect("netlink");
        netlink.create_bridge("cni0").expect("a bridge");
        let found = beside_us(root).expect("tested");
        let (failed, message) = outcome(&found, "kube_proxy");
        assert_eq!(failed, Outcome::Failed);
        assert!(
            message.contains("KUBE-SERVICES of table nat")
                && message.contains("cleanup --kube-proxy")
        );
        assert!(outcome(&found, "flannel").1.contains("cni0"));
    });
}

#[test]
fn daemons_are_noted_until_they_are_told_to_keep_off() {
    let root = tempfile::tempdir().expect("a folder");
    let write = |path: &str, contents: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, contents).expect("a file");
    };
    let outcomes = || daemons(root.path()).into_iter().map(|f| f.outcome).collect::<Vec<_>>();
    assert_eq!(outcomes(), [Outcome::Passed, Outcome::Passed]);
    write("run/systemd/netif/state", "");
    write("run/NetworkManager/devices/1", "");
    assert_eq!(outcomes(), [Outcome::Noted, Outcome::Noted]);
    write("etc/systemd/networkd.conf", "[Network]\n#ManageForeignRoutes=no\n");
    assert_eq!(outcomes(), [Outcome::Noted, Outcome::Noted]);
    // As the messages say.
    write("etc/systemd/networkd.conf.d/fairway.conf", "[Network]\nManageForeignRoutes=no\n");
    let keep_off = "[keyfile]\nunmanaged-devices=interface-name:fw*;interface-name:fairway-*\n";
    write("etc/NetworkManager/conf.d/fairway.conf", keep_off);
    assert_eq!(outcomes(), [Outcome::Passed, Outcome::Passed]);
}

#[test]
fn a_peer_is_tested_by_what_its_kernel_answers() {
    sandbox(|_| {
        let other = NetNs::unnamed().expect("a namespace");
        let mut here = Netlink::open().expect("netlink");
        let veth =
            Veth { name: "eth0", peer_name: "eth0", peer_netns: Some(&other), ..Veth::default() };
        here.create_veth(&veth).expect("a veth");
        let mut there = Netlink::open_in(&other).expect("netlink");
        for (netlink, address) in [(&mut here, "192.0.2.1/24"), (&mut there, "192.0.2.2/24")] {
            let index = netlink.link("eth0").expect("a list").expect("a device").index;
            netlink.set_up(index).expect("up");
            let address = address.parse().expect("an address");
            netlink.add_address(index, address, AddressOptions::default()).expect("added");
        }
        let test =
            |address: &str, mtu| of_peer(&peer("n2", address, "10.1.2.0/24"), mtu).expect("tested");
        let good = test("192.0.2.2", None);
        assert_eq!(good, [passed("path_mtu"), passed("reach")]);

        // The network between the nodes takes less than its devices say.
        let index = there.link("eth0").expect("a list").expect("a device").index;
        there.set_mtu(index, 1400).expect("an MTU");
        let lossy = test("192.0.2.2", None);
        let (failed, message) = outcome(&lossy, "path_mtu");
        assert_eq!(failed, Outcome::Failed);
        // A veth takes a VLAN tag's four bytes more than its MTU.
        assert!(message.contains("--underlay-mtu 1404"), "{message}");
        assert_eq!(outcome(&test("192.0.2.2", Some(1400)), "path_mtu").0, Outcome::Passed);

        assert_eq!(outcome(&test("192.0.2.77", None), "reach").0, Outcome::Failed);
        let nowhere = test("203.0.113.9", None);
        assert!(outcome(&nowhere, "reach").1.contains("no route"), "{nowhere:?}");
    });
}

#[test]
fn spoiled_checksums_are_computed_before_the_tunnel_if_that_helps() {
    let to: IpAddr = "10.1.2.0".parse().expect("an address");
    let judge = |by_device: bool, by_host: bool| {
        let offloaded = std::cell::Cell::new(true);
        let refused = || Ok(if offloaded.get() { by_device } else { by_host });
        let set = |on| {
            offloaded.set(on);
            Ok(())
        };
        let found =
            judge_checksums((to, "vxlan"), refused, || Ok(offloaded.get()), set).expect("judged");
        (found.outcome, offloaded.get())
    };
    assert_eq!(judge(true, true), (Outcome::Passed, true));
    assert_eq!(judge(false, true), (Outcome::Repaired, false));
    assert_eq!(judge(false, false), (Outcome::Noted, true), "it was not the offload: put back");
}
