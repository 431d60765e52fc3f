//! A load balancer's address on the nodes' link, and the node that answers for it dies.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::apps::load::{Failure, Summary};
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, Options, may_run, unique_name};
use serde_json::Value;

/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long clients ask before something happens.
const BEFORE: Duration = Duration::from_secs(1);

/// In the nodes' own network, and out of the way of nodes and router.
const V4: &str = "192.168.240.200";
const V6: &str = "fd00:240::c8";

const POOL: &str = "
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: main}
spec: {addresses: [V4/32, V6/128]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: all}
";

const WEB: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// A client outside asks without patience, while the node that answers for the address loses its agent and then
/// its link: within a second it gets answers again, though nobody but the nodes is there to notice. When the node
/// is back, it has the address again.
#[test]
fn another_node_answers_within_a_second() {
    if !may_run("load-balancer") {
        return;
    }
    let mut options = Options::named(unique_name("vip"));
    options.dual_stack();
    let lab = Lab::up(options).unwrap();
    let pool = POOL.replace("V4", V4).replace("V6", V6);
    lab.apply(&pool).unwrap();
    lab.apply(WEB).unwrap();
    lab.wait_for_pods("default", "app", "web", 3).unwrap();
    // One a pod and family.
    lab.wait_for_endpoints(&ObjectName::new("default", "web"), 6).unwrap();

    let urls = [format!("http://{V4}/hostname"), format!("http://[{V6}]/hostname")];
    for url in &urls {
        eventually(&lab, url, || lab.get(Target::Client, url).is_ok());
    }
    neighbour_is_still_there(&lab, V4);
    neighbour_is_still_there(&lab, V6);
    let nodes: Vec<String> = lab.nodes().unwrap().into_iter().map(|node| node.name).collect();
    let first = announcer(&lab, &nodes, V4);
    neighbour_moves(&lab, &first);
    let others: Vec<String> = nodes.iter().filter(|node| **node != first).cloned().collect();
    let taken = || {
        let log = |node: &String| lab.logs(Target::Node { node: node.clone() }).unwrap();
        others.iter().map(|one| log(one).matches("this node announces").count()).sum::<usize>()
    };
    let before = taken();
    lab.restart_agent(&first, false).unwrap();
    eventually(&lab, "the address again", || announces(&lab, &first, V4));
    assert_eq!(taken(), before, "the address moved while its agent was started again");

    lab.kill_controlplane().unwrap();
    let load = lab
        .command(Target::Client, &lab.program().to_string_lossy())
        .unwrap()
        .args(["app", "load", "--rate", "100", "--concurrency", "64", "--timeout", "400"])
        .args(["--duration", "4", "--url", &urls[0], "--url", &urls[1]])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(BEFORE);
    lab.kill_agent(&first).unwrap();
    let lost = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    link(&lab, &first, "down");
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let summary: Summary = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let after = |failure: &Failure| Duration::from_millis(failure.started_ms).saturating_sub(lost);
    let late: Vec<_> =
        summary.failures.iter().filter(|one| after(one).as_millis() > 1000).collect();
    assert!(late.is_empty() && summary.ok > 200, "{late:#?} {} good", summary.ok);
    assert!(others.contains(&announcer(&lab, &others, V4)));

    link(&lab, &first, "up");
    lab.start_controlplane().unwrap();
    lab.start_agent(&first).unwrap();
    eventually(&lab, "the address is back", || announces(&lab, &first, V4));
    eventually(&lab, "and with nobody else", || {
        !others.iter().any(|node| announces(&lab, node, V4))
    });
    for url in &urls {
        eventually(&lab, url, || lab.get(Target::Client, url).is_ok());
    }
}

/// The router, which has the address's MAC, asks there whether the address is still there, and gets an answer.
fn neighbour_is_still_there(lab: &Lab, address: &str) {
    let known = neighbour(lab, address);
    let text = |field: &str| known[field].as_str().unwrap();
    let change =
        ["ip", "neighbour", "change", address, "lladdr", text("lladdr"), "dev", text("dev")];
    run(lab, Target::Controlplane, &[&change[..], &["nud", "probe"]].concat());
    eventually(lab, "an answer about the neighbour", || {
        let state = neighbour(lab, address)["state"][0].as_str().unwrap().to_owned();
        assert_ne!(state, "FAILED", "{address}");
        state == "REACHABLE"
    });
}

/// The node's uplink gets another MAC address, and the router has it although it did not ask.
fn neighbour_moves(lab: &Lab, node: &str) {
    const NEXT: &str = "02:00:5e:10:20:30";
    let node = || Target::Node { node: node.to_owned() };
    let routes = run(lab, node(), &["ip", "-json", "route", "show", "default"]);
    let device = routes[0]["dev"].as_str().unwrap().to_owned();
    run(lab, node(), &["ip", "link", "set", &device, "address", NEXT]);
    for address in [V4, V6] {
        eventually(lab, "the neighbour's other address", || {
            neighbour(lab, address)["lladdr"] == NEXT
        });
    }
}

/// What the router knows of a neighbour.
fn neighbour(lab: &Lab, address: &str) -> Value {
    run(lab, Target::Controlplane, &["ip", "-json", "neighbour", "show", address])[0].clone()
}

/// What a command says in JSON, if anything.
fn run(lab: &Lab, target: Target, words: &[&str]) -> Value {
    let output = lab.exec(target, words).unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// The node that says that it announces the address.
fn announcer(lab: &Lab, nodes: &[String], address: &str) -> String {
    let mut found = Vec::new();
    eventually(lab, "one node announces the address", || {
        found = nodes.iter().filter(|node| announces(lab, node, address)).cloned().collect();
        found.len() == 1
    });
    found.remove(0)
}

fn announces(lab: &Lab, node: &str, address: &str) -> bool {
    let output = lab.inspect(node, &["status"]).unwrap().output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().any(|line| line.starts_with("announces") && line.contains(address))
}

/// The router's end of a node's cable goes down or comes up.
fn link(lab: &Lab, node: &str, state: &str) {
    let output = lab.exec(Target::Controlplane, &["ip", "link", "set", node, state]).unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[track_caller]
fn eventually(lab: &Lab, what: &str, mut done: impl FnMut() -> bool) {
    if let Err(error) = wait_until(PATIENCE, what, || Ok(done())) {
        let logs = lab
            .nodes()
            .unwrap()
            .into_iter()
            .map(|node| lab.logs(Target::Node { node: node.name }).unwrap_or_default());
        panic!("{error:#}\n{}", logs.collect::<Vec<_>>().join("\n"));
    }
}
