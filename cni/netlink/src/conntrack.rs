//! `conntrack -L` and `conntrack -D`: what the kernel remembers of connections that it tracks, and how
//! it translates them, in the calling thread's network namespace (ctnetlink).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::raw::{self, Raw, attributes};
use crate::{Error, sysctl};

/// A connection of a protocol with ports, as the kernel tracks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IANA number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Packets of who opened it, before translation.
    pub original: Ends,
    /// Its answers, before they are translated back.
    pub answers: Ends,
    /// Whether an answer was seen.
    pub answered: bool,
    /// How far it is.
    pub phase: Phase,
    /// The kernel's number for it.
    pub id: [u8; 4],
}

/// Where a packet comes from and where it goes. Both are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It may carry data; so for what is not TCP.
    Open,
    /// Both ends have closed it, and may say so again.
    Closing,
    /// It was reset.
    Closed,
}

impl Connection {
    /// One without a number.
    pub fn new(protocol: u8, original: Ends, answers: Ends, answered: bool, phase: Phase) -> Self {
        Self { protocol, original, answers, answered, phase, id: [0; 4] }
    }

    /// Whether its packets get other addresses or ports on their way.
    pub fn is_translated(&self) -> bool {
        let (there, back) = (&self.original, &self.answers);
        (there.source, there.destination) != (back.destination, back.source)
    }
}

const OPERATION: &str = "list tracked connections";
const FORGET: &str = "forget a tracked connection";
/// `NFNL_SUBSYS_CTNETLINK`, in the high byte of a message's type.
const CTNETLINK: u16 = 1 << 8;
const NEW: u16 = CTNETLINK;
const GET: u16 = CTNETLINK | 1;
const DELETE: u16 = CTNETLINK | 2;
/// `struct nfgenmsg`: family, version, resource.
const GENERIC: usize = 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// `CTA_IP_V4_SRC`; the destination's is the next, and so are those of IPv6.
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const IPS_SEEN_REPLY: u32 = 1 << 1;
/// Its sequence numbers change on the way, as for FTP's commands, which nobody else could go on with.
const IPS_SEQ_ADJUST: u32 = 1 << 6;
const TCP: u8 = 6;
const PORTS: [u8; 3] = [TCP, 17, 132];

/// How many connections the kernel tracks; none where it does not do so at all. Asking loads no module.
pub fn count() -> u64 {
    let text = sysctl::get("net/netfilter/nf_conntrack_count");
    text.ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Hands out those of protocols with ports, of both families, until `each` has enough. Connections that
/// come or go meanwhile may or may not be among them.
pub fn connections(mut each: impl FnMut(Connection) -> ControlFlow<()>) -> Result<(), Error> {
    let mut list = || {
        Raw::open(NETLINK_NETFILTER)?.dump(GET, &[0; GENERIC], |kind, body| match kind {
            NEW => match connection(body)? {
                Some(connection) => Some(each(connection)),
                None => Some(ControlFlow::Continue(())),
            },
            _ => Some(ControlFlow::Continue(())),
        })
    };
    list().map_err(|error: io::Error| Error::system(OPERATION, error))
}

/// Makes the kernel forget connections.
pub struct Eraser(Raw);

impl Eraser {
    /// For those of the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let open = Raw::open(NETLINK_NETFILTER);
        open.map(Self).map_err(|error| Error::system(FORGET, error))
    }

    /// Forgets a connection, whose next packet is then that of a new one; false if it is forgotten
    /// already.
    pub fn forget(&self, connection: &Connection) -> Result<bool, Error> {
        let deletion = || -> io::Result<Vec<u8>> {
            let mut body = vec![family(connection.original.source.ip()), 0, 0, 0];
            raw::nested(&mut body, CTA_TUPLE_ORIG, &tuple(connection)?)?;
            raw::attribute(&mut body, CTA_ID, &connection.id)?;
            raw::acknowledged(DELETE, 0, &body)
        };
        match deletion().and_then(|deletion| self.0.change(&deletion)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(Error::system(FORGET, error)),
        }
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// The original direction as the kernel writes it.
fn tuple(connection: &Connection) -> io::Result<Vec<u8>> {
    let Ends { source, destination } = &connection.original;
    let (mut addresses, mut ports, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for (index, address) in (0..).zip([source.ip(), destination.ip()]) {
        match address {
            IpAddr::V4(ip) => raw::attribute(&mut addresses, CTA_IP_V4_SRC + index, &ip.octets()),
            IpAddr::V6(ip) => raw::attribute(&mut addresses, CTA_IP_V6_SRC + index, &ip.octets()),
        }?;
    }
    raw::attribute(&mut ports, CTA_PROTO_NUM, &[connection.protocol])?;
    raw::attribute(&mut ports, CTA_PROTO_SRC_PORT, &source.port().to_be_bytes())?;
    raw::attribute(&mut ports, CTA_PROTO_DST_PORT, &destination.port().to_be_bytes())?;
    raw::nested(&mut all, CTA_TUPLE_IP, &addresses)?;
    raw::nested(&mut all, CTA_TUPLE_PROTO, &ports)?;
    Ok(all)
}

/// Outer `None`: the message makes no sense. Inner `None`: a connection that nobody asks for.
fn connection(body: &[u8]) -> Option<Option<Connection>> {
    let mut both = [None; 2];
    let (mut status, mut id, mut phase, mut zone) = (0, [0; 4], Phase::Open, false);
    for (kind, value) in attributes(body.get(GENERIC..)?) {
        match kind {
            CTA_TUPLE_ORIG => both[0] = ends(value),
            CTA_TUPLE_REPLY => both[1] = ends(value),
            CTA_STATUS => status = u32::from_be_bytes(*value.first_chunk()?),
            CTA_PROTOINFO => phase = tcp_phase(value).unwrap_or(Phase::Open),
            CTA_ID => id = *value.first_chunk()?,
            // What a zone is for, only its maker knows.
            CTA_ZONE => zone = value != [0; 2],
            _ => {}
        }
    }
    let [Some((protocol, original)), Some((_, answers))] = both else { return Some(None) };
    if zone || status & IPS_SEQ_ADJUST != 0 {
        return Some(None);
    }
    let answered = status & IPS_SEEN_REPLY != 0;
    Some(Some(Connection { protocol, original, answers, answered, phase, id }))
}

/// One direction; none of a protocol without ports.
fn ends(tuple: &[u8]) -> Option<(u8, Ends)> {
    let (mut addresses, mut ports, mut protocol) = ([None; 2], [None; 2], 0);
    for (kind, value) in attributes(tuple) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    let place = addresses.get_mut(usize::from((kind + 1) % 2))?;
                    *place = address(value);
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        CTA_PROTO_NUM => protocol = *value.first()?,
                        CTA_PROTO_SRC_PORT => ports[0] = value.first_chunk(),
                        CTA_PROTO_DST_PORT => ports[1] = value.first_chunk(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if !PORTS.contains(&protocol) {
        return None;
    }
    let at = |n: usize| Some(SocketAddr::new(addresses[n]?, u16::from_be_bytes(*ports[n]?)));
    Some((protocol, Ends { source: at(0)?, destination: at(1)? }))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// By `enum tcp_conntrack`. None of what is not TCP.
fn tcp_phase(value: &[u8]) -> Option<Phase> {
    const CLOSE: u8 = 8;
    const LAST_ACK: u8 = 6;
    const TIME_WAIT: u8 = 7;
    let (_, tcp) = attributes(value).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP)?;
    let (_, state) = attributes(tcp).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP_STATE)?;
    Some(match *state.first()? {
        LAST_ACK | TIME_WAIT => Phase::Closing,
        CLOSE => Phase::Closed,
        _ => Phase::Open,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod's connection to a ClusterIP, as the kernel shows it.
    fn body(state: u8, more: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let tuple = |source: [u8; 4], ports: [u16; 2], destination: [u8; 4]| {
            let [source_port, destination_port] = ports;
            let ends = Ends {
                source: SocketAddr::new(source.into(), source_port),
                destination: SocketAddr::new(destination.into(), destination_port),
            };
            let of = Connection::new(TCP, ends, ends, false, Phase::Open);
            super::tuple(&of).expect("short")
        };
        let mut all = vec![AF_INET, 0, 0, 0];
        let there = tuple([10, 244, 1, 2], [40_000, 80], [10, 96, 0, 1]);
        raw::nested(&mut all, CTA_TUPLE_ORIG, &there).expect("short");
        let back = tuple([10, 244, 1, 3], [8080, 40_000], [10, 244, 1, 2]);
        raw::nested(&mut all, CTA_TUPLE_REPLY, &back).expect("short");
        raw::attribute(&mut all, CTA_STATUS, &[0, 0, 1, 0x8e]).expect("short");
        let (mut tcp, mut info) = (Vec::new(), Vec::new());
        raw::attribute(&mut tcp, CTA_PROTOINFO_TCP_STATE, &[state]).expect("short");
        raw::nested(&mut info, CTA_PROTOINFO_TCP, &tcp).expect("short");
        raw::nested(&mut all, CTA_PROTOINFO, &info).expect("short");
        raw::attribute(&mut all, CTA_ID, &[1, 2, 3, 4]).expect("short");
        more(&mut all);
        all
    }

    #[test]
    fn a_connection_is_read_in_both_directions() {
        let end = |text: &str| text.parse().expect("an address");
        let expected = Connection {
            protocol: TCP,
            original: Ends { source: end("10.244.1.2:40000"), destination: end("10.96.0.1:80") },
            answers: Ends { source: end("10.244.1.3:8080"), destination: end("10.244.1.2:40000") },
            answered: true,
            phase: Phase::Open,
            id: [1, 2, 3, 4],
        };
        assert_eq!(connection(&body(3, |_| {})), Some(Some(expected)));
        assert!(expected.is_translated());
        let untouched = Connection { original: expected.answers, ..expected };
        let back =
            Ends { source: untouched.original.destination, destination: untouched.original.source };
        assert!(!Connection { answers: back, ..untouched }.is_translated());
        for (state, phase) in [(7, Phase::Closing), (8, Phase::Closed), (4, Phase::Open)] {
            assert_eq!(connection(&body(state, |_| {})).flatten().map(|c| c.phase), Some(phase));
        }
    }

    #[test]
    fn what_nobody_could_go_on_with_is_left_out() {
        let zone = |all: &mut Vec<u8>| raw::attribute(all, CTA_ZONE, &[0, 7]).expect("short");
        assert_eq!(connection(&body(3, zone)), Some(None));
        let adjusted =
            |all: &mut Vec<u8>| raw::attribute(all, CTA_STATUS, &[0, 0, 1, 0xce]).expect("short");
        assert_eq!(connection(&body(3, adjusted)), Some(None));
        assert_eq!(connection(&[AF_INET, 0, 0, 0]), Some(None), "no addresses");
        assert_eq!(connection(&[AF_INET]), None);
    }
}
