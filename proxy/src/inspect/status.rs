//! `fairway-proxy status`: how the agent fares, and how full the kernel's tables are.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use fairway_abi::{
    Affinity, AffinityKey, DropReason, Endpoint, EndpointKey, Flow, FlowKey, FragmentKey,
    Fragments, Frontend, FrontendKey, Interface, LoadKey, MemberKey, Meter, MeterKey, Namespace,
    Pod, RangeKey, Route, Ruling, RulingKey, Share, SocketKey, SocketPeer, Subject, V4, V6,
};
use fairway_compile::Family;
use serde::Serialize;

use super::known::with_names;
use super::maps::name;
use super::{Place, columns};
use crate::about::About;
use crate::check;
use crate::dataplane::Pinned;
use crate::list::age;
use crate::status::Summary;

/// What `fairway-proxy status` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where files and tables are, and how to print what they say.
    #[command(flatten)]
    pub place: Place,
}

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    /// Of this program.
    pub(crate) version: &'static str,
    pub(crate) abi: u32,
    /// The agent that runs, or ran last.
    pub(crate) agent: Option<About>,
    /// What it says of itself.
    pub(crate) running: Option<Summary>,
    /// Why it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) down: Option<String>,
    /// What the kernel holds.
    pub(crate) kernel: Option<Kernel>,
    /// Why nothing is said of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) no_tables: Option<String>,
}

/// What the kernel holds.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kernel {
    pub(crate) frontends: usize,
    pub(crate) flows: usize,
    pub(crate) pods: usize,
    pub(crate) policies: Policies,
    /// Why names may be wrong.
    pub(crate) doubt: Option<String>,
    pub(crate) tables: Vec<Usage>,
    pub(crate) drops: Vec<Drops>,
}

/// What policies make of this node's pods.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Policies {
    /// Pods' addresses that are restricted.
    pub(crate) subjects: usize,
    /// Rules that are in force for one of them, with policies' isolations.
    pub(crate) rules: usize,
    /// Entries for whom rules are about: addresses, ranges, and what rules make of them.
    pub(crate) addresses: usize,
    pub(crate) ranges: usize,
    pub(crate) rulings: usize,
}

/// How full a table is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Usage {
    pub(crate) table: String,
    pub(crate) used: usize,
    pub(crate) capacity: u32,
}

/// Packets dropped for a reason.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Drops {
    pub(crate) reason: &'static str,
    pub(crate) packets: u64,
    pub(crate) meaning: &'static str,
}

/// Asks the agent and reads the tables; what to print, and whether all is well.
pub fn run(options: &Options) -> Result<(String, bool)> {
    let shown = read(&options.place);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let text = options.place.print(&shown, |shown| text(shown, now))?;
    let good = shown.no_tables.is_none()
        && shown.running.as_ref().is_some_and(|running| running.ready && running.live);
    Ok((text, good))
}

pub(crate) fn read(place: &Place) -> Shown {
    let agent = About::read(&place.state_dir);
    let (running, down) = match agent.as_ref().map(ask) {
        Some(Ok(running)) => (Some(running), None),
        Some(Err(error)) => (None, Some(format!("{error:#}"))),
        None => {
            let folder = place.state_dir.display();
            (None, Some(format!("none has written down in {folder} where it can be asked")))
        }
    };
    let kernel = Pinned::open(&place.bpffs).and_then(|pinned| kernel(&pinned, place));
    let (kernel, no_tables) = match kernel {
        Ok(kernel) => (Some(kernel), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let (version, abi) = (env!("CARGO_PKG_VERSION"), fairway_abi::VERSION);
    Shown { version, abi, agent, running, down, kernel, no_tables }
}

fn ask(agent: &About) -> Result<Summary> {
    let answer = check::get(agent.metrics, "/status")?;
    serde_json::from_str(&answer).context("the agent's answer is none")
}

fn kernel(pinned: &Pinned, place: &Place) -> Result<Kernel> {
    let ((), known) = with_names(pinned, &place.state_dir, |_| Ok(()))?;
    let mut tables = of_family::<V4>(pinned)?;
    tables.extend(of_family::<V6>(pinned)?);
    let interfaces = pinned.table::<u32, Interface>("interfaces")?.count()?;
    let common = [
        ("interfaces", interfaces),
        ("namespaces", pinned.table::<u64, Namespace>("namespaces")?.count()?),
        ("meters", pinned.table::<MeterKey, Meter>("meters")?.count()?),
        ("turns", pinned.table::<u32, u32>("turns")?.count()?),
        ("rulings", pinned.table::<RulingKey, Ruling>("rulings")?.count()?),
    ];
    for (table, used) in common {
        tables.push(Usage { table: table.to_owned(), used, capacity: pinned.capacity(table)? });
    }
    let total = |name: &str| -> usize {
        let of_both =
            tables.iter().filter(|usage| usage.table.trim_end_matches(['4', '6']) == name);
        of_both.map(|usage| usage.used).sum()
    };
    let counts = pinned.drops()?;
    let drops = DropReason::ALL.iter().filter_map(|reason| {
        let packets = counts.get(*reason as usize).copied().filter(|packets| *packets > 0)?;
        Some(Drops { reason: reason.name(), packets, meaning: reason.meaning() })
    });
    Ok(Kernel {
        frontends: total("frontends"),
        // Two records each.
        flows: (total("flows") + total("half_open")) / 2,
        pods: interfaces,
        policies: Policies {
            subjects: total("subjects"),
            rules: known.rules(),
            addresses: total("identities"),
            ranges: total("blocks"),
            rulings: total("rulings"),
        },
        doubt: known.doubt(),
        drops: drops.collect(),
        tables,
    })
}

fn of_family<A: Family>(pinned: &Pinned) -> Result<Vec<Usage>> {
    let called = name::<A>;
    let counted = [
        ("frontends", pinned.table::<FrontendKey<A>, Frontend>(&called("frontends"))?.count()?),
        ("endpoints", pinned.table::<EndpointKey, Endpoint<A>>(&called("endpoints"))?.count()?),
        ("members", pinned.table::<MemberKey<A>, u32>(&called("members"))?.count()?),
        ("shares", pinned.table::<MemberKey<A>, Share>(&called("shares"))?.count()?),
        ("loads", pinned.table::<LoadKey<A>, u32>(&called("loads"))?.count()?),
        ("affinity", pinned.table::<AffinityKey<A>, Affinity<A>>(&called("affinity"))?.count()?),
        ("pods", pinned.table::<A, Pod>(&called("pods"))?.count()?),
        ("flows", pinned.table::<FlowKey<A>, Flow<A>>(&called("flows"))?.count()?),
        ("half_open", pinned.table::<FlowKey<A>, Flow<A>>(&called("half_open"))?.count()?),
        ("fragments", pinned.table::<FragmentKey<A>, Fragments>(&called("fragments"))?.count()?),
        ("sockets", pinned.table::<SocketKey<A>, SocketPeer<A>>(&called("sockets"))?.count()?),
        ("peers", pinned.table::<V6, A>(&called("peers"))?.count()?),
        ("subjects", pinned.table::<A, Subject>(&called("subjects"))?.count()?),
        ("identities", pinned.table::<A, u32>(&called("identities"))?.count()?),
        ("blocks", pinned.prefixes::<A, u32>(&called("blocks"))?.entries()?.len()),
        ("routes", pinned.prefixes::<A, Route<A>>(&called("routes"))?.entries()?.len()),
        (
            "source_ranges",
            pinned.prefixes::<RangeKey<A>, u32>(&called("source_ranges"))?.entries()?.len(),
        ),
    ];
    let counted = counted.into_iter().map(|(table, used)| {
        let table = called(table);
        Ok(Usage { capacity: pinned.capacity(&table)?, table, used })
    });
    counted.collect()
}

/// What holds for all, then the tables, then what was dropped.
fn text(shown: &Shown, now: u64) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    match (&shown.running, &shown.down) {
        (Some(running), _) => {
            let health = match (running.ready, running.live) {
                (true, true) => "healthy",
                (false, true) => "not ready: it has no complete state yet",
                (_, false) => "NOT HEALTHY: a change has waited for more than a minute",
            };
            lines.push(("agent", format!("runs, {health}")));
        }
        (None, Some(why)) => lines.push(("agent", format!("DOWN: {why}"))),
        (None, None) => {}
    }
    if let Some(agent) = &shown.agent {
        let verb = if shown.running.is_some() { "since" } else { "the last one started" };
        lines.push((
            "version",
            format!(
                "{} with tables of version {}, {verb} {} ago",
                agent.version,
                agent.abi,
                age(now.saturating_sub(agent.since))
            ),
        ));
        if (agent.version.as_str(), agent.abi) != (shown.version, shown.abi) {
            let (version, abi) = (shown.version, shown.abi);
            lines.push(("this program", format!("{version} with tables of version {abi}")));
        }
        lines.push(("node", agent.node.clone()));
        lines.push(("backend", agent.backend.clone()));
        lines.push(("follows", agent.source.clone()));
    }
    if let Some(running) = &shown.running {
        lines.push(("model", model(running, now)));
        let announced: Vec<_> = running.announced.iter().map(ToString::to_string).collect();
        if !announced.is_empty() {
            lines.push(("announces", announced.join(", ")));
        }
    }
    match (&shown.kernel, &shown.no_tables) {
        (Some(kernel), _) => {
            lines.push(("frontends", kernel.frontends.to_string()));
            lines.push(("flows", kernel.flows.to_string()));
            lines.push(("pods", kernel.pods.to_string()));
            lines.push(("policies", policies(&kernel.policies)));
            let names = kernel.doubt.as_deref().unwrap_or("those of the tables");
            lines.push(("names", names.to_owned()));
        }
        (None, why) => lines.push(("tables", why.clone().unwrap_or_default())),
    }
    let mut text = String::new();
    for (what, says) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:12}  {says}");
    }
    if let Some(kernel) = &shown.kernel {
        let _ = write!(text, "\n{}", usage(&kernel.tables));
        if !kernel.drops.is_empty() {
            let _ = write!(text, "\n\n{}", drops(&kernel.drops));
        }
    }
    text.trim_end().to_owned()
}

fn policies(policies: &Policies) -> String {
    let Policies { subjects, rules, addresses, ranges, rulings } = policies;
    if *subjects == 0 {
        return "none restricts a pod here".to_owned();
    }
    format!(
        "restrict {subjects} addresses of pods by {rules} rules, in {rulings} entries for {addresses} addresses \
         and {ranges} ranges"
    )
}

fn model(running: &Summary, now: u64) -> String {
    let mut says = match (&running.in_force, &running.held) {
        (Some(in_force), _) => format!("{in_force} is in force"),
        (None, Some(held)) => format!("{held} is here and not in force yet"),
        (None, None) if running.synced.is_some() => "in force".to_owned(),
        (None, None) => "none".to_owned(),
    };
    if let Some(synced) = running.synced {
        let _ = write!(says, ", changed {} ago", age(now.saturating_sub(synced)));
    }
    if let Some(behind) = running.behind {
        let _ = write!(says, "; the kernel is BEHIND since {}", age(behind));
    }
    if running.failures > 0 {
        let _ = write!(says, "; {} attempts failed", running.failures);
    }
    says
}

fn usage(tables: &[Usage]) -> String {
    let rows: Vec<[String; 4]> = tables
        .iter()
        .filter(|usage| usage.used > 0)
        .map(|Usage { table, used, capacity }| {
            let percent = 100 * used / (*capacity as usize).max(1);
            [table.clone(), used.to_string(), capacity.to_string(), format!("{percent}%")]
        })
        .collect();
    columns(["TABLE", "USED", "CAPACITY", "FULL"], &rows)
}

fn drops(drops: &[Drops]) -> String {
    let rows: Vec<[String; 3]> = drops
        .iter()
        .map(|Drops { reason, packets, meaning }| {
            [(*reason).to_owned(), packets.to_string(), (*meaning).to_owned()]
        })
        .collect();
    columns(["DROPPED FOR", "PACKETS", "MEANING"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Shown {
        Shown {
            version: "0.1.0",
            abi: 3,
            agent: Some(About {
                version: "0.1.0".to_owned(),
                abi: 3,
                node: "node1".to_owned(),
                backend: "auto".to_owned(),
                source: "http://192.0.2.10:9443".to_owned(),
                since: 1000,
                metrics: ([127, 0, 0, 1], 10249).into(),
            }),
            running: Some(Summary {
                ready: true,
                live: true,
                behind: None,
                synced: Some(1090),
                failures: 0,
                held: Some("revision 7 of 5f0c".to_owned()),
                in_force: Some("revision 7 of 5f0c".to_owned()),
                announced: vec![[192, 0, 2, 10].into()],
            }),
            down: None,
            kernel: Some(Kernel {
                frontends: 12,
                flows: 3,
                pods: 2,
                policies: Policies { subjects: 2, rules: 3, addresses: 40, ranges: 5, rulings: 60 },
                doubt: None,
                tables: vec![
                    Usage { table: "frontends4".to_owned(), used: 12, capacity: 262_144 },
                    Usage { table: "frontends6".to_owned(), used: 0, capacity: 262_144 },
                    Usage { table: "pods4".to_owned(), used: 2048, capacity: 4096 },
                ],
                drops: vec![Drops {
                    reason: DropReason::Malformed.name(),
                    packets: 9,
                    meaning: DropReason::Malformed.meaning(),
                }],
            }),
            no_tables: None,
        }
    }

    #[test]
    fn a_running_agent() {
        let expected = "\
agent         runs, healthy
version       0.1.0 with tables of version 3, since 100s ago
node          node1
backend       auto
follows       http://192.0.2.10:9443
model         revision 7 of 5f0c is in force, changed 10s ago
announces     192.0.2.10
frontends     12
flows         3
pods          2
policies      restrict 2 addresses of pods by 3 rules, in 60 entries for 40 addresses and 5 ranges
names         those of the tables

TABLE        USED   CAPACITY   FULL
frontends4   12     262144     0%
pods4        2048   4096       50%

DROPPED FOR   PACKETS   MEANING
malformed     9         The packet's headers do not fit into it, or contradict each other.";
        assert_eq!(text(&shown(), 1100), expected);
    }

    #[test]
    fn an_agent_that_is_down_or_behind() {
        let mut behind = shown();
        if let Some(running) = &mut behind.running {
            (running.live, running.behind, running.failures) = (false, Some(70), 14);
        }
        let behind = text(&behind, 1100);
        for line in [
            "agent         NOT HEALTHY",
            "model         revision 7 of 5f0c is in force, changed 10s ago; the kernel is BEHIND since 70s; 14 attempts failed",
        ] {
            let line = line.replace("agent         NOT", "agent         runs, NOT");
            assert!(behind.lines().any(|said| said.starts_with(&line)), "{line} not in\n{behind}");
        }
        let down = Shown {
            running: None,
            down: Some("connection refused".to_owned()),
            kernel: None,
            no_tables: Some("there are no tables in /nowhere".to_owned()),
            ..shown()
        };
        let expected = "\
agent         DOWN: connection refused
version       0.1.0 with tables of version 3, the last one started 100s ago
node          node1
backend       auto
follows       http://192.0.2.10:9443
tables        there are no tables in /nowhere";
        assert_eq!(text(&down, 1100), expected);
    }
}
