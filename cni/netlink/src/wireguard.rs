//! `wg`: keys and peers of a WireGuard device, over generic netlink.
//!
//! The messages are those of the kernel's `include/uapi/linux/wireguard.h`; the device itself is made
//! and removed like any other link.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    DecodeError, NLA_F_NESTED, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
    NlaBuffer, NlasIterator,
};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::socket::Channel;
use crate::{Error, NetNs};

/// A Curve25519 public key, which is also a peer's name.
pub type PublicKey = [u8; 32];

/// A Curve25519 private key. The kernel clamps it (RFC 7748, 5), so any 32 random bytes are one.
#[derive(Clone)]
pub struct PrivateKey(pub [u8; 32]);

/// Says that there is one, and no more.
impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A WireGuard device as the kernel shows it. The private key stays in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WireGuardDevice {
    /// Its number in this namespace.
    pub index: u32,
    /// The key that goes with its private one; none before it was given one.
    pub public_key: Option<PublicKey>,
    /// The UDP port it listens on and sends from; 0 while it is down and was given none.
    pub listen_port: u16,
    /// What marks its outer packets for routing rules; 0: nothing.
    pub fwmark: u32,
    /// In the order of the kernel's list.
    pub peers: Vec<WireGuardPeer>,
}

/// A peer of a [`WireGuardDevice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireGuardPeer {
    /// Its key, and its name.
    pub public_key: PublicKey,
    /// Where it was last heard of, or was said to be.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between two packets that keep the way to it open; 0: none are sent.
    pub keepalive: u16,
    /// What is sent to it, and the only sources taken from it.
    pub allowed: Vec<IpNet>,
    /// When the last handshake was, since the epoch of the system's clock; none before the first.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

/// What is to become of a device; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct DeviceChange<'a> {
    /// Its private key; all sessions begin anew.
    pub private_key: Option<&'a PrivateKey>,
    /// The UDP port it listens on and sends from.
    pub listen_port: Option<u16>,
    /// What marks its outer packets; 0: nothing.
    pub fwmark: Option<u32>,
    /// Peers that are not among `peers` are removed.
    pub replace_peers: bool,
    /// In this order. A peer that was not there before is added.
    pub peers: &'a [PeerChange],
}

/// What is to become of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// Added, or brought to this; a session that is open stays. Of prefixes that two peers are given,
    /// the later has it.
    Set {
        /// Its name.
        public_key: PublicKey,
        /// Where it listens; `None` leaves it, or waits to hear from it.
        endpoint: Option<SocketAddr>,
        /// Seconds between two packets that keep the way to it open; 0: none.
        keepalive: u16,
        /// All that is sent to it and taken from it.
        allowed: Vec<IpNet>,
    },
    /// Removed; one that is not there is no error.
    Remove(PublicKey),
}

/// A socket that speaks of WireGuard devices. It belongs to the network namespace of the thread that
/// opened it.
pub struct WireGuard {
    channel: Channel<Message>,
    family: u16,
}

impl WireGuard {
    /// Opens a socket in the calling thread's network namespace. If the kernel has no WireGuard, and
    /// no module for it, the error's [`Error::is_not_found`] holds.
    pub fn open() -> Result<Self, Error> {
        let mut channel = Channel::open(NETLINK_GENERIC)?;
        let family = resolve(&mut channel, "wireguard")?;
        Ok(Self { channel, family })
    }

    /// [`Self::open`] in another network namespace; it can be used from any thread.
    pub fn open_in(netns: &NetNs) -> Result<Self, Error> {
        netns.run(Self::open)?
    }

    /// `wg show`, by the device's number; `None` if there is no such device.
    pub fn device(&mut self, index: u32) -> Result<Option<WireGuardDevice>, Error> {
        let operation = format!("show WireGuard device {index}");
        let mut attributes = Attributes::default();
        attributes.u32(device::IFINDEX, index);
        let request = self.message(GET_DEVICE, attributes);
        let answers = match self.channel.dump(format_args!("{operation}"), &request) {
            Err(error) if error.is_not_found() => return Ok(None),
            answers => answers?,
        };
        let mut found = WireGuardDevice::default();
        for answer in answers {
            read_device(&mut found, &answer.attributes)
                .map_err(|source| Error::Malformed { operation: operation.clone(), source })?;
        }
        Ok(Some(found))
    }

    /// `wg set`, by the device's number. What does not fit into one message is sent in several: if one
    /// is refused, those before it have taken effect.
    pub fn configure(&mut self, index: u32, change: &DeviceChange<'_>) -> Result<(), Error> {
        for attributes in messages(index, change, MESSAGE) {
            let request = self.message(SET_DEVICE, attributes);
            self.channel.change(format_args!("configure WireGuard device {index}"), request, 0)?;
        }
        Ok(())
    }

    fn message(&self, command: u8, attributes: Attributes) -> Message {
        Message { family: self.family, command, attributes: attributes.0 }
    }
}

impl fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireGuard").finish_non_exhaustive()
    }
}

/// Commands of the family.
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;

/// `WGDEVICE_A_*`.
mod device {
    pub(super) const IFINDEX: u16 = 1;
    pub(super) const PRIVATE_KEY: u16 = 3;
    pub(super) const PUBLIC_KEY: u16 = 4;
    pub(super) const FLAGS: u16 = 5;
    pub(super) const LISTEN_PORT: u16 = 6;
    pub(super) const FWMARK: u16 = 7;
    pub(super) const PEERS: u16 = 8;

    /// A flag: those that are not named go.
    pub(super) const REPLACE_PEERS: u32 = 1;
}

/// `WGPEER_A_*`.
mod peer {
    pub(super) const PUBLIC_KEY: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const ENDPOINT: u16 = 4;
    pub(super) const KEEPALIVE: u16 = 5;
    pub(super) const LAST_HANDSHAKE: u16 = 6;
    pub(super) const RECEIVED: u16 = 7;
    pub(super) const SENT: u16 = 8;
    pub(super) const ALLOWED: u16 = 9;

    /// Flags: the peer goes; its prefixes that are not named go.
    pub(super) const REMOVE: u32 = 1;
    pub(super) const REPLACE_ALLOWED: u32 = 2;
}

/// `WGALLOWEDIP_A_*`.
mod allowed {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const ADDRESS: u16 = 2;
    pub(super) const LENGTH: u16 = 3;
}

/// Bytes of attributes in one message; what wg(8) takes, too. An attribute cannot be longer than
/// 65,535 bytes, and all peers of a message are in one.
const MESSAGE: usize = 8192;

/// What an attribute's header and the longest entry of a list of prefixes take.
const HEADER: usize = 4;
const PREFIX: usize = HEADER + (HEADER + 4) + (HEADER + 16) + (HEADER + 4);
/// The same of a peer without its prefixes.
const PEER: usize = HEADER + (HEADER + 32) + (HEADER + 4) + (HEADER + 28) + (HEADER + 4) + HEADER;

/// The attributes of each message that a change takes, none of more than `limit` bytes.
fn messages(index: u32, change: &DeviceChange<'_>, limit: usize) -> Vec<Attributes> {
    let mut first = Attributes::default();
    first.u32(device::IFINDEX, index);
    if let Some(PrivateKey(key)) = change.private_key {
        first.put(device::PRIVATE_KEY, key);
    }
    if change.replace_peers {
        first.u32(device::FLAGS, device::REPLACE_PEERS);
    }
    if let Some(port) = change.listen_port {
        first.put(device::LISTEN_PORT, &port.to_ne_bytes());
    }
    if let Some(mark) = change.fwmark {
        first.u32(device::FWMARK, mark);
    }

    let mut writer =
        Writer { index, limit, done: Vec::new(), message: first, peers: Attributes::default() };
    for change in change.peers {
        writer.peer(change);
    }
    writer.finish()
}

/// Writes peers into as many messages as they need. Flags that clear something are in the first
/// message alone: repeated, they would clear what the first one brought.
struct Writer {
    index: u32,
    limit: usize,
    done: Vec<Attributes>,
    message: Attributes,
    /// Of the message.
    peers: Attributes,
}

impl Writer {
    fn peer(&mut self, change: &PeerChange) {
        self.make_room(PEER + PREFIX);
        let mut peer = Attributes::default();
        let (key, rest) = match change {
            PeerChange::Remove(key) => {
                peer.put(peer::PUBLIC_KEY, key);
                peer.u32(peer::FLAGS, peer::REMOVE);
                (key, &[][..])
            }
            PeerChange::Set { public_key, endpoint, keepalive, allowed } => {
                peer.put(peer::PUBLIC_KEY, public_key);
                peer.u32(peer::FLAGS, peer::REPLACE_ALLOWED);
                if let Some(endpoint) = endpoint {
                    peer.put(peer::ENDPOINT, &socket_address(endpoint));
                }
                peer.put(peer::KEEPALIVE, &keepalive.to_ne_bytes());
                (public_key, &allowed[..])
            }
        };
        let mut rest = self.allow(&mut peer, rest);
        self.peers.nest(0, &peer);
        while !rest.is_empty() {
            self.next_message();
            let mut more = Attributes::default();
            more.put(peer::PUBLIC_KEY, key);
            rest = self.allow(&mut more, rest);
            self.peers.nest(0, &more);
        }
    }

    /// Adds to a peer as many prefixes as fit; answers the rest.
    fn allow<'a>(&self, peer: &mut Attributes, prefixes: &'a [IpNet]) -> &'a [IpNet] {
        let used = self.message.len() + HEADER + self.peers.len() + HEADER + peer.len() + HEADER;
        let room = self.limit.saturating_sub(used) / PREFIX;
        // One at least, or it would never end.
        let (now, later) = prefixes.split_at(room.max(1).min(prefixes.len()));
        if !now.is_empty() {
            let mut list = Attributes::default();
            for prefix in now {
                list.nest(0, &allowed_ip(prefix));
            }
            peer.nest(peer::ALLOWED, &list);
        }
        later
    }

    /// Begins another message unless so much still fits into this one.
    fn make_room(&mut self, bytes: usize) {
        let used = self.message.len() + HEADER + self.peers.len();
        if !self.peers.is_empty() && used + bytes > self.limit {
            self.next_message();
        }
    }

    fn next_message(&mut self) {
        let mut next = Attributes::default();
        next.u32(device::IFINDEX, self.index);
        let mut message = std::mem::replace(&mut self.message, next);
        message.nest(device::PEERS, &std::mem::take(&mut self.peers));
        self.done.push(message);
    }

    fn finish(mut self) -> Vec<Attributes> {
        if !self.peers.is_empty() {
            self.message.nest(device::PEERS, &self.peers);
        }
        self.done.push(self.message);
        self.done
    }
}

fn allowed_ip(prefix: &IpNet) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.put(allowed::FAMILY, &family(prefix.addr()).to_ne_bytes());
    match prefix.network() {
        IpAddr::V4(address) => attributes.put(allowed::ADDRESS, &address.octets()),
        IpAddr::V6(address) => attributes.put(allowed::ADDRESS, &address.octets()),
    }
    attributes.put(allowed::LENGTH, &[prefix.prefix_len()]);
    attributes
}

#[expect(clippy::cast_possible_truncation, reason = "both are small constants")]
fn family(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u16,
        IpAddr::V6(_) => libc::AF_INET6 as u16,
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(address: &SocketAddr) -> Vec<u8> {
    let mut bytes = family(address.ip()).to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => {
            bytes.extend(address.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend(address.flowinfo().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend(address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn read_socket_address(bytes: &[u8]) -> Result<SocketAddr, DecodeError> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let read = || {
        let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
        let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        match i32::from(family) {
            libc::AF_INET => {
                let address: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
                Some(SocketAddr::new(Ipv4Addr::from(address).into(), port))
            }
            libc::AF_INET6 => {
                let address: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
                let (flow, scope) = (u32::from_be(word(4)?), word(24)?);
                Some(SocketAddrV6::new(Ipv6Addr::from(address), port, flow, scope).into())
            }
            _ => None,
        }
    };
    read().ok_or_else(|| DecodeError::from("an endpoint that is no socket address"))
}

/// Takes one message of a listing in: those after the first go on where the one before them ended.
fn read_device(device: &mut WireGuardDevice, attributes: &[u8]) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            device::IFINDEX => device.index = u32::from_ne_bytes(exact(value)?),
            device::PUBLIC_KEY => device.public_key = Some(exact(value)?),
            device::LISTEN_PORT => device.listen_port = u16::from_ne_bytes(exact(value)?),
            device::FWMARK => device.fwmark = u32::from_ne_bytes(exact(value)?),
            device::PEERS => {
                for entry in NlasIterator::new(value) {
                    let peer = read_peer(entry?.value())?;
                    match device.peers.last_mut() {
                        Some(last) if last.public_key == peer.public_key => {
                            last.allowed.extend(peer.allowed);
                        }
                        _ => device.peers.push(peer),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_peer(attributes: &[u8]) -> Result<WireGuardPeer, DecodeError> {
    let mut peer = WireGuardPeer {
        public_key: [0; 32],
        endpoint: None,
        keepalive: 0,
        allowed: Vec::new(),
        last_handshake: None,
        received: 0,
        sent: 0,
    };
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            peer::PUBLIC_KEY => peer.public_key = exact(value)?,
            peer::ENDPOINT => peer.endpoint = Some(read_socket_address(value)?),
            peer::KEEPALIVE => peer.keepalive = u16::from_ne_bytes(exact(value)?),
            peer::LAST_HANDSHAKE => peer.last_handshake = read_time(exact(value)?),
            peer::RECEIVED => peer.received = u64::from_ne_bytes(exact(value)?),
            peer::SENT => peer.sent = u64::from_ne_bytes(exact(value)?),
            peer::ALLOWED => {
                for entry in NlasIterator::new(value) {
                    peer.allowed.push(read_allowed(entry?.value())?);
                }
            }
            _ => {}
        }
    }
    Ok(peer)
}

/// `struct __kernel_timespec`; zero means never.
fn read_time(bytes: [u8; 16]) -> Option<Duration> {
    let [seconds, nanoseconds] = [0, 8].map(|at| {
        let half: [u8; 8] = std::array::from_fn(|byte| bytes[at + byte]);
        i64::from_ne_bytes(half)
    });
    let time = Duration::new(seconds.try_into().ok()?, nanoseconds.try_into().ok()?);
    Some(time).filter(|time| !time.is_zero())
}

fn read_allowed(attributes: &[u8]) -> Result<IpNet, DecodeError> {
    let (mut address, mut length) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<&[u8]> = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            allowed::ADDRESS if value.len() == 4 => {
                address = Some(IpAddr::from(exact::<4>(value)?));
            }
            allowed::ADDRESS => address = Some(IpAddr::from(exact::<16>(value)?)),
            allowed::LENGTH => length = Some(exact::<1>(value)?[0]),
            _ => {}
        }
    }
    let prefix = address.zip(length).and_then(|(address, length)| IpNet::new(address, length).ok());
    prefix.ok_or_else(|| DecodeError::from("an allowed address that is no prefix"))
}

fn exact<const N: usize>(value: &[u8]) -> Result<[u8; N], DecodeError> {
    value.try_into().map_err(|_| {
        DecodeError::from(format!("an attribute of {} bytes instead of {N}", value.len()))
    })
}

/// The family's number, which the kernel gives out anew at each boot. Asking for it makes the kernel
/// load the module.
fn resolve(channel: &mut Channel<Message>, name: &str) -> Result<u16, Error> {
    const CONTROL: u16 = 0x10;
    const GET_FAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    let operation = format!("find generic netlink family {name:?}");
    let mut attributes = Attributes::default();
    attributes.put(FAMILY_NAME, format!("{name}\0").as_bytes());
    let request = Message { family: CONTROL, command: GET_FAMILY, attributes: attributes.0 };
    let answer = channel.get(format_args!("{operation}"), request)?;
    let attributes = answer.map(|answer| answer.attributes).unwrap_or_default();
    let number = NlasIterator::new(&attributes).find_map(|attribute| {
        let attribute = attribute.ok()?;
        let value = attribute.value();
        (attribute.kind() == FAMILY_ID).then(|| value.try_into().map(u16::from_ne_bytes).ok())?
    });
    number.ok_or_else(|| Error::invalid(operation, "the kernel's answer has no number"))
}

/// A generic netlink message: a header of four bytes (`struct genlmsghdr`) before the attributes.
#[derive(Clone, Debug)]
struct Message {
    family: u16,
    command: u8,
    attributes: Vec<u8>,
}

const GENERIC_HEADER: usize = 4;

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        GENERIC_HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        const VERSION: u8 = 1;
        buffer[..GENERIC_HEADER].copy_from_slice(&[self.command, VERSION, 0, 0]);
        buffer[GENERIC_HEADER..].copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let short = || DecodeError::from("a generic message without its header");
        let (&command, _) = payload.split_first().ok_or_else(short)?;
        let attributes = payload.get(GENERIC_HEADER..).ok_or_else(short)?.to_vec();
        Ok(Self { family: header.message_type, command, attributes })
    }
}

/// Attributes one after the other, each padded to four bytes.
#[derive(Clone, Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    fn nest(&mut self, kind: u16, inner: &Self) {
        self.put(kind | NLA_F_NESTED, &inner.0);
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(HEADER + value.len()).expect("messages are kept short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const ANN: PublicKey = [0xaa; 32];
    const BEN: PublicKey = [0xbb; 32];

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn set(public_key: PublicKey, allowed: &[&str]) -> PeerChange {
        PeerChange::Set {
            public_key,
            endpoint: Some("192.0.2.7:51820".parse().unwrap()),
            keepalive: 25,
            allowed: allowed.iter().map(|text| net(text)).collect(),
        }
    }

    #[test]
    fn a_change_is_what_the_kernel_reads() {
        let change = DeviceChange {
            private_key: Some(&PrivateKey([7; 32])),
            listen_port: Some(51820),
            fwmark: Some(0x1234),
            replace_peers: true,
            peers: &[set(ANN, &["10.244.1.0/24", "fd00::/64"]), PeerChange::Remove(BEN)],
        };
        let [message] = &messages(3, &change, MESSAGE)[..] else { panic!("several messages") };
        let port = 51820_u16.to_ne_bytes();
        let expected = [
            &[8, 0, 1, 0, 3, 0, 0, 0][..], // WGDEVICE_A_IFINDEX
            &[36, 0, 3, 0],                // WGDEVICE_A_PRIVATE_KEY
            &[7; 32],
            &[8, 0, 5, 0, 1, 0, 0, 0], // WGDEVICE_A_FLAGS: REPLACE_PEERS
            &[6, 0, 6, 0, port[0], port[1], 0, 0], // WGDEVICE_A_LISTEN_PORT
            &[8, 0, 7, 0, 0x34, 0x12, 0, 0], // WGDEVICE_A_FWMARK
            &[200, 0, 8, 0x80],        // WGDEVICE_A_PEERS
            &[148, 0, 0, 0x80],        // a peer
            &[36, 0, 1, 0],            // WGPEER_A_PUBLIC_KEY
            &[0xaa; 32],
            &[8, 0, 3, 0, 2, 0, 0, 0], // WGPEER_A_FLAGS: REPLACE_ALLOWEDIPS
            &[20, 0, 4, 0, 2, 0, 0xca, 0x6c, 192, 0, 2, 7], // WGPEER_A_ENDPOINT
            &[0; 8],
            &[6, 0, 5, 0, 25, 0, 0, 0], // WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL
            &[72, 0, 9, 0x80],          // WGPEER_A_ALLOWEDIPS
            &[28, 0, 0, 0x80],
            &[6, 0, 1, 0, 2, 0, 0, 0],    // WGALLOWEDIP_A_FAMILY: AF_INET
            &[8, 0, 2, 0, 10, 244, 1, 0], // WGALLOWEDIP_A_IPADDR
            &[5, 0, 3, 0, 24, 0, 0, 0],   // WGALLOWEDIP_A_CIDR_MASK
            &[40, 0, 0, 0x80],
            &[6, 0, 1, 0, 10, 0, 0, 0], // AF_INET6
            &[20, 0, 2, 0, 0xfd, 0, 0, 0],
            &[0; 12],
            &[5, 0, 3, 0, 64, 0, 0, 0],
            &[48, 0, 0, 0x80], // another
            &[36, 0, 1, 0],
            &[0xbb; 32],
            &[8, 0, 3, 0, 1, 0, 0, 0], // WGPEER_F_REMOVE_ME
        ];
        assert_eq!(message.0, expected.concat());
    }

    #[test]
    fn what_is_not_named_stays() {
        let [message] = &messages(3, &DeviceChange::default(), MESSAGE)[..] else {
            panic!("several messages")
        };
        assert_eq!(message.0, [8, 0, 1, 0, 3, 0, 0, 0]);
    }

    /// What a kernel makes of the messages, one after the other.
    fn carried_out(messages: &[Attributes]) -> BTreeMap<PublicKey, WireGuardPeer> {
        let flags = |attributes: &[u8], kind: u16| {
            let flags = NlasIterator::new(attributes).map(Result::unwrap);
            let flags = flags.into_iter().find(|attribute| attribute.kind() == kind);
            flags.map_or(0, |flags| u32::from_ne_bytes(exact(flags.value()).unwrap()))
        };
        // Somebody who is to go.
        let mut stale = WireGuardDevice::default();
        let old = messages_of(&[set(BEN, &["10.9.0.0/16"])]);
        read_device(&mut stale, &old[0].0).unwrap();
        let mut have: BTreeMap<_, _> =
            stale.peers.into_iter().map(|peer| (peer.public_key, peer)).collect();
        for message in messages {
            assert!(message.len() <= 600, "{}", message.len());
            if flags(&message.0, device::FLAGS) & device::REPLACE_PEERS != 0 {
                have.clear();
            }
            let list = NlasIterator::new(&message.0[..]).map(Result::unwrap);
            for list in list.filter(|attribute| attribute.kind() == device::PEERS) {
                for entry in NlasIterator::new(list.value()) {
                    let entry = entry.unwrap();
                    let peer = read_peer(entry.value()).unwrap();
                    let known = have.entry(peer.public_key).or_insert_with(|| peer.clone());
                    if flags(entry.value(), peer::FLAGS) & peer::REPLACE_ALLOWED != 0 {
                        known.allowed.clear();
                    }
                    for prefix in peer.allowed {
                        if !known.allowed.contains(&prefix) {
                            known.allowed.push(prefix);
                        }
                    }
                }
            }
        }
        have
    }

    fn messages_of(peers: &[PeerChange]) -> Vec<Attributes> {
        messages(3, &DeviceChange { replace_peers: true, peers, ..DeviceChange::default() }, 600)
    }

    #[test]
    fn many_peers_and_prefixes_take_several_messages() {
        // One in the midst has more prefixes than fit into any message.
        let many: Vec<String> = (0..100).map(|n| format!("fd00:{n:x}::/64")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let peers: Vec<PeerChange> = (0..50)
            .map(|n| match n {
                20 => set([n; 32], &many),
                _ => set([n; 32], &[&format!("10.244.{n}.0/24"), &format!("192.0.2.{n}/32")]),
            })
            .collect();
        let messages = messages_of(&peers);
        assert!(messages.len() > 20, "{}", messages.len());
        let have = carried_out(&messages);
        assert_eq!(have.len(), peers.len());
        for change in &peers {
            let PeerChange::Set { public_key, allowed, .. } = change else { unreachable!() };
            assert_eq!(have[public_key].allowed, *allowed, "{}", public_key[0]);
        }
    }

    #[test]
    fn a_listing_is_read_over_several_messages() {
        let peers = [set(ANN, &["10.244.1.0/24", "10.244.2.0/24"]), set(BEN, &["fd00::/64"])];
        let mut device = WireGuardDevice::default();
        let mut first = Attributes::default();
        first.u32(device::IFINDEX, 3);
        first.put(device::PUBLIC_KEY, &[9; 32]);
        first.put(device::LISTEN_PORT, &7_u16.to_ne_bytes());
        first.u32(device::FWMARK, 5);
        read_device(&mut device, &first.0).unwrap();
        // The kernel, too, goes on with a peer in the next message by its key and more prefixes.
        let change = DeviceChange { peers: &peers, ..DeviceChange::default() };
        for message in messages(3, &change, 200) {
            read_device(&mut device, &message.0).unwrap();
        }
        let peer = |public_key, allowed: &[&str]| WireGuardPeer {
            public_key,
            endpoint: Some("192.0.2.7:51820".parse().unwrap()),
            keepalive: 25,
            allowed: allowed.iter().map(|text| net(text)).collect(),
            last_handshake: None,
            received: 0,
            sent: 0,
        };
        let expected = WireGuardDevice {
            index: 3,
            public_key: Some([9; 32]),
            listen_port: 7,
            fwmark: 5,
            peers: vec![peer(ANN, &["10.244.1.0/24", "10.244.2.0/24"]), peer(BEN, &["fd00::/64"])],
        };
        assert_eq!(device, expected);
    }

    #[test]
    fn what_the_kernel_counts_of_a_peer() {
        let mut peer = Attributes::default();
        peer.put(peer::PUBLIC_KEY, &ANN);
        let endpoint = "[fe80::7%9]:443".parse().unwrap();
        peer.put(peer::ENDPOINT, &socket_address(&endpoint));
        peer.put(peer::LAST_HANDSHAKE, &[5_i64.to_ne_bytes(), 6_i64.to_ne_bytes()].concat());
        peer.put(peer::RECEIVED, &7_u64.to_ne_bytes());
        peer.put(peer::SENT, &8_u64.to_ne_bytes());
        let read = read_peer(&peer.0).unwrap();
        assert_eq!(read.endpoint, Some(endpoint));
        assert_eq!(read.last_handshake, Some(Duration::new(5, 6)));
        assert_eq!((read.received, read.sent), (7, 8));
        assert_eq!(read_time([0; 16]), None);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let with = |kind: u16, value: &[u8]| {
            let mut attributes = Attributes::default();
            attributes.put(kind, value);
            attributes.0
        };
        let mut device = WireGuardDevice::default();
        assert!(read_device(&mut device, &with(device::PUBLIC_KEY, &[1; 31])).is_err());
        assert!(read_device(&mut device, &[3, 0, 1, 0]).is_err());
        assert!(read_peer(&with(peer::ENDPOINT, &[2, 0, 1])).is_err());
        assert!(read_peer(&with(peer::ENDPOINT, &[9; 16])).is_err());
        assert!(read_allowed(&with(allowed::ADDRESS, &[1; 4])).is_err());
        assert!(read_allowed(&with(allowed::ADDRESS, &[1; 5])).is_err());
    }

    #[test]
    fn families_are_found_by_name() {
        let mut channel = Channel::open(NETLINK_GENERIC).unwrap();
        // The one that finds the others is always there, and has a fixed number.
        assert_eq!(resolve(&mut channel, "nlctrl").unwrap(), 0x10);
        let error = resolve(&mut channel, "fairway-none").unwrap_err();
        assert!(error.is_not_found(), "{error:?}");
        assert_eq!(error.to_string(), "find generic netlink family \"fairway-none\"");
    }

    #[test]
    fn a_private_key_is_not_shown() {
        assert_eq!(format!("{:?}", PrivateKey([7; 32])), "PrivateKey(..)");
    }
}
