//! Requests through a gateway, from clients to backends and back.

#![expect(clippy::unwrap_used, reason = "a test that cannot be prepared has failed")]

mod broken;
mod dashboards;
mod duties;
mod frames;
mod many;
mod ports;
mod ready;
mod support;
mod transfer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use fairway_model::BackendProtocol;
use support::*;

/// Says what it was asked.
pub(crate) async fn echo(request: Request<Incoming>) -> Response<Body> {
    let mut said = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        said += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    said += &String::from_utf8_lossy(&body);
    Response::builder()
        .header("connection", "x-private")
        .header("x-private", "1")
        .body(text(said))
        .unwrap()
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn many_requests_over_one_connection_take_one_to_the_backend() {
    let backend = backend(echo).await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let mut client = client(gateway.http).await;
    for number in 0..50 {
        let mut request = Request::post(format!("/x?n={number}")).header("host", "a.example");
        for (name, value) in [
            ("x_odd", "1"),
            ("te", "gzip"),
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("mine", "2"),
        ] {
            request = request.header(name, value);
        }
        let request = request.body(text(format!("body {number}"))).unwrap();
        client.ready().await.unwrap();
        let response = client.send_request(request).await.unwrap();
        assert!(!response.headers().contains_key("x-private"));
        let (status, said) = read(response).await;
        assert_eq!(status, 200);
        assert!(said.starts_with(&format!("POST /x?n={number}\n")), "{said}");
        assert!(said.ends_with(&format!("body {number}")), "{said}");
        assert!(said.contains("host: a.example\n") && said.contains("\nmine: 2\n"), "{said}");
        for gone in ["x_odd", "\nte:", "\nconnection:", "transfer-encoding"] {
            assert!(!said.contains(gone), "{gone}: {said}");
        }
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn what_has_no_answer_is_answered() {
    let cut = each(|stream| async move { drop(stream) }).await;
    let world = World::default()
        .service("none", &[])
        .host("none.example", "none")
        .service("dead", &[nobody().await])
        .host("dead.example", "dead")
        .service("cut", &[cut.address])
        .host("cut.example", "cut")
        .host("gone.example", "gone");
    let gateway = gateway(&world).await;
    for (host, status) in [
        ("nowhere.example", 404),
        ("none.example", 503),
        ("gone.example", 503),
        ("dead.example", 502),
        ("cut.example", 502),
    ] {
        assert_eq!(ask(gateway.http, get(host, "/")).await.0, status, "{host}");
    }
    // A request is counted when its answer has been written, and its client may have read that before.
    let counted = async {
        loop {
            let metrics = ask(gateway.admin, get("localhost", "/metrics")).await.1;
            let requests = metrics
                .lines()
                .filter(|line| line.starts_with("nginx_ingress_controller_requests{"));
            if requests.count() == 5 {
                return;
            }
        }
    };
    timeout(Duration::from_secs(10), counted).await.unwrap();
}

/// Each is named by what is wrong with it. None of them may reach a backend.
#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused_and_the_connection_closed() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let backend = backend(move |request: Request<Incoming>| {
        if request.uri().path() != "/good" {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        echo(request)
    })
    .await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let host = "Host: a.example\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for (name, request) in [
        (
            "length and encoding",
            format!(
                "POST / HTTP/1.1\r\n{host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "encoding and length",
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "two lengths",
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 0\r\nContent-Length: 44\r\n\r\n"),
        ),
        (
            "two equal lengths",
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 0\r\nContent-Length: 0\r\n\r\n"),
        ),
        ("a list of lengths", format!("POST / HTTP/1.1\r\n{host}Content-Length: 0, 0\r\n\r\n")),
        ("a signed length", format!("POST / HTTP/1.1\r\n{host}Content-Length: +0\r\n\r\n")),
        (
            "another encoding",
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "two encodings",
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "encoding of HTTP/1.0",
            format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "a space before the colon",
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ),
        ("a folded header", format!("POST / HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n")),
        ("a bare LF", format!("GET / HTTP/1.1\r\n{host}X: a\n\r\n")),
        ("a bare CR", format!("GET / HTTP/1.1\r\n{host}X: a\rY: b\r\n\r\n")),
        ("NUL", format!("GET / HTTP/1.1\r\n{host}X: a\0\r\n\r\n")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("two hosts", format!("GET / HTTP/1.1\r\n{host}{host}\r\n")),
        ("CONNECT", format!("CONNECT a.example:80 HTTP/1.1\r\n{host}\r\n")),
        ("HTTP/0.9", "GET /\r\n".to_owned()),
        ("a version of the future", format!("GET / HTTP/1.2\r\n{host}\r\n")),
        ("a head without end", format!("GET / HTTP/1.1\r\n{host}X: {}", "x".repeat(40_000))),
        (
            "a size that is none",
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n"
            ),
        ),
        (
            "a chunk that ends elsewhere",
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n"
            ),
        ),
        (
            "a chunk's line that ends with LF",
            format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\n\r\n"),
        ),
        (
            "a length in trailers",
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n"
            ),
        ),
    ] {
        let answer = raw(gateway.http, format!("{request}{smuggled}").as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{name}: {answer:?}"
        );
        assert!(!answer.contains("smuggled"), "{name}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{name}: {answer:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "{name}: {answer:?}");
        let good = ask(gateway.http, get("a.example", "/good")).await;
        assert_eq!(good.0, 200, "after {name}");
    }
    let metrics = ask(gateway.admin, get("localhost", "/metrics")).await.1;
    assert!(
        metrics.contains("refused_bytes_total{reason=\"a header that is folded\"} 1\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn requests_one_behind_the_other_are_answered_in_turn() {
    let backend = backend(echo).await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let request =
        |path: &str, more: &str| format!("POST {path} HTTP/1.1\r\nHost: a.example\r\n{more}");
    let requests = [
        request("/1", "Content-Length: 3\r\n\r\nabc"),
        request("/2", "Transfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\n"),
        request("/3", "Connection: close\r\n\r\n"),
    ];
    let answer = raw(gateway.http, requests.concat().as_bytes()).await;
    let at = |text: &str| answer.find(text).unwrap_or_else(|| panic!("no {text:?} in {answer:?}"));
    assert!(at("POST /1") < at("abc") && at("abc") < at("POST /2"));
    assert!(at("def") < at("POST /3"));
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3);
}

#[tokio::test]
async fn certificates_are_chosen_by_name_and_swapped_under_open_connections() {
    let backend = backend(echo).await;
    let (one, other, next) = (
        Certificate::new("a.example"),
        Certificate::new("*.b.example"),
        Certificate::new("a.example"),
    );
    let world = |first: &Certificate| {
        World::default().service("web", &[backend.address]).tls("a.example", "web", first).tls(
            "*.b.example",
            "web",
            &other,
        )
    };
    let gateway = gateway(&world(&one)).await;
    assert_eq!(shown(gateway.https, "a.example").await, one.der());
    assert_eq!(shown(gateway.https, "x.b.example").await, other.der());
    let own = shown(gateway.https, "x.y.b.example").await;
    let (_, own) = x509_parser::parse_x509_certificate(&own).unwrap();
    assert_eq!(own.subject().to_string(), format!("CN={}", fairway_ingress::tls::OWN_NAME));

    let open = tls(gateway.https, "a.example", "http/1.1").await;
    let builder = hyper::client::conn::http1::Builder::new();
    let (mut open, connection) = builder.handshake::<_, Body>(TokioIo::new(open)).await.unwrap();
    tokio::spawn(connection);
    gateway.apply(&world(&next).model());
    assert_eq!(shown(gateway.https, "a.example").await, next.der());
    let response = open.send_request(get("a.example", "/")).await.unwrap();
    assert_eq!(read(response).await.0, 200);

    // Certificate and key of different pairs: what was good stays.
    let broken = Certificate { pem: one.pem.clone(), key: other.key.clone() };
    gateway.apply(&world(&broken).model());
    assert_eq!(shown(gateway.https, "a.example").await, next.der());
    let certs = ask(gateway.admin, get("localhost", "/certs")).await.1;
    assert!(certs.contains("cannot be used"), "{certs}");
}

#[tokio::test]
async fn who_asks_is_told_why() {
    let backend = backend(echo).await;
    let certificate = Certificate::new("a.example");
    let world =
        World::default().service("web", &[backend.address]).tls("a.example", "web", &certificate);
    let gateway = gateway(&world).await;
    let said = async |path: &str| {
        let (status, said) = ask(gateway.admin, get("localhost", path)).await;
        assert_eq!(status, 200, "{said}");
        serde_json::from_str::<Vec<String>>(&said).unwrap().join("\n")
    };
    let why = said("/explain?method=POST&url=https://a.example/x?y=1&z=2").await;
    assert!(why.contains("shop/web") && why.contains("shop/a.example"), "{why}");
    assert!(said("/explain?url=http://b.example/").await.contains("404"));
    assert!(
        said("/tls?name=A.example")
            .await
            .contains("Secret shop/a.example-tls: it is for this name")
    );
    assert!(said("/tls?name=b.example").await.contains("the gateway's own"));
    assert_eq!(ask(gateway.admin, get("localhost", "/explain?x")).await.0, 400);
    assert_eq!(backend.connections(), 0);
}

#[tokio::test]
async fn http_2_streams_share_a_connection() {
    let backend = backend(echo).await;
    let certificate = Certificate::new("a.example");
    let world =
        World::default().service("web", &[backend.address]).tls("a.example", "web", &certificate);
    let gateway = gateway(&world).await;
    let stream = tls(gateway.https, "a.example", "h2").await;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (client, connection) = builder.handshake::<_, Body>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..20 {
        let mut client = client.clone();
        asking.spawn(async move {
            let request =
                Request::post(format!("https://a.example/{number}")).version(Version::HTTP_2);
            let request = request.header("cookie", "a=1").header("cookie", "b=2");
            let request = request.body(text(format!("body {number}"))).unwrap();
            let (status, said) = read(client.send_request(request).await.unwrap()).await;
            assert_eq!(status, 200);
            assert!(said.contains(&format!("POST /{number}\n")), "{said}");
            assert!(said.contains("\ncookie: a=1; b=2\n"), "{said}");
            assert!(
                said.contains("host: a.example\n") && said.ends_with(&format!("body {number}"))
            );
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
    let mut client = client.clone();
    let request =
        Request::get("https://a.example/").header("host", "b.example").version(Version::HTTP_2);
    let response = client.send_request(request.body(nothing()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn streams_of_grpc_end_with_trailers() {
    let backend = backend_of_http_2(|request: Request<Incoming>| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().authority().unwrap(), "a.example");
        let mut body = request.into_body();
        let (answers, frames) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { break };
                answers.send(Ok(Frame::data(data))).await.unwrap();
            }
            let trailers: HeaderMap =
                [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
            answers.send(Ok(Frame::trailers(trailers))).await.unwrap();
        });
        Response::new(BodyExt::boxed(StreamBody::new(Frames(frames))))
    })
    .await;
    let certificate = Certificate::new("a.example");
    let mut world =
        World::default().service("web", &[backend.address]).tls("a.example", "web", &certificate);
    for object in &mut world.objects {
        if let fairway_model::Object::Ingress(ingress) = object {
            ingress.options.protocol = BackendProtocol::Grpc;
        }
    }
    let gateway = gateway(&world).await;
    let stream = tls(gateway.https, "a.example", "h2").await;
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut client, connection) =
        builder.handshake::<_, Body>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (say, frames) = tokio::sync::mpsc::channel(1);
    let request = Request::post("https://a.example/svc/Method")
        .header("te", "trailers")
        .version(Version::HTTP_2);
    let request = request.body(BodyExt::boxed(StreamBody::new(Frames(frames)))).unwrap();
    let mut response = client.send_request(request).await.unwrap();
    // Each way goes on while the other one does.
    for word in ["one", "two"] {
        say.send(Ok(Frame::data(Bytes::from(word)))).await.unwrap();
        let frame = timeout(PATIENCE, response.body_mut().frame()).await.expect("in time");
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), word);
    }
    drop(say);
    let frame = timeout(PATIENCE, response.body_mut().frame()).await.expect("in time");
    assert_eq!(frame.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "0");
}

/// A body as it is said.
pub(crate) struct Frames(
    pub(crate) tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, std::convert::Infallible>>,
);

impl futures_util::Stream for Frames {
    type Item = Result<Frame<Bytes>, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Agrees to speak another protocol, and says everything again.
async fn parrot(mut request: Request<Incoming>) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..length]).await.unwrap();
        }
    });
    let response = Response::builder().status(101).header("connection", "upgrade");
    response.header("upgrade", "parrot").body(nothing()).unwrap()
}

const UPGRADE: &str =
    "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: parrot\r\n\r\n";

#[tokio::test]
async fn another_protocol_lasts_over_a_hundred_configurations() {
    let backend = backend(parrot).await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    stream.write_all(UPGRADE.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.expect("in time").unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: parrot"), "{head}");
    for number in 0..100 {
        // Its own route is gone every other time.
        let world = if number % 2 == 0 { World::default() } else { world.clone() };
        gateway.apply(&world.host(&format!("{number}.example"), "web").model());
        // Not HTTP at all.
        let said = [b'\n', 0, number, 255];
        stream.write_all(&said).await.unwrap();
        let mut heard = [0; 4];
        timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("in time").unwrap();
        assert_eq!(heard, said);
    }
}

#[tokio::test]
async fn data_before_the_other_protocol_was_agreed_upon_is_refused() {
    let backend = backend(parrot).await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let answer = raw(gateway.http, format!("{UPGRADE}{smuggled}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    assert!(!answer.contains("smuggled"), "{answer:?}");
}

#[tokio::test]
async fn bodies_are_no_longer_than_they_may_be() {
    let backend = backend(echo).await;
    let world = World::default().service("web", &[backend.address]).ingress(
        "a.example",
        "web",
        |ingress| ingress.options.body_size = Some(100_000),
    );
    let gateway = gateway(&world).await;
    let post = |body: Body| Request::post("/").header("host", "a.example").body(body).unwrap();
    assert_eq!(ask(gateway.http, post(text("x".repeat(100_000)))).await.0, 200);
    assert_eq!(ask(gateway.http, post(text("x".repeat(100_001)))).await.0, 413);
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = raw(gateway.http, format!("{head}{chunk}{chunk}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer:?}");
}

#[tokio::test]
async fn another_endpoint_is_tried_where_that_does_no_harm() {
    let (good, dead) = (backend(echo).await, nobody().await);
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    // Takes a request, and dies.
    let dies = each(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            let _ = stream.read(&mut [0; 1000]).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let world = World::default()
        .service("dead", &[good.address, dead])
        .host("dead.example", "dead")
        .service("dies", &[good.address, dies.address])
        .ingress("dies.example", "dies", |ingress| {
            ingress.options.choice = Some(fairway_model::Choice::RoundRobin);
        });
    let gateway = gateway(&world).await;
    let post = |host: &str| Request::post("/").header("host", host).body(text("body")).unwrap();
    for _ in 0..10 {
        assert_eq!(ask(gateway.http, post("dead.example")).await.0, 200);
        assert_eq!(ask(gateway.http, get("dies.example", "/")).await.0, 200);
    }
    let before = asked.load(Ordering::SeqCst);
    assert!(before > 0);
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(ask(gateway.http, post("dies.example")).await.0);
    }
    let failed = answers.iter().filter(|status| **status == 502).count();
    assert_eq!(failed, asked.load(Ordering::SeqCst) - before, "{answers:?}");
    assert!(failed > 0 && answers.contains(&200), "{answers:?}");
}

/// Reads so many bytes after a request's head, and dies.
async fn dies_after(most: usize) -> Server {
    each(move |mut stream| async move {
        let (mut read, mut part) = (Vec::new(), vec![0; 4096]);
        while let Ok(length @ 1..) = stream.read(&mut part).await {
            read.extend_from_slice(&part[..length]);
            let head = read.windows(4).position(|four| four == b"\r\n\r\n");
            if head.is_some_and(|head| read.len() - head - 4 >= most) {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_body_of_which_a_part_is_gone_is_not_sent_again() {
    let (good, dead) = (backend(echo).await, nobody().await);
    let (late, early) = (dies_after(100_000).await, dies_after(10).await);
    let alternate = |buffered: bool| {
        move |ingress: &mut fairway_model::Ingress| {
            ingress.options.choice = Some(fairway_model::Choice::RoundRobin);
            ingress.options.request_buffering = Some(buffered);
        }
    };
    let world = World::default()
        .service("late", &[good.address, late.address])
        .ingress("late.example", "late", alternate(true))
        .service("early", &[good.address, early.address])
        .ingress("early.example", "early", alternate(false))
        .service("dead", &[good.address, dead])
        .ingress("dead.example", "dead", alternate(false));
    let gateway = gateway(&world).await;
    // More than is kept, of a length that nobody has said; and what is not kept at all.
    let long = "x".repeat(200_000);
    for (host, body) in [("late.example", &*long), ("early.example", "0123456789")] {
        let mut answers = Vec::new();
        for _ in 0..4 {
            let frames = [Ok(Frame::data(Bytes::from(body.to_owned())))];
            let stream = StreamBody::new(futures_util::stream::iter(frames));
            let request = Request::put("/").header("host", host);
            let request = match host {
                "late.example" => request.body(BodyExt::boxed(stream)),
                _ => request.body(text(body.to_owned())),
            };
            let (status, said) = ask(gateway.http, request.unwrap()).await;
            assert!(status != 200 || said.ends_with(&format!("\n{body}")), "{host}: {said:.300}");
            answers.push(status);
        }
        answers.sort_unstable();
        assert_eq!(answers, [200, 200, 502, 502], "{host}");
    }
    // Of this nothing was sent.
    for _ in 0..4 {
        let request = Request::post("/").header("host", "dead.example").body(text("body")).unwrap();
        let (status, said) = ask(gateway.http, request).await;
        assert!(status == 200 && said.ends_with("\nbody"), "{status} {said}");
    }
}

#[tokio::test]
async fn a_get_may_have_a_body_whose_length_nobody_knows() {
    let backend = backend(echo).await;
    let world = World::default().service("web", &[backend.address]).ingress(
        "a.example",
        "web",
        |ingress| ingress.options.request_buffering = Some(false),
    );
    let gateway = gateway(&world).await;
    let head = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n";
    let chunks = "Transfer-Encoding: chunked\r\n\r\n5\r\nquery\r\n0\r\n\r\n";
    let answer = raw(gateway.http, format!("{head}{chunks}").as_bytes()).await;
    assert!(answer.contains("transfer-encoding: chunked\n"), "{answer}");
    assert!(answer.contains("\nquery"), "{answer}");
    let answer = raw(gateway.http, format!("{head}\r\n").as_bytes()).await;
    assert!(!answer.contains("transfer-encoding: chunked\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_so_for_the_client() {
    let cut = each(|mut stream| async move {
        let _ = stream.read(&mut [0; 1000]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    })
    .await;
    let world = World::default().service("web", &[cut.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let answer = raw(gateway.http, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("half"), "{answer:?}");
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_not_waited_for_for_ever() {
    let silent =
        each(|mut stream| async move { while let Ok(1..) = stream.read(&mut [0; 1000]).await {} })
            .await;
    let world =
        World::default()
            .service("web", &[silent.address])
            .ingress("a.example", "web", |ingress| ingress.options.read_timeout = Some(1));
    let gateway = gateway(&world).await;
    assert_eq!(ask(gateway.http, get("a.example", "/")).await.0, 504);
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let backend = backend(|request: Request<Incoming>| async move {
        let response = Response::builder();
        match request.uri().path() {
            "/204" => response.status(204).body(nothing()),
            "/304" => response.status(304).header("etag", "\"x\"").body(nothing()),
            _ if request.method() == Method::HEAD => {
                response.header("content-length", 5).body(nothing())
            }
            _ => response.body(text("hello")),
        }
        .unwrap()
    })
    .await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let mut requests = String::new();
    for (method, path) in [("GET", "/204"), ("GET", "/304"), ("HEAD", "/"), ("GET", "/")] {
        requests += &format!("{method} {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    }
    requests = requests.replace("GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nConnection: close\r\n");
    let answer = raw(gateway.http, requests.as_bytes()).await;
    for status in ["204 No Content", "304 Not Modified", "200 OK"] {
        assert!(answer.contains(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    assert_eq!(answer.matches("hello").count(), 1, "{answer}");
    assert_eq!(answer.matches("content-length: 5").count(), 2, "{answer}");
}

#[tokio::test]
async fn a_thousand_configurations_cost_no_request() {
    let (one, other) = (backend(echo).await, backend(echo).await);
    let world = World::default().host("a.example", "web");
    let first = world.clone().service("web", &[one.address]);
    let gateway = Arc::new(gateway(&first).await);
    let address = gateway.http;
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let changing = {
        let (gateway, done, world) = (Arc::clone(&gateway), Arc::clone(&done), world.clone());
        let addresses = [one.address, other.address];
        std::thread::spawn(move || {
            for number in 0..1000 {
                let all = [&addresses[..1], &addresses[1..], &addresses];
                let world = world.clone().service("web", all[number % 3]);
                gateway.apply(&world.host(&format!("{}.example", number % 7), "web").model());
            }
            done.store(true, Ordering::SeqCst);
        })
    };
    let mut asked = 0;
    let mut open = client(address).await;
    while !done.load(Ordering::SeqCst) || asked < 100 {
        open.ready().await.unwrap();
        let (status, said) = read(open.send_request(get("a.example", "/")).await.unwrap()).await;
        assert_eq!(status, 200, "{said}");
        asked += 1;
    }
    changing.join().unwrap();
}

#[tokio::test]
async fn who_is_told_to_stop_ends_what_is_under_way() {
    let (release, held) = tokio::sync::watch::channel(false);
    let arrived = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let arrives = Arc::clone(&arrived);
    let backend = backend(move |request: Request<Incoming>| {
        let (mut held, arrives) = (held.clone(), Arc::clone(&arrives));
        async move {
            if request.uri().path() == "/slow" {
                arrives.store(true, Ordering::SeqCst);
                let _ = held.wait_for(|go| *go).await;
            }
            Response::new(text("whole"))
        }
    })
    .await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = Arc::new(gateway(&world).await);
    assert_eq!(ask(gateway.admin, get("localhost", "/readyz")).await.0, 200);
    let mut idle = client(gateway.http).await;
    read(idle.send_request(get("a.example", "/")).await.unwrap()).await;
    let mut busy = client(gateway.http).await;
    let slow = tokio::spawn(async move { busy.send_request(get("a.example", "/slow")).await });
    let arrived = async {
        while !arrived.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, arrived).await.expect("both are there");
    assert_eq!(gateway.open(), 2);

    let draining = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { gateway.drain(PATIENCE).await }
    });
    let refused = async {
        while TcpStream::connect(gateway.http).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.expect("no more connections");
    assert_eq!(ask(gateway.admin, get("localhost", "/readyz")).await.0, 503);
    assert!(!draining.is_finished());
    // Connections have heard of it, too.
    let closed = async {
        while idle.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, closed).await.expect("closed");
    release.send_replace(true);
    let response = timeout(PATIENCE, slow).await.expect("in time").unwrap().unwrap();
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(read(response).await, (200, "whole".to_owned()));
    timeout(PATIENCE, draining).await.expect("an end").unwrap();
    assert_eq!(gateway.open(), 0);
}
