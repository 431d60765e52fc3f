//! What a node's resolv.conf says of whom to ask.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::Path;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};

/// The port of DNS.
const PORT: u16 = 53;
/// More name servers than glibc's three do nobody harm, and hundreds would.
const MOST: usize = 16;

/// What of a resolv.conf matters to us (resolv.conf(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Whom to ask, the preferred one first.
    pub upstreams: Vec<SocketAddr>,
    /// Domains that names without enough dots are looked for in.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads the file; lines that say nothing to us are passed over.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(&String::from_utf8_lossy(&fs::read(path)?)))
    }

    fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let new = words.next().and_then(server);
                    conf.upstreams.extend(new.filter(|new| !conf.upstreams.contains(new)));
                }
                // The last of either counts.
                Some("search" | "domain") => {
                    let domains = words.map(|word| word.trim_end_matches('.').to_owned());
                    conf.search = domains.filter(|domain| !domain.is_empty()).collect();
                }
                _ => {}
            }
        }
        conf.upstreams.truncate(MOST);
        conf
    }

    /// Whom to ask: a server of this machine, if nobody is named.
    pub(super) fn upstreams_or_local(&self) -> Vec<SocketAddr> {
        match &self.upstreams[..] {
            [] => vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT)],
            some => some.to_vec(),
        }
    }
}

/// A server by its address, which is followed by the name or number of a device if it is good on that alone.
fn server(word: &str) -> Option<SocketAddr> {
    let Some((address, device)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse().ok()?, PORT));
    };
    let any = socket(AddressFamily::INET6, SocketType::DGRAM, None).ok()?;
    let number = device.parse().ok().or_else(|| name_to_index(any, device).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, number).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_and_search_domains_are_read_and_the_rest_passed_over() {
        let conf = ResolvConf::parse(
            "# by hand\n; too\noptions ndots:5 timeout:1\ndomain old.example\nsearch a.example b.example. .\n\
             nameserver 192.0.2.1\n\tnameserver\t2001:db8::1 # the other\nnameserver fe80::1%lo\nnameserver\n\
             nameserver fe80::2%7\nnameserver fe80::1%nonsense\nnameserver 192.0.2.1\nnameserver nonsense\nsortlist 130.155.160.0\n",
        );
        // Linux has the loopback device first.
        let upstreams = ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%1]:53", "[fe80::2%7]:53"];
        let upstreams = upstreams.map(|text| text.parse().expect("an address"));
        assert_eq!(conf.upstreams, upstreams);
        assert_eq!(conf.search, ["a.example", "b.example"]);
    }

    #[test]
    fn where_nobody_is_named_this_machine_is_asked() {
        let conf = ResolvConf::parse("");
        assert_eq!(conf, ResolvConf::default());
        assert_eq!(conf.upstreams_or_local(), ["127.0.0.1:53".parse().expect("an address")]);
    }
}
