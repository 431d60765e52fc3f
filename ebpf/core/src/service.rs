//! The choice of an endpoint.
//!
//! A list of endpoints may change while it is read: its length was taken from the frontend, and a slot
//! may be gone by the time it is looked up. Such a slot is looked for once more, with the length of
//! now. Only a list that shrinks twice within that time loses the packet, counted as
//! [`DropReason::NoLocalEndpoint`]; the sender's retransmission heals it.
//!
//! Where endpoints that are new start slowly, one that was picked is taken with a chance that grows with
//! its age; otherwise another pick is made. Each so gets its share times what has grown of it, and all
//! get the same if all are new. Nobody has to change anything as time goes by: the table says since
//! when an endpoint is there.
//!
//! Where the endpoint with the fewest connections is wanted, two slots are picked and their endpoints
//! compared ("power of two choices", Mitzenmacher 2001): who has much is passed over, and yet not all
//! processors and nodes run to the one that has least. Counts are counted up here, down where sockets
//! end, and set to what is true by the agent again and again; nothing has to be exact in between. Where
//! there is no room for a count, the first pick stands.

use fairway_abi::{
    Address, Affinity, AffinityKey, DropReason, Endpoint, EndpointKey, Frontend, FrontendKey,
    LoadKey, MemberKey, RESOLVER_PORT, Share, frontend,
};
use zerocopy::native_endian::U32;
use zerocopy::network_endian::U16;

use crate::Tables;

/// A new flow to a frontend, and the endpoint it gets. Too large to be handed on by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Request<A> {
    /// The frontend's key.
    pub key: FrontendKey<A>,
    /// What was found under it.
    pub frontend: Frontend,
    /// The client's address; unspecified where nothing depends on it, see [`Request::asks_who`].
    pub client: A,
    /// Uniform bits that the choice is made by, where it is not made by turns.
    pub bits: u32,
    /// The endpoint, once it was chosen.
    pub endpoint: Endpoint<A>,
}

impl<A: Address> Request<A> {
    /// Of nobody.
    pub(crate) const NONE: Self = Self {
        key: FrontendKey { address: A::UNSPECIFIED, port: U16::ZERO, protocol: 0, scope: 0 },
        frontend: Frontend {
            service: 0,
            generation: 0,
            endpoints: 0,
            flags: 0,
            port: 0,
            affinity: 0,
        },
        client: A::UNSPECIFIED,
        bits: 0,
        endpoint: Endpoint { address: A::UNSPECIFIED, port: U16::ZERO, reserved: [0; 2] },
    };

    /// Of a client that is not known yet.
    #[inline(always)]
    pub fn new(key: FrontendKey<A>, frontend: Frontend) -> Self {
        Self { key, frontend, ..Self::NONE }
    }

    /// Whether the choice depends on the client's address.
    #[inline(always)]
    pub fn asks_who(&self) -> bool {
        self.frontend.affinity != 0 || self.frontend.flags & frontend::SOURCE_RANGES != 0
    }
}

/// Picks the endpoint of a request.
///
/// # Errors
/// Why there is none: the client is not let in, or nothing serves it ([`is_told`]).
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn choose<A: Address, T: Tables<A>>(
    tables: &T,
    request: &mut Request<A>,
) -> Result<(), DropReason> {
    let Frontend { flags, endpoints, port, affinity, .. } = request.frontend;
    if flags & frontend::SOURCE_RANGES != 0 && !tables.is_in_source_range(port, &request.client) {
        return Err(DropReason::SourceRange);
    }
    if flags & frontend::RESOLVER != 0 && (endpoints == 0 || tables.is_resolver_alive()) {
        request.endpoint =
            Endpoint { address: A::RESOLVER, port: U16::new(RESOLVER_PORT), reserved: [0; 2] };
        return Ok(());
    }
    if endpoints == 0 {
        let elsewhere = flags & frontend::ELSEWHERE != 0;
        return Err(if elsewhere { DropReason::NoLocalEndpoint } else { DropReason::NoEndpoint });
    }
    if affinity == 0 {
        pick_twice(tables, request)?;
        count(tables, request);
        return Ok(());
    }
    let key = AffinityKey { port: U32::new(port), client: request.client };
    let known = tables.affinity(&key).filter(|known| stays(tables, &request.frontend, known));
    match known {
        Some(known) => request.endpoint = known.endpoint,
        None => pick_twice(tables, request)?,
    }
    // A busy client finds its record up to date; reading is far cheaper than writing again.
    let now = Affinity { endpoint: request.endpoint, since: U32::new(tables.seconds()) };
    if known != Some(now) {
        tables.note_affinity(&key, &now);
    }
    count(tables, request);
    Ok(())
}

/// Counts the connection that a request was about, where connections are counted.
#[inline(always)]
fn count<A: Address, T: Tables<A>>(tables: &T, request: &Request<A>) {
    if request.frontend.flags & frontend::LEAST != 0 {
        tables.add_load(&load_key(&request.endpoint, request.key.protocol));
    }
}

/// Under which the connections of an endpoint are counted.
#[inline(always)]
pub fn load_key<A: Address>(endpoint: &Endpoint<A>, protocol: u8) -> LoadKey<A> {
    LoadKey { address: endpoint.address, port: endpoint.port, protocol, reserved: 0 }
}

/// Whether a client that made its last connection as `known` says may still get that endpoint.
#[inline(always)]
pub fn stays<A: Address, T: Tables<A>>(
    tables: &T,
    frontend: &Frontend,
    known: &Affinity<A>,
) -> bool {
    let service = U32::new(frontend.service);
    tables.seconds().wrapping_sub(known.since.get()) <= frontend.affinity
        && tables.is_member(&MemberKey { service, endpoint: known.endpoint })
}

/// Whether the client is told that it got no endpoint, and for this reason.
#[inline(always)]
pub fn is_told(reason: DropReason) -> bool {
    matches!(reason, DropReason::NoEndpoint | DropReason::ClosedPort)
}

#[inline(always)]
fn pick_twice<A: Address, T: Tables<A>>(
    tables: &T,
    request: &mut Request<A>,
) -> Result<(), DropReason> {
    if !pick(tables, request) {
        request.frontend = tables.frontend(&request.key).ok_or(DropReason::NoLocalEndpoint)?;
        if !pick(tables, request) {
            return Err(DropReason::NoLocalEndpoint);
        }
    }
    Ok(())
}

/// False: the list is shorter than the request's frontend says.
#[inline(always)]
fn pick<A: Address, T: Tables<A>>(tables: &T, request: &mut Request<A>) -> bool {
    let Frontend { service, endpoints, flags, .. } = request.frontend;
    if endpoints == 0 {
        return false;
    }
    let slot = if flags & frontend::IN_TURN != 0 {
        tables.turn(service) % endpoints
    } else {
        scale(request.bits, endpoints)
    };
    let Some(endpoint) = in_slot(tables, &request.frontend, slot) else { return false };
    request.endpoint = endpoint;
    if flags & frontend::LEAST != 0 {
        prefer_lighter(tables, request, slot);
    } else if flags & frontend::GROWING != 0 {
        tables.prefer_grown(request);
    }
    true
}

/// Takes another slot's endpoint instead of the one in `slot`, if that has less to do.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn prefer_lighter<A: Address, T: Tables<A>>(tables: &T, request: &mut Request<A>, slot: u32) {
    let endpoints = request.frontend.endpoints;
    if endpoints < 2 {
        return;
    }
    // Any but the first.
    let mut other = slot + 1 + scale(next(request.bits), endpoints - 1);
    if other >= endpoints {
        other -= endpoints;
    }
    let Some(other) = in_slot(tables, &request.frontend, other) else { return };
    if other == request.endpoint {
        return; // it has several slots
    }
    let Some(one) = burden(tables, request, &request.endpoint) else { return };
    let Some(two) = burden(tables, request, &other) else { return };
    if two.is_less_than(&one) {
        request.endpoint = other;
    }
}

#[inline(always)]
fn burden<A: Address, T: Tables<A>>(
    tables: &T,
    request: &Request<A>,
    endpoint: &Endpoint<A>,
) -> Option<Burden> {
    let Frontend { service, flags, .. } = request.frontend;
    let load = tables.load(&load_key(endpoint, request.key.protocol))?;
    if flags & (frontend::GROWING | frontend::WEIGHED) == 0 {
        return Some(Burden { load, strength: WHOLE });
    }
    let share = tables.share(&MemberKey { service: U32::new(service), endpoint: *endpoint });
    Some(Burden { load, strength: strength(share, tables.seconds()) })
}

/// What an endpoint has to do, and what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burden {
    /// Connections.
    pub load: u32,
    /// See [`strength`].
    pub strength: u32,
}

impl Burden {
    /// Whether one more connection would be less to it than to `other`.
    #[inline(always)]
    pub fn is_less_than(&self, other: &Self) -> bool {
        let with_one_more = |burden: &Self| u64::from(burden.load) + 1;
        with_one_more(self) * u64::from(other.strength)
            < with_one_more(other) * u64::from(self.strength)
    }
}

/// What an endpoint with this share can do at that second: [`WHOLE`] times its weight, or as much of it as
/// has grown.
#[inline(always)]
pub fn strength(share: Option<Share>, seconds: u32) -> u32 {
    let Some(share) = share else { return WHOLE };
    portion(&share, seconds).wrapping_mul(share.weight.get().max(1))
}

/// How many picks are made for one new connection, at most. If all are of new endpoints, the last is taken.
pub const PICKS: u32 = 8;

/// One step of [`Tables::prefer_grown`]: picks anew in place of an endpoint that is new, by chance; true
/// if the one at hand is taken. That is at random also where slots take turns: who is passed over by all
/// turns of a round would else leave its connections to the same one always.
#[inline(always)]
pub fn pick_anew<A: Address, T: Tables<A>>(tables: &T, request: &mut Request<A>) -> bool {
    let service = U32::new(request.frontend.service);
    let share = tables.share(&MemberKey { service, endpoint: request.endpoint });
    let Some(share) = share else { return true };
    request.bits = next(request.bits);
    if scale(request.bits, WHOLE) < portion(&share, tables.seconds()) {
        return true;
    }
    request.bits = next(request.bits);
    let slot = scale(request.bits, request.frontend.endpoints);
    let Some(endpoint) = in_slot(tables, &request.frontend, slot) else { return true };
    request.endpoint = endpoint;
    false
}

#[inline(always)]
fn in_slot<A: Address, T: Tables<A>>(
    tables: &T,
    frontend: &Frontend,
    slot: u32,
) -> Option<Endpoint<A>> {
    let Frontend { service, generation, .. } = *frontend;
    tables.endpoint(&EndpointKey { service, generation, slot })
}

/// A share that does not grow any more, in the parts that [`portion`] counts.
pub const WHOLE: u32 = 256;

/// How many of [`WHOLE`] parts of its share an endpoint gets by now, at least one. `seconds` is what
/// [`Tables::seconds`] answers.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "no more than the whole")]
pub fn portion(share: &Share, seconds: u32) -> u32 {
    let (age, growth) = (seconds.wrapping_sub(share.since.get()), share.growth.get());
    if age >= growth {
        return WHOLE;
    }
    let parts = (u64::from(age) + 1) * u64::from(WHOLE) / u64::from(growth);
    (parts as u32).max(1)
}

/// More bits like these, as many times as one likes.
#[inline(always)]
fn next(bits: u32) -> u32 {
    mix(bits.wrapping_add(0x9e37_79b9))
}

/// Bits that are the same for all packets of a flow, on every node, and look random over flows (the
/// finalizer of MurmurHash3 over the words of addresses and ports).
#[inline(always)]
pub fn flow_bits<A: Address>(client: &A, client_port: U16, key: &FrontendKey<A>) -> u32 {
    let ports = u32::from(client_port.get()) << 16 | u32::from(key.port.get());
    let mut bits = mix(ports ^ u32::from(key.protocol).rotate_left(24));
    bits = mix(bits ^ fold(client));
    mix(bits ^ fold(&key.address).rotate_left(13))
}

#[inline(always)]
fn fold<A: Address>(address: &A) -> u32 {
    let bytes = address.as_bytes();
    let mut bits = 0;
    let mut at = 0;
    while at + 4 <= bytes.len() {
        let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        bits = mix(bits ^ u32::from_be_bytes(word));
        at += 4;
    }
    bits
}

#[inline(always)]
fn mix(mut bits: u32) -> u32 {
    bits ^= bits >> 16;
    bits = bits.wrapping_mul(0x85eb_ca6b);
    bits ^= bits >> 13;
    bits = bits.wrapping_mul(0xc2b2_ae35);
    bits ^ (bits >> 16)
}

/// Maps 32 uniform bits to `0..length` without a division (Lemire, "Fast random integer generation
/// in an interval"); the bias is below `length / 2^32`.
#[inline(always)]
fn scale(dice: u32, length: u32) -> u32 {
    ((u64::from(dice) * u64::from(length)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn selection_is_uniform_over_the_list() {
        let mut counts = [0u32; 3];
        for i in 0..30_000u32 {
            counts[scale(i.wrapping_mul(0x9e37_79b9), 3) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (9_800..10_200).contains(&n)), "{counts:?}");
    }

    const TCP: u8 = 6;

    /// Last octet of a client's address, and the bits it is given an endpoint by.
    type Client = (u8, u32);

    fn client(last: u8, bits: u32) -> Client {
        (last, bits)
    }

    /// The endpoint's last octet, or why there is none.
    fn ask(
        tables: &Memory<[u8; 4]>,
        key: &FrontendKey<[u8; 4]>,
        (last, bits): Client,
    ) -> Result<u8, DropReason> {
        let mut request = Request::new(*key, tables.frontends[key]);
        (request.client, request.bits) = ([192, 0, 2, last], bits);
        choose(tables, &mut request)?;
        Ok(request.endpoint.address[3])
    }

    /// Tables with a Service of three endpoints, whose frontends `change` may change.
    fn service(change: impl Fn(&mut Frontend)) -> (Memory<[u8; 4]>, FrontendKey<[u8; 4]>) {
        let mut tables = Memory::<[u8; 4]>::default();
        let endpoints = [2, 3, 4].map(|last| ([10, 244, 0, last], 8080));
        let key = tables.service([10, 96, 0, 1], 80, TCP, &endpoints);
        tables.frontends.values_mut().for_each(change);
        (tables, key)
    }

    #[test]
    fn a_list_that_shrank_is_read_again() {
        let mut tables = Memory::<[u8; 4]>::default();
        let key = tables.service([10, 96, 0, 1], 80, TCP, &[([10, 244, 0, 2], 8080)]);
        let stale = Frontend { endpoints: 9, ..tables.frontends[&key] };
        let mut request = Request { bits: u32::MAX, ..Request::new(key, stale) };
        choose(&tables, &mut request).expect("there is one");
        assert_eq!(request.endpoint.address, [10, 244, 0, 2]);
    }

    #[test]
    fn an_empty_list_is_refused_and_one_with_endpoints_elsewhere_dropped() {
        let (tables, key) = service(|frontend| frontend.endpoints = 0);
        assert_eq!(ask(&tables, &key, client(1, 7)), Err(DropReason::NoEndpoint));
        let (tables, key) = service(|frontend| {
            frontend.endpoints = 0;
            frontend.flags = frontend::ELSEWHERE;
        });
        assert_eq!(ask(&tables, &key, client(1, 7)), Err(DropReason::NoLocalEndpoint));
        assert!(is_told(DropReason::NoEndpoint) && !is_told(DropReason::NoLocalEndpoint));
    }

    #[test]
    fn only_clients_within_a_source_range_are_let_in() {
        let (mut tables, key) = service(|frontend| frontend.flags = frontend::SOURCE_RANGES);
        let port = tables.frontends[&key].port;
        tables.source_ranges.push((port, 31, [192, 0, 2, 8]));
        tables.source_ranges.push((port + 1, 0, [0; 4]));
        assert_eq!(ask(&tables, &key, client(7, 0)), Err(DropReason::SourceRange));
        assert!(ask(&tables, &key, client(8, 0)).is_ok());
        assert!(ask(&tables, &key, client(9, 0)).is_ok());
        assert_eq!(ask(&tables, &key, client(10, 0)), Err(DropReason::SourceRange));
    }

    #[test]
    fn a_client_stays_with_its_endpoint_until_it_made_no_connection_for_long() {
        let (tables, key) = service(|frontend| frontend.affinity = 100);
        assert_eq!(ask(&tables, &key, client(1, 0)), Ok(2));
        assert_eq!(
            ask(&tables, &key, client(2, u32::MAX)),
            Ok(4),
            "another client, another choice"
        );
        tables.seconds.set(90);
        assert_eq!(ask(&tables, &key, client(1, u32::MAX)), Ok(2));
        tables.seconds.set(190);
        assert_eq!(ask(&tables, &key, client(1, u32::MAX)), Ok(2), "the last one was 100 ago");
        tables.seconds.set(291);
        assert_eq!(ask(&tables, &key, client(1, u32::MAX)), Ok(4));
    }

    #[test]
    fn a_client_whose_endpoint_left_the_list_gets_another_and_stays_there() {
        let (mut tables, key) = service(|frontend| frontend.affinity = 100);
        assert_eq!(ask(&tables, &key, client(1, 0)), Ok(2));
        tables.members.retain(|member| member.endpoint.address[3] != 2);
        assert_eq!(ask(&tables, &key, client(1, u32::MAX)), Ok(4));
        assert_eq!(ask(&tables, &key, client(1, 0)), Ok(4));
    }

    #[test]
    fn frontends_of_one_port_share_what_clients_stay_with() {
        let (mut tables, key) = service(|frontend| frontend.affinity = 100);
        let (service, port) = (tables.frontends[&key].service, tables.frontends[&key].port);
        let other = FrontendKey { address: [203, 0, 113, 1], ..key };
        tables.frontends.insert(other, tables.frontends[&key]);
        // A list of its own, such as that of this node's endpoints, without the one at hand.
        let local = FrontendKey { address: [203, 0, 113, 2], ..key };
        let list = Frontend { service: service + 9, endpoints: 0, ..tables.frontends[&key] };
        assert_eq!(list.port, port);
        tables.frontends.insert(local, list);
        assert_eq!(ask(&tables, &key, client(1, u32::MAX)), Ok(4));
        assert_eq!(ask(&tables, &other, client(1, 0)), Ok(4));
        assert_eq!(ask(&tables, &local, client(1, 0)), Err(DropReason::NoEndpoint));
    }

    #[test]
    fn slots_take_turns() {
        let (tables, key) = service(|frontend| frontend.flags = frontend::IN_TURN);
        let turns: Vec<_> = (0..7).map(|_| ask(&tables, &key, client(1, 0))).collect();
        assert_eq!(turns, [2, 3, 4, 2, 3, 4, 2].map(Ok));
    }

    const HALF: Share = Share { since: U32::new(100), growth: U32::new(20), weight: U32::new(1) };

    #[test]
    fn a_share_grows_from_its_first_second_to_the_whole() {
        let at = |seconds| portion(&HALF, seconds);
        assert_eq!([100, 104, 109, 114, 119].map(at), [12, 64, 128, 192, WHOLE]);
        assert_eq!([120, 1_000_000].map(at), [WHOLE; 2]);
        let wrapping = Share { since: U32::new(u32::MAX), ..HALF };
        assert_eq!(portion(&wrapping, 8), 128, "seconds start anew some day");
        let slow = Share { growth: U32::new(u32::MAX), ..HALF };
        assert_eq!(portion(&slow, 101), 1, "never nothing");
        assert_eq!(portion(&Share { growth: U32::ZERO, ..HALF }, 100), WHOLE);
    }

    /// How many of 30,000 connections each of three endpoints gets, of which some began at these seconds.
    fn shares(flags: u32, since: &[(u8, u32)], now: u32) -> [u32; 3] {
        let (mut tables, key) = service(|frontend| frontend.flags = flags | frontend::GROWING);
        tables.seconds.set(now);
        let number = U32::new(tables.frontends[&key].service);
        for (last, since) in since {
            let address = [10, 244, 0, *last];
            let endpoint = Endpoint { address, port: U16::new(8080), reserved: [0; 2] };
            let share = Share { since: U32::new(*since), ..HALF };
            tables.shares.insert(MemberKey { service: number, endpoint }, share);
        }
        let mut counts = [0; 3];
        for number in 0..30_000_u32 {
            let last = ask(&tables, &key, client(1, number.wrapping_mul(0x9e37_79b9)));
            counts[usize::from(last.expect("an endpoint") - 2)] += 1;
        }
        counts
    }

    #[test]
    fn who_is_new_gets_a_part_of_its_share() {
        for flags in [0, frontend::IN_TURN] {
            // Half, whole, whole: a fifth for the first.
            let [new, one, other] = shares(flags, &[(2, 100)], 109);
            assert!((5_700..6_300).contains(&new), "{flags}: {new}");
            assert!(one.abs_diff(other) < 900, "{flags}: {one} {other}");
            let [new, ..] = shares(flags, &[(2, 100)], 120);
            assert!((9_600..10_400).contains(&new), "{flags}: grown, but {new}");
            // Where two are new, and have a tenth of their share: a sixth for both.
            let [one, other, old] = shares(flags, &[(2, 100), (3, 100)], 101);
            assert!(one + other < 5_700 && old > 24_300, "{flags}: {one} {other} {old}");
        }
    }

    #[test]
    fn where_all_are_new_all_get_the_same() {
        for flags in [0, frontend::IN_TURN] {
            for now in [100, 110] {
                let all = shares(flags, &[(2, 100), (3, 100), (4, 100)], now);
                assert!(
                    all.iter().all(|&n| (9_500..10_500).contains(&n)),
                    "{flags} {now}: {all:?}"
                );
            }
        }
    }

    /// A Service that counts connections, with these of its endpoints' before and weights.
    fn counting(before: [u32; 3], weights: [u32; 3]) -> (Memory<[u8; 4]>, FrontendKey<[u8; 4]>) {
        let (mut tables, key) =
            service(|frontend| frontend.flags = frontend::LEAST | frontend::WEIGHED);
        let service = U32::new(tables.frontends[&key].service);
        for (last, (load, weight)) in (2..).zip(before.into_iter().zip(weights)) {
            let address = [10, 244, 0, last];
            let endpoint = Endpoint { address, port: U16::new(8080), reserved: [0; 2] };
            tables.loads.borrow_mut().insert(load_key(&endpoint, TCP), load);
            let (since, growth) = (U32::ZERO, U32::ZERO);
            let share = Share { since, growth, weight: U32::new(weight) };
            tables.shares.insert(MemberKey { service, endpoint }, share);
        }
        (tables, key)
    }

    /// What each of them has after so many connections more.
    fn loads(tables: &Memory<[u8; 4]>, key: &FrontendKey<[u8; 4]>, more: u32) -> [u32; 3] {
        for number in 0..more {
            ask(tables, key, client(1, number.wrapping_mul(0x9e37_79b9))).expect("an endpoint");
        }
        let loads = tables.loads.borrow();
        [2, 3, 4].map(|last| {
            loads.iter().find(|(key, _)| key.address[3] == last).map_or(0, |(_, load)| *load)
        })
    }

    #[test]
    fn who_has_fewest_connections_gets_more() {
        let (tables, key) = counting([0; 3], [1; 3]);
        let all = loads(&tables, &key, 300);
        assert!(all.iter().all(|load| load.abs_diff(100) <= 3), "{all:?}");
        // The one that has too many gets none, as one of two is always another.
        let (tables, key) = counting([500, 0, 0], [1; 3]);
        let [busy, one, other] = loads(&tables, &key, 600);
        assert!(busy == 500 && one.abs_diff(other) < 20, "{busy} {one} {other}");
    }

    #[test]
    fn connections_count_by_weight() {
        let (tables, key) = counting([0; 3], [2, 1, 1]);
        let [heavy, one, other] = loads(&tables, &key, 400);
        assert!(heavy.abs_diff(200) < 8 && one.abs_diff(other) < 8, "{heavy} {one} {other}");
    }

    #[test]
    fn who_is_new_counts_as_weak() {
        let (mut tables, key) = counting([0, 30, 30], [1; 3]);
        tables.frontends.values_mut().for_each(|record| record.flags |= frontend::GROWING);
        let share = tables.shares.iter_mut().find(|(key, _)| key.endpoint.address[3] == 2);
        *share.expect("a share").1 = HALF;
        tables.seconds.set(101);
        // A tenth of others' strength: three to their thirty.
        let [new, ..] = loads(&tables, &key, 10);
        assert!((2..=4).contains(&new), "{new}");
        tables.seconds.set(109);
        let [new, one, other] = loads(&tables, &key, 30);
        assert!((15..=23).contains(&new), "half: {new} of {one} and {other}");
    }

    #[test]
    fn clients_that_stay_are_counted_where_they_stay() {
        let (mut tables, key) = counting([0; 3], [1; 3]);
        tables.frontends.values_mut().for_each(|record| record.affinity = 100);
        let mut all = loads(&tables, &key, 10);
        all.sort_unstable();
        assert_eq!(all, [0, 0, 10]);
    }

    #[test]
    fn where_nothing_can_be_counted_the_choice_is_random() {
        let (mut tables, key) = counting([0; 3], [1; 3]);
        tables.loads.borrow_mut().clear();
        tables.loads_room = 0;
        let mut counts = [0; 3];
        for number in 0..30_000_u32 {
            let last = ask(&tables, &key, client(1, number.wrapping_mul(0x9e37_79b9)));
            counts[usize::from(last.expect("an endpoint") - 2)] += 1;
        }
        assert!(counts.iter().all(|&n| (9_500..10_500).contains(&n)), "{counts:?}");
        assert!(tables.loads.borrow().is_empty());
    }

    #[test]
    fn the_bits_of_flows_are_uniform_and_depend_on_all_of_them() {
        let key = FrontendKey {
            address: [10, 96, 0, 1],
            port: U16::new(80),
            protocol: TCP,
            scope: fairway_abi::scope::EXTERNAL,
        };
        let mut counts = [0u32; 3];
        for port in 0..30_000u16 {
            let bits = flow_bits(&[192, 0, 2, 1], U16::new(port), &key);
            counts[scale(bits, 3) as usize] += 1;
        }
        assert!(counts.iter().all(|&n| (9_600..10_400).contains(&n)), "{counts:?}");
        let one = |client: [u8; 4], port, key: &_| flow_bits(&client, U16::new(port), key);
        let first = one([192, 0, 2, 1], 5, &key);
        assert_eq!(first, one([192, 0, 2, 1], 5, &key));
        assert_ne!(first, one([192, 0, 2, 2], 5, &key));
        assert_ne!(first, one([192, 0, 2, 1], 6, &key));
        assert_ne!(first, one([192, 0, 2, 1], 5, &FrontendKey { port: U16::new(81), ..key }));
        assert_ne!(first, one([192, 0, 2, 1], 5, &FrontendKey { protocol: 17, ..key }));
        let other = FrontendKey { address: [10, 96, 0, 2], ..key };
        assert_ne!(first, one([192, 0, 2, 1], 5, &other));
    }
}
