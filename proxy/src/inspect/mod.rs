//! Commands that show what is in this node's kernel, whether or not an agent runs.
//!
//! ```text
//! pinned tables ─► maps ──┐
//! names.json ────► known ─┼─► status, services, endpoints, conntrack, explain ─► rows ─► table, JSON
//! endpoints.json ► pods ──┘
//! ```
//!
//! Nothing here loads a program, and only `conntrack flush` changes anything, and `monitor` while it runs. What is
//! read may change meanwhile: a row is true of some moment while the command ran.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use fairway_abi::protocol;
use serde::Serialize;

pub mod conntrack;
pub mod endpoints;
pub mod explain;
pub mod monitor;
pub mod services;
pub mod status;

pub(crate) use clock::Now;

mod clock;
mod known;
mod maps;
mod odds;
mod pods;
#[cfg(test)]
mod tests;

/// What all of these commands take.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// As given to the agent
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/fairway")]
    pub bpffs: PathBuf,

    /// As given to the agent
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairway")]
    pub state_dir: PathBuf,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

impl Place {
    /// What a command prints: `value` as JSON, or what `table` makes of it.
    fn print<T: Serialize>(&self, value: &T, table: impl FnOnce(&T) -> String) -> Result<String> {
        match self.output {
            Output::Json => serde_json::to_string_pretty(value).context("encode the answer"),
            Output::Table => Ok(table(value)),
        }
    }
}

/// Lines in columns under a head; the last column is as wide as it is.
fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend_from_slice(rows);
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let mut lines = Vec::new();
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}   ");
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

/// `TCP`, or a number that has no name here.
fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        protocol::ICMP => "ICMP".to_owned(),
        protocol::ICMPV6 => "ICMPv6".to_owned(),
        number => number.to_string(),
    }
}

/// The reverse of [`protocol_name`], in any letters.
fn protocol_number(name: &str) -> Result<u8, String> {
    let known = [
        ("tcp", protocol::TCP),
        ("udp", protocol::UDP),
        ("sctp", protocol::SCTP),
        ("icmp", protocol::ICMP),
        ("icmpv6", protocol::ICMPV6),
    ];
    let found = known.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
    found
        .map(|(_, number)| *number)
        .or_else(|| name.parse().ok())
        .ok_or_else(|| format!("{name:?} is no protocol: tcp, udp, sctp, icmp, icmpv6 or a number"))
}

/// `10.0.0.1:80`, `[fd00::1]:80`, also with a star in the port's place.
fn at(address: IpAddr, port: Option<u16>) -> String {
    match (port, address) {
        (Some(port), address) => SocketAddr::new(address, port).to_string(),
        (None, IpAddr::V4(address)) => format!("{address}:*"),
        (None, IpAddr::V6(address)) => format!("[{address}]:*"),
    }
}

/// `NAMESPACE/NAME`, as an argument.
fn object_name(text: &str) -> Option<fairway_model::ObjectName> {
    let (namespace, name) = text.split_once('/')?;
    let good = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
    };
    (good(namespace) && good(name)).then(|| fairway_model::ObjectName::new(namespace, name))
}
