//! Packets and tables in plain memory: the world of tests, the differential test and explanations.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use fairway_abi::{
    Address, Affinity, AffinityKey, Config, Endpoint, EndpointKey, Flow, FlowKey, FragmentKey,
    Fragments, Frontend, FrontendKey, Interface, LoadKey, MemberKey, NameAddresses, NameKey,
    Namespace, Pod, PodRange, Route, RuleCount, Ruling, RulingKey, Share, SocketKey, SocketPeer,
    Subject, V6, Zone, answered, scope,
};
use zerocopy::native_endian::{U32, U64};
use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::checksum::adjust;
use crate::icmp::Quotable;
use crate::packet::{Covers, Difference, ETHERNET, Packet, adjust_complete_checksum};
use crate::port::Host;
use crate::socket::{Socket, SocketAddress};
use crate::tables::{Stage, Tables};

/// The tables of one family, open to inspection.
#[derive(Clone, Debug)]
pub struct Memory<A: Address + Hash> {
    /// See [`Config`].
    pub config: Config,
    /// See [`Frontend`].
    pub frontends: HashMap<FrontendKey<A>, Frontend>,
    /// See [`Endpoint`].
    pub endpoints: HashMap<EndpointKey, Endpoint<A>>,
    /// See [`MemberKey`].
    pub members: HashSet<MemberKey<A>>,
    /// See [`Share`].
    pub shares: HashMap<MemberKey<A>, Share>,
    /// See [`LoadKey`].
    pub loads: RefCell<HashMap<LoadKey<A>, u32>>,
    /// How many endpoints' connections can be counted.
    pub loads_room: usize,
    /// See [`Affinity`].
    pub affinity: RefCell<HashMap<AffinityKey<A>, Affinity<A>>>,
    /// A port's number, and a range's length in bits and first address.
    pub source_ranges: Vec<(u32, u32, A)>,
    /// By number of a list.
    pub turns: RefCell<HashMap<u32, u32>>,
    /// By cookie.
    pub namespaces: HashMap<u64, Namespace>,
    /// See [`PodRange`].
    pub pod_range: PodRange<A>,
    /// By address.
    pub pods: HashMap<A, Pod>,
    /// By interface index.
    pub interfaces: HashMap<u32, Interface>,
    /// Prefix (length in bits, address) and route.
    pub routes: Vec<(u32, A, Route<A>)>,
    /// By underlay address.
    pub peers: HashMap<V6, A>,
    /// Flows without an answer yet.
    pub half_open: RefCell<Lru<FlowKey<A>, Flow<A>>>,
    /// Answered flows.
    pub established: RefCell<HashMap<FlowKey<A>, Flow<A>>>,
    /// How many answered flows' records fit.
    pub room: usize,
    /// See [`SocketKey`].
    pub sockets: RefCell<Vec<(SocketKey<A>, SocketPeer<A>)>>,
    /// What sockets of the host receive. One that anybody may send to has no source here.
    pub host: HashSet<FlowKey<A>>,
    /// See [`FragmentKey`].
    pub fragments: RefCell<HashMap<FragmentKey<A>, Fragments>>,
    /// See [`Tables::client`].
    pub clients: RefCell<HashMap<FlowKey<A>, A>>,
    /// By address of a pod of this node.
    pub subjects: HashMap<A, Subject>,
    /// By address.
    pub identities: HashMap<A, u32>,
    /// First address of a range, its length in bits, and the identity of who is in it.
    pub blocks: Vec<(A, u32, u32)>,
    /// See [`RulingKey`].
    pub rulings: HashMap<RulingKey, Ruling>,
    /// What rules decided, by their numbers.
    pub rule_counts: RefCell<HashMap<u32, RuleCount>>,
    /// See [`NameKey`].
    pub names: HashMap<NameKey, NameAddresses>,
    /// See [`Zone`].
    pub zone: Zone,
    /// Answers by their kind, see [`answered`].
    pub answers: RefCell<[u64; answered::TABLE as usize]>,
    /// How often [`Tables::may_complain`] still says yes.
    pub complaints: Cell<u32>,
    /// What [`Tables::random`] answers next; it counts on from there.
    pub dice: Cell<u32>,
    /// What [`Tables::now`] answers.
    pub now: Cell<u32>,
    /// What [`Tables::seconds`] answers.
    pub seconds: Cell<u32>,
    /// What [`Tables::is_resolver_alive`] answers.
    pub resolver: Cell<bool>,
}

impl<A: Address + Hash> Default for Memory<A> {
    fn default() -> Self {
        Self {
            config: Config { first_port: 1024, last_port: 29_999, ..Config::default() },
            frontends: HashMap::new(),
            endpoints: HashMap::new(),
            members: HashSet::new(),
            shares: HashMap::new(),
            loads: RefCell::default(),
            loads_room: 1 << 16,
            affinity: RefCell::default(),
            source_ranges: Vec::new(),
            turns: RefCell::default(),
            namespaces: HashMap::new(),
            pod_range: PodRange { network: A::UNSPECIFIED, mask: A::UNSPECIFIED },
            pods: HashMap::new(),
            interfaces: HashMap::new(),
            routes: Vec::new(),
            peers: HashMap::new(),
            half_open: RefCell::new(Lru::new(1 << 16)),
            established: RefCell::default(),
            room: 1 << 17,
            sockets: RefCell::default(),
            host: HashSet::new(),
            fragments: RefCell::default(),
            clients: RefCell::default(),
            subjects: HashMap::new(),
            identities: HashMap::new(),
            blocks: Vec::new(),
            rulings: HashMap::new(),
            rule_counts: RefCell::default(),
            names: HashMap::new(),
            zone: Zone::default(),
            answers: RefCell::default(),
            complaints: Cell::new(u32::MAX),
            dice: Cell::new(0),
            now: Cell::new(0),
            seconds: Cell::new(0),
            resolver: Cell::new(false),
        }
    }
}

impl<A: Address + Hash> Memory<A> {
    /// Adds a Service for internal and external clients; answers its internal key.
    pub fn service(
        &mut self,
        address: A,
        port: u16,
        protocol: u8,
        endpoints: &[(A, u16)],
    ) -> FrontendKey<A> {
        let service = u32::try_from(self.frontends.len()).unwrap_or(u32::MAX) + 1;
        let length = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        let frontend = Frontend {
            service,
            generation: 0,
            endpoints: length,
            flags: 0,
            port: service,
            affinity: 0,
        };
        let key = |scope| FrontendKey { address, port: U16::new(port), protocol, scope };
        self.frontends.insert(key(scope::INTERNAL), frontend);
        self.frontends.insert(key(scope::EXTERNAL), frontend);
        for (slot, (address, port)) in (0..).zip(endpoints) {
            let endpoint = Endpoint { address: *address, port: U16::new(*port), reserved: [0; 2] };
            self.endpoints.insert(EndpointKey { service, generation: 0, slot }, endpoint);
            self.members.insert(MemberKey { service: U32::new(service), endpoint });
        }
        key(scope::INTERNAL)
    }
}

impl<A: Address + Hash> Memory<A> {
    /// The socket of that number, in a pod.
    pub fn socket(&self, cookie: u64) -> MemorySocket<'_, A> {
        MemorySocket { cookie, netns: u64::MAX, sockets: &self.sockets }
    }

    /// The socket of that number, in the network namespace with that cookie.
    pub fn socket_in(&self, cookie: u64, netns: u64) -> MemorySocket<'_, A> {
        MemorySocket { netns, ..self.socket(cookie) }
    }

    /// The socket of that number, of a process of the node itself.
    pub fn socket_of_node(&self, cookie: u64) -> MemorySocket<'_, A> {
        MemorySocket { netns: self.config.netns.get(), ..self.socket(cookie) }
    }
}

impl<A: Address + Hash> Tables<A> for Memory<A> {
    fn config(&self) -> Option<Config> {
        Some(self.config)
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<Endpoint<A>> {
        self.endpoints.get(key).copied()
    }

    fn is_member(&self, key: &MemberKey<A>) -> bool {
        self.members.contains(key)
    }

    fn share(&self, key: &MemberKey<A>) -> Option<Share> {
        self.shares.get(key).copied()
    }

    fn load(&self, key: &LoadKey<A>) -> Option<u32> {
        let mut loads = self.loads.borrow_mut();
        let room = loads.len() < self.loads_room;
        if !room && !loads.contains_key(key) {
            return None;
        }
        Some(*loads.entry(*key).or_default())
    }

    fn add_load(&self, key: &LoadKey<A>) {
        if self.load(key).is_some() {
            *self.loads.borrow_mut().entry(*key).or_default() += 1;
        }
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity<A>> {
        self.affinity.borrow().get(key).copied()
    }

    fn note_affinity(&self, key: &AffinityKey<A>, affinity: &Affinity<A>) {
        self.affinity.borrow_mut().insert(*key, *affinity);
    }

    fn is_in_source_range(&self, port: u32, client: &A) -> bool {
        let mut ranges = self.source_ranges.iter();
        ranges.any(|(of, length, network)| *of == port && covers(*length, network, client))
    }

    fn turn(&self, service: u32) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(service).or_default();
        *turn = turn.wrapping_add(1);
        turn.wrapping_sub(1)
    }

    fn namespace(&self, cookie: u64) -> Option<Namespace> {
        self.namespaces.get(&cookie).copied()
    }

    fn pod_range(&self) -> PodRange<A> {
        self.pod_range
    }

    fn pod(&self, address: &A) -> Option<Pod> {
        self.pods.get(address).copied()
    }

    fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.interfaces.get(&ifindex).copied()
    }

    fn route(&self, destination: &A) -> Option<Route<A>> {
        let covering = |(length, prefix, _): &&(u32, A, _)| covers(*length, prefix, destination);
        let matching = self.routes.iter().filter(covering);
        matching.max_by_key(|(length, ..)| *length).map(|(.., route)| *route)
    }

    fn peer(&self, underlay: &V6) -> Option<A> {
        self.peers.get(underlay).copied()
    }

    fn see_flow(&self, stage: Stage, key: &FlowKey<A>, seen: impl FnMut(&mut Flow<A>)) -> bool {
        match stage {
            Stage::HalfOpen => self.half_open.borrow_mut().get_mut(key).map(seen).is_some(),
            Stage::Established => self.established.borrow_mut().get_mut(key).map(seen).is_some(),
        }
    }

    fn insert_flow(&self, stage: Stage, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        match stage {
            Stage::HalfOpen => self.half_open.borrow_mut().insert(*key, *flow),
            Stage::Established => {
                let mut flows = self.established.borrow_mut();
                let free = flows.len() < self.room && !flows.contains_key(key);
                if free {
                    flows.insert(*key, *flow);
                }
                free
            }
        }
    }

    fn promote_flow(&self, key: &FlowKey<A>) -> bool {
        let flow = self.half_open.borrow_mut().get_mut(key).copied();
        flow.is_some_and(|flow| self.insert_flow(Stage::Established, key, &flow))
    }

    fn remove_flow(&self, stage: Stage, key: &FlowKey<A>) {
        match stage {
            Stage::HalfOpen => self.half_open.borrow_mut().remove(key),
            Stage::Established => self.established.borrow_mut().remove(key),
        };
    }

    fn client(&self, packets: &FlowKey<A>) -> Option<A> {
        self.clients.borrow().get(packets).copied()
    }

    fn note_client(&self, packets: &FlowKey<A>, client: &A) {
        self.clients.borrow_mut().insert(*packets, *client);
    }

    fn fragments(&self, key: &FragmentKey<A>) -> Option<Fragments> {
        self.fragments.borrow().get(key).copied()
    }

    fn note_fragments(&self, key: &FragmentKey<A>, note: &Fragments) {
        self.fragments.borrow_mut().insert(*key, *note);
    }

    fn subject(&self, address: &A) -> Option<Subject> {
        self.subjects.get(address).copied()
    }

    fn identity(&self, address: &A) -> u32 {
        if let Some(identity) = self.identities.get(address) {
            return *identity;
        }
        let covering = |(network, length, _): &&(A, u32, u32)| covers(*length, network, address);
        let longest = self.blocks.iter().filter(covering).max_by_key(|(_, length, _)| *length);
        longest.map_or(0, |(.., identity)| *identity)
    }

    fn ruling(&self, key: &RulingKey) -> Option<Ruling> {
        self.rulings.get(key).copied()
    }

    fn count_rule(&self, rule: u32, denied: bool) {
        let mut counts = self.rule_counts.borrow_mut();
        let count = counts.entry(rule).or_default();
        if denied {
            count.denied += 1;
        } else {
            count.allowed += 1;
        }
    }

    fn zone(&self) -> Zone {
        self.zone
    }

    fn name_addresses(&self, name: &NameKey) -> Option<NameAddresses> {
        self.names.get(name).copied()
    }

    fn count_answer(&self, kind: u32) {
        if let Some(count) = self.answers.borrow_mut().get_mut(kind as usize) {
            *count += 1;
        }
    }

    fn seconds(&self) -> u32 {
        self.seconds.get()
    }

    fn is_resolver_alive(&self) -> bool {
        self.resolver.get()
    }

    fn may_complain(&self) -> bool {
        let left = self.complaints.get();
        self.complaints.set(left.saturating_sub(1));
        left > 0
    }

    fn random(&self) -> u32 {
        let dice = self.dice.get();
        self.dice.set(dice.wrapping_add(0x9e37_79b9));
        dice
    }

    fn now(&self) -> u32 {
        self.now.get()
    }
}

/// Whether the first bits of an address are a prefix's.
fn covers<A: Address>(length: u32, prefix: &A, address: &A) -> bool {
    let (prefix, address) = (prefix.as_bytes(), address.as_bytes());
    (0..length as usize).all(|bit| {
        let mask = 0x80 >> (bit % 8);
        prefix[bit / 8] & mask == address[bit / 8] & mask
    })
}

impl<A: Address + Hash> Host<A> for Memory<A> {
    fn receives(&self, packet: &FlowKey<A>) -> bool {
        let from_anybody = FlowKey { source: A::UNSPECIFIED, source_port: U16::ZERO, ..*packet };
        self.host.contains(packet) || self.host.contains(&from_anybody)
    }
}

/// A socket whose memory is [`Memory::sockets`].
#[derive(Clone, Copy, Debug)]
pub struct MemorySocket<'a, A: Address> {
    cookie: u64,
    netns: u64,
    sockets: &'a RefCell<Vec<(SocketKey<A>, SocketPeer<A>)>>,
}

impl<A: Address> MemorySocket<'_, A> {
    fn key(&self, endpoint: &SocketAddress<A>) -> SocketKey<A> {
        let SocketAddress { address, port, protocol } = *endpoint;
        SocketKey { cookie: U64::new(self.cookie), address, port, protocol, ..SocketKey::BLANK }
    }
}

impl<A: Address> Socket<A> for MemorySocket<'_, A> {
    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn netns(&self) -> u64 {
        self.netns
    }

    fn recall(&self, endpoint: &SocketAddress<A>) -> Option<SocketPeer<A>> {
        let key = self.key(endpoint);
        self.sockets.borrow().iter().find(|(known, _)| *known == key).map(|(_, peer)| *peer)
    }

    fn remember(&self, endpoint: &SocketAddress<A>, frontend: &SocketPeer<A>) {
        let key = self.key(endpoint);
        let mut sockets = self.sockets.borrow_mut();
        sockets.retain(|(known, _)| *known != key);
        sockets.push((key, *frontend));
    }
}

/// A table in which a new record takes the place of the least recently used one, as the kernel's
/// does (which is less exact about who that is).
#[derive(Clone, Debug)]
pub struct Lru<K, V> {
    /// Each with the turn of its last use.
    records: HashMap<K, (V, u64)>,
    room: usize,
    turn: u64,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    /// A table with room for so many records.
    pub fn new(room: usize) -> Self {
        Self { records: HashMap::new(), room, turn: 0 }
    }

    /// Every record, in no particular order; looking at them this way is no use of them.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.records.iter().map(|(key, (value, _))| (key, value))
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The record under the key, which is thereby used.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.turn += 1;
        let (value, used) = self.records.get_mut(key)?;
        *used = self.turn;
        Some(value)
    }

    /// Adds a record if there is none under the key; false if there is one, or no room at all.
    pub fn insert(&mut self, key: K, value: V) -> bool {
        if self.room == 0 || self.records.contains_key(&key) {
            return false;
        }
        if self.records.len() == self.room {
            let oldest = self.records.iter().min_by_key(|(_, (_, used))| *used);
            let oldest = oldest.map(|(key, _)| *key);
            oldest.and_then(|key| self.records.remove(&key));
        }
        self.turn += 1;
        self.records.insert(key, (value, self.turn));
        true
    }

    /// Forgets a record and answers what it was.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.records.remove(key).map(|(value, _)| value)
    }
}

/// A frame in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// The transport checksum is left to the device: the field holds the pseudo header's sum, not
    /// yet complemented, as Linux keeps it for `CHECKSUM_PARTIAL`.
    pub partial: bool,
    /// How many bytes can be reached; the rest lies in fragments of the buffer.
    pub linear: usize,
}

impl Frame {
    /// A frame that is all in one piece and carries a complete checksum.
    pub fn new(bytes: Vec<u8>) -> Self {
        let linear = bytes.len();
        Self { bytes, partial: false, linear }
    }
}

impl Packet for Frame {
    fn load<T: FromBytes + Unaligned>(&self, at: u32) -> Option<T> {
        let bytes = self.bytes.get(..self.linear)?.get(at as usize..)?;
        T::read_from_prefix(bytes).ok().map(|(value, _)| value)
    }

    fn store<T: IntoBytes + Immutable + Unaligned>(&mut self, at: u32, value: T) -> Option<()> {
        let bytes = self.bytes.get_mut(..self.linear)?.get_mut(at as usize..)?;
        value.write_to_prefix(bytes).ok()
    }

    fn adjust_transport_checksum(
        &mut self,
        at: u32,
        difference: Difference,
        covers: Covers,
    ) -> Option<()> {
        if !self.partial {
            return adjust_complete_checksum(self, at, difference, covers);
        }
        match covers {
            Covers::Segment { .. } => Some(()),
            Covers::PseudoHeader { .. } => {
                let field: [u8; 2] = self.load(at)?;
                let sum = adjust([!field[0], !field[1]], difference);
                self.store(at, [!sum[0], !sum[1]])
            }
        }
    }
}

impl Quotable for Frame {
    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn sum(&self, at: u32, length: u32) -> Option<Difference> {
        let bytes = self.bytes.get(at as usize..)?.get(..length as usize)?;
        let half = |pair: &[u8]| [pair[0], *pair.get(1).unwrap_or(&0)];
        Some(bytes.chunks(2).fold(Difference::default(), |sum, pair| sum.half_word(half(pair))))
    }

    fn precede<T: IntoBytes + Immutable>(&mut self, keep: u32, header: &T) -> Option<()> {
        let at = ETHERNET as usize;
        self.bytes.truncate(at + keep as usize);
        self.bytes.splice(at..at, header.as_bytes().iter().copied());
        self.linear = self.bytes.len();
        Some(())
    }

    fn truncate(&mut self, length: u32) -> Option<()> {
        self.bytes.truncate(length as usize);
        self.linear = self.linear.min(self.bytes.len());
        Some(())
    }

    fn read<const N: usize>(&self, at: u32, length: u32, to: &mut [u8; N]) -> Option<()> {
        let from = self.bytes.get(at as usize..)?.get(..length as usize)?;
        to.get_mut(..from.len())?.copy_from_slice(from);
        (length > 0).then_some(())
    }

    fn write<const N: usize>(&mut self, at: u32, length: u32, from: &[u8; N]) -> Option<()> {
        let from = from.get(..length as usize)?;
        self.bytes.get_mut(at as usize..)?.get_mut(..from.len())?.copy_from_slice(from);
        (length > 0).then_some(())
    }

    fn extend(&mut self, length: u32) -> Option<()> {
        self.bytes.resize(length as usize, 0);
        self.linear = self.bytes.len();
        Some(())
    }

    fn resize(&mut self, by: i32) -> Option<()> {
        let v6 = self.bytes.get(ETHERNET as usize)? >> 4 == 6;
        let at = ETHERNET as usize + if v6 { 40 } else { 20 };
        let length = by.unsigned_abs() as usize;
        if by > 0 {
            self.bytes.get(at..)?;
            self.bytes.splice(at..at, std::iter::repeat_n(0, length));
            self.linear += length;
        } else {
            self.bytes.get(at..at + length)?;
            self.bytes.drain(at..at + length);
            self.linear = self.linear.saturating_sub(length);
        }
        Some(())
    }

    fn overwrite<T: IntoBytes + Immutable>(&mut self, at: u32, value: &T) -> Option<()> {
        let place = self.bytes.get_mut(at as usize..)?;
        value.write_to_prefix(place).ok()
    }
}

#[cfg(test)]
mod tests {
    use fairway_abi::V4;
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_full_table_forgets_whom_it_saw_longest_ago() {
        let mut table = Lru::new(2);
        assert!(table.insert(1, 'a') && table.insert(2, 'b'));
        assert!(!table.insert(1, 'c'), "a record is never replaced");
        assert_eq!(table.get_mut(&1), Some(&mut 'a'));
        assert!(table.insert(3, 'd'));
        assert_eq!(table.get_mut(&2), None);
        let mut left: Vec<_> = table.iter().map(|(key, value)| (*key, *value)).collect();
        left.sort_unstable();
        assert_eq!(left, [(1, 'a'), (3, 'd')]);
        assert_eq!((table.remove(&1), table.remove(&3)), (Some('a'), Some('d')));
        assert!(table.is_empty());
    }

    #[test]
    fn a_table_without_room_takes_nothing() {
        assert!(!Lru::new(0).insert(1, 'a'));
    }

    #[test]
    fn the_most_specific_route_is_found() {
        let mut tables = Memory::<V4>::default();
        for (length, prefix) in [(8, [10, 0, 0, 0]), (0, [0; 4]), (23, [10, 1, 2, 0])] {
            let source = [0, 0, 0, u8::try_from(length).expect("at most 32")];
            let route = Route { source, ..Route::new_zeroed() };
            tables.routes.push((length, prefix, route));
        }
        for (destination, length) in
            [([10, 1, 3, 4], 23), ([10, 1, 4, 4], 8), ([11, 0, 0, 1], 0), ([10, 1, 2, 0], 23)]
        {
            assert_eq!(tables.route(&destination).map(|r| r.source[3]), Some(length));
        }
        tables.routes.remove(1);
        assert_eq!(tables.route(&[11, 0, 0, 1]), None);
    }

    #[test]
    fn only_what_is_linear_can_be_reached() {
        let mut frame = Frame { linear: 4, ..Frame::new(vec![1, 2, 3, 4, 5, 6]) };
        assert_eq!(frame.load::<[u8; 2]>(2), Some([3, 4]));
        assert_eq!(frame.load::<[u8; 2]>(3), None);
        assert_eq!(frame.load::<[u8; 2]>(u32::MAX), None);
        assert_eq!((frame.store(2, [7u8, 8]), frame.store(3, [9u8, 9])), (Some(()), None));
        assert_eq!(frame.bytes, [1, 2, 7, 8, 5, 6]);
    }
}
