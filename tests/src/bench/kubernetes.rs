//! A control plane with a whole cluster from an API server: how long it takes to a first model, what it costs,
//! and how much memory it is.
//!
//! The API server is the one of the tests, in this process; the control plane is the real binary. Which share of
//! the time is the server's own is not told apart, so the time is an upper bound; the processor's time is the
//! control plane's alone.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::progress;
use super::report::{Row, rounded, table, write_json};
use super::tables::{Memory, cpu};
use crate::apiserver::ApiServer;
use crate::http::get;

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 5000)]
    nodes: u64,
    /// Pods, shared out among the nodes
    #[arg(long, default_value_t = 150_000)]
    pods: u64,
    /// Services, each with a slice
    #[arg(long, default_value_t = 10_000)]
    services: u64,
    /// Endpoints of each slice
    #[arg(long, default_value_t = 25)]
    endpoints: u64,
    /// Where fairway-controlplane is [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// For the first model, from the start.
const LIMIT: Duration = Duration::from_secs(600);

pub(super) fn run(options: &Options) -> Result<()> {
    let beside = std::env::current_exe().context("find this program")?;
    let beside = beside.parent().map(Path::to_owned).unwrap_or_default();
    let program = options.bin_dir.clone().unwrap_or(beside).join("fairway-controlplane");
    ensure!(program.exists(), "{} is not there", program.display());
    let server = start_server()?;
    progress("making the cluster");
    fill(&server, options);
    let mut rows = Vec::new();
    for (case, streams) in [("streamed", true), ("pages", false)] {
        progress(&format!("starting a control plane; lists: {case}"));
        server.behave(|behaviour| behaviour.streams_lists = streams);
        measure(&server, &program, case, options, &mut rows)?;
    }
    let lines = rows.iter().map(|row: &Row| {
        vec![format!("{}: {}", row.case, row.metric), format!("{} {}", row.value, row.unit)]
    });
    println!("{}", table(&["lists", "figure"], lines));
    match &options.json {
        Some(file) => write_json(file, &rows),
        None => Ok(()),
    }
}

/// In a thread of its own, for as long as this process.
fn start_server() -> Result<ApiServer> {
    let (sender, receiver) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    thread::spawn(move || {
        runtime.block_on(async {
            // Who asked is there as long as this process.
            let _ = sender.send(ApiServer::start().await);
            std::future::pending::<()>().await;
        });
    });
    receiver.recv().context("start the API server")?.context("start the API server")
}

fn fill(server: &ApiServer, options: &Options) {
    server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    for number in 0..options.nodes {
        let range = format!("10.{}.{}.0/24", number / 256 % 256, number % 256);
        let address = format!("172.16.{}.{}", number / 256, number % 256);
        server.put(json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": format!("node-{number}"), "labels": labels(number)},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": "True"},
                    {"type": "NetworkUnavailable", "status": "False"}]}}));
    }
    for number in 0..options.pods {
        server.put(pod(number, options));
    }
    for number in 0..options.services {
        let name = format!("service-{number}");
        let address = format!("10.200.{}.{}", number / 256, number % 256);
        server.put(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": address, "clusterIPs": [address], "selector": {"app": name},
                "ports": [{"port": 80, "targetPort": 8080}]}}));
        let endpoints = (0..options.endpoints).map(|index| {
            let pod = (number * options.endpoints + index) % options.pods.max(1);
            json!({"addresses": [ip(pod, options)], "conditions": {"ready": true, "serving": true},
                "nodeName": format!("node-{}", pod % options.nodes.max(1)),
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("pod-{pod}")}})
        });
        server.put(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-a"), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": [{"name": "", "protocol": "TCP", "port": 8080}]}));
    }
}

/// A pod with the parts that most have.
fn pod(number: u64, options: &Options) -> Value {
    let ip = ip(number, options);
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "namespace": "shop", "labels": labels(number / 25),
            "ownerReferences": [{"kind": "ReplicaSet", "name": "x", "uid": "x", "controller": true}]},
        "spec": {"nodeName": format!("node-{}", number % options.nodes.max(1)),
            "containers": [
                {"name": "main", "image": "registry.example/main:1", "env": [{"name": "A", "value": "b"}],
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}},
                {"name": "side", "image": "registry.example/side:1"}],
            "tolerations": [{"key": "a", "operator": "Exists"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"},
                {"type": "ContainersReady", "status": "True"}, {"type": "PodScheduled", "status": "True"}]}})
}

fn labels(number: u64) -> Value {
    json!({"app": format!("service-{number}"), "pod-template-hash": "5f7c9b8d66", "tier": "backend",
        "app.kubernetes.io/managed-by": "Helm"})
}

fn ip(pod: u64, options: &Options) -> String {
    let (node, index) = (pod % options.nodes.max(1), pod / options.nodes.max(1));
    format!("10.{}.{}.{}", node / 256 % 256, node % 256, 2 + index % 250)
}

fn measure(
    server: &ApiServer,
    program: &Path,
    case: &'static str,
    options: &Options,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let folder = Folder::new()?;
    let kubeconfig = folder.0.join("config");
    let file = json!({"apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server.url()}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}]});
    std::fs::write(&kubeconfig, file.to_string()).context("write the kubeconfig")?;
    let begun = Instant::now();
    let mut command = Command::new(program);
    command.args(["run", "--kubernetes", "--listen", "127.0.0.1:0", "--kubeconfig"]);
    command.arg(&kubeconfig).arg("--state-dir").arg(folder.0.join("state"));
    let mut running = Running(command.stderr(Stdio::piped()).spawn().context("start it")?);
    let pid = running.0.id();
    let log = running.0.stderr.take().context("read its log")?;
    let mut lines = BufReader::new(log).lines();
    let address: SocketAddr = loop {
        let line = lines.next().context("it ended")?.context("read its log")?;
        if let Some((_, address)) = line.split_once("address=") {
            break address.trim().parse().context("read its address")?;
        }
    };
    // Somebody has to read on.
    thread::spawn(move || lines.for_each(drop));
    while get(address, "/readyz", Duration::from_secs(5)).map_or(0, |answer| answer.status) != 200 {
        if begun.elapsed() > LIMIT {
            bail!("there is no model after {} s", LIMIT.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let time = begun.elapsed();
    let (memory, processor) = (Memory::of(pid)?, cpu(pid)?);
    let params = BTreeMap::from([
        ("nodes", options.nodes.into()),
        ("pods", options.pods.into()),
        ("services", options.services.into()),
        ("endpoints", (options.services * options.endpoints).into()),
    ]);
    for (metric, unit, value) in [
        ("first model", "s", time.as_secs_f64()),
        ("processor", "s", processor.as_secs_f64()),
        ("resident", "MB", memory.resident),
        ("peak", "MB", memory.peak),
    ] {
        rows.push(Row {
            bench: "kubernetes",
            case,
            params: params.clone(),
            metric,
            unit,
            value: rounded(value),
            baseline: None,
            ratio: None,
        });
    }
    Ok(())
}

/// A folder that goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let name = format!("fairway-bench-kubernetes-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).context("make a folder")?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is small, and in a folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Ends the program also when something fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
