//! Proxies as processes: started, changed, measured and ended, each with one thread that serves on one CPU.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use rustix::process::Signal;

use super::backend::SMALL_PATH;
use super::config::{Files, envoy, fairway, haproxy, nginx};
use super::http1::Connection;
use super::load::{connect, patient};
use crate::bench::{cost, worker};
use crate::process;

/// From its start to its first right answer.
const READY: Duration = Duration::from_secs(60);
/// To end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Program {
    /// With manifests that it reads by itself
    Fairway,
    /// With a control plane that reads the manifests
    #[value(name = "fairway-feed")]
    Feed,
    Nginx,
    Haproxy,
    Envoy,
}

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fairway => "fairway",
            Self::Feed => "fairway-feed",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    /// What it is called as a file.
    pub(super) fn file(self) -> &'static str {
        if self.is_ours() { "fairway-ingress" } else { self.name() }
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Fairway | Self::Feed)
    }
}

/// Where a proxy takes requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// HTTP.
    pub http: SocketAddr,
    /// HTTP over TLS.
    pub https: SocketAddr,
}

impl Ports {
    /// Some that nobody has at the moment.
    pub(super) fn free() -> Result<Self> {
        let [http, https] = [free_address()?, free_address()?];
        Ok(Self { http, https })
    }
}

/// One that nobody has at the moment.
pub(super) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?)
}

/// What proxies serve.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// The certificate's chain, as PEM.
    pub certificate: String,
    /// Its key, as PEM.
    pub key: String,
    /// Who answers.
    pub backend: SocketAddr,
    /// Where proxies run.
    pub cpu: usize,
}

/// A running proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    /// Which it is.
    pub program: Program,
    /// Where it takes requests.
    pub ports: Ports,
    files: Files,
    child: Child,
    /// Whom it follows; not measured.
    _control_plane: Option<Ending>,
}

/// A process that ends with the value.
#[derive(Debug)]
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It may have ended already, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Proxy {
    /// Starts it with its files in a folder of its own. It serves these hosts as soon as it is [`Self::ready`].
    pub(super) fn start(
        program: Program,
        path: &Path,
        folder: &Path,
        site: &Site,
        hosts: &[String],
    ) -> Result<Self> {
        let about = || format!("start {}", program.name());
        let files = Files::in_folder(folder)?;
        let mut command = Command::new(path);
        let mut control_plane = None;
        match program {
            Program::Fairway => fairway::prepare(&files, site, hosts, &mut command),
            Program::Feed => {
                fairway::prepare_feed(&files, site, hosts, &mut command).and_then(|arguments| {
                    let mut command = Command::new(path.with_file_name("fairway-controlplane"));
                    process::supervised(command.args(arguments), &files.log())?;
                    control_plane = Some(Ending(command.spawn().context("its control plane")?));
                    Ok(())
                })
            }
            Program::Nginx => nginx::prepare(&files, site, hosts, &mut command),
            Program::Haproxy => haproxy::prepare(&files, site, hosts, &mut command),
            Program::Envoy => envoy::prepare(&files, site, hosts, &mut command),
        }
        .with_context(about)?;
        Self::spawn(program, command, files, site, control_plane)
    }

    /// Starts our gateway so that it follows a control plane that is there.
    pub(super) fn follow(
        path: &Path,
        folder: &Path,
        site: &Site,
        feed: SocketAddr,
    ) -> Result<Self> {
        let files = Files::in_folder(folder)?;
        let mut command = Command::new(path);
        fairway::prepare_follower(&files, feed, &mut command)?;
        Self::spawn(Program::Feed, command, files, site, None)
    }

    fn spawn(
        program: Program,
        mut command: Command,
        files: Files,
        site: &Site,
        control_plane: Option<Ending>,
    ) -> Result<Self> {
        process::supervised(&mut command, &files.log())?;
        // Whoever is started stays where the one who starts it is.
        let here = worker::last_cpu()?;
        worker::settle_on(site.cpu)?;
        let child = command.spawn().with_context(|| format!("start {}", program.name()));
        worker::settle_on(here)?;
        let ports = files.ports;
        Ok(Self { program, ports, files, child: child?, _control_plane: control_plane })
    }

    /// Waits until it answers for a host.
    pub(super) async fn ready(&mut self, host: &str) -> Result<()> {
        let deadline = Instant::now() + READY;
        while status(self.ports.http, host).await.ok() != Some(200) {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.files.log()).unwrap_or_default();
                bail!("{} does not answer for {host}: {}", self.program.name(), log.trim());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Has it serve these hosts from some moment on; `changed` is the one that is new, `gone` the one that is
    /// not any more.
    pub(super) fn change(&self, hosts: &[String], changed: &str, gone: Option<&str>) -> Result<()> {
        match self.program {
            Program::Fairway | Program::Feed => fairway::change(&self.files, changed, gone),
            Program::Nginx => nginx::write_hosts(&self.files, hosts),
            Program::Haproxy => haproxy::write_hosts(&self.files, hosts),
            Program::Envoy => envoy::write_hosts(&self.files, hosts),
        }?;
        self.tell();
        Ok(())
    }

    /// Tells it, if it has to be told, that its files have changed.
    pub(super) fn tell(&self) {
        match self.program {
            Program::Nginx => process::signal(&self.child, Signal::HUP),
            Program::Haproxy => process::signal(&self.child, Signal::USR2),
            Program::Fairway | Program::Feed | Program::Envoy => {}
        }
    }

    /// The time on processors that its processes have taken so far, in all of their threads.
    pub(super) fn cpu(&self) -> Result<Duration> {
        cost::cpu(self.child.id())
    }

    /// Memory of its processes, in bytes; what several share counts once.
    pub(super) fn memory(&self) -> Result<f64> {
        cost::memory(self.child.id())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = process::end(&mut self.child, GRACE) {
            eprintln!("end {}: {error}", self.program.name());
        }
    }
}

/// What a host's answer is, on a connection of its own.
pub(super) async fn status(http: SocketAddr, host: &str) -> Result<u16> {
    let request = format!("GET {SMALL_PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let mut connection = Connection::new(connect(http).await?);
    Ok(patient(connection.exchange(request.as_bytes())).await?.status)
}

/// The program in one of these folders, or on the search path and where administrators' programs are.
pub(super) fn find(program: Program, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let path = std::env::split_paths(&path).chain(usual);
    let folders = folders.iter().cloned();
    // Ours is never one that happens to be installed.
    let all: Vec<PathBuf> =
        if program.is_ours() { folders.collect() } else { folders.chain(path).collect() };
    all.into_iter().map(|folder| folder.join(program.file())).find(|file| file.is_file())
}
