//! What NetworkPolicies and cluster-wide policies come to: whom they restrict, and whom their rules mean.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use fairway_controlplane::manifests::{self, Checked, DEFAULT_NODE_PORTS};
use fairway_model::{Action, Model, Policy, PortMatch, Rule, Selection};

/// Namespaces `shop` (env=prod), `lab` (env=test) and one that no object tells of; a pod on its node's
/// network; one that has ended, one that is ending and one without an address.
const CLUSTER: &str = "
---
apiVersion: v1
kind: NamespaceList
items:
- metadata: {name: shop, labels: {env: prod, team: a}}
- metadata: {name: lab, labels: {env: test, kubernetes.io/metadata.name: a-lie}}
---
apiVersion: v1
kind: NodeList
items:
- metadata: {name: n1, labels: {disk: ssd}}
  status:
    addresses:
    - {type: InternalIP, address: 192.0.2.1}
    - {type: ExternalIP, address: 203.0.113.1}
    - {type: Hostname, address: n1}
- metadata: {name: n2}
  status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: PodList
items:
- metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}
  spec:
    nodeName: n1
    containers:
    - ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]
    initContainers:
    - {restartPolicy: Always, ports: [{name: side, containerPort: 9000}]}
    - {ports: [{name: once, containerPort: 9001}]}
  status: {phase: Running, podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
- metadata: {name: api, namespace: shop, labels: {app: api, tier: back}}
  spec: {nodeName: n1, containers: [{ports: [{name: http, containerPort: 80}]}]}
  status: {phase: Running, podIP: 10.0.0.3}
- metadata: {name: agent, namespace: shop, labels: {app: web}}
  spec: {nodeName: n1, hostNetwork: true}
  status: {phase: Running, podIP: 192.0.2.1}
- metadata: {name: done, namespace: shop, labels: {app: web}}
  spec: {nodeName: n1}
  status: {phase: Succeeded, podIP: 10.0.0.2}
- metadata: {name: ending, namespace: shop, labels: {app: web}, deletionTimestamp: now}
  spec: {nodeName: n2}
  status: {phase: Running, podIP: 10.0.1.2}
- metadata: {name: young, namespace: shop, labels: {app: web}}
  spec: {nodeName: n2}
- metadata: {name: probe, namespace: lab, labels: {app: probe}}
  spec: {nodeName: n2}
  status: {phase: Running, podIP: 10.0.1.3}
- metadata: {name: web, labels: {app: web}}
  spec: {nodeName: n2}
  status: {phase: Running, podIP: 10.0.1.4}
";

fn read(policies: &str) -> Checked {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a-cluster.yaml"), CLUSTER).unwrap();
    std::fs::write(folder.path().join("policies.yaml"), policies).unwrap();
    let cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    let checked = manifests::check(&[folder.path().to_owned()], cidrs, DEFAULT_NODE_PORTS).unwrap();
    checked.model.validate().unwrap();
    checked
}

fn model(policies: &str) -> Model {
    let checked = read(policies);
    assert_eq!(checked.problems, [], "{policies}");
    checked.model
}

/// What is wrong, without files and lines.
fn problems(policies: &str) -> Vec<String> {
    let text = |problem: &manifests::Problem| {
        let text = problem.to_string();
        text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_owned())
    };
    read(policies).problems.iter().map(text).collect()
}

/// A NetworkPolicy shop/p.
fn network_policy(spec: &str) -> String {
    format!(
        "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: p, namespace: shop}}
spec: {spec}
"
    )
}

/// A ClusterNetworkPolicy c.
fn cluster_policy(spec: &str) -> String {
    format!(
        "---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: c}}
spec: {spec}
"
    )
}

fn only(model: &Model) -> &Policy {
    assert_eq!(model.policies.len(), 1);
    model.policies.values().next().unwrap()
}

/// The pods that some policy restricts, in order.
fn restricted(model: &Model) -> Vec<String> {
    let pods = model.pods.values().filter(|pod| !pod.policies.is_empty());
    pods.map(|pod| pod.name.to_string()).collect()
}

/// Each rule in a line: what it does, to whom, on which ports.
fn rules(model: &Model, rules: Option<&Vec<Rule>>) -> Vec<String> {
    let peer = |name: &String| match &model.selectors[name].means {
        Selection::Members(text) => text.clone(),
        Selection::Block { cidr, except } if except.is_empty() => cidr.to_string(),
        Selection::Block { cidr, except } => format!("{cidr} except {except:?}"),
    };
    let port = |port: &PortMatch| match port {
        PortMatch::All(protocol) => format!("{protocol}"),
        PortMatch::Range(protocol, first, last) if first == last => format!("{first}/{protocol}"),
        PortMatch::Range(protocol, first, last) => format!("{first}-{last}/{protocol}"),
        PortMatch::Named(Some(protocol), name) => format!("{name}/{protocol}"),
        PortMatch::Named(None, name) => name.clone(),
    };
    let all = rules.unwrap().iter().map(|rule| {
        let list = |all: Vec<String>, none: &str| match all.is_empty() {
            true => none.to_owned(),
            false => all.join("; "),
        };
        let peers = rule.peers.as_ref().map(|all| list(all.iter().map(peer).collect(), "nobody"));
        let ports = rule.ports.as_ref().map(|all| list(all.iter().map(port).collect(), "nothing"));
        let name = if rule.name.is_empty() { String::new() } else { format!("{}: ", rule.name) };
        let (peers, ports) =
            (peers.unwrap_or("anybody".into()), ports.unwrap_or("anything".into()));
        format!("{name}{:?} {peers} on {ports}", rule.action)
    });
    all.collect()
}

fn ingress(model: &Model) -> Vec<String> {
    rules(model, only(model).ingress.as_ref())
}

fn egress(model: &Model) -> Vec<String> {
    rules(model, only(model).egress.as_ref())
}

/// Those whom a selector with this text means, with their addresses.
fn meant(model: &Model, text: &str) -> Vec<String> {
    let text = Selection::Members(text.to_owned());
    let selector = model.selectors.values().find(|selector| selector.means == text).unwrap();
    let members = model.members.values();
    let meant =
        members.filter(|member| model.groups[&member.group].selectors.contains(&selector.name));
    let line = |member: &fairway_model::Member| {
        let addresses: Vec<_> = member.addresses.iter().map(ToString::to_string).collect();
        format!("{} {}", member.name, addresses.join(" "))
    };
    meant.map(line).collect()
}

/// Those whom the only peer of the only ingress rule of a NetworkPolicy means.
fn meant_by(peer: &str) -> (String, Vec<String>) {
    let model =
        model(&network_policy(&format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}")));
    let [rule] = &only(&model).ingress.as_ref().unwrap()[..] else { panic!("{peer}") };
    let [name] = &rule.peers.as_ref().unwrap()[..] else { panic!("{peer}") };
    let Selection::Members(text) = &model.selectors[name].means else { panic!("{peer}") };
    (text.clone(), meant(&model, text))
}

// D.6 29 and 30: which directions are restricted, and what an absent or empty list says.

#[test]
fn a_pod_is_restricted_by_the_policies_of_its_namespace_that_select_it() {
    let found = model(&network_policy("{podSelector: {matchLabels: {app: web}}}"));
    assert_eq!(restricted(&found), ["shop/ending", "shop/web", "shop/young"]);
    assert_eq!(
        restricted(&model(&network_policy("{podSelector: {matchLabels: {app: none}}}"))),
        [""; 0]
    );
    let all = ["shop/api", "shop/ending", "shop/web", "shop/young"];
    assert_eq!(restricted(&model(&network_policy("{podSelector: {}}"))), all);
    assert_eq!(restricted(&model(&network_policy("{}"))), all);

    let two = format!(
        "{}{}",
        network_policy("{podSelector: {}}"),
        network_policy("{podSelector: {matchLabels: {app: web}}}").replace("name: p", "name: a")
    );
    let found = model(&two);
    let web = &found.pods.values().find(|pod| pod.name.name == "young").unwrap().policies;
    let names: Vec<_> = web.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["NetworkPolicy shop/a", "NetworkPolicy shop/p"]);
}

#[test]
fn policy_types_say_the_directions_and_absent_ones_follow_the_rules() {
    let directions = |spec: &str| {
        let checked = read(&network_policy(spec));
        let policy = only(&checked.model);
        (policy.ingress.is_some(), policy.egress.is_some())
    };
    for (spec, expected) in [
        ("{}", (true, false)),
        ("{ingress: [{}]}", (true, false)),
        ("{egress: [{}]}", (true, true)),
        ("{egress: []}", (true, true)),
        ("{policyTypes: []}", (true, false)),
        ("{policyTypes: [Ingress]}", (true, false)),
        ("{policyTypes: [Egress]}", (false, true)),
        ("{policyTypes: [Egress, Ingress]}", (true, true)),
        ("{policyTypes: [Ingress], egress: [{}]}", (true, false)),
        ("{policyTypes: [Egress], ingress: [{}]}", (false, true)),
    ] {
        assert_eq!(directions(spec), expected, "{spec}");
    }
    assert_eq!(
        problems(&network_policy("{policyTypes: [Ingress], egress: [{}]}")),
        [
            "warning: NetworkPolicy shop/p: spec.egress: not in force: policyTypes does not say Egress"
        ]
    );
}

#[test]
fn an_absent_or_empty_list_of_peers_or_ports_is_anything() {
    assert_eq!(ingress(&model(&network_policy("{ingress: []}"))), [""; 0]);
    assert_eq!(ingress(&model(&network_policy("{policyTypes: [Ingress]}"))), [""; 0]);
    for rule in ["{}", "{from: []}", "{ports: []}", "{from: [], ports: []}", "{from: , ports: }"] {
        let found = model(&network_policy(&format!("{{ingress: [{rule}]}}")));
        assert_eq!(ingress(&found), ["Accept anybody on anything"], "{rule}");
        let rule = rule.replace("from", "to");
        let found = model(&network_policy(&format!("{{egress: [{rule}]}}")));
        assert_eq!(egress(&found), ["Accept anybody on anything"], "{rule}");
    }
}

// D.6 31: selectors of peers.

#[test]
fn a_pod_selector_alone_means_the_policys_namespace() {
    let (text, meant) = meant_by("{podSelector: {matchLabels: {app: web}}}");
    assert_eq!(text, "pods app=web in namespace shop");
    assert_eq!(meant, ["shop/ending 10.0.1.2", "shop/web 10.0.0.2 fd00::2"]);
}

#[test]
fn a_namespace_selector_alone_means_all_their_pods() {
    let (text, meant) = meant_by("{namespaceSelector: {matchLabels: {env: test}}}");
    assert_eq!(text, "all pods in namespaces env=test");
    assert_eq!(meant, ["lab/probe 10.0.1.3"]);
}

#[test]
fn both_selectors_in_one_peer_must_match_and_one_of_two_peers() {
    let both =
        "{namespaceSelector: {matchLabels: {env: prod}}, podSelector: {matchLabels: {app: api}}}";
    let (text, meant) = meant_by(both);
    assert_eq!(text, "pods app=api in namespaces env=prod");
    assert_eq!(meant, ["shop/api 10.0.0.3"]);

    let either =
        "{namespaceSelector: {matchLabels: {env: test}}}, {podSelector: {matchLabels: {app: api}}}";
    let found = model(&network_policy(&format!("{{ingress: [{{from: [{either}]}}]}}")));
    let expected =
        "Accept all pods in namespaces env=test; pods app=api in namespace shop on anything";
    assert_eq!(ingress(&found), [expected]);
}

#[test]
fn an_empty_selector_means_all() {
    let (text, meant) = meant_by("{podSelector: {}}");
    assert_eq!(text, "all pods in namespace shop");
    assert_eq!(meant, ["shop/api 10.0.0.3", "shop/ending 10.0.1.2", "shop/web 10.0.0.2 fd00::2"]);
    let (text, meant) = meant_by("{namespaceSelector: {}}");
    assert_eq!(text, "all pods in all namespaces");
    let others = [
        "default/web 10.0.1.4",
        "kube-system/DNS of each node 169.254.20.10 fded:a7e2:7c16::a",
        "lab/probe 10.0.1.3",
    ];
    assert_eq!(meant[..3], others);
    assert_eq!(meant.len(), 6);
}

#[test]
fn the_agents_that_answer_dns_are_pods_like_those_of_coredns() {
    const DNS: &str = "kube-system/DNS of each node 169.254.20.10 fded:a7e2:7c16::a";
    const NAMESPACE: &str =
        "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}";
    for peer in [
        format!("{{{NAMESPACE}, podSelector: {{matchLabels: {{k8s-app: kube-dns}}}}}}"),
        format!("{{{NAMESPACE}}}"),
        "{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}".to_owned(),
    ] {
        assert_eq!(meant_by(&peer).1, [DNS], "{peer}");
    }
    let other = format!("{{{NAMESPACE}, podSelector: {{matchLabels: {{k8s-app: web}}}}}}");
    assert_eq!(meant_by(&other).1, [""; 0]);
    // Nothing of the kind is a pod that could be restricted.
    let found = model(&network_policy("{podSelector: {}}").replace("shop", "kube-system"));
    assert_eq!(restricted(&found), [""; 0]);
    assert!(found.pods.values().all(|pod| pod.name.namespace != "kube-system"));
}

#[test]
fn a_null_selector_selects_nothing() {
    for peer in ["{podSelector: null}", "{}"] {
        let found = problems(&network_policy(&format!("{{ingress: [{{from: [{peer}]}}]}}")));
        let expected = "NetworkPolicy shop/p: spec.ingress[0].from[0]: needs a podSelector, a \
                        namespaceSelector or an ipBlock";
        assert_eq!(found[1], expected);
    }
    let (text, _) = meant_by("{namespaceSelector: null, podSelector: {}}");
    assert_eq!(text, "all pods in namespace shop");
}

#[test]
fn every_namespace_has_the_label_with_its_name() {
    for (namespace, expected) in
        [("default", "default/web 10.0.1.4"), ("lab", "lab/probe 10.0.1.3")]
    {
        let label = format!("kubernetes.io/metadata.name: {namespace}");
        let (text, meant) =
            meant_by(&format!("{{namespaceSelector: {{matchLabels: {{{label}}}}}}}"));
        assert_eq!(text, format!("all pods in namespace {namespace}"));
        assert_eq!(meant, [expected]);
    }
    let lie = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a-lie}}}";
    assert_eq!(meant_by(lie).1, [""; 0]);
}

#[test]
fn all_operators_of_selectors_work() {
    for (expression, expected) in [
        ("{key: app, operator: In, values: [web, api]}", &["api", "ending", "web"][..]),
        ("{key: app, operator: NotIn, values: [web]}", &["api"]),
        ("{key: tier, operator: NotIn, values: [back]}", &["ending", "web"]),
        ("{key: tier, operator: Exists}", &["api", "web"]),
        ("{key: tier, operator: DoesNotExist}", &["ending"]),
    ] {
        let (_, meant) =
            meant_by(&format!("{{podSelector: {{matchExpressions: [{expression}]}}}}"));
        let names = meant.iter().map(|line| line["shop/".len()..].split(' ').next().unwrap());
        assert_eq!(names.collect::<Vec<_>>(), expected, "{expression}");
    }
}

// D.6 32: ranges of addresses.

#[test]
fn a_range_is_less_its_exceptions_and_no_group() {
    let block = "{ipBlock: {cidr: 10.1.2.3/8, except: [10.2.0.0/16, 10.1.0.0/16, 10.2.0.0/16]}}";
    let spec = format!("{{ingress: [{{from: [{block}, {{ipBlock: {{cidr: 10.1.0.0/16}}}}]}}]}}");
    let found = model(&network_policy(&spec));
    let expected = "Accept 10.0.0.0/8 except [10.1.0.0/16, 10.2.0.0/16]; 10.1.0.0/16 on anything";
    assert_eq!(ingress(&found), [expected]);
    assert!(found.members.is_empty() && found.groups.is_empty());
}

// D.6 33: ports.

#[test]
fn ports_are_numbers_names_ranges_or_all_of_a_protocol() {
    let ports = "{port: 80}, {port: 53, protocol: UDP}, {port: 7, protocol: SCTP, endPort: 9}, \
                 {port: 5, endPort: 5}, {port: http}, {protocol: UDP}";
    let found = model(&network_policy(&format!("{{ingress: [{{ports: [{ports}]}}]}}")));
    let expected = "Accept anybody on 80/TCP; 53/UDP; 7-9/SCTP; 5/TCP; http/TCP; UDP";
    assert_eq!(ingress(&found), [expected]);
}

#[test]
fn a_port_that_a_rule_names_is_looked_up_at_each_restricted_pod() {
    let ports = "{port: http}, {port: dns, protocol: UDP}, {port: side}, {port: once}";
    let found = model(&network_policy(&format!("{{ingress: [{{ports: [{ports}]}}]}}")));
    let ports = |name: &str| {
        let pod = found.pods.values().find(|pod| pod.name.to_string() == name).unwrap();
        let line = |port: &fairway_model::NamedPort| {
            format!("{} {} {}", port.name, port.protocol, port.port)
        };
        pod.ports.iter().map(line).collect::<Vec<_>>()
    };
    // A container that ends before the others begin has no ports.
    assert_eq!(ports("shop/web"), ["dns UDP 53", "http TCP 8080", "side TCP 9000"]);
    assert_eq!(ports("shop/api"), ["http TCP 80"]);
    assert_eq!(ports("default/web"), [""; 0]);
    // Nobody asks for the name with that protocol.
    let found = model(&network_policy("{ingress: [{ports: [{port: http, protocol: UDP}]}]}"));
    assert!(found.pods.values().all(|pod| pod.ports.is_empty()));
}

#[test]
fn a_port_that_a_rule_names_is_looked_up_at_each_destination() {
    let to_shop = "{egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}";
    let found = model(&network_policy(to_shop));
    let ports = |name: &str| {
        let member = found.members.values().find(|member| member.name.to_string() == name);
        let group = &found.groups[&member.unwrap().group];
        group.ports.iter().map(|port| (port.name.as_str(), port.port)).collect::<Vec<_>>()
    };
    assert_eq!(ports("shop/web"), [("http", 8080)]);
    assert_eq!(ports("shop/api"), [("http", 80)]);
    assert_eq!(ports("shop/ending"), []);
    assert!(found.members.values().all(|member| member.name.namespace == "shop"));
    assert!(found.pods.values().all(|pod| pod.ports.is_empty()), "those are for what it receives");

    // Of anybody: of any pod; with a number beside it, of anybody else, too.
    let anybody = model(&network_policy("{egress: [{ports: [{port: http}]}]}"));
    assert_eq!(egress(&anybody), ["Accept all pods in all namespaces on http/TCP"]);
    let both = model(&network_policy("{egress: [{ports: [{port: http}, {port: 53}]}]}"));
    let by_name = "ports that egress[0] names: Accept all pods in all namespaces on http/TCP";
    assert_eq!(egress(&both), ["Accept anybody on 53/TCP", by_name]);

    let block = "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: http}]}]}";
    let expected = "warning: NetworkPolicy shop/p: spec.egress[0].ports[0].port: a name means \
                    nothing to those who only an ipBlock matches";
    assert_eq!(problems(&network_policy(block)), [expected]);
    let block = "{ipBlock: {cidr: 10.0.0.0/8}}";
    let pods = "{podSelector: {}}";
    for (to, ports, expected) in [
        (block.to_owned(), "{port: http}", &["Accept nobody on http/TCP"][..]),
        (block.to_owned(), "{port: http}, {port: 53}", &["Accept 10.0.0.0/8 on 53/TCP"]),
        (
            format!("{block}, {pods}"),
            "{port: http}",
            &["Accept all pods in namespace shop on http/TCP"],
        ),
        (
            format!("{block}, {pods}"),
            "{port: http}, {port: 53}",
            &[
                "Accept 10.0.0.0/8; all pods in namespace shop on 53/TCP",
                "ports that egress[0] names: Accept all pods in namespace shop on http/TCP",
            ],
        ),
    ] {
        let spec = format!("{{egress: [{{to: [{to}], ports: [{ports}]}}]}}");
        assert_eq!(egress(&read(&network_policy(&spec)).model), expected, "{spec}");
    }
}

// D.6 37, 39 and 41: who is a pod.

#[test]
fn pods_on_their_nodes_network_are_neither_restricted_nor_meant() {
    let found = model(&network_policy("{ingress: [{from: [{podSelector: {}}]}]}"));
    assert!(!restricted(&found).contains(&"shop/agent".to_owned()));
    let node = "192.0.2.1".parse().unwrap();
    assert!(found.members.values().all(|member| !member.addresses.contains(&node)));
}

#[test]
fn a_pod_is_restricted_before_it_has_an_address_and_meant_once_it_has_one() {
    let found = model(&network_policy("{ingress: [{from: [{podSelector: {}}]}]}"));
    assert!(restricted(&found).contains(&"shop/young".to_owned()));
    assert!(found.members.values().all(|member| member.name.name != "young"));
}

#[test]
fn a_pod_that_is_ending_stays_and_one_that_has_ended_is_gone() {
    let found = model(&network_policy("{ingress: [{from: [{podSelector: {}}]}]}"));
    assert!(restricted(&found).contains(&"shop/ending".to_owned()));
    assert!(found.members.values().any(|member| member.name.name == "ending"));
    assert!(found.members.values().all(|member| member.name.name != "done"));
    assert!(found.pods.values().all(|pod| pod.name.name != "done"));
}

#[test]
fn a_member_has_its_addresses_of_both_families() {
    let (_, meant) = meant_by("{podSelector: {matchLabels: {tier: front}}}");
    assert_eq!(meant, ["shop/web 10.0.0.2 fd00::2"]);
}

// D.7 43 to 47: policies of the whole cluster.

/// A policy of all namespaces with these rules.
fn everywhere(rules: &str) -> String {
    cluster_policy(&format!("{{tier: Admin, priority: 5, subject: {{namespaces: {{}}}}, {rules}}}"))
}

#[test]
fn tier_priority_and_actions_are_as_written() {
    for (tier, expected) in
        [("Admin", fairway_model::Tier::Admin), ("Baseline", fairway_model::Tier::Baseline)]
    {
        let action = |action: &str| {
            format!("{{name: to-{action}, action: {action}, from: [{{namespaces: {{}}}}]}}")
        };
        let rules = ["Pass", "Deny", "Accept"].map(action).join(", ");
        let spec = format!(
            "{{tier: {tier}, priority: 1000, subject: {{namespaces: {{}}}}, ingress: [{rules}]}}"
        );
        let found = model(&cluster_policy(&spec));
        let policy = only(&found);
        assert_eq!((policy.tier, policy.priority), (expected, 1000));
        assert_eq!(policy.name.to_string(), "ClusterNetworkPolicy c");
        let whom = "all pods in all namespaces on anything";
        let expected =
            ["Pass", "Deny", "Accept"].map(|action| format!("to-{action}: {action} {whom}"));
        assert_eq!(ingress(&found), expected);
        // No rules, no restriction.
        assert_eq!(policy.egress, None);
    }
}

#[test]
fn a_subject_is_namespaces_or_pods_of_them() {
    let subject = |subject: &str| {
        let spec = format!("{{tier: Admin, priority: 0, subject: {subject}}}");
        restricted(&model(&cluster_policy(&spec)))
    };
    assert_eq!(subject("{namespaces: {matchLabels: {env: test}}}"), ["lab/probe"]);
    let web = "podSelector: {matchLabels: {tier: front}}";
    assert_eq!(subject(&format!("{{pods: {{namespaceSelector: {{}}, {web}}}}}")), ["shop/web"]);
    assert_eq!(subject(&format!("{{pods: {{{web}}}}}")), ["shop/web"]);
    let all = subject("{namespaces: {}}");
    let expected =
        ["default/web", "lab/probe", "shop/api", "shop/ending", "shop/web", "shop/young"];
    assert_eq!(all, expected);
}

#[test]
fn what_is_sent_may_be_to_namespaces_pods_nodes_and_networks() {
    let peers = "{namespaces: {matchLabels: {env: prod}}}, \
                 {pods: {podSelector: {matchLabels: {app: web}}}}, \
                 {nodes: {matchLabels: {disk: ssd}}}, {nodes: {}}, \
                 {networks: [10.0.0.0/8, 'fd00::/8']}";
    let found = model(&everywhere(&format!("egress: [{{action: Deny, to: [{peers}]}}]")));
    let expected = "Deny all pods in namespaces env=prod; pods app=web in all namespaces; \
                    nodes disk=ssd; all nodes; 10.0.0.0/8; fd00::/8 on anything";
    assert_eq!(egress(&found), [expected]);
    // All addresses of its status; those of type Hostname are none.
    assert_eq!(meant(&found, "nodes disk=ssd"), ["/n1 192.0.2.1 203.0.113.1"]);
    assert_eq!(meant(&found, "all nodes"), ["/n1 192.0.2.1 203.0.113.1", "/n2 192.0.2.2"]);
    assert_eq!(meant(&found, "pods app=web in all namespaces").len(), 3);
}

#[test]
fn protocols_have_numbers_ranges_or_a_ports_name() {
    let protocols = "{tcp: {destinationPort: {number: 80}}}, \
                     {udp: {destinationPort: {range: {start: 5, end: 9}}}}, \
                     {sctp: {destinationPort: {number: 7}}}, {destinationNamedPort: http}";
    let rule = format!("{{action: Accept, to: [{{namespaces: {{}}}}], protocols: [{protocols}]}}");
    let found = model(&everywhere(&format!("egress: [{rule}]")));
    let expected = "Accept all pods in all namespaces on 80/TCP; 5-9/UDP; 7/SCTP; http";
    assert_eq!(egress(&found), [expected]);
    let is_web =
        |member: &&fairway_model::Member| member.name.name == "web" && member.addresses.len() == 2;
    let of_web = found.members.values().find(is_web).unwrap();
    assert_eq!(found.groups[&of_web.group].ports[0].port, 8080);
}

#[test]
fn a_peer_that_says_nothing_known_fails_closed() {
    for (direction, list, peer, said) in [
        ("ingress", "from", "{}", "nothing"),
        ("ingress", "from", "{clouds: {}}", "clouds"),
        ("ingress", "from", "{networks: [10.0.0.0/8]}", "networks"),
        ("ingress", "from", "{nodes: {}}", "nodes"),
        ("egress", "to", "{}", "nothing"),
        ("egress", "to", "{domainNames: [example.org]}", "domainNames"),
    ] {
        for (action, expected, outcome) in [
            ("Accept", "Accept nobody on 80/TCP", "matches nobody"),
            ("Deny", "Deny anybody on anything", "denies everything"),
            ("Pass", "Deny anybody on anything", "denies everything"),
        ] {
            let peers = format!("{list}: [{{namespaces: {{}}}}, {peer}]");
            let ports = "protocols: [{tcp: {destinationPort: {number: 80}}}]";
            let text =
                everywhere(&format!("{direction}: [{{action: {action}, {peers}, {ports}}}]"));
            let checked = read(&text);
            let policy = only(&checked.model);
            let both = policy.ingress.as_ref().or(policy.egress.as_ref());
            assert_eq!(rules(&checked.model, both), [expected], "{peer}");
            let expected = format!(
                "warning: ClusterNetworkPolicy c: spec.{direction}[0].{list}[1]: says {said}, \
                 which is no peer that is known here: its rule {outcome}"
            );
            assert_eq!(problems(&text), [expected]);
        }
    }
}

#[test]
fn the_older_cluster_wide_kinds_mean_the_same() {
    let of = |kind: &str, name: &str, spec: &str| {
        let version = "policy.networking.k8s.io/v1alpha1";
        format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    };
    let rules_text =
        "subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}},
  ingress: [{name: in, action: Allow, from: [{namespaces: {}}], ports: [
    {portNumber: {protocol: UDP, port: 53}}, {portRange: {start: 1, end: 2}}, {namedPort: http}]}],
  egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}, {nodes: {}}]}]";
    let admin = model(&of("AdminNetworkPolicy", "a", &format!("{{priority: 7, {rules_text}}}")));
    let baseline =
        model(&of("BaselineAdminNetworkPolicy", "default", &format!("{{{rules_text}}}")));
    for (found, tier, priority) in
        [(&admin, fairway_model::Tier::Admin, 7), (&baseline, fairway_model::Tier::Baseline, 1000)]
    {
        let policy = only(found);
        assert_eq!((policy.tier, policy.priority), (tier, priority));
        let expected = "in: Accept all pods in all namespaces on 53/UDP; 1-2/TCP; http";
        assert_eq!(ingress(found), [expected]);
        assert_eq!(egress(found), ["Deny 0.0.0.0/0; all nodes on anything"]);
        let web = ["default/web", "shop/ending", "shop/web", "shop/young"];
        assert_eq!(restricted(found), web);
    }
}

// What is wrong with a policy is said, and what cannot be read denies.

/// That this is wrong with the policy, which never was any better.
fn refused(policy: &str, expected: &str) {
    let found = problems(policy);
    let (object, expected) = expected.split_once(": ").unwrap();
    let never = format!(
        "{object}: it never could be read, so that what it may restrict is denied until it is \
         mended or removed"
    );
    // Of a policy of the whole cluster, that takes a subject.
    let denies = !expected.starts_with("spec") || !expected.contains("subject");
    assert!(!denies || found.contains(&never), "{policy}\n{found:#?}");
    assert!(found.contains(&format!("{object}: {expected}")), "{policy}\n{found:#?}\n{expected}");
}

#[test]
fn a_wrong_network_policy_is_refused_by_field() {
    let object = "NetworkPolicy shop/p";
    for (spec, expected) in [
        (
            "{ingres: []}",
            "spec.ingres: unknown field `ingres`, expected one of `podSelector`, `policyTypes`, `ingress`, `egress`",
        ),
        (
            "{ingress: [{form: []}]}",
            "spec.ingress[0].form: unknown field `form`, expected `from` or `ports`",
        ),
        (
            "{ingress: [{from: [{podSelektor: {}}]}]}",
            "spec.ingress[0].from[0].podSelektor: unknown field `podSelektor`, expected one of `podSelector`, `namespaceSelector`, `ipBlock`",
        ),
        (
            "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}",
            "spec.ingress[0].from[0].ipBlock.cidr: invalid IP address syntax",
        ),
        (
            "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}",
            "spec.ingress[0].from[0].ipBlock.cidr: invalid IP address syntax",
        ),
        (
            "{ingress: [{from: [{ipBlock: {}}]}]}",
            "spec.ingress[0].from[0].ipBlock: missing field `cidr`",
        ),
        (
            "{egress: [{to: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]}",
            "spec.egress[0].to[0].ipBlock.cidr: ::ffff:10.0.0.0/104 is an IPv4 range within IPv6",
        ),
        (
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]}]}",
            "spec.egress[0].to[0].ipBlock.except[1]: 11.0.0.0/16 is no part of 10.0.0.0/8",
        ),
        (
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
            "spec.egress[0].to[0].ipBlock.except[0]: 10.0.0.0/8 is no part of 10.0.0.0/8",
        ),
        (
            "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/64']}}]}]}",
            "spec.egress[0].to[0].ipBlock.except[0]: fd00::/64 is no part of 10.0.0.0/8",
        ),
        (
            "{egress: [{to: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
            "spec.egress[0].to[0].ipBlock: cannot stand beside selectors in one peer",
        ),
        (
            "{ingress: [{ports: [{port: 0}]}]}",
            "spec.ingress[0].ports[0].port: 0 is no port; ports are 1 to 65535",
        ),
        (
            "{ingress: [{ports: [{port: Http_Port}]}]}",
            "spec.ingress[0].ports[0].port: \"Http_Port\" is neither a port's number nor its name",
        ),
        (
            "{ingress: [{ports: [{port: '80'}]}]}",
            "spec.ingress[0].ports[0].port: \"80\" is neither a port's number nor its name",
        ),
        (
            "{ingress: [{ports: [{port: 80, protocol: ICMP}]}]}",
            "spec.ingress[0].ports[0].protocol: unknown variant `ICMP`, expected one of `TCP`, `UDP`, `SCTP`",
        ),
        (
            "{ingress: [{ports: [{port: 80, endPort: 79}]}]}",
            "spec.ingress[0].ports[0].endPort: 79 is less than port 80",
        ),
        (
            "{ingress: [{ports: [{endPort: 79}]}]}",
            "spec.ingress[0].ports[0].endPort: no range is without a port to begin with",
        ),
        (
            "{ingress: [{ports: [{port: http, endPort: 79}]}]}",
            "spec.ingress[0].ports[0].endPort: no range begins with a name such as \"http\"",
        ),
        (
            "{policyTypes: [Inside]}",
            "spec.policyTypes[0]: unknown variant `Inside`, expected `Ingress` or `Egress`",
        ),
        (
            "{podSelector: {matchLabels: {a: -b}}}",
            "spec.podSelector.matchLabels.a: \"-b\" is no label's value",
        ),
        (
            "{podSelector: {matchLabels: {a/b/c: d}}}",
            "spec.podSelector.matchLabels.a/b/c: \"a/b/c\" is no label's key",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Is}]}}",
            "spec.podSelector.matchExpressions[0].operator: unknown variant `Is`, expected one of `In`, `NotIn`, `Exists`, `DoesNotExist`",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
            "spec.podSelector.matchExpressions[0].values: operator In needs values",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
            "spec.podSelector.matchExpressions[0].values: operator Exists takes no values",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a b, operator: Exists}]}}",
            "spec.podSelector.matchExpressions[0].key: \"a b\" is no label's key",
        ),
    ] {
        refused(&network_policy(spec), &format!("{object}: {expected}"));
    }
    let misspelt = network_policy("{}").replace("spec:", "specs:");
    refused(&misspelt, &format!("{object}: specs: unknown field `specs`, expected `spec`"));
}

#[test]
fn a_wrong_cluster_network_policy_is_refused_by_field() {
    let many = |count: usize, one: &str| vec![one; count].join(", ");
    let rule = "{action: Deny, from: [{namespaces: {}}]}";
    let with_peer = |peer: &str| format!("egress: [{{action: Deny, to: [{peer}]}}]");
    let with_port = |port: &str| {
        format!("ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{port}]}}]")
    };
    let named = "{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: http}]}";
    for (rules, expected) in [
        (
            format!("ingress: [{}]", many(26, rule)),
            "spec.ingress: 26 rules, of which there can be 25",
        ),
        (
            with_peer(&many(26, "{nodes: {}}")),
            "spec.egress[0].to: 26 peers, of which there can be 25",
        ),
        (
            with_peer(&format!("{{networks: [{}]}}", many(26, "10.0.0.0/8"))),
            "spec.egress[0].to[0].networks: 26 ranges, of which there can be 25",
        ),
        (with_peer("{networks: []}"), "spec.egress[0].to[0].networks: needs a range"),
        (
            with_peer("{networks: [10.0.0.0/8, x]}"),
            "spec.egress[0].to[0].networks[1]: invalid IP address syntax",
        ),
        (
            with_peer("{namespaces: {}, nodes: {}}"),
            "spec.egress[0].to[0]: says more than one of namespaces, pods, nodes and networks",
        ),
        (
            with_peer("{namespaces: {}, clouds: {}}"),
            "spec.egress[0].to[0].clouds: unknown field `clouds`",
        ),
        (
            with_peer("{pods: {namespaceSelector: {}}}"),
            "spec.egress[0].to[0].pods: missing field `podSelector`",
        ),
        (with_peer(""), "spec.egress[0].to: needs a peer"),
        (
            with_port(&many(26, "{tcp: {destinationPort: {number: 1}}}")),
            "spec.ingress[0].protocols: 26 protocols, of which there can be 25",
        ),
        (with_port(""), "spec.ingress[0].protocols: needs a protocol, or is to be left out"),
        (
            with_port("{tcp: {destinationPort: {range: {start: 5, end: 5}}}}"),
            "spec.ingress[0].protocols[0].tcp.destinationPort.range: start 5 is not less than end 5",
        ),
        (
            with_port("{tcp: {destinationPort: {}}}"),
            "spec.ingress[0].protocols[0].tcp.destinationPort: needs either a number or a range",
        ),
        (
            with_port("{tcp: {}}"),
            "spec.ingress[0].protocols[0].tcp: missing field `destinationPort`",
        ),
        (
            with_port("{}"),
            "spec.ingress[0].protocols[0]: needs exactly one of tcp, udp, sctp and destinationNamedPort",
        ),
        (
            with_port("{icmp: {}}"),
            "spec.ingress[0].protocols[0].icmp: unknown field `icmp`, expected one of `tcp`, `udp`, `sctp`, `destinationNamedPort`",
        ),
        (
            format!("egress: [{named}]"),
            "spec.egress[0].protocols[0].destinationNamedPort: networks and nodes have no ports with names",
        ),
        (
            "ingress: [{action: Allow, from: [{namespaces: {}}]}]".into(),
            "spec.ingress[0].action: unknown variant `Allow`, expected one of `Accept`, `Deny`, `Pass`",
        ),
        ("ingress: [{action: Deny}]".into(), "spec.ingress[0]: missing field `from`"),
        (
            format!(
                "ingress: [{{name: {}, action: Deny, from: [{{namespaces: {{}}}}]}}]",
                "x".repeat(101)
            ),
            "spec.ingress[0].name: 101 characters, of which there can be 100",
        ),
        (
            "rules: []".into(),
            "spec.rules: unknown field `rules`, expected one of `tier`, `priority`, `subject`, `ingress`, `egress`",
        ),
    ] {
        refused(&everywhere(&rules), &format!("ClusterNetworkPolicy c: {expected}"));
    }
    for (spec, expected) in [
        (
            "{tier: Middle, priority: 1, subject: {namespaces: {}}}",
            "spec.tier: unknown variant `Middle`, expected `Admin` or `Baseline`",
        ),
        (
            "{tier: Admin, priority: 1001, subject: {namespaces: {}}}",
            "spec.priority: 1001 is no priority; they are 0 to 1000",
        ),
        (
            "{tier: Admin, priority: -1, subject: {namespaces: {}}}",
            "spec.priority: -1 is no priority; they are 0 to 1000",
        ),
        (
            "{tier: Admin, priority: 1, subject: {}}",
            "spec.subject: needs either namespaces or pods",
        ),
        (
            "{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}}",
            "spec.subject: needs either namespaces or pods",
        ),
        ("{tier: Admin, priority: 1}", "spec: missing field `subject`"),
    ] {
        refused(&cluster_policy(spec), &format!("ClusterNetworkPolicy c: {expected}"));
    }
}

#[test]
fn a_network_policy_that_cannot_be_read_denies_as_far_as_it_can_be_read() {
    let web = ["shop/ending", "shop/web", "shop/young"];
    let all = ["shop/api", "shop/ending", "shop/web", "shop/young"];
    let bad = "[{from: [{}]}]";
    let selector = "podSelector: {matchLabels: {app: web}}";
    for (spec, pods, denied) in [
        (format!("{{{selector}, ingress: {bad}}}"), &web[..], (true, false)),
        (format!("{{{selector}, policyTypes: [Egress], ingress: {bad}}}"), &web, (false, true)),
        (format!("{{{selector}, egress: [{{}}], ingress: {bad}}}"), &web, (true, true)),
        (format!("{{{selector}, policyTypes: [Egres]}}"), &web, (true, true)),
        (format!("{{{selector}, egres: []}}"), &web, (true, true)),
        ("{podSelector: {matchLabels: {app: '-'}}}".into(), &all, (true, false)),
        ("{podSelektor: {matchLabels: {app: web}}}".into(), &all, (true, true)),
        ("[]".into(), &all, (true, true)),
    ] {
        let checked = read(&network_policy(&spec));
        let policy = only(&checked.model);
        assert_eq!(restricted(&checked.model), pods, "{spec}");
        let rules = (policy.ingress.clone(), policy.egress.clone());
        let expected = (denied.0.then(Vec::new), denied.1.then(Vec::new));
        assert_eq!(rules, expected, "{spec}");
    }
}

#[test]
fn a_policy_whose_name_is_none_denies() {
    for (name, expected) in [("Deny_All", "Deny_All"), ("", "unnamed"), ("'a b'", "a-b")] {
        let text = network_policy("{podSelector: {matchLabels: {app: api}}, ingress: [{}]}");
        let checked = read(&text.replace("name: p,", &format!("name: {name},")));
        let policy = only(&checked.model);
        assert_eq!(policy.name.to_string(), format!("NetworkPolicy shop/{expected}"));
        assert_eq!(
            (restricted(&checked.model), policy.ingress.clone()),
            (vec!["shop/api".into()], Some(vec![]))
        );
        let lines: Vec<_> = checked.problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines.len(), 2, "{:?}", checked.problems);
    }
}

#[test]
fn a_cluster_wide_policy_that_cannot_be_read_denies_as_far_as_it_can_be_read() {
    let deny =
        Rule { name: "this policy cannot be read".into(), action: Action::Deny, ..Rule::default() };
    let subject = "subject: {namespaces: {matchLabels: {env: test}}}";
    for (spec, pods, tier, priority, denied) in [
        (format!("{{tier: Baseline, priority: 7, {subject}, ingress: [{{}}]}}"), &["lab/probe"][..], "Baseline", 7, (true, false)),
        (format!("{{tier: Baseline, priority: 7, {subject}, egress: [{{}}]}}"), &["lab/probe"], "Baseline", 7, (false, true)),
        (format!("{{tier: Low, priority: 2000, {subject}, egres: [{{}}]}}"), &["lab/probe"], "Admin", 0, (true, true)),
        ("{priority: 7, subject: {pods: {namespaceSelector: {matchLabels: {env: test}}, podSelector: 1}}}".into(), &["lab/probe"], "Admin", 7, (true, true)),
    ] {
        let checked = read(&cluster_policy(&spec));
        let policy = only(&checked.model);
        assert_eq!(restricted(&checked.model), pods, "{spec}");
        assert_eq!((format!("{:?}", policy.tier), policy.priority), (tier.to_owned(), priority));
        let one = |denied: bool| denied.then(|| vec![deny.clone()]);
        let rules = (policy.ingress.clone(), policy.egress.clone());
        assert_eq!(rules, (one(denied.0), one(denied.1)), "{spec}");
    }
    // Whom it was meant for, nobody can tell: it is refused, and all goes on.
    for subject in ["{all: {}}", "{namespaces: 1}", "{pods: {}}", "{namespaces: {}, pods: {}}"] {
        let checked = read(&cluster_policy(&format!("{{subject: {subject}, egress: [{{}}]}}")));
        assert!(checked.model.policies.is_empty(), "{subject}");
        assert!(!checked.problems.is_empty(), "{subject}");
    }
    for kind in ["AdminNetworkPolicy", "BaselineAdminNetworkPolicy"] {
        let text = cluster_policy(&format!("{{{subject}, ingress: [{{}}]}}"));
        let checked = read(&text.replace("ClusterNetworkPolicy", kind));
        assert_eq!(restricted(&checked.model), ["lab/probe"], "{kind}");
        assert_eq!(only(&checked.model).ingress, Some(vec![deny.clone()]));
    }
}

#[test]
fn a_policy_of_a_group_that_is_not_known_is_warned_about() {
    let text = network_policy("{}").replace("networking.k8s.io/v1", "extensions/v1beta1");
    let expected = "warning: not in force: a NetworkPolicy of \"extensions/v1beta1\" is nothing \
                    that is known here; is it one of networking.k8s.io/v1?";
    assert_eq!(problems(&text), [expected]);
}
