//! What kube-proxy honours of a Service: each case is a manifest and what nodes are told of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use fairway_controlplane::manifests::{self, Checked, DEFAULT_NODE_PORTS};
use fairway_model::{Balancing, Forwarding, Model, ObjectName, Service, TrafficPolicy};

fn read(manifests: &str) -> Checked {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.yaml");
    std::fs::write(&file, manifests).unwrap();
    let cidrs = ["10.96.0.0/12", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
    let checked = manifests::check(&[file], cidrs.to_vec(), DEFAULT_NODE_PORTS).unwrap();
    checked.model.validate().unwrap();
    checked
}

fn model(manifests: &str) -> Model {
    let checked = read(manifests);
    assert_eq!(checked.problems, [], "{manifests}");
    checked.model
}

/// A Service `default/web`: the annotations, the rest of `spec`, and `status`.
fn manifest(annotations: &str, spec: &str, status: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: web, annotations: {{{annotations}}}}}
spec: {{ports: [{{port: 80}}], {spec}}}
status: {{{status}}}
"
    )
}

fn of(model: &Model) -> &Service {
    &model.services[&ObjectName::new("default", "web")]
}

fn service(annotations: &str, spec: &str, status: &str) -> Service {
    of(&model(&manifest(annotations, spec, status))).clone()
}

/// What is wrong, without file and line.
fn problems(manifests: &str) -> Vec<String> {
    let problems = read(manifests).problems;
    let text = |problem: &manifests::Problem| {
        let text = problem.to_string();
        text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_owned())
    };
    problems.iter().map(text).collect()
}

fn texts<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(T::to_string).collect()
}

#[test]
fn external_ips_are_those_of_the_services_families_each_once() {
    let ips = "externalIPs: [203.0.113.1, '2001:db8::1', 203.0.113.1]";
    assert_eq!(texts(&service("", ips, "").external_ips), ["203.0.113.1"]);
    let dual = format!("ipFamilyPolicy: RequireDualStack, {ips}");
    assert_eq!(texts(&service("", &dual, "").external_ips), ["203.0.113.1", "2001:db8::1"]);
}

#[test]
fn addresses_that_nobody_routes_are_no_external_ips() {
    for (ip, what) in [
        ("0.0.0.0", "the unspecified address"),
        ("'::'", "the unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("'::1'", "a loopback address"),
        ("169.254.1.1", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("224.0.0.1", "a multicast address"),
        ("ff02::1", "a multicast address"),
    ] {
        let spec = format!("externalIPs: [203.0.113.1, {ip}]");
        let ip = ip.trim_matches('\'');
        let expected = format!("Service default/web: spec.externalIPs[1]: {ip} is {what}");
        assert_eq!(problems(&manifest("", &spec, "")), [expected]);
    }
}

#[test]
fn load_balancer_ips_are_those_whose_packets_come_as_they_are() {
    let status = "loadBalancer: {ingress: [
        {ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: VIP}, {ip: 203.0.113.3, ipMode: Proxy},
        {hostname: example.com}, {ip: '2001:db8::1'}, {ip: ''}, {ip: 203.0.113.1}]}";
    let web = service("", "type: LoadBalancer, loadBalancerIP: 203.0.113.9", status);
    assert_eq!(texts(&web.load_balancer_ips), ["203.0.113.1", "203.0.113.2"]);
    assert!(service("", "type: NodePort", status).load_balancer_ips.is_empty());
    let dual = service("", "type: LoadBalancer, ipFamilies: [IPv6, IPv4]", status);
    let expected = ["203.0.113.1", "203.0.113.2", "2001:db8::1"];
    assert_eq!(texts(&dual.load_balancer_ips), expected);
}

#[test]
fn a_load_balancers_status_is_checked() {
    let bad = |ingress: &str| {
        let status = format!("loadBalancer: {{ingress: [{{ip: 203.0.113.1}}, {{{ingress}}}]}}");
        problems(&manifest("", "type: LoadBalancer", &status)).concat()
    };
    let prefix = "Service default/web: status.loadBalancer.ingress[1].";
    let of_ip = format!("{prefix}ip: invalid value: string \"lb\", expected an IP address");
    assert_eq!(bad("ip: lb"), of_ip);
    assert_eq!(bad("ip: 127.0.0.1"), format!("{prefix}ip: 127.0.0.1 is a loopback address"));
    let of_mode = format!("{prefix}ipMode: unknown variant `Nat`, expected `VIP` or `Proxy`");
    assert_eq!(bad("ip: 203.0.113.2, ipMode: Nat"), of_mode);
}

#[test]
fn source_ranges_are_trimmed_and_of_both_families() {
    let spec = "type: LoadBalancer, loadBalancerSourceRanges: [' 10.1.2.3/8', '2001:db8::/32 ']";
    assert_eq!(texts(&service("", spec, "").source_ranges), ["10.0.0.0/8", "2001:db8::/32"]);
    // The annotation is older, and counts only without the field.
    let older =
        "service.beta.kubernetes.io/load-balancer-source-ranges: ' 10.0.0.0/8, 192.0.2.0/24 '";
    let balancer = "type: LoadBalancer";
    let ranges = service(older, balancer, "").source_ranges;
    assert_eq!(texts(&ranges), ["10.0.0.0/8", "192.0.2.0/24"]);
    let both = format!("{balancer}, loadBalancerSourceRanges: [198.51.100.0/24]");
    assert_eq!(texts(&service(older, &both, "").source_ranges), ["198.51.100.0/24"]);
    let empty = older.replace(" 10.0.0.0/8, 192.0.2.0/24 ", " ");
    assert_eq!(texts(&service(&empty, "", "").source_ranges), [""; 0]);

    let field = "Service default/web: spec.loadBalancerSourceRanges[0]";
    let bad = format!("{balancer}, loadBalancerSourceRanges: [10.0.0.0]");
    let expected = format!("{field}: \"10.0.0.0\" is no range such as 10.0.0.0/8");
    assert_eq!(problems(&manifest("", &bad, "")), [expected]);
    let nobody = "loadBalancerSourceRanges: [10.0.0.0/8]";
    let expected = format!("{field}: a ClusterIP Service has no load balancer");
    assert_eq!(problems(&manifest("", nobody, "")), [expected]);
    let annotation = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let expected = format!(
        "Service default/web: metadata.annotations.{annotation}: \"x\" is no range such as 10.0.0.0/8"
    );
    let bad = format!("{annotation}: '10.0.0.0/8,x'");
    assert_eq!(problems(&manifest(&bad, balancer, "")), [expected]);
}

#[test]
fn a_client_stays_with_its_endpoint_for_three_hours_or_as_said() {
    let affinity = |spec: &str| service("", spec, "").affinity;
    assert_eq!(affinity(""), None);
    assert_eq!(affinity("sessionAffinity: None"), None);
    assert_eq!(affinity("sessionAffinity: ClientIP"), Some(10800));
    let with = |seconds: &str| {
        format!(
            "sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"
        )
    };
    assert_eq!(affinity(&with("1")), Some(1));
    assert_eq!(affinity(&with("86400")), Some(86400));
    assert_eq!(affinity(&with("")), Some(10800));
    let field = "Service default/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    for seconds in ["0", "-1", "86401", "4294967297"] {
        let expected = format!("{field}: {seconds} is not between 1 and 86400");
        assert_eq!(problems(&manifest("", &with(seconds), "")), [expected]);
    }
    let pointless = with("5").replace("sessionAffinity: ClientIP, ", "");
    let expected = format!("{field}: spec.sessionAffinity is not ClientIP");
    assert_eq!(problems(&manifest("", &pointless, "")), [expected]);
    let expected = "Service default/web: spec.sessionAffinity: unknown variant `Cookie`, expected \
                    `None` or `ClientIP`";
    assert_eq!(problems(&manifest("", "sessionAffinity: Cookie", "")), [expected]);
}

#[test]
fn only_a_load_balancer_with_local_endpoints_has_health_checks() {
    let local = "type: LoadBalancer, externalTrafficPolicy: Local";
    let asked = format!("{local}, healthCheckNodePort: 30123");
    assert_eq!(service("", &asked, "").health_check_node_port, Some(30123));
    let given = service("", &format!("{local}, healthCheckNodePort: 0"), "");
    let number = given.health_check_node_port.unwrap();
    assert!(DEFAULT_NODE_PORTS.contains(&number) && given.ports[0].node_port != Some(number));
    for other in [
        "type: LoadBalancer",
        "type: NodePort, externalTrafficPolicy: Local",
        "externalIPs: [203.0.113.1], externalTrafficPolicy: Local",
    ] {
        assert_eq!(service("", other, "").health_check_node_port, None, "{other}");
        let expected = "Service default/web: spec.healthCheckNodePort: only a LoadBalancer with \
                        externalTrafficPolicy Local has one";
        let asked = format!("{other}, healthCheckNodePort: 30123");
        assert_eq!(problems(&manifest("", &asked, "")), [expected]);
    }
    let same = asked.clone() + ", ports: [{port: 80, nodePort: 30123}]";
    let same = manifest("", &same, "").replacen("ports: [{port: 80}], ", "", 1);
    let expected = "Service default/web: spec.healthCheckNodePort: 30123 is also a node port of this \
                    Service";
    assert_eq!(problems(&same), [expected]);
}

#[test]
fn a_load_balancer_works_without_node_ports() {
    let spec =
        "type: LoadBalancer, allocateLoadBalancerNodePorts: false, externalTrafficPolicy: Local";
    let web = service("", spec, "loadBalancer: {ingress: [{ip: 203.0.113.1}]}");
    assert_eq!(web.ports[0].node_port, None);
    assert_eq!(texts(&web.load_balancer_ips), ["203.0.113.1"]);
    assert!(web.health_check_node_port.is_some());
    assert_eq!(web.external_traffic, TrafficPolicy::Local);
}

#[test]
fn one_number_serves_several_protocols() {
    let spec = "type: LoadBalancer, externalIPs: [203.0.113.1], ports: [
        {name: a, port: 53, nodePort: 30053}, {name: b, port: 53, protocol: UDP, nodePort: 30053},
        {name: c, port: 53, protocol: SCTP, nodePort: 30053}]";
    let text = manifest("", spec, "loadBalancer: {ingress: [{ip: 203.0.113.2}]}");
    let model = model(&text.replacen("ports: [{port: 80}], ", "", 1));
    let ports = of(&model).ports.iter();
    let ports = ports.map(|port| format!("{} {} {:?}", port.protocol, port.port, port.node_port));
    let expected = ["TCP 53 Some(30053)", "UDP 53 Some(30053)", "SCTP 53 Some(30053)"];
    assert_eq!(ports.collect::<Vec<_>>(), expected);
}

#[test]
fn each_policy_is_of_its_own_traffic() {
    let policies = |spec: &str| {
        let web = service("", spec, "");
        (web.internal_traffic, web.external_traffic)
    };
    use TrafficPolicy::{Cluster, Local};
    assert_eq!(policies("type: NodePort"), (Cluster, Cluster));
    assert_eq!(policies("internalTrafficPolicy: Local"), (Local, Cluster));
    assert_eq!(policies("type: NodePort, externalTrafficPolicy: Local"), (Cluster, Local));
}

#[test]
fn a_headless_service_has_no_address_of_any_kind() {
    let spec = "clusterIP: None, externalIPs: [203.0.113.1], sessionAffinity: ClientIP";
    let web = service("", spec, "loadBalancer: {ingress: [{ip: 203.0.113.2}]}");
    assert!(web.cluster_ips.is_empty() && web.external_ips.is_empty());
    assert_eq!((web.load_balancer_ips, web.affinity), (Vec::new(), None));
}

#[test]
fn an_annotation_chooses_how_endpoints_are_chosen() {
    let with = |word: &str| format!("fairway.dev/balancing: {word}");
    for (word, balancing) in [
        ("random", Balancing::Random),
        ("round-robin", Balancing::RoundRobin),
        ("least-connections", Balancing::LeastConnections),
        ("maglev", Balancing::Maglev),
    ] {
        assert_eq!(service(&with(word), "", "").balancing, balancing);
    }
    assert_eq!(service("", "", "").balancing, Balancing::Random);
    let expected = "Service default/web: metadata.annotations.fairway.dev/balancing: \"fair\" is none \
                    of random, round-robin, least-connections and maglev";
    assert_eq!(problems(&manifest(&with("fair"), "", "")), [expected]);
}

#[test]
fn weights_that_are_none_are_named() {
    let with = |text: &str| manifest(&format!("fairway.dev/weights: '{text}'"), "", "");
    let expected = "Service default/web: metadata.annotations.fairway.dev/weights: \"rack/a=2\" is \
                    none of pod/NAME=WEIGHT, node/... and zone/...";
    assert_eq!(problems(&with("rack/a=2")), [expected]);
    let expected = "Service default/web: metadata.annotations.fairway.dev/weights: \"pod/a=1001\": a \
                    weight is 0 to 1000";
    assert_eq!(problems(&with("pod/a=1001")), [expected]);
    assert!(problems(&with("pod/a=1000, zone/b=0")).is_empty());
}

#[test]
fn endpoints_may_start_slowly_for_a_time() {
    let with = |text: &str| format!("fairway.dev/slow-start: '{text}'");
    for (text, seconds) in [("30s", 30), ("5m", 300), ("1h", 3600), ("3600s", 3600), ("1s", 1)] {
        assert_eq!(service(&with(text), "", "").slow_start, Some(seconds), "{text}");
    }
    assert_eq!(service("", "", "").slow_start, None);
    for text in ["0s", "2h", "30", "", "+3s", "1.5m", "s", "99999999999h", "4294967295m"] {
        let expected = format!(
            "Service default/web: metadata.annotations.fairway.dev/slow-start: \"{text}\" is no time \
             from 1s to 1h, such as 30s or 5m"
        );
        assert_eq!(problems(&manifest(&with(text), "", "")), [expected]);
    }
}

#[test]
fn a_slow_start_that_maglev_does_not_honour_is_warned_about() {
    let both = "fairway.dev/balancing: maglev, fairway.dev/slow-start: 30s";
    let problems = problems(&manifest(both, "", ""));
    let expected = "Service default/web: metadata.annotations.fairway.dev/slow-start: not honoured with \
                    the balancing maglev, by which all nodes choose alike: endpoints that are new get \
                    their whole share at once";
    assert!(problems.len() == 1 && problems[0].ends_with(expected), "{problems:?}");
}

#[test]
fn an_annotation_chooses_how_clients_from_outside_are_forwarded() {
    let with = |word: &str| format!("fairway.dev/forwarding: {word}");
    for (word, forwarding) in
        [("snat", Forwarding::Snat), ("keep", Forwarding::Keep), ("dsr", Forwarding::Dsr)]
    {
        assert_eq!(service(&with(word), "", "").forwarding, Some(forwarding));
    }
    assert_eq!(service("", "", "").forwarding, None);
    let expected = "Service default/web: metadata.annotations.fairway.dev/forwarding: \"hide\" is \
                    none of snat, keep and dsr";
    assert_eq!(problems(&manifest(&with("hide"), "", "")), [expected]);
}

fn ranges(model: &Model) -> Vec<String> {
    let ranges = model.service_ranges.values();
    ranges.map(|range| format!("{}: {}", range.name, texts(&range.cidrs).join(", "))).collect()
}

fn service_cidr(name: &str, cidrs: &str) -> String {
    format!(
        "---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {{name: {name}}}
spec: {{cidrs: [{cidrs}]}}
"
    )
}

#[test]
fn nodes_know_what_addresses_are_services() {
    let own = "kubernetes: 10.96.0.0/12, fd00:96::/112";
    assert_eq!(ranges(&model("")), [own]);
    // As every cluster has it, in whatever order.
    let same = service_cidr("kubernetes", "'fd00:96::/112', 10.96.0.0/12");
    let more = service_cidr("more", "172.20.0.0/16, 'fd00:97::/112'");
    let both = same + &more;
    assert_eq!(ranges(&model(&both)), [own, "more: 172.20.0.0/16, fd00:97::/112"]);

    let other = read(&service_cidr("kubernetes", "10.0.0.0/16"));
    assert_eq!(ranges(&other.model), [own]);
    let [problem] = &other.problems[..] else { panic!("{:?}", other.problems) };
    let expected = "all.yaml:5: warning: ServiceCIDR kubernetes: spec.cidrs: not honoured: \
                    --service-cidr says 10.96.0.0/12, fd00:96::/112";
    assert!(problem.to_string().ends_with(expected), "{problem}");
}

#[test]
fn addresses_are_given_out_from_the_configured_ranges_and_may_be_asked_for_in_all() {
    let more = service_cidr("more", "172.20.0.0/16");
    let own = "10.96.0.0/12".parse::<ipnet::IpNet>().unwrap();
    let given = model(&(more.clone() + &manifest("", "", "")));
    assert!(own.contains(&of(&given).cluster_ips[0]));
    let asked = model(&(more.clone() + &manifest("", "clusterIP: 172.20.0.7", "")));
    assert_eq!(texts(&of(&asked).cluster_ips), ["172.20.0.7"]);
    let dual = "ipFamilyPolicy: RequireDualStack, clusterIP: 172.20.0.7";
    let dual = model(&(more.clone() + &manifest("", dual, "")));
    assert_eq!(of(&dual).cluster_ips.len(), 2);

    let bad = |spec: &str| problems(&(more.clone() + &manifest("", spec, "")));
    let expected = "Service default/web: spec.clusterIP: 172.21.0.7 is not a usable address of the \
                    service range 10.96.0.0/12, 172.20.0.0/16";
    assert_eq!(bad("clusterIP: 172.21.0.7"), [expected]);
    let expected = "Service default/web: spec.externalIPs[0]: 172.20.0.9 is in the service range \
                    172.20.0.0/16, whose addresses are ClusterIPs";
    assert_eq!(bad("externalIPs: [172.20.0.9]"), [expected]);
}

#[test]
fn a_range_with_nodes_or_pods_in_it_is_left_out() {
    let node = "---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24, 'fd00:244::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";
    for (cidrs, left, index, what) in [
        ("172.20.0.0/16, 'fd00:97::/112'", "more: 172.20.0.0/16, fd00:97::/112", 0, ""),
        (
            "192.0.2.0/24, 'fd00:97::/112'",
            "more: fd00:97::/112",
            0,
            "in 192.0.2.0/24 are 192.0.2.1, an address of node n1",
        ),
        ("10.244.0.0/16", "", 0, "in 10.244.0.0/16 are pods of node n1 (10.244.1.0/24)"),
        (
            "172.20.0.0/16, 'fd00:244::/112'",
            "more: 172.20.0.0/16",
            1,
            "in fd00:244::/112 are pods of node n1 (fd00:244::/64)",
        ),
    ] {
        let text = node.to_owned() + &service_cidr("more", cidrs);
        let found = ranges(&read(&text).model);
        assert_eq!(found.get(1).map_or("", String::as_str), left);
        let expected = match what {
            "" => Vec::new(),
            what => vec![format!(
                "warning: ServiceCIDR more: spec.cidrs[{index}]: not honoured: {what}"
            )],
        };
        assert_eq!(problems(&text), expected);
    }
}

#[test]
fn ranges_are_checked() {
    for (cidrs, expected) in [
        ("", "spec.cidrs: needs a range"),
        (
            "10.1.2.3/16",
            "spec.cidrs[0]: 10.1.2.3/16 does not begin where its range does; is it 10.1.0.0/16?",
        ),
        ("0.0.0.0/0", "spec.cidrs[0]: 0.0.0.0/0 is too wide; /8 is the most for IPv4"),
        ("'2000::/3'", "spec.cidrs[0]: 2000::/3 is too wide; /32 is the most for IPv6"),
        ("10.0.0.0/16, 10.1.0.0/16", "spec.cidrs[1]: a second IPv4 range"),
    ] {
        let found = problems(&service_cidr("more", cidrs));
        assert_eq!(found, [format!("ServiceCIDR more: {expected}")]);
    }
}

#[test]
fn of_objects_that_contradict_the_older_is_in_force_and_the_younger_named_with_its_line() {
    let born = |kind: &str, name: &str, second: u8, rest: &str| {
        format!(
            "---
apiVersion: v1
kind: {kind}
metadata: {{name: {name}, creationTimestamp: 2026-01-01T00:00:0{second}Z}}
{rest}
"
        )
    };
    let node = |name, second, range: &str| {
        born("Node", name, second, &format!("spec: {{podCIDRs: [{range}]}}"))
    };
    let pod = |name, second| born("Pod", name, second, "status: {podIP: 10.244.0.9}");
    let service = |name, second, spec: &str| {
        born("Service", name, second, &format!("spec: {{ports: [{{port: 80}}], {spec}}}"))
    };
    let node_port = "type: NodePort, ports: [{port: 80, nodePort: 30001}]";
    let node_port = |name, second| born("Service", name, second, &format!("spec: {{{node_port}}}"));
    let address = "clusterIP: 10.96.0.7";
    let external = "externalIPs: [203.0.113.1]";
    for (manifests, expected) in [
        (
            [node("a", 2, "10.244.0.0/24"), node("b", 1, "10.244.0.0/16")],
            "all.yaml:5: Node a: spec.podCIDRs[0]: 10.244.0.0/24 overlaps with 10.244.0.0/16, which \
             node b has",
        ),
        (
            [pod("a", 2), pod("b", 1)],
            "all.yaml:5: Pod default/a: status.podIP: 10.244.0.9 is already taken by default/b",
        ),
        (
            [service("a", 2, address), service("b", 1, address)],
            "all.yaml:5: Service default/a: spec.clusterIP: 10.96.0.7 is already taken by default/b",
        ),
        (
            [node_port("a", 2), node_port("b", 1)],
            "all.yaml:5: Service default/a: spec.ports[0].nodePort: 30001 is already taken by default/b",
        ),
        (
            [service("a", 2, external), service("b", 1, external)],
            "all.yaml:5: Service default/a: spec.externalIPs[0]: 203.0.113.1 TCP 80 is already taken \
             by default/b",
        ),
    ] {
        let manifests = manifests.concat();
        let problems = texts(&read(&manifests).problems);
        let [problem] = &problems[..] else { panic!("{manifests}{problems:?}") };
        assert!(problem.ends_with(expected), "{manifests}{problem}");
    }
}
