//! The corpus of the core's fuzz target, and stories made from it, through the loaded programs: what
//! holds for core in `ebpf/core/fuzz/invariants.rs` holds for them if they agree with it.

use std::path::Path;

use fairway_core::memory::Memory;

use crate::kernel::{Kernel, Side};
use crate::replay::{Random, corpus, mutated};
use crate::sandbox::sandbox;
use crate::story::{Arrival, Place};
use crate::traffic::{Entry, shortest};
use crate::world::{Special, busy, install, remove};
use crate::{V4, V4_TYPE, V6, V6_TYPE, forget_flows, records, send};

/// Stories made from the corpus, beside the corpus itself.
const MUTATIONS: u32 = 150;

#[test]
fn programs_and_core_agree_on_hostile_ipv4() {
    sandbox(replay::<V4>);
}

#[test]
fn programs_and_core_agree_on_hostile_ipv6() {
    sandbox(replay::<V6>);
}

fn replay<A: Side + Special>(bpffs: &Path) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf/core/fuzz/corpus/packets");
    let corpus = corpus(&folder);
    let mut kernel = Kernel::<A>::start(bpffs);
    let memory = busy::<A>(&kernel.devices);
    install(&memory, &mut kernel);
    let mut sent = 0;
    for (name, story) in &corpus {
        sent += tell(&mut kernel, &memory, name, story);
    }
    assert!(sent > 500, "only {sent} packets of the corpus are of this family");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..MUTATIONS {
        let story = mutated(&corpus, &mut random);
        tell(&mut kernel, &memory, &format!("round {round}"), &story);
    }
    remove(&memory, &mut kernel);
}

/// Sends what the kernel would see of this family; answers how many packets that is.
fn tell<A: Side>(kernel: &mut Kernel<A>, node: &Memory<A>, name: &str, story: &[Arrival]) -> u32 {
    let mut memory = node.clone();
    let mut sent = 0;
    for Arrival { place, bytes, .. } in story {
        let entries: &[Entry] = match place {
            Place::Pod => &[Entry::Pod(0)],
            Place::Uplink => &[Entry::Xdp, Entry::Uplink],
            Place::Overlay => &[Entry::Overlay],
            Place::Host => &[Entry::ToUplink],
            Place::HostTunnel => &[Entry::ToOverlay],
        };
        if !is_seen::<A>(bytes) {
            continue;
        }
        for entry in entries {
            let agreed = send(kernel, &memory, *entry, bytes);
            let (after, seen) = agreed.unwrap_or_else(|error| panic!("{name}: {error}"));
            memory = after;
            sent += 1;
            // What XDP has taken, no other program sees.
            if *entry == Entry::Xdp && seen.action != crate::XDP_PASS {
                break;
            }
        }
    }
    let left = forget_flows(kernel);
    assert!(left == records(&memory), "{name}: the kernel holds records that memory does not");
    sent
}

/// Whether the kernel runs programs on the frame, and this family's part of them.
fn is_seen<A: Side>(bytes: &[u8]) -> bool {
    match bytes.get(12..14) {
        Some(kind) if kind == A::ETHERTYPE => bytes.len() >= shortest::<A>(),
        Some(kind) if kind == V4_TYPE || kind == V6_TYPE => false,
        Some(_) => bytes.len() > 14,
        None => false,
    }
}
