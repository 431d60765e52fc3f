use std::fs;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32};

use fairway_core::dns;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use tokio::task::JoinSet;
use tokio::time::{Instant as Moment, advance};

use super::testing::{A, Act, Pretender, asked_name, name, query, reply_to, with_edns};
use super::*;
use crate::zone;

mod search;

const SECOND: Duration = Duration::from_secs(1);

fn forwarder(upstreams: &[&Pretender]) -> Forwarder {
    with(upstreams, Options::default())
}

fn with(upstreams: &[&Pretender], options: Options) -> Forwarder {
    let addresses = upstreams.iter().map(|upstream| upstream.address).collect();
    let upstreams = Upstreams::These(addresses);
    Forwarder::new(Options { upstreams, ..options }, Handle::current())
}

/// What a client hears that sends these bytes.
async fn heard(forwarder: &Forwarder, message: &[u8]) -> Vec<u8> {
    asks(forwarder, message, |_| ()).await
}

async fn asks(forwarder: &Forwarder, message: &[u8], change: impl Fn(&mut Forward)) -> Vec<u8> {
    let mut name = [[0; 8]; 32];
    let query = dns::parse(message, &mut name).expect("a query");
    let name = Name::from_wire(&name.as_flattened()[..query.name.into()]).expect("a name");
    let mut forward = Forward::plain(query, name);
    change(&mut forward);
    let asked = Asked { forward: &forward, message, transport: Transport::Udp };
    let (zone, mut out) = (Zone::new(zone::Options::default()), Buffer::new(1));
    forwarder.resolve(&asked, &zone, &mut out).await.to_vec()
}

/// What is heard of a name's address, as another implementation reads it.
async fn ask(forwarder: &Forwarder, name: &str) -> Message {
    read(&heard(forwarder, &query(name, A)).await)
}

fn read(message: &[u8]) -> Message {
    Message::from_vec(message).expect("a message")
}

fn addresses(message: &Message) -> Vec<[u8; 4]> {
    let address = |data: &RData| match data {
        RData::A(address) => Some(address.octets()),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

fn ttl(message: &Message) -> u32 {
    message.answers[0].ttl
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_passed_on_as_the_client_asked() {
    let upstream = Pretender::honest([192, 0, 2, 1], 300).await;
    let forwarder = forwarder(&[&upstream]);
    let plain = heard(&forwarder, &query("WwW.Example.com", A)).await;
    let message = read(&plain);
    assert_eq!(message.metadata.id, 0x1234);
    assert_eq!(asked_name(&plain), "WwW.Example.com");
    assert_eq!(addresses(&message), [[192, 0, 2, 1]]);
    assert!(message.metadata.recursion_available && !message.metadata.authoritative);
    assert!(message.edns.is_none());

    let signed = with_edns(query("www.example.com", A), 4096, true);
    let message = read(&heard(&forwarder, &signed).await);
    assert!(message.edns.is_some_and(|edns| edns.flags().dnssec_ok));

    let seen = upstream.seen();
    assert_eq!(upstream.names(), ["www.example.com", "www.example.com"], "with signatures anew");
    let of_upstream = read(&seen[0].message);
    assert!(of_upstream.metadata.recursion_desired);
    assert_eq!(of_upstream.edns.expect("EDNS").max_payload(), 1232);
}

#[tokio::test(start_paused = true)]
async fn queries_to_upstreams_cannot_be_foreseen() {
    let upstream = Pretender::honest([192, 0, 2, 1], 0).await;
    let forwarder = forwarder(&[&upstream]);
    for _ in 0..20 {
        ask(&forwarder, "abcdefghijklmnopqrstuvwxyz.example").await;
    }
    let seen = upstream.seen();
    let ids: std::collections::HashSet<_> =
        seen.iter().map(|one| one.message[..2].to_vec()).collect();
    let letters: std::collections::HashSet<_> =
        seen.iter().map(|one| asked_name(&one.message)).collect();
    assert!(ids.len() > 15, "{ids:?}");
    assert!(letters.len() > 15, "{letters:?}");
}

#[tokio::test(start_paused = true)]
async fn one_who_is_late_is_overtaken_and_then_left_alone_until_it_answers() {
    let works = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&works);
    let first = Pretender::new(move |query, _| {
        let answer = reply_to(query).a([192, 0, 2, 1], 0).bytes();
        if state.load(Ordering::Relaxed) {
            Act::Say(vec![answer])
        } else {
            Act::Late(60 * SECOND, answer)
        }
    })
    .await;
    let second = Pretender::honest([192, 0, 2, 2], 0).await;
    let forwarder = forwarder(&[&first, &second]);
    let began = Moment::now();
    assert_eq!(addresses(&ask(&forwarder, "a.example").await), [[192, 0, 2, 2]]);
    assert!(began.elapsed() >= Duration::from_millis(500) && began.elapsed() < SECOND);
    // Until its probes have failed twice.
    tokio::time::sleep(5 * SECOND).await;
    let before = first.seen().len();
    let began = Moment::now();
    assert_eq!(addresses(&ask(&forwarder, "b.example").await), [[192, 0, 2, 2]]);
    assert!(began.elapsed() < Duration::from_millis(100));
    assert_eq!(first.seen().len(), before, "nobody waits for it");

    works.store(true, Ordering::Relaxed);
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(addresses(&ask(&forwarder, "c.example").await), [[192, 0, 2, 1]]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_the_next_one_was_asked_still_counts() {
    let first = Pretender::new(|query, _| {
        Act::Late(Duration::from_millis(700), reply_to(query).a([192, 0, 2, 1], 60).bytes())
    })
    .await;
    let second = Pretender::new(|_, _| Act::Nothing).await;
    let forwarder = forwarder(&[&first, &second]);
    assert_eq!(addresses(&ask(&forwarder, "a.example").await), [[192, 0, 2, 1]]);
    assert_eq!(second.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_answer_the_question_is_passed_over() {
    let upstream = Pretender::new(|asked, _| {
        let right = reply_to(asked).a([192, 0, 2, 1], 60).bytes();
        let mut wrong_id = reply_to(asked).a([203, 0, 113, 1], 60).bytes();
        wrong_id[0] ^= 1;
        let other = query("other.example", A);
        let mut wrong_name = reply_to(&other).a([203, 0, 113, 2], 60).bytes();
        wrong_name[..2].copy_from_slice(&asked[..2]);
        let mut wrong_kind = right.clone();
        let end = super::testing::question_end(asked);
        wrong_kind[end - 3] = 28;
        let no_answer = asked.to_vec();
        Act::Say(vec![wrong_id, wrong_name, wrong_kind, no_answer, vec![], vec![0; 5], right])
    })
    .await;
    let message = ask(&forwarder(&[&upstream]), "a.example").await;
    assert_eq!(addresses(&message), [[192, 0, 2, 1]]);
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_answers_in_an_upstreams_place() {
    let upstream = Pretender::new(|asked, _| {
        let forged = reply_to(asked).a([203, 0, 113, 1], 60).bytes();
        Act::Forged(forged, reply_to(asked).a([192, 0, 2, 1], 60).bytes())
    })
    .await;
    let message = ask(&forwarder(&[&upstream]), "a.example").await;
    assert_eq!(addresses(&message), [[192, 0, 2, 1]]);
}

#[tokio::test(start_paused = true)]
async fn many_guesses_have_the_upstream_asked_by_tcp() {
    let upstream = Pretender::new(|asked, by_tcp| {
        let answer = |last| reply_to(asked).a([192, 0, 2, last], 60).bytes();
        if by_tcp {
            return Act::Say(vec![answer(1)]);
        }
        let guess = |number| {
            let mut guess = answer(66);
            guess[1] = guess[1].wrapping_add(number);
            guess
        };
        Act::Say((1..=100).map(guess).chain([answer(66)]).collect())
    })
    .await;
    let message = ask(&forwarder(&[&upstream]), "a.example").await;
    assert_eq!(addresses(&message), [[192, 0, 2, 1]]);
    assert_eq!(upstream.seen().iter().map(|seen| seen.by_tcp).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test(start_paused = true)]
async fn what_is_truncated_is_asked_for_by_tcp() {
    let many = |asked: &[u8]| {
        (0..100).fold(reply_to(asked), |reply, last| reply.a([192, 0, 2, last], 60)).bytes()
    };
    let upstream = Pretender::new(move |asked, by_tcp| {
        Act::Say(vec![if by_tcp { many(asked) } else { reply_to(asked).truncated().bytes() }])
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    let message = query("a.example", A);
    let short = read(&heard(&forwarder, &message).await);
    assert!(short.metadata.truncation && short.answers.is_empty(), "it does not fit a datagram");
    let mut name = [[0; 8]; 32];
    let parsed = dns::parse(&message[..], &mut name).expect("a query");
    let forward = Forward::plain(parsed, "a.example".parse().expect("a name"));
    let asked = Asked { forward: &forward, message: &message, transport: Transport::Tcp };
    let (zone, mut out) = (Zone::new(zone::Options::default()), Buffer::new(1));
    let whole = forwarder.recall(&asked, &zone, Instant::now(), &mut out).expect("it is known");
    let whole = read(whole);
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn upstreams_that_change_letters_are_believed_by_tcp_and_not_tried_again() {
    let upstream = Pretender::new(|asked, _| {
        let mut answer = reply_to(asked).a([192, 0, 2, 1], 0).bytes();
        let end = super::testing::question_end(asked);
        answer[12..end].make_ascii_lowercase();
        Act::Say(vec![answer])
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    let long = "abcdefghijklmnopqrstuvwxyz.example";
    for _ in 0..2 {
        assert_eq!(addresses(&ask(&forwarder, long).await), [[192, 0, 2, 1]]);
    }
    let by_tcp: Vec<_> = upstream.seen().iter().map(|seen| seen.by_tcp).collect();
    assert_eq!(by_tcp, [false, true, false]);
    assert_eq!(asked_name(&upstream.seen()[2].message), long);
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_failure_before_a_client_asks_again() {
    let upstream = Pretender::new(|_, _| Act::Nothing).await;
    let began = Moment::now();
    let message = ask(&forwarder(&[&upstream]), "a.example").await;
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(began.elapsed() > 4 * SECOND && began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn nobody_to_ask_is_a_failure_at_once() {
    let began = Moment::now();
    let message = ask(&forwarder(&[]), "a.example").await;
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(began.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn our_own_addresses_are_not_asked() {
    let us = Pretender::honest([192, 0, 2, 1], 60).await;
    let stubs = [("corp.example".parse().expect("a name"), vec![us.address])].into();
    let forwarder = with(&[&us], Options { stubs, ..Options::default() });
    assert_eq!(addresses(&ask(&forwarder, "a.example").await), [[192, 0, 2, 1]], "not ours yet");
    forwarder.answers_at(vec![us.address.ip()]);
    for name in ["b.example", "b.corp.example"] {
        let message = ask(&forwarder, name).await;
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail, "{name}");
    }
    assert_eq!(us.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_one_may_know_what_one_does_not() {
    for (rcode, expected) in
        [(2, ResponseCode::NoError), (5, ResponseCode::NoError), (3, ResponseCode::NXDomain)]
    {
        let first = Pretender::new(move |asked, _| {
            Act::Say(vec![reply_to(asked).rcode(rcode).soa(60, 60).bytes()])
        })
        .await;
        let second = Pretender::honest([192, 0, 2, 2], 60).await;
        let message = ask(&forwarder(&[&first, &second]), "a.example").await;
        assert_eq!(message.metadata.response_code, expected, "after {rcode}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_passed_on_if_nobody_knows_better() {
    let upstream =
        Pretender::new(|asked, _| Act::Say(vec![reply_to(asked).rcode(5).bytes()])).await;
    let message = ask(&forwarder(&[&upstream]), "a.example").await;
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);
    assert_eq!(upstream.seen().len(), 1, "it would say so again");
}

type Damage = Box<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

#[tokio::test(start_paused = true)]
async fn damaged_answers_are_not_passed_on() {
    let bad_record = |owner: &'static [u8], kind: u16, data: &'static [u8]| {
        move |asked: &[u8]| reply_to(asked).record(7, owner, kind, 60, data).bytes()
    };
    let damages: [(&str, Damage); 8] = [
        ("a pointer to itself", Box::new(bad_record(&[0xc0, 27], A, &[192, 0, 2, 1]))),
        ("a pointer forwards", Box::new(bad_record(&[0xc0, 60], A, &[192, 0, 2, 1]))),
        ("a pointer into the header", Box::new(bad_record(&[0xc0, 2], A, &[192, 0, 2, 1]))),
        ("an address of five bytes", Box::new(bad_record(&[0xc0, 12], A, &[192, 0, 2, 1, 1]))),
        ("an alias without a name", Box::new(bad_record(&[0xc0, 12], 5, &[]))),
        ("an alias and more", Box::new(bad_record(&[0xc0, 12], 5, &[0xc0, 12, 0]))),
        ("a label of a third kind", Box::new(bad_record(&[0x80, 12], A, &[192, 0, 2, 1]))),
        (
            "a record less than it says",
            Box::new(|asked| {
                let mut answer = reply_to(asked).a([192, 0, 2, 1], 60).bytes();
                answer[7] = 2;
                answer
            }),
        ),
    ];
    for (what, damage) in damages {
        let damage = Arc::new(damage);
        let first = Pretender::new(move |asked, _| Act::Say(vec![damage(asked)])).await;
        let second = Pretender::honest([192, 0, 2, 2], 60).await;
        let message = ask(&forwarder(&[&first, &second]), "a.example").await;
        assert_eq!(addresses(&message), [[192, 0, 2, 2]], "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_questions_at_a_time_are_asked_once() {
    let upstream = Pretender::new(|asked, _| {
        Act::Late(Duration::from_millis(100), reply_to(asked).a([192, 0, 2, 1], 60).bytes())
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    let mut clients = JoinSet::new();
    for number in 0..100 {
        let forwarder = forwarder.clone();
        let name = if number % 2 == 0 { "a.example" } else { "A.EXAMPLE" };
        clients.spawn(async move { addresses(&ask(&forwarder, name).await) });
    }
    while let Some(heard) = clients.join_next().await {
        assert_eq!(heard.expect("no panic"), [[192, 0, 2, 1]]);
    }
    assert_eq!(upstream.names(), ["a.example"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_not_asked_for_until_it_ends() {
    let upstream = Pretender::honest([192, 0, 2, 1], 60).await;
    let forwarder = forwarder(&[&upstream]);
    assert_eq!(ttl(&ask(&forwarder, "a.example").await), 60);
    advance(20 * SECOND).await;
    assert_eq!(ttl(&ask(&forwarder, "a.example").await), 40);
    advance(40 * SECOND).await;
    assert_eq!(ttl(&ask(&forwarder, "a.example").await), 60);
    assert_eq!(upstream.names().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn that_there_is_nothing_is_known_as_long_as_the_soa_says() {
    let upstream = Pretender::new(|asked, _| {
        let rcode = if asked_name(asked).to_lowercase().starts_with("nx") { 3 } else { 0 };
        Act::Say(vec![reply_to(asked).rcode(rcode).soa(300, 30).bytes()])
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    for (name, rcode) in
        [("nx.example", ResponseCode::NXDomain), ("nodata.example", ResponseCode::NoError)]
    {
        for _ in 0..3 {
            let message = ask(&forwarder, name).await;
            assert_eq!(message.metadata.response_code, rcode);
            assert_eq!(message.authorities.len(), 1);
            advance(14 * SECOND).await;
        }
        assert_eq!(upstream.names().iter().filter(|asked| *asked == name).count(), 1);
        ask(&forwarder, name).await;
        assert_eq!(upstream.names().iter().filter(|asked| *asked == name).count(), 2);
    }
}

/// An upstream that counts up in its answers' last byte until it is told to be silent.
async fn counting(ttl: u32) -> (Pretender, Arc<AtomicBool>) {
    let (count, silent) = (AtomicU32::new(0), Arc::new(AtomicBool::new(false)));
    let (count, state) = (Arc::new(count), Arc::clone(&silent));
    let upstream = Pretender::new(move |asked, _| {
        if state.load(Ordering::Relaxed) {
            return Act::Nothing;
        }
        let last =
            if asked_name(asked).is_empty() { 0 } else { count.fetch_add(1, Ordering::Relaxed) };
        let last = u8::try_from(last + 1).expect("few queries");
        Act::Say(vec![reply_to(asked).a([192, 0, 2, last], ttl).bytes()])
    })
    .await;
    (upstream, silent)
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_serves_while_upstreams_are_silent() {
    let (upstream, silent) = counting(60).await;
    let forwarder = forwarder(&[&upstream]);
    ask(&forwarder, "a.example").await;
    silent.store(true, Ordering::Relaxed);
    advance(100 * SECOND).await;
    let began = Moment::now();
    let stale = ask(&forwarder, "a.example").await;
    assert_eq!((addresses(&stale), ttl(&stale)), (vec![[192, 0, 2, 1]], 30));
    assert!(
        began.elapsed() >= STALE_AFTER && began.elapsed() < 2 * SECOND,
        "{:?}",
        began.elapsed()
    );
    // Once it is known that nobody answers, nobody waits for that.
    tokio::time::sleep(5 * SECOND).await;
    let began = Moment::now();
    assert_eq!(addresses(&ask(&forwarder, "a.example").await), [[192, 0, 2, 1]]);
    assert!(began.elapsed() < Duration::from_millis(100));
    assert_eq!(ask(&forwarder, "b.example").await.metadata.response_code, ResponseCode::ServFail);
    // Whoever asks when it is time to look again does not wait for that either.
    silent.store(false, Ordering::Relaxed);
    tokio::time::sleep(40 * SECOND).await;
    assert_eq!(addresses(&ask(&forwarder, "a.example").await), [[192, 0, 2, 1]]);
    let renewed = async {
        while addresses(&ask(&forwarder, "a.example").await) != [[192, 0, 2, 2]] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SECOND, renewed).await.expect("the answer of the look in the background");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_often_is_there_when_it_would_have_ended() {
    let (upstream, _silent) = counting(60).await;
    let cache = CacheOptions { prefetch: 5, ..CacheOptions::default() };
    let forwarder = with(&[&upstream], Options { cache, ..Options::default() });
    for _ in 0..11 {
        ask(&forwarder, "a.example").await;
        advance(5 * SECOND).await;
    }
    assert_eq!(upstream.names().len(), 1);
    assert_eq!(addresses(&ask(&forwarder, "a.example").await), [[192, 0, 2, 1]]);
    // The one who asked did not wait; whoever comes next has the new one.
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(upstream.names().len(), 2);
    let anew = ask(&forwarder, "a.example").await;
    assert_eq!((addresses(&anew), ttl(&anew)), (vec![[192, 0, 2, 2]], 59));
}

#[tokio::test(start_paused = true)]
async fn domains_have_upstreams_of_their_own_the_longest_one_first() {
    let others = Pretender::honest([192, 0, 2, 1], 60).await;
    let corp = Pretender::honest([192, 0, 2, 2], 60).await;
    let lab = Pretender::honest([192, 0, 2, 3], 60).await;
    let stubs = [("corp.example", corp.address), ("lab.corp.example", lab.address)];
    let stubs = stubs.map(|(name, address)| (name.parse().expect("a name"), vec![address])).into();
    let forwarder = with(&[&others], Options { stubs, ..Options::default() });
    for (name, last) in [
        ("www.example", 1),
        ("xcorp.example", 1),
        ("corp.example", 2),
        ("A.Corp.Example", 2),
        ("a.lab.corp.example", 3),
        ("lab.corp.example", 3),
    ] {
        assert_eq!(addresses(&ask(&forwarder, name).await), [[192, 0, 2, last]], "{name}");
    }
}

/// One that knows `www` and nothing else; of `odd` it knows not even that.
async fn knows_www() -> Pretender {
    Pretender::new(|asked, _| {
        Act::Say(vec![match asked_name(asked).to_lowercase().as_str() {
            "www.example" => reply_to(asked)
                .record(7, &[0xc0, 12], 5, 60, &name("web.example"))
                .record(7, &name("web.example"), A, 60, &[192, 0, 2, 7])
                .bytes(),
            "www.odd" => reply_to(asked).rcode(2).bytes(),
            "www.nodata" => reply_to(asked).soa(60, 60).bytes(),
            _ => reply_to(asked).rcode(3).soa(60, 60).bytes(),
        }])
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn failures_are_not_asked_for_again_at_once() {
    let upstream =
        Pretender::new(|asked, _| Act::Say(vec![reply_to(asked).rcode(2).bytes()])).await;
    let forwarder = forwarder(&[&upstream]);
    for _ in 0..10 {
        let message = ask(&forwarder, "a.example").await;
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(upstream.names().len(), 1);
    advance(3 * SECOND).await;
    ask(&forwarder, "a.example").await;
    assert_eq!(upstream.names().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_may_not_wait_has_what_is_stale() {
    let (upstream, silent) = counting(60).await;
    let forwarder = forwarder(&[&upstream]);
    ask(&forwarder, "a.example").await;
    silent.store(true, Ordering::Relaxed);
    advance(100 * SECOND).await;
    let message = query("a.example", A);
    let mut name = [[0; 8]; 32];
    let parsed = dns::parse(&message[..], &mut name).expect("a query");
    let (zone, mut out) = (Zone::new(zone::Options::default()), Buffer::new(1));
    let now = Moment::now().into_std();
    let mut recalled = |name: &str, stale: bool| {
        let forward = Forward::plain(parsed, name.parse().expect("a name"));
        let asked = Asked { forward: &forward, message: &message, transport: Transport::Udp };
        let known = if stale {
            forwarder.recall_stale(&asked, &zone, now, &mut out)
        } else {
            forwarder.recall(&asked, &zone, now, &mut out)
        };
        known.map(|bytes| addresses(&read(bytes)))
    };
    assert_eq!(recalled("a.example", false), None, "somebody may know better");
    assert_eq!(recalled("a.example", true), Some(vec![[192, 0, 2, 1]]));
    assert_eq!(recalled("b.example", true), None);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_gone_does_not_come_back_when_upstreams_fall_silent() {
    let phase = Arc::new(AtomicU32::new(0));
    let state = Arc::clone(&phase);
    let upstream = Pretender::new(move |asked, _| match state.load(Ordering::Relaxed) {
        0 => Act::Say(vec![reply_to(asked).a([192, 0, 2, 1], 60).bytes()]),
        // Without an SOA it may not be kept.
        1 => Act::Say(vec![reply_to(asked).rcode(3).bytes()]),
        _ => Act::Nothing,
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    for (now, expected) in
        [(0, ResponseCode::NoError), (1, ResponseCode::NXDomain), (2, ResponseCode::ServFail)]
    {
        phase.store(now, Ordering::Relaxed);
        let message = ask(&forwarder, "a.example").await;
        assert_eq!(message.metadata.response_code, expected);
        advance(100 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_alias_without_such_records_is_kept_as_long_as_the_soa_says() {
    let upstream = Pretender::new(|asked, _| {
        let alias = reply_to(asked).record(7, &[0xc0, 12], 5, 3600, &name("web.example"));
        let has_soa = asked_name(asked).to_lowercase().starts_with("soa");
        Act::Say(vec![if has_soa { alias.soa(3600, 60) } else { alias }.bytes()])
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    for name in ["soa.example", "none.example"] {
        ask(&forwarder, name).await;
    }
    advance(59 * SECOND).await;
    ask(&forwarder, "soa.example").await;
    assert_eq!(upstream.names(), ["soa.example", "none.example"]);
    ask(&forwarder, "none.example").await;
    advance(SECOND).await;
    ask(&forwarder, "soa.example").await;
    assert_eq!(upstream.names().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn upstreams_without_edns_are_asked_without_and_not_tried_again() {
    for with_question in [true, false] {
        let upstream = Pretender::new(move |asked, _| {
            let reply = reply_to(asked);
            Act::Say(vec![if asked[11] == 0 {
                reply.a([192, 0, 2, 1], 0).bytes()
            } else if with_question {
                reply.rcode(1).bytes()
            } else {
                let mut header = reply.rcode(4).bytes();
                header.truncate(12);
                header[5] = 0;
                header
            }])
        })
        .await;
        let forwarder = forwarder(&[&upstream]);
        for name in ["a.example", "b.example"] {
            assert_eq!(addresses(&ask(&forwarder, name).await), [[192, 0, 2, 1]]);
        }
        assert_eq!(upstream.names(), ["a.example", "a.example", "b.example"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_does_not_understand_another_one_may() {
    let first = Pretender::new(|asked, _| Act::Say(vec![reply_to(asked).rcode(4).bytes()])).await;
    let second = Pretender::honest([192, 0, 2, 2], 60).await;
    let message = ask(&forwarder(&[&first, &second]), "a.example").await;
    assert_eq!(addresses(&message), [[192, 0, 2, 2]]);
}

#[tokio::test(start_paused = true)]
async fn upstreams_that_change_letters_and_have_no_tcp_are_asked_in_small_ones() {
    let upstream = Pretender::new(|asked, by_tcp| {
        if by_tcp {
            return Act::Nothing;
        }
        let mut answer = reply_to(asked).a([192, 0, 2, 1], 0).bytes();
        let end = super::testing::question_end(asked);
        answer[12..end].make_ascii_uppercase();
        Act::Say(vec![answer])
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    for _ in 0..2 {
        let message = ask(&forwarder, "abcdefghijklmnopqrstuvwxyz.example").await;
        assert_eq!(addresses(&message), [[192, 0, 2, 1]]);
    }
    let by_tcp: Vec<_> = upstream.seen().iter().map(|seen| seen.by_tcp).collect();
    assert_eq!(by_tcp, [false, true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn places_to_wait_are_bounded_and_one_client_has_not_all_of_them() {
    let options = Options { most: 10, most_of_one: 4, ..Options::default() };
    let forwarder = with(&[], options);
    let client = |last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
    let mut places: Vec<_> = (0..20).filter_map(|_| forwarder.place(client(1))).collect();
    assert_eq!(places.len(), 4);
    places.extend((0..20).filter_map(|_| forwarder.place(client(2))));
    assert_eq!(places.len(), 8);
    places.extend((0..20).filter_map(|_| forwarder.place(client(3))));
    assert_eq!(places.len(), 10);
    places.clear();
    assert!(forwarder.place(client(1)).is_some());
    assert!(forwarder.0.places.by_client().is_empty());
    let mut text = Text::default();
    forwarder.write_metrics(&mut text);
    let text = text.into_string();
    assert!(text.contains("\ncoredns_forward_max_concurrent_rejects_total 50\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_upstreams_is_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("resolv.conf");
    fs::write(&file, "nameserver 192.0.2.1\nsearch a.example\n").expect("write");
    let resolv_conf = Some(file.clone());
    let options = Options { upstreams: Upstreams::OfResolvConf, resolv_conf, ..Options::default() };
    let forwarder = Forwarder::new(options, Handle::current());
    let asked = || forwarder.0.others.load().upstreams.iter().map(|one| one.address.ip()).collect();
    let is = |last: &[u8]| -> Vec<IpAddr> {
        last.iter().map(|last| Ipv4Addr::new(192, 0, 2, *last).into()).collect()
    };
    let addresses: Vec<IpAddr> = asked();
    assert_eq!(addresses, is(&[1]));
    assert_eq!(*forwarder.search(), ["a.example"]);
    // As editors do it, and an empty one in between.
    for (text, expected) in [
        ("nameserver 192.0.2.2\nnameserver 192.0.2.1\n", is(&[2, 1])),
        ("", is(&[2, 1])),
        ("nameserver 192.0.2.3\n", is(&[3])),
    ] {
        let new = folder.path().join("new");
        fs::write(&new, text).expect("write");
        fs::rename(&new, &file).expect("rename");
        tokio::time::sleep(2 * LOOK).await;
        let addresses: Vec<IpAddr> = asked();
        assert_eq!(addresses, expected, "{text:?}");
    }
    fs::remove_file(&file).expect("remove");
    tokio::time::sleep(2 * LOOK).await;
    let addresses: Vec<IpAddr> = asked();
    assert_eq!(addresses, is(&[3]));
}

#[tokio::test(start_paused = true)]
async fn domains_to_search_in_are_read_also_where_upstreams_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("resolv.conf");
    fs::write(&file, "nameserver 192.0.2.1\nsearch corp.example\n").expect("write");
    let upstream = Pretender::honest([192, 0, 2, 7], 60).await;
    let forwarder =
        with(&[&upstream], Options { resolv_conf: Some(file.clone()), ..Options::default() });
    assert_eq!(*forwarder.search(), ["corp.example"]);
    fs::write(&file, "search other.example\n").expect("write");
    tokio::time::sleep(2 * LOOK).await;
    assert_eq!(*forwarder.search(), ["other.example"]);
    assert_eq!(addresses(&ask(&forwarder, "a.example").await), [[192, 0, 2, 7]]);
}

#[tokio::test(start_paused = true)]
async fn series_have_each_label_once() {
    let upstream = knows_www().await;
    let stubs = [("corp.example".parse().expect("a name"), vec![upstream.address])].into();
    let forwarder = with(&[&upstream], Options { stubs, ..Options::default() });
    for name in ["www.example", "www.example", "www.test", "www.corp.example", "www.odd"] {
        ask(&forwarder, name).await;
    }
    let mut text = Text::default();
    forwarder.write_metrics(&mut text);
    let text = text.into_string();
    let mut series: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup_by_key(|(name, _)| *name);
    assert_eq!(series.len(), all, "{text}");
    let to = format!("to=\"{}\"", upstream.address);
    for line in [
        format!("coredns_forward_requests_total{{{to}}} 4"),
        format!("coredns_forward_responses_total{{{to},rcode=\"NXDOMAIN\"}} 2"),
        format!("coredns_forward_responses_total{{{to},rcode=\"SERVFAIL\"}} 1"),
        format!("coredns_forward_request_duration_seconds_count{{{to}}} 4"),
        "coredns_cache_hits_total{type=\"success\"} 1".to_owned(),
        "coredns_cache_misses_total 4".to_owned(),
        "coredns_cache_entries 4".to_owned(),
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line} is not in\n{text}");
    }
}
