//! A zone that has followed a model through any changes is the zone of the model that came of them.

mod support;

use fairway_dns::{Options, Zone};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use support::{Asking, cluster};

/// Everything that could be asked of the objects below.
fn questions() -> Vec<String> {
    let mut questions = Vec::new();
    for namespace in ["p", "q"] {
        questions.push(format!("{namespace}.svc.cluster.local A"));
        for name in ["v", "w"] {
            let service = format!("{name}.{namespace}.svc.cluster.local");
            for of in ["A", "AAAA", "CNAME"] {
                questions.push(format!("{service} {of}"));
            }
            for label in ["h1", "h2", "10-0-0-1", "10-0-0-2", "fd00--1", "_tcp"] {
                questions.push(format!("{label}.{service} A"));
                questions.push(format!("{label}.{service} AAAA"));
            }
            for port in ["_http._tcp", "_dns._udp"] {
                questions.push(format!("{port}.{service} SRV"));
            }
        }
    }
    for last in 0..4 {
        questions.push(format!("{last}.0.0.10.in-addr.arpa PTR"));
        questions.push(format!("{last}.0.96.10.in-addr.arpa PTR"));
    }
    questions.push(format!("1.{}d.f.ip6.arpa PTR", "0.".repeat(29)));
    questions
}

fn answers(zone: &Zone) -> Vec<(String, Vec<String>)> {
    let all = questions().into_iter().map(|question| {
        let mut lines = Asking::of(&question).of_zone(zone);
        lines.sort_unstable();
        (question, lines)
    });
    all.collect()
}

/// The lines of [`cluster`] for one Service; addresses of balanced ones are its own.
fn service(index: usize) -> impl Strategy<Value = String> {
    let (namespace, name) = [("p", "v"), ("p", "w"), ("q", "v"), ("q", "w")][index];
    let service = format!("{namespace}/{name}");
    let hosts = prop::sample::select(vec!["-", "h1", "h2"]);
    let states = prop::sample::select(vec!["", "", "NotReady"]);
    let address = prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]);
    let ports = prop::sample::select(vec!["http", "dns", "-"]);
    let endpoints = btree_map((ports, address), (hosts, states), 0..6);
    let of = service.clone();
    let headless = endpoints.prop_map(move |endpoints| {
        let lines = endpoints.into_iter().map(|((port, address), (host, state))| {
            format!("endpoint {of} {port} {address}:80 {host} {state}\n")
        });
        format!("headless {of} http:80 dns/udp:53\n{}", lines.collect::<String>())
    });
    let of = service.clone();
    let balanced = (any::<bool>(), any::<bool>()).prop_map(move |(both, foreign)| {
        let kind = if foreign { "foreign" } else { "service" };
        let v6 = if both { format!(",fd00:96::{index}") } else { String::new() };
        format!("{kind} {of} 10.96.0.{index}{v6} http:80\nendpoint {of} http 10.0.0.1:80\n")
    });
    let alias = prop::sample::select(vec!["w.p.svc.cluster.local", "example.com"])
        .prop_map(move |target| format!("alias {service} {target}\n"));
    prop_oneof![2 => Just(String::new()), 5 => headless, 2 => balanced, 1 => alias]
}

fn state() -> impl Strategy<Value = String> {
    let range = prop::sample::select(vec!["", "range 10.96.0.0/16\n", "node 10.0.0.0/24\n"]);
    (service(0), service(1), service(2), service(3), range)
        .prop_map(|(a, b, c, d, range)| [a, b, c, d, range.to_owned()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_has_followed_is_what_begins_anew(states in vec(state(), 1..8)) {
        let mut zone = Zone::new(Options::default());
        let mut before = Vec::new();
        for state in states {
            let model = cluster(&state);
            let next = zone.next(&model, 9);
            let anew = Zone::new(Options::default()).next(&model, 9);
            let found = answers(&next);
            // Negative answers of an empty zone have another serial.
            if !anew.is_empty() {
                prop_assert_eq!(&found, &answers(&anew));
            }
            prop_assert_eq!(next.len(), anew.len());
            if !before.is_empty() {
                prop_assert_eq!(&before, &answers(&zone), "a snapshot stays as it was");
            }
            (zone, before) = (next, found);
        }
    }
}

#[test]
fn a_serial_is_that_of_the_newest_change_of_names() {
    let zone = Zone::new(Options::default());
    let one = zone.next(&cluster("service p/v 10.96.0.1 http:80"), 5);
    let same = one.next(&cluster("service p/v 10.96.0.1 http:80\nnode 10.0.0.0/24"), 6);
    let other = same.next(&cluster("service p/v 10.96.0.2 http:80"), 7);
    assert_eq!([zone.serial(), one.serial(), same.serial(), other.serial()], [0, 5, 5, 7]);
}

#[test]
fn a_services_own_addresses_are_told() {
    let zone = support::zone(
        "service p/v 10.96.0.1,fd00::1 http:80\nheadless p/w http:80\nalias q/v example.com",
    );
    let of =
        |namespace, name| zone.cluster_addresses(&fairway_model::ObjectName::new(namespace, name));
    let found = of("p", "v").unwrap();
    assert_eq!(found.name.to_string(), "v.p.svc.cluster.local.");
    assert_eq!(
        (found.v4, found.v6),
        (Some([10, 96, 0, 1].into()), Some("fd00::1".parse().unwrap()))
    );
    assert_eq!([of("p", "w"), of("q", "v"), of("q", "w")], [None, None, None]);
}
