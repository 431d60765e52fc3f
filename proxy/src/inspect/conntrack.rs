//! `fairway-proxy conntrack`: the open flows that have a record, and ending them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use fairway_abi::{Flow, FlowKey, V4, V6, flow};
use fairway_compile::Family;
use fairway_core::flow::opposite_of;
use fairway_core::tables::Stage;
use fairway_model::ObjectName;
use ipnet::IpNet;
use serde::Serialize;

use super::clock::Now;
use super::endpoints::ServiceName;
use super::known::{Known, with_names};
use super::maps::Maps;
use super::services::ListShown;
use super::{Place, at, columns, protocol_name, protocol_number};
use crate::dataplane::Pinned;
use crate::names::Name;

/// What `fairway-proxy conntrack` does.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Show the flows that are translated, or once were looked up, as the kernel remembers them
    List(List),
    /// Forget flows: their next packets find their way anew, or get nowhere in the midst of a connection
    Flush(Flush),
}

/// What `fairway-proxy conntrack list` takes.
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Which flows.
    #[command(flatten)]
    pub filter: Filter,

    /// Where the tables are, and how to print them.
    #[command(flatten)]
    pub place: Place,
}

/// What `fairway-proxy conntrack flush` takes.
#[derive(Args, Clone, Debug)]
pub struct Flush {
    /// Which flows.
    #[command(flatten)]
    pub filter: Filter,

    /// Every flow of this node
    #[arg(long)]
    pub all: bool,

    /// Where the tables are, and how to print what was done.
    #[command(flatten)]
    pub place: Place,
}

/// Which flows are meant: those that everything given is true of.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Those from this address or range, as the client sends or after translation
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
    pub source: Option<IpNet>,

    /// Those to this address or range: a Service's or an endpoint's
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = network)]
    pub destination: Option<IpNet>,

    /// Those that this Service (NAMESPACE/NAME) translates
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<ServiceName>,

    /// Those of this protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol_number)]
    pub protocol: Option<u8>,
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| "must be an address or a range".to_owned())
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Self { source, destination, service, protocol } = self;
        source.is_none() && destination.is_none() && service.is_none() && protocol.is_none()
    }

    fn means(&self, row: &Row, service: Option<&ObjectName>) -> bool {
        let within = |net: &Option<IpNet>, ends: [&End; 2]| {
            net.is_none_or(|net| ends.iter().any(|end| net.contains(&end.address)))
        };
        within(&self.source, [&row.original.source, &row.translated.source])
            && within(&self.destination, [&row.original.destination, &row.translated.destination])
            && self.service.as_ref().is_none_or(|wanted| Some(&wanted.0) == service)
            && self.protocol.is_none_or(|number| row.number == number)
    }
}

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    pub(crate) flows: Vec<Row>,
    /// Why names may be wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) doubt: Option<String>,
}

/// A flow, as the client's packets look before and after translation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) protocol: String,
    #[serde(skip)]
    number: u8,
    pub(crate) original: Ends,
    pub(crate) translated: Ends,
    pub(crate) state: State,
    /// Seconds since either direction last carried a packet.
    pub(crate) idle: u32,
    /// What becomes of the answers, if this node was not asked or does not see them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answers: Option<Answers>,
    /// None where the node's address alone was put in place.
    #[serde(flatten)]
    pub(crate) list: Option<ListShown>,
}

/// See [`Row::answers`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Answers {
    /// They go to the node that was asked, to which this address is routed.
    Through(IpAddr),
    /// They leave here as those of this frontend.
    As(End),
    /// The endpoint's node sends them.
    Elsewhere,
}

impl std::fmt::Display for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Through(address) => write!(f, "answers through {address}"),
            Self::As(End { address, port }) => {
                write!(f, "answers as {}", at(*address, Some(*port)))
            }
            Self::Elsewhere => f.write_str("answered by the endpoint's node"),
        }
    }
}

/// Both ends of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Ends {
    pub(crate) source: End,
    pub(crate) destination: End,
}

/// An address and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct End {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// No answer yet.
    HalfOpen,
    Established,
    /// One end has closed it, or reset it.
    Closing,
    /// The record of the other direction is gone, and this one follows soon.
    OneSided,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::OneSided => "one-sided",
        }
    }
}

/// Shows flows; what to print.
pub fn run(verb: &Verb) -> Result<String> {
    match verb {
        Verb::List(options) => {
            let pinned = Pinned::open(&options.place.bpffs)?;
            let shown = read(&pinned, &options.place, &options.filter, Now::read())?;
            options.place.print(&shown, table)
        }
        Verb::Flush(options) => {
            if options.filter.is_empty() != options.all {
                bail!(
                    "say which flows to forget, by --source, --destination, --service or --protocol; \
                       or --all, and nothing else"
                );
            }
            let pinned = Pinned::open(&options.place.bpffs)?;
            let forgotten = flush(&pinned, &options.place, &options.filter)?;
            options.place.print(&Forgotten { forgotten }, |Forgotten { forgotten }| {
                format!("{forgotten} {} forgotten", if *forgotten == 1 { "flow" } else { "flows" })
            })
        }
    }
}

#[derive(Serialize)]
struct Forgotten {
    forgotten: usize,
}

pub(crate) fn read(pinned: &Pinned, place: &Place, filter: &Filter, now: Now) -> Result<Shown> {
    let (mut flows, known) = with_names(pinned, &place.state_dir, |known| {
        let mut all = matching::<V4>(pinned, known, filter, now)?.0;
        all.extend(matching::<V6>(pinned, known, filter, now)?.0);
        Ok(all)
    })?;
    flows.sort();
    Ok(Shown { flows, doubt: known.doubt() })
}

/// Forgets flows in both tables; how many there were. Refuses to go by the name of a Service where that
/// may be another's.
pub(crate) fn flush(pinned: &Pinned, place: &Place, filter: &Filter) -> Result<usize> {
    let now = Now::read();
    let ((v4, v6), known) = with_names(pinned, &place.state_dir, |known| {
        let v4 = matching::<V4>(pinned, known, filter, now)?.1;
        Ok((v4, matching::<V6>(pinned, known, filter, now)?.1))
    })?;
    if filter.service.is_some()
        && let Some(doubt) = known.doubt()
    {
        bail!("the Service's flows are not known for certain: {doubt}");
    }
    Ok(forget(pinned, &v4)? + forget(pinned, &v6)?)
}

/// The keys of both records of a flow.
type Keys<A> = [FlowKey<A>; 2];

fn forget<A: Family>(pinned: &Pinned, flows: &[Keys<A>]) -> Result<usize> {
    if flows.is_empty() {
        return Ok(0);
    }
    let maps = Maps::<A>::open(pinned)?;
    // A flow may have moved from the first table to the second since it was read.
    for stage in [Stage::HalfOpen, Stage::Established] {
        let mut table = maps.flows_to_change(stage)?;
        for key in flows.iter().flatten() {
            table.remove(key)?;
        }
    }
    Ok(flows.len())
}

/// The flows that are meant, and their records' keys.
fn matching<A: Family>(
    pinned: &Pinned,
    known: &Known,
    filter: &Filter,
    now: Now,
) -> Result<(Vec<Row>, Vec<Keys<A>>)> {
    let maps = Maps::<A>::open(pinned)?;
    let mut records: BTreeMap<FlowKey<A>, (Flow<A>, Stage)> = BTreeMap::new();
    // The established last: they have come from the other table, maybe while it was read.
    for stage in [Stage::HalfOpen, Stage::Established] {
        let read = maps.flows(stage, |_, _| true)?;
        records.extend(read.into_iter().map(|(key, record)| (key, (record, stage))));
    }
    let mut rows = Vec::new();
    let mut keys = Vec::new();
    for [one, other] in pairs(&records) {
        let row = row(known, &records, &one, &other, now);
        let service = records.get(&one).or(records.get(&other)).and_then(|(record, _)| match known
            .name::<A>(record.service.get())
        {
            Some(Name::Service { service, .. }) => Some(service),
            _ => None,
        });
        if filter.means(&row, service) {
            rows.push(row);
            keys.push([one, other]);
        }
    }
    Ok((rows, keys))
}

/// Each flow's keys, those of the client's direction first.
fn pairs<A: Family>(records: &BTreeMap<FlowKey<A>, (Flow<A>, Stage)>) -> Vec<Keys<A>> {
    let mut seen = BTreeSet::new();
    let mut pairs = Vec::new();
    for (key, (record, _)) in records {
        let other = opposite_of(key, record);
        let is_reply = record.state.get() & flow::REPLY != 0;
        let pair = if is_reply { [other, *key] } else { [*key, other] };
        if seen.insert(pair) {
            pairs.push(pair);
        }
    }
    pairs
}

fn row<A: Family>(
    known: &Known,
    records: &BTreeMap<FlowKey<A>, (Flow<A>, Stage)>,
    key: &FlowKey<A>,
    reply: &FlowKey<A>,
    now: Now,
) -> Row {
    // Each key is the other record's translation read backwards.
    let original = Ends::of((key.source, key.source_port), (key.destination, key.destination_port));
    let translated =
        Ends::of((reply.destination, reply.destination_port), (reply.source, reply.source_port));
    let both = [records.get(key), records.get(reply)];
    let there = || both.iter().copied().flatten();
    let states = there().fold(0, |all, (record, _)| all | record.state.get());
    let established =
        there().any(|(_, stage)| *stage == Stage::Established) || states & flow::ANSWERED != 0;
    let state = if there().count() < 2 {
        State::OneSided
    } else if states & (flow::FIN | flow::RST) != 0 {
        State::Closing
    } else if established {
        State::Established
    } else {
        State::HalfOpen
    };
    let idle = there().map(|(record, _)| now.seconds_since(record.last_seen.get())).min();
    let service = there().map(|(record, _)| record.service.get()).max().unwrap_or(0);
    let answers = records.get(reply).map(|(record, _)| record).and_then(|record| {
        let (address, port) = (record.source.to_ip(), record.source_port.get());
        match record.state.get() & (flow::BY_PEER | flow::ON_BEHALF) {
            0 => (states & flow::DELEGATED != 0).then_some(Answers::Elsewhere),
            flow::BY_PEER => Some(Answers::Through(address)),
            _ => Some(Answers::As(End { address, port })),
        }
    });
    Row {
        protocol: protocol_name(key.protocol),
        number: key.protocol,
        original,
        translated,
        state,
        idle: idle.unwrap_or(0),
        answers,
        list: (service != 0).then(|| ListShown::of::<A>(known, service)),
    }
}

impl Ends {
    fn of<A: Family>(
        source: (A, zerocopy::network_endian::U16),
        destination: (A, zerocopy::network_endian::U16),
    ) -> Self {
        let end = |(address, port): (A, zerocopy::network_endian::U16)| End {
            address: address.to_ip(),
            port: port.get(),
        };
        Self { source: end(source), destination: end(destination) }
    }
}

impl std::fmt::Display for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { source, destination } = self;
        let (from, to) = (at(source.address, Some(source.port)), &destination.address);
        write!(f, "{from} -> {}", at(*to, Some(destination.port)))
    }
}

/// One line a flow.
pub(crate) fn table(shown: &Shown) -> String {
    let doubted = shown.doubt.is_some();
    let rows: Vec<[String; 6]> = shown.flows.iter().map(|row| cells(row, doubted)).collect();
    let mut text =
        columns(["PROTOCOL", "STATE", "IDLE", "ORIGINAL", "TRANSLATED", "SERVICE"], &rows);
    if let Some(doubt) = &shown.doubt {
        text = format!("{text}\n\n{doubt}");
    }
    text
}

fn cells(row: &Row, doubted: bool) -> [String; 6] {
    let service = row.list.as_ref().map_or_else(
        || "-".to_owned(),
        |list| {
            let [service, port] = list.cells(doubted);
            if port == "-" { service } else { format!("{service} {port}") }
        },
    );
    let mut translated = if row.original == row.translated {
        "the same".to_owned()
    } else {
        row.translated.to_string()
    };
    if let Some(answers) = &row.answers {
        translated = format!("{translated}, {answers}");
    }
    [
        row.protocol.clone(),
        row.state.name().to_owned(),
        format!("{}s", row.idle),
        row.original.to_string(),
        translated,
        service,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(address: [u8; 4], port: u16) -> End {
        End { address: address.into(), port }
    }

    fn row() -> Row {
        let client = end([203, 0, 113, 7], 40_000);
        Row {
            protocol: "TCP".to_owned(),
            number: 6,
            original: Ends { source: client.clone(), destination: end([192, 0, 2, 1], 30_080) },
            translated: Ends {
                source: end([192, 0, 2, 1], 1025),
                destination: end([10, 244, 2, 2], 8080),
            },
            state: State::Established,
            idle: 3,
            answers: None,
            list: Some(ListShown {
                service: Some("shop/web".to_owned()),
                port_name: "http".to_owned(),
                list: 1,
            }),
        }
    }

    #[test]
    fn flows_are_shown_as_pairs() {
        let kept = Row { translated: row().original, state: State::HalfOpen, list: None, ..row() };
        let through = Answers::Through([10, 244, 1, 0].into());
        let brought = Row { answers: Some(through), ..kept.clone() };
        let frontend = End { address: [192, 0, 2, 1].into(), port: 30_080 };
        let direct = Row { answers: Some(Answers::As(frontend)), ..kept.clone() };
        let elsewhere = Row { answers: Some(Answers::Elsewhere), ..kept.clone() };
        let expected = "\
PROTOCOL   STATE         IDLE   ORIGINAL                               TRANSLATED                                  SERVICE
TCP        established   3s     203.0.113.7:40000 -> 192.0.2.1:30080   192.0.2.1:1025 -> 10.244.2.2:8080           shop/web http
TCP        half-open     3s     203.0.113.7:40000 -> 192.0.2.1:30080   the same                                    -
TCP        half-open     3s     203.0.113.7:40000 -> 192.0.2.1:30080   the same, answers through 10.244.1.0        -
TCP        half-open     3s     203.0.113.7:40000 -> 192.0.2.1:30080   the same, answers as 192.0.2.1:30080        -
TCP        half-open     3s     203.0.113.7:40000 -> 192.0.2.1:30080   the same, answered by the endpoint's node   -";
        assert_eq!(
            table(&Shown { flows: vec![row(), kept, brought, direct, elsewhere], doubt: None }),
            expected
        );
    }

    #[test]
    fn flows_are_chosen_by_all_that_is_given() {
        let web = ObjectName::new("shop", "web");
        let net = |text: &str| Some(network(text).expect("a range"));
        let service = |name: &str| Some(ServiceName(ObjectName::new("shop", name)));
        let none = Filter::default();
        for (filter, means) in [
            (none.clone(), true),
            (Filter { source: net("203.0.113.0/24"), ..none.clone() }, true),
            (Filter { source: net("192.0.2.1"), ..none.clone() }, true),
            (Filter { source: net("10.244.2.2"), ..none.clone() }, false),
            (Filter { destination: net("10.244.2.2"), ..none.clone() }, true),
            (Filter { destination: net("203.0.113.7"), ..none.clone() }, false),
            (Filter { source: net("::/0"), ..none.clone() }, false),
            (Filter { service: service("web"), ..none.clone() }, true),
            (Filter { service: service("db"), ..none.clone() }, false),
            (Filter { protocol: Some(17), ..none.clone() }, false),
            (Filter { protocol: Some(6), source: net("10.0.0.1"), ..none.clone() }, false),
        ] {
            assert_eq!(filter.means(&row(), Some(&web)), means, "{filter:?}");
        }
    }

    #[test]
    fn nothing_is_forgotten_unless_it_was_said_what() {
        let place = Place {
            bpffs: "/nowhere".into(),
            state_dir: "/nowhere".into(),
            output: super::super::Output::Table,
        };
        let some = Filter { protocol: Some(17), ..Filter::default() };
        for (filter, all) in [(Filter::default(), false), (some, true)] {
            let verb = Verb::Flush(Flush { filter, all, place: place.clone() });
            let error = run(&verb).expect_err("refused").to_string();
            assert!(error.starts_with("say which flows"), "{error}");
        }
    }
}
