//! Whether a pod may talk to somebody: what the tables say of it.
//!
//! Each end that is a pod of this node is asked by itself: the client's for what it sends, the endpoint's
//! for what it receives, both of the flow as it is after a Service chose the endpoint and before the
//! client's address is replaced.
//!
//! ```text
//! the pod's address   ─► subjects ─► set of rules ─┐
//! the other address   ─► identities, else blocks,  ├─► rulings: (set, identity) ─► ruling, and which lengths
//!                        else 0 ─► identity ───────┘            (set, identity, protocol, port prefix) ─► ruling
//! ```

use zerocopy::network_endian::U16 as NetU16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, native_endian as ne};

use crate::V6;

/// Which sets of rules hold for a pod of this node; found by each of its addresses.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Subject {
    /// For what it receives; 0: none, it may receive everything.
    pub ingress: u32,
    /// For what it sends; 0: none, it may send everything.
    pub egress: u32,
}

/// What a set of rules makes of somebody; a ruling about everything he sends or is sent, or about some
/// ports.
///
/// The first to ask for has zeros after the identity. Its lengths say which others there are, of which the
/// one with the longest prefix counts. Where there is none for an identity, what there is for identity 0
/// counts in its place, which is everybody's; where there is none for that either, the answer is no.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
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
#[repr(C)]
pub struct RulingKey {
    /// The set of rules.
    pub set: ne::U32,
    /// Who the other end is.
    pub identity: ne::U32,
    /// IANA number; 0 in the first one.
    pub protocol: u8,
    /// How many leading bits of `port` count, 0 to 16.
    pub length: u8,
    /// The destination's port; bits that do not count are zero.
    pub port: NetU16,
}

/// See [`RulingKey`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ruling {
    /// Bits of [`ruling`].
    pub verdict: u32,
    /// Of the first one for an identity: bit n is set if some ruling, of whatever protocol, has a prefix of
    /// length n.
    pub lengths: u32,
}

/// Bits of [`Ruling::verdict`].
pub mod ruling {
    /// The number of the rule that decided; 0: none did.
    pub const RULE: u32 = 0x00ff_ffff;
    /// It is denied.
    pub const DENIED: u32 = 1 << 31;
    /// A pod's own policies (`fairway_model::Tier::Namespace`) decided, which leave what a pod sends to
    /// itself alone.
    pub const NAMESPACED: u32 = 1 << 30;
}

/// What a rule was asked, in each processor's table of them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RuleCount {
    /// How many flows (and packets that belong to none) it allowed.
    pub allowed: u64,
    /// How many packets it denied.
    pub denied: u64,
}

/// Something that was decided, for whoever watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// When: the kernel's monotonic clock, in nanoseconds.
    pub time: u64,
    /// Who sent the packet, as it came; IPv4 as `::ffff:a.b.c.d`.
    pub source: V6,
    /// Where it was sent to, as it came.
    pub destination: V6,
    /// Where it goes; unspecified while that is not decided.
    pub endpoint: V6,
    /// Source port.
    pub source_port: NetU16,
    /// Destination port, as it came.
    pub destination_port: NetU16,
    /// The port it goes to.
    pub endpoint_port: NetU16,
    /// IANA number.
    pub protocol: u8,
    /// One of [`event`].
    pub kind: u8,
    /// The device that it came by.
    pub ifindex: u32,
    /// Number of the [`DropReason`](crate::DropReason); 0 if it was not dropped.
    pub reason: u32,
    /// Bits of [`ruling`], of the rule that denied it, or the last one asked.
    pub verdict: u32,
    /// How many events before this one were left out on this processor, because there were too many.
    pub missed: u32,
}

/// What an [`Event`] tells.
pub mod event {
    /// A packet was dropped.
    pub const DROP: u8 = 1;
    /// A flow was allowed.
    pub const ALLOW: u8 = 2;
}

const _: () = {
    assert!(size_of::<Subject>() == 8 && size_of::<RulingKey>() == 12 && size_of::<Ruling>() == 8);
    assert!(size_of::<RuleCount>() == 16 && size_of::<Event>() == 80);
};
