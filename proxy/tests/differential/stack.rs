//! What the host's stack delivers to a pod, with real sockets: those of the host always reach it, and what
//! the host forwards does not, whatever address it bears. A test run cannot tell the two apart.
//!
//! ```text
//! outside ── far ── the host, which forwards ── near ── pod, which may receive and send nothing
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use fairway_abi::{
    DropReason, Route, Ruling, RulingKey, Subject, V4, V6, config, flow, route, ruling,
};
use fairway_core::tables::Stage;
use fairway_netlink::{AddressOptions, NetNs, Netlink, Route as HostRoute, Veth};
use ipnet::IpNet;
use zerocopy::FromZeros;
use zerocopy::native_endian::U32;

use crate::frame::Family;
use crate::kernel::{Kernel, Side};
use crate::overlay::wait_until;
use crate::sandbox::sandbox;
use crate::world::{Special, plain};

#[test]
fn the_hosts_sockets_reach_a_pod_that_may_receive_nothing_over_ipv4() {
    sandbox(sockets_reach_and_what_is_forwarded_does_not::<V4>);
}

#[test]
fn the_hosts_sockets_reach_a_pod_that_may_receive_nothing_over_ipv6() {
    sandbox(sockets_reach_and_what_is_forwarded_does_not::<V6>);
}

const POD: [u8; 4] = [10, 244, 7, 2];
const HOST: [u8; 4] = [10, 244, 7, 1];
const OUTSIDE: [u8; 4] = [10, 244, 8, 2];
const ROUTER: [u8; 4] = [10, 244, 8, 1];
const PORT: u16 = 9000;
const SET: u32 = 1;
const FIRST: RulingKey = RulingKey {
    set: U32::new(SET),
    identity: U32::ZERO,
    protocol: 0,
    length: 0,
    port: zerocopy::network_endian::U16::ZERO,
};

fn sockets_reach_and_what_is_forwarded_does_not<A: Side + Special>(bpffs: &Path) {
    let mut kernel = Kernel::<A>::start(bpffs);
    let pod = neighbour::<A>("near", HOST, POD);
    let outside = neighbour::<A>("far", ROUTER, OUTSIDE);
    let mut config = plain::<A>(&kernel.devices).config;
    config.flags |= config::POLICED;
    config.policy = !flow::REVISION + 1;
    let mut rule = |kernel: &mut Kernel<A>, verdict| {
        config.policy += !flow::REVISION + 1;
        kernel.rulings.put(&FIRST, &Ruling { verdict, lengths: 0 });
        kernel.configure(&config);
    };
    rule(&mut kernel, 0);
    kernel.tables.subjects.put(&A::at(POD), &Subject { ingress: SET, egress: SET });
    kernel.add_interface(index_of("near"), &A::at(POD).interface());
    let own = Route { kind: U32::new(route::HOST), ..Route::new_zeroed() };
    kernel.tables.routes.put(&(A::ADDRESS_BITS, A::at(HOST)), &own);
    kernel.attach("pod_ingress", "near");
    kernel.attach_to_egress("pod_egress", "near");
    let bind = |address| move || UdpSocket::bind((ip::<A>(address), PORT)).expect("a socket");
    let in_pod = pod.run(bind(POD)).expect("a thread in the pod");
    let in_host = bind(HOST)();
    let in_outside = outside.run(bind(OUTSIDE)).expect("a thread outside");
    for socket in [&in_pod, &in_host, &in_outside] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    }
    let to = (ip::<A>(POD), PORT);
    let receives = || {
        let mut what = [0; 1];
        in_pod.recv(&mut what).expect("a datagram");
        what[0]
    };
    // What is forwarded arrives as long as it may.
    in_outside.send_to(&[1], to).expect("sent");
    assert_eq!(receives(), 1);
    rule(&mut kernel, ruling::DENIED);
    let denied = |kernel: &mut Kernel<A>| kernel.count_drops()[DropReason::PolicyIngress as usize];
    let before = denied(&mut kernel);
    in_outside.send_to(&[2], to).expect("sent");
    wait_until("a drop", || denied(&mut kernel) > before);
    in_host.send_to(&[3], to).expect("sent");
    assert_eq!(receives(), 3, "and nothing before it");
    let flows = kernel.tables.flows(Stage::HalfOpen).entries();
    let by_host = flows.iter().filter(|(_, flow)| flow.state.get() & flow::BY_HOST != 0);
    assert_eq!((flows.len(), by_host.count()), (4, 2));

    // Connections, from their first packet to their last, whoever of the two opens them.
    let listen = |address| move || TcpListener::bind((ip::<A>(address), PORT)).expect("a listener");
    let before = denied(&mut kernel);
    let listener = pod.run(listen(POD)).expect("a thread in the pod");
    talk(TcpStream::connect(to).expect("a connection"), &listener);
    let listener = listen(HOST)();
    let connect = |port| move || TcpStream::connect((ip::<A>(HOST), port));
    let connected = pod.run(connect(PORT)).expect("a thread in the pod");
    talk(connected.expect("a connection"), &listener);
    let refused = pod.run(connect(PORT + 1)).expect("a thread in the pod");
    assert_eq!(refused.expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
    assert_eq!(denied(&mut kernel), before);
    // Not so for others.
    let connect = move || TcpStream::connect_timeout(&to.into(), Duration::from_millis(100));
    let refused = outside.run(connect).expect("a thread outside");
    assert_eq!(refused.expect_err("it is denied").kind(), ErrorKind::TimedOut);
    assert!(denied(&mut kernel) > before);
}

/// Says something each way, and ends the connection.
fn talk(mut one: TcpStream, listener: &TcpListener) {
    let (mut other, _) = listener.accept().expect("a connection");
    for stream in [&one, &other] {
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    }
    let mut heard = [0; 1];
    one.write_all(&[4]).expect("sent");
    other.read_exact(&mut heard).expect("received");
    other.write_all(&[5]).expect("sent");
    one.read_exact(&mut heard).expect("received");
    drop(other);
    assert_eq!(one.read(&mut heard).expect("an end"), 0);
}

/// A namespace behind a device of this one: the addresses of both ends, and its way out.
fn neighbour<A: Family>(device: &str, here: [u8; 4], there: [u8; 4]) -> NetNs {
    let namespace = NetNs::unnamed().expect("a namespace");
    let peer_name = &format!("{device}-peer");
    let options = AddressOptions { nodad: true, ..AddressOptions::default() };
    let address = |who| {
        let length = if size_of::<A>() == 4 { 24 } else { 120 };
        IpNet::new(ip::<A>(who), length).expect("a prefix")
    };
    let mut netlink = Netlink::open().expect("a netlink socket");
    let veth = Veth { name: device, peer_name, peer_netns: Some(&namespace), ..Veth::default() };
    let index = netlink.create_veth(&veth).expect("a veth").index;
    netlink.add_address(index, address(here), options).expect("an address");
    netlink.set_up(index).expect("up");
    let inside = || {
        let mut netlink = Netlink::open().expect("a netlink socket");
        let (index, loopback) = (index_of(peer_name), index_of("lo"));
        netlink.set_up(loopback).expect("up");
        netlink.add_address(index, address(there), options).expect("an address");
        netlink.set_up(index).expect("up");
        let net = if size_of::<A>() == 4 { "0.0.0.0/0" } else { "::/0" };
        let route = HostRoute::to(net.parse().expect("a range"));
        let gateway = Some(ip::<A>(here));
        netlink.add_route(&HostRoute { gateway, device: Some(index), ..route }).expect("a route");
    };
    namespace.run(inside).expect("a thread in the namespace");
    namespace
}

fn index_of(device: &str) -> u32 {
    let mut netlink = Netlink::open().expect("a netlink socket");
    netlink.link(device).expect("an answer").expect("a device").index
}

fn ip<A: Family>(address: [u8; 4]) -> IpAddr {
    let address = A::at(address);
    match address.as_bytes() {
        [a, b, c, d] => IpAddr::from([*a, *b, *c, *d]),
        bytes => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("an IPv6 address")),
    }
}
