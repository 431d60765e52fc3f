//! The parts of a running lab that are processes and threads.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairway_netlink::NetNs;
use rustix::process::Signal;
use serde_json::json;
use tokio::runtime::Runtime;

use super::spawn;
use crate::api::{NodeInfo, Power};
use crate::cluster::Cluster;
use crate::flannel;
use crate::http::Answer;
use crate::kubelet;
use crate::manager;
use crate::names;
use crate::process::{self, Place};
use crate::service::Service;
use crate::sweep;
use crate::topology::{GATEWAY_PORT, HEALTH_PORT, NodePlan};
use crate::underlay::{self, UPLINK};
use crate::wait::wait_until;
use crate::xdp_pass::Attachment;

/// How long a binary has from its start to its first good answer. One that crashes is noticed before;
/// loading the programs takes half a minute where the processor is emulated.
const START_LIMIT: Duration = Duration::from_secs(120);
/// One that ends so often before that answer will not give it.
const MOST_CRASHES: u32 = 2;

/// What says what an agent may do, here as anywhere else.
const AGENT_UNIT: &str = include_str!("../../../deploy/systemd/fairway-proxy.service");

/// The same for gateways.
const GATEWAY_UNIT: &str = include_str!("../../../deploy/systemd/fairway-ingress.service");

/// What runs.
pub(super) struct Parts {
    controlplane: Service,
    agents: Mutex<BTreeMap<String, Arc<Service>>>,
    gateways: BTreeMap<String, Service>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    api_server: Mutex<Option<Runtime>>,
    cluster: Arc<Cluster>,
    _xdp: Vec<Attachment>,
}

impl Parts {
    /// Starts everything; `progress` is told what comes next, and its failure ends the start.
    pub(super) fn start(
        cluster: &Arc<Cluster>,
        progress: impl Fn(&str) -> Result<()>,
    ) -> Result<Self> {
        progress(&format!("{} nodes and their underlay", cluster.topology.nodes.len()))?;
        underlay::build(&cluster.names, &cluster.topology, cluster.options.backend)
            .context("build the underlay")?;
        let xdp = if cluster.options.xdp.is_forced() {
            underlay::prepare_for_xdp(&cluster.names, &cluster.topology)
                .context("prepare the underlay for XDP")?
        } else {
            Vec::new()
        };
        manager::write_nodes(cluster)?;
        let api_server = serve_api(cluster).context("start the API server")?;

        progress("control plane")?;
        let controlplane = start_controlplane(cluster)?;
        wait_for_answer(cluster, "controlplane", &controlplane, || {
            cluster.ask_controlplane("/readyz")
        })?;
        manager::wait_for_networks(cluster)?;

        progress("agents")?;
        let tunnels: Vec<_> =
            manager::nodes(cluster).iter().map(|node| flannel::annotated(node)).collect();
        let mut agents = BTreeMap::new();
        for node in &cluster.topology.nodes {
            if cluster.is_flannel(&node.name) {
                flannel::set_up(&open_netns(cluster, node)?, &cluster.topology, node, &tunnels)
                    .with_context(|| format!("make {} flannel's", node.name))?;
            } else {
                agents.insert(node.name.clone(), Arc::new(start_agent(cluster, node)?));
            }
        }
        for (node, agent) in &agents {
            wait_for_answer(cluster, node, agent, || cluster.ask_agent(node, "/readyz"))?;
        }

        manager::mark_nodes_ready(cluster)?;
        let gateways = start_gateways(cluster, &progress)?;

        let (controllers, pods) = (Arc::clone(cluster), Arc::clone(cluster));
        let threads = vec![
            spawn("controllers", move || manager::run(&controllers))?,
            spawn("kubelet", move || kubelet::run(&pods))?,
        ];
        Ok(Self {
            controlplane,
            agents: Mutex::new(agents),
            gateways,
            threads: Mutex::new(threads),
            api_server: Mutex::new(api_server),
            _xdp: xdp,
            cluster: Arc::clone(cluster),
        })
    }
    /// Ends what runs; what exists is left to the sweep.
    pub(super) fn shut_down(&self) {
        self.cluster.stop();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
        let agents: Vec<_> = self.agents().values().cloned().collect();
        // All at once, so that the waits for their ends overlap.
        agents.iter().for_each(|agent| agent.begin_stop());
        self.gateways.values().for_each(Service::begin_stop);
        agents.iter().for_each(|agent| agent.stop());
        self.gateways.values().for_each(Service::stop);
        self.controlplane.stop();
        // Ends all connections to it.
        drop(self.api_server.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// How the nodes are doing.
    pub(super) fn nodes(&self) -> Vec<NodeInfo> {
        let agents = self.agents().clone();
        let nodes = self.cluster.topology.nodes.iter();
        nodes
            .map(|node| {
                let status = agents.get(&node.name).map(|agent| agent.status()).unwrap_or_default();
                let serves = || {
                    let answer = self.cluster.ask_agent(&node.name, "/readyz");
                    answer.is_ok_and(|answer| answer.status == 200)
                };
                NodeInfo {
                    name: node.name.clone(),
                    ready: self.cluster.is_flannel(&node.name) || serves(),
                    addresses: node.addresses.ips(),
                    pod_cidrs: node.pod_cidrs.clone(),
                    agent_pid: status.pid,
                    agent_restarts: status.restarts,
                    agent_last_end: status.last_end,
                    gateway_pid: self
                        .gateways
                        .get(&node.name)
                        .and_then(|gateway| gateway.status().pid),
                }
            })
            .collect()
    }

    /// Ends an agent; returns when the next one serves.
    pub(super) fn restart_agent(&self, node: &str, kill: bool) -> Result<Vec<String>> {
        let agent = &*self.agent(node)?;
        let before = agent.status().restarts;
        agent.signal(if kill { Signal::KILL } else { Signal::TERM });
        wait_until(START_LIMIT, &format!("the agent of {node} to be started again"), || {
            Ok(agent.status().restarts > before)
        })?;
        wait_for_answer(&self.cluster, node, agent, || self.cluster.ask_agent(node, "/readyz"))?;
        let how = if kill { "killed" } else { "ended" };
        Ok(vec![format!("agent of {node} {how} and started again")])
    }

    /// Starts an agent again and waits until it serves, or kills it.
    pub(super) fn run_agent(&self, node: &str, run: bool) -> Result<()> {
        let agent = &*self.agent(node)?;
        if run {
            agent.release();
            wait_until(START_LIMIT, &format!("the agent of {node} to be started again"), || {
                Ok(agent.status().pid.is_some())
            })?;
            wait_for_answer(&self.cluster, node, agent, || self.cluster.ask_agent(node, "/healthz"))
        } else {
            agent.kill_and_hold();
            wait_until(START_LIMIT, &format!("the agent of {node} to die"), || {
                Ok(agent.status().pid.is_none())
            })
        }
    }

    /// Starts a gateway again and waits until it serves, or kills it.
    pub(super) fn run_gateway(&self, node: &str, run: bool) -> Result<()> {
        let gateway = self.gateways.get(&self.cluster.node(node)?.name);
        let gateway =
            gateway.with_context(|| format!("{node} has no gateway; use `up --gateways N`"))?;
        if run {
            gateway.release();
            wait_until(START_LIMIT, &format!("the gateway of {node} to be started again"), || {
                Ok(gateway.status().pid.is_some())
            })?;
            wait_for_gateway(&self.cluster, node, gateway)
        } else {
            gateway.kill_and_hold();
            wait_until(START_LIMIT, &format!("the gateway of {node} to die"), || {
                Ok(gateway.status().pid.is_none())
            })
        }
    }

    /// Makes a node that flannel runs one of ours; returns when its agent serves.
    pub(super) fn convert(&self, node: &str) -> Result<Vec<String>> {
        let plan = self.cluster.node(node)?;
        if !self.cluster.is_flannel(node) {
            bail!("{node} is not flannel's");
        }
        flannel::take_down(&open_netns(&self.cluster, plan)?, &self.cluster.topology, plan)?;
        let agent = Arc::new(start_agent(&self.cluster, plan)?);
        self.agents().insert(node.to_owned(), Arc::clone(&agent));
        wait_for_answer(&self.cluster, node, &agent, || self.cluster.ask_agent(node, "/readyz"))?;
        self.cluster.convert(node);
        Ok(vec![format!("{node} converted")])
    }

    /// Takes the power from a node, or gives it back.
    pub(super) fn power(&self, node: &str, power: Power) -> Result<()> {
        let cluster = &self.cluster;
        let (names, plan) = (&cluster.names, cluster.node(node)?);
        if cluster.options.xdp.is_forced() {
            bail!("the nodes of a lab that forces XDP keep their power");
        }
        let agent = self.agent(node)?;
        if power == Power::Off {
            cluster.switch(node, false);
            self.run_agent(node, false)?;
            if self.gateways.contains_key(node) {
                self.run_gateway(node, false)?;
            }
            let pods = names.node_cgroup(node).join("pods");
            wait_until(START_LIMIT, &format!("the pods of {node} to be gone"), || {
                Ok(fs::read_dir(&pods)?
                    .all(|entry| !entry.is_ok_and(|entry| entry.path().is_dir())))
            })?;
            sweep::kill_all(&names.node_cgroup(node))?;
            empty(&names.node_bpffs(node))?;
            empty(&names.cni_data(node))?;
            return underlay::remove_node(names, plan);
        }
        if !cluster.is_off(node) {
            bail!("{node} has power");
        }
        if power == Power::New {
            empty(&names.node_state(node))?;
        }
        underlay::add_node(names, &cluster.topology, cluster.options.backend, plan)?;
        cluster.switch(node, true);
        agent.release();
        if let Some(gateway) = self.gateways.get(node) {
            gateway.release();
        }
        wait_until(START_LIMIT, &format!("the agent of {node} to be started"), || {
            Ok(agent.status().pid.is_some())
        })
    }

    fn agent(&self, node: &str) -> Result<Arc<Service>> {
        self.cluster.node(node)?;
        let agent = self.agents().get(node).cloned();
        agent.with_context(|| format!("{node} has no agent"))
    }

    fn agents(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Service>>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the control plane again and waits until it serves, or kills it.
    pub(super) fn run_controlplane(&self, run: bool) -> Result<()> {
        let service = &self.controlplane;
        if run {
            service.release();
            wait_until(START_LIMIT, "the control plane to be started again", || {
                Ok(service.status().pid.is_some())
            })?;
            wait_for_answer(&self.cluster, "controlplane", service, || {
                self.cluster.ask_controlplane("/readyz")
            })
        } else {
            service.kill_and_hold();
            wait_until(START_LIMIT, "the control plane to die", || {
                Ok(service.status().pid.is_none())
            })
        }
    }
}

/// Leaves nothing in a folder.
fn empty(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", folder.display()));
        }
        _ => {}
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

fn open_netns(cluster: &Cluster, node: &NodePlan) -> Result<NetNs> {
    Ok(NetNs::open(NetNs::path(&cluster.names.node_netns(&node.name)))?)
}

/// Has the API server answer, if there is one, for as long as there is the runtime.
fn serve_api(cluster: &Cluster) -> Result<Option<Runtime>> {
    let Some(server) = cluster.store.server() else { return Ok(None) };
    // What tells where ClusterIPs come from.
    server.put(json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cluster.options.service_cidr}}));
    // As kubeadm makes it; from a folder, the control plane does.
    let port = |name, protocol| json!({"name": name, "protocol": protocol, "port": 53});
    server.put(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": cluster.dns(), "clusterIPs": cluster.all_dns(),
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]}}));
    let netns = NetNs::open(NetNs::path(&cluster.names.underlay_netns()))?;
    let address = cluster.topology.api_server();
    let listener = netns.run(|| TcpListener::bind(address))?;
    let listener = listener.with_context(|| format!("listen on {address}"))?;
    listener.set_nonblocking(true).context("not wait for connections")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start a runtime")?;
    let listener = {
        let _within = runtime.enter();
        tokio::net::TcpListener::from_std(listener).context("wait for connections")?
    };
    runtime.spawn(server.serve(listener));
    Ok(Some(runtime))
}

fn start_controlplane(cluster: &Arc<Cluster>) -> Result<Service> {
    let cluster = Arc::clone(cluster);
    Service::start("controlplane", move || {
        let names = &cluster.names;
        let feed = cluster.topology.feed();
        let mut command = Command::new(&cluster.programs.controlplane);
        command.arg("run");
        match cluster.store.server() {
            None => {
                command.arg("--manifests").arg(names.manifests());
                for range in &cluster.options.service_cidr {
                    command.arg("--service-cidr").arg(range.to_string());
                }
            }
            Some(server) => {
                command.args(["--kubernetes", "--api-server", &server.url()]);
                if cluster.options.flannel_nodes > 0 {
                    command.arg("--flannel-annotations");
                }
                // As in a folder, which is all for us.
                command.args(["--ingress-controller", "k8s.io/ingress-nginx"]);
                command.arg("--ingress-without-class");
            }
        }
        command
            .arg("--listen")
            .arg(feed.to_string())
            // Nobody but the lab is on its network.
            .args(["--tls", "off", "--drain", "0"])
            .arg("--state-dir")
            .arg(names.controlplane_state());
        process::supervised(&mut command, &names.log("controlplane"))?;
        let place = Place {
            netns: NetNs::path(&names.underlay_netns()),
            cgroup: names.outside_cgroup(),
            beside: None,
        };
        place.apply(&mut command)?;
        Ok(command)
    })
}

fn start_agent(cluster: &Arc<Cluster>, node: &NodePlan) -> Result<Service> {
    let (cluster, node) = (Arc::clone(cluster), node.name.clone());
    Service::start(&node.clone(), move || {
        let names = &cluster.names;
        let feed = cluster.topology.feed();
        let mut command = process::confined(AGENT_UNIT);
        command
            .arg(&cluster.programs.proxy)
            .args(["--node-name", &node])
            .args(["--feed", &format!("http://{feed}"), "--feed-insecure"])
            .arg("--bpffs")
            .arg(names.node_bpffs(&node))
            .arg("--cgroup")
            .arg(names.node_cgroup(&node))
            .arg("--state-dir")
            .arg(names.node_state(&node).join("agent"))
            .arg("--cni-data-dir")
            .arg(names.cni_data(&node))
            .arg("--socket")
            .arg(names.agent_socket(&node))
            .args(["--backend", cluster.options.backend.as_str()])
            .args(["--uplink", UPLINK])
            .args(["--xdp", cluster.options.xdp.as_str()])
            .args(["--dns", "on"])
            .args(["--healthz-bind", &format!("0.0.0.0:{HEALTH_PORT}")])
            .args(&cluster.options.agent_arg);
        process::supervised(&mut command, &names.log(&node))?;
        let place = Place {
            netns: NetNs::path(&names.node_netns(&node)),
            cgroup: names.system_cgroup(&node),
            beside: None,
        };
        place.apply(&mut command)?;
        Ok(command)
    })
}

/// Starts gateways beside the agents, and waits until they serve.
fn start_gateways(
    cluster: &Arc<Cluster>,
    progress: &impl Fn(&str) -> Result<()>,
) -> Result<BTreeMap<String, Service>> {
    let nodes = cluster.gateways();
    if !nodes.is_empty() {
        progress("gateways")?;
    }
    let start = |node: &NodePlan| Ok((node.name.clone(), start_gateway(cluster, node)?));
    let gateways = nodes.iter().map(start).collect::<Result<BTreeMap<_, _>>>()?;
    for (node, gateway) in &gateways {
        wait_for_gateway(cluster, node, gateway)?;
    }
    Ok(gateways)
}

fn start_gateway(cluster: &Arc<Cluster>, node: &NodePlan) -> Result<Service> {
    let (cluster, node) = (Arc::clone(cluster), node.name.clone());
    let program = cluster.programs.ingress()?;
    Service::start(&names::gateway(&node), move || {
        let names = &cluster.names;
        let feed = cluster.topology.feed();
        let mut command = process::confined(GATEWAY_UNIT);
        command
            .arg(&program)
            .args(["run", "--gateway", &manager::gateway_name(&node)])
            .args(["--feed", &format!("http://{feed}"), "--feed-insecure"])
            .arg("--state-dir")
            .arg(names.node_state(&node).join("gateway"))
            // The machine's processors are shared by all nodes.
            .args(["--workers", "1"])
            .args(["--admin", &format!("127.0.0.1:{GATEWAY_PORT}")])
            // Nobody has to hear of its end.
            .args(["--drain-wait", "0", "--drain-timeout", "10"]);
        process::supervised(&mut command, &names.gateway_log(&node))?;
        let place = Place {
            netns: NetNs::path(&names.node_netns(&node)),
            cgroup: names.system_cgroup(&node),
            beside: None,
        };
        place.apply(&mut command)?;
        Ok(command)
    })
}

fn wait_for_gateway(cluster: &Cluster, node: &str, gateway: &Service) -> Result<()> {
    let ask = || cluster.ask_gateway(node, "/readyz");
    wait_for_answer(cluster, &names::gateway(node), gateway, ask)
}

/// Waits for a binary's first good answer; an error carries what the binary printed last.
fn wait_for_answer(
    cluster: &Cluster,
    name: &str,
    service: &Service,
    ask: impl Fn() -> Result<Answer>,
) -> Result<()> {
    let before = service.status().restarts;
    let mut crashes = 0;
    let mut outcome = wait_until(START_LIMIT, &format!("{name} to be ready"), || {
        crashes = service.status().restarts.saturating_sub(before);
        if cluster.is_stopping() || crashes >= MOST_CRASHES {
            return Ok(true);
        }
        let answer = ask()?;
        if answer.status != 200 {
            bail!("it answers {}: {}", answer.status, answer.text().trim());
        }
        Ok(true)
    });
    if cluster.is_stopping() {
        bail!("stopped on the way up");
    }
    if crashes >= MOST_CRASHES {
        outcome = Err(anyhow::anyhow!("it was started again {crashes} times in vain"));
    }
    outcome.with_context(|| {
        let log = fs::read_to_string(cluster.names.log(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
        let end = service.status().last_end;
        let ended = end.map(|end| format!("it ended: {end}; ")).unwrap_or_default();
        format!("start {name} ({ended}its last words:\n  {tail}\n)")
    })
}
