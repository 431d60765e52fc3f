//! Servers as processes: started, changed, measured and ended, each with one thread that serves on one CPU.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use rustix::process::Signal;

use super::config;
use super::records::{Records, changing, endpoint};
use crate::bench::{cost, worker};
use crate::process;

/// From its start to its first right answer.
const READY: Duration = Duration::from_secs(120);
/// To end by itself.
const GRACE: Duration = Duration::from_secs(3);
/// How long an answer is waited for before the question is asked again.
const PATIENCE: Duration = Duration::from_millis(200);

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
    records: Records,
    folder: PathBuf,
    child: Child,
    changes: u32,
}

impl Server {
    /// Starts it with its files in a folder of its own, and waits until it answers.
    pub(super) fn start(
        program: Program,
        path: &Path,
        folder: &Path,
        records: Records,
        upstream: SocketAddr,
        cpu: usize,
    ) -> Result<Self> {
        let about = || format!("start {}", program.name());
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        let address = free.local_addr()?;
        drop(free);
        let mut command = Command::new(path);
        config::prepare(program, folder, address, upstream, records, &mut command)
            .with_context(about)?;
        process::supervised(&mut command, &folder.join("log"))?;
        // Whoever is started stays where the one who starts it is.
        let here = worker::last_cpu()?;
        worker::settle_on(cpu)?;
        let child = command.spawn().with_context(about);
        worker::settle_on(here)?;
        let folder = folder.to_owned();
        let mut server = Self { program, address, records, folder, child: child?, changes: 0 };
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
        let client = Client::of(self.address)?;
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
        if !self.program.is_ours() {
            config::write(self.program, &self.folder, self.records, self.changes)?;
        }
        let client = Client::of(self.address)?;
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

/// Somebody who asks one question after the other, as a resolver in a pod does.
pub(super) struct Client {
    socket: UdpSocket,
}

/// What is said of a name's IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Address(Ipv4Addr),
    /// There is such a name.
    Nothing,
    NoName,
    Failure,
}

impl Client {
    pub(super) fn of(server: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("a port to ask from")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// The address, if there is an answer.
    fn address(&self, name: &str) -> Result<Option<Ipv4Addr>> {
        Ok(match self.ask(name)? {
            Some(Said::Address(address)) => Some(address),
            _ => None,
        })
    }

    /// Asks once; `None`: there was no answer.
    pub(super) fn ask(&self, name: &str) -> Result<Option<Said>> {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len())?);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        let end = query.len();
        // Nobody listens yet, or not any more.
        if self.socket.send(&query).is_err() {
            return Ok(None);
        }
        let mut answer = [0; 4096];
        let Ok(length) = self.socket.recv(&mut answer) else { return Ok(None) };
        Ok(said(&answer[..length], end))
    }
}

/// What an answer says whose question ends there. The last record of its answer section is the one that aliases lead to.
fn said(answer: &[u8], end: usize) -> Option<Said> {
    let count = u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]);
    match answer.get(3)? & 0xf {
        0 => {}
        3 => return Some(Said::NoName),
        _ => return Some(Said::Failure),
    }
    let (mut at, mut found) = (end, Said::Nothing);
    for _ in 0..count {
        while *answer.get(at)? != 0 && *answer.get(at)? < 0xc0 {
            at += 1 + usize::from(answer[at]);
        }
        at += if *answer.get(at)? == 0 { 1 } else { 2 };
        let fixed: &[u8; 10] = answer.get(at..)?.first_chunk()?;
        at += 10;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = answer.get(at..at + length)?;
        at += length;
        if fixed[..2] == [0, 1] {
            found = Said::Address(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
    }
    Some(found)
}
