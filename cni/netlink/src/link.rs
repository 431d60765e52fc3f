//! `ip link`.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};

use crate::{Error, NetNs, Netlink};

/// An Ethernet address, in the order it is written.
pub type Mac = [u8; 6];

/// A network interface as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Its Ethernet address, on devices that have one of six bytes.
    pub mac: Option<Mac>,
    /// Has it been set up by somebody?
    pub up: bool,
    /// Does it have a carrier (for a veth: is the peer up too)?
    pub lower_up: bool,
    /// Does it carry packets? The kernel follows up on a carrier a moment later, and drops packets
    /// until then.
    pub running: bool,
    /// Is it a loopback device?
    pub loopback: bool,
    /// `veth`, `vxlan`, `bridge`, ...; nothing for hardware and loopback.
    pub kind: Option<String>,
    /// Index of the bridge (or bond, VRF) it belongs to.
    pub master: Option<u32>,
    /// Index of the device it is tied to; of a veth: its peer's, in the peer's own namespace.
    pub peer_index: Option<u32>,
    /// What a VXLAN device takes from the wire.
    pub vxlan: Option<VxlanKey>,
}

/// What a VXLAN device takes from the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VxlanKey {
    /// UDP port; a device that is up holds it alone, but for devices that share all but the `vni`.
    pub port: u16,
    /// The network identifier; 0 if `collect_metadata`.
    pub vni: u32,
    /// `external`: packets of any identifier that no other device takes.
    pub collect_metadata: bool,
}

/// A veth pair to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Veth<'a> {
    /// The name of this end.
    pub name: &'a str,
    /// The name of the other end.
    pub peer_name: &'a str,
    /// MTU of both ends; the kernel's default if none.
    pub mtu: Option<u32>,
    /// This end's address; random if none.
    pub mac: Option<Mac>,
    /// The other end's address; random if none.
    pub peer_mac: Option<Mac>,
    /// Where the other end goes; here if none.
    pub peer_netns: Option<&'a NetNs>,
}

/// A VXLAN device to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vxlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// UDP port, sent to and listened on.
    pub port: u16,
    /// The network identifier; none if `collect_metadata`.
    pub vni: Option<u32>,
    /// `external`: the identifier and the remote end come from each packet's tunnel key.
    pub collect_metadata: bool,
    /// Source address of outer packets; chosen by the route if none.
    pub local: Option<IpAddr>,
    /// The underlay device packets have to leave by; chosen by the route if none.
    pub device: Option<u32>,
    /// Learn remote ends from packets received.
    pub learning: bool,
    /// MTU for inner packets; the kernel's default if none.
    pub mtu: Option<u32>,
    /// Its Ethernet address; random if none.
    pub mac: Option<Mac>,
}

impl Netlink {
    /// The interface of that name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(format_args!("show link {name:?}"), message)
    }

    /// The interface of that number.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        self.get_link(format_args!("show link {index}"), at(index))
    }

    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(format_args!("list links"), &request)?;
        Ok(answers.into_iter().filter_map(read_new).collect())
    }

    /// `ip link add NAME type veth peer name PEER [netns NS]`. Returns this end.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<Link, Error> {
        let mut peer = named(veth.peer_name, veth.mtu, veth.peer_mac);
        if let Some(netns) = veth.peer_netns {
            peer.attributes.push(LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));
        }
        let data = InfoData::Veth(InfoVeth::Peer(peer));
        let message = named(veth.name, veth.mtu, veth.mac);
        self.create("veth", veth.name, message, InfoKind::Veth, Some(data))
    }

    /// `ip link add NAME type bridge`.
    pub fn create_bridge(&mut self, name: &str) -> Result<Link, Error> {
        self.create("bridge", name, named(name, None, None), InfoKind::Bridge, None)
    }

    /// `ip link add NAME type vxlan ...`.
    pub fn create_vxlan(&mut self, vxlan: &Vxlan<'_>) -> Result<Link, Error> {
        let mut data = vec![InfoVxlan::Port(vxlan.port), InfoVxlan::Learning(vxlan.learning)];
        data.extend(vxlan.vni.map(InfoVxlan::Id));
        if vxlan.collect_metadata {
            data.push(InfoVxlan::CollectMetadata(true));
        }
        data.extend(vxlan.local.map(|local| match local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        }));
        data.extend(vxlan.device.map(InfoVxlan::Link));
        let message = named(vxlan.name, vxlan.mtu, vxlan.mac);
        let data = InfoData::Vxlan(data);
        self.create("vxlan", vxlan.name, message, InfoKind::Vxlan, Some(data))
    }

    /// `ip link add NAME type wireguard`. It has no keys and no peers yet: see
    /// [`WireGuard`](crate::WireGuard).
    pub fn create_wireguard(&mut self, name: &str, mtu: Option<u32>) -> Result<Link, Error> {
        self.create("wireguard", name, named(name, mtu, None), InfoKind::Wireguard, None)
    }

    /// `ip link delete`; one that is absent is no error. A veth's peer goes with it.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelLink(at(index));
        match self.change(format_args!("delete link {index}"), message, 0) {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// `ip link set up`.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        let mut message = at(index);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.set(format_args!("set link {index} up"), message)
    }

    /// `ip link set arp off`: neighbours behind this interface need not be asked for.
    pub fn disable_arp(&mut self, index: u32) -> Result<(), Error> {
        let mut message = at(index);
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        self.set(format_args!("set link {index} arp off"), message)
    }

    /// `ip link set down`.
    pub fn set_down(&mut self, index: u32) -> Result<(), Error> {
        let mut message = at(index);
        message.header.change_mask = LinkFlags::Up;
        self.set(format_args!("set link {index} down"), message)
    }

    /// `ip link set mtu`, in bytes.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Error> {
        let message = with(at(index), LinkAttribute::Mtu(mtu));
        self.set(format_args!("set link {index} mtu {mtu}"), message)
    }

    /// `ip link set address`.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), Error> {
        let message = with(at(index), LinkAttribute::Address(mac.to_vec()));
        self.set(format_args!("set link {index} address {mac:02x?}"), message)
    }

    /// `ip link set name`; older kernels want the interface down for it.
    pub fn set_name(&mut self, index: u32, name: &str) -> Result<(), Error> {
        let message = with(at(index), LinkAttribute::IfName(name.to_owned()));
        self.set(format_args!("set link {index} name {name:?}"), message)
    }

    /// `ip link set master`, or `nomaster`.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<(), Error> {
        let message = with(at(index), LinkAttribute::Controller(master.unwrap_or(0)));
        self.set(format_args!("set link {index} master {}", master.unwrap_or(0)), message)
    }

    /// `ip link set netns`. The interface is down afterwards and has lost its addresses.
    pub fn move_to(&mut self, index: u32, netns: &NetNs) -> Result<(), Error> {
        let message = with(at(index), LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));
        self.set(format_args!("move link {index} to another network namespace"), message)
    }

    fn get_link(
        &mut self,
        operation: std::fmt::Arguments<'_>,
        message: LinkMessage,
    ) -> Result<Option<Link>, Error> {
        match self.get(operation, RouteNetlinkMessage::GetLink(message)) {
            Ok(answer) => Ok(answer.and_then(read_new)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn create(
        &mut self,
        kind_name: &str,
        name: &str,
        mut message: LinkMessage,
        kind: InfoKind,
        data: Option<InfoData>,
    ) -> Result<Link, Error> {
        let operation = format!("create {kind_name} {name:?}");
        check_name(name).map_err(|problem| Error::invalid(&operation, problem))?;
        let mut info = vec![LinkInfo::Kind(kind)];
        info.extend(data.map(LinkInfo::Data));
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let request = RouteNetlinkMessage::NewLink(message);
        self.change(format_args!("{operation}"), request, NLM_F_CREATE | NLM_F_EXCL)?;
        self.link(name)?
            .ok_or_else(|| Error::invalid(operation, "it vanished as soon as it was made"))
    }

    fn set(
        &mut self,
        operation: std::fmt::Arguments<'_>,
        message: LinkMessage,
    ) -> Result<(), Error> {
        self.change(operation, RouteNetlinkMessage::SetLink(message), 0)
    }
}

/// The kernel cuts an over-long name without a word, so it is refused here.
fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" | "." | ".." => Err("not an interface name"),
        _ if name.len() >= libc::IFNAMSIZ => Err("an interface name has at most 15 bytes"),
        _ if name.contains(['/', ':', '\0']) || name.contains(char::is_whitespace) => {
            Err("an interface name contains no slash, colon or white space")
        }
        _ => Ok(()),
    }
}

fn at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn with(mut message: LinkMessage, attribute: LinkAttribute) -> LinkMessage {
    message.attributes.push(attribute);
    message
}

fn named(name: &str, mtu: Option<u32>, mac: Option<Mac>) -> LinkMessage {
    let mut message = with(LinkMessage::default(), LinkAttribute::IfName(name.to_owned()));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    message
}

fn read_new(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(read(message)),
        _ => None,
    }
}

pub(crate) fn read(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        up: flags.contains(LinkFlags::Up),
        lower_up: flags.contains(LinkFlags::LowerUp),
        running: flags.contains(LinkFlags::Running),
        loopback: message.header.link_layer_type == LinkLayerType::Loopback,
        kind: None,
        master: None,
        peer_index: None,
        vxlan: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(address) => link.mac = address.try_into().ok(),
            // No interface has the number 0.
            LinkAttribute::Controller(master) => link.master = Some(master).filter(|n| *n != 0),
            LinkAttribute::Link(peer) => link.peer_index = Some(peer).filter(|n| *n != 0),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(data)) => {
                            link.vxlan = Some(read_vxlan(data))
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn read_vxlan(data: Vec<InfoVxlan>) -> VxlanKey {
    let mut key = VxlanKey::default();
    for attribute in data {
        match attribute {
            InfoVxlan::Port(port) => key.port = port,
            InfoVxlan::Id(vni) => key.vni = vni,
            InfoVxlan::CollectMetadata(on) => key.collect_metadata = on,
            _ => {}
        }
    }
    key
}
