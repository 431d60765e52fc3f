use std::net::UdpSocket;

use fairway_netlink::{Route, Veth};

use super::*;
use crate::sandbox::sandbox;

#[test]
fn a_tunnelled_pod_packet_fits_into_the_underlay() {
    assert_eq!(pod_mtu(1500, Backend::HostGw, false), 1500);
    assert_eq!(pod_mtu(1500, Backend::Auto, false), 1450);
    assert_eq!(pod_mtu(1500, Backend::Vxlan, true), 1430);
    // The figures of Calico and, over IPv6, flannel.
    assert_eq!(pod_mtu(1500, Backend::Wireguard, false), 1440);
    assert_eq!(pod_mtu(1500, Backend::Wireguard, true), 1420);
}

const PORT: u16 = 8472;
const VXLAN: &str = "fairway-vxlan";
const ADDRESS: &str = "10.244.1.0";

fn ensure(netlink: &mut Netlink, port: u16, mtu: u32) -> Result<u32> {
    ensure_overlay(netlink, Overlay::Vxlan { port }, mtu, &[ADDRESS.parse().expect("an address")])
}

/// A device as flannel makes it.
fn flannel<'a>(name: &'a str, port: u16, vni: u32) -> Vxlan<'a> {
    Vxlan { name, port, vni: Some(vni), ..Vxlan::default() }
}

fn up(netlink: &mut Netlink, vxlan: &Vxlan<'_>) {
    let index = netlink.create_vxlan(vxlan).expect("a device").index;
    netlink.set_up(index).expect("up");
}

#[test]
fn a_foreign_vxlan_device_on_the_port_is_named_and_others_are_not() {
    sandbox(|_| {
        let mut netlink = Netlink::open().expect("netlink");
        up(&mut netlink, &flannel("elsewhere", 4789, 1));
        up(&mut netlink, &flannel("flannel.1", PORT, 1));
        let error = format!("{:#}", ensure(&mut netlink, PORT, 1450).expect_err("taken"));
        for part in ["flannel.1", "VNI 1", "8472", "--vxlan-port", "ip link delete flannel.1"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("elsewhere"), "{error}");
        ensure(&mut netlink, 8473, 1450).expect("another port is free");
    });
}

#[test]
fn a_second_device_for_every_identifier_is_named() {
    sandbox(|_| {
        let mut netlink = Netlink::open().expect("netlink");
        let other = Vxlan { name: "other", port: PORT, collect_metadata: true, ..Vxlan::default() };
        up(&mut netlink, &other);
        let error = format!("{:#}", ensure(&mut netlink, PORT, 1450).expect_err("taken"));
        assert!(error.contains("device other"), "{error}");
    });
}

#[test]
fn a_process_on_the_port_is_told_of() {
    sandbox(|_| {
        let _holder = UdpSocket::bind(("0.0.0.0", PORT)).expect("a socket");
        let mut netlink = Netlink::open().expect("netlink");
        let error = format!("{:#}", ensure(&mut netlink, PORT, 1450).expect_err("taken"));
        assert!(error.contains("a process listens on it"), "{error}");
    });
}

#[test]
fn an_overlay_device_made_otherwise_is_made_anew_and_a_good_one_stays() {
    sandbox(|_| {
        let mut netlink = Netlink::open().expect("netlink");
        up(&mut netlink, &flannel(VXLAN, PORT, 1));
        let first = ensure(&mut netlink, PORT, 1450).expect("made anew");
        assert_eq!(ensure(&mut netlink, PORT, 1450).expect("the same"), first);
        let second = ensure(&mut netlink, PORT + 1, 1450).expect("another port");
        assert_ne!(first, second);
        let link = netlink.link(VXLAN).expect("a list").expect("a device");
        let key = VxlanKey { port: PORT + 1, vni: 0, collect_metadata: true };
        assert_eq!((link.vxlan, link.up), (Some(key), true));
        let addresses = netlink.addresses(link.index).expect("a list");
        assert!(addresses.iter().any(|a| a.net.addr().to_string() == ADDRESS));
    });
}

#[test]
fn something_else_under_the_overlays_name_is_left_alone() {
    sandbox(|_| {
        let mut netlink = Netlink::open().expect("netlink");
        netlink.create_bridge(VXLAN).expect("a bridge");
        let error = ensure(&mut netlink, PORT, 1450).expect_err("a bridge").to_string();
        assert!(error.contains("is a bridge") && error.contains("remove it"), "{error}");
        let overlay = Overlay::Vxlan { port: PORT };
        assert!(!remove_overlay(&mut netlink, overlay).expect("nothing of ours"));
        assert!(netlink.link(VXLAN).expect("a list").is_some());
    });
}

#[test]
fn the_overlay_follows_the_underlays_mtu() {
    sandbox(|_| {
        let mut netlink = Netlink::open().expect("netlink");
        let index = ensure(&mut netlink, PORT, 1450).expect("made");
        for mtu in [1350, 8950] {
            assert_eq!(ensure(&mut netlink, PORT, mtu).expect("changed"), index);
            let link = netlink.link(VXLAN).expect("a list").expect("a device");
            assert_eq!(link.mtu, mtu);
        }
    });
}

#[test]
fn the_uplink_is_the_device_with_the_nodes_address_else_the_default_routes() {
    sandbox(|_| {
        let mut netlink = Netlink::open().expect("netlink");
        let mut plug = |name, peer_name, mtu, address: &str| {
            let veth = Veth { name, peer_name, mtu: Some(mtu), ..Veth::default() };
            let link = netlink.create_veth(&veth).expect("a veth");
            let peer = netlink.link(peer_name).expect("a list").expect("a device");
            netlink.set_up(link.index).and_then(|()| netlink.set_up(peer.index)).expect("up");
            let address = address.parse().expect("an address");
            netlink.add_address(link.index, address, AddressOptions::default()).expect("added");
            link.index
        };
        let outside = plug("eth0", "wire0", 1500, "192.0.2.1/24");
        plug("eth1", "wire1", 1400, "198.51.100.1/24");
        let loopback = netlink.link("lo").expect("a list").expect("a device").index;
        let anycast = "203.0.113.1/32".parse().expect("an address");
        netlink.add_address(loopback, anycast, AddressOptions::default()).expect("added");

        let mut find = |name, known_by: &str| {
            let known_by: Vec<IpAddr> =
                known_by.split_whitespace().map(|a| a.parse().expect("an address")).collect();
            Uplink::find(&mut netlink, name, &known_by).map(|uplink| (uplink.name, uplink.mtu))
        };
        let none = find(None, "").expect_err("no default route").to_string();
        assert!(none.contains("--uplink"), "{none}");
        let inside = || ("eth1".to_owned(), 1400);
        assert_eq!(find(None, "198.51.100.1").expect("found"), inside());
        assert_eq!(find(None, "2001:db8::1 198.51.100.1").expect("found"), inside());
        assert_eq!(find(Some("eth1"), "192.0.2.1").expect("found"), inside());

        let gateway = Some("192.0.2.254".parse().expect("an address"));
        let device = Some(outside);
        let everywhere = "0.0.0.0/0".parse().expect("a range");
        let route = Route { gateway, device, ..Route::to(everywhere) };
        Netlink::open().expect("netlink").add_route(&route).expect("added");
        let outside = || ("eth0".to_owned(), 1500);
        // Unknown, or on a device that no packet leaves by.
        assert_eq!(find(None, "203.0.113.77").expect("found"), outside());
        assert_eq!(find(None, "203.0.113.1").expect("found"), outside());
        assert_eq!(find(None, "198.51.100.1").expect("found"), inside());
    });
}

#[test]
fn a_device_without_an_ethernet_header_is_no_carrier() {
    sandbox(|_| {
        let mut netlink = Netlink::open().expect("netlink");
        let veth = Veth { name: "eth0", peer_name: "wire0", ..Veth::default() };
        netlink.create_veth(&veth).expect("a veth");
        let words = ["tuntap", "add", "tun0", "mode", "tun"];
        let made = std::process::Command::new("ip").args(words).status().expect("ip(8)");
        assert!(made.success());
        for (name, address) in [("eth0", "192.0.2.1/24"), ("tun0", "198.51.100.1/24")] {
            let index = netlink.link(name).expect("a list").expect("a device").index;
            let address = address.parse().expect("an address");
            netlink.add_address(index, address, AddressOptions::default()).expect("added");
            netlink.set_up(index).expect("up");
        }
        let found = carriers(&mut netlink, &BTreeSet::new()).expect("a list");
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["eth0"]);
    });
}
