//! `ip neighbour`.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;

use crate::route::family_of;
use crate::{Error, Mac, Netlink};

/// An entry of the ARP or neighbour-discovery table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface.
    pub device: u32,
    /// Whose.
    pub address: IpAddr,
    /// Where; none while it is being asked for, or nobody answered.
    pub mac: Option<Mac>,
    /// Made by hand: never asked for, never forgotten.
    pub permanent: bool,
}

impl Netlink {
    /// `ip neighbour replace ADDRESS lladdr MAC dev DEVICE nud permanent` (or `reachable`).
    pub fn replace_neighbour(
        &mut self,
        device: u32,
        address: IpAddr,
        mac: Mac,
        permanent: bool,
    ) -> Result<(), Error> {
        let mut message = message(device, address);
        message.header.state =
            if permanent { NeighbourState::Permanent } else { NeighbourState::Reachable };
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.change(
            format_args!("replace neighbour {address} of link {device}"),
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// `ip neighbour delete`; one that is absent is no error.
    pub fn delete_neighbour(&mut self, device: u32, address: IpAddr) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelNeighbour(message(device, address));
        match self.change(format_args!("delete neighbour {address} of link {device}"), request, 0) {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// The neighbours of one interface, both families, without the multicast and broadcast ones
    /// that need no asking.
    pub fn neighbours(&mut self, device: u32) -> Result<Vec<Neighbour>, Error> {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::IfIndex(device));
        let request = RouteNetlinkMessage::GetNeighbour(message);
        let answers = self.dump(format_args!("list neighbours of link {device}"), &request)?;
        Ok(answers.into_iter().filter_map(read).filter(|n| n.device == device).collect())
    }
}

fn message(device: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = device;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn read(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    if message.header.state == NeighbourState::Noarp {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(ip.into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(ip.into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        device: message.header.ifindex,
        address: address?,
        mac,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}
