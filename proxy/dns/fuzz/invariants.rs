//! What holds of whatever strangers ask. The fuzz target and the test that replays its corpus share it.

use fairway_dns::{Buffer, Name, Options, Reason, Transport, Verdict, Zone};
use hickory_proto::op::Message;

#[path = "../tests/support/mod.rs"]
mod support;

/// A zone with something of each kind.
pub(crate) fn zone() -> Zone {
    let text = "
        service shop/web 10.96.0.7,fd00:96::7 http:80 dns/udp:53
        service kube-system/kube-dns 10.96.0.10 dns/udp:53
        headless shop/pets http:80
        endpoint shop/pets http 10.244.1.1:8080 pet-0
        endpoint shop/pets http 10.244.1.3:8081
        endpoint shop/pets http fd00:244::1:8080 pet-0
        alias shop/db db.example.com
        alias shop/inside web.shop.svc.cluster.local
        alias shop/round round.shop.svc.cluster.local
        headless shop/many http:80
        range 10.96.0.0/16 fd00:96::/112
    ";
    let many = support::endpoints("shop/many", "http", 300);
    let search = vec!["corp.example".parse().expect("a name")];
    let options = Options { search, ..Options::default() };
    Zone::new(options).next(&support::cluster(&format!("{text}\n{many}")), 9)
}

/// Bytes as a query by a datagram and by a stream.
///
/// # Panics
/// If the answer is none: another one's, too long, or not to be read.
pub(crate) fn query(zone: &Zone, bytes: &[u8]) {
    let mut buffer = Buffer::new(1);
    let verdicts = [Transport::Udp, Transport::Tcp].map(|transport| {
        let client = support::client(transport, Some("shop"));
        match zone.answer(bytes, &client, &mut buffer) {
            Verdict::Answer { bytes: answer, .. } => {
                check(bytes, answer, transport);
                "answer"
            }
            Verdict::Forward(forward) => {
                assert!(!forward.names.is_empty());
                let all = forward.names.iter().chain(&forward.via).chain([&forward.question]);
                for name in all {
                    assert_eq!(Name::from_wire(name.as_wire()).as_ref(), Some(name));
                }
                for found in 0..forward.names.len() {
                    let reply = forward.reply(bytes, transport, found, &mut buffer);
                    check(bytes, reply.expect("a name of the list").finish(0), transport);
                }
                check(bytes, zone.absent(&forward, bytes, transport, &mut buffer), transport);
                "forward"
            }
            Verdict::Drop(Reason::Answer | Reason::Short | Reason::Malformed) => "drop",
        }
    });
    assert_eq!(
        verdicts[0], verdicts[1],
        "what carries a query does not matter to what becomes of it"
    );
}

fn check(query: &[u8], answer: &[u8], transport: Transport) {
    let most = if transport == Transport::Udp { 1232 } else { 65_535 };
    assert!((12..=most).contains(&answer.len()), "{} bytes", answer.len());
    assert_eq!(query[..2], answer[..2], "the id");
    assert_eq!(answer[2] & 0x80, 0x80, "an answer");
    let message =
        Message::from_vec(answer).unwrap_or_else(|error| panic!("{error}: {answer:02x?}"));
    if message.queries.len() == 1 {
        // The question comes back byte for byte.
        let name = query[12..].iter().scan(0_u8, |left, byte| {
            let label = (*left == 0).then_some(*byte);
            *left = label.map_or(left.wrapping_sub(1), |length| length);
            Some(label == Some(0))
        });
        let end = 12 + name.take_while(|root| !root).count() + 5;
        assert_eq!(query[12..end], answer[12..end]);
    }
}
