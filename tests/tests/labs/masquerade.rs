//! How pods appear outside the cluster, and what becomes of packets that lie about their source.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use fairway_tests::api::Target;
use fairway_tests::binaries::binaries;
use fairway_tests::wait::wait_until;
use fairway_tests::{Backend, Lab, Options, may_run, unique_name};

/// News of a changed file, and of a dropped packet, arrive within this time.
const NEWS: Duration = Duration::from_secs(10);

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: asks, labels: {app: asks}}
spec: {containers: [{name: c, image: agnhost}]}
";

/// The outside client's addresses, and the ranges they are in.
const CLIENT: [&str; 2] = ["192.168.250.2", "fd00:240:a::2"];
const OUTSIDE: &str = "192.168.250.0/24, \"fd00:240:a::/64\"";
/// Addresses of node1's range of pods that no pod has.
const NOBODY: [&str; 2] = ["10.244.0.200", "fd00:10:244::200"];
const PORT: u16 = 8888;

#[test]
fn the_outside_sees_who_it_is_to_see() {
    if !may_run("masquerade") {
        return;
    }
    let name = unique_name("masq");
    let config = Config(std::env::temp_dir().join(format!("{name}.yaml")));
    config.says("nonMasqueradeCIDRs: []");
    // Behind more than one subnet, the router knows the way to pods where routes are plain.
    let options = Options {
        nodes: 1,
        subnets: 2,
        backend: Backend::HostGw,
        pod_cidr: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        service_cidr: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        agent_arg: vec![format!("--ip-masq-agent-config={}", config.0.display())],
        ..Options::named(name)
    };
    let lab = Lab::up(options).unwrap();
    let _server = Server::start(&lab);
    lab.apply(POD).unwrap();
    let pod = lab.wait_for_pods("default", "app", "asks", 1).unwrap().remove(0);
    let pod: Vec<IpAddr> = pod["status"]["podIPs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|address| address["ip"].as_str().unwrap().parse().unwrap())
        .collect();
    let node = lab.nodes().unwrap().remove(0).addresses;

    seen(&lab, &node);
    config.says(&format!("nonMasqueradeCIDRs: [{OUTSIDE}]"));
    seen(&lab, &pod);
    // What does not say what it should changes nothing, and is named.
    config.says("nonMasqueradeCIDRs: [192.168.250.0/240]");
    wait_until(NEWS, "a complaint", || Ok(lab.logs(node1())?.contains("nonMasqueradeCIDRs[0]")))
        .unwrap();
    seen(&lab, &pod);
    config.says(r#"{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqLinkLocal": true}"#);
    seen(&lab, &node);

    // A pod that takes an address that is not its own.
    for (own, server) in NOBODY.into_iter().zip(CLIENT) {
        let server = SocketAddr::new(server.parse().unwrap(), PORT);
        is_dropped(&lab, asks(), own, server, "spoofed_source");
    }
    // Somebody outside who takes one of the node's range of pods.
    for (own, address) in NOBODY.into_iter().zip(node) {
        let server = SocketAddr::new(address, 10256);
        is_dropped(&lab, Target::Client, own, server, "foreign_source");
    }
    seen(&lab, &lab.nodes().unwrap().remove(0).addresses);
}

fn asks() -> Target {
    Target::Pod { namespace: "default".to_owned(), name: "asks".to_owned() }
}

fn node1() -> Target {
    Target::Node { node: "node1".to_owned() }
}

/// Waits until the client sees the pod under one of these addresses, in each family.
#[track_caller]
fn seen(lab: &Lab, wanted: &[IpAddr]) {
    for address in CLIENT {
        let server = SocketAddr::new(address.parse().unwrap(), PORT);
        let what = format!("{server} to see one of {wanted:?}");
        wait_until(NEWS, &what, || {
            let seen = lab.get(asks(), &format!("http://{server}/clientip"))?;
            let seen: SocketAddr = seen.trim().parse().with_context(|| format!("read {seen:?}"))?;
            Ok(wanted.contains(&seen.ip()))
        })
        .unwrap();
    }
}

/// Asks a server from an address that is not `who`'s to take: there is no answer, and the drop is
/// counted.
#[track_caller]
fn is_dropped(lab: &Lab, who: Target, from: &str, server: SocketAddr, reason: &str) {
    let length = if server.is_ipv4() { 32 } else { 128 };
    let take = ["ip", "address", "add", &format!("{from}/{length}"), "dev", "lo"];
    assert!(lab.exec(who.clone(), &take).unwrap().status.success());
    let before = drops(lab, reason).unwrap();
    let url = format!("http://{server}/clientip");
    let ask = ["curl", "-gs", "--max-time", "2", "--interface", from, &url];
    assert!(!lab.exec(who, &ask).unwrap().status.success(), "{from} got an answer");
    wait_until(NEWS, &format!("a drop for {reason}"), || Ok(drops(lab, reason)? > before)).unwrap();
}

/// Packets that node1 has dropped for a reason.
fn drops(lab: &Lab, reason: &str) -> Result<f64> {
    let metrics = lab.get(node1(), "http://127.0.0.1:10249/metrics")?;
    let name = format!("fairway_drops_total{{reason=\"{reason}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(count.with_context(|| format!("no {name}in {metrics}"))?.parse()?)
}

/// A file in ip-masq-agent's form; gone with this value.
struct Config(PathBuf);

impl Config {
    /// Replaces it as a whole.
    fn says(&self, content: &str) {
        let new = self.0.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, &self.0).unwrap();
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A server beside the outside client; gone with this value.
struct Server(Child);

impl Server {
    fn start(lab: &Lab) -> Self {
        let program = binaries().unwrap().join("fairway-lab");
        let mut command = lab.command(Target::Client, program.to_str().unwrap()).unwrap();
        command.args(["app", "netexec", "--http-port", &PORT.to_string()]);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
