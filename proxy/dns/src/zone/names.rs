//! The names that one Service has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use fairway_model::{Endpoint, EndpointState, Endpoints, Protocol, Service, ServicePort};

use crate::name::Name;

/// A Service's name and namespace as they stand in a message, `\x03web\x04shop`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(Box<[u8]>);

impl Key {
    /// `None` if a Service is called as nothing in the DNS can be.
    pub(crate) fn of(name: &str, namespace: &str) -> Option<Self> {
        let mut wire = Vec::with_capacity(name.len() + namespace.len() + 2);
        for label in [name, namespace] {
            let length =
                u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
            wire.push(length);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        Some(Self(wire.into()))
    }

    pub(crate) fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// The namespace, with its length.
    pub(crate) fn namespace(&self) -> &[u8] {
        &self.0[usize::from(self.0[0]) + 1..]
    }
}

/// What is known by a Service's name, and below it.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) key: Key,
    pub(crate) what: What,
}

/// Of [`Names`].
#[derive(Debug)]
pub(crate) enum What {
    /// Addresses at which it is balanced.
    Balanced { v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, service: Arc<Service> },
    /// Its endpoints.
    Headless(Headless),
    /// Another name.
    Alias(Name),
}

/// A Service without an address of its own. Of endpoints, those count that are ready.
#[derive(Debug)]
pub(crate) struct Headless {
    /// Sorted, each once.
    pub(crate) v4: Box<[Ipv4Addr]>,
    /// Likewise.
    pub(crate) v6: Box<[Ipv6Addr]>,
    hosts: Hosts,
    service: Arc<Service>,
    endpoints: Option<Arc<Endpoints>>,
}

/// Endpoints that have names which are not made of their addresses. The names lie one behind the other, so that who
/// searches them finds them in few places.
#[derive(Debug)]
struct Hosts {
    /// Sorted by names and addresses, each once.
    all: Box<[Host]>,
    names: Box<str>,
}

/// Of [`Hosts`].
#[derive(Debug)]
struct Host {
    /// Where its name begins and ends.
    name: (u32, u32),
    address: IpAddr,
}

/// The label that an endpoint has below its Service's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Label<'a> {
    /// A name.
    Given(&'a str),
    /// Its address with dashes, as CoreDNS has it.
    Dashed(IpAddr),
}

impl Names {
    /// Of a Service, its key and its endpoints; `None` if it has none.
    pub(crate) fn of(
        key: Key,
        service: &Arc<Service>,
        endpoints: Option<&Arc<Endpoints>>,
    ) -> Option<Self> {
        let what = match &service.external_name {
            Some(alias) => What::Alias(alias.parse().ok()?),
            None if is_headless(service) => {
                What::Headless(Headless::of(Arc::clone(service), endpoints.cloned()))
            }
            None => {
                let all = || service.cluster_ips.iter().chain(&service.foreign_ips);
                What::Balanced {
                    v4: all().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }),
                    v6: all().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None }),
                    service: Arc::clone(service),
                }
            }
        };
        Some(Self { key, what })
    }

    /// The addresses that have its name, or one below.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let (v4, v6): (&[Ipv4Addr], &[Ipv6Addr]) = match &self.what {
            What::Balanced { v4, v6, .. } => (v4.as_slice(), v6.as_slice()),
            What::Headless(of) => (&of.v4, &of.v6),
            What::Alias(_) => (&[], &[]),
        };
        v4.iter().copied().map(IpAddr::V4).chain(v6.iter().copied().map(IpAddr::V6))
    }

    /// Whether an address has its name, or one below.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        match &self.what {
            What::Headless(of) => of.has(address),
            What::Balanced { .. } | What::Alias(_) => self.addresses().any(|own| own == address),
        }
    }

    /// Whether somebody has given a name to an address that it has: itself, or an endpoint's hostname.
    pub(crate) fn calls(&self, address: IpAddr) -> bool {
        match &self.what {
            What::Headless(of) => {
                of.labels_of(address).any(|label| matches!(label, Label::Given(_)))
            }
            What::Balanced { .. } | What::Alias(_) => self.has(address),
        }
    }

    /// Its port of that name and protocol; only ports with names have one.
    pub(crate) fn port(&self, name: &[u8], protocol: &[u8]) -> Option<&ServicePort> {
        let protocol = protocol_of(protocol)?;
        let service = self.service()?;
        service.ports.iter().find(|port| {
            !port.name.is_empty()
                && port.protocol == protocol
                && port.name.as_bytes().eq_ignore_ascii_case(name)
        })
    }

    /// Whether some port with a name is of that protocol.
    pub(crate) fn has_protocol(&self, protocol: &[u8]) -> bool {
        let Some(protocol) = protocol_of(protocol) else { return false };
        let is = |port: &ServicePort| !port.name.is_empty() && port.protocol == protocol;
        self.service().is_some_and(|service| service.ports.iter().any(is))
    }

    fn service(&self) -> Option<&Service> {
        match &self.what {
            What::Balanced { service, .. } => Some(service),
            What::Headless(headless) => Some(&headless.service),
            What::Alias(_) => None,
        }
    }
}

/// Whether its name is that of its endpoints.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.external_name.is_none()
        && service.cluster_ips.is_empty()
        && service.foreign_ips.is_empty()
}

fn protocol_of(label: &[u8]) -> Option<Protocol> {
    match label {
        b"_tcp" => Some(Protocol::Tcp),
        b"_udp" => Some(Protocol::Udp),
        b"_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

impl Headless {
    fn of(service: Arc<Service>, endpoints: Option<Arc<Endpoints>>) -> Self {
        let (mut v4, mut v6, mut hosts) = (Vec::new(), Vec::new(), Vec::new());
        let all = endpoints.iter().flat_map(|endpoints| endpoints.ports.values().flatten());
        for endpoint in all.filter(|endpoint| is_ready(endpoint)) {
            match endpoint.address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
            if let Some(name) = &endpoint.hostname {
                hosts.push((name.to_ascii_lowercase(), endpoint.address));
            }
        }
        sort(&mut v4);
        sort(&mut v6);
        sort(&mut hosts);
        Self { v4: v4.into(), v6: v6.into(), hosts: Hosts::of(&hosts), service, endpoints }
    }

    /// Whether none is ready.
    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The endpoint with that label that comes `nth` among those that share it.
    pub(crate) fn host(&self, label: &[u8], nth: usize) -> Option<IpAddr> {
        let hosts = &self.hosts;
        let from = hosts.all.partition_point(|host| hosts.name(host).as_bytes() < label);
        if let Some(host) = hosts.all.get(from + nth)
            && hosts.name(host).as_bytes() == label
        {
            return Some(host.address);
        }
        let address = undashed(label).filter(|address| nth == 0 && self.has(*address))?;
        // Whoever has a name is called by it.
        let is_named = self.hosts.all.iter().any(|host| host.address == address);
        (!is_named).then_some(address)
    }

    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.binary_search(&address).is_ok(),
            IpAddr::V6(address) => self.v6.binary_search(&address).is_ok(),
        }
    }

    /// The labels that an address has in it.
    pub(crate) fn labels_of(&self, address: IpAddr) -> impl Iterator<Item = Label<'_>> {
        let given = self.hosts.all.iter().filter(move |host| host.address == address);
        let mut given = given.map(|host| Label::Given(self.hosts.name(host))).peekable();
        let dashed =
            (given.peek().is_none() && self.has(address)).then_some(Label::Dashed(address));
        given.chain(dashed)
    }

    /// Those that are on a port: their labels, their ports' numbers, sorted, each once.
    pub(crate) fn on_port(&self, name: &str) -> Vec<(Label<'_>, u16)> {
        let all = self.endpoints.iter().flat_map(|of| of.ports.get(name)).flatten();
        let ready = all.filter(|endpoint| is_ready(endpoint));
        let mut on_port: Vec<_> = ready
            .map(|endpoint| {
                let label = match &endpoint.hostname {
                    Some(name) => Label::Given(name),
                    None => Label::Dashed(endpoint.address),
                };
                (label, endpoint.port)
            })
            .collect();
        sort(&mut on_port);
        on_port
    }
}

impl Hosts {
    fn of(sorted: &[(String, IpAddr)]) -> Self {
        let mut names = String::with_capacity(sorted.iter().map(|(name, _)| name.len()).sum());
        let place = |names: &String| u32::try_from(names.len()).unwrap_or(u32::MAX);
        let all = sorted.iter().map(|(name, address)| {
            let start = place(&names);
            names.push_str(name);
            Host { name: (start, place(&names)), address: *address }
        });
        Self { all: all.collect(), names: names.into() }
    }

    fn name(&self, host: &Host) -> &str {
        let (start, end) = host.name;
        self.names.get(start as usize..end as usize).unwrap_or_default()
    }
}

impl Label<'_> {
    /// Appends it, with its length before it.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(0);
        match self {
            Self::Given(name) => out.extend(name.bytes().map(|byte| byte.to_ascii_lowercase())),
            Self::Dashed(address) => {
                let text = address.to_string();
                let dash = |byte| if matches!(byte, b'.' | b':') { b'-' } else { byte };
                out.extend(text.bytes().map(dash));
            }
        }
        out[start] = u8::try_from(out.len() - start - 1).unwrap_or_default();
    }
}

/// The address that a label with dashes stands for.
pub(crate) fn undashed(label: &[u8]) -> Option<IpAddr> {
    let fits = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b'-';
    let text = std::str::from_utf8(label).ok().filter(|_| label.iter().all(fits))?;
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.state == EndpointState::Ready
}

fn sort<T: Ord>(all: &mut Vec<T>) {
    all.sort_unstable();
    all.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_with_dashes_and_read_again() {
        for text in ["10.0.0.1", "fd00::1", "::1", "1::", "fd00:1:2:3:4:5:6:7", "::ffff:1.2.3.4"] {
            let address: IpAddr = text.parse().unwrap();
            let mut label = Vec::new();
            Label::Dashed(address).write(&mut label);
            assert_eq!(usize::from(label[0]) + 1, label.len());
            if !text.contains("ffff") {
                assert_eq!(undashed(&label[1..]), Some(address), "{text}");
            }
        }
        for bad in
            ["", "1", "-", "1-2-3", "1-2-3-4-5", "256-1-1-1", "x-1-1-1", "1.2-3-4", "\u{e4}-1"]
        {
            assert_eq!(undashed(bad.as_bytes()), None, "{bad}");
        }
    }
}
