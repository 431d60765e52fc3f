//! What the numbers in the kernel's tables stand for, on disk, for whoever reads the tables while the
//! agent is away.
//!
//! Table entries name a list of endpoints by a number, and a policy's rule. The file `names.json` says which Service's port,
//! host port or rule each number is, and carries a revision; the kernel's [`Config`] says which revision
//! fits its tables. A killed agent must not leave a file behind that is taken for true, so the order is:
//!
//! ```text
//! Config::names = 0 ─► lists come, go or change ─► Config::names = revision ─► the file of that revision
//!                      └► none got or lost its name: Config::names = the revision before
//! ```
//!
//! Names fit if both agree and are not 0. Wherever the agent ends in between, they do not agree, and
//! the next agent gives every list its name again, under a revision that neither side has had.
//!
//! The reconciler's thread hands on only what changed; a thread of its own holds all names and writes
//! them. It does not sync the disk: after a power failure there are no tables that the names could be
//! of.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_abi::{Config, config, flow};
use fairway_compile::ListName;
use fairway_compile::policy::RuleName;
use fairway_model::{ObjectName, PolicyName, Protocol};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::dataplane::{Dataplane, Single};

/// The file's name in the state folder.
const FILE: &str = "names.json";

/// The lowest bit of [`Config::policy`] that counts.
const ONE_REVISION: u32 = 1 << flow::REVISION.trailing_zeros();

/// How long a file that could not be written waits to be tried again.
const RETRY: Duration = Duration::from_secs(10);
/// The writer rests this many times as long as writing took.
const REST: u32 = 4;

/// What a list of endpoints is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub(crate) enum Name {
    /// See [`ListName::Service`].
    Service { service: ObjectName, port: String, protocol: Protocol, local: bool },
    /// See [`ListName::ClosedPorts`].
    ClosedPorts,
    /// See [`ListName::HostPort`].
    HostPort { pod: String, port: u16, protocol: Protocol, address: Option<IpAddr> },
}

impl From<&ListName> for Name {
    fn from(name: &ListName) -> Self {
        match name.clone() {
            ListName::Service { service, port, protocol, local } => {
                Self::Service { service, port, protocol, local }
            }
            ListName::ClosedPorts => Self::ClosedPorts,
            ListName::HostPort { pod, port, protocol, address } => {
                Self::HostPort { pod, port, protocol, address }
            }
        }
    }
}

impl fmt::Display for Name {
    /// `Service shop/web, port http`, `Service shop/web` if its port has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { service, port, .. } if port.is_empty() => {
                write!(f, "Service {service}")
            }
            Self::Service { service, port, .. } => write!(f, "Service {service}, port {port}"),
            Self::ClosedPorts => f.write_str("closed ports of Services"),
            Self::HostPort { pod, port, .. } => write!(f, "host port {port} of pod {pod}"),
        }
    }
}

/// What decides whether pods may talk to each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Rule {
    pub(crate) policy: PolicyName,
    pub(crate) ingress: bool,
    /// See [`RuleName::index`].
    pub(crate) index: Option<usize>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
}

impl From<RuleName> for Rule {
    fn from(rule: RuleName) -> Self {
        let RuleName { policy, ingress, index, name } = rule;
        Self { policy, ingress, index, name }
    }
}

impl Rule {
    /// `ingress` or `egress`.
    pub(crate) fn direction(&self) -> &'static str {
        if self.ingress { "ingress" } else { "egress" }
    }
}

impl fmt::Display for Rule {
    /// `NetworkPolicy shop/deny, ingress rule 2`, counted from 0 as in the manifest's lists;
    /// `NetworkPolicy shop/deny, which restricts ingress`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (policy, direction) = (&self.policy, self.direction());
        match self.index {
            Some(index) if self.name.is_empty() => write!(f, "{policy}, {direction} rule {index}"),
            Some(index) => write!(f, "{policy}, {direction} rule {index} \"{}\"", self.name),
            None => write!(f, "{policy}, which restricts {direction}"),
        }
    }
}

/// Names by number of a list; those of the families are independent of each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NameTable {
    /// As in [`Config::names`]; 0: none.
    pub(crate) revision: u32,
    pub(crate) v4: BTreeMap<u32, Name>,
    pub(crate) v6: BTreeMap<u32, Name>,
    /// Of policies' rules.
    #[serde(default)]
    pub(crate) rules: BTreeMap<u32, Rule>,
}

impl NameTable {
    /// Reads the file in a state folder; no names if there is none, or if a power failure left
    /// half of one.
    pub(crate) fn read(state_dir: &Path) -> Result<Self> {
        let file = path(state_dir);
        match fs::read(&file) {
            Ok(contents) => Ok(serde_json::from_slice(&contents).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }
}

/// A list's number, and what it is from now on; `None`: nothing.
pub(crate) type Renamed = (u32, Option<Name>);

/// The kernel's [`Config`], with the revision of the names that fit its tables.
pub(crate) struct NamedConfig {
    table: Single<Config>,
    now: Config,
    /// Of the names that were handed on last.
    revision: u32,
    changes: Sender<Changes>,
    /// The bits of [`config`] that are not the model's, but the policies' own.
    flags: u32,
}

/// Bits that come and go by themselves: whoever watches sets them.
const WATCHED: u32 = config::WATCH_DROPS | config::WATCH_FLOWS;
const POLICIES: u32 = config::POLICED | config::POLICED_TO_NODE;

/// What became of names, by family.
struct Changes {
    revision: u32,
    v4: Vec<Renamed>,
    v6: Vec<Renamed>,
    rules: Vec<(u32, Option<RuleName>)>,
}

impl NamedConfig {
    /// Takes over what a predecessor left: as long as no list changes, its names are good.
    pub(crate) fn adopt(dataplane: &mut Dataplane, state_dir: &Path) -> Result<Self> {
        let table: Single<Config> = dataplane.single("config")?;
        let now = table.get()?;
        let known = NameTable::read(state_dir)?.revision;
        let fits = known == now.names && known != 0;
        let (changes, inbox) = channel();
        let file = path(state_dir);
        thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || keep(&file, &inbox))
            .context("start the thread that writes names")?;
        // A file of another revision is none of these tables': the next is beyond both.
        let revision = known.max(now.names).saturating_add(u32::from(!fits));
        Ok(Self { table, now, revision, changes, flags: now.flags & POLICIES })
    }

    /// Whether some pod is restricted.
    pub(crate) fn set_policed(&mut self, policed: bool) -> Result<()> {
        self.set_flag(config::POLICED, policed)
    }

    /// Whether what pods send to the node itself is restricted, too.
    pub(crate) fn set_policed_to_node(&mut self, policed: bool) -> Result<()> {
        self.set_flag(config::POLICED_TO_NODE, policed)
    }

    fn set_flag(&mut self, flag: u32, on: bool) -> Result<()> {
        let flags = if on { self.flags | flag } else { self.flags & !flag };
        if self.flags == flags {
            return Ok(());
        }
        self.flags = flags;
        self.set(self.now)
    }

    /// Flows are held against another state of policies from now on.
    pub(crate) fn bump_policy(&mut self) -> Result<()> {
        let next = self.now.policy.wrapping_add(ONE_REVISION) & flow::REVISION;
        let policy = if next == 0 { ONE_REVISION } else { next };
        self.set(Config { policy, ..self.now })
    }

    /// The state that flows are held against, counted from 1; 0: there has been none.
    pub(crate) fn policy_revision(&self) -> u32 {
        self.now.policy / ONE_REVISION
    }

    /// Whether the kernel tells somebody what it does.
    pub(crate) fn is_watched(&self) -> Result<bool> {
        Ok(self.table.get()?.flags & WATCHED != 0)
    }

    /// Nobody is told any more.
    pub(crate) fn unwatch(&mut self) -> Result<()> {
        let there = self.table.get()?;
        self.table.set(&Config { flags: there.flags & !WATCHED, ..there })
    }

    /// Lists may change from now on, under this configuration or, if it is `None`, that of now.
    pub(crate) fn begin(&mut self, config: Option<Config>) -> Result<()> {
        let policy = self.now.policy;
        self.set(Config { names: 0, policy, ..config.unwrap_or(self.now) })
    }

    /// Lists are as they should be; these are what changed about their names since the last time.
    pub(crate) fn settle(
        &mut self,
        v4: Vec<Renamed>,
        v6: Vec<Renamed>,
        rules: Vec<(u32, Option<RuleName>)>,
    ) -> Result<()> {
        if v4.is_empty() && v6.is_empty() && rules.is_empty() {
            return self.set(Config { names: self.revision, ..self.now });
        }
        self.revision = self.revision.checked_add(1).unwrap_or(1);
        self.set(Config { names: self.revision, ..self.now })?;
        // Only a writer that panicked does not listen; names then stay what they are, and are told from
        // the tables'.
        let _ = self.changes.send(Changes { revision: self.revision, v4, v6, rules });
        Ok(())
    }

    fn set(&mut self, config: Config) -> Result<()> {
        let watched = self.table.get()?.flags & WATCHED;
        let flags = config.flags & !(WATCHED | POLICIES) | watched | self.flags;
        let config = Config { flags, ..config };
        self.table.set(&config)?;
        self.now = config;
        Ok(())
    }
}

/// Writes the names after each change, until nobody can make one any more. Changes that come while it
/// writes or rests share the next file.
fn keep(file: &Path, inbox: &Receiver<Changes>) {
    let mut names = NameTable::default();
    let mut failed = false;
    loop {
        let first = if failed {
            match inbox.recv_timeout(RETRY) {
                Ok(changes) => Some(changes),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        } else {
            match inbox.recv() {
                Ok(changes) => Some(changes),
                Err(_) => return,
            }
        };
        for changes in first.into_iter().chain(inbox.try_iter()) {
            names.revision = changes.revision;
            note(&mut names.v4, changes.v4);
            note(&mut names.v6, changes.v6);
            let rules = changes.rules.into_iter();
            note(&mut names.rules, rules.map(|(rule, name)| (rule, name.map(Rule::from))));
        }
        let start = Instant::now();
        let written = write(file, &names);
        if let Err(error) = &written
            && !failed
        {
            warn!(
                error = format!("{error:#}"),
                "cannot write the names of Services; what reads the kernel's tables will not know them"
            );
        }
        failed = written.is_err();
        thread::sleep((start.elapsed() * REST).min(RETRY));
    }
}

fn note<T>(names: &mut BTreeMap<u32, T>, renamed: impl IntoIterator<Item = (u32, Option<T>)>) {
    for (number, name) in renamed {
        match name {
            Some(name) => names.insert(number, name),
            None => names.remove(&number),
        };
    }
}

fn write(file: &Path, names: &NameTable) -> Result<()> {
    let contents = serde_json::to_vec(names).context("encode the names")?;
    fairway_feed::disk::replace_unsynced(file, &contents)
        .with_context(|| format!("write {}", file.display()))
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(local: bool) -> Name {
        Name::Service {
            service: ObjectName::new("shop", "web"),
            port: "http".to_owned(),
            protocol: Protocol::Tcp,
            local,
        }
    }

    #[test]
    fn the_writer_holds_all_names_and_is_told_what_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = path(folder.path());
        let (changes, inbox) = channel();
        for (revision, v4) in [
            (7, vec![(1, Some(web(false))), (2, Some(web(true)))]),
            (8, vec![(1, None), (3, Some(Name::ClosedPorts))]),
        ] {
            let changes_now = Changes { revision, v4, v6: Vec::new(), rules: Vec::new() };
            changes.send(changes_now).expect("a reader");
        }
        drop(changes);
        keep(&file, &inbox);
        let names = NameTable::read(folder.path()).expect("a file");
        assert_eq!(names.revision, 8);
        assert_eq!(names.v4, BTreeMap::from([(2, web(true)), (3, Name::ClosedPorts)]));
    }

    #[test]
    fn no_file_and_half_a_file_are_no_names() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(NameTable::read(folder.path()).expect("nothing"), NameTable::default());
        fs::write(path(folder.path()), "{\"revision\":3,\"v4\":{").expect("written");
        assert_eq!(NameTable::read(folder.path()).expect("nothing"), NameTable::default());
    }
}
