//! What a node tells of what it decides: `fairway-proxy monitor` and `explain`, beside what really happens.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use fairway_tests::Kind;
use fairway_tests::wait::wait_until;
use serde_json::{Value, json};

use super::{SOON, Scene, network_policy, only_z, scene, target, tcp};

/// Somebody who watches on a node; ends with this value.
struct Monitor {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    fn start(scene: &Scene, node: &str, options: &[&str]) -> Self {
        let words = [&["monitor"], options].concat();
        let mut command = scene.lab.inspect(node, &words).unwrap();
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| seen.lock().unwrap().push(line));
        });
        Self { process, lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    fn events(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Has `from` try port 80 of `to` by TCP until that is told, once it watches.
    fn first_line(&self, scene: &Scene, from: &str, to: &str) -> String {
        let port = tcp(scene.v4(to), 80);
        wait_until(SOON, &format!("{from} -> {to} to be told"), || {
            scene.reach(from, &[port]);
            Ok(!self.lines().is_empty())
        })
        .unwrap();
        self.lines().swap_remove(0)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The agent sees to what it asked of the kernel. Both fail only for a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What `explain` says on a node, on one line.
fn explain(scene: &Scene, node: &str, from: &str, to: &str) -> String {
    let output = scene.lab.inspect(node, &["explain", from, to]).unwrap().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Who sends, or receives, as JSON has it: with the port, unless that is the client's.
fn end(address: IpAddr, pod: &str) -> Value {
    json!({"address": address, "pod": pod})
}

#[test]
fn a_node_tells_what_it_denies_and_allows_and_by_which_rule() {
    let Some(scene) = scene() else { return };
    scene.apply(&[
        only_z(&json!({"matchLabels": {"pod": "a"}})),
        network_policy(
            "y",
            "only-81",
            json!({
                "podSelector": {"matchLabels": {"pod": "b"}},
                "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 81}]}],
            }),
        ),
    ]);
    scene.wait_for("y/c", "x/a", false);
    scene.wait_for("y/b", "x/b", false);
    let [server, near, far] = ["x/a", "y/a", "y/b"].map(|pod| scene.v4(pod));

    // Denied by the server's node, where both are; for programs.
    let rule = "NetworkPolicy x/only-z, which restricts ingress";
    let source = ["--drops", "--from", "y/a", "-o", "json"];
    let monitor = Monitor::start(&scene, "node1", &source);
    let line = monitor.first_line(&scene, "y/a", "x/a");
    let mut event: Value = serde_json::from_str(&line).unwrap();
    let said = |event: &Value| {
        ["verdict", "reason", "protocol", "rule"]
            .map(|field| event[field].as_str().map(str::to_owned))
    };
    let expected = [Some("drop"), Some("policy_ingress"), Some("TCP"), Some(rule)];
    assert_eq!(said(&event), expected.map(|text| text.map(str::to_owned)), "{line}");
    assert_eq!(event["destination"]["port"], 80, "{line}");
    for (field, address, pod) in [("source", near, "y/a"), ("destination", server, "x/a")] {
        event[field].as_object_mut().unwrap().remove("port");
        assert_eq!(event[field], end(address, pod), "{line}");
    }
    drop(monitor);
    let said = explain(&scene, "node1", "pod/y/a", "pod/x/a:80");
    assert!(said.contains("DROPPED policy_ingress"), "{said}");
    assert!(said.contains(&format!("denied by {rule}")), "{said}");

    // By the client's node; for people. The server's own knows what it would say itself.
    let rule = "NetworkPolicy y/only-81, which restricts egress";
    let monitor = Monitor::start(&scene, "node2", &["--drops", "--to", &server.to_string()]);
    let line = monitor.first_line(&scene, "y/b", "x/a");
    assert!(line.contains(&format!(" DROP policy_egress TCP {far}:")), "{line}");
    assert!(line.contains(&format!(" (y/b) -> {server}:80, {rule}")), "{line}");
    drop(monitor);
    let said = explain(&scene, "node2", "pod/y/b", &format!("{server}:80"));
    assert!(said.contains(&format!("denied by {rule}")), "{said}");
    let said = explain(&scene, "node1", &far.to_string(), "pod/x/a:80");
    assert!(said.contains("denied by NetworkPolicy x/only-z, which restricts ingress"), "{said}");

    let monitor = Monitor::start(&scene, "node1", &["--from", "z/a", "-o", "json"]);
    let line = monitor.first_line(&scene, "z/a", "x/a");
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["verdict"], &event["reason"]), (&json!("allow"), &Value::Null), "{line}");
    let rule = event["rule"].as_str().unwrap();
    assert!(rule.contains("NetworkPolicy x/only-z") && rule.contains("ingress"), "{line}");
    let said = explain(&scene, "node1", "pod/z/a", "pod/x/a:80");
    assert!(said.contains(&format!("allowed by {rule}")), "{said}");

    // Of a crowd, some are told, each flow once; the others are counted.
    const CROWD: usize = 4000;
    let before = monitor.lines().len();
    let flood = format!("for port in {{1..{CROWD}}}; do echo > /dev/udp/{server}/$port; done");
    let flooded = scene.lab.exec(target("z/a"), &["bash", "-c", &flood]).unwrap();
    assert!(flooded.status.success(), "{flooded:?}");
    let missed = |event: &Value| usize::try_from(event["missed"].as_u64().unwrap_or(0)).unwrap();
    // What was left out on a processor is told with its next event.
    wait_until(SOON, "what was left out to be told", || {
        scene.reach("z/a", &[tcp(server, 80)]);
        Ok(monitor.events().iter().map(missed).sum::<usize>() > 0)
    })
    .unwrap();
    let events = monitor.events().split_off(before);
    let is_udp = |event: &&Value| event["protocol"] == "UDP";
    let ports = events.iter().filter(is_udp).map(|event| event["destination"]["port"].as_u64());
    let ports: Vec<_> = ports.collect();
    let told: BTreeSet<_> = ports.iter().collect();
    let missed: usize = events.iter().map(missed).sum();
    println!("of {CROWD} flows at once, {} were told, {missed} counted", told.len());
    assert_eq!(told.len(), ports.len(), "each once");
    assert!(told.len() < CROWD && told.len() + missed >= CROWD / 2, "{} and {missed}", told.len());
    drop(monitor);

    scene.delete(Kind::NetworkPolicy, "x", "only-z");
    scene.delete(Kind::NetworkPolicy, "y", "only-81");
    scene.wait_for("y/b", "x/a", true);
}
