//! What a node's resolv.conf says of whom to ask.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

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
                    // An address that is only good on one device is followed by its name, which we do not know of.
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    let new = address.map(|address| SocketAddr::new(address, PORT));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_and_search_domains_are_read_and_the_rest_passed_over() {
        let conf = ResolvConf::parse(
            "# by hand\n; too\noptions ndots:5 timeout:1\ndomain old.example\nsearch a.example b.example. .\n\
             nameserver 192.0.2.1\n\tnameserver\t2001:db8::1 # the other\nnameserver fe80::1%eth0\nnameserver\n\
             nameserver 192.0.2.1\nnameserver nonsense\nsortlist 130.155.160.0\n",
        );
        let upstreams =
            ["192.0.2.1:53", "[2001:db8::1]:53"].map(|text| text.parse().expect("an address"));
        assert_eq!(conf.upstreams, upstreams);
        assert_eq!(conf.search, ["a.example", "b.example"]);
    }

    #[test]
    fn an_empty_file_names_nobody() {
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }
}
