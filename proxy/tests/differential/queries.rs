//! Queries of pods, three ways: through the loaded program, through the core, and to the zone that the agent answers
//! from. What the program answers, the other two answer with the same bytes.

use std::cell::RefCell;
use std::path::Path;

use fairway_abi::{NameAddresses, NameKey, Route, TunnelEnd, V4, V6, Zone as ZoneRecord, route};
use fairway_dns::zone::Options;
use fairway_dns::{Buffer, Client, Transport, Verdict, Zone};
use fairway_model::{Model, ObjectName, Service};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use zerocopy::native_endian::U32;

use crate::frame::Builder;
use crate::kernel::{Kernel, REDIRECT, Side};
use crate::sandbox::sandbox;
use crate::traffic::Entry;
use crate::world::{POD, Special, busy, install};

#[test]
fn the_kernel_answers_as_the_agent_does_over_ipv4() {
    sandbox(the_kernel_answers_as_the_agent_does::<V4>);
}

#[test]
fn the_kernel_answers_as_the_agent_does_over_ipv6() {
    sandbox(the_kernel_answers_as_the_agent_does::<V6>);
}

const SERVICES: [(&str, &[&str]); 4] = [
    ("redis", &["10.96.0.7", "fd00::7"]),
    ("web", &["10.96.0.8"]),
    ("six", &["fd00::9"]),
    ("headless", &[]),
];

fn zone() -> Zone {
    let mut model = Model::default();
    for (name, addresses) in SERVICES {
        model.services.insert(Service {
            name: ObjectName::new("default", name),
            cluster_ips: addresses.iter().map(|ip| ip.parse().expect("an address")).collect(),
            ..Service::default()
        });
    }
    Zone::new(Options::default()).next(&model, 0x0a0b_0c0d)
}

/// A query, whether it is one that is to be answered by the kernel, and how much of it is missing or wrong.
fn query() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let service = select(vec!["redis", "web", "six", "headless", "absent", "a.b"]);
    let below = prop_oneof![
        8 => Just("default.svc.cluster.local"),
        1 => select(vec!["default.svc.cluster.loca", "svc.cluster.local", "default.pod.cluster.local", "com"]),
    ];
    let kind = prop_oneof![8 => select(vec![1u16, 28]), 1 => any::<u16>()];
    let class = prop_oneof![12 => Just(1u16), 1 => any::<u16>()];
    let flags = prop_oneof![6 => select(vec![0u16, 0x0100, 0x0120, 0x0110]), 1 => any::<u16>()];
    let edns = prop_oneof![
        2 => Just(None),
        2 => (any::<u16>(), any::<bool>(), vec(any::<u8>(), 0..14)).prop_map(Some),
        1 => (any::<u16>(), any::<bool>(), vec(any::<u8>(), 0..60)).prop_map(Some),
    ];
    let odd = prop_oneof![6 => Just(None), 1 => (any::<Index>(), any::<u8>()).prop_map(Some)];
    let parts = (service, below, kind, class, flags, edns, any::<u32>(), odd);
    parts.prop_map(|(service, below, kind, class, flags, edns, letters, odd)| {
        let additional = u8::from(edns.is_some());
        let mut bytes = vec![0x12, 0x34];
        bytes.extend(flags.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 0, 0, additional]);
        for label in service.split('.').chain(below.split('.')) {
            bytes.push(u8::try_from(label.len()).expect("a short label"));
            bytes.extend(label.bytes());
        }
        // In mixed letters, as those send it who want to be sure of the answer.
        for (at, byte) in bytes[12..].iter_mut().enumerate() {
            if letters >> (at % 32) & 1 == 1 {
                *byte = byte.to_ascii_uppercase();
            }
        }
        bytes.push(0);
        bytes.extend([kind.to_be_bytes(), class.to_be_bytes()].concat());
        let mut plain = ["redis", "web", "six"].contains(&service)
            && below == "default.svc.cluster.local"
            && [1, 28].contains(&kind)
            && class == 1
            && flags & 0xfa00 == 0;
        if let Some((size, dnssec, options)) = edns {
            let length = u8::try_from(options.len()).expect("few options");
            bytes.extend([0, 0, 41]);
            bytes.extend(size.to_be_bytes());
            bytes.extend([0, 0, if dnssec { 0x80 } else { 0 }, 0, 0, length]);
            bytes.extend(&options);
            plain &= options.len() < 16;
        }
        if let Some((at, byte)) = odd {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            plain = false;
        }
        (bytes, plain)
    })
}

fn the_kernel_answers_as_the_agent_does<A: Side + Special>(bpffs: &Path) {
    let zone = zone();
    let mut kernel = Kernel::<A>::start(bpffs);
    let mut memory = busy::<A>(&kernel.devices);
    for service in zone.services_since(None) {
        let Some(of) = zone.cluster_addresses(&service) else { continue };
        let key = NameKey::new(of.name.as_wire()).expect("a short name");
        let value = NameAddresses {
            address4: of.v4.map_or([0; 4], |ip| ip.octets()),
            address6: of.v6.map_or([0; 16], |ip| ip.octets()),
        };
        kernel.names.put(&key, &value);
        memory.names.insert(key, value);
    }
    let itself =
        Route { kind: U32::new(route::HOST), source: A::UNSPECIFIED, peer: TunnelEnd::default() };
    memory.routes.push((A::WIDTH, A::RESOLVER, itself));
    memory.zone = ZoneRecord { length: 15, ttl: zone.ttl(), serial: zone.serial() };
    kernel.zone.put(&0, &memory.zone);
    install(&memory, &mut kernel);
    let client = Client {
        address: ([10, 244, 1, 2], 40_000).into(),
        namespace: Some("default".into()),
        transport: Transport::Udp,
    };
    let (kernel, answered) = (RefCell::new(kernel), RefCell::new(0));
    let mut runner =
        TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(4000) });
    let result = runner.run(&query(), |(query, plain)| {
        let ends = ((A::at(POD), 40_000), (A::RESOLVER, 53));
        let frame = Builder::udp(ends.0, ends.1).payload(&query).frame();
        let (_, seen) =
            crate::send(&mut kernel.borrow_mut(), &memory, Entry::Pod(0), &frame.bytes)?;
        let is_answered = seen.action == REDIRECT;
        prop_assert!(is_answered || !plain, "it is passed up");
        if is_answered {
            *answered.borrow_mut() += 1;
            let mut buffer = Buffer::new(1);
            let Verdict::Answer { bytes, .. } = zone.answer(&query, &client, &mut buffer) else {
                return Err(TestCaseError::fail("the agent does not answer it"));
            };
            let (.., transport) = A::read(seen.frame.as_deref().unwrap_or_default());
            prop_assert_eq!(&seen.frame.unwrap_or_default()[transport + 8..], bytes);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(answered.into_inner() > 500, "few queries are answered");
}
