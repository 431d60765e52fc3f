//! Search lists of pods, walked for them.

use super::*;

/// A query for a name of a pod's search list.
async fn searches(forwarder: &Forwarder, names: &[&str]) -> Message {
    let message = query("www.shop.svc.cluster.local", A);
    let heard = asks(forwarder, &message, |forward| {
        forward.names = names.iter().map(|name| name.parse().expect("a name")).collect();
        (forward.search, forward.ttl) = (true, 5);
    });
    read(&heard.await)
}

#[tokio::test(start_paused = true)]
async fn a_search_list_is_walked_for_the_client_in_one_round_trip() {
    let upstream = knows_www().await;
    let forwarder = forwarder(&[&upstream]);
    for _ in 0..2 {
        let message = searches(&forwarder, &["www.local", "www.example", "www.test"]).await;
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        let records: Vec<_> = message
            .answers
            .iter()
            .map(|record| format!("{} {}", record.name, record.data))
            .collect();
        assert_eq!(
            records,
            [
                "www.shop.svc.cluster.local. www.example.",
                "www.example. web.example.",
                "web.example. 192.0.2.7"
            ]
        );
    }
    // Each is asked for at once, and the second time all of it is known.
    let mut names = upstream.names();
    names.sort();
    assert_eq!(names, ["www.example", "www.local", "www.test"]);
}

#[tokio::test(start_paused = true)]
async fn a_search_ends_with_a_name_that_is_there_without_such_records() {
    let upstream = knows_www().await;
    let message = searches(&forwarder(&[&upstream]), &["www.nodata", "www.example"]).await;
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert_eq!(message.answers.len(), 1);
    assert_eq!(message.answers[0].record_type(), RecordType::CNAME);
    assert_eq!(message.authorities.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_search_that_finds_nothing_says_that_the_name_is_not_there() {
    let upstream = knows_www().await;
    let message = searches(&forwarder(&[&upstream]), &["www.local", "www.test"]).await;
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    assert!(message.answers.is_empty());
    assert_eq!(message.authorities[0].name.to_string(), "cluster.local.");
}

#[tokio::test(start_paused = true)]
async fn of_a_search_that_cannot_go_on_the_name_is_not_there() {
    let upstream = knows_www().await;
    let silent = Pretender::new(|_, _| Act::Nothing).await;
    // An upstream does not know, says nothing, or is not there: the client goes on itself.
    for (upstreams, longest) in [
        (&[&upstream][..], Duration::from_millis(100)),
        (&[&silent], STALE_AFTER + Duration::from_millis(100)),
        (&[], Duration::from_millis(100)),
    ] {
        let forwarder = forwarder(upstreams);
        let began = Moment::now();
        let message = searches(&forwarder, &["www.odd", "www.example"]).await;
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(message.authorities[0].name.to_string(), "cluster.local.");
        assert!(began.elapsed() < longest, "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_search_waits_once_for_upstreams_that_are_silent() {
    let silent = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&silent);
    let upstream = Pretender::new(move |asked, _| {
        if state.load(Ordering::Relaxed) {
            return Act::Nothing;
        }
        Act::Say(vec![match asked_name(asked).to_lowercase().as_str() {
            "www.example" => reply_to(asked).a([192, 0, 2, 7], 60).bytes(),
            _ => reply_to(asked).rcode(3).soa(60, 60).bytes(),
        }])
    })
    .await;
    let forwarder = forwarder(&[&upstream]);
    let names = ["www.local", "www.test", "www.example"];
    searches(&forwarder, &names).await;
    silent.store(true, Ordering::Relaxed);
    advance(100 * SECOND).await;
    let began = Moment::now();
    assert_eq!(addresses(&searches(&forwarder, &names).await), [[192, 0, 2, 7]]);
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
}
