//! Labs come and go, and leave nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, LabName, Options, binaries::binaries, may_run, unique_name};

const ONE_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: one}}
spec: {containers: [{name: c, image: agnhost}]}
---
apiVersion: v1
kind: Service
metadata: {name: one}
spec: {selector: {app: one}, ports: [{port: 80}]}
";

#[test]
fn two_labs_run_side_by_side_and_know_nothing_of_each_other() {
    if !may_run("two labs") {
        return;
    }
    let one_node = |name| Options { nodes: 1, ..Options::named(name) };
    let (first, second) = (unique_name("first"), unique_name("second"));
    let first_lab = Lab::up(one_node(first.clone())).unwrap();
    let second_lab = Lab::up(one_node(second.clone())).unwrap();
    first_lab.apply(ONE_POD).unwrap();
    first_lab.wait_for_pods("default", "app", "one", 1).unwrap();
    let services = second_lab.model().unwrap().services;
    // The DNS server's Service is there without being asked for.
    assert!(services.keys().all(|name| name.namespace == "kube-system"), "{services:?}");

    // The same addresses on both sides.
    let node = |lab: &Lab| lab.nodes().unwrap().remove(0).addresses;
    assert_eq!(node(&first_lab), node(&second_lab));

    let error = Lab::up(one_node(first.clone())).unwrap_err().to_string();
    assert!(error.contains("running already"), "{error}");

    drop(first_lab);
    assert_eq!(leftovers(&first), Vec::<String>::new());
    assert!(second_lab.nodes().unwrap()[0].ready, "the second lab goes on");
    drop(second_lab);
    assert_eq!(leftovers(&second), Vec::<String>::new());
}

#[test]
fn a_lab_whose_daemon_was_killed_is_cleaned_up_by_down_and_by_the_next_up() {
    if !may_run("killed daemon") {
        return;
    }
    let name = unique_name("killed");
    let up = || {
        let options = Options { nodes: 1, ..Options::named(name.clone()) };
        let lab = Lab::up(options).unwrap();
        lab.apply(ONE_POD).unwrap();
        lab.wait_for_pods("default", "app", "one", 1).unwrap();
        lab
    };
    let kill = || {
        let lock = fs::read_to_string(format!("/run/fairway-lab/{name}.lock")).unwrap();
        let status = Command::new("kill").args(["-9", lock.trim()]).status().unwrap();
        assert!(status.success());
    };
    let lab = up();
    kill();
    wait_until(Duration::from_secs(10), "clients to be told", || {
        let error = lab.nodes().err().map(|error| error.to_string());
        Ok(error.is_some_and(|error| error.contains("is dead; `fairway-lab down --name")))
    })
    .unwrap();
    drop(lab);
    assert!(!leftovers(&name).is_empty());
    let lab = up();
    kill();
    drop(lab);
    assert!(Lab::down(&name).unwrap());
    assert_eq!(leftovers(&name), Vec::<String>::new());
    assert!(!Lab::down(&name).unwrap(), "nothing is left to take down");
}

#[test]
fn a_lab_whose_daemon_hangs_is_taken_down() {
    if !may_run("hung daemon") {
        return;
    }
    let name = unique_name("hung");
    let lab = Lab::up(Options { nodes: 1, ..Options::named(name.clone()) }).unwrap();
    let pid = fs::read_to_string(format!("/run/fairway-lab/{name}.lock")).unwrap();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    let start = Instant::now();
    assert!(Lab::down(&name).unwrap());
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(leftovers(&name), Vec::<String>::new());
    drop(lab);
}

#[test]
fn the_command_line_starts_asks_and_stops_a_lab() {
    if !may_run("command line") {
        return;
    }
    let name = unique_name("cli");
    let _down = DownOnDrop(&name);
    let folder = binaries().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(folder.join("fairway-lab"))
            .args(arguments)
            .env("FAIRWAY_LAB_NAME", name.as_str())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let good = |arguments: &[&str]| {
        let (code, output, errors) = run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {errors}");
        output
    };
    let (code, _, errors) = run(&["get", "pods"]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("no lab"), "{errors}");

    // A lab that no value stands for: it ends at least with this process.
    let own_pid = std::process::id().to_string();
    good(&["up", "--name", name.as_str(), "--nodes", "1", "--while-pid", &own_pid]);
    let guestbook = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/guestbook");
    assert!(good(&["apply", "-f", guestbook]).contains("Service default/frontend created"));
    assert!(good(&["apply", "-f", guestbook]).contains("Service default/frontend unchanged"));
    wait_until(Duration::from_secs(60), "all pods", || {
        let pods = good(&["get", "pods"]);
        Ok(pods.matches("1/1").count() == 6)
    })
    .unwrap();
    assert!(good(&["get", "services"]).contains("redis-master"));
    assert!(good(&["get", "nodes", "-o", "json"]).contains("\"name\": \"node1\""));
    assert!(good(&["list"]).contains(name.as_str()));

    let pods = good(&["get", "pods"]);
    let line = pods.lines().find(|line| line.contains("frontend")).unwrap();
    let frontend = line.split_whitespace().nth(1).unwrap();
    let environment = good(&["exec", frontend, "--", "env"]);
    assert!(environment.contains("REDIS_MASTER_SERVICE_HOST=10.96."), "{environment}");
    assert!(good(&["exec", frontend, "--", "cat", "/etc/hosts"]).contains(frontend));
    assert_eq!(good(&["exec", frontend, "--", "hostname"]).trim(), frontend);
    assert_eq!(run(&["exec", "--node", "node1", "--", "sh", "-c", "exit 7"]).0, Some(7));
    assert!(good(&["scale", "rc/frontend", "--replicas", "1"]).contains("scaled to 1"));
    good(&["delete", "-f", guestbook]);
    assert!(!good(&["get", "pods"]).contains("frontend"));
    good(&["down"]);
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn a_pod_that_crashes_is_started_again_and_says_so() {
    if !may_run("crash") {
        return;
    }
    let lab = Lab::up(Options { nodes: 1, ..Options::named(unique_name("crash")) }).unwrap();
    lab.apply(ONE_POD).unwrap();
    lab.wait_for_pods("default", "app", "one", 1).unwrap();
    let pod = Target::Pod { namespace: "default".to_owned(), name: "one".to_owned() };
    lab.exec(
        pod.clone(),
        &["sh", "-c", "kill -9 $(pgrep -f '[a]pp netexec' -u 0 --ns $$ --nslist uts)"],
    )
    .unwrap();
    wait_until(Duration::from_secs(20), "the container's restart", || {
        let pods = lab.pods("default", "app", "one")?;
        Ok(pods[0]["status"]["containerStatuses"][0]["restartCount"] == 1)
    })
    .unwrap();
    lab.wait_for_pods("default", "app", "one", 1).unwrap();
    assert_eq!(lab.get(pod, "http://localhost/hostname").unwrap(), "one");
}

/// What the machine still has of a lab.
fn leftovers(name: &LabName) -> Vec<String> {
    let mut found = Vec::new();
    let names = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let prefix = format!("fw-{name}-");
    found.extend(names("/run/netns").into_iter().filter(|netns| netns.starts_with(&prefix)));
    let state = format!("/run/fairway-lab/{name}");
    let lock = format!("{state}.lock");
    found.extend([state.clone(), lock].into_iter().filter(|path| Path::new(path).exists()));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let is_ours = |line: &&str| line.contains(&prefix) || line.contains(&format!("{state}/"));
    found.extend(mounts.lines().filter(is_ours).map(str::to_owned));
    for cgroup2 in mounts.lines().filter(|line| line.contains(" cgroup2 ")) {
        let folder = cgroup2.split(' ').nth(1).unwrap();
        let cgroup = format!("{folder}/fairway-lab-{name}");
        found.extend(Some(cgroup).filter(|path| Path::new(path).exists()));
    }
    found
}

/// Takes a lab down that no value stands for.
struct DownOnDrop<'a>(&'a LabName);

impl Drop for DownOnDrop<'_> {
    fn drop(&mut self) {
        if let Err(error) = Lab::down(self.0) {
            eprintln!("{error:#}");
        }
    }
}
