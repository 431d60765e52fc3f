//! The same packets through `fairway_core` over tables in memory, and through the loaded programs
//! over the kernel's tables (`BPF_PROG_TEST_RUN`): they must agree on what becomes of each packet,
//! on its bytes, and on every flow record.
//!
//! Where the kernel rolls dice (the choice of an endpoint, of a source port), what it rolled is read
//! off the record it wrote and handed to the tables in memory; a choice that no dice explain fails.
//! A test run has no tunnel key: `overlay_ingress` gets a few packets out of a real tunnel instead,
//! see [`overlay`]. Not covered: packets in pieces or with partial checksums, which a
//! test run does not build.
//!
//! Beside these, [`manifests`] holds the programs against what the specification says of policies.
//!
//! proptest prints and keeps the seeds of failures (`main.proptest-regressions`) and tries
//! them first from then on.

mod events;
mod flood;
#[expect(dead_code, reason = "shared with the tests of the core, which read frames too")]
#[path = "../../../ebpf/core/tests/packets/frame.rs"]
mod frame;
#[expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#[path = "../../../tests/tests/policy_tables/generate.rs"]
mod generate;
mod hostile;
mod kernel;
mod manifests;
mod names;
#[expect(dead_code, unreachable_pub, reason = "shared with the tests of manifests' tables")]
#[path = "../../../tests/src/policy/oracle.rs"]
mod oracle;
mod overlay;
mod pacing;
mod ports;
mod queries;
#[path = "../../../ebpf/core/fuzz/replay.rs"]
mod replay;
#[path = "../support/sandbox.rs"]
mod sandbox;
mod stack;
#[path = "../../../ebpf/core/fuzz/story.rs"]
mod story;
mod too_big;
mod traffic;
mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use fairway_abi::{
    DropReason, Flow, FlowKey, Frontend, TunnelEnd, V4, V6, config, flow, frontend, scope,
};
use fairway_core::flow::Scratch;
use fairway_core::memory::{Frame, Memory};
use fairway_core::packet::Ports;
use fairway_core::path::{Todo, Whence};
use fairway_core::service::Request;
use fairway_core::tables::Stage;
use fairway_core::{Tables, Verdict, direct, fragment, neighbour, path, service};
use proptest::collection::vec;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use zerocopy::IntoBytes;
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use kernel::{
    Kernel, Outcome, REDIRECT, SHOT, Side, UNSPEC, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX, way,
};
use traffic::{Entry, Event, Sent, event};
use world::{RULES, Special, change_policies, install, remove, world};

#[test]
fn programs_and_core_agree_on_ipv4() {
    sandbox::sandbox(compare::<V4>);
}

#[test]
fn programs_and_core_agree_on_ipv6() {
    sandbox::sandbox(compare::<V6>);
}

/// Nodes, and the most packets through each; and how often as many again, should a reason to drop be missing.
const NODES: u32 = 800;
const PACKETS: usize = 60;
const ROUNDS: usize = 4;

fn compare<A: Side + Special>(bpffs: &Path) {
    let kernel = RefCell::new(Kernel::<A>::start(bpffs));
    let tally = RefCell::new(Tally::default());
    let config = Config {
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource(
            "proptest-regressions",
        ))),
        ..Config::with_cases(NODES)
    };
    let story = (world::<A>(), vec(event::<A>(), 1..PACKETS));
    let mut runner = TestRunner::new(config.clone());
    for _ in 0..ROUNDS {
        if tally.borrow().missing().is_none() {
            break;
        }
        let rng = runner.new_rng();
        runner = TestRunner::new_with_rng(config.clone(), rng);
        let result = runner.run(&story, |(world, events)| {
            let mut kernel = kernel.borrow_mut();
            let memory = world.memory(&kernel.devices);
            install(&memory, &mut kernel);
            let told = tell(&mut kernel, memory.clone(), &events, &mut tally.borrow_mut());
            let left = forget_flows(&mut kernel);
            remove(&memory, &mut kernel);
            if told? != left {
                return Err(TestCaseError::fail("the kernel holds records that memory does not"));
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    }
    tally.into_inner().check();
}

/// Every flow record by table and key, without its time stamp.
type Records<A> = HashMap<(usize, FlowKey<A>), Flow<A>>;

const STAGES: [Stage; 2] = [Stage::HalfOpen, Stage::Established];

/// Sends one packet after the other, and compares after each; answers the records in the end.
fn tell<A: Side>(
    kernel: &mut Kernel<A>,
    mut memory: Memory<A>,
    events: &[Event<A>],
    tally: &mut Tally,
) -> Result<Records<A>, TestCaseError> {
    let mut sent: Vec<Sent> = Vec::new();
    for event in events {
        if let Event::Policies { ruling } = event {
            change_policies(&mut memory, kernel, ruling);
        }
        let Some((entry, before)) = event.packet(&sent) else { continue };
        let mut seen;
        (memory, seen) = send(kernel, &memory, entry, &before)?;
        tally.count(entry, &seen);
        if let Event::Error { .. } = event
            && seen.frame.as_ref().is_some_and(|after| after[28..] != before[28..])
        {
            tally.errors += 1;
        }
        if entry == Entry::Xdp && seen.action == XDP_PASS {
            (memory, seen) = send(kernel, &memory, Entry::Uplink, &before)?;
            tally.count(Entry::Uplink, &seen);
        }
        sent.push(Sent { entry, before, after: seen.frame });
    }
    let records = records(&memory);
    tally.established += records.keys().filter(|(stage, _)| *stage == 1).count();
    Ok(records)
}

/// Sends a packet both ways; answers the memory afterwards and what became of the packet.
fn send<A: Side>(
    kernel: &mut Kernel<A>,
    memory: &Memory<A>,
    entry: Entry,
    before: &[u8],
) -> Result<(Memory<A>, Outcome), TestCaseError> {
    let device = match entry {
        Entry::Pod(pod) => kernel.devices.pods[pod],
        _ => kernel.devices.uplink,
    };
    let seen = match entry {
        Entry::Pod(_) => kernel.classify("pod_ingress", device, before),
        Entry::Uplink => kernel.classify("uplink_ingress", device, before),
        Entry::Xdp => kernel.xdp(before),
        Entry::ToPod => kernel.classify("pod_egress", kernel.devices.pods[0], before),
        Entry::ToUplink => kernel.classify("uplink_egress", device, before),
        Entry::Overlay => kernel.classify("overlay_ingress", device, before),
        Entry::ToOverlay => kernel.classify("overlay_egress", device, before),
    };
    let mut first = None;
    for dice in dice(kernel, memory, entry, before) {
        let mut trial = memory.clone();
        trial.dice.set(dice);
        // Whether the kernel would tell senders depends on how fast the test is.
        let refused = seen.action == SHOT
            && seen.dropped.is_some_and(|reason| {
                reason == DropReason::IcmpRateLimit || service::is_told(reason)
            });
        trial.complaints.set(if refused { 0 } else { u32::MAX });
        if entry == Entry::Xdp {
            // It leaves policies to the classifier.
            trial.config.flags &= !config::POLICED;
        }
        let expected = expect(&trial, entry, device, before);
        trial.config = memory.config;
        let difference = records_that_differ(kernel, memory, &trial);
        if seen == expected && difference.is_empty() {
            return Ok((trial, seen));
        }
        first.get_or_insert_with(|| {
            format!(
                "{entry:?} of {before:02x?}\nprograms: {seen:02x?}\ncore:     {expected:02x?}\n\
                 records:  {difference:#?}"
            )
        });
    }
    Err(TestCaseError::fail(first.unwrap_or_default()))
}

/// What core makes of a packet, in the words of the program at this place.
fn expect<A: Side>(tables: &Memory<A>, entry: Entry, device: u32, before: &[u8]) -> Outcome {
    let frame = frame(before);
    if entry == Entry::Xdp {
        return expect_xdp(tables, frame);
    }
    if entry == Entry::Overlay {
        // Without a tunnel key nobody sent it.
        return refusal(DropReason::ForeignTunnel);
    }
    let kind: [u8; 2] = before[12..14].try_into().expect("two bytes");
    if kind == A::ETHERTYPE {
        // Who is told of a refusal gets an answer, and the refusal is counted all the same.
        let told = refused(&tables.clone(), entry, device, &frame);
        let outcome = expect_ip(tables, entry, device, frame);
        return Outcome { dropped: outcome.dropped.or(told), ..outcome };
    }
    match (entry, kind) {
        (Entry::Pod(_), neighbour::ARP) => {
            let interfaces = tables.interfaces.clone();
            let tables = Memory::<V4> { interfaces, ..Memory::default() };
            outcome::<A>(neighbour::arp_from_pod(&frame, &tables, device), frame)
        }
        // What it announces is not what it is.
        (Entry::Pod(_) | Entry::ToOverlay, V4_TYPE | V6_TYPE) => refusal(DropReason::Malformed),
        (Entry::ToOverlay, _) => refusal(DropReason::ForeignTunnel),
        _ => outcome::<A>(Verdict::Pass, frame),
    }
}

const V4_TYPE: [u8; 2] = <V4 as fairway_core::Ip>::ETHERTYPE;
const V6_TYPE: [u8; 2] = <V6 as fairway_core::Ip>::ETHERTYPE;

fn expect_ip<A: Side>(tables: &Memory<A>, entry: Entry, device: u32, mut frame: Frame) -> Outcome {
    let verdict = match entry {
        Entry::Pod(_) => path::from_pod(&mut frame, tables, device),
        // Who runs a program by hand is a socket to it.
        Entry::ToPod => path::to_pod(&mut frame, tables, true),
        Entry::ToUplink => path::from_host(&mut frame, tables),
        Entry::ToOverlay => match path::to_overlay(&mut frame, tables) {
            // The device it is on takes it there.
            Verdict::Tunnel(peer) => {
                inside(&mut frame.bytes, &peer);
                Verdict::Pass
            }
            other => other,
        },
        Entry::Uplink | Entry::Xdp | Entry::Overlay => path::from_uplink(&mut frame, tables),
    };
    outcome::<A>(verdict, frame)
}

/// Why a packet is refused, if that is a reason of which its sender is told.
fn refused<A: Side>(
    tables: &Memory<A>,
    entry: Entry,
    device: u32,
    frame: &Frame,
) -> Option<DropReason> {
    let mut scratch = Scratch::default();
    let headers = match entry {
        Entry::Pod(_) => path::enter_from_pod(frame, tables, device).ok()?,
        Entry::Uplink => path::enter_from_uplink(frame, tables).ok()?,
        _ => return None,
    };
    if matches!(headers.ports, Ports::Error) {
        return None; // nobody is told, and it may be about an open flow
    }
    let mut headers = headers;
    if matches!(headers.ports, Ports::Fragment) {
        fragment::enter(frame, tables, &mut headers, &mut scratch).ok()?;
    }
    let decided = match entry {
        Entry::Pod(_) => path::decide_from_pod(tables, &headers, &mut scratch),
        _ => path::decide_from_uplink(tables, &headers, &mut scratch),
    };
    decided.err().filter(|reason| service::is_told(*reason))
}

/// How a classifier carries a verdict out.
fn outcome<A: Side>(verdict: Verdict, frame: Frame) -> Outcome {
    let Frame { mut bytes, .. } = frame;
    let action = match verdict {
        Verdict::Drop(reason) => return refusal(reason),
        Verdict::Pass => UNSPEC,
        Verdict::Pod(pod) => {
            bytes[..12].copy_from_slice(&[pod.mac, pod.host_mac].concat());
            REDIRECT
        }
        Verdict::Tunnel(peer) => {
            inside(&mut bytes, &peer);
            REDIRECT
        }
        Verdict::Forward if leaves::<A>(&bytes).is_some() => REDIRECT,
        Verdict::Forward => UNSPEC,
    };
    Outcome { action, frame: Some(bytes), dropped: None }
}

/// Gives the packet inside a tunnel the MAC address that the peer asks for.
fn inside(bytes: &mut [u8], peer: &TunnelEnd) {
    if peer.mac != [0; 6] {
        bytes[..6].copy_from_slice(&peer.mac);
    }
}

fn refusal(reason: DropReason) -> Outcome {
    Outcome { action: SHOT, frame: None, dropped: Some(reason) }
}

/// The XDP program finishes what is translated and leaves by a route, and drops what core refuses;
/// everything else it leaves alone, flows that it opened aside.
fn expect_xdp<A: Side>(tables: &Memory<A>, before: Frame) -> Outcome {
    let pass = Outcome { action: XDP_PASS, frame: Some(before.bytes.clone()), dropped: None };
    if before.bytes[12..14] != A::ETHERTYPE {
        return pass;
    }
    match path::enter_from_uplink::<A, _, _>(&before, tables) {
        Ok(headers)
            if matches!(headers.ports, Ports::Error | Ports::Fragment)
                || direct::has_options(&headers) =>
        {
            return pass;
        }
        Err(Verdict::Drop(reason)) => {
            return Outcome { action: XDP_DROP, frame: None, dropped: Some(reason) };
        }
        _ => {}
    }
    let delegated = delegates(&before, &tables.clone());
    let walk = |frame: &mut Frame| {
        let verdict = path::from_uplink(frame, tables);
        if let Some(key) = &delegated {
            // The classifier has to see to its first packet as well.
            tables.see_flow(Stage::HalfOpen, key, |flow| flow.state |= flow::UNSEEN);
        }
        verdict
    };
    if A::parse(&before).is_ok_and(|headers| headers.hop_limit <= 1) {
        // It is the classifier's to tell its sender, unless it goes nowhere anyway.
        return match walk(&mut before.clone()) {
            Verdict::Drop(DropReason::HopLimit | DropReason::IcmpRateLimit) => pass,
            Verdict::Drop(reason) if service::is_told(reason) => pass,
            Verdict::Drop(reason) => {
                Outcome { action: XDP_DROP, frame: None, dropped: Some(reason) }
            }
            _ => pass,
        };
    }
    if refused(&tables.clone(), Entry::Uplink, 0, &before).is_some() {
        // The classifier tells its sender; a flow that the packet puts an end to has ended here.
        refused(tables, Entry::Uplink, 0, &before);
        return pass;
    }
    // A packet that is cut off within its transport header, or says that it is, is refused only if it would
    // leave: what became of it with a longer body tells.
    let mut whole = before.bytes.clone();
    whole.extend([0; 20]);
    let length = whole.len();
    let (at, begin) = if A::ETHERTYPE == V4_TYPE { (16, 14) } else { (18, 54) };
    let said = u16::try_from(length.saturating_sub(begin)).expect("a short frame");
    whole[at..at + 2].copy_from_slice(&said.to_be_bytes());
    let mut whole = frame(&whole);
    let way = match path::from_uplink(&mut whole, &tables.clone()) {
        Verdict::Forward => leaves::<A>(&whole.bytes),
        _ => None,
    };
    let mut frame = before;
    let verdict = walk(&mut frame);
    if whole.bytes.len() > length {
        return pass; // it has to name its frontend
    }
    match verdict {
        Verdict::Drop(DropReason::Rewrite) if way.is_none() => pass,
        Verdict::Drop(reason) => Outcome { action: XDP_DROP, frame: None, dropped: Some(reason) },
        Verdict::Forward => match way {
            None => pass,
            Some(way) => {
                frame.bytes[..12].copy_from_slice(&way.macs.concat());
                let action = if way.back { XDP_TX } else { XDP_REDIRECT };
                Outcome { action, frame: Some(frame.bytes), dropped: None }
            }
        },
        _ => pass,
    }
}

/// The flow that this frame opens, if its packets are to name somebody.
fn delegates<A: Side>(frame: &Frame, tables: &Memory<A>) -> Option<FlowKey<A>> {
    let headers = path::enter_from_uplink::<A, _, _>(frame, tables).ok()?;
    let mut scratch = Scratch::default();
    let todo = path::decide_from_uplink(tables, &headers, &mut scratch).ok()?;
    path::name_client(tables, &headers, Whence::Network, &mut scratch);
    let elsewhere = flow::DELEGATED | flow::NAMES_CLIENT;
    let opens = matches!(todo, Todo::Open) && scratch.opening.state & elsewhere != 0;
    opens.then(|| headers.flow())
}

/// How the host would send this frame on.
fn leaves<A: Side>(bytes: &[u8]) -> Option<kernel::Way> {
    let headers = A::parse(&frame(bytes)).expect("it was read before");
    way(headers.source, headers.destination)
}

/// A frame as the programs see it: they look for headers no further than this.
fn frame(bytes: &[u8]) -> Frame {
    const FURTHEST: usize = 512;
    Frame { linear: bytes.len().min(FURTHEST), ..Frame::new(bytes.to_vec()) }
}

/// The dice that the kernel may have rolled for a packet, as [`Memory::dice`] is to hold them.
fn dice<A: Side>(
    kernel: &mut Kernel<A>,
    memory: &Memory<A>,
    entry: Entry,
    before: &[u8],
) -> Vec<u32> {
    /// What [`Memory`] adds from one roll to the next.
    const NEXT: u16 = 0x79b9;
    let frame = frame(before);
    let Ok(mut headers) = A::parse(&frame) else { return vec![0] };
    if headers.ports == Ports::Fragment {
        // The ports of the first; no other one rolls any dice.
        let _ = fragment::enter(&frame, memory, &mut headers, &mut Scratch::default());
    }
    let opened = kernel.tables.flows(Stage::HalfOpen).get(&headers.flow());
    let scope = if matches!(entry, Entry::Pod(_)) { scope::INTERNAL } else { scope::EXTERNAL };
    let frontend = memory.frontends.get(&headers.frontend(scope));

    // The low half of a roll chooses a port, after one for the endpoint.
    let (first, last) = (memory.config.first_port, memory.config.last_port);
    let drawn = opened.map(|flow| flow.source_port.get()).filter(|port| *port >= first);
    let span = u32::from(last - first) + 1;
    let port = drawn.map_or(0, |port| (u32::from(port - first) << 16).div_ceil(span));
    let port = u16::try_from(port).unwrap_or(0);
    let rolls = |frontend: &Frontend| frontend.flags & frontend::BY_FLOW == 0;
    let port = if frontend.is_some_and(rolls) { port.wrapping_sub(NEXT) } else { port };

    // The high half chooses the endpoint.
    let Some(frontend) = frontend.filter(|frontend| frontend.endpoints > 0) else {
        return vec![port.into()];
    };
    if frontend.flags & (frontend::GROWING | frontend::LEAST) != 0 {
        let key = headers.frontend(scope);
        let client = headers.source;
        let given = opened.map(|flow| (flow.destination, flow.destination_port));
        return picks(memory, Request { client, ..Request::new(key, *frontend) }, given, port);
    }
    let leads_to = |slot: &u32| {
        let (service, generation, slot) = (frontend.service, frontend.generation, *slot);
        let key = fairway_abi::EndpointKey { service, generation, slot };
        let endpoint = memory.endpoints.get(&key);
        opened.is_none_or(|flow| {
            endpoint.is_some_and(|endpoint| {
                (endpoint.address, endpoint.port) == (flow.destination, flow.destination_port)
            })
        })
    };
    let slots = (0..frontend.endpoints).filter(leads_to);
    let dice = slots.map(|slot| (slot << 16).div_ceil(frontend.endpoints) << 16 | u32::from(port));
    let dice: Vec<_> = dice.collect();
    // An open flow may lead to what is in no list any more, and rolls nothing.
    if dice.is_empty() { vec![0] } else { dice }
}

/// The same where one roll may make several picks: one for each end that a choice may come to, of those
/// that lead to `given` if that is known, with this low half.
fn picks<A: Side>(
    memory: &Memory<A>,
    request: Request<A>,
    given: Option<(A, U16)>,
    port: u16,
) -> Vec<u32> {
    let tables = memory.clone();
    let mut dice = BTreeMap::new();
    // One in 256 takes an endpoint that is new.
    let enough = if request.frontend.flags & frontend::GROWING != 0 { 4096 } else { 256 };
    for high in 0..=u16::MAX {
        // Neighbours would choose the same slot.
        let bits = u32::from(high.wrapping_mul(40_503)) << 16 | u32::from(port);
        let mut request = Request { bits, ..request };
        tables.turns.borrow_mut().clone_from(&memory.turns.borrow());
        tables.affinity.borrow_mut().clone_from(&memory.affinity.borrow());
        tables.loads.borrow_mut().clone_from(&memory.loads.borrow());
        if service::choose(&tables, &mut request).is_err() {
            continue;
        }
        let to = (request.endpoint.address, request.endpoint.port);
        if given.is_none_or(|given| given == to) {
            let turns = tables.turns.borrow().get(&request.frontend.service).copied();
            let loads = tables.loads.borrow();
            let loads = loads.iter().map(|(key, load)| (key.as_bytes().to_vec(), *load));
            let mut loads: Vec<_> = loads.collect();
            loads.sort_unstable();
            dice.entry((turns, to.0.as_bytes().to_vec(), to.1.get(), loads)).or_insert(bits);
        }
        if high > enough && !dice.is_empty() {
            break;
        }
    }
    if dice.is_empty() { vec![port.into()] } else { dice.into_values().collect() }
}

fn records<A: Side>(memory: &Memory<A>) -> Records<A> {
    let mut records = Records::new();
    let half_open = memory.half_open.borrow();
    let established = memory.established.borrow();
    records.extend(half_open.iter().map(|(key, flow)| ((0, *key), timeless(*flow))));
    records.extend(established.iter().map(|(key, flow)| ((1, *key), timeless(*flow))));
    records
}

fn timeless<A: Side>(flow: Flow<A>) -> Flow<A> {
    Flow { last_seen: U32::ZERO, ..flow }
}

/// What the kernel and the memory `after` a packet hold under each key there is or was.
fn records_that_differ<A: Side>(
    kernel: &mut Kernel<A>,
    before: &Memory<A>,
    after: &Memory<A>,
) -> Vec<String> {
    let memory = after;
    let notes = memory.fragments.borrow();
    let after = records(memory);
    let keys: HashSet<_> = records(before).into_keys().chain(after.keys().copied()).collect();
    let differ = keys.into_iter().filter_map(|(stage, key)| {
        let held = kernel.tables.flows(STAGES[stage]).get(&key).map(timeless);
        let wanted = after.get(&(stage, key));
        (held.as_ref() != wanted).then(|| {
            let stage = STAGES[stage];
            format!("{stage:?} {key:?}\n  kernel {held:?}\n  memory {wanted:?}")
        })
    });
    let mut differ: Vec<_> = differ.collect();
    let affinity = kernel.tables.affinity.entries().into_iter();
    let affinity: HashMap<_, _> = affinity.map(|(key, held)| (key, held.endpoint)).collect();
    let wanted = memory.affinity.borrow();
    let wanted = wanted.iter().map(|(key, held)| (*key, held.endpoint));
    if affinity != wanted.clone().collect() {
        let wanted: Vec<_> = wanted.collect();
        differ.push(format!("affinity\n  kernel {affinity:?}\n  memory {wanted:?}"));
    }
    let turns: HashMap<u32, u32> = kernel.turns().into_iter().collect();
    if turns != *memory.turns.borrow() {
        differ.push(format!("turns\n  kernel {turns:?}\n  memory {:?}", memory.turns));
    }
    let loads: HashMap<_, _> = kernel.tables.loads.entries().into_iter().collect();
    if loads != *memory.loads.borrow() {
        differ.push(format!("loads\n  kernel {loads:?}\n  memory {:?}", memory.loads));
    }
    for rule in 1..=RULES {
        let (held, counts) = (kernel.rule_count(rule), memory.rule_counts.borrow());
        let wanted = counts.get(&rule).copied().unwrap_or_default();
        if held != wanted {
            differ.push(format!("rule {rule}\n  kernel {held:?}\n  memory {wanted:?}"));
        }
    }
    let clients: HashMap<_, _> = kernel.tables.clients.entries().into_iter().collect();
    if clients != *memory.clients.borrow() {
        differ.push(format!("clients\n  kernel {clients:?}\n  memory {:?}", memory.clients));
    }
    let mut held: HashMap<_, _> = kernel.tables.fragments.entries().into_iter().collect();
    held.values_mut().for_each(|note| note.noted = U32::ZERO);
    if held != *notes {
        differ.push(format!("notes of fragments\n  kernel {held:?}\n  memory {notes:?}"));
    }
    differ
}

/// Empties the kernel's tables of what packets left there, and answers what flows were in them.
fn forget_flows<A: Side>(kernel: &mut Kernel<A>) -> Records<A> {
    let clients = &mut kernel.tables.clients;
    clients.entries().iter().for_each(|(key, _)| clients.remove(key));
    let fragments = &mut kernel.tables.fragments;
    fragments.entries().iter().for_each(|(key, _)| fragments.remove(key));
    let affinity = &mut kernel.tables.affinity;
    affinity.entries().iter().for_each(|(key, _)| affinity.remove(key));
    kernel.forget_turns();
    let loads = &mut kernel.tables.loads;
    loads.entries().iter().for_each(|(key, _)| loads.remove(key));
    let mut left = Records::new();
    for (stage, table) in STAGES.into_iter().enumerate() {
        let table = kernel.tables.flows(table);
        for (key, flow) in table.entries() {
            table.remove(&key);
            left.insert((stage, key), timeless(flow));
        }
    }
    left
}

/// What was seen: a comparison of packets that never get anywhere would prove little.
#[derive(Debug, Default)]
struct Tally {
    packets: u32,
    /// Records of answered flows at the end of a story.
    established: usize,
    /// ICMP errors that were changed.
    errors: u32,
    actions: BTreeMap<(Entry, i32), u32>,
    drops: BTreeMap<DropReason, u32>,
}

impl Tally {
    fn count(&mut self, entry: Entry, seen: &Outcome) {
        self.packets += 1;
        *self.actions.entry((entry, seen.action)).or_default() += 1;
        if let Some(reason) = seen.dropped {
            *self.drops.entry(reason).or_default() += 1;
        }
    }

    fn check(&self) {
        println!("{self:?}");
        assert!(self.packets > NODES * 10, "only {} packets", self.packets);
        assert!(self.established > 0, "no flow was ever answered");
        assert!(self.errors > NODES / 10, "only {} errors were translated", self.errors);
        for entry in [Entry::Pod(0), Entry::Pod(1), Entry::Uplink] {
            for action in [UNSPEC, SHOT, REDIRECT] {
                assert!(self.actions.contains_key(&(entry, action)), "never {entry:?} {action}");
            }
        }
        for action in [XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT] {
            assert!(self.actions.contains_key(&(Entry::Xdp, action)), "never XDP {action}");
        }
        let missing = self.missing();
        assert!(missing.is_none(), "nothing was dropped for {missing:?}");
    }

    /// A reason for which nothing was dropped, and that is not rare.
    fn missing(&self) -> Option<DropReason> {
        DropReason::ALL.into_iter().find(|reason| {
            let rare = match *reason {
                // Only a checksum beyond where programs look is missed as late as that.
                DropReason::Rewrite => true,
                // In the kernel's table of half-open flows others always make room.
                DropReason::NoFlowEntry => true,
                DropReason::IcmpRateLimit => true,
                // No pod here has a limit.
                DropReason::EgressRate | DropReason::IngressRate => true,
                // `too_big` brings some.
                DropReason::TooBig => true,
                // It takes a first fragment that is cut off in just the right place.
                DropReason::FragmentTiny => true,
                _ => false,
            };
            !rare && !self.drops.contains_key(reason)
        })
    }
}
