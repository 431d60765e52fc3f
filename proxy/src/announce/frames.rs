//! Questions for a neighbour's MAC address, and answers, as Ethernet frames: ARP (RFC 826) and neighbour
//! discovery (RFC 4861).

use std::net::{Ipv4Addr, Ipv6Addr};

/// In the order of transmission.
pub(super) type Mac = [u8; 6];

const ARP: [u8; 2] = [0x08, 0x06];
/// Ethernet, IPv4, and the lengths of their addresses.
const ARP_HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const BROADCAST: Mac = [0xff; 6];
/// Of a frame with an ARP packet.
const ARP_LENGTH: usize = 42;

/// What an ARP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) is_request: bool,
    pub(super) sender: (Mac, Ipv4Addr),
    pub(super) target: Ipv4Addr,
}

impl Arp {
    /// Reads a frame; `None` if it is something else.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let frame: &[u8; ARP_LENGTH] = frame.first_chunk()?;
        if frame[12..14] != ARP || frame[14..20] != ARP_HEADER || frame[20] != 0 {
            return None;
        }
        let address =
            |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        let mut mac = [0; 6];
        mac.copy_from_slice(&frame[22..28]);
        match frame[21] {
            operation @ (REQUEST | REPLY) => Some(Self {
                is_request: operation == REQUEST,
                sender: (mac, address(28)),
                target: address(38),
            }),
            _ => None,
        }
    }

    /// The frame that answers this request for the target.
    pub(super) fn answer(&self, own: Mac) -> [u8; ARP_LENGTH] {
        let (mac, ip) = self.sender;
        frame(mac, REPLY, (own, self.target), (mac, ip))
    }
}

/// Frames that tell the link whose the address is now: some listen to requests alone, some to replies.
pub(super) fn arp_claims(own: Mac, ip: Ipv4Addr) -> [[u8; ARP_LENGTH]; 2] {
    [
        frame(BROADCAST, REQUEST, (own, ip), ([0; 6], ip)),
        frame(BROADCAST, REPLY, (own, ip), (own, ip)),
    ]
}

fn frame(
    to: Mac,
    operation: u8,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) -> [u8; ARP_LENGTH] {
    let mut frame = [0; ARP_LENGTH];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&sender.0);
    frame[12..14].copy_from_slice(&ARP);
    frame[14..20].copy_from_slice(&ARP_HEADER);
    frame[21] = operation;
    for (at, (mac, ip)) in [(22, sender), (32, target)] {
        frame[at..at + 6].copy_from_slice(&mac);
        frame[at + 6..at + 10].copy_from_slice(&ip.octets());
    }
    frame
}

const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
/// Neighbours believe only what no router has passed on.
const HOPS: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Answers a question; takes the place of what was known.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Where all neighbours listen, and the MAC address of that.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// Where the message begins in a frame: behind the headers of Ethernet and IPv6.
const MESSAGE: usize = 14 + 40;
/// Of a frame with a neighbour advertisement.
const ADVERTISEMENT_LENGTH: usize = MESSAGE + 32;

/// A question for an address's neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Solicitation {
    /// Unspecified: somebody who is about to take the target for itself looks whether it is taken.
    pub(super) sender: (Mac, Ipv6Addr),
    pub(super) target: Ipv6Addr,
}

impl Solicitation {
    /// Reads a frame; `None` if it is something else, or breaks a rule of RFC 4861, 7.1.1.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let head: &[u8; MESSAGE + 24] = frame.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([head[18], head[19]]));
        let message = frame.get(MESSAGE..MESSAGE + length)?;
        let address = |at: usize| {
            head.get(at..at + 16)
                .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
                .map(Ipv6Addr::from)
        };
        let (source, destination, target) = (address(22)?, address(38)?, address(MESSAGE + 8)?);
        let is_solicitation = head[12..14] == IPV6
            && head[14] >> 4 == 6
            && (head[20], head[21]) == (ICMPV6, HOPS)
            && (head[MESSAGE], head[MESSAGE + 1]) == (SOLICITATION, 0);
        if !is_solicitation
            || length < 24
            || target.is_multicast()
            || (source.is_unspecified() && destination != solicited_node(target))
            || sum(source, destination, message) != 0xffff
        {
            return None;
        }
        let mut mac = [0; 6];
        mac.copy_from_slice(&head[6..12]);
        Some(Self { sender: (mac, source), target })
    }

    /// The frame that answers it.
    pub(super) fn answer(&self, own: Mac) -> [u8; ADVERTISEMENT_LENGTH] {
        match self.sender {
            (_, source) if source.is_unspecified() => neighbour_claim(own, self.target),
            to => advertisement(own, to, self.target, OVERRIDE | SOLICITED),
        }
    }
}

/// The frame that tells the link whose the address is now.
pub(super) fn neighbour_claim(own: Mac, ip: Ipv6Addr) -> [u8; ADVERTISEMENT_LENGTH] {
    advertisement(own, (ALL_NODES_MAC, ALL_NODES), ip, OVERRIDE)
}

fn advertisement(
    own: Mac,
    (mac, to): (Mac, Ipv6Addr),
    ip: Ipv6Addr,
    flags: u8,
) -> [u8; ADVERTISEMENT_LENGTH] {
    let mut frame = [0; ADVERTISEMENT_LENGTH];
    frame[..6].copy_from_slice(&mac);
    frame[6..12].copy_from_slice(&own);
    frame[12..14].copy_from_slice(&IPV6);
    frame[14] = 6 << 4;
    frame[19] = 32;
    (frame[20], frame[21]) = (ICMPV6, HOPS);
    frame[22..38].copy_from_slice(&ip.octets());
    frame[38..54].copy_from_slice(&to.octets());
    let message = &mut frame[MESSAGE..];
    message[0] = ADVERTISEMENT;
    message[4] = flags;
    message[8..24].copy_from_slice(&ip.octets());
    // Target link-layer address, of eight bytes.
    message[24..26].copy_from_slice(&[2, 1]);
    message[26..].copy_from_slice(&own);
    let checksum = !sum(ip, to, message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The ones' complement sum of an ICMPv6 message and its pseudo-header (RFC 4443, 2.3); of one whose checksum is
/// right, all ones.
fn sum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let addresses = [source, destination].into_iter().flat_map(|ip| ip.segments()).map(u64::from);
    let words = message.chunks(2).map(|two| match *two {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    let mut sum = addresses.chain(words).sum::<u64>() + message.len() as u64 + u64::from(ICMPV6);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The group that is asked for an address.
pub(super) fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    #[test]
    fn a_request_is_answered_to_who_asked() {
        let (vip, client) = (Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(192, 0, 2, 1));
        let request = frame(BROADCAST, REQUEST, (OTHER, client), ([0; 6], vip));
        let read = Arp::read(&request).unwrap();
        assert_eq!(read, Arp { is_request: true, sender: (OTHER, client), target: vip });
        let answer = read.answer(OWN);
        assert_eq!(answer[..14], [&OTHER[..], &OWN, &ARP].concat());
        let answer = Arp::read(&answer).unwrap();
        assert_eq!(answer, Arp { is_request: false, sender: (OWN, vip), target: client });
        for claim in arp_claims(OWN, vip) {
            assert_eq!(claim[..6], BROADCAST);
            let claim = Arp::read(&claim).unwrap();
            assert_eq!((claim.sender, claim.target), ((OWN, vip), vip));
        }
        for cut in 0..ARP_LENGTH {
            assert_eq!(Arp::read(&request[..cut]), None);
        }
        for at in 12..22 {
            let mut other = request;
            other[at] ^= 0x80;
            assert_eq!(Arp::read(&other), None, "{at}");
        }
    }

    #[test]
    fn neighbour_discovery() {
        let vip: Ipv6Addr = "2001:db8::1:2345".parse().unwrap();
        let client: Ipv6Addr = "fe80::1".parse().unwrap();
        assert_eq!(solicited_node(vip), "ff02::1:ff01:2345".parse::<Ipv6Addr>().unwrap());
        // An advertisement has all that a solicitation has, but for its type.
        let question = |from: Ipv6Addr, to: Ipv6Addr| {
            let mut frame = advertisement(OTHER, (OWN, to), vip, 0);
            frame[22..38].copy_from_slice(&from.octets());
            frame[MESSAGE] = SOLICITATION;
            frame[MESSAGE + 2..MESSAGE + 4].fill(0);
            let checksum = !sum(from, to, &frame[MESSAGE..]);
            frame[MESSAGE + 2..MESSAGE + 4].copy_from_slice(&checksum.to_be_bytes());
            frame
        };
        // Who knows the address asks it, and who does not its group.
        for to in [vip, solicited_node(vip)] {
            let asked = question(client, to);
            let read = Solicitation::read(&asked).unwrap();
            assert_eq!(read, Solicitation { sender: (OTHER, client), target: vip });
            let answer = read.answer(OWN);
            assert_eq!(answer[..14], [&OTHER[..], &OWN, &IPV6].concat());
            assert_eq!((answer[MESSAGE], answer[MESSAGE + 4]), (ADVERTISEMENT, 0x60));
            assert_eq!(answer[22..54], [vip.octets(), client.octets()].concat());
            assert_eq!(sum(vip, client, &answer[MESSAGE..]), 0xffff);
            assert_eq!(answer[MESSAGE + 24..], [&[2, 1][..], &OWN].concat());
            assert_eq!(Solicitation::read(&answer), None);
            for cut in 0..asked.len() {
                assert_eq!(Solicitation::read(&asked[..cut]), None, "{cut}");
            }
            // Whatever else is changed, it is another message or its checksum is wrong.
            for at in (12..18).chain(20..asked.len()) {
                let mut other = asked;
                other[at] ^= 0x80;
                let read = Solicitation::read(&other);
                assert!(read.is_none() || (14..18).contains(&at), "{at}");
            }
        }
        let looks =
            Solicitation::read(&question(Ipv6Addr::UNSPECIFIED, solicited_node(vip))).unwrap();
        assert_eq!(looks.answer(OWN), neighbour_claim(OWN, vip));
        assert_eq!(Solicitation::read(&question(Ipv6Addr::UNSPECIFIED, vip)), None);
        let claim = neighbour_claim(OWN, vip);
        assert_eq!((&claim[..6], claim[MESSAGE + 4]), (&ALL_NODES_MAC[..], 0x20));
    }
}
