//! `fairway-proxy endpoints`: what is behind each Service's port.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use fairway_abi::{Frontend, V4, V6};
use fairway_compile::Family;
use fairway_core::service::load_key;
use fairway_model::ObjectName;
use serde::Serialize;

use super::clock::Now;
use super::known::{Known, with_names};
use super::maps::Maps;
use super::pods::PodNames;
use super::services::{Choosing, ListShown};
use super::{Place, at, columns, object_name, protocol_name};
use crate::dataplane::Pinned;
use crate::names::Name;

/// What `fairway-proxy endpoints` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only those of this Service: NAMESPACE/NAME
    #[arg(value_name = "SERVICE")]
    pub only: Option<ServiceName>,

    /// Where the tables are, and how to print them.
    #[command(flatten)]
    pub place: Place,
}

/// A Service, as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName(pub ObjectName);

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        object_name(text).map(Self).ok_or_else(|| "must be NAMESPACE/NAME".to_owned())
    }
}

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    pub(crate) endpoints: Vec<Row>,
    /// Why names may be wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) doubt: Option<String>,
}

/// An endpoint in a list, or a list that has none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) list: ListShown,
    pub(crate) protocol: String,
    /// Only endpoints on this node are in the list.
    pub(crate) local: bool,
    pub(crate) choice: Choosing,
    /// None in an empty list.
    #[serde(flatten)]
    pub(crate) endpoint: Option<EndpointShown>,
}

/// An endpoint and how often it is chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointShown {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// The pod, if it is on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<String>,
    /// How many of the list's slots it has, and of how many; how many parts of them, where endpoints start
    /// slowly; where connections are counted, how many of so many new ones it would get now.
    pub(crate) slots: u32,
    pub(crate) of: u32,
    /// How many connections of this node it has open, where that is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) open: Option<u32>,
}

/// Reads the tables; what to print.
pub fn run(options: &Options) -> Result<String> {
    let pinned = Pinned::open(&options.place.bpffs)?;
    let shown = read(&pinned, &options.place, options.only.as_ref().map(|only| &only.0))?;
    options.place.print(&shown, table)
}

pub(crate) fn read(pinned: &Pinned, place: &Place, only: Option<&ObjectName>) -> Result<Shown> {
    let pods = PodNames::read(&place.state_dir);
    let (mut endpoints, known) = with_names(pinned, &place.state_dir, |known| {
        let mut all = rows::<V4>(pinned, known, &pods, only)?;
        all.extend(rows::<V6>(pinned, known, &pods, only)?);
        Ok(all)
    })?;
    endpoints.sort_by(|one, other| {
        let key = |row: &Row| {
            let endpoint = row.endpoint.as_ref().map(|one| (one.address, one.port));
            (row.list.clone(), row.local, row.protocol.clone(), endpoint)
        };
        key(one).cmp(&key(other))
    });
    Ok(Shown { endpoints, doubt: known.doubt() })
}

fn rows<A: Family>(
    pinned: &Pinned,
    known: &Known,
    pods: &PodNames,
    only: Option<&ObjectName>,
) -> Result<Vec<Row>> {
    let maps = Maps::<A>::open(pinned)?;
    // A list is the same, whichever frontend leads to it.
    let frontends = maps.frontends()?.into_iter();
    let lists: BTreeMap<u32, (u8, Frontend)> =
        frontends.map(|(key, record)| (record.service, (key.protocol, record))).collect();
    let mut rows = Vec::new();
    for (number, (protocol, frontend)) in &lists {
        let name = known.name::<A>(*number);
        let is_wanted = |only: &ObjectName| matches!(name, Some(Name::Service { service, .. }) if service == only);
        // The protocol of what catches all ports.
        if *protocol == 0 || !only.is_none_or(is_wanted) {
            continue;
        }
        let row = Row {
            list: ListShown::of::<A>(known, *number),
            protocol: protocol_name(*protocol),
            local: matches!(name, Some(Name::Service { local: true, .. })),
            choice: Choosing::of(frontend),
            endpoint: None,
        };
        let shares = maps.parts(frontend, *protocol, Now::read().seconds)?;
        let of = shares.values().sum();
        if shares.is_empty() {
            rows.push(row);
            continue;
        }
        let counted = row.choice == Choosing::LeastConnections;
        for (endpoint, slots) in shares {
            let (address, port) = (endpoint.address.to_ip(), endpoint.port.get());
            let open = counted.then(|| maps.load(&load_key(&endpoint, *protocol))).transpose()?;
            let pod = pods.at(address);
            let endpoint = EndpointShown { address, port, pod, slots, of, open };
            rows.push(Row { endpoint: Some(endpoint), ..row.clone() });
        }
    }
    Ok(rows)
}

/// One line an endpoint.
pub(crate) fn table(shown: &Shown) -> String {
    let doubted = shown.doubt.is_some();
    let rows: Vec<[String; 7]> = shown.endpoints.iter().map(|one| row(one, doubted)).collect();
    let head = ["SERVICE", "PORT", "LIST", "ENDPOINT", "SHARE", "CHOICE", "POD"];
    let mut text = columns(head, &rows);
    if let Some(doubt) = &shown.doubt {
        text = format!("{text}\n\n{doubt}");
    }
    text
}

fn row(row: &Row, doubted: bool) -> [String; 7] {
    let [service, port] = row.list.cells(doubted);
    let list = if row.local { "this node" } else { "cluster" }.to_owned();
    let Some(endpoint) = &row.endpoint else {
        let none = "none".to_owned();
        return [service, port, list, none, String::new(), row.choice.to_string(), String::new()];
    };
    [
        service,
        port,
        list,
        format!("{}/{}", at(endpoint.address, Some(endpoint.port)), row.protocol),
        share(endpoint.slots, endpoint.of),
        match endpoint.open {
            Some(open) => format!("{}, {open} open", row.choice),
            None => row.choice.to_string(),
        },
        endpoint.pod.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

/// `33.3%`.
pub(crate) fn share(slots: u32, of: u32) -> String {
    format!("{:.1}%", 100.0 * f64::from(slots) / f64::from(of.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_shown_with_their_shares() {
        let row = |local, endpoint| Row {
            list: ListShown {
                service: Some("shop/web".to_owned()),
                port_name: "http".to_owned(),
                list: 1,
            },
            protocol: "TCP".to_owned(),
            local,
            choice: Choosing::Random,
            endpoint,
        };
        let endpoint = |last, pod: Option<&str>| EndpointShown {
            address: [10, 244, 0, last].into(),
            port: 8080,
            pod: pod.map(str::to_owned),
            slots: 1,
            of: 3,
            open: None,
        };
        let rows = vec![
            row(false, Some(endpoint(2, Some("shop/web-1")))),
            row(false, Some(endpoint(13, None))),
            row(true, None),
        ];
        let expected = "\
SERVICE    PORT   LIST        ENDPOINT               SHARE   CHOICE   POD
shop/web   http   cluster     10.244.0.2:8080/TCP    33.3%   random   shop/web-1
shop/web   http   cluster     10.244.0.13:8080/TCP   33.3%   random   -
shop/web   http   this node   none                           random";
        assert_eq!(table(&Shown { endpoints: rows, doubt: None }), expected);
    }
}
