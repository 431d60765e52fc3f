//! Connections at work, with clients of another library.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use http::{Request as HttpRequest, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Body as _, Bytes, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::frames::{self, ACK, GOAWAY, HEADERS, Header, PING, PREFACE, RST_STREAM, SETTINGS};
use super::head::Bad;
use super::serve::{End, serve};
use crate::answer::Answer;
use crate::body::Cut;
use crate::buffer::{Ahead, Room};
use crate::message::{Known, Request, Response};
use crate::server::KEEP_ALIVE;
use crate::server::stream::STALL;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;
type Served = JoinHandle<Result<(), End>>;

fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn bytes(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn request(method: &str, path: &str, body: Body) -> HttpRequest<Body> {
    HttpRequest::builder().method(method).uri(format!("http://a{path}")).body(body).unwrap()
}

/// What a stream is answered with: `/echo` with what was sent, as it comes.
async fn answer(request: Request) -> Response<Answer> {
    let path = request.head.target().to_owned();
    match &*path {
        "/echo" => {
            let length = request.head.fields.get(Known::ContentLength).map(<[u8]>::to_vec);
            let mut response =
                Response::new(Answer::ahead(Ahead::new(request.body, &Room::default(), ())));
            if let Some(length) = length {
                response.fields.set(Known::ContentLength, length);
            }
            response
        }
        "/nothing" => {
            let mut response = Response::new(Answer::own(""));
            response.status = StatusCode::NO_CONTENT;
            response
        }
        "/no-content" => {
            let mut response = Response::new(Answer::own("nobody's"));
            response.status = StatusCode::NO_CONTENT;
            response.fields.set(Known::ContentLength, "0");
            response
        }
        "/silent" => pending().await,
        "/slow" => {
            sleep(Duration::from_secs(100)).await;
            Response::new(Answer::own("slow"))
        }
        "/length" => {
            let body = request.body.collect().await.expect("a body").to_bytes();
            Response::new(Answer::own(body.len().to_string()))
        }
        path => Response::new(Answer::own(path.repeat(1000))),
    }
}

/// Serves one end of it.
fn serving(served: DuplexStream, leaves: impl Future<Output = ()> + Send + 'static) -> Served {
    tokio::spawn(serve(served, leaves, answer, drop))
}

async fn client() -> (SendRequest<Body>, Served) {
    let (client, served) = duplex(1 << 16);
    let served = serving(served, pending());
    let (client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    (client, served)
}

/// A client that says whatever it wants.
struct Raw(DuplexStream);

impl Raw {
    async fn begin(leaves: impl Future<Output = ()> + Send + 'static) -> (Self, Served) {
        let (client, served) = duplex(1 << 16);
        let mut client = Self(client);
        client.say(PREFACE).await;
        client.frame(SETTINGS, 0, 0, &[]).await;
        (client, serving(served, leaves))
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = Vec::new();
        frames::write(&mut frame, kind, flags, stream, payload);
        self.say(&frame).await;
    }

    /// `GET`, or `POST` with a body to come.
    async fn ask(&mut self, stream: u32, get: bool, path: &str, field: Option<(&str, &str)>) {
        let mut block = vec![if get { 0x82 } else { 0x83 }, 0x86];
        let mut text = |first: u8, text: &str| {
            block.extend((first < 0x7f).then_some(first));
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        };
        text(0x04, path);
        text(0x01, "a");
        if let Some((name, value)) = field {
            text(0x00, name);
            text(0x7f, value);
        }
        let end = if get { frames::END_STREAM } else { 0 };
        self.frame(HEADERS, frames::END_HEADERS | end, stream, &block).await;
    }

    /// The next frame but SETTINGS and windows; `None`: the connection has ended.
    async fn hear(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            let mut header = [0; frames::HEADER];
            self.0.read_exact(&mut header).await.ok()?;
            let header = Header::read(&header).unwrap();
            let mut payload = vec![0; header.length];
            self.0.read_exact(&mut payload).await.ok()?;
            if !matches!(header.kind, SETTINGS | frames::WINDOW_UPDATE) {
                return Some((header, payload));
            }
        }
    }

    async fn kind(&mut self) -> Option<u8> {
        self.hear().await.map(|(header, _)| header.kind)
    }
}

#[tokio::test]
async fn streams_are_answered_side_by_side() {
    let (client, _served) = client().await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..300 {
        let mut client = client.clone();
        asking.spawn(async move {
            client.ready().await.unwrap();
            let path = format!("/{number}");
            let response = client.send_request(request("GET", &path, nothing())).await.unwrap();
            assert_eq!(response.headers()["content-length"], (1000 * path.len()).to_string());
            assert_eq!(response.headers()["date"].len(), 29);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, path.repeat(1000));
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
}

#[tokio::test]
async fn bodies_go_both_ways_at_once_on_all_streams() {
    let (client, _served) = client().await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..120_u8 {
        let mut client = client.clone();
        asking.spawn(async move {
            client.ready().await.unwrap();
            let sent = vec![number; 600_000 + usize::from(number)];
            let response = client.send_request(request("POST", "/echo", bytes(sent.clone()))).await;
            let body = response.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert!(body == sent, "{number}: {} bytes", body.len());
        });
    }
    let all = async {
        while let Some(asked) = asking.join_next().await {
            asked.unwrap();
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("no window is lost");
}

#[tokio::test]
async fn trailers_come_through() {
    let (mut client, _served) = client().await;
    let trailers = [("a".parse().unwrap(), "b".parse().unwrap())];
    let frames = [
        Ok(Frame::data(Bytes::from_static(b"word"))),
        Ok(Frame::trailers(trailers.into_iter().collect())),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let response = client.send_request(request("POST", "/echo", body)).await.unwrap();
    let all = response.into_body().collect().await.unwrap();
    assert_eq!(all.trailers().unwrap()["a"], "b");
    assert_eq!(all.to_bytes(), "word");
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let (mut client, _served) = client().await;
    for (method, path, length) in
        [("HEAD", "/a", Some("2000")), ("GET", "/nothing", None), ("GET", "/no-content", None)]
    {
        let response = client.send_request(request(method, path, nothing())).await.unwrap();
        let said = response.headers().get("content-length").map(|it| it.to_str().unwrap());
        assert_eq!(said, length, "{method} {path}");
        assert!(response.body().is_end_stream(), "{method} {path}");
    }
}

#[tokio::test]
async fn a_body_is_asked_for_when_somebody_wants_it() {
    let (mut client, _served) = Raw::begin(pending()).await;
    client.ask(1, false, "/length", Some(("expect", "100-continue"))).await;
    // Of that stream, as HPACK has it.
    let (header, payload) = client.hear().await.unwrap();
    assert_eq!((header.kind, header.stream, &*payload), (HEADERS, 1, &b"\x08\x03100"[..]));
    client.frame(frames::DATA, frames::END_STREAM, 1, b"word").await;
    let (header, payload) = client.hear().await.unwrap();
    assert_eq!((header.kind, payload[0]), (HEADERS, 0x88));
    assert_eq!(client.hear().await.unwrap().1, b"4");
    // Nobody waits who has sent it already.
    client.ask(3, false, "/length", Some(("expect", "100-continue"))).await;
    client.frame(frames::DATA, frames::END_STREAM, 3, b"word").await;
    assert_eq!(client.hear().await.unwrap().1[0], 0x88);
}

#[tokio::test]
async fn who_is_answered_early_need_not_send_the_rest() {
    let (mut client, _served) = Raw::begin(pending()).await;
    client.ask(1, false, "/", None).await;
    let mut heard = Vec::new();
    while heard.last() != Some(&RST_STREAM) {
        let (header, payload) = client.hear().await.unwrap();
        assert_eq!(header.stream, 1);
        heard.push(header.kind);
        if header.kind == RST_STREAM {
            assert_eq!(payload, [0; 4]);
        }
    }
    assert_eq!(heard, [HEADERS, frames::DATA, RST_STREAM]);
    // What is on its way is forgotten.
    client.frame(frames::DATA, frames::END_STREAM, 1, &[0; 1000]).await;
    client.frame(PING, 0, 0, b"12345678").await;
    assert_eq!(client.hear().await.unwrap().1, b"12345678");
}

#[tokio::test]
async fn what_a_client_takes_back_is_dropped() {
    let (client, served) = duplex(1 << 16);
    let (say, mut said) = mpsc::unbounded_channel();
    tokio::spawn(serve(
        served,
        pending(),
        move |request: Request| {
            let (there, gone) = oneshot::channel::<()>();
            say.send(gone).unwrap();
            async move {
                let _there = there;
                answer(request).await
            }
        },
        drop,
    ));
    let mut client = Raw(client);
    client.say(PREFACE).await;
    client.frame(SETTINGS, 0, 0, &[]).await;
    client.ask(1, false, "/echo", None).await;
    let gone = said.recv().await.unwrap();
    client.frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]).await;
    assert!(gone.await.is_err());
    client.ask(3, false, "/echo", None).await;
    let gone = said.recv().await.unwrap();
    drop(client);
    assert!(gone.await.is_err());
}

#[tokio::test]
async fn a_long_answer_holds_up_no_other_one() {
    let (mut client, _served) = client().await;
    let long = vec![0; 8 << 20];
    let mut first = client.send_request(request("POST", "/echo", bytes(long))).await.unwrap();
    let frame = first.body_mut().frame().await;
    assert!(frame.is_some());
    // Nobody reads the long one any more.
    let short = client.send_request(request("GET", "/short", nothing()));
    let short = timeout(Duration::from_secs(20), short).await.expect("in time").unwrap();
    assert_eq!(short.into_body().collect().await.unwrap().to_bytes().len(), 6000);
}

#[tokio::test]
async fn who_is_told_to_leave_is_answered_before() {
    let (say, leaves) = oneshot::channel::<()>();
    let (mut client, served) = Raw::begin(async move { _ = leaves.await }).await;
    client.ask(1, false, "/echo", None).await;
    let first = client.hear().await.unwrap();
    assert_eq!(first.0.kind, HEADERS);
    say.send(()).unwrap();
    let (header, payload) = client.hear().await.unwrap();
    assert_eq!((header.kind, &*payload), (GOAWAY, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0][..]));
    let (header, heard) = client.hear().await.unwrap();
    assert_eq!(header.kind, PING);
    // It has asked something before it hears.
    client.ask(3, true, "/echo", None).await;
    assert_eq!(client.kind().await, Some(HEADERS));
    assert_eq!(client.kind().await, Some(frames::DATA));
    client.frame(PING, ACK, 0, &heard).await;
    let (header, payload) = client.hear().await.unwrap();
    assert_eq!((header.kind, &*payload), (GOAWAY, &[0, 0, 0, 3, 0, 0, 0, 0][..]));
    // And what comes now is nobody's.
    client.ask(5, true, "/echo", None).await;
    client.frame(frames::DATA, frames::END_STREAM, 1, b"word").await;
    let (header, payload) = client.hear().await.unwrap();
    assert_eq!((header.stream, &*payload), (1, &b"word"[..]));
    while let Some((header, _)) = client.hear().await {
        assert_eq!((header.kind, header.stream), (frames::DATA, 1));
    }
    drop(client);
    assert!(served.await.unwrap().is_ok());
}

#[tokio::test]
async fn who_breaks_the_rules_is_told_why() {
    let (mut client, served) = Raw::begin(pending()).await;
    client.frame(PING, 0, 1, &[0; 8]).await;
    client.frame(PING, 0, 0, &[0; 8]).await;
    let (header, payload) = client.hear().await.unwrap();
    assert_eq!((header.kind, &*payload), (GOAWAY, &[0, 0, 0, 0, 0, 0, 0, 1][..]));
    assert!(client.hear().await.is_none());
    drop(client);
    assert_eq!(served.await.unwrap().unwrap_err().to_string(), "HTTP/2: PROTOCOL_ERROR");
}

// Where nobody has anything to do, time passes by itself.
#[tokio::test(start_paused = true)]
async fn who_asks_for_nothing_is_told_to_leave() {
    let begun = Instant::now();
    let (mut client, served) = Raw::begin(pending()).await;
    let mut heard = Vec::new();
    while let Some((header, payload)) = client.hear().await {
        heard.push(header.kind);
        if header.kind == PING {
            client.frame(PING, ACK, 0, &payload).await;
        }
    }
    assert!((KEEP_ALIVE..2 * KEEP_ALIVE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!(heard.starts_with(&[PING, GOAWAY]) && heard.ends_with(&[GOAWAY]), "{heard:?}");
    drop(client);
    assert!(served.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_had_to_wait_for_an_answer_may_wait_for_the_next_request() {
    let begun = Instant::now();
    let (mut client, _served) = Raw::begin(pending()).await;
    client.ask(1, true, "/slow", None).await;
    while let Some((header, payload)) = client.hear().await {
        match header.kind {
            GOAWAY => break,
            PING => client.frame(PING, ACK, 0, &payload).await,
            _ => {}
        }
    }
    assert_eq!(begun.elapsed().as_secs(), 100 + KEEP_ALIVE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_need_not_say_that_it_is_there() {
    let (mut client, served) = Raw::begin(pending()).await;
    let most = (1_u32 << 30).to_be_bytes();
    client.frame(SETTINGS, 0, 0, &[&[0, 4][..], &most].concat()).await;
    client.frame(frames::WINDOW_UPDATE, 0, 0, &most).await;
    client.ask(1, true, &format!("/{}", "x".repeat(100)), None).await;
    let mut read = [0; 100];
    for _ in 0..300 {
        client.0.read_exact(&mut read).await.expect("more of the answer");
        sleep(Duration::from_secs(1)).await;
    }
    assert!(!served.is_finished());
    drop(client);
}

#[tokio::test]
async fn requests_that_are_none_are_told_of() {
    let (client, served) = duplex(1 << 20);
    let (say, mut said) = mpsc::unbounded_channel();
    let refused = move |bad| say.send(bad).unwrap();
    tokio::spawn(serve(served, pending(), answer, refused));
    let mut client = Raw(client);
    client.say(PREFACE).await;
    client.frame(SETTINGS, 0, 0, &[]).await;
    client.ask(1, true, "/bad", Some(("Upper", "x"))).await;
    assert!(matches!(said.recv().await, Some(Bad::Malformed)));
    assert_eq!(client.kind().await, Some(RST_STREAM));
    // Of three times almost 16 KiB.
    let field = [&[0x00, 0x01, b'a', 0x7f, 0x80, 0x7d][..], &[b'x'; 127 + 0x7d * 128]].concat();
    let block = [&b"\x82\x86\x04\x05/long\x01\x01a"[..], &field].concat();
    client.frame(HEADERS, frames::END_STREAM, 3, &block).await;
    client.frame(frames::CONTINUATION, 0, 3, &field).await;
    client.frame(frames::CONTINUATION, frames::END_HEADERS, 3, &field).await;
    let Some(Bad::TooLong(Some(head))) = said.recv().await else { panic!("no head") };
    assert_eq!((&head.method, head.target()), (&http::Method::GET, "/long"));
    let (header, payload) = client.hear().await.unwrap();
    assert_eq!((header.kind, header.stream, &*payload), (HEADERS, 3, &b"\x08\x03431"[..]));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_asked_whether_it_is_there() {
    let begun = Instant::now();
    let (mut client, served) = Raw::begin(pending()).await;
    client.ask(1, true, "/silent", None).await;
    for round in 1..=10 {
        let (header, payload) = client.hear().await.unwrap();
        assert_eq!((header.kind, begun.elapsed().as_secs()), (PING, 75 * round));
        client.frame(PING, ACK, 0, &payload).await;
    }
    assert_eq!(client.kind().await, Some(PING));
    assert_eq!(client.kind().await, None);
    assert_eq!(begun.elapsed().as_secs(), 11 * 75 + 20);
    assert!(served.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_is_reset() {
    let (client, served) = duplex(1 << 16);
    let (say, mut said) = mpsc::unbounded_channel();
    tokio::spawn(serve(
        served,
        pending(),
        move |_: Request| {
            let (there, gone) = oneshot::channel::<()>();
            say.send(gone).unwrap();
            let mut answer = Answer::own("x".repeat(4000));
            // In four parts.
            answer.pace(4000, 4000);
            answer.hold(Arc::new(there));
            async move { Response::new(answer) }
        },
        drop,
    ));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(10);
    let (mut client, connection) = builder.handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let begun = Instant::now();
    let _unread = client.send_request(request("GET", "/", nothing())).await.unwrap();
    let gone = said.recv().await.unwrap();
    assert!(timeout(2 * STALL, gone).await.expect("dropped").is_err());
    assert!(begun.elapsed() >= STALL);
    // The connection goes on.
    client.send_request(request("GET", "/", nothing())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_is_none_that_is_over() {
    let (mut client, _served) = client().await;
    let frames = [Ok(Frame::data(Bytes::from_static(b"word"))), Err(std::io::Error::other("x"))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let response = client.send_request(request("POST", "/echo", body)).await;
    let read = async |response: hyper::Response<Incoming>| response.into_body().collect().await;
    assert!(response.is_err() || read(response.unwrap()).await.is_err());
    // It is a part of the error that whoever answers is told, too.
    assert_eq!(Cut::Client.to_string(), "the client went away, or what it sent is no body");
}
