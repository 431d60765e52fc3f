//! Benchmarks: what Fairway costs, side by side with what it replaces.
//!
//! ```text
//! services, cni, packet, scale, churn, policy, feed, kubernetes, ingress, dns
//!   │               one module a benchmark: which cases, what is measured, which rows come out
//!   │
//!   ├─ bed      nodes and pods of a lab, without its daemon; swept however the run ends
//!   ├─ control  the control plane's end of the feed, in this process
//!   ├─ tables   the agent's tables and memory, as the kernel shows them
//!   ├─ cost     what processes take of processors and memory
//!   ├─ worker   client and server inside pods, on one CPU
//!   ├─ stats    medians, percentiles, ratios of rounds
//!   └─ report   rows as JSON, tables for people
//! ```
//!
//! Machines are shared and their speed changes from moment to moment, so a figure alone says little.
//! All cases of a benchmark are therefore built first and then measured in turns, round by round, and
//! each measurement has one of the baseline beside it. A ratio is the median of these pairs'.

mod agent;
mod ahead;
mod bed;
mod churn;
mod cni;
mod control;
mod cost;
mod dns;
mod feed;
mod ingress;
mod kubernetes;
mod packet;
mod policy;
mod report;
mod scale;
mod services;
mod stats;
mod tables;
mod worker;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

/// What Fairway costs, side by side with what it replaces. Runs in network namespaces of its own.
#[derive(Debug, Parser)]
#[command(
    name = "fairway-bench",
    version,
    after_help = "Examples:\n  \
        fairway-bench services                          new connections to a Service\n  \
        fairway-bench services --json services.json     the same, as rows for a program\n  \
        fairway-bench services --services 1,500 --cases nftables   only this, besides `direct`\n  \
        fairway-bench cni                               the CNI plugin, and what it connects\n  \
        fairway-bench cni --parts calls --pods 50       only ADD and DEL\n  \
        fairway-bench packet                            each way of a packet through each program\n  \
        fairway-bench packet --record                   the same, to be compared with later\n  \
        fairway-bench scale                             many Services: starting, changing, memory\n  \
        fairway-bench churn                             endpoints that change all the time, under load\n  \
        fairway-bench policy                            rules of policies: what they cost, and change\n  \
        fairway-bench feed                              the control plane with up to a thousand subscribers\n  \
        fairway-bench kubernetes                        a control plane of a cluster with 150,000 pods\n  \
        fairway-bench ingress                           the gateway beside nginx, HAProxy and Envoy\n  \
        fairway-bench ingress --parts speed --ways http2 --proxies fairway,nginx   only this\n  \
        fairway-bench dns                               service DNS beside Knot, Unbound and dnsmasq"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// New connections from a pod to a Service, against plain routing, iptables and nftables
    Services(services::Options),
    /// The CNI plugin's calls against the reference plugins', and traffic between pods against the
    /// kernel's bridge, routes and VXLAN
    Cni(cni::Options),
    /// What each program takes for a packet, against one that does nothing
    Packet(packet::Options),
    /// An agent with many Services: its start, a change, its memory, against nft
    Scale(scale::Options),
    /// Endpoints that change a thousand times a second under load, while the agent is killed
    Churn(churn::Options),
    /// Policies of many rules against the same in iptables, ipset and nftables, and none; a change, memory
    Policy(policy::Options),
    /// The control plane's end of a large cluster: memory, time, bytes and the delay of a change, by the
    /// number of subscribers
    Feed(feed::Options),
    /// Its control plane
    #[command(hide = true)]
    FeedServer(feed::ServerOptions),
    /// The gateway against nginx, HAProxy and Envoy: answers for a second of a processor and how long they take,
    /// memory, changes
    Ingress(ingress::Options),
    /// Service DNS against Knot, Unbound and dnsmasq: answers for a second of a processor, memory, search paths,
    /// changes
    Dns(dns::Options),
    /// Its server
    #[command(hide = true)]
    DnsServer(dns::ServerOptions),
    /// Its client
    #[command(hide = true)]
    DnsClient(dns::ClientOptions),
    /// A control plane that reads a large cluster from an API server: time to a first model, memory
    Kubernetes(kubernetes::Options),
    /// What runs inside the pods
    #[command(hide = true, subcommand)]
    Worker(worker::Role),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let outcome = run(Cli::parse().verb);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway-bench: {error:#}");
            if error.is::<bed::Interrupted>() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    // These stay on the loopback address.
    let is_anybodys = matches!(
        verb,
        Verb::DnsClient(_)
            | Verb::DnsServer(_)
            | Verb::Feed(_)
            | Verb::FeedServer(_)
            | Verb::Kubernetes(_)
            | Verb::Worker(_)
    );
    if !is_anybodys && !rustix::process::geteuid().is_root() {
        bail!("a benchmark needs root: it makes network namespaces and loads rules; try sudo");
    }
    match verb {
        Verb::Services(options) => services::run(&options),
        Verb::Cni(options) => cni::run(&options),
        Verb::Packet(options) => packet::run(&options),
        Verb::Scale(options) => scale::run(&options),
        Verb::Churn(options) => churn::run(&options),
        Verb::Policy(options) => policy::run(&options),
        Verb::Feed(options) => feed::run(&options),
        Verb::FeedServer(options) => feed::serve(&options),
        Verb::Ingress(options) => ingress::run(&options),
        Verb::Dns(options) => dns::run(&options),
        Verb::DnsClient(options) => dns::ask(&options),
        Verb::DnsServer(options) => dns::serve(&options),
        Verb::Kubernetes(options) => kubernetes::run(&options),
        Verb::Worker(role) => role.run(),
    }
}

/// Tells whoever waits what happens now. The table alone goes to standard output.
fn progress(what: &str) {
    eprintln!("{what}");
}
