//! Policies told and tested without a cluster, as a person runs the program.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

use std::fs;
use std::process::{Command, Output};

use fairway_controlplane::explain::{Answer, Cluster, NoAnswer};
use fairway_controlplane::manifests::DEFAULT_NODE_PORTS;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Pods as a team writes them, with neither nodes nor addresses, but for one; and one on its node's network.
const CLUSTER: &str = "
---
apiVersion: v1
kind: NamespaceList
items:
- metadata: {name: shop}
- metadata: {name: lab, labels: {env: test}}
---
apiVersion: v1
kind: NodeList
items:
- metadata: {name: n1}
  status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
- metadata: {name: n2}
  status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: PodList
items:
- metadata: {name: web, namespace: shop, labels: {app: web}}
  spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}
- metadata: {name: db, namespace: shop, labels: {app: db}}
  spec: {nodeName: n1}
- metadata: {name: probe, namespace: lab, labels: {app: probe}}
  spec: {containers: []}
  status: {podIP: 10.1.0.5}
- metadata: {name: agent, namespace: lab, labels: {app: probe}}
  spec: {nodeName: n1, hostNetwork: true}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.9, selector: {app: web}, ports: [{name: www, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: shop}
spec: {selector: {app: none}, ports: [{port: 80}]}
";

const POLICIES: &str = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
  - from: [{namespaceSelector: {matchLabels: {env: test}}}]
    ports: [{port: 9187}]
  - from: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.9/32]}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{namespaceSelector: {}}]
    ports: [{port: http}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {env: test}}}
  egress:
  - name: no-telnet
    action: Deny
    to: [{namespaces: {}}]
    protocols: [{tcp: {destinationPort: {number: 23}}}]
";

struct Run {
    dir: TempDir,
}

impl Run {
    fn new(policies: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cluster")).unwrap();
        fs::write(dir.path().join("cluster/a.yaml"), CLUSTER).unwrap();
        fs::write(dir.path().join("cluster/b.yaml"), policies).unwrap();
        Self { dir }
    }

    fn cluster(&self) -> Cluster {
        let paths = [self.dir.path().join("cluster")];
        let cidrs = vec!["10.96.0.0/12".parse().unwrap()];
        let (cluster, problems) = Cluster::read(&paths, cidrs, DEFAULT_NODE_PORTS).unwrap();
        assert_eq!(problems, []);
        cluster
    }

    fn program(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairway-controlplane"));
        command.env_remove("FAIRWAY_LOG").current_dir(self.dir.path()).args(args);
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code(), text(stdout), text(stderr))
    }
}

fn ask(cluster: &mut Cluster, from: &str, to: &str) -> Result<Vec<Answer>, NoAnswer> {
    cluster.explain(&from.parse().unwrap(), &to.parse().unwrap())
}

/// The only answer, in short: the verdict, and why at each end.
fn told(cluster: &mut Cluster, from: &str, to: &str) -> (bool, String, String) {
    let answers = ask(cluster, from, to).unwrap();
    let [answer] = &answers[..] else { panic!("{from} -> {to}: {answers:#?}") };
    assert_eq!(answer.allowed, answer.egress.allowed && answer.ingress.allowed);
    (answer.allowed, answer.egress.because.clone(), answer.ingress.because.clone())
}

#[test]
fn each_end_names_what_decides() {
    let run = Run::new(POLICIES);
    let mut cluster = run.cluster();
    let open = "no policy restricts it";
    let nobody = "it is no pod, and not restricted";
    let closed = "NetworkPolicy shop/db restricts it, and no rule allows this";
    let accepts = |rule| format!("NetworkPolicy shop/db {rule} accepts this");
    for (from, to, allowed, egress, ingress) in [
        ("pod/shop/web", "pod/shop/db:5432", true, open, &*accepts("ingress[0]")),
        ("pod/shop/web", "pod/shop/db:5433", false, open, closed),
        ("pod/shop/web", "pod/shop/db:5432/udp", false, open, closed),
        ("pod/shop/web", "pod/shop/db:icmp", false, open, closed),
        (
            "pod/lab/probe",
            "pod/shop/db:9187",
            true,
            "no rule of its policies decides",
            &*accepts("ingress[1]"),
        ),
        ("198.51.100.8", "pod/shop/db:1", true, nobody, &*accepts("ingress[2]")),
        ("198.51.100.8", "pod/shop/db:icmp", true, nobody, &*accepts("ingress[2]")),
        ("198.51.100.9", "pod/shop/db:1", false, nobody, closed),
        ("pod/shop/db", "pod/lab/probe:1", false, closed, open),
        // Of its own node, whoever speaks there; another node is anybody.
        ("node/n1", "pod/shop/db:1", true, nobody, "a node always reaches its own pods"),
        ("pod/lab/agent", "pod/shop/db:1", true, nobody, "a node always reaches its own pods"),
        ("192.0.2.1", "pod/shop/db:1", true, nobody, "a node always reaches its own pods"),
        ("node/n2", "pod/shop/db:1", false, nobody, closed),
        (
            "pod/shop/db",
            "node/n1:1",
            true,
            "what a pod sends to its own node is not restricted, unless the agent is told so",
            nobody,
        ),
        ("pod/shop/db", "node/n2:1", false, closed, nobody),
        ("pod/shop/db", "203.0.113.1:1", false, closed, nobody),
        // A pod is not kept from itself by its own policies.
        (
            "pod/shop/db",
            "pod/shop/db:1",
            true,
            "a pod's own policies leave it alone with itself",
            "a pod's own policies leave it alone with itself",
        ),
        // By the Service's endpoint, its number for a name, and the name at a pod.
        (
            "pod/lab/probe",
            "svc/shop/web:80",
            true,
            "no rule of its policies decides",
            "NetworkPolicy shop/web ingress[0] accepts this",
        ),
        (
            "pod/lab/probe",
            "svc/shop/web:www",
            true,
            "no rule of its policies decides",
            "NetworkPolicy shop/web ingress[0] accepts this",
        ),
        (
            "pod/lab/probe",
            "10.96.0.9:80",
            true,
            "no rule of its policies decides",
            "NetworkPolicy shop/web ingress[0] accepts this",
        ),
        (
            "pod/lab/probe",
            "pod/shop/web:http",
            true,
            "no rule of its policies decides",
            "NetworkPolicy shop/web ingress[0] accepts this",
        ),
        (
            "pod/lab/probe",
            "pod/shop/web:80",
            false,
            "no rule of its policies decides",
            "NetworkPolicy shop/web restricts it, and no rule allows this",
        ),
        (
            "pod/lab/probe",
            "pod/shop/web:23",
            false,
            "ClusterNetworkPolicy guard egress[0] (no-telnet) denies this",
            "NetworkPolicy shop/web restricts it, and no rule allows this",
        ),
    ] {
        let expected = (allowed, egress.to_owned(), ingress.to_owned());
        assert_eq!(told(&mut cluster, from, to), expected, "{from} -> {to}");
    }
}

#[test]
fn a_question_that_has_no_answer_says_why() {
    let run = Run::new(POLICIES);
    let mut cluster = run.cluster();
    for (from, to, expected) in [
        ("pod/shop/none", "pod/shop/db:1", "there is no pod/shop/none"),
        ("pod/shop/web", "svc/shop/db:1", "there is no svc/shop/db"),
        ("pod/shop/web", "svc/shop/web:81", "svc/shop/web has no such port as svc/shop/web:81/TCP"),
        ("pod/shop/web", "svc/shop/none:80", "svc/shop/none has no endpoint"),
        ("pod/shop/web", "pod/shop/db:http", "pod/shop/db has no port \"http\""),
        ("svc/shop/web", "pod/shop/db:1", "svc/shop/web sends nothing; name a pod of it"),
        (
            "pod/lab/probe",
            "[2001:db8::1]:1",
            "pod/lab/probe and [2001:db8::1] have no addresses of one family",
        ),
    ] {
        let error = ask(&mut cluster, from, to).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn rules_that_nearly_match_say_why_not() {
    let run = Run::new(POLICIES);
    let args = ["explain", "--manifests", "cluster", "pod/lab/probe", "pod/shop/db:5432"];
    let (code, out, error) = run.program(&args);
    let expected = "\
pod/lab/probe (10.1.0.5) -> pod/shop/db (240.0.0.3) TCP 5432: DENIED
  egress of pod/lab/probe: allowed: no rule of its policies decides
    POLICY                      RULE                   PEER  PORT  DOES
    ClusterNetworkPolicy guard  egress[0] (no-telnet)  yes   no    Deny
  ingress of pod/shop/db: denied: NetworkPolicy shop/db restricts it, and no rule allows this
    POLICY                 RULE        PEER  PORT  DOES
    NetworkPolicy shop/db  ingress[0]  no    yes   Accept
    NetworkPolicy shop/db  ingress[1]  yes   no    Accept
    NetworkPolicy shop/db  ingress[2]  no    yes   Accept
  note: the manifests give pod/shop/db no address; the one here is made up, and in no range but those of all addresses
";
    assert_eq!((code, out.as_str(), error.as_str()), (Some(0), expected, ""));

    let (code, out, _) = run.program(&[
        "explain",
        "--json",
        "--manifests",
        "cluster",
        "pod/shop/web",
        "pod/shop/db:5432",
    ]);
    let mut found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(found.as_array().map(Vec::len), Some(1), "both families alike");
    let found = found[0].take();
    assert_eq!(found["allowed"], json!(true));
    assert_eq!(found["to"], json!({"name": "pod/shop/db", "address": "240.0.0.3"}));
    assert_eq!(
        found["ingress"],
        json!({"allowed": true, "because": "NetworkPolicy shop/db ingress[0] accepts this",
        "others": 1, "rules": [
            {"policy": "NetworkPolicy shop/db", "rule": "ingress[0]", "action": "Accept",
                "peer": true, "port": true, "decides": true},
            {"policy": "NetworkPolicy shop/db", "rule": "ingress[2]", "action": "Accept",
                "peer": false, "port": true, "decides": false},
        ]})
    );

    let (code, _, error) =
        run.program(&["explain", "--manifests", "cluster", "pod/shop/none", "pod/shop/db:1"]);
    assert_eq!(
        (code, error.as_str()),
        (Some(1), "fairway-controlplane: there is no pod/shop/none\n")
    );
    let (code, _, error) =
        run.program(&["explain", "--manifests", "cluster", "web", "pod/shop/db:1"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("\"web\" is none of pod/NAMESPACE/NAME"), "{error}");
}

#[test]
fn what_rules_are_said_to_match_is_what_is_decided() {
    let run = Run::new(POLICIES);
    let mut cluster = run.cluster();
    let ends =
        ["pod/shop/web", "pod/shop/db", "pod/lab/probe", "node/n2", "198.51.100.8", "198.51.100.9"];
    let ports = ["23", "5432", "8080", "9187", "53/udp", "icmp"];
    let mut asked = 0;
    for (from, to) in ends.iter().flat_map(|from| ends.map(|to| (from, to))) {
        for port in ports {
            let to = format!("{to}:{port}");
            let Ok(answers) = ask(&mut cluster, from, &to) else { continue };
            for side in answers.iter().flat_map(|answer| [&answer.egress, &answer.ingress]) {
                let matching: Vec<_> =
                    side.rules.iter().filter(|rule| rule.peer && rule.port).collect();
                let deciding: Vec<_> = side.rules.iter().filter(|rule| rule.decides).collect();
                // No two of these rules mean the same, and all of them decide.
                assert_eq!(matching, deciding, "{from} -> {to}: {side:#?}");
                asked += 1;
                let [rule] = deciding[..] else { continue };
                assert_eq!(rule.action == "Accept", side.allowed, "{from} -> {to}: {side:#?}");
            }
        }
    }
    assert_eq!(asked, 2 * ends.len() * ends.len() * ports.len());
}

#[test]
fn a_name_of_a_port_is_looked_up_at_the_destination() {
    let policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: lab}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}, {port: 53, protocol: UDP}]}]}
";
    let run = Run::new(policy);
    let mut cluster = run.cluster();
    for (to, allowed) in [
        ("pod/shop/web:8080", true),
        ("pod/shop/web:80", false),
        ("pod/shop/db:8080", false),
        ("203.0.113.1:8080", false),
        ("203.0.113.1:53/udp", true),
        ("pod/shop/db:53/udp", true),
    ] {
        let answers = ask(&mut cluster, "pod/lab/probe", to).unwrap();
        assert_eq!(answers[0].allowed, allowed, "{to}");
        let mut rules = answers[0].egress.rules.iter();
        assert_eq!(rules.any(|rule| rule.peer && rule.port), allowed, "{to}");
    }
}

#[test]
fn cases_that_hold_are_fine_and_others_are_listed() {
    let run = Run::new(POLICIES);
    let good = "\
- {from: pod/shop/web, to: pod/shop/db, port: 5432, expect: allow}
- {from: pod/lab/probe, to: svc/shop/web, port: www, protocol: TCP, expect: allow}
- from: pod/shop/web
  to: pod/shop/db
  port: 5432
  protocol: UDP
  expect: deny
- {from: pod/shop/web, to: pod/shop/db, protocol: ICMP, expect: deny}
- {from: 198.51.100.8, to: pod/shop/db, port: 1, expect: allow}
";
    let file = run.dir.path().join("cases.yaml");
    fs::write(&file, good).unwrap();
    let args = ["policy", "test", "-f", "cases.yaml", "--manifests", "cluster"];
    assert_eq!(run.program(&args), (Some(0), String::new(), "fine: 5 cases\n".into()));

    let more = "\
- {from: pod/shop/web, to: pod/shop/db, port: 5433, expect: allow}
- {from: pod/shop/web, to: pod/shop/db, port: 5432, expect: deny}
- {from: pod/shop/webb, to: pod/shop/db, port: 5432, expect: deny}
- {from: pod/shop/web, to: pod/shop/db, expect: deny}
";
    fs::write(&file, format!("{good}{more}")).unwrap();
    let (code, out, error) = run.program(&args);
    assert_eq!(
        (code, error.as_str()),
        (Some(1), "4 of 9 cases fail, 0 problems with the manifests\n")
    );
    let heads: Vec<_> = out.lines().filter(|line| !line.starts_with(' ')).collect();
    let expected = [
        "cases.yaml:10: pod/shop/web -> pod/shop/db:5433/TCP: expected to be allowed, and is denied",
        "cases.yaml:11: pod/shop/web -> pod/shop/db:5432/TCP: expected to be denied, and is allowed",
        "cases.yaml:12: pod/shop/webb -> pod/shop/db:5432/TCP: there is no pod/shop/webb",
        "cases.yaml:13: needs a port, or protocol ICMP",
    ];
    assert_eq!(heads, expected);
    let why = "    ingress of pod/shop/db: denied: NetworkPolicy shop/db restricts it, and no rule allows this";
    assert!(out.lines().any(|line| line == why), "{out}");

    for (text, expected) in [
        ("- {from: a, too: b}", "unknown field"),
        ("- {from: a, to: b, port: 1, expect: maybe}", "maybe"),
        ("x: [", "cases in cases.yaml"),
    ] {
        fs::write(&file, text).unwrap();
        let (code, _, error) = run.program(&args);
        assert_eq!(code, Some(1));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_fails_the_test_even_if_the_cases_hold() {
    let run = Run::new(&POLICIES.replace("cidr: 198.51.100.0/24", "cidr: 198.51.100.0/240"));
    let file = run.dir.path().join("cases.yaml");
    fs::write(&file, "- {from: pod/shop/web, to: pod/shop/db, port: 5432, expect: deny}\n")
        .unwrap();
    let (code, out, error) =
        run.program(&["policy", "test", "-f", "cases.yaml", "--manifests", "cluster"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(
        error.contains("NetworkPolicy shop/db: spec.ingress[2].from[0].ipBlock.cidr"),
        "{error}"
    );
    assert!(error.ends_with("0 of 1 cases fail, 2 problems with the manifests\n"), "{error}");
}

#[test]
fn help_has_examples() {
    let run = Run::new("");
    for args in [&["explain", "--help"][..], &["policy", "test", "--help"]] {
        let (code, out, _) = run.program(args);
        assert_eq!(code, Some(0));
        assert!(out.contains("Example") && out.contains("--manifests ./cluster"), "{out}");
    }
}
