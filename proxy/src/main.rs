//! The node agent's command.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use fairway_proxy::inspect::{conntrack, endpoints, explain, monitor, services, status};
use fairway_proxy::options::{Cli, Options, Verb};
use fairway_proxy::{agent, check, cleanup, dns, install, list, uninstall};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let filter = EnvFilter::try_from_env("FAIRWAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
    let result = Cli::read(&matches).and_then(|cli| match cli.verb {
        Some(Verb::Install(options)) => install::run(&options).and_then(|said| say(&said, true)),
        Some(Verb::Check(options)) => {
            check::run(&options).and_then(|(said, good)| say(&said, good))
        }
        Some(Verb::Cleanup(options)) => {
            cleanup::run(&options).and_then(|report| say(&report, report.is_complete()))
        }
        Some(Verb::Uninstall(options)) => uninstall(&options),
        Some(Verb::Pods(options)) => list::run(&options).and_then(|pods| say(&pods, true)),
        Some(Verb::Dns(verb)) => dns::query::run(&verb).and_then(|said| say(&said, true)),
        Some(Verb::Status(options)) => {
            status::run(&options).and_then(|(said, good)| say(&said, good))
        }
        Some(Verb::Services(options)) => services::run(&options).and_then(|said| say(&said, true)),
        Some(Verb::Endpoints(options)) => {
            endpoints::run(&options).and_then(|said| say(&said, true))
        }
        Some(Verb::Conntrack(verb)) => conntrack::run(&verb).and_then(|said| say(&said, true)),
        Some(Verb::Explain(options)) => explain::run(&options).and_then(|said| say(&said, true)),
        Some(Verb::Monitor(options)) => monitor::run(&options).map(|()| ExitCode::SUCCESS),
        None if cli.agent.cleanup => uninstall(&cli.agent.uninstall()),
        None => run(cli.agent),
    });
    result.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}

fn run(options: Options) -> Result<ExitCode> {
    // The keys of its certificate and of its tunnels are in its memory: no core may show them.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot do without cores")?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(agent::run(options));
    // A self-test may be waiting for a peer; whoever wants the agent to end does not wait for it.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

fn uninstall(options: &uninstall::Options) -> Result<ExitCode> {
    let report = uninstall::run(options)?;
    say(&report, report.is_complete())
}

/// Prints what a verb has to say; the exit code is whether that is good. A reader who has heard
/// enough, as `head` has, is no failure.
fn say(text: &impl Display, good: bool) -> Result<ExitCode> {
    match writeln!(stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("print"),
        _ => Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
    }
}
