//! What a pod sends beyond its limit, on every way: by a device that holds it, or not.

use std::path::Path;

use fairway_abi::{DropReason, Meter, MeterKey, V4, V6, config, meter};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::frame::{Builder, Transport};
use crate::kernel::{Kernel, Limits, REDIRECT, Side, UNSPEC};
use crate::refusal;
use crate::sandbox::sandbox;
use crate::world::{
    CLIENT, DIRECT, LOST, OTHER_POD, POD, REMOTE, Special, install, tunnelled, within,
};

#[test]
fn what_is_over_a_limit_departs_later_by_what_holds_it_over_ipv4() {
    sandbox(check::<V4>);
}

#[test]
fn what_is_over_a_limit_departs_later_by_what_holds_it_over_ipv6() {
    sandbox(check::<V6>);
}

/// A packet takes far longer than this test.
const SLOW: Meter = Meter { rate: 100, patience: 0, next: 0, spacing: 0 };

fn check<A: Side + Special>(bpffs: &Path) {
    // What one program notes for the next is noted by the processor.
    let mut processor = CpuSet::new();
    processor.set(sched_getcpu());
    sched_setaffinity(None, &processor).expect("a processor to stay on");

    let mut kernel = Kernel::<A>::start(bpffs);
    let Limits { mut meters, mut paced } = kernel.limits();
    let (mut memory, _) = tunnelled::<A>(&kernel.devices, [0; 16]);
    let [pod, other] = kernel.devices.pods;
    let key = MeterKey { ifindex: pod, direction: meter::EGRESS };
    let (by_uplink, by_second) = (CLIENT, within(DIRECT, 2));
    let frame = |from: [u8; 4], to: [u8; 4]| {
        Builder::<A>::new(Transport::Udp, (A::at(from), 5000), (A::at(to), 80)).frame().bytes
    };
    // As attached: the one that counts first.
    let send = |kernel: &mut Kernel<A>, to| {
        let frame = frame(POD, to);
        let first = kernel.classify("pod_sends", pod, &frame);
        if first.action == UNSPEC {
            kernel.classify_in_time("pod_ingress", pod, &frame)
        } else {
            (first, 0)
        }
    };

    // Nothing holds packets: the first one overdraws the burst, and all others are over the limit.
    install(&memory, &mut kernel);
    meters.put(&key, &SLOW);
    assert_eq!(send(&mut kernel, by_uplink).0.action, REDIRECT);
    for to in [by_uplink, by_second, OTHER_POD] {
        assert_eq!(send(&mut kernel, to), (refusal(DropReason::EgressRate), 0), "to {to:?}");
    }

    // The uplink does, and what goes there departs when its turn has come, one after the other.
    memory.config.flags = config::PACED;
    kernel.configure(&memory.config);
    paced.put(&kernel.devices.uplink, &1);
    let fast = Meter { rate: 1_000, ..SLOW };
    meters.put(&key, &fast);
    let (seen, moment) = send(&mut kernel, by_uplink);
    assert_eq!((seen.action, moment), (REDIRECT, 0), "the first is within the burst");
    // The tunnel's device is the same one here.
    for held in [by_uplink, within(REMOTE, 2)] {
        let before = meters.get(&key).expect("a meter");
        // The last one is for the stack, which knows no way.
        for to in [by_second, OTHER_POD, within(LOST, 2)] {
            let refused = (refusal(DropReason::EgressRate), 0);
            assert_eq!(send(&mut kernel, to), refused, "nothing holds it on the way to {to:?}");
            assert_eq!(meters.get(&key), Some(before), "and it takes nobody's turn");
        }
        let (seen, moment) = send(&mut kernel, held);
        assert_eq!((seen.action, moment), (REDIRECT, before.next));
        assert!(meters.get(&key).expect("a meter").next > before.next);
        // Nobody else is touched.
        let (seen, moment) =
            kernel.classify_in_time("pod_ingress", other, &frame(OTHER_POD, by_uplink));
        assert_eq!((seen.action, moment), (REDIRECT, 0));
    }

    // Too much waits already.
    let next = meters.get(&key).expect("a meter").next + 10_000_000_000;
    meters.put(&key, &Meter { next, ..fast });
    assert_eq!(send(&mut kernel, by_uplink), (refusal(DropReason::EgressRate), 0));
}
