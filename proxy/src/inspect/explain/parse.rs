//! Who sends, and where to, as it is typed.

use std::net::IpAddr;
use std::str::FromStr;

use fairway_abi::protocol;
use fairway_model::ObjectName;

use super::super::{object_name, protocol_number};

/// Who sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub(super) who: Who,
    /// Its port, if that is to be a certain one.
    pub(super) port: Option<u16>,
}

/// Whose address it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Host,
    Pod(ObjectName),
    Address(IpAddr),
}

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub(super) to: To,
    pub(super) port: Port,
    /// Of the port's own protocol, or TCP, if none is given.
    pub(super) protocol: Option<u8>,
}

/// Whose address it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum To {
    Service(ObjectName),
    Pod(ObjectName),
    Address(IpAddr),
}

/// Which port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Number(u16),
    Name(String),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (who, port) = split_port(text);
        let port = port.map(|port| port.parse().map_err(|_| format!("{port:?} is no port")));
        let who = match address(who) {
            Some(address) => Who::Address(address),
            None if who == "host" => Who::Host,
            None => Who::Pod(pod_name(who).or_else(|| object_name(who)).ok_or_else(|| {
                "must be a pod of this node (pod/NAMESPACE/NAME or NAMESPACE/NAME), \"host\", or an address"
                    .to_owned()
            })?),
        };
        Ok(Self { who, port: port.transpose()? })
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "must be ADDRESS:PORT, pod/NAMESPACE/NAME:PORT or NAMESPACE/NAME:PORT, and may end in /udp or /sctp";
        let (to, Some(port)) = split_port(text) else { return Err(FORM.to_owned()) };
        let (port, protocol) = match port.split_once('/') {
            Some((port, protocol)) => (port, Some(protocol_number(protocol)?)),
            None => (port, None),
        };
        if protocol
            .is_some_and(|number| !matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP))
        {
            return Err("only TCP, UDP and SCTP have ports".to_owned());
        }
        let to = match address(to) {
            Some(address) => To::Address(address),
            None => match pod_name(to) {
                Some(pod) => To::Pod(pod),
                None => To::Service(object_name(to).ok_or(FORM)?),
            },
        };
        let named = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let port = match port.parse::<u16>() {
            Ok(0) => return Err("port 0 is none".to_owned()),
            Ok(number) => Port::Number(number),
            Err(_) if !matches!(to, To::Service(_)) => {
                return Err("only a Service's port has a name".to_owned());
            }
            Err(_) if !port.is_empty() && port.chars().all(named) => Port::Name(port.to_owned()),
            Err(_) => return Err(format!("{port:?} is no port")),
        };
        Ok(Self { to, port, protocol })
    }
}

/// `pod/NAMESPACE/NAME`.
fn pod_name(text: &str) -> Option<ObjectName> {
    object_name(text.strip_prefix("pod/")?)
}

/// What is before the colon of a port, and after it.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    match text.rsplit_once(':') {
        // The colons within brackets are an address's.
        Some((who, port)) if !port.ends_with(']') => (who, Some(port)),
        _ => (text, None),
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    bare.unwrap_or(text).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let web = Who::Pod(ObjectName::new("shop", "web"));
        let v6 = Who::Address("fd00::1".parse().expect("an address"));
        for (text, who, port) in [
            ("host", Who::Host, None),
            ("host:7", Who::Host, Some(7)),
            ("shop/web", web.clone(), None),
            ("pod/shop/web", web.clone(), None),
            ("shop/web:40000", web, Some(40_000)),
            ("10.0.0.1", Who::Address([10, 0, 0, 1].into()), None),
            ("10.0.0.1:5", Who::Address([10, 0, 0, 1].into()), Some(5)),
            ("fd00::1", v6.clone(), None),
            ("[fd00::1]", v6.clone(), None),
            ("[fd00::1]:80", v6, Some(80)),
        ] {
            assert_eq!(text.parse(), Ok(Source { who, port }), "{text}");
        }
        for bad in ["", "web", "10.0.0.1:x", "10.0.0.1:70000", "shop/web/x", "host:"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations() {
        let web = To::Service(ObjectName::new("shop", "web"));
        let v6 = To::Address("fd00::1".parse().expect("an address"));
        for (text, to, port, protocol) in [
            ("shop/web:http", web.clone(), Port::Name("http".to_owned()), None),
            ("shop/web:80/UDP", web, Port::Number(80), Some(17)),
            (
                "pod/shop/web:80/udp",
                To::Pod(ObjectName::new("shop", "web")),
                Port::Number(80),
                Some(17),
            ),
            ("10.0.0.1:80", To::Address([10, 0, 0, 1].into()), Port::Number(80), None),
            ("[fd00::1]:53/udp", v6, Port::Number(53), Some(17)),
        ] {
            assert_eq!(text.parse(), Ok(Destination { to, port, protocol }), "{text}");
        }
        for bad in [
            "10.0.0.1",
            "fd00::1",
            "shop/web",
            "pod/shop/web",
            "pod/shop/web:http",
            "10.0.0.1:http",
            "10.0.0.1:80/icmp",
            "10.0.0.1:0",
            "web:80",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }
}
