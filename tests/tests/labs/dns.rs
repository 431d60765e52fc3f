//! Names: what real resolvers in pods are told, whom policies let ask, and what becomes of queries without an agent.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, Options, may_run, unique_name};

mod specification;

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

fn metrics(lab: &Lab) -> Result<String> {
    let node = Target::Node { node: "node1".to_owned() };
    lab.get(node, "http://127.0.0.1:10249/metrics")
}

fn headless(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: None, ports: [{{name: http, port: 80}}]}}\n"
    )
}

/// Endpoints of such a Service.
fn slice(service: &str, part: usize, addresses: &[String]) -> String {
    let endpoints = addresses.iter().map(|address| format!("{{addresses: [{address}]}}"));
    let endpoints = endpoints.collect::<Vec<_>>().join(", ");
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-{part}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{endpoints}]\n"
    )
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
fn pods_find_services_by_name_and_know_their_own() {
    if !may_run("dns") {
        return;
    }
    let lab = shared();
    let web = address(lab, "web");
    for words in [
        &["web.default.svc.cluster.local"][..],
        &["+tcp", "web.default.svc.cluster.local"],
        &["+search", "web"],
        &["@169.254.20.10", "web.default.svc.cluster.local"],
    ] {
        assert_eq!(dig(lab, "client", words), [web.as_str()], "{words:?}");
    }
    // The first of the search list is not there, but leads along it.
    let alias = [web.as_str(), "web.default.svc.cluster.local."];
    assert_eq!(dig(lab, "client", &["+search", "web.default"]), alias);
    // What is nowhere along it, is not there, whether others can be asked or not.
    let absent = ["dig", "+time=4", "absent.default.svc.cluster.local"];
    let output = lab.exec(of("client"), &absent).unwrap();
    let output = String::from_utf8_lossy(&output.stdout);
    assert!(output.contains("status: NXDOMAIN") && output.contains("SOA"), "{output}");
    let output = lab.exec(of("client"), &["getent", "hosts", "absent"]).unwrap();
    assert!(!output.status.success());
    assert_eq!(dig(lab, "client", &["each.default.svc.cluster.local"]).len(), 2);
    assert_eq!(dig(lab, "client", &["first.each.default.svc.cluster.local"]).len(), 1);
    for url in ["http://web/hostname", "http://web.default/hostname"] {
        let page = lab.get(of("client"), url).unwrap();
        assert!(["first", "two"].contains(&page.trim()), "{page}");
    }
    let page = lab.get(of("client"), "http://first.each:8080/hostname").unwrap();
    assert_eq!(page.trim(), "first");
    // The pod's own names are in its files.
    let hosts = lab.exec(of("one"), &["cat", "/etc/hosts"]).unwrap();
    let hosts = String::from_utf8_lossy(&hosts.stdout);
    assert!(hosts.contains("\tfirst.each.default.svc.cluster.local\tfirst"), "{hosts}");
}

/// More than fits a datagram, and than most know a stream is for.
#[test]
fn a_name_of_a_thousand_endpoints_is_told_whole_by_a_stream() {
    if !may_run("dns") {
        return;
    }
    let lab = shared();
    let mut manifests = headless("thousand");
    for part in 0..10 {
        let hosts = (1..=100).map(|host| format!("10.244.{}.{host}", 100 + part));
        manifests += &slice("thousand", part, &hosts.collect::<Vec<_>>());
    }
    lab.apply(&manifests).unwrap();
    let name = "thousand.default.svc.cluster.local";
    let addresses = |words: &[&str]| {
        let found = dig(lab, "client", &[words, &[name]].concat());
        found.into_iter().filter(|line| line.starts_with("10.244.")).collect::<BTreeSet<_>>()
    };
    wait_until(Duration::from_secs(20), "all of them", || Ok(addresses(&["+tcp"]).len() == 1000))
        .unwrap();
    // Clients go on by a stream where they are told to.
    assert_eq!(addresses(&[]).len(), 1000);
    let output = lab.exec(of("client"), &["getent", "ahostsv4", "thousand"]).unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    let found = found.lines().filter(|line| line.contains("STREAM"));
    let found: BTreeSet<_> = found.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(found.len(), 1000);
    for (words, most) in [(&["+noedns"][..], 512), (&["+bufsize=4096"], 1232)] {
        let dig = ["dig", "+ignore", name];
        let output = lab.exec(of("client"), &[&dig, words].concat()).unwrap();
        let output = String::from_utf8_lossy(&output.stdout);
        assert!(output.contains("flags: qr aa tc rd"), "{output}");
        let size = output.lines().find_map(|line| line.strip_prefix(";; MSG SIZE  rcvd: "));
        let size: usize = size.unwrap().parse().unwrap();
        assert!(size <= most, "{size} for {words:?}");
    }
}

/// Fifty endpoints that are all others ten times a second.
#[test]
fn answers_are_right_while_endpoints_change_five_hundred_times_a_second() {
    if !may_run("dns") {
        return;
    }
    const ENDPOINTS: usize = 50;
    const LAST: usize = 50;
    let lab = shared();
    let generation = |number: usize| {
        let hosts = (1..=ENDPOINTS).map(|host| format!("10.244.{}.{host}", 150 + number));
        slice("churn", 0, &hosts.collect::<Vec<_>>())
    };
    lab.apply(&(headless("churn") + &generation(0))).unwrap();
    // Which of them is told, all at once.
    let told = || {
        let lines = dig(lab, "client", &["churn.default.svc.cluster.local"]);
        let number =
            |line: &String| line.split('.').nth(2)?.parse::<usize>().ok()?.checked_sub(150);
        let numbers: BTreeSet<_> = lines.iter().filter_map(number).collect();
        let whole = lines.len() == ENDPOINTS && numbers.len() == 1;
        numbers.into_iter().next().filter(|_| whole).ok_or(lines)
    };
    wait_until(Duration::from_secs(20), "the first", || Ok(told() == Ok(0))).unwrap();
    let web = address(lab, "web");
    let begin = Instant::now();
    let applied = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=LAST {
                let due = begin + Duration::from_millis(100) * u32::try_from(number).unwrap();
                thread::sleep(due.saturating_duration_since(Instant::now()));
                applied.store(number, Ordering::SeqCst);
                lab.apply(&generation(number)).unwrap();
            }
        });
        let (mut latest, mut asked) = (0, 0);
        while latest < LAST {
            let number = told().unwrap();
            assert!(number >= latest && number <= applied.load(Ordering::SeqCst), "{number}");
            (latest, asked) = (number, asked + 1);
            assert_eq!(dig(lab, "client", &["web.default.svc.cluster.local"]), [web.as_str()]);
            assert!(begin.elapsed() < Duration::from_secs(60), "{latest} is the last");
        }
        assert!(asked > 10, "{asked}");
    });
}

#[test]
fn a_flood_from_one_pod_leaves_the_others_alone() {
    if !may_run("dns") {
        return;
    }
    let lab = up("dnsflood");
    let name = "first.each.default.svc.cluster.local";
    let flood = lab.start_lookups(of("client"), server(&lab), name, 60_000).unwrap();
    let other = lab.start_lookups(of("asking"), server(&lab), name, 100).unwrap();
    let limited = || {
        let metrics = metrics(&lab)?;
        let of_rate = "fairway_dns_dropped_total{reason=\"rate\"} ";
        Ok(metrics.lines().any(|line| line.strip_prefix(of_rate).is_some_and(|count| count != "0")))
    };
    wait_until(Duration::from_secs(30), "the flood to meet its limit", limited).unwrap();
    thread::sleep(Duration::from_secs(3));
    let (other, flood) = (other.finish().unwrap(), flood.finish().unwrap());
    assert_eq!((other.unanswered, other.wrong), (0, 0), "{other:?} {flood:?}");
    // All interfaces of a processor share the kernel's queue between them, which a flood may fill for a moment.
    assert!(other.answered > 200 && other.retried * 20 < other.answered, "{other:?} {flood:?}");
    assert!(flood.answered > 1_000 && flood.wrong == 0, "{flood:?}");
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
        let output = lab.query_name("node1", words).unwrap().output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let found = ask(&["web.default.svc.cluster.local", "--from", "default/client"]);
    assert!(
        found.contains("the cluster's zone") && found.contains(&address(lab, "web")),
        "{found}"
    );
    assert!(ask(&["web", "--from", "default/nobody"]).contains("no pod default/nobody"));
    assert!(metrics(lab).unwrap().contains("coredns_dns_requests_total"));
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
    thread::sleep(Duration::from_secs(2));
    lab.kill_agent("node1").unwrap();
    thread::sleep(Duration::from_secs(3));
    // Also those who are restricted.
    assert_eq!(dig(&lab, "asking", &["first.each.default.svc.cluster.local"]).len(), 1);
    lab.start_agent("node1").unwrap();
    thread::sleep(Duration::from_secs(2));
    let summary = load.finish().unwrap();
    assert_eq!((summary.unanswered, summary.wrong), (0, 0), "{summary:?}");
    // Those of less than a second.
    assert!(summary.retried < 10_000 && summary.answered > 30_000, "{summary:?}");
}

#[test]
fn while_an_agent_is_restarted_no_query_is_lost() {
    if !may_run("dns") {
        return;
    }
    let lab = up("dnsrestart");
    let load = lab
        .start_lookups(of("client"), server(&lab), "first.each.default.svc.cluster.local", 10_000)
        .unwrap();
    thread::sleep(Duration::from_secs(1));
    lab.restart_agent("node1", false).unwrap();
    thread::sleep(Duration::from_secs(2));
    let summary = load.finish().unwrap();
    assert_eq!((summary.retried, summary.unanswered, summary.wrong), (0, 0, 0), "{summary:?}");
    assert!(summary.answered > 10_000, "{summary:?}");
}

/// Nobody else is left who could.
#[test]
fn addresses_of_services_are_answered_by_the_kernel() {
    if !may_run("dns") {
        return;
    }
    let lab = up("dnskernel");
    let counted = || {
        let metrics = metrics(&lab).unwrap();
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
