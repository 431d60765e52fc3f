//! The command line.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgGroup, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use fairway_compile::Backend;
use fairway_model::Forwarding;
use ipnet::IpNet;

use crate::dataplane::{Attach, Capacity};
use crate::flannel::NetConf;
use crate::inspect::{conntrack, endpoints, explain, monitor, services, status};
use crate::kube_proxy::{self, Configuration};
use crate::{check, cleanup, cni_conf, dns, install, list, uninstall};

/// Fairway's node agent: balances Services, connects pods, and keeps both in the kernel.
///
/// It follows the control plane's feed, or reads a folder of manifests by itself. What it puts into
/// the kernel stays in force while it is away: it can be restarted, upgraded or killed at any time
/// without a lost packet.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  fairway-proxy --manifests /etc/fairway/manifests --pod-cidr 10.244.0.0/24
      One machine alone: Services and pods from a folder.
  fairway-proxy --feed https://192.0.2.10:9443 --node-name worker-1 --join-token TOKEN --join-ca-pin PIN
      A node of a cluster whose control plane serves the feed: the first time with what
      `fairway-controlplane token create` printed there, later without.
  fairway-proxy install && fairway-proxy --feed https://192.0.2.10:9443 --cni-conf /etc/cni/net.d/10-fairway.conflist
      The same, and the node's container runtime calls the plugin as soon as the node can take pods.
  fairway-proxy uninstall
      Takes everything of Fairway's from the node, when the agent has stopped.

Logs go to standard error; FAIRWAY_LOG sets what is logged (\"debug\", \"fairway_proxy=trace\")."
)]
pub struct Cli {
    /// Something to do once, instead of running the agent.
    #[command(subcommand)]
    pub verb: Option<Verb>,

    /// The agent's options.
    #[command(flatten)]
    pub agent: Options,
}

impl Cli {
    /// What was typed, and what the files it names say. Mistakes in what was typed end the program.
    pub fn read(matches: &ArgMatches) -> Result<Self> {
        let mut cli = Self::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
        let given = |field: &str| {
            matches.value_source(field).is_some_and(|source| source != ValueSource::DefaultValue)
        };
        if let Some(path) = &cli.agent.flannel_net_conf {
            let conf = NetConf::read(path)?;
            conf.apply(&mut cli.agent, given);
            cli.agent.flannel = Some(conf);
        }
        let configuration = match &cli.agent.config {
            Some(path) => Configuration::read(path)?,
            None => Configuration::default(),
        };
        configuration.apply(&mut cli.agent, given);
        check_node_port_addresses(&cli.agent.nodeport_addresses).context("--nodeport-addresses")?;
        Ok(cli)
    }
}

/// What is done once.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Put the CNI plugin where the container runtime executes it, also while it does
    Install(install::Options),
    /// Show what the agent found out about this node and the ways to its peers; fails if something is
    /// wrong
    Check(check::Options),
    /// Take away what kube-proxy left on the node
    Cleanup(cleanup::Options),
    /// Take everything of Fairway's from the node: its programs, devices, routes, settings and files
    Uninstall(uninstall::Options),
    /// Show the pods that the agent has in force on this node
    Pods(list::Options),
    /// Tell what a name is answered with, and why
    #[command(subcommand)]
    Dns(dns::query::Verb),
    /// Show how the agent fares, and what the kernel and the last agent's files say if it is away; fails if
    /// something is wrong
    Status(status::Options),
    /// Show the addresses of Services that this node's kernel has, with or without an agent
    Services(services::Options),
    /// Show what is behind Services on this node, and how often each is chosen
    Endpoints(endpoints::Options),
    /// Show or forget the flows that the kernel remembers
    #[command(subcommand)]
    Conntrack(conntrack::Verb),
    /// Tell what becomes of a packet on this node, step by step, and why
    Explain(explain::Options),
    /// Show what is dropped on this node and what flows are allowed, as it happens, with the pods, and the
    /// policies and rules that decided
    Monitor(monitor::Options),
}

/// What the agent takes.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("source").required(true).args(["manifests", "feed", "cleanup"])))]
pub struct Options {
    /// Folder of Kubernetes manifests to read and watch
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Control plane to follow, as https://HOST:PORT; with several servers any of them, once each. Over
    /// http:// nothing is encrypted, and anybody on the way can be the control plane
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub feed: Vec<String>,

    /// Whether and how DNS queries are answered.
    #[command(flatten)]
    pub dns: crate::dns::Options,

    /// How the feed is secured.
    #[command(flatten)]
    pub feed_security: crate::feed_security::Options,

    /// kube-proxy's configuration (KubeProxyConfiguration), for what no option says; kube-proxy's flags
    /// are taken, too
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Name of this node, as Node objects name it [default: the host name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME", alias = "hostname-override")]
    pub node_name: Option<String>,

    /// How pods of different nodes reach each other
    #[arg(long, value_enum, default_value_t = BackendOption::Auto)]
    pub backend: BackendOption,

    /// UDP port of VXLAN packets, the same on every node
    #[arg(long, value_name = "PORT", default_value_t = 8472)]
    pub vxlan_port: u16,

    /// VXLAN network identifier, the same on every node
    #[arg(long, value_name = "VNI", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vni: u32,

    /// UDP port of WireGuard packets, the same on every node
    #[arg(long, value_name = "PORT", default_value_t = 51820, value_parser = clap::value_parser!(u16).range(1..))]
    pub wireguard_port: u16,

    /// Seconds between two packets to each WireGuard peer that has nothing else to be told, so that
    /// what translates addresses on the way does not forget it [default: none are sent]
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    pub wireguard_keepalive: u16,

    /// MTU of packets between nodes, if it is not that of the uplink
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(576..=65535))]
    pub underlay_mtu: Option<u32>,

    /// flannel's configuration (net-conf.json), for what no option says: backend, VNI, port, MTU
    #[arg(long, value_name = "FILE")]
    pub flannel_net_conf: Option<PathBuf>,

    /// What that file says.
    #[arg(skip)]
    pub flannel: Option<NetConf>,

    /// File to write for plugins that ask flannel for the node's range, /run/flannel/subnet.env to
    /// most [default: none]
    #[arg(long, value_name = "PATH", requires = "flannel_net_conf")]
    pub subnet_env: Option<PathBuf>,

    /// Device that leads to the other nodes [default: the one with the Node's address, else the
    /// default route's]
    #[arg(long, value_name = "DEVICE")]
    pub uplink: Option<String>,

    /// Whether to balance node ports before the kernel builds packet buffers
    #[arg(long, value_enum, default_value_t = XdpOption::Auto)]
    pub xdp: XdpOption,

    /// How to attach programs to devices; for tests [default: what the kernel does best]
    #[arg(long, value_enum, hide = true)]
    pub attach: Option<AttachOption>,

    /// Folder on a BPF file system that keeps tables and programs while no agent runs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/fairway")]
    pub bpffs: PathBuf,

    /// Cgroup (version 2) whose processes reach Services at the socket
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroup: PathBuf,

    /// How much fits into the large tables, of each family: flows, half-open-flows (without an answer
    /// yet), udp-sockets (and whom they were led to), affinity (clients), frontends, endpoints (the
    /// members of all lists), names (of Services, of both families), and of policies identities (addresses
    /// that they speak of), address-ranges, rulings (of both families) [default: flows=262144,half-open-flows=32768,udp-sockets=65536,
    /// affinity=65536,frontends=262144,endpoints=1048576,names=65536,identities=262144,address-ranges=131072,
    /// rulings=524288]. Flows that are open stay when it changes
    #[arg(long, value_name = "NAME=NUMBER", value_delimiter = ',')]
    pub capacity: Vec<Capacity>,

    /// Folder for what has to survive a restart
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairway")]
    pub state_dir: PathBuf,

    /// Unix socket for the CNI plugin
    #[arg(long, value_name = "PATH", default_value = fairway_cni_protocol::DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// Folder in which the CNI plugin keeps addresses, as in its configuration's key dataDir
    #[arg(long, value_name = "DIR", default_value = fairway_cni::DEFAULT_DATA_DIR)]
    pub cni_data_dir: PathBuf,

    /// Network configuration to write for the container runtime once this node can serve pods, such
    /// as /etc/cni/net.d/10-fairway.conflist; it stays when the agent ends [default: none]
    #[arg(long, value_name = "PATH", value_parser = conflist)]
    pub cni_conf: Option<PathBuf>,

    /// Take everything out of the kernel and exit, as kube-proxy's option does: the same as the verb
    /// uninstall with --all
    #[arg(long)]
    pub cleanup: bool,

    /// With --feed: for how many seconds a pod's start waits until the control plane has told this
    /// node of the pod; then it is refused, and tried again by the container runtime
    #[arg(long, value_name = "SECONDS", requires = "feed", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=25))]
    pub pod_timeout: u64,

    /// Address of /healthz and /livez
    #[arg(long, value_name = "ADDR:PORT", alias = "healthz-bind-address", default_value = "0.0.0.0:10256", value_parser = healthz_address)]
    pub healthz_bind: SocketAddr,

    /// Address of /metrics
    #[arg(long, value_name = "ADDR:PORT", alias = "metrics-bind-address", default_value = "127.0.0.1:10249", value_parser = metrics_address)]
    pub metrics_bind: SocketAddr,

    /// Whether what leaves the cluster from a pod gets the node's address
    #[arg(long, value_enum, default_value_t = MasqueradeOption::On)]
    pub masquerade: MasqueradeOption,

    /// Ranges outside the cluster to which pods keep their own addresses
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub no_masquerade: Vec<IpNet>,

    /// Let pods reach link-local addresses (169.254.0.0/16, a cloud's metadata service) under the
    /// node's address; otherwise such packets are left to the host's stack as they are
    #[arg(long)]
    pub masquerade_link_local: bool,

    /// File in ip-masq-agent's form, in place of the two options before; what changes in it takes
    /// effect within seconds
    #[arg(long, value_name = "FILE", conflicts_with_all = ["masquerade", "no_masquerade", "masquerade_link_local"])]
    pub ip_masq_agent_config: Option<PathBuf>,

    /// Source ports for what gets the node's address; the node's own sockets are kept from them, and
    /// they may not be node ports
    #[arg(long, value_name = "FIRST-LAST", default_value = "1024-29999", value_parser = unprivileged_ports)]
    pub masquerade_ports: RangeInclusive<u16>,

    /// Where node ports are open: on addresses of the node within these ranges, or "primary": on those
    /// that the Node object has
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "primary")]
    pub nodeport_addresses: Vec<NodePortAddresses>,

    /// Open node ports on 127.0.0.1 and ::1, too, for the node's own processes
    #[arg(
        long,
        alias = "iptables-localhost-nodeports",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true,
        value_name = "BOOL"
    )]
    pub localhost_nodeports: bool,

    /// Answer as kube-proxy's iptables mode does where its nftables mode differs: node ports are open on all
    /// addresses of the node and on 127.0.0.1, unless the options before say otherwise, and what is sent to
    /// Services' ranges but to no Service is left to routes. On if kube-proxy's configuration or
    /// --proxy-mode says iptables
    #[arg(
        long,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true,
        value_name = "BOOL"
    )]
    pub iptables_compat: bool,

    /// How long an open TCP connection may be silent before its translation is forgotten [default: 24h]
    #[arg(long = "conntrack-tcp-timeout-established", value_name = "DURATION", value_parser = kube_proxy::duration)]
    pub tcp_idle: Option<Duration>,

    /// The same for UDP that nobody has answered [default: 30s]
    #[arg(long = "conntrack-udp-timeout", value_name = "DURATION", value_parser = kube_proxy::duration)]
    pub udp_idle: Option<Duration>,

    /// The same for UDP that was answered [default: 2m]
    #[arg(long = "conntrack-udp-timeout-stream", value_name = "DURATION", value_parser = kube_proxy::duration)]
    pub udp_stream_idle: Option<Duration>,

    /// Flags of kube-proxy's that have no meaning here.
    #[command(flatten)]
    pub kube_proxy: kube_proxy::Flags,

    /// How clients from outside reach endpoints of other nodes, where a Service's annotation
    /// fairway.dev/forwarding does not say
    #[arg(long, value_enum, default_value_t = ForwardingOption::Snat)]
    pub forwarding: ForwardingOption,

    /// Whether network policies hold for what pods send to addresses of their own node. What the node itself
    /// sends to its pods, such as probes, always reaches them. "allow" is what NetworkPolicy promises; with
    /// "enforce", a pod without an egress rule for it reaches no process of its node either
    #[arg(long, value_enum, default_value_t = OwnNode::Allow)]
    pub policy_own_node: OwnNode,

    /// Leave the sockets of all pods alone: what pods send to Services is translated packet by packet,
    /// as it is for pods that ask for it themselves
    #[arg(long)]
    pub no_pod_sockets: bool,

    /// With --manifests and no Node object: range of this node's pods, one a family
    #[arg(long, value_name = "CIDR", value_delimiter = ',', requires = "manifests")]
    pub pod_cidr: Vec<IpNet>,

    /// With --manifests: range of ClusterIPs, one a family
    #[arg(long, value_name = "CIDR", value_delimiter = ',', requires = "manifests", default_value = fairway_controlplane::manifests::DEFAULT_SERVICE_CIDR)]
    pub service_cidr: Vec<IpNet>,

    /// With --manifests: range of node ports
    #[arg(long, value_name = "FIRST-LAST", requires = "manifests", default_value = "30000-32767", value_parser = port_range)]
    pub node_port_range: RangeInclusive<u16>,
}

impl Options {
    /// What `--cleanup` does: an uninstall of what these options told the agent to keep.
    pub fn uninstall(&self) -> uninstall::Options {
        uninstall::Options {
            all: true,
            state_dir: self.state_dir.clone(),
            bpffs: self.bpffs.clone(),
            socket: self.socket.clone(),
            cni_conf: self.cni_conf.clone().unwrap_or_else(|| cni_conf::DEFAULT.into()),
            cni_bin_dir: install::BIN_DIR.into(),
            cni_data_dir: self.cni_data_dir.clone(),
        }
    }

    /// The ranges of addresses that node ports are open on; none: those that the Node object has.
    pub(crate) fn node_port_ranges(&self) -> Vec<IpNet> {
        let ranges = self.nodeport_addresses.iter().filter_map(|place| match place {
            NodePortAddresses::Primary => None,
            NodePortAddresses::Within(range) => Some(*range),
        });
        ranges.collect()
    }

    /// How long an ADD waits for its pod. The plugin itself gives up after half a minute.
    pub(crate) fn pod_patience(&self) -> Duration {
        Duration::from_secs(self.pod_timeout)
    }
}

/// See [`Forwarding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ForwardingOption {
    /// With an address of this node as their source
    Snat,
    /// With their own address where a VXLAN tunnel leads to the endpoint, else as snat
    Keep,
    /// With their own address by VXLAN and plain routes, else as snat; the endpoint's node answers them
    Dsr,
}

impl From<ForwardingOption> for Forwarding {
    fn from(option: ForwardingOption) -> Self {
        match option {
            ForwardingOption::Snat => Self::Snat,
            ForwardingOption::Keep => Self::Keep,
            ForwardingOption::Dsr => Self::Dsr,
        }
    }
}

/// Addresses of a node on which node ports are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Those that the Node object has.
    Primary,
    /// Those in this range.
    Within(IpNet),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.trim() {
            "primary" => Ok(Self::Primary),
            range => range.parse().map(Self::Within).map_err(|_| {
                format!("{range:?} is neither a range, such as 192.0.2.0/24, nor \"primary\"")
            }),
        }
    }
}

fn check_node_port_addresses(all: &[NodePortAddresses]) -> Result<()> {
    if all.len() > 1 && all.contains(&NodePortAddresses::Primary) {
        bail!("\"primary\" cannot stand beside ranges");
    }
    Ok(())
}

/// What becomes of what restricted pods send to their own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OwnNode {
    /// It is allowed, whatever policies say
    Allow,
    /// Policies say
    Enforce,
}

/// [`Backend`] as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendOption {
    /// Plain routes to peers on the same link, VXLAN to all others
    Auto,
    /// VXLAN to every peer
    Vxlan,
    /// Plain routes to every peer, all on the same link
    HostGw,
    /// WireGuard to every peer: packets between pods are encrypted
    Wireguard,
}

impl From<BackendOption> for Backend {
    fn from(option: BackendOption) -> Self {
        match option {
            BackendOption::Auto => Self::Auto,
            BackendOption::Vxlan => Self::Vxlan,
            BackendOption::HostGw => Self::HostGw,
            BackendOption::Wireguard => Self::Wireguard,
        }
    }
}

/// Whether pods appear outside the cluster under their node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MasqueradeOption {
    /// They do
    On,
    /// They keep their own addresses: the network around the nodes has routes to them
    Off,
}

/// [`Attach`] as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachOption {
    /// By links, which Linux 6.6 brought
    Tcx,
    /// By filters, which every kernel has
    Clsact,
}

impl From<AttachOption> for Attach {
    fn from(option: AttachOption) -> Self {
        match option {
            AttachOption::Tcx => Self::Tcx,
            AttachOption::Clsact => Self::Clsact,
        }
    }
}

/// How the XDP program is attached to the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpOption {
    /// Native where the driver is known to keep checksums and offloads, else not at all
    Auto,
    /// In the driver
    Native,
    /// Behind the driver; for tests, it gains nothing
    Generic,
    /// Not at all: traffic control does the same job
    Off,
}

fn healthz_address(text: &str) -> std::result::Result<SocketAddr, String> {
    kube_proxy::bind_address(text, kube_proxy::HEALTHZ_PORT)
}

fn metrics_address(text: &str) -> std::result::Result<SocketAddr, String> {
    kube_proxy::bind_address(text, kube_proxy::METRICS_PORT)
}

fn conflist(text: &str) -> std::result::Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let read = path.extension().is_some_and(|extension| extension == "conflist");
    let problem = "must be an absolute path that ends in .conflist, or no runtime reads the file";
    if read && path.is_absolute() { Ok(path) } else { Err(problem.to_owned()) }
}

fn port_range(text: &str) -> std::result::Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').ok_or("must look like 30000-32767")?;
    let port = |text: &str| text.trim().parse::<u16>().map_err(|error| format!("{text}: {error}"));
    let (first, last) = (port(first)?, port(last)?);
    if first == 0 || first > last {
        return Err(format!("{first}-{last} is not a range of ports"));
    }
    Ok(first..=last)
}

/// A port below 1024 may say something about who uses it, which a pod must not.
fn unprivileged_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let ports = port_range(text)?;
    if *ports.start() < 1024 {
        return Err("ports below 1024 are privileged".to_owned());
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn verbs_need_no_source_and_the_agent_needs_one() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(matches!(parse("fairway-proxy install").unwrap().verb, Some(Verb::Install(_))));
        let uninstall = parse("fairway-proxy uninstall --all").unwrap().verb;
        assert!(matches!(uninstall, Some(Verb::Uninstall(options)) if options.all));
        assert!(parse("fairway-proxy --cleanup").unwrap().agent.cleanup);
        let cleanup = parse("fairway-proxy cleanup --kube-proxy").unwrap().verb;
        assert!(matches!(cleanup, Some(Verb::Cleanup(_))));
        assert!(parse("fairway-proxy --manifests /m").unwrap().verb.is_none());
        for bad in [
            "fairway-proxy",
            "fairway-proxy --manifests /m install",
            "fairway-proxy cleanup",
            "fairway-proxy --feed http://x:1 --cni-conf /etc/cni/net.d/10-fairway.json",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flannels_configuration_says_what_no_option_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("net-conf.json");
        let conf = r#"{"Network": "10.244.0.0/16",
                       "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "MTU": 1400}}"#;
        std::fs::write(&file, conf).unwrap();
        let read = |more: &str| {
            let file = file.display();
            let words = format!("fairway-proxy --manifests /m --flannel-net-conf {file} {more}");
            let matches = Cli::command().get_matches_from(words.split_whitespace());
            Cli::read(&matches).unwrap().agent
        };
        let options = read("");
        assert_eq!((options.backend, options.vni), (BackendOption::Vxlan, 7));
        assert_eq!((options.vxlan_port, options.underlay_mtu), (4789, Some(1400)));
        // Also where the option says what is the default without the file.
        let options = read("--backend auto --vni 1 --vxlan-port 8472 --underlay-mtu 1500");
        assert_eq!((options.backend, options.vni), (BackendOption::Auto, 1));
        assert_eq!((options.vxlan_port, options.underlay_mtu), (8472, Some(1500)));
        let without = "fairway-proxy --manifests /m --subnet-env /run/flannel/subnet.env";
        assert!(Cli::try_parse_from(without.split(' ')).is_err(), "it needs the pods' network");
    }

    #[test]
    fn node_ports_are_open_on_the_nodes_own_addresses_or_within_ranges() {
        let read = |more: &str| {
            let words = format!("fairway-proxy --manifests /m {more}");
            let matches = Cli::command().try_get_matches_from(words.split_whitespace());
            let cli = Cli::read(&matches.map_err(|error| error.to_string())?);
            cli.map(|cli| cli.agent.node_port_ranges()).map_err(|error| format!("{error:#}"))
        };
        let ranges = |ranges: &[&str]| {
            ranges.iter().map(|range| range.parse().unwrap()).collect::<Vec<IpNet>>()
        };
        assert_eq!(read(""), Ok(ranges(&[])));
        assert_eq!(read("--nodeport-addresses primary"), Ok(ranges(&[])));
        let both = ["192.0.2.0/24", "2001:db8::/64"];
        assert_eq!(read("--nodeport-addresses 192.0.2.0/24,2001:db8::/64"), Ok(ranges(&both)));
        for bad in ["primary,192.0.2.0/24", "secondary", "192.0.2.1"] {
            let error = read(&format!("--nodeport-addresses {bad}")).unwrap_err();
            assert!(error.contains("primary") && error.contains("--nodeport-addresses"), "{error}");
        }
    }

    #[test]
    fn port_ranges() {
        assert_eq!(port_range("30000-32767"), Ok(30000..=32767));
        for bad in ["30000", "5-4", "0-10", "a-b", "1-70000"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }
}
