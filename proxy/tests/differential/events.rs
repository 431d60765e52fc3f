//! What programs tell those who watch: whom a packet was from and to, where it was to go, and which rule
//! decided; and no more than anybody can read.

use std::path::Path;

use fairway_abi::{
    DropReason, Event, PodRange, Ruling, RulingKey, Subject, V4, V6, config, event, flow, ruling,
};
use fairway_core::icmp::Bucket;
use fairway_core::packet::tcp;
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::frame::{Builder, End, Transport};
use crate::kernel::{Kernel, REDIRECT, SHOT, Side, XDP_DROP};
use crate::sandbox::sandbox;
use crate::world::{NODE, OTHER_POD, POD, REMOTE, Special, VIP, busy, install, within};

#[test]
fn those_who_watch_are_told_of_drops_and_new_flows_over_ipv4() {
    sandbox(those_who_watch_are_told::<V4>);
}

#[test]
fn those_who_watch_are_told_of_drops_and_new_flows_over_ipv6() {
    sandbox(those_who_watch_are_told::<V6>);
}

/// [`POD`] receives nothing, by rule 5, and sends by rule 6.
fn those_who_watch_are_told<A: Side + Special>(bpffs: &Path) {
    let mut kernel = Kernel::<A>::start(bpffs);
    let mut memory = busy::<A>(&kernel.devices);
    memory.config.flags |= config::POLICED;
    memory.config.policy = !flow::REVISION + 1;
    memory.subjects.insert(A::at(POD), Subject { ingress: 1, egress: 2 });
    for (set, verdict) in [(1, ruling::DENIED | 5), (2, 6)] {
        let key = RulingKey { set: U32::new(set), ..RulingKey::default() };
        memory.rulings.insert(key, Ruling { verdict, lengths: 0 });
    }
    install(&memory, &mut kernel);
    let mut events = kernel.events();
    let [pod, other, node, remote] = [POD, OTHER_POD, NODE, within(REMOTE, 2)].map(A::at);
    let (device, other_device) = (kernel.devices.pods[0], kernel.devices.pods[1]);
    let send = |kernel: &mut Kernel<A>, from: End<A>, to| {
        let device = if from.0 == pod { device } else { other_device };
        let frame = Builder::tcp(tcp::SYN, from, to).frame();
        kernel.classify("pod_ingress", device, &frame.bytes).action
    };
    // Nobody watches.
    assert_eq!(send(&mut kernel, (other, 1), (pod, 80)), SHOT);
    assert_eq!(send(&mut kernel, (pod, 1), (other, 80)), REDIRECT);
    assert_eq!(events.read(), []);

    memory.config.flags |= config::WATCH_DROPS;
    kernel.configure(&memory.config);
    assert_eq!(send(&mut kernel, (other, 2), (pod, 80)), SHOT);
    assert_eq!(send(&mut kernel, (pod, 2), (other, 80)), REDIRECT);
    let told = |from: End<A>, to: End<A>, endpoint: End<A>| Event {
        time: 0,
        source: from.0.to_v6(),
        destination: to.0.to_v6(),
        endpoint: endpoint.0.to_v6(),
        source_port: U16::new(from.1),
        destination_port: U16::new(to.1),
        endpoint_port: U16::new(endpoint.1),
        protocol: fairway_abi::protocol::TCP,
        kind: event::DROP,
        ifindex: device,
        reason: 0,
        verdict: 0,
        missed: 0,
    };
    let denied = Event {
        ifindex: other_device,
        reason: DropReason::PolicyIngress as u32,
        verdict: ruling::DENIED | 5,
        ..told((other, 2), (pod, 80), (pod, 80))
    };
    assert_eq!(events.read(), [denied]);
    // Nothing is decided on what nobody serves.
    let nobody = A::at(within([10, 96, 0], 99));
    assert_eq!(send(&mut kernel, (pod, 3), (nobody, 80)), SHOT);
    let mut expected = told((pod, 3), (nobody, 80), (A::UNSPECIFIED, 0));
    expected.endpoint = V6::default();
    expected.reason = DropReason::UnallocatedAddress as u32;
    assert_eq!(events.read(), [expected]);

    // Refused before anything is decided: what its headers say, as far as they can be read.
    let refused = |reason: DropReason, from, to| Event {
        endpoint: V6::default(),
        reason: reason as u32,
        ..told(from, to, (A::UNSPECIFIED, 0))
    };
    let forged = Builder::<A>::tcp(tcp::SYN, (remote, 4), (other, 80)).frame();
    assert_eq!(kernel.classify("pod_ingress", device, &forged.bytes).action, SHOT);
    let expected = refused(DropReason::SpoofedSource, (remote, 4), (other, 80));
    assert_eq!(events.read(), [expected]);
    let mut broken = Builder::<A>::tcp(tcp::SYN, (pod, 4), (other, 80)).frame();
    broken.bytes[14] ^= 0xf0;
    assert_eq!(kernel.classify("pod_ingress", device, &broken.bytes).action, SHOT);
    let [event] = events.read().try_into().expect("one event");
    assert_eq!(event.reason, DropReason::Malformed as u32);

    // Not from there.
    let frame = Builder::<A>::tcp(tcp::SYN, (remote, 1), (node, 30_080)).frame();
    let mut expected =
        Event { endpoint: V6::default(), ..told((remote, 1), (node, 30_080), (node, 0)) };
    expected.ifindex = kernel.devices.uplink;
    expected.reason = DropReason::ForeignSource as u32;
    assert_eq!(kernel.xdp(&frame.bytes).action, XDP_DROP);
    assert_eq!(events.read(), [expected]);

    // Nor is a pod of this node out there.
    kernel.set_pod_range(&PodRange { network: pod, mask: A::at([0xff; 4]) });
    let frame = Builder::<A>::tcp(tcp::SYN, (pod, 5), (node, 30_080)).frame();
    let expected = Event {
        ifindex: kernel.devices.uplink,
        ..refused(DropReason::ForeignSource, (pod, 5), (node, 30_080))
    };
    assert_eq!(kernel.xdp(&frame.bytes).action, XDP_DROP);
    assert_eq!(events.read(), [expected]);
    let uplink = kernel.devices.uplink;
    assert_eq!(kernel.classify("uplink_ingress", uplink, &frame.bytes).action, SHOT);
    assert_eq!(events.read(), [expected]);
    kernel.set_pod_range(&memory.pod_range);

    memory.config.flags |= config::WATCH_FLOWS;
    kernel.configure(&memory.config);
    let vip = A::at(VIP);
    for _ in 0..2 {
        assert_eq!(send(&mut kernel, (pod, 4), (vip, 80)), REDIRECT);
    }
    let allowed =
        Event { kind: event::ALLOW, verdict: 6, ..told((pod, 4), (vip, 80), (other, 8080)) };
    assert_eq!(events.read(), [allowed], "once a flow");
    // What answers is none.
    let answer = Builder::<A>::new(Transport::Tcp(tcp::SYN | tcp::ACK), (other, 8080), (pod, 4));
    let answer = answer.frame();
    let answered = kernel.classify("pod_ingress", other_device, &answer.bytes);
    assert_eq!((answered.action, events.read()), (REDIRECT, vec![]));

    // More than anybody reads.
    const MANY: u32 = 2_000;
    for _ in 0..MANY {
        assert_eq!(send(&mut kernel, (other, 5), (pod, 80)), SHOT);
    }
    let told = events.read();
    assert!(told.len() >= Bucket::DEPTH as usize, "{} were told", told.len());
    assert!(told.len() < MANY as usize, "all were told");
    crate::overlay::wait_until("how many were left out", || {
        assert_eq!(send(&mut kernel, (other, 6), (pod, 80)), SHOT);
        events.read().iter().any(|event| event.missed > 0)
    });
}
