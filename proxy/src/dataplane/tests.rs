//! What a successor finds in a real kernel, and what it makes of it.

use std::collections::BTreeSet;

use aya::programs::links::{FdLink, PinnedLink};
use fairway_abi::{Endpoint, EndpointKey, Frontend, FrontendKey, Pod, Route, TunnelEnd, V4, route};
use fairway_netlink::{Netlink, Veth};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use super::*;
use crate::sandbox::sandbox;

const KEY: FrontendKey<V4> =
    FrontendKey { address: [10, 96, 0, 1], port: U16::new(80), protocol: 6, scope: 0 };
const RECORD: Frontend = Frontend { service: 1, generation: 0, endpoints: 1, flags: 0 };

fn load(bpffs: &Path) -> Dataplane {
    Dataplane::load(bpffs).expect("programs that load")
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

/// The ids of a pinned link and of the program it runs.
fn attached(dataplane: &Dataplane, pin: &str) -> (u32, u32) {
    let link = PinnedLink::from_pin(dataplane.links.join(pin)).expect("a pinned link");
    let info = FdLink::from(link).info().expect("what the kernel knows of it");
    (info.id(), info.program_id())
}

/// The id of a loaded program.
fn loaded(dataplane: &mut Dataplane, name: &str) -> u32 {
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
        let declared = declared_tables().expect("tables");
        assert_eq!(pinned, declared.into_iter().map(|table| table.name.into()).collect());
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

#[test]
fn a_successor_puts_its_programs_into_the_links_that_are_there() {
    sandbox(|bpffs| {
        device("uplink");
        let attach = |dataplane: &mut Dataplane| {
            dataplane
                .attach_classifier("uplink_ingress", "uplink", Side::Ingress, "in")
                .and_then(|()| {
                    dataplane.attach_classifier("uplink_egress", "uplink", Side::Egress, "out")
                })
                .and_then(|()| dataplane.attach_xdp("uplink", XdpMode::Skb, "xdp"))
                .expect("attachments");
        };
        let pins = [("in", "uplink_ingress"), ("out", "uplink_egress"), ("xdp", "uplink_xdp")];
        let links = |dataplane: &mut Dataplane| {
            pins.map(|(pin, program)| {
                let (link, running) = attached(dataplane, pin);
                assert_eq!(running, loaded(dataplane, program), "{pin} runs the new program");
                (link, running)
            })
        };
        let mut first = load(bpffs);
        attach(&mut first);
        let before = links(&mut first);
        drop(first);
        let mut second = load(bpffs);
        for ((pin, _), before) in pins.iter().zip(before) {
            assert_eq!(attached(&second, pin), before, "nothing stops while the successor loads");
        }
        attach(&mut second);
        for (before, after) in before.into_iter().zip(links(&mut second)) {
            assert_eq!(before.0, after.0, "the link stays");
            assert_ne!(before.1, after.1, "its program is replaced");
        }
    });
}

#[test]
fn a_device_of_the_same_name_gets_a_link_of_its_own() {
    sandbox(|bpffs| {
        let index = device("uplink");
        let mut dataplane = load(bpffs);
        let mut attach = || {
            let side = Side::Ingress;
            dataplane.attach_classifier("uplink_ingress", "uplink", side, "in").expect("a link");
            attached(&dataplane, "in").0
        };
        let before = attach();
        delete(index);
        device("uplink");
        assert_ne!(attach(), before);
    });
}

#[test]
fn what_is_detached_is_no_attachment_any_more() {
    sandbox(|bpffs| {
        device("uplink");
        let mut dataplane = load(bpffs);
        let side = Side::Ingress;
        dataplane.attach_classifier("uplink_ingress", "uplink", side, "in").expect("a link");
        assert_eq!(dataplane.attachments().expect("names"), ["in"]);
        dataplane.detach("in");
        dataplane.detach("in");
        assert_eq!(dataplane.attachments().expect("names"), [""; 0]);
    });
}
