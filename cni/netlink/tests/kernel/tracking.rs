//! Connections as the kernel's connection tracking shows and forgets them.

use std::net::{SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::process::Command;

use fairway_netlink::conntrack::{self, Connection, Eraser, Phase};
use fairway_netlink::{Netlink, Route};

use crate::netns;

#[test]
fn a_translated_connection_is_shown_as_it_is_and_forgotten() {
    let Some(netns) = netns() else { return };
    netns.run(run).expect("a thread in the namespace");
}

fn run() {
    let mut netlink = Netlink::open().expect("a netlink socket");
    let loopback = netlink.link("lo").expect("an answer").expect("a device").index;
    netlink.set_up(loopback).expect("up");
    let services = "10.96.0.0/16".parse().expect("a range");
    let route = Route { device: Some(loopback), ..Route::to(services) };
    netlink.add_route(&route).expect("a route");
    for rule in [
        "add table ip services",
        "add chain ip services output { type nat hook output priority -100 ; }",
        "add rule ip services output ip daddr 10.96.0.1 udp dport 53 dnat to 127.0.0.1:5353",
    ] {
        assert!(Command::new("nft").arg(rule).status().expect("nft").success(), "{rule}");
    }
    assert_eq!(list(), []);

    let server = UdpSocket::bind("127.0.0.1:5353").expect("a server");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
    client.connect("10.96.0.1:53").expect("a route");
    client.send(b"?").expect("sent");
    let (_, from) = server.recv_from(&mut [0]).expect("a question");
    let tracked = || {
        let found = list().into_iter().find(|c| c.original.source == from);
        found.expect("a connection")
    };
    assert!(conntrack::count() > 0 && !tracked().answered);
    server.send_to(b"!", from).expect("sent");
    client.recv(&mut [0]).expect("an answer");
    let tracked = tracked();
    let end = |text: &str| -> SocketAddr { text.parse().expect("an address") };
    let (there, back) = (tracked.original, tracked.answers);
    assert_eq!((there.destination, back.source), (end("10.96.0.1:53"), end("127.0.0.1:5353")));
    assert_eq!(back.destination, from);
    assert!(tracked.is_translated() && tracked.answered);
    assert_eq!((tracked.protocol, tracked.phase), (17, Phase::Open));

    let eraser = Eraser::open().expect("a socket");
    assert!(eraser.forget(&tracked).expect("forgotten"));
    assert_eq!(list(), []);
    assert!(!eraser.forget(&tracked).expect("an answer"), "it is gone");
}

/// The connections to a Service.
fn list() -> Vec<Connection> {
    let mut all = Vec::new();
    let each = |connection: Connection| {
        all.extend((connection.original.destination.port() == 53).then_some(connection));
        ControlFlow::Continue(())
    };
    conntrack::connections(each).expect("a list");
    all
}
