//! `fairway-proxy explain`: what becomes of a packet, and why.
//!
//! The kernel's tables are copied into memory, and the very functions that the programs in the kernel
//! are made of decide there. Where chance has a part in it, each endpoint that may be chosen is walked
//! to once.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use anyhow::Result;
use clap::Args;
use fairway_abi::{V4, V6};
use serde::Serialize;

use super::clock::Now;
use super::endpoints::share;
use super::known::with_names;
use super::pods::PodNames;
use super::{Place, at, columns};
use crate::dataplane::Pinned;

mod parse;
mod walk;
mod world;

pub use parse::{Destination, Source};

/// What `fairway-proxy explain` takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  fairway-proxy explain shop/cart-7 shop/web:http
      A pod of this node asks for a Service by name.
  fairway-proxy explain 203.0.113.7:40000 192.0.2.11:30080
      Somebody outside sends to a node port, from this very port.
  fairway-proxy explain host 10.96.0.10:53/udp
      A process of the node asks for an address.
  fairway-proxy explain pod/shop/cart-7 pod/shop/db-0:5432
      May the one pod reach the other, and which policy and rule say so? Each node knows the policies of its
      own pods: for a pod elsewhere, give its address, and ask there, too.")]
pub struct Options {
    /// Who sends: a pod of this node (NAMESPACE/NAME or pod/NAMESPACE/NAME), \"host\" for the node itself, or any address; a port
    /// may follow, as in ADDRESS:PORT
    #[arg(value_name = "SOURCE")]
    pub source: Source,

    /// Where to: ADDRESS:PORT, NAMESPACE/NAME:PORT of a Service or pod/NAMESPACE/NAME:PORT of a pod here, and /udp or /sctp if it is not TCP; a
    /// Service's port may be given by name
    #[arg(value_name = "DESTINATION")]
    pub destination: Destination,

    /// Where the tables are, and how to print what they say.
    #[command(flatten)]
    pub place: Place,
}

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    /// One a family.
    pub(crate) explanations: Vec<Explanation>,
    /// Why names may be wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) doubt: Option<String>,
}

/// What becomes of a packet of one family.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    pub(crate) source: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source_port: Option<u16>,
    /// What the source is.
    pub(crate) client: String,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    /// In the order in which they are taken.
    pub(crate) steps: Vec<Step>,
    /// Where it may go; none if it goes nowhere.
    pub(crate) ways: Vec<Way>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drop: Option<Dropped>,
}

/// Something that is decided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) what: Topic,
    pub(crate) says: String,
}

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Topic {
    /// Where it is decided.
    Decided,
    Frontend,
    SourceRanges,
    Affinity,
    Choice,
    Flow,
    Masquerade,
    /// What policies say.
    Policy,
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Decided => "decided",
            Self::Frontend => "frontend",
            Self::SourceRanges => "source ranges",
            Self::Affinity => "affinity",
            Self::Choice => "choice",
            Self::Flow => "flow",
            Self::Masquerade => "masquerade",
            Self::Policy => "policy",
        })
    }
}

/// A way that the packet may go.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Way {
    /// Where it arrives.
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// How many of so many slots lead there, or what `endpoints` says instead of them.
    pub(crate) slots: u32,
    pub(crate) of: u32,
    /// The pod there, if it is on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<String>,
    /// Where it seems to come from there.
    pub(crate) source: IpAddr,
    /// By what it leaves; or why it does not.
    pub(crate) next_hop: String,
}

/// Why a packet goes nowhere.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dropped {
    pub(crate) reason: &'static str,
    /// Of any packet that is dropped for it.
    pub(crate) meaning: &'static str,
    /// Of this one; may be empty.
    pub(crate) because: String,
}

/// Reads the tables; what to print.
pub fn run(options: &Options) -> Result<String> {
    let pinned = Pinned::open(&options.place.bpffs)?;
    let Options { source, destination, place } = options;
    let shown = read(&pinned, place, source, destination, Now::read())?;
    place.print(&shown, text)
}

pub(crate) fn read(
    pinned: &Pinned,
    place: &Place,
    source: &Source,
    destination: &Destination,
    now: Now,
) -> Result<Shown> {
    let pods = PodNames::read(&place.state_dir);
    let (explanations, known) = with_names(pinned, &place.state_dir, |known| {
        let asked = walk::Asked { pinned, known, pods: &pods, now, source, destination };
        asked.check_pod()?;
        let v4 = asked.explain::<V4>()?;
        let v6 = asked.explain::<V6>()?;
        if v4.is_none() && v6.is_none() {
            return Err(asked.why_nothing());
        }
        Ok(v4.into_iter().chain(v6).collect())
    })?;
    Ok(Shown { explanations, doubt: known.doubt() })
}

/// Paragraphs, one a family.
pub(crate) fn text(shown: &Shown) -> String {
    let mut parts: Vec<String> = shown.explanations.iter().map(paragraph).collect();
    parts.extend(shown.doubt.clone());
    parts.join("\n\n")
}

fn paragraph(explanation: &Explanation) -> String {
    let Explanation { source, source_port, client, destination, port, protocol, .. } = explanation;
    let mut text = format!(
        "{} ({client}) -> {}/{protocol}\n",
        at(*source, *source_port),
        at(*destination, Some(*port))
    );
    for Step { what, says } in &explanation.steps {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {what:13}  {says}");
    }
    if let Some(Dropped { reason, meaning, because }) = &explanation.drop {
        let _ = write!(text, "  {:13}  {reason}: {meaning}", "DROPPED");
        if !because.is_empty() {
            let _ = write!(text, "\n  {:13}  {because}", "because");
        }
        return text.trim_end().to_owned();
    }
    let head = ["ARRIVES AT", "SHARE", "POD", "SOURCE THERE", "NEXT HOP"];
    let rows: Vec<[String; 5]> = explanation.ways.iter().map(row).collect();
    for line in columns(head, &rows).lines() {
        let _ = write!(text, "\n  {line}");
    }
    text
}

fn row(way: &Way) -> [String; 5] {
    [
        at(way.address, Some(way.port)),
        share(way.slots, way.of),
        way.pod.clone().unwrap_or_else(|| "-".to_owned()),
        way.source.to_string(),
        way.next_hop.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explanation() -> Explanation {
        Explanation {
            source: [203, 0, 113, 7].into(),
            source_port: None,
            client: "outside".to_owned(),
            destination: [192, 0, 2, 1].into(),
            port: 30080,
            protocol: "TCP".to_owned(),
            steps: vec![
                Step { what: Topic::Frontend, says: "Service shop/web, port http".to_owned() },
                Step { what: Topic::Choice, says: "random".to_owned() },
            ],
            ways: vec![Way {
                address: [10, 244, 1, 2].into(),
                port: 8080,
                slots: 1,
                of: 2,
                pod: Some("shop/web-1".to_owned()),
                source: [203, 0, 113, 7].into(),
                next_hop: "pod here, interface fw0".to_owned(),
            }],
            drop: None,
        }
    }

    #[test]
    fn an_explanation_reads_from_top_to_bottom() {
        let expected = "\
203.0.113.7:* (outside) -> 192.0.2.1:30080/TCP
  frontend       Service shop/web, port http
  choice         random

  ARRIVES AT        SHARE   POD          SOURCE THERE   NEXT HOP
  10.244.1.2:8080   50.0%   shop/web-1   203.0.113.7    pod here, interface fw0

names with a ? may be stale";
        let doubt = Some("names with a ? may be stale".to_owned());
        assert_eq!(text(&Shown { explanations: vec![explanation()], doubt }), expected);
    }

    #[test]
    fn a_drop_says_why() {
        let reason = fairway_abi::DropReason::ClosedPort;
        let drop = Some(Dropped {
            reason: reason.name(),
            meaning: reason.meaning(),
            because: "192.0.2.1 is Service shop/web's.".to_owned(),
        });
        let dropped = Explanation { drop, ways: Vec::new(), steps: Vec::new(), ..explanation() };
        let expected = "\
203.0.113.7:* (outside) -> 192.0.2.1:30080/TCP
  DROPPED        closed_port: A Service has the address, but not this port; the client is told at once.
  because        192.0.2.1 is Service shop/web's.";
        assert_eq!(text(&Shown { explanations: vec![dropped], doubt: None }), expected);
    }
}
