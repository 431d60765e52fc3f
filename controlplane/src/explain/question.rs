//! Questions as people write them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use fairway_model::{ObjectName, Protocol};

/// Somebody at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// `pod/NAMESPACE/NAME`, or `pod/NAME` of namespace `default`.
    Pod(ObjectName),
    /// `svc/NAMESPACE/NAME`, or `svc/NAME`.
    Service(ObjectName),
    /// `node/NAME`: a process of its own.
    Node(String),
    /// Whoever has the address.
    Address(IpAddr),
}

/// A destination: `WHO:PORT`, `WHO:PORT/PROTOCOL` or `WHO:icmp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Who it is.
    pub who: Who,
    /// Which port.
    pub port: Port,
}

/// What a packet is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// A number, and a protocol.
    Number(u16, Protocol),
    /// What the Service, or the pod's containers, call a port, and its protocol if that is not to be any.
    Name(String, Option<Protocol>),
    /// None: an echo request.
    Icmp,
}

impl FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "\"{text}\" is none of pod/NAMESPACE/NAME, svc/NAMESPACE/NAME, node/NAME and an address"
            )
        };
        let Some((kind, rest)) = text.split_once('/') else {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            return bare.unwrap_or(text).parse().map(Self::Address).map_err(|_| unknown());
        };
        let (namespace, name) = rest.split_once('/').unwrap_or(("default", rest));
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(unknown());
        }
        match kind {
            "pod" => Ok(Self::Pod(ObjectName::new(namespace, name))),
            "svc" | "service" => Ok(Self::Service(ObjectName::new(namespace, name))),
            "node" if !rest.contains('/') => Ok(Self::Node(rest.to_owned())),
            _ => Err(unknown()),
        }
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not DESTINATION:PORT[/PROTOCOL], as in pod/shop/db:5432 or [fd00::1]:53/udp"
            )
        };
        let (who, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        // An address in IPv6 needs its brackets, or its end would be taken for a port.
        if who.contains(':') && !who.starts_with('[') {
            return Err(wrong());
        }
        Ok(Self { who: who.parse()?, port: port.parse()? })
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Self::Icmp);
        }
        let (port, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((port, protocol)) => (port, Some(self::protocol(protocol)?)),
        };
        match port.parse() {
            Ok(0) => Err("port 0 is no port".to_owned()),
            Ok(number) => Ok(Self::Number(number, protocol.unwrap_or_default())),
            Err(_) if port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(format!("\"{port}\" is no port"))
            }
            Err(_) => Ok(Self::Name(port.to_owned(), protocol)),
        }
    }
}

pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_uppercase().as_str() {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(format!("\"{text}\" is none of TCP, UDP and SCTP")),
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod/{name}"),
            Self::Service(name) => write!(f, "svc/{name}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, port } = self;
        match port {
            Port::Number(number, protocol) => write!(f, "{who}:{number}/{protocol}"),
            Port::Name(name, Some(protocol)) => write!(f, "{who}:{name}/{protocol}"),
            Port::Name(name, None) => write!(f, "{who}:{name}"),
            Port::Icmp => write!(f, "{who}:icmp"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_as_they_are_printed() {
        for (text, printed) in [
            ("pod/db:5432", "pod/default/db:5432/TCP"),
            ("pod/shop/db:5432/udp", "pod/shop/db:5432/UDP"),
            ("svc/shop/web:http", "svc/shop/web:http"),
            ("service/shop/web:http/sctp", "svc/shop/web:http/SCTP"),
            ("10.0.0.1:80", "10.0.0.1:80/TCP"),
            ("[fd00::1]:80", "[fd00::1]:80/TCP"),
            ("node/n1:ICMP", "node/n1:icmp"),
        ] {
            let read: Destination = text.parse().unwrap();
            assert_eq!(read.to_string(), printed);
            assert_eq!(printed.parse(), Ok(read));
        }
        for text in [
            "pod/db",
            "fd00::1:80",
            "db:80",
            "pod/a/b/c:80",
            "pod/db:0",
            "pod/db:65536",
            "pod/db:80/icmp",
            "pod/db:",
            "pod/:80",
            "node/a/b:80",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
