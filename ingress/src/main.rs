//! The gateway's command.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal as _, Write as _, stderr, stdout};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use fairway_controlplane::manifests;
use fairway_ingress::gateway::Gateway;
use fairway_ingress::inspect;
use fairway_ingress::options::{Cli, Run, Verb};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("FAIRWAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
    let done = match cli.verb {
        Verb::Run(options) => start(run(*options)),
        Verb::Routes(ask) => start(inspect::routes(ask)).and_then(|said| say(&said)),
        Verb::Explain(explain) => start(inspect::explain(explain)).and_then(|said| say(&said)),
        Verb::Tls(verb) => start(inspect::tls(verb)).and_then(|said| say(&said)),
        Verb::Certs(ask) => start(inspect::certificates(ask)).and_then(|said| say(&said)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread for all that is not serving: the feed, and who asks how this fares.
fn start<T>(doing: impl Future<Output = Result<T>>) -> Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().context("start the runtime")?;
    let done = runtime.block_on(doing);
    runtime.shutdown_background();
    done
}

async fn run(options: Run) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Nobody reads private keys out of a core.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot do without cores")?;
    // A connection to a client and one to a backend take two descriptors; service managers give 1,024.
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        warn!(%error, "cannot have as many descriptors as it may have");
    }
    let gateway = Gateway::start(&options.gateway()).await?;
    info!(
        http = %gateway.http, https = %gateway.https, admin = %gateway.admin,
        "the gateway runs, and serves as soon as it knows what"
    );
    let following = async {
        if let Some(dir) = options.manifests.clone() {
            let source = manifests::start(manifests::Options {
                dir,
                state_dir: options.state_dir.clone(),
                service_cidrs: vec![manifests::DEFAULT_SERVICE_CIDR.parse()?],
                node_port_range: manifests::DEFAULT_NODE_PORTS,
                local: None,
            })?;
            gateway.follow(source.model.clone(), |_| {}).await;
        } else {
            let follower = options.follow()?;
            gateway.follow(follower.model.clone(), |model: &Arc<_>| follower.ack(model)).await;
        }
        bail!("nobody says any more what to serve")
    };
    tokio::select! {
        ended = following => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let (wait, patience) = options.drain();
    info!("about to stop: not ready from now on");
    tokio::select! {
        () = gateway.drain(wait, patience) => {}
        // Who asks twice means it.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Prints what there is to say. A reader who has heard enough, as `head` has, is no failure.
fn say(text: &impl Display) -> Result<()> {
    match writeln!(stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("print"),
        _ => Ok(()),
    }
}
