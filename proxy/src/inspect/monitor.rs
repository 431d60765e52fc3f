//! `fairway-proxy monitor`: what programs decide, as they decide it.
//!
//! Programs tell of drops and of flows that are allowed only while somebody asks for it, and never more than
//! a little: what is beyond that they count, and what nobody reads in time is gone. So watching never slows a
//! packet. Who watches holds a lock beside the agent's files for as long as he does; an agent that finds the
//! kernel telling things and the lock free takes that back, for a watcher that was killed.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{ErrorKind, Write as _, stdout};
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Args;
use fairway_abi::{Config, DropReason, Event, config, event, ruling};
use fairway_model::ObjectName;
use ipnet::IpNet;
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use zerocopy::FromBytes as _;

use super::known::Known;
use super::pods::PodNames;
use super::{Output, Place, at, object_name, protocol_name};
use crate::dataplane::{Pinned, Single};
use crate::status::timestamp;

/// How often the ring is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often names are read anew, and the kernel is asked again to tell.
const REFRESH: Duration = Duration::from_secs(1);
/// The lock's name in the state folder.
const LOCK: &str = "monitor.lock";

/// What `fairway-proxy monitor` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fairway-proxy monitor --drops
      Why is something dropped on this node, and by which rule of which policy?
  fairway-proxy monitor --to shop/db-0
      Who reaches this pod, and who does not?
  fairway-proxy monitor --drops --from 10.244.0.0/16 -o json
      One JSON object a line, for programs.

Of much that happens at once, only a part is told, and how much was left out. Ctrl-C ends it.")]
pub struct Options {
    /// Only what is dropped, and not what flows are allowed
    #[arg(long)]
    pub drops: bool,

    /// Only what this pod of the node (NAMESPACE/NAME), address or range sends
    #[arg(long, value_name = "POD|ADDRESS|CIDR")]
    pub from: Option<Whose>,

    /// Only what is sent to it, before or after a Service chose
    #[arg(long, value_name = "POD|ADDRESS|CIDR")]
    pub to: Option<Whose>,

    /// Where files and tables are, and how to print what happens.
    #[command(flatten)]
    pub place: Place,
}

/// Whose packets are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A pod of this node.
    Pod(ObjectName),
    /// Anybody in a range.
    Net(IpNet),
}

impl FromStr for Whose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse()) {
            return Ok(Self::Net(net));
        }
        object_name(text.strip_prefix("pod/").unwrap_or(text))
            .map(Self::Pod)
            .ok_or_else(|| "must be a pod (NAMESPACE/NAME), an address or a range".to_owned())
    }
}

impl Whose {
    fn is(&self, address: IpAddr, pods: &PodNames) -> bool {
        match self {
            Self::Net(net) => net.contains(&address),
            Self::Pod(name) => pods.named(name).is_some_and(|pod| pod.addresses.contains(&address)),
        }
    }
}

/// Something that was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    /// As RFC 3339 has it, in UTC.
    time: String,
    verdict: &'static str,
    /// Why it was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    protocol: String,
    source: End,
    destination: End,
    /// Where it goes, if a Service chose that.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<End>,
    /// The device that it came by.
    ifindex: u32,
    /// What decided, if a policy did.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// Events before this one that were left out.
    #[serde(skip_serializing_if = "is_zero")]
    missed: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct End {
    address: IpAddr,
    port: u16,
    /// The pod there, if it is on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&at(self.address, Some(self.port)))?;
        self.pod.as_ref().map_or(Ok(()), |pod| write!(f, " ({pod})"))
    }
}

impl fmt::Display for Shown {
    /// `... DROP policy_ingress TCP 10.0.0.1:4000 (shop/cart) -> 10.0.0.2:80 (shop/web), NetworkPolicy ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, verdict, protocol, source, destination, .. } = self;
        write!(f, "{time} {}", verdict.to_uppercase())?;
        self.reason.map_or(Ok(()), |reason| write!(f, " {reason}"))?;
        write!(f, " {protocol} {source} -> {destination}")?;
        self.endpoint.as_ref().map_or(Ok(()), |endpoint| write!(f, " => {endpoint}"))?;
        self.rule.as_ref().map_or(Ok(()), |rule| write!(f, ", {rule}"))?;
        if self.missed > 0 {
            write!(f, " ({} before it were left out)", self.missed)?;
        }
        Ok(())
    }
}

/// What makes names of numbers.
struct Names {
    pods: PodNames,
    known: Known,
}

impl Names {
    fn read(pinned: &Pinned, place: &Place) -> Result<Self> {
        let known = Known::read(pinned, &place.state_dir)?;
        Ok(Self { pods: PodNames::read(&place.state_dir), known })
    }

    /// What is shown of an event; `None`: it is not meant.
    fn show(&self, event: &Event, options: &Options, time: SystemTime) -> Option<Shown> {
        let is_drop = event.kind == event::DROP;
        let canonical = |address: [u8; 16]| Ipv6Addr::from(address).to_canonical();
        let end = |address: [u8; 16], port: u16| {
            let address = canonical(address);
            End { address, port, pod: self.pods.at(address) }
        };
        let source = end(event.source, event.source_port.get());
        let destination = end(event.destination, event.destination_port.get());
        let endpoint = (event.endpoint != [0; 16])
            .then(|| end(event.endpoint, event.endpoint_port.get()))
            .filter(|endpoint| *endpoint != destination);
        let is_from = |whose: &Whose| whose.is(source.address, &self.pods);
        let is_to = |whose: &Whose| {
            let mut ends = [Some(&destination), endpoint.as_ref()].into_iter().flatten();
            ends.any(|end| whose.is(end.address, &self.pods))
        };
        let is_meant = (is_drop || !options.drops)
            && options.from.as_ref().is_none_or(is_from)
            && options.to.as_ref().is_none_or(is_to);
        if !is_meant {
            return None;
        }
        let reason = DropReason::ALL.into_iter().find(|reason| *reason as u32 == event.reason);
        let number = event.verdict & ruling::RULE;
        let rule = (number != 0).then(|| match self.known.rule(number) {
            Some(rule) => rule.to_string(),
            None => format!("rule {number}"),
        });
        Some(Shown {
            time: timestamp(time),
            verdict: if is_drop { "drop" } else { "allow" },
            reason: reason.filter(|_| is_drop).map(DropReason::name),
            protocol: protocol_name(event.protocol),
            source,
            destination,
            endpoint,
            ifindex: event.ifindex,
            rule,
            missed: event.missed,
        })
    }
}

/// Has the kernel tell what is asked for, for as long as it lives.
struct Watch {
    config: Single<Config>,
    flags: u32,
    /// Held as long as this lives.
    _lock: File,
}

impl Watch {
    fn begin(pinned: &Pinned, options: &Options) -> Result<Self> {
        let lock = lock(&options.place.state_dir)?;
        let flows = if options.drops { 0 } else { config::WATCH_FLOWS };
        let config = pinned.single_to_change("config")?;
        let mut watch = Self { config, flags: config::WATCH_DROPS | flows, _lock: lock };
        watch.ask()?;
        Ok(watch)
    }

    /// Asks again, if somebody has changed what is asked.
    fn ask(&mut self) -> Result<()> {
        let now = self.config.get()?;
        let flags = now.flags & !WATCHED | self.flags;
        if flags == now.flags { Ok(()) } else { self.config.set(&Config { flags, ..now }) }
    }
}

const WATCHED: u32 = config::WATCH_DROPS | config::WATCH_FLOWS;

impl Drop for Watch {
    fn drop(&mut self) {
        self.flags = 0;
        // The agent sees to it otherwise.
        let _ = self.ask();
    }
}

fn lock(state_dir: &Path) -> Result<File> {
    let path = path(state_dir);
    let file = File::create(&path)
        .with_context(|| format!("open {}: is this the agent's --state-dir?", path.display()))?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error == rustix::io::Errno::WOULDBLOCK {
            bail!("somebody else watches on this node; there can be one");
        }
        return Err(error).with_context(|| format!("lock {}", path.display()));
    }
    Ok(file)
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(LOCK)
}

/// Whether nobody watches, whatever the kernel was asked.
pub(crate) fn is_unwatched(state_dir: &Path) -> bool {
    // A shared lock: a watcher that begins in this moment is not in its way for long.
    let Ok(file) = File::open(path(state_dir)) else { return true };
    flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
}

/// Prints what happens until somebody has seen enough.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(watch(options))
}

async fn watch(options: &Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let pinned = Pinned::open(&options.place.bpffs)?;
    let mut events = pinned.events()?;
    let mut names = Names::read(&pinned, &options.place)?;
    let mut watch = Watch::begin(&pinned, options)?;
    let began = monotonic();
    let mut refreshed = Instant::now();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        if refreshed.elapsed() >= REFRESH {
            watch.ask()?;
            names = Names::read(&pinned, &options.place)?;
            refreshed = Instant::now();
        }
        let (clock, wall) = (monotonic(), SystemTime::now());
        let mut text = String::new();
        while let Some(item) = events.next() {
            let Ok((event, _)) = Event::read_from_prefix(&item) else { continue };
            // What an earlier watcher was told and did not read.
            if event.time < began {
                continue;
            }
            let ago = Duration::from_nanos(clock.saturating_sub(event.time));
            let time = wall.checked_sub(ago).unwrap_or(wall);
            let Some(shown) = names.show(&event, options, time) else { continue };
            // Writing to a string cannot fail.
            let _ = match options.place.output {
                Output::Table => writeln!(text, "{shown}"),
                Output::Json => {
                    writeln!(text, "{}", serde_json::to_string(&shown).context("encode an event")?)
                }
            };
        }
        match stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("print")?,
        }
    }
}

/// Now, by the clock of [`Event::time`].
fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use clap::Parser as _;
    use zerocopy::FromZeros as _;
    use zerocopy::network_endian::U16;

    use super::*;
    use crate::names::{NamedConfig, Rule};
    use crate::sandbox::sandbox;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &[&str]) -> Options {
        Command::parse_from([&["monitor"], arguments].concat()).options
    }

    fn mapped(last: u8) -> [u8; 16] {
        std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets()
    }

    fn denied() -> Event {
        Event {
            source: mapped(1),
            destination: mapped(9),
            endpoint: mapped(2),
            source_port: U16::new(4000),
            destination_port: U16::new(80),
            endpoint_port: U16::new(8080),
            protocol: 6,
            kind: event::DROP,
            ifindex: 7,
            reason: DropReason::PolicyIngress as u32,
            verdict: ruling::DENIED | 5,
            missed: 3,
            ..Event::new_zeroed()
        }
    }

    fn names() -> Names {
        let policy = fairway_model::PolicyName {
            namespace: "shop".to_owned(),
            name: "deny".to_owned(),
            ..Default::default()
        };
        let rule = Rule { policy, ingress: true, index: None, name: String::new() };
        Names { pods: PodNames::default(), known: Known::of_rules([(5, rule)]) }
    }

    #[test]
    fn an_event_is_a_line() {
        let shown = names().show(&denied(), &options(&[]), UNIX_EPOCH).expect("meant");
        assert_eq!(
            shown.to_string(),
            "1970-01-01T00:00:00.000000000Z DROP policy_ingress TCP 10.0.0.1:4000 -> 10.0.0.9:80 => \
             10.0.0.2:8080, NetworkPolicy shop/deny, which restricts ingress (3 before it were left out)"
        );
        let json = serde_json::to_value(&shown).expect("JSON");
        assert_eq!(json["rule"], "NetworkPolicy shop/deny, which restricts ingress");
        assert_eq!(json["source"], serde_json::json!({"address": "10.0.0.1", "port": 4000}));
        let allowed = Event {
            kind: event::ALLOW,
            reason: 0,
            verdict: 6,
            endpoint: mapped(9),
            endpoint_port: U16::new(80),
            missed: 0,
            ..denied()
        };
        let shown = names().show(&allowed, &options(&[]), UNIX_EPOCH).expect("meant");
        assert_eq!(
            shown.to_string(),
            "1970-01-01T00:00:00.000000000Z ALLOW TCP 10.0.0.1:4000 -> 10.0.0.9:80, rule 6"
        );
    }

    #[test]
    fn only_what_is_meant_is_shown() {
        let check = |arguments: &[&str], expected: bool| {
            let shown = names().show(&denied(), &options(arguments), UNIX_EPOCH);
            assert_eq!(shown.is_some(), expected, "{arguments:?}");
        };
        check(&["--drops"], true);
        check(&["--from", "10.0.0.1"], true);
        check(&["--from", "10.0.0.2"], false);
        check(&["--to", "10.0.0.2"], true);
        check(&["--to", "10.0.0.8/30", "--from", "10.0.0.0/30"], true);
        check(&["--to", "shop/web"], false);
        let allowed = Event { kind: event::ALLOW, ..denied() };
        assert!(names().show(&allowed, &options(&["--drops"]), UNIX_EPOCH).is_none());
    }

    #[test]
    fn the_kernel_is_asked_while_somebody_watches() {
        sandbox(|bpffs| {
            let state = tempfile::tempdir().expect("a folder");
            let mut dataplane =
                crate::dataplane::Dataplane::load_tables(bpffs, &[]).expect("programs that load");
            let mut agent = NamedConfig::adopt(&mut dataplane, state.path()).expect("a table");
            let pinned = Pinned::open(bpffs).expect("tables");
            let flags = || {
                let config: Config =
                    pinned.single("config").and_then(|c| c.get()).expect("a table");
                config.flags & WATCHED
            };
            let mut options = options(&["--drops"]);
            options.place.state_dir = state.path().to_owned();
            assert!(is_unwatched(state.path()));
            let watch = Watch::begin(&pinned, &options).expect("nobody else");
            assert!(!is_unwatched(state.path()));
            assert_eq!(flags(), config::WATCH_DROPS);
            assert!(Watch::begin(&pinned, &options).is_err(), "one at a time");
            // Whatever the agent writes.
            agent.begin(Some(Config::default())).expect("written");
            assert_eq!(flags(), config::WATCH_DROPS);
            drop(watch);
            assert_eq!((flags(), is_unwatched(state.path())), (0, true));
            // One that was killed.
            let killed = Watch::begin(&pinned, &options).expect("nobody else");
            rustix::fs::flock(&killed._lock, FlockOperation::Unlock).expect("unlocked");
            std::mem::forget(killed);
            assert_eq!(flags(), config::WATCH_DROPS);
            assert!(is_unwatched(state.path()));
            agent.unwatch().expect("written");
            assert_eq!(flags(), 0);
            pinned.events().expect("a ring");
        });
    }
}
