//! The tables whose place ours take, as long as something is in them: of another size, or of another
//! version of the programs, whose records have their fields elsewhere.
//!
//! Programs that nothing came before are compiled without a trace of this: the agent has both kinds, and takes
//! the ones of the feature `aside` where something did. To leave it to the verifier to find all of it dead would
//! do for packets, but it takes each dead piece out by itself and moves all that it knows of the rest of the
//! program, without a pause: on kernels that do not preempt, packets of that processor wait for it.
//!
//! Where the fields are, the agent writes into [`BEFORE`] before it loads the programs. The verifier knows
//! what is there, so that they reach the other version's fields at constant places. The tables
//! themselves are opened by the agent whatever the sizes of their keys and values; those declared here
//! stand for none.
//!
//! Flows are reached by one function a family that is checked by itself, once a program, and so takes
//! numbers only: what it works on lies in the processor's room. Sockets are used by processes that
//! programs on packets may interrupt, and work on their stack.
#![expect(unsafe_code, reason = "records of other versions are reached by their fields' offsets")]

use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use fairway_abi::layout::{self, Layout};
use fairway_abi::{
    Address, Affinity, AffinityKey, Connection, Flow, FlowKey, SocketKey, SocketPeer, V4, V6,
    flow as bits, phase,
};
use fairway_core::handover::FlowSet;
use fairway_core::socket::SocketAddress;
use fairway_core::tables::Stage;
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::maps::Words;

/// Where the agent says what came before. In a section of its own, or the linker would take it for any
/// other constant of the same bytes.
#[unsafe(no_mangle)]
// SAFETY: a section of constants, which the loader hands to the kernel; the name exists once.
#[unsafe(link_section = ".rodata.before")]
static BEFORE: layout::Before = layout::Before::NONE;

/// What our own tables hold, for the agent to pin beside them.
#[unsafe(no_mangle)]
// SAFETY: as above.
#[unsafe(link_section = ".rodata.layout")]
#[used]
static LAYOUT: Layout = layout::OWN;

#[btf_map(name = "layout")]
static PINNED_LAYOUT: Array<Layout, 1> = Array::new();
#[btf_map(name = "phase")]
static PHASE: Array<u32, 1> = Array::new();

/// Room for a flow's key or value of any version.
type Foreign = [u32; layout::ROOM / 4];
/// Room for what is kept of sockets, on the stack of a program.
type OfSocket = [u32; layout::ROOM_OF_SOCKET / 4];
/// Room for what is kept of clients.
type OfClient = [u32; layout::ROOM_OF_CLIENT / 4];

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "flows4_before")]
static FLOWS4: HashMap<Foreign, Foreign, 1, ON_DEMAND> = HashMap::new();
#[btf_map(name = "flows6_before")]
static FLOWS6: HashMap<Foreign, Foreign, 1, ON_DEMAND> = HashMap::new();
#[btf_map(name = "half_open4_before")]
static HALF_OPEN4: LruHashMap<Foreign, Foreign, 1> = LruHashMap::new();
#[btf_map(name = "half_open6_before")]
static HALF_OPEN6: LruHashMap<Foreign, Foreign, 1> = LruHashMap::new();
#[btf_map(name = "sockets4_before")]
static SOCKETS4: LruHashMap<OfSocket, OfSocket, 1> = LruHashMap::new();
#[btf_map(name = "sockets6_before")]
static SOCKETS6: LruHashMap<OfSocket, OfSocket, 1> = LruHashMap::new();
#[btf_map(name = "affinity4_before")]
static AFFINITY4: LruHashMap<OfClient, OfClient, 1> = LruHashMap::new();
#[btf_map(name = "affinity6_before")]
static AFFINITY6: LruHashMap<OfClient, OfClient, 1> = LruHashMap::new();
#[btf_map(name = "connections4_before")]
static CONNECTIONS4: SkStorage<Foreign> = SkStorage::new();
#[btf_map(name = "connections6_before")]
static CONNECTIONS6: SkStorage<Foreign> = SkStorage::new();
#[btf_map(name = "beside4")]
static BESIDE4: PerCpuArray<Beside<V4>, 1> = PerCpuArray::new();
#[btf_map(name = "beside6")]
static BESIDE6: PerCpuArray<Beside<V6>, 1> = PerCpuArray::new();

/// What an [`operation`] works on.
#[repr(C, align(8))]
struct Beside<A> {
    /// As in our own tables.
    key: FlowKey<A>,
    /// As in our own tables.
    flow: Flow<A>,
    foreign_key: Foreign,
    foreign: Foreign,
}

/// What to do with the record of a key, among the half-open or the established ones.
mod operation {
    /// Copies it.
    pub(super) const SEE: u32 = 0;
    /// Writes back what programs change, if they have changed it.
    pub(super) const UPDATE: u32 = 1;
    /// Adds it if there is none.
    pub(super) const INSERT: u32 = 2;
    /// Copies the half-open one to the established ones.
    pub(super) const PROMOTE: u32 = 3;
    /// Removes it.
    pub(super) const REMOVE: u32 = 4;
    /// With one of these, and for none of them.
    pub(super) const HALF_OPEN: u32 = 1 << 8;
}

/// How far the switch is. To be read before anything is looked up that depends on it.
#[inline(always)]
pub(crate) fn phase() -> u32 {
    // SAFETY: constants are always there; volatile, as the loader changes what the compiler sees.
    if !cfg!(feature = "aside") || unsafe { ptr::read_volatile(&raw const BEFORE.there) } == 0 {
        return phase::NONE;
    }
    // SAFETY: the pointer was just answered by a lookup.
    PHASE.get_ptr(0).map_or(phase::NONE, |phase| unsafe { ptr::read_volatile(phase) })
}

/// Whether what is new belongs into the tables before.
#[inline(always)]
pub(crate) fn is_switching(phase: u32) -> bool {
    phase == phase::SWITCHING
}

/// Whether something may be in the tables before.
#[inline(always)]
pub(crate) fn is_under_way(phase: u32) -> bool {
    phase == phase::SWITCHING || phase == phase::DRAINING
}

/// Whether there are connections that only a version before knows: what is with a socket cannot be moved,
/// and stays there as long as the socket does, in whatever phase.
#[inline(always)]
pub(crate) fn are_connections() -> bool {
    // SAFETY: as in `phase`.
    cfg!(feature = "aside") && unsafe { ptr::read_volatile(&raw const BEFORE.connections) != 0 }
}

/// An offset that the agent has written.
#[inline(always)]
fn offset(place: *const u8) -> usize {
    // SAFETY: all callers name one of the offsets in `BEFORE`.
    unsafe { ptr::read_volatile(place) }.into()
}

/// Copies a field of `from` to `to`, in pieces as large as it allows, each before the next is read: there
/// is no stack to spare for more. Every field of a flow's records lies where its size is at home.
#[inline(always)]
unsafe fn copy_field<T>(from: *const T, to: *mut T) {
    macro_rules! by {
        ($piece:ty) => {
            let mut piece = 0;
            while piece < size_of::<T>() / size_of::<$piece>() {
                // SAFETY: within the field; the kernel takes any alignment, and these have their own.
                unsafe {
                    let bytes = ptr::read_volatile(from.cast::<$piece>().add(piece));
                    ptr::write_volatile(to.cast::<$piece>().add(piece), bytes);
                }
                piece += 1;
            }
        };
    }
    if size_of::<T>().is_multiple_of(4) {
        by!(u32);
    } else if size_of::<T>().is_multiple_of(2) {
        by!(u16);
    } else {
        by!(u8);
    }
}

/// Copies a record that may lie anywhere, as `copy_field` does.
#[inline(always)]
unsafe fn copy_bytes<T>(from: *const T, to: *mut T) {
    let mut byte = 0;
    while byte < size_of::<T>() {
        // SAFETY: within the record.
        unsafe {
            let value = ptr::read_volatile(from.cast::<u8>().add(byte));
            ptr::write_volatile(to.cast::<u8>().add(byte), value);
        }
        byte += 1;
    }
}

/// Writes a field into a flow's key or value.
#[inline(always)]
unsafe fn hand<T>(record: *mut Foreign, at: *const u8, field: *const T) {
    // SAFETY: the agent hands on no offset beyond the room, and the verifier sees to it.
    unsafe { copy_field(field, record.cast::<u8>().add(offset(at)).cast()) };
}

/// Reads a field of a flow's record.
#[inline(always)]
unsafe fn take<T>(record: *const Foreign, at: *const u8, field: *mut T) {
    // SAFETY: as in `hand`.
    unsafe { copy_field(record.cast::<u8>().add(offset(at)).cast(), field) };
}

/// Writes a field into room for a key or value on the stack.
#[inline(always)]
unsafe fn put<T: Copy, R>(record: *mut R, at: *const u8, field: T) {
    // SAFETY: as in `hand`.
    unsafe { ptr::write_unaligned(record.cast::<u8>().add(offset(at)).cast(), field) };
}

/// Reads a field of a record that is a socket's or a client's.
#[inline(always)]
unsafe fn get<T: Copy, R>(record: *const R, at: *const u8) -> T {
    // SAFETY: as in `hand`.
    unsafe { ptr::read_unaligned(record.cast::<u8>().add(offset(at)).cast()) }
}

/// The tables before ours, in one family.
pub(crate) trait Before: Address {
    /// What is remembered of a UDP socket; true: it was written.
    fn socket(key: &SocketKey<Self>, into: &mut MaybeUninit<Words<SocketPeer<Self>>>) -> bool;
    /// Writes it down.
    fn note_socket(key: &SocketKey<Self>, peer: &SocketPeer<Self>);
    /// The frontend for which a TCP socket was given an endpoint; true: it was written.
    fn connection(
        socket: &SockAddrContext,
        endpoint: &SocketAddress<Self>,
        into: &mut MaybeUninit<Words<SocketPeer<Self>>>,
    ) -> bool;
    /// Writes it down.
    fn note_connection(socket: &SockAddrContext, connection: &Connection<Self>);
    /// The endpoint that a client stays with; true: it was written.
    fn affinity(key: &AffinityKey<Self>, into: &mut MaybeUninit<Words<Affinity<Self>>>) -> bool;
    /// Writes it down.
    fn note_affinity(key: &AffinityKey<Self>, affinity: &Affinity<Self>);
}

/// The flow tables before ours.
pub(crate) struct FlowsBefore;

macro_rules! at {
    ($family:ident, $record:ident, $number:literal) => {
        &raw const BEFORE.$family.$record[$number]
    };
}

macro_rules! socket_key {
    ($family:ident, $record:ident, $key:ident) => {
        put(&raw mut $record, at!($family, socket_key, 0), $key.cookie);
        put(&raw mut $record, at!($family, socket_key, 1), $key.address);
        put(&raw mut $record, at!($family, socket_key, 2), $key.port);
        put(&raw mut $record, at!($family, socket_key, 3), $key.protocol)
    };
}

macro_rules! before {
    ($address:ty, $family:ident, $flows:ident, $half_open:ident, $sockets:ident, $affinity:ident, $connections:ident, $beside:ident, $operate:ident) => {
        /// Does what a number of [`operation`] says with the record whose key is in this processor's room;
        /// 1: done, 0: there is none, or no room. It is visible, or the verifier would walk through it
        /// wherever it is called.
        // SAFETY: the name exists once.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $operate(operation: u32) -> u32 {
            let Some(beside) = $beside.get_ptr_mut(0) else { return 0 };
            // SAFETY: the room is this processor's alone, see `Slot`; each field is within its record.
            unsafe {
                let key = &raw mut (*beside).foreign_key;
                *key = [0; _];
                hand(key, at!($family, flow_key, 0), &raw const (*beside).key.source);
                hand(key, at!($family, flow_key, 1), &raw const (*beside).key.destination);
                hand(key, at!($family, flow_key, 2), &raw const (*beside).key.source_port);
                hand(key, at!($family, flow_key, 3), &raw const (*beside).key.destination_port);
                hand(key, at!($family, flow_key, 4), &raw const (*beside).key.protocol);
                let flow = &raw mut (*beside).flow;
                if operation == operation::INSERT | operation::HALF_OPEN
                    || operation == operation::INSERT
                {
                    let record = &raw mut (*beside).foreign;
                    *record = [0; _];
                    hand(record, at!($family, flow, 0), &raw const (*flow).source);
                    hand(record, at!($family, flow, 1), &raw const (*flow).destination);
                    hand(record, at!($family, flow, 2), &raw const (*flow).source_port);
                    hand(record, at!($family, flow, 3), &raw const (*flow).destination_port);
                    hand(record, at!($family, flow, 4), &raw const (*flow).last_seen);
                    hand(record, at!($family, flow, 5), &raw const (*flow).service);
                    hand(record, at!($family, flow, 6), &raw const (*flow).state);
                    let inserted = if operation == operation::INSERT {
                        $flows.insert(&*key, &*record, BPF_NOEXIST.into())
                    } else {
                        $half_open.insert(&*key, &*record, BPF_NOEXIST.into())
                    };
                    return inserted.is_ok().into();
                }
                if operation == operation::REMOVE {
                    return $flows.remove(&*key).is_ok().into();
                }
                if operation == operation::REMOVE | operation::HALF_OPEN {
                    return $half_open.remove(&*key).is_ok().into();
                }
                let half_open = operation & operation::HALF_OPEN != 0;
                let stored = if half_open || operation == operation::PROMOTE {
                    $half_open.get_ptr_mut(&*key)
                } else {
                    $flows.get_ptr_mut(&*key)
                };
                let Some(stored) = stored else { return 0 };
                if operation == operation::PROMOTE {
                    return $flows.insert(&*key, &*stored, BPF_NOEXIST.into()).is_ok().into();
                }
                if operation & !operation::HALF_OPEN == operation::UPDATE {
                    let (mut last_seen, mut state) = (U32::ZERO, U32::ZERO);
                    take(stored, at!($family, flow, 4), &raw mut last_seen);
                    take(stored, at!($family, flow, 6), &raw mut state);
                    if (*flow).last_seen != last_seen {
                        hand(stored, at!($family, flow, 4), &raw const (*flow).last_seen);
                    }
                    // What answers become may change with who brings the client's packets.
                    if (*flow).state.get() & (bits::BY_PEER | bits::ON_BEHALF) != 0 {
                        hand(stored, at!($family, flow, 0), &raw const (*flow).source);
                        hand(stored, at!($family, flow, 2), &raw const (*flow).source_port);
                    }
                    if (*flow).state != state {
                        hand(stored, at!($family, flow, 6), &raw const (*flow).state);
                    }
                    return 1;
                }
                take(stored, at!($family, flow, 0), &raw mut (*flow).source);
                take(stored, at!($family, flow, 1), &raw mut (*flow).destination);
                take(stored, at!($family, flow, 2), &raw mut (*flow).source_port);
                take(stored, at!($family, flow, 3), &raw mut (*flow).destination_port);
                take(stored, at!($family, flow, 4), &raw mut (*flow).last_seen);
                take(stored, at!($family, flow, 5), &raw mut (*flow).service);
                take(stored, at!($family, flow, 6), &raw mut (*flow).state);
            }
            1
        }

        impl FlowSet<$address> for FlowsBefore {
            #[inline(always)]
            fn see(
                &self,
                stage: Stage,
                key: &FlowKey<$address>,
                mut seen: impl FnMut(&mut Flow<$address>),
            ) -> bool {
                let Some(beside) = $beside.get_ptr_mut(0) else { return false };
                // SAFETY: as in the function that is called, which no reference is held across.
                unsafe {
                    copy_bytes(key, &raw mut (*beside).key);
                    if $operate(operation::SEE | place(stage)) == 0 {
                        return false;
                    }
                    seen(&mut (*beside).flow);
                    // To remember here what it was takes more of the stack than there is.
                    $operate(operation::UPDATE | place(stage));
                }
                true
            }

            #[inline(always)]
            fn has(&self, stage: Stage, key: &FlowKey<$address>) -> bool {
                let Some(beside) = $beside.get_ptr_mut(0) else { return false };
                // SAFETY: as in `see`.
                unsafe { copy_bytes(key, &raw mut (*beside).key) };
                $operate(operation::SEE | place(stage)) != 0
            }

            #[inline(always)]
            fn insert(&self, stage: Stage, key: &FlowKey<$address>, flow: &Flow<$address>) -> bool {
                let Some(beside) = $beside.get_ptr_mut(0) else { return false };
                // SAFETY: as in `see`.
                unsafe {
                    copy_bytes(key, &raw mut (*beside).key);
                    copy_bytes(flow, &raw mut (*beside).flow);
                }
                $operate(operation::INSERT | place(stage)) != 0
            }

            #[inline(always)]
            fn promote(&self, key: &FlowKey<$address>) -> bool {
                let Some(beside) = $beside.get_ptr_mut(0) else { return false };
                // SAFETY: as in `see`.
                unsafe { copy_bytes(key, &raw mut (*beside).key) };
                $operate(operation::PROMOTE) != 0
            }

            #[inline(always)]
            fn remove(&self, stage: Stage, key: &FlowKey<$address>) {
                let Some(beside) = $beside.get_ptr_mut(0) else { return };
                // SAFETY: as in `see`.
                unsafe { copy_bytes(key, &raw mut (*beside).key) };
                $operate(operation::REMOVE | place(stage));
            }
        }

        impl Before for $address {
            #[inline(never)]
            fn socket(
                key: &SocketKey<Self>,
                into: &mut MaybeUninit<Words<SocketPeer<Self>>>,
            ) -> bool {
                let mut found: OfSocket = [0; _];
                let into = into.as_mut_ptr().cast::<SocketPeer<Self>>();
                // SAFETY: each field is within its record.
                unsafe {
                    socket_key!($family, found, key);
                    let Some(stored) = $sockets.get_ptr(&found) else { return false };
                    *into = SocketPeer::BLANK;
                    (*into).address = get(stored, at!($family, socket_peer, 0));
                    (*into).port = get(stored, at!($family, socket_peer, 1));
                }
                true
            }

            #[inline(never)]
            fn note_socket(key: &SocketKey<Self>, peer: &SocketPeer<Self>) {
                let (mut at, mut value): (OfSocket, OfSocket) = ([0; _], [0; _]);
                // SAFETY: as above.
                unsafe {
                    socket_key!($family, at, key);
                    put(&raw mut value, at!($family, socket_peer, 0), peer.address);
                    put(&raw mut value, at!($family, socket_peer, 1), peer.port);
                }
                // There is always room.
                let _ = $sockets.insert(&at, &value, BPF_ANY.into());
            }

            #[inline(never)]
            fn connection(
                socket: &SockAddrContext,
                endpoint: &SocketAddress<Self>,
                into: &mut MaybeUninit<Words<SocketPeer<Self>>>,
            ) -> bool {
                let into = into.as_mut_ptr().cast::<SocketPeer<Self>>();
                // SAFETY: the storage belongs to the socket of this call, and is only read; each field is
                // within its record.
                unsafe {
                    let stored = $connections.get_ptr_mut(socket);
                    if stored.is_null() {
                        return false;
                    }
                    let address: $address = get(stored, at!($family, connection, 0));
                    let port: U16 = get(stored, at!($family, connection, 1));
                    if address != endpoint.address || port != endpoint.port {
                        return false;
                    }
                    *into = SocketPeer::BLANK;
                    (*into).address = get(stored, at!($family, connection, 2));
                    (*into).port = get(stored, at!($family, connection, 3));
                }
                true
            }

            #[inline(never)]
            fn note_connection(socket: &SockAddrContext, connection: &Connection<Self>) {
                let mut value = [0; _];
                // SAFETY: each field is within its record, and the storage this socket's.
                unsafe {
                    let stored = $connections.get_or_insert_ptr_mut(socket, Some(&mut value));
                    if stored.is_null() {
                        return;
                    }
                    let Connection { endpoint, frontend } = connection;
                    put(stored, at!($family, connection, 0), endpoint.address);
                    put(stored, at!($family, connection, 1), endpoint.port);
                    put(stored, at!($family, connection, 2), frontend.address);
                    put(stored, at!($family, connection, 3), frontend.port);
                }
            }

            #[inline(never)]
            fn affinity(
                key: &AffinityKey<Self>,
                into: &mut MaybeUninit<Words<Affinity<Self>>>,
            ) -> bool {
                let mut found: OfClient = [0; _];
                let into = into.as_mut_ptr().cast::<Affinity<Self>>();
                // SAFETY: each field is within its record.
                unsafe {
                    put(&raw mut found, at!($family, affinity_key, 0), key.port);
                    put(&raw mut found, at!($family, affinity_key, 1), key.client);
                    let Some(stored) = $affinity.get_ptr(&found) else { return false };
                    (*into).endpoint.address = get(stored, at!($family, affinity, 0));
                    (*into).endpoint.port = get(stored, at!($family, affinity, 1));
                    (*into).endpoint.reserved = [0; 2];
                    (*into).since = get(stored, at!($family, affinity, 2));
                }
                true
            }

            #[inline(never)]
            fn note_affinity(key: &AffinityKey<Self>, affinity: &Affinity<Self>) {
                let (mut at, mut value): (OfClient, OfClient) = ([0; _], [0; _]);
                // SAFETY: as above.
                unsafe {
                    put(&raw mut at, at!($family, affinity_key, 0), key.port);
                    put(&raw mut at, at!($family, affinity_key, 1), key.client);
                    put(&raw mut value, at!($family, affinity, 0), affinity.endpoint.address);
                    put(&raw mut value, at!($family, affinity, 1), affinity.endpoint.port);
                    put(&raw mut value, at!($family, affinity, 2), affinity.since);
                }
                // There is always room.
                let _ = $affinity.insert(&at, &value, BPF_ANY.into());
            }
        }
    };
}

before!(V4, v4, FLOWS4, HALF_OPEN4, SOCKETS4, AFFINITY4, CONNECTIONS4, BESIDE4, flows4_before_ours);
before!(V6, v6, FLOWS6, HALF_OPEN6, SOCKETS6, AFFINITY6, CONNECTIONS6, BESIDE6, flows6_before_ours);

#[inline(always)]
fn place(stage: Stage) -> u32 {
    match stage {
        Stage::HalfOpen => operation::HALF_OPEN,
        Stage::Established => 0,
    }
}
