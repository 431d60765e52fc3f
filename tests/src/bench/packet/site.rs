//! The node whose programs are measured, and the ways through them.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, MapData};
use aya::programs::Xdp;
use fairway_netlink::Netlink;
use fairway_proxy::dataplane::Dataplane;
use serde_json::json;

use super::frame::{ACK, SYN, SYN_ACK, ends, ports_at, segment};
use super::runs::{Kind, Packet, Ran, Runs};
use super::{Measured, Options};
use crate::bench::agent::Agent;
use crate::bench::bed::{Bed, Pod};
use crate::bench::progress;
use crate::bench::stats::Series;
use crate::bench::worker;
use crate::topology::{Backend, NodePlan};
use crate::underlay::UPLINK;

/// The node itself, a peer in another subnet, a peer in the same one.
pub(super) const NODES: u8 = 3;
pub(super) const SUBNETS: u8 = 2;

/// How long the agent may take to write all tables.
const PATIENCE: Duration = Duration::from_secs(60);
/// The port of every Service.
const PORT: u16 = 80;
/// The port of every endpoint.
const TARGET_PORT: u16 = 8080;
/// A client's port: one that masquerade may keep.
const CLIENT_PORT: u16 = 20_000;
/// A port of the node that nothing translates.
const SSH: u16 = 22;
/// The agent's default.
const VNI: u32 = 1;
/// How often a program is run that leaves the packet's metadata such that it cannot be repeated.
const SINGLE_RUNS: u32 = 501;

/// What programs answer (`TC_ACT_*`, `XDP_*`).
const UNSPEC: i32 = -1;
const REDIRECT: i32 = 7;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;

/// A Service, named after where its one endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// The pod `server`.
    Pod,
    /// The node itself.
    Host,
    /// A pod of the peer behind the tunnel.
    Tunnel,
    /// A pod of the peer that is routed to.
    Direct,
}

impl Service {
    const ALL: [Self; 4] = [Self::Pod, Self::Host, Self::Tunnel, Self::Direct];

    fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Host => "host",
            Self::Tunnel => "tunnel",
            Self::Direct => "direct",
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Pod => 0,
            Self::Host => 1,
            Self::Tunnel => 2,
            Self::Direct => 3,
        }
    }

    fn node_port(self) -> u16 {
        30_080 + self.number()
    }
}

/// Who is where, in one family.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    client: IpAddr,
    server: IpAddr,
    node: IpAddr,
    outside: IpAddr,
    /// A pod of the peer behind the tunnel.
    tunnelled: IpAddr,
    /// A pod of the peer that is routed to.
    direct: IpAddr,
    /// What the first ClusterIP follows.
    services: IpAddr,
}

impl Addresses {
    fn is_v6(&self) -> bool {
        self.node.is_ipv6()
    }

    fn family(&self) -> u8 {
        if self.is_v6() { 6 } else { 4 }
    }

    fn endpoint(&self, service: Service) -> IpAddr {
        match service {
            Service::Pod => self.server,
            Service::Host => self.node,
            Service::Tunnel => self.tunnelled,
            Service::Direct => self.direct,
        }
    }

    fn cluster_ip(&self, service: Service) -> IpAddr {
        nth(self.services, 100 + service.number())
    }
}

/// What has to stay while the programs are measured.
pub(super) struct Parts {
    addresses: [Addresses; 2],
    _agent: Agent,
}

impl Parts {
    /// Connects the pods, starts the agent and tells it of the Services.
    pub(super) fn build(bed: &Bed) -> Result<Self> {
        let [node, far, near] = [bed.node(0)?, bed.node(1)?, bed.node(2)?];
        let agent = Agent::start(bed, node, Backend::Auto, &[far, near])?;
        let [client, server] = [bed.cni_pod(node, "client")?, bed.cni_pod(node, "server")?];
        let addresses = |v6: bool| -> Result<Addresses> {
            let of = |all: &[IpAddr]| {
                let found = all.iter().copied().find(|address| address.is_ipv6() == v6);
                found.context("find an address of each family")
            };
            let pod = |pod: &Pod| of(&pod.addresses);
            let range = |ranges: &[ipnet::IpNet]| -> Result<IpAddr> {
                of(&ranges.iter().map(ipnet::IpNet::network).collect::<Vec<_>>())
            };
            let peer = |peer: &NodePlan| Ok::<_, anyhow::Error>(nth(range(&peer.pod_cidrs)?, 9));
            Ok(Addresses {
                client: pod(&client)?,
                server: pod(&server)?,
                node: of(&node.addresses.ips())?,
                outside: of(&bed.cluster.topology.client.ips())?,
                tunnelled: peer(far)?,
                direct: peer(near)?,
                services: range(&bed.cluster.options.service_cidr)?,
            })
        };
        let addresses = [addresses(false)?, addresses(true)?];
        agent.write("services.yaml", &manifests(&addresses))?;
        Ok(Self { addresses, _agent: agent })
    }
}

fn manifests(families: &[Addresses; 2]) -> String {
    let mut text = String::new();
    let mut add = |object: serde_json::Value| text += &format!("---\n{object}\n"); // JSON is YAML
    for service in Service::ALL {
        let name = service.name();
        let ips = families.map(|family| family.cluster_ip(service));
        add(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "bench"},
            "spec": {
                "type": "NodePort",
                "clusterIP": ips[0],
                "clusterIPs": ips,
                "ipFamilies": ["IPv4", "IPv6"],
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [{
                    "port": PORT, "targetPort": TARGET_PORT, "nodePort": service.node_port(),
                }],
            },
        }));
        for family in families {
            let number = family.family();
            add(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{number}"),
                    "namespace": "bench",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": format!("IPv{number}"),
                "ports": [{"port": TARGET_PORT}],
                "endpoints": [{"addresses": [family.endpoint(service)]}],
            }));
        }
    }
    text
}

/// The address this far behind another.
fn nth(address: IpAddr, number: u16) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            IpAddr::V4(std::net::Ipv4Addr::from_bits(address.to_bits() + u32::from(number)))
        }
        IpAddr::V6(address) => {
            IpAddr::V6(std::net::Ipv6Addr::from_bits(address.to_bits() + u128::from(number)))
        }
    }
}

/// A hook that packets pass.
#[derive(Clone, Copy, Debug)]
struct Hook {
    program: &'static str,
    kind: Kind,
    device: u32,
    /// The peer that packets come from, and the tunnel's number.
    tunnel: Option<([u8; 4], u32)>,
}

/// What is to be said of a way, and how its packets look.
#[derive(Clone, Debug)]
struct Way {
    path: &'static str,
    family: u8,
    hook: Hook,
    /// Source and destination of the flow's first packet.
    ends: [SocketAddr; 2],
    flow: Flow,
    /// What the program is to answer: another answer is another way.
    action: i32,
    /// The program cannot be repeated with the same packet.
    single: bool,
}

/// What there is of a flow before its packet is measured.
#[derive(Clone, Copy, Debug)]
enum Flow {
    /// Nothing, and nothing comes of it.
    None,
    /// Nothing; each packet opens one.
    New,
    /// All: the first packet was seen at one hook, its answer at the other. The next packet is
    /// measured.
    Open([Hook; 2]),
    /// The same; the next answer is measured.
    Answered([Hook; 2]),
}

/// The loaded programs, over the agent's tables. Belongs into the node's network namespace.
pub(super) struct Site<'a> {
    dataplane: Dataplane,
    bed: &'a Bed,
    families: [Addresses; 2],
    client: u32,
    server: u32,
    uplink: u32,
    overlay: u32,
    /// The underlay address of the peer behind the tunnel.
    peer: [u8; 4],
}

impl<'a> Site<'a> {
    /// Loads the programs; returns when the agent has written the tables.
    pub(super) fn new(bed: &'a Bed, parts: &Parts) -> Result<Self> {
        let bpffs = bed.cluster.names.node_bpffs(&bed.node(0)?.name);
        let mut dataplane = Dataplane::load(&bpffs)?;
        let xdp = dataplane.ebpf().program_mut("uplink_xdp").context("find the XDP program")?;
        let xdp: &mut Xdp = xdp.try_into().context("find an XDP program")?;
        xdp.load().context("load the XDP program")?;

        let families = parts.addresses;
        let mut netlink = Netlink::open()?;
        let mut device = |address: IpAddr| -> Result<u32> {
            let route = netlink.route_to(address)?;
            Ok(route.with_context(|| format!("find the way to {address}"))?.device)
        };
        let (client, server) = (device(families[0].client)?, device(families[0].server)?);
        let uplink = netlink.link(UPLINK)?.context("find the uplink")?.index;
        let links = netlink.links()?;
        let overlay = links.iter().find(|link| link.kind.as_deref() == Some("vxlan"));
        let overlay = overlay.context("find the overlay device")?.index;
        let IpAddr::V4(peer) = bed.node(1)?.addresses.ips()[0] else {
            bail!("the peer has no IPv4 address");
        };
        // XDP sends only to neighbours that are known: the peer, and the router towards outside. An
        // answer is that nobody listens.
        let outside = bed.cluster.topology.client.ips();
        for address in bed.node(2)?.addresses.ips().into_iter().chain(outside) {
            let _ = TcpStream::connect_timeout(&(address, 9).into(), Duration::from_secs(1));
        }
        let peer = peer.octets();
        let mut site = Self { dataplane, bed, families, client, server, uplink, overlay, peer };
        bed.wait_until(PATIENCE, "the agent's tables", || site.has_services())?;
        Ok(site)
    }

    fn has_services(&mut self) -> Result<bool> {
        for family in self.families {
            for service in Service::ALL {
                let ends =
                    [(family.cluster_ip(service), PORT, 0), (family.node, service.node_port(), 1)];
                for (address, port, scope) in ends {
                    let rest = [&port.to_be_bytes()[..], &[6, scope]].concat();
                    let there = match address {
                        IpAddr::V4(address) => {
                            let key = [&address.octets()[..], &rest].concat();
                            self.has::<8, 24>("frontends4", &key)?
                        }
                        IpAddr::V6(address) => {
                            let key = [&address.octets()[..], &rest].concat();
                            self.has::<20, 24>("frontends6", &key)?
                        }
                    };
                    if !there {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    fn has<const K: usize, const V: usize>(&mut self, table: &str, key: &[u8]) -> Result<bool> {
        let key: [u8; K] = key.try_into().context("a key of the table's size")?;
        Ok(self.table::<K, V>(table)?.get(&key, 0).is_ok())
    }

    fn table<const K: usize, const V: usize>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, [u8; K], [u8; V]>> {
        let map = self.dataplane.ebpf().map_mut(name);
        let map = map.with_context(|| format!("find table {name}"))?;
        HashMap::try_from(map).with_context(|| format!("open table {name}"))
    }

    /// Ends all flows; how many records of them there were.
    fn forget_flows(&mut self) -> Result<usize> {
        fn clear<const K: usize, const V: usize>(site: &mut Site<'_>, name: &str) -> Result<usize> {
            let mut table = site.table::<K, V>(name)?;
            let keys: Vec<[u8; K]> = table.keys().filter_map(Result::ok).collect();
            for key in &keys {
                // One that is gone already is as good.
                let _ = table.remove(key);
            }
            Ok(keys.len())
        }
        Ok(clear::<16, 24>(self, "half_open4")?
            + clear::<16, 24>(self, "flows4")?
            + clear::<40, 48>(self, "half_open6")?
            + clear::<40, 48>(self, "flows6")?)
    }

    /// Every way through every program.
    fn ways(&self) -> Vec<Way> {
        self.families.iter().flat_map(|family| self.ways_of(family)).collect()
    }

    fn ways_of(&self, family: &Addresses) -> Vec<Way> {
        let tc = |program, device| Hook { program, kind: Kind::Tc, device, tunnel: None };
        let sent = tc("pod_ingress", self.client);
        let answered = tc("pod_ingress", self.server);
        let arrived = tc("uplink_ingress", self.uplink);
        let early = Hook { kind: Kind::Xdp, ..tc("uplink_xdp", self.uplink) };
        let overlay =
            Hook { tunnel: Some((self.peer, VNI)), ..tc("overlay_ingress", self.overlay) };
        let to_pod = tc("pod_egress", self.client);
        let client = SocketAddr::new(family.client, CLIENT_PORT);
        let outside = SocketAddr::new(family.outside, CLIENT_PORT);
        let node = SocketAddr::new(family.node, CLIENT_PORT);
        let at = |address| SocketAddr::new(address, TARGET_PORT);
        let cluster_ip = |service| SocketAddr::new(family.cluster_ip(service), PORT);
        let node_port = |service: Service| SocketAddr::new(family.node, service.node_port());
        let way = |path, hook, source, destination, flow, action| Way {
            path,
            family: family.family(),
            hook,
            ends: [source, destination],
            flow,
            action,
            single: false,
        };
        let (pod, tunnel, direct) = (Service::Pod, Service::Tunnel, Service::Direct);
        let ssh = SocketAddr::new(family.node, SSH);
        let mut ways = vec![
            way("plain to pod", sent, client, at(family.server), Flow::None, REDIRECT),
            way("plain to routed peer", sent, client, at(family.direct), Flow::None, REDIRECT),
            way("plain to tunnel", sent, client, at(family.tunnelled), Flow::None, REDIRECT),
        ];
        let flow = |service| match service {
            Service::Tunnel => [sent, overlay],
            Service::Direct => [sent, arrived],
            Service::Pod | Service::Host => [sent, answered],
        };
        for (service, miss, hit) in [
            (pod, "ClusterIP miss to pod", "ClusterIP hit to pod"),
            (direct, "ClusterIP miss to routed peer", "ClusterIP hit to routed peer"),
            (tunnel, "ClusterIP miss to tunnel", "ClusterIP hit to tunnel"),
        ] {
            let open = Flow::Open(flow(service));
            ways.push(way(miss, sent, client, cluster_ip(service), Flow::New, REDIRECT));
            ways.push(way(hit, sent, client, cluster_ip(service), open, REDIRECT));
        }
        let reply = |service| Flow::Answered(flow(service));
        let (node_local, node_remote) = (node_port(pod), node_port(direct));
        let masquerade = [sent, arrived];
        let local = [arrived, answered];
        let remote = [arrived, arrived];
        ways.extend([
            way("ClusterIP reply", answered, client, cluster_ip(pod), reply(pod), REDIRECT),
            way("masquerade miss", sent, client, at(family.outside), Flow::New, REDIRECT),
            way(
                "masquerade hit",
                sent,
                client,
                at(family.outside),
                Flow::Open(masquerade),
                REDIRECT,
            ),
            way("NodePort reply", answered, outside, node_local, Flow::Answered(local), REDIRECT),
            way("not ours", arrived, outside, ssh, Flow::None, UNSPEC),
            way("plain to pod", arrived, at(family.direct), client, Flow::None, REDIRECT),
            way("NodePort miss to pod", arrived, outside, node_local, Flow::New, REDIRECT),
            way("NodePort hit to pod", arrived, outside, node_local, Flow::Open(local), REDIRECT),
            way("NodePort miss to routed peer", arrived, outside, node_remote, Flow::New, REDIRECT),
            way(
                "NodePort hit to routed peer",
                arrived,
                outside,
                node_remote,
                Flow::Open(remote),
                REDIRECT,
            ),
            way(
                "NodePort reply from routed peer",
                arrived,
                outside,
                node_remote,
                Flow::Answered(remote),
                REDIRECT,
            ),
            way(
                "masquerade reply",
                arrived,
                client,
                at(family.outside),
                Flow::Answered(masquerade),
                REDIRECT,
            ),
            way("not ours", early, outside, ssh, Flow::None, XDP_PASS),
            way("NodePort hit to pod", early, outside, node_local, Flow::Open(local), XDP_PASS),
            way("NodePort miss to routed peer", early, outside, node_remote, Flow::New, XDP_TX),
            way(
                "NodePort hit to routed peer",
                early,
                outside,
                node_remote,
                Flow::Open(remote),
                XDP_TX,
            ),
            way(
                "NodePort reply from routed peer",
                early,
                outside,
                node_remote,
                Flow::Answered(remote),
                XDP_TX,
            ),
            way("plain to pod", overlay, at(family.tunnelled), client, Flow::None, REDIRECT),
            way("ClusterIP reply", overlay, client, cluster_ip(tunnel), reply(tunnel), REDIRECT),
            way("not ours", to_pod, node, client, Flow::None, UNSPEC),
            way(
                "ClusterIP reply from host",
                to_pod,
                client,
                cluster_ip(Service::Host),
                Flow::Answered([sent, to_pod]),
                UNSPEC,
            ),
            way("not ours", tc("uplink_egress", self.uplink), ssh, outside, Flow::None, UNSPEC),
            Way {
                single: true,
                ..way(
                    "plain to tunnel",
                    tc("overlay_egress", self.overlay),
                    node,
                    at(family.tunnelled),
                    Flow::None,
                    UNSPEC,
                )
            },
        ]);
        ways
    }

    /// Measures all ways in turns.
    pub(super) fn measure(mut self, options: &Options) -> Result<Vec<Measured>> {
        worker::settle_on(worker::last_cpu()?)?;
        let mut results = Vec::new();
        let only = &options.only;
        let wanted = |way: &Way| way.hook.program.contains(only) || way.path.contains(only);
        for way in self.ways().into_iter().filter(wanted) {
            let about = || format!("{}, {}, IPv{}", way.hook.program, way.path, way.family);
            let program = self.dataplane.ebpf().program(way.hook.program);
            let info = program.with_context(about)?.info().with_context(about)?;
            let measured = Measured {
                program: way.hook.program,
                path: way.path,
                family: way.family,
                verified: info.verified_instruction_count().unwrap_or_default(),
                own: Series::default(),
                idle: Series::default(),
            };
            let ready = self.prepare(&way).with_context(about)?;
            results.push((way, ready, measured));
        }
        ensure!(
            !results.is_empty(),
            "no way has {only:?} in its name: see the table without --only"
        );
        for round in 0..options.rounds {
            progress(&format!("round {} of {}", round + 1, options.rounds));
            for (way, ready, measured) in &mut results {
                self.bed.check()?;
                let about =
                    || format!("{}, {}, IPv{}", measured.program, measured.path, way.family);
                let [own, idle] =
                    self.pair(way, ready, options.packets, round % 2 == 0).with_context(about)?;
                measured.own.push(own);
                measured.idle.push(idle);
            }
        }
        Ok(results.into_iter().map(|(.., measured)| measured).collect())
    }

    /// What a packet takes, and what it takes to do nothing with it; in nanoseconds.
    fn pair(&mut self, way: &Way, runs: &Runs, packets: u32, own_first: bool) -> Result<[f64; 2]> {
        self.forget_flows()?;
        self.begin(way)?;
        let mut times = [0.0; 2];
        let order = if own_first { [0, 1] } else { [1, 0] };
        for which in order {
            let ran = if way.single {
                // Each by itself, with what it takes to look at the clock.
                let mut single = Series::default();
                let mut last = self.run(runs, way, which == 1, 1)?;
                for _ in 1..SINGLE_RUNS {
                    single.push(last.nanos.into());
                    last = self.run(runs, way, which == 1, 1)?;
                }
                times[which] = single.median();
                last
            } else {
                let ran = self.run(runs, way, which == 1, packets)?;
                times[which] = ran.nanos.into();
                ran
            };
            ensure!(
                which == 1 || ran.action == way.action,
                "the program answers {} instead of {}: not the way that was meant",
                ran.action,
                way.action
            );
        }
        let records = self.forget_flows()?;
        let as_meant = match way.flow {
            Flow::None => records == 0,
            // The least recently used make room.
            Flow::New => records > usize::try_from(packets)?,
            Flow::Open(_) | Flow::Answered(_) => records == 2,
        };
        ensure!(as_meant, "{records} records of flows after {packets} packets");
        Ok(times)
    }

    fn run(&mut self, runs: &Runs, way: &Way, idle: bool, repeat: u32) -> Result<Ran> {
        if idle {
            return runs.run(None, repeat);
        }
        let program = self.dataplane.ebpf().program(way.hook.program).context("find a program")?;
        runs.run(Some(program.fd()?.as_fd()), repeat)
    }

    /// Lays out the packet that is measured.
    fn prepare(&mut self, way: &Way) -> Result<Runs> {
        let measured = match way.flow {
            Flow::None | Flow::New | Flow::Open(_) => way.ends,
            Flow::Answered(_) => {
                self.forget_flows()?;
                self.begin(way)?.context("see the flow's answer")?
            }
        };
        let flags = if matches!(way.flow, Flow::New) { SYN } else { ACK };
        let step = u32::from(matches!(way.flow, Flow::New));
        Runs::new(way.hook.kind, packet(&way.hook, measured, flags, step)?)
    }

    /// Opens the way's flow; the ends of its answer.
    fn begin(&mut self, way: &Way) -> Result<Option<[SocketAddr; 2]>> {
        let (Flow::Open([first, back]) | Flow::Answered([first, back])) = way.flow else {
            return Ok(None);
        };
        let translated = self.pass(&first, way.ends, SYN)?;
        let [source, destination] = ends(&translated)?;
        let answer = [destination, source];
        ensure!([source, destination] != way.ends, "{source} to {destination} is not translated");
        let answered = self.pass(&back, answer, SYN_ACK)?;
        let [from, to] = ends(&answered)?;
        ensure!([to, from] == way.ends, "the answer becomes one from {from} to {to}");
        Ok(Some(answer))
    }

    /// Lets one packet pass a hook; what becomes of it.
    fn pass(&mut self, hook: &Hook, ends: [SocketAddr; 2], flags: u8) -> Result<Vec<u8>> {
        let runs = Runs::new(hook.kind, packet(hook, ends, flags, 0)?)?;
        let program = self.dataplane.ebpf().program(hook.program).context("find a program")?;
        Ok(runs.run(Some(program.fd()?.as_fd()), 1)?.frame)
    }
}

fn packet(hook: &Hook, ends: [SocketAddr; 2], flags: u8, step: u32) -> Result<Packet> {
    let [source, destination] = ends;
    Ok(Packet {
        frame: segment(source, destination, flags)?,
        source_port: ports_at(source.is_ipv6()),
        device: hook.device,
        step,
        tunnel: hook.tunnel,
    })
}
