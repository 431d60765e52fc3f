//! The feed: one control plane, any number of subscribers, a cluster of any size, and a change now and then.
//!
//! ```text
//! this process                                another, the control plane
//!   subscribers ── TLS, one connection each ──► server ◄── models, changed at a given rate
//!   stdin and stdout: what to do, what it took
//! ```
//!
//! Most subscribers read revisions and acknowledge them, ten keep the whole model and check it. Both processes
//! share the machine's processors, so times contain the work of the subscribers, which in a cluster have
//! processors of their own; the control plane's CPU time does not.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use fairway_feed::authority::Authority;
use fairway_feed::client::{self, Follower, ask, skim};
use fairway_feed::identity::Role;
use fairway_feed::tls::{self, Files};
use fairway_feed::{Facts, disk, server};
use fairway_model::{
    Endpoint, EndpointState, Endpoints, Hints, Model, Node, Object, ObjectName, Pod, Protocol,
    Service, ServicePort,
};
use http::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::progress;
use super::report::{Row, rounded, table, write_json};

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many subscribers, in one run after the other
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000])]
    subscribers: Vec<u32>,
    /// Changes a second, each of one Service's endpoints
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// For how many seconds endpoints change
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    #[command(flatten)]
    size: Size,
}

/// What there is in the cluster.
#[derive(Args, Clone, Debug)]
pub(super) struct Size {
    /// Services
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    services: u32,
    /// Endpoints of each
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1000))]
    endpoints: u32,
    /// Nodes
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    nodes: u32,
    /// Pods, spread over them
    #[arg(long, default_value_t = 150_000)]
    pods: u32,
}

/// What the control plane's process is started with.
#[derive(Debug, Args)]
pub(super) struct ServerOptions {
    /// Where its CA is
    folder: PathBuf,
    #[command(flatten)]
    size: Size,
}

/// Subscribers that keep the model and check it.
const WHOLE: u32 = 10;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);
/// What a step costs on the wire beside its payload: the heads of an HTTP/2 frame (9) and of a TLS record (5),
/// and the record's end (17).
const OVERHEAD: f64 = 31.0;

/// What the control plane is asked.
#[derive(Serialize, Deserialize)]
enum Order {
    Change { rate: u32, seconds: u32 },
    Tell,
}

/// What it answers.
#[derive(Serialize, Deserialize)]
struct Told {
    changes: u32,
    /// User's and kernel's.
    cpu_ms: f64,
    resident_kb: f64,
    peak_kb: f64,
}

/// Runs the benchmark, prints its table, and writes its rows if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    raise_limit()?;
    let folder = Folder::new()?;
    let authority = Authority::open(&folder.0.join("ca"))?;
    let most = options.subscribers.iter().copied().max().unwrap_or(1);
    let mut certificates = Vec::new();
    for number in 0..most {
        certificates.push(certify(&authority, &folder.0, &Role::Node(node_name(number)))?);
    }
    let operator = certify(&authority, &folder.0, &Role::Operator("bench".to_owned()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for count in &options.subscribers {
        progress(&format!("{count} subscribers"));
        let files = certificates.iter().take(usize::try_from(*count)?).cloned().collect();
        let run = Run { count: *count, options, folder: &folder.0, files, operator: &operator };
        rows.extend(runtime.block_on(run.run())?);
    }
    println!("{}", summary(&rows));
    if let Some(model) = extrapolation(&rows) {
        println!("{model}");
    }
    options.json.as_ref().map_or(Ok(()), |file| write_json(file, &rows))
}

/// One number of subscribers.
struct Run<'a> {
    count: u32,
    options: &'a Options,
    folder: &'a Path,
    files: Vec<Files>,
    operator: &'a Files,
}

impl Run<'_> {
    async fn run(self) -> Result<Vec<Row>> {
        let mut control = Control::start(self.folder, &self.options.size)?;
        let before = control.order(&Order::Tell)?;
        let start = Instant::now();
        let (subscribers, mut synced) = self.subscribe(&control.endpoint)?;
        let all = synced.wait_for(|synced| *synced >= self.count);
        timeout(LIMIT, all).await.context("not every subscriber got the model")??;
        let elapsed = start.elapsed();
        let after = control.order(&Order::Tell)?;
        let (snapshot_bytes, _) = self.metric(&control, "fairway_feed_sent_bytes_total").await?;

        let (bytes_before, revision_before) = (
            self.metric(&control, "fairway_feed_sent_bytes_total").await?.0,
            self.metric(&control, "fairway_feed_revision").await?.0,
        );
        progress("endpoints change");
        let Options { rate, seconds, .. } = *self.options;
        let changed = control.order(&Order::Change { rate, seconds })?;
        self.settle(&control).await?;
        let (bytes, text) = self.metric(&control, "fairway_feed_sent_bytes_total").await?;
        let steps = self.metric(&control, "fairway_feed_revision").await?.0 - revision_before;
        let end = control.order(&Order::Tell)?;
        let lost = subscribers.check()?;

        let (count, changes) = (f64::from(self.count), f64::from(changed.changes));
        let payload = (bytes - bytes_before) / count;
        let quantile = |q| quantile(&text, q).context("the histogram of the control plane");
        Ok([
            ("sync", "ms", elapsed.as_secs_f64() * 1e3),
            ("sync_cpu", "ms", after.cpu_ms - before.cpu_ms),
            ("snapshot", "KB", snapshot_bytes / count / 1e3),
            ("change_bytes", "B", (payload + OVERHEAD * steps) / changes),
            ("change_payload", "B", payload / changes),
            ("changes_per_step", "", changes / steps),
            ("change_p50", "ms", quantile(0.5)? * 1e3),
            ("change_p99", "ms", quantile(0.99)? * 1e3),
            ("change_cpu", "ms", (end.cpu_ms - after.cpu_ms) / f64::from(seconds)),
            ("lost", "", f64::from(lost)),
            ("resident", "MB", end.resident_kb / 1e3),
            ("peak", "MB", end.peak_kb / 1e3),
        ]
        .into_iter()
        .map(|(metric, unit, value)| Row {
            bench: "feed",
            case: "feed",
            params: BTreeMap::from([("subscribers", u64::from(self.count).into())]),
            metric,
            unit,
            value: rounded(value),
            baseline: None,
            ratio: None,
        })
        .collect())
    }

    /// Starts them all at once; the receiver tells how many have a model.
    fn subscribe(&self, endpoint: &str) -> Result<(Subscribers, watch::Receiver<u32>)> {
        let (synced, receiver) = watch::channel(0);
        let mut subscribers = Subscribers {
            tasks: JoinSet::new(),
            followers: Vec::new(),
            lost: Arc::default(),
            folder: self.folder.to_owned(),
        };
        for (number, files) in (0..).zip(&self.files) {
            let connector = tls::Client::files(files.clone());
            let node = node_name(number);
            let synced = synced.clone();
            let endpoint = endpoint.to_owned();
            let lost = Arc::clone(&subscribers.lost);
            if number < WHOLE {
                let options = client::Options {
                    endpoints: vec![endpoint],
                    snapshot: subscribers.folder.join(format!("{node}.snapshot")),
                    node,
                    facts: watch::channel(Facts::default()).1,
                };
                // Of an earlier run.
                let _ = std::fs::remove_file(&options.snapshot);
                let follower = Arc::new(client::follow_over(options, connector)?);
                subscribers.followers.push(Arc::clone(&follower));
                subscribers.tasks.spawn(async move {
                    let mut models = follower.model.clone();
                    let mut first = true;
                    while models.changed().await.is_ok() {
                        let Some(model) = models.borrow_and_update().clone() else { continue };
                        follower.ack(&model);
                        if std::mem::take(&mut first) {
                            synced.send_modify(|synced| *synced += 1);
                        }
                    }
                    "the source of a model ended".to_owned()
                });
            } else {
                subscribers.tasks.spawn(async move {
                    let mut first = true;
                    loop {
                        let heard = |_, _| {
                            if std::mem::take(&mut first) {
                                synced.send_modify(|synced| *synced += 1);
                            }
                        };
                        // As a node does: with a thousand on one machine, some do not answer in time.
                        let Err(error) = skim(&connector, &endpoint, &node, heard).await;
                        tracing::debug!(node, %error, "a subscriber comes back");
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        Ok((subscribers, receiver))
    }

    /// Waits until everybody has everything: also the last change, which the server may still be gathering.
    async fn settle(&self, control: &Control) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut last = None;
        loop {
            let revision = self.metric(control, "fairway_feed_revision").await?.0;
            let behind = self.metric(control, "fairway_feed_subscribers_behind").await?.0;
            if behind == 0.0 && last == Some(revision) {
                return Ok(());
            }
            last = Some(revision);
            ensure!(Instant::now() < deadline, "subscribers do not catch up");
            // Longer than the server gathers.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A value of the control plane's metrics, and all of them.
    async fn metric(&self, control: &Control, name: &str) -> Result<(f64, String)> {
        let operator = tls::Client::files(self.operator.clone());
        let asked = ask(&operator, &control.endpoint, Method::GET, "/metrics", Bytes::new());
        let (status, text) = asked.await.context("ask for metrics")?;
        ensure!(status.is_success(), "the control plane answers {status}");
        let text = String::from_utf8(text.to_vec())?;
        let value =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        Ok((value.with_context(|| format!("no {name} in the metrics"))?, text))
    }
}

/// Those that are connected; gone with this.
struct Subscribers {
    /// Each ends with what went wrong.
    tasks: JoinSet<String>,
    followers: Vec<Arc<Follower>>,
    /// How often one had to connect again.
    lost: Arc<AtomicU32>,
    folder: PathBuf,
}

impl Subscribers {
    /// Whether all went well, and those that keep the model have the same.
    fn check(mut self) -> Result<u32> {
        if let Some(ended) = self.tasks.try_join_next() {
            bail!("a subscriber ended: {}", ended?);
        }
        let mut models = self.followers.iter().map(|follower| follower.model.borrow().clone());
        let first = models.next().flatten().context("no model")?;
        for other in models.flatten() {
            ensure!(
                other.endpoints == first.endpoints && other.services == first.services,
                "two subscribers have different models"
            );
        }
        for follower in &self.followers {
            let status = follower.status.borrow();
            ensure!(status.connected, "a subscriber is not connected: {:?}", status.error);
        }
        Ok(self.lost.load(Ordering::Relaxed))
    }
}

/// The control plane's process; ends with this.
struct Control {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    endpoint: String,
}

impl Control {
    fn start(folder: &Path, size: &Size) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("feed-server")
            .arg(folder.join("ca"))
            .args(["--services", &size.services.to_string()])
            .args(["--endpoints", &size.endpoints.to_string()])
            .args(["--nodes", &size.nodes.to_string()])
            .args(["--pods", &size.pods.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the control plane")?;
        let orders = child.stdin.take().context("its input")?;
        let mut answers = BufReader::new(child.stdout.take().context("its output")?);
        let mut endpoint = String::new();
        answers.read_line(&mut endpoint).context("where the control plane is")?;
        let endpoint = endpoint.trim().to_owned();
        ensure!(!endpoint.is_empty(), "the control plane did not start");
        Ok(Self { child, orders, answers, endpoint })
    }

    fn order(&mut self, order: &Order) -> Result<Told> {
        writeln!(self.orders, "{}", serde_json::to_string(order)?)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).context("the control plane's answer")
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It may have ended by itself; that it is gone is all that counts.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The control plane, until its input ends.
pub(super) fn serve(options: &ServerOptions) -> Result<()> {
    raise_limit()?;
    let mut model = model(&options.size);
    let authority = Arc::new(Authority::open(&options.folder)?);
    let (models, receiver) = watch::channel(Some(Arc::new(model.clone())));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    let acceptor = tls::Server::authority(authority)?;
    runtime.spawn(server::serve(listener, acceptor, receiver, server::Options::default()));
    println!("https://{address}");
    let mut changes = 0;
    for line in std::io::stdin().lines() {
        if let Order::Change { rate, seconds } = serde_json::from_str(&line?)? {
            let start = Instant::now();
            for number in 0..rate * seconds {
                change(&mut model, number, &options.size);
                models.send_replace(Some(Arc::new(model.clone())));
                let next = start + Duration::from_secs(1) * (number + 1) / rate;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            changes = rate * seconds;
        }
        let usage = cpu_ms()?;
        let told = Told {
            changes,
            cpu_ms: usage,
            resident_kb: memory("VmRSS:")?,
            peak_kb: memory("VmHWM:")?,
        };
        println!("{}", serde_json::to_string(&told)?);
    }
    Ok(())
}

/// The CPU time of this process so far, in milliseconds: of `/proc/self/stat`, in ticks of a hundredth.
fn cpu_ms() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(") ").context("a process's name")?.1;
    let mut fields = after_name.split(' ').skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<f64>().ok());
    let (user, kernel) = ticks().zip(ticks()).context("a process's times")?;
    Ok((user + kernel) * 10.0)
}

fn memory(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)).context("a process's memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Another endpoint in the place of one.
fn change(model: &mut Model, number: u32, size: &Size) {
    // All in turns, far from each other.
    let service = number.wrapping_mul(7919) % size.services;
    let name = service_name(service);
    let Some(endpoints) = model.endpoints.get(&name) else { return };
    let mut endpoints = endpoints.clone();
    if let Some(list) = endpoints.ports.get_mut("http") {
        let at = number as usize % list.len();
        let old = list.remove(at);
        let mut new = Endpoint { address: address(11, number), ..old };
        new.node = Some(node_name(number % size.nodes));
        let at = list.partition_point(|other| *other < new);
        list.insert(at, new);
    }
    model.apply(fairway_model::Change::Put(Object::Endpoints(endpoints)));
}

fn model(size: &Size) -> Model {
    let nodes = (0..size.nodes).map(|number| {
        Object::Node(Node {
            name: node_name(number),
            addresses: vec![address(192, number)],
            zone: Some(["zone-a", "zone-b", "zone-c"][number as usize % 3].to_owned()),
            ..Node::default()
        })
    });
    let services = (0..size.services).flat_map(|number| {
        let port = ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        };
        let service = Service {
            name: service_name(number),
            cluster_ips: vec![address(172, number)],
            ports: vec![port],
            ..Service::default()
        };
        let list = (0..size.endpoints).map(|at| {
            let pod = number * size.endpoints + at;
            Endpoint {
                address: address(10, pod),
                port: 8080,
                node: Some(node_name(pod % size.nodes)),
                state: EndpointState::Ready,
                hints: Hints::default(),
                weight: 1,
                hostname: None,
            }
        });
        let ports = [("http".to_owned(), list.collect())].into();
        let endpoints = Endpoints { service: service_name(number), ports };
        [Object::Service(service), Object::Endpoints(endpoints)]
    });
    let pods = (0..size.pods).map(|number| {
        Object::Pod(Pod {
            name: ObjectName::new(namespace(number), format!("app-{number:06}-5d8f7c9b4-x2x9z")),
            uid: format!("{number:08x}-0000-4000-8000-000000000000"),
            node: node_name(number % size.nodes),
            ..Pod::default()
        })
    });
    nodes.chain(services).chain(pods).collect()
}

fn node_name(number: u32) -> String {
    format!("worker-{number:05}")
}

fn namespace(number: u32) -> String {
    format!("team-{:03}", number % 500)
}

fn service_name(number: u32) -> ObjectName {
    ObjectName::new(namespace(number), format!("service-{number:05}"))
}

fn address(first: u8, number: u32) -> std::net::IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    [first, a, b, c].into()
}

/// By interpolation within a bucket, as Prometheus does it; seconds.
fn quantile(metrics: &str, q: f64) -> Option<f64> {
    let prefix = "kubeproxy_network_programming_duration_seconds_bucket{le=\"";
    let mut buckets = Vec::new();
    for line in metrics.lines() {
        if let Some((bound, count)) =
            line.strip_prefix(prefix).and_then(|rest| rest.split_once("\"} "))
        {
            buckets.push((bound.parse().unwrap_or(f64::INFINITY), count.parse::<f64>().ok()?));
        }
    }
    let rank = buckets.last()?.1 * q;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if count >= rank && count > below {
            return Some(match bound.is_finite() {
                true => low + (bound - low) * (rank - below) / (count - below),
                false => low,
            });
        }
        (low, below) = (bound, count);
    }
    None
}

/// A table with a column for each number of subscribers.
fn summary(rows: &[Row]) -> String {
    let mut counts: Vec<String> = Vec::new();
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for row in rows {
        let count = serde_json::to_string(&row.params["subscribers"]).unwrap_or_default();
        if !counts.contains(&count) {
            counts.push(count);
        }
        let name = format!("{} ({})", row.metric, row.unit).replace(" ()", "");
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(row.value.to_string()),
            None => lines.push((name, vec![row.value.to_string()])),
        }
    }
    let header: Vec<&str> =
        std::iter::once("subscribers").chain(counts.iter().map(String::as_str)).collect();
    table(&header, lines.into_iter().map(|(name, values)| [vec![name], values].concat()))
}

/// What follows for 5,000 nodes from the two largest runs: what is done once, and what for each.
fn extrapolation(rows: &[Row]) -> Option<String> {
    let of = |metric: &str| {
        let mut values: Vec<(f64, f64)> = rows
            .iter()
            .filter(|row| row.metric == metric)
            .filter_map(|row| {
                let count = serde_json::to_string(&row.params["subscribers"]).ok()?;
                Some((count.parse().ok()?, row.value))
            })
            .collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (high, low) = (values.pop()?, values.pop()?);
        let each = (high.1 - low.1) / (high.0 - low.0);
        Some((high.1 - each * high.0, each))
    };
    let mut text = String::from("value = once + each * subscribers, by the two largest runs:");
    for (metric, unit) in [("sync_cpu", "ms"), ("change_cpu", "ms a second"), ("resident", "MB")] {
        let (once, each) = of(metric)?;
        text += &format!(
            "\n  {metric}: {once:.1} + {each:.4} * subscribers; for 5000: {:.0} {unit}",
            once + each * 5000.0
        );
    }
    Some(text)
}

fn certify(authority: &Authority, folder: &Path, role: &Role) -> Result<Files> {
    let folder = folder.join(role.to_string());
    let files = Files {
        ca: folder.join("ca.crt"),
        certificate: folder.join("tls.pem"),
        key: folder.join("tls.pem"),
    };
    let (certificate, key) = authority.certificate_for(role)?;
    disk::replace_unsynced(&files.ca, authority.certificate().as_bytes())?;
    disk::replace_unsynced(&files.key, format!("{certificate}{key}").as_bytes())?;
    Ok(files)
}

/// A socket for each subscriber, at both ends.
pub(super) fn raise_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("raise the number of open files")
}

/// A folder of this run alone.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("fairway-bench-feed-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
