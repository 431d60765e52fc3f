//! Kubernetes DNS-Based Service Discovery 1.1.0 as pods see it: what `dig` and the resolvers of C libraries are told,
//! case by case. All cases there are, without a node around them, are in `proxy/dns/tests/specification.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, Options, may_run, unique_name};

use super::of;

/// Services and endpoints at given addresses, which nobody need listen on.
const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node1, containers: [{name: c, image: agnhost}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: elsewhere}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: elsewhere}
spec: {nodeName: node1, containers: [{name: c, image: agnhost}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  clusterIP: 10.96.7.7
  clusterIPs: [10.96.7.7, 'fd00:10:96::707']
  ports: [{name: http, port: 80}, {name: ask, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: four}
spec: {clusterIP: 10.96.7.8, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {ipFamilies: [IPv6], clusterIP: 'fd00:10:96::706', ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: pets}
spec: {clusterIP: None, ipFamilyPolicy: RequireDualStack, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pets-4, labels: {kubernetes.io/service-name: pets}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.0.201], hostname: pet-0, conditions: {ready: true}}
- {addresses: [10.244.0.202], conditions: {ready: true}}
- {addresses: [10.244.0.203], hostname: pet-2, conditions: {ready: false}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pets-6, labels: {kubernetes.io/service-name: pets}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ['fd00:10:244::c9'], hostname: pet-0, conditions: {ready: true}}]
---
apiVersion: v1
kind: Service
metadata: {name: twins}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: twins-4, labels: {kubernetes.io/service-name: twins}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.0.211], hostname: twin, conditions: {ready: true}}
- {addresses: [10.244.0.212], hostname: twin, conditions: {ready: true}}
---
apiVersion: v1
kind: Service
metadata: {name: unready}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: unready-4, labels: {kubernetes.io/service-name: unready}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.221], conditions: {ready: false}}]
---
apiVersion: v1
kind: Service
metadata: {name: inside}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
";

/// A lab of both families, in which nothing changes.
fn lab() -> Option<&'static Lab> {
    static LAB: OnceLock<Lab> = OnceLock::new();
    if !may_run("DNS by its specification") {
        return None;
    }
    Some(LAB.get_or_init(|| {
        let options = Options {
            nodes: 1,
            pod_cidr: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            service_cidr: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00:10:96::/112".parse().unwrap(),
            ],
            ..Options::named(unique_name("dnsspec"))
        };
        let lab = Lab::up(options).unwrap();
        lab.apply(MANIFESTS).unwrap();
        wait_until(Duration::from_secs(30), "the pod to be answered", || {
            let found = ["web", "inside", "pets", "twins"].iter().all(|name| {
                let name = format!("{name}.default.svc.cluster.local");
                lab.exec(elsewhere(), &["dig", "+short", &name])
                    .is_ok_and(|output| !output.stdout.is_empty())
            });
            Ok(found && lab.exec(of("client"), &["true"]).is_ok())
        })
        .unwrap();
        lab
    }))
}

/// A pod whose search list leads to none of the Services, so that names are answered as they are.
fn elsewhere() -> Target {
    Target::Pod { namespace: "elsewhere".to_owned(), name: "client".to_owned() }
}

/// What `dig` says: the outcome, and all records; those of sections other than the answer's with their names. A
/// zone's serial number is what it is.
fn dig(lab: &Lab, words: &[&str]) -> Vec<String> {
    let options = ["dig", "+noall", "+comments", "+answer", "+authority", "+additional", "+time=3"];
    let output = lab.exec(elsewhere(), &[&options, words].concat()).unwrap();
    let (mut lines, mut section) = (Vec::new(), "");
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let record: Vec<&str> = line.split_ascii_whitespace().collect();
        match record[..] {
            [";;", "AUTHORITY", "SECTION:"] => section = "authority: ",
            [";;", "ADDITIONAL", "SECTION:"] => section = "additional: ",
            [";;", "->>HEADER<<-", .., "status:", status, "id:", _] => {
                lines.push(status.trim_end_matches(',').to_owned());
            }
            [name, ttl, "IN", "SOA", server, by, _serial, ref rest @ ..] => {
                let rest = rest.join(" ");
                lines.push(format!("{section}{name} {ttl} SOA {server} {by} {rest}"));
            }
            [name, ttl, "IN", ref data @ ..] if !name.starts_with(';') => {
                lines.push(format!("{section}{name} {ttl} {}", data.join(" ")));
            }
            _ => {}
        }
    }
    lines.sort();
    lines
}

const SOA: &str = "authority: $ 5 SOA ns.dns.$ hostmaster.$ 7200 1800 86400 5";

/// A question, and all that is answered; `@` stands for the Services' domain, `$` for the zone.
const CASES: [(&str, &[&str]); 35] = [
    // 2.2
    ("dns-version.$ TXT", &["NOERROR", "dns-version.$ 5 TXT \"1.1.0\""]),
    // 2.3.1
    ("web.@ A", &["NOERROR", "web.@ 5 A 10.96.7.7"]),
    ("web.@ AAAA", &["NOERROR", "web.@ 5 AAAA fd00:10:96::707"]),
    ("WeB.@ A", &["NOERROR", "WeB.@ 5 A 10.96.7.7"]),
    ("four.@ AAAA", &["NOERROR", SOA]),
    ("six.@ A", &["NOERROR", SOA]),
    ("six.@ AAAA", &["NOERROR", "six.@ 5 AAAA fd00:10:96::706"]),
    ("web.@ MX", &["NOERROR", SOA]),
    // 2.3.2
    (
        "_http._tcp.web.@ SRV",
        &[
            "NOERROR",
            "_http._tcp.web.@ 5 SRV 0 100 80 web.@",
            "additional: web.@ 5 A 10.96.7.7",
            "additional: web.@ 5 AAAA fd00:10:96::707",
        ],
    ),
    (
        "_ask._udp.web.@ SRV",
        &[
            "NOERROR",
            "_ask._udp.web.@ 5 SRV 0 100 53 web.@",
            "additional: web.@ 5 A 10.96.7.7",
            "additional: web.@ 5 AAAA fd00:10:96::707",
        ],
    ),
    ("_http._udp.web.@ SRV", &["NXDOMAIN", SOA]),
    ("_._tcp.four.@ SRV", &["NXDOMAIN", SOA]),
    // 2.3.3
    ("-x 10.96.7.7", &["NOERROR", "7.7.96.10.in-addr.arpa. 5 PTR web.@"]),
    (
        "-x fd00:10:96::706",
        &[
            "NOERROR",
            "6.0.7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa. 5 PTR six.@",
        ],
    ),
    // 2.4.1
    ("pets.@ A", &["NOERROR", "pets.@ 5 A 10.244.0.201", "pets.@ 5 A 10.244.0.202"]),
    ("pets.@ AAAA", &["NOERROR", "pets.@ 5 AAAA fd00:10:244::c9"]),
    ("pet-0.pets.@ A", &["NOERROR", "pet-0.pets.@ 5 A 10.244.0.201"]),
    ("pet-0.pets.@ AAAA", &["NOERROR", "pet-0.pets.@ 5 AAAA fd00:10:244::c9"]),
    ("10-244-0-202.pets.@ A", &["NOERROR", "10-244-0-202.pets.@ 5 A 10.244.0.202"]),
    (
        "twin.twins.@ A",
        &["NOERROR", "twin.twins.@ 5 A 10.244.0.211", "twin.twins.@ 5 A 10.244.0.212"],
    ),
    ("pet-2.pets.@ A", &["NXDOMAIN", SOA]),
    ("unready.@ A", &["NXDOMAIN", SOA]),
    ("_http._tcp.unready.@ SRV", &["NXDOMAIN", SOA]),
    // 2.4.2
    (
        "_http._tcp.pets.@ SRV",
        &[
            "NOERROR",
            "_http._tcp.pets.@ 5 SRV 0 50 8080 pet-0.pets.@",
            "_http._tcp.pets.@ 5 SRV 0 50 8080 10-244-0-202.pets.@",
            "additional: pet-0.pets.@ 5 A 10.244.0.201",
            "additional: pet-0.pets.@ 5 AAAA fd00:10:244::c9",
            "additional: 10-244-0-202.pets.@ 5 A 10.244.0.202",
        ],
    ),
    // 2.4.3
    ("-x 10.244.0.201", &["NOERROR", "201.0.244.10.in-addr.arpa. 5 PTR pet-0.pets.@"]),
    // 2.5
    ("inside.@ CNAME", &["NOERROR", "inside.@ 5 CNAME web.@"]),
    ("inside.@ A", &["NOERROR", "inside.@ 5 CNAME web.@", "web.@ 5 A 10.96.7.7"]),
    // 2.6
    ("10-244-0-9.any.pod.$ A", &["NOERROR", "10-244-0-9.any.pod.$ 5 A 10.244.0.9"]),
    ("fd00--1.any.pod.$ AAAA", &["NOERROR", "fd00--1.any.pod.$ 5 AAAA fd00::1"]),
    ("10-244-0-999.any.pod.$ A", &["NXDOMAIN", SOA]),
    // What there is not, and what is between names (RFC 2308, RFC 8020).
    ("absent.other.svc.$ A", &["NXDOMAIN", SOA]),
    ("web.*.svc.$ A", &["NXDOMAIN", SOA]),
    ("svc.$ A", &["NOERROR", SOA]),
    // The zone.
    ("$ NS", &["NOERROR", "$ 5 NS ns.dns.$"]),
    ("ns.dns.$ A", &["NOERROR", "ns.dns.$ 5 A 10.96.0.10"]),
];

#[test]
fn dig_is_told_what_the_specification_says_over_both_families_and_transports() {
    let Some(lab) = lab() else { return };
    let whole = |text: &str| text.replace('@', "default.svc.$").replace('$', "cluster.local.");
    for (question, expected) in CASES {
        let question = whole(question);
        let mut expected: Vec<String> = expected.iter().copied().map(whole).collect();
        expected.sort();
        for way in [
            // Whom the pod's resolv.conf names, as programs ask and as old ones do.
            &["+nocookie"][..],
            &["+noedns"],
            &["+tcp"],
            &["@fd00:10:96::a"],
            &["@169.254.20.10"],
            &["@fded:a7e2:7c16::a", "+tcp"],
        ] {
            let words: Vec<&str> = way.iter().copied().chain(question.split(' ')).collect();
            assert_eq!(dig(lab, &words), expected, "{words:?}");
        }
    }
}

/// Asks `getaddrinfo` for all addresses of each name, or `getnameinfo` for the name of an address; a line each.
const RESOLVE: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int n, char **names) {
    for (int i = 1; i < n; i++) {
        struct addrinfo *found, *one, hints = {.ai_socktype = SOCK_STREAM};
        char text[256];
        printf("%s:", names[i]);
        if (!getaddrinfo(names[i], 0, &hints, &found))
            for (one = found; one; one = one->ai_next)
                if (!getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST))
                    printf(" %s", text);
        puts("");
    }
}
"#;

/// What it prints where names are written as programs do.
const RESOLVED: [(&str, &[&str]); 8] = [
    ("web", &["10.96.7.7", "fd00:10:96::707"]),
    ("web.default", &["10.96.7.7", "fd00:10:96::707"]),
    ("web.default.svc", &["10.96.7.7", "fd00:10:96::707"]),
    ("web.default.svc.cluster.local", &["10.96.7.7", "fd00:10:96::707"]),
    ("four", &["10.96.7.8"]),
    ("six", &["fd00:10:96::706"]),
    ("pet-0.pets", &["10.244.0.201", "fd00:10:244::c9"]),
    ("inside", &["10.96.7.7", "fd00:10:96::707"]),
];

fn compile(compiler: &str, folder: &Path) -> Option<PathBuf> {
    let (source, program) = (folder.join("resolve.c"), folder.join(compiler));
    fs::write(&source, RESOLVE).unwrap();
    let compiled = Command::new(compiler).arg("-o").arg(&program).arg(&source).status();
    compiled.is_ok_and(|status| status.success()).then_some(program)
}

fn resolves(program: &[&str], lab: &Lab) {
    for (name, expected) in RESOLVED {
        let output = lab.exec(of("client"), &[program, &[name]].concat()).unwrap();
        let line = String::from_utf8(output.stdout).unwrap();
        let mut found: Vec<&str> = line.split_ascii_whitespace().skip(1).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{program:?}: {line}");
    }
}

#[test]
fn programs_find_names_through_musl() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile("musl-gcc", folder.path()) else {
        eprintln!("NOT TRIED: there is no musl-gcc (Debian's musl-tools)");
        return;
    };
    resolves(&[&program.to_string_lossy()], lab);
}

#[test]
fn programs_find_names_through_glibc() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    match compile("gcc", folder.path()) {
        Some(program) => resolves(&[&program.to_string_lossy()], lab),
        None => eprintln!("NOT TRIED with all addresses: there is no gcc"),
    }
    for (name, expected) in [
        ("web", "10.96.7.7"),
        ("four.default", "10.96.7.8"),
        ("pet-0.pets.default.svc.cluster.local", "10.244.0.201"),
    ] {
        let output = lab.exec(of("client"), &["getent", "ahostsv4", name]).unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert!(output.starts_with(expected), "{name}: {output}");
    }
    for (address, expected) in [
        ("10.96.7.7", "web.default.svc.cluster.local"),
        ("fd00:10:96::706", "six.default.svc.cluster.local"),
        ("10.244.0.201", "pet-0.pets.default.svc.cluster.local"),
    ] {
        let output = lab.exec(of("client"), &["getent", "hosts", address]).unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert!(output.trim_end().ends_with(expected), "{address}: {output}");
    }
}
