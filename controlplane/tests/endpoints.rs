//! What manifests mean, read once: each case is a text and the endpoints it must make.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::ops::RangeInclusive;

use fairway_controlplane::manifests::{self, Checked};
use fairway_model::{Model, ObjectName, Service};

const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

fn read(manifests: &str) -> Checked {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.yaml");
    std::fs::write(&file, manifests).unwrap();
    let cidrs = ["10.96.0.0/12", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap());
    let checked = manifests::check(&[file], cidrs.to_vec(), NODE_PORTS).unwrap();
    checked.model.validate().unwrap();
    checked
}

fn model(manifests: &str) -> Model {
    let checked = read(manifests);
    assert_eq!(checked.problems, []);
    checked.model
}

/// The endpoints of `default/web` as `PORTNAME ADDRESS:PORT@NODE STATE` lines.
fn endpoints(model: &Model) -> Vec<String> {
    let endpoints = &model.endpoints[&ObjectName::new("default", "web")];
    let lines = endpoints.ports.iter().flat_map(|(name, list)| {
        list.iter().map(move |endpoint| {
            let node = endpoint.node.as_deref().unwrap_or("-");
            let (address, port) = (endpoint.address, endpoint.port);
            format!("{name} {address}:{port}@{node} {:?}", endpoint.state)
        })
    });
    lines.collect()
}

fn check(manifests: &str, expected: &[&str]) {
    assert_eq!(endpoints(&model(manifests)), expected, "{manifests}");
}

/// A Pod `app: web` with what `status` and `spec` add.
fn pod(name: &str, spec: &str, status: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec: {{nodeName: n1, {spec}}}
status: {{{status}}}
"
    )
}

fn ready(address: &str) -> String {
    format!(
        "phase: Running, podIPs: [{{ip: {address}}}], conditions: [{{type: Ready, status: 'True'}}]"
    )
}

fn service(spec: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, {spec}}}
"
    )
}

#[test]
fn ready_pods_stand_behind_a_service() {
    let text = service("ports: [{port: 80, targetPort: 8080}]")
        + &pod("b", "", &ready("10.244.0.3"))
        + &pod("a", "", &ready("10.244.0.2"))
        + &pod("c", "", "phase: Pending");
    check(&text, &[" 10.244.0.2:8080@n1 Ready", " 10.244.0.3:8080@n1 Ready"]);
}

#[test]
fn readiness_is_what_is_reported() {
    let running = "phase: Running, podIP: 10.244.0.2";
    let probe = "containers: [{name: c, readinessProbe: {tcpSocket: {port: 80}}}]";
    let cases = [
        ("", running, "Ready"),
        (probe, running, "NotReady"),
        ("", "podIP: 10.244.0.2", "NotReady"),
        (
            "",
            "phase: Running, podIP: 10.244.0.2, conditions: [{type: Ready, status: 'False'}]",
            "NotReady",
        ),
        (
            probe,
            "phase: Running, podIP: 10.244.0.2, conditions: [{type: Ready, status: 'True'}]",
            "Ready",
        ),
    ];
    for (spec, status, state) in cases {
        let text = service("ports: [{port: 80}]") + &pod("a", spec, status);
        check(&text, &[&format!(" 10.244.0.2:80@n1 {state}")]);
    }
}

#[test]
fn pods_that_ended_are_left_out() {
    for phase in ["Succeeded", "Failed"] {
        let status = ready("10.244.0.2").replace("Running", phase);
        check(&(service("ports: [{port: 80}]") + &pod("a", "", &status)), &[]);
    }
}

#[test]
fn a_pod_that_is_going_away_serves_but_takes_nothing_new() {
    let going =
        |text: &str| text.replace("labels:", "deletionTimestamp: '2026-11-20T10:00:00Z', labels:");
    let ready_pod = going(&pod("a", "", &ready("10.244.0.2")));
    let unready = going(&pod(
        "b",
        "",
        "phase: Running, podIP: 10.244.0.3, conditions: [{type: Ready, status: 'False'}]",
    ));
    check(
        &(service("ports: [{port: 80}]") + &ready_pod + &unready),
        &[" 10.244.0.2:80@n1 ServingTerminating", " 10.244.0.3:80@n1 NotReady"],
    );
    // Who asked for pods that are not ready gets them to the end.
    check(
        &(service("publishNotReadyAddresses: true, ports: [{port: 80}]") + &ready_pod + &unready),
        &[" 10.244.0.2:80@n1 Ready", " 10.244.0.3:80@n1 Ready"],
    );
}

#[test]
fn a_named_target_port_is_each_pods_own() {
    let named = |port: u16| {
        format!("containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]")
    };
    let sidecar = "initContainers: [{name: s, restartPolicy: Always, ports: [{name: http, containerPort: 83}]}]";
    let init = "initContainers: [{name: s, ports: [{name: http, containerPort: 84}]}]";
    let udp = "containers: [{name: c, ports: [{name: http, containerPort: 85, protocol: UDP}]}]";
    let text = service("ports: [{port: 80, targetPort: http}]")
        + &pod("a", &named(81), &ready("10.244.0.1"))
        + &pod("b", &named(82), &ready("10.244.0.2"))
        + &pod("c", sidecar, &ready("10.244.0.3"))
        + &pod("d", init, &ready("10.244.0.4"))
        + &pod("e", udp, &ready("10.244.0.5"));
    check(
        &text,
        &[" 10.244.0.1:81@n1 Ready", " 10.244.0.2:82@n1 Ready", " 10.244.0.3:83@n1 Ready"],
    );
}

#[test]
fn several_ports_and_protocols() {
    let text = service("ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]")
        + &pod("a", "", &ready("10.244.0.2"));
    check(&text, &["dns 10.244.0.2:53@n1 Ready", "dns-tcp 10.244.0.2:53@n1 Ready"]);
}

#[test]
fn a_headless_service_has_endpoints_and_no_address() {
    let text =
        service("clusterIP: None, ports: [{port: 80}]") + &pod("a", "", &ready("10.244.0.2"));
    let model = model(&text);
    assert_eq!(endpoints(&model), [" 10.244.0.2:80@n1 Ready"]);
    assert!(model.services[&ObjectName::new("default", "web")].cluster_ips.is_empty());
}

#[test]
fn both_families() {
    let dual = "phase: Running, podIPs: [{ip: 10.244.0.2}, {ip: 'fd00::2'}]";
    let both =
        service("ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]") + &pod("a", "", dual);
    check(&both, &[" 10.244.0.2:80@n1 Ready", " fd00::2:80@n1 Ready"]);
    let addresses = &model(&both).services[&ObjectName::new("default", "web")].cluster_ips;
    assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6());
    let one = service("ipFamilies: [IPv6], ports: [{port: 80}]") + &pod("a", "", dual);
    check(&one, &[" fd00::2:80@n1 Ready"]);
}

#[test]
fn slices_are_merged_and_win_over_everything_else() {
    let slice = |name: &str, body: &str| {
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}
{body}
"
        )
    };
    let text = service("ports: [{name: http, port: 80}]")
        + &pod("a", "", &ready("10.244.0.99"))
        + &slice(
            "one",
            "addressType: IPv4
ports: [{name: http, port: 8080}, {name: other, port: 1}, {name: http, port: 2, protocol: UDP}]
endpoints:
- {addresses: [10.244.0.2], nodeName: n1}
- {addresses: [10.244.0.3], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.0.4], conditions: {ready: false}}",
        )
        + &slice(
            "two",
            "addressType: IPv4
ports: [{name: http, port: 8081}]
endpoints: [{addresses: [10.244.0.2]}, {addresses: [10.244.0.5]}]",
        )
        + &slice("three", "addressType: FQDN\nendpoints: [{addresses: [example.com]}]");
    check(
        &text,
        &[
            "http 10.244.0.2:8080@n1 Ready",
            "http 10.244.0.2:8081@- Ready",
            "http 10.244.0.3:8080@- ServingTerminating",
            "http 10.244.0.4:8080@- NotReady",
            "http 10.244.0.5:8081@- Ready",
        ],
    );
}

/// An EndpointSlice of `web` with these labels beside.
fn slice(labels: &str, body: &str) -> String {
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: one, labels: {{kubernetes.io/service-name: web, {labels}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
{body}
"
    )
}

#[test]
fn an_endpoint_in_two_slices_is_one_as_fit_as_the_fitter() {
    let going = "conditions: {ready: false, serving: true, terminating: true}";
    let one = slice("", &format!("endpoints: [{{addresses: [10.244.0.2], {going}}}]"));
    let two = slice("", "endpoints: [{addresses: [10.244.0.2], nodeName: n1}]");
    let two = two.replace("name: one", "name: two");
    let ports = service("ports: [{name: http, port: 80}]");
    check(&(ports + &one + &two), &["http 10.244.0.2:8080@n1 Ready"]);
}

#[test]
fn conditions_that_are_not_said_follow_from_the_others() {
    let unready = "ready: false, terminating: true";
    for (conditions, state) in [
        ("", "Ready"),
        ("ready: true", "Ready"),
        ("ready: false", "NotReady"),
        ("serving: false", "Ready"),
        ("terminating: true", "Ready"),
        (unready, "NotReady"),
        (&*format!("{unready}, serving: true"), "ServingTerminating"),
        ("ready: false, serving: true", "NotReady"),
        (&*format!("{unready}, serving: false"), "NotReady"),
    ] {
        let body =
            format!("endpoints: [{{addresses: [10.244.0.2], conditions: {{{conditions}}}}}]");
        let text = service("ports: [{name: http, port: 80}]") + &slice("", &body);
        check(&text, &[&format!("http 10.244.0.2:8080@- {state}")]);
    }
}

#[test]
fn slices_of_other_proxies_and_of_a_headless_predecessor_do_not_count() {
    let given = "endpoints: [{addresses: [10.244.0.2]}]";
    let pod = pod("a", "", &ready("10.244.0.9"));
    let ports = "ports: [{name: http, port: 80}]";
    let derived = ["http 10.244.0.9:80@n1 Ready"];
    let slices = ["http 10.244.0.2:8080@- Ready"];
    let theirs = "service.kubernetes.io/service-proxy-name: other";
    check(&(service(ports) + &pod + &slice(theirs, given)), &derived);
    let headless = slice("service.kubernetes.io/headless: ''", given);
    check(&(service(ports) + &pod + &headless), &derived);
    check(&(service(&format!("clusterIP: None, {ports}")) + &pod + &headless), &slices);
    check(&(service(ports) + &pod + &slice("other: x", given)), &slices);
}

/// `default/web` with weights.
fn weighted(text: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: web, annotations: {{fairway.dev/weights: '{text}'}}}}
spec: {{ports: [{{name: http, port: 80}}], {spec}}}
"
    )
}

/// The weights of `default/web`'s endpoints as `ADDRESS WEIGHT` lines.
fn weights(manifests: &str) -> Vec<String> {
    let model = model(manifests);
    let endpoints = &model.endpoints[&ObjectName::new("default", "web")];
    let all = endpoints.ports.values().flatten();
    all.map(|endpoint| format!("{} {}", endpoint.address, endpoint.weight)).collect()
}

#[test]
fn weights_are_of_pods_before_nodes_before_zones() {
    let nodes = node("n1", "labels: {topology.kubernetes.io/zone: a}", "")
        + &node("n2", "labels: {topology.kubernetes.io/zone: a}", "");
    let text = "zone/a=3, node/n2=2, pod/web-0=0, zone/b=9";
    let body = "endpoints:
- {addresses: [10.244.0.2], nodeName: n1, targetRef: {kind: Pod, name: web-0}}
- {addresses: [10.244.0.3], nodeName: n1, targetRef: {kind: VM, name: web-0}}
- {addresses: [10.244.0.4], nodeName: n2, targetRef: {kind: Pod, name: web-1}}
- {addresses: [10.244.0.5], nodeName: n9, zone: b}
- {addresses: [10.244.0.6]}";
    let expected = ["10.244.0.2 0", "10.244.0.3 3", "10.244.0.4 2", "10.244.0.5 9", "10.244.0.6 1"];
    assert_eq!(weights(&(weighted(text, "") + &nodes + &slice("", body))), expected);

    let legacy = "---
apiVersion: v1
kind: Endpoints
metadata: {name: web}
subsets:
- addresses: [{ip: 10.244.0.2, nodeName: n1, targetRef: {kind: Pod, name: web-0}}, {ip: 10.244.0.3, nodeName: n2}]
  ports: [{name: http, port: 80}]
";
    let expected = ["10.244.0.2 0", "10.244.0.3 2"];
    assert_eq!(weights(&(weighted(text, "") + &nodes + legacy)), expected);

    let pods = pod("web-0", "", &ready("10.244.0.2")) + &pod("web-1", "", &ready("10.244.0.3"));
    let of_pods = weighted(text, "selector: {app: web}");
    assert_eq!(weights(&(of_pods + &nodes + &pods)), ["10.244.0.2 0", "10.244.0.3 3"]);
}

/// The hints of `default/web`'s endpoints as `ADDRESS zones [..] nodes [..]` lines.
fn hints(model: &Model) -> Vec<String> {
    let endpoints = &model.endpoints[&ObjectName::new("default", "web")];
    let all = endpoints.ports.values().flatten().map(|endpoint| {
        let (zones, nodes) = (endpoint.hints.zones.join(","), endpoint.hints.nodes.join(","));
        format!("{} zones [{zones}] nodes [{nodes}]", endpoint.address)
    });
    all.collect()
}

#[test]
fn slices_say_whose_clients_an_endpoint_is_meant_for() {
    let body = "endpoints:
- {addresses: [10.244.0.2], hints: {forZones: [{name: a}, {name: b}]}}
- {addresses: [10.244.0.3], hints: {forZones: [{name: b}], forNodes: [{name: n1}]}}
- {addresses: [10.244.0.4], zone: c}";
    // What the Service asks for was for whoever made the slices to see to.
    let text = service("trafficDistribution: PreferClose, ports: [{name: http, port: 80}]");
    assert_eq!(
        hints(&model(&(text.clone() + &slice("", body)))),
        [
            "10.244.0.2 zones [a,b] nodes []",
            "10.244.0.3 zones [b] nodes [n1]",
            "10.244.0.4 zones [] nodes []",
        ]
    );
    let nameless = "endpoints: [{addresses: [10.244.0.2], hints: {forNodes: [{name: ''}]}}]";
    let problems = read(&(text + &slice("", nameless))).problems;
    let expected = "EndpointSlice default/one: endpoints[0].hints.forNodes[0].name: needs a name";
    assert!(problems[0].to_string().ends_with(expected), "{problems:?}");
}

fn node(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Node
metadata: {{name: {name}, {metadata}}}
spec: {{{spec}}}
"
    )
}

#[test]
fn pods_are_meant_for_clients_close_by_where_the_service_says_so() {
    let zone = |zone: &str| format!("labels: {{topology.kubernetes.io/zone: {zone}}}");
    let unready = ready("10.244.0.9").replace("'True'", "'False'");
    let rest = node("n1", &zone("a"), "")
        + &node("n2", &zone("b"), "")
        + &node("n3", "", "")
        + &pod("a", "", &ready("10.244.0.1"))
        + &pod("b", "", &ready("10.244.0.2")).replace("n1", "n2")
        + &pod("c", "", &ready("10.244.0.3")).replace("n1", "n3")
        + &pod("d", "", &unready);
    let of = |distribution: &str, annotations: &str| {
        let spec = format!("{distribution} ports: [{{port: 80}}]");
        let metadata = format!("{{name: web, annotations: {{{annotations}}}}}");
        let web = service(&spec).replace("{name: web}", &metadata);
        hints(&read(&(web + &rest)).model)
    };
    let none = ["10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.9"]
        .map(|address| format!("{address} zones [] nodes []"));
    assert_eq!(of("", ""), none);
    for same_zone in ["PreferClose", "PreferSameZone"] {
        assert_eq!(
            of(&format!("trafficDistribution: {same_zone},"), ""),
            [
                "10.244.0.1 zones [a] nodes []",
                "10.244.0.2 zones [b] nodes []",
                "10.244.0.3 zones [] nodes []",
                "10.244.0.9 zones [] nodes []",
            ]
        );
    }
    let same_node = "trafficDistribution: PreferSameNode,";
    let by_node = [
        "10.244.0.1 zones [a] nodes [n1]",
        "10.244.0.2 zones [b] nodes [n2]",
        "10.244.0.3 zones [] nodes [n3]",
        "10.244.0.9 zones [] nodes []",
    ];
    assert_eq!(of(same_node, ""), by_node);
    // The annotation asks for something else, and counts first; of its two names the older one.
    let (mode, older) =
        ("service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints");
    assert_eq!(of(same_node, &format!("{mode}: Auto")), none);
    assert_eq!(of(same_node, &format!("{older}: auto")), none);
    assert_eq!(of(same_node, &format!("{mode}: Auto, {older}: Disabled")), by_node);
}

#[test]
fn a_word_that_says_nothing_of_distance_is_a_mistake() {
    let text = service("trafficDistribution: PreferCheap, ports: [{port: 80}]");
    let problems = read(&text).problems;
    let expected = "Service default/web: spec.trafficDistribution: unknown variant `PreferCheap`, \
                    expected one of `PreferClose`, `PreferSameZone`, `PreferSameNode`";
    assert!(problems[0].to_string().ends_with(expected), "{problems:?}");
}

#[test]
fn nodes_say_where_they_are_and_whether_they_leave() {
    let gone = "deletionTimestamp: '2026-11-20T10:00:00Z'";
    let taint = |key: &str| format!("taints: [{{key: {key}, effect: NoSchedule}}]");
    let text = node("here", "labels: {topology.kubernetes.io/zone: a, other: b}", &taint("other"))
        + &node("nowhere", "labels: {topology.kubernetes.io/zone: ''}", "")
        + &node("deleted", gone, "")
        + &node("scaled-down", "", &taint("ToBeDeletedByClusterAutoscaler"));
    let nodes = model(&text).nodes;
    let nodes = nodes.values().map(|node| (node.name.as_str(), node.zone.as_deref(), node.leaving));
    assert_eq!(
        nodes.collect::<Vec<_>>(),
        [
            ("deleted", None, true),
            ("here", Some("a"), false),
            ("nowhere", None, false),
            ("scaled-down", None, true),
        ]
    );
}

#[test]
fn the_older_endpoints_kind() {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
- apiVersion: v1
  kind: Endpoints
  metadata: {name: web}
  subsets:
  - addresses: [{ip: 192.0.2.1, nodeName: n1}]
    notReadyAddresses: [{ip: 192.0.2.2}]
    ports: [{port: 8080}]
  - addresses: [{ip: 192.0.2.3}]
    ports: [{port: 8081}]
";
    check(
        text,
        &[" 192.0.2.1:8080@n1 Ready", " 192.0.2.2:8080@- NotReady", " 192.0.2.3:8081@- Ready"],
    );
}

#[test]
fn services_of_others_are_left_out() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: other}}
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: c}
---
apiVersion: example.com/v1
kind: Service
metadata: {name: not-that-kind-of-service}
";
    let model = model(text);
    assert!(model.services.is_empty() && model.endpoints.is_empty());
}

#[test]
fn of_a_service_of_others_the_name_is_known() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: other}}
spec: {clusterIP: 10.96.0.7, ports: [{name: http, port: 80}]}
";
    let model = model(text);
    let service = &model.services[&ObjectName::new("default", "a")];
    assert_eq!(service.foreign_ips, ["10.96.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((service.cluster_ips.len(), service.ports[0].port), (0, 80));
    assert!(model.endpoints.is_empty());
}

#[test]
fn an_external_name_is_an_alias_and_nothing_else() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {type: ExternalName, externalName: db.example.com., clusterIP: 10.96.0.9, ports: [{port: 80, nodePort: 30001}]}
";
    let model = model(text);
    let service = Service {
        name: ObjectName::new("default", "b"),
        external_name: Some("db.example.com".into()),
        ..Service::default()
    };
    assert_eq!(model.services.values().collect::<Vec<_>>(), [&service]);
    assert!(model.endpoints.is_empty());
}

/// The endpoints of `default/web` as `PORTNAME ADDRESS:PORT HOSTNAME` lines.
fn names(manifests: &str) -> Vec<String> {
    let model = model(manifests);
    let endpoints = &model.endpoints[&ObjectName::new("default", "web")];
    let lines = endpoints.ports.iter().flat_map(|(name, list)| {
        list.iter().map(move |of| {
            format!("{name} {}:{} {}", of.address, of.port, of.hostname.as_deref().unwrap_or("-"))
        })
    });
    lines.collect()
}

#[test]
fn pods_have_their_hostnames_in_the_headless_service_that_is_their_subdomain() {
    let headless = service("clusterIP: None, ports: [{name: http, port: 80}]");
    let named = |subdomain: &str| {
        pod("a", &format!("hostname: pet-0, subdomain: {subdomain}"), &ready("10.244.0.2"))
    };
    assert_eq!(names(&(headless.clone() + &named("web"))), ["http 10.244.0.2:80 pet-0"]);
    assert_eq!(names(&(headless.clone() + &named("other"))), ["http 10.244.0.2:80 -"]);
    let odd = named("web").replace("pet-0", "Pet_0");
    assert_eq!(names(&(headless + &odd)), ["http 10.244.0.2:80 -"]);
    let balanced = service("ports: [{name: http, port: 80}]");
    assert_eq!(names(&(balanced + &named("web"))), ["http 10.244.0.2:80 -"]);
}

#[test]
fn slices_and_endpoints_say_hostnames() {
    let headless = service("clusterIP: None, ports: [{name: http, port: 80}]");
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.2], hostname: pet-0}, {addresses: [10.244.0.3]}]
ports: [{name: http, port: 80}]
";
    let both = ["http 10.244.0.2:80 pet-0", "http 10.244.0.3:80 -"];
    assert_eq!(names(&(headless.clone() + slice)), both);
    let older = "---
apiVersion: v1
kind: Endpoints
metadata: {name: web}
subsets:
- addresses: [{ip: 10.244.0.2, hostname: pet-0}, {ip: 10.244.0.3}]
  ports: [{name: http, port: 80}]
";
    assert_eq!(names(&(headless + older)), both);
}

#[test]
fn endpoints_of_a_headless_service_without_ports_are_known_for_their_names() {
    let none = pod("a", "hostname: pet-0, subdomain: web", &ready("10.244.0.2"));
    assert_eq!(names(&(service("clusterIP: None") + &none)), [" 10.244.0.2:1 pet-0"]);
    let slice = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.2]}]
ports: []
";
    assert_eq!(names(&(service("clusterIP: None") + slice)), [" 10.244.0.2:1 -"]);
    // Without the port that the Service names, too.
    let named = service("clusterIP: None, ports: [{name: http, port: 80, targetPort: http}]");
    assert_eq!(names(&(named + &none)), [" 10.244.0.2:1 pet-0"]);
    let balanced = service("ports: [{name: http, port: 80, targetPort: http}]");
    assert!(names(&(balanced + &none)).is_empty());
}

#[test]
fn an_older_annotation_publishes_pods_that_are_not_ready() {
    let old = service("clusterIP: None, ports: [{port: 80}]").replace(
        "name: web",
        "name: web, annotations: {service.alpha.kubernetes.io/tolerate-unready-endpoints: 'true'}",
    );
    check(
        &(old
            + &pod(
                "a",
                "",
                "phase: Running, podIP: 10.244.0.2, conditions: [{type: Ready, status: 'False'}]",
            )),
        &[" 10.244.0.2:80@n1 Ready"],
    );
}

#[test]
fn nodes() {
    let text = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.1.0/24}
status:
  addresses:
  - {type: Hostname, address: n1}
  - {type: InternalIP, address: 192.0.2.1}
  - {type: ExternalIP, address: 198.51.100.1}
";
    let model = model(text);
    assert_eq!(model.nodes["n1"].addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(model.nodes["n1"].pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
}

#[test]
fn mistakes_are_named_with_line_and_field() {
    let problem = |text: &str| {
        let problems = read(text).problems;
        let lines = problems.iter().map(|problem| {
            let mut problem = problem.clone();
            problem.file = problem.file.map(|file| file.file_name().unwrap().into());
            problem.to_string()
        });
        lines.collect::<Vec<_>>()
    };
    let cases = [
        (
            "kind: Service\napiVersion: v1\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: http\n",
            "all.yaml:7: Service default/web: spec.ports[0].port: invalid type: string \"http\", expected a port number",
        ),
        (
            "kind: Service\napiVersion: v1\nmetadata:\n  name: web\nspec:\n  type: Sideways\n",
            "all.yaml:6: Service default/web: spec.type: unknown variant `Sideways`, expected one of \
             `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`",
        ),
        (
            "kind: Node\napiVersion: v1\nmetadata:\n  name: n1\nstatus:\n  addresses:\n  - type: InternalIP\n    address: n1\n",
            "all.yaml:8: Node n1: status.addresses[0].address: \"n1\" is no IP address",
        ),
        (
            "kind: Pod\napiVersion: v1\nmetadata:\n  name: Web_1\n",
            "all.yaml:4: metadata.name: Pod: \"Web_1\" is no name: small letters, digits, '-' and '.', a \
             letter or digit at both ends, at most 253 of them",
        ),
        ("a: 1\n", "all.yaml:1: kind: not a Kubernetes object: it says no kind"),
        (
            "apiVersion: v1\nkind: PodList\nitems:\n- metadata:\n    name: a\n  status:\n    podIP: x\n",
            "all.yaml:7: Pod default/a: status.podIP: invalid value: string \"x\", expected an IP address",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(problem(text), [expected], "{text}");
    }
}

#[test]
fn sockets_are_left_alone_where_the_pod_or_else_its_namespace_says_so() {
    let namespace = |metadata: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: default, {metadata}}}\n")
    };
    let pod = |metadata: &str| {
        let metadata = format!("{{name: a, {metadata}, labels");
        pod("a", "", "").replace("{name: a, labels", &metadata)
    };
    let says = |word: &str| format!("annotations: {{fairway.dev/socket-balancing: {word}}}");
    let (on, off, nothing) = (says("on"), says("off"), "annotations: {}".to_owned());
    for (of_namespace, of_pod, exempt) in [
        (&nothing, &nothing, false),
        (&nothing, &off, true),
        (&nothing, &on, false),
        (&off, &nothing, true),
        (&off, &on, false),
        (&on, &off, true),
        (&on, &nothing, false),
    ] {
        let pods = model(&(namespace(of_namespace) + &pod(of_pod))).pods;
        let found = pods.values().map(|pod| pod.sockets_exempt);
        assert_eq!(found.collect::<Vec<_>>(), [exempt], "{of_namespace} {of_pod}");
    }
    // Nothing is known of the namespace.
    assert!(!model(&pod(&nothing)).pods.values().any(|pod| pod.sockets_exempt));

    let wrong = says("'yes'");
    let problems = read(&(namespace(&wrong) + &pod(&wrong))).problems;
    let what =
        "metadata.annotations.fairway.dev/socket-balancing: \"yes\" is neither \"on\" nor \"off\"";
    for (problem, object) in problems.iter().zip(["Namespace default", "Pod default/a"]) {
        assert!(problem.to_string().ends_with(&format!(": {object}: {what}")), "{problem}");
    }
    assert_eq!(problems.len(), 2);
}

#[test]
fn pods_are_those_with_an_interface_of_their_own() {
    let manifest = |name: &str, metadata: &str, spec: &str, phase: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, {metadata}}}
spec: {{{spec}}}
status: {{phase: {phase}}}
"
        )
    };
    let mirror = "uid: c, annotations: {kubernetes.io/config.mirror: 0d9a, other: x}";
    let manifests = [
        manifest("cart", "uid: a", "nodeName: n1", "Pending"),
        manifest("by-hand", "", "nodeName: n2", "Running"),
        manifest(
            "leaving",
            "uid: b, deletionTimestamp: 2026-11-20T10:00:00Z",
            "nodeName: n1",
            "Running",
        ),
        manifest("static-n1", mirror, "nodeName: n1", "Running"),
        manifest("unscheduled", "uid: d", "", "Pending"),
        manifest("on-the-host", "uid: e", "nodeName: n1, hostNetwork: true", "Running"),
        manifest("done", "uid: f", "nodeName: n1", "Succeeded"),
        manifest("broken", "uid: g", "nodeName: n1", "Failed"),
    ];
    let model = model(&manifests.concat());
    let pods = model.pods.values().map(|pod| format!("{} {:?} {}", pod.name, pod.uid, pod.node));
    let expected = [
        "shop/by-hand \"\" n2",
        "shop/cart \"a\" n1",
        "shop/leaving \"b\" n1",
        "shop/static-n1 \"0d9a\" n1",
    ];
    assert_eq!(pods.collect::<Vec<_>>(), expected);
}
