//! Our server alone, as the agent has it inside: a process of its own, so that what it takes can be measured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use fairway_dns::forward::{Forwarder, Options as ForwardOptions, Upstreams};
use fairway_dns::server::{Access, Options, Server, Service, Sockets};
use fairway_dns::{Zone, zone};
use fairway_model::{
    Change, Endpoint, EndpointState, Endpoints, Hints, Model, Object, ObjectName, Protocol,
    Service as Object_, ServicePort,
};
use tokio::signal::unix::{SignalKind, signal};

use super::records::{self, ENDPOINTS, Records};
use super::upstream::NOWHERE;

/// What it is started with.
#[derive(Debug, Args)]
pub(in crate::bench) struct ServerOptions {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    upstream: SocketAddr,
    #[arg(long)]
    services: u32,
    #[arg(long)]
    headless: u32,
}

/// Serves until it is told to end.
pub(in crate::bench) fn serve(options: &ServerOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start a runtime")?;
    let records = Records { services: options.services, headless: options.headless };
    let mut model = Model::default();
    put_all(records, &mut model);
    let upstreams = Upstreams::These(vec![options.upstream]);
    let forward = ForwardOptions { upstreams, ..ForwardOptions::default() };
    let forwarder = Forwarder::new(forward, runtime.handle().clone());
    let search = vec![NOWHERE.parse()?];
    let zone = Zone::new(zone::Options { search, ..zone::Options::default() }).next(&model, 1);
    // Every client is one pod, which asks as much as it can.
    let namespace: Arc<str> = records::namespace(0).into();
    let clients = Box::new(move |_| Access::Pod(Arc::clone(&namespace)));
    let limits = Options { rate: 0, ..Options::default() };
    let service = Arc::new(Service::new(zone, forwarder, clients, 1, limits));
    let sockets = Sockets::bind(&[options.listen], 1)?;
    let server = Server::start(&service, &sockets, runtime.handle())?;
    runtime.block_on(async {
        let mut end = signal(SignalKind::terminate())?;
        end.recv().await;
        server.stop(Duration::from_secs(1)).await;
        Ok(())
    })
}

/// All of them.
pub(super) fn put_all(records: Records, model: &mut Model) {
    for number in 0..records.services {
        let name = ObjectName::new(records::namespace(number), format!("service-{number}"));
        let ports = vec![port("http", 80)];
        let cluster_ips = vec![records::cluster_ip(number).into()];
        let service = Object_ { name, cluster_ips, ports, ..Object_::default() };
        model.apply(Change::Put(Object::Service(service)));
    }
    for number in 0..records.headless {
        let (name, ports) = (headless(number), vec![port("main", 6379)]);
        let service = Object_ { name, ports, ..Object_::default() };
        model.apply(Change::Put(Object::Service(service)));
        model.apply(Change::Put(endpoints(number, 0)));
    }
}

fn port(name: &str, port: u16) -> ServicePort {
    let protocol = Protocol::Tcp;
    ServicePort { name: name.to_owned(), protocol, port, ..ServicePort::default() }
}

fn headless(number: u32) -> ObjectName {
    ObjectName::new(records::namespace(number), format!("headless-{number}"))
}

/// Those of a headless Service after so many changes.
pub(super) fn endpoints(service: u32, changes: u32) -> Object {
    let endpoint = |number| Endpoint {
        address: records::endpoint(service, number, changes).into(),
        port: 6379,
        node: None,
        state: EndpointState::Ready,
        hints: Hints::default(),
        weight: 1,
        hostname: Some(records::hostname(number).into()),
    };
    let mut all: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
    all.sort_by_key(|endpoint| endpoint.address);
    let ports = BTreeMap::from([("main".to_owned(), all)]);
    Object::Endpoints(Endpoints { service: headless(service), ports })
}
