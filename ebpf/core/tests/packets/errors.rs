//! ICMP errors about packets that were translated: they reach whoever sent the packet, and quote it
//! as it was sent.

use fairway_abi::{DropReason, protocol};
use fairway_core::memory::Frame;
use fairway_core::packet::tcp;
use fairway_core::{Verdict, path};

use crate::for_both_families;
use crate::frame::{Builder, Family, Transport, assert_checksums, ends, hop_limit};
use crate::node::{
    CLIENT, NODE, Node, OTHER_POD, OUTSIDE, OVERLAY, PEER_END, POD, REMOTE_POD, Sent, VIP, to_pod,
};

for_both_families![
    an_error_about_a_masqueraded_packet_reaches_its_pod,
    an_error_about_an_answer_reaches_the_pod_that_answered,
    a_remote_endpoint_complains_to_the_client_as_the_frontend,
    a_pod_complains_to_the_client_as_the_service,
    the_hosts_own_error_names_the_frontend,
    an_error_about_a_ping_bears_its_identifier,
    eight_bytes_of_the_transport_header_are_enough,
    an_error_that_quotes_no_flow_of_ours_passes_as_it_is,
    a_pod_complains_only_about_what_it_received,
    an_error_does_not_keep_a_flow_alive,
    an_errors_own_hop_limit_counts,
    a_quote_that_ends_early_is_no_quote,
    what_follows_an_error_on_its_link_is_not_quoted,
    an_error_in_pieces_passes_as_it_is,
];

/// A router on the way.
pub(crate) const ROUTER: [u8; 4] = [198, 51, 100, 254];

/// The kinds of packets that have ports, and the shape of an answer.
const KINDS: [Transport; 3] = [Transport::Tcp(tcp::SYN), Transport::Udp, Transport::UdpUnchecked];

/// An error from `complainant` to the sender of `frame`, which it quotes in `length` bytes.
pub(crate) fn complaint<A: Family>(complainant: A, frame: &Frame, length: usize) -> Builder<A> {
    let quote = &frame.bytes[14..];
    let ((to, _), _) = ends::<A>(frame);
    Builder::new(Transport::Icmp(A::UNREACHABLE), (complainant, 0), (to, 0))
        .payload(&quote[..length.min(quote.len())])
}

pub(crate) const WHOLE: usize = usize::MAX;

/// The packet that an error quotes.
fn quote<A: Family>(frame: &Frame) -> Frame {
    let (.., at) = A::read(&frame.bytes);
    Frame::new([&[0; 14], &frame.bytes[at + 8..]].concat())
}

/// Asserts where an error goes, from whom, and that it quotes the packet as it was sent.
#[track_caller]
pub(crate) fn tells<A: Family>(error: &Sent<A>, verdict: Verdict, from: A, sent: &Frame) {
    let ((to, _), _) = ends::<A>(sent);
    error.goes(verdict, (from, 0), (to, 0));
    let quoted = quote::<A>(&error.frame);
    assert_eq!(ends::<A>(&quoted), ends::<A>(sent));
    assert_checksums::<A>(&quoted);
}

fn an_error_about_a_masqueraded_packet_reaches_its_pod<A: Family>() {
    for transport in KINDS {
        let node = Node::<A>::new();
        let asked =
            node.pod_sends(&Builder::new(transport, (A::at(POD), 40_000), (A::at(OUTSIDE), 443)));
        assert_eq!(asked.verdict, Verdict::Forward);
        assert_ne!(ends::<A>(&asked.frame), ends::<A>(&asked.before));
        for complainant in [ROUTER, OUTSIDE].map(A::at) {
            let error = node.uplink_brings(&complaint(complainant, &asked.frame, WHOLE));
            tells(&error, to_pod(POD), complainant, &asked.before);
            assert_eq!(hop_limit::<A>(&error.frame), 63);
        }
        // An answer moves the flow to where it stays.
        node.uplink_brings(&asked.answer(transport));
        let error = node.uplink_brings(&complaint(A::at(ROUTER), &asked.frame, WHOLE));
        tells(&error, to_pod(POD), A::at(ROUTER), &asked.before);
    }
}

fn an_error_about_an_answer_reaches_the_pod_that_answered<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_080), protocol::TCP, &[(POD, 8080)]);
    let asked =
        node.uplink_brings(&Builder::tcp(tcp::SYN, (A::at(CLIENT), 40_000), (A::at(NODE), 30_080)));
    let answered = node.pod_sends(&asked.answer(Transport::Tcp(tcp::SYN | tcp::ACK)));
    answered.goes(Verdict::Forward, (A::at(NODE), 30_080), (A::at(CLIENT), 40_000));
    let error = node.uplink_brings(&complaint(A::at(ROUTER), &answered.frame, WHOLE));
    tells(&error, to_pod(POD), A::at(ROUTER), &answered.before);
}

fn a_remote_endpoint_complains_to_the_client_as_the_frontend<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_053), protocol::UDP, &[(REMOTE_POD, 5353)]);
    let asked = node.uplink_brings(&Builder::udp((A::at(CLIENT), 40_000), (A::at(NODE), 30_053)));
    assert_eq!(asked.verdict, Verdict::Tunnel(PEER_END));
    assert_eq!(asked.ends().0.0, A::at(OVERLAY));
    // The endpoint, and a router behind it that the client has never heard of.
    for complainant in [REMOTE_POD, [10, 244, 2, 1]].map(A::at) {
        let error = node.overlay_brings(&complaint(complainant, &asked.frame, WHOLE));
        tells(&error, Verdict::Forward, A::at(NODE), &asked.before);
    }
}

fn a_pod_complains_to_the_client_as_the_service<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((VIP, 53), protocol::UDP, &[(OTHER_POD, 5353)]);
    for (client, ask) in [
        (POD, Node::pod_sends as fn(&Node<A>, &Builder<A>) -> Sent<A>),
        (REMOTE_POD, Node::overlay_brings),
    ] {
        let asked = ask(&node, &Builder::udp((A::at(client), 40_000), (A::at(VIP), 53)));
        assert_eq!(asked.verdict, to_pod(OTHER_POD));
        let error = node.pod_sends(&complaint(A::at(OTHER_POD), &asked.frame, WHOLE));
        let way = if client == POD { to_pod(POD) } else { Verdict::Tunnel(PEER_END) };
        tells(&error, way, A::at(VIP), &asked.before);
    }
}

fn the_hosts_own_error_names_the_frontend<A: Family>() {
    let mut node = Node::<A>::new();
    node.service((NODE, 30_053), protocol::UDP, &[(NODE, 5353)]);
    let asked = node.uplink_brings(&Builder::udp((A::at(CLIENT), 40_000), (A::at(NODE), 30_053)));
    assert_eq!(asked.verdict, Verdict::Pass);
    let error = node.host_sends(&complaint(A::at(NODE), &asked.frame, WHOLE));
    tells(&error, Verdict::Pass, A::at(NODE), &asked.before);
    assert_eq!(hop_limit::<A>(&error.frame), 64, "it is on its way already");
}

fn an_error_about_a_ping_bears_its_identifier<A: Family>() {
    let node = Node::<A>::new();
    // An identifier that has to be replaced.
    let asked = node.pod_sends(&Builder::ping(A::at(POD), A::at(OUTSIDE), 40_000));
    assert_ne!(asked.ends().0.1, 40_000);
    let error = node.uplink_brings(&complaint(A::at(ROUTER), &asked.frame, WHOLE));
    tells(&error, to_pod(POD), A::at(ROUTER), &asked.before);
}

fn eight_bytes_of_the_transport_header_are_enough<A: Family>() {
    let node = Node::<A>::new();
    for transport in [Transport::Tcp(tcp::SYN), Transport::Udp, Transport::EchoRequest] {
        let asked =
            node.pod_sends(&Builder::new(transport, (A::at(POD), 40_000), (A::at(OUTSIDE), 0)));
        let (.., at) = A::read(&asked.frame.bytes);
        let error = complaint(A::at(ROUTER), &asked.frame, at - 14 + 8);
        let error = node.uplink_brings(&error);
        error.goes(to_pod(POD), (A::at(ROUTER), 0), (A::at(POD), 0));
        let quoted = quote::<A>(&error.frame);
        assert_eq!(ends::<A>(&quoted), ends::<A>(&asked.before));
        assert!(A::header_is_valid(&quoted.bytes));
    }
}

fn an_error_that_quotes_no_flow_of_ours_passes_as_it_is<A: Family>() {
    let node = Node::<A>::new();
    let asked = node.pod_sends(&Builder::udp((A::at(POD), 40_000), (A::at(OTHER_POD), 5353)));
    asked.goes_unchanged(to_pod(OTHER_POD));
    let plain = complaint(A::at(OTHER_POD), &asked.frame, WHOLE);
    node.pod_sends(&plain).goes_unchanged(to_pod(POD));

    let elsewhere = Builder::udp((A::at(NODE), 40_000), (A::at(OUTSIDE), 443)).frame();
    node.uplink_brings(&complaint(A::at(ROUTER), &elsewhere, WHOLE)).is_untouched();
    node.host_sends(&complaint(A::at(NODE), &elsewhere, WHOLE)).is_untouched();

    // What is quoted was not sent by whom the error goes to.
    let asked = node.pod_sends(&Builder::udp((A::at(POD), 40_000), (A::at(OUTSIDE), 443)));
    let quote = &asked.frame.bytes[14..];
    let error = Transport::Icmp(A::UNREACHABLE);
    let misled = Builder::new(error, (A::at(ROUTER), 0), (A::at(OTHER_POD), 0)).payload(quote);
    node.uplink_brings(&misled).goes_unchanged(to_pod(OTHER_POD));
}

fn a_pod_complains_only_about_what_it_received<A: Family>() {
    let node = Node::<A>::new();
    let asked = node.pod_sends(&Builder::udp((A::at(POD), 40_000), (A::at(OUTSIDE), 443)));
    let forged = complaint(A::at(OTHER_POD), &asked.frame, WHOLE);
    node.pod_sends(&forged).goes_unchanged(Verdict::Pass);
}

fn an_error_does_not_keep_a_flow_alive<A: Family>() {
    let node = Node::<A>::new();
    let asked = node.pod_sends(&Builder::udp((A::at(POD), 40_000), (A::at(OUTSIDE), 443)));
    let before = node.tables.clone();
    node.tables.now.set(77);
    node.uplink_brings(&complaint(A::at(ROUTER), &asked.frame, WHOLE));
    assert_eq!(node.flows(), (2, 0), "nor is it an answer");
    for (key, flow) in node.tables.half_open.borrow().iter() {
        let mut before = before.half_open.borrow_mut();
        assert_eq!(before.get_mut(key).copied(), Some(*flow));
    }
}

fn an_errors_own_hop_limit_counts<A: Family>() {
    let node = Node::<A>::new();
    let asked = node.pod_sends(&Builder::udp((A::at(POD), 40_000), (A::at(OUTSIDE), 443)));
    let error = complaint(A::at(ROUTER), &asked.frame, WHOLE);
    node.uplink_brings(&error.hop_limit(1)).is_dropped(DropReason::HopLimit);
}

fn a_quote_that_ends_early_is_no_quote<A: Family>() {
    let node = Node::<A>::new();
    let asked = node.pod_sends(&Builder::udp((A::at(POD), 40_000), (A::at(OUTSIDE), 443)));
    let (.., at) = A::read(&asked.frame.bytes);
    for length in 0..at - 14 + 4 {
        node.uplink_brings(&complaint(A::at(ROUTER), &asked.frame, length)).is_untouched();
    }
}

/// A link may add bytes behind a packet. No checksum covers them, and they stay as they are.
fn what_follows_an_error_on_its_link_is_not_quoted<A: Family>() {
    for transport in KINDS {
        let node = Node::<A>::new();
        let asked =
            node.pod_sends(&Builder::new(transport, (A::at(POD), 40_000), (A::at(OUTSIDE), 443)));
        let (.., at) = A::read(&asked.frame.bytes);
        for length in [at - 14, at - 14 + 8] {
            let error = complaint(A::at(ROUTER), &asked.frame, length).frame();
            let mut frame = error.clone();
            frame.bytes.extend(&asked.frame.bytes[14 + length..]);
            frame.linear = frame.bytes.len();
            let trailer = frame.bytes[error.bytes.len()..].to_vec();

            let verdict = path::from_uplink(&mut frame, &node.tables);
            let rest = frame.bytes.split_off(error.bytes.len());
            assert_eq!(rest, trailer, "{transport:?}");
            assert_checksums::<A>(&frame);
            let quotes_ports = length > at - 14;
            assert_eq!(verdict, if quotes_ports { to_pod(POD) } else { Verdict::Pass });
        }
    }
}

fn an_error_in_pieces_passes_as_it_is<A: Family>() {
    let node = Node::<A>::new();
    let question = Builder::udp((A::at(POD), 40_000), (A::at(OUTSIDE), 443)).payload(&[7; 60]);
    let asked = node.pod_sends(&question);
    let error = || complaint(A::at(ROUTER), &asked.frame, WHOLE);
    // Its second piece could not follow the first one to the pod.
    node.uplink_brings(&error().piece(0..72, true)).is_untouched();
    node.uplink_brings(&error().piece(72..WHOLE, false)).is_untouched();
}
