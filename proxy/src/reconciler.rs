//! The one thread that changes the kernel.
//!
//! It receives models, requests of the CNI plugin and the tick of a clock, one after the other, and
//! answers what is true afterwards. Everything it does is idempotent: after an error the same model
//! is tried again at the next tick.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::programs::XdpMode;
use fairway_abi::{Config, V4, V6};
use fairway_cni_protocol::{Endpoint, NodeConfig, Refusal, Request, Response};
use fairway_compile::{FamilyTables, Tables, Via, View, compile, overlay_addresses};
use fairway_controlplane::manifests::LocalPod;
use fairway_model::Model;
use fairway_netlink::{Group, Netlink, Watch};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::dataplane::{Dataplane, Side, Single};
use crate::flows::{Clock, FlowTables, by_family};
use crate::node::{self, Uplink};
use crate::options::{Options, XdpOption};
use crate::pods::Pods;
use crate::routes::{RouteTable, reconcile_host};
use crate::services::ServiceTables;
use crate::status::Status;

/// How often silent flows, vanished interfaces and changed addresses are looked for.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Ticks between two looks at the tables of flows.
const TICKS_A_SWEEP: u32 = 10;

/// What the thread is asked.
pub(crate) enum Command {
    /// Make this the kernel's state.
    Model(Arc<Model>),
    /// The CNI plugin wants this, and an answer.
    Request(Request, oneshot::Sender<Response>),
    /// Time has passed.
    Tick,
}

/// What the thread tells.
pub(crate) struct Outputs {
    /// The model that is in force.
    pub(crate) applied: watch::Sender<Option<Arc<Model>>>,
    /// The pods that are in force, for a node that runs alone.
    pub(crate) local_pods: watch::Sender<Vec<LocalPod>>,
    /// For health and metrics.
    pub(crate) status: Arc<Status>,
}

/// The kernel's state and the means to change it.
pub(crate) struct Reconciler {
    options: Options,
    node: String,
    netlink: Netlink,
    /// Tells whether interfaces or addresses changed since the last tick.
    watch: Watch,
    dataplane: Dataplane,
    uplink: Uplink,
    pods: Pods,
    config: Single<Config>,
    v4: Families<V4>,
    v6: Families<V6>,
    clock: Clock,
    view: View,
    /// What was last said of routes that the kernel does not take.
    refused_routes: Vec<String>,
    /// The model to be in force, and whether it is.
    model: Option<Arc<Model>>,
    dirty: bool,
    ready: bool,
    /// Services changed since outdated flows were last looked for. All of a second's changes share
    /// one look, whose cost is that of reading the flow tables.
    outdated: bool,
    outputs: Outputs,
}

/// The tables of one family.
struct Families<A: fairway_compile::Family> {
    services: ServiceTables<A>,
    routes: RouteTable<A>,
    flows: FlowTables<A>,
}

impl<A: fairway_compile::Family> Families<A> {
    fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        Ok(Self {
            services: ServiceTables::adopt(dataplane, suffix)?,
            routes: RouteTable::adopt(dataplane, suffix)?,
            flows: FlowTables::adopt(dataplane, suffix)?,
        })
    }

    /// Routes before the Services that lead over them; answers whether open flows may be outdated.
    fn reconcile(&mut self, want: &FamilyTables<A>) -> Result<bool> {
        self.routes.reconcile(&want.routes)?;
        self.services.reconcile(&want.services)
    }

    fn forget_outdated(&mut self) -> Result<()> {
        self.flows.forget_outdated(&self.services)
    }
}

impl Reconciler {
    /// Loads the programs over what a predecessor left, puts registered pods in force and attaches
    /// everything that does not need the model.
    pub(crate) fn start(options: Options, node: String, outputs: Outputs) -> Result<Self> {
        let watch = Watch::open(&[Group::Links, Group::Addresses])?;
        let mut netlink = Netlink::open()?;
        let uplink = Uplink::find(&mut netlink, options.uplink.as_deref(), &[])?;
        info!(uplink = uplink.name, mtu = uplink.mtu, addresses = ?uplink.addresses(), "found the uplink");
        node::enable_forwarding()?;

        let mut dataplane = Dataplane::load(&options.bpffs)?;
        let config = dataplane.single("config")?;
        let v4 = Families::adopt(&mut dataplane, "4")?;
        let v6 = Families::adopt(&mut dataplane, "6")?;
        let pods = Pods::adopt(&mut dataplane, &mut netlink, &options.state_dir)?;
        let clock = Clock::start(&mut dataplane)?;
        let view = View {
            node: node.clone(),
            backend: options.backend.into(),
            vni: options.vni,
            ..View::default()
        };
        let mut reconciler = Self {
            options,
            node,
            netlink,
            watch,
            dataplane,
            uplink,
            pods,
            config,
            v4,
            v6,
            clock,
            view,
            refused_routes: Vec::new(),
            model: None,
            dirty: false,
            ready: false,
            outdated: true,
            outputs,
        };
        reconciler.attach()?;
        reconciler.tell_pods();
        Ok(reconciler)
    }

    /// Serves commands until nobody can send any more.
    pub(crate) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut ticks = 0u32;
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Model(model) => {
                    self.model = Some(model);
                    self.dirty = true;
                    self.reconcile();
                }
                Command::Request(request, answer) => {
                    // A plugin that did not wait for its answer has gone; its DEL will come.
                    let _ = answer.send(self.answer(request));
                }
                Command::Tick => {
                    ticks = ticks.wrapping_add(1);
                    if let Err(error) = self.keep_house(ticks.is_multiple_of(TICKS_A_SWEEP)) {
                        error!(error = format!("{error:#}"), "housekeeping failed");
                    }
                    self.reconcile();
                }
            }
        }
    }

    /// Socket-level programs for the node's processes, packet-level ones on the uplink.
    fn attach(&mut self) -> Result<()> {
        self.dataplane.attach_sockets(&self.options.cgroup)?;
        let Uplink { name, index, .. } = &self.uplink;
        let pin = |what: &str| format!("uplink-{name}-{index}-{what}");
        let wanted = [pin("ingress"), pin("egress"), pin("xdp")];
        self.dataplane.attach_classifier("uplink_ingress", name, Side::Ingress, &wanted[0])?;
        self.dataplane.attach_classifier("uplink_egress", name, Side::Egress, &wanted[1])?;
        match xdp_mode(self.options.xdp, name) {
            Some(mode) => self.dataplane.attach_xdp(name, mode, &wanted[2])?,
            None => self.dataplane.detach(&wanted[2]),
        }
        for stale in self.dataplane.attachments()? {
            if stale.starts_with("uplink-") && !wanted.contains(&stale) {
                self.dataplane.detach(&stale);
            }
        }
        Ok(())
    }

    /// Brings the kernel to the model, if there is something to do.
    fn reconcile(&mut self) {
        let Some(model) = self.model.clone().filter(|_| self.dirty) else { return };
        let start = Instant::now();
        match self.put_in_force(&model) {
            Ok(true) => {
                self.dirty = false;
                self.ready = true;
                self.outputs.status.synced(start.elapsed());
                self.outputs.applied.send_replace(Some(model));
            }
            Ok(false) => {
                debug!(node = self.node, "the model does not know this node yet");
            }
            Err(error) => {
                self.outputs.status.failed();
                error!(
                    error = format!("{error:#}"),
                    "cannot bring the kernel to the model; trying again"
                );
            }
        }
    }

    /// Everything the model asks of this node; false while the model does not know it.
    fn put_in_force(&mut self, model: &Model) -> Result<bool> {
        let Some(node) = model.nodes.get(&self.node) else { return Ok(false) };
        self.look_around()?;
        let Some(mut tables) = compile(model, &self.view) else { return Ok(false) };
        let tunnelled = tables.host_routes.iter().any(|route| route.via == Via::Overlay);
        let overlay = if tunnelled { self.overlay(&overlay_addresses(node))? } else { 0 };
        if overlay != self.view.overlay_ifindex {
            self.view.overlay_ifindex = overlay;
            tables = compile(model, &self.view).unwrap_or(tables);
        }
        self.write(&tables)?;
        if !tunnelled {
            node::remove_overlay(&mut self.netlink)?;
        }
        Ok(true)
    }

    fn write(&mut self, tables: &Tables) -> Result<()> {
        self.config.set(&tables.config)?;
        self.outdated |= self.v4.reconcile(&tables.v4)?;
        self.outdated |= self.v6.reconcile(&tables.v6)?;
        let overlay = self.view.overlay_ifindex;
        let uplink = self.uplink.index;
        let refused = reconcile_host(&mut self.netlink, &tables.host_routes, overlay, uplink)?;
        if refused != self.refused_routes {
            for refusal in &refused {
                warn!("{refusal}; is that node on this one's link?");
            }
            self.refused_routes = refused;
        }
        debug!("the kernel holds the model");
        let frontends = self.v4.services.frontends() + self.v6.services.frontends();
        self.outputs.status.counts(frontends, self.pods.all().count());
        Ok(())
    }

    /// The overlay device with its programs.
    fn overlay(&mut self, addresses: &[IpAddr]) -> Result<u32> {
        let mtu = node::pod_mtu(self.uplink.mtu, self.options.backend.into(), false);
        let port = self.options.vxlan_port;
        let index = node::ensure_overlay(&mut self.netlink, port, mtu, addresses)?;
        let device = node::OVERLAY;
        let pin = |side: &str| format!("overlay-{index}-{side}");
        let wanted = [pin("ingress"), pin("egress")];
        if self.view.overlay_ifindex != index {
            let dataplane = &mut self.dataplane;
            dataplane.attach_classifier("overlay_ingress", device, Side::Ingress, &wanted[0])?;
            dataplane.attach_classifier("overlay_egress", device, Side::Egress, &wanted[1])?;
            for stale in dataplane.attachments()? {
                if stale.starts_with("overlay-") && !wanted.contains(&stale) {
                    dataplane.detach(&stale);
                }
            }
        }
        Ok(index)
    }

    /// Brings what only the node knows up to date; true if it changed.
    fn look_around(&mut self) -> Result<bool> {
        let addresses = node::addresses(&mut self.netlink)?;
        let found = Uplink::find(&mut self.netlink, Some(&self.uplink.name), &[])?;
        let on_link: Vec<_> = found.networks.iter().map(ipnet::IpNet::trunc).collect();
        let changed = addresses != self.view.addresses
            || on_link != self.view.on_link
            || found.mtu != self.uplink.mtu;
        self.view.addresses = addresses;
        self.view.on_link = on_link;
        if found.index != self.uplink.index {
            info!(uplink = found.name, "the uplink is another device now");
            self.uplink = found;
            self.attach()?;
            return Ok(true);
        }
        self.uplink = found;
        Ok(changed)
    }

    fn keep_house(&mut self, flows: bool) -> Result<()> {
        let now = Instant::now();
        self.v4.services.sweep(now)?;
        self.v6.services.sweep(now)?;
        if self.ready && self.outdated {
            self.v4.forget_outdated()?;
            self.v6.forget_outdated()?;
            self.outdated = false;
        }
        if self.surroundings_changed()? {
            if self.ready && self.look_around()? {
                self.dirty = true;
            }
            let gone = self.pods.forget_vanished(&mut self.dataplane, &mut self.netlink)?;
            if !gone.is_empty() {
                self.forget_flows(&gone)?;
                self.tell_pods();
            }
        }
        self.outputs.status.drops(self.dataplane.drops()?);
        if flows && let Some((now, rate)) = self.clock.read(&mut self.dataplane)? {
            let age = |then: u32| now.wrapping_sub(then) / rate;
            let left = self.v4.flows.expire(age)? + self.v6.flows.expire(age)?;
            self.outputs.status.flows(left);
        }
        Ok(())
    }

    fn surroundings_changed(&mut self) -> Result<bool> {
        let mut changed = false;
        while !self.watch.next(Duration::ZERO)?.is_empty() {
            changed = true;
        }
        Ok(changed)
    }

    fn answer(&mut self, request: Request) -> Response {
        let try_again = |message: String| Response::Error(Refusal { try_again: true, message });
        if !self.ready && !matches!(request, Request::DeleteEndpoint { .. }) {
            return try_again(format!(
                "the agent on node {} has no complete state yet; is the control plane reachable, \
                 and does it know the node?",
                self.node
            ));
        }
        let refused = |error: anyhow::Error| {
            warn!(error = format!("{error:#}"), "refused a request of the CNI plugin");
            Response::Error(Refusal { try_again: false, message: format!("{error:#}") })
        };
        let result = match request {
            Request::NodeConfig => return self.node_config(),
            Request::AddEndpoint { endpoint } => {
                self.pods.add(&mut self.dataplane, &mut self.netlink, endpoint)
            }
            Request::DeleteEndpoint { container_id, interface } => {
                self.delete(&container_id, &interface)
            }
            Request::CheckEndpoint { endpoint } => self.pods.check(&self.dataplane, &endpoint),
        };
        self.tell_pods();
        match result {
            Ok(()) => Response::Ok,
            Err(error) => refused(error),
        }
    }

    fn node_config(&self) -> Response {
        let node = self.model.as_ref().and_then(|model| model.nodes.get(&self.node));
        let pod_cidrs = node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        if pod_cidrs.is_empty() {
            let message = format!("node {} has no range for its pods (spec.podCIDRs)", self.node);
            return Response::Error(Refusal { try_again: true, message });
        }
        let mtu = node::pod_mtu(self.uplink.mtu, self.options.backend.into(), false);
        Response::NodeConfig(NodeConfig { node: self.node.clone(), pod_cidrs, mtu })
    }

    fn delete(&mut self, container_id: &str, interface: &str) -> Result<()> {
        let gone = self.pods.remove(&mut self.dataplane, container_id, interface)?;
        self.forget_flows(gone.as_slice()).context("forget the pod's flows")
    }

    fn forget_flows(&mut self, gone: &[Endpoint]) -> Result<()> {
        let Self { v4, v6, .. } = self;
        for address in gone.iter().flat_map(|pod| &pod.addresses) {
            by_family(
                *address,
                |address| v4.flows.forget_address(address),
                |address| v6.flows.forget_address(address),
            )?;
        }
        Ok(())
    }

    fn tell_pods(&self) {
        let pods = self.pods.all().filter(|pod| !pod.pod_name.is_empty()).map(|pod| LocalPod {
            namespace: pod.pod_namespace.clone(),
            name: pod.pod_name.clone(),
            uid: pod.pod_uid.clone(),
            addresses: pod.addresses.clone(),
        });
        let pods: Vec<LocalPod> = pods.collect();
        self.outputs.local_pods.send_if_modified(|known| {
            let changed = *known != pods;
            *known = pods;
            changed
        });
    }
}

/// Drivers whose native XDP keeps checksum and segmentation offloads.
const XDP_DRIVERS: [&str; 5] = ["bnxt_en", "i40e", "ice", "ixgbe", "mlx5_core"];

fn xdp_mode(option: XdpOption, device: &str) -> Option<XdpMode> {
    match option {
        XdpOption::Off => None,
        XdpOption::Native => Some(XdpMode::Driver),
        XdpOption::Generic => Some(XdpMode::Skb),
        XdpOption::Auto => {
            let driver =
                std::fs::read_link(format!("/sys/class/net/{device}/device/driver")).ok()?;
            let name = driver.file_name()?.to_str()?;
            XDP_DRIVERS.contains(&name).then_some(XdpMode::Driver)
        }
    }
}
