//! `fairway-proxy services`: every address of a Service that the kernel has.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use fairway_abi::{Frontend, FrontendKey, V4, V6, frontend, scope};
use fairway_compile::Family;
use fairway_model::ObjectName;
use ipnet::IpNet;
use serde::Serialize;

use super::known::{Known, with_names};
use super::maps::{Maps, prefix};
use super::{Place, at, columns, object_name, protocol_name};
use crate::dataplane::Pinned;
use crate::names::Name;

/// What `fairway-proxy services` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only these: NAMESPACE/NAME, ADDRESS or ADDRESS:PORT
    #[arg(value_name = "SERVICE")]
    pub only: Option<Only>,

    /// Where the tables are, and how to print them.
    #[command(flatten)]
    pub place: Place,
}

/// Which frontends are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Only {
    /// Those of a Service.
    Service(ObjectName),
    /// Those at an address and, if it is given, a port.
    At(IpAddr, Option<u16>),
}

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = object_name(text) {
            return Ok(Self::Service(name));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse() {
            return Ok(Self::At(address, None));
        }
        match text.parse::<SocketAddr>() {
            Ok(at) => Ok(Self::At(at.ip(), Some(at.port()))),
            Err(_) => Err("must be NAMESPACE/NAME, ADDRESS or ADDRESS:PORT".to_owned()),
        }
    }
}

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    pub(crate) frontends: Vec<Row>,
    /// Why names may be wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) doubt: Option<String>,
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) list: ListShown,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    /// From where it can be asked.
    pub(crate) from: Scope,
    /// How many there are to choose from.
    pub(crate) endpoints: usize,
    /// Only endpoints on this node.
    pub(crate) local: bool,
    pub(crate) choice: Choosing,
    /// For how many seconds a client stays with its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) affinity_seconds: Option<u64>,
    /// The only clients that are let in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source_ranges: Option<Vec<IpNet>>,
    /// There is no endpoint that may be used from here, but some elsewhere.
    pub(crate) elsewhere: bool,
    /// How clients reach endpoints of other nodes, if not under this node's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) forwarding: Option<Forwarding>,
}

/// See [`fairway_model::Forwarding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Forwarding {
    Keep,
    Dsr,
}

/// Which list of endpoints something is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListShown {
    /// `NAMESPACE/NAME` of the Service, or `pod NAMESPACE/NAME` of whose host port it is; none if that is
    /// not known.
    pub(crate) service: Option<String>,
    /// The port's name, if it has one.
    pub(crate) port_name: String,
    /// The list's number in its family's tables.
    pub(crate) list: u32,
}

/// From where a frontend can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// This node and its pods.
    Inside,
    /// Everybody else.
    Outside,
    /// Processes of the node, by its loopback address.
    Loopback,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Choosing {
    Random,
    InTurn,
    LeastConnections,
    ByFlow,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Loopback => "loopback",
        })
    }
}

impl fmt::Display for Choosing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Random => "random",
            Self::InTurn => "in turn",
            Self::LeastConnections => "least connections",
            Self::ByFlow => "by flow",
        })
    }
}

impl Scope {
    pub(crate) fn of(number: u8) -> Self {
        match number {
            scope::EXTERNAL => Self::Outside,
            scope::LOOPBACK => Self::Loopback,
            _ => Self::Inside,
        }
    }
}

impl Choosing {
    pub(crate) fn of(frontend: &Frontend) -> Self {
        if frontend.flags & frontend::BY_FLOW != 0 {
            Self::ByFlow
        } else if frontend.flags & frontend::IN_TURN != 0 {
            Self::InTurn
        } else if frontend.flags & frontend::LEAST != 0 {
            Self::LeastConnections
        } else {
            Self::Random
        }
    }
}

impl Forwarding {
    fn of(frontend: &Frontend) -> Option<Self> {
        if frontend.flags & frontend::DIRECT_RETURN != 0 {
            Some(Self::Dsr)
        } else {
            (frontend.flags & frontend::KEEP_CLIENT != 0).then_some(Self::Keep)
        }
    }
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "clients keep their address",
            Self::Dsr => "answered directly",
        })
    }
}

impl ListShown {
    pub(crate) fn of<A: Family>(known: &Known, list: u32) -> Self {
        let (service, port_name) = match known.name::<A>(list) {
            Some(Name::Service { service, port, .. }) => (Some(service.to_string()), port.clone()),
            Some(Name::HostPort { pod, .. }) => {
                // What the runtime said must not steer the reader's terminal.
                (Some(format!("pod {}", pod.escape_default())), String::new())
            }
            Some(Name::ClosedPorts) | None => (None, String::new()),
        };
        Self { service, port_name, list }
    }

    /// Service and port, with a question mark if the name is `doubted`.
    pub(crate) fn cells(&self, doubted: bool) -> [String; 2] {
        let mark = if doubted { "?" } else { "" };
        let port = if self.port_name.is_empty() { "-" } else { &self.port_name };
        let service = self.service.as_ref().map(|service| format!("{service}{mark}"));
        [service.unwrap_or_else(|| format!("list {}", self.list)), port.to_owned()]
    }
}

/// The reverse of what makes ticks of a Service's seconds.
pub(crate) fn seconds(ticks: u32) -> u64 {
    const NANOSECONDS: u64 = 1_000_000_000;
    ((u64::from(ticks) << 30) + NANOSECONDS / 2) / NANOSECONDS
}

/// Reads the tables; what to print.
pub fn run(options: &Options) -> Result<String> {
    let pinned = Pinned::open(&options.place.bpffs)?;
    let shown = read(&pinned, &options.place, options.only.as_ref())?;
    options.place.print(&shown, table)
}

pub(crate) fn read(pinned: &Pinned, place: &Place, only: Option<&Only>) -> Result<Shown> {
    let (mut frontends, known) = with_names(pinned, &place.state_dir, |known| {
        let mut rows = rows::<V4>(pinned, known, only)?;
        rows.extend(self::rows::<V6>(pinned, known, only)?);
        Ok(rows)
    })?;
    frontends.sort();
    Ok(Shown { frontends, doubt: known.doubt() })
}

fn rows<A: Family>(pinned: &Pinned, known: &Known, only: Option<&Only>) -> Result<Vec<Row>> {
    let maps = Maps::<A>::open(pinned)?;
    let ranges = maps.source_ranges()?;
    let mut distinct: BTreeMap<u32, usize> = BTreeMap::new();
    let mut rows = Vec::new();
    for (key, frontend) in &maps.frontends()? {
        let name = known.name::<A>(frontend.service);
        // It stands for all ports that are none of a Service's.
        let any_port = key.port.get() == 0 && key.protocol == 0;
        if any_port || !only.is_none_or(|only| only.means(key, name)) {
            continue;
        }
        // An endpoint may have several slots.
        let endpoints = match distinct.get(&frontend.service) {
            Some(endpoints) => *endpoints,
            None => {
                let endpoints = maps.shares(frontend)?.len();
                distinct.insert(frontend.service, endpoints);
                endpoints
            }
        };
        let restricted = frontend.flags & frontend::SOURCE_RANGES != 0;
        let ranges = ranges.iter().filter(|(port, ..)| *port == frontend.port);
        let ranges = ranges.filter_map(|(_, length, network)| prefix(*length, *network));
        rows.push(Row {
            list: ListShown::of::<A>(known, frontend.service),
            address: key.address.to_ip(),
            port: key.port.get(),
            protocol: protocol_name(key.protocol),
            from: Scope::of(key.scope),
            endpoints,
            local: matches!(name, Some(Name::Service { local: true, .. })),
            choice: Choosing::of(frontend),
            affinity_seconds: (frontend.affinity != 0).then(|| seconds(frontend.affinity)),
            source_ranges: restricted.then(|| ranges.collect()),
            elsewhere: frontend.endpoints == 0 && frontend.flags & frontend::ELSEWHERE != 0,
            forwarding: Forwarding::of(frontend),
        });
    }
    Ok(rows)
}

impl Only {
    fn means<A: Family>(&self, key: &FrontendKey<A>, name: Option<&Name>) -> bool {
        match self {
            Self::Service(wanted) => {
                matches!(name, Some(Name::Service { service, .. }) if service == wanted)
            }
            Self::At(address, port) => {
                key.address.to_ip() == *address && port.is_none_or(|port| port == key.port.get())
            }
        }
    }
}

/// One line a frontend.
pub(crate) fn table(shown: &Shown) -> String {
    let doubted = shown.doubt.is_some();
    let rows: Vec<[String; 6]> = shown.frontends.iter().map(|one| row(one, doubted)).collect();
    let mut text = columns(["SERVICE", "PORT", "FRONTEND", "FROM", "ENDPOINTS", "CHOICE"], &rows);
    if let Some(doubt) = &shown.doubt {
        text = format!("{text}\n\n{doubt}");
    }
    text
}

fn row(row: &Row, doubted: bool) -> [String; 6] {
    let [service, port] = row.list.cells(doubted);
    let mut choice = vec![row.choice.to_string()];
    if let Some(seconds) = row.affinity_seconds {
        choice.push(format!("clients stay {seconds}s"));
    }
    if let Some(ranges) = &row.source_ranges {
        let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        choice.push(format!("only from {}", ranges.join(" ")));
    }
    choice.extend(row.forwarding.map(|forwarding| forwarding.to_string()));
    if row.elsewhere {
        choice.push("none here but elsewhere".to_owned());
    }
    [
        service,
        port,
        format!("{}/{}", at(row.address, Some(row.port)), row.protocol),
        row.from.to_string(),
        format!("{}{}", row.endpoints, if row.local { " here" } else { "" }),
        choice.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Vec<Row> {
        let row = Row {
            list: ListShown {
                service: Some("shop/web".to_owned()),
                port_name: "http".to_owned(),
                list: 1,
            },
            address: [10, 96, 0, 1].into(),
            port: 80,
            protocol: "TCP".to_owned(),
            from: Scope::Inside,
            endpoints: 3,
            local: false,
            choice: Choosing::Random,
            affinity_seconds: None,
            source_ranges: None,
            elsewhere: false,
            forwarding: None,
        };
        let restricted = Row {
            address: "2001:db8::7".parse().expect("an address"),
            from: Scope::Outside,
            endpoints: 0,
            local: true,
            choice: Choosing::ByFlow,
            affinity_seconds: Some(10_800),
            source_ranges: Some(vec!["2001:db8::/32".parse().expect("a range")]),
            elsewhere: true,
            forwarding: Some(Forwarding::Keep),
            ..row.clone()
        };
        let unknown = Row {
            list: ListShown { list: 7, ..ListShown::default() },
            choice: Choosing::InTurn,
            ..row.clone()
        };
        vec![row, restricted, unknown]
    }

    #[test]
    fn frontends_are_shown_in_columns() {
        let doubt = Some("names with a ? may be stale".to_owned());
        let text = table(&Shown { frontends: shown(), doubt });
        let expected = "\
SERVICE     PORT   FRONTEND               FROM      ENDPOINTS   CHOICE
shop/web?   http   10.96.0.1:80/TCP       inside    3           random
shop/web?   http   [2001:db8::7]:80/TCP   outside   0 here      by flow, clients stay 10800s, only from 2001:db8::/32, clients keep their address, none here but elsewhere
list 7      -      10.96.0.1:80/TCP       inside    3           in turn

names with a ? may be stale";
        assert_eq!(text, expected);
    }

    #[test]
    fn frontends_are_json() {
        let frontends = shown().into_iter().take(1).collect();
        let json = serde_json::to_string(&Shown { frontends, doubt: None }).expect("JSON");
        assert_eq!(
            json,
            r#"{"frontends":[{"service":"shop/web","portName":"http","list":1,"address":"10.96.0.1","port":80,"protocol":"TCP","from":"inside","endpoints":3,"local":false,"choice":"random","elsewhere":false}]}"#
        );
    }

    #[test]
    fn what_is_meant() {
        let address: IpAddr = "fd00::1".parse().expect("an address");
        for (text, only) in [
            ("shop/web", Only::Service(ObjectName::new("shop", "web"))),
            ("10.96.0.1", Only::At([10, 96, 0, 1].into(), None)),
            ("10.96.0.1:80", Only::At([10, 96, 0, 1].into(), Some(80))),
            ("fd00::1", Only::At(address, None)),
            ("[fd00::1]", Only::At(address, None)),
            ("[fd00::1]:80", Only::At(address, Some(80))),
        ] {
            assert_eq!(text.parse(), Ok(only), "{text}");
        }
        for bad in ["", "web", "shop/", "shop/web/x", "10.96.0.1:x", "shop/\u{1b}[0m"] {
            assert!(bad.parse::<Only>().is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_are_those_that_the_service_says() {
        for (ticks, said) in [(1, 1), (27, 29), (10_058, 10_800)] {
            assert_eq!(seconds(ticks), said);
        }
    }
}
