//! What a limited pod sends beyond its limit waits in the uplink's `fq`, on a kernel that has it.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fairway_netlink::{NetNs, Netlink, Veth};
use fairway_tests::api::Target;
use fairway_tests::wait::wait_until;
use fairway_tests::{Lab, may_run, two_nodes};

/// Bits a second, as in the manifests: little, because the processor may be emulated.
const LIMIT: f64 = 4e6;
/// Bits that may pass at once before it; the annotation names none, so it is the agent's.
const BURST: f64 = 4.0 * 65_536.0 * 8.0;
/// Bytes: the burst, and more than a second's worth.
const SIZE: u32 = 1_000_000;
/// For something that takes a second or two, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFESTS: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: sender
  labels: {app: pacing}
  annotations: {kubernetes.io/egress-bandwidth: 4M}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080, hostPort: 8081}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: pacing}}
spec:
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: pacing}}
spec:
  nodeSelector: {kubernetes.io/hostname: node2}
  containers: [{name: c, image: agnhost, ports: [{containerPort: 8080}]}]
";

#[test]
fn what_leaves_the_node_waits_and_what_stays_is_policed() {
    if !may_run("pacing") || !has_fq() {
        return;
    }
    let Some(lab) = two_nodes("pacing", |_| {}) else { return };
    lab.apply(MANIFESTS).unwrap();
    let pods = lab.wait_for_pods("default", "app", "pacing", 3).unwrap();
    let address = |name: &str| -> IpAddr {
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
        pod["status"]["podIP"].as_str().unwrap().parse().unwrap()
    };
    let node1 = lab.nodes().unwrap().into_iter().find(|node| node.name == "node1").unwrap();
    let sender = SocketAddr::new(address("sender"), 8080);
    let host_port = SocketAddr::new(node1.addresses[0], 8081);

    set_root(&lab, Some("fq"));
    let before = metric(&lab, EGRESS_RATE);
    for (who, server) in [(pod("far"), sender), (Target::Client, host_port)] {
        check_rate(&format!("{who:?}, by TCP"), download(&lab, &who, server));
    }
    let paced = drops(&lab) - before;
    check_rate("far, by UDP", datagrams(&lab, pod("sender"), pod("far"), address("far")));
    let datagrams = drops(&lab) - before - paced;

    let before = drops(&lab);
    check_rate("near, policed", download(&lab, &pod("near"), sender));
    let policed = more_drops(&lab, before);
    set_root(&lab, None);
    check_rate("far, policed", download(&lab, &pod("far"), sender));
    let policed_far = more_drops(&lab, before + policed);
    println!(
        "dropped: {paced} of two by TCP and {datagrams} of UDP where fq holds them, \
         {policed} and {policed_far} elsewhere"
    );
    // Before a connection knows its pace, a few of its packets may be too many.
    let few = (policed + policed_far) / 4.0;
    assert!(paced <= few, "{paced} packets were dropped rather than held");
}

const EGRESS_RATE: &str = "fairway_drops_total{reason=\"egress_rate\"}";

fn has_fq() -> bool {
    let netns = NetNs::unnamed().unwrap();
    let mut links = Netlink::open_in(&netns).unwrap();
    let veth = Veth { name: "probe", peer_name: "peer", ..Veth::default() };
    let index = links.create_veth(&veth).unwrap().index;
    let Err(error) = links.replace_root(index, "fq") else { return true };
    assert!(error.is_not_found(), "ENOENT is what a kernel without it says: {error:?}");
    eprintln!("NOT RUN: this kernel has no fq; cargo xtask guest runs it on one that has");
    false
}

/// Puts a queueing discipline on node1's uplink, or takes it away, and waits until its agent knows.
fn set_root(lab: &Lab, kind: Option<&str>) {
    let words = match kind {
        Some(kind) => &["tc", "qdisc", "replace", "dev", "eth0", "root", kind][..],
        None => &["tc", "qdisc", "delete", "dev", "eth0", "root"],
    };
    let output = lab.exec(node(), words).unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    let paced = if kind.is_some() { 1.0 } else { 0.0 };
    let about = format!("an agent that has found {kind:?}");
    wait_until(PATIENCE, &about, || Ok(metric(lab, "fairway_paced_devices") == paced)).unwrap();
}

/// How many packets were dropped for exceeding the limit until now: the agent has counted all of them
/// when it has followed the queue twice.
fn drops(lab: &Lab) -> f64 {
    set_root(lab, None);
    set_root(lab, Some("fq"));
    metric(lab, EGRESS_RATE)
}

/// How many more packets were dropped for exceeding the limit; there are some.
fn more_drops(lab: &Lab, before: f64) -> f64 {
    wait_until(PATIENCE, "drops", || Ok(metric(lab, EGRESS_RATE) > before)).unwrap();
    metric(lab, EGRESS_RATE) - before
}

fn metric(lab: &Lab, name: &str) -> f64 {
    let metrics = lab.get(node(), "http://127.0.0.1:10249/metrics").unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or_else(|| panic!("no {name} in {metrics}")).trim().parse().unwrap()
}

fn check_rate(what: &str, rate: f64) {
    println!("{what}: {:.2} of the limit", rate / LIMIT);
    assert!(rate < 1.2 * LIMIT, "{what}: {rate} bits a second");
    assert!(rate > 0.3 * LIMIT, "{what}: {rate} bits a second");
}

/// Bits a second of a download, after the burst.
fn download(lab: &Lab, who: &Target, server: SocketAddr) -> f64 {
    let url = format!("http://{server}/bytes?count={SIZE}");
    let format = "%{size_download} %{time_total}";
    let words = ["curl", "-gsSf", "--max-time", "40", "-o", "/dev/null", "-w", format, &url];
    let output = lab.exec(who.clone(), &words).unwrap();
    assert!(output.status.success(), "{who:?} from {server}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (size, time) = text.split_once(' ').unwrap();
    assert_eq!(size.parse::<u32>().unwrap(), SIZE);
    (f64::from(SIZE) * 8.0 - BURST) / time.parse::<f64>().unwrap()
}

/// Bits a second of datagrams that are sent as fast as a socket takes them, after the burst.
fn datagrams(lab: &Lab, from: Target, to: Target, address: IpAddr) -> f64 {
    const DATAGRAM: [u8; 1200] = [0; 1200];
    let receiver = socket(lab, to);
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = socket(lab, from);
    sender.connect(SocketAddr::new(address, receiver.local_addr().unwrap().port())).unwrap();
    let enough = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                sender.send(&DATAGRAM).unwrap();
            }
        });
        let count = SIZE as usize / DATAGRAM.len();
        let received = (0..count).try_for_each(|_| receiver.recv(&mut [0; 2000]).map(drop));
        enough.store(true, Ordering::Relaxed);
        received.unwrap();
        // Their headers count.
        let bits = (count * (DATAGRAM.len() + 42) * 8) as f64;
        (bits - BURST) / start.elapsed().as_secs_f64()
    })
}

/// A UDP socket of a pod's.
fn socket(lab: &Lab, of: Target) -> UdpSocket {
    let mut waiting = lab.command(of, "cat").unwrap();
    let waiting = Waiting(waiting.stdin(Stdio::piped()).spawn().unwrap());
    let netns = NetNs::open(format!("/proc/{}/ns/net", waiting.0.id())).unwrap();
    netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap()
}

/// A process that waits for input; killed on drop.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pod(name: &str) -> Target {
    Target::Pod { namespace: "default".to_owned(), name: name.to_owned() }
}

fn node() -> Target {
    Target::Node { node: "node1".to_owned() }
}
