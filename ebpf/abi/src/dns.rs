//! What pods are answered when they ask the DNS for the address of a Service.
//!
//! Whoever asks [`RESOLVER`](crate::Address::RESOLVER), or a Service in whose place the node's agent answers
//! ([`frontend::RESOLVER`](crate::frontend::RESOLVER)), is answered of this table what is in it, and all else by the agent.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{V4, V6};

/// A name in the form of messages (RFC 1035, 3.1), the root's byte included, in small letters, and zeros behind it;
/// longer ones are in no table.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[cfg_attr(target_arch = "bpf", repr(C, align(4)))]
#[cfg_attr(not(target_arch = "bpf"), repr(C))]
pub struct NameKey(pub [[u8; 8]; NameKey::CHUNKS]);

impl NameKey {
    /// Of eight bytes each.
    pub const CHUNKS: usize = 16;
    /// Bytes of a name at most.
    pub const MAX: usize = Self::CHUNKS * 8;

    /// Of a name in this form; `None` if it is too long.
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut key = [0; Self::MAX];
        key.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self(zerocopy::transmute!(key)))
    }
}

/// All addresses of a name. It has no other records.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NameAddresses {
    /// Of IPv4; unspecified: none.
    pub address4: V4,
    /// Of IPv6; unspecified: none.
    pub address6: V6,
}

/// What answers about the names of the table have in common.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Zone {
    /// Bytes of the name of the zone that they are all in, the root's included; 0: nothing is answered.
    pub length: u32,
    /// Seconds that an answer may be kept.
    pub ttl: u32,
    /// Tells the zone from what it was before (RFC 1035, 3.3.13).
    pub serial: u32,
}

/// Places of the table of answers, which are the sum of these.
pub mod answered {
    /// An address of IPv6 was asked for, else of IPv4.
    pub const AAAA: u32 = 1;
    /// The name has none of that family.
    pub const NO_DATA: u32 = 1 << 1;
    /// By a packet of IPv6, else of IPv4.
    pub const BY_V6: u32 = 1 << 2;
    /// Room for all of them.
    pub const TABLE: u32 = 1 << 3;
}

const _: () = {
    assert!(size_of::<NameKey>() == 128 && size_of::<NameAddresses>() == 20);
    assert!(size_of::<Zone>() == 12);
};
