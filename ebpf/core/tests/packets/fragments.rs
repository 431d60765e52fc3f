//! Packets in pieces: the later fragments go where the first went, and what could pass for another first
//! is refused.

use fairway_abi::{DropReason, protocol};
use fairway_core::Verdict;
use fairway_core::fragment::LIFE;
use fairway_core::packet::tcp;

use crate::for_both_families;
use crate::frame::{Builder, End, Family, Transport, ends, fold, hop_limit, sum};
use crate::node::{
    CLIENT, NODE, Node, OTHER_POD, OUTSIDE, PEER_END, POD, REMOTE_POD, Sent, VIP, to_pod,
};

for_both_families![
    fragments_are_translated_as_their_first_is,
    answers_in_pieces_come_back,
    fragments_of_what_nothing_changes_come_in_any_order,
    fragments_of_sctp_are_not_translated,
    a_fragment_before_its_first_is_a_counted_drop,
    a_fragment_that_reaches_back_into_the_first_is_refused,
    a_first_fragment_without_all_of_its_ports_header_is_refused,
    a_note_is_good_for_a_while,
    another_packet_of_the_same_number_takes_the_notes_place,
    a_fragment_whose_flow_has_ended_opens_none,
    the_hosts_own_answers_are_translated_in_pieces,
];

/// Where the second fragment of a packet begins.
const SECOND: usize = 24;
/// Where the third does.
const THIRD: usize = 40;

/// A packet in three pieces.
pub(crate) fn pieces<A: Family>(whole: &Builder<A>) -> [Builder<A>; 3] {
    let whole = || whole.clone().payload(&[7; 60]);
    [
        whole().piece(0..SECOND, true),
        whole().piece(SECOND..THIRD, true),
        whole().piece(THIRD..usize::MAX, false),
    ]
}

type Enter<A> = fn(&Node<A>, &Builder<A>) -> Sent<A>;

/// Sends all pieces and asserts that they arrive as one packet between these ends.
#[track_caller]
fn go<A: Family>(
    node: &Node<A>,
    enter: Enter<A>,
    pieces: &[Builder<A>],
    verdict: Verdict,
    (from, to): (End<A>, End<A>),
) {
    let sent: Vec<Sent<A>> = pieces.iter().map(|piece| enter(node, piece)).collect();
    let mut segment = Vec::new();
    for piece in &sent {
        assert_eq!(piece.verdict, verdict);
        assert_eq!(hop_limit::<A>(&piece.frame), if verdict == Verdict::Pass { 64 } else { 63 });
        let (_, source, destination, _, at) = A::read(&piece.frame.bytes);
        assert_eq!((source, destination), (from.0, to.0));
        segment.extend(&piece.frame.bytes[at..]);
    }
    assert_eq!(ends::<A>(&sent[0].frame), (from, to));
    let (protocol, ..) = A::read(&sent[0].frame.bytes);
    let pseudo = A::pseudo(protocol, from.0, to.0, segment.len());
    assert_eq!(fold(pseudo + sum(&segment)), 0xffff, "the checksum of the whole");
}

fn at<A: Family>((address, port): ([u8; 4], u16)) -> End<A> {
    (A::at(address), port)
}

fn node<A: Family>() -> Node<A> {
    let mut node = Node::<A>::new();
    for protocol in [protocol::TCP, protocol::UDP] {
        node.service((VIP, 53), protocol, &[(OTHER_POD, 5353)]);
        node.service((NODE, 30_053), protocol, &[(OTHER_POD, 5353)]);
        node.service((NODE, 30_054), protocol, &[(REMOTE_POD, 5353)]);
    }
    node
}

fn fragments_are_translated_as_their_first_is<A: Family>() {
    let cases: [(Enter<A>, _, _, _); 4] = [
        (Node::pod_sends, (POD, 5000), (OUTSIDE, 53), Verdict::Forward),
        (Node::pod_sends, (POD, 5000), (VIP, 53), to_pod(OTHER_POD)),
        (Node::uplink_brings, (CLIENT, 5000), (NODE, 30_053), to_pod(OTHER_POD)),
        (Node::uplink_brings, (CLIENT, 5000), (NODE, 30_054), Verdict::Tunnel(PEER_END)),
    ];
    for (enter, from, to, verdict) in cases {
        for transport in [Transport::Udp, Transport::Tcp(tcp::ACK)] {
            let node = node::<A>();
            let [one, two, three] = pieces(&Builder::new(transport, at(from), at(to)));
            let first = enter(&node, &one);
            let seen = first.ends();
            assert_ne!(seen, (at(from), at(to)));
            // Once they have a first, the others may come in any order, and any number of times.
            for order in [[&two, &three], [&three, &two]] {
                for piece in order {
                    let sent = enter(&node, piece);
                    assert_eq!(sent.verdict, verdict);
                    let (_, source, destination, ..) = A::read(&sent.frame.bytes);
                    assert_eq!((source, destination), (seen.0.0, seen.1.0));
                }
            }
            go(&node, enter, &[one, two, three], verdict, seen);
        }
    }
    let node = node::<A>();
    let ping = pieces(&Builder::ping(A::at(POD), A::at(OUTSIDE), 5000));
    let seen = ((A::at(NODE), 5000), (A::at(OUTSIDE), 0));
    go(&node, Node::pod_sends, &ping, Verdict::Forward, seen);
}

fn answers_in_pieces_come_back<A: Family>() {
    let node = node::<A>();
    let (pod, outside) = (at((POD, 5000)), at((OUTSIDE, 53)));
    let asked = node.pod_sends(&Builder::udp(pod, outside));
    let answer = pieces(&asked.answer(Transport::Udp));
    go(&node, Node::uplink_brings, &answer, to_pod(POD), (outside, pod));

    let (client, frontend) = (at((CLIENT, 5000)), at((NODE, 30_053)));
    let asked = node.uplink_brings(&Builder::udp(client, frontend));
    let answer = pieces(&asked.answer(Transport::Udp));
    go(&node, Node::pod_sends, &answer, Verdict::Forward, (frontend, client));

    let asked = node.pod_sends(&Builder::ping(pod.0, outside.0, 5000));
    let answer = pieces(&asked.answer(Transport::EchoReply));
    go(&node, Node::uplink_brings, &answer, to_pod(POD), ((outside.0, 0), pod));
}

fn fragments_of_what_nothing_changes_come_in_any_order<A: Family>() {
    let cases: [(Enter<A>, _, _, _); 4] = [
        (Node::pod_sends, POD, OTHER_POD, to_pod(OTHER_POD)),
        (Node::pod_sends, POD, REMOTE_POD, Verdict::Tunnel(PEER_END)),
        (Node::overlay_brings, REMOTE_POD, POD, to_pod(POD)),
        (Node::uplink_brings, CLIENT, NODE, Verdict::Pass),
    ];
    for (enter, from, to, verdict) in cases {
        let node = node::<A>();
        for piece in pieces(&Builder::udp((A::at(from), 5000), (A::at(to), 80))).iter().rev() {
            let sent = enter(&node, piece);
            assert_eq!(sent.verdict, verdict);
            let length = sent.before.bytes.len();
            assert_eq!(sent.frame.bytes[length - 16..], sent.before.bytes[length - 16..]);
        }
        assert_eq!(node.flows(), (0, 0));
        assert!(node.tables.fragments.borrow().is_empty(), "none of them needs a note");
    }
}

fn fragments_of_sctp_are_not_translated<A: Family>() {
    let mut node = node::<A>();
    node.service((VIP, 53), protocol::SCTP, &[(OTHER_POD, 5353)]);
    let sctp = |to| pieces(&Builder::new(Transport::Sctp, at((POD, 5000)), at(to)));
    for to in [(OUTSIDE, 53), (VIP, 53)] {
        let [one, two, _] = sctp(to);
        node.pod_sends(&one).is_dropped(DropReason::UnsupportedProtocol);
        node.pod_sends(&two).is_dropped(DropReason::Fragment);
    }
    for piece in sctp((OTHER_POD, 53)) {
        assert_eq!(node.pod_sends(&piece).verdict, to_pod(OTHER_POD));
    }
    assert_eq!(node.flows(), (0, 0));
}

fn a_fragment_before_its_first_is_a_counted_drop<A: Family>() {
    let node = node::<A>();
    for to in [(OUTSIDE, 53), (VIP, 53)] {
        let [_, two, three] = pieces(&Builder::udp(at((POD, 5000)), at(to)));
        for piece in [two, three] {
            node.pod_sends(&piece).is_dropped(DropReason::Fragment);
        }
    }
    assert_eq!(node.flows(), (0, 0));
}

fn a_fragment_that_reaches_back_into_the_first_is_refused<A: Family>() {
    let node = node::<A>();
    let whole = Builder::udp(at((POD, 5000)), at((OUTSIDE, 53))).payload(&[7; 60]);
    node.pod_sends(&whole.clone().piece(0..SECOND, true));
    for begin in [8, 16] {
        for more in [true, false] {
            let piece = whole.clone().piece(begin..THIRD, more);
            node.pod_sends(&piece).is_dropped(DropReason::FragmentOverlap);
        }
    }
    assert_eq!(node.pod_sends(&whole.piece(SECOND..THIRD, true)).verdict, Verdict::Forward);
}

fn a_first_fragment_without_all_of_its_ports_header_is_refused<A: Family>() {
    for (transport, header) in [(Transport::Tcp(tcp::SYN), 20), (Transport::Udp, 8)] {
        for length in [4, 8, 16, 24] {
            let node = node::<A>();
            for to in [(OTHER_POD, 80), (OUTSIDE, 53)] {
                let whole = Builder::new(transport, at((POD, 5000)), at(to)).payload(&[7; 60]);
                let sent = node.pod_sends(&whole.piece(0..length, true));
                let tiny = sent.verdict == Verdict::Drop(DropReason::FragmentTiny);
                assert_eq!(tiny, length < header, "{transport:?} {length}");
            }
        }
    }
}

fn a_note_is_good_for_a_while<A: Family>() {
    for (age, good) in [(LIFE, true), (LIFE + 1, false)] {
        let node = node::<A>();
        node.tables.seconds.set(u32::MAX - 3);
        let [one, two, _] = pieces(&Builder::udp(at((POD, 5000)), at((OUTSIDE, 53))));
        node.pod_sends(&one);
        node.tables.seconds.set((u32::MAX - 3).wrapping_add(age));
        let sent = node.pod_sends(&two);
        assert_eq!(sent.verdict == Verdict::Forward, good, "{age}");
    }
}

fn another_packet_of_the_same_number_takes_the_notes_place<A: Family>() {
    let node = node::<A>();
    let outside = at((OUTSIDE, 53));
    for port in [5000, 5001] {
        let whole = pieces(&Builder::udp(at((POD, port)), outside));
        go(&node, Node::pod_sends, &whole, Verdict::Forward, ((A::at(NODE), port), outside));
    }
}

fn a_fragment_whose_flow_has_ended_opens_none<A: Family>() {
    let mut node = node::<A>();
    let [one, two, _] = pieces(&Builder::udp(at((POD, 5000)), at((OUTSIDE, 53))));
    node.pod_sends(&one);
    let notes = node.tables.fragments.clone();
    node.tables = self::node::<A>().tables;
    node.tables.fragments = notes;
    node.pod_sends(&two).is_dropped(DropReason::Fragment);
    assert_eq!(node.flows(), (0, 0));
}

fn the_hosts_own_answers_are_translated_in_pieces<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_053), protocol::UDP, &[(NODE, 5353)]);
    let (client, frontend) = (at((CLIENT, 5000)), at((NODE, 30_053)));
    let asked = node.uplink_brings(&Builder::udp(client, frontend));
    assert_eq!(asked.verdict, Verdict::Pass);
    let answer = pieces(&asked.answer(Transport::Udp));
    go(&node, Node::host_sends, &answer, Verdict::Pass, (frontend, client));
    // What else it sends is its own.
    for piece in pieces(&Builder::udp(at((NODE, 7)), client)) {
        node.host_sends(&piece).is_untouched();
    }
}
