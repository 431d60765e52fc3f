//! `fairway-controlplane`: reads a folder of manifests, where it gives out addresses and node ports, or
//! follows an API server, and serves the resulting model to the nodes.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use fairway_controlplane::explain::{Cluster, Destination, Who, run_cases};
use fairway_controlplane::facts;
use fairway_controlplane::ingress;
use fairway_controlplane::load_balancer::Classes;
use fairway_controlplane::manifests::{self, DEFAULT_NODE_PORTS, DEFAULT_SERVICE_CIDR, Severity};
use fairway_controlplane::publish::{Gateway, LabelledPods};
use fairway_feed::ModelReceiver;
use fairway_kubernetes::ca::{self, ClusterCa};
use fairway_kubernetes::conditions::{self, Teller};
use fairway_kubernetes::connect::Connect;
use fairway_kubernetes::events::{self, Herald};
use fairway_kubernetes::source;
use fairway_kubernetes::status::{self, LeaseOptions, NodeRanges, Writer};
use fairway_kubernetes::vouch::{Accounts, GatewayAccount, Pods, ServiceAccount};
use fairway_model::ObjectName;
use ipnet::IpNet;
use kube::Client;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

mod serving;

/// Turns Kubernetes objects into the network that Fairway's nodes put in force.
#[derive(Parser)]
#[command(
    name = "fairway-controlplane",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  fairway-controlplane run --kubernetes --listen 192.0.2.10:9443
      In a pod: follow the cluster's API server, and write status as one of several replicas.
  fairway-controlplane run --kubernetes --kubeconfig ~/.kube/config --context shop
      The same from anywhere.
  fairway-controlplane run --manifests ./cluster
      Serve the folder to nodes on this machine, and follow its changes.
  fairway-controlplane run --manifests ./cluster --listen 192.0.2.10:9443 \\
      --service-cidr 10.96.0.0/12 --service-cidr fd00:96::/112
      Serve it to other machines, dual stack: over TLS, with a CA of its own in the state folder.
  fairway-controlplane token create --node worker-1 --ttl 30m
      Make a token with which that node gets its certificate; prints options of fairway-proxy.
  fairway-controlplane certificate create operator/me --out ./me
      Make a certificate with which to look at what is served (fairway-controlplane dump).
  fairway-controlplane check -f ./cluster
      Name every mistake in the folder, with file, line and field; also selectors and ports that no pod
      has, fields that nobody knows, and certificates of Ingresses that expire or do not fit.
  fairway-controlplane explain --manifests ./cluster pod/shop/web pod/shop/db:5432
      Tell what policies make of a connection, and by which rule.
  fairway-controlplane policy test -f cases.yaml --manifests ./cluster
      Hold policies against what is to be allowed and what denied.
  curl http://127.0.0.1:9443/v1/model
      Look at what is served; /v1/nodes shows how far each node is.

Annotations:
  fairway.dev/balancing: random | round-robin | least-connections | maglev
      On a Service: how its endpoints are chosen (random).
  fairway.dev/weights: pod/NAME=WEIGHT,node/NAME=WEIGHT,zone/NAME=WEIGHT
      On a Service: which of its endpoints get more new connections than others (1), or none (0).
  fairway.dev/slow-start: TIME
      On a Service: for how long, such as 30s or 5m, the share of an endpoint that is new grows.
  fairway.dev/forwarding: snat | keep | dsr
      On a Service: whether an endpoint on another node than the one that was asked sees a client from
      outside as that node (snat) or, through a tunnel, as itself (keep); or sees it as itself, and
      has its own node answer the client (dsr).
  fairway.dev/socket-balancing: \"on\" | \"off\"
      On a Pod, or on a Namespace for its pods: whether a connection to a Service is given its
      endpoint at the socket (on) or packet by packet (off).
  fairway.dev/wireguard-public-key: KEY
      On a Node: what encrypts to it, instead of the key that it tells.
  fairway.dev/nginx-paths: \"true\" | \"false\"
      On an Ingress: whether paths are compared as ingress-nginx does it (true for its class alone).
  fairway.dev/gateway: NAME
      On an IngressClass: the gateways that serve its Ingresses (all).

FAIRWAY_LOG sets how much is logged: error, warn, info (default), debug, trace."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Read a cluster's objects, follow their changes and serve the nodes (what happens without a
    /// command, too)
    #[command(name = "run", alias = "serve")]
    Serve(Box<Serve>),
    /// Read manifests once and print everything that is wrong with them; exit code 1 if anything
    /// but warnings is
    Check(Check),
    /// Tell what policies make of a connection, by which rule, and which rules nearly match; needs no
    /// cluster, and nothing of a pod but its labels
    Explain(Explain),
    /// What is about policies alone
    #[command(subcommand)]
    Policy(PolicyCommand),
    #[command(flatten)]
    Feed(serving::Command),
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Hold policies against a list of what is to be allowed and what denied; exit code 1 if anything is
    /// otherwise
    Test(PolicyTest),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  fairway-controlplane explain --manifests ./cluster pod/shop/web pod/shop/db:5432
      What a pod may send to another, by TCP.
  fairway-controlplane explain --manifests ./cluster pod/web svc/kube-system/dns:53/udp
      To the endpoints of a Service; pod/web is one of namespace default.
  fairway-controlplane explain --manifests ./cluster 203.0.113.9 pod/shop/web:http
      What an address may send to a port with a name.
  fairway-controlplane explain --manifests ./cluster --json pod/web '[2001:db8::1]:443'
      All of it as JSON. An echo request is sent to :icmp.

Each end's own policies are asked. A rule is listed if it means the other end (PEER) or the port (PORT); it
matches if it means both.")]
struct Explain {
    #[command(flatten)]
    manifests: Manifests,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Who sends: pod/NAMESPACE/NAME, pod/NAME, node/NAME or an address
    #[arg(value_name = "SOURCE")]
    from: Who,
    /// Where to: pod/NAMESPACE/NAME, svc/NAMESPACE/NAME, node/NAME or an address, and :PORT[/PROTOCOL]
    #[arg(value_name = "DESTINATION")]
    to: Destination,
}

#[derive(Args)]
#[command(after_help = "\
Example of a file of cases:
  - {from: pod/shop/web, to: pod/shop/db, port: 5432, expect: allow}
  - {from: pod/lab/probe, to: svc/shop/web, port: http, protocol: TCP, expect: deny}
  - {from: pod/shop/db, to: 203.0.113.9, port: 53, protocol: UDP, expect: deny}
  - {from: pod/shop/web, to: pod/shop/db, protocol: ICMP, expect: deny}
Run with:
  fairway-controlplane policy test -f cases.yaml --manifests ./cluster")]
struct PolicyTest {
    /// File of cases; may be given several times
    #[arg(short = 'f', long = "file", value_name = "PATH", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    manifests: Manifests,
}

#[derive(Args)]
struct Manifests {
    /// File or folder of manifests; may be given several times
    #[arg(long, value_name = "DIR", required = true)]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    ranges: Ranges,
}

#[derive(Args)]
struct Serve {
    /// Folder of manifests: .yaml, .yml and .json, with all folders below it
    // Not `required`: clap would then ask for it beside `check`, too.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Address that the nodes connect to
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9443")]
    listen: SocketAddr,
    /// Folder that remembers which Service holds which address and node port, and what nodes said of
    /// themselves
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairway-controlplane")]
    state_dir: PathBuf,
    #[command(flatten)]
    feed: serving::Options,
    #[command(flatten)]
    ranges: Ranges,
    // Last, as its headings hold for whatever comes behind.
    #[command(flatten)]
    kubernetes: Kubernetes,
}

#[derive(Args)]
#[command(next_help_heading = "With --kubernetes")]
struct Kubernetes {
    /// Follow the cluster's API server instead of a folder; as the pod's service account unless
    /// --kubeconfig or --context says otherwise
    #[arg(long, help_heading = None::<&str>, conflicts_with = "manifests")]
    kubernetes: bool,
    /// File as kubectl reads it
    #[arg(long, value_name = "PATH", requires = "kubernetes", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// Context of that file, or of kubectl's own, instead of the current one
    #[arg(long, value_name = "NAME", requires = "kubernetes", conflicts_with = "manifests")]
    context: Option<String>,
    /// API server, such as https://192.0.2.10:6443, instead of the one that is configured; a pod's is an
    /// address of a Service, which leads nowhere before the network is there
    #[arg(long, value_name = "URL", requires = "kubernetes", conflicts_with = "manifests")]
    api_server: Option<String>,
    /// Namespace of the Lease by which replicas agree on who writes status, and of the feed's CA, if the
    /// cluster keeps it
    #[arg(long, value_name = "NAME", default_value = "kube-system")]
    lease_namespace: String,
    /// ServiceAccount of agents. They get their nodes' certificates for tokens of its pods (audience
    /// fairway-feed), and replicas have one CA, which the cluster keeps: Secret fairway-ca, and ConfigMap
    /// fairway-ca for agents
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        requires = "kubernetes",
        conflicts_with_all = ["manifests", "tls_ca"]
    )]
    agent_service_account: Option<ServiceAccount>,
    /// ServiceAccount of gateways, and the name that those have in common (by default the account's); may be
    /// given several times. They get certificates for tokens of its pods, as agents do
    #[arg(
        long,
        value_name = "NAMESPACE/NAME[=GROUP]",
        requires = "kubernetes",
        conflicts_with_all = ["manifests", "tls_ca"]
    )]
    gateway_service_account: Vec<GatewayAccount>,
    /// Range that nodes without a range of pods are given one from; once a family. Leave it out where
    /// the cluster gives nodes their ranges (kube-controller-manager --allocate-node-cidrs)
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        requires = "kubernetes",
        conflicts_with = "manifests"
    )]
    cluster_cidr: Vec<IpNet>,
    /// Prefix length of a node's range for IPv4
    #[arg(long, value_name = "LENGTH", default_value_t = 24)]
    node_cidr_mask_size: u8,
    /// Prefix length of a node's range for IPv6
    #[arg(long, value_name = "LENGTH", default_value_t = 64)]
    node_cidr_mask_size_ipv6: u8,
    /// Write flannel's annotations on nodes that have none, so that nodes that still run flannel reach
    /// their pods by VXLAN
    #[arg(long, requires = "kubernetes", conflicts_with = "manifests")]
    flannel_annotations: bool,
    #[command(flatten)]
    publish: Publish,
    #[command(flatten)]
    ingresses: Ingresses,
}

#[derive(Args)]
#[command(next_help_heading = "Ingresses, with --kubernetes")]
struct Ingresses {
    /// Controller whose IngressClasses are served beside fairway.dev/ingress, such as
    /// k8s.io/ingress-nginx; may be given several times. A folder of manifests is served with that one
    #[arg(long, value_name = "NAME", requires = "kubernetes", conflicts_with = "manifests")]
    ingress_controller: Vec<String>,
    /// Serve Ingresses without any class as well
    #[arg(long, requires = "kubernetes", conflicts_with = "manifests")]
    ingress_without_class: bool,
    /// ConfigMap with settings of gateways, under the names that ingress-nginx has for them. In a folder of
    /// manifests it is kube-system/fairway-gateway
    #[arg(
        long, value_name = "NAMESPACE/NAME", value_parser = object_name,
        requires = "kubernetes", conflicts_with = "manifests"
    )]
    gateway_config: Option<ObjectName>,
    /// ConfigMap with TCP ports that gateways pass on, as ingress-nginx has it. In a folder of manifests it is
    /// ingress-nginx/tcp-services
    #[arg(
        long, value_name = "NAMESPACE/NAME", value_parser = object_name,
        requires = "kubernetes", conflicts_with = "manifests"
    )]
    tcp_services_configmap: Option<ObjectName>,
    /// The same with UDP ports
    #[arg(
        long, value_name = "NAMESPACE/NAME", value_parser = object_name,
        requires = "kubernetes", conflicts_with = "manifests"
    )]
    udp_services_configmap: Option<ObjectName>,
}

impl Ingresses {
    fn settings(&self) -> ingress::Settings {
        ingress::Settings {
            controllers: self.ingress_controller.clone(),
            without_class: self.ingress_without_class,
            gateway: self.gateway_config.clone(),
            tcp_services: self.tcp_services_configmap.clone(),
            udp_services: self.udp_services_configmap.clone(),
        }
    }
}

#[derive(Args)]
#[command(next_help_heading = "Addresses of load balancers, with --kubernetes")]
struct Publish {
    /// Services with this spec.loadBalancerClass get addresses of IPAddressPools
    #[arg(long, value_name = "CLASS", default_value = "fairway.dev/load-balancer")]
    load_balancer_class: String,
    /// Whether Services without a class get them, too; false where somebody else gives them out
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    default_load_balancer: bool,
    /// Classes of Ingresses whose status says where they can be reached; without it, those of fairway.dev/ingress
    #[arg(long, value_name = "CLASS", value_delimiter = ',')]
    ingress_class: Vec<String>,
    /// Service in front of what serves Ingresses: its addresses are written in their status
    #[arg(
        long, value_name = "NAMESPACE/NAME", value_parser = object_name,
        requires = "kubernetes", conflicts_with = "manifests"
    )]
    publish_service: Option<ObjectName>,
    /// Address or host name to write there instead
    #[arg(
        long,
        value_name = "ADDRESS",
        value_delimiter = ',',
        requires = "kubernetes",
        conflicts_with_all = ["manifests", "publish_service"]
    )]
    publish_status_address: Vec<String>,
    /// Label of pods that serve Ingresses at ports of their nodes: those nodes' addresses are written there
    #[arg(
        long,
        value_name = "NAMESPACE/LABEL=VALUE",
        requires = "kubernetes",
        conflicts_with_all = ["manifests", "publish_service", "publish_status_address"]
    )]
    publish_pods: Option<LabelledPods>,
}

impl Publish {
    fn classes(&self) -> Classes {
        Classes { own: self.load_balancer_class.clone(), unset: self.default_load_balancer }
    }

    /// Where Ingresses can be reached, if that was said.
    fn gateway(&self) -> Option<Gateway> {
        let pods = self.publish_pods.clone();
        let said = self.publish_service.is_some() || !self.publish_status_address.is_empty();
        (said || pods.is_some()).then(|| Gateway {
            classes: self.ingress_class.clone(),
            addresses: self.publish_status_address.clone(),
            service: self.publish_service.clone(),
            pods,
        })
    }
}

#[derive(Args)]
struct Check {
    /// File or folder of manifests; may be given several times
    #[arg(
        short = 'f',
        long = "file",
        visible_alias = "manifests",
        value_name = "PATH",
        required = true,
        num_args = 1..
    )]
    files: Vec<PathBuf>,
    /// How to print what is wrong
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    ranges: Ranges,
}

#[derive(Args)]
struct Ranges {
    /// Range that ClusterIPs come from; once a family, the first family is the default. Services may
    /// ask for addresses of ServiceCIDR objects' ranges, too. With --kubernetes, only where the cluster has
    /// no ServiceCIDR objects [default for manifests: 10.96.0.0/12]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    service_cidr: Vec<IpNet>,
    /// Range that node ports come from
    #[arg(
        long, value_name = "FIRST-LAST", value_parser = port_range,
        default_value_t = PortRange(DEFAULT_NODE_PORTS)
    )]
    node_port_range: PortRange,
}

impl Ranges {
    /// The ranges that addresses are given out from.
    fn service_cidrs(&self) -> Vec<IpNet> {
        match self.service_cidr.is_empty() {
            true => vec![DEFAULT_SERVICE_CIDR.parse().expect("a range")],
            false => self.service_cidr.clone(),
        }
    }
}

#[derive(Clone)]
struct PortRange(RangeInclusive<u16>);

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    /// A line for each, as FILE:LINE: OBJECT: FIELD: what is wrong
    #[default]
    Text,
    /// A JSON array of objects with file, line, object, field, message and severity
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("FAIRWAY_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let done = match cli.command.unwrap_or_else(|| Command::Serve(Box::new(cli.serve))) {
        Command::Serve(args) => serve(*args),
        Command::Check(args) => check(&args),
        Command::Explain(args) => explain(&args),
        Command::Policy(PolicyCommand::Test(args)) => policy_test(&args),
        Command::Feed(command) => serving::run(command),
    };
    done.unwrap_or_else(|error| {
        // The only place where an error is printed, with all that led to it.
        eprintln!("fairway-controlplane: {error:#}");
        ExitCode::FAILURE
    })
}

fn serve(args: Serve) -> anyhow::Result<ExitCode> {
    if args.manifests.is_none() && !args.kubernetes.kubernetes {
        let message = "say what to serve: --manifests DIR or --kubernetes";
        Cli::command().error(ErrorKind::MissingRequiredArgument, message).exit();
    }
    // The keys of the CA and of its own certificate are in its memory: no core may show them.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot do without cores")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve_until_told(args))
}

async fn serve_until_told(args: Serve) -> anyhow::Result<ExitCode> {
    let (agents, gateways) =
        (&args.kubernetes.agent_service_account, &args.kubernetes.gateway_service_account);
    let accounts = Accounts::new(agents.clone(), gateways.clone());
    let accounts = accounts.map_err(anyhow::Error::msg).context("--gateway-service-account")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("cannot listen on {}; is another control plane running?", args.listen)
    })?;
    let source = Source::start(&args).await?;
    let address = listener.local_addr().context("cannot tell the address listened on")?;
    match &args.manifests {
        Some(manifests) => tracing::info!(manifests = %manifests.display(), %address, "serving"),
        None => tracing::info!(%address, "serving"),
    }
    let amended = facts::amend(source.model(), args.state_dir.join("facts.json"));
    let mut stop = std::pin::pin!(async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to stop by SIGTERM"),
            _ = interrupt.recv() => tracing::info!("told to stop by SIGINT"),
        }
    });
    let cluster = tokio::select! {
        cluster = source.cluster(&args.kubernetes, accounts) => Some(cluster),
        () = &mut stop => None,
    };
    if let Some(cluster) = cluster {
        serving::serve(listener, amended, (&args.state_dir, cluster), &args.feed, stop).await?;
    }
    source.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Where the model comes from.
enum Source {
    Manifests(manifests::Source),
    Kubernetes(source::Source, Writer, (Teller, Herald), Client),
}

impl Source {
    async fn start(args: &Serve) -> anyhow::Result<Self> {
        let Serve { manifests, kubernetes, state_dir, ranges, .. } = args;
        if let Some(dir) = manifests {
            return Ok(Self::Manifests(manifests::start(manifests::Options {
                dir: dir.clone(),
                state_dir: state_dir.clone(),
                service_cidrs: ranges.service_cidrs(),
                node_port_range: ranges.node_port_range.0.clone(),
                local: None,
                resolver: Some(manifests::default_resolver()),
            })?));
        }
        std::fs::create_dir_all(state_dir)
            .with_context(|| format!("state folder {}: cannot be used", state_dir.display()))?;
        let (v4, v6) = (kubernetes.node_cidr_mask_size, kubernetes.node_cidr_mask_size_ipv6);
        let given =
            NodeRanges::new(&kubernetes.cluster_cidr, v4, v6).map_err(anyhow::Error::msg)?;
        let connect = Connect {
            kubeconfig: kubernetes.kubeconfig.clone(),
            context: kubernetes.context.clone(),
            server: kubernetes.api_server.clone(),
        };
        let client = connect.client().await?;
        let service_cidrs = ranges.service_cidr.clone();
        let options = source::Options {
            service_cidrs,
            classes: kubernetes.publish.classes(),
            gateway: kubernetes.publish.gateway(),
            ingresses: kubernetes.ingresses.settings(),
            ..source::Options::default()
        };
        let source = source::start(&client, options).map_err(anyhow::Error::msg)?;
        let options = status::Options {
            ranges: given,
            flannel: kubernetes.flannel_annotations,
            ..status::Options::new(LeaseOptions::new(kubernetes.lease_namespace.clone()))
        };
        let events = events::Options::new(options.lease.identity.clone());
        let writer =
            status::start(client.clone(), source.nodes.clone(), source.statuses.clone(), options);
        let (unsaid, leads) = (source.unsaid.clone(), writer.leads.clone());
        let telling = conditions::Options::default();
        let teller = conditions::start(client.clone(), unsaid, leads, telling);
        let (notices, leads) = (source.notices.clone(), writer.leads.clone());
        let herald = events::start(client.clone(), notices, leads, events);
        Ok(Self::Kubernetes(source, writer, (teller, herald), client))
    }

    fn model(&self) -> ModelReceiver {
        match self {
            Self::Manifests(source) => source.model.clone(),
            Self::Kubernetes(source, ..) => source.model.clone(),
        }
    }

    /// What the cluster does for the feed, if it is to; waits for the API server.
    async fn cluster(&self, options: &Kubernetes, accounts: Accounts) -> Option<serving::Cluster> {
        let Self::Kubernetes(_, _, _, client) = self else { return None };
        if accounts.is_empty() {
            return None;
        }
        let kept = ca::Options::new(options.lease_namespace.clone());
        let ca = ClusterCa::obtain(client.clone(), kept).await;
        Some(serving::Cluster { ca, pods: Arc::new(Pods::new(client.clone(), accounts)) })
    }

    async fn stop(self) {
        if let Self::Kubernetes(_, writer, tellers, _) = self {
            drop(tellers);
            writer.stop().await;
        }
    }
}

fn check(args: &Check) -> anyhow::Result<ExitCode> {
    let ranges = &args.ranges;
    let node_ports = ranges.node_port_range.0.clone();
    let mut checked = manifests::check(&args.files, ranges.service_cidrs(), node_ports)?;
    checked.problems.extend(manifests::lint(&args.files, SystemTime::now())?);
    checked.problems.sort();
    let mut out = io::stdout().lock();
    match args.output {
        Output::Text => {
            for problem in &checked.problems {
                writeln!(out, "{problem}").context("cannot write to the standard output")?;
            }
        }
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &checked.problems)
                .context("cannot write to the standard output")?;
            writeln!(out).context("cannot write to the standard output")?;
        }
    }
    let model = &checked.model;
    let (nodes, services) = (model.nodes.len(), model.services.len());
    let warning = |problem: &&manifests::Problem| problem.severity == Severity::Warning;
    let warnings = checked.problems.iter().filter(warning).count();
    let errors = checked.problems.len() - warnings;
    if errors == 0 {
        eprintln!("fine: {nodes} nodes, {services} Services, {warnings} warnings");
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("{errors} problems, {warnings} warnings");
        Ok(ExitCode::FAILURE)
    }
}

/// The cluster that the manifests tell of, and how many of their problems are more than warnings. Those are
/// printed.
fn cluster(args: &Manifests) -> anyhow::Result<(Cluster, usize)> {
    let Manifests { manifests, ranges } = args;
    let (service_cidrs, ports) = (ranges.service_cidrs(), ranges.node_port_range.0.clone());
    let (cluster, problems) = Cluster::read(manifests, service_cidrs, ports)?;
    for problem in &problems {
        eprintln!("{problem}");
    }
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    Ok((cluster, errors.count()))
}

fn explain(args: &Explain) -> anyhow::Result<ExitCode> {
    let (mut cluster, _) = cluster(&args.manifests)?;
    let answers = cluster.explain(&args.from, &args.to)?;
    let text = if args.json {
        serde_json::to_string_pretty(&answers).context("cannot encode the answers")? + "\n"
    } else {
        answers.iter().map(ToString::to_string).collect()
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write to the standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn policy_test(args: &PolicyTest) -> anyhow::Result<ExitCode> {
    let (mut cluster, errors) = cluster(&args.manifests)?;
    let (mut cases, mut failed) = (0, 0);
    for file in &args.files {
        let (count, failures) = run_cases(&mut cluster, file)?;
        for failure in &failures {
            write!(io::stdout(), "{failure}").context("cannot write to the standard output")?;
        }
        cases += count;
        failed += failures.len();
    }
    if failed == 0 && errors == 0 {
        eprintln!("fine: {cases} cases");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{failed} of {cases} cases fail, {errors} problems with the manifests");
    Ok(ExitCode::FAILURE)
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    let parts = text.split_once('/').filter(|(_, name)| !name.is_empty() && !name.contains('/'));
    let wrong = || format!("{text:?} is not NAMESPACE/NAME");
    parts.map(|(namespace, name)| ObjectName::new(namespace, name)).ok_or_else(wrong)
}

fn port_range(text: &str) -> Result<PortRange, String> {
    let parsed = text.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some(PortRange(first..=last))
    });
    parsed.ok_or_else(|| format!("{text:?} is not FIRST-LAST, as in 30000-32767"))
}
