//! What the programs cost: the instructions the verifier walks through for each. They grow with every
//! way a packet may take, and the kernel refuses a program beyond a million (Linux 5.2).

#[path = "support/sandbox.rs"]
mod sandbox;

use std::collections::BTreeMap;

use aya::programs::Xdp;
use fairway_proxy::dataplane::Dataplane;
use sandbox::sandbox;

/// Instructions the verifier may walk through: what it took when the number was last looked at (the
/// more of Linux 6.1 and 6.18), and a quarter more. Whoever raises one says why. The classifiers
/// translate ICMP errors, which takes two headers, and those at an ingress make some, about packets of
/// any length, and may have to look after a pod's limit. Fragments find their ports in a table.
/// Wherever a packet is translated it may be SCTP, whose checksum takes 128 lookups in tables. A socket
/// that connects to a loopback address asks for a host port there; to a Service, it may have to stay
/// with its endpoint, be in a source range, or be left alone for its pod; and where endpoints start
/// slowly, several picks may be made, or two compared where connections are counted; all of which the
/// XDP program may do, too. What a socket was given may also be found in the table before ours, whose
/// records are their own kind.
///
/// What an error to a packet's sender consists of, and SCTP's checksum, are checked once a program
/// (`ebpf/src/alone.rs`): on every way to there, they took more than half of all.
const BUDGET: [(&str, u32); 21] = [
    ("clock", 10),
    ("connect4", 7_200),
    ("connect6", 24_900),
    ("getpeername4", 78),
    ("getpeername6", 207),
    ("overlay_egress", 28_300),
    ("overlay_ingress", 177_000),
    // What the host's stack forwards to a pod may be given a flow, and is held against policies.
    ("pod_egress", 65_000),
    // What a pod says about neighbours is read to its last option, and what it asks of the DNS is answered: that is a
    // quarter of it, checked once.
    ("pod_ingress", 267_000),
    ("pod_receives", 234),
    ("pod_sends", 459),
    ("recvmsg4", 78),
    ("recvmsg6", 207),
    ("sendmsg4", 4_400),
    ("sendmsg6", 17_300),
    ("sock_release", 294),
    ("uplink_egress", 35_200),
    // So are the names of frontends that another node is to answer as.
    ("uplink_ingress", 176_000),
    // It keeps the headers of what it refuses, for those who watch.
    ("uplink_xdp", 42_100),
    ("wireguard_egress", 28_600),
    ("wireguard_ingress", 169_000),
];

#[test]
fn every_program_verifies_within_its_budget() {
    sandbox(|bpffs| {
        let alone = costs(Dataplane::load(bpffs).expect("programs that load"));
        let budget = BTreeMap::from(BUDGET);
        let names: Vec<_> = alone.keys().map(String::as_str).collect();
        assert_eq!(names, budget.keys().copied().collect::<Vec<_>>(), "programs and budget");
        let over = over(&alone, |name| budget[name]);
        assert!(over.is_empty(), "over budget: {over:?}");

        // The same programs while their tables take the place of others.
        let capacity = "flows=1000".parse().expect("a capacity");
        let switching = Dataplane::load_sized(bpffs, &[capacity]).expect("programs that load");
        let switching = costs(switching);
        let over = self::over(&switching, |name| budget[name] + budget[name] / 4 + SWITCHING);
        assert!(over.is_empty(), "over budget while tables are switched: {over:?}");
    });
}

/// What a program may take, beyond its budget and a quarter of it, to look into two sets of tables: it
/// calls a function for that, which is checked once.
const SWITCHING: u32 = 5_000;

/// What the verifier took for each program.
fn costs(mut dataplane: Dataplane) -> BTreeMap<String, u32> {
    // The agent loads it only where it attaches it.
    let xdp = dataplane.ebpf().program_mut("uplink_xdp").expect("an XDP program");
    let xdp: &mut Xdp = xdp.try_into().expect("an XDP program");
    xdp.load().expect("an XDP program that loads");
    let programs = dataplane.ebpf().programs().map(|(name, program)| {
        let info = program.info().expect("a loaded program");
        let cost = info.verified_instruction_count().expect("Linux 5.16 or newer");
        (name.to_owned(), cost)
    });
    programs.collect()
}

fn over(costs: &BTreeMap<String, u32>, budget: impl Fn(&str) -> u32) -> Vec<(&String, &u32)> {
    for (name, cost) in costs {
        println!("{name:16} {cost:7} of {:7}", budget(name));
    }
    costs.iter().filter(|(name, cost)| **cost > budget(name)).collect()
}
