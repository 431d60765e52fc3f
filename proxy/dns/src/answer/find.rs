//! What a name of the cluster's zone is, by its labels.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairway_model::{ObjectName, ServicePort};

use crate::name::labels;
use crate::zone::names::{Headless, Key, Names, What, undashed};
use crate::zone::{PodNames, Zone};

/// What a name is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found<'a> {
    /// There is no such name.
    Absent,
    /// There is nothing of that name, but there are names below it (RFC 8020).
    Between,
    /// The zone's own.
    Apex,
    /// `dns-version`.
    Version,
    /// The zone's server's, if it has addresses.
    Server(Option<&'a Names>),
    /// A Service's.
    Service(&'a Names),
    /// That of endpoints of a Service, who share this label.
    Host(&'a Headless, &'a [u8]),
    /// That of a port of a Service.
    Port(&'a Names, &'a ServicePort),
    /// That of an address.
    Pod(IpAddr),
}

/// Labels below the zone that may mean something.
const MOST: usize = 5;

impl Zone {
    /// How many bytes of a name are below the zone; `None` if the name is not within it.
    pub(super) fn prefix_of(&self, name: &[u8]) -> Option<usize> {
        let zone = self.options.zone.as_wire();
        let prefix = name.len().checked_sub(zone.len())?;
        if name[prefix..] != *zone {
            return None;
        }
        // The bytes could begin within a label.
        let mut at = 0;
        while at < prefix {
            at += usize::from(name[at]) + 1;
        }
        (at == prefix).then_some(prefix)
    }

    /// What the labels are below the zone; in small letters.
    pub(super) fn find<'a>(&'a self, prefix: &'a [u8]) -> Found<'a> {
        let mut starts = [0; MOST];
        let (mut at, mut count) = (0, 0);
        while at < prefix.len() {
            let Some(start) = starts.get_mut(count) else { return Found::Absent };
            *start = at;
            at += usize::from(prefix[at]) + 1;
            count += 1;
        }
        let label = |nth: usize| {
            let start = starts[nth];
            &prefix[start + 1..start + 1 + usize::from(prefix[start])]
        };
        if count == 0 {
            return Found::Apex;
        }
        // From here on counted from the zone.
        let from = |nth: usize| starts[count - nth];
        match label(count - 1) {
            b"svc" => {}
            b"pod" if self.options.pods == PodNames::Insecure => {
                return match count {
                    1 | 2 => Found::Between,
                    3 => undashed(label(0)).map_or(Found::Absent, Found::Pod),
                    _ => Found::Absent,
                };
            }
            b"dns" => {
                return match count {
                    1 => Found::Between,
                    2 if label(0) == b"ns" => Found::Server(self.server()),
                    _ => Found::Absent,
                };
            }
            b"dns-version" if count == 1 => return Found::Version,
            _ => return Found::Absent,
        }
        let names = match count {
            1 => return Found::Between,
            2 if self.has_namespace(&prefix[..from(1)]) => return Found::Between,
            2 => return Found::Absent,
            _ => self.service(&prefix[from(3)..from(1)]),
        };
        let Some(names) = names else { return Found::Absent };
        if let What::Headless(headless) = &names.what
            && headless.is_empty()
        {
            return Found::Absent;
        }
        match count {
            3 => Found::Service(names),
            4 => match &names.what {
                _ if names.has_protocol(label(0)) => Found::Between,
                What::Headless(headless) if headless.host(label(0), 0).is_some() => {
                    Found::Host(headless, label(0))
                }
                _ => Found::Absent,
            },
            _ => match (label(0).strip_prefix(b"_"), label(1)) {
                (Some(port), protocol) => names
                    .port(port, protocol)
                    .map_or(Found::Absent, |port| Found::Port(names, port)),
                (None, _) => Found::Absent,
            },
        }
    }

    fn server(&self) -> Option<&Names> {
        let ObjectName { namespace, name } = &self.options.server;
        let key = Key::of(name, namespace)?;
        self.service(key.as_wire())
    }
}

/// The address that a name of `in-addr.arpa` or `ip6.arpa` is about (RFC 1035, 3.5; RFC 3596, 2.5), and how many bytes
/// are below these.
pub(super) fn address_of(name: &[u8]) -> Option<(IpAddr, usize)> {
    let mut labels = labels(name);
    if let Some(prefix) = name.strip_suffix(b"\x07in-addr\x04arpa\0") {
        let mut octets = [0; 4];
        for octet in octets.iter_mut().rev() {
            let text = std::str::from_utf8(labels.next()?).ok()?;
            let plain = text.bytes().all(|byte| byte.is_ascii_digit())
                && (text == "0" || !text.starts_with('0'));
            *octet = text.parse().ok().filter(|_| plain)?;
        }
        let address = IpAddr::V4(Ipv4Addr::from(octets));
        return (labels.next()? == b"in-addr").then_some((address, prefix.len()));
    }
    let prefix = name.strip_suffix(b"\x03ip6\x04arpa\0")?;
    let mut octets = [0; 16];
    for octet in octets.iter_mut().rev() {
        let mut digit = || {
            let [digit] = labels.next()? else { return None };
            char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
        };
        let (low, high) = (digit()?, digit()?);
        *octet = high << 4 | low;
    }
    let address = IpAddr::V6(Ipv6Addr::from(octets));
    (labels.next()? == b"ip6").then_some((address, prefix.len()))
}
