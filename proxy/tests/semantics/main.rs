//! What Services mean, as data: each file in `stories/` has Kubernetes objects, and cases that say where
//! a packet or a socket call comes from, where it wants to go, and what must become of it.
//!
//! ```text
//! objects ─► control plane ─► model ─► compile ─► tables ─┬─► core, over tables in memory
//!                                                         └─► the loaded programs (BPF_PROG_TEST_RUN)
//! ```
//!
//! Every case is told to both, and again in IPv6, to whose addresses the story's are mapped. Many
//! connections are made for each, since a choice is one of several: together they must reach every
//! endpoint that the case names, and no other. The story is told on node `n1`:
//!
//! ```text
//! n1  192.0.2.1   pods 10.244.1.0/24; 10.244.1.2 and 10.244.1.3 are there
//! n2  198.18.0.2  pods 10.244.2.0/24, behind the tunnel
//! n3  192.0.2.3   pods 10.244.3.0/24, by plain routes
//! client 198.51.100.7 is outside
//! ```

#[expect(dead_code, reason = "shared with the tests of the core")]
#[path = "../../../ebpf/core/tests/packets/frame.rs"]
mod frame;
#[expect(dead_code, reason = "shared with the differential test")]
#[path = "../differential/kernel.rs"]
mod kernel;
#[path = "../support/sandbox.rs"]
mod sandbox;
mod story;
mod tables;
/// Where `kernel` puts ranges of addresses.
mod world {
    pub(crate) const REMOTE: [u8; 3] = [10, 244, 2];
    pub(crate) const DIRECT: [u8; 3] = [10, 244, 3];
    pub(crate) const LOST: [u8; 3] = [203, 0, 113];
}

use std::collections::BTreeSet;
use std::path::Path;

use fairway_abi::{DropReason, V4, V6, protocol};
use fairway_core::memory::{Frame, Memory};
use fairway_core::packet::tcp;
use fairway_core::socket::{self, Outcome as SocketOutcome, SocketAddress};
use fairway_core::{Verdict, path};
use zerocopy::network_endian::U16;

use frame::{Builder, Transport, ends};
use kernel::{Kernel, REDIRECT, SHOT, Side, UNSPEC};
use story::{Case, End, Expected, From, Story};

/// Connections for each case: four endpoints are all reached but once in ten million runs.
const TRIES: u16 = 64;
/// The client port of the first one.
const FIRST_PORT: u16 = 40_000;
/// Cookies of network namespaces: the node's own, and those of its pods.
const NODE_NETNS: u64 = 1;
const POD_NETNS: u64 = 2;

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let text = include_str!(concat!("stories/", stringify!($name), ".yaml"));
                sandbox::sandbox(|bpffs| {
                    tell::<V4>(bpffs, stringify!($name), text);
                });
                sandbox::sandbox(|bpffs| {
                    tell::<V6>(bpffs, stringify!($name), &story::in_ipv6(text));
                });
            }
        )*
    };
}

stories![
    addresses,
    affinity,
    balancing,
    choice,
    connections,
    forwarding,
    iptables,
    node_ports,
    nobody,
    policies,
    slow_start,
    source_ranges,
    topology,
    weights,
];

/// What became of one connection; of one that reaches somebody, whom its node is told to answer as.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// It goes to this endpoint, which sees this client.
    Reaches(End, Sees, Option<End>),
    /// The client is told that nobody is there.
    Refused,
    /// Nobody ever answers, for the reason of that name.
    Dropped(&'static str),
    /// It is left as it is.
    Passes,
}

/// Whose address an endpoint sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sees {
    Client,
    Node,
}

fn tell<A: Side + fairway_compile::Family + tables::OfFamily>(
    bpffs: &Path,
    name: &str,
    text: &str,
) {
    let story = Story::read(name, text);
    let mut kernel = Kernel::<A>::start(bpffs);
    let memory = tables::compile::<A>(&story, &kernel.devices);
    tables::install(&memory, &mut kernel);
    let mut failures = Vec::new();
    for case in &story.cases {
        for (by, seen) in [
            ("core", by_core(case, &memory, &kernel)),
            ("the programs", by_programs(case, &mut kernel)),
            ("core at the socket", by_socket(case, &memory)),
        ] {
            let Some(seen) = seen else { continue };
            if let Err(difference) = compare(case, &seen) {
                let family = if A::BITS == 32 { "IPv4" } else { "IPv6" };
                failures.push(format!("{}: {} ({by}, {family}): {difference}", name, case.why));
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Holds what became of a case's connections against what must.
fn compare(case: &Case, seen: &[Fate]) -> Result<(), String> {
    let distinct: BTreeSet<&Fate> = seen.iter().collect();
    let wanted: BTreeSet<Fate> = match &case.expected {
        Expected::Reaches { endpoints, sees, answered_as } => {
            let sees = |to: &End| match sees {
                Some(true) => Sees::Client,
                Some(false) => Sees::Node,
                // Unless the case says otherwise: who comes from inside is seen as it is.
                None if case.from != From::Client || to.is_here() => Sees::Client,
                None => Sees::Node,
            };
            endpoints.iter().map(|to| Fate::Reaches(*to, sees(to), *answered_as)).collect()
        }
        Expected::Refused => [Fate::Refused].into(),
        Expected::Dropped(reason) => {
            let known = DropReason::ALL.into_iter().find(|known| known.name() == reason);
            let known = known.unwrap_or_else(|| panic!("{}: no drop reason {reason}", case.why));
            [Fate::Dropped(known.name())].into()
        }
        Expected::Passes => [Fate::Passes].into(),
    };
    if case.sticks {
        let one = distinct.len() == 1 && distinct.iter().all(|fate| wanted.contains(fate));
        return if one { Ok(()) } else { Err(format!("one of {wanted:?}, but {distinct:?}")) };
    }
    if distinct.iter().copied().eq(&wanted) {
        Ok(())
    } else {
        Err(format!("{wanted:?}, but {distinct:?}"))
    }
}

fn packet<A: Side>(case: &Case, number: u16) -> Builder<A> {
    let transport = match case.protocol {
        protocol::UDP => Transport::Udp,
        protocol::SCTP => Transport::Sctp,
        protocol::ICMP => Transport::EchoRequest,
        _ => Transport::Tcp(tcp::SYN),
    };
    let port = if case.sticks { FIRST_PORT + number * 7 } else { FIRST_PORT + number };
    Builder::new(
        transport,
        (A::at(case.from.address()), port),
        case.to[usize::from(number) % case.to.len()].at::<A>(),
    )
}

/// By packets through `core`; `None`: no packet of such a client comes by.
fn by_core<A: Side + fairway_compile::Family>(
    case: &Case,
    memory: &Memory<A>,
    kernel: &Kernel<A>,
) -> Option<Vec<Fate>> {
    let memory = memory.clone();
    let send = |number| {
        let before = packet::<A>(case, number).frame();
        let mut frame = before.clone();
        let verdict = match case.from {
            From::Pod => path::from_pod(&mut frame, &memory, kernel.devices.pods[0]),
            From::Client => path::from_uplink(&mut frame, &memory),
            From::Node => return None,
        };
        Some(match verdict {
            Verdict::Drop(reason) => Fate::Dropped(reason.name()),
            Verdict::Pass if frame == before => Fate::Passes,
            _ => fate::<A>(case, &before, &frame),
        })
    };
    (0..TRIES).map(send).collect()
}

/// By packets through the loaded programs.
fn by_programs<A: Side + fairway_compile::Family>(
    case: &Case,
    kernel: &mut Kernel<A>,
) -> Option<Vec<Fate>> {
    // No more are told than a processor's bucket holds.
    let tries = if case.expected == Expected::Refused { 2 } else { TRIES };
    let mut fates = Vec::new();
    for number in 0..tries {
        let before = packet::<A>(case, number).frame();
        let seen = match case.from {
            From::Pod => kernel.classify("pod_ingress", kernel.devices.pods[0], &before.bytes),
            From::Client => kernel.classify("uplink_ingress", kernel.devices.uplink, &before.bytes),
            From::Node => return None,
        };
        fates.push(match (seen.action, seen.frame) {
            (SHOT, _) | (_, None) => Fate::Dropped(seen.dropped.map_or("", DropReason::name)),
            (UNSPEC, Some(bytes)) if bytes == before.bytes => Fate::Passes,
            // Where the node's routes lead nowhere, the stack gets what was translated.
            (UNSPEC | REDIRECT, Some(bytes)) => fate::<A>(case, &before, &Frame::new(bytes)),
            (action, _) => panic!("{}: action {action}", case.why),
        });
    }
    tables::forget(kernel);
    Some(fates)
}

/// By calls of sockets; `None`: the client has none here, or the protocol is not looked at.
fn by_socket<A: Side + fairway_compile::Family>(
    case: &Case,
    memory: &Memory<A>,
) -> Option<Vec<Fate>> {
    let netns = match case.from {
        From::Pod => POD_NETNS,
        From::Node => NODE_NETNS,
        From::Client => return None,
    };
    if !socket::is_balanced(case.protocol) || case.not_at_sockets {
        return None;
    }
    let memory = memory.clone();
    let connect = |number: u16| {
        let (address, port) = case.to[usize::from(number) % case.to.len()].at::<A>();
        let to = SocketAddress { address, port: U16::new(port), protocol: case.protocol };
        let socket = memory.socket_in(u64::from(number) + 1, netns);
        match socket::connect(&memory, &socket, &to) {
            SocketOutcome::Endpoint(endpoint) => {
                let to = End::of::<A>(endpoint.address, endpoint.port.get());
                Some(Fate::Reaches(to, Sees::Client, None))
            }
            SocketOutcome::Refused => Some(Fate::Refused),
            // What becomes of it is decided where its packets are seen.
            SocketOutcome::Unchanged => None,
        }
    };
    let fates: Vec<Option<Fate>> = (0..TRIES).map(connect).collect();
    if case.from == From::Node {
        return Some(fates.into_iter().map(|fate| fate.unwrap_or(Fate::Passes)).collect());
    }
    fates.into_iter().collect()
}

/// What a packet that went on came to be.
fn fate<A: Side + fairway_compile::Family>(case: &Case, before: &Frame, after: &Frame) -> Fate {
    let ((client, _), (asked, _)) = ends::<A>(before);
    let (kind, source, destination, ..) = A::read(&after.bytes);
    let told = kind == A::ICMP && case.protocol != protocol::ICMP;
    if destination == client && (told || source == asked) {
        return Fate::Refused;
    }
    let ((source, _), (address, port)) = ends::<A>(after);
    let sees = if source == client { Sees::Client } else { Sees::Node };
    let named = after.bytes.len() > before.bytes.len();
    let answered_as = A::named(after).filter(|_| named);
    let answered_as = answered_as.map(|(_, address, port)| End::of::<A>(address, port.get()));
    Fate::Reaches(End::of::<A>(address, port), sees, answered_as)
}
