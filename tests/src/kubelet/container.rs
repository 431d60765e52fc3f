//! One container: its process, whether it is ready, and when it starts again.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_netlink::NetNs;
use rustix::process::Signal;

use super::images::Program;
use super::status::{ContainerState, ContainerStatus};
use crate::http;
use crate::process::{self, Disguise, Place};
use crate::spec::{self, PortProbe, PortRef, RestartPolicy};

/// The first pause before a restart; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often a container is asked until it is ready for the first time.
const EAGER: Duration = Duration::from_millis(50);
/// One probe takes at most this long.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// A container of a pod that has its network.
#[derive(Debug)]
pub(super) struct Container {
    spec: spec::Container,
    policy: RestartPolicy,
    child: Option<Child>,
    state: ContainerState,
    restarts: u32,
    /// Failed starts and ends in a row of one pod's life: what the pause before the next follows.
    failures: u32,
    next_start: Option<Instant>,
    ready: bool,
    started: Instant,
    next_probe: Instant,
    tcp_port: Option<u16>,
}

/// Where and as what a container starts.
#[derive(Debug)]
pub(super) struct Setting {
    /// Network namespace and cgroup.
    pub place: Place,
    /// Files and host name.
    pub disguise: Disguise,
    /// Its private folder.
    pub dir: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Container {
    /// One that has not been started yet, and will be at once.
    pub(super) fn new(spec: spec::Container, policy: RestartPolicy) -> Self {
        let now = Instant::now();
        Self {
            spec,
            policy,
            child: None,
            state: ContainerState::Waiting { reason: "ContainerCreating", message: String::new() },
            restarts: 0,
            failures: 0,
            next_start: Some(now),
            ready: false,
            started: now,
            next_probe: now,
            tcp_port: None,
        }
    }

    /// What it was asked to be.
    pub(super) fn spec(&self) -> &spec::Container {
        &self.spec
    }

    /// The process, if it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it is time to [start](Self::start) it.
    pub(super) fn is_due(&self) -> bool {
        self.next_start.is_some_and(|due| due <= Instant::now())
    }

    /// Starts `program`; a failure becomes its state, and it is tried again later.
    pub(super) fn start(
        &mut self,
        program: Result<Program>,
        variables: &BTreeMap<String, String>,
        setting: &Setting,
    ) {
        self.next_start = None;
        self.ready = false;
        let started = program.and_then(|program| {
            self.tcp_port = program.tcp_port;
            spawn(&program, variables, setting)
        });
        match started {
            Ok(child) => {
                self.child = Some(child);
                self.state = ContainerState::Running;
                self.started = Instant::now();
                self.next_probe = self.started + self.initial_delay();
            }
            Err(error) => self.retry_later("CreateContainerError", format!("{error:#}")),
        }
    }

    /// Takes note of the process's end, and decides what follows.
    pub(super) fn watch(&mut self) {
        let Some(child) = &mut self.child else {
            return;
        };
        let status = match child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => status,
            Err(error) => {
                tracing::error!("container {}: cannot be watched: {error}", self.spec.name);
                return;
            }
        };
        self.child = None;
        self.ready = false;
        let again = match self.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !status.success(),
            RestartPolicy::Never => false,
        };
        if again {
            self.restarts += 1;
            self.retry_later("CrashLoopBackOff", status.to_string());
        } else {
            self.state = ContainerState::Terminated { exit_code: exit_code(status) };
        }
    }

    /// Asks the container whether it is ready, if it is time to; from the node, as a kubelet does.
    pub(super) fn probe(&mut self, node: &NetNs, address: IpAddr) {
        let now = Instant::now();
        if self.child.is_none() || now < self.next_probe {
            return;
        }
        let period = self.period();
        if self.ready && period.is_none() {
            return; // nobody asked for more than a start
        }
        self.ready = match node.run(|| self.is_ready(address)) {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!("probe container {}: {error}", self.spec.name);
                false
            }
        };
        let pause = period.filter(|_| self.ready).unwrap_or(EAGER);
        self.next_probe = now + pause;
    }

    /// Sends its process a signal.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            process::signal(child, signal);
        }
    }

    /// Waits for a process that has been killed.
    pub(super) fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Whatever the outcome, it is gone from here.
            let _ = child.wait();
        }
        self.ready = false;
    }

    /// Takes note that it was lost with its machine; it starts again once that is back.
    pub(super) fn lose(&mut self) {
        self.reap();
        self.restarts += 1;
        self.failures = 0;
        self.next_start = Some(Instant::now());
        self.state =
            ContainerState::Waiting { reason: "ContainerCreating", message: String::new() };
    }

    /// How it is doing.
    pub(super) fn status(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.spec.name.clone(),
            image: self.spec.image.clone(),
            state: self.state.clone(),
            ready: self.ready,
            restarts: self.restarts,
        }
    }

    fn retry_later(&mut self, reason: &'static str, message: String) {
        let doubled = FIRST_PAUSE * 2_u32.pow(self.failures.min(10));
        self.next_start = Some(Instant::now() + doubled.min(LONGEST_PAUSE));
        self.failures += 1;
        self.state = ContainerState::Waiting { reason, message };
    }

    fn initial_delay(&self) -> Duration {
        let probe = self.spec.readiness_probe.as_ref();
        Duration::from_secs(probe.map_or(0, |probe| probe.initial_delay_seconds))
    }

    /// Time between probes; none without a probe.
    fn period(&self) -> Option<Duration> {
        let probe = self.spec.readiness_probe.as_ref()?;
        Some(Duration::from_secs(probe.period_seconds.unwrap_or(10).max(1)))
    }

    fn is_ready(&self, address: IpAddr) -> bool {
        let probe = self.spec.readiness_probe.as_ref();
        if let Some(get) = probe.and_then(|probe| probe.http_get.as_ref()) {
            let path = get.path.as_deref().unwrap_or("/");
            return self.port(get).is_some_and(|port| {
                http::get(SocketAddr::new(address, port), path, PROBE_LIMIT)
                    .is_ok_and(|answer| (200..400).contains(&answer.status))
            });
        }
        let asked = probe.and_then(|probe| probe.tcp_socket.as_ref());
        let port = match asked {
            Some(asked) => self.port(asked),
            None => match self.tcp_port {
                Some(port) => Some(port),
                None => return true, // it runs, and that is all one can say
            },
        };
        port.is_some_and(|port| {
            TcpStream::connect_timeout(&SocketAddr::new(address, port), PROBE_LIMIT).is_ok()
        })
    }

    fn port(&self, probe: &PortProbe) -> Option<u16> {
        match &probe.port {
            PortRef::Number(port) => Some(*port),
            PortRef::Name(name) => {
                let mut ports = self.spec.ports.iter();
                let found = ports.find(|port| port.name == *name)?;
                Some(found.container_port)
            }
        }
    }
}

fn spawn(
    program: &Program,
    variables: &BTreeMap<String, String>,
    setting: &Setting,
) -> Result<Child> {
    fs::create_dir_all(&setting.dir)
        .with_context(|| format!("create {}", setting.dir.display()))?;
    for (name, text) in &program.files {
        let file = setting.dir.join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    let (path, arguments) = program.command.split_first().context("the command is empty")?;
    let mut command = Command::new(Path::new(path));
    command.args(arguments).env_clear().envs(variables).current_dir(&setting.dir);
    process::supervised(&mut command, &setting.log)?;
    setting.place.apply(&mut command)?;
    setting.disguise.apply(&mut command)?;
    command.spawn().with_context(|| format!("start {path}"))
}

/// As a shell reports it.
fn exit_code(status: ExitStatus) -> i32 {
    let killed = || 128 + status.signal().unwrap_or_default();
    status.code().unwrap_or_else(killed)
}
