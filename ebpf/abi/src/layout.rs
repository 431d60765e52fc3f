//! Where the fields of records lie, as data: what programs and agents of one version need to know of
//! another's tables.
//!
//! Programs that take the place of others find what those wrote, and are found by them while both are in
//! force (see [`phase`](crate::phase)), whichever of them is older. Neither was built knowing the other's
//! types, so each set of tables carries its own description: a field is known by its record's number and
//! its own, which, once given, keep their meaning and their encoding for ever, and may lie anywhere in any
//! version. What a program needs of another version is [`Offsets`], which are constants to it.
//!
//! What a version may change, so that flows survive the step to it and back:
//! - Fields may move. New ones get new numbers.
//! - A field of a key that the other version does not have is zero in whatever that version can have
//!   written or is to find.
//! - A field of a value that the other version does not have starts as zero where a record moves, and
//!   stays where it is while the record is brought up to date in place.
//! - No field that [`Offsets`] names may go; if one has to, flows end at that step.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, native_endian as ne};

use crate::{
    Affinity, AffinityKey, Connection, Endpoint, EndpointKey, Flow, FlowKey, Frontend, FrontendKey,
    MemberKey, Share, SocketKey, SocketPeer, V4, V6, VERSION,
};

/// Room for fields.
pub const FIELDS: usize = 128;

/// The longest key or value of a flow, or with a socket, that programs can read, in bytes.
pub const ROOM: usize = 64;
/// The same of what is kept of UDP sockets.
pub const ROOM_OF_SOCKET: usize = 40;
/// The same of clients that stay with their endpoints.
pub const ROOM_OF_CLIENT: usize = 32;

/// What a set of tables holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Layout {
    /// See [`VERSION`].
    pub version: ne::U32,
    /// In any order; those without a size are none.
    pub fields: [Field; FIELDS],
}

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Field {
    /// One of [`record`], with [`record::V6`] where it is one of IPv6.
    pub record: u8,
    /// Its number within the record.
    pub number: u8,
    /// Where it begins, in bytes from the record's beginning.
    pub offset: u8,
    /// Its length in bytes.
    pub size: u8,
}

/// Numbers of records.
pub mod record {
    /// Of IPv6; otherwise of IPv4, or of both.
    pub const V6: u8 = 0x80;
    /// [`FlowKey`](crate::FlowKey).
    pub const FLOW_KEY: u8 = 1;
    /// [`Flow`](crate::Flow).
    pub const FLOW: u8 = 2;
    /// [`SocketKey`](crate::SocketKey).
    pub const SOCKET_KEY: u8 = 3;
    /// [`SocketPeer`](crate::SocketPeer).
    pub const SOCKET_PEER: u8 = 4;
    /// [`AffinityKey`](crate::AffinityKey).
    pub const AFFINITY_KEY: u8 = 5;
    /// [`Affinity`](crate::Affinity).
    pub const AFFINITY: u8 = 6;
    /// [`Connection`](crate::Connection).
    pub const CONNECTION: u8 = 7;
    /// [`FrontendKey`](crate::FrontendKey).
    pub const FRONTEND_KEY: u8 = 8;
    /// [`Frontend`](crate::Frontend).
    pub const FRONTEND: u8 = 9;
    /// [`EndpointKey`](crate::EndpointKey).
    pub const ENDPOINT_KEY: u8 = 10;
    /// [`Endpoint`](crate::Endpoint).
    pub const ENDPOINT: u8 = 11;
    /// [`MemberKey`](crate::MemberKey).
    pub const MEMBER_KEY: u8 = 12;
    /// A member's slot.
    pub const MEMBER: u8 = 13;
    /// [`Share`](crate::Share), under a [`MEMBER_KEY`].
    pub const SHARE: u8 = 14;
}

/// Where a program finds what it needs in records of a set of tables; of one family.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Offsets {
    /// Source and destination address, source and destination port, protocol.
    pub flow_key: [u8; 5],
    /// Source and destination address, source and destination port, last seen, Service, state.
    pub flow: [u8; 7],
    /// Cookie, address, port, protocol.
    pub socket_key: [u8; 4],
    /// Address, port.
    pub socket_peer: [u8; 2],
    /// The Service's port, the client's address.
    pub affinity_key: [u8; 2],
    /// The endpoint's address and port, since when.
    pub affinity: [u8; 3],
    /// The endpoint's address and port, the frontend's address and port.
    pub connection: [u8; 4],
}

/// What programs are told of the tables before theirs, when they are loaded.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Before {
    /// 1: there are some of flows, UDP sockets and clients; else 0.
    pub there: u8,
    /// 1: there are some of what TCP sockets were given; else 0.
    pub connections: u8,
    /// Of IPv4.
    pub v4: Offsets,
    /// Of IPv6.
    pub v6: Offsets,
}

impl Before {
    /// There are none.
    pub const NONE: Self = Self { there: 0, connections: 0, v4: Offsets::NONE, v6: Offsets::NONE };

    /// Those that [`Layout`] describes; `None` if something is missing, or lies where programs cannot
    /// read it.
    pub fn of(layout: &Layout) -> Option<Self> {
        let (v4, v6) = (Offsets::of(layout, 0, 4)?, Offsets::of(layout, record::V6, 16)?);
        Some(Self { there: 1, connections: 1, v4, v6 })
    }
}

impl Offsets {
    const NONE: Self = Self {
        flow_key: [0; 5],
        flow: [0; 7],
        socket_key: [0; 4],
        socket_peer: [0; 2],
        affinity_key: [0; 2],
        affinity: [0; 3],
        connection: [0; 4],
    };

    fn of(layout: &Layout, family: u8, address: u8) -> Option<Self> {
        Some(Self {
            flow_key: layout.find(family | record::FLOW_KEY, [address, address, 2, 2, 1])?,
            flow: layout.find(family | record::FLOW, [address, address, 2, 2, 4, 4, 4])?,
            socket_key: layout.find(family | record::SOCKET_KEY, [8, address, 2, 1])?,
            socket_peer: layout.find(family | record::SOCKET_PEER, [address, 2])?,
            affinity_key: layout.find(family | record::AFFINITY_KEY, [4, address])?,
            affinity: layout.find(family | record::AFFINITY, [address, 2, 4])?,
            connection: layout.find(family | record::CONNECTION, [address, 2, address, 2])?,
        })
    }
}

impl Layout {
    /// The fields of a record.
    pub fn record(&self, number: u8) -> impl Iterator<Item = Field> + '_ {
        let fields = self.fields.iter().copied();
        fields.filter(move |field| field.size != 0 && field.record == number)
    }

    /// Where the fields 0, 1, ... of a record begin, if they have these sizes and no address, cookie or
    /// number lies at an odd place.
    fn find<const N: usize>(&self, number: u8, sizes: [u8; N]) -> Option<[u8; N]> {
        let mut offsets = [0; N];
        for (wanted, (size, offset)) in (0..).zip(sizes.into_iter().zip(&mut offsets)) {
            let field = self.record(number).find(|field| field.number == wanted)?;
            if field.size != size || field.offset % size.min(4) != 0 {
                return None;
            }
            *offset = field.offset;
        }
        Some(offsets)
    }
}

/// The length of a field that a function leads to.
#[expect(clippy::cast_possible_truncation, reason = "no field is longer than an address")]
const fn length<T, F>(_: fn(&T) -> &F) -> u8 {
    size_of::<F>() as u8
}

/// Adds a record's fields to a description.
macro_rules! describe {
    ($layout:ident, $next:ident, $record:expr, $type:ty, $($number:literal = $first:ident $(. $inner:ident)?),+) => {
        $(
            $layout.fields[$next] = Field {
                record: $record,
                number: $number,
                offset: offset_of!($type, $first $(. $inner)?) as u8,
                size: length(|record: &$type| &record.$first $(. $inner)?),
            };
            $next += 1;
        )+
    };
}

/// Adds the records of one family.
macro_rules! describe_family {
    ($layout:ident, $next:ident, $family:expr, $address:ty) => {
        describe!(
            $layout,
            $next,
            $family | record::FLOW_KEY,
            FlowKey<$address>,
            0 = source,
            1 = destination,
            2 = source_port,
            3 = destination_port,
            4 = protocol
        );
        describe!(
            $layout,
            $next,
            $family | record::FLOW,
            Flow<$address>,
            0 = source,
            1 = destination,
            2 = source_port,
            3 = destination_port,
            4 = last_seen,
            5 = service,
            6 = state
        );
        describe!(
            $layout,
            $next,
            $family | record::SOCKET_KEY,
            SocketKey<$address>,
            0 = cookie,
            1 = address,
            2 = port,
            3 = protocol
        );
        describe!(
            $layout,
            $next,
            $family | record::SOCKET_PEER,
            SocketPeer<$address>,
            0 = address,
            1 = port
        );
        describe!(
            $layout,
            $next,
            $family | record::AFFINITY_KEY,
            AffinityKey<$address>,
            0 = port,
            1 = client
        );
        describe!(
            $layout,
            $next,
            $family | record::AFFINITY,
            Affinity<$address>,
            0 = endpoint.address,
            1 = endpoint.port,
            2 = since
        );
        describe!(
            $layout,
            $next,
            $family | record::CONNECTION,
            Connection<$address>,
            0 = endpoint.address,
            1 = endpoint.port,
            2 = frontend.address,
            3 = frontend.port
        );
        describe!(
            $layout,
            $next,
            $family | record::FRONTEND_KEY,
            FrontendKey<$address>,
            0 = address,
            1 = port,
            2 = protocol,
            3 = scope
        );
        describe!(
            $layout,
            $next,
            $family | record::ENDPOINT,
            Endpoint<$address>,
            0 = address,
            1 = port
        );
        describe!(
            $layout,
            $next,
            $family | record::MEMBER_KEY,
            MemberKey<$address>,
            0 = service,
            1 = endpoint.address,
            2 = endpoint.port
        );
        #[cfg(feature = "next")]
        describe!($layout, $next, $family | record::FLOW_KEY, FlowKey<$address>, 5 = zone);
        #[cfg(feature = "next")]
        describe!($layout, $next, $family | record::FLOW, Flow<$address>, 7 = mark);
        #[cfg(feature = "next")]
        describe!($layout, $next, $family | record::SOCKET_KEY, SocketKey<$address>, 4 = zone);
        #[cfg(feature = "next")]
        describe!($layout, $next, $family | record::SOCKET_PEER, SocketPeer<$address>, 2 = mark);
    };
}

/// What this version's tables hold.
#[expect(
    clippy::cast_possible_truncation,
    reason = "no record is longer than 255 bytes, and it is computed by the compiler alone"
)]
pub const OWN: Layout = {
    const NO_FIELD: Field = Field { record: 0, number: 0, offset: 0, size: 0 };
    let mut layout = Layout { version: ne::U32::new(VERSION), fields: [NO_FIELD; FIELDS] };
    let mut next = 0;
    describe_family!(layout, next, 0, V4);
    describe_family!(layout, next, record::V6, V6);
    describe!(
        layout,
        next,
        record::FRONTEND,
        Frontend,
        0 = service,
        1 = generation,
        2 = endpoints,
        3 = flags,
        4 = port,
        5 = affinity
    );
    describe!(
        layout,
        next,
        record::ENDPOINT_KEY,
        EndpointKey,
        0 = service,
        1 = generation,
        2 = slot
    );
    describe!(layout, next, record::SHARE, Share, 0 = since, 1 = growth, 2 = weight);
    layout.fields[next] = Field { record: record::MEMBER, number: 0, offset: 0, size: 4 };
    layout
};

const _: () = {
    assert!(size_of::<Layout>() == 4 + 4 * FIELDS && size_of::<Offsets>() == 27);
    assert!(size_of::<Before>() == 56);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_find_what_they_need_in_tables_of_their_own_version() {
        let before = Before::of(&OWN).expect("every field");
        let more = if cfg!(feature = "next") { 4 } else { 0 };
        assert_eq!(before.v4.flow_key, [0, 4, 8, 10, 12 + more]);
        assert_eq!(before.v6.flow, [0, 16, 32, 34, 36, 40, 44].map(|offset| offset + more));
    }

    #[test]
    fn a_field_that_is_missing_or_of_another_size_is_no_ground_to_guess() {
        let broken = |edit: fn(&mut Field)| {
            let mut layout = OWN;
            let of_state = |field: &&mut Field| field.record == record::FLOW && field.number == 6;
            edit(layout.fields.iter_mut().find(of_state).expect("a field"));
            Before::of(&layout)
        };
        assert_eq!(broken(|field| field.number = 99), None);
        assert_eq!(broken(|field| field.size = 8), None);
        assert_eq!(broken(|field| field.offset += 1), None);
    }
}
