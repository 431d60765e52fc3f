//! The gateway's command.

use std::fmt::Display;
use std::future::pending;
use std::io::{ErrorKind, IsTerminal as _, Write as _, stderr, stdout};
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use fairway_controlplane::manifests;
use fairway_ingress::gateway::Gateway;
use fairway_ingress::inspect;
use fairway_ingress::options::{Cli, Run, Verb};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use service::Successor;

mod service;

/// Whoever takes over has to be told by then what to serve.
const IN_STEP: Duration = Duration::from_secs(60);

/// Serving what is said, until there is nobody to say anything.
type Following<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

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
    let mut ends = Ends::hear()?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Nobody reads private keys out of a core.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot do without cores")?;
    // A connection to a client and one to a backend take two descriptors; service managers give 1,024.
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        warn!(%error, "cannot have as many descriptors as it may have");
    }
    let given = options.gateway();
    if most.is_some_and(|most| most < given.descriptors()) {
        warn!(
            most,
            wanted = given.descriptors(),
            "it may have fewer descriptors than --connections may take: when they are used up, clients wait and \
             backends cannot be connected to"
        );
    }
    let gateway = Gateway::start(&given).await?;
    info!(
        http = %gateway.http, https = %gateway.https, admin = %gateway.admin,
        "the gateway runs, and serves as soon as it knows what"
    );
    service::notify("READY=1");
    let mut successor = Successor::default();
    let mut following: Following<'_> = Box::pin(follow(&gateway, &options));
    let (wait, patience) = options.drain();
    // When it closes its ports, once it is told to stop. Until then another one may take over.
    let mut closes = None;
    let handed = loop {
        let asked = tokio::select! {
            ended = following.as_mut() => {
                if closes.is_none() {
                    return ended;
                }
                following = Box::pin(pending());
                continue;
            }
            asked = gateway.asked() => asked,
            _ = hangup.recv(), if closes.is_none() => {
                successor.start();
                continue;
            }
            () = ends.told() => match closes {
                None => {
                    closes = Some(leave(&gateway, wait));
                    continue;
                }
                // Who asks twice means it.
                Some(_) => return Ok(()),
            },
            () = until(closes) => break None,
        };
        // The folder for what survives is one process's at a time, where it is read from manifests.
        let apart = options.manifests.is_some();
        if apart {
            following = Box::pin(pending());
        }
        tokio::select! {
            ended = following.as_mut(), if closes.is_none() => return ended,
            given = gateway.hand_over(asked) => match given {
                Ok(pid) => break Some(pid),
                Err(error) => {
                    warn!("goes on: {error:#}");
                    if apart {
                        following = Box::pin(follow(&gateway, &options));
                    }
                }
            },
            // The other one goes on by itself.
            () = ends.told() => match closes {
                None => closes = Some(leave(&gateway, wait)),
                Some(_) => return Ok(()),
            },
            () = until(closes) => break None,
        }
    };
    if handed.is_some() {
        // The folder for what survives is the other one's.
        following = Box::pin(pending());
    }
    let drained = async {
        match handed {
            Some(pid) => {
                info!("another gateway has taken over");
                if let Some(pid) = pid {
                    service::notify(&format!("MAINPID={pid}"));
                }
                gateway.give_way(patience).await;
            }
            None => gateway.drain(patience).await,
        }
    };
    let mut drained = pin!(drained);
    loop {
        tokio::select! {
            () = drained.as_mut() => return Ok(()),
            // Until then requests on connections that are open go where they belong by now.
            _ = following.as_mut() => following = Box::pin(pending()),
            () = ends.told() => match closes {
                // Whoever ends all gateways of a service means this one, too, which is about to end.
                None => {
                    info!("ends with what is under way, or when it is told once more");
                    closes = Some(Instant::now());
                }
                Some(_) => return Ok(()),
            },
        }
    }
}

/// From now on it is not ready; answers when it closes its ports.
fn leave(gateway: &Gateway, wait: Duration) -> Instant {
    info!("about to stop: not ready from now on");
    gateway.leave();
    Instant::now() + wait
}

/// Waits for that moment, if there is one.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// The signals that say that it is to end.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn hear() -> Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves what the feed or a folder says, for as long as that says anything.
async fn follow(gateway: &Gateway, options: &Run) -> Result<()> {
    if let Some(dir) = options.manifests.clone() {
        let source = manifests::start(manifests::Options {
            dir,
            state_dir: options.state_dir.clone(),
            service_cidrs: vec![manifests::DEFAULT_SERVICE_CIDR.parse()?],
            node_port_range: manifests::DEFAULT_NODE_PORTS,
            local: None,
            resolver: None,
        })?;
        gateway.follow(source.model.clone(), async {}, |_| {}).await?;
    } else {
        let follower = options.follow()?;
        if gateway.succeeds() {
            // What is on the disk is without Secrets, maybe; who serves now has them.
            let mut status = follower.status.clone();
            let in_step = timeout(IN_STEP, status.wait_for(|status| status.connected)).await;
            let in_step = in_step.is_ok_and(|heard| heard.is_ok());
            anyhow::ensure!(in_step, "no control plane answers: the gateway that runs goes on");
        }
        let mut status = follower.status.clone();
        // It fails where nobody will ever say so.
        let told = async { _ = status.wait_for(|status| status.revision.is_some()).await };
        let applied = |model: &Arc<_>| follower.ack(model);
        gateway.follow(follower.model.clone(), told, applied).await?;
    }
    bail!("nobody says any more what to serve")
}

/// Prints what there is to say. A reader who has heard enough, as `head` has, is no failure.
fn say(text: &impl Display) -> Result<()> {
    match writeln!(stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("print"),
        _ => Ok(()),
    }
}
