//! What a node's own commands say of it, with its agent and without one, beside what really happens.

use std::process::Output;
use std::time::Duration;

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, two_nodes};
use serde_json::Value;

/// All commands run on this node.
const NODE: &str = "node1";
/// What an agent does by itself is done within this time.
const SOON: Duration = Duration::from_secs(10);

/// A client and a server on this node, and a server on the other one behind a router.
const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: web}}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: web}}
spec:
  nodeSelector: {kubernetes.io/hostname: node2}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.200.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
";

#[test]
fn a_node_tells_what_it_does_with_and_without_its_agent() {
    let Some(lab) = two_nodes("inspect", |_| {}) else { return };
    lab.apply(MANIFESTS).unwrap();
    lab.wait_for_pods("default", "app", "client", 1).unwrap();
    lab.wait_for_endpoints(&ObjectName::new("default", "web"), 2).unwrap();
    let node = Node::of(&lab);
    let status = node.run(&["status"]);
    assert!(status.status.success(), "{status:?}");
    let status = text(&status);
    for line in ["runs, healthy", "node          node1", "is in force", "those of the tables"] {
        assert!(status.contains(line), "{line:?} not in\n{status}");
    }
    node.tells();

    lab.kill_agent(NODE).unwrap();
    let status = node.run(&["status"]);
    assert!(!status.status.success(), "{status:?}");
    let status = text(&status);
    for line in ["DOWN: ask the agent", "the last one started", "frontends4", "those of the tables"]
    {
        assert!(status.contains(line), "{line:?} not in\n{status}");
    }
    node.tells();

    lab.start_agent(NODE).unwrap();
    wait_until(SOON, "the agent's word that all is well", || {
        Ok(node.run(&["status"]).status.success())
    })
    .unwrap();
}

/// A node's commands.
struct Node<'a> {
    lab: &'a Lab,
    address: String,
}

impl<'a> Node<'a> {
    fn of(lab: &'a Lab) -> Self {
        let nodes = lab.nodes().unwrap();
        let node = nodes.iter().find(|node| node.name == NODE).unwrap();
        Self { lab, address: node.addresses[0].to_string() }
    }

    fn run(&self, words: &[&str]) -> Output {
        self.lab.inspect(NODE, words).unwrap().output().unwrap()
    }

    /// What a command prints, in one space where it fills columns.
    fn says(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        let text = text(&output);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text.lines().map(|line| words(line) + "\n").collect()
    }

    #[track_caller]
    fn check(&self, words: &[&str], expected: &[&str]) {
        let said = self.says(words);
        for part in expected {
            assert!(said.contains(part), "{words:?}: {part:?} not in\n{said}");
        }
    }

    /// All commands but `status`.
    fn tells(&self) {
        let pod = |name: &str| {
            let pods = self.lab.pods("default", "app", if name == "client" { name } else { "web" });
            let pods = pods.unwrap();
            let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
            pod["status"]["podIP"].as_str().unwrap().to_owned()
        };
        let (near, far) = (format!("{}:8080", pod("near")), format!("{}:8080", pod("far")));
        let node_port = format!("{}:30080", self.address);
        let own = text(&self.lab.exec(Target::Client, &["hostname", "-I"]).unwrap());
        let outside = own.split_whitespace().next().unwrap().to_owned();

        self.check(
            &["services", "default/web"],
            &[
                "default/web http 10.96.200.1:80/TCP inside 2 random",
                &format!("default/web http {node_port}/TCP outside 2 random"),
            ],
        );
        self.check(
            &["endpoints", "default/web"],
            &[
                &format!("default/web http cluster {near}/TCP 50.0% random default/near"),
                &format!("default/web http cluster {far}/TCP 50.0% random -"),
            ],
        );
        let json: Value =
            serde_json::from_slice(&self.run(&["endpoints", "default/web", "-o", "json"]).stdout)
                .unwrap();
        assert_eq!(json["endpoints"].as_array().unwrap().len(), 2, "{json}");

        self.explains(&near, &far, &outside, &node_port);
        self.forgets(&outside, &node_port);
    }

    fn explains(&self, near: &str, far: &str, outside: &str, node_port: &str) {
        let client = pod("client");
        self.check(
            &["explain", "default/client", "default/web:http"],
            &[
                "(pod default/client) -> 10.96.200.1:80/TCP",
                "decided at the socket",
                "Service default/web, port http",
                "choice random, one of 2",
                &format!("{near} 50.0% default/near"),
                &format!("{far} 50.0% -"),
                "tunnel to node",
            ],
        );
        self.check(
            &["explain", outside, node_port],
            &[
                "decided where packets arrive from the network",
                &format!("{near} 50.0% default/near {outside} pod here, interface"),
                &format!("{far} 50.0% -"),
            ],
        );
        let curl = |url: &str| {
            let words = ["curl", "-s", "--max-time", "1", url];
            self.lab.exec(client.clone(), &words).unwrap().status.code()
        };
        // 7: could not connect; 28: nobody answers.
        assert_eq!(curl("http://10.96.200.1:81/"), Some(7));
        self.check(
            &["explain", "default/client", "10.96.200.1:81"],
            &["DROPPED closed_port:", "10.96.200.1 has no port 81/TCP, but 80/TCP"],
        );
        assert_eq!(curl("http://10.96.200.200/"), Some(28));
        self.check(
            &["explain", "default/client", "10.96.200.200:80"],
            &["DROPPED unallocated_address:", "10.96.200.200 is in 10.96.0.0/16"],
        );
    }

    /// Flows come, are listed, and go.
    fn forgets(&self, outside: &str, node_port: &str) {
        let url = format!("http://{node_port}/hostname");
        assert!(["near", "far"].contains(&&*self.lab.get(Target::Client, &url).unwrap()));
        let list = ["conntrack", "list", "--service", "default/web", "--source", outside];
        self.check(&list, &[&format!("-> {node_port} "), " default/web http"]);
        assert!(!self.run(&["conntrack", "flush"]).status.success(), "of everything, by mistake");
        let flush = ["conntrack", "flush", "--service", "default/web"];
        assert_ne!(self.says(&flush), "0 flows forgotten\n");
        assert_eq!(self.says(&flush), "0 flows forgotten\n");
        assert_eq!(self.says(&list).lines().count(), 1, "nothing but the head");
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn pod(name: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: name.to_owned() }
}
