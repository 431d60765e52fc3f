//! Services at the socket.

use std::collections::HashMap;

use fairway_abi::{FrontendKey, SocketPeer, frontend, protocol, scope};
use fairway_core::memory::Memory;
use fairway_core::socket::{Outcome, SocketAddress, connect, is_balanced, peer, send};
use zerocopy::native_endian::U64;
use zerocopy::network_endian::U16;

use crate::for_both_families;
use crate::frame::Family;
use crate::node::{CLIENT, DIRECT_POD, OTHER_POD, OTHER_VIP, POD, REMOTE_POD, VIP};

for_both_families![
    what_is_no_frontend_is_left_alone,
    a_connection_goes_to_an_endpoint_and_shows_the_frontend,
    a_frontend_without_endpoints_refuses,
    connections_spread_evenly,
    a_sockets_datagrams_stay_with_one_endpoint,
    sockets_spread_their_datagrams_evenly,
    a_sender_of_many_datagrams_is_remembered_once,
    only_the_socket_that_was_translated_is_shown_the_frontend,
    a_frontend_for_the_outside_alone_is_none_here,
    a_port_on_the_loopback_address_is_for_the_node_alone,
];

fn address<A: Family>(address: [u8; 4], port: u16, protocol: u8) -> SocketAddress<A> {
    SocketAddress { address: A::at(address), port: U16::new(port), protocol }
}

/// A node with a Service at [`VIP`] port 80 for both protocols.
fn node<A: Family>(endpoints: &[[u8; 4]]) -> Memory<A> {
    let mut tables = Memory::default();
    let endpoints: Vec<_> = endpoints.iter().map(|pod| (A::at(*pod), 8080)).collect();
    for protocol in [protocol::TCP, protocol::UDP] {
        tables.service(A::at(VIP), 80, protocol, &endpoints);
    }
    tables
}

fn vip<A: Family>() -> SocketPeer<A> {
    SocketPeer { address: A::at(VIP), port: U16::new(80), reserved: [0; 2] }
}

/// Where a call went, as a socket names it.
#[track_caller]
fn endpoint<A: Family>(outcome: Outcome<A>, protocol: u8) -> SocketAddress<A> {
    let Outcome::Endpoint(endpoint) = outcome else { panic!("{outcome:?}") };
    SocketAddress { address: endpoint.address, port: endpoint.port, protocol }
}

fn what_is_no_frontend_is_left_alone<A: Family>() {
    let tables = node::<A>(&[POD]);
    for to in [
        address(CLIENT, 80, protocol::TCP),
        address(VIP, 81, protocol::TCP),
        address(OTHER_VIP, 80, protocol::UDP),
    ] {
        assert_eq!(connect(&tables, &tables.socket(1), &to), Outcome::Unchanged, "{to:?}");
        assert_eq!(send(&tables, &tables.socket(1), &to), Outcome::Unchanged, "{to:?}");
    }
    assert!(tables.sockets.borrow().is_empty());
    let balanced: Vec<u8> = (0..=u8::MAX).filter(|number| is_balanced(*number)).collect();
    assert_eq!(balanced, [protocol::TCP, protocol::UDP]);
}

fn a_connection_goes_to_an_endpoint_and_shows_the_frontend<A: Family>() {
    let tables = node::<A>(&[POD]);
    for protocol in [protocol::TCP, protocol::UDP] {
        let to =
            endpoint(connect(&tables, &tables.socket(7), &address(VIP, 80, protocol)), protocol);
        assert_eq!(to, address(POD, 8080, protocol));
        assert_eq!(peer(&tables.socket(7), &to), Some(vip()));
    }
}

fn a_frontend_without_endpoints_refuses<A: Family>() {
    let tables = node::<A>(&[]);
    let to = address(VIP, 80, protocol::TCP);
    assert_eq!(connect(&tables, &tables.socket(1), &to), Outcome::Refused);
    assert_eq!(send(&tables, &tables.socket(1), &to), Outcome::Refused);
}

/// Three endpoints, and how often each was chosen in three thousand calls.
fn spread<A: Family>(call: impl Fn(&Memory<A>, u64) -> Outcome<A>) {
    let tables = node::<A>(&[POD, REMOTE_POD, DIRECT_POD]);
    let mut counts = HashMap::<A, u32>::new();
    for cookie in 1..=3000 {
        *counts.entry(endpoint(call(&tables, cookie), 0).address).or_default() += 1;
    }
    assert_eq!(counts.len(), 3);
    // Five standard deviations of a fair choice: sqrt(3000 * 1/3 * 2/3) = 26.
    assert!(counts.values().all(|n| n.abs_diff(1000) < 130), "{counts:?}");
}

fn connections_spread_evenly<A: Family>() {
    // Also those of one socket that connects again and again.
    spread::<A>(|tables, _| connect(tables, &tables.socket(1), &address(VIP, 80, protocol::TCP)));
}

fn sockets_spread_their_datagrams_evenly<A: Family>() {
    // The kernel numbers sockets in a row.
    spread::<A>(|tables, cookie| {
        send(tables, &tables.socket(cookie), &address(VIP, 80, protocol::UDP))
    });
}

fn a_sockets_datagrams_stay_with_one_endpoint<A: Family>() {
    // However the endpoints of connections are chosen.
    for flags in [0, frontend::IN_TURN, frontend::LEAST, frontend::GROWING] {
        let mut tables = node::<A>(&[POD, OTHER_POD, REMOTE_POD, DIRECT_POD]);
        tables.frontends.values_mut().for_each(|frontend| frontend.flags |= flags);
        let to = address(VIP, 80, protocol::UDP);
        for cookie in 1..50 {
            let first = send(&tables, &tables.socket(cookie), &to);
            assert!(
                (0..10).all(|_| send(&tables, &tables.socket(cookie), &to) == first),
                "socket {cookie}, {flags}"
            );
        }
    }
}

fn a_sender_of_many_datagrams_is_remembered_once<A: Family>() {
    let tables = node::<A>(&[POD]);
    let to = address(VIP, 80, protocol::UDP);
    for _ in 0..10 {
        let from = endpoint(send(&tables, &tables.socket(7), &to), protocol::UDP);
        assert_eq!(peer(&tables.socket(7), &from), Some(vip()));
    }
    assert_eq!(tables.sockets.borrow().len(), 1);
}

fn only_the_socket_that_was_translated_is_shown_the_frontend<A: Family>() {
    let tables = node::<A>(&[POD]);
    let from =
        endpoint(send(&tables, &tables.socket(7), &address(VIP, 80, protocol::UDP)), protocol::UDP);
    assert_eq!(peer(&tables.socket(8), &from), None, "another socket");
    assert_eq!(peer(&tables.socket(7), &address(POD, 8081, protocol::UDP)), None, "another port");
    assert_eq!(
        peer(&tables.socket(7), &address(POD, 8080, protocol::TCP)),
        None,
        "another protocol"
    );
    assert_eq!(
        peer(&tables.socket(7), &address(OTHER_POD, 8080, protocol::UDP)),
        None,
        "another pod"
    );
}

fn a_frontend_for_the_outside_alone_is_none_here<A: Family>() {
    let mut tables = node::<A>(&[POD]);
    tables.frontends.retain(|key, _| key.scope == scope::EXTERNAL);
    let to = address(VIP, 80, protocol::TCP);
    assert_eq!(connect(&tables, &tables.socket(1), &to), Outcome::Unchanged);
}

fn a_port_on_the_loopback_address_is_for_the_node_alone<A: Family>() {
    let mut tables = Memory::<A>::default();
    tables.config.netns = U64::new(4711);
    let internal = tables.service(A::LOOPBACK, 8080, protocol::UDP, &[(A::at(POD), 80)]);
    let record = tables.frontends[&internal];
    let key = FrontendKey { scope: scope::LOOPBACK, ..internal };
    tables.frontends = HashMap::from([(key, record)]);

    let to = SocketAddress { address: A::LOOPBACK, port: U16::new(8080), protocol: protocol::UDP };
    let node = tables.socket_of_node(1);
    let given = endpoint(send(&tables, &node, &to), protocol::UDP);
    assert_eq!(given, address(POD, 80, protocol::UDP));
    let shown = SocketPeer { address: A::LOOPBACK, port: U16::new(8080), reserved: [0; 2] };
    assert_eq!(peer(&node, &given), Some(shown));
    assert_eq!(endpoint(connect(&tables, &node, &to), protocol::UDP), given);

    // A pod's loopback address is its own, and so is everybody's where the kernel tells no cookie.
    assert_eq!(connect(&tables, &tables.socket(2), &to), Outcome::Unchanged);
    tables.config.netns = U64::new(0);
    assert_eq!(connect(&tables, &tables.socket_of_node(1), &to), Outcome::Unchanged);
}
