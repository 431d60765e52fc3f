//! `ip route`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Error, Netlink};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Delivers it to this host.
    Local,
    /// Delivers it as a broadcast.
    Broadcast,
    /// Drops it without a word.
    Blackhole,
    /// Drops it and says "host unreachable".
    Unreachable,
    /// Drops it and says "forbidden".
    Prohibit,
    /// One of the kernel's other kinds, by its number.
    Other(u8),
}

/// A route. Make one with [`Route::to`] and set what differs from its defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to; `0.0.0.0/0` or `::/0` for the default route.
    pub destination: IpNet,
    /// What it does; unicast.
    pub kind: RouteKind,
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// The interface it leaves by.
    pub device: Option<u32>,
    /// The destination is on this very link (`scope link`); IPv4 only, ignored for IPv6.
    pub scope_link: bool,
    /// Take the gateway to be on the link although no route says so.
    pub onlink: bool,
    /// The source address preferred for packets of this host.
    pub source: Option<IpAddr>,
    /// The table; [`Route::MAIN`].
    pub table: u32,
    /// Who made it, a number of `/etc/iproute2/rt_protos`; [`Route::STATIC`].
    pub protocol: u8,
    /// Preference among equal destinations, lower first. The kernel's default is 0 for IPv4 and
    /// 1024 for IPv6.
    pub metric: Option<u32>,
    /// MTU of the path, in bytes.
    pub mtu: Option<u32>,
}

impl Route {
    /// The table `main`.
    pub const MAIN: u32 = 254;
    /// The protocol `static`: made by an administrator or a daemon like this one.
    pub const STATIC: u8 = 4;

    /// A static unicast route in the main table, with nothing said yet on how to get there.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            kind: RouteKind::Unicast,
            gateway: None,
            device: None,
            scope_link: false,
            onlink: false,
            source: None,
            table: Self::MAIN,
            protocol: Self::STATIC,
            metric: None,
            mtu: None,
        }
    }
}

/// How the kernel would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteLookup {
    /// The interface.
    pub device: u32,
    /// The next router; none if the destination is on the link, or local.
    pub gateway: Option<IpAddr>,
    /// The source address it would choose.
    pub source: Option<IpAddr>,
    /// Is the destination an address of this host?
    pub local: bool,
}

impl Netlink {
    /// `ip route add`: makes the route; [`Error::is_exists`] if there is one to the same destination
    /// with the same metric in the same table, whoever made it.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        self.change(
            format_args!("add route {} in table {}", route.destination, route.table),
            RouteNetlinkMessage::NewRoute(write(route)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// `ip route replace`: makes the route, instead of any to the same destination with the same
    /// metric in the same table.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        self.change(
            format_args!("replace route {} in table {}", route.destination, route.table),
            RouteNetlinkMessage::NewRoute(write(route)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// `ip route delete` of the route that has all these properties; an absent one is no error.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let mut message = write(route);
        message.header.scope = RouteScope::NoWhere; // whatever its scope
        let operation = format_args!("delete route {} in table {}", route.destination, route.table);
        match self.change(operation, RouteNetlinkMessage::DelRoute(message), 0) {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// The routes of one family, in one table or in all. A multipath route is shown without
    /// gateway and device.
    pub fn routes(&mut self, family: Family, table: Option<u32>) -> Result<Vec<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.attributes.extend(table.map(RouteAttribute::Table));
        let request = RouteNetlinkMessage::GetRoute(message);
        let answers = match self.dump(format_args!("list {family:?} routes"), &request) {
            // A table that has never had a route does not exist.
            Err(e) if table.is_some() && e.is_not_found() => return Ok(Vec::new()),
            other => other?,
        };
        let routes = answers.into_iter().filter_map(read_new);
        Ok(routes.filter(|route| table.is_none_or(|table| table == route.table)).collect())
    }

    /// `ip route get`: how a packet of this host to `destination` would go; `None` if there is no
    /// way there.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Option<RouteLookup>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination);
        message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let request = RouteNetlinkMessage::GetRoute(message);
        match self.get(format_args!("get route to {destination}"), request) {
            Ok(Some(RouteNetlinkMessage::NewRoute(message))) => Ok(read_lookup(&message)),
            Ok(_) => Ok(None),
            Err(e) if matches!(e.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

pub(crate) fn family_of(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn write(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family_of(route.destination.addr());
    header.destination_prefix_length = route.destination.prefix_len();
    header.protocol = route.protocol.into();
    header.kind = write_kind(route.kind);
    let link_scope = route.scope_link && matches!(route.destination, IpNet::V4(_));
    header.scope = if link_scope { RouteScope::Link } else { RouteScope::Universe };
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }

    let attributes = &mut message.attributes;
    // The header's field has room for 256 tables; the attribute is read first.
    attributes.push(RouteAttribute::Table(route.table));
    if route.destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.device.map(RouteAttribute::Oif));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

fn read_new(message: RouteNetlinkMessage) -> Option<Route> {
    match message {
        RouteNetlinkMessage::NewRoute(message) => read(&message),
        _ => None,
    }
}

pub(crate) fn read(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut destination = unspecified;
    let mut route = Route {
        kind: read_kind(header.kind),
        scope_link: header.scope == RouteScope::Link,
        onlink: header.flags.contains(RouteFlags::Onlink),
        table: header.table.into(),
        protocol: u8::from(header.protocol),
        ..Route::to(unspecified.into())
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => destination = read_address(ip)?,
            RouteAttribute::Gateway(ip) => route.gateway = read_address(ip),
            RouteAttribute::Oif(device) => route.device = Some(*device),
            RouteAttribute::PrefSource(ip) => route.source = read_address(ip),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(route)
}

fn read_lookup(message: &RouteMessage) -> Option<RouteLookup> {
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let mut device = None;
    let mut gateway = None;
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(ip) => gateway = read_address(ip),
            RouteAttribute::PrefSource(ip) => source = read_address(ip),
            _ => {}
        }
    }
    let local = message.header.kind == RouteType::Local;
    Some(RouteLookup { device: device?, gateway, source, local })
}

fn read_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn write_kind(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Broadcast => RouteType::Broadcast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Other(number) => RouteType::from(number),
    }
}

fn read_kind(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Broadcast => RouteKind::Broadcast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        other => RouteKind::Other(other.into()),
    }
}
