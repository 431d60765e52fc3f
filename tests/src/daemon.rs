//! The process that owns a lab: builds it, keeps it running, answers clients, takes it down.
//!
//! It reports on standard output, a JSON document a line, until the lab is ready. Whatever ends it
//! (a request, a signal, the end of the process it is tied to, a failure on the way up), the lab
//! is swept from the machine before it exits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, ExitCode};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_netlink::NetNs;
use rustix::fs::FlockOperation;
use rustix::mount::MountFlags;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::api::{NodeInfo, Request, Response, Target};
use crate::cluster::{Cluster, Options};
use crate::kubelet;
use crate::manager;
use crate::names::{Names, STATE_ROOT};
use crate::objects::Kind;
use crate::process::{self, Place};
use crate::service::Service;
use crate::sweep::sweep;
use crate::topology::{HEALTH_PORT, NodePlan};
use crate::underlay::{self, UPLINK};
use crate::wait::wait_until;
use crate::xdp_pass::Attachment;

/// How long a binary has from its start to its first good answer.
const START_LIMIT: Duration = Duration::from_secs(30);
/// One that ends so often before that answer will not give it.
const MOST_CRASHES: u32 = 2;

/// What the daemon reports while it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", content = "with", rename_all = "camelCase")]
pub(crate) enum Event {
    /// What it does now.
    Progress(String),
    /// Everything runs.
    Ready,
    /// It gave up, for this reason, and has cleaned up.
    Failed(String),
}

/// Runs a lab to its end. If `tied`, the end of standard input ends it. Reports a failure itself.
pub(crate) fn run(options: Options, tied: bool) -> ExitCode {
    match live_and_clean_up(options, tied) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            tracing::error!("{message}");
            // Nobody may be listening any more; the exit code tells as well.
            let _ = report(&Event::Failed(message));
            ExitCode::FAILURE
        }
    }
}

/// The lock that a lab's daemon holds; `None` if another process holds it.
pub(crate) fn try_lock(names: &Names) -> Result<Option<File>> {
    fs::create_dir_all(STATE_ROOT).with_context(|| format!("create {STATE_ROOT}"))?;
    let path = names.lock();
    let about = || format!("lock {}", path.display());
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(about)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).with_context(about),
        }
        // The last holder removes the file; what we hold may be that removed one.
        let held = file.metadata().with_context(about)?;
        if fs::metadata(&path).is_ok_and(|named| named.ino() == held.ino()) {
            return Ok(Some(file));
        }
    }
}

/// Gives the lock back, and leaves no file.
pub(crate) fn unlock(names: &Names, lock: File) {
    // Removed while held: see `try_lock`. If it stays, the next holder takes it over.
    let _ = fs::remove_file(names.lock());
    drop(lock);
}

fn live_and_clean_up(options: Options, tied: bool) -> Result<()> {
    let cluster = Arc::new(Cluster::plan(options)?);
    let names = &cluster.names;
    let Some(mut lock) = try_lock(names)? else {
        bail!(
            "lab {0} is running already; stop it with `fairway-lab down --name {0}`, or choose another --name",
            names.lab()
        );
    };
    writeln!(lock, "{}", std::process::id()).context("write the lock file")?;
    sweep(names).context("remove what an earlier lab left")?;
    let outcome = live(&cluster, tied);
    cluster.stop();
    let swept = sweep(names);
    unlock(names, lock);
    outcome.and(swept)
}

/// Builds the lab and serves until told to end.
fn live(cluster: &Arc<Cluster>, tied: bool) -> Result<()> {
    make_folders(cluster)?;
    log_to_file(&cluster.names)?;
    let (end, told) = mpsc::channel();
    watch_for_end(cluster, &end, tied)?;
    let lab = Lab::start(cluster, end)?;
    let outcome = until_told(&told);
    lab.shut_down();
    outcome
}

fn until_told(told: &Receiver<String>) -> Result<()> {
    report(&Event::Ready)?;
    detach_output()?;
    tracing::info!("ready");
    let reason = told.recv().context("wait for the end")?;
    tracing::info!("going down: {reason}");
    Ok(())
}

fn make_folders(cluster: &Cluster) -> Result<()> {
    let names = &cluster.names;
    let create = |path: &std::path::Path| {
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
    };
    create(&names.manifests())?;
    create(&names.controlplane_state())?;
    create(&names.bpffs())?;
    create(&names.outside_cgroup())?;
    if let Some(folder) = names.log("daemon").parent() {
        create(folder)?;
    }
    let bpffs = names.bpffs();
    rustix::mount::mount("none", &bpffs, "bpf", MountFlags::empty(), None)
        .with_context(|| format!("mount a bpffs at {}", bpffs.display()))?;
    for node in &cluster.topology.nodes {
        create(&names.node_bpffs(&node.name))?;
        create(&names.node_state(&node.name))?;
        create(&names.system_cgroup(&node.name))?;
        create(&names.node_cgroup(&node.name).join("pods"))?;
    }
    Ok(())
}

/// From here on, standard error is the daemon's log.
fn log_to_file(names: &Names) -> Result<()> {
    let path = names.log("daemon");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    rustix::stdio::dup2_stderr(file.as_fd()).context("redirect standard error")?;
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_target(false).init();
    Ok(())
}

/// Standard output was for whoever started the lab.
fn detach_output() -> Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null").context("open /dev/null")?;
    rustix::stdio::dup2_stdout(null.as_fd()).context("redirect standard output")
}

fn report(event: &Event) -> Result<()> {
    let mut line = serde_json::to_vec(event).context("encode an event")?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    let written = out.write_all(&line).and_then(|()| out.flush());
    written.context("report: whoever started this lab went away")
}

/// Signals, and the end of standard input if `tied`, stop the lab, also on its way up.
fn watch_for_end(cluster: &Arc<Cluster>, end: &Sender<String>, tied: bool) -> Result<()> {
    let tell = |cluster: &Arc<Cluster>, end: &Sender<String>| {
        let (cluster, end) = (Arc::clone(cluster), end.clone());
        move |reason: &str| {
            cluster.stop();
            // Nobody listens if the lab is on its way down already.
            let _ = end.send(reason.to_owned());
        }
    };
    if tied {
        let tell = tell(cluster, end);
        spawn("tie", move || {
            let mut rest = Vec::new();
            // An error is an end as well.
            let _ = io::stdin().lock().read_to_end(&mut rest);
            tell("the process it was tied to has ended");
        })?;
    }
    let tell = tell(cluster, end);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("start the runtime that waits for signals")?;
    spawn("signals", move || {
        let reason = runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            io::Result::Ok(tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            })
        });
        match reason {
            Ok(reason) => tell(reason),
            Err(error) => tracing::error!("cannot wait for signals: {error}"),
        }
    })?;
    Ok(())
}

/// What runs.
struct Lab {
    controlplane: Service,
    agents: Vec<(String, Service)>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    cluster: Arc<Cluster>,
    _xdp: Vec<Attachment>,
}

impl Lab {
    fn start(cluster: &Arc<Cluster>, end: Sender<String>) -> Result<Arc<Self>> {
        progress(format!("{} nodes and their underlay", cluster.topology.nodes.len()))?;
        underlay::build(&cluster.names, &cluster.topology, cluster.options.backend)
            .context("build the underlay")?;
        let xdp = if cluster.options.xdp.is_forced() {
            underlay::prepare_for_xdp(&cluster.names, &cluster.topology)
                .context("prepare the underlay for XDP")?
        } else {
            Vec::new()
        };
        manager::write_nodes(cluster)?;

        progress("control plane")?;
        let controlplane = start_controlplane(cluster)?;
        wait_for_answer(cluster, "controlplane", &controlplane, || {
            cluster.ask_controlplane("/readyz")
        })?;

        progress("agents")?;
        let mut agents = Vec::new();
        for node in &cluster.topology.nodes {
            agents.push((node.name.clone(), start_agent(cluster, node)?));
        }
        for (node, agent) in &agents {
            wait_for_answer(cluster, node, agent, || cluster.ask_agent(node, "/healthz"))?;
        }

        let (controllers, pods) = (Arc::clone(cluster), Arc::clone(cluster));
        let threads = vec![
            spawn("controllers", move || manager::run(&controllers))?,
            spawn("kubelet", move || kubelet::run(&pods))?,
        ];
        let lab = Arc::new(Self {
            controlplane,
            agents,
            threads: Mutex::new(threads),
            _xdp: xdp,
            cluster: Arc::clone(cluster),
        });
        serve(&lab, end)?;
        Ok(lab)
    }

    fn answer(&self, request: Request, end: &Sender<String>) -> Result<Response> {
        let cluster = &*self.cluster;
        Ok(match request {
            Request::Apply { objects } => Response::Done(manager::apply(cluster, objects)?),
            Request::Delete { keys, force } => {
                Response::Done(manager::delete(cluster, &keys, force)?)
            }
            Request::List { kind } => Response::Objects(list(cluster, kind)),
            Request::Model => Response::Model(Box::new(cluster.model()?)),
            Request::Nodes => Response::Nodes(self.nodes()),
            Request::Locate { target } => Response::Place(locate(cluster, &target)?),
            Request::Scale { key, replicas } => {
                Response::Done(manager::scale(cluster, &key, replicas)?)
            }
            Request::Logs { target } => Response::Files(logs(cluster, &target)?),
            Request::RestartAgent { node, kill } => {
                Response::Done(self.restart_agent(&node, kill)?)
            }
            Request::Down => {
                // Nobody listens if the lab is on its way down already.
                let _ = end.send("asked to".to_owned());
                Response::Done(Vec::new())
            }
        })
    }

    /// Ends what runs; what exists is left to the sweep.
    fn shut_down(&self) {
        self.cluster.stop();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
        let agents = || self.agents.iter().map(|(_, agent)| agent);
        // All at once, so that the waits for their ends overlap.
        agents().for_each(Service::begin_stop);
        agents().for_each(Service::stop);
        self.controlplane.stop();
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let nodes = self.cluster.topology.nodes.iter().zip(&self.agents);
        nodes
            .map(|(node, (_, agent))| {
                let status = agent.status();
                let answer = self.cluster.ask_agent(&node.name, "/healthz");
                NodeInfo {
                    name: node.name.clone(),
                    ready: answer.is_ok_and(|answer| answer.status == 200),
                    addresses: node.addresses.ips().to_vec(),
                    pod_cidrs: node.pod_cidrs.clone(),
                    agent_pid: status.pid,
                    agent_restarts: status.restarts,
                    agent_last_end: status.last_end,
                }
            })
            .collect()
    }

    fn restart_agent(&self, node: &str, kill: bool) -> Result<Vec<String>> {
        self.cluster.node(node)?;
        let mut agents = self.agents.iter();
        let (_, agent) = agents
            .find(|(name, _)| name == node)
            .with_context(|| format!("{node} has no agent"))?;
        let before = agent.status().restarts;
        agent.signal(if kill { Signal::KILL } else { Signal::TERM });
        wait_until(START_LIMIT, &format!("the agent of {node} to be started again"), || {
            Ok(agent.status().restarts > before)
        })?;
        wait_for_answer(&self.cluster, node, agent, || self.cluster.ask_agent(node, "/healthz"))?;
        let how = if kill { "killed" } else { "ended" };
        Ok(vec![format!("agent of {node} {how} and started again")])
    }
}

fn start_controlplane(cluster: &Arc<Cluster>) -> Result<Service> {
    let cluster = Arc::clone(cluster);
    Service::start("controlplane", move || {
        let names = &cluster.names;
        let (address, port) = cluster.topology.feed();
        let mut command = Command::new(&cluster.programs.controlplane);
        command
            .arg("serve")
            .arg("--manifests")
            .arg(names.manifests())
            .arg("--listen")
            .arg(format!("{address}:{port}"))
            .arg("--state-dir")
            .arg(names.controlplane_state());
        for range in &cluster.options.service_cidr {
            command.arg("--service-cidr").arg(range.to_string());
        }
        process::supervised(&mut command, &names.log("controlplane"))?;
        let place = Place {
            netns: NetNs::path(&names.underlay_netns()),
            cgroup: names.outside_cgroup(),
            beside: None,
        };
        place.apply(&mut command)?;
        Ok(command)
    })
}

fn start_agent(cluster: &Arc<Cluster>, node: &NodePlan) -> Result<Service> {
    let (cluster, node) = (Arc::clone(cluster), node.name.clone());
    Service::start(&node.clone(), move || {
        let names = &cluster.names;
        let (address, port) = cluster.topology.feed();
        let mut command = Command::new(&cluster.programs.proxy);
        command
            .args(["--node-name", &node])
            .args(["--feed", &format!("http://{address}:{port}")])
            .arg("--bpffs")
            .arg(names.node_bpffs(&node))
            .arg("--cgroup")
            .arg(names.node_cgroup(&node))
            .arg("--state-dir")
            .arg(names.node_state(&node).join("agent"))
            .arg("--socket")
            .arg(names.agent_socket(&node))
            .args(["--backend", cluster.options.backend.as_str()])
            .args(["--uplink", UPLINK])
            .args(["--xdp", cluster.options.xdp.as_str()])
            .args(["--healthz-bind", &format!("0.0.0.0:{HEALTH_PORT}")]);
        process::supervised(&mut command, &names.log(&node))?;
        let place = Place {
            netns: NetNs::path(&names.node_netns(&node)),
            cgroup: names.system_cgroup(&node),
            beside: None,
        };
        place.apply(&mut command)?;
        Ok(command)
    })
}

/// Waits for a binary's first good answer; an error carries what the binary printed last.
fn wait_for_answer(
    cluster: &Cluster,
    name: &str,
    service: &Service,
    ask: impl Fn() -> Result<crate::http::Answer>,
) -> Result<()> {
    let before = service.status().restarts;
    let mut crashes = 0;
    let mut outcome = wait_until(START_LIMIT, &format!("{name} to be ready"), || {
        crashes = service.status().restarts.saturating_sub(before);
        if cluster.is_stopping() || crashes >= MOST_CRASHES {
            return Ok(true);
        }
        let answer = ask()?;
        if answer.status != 200 {
            bail!("it answers {}: {}", answer.status, answer.text().trim());
        }
        Ok(true)
    });
    if cluster.is_stopping() {
        bail!("stopped on the way up");
    }
    if crashes >= MOST_CRASHES {
        outcome = Err(anyhow::anyhow!("it was started again {crashes} times in vain"));
    }
    outcome.with_context(|| {
        let log = fs::read_to_string(cluster.names.log(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
        let end = service.status().last_end;
        let ended = end.map(|end| format!("it ended: {end}; ")).unwrap_or_default();
        format!("start {name} ({ended}its last words:\n  {tail}\n)")
    })
}

fn progress(what: impl Into<String>) -> Result<()> {
    report(&Event::Progress(what.into()))
}

/// Answers clients, each on a thread of its own, as long as the process lives.
fn serve(lab: &Arc<Lab>, end: Sender<String>) -> Result<()> {
    let path = lab.cluster.names.socket();
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
    let lab = Arc::downgrade(lab);
    spawn("clients", move || {
        for stream in listener.incoming() {
            let (Ok(stream), end, lab) = (stream, end.clone(), lab.clone()) else {
                continue;
            };
            let served = spawn("client", move || {
                if let Some(lab) = lab.upgrade()
                    && let Err(error) = serve_client(&lab, stream, &end)
                {
                    tracing::warn!("a client: {error:#}");
                }
            });
            if let Err(error) = served {
                tracing::error!("{error:#}");
            }
        }
    })?;
    Ok(())
}

fn serve_client(lab: &Lab, mut stream: UnixStream, end: &Sender<String>) -> Result<()> {
    let reader = BufReader::new(stream.try_clone().context("duplicate the socket")?);
    for line in reader.lines() {
        let line = line.context("read a request")?;
        let answer = serde_json::from_str(&line)
            .context("read a request")
            .and_then(|request| lab.answer(request, end))
            .unwrap_or_else(|error| Response::Error(format!("{error:#}")));
        let mut line = serde_json::to_vec(&answer).context("encode an answer")?;
        line.push(b'\n');
        stream.write_all(&line).context("answer")?;
    }
    Ok(())
}

fn list(cluster: &Cluster, kind: Kind) -> Vec<serde_json::Value> {
    let (objects, _) = cluster.store.snapshot();
    let found = objects.into_iter().filter(|(key, _)| key.kind == kind);
    found.map(|(_, object)| Arc::unwrap_or_clone(object)).collect()
}

fn locate(cluster: &Cluster, target: &Target) -> Result<Place> {
    let names = &cluster.names;
    Ok(match target {
        Target::Pod { namespace, name } => {
            let (key, pod) = manager::pod_of(cluster, namespace, name)?;
            let node =
                pod.spec.node_name.with_context(|| format!("{key}: is not on a node yet"))?;
            let uid = &pod.metadata.uid;
            let beside = cluster.pod_process(uid).with_context(|| {
                format!("{key}: nothing runs in it; see `fairway-lab logs {name}`")
            })?;
            let netns = if pod.spec.host_network {
                names.node_netns(&node)
            } else {
                names.pod_netns(namespace, name, uid)
            };
            Place {
                netns: NetNs::path(&netns),
                cgroup: names.pod_cgroup(&node, uid),
                beside: Some(beside),
            }
        }
        Target::Node { node } => Place {
            netns: NetNs::path(&names.node_netns(&cluster.node(node)?.name)),
            cgroup: names.system_cgroup(node),
            beside: None,
        },
        Target::Client => Place {
            netns: NetNs::path(&names.client_netns()),
            cgroup: names.outside_cgroup(),
            beside: None,
        },
        Target::Controlplane | Target::Daemon => Place {
            netns: NetNs::path(&names.underlay_netns()),
            cgroup: names.outside_cgroup(),
            beside: None,
        },
    })
}

fn logs(cluster: &Cluster, target: &Target) -> Result<Vec<std::path::PathBuf>> {
    let names = &cluster.names;
    Ok(match target {
        Target::Pod { namespace, name } => {
            let (key, pod) = manager::pod_of(cluster, namespace, name)?;
            let containers = pod.spec.containers.iter();
            containers
                .map(|container| names.log(&kubelet::log_name(&key, &container.name)))
                .collect()
        }
        Target::Node { node } => vec![names.log(&cluster.node(node)?.name)],
        Target::Controlplane => vec![names.log("controlplane")],
        Target::Client | Target::Daemon => vec![names.log("daemon")],
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("start thread {name}"))
}
