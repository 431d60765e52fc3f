//! Each verb against the running kernel, in network namespaces that exist for one test alone.
//! They need root; see [`root`].

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fairway_netlink::offload::{self, Offload};
use fairway_netlink::{
    AddressOptions, Error, Event, Family, Group, Link, NetNs, Netlink, Route, RouteKind, Veth,
    Vxlan, Watch, sysctl,
};

#[test]
fn a_new_namespace_has_a_loopback_device_alone() {
    let Some(netns) = netns() else { return };
    let links = Netlink::open_in(&netns).unwrap().links().unwrap();
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["lo"]);
    assert!(links[0].loopback && !links[0].up && links[0].index == 1);
}

#[test]
fn a_named_namespace_is_the_one_ip_netns_knows() {
    if !root() {
        return;
    }
    let name = Name::new();
    let netns = NetNs::create(&name.0).unwrap();
    assert!(NetNs::open(NetNs::path(&name.0)).unwrap() == netns);
    assert!(NetNs::create(&name.0).unwrap_err().is_exists());
    assert!(NetNs::open(NetNs::path(&name.0)).unwrap() == netns, "a refusal changes nothing");

    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(String::from_utf8(listed.stdout).unwrap().contains(&name.0));

    NetNs::delete(&name.0).unwrap();
    NetNs::delete(&name.0).unwrap();
    assert!(!NetNs::path(&name.0).exists());
    assert!(NetNs::open(NetNs::path(&name.0)).unwrap_err().is_not_found());
    // Whoever still holds it can still use it.
    assert_eq!(Netlink::open_in(&netns).unwrap().links().unwrap().len(), 1);
}

#[test]
fn what_is_no_network_namespace_is_not_opened() {
    for path in ["/dev/null", "/proc/self/ns/mnt", "/proc/self/status", "/"] {
        let error = NetNs::open(path).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{path}: {error:?}");
    }
    assert!(NetNs::open("/nonexistent").unwrap_err().is_not_found());
    assert!(matches!(NetNs::create("a/b").unwrap_err(), Error::Invalid { .. }));
    assert!(matches!(NetNs::delete("..").unwrap_err(), Error::Invalid { .. }));
}

#[test]
fn run_enters_the_namespace_and_leaves_the_caller_where_it_was() {
    let Some(netns) = netns() else { return };
    let before = NetNs::current().unwrap();
    let inside = netns.run(|| NetNs::current().unwrap()).unwrap();
    assert!(inside == netns);
    assert!(NetNs::current().unwrap() == before && before != netns);

    let panic = std::panic::catch_unwind(|| netns.run(|| panic!("inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
}

#[test]
fn a_child_process_starts_inside() {
    let Some(netns) = netns() else { return };
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net");
    netns.enter_on_spawn(&mut command).unwrap();
    let output = command.output().unwrap();
    let inode = netns.identity().1;
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("net:[{inode}]"));
}

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

#[test]
fn addresses_of_both_families() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let device = device(&mut node, "d0");
    let quiet = AddressOptions { nodad: true, noprefixroute: true };
    for net in ["10.1.2.3/24", "10.1.9.9/32", "fd00:1::3/64"] {
        node.add_address(device, net.parse().unwrap(), quiet).unwrap();
        assert!(node.add_address(device, net.parse().unwrap(), quiet).unwrap_err().is_exists());
    }
    let shown = node.addresses(device).unwrap();
    let nets: Vec<_> = shown.iter().filter(|a| !a.local_scope).map(|a| a.net.to_string()).collect();
    assert_eq!(nets, ["10.1.2.3/24", "10.1.9.9/32", "fd00:1::3/64"]);
    let v6 = shown.iter().find(|a| a.net.to_string() == "fd00:1::3/64").unwrap();
    assert!(!v6.tentative, "nodad");
    assert_eq!(node.routes(Family::V4, Some(Route::MAIN)).unwrap(), [], "noprefixroute");

    node.delete_address(device, "10.1.9.9/32".parse().unwrap()).unwrap();
    node.delete_address(device, "10.1.9.9/32".parse().unwrap()).unwrap();
    node.delete_address(device, "fd00:1::3/64".parse().unwrap()).unwrap();
    node.delete_address(device, "fd00:1::3/64".parse().unwrap()).unwrap();
    let global = node.addresses(device).unwrap().into_iter().filter(|a| !a.local_scope);
    assert_eq!(global.map(|a| a.net.to_string()).collect::<Vec<_>>(), ["10.1.2.3/24"]);
    assert_eq!(node.addresses(77).unwrap(), []);
}

#[test]
fn routes_of_both_families_are_read_back_as_written() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let device = device(&mut node, "d0");
    for net in ["10.1.2.3/24", "fd00:1::3/64"] {
        let options = AddressOptions { nodad: true, noprefixroute: false };
        node.add_address(device, net.parse().unwrap(), options).unwrap();
    }
    let to = |destination: &str| Route::to(destination.parse().unwrap());
    let via = |destination, gateway| Route {
        gateway: Some(ip(gateway)),
        device: Some(device),
        ..to(destination)
    };
    let cases = [
        Route { device: Some(device), scope_link: true, ..to("10.9.0.7/32") },
        via("0.0.0.0/0", "10.1.2.1"),
        Route { onlink: true, ..via("10.8.0.0/16", "169.254.1.1") },
        Route { mtu: Some(1400), metric: Some(7), protocol: 77, ..via("10.7.0.0/16", "10.1.2.1") },
        Route { source: Some(ip("10.1.2.3")), table: 1000, ..via("10.6.0.0/16", "10.1.2.1") },
        Route { kind: RouteKind::Blackhole, ..to("10.5.0.0/16") },
        Route { device: Some(device), metric: Some(1024), ..to("fd00:9::7/128") },
        Route { metric: Some(1024), ..via("::/0", "fe80::1") },
        Route { mtu: Some(1400), metric: Some(9), protocol: 77, ..via("fd00:7::/64", "fd00:1::1") },
        Route { metric: Some(3), table: 1000, ..via("fd00:6::/64", "fd00:1::1") },
    ];
    for route in &cases {
        let family = match route.destination {
            ipnet::IpNet::V4(_) => Family::V4,
            ipnet::IpNet::V6(_) => Family::V6,
        };
        node.replace_route(route).unwrap();
        node.replace_route(route).unwrap();
        let found = |node: &mut Netlink| {
            let routes = node.routes(family, Some(route.table)).unwrap();
            routes.into_iter().filter(|r| r.destination == route.destination).collect::<Vec<_>>()
        };
        assert_eq!(found(&mut node), std::slice::from_ref(route));
        // The same route made by somebody else is not ours to delete.
        node.delete_route(&Route { protocol: 99, ..route.clone() }).unwrap();
        assert_eq!(found(&mut node).len(), 1, "{route:?}");
        node.delete_route(route).unwrap();
        node.delete_route(route).unwrap();
        assert_eq!(found(&mut node), []);
    }
    assert_eq!(node.routes(Family::V4, Some(4711)).unwrap(), []);
    assert!(node.routes(Family::V4, None).unwrap().iter().any(|r| r.kind == RouteKind::Local));
}

#[test]
fn replacing_a_route_leaves_one() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let devices = ["d0", "d1"].map(|name| device(&mut node, name));
    for (family, destination) in [(Family::V4, "10.9.0.7/32"), (Family::V6, "fd00:9::7/128")] {
        for device in devices {
            let destination = destination.parse().unwrap();
            let route = Route { device: Some(device), scope_link: true, ..Route::to(destination) };
            node.replace_route(&route).unwrap();
            let routes = node.routes(family, Some(Route::MAIN)).unwrap();
            let found: Vec<_> = routes.iter().filter(|r| r.destination == destination).collect();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].device, Some(device));
            assert!(node.add_route(&route).unwrap_err().is_exists());
        }
    }
}

#[test]
fn route_lookups() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let device = device(&mut node, "d0");
    node.set_up(1).unwrap();
    let options = AddressOptions { nodad: true, noprefixroute: false };
    node.add_address(device, "10.1.2.3/24".parse().unwrap(), options).unwrap();
    node.add_address(device, "fd00:1::3/64".parse().unwrap(), options).unwrap();
    for (default, gateway) in [("0.0.0.0/0", "10.1.2.1"), ("::/0", "fd00:1::1")] {
        let far = ip(if default == "::/0" { "fd00:2::1" } else { "192.0.2.1" });
        assert_eq!(node.route_to(far).unwrap(), None);
        let default = Route::to(default.parse().unwrap());
        node.replace_route(&Route { gateway: Some(ip(gateway)), ..default }).unwrap();
        let lookup = node.route_to(far).unwrap().unwrap();
        assert_eq!((lookup.device, lookup.gateway), (device, Some(ip(gateway))));
        assert!(lookup.source.is_some() && !lookup.local);
    }
    let own = node.route_to(ip("10.1.2.3")).unwrap().unwrap();
    assert!(own.local);
    let neighbour = node.route_to(ip("10.1.2.77")).unwrap().unwrap();
    assert_eq!((neighbour.gateway, neighbour.source), (None, Some(ip("10.1.2.3"))));
}

#[test]
fn neighbours_of_both_families() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let device = device(&mut node, "d0");
    for address in ["169.254.1.1", "fe80::1"].map(ip) {
        node.replace_neighbour(device, address, [2, 0, 0, 0, 0, 1], false).unwrap();
        node.replace_neighbour(device, address, [2, 0, 0, 0, 0, 2], true).unwrap();
        let neighbours = node.neighbours(device).unwrap();
        assert_eq!(neighbours.len(), 1);
        assert_eq!(neighbours[0].address, address);
        assert_eq!(neighbours[0].mac, Some([2, 0, 0, 0, 0, 2]));
        assert!(neighbours[0].permanent);
        node.delete_neighbour(device, address).unwrap();
        node.delete_neighbour(device, address).unwrap();
        assert!(node.neighbours(device).unwrap().iter().all(|n| n.mac.is_none()));
    }
}

#[test]
fn long_lists_arrive_whole() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let device = device(&mut node, "d0");
    for n in 0..2000_u32 {
        let destination = ipnet::IpNet::from(IpAddr::from((0x0a09_0000 + n).to_be_bytes()));
        let route = Route { device: Some(device), scope_link: true, ..Route::to(destination) };
        node.replace_route(&route).unwrap();
    }
    assert_eq!(node.routes(Family::V4, Some(Route::MAIN)).unwrap().len(), 2000);
}

#[test]
fn changes_are_told_to_who_watches() {
    let Some(netns) = netns() else { return };
    let groups = [Group::Links, Group::Addresses, Group::Routes];
    let mut watch = Watch::open_in(&netns, &groups).unwrap();
    assert_eq!(watch.next(Duration::ZERO).unwrap(), []);

    let mut node = Netlink::open_in(&netns).unwrap();
    let bridge = node.create_bridge("br0").unwrap().index;
    let index = device(&mut node, "d0");
    let link = node.link("d0").unwrap().unwrap();
    node.set_master(index, Some(bridge)).unwrap();
    node.set_master(index, None).unwrap();
    let options = AddressOptions { nodad: true, noprefixroute: true };
    node.add_address(index, "10.1.2.3/24".parse().unwrap(), options).unwrap();
    let address = node.addresses(index).unwrap().into_iter().find(|a| a.net.addr().is_ipv4());
    let route = Route {
        device: Some(index),
        scope_link: true,
        ..Route::to("10.9.0.7/32".parse().unwrap())
    };
    node.replace_route(&route).unwrap();
    node.delete_route(&route).unwrap();
    node.delete_address(index, "10.1.2.3/24".parse().unwrap()).unwrap();
    let gone = |event: &Event| matches!(event, Event::LinkGone(link) if link.index == index);
    let mut events = Vec::new();
    drain(&mut watch, &mut events);
    assert!(!events.iter().any(gone), "leaving a bridge is not the end");
    node.delete_link(index).unwrap();
    while !events.iter().any(gone) {
        let news = watch.next(Duration::from_secs(5)).unwrap();
        assert!(!news.is_empty(), "the link's end was not told: {events:?}");
        events.extend(news);
    }

    let address = address.unwrap();
    for expected in [
        Event::Link(link),
        Event::Address(address),
        Event::AddressGone(address),
        Event::Route(route.clone()),
        Event::RouteGone(route),
    ] {
        assert!(events.contains(&expected), "{expected:?} is not in {events:?}");
    }
}

#[test]
fn who_watches_too_slowly_is_told_so() {
    let Some(netns) = netns() else { return };
    let mut watch = Watch::open_in(&netns, &[Group::Routes]).unwrap();
    let mut node = Netlink::open_in(&netns).unwrap();
    let index = device(&mut node, "d0");
    let mut events = Vec::new();
    for n in 0..20_000_u32 {
        let destination = ipnet::IpNet::from(IpAddr::from((0x0a09_0000 + n).to_be_bytes()));
        let route = Route { device: Some(index), scope_link: true, ..Route::to(destination) };
        node.replace_route(&route).unwrap();
    }
    drain(&mut watch, &mut events);
    assert!(events.contains(&Event::Lost));
}

#[test]
fn sysctls_and_offloads_are_the_namespaces_own() {
    let Some(netns) = netns() else { return };
    Netlink::open_in(&netns)
        .unwrap()
        .create_veth(&Veth { name: "a.1", peer_name: "b", ..Veth::default() })
        .unwrap();
    netns
        .run(|| {
            sysctl::set("net/ipv4/conf/a.1/rp_filter", "2").unwrap();
            assert_eq!(sysctl::get("net/ipv4/conf/a.1/rp_filter").unwrap(), "2");
            assert!(sysctl::get("net/ipv4/conf/none/rp_filter").unwrap_err().is_not_found());
            for offload in [Offload::TxChecksum, Offload::GenericReceive] {
                for on in [true, false, true] {
                    offload::set("a.1", offload, on).unwrap();
                    assert_eq!(offload::get("a.1", offload).unwrap(), on);
                }
            }
            offload::set("a.1", Offload::TxChecksum, false).unwrap();
            assert!(!offload::get("a.1", Offload::TcpSegmentation).unwrap());
            assert!(offload::set("none", Offload::TxChecksum, false).unwrap_err().is_not_found());
        })
        .unwrap();
}

/// A namespace for one test; it is gone when the test is over, however it ends.
fn netns() -> Option<NetNs> {
    root().then(|| NetNs::unnamed().expect("a new network namespace"))
}

/// These tests need root. Where they cannot run they say so, and fail where CI is to run them.
fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "CI has to run these tests as root");
    if !root {
        eprintln!("NOT RUN: this test needs root");
    }
    root
}

/// A namespace name nobody else uses; unregistered when the test is over, however it ends.
struct Name(String);

impl Name {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(format!("fwnl-{}-{count}", std::process::id()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.0);
    }
}

/// Reads what is there.
fn drain(watch: &mut Watch, events: &mut Vec<Event>) {
    loop {
        let news = watch.next(Duration::ZERO).expect("events");
        if news.is_empty() {
            return;
        }
        events.extend(news);
    }
}

/// Some device that is up and has a carrier.
fn device(node: &mut Netlink, name: &str) -> u32 {
    let peer_name = &format!("{name}-peer");
    let veth = node.create_veth(&Veth { name, peer_name, ..Veth::default() });
    let index = veth.expect("a veth pair").index;
    let peer = node.link(peer_name).expect("an answer").expect("the other end").index;
    for index in [index, peer] {
        node.set_up(index).expect("up");
    }
    index
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn ip_command(netns: &NetNs, arguments: &[&str]) -> String {
    let mut command = Command::new("ip");
    command.args(arguments);
    netns.enter_on_spawn(&mut command).expect("the namespace");
    let output = command.output().expect("ip(8)");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}
