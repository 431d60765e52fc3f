//! Tables that the agent's own code fills, read back by the commands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fairway_abi::layout::Layout;
use fairway_abi::{
    Affinity, AffinityKey, Config, Endpoint, Flow, FlowKey, FrontendKey, Interface, LoadKey,
    MemberKey, Namespace, Pod, PodRange, Route, Share, TunnelEnd, frontend, peer, protocol, route,
    scope,
};
use fairway_cni_protocol::{Bandwidth, Registered};
use fairway_compile::policy::LocalPod;
use fairway_compile::{Choice, EndpointList, Family, ListName};
use fairway_model::{
    Group, Member, Object, ObjectName, Pod as ModelPod, Policy, PolicyName, PortMatch, Protocol,
};
use zerocopy::FromZeros;
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use super::clock::Now;
use super::*;
use crate::dataplane::{Dataplane, Pinned, PrefixTable, Single, Table};
use crate::names::{NameTable, NamedConfig};
use crate::policy::PolicyTables;
use crate::sandbox::sandbox;
use crate::services::ServiceTables;

/// An address of each family by its last number.
trait Numbered: Family + fairway_core::Ip {
    /// An agent's suffix for tables.
    const SUFFIX: &'static str;
    fn pod(last: u8) -> Self;
    fn far(last: u8) -> Self;
    fn service(last: u8) -> Self;
    fn node() -> Self;
    fn outside() -> Self;
    fn masquerade_as(config: &mut Config);
}

impl Numbered for [u8; 4] {
    const SUFFIX: &'static str = "4";
    fn pod(last: u8) -> Self {
        [10, 244, 1, last]
    }
    fn far(last: u8) -> Self {
        [10, 244, 2, last]
    }
    fn service(last: u8) -> Self {
        [10, 96, 0, last]
    }
    fn node() -> Self {
        [192, 0, 2, 1]
    }
    fn outside() -> Self {
        [203, 0, 113, 7]
    }
    fn masquerade_as(config: &mut Config) {
        config.masquerade4 = Self::node();
    }
}

impl Numbered for [u8; 16] {
    const SUFFIX: &'static str = "6";
    fn pod(last: u8) -> Self {
        address("fd00:244:1::", last)
    }
    fn far(last: u8) -> Self {
        address("fd00:244:2::", last)
    }
    fn service(last: u8) -> Self {
        address("fd00:96::", last)
    }
    fn node() -> Self {
        address("2001:db8:1::", 1)
    }
    fn outside() -> Self {
        address("2001:db8:7::", 7)
    }
    fn masquerade_as(config: &mut Config) {
        config.masquerade6 = Self::node();
    }
}

fn address(prefix: &str, last: u8) -> [u8; 16] {
    let mut octets = prefix.parse::<std::net::Ipv6Addr>().expect("an address").octets();
    octets[15] = last;
    octets
}

/// A node's tables and its agent's files.
struct Node {
    dataplane: Dataplane,
    config: NamedConfig,
    bpffs: PathBuf,
    state: tempfile::TempDir,
}

impl Node {
    fn new(bpffs: &Path) -> Self {
        let state = tempfile::tempdir().expect("a folder");
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let config = NamedConfig::adopt(&mut dataplane, state.path()).expect("a table");
        Self { dataplane, config, bpffs: bpffs.to_owned(), state }
    }

    fn place(&self) -> Place {
        Place {
            bpffs: self.bpffs.clone(),
            state_dir: self.state.path().to_owned(),
            output: Output::Table,
        }
    }

    fn pinned(&self) -> Pinned {
        Pinned::open(&self.bpffs).expect("tables")
    }

    /// Puts these lists, routes to them and two pods in force.
    fn fill<A: Numbered>(&mut self, lists: &[EndpointList<A>]) -> ServiceTables<A> {
        let mut config = Config { first_port: 1024, last_port: 29_999, ..Config::default() };
        A::masquerade_as(&mut config);
        self.config.begin(Some(config)).expect("written");
        let mut routes: PrefixTable<A, Route<A>> =
            self.dataplane.prefixes(&format!("routes{}", A::SUFFIX)).expect("a table");
        let mut lead = |length: u8, network: A, kind: u32, peer: [u8; 16]| {
            let flags = if kind == route::TUNNEL { peer::TAKES_CLIENTS } else { 0 };
            let peer = TunnelEnd { flags: [flags, 0], ..TunnelEnd::at(peer) };
            let source = if kind == route::TUNNEL { A::pod(0) } else { A::node() };
            let found = Route { kind: U32::new(kind), source, peer };
            routes.put((length, network), &found).expect("room");
        };
        let bits = A::BITS;
        let ranges = [A::pod(0), A::far(0), A::service(0)];
        lead(bits - 8, ranges[0], route::HOST, [0; 16]);
        lead(bits - 8, ranges[1], route::TUNNEL, PEER);
        lead(bits - 8, ranges[2], route::SERVICES, [0; 16]);
        lead(bits, A::node(), route::HOST, [0; 16]);
        let mut range: Single<PodRange<A>> =
            self.dataplane.single(&format!("pod_range{}", A::SUFFIX)).expect("a table");
        let mask = A::mask(bits - 8);
        range.set(&PodRange { network: A::pod(0), mask }).expect("written");
        let mut pods: Table<A, Pod> =
            self.dataplane.table(&format!("pods{}", A::SUFFIX)).expect("a table");
        let mut interfaces: Table<u32, Interface> =
            self.dataplane.table("interfaces").expect("a table");
        let mut registered = Vec::new();
        for last in [2u8, 3] {
            let ifindex = 100 + u32::from(last);
            let pod = Pod { ifindex, mac: [2; 6], host_mac: [4; 6], flags: 0 };
            pods.put(&A::pod(last), &pod).expect("room");
            let mut interface = Interface::default();
            match A::pod(last).to_ip() {
                IpAddr::V4(address) => interface.address4 = address.octets(),
                IpAddr::V6(address) => interface.address6 = address.octets(),
            }
            interfaces.put(&ifindex, &interface).expect("room");
            registered.push(Registered {
                since: 0,
                endpoint: fairway_cni_protocol::Endpoint {
                    container_id: format!("c{last}"),
                    interface: "eth0".to_owned(),
                    pod_namespace: "shop".to_owned(),
                    pod_name: format!("web-{last}"),
                    pod_uid: String::new(),
                    host_interface: format!("fw{last}"),
                    host_ifindex: ifindex,
                    host_mac: [4; 6],
                    pod_mac: [2; 6],
                    addresses: vec![A::pod(last).to_ip()],
                    host_ports: Vec::new(),
                    bandwidth: Bandwidth::default(),
                    netns_cookie: None,
                    netns: String::new(),
                },
            });
        }
        let file = self.state.path().join("endpoints.json");
        let contents = serde_json::to_vec(&registered).expect("JSON");
        std::fs::write(file, contents).expect("written");
        let mut services = ServiceTables::adopt(&mut self.dataplane, A::SUFFIX).expect("tables");
        services.reconcile(lists, Vec::new()).expect("room");
        self.settle(&mut services);
        services
    }

    /// What the agent does when lists are as they should be, until the names are on the disk.
    fn settle<A: Numbered>(&mut self, services: &mut ServiceTables<A>) {
        let renamed = services.take_renamed();
        let (v4, v6) = if A::BITS == 32 { (renamed, Vec::new()) } else { (Vec::new(), renamed) };
        self.config.settle(v4, v6, Vec::new()).expect("written");
    }

    fn services(&self, only: Option<&str>) -> String {
        let only = only.map(|text| text.parse().expect("a filter"));
        let shown = services::read(&self.pinned(), &self.place(), only.as_ref());
        services::table(&shown.expect("tables"))
    }

    fn endpoints(&self) -> String {
        endpoints::table(&endpoints::read(&self.pinned(), &self.place(), None).expect("tables"))
    }

    fn explain(&self, source: &str, destination: &str) -> String {
        let (source, destination) = (source.parse(), destination.parse());
        let (source, destination) = (source.expect("a source"), destination.expect("a port"));
        let shown =
            explain::read(&self.pinned(), &self.place(), &source, &destination, Now::read());
        explain::text(&shown.expect("tables"))
    }
}

/// The underlay address of the node where [`Numbered::far`] pods are.
const PEER: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 2];

/// A list of shop/web, local or not, with these frontends and endpoints.
fn list<A: Numbered>(
    local: bool,
    frontends: &[(FrontendKey<A>, u32)],
    endpoints: &[(A, u16)],
    choice: Choice,
) -> EndpointList<A> {
    EndpointList {
        name: ListName::Service {
            service: ObjectName::new("shop", "web"),
            port: "http".to_owned(),
            protocol: Protocol::Tcp,
            local,
        },
        frontends: frontends.iter().copied().collect(),
        endpoints: endpoints
            .iter()
            .map(|(address, port)| Endpoint {
                address: *address,
                port: U16::new(*port),
                reserved: [0; 2],
            })
            .collect(),
        weights: BTreeMap::new(),
        lingering: BTreeSet::new(),
        choice,
        growth: 0,
        source_ranges: BTreeSet::new(),
    }
}

fn key<A: Numbered>(address: A, port: u16, scope: u8) -> FrontendKey<A> {
    FrontendKey { address, port: U16::new(port), protocol: protocol::TCP, scope }
}

/// Service shop/web with a ClusterIP, a node port that keeps to this node, and an address that is only
/// for some; one pod here, one elsewhere.
fn web<A: Numbered>(choice: Choice) -> Vec<EndpointList<A>> {
    let vip = A::service(1);
    let cluster = [
        (key(vip, 80, scope::INTERNAL), 0),
        (key(vip, 80, scope::EXTERNAL), 0),
        (key(A::node(), 30_080, scope::INTERNAL), 0),
        (key(A::service(99), 80, scope::EXTERNAL), frontend::SOURCE_RANGES),
    ];
    let mut all = list(false, &cluster, &[(A::pod(3), 8080), (A::far(4), 8080)], choice);
    all.source_ranges.insert((A::BITS - 8, A::far(0)));
    let elsewhere = Choice { flags: frontend::ELSEWHERE, affinity: 0 };
    let local = list(true, &[(key(A::node(), 30_080, scope::EXTERNAL), 0)], &[], elsewhere);
    let closed = EndpointList {
        name: ListName::ClosedPorts,
        frontends: BTreeMap::from([(fairway_core::path::any_port(vip), 0)]),
        endpoints: BTreeSet::new(),
        weights: BTreeMap::new(),
        lingering: BTreeSet::new(),
        choice: Choice::default(),
        growth: 0,
        source_ranges: BTreeSet::new(),
    };
    vec![all, local, closed]
}

#[test]
fn services_and_endpoints_are_what_the_agent_wrote() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        let affinity = Choice { flags: 0, affinity: 10_058 };
        let mut tables = node.fill::<[u8; 4]>(&web(affinity));
        let expected = "\
SERVICE    PORT   FRONTEND              FROM      ENDPOINTS   CHOICE
shop/web   http   10.96.0.1:80/TCP      inside    2           random, clients stay 10800s
shop/web   http   10.96.0.1:80/TCP      outside   2           random, clients stay 10800s
shop/web   http   10.96.0.99:80/TCP     outside   2           random, clients stay 10800s, only from 10.244.2.0/24
shop/web   http   192.0.2.1:30080/TCP   inside    2           random, clients stay 10800s
shop/web   http   192.0.2.1:30080/TCP   outside   0 here      random, none here but elsewhere";
        assert_eq!(node.services(None), expected);
        assert_eq!(node.services(Some("shop/web")), expected);
        assert_eq!(node.services(Some("10.96.0.99")).lines().count(), 2);
        assert_eq!(node.services(Some("192.0.2.1:30081")).lines().count(), 1);
        assert_eq!(node.services(Some("shop/db")).lines().count(), 1);
        let expected = "\
SERVICE    PORT   LIST        ENDPOINT              SHARE   CHOICE   POD
shop/web   http   cluster     10.244.1.3:8080/TCP   50.0%   random   shop/web-3
shop/web   http   cluster     10.244.2.4:8080/TCP   50.0%   random   -
shop/web   http   this node   none                          random";
        assert_eq!(node.endpoints(), expected);

        // A killed agent: lists have changed, and nobody wrote what they are.
        node.config.begin(None).expect("written");
        tables.reconcile(&web(Choice::default()), Vec::new()).expect("room");
        let shown = node.services(Some("10.96.0.99"));
        assert!(shown.contains("shop/web?"), "{shown}");
        assert!(shown.contains("lists were being changed"), "{shown}");
        node.settle(&mut tables);
        assert!(!node.services(None).contains('?'), "the names were those of the lists after all");
    });
}

#[test]
fn a_successor_names_lists_anew_and_never_under_a_revision_that_was() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        drop(node.fill::<[u8; 4]>(&web(Choice::default())));
        assert!(!node.services(None).contains('?'));
        let first = NameTable::read(node.state.path()).expect("names");
        assert_eq!((first.revision, first.v4.len()), (2, 3));
        // The first agent's programs and tables go, but for what is pinned; the next one changes a list
        // and dies before it writes names.
        let Node { dataplane, config, bpffs, state } = node;
        drop((dataplane, config));
        let mut dataplane = Dataplane::load_tables(&bpffs, &[]).expect("programs that load");
        let mut config = NamedConfig::adopt(&mut dataplane, state.path()).expect("a table");
        config.begin(None).expect("written");
        drop((dataplane, config));
        let mut dataplane = Dataplane::load_tables(&bpffs, &[]).expect("programs that load");
        let config = NamedConfig::adopt(&mut dataplane, state.path()).expect("a table");
        let mut node = Node { dataplane, config, bpffs, state };
        assert!(node.services(None).contains("shop/web?"));
        node.config.settle(Vec::new(), Vec::new(), Vec::new()).expect("written");
        assert!(node.services(None).contains("shop/web?"), "nobody knows what the dead one did");
        let lists = web::<[u8; 4]>(Choice::default());
        let mut services = ServiceTables::adopt(&mut node.dataplane, "4").expect("tables");
        services.reconcile(&lists, Vec::new()).expect("room");
        node.settle(&mut services);
        assert!(!node.services(None).contains('?'));
        assert!(NameTable::read(node.state.path()).expect("names").revision > first.revision);
    });
}

#[test]
fn the_manual_has_every_reason() {
    let manual = include_str!("../../../docs/troubleshooting.md");
    for reason in fairway_abi::DropReason::ALL {
        let line = format!("| `{}` | {} |", reason.name(), reason.meaning());
        assert!(manual.lines().any(|said| said == line), "{line}");
    }
}

#[test]
fn other_versions_are_named() {
    sandbox(|bpffs| {
        let error = Pinned::open(bpffs).expect_err("no tables").to_string();
        assert!(error.contains("there are no tables in"), "{error}");
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("programs that load");
        let mut layout = dataplane.single::<Layout>("layout").expect("a table");
        let other = fairway_abi::VERSION + 1;
        let of_other = Layout { version: U32::new(other), ..layout.get().expect("an entry") };
        layout.set(&of_other).expect("written");
        let error = Pinned::open(bpffs).expect_err("other tables").to_string();
        let versions =
            format!("have version {other} and this program reads version {}", fairway_abi::VERSION);
        assert!(error.contains(&versions), "{error}");
    });
}

#[test]
fn tables_that_are_read_cannot_be_changed() {
    sandbox(|bpffs| {
        let node = Node::new(bpffs);
        let mut table: Table<u32, u32> = node.pinned().table("turns").expect("a table");
        let error = table.put(&1, &1).expect_err("opened to be read");
        assert!(format!("{error:#}").contains("Operation not permitted"), "{error:#}");
    });
}

#[test]
fn flows_are_pairs_and_forgotten_as_pairs() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        let services = node.fill::<[u8; 4]>(&web(Choice::default()));
        drop(services);
        let now = Now::read();
        let put = |table: &str, client: u8, service: u32, seen: u32, states: [u32; 2]| {
            let mut table: Table<_, _> = node.pinned().table_to_change(table).expect("a table");
            for (key, flow) in flow_records(client, service, seen, states) {
                table.put(&key, &flow).expect("room");
            }
        };
        put("flows4", 1, 1, now.jiffies, [0, 0]);
        put("flows4", 2, 1, now.jiffies, [fairway_abi::flow::FIN, 0]);
        put("half_open4", 3, 0, now.jiffies, [0, 0]);
        let list = |filter: &conntrack::Filter| {
            let shown = conntrack::read(&node.pinned(), &node.place(), filter, now);
            conntrack::table(&shown.expect("tables"))
        };
        let all = conntrack::Filter::default();
        let expected = "\
PROTOCOL   STATE         IDLE   ORIGINAL                              TRANSLATED                            SERVICE
TCP        established   0s     203.0.113.1:40000 -> 192.0.2.1:30080   192.0.2.1:40001 -> 10.244.2.4:8080   shop/web http
TCP        closing       0s     203.0.113.2:40000 -> 192.0.2.1:30080   192.0.2.1:40002 -> 10.244.2.4:8080   shop/web http
TCP        half-open     0s     203.0.113.3:40000 -> 192.0.2.1:30080   192.0.2.1:40003 -> 10.244.2.4:8080   -";
        assert_eq!(squeeze(&list(&all)), squeeze(expected));

        let of = |client: &str| conntrack::Filter {
            source: Some(client.parse().expect("a range")),
            ..all.clone()
        };
        let flush = |filter: &conntrack::Filter| {
            conntrack::flush(&node.pinned(), &node.place(), filter).expect("tables")
        };
        assert_eq!(flush(&of("198.51.100.0/24")), 0);
        assert_eq!(flush(&of("203.0.113.2/32")), 1);
        assert_eq!(list(&all).lines().count(), 3);
        let web = conntrack::Filter {
            service: Some("shop/web".parse().expect("a Service")),
            ..all.clone()
        };
        assert_eq!((flush(&web), flush(&all), flush(&all)), (1, 1, 0));
        for table in ["flows4", "half_open4"] {
            let table: Table<FlowKey<[u8; 4]>, Flow<[u8; 4]>> =
                node.pinned().table(table).expect("a table");
            assert_eq!(table.count().expect("a table"), 0, "both records are gone");
        }
    });
}

type Record = (FlowKey<[u8; 4]>, Flow<[u8; 4]>);

/// A client's flow to the node port and on to the endpoint elsewhere.
fn flow_records(client: u8, service: u32, seen: u32, states: [u32; 2]) -> [Record; 2] {
    let client = ([203, 0, 113, client], U16::new(40_000));
    // Each client gets a port of its own on the node's address; here, the answers' keys differ by it.
    let node = ([192, 0, 2, 1], U16::new(40_000 + u16::from(client.0[3])));
    let port = ([192, 0, 2, 1], U16::new(30_080));
    let endpoint = ([10, 244, 2, 4], U16::new(8080));
    let record = |from: ([u8; 4], U16), to: ([u8; 4], U16), new: [([u8; 4], U16); 2], state| {
        let mut key = FlowKey::new_zeroed();
        (key.source, key.source_port) = from;
        (key.destination, key.destination_port) = to;
        key.protocol = protocol::TCP;
        let flow = Flow {
            source: new[0].0,
            source_port: new[0].1,
            destination: new[1].0,
            destination_port: new[1].1,
            last_seen: U32::new(seen),
            service: U32::new(service),
            state: U32::new(state),
        };
        (key, flow)
    };
    [
        record(client, port, [node, endpoint], states[0]),
        record(endpoint, node, [port, client], states[1] | fairway_abi::flow::REPLY),
    ]
}

/// Without what only fills columns.
fn squeeze(text: &str) -> String {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
fn a_packets_way_is_explained_over_ipv4() {
    explained::<[u8; 4]>();
}

#[test]
fn a_packets_way_is_explained_over_ipv6() {
    explained::<[u8; 16]>();
}

fn explained<A: Numbered>() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        drop(node.fill::<A>(&web(Choice::default())));
        let at = |address: A, port: u16| super::at(address.to_ip(), Some(port));
        let (vip, pod, far) = (A::service(1), A::pod(3), A::far(4));
        let check = |source: &str, destination: &str, expected: &[String]| {
            let told = squeeze(&node.explain(source, destination));
            for line in expected {
                assert!(
                    told.lines().any(|said| said.contains(line.as_str())),
                    "{line:?} not in\n{told}"
                );
            }
        };
        let web = "Service shop/web, port http";
        let both = [
            format!(
                "{} 50.0% shop/web-3 {} pod here, interface fw3",
                at(pod, 8080),
                A::pod(2).to_ip()
            ),
            format!("{} 50.0% - {} tunnel to node 192.0.2.2", at(far, 8080), A::pod(2).to_ip()),
        ];
        let frontend = format!("frontend {}/TCP from inside: {web}", at(vip, 80));
        let choice = "choice random, one of 2".to_owned();
        let socket = "decided at the socket".to_owned();
        for destination in [at(vip, 80), "shop/web:http".to_owned(), "shop/web:80".to_owned()] {
            let expected =
                [&[socket.clone(), frontend.clone(), choice.clone()][..], &both].concat();
            check("shop/web-2", &destination, &expected);
        }
        let from_node = format!("{} 50.0% - {} tunnel to node", at(far, 8080), A::pod(0).to_ip());
        check("host", &at(vip, 80), &[socket.clone(), from_node]);
        // Its pod's sockets are not asked by SCTP, and nobody serves that here.
        let closed = "closed_port: A Service has the address, but not this port".to_owned();
        let has = format!("{} has no port 80/SCTP, but 80/TCP ({web}).", vip.to_ip());
        check("shop/web-2", &format!("{}/sctp", at(vip, 80)), &[closed.clone(), has]);
        for destination in [at(vip, 81), "shop/web:81".to_owned()] {
            check("shop/web-2", &destination, std::slice::from_ref(&closed));
        }
        let unallocated = format!("{} is in {}", A::service(7).to_ip(), prefix::<A>(A::service(0)));
        check(
            "shop/web-2",
            &at(A::service(7), 80),
            &["unallocated_address".to_owned(), unallocated],
        );

        let outside = A::outside().to_ip().to_string();
        let local =
            format!("leads to {web} (this node's endpoints), with externalTrafficPolicy: Local.");
        check(&outside, &at(A::node(), 30_080), &["no_local_endpoint: ".to_owned(), local]);
        let (node_address, overlay) = (A::node().to_ip(), A::pod(0).to_ip());
        check(
            &outside,
            &at(vip, 80),
            &[
                "decided where packets arrive from the network".to_owned(),
                format!("{} 50.0% shop/web-3 {outside} pod here, interface fw3", at(pod, 8080)),
                format!("{} 50.0% - {overlay} tunnel to node 192.0.2.2", at(far, 8080)),
            ],
        );
        let range = prefix::<A>(A::far(0));
        let refused = format!("{outside} may not use {web}: it is not in {range}.");
        check(&outside, &at(A::service(99), 80), &["source_range: ".to_owned(), refused]);
        check(
            &A::far(9).to_ip().to_string(),
            &at(A::service(99), 80),
            &[
                "(behind node 192.0.2.2)".to_owned(),
                format!("source ranges {} is in {range}", A::far(9).to_ip()),
            ],
        );
        let stranger = A::pod(77).to_ip().to_string();
        let foreign = format!("{stranger} is an address of this node's pods, or of pods behind");
        check(&stranger, &at(pod, 80), &["foreign_source: ".to_owned(), foreign]);

        let masquerade =
            format!("masquerade the source becomes {node_address}, with a free port of 1024-29999");
        let leaves = format!(
            "{} 100.0% - {node_address} outside, by the node's routes",
            at(A::outside(), 443)
        );
        check(
            "shop/web-2",
            &at(A::outside(), 443),
            &["frontend none".to_owned(), masquerade, leaves],
        );
        let told = node.explain("shop/web-2:50001", &at(A::outside(), 443));
        assert!(told.contains("not open yet"), "{told}");
    });
}

fn prefix<A: Numbered>(network: A) -> String {
    format!("{}/{}", network.to_ip(), A::BITS - 8)
}

#[test]
fn shares_are_shown_as_slots_make_them() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        let mut lists = web::<[u8; 4]>(Choice::default());
        let first = lists[0].endpoints.first().copied().expect("an endpoint");
        lists[0].weights.insert(first, 3);
        drop(node.fill(&lists));
        assert!(node.services(Some("10.96.0.99")).contains("outside   2 "), "two, in four slots");
        let shown = node.endpoints();
        assert!(shown.contains("10.244.1.3:8080/TCP   75.0%"), "{shown}");
        assert!(shown.contains("10.244.2.4:8080/TCP   25.0%"), "{shown}");
        let told = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        assert!(told.contains("choice random, one of 2"), "{told}");
        assert!(told.contains("10.244.1.3:8080 75.0%"), "{told}");
        assert!(told.contains("10.244.2.4:8080 25.0%"), "{told}");
    });
}

#[test]
fn the_share_of_who_is_new_is_shown_as_it_is_now() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        let growing = Choice { flags: frontend::GROWING, affinity: 0 };
        let lists = web::<[u8; 4]>(growing);
        drop(node.fill(&lists));
        let endpoint = lists[0].endpoints.first().copied().expect("an endpoint");
        let mut shares: Table<MemberKey<[u8; 4]>, Share> =
            node.pinned().table_to_change("shares4").expect("a table");
        // A third of it has grown, and goes on at a pace that no test sees.
        let (third, slow) = (100_000_000, U32::new(300_000_000));
        let since = U32::new(Now::read().seconds.wrapping_sub(third));
        let service = U32::new(1);
        let key = MemberKey { service, endpoint };
        let weight = U32::new(1);
        shares.put(&key, &Share { since, growth: slow, weight }).expect("room");
        let shown = node.endpoints();
        assert!(shown.contains("10.244.1.3:8080/TCP   24.9%"), "{shown}");
        assert!(shown.contains("10.244.2.4:8080/TCP   75.1%"), "{shown}");
        let told = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        assert!(told.contains("choice random, one of 2; those that are new get less"), "{told}");
        assert!(told.contains("10.244.1.3:8080 24.9%"), "{told}");
    });
}

#[test]
fn connections_are_shown_and_what_they_make_of_the_next_choice() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        let lists = web::<[u8; 4]>(Choice { flags: frontend::LEAST, affinity: 0 });
        drop(node.fill(&lists));
        let shown = node.endpoints();
        assert!(
            shown.contains("10.244.1.3:8080/TCP   50.0%   least connections, 0 open"),
            "{shown}"
        );
        let endpoint = lists[0].endpoints.first().copied().expect("an endpoint");
        let key = fairway_core::service::load_key(&endpoint, protocol::TCP);
        let mut loads: Table<LoadKey<[u8; 4]>, u32> =
            node.pinned().table_to_change("loads4").expect("a table");
        loads.put(&key, &7).expect("room");
        let shown = node.endpoints();
        assert!(
            shown.contains("10.244.1.3:8080/TCP   0.0%     least connections, 7 open"),
            "{shown}"
        );
        assert!(
            shown.contains("10.244.2.4:8080/TCP   100.0%   least connections, 0 open"),
            "{shown}"
        );
        let told = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        assert!(told.contains("choice the less busy of two at random, of 2"), "{told}");
        assert!(told.contains("10.244.2.4:8080 100.0%"), "{told}");
        assert_eq!(loads.get(&key).expect("a table"), Some(7), "asking opens nothing");
    });
}

#[test]
fn how_an_endpoint_is_chosen_is_told() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        let by_flow = Choice { flags: frontend::BY_FLOW, affinity: 0 };
        let mut tables = node.fill::<[u8; 4]>(&web(by_flow));
        let told = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        assert!(
            told.contains("choice by flow, one of 2, each with its share of a table"),
            "{told}"
        );
        let told = squeeze(&node.explain("203.0.113.7:40000", "10.96.0.1:80"));
        assert!(
            told.contains("choice by flow: this one leads to the same on every node"),
            "{told}"
        );
        assert_eq!(told.matches("100.0%").count(), 1, "{told}");

        let in_turn = Choice { flags: frontend::IN_TURN, affinity: 10_058 };
        tables.reconcile(&web(in_turn), Vec::new()).expect("room");
        node.settle(&mut tables);
        let told = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        assert!(told.contains("choice in turn, one of 2; "), "{told}");
        assert!(
            told.contains("affinity 203.0.113.7 will stay with its endpoint for 10800s"),
            "{told}"
        );
        let again = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        assert_eq!(told, again, "asking takes no turn");

        let client = [203, 0, 113, 7];
        let key = AffinityKey { port: U32::new(1), client };
        let endpoint =
            Endpoint { address: [10, 244, 2, 4], port: U16::new(8080), reserved: [0; 2] };
        let since = U32::new(Now::read().seconds);
        let mut affinity: Table<AffinityKey<[u8; 4]>, Affinity<[u8; 4]>> =
            node.pinned().table_to_change("affinity4").expect("a table");
        affinity.put(&key, &Affinity { endpoint, since }).expect("room");
        let told = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        assert!(told.contains("affinity 203.0.113.7 stays with 10.244.2.4:8080"), "{told}");
        assert!(told.contains("10.244.2.4:8080 100.0%"), "{told}");
    });
}

#[test]
fn a_pod_whose_sockets_are_left_alone_is_seen_by_its_packets() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        drop(node.fill::<[u8; 4]>(&web(Choice { flags: 0, affinity: 10_058 })));
        let told = squeeze(&node.explain("shop/web-2", "10.96.0.1:80"));
        assert!(told.contains("affinity 192.0.2.1 will stay"), "nobody knows whose it is: {told}");
        let mut namespaces: Table<u64, Namespace> =
            node.dataplane.table("namespaces").expect("a table");
        let addresses = Interface { address4: [10, 244, 1, 2], ..Default::default() };
        let mut own = Namespace { addresses, flags: 0 };
        namespaces.put(&7, &own).expect("room");
        let told = squeeze(&node.explain("shop/web-2", "10.96.0.1:80"));
        assert!(told.contains("decided at the socket"), "{told}");
        assert!(told.contains("affinity 10.244.1.2 will stay"), "{told}");
        own.flags = fairway_abi::namespace::EXEMPT;
        namespaces.put(&7, &own).expect("room");
        let config = super::maps::config(&node.pinned()).expect("a table");
        let flags = fairway_abi::config::EXEMPT_PODS;
        node.config.begin(Some(Config { flags, ..config })).expect("written");
        let told = squeeze(&node.explain("shop/web-2", "10.96.0.1:80"));
        assert!(
            told.contains("decided at the pod's packets: its sockets are left alone"),
            "{told}"
        );
        assert!(told.contains("10.244.1.3:8080 50.0% shop/web-3 10.244.1.2"), "{told}");
    });
}

#[test]
fn a_client_that_keeps_its_address_is_told_of() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        let keep = Choice { flags: frontend::KEEP_CLIENT, affinity: 0 };
        drop(node.fill::<[u8; 4]>(&web(keep)));
        let told = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        let way = "10.244.2.4:8080 50.0% - 203.0.113.7 tunnel to node 192.0.2.2, and answers back \
                   through it";
        assert!(told.contains(way), "{told}");
        let services = node.services(Some("10.96.0.99"));
        assert!(services.contains("clients keep their address"), "{services}");
    });
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        let flags = frontend::KEEP_CLIENT | frontend::DIRECT_RETURN;
        drop(node.fill::<[u8; 4]>(&web(Choice { flags, affinity: 0 })));
        let told = squeeze(&node.explain("203.0.113.7", "10.96.0.1:80"));
        let way = "10.244.2.4:8080 50.0% - 203.0.113.7 tunnel to node 192.0.2.2; that node answers \
                   the client";
        assert!(told.contains(way), "{told}");
        let services = node.services(Some("10.96.0.99"));
        assert!(services.contains("answered directly"), "{services}");
    });
}

/// Its packets bear a name, too, but the answers come back here.
#[test]
fn a_client_that_is_named_for_policies_is_answered_by_this_node() {
    use fairway_abi::flow::{DELEGATED, NAMES_CLIENT};
    for (state, direct) in [(NAMES_CLIENT, false), (DELEGATED, true)] {
        sandbox(|bpffs| {
            let mut node = Node::new(bpffs);
            drop(node.fill::<[u8; 4]>(&web(Choice::default())));
            let mut flows = node.dataplane.table("flows4").expect("a table");
            for (key, flow) in flow_records(7, 1, 0, [state, 0]) {
                flows.put(&key, &flow).expect("room");
            }
            let told = squeeze(&node.explain("203.0.113.7:40000", "192.0.2.1:30080"));
            assert!(told.contains("10.244.2.4:8080"), "{told}");
            assert_eq!(told.contains("that node answers the client"), direct, "{told}");
        });
    }
}

#[test]
fn a_pods_query_may_be_answered_by_the_kernel() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        drop(node.fill::<[u8; 4]>(&web(Choice::default())));
        let pod = "shop/web-2";
        let query = "169.254.20.10:53/udp";
        let says =
            |node: &Node, from: &str, to: &str| node.explain(from, to).contains("by the kernel");
        assert!(!says(&node, pod, query), "it knows no names");
        let mut zone = node.dataplane.single("zone").expect("a table");
        zone.set(&fairway_abi::Zone { length: 15, ttl: 5, serial: 1 }).expect("a table to write");
        for (from, to, expected) in [
            (pod, query, true),
            ("host", query, false),
            (pod, "169.254.20.10:53/tcp", false),
            (pod, "169.254.20.10:5353/udp", false),
            (pod, "192.0.2.1:53/udp", false),
        ] {
            assert_eq!(says(&node, from, to), expected, "{from} to {to}");
        }
    });
}

#[test]
fn the_status_of_an_agent_that_is_away_is_that_of_its_tables() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        drop(node.fill::<[u8; 4]>(&web(Choice::default())));
        let shown = status::read(&node.place());
        assert!(shown.running.is_none() && shown.down.is_some());
        let kernel = shown.kernel.expect("tables");
        assert_eq!((kernel.frontends, kernel.flows, kernel.pods), (6, 0, 2));
        assert_eq!(kernel.doubt, None);
        let usage = |name: &str| {
            let table = kernel.tables.iter().find(|usage| usage.table == name).expect("a table");
            (table.used, table.capacity)
        };
        assert_eq!(
            (usage("pods4"), usage("routes4").0, usage("source_ranges4").0),
            ((2, 4096), 4, 1)
        );
    });
}

#[test]
fn policies_and_rules_are_named_for_each_end() {
    sandbox(|bpffs| {
        let mut node = Node::new(bpffs);
        node.fill::<[u8; 4]>(&web(Choice::default()));
        let policy = PolicyName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            ..PolicyName::default()
        };
        let rule = fairway_model::Rule {
            peers: Some(vec!["web".to_owned()]),
            ports: Some(vec![PortMatch::Range(Protocol::Tcp, 9000, 9001)]),
            ..fairway_model::Rule::default()
        };
        let (web2, web3) = (ObjectName::new("shop", "web-2"), ObjectName::new("shop", "web-3"));
        let objects = [
            Object::Policy(Policy {
                name: policy.clone(),
                ingress: Some(vec![rule]),
                ..Policy::default()
            }),
            Object::Pod(ModelPod {
                name: web3.clone(),
                node: "n1".to_owned(),
                policies: vec![policy],
                ..ModelPod::default()
            }),
            Object::Group(Group {
                name: "g".to_owned(),
                selectors: vec!["web".to_owned()],
                ports: Vec::new(),
            }),
            Object::Member(Member {
                name: web2.clone(),
                addresses: vec![<[u8; 4]>::pod(2).to_ip()],
                group: "g".to_owned(),
            }),
        ];
        let local = |name, last| LocalPod {
            name,
            uid: String::new(),
            addresses: vec![<[u8; 4]>::pod(last).to_ip()],
        };
        let mut policies = PolicyTables::adopt(&mut node.dataplane).expect("tables");
        let model = objects.into_iter().collect();
        let local = [local(web2, 2), local(web3, 3)];
        policies.reconcile(&model, "n1", &local, &mut node.config, |_| {}).expect("room");
        let rules = policies.take_renamed();
        node.config.settle(Vec::new(), Vec::new(), rules).expect("written");

        let told = squeeze(&node.explain("pod/shop/web-2", "pod/shop/web-3:9001"));
        let expected = "policy ingress of pod shop/web-3 to 10.244.1.3:9001: allowed by NetworkPolicy \
                        shop/web, ingress rule 0";
        assert!(told.contains(expected) && !told.contains("DROPPED"), "{told}");
        let denied = "ingress of pod shop/web-3 to 10.244.1.3:8080: denied by NetworkPolicy shop/web, \
                      which restricts ingress";
        for source in ["shop/web-2", "203.0.113.7"] {
            let told = squeeze(&node.explain(source, "pod/shop/web-3:8080"));
            assert!(told.contains(&format!("policy {denied}")), "{told}");
            assert!(told.contains("DROPPED policy_ingress:"), "{told}");
            assert!(told.contains(&format!("because {denied}.")), "{told}");
        }
        // One of the Service's endpoints is elsewhere.
        let told = squeeze(&node.explain("shop/web-2", "10.96.0.1:80"));
        assert!(told.contains(&format!("policy {denied}")), "{told}");
        assert!(told.contains("dropped: policy_ingress") && !told.contains("DROPPED"), "{told}");
        let told = squeeze(&node.explain("host", "pod/shop/web-3:8080"));
        assert!(
            told.contains("policy ingress of pod shop/web-3: what its own node sends is allowed")
        );
        let told = squeeze(&node.explain("shop/web-3", "pod/shop/web-2:8080"));
        assert!(!told.contains("policy"), "{told}");
    });
}
