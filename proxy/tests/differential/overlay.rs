//! Packets out of a real tunnel: a socket on the loopback device plays the peer, and writes VXLAN
//! (RFC 7348) to a device that `overlay_ingress` is attached to.
//!
//! What becomes of such a packet is not seen, but what it changes is: an answer establishes the flow
//! it belongs to, and nothing else does.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use fairway_abi::{DropReason, TunnelEnd, V4, V6};
use fairway_core::memory::{Frame, Memory};
use fairway_core::packet::tcp;
use fairway_core::tables::Stage;
use fairway_core::{Verdict, path};
use fairway_netlink::{Netlink, Vxlan};

use crate::frame::{Builder, Transport};
use crate::kernel::{Kernel, REDIRECT, Side};
use crate::sandbox::sandbox;
use crate::world::{Special, install, tunnelled};
use crate::{records, records_that_differ};

const PORT: u16 = 8472;
const VNI: u32 = 1;
/// The node that the remote pod is on, and one that it is not on; `mapped` is the former.
const PEER: &str = "127.0.0.2";
const STRANGER: &str = "127.0.0.3";
const MAPPED: V6 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 2];

#[test]
fn answers_from_the_peer_establish_flows_over_ipv4() {
    sandbox(answers_from_the_peer_alone_establish_flows::<V4>);
}

#[test]
fn answers_from_the_peer_establish_flows_over_ipv6() {
    sandbox(answers_from_the_peer_alone_establish_flows::<V6>);
}

fn answers_from_the_peer_alone_establish_flows<A: Side + Special>(bpffs: &std::path::Path) {
    let mut kernel = Kernel::<A>::start(bpffs);
    let (memory, [client, frontend]) = tunnelled::<A>(&kernel.devices, MAPPED);
    install(&memory, &mut kernel);
    let mut netlink = Netlink::open().expect("a netlink socket");
    let vxlan = Vxlan { name: "overlay", port: PORT, collect_metadata: true, ..Vxlan::default() };
    let overlay = netlink.create_vxlan(&vxlan).expect("a VXLAN device").index;
    netlink.set_up(overlay).expect("up");
    kernel.attach("overlay_ingress", "overlay");

    let mut question = Builder::tcp(tcp::SYN, client, frontend).frame();
    let pod = kernel.devices.pods[0];
    let asked = kernel.classify("pod_ingress", pod, &question.bytes);
    assert_eq!(asked.action, REDIRECT);
    assert_eq!(path::from_pod(&mut question, &memory, pod), Verdict::Tunnel(TunnelEnd::at(MAPPED)));
    let answer = Builder::<A>::answer(&question, Transport::Tcp(tcp::SYN | tcp::ACK)).frame();

    for (who, from, vni) in [("a stranger", STRANGER, VNI), ("another tunnel", PEER, VNI + 1)] {
        let refused =
            |kernel: &mut Kernel<A>| kernel.count_drops()[DropReason::ForeignTunnel as usize];
        let before = refused(&mut kernel);
        tunnel(from, vni, &answer);
        wait_until(who, || refused(&mut kernel) > before);
        let same = records_that_differ(&mut kernel, &memory, &memory);
        assert!(same.is_empty(), "{who} changed {same:?}");
    }

    let after = memory.clone();
    let verdict = path::from_overlay(&mut answer.clone(), &after, &MAPPED);
    assert!(matches!(verdict, Verdict::Pod(_)), "{verdict:?}");
    assert_ne!(established(&memory), established(&after));
    tunnel(PEER, VNI, &answer);
    wait_until("the flow", || records_that_differ(&mut kernel, &memory, &after).is_empty());
    assert!(kernel.tables.flows(Stage::HalfOpen).entries().is_empty());
}

fn established<A: Side>(memory: &Memory<A>) -> usize {
    records(memory).keys().filter(|(stage, _)| *stage == 1).count()
}

/// Sends a frame through the tunnel.
fn tunnel(from: &str, vni: u32, frame: &Frame) {
    let socket = UdpSocket::bind((from, 0)).expect("a socket");
    let header = [0x0800_0000_u32.to_be_bytes(), (vni << 8).to_be_bytes()].concat();
    let packet = [header, frame.bytes.clone()].concat();
    socket.send_to(&packet, ("127.0.0.1", PORT)).expect("sent");
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: nothing happened in ten seconds");
        std::thread::sleep(Duration::from_millis(1));
    }
}
