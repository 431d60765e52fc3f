//! Packets that are too big for their way on, against devices and routes of a real network.

use std::path::Path;

use fairway_abi::{DropReason, V4, V6};
use fairway_core::flow::Scratch;
use fairway_core::path::{self, Todo};

use crate::frame::{Builder, Transport};
use crate::kernel::{Kernel, REDIRECT, Side};
use crate::sandbox::sandbox;
use crate::world::{CLIENT, DIRECT, OTHER_POD, POD, REMOTE, Special, install, tunnelled, within};
use crate::{outcome, refusal};

#[test]
fn programs_and_core_tell_the_same_of_packets_too_big_over_ipv4() {
    sandbox(compare::<V4>);
}

#[test]
fn programs_and_core_tell_the_same_of_packets_too_big_over_ipv6() {
    sandbox(compare::<V6>);
}

/// Of every device here, and so of every route.
pub(crate) const MTU: u32 = 1500;
/// Shorter than [`MTU`] and longer by headers of IPv6 at most.
const FITS: usize = 1440;
const TOO_BIG: usize = 1600;

fn compare<A: Side + Special>(bpffs: &Path) {
    let mut kernel = Kernel::<A>::start(bpffs);
    let (memory, _) = tunnelled::<A>(&kernel.devices, [0; 16]);
    install(&memory, &mut kernel);
    let pod = kernel.devices.pods[0];
    for destination in [OTHER_POD, within(REMOTE, 2), within(DIRECT, 2), CLIENT] {
        let ask = |transport, length| {
            let (from, to) = ((A::at(POD), 5000), (A::at(destination), 80));
            Builder::<A>::new(transport, from, to).payload(&vec![7; length])
        };
        // A packet as long as the MTU passes.
        let fits = ask(Transport::Udp, FITS).whole().frame();
        let seen = kernel.classify("pod_ingress", pod, &fits.bytes);
        assert_eq!((seen.action, seen.dropped), (REDIRECT, None), "to {destination:?}");
        assert_eq!(seen.frame.map(|frame| frame.len()), Some(fits.bytes.len()));

        // Of a list of parts, each part is: what its sender cannot know of is not asked here.
        let list = ask(Transport::Sctp, TOO_BIG).whole().frame();
        let seen = kernel.classify_list("pod_ingress", pod, &list.bytes);
        assert_eq!((seen.action, seen.dropped), (REDIRECT, None), "to {destination:?}");
        assert_eq!(seen.frame.map(|frame| frame.len()), Some(list.bytes.len()));

        for (packet, refused) in [
            (ask(Transport::Udp, TOO_BIG).whole(), false),
            (ask(Transport::Udp, TOO_BIG), false),
            // Nobody is told of an error.
            (ask(Transport::Icmp(A::UNREACHABLE), TOO_BIG).whole(), destination != CLIENT),
        ] {
            let before = packet.frame();
            let seen = kernel.classify("pod_ingress", pod, &before.bytes);
            if refused {
                assert_eq!(seen, refusal(DropReason::TooBig));
                continue;
            }
            if destination == CLIENT && seen.dropped.is_some() {
                assert_eq!(seen, refusal(DropReason::UnsupportedProtocol));
                continue;
            }
            let mut frame = before.clone();
            let headers = A::parse(&frame).expect("well-formed");
            let mut scratch = Scratch::default();
            let todo = path::decide_from_pod(&memory, &headers, &mut scratch).expect("a decision");
            if todo == Todo::Open {
                path::open(&memory, &memory, &headers, &mut scratch).expect("a flow");
            }
            let verdict = path::apply_large(&mut frame, &memory, &headers, &mut scratch, MTU);
            assert_eq!(seen, outcome::<A>(verdict, frame), "to {destination:?}");
        }
    }
}
