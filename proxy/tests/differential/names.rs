//! Packets that name a frontend or a client for another node, against devices and routes of a real network.

use std::path::Path;

use fairway_abi::{
    DropReason, Ruling, RulingKey, Subject, V4, V6, config, flow, frontend, peer, protocol, route,
    ruling,
};
use fairway_core::flow::Scratch;
use fairway_core::memory::Frame;
use fairway_core::{icmp, path};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::frame::{Builder, Transport};
use crate::kernel::{Kernel, REDIRECT, Side};
use crate::outcome;
use crate::sandbox::sandbox;
use crate::too_big::MTU;
use crate::world::{
    CLIENT, DIRECT, LOST, PEER, POD, REMOTE, Special, VIP, install, tunnelled, within,
};

#[test]
fn the_name_of_a_frontend_counts_over_ipv4() {
    sandbox(names_count::<V4>);
}

#[test]
fn the_name_of_a_frontend_counts_over_ipv6() {
    sandbox(names_count::<V6>);
}

/// A client whose packet would fit without the name that it has to carry on is told so, and hears what
/// would fit with it.
fn names_count<A: Side + Special>(bpffs: &Path) {
    let mut kernel = Kernel::<A>::start(bpffs);
    let (mut memory, _) = tunnelled::<A>(&kernel.devices, [0; 16]);
    memory.frontends.clear();
    for (.., found) in &mut memory.routes {
        if matches!(found.kind.get(), route::TUNNEL | route::DIRECT) {
            found.peer.flags = [peer::KNOWN | peer::TAKES_CLIENTS, 0];
        }
    }
    let endpoints = [within(REMOTE, 2), within(DIRECT, 2)];
    for (port, endpoint) in (80..).zip(endpoints) {
        memory.service(A::at(VIP), port, protocol::UDP, &[(A::at(endpoint), 8080)]);
    }
    for record in memory.frontends.values_mut() {
        record.flags = frontend::KEEP_CLIENT | frontend::DIRECT_RETURN;
    }
    install(&memory, &mut kernel);
    let (uplink, fixed) = (kernel.devices.uplink, A::FIXED + 8);
    for (port, endpoint) in (80..).zip(endpoints) {
        let ask = |length: u32| {
            let payload = vec![7; usize::try_from(length - fixed).expect("short")];
            let (from, to) = ((A::at(CLIENT), 5000), (A::at(VIP), port));
            Builder::<A>::new(Transport::Udp, from, to).payload(&payload).whole().frame()
        };
        let fits = ask(MTU - A::NAME);
        let seen = kernel.classify("uplink_ingress", uplink, &fits.bytes);
        let frame = seen.frame.expect("sent on");
        assert_eq!((seen.action, frame.len()), (REDIRECT, 14 + MTU as usize), "to {endpoint:?}");
        let named = A::named(&Frame::new(frame)).map(|(_, address, port)| (address, port.get()));
        assert_eq!(named, Some((A::at(VIP), port)));

        let mut frame = ask(MTU - A::NAME + 1);
        let seen = kernel.classify("uplink_ingress", uplink, &frame.bytes);
        let headers = A::parse(&frame).expect("well-formed");
        let mut scratch = Scratch::default();
        path::decide_from_uplink(&memory, &headers, &mut scratch).expect("a decision");
        path::open(&memory, &memory, &headers, &mut scratch).expect("a flow");
        let mtu = MTU - A::NAME;
        let told = icmp::complain(&mut frame, &memory, &headers, &mut scratch, mtu);
        assert_eq!(seen, outcome::<A>(told, frame), "to {endpoint:?}");
    }
}

#[test]
fn the_name_of_a_client_is_sent_and_believed_over_ipv4() {
    sandbox(clients_are_named::<V4>);
}

#[test]
fn the_name_of_a_client_is_sent_and_believed_over_ipv6() {
    sandbox(clients_are_named::<V6>);
}

/// A client whose address is replaced on the way to a peer's pod is named; and so a peer's client counts for
/// what a pod here lets in.
fn clients_are_named<A: Side + Special>(bpffs: &Path) {
    const SET: U32 = U32::new(1);
    const FRIEND: u32 = 7;
    let mut kernel = Kernel::<A>::start(bpffs);
    let (mut memory, _) = tunnelled::<A>(&kernel.devices, [0; 16]);
    memory.frontends.clear();
    for (.., prefix, found) in &mut memory.routes {
        if *prefix == A::at(within(DIRECT, 0)) {
            found.peer.flags = [peer::KNOWN | peer::TAKES_CLIENTS, 0];
        } else if *prefix == A::at(PEER) {
            found.peer.flags = [peer::KNOWN | peer::NODE, 0];
        }
    }
    let endpoint = (A::at(within(DIRECT, 2)), 8080);
    memory.service(A::at(VIP), 80, protocol::UDP, &[endpoint]);
    memory.config.flags |= config::NAME_CLIENTS | config::POLICED;
    memory.config.policy = flow::REVISION & flow::REVISION.wrapping_neg();
    memory.subjects.insert(A::at(POD), Subject { ingress: SET.get(), egress: 0 });
    memory.identities.insert(A::at(CLIENT), FRIEND);
    for (identity, verdict) in [(0, ruling::DENIED | 1), (FRIEND, 2)] {
        let key = RulingKey { set: SET, identity: U32::new(identity), ..RulingKey::default() };
        memory.rulings.insert(key, Ruling { verdict, lengths: 0 });
    }
    install(&memory, &mut kernel);
    let uplink = kernel.devices.uplink;
    let names = |frame: &[u8]| {
        let frame = Frame::new(frame.to_vec());
        A::named(&frame).map(|(of_client, address, port)| (of_client, address, port.get()))
    };

    let ask = Builder::<A>::new(Transport::Udp, (A::at(CLIENT), 5000), (A::at(VIP), 80)).frame();
    let sent = kernel.classify("uplink_ingress", uplink, &ask.bytes);
    let frame = sent.frame.expect("sent on");
    assert_eq!(names(&frame), Some((true, A::at(CLIENT), 5000)));
    let [(source, _), there] = ends_of::<A>(&frame);
    assert_ne!(source, A::at(CLIENT));
    assert_eq!(there, endpoint);

    for (client, expected) in [(CLIENT, None), (within(LOST, 9), Some(DropReason::PolicyIngress))] {
        let port = if client == CLIENT { 5000 } else { 5001 };
        let mut frame =
            Builder::<A>::new(Transport::Udp, (A::at(PEER), port), (A::at(POD), 80)).frame();
        A::insert(&mut frame, true, &A::at(client), U16::new(port)).expect("room");
        let got = kernel.classify("uplink_ingress", uplink, &frame.bytes);
        assert_eq!(got.dropped, expected, "{client:?}");
        if let Some(frame) = got.frame {
            assert_eq!(names(&frame), None);
            let [from, to] = ends_of::<A>(&frame);
            assert_eq!((from, to), ((A::at(PEER), port), (A::at(POD), 80)));
        }
    }
}

/// Source and destination.
fn ends_of<A: Side>(frame: &[u8]) -> [(A, u16); 2] {
    let headers = A::parse(&Frame::new(frame.to_vec())).expect("well-formed");
    [
        (headers.source, headers.source_port.get()),
        (headers.destination, headers.destination_port.get()),
    ]
}
