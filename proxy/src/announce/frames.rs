//! Questions for a neighbour's MAC address, and answers: ARP (RFC 826) in Ethernet frames, neighbour
//! discovery (RFC 4861) as ICMPv6 without the headers before it.

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

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Answers a question; takes the place of what was known.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// The address that a neighbour solicitation asks for; `None` if the message is another.
pub(super) fn solicited(message: &[u8]) -> Option<Ipv6Addr> {
    let head: &[u8; 24] = message.first_chunk()?;
    let target = <[u8; 16]>::try_from(&head[8..24]).ok()?;
    (head[0] == SOLICITATION && head[1] == 0).then(|| target.into())
}

/// The neighbour advertisement that says whose the address is; its checksum is left to the kernel.
pub(super) fn advertisement(own: Mac, ip: Ipv6Addr, answers: bool) -> [u8; 32] {
    let mut message = [0; 32];
    message[0] = ADVERTISEMENT;
    message[4] = OVERRIDE | if answers { SOLICITED } else { 0 };
    message[8..24].copy_from_slice(&ip.octets());
    // Target link-layer address, of eight bytes.
    message[24..26].copy_from_slice(&[2, 1]);
    message[26..].copy_from_slice(&own);
    message
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
        assert_eq!(solicited_node(vip), "ff02::1:ff01:2345".parse::<Ipv6Addr>().unwrap());
        let mut question = [0; 32];
        question[0] = SOLICITATION;
        question[8..24].copy_from_slice(&vip.octets());
        assert_eq!(solicited(&question), Some(vip));
        assert_eq!(solicited(&question[..23]), None);
        let answer = advertisement(OWN, vip, true);
        assert_eq!(solicited(&answer), None);
        assert_eq!((answer[0], answer[4]), (ADVERTISEMENT, 0x60));
        assert_eq!(answer[24..], [&[2, 1][..], &OWN].concat());
    }
}
