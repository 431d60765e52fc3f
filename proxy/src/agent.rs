//! The agent: sources of state on one side, the thread that changes the kernel on the other.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairway_controlplane::manifests::{self, LocalNode, LocalPod};
use fairway_feed::{Facts, ModelReceiver, client};
use fairway_model::{Model, Node};
use fairway_netlink::{Netlink, sysctl};
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::about::About;
use crate::announce::Announcer;
use crate::cni_conf::{self, CniConf};
use crate::dataplane::usage;
use crate::dns::{self, Dns, KernelNames, Switch};
use crate::flannel::SubnetEnv;
use crate::health_checks;
use crate::http;
use crate::masquerade;
use crate::node::{self, Uplink};
use crate::options::{MasqueradeOption, Options};
use crate::reconciler::{Command, Outputs, Reconciler, TICK};
use crate::selftest;
use crate::socket;
use crate::status::{Changes, NoLocal, Status};
use crate::traces::Traces;

/// Commands that may wait for the kernel's thread; more make their senders wait.
const QUEUE: usize = 64;

/// Runs until told to stop. What is in the kernel stays in force.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let node = match &options.node_name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let _only = [lock_state(&options.state_dir)?, lock_bpffs(&options.bpffs)?];
    let traces = Arc::new(Traces::open(&options.state_dir)?);
    for note in options.flannel.iter().flat_map(|conf| &conf.notes) {
        info!("flannel's configuration: {note}");
    }
    let meaningless = &options.kube_proxy.meaningless;
    if !meaningless.is_empty() {
        info!("of what kube-proxy is told, this has no meaning here: {}", meaningless.join(", "));
    }
    let status = Arc::new(Status::new());
    // What can be refused is asked for first: an agent that cannot run must not have touched the
    // kernel, where another may be at work.
    http::serve("health checks", options.healthz_bind, Arc::clone(&status)).await?;
    if options.metrics_bind != options.healthz_bind {
        http::serve("metrics", options.metrics_bind, Arc::clone(&status)).await?;
    }
    if let Err(error) = About::new(&options, &node).write(&options.state_dir) {
        warn!(error = format!("{error:#}"), "cannot write down which agent this is");
    }
    sysctl::make_writable()?;
    let (local_pods, local_pods_seen) = watch::channel(Vec::new());
    let (applied, applied_seen) = watch::channel(None);
    let (due, due_seen) = watch::channel(None);
    let (facts, facts_seen) = watch::channel(Facts::default());
    // It reads while the programs are loaded, which takes as long.
    let mut source = Source::start(&options, &node, facts_seen, local_pods_seen.clone())?;
    // Queries may be waiting.
    let names = KernelNames::default();
    let mut dns = start_dns(&options, &node, &source, local_pods_seen, &traces, &status, &names);
    let mut reconciler = {
        let subnet_env = options.subnet_env.as_ref().zip(options.flannel.as_ref());
        let masquerades = options.masquerade == MasqueradeOption::On;
        let subnet_env =
            subnet_env.map(|(path, conf)| SubnetEnv::new(path, conf, masquerades, &traces));
        let (status, traces) = (Arc::clone(&status), Arc::clone(&traces));
        let outputs = Outputs { applied, local_pods, due, status, traces, subnet_env };
        Reconciler::start(options.clone(), node.clone(), outputs)?
    };
    facts.send_replace(reconciler.facts());
    if let Some(dns) = &mut dns {
        dns.tell(reconciler.resolver()?)?;
    }
    let mut tables = reconciler.names()?;
    if dns.is_some() && options.dns.dns_kernel == Switch::On {
        names.tell(tables);
    } else {
        tables.clear()?;
    }
    node::enable_forwarding(&traces)?;
    masquerade::reserve(&options.masquerade_ports, &traces)?;
    let (commands, queue) = mpsc::channel(QUEUE);
    std::thread::Builder::new()
        .name("reconciler".to_owned())
        .spawn(move || reconciler.run(queue))
        .context("start the reconciler's thread")?;

    socket::serve(&options.socket, commands.clone(), dns.as_ref().map(Dns::explainer)).await?;
    if let Some(path) = &options.cni_conf {
        let conf = CniConf::new(path, &options.socket, &options.cni_data_dir);
        let traces = Arc::clone(&traces);
        tokio::spawn(cni_conf::keep(conf, node.clone(), applied_seen.clone(), traces));
    }
    tokio::spawn(selftest::run(
        node.clone(),
        options.underlay_mtu,
        applied_seen.clone(),
        traces,
        Arc::clone(&status),
    ));
    tokio::spawn(health_checks::keep(
        node.clone(),
        options.node_port_ranges(),
        applied_seen.clone(),
        Arc::clone(&status),
    ));
    let announcer = Announcer::start(
        node.clone(),
        options.uplink.clone(),
        applied_seen.clone(),
        Arc::clone(&status),
    )?;
    tokio::spawn(watch_tables(usage::tables(&options.bpffs), Arc::clone(&status)));
    info!(node, "the agent runs");

    let ended = tokio::select! {
        result = source.feed(&commands, &node, &status, applied_seen) => result,
        result = tick(&commands, due_seen) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    announcer.stop();
    if let Some(dns) = dns {
        dns.stop().await;
    }
    ended?;
    info!("stopping; what is in the kernel stays in force");
    Ok(())
}

fn start_dns(
    options: &Options,
    node: &str,
    source: &Source,
    pods: watch::Receiver<Vec<LocalPod>>,
    traces: &Arc<Traces>,
    status: &Arc<Status>,
    names: &KernelNames,
) -> Option<Dns> {
    let Some(service) = options.dns.service(options.manifests.is_some()) else {
        dns::forgo();
        return None;
    };
    Some(Dns::start(dns::Inputs {
        node: node.to_owned(),
        options: options.dns.clone(),
        service,
        models: source.model(),
        pods,
        traces: Arc::clone(traces),
        status: Arc::clone(status),
        names: names.clone(),
    }))
}

/// Where the model comes from.
enum Source {
    Manifests(manifests::Source),
    Feed(client::Follower),
}

impl Source {
    fn start(
        options: &Options,
        node: &str,
        facts: watch::Receiver<Facts>,
        local_pods: watch::Receiver<Vec<LocalPod>>,
    ) -> Result<Self> {
        if !options.feed.is_empty() {
            let following = client::Options {
                endpoints: options.feed.clone(),
                node: node.to_owned(),
                snapshot: options.state_dir.join("snapshot"),
                facts,
            };
            let security = &options.feed_security;
            return Ok(Self::Feed(security.follow(following, &options.state_dir.join("feed"))?));
        }
        let Some(dir) = options.manifests.clone() else {
            bail!("either --manifests or --feed is needed");
        };
        let uplink = Uplink::find(&mut Netlink::open()?, options.uplink.as_deref(), &[])?;
        let local = Node {
            name: node.to_owned(),
            addresses: uplink.addresses(),
            pod_cidrs: options.pod_cidr.clone(),
            ..Node::default()
        };
        Ok(Self::Manifests(manifests::start(manifests::Options {
            dir,
            state_dir: options.state_dir.clone(),
            service_cidrs: options.service_cidr.clone(),
            node_port_range: options.node_port_range.clone(),
            local: Some(LocalNode { node: local, pods: local_pods }),
            resolver: options.dns.service(true),
        })?))
    }

    /// Tells which revision came last, and whether that is in force.
    fn tell_revision(&self, applied: &watch::Receiver<Option<Arc<Model>>>, status: &Status) {
        let Self::Feed(follower) = self else { return };
        let (held, applied) = (follower.model.borrow().clone(), applied.borrow().clone());
        let in_force =
            held.zip(applied).is_some_and(|(held, applied)| Arc::ptr_eq(&held, &applied));
        status.revision(follower.status.borrow().revision.as_ref(), in_force);
    }

    fn model(&self) -> ModelReceiver {
        match self {
            Self::Manifests(source) => source.model.clone(),
            Self::Feed(follower) => follower.model.clone(),
        }
    }

    /// Hands each new model to the kernel's thread, and each that is in force back to the source.
    async fn feed(
        &mut self,
        commands: &mpsc::Sender<Command>,
        node: &str,
        status: &Status,
        mut applied: watch::Receiver<Option<Arc<Model>>>,
    ) -> Result<()> {
        let mut models = self.model();
        models.mark_changed();
        let mut known = Arc::new(Model::default());
        let mut following = match self {
            Self::Manifests(_) => None,
            Self::Feed(follower) => Some(follower.status.clone()),
        };
        loop {
            tokio::select! {
                changed = models.changed() => {
                    changed.context("the source of the model ended")?;
                    let model = models.borrow_and_update().clone();
                    if let Some(model) = model {
                        status.queued(Changes::between(&known, &model));
                        known = Arc::clone(&model);
                        commands.send(Command::Model(model)).await.context(THREAD_ENDED)?;
                    }
                }
                changed = applied.changed() => {
                    changed.context(THREAD_ENDED)?;
                    let Some(model) = applied.borrow_and_update().clone() else { continue };
                    status.no_local_endpoints(NoLocal::of(&model, node));
                    if let Self::Feed(follower) = &*self {
                        follower.ack(&model);
                    }
                    self.tell_revision(&applied, status);
                }
                () = changed(&mut following) => self.tell_revision(&applied, status),
            }
        }
    }
}

/// Looks again and again at how full the kernel's tables are.
async fn watch_tables(tables: PathBuf, status: Arc<Status>) {
    const AGAIN: Duration = Duration::from_secs(30);
    loop {
        let folder = tables.clone();
        match tokio::task::spawn_blocking(move || usage::usage(&folder)).await {
            Ok(Ok(found)) => status.tables(found),
            Ok(Err(error)) => warn!(error = format!("{error:#}"), "cannot look at the tables"),
            Err(error) => warn!(%error, "cannot look at the tables"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Waits for news of the feed; for ever if there can be none.
async fn changed(following: &mut Option<watch::Receiver<client::Status>>) {
    if let Some(following) = following
        && following.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

const THREAD_ENDED: &str = "the reconciler's thread ended";

/// Sends a command at regular times, and one at each moment that the kernel's thread asks for.
async fn tick(
    commands: &mpsc::Sender<Command>,
    mut due: watch::Receiver<Option<Instant>>,
) -> Result<()> {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    due.mark_changed();
    let mut moment = None;
    loop {
        let command = tokio::select! {
            _ = ticks.tick() => Command::Tick,
            () = wait_until(moment) => {
                moment = None;
                Command::Due
            }
            changed = due.changed() => {
                changed.context(THREAD_ENDED)?;
                moment = *due.borrow_and_update();
                continue;
            }
        };
        commands.send(command).await.context(THREAD_ENDED)?;
    }
}

/// For ever, if there is no moment.
async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// As [`lock_state`], for who wants no agent to run; there is nothing to hold if there is no folder.
pub(crate) fn hold_state(folder: &Path) -> Result<Option<File>> {
    folder.exists().then(|| lock_state(folder)).transpose()
}

/// As [`hold_state`], for the node's tables and programs.
pub(crate) fn hold_bpffs(folder: &Path) -> Result<Option<File>> {
    folder.exists().then(|| lock_bpffs(folder)).transpose()
}

/// Makes sure that this is the only agent on the state folder, for as long as the file is held.
fn lock_state(folder: &Path) -> Result<File> {
    make_folder(folder).with_context(|| format!("make folder {}", folder.display()))?;
    let path = folder.join("agent.lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    lock(file, &path)
}

/// The same for the node's tables and programs, whatever state folder another agent was given.
fn lock_bpffs(folder: &Path) -> Result<File> {
    make_folder(folder).with_context(|| {
        format!("make folder {}: is a BPF file system mounted there?", folder.display())
    })?;
    let file = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    lock(file, folder)
}

/// Makes a folder for root alone: whoever may open what is locked may lock it as well, and no agent
/// would start.
fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// A program that the agent before this one was about to execute when it was killed shares its lock until
/// it is executed, so one try is not enough.
fn lock(file: File, path: &Path) -> Result<File> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let start = Instant::now();
    while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK || start.elapsed() > PATIENCE {
            return Err(error).with_context(|| {
                format!("lock {}: an agent is running on this node", path.display())
            });
        }
        thread::sleep(PATIENCE / 100);
    }
    Ok(file)
}

fn host_name() -> Result<String> {
    let name = rustix::system::uname();
    let name = name.nodename().to_str().context("the host name is not UTF-8")?;
    Ok(name.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_moment_that_is_asked_for_comes_once() {
        let (commands, mut queue) = mpsc::channel(1);
        let (due, due_seen) = watch::channel(None);
        let ticking = tokio::spawn(async move { tick(&commands, due_seen).await });
        let moment = Instant::now() + TICK / 4;
        due.send_replace(Some(moment));
        let mut seen = Vec::new();
        for _ in 0..3 {
            let next = tokio::time::timeout(TICK * 20, queue.recv()).await;
            let next = next.expect("in time").expect("a command");
            seen.push(matches!(next, Command::Due));
            assert!(!matches!(next, Command::Due) || Instant::now() >= moment);
        }
        assert_eq!(seen.iter().filter(|is_due| **is_due).count(), 1, "{seen:?}");
        ticking.abort();
    }
}
