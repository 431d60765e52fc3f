use std::process::Command;

use fairway_netlink::{Link, NetNs, Netlink, Route, Veth, Vxlan};

use crate::{device, ip, netns};

#[test]
fn veth_pair_across_namespaces() {
    let (Some(here), Some(there)) = (netns(), netns()) else {
        return;
    };
    let mut node = Netlink::open_in(&here).unwrap();
    let mut pod = Netlink::open_in(&there).unwrap();
    let request = Veth {
        name: "host0",
        peer_name: "eth0",
        mtu: Some(1400),
        mac: Some([2, 0, 0, 0, 0, 1]),
        peer_mac: Some([2, 0, 0, 0, 0, 2]),
        peer_netns: Some(&there),
    };
    let host = node.create_veth(&request).unwrap();
    let eth0 = pod.link("eth0").unwrap().unwrap();
    assert_eq!(host.kind.as_deref(), Some("veth"));
    assert_eq!((host.mtu, host.mac), (1400, Some([2, 0, 0, 0, 0, 1])));
    assert_eq!((eth0.mtu, eth0.mac), (1400, Some([2, 0, 0, 0, 0, 2])));
    assert_eq!(host.peer_index, Some(eth0.index));
    assert_eq!(eth0.peer_index, Some(host.index));
    assert!(!host.up);

    assert!(node.create_veth(&request).unwrap_err().is_exists());
    // The other end's name is taken: this end must not stay behind.
    assert!(node.create_veth(&Veth { name: "host1", ..request }).unwrap_err().is_exists());
    assert_eq!(node.link("host1").unwrap(), None);

    node.set_up(host.index).unwrap();
    assert!(!node.link_by_index(host.index).unwrap().unwrap().lower_up, "the peer is down");
    pod.set_up(eth0.index).unwrap();
    let host = node.link("host0").unwrap().unwrap();
    assert!(host.up && host.lower_up);

    node.delete_link(host.index).unwrap();
    node.delete_link(host.index).unwrap();
    assert_eq!(pod.link("eth0").unwrap(), None);
}

#[test]
fn link_properties_are_changed_one_by_one() {
    let (Some(here), Some(there)) = (netns(), netns()) else {
        return;
    };
    let mut node = Netlink::open_in(&here).unwrap();
    let bridge = node.create_bridge("br0").unwrap();
    let index = device(&mut node, "port0");
    let show = |node: &mut Netlink, index| node.link_by_index(index).unwrap().unwrap();
    let port = show(&mut node, index);
    node.set_down(index).unwrap();

    node.set_mtu(port.index, 1300).unwrap();
    node.set_mac(port.index, [2, 1, 1, 1, 1, 1]).unwrap();
    node.set_name(port.index, "port.1").unwrap();
    node.set_master(port.index, Some(bridge.index)).unwrap();
    node.set_up(port.index).unwrap();
    let changed = show(&mut node, port.index);
    let expected = Link {
        name: "port.1".to_owned(),
        mtu: 1300,
        mac: Some([2, 1, 1, 1, 1, 1]),
        master: Some(bridge.index),
        up: true,
        lower_up: true,
        running: changed.running,
        ..port.clone()
    };
    assert_eq!(changed, expected);

    node.set_master(port.index, None).unwrap();
    node.set_down(port.index).unwrap();
    let changed = show(&mut node, port.index);
    assert_eq!((changed.master, changed.up), (None, false));

    node.move_to(port.index, &there).unwrap();
    assert_eq!(node.link("port.1").unwrap(), None);
    assert!(Netlink::open_in(&there).unwrap().link("port.1").unwrap().is_some());
}

#[test]
fn vxlan_with_and_without_metadata() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let overlay = Vxlan {
        name: "overlay",
        port: 8472,
        collect_metadata: true,
        mtu: Some(1450),
        mac: Some([2, 0, 0, 0, 0, 9]),
        ..Vxlan::default()
    };
    let link = node.create_vxlan(&overlay).unwrap();
    assert_eq!((link.kind.as_deref(), link.mtu), (Some("vxlan"), 1450));
    let plain = Vxlan {
        name: "vx7",
        port: 4789,
        vni: Some(7),
        local: Some(ip("10.0.0.1")),
        learning: true,
        ..Vxlan::default()
    };
    node.create_vxlan(&plain).unwrap();

    let shown = ip_command(&netns, &["-d", "link", "show"]);
    assert!(shown.contains("vxlan external") && shown.contains("nolearning"), "{shown}");
    assert!(shown.contains("vxlan id 7 local 10.0.0.1"), "{shown}");
}

#[test]
fn the_kernels_explanation_is_kept() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let device = device(&mut node, "d0");
    let stray = Route { gateway: Some(ip("10.9.9.9")), ..Route::to("0.0.0.0/0".parse().unwrap()) };
    let refusals = [node.set_mtu(device, 7), node.replace_route(&stray)];
    for error in refusals.map(Result::unwrap_err) {
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("kernel: "), "{error}: {source}");
    }
    let error = node.create_bridge("an-interface-name-too-long").unwrap_err();
    assert!(error.to_string().contains("at most 15 bytes"), "{error}");
    assert!(node.set_up(77).unwrap_err().is_not_found());
}

fn ip_command(netns: &NetNs, arguments: &[&str]) -> String {
    let mut command = Command::new("ip");
    command.args(arguments);
    netns.enter_on_spawn(&mut command).expect("the namespace");
    let output = command.output().expect("ip(8)");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}
