//! Kubernetes DNS-Based Service Discovery 1.1.0, and what a resolver expects beyond it, case by case: a question over
//! the wire, and all that the answer to it says, as another implementation reads it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

mod support;

use fairway_dns::{Options, PodNames, Reason, Transport, Verdict, Zone};
use support::{Asking, cluster, endpoints, lines, zone};

/// What is there: balanced Services of one and two families, headless ones with and without hostnames, aliases.
fn all() -> Zone {
    zone(
        "
        service default/kubernetes 10.96.0.1 https:443
        service shop/web 10.96.0.7,fd00:96::7 http:80 dns/udp:53
        service shop/six fd00:96::6 http:80
        service kube-system/kube-dns 10.96.0.10 dns/udp:53
        service shop/nameless 10.96.0.9 :8080
        foreign shop/theirs 10.96.0.8 http:80
        headless shop/pets http:80 https:443
        endpoint shop/pets http 10.244.1.1:8080 pet-0
        endpoint shop/pets http 10.244.1.2:8080 pet-1
        endpoint shop/pets http 10.244.1.3:8081
        endpoint shop/pets https 10.244.1.3:8443
        endpoint shop/pets http 10.244.1.4:8080 pet-2 NotReady
        endpoint shop/pets http 10.244.1.5:8080 - ServingTerminating
        endpoint shop/pets http fd00:244::1:8080 pet-0
        headless shop/twins http:80
        endpoint shop/twins http 10.244.2.1:80 twin
        endpoint shop/twins http 10.244.2.2:80 twin
        headless shop/six-pets http:80
        endpoint shop/six-pets http fd00:244::9:80
        headless shop/portless
        endpoint shop/portless - 10.244.3.1:1 only
        headless shop/empty http:80
        headless shop/unready http:80
        endpoint shop/unready http 10.244.4.1:80 - NotReady
        alias shop/db db.example.com
        alias shop/inside web.shop.svc.cluster.local
        alias shop/twice inside.shop.svc.cluster.local
        alias shop/nowhere gone.shop.svc.cluster.local
        alias shop/round round.shop.svc.cluster.local
        range 10.96.0.0/16 fd00:96::/112
        node 10.244.0.0/16
        ",
    )
}

/// Asks, and holds all lines of the answer against those expected, in any order.
fn check(section: &str, question: &str, expected: &[&str]) {
    let mut found = Asking::of(question).of_zone(&all());
    found.sort_unstable();
    let mut expected: Vec<_> =
        expected.iter().map(|line| line.replace("$", "cluster.local.")).collect();
    expected.sort_unstable();
    assert_eq!(found, expected, "{section}: {question}");
}

const SOA: &str = "authority: $ 5 SOA ns.dns.$ hostmaster.$ 9 7200 1800 86400 5";

#[test]
fn schema_version_2_2() {
    check("2.2", "dns-version.cluster.local TXT", &["NoError", "dns-version.$ 5 TXT 1.1.0"]);
    check("2.2, no address", "dns-version.cluster.local A", &["NoError", SOA]);
}

#[test]
fn a_service_with_a_cluster_ip_2_3() {
    let web = "web.shop.svc.cluster.local";
    check(
        "2.3.1",
        "kubernetes.default.svc.cluster.local A",
        &["NoError", "kubernetes.default.svc.$ 5 A 10.96.0.1"],
    );
    check("2.3.1, dual stack", &format!("{web} A"), &["NoError", "web.shop.svc.$ 5 A 10.96.0.7"]);
    check(
        "2.3.1, dual stack",
        &format!("{web} AAAA"),
        &["NoError", "web.shop.svc.$ 5 AAAA fd00:96::7"],
    );
    check("2.3.1, one family", "kubernetes.default.svc.cluster.local AAAA", &["NoError", SOA]);
    check("2.3.1, the other family", "six.shop.svc.cluster.local A", &["NoError", SOA]);
    check(
        "2.3.1, balanced by others",
        "theirs.shop.svc.cluster.local A",
        &["NoError", "theirs.shop.svc.$ 5 A 10.96.0.8"],
    );
    check(
        "2.3.2",
        &format!("_http._tcp.{web} SRV"),
        &[
            "NoError",
            "_http._tcp.web.shop.svc.$ 5 SRV 0 100 80 web.shop.svc.$",
            "additional: web.shop.svc.$ 5 A 10.96.0.7",
            "additional: web.shop.svc.$ 5 AAAA fd00:96::7",
        ],
    );
    check(
        "2.3.2, another protocol",
        &format!("_dns._udp.{web} SRV"),
        &[
            "NoError",
            "_dns._udp.web.shop.svc.$ 5 SRV 0 100 53 web.shop.svc.$",
            "additional: web.shop.svc.$ 5 A 10.96.0.7",
            "additional: web.shop.svc.$ 5 AAAA fd00:96::7",
        ],
    );
    for none in [
        "_http._udp.web",
        "_dns._tcp.web",
        "_https._tcp.web",
        "http._tcp.web",
        "_http.tcp.web",
        "_._tcp.nameless",
        "_8080._tcp.nameless",
    ] {
        let question = format!("{none}.shop.svc.cluster.local SRV");
        check("2.3.2, no such port, or one without a name", &question, &["NXDomain", SOA]);
    }
    check(
        "2.3.2, of a port's name there is no address",
        &format!("_http._tcp.{web} A"),
        &["NoError", SOA],
    );
    check("2.3.2, names have names above them", &format!("_tcp.{web} A"), &["NoError", SOA]);
    check("2.3.2, of no port", &format!("_sctp.{web} A"), &["NXDomain", SOA]);
    check(
        "2.3.3",
        "7.0.96.10.in-addr.arpa PTR",
        &["NoError", "7.0.96.10.in-addr.arpa. 5 PTR web.shop.svc.$"],
    );
    check(
        "2.3.3, IPv6",
        &format!("{}.ip6.arpa PTR", v6_nibbles("fd00:96::7")),
        &["NoError", &format!("{}.ip6.arpa. 5 PTR web.shop.svc.$", v6_nibbles("fd00:96::7"))],
    );
}

/// The labels of an address in `ip6.arpa`.
fn v6_nibbles(address: &str) -> String {
    let address: std::net::Ipv6Addr = address.parse().unwrap();
    let digits = address.octets().into_iter().rev().flat_map(|byte| [byte & 0xf, byte >> 4]);
    digits.map(|digit| format!("{digit:x}")).collect::<Vec<_>>().join(".")
}

#[test]
fn a_headless_service_2_4() {
    let pets = "pets.shop.svc.cluster.local";
    check(
        "2.4.1, the ready ones",
        &format!("{pets} A"),
        &[
            "NoError",
            "pets.shop.svc.$ 5 A 10.244.1.1",
            "pets.shop.svc.$ 5 A 10.244.1.2",
            "pets.shop.svc.$ 5 A 10.244.1.3",
        ],
    );
    check(
        "2.4.1, IPv6",
        &format!("{pets} AAAA"),
        &["NoError", "pets.shop.svc.$ 5 AAAA fd00:244::1"],
    );
    check("2.4.1, one family", "six-pets.shop.svc.cluster.local A", &["NoError", SOA]);
    for none in ["empty", "unready"] {
        for of in ["A", "AAAA", "SRV", "TXT"] {
            check(
                "2.4.1, none is ready",
                &format!("{none}.shop.svc.cluster.local {of}"),
                &["NXDomain", SOA],
            );
        }
        check(
            "2.4.2, none is ready",
            &format!("_http._tcp.{none}.shop.svc.cluster.local SRV"),
            &["NXDomain", SOA],
        );
    }
    check(
        "2.4.1, hostname",
        &format!("pet-0.{pets} A"),
        &["NoError", "pet-0.pets.shop.svc.$ 5 A 10.244.1.1"],
    );
    check(
        "2.4.1, hostname",
        &format!("pet-0.{pets} AAAA"),
        &["NoError", "pet-0.pets.shop.svc.$ 5 AAAA fd00:244::1"],
    );
    check("2.4.1, hostname of one family", &format!("pet-1.{pets} AAAA"), &["NoError", SOA]);
    check(
        "2.4.1, several of a hostname",
        "twin.twins.shop.svc.cluster.local A",
        &[
            "NoError",
            "twin.twins.shop.svc.$ 5 A 10.244.2.1",
            "twin.twins.shop.svc.$ 5 A 10.244.2.2",
        ],
    );
    check(
        "2.4.1, without a hostname",
        &format!("10-244-1-3.{pets} A"),
        &["NoError", "10-244-1-3.pets.shop.svc.$ 5 A 10.244.1.3"],
    );
    check(
        "2.4.1, without a hostname, IPv6",
        "fd00-244--9.six-pets.shop.svc.cluster.local AAAA",
        &["NoError", "fd00-244--9.six-pets.shop.svc.$ 5 AAAA fd00:244::9"],
    );
    for absent in
        ["pet-2", "pet-9", "10-244-1-1", "10-244-1-4", "10-244-1-5", "10-244-9-9", "x.pet-0"]
    {
        check(
            "2.4.1, no such endpoint, or not by that name",
            &format!("{absent}.{pets} A"),
            &["NXDomain", SOA],
        );
    }
    check(
        "2.4.1, of a Service without ports",
        "portless.shop.svc.cluster.local A",
        &["NoError", "portless.shop.svc.$ 5 A 10.244.3.1"],
    );
    check(
        "2.4.1, of a Service without ports",
        "only.portless.shop.svc.cluster.local A",
        &["NoError", "only.portless.shop.svc.$ 5 A 10.244.3.1"],
    );
    check(
        "2.4.2, each endpoint",
        &format!("_http._tcp.{pets} SRV"),
        &[
            "NoError",
            "_http._tcp.pets.shop.svc.$ 5 SRV 0 33 8080 pet-0.pets.shop.svc.$",
            "_http._tcp.pets.shop.svc.$ 5 SRV 0 33 8080 pet-1.pets.shop.svc.$",
            "_http._tcp.pets.shop.svc.$ 5 SRV 0 33 8081 10-244-1-3.pets.shop.svc.$",
            "additional: pet-0.pets.shop.svc.$ 5 A 10.244.1.1",
            "additional: pet-0.pets.shop.svc.$ 5 AAAA fd00:244::1",
            "additional: pet-1.pets.shop.svc.$ 5 A 10.244.1.2",
            "additional: 10-244-1-3.pets.shop.svc.$ 5 A 10.244.1.3",
        ],
    );
    check(
        "2.4.2, each port",
        &format!("_https._tcp.{pets} SRV"),
        &[
            "NoError",
            "_https._tcp.pets.shop.svc.$ 5 SRV 0 100 8443 10-244-1-3.pets.shop.svc.$",
            "additional: 10-244-1-3.pets.shop.svc.$ 5 A 10.244.1.3",
        ],
    );
    check(
        "2.4.3",
        "2.1.244.10.in-addr.arpa PTR",
        &["NoError", "2.1.244.10.in-addr.arpa. 5 PTR pet-1.pets.shop.svc.$"],
    );
    check(
        "2.4.3, without a hostname",
        "3.1.244.10.in-addr.arpa PTR",
        &["NoError", "3.1.244.10.in-addr.arpa. 5 PTR 10-244-1-3.pets.shop.svc.$"],
    );
    let v6 = v6_nibbles("fd00:244::1");
    check(
        "2.4.3, IPv6",
        &format!("{v6}.ip6.arpa PTR"),
        &["NoError", &format!("{v6}.ip6.arpa. 5 PTR pet-0.pets.shop.svc.$")],
    );
}

#[test]
fn an_external_name_2_5() {
    check(
        "2.5, the alias itself",
        "db.shop.svc.cluster.local CNAME",
        &["NoError", "db.shop.svc.$ 5 CNAME db.example.com."],
    );
    check(
        "2.5, an address is asked for elsewhere",
        "db.shop.svc.cluster.local A",
        &["forward db.example.com."],
    );
    check(
        "2.5, within the zone",
        "inside.shop.svc.cluster.local A",
        &["NoError", "inside.shop.svc.$ 5 CNAME web.shop.svc.$", "web.shop.svc.$ 5 A 10.96.0.7"],
    );
    check(
        "2.5, twice",
        "twice.shop.svc.cluster.local AAAA",
        &[
            "NoError",
            "twice.shop.svc.$ 5 CNAME inside.shop.svc.$",
            "inside.shop.svc.$ 5 CNAME web.shop.svc.$",
            "web.shop.svc.$ 5 AAAA fd00:96::7",
        ],
    );
    check(
        "2.5, of no such name",
        "nowhere.shop.svc.cluster.local A",
        &["NXDomain", "nowhere.shop.svc.$ 5 CNAME gone.shop.svc.$", SOA],
    );
    check("2.5, in a circle", "round.shop.svc.cluster.local A", &["ServFail"]);
    check("2.5, nothing is below it", "x.db.shop.svc.cluster.local A", &["NXDomain", SOA]);
}

#[test]
fn names_of_addresses_2_6() {
    check(
        "2.6",
        "10-244-1-1.shop.pod.cluster.local A",
        &["NoError", "10-244-1-1.shop.pod.$ 5 A 10.244.1.1"],
    );
    check("2.6, the other family", "10-244-1-1.shop.pod.cluster.local AAAA", &["NoError", SOA]);
    check(
        "2.6, IPv6",
        "fd00--1.any.pod.cluster.local AAAA",
        &["NoError", "fd00--1.any.pod.$ 5 AAAA fd00::1"],
    );
    for absent in ["x", "10-244-1", "10-244-1-256", "1.10-244-1-1"] {
        check("2.6, no address", &format!("{absent}.shop.pod.cluster.local A"), &["NXDomain", SOA]);
    }
    check("2.6, names above", "pod.cluster.local A", &["NoError", SOA]);
    let none = Options { pods: PodNames::Disabled, ..Options::default() };
    let zone = Zone::new(none).next(&cluster(""), 9);
    for question in ["10-244-1-1.shop.pod.cluster.local A", "pod.cluster.local A"] {
        assert_eq!(Asking::of(question).of_zone(&zone)[0], "NXDomain", "{question}");
    }
}

#[test]
fn there_is_no_such_name_or_nothing_of_that_type() {
    for absent in [
        "web.other.svc.cluster.local",
        "gone.shop.svc.cluster.local",
        "other.svc.cluster.local",
        "web.shop.cluster.local",
        "shop.cluster.local",
        "*.shop.svc.cluster.local",
        "web.*.svc.cluster.local",
        "*.*.svc.cluster.local",
        "a.b.c.d.e.f.g.cluster.local",
        "_http._tcp.x.web.shop.svc.cluster.local",
        "x._http._tcp.web.shop.svc.cluster.local",
        "dns-version.svc.cluster.local",
        "x.ns.dns.cluster.local",
    ] {
        for of in ["A", "AAAA", "SRV", "ANY"] {
            check("RFC 2308, 2.1", &format!("{absent} {of}"), &["NXDomain", SOA]);
        }
    }
    for (between, of) in [("svc", "A"), ("shop.svc", "AAAA"), ("default.svc", "TXT"), ("dns", "A")]
    {
        check("RFC 8020, 2", &format!("{between}.cluster.local {of}"), &["NoError", SOA]);
    }
    check("RFC 2308, 2.2", "web.shop.svc.cluster.local MX", &["NoError", SOA]);
    check("RFC 2308, 2.2", "web.shop.svc.cluster.local HTTPS", &["NoError", SOA]);
}

#[test]
fn the_zone_itself() {
    let soa = SOA.strip_prefix("authority: ").unwrap();
    check("RFC 1035, 3.3.13", "cluster.local SOA", &["NoError", soa]);
    check("RFC 1035, 3.3.11", "cluster.local NS", &["NoError", "$ 5 NS ns.dns.$"]);
    check(
        "the server has the address of kube-dns",
        "ns.dns.cluster.local A",
        &["NoError", "ns.dns.$ 5 A 10.96.0.10"],
    );
    check("the zone has no address", "cluster.local A", &["NoError", SOA]);
    check(
        "RFC 8482, 4.2",
        "web.shop.svc.cluster.local ANY",
        &["NoError", "web.shop.svc.$ 5 HINFO RFC8482 "],
    );
    check(
        "RFC 8482, 4.2, an alias",
        "db.shop.svc.cluster.local ANY",
        &["NoError", "db.shop.svc.$ 5 CNAME db.example.com."],
    );
    for kind in [251, 252] {
        let transfer = Asking { kind, ..Asking::of("cluster.local SOA") };
        assert_eq!(transfer.of_zone(&all()), ["Refused"], "a zone is not given away");
    }
}

#[test]
fn addresses_of_ours_without_names_are_nobody_elses() {
    let soa = |zone: &str| SOA.replace("$", zone);
    check("in a range", "9.9.96.10.in-addr.arpa PTR", &["NXDomain", &soa("in-addr.arpa.")]);
    let six = v6_nibbles("fd00:96::99");
    check("in a range", &format!("{six}.ip6.arpa PTR"), &["NXDomain", &soa("ip6.arpa.")]);
    check("of a pod", "9.9.244.10.in-addr.arpa PTR", &["NXDomain", &soa("in-addr.arpa.")]);
    check("another type", "7.0.96.10.in-addr.arpa A", &["NoError", &soa("in-addr.arpa.")]);
    for elsewhere in [
        "1.1.1.1.in-addr.arpa",
        "96.10.in-addr.arpa",
        "x.0.96.10.in-addr.arpa",
        "01.0.96.10.in-addr.arpa",
        "1.7.0.96.10.in-addr.arpa",
        "arpa",
        "1.ip6.arpa",
    ] {
        check("elsewhere", &format!("{elsewhere} PTR"), &[&format!("forward {elsewhere}.")]);
    }
}

#[test]
fn what_others_call_an_address_outside_is_not_in_the_way() {
    let zone = zone(
        "range 10.96.0.0/16
         headless shop/db main:5432
         endpoint shop/db main 192.0.2.7:5432
         endpoint shop/db main 192.0.2.8:5432 primary",
    );
    for (name, expected) in [
        ("7.2.0.192.in-addr.arpa", "forward 7.2.0.192.in-addr.arpa."),
        ("8.2.0.192.in-addr.arpa", "NoError"),
    ] {
        assert_eq!(Asking::of(&format!("{name} PTR")).of_zone(&zone)[0], expected);
    }
}

#[test]
fn all_else_is_for_others() {
    for elsewhere in ["example.com", "xcluster.local", "local", "cluster.local.example.com", "."] {
        let name = if elsewhere == "." { ".".to_owned() } else { format!("{elsewhere}.") };
        check("elsewhere", &format!("{elsewhere} A"), &[&format!("forward {name}")]);
    }
}

#[test]
fn letters_may_be_of_any_case_and_come_back_as_they_were() {
    let zone = all();
    let question = "wEb.ShOp.SvC.cLuStEr.LoCaL A";
    let bytes = Asking::of(question).bytes(&zone).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("\u{3}wEb\u{4}ShOp\u{3}SvC\u{7}cLuStEr\u{5}LoCaL\0"), "{text:?}");
    assert_eq!(lines(&bytes)[1].to_ascii_lowercase(), "web.shop.svc.cluster.local. 5 a 10.96.0.7");
    let absent = Asking::of("GONE.shop.svc.cluster.LOCAL A").of_zone(&zone);
    assert_eq!(absent[0], "NXDomain");
    let srv = Asking::of("_HTTP._TCP.pets.SHOP.svc.cluster.local SRV").of_zone(&zone);
    assert_eq!(srv[0], "NoError");
    let host = Asking::of("PET-0.pets.shop.svc.cluster.local A").of_zone(&zone);
    assert!(host[1].ends_with("A 10.244.1.1"), "{host:?}");
}

#[test]
fn flags_say_who_answers() {
    let zone = all();
    for (flags, back) in
        [(0x0000_u16, 0x8480_u16), (0x0100, 0x8580), (0x0110, 0x8590), (0x0120, 0x8580)]
    {
        let asking = Asking { flags, ..Asking::of("web.shop.svc.cluster.local A") };
        let bytes = asking.bytes(&zone).unwrap();
        assert_eq!(bytes[..2], asking.id.to_be_bytes());
        assert_eq!(u16::from_be_bytes([bytes[2], bytes[3]]), back, "{flags:#06x}");
    }
}

#[test]
fn edns_comes_back() {
    let zone = all();
    let asking =
        Asking { edns: Some((4096, 0, true)), ..Asking::of("web.shop.svc.cluster.local A") };
    let found = asking.of_zone(&zone);
    assert_eq!(
        found,
        ["NoError", "web.shop.svc.cluster.local. 5 A 10.96.0.7", "edns 1232 version 0 dnssec"]
    );
    let newer =
        Asking { edns: Some((4096, 1, false)), ..Asking::of("web.shop.svc.cluster.local A") };
    // 16, which is also called so where it is TSIG's.
    assert_eq!(newer.of_zone(&zone), ["BADSIG", "edns 1232 version 0"]);
    let without = Asking::of("web.shop.svc.cluster.local A").of_zone(&zone);
    assert_eq!(without.len(), 2);
}

#[test]
fn what_a_datagram_cannot_hold_is_cut_and_a_stream_has_all() {
    let many = endpoints("shop/many", "http", 1000);
    let zone = zone(&format!("headless shop/many http:80\n{many}"));
    let asking = |edns: Option<u16>, transport| {
        let edns = edns.map(|size| (size, 0, false));
        Asking { edns, transport, ..Asking::of("many.shop.svc.cluster.local A") }
    };
    for (edns, most) in [(None, 512), (Some(100), 512), (Some(700), 700), (Some(4096), 1232)] {
        let bytes = asking(edns, Transport::Udp).bytes(&zone).unwrap();
        assert!(bytes.len() <= most && bytes.len() + 16 > most, "{edns:?}: {}", bytes.len());
        assert_eq!(bytes[2] & 2, 2, "{edns:?}: cut");
        assert!(lines(&bytes).len() > 20, "{edns:?}: what fits is there");
    }
    let mut whole = asking(None, Transport::Tcp).of_zone(&zone);
    whole.sort_unstable();
    whole.dedup();
    assert_eq!(whole.len(), 1001);
    // As many as a plain datagram takes are not cut.
    let some = endpoints("shop/many", "http", 28);
    let zone = support::zone(&format!("headless shop/many http:80\n{some}"));
    let bytes = asking(None, Transport::Udp).bytes(&zone).unwrap();
    assert_eq!((lines(&bytes).len(), bytes[2] & 2), (29, 0));
    // Of a port's endpoints, all answers come before what is additional, and that alone is left out silently.
    let srv = Asking::of("_http._tcp.many.shop.svc.cluster.local SRV");
    let bytes = srv.bytes(&zone).unwrap();
    assert_eq!(bytes[2] & 2, 2);
    let srv = Asking { transport: Transport::Tcp, ..srv };
    let found = srv.of_zone(&zone);
    assert_eq!(found.iter().filter(|line| line.contains(" SRV ")).count(), 28);
    assert_eq!(found.iter().filter(|line| line.starts_with("additional")).count(), 28);
}

#[test]
fn a_stream_holds_a_thousand_endpoints_of_a_port_with_their_addresses() {
    let many = endpoints("shop/many", "http", 1000);
    let zone = zone(&format!("headless shop/many http:80\n{many}"));
    let srv = Asking {
        transport: Transport::Tcp,
        ..Asking::of("_http._tcp.many.shop.svc.cluster.local SRV")
    };
    let bytes = srv.bytes(&zone).unwrap();
    let found = lines(&bytes);
    let targets = found.iter().filter_map(|line| line.split_once(" SRV ")?.1.split(' ').nth(3));
    let targets: std::collections::BTreeSet<_> = targets.collect();
    assert_eq!((targets.len(), bytes[2] & 2), (1000, 0));
    // Addresses are given as long as a pointer reaches the name, and only of these names.
    let glue: Vec<_> = found.iter().filter_map(|line| line.strip_prefix("additional: ")).collect();
    assert!(glue.len() > 200, "{}", glue.len());
    for line in glue {
        let (name, address) = line.split_once(" 5 A ").unwrap();
        assert!(targets.contains(name) && name.starts_with(&address.replace('.', "-")), "{line}");
    }
}

#[test]
fn answers_come_in_many_orders() {
    let many = endpoints("shop/many", "http", 5);
    let zone = zone(&format!("headless shop/many http:80\n{many}"));
    let mut first = std::collections::BTreeSet::new();
    let mut buffer = fairway_dns::Buffer::new(7);
    for _ in 0..100 {
        let found =
            Asking::of("many.shop.svc.cluster.local A").of_buffer(&zone, &mut buffer).unwrap();
        first.insert(lines(&found)[1].clone());
    }
    assert_eq!(first.len(), 5, "{first:?}");
}

#[test]
fn what_is_no_query_of_ours_gets_an_error_or_nothing() {
    let zone = all();
    let good = Asking::of("web.shop.svc.cluster.local A").message();
    let with = |at: usize, bytes: &[u8]| {
        let mut message = good.clone();
        message[at..at + bytes.len()].copy_from_slice(bytes);
        message
    };
    let more = |bytes: &[u8]| [&good[..], bytes].concat();
    let outcome = |message: &[u8]| {
        let mut buffer = fairway_dns::Buffer::new(1);
        let client = support::client(Transport::Udp, None);
        match zone.answer(message, &client, &mut buffer) {
            Verdict::Answer { bytes, .. } => lines(bytes)[0].clone(),
            Verdict::Forward(_) => "forward".to_owned(),
            Verdict::Drop(reason) => format!("{reason:?}"),
        }
    };
    for (what, message, expected) in [
        ("nothing", Vec::new(), "Short"),
        ("half a header", good[..11].to_vec(), "Short"),
        ("half a question", good[..30].to_vec(), "Malformed"),
        ("an answer", with(2, &[0x80]), "Answer"),
        ("a notice", with(2, &[0x20]), "NotImp"),
        ("an update", with(2, &[0x28]), "NotImp"),
        ("no question", with(5, &[0]), "FormErr"),
        ("two questions (RFC 9619)", with(5, &[2]), "FormErr"),
        ("with an answer", with(7, &[1]), "FormErr"),
        ("with more behind it", more(b"x"), "FormErr"),
        (
            "two OPT records",
            {
                let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
                let mut message = more(&[opt, opt].concat());
                message[11] = 2;
                message
            },
            "FormErr",
        ),
        ("a pointer to itself", with(12, &[0xc0, 12]), "Malformed"),
        ("a pointer to nowhere", with(12, &[0xff, 0xff]), "Malformed"),
        ("a label of an unknown kind", with(12, &[0x40]), "Malformed"),
        ("chaos", with(good.len() - 1, &[3]), "Refused"),
        ("any class", with(good.len() - 1, &[255]), "Refused"),
    ] {
        assert_eq!(outcome(&message), expected, "{what}");
    }
    assert!(matches!(
        zone.answer(
            &[0; 5],
            &support::client(Transport::Tcp, None),
            &mut fairway_dns::Buffer::new(1)
        ),
        Verdict::Drop(Reason::Short)
    ));
}

#[test]
fn a_name_of_the_search_list_is_looked_for_along_it_at_once() {
    let zone = {
        let search = vec!["corp.example".parse().unwrap()];
        Zone::new(Options { search, ..Options::default() })
            .next(&support::cluster(support::PLAIN), 9)
    };
    let from = |namespace: &str, question: &str| {
        Asking { namespace: Some(namespace.to_owned()), ..Asking::of(question) }.of_zone(&zone)
    };
    let soa = SOA.replace("$", "cluster.local.");
    let none = vec!["NXDomain".to_owned(), soa];
    // A name of another namespace.
    assert_eq!(
        from("default", "web.shop.default.svc.cluster.local A"),
        [
            "NoError",
            "web.shop.default.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.",
            "web.shop.svc.cluster.local. 5 A 10.96.0.7",
        ]
    );
    // The same, in full but for the dot.
    assert_eq!(
        from("default", "web.shop.svc.cluster.local.default.svc.cluster.local A"),
        [
            "NoError",
            "web.shop.svc.cluster.local.default.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.",
            "web.shop.svc.cluster.local. 5 A 10.96.0.7",
        ]
    );
    assert_eq!(from("default", "web.shop.svc.default.svc.cluster.local A")[0], "NoError");
    // That there is no such address is known, too.
    let nodata = from("default", "web.shop.default.svc.cluster.local AAAA");
    assert_eq!((&*nodata[0], nodata.len()), ("NoError", 3));
    assert!(nodata[2].contains(" SOA "), "{nodata:?}");
    // A name of elsewhere.
    assert_eq!(
        from("default", "www.example.com.default.svc.cluster.local AAAA"),
        ["forward www.example.com.corp.example. www.example.com.",]
    );
    // An alias of elsewhere.
    assert_eq!(
        from("default", "db.shop.default.svc.cluster.local A"),
        ["forward db.example.com.",]
    );
    // Not the first of the client's list, not an address, not a pod, switched off.
    assert_eq!(from("default", "www.example.com.other.svc.cluster.local A"), none);
    assert_eq!(from("default", "www.example.com.xdefault.svc.cluster.local A"), none);
    assert_eq!(from("default", "www.example.com.svc.cluster.local A"), none);
    assert_eq!(from("default", "www.example.com.default.svc.cluster.local SRV"), none);
    assert_eq!(from("default", "default.svc.cluster.local A"), none);
    let nobody = Asking::of("www.example.com.default.svc.cluster.local A");
    assert_eq!(nobody.of_zone(&zone), none);
    let off = Zone::new(Options { autopath: false, ..Options::default() });
    let off = off.next(&support::cluster(support::PLAIN), 9);
    let asking = Asking { namespace: Some("default".into()), ..nobody };
    assert_eq!(asking.of_zone(&off), none);
}

#[test]
fn what_others_say_follows_the_aliases() {
    let zone = all();
    let asking = Asking::of("db.shop.svc.cluster.local A");
    let message = asking.message();
    let mut buffer = fairway_dns::Buffer::new(1);
    let client = support::client(Transport::Udp, None);
    let Verdict::Forward(forward) = zone.answer(&message, &client, &mut buffer) else {
        panic!("not for others");
    };
    let mut reply = forward.reply(&message, Transport::Udp, 0, &mut buffer).unwrap();
    let found = &forward.names[0];
    let data = fairway_dns::answer::Data::Bytes(&[192, 0, 2, 53]);
    let owner = fairway_dns::answer::Owner::Name(found.as_wire());
    assert!(reply.record(fairway_dns::Section::Answer, owner, 1, 60, data));
    let bytes = reply.finish(0);
    assert_eq!(
        lines(bytes),
        [
            "NoError",
            "db.shop.svc.cluster.local. 5 CNAME db.example.com.",
            "db.example.com. 60 A 192.0.2.53",
        ]
    );
    assert!(forward.reply(&message, Transport::Udp, 1, &mut buffer).is_none());
}
