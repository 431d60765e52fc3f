//! Floods of new flows through the loaded programs, over tables with little room: established flows are
//! never evicted by new ones, and go on as they were.

use std::collections::HashSet;
use std::path::Path;

use fairway_abi::{FlowKey, V4, V6};
use fairway_core::memory::Frame;
use fairway_core::packet::tcp::{ACK, SYN};
use fairway_core::tables::Stage;

use crate::frame::{Builder, Transport};
use crate::kernel::{Kernel, Outcome, REDIRECT, Side};
use crate::sandbox::sandbox;
use crate::world::{OTHER_POD, POD, Special, VIP, busy, install};

/// Flows that fit into the table of those without an answer, two records each.
const HALF_OPEN: u16 = 256;
/// Flows that fit into the table of the others.
const ESTABLISHED: u16 = 64;

fn kernel<A: Side + Special>(bpffs: &Path) -> Kernel<A> {
    let half_open = format!("half-open-flows={HALF_OPEN}");
    let established = format!("flows={ESTABLISHED}");
    let mut kernel = Kernel::<A>::start_sized(bpffs, &[&half_open, &established]);
    let node = busy::<A>(&kernel.devices);
    install(&node, &mut kernel);
    kernel
}

/// A flow from [`POD`] to a Service whose endpoint is [`OTHER_POD`].
#[derive(Clone, Copy)]
struct Talk {
    port: u16,
    tcp: bool,
}

impl Talk {
    fn transport(self, flags: u8) -> Transport {
        if self.tcp { Transport::Tcp(flags) } else { Transport::Udp }
    }

    fn asks<A: Side>(self, kernel: &mut Kernel<A>, flags: u8) -> Outcome {
        let (from, to) = ((A::at(POD), self.port), (A::at(VIP), 80));
        let packet = Builder::new(self.transport(flags), from, to).frame();
        send(kernel, 0, &packet)
    }

    fn answers<A: Side>(self, kernel: &mut Kernel<A>, flags: u8) -> Outcome {
        let (from, to) = ((A::at(OTHER_POD), 8080), (A::at(POD), self.port));
        let packet = Builder::new(self.transport(flags), from, to).frame();
        send(kernel, 1, &packet)
    }

    /// A packet each way, as they arrive.
    fn goes_on<A: Side>(self, kernel: &mut Kernel<A>) -> [Outcome; 2] {
        [self.asks(kernel, ACK), self.answers(kernel, ACK)]
    }

    /// Opens, is answered, and arrives as what goes on later.
    fn opens<A: Side>(self, kernel: &mut Kernel<A>) -> [Outcome; 2] {
        self.asks(kernel, SYN);
        self.answers(kernel, SYN | ACK);
        let arrived = self.goes_on(kernel);
        for (outcome, from) in arrived.iter().zip([A::at(POD), A::at(VIP)]) {
            let frame = Frame::new(outcome.frame.clone().expect("it is not dropped"));
            let headers = A::parse(&frame).expect("a packet");
            assert_eq!((outcome.action, headers.source), (REDIRECT, from), "translated");
        }
        arrived
    }
}

fn send<A: Side>(kernel: &mut Kernel<A>, pod: usize, packet: &Frame) -> Outcome {
    let device = kernel.devices.pods[pod];
    kernel.classify("pod_ingress", device, &packet.bytes)
}

fn keys<A: Side>(kernel: &mut Kernel<A>, stage: Stage) -> HashSet<FlowKey<A>> {
    kernel.tables.flows(stage).entries().into_iter().map(|(key, _)| key).collect()
}

#[test]
fn established_ipv4_flows_outlive_floods() {
    sandbox(outlive_floods::<V4>);
}

#[test]
fn established_ipv6_flows_outlive_floods() {
    sandbox(outlive_floods::<V6>);
}

fn outlive_floods<A: Side + Special>(bpffs: &Path) {
    let mut kernel = kernel::<A>(bpffs);
    let mut open = Vec::new();
    for talk in [Talk { port: 1000, tcp: true }, Talk { port: 1000, tcp: false }] {
        let arrived = talk.opens(&mut kernel);
        open.push((talk, arrived));
    }
    let established = keys(&mut kernel, Stage::Established);
    assert_eq!(established.len(), 4);
    for tcp in [true, false] {
        for number in 0..10 * HALF_OPEN {
            let stranger = Talk { port: 2000 + number, tcp };
            let sent = stranger.asks(&mut kernel, SYN);
            assert_eq!((sent.action, sent.dropped), (REDIRECT, None), "nobody is refused");
            if number % HALF_OPEN == 0 {
                for (talk, arrived) in &open {
                    assert_eq!(talk.goes_on(&mut kernel), *arrived, "after {number}");
                }
                // Who is answered gets through.
                let talk = Talk { port: 10_000 + number, tcp };
                let arrived = talk.opens(&mut kernel);
                open.push((talk, arrived));
            }
        }
    }
    assert!(keys(&mut kernel, Stage::HalfOpen).len() <= usize::from(HALF_OPEN) * 2);
    let after = keys(&mut kernel, Stage::Established);
    assert!(after.is_superset(&established));
    assert_eq!(after.len(), 2 * open.len(), "those that were answered, and no other");
    for (talk, arrived) in &open {
        assert_eq!(talk.goes_on(&mut kernel), *arrived);
    }
}

#[test]
fn a_full_table_of_ipv4_flows_leaves_them_alone() {
    sandbox(leaves_them_alone::<V4>);
}

#[test]
fn a_full_table_of_ipv6_flows_leaves_them_alone() {
    sandbox(leaves_them_alone::<V6>);
}

/// Flows that find no room beside the established ones live among those without an answer, and move
/// as soon as there is some.
fn leaves_them_alone<A: Side + Special>(bpffs: &Path) {
    let mut kernel = kernel::<A>(bpffs);
    let talk = |number| Talk { port: 1000 + number, tcp: number % 2 == 0 };
    let open: Vec<_> = (0..ESTABLISHED).map(|n| (talk(n), talk(n).opens(&mut kernel))).collect();
    let established = keys(&mut kernel, Stage::Established);
    assert_eq!(established.len(), usize::from(ESTABLISHED) * 2, "full");

    let late: Vec<_> =
        (ESTABLISHED..ESTABLISHED + 20).map(|n| (talk(n), talk(n).opens(&mut kernel))).collect();
    assert_eq!(keys(&mut kernel, Stage::Established), established);
    assert_eq!(keys(&mut kernel, Stage::HalfOpen).len(), 2 * late.len());
    for (talk, arrived) in open.iter().chain(&late) {
        assert_eq!(talk.goes_on(&mut kernel), *arrived);
    }

    // One goes, as the agent forgets it: its place is the next one's that is answered.
    let table = kernel.tables.flows(Stage::Established);
    let gone = established.iter().filter(|key| {
        let (asked, answered) = (key.source_port.get(), key.destination_port.get());
        [asked, answered].contains(&open[0].0.port)
    });
    gone.for_each(|key| table.remove(key));
    assert_eq!(late[0].0.goes_on(&mut kernel), late[0].1);
    let after = keys(&mut kernel, Stage::Established);
    assert_eq!(after.len(), established.len());
    assert!(after.iter().any(|key| key.source_port.get() == late[0].0.port));
}
