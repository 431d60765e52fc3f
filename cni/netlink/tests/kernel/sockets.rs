//! Sockets as sock_diag shows and ends them.

use std::net::UdpSocket;

use fairway_netlink::{Netlink, Sockets};
use rustix::net::sockopt::socket_cookie;

use crate::netns;

#[test]
fn a_connected_socket_is_found_by_its_cookie_and_ended() {
    in_namespace(|| {
        let mut sockets = Sockets::open().expect("a socket");
        for (own, peer) in [("127.0.0.1:0", "127.0.0.1:53"), ("[::1]:0", "[::1]:53")] {
            let idle = UdpSocket::bind(own).expect("a socket");
            let doomed = UdpSocket::bind(own).expect("a socket");
            let spared = UdpSocket::bind(own).expect("a socket");
            for socket in [&doomed, &spared] {
                socket.connect(peer).expect("connected");
            }
            let cookie = |socket| socket_cookie(socket).expect("a cookie");
            let found = sockets.connected_udp().expect("a list");
            let of = |socket| found.iter().find(|found| found.cookie == cookie(socket));
            assert_eq!(of(&idle), None, "it is connected to nobody");
            let victim = of(&doomed).expect("it is listed");
            assert_eq!(victim.peer.to_string(), peer);
            assert!(sockets.destroy(victim).expect("ended"));
            let error = doomed.recv(&mut [0]).expect_err("nothing comes any more");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
            let left = sockets.connected_udp().expect("a list");
            assert!(left.iter().all(|left| left.cookie != cookie(&doomed)));
            assert!(left.iter().any(|left| left.cookie == cookie(&spared)));
            drop(doomed);
            assert!(!sockets.destroy(victim).expect("an answer"), "it is gone");
        }
    });
}

#[test]
fn an_ipv6_socket_that_speaks_ipv4_is_shown_with_its_ipv4_peer() {
    in_namespace(|| {
        let socket = UdpSocket::bind("[::]:0").expect("a socket");
        socket.connect("[::ffff:127.0.0.1]:53").expect("connected");
        let found = Sockets::open().expect("a socket").connected_udp().expect("a list");
        let peers: Vec<_> = found.iter().map(|found| found.peer.to_string()).collect();
        assert_eq!(peers, ["127.0.0.1:53"]);
    });
}

/// Runs a test in a namespace of its own, whose loopback device is up.
fn in_namespace(test: impl FnOnce() + Send) {
    let Some(netns) = netns() else { return };
    let run = || {
        let mut netlink = Netlink::open().expect("a netlink socket");
        let loopback = netlink.link("lo").expect("an answer").expect("a device").index;
        netlink.set_up(loopback).expect("up");
        test();
    };
    netns.run(run).expect("a thread in the namespace");
}
