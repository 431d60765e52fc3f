//! Which pods a node starts: those that the control plane has told it of, whenever that was.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use fairway_model::{Model, ObjectName};
use fairway_netlink::NetNs;
use fairway_tests::api::Target;
use fairway_tests::binaries::binaries;
use fairway_tests::wait::wait_until;
use fairway_tests::{Key, Kind, Lab, Options, may_run, unique_name};
use serde_json::{Value, json};

/// All tests use one node of the lab.
const NODE: &str = "node2";
/// News from the control plane arrive within this time.
const NEWS: Duration = Duration::from_secs(10);

fn pod(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {NODE}, \
          containers: [{{name: c, image: agnhost, ports: [{{containerPort: 8080}}]}}]}}}}"
    )
}

#[test]
fn without_the_control_plane_known_pods_start_and_unknown_ones_do_not() {
    let Some(lab) = lab("unasked") else { return };
    let node = Node::of(&lab);
    lab.apply(&pod("known")).unwrap();
    let uid = node.wait_for_pod("known");
    node.wait_for_snapshot();
    lab.kill_controlplane().unwrap();
    let before = node.state();
    node.reserve("10.244.1.200", "a-container-of-before-a-reboot");
    assert_ne!(node.state(), before);
    lab.restart_agent(NODE, true).unwrap();
    assert_eq!(node.state(), before, "an address that nobody has is freed");

    // As a kubelet does that has lost the pod's sandbox.
    let again = Sandbox::new("again", "known", &uid);
    assert!(node.call("ADD", &again).success()["ips"].is_array());
    node.call("DEL", &again).success();
    assert_eq!(node.state(), before);

    let stranger = Sandbox::new("stranger", "stranger", "u1");
    let begin = Instant::now();
    node.call("ADD", &stranger).refused(&["default/stranger", "u1", "has not told", "within 10s"]);
    assert!(begin.elapsed() >= Duration::from_secs(10), "it was waited for");
    assert_eq!(node.state(), before);

    let successor = Sandbox::new("successor", "known", "another-life");
    node.call("ADD", &successor).refused(&["default/known", "another-life", &uid]);
    assert_eq!(node.state(), before);

    let nameless = Sandbox::new("nameless", "", "");
    node.call("ADD", &nameless).success();
    node.call("DEL", &nameless).success();
    assert_eq!(node.state(), before);
}

#[test]
fn an_add_waits_for_its_pod_and_for_nothing_else() {
    let Some(lab) = lab("awaited") else { return };
    let node = Node::of(&lab);
    let before = node.state();

    let late = Sandbox::new("late", "late", "");
    let add = node.start("ADD", &late);
    node.wait_for_waiting(1);
    // Others go on meanwhile.
    let other = Sandbox::new("other", "", "");
    node.call("ADD", &other).success();
    node.call("DEL", &other).success();
    lab.apply(&pod("late")).unwrap();
    add.end().success();
    node.wait_for_waiting(0);
    node.call("DEL", &late).success();

    let unwanted = Sandbox::new("unwanted", "unwanted", "u1");
    let add = node.start("ADD", &unwanted);
    node.wait_for_waiting(1);
    node.call("DEL", &unwanted).success();
    add.end().refused(&["a DEL of pod default/unwanted"]);
    node.wait_for_waiting(0);

    let mut killed = node.start("ADD", &unwanted);
    node.wait_for_waiting(1);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    node.wait_for_waiting(0);
    node.call("DEL", &unwanted).success();

    lab.delete(vec![Key::new(Kind::Pod, "default", "late")], true).unwrap();
    wait_until(NEWS, "the node as it was", || Ok(node.state() == before)).unwrap();
}

#[test]
fn an_agent_that_ends_while_an_add_waits_leaves_nothing_of_it() {
    let Some(lab) = lab("midway") else { return };
    let node = Node::of(&lab);
    let before = node.state();
    for kill in [false, true] {
        let sandbox = Sandbox::new("stranger", "stranger", "u1");
        let add = node.start("ADD", &sandbox);
        node.wait_for_waiting(1);
        lab.restart_agent(NODE, kill).unwrap();
        add.end().refused(&["the agent does not answer"]);
        assert_eq!(node.state(), before);
    }
}

#[test]
fn a_pod_whose_del_the_agent_did_not_hear_of_is_not_in_the_way() {
    let Some(lab) = lab("unheard") else { return };
    let node = Node::of(&lab);
    let before = node.state();
    let ports =
        json!({"portMappings": [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]});
    let [first, second] = ["first", "second"].map(|name| Sandbox::new(name, "", ""));
    let mut config = node.config();
    config["runtimeConfig"] = ports;
    node.start_with("ADD", &first, &config).end().success();
    assert!(node.pods().contains("*:18080/tcp->80"), "{}", node.pods());
    node.start_with("ADD", &second, &config).end().failure(102, &["18080", "first"]);

    let mut unheard = config.clone();
    unheard["socket"] = json!("/nowhere/agent.sock");
    node.start_with("DEL", &first, &unheard).end().success();
    node.start_with("ADD", &second, &config).end().success();
    node.start_with("DEL", &second, &config).end().success();
    assert_eq!(node.state(), before);
}

/// What the container runtime of a node sees.
struct Node<'a> {
    lab: &'a Lab,
    plugin: PathBuf,
    socket: PathBuf,
    state_dir: PathBuf,
    data_dir: PathBuf,
}

impl<'a> Node<'a> {
    fn of(lab: &'a Lab) -> Self {
        let nodes = lab.nodes().unwrap();
        let agent = nodes.into_iter().find(|node| node.name == NODE).unwrap().agent_pid.unwrap();
        let words = fs::read_to_string(format!("/proc/{agent}/cmdline")).unwrap();
        let value_of = |option: &str| {
            let mut words = words.split('\0').skip_while(|word| *word != option);
            PathBuf::from(words.nth(1).unwrap())
        };
        let state_dir = value_of("--state-dir");
        Self {
            lab,
            plugin: binaries().unwrap().join("fairway-cni"),
            socket: value_of("--socket"),
            data_dir: state_dir.ancestors().nth(2).unwrap().join("run").join(NODE).join("cni"),
            state_dir,
        }
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "fairway",
            "type": "fairway-cni",
            "socket": self.socket,
            "dataDir": self.data_dir,
        })
    }

    /// Begins a call of the plugin.
    fn start(&self, verb: &str, sandbox: &Sandbox) -> Call {
        self.start_with(verb, sandbox, &self.config())
    }

    fn start_with(&self, verb: &str, sandbox: &Sandbox, config: &Value) -> Call {
        let target = Target::Node { node: NODE.to_owned() };
        let mut command: Command = self.lab.command(target, self.plugin.to_str().unwrap()).unwrap();
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &sandbox.container_id)
            .env("CNI_NETNS", NetNs::path(&sandbox.netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.plugin.parent().unwrap())
            .env("CNI_ARGS", &sandbox.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        Call { child }
    }

    fn call(&self, verb: &str, sandbox: &Sandbox) -> Outcome {
        self.start(verb, sandbox).end()
    }

    /// All that ADD could leave behind: interfaces, routes, addresses, registrations, pins.
    fn state(&self) -> Vec<String> {
        let target = || Target::Node { node: NODE.to_owned() };
        let shown = |words: &[&str]| {
            let output = self.lab.exec(target(), words).unwrap();
            assert!(output.status.success(), "{words:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let links = shown(&["ip", "-o", "link", "show", "type", "veth"]);
        let links = links.lines().map(|line| line.split_whitespace().nth(1).unwrap_or(line));
        let mut state: Vec<String> = links.map(str::to_owned).collect();
        let routes = shown(&["ip", "route"]);
        state.extend(routes.lines().filter(|line| line.contains(" fw")).map(str::to_owned));
        for entry in fs::read_dir(self.data_dir.join("addresses")).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.parse::<std::net::IpAddr>().is_ok() {
                state.push(name);
            }
        }
        let list = fs::read_to_string(self.state_dir.join("endpoints.json")).unwrap_or_default();
        state.extend(list.lines().filter(|line| line.contains("containerId")).map(str::to_owned));
        state.push(self.metric("fairway_pods"));
        state.sort();
        state
    }

    /// What the agent shows of its pods.
    fn pods(&self) -> String {
        let agent = self.plugin.with_file_name("fairway-proxy");
        let words = [agent.to_str().unwrap(), "pods", "--socket", self.socket.to_str().unwrap()];
        let output = self.lab.exec(Target::Node { node: NODE.to_owned() }, &words).unwrap();
        assert!(output.status.success(), "{output:?}");
        // Whoever reads no more than the first line makes no failure.
        let piped = format!("set -o pipefail; {} | true", words.join(" "));
        let bash = ["bash", "-c", &piped];
        let cut = self.lab.exec(Target::Node { node: NODE.to_owned() }, &bash).unwrap();
        assert!(cut.status.success(), "{cut:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Takes an address for a container, as its ADD did once.
    fn reserve(&self, address: &str, container_id: &str) {
        let owner = json!({"network": "fairway", "containerID": container_id, "ifname": "eth0"});
        let file = self.data_dir.join("addresses").join(address);
        fs::write(file, owner.to_string()).unwrap();
    }

    fn metric(&self, name: &str) -> String {
        let target = Target::Node { node: NODE.to_owned() };
        let metrics = self.lab.get(target, "http://127.0.0.1:10249/metrics").unwrap();
        let mut lines = metrics.lines();
        lines.find(|line| line.starts_with(&format!("{name} "))).unwrap().to_owned()
    }

    fn wait_for_waiting(&self, count: usize) {
        let wanted = format!("fairway_cni_waiting {count}");
        wait_until(NEWS, &wanted, || Ok(self.metric("fairway_cni_waiting") == wanted)).unwrap();
    }

    /// Waits until the pod runs; its uid.
    fn wait_for_pod(&self, name: &str) -> String {
        let uid = Cell::default();
        wait_until(NEWS, "the pod's start", || {
            let pods = self.lab.list(Kind::Pod)?;
            let pod = pods.into_iter().find(|pod| pod["metadata"]["name"] == name);
            let pod = pod.context("no such pod")?;
            uid.set(pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
            Ok(pod["status"]["phase"] == "Running")
        })
        .unwrap();
        uid.take()
    }

    /// Agents write down what they know at most once a second; waits until this one has.
    fn wait_for_snapshot(&self) {
        let pods = self.lab.model().unwrap().pods;
        assert!(pods.contains_key(&ObjectName::new("default", "known")));
        wait_until(NEWS, "the pods in the snapshot", || {
            let text = fs::read_to_string(self.state_dir.join("snapshot"))?;
            let model = text.lines().nth(1).context("a snapshot has a second line")?;
            Ok(serde_json::from_str::<Model>(model)?.pods == pods)
        })
        .unwrap();
    }
}

/// A container's network namespace, and what a runtime says of it.
struct Sandbox {
    container_id: String,
    netns: String,
    arguments: String,
}

impl Sandbox {
    fn new(container_id: &str, pod: &str, uid: &str) -> Self {
        let netns = unique_name(container_id).to_string();
        NetNs::create(&netns).unwrap();
        let arguments = if pod.is_empty() {
            String::new()
        } else {
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_UID={uid}"
            )
        };
        Self { container_id: container_id.to_owned(), netns, arguments }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = NetNs::delete(&self.netns);
    }
}

/// A call of the plugin that has begun.
struct Call {
    child: Child,
}

impl Call {
    fn end(self) -> Outcome {
        let output = self.child.wait_with_output().unwrap();
        let answer = match output.stdout.as_slice() {
            [] => Value::Null,
            text => serde_json::from_slice(text).unwrap(),
        };
        Outcome { success: output.status.success(), answer }
    }
}

/// What came of it.
struct Outcome {
    success: bool,
    answer: Value,
}

impl Outcome {
    #[track_caller]
    fn success(self) -> Value {
        assert!(self.success, "{}", self.answer);
        self.answer
    }

    /// Refused, to be tried again, for a reason in which all of `parts` are.
    #[track_caller]
    fn refused(self, parts: &[&str]) {
        self.failure(11, parts);
    }

    #[track_caller]
    fn failure(self, code: u32, parts: &[&str]) {
        assert!(!self.success, "{}", self.answer);
        assert_eq!(self.answer["code"], code, "{}", self.answer);
        let message = self.answer["msg"].as_str().unwrap();
        for part in parts {
            assert!(message.contains(part), "{part:?} in {message:?}");
        }
    }
}

fn lab(tag: &str) -> Option<Lab> {
    if !may_run(tag) {
        return None;
    }
    Some(Lab::up(Options::named(unique_name(tag))).unwrap())
}
