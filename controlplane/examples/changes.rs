//! How long a change of one object takes to become a model, in a cluster of any size: objects as an API server
//! has them in, the model and all that is wrong out, in one process.
//!
//! ```sh
//! cargo run --release -p fairway-controlplane --example changes
//! cargo run --release -p fairway-controlplane --example changes -- 1000 15000 500 50 20
//! ```
//!
//! The numbers are Services, pods, nodes, policies, and changes of each kind. At last a policy changes in a folder of
//! manifests that has a part of the pods: from the file that is written to the model.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fairway_controlplane::kubernetes::{Kind, ObjectId};
use fairway_controlplane::live::{Live, Read, read};
use fairway_controlplane::manifests::{self, DEFAULT_NODE_PORTS, Options};
use fairway_model::{Model, ObjectName};
use serde_json::{Value, json};

/// Services, pods, nodes, policies, changes of each kind.
const USUAL: [usize; 5] = [10_000, 150_000, 5000, 500, 50];
/// Pods of the folder, at most.
const FOLDER: usize = 10_000;
/// How long anything may take there.
const LIMIT: Duration = Duration::from_secs(60);
/// Endpoints of each Service.
const ENDPOINTS: usize = 25;
/// Pods, Services and policies are spread over so many, as far as there are enough.
const NAMESPACES: usize = 200;
/// Applications of each namespace.
const APPS: usize = 20;

type Error = Box<dyn std::error::Error>;

/// What a watch brings.
enum Step {
    Put(Box<Read>),
    Gone(ObjectId),
}

struct Cluster {
    services: usize,
    pods: usize,
    nodes: usize,
    live: Live,
    model: Model,
}

fn main() -> Result<(), Error> {
    let mut size = USUAL;
    for (number, text) in size.iter_mut().zip(std::env::args().skip(1)) {
        *number = text.parse()?;
    }
    let [services, pods, nodes, policies, changes] = size;
    let live = Live::new(vec!["10.96.0.0/12".parse()?])?;
    let mut cluster = Cluster { services, pods, nodes, live, model: Model::default() };
    cluster.fill(policies)?;
    let start = Instant::now();
    let (model, problems) = cluster.live.model();
    cluster.model = model;
    println!(
        "{services} Services, {} endpoints, {pods} pods, {nodes} nodes, {policies} policies, {} groups, {} problems",
        services * ENDPOINTS,
        cluster.model.groups.len(),
        problems.len()
    );
    println!("first model: {} ms; {}", start.elapsed().as_millis(), memory()?);
    println!("{:<34} {:>9} {:>9} {:>9}", "one change", "median ms", "most ms", "objects");
    cluster.measure(changes)?;
    println!("{}", memory()?);
    let folder = std::env::temp_dir().join(format!("fairway-changes-{}", std::process::id()));
    let times = cluster.folder(&folder, changes);
    std::fs::remove_dir_all(&folder)?;
    print("policy, from its file", times?, 1);
    Ok(())
}

impl Cluster {
    fn put(&mut self, kind: Kind, value: Value) -> Result<(), Error> {
        self.live.put(read(kind, value)?);
        Ok(())
    }

    fn fill(&mut self, policies: usize) -> Result<(), Error> {
        for number in 0..NAMESPACES {
            self.put(Kind::Namespace, namespace(number, number % 10))?;
        }
        for number in 0..self.nodes {
            self.put(Kind::Node, node(number, number % 3, 0))?;
        }
        for number in 0..self.pods {
            self.put(Kind::Pod, self.pod(number, number / NAMESPACES % APPS, 0))?;
        }
        for number in 0..self.services {
            self.put(Kind::Service, service(number, 80))?;
            self.put(Kind::EndpointSlice, self.slice(number, true))?;
        }
        for number in 0..policies {
            self.put(Kind::NetworkPolicy, policy(number, "app", 0))?;
        }
        Ok(())
    }

    fn measure(&mut self, changes: usize) -> Result<(), Error> {
        let of = |cluster: &Self, round: usize| round * 7919 % cluster.pods;
        let pod = |cluster: &Self, number: usize, shift: usize, life: usize| {
            let app = (number / NAMESPACES + shift) % APPS;
            Ok(vec![put(Kind::Pod, cluster.pod(number, app, life))?])
        };
        self.each("endpoint: not ready any more", changes, |cluster, round| {
            let slice = cluster.slice(round * 31 % cluster.services, false);
            Ok(vec![put(Kind::EndpointSlice, slice)?])
        })?;
        self.each("100 endpoints at once", changes, |cluster, round| {
            let slices = (0..100).map(|number| {
                let number = (round * 100 + number) % cluster.services;
                put(Kind::EndpointSlice, cluster.slice(number, round % 2 == 0))
            });
            slices.collect()
        })?;
        self.each("pod: other labels", changes, |cluster, round| {
            pod(cluster, of(cluster, round), 1, 0)
        })?;
        self.each("pod: another address", changes, |cluster, round| {
            pod(cluster, of(cluster, round), 1, 1)
        })?;
        self.each("pod: gone", changes, |cluster, round| {
            let number = of(cluster, round);
            let name = ObjectName::new(space(number), format!("p{number}"));
            Ok(vec![Step::Gone(ObjectId { kind: Kind::Pod, name })])
        })?;
        self.each("pod: new", changes, |cluster, round| pod(cluster, of(cluster, round), 0, 0))?;
        self.each("Service: another port", changes, |cluster, round| {
            Ok(vec![put(Kind::Service, service(round * 31 % cluster.services, 81))?])
        })?;
        self.each("policy: another peer", changes, |_, round| {
            Ok(vec![put(Kind::NetworkPolicy, policy(round, "app", 1))?])
        })?;
        self.each("policy: a label none asked for", changes, |_, round| {
            let key = ["track", "app"][round % 2];
            Ok(vec![put(Kind::NetworkPolicy, policy(0, key, 0))?])
        })?;
        self.each("namespace: another label", changes, |_, round| {
            Ok(vec![put(Kind::Namespace, namespace(round, (round + 1) % 10))?])
        })?;
        let change = |cluster: &Self, round: usize, moment: usize| {
            let number = round * 13 % cluster.nodes;
            Ok(vec![put(Kind::Node, node(number, (number + 1) % 3, moment))?])
        };
        self.each("node: another zone", changes, |cluster, round| change(cluster, round, 0))?;
        self.each("node: it says that it lives", changes, |cluster, round| {
            change(cluster, round, 1)
        })
    }

    /// Measures from changed objects to the model and what is wrong.
    fn each(
        &mut self,
        name: &str,
        changes: usize,
        change: impl Fn(&Self, usize) -> Result<Vec<Step>, Error>,
    ) -> Result<(), Error> {
        let (mut times, mut differ) = (Vec::new(), 0);
        for round in 0..changes {
            let steps = change(self, round)?;
            let start = Instant::now();
            for step in steps {
                match step {
                    Step::Put(read) => self.live.put(*read),
                    Step::Gone(id) => self.live.remove(&id),
                }
            }
            let (model, _) = self.live.model();
            let unsaid = self.live.unsaid();
            times.push(start.elapsed());
            drop(unsaid);
            differ += self.model.diff(&model).len();
            self.model = model;
        }
        print(name, times, differ.div_ceil(changes.max(1)));
        Ok(())
    }

    /// Measures from a policy's file to the model.
    fn folder(&self, folder: &Path, changes: usize) -> Result<Vec<Duration>, Error> {
        let (dir, state_dir) = (folder.join("manifests"), folder.join("state"));
        std::fs::create_dir_all(&dir)?;
        let label = |mut value: Value, kind: &str, version: &str| {
            value["kind"] = kind.into();
            value["apiVersion"] = version.into();
            value
        };
        // A file has no more than so many values.
        for first in (0..self.pods.min(FOLDER)).step_by(1000) {
            let pods = (first..self.pods.min(first + 1000))
                .map(|number| label(self.pod(number, 0, 0), "Pod", "v1"));
            let list = json!({"kind": "List", "items": pods.collect::<Vec<_>>()});
            write(&dir.join(format!("pods-{first}.json")), &list)?;
        }
        let policy = |round: usize| {
            let policy = label(policy(0, "app", round), "NetworkPolicy", "networking.k8s.io/v1");
            write(&dir.join("policy.json"), &policy)
        };
        policy(0)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let service_cidrs = vec!["10.96.0.0/12".parse()?];
            let node_port_range = DEFAULT_NODE_PORTS;
            let options = Options {
                dir: dir.clone(),
                state_dir,
                service_cidrs,
                node_port_range,
                local: None,
                resolver: None,
            };
            let mut source = manifests::start(options)?;
            tokio::time::timeout(LIMIT, source.model.wait_for(Option::is_some)).await??;
            let mut times = Vec::new();
            for round in 1..=changes {
                // Whatever the last one left to do is done.
                tokio::time::sleep(Duration::from_millis(300)).await;
                source.model.mark_unchanged();
                let start = Instant::now();
                policy(round)?;
                tokio::time::timeout(LIMIT, source.model.changed()).await??;
                times.push(start.elapsed());
            }
            Ok(times)
        })
    }

    fn pod(&self, number: usize, app: usize, life: usize) -> Value {
        let ip = format!(
            "10.{}.{}.{}",
            128 + 8 * life + (number >> 16),
            number >> 8 & 255,
            number & 255
        );
        let track = ["stable", "canary"][number % 2];
        json!({
            "metadata": {"namespace": space(number), "name": format!("p{number}"), "uid": format!("u{number}"),
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": format!("a{app}"), "pod-template-hash": format!("h{app}"),
                    "track": track}},
            "spec": {"nodeName": format!("n{}", number % self.nodes),
                "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    /// The endpoints of a Service, of which the first is ready or not.
    fn slice(&self, number: usize, ready: bool) -> Value {
        let pods = (0..ENDPOINTS).map(|at| {
            let pod = (number + NAMESPACES * (number / NAMESPACES + at * 17)) % self.pods;
            let ip = format!("10.{}.{}.{}", 128 + (pod >> 16), pod >> 8 & 255, pod & 255);
            json!({"addresses": [ip], "nodeName": format!("n{}", pod % self.nodes), "zone": "z0",
                "conditions": {"ready": at > 0 || ready},
                "targetRef": {"kind": "Pod", "name": format!("p{pod}")}})
        });
        json!({
            "metadata": {"namespace": space(number), "name": format!("s{number}-abcde"),
                "labels": {"kubernetes.io/service-name": format!("s{number}")}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
            "endpoints": pods.collect::<Vec<_>>(),
        })
    }
}

fn space(number: usize) -> String {
    format!("ns{}", number % NAMESPACES)
}

fn namespace(number: usize, team: usize) -> Value {
    json!({"metadata": {"name": space(number), "labels": {"team": format!("t{team}")}}})
}

fn node(number: usize, zone: usize, moment: usize) -> Value {
    let (high, low) = (number >> 8, number & 255);
    json!({
        "metadata": {"name": format!("n{number}"), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"topology.kubernetes.io/zone": format!("z{zone}")}},
        "spec": {"podCIDR": format!("10.{}.{}.0/26", high, low)},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.16.{high}.{low}")}],
            "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": moment.to_string()}]},
    })
}

fn service(number: usize, port: usize) -> Value {
    let ip = format!("10.{}.{}.{}", 96 + (number >> 16), number >> 8 & 255, number & 255);
    json!({
        "metadata": {"namespace": space(number), "name": format!("s{number}"), "uid": format!("u{number}"),
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "selector": {"app": format!("a{}", number % APPS)},
            "ports": [{"port": port, "targetPort": 8080}]},
    })
}

/// One of a namespace that lets in two kinds of pods.
fn policy(number: usize, key: &str, shift: usize) -> Value {
    let app = |number: usize| json!({"matchLabels": {"app": format!("a{}", number % APPS)}});
    let team = json!({"matchLabels": {"team": format!("t{}", (number + shift) % 10)}});
    let value =
        if key == "app" { format!("a{}", number / NAMESPACES % APPS) } else { "stable".to_owned() };
    json!({
        "metadata": {"namespace": space(number), "name": format!("np{number}")},
        "spec": {"podSelector": {"matchLabels": {key: value}}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": "http"}], "from": [
                {"podSelector": app(number + shift + 1)},
                {"namespaceSelector": team, "podSelector": app(number)}]}]},
    })
}

fn put(kind: Kind, value: Value) -> Result<Step, Error> {
    Ok(Step::Put(Box::new(read(kind, value)?)))
}

/// In one step.
fn write(path: &Path, value: &Value) -> std::io::Result<()> {
    let new: PathBuf = path.with_extension("new");
    std::fs::write(&new, value.to_string())?;
    std::fs::rename(new, path)
}

fn print(name: &str, mut times: Vec<Duration>, objects: usize) {
    times.sort();
    let ms = |place: usize| times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let (median, most) = (ms(times.len() / 2), ms(times.len().saturating_sub(1)));
    println!("{name:<34} {median:>9.3} {most:>9.3} {objects:>9}");
}

/// What this process has, and has had at most.
fn memory() -> std::io::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mb = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kb = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kb.unwrap_or_default() / 1e3
    };
    Ok(format!("resident {:.1} MB, at most {:.1} MB", mb("VmRSS:"), mb("VmHWM:")))
}
