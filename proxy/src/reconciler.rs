//! The one thread that changes the kernel.
//!
//! It receives models, requests of the CNI plugin and the tick of a clock, one after the other, and
//! answers what is true afterwards. Everything it does is idempotent: after an error the same model
//! is tried again at the next tick.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fairway_abi::{PodRange, V4, V6};
use fairway_cni::Reconciled;
use fairway_cni_protocol::{Endpoint, NodeConfig, Refusal, Request, Response};
use fairway_compile::{
    Backend, Contest, EndpointList, FamilyTables, HostPort, HostRoute, ListName, ServiceLists, Via,
    View, closed_ports, compile, host_ports, node_config, overlay_addresses, tunnels,
    tunnels_over_v6, wireguard_peers,
};
use fairway_controlplane::manifests::LocalPod;
use fairway_feed::Facts;
use fairway_model::{Model, ObjectName, Protocol};
use fairway_netlink::{Family as RouteFamily, Group, Netlink, Route, Watch, grace};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::admission::{self, Add, Waiting};
use crate::adoption::{self, Moment, Surroundings, Tolerance};
use crate::attachments::{Attachments, Device};
use crate::clock::Clock;
use crate::dataplane::{self, Attach, Dataplane, Single};
use crate::dns::NameTables;
use crate::flannel::SubnetEnv;
use crate::flows::{FlowTables, IdleLimits};
use crate::heap;
use crate::inspect::monitor;
use crate::loads::{self, Counted, LoadTable};
use crate::masquerade;
use crate::names::NamedConfig;
use crate::node::{self, Overlay, Uplink};
use crate::options::{Options, OwnNode};
use crate::pacing::Pacing;
use crate::pods::{Pods, describe};
use crate::policy::{PolicyTables, local_pod, opened};
use crate::routes::{PeerTable, RouteTable, reconcile_host};
use crate::services::{Affected, Outcome, ServiceTables};
use crate::sockets::{self, SocketTable, Stale};
use crate::status::Status;
use crate::traces::Traces;
use crate::wireguard::{Settings, Tunnel};

/// How often silent flows, vanished interfaces and changed addresses are looked for.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Between two looks for connections of the node's own processes that the kernel translates.
const OWN_CONNECTIONS: Duration = Duration::from_secs(10);
/// Ticks between two looks at the tables of flows.
const TICKS_A_SWEEP: u32 = 10;

/// What the thread is asked.
pub(crate) enum Command {
    /// Make this the kernel's state.
    Model(Arc<Model>),
    /// The CNI plugin wants this, and an answer.
    Request(Box<Request>, oneshot::Sender<Response>),
    /// Time has passed.
    Tick,
    /// The moment of [`Outputs::due`] has come.
    Due,
}

/// What the thread tells.
pub(crate) struct Outputs {
    /// The model that is in force.
    pub(crate) applied: watch::Sender<Option<Arc<Model>>>,
    /// The pods that are in force, for a node that runs alone.
    pub(crate) local_pods: watch::Sender<Vec<LocalPod>>,
    /// When [`Command::Due`] is to come, once; `None`: it is not.
    pub(crate) due: watch::Sender<Option<Instant>>,
    /// For health and metrics.
    pub(crate) status: Arc<Status>,
    /// Of what is changed outside the agent's folders.
    pub(crate) traces: Arc<Traces>,
    /// The node's range, for plugins that read flannel's file.
    pub(crate) subnet_env: Option<SubnetEnv>,
}

/// The kernel's state and the means to change it.
pub(crate) struct Reconciler {
    options: Options,
    node: String,
    netlink: Netlink,
    /// Tells whether interfaces, addresses or routes changed since the last tick.
    watch: Watch,
    dataplane: Dataplane,
    attachments: Attachments,
    uplink: Uplink,
    /// Where WireGuard is the way to peers.
    tunnel: Option<Tunnel>,
    pods: Pods,
    /// ADDs of pods that the model in force does not have.
    waiting: Waiting,
    config: NamedConfig,
    policies: PolicyTables,
    /// Policies changed, and flows that are open were not told.
    untold: bool,
    v4: Families<V4>,
    v6: Families<V6>,
    clock: Clock,
    masquerade: masquerade::Setting,
    pacing: Pacing,
    view: View,
    /// What was last said of routes that the kernel does not take.
    refused_routes: Vec<String>,
    /// The host's routes that the model asks for.
    host_routes: Vec<HostRoute>,
    /// The host ports in force; `None`: they may not all be.
    host_ports: Option<HostPorts>,
    /// What was last said of addresses that two Services want.
    contests: BTreeSet<Contest>,
    /// What was last said of host ports that have to yield to a Service.
    yielded: BTreeMap<ListName, ListName>,
    /// The model to be in force.
    model: Option<Arc<Model>>,
    /// Since when it is not; `None`: it is.
    behind: Option<Instant>,
    /// A first complete state is in force.
    ready: bool,
    /// Something around the node changed that was not looked at yet.
    stirred: bool,
    /// It was said that the model does not know this node.
    said_unknown: bool,
    /// Services changed since outdated flows were last looked for. All changes until [`Self::next_look`]
    /// share one look.
    outdated: bool,
    /// No program of ours has seen a packet here yet: connections that are open are the kernel's.
    first: bool,
    /// Services that processes of the node are connected to by the kernel's own translation, and when to
    /// look again. Their packets leave by a route, so the range must not be called unreachable.
    own_connections: (BTreeSet<IpAddr>, Instant),
    /// A look costs as much as reading all flows, during which nothing else is done: no more than a
    /// tenth of the time goes into it.
    next_look: Instant,
    /// The same for a count of all connections.
    next_count: Instant,
    outputs: Outputs,
}

/// Something to do at every tick, and what to call it.
type Job = (&'static str, fn(&mut Reconciler) -> Result<()>);

/// The tables of one family.
struct Families<A: fairway_compile::Family> {
    pod_range: Single<PodRange<A>>,
    services: ServiceTables<A>,
    routes: RouteTable<A>,
    peers: PeerTable<A>,
    flows: FlowTables<A>,
    sockets: SocketTable<A>,
    loads: LoadTable<A>,
}

/// The host ports of some pods, and the addresses of the node that they are open on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct HostPorts {
    ports: Vec<HostPort>,
    node: Vec<IpAddr>,
}

impl HostPorts {
    fn lists<A: fairway_compile::Family>(&self) -> Vec<EndpointList<A>> {
        host_ports(&self.ports, &self.node)
    }
}

impl<A: fairway_compile::Family + std::hash::Hash> Families<A> {
    fn adopt(dataplane: &mut Dataplane, suffix: &str) -> Result<Self> {
        Ok(Self {
            pod_range: dataplane.single(&format!("pod_range{suffix}"))?,
            services: ServiceTables::adopt(dataplane, suffix)?,
            routes: RouteTable::adopt(dataplane, suffix)?,
            peers: PeerTable::adopt(dataplane, suffix)?,
            flows: FlowTables::adopt(dataplane, suffix)?,
            sockets: SocketTable::adopt(dataplane, suffix)?,
            loads: LoadTable::adopt(dataplane, suffix)?,
        })
    }

    /// Routes before the Services that lead over them.
    fn reconcile(&mut self, want: &FamilyTables<A>, host_ports: &HostPorts) -> Result<Outcome> {
        self.pod_range.set(&want.pod_range)?;
        self.routes.reconcile(&want.routes)?;
        self.peers.reconcile(&want.peers)?;
        let outcome = self.services.reconcile(&want.services, host_ports.lists())?;
        if !want.contests.is_empty() {
            self.services.are_contested();
        }
        Ok(outcome)
    }

    /// The Services that differ between two models, and nothing else; see
    /// [`ServiceTables::reconcile_some`].
    fn reconcile_some(
        &mut self,
        before: &Model,
        next: &Model,
        view: &View,
        services: &BTreeSet<ObjectName>,
    ) -> Result<Option<Outcome>> {
        let Some(lists) = ServiceLists::new(next, view) else { return Ok(None) };
        let known = services.iter().filter_map(|name| before.services.get(name));
        self.services.reconcile_some(&Affected {
            services,
            closed: known.flat_map(closed_ports).collect(),
            lists: lists.some(services),
        })
    }

    fn reconcile_host_ports(&mut self, host_ports: &HostPorts) -> Result<Outcome> {
        self.services.reconcile_host_ports(host_ports.lists())
    }

    fn check_host_ports(&self, host_ports: &HostPorts) -> Result<()> {
        host_ports.lists().iter().try_for_each(|list| self.services.check(list))
    }

    fn forget_outdated(&mut self, sockets: &mut Stale) -> Result<()> {
        self.flows.forget_outdated(&self.services)?;
        self.sockets.forget_outdated(&self.services, sockets)
    }
}

impl Reconciler {
    /// Loads the programs over the tables a predecessor left. Its programs stay attached until the
    /// first model is in force.
    pub(crate) fn start(options: Options, node: String, outputs: Outputs) -> Result<Self> {
        let masquerade = masquerade::Setting::new(&options)?;
        let watch =
            Watch::open(&[Group::Links, Group::Addresses, Group::Routes, Group::QueueDisciplines])?;
        let mut netlink = Netlink::open()?;
        // Which one it is without being told may depend on what the model calls this node's address.
        let uplink = match options.uplink.as_deref() {
            Some(name) => Uplink::find(&mut netlink, Some(name), &[])?,
            None => Uplink::default(),
        };
        let tunnel = match options.backend.into() {
            Backend::Wireguard => {
                let (port, keepalive) = (options.wireguard_port, options.wireguard_keepalive);
                let settings = Settings { port, keepalive };
                Some(Tunnel::open(&mut netlink, &options.state_dir, settings)?)
            }
            Backend::Auto | Backend::Vxlan | Backend::HostGw => None,
        };

        let attach = options.attach.map_or_else(Attach::of_kernel, Attach::from);
        // Programs of devices that there may never be are loaded with the device: each takes the kernel longer
        // than all others of a node together that are not at an ingress.
        let vxlan = Overlay::Vxlan { port: options.vxlan_port };
        let has_vxlan = match options.backend.into() {
            Backend::Vxlan => true,
            Backend::Auto => netlink.link(vxlan.device())?.is_some(),
            Backend::HostGw | Backend::Wireguard => false,
        };
        let mut later = Vec::new();
        later.extend((!has_vxlan).then_some(dataplane::VXLAN).into_iter().flatten());
        later.extend(tunnel.is_none().then_some(dataplane::WIREGUARD).into_iter().flatten());
        let dataplane = Dataplane::load_without(&options.bpffs, &options.capacity, &later)?;
        let mut dataplane = dataplane.attaching_by(attach);
        let first = dataplane.is_first()?;
        Tolerance::end(&outputs.traces);
        let mut reconciler = Self {
            config: NamedConfig::adopt(&mut dataplane, &options.state_dir)?,
            policies: PolicyTables::adopt(&mut dataplane)?,
            untold: true,
            v4: Families::adopt(&mut dataplane, "4")?,
            v6: Families::adopt(&mut dataplane, "6")?,
            pods: Pods::adopt(&mut dataplane, &mut netlink, &options.state_dir)?,
            clock: Clock::start(&mut dataplane)?,
            pacing: Pacing::adopt(&mut dataplane)?,
            attachments: Attachments::default(),
            view: View {
                node: node.clone(),
                backend: options.backend.into(),
                vni: options.vni,
                netns: netlink.netns_cookie().unwrap_or_else(|| {
                    warn!(
                        "the kernel tells no network namespace from another (Linux 5.14 does): \
                         host ports and node ports are not open on the loopback address"
                    );
                    0
                }),
                masquerade: masquerade.now().clone(),
                node_port_ranges: options.node_port_ranges(),
                loopback_node_ports: options.localhost_nodeports,
                unserved_passes: options.iptables_compat,
                forwarding: options.forwarding.into(),
                no_pod_sockets: options.no_pod_sockets,
                resolver: options.dns.service(options.manifests.is_some()),
                ..View::default()
            },
            masquerade,
            waiting: Waiting::new(node.clone(), options.pod_patience()),
            options,
            node,
            netlink,
            watch,
            dataplane,
            uplink,
            tunnel,
            refused_routes: Vec::new(),
            host_routes: Vec::new(),
            host_ports: None,
            contests: BTreeSet::new(),
            yielded: BTreeMap::new(),
            model: None,
            behind: None,
            ready: false,
            stirred: false,
            said_unknown: false,
            outdated: true,
            first,
            own_connections: (BTreeSet::new(), Instant::now()),
            next_look: Instant::now(),
            next_count: Instant::now(),
            outputs,
        };
        reconciler.forget_flows().context("forget the flows of pods that have gone")?;
        reconciler.tend_addresses();
        reconciler.tell_pods();
        Ok(reconciler)
    }

    /// Frees addresses of what is gone, as after a reboot, and brings back those of pods that are
    /// there. Only while no plugin is served; what goes wrong here costs addresses and no more.
    fn tend_addresses(&mut self) {
        let endpoints: Vec<Endpoint> = self.pods.all().cloned().collect();
        let data_dir = &self.options.cni_data_dir;
        match fairway_cni::reconcile_addresses(Some(data_dir), &mut self.netlink, &endpoints) {
            Ok(Reconciled { freed, restored }) => {
                if !freed.is_empty() {
                    info!(count = freed.len(), addresses = ?freed, "freed addresses that nobody has");
                }
                if !restored.is_empty() {
                    warn!(
                        count = restored.len(),
                        addresses = ?restored,
                        "pods have addresses that the plugin's store lost; they are theirs again"
                    );
                }
            }
            Err(error) => warn!(
                error = format!("{:#}", anyhow::anyhow!(error)),
                "cannot bring the plugin's addresses to what is true; some may stay taken"
            ),
        }
    }

    /// What the control plane is to know of this node.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            wireguard_key: self.tunnel.as_ref().map(Tunnel::public_key),
            resolver: self.view.resolver.is_some(),
        }
    }

    /// Where programs look up whether this node's agent answers DNS queries.
    pub(crate) fn resolver(&mut self) -> Result<Single<u64>> {
        self.dataplane.single("resolver")
    }

    /// The names that the kernel answers by itself.
    pub(crate) fn names(&mut self) -> Result<NameTables> {
        NameTables::adopt(&mut self.dataplane)
    }

    /// Serves commands until nobody can send any more.
    pub(crate) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut ticks = 0u32;
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Model(model) => {
                    self.outputs.status.taken();
                    self.take(model);
                }
                Command::Request(request, answer) => self.serve(*request, answer),
                Command::Tick => {
                    ticks = ticks.wrapping_add(1);
                    self.keep_house(ticks.is_multiple_of(TICKS_A_SWEEP));
                    self.reconcile();
                    self.expire_waiting();
                }
                Command::Due => self.tell_flows_at_last(),
            }
            self.admit_known();
        }
    }

    /// Takes a new model in. Where it differs from the one in force in Services and pods alone, the cost
    /// is that of what differs.
    fn take(&mut self, model: Arc<Model>) {
        let leaving = model.nodes.get(&self.node).is_some_and(|node| node.leaving);
        self.outputs.status.leaving(leaving);
        self.pods.keep_former(|pod| admission::may_come(&model, &self.node, pod));
        let start = Instant::now();
        self.model = Some(Arc::clone(&model));
        let in_step = self.behind.is_none() && self.host_ports.is_some();
        if let Some(known) = self.in_force().filter(|_| in_step) {
            match self.put_difference_in_force(&known, &model) {
                Ok(true) => {
                    self.outputs.status.synced(start.elapsed());
                    self.outputs.applied.send_replace(Some(model));
                    return;
                }
                Ok(false) => {}
                Err(error) => warn!(
                    error = format!("{error:#}"),
                    "cannot bring the kernel from one model to the next; looking at all of it"
                ),
            }
        }
        self.behind.get_or_insert_with(Instant::now);
        self.reconcile();
    }

    /// What differs between the model in force and the next; false if that takes a look at everything.
    fn put_difference_in_force(&mut self, known: &Model, next: &Model) -> Result<bool> {
        if known.nodes != next.nodes || known.service_ranges != next.service_ranges {
            return Ok(false);
        }
        if known.pods.diff(&next.pods).next().is_some() {
            self.pods.exempt_sockets(|pod| admission::sockets_exempt(next, &self.node, pod))?;
        }
        self.config.begin(node_config(next, &self.view))?;
        self.police(next)?;
        let services = differing_services(known, next);
        if services.is_empty() {
            self.settle_names()?;
            return Ok(true);
        }
        // Also if this comes to nothing.
        let outdated = std::mem::replace(&mut self.outdated, true);
        let v4 = self.v4.reconcile_some(known, next, &self.view, &services)?;
        let v6 = self.v6.reconcile_some(known, next, &self.view, &services)?;
        let (Some(v4), Some(v6)) = (v4, v6) else { return Ok(false) };
        self.settle_names()?;
        self.outdated = outdated || v4.outdates || v6.outdates;
        self.tell_frontends();
        debug!(services = services.len(), "the kernel holds the model again");
        Ok(true)
    }

    fn tell_frontends(&self) {
        let frontends = self.v4.services.frontends() + self.v6.services.frontends();
        self.outputs.status.frontends(frontends);
    }

    /// The last model that the kernel was brought to.
    fn in_force(&self) -> Option<Arc<Model>> {
        self.outputs.applied.borrow().clone()
    }

    /// Brings the kernel to the model, if there is something to do.
    fn reconcile(&mut self) {
        let Some(model) = self.model.clone().filter(|_| self.behind.is_some()) else { return };
        let start = Instant::now();
        match self.put_in_force(&model) {
            Ok(true) => {
                self.behind = None;
                self.ready = true;
                heap::give_back();
                self.outputs.status.synced(start.elapsed());
                self.outputs.applied.send_replace(Some(model));
            }
            Ok(false) => {
                // Nothing is asked of this node, so nothing is missing.
                self.behind = None;
                if !std::mem::replace(&mut self.said_unknown, true) {
                    let known: Vec<_> = model.nodes.keys().take(5).collect();
                    warn!(
                        node = self.node,
                        ?known,
                        "there is no such Node; is --node-name the name Kubernetes knows?"
                    );
                }
            }
            Err(error) => {
                self.outputs.status.failed();
                error!(
                    error = format!("{error:#}"),
                    "cannot bring the kernel to the model; trying again"
                );
            }
        }
        self.outputs.status.behind(self.behind);
    }

    /// Everything the model asks of this node; false while the model does not know it.
    fn put_in_force(&mut self, model: &Model) -> Result<bool> {
        let Some(node) = model.nodes.get(&self.node) else { return Ok(false) };
        self.said_unknown = false;
        self.look_around()?;
        let tunnelled = tunnels(model, &self.view);
        let overlay = if tunnelled { self.ensure_overlay(&overlay_addresses(node))? } else { 0 };
        self.view.overlay_ifindex = overlay;
        let Some(tables) = compile(model, &self.view) else { return Ok(false) };
        if let Some(tunnel) = self.tunnel.as_mut().filter(|_| tunnelled) {
            let (peers, unreachable) = wireguard_peers(model, &self.node);
            self.outputs.status.unreachable(unreachable.len());
            tunnel
                .reconcile(overlay, &peers, unreachable)
                .context("configure WireGuard's peers")?;
        }
        self.pacing.set(&tables.paced)?;
        self.pods.exempt_sockets(|pod| admission::sockets_exempt(model, &self.node, pod))?;
        self.config.begin(Some(tables.config))?;
        // What an interrupted attempt changed may have outdated flows, too.
        let outdated = std::mem::replace(&mut self.outdated, true);
        let host_ports = self.host_ports(self.pods.all());
        self.host_ports = None;
        let v4 = self.v4.reconcile(&tables.v4, &host_ports)?;
        let v6 = self.v6.reconcile(&tables.v6, &host_ports)?;
        // Before there are programs that could pass what is to be denied.
        self.police(model)?;
        self.settle_names()?;
        self.outdated = outdated || v4.outdates || v6.outdates;
        self.host_ports = Some(host_ports);
        self.tell_yielded(v4, v6);
        self.tell_contests(tables.v4.contests.into_iter().chain(tables.v6.contests).collect());
        self.host_routes = tables.host_routes;
        let traces = Arc::clone(&self.outputs.traces);
        let tolerance = if self.first { Tolerance::begin(&traces) } else { None };
        self.adopt_connections(Moment::Before);
        self.tend_routes()?;
        // Programs last: until here, a predecessor's go on with tables that hold its state.
        self.attach()?;
        self.adopt_connections(Moment::After);
        self.first = false;
        drop(tolerance);
        for kind in Overlay::ALL {
            // WireGuard's device has the node's key, also while there is nobody to speak to.
            let stays = tunnelled || self.tunnel.is_some();
            if !stays || kind.device() != self.overlay().device() {
                node::remove_overlay(&mut self.netlink, kind)?;
            }
        }
        let mtu = self.pod_mtu();
        if let Some(file) = &mut self.outputs.subnet_env {
            file.keep(&node.pod_cidrs, mtu);
        }
        self.tell_frontends();
        debug!("the kernel holds the model");
        Ok(true)
    }

    /// Goes on with the connections that the kernel has translated before our programs came. An error
    /// costs some of them, and nothing else.
    fn adopt_connections(&mut self, moment: Moment) {
        if !self.first {
            return;
        }
        let around = match self.around() {
            Ok(around) => around,
            Err(error) => {
                return warn!(error = format!("{error:#}"), "cannot adopt connections");
            }
        };
        let Families { flows, services, .. } = &mut self.v4;
        let v4 = adoption::Tables { flows, services };
        let Families { flows, services, .. } = &mut self.v6;
        let v6 = adoption::Tables { flows, services };
        let now = self.dataplane.clock();
        match now.and_then(|now| adoption::look(v4, v6, &around, now, moment)) {
            Ok(found) => self.own_connections = (found.own, Instant::now() + OWN_CONNECTIONS),
            Err(error) => warn!(
                error = format!("{error:#}"),
                "cannot go on with all connections that the kernel has translated so far"
            ),
        }
    }

    fn around(&mut self) -> Result<Surroundings> {
        let mut seen: BTreeSet<u32> = self.devices()?.into_iter().map(|(_, index)| index).collect();
        seen.extend(self.pods.all().map(|pod| pod.host_ifindex));
        seen.insert(self.view.overlay_ifindex);
        let mut unseen = HashSet::new();
        for family in [RouteFamily::V4, RouteFamily::V6] {
            for route in self.netlink.routes(family, Some(Route::MAIN))? {
                let net = route.destination;
                let is_seen = route.device.is_none_or(|device| seen.contains(&device));
                if !is_seen && net.prefix_len() == net.max_prefix_len() {
                    unseen.insert(net.addr());
                }
            }
        }
        let pods = self.pods.all().flat_map(|pod| pod.addresses.iter().copied());
        Ok(Surroundings {
            pods: pods.collect(),
            node: self.view.addresses.iter().copied().collect(),
            unseen,
        })
    }

    /// Lets the ranges of Services be unreachable by route once no process of the node needs them.
    fn follow_own_connections(&mut self) -> Result<()> {
        let (own, next) = &self.own_connections;
        let start = Instant::now();
        if own.is_empty() || start < *next {
            return Ok(());
        }
        let around = self.around()?;
        let left = adoption::own_connections(&self.v4.services, &self.v6.services, &around)?;
        let changed = left != self.own_connections.0;
        self.own_connections = (left, Instant::now() + OWN_CONNECTIONS.max(9 * start.elapsed()));
        if changed { self.tend_routes() } else { Ok(()) }
    }

    /// Opens the host ports of the pods that there are now, and closes all others.
    fn tend_host_ports(&mut self) -> Result<()> {
        let wanted = self.host_ports(self.pods.all());
        // Before the first model, the tables may hold a predecessor's; then it sees to these, too.
        if !self.ready || self.host_ports.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.host_ports = None;
        self.outdated = true;
        self.config.begin(None)?;
        let v4 = self.v4.reconcile_host_ports(&wanted)?;
        let v6 = self.v6.reconcile_host_ports(&wanted)?;
        self.settle_names()?;
        self.host_ports = Some(wanted);
        self.tell_yielded(v4, v6);
        Ok(())
    }

    fn settle_names(&mut self) -> Result<()> {
        let rules = self.policies.take_renamed();
        self.config.settle(self.v4.services.take_renamed(), self.v6.services.take_renamed(), rules)
    }

    /// Restricts this node's pods as the model says, and holds flows that are open against it.
    fn police(&mut self, model: &Model) -> Result<()> {
        let untold = std::mem::replace(&mut self.untold, true);
        self.config.set_policed_to_node(self.options.policy_own_node == OwnNode::Enforce)?;
        let changed = self.restrict(model, None)?;
        if changed || untold {
            self.tell_flows()?;
        } else {
            self.untold = false;
        }
        self.outputs.status.policies(self.policies.census(&self.config));
        Ok(())
    }

    /// Holds flows that are open against the policies in force, now or as soon as they can be.
    fn tell_flows(&mut self) -> Result<()> {
        let due = self.policies.tell_flows(&mut self.config, Instant::now())?;
        self.untold = due.is_some();
        self.outputs.due.send_replace(due);
        Ok(())
    }

    /// The same for what it was too early for.
    fn tell_flows_at_last(&mut self) {
        if !self.untold {
            return;
        }
        if let Err(error) = self.tell_flows() {
            warn!(
                error = format!("{error:#}"),
                "cannot hold open flows against policies; trying again"
            );
            self.outputs.due.send_replace(Some(Instant::now() + TICK));
        }
        self.outputs.status.policies(self.policies.census(&self.config));
    }

    /// Restricts this node's pods, and one that is about to be one of them, as the model says; flows that
    /// are open go on. Between [`NamedConfig::begin`] and [`Self::settle_names`].
    fn restrict(&mut self, model: &Model, more: Option<&Endpoint>) -> Result<bool> {
        let others = self.pods.all().filter(|pod| {
            more.is_none_or(|more| {
                (&more.container_id, &more.interface) != (&pod.container_id, &pod.interface)
            })
        });
        let local: Vec<_> = others.chain(more).map(local_pod).collect();
        let Self { policies, node, config, pods, v4, v6, view, dataplane, .. } = self;
        let open = |addresses: &BTreeSet<IpAddr>| {
            if let Err(error) = note_flows(pods, addresses, &view.addresses, dataplane, (v4, v6)) {
                warn!(
                    error = format!("{error:#}"),
                    ?addresses,
                    "cannot list all connections of pods that are restricted from now on; some may break"
                );
            }
        };
        let changed = policies.reconcile(model, node, &local, config, open);
        let changed = changed.context("bring policies in force")?;
        self.outputs.status.policies(self.policies.census(&self.config));
        Ok(changed)
    }

    /// Restricts the pods that there are now, where some have come or gone. No flow is of theirs yet, or
    /// any more.
    fn restrict_pods(&mut self, more: Option<&Endpoint>) -> Result<()> {
        // Before the first model, a predecessor's tables hold on.
        let Some(model) = self.in_force().filter(|_| self.ready) else { return Ok(()) };
        self.config.begin(None)?;
        self.restrict(&model, more)?;
        self.settle_names()
    }

    /// The host ports of these pods on this node as it is now.
    fn host_ports<'a>(&self, pods: impl Iterator<Item = &'a Endpoint>) -> HostPorts {
        let ports = pods.flat_map(|pod| {
            pod.host_ports.iter().map(|port| HostPort {
                pod: describe(pod),
                addresses: pod.addresses.clone(),
                container_port: port.container_port,
                protocol: match port.protocol {
                    fairway_cni_protocol::Protocol::Tcp => Protocol::Tcp,
                    fairway_cni_protocol::Protocol::Udp => Protocol::Udp,
                    fairway_cni_protocol::Protocol::Sctp => Protocol::Sctp,
                },
                port: port.host_port,
                host_ip: port.host_ip,
            })
        });
        let node = self.model.as_ref().and_then(|model| model.nodes.get(&self.node));
        let known = node.map(|node| node.addresses.as_slice()).unwrap_or_default();
        let node = self.view.addresses.iter().chain(known).copied().collect();
        HostPorts { ports: ports.collect(), node }
    }

    /// Says, once, which address and port two Services want.
    fn tell_contests(&mut self, contests: BTreeSet<Contest>) {
        for contest in contests.difference(&self.contests) {
            warn!("{contest}");
        }
        self.contests = contests;
    }

    /// Says, once, which host ports have to yield to which Service.
    fn tell_yielded(&mut self, v4: Outcome, v6: Outcome) {
        let yielded: BTreeMap<_, _> = v4.yielded.into_iter().chain(v6.yielded).collect();
        for (port, service) in &yielded {
            if self.yielded.get(port) != Some(service) {
                warn!("{port} is not open where {service} has that port, which comes first");
            }
        }
        self.yielded = yielded;
    }

    /// Programs where they belong; costs nothing where they already are.
    fn attach(&mut self) -> Result<()> {
        let overlay = self.overlay();
        let devices = self.devices()?;
        let Self { attachments, dataplane, options, uplink, .. } = self;
        attachments.sockets(dataplane, &options.cgroup)?;
        self.pods.attach(dataplane)?;
        attachments.devices(dataplane, devices)?;
        attachments.xdp(dataplane, options.xdp, &(uplink.name.clone(), uplink.index))?;
        attachments.overlay(dataplane, overlay, self.view.overlay_ifindex)?;
        if !self.ready {
            dataplane.discard_predecessors();
        }
        Ok(())
    }

    /// The devices that lead out of the node.
    fn devices(&mut self) -> Result<BTreeSet<Device>> {
        let pods = self.pods.all().map(|pod| pod.host_ifindex).collect();
        let mut devices = node::carriers(&mut self.netlink, &pods)?;
        devices.insert((self.uplink.name.clone(), self.uplink.index));
        Ok(devices)
    }

    /// The host's routes to pods. What the kernel refuses concerns single peers; it is told once.
    fn tend_routes(&mut self) -> Result<()> {
        let (overlay, uplink) = (self.view.overlay_ifindex, self.uplink.index);
        let (own, _) = &self.own_connections;
        let needed = |route: &HostRoute| {
            route.via == Via::Unreachable && own.iter().any(|ip| route.destination.contains(ip))
        };
        let routes: Vec<HostRoute> =
            self.host_routes.iter().filter(|route| !needed(route)).cloned().collect();
        let refused = reconcile_host(&mut self.netlink, &routes, overlay, uplink)?;
        if refused != self.refused_routes {
            for refusal in &refused {
                warn!("{refusal}");
            }
            self.refused_routes = refused;
        }
        Ok(())
    }

    fn ensure_overlay(&mut self, addresses: &[IpAddr]) -> Result<u32> {
        let mtu = self.pod_mtu();
        let overlay = self.overlay();
        node::ensure_overlay(&mut self.netlink, overlay, mtu, addresses)
    }

    /// The kind of device that takes packets to peers, where any does.
    fn overlay(&self) -> Overlay {
        match self.tunnel {
            Some(_) => Overlay::WireGuard { port: self.options.wireguard_port },
            None => Overlay::Vxlan { port: self.options.vxlan_port },
        }
    }

    fn pod_mtu(&self) -> u32 {
        let v6_only = self.uplink.addresses().iter().all(IpAddr::is_ipv6);
        let by_v6 = v6_only || self.model.as_ref().is_some_and(|m| tunnels_over_v6(m, &self.node));
        let underlay = self.options.underlay_mtu.unwrap_or(self.uplink.mtu);
        node::pod_mtu(underlay, self.options.backend.into(), by_v6)
    }

    /// Brings what only the node knows up to date; true if the model means something else by it.
    fn look_around(&mut self) -> Result<bool> {
        let addresses = node::addresses(&mut self.netlink)?;
        let own = self.model.as_ref().and_then(|model| model.nodes.get(&self.node));
        let known_by = own.map_or(&[][..], |node| &node.addresses);
        let named = self.options.uplink.as_deref();
        let found = match Uplink::find(&mut self.netlink, named, known_by) {
            // Addresses and routes go and come back; the device they went from is still the best guess.
            Err(_) if named.is_none() && self.uplink.index != 0 => {
                Uplink::find(&mut self.netlink, Some(&self.uplink.name), known_by)?
            }
            found => found?,
        };
        if (found.index, found.mtu) != (self.uplink.index, self.uplink.mtu) {
            info!(uplink = found.name, mtu = found.mtu, addresses = ?found.addresses(), "found the uplink");
        }
        let on_link: Vec<_> = found.networks.iter().map(ipnet::IpNet::trunc).collect();
        let node = self.model.as_ref().and_then(|model| model.nodes.get(&self.node));
        let ranges = node.map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
        let shared = node::is_shared(&mut self.netlink, ranges)?;
        if shared && !self.view.shares_pod_range {
            warn!(
                ?ranges,
                "another device has an address in this node's range of pods; packets from the network are not held against that range"
            );
        }
        let changed = addresses != self.view.addresses
            || shared != self.view.shares_pod_range
            || on_link != self.view.on_link
            || (found.index, found.mtu) != (self.uplink.index, self.uplink.mtu);
        self.view.shares_pod_range = shared;
        self.view.addresses = addresses;
        self.view.on_link = on_link;
        self.view.uplink_ifindex = found.index;
        self.uplink = found;
        let devices = self.devices()?;
        let paced = self.pacing.find(&mut self.netlink, &devices)?;
        self.outputs.status.paced(paced.len());
        let changed = changed || paced != self.view.paced;
        self.view.paced = paced;
        Ok(changed)
    }

    /// Looks after what changes without the model. Each job is done although another fails; one that
    /// failed is done again at the next tick.
    fn keep_house(&mut self, flows: bool) {
        grace::restore();
        self.pods.sync();
        let jobs: [Job; 8] = [
            ("follow the masquerade's file", Self::follow_masquerade),
            ("remove slots that are no longer read", Self::sweep_slots),
            ("remove what policies need no more", Self::sweep_policies),
            ("look whether somebody watches", Self::follow_watchers),
            ("look around the node", Self::follow_surroundings),
            ("forget outdated flows", Self::forget_outdated),
            ("look for the node's own connections", Self::follow_own_connections),
            ("count drops and answers", Self::count_drops),
        ];
        let with_flows: [Job; 4] = [
            ("count what policies said", Self::count_verdicts),
            ("end tables whose place others have taken", Self::settle_tables),
            ("expire flows", Self::expire_flows),
            ("count connections", Self::count_connections),
        ];
        for (what, job) in jobs.into_iter().chain(with_flows.into_iter().filter(|_| flows)) {
            if let Err(error) = job(self) {
                error!(error = format!("{error:#}"), "cannot {what}");
            }
        }
    }

    fn settle_tables(&mut self) -> Result<()> {
        if self.ready { self.dataplane.settle_again() } else { Ok(()) }
    }

    fn follow_masquerade(&mut self) -> Result<()> {
        if self.masquerade.follow()? {
            self.view.masquerade = self.masquerade.now().clone();
            self.behind.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn sweep_slots(&mut self) -> Result<()> {
        let now = Instant::now();
        self.v4.services.sweep(now)?;
        self.v6.services.sweep(now)?;
        Ok(())
    }

    fn count_verdicts(&mut self) -> Result<()> {
        self.outputs.status.verdicts(self.policies.counts()?);
        Ok(())
    }

    fn follow_watchers(&mut self) -> Result<()> {
        if self.config.is_watched()? && monitor::is_unwatched(&self.options.state_dir) {
            info!("whoever watched what programs decide has gone without a word");
            self.config.unwatch()?;
        }
        Ok(())
    }

    fn sweep_policies(&mut self) -> Result<()> {
        self.policies.sweep(Instant::now())
    }

    fn forget_outdated(&mut self) -> Result<()> {
        let start = Instant::now();
        if self.ready && self.outdated && start >= self.next_look {
            let mut sockets = Stale::new();
            let forgotten = self.v4.forget_outdated(&mut sockets);
            let forgotten = forgotten.and_then(|()| self.v6.forget_outdated(&mut sockets));
            // What was forgotten of sockets is not found a second time.
            let looked = self.end_sockets(&sockets).and(forgotten);
            self.next_look = Instant::now() + 9 * start.elapsed();
            self.outdated = looked.is_err();
            return looked;
        }
        Ok(())
    }

    /// Sets the numbers of connections to what is true, see [`loads`].
    fn count_connections(&mut self) -> Result<()> {
        let start = Instant::now();
        if start < self.next_count {
            return Ok(());
        }
        let (v4, v6) = (self.v4.loads.read()?, self.v6.loads.read()?);
        let mut counted = Counted::of(v4.keys().map(loads::end).chain(v6.keys().map(loads::end)));
        if counted.is_empty() {
            return Ok(());
        }
        let pods = self.pods.all().map(|pod| Path::new(&pod.netns));
        loads::count(&mut counted, pods.filter(|netns| *netns != Path::new("")))?;
        self.v4.flows.open(|key| counted.add(loads::end(&key)))?;
        self.v6.flows.open(|key| counted.add(loads::end(&key)))?;
        self.v4.loads.settle(&v4, &counted)?;
        self.v6.loads.settle(&v6, &counted)?;
        self.next_count = Instant::now() + 9 * start.elapsed();
        Ok(())
    }

    fn end_sockets(&self, stale: &Stale) -> Result<()> {
        if stale.is_empty() {
            return Ok(());
        }
        let pods = self.pods.all().map(|pod| Path::new(&pod.netns));
        let ended = sockets::end(stale, pods.filter(|netns| *netns != Path::new("")))
            .context("end UDP sockets whose endpoints are gone")?;
        if ended > 0 {
            info!(
                ended,
                "ended UDP sockets that were connected to endpoints which no longer serve"
            );
        }
        Ok(())
    }

    fn follow_surroundings(&mut self) -> Result<()> {
        self.stirred |= self.surroundings_changed()?;
        if !self.stirred || !self.ready {
            return Ok(());
        }
        self.forget_vanished()?;
        let changed = self.look_around().inspect_err(|_| {
            // Part of what was seen may be new, and would not be new to the next look.
            self.behind.get_or_insert_with(Instant::now);
        })?;
        if changed || self.overlay_is_gone()? {
            // The next reconciliation sees to the rest.
            self.behind.get_or_insert_with(Instant::now);
        } else {
            self.tend_routes()?;
            self.attach()?;
        }
        self.stirred = false;
        Ok(())
    }

    /// Forgets pods whose interface is gone.
    fn forget_vanished(&mut self) -> Result<()> {
        self.pods.forget_vanished(&mut self.dataplane, &mut self.netlink)?;
        // Again at every look: an earlier one may have failed.
        self.tend_host_ports()?;
        if !self.pods.leaving().is_empty() {
            self.restrict_pods(None)?;
            self.forget_flows()?;
            self.tell_pods();
        }
        Ok(())
    }

    /// Whether somebody removed the overlay device, or took it down.
    fn overlay_is_gone(&mut self) -> Result<bool> {
        let index = self.view.overlay_ifindex;
        Ok(index != 0 && self.netlink.link_by_index(index)?.is_none_or(|link| !link.up))
    }

    fn count_drops(&mut self) -> Result<()> {
        self.outputs.status.drops(self.dataplane.drops()?);
        self.outputs.status.answers(self.dataplane.answers()?);
        Ok(())
    }

    fn expire_flows(&mut self) -> Result<()> {
        if let Some(now) = self.clock.now(&mut self.dataplane)? {
            let age = |stamp| now.seconds_since(stamp);
            let limits = IdleLimits::new(&self.options);
            let left = self.v4.flows.expire(limits, age)? + self.v6.flows.expire(limits, age)?;
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

    /// Answers a request of the CNI plugin, or lets it wait for the model that it needs. A plugin
    /// that does not wait for its answer has gone; its DEL will come.
    fn serve(&mut self, request: Request, answer: oneshot::Sender<Response>) {
        match request {
            Request::AddEndpoint { endpoint } => {
                let add = Add::new(endpoint, answer);
                if self.ready && !self.admits(&add.endpoint) {
                    debug!(pod = describe(&add.endpoint), "an ADD waits for its pod");
                    self.waiting.push(add, &self.outputs.status);
                } else {
                    self.add(add);
                }
            }
            request => {
                if let Request::DeleteEndpoint { container_id, interface } = &request {
                    let status = &self.outputs.status;
                    self.waiting.cancel(container_id, interface, "a DEL", status);
                }
                let _ = answer.send(self.answer(request));
            }
        }
    }

    fn admits(&self, endpoint: &Endpoint) -> bool {
        let is_alone = self.options.feed.is_empty();
        let model = self.in_force();
        is_alone || model.is_some_and(|m| admission::known(&m, &self.node, endpoint).is_ok())
    }

    /// Answers the ADDs that waited for the model that is now in force.
    fn admit_known(&mut self) {
        if self.waiting.len() > 0
            && let Some(model) = self.in_force()
        {
            for add in self.waiting.admitted(&model) {
                // Its plugin may have given up.
                if !add.is_given_up() {
                    self.add(add);
                }
            }
        }
        self.outputs.status.waiting(self.waiting.len());
    }

    fn expire_waiting(&mut self) {
        let model = self.in_force().unwrap_or_default();
        self.waiting.expire(Instant::now(), &model, &self.outputs.status);
    }

    fn add(&mut self, add: Add) {
        let response = self.answer(Request::AddEndpoint { endpoint: add.endpoint.clone() });
        add.answer(response, &self.outputs.status);
    }

    fn answer(&mut self, request: Request) -> Response {
        let try_again = |message: String| Response::Error(Refusal { try_again: true, message });
        let needs_state = !matches!(
            request,
            Request::DeleteEndpoint { .. } | Request::ListEndpoints | Request::ResolveName { .. }
        );
        if !self.ready && needs_state {
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
            Request::KnownAddresses { uid } => {
                let known = admission::known_addresses(self.pods.former(), &uid);
                return Response::KnownAddresses(known);
            }
            Request::AddEndpoint { endpoint } => self.register(endpoint),
            Request::DeleteEndpoint { container_id, interface } => {
                self.delete(&container_id, &interface)
            }
            Request::CheckEndpoint { endpoint } => self.check(&endpoint),
            Request::ListEndpoints => return Response::Endpoints { endpoints: self.pods.list() },
            // Whoever answers DNS queries has been asked before.
            Request::ResolveName { .. } => {
                Err(anyhow::anyhow!("this agent does not answer DNS queries"))
            }
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
        Response::NodeConfig(NodeConfig { node: self.node.clone(), pod_cidrs, mtu: self.pod_mtu() })
    }

    /// The pod first and its host ports last: they lead to a pod that is there.
    fn register(&mut self, endpoint: Endpoint) -> Result<()> {
        if self.pods.check_unclaimed(&endpoint).is_err() {
            // Whoever is in the way may be gone: a DEL does without an agent that is away.
            self.forget_vanished()?;
        }
        let is_new = !self.pods.knows(&endpoint);
        let (id, interface) = (endpoint.container_id.clone(), endpoint.interface.clone());
        let model = self.in_force();
        let exempt = model.and_then(|m| admission::sockets_exempt(&m, &self.node, &endpoint));
        // It is restricted before a program could pass its packets, and who it is is known.
        self.restrict_pods(Some(&endpoint))?;
        if let Err(error) = self.pods.add(&mut self.dataplane, &mut self.netlink, endpoint, exempt)
        {
            self.restrict_pods(None)?;
            return Err(error);
        }
        let ready = self.tend_host_ports().context("open the pod's host ports");
        // An earlier life of it may have had other addresses.
        let Err(error) = ready.and_then(|()| self.forget_flows()) else { return Ok(()) };
        if is_new {
            self.delete(&id, &interface)?;
        }
        Err(error)
    }

    fn check(&self, endpoint: &Endpoint) -> Result<()> {
        self.pods.check(&self.dataplane, endpoint)?;
        let ports = self.host_ports(std::iter::once(endpoint));
        self.v4.check_host_ports(&ports)?;
        self.v6.check_host_ports(&ports)
    }

    fn delete(&mut self, container_id: &str, interface: &str) -> Result<()> {
        self.pods.remove(&mut self.dataplane, container_id, interface)?;
        // Its addresses are nobody's from here on.
        self.restrict_pods(None)?;
        // While a host port still leads to the pod, new flows to it begin.
        self.tend_host_ports().context("close the pod's host ports")?;
        self.forget_flows().context("forget the pod's flows")
    }

    /// Forgets the flows of pods that are forgotten themselves, which ends what is to be done for them.
    fn forget_flows(&mut self) -> Result<()> {
        for address in self.pods.leaving().iter().flat_map(|pod| &pod.addresses) {
            match address {
                IpAddr::V4(address) => self.v4.flows.forget_address(address.octets())?,
                IpAddr::V6(address) => self.v6.flows.forget_address(address.octets())?,
            }
        }
        self.pods.have_left();
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
        self.outputs.status.pods(self.pods.all().count());
        self.outputs.local_pods.send_if_modified(|known| {
            let changed = *known != pods;
            *known = pods;
            changed
        });
    }
}

/// Gives records to what is open in pods with these addresses, which are about to be restricted.
fn note_flows(
    pods: &Pods,
    addresses: &BTreeSet<IpAddr>,
    node: &[IpAddr],
    dataplane: &mut Dataplane,
    (v4, v6): (&mut Families<V4>, &mut Families<V6>),
) -> Result<()> {
    let now = dataplane.clock()?;
    let mut of_node = None;
    for pod in pods.all().filter(|pod| pod.addresses.iter().any(|a| addresses.contains(a))) {
        let own: &Vec<_> = match &mut of_node {
            Some(own) => own,
            none => none.insert(opened::own_sockets()?),
        };
        let host = opened::Host { addresses: node, sockets: own };
        let sockets = opened::sockets(Path::new(&pod.netns))
            .with_context(|| format!("network namespace {} of {}", pod.netns, describe(pod)))?;
        for flow in opened::flows(&sockets, addresses, &host, now) {
            v4.flows.begin(&flow)?;
        }
        for flow in opened::flows(&sockets, addresses, &host, now) {
            v6.flows.begin(&flow)?;
        }
    }
    Ok(())
}

/// The Services of which something differs between two models.
fn differing_services(one: &Model, other: &Model) -> BTreeSet<ObjectName> {
    let services = one.services.diff(&other.services).map(|service| service.name().clone());
    services.chain(one.endpoints.diff(&other.endpoints).map(|of| of.name().clone())).collect()
}
