//! Where load balancers ask whether this node has endpoints of a Service (`healthCheckNodePort`): one
//! listener for each such Service and address, for as long as the model in force has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use fairway_model::{EndpointState, Model, ObjectName};
use fairway_netlink::Netlink;
use hyper::header::HeaderValue;
use ipnet::IpNet;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::http::{Answer, JSON, answer_all, judged, respond};
use crate::node;
use crate::status::Status;

/// Between two looks at the node's addresses, and two tries to listen.
const AGAIN: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// Keeps the listeners that the model in force asks for, until it is not told of models any more.
/// `ranges` are those of node ports.
pub(crate) async fn keep(
    node: String,
    ranges: Vec<IpNet>,
    mut applied: watch::Receiver<Option<Arc<Model>>>,
    status: Arc<Status>,
) {
    let mut listeners = Listeners { status, open: HashMap::new(), failed: BTreeSet::new() };
    loop {
        let model = applied.borrow_and_update().clone();
        let wanted = model.map(|model| wanted(&model, &node, || addresses(&model, &node, &ranges)));
        let wanted = wanted.unwrap_or_default();
        let idle = wanted.is_empty();
        listeners.sync(wanted);
        let next = applied.changed();
        let ended = if idle {
            next.await.is_err()
        } else {
            timeout(AGAIN, next).await.is_ok_and(|changed| changed.is_err())
        };
        if ended {
            return;
        }
    }
}

/// A listener's Service, and its ready endpoints on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    service: ObjectName,
    endpoints: usize,
}

/// What is to be listened on. Of two Services with one port, the first has it.
fn wanted(
    model: &Model,
    node: &str,
    addresses: impl FnOnce() -> Vec<IpAddr>,
) -> BTreeMap<SocketAddr, Wanted> {
    let services = model.services.values();
    let mut ports: BTreeMap<u16, &ObjectName> = BTreeMap::new();
    for service in services {
        if let Some(port) = service.health_check_node_port {
            ports.entry(port).or_insert(&service.name);
        }
    }
    if ports.is_empty() {
        return BTreeMap::new();
    }
    let addresses = addresses();
    let of_port = |(port, service): (&u16, &&ObjectName)| {
        let (port, service) = (*port, (*service).clone());
        let endpoints = ready_here(model, &service, node);
        let wanted = Wanted { service, endpoints };
        let addresses = addresses.iter().copied();
        addresses.map(move |ip| (SocketAddr::new(ip, port), wanted.clone())).collect::<Vec<_>>()
    };
    ports.iter().flat_map(of_port).collect()
}

/// How many endpoints a Service has on the node that take new connections: whatever they are called in
/// two families, and however many ports they have.
fn ready_here(model: &Model, service: &ObjectName, node: &str) -> usize {
    let endpoints = model.endpoints.get(service).into_iter();
    let endpoints = endpoints.flat_map(|all| all.ports.values()).flatten();
    let here = endpoints.filter(|endpoint| {
        endpoint.state == EndpointState::Ready && endpoint.node.as_deref() == Some(node)
    });
    let addresses: BTreeSet<IpAddr> = here.map(|endpoint| endpoint.address).collect();
    let of_v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    of_v4.max(addresses.len() - of_v4)
}

/// The addresses that node ports are open on.
fn addresses(model: &Model, node: &str, ranges: &[IpNet]) -> Vec<IpAddr> {
    if ranges.is_empty() {
        return model.nodes.get(node).map(|node| node.addresses.clone()).unwrap_or_default();
    }
    let everywhere = |range: &&IpNet| range.prefix_len() == 0;
    let (all, within): (Vec<&IpNet>, Vec<&IpNet>) = ranges.iter().partition(everywhere);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for range in all {
        addresses.push(match range {
            IpNet::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpNet::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
    }
    let covered: Vec<bool> = addresses.iter().map(IpAddr::is_ipv4).collect();
    let own = Netlink::open().map_err(Into::into).and_then(|mut n| node::addresses(&mut n));
    match own {
        Ok(own) => addresses.extend(own.into_iter().filter(|ip| {
            !covered.contains(&ip.is_ipv4()) && within.iter().any(|range| range.contains(ip))
        })),
        Err(error) => warn!(error = format!("{error:#}"), "cannot list the node's addresses"),
    }
    addresses
}

/// What is listened on.
struct Listeners {
    status: Arc<Status>,
    open: HashMap<SocketAddr, Listener>,
    /// Where it was said that nothing can be listened on.
    failed: BTreeSet<SocketAddr>,
}

/// Ends with the value.
struct Listener {
    service: ObjectName,
    endpoints: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Listeners {
    fn sync(&mut self, wanted: BTreeMap<SocketAddr, Wanted>) {
        self.open
            .retain(|at, open| wanted.get(at).is_some_and(|want| want.service == open.service));
        self.failed.retain(|at| wanted.contains_key(at));
        for (at, Wanted { service, endpoints }) in wanted {
            if let Some(open) = self.open.get(&at) {
                open.endpoints.store(endpoints, Ordering::Relaxed);
                continue;
            }
            match listen(at) {
                Ok(listener) => {
                    info!(%service, %at, "load balancers can ask for the Service's endpoints here");
                    let opened = self.open(listener, service, endpoints);
                    self.open.insert(at, opened);
                    self.failed.remove(&at);
                }
                Err(error) => {
                    self.status.health_check_failed();
                    if self.failed.insert(at) {
                        warn!(
                            %service,
                            error = format!("{error:#}"),
                            "load balancers cannot ask for the Service's endpoints \
                             (healthCheckNodePort); trying again"
                        );
                    }
                }
            }
        }
    }

    fn open(&self, listener: TcpListener, service: ObjectName, endpoints: usize) -> Listener {
        let endpoints = Arc::new(AtomicUsize::new(endpoints));
        let (status, name, count) =
            (Arc::clone(&self.status), service.clone(), Arc::clone(&endpoints));
        let mut task = JoinSet::new();
        task.spawn(answer_all(listener, move |_| {
            answer(&name, count.load(Ordering::Relaxed), status.is_live())
        }));
        Listener { service, endpoints, _task: task }
    }
}

/// What kube-proxy answers, whatever the path.
fn answer(service: &ObjectName, endpoints: usize, healthy: bool) -> Answer {
    let body = serde_json::json!({
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    });
    let mut answer = respond(judged(endpoints > 0 && healthy), JSON, body.to_string());
    let weight = HeaderValue::from(endpoints);
    answer.headers_mut().insert("x-load-balancing-endpoint-weight", weight);
    answer
}

/// A listener for one family. A predecessor's connections that are still closing are not in its way.
fn listen(at: SocketAddr) -> Result<TcpListener> {
    let open = || {
        let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if at.is_ipv6() {
            set_ipv6_v6only(&socket, true)?;
        }
        socket.set_reuseaddr(true)?;
        socket.bind(at)?;
        socket.listen(BACKLOG)
    };
    open().with_context(|| format!("listen on {at}: does another process?"))
}

#[cfg(test)]
mod tests {
    use fairway_model::{Endpoint, Endpoints, Hints, Service};

    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn model(services: &[(&str, Option<u16>)]) -> Model {
        let mut model = Model::default();
        for (service, health_check_node_port) in services {
            let service = Service {
                name: name(service),
                health_check_node_port: *health_check_node_port,
                ..Service::default()
            };
            model.services.insert(service);
        }
        model
    }

    #[test]
    fn ready_endpoints_of_the_node_count_once() {
        let endpoint = |address: &str, port, node: &str, state| Endpoint {
            address: address.parse().expect("an address"),
            port,
            node: Some(node.to_owned()),
            state,
            hints: Hints::default(),
            weight: 1,
            hostname: None,
        };
        use EndpointState::{NotReady, Ready, ServingTerminating};
        let of_port = |port| {
            vec![
                endpoint("10.0.0.1", port, "a", Ready),
                endpoint("10.0.0.2", port, "a", Ready),
                endpoint("10.0.0.3", port, "a", ServingTerminating),
                endpoint("10.0.0.4", port, "a", NotReady),
                endpoint("10.0.0.5", port, "b", Ready),
                endpoint("fd00::1", port, "a", Ready),
            ]
        };
        let ports = [("x".to_owned(), of_port(1)), ("y".to_owned(), of_port(2))].into();
        let mut model = model(&[("web", Some(31_000)), ("plain", None)]);
        model.endpoints.insert(Endpoints { service: name("web"), ports });
        let wanted = wanted(&model, "a", || vec![[192, 0, 2, 1].into()]);
        let at = SocketAddr::from(([192, 0, 2, 1], 31_000));
        assert_eq!(wanted, [(at, Wanted { service: name("web"), endpoints: 2 })].into());
        for (node, ready) in [("b", 1), ("c", 0)] {
            assert_eq!(ready_here(&model, &name("web"), node), ready, "{node}");
        }
    }

    #[test]
    fn addresses_are_not_asked_for_without_need_and_a_port_has_one_owner() {
        let nobody = || panic!("no Service asks for it");
        assert!(wanted(&model(&[("plain", None)]), "a", nobody).is_empty());
        let both = model(&[("b", Some(31_000)), ("a", Some(31_000))]);
        let wanted = wanted(&both, "n", || vec![[192, 0, 2, 1].into()]);
        let owners: Vec<_> = wanted.values().map(|wanted| &wanted.service.name).collect();
        assert_eq!(owners, ["a"]);
    }

    #[test]
    fn only_a_healthy_node_with_endpoints_is_recommended() {
        for (endpoints, healthy, code) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let answer = answer(&name("web"), endpoints, healthy);
            assert_eq!(answer.status(), code);
            let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
            assert_eq!(header("content-type"), "application/json");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("x-load-balancing-endpoint-weight"), endpoints.to_string());
        }
    }

    #[test]
    fn everywhere_is_one_listener_a_family_and_ranges_are_taken_as_they_are() {
        let ranges = |ranges: &[&str]| -> Vec<IpNet> {
            ranges.iter().map(|range| range.parse().expect("a range")).collect()
        };
        let model = Model::default();
        let all = addresses(&model, "n", &ranges(&["0.0.0.0/0", "::/0", "10.0.0.0/8"]));
        assert_eq!(all, [IpAddr::from([0; 4]), IpAddr::from([0; 16])]);
        assert!(addresses(&model, "n", &[]).is_empty(), "nobody knows the node");
    }
}
