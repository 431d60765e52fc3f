//! The address families, as tables and as the standard library name them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairway_abi::{Address, V4, V6};

/// An address family.
pub trait Family: Address + Ord + std::hash::Hash + std::fmt::Debug {
    /// Length of an address in bits.
    const BITS: u8;
    /// The address by which a node reaches itself.
    const LOOPBACK: Self;
    /// The address, if it is of this family.
    fn of(address: IpAddr) -> Option<Self>;
    /// The reverse of [`Self::of`].
    fn to_ip(self) -> IpAddr;
    /// All ones in the first bits, zeros in the rest.
    fn mask(bits: u8) -> Self;
}

impl Family for V4 {
    const BITS: u8 = 32;
    const LOOPBACK: Self = Ipv4Addr::LOCALHOST.octets();

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn mask(bits: u8) -> Self {
        u32::MAX.checked_shl(u32::from(Self::BITS - bits)).unwrap_or(0).to_be_bytes()
    }
}

impl Family for V6 {
    const BITS: u8 = 128;
    const LOOPBACK: Self = Ipv6Addr::LOCALHOST.octets();

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.octets()),
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn mask(bits: u8) -> Self {
        u128::MAX.checked_shl(u32::from(Self::BITS - bits)).unwrap_or(0).to_be_bytes()
    }
}

/// An address of either family in the 16 bytes tunnels are named by.
pub(crate) fn mapped(address: IpAddr) -> V6 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
