//! `fairway-proxy pods`: the pods that the agent has in force.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use fairway_cni_protocol::{Endpoint, Registered, Request, Response, encode};

use crate::pods::describe;

/// An agent that takes longer for anything is not listened to any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `fairway-proxy pods` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Print JSON, with all that the agent knows of each pod
    #[arg(long)]
    pub json: bool,

    /// As given to the agent
    #[arg(long, value_name = "PATH", default_value = fairway_cni_protocol::DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// Asks the agent; what to print.
pub fn run(options: &Options) -> Result<String> {
    let about = || format!("ask the agent on {}", options.socket.display());
    let pods = ask(options).with_context(about)?;
    if options.json {
        return serde_json::to_string_pretty(&pods).context("encode the pods");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    Ok(table(&pods, now))
}

fn ask(options: &Options) -> Result<Vec<Registered>> {
    let mut stream =
        UnixStream::connect(&options.socket).context("is it running, and are you root?")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&encode(&Request::ListEndpoints)?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer).context("it gave an answer that is none")? {
        Response::Endpoints { endpoints } => Ok(endpoints),
        Response::Error(refusal) => bail!("it refuses: {}", refusal.message),
        _ => bail!("it answered another question"),
    }
}

/// One line a pod, in columns, ordered by what a person calls the pods.
fn table(pods: &[Registered], now: u64) -> String {
    let mut rows: Vec<[String; 5]> = pods.iter().map(|pod| row(pod, now)).collect();
    rows.sort();
    rows.insert(0, ["POD", "ADDRESSES", "INTERFACE", "HOST PORTS", "AGE"].map(str::to_owned));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{cell:width$}   ");
        }
        text.push_str(&row[4]);
        text.push('\n');
    }
    text.trim_end().to_owned()
}

fn row(pod: &Registered, now: u64) -> [String; 5] {
    let Endpoint { addresses, host_interface, host_ports, .. } = &pod.endpoint;
    let ports = host_ports.iter().map(|port| format!("{port}->{}", port.container_port));
    let ports: Vec<String> = ports.collect();
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    [
        // What the runtime said must not steer the reader's terminal.
        describe(&pod.endpoint).escape_default().to_string(),
        addresses.join(","),
        host_interface.escape_default().to_string(),
        if ports.is_empty() { "-".to_owned() } else { ports.join(",") },
        age(now.saturating_sub(pod.since)),
    ]
}

/// Its largest unit alone, as kubectl prints ages.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use fairway_cni_protocol::{Bandwidth, HostPort, Protocol};

    use super::*;

    #[test]
    fn pods_are_shown_in_columns() {
        let pod = |name: &str, since: u64| Registered {
            since,
            endpoint: Endpoint {
                container_id: "0123".to_owned(),
                interface: "eth0".to_owned(),
                pod_namespace: "shop".to_owned(),
                pod_name: name.to_owned(),
                pod_uid: "u1".to_owned(),
                host_interface: "fw0".to_owned(),
                host_ifindex: 7,
                host_mac: [2, 0, 0, 0, 0, 1],
                pod_mac: [2, 0, 0, 0, 0, 2],
                addresses: vec!["10.1.0.2".parse().expect("an address")],
                host_ports: Vec::new(),
                bandwidth: Bandwidth::default(),
                netns_cookie: None,
                netns: String::new(),
            },
        };
        let mut web = pod("web\u{1b}[0m", 1000);
        web.endpoint.addresses.push("fd00:1::2".parse().expect("an address"));
        web.endpoint.host_ports.push(HostPort {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
        });
        let mut nameless = pod("", 990);
        nameless.endpoint.pod_namespace.clear();
        let shown = table(&[web, pod("cart", 0), nameless], 173_000);
        let expected = "\
POD                   ADDRESSES            INTERFACE   HOST PORTS       AGE
container 0123 eth0   10.1.0.2             fw0         -                47h
shop/cart             10.1.0.2             fw0         -                2d
shop/web\\u{1b}[0m     10.1.0.2,fd00:1::2   fw0         *:8080/tcp->80   47h";
        assert_eq!(shown, expected);
        assert_eq!(table(&[], 0), "POD   ADDRESSES   INTERFACE   HOST PORTS   AGE");
    }
}
