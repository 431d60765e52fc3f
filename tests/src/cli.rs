//! The command line of `fairway-lab`.

pub(crate) mod tables;

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::api::Target;
use crate::apps::{self, App};
use crate::cluster::Options;
use crate::daemon;
use crate::demo;
use crate::lab::{Lab, Lifetime, list_labs};
use crate::manifest;
use crate::names::LabName;
use crate::objects::{Key, Kind};

/// A Kubernetes cluster on one machine: nodes, pods and an outside client are network namespaces,
/// pods are real processes, and Fairway's real binaries connect them.
#[derive(Debug, Parser)]
#[command(
    name = "fairway-lab",
    version,
    after_help = "Examples:\n  \
        fairway-lab up --nodes 3                        start a lab\n  \
        fairway-lab apply -f tests/examples/guestbook   run something in it\n  \
        fairway-lab get pods                            look at it\n  \
        fairway-lab exec POD -- curl -s 10.96.0.7       be a pod\n  \
        fairway-lab exec --client -- curl -s 192.168.240.11:30080   be outside\n  \
        fairway-lab exec --node node1 -- ip route       be a node\n  \
        fairway-lab down                                leave nothing\n  \
        fairway-lab demo                                see it all in a minute"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a lab; returns when everything is ready
    Up(Options),
    /// Stop a lab and leave nothing of it, whatever state it is in
    Down(Name),
    /// List the labs on this machine
    List,
    /// Add or change objects: ordinary Kubernetes YAML
    #[command(
        after_help = "Pod, ReplicationController, ReplicaSet, Deployment, DaemonSet and StatefulSet become pods.\n\
        What runs in them is decided by the image: redis* is redis-server, nginx* is nginx (if installed),\n\
        and any other image runs a test server on every declared containerPort (80 if none), which answers\n\
        /hostname, /clientip and /echo?msg= over HTTP, and hostname, clientip and echo TEXT over UDP.\n\n\
        Examples:\n  fairway-lab apply -f shop.yaml\n  cat *.yaml | fairway-lab apply -f -"
    )]
    Apply(Apply),
    /// Take objects away; a pod gets its time to end
    #[command(
        after_help = "Examples:\n  fairway-lab delete -f shop.yaml\n  fairway-lab delete pod web-7k2xp --force"
    )]
    Delete(Delete),
    /// Show objects
    #[command(
        after_help = "Examples:\n  fairway-lab get pods -A\n  fairway-lab get endpoints -n shop\n  fairway-lab get nodes -o json"
    )]
    Get(Get),
    /// Run a command in a pod, on a node or outside the cluster; its exit code is passed on
    #[command(
        after_help = "Examples:\n  fairway-lab exec -n shop web-7k2xp -- curl -s 10.96.0.7\n  fairway-lab exec --node node1 -- ip route\n  fairway-lab exec --client -- curl -s 192.168.240.11:30080"
    )]
    Exec(Exec),
    /// Change the number of replicas of a workload: rc/frontend, deployment/web
    Scale(Scale),
    /// Print what a pod, a node's agent or gateway, or the control plane has printed
    Logs(Logs),
    /// End a node's agent; it is started again, as a service manager would
    RestartAgent(RestartAgent),
    /// Start a lab with a small application, and watch it being asked, changed and hurt
    Demo(demo::Options),
    /// Owns a lab; started by `up`
    #[command(hide = true)]
    Daemon(Daemon),
    /// Programs that run inside a lab
    #[command(hide = true, subcommand)]
    App(App),
}

#[derive(Debug, Args)]
struct Name {
    /// Which lab
    #[arg(long = "name", value_name = "NAME", default_value = "lab", env = "FAIRWAY_LAB_NAME")]
    lab: LabName,
}

#[derive(Debug, Args)]
struct Apply {
    #[command(flatten)]
    name: Name,
    /// A file, a folder, or - for standard input
    #[arg(short, long = "filename", required = true)]
    file: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct Delete {
    #[command(flatten)]
    name: Name,
    /// A file or folder whose objects shall go
    #[arg(short, long = "filename", conflicts_with_all = ["kind", "objects"])]
    file: Vec<PathBuf>,
    /// Kind of the objects
    #[arg(ignore_case = true, requires = "objects", required_unless_present = "file")]
    kind: Option<Kind>,
    /// Their names
    objects: Vec<String>,
    /// Their namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Kill pods at once
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Get {
    #[command(flatten)]
    name: Name,
    /// What to show
    what: What,
    /// Of which namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    #[value(alias = "pod", alias = "po")]
    Pods,
    #[value(alias = "service", alias = "svc")]
    Services,
    #[value(alias = "ep")]
    Endpoints,
    #[value(alias = "node", alias = "no")]
    Nodes,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
struct Exec {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    place: ExecPlace,
    /// The command and its arguments, after --
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct ExecPlace {
    /// In this pod
    #[arg(required_unless_present_any = ["node", "client"])]
    pod: Option<String>,
    /// The pod's namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// On this node
    #[arg(long, value_name = "NODE", conflicts_with = "pod")]
    node: Option<String>,
    /// Outside the cluster
    #[arg(long, conflicts_with_all = ["pod", "node"])]
    client: bool,
}

#[derive(Debug, Args)]
struct Scale {
    #[command(flatten)]
    name: Name,
    /// KIND/NAME
    workload: String,
    /// How many
    #[arg(long)]
    replicas: u32,
    /// The workload's namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

#[derive(Debug, Args)]
struct Logs {
    #[command(flatten)]
    name: Name,
    /// A pod
    #[arg(required_unless_present_any = ["node", "gateway", "controlplane", "daemon"])]
    pod: Option<String>,
    /// The pod's namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The agent of this node
    #[arg(long, value_name = "NODE", conflicts_with = "pod")]
    node: Option<String>,
    /// The gateway of this node
    #[arg(long, value_name = "NODE", conflicts_with_all = ["pod", "node"])]
    gateway: Option<String>,
    /// The control plane
    #[arg(long, conflicts_with_all = ["pod", "node", "gateway"])]
    controlplane: bool,
    /// The lab itself: what its controllers and kubelet did
    #[arg(long, conflicts_with_all = ["pod", "node", "gateway", "controlplane"])]
    daemon: bool,
}

#[derive(Debug, Args)]
struct RestartAgent {
    #[command(flatten)]
    name: Name,
    /// The node
    node: String,
    /// With SIGKILL instead of SIGTERM
    #[arg(long)]
    kill: bool,
}

#[derive(Debug, Args)]
struct Daemon {
    /// The lab's options as JSON
    #[arg(long)]
    options: String,
    /// End with standard input
    #[arg(long)]
    tied: bool,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.verb {
        // Reports to whoever started it.
        Verb::Daemon(daemon) => match serde_json::from_str(&daemon.options) {
            Ok(options) => return daemon::run(options, daemon.tied),
            Err(error) => Err(error).context("--options"),
        },
        verb => run(verb),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fairway-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::App(app) => return apps::run(app),
        Verb::List => return print(&tables::labs(&list_labs()?)),
        _ => {}
    }
    if !rustix::process::geteuid().is_root() {
        bail!("a lab needs root: it makes network namespaces and loads eBPF programs; try sudo");
    }
    match verb {
        Verb::Up(options) => up(options),
        Verb::Down(name) => down(&name.lab),
        Verb::Apply(apply) => {
            let manifests = manifest::read(&apply.file)?;
            say(Lab::connect(&apply.name.lab)?.apply_manifests(manifests)?)
        }
        Verb::Delete(delete) => {
            let keys = match delete.kind {
                None => manifest::read(&delete.file)?.keys(),
                Some(kind) => {
                    let key = |name: &String| Key::new(kind, &delete.namespace, name);
                    delete.objects.iter().map(key).collect()
                }
            };
            say(Lab::connect(&delete.name.lab)?.delete(keys, delete.force)?)
        }
        Verb::Get(get) => show(&get),
        Verb::Exec(exec) => execute(exec),
        Verb::Scale(scale) => {
            let key = parse_workload(&scale.workload, &scale.namespace)?;
            say(Lab::connect(&scale.name.lab)?.scale(key, scale.replicas)?)
        }
        Verb::Logs(logs) => {
            let target = match (logs.pod, logs.node, logs.gateway) {
                (Some(name), ..) => Target::Pod { namespace: logs.namespace, name },
                (None, Some(node), _) => Target::Node { node },
                (None, None, Some(node)) => Target::Gateway { node },
                (None, None, None) if logs.controlplane => Target::Controlplane,
                (None, None, None) => Target::Daemon,
            };
            print(&Lab::connect(&logs.name.lab)?.logs(target)?)
        }
        Verb::RestartAgent(restart) => {
            let lab = Lab::connect(&restart.name.lab)?;
            say(lab.restart_agent(&restart.node, restart.kill)?)
        }
        Verb::Demo(options) => demo::run(options),
        Verb::List | Verb::App(_) | Verb::Daemon(_) => Ok(()), // above
    }
}

fn up(options: Options) -> Result<()> {
    // Read first: a mistake in it shall not cost a lab.
    let manifests = match &options.manifests {
        Some(path) => Some(manifest::read(std::slice::from_ref(path))?),
        None => None,
    };
    let lab = Lab::up_by_self(options, Lifetime::Endless, |what| eprintln!("starting: {what}"))?;
    if let Some(manifests) = manifests {
        say(lab.apply_manifests(manifests)?)?;
    }
    let name = lab.name();
    eprintln!(
        "lab {name} is ready; `fairway-lab get nodes --name {name}` shows it, `fairway-lab down --name {name}` stops it"
    );
    Ok(())
}

fn down(name: &LabName) -> Result<()> {
    if Lab::down(name)? {
        eprintln!("lab {name} is down");
    } else {
        eprintln!("no lab {name}: nothing to do");
    }
    Ok(())
}

fn show(get: &Get) -> Result<()> {
    let lab = Lab::connect(&get.name.lab)?;
    let is_shown = |namespace: &str| get.all_namespaces || namespace == get.namespace;
    match (get.what, get.output) {
        (What::Pods, format) => {
            let mut pods = lab.list(Kind::Pod)?;
            pods.retain(|pod| pod["metadata"]["namespace"].as_str().is_some_and(is_shown));
            match format {
                Format::Table => print(&tables::pods(&pods)),
                Format::Json => {
                    print_json(&json!({"kind": "List", "apiVersion": "v1", "items": pods}))
                }
            }
        }
        (What::Services, format) => {
            let services: Vec<_> = lab
                .model()?
                .services
                .values()
                .filter(|service| is_shown(&service.name.namespace))
                .cloned()
                .collect();
            match format {
                Format::Table => print(&tables::services(&services)),
                Format::Json => print_json(&json!(services)),
            }
        }
        (What::Endpoints, format) => {
            let endpoints: Vec<_> = lab
                .model()?
                .endpoints
                .values()
                .filter(|endpoints| is_shown(&endpoints.service.namespace))
                .cloned()
                .collect();
            match format {
                Format::Table => print(&tables::endpoints(&endpoints)),
                Format::Json => print_json(&json!(endpoints)),
            }
        }
        (What::Nodes, Format::Table) => print(&tables::nodes(&lab.nodes()?)),
        (What::Nodes, Format::Json) => print_json(&json!(lab.nodes()?)),
    }
}

/// Becomes the command: standard streams, signals and exit code are then its own.
fn execute(exec: Exec) -> Result<()> {
    let target = match (exec.place.pod, exec.place.node) {
        (Some(name), _) => Target::Pod { namespace: exec.place.namespace, name },
        (None, Some(node)) => Target::Node { node },
        (None, None) => Target::Client,
    };
    let (program, arguments) = exec.command.split_first().context("which command?")?;
    let mut command: Command = Lab::connect(&exec.name.lab)?.command(target, program)?;
    let error = command.args(arguments).exec();
    Err(error).with_context(|| format!("run {program}"))
}

fn parse_workload(text: &str, namespace: &str) -> Result<Key> {
    let about = || format!("{text:?}: say KIND/NAME, such as deployment/web");
    let (kind, name) = text.split_once('/').with_context(about)?;
    let kind =
        Kind::from_str(kind, true).map_err(|error| anyhow::anyhow!(error)).with_context(about)?;
    Ok(Key::new(kind, namespace, name))
}

fn say(lines: Vec<String>) -> Result<()> {
    print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

fn print_json(value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("encode the answer")?;
    print(&format!("{text}\n"))
}

/// A reader that has seen enough, such as `head`, is no error.
fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn workloads_by_kind_and_name() {
        let key = parse_workload("rc/frontend", "default").unwrap();
        assert_eq!(key.to_string(), "ReplicationController default/frontend");
        for bad in ["frontend", "thing/frontend"] {
            assert!(parse_workload(bad, "default").unwrap_err().to_string().contains("KIND/NAME"));
        }
    }
}
