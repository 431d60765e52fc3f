//! What an answer costs without a socket, what the names of a large cluster take of memory, and how long a change of one
//! endpoint takes until it is answered.
//!
//! ```sh
//! cargo run --release -p fairway-dns --example answers
//! cargo run --release -p fairway-dns --example answers -- 10000 100 1000
//! ```
//!
//! The numbers are Services with addresses, headless Services, and endpoints of each of these.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use fairway_dns::{Buffer, Client, Options, Transport, Verdict, Zone};
use fairway_model::{
    Change, Endpoint, EndpointState, Endpoints, Hints, Model, Object, ObjectName, Protocol,
    Service, ServicePort,
};

type Error = Box<dyn std::error::Error>;

/// Services, headless Services, endpoints of each.
const USUAL: [usize; 3] = [10_000, 100, 1000];
/// Services are spread over so many.
const NAMESPACES: usize = 200;
/// Of each kind of query.
const QUERIES: usize = 1_000_000;
/// Of endpoints.
const CHANGES: usize = 500;

fn main() -> Result<(), Error> {
    let mut size = USUAL;
    for (number, text) in size.iter_mut().zip(std::env::args().skip(1)) {
        *number = text.parse()?;
    }
    let [services, headless, endpoints] = size;
    let start = memory()?;
    let mut model = model(services, headless, endpoints)?;
    let with_model = memory()?;
    let begin = Instant::now();
    let mut zone = Zone::new(Options::default()).next(&model, 1);
    println!(
        "{services} Services, {} endpoints of {headless} headless ones: zone made in {} ms; the model takes {} KiB, the \
         zone {} KiB more",
        headless * endpoints,
        begin.elapsed().as_millis(),
        with_model.saturating_sub(start),
        memory()?.saturating_sub(with_model),
    );

    let service = |nth: usize| name_of("web", nth % services);
    let set = |nth: usize| name_of("set", nth % headless.max(1));
    let address = |nth: usize| address_of(nth % (headless * endpoints).max(1));
    let cluster = |nth: usize| {
        let [_, b, c, d] = cluster_ip(nth % services).octets();
        format!("{d}.{c}.{b}.10.in-addr.arpa")
    };
    println!("{:<44} {:>8} {:>8}", "a query", "ns", "bytes");
    measure("A of a Service", &zone, 1, service, Transport::Udp)?;
    measure("AAAA of a Service, which has none", &zone, 28, service, Transport::Udp)?;
    measure("A of no such Service", &zone, 1, |nth| name_of("gone", nth), Transport::Udp)?;
    measure("PTR of a Service", &zone, 12, cluster, Transport::Udp)?;
    measure(
        "SRV of a Service",
        &zone,
        33,
        |nth| format!("_http._tcp.{}", service(nth)),
        Transport::Udp,
    )?;
    if headless > 0 {
        let host = |nth: usize| {
            format!("{}.{}", dashed(address(nth)), set(nth % (headless * endpoints) / endpoints))
        };
        measure("A of one endpoint", &zone, 1, host, Transport::Udp)?;
        measure("A of a headless Service, cut to a datagram", &zone, 1, set, Transport::Udp)?;
        measure("A of a headless Service, by a stream", &zone, 1, set, Transport::Tcp)?;
    }

    if headless > 0 {
        let mut times = Vec::with_capacity(CHANGES);
        for nth in 0..CHANGES {
            let name = object_name("set", nth % headless);
            let mut of = Endpoints::clone(&model.endpoints[&name]);
            let list = of.ports.get_mut("http").ok_or("the port")?;
            let place = nth * 31 % list.len();
            list[place].state = match list[place].state {
                EndpointState::Ready => EndpointState::NotReady,
                _ => EndpointState::Ready,
            };
            model.apply(Change::Put(Object::Endpoints(of)));
            let begin = Instant::now();
            zone = zone.next(&model, 2);
            times.push(begin.elapsed());
        }
        report(&format!("one endpoint of {endpoints} changes"), times);
    }
    let mut times = Vec::with_capacity(CHANGES);
    for nth in 0..CHANGES {
        let mut service = Service::clone(&model.services[&object_name("web", nth)]);
        service.cluster_ips = vec![Ipv4Addr::from(u32::try_from(nth)? | 0x0a70_0000).into()];
        model.apply(Change::Put(Object::Service(service)));
        let begin = Instant::now();
        zone = zone.next(&model, 3);
        times.push(begin.elapsed());
    }
    report("one Service gets another address", times);
    Ok(())
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 100].as_secs_f64() * 1e6;
    println!("{what}: {:.1} us until it is answered (median), {:.1} us (p99)", at(50), at(99));
}

fn measure(
    what: &str,
    zone: &Zone,
    kind: u16,
    name: impl Fn(usize) -> String,
    transport: Transport,
) -> Result<(), Error> {
    // Different ones, in no order, as many as there may be in a processor's cache and not more.
    let queries: Vec<_> = (0..4096).map(|nth| query(&name(nth * 7919), kind)).collect();
    let address = "10.244.0.2:4242".parse()?;
    let client = Client { address, namespace: Some("shop".into()), transport };
    let mut buffer = Buffer::new(1);
    let mut bytes = 0;
    let times = if transport == Transport::Tcp { QUERIES / 50 } else { QUERIES };
    let mut best = f64::MAX;
    for _ in 0..3 {
        let begin = Instant::now();
        for query in queries.iter().cycle().take(times) {
            match zone.answer(black_box(query), &client, &mut buffer) {
                Verdict::Answer { bytes: answer, .. } => bytes = black_box(answer).len(),
                other => return Err(format!("{what}: {other:?}").into()),
            }
        }
        best = best.min(begin.elapsed().as_secs_f64() / times as f64);
    }
    println!("{what:<44} {:>8.0} {bytes:>8}", best * 1e9);
    Ok(())
}

/// With EDNS, as resolvers send it today.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or_default());
        query.extend(label.bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    query
}

fn model(services: usize, headless: usize, endpoints: usize) -> Result<Model, Error> {
    let port = |name: &str| ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    let mut model = Model::default();
    for nth in 0..services {
        model.apply(Change::Put(Object::Service(Service {
            name: object_name("web", nth),
            cluster_ips: vec![cluster_ip(nth).into()],
            ports: vec![port("http")],
            ..Service::default()
        })));
    }
    for nth in 0..headless {
        let name = object_name("set", nth);
        let endpoint = |of: usize| Endpoint {
            address: address_of(nth * endpoints + of).into(),
            port: 8080,
            node: Some(format!("node-{}", of % 100)),
            state: EndpointState::Ready,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        };
        let list = (0..endpoints).map(endpoint).collect();
        let ports = BTreeMap::from([("http".to_owned(), list)]);
        let ports_of = vec![port("http")];
        model.apply(Change::Put(Object::Service(Service {
            name: name.clone(),
            ports: ports_of,
            ..Service::default()
        })));
        model.apply(Change::Put(Object::Endpoints(Endpoints { service: name, ports })));
    }
    model.validate()?;
    Ok(model)
}

fn object_name(what: &str, nth: usize) -> ObjectName {
    ObjectName::new(format!("namespace-{}", nth % NAMESPACES), format!("{what}-{nth}"))
}

fn name_of(what: &str, nth: usize) -> String {
    let ObjectName { namespace, name } = object_name(what, nth);
    format!("{name}.{namespace}.svc.cluster.local")
}

fn cluster_ip(nth: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + u32::try_from(nth).unwrap_or_default() + 1)
}

fn address_of(nth: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 + u32::try_from(nth).unwrap_or_default())
}

fn dashed(address: Ipv4Addr) -> String {
    IpAddr::V4(address).to_string().replace('.', "-")
}

/// KiB of this process that are in memory.
fn memory() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmRSS")?.parse()?)
}
