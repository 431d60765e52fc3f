//! What all parts of a running lab share: its names and network, its objects, its programs.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use fairway_model::Model;
use fairway_netlink::NetNs;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::apiserver::ApiServer;
use crate::http;
use crate::kubelet::images::Images;
use crate::names::{LabName, Names};
use crate::store::Store;
use crate::topology::{Backend, NodePlan, Topology};

/// What a lab is asked to be.
#[derive(Clone, Debug, Serialize, Deserialize, Args)]
pub struct Options {
    /// The lab's name; labs of different names run side by side
    #[arg(long, default_value = "lab", env = "FAIRWAY_LAB_NAME")]
    pub name: LabName,
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    pub nodes: u8,
    /// Over how many subnets, with a router between them, the nodes are spread
    #[arg(long, default_value_t = 1)]
    pub subnets: u8,
    /// Where the control plane finds the objects
    #[arg(long, value_enum, default_value_t, env = SOURCE_VARIABLE)]
    pub source: Source,
    /// How nodes reach each other's pods
    #[arg(long, value_enum, default_value_t)]
    pub backend: Backend,
    /// Where pod addresses come from; one range, or an IPv4 and an IPv6 one with a comma between
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.244.0.0/16")]
    pub pod_cidr: Vec<IpNet>,
    /// Where ClusterIPs come from; as --pod-cidr
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.96.0.0/16")]
    pub service_cidr: Vec<IpNet>,
    /// How many of the nodes, the last ones, flannel runs at first (see `convert`)
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub flannel_nodes: u8,
    /// On how many of the nodes, the first ones, a gateway serves Ingresses, on the node's ports 80 and 443
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub gateways: u8,
    /// Apply this file or folder at once
    #[arg(long, value_name = "PATH")]
    pub manifests: Option<PathBuf>,
    /// More entries for the table that says which program runs for which image
    ///
    /// A YAML list, such as `- {image: "my-*", command: [my-server, --port, "@port@"]}`; `@port@` is
    /// the container's first TCP port, `@dir@` a folder of its own, `$(NAME)` one of its variables.
    #[arg(long, value_name = "FILE")]
    pub images: Option<PathBuf>,
    /// Where the agents attach XDP programs, and how
    #[arg(long, value_enum, default_value_t)]
    pub xdp: Xdp,
    /// Another argument for every agent, such as `--agent-arg=--masquerade=off`
    #[arg(long, value_name = "ARG")]
    pub agent_arg: Vec<String>,
    /// Take the lab down when this process ends
    #[arg(long, value_name = "PID")]
    pub while_pid: Option<u32>,
    /// Where fairway-proxy, fairway-controlplane, fairway-cni and fairway-ingress are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
}

impl Options {
    /// A lab of this name with all defaults: three nodes in one subnet, and objects where
    /// `FAIRWAY_LAB_SOURCE` says.
    ///
    /// # Panics
    /// That says nothing that is known.
    pub fn named(name: LabName) -> Self {
        let range = |v4: [u8; 4]| IpNet::new_assert(IpAddr::from(v4), 16);
        Self {
            name,
            nodes: 3,
            subnets: 1,
            source: Source::of_environment(),
            backend: Backend::Auto,
            pod_cidr: vec![range([10, 244, 0, 0])],
            service_cidr: vec![range([10, 96, 0, 0])],
            flannel_nodes: 0,
            gateways: 0,
            manifests: None,
            images: None,
            xdp: Xdp::Auto,
            agent_arg: Vec::new(),
            while_pid: None,
            bin_dir: None,
        }
    }

    /// Gives pods and Services addresses of both families.
    pub fn dual_stack(&mut self) {
        let v6 = |groups: [u16; 8], bits| IpNet::new_assert(IpAddr::from(groups), bits);
        self.pod_cidr.push(v6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 56));
        self.service_cidr.push(v6([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 112));
    }
}

/// Says where the control plane finds the objects of labs that do not say it themselves.
const SOURCE_VARIABLE: &str = "FAIRWAY_LAB_SOURCE";

/// Where the control plane finds the objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// In a folder; it gives out addresses and ports, and knows pods' Services by itself.
    #[default]
    Manifests,
    /// In an API server, whose cluster has controllers for that.
    Api,
}

impl Source {
    /// What `FAIRWAY_LAB_SOURCE` says.
    ///
    /// # Panics
    /// That is nothing that is known.
    pub fn of_environment() -> Self {
        let said = std::env::var(SOURCE_VARIABLE).ok().filter(|said| !said.is_empty());
        said.map_or(Self::default(), |said| {
            <Self as clap::ValueEnum>::from_str(&said, false)
                .unwrap_or_else(|error| panic!("{SOURCE_VARIABLE}={said:?}: {error}"))
        })
    }
}

/// Where NodePorts meet XDP. A lab's uplinks are veths, on which `auto` leaves it off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// Where the driver is known to be good at it.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
    /// Not at all.
    Off,
}

impl Xdp {
    /// Whether it is used on devices that `auto` would leave alone, as veths are.
    pub(crate) fn is_forced(self) -> bool {
        matches!(self, Self::Native | Self::Generic)
    }

    /// As the agent's command line spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

/// The binaries under test, and this one.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The folder they are in; also the plugin's `CNI_PATH`.
    pub folder: PathBuf,
    /// `fairway-proxy`.
    pub proxy: PathBuf,
    /// `fairway-controlplane`.
    pub controlplane: PathBuf,
    /// `fairway-cni`.
    pub cni: PathBuf,
    /// `fairway-lab`.
    pub lab: PathBuf,
}

impl Programs {
    /// Finds them in `folder`, else beside this program; one that is missing is an error.
    pub(crate) fn find(folder: Option<&Path>) -> Result<Self> {
        let lab = std::env::current_exe().context("find this program's own path")?;
        let beside = lab.parent().context("find this program's folder")?;
        let folder = folder.unwrap_or(beside);
        let folder =
            fs::canonicalize(folder).with_context(|| format!("--bin-dir {}", folder.display()))?;
        Ok(Self {
            proxy: program(&folder, "fairway-proxy")?,
            controlplane: program(&folder, "fairway-controlplane")?,
            cni: program(&folder, "fairway-cni")?,
            folder,
            lab,
        })
    }

    /// `fairway-ingress`, which only labs with gateways need.
    pub(crate) fn ingress(&self) -> Result<PathBuf> {
        program(&self.folder, "fairway-ingress")
    }
}

fn program(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if !path.is_file() {
        bail!(
            "no {name} in {}; build it with `cargo xtask build`, or say --bin-dir DIR",
            folder.display()
        );
    }
    Ok(path)
}

/// A running lab.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// What was asked for.
    pub options: Options,
    /// Its names on the machine.
    pub names: Names,
    /// Its network.
    pub topology: Topology,
    /// Its objects.
    pub store: Store,
    /// What pods run.
    pub images: Images,
    /// The binaries.
    pub programs: Programs,
    stopping: AtomicBool,
    flannel: Mutex<BTreeSet<String>>,
    off: Mutex<BTreeSet<String>>,
    pod_processes: Mutex<HashMap<String, u32>>,
}

impl Cluster {
    /// Checks everything that can be checked before anything is made.
    pub(crate) fn plan(options: Options) -> Result<Self> {
        let names = Names::of(&options.name)?;
        let topology = Topology::plan(
            options.nodes,
            options.subnets,
            &options.pod_cidr,
            &options.service_cidr,
        )?;
        if options.flannel_nodes > options.nodes {
            bail!("--flannel-nodes {}: there are {} nodes", options.flannel_nodes, options.nodes);
        }
        if options.gateways > options.nodes {
            bail!("--gateways {}: there are {} nodes", options.gateways, options.nodes);
        }
        let programs = Programs::find(options.bin_dir.as_deref())?;
        if options.gateways > 0 {
            programs.ingress()?;
        }
        let flannel = topology.nodes.iter().rev().take(options.flannel_nodes.into());
        Ok(Self {
            flannel: Mutex::new(flannel.map(|node| node.name.clone()).collect()),
            store: match options.source {
                Source::Manifests => Store::folder(names.manifests()),
                Source::Api => Store::Server(ApiServer::at(topology.api_server())),
            },
            topology,
            images: Images::load(options.images.as_deref())?,
            programs,
            names,
            options,
            stopping: AtomicBool::new(false),
            off: Mutex::default(),
            pod_processes: Mutex::default(),
        })
    }

    /// The plan of a node by name.
    pub(crate) fn node(&self, name: &str) -> Result<&NodePlan> {
        let mut nodes = self.topology.nodes.iter();
        nodes.find(|node| node.name == name).with_context(|| {
            let names = self.node_names().join(", ");
            format!("no node {name:?} in lab {}; there are {names}", self.options.name)
        })
    }

    /// All nodes' names.
    pub(crate) fn node_names(&self) -> Vec<String> {
        let nodes = self.topology.nodes.iter();
        nodes.map(|node| node.name.clone()).collect()
    }

    /// Whether flannel runs a node.
    pub(crate) fn is_flannel(&self, node: &str) -> bool {
        self.flannel.lock().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    /// From now on we run this node.
    pub(crate) fn convert(&self, node: &str) {
        self.flannel.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// The nodes on which gateways run.
    pub(crate) fn gateways(&self) -> &[NodePlan] {
        &self.topology.nodes[..self.options.gateways.into()]
    }

    /// Whether a node has no power.
    pub(crate) fn is_off(&self, node: &str) -> bool {
        self.off.lock().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    /// From now on a node has power, or has none.
    pub(crate) fn switch(&self, node: &str, on: bool) {
        let mut off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        if on {
            off.remove(node);
        } else {
            off.insert(node.to_owned());
        }
    }

    /// Tells every part to stop. What exists is swept afterwards, so nothing has to be undone.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the lab is going away.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Keeps a process of the pod of this UID for those who want to start beside it.
    pub(crate) fn note_pod_process(&self, uid: &str, pid: Option<u32>) {
        let mut processes = self.pod_processes.lock().unwrap_or_else(PoisonError::into_inner);
        match pid {
            Some(pid) => processes.insert(uid.to_owned(), pid),
            None => processes.remove(uid),
        };
    }

    /// A process of the pod of this UID, if one runs.
    pub(crate) fn pod_process(&self, uid: &str) -> Option<u32> {
        let processes = self.pod_processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.get(uid).copied()
    }

    /// The state that the control plane derives from the manifests: among it, what it allocated.
    pub(crate) fn model(&self) -> Result<Model> {
        let answer = self.ask_controlplane("/v1/model")?;
        if answer.status != 200 {
            bail!("the control plane answers {}: {}", answer.status, answer.text());
        }
        serde_json::from_slice(&answer.body).context("read the control plane's model")
    }

    /// How far the nodes follow the model.
    pub(crate) fn progress(&self) -> Result<Progress> {
        let answer = self.ask_controlplane("/v1/nodes")?;
        if answer.status != 200 {
            bail!("the control plane answers {}: {}", answer.status, answer.text());
        }
        serde_json::from_slice(&answer.body).context("read the nodes' progress")
    }

    /// GETs a path of the control plane.
    pub(crate) fn ask_controlplane(&self, path: &str) -> Result<http::Answer> {
        let netns = self.names.underlay_netns();
        ask(&netns, self.topology.feed(), path).context("ask the control plane")
    }

    /// GETs a path of a node's agent.
    pub(crate) fn ask_agent(&self, node: &str, path: &str) -> Result<http::Answer> {
        let address = SocketAddr::from(([127, 0, 0, 1], crate::topology::HEALTH_PORT));
        ask(&self.names.node_netns(node), address, path)
            .with_context(|| format!("ask the agent of {node}"))
    }

    /// GETs a path of a node's gateway, as its administrator.
    pub(crate) fn ask_gateway(&self, node: &str, path: &str) -> Result<http::Answer> {
        let address = SocketAddr::from(([127, 0, 0, 1], crate::topology::GATEWAY_PORT));
        ask(&self.names.node_netns(node), address, path)
            .with_context(|| format!("ask the gateway of {node}"))
    }

    /// The name server that pods are told of.
    pub(crate) fn dns(&self) -> IpAddr {
        tenth(&self.options.service_cidr[0])
    }

    /// All addresses of the name server: by custom the tenth of each of the Services' ranges.
    pub(crate) fn all_dns(&self) -> Vec<IpAddr> {
        self.options.service_cidr.iter().map(tenth).collect()
    }
}

/// How far the nodes follow the model.
#[derive(Debug, Deserialize)]
pub(crate) struct Progress {
    /// The model's revision.
    pub revision: u64,
    nodes: Vec<NodeProgress>,
}

#[derive(Debug, Deserialize)]
struct NodeProgress {
    node: String,
    applied: Option<u64>,
}

impl Progress {
    /// The revision that is in force on a node.
    pub(crate) fn applied(&self, node: &str) -> Option<u64> {
        self.nodes.iter().find(|progress| progress.node == node)?.applied
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

fn ask(netns: &str, address: SocketAddr, path: &str) -> Result<http::Answer> {
    let netns = NetNs::open(NetNs::path(netns))?;
    let answer = netns.run(|| http::get(address, path, PATIENCE))?;
    answer.with_context(|| format!("GET http://{address}{path}"))
}

fn tenth(range: &IpNet) -> IpAddr {
    match range {
        IpNet::V4(range) => Ipv4Addr::from_bits(range.network().to_bits() + 10).into(),
        IpNet::V6(range) => Ipv6Addr::from_bits(range.network().to_bits() + 10).into(),
    }
}
