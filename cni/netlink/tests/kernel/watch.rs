use std::net::IpAddr;
use std::time::Duration;

use fairway_netlink::{AddressOptions, Event, Group, Netlink, Route, Watch};

use crate::{device, netns};

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
