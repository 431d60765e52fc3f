//! The kernel's tables and what `core` sees of them.
//!
//! The large tables take memory for what is in them, not for what could be: at most 262,144 open flows
//! of each family, two records each, as many as the kernel's own connection tracking by default.
#![expect(unsafe_code, reason = "map values are read through kernel pointers")]

use core::ffi::c_void;
use core::mem::{self, MaybeUninit};
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_sock};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SkStorage,
};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_jiffies64,
    bpf_ktime_get_ns, bpf_loop, bpf_sk_storage_get,
};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use fairway_abi::{
    Address, Affinity, AffinityKey, Config, Connection, DropReason, Endpoint, EndpointKey, Event,
    Flow, FlowKey, FragmentKey, Fragments, Frontend, FrontendKey, Interface, LoadKey, MemberKey,
    Meter, MeterKey, NameAddresses, NameKey, Namespace, Pod, PodRange, RangeKey, Route, RuleCount,
    Ruling, RulingKey, Share, SocketKey, SocketPeer, Subject, V4, V6, Zone, answered, config,
    frontend, protocol, scope,
};
use fairway_core::flow::Scratch;
use fairway_core::handover::{Both, FlowSet};
use fairway_core::icmp::Bucket;
use fairway_core::pace::{Meters, Moved};
use fairway_core::packet::{Headers, Ports};
use fairway_core::policy;
use fairway_core::port;
use fairway_core::query::Room;
use fairway_core::service::{self, Request};
use fairway_core::socket::{Socket, SocketAddress};
use fairway_core::tables::Stage;
use fairway_core::{Host, Ip, Packet, Tables};
use zerocopy::native_endian::{U32, U64};

use crate::before::{self, Before, FlowsBefore};
use crate::host;

/// Entries are allocated as they come.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "config")]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map(name = "drops")]
static DROPS: PerCpuArray<u64, { DropReason::TABLE as usize }> = PerCpuArray::new();
#[btf_map(name = "interfaces")]
static INTERFACES: HashMap<u32, Interface, 4096> = HashMap::new();

#[btf_map(name = "resolver")]
static RESOLVER: Array<u64, 1> = Array::new();

#[btf_map(name = "meters")]
static METERS: HashMap<MeterKey, Meter, 8192> = HashMap::new();
#[btf_map(name = "paced")]
static PACED: HashMap<u32, u32, 1024> = HashMap::new();

#[btf_map(name = "subjects4")]
static SUBJECTS4: HashMap<V4, Subject, 4096, ON_DEMAND> = HashMap::new();
#[btf_map(name = "subjects6")]
static SUBJECTS6: HashMap<V6, Subject, 4096, ON_DEMAND> = HashMap::new();
#[btf_map(name = "identities4")]
static IDENTITIES4: HashMap<V4, u32, 262_144, ON_DEMAND> = HashMap::new();
#[btf_map(name = "identities6")]
static IDENTITIES6: HashMap<V6, u32, 262_144, ON_DEMAND> = HashMap::new();
#[btf_map(name = "blocks4")]
static BLOCKS4: LpmTrie<V4, u32, 131_072> = LpmTrie::new();
#[btf_map(name = "blocks6")]
static BLOCKS6: LpmTrie<V6, u32, 131_072> = LpmTrie::new();
#[btf_map(name = "rulings")]
static RULINGS: HashMap<RulingKey, Ruling, 524_288, ON_DEMAND> = HashMap::new();
#[btf_map(name = "rule_counts")]
static RULE_COUNTS: PerCpuHashMap<u32, RuleCount, 65_536, ON_DEMAND> = PerCpuHashMap::new();
#[btf_map(name = "events")]
static EVENTS: RingBuf<Event, EVENTS_SIZE> = RingBuf::new();

#[btf_map(name = "watched")]
static WATCHED: PerCpuArray<Watched, 1> = PerCpuArray::new();

/// What a processor may still tell those who watch.
#[repr(C)]
struct Watched {
    bucket: Bucket,
    /// How many events it has left out since the last one.
    missed: u32,
}

/// Bytes of what nobody has read yet: some 3,000 events.
const EVENTS_SIZE: usize = 1 << 18;

#[btf_map(name = "frontends4")]
static FRONTENDS4: HashMap<FrontendKey<V4>, Frontend, 262_144, ON_DEMAND> = HashMap::new();
#[btf_map(name = "frontends6")]
static FRONTENDS6: HashMap<FrontendKey<V6>, Frontend, 262_144, ON_DEMAND> = HashMap::new();
#[btf_map(name = "endpoints4")]
static ENDPOINTS4: HashMap<EndpointKey, Endpoint<V4>, 1_048_576, ON_DEMAND> = HashMap::new();
#[btf_map(name = "endpoints6")]
static ENDPOINTS6: HashMap<EndpointKey, Endpoint<V6>, 1_048_576, ON_DEMAND> = HashMap::new();
#[btf_map(name = "members4")]
static MEMBERS4: HashMap<MemberKey<V4>, u32, 1_048_576, ON_DEMAND> = HashMap::new();
#[btf_map(name = "members6")]
static MEMBERS6: HashMap<MemberKey<V6>, u32, 1_048_576, ON_DEMAND> = HashMap::new();
#[btf_map(name = "shares4")]
static SHARES4: HashMap<MemberKey<V4>, Share, 1_048_576, ON_DEMAND> = HashMap::new();
#[btf_map(name = "shares6")]
static SHARES6: HashMap<MemberKey<V6>, Share, 1_048_576, ON_DEMAND> = HashMap::new();
#[btf_map(name = "loads4")]
static LOADS4: HashMap<LoadKey<V4>, u32, 65_536, ON_DEMAND> = HashMap::new();
#[btf_map(name = "loads6")]
static LOADS6: HashMap<LoadKey<V6>, u32, 65_536, ON_DEMAND> = HashMap::new();
#[btf_map(name = "affinity4")]
static AFFINITY4: LruHashMap<AffinityKey<V4>, Affinity<V4>, 65_536> = LruHashMap::new();
#[btf_map(name = "affinity6")]
static AFFINITY6: LruHashMap<AffinityKey<V6>, Affinity<V6>, 65_536> = LruHashMap::new();
#[btf_map(name = "source_ranges4")]
static SOURCE_RANGES4: LpmTrie<RangeKey<V4>, u32, 65_536> = LpmTrie::new();
#[btf_map(name = "source_ranges6")]
static SOURCE_RANGES6: LpmTrie<RangeKey<V6>, u32, 65_536> = LpmTrie::new();
#[btf_map(name = "turns")]
static TURNS: LruHashMap<u32, u32, 16_384> = LruHashMap::new();
#[btf_map(name = "namespaces")]
static NAMESPACES: HashMap<u64, Namespace, 4096> = HashMap::new();
#[btf_map(name = "pods4")]
static PODS4: HashMap<V4, Pod, 4096> = HashMap::new();
#[btf_map(name = "pods6")]
static PODS6: HashMap<V6, Pod, 4096> = HashMap::new();
#[btf_map(name = "pod_range4")]
static POD_RANGE4: Array<PodRange<V4>, 1> = Array::new();
#[btf_map(name = "pod_range6")]
static POD_RANGE6: Array<PodRange<V6>, 1> = Array::new();
#[btf_map(name = "routes4")]
static ROUTES4: LpmTrie<V4, Route<V4>, 16_384> = LpmTrie::new();
#[btf_map(name = "routes6")]
static ROUTES6: LpmTrie<V6, Route<V6>, 16_384> = LpmTrie::new();
#[btf_map(name = "peers4")]
static PEERS4: HashMap<V6, V4, 16_384, ON_DEMAND> = HashMap::new();
#[btf_map(name = "peers6")]
static PEERS6: HashMap<V6, V6, 16_384, ON_DEMAND> = HashMap::new();
#[btf_map(name = "flows4")]
static FLOWS4: HashMap<FlowKey<V4>, Flow<V4>, 524_288, ON_DEMAND> = HashMap::new();
#[btf_map(name = "flows6")]
static FLOWS6: HashMap<FlowKey<V6>, Flow<V6>, 524_288, ON_DEMAND> = HashMap::new();
#[btf_map(name = "half_open4")]
static HALF_OPEN4: LruHashMap<FlowKey<V4>, Flow<V4>, 65_536> = LruHashMap::new();
#[btf_map(name = "half_open6")]
static HALF_OPEN6: LruHashMap<FlowKey<V6>, Flow<V6>, 65_536> = LruHashMap::new();
#[btf_map(name = "sockets4")]
static SOCKETS4: LruHashMap<SocketKey<V4>, SocketPeer<V4>, 65_536> = LruHashMap::new();
#[btf_map(name = "sockets6")]
static SOCKETS6: LruHashMap<SocketKey<V6>, SocketPeer<V6>, 65_536> = LruHashMap::new();

/// As many as there are half-open flows of peers' clients, and those established ones that somebody asks
/// about anew.
#[btf_map(name = "clients4")]
static CLIENTS4: LruHashMap<FlowKey<V4>, V4, 32_768> = LruHashMap::new();
#[btf_map(name = "clients6")]
static CLIENTS6: LruHashMap<FlowKey<V6>, V6, 32_768> = LruHashMap::new();
#[btf_map(name = "fragments4")]
static FRAGMENTS4: LruHashMap<FragmentKey<V4>, Fragments, 8192> = LruHashMap::new();
#[btf_map(name = "fragments6")]
static FRAGMENTS6: LruHashMap<FragmentKey<V6>, Fragments, 8192> = LruHashMap::new();

#[btf_map(name = "connections4")]
static CONNECTIONS4: SkStorage<Connection<V4>> = SkStorage::new();
#[btf_map(name = "connections6")]
static CONNECTIONS6: SkStorage<Connection<V6>> = SkStorage::new();
#[btf_map(name = "slot4")]
static SLOT4: PerCpuArray<Slot<V4>, 1> = PerCpuArray::new();
#[btf_map(name = "slot6")]
static SLOT6: PerCpuArray<Slot<V6>, 1> = PerCpuArray::new();

#[btf_map(name = "complaints")]
static COMPLAINTS: PerCpuArray<Bucket, 1> = PerCpuArray::new();
#[btf_map(name = "quoted")]
static QUOTED: PerCpuArray<[u8; QUOTED_SIZE as usize], 1> = PerCpuArray::new();

#[btf_map(name = "zone")]
static ZONE: Array<Zone, 1> = Array::new();
#[btf_map(name = "names")]
static NAMES: HashMap<NameKey, NameAddresses, 65_536, ON_DEMAND> = HashMap::new();
#[btf_map(name = "answers")]
static ANSWERS: PerCpuArray<u64, { answered::TABLE as usize }> = PerCpuArray::new();
#[btf_map(name = "query")]
static QUERY: PerCpuArray<Room, 1> = PerCpuArray::new();

/// Length of [`quoted`].
pub(crate) const QUOTED_SIZE: u32 = 512;

/// What a program works on, kept off its stack of 512 bytes.
///
/// One slot a processor and family: a classifier runs with bottom halves disabled and an XDP program
/// within one, so no two programs use a processor's slot at once.
#[repr(C)]
pub(crate) struct Slot<A> {
    pub(crate) headers: MaybeUninit<Headers<A>>,
    pub(crate) scratch: Scratch<A>,
    /// Index of the interface whose pod sends the packet, if that is over the pod's limit and it is to
    /// be seen whether it can wait; else 0. One program notes it for the next. Where somebody else's
    /// between them takes the packet the note stays, and means nothing to packets of other interfaces.
    pub(crate) ahead: u32,
    /// Index of the device that the packet is sent to; 0: none is known.
    pub(crate) way: u32,
    /// Whether the packet has opened its flow: 0 or 1.
    pub(crate) opened: u32,
    /// Why an early step has refused the packet, of which those who watch are yet to be told.
    pub(crate) refused: u32,
}

/// The tables of both families.
pub(crate) struct Kernel;

/// Our own tables of flows.
struct Flows;

/// The tables of flows, with those before them as long as something is there.
#[inline(always)]
fn flows() -> Both<Flows, FlowsBefore> {
    Both { own: Flows, before: FlowsBefore, phase: before::phase() }
}

/// The host whose program runs, for its sockets.
pub(crate) struct Here {
    /// The program's context: a packet buffer's, or a frame's.
    pub(crate) ctx: *mut c_void,
}

/// What the steps of a search for a port work on.
struct Search<A> {
    here: Here,
    scratch: *mut Scratch<A>,
}

/// The socket that a call is made on.
///
/// What a TCP socket was given is kept with the socket and goes with it. A UDP socket may be given
/// any number of endpoints; they share a table in which the least recently used make room.
pub(crate) struct Caller(SockAddrContext);

impl Caller {
    #[inline(always)]
    pub(crate) fn of(ctx: &SockAddrContext) -> Self {
        Self(SockAddrContext::new(ctx.sock_addr))
    }

    #[inline(always)]
    fn number(&self) -> u64 {
        // SAFETY: the context is that of the running program.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    #[inline(always)]
    fn key<A: Address>(&self, endpoint: &SocketAddress<A>) -> SocketKey<A> {
        let SocketAddress { address, port, protocol } = *endpoint;
        SocketKey { cookie: U64::new(self.number()), address, port, protocol, ..SocketKey::BLANK }
    }
}

/// Finds the slot of a family.
pub(crate) trait Slotted: Sized + 'static {
    /// This processor's slot.
    fn slot() -> Option<&'static mut Slot<Self>>;
}

/// A map value seen with the alignment it has: the kernel places values at multiples of four at
/// least, and each of ours is a multiple of four long. One that consists of bytes is then read in
/// words instead of byte by byte.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub(crate) struct Words<T>(T);

/// Copies a value out of a map.
#[inline(always)]
fn copy<T: Copy>(value: *const T) -> T {
    const { assert!(size_of::<Words<T>>() == size_of::<T>()) };
    // SAFETY: `value` was just answered by a lookup and stays readable while the program runs; the
    // assertion keeps the read within it, see `Words` for its alignment. A concurrent writer may
    // tear the copy; the callers' contracts (`core`) allow for that.
    unsafe { ptr::read(value.cast::<Words<T>>()).0 }
}

/// What one of the functions wrote that look into the tables before.
#[inline(always)]
fn peer<A: Address>(known: &MaybeUninit<Words<SocketPeer<A>>>) -> SocketPeer<A> {
    copy(known.as_ptr().cast())
}

macro_rules! tables {
    ($address:ty, $frontends:ident, $endpoints:ident, $members:ident, $shares:ident, $loads:ident, $affinity:ident, $source_ranges:ident, $pods:ident, $pod_range:ident, $routes:ident, $peers:ident, $subjects:ident, $identities:ident, $blocks:ident, $flows:ident,
     $half_open:ident, $clients:ident, $fragments:ident, $sockets:ident, $connections:ident, $slot:ident, $attempt:ident, $anew:ident) => {
        impl Slotted for $address {
            #[inline(always)]
            fn slot() -> Option<&'static mut Slot<Self>> {
                // SAFETY: the slot is this processor's alone, see `Slot`.
                $slot.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
            }
        }

        impl Socket<$address> for Caller {
            #[inline(always)]
            fn cookie(&self) -> u64 {
                self.number()
            }

            #[inline(always)]
            fn netns(&self) -> u64 {
                // SAFETY: the context is that of the running program.
                unsafe { bpf_get_netns_cookie(self.0.as_ptr()) }
            }

            #[inline(always)]
            fn recall(&self, endpoint: &SocketAddress<$address>) -> Option<SocketPeer<$address>> {
                let phase = before::phase();
                if endpoint.protocol != protocol::TCP {
                    let key = self.key(endpoint);
                    if let Some(known) = $sockets.get_ptr(&key) {
                        return Some(copy(known));
                    }
                    let mut known = MaybeUninit::uninit();
                    let found = before::is_under_way(phase) && <$address>::socket(&key, &mut known);
                    return found.then(|| peer(&known));
                }
                // SAFETY: the storage belongs to the socket of this call, which the kernel has locked
                // or is about to answer for; it is only read.
                let stored = unsafe { $connections.get_ptr_mut(&self.0) };
                if stored.is_null() {
                    let mut known = MaybeUninit::uninit();
                    let found = before::are_connections()
                        && <$address>::connection(&self.0, endpoint, &mut known);
                    return found.then(|| peer(&known));
                }
                let connection = copy(stored.cast_const());
                let given = connection.endpoint;
                (given.address == endpoint.address && given.port == endpoint.port)
                    .then_some(connection.frontend)
            }

            // Not inlined, or what it takes of the stack would come to that of the choice before it.
            #[inline(never)]
            fn remember(
                &self,
                endpoint: &SocketAddress<$address>,
                frontend: &SocketPeer<$address>,
            ) {
                // There is always room: the least recently used make some, and a socket brings its
                // own. Without a record, a connection would still work and show its endpoint, and a
                // datagram's answer would come from an address its sender did not ask.
                let switching = before::is_switching(before::phase());
                if endpoint.protocol != protocol::TCP {
                    let key = self.key(endpoint);
                    if switching {
                        <$address>::note_socket(&key, frontend);
                    } else {
                        let _ = $sockets.insert(&key, frontend, BPF_ANY.into());
                    }
                    return;
                }
                let SocketAddress { address, port, .. } = *endpoint;
                let endpoint = SocketPeer { address, port, ..SocketPeer::BLANK };
                let mut connection = Connection { endpoint, frontend: *frontend };
                // What is with a socket cannot be moved later, so it is in both.
                if switching && before::are_connections() {
                    <$address>::note_connection(&self.0, &connection);
                }
                let value = Some(&mut connection);
                // SAFETY: as in `recall`; the value outlives the call.
                let stored = unsafe { $connections.get_or_insert_ptr_mut(&self.0, value) };
                if !stored.is_null() {
                    // SAFETY: the storage is ours to write and of this very type. A socket that
                    // connects again has it already.
                    unsafe { *stored = connection };
                }
            }
        }

        impl FlowSet<$address> for Flows {
            #[inline(always)]
            fn see(
                &self,
                stage: Stage,
                key: &FlowKey<$address>,
                mut seen: impl FnMut(&mut Flow<$address>),
            ) -> bool {
                let stored = match stage {
                    Stage::HalfOpen => $half_open.get_ptr_mut(key),
                    Stage::Established => $flows.get_ptr_mut(key),
                };
                let Some(stored) = stored else { return false };
                // SAFETY: the pointer was just answered by a lookup. Another processor may write
                // the same record; `core::flow` says why that heals.
                seen(unsafe { &mut *stored });
                true
            }

            #[inline(always)]
            fn has(&self, stage: Stage, key: &FlowKey<$address>) -> bool {
                match stage {
                    Stage::HalfOpen => $half_open.get_ptr(key).is_some(),
                    Stage::Established => $flows.get_ptr(key).is_some(),
                }
            }

            #[inline(always)]
            fn insert(&self, stage: Stage, key: &FlowKey<$address>, flow: &Flow<$address>) -> bool {
                match stage {
                    Stage::HalfOpen => $half_open.insert(key, flow, BPF_NOEXIST.into()).is_ok(),
                    Stage::Established => $flows.insert(key, flow, BPF_NOEXIST.into()).is_ok(),
                }
            }

            #[inline(always)]
            fn promote(&self, key: &FlowKey<$address>) -> bool {
                let Some(stored) = $half_open.get_ptr(key) else { return false };
                // SAFETY: the pointer was just answered by a lookup; the kernel copies from it.
                $flows.insert(key, unsafe { &*stored }, BPF_NOEXIST.into()).is_ok()
            }

            #[inline(always)]
            fn remove(&self, stage: Stage, key: &FlowKey<$address>) {
                // A record that is already gone is as good as removed.
                let _ = match stage {
                    Stage::HalfOpen => $half_open.remove(key),
                    Stage::Established => $flows.remove(key),
                };
            }
        }

        impl Tables<$address> for Kernel {
            #[inline(always)]
            fn config(&self) -> Option<Config> {
                CONFIG.get_ptr(0).map(copy)
            }

            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$address>) -> Option<Frontend> {
                $frontends.get_ptr(key).map(copy)
            }

            #[inline(always)]
            fn endpoint(&self, key: &EndpointKey) -> Option<Endpoint<$address>> {
                $endpoints.get_ptr(key).map(copy)
            }

            #[inline(always)]
            fn is_member(&self, key: &MemberKey<$address>) -> bool {
                $members.get_ptr(key).is_some()
            }

            #[inline(always)]
            fn share(&self, key: &MemberKey<$address>) -> Option<Share> {
                $shares.get_ptr(key).map(copy)
            }

            #[inline(always)]
            fn load(&self, key: &LoadKey<$address>) -> Option<u32> {
                if let Some(load) = $loads.get_ptr(key) {
                    // SAFETY: the pointer was just answered by a lookup.
                    return Some(unsafe { ptr::read_volatile(load) });
                }
                $loads.insert(key, &0, BPF_NOEXIST.into()).is_ok().then_some(0)
            }

            #[inline(always)]
            fn add_load(&self, key: &LoadKey<$address>) {
                let Some(load) = $loads.get_ptr_mut(key) else {
                    let _ = $loads.insert(key, &1, BPF_NOEXIST.into());
                    return;
                };
                // SAFETY: the pointer was just answered by a lookup. What processors that race lose, the
                // agent finds when it counts.
                unsafe { ptr::write_volatile(load, ptr::read_volatile(load).wrapping_add(1)) };
            }

            /// As the default, in a loop that the verifier walks through once.
            #[inline(always)]
            fn prefer_grown(&self, request: &mut Request<$address>) {
                let mut request: *mut Request<$address> = request;
                let step = $anew as *mut c_void;
                // SAFETY: the pointer outlives the call, and is what the step takes it for.
                unsafe { bpf_loop(service::PICKS - 1, step, (&raw mut request).cast(), 0) };
            }

            #[inline(always)]
            fn affinity(&self, key: &AffinityKey<$address>) -> Option<Affinity<$address>> {
                let phase = before::phase();
                if let Some(known) = $affinity.get_ptr(key) {
                    return Some(copy(known));
                }
                let mut known: MaybeUninit<Words<Affinity<$address>>> = MaybeUninit::uninit();
                if before::is_under_way(phase) && <$address>::affinity(key, &mut known) {
                    return Some(copy(known.as_ptr().cast()));
                }
                None
            }

            #[inline(always)]
            fn note_affinity(&self, key: &AffinityKey<$address>, affinity: &Affinity<$address>) {
                if before::is_switching(before::phase()) {
                    return <$address as Before>::note_affinity(key, affinity);
                }
                // There is always room; without a record, the client's next connection chooses afresh.
                let _ = $affinity.insert(key, affinity, BPF_ANY.into());
            }

            #[inline(always)]
            fn is_in_source_range(&self, port: u32, client: &$address) -> bool {
                const BITS: u32 = 32 + <$address>::WIDTH;
                let key = RangeKey { port: U32::new(port), network: *client };
                $source_ranges.get(&Key::new(BITS, key)).is_some()
            }

            #[inline(always)]
            fn turn(&self, service: u32) -> u32 {
                let Some(turns) = TURNS.get_ptr_mut(service) else {
                    let _ = TURNS.insert(service, &1, BPF_ANY.into());
                    return 0;
                };
                // SAFETY: the pointer was just answered by a lookup. Processors that race take the
                // same turn, or set each other's back by one.
                unsafe {
                    let turn = ptr::read_volatile(turns);
                    ptr::write_volatile(turns, turn.wrapping_add(1));
                    turn
                }
            }

            #[inline(always)]
            fn namespace(&self, cookie: u64) -> Option<Namespace> {
                NAMESPACES.get_ptr(cookie).map(copy)
            }

            #[inline(always)]
            fn pod_range(&self) -> PodRange<$address> {
                const NONE: PodRange<$address> =
                    PodRange { network: <$address>::UNSPECIFIED, mask: <$address>::UNSPECIFIED };
                $pod_range.get_ptr(0).map_or(NONE, copy)
            }

            #[inline(always)]
            fn pod(&self, address: &$address) -> Option<Pod> {
                $pods.get_ptr(address).map(copy)
            }

            #[inline(always)]
            fn interface(&self, ifindex: u32) -> Option<Interface> {
                INTERFACES.get_ptr(ifindex).map(copy)
            }

            #[inline(always)]
            fn route(&self, destination: &$address) -> Option<Route<$address>> {
                const BITS: u32 = <$address>::WIDTH;
                $routes.get(&Key::new(BITS, *destination)).map(|route| copy(route))
            }

            #[inline(always)]
            fn peer(&self, underlay: &V6) -> Option<$address> {
                $peers.get_ptr(underlay).map(copy)
            }

            #[inline(always)]
            fn see_flow(
                &self,
                stage: Stage,
                key: &FlowKey<$address>,
                seen: impl FnMut(&mut Flow<$address>),
            ) -> bool {
                flows().see(stage, key, seen)
            }

            #[inline(always)]
            fn has_flow(&self, stage: Stage, key: &FlowKey<$address>) -> bool {
                flows().has(stage, key)
            }

            #[inline(always)]
            fn insert_flow(
                &self,
                stage: Stage,
                key: &FlowKey<$address>,
                flow: &Flow<$address>,
            ) -> bool {
                flows().insert(stage, key, flow)
            }

            #[inline(always)]
            fn promote_flow(&self, key: &FlowKey<$address>) -> bool {
                flows().promote(key)
            }

            #[inline(always)]
            fn remove_flow(&self, stage: Stage, key: &FlowKey<$address>) {
                flows().remove(stage, key);
            }

            #[inline(always)]
            fn client(&self, packets: &FlowKey<$address>) -> Option<$address> {
                $clients.get_ptr(packets).map(copy)
            }

            #[inline(always)]
            fn note_client(&self, packets: &FlowKey<$address>, client: &$address) {
                // There is always room; without a note, the flow counts as the peer's.
                let _ = $clients.insert(packets, client, BPF_ANY.into());
            }

            #[inline(always)]
            fn fragments(&self, key: &FragmentKey<$address>) -> Option<Fragments> {
                $fragments.get_ptr(key).map(copy)
            }

            #[inline(always)]
            fn note_fragments(&self, key: &FragmentKey<$address>, note: &Fragments) {
                // There is always room; without a note, fragments are dropped and sent again.
                let _ = $fragments.insert(key, note, BPF_ANY.into());
            }

            #[inline(always)]
            fn subject(&self, address: &$address) -> Option<Subject> {
                $subjects.get_ptr(address).map(copy)
            }

            #[inline(always)]
            fn identity(&self, address: &$address) -> u32 {
                const BITS: u32 = <$address>::WIDTH;
                if let Some(identity) = $identities.get_ptr(address) {
                    return copy(identity);
                }
                $blocks.get(&Key::new(BITS, *address)).map_or(0, |identity| copy(identity))
            }

            #[inline(always)]
            fn ruling(&self, key: &RulingKey) -> Option<Ruling> {
                RULINGS.get_ptr(key).map(copy)
            }

            #[inline(always)]
            fn count_rule(&self, rule: u32, denied: bool) {
                let Some(count) = RULE_COUNTS.get_ptr_mut(rule) else { return };
                // SAFETY: the pointer was just answered by a lookup, and the counters are this
                // processor's; see `count`.
                unsafe {
                    if denied {
                        (*count).denied += 1;
                    } else {
                        (*count).allowed += 1;
                    }
                }
            }

            #[inline(always)]
            fn zone(&self) -> Zone {
                ZONE.get_ptr(0).map(copy).unwrap_or_default()
            }

            #[inline(always)]
            fn name_addresses(&self, name: &NameKey) -> Option<NameAddresses> {
                NAMES.get_ptr(name).map(copy)
            }

            #[inline(always)]
            fn count_answer(&self, kind: u32) {
                if let Some(count) = ANSWERS.get_ptr_mut(kind) {
                    // SAFETY: as in `count`.
                    unsafe { *count += 1 };
                }
            }

            #[inline(always)]
            #[expect(clippy::cast_possible_truncation, reason = "ages are differences of low bits")]
            fn seconds(&self) -> u32 {
                const BITS_OF_NANOSECONDS: u32 = 30;
                // SAFETY: no preconditions.
                unsafe { (bpf_ktime_get_ns() >> BITS_OF_NANOSECONDS) as u32 }
            }

            #[inline(always)]
            fn is_resolver_alive(&self) -> bool {
                // SAFETY: no preconditions.
                RESOLVER.get_ptr(0).is_some_and(|until| unsafe { *until > bpf_ktime_get_ns() })
            }

            #[inline(always)]
            fn may_complain(&self) -> bool {
                // SAFETY: the bucket is this processor's alone, as the slot is.
                let bucket = COMPLAINTS.get_ptr_mut(0).map(|bucket| unsafe { &mut *bucket });
                bucket.is_some_and(|bucket| bucket.take(jiffies()))
            }

            #[inline(always)]
            fn random(&self) -> u32 {
                // SAFETY: no preconditions.
                unsafe { bpf_get_prandom_u32() }
            }

            #[inline(always)]
            fn now(&self) -> u32 {
                jiffies()
            }
        }

        impl Host<$address> for Here {
            #[inline(always)]
            fn receives(&self, packet: &FlowKey<$address>) -> bool {
                host::receives(self.ctx, packet)
            }

            /// As the default, in a loop that the verifier walks through once.
            #[inline(always)]
            fn search<T: Tables<$address>>(&self, _tables: &T, scratch: &mut Scratch<$address>) {
                let mut search = Search { here: Self { ctx: self.ctx }, scratch };
                let step = $attempt as *mut c_void;
                // SAFETY: `search` outlives the call, and is what the step takes it for.
                unsafe { bpf_loop(port::TRIES, step, (&raw mut search).cast(), 0) };
            }
        }

        /// One step of a choice, for the kernel to call.
        extern "C" fn $anew(_number: u32, request: *mut c_void) -> i64 {
            // SAFETY: the kernel hands over what `prefer_grown` gave it, which waits for the end with the
            // only reference to the request there is.
            let request = unsafe { &mut **request.cast::<*mut Request<$address>>() };
            service::pick_anew(&Kernel, request).into()
        }

        /// One step of a search, for the kernel to call.
        extern "C" fn $attempt(number: u32, search: *mut c_void) -> i64 {
            // SAFETY: the kernel hands over what `search` gave it. The scratch is this processor's
            // own, and borrowed by who waits for the search to end.
            let (here, scratch) = unsafe {
                let search = &*search.cast::<Search<$address>>();
                (&search.here, &mut *search.scratch)
            };
            port::attempt(&Kernel, here, scratch, number).into()
        }
    };
}

tables!(
    V4,
    FRONTENDS4,
    ENDPOINTS4,
    MEMBERS4,
    SHARES4,
    LOADS4,
    AFFINITY4,
    SOURCE_RANGES4,
    PODS4,
    POD_RANGE4,
    ROUTES4,
    PEERS4,
    SUBJECTS4,
    IDENTITIES4,
    BLOCKS4,
    FLOWS4,
    HALF_OPEN4,
    CLIENTS4,
    FRAGMENTS4,
    SOCKETS4,
    CONNECTIONS4,
    SLOT4,
    attempt4,
    anew4
);
tables!(
    V6,
    FRONTENDS6,
    ENDPOINTS6,
    MEMBERS6,
    SHARES6,
    LOADS6,
    AFFINITY6,
    SOURCE_RANGES6,
    PODS6,
    POD_RANGE6,
    ROUTES6,
    PEERS6,
    SUBJECTS6,
    IDENTITIES6,
    BLOCKS6,
    FLOWS6,
    HALF_OPEN6,
    CLIENTS6,
    FRAGMENTS6,
    SOCKETS6,
    CONNECTIONS6,
    SLOT6,
    attempt6,
    anew6
);

impl Meters for Kernel {
    #[inline(always)]
    fn meter(&self, key: &MeterKey) -> Option<Meter> {
        METERS.get_ptr(key).map(copy)
    }

    #[inline(always)]
    fn move_meter(&self, key: &MeterKey, moved: &Moved) {
        // One that has vanished meanwhile limits nothing any more.
        if let Some(meter) = METERS.get_ptr_mut(key) {
            // SAFETY: the pointer was just answered by a lookup and stays good while the program runs;
            // map values are aligned to eight bytes, and so are the fields.
            unsafe {
                ptr::write_volatile(&raw mut (*meter).next, moved.next);
                ptr::write_volatile(&raw mut (*meter).spacing, moved.spacing);
            }
        }
    }

    #[inline(always)]
    fn nanoseconds(&self) -> u64 {
        // SAFETY: no preconditions.
        unsafe { bpf_ktime_get_ns() }
    }
}

/// What holds for the whole node.
#[inline(always)]
pub(crate) fn config() -> Config {
    CONFIG.get_ptr(0).map(copy).unwrap_or_default()
}

/// Whether some pod is restricted.
#[inline(always)]
pub(crate) fn is_policed() -> bool {
    config().flags & config::POLICED != 0
}

/// Whether somebody watches drops.
#[inline(always)]
pub(crate) fn is_watched() -> bool {
    config().flags & config::WATCH_DROPS != 0
}

/// Keeps the headers of a packet that was refused before that was done, as far as they can be read, to [`tell`] of it.
#[inline(always)]
pub(crate) fn read_refused<A: Ip, P: Packet>(packet: &P, slot: &mut Slot<A>) {
    let mut headers = match A::parse_network(packet) {
        Ok(headers) => headers,
        Err(_) => Headers::NOTHING,
    };
    if !matches!(headers.ports, Ports::Fragment) {
        // What it leaves then is what there is.
        let _ = A::parse_transport(packet, &mut headers);
    }
    slot.headers.write(headers);
}

/// Tells those who watch of a packet that was dropped for this reason (a [`DropReason`]), or, if it is 0, of a flow that
/// was allowed; unless nobody does, or too many were told of late.
#[inline(always)]
pub(crate) fn tell<A: Ip>(slot: &Slot<A>, ifindex: u32, reason: u32) {
    let wanted = if reason != 0 { config::WATCH_DROPS } else { config::WATCH_FLOWS };
    if config().flags & wanted == 0 {
        return;
    }
    let Some(watched) = WATCHED.get_ptr_mut(0) else { return };
    // SAFETY: it is this processor's alone, as the slot is.
    let watched = unsafe { &mut *watched };
    let event = if watched.bucket.take(jiffies()) { EVENTS.reserve(0) } else { None };
    let Some(mut event) = event else {
        watched.missed = watched.missed.wrapping_add(1);
        return;
    };
    // SAFETY: who tells of a packet has its headers.
    let headers = unsafe { slot.headers.assume_init_ref() };
    // SAFETY: no preconditions.
    let time = unsafe { bpf_ktime_get_ns() };
    let missed = mem::take(&mut watched.missed);
    event.write(Event { time, ifindex, missed, ..policy::report(headers, &slot.scratch, reason) });
    event.submit(0);
}

/// Whether a device holds packets until they are to depart.
#[inline(always)]
pub(crate) fn is_paced(ifindex: u32) -> bool {
    PACED.get_ptr(ifindex).is_some()
}

/// A socket ends: what it was given has one connection less, if that is counted.
#[inline(always)]
pub(crate) fn release(socket: *mut bpf_sock) {
    let [four, six] = [storage(&raw const CONNECTIONS4), storage(&raw const CONNECTIONS6)];
    // SAFETY: the maps are of sockets, and the socket is that of the running program. What is answered is
    // null, or stays readable while the program runs.
    let (four, six) = unsafe {
        (
            bpf_sk_storage_get(four, socket.cast(), ptr::null_mut(), 0).cast::<Connection<V4>>(),
            bpf_sk_storage_get(six, socket.cast(), ptr::null_mut(), 0).cast::<Connection<V6>>(),
        )
    };
    if !four.is_null() {
        let connection = copy(four.cast_const());
        if is_counted(FRONTENDS4.get_ptr(frontend_of(&connection))) {
            lessen(LOADS4.get_ptr_mut(given(&connection)));
        }
    }
    if !six.is_null() {
        let connection = copy(six.cast_const());
        if is_counted(FRONTENDS6.get_ptr(frontend_of(&connection))) {
            lessen(LOADS6.get_ptr_mut(given(&connection)));
        }
    }
}

#[inline(always)]
fn storage<T>(map: *const SkStorage<T>) -> *mut c_void {
    map.cast_mut().cast()
}

/// Whom a TCP socket asked for.
#[inline(always)]
fn frontend_of<A: Ip>(connection: &Connection<A>) -> FrontendKey<A> {
    let SocketPeer { address, port, .. } = connection.frontend;
    let scope = if address.is_loopback() { scope::LOOPBACK } else { scope::INTERNAL };
    FrontendKey { address, port, protocol: protocol::TCP, scope }
}

/// Whether a connection to this frontend was counted when it was made. One to another Service with the
/// same endpoint was not, and is known by the next recount alone.
#[inline(always)]
fn is_counted(frontend: Option<*const Frontend>) -> bool {
    // SAFETY: the pointer was just answered by a lookup; its record may change, but stays readable.
    frontend.is_some_and(|frontend| unsafe { (*frontend).flags } & frontend::LEAST != 0)
}

/// Under which connections to the endpoint of a TCP socket are counted.
#[inline(always)]
fn given<A: Address>(connection: &Connection<A>) -> LoadKey<A> {
    let SocketPeer { address, port, .. } = connection.endpoint;
    LoadKey { address, port, protocol: protocol::TCP, reserved: 0 }
}

#[inline(always)]
fn lessen(load: Option<*mut u32>) {
    if let Some(load) = load {
        // SAFETY: the pointer was just answered by a lookup; see `add_load` for what may race.
        unsafe {
            let before = ptr::read_volatile(load);
            if before > 0 {
                ptr::write_volatile(load, before - 1);
            }
        }
    }
}

/// The kernel's clock: low bits of jiffies, which cost nothing to read.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ages are differences of low bits")]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: no preconditions.
    unsafe { bpf_jiffies64() as u32 }
}

/// This processor's room for a query; no two programs use it at once, as with [`Slot`].
#[inline(always)]
pub(crate) fn query() -> Option<&'static mut Room> {
    // SAFETY: the room is this processor's alone.
    QUERY.get_ptr_mut(0).map(|room| unsafe { &mut *room })
}

/// This processor's room for a part of a packet.
#[inline(always)]
pub(crate) fn quoted() -> Option<*mut [u8; QUOTED_SIZE as usize]> {
    QUOTED.get_ptr_mut(0)
}

/// Counts a drop.
#[inline(always)]
pub(crate) fn count(reason: DropReason) {
    if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: the counter belongs to this processor, and programs do not interrupt each other
        // on one hook; a lost increment would be a wrong count, nothing more.
        unsafe { *counter += 1 };
    }
}
