//! Endpoints of many Services that change all the time, under load, while the agent is killed again and
//! again: what it costs connections, and how far behind the kernel's tables are.
//!
//! All endpoints serve to the end, whether or not a Service has them at the moment, so there is no
//! excuse for a connection that fails: it ends the benchmark, with an error.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use fairway_model::{
    Endpoint, EndpointState, Endpoints, Hints, Model, Node, ObjectName, Pod, Protocol, Service,
    ServicePort,
};
use fairway_netlink::NetNs;

use super::agent::Agent;
use super::ahead::Ahead;
use super::bed::{self, Bed};
use super::control::ControlPlane;
use super::progress;
use super::report::{Row, rounded, table, write_json};
use super::services::millis;
use super::stats::percentile;
use super::tables::{Memory, Tables, cpu};
use super::worker::{self, Client, Pattern, Sample, Server};
use crate::process::Place;
use crate::topology::NodePlan;

/// How the benchmark runs.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Also write the figures to this file, as a JSON array of rows
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Services, all of which change in turns
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=2000))]
    services: u16,
    /// Changes a second, each of one Service's endpoints
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// For how long endpoints change
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds between two ends of the agent, by SIGKILL
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    kill_every: f64,
    /// Where fairway-proxy and the others are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Who serves.
const SERVERS: [&str; 4] = ["server-0", "server-1", "server-2", "server-3"];
/// Who asks from inside, and how; as many ask the same way from outside.
const ASKERS: [(&str, Pattern); 2] =
    [("asker", Pattern::Connections), ("talker", Pattern::Requests)];
/// Namespace of the pods.
const NAMESPACE: &str = "bench";
const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;
const FIRST_NODE_PORT: u16 = 30_000;
/// How long the first answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The part of the time in which nothing changes, to compare with.
const QUIET: f64 = 0.1;
/// Between two changes whose way to the kernel is followed.
const SAMPLE: Duration = Duration::from_millis(20);
/// Between two looks at a table.
const LOOK: Duration = Duration::from_micros(200);

/// Runs the benchmark, prints its table, and writes its rows if asked to.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut told = None;
    let _ahead = Ahead::of_others()?;
    bed::run(1, 0, options.bin_dir.clone(), |bed| {
        let mut scene = Scene::build(bed, options.services)?;
        progress("nothing changes");
        let quiet = scene.load(Duration::from_secs_f64(options.seconds * QUIET), || Ok(()))?.0;
        let (churned, churn) = scene.churn(options)?;
        told = Some(figures(&quiet, &churned, &churn));
        Ok(())
    })?;
    let told = told.context("run the benchmark")?;
    println!("{}", summary(&told));
    options.json.as_ref().map_or(Ok(()), |file| write_json(file, &rows(&told, options)))
}

/// A node with pods, Services and an agent after a control plane, and who asks.
struct Scene<'a> {
    bed: &'a Bed,
    node: &'a NodePlan,
    control: ControlPlane,
    agent: Agent,
    model: Model,
    services: u16,
    /// By [`SERVERS`].
    addresses: Vec<Ipv4Addr>,
    _servers: Vec<Server>,
    clients: Vec<Asker>,
}

/// A client and what it asks.
struct Asker {
    way: &'static str,
    client: Client,
    pattern: Pattern,
    targets: Vec<SocketAddr>,
}

/// What came of each client, by its way and what it does.
type Samples = Vec<(&'static str, Pattern, Sample)>;

/// What the changes were.
struct Churn {
    changes: u32,
    elapsed: Duration,
    kills: u32,
    /// From a change to the kernel's table, in milliseconds.
    lags: Vec<f64>,
    /// CPU time of agents, in seconds.
    cpu: f64,
    memory: Memory,
}

impl<'a> Scene<'a> {
    fn build(bed: &'a Bed, services: u16) -> Result<Self> {
        let node = bed.node(0)?;
        let mut model = Model::default();
        model.nodes.insert(Node {
            name: node.name.clone(),
            addresses: node.addresses.ips(),
            pod_cidrs: node.pod_cidrs.clone(),
            ..Node::default()
        });
        for name in SERVERS.into_iter().chain(ASKERS.map(|(name, _)| name)) {
            model.pods.insert(Pod {
                name: ObjectName::new(NAMESPACE, name),
                uid: bed::uid(node, name),
                node: node.name.clone(),
                sockets_exempt: false,
                ..Pod::default()
            });
        }
        let control = ControlPlane::start(bed, node, model.clone())?;
        let mut agent = Agent::follow(bed, node, control.address)?;
        agent.wait_until_ready(bed, node)?;

        let cpu = worker::last_cpu()?;
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, TARGET_PORT));
        let (mut addresses, mut servers) = (Vec::new(), Vec::new());
        for name in SERVERS {
            let pod = bed.cni_pod(node, name)?;
            addresses.push(pod.address);
            servers.push(Server::start(bed.worker(), &pod.place, cpu, listen)?);
        }
        let inside = (0..services).map(|number| (cluster_ip(number), PORT).into()).collect();
        let own = node.addresses.ips().into_iter().find(IpAddr::is_ipv4);
        let own = own.context("the node has no IPv4 address")?;
        let outside = (0..services).map(|number| (own, FIRST_NODE_PORT + number).into()).collect();
        let inside: Vec<SocketAddr> = inside;
        let outside: Vec<SocketAddr> = outside;
        let names = &bed.cluster.names;
        let cgroup = names.outside_cgroup();
        std::fs::create_dir_all(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        let beyond = Place { netns: NetNs::path(&names.client_netns()), cgroup, beside: None };
        let mut clients = Vec::new();
        for (name, pattern) in ASKERS {
            let pod = bed.cni_pod(node, name)?;
            let ways = [("pod", &pod.place, &inside), ("outside", &beyond, &outside)];
            for (way, place, targets) in ways {
                let client = Client::start(bed.worker(), place, cpu)?;
                clients.push(Asker { way, client, pattern, targets: targets.clone() });
            }
        }
        let mut scene = Self {
            bed,
            node,
            control,
            agent,
            model,
            services,
            addresses,
            _servers: servers,
            clients,
        };
        for number in 0..services {
            scene.model.services.insert(Service {
                name: name(number),
                cluster_ips: vec![cluster_ip(number).into()],
                ports: vec![ServicePort {
                    name: "http".to_owned(),
                    protocol: Protocol::Tcp,
                    port: PORT,
                    node_port: Some(FIRST_NODE_PORT + number),
                }],
                ..Service::default()
            });
            scene.model.endpoints.insert(scene.endpoints(number, 0b1111));
        }
        scene.model.validate().map_err(|errors| anyhow!("the model is bad: {errors:?}"))?;
        scene.control.publish(scene.model.clone());
        for asker in &mut scene.clients {
            for target in [asker.targets.first(), asker.targets.last()].into_iter().flatten() {
                asker.client.wait_for_answer(*target, ANSWER_LIMIT)?;
            }
        }
        Ok(scene)
    }

    /// Has all clients ask for so long, and does something meanwhile. A request that fails is an error.
    fn load<T>(
        &mut self,
        time: Duration,
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<(Samples, T)> {
        ask_all(&mut self.clients, time, meanwhile)
    }

    /// Changes endpoints under load.
    fn churn(&mut self, options: &Options) -> Result<(Samples, Churn)> {
        let time = Duration::from_secs_f64(options.seconds);
        let pause = Duration::from_secs_f64(options.kill_every);
        let gap = Duration::from_secs(1) / options.rate;
        let period = gap * u32::from(self.services);
        let (over, sampled) = (AtomicBool::new(false), Mutex::new(None));
        let mut clients = std::mem::take(&mut self.clients);
        let (bed, node) = (self.bed, self.node);
        let outcome = ask_all(&mut clients, time, || {
            thread::scope(|scope| {
                let follower = scope.spawn(|| follow(bed, node, period, &sampled, &over));
                let churned = self.change(time, gap, pause, &sampled);
                over.store(true, Ordering::Relaxed);
                let lags = join(follower)?;
                churned.map(|churn| Churn { lags, ..churn })
            })
        });
        self.clients = clients;
        outcome
    }

    fn change(
        &mut self,
        time: Duration,
        gap: Duration,
        pause: Duration,
        sampled: &Mutex<Option<Change>>,
    ) -> Result<Churn> {
        let (start, mut killed, mut sampled_at) = (Instant::now(), Instant::now(), Instant::now());
        let (mut changes, mut kills, mut used) = (0u32, 0, 0.0);
        let first = self.cpu()?;
        while start.elapsed() < time {
            self.bed.check()?;
            let next = start + gap * changes;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let number = u16::try_from(changes % u32::from(self.services))?;
            // Never none, and never the same as before.
            let set = 1 + (changes / u32::from(self.services) * 7 + u32::from(number)) % 15;
            self.model.endpoints.insert(self.endpoints(number, set));
            self.control.publish(self.model.clone());
            changes += 1;
            if sampled_at.elapsed() >= SAMPLE {
                sampled_at = Instant::now();
                let mut wanted = self.members(set);
                wanted.sort_unstable();
                let change = Change { number, wanted, since: sampled_at };
                *sampled.lock().map_err(|_| anyhow!("the follower is gone"))? = Some(change);
            }
            if killed.elapsed() >= pause {
                killed = Instant::now();
                used += self.cpu()?;
                kills += 1;
                progress(&format!("{changes} changes, kill {kills} of the agent"));
                self.agent.kill()?;
                self.agent = Agent::follow(self.bed, self.node, self.control.address)?;
            }
        }
        let elapsed = start.elapsed();
        let cpu = used + self.cpu()? - first;
        let memory = Memory::of(self.agent.pid())?;
        Ok(Churn { changes, elapsed, kills, lags: Vec::new(), cpu, memory })
    }

    /// What the agent that runs has used.
    fn cpu(&self) -> Result<f64> {
        Ok(cpu(self.agent.pid())?.as_secs_f64())
    }

    /// The servers of this set, a bit each.
    fn members(&self, set: u32) -> Vec<Ipv4Addr> {
        let all = (0..).zip(&self.addresses).filter(|(bit, _)| set & 1 << bit != 0);
        all.map(|(_, address)| *address).collect()
    }

    fn endpoints(&self, number: u16, set: u32) -> Endpoints {
        let members = self.members(set).into_iter().map(|address| Endpoint {
            address: address.into(),
            port: TARGET_PORT,
            node: Some(self.node.name.clone()),
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        });
        let ports = BTreeMap::from([("http".to_owned(), members.collect())]);
        Endpoints { service: name(number), ports }
    }
}

/// Has clients ask all at once, and does something meanwhile.
fn ask_all<T>(
    clients: &mut [Asker],
    time: Duration,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Samples, T)> {
    thread::scope(|scope| {
        let asking: Vec<_> = clients
            .iter_mut()
            .map(|asker| {
                let Asker { way, client, pattern, targets } = asker;
                scope.spawn(move || {
                    let sample = client.measure(*pattern, targets, time);
                    Ok((*way, *pattern, sample.with_context(|| format!("the client, way {way}"))?))
                })
            })
            .collect();
        let done = meanwhile();
        let samples = asking.into_iter().map(join).collect::<Result<Samples>>();
        // What failed under load says more than what was to put it under load.
        samples.and_then(|samples| Ok((samples, done?)))
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A change whose way to the kernel is followed.
struct Change {
    number: u16,
    /// In order.
    wanted: Vec<Ipv4Addr>,
    since: Instant,
}

/// Follows one change after the other until `over`; the milliseconds that each took. After `period` a
/// Service changes again; what is not there by then has been overtaken, and has taken that long.
fn follow(
    bed: &Bed,
    node: &NodePlan,
    period: Duration,
    sampled: &Mutex<Option<Change>>,
    over: &AtomicBool,
) -> Result<Vec<f64>> {
    let tables = Tables::open(&bed.cluster.names.node_bpffs(&node.name))?;
    let mut lags = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let change = sampled.lock().map_err(|_| anyhow!("nothing changes any more"))?.take();
        let Some(Change { number, wanted, since }) = change else {
            thread::sleep(LOOK);
            continue;
        };
        let is_there = || -> Result<bool> {
            let mut there = tables.endpoints(cluster_ip(number), PORT)?;
            there.sort_unstable();
            Ok(there == wanted)
        };
        while since.elapsed() < period && !is_there()? {
            thread::sleep(LOOK);
        }
        lags.push(millis(since.elapsed().min(period)));
    }
    Ok(lags)
}

fn name(number: u16) -> ObjectName {
    ObjectName::new(NAMESPACE, format!("service-{number:04}"))
}

/// The first addresses of a range belong to the cluster's own Services.
fn cluster_ip(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 11).to_bits() + u32::from(number))
}

/// One line of the table.
struct Figure {
    /// The client's way, of what clients measured.
    way: Option<&'static str>,
    metric: &'static str,
    unit: &'static str,
    value: f64,
    /// The same while nothing changed.
    quiet: Option<f64>,
}

fn figures(quiet: &Samples, churned: &Samples, churn: &Churn) -> Vec<Figure> {
    let mut figures = Vec::new();
    for ((way, pattern, quiet), (_, _, churned)) in quiet.iter().zip(churned) {
        let [rate, p50, p99] = match pattern {
            Pattern::Connections => ["connections", "connection_p50", "connection_p99"],
            Pattern::Requests | Pattern::Stream => ["requests", "request_p50", "request_p99"],
        };
        figures.extend(
            [
                (rate, "1/s", churned.rate, quiet.rate),
                (p50, "us", churned.p50_us, quiet.p50_us),
                (p99, "us", churned.p99_us, quiet.p99_us),
            ]
            .map(|(metric, unit, value, quiet)| Figure {
                way: Some(way),
                metric,
                unit,
                value,
                quiet: Some(quiet),
            }),
        );
    }
    let mut lags = churn.lags.clone();
    lags.sort_by(f64::total_cmp);
    let seconds = churn.elapsed.as_secs_f64();
    let alone = [
        ("changes", "1/s", f64::from(churn.changes) / seconds),
        ("kills", "", f64::from(churn.kills)),
        ("lag_p50", "ms", percentile(&lags, 50)),
        ("lag_p99", "ms", percentile(&lags, 99)),
        ("lag_most", "ms", percentile(&lags, 100)),
        ("agent_cpu", "%", churn.cpu / seconds * 100.0),
        ("agent_resident", "MB", churn.memory.resident),
    ];
    figures.extend(alone.map(|(metric, unit, value)| Figure {
        way: None,
        metric,
        unit,
        value,
        quiet: None,
    }));
    figures
}

fn summary(figures: &[Figure]) -> String {
    let lines = figures.iter().map(|figure| {
        vec![
            figure.metric.to_owned(),
            figure.way.unwrap_or_default().to_owned(),
            figure.unit.to_owned(),
            figure.quiet.map(|quiet| rounded(quiet).to_string()).unwrap_or_default(),
            rounded(figure.value).to_string(),
            figure.quiet.map(|quiet| format!("{:.2}", figure.value / quiet)).unwrap_or_default(),
        ]
    });
    table(&["measured", "way", "unit", "quiet", "churn", "ratio"], lines)
}

fn rows(figures: &[Figure], options: &Options) -> Vec<Row> {
    let row = |figure: &Figure, case, value, quiet: Option<f64>| {
        let mut params = BTreeMap::from([
            ("services", u64::from(options.services).into()),
            ("rate", u64::from(options.rate).into()),
        ]);
        params.extend(figure.way.map(|way| ("way", way.into())));
        Row {
            bench: "churn",
            case,
            params,
            metric: figure.metric,
            unit: figure.unit,
            value: rounded(value),
            baseline: quiet.map(|_| "quiet"),
            ratio: quiet.map(|quiet| rounded(value / quiet)),
        }
    };
    let of_one = |figure: &Figure| {
        let own = row(figure, "churn", figure.value, figure.quiet);
        [Some(own), figure.quiet.map(|quiet| row(figure, "quiet", quiet, None))]
    };
    figures.iter().flat_map(of_one).flatten().collect()
}

/// A time, in seconds.
fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.1..=3600.0).contains(number));
    number.ok_or_else(|| "expected seconds, from 0.1 to 3600".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_see_is_compared_and_lags_are_told_to_their_end() {
        let sample = |rate| Sample { rate, p50_us: 20.0, p99_us: 40.0 };
        let samples = |rate| vec![("pod", Pattern::Connections, sample(rate))];
        let churn = Churn {
            changes: 2000,
            elapsed: Duration::from_secs(2),
            kills: 1,
            lags: (1..=200).rev().map(f64::from).collect(),
            cpu: 0.5,
            memory: Memory { resident: 40.0, peak: 50.0, tables: 60.0 },
        };
        let figures = figures(&samples(40_000.0), &samples(30_000.0), &churn);
        assert_eq!(
            summary(&figures),
            "\
| measured       | way | unit | quiet | churn | ratio |
|----------------|----:|-----:|------:|------:|------:|
| connections    | pod |  1/s | 40000 | 30000 |  0.75 |
| connection_p50 | pod |   us |    20 |    20 |  1.00 |
| connection_p99 | pod |   us |    40 |    40 |  1.00 |
| changes        |     |  1/s |       |  1000 |       |
| kills          |     |      |       |     1 |       |
| lag_p50        |     |   ms |       |   100 |       |
| lag_p99        |     |   ms |       |   198 |       |
| lag_most       |     |   ms |       |   200 |       |
| agent_cpu      |     |    % |       |    25 |       |
| agent_resident |     |   MB |       |    40 |       |"
        );
    }

    #[test]
    fn times_are_bounded() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for bad in ["", "0", "-1", "nan", "3601", "1s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
