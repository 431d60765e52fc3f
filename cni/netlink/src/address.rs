//! `ip address`.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use crate::route::family_of;
use crate::{Error, Netlink};

/// An address of an interface as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub device: u32,
    /// The address and the length of its prefix.
    pub net: IpNet,
    /// IPv6: not usable yet, duplicate address detection runs.
    pub tentative: bool,
    /// IPv6: somebody else has it.
    pub duplicate: bool,
    /// Valid on this link alone (`fe80::`) or on this host alone (`127.0.0.1`).
    pub local_scope: bool,
}

/// What else to say of a new address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressOptions {
    /// IPv6: usable at once, without duplicate address detection.
    pub nodad: bool,
    /// Make no route for the address's prefix.
    pub noprefixroute: bool,
}

impl Netlink {
    /// `ip address add NET dev DEVICE`; [`Error::is_exists`] if it is there already.
    pub fn add_address(
        &mut self,
        device: u32,
        net: IpNet,
        options: AddressOptions,
    ) -> Result<(), Error> {
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, options.nodad);
        flags.set(AddressFlags::Noprefixroute, options.noprefixroute);
        let mut message = message(device, net);
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        if let IpNet::V4(net) = net
            && net.prefix_len() < 31
        {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        self.change(
            format_args!("add address {net} to link {device}"),
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// `ip address delete NET dev DEVICE`; one that is absent is no error.
    pub fn delete_address(&mut self, device: u32, net: IpNet) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(message(device, net));
        match self.change(format_args!("delete address {net} of link {device}"), message, 0) {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// The addresses of one interface, both families.
    pub fn addresses(&mut self, device: u32) -> Result<Vec<Address>, Error> {
        // All interfaces' addresses, although the kernel could filter: asked for one interface, it
        // does not say that the list changed while it was read, and then addresses are missing.
        let mut all = self.all_addresses()?;
        all.retain(|address| address.device == device);
        Ok(all)
    }

    /// The addresses of all interfaces, both families.
    pub fn all_addresses(&mut self) -> Result<Vec<Address>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(format_args!("list addresses"), &request)?;
        Ok(answers.into_iter().filter_map(read_new).collect())
    }
}

fn message(device: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = device;
    message.header.scope = match net.addr() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => AddressScope::Host,
        IpAddr::V4(ip) if ip.is_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    };
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    message
}

fn read_new(message: RouteNetlinkMessage) -> Option<Address> {
    match message {
        RouteNetlinkMessage::NewAddress(message) => read(message),
        _ => None,
    }
}

pub(crate) fn read(message: AddressMessage) -> Option<Address> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let mut local = None;
    let mut address = None;
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => address = Some(ip),
            // All 32 bits, of which the header has room for eight.
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    Some(Address {
        device: message.header.index,
        // With a point-to-point peer, "address" is the peer's.
        net: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        tentative: flags.contains(AddressFlags::Tentative),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        local_scope: matches!(message.header.scope, AddressScope::Link | AddressScope::Host),
    })
}
