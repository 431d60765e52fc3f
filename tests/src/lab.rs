//! A lab from outside: starting one, asking its daemon, running commands in it, stopping it.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_model::{Endpoint, EndpointState, Model, ObjectName};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::api::{self, NodeInfo, Power, Request, Response, Target};
use crate::apps::load::Load;
use crate::apps::lookups::Lookups;
use crate::apps::reach::{Port, Reach};
use crate::apps::stream::Stream;
use crate::binaries::binaries;
use crate::cluster::Options;
use crate::daemon::{self, Event};
use crate::manifest::{self, Manifests};
use crate::names::{LabName, Names, netns_with_prefix};
use crate::objects::{Key, Kind};
use crate::process::{self, Place};
use crate::store::{is_ready, is_terminating};
use crate::sweep::sweep;
use crate::wait::wait_until;

/// A daemon that takes longer to go down is killed.
const DOWN_LIMIT: Duration = Duration::from_secs(60);
/// Commands that tests run in a lab end by then.
const EXEC_LIMIT: Duration = Duration::from_secs(60);

/// When a lab ends without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// With the value that stands for it, or with this process.
    OfValue,
    /// Never.
    Endless,
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    names: Names,
    /// `fairway-lab` itself, for what runs inside.
    program: PathBuf,
    /// Present if the lab ends with this value.
    daemon: Option<Child>,
}

impl Lab {
    /// Starts a lab that ends with this value, or with this process however that ends. Without a
    /// folder of binaries in `options`, those of the workspace are built.
    pub fn up(mut options: Options) -> Result<Self> {
        let folder = match &options.bin_dir {
            Some(folder) => folder.clone(),
            None => binaries()?.to_owned(),
        };
        options.bin_dir = Some(folder.clone());
        Self::start(folder.join("fairway-lab"), options, Lifetime::OfValue, |_| {})
    }

    /// Starts a lab by the program that runs now, and says what it does.
    pub(crate) fn up_by_self(
        options: Options,
        lifetime: Lifetime,
        progress: impl FnMut(&str),
    ) -> Result<Self> {
        Self::start(own_path()?, options, lifetime, progress)
    }

    fn start(
        program: PathBuf,
        options: Options,
        lifetime: Lifetime,
        progress: impl FnMut(&str),
    ) -> Result<Self> {
        let names = Names::of(&options.name)?;
        let tied = lifetime == Lifetime::OfValue;
        let daemon = start_daemon(&program, options, tied, progress)?;
        Ok(Self { names, program, daemon: tied.then_some(daemon) })
    }

    /// The running lab of this name.
    pub fn connect(name: &LabName) -> Result<Self> {
        let names = Names::of(name)?;
        match state_of(&names)? {
            LabState::Running => Ok(Self { names, program: own_path()?, daemon: None }),
            LabState::Busy => bail!("lab {name} is on its way up or down, or a benchmark's"),
            LabState::Dead if names.root().exists() => bail!("{}", dead(name)),
            LabState::Dead => {
                bail!("no lab {name} is running; start it with `fairway-lab up --name {name}`")
            }
        }
    }

    /// Stops the lab of this name, whatever state it is in, and leaves nothing of it. Says whether
    /// there was anything.
    pub fn down(name: &LabName) -> Result<bool> {
        let names = Names::of(name)?;
        let existed = names.root().exists()
            || names.cgroup().exists()
            || !netns_with_prefix(&names.netns_prefix())?.is_empty();
        let hangs = match api::ask(&names.socket(), &Request::Down) {
            Ok(_) => false,
            // One that has no socket yet, or no more, is dealt with below.
            Err(error) => error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut),
        };
        let mut lock = None;
        let mut free = || {
            lock = daemon::try_lock(&names)?;
            Ok(lock.is_some())
        };
        let what = format!("lab {name} to go down");
        let patience = if hangs { Duration::ZERO } else { DOWN_LIMIT };
        if wait_until(patience, &what, &mut free).is_err() {
            kill_holder(&names)?;
            wait_until(DOWN_LIMIT, &what, &mut free)?;
        }
        let swept = sweep(&names);
        if let Some(lock) = lock {
            daemon::unlock(&names, lock);
        }
        swept.map(|()| existed)
    }

    /// Its name.
    pub fn name(&self) -> &LabName {
        self.names.lab()
    }

    /// Applies YAML text; a line for each object.
    pub fn apply(&self, yaml: &str) -> Result<Vec<String>> {
        let mut manifests = Manifests::default();
        manifest::parse(yaml, &mut manifests)?;
        self.apply_manifests(manifests)
    }

    /// Applies files and folders; a line for each object.
    pub fn apply_files(&self, paths: &[PathBuf]) -> Result<Vec<String>> {
        self.apply_manifests(manifest::read(paths)?)
    }

    pub(crate) fn apply_manifests(&self, manifests: Manifests) -> Result<Vec<String>> {
        let mut lines = self.done(&Request::Apply { objects: manifests.objects })?;
        let skipped = manifests.skipped.into_iter();
        lines.extend(skipped.map(|name| format!("{name} skipped: a lab has no use for this kind")));
        Ok(lines)
    }

    /// Deletes objects and waits until their pods are gone.
    pub fn delete(&self, keys: Vec<Key>, force: bool) -> Result<Vec<String>> {
        self.done(&Request::Delete { keys, force })
    }

    /// Gives a workload another number of replicas.
    pub fn scale(&self, key: Key, replicas: u32) -> Result<Vec<String>> {
        self.done(&Request::Scale { key, replicas })
    }

    /// All objects of a kind, in the order of their names.
    pub fn list(&self, kind: Kind) -> Result<Vec<Value>> {
        match self.ask(&Request::List { kind })? {
            Response::Objects(objects) => Ok(objects),
            other => bail!("the lab answers {other:?} to a list"),
        }
    }

    /// The pods of a namespace that have a label and have not been told to end.
    pub fn pods(&self, namespace: &str, label: &str, value: &str) -> Result<Vec<Value>> {
        let mut pods = self.list(Kind::Pod)?;
        pods.retain(|pod| {
            pod["metadata"]["namespace"] == namespace
                && pod["metadata"]["labels"][label] == value
                && !is_terminating(pod)
        });
        Ok(pods)
    }

    /// Waits until exactly `count` pods with a label are ready and none of them is on its way out;
    /// those pods.
    pub fn wait_for_pods(
        &self,
        namespace: &str,
        label: &str,
        value: &str,
        count: usize,
    ) -> Result<Vec<Value>> {
        const LIMIT: Duration = Duration::from_secs(60);
        let mut pods = Vec::new();
        let what = format!("{count} ready pods with {label}={value} in {namespace}");
        wait_until(LIMIT, &what, || {
            pods = self.pods(namespace, label, value)?;
            Ok(pods.len() == count && pods.iter().all(is_ready))
        })
        .with_context(|| format!("there are {}", Value::from(pods.clone())))?;
        Ok(pods)
    }

    /// What the control plane made of the objects.
    pub fn model(&self) -> Result<Model> {
        match self.ask(&Request::Model)? {
            Response::Model(model) => Ok(*model),
            other => bail!("the lab answers {other:?} to a question for the model"),
        }
    }

    /// How the nodes are doing.
    pub fn nodes(&self) -> Result<Vec<NodeInfo>> {
        match self.ask(&Request::Nodes)? {
            Response::Nodes(nodes) => Ok(nodes),
            other => bail!("the lab answers {other:?} to a question for nodes"),
        }
    }

    /// Waits until a Service has `count` endpoints on each port, all ready, and every node and gateway knows.
    pub fn wait_for_endpoints(&self, service: &ObjectName, count: usize) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(10);
        wait_until(LIMIT, &format!("{count} ready endpoints of {service}"), || {
            let model = self.model()?;
            let Some(endpoints) = model.endpoints.get(service) else { return Ok(false) };
            let are_ready = |endpoints: &Vec<Endpoint>| {
                let mut states = endpoints.iter().map(|endpoint| endpoint.state);
                endpoints.len() == count && states.all(|state| state == EndpointState::Ready)
            };
            // Without endpoints there may be no ports either.
            let has_ports = count == 0 || !endpoints.ports.is_empty();
            Ok(has_ports && endpoints.ports.values().all(are_ready))
        })?;
        self.wait_in_step()
    }

    /// Ends a node's agent, which is started again; returns when it serves again.
    pub fn restart_agent(&self, node: &str, kill: bool) -> Result<Vec<String>> {
        self.done(&Request::RestartAgent { node: node.to_owned(), kill })
    }

    /// Kills a node's agent, which stays away until [`Self::start_agent`].
    pub fn kill_agent(&self, node: &str) -> Result<()> {
        self.done(&Request::Agent { node: node.to_owned(), run: false }).map(drop)
    }

    /// Starts a node's agent again; returns when it serves.
    pub fn start_agent(&self, node: &str) -> Result<()> {
        self.done(&Request::Agent { node: node.to_owned(), run: true }).map(drop)
    }

    /// Kills a node's gateway, which stays away until [`Self::start_gateway`].
    pub fn kill_gateway(&self, node: &str) -> Result<()> {
        self.done(&Request::Gateway { node: node.to_owned(), run: false }).map(drop)
    }

    /// Starts a node's gateway again; returns when it serves.
    pub fn start_gateway(&self, node: &str) -> Result<()> {
        self.done(&Request::Gateway { node: node.to_owned(), run: true }).map(drop)
    }

    /// Makes a node that flannel runs one of ours; returns when its agent serves.
    pub fn convert(&self, node: &str) -> Result<Vec<String>> {
        self.done(&Request::Convert { node: node.to_owned() })
    }

    /// Takes the power from a node, or gives it back; returns when nothing runs there any more, or when its
    /// agent has been started, which may take long to serve.
    pub fn power(&self, node: &str, power: Power) -> Result<()> {
        self.done(&Request::Power { node: node.to_owned(), power }).map(drop)
    }

    /// Kills the control plane, which stays away until [`Self::start_controlplane`].
    pub fn kill_controlplane(&self) -> Result<()> {
        self.done(&Request::Controlplane { run: false }).map(drop)
    }

    /// Starts the control plane again; returns when it serves.
    pub fn start_controlplane(&self) -> Result<()> {
        self.done(&Request::Controlplane { run: true }).map(drop)
    }

    /// What somebody printed so far.
    pub fn logs(&self, target: Target) -> Result<String> {
        let Response::Files(files) = self.ask(&Request::Logs { target })? else {
            bail!("the lab does not say where the log is");
        };
        let mut text = String::new();
        for file in files {
            if !file.exists() {
                continue; // nothing has been printed yet
            }
            text +=
                &fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        }
        Ok(text)
    }

    /// A command that will run beside `target`.
    pub fn command(&self, target: Target, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        self.place(target)?.apply(&mut command)?;
        Ok(command)
    }

    /// Runs a command beside `target` and takes what it prints.
    pub fn exec(&self, target: Target, words: &[&str]) -> Result<Output> {
        let (program, arguments) = words.split_first().context("which command?")?;
        let mut command = self.command(target, program)?;
        process::output_within(command.args(arguments), b"", EXEC_LIMIT)
    }

    /// GETs a URL from beside `target`, once; the body of a good answer.
    pub fn get(&self, target: Target, url: &str) -> Result<String> {
        let output = self.exec(target, &["curl", "-gsSf", "--max-time", "5", url])?;
        printed(output).with_context(|| format!("GET {url}"))
    }

    /// Asks a UDP server from beside `target`, once; its answer.
    pub fn ask_udp(&self, target: Target, server: SocketAddr, question: &str) -> Result<String> {
        self.ask_udp_with(target, server, question, &[])
    }

    /// As [`Self::ask_udp`], with options of `fairway-lab app udp`.
    pub fn ask_udp_with(
        &self,
        target: Target,
        server: SocketAddr,
        question: &str,
        options: &[&str],
    ) -> Result<String> {
        let program = self.program.to_string_lossy();
        let to = server.to_string();
        let words = [&[&*program, "app", "udp", &to, question], options].concat();
        let output = self.exec(target, &words)?;
        printed(output).with_context(|| format!("ask {server} by UDP"))
    }

    /// A command of the node's `fairway-proxy` about what its agent keeps, that will run beside that.
    pub fn inspect(&self, node: &str, words: &[&str]) -> Result<Command> {
        let program = self.program.with_file_name("fairway-proxy");
        let mut command = Command::new(program);
        self.place(Target::Node { node: node.to_owned() })?.apply(&mut command)?;
        command.args(words).arg("--bpffs").arg(self.names.node_bpffs(node));
        command.arg("--state-dir").arg(self.names.node_state(node).join("agent"));
        Ok(command)
    }

    /// `fairway-proxy dns query` on a node: what its agent answers, and why.
    pub fn query_name(&self, node: &str, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.program.with_file_name("fairway-proxy"));
        self.place(Target::Node { node: node.to_owned() })?.apply(&mut command)?;
        command
            .args(["dns", "query"])
            .args(words)
            .arg("--socket")
            .arg(self.names.agent_socket(node));
        Ok(command)
    }

    /// The pinned table of this name in force on a node.
    pub fn table(&self, node: &str, name: &str) -> PathBuf {
        self.names.node_bpffs(node).join("tables").join(name)
    }

    /// The lab's own program, whose `app` command has clients for tests.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Asks an SCTP server from beside `target`, all on one association; an answer a line.
    pub fn ask_sctp(
        &self,
        target: Target,
        server: SocketAddr,
        questions: &[&str],
    ) -> Result<String> {
        let program = self.program.to_string_lossy();
        let to = server.to_string();
        let words = [&[&*program, "app", "sctp", &to], questions].concat();
        let output = self.exec(target, &words)?;
        printed(output).with_context(|| format!("ask {server} by SCTP"))
    }

    /// The folder in which the control plane remembers things.
    pub fn controlplane_state(&self) -> PathBuf {
        self.names.controlplane_state()
    }

    /// The folder of manifests that the control plane reads.
    pub fn manifests(&self) -> PathBuf {
        self.names.manifests()
    }

    /// Starts the client without patience beside `target`; it asks `urls` in turn, `rate` times a
    /// second, with up to `concurrency` requests in flight, until it is told to finish.
    pub fn start_load(
        &self,
        target: Target,
        urls: &[String],
        rate: u32,
        concurrency: u32,
    ) -> Result<Load> {
        let mut command = Command::new(&self.program);
        self.place(target)?.apply(&mut command)?;
        Load::start(command, urls, rate, concurrency)
    }

    /// Starts the client that asks a DNS server for a name over and over, beside `target`, until it is told to finish.
    pub fn start_lookups(
        &self,
        target: Target,
        server: SocketAddr,
        name: &str,
        rate: u32,
    ) -> Result<Lookups> {
        let mut command = Command::new(&self.program);
        self.place(target)?.apply(&mut command)?;
        Lookups::start(command, server, name, rate)
    }

    /// Starts the client that asks a test server, every few milliseconds and on one connection,
    /// beside `target`, until it is told to finish.
    pub fn start_stream(&self, target: Target, server: SocketAddr) -> Result<Stream> {
        self.start_stream_with(target, server, &[])
    }

    /// As [`Self::start_stream`], with options of `fairway-lab app stream`.
    pub fn start_stream_with(
        &self,
        target: Target,
        server: SocketAddr,
        options: &[&str],
    ) -> Result<Stream> {
        let mut command = Command::new(&self.program);
        self.place(target)?.apply(&mut command)?;
        Stream::start(command, server, options)
    }

    /// Starts the client that tries to reach many ports beside `target`.
    pub fn start_reach(&self, target: Target, ports: &[Port], timeout: Duration) -> Result<Reach> {
        let mut command = Command::new(&self.program);
        self.place(target)?.apply(&mut command)?;
        Reach::start(command, ports, timeout)
    }

    /// Waits until every node and every gateway has in force what the control plane knows now.
    pub fn wait_in_step(&self) -> Result<()> {
        self.done(&Request::InStep).map(drop)
    }

    fn place(&self, target: Target) -> Result<Place> {
        match self.ask(&Request::Locate { target })? {
            Response::Place(place) => Ok(place),
            other => bail!("the lab answers {other:?} to a question for a place"),
        }
    }

    fn done(&self, request: &Request) -> Result<Vec<String>> {
        match self.ask(request)? {
            Response::Done(lines) => Ok(lines),
            other => bail!("the lab answers {other:?} to a command"),
        }
    }

    fn ask(&self, request: &Request) -> Result<Response> {
        let outcome = api::ask(&self.names.socket(), request);
        match outcome {
            Err(_) if state_of(&self.names)? == LabState::Dead => bail!("{}", dead(self.name())),
            outcome => outcome,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        drop(daemon.stdin.take()); // the tie
        let gone =
            wait_until(DOWN_LIMIT, "the lab to go down", || Ok(daemon.try_wait()?.is_some()));
        if let Err(error) = gone {
            eprintln!("{error:#}");
            process::signal(&daemon, Signal::KILL);
            // Killed, so this returns; what it left is swept.
            let _ = daemon.wait();
            if let Err(error) = Self::down(self.names.lab()) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// Whether a lab whose state is on this machine can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LabState {
    /// Its daemon listens.
    Running,
    /// Somebody makes, removes or measures it.
    Busy,
    /// Nobody holds it.
    Dead,
}

fn state_of(names: &Names) -> Result<LabState> {
    Ok(if !daemon::is_locked(names)? {
        LabState::Dead
    } else if UnixStream::connect(names.socket()).is_ok() {
        LabState::Running
    } else {
        LabState::Busy
    })
}

fn dead(name: &LabName) -> String {
    format!("lab {name} is dead; `fairway-lab down --name {name}` cleans up")
}

/// The labs whose state is on this machine, and how each is doing.
pub(crate) fn list_labs() -> Result<Vec<(LabName, LabState)>> {
    let root = crate::names::STATE_ROOT;
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {root}")),
    };
    let mut labs = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {root}"))?;
        let name = entry.file_name().to_string_lossy().parse::<LabName>();
        if let Ok(name) = name {
            let state = state_of(&Names::of(&name)?)?;
            labs.push((name, state));
        }
    }
    labs.sort();
    Ok(labs)
}

/// What a command printed, if it succeeded.
fn printed(output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn own_path() -> Result<PathBuf> {
    env::current_exe().context("find this program's own path")
}

fn start_daemon(
    program: &Path,
    mut options: Options,
    tied: bool,
    mut progress: impl FnMut(&str),
) -> Result<Child> {
    for (option, path) in [("--bin-dir", &mut options.bin_dir), ("--images", &mut options.images)] {
        let Some(path) = path else { continue };
        // The daemon works in another folder.
        *path = fs::canonicalize(&*path).with_context(|| format!("{option} {}", path.display()))?;
    }
    let encoded = serde_json::to_string(&options).context("encode the options")?;
    let mut command = Command::new(program);
    command.args(["daemon", "--options", &encoded]);
    if tied {
        command.arg("--tied").stdin(Stdio::piped());
    } else {
        command.stdin(Stdio::null());
    }
    command.stdout(Stdio::piped()).current_dir("/");
    process::own_session(&mut command);
    let mut daemon = command.spawn().with_context(|| format!("start {}", program.display()))?;
    let events = daemon.stdout.take().context("the daemon's output")?;
    for line in BufReader::new(events).lines() {
        let line = line.context("read the daemon's events")?;
        match serde_json::from_str(&line).with_context(|| format!("read event {line:?}"))? {
            Event::Progress(what) => progress(&what),
            Event::Ready => return Ok(daemon),
            Event::Failed(message) => {
                daemon.wait().context("wait for the daemon")?;
                bail!(message);
            }
        }
    }
    let status = daemon.wait().context("wait for the daemon")?;
    bail!("the lab's daemon ended on the way up: {status}");
}

/// Kills the process that holds the lock; while it does, its number is in there and its own.
fn kill_holder(names: &Names) -> Result<()> {
    let path = names.lock();
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.with_context(|| format!("{}: holds {text:?}, no process", path.display()))?;
    rustix::process::kill_process(pid, Signal::KILL)
        .with_context(|| format!("kill the daemon {text}"))
}
