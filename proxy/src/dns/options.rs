//! What is said about DNS on the command line.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use fairway_abi::RESOLVER_PORT;
use fairway_dns::Name;
use fairway_model::ObjectName;

/// Whether and how the agent answers DNS queries.
#[derive(Args, Clone, Debug)]
// Beside the agent's, which have the same name.
#[group(id = "dns_options")]
pub struct Options {
    /// Whether to answer the DNS queries of this node in the place of the cluster's DNS server, which goes on
    /// if this agent does not [default: on with --manifests, off with --feed]
    #[arg(long, value_enum)]
    pub dns: Option<Switch>,

    /// Whether the kernel answers pods that ask for addresses of Services, as far as it can
    #[arg(long, value_enum, default_value = "on")]
    pub dns_kernel: Switch,

    /// Write one of so many queries that this agent answers to its log, and 100 a second at most; 0: none
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub dns_log: u32,

    /// Whether a pod's name is looked for along its whole search list in one query. Domains that a pod's own dnsConfig adds
    /// are not known, and come after the name itself
    #[arg(long, value_enum, default_value = "on")]
    pub dns_search_path: Switch,

    /// Queries a second that this agent answers one client, and a second's worth of them at once; 0: all
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000)]
    pub dns_rate: u32,

    /// Service of the cluster's DNS server
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "kube-system/kube-dns", value_parser = object_name)]
    pub dns_service: ObjectName,

    /// The cluster's domain
    #[arg(long, value_name = "ZONE", default_value = "cluster.local")]
    pub dns_zone: Name,

    /// Whom to ask for all other names, the preferred one first [default: the name servers in /etc/resolv.conf]
    #[arg(long, value_name = "ADDR[:PORT]", value_delimiter = ',')]
    pub dns_upstream: Vec<Upstream>,

    /// Whom to ask for names of a domain instead; may be given several times, also for one domain
    #[arg(long, value_name = "ZONE=ADDR[:PORT]")]
    pub dns_stub: Vec<Stub>,
}

/// A DNS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream(pub(super) SocketAddr);

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, RESOLVER_PORT));
        let address = address.or_else(|_| text.parse());
        address.map(Self).map_err(|_| "must look like 192.0.2.1 or 192.0.2.1:5353".to_owned())
    }
}

/// A DNS server for names of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    pub(super) zone: Name,
    pub(super) server: SocketAddr,
}

impl FromStr for Stub {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (zone, server) = text.split_once('=').ok_or("must look like example.com=192.0.2.1")?;
        let zone = zone.parse().map_err(|_| format!("{zone:?} is no domain"))?;
        let Upstream(server) = server.parse()?;
        Ok(Self { zone, server })
    }
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is
    On,
    /// It is not
    Off,
}

impl Options {
    /// The Service in whose place the agent answers, if it does; `alone`: without a control plane to follow, and so
    /// most likely without another DNS server.
    pub(crate) fn service(&self, alone: bool) -> Option<ObjectName> {
        let by_default = if alone { Switch::On } else { Switch::Off };
        (self.dns.unwrap_or(by_default) == Switch::On).then(|| self.dns_service.clone())
    }
}

fn object_name(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err("must look like kube-system/kube-dns".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn an_agent_answers_if_it_is_alone_unless_told_otherwise() {
        let kube_dns = Some(ObjectName::new("kube-system", "kube-dns"));
        for (words, alone, follows) in [
            ("p", kube_dns.clone(), None),
            ("p --dns on", kube_dns.clone(), kube_dns),
            ("p --dns off", None, None),
        ] {
            let Line { options } = Line::try_parse_from(words.split(' ')).expect("good options");
            assert_eq!(
                (options.service(true), options.service(false)),
                (alone, follows),
                "{words}"
            );
        }
        let words =
            "p --dns-upstream 192.0.2.1,[2001:db8::1]:5353 --dns-stub corp.example=192.0.2.7";
        let Line { options } = Line::try_parse_from(words.split(' ')).expect("good options");
        let upstreams: Vec<_> = options.dns_upstream.iter().map(|of| of.0.to_string()).collect();
        assert_eq!(upstreams, ["192.0.2.1:53", "[2001:db8::1]:5353"]);
        assert_eq!(options.dns_stub[0].server.to_string(), "192.0.2.7:53");
        for bad in [
            "p --dns-service kube-dns",
            "p --dns-upstream x",
            "p --dns-stub corp.example",
            "p --dns-service /x",
            "p --dns maybe",
        ] {
            assert!(Line::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
