//! Queries of the DNS: which are answered where a pod sends them, what the answers say, and what is left alone.

use fairway_abi::{
    DropReason, NameAddresses, NameKey, RuleCount, Zone, answered, frontend, peer, protocol, route,
};
use fairway_core::Verdict;
use proptest::prelude::*;

use crate::for_both_families;
use crate::frame::{Builder, End, Family, Transport, ends, hop_limit};
use crate::node::{NODE, Node, OTHER_POD, OVERLAY, PEER_UNDERLAY, POD, Sent, VIP, to_pod};
use crate::policy::{ANYBODY, FRIEND, allow, deny};
use crate::resolver::REMOTE_AGENT;

for_both_families![
    an_address_of_a_service_is_answered,
    a_family_that_the_service_lacks_is_answered_with_the_zone,
    edns_is_answered_with_edns,
    letters_come_back_as_they_were_sent,
    a_query_that_was_led_to_another_nodes_agent_is_answered,
    an_answer_is_counted,
    a_checksum_may_be_missing_or_left_to_the_device,
    what_is_not_plain_is_left_alone,
    a_packet_with_more_in_it_than_a_query_is_left_alone,
    without_a_zone_or_by_another_address_nothing_is_answered,
    a_pod_that_may_not_ask_is_not_answered,
    a_pod_that_may_ask_is_answered_and_its_rule_counted,
    to_policies_the_services_address_is_the_resolver,
    no_bytes_make_it_panic_or_change_what_is_not_answered,
];

const NAME: &[u8] = b"\x05redis\x07default\x03svc\x07cluster\x05local\0";
const ONLY_V4: &[u8] = b"\x03web\x07default\x03svc\x07cluster\x05local\0";
const ONLY_V6: &[u8] = b"\x04web6\x07default\x03svc\x07cluster\x05local\0";
const ADDRESS4: [u8; 4] = [10, 96, 7, 7];
const ADDRESS6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7];
const SERIAL: u32 = 0x0102_0304;
const A: u16 = 1;
const AAAA: u16 = 28;

impl<A: Family> Node<A> {
    /// A node that answers.
    fn answering() -> Self {
        let mut node = Self::new();
        node.answer_queries();
        node
    }

    fn answer_queries(&mut self) {
        for (name, address4, address6) in
            [(NAME, ADDRESS4, ADDRESS6), (ONLY_V4, ADDRESS4, [0; 16]), (ONLY_V6, [0; 4], ADDRESS6)]
        {
            let name = NameKey::new(name).expect("a short name");
            self.tables.names.insert(name, NameAddresses { address4, address6 });
        }
        self.tables.zone = Zone { length: 15, ttl: 5, serial: SERIAL };
        self.service((VIP, 53), protocol::UDP, &[]);
        for frontend in self.tables.frontends.values_mut() {
            frontend.flags |= frontend::RESOLVER;
        }
        self.route([0; 4], 32, route::HOST, None, [0; 16]);
        self.tables.routes.last_mut().expect("a route").1 = A::RESOLVER;
    }
}

/// A message: flags, numbers of records, and what follows.
fn message(flags: u16, counts: [u16; 4], rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    bytes.extend(rest.concat());
    bytes
}

fn question(name: &[u8], kind: u16) -> Vec<u8> {
    [name, &kind.to_be_bytes(), &[0, 1]].concat()
}

fn query(name: &[u8], kind: u16) -> Vec<u8> {
    message(0x0100, [1, 0, 0, 0], &[&question(name, kind)])
}

fn address(ip: &[u8]) -> Vec<u8> {
    let (kind, length) = if ip.len() == 4 { (1, 4) } else { (28, 16) };
    [&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 5, 0, length], ip].concat()
}

/// The zone's record behind a name within it.
fn soa(name: &[u8]) -> Vec<u8> {
    let zone = [0xc0, u8::try_from(12 + name.len() - 15).expect("a short name")];
    let numbers = [SERIAL, 7200, 1800, 86_400, 5].map(u32::to_be_bytes);
    let data = [b"\x02ns\x03dns", &zone[..], b"\x0ahostmaster", &zone, numbers.as_flattened()];
    let data = data.concat();
    let length = u8::try_from(data.len()).expect("a short record");
    [&zone[..], &[0, 6, 0, 1, 0, 0, 0, 5, 0, length], &data].concat()
}

/// EDNS of a client, with options.
fn edns(size: u16, dnssec: bool, options: &[u8]) -> Vec<u8> {
    let [s0, s1] = size.to_be_bytes();
    let length = u8::try_from(options.len()).expect("few options");
    let dnssec = if dnssec { 0x80 } else { 0 };
    [&[0, 0, 41, s0, s1, 0, 0, dnssec, 0, 0, length], options].concat()
}

fn asks<A: Family>(query: &[u8]) -> Builder<A> {
    Builder::udp((A::at(POD), 40_000), (A::RESOLVER, 53)).payload(query)
}

/// Asserts that a pod was answered so.
#[track_caller]
fn assert_answered<A: Family>(sent: &Sent<A>, answer: &[u8]) {
    let (source, destination): (End<A>, End<A>) = ends(&sent.before);
    sent.goes(to_pod(POD), destination, source);
    let (.., transport) = A::read(&sent.frame.bytes);
    let bytes = &sent.frame.bytes[transport..];
    assert_eq!(&bytes[8..], answer);
    assert_eq!(usize::from(u16::from_be_bytes([bytes[4], bytes[5]])), bytes.len());
    let whole = u32::try_from(sent.frame.bytes.len()).expect("a short frame") - 14;
    assert_eq!(A::network_length(&sent.frame), Some(whole));
    assert_eq!(hop_limit::<A>(&sent.frame), 64);
}

fn an_address_of_a_service_is_answered<F: Family>() {
    let node = Node::<F>::answering();
    for (kind, ip) in [(A, &ADDRESS4[..]), (AAAA, &ADDRESS6)] {
        let sent = node.pod_sends(&asks(&query(NAME, kind)).hop_limit(1));
        let rest = [&question(NAME, kind)[..], &address(ip)];
        assert_answered(&sent, &message(0x8580, [1, 1, 0, 0], &rest));
    }
}

fn a_family_that_the_service_lacks_is_answered_with_the_zone<F: Family>() {
    let node = Node::<F>::answering();
    for (name, kind) in [(ONLY_V4, AAAA), (ONLY_V6, A)] {
        let sent = node.pod_sends(&asks(&query(name, kind)));
        let rest = [&question(name, kind)[..], &soa(name)];
        assert_answered(&sent, &message(0x8580, [1, 0, 1, 0], &rest));
    }
}

fn edns_is_answered_with_edns<F: Family>() {
    let node = Node::<F>::answering();
    let cookie = [&[0, 10, 0, 8][..], b"a cookie"].concat();
    for name in [NAME, ONLY_V4] {
        for (size, dnssec, options) in
            [(4096, true, &cookie[..]), (1232, false, &[]), (0, false, &[9, 9, 0, 1, 7])]
        {
            let asked = question(name, A);
            let opt = edns(size, dnssec, options);
            let query = message(0x0110, [1, 0, 0, 1], &[&asked, &opt]);
            let rest = [&asked[..], &address(&ADDRESS4), &edns(1232, dnssec, &[])];
            let sent = node.pod_sends(&asks(&query));
            assert_answered(&sent, &message(0x8590, [1, 1, 0, 1], &rest));
        }
    }
    // What takes the place of the options has to be longer than they are.
    let long = message(0, [1, 0, 0, 1], &[&question(NAME, A), &edns(512, false, &[7; 16])]);
    node.pod_sends(&asks(&long)).is_untouched();
    let absent = message(0, [1, 0, 0, 1], &[&question(ONLY_V4, AAAA), &edns(512, true, &[7; 53])]);
    let rest = [&question(ONLY_V4, AAAA)[..], &soa(ONLY_V4), &edns(1232, true, &[])];
    let sent = node.pod_sends(&asks(&absent));
    assert_answered(&sent, &message(0x8480, [1, 0, 1, 1], &rest));
}

fn letters_come_back_as_they_were_sent<F: Family>() {
    let name = b"\x05rEDis\x07Default\x03SVC\x07cluster\x05lOcAl\0";
    let sent = Node::<F>::answering().pod_sends(&asks(&query(name, A)));
    let rest = [&question(name, A)[..], &address(&ADDRESS4)];
    assert_answered(&sent, &message(0x8580, [1, 1, 0, 0], &rest));
}

fn an_answer_is_counted<F: Family>() {
    let node = Node::<F>::answering();
    for (name, kind) in [(NAME, A), (NAME, A), (NAME, AAAA), (ONLY_V4, AAAA), (ONLY_V6, A)] {
        node.pod_sends(&asks(&query(name, kind)));
    }
    let counts = node.tables.answers.into_inner();
    let by = if size_of::<F>() == 16 { answered::BY_V6 } else { 0 };
    let count = |kind: u32| counts[(kind + by) as usize];
    let kinds = [0, answered::AAAA, answered::NO_DATA, answered::NO_DATA + answered::AAAA];
    assert_eq!(kinds.map(count), [2, 1, 1, 1]);
    assert_eq!(counts.iter().sum::<u64>(), 5);
}

fn a_checksum_may_be_missing_or_left_to_the_device<F: Family>() {
    let node = Node::<F>::answering();
    for name in [NAME, ONLY_V4] {
        let query = query(name, A);
        let rest = [&question(name, A)[..], &address(&ADDRESS4)];
        let answer = message(0x8580, [1, 1, 0, 0], &rest);
        assert_answered(&node.pod_sends(&asks(&query).partial(true)), &answer);
        let ends = ((F::at(POD), 40_000), (F::RESOLVER, 53));
        let unchecked = Builder::new(Transport::UdpUnchecked, ends.0, ends.1).payload(&query);
        let sent = node.pod_sends(&unchecked);
        assert_answered(&sent, &answer);
        assert_eq!(crate::frame::checksum::<F>(&sent.frame), 0, "as it came");
    }
}

fn what_is_not_plain_is_left_alone<F: Family>() {
    let node = Node::<F>::answering();
    let asked = question(NAME, A);
    let long = [&[63][..], &[b'x'; 63], &[63], &[b'x'; 63], &NAME[7..]].concat();
    for (what, query) in [
        ("a name that is not there", query(b"\x03foo\x07default\x03svc\x07cluster\x05local\0", A)),
        (
            "a name of a search list",
            query(b"\x07example\x03com\x07default\x03svc\x07cluster\x05local\0", A),
        ),
        ("a name outside", query(b"\x07example\x03com\0", A)),
        ("the root", query(b"\0", A)),
        ("a name of no table", query(&long, A)),
        ("another type", query(NAME, 33)),
        ("all types", query(NAME, 255)),
        ("another class", message(0x0100, [1, 0, 0, 0], &[NAME, &[0, 1, 0, 3]])),
        ("an answer", message(0x8100, [1, 0, 0, 0], &[&asked])),
        ("a notice", message(0x2100, [1, 0, 0, 0], &[&asked])),
        ("two questions", message(0x0100, [2, 0, 0, 0], &[&asked, &asked])),
        ("no question", message(0x0100, [0, 0, 0, 0], &[])),
        ("a pointer", message(0x0100, [1, 0, 0, 0], &[b"\xc0\x0c\0\x01\0\x01"])),
        (
            "EDNS of the future",
            message(0, [1, 0, 0, 1], &[&asked, &[0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0]]),
        ),
        ("bytes behind it", message(0, [1, 0, 0, 0], &[&asked, b"x"])),
        ("half of a question", query(NAME, A)[..30].to_vec()),
        ("half of a header", query(NAME, A)[..7].to_vec()),
        ("nothing", Vec::new()),
        ("much", vec![0; 600]),
    ] {
        let sent = node.pod_sends(&asks(&query));
        assert_eq!((sent.verdict, &sent.frame), (Verdict::Pass, &sent.before), "{what}");
    }
    let query = query(NAME, A);
    let from = (F::at(POD), 40_000);
    for (what, packet) in [
        ("another port", Builder::udp(from, (F::RESOLVER, 5353))),
        ("TCP", Builder::tcp(0x18, from, (F::RESOLVER, 53))),
        ("the first of more", Builder::udp(from, (F::RESOLVER, 53)).fragment(0, true)),
    ] {
        let sent = node.pod_sends(&packet.payload(&query));
        assert_eq!((sent.verdict, &sent.frame), (Verdict::Pass, &sent.before), "{what}");
    }
    assert_eq!(node.tables.answers.into_inner(), [0; answered::TABLE as usize]);
}

fn a_packet_with_more_in_it_than_a_query_is_left_alone<F: Family>() {
    let node = Node::<F>::answering();
    let query = query(NAME, A);
    let mut trailer = asks::<F>(&query).frame();
    trailer.bytes.extend([0; 4]);
    trailer.linear += 4;
    let mut lies = asks::<F>(&query).frame();
    let (.., transport) = F::read(&lies.bytes);
    lies.bytes[transport + 5] -= 1;
    for frame in [trailer, lies] {
        let mut after = frame.clone();
        let verdict = fairway_core::path::from_pod(&mut after, &node.tables, 12);
        assert_eq!((verdict, after), (Verdict::Pass, frame));
    }
    let option = if size_of::<F>() == 4 { (1, vec![1; 2]) } else { (60, vec![0; 6]) };
    node.pod_sends(&asks(&query).option(option.0, &option.1)).is_untouched();
}

fn without_a_zone_or_by_another_address_nothing_is_answered<F: Family>() {
    let node = Node::<F>::answering();
    let ends = ((F::at(POD), 40_000), (F::at(NODE), 53));
    node.pod_sends(&Builder::udp(ends.0, ends.1).payload(&query(NAME, A))).is_untouched();
    let mut node = Node::<F>::answering();
    node.tables.zone = Zone::default();
    node.pod_sends(&asks(&query(NAME, A))).is_untouched();
}

fn a_query_that_was_led_to_another_nodes_agent_is_answered<F: Family>() {
    let mut node = Node::<F>::answering();
    node.route(REMOTE_AGENT, 32, route::TUNNEL, Some(OVERLAY), PEER_UNDERLAY);
    let query = query(NAME, A);
    let asks = Builder::udp((F::at(POD), 40_000), (F::at(REMOTE_AGENT), 53)).payload(&query);
    node.pod_sends(&asks);
    assert_eq!(node.tables.answers.borrow().iter().sum::<u64>(), 0, "it is anybody's");
    node.tables.routes.last_mut().expect("a route").2.peer.flags[0] |= peer::RESOLVER;
    let rest = [&question(NAME, A)[..], &address(&ADDRESS4)];
    assert_answered(&node.pod_sends(&asks), &message(0x8580, [1, 1, 0, 0], &rest));
}

const EGRESS: u32 = 9;

/// A node where what [`POD`] sends is restricted, to the node itself, too.
fn policed<F: Family>() -> Node<F> {
    let mut node = Node::<F>::policed();
    node.answer_queries();
    node.tables.config.flags |= fairway_abi::config::POLICED_TO_NODE;
    node.restrict(POD, 0, EGRESS);
    node
}

fn a_pod_that_may_not_ask_is_not_answered<F: Family>() {
    let mut node = policed::<F>();
    node.rule(EGRESS, ANYBODY, deny(3));
    node.tables.identities.insert(F::at(OTHER_POD), FRIEND);
    node.rule(EGRESS, FRIEND, allow(4));
    node.pod_sends(&asks(&query(NAME, A))).is_dropped(DropReason::PolicyEgress);
    let counts = node.tables.rule_counts.borrow();
    assert_eq!(counts.get(&3), Some(&RuleCount { allowed: 0, denied: 1 }), "once");
    assert_eq!(node.tables.answers.borrow().iter().sum::<u64>(), 0);
}

fn a_pod_that_may_ask_is_answered_and_its_rule_counted<F: Family>() {
    let mut node = policed::<F>();
    node.rule(EGRESS, ANYBODY, deny(3));
    node.tables.identities.insert(F::RESOLVER, FRIEND);
    node.rule(EGRESS, FRIEND, allow(4));
    let sent = node.pod_sends(&asks(&query(NAME, A)));
    let rest = [&question(NAME, A)[..], &address(&ADDRESS4)];
    assert_answered(&sent, &message(0x8580, [1, 1, 0, 0], &rest));
    let counts = node.tables.rule_counts.borrow();
    assert_eq!(counts.get(&4), Some(&RuleCount { allowed: 1, denied: 0 }));
    assert_eq!(node.flows(), (0, 0), "an answered query leaves no record");
}

fn to_policies_the_services_address_is_the_resolver<F: Family>() {
    let mut node = policed::<F>();
    node.rule(EGRESS, ANYBODY, deny(3));
    node.tables.identities.insert(F::RESOLVER, FRIEND);
    node.rule(EGRESS, FRIEND, allow(4));
    let packet = Builder::udp((F::at(POD), 40_000), (F::at(VIP), 53)).payload(&query(NAME, A));
    let rest = [&question(NAME, A)[..], &address(&ADDRESS4)];
    assert_answered(&node.pod_sends(&packet), &message(0x8580, [1, 1, 0, 0], &rest));
    node.tables.identities.clear();
    node.pod_sends(&packet).is_dropped(DropReason::PolicyEgress);
}

/// Queries that are good but for a few bytes, and their parts in any order.
fn odd_query() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(message(0x0100, [1, 0, 0, 0], &[])),
        Just(message(0x0100, [1, 0, 0, 1], &[])),
        Just(question(NAME, A)),
        Just(question(ONLY_V6, AAAA)),
        Just(edns(1232, false, b"cookie")),
        prop::collection::vec(any::<u8>(), 0..70),
    ];
    let parts = prop_oneof![
        prop::collection::vec(part, 0..4).prop_map(|parts| parts.concat()),
        prop::sample::select(vec![query(NAME, A), query(NAME, AAAA), query(ONLY_V6, A)]),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (parts, changes).prop_map(|(mut bytes, changes)| {
        for (at, byte) in changes.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        bytes
    })
}

fn no_bytes_make_it_panic_or_change_what_is_not_answered<F: Family>() {
    let node = Node::<F>::answering();
    let mut silent = Node::<F>::answering();
    silent.tables.names.clear();
    proptest!(|(bytes in odd_query(), partial in any::<bool>())| {
        let packet = asks::<F>(&bytes).partial(partial);
        let sent = node.pod_sends(&packet);
        if sent.verdict == to_pod(POD) {
            let (.., transport) = F::read(&sent.frame.bytes);
            let answer = &sent.frame.bytes[transport + 8..];
            // The question comes back as it was.
            let end = 12 + bytes[12..].iter().position(|byte| *byte == 0).expect("a name") + 5;
            prop_assert_eq!(&answer[12..end], &bytes[12..end]);
            prop_assert_eq!(&answer[..2], &bytes[..2]);
        } else {
            let other = silent.pod_sends(&packet);
            prop_assert_eq!((sent.verdict, sent.frame), (other.verdict, other.frame));
        }
    });
}
