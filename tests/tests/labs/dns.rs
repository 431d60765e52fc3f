//! Names: what real resolvers in pods are told, whom policies let ask, and what becomes of queries without an agent.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, Options, may_run, unique_name};

const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node1, containers: [{name: c, image: agnhost}]}
---
apiVersion: v1
kind: Pod
metadata: {name: asking, labels: {may: ask}}
spec: {nodeName: node1, containers: [{name: c, image: agnhost}]}
---
apiVersion: v1
kind: Pod
metadata: {name: locked, labels: {may: nothing}}
spec: {nodeName: node1, containers: [{name: c, image: agnhost}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: asking}
spec:
  podSelector: {matchLabels: {may: ask}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
    ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: locked}
spec: {podSelector: {matchLabels: {may: nothing}}, policyTypes: [Egress]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web}}
spec:
  nodeName: node1
  hostname: first
  subdomain: each
  containers: [{name: c, image: agnhost, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: web}}
spec:
  nodeName: node2
  containers: [{name: c, image: agnhost, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
";

/// A lab of two nodes.
fn up(name: &str) -> Lab {
    let lab = Lab::up(Options { nodes: 2, ..Options::named(unique_name(name)) }).unwrap();
    lab.apply(MANIFESTS).unwrap();
    for service in ["web", "each"] {
        lab.wait_for_endpoints(&ObjectName::new("default", service), 2).unwrap();
    }
    for pod in ["client", "asking", "locked"] {
        wait_until(Duration::from_secs(30), "the pod to run", || {
            Ok(lab.exec(of(pod), &["true"]).is_ok_and(|output| output.status.success()))
        })
        .unwrap();
    }
    wait_until(Duration::from_secs(20), "names to be answered", || {
        Ok(dig(&lab, "client", &["web.default.svc.cluster.local"]) == [address(&lab, "web")])
    })
    .unwrap();
    lab
}

/// One that all tests share that leave its agents alone.
fn shared() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| up("dns"))
}

fn of(pod: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: pod.to_owned() }
}

fn address(lab: &Lab, service: &str) -> String {
    cluster_ip(lab, &ObjectName::new("default", service)).to_string()
}

fn cluster_ip(lab: &Lab, service: &ObjectName) -> IpAddr {
    lab.model().unwrap().services[service].cluster_ips[0]
}

fn server(lab: &Lab) -> SocketAddr {
    SocketAddr::new(cluster_ip(lab, &ObjectName::new("kube-system", "kube-dns")), 53)
}

/// What `dig +short` prints in a pod; it asks whom the pod's resolv.conf names.
fn dig(lab: &Lab, pod: &str, words: &[&str]) -> Vec<String> {
    let dig = ["dig", "+short", "+time=2", "+tries=2"];
    let output = lab.exec(of(pod), &[&dig, words].concat()).unwrap();
    let mut lines: Vec<String> =
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn dig_is_told_what_the_specification_says() {
    if !may_run("dns") {
        return;
    }
    let lab = shared();
    let web = address(lab, "web");
    for words in [
        &["web.default.svc.cluster.local"][..],
        &["WEB.default.SVC.cluster.local"],
        &["+tcp", "web.default.svc.cluster.local"],
        &["+search", "web"],
        &["+search", "web.default"],
        &["@169.254.20.10", "web.default.svc.cluster.local"],
    ] {
        assert_eq!(dig(lab, "client", words), [web.as_str()], "{words:?}");
    }
    assert_eq!(dig(lab, "client", &["-x", &web]), ["web.default.svc.cluster.local."]);
    let srv = dig(lab, "client", &["SRV", "_http._tcp.web.default.svc.cluster.local"]);
    assert_eq!(srv.len(), 1);
    assert!(srv[0].ends_with(" 80 web.default.svc.cluster.local."), "{srv:?}");
    assert_eq!(dig(lab, "client", &["each.default.svc.cluster.local"]).len(), 2);
    assert_eq!(dig(lab, "client", &["first.each.default.svc.cluster.local"]).len(), 1);
    assert_eq!(dig(lab, "client", &["AAAA", "web.default.svc.cluster.local"]), [""; 0]);
    assert_eq!(dig(lab, "client", &["TXT", "dns-version.cluster.local"]), ["\"1.1.0\""]);
    let output = lab.exec(of("client"), &["dig", "nope.default.svc.cluster.local"]).unwrap();
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(output.contains("status: NXDOMAIN") && output.contains("SOA"), "{output}");
    assert!(output.contains(&format!("SERVER: {}#53", server(lab).ip())), "{output}");
}

#[test]
fn programs_find_services_by_name_through_glibc_and_musl() {
    if !may_run("dns") {
        return;
    }
    let lab = shared();
    let web = address(lab, "web");
    for name in ["web", "web.default", "web.default.svc.cluster.local"] {
        let output = lab.exec(of("client"), &["getent", "ahostsv4", name]).unwrap();
        let output = String::from_utf8_lossy(&output.stdout);
        assert!(output.starts_with(&web), "{name}: {output}");
    }
    let output = lab.exec(of("client"), &["getent", "hosts", "nope"]).unwrap();
    assert!(!output.status.success());
    let page = lab.get(of("client"), "http://web/hostname").unwrap();
    assert!(["first", "two"].contains(&page.trim()), "{page}");
    // The pod's own names are in its files.
    let hosts = lab.exec(of("one"), &["cat", "/etc/hosts"]).unwrap();
    let hosts = String::from_utf8_lossy(&hosts.stdout);
    assert!(hosts.contains("\tfirst.each.default.svc.cluster.local\tfirst"), "{hosts}");

    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("find.c"), folder.path().join("find"));
    fs::write(
        &source,
        "#include <netdb.h>\n#include <stdio.h>\n#include <arpa/inet.h>\n\
         int main(int n, char **a) {\n\
           struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM};\n\
           char text[64];\n\
           if (n < 2 || getaddrinfo(a[1], 0, &hints, &found)) return 1;\n\
           void *at = &((struct sockaddr_in *)found->ai_addr)->sin_addr;\n\
           puts(inet_ntop(found->ai_family, at, text, sizeof text));\n\
           return 0; }\n",
    )
    .unwrap();
    let compiled =
        Command::new("musl-gcc").arg("-static").arg("-o").arg(&program).arg(&source).status();
    let Ok(true) = compiled.map(|status| status.success()) else {
        eprintln!("NOT TRIED with musl: there is no musl-gcc (Debian's musl-tools)");
        return;
    };
    let output = lab.exec(of("client"), &[&program.to_string_lossy(), "web"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), web);
}

#[test]
fn a_restricted_pod_asks_if_its_policies_let_it_reach_kube_dns() {
    if !may_run("dns") {
        return;
    }
    let lab = shared();
    let web = address(lab, "web");
    for words in [
        &["web.default.svc.cluster.local"][..],
        &["+tcp", "web.default.svc.cluster.local"],
        &["@169.254.20.10", "web.default.svc.cluster.local"],
    ] {
        assert_eq!(dig(lab, "asking", words), [web.as_str()], "{words:?}");
        let dig = ["dig", "+short", "+time=1", "+tries=1"];
        let denied = lab.exec(of("locked"), &[&dig, words].concat()).unwrap();
        assert!(!denied.status.success(), "{words:?}");
    }
    assert!(lab.get(of("asking"), "http://web/hostname").is_err(), "no more than names");
}

#[test]
fn an_answer_is_explained() {
    if !may_run("dns") {
        return;
    }
    let lab = shared();
    let ask = |words: &[&str]| {
        let words = [&["dns", "query"], words].concat();
        let output = lab.inspect("node1", &words).unwrap().output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let found = ask(&["web.default.svc.cluster.local", "--from", "default/client"]);
    assert!(
        found.contains("the cluster's zone") && found.contains(&address(lab, "web")),
        "{found}"
    );
    assert!(ask(&["web", "--from", "default/nobody"]).contains("no pod default/nobody"));
    let metrics =
        lab.get(Target::Node { node: "node1".to_owned() }, "http://127.0.0.1:10249/metrics");
    assert!(metrics.unwrap().contains("coredns_dns_requests_total"));
}

/// Nobody waits longer than for the second try of a resolver.
#[test]
fn while_an_agent_is_dead_another_nodes_answers() {
    if !may_run("dns") {
        return;
    }
    let lab = up("dnskill");
    let load = lab
        .start_lookups(of("client"), server(&lab), "first.each.default.svc.cluster.local", 10_000)
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    lab.kill_agent("node1").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    // Also those who are restricted.
    assert_eq!(dig(&lab, "asking", &["first.each.default.svc.cluster.local"]).len(), 1);
    lab.start_agent("node1").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let summary = load.finish().unwrap();
    eprintln!("{summary:?}");
    assert_eq!((summary.unanswered, summary.wrong), (0, 0), "{summary:?}");
    assert!(summary.answered > 10 * summary.retried, "{summary:?}");
}

#[test]
fn while_an_agent_is_restarted_no_query_is_lost() {
    if !may_run("dns") {
        return;
    }
    let lab = up("dnsrestart");
    let load = lab
        .start_lookups(of("client"), server(&lab), "first.each.default.svc.cluster.local", 1_000)
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    lab.restart_agent("node1", false).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let summary = load.finish().unwrap();
    assert_eq!((summary.retried, summary.unanswered, summary.wrong), (0, 0, 0), "{summary:?}");
    assert!(summary.answered > 1_000, "{summary:?}");
}

/// Nobody else is left who could.
#[test]
fn addresses_of_services_are_answered_by_the_kernel() {
    if !may_run("dns") {
        return;
    }
    let lab = up("dnskernel");
    let counted = || {
        let node = Target::Node { node: "node1".to_owned() };
        let metrics = lab.get(node, "http://127.0.0.1:10249/metrics").unwrap();
        let of_a = "fairway_dns_kernel_answers_total{family=\"1\",type=\"A\",answer=\"address\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(of_a)?.parse::<u64>().ok()).unwrap()
    };
    let web = address(&lab, "web");
    wait_until(Duration::from_secs(20), "the kernel to answer", || {
        let answer = dig(&lab, "client", &["web.default.svc.cluster.local"]);
        Ok(answer == [web.as_str()] && counted() > 0)
    })
    .unwrap();
    for node in ["node1", "node2"] {
        lab.kill_agent(node).unwrap();
    }
    for words in [
        &["web.default.svc.cluster.local"][..],
        &["+noedns", "WEB.Default.svc.cluster.local"],
        &["+dnssec", "+nocookie", "web.default.svc.cluster.local"],
        &["@169.254.20.10", "web.default.svc.cluster.local"],
    ] {
        assert_eq!(dig(&lab, "client", words), [web.as_str()], "{words:?}");
        assert_eq!(dig(&lab, "asking", words), [web.as_str()], "{words:?}");
        let dig = ["dig", "+short", "+time=1", "+tries=1"];
        let denied = lab.exec(of("locked"), &[&dig, words].concat()).unwrap();
        assert!(!denied.status.success(), "{words:?}");
    }
    assert_eq!(dig(&lab, "client", &["AAAA", "web.default.svc.cluster.local"]), [""; 0]);
}
