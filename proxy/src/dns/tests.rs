use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use clap::Parser;
use fairway_abi::{Address as _, V4};
use fairway_model::{Node, Service as ModelService};
use fairway_netlink::{AddressOptions, Netlink};
use ipnet::IpNet;
use tokio::runtime::Runtime;

use super::*;
use crate::dataplane::Dataplane;
use crate::routes::host_prefix;
use crate::sandbox::sandbox;

/// How long anything may take here.
const PATIENT: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn options(words: &str) -> Options {
    Line::try_parse_from(words.split(' ')).expect("good options").options
}

/// Services of the namespace `shop` with their addresses.
fn model(services: &[(&str, &str)]) -> Arc<Model> {
    let mut model = Model::default();
    for (name, address) in services {
        model.services.insert(ModelService {
            name: ObjectName::new("shop", *name),
            cluster_ips: vec![address.parse().expect("an address")],
            ..ModelService::default()
        });
    }
    Arc::new(model)
}

fn wait_for(what: &str, mut is_it: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_it() {
        assert!(begin.elapsed() < PATIENT, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A server that follows models of whoever has the other end.
struct Started {
    dns: Dns,
    models: watch::Sender<Option<Arc<Model>>>,
    _pods: watch::Sender<Vec<LocalPod>>,
    names: KernelNames,
    _state: tempfile::TempDir,
}

/// Starts one on `runtime`.
fn start(runtime: &Runtime, words: &str, first: Arc<Model>) -> Started {
    let state = tempfile::tempdir().expect("a folder");
    let (models, seen) = watch::channel(Some(first));
    let (pods_sender, pods) = watch::channel(Vec::new());
    let names = KernelNames::default();
    let _within = runtime.enter();
    let dns = Dns::start(Inputs {
        node: "here".to_owned(),
        options: options(words),
        service: ObjectName::new("kube-system", "kube-dns"),
        models: seen,
        pods,
        traces: Arc::new(Traces::open(state.path()).expect("new")),
        status: Arc::new(Status::new()),
        names: names.clone(),
    });
    Started { dns, models, _pods: pods_sender, names, _state: state }
}

fn runtime() -> Runtime {
    Runtime::new().expect("a runtime")
}

/// Sets the loopback device up, and gives it the agent's address.
fn loopback() {
    let mut netlink = Netlink::open().expect("netlink");
    let device = netlink.link("lo").expect("a look").expect("the device");
    netlink.set_up(device.index).expect("up");
    give(V4::RESOLVER.into());
}

/// Gives an address to the loopback device.
fn give(address: IpAddr) {
    let mut netlink = Netlink::open().expect("netlink");
    let device = netlink.link("lo").expect("a look").expect("the device");
    let net = host_prefix(address);
    netlink.add_address(device.index, net, AddressOptions::default()).expect("an address");
}

#[test]
fn the_kernel_keeps_up_with_services_while_the_address_is_taken() {
    sandbox(|bpffs| {
        loopback();
        let at = (IpAddr::from(V4::RESOLVER), 53);
        let taken = (UdpSocket::bind(at).expect("a port"), TcpListener::bind(at).expect("a port"));
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("tables");
        let mut tables = || NameTables::adopt(&mut dataplane).expect("tables");
        let before = KernelNames::default();
        before.tell(tables());
        let zone = Zone::new(zone::Options::default()).next(&model(&[("web", "10.96.0.1")]), 1);
        before.follow(Arc::new(zone));

        let runtime = runtime();
        let server = start(&runtime, "p --dns-upstream 192.0.2.1", model(&[("web", "10.96.0.3")]));
        server.names.tell(tables());
        let know = |addresses: &[[u8; 4]]| server.names.addresses() == addresses;
        wait_for("it answers as before", || know(&[[10, 96, 0, 3]]));
        server.models.send_replace(Some(model(&[("other", "10.96.0.4")])));
        wait_for("it answers for what is gone", || know(&[[10, 96, 0, 4]]));
        assert!(server.dns.serving.left().is_zero(), "nobody can listen");
        // It is tried again.
        drop(taken);
        wait_for("nobody listens", || !server.dns.serving.left().is_zero());
        server.models.send_replace(Some(model(&[])));
        wait_for("it answers for what is gone", || know(&[]));
        runtime.block_on(server.dns.stop());
    });
}

#[test]
fn where_other_nodes_ask_is_listened_once_it_can_be() {
    sandbox(|_| {
        loopback();
        let at: IpAddr = Ipv4Addr::new(10, 244, 0, 0).into();
        give(at);
        let taken = TcpListener::bind((at, 53)).expect("a port");
        let mut first = Model::default();
        first.nodes.insert(Node {
            name: "here".to_owned(),
            pod_cidrs: vec![IpNet::new(at, 24).expect("a range")],
            ..Node::default()
        });
        let runtime = runtime();
        let server = start(&runtime, "p --dns-upstream 192.0.2.1", Arc::new(first));
        let explainer = server.dns.explainer();
        let answers = || explainer.explain("kubernetes.default", "A", None);
        wait_for("nothing is known", || runtime.block_on(answers()).is_ok());
        // It has been tried, and nothing that it looks at changes.
        drop(taken);
        wait_for("it is not tried again", || TcpStream::connect((at, 53)).is_ok());
        runtime.block_on(server.dns.stop());
    });
}

#[test]
fn the_kernel_answers_for_no_names_that_nobody_follows_any_more() {
    sandbox(|bpffs| {
        loopback();
        let mut dataplane = Dataplane::load_tables(bpffs, &[]).expect("tables");
        let runtime = runtime();
        let server = start(&runtime, "p --dns-upstream 192.0.2.1", model(&[("web", "10.96.0.3")]));
        server.names.tell(NameTables::adopt(&mut dataplane).expect("tables"));
        wait_for("it answers nothing", || server.names.addresses() == [[10, 96, 0, 3]]);
        drop(server.models);
        wait_for("it goes on", || server.names.addresses().is_empty());
        // Also where the tables are there only later.
        let late = KernelNames::default();
        late.follow(Arc::new(
            Zone::new(zone::Options::default()).next(&model(&[("a", "10.96.0.9")]), 1),
        ));
        late.tell(NameTables::adopt(&mut dataplane).expect("tables"));
        assert_eq!(late.addresses(), [[10, 96, 0, 9]]);
        server.names.tell(NameTables::adopt(&mut dataplane).expect("tables"));
        assert!(server.names.addresses().is_empty());
    });
}
