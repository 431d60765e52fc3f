//! The form of a story.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairway_abi::protocol;
use fairway_controlplane::manifests;
use fairway_model::{Forwarding, Model};
use ipnet::IpNet;
use serde::Deserialize;

use crate::frame::Family;

pub(crate) const NODE_NAME: &str = "n1";
/// The pods that are on the node.
pub(crate) const PODS: [[u8; 4]; 2] = [[10, 244, 1, 2], [10, 244, 1, 3]];
const NODE: [u8; 4] = [192, 0, 2, 1];
const CLIENT: [u8; 4] = [198, 51, 100, 7];

/// See the module.
pub(crate) struct Story {
    pub(crate) options: Options,
    objects: String,
    pub(crate) cases: Vec<Case>,
}

/// What the node was told.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Ranges of addresses that node ports are open on.
    node_port_addresses: Vec<String>,
    pub(crate) localhost_node_ports: bool,
    pub(crate) no_pod_sockets: bool,
    /// As kube-proxy's iptables mode.
    pub(crate) iptables_compat: bool,
    pub(crate) forwarding: Forwarding,
    /// Addresses of the node beside the one that its Node object has.
    more_addresses: Vec<String>,
}

/// Connections, and what must become of them.
pub(crate) struct Case {
    pub(crate) why: String,
    pub(crate) from: From,
    /// Where they go, in turns.
    pub(crate) to: Vec<End>,
    pub(crate) protocol: u8,
    pub(crate) expected: Expected,
    /// All of them reach one and the same endpoint.
    pub(crate) sticks: bool,
    /// Sockets do not make the choice.
    pub(crate) not_at_sockets: bool,
}

/// Who makes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum From {
    /// Pod 10.244.1.2.
    Pod,
    /// A process of the node itself.
    Node,
    /// Somebody outside the cluster.
    Client,
}

impl From {
    pub(crate) fn address(self) -> [u8; 4] {
        match self {
            Self::Pod => PODS[0],
            Self::Node => NODE,
            Self::Client => CLIENT,
        }
    }
}

/// What must become of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Some must reach each of these. `sees`: whether the endpoint sees the client's address. `answered_as`:
    /// the frontend that its node is told to answer as.
    Reaches {
        endpoints: Vec<End>,
        sees: Option<bool>,
        answered_as: Option<End>,
    },
    Refused,
    /// For the reason of that name.
    Dropped(String),
    Passes,
}

/// An address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    /// By its last four bytes, or a loopback address.
    address: IpAddr,
    port: u16,
}

impl End {
    /// As packets have it.
    pub(crate) fn of<A: fairway_compile::Family>(address: A, port: u16) -> Self {
        Self { address: address.to_ip(), port }
    }

    pub(crate) fn at<A: Family>(self) -> (A, u16) {
        if self.address.is_loopback() {
            return (A::LOOPBACK, self.port);
        }
        let last = match self.address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                [a, b, c, d]
            }
        };
        (A::at(last), self.port)
    }

    /// Whether it is a pod of the story's node, or the node.
    pub(crate) fn is_here(self) -> bool {
        let last = match self.address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                [a, b, c, d]
            }
        };
        PODS.contains(&last) || last == NODE
    }

    fn read(text: &str) -> Self {
        let end: std::net::SocketAddr =
            text.parse().unwrap_or_else(|_| panic!("{text}: ADDRESS:PORT"));
        Self { address: end.ip(), port: end.port() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Text {
    #[serde(default)]
    options: Options,
    objects: String,
    cases: Vec<CaseText>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CaseText {
    why: String,
    from: From,
    /// `ADDRESS:PORT` or several of them.
    to: OneOrMore,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    reaches: Option<Vec<String>>,
    #[serde(default)]
    sees_client: Option<bool>,
    #[serde(default)]
    answered_as: Option<String>,
    #[serde(default)]
    refused: bool,
    #[serde(default)]
    dropped: Option<String>,
    #[serde(default)]
    passes: bool,
    #[serde(default)]
    sticks: bool,
    #[serde(default)]
    not_at_sockets: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Story {
    pub(crate) fn read(name: &str, text: &str) -> Self {
        let text: Text =
            serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("story {name}: {error}"));
        Self {
            options: text.options,
            objects: text.objects,
            cases: text.cases.into_iter().map(CaseText::read).collect(),
        }
    }

    /// What the control plane makes of the objects and of the nodes, which every story has.
    pub(crate) fn model(&self) -> Model {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("story.yaml");
        std::fs::write(&file, &self.objects).expect("a file");
        let v6 = self.is_ipv6();
        let cidr = map(Ipv4Addr::new(10, 96, 0, 0), v6);
        let bits = if v6 { 96 + 16 } else { 16 };
        let cidr = IpNet::new(cidr, bits).expect("a range");
        let checked = manifests::check(&[file], vec![cidr], 30000..=32767).expect("readable files");
        assert!(checked.problems.is_empty(), "{:?}", checked.problems);
        checked.model.validate().expect("a good model");
        checked.model
    }

    /// All addresses of the story's node.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let more = self.options.more_addresses.iter();
        let more = more.map(|text| text.parse().expect("an address"));
        std::iter::once(map(NODE.into(), self.is_ipv6())).chain(more).collect()
    }

    pub(crate) fn node_port_ranges(&self) -> Vec<IpNet> {
        let mut ranges = self.options.node_port_addresses.clone();
        if self.options.iptables_compat {
            ranges.extend(["0.0.0.0/0", "::/0"].map(str::to_owned));
        }
        ranges.iter().map(|text| text.parse().expect("a range")).collect()
    }

    /// The ranges on the uplink's link.
    pub(crate) fn on_link(&self) -> Vec<IpNet> {
        let v6 = self.is_ipv6();
        let bits = if v6 { 96 + 24 } else { 24 };
        vec![IpNet::new(map(Ipv4Addr::new(192, 0, 2, 0), v6), bits).expect("a range")]
    }

    fn is_ipv6(&self) -> bool {
        self.objects.contains("2001:db8::")
    }
}

impl CaseText {
    fn read(self) -> Case {
        let number = match self.protocol.as_deref() {
            None | Some("tcp") => protocol::TCP,
            Some("udp") => protocol::UDP,
            Some("sctp") => protocol::SCTP,
            Some("icmp") => protocol::ICMP,
            Some(other) => panic!("{}: protocol {other}", self.why),
        };
        let expected = match (self.reaches, self.refused, self.dropped, self.passes) {
            (Some(endpoints), false, None, false) => Expected::Reaches {
                endpoints: endpoints.iter().map(|text| End::read(text)).collect(),
                sees: self.sees_client,
                answered_as: self.answered_as.as_deref().map(End::read),
            },
            (None, true, None, false) => Expected::Refused,
            (None, false, Some(reason), false) => Expected::Dropped(reason),
            (None, false, None, true) => Expected::Passes,
            _ => panic!("{}: one of reaches, refused, dropped and passes", self.why),
        };
        let to = match self.to {
            OneOrMore::One(text) => vec![End::read(&text)],
            OneOrMore::More(texts) => texts.iter().map(|text| End::read(text)).collect(),
        };
        Case {
            why: self.why,
            from: self.from,
            to,
            protocol: number,
            expected,
            sticks: self.sticks,
            not_at_sockets: self.not_at_sockets,
        }
    }
}

fn map(address: Ipv4Addr, v6: bool) -> IpAddr {
    if v6 {
        let [a, b, c, d] = address.octets();
        Ipv6Addr::from([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]).into()
    } else {
        address.into()
    }
}

/// The same story with IPv6 addresses: `10.1.2.3` becomes `2001:db8::a01:203`, prefixes grow by 96 bits,
/// `10.1.2.3:80` is put in brackets, and the loopback address stays one.
pub(crate) fn in_ipv6(text: &str) -> String {
    let mut mapped = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        mapped += &rest[..start];
        rest = &rest[start..];
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let address = word.parse::<Ipv4Addr>().ok();
        let Some(address) = address.filter(|_| !mapped.ends_with(|c: char| c.is_alphanumeric()))
        else {
            mapped += word;
            rest = after;
            continue;
        };
        let address =
            if address.is_loopback() { Ipv6Addr::LOCALHOST.into() } else { map(address, true) };
        rest = after;
        let follows = |mark: char| {
            let digits = rest.strip_prefix(mark)?;
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits[..end].parse::<u16>().ok().map(|number| (number, &digits[end..]))
        };
        if let Some((bits, after)) = follows('/') {
            mapped += &format!("{address}/{}", bits + 96);
            rest = after;
        } else if let Some((port, after)) = follows(':') {
            mapped += &format!("'[{address}]:{port}'");
            rest = after;
        } else {
            // In a flow mapping a bare colon would be read as a key's.
            mapped += &format!("'{address}'");
        }
    }
    (mapped + rest).replace("addressType: IPv4", "addressType: IPv6")
}

#[test]
fn a_story_is_told_in_ipv6() {
    let text = "{ip: 10.1.2.3, cidr: 10.1.0.0/16, to: 10.1.2.3:80, lo: 127.0.0.1:9, v1.10.2.3.4}";
    assert_eq!(
        in_ipv6(text),
        "{ip: '2001:db8::a01:203', cidr: 2001:db8::a01:0/112, to: '[2001:db8::a01:203]:80', \
         lo: '[::1]:9', v1.10.2.3.4}"
    );
}
