//! What a successor finds in a real kernel, and what it makes of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use fairway_abi::{
    Endpoint, EndpointKey, Flow, FlowKey, Frontend, FrontendKey, Pod, Route, Subject, TunnelEnd,
    V4, route,
};
use fairway_netlink::{Filter, FilterPlace, Hook, Netlink, Veth};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use super::*;
use crate::sandbox::sandbox;

const KEY: FrontendKey<V4> =
    FrontendKey { address: [10, 96, 0, 1], port: U16::new(80), protocol: 6, scope: 0 };
const RECORD: Frontend =
    Frontend { service: 1, generation: 0, endpoints: 1, flags: 0, port: 1, affinity: 0 };

fn load(bpffs: &Path) -> Dataplane {
    Dataplane::load_tables(bpffs, &[]).expect("programs that load")
}

/// A device with this name, up; answers its index.
fn device(name: &str) -> u32 {
    let mut netlink = Netlink::open().expect("a netlink socket");
    let peer_name = &format!("{name}-peer");
    let veth = Veth { name, peer_name, ..Veth::default() };
    let index = netlink.create_veth(&veth).expect("a veth").index;
    netlink.set_up(index).expect("up");
    index
}

fn delete(index: u32) {
    Netlink::open().expect("a netlink socket").delete_link(index).expect("a device that goes");
}

/// The ways of attaching that this kernel has.
fn ways() -> Vec<Attach> {
    match Attach::of_kernel() {
        Attach::Tcx => vec![Attach::Tcx, Attach::Clsact],
        Attach::Clsact => vec![Attach::Clsact],
    }
}

/// What stays of an attachment when its program is replaced (a pinned link's id, a filter's handle),
/// and the id of the program it runs.
fn attachment(dataplane: &mut Dataplane, device: u32, pin: &str) -> (u32, u32) {
    if let Ok(link) = PinnedLink::from_pin(dataplane.links.join(pin)) {
        let info = FdLink::from(link).info().expect("what the kernel knows of it");
        return (info.id(), info.program_id());
    }
    let filters = [Hook::Ingress, Hook::Egress].map(|hook| filters(device, hook)).concat();
    let name = format!("fairway/{pin}");
    let filter = filters.into_iter().find(|filter| filter.name == name).expect("an attachment");
    (filter.place.handle, filter.program)
}

/// The programs at a device's ingress, in the order they run.
fn running(device: u32) -> Vec<u32> {
    let mut programs = Vec::new();
    if Attach::of_kernel() == Attach::Tcx {
        let (_, links) = SchedClassifier::query_tcx("uplink", TcAttachType::Ingress).expect("tcx");
        programs.extend(links.iter().map(aya::programs::ProgramInfo::id));
    }
    programs.extend(filters(device, Hook::Ingress).iter().map(|filter| filter.program));
    programs
}

/// Waits until exactly these programs are at a device's ingress: the kernel ends a link a moment after
/// its last reference went.
fn wait_for(device: u32, programs: &[u32]) {
    let start = Instant::now();
    while running(device) != programs {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", running(device));
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn filters(device: u32, hook: Hook) -> Vec<Filter> {
    let mut netlink = Netlink::open().expect("a netlink socket");
    netlink.filters(device, hook).expect("filters")
}

/// The id of a loaded program.
fn loaded(dataplane: &mut Dataplane, name: &str) -> u32 {
    dataplane.prepare(&[name]).expect("a program that loads");
    dataplane.ebpf().program(name).expect("a program").info().expect("loaded").id()
}

#[test]
fn a_successor_adopts_every_table_with_what_is_in_it() {
    sandbox(|bpffs| {
        let prefix = (24, [10, 244, 1, 0]);
        let route =
            Route { kind: U32::new(route::HOST), source: [0; 4], peer: TunnelEnd::default() };
        {
            let mut first = load(bpffs);
            let mut frontends = first.table("frontends4").expect("a table");
            frontends.put(&KEY, &RECORD).expect("room");
            first.prefixes("routes4").expect("a table").put(prefix, &route).expect("room");
        }
        let mut second = load(bpffs);
        let frontends = second.table::<FrontendKey<V4>, Frontend>("frontends4").expect("a table");
        assert_eq!(frontends.entries().expect("entries"), [(KEY, RECORD)]);
        let routes = second.prefixes::<V4, Route<V4>>("routes4").expect("a table");
        assert_eq!(routes.entries().expect("entries"), [(prefix, route)]);
    });
}

#[test]
fn every_table_is_pinned_under_its_name() {
    sandbox(|bpffs| {
        let dataplane = load(bpffs);
        let tables = dataplane.links.with_file_name("tables");
        let pinned = fs::read_dir(tables).expect("a folder").map(|entry| entry.expect("a pin"));
        let pinned: BTreeSet<_> = pinned.map(|pin| pin.file_name()).collect();
        let declared = Object::new(OBJECT, OBJECT_ASIDE).expect("an object").tables;
        assert_eq!(pinned, declared.into_iter().map(|table| table.name.into()).collect());
    });
}

/// What the kernel knows to be dead it takes out piece by piece, for each of which it moves the rest: in large
/// programs that takes longer than packets can wait on a kernel that does not preempt.
#[test]
fn the_kernel_finds_nothing_to_take_out_of_the_programs() {
    sandbox(|bpffs| {
        let mut given = aya_obj::Object::parse(OBJECT).expect("an object");
        let sections = given.functions.keys().map(|(section, _)| *section).collect();
        given.relocate_calls(&sections).expect("whole programs");
        let mut dataplane = Dataplane::load(bpffs).expect("programs that load");
        dataplane.prepare(&["uplink_xdp"]).expect("a program that loads");
        for (name, program) in dataplane.ebpf().programs() {
            let function = &given.functions[&given.programs[name].function_key()];
            let info = program.info().expect("what the kernel knows of it");
            let kept = info.size_translated().expect("its length") / 8;
            // It adds some of its own: look-ups in tables, and accesses to packet buffers.
            let before = u32::try_from(function.instructions.len()).expect("a program's length");
            assert!(kept >= before, "{name}: {kept} of {before} instructions are left");
        }
    });
}

#[test]
fn a_table_of_another_shape_is_made_anew_and_the_others_stay() {
    sandbox(|bpffs| {
        let slot = EndpointKey { service: 1, generation: 0, slot: 0 };
        let address: V4 = [10, 244, 1, 2];
        let endpoint = Endpoint { address, port: U16::new(8080), reserved: [0; 2] };
        {
            let mut first = load(bpffs);
            first.table("frontends4").expect("a table").put(&KEY, &RECORD).expect("room");
            first.table("endpoints4").expect("a table").put(&slot, &endpoint).expect("room");
            // Another version of the agent called this one `frontends4`.
            let tables = first.links.with_file_name("tables");
            fs::rename(tables.join("pods4"), tables.join("frontends4")).expect("a renamed pin");
        }
        let mut second = load(bpffs);
        let mut frontends = second.table("frontends4").expect("a table of the right shape");
        assert_eq!(frontends.get(&KEY).expect("an answer"), None);
        frontends.put(&KEY, &RECORD).expect("room");
        let pods = second.table::<V4, Pod>("pods4").expect("a table");
        assert_eq!(pods.entries().expect("entries").len(), 0);
        let endpoints = second.table("endpoints4").expect("a table");
        assert_eq!(endpoints.get(&slot).expect("an answer"), Some(endpoint));
    });
}

fn load_sized(bpffs: &Path, capacity: &str) -> Result<Dataplane> {
    Dataplane::load_tables(bpffs, &[capacity.parse().expect("a capacity")])
}

type FlowTable = Table<FlowKey<V4>, Flow<V4>>;

fn flows(dataplane: &mut Dataplane) -> FlowTable {
    dataplane.table("flows4").expect("a table")
}

fn flow(port: u16) -> (FlowKey<V4>, Flow<V4>) {
    let (client, server) = ([10, 244, 1, 2], [10, 96, 0, 1]);
    let key = FlowKey {
        source: client,
        destination: server,
        source_port: U16::new(port),
        destination_port: U16::new(80),
        protocol: 6,
        reserved: [0; 3],
    };
    let flow = Flow {
        source: client,
        destination: [10, 244, 1, 3],
        source_port: U16::new(port),
        destination_port: U16::new(8080),
        last_seen: U32::new(port.into()),
        service: U32::new(1),
        state: U32::new(0),
    };
    (key, flow)
}

fn put(table: &mut FlowTable, port: u16) {
    let (key, flow) = flow(port);
    table.put(&key, &flow).expect("room");
}

/// The client's ports of all flows.
fn ports(table: &FlowTable) -> Vec<u16> {
    let entries = table.entries().expect("entries");
    let mut ports: Vec<_> = entries.iter().map(|(key, _)| key.source_port.get()).collect();
    ports.sort_unstable();
    ports
}

/// Entries that a pinned table has room for.
fn room(dataplane: &Dataplane, table: &str) -> u32 {
    let pin = dataplane.links.with_file_name("tables").join(table);
    MapInfo::from_pin(pin).expect("a table").max_entries()
}

#[test]
fn a_capacity_that_changes_loses_no_flow() {
    const CAPACITY: &str = "flows=1000";
    sandbox(|bpffs| {
        let device = device("uplink");
        let side = Side::Ingress;
        let mut first = load(bpffs);
        first.table("frontends4").expect("a table").put(&KEY, &RECORD).expect("room");
        first.attach_classifier("uplink_ingress", "uplink", side, "in").expect("one");
        let running = attachment(&mut first, device, "in").1;
        // What the first agent's programs write, as long as they are in force.
        let mut by_programs = flows(&mut first);
        (1..=3).for_each(|port| put(&mut by_programs, port));

        let mut second = load_sized(bpffs, CAPACITY).expect("programs that load");
        let mut found = flows(&mut second);
        assert_ne!(room(&second, "flows4"), 524_288);
        assert_eq!(attachment(&mut second, device, "in").1, running, "nothing stops");
        put(&mut by_programs, 4);
        assert_eq!(ports(&found), [1, 2, 3, 4], "what is in either table");
        let seen = Pinned::open(bpffs).and_then(|pinned| pinned.table("flows4")).expect("a table");
        assert_eq!((ports(&seen), seen.count().expect("a number")), (vec![1, 2, 3, 4], 4));
        let usage = usage::usage(&usage::tables(bpffs)).expect("tables");
        let usage = usage.iter().find(|usage| usage.table == "flows4").expect("a table");
        assert_eq!(usage.entries.map(|entries| (entries.now, entries.most)), Some((4, 2000)));
        found.remove(&flow(2).0).expect("one that goes");
        assert_eq!((ports(&found), ports(&by_programs)), (vec![1, 3, 4], vec![1, 3, 4]));
        assert_eq!(found.get(&flow(4).0).expect("an answer"), Some(flow(4).1));

        second.attach_classifier("uplink_ingress", "uplink", side, "in").expect("one");
        // Another device's program is still the first agent's.
        put(&mut by_programs, 5);
        let (key, flow) = flow(1);
        let newer = Flow { last_seen: U32::new(99), ..flow };
        found.put(&key, &newer).expect("room");
        second.discard_predecessors();
        put(&mut by_programs, 6);
        assert_eq!(ports(&found), [1, 3, 4, 5]);
        assert_eq!(found.get(&key).expect("an answer"), Some(newer), "the old one is older");
        assert!(!second.links.with_file_name("aside").exists());

        let mut third = load_sized(bpffs, CAPACITY).expect("programs that load");
        assert_eq!(ports(&flows(&mut third)), [1, 3, 4, 5], "adopted as any other");
    });
}

#[test]
fn lists_of_another_capacity_are_there_at_once() {
    sandbox(|bpffs| {
        let mut first = load(bpffs);
        first.table("frontends4").expect("a table").put(&KEY, &RECORD).expect("room");
        let mut second = load_sized(bpffs, "frontends=64").expect("programs that load");
        assert_eq!((room(&second, "frontends4"), room(&second, "frontends6")), (64, 64));
        let frontends = second.table::<FrontendKey<V4>, Frontend>("frontends4").expect("a table");
        assert_eq!(frontends.entries().expect("entries"), [(KEY, RECORD)]);
    });
}

#[test]
fn programs_in_force_keep_their_lists_while_those_of_another_capacity_are_written() {
    sandbox(|bpffs| {
        let mut first = load(bpffs);
        let mut in_force = first.table("frontends4").expect("a table");
        in_force.put(&KEY, &RECORD).expect("room");
        // Frontends of the same size would lead the programs in force to endpoints that they do not have.
        let mut second = load_sized(bpffs, "endpoints=64").expect("programs that load");
        let mut frontends =
            second.table::<FrontendKey<V4>, Frontend>("frontends4").expect("a table");
        frontends.put(&KEY, &Frontend { endpoints: 2, ..RECORD }).expect("room");
        assert_eq!(in_force.entries().expect("entries"), [(KEY, RECORD)]);
    });
}

#[test]
fn policies_in_force_stay_as_they_are_while_those_of_another_capacity_are_written() {
    sandbox(|bpffs| {
        let pod: V4 = [10, 244, 1, 2];
        let [before, after] = [1, 2].map(|set| Subject { ingress: set, egress: 0 });
        let mut first = load(bpffs);
        let mut in_force = first.table("subjects4").expect("a table");
        in_force.put(&pod, &before).expect("room");
        // An agent that starts again finds what is there.
        let mut second = load(bpffs);
        let again = second.table::<V4, Subject>("subjects4").expect("a table");
        assert_eq!(again.get(&pod).expect("an answer"), Some(before));
        let mut third = load_sized(bpffs, "rulings=1000").expect("programs that load");
        assert_eq!((room(&third, "rulings"), room(&third, "identities6")), (1000, 262_144));
        let mut subjects = third.table("subjects4").expect("a table");
        assert_eq!(subjects.get(&pod).expect("an answer"), None);
        subjects.put(&pod, &after).expect("room");
        assert_eq!(in_force.get(&pod).expect("an answer"), Some(before));
        let mut fourth = load_sized(bpffs, "rulings=1000").expect("programs that load");
        let subjects = fourth.table::<V4, Subject>("subjects4").expect("a table");
        assert_eq!(subjects.get(&pod).expect("an answer"), Some(after));
    });
}

#[test]
fn a_capacity_below_what_is_there_is_refused_and_changes_nothing() {
    sandbox(|bpffs| {
        let mut first = load(bpffs);
        let mut there = flows(&mut first);
        (1..=200).for_each(|port| put(&mut there, port));
        let error = load_sized(bpffs, "flows=64").err().expect("no room");
        let text = format!("{error:#}");
        for part in ["flows4", "200 entries", "from 524288 to 128", "--capacity"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let mut second = load(bpffs);
        assert_eq!(ports(&flows(&mut second)).len(), 200);
        // Also while a change to another capacity is half done.
        drop(load_sized(bpffs, "flows=100").expect("just enough room"));
        let error = load_sized(bpffs, "flows=64").err().expect("no room");
        assert!(format!("{error:#}").contains("200 entries"), "{error:#}");
    });
}

#[test]
fn agents_that_are_killed_while_a_capacity_changes_leave_everything_to_the_next() {
    sandbox(|bpffs| {
        device("uplink");
        let mut first = load(bpffs);
        let mut by_programs = flows(&mut first);
        put(&mut by_programs, 1);
        drop(load_sized(bpffs, "flows=1000").expect("programs that load"));
        put(&mut by_programs, 2);
        {
            let mut third = load_sized(bpffs, "flows=2000").expect("programs that load");
            put(&mut by_programs, 3);
            let side = Side::Ingress;
            third.attach_classifier("uplink_ingress", "uplink", side, "in").expect("one");
            put(&mut by_programs, 4);
            put(&mut flows(&mut third), 5);
        }
        let mut last = load_sized(bpffs, "flows=2000").expect("programs that load");
        assert_eq!(ports(&flows(&mut last)), [1, 2, 3, 4, 5]);
        last.discard_predecessors();
        let mut last = load_sized(bpffs, "flows=2000").expect("programs that load");
        assert_eq!(ports(&flows(&mut last)), [1, 2, 3, 4, 5]);
        assert_eq!(room(&last, "flows4"), 4000);
    });
}

#[test]
fn what_an_agent_had_put_aside_when_it_was_killed_is_seen_and_comes_back() {
    sandbox(|bpffs| {
        let mut first = load(bpffs);
        put(&mut flows(&mut first), 1);
        // As far as nothing is made yet, and as far as it is only being made.
        let [tables, aside] = ["tables", "aside"].map(|folder| bpffs.join(folder));
        fs::rename(&tables, &aside).expect("put aside");
        for _ in 0..2 {
            let pinned = Pinned::open(bpffs).expect("what is in force");
            assert_eq!(ports(&pinned.table("flows4").expect("a table")), [1]);
            fs::create_dir_all(&tables).expect("a folder");
        }
        let mut second = load(bpffs);
        assert_eq!(ports(&flows(&mut second)), [1]);
        assert!(!aside.exists());
    });
}

#[test]
fn tables_that_nobody_describes_are_made_anew() {
    sandbox(|bpffs| {
        put(&mut flows(&mut load(bpffs)), 1);
        fs::remove_file(bpffs.join("tables/layout")).expect("a pin");
        let mut second = load(bpffs);
        let mut own = flows(&mut second);
        assert_eq!(ports(&own), [0; 0]);
        // Until its programs are in force, they are not to look into what they cannot read.
        assert!(!second.looks_aside && bpffs.join("aside").exists());
        second.discard_predecessors();
        assert!(!bpffs.join("aside").exists());
        put(&mut own, 2);
        assert_eq!(ports(&flows(&mut load(bpffs))), [2]);
    });
}

#[test]
fn a_successor_puts_its_programs_into_the_attachments_that_are_there() {
    for way in ways() {
        sandbox(|bpffs| {
            let device = device("uplink");
            let attach = |dataplane: &mut Dataplane| {
                let (ingress, egress) = (Side::Ingress, Side::Egress);
                dataplane
                    .attach_classifier("uplink_ingress", "uplink", ingress, "in")
                    .and_then(|()| {
                        dataplane.attach_classifier("uplink_egress", "uplink", egress, "out")
                    })
                    .and_then(|()| dataplane.attach_xdp("uplink", XdpMode::Skb, "xdp"))
                    .expect("attachments");
            };
            let pins = [("in", "uplink_ingress"), ("out", "uplink_egress"), ("xdp", "uplink_xdp")];
            let attachments = |dataplane: &mut Dataplane| {
                pins.map(|(pin, program)| {
                    let (identity, running) = attachment(dataplane, device, pin);
                    assert_eq!(running, loaded(dataplane, program), "{pin} runs the new program");
                    (identity, running)
                })
            };
            let mut first = load(bpffs).attaching_by(way);
            attach(&mut first);
            let before = attachments(&mut first);
            drop(first);
            let mut second = load(bpffs).attaching_by(way);
            for ((pin, _), before) in pins.iter().zip(before) {
                let now = attachment(&mut second, device, pin);
                assert_eq!(now, before, "nothing stops while the successor loads");
            }
            let mut names = second.attachments().expect("names");
            names.sort();
            assert_eq!(names, ["in", "out", "xdp"], "the successor knows them");
            attach(&mut second);
            for (before, after) in before.into_iter().zip(attachments(&mut second)) {
                assert_eq!(before.0, after.0, "the attachment stays");
                assert_ne!(before.1, after.1, "its program is replaced");
            }
        });
    }
}

#[test]
fn a_device_of_the_same_name_gets_an_attachment_of_its_own() {
    for way in ways() {
        sandbox(|bpffs| {
            let first = device("uplink");
            let mut dataplane = load(bpffs).attaching_by(way);
            let mut attach = |device| {
                let side = Side::Ingress;
                dataplane.attach_classifier("uplink_ingress", "uplink", side, "in").expect("one");
                attachment(&mut dataplane, device, "in")
            };
            let before = attach(first);
            delete(first);
            let second = device("uplink");
            let after = attach(second);
            assert!(way == Attach::Clsact || after.0 != before.0, "a link of its own");
            assert_eq!(after.1, before.1, "the same program");
        });
    }
}

#[test]
fn what_is_detached_is_no_attachment_any_more() {
    for way in ways() {
        sandbox(|bpffs| {
            let device = device("uplink");
            let mut dataplane = load(bpffs).attaching_by(way);
            let side = Side::Ingress;
            dataplane.attach_classifier("uplink_ingress", "uplink", side, "in").expect("one");
            assert_eq!(dataplane.attachments().expect("names"), ["in"]);
            assert_eq!(running(device).len(), 1);
            dataplane.detach("in");
            dataplane.detach("in");
            assert_eq!(dataplane.attachments().expect("names"), [""; 0]);
            wait_for(device, &[]);
        });
    }
}

#[test]
fn attaching_the_other_way_leaves_nothing_of_the_first() {
    if ways().len() < 2 {
        return eprintln!("NOT RUN: this kernel has one way alone to attach classifiers");
    }
    for (before, after) in [(Attach::Tcx, Attach::Clsact), (Attach::Clsact, Attach::Tcx)] {
        sandbox(|bpffs| {
            let device = device("uplink");
            let side = Side::Ingress;
            let attach = |way| {
                let mut dataplane = load(bpffs).attaching_by(way);
                dataplane.attach_classifier("uplink_ingress", "uplink", side, "in").expect("one");
                wait_for(device, &[loaded(&mut dataplane, "uplink_ingress")]);
                assert_eq!(dataplane.attachments().expect("names"), ["in"]);
            };
            attach(before);
            attach(after);
        });
    }
}

#[test]
fn filters_of_others_stay_and_come_after_ours() {
    sandbox(|bpffs| {
        let device = device("uplink");
        let mut dataplane = load(bpffs).attaching_by(Attach::Clsact);
        // As tc(8) takes them if nothing is said: the first priority asked for, and the kernel's.
        let mut netlink = Netlink::open().expect("a netlink socket");
        netlink.ensure_clsact(device).expect("a clsact");
        let place = FilterPlace { device, hook: Hook::Ingress, priority: 49152, handle: 1 };
        let neighbour = FilterPlace { priority: 3, ..place };
        dataplane.prepare(&["clock"]).expect("a program that loads");
        let other: &SchedClassifier =
            dataplane.ebpf().program("clock").expect("a program").try_into().expect("a classifier");
        let fd = other.fd().expect("loaded");
        netlink.replace_filter(place, "theirs", fd.as_fd()).expect("a filter");
        netlink.replace_filter(neighbour, "theirs", fd.as_fd()).expect("a filter");

        let side = Side::Ingress;
        dataplane.attach_classifier("uplink_ingress", "uplink", side, "in").expect("ours");
        let names = |netlink: &mut Netlink| -> Vec<String> {
            let filters = netlink.filters(device, Hook::Ingress).expect("filters");
            filters.into_iter().map(|filter| filter.name).collect()
        };
        assert_eq!(names(&mut netlink), ["fairway/in", "theirs", "theirs"]);
        let mut successor = load(bpffs).attaching_by(Attach::Clsact);
        assert_eq!(successor.attachments().expect("names"), ["in"]);
        successor.detach("in");
        assert_eq!(names(&mut netlink), ["theirs", "theirs"]);
        let side = Side::Ingress;
        successor.attach_classifier("uplink_ingress", "uplink", side, "in").expect("ours");
        assert_eq!(remove_filters().expect("an uninstall"), 1);
        assert_eq!(names(&mut netlink), ["theirs", "theirs"]);
    });
}

#[test]
fn an_uninstall_leaves_no_filter_and_no_place_for_one() {
    sandbox(|bpffs| {
        let device = device("uplink");
        let mut dataplane = load(bpffs).attaching_by(Attach::Clsact);
        for (program, side, pin) in
            [("uplink_ingress", Side::Ingress, "in"), ("uplink_egress", Side::Egress, "out")]
        {
            dataplane.attach_classifier(program, "uplink", side, pin).expect("a filter");
        }
        assert_eq!(remove_filters().expect("an uninstall"), 2);
        assert_eq!(running(device), [0; 0]);
        // A clsact would refuse it.
        let mut tc = std::process::Command::new("tc");
        tc.args(["qdisc", "add", "dev", "uplink", "ingress"]);
        assert!(tc.status().expect("tc, of iproute2").success());
        assert_eq!(remove_filters().expect("an uninstall again"), 0);
    });
}

#[test]
fn a_device_whose_ingress_belongs_to_another_is_named_and_left_alone() {
    sandbox(|bpffs| {
        device("uplink");
        let status = std::process::Command::new("tc")
            .args(["qdisc", "add", "dev", "uplink", "ingress"])
            .status()
            .expect("tc, of iproute2");
        assert!(status.success());
        let mut dataplane = load(bpffs).attaching_by(Attach::Clsact);
        let error = dataplane
            .attach_classifier("uplink_egress", "uplink", Side::Egress, "out")
            .expect_err("it would run at ingress");
        let text = format!("{error:#}");
        assert!(text.contains("uplink: if it has an ingress qdisc"), "{text}");
        assert_eq!(dataplane.attachments().expect("names"), [""; 0]);
    });
}

#[test]
fn only_folders_of_agents_are_removed() {
    for ours in ["tables", "links", "v1", "v999"] {
        assert!(is_ours(ours), "{ours}");
    }
    for foreign in ["tc", "cilium", "v", "v1x", "vxlan", "1"] {
        assert!(!is_ours(foreign), "{foreign}");
    }
}
