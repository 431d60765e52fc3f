//! Programs that run inside a lab: what pods serve, and what asks them.

mod client;
mod drain;
mod guestbook;
pub mod load;
pub mod lookups;
mod netexec;
mod query;
pub mod reach;
pub mod sctp;
pub mod stream;
mod udp;

use anyhow::{Context, Result};
use clap::Subcommand;

/// Hidden subcommands of `fairway-lab`.
#[derive(Debug, Subcommand)]
pub enum App {
    /// The test server: the HTTP and UDP verbs of the Kubernetes end-to-end tests
    Netexec(netexec::Options),
    /// The guestbook's frontend
    Guestbook(guestbook::Options),
    /// Ask a UDP server once and print what it answers
    Udp(udp::Options),
    /// Ask an SCTP server and print what it answers
    Sctp(sctp::Options),
    /// Ask a DNS server for a name over and over
    Lookups(lookups::Options),
    /// Ask a URL over and over, each time on a new connection, never a second time
    Load(load::Options),
    /// Try to reach many ports at once, and say which are reached
    Reach(reach::Options),
    /// Ask a test server over and over on one connection
    Stream(stream::Options),
}

/// Runs one of them to its end.
pub fn run(app: App) -> Result<()> {
    match app {
        App::Netexec(options) => runtime()?.block_on(netexec::run(options)),
        App::Guestbook(options) => runtime()?.block_on(guestbook::run(options)),
        App::Udp(options) => udp::run(&options),
        App::Sctp(options) => sctp::run(&options),
        App::Lookups(options) => lookups::run(&options),
        App::Load(options) => load::run(&options),
        App::Reach(options) => reach::run(&options),
        App::Stream(options) => stream::run(&options),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}
