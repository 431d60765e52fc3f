//! The names that all servers know.

use std::net::Ipv4Addr;

/// Endpoints of a headless Service.
pub(super) const ENDPOINTS: u32 = 100;
/// The cluster's domain.
pub(super) const ZONE: &str = "cluster.local";
/// Namespaces that Services are spread over.
const NAMESPACES: u32 = 100;

/// How many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Records {
    /// With a ClusterIP.
    pub services: u32,
    /// Without, and with [`ENDPOINTS`] endpoints each.
    pub headless: u32,
}

/// The namespace of the Service with this number.
pub(super) fn namespace(number: u32) -> String {
    format!("ns-{}", number % NAMESPACES)
}

/// The whole name of a Service with a ClusterIP.
pub(super) fn service(number: u32) -> String {
    format!("service-{number}.{}.svc.{ZONE}", namespace(number))
}

/// Its ClusterIP.
pub(super) fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a60_0001 + number)
}

/// The whole name of a headless Service.
pub(super) fn headless(number: u32) -> String {
    format!("headless-{number}.{}.svc.{ZONE}", namespace(number))
}

/// The name of an endpoint below that of its Service.
pub(super) fn hostname(endpoint: u32) -> String {
    format!("pod-{endpoint}")
}

/// The address of a headless Service's endpoint; that of the very first one after so many changes.
pub(super) fn endpoint(service: u32, endpoint: u32, changes: u32) -> Ipv4Addr {
    if (service, endpoint) == (0, 0) && changes > 0 {
        return Ipv4Addr::from_bits(0x0af0_0000 + changes);
    }
    Ipv4Addr::from_bits(0x0a80_0001 + service * ENDPOINTS + endpoint)
}

/// The name whose address changes.
pub(super) fn changing() -> String {
    format!("{}.{}", hostname(0), headless(0))
}

impl Records {
    /// Names with their addresses, after so many changes.
    pub(super) fn addresses(self, changes: u32) -> impl Iterator<Item = (String, Ipv4Addr)> {
        let services = (0..self.services).map(|number| (service(number), cluster_ip(number)));
        let headless = (0..self.headless).flat_map(move |number| {
            (0..ENDPOINTS).flat_map(move |one| {
                let (name, address) = (headless(number), endpoint(number, one, changes));
                [(format!("{}.{name}", hostname(one)), address), (name, address)]
            })
        });
        services.chain(headless)
    }
}
