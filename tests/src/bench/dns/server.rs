//! Servers as processes: started, changed, measured and ended, each with one thread that serves on one CPU.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use rustix::process::Signal;

use super::client::{Client, Site};
use super::config;
use super::records::{Records, changing, endpoint};
use crate::bench::{cost, worker};
use crate::process;

/// From its start to its first right answer.
const READY: Duration = Duration::from_secs(120);
/// To end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Program {
    Fairway,
    Knot,
    Unbound,
    Dnsmasq,
}

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fairway => "fairway",
            Self::Knot => "knot",
            Self::Unbound => "unbound",
            Self::Dnsmasq => "dnsmasq",
        }
    }

    pub(super) fn is_ours(self) -> bool {
        self == Self::Fairway
    }

    /// Whether it asks others for names that it does not know.
    pub(super) fn forwards(self) -> bool {
        self != Self::Knot
    }
}

/// The program on the search path or where administrators' programs are; ours is this one.
pub(super) fn find(program: Program) -> Result<Option<PathBuf>> {
    if program.is_ours() {
        return env::current_exe().context("find this program").map(Some);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let file = if program == Program::Knot { "knotd" } else { program.name() };
    let mut all = env::split_paths(&path).chain(usual).map(|folder| folder.join(file));
    Ok(all.find(|file| file.is_file()))
}

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) program: Program,
    pub(super) address: SocketAddr,
    site: Site,
    records: Records,
    folder: PathBuf,
    child: Child,
    changes: u32,
}

impl Server {
    /// Starts it at an address of a site, with its files in a folder of its own, and waits until it answers.
    pub(super) fn start(
        (program, path): (Program, &Path),
        folder: &Path,
        (site, address): (Site, Ipv4Addr),
        records: Records,
        upstream: SocketAddr,
        cpu: usize,
    ) -> Result<Self> {
        let about = || format!("start {}", program.name());
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        // Free again at once.
        let address = site.open(address)?.local_addr()?;
        let mut command = Command::new(path);
        config::prepare(program, folder, address, upstream, records, &mut command)
            .with_context(about)?;
        process::supervised(&mut command, &folder.join("log"))?;
        site.apply(&mut command)?;
        // Whoever is started stays where the one who starts it is.
        let here = worker::last_cpu()?;
        worker::settle_on(cpu)?;
        let child = command.spawn().with_context(about);
        worker::settle_on(here)?;
        let folder = folder.to_owned();
        let mut server =
            Self { program, address, site, records, folder, child: child?, changes: 0 };
        server.ready()?;
        Ok(server)
    }

    /// Waits until it knows its last name.
    fn ready(&mut self) -> Result<()> {
        let (name, expected) = match self.records.headless {
            0 => (super::records::service(0), super::records::cluster_ip(0)),
            _ => (changing(), endpoint(0, 0, self.changes)),
        };
        let deadline = Instant::now() + READY;
        let client = Client::of(self.address, &self.site)?;
        while client.address(&name)? != Some(expected) {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                bail!("{} does not answer {name}: {}", self.program.name(), log.trim());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Has an endpoint change its address; returns how long it took from then until it was answered.
    pub(super) fn change(&mut self) -> Result<Duration> {
        self.changes += 1;
        config::write(self.program, &self.folder, self.records, self.changes)?;
        let client = Client::of(self.address, &self.site)?;
        let (name, expected) = (changing(), endpoint(0, 0, self.changes));
        let began = Instant::now();
        process::signal(&self.child, Signal::HUP);
        while client.address(&name)? != Some(expected) {
            if began.elapsed() > READY {
                bail!("{} does not see a change", self.program.name());
            }
        }
        Ok(began.elapsed())
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The time on processors that it has taken so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        cost::cpu(self.child.id())
    }

    /// Its memory, in bytes.
    pub(super) fn memory(&self) -> Result<f64> {
        cost::memory(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = process::end(&mut self.child, GRACE) {
            eprintln!("end {}: {error}", self.program.name());
        }
    }
}
