use std::collections::HashSet;
use std::net::IpAddr;

use fairway_netlink::{AddressOptions, Family, Netlink, Route, RouteKind};

use crate::{device, ip, netns};

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
fn routes_that_stay_are_listed_while_others_go() {
    let Some(netns) = netns() else { return };
    let mut node = Netlink::open_in(&netns).unwrap();
    let device = device(&mut node, "d0");
    let route = |n: u32| Route {
        device: Some(device),
        scope_link: true,
        ..Route::to(IpAddr::from((0x0a09_0000 + n).to_be_bytes()).into())
    };
    let (going, staying) = (0..1500, 1500..2300);
    for n in going.start..staying.end {
        node.replace_route(&route(n)).unwrap();
    }
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| {
            let mut other = Netlink::open_in(&netns).unwrap();
            for n in going {
                other.delete_route(&route(n)).unwrap();
            }
        });
        while !deleting.is_finished() {
            let listed = node.routes(Family::V4, Some(Route::MAIN)).unwrap();
            let listed: HashSet<_> = listed.into_iter().map(|route| route.destination).collect();
            assert!(staying.clone().all(|n| listed.contains(&route(n).destination)));
        }
    });
}
