//! What cannot work is refused with a reason, and leaves everything else as it was.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{
    Lab, LabName, Options, Source, binaries::binaries, may_run, needs_manifests, unique_name,
};

/// News of a mistake arrive within this time.
const NEWS: Duration = Duration::from_secs(5);

#[test]
fn manifests_with_a_mistake_are_refused_as_a_whole() {
    let Some(lab) = lab() else { return };
    let check = |yaml: &str, parts: &[&str]| {
        let error = format!("{:#}", lab.apply(yaml).unwrap_err());
        for part in parts {
            assert!(error.contains(part), "{error:?} should say {part:?}");
        }
    };
    let good = "{apiVersion: v1, kind: Service, metadata: {name: good}, spec: {ports: [{port: 80}]}}\n---\n";
    check(&format!("{good}kind: [Pod"), &["not valid YAML", "line"]);
    check(
        &format!(
            "{good}{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {{containers: 3}}}}"
        ),
        &["Pod default/a", "spec.containers"],
    );
    check(&format!("{good}{{apiVersion: v2, kind: Pod, metadata: {{name: a}}}}"), &["apiVersion"]);
    assert!(lab.model().unwrap().services.keys().all(|name| name.name != "good"));
}

#[test]
fn a_taken_node_port_is_refused_by_name_and_the_holder_keeps_it() {
    let Some(lab) = lab() else { return };
    let service = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
              spec: {{type: NodePort, ports: [{{port: 80, nodePort: 31111}}]}}}}"
        )
    };
    let node_port = |name: &str| {
        let service = lab.model().unwrap().services.remove(&ObjectName::new("default", name))?;
        service.ports[0].node_port
    };
    lab.apply(&service("holder")).unwrap();
    wait_until(NEWS, "the first Service's node port", || Ok(node_port("holder") == Some(31111)))
        .unwrap();
    if Source::of_environment() == Source::Api {
        // There it is the API server that keeps account, and says so at once.
        let error = format!("{:#}", lab.apply(&service("late")).unwrap_err());
        assert!(error.contains("default/late") && error.contains("31111"), "{error}");
        assert_eq!((node_port("holder"), node_port("late")), (Some(31111), None));
        return;
    }
    lab.apply(&service("late")).unwrap();
    wait_until(NEWS, "a complaint", || {
        let log = lab.logs(Target::Controlplane)?;
        let mut lines = log.lines();
        Ok(lines.any(|line| {
            ["default/late", "31111", "default/holder"].iter().all(|part| line.contains(part))
        }))
    })
    .unwrap();
    assert_eq!(node_port("holder"), Some(31111));
    assert_ne!(node_port("late"), Some(31111));
}

#[test]
fn a_broken_file_in_the_folder_is_named_and_changes_nothing() {
    if !needs_manifests("a broken file in the folder", "there is no folder") {
        return;
    }
    let Some(lab) = lab() else { return };
    let service =
        "{apiVersion: v1, kind: Service, metadata: {name: steady}, spec: {ports: [{port: 80}]}}";
    lab.apply(service).unwrap();
    let steady = ObjectName::new("default", "steady");
    let has_address = || {
        let model = lab.model()?;
        Ok(model.services.get(&steady).is_some_and(|service| !service.cluster_ips.is_empty()))
    };
    wait_until(NEWS, "the Service", has_address).unwrap();
    let file = lab.manifests().join("by-hand.yaml");
    fs::write(&file, "kind: Service\nmetadata: {name: x\n").unwrap();
    wait_until(NEWS, "a complaint", || {
        let log = lab.logs(Target::Controlplane)?;
        Ok(log.lines().any(|line| line.contains("by-hand.yaml")))
    })
    .unwrap();
    assert!(has_address().unwrap());
    fs::remove_file(file).unwrap();
}

#[test]
fn a_second_agent_on_a_node_is_refused_and_the_first_goes_on() {
    const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: steady, labels: {app: steady}}
spec: {containers: [{name: c, image: agnhost}]}
";
    let Some(lab) = lab() else { return };
    lab.apply(POD).unwrap();
    let pod = lab.wait_for_pods("default", "app", "steady", 1).unwrap().remove(0);
    let url = format!("http://{}/hostname", pod["status"]["podIP"].as_str().unwrap());
    let before = lab.nodes().unwrap().remove(0);
    // Exactly as the first was started.
    let words = fs::read(format!("/proc/{}/cmdline", before.agent_pid.unwrap())).unwrap();
    let words: Vec<&str> = words
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| std::str::from_utf8(word).unwrap())
        .collect();
    // With a state folder of its own, it still wants the same tables and programs.
    let state = words.iter().position(|word| *word == "--state-dir").unwrap() + 1;
    let elsewhere = Scratch::new(&unique_name("state"));
    let mut apart = words.clone();
    apart[state] = elsewhere.0.to_str().unwrap();
    let bpffs = words[words.iter().position(|word| *word == "--bpffs").unwrap() + 1];
    let node1 = || Target::Node { node: "node1".to_owned() };
    for (words, locked) in
        [(&words, format!("{}/agent.lock", words[state])), (&apart, bpffs.into())]
    {
        let output = lab.exec(node1(), words).unwrap();
        assert!(!output.status.success());
        let errors = String::from_utf8_lossy(&output.stderr);
        let reason = format!("lock {locked}: an agent is running on this node");
        assert!(errors.contains(&reason), "{errors}");
        let after = lab.nodes().unwrap().remove(0);
        assert!(after.ready);
        assert_eq!((before.agent_pid, 0), (after.agent_pid, after.agent_restarts));
        assert_eq!(lab.get(node1(), &url).unwrap(), "steady");
    }
}

#[test]
fn a_cni_call_without_sense_gets_a_cni_error() {
    let Some(lab) = lab() else { return };
    let check = |environment: &[(&str, &str)], config: &str, code: u64, part: &str| {
        let plugin = folder().join("fairway-cni");
        let node1 = Target::Node { node: "node1".to_owned() };
        let mut child = lab
            .command(node1, plugin.to_str().unwrap())
            .unwrap()
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have answered, and gone, without reading.
        let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["msg"].as_str().unwrap().contains(part), "{error}");
    };
    let config = |version: &str| {
        format!(
            "{{\"cniVersion\": \"{version}\", \"name\": \"fairway\", \"type\": \"fairway-cni\", \
              \"socket\": \"/nowhere/agent.sock\"}}"
        )
    };
    let add = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/nowhere"),
    ];
    check(&add, "", 6, "JSON");
    check(&add, &config("9.9.9"), 1, "9.9.9");
    check(&[("CNI_COMMAND", "JUMP")], &config("1.0.0"), 4, "JUMP");
    check(&add[..1], &config("1.0.0"), 4, "CNI_CONTAINERID");
    check(&add, &config("1.0.0"), 4, "/nowhere");
}

#[test]
fn a_lab_that_cannot_come_up_says_why_and_leaves_nothing() {
    if !may_run("a lab that cannot come up") {
        return;
    }
    let name = unique_name("broken");
    // Programs that do not work; `fairway-lab` itself does.
    let scripts = Scratch::new(&name);
    symlink(folder().join("fairway-lab"), scripts.0.join("fairway-lab")).unwrap();
    let error = |options: Options| format!("{:#}", Lab::up(options).unwrap_err());

    let options = Options { bin_dir: Some(scripts.0.clone()), ..Options::named(name.clone()) };
    let text = error(options.clone());
    assert!(text.contains("no fairway-proxy in"), "{text}");
    for binary in ["fairway-proxy", "fairway-cni"] {
        scripts.write(binary, "exec sleep 60");
    }
    scripts.write("fairway-controlplane", "echo the dog ate my certificate >&2; exit 3");
    let text = error(options.clone());
    assert!(text.contains("controlplane") && text.contains("the dog ate"), "{text}");

    let small = vec!["10.244.0.0/24".parse().unwrap()];
    let text = error(Options { pod_cidr: small, ..options });
    assert!(text.contains("--pod-cidr 10.244.0.0/24: too small"), "{text}");
    assert!(!Path::new("/run/fairway-lab").join(name.as_str()).exists());
    assert!(!Lab::down(&name).unwrap(), "nothing is left to take down");
}

/// A folder; removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &LabName) -> Self {
        let path = std::env::temp_dir().join(format!("fairway-{name}"));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A program of a few words. Somebody else writes the file: were it open in this process, a child that
    /// another thread starts just then would have it open as well, and nobody could execute it (ETXTBSY).
    fn write(&self, name: &str, script: &str) {
        let file = self.0.join(name);
        let status = Command::new("sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod 755 "$1""#, "sh"])
            .arg(&file)
            .arg(script)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}

#[test]
fn options_that_cannot_work_are_refused_on_the_command_line() {
    let check = |arguments: &[&str], part: &str| {
        let output = Command::new(folder().join("fairway-lab")).args(arguments).output().unwrap();
        assert!(!output.status.success());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains(part), "{arguments:?}: {errors}");
    };
    check(&["up", "--name", "a/b"], "lower-case letters and digits");
    check(&["up", "--backend", "pigeon"], "host-gw");
    check(&["get", "people"], "pods");
    check(&["exec", "pod"], "COMMAND");
    check(&["apply"], "--filename");
    if may_run("options of up") {
        check(&["up", "--bin-dir", "/nowhere"], "--bin-dir /nowhere");
        check(&["up", "--images", "/nowhere"], "--images /nowhere");
    }
}

fn folder() -> &'static Path {
    binaries().unwrap()
}

/// The lab of this file; it ends with the process, to which a pipe ties it.
fn lab() -> Option<&'static Lab> {
    static LAB: OnceLock<Option<Lab>> = OnceLock::new();
    LAB.get_or_init(|| {
        let options = Options { nodes: 1, ..Options::named(unique_name("badinput")) };
        may_run("bad input").then(|| Lab::up(options).unwrap())
    })
    .as_ref()
}
