//! Clients that break the rules again and again, or keep them and ask for nothing.

use std::time::Duration;

use tokio::time::advance;

use super::*;

// The clock stands still.
#[tokio::test(start_paused = true)]
async fn floods_come_to_an_end() {
    const CALM: &str = "HTTP/2: ENHANCE_YOUR_CALM";
    const NOTHING: &str = "HTTP/2: too many frames that ask for nothing";
    let odd = |round: u32| 2 * round + 1;
    // One that the gateway has ended.
    let over = || get(1, &[(":a", "b")]);
    // The first frames, those that follow again and again, after how many rounds, and why.
    type Flood = (&'static str, Vec<u8>, Box<dyn Fn(u32) -> Vec<u8>>, u32, &'static str);
    let floods: Vec<Flood> = vec![
        (
            "taken back",
            vec![],
            Box::new(move |round| [get(odd(round), &[]), reset(odd(round))].concat()),
            32,
            CALM,
        ),
        // The first ones are told to leave, and then ask for nothing.
        (
            "malformed",
            vec![],
            Box::new(move |round| get(odd(round), &[(":a", "b")])),
            129 + 1024,
            CALM,
        ),
        (
            "too many at once",
            vec![],
            Box::new(move |round| get(odd(round), &[])),
            128 + 129 + 1024,
            CALM,
        ),
        ("empty DATA", post(1, &[]), Box::new(|_| data(1, 0)), 1024, NOTHING),
        (
            "DATA that is padding",
            post(1, &[]),
            Box::new(|_| frame(DATA, PADDED, 1, &[0])),
            1024,
            NOTHING,
        ),
        (
            "the end of what is over",
            over(),
            Box::new(|_| frame(DATA, END_STREAM, 1, &[])),
            1024,
            NOTHING,
        ),
        (
            "the head of what is over, and PING",
            over(),
            Box::new(|_| [frame(HEADERS, END, 1, &[]), frame(PING, 0, 0, &[0; 8])].concat()),
            512,
            NOTHING,
        ),
        (
            "CONTINUATION",
            frame(HEADERS, END_STREAM, 1, &block(&GET)),
            Box::new(|_| frame(CONTINUATION, 0, 1, &[])),
            16,
            CALM,
        ),
        (
            "a head out of nothing",
            frame(HEADERS, END_STREAM, 1, &block(&GET)),
            Box::new(|_| frame(CONTINUATION, 0, 1, &[0x82; 16_000])),
            8,
            CALM,
        ),
        // The first SETTINGS have been paid for.
        ("PING", vec![], Box::new(|_| frame(PING, 0, 0, &[0; 8])), 1023, NOTHING),
        ("SETTINGS", vec![], Box::new(|_| setting(0x4, 1)), 1023, NOTHING),
    ];
    for (name, first, round, most, why) in floods {
        let mut connection = Connection::default();
        connection.receive(PREFACE).unwrap();
        connection.receive(&frame(SETTINGS, 0, 0, &[])).unwrap();
        connection.receive(&first).unwrap();
        let ended =
            (0..2000).find_map(|at| connection.receive(&round(at)).err().map(|end| (at, end)));
        let (at, end) = ended.expect(name);
        assert!(at <= most, "{name}: after {at}");
        assert_eq!(end.to_string(), why, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_breaks_the_rules_too_often_is_answered_what_is_under_way_and_no_more() {
    let mut talk = Talk::begun();
    talk.say(&get(1, &[]));
    let malformed = |number: u32| get(2 * number + 1, &[(":a", "b")]);
    (1..=128).for_each(|number| talk.say(&malformed(number)));
    assert!(!talk.heard.contains("GOAWAY"), "{}", talk.heard);
    talk.heard.clear();
    talk.say(&malformed(129));
    assert_eq!(talk.heard, "RST_STREAM 259 PROTOCOL_ERROR\nGOAWAY 259 ENHANCE_YOUR_CALM\n");
    talk.heard.clear();
    talk.say(&get(261, &[]));
    assert_eq!((&*talk.heard, talk.connection.is_over()), ("", false));
    talk.connection.answer(0, StatusCode::OK, &Fields::new(), true);
    talk.hear();
    assert_eq!((&*talk.heard, talk.connection.is_over()), ("HEADERS 1 200 end\n", true));
    let why = talk.connection.blamed().expect("somebody to blame");
    assert_eq!(why.to_string(), "HTTP/2: ENHANCE_YOUR_CALM");
}

#[tokio::test(start_paused = true)]
async fn who_breaks_a_rule_or_says_nothing_now_and_then_goes_on() {
    let mut talk = Talk::begun();
    talk.say(&post(1, &[]));
    for number in 1..=2000 {
        talk.say(&get(2 * number + 1, &[(":a", "b")]));
        talk.say(&[data(1, 0), data(1, 1)].concat());
        advance(Duration::from_secs(1)).await;
    }
    assert!(!talk.heard.contains("GOAWAY"));
    // Also at once, if there are not too many.
    let mut talk = Talk::begun();
    talk.say(&[post(1, &[]), [data(1, 0), data(1, 1)].concat().repeat(200)].concat());
    assert_eq!(talk.heard, "asks POST /\n");
}
