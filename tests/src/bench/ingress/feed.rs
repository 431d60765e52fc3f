//! How long it takes from the feed's word of a change to the first request that it is about, by how many hosts there are.
//!
//! This process is the control plane, too, so that nothing is between the change of the model and the feed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairway_feed::server;
use fairway_model::{
    Backend, BackendPort, Endpoint, EndpointState, Endpoints, Hints, Ingress, IngressPath,
    IngressRule, IngressTls, Model, ObjectName, PathType, Secret, Sensitive, Service, ServicePort,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::backend::SMALL_PATH;
use super::http1::Connection;
use super::load::{Load, Way, connect, patient, shown};
use super::proxy::Proxy;
use super::{Bench, HOST, hosts};
use crate::bench::progress;
use crate::bench::report::{Row, rounded};
use crate::bench::stats::percentile;

/// How many hosts there are, each with an Ingress, a Service and a Secret of its own.
const HOSTS: [u32; 3] = [10, 1000, 10_000];
/// Requests a second meanwhile, and connections for them.
const RATE: f64 = 2000.0;
const CONNECTIONS: usize = 16;
/// The host that changes.
const TURNS: &str = "turns.bench.example";
/// None takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// What changes, there and back.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// The path of an Ingress.
    Path,
    /// The only endpoint of a Service.
    Endpoint,
    /// The certificate of a host.
    Certificate,
}

impl Change {
    const ALL: [Self; 3] = [Self::Path, Self::Endpoint, Self::Certificate];

    fn name(self) -> &'static str {
        match self {
            Self::Path => "a path",
            Self::Endpoint => "an endpoint",
            Self::Certificate => "a certificate",
        }
    }
}

impl Bench<'_> {
    pub(super) async fn feed(&self) -> Result<Vec<Row>> {
        let ours = self.programs.iter().find(|(program, _)| program.is_ours());
        let Some((_, path)) = ours else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        for count in HOSTS {
            progress(&format!("the feed, with {count} hosts"));
            let mut world = World::new(self, count)?;
            let (models, receiver) = watch::channel(Some(Arc::new(world.model.clone())));
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let feed = listener.local_addr()?;
            let mut serving = JoinSet::new();
            // Changes are made one after the other, and none waits for the next.
            let options = server::Options { coalesce: Duration::ZERO, ..Default::default() };
            serving.spawn(server::serve(listener, server::Plain, receiver, options));
            let folder = self.folder.0.join(format!("feed-{count}"));
            let mut proxy = Proxy::follow(path, &folder, &self.site, feed)?;
            proxy.ready(HOST).await?;
            proxy.ready(TURNS).await?;
            for change in Change::ALL {
                let about = || format!("{} among {count} hosts", change.name());
                let times = self.changes_by(change, &mut world, &models, &proxy);
                rows.extend(row(change, count, times.await.with_context(about)?)?);
            }
        }
        Ok(rows)
    }

    async fn changes_by(
        &self,
        change: Change,
        world: &mut World,
        models: &watch::Sender<Option<Arc<Model>>>,
        proxy: &Proxy,
    ) -> Result<Vec<u64>> {
        let load = Load {
            way: Way::Plain,
            connections: CONNECTIONS,
            rate: Some(RATE),
            ports: proxy.ports,
            trust: &self.trust,
        };
        let times = RefCell::new(Vec::new());
        let during = async {
            let mut connection = Connection::new(connect(proxy.ports.http).await?);
            for number in 0..self.options.changes.next_multiple_of(2) {
                // The last one leaves all as it was.
                let there = number % 2 == 1;
                world.change(change, there);
                let model = Arc::new(world.model.clone());
                let begun = Instant::now();
                models.send_replace(Some(model));
                match change {
                    Change::Path => {
                        until(&mut connection, begun, if there { 200 } else { 404 }).await?
                    }
                    Change::Endpoint => {
                        until(&mut connection, begun, if there { 200 } else { 503 }).await?;
                    }
                    Change::Certificate => {
                        let expected = &world.certificates[usize::from(!there)].der;
                        while shown(proxy.ports.https, &self.trust).await? != *expected {
                            ensure!(begun.elapsed() < LIMIT, "the certificate stays another one");
                        }
                    }
                }
                times.borrow_mut().push(u64::try_from(begun.elapsed().as_micros())?);
            }
            Ok(())
        };
        let outcome = load.run(Duration::from_millis(100), || proxy.cpu(), during).await?;
        if let Some(error) = outcome.error {
            return Err(error.context(format!("{} failed meanwhile", outcome.failed)));
        }
        Ok(times.into_inner())
    }
}

fn row(change: Change, hosts: u32, mut times: Vec<u64>) -> Result<Vec<Row>> {
    times.sort_unstable();
    let milliseconds =
        |percent| Duration::from_micros(percentile(&times, percent)).as_secs_f64() * 1e3;
    Ok([
        ("changes", "", f64::from(u32::try_from(times.len())?)),
        ("feed_p50", "ms", milliseconds(50)),
        ("feed_p99", "ms", milliseconds(99)),
        ("feed_most", "ms", milliseconds(100)),
    ]
    .into_iter()
    .map(|(metric, unit, value)| Row {
        bench: "ingress",
        case: "fairway",
        params: BTreeMap::from([
            ("hosts", u64::from(hosts).into()),
            ("change", change.name().into()),
        ]),
        metric,
        unit,
        value: rounded(value),
        baseline: None,
        ratio: None,
    })
    .collect())
}

/// Asks the host that changes until it answers with this status.
async fn until(connection: &mut Connection<TcpStream>, begun: Instant, status: u16) -> Result<()> {
    let request = format!("GET {SMALL_PATH} HTTP/1.1\r\nHost: {TURNS}\r\n\r\n");
    while patient(connection.exchange(request.as_bytes())).await?.status != status {
        ensure!(begun.elapsed() < LIMIT, "it is never answered with {status}");
    }
    Ok(())
}

/// A certificate in the forms that it is needed in.
struct Certificate {
    pem: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn new(pem: &str, key: &str) -> Result<Self> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).context("read a certificate")?;
        Ok(Self { pem: pem.to_owned(), key: key.to_owned(), der })
    }
}

/// What is served.
struct World {
    model: Model,
    backend: SocketAddr,
    /// That of the host asked for, and another one for it.
    certificates: [Certificate; 2],
}

impl World {
    fn new(bench: &Bench<'_>, count: u32) -> Result<Self> {
        let (certificate, key) =
            bench.authority.certificate(&[HOST]).context("make a certificate")?;
        let certificates = [
            Certificate::new(&bench.site.certificate, &bench.site.key)?,
            Certificate::new(&certificate, &key)?,
        ];
        let backend = bench.site.backend;
        let mut world = Self { model: Model::default(), backend, certificates };
        for host in hosts(count.saturating_sub(2)).iter().map(String::as_str).chain([TURNS]) {
            let service = Service {
                name: name(host),
                ports: vec![ServicePort { port: 80, ..ServicePort::default() }],
                ..Service::default()
            };
            world.model.services.insert(service);
            world.endpoint(host, true);
            world.ingress(host, "/");
            world.secret(host, 0);
        }
        Ok(world)
    }

    /// A change; `there`: to what was there before.
    fn change(&mut self, change: Change, there: bool) {
        match change {
            Change::Path => self.ingress(TURNS, if there { SMALL_PATH } else { "/elsewhere" }),
            Change::Endpoint => self.endpoint(TURNS, there),
            Change::Certificate => self.secret(HOST, usize::from(!there)),
        }
    }

    fn ingress(&mut self, host: &str, path: &str) {
        let backend = Backend { service: host.to_owned(), port: BackendPort::Number(80) };
        let path = IngressPath { path: path.to_owned(), kind: PathType::Prefix, backend };
        let mut ingress = Ingress {
            name: name(host),
            rules: vec![IngressRule { host: host.to_owned(), paths: vec![path] }],
            tls: vec![IngressTls { hosts: vec![host.to_owned()], secret: Some(name(host)) }],
            ..Ingress::default()
        };
        ingress.options.ssl_redirect = Some(false);
        ingress.options.request_buffering = Some(false);
        ingress.options.body_size = Some(0);
        self.model.ingresses.insert(ingress);
    }

    fn endpoint(&mut self, host: &str, there: bool) {
        let endpoint = Endpoint {
            address: self.backend.ip(),
            port: self.backend.port(),
            node: None,
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        };
        let list = there.then_some(endpoint).into_iter().collect();
        let ports = [(String::new(), list)].into();
        self.model.endpoints.insert(Endpoints { service: name(host), ports });
    }

    fn secret(&mut self, host: &str, which: usize) {
        let Certificate { pem, key, .. } = &self.certificates[which];
        self.model.secrets.insert(Secret {
            name: name(host),
            certificate: Some(pem.clone()),
            key: Some(Sensitive::new(key.clone())),
            ..Secret::default()
        });
    }
}

fn name(host: &str) -> ObjectName {
    ObjectName::new("bench", host)
}
