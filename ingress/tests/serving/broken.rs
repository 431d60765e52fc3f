//! Backends that answer what is no answer, slowly, or never; and requests that are too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fairway_ingress::gateway::Gateway;
use fairway_model::{BackendProtocol, Ingress};
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::*;
use super::{UPGRADE, echo, parrot};

const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

/// All of a request's head that asks for nothing else.
async fn heard(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return false };
        head.push(byte);
    }
    true
}

/// Says the same to each request, and closes if that is all that it can mean.
async fn says(answer: impl Into<Vec<u8>>, close: bool) -> Server {
    let answer = Arc::new(answer.into());
    each(move |mut stream| {
        let answer = Arc::clone(&answer);
        async move {
            while heard(&mut stream).await {
                let _ = stream.write_all(&answer).await;
                if close {
                    let _ = stream.shutdown().await;
                }
            }
        }
    })
    .await
}

/// A gateway with one route, which leads to that.
async fn before(server: &Server, change: impl Fn(&mut Ingress)) -> Gateway {
    let world = World::default().service("web", &[server.address]);
    gateway(&world.ingress("a.example", "web", change)).await
}

#[tokio::test]
async fn requests_that_are_too_long_are_told_so() {
    let backend = backend(echo).await;
    let gateway = before(&backend, |_| {}).await;
    let long = "x".repeat(33_000);
    for (name, request, status) in [
        ("a path", format!("GET /{long} HTTP/1.1\r\nHost: a.example\r\n\r\n"), "414 URI Too Long"),
        ("a header", format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {long}\r\n\r\n"), "431 "),
        (
            "many headers",
            format!("GET / HTTP/1.1\r\nHost: a.example\r\n{}\r\n", "X:\r\n".repeat(128)),
            "431 ",
        ),
        ("a method", format!("{long} / HTTP/1.1\r\nHost: a.example\r\n\r\n"), "400 "),
    ] {
        let answer = raw(gateway.http, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{name}: {answer:?}");
    }
    assert_eq!(backend.connections(), 0);
    // What comes before it on the same connection is answered as ever.
    let good = "GET /good HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let answer = raw(gateway.http, format!("{good}GET /{long}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("GET /good"), "{answer}");
    assert!(answer.contains("HTTP/1.1 414"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_is_none_is_not_passed_on() {
    let ok = "HTTP/1.1 200 OK\r\n";
    for (name, answer) in [
        (
            "length and encoding",
            format!("{ok}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "encoding and length",
            format!("{ok}Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n"),
        ),
        ("two lengths", format!("{ok}Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello")),
        ("two equal lengths", format!("{ok}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello")),
        ("a list of lengths", format!("{ok}Content-Length: 5, 5\r\n\r\nhello")),
        ("a signed length", format!("{ok}Content-Length: +5\r\n\r\nhello")),
        ("a length that is none", format!("{ok}Content-Length: 0x5\r\n\r\nhello")),
        ("a length beyond all", format!("{ok}Content-Length: 99999999999999999999\r\n\r\nhello")),
        ("another encoding", format!("{ok}Transfer-Encoding: identity\r\n\r\nhello")),
        ("two encodings", format!("{ok}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")),
        (
            "two headers of encodings",
            format!(
                "{ok}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "encoding of HTTP/1.0",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("HTTP/0.9", "hello".to_owned()),
        ("HTTP/2", "HTTP/2 200 OK\r\n\r\nhello".to_owned()),
        ("a status that is none", "HTTP/1.1 20 OK\r\n\r\nhello".to_owned()),
        ("another one", "HTTP/1.1 20000 OK\r\n\r\nhello".to_owned()),
        ("a status with NUL", "HTTP/1.1 200 O\0K\r\n\r\nhello".to_owned()),
        ("a folded header", format!("{ok}X: a\r\n b\r\n\r\n")),
        ("a space before the colon", format!("{ok}Content-Length : 5\r\n\r\nhello")),
        ("a header without colon", format!("{ok}hello\r\n\r\n")),
        ("a header with NUL", format!("{ok}X: a\0\r\n\r\n")),
        ("a bare CR", format!("{ok}X: a\rSet-Cookie: b\r\n\r\n")),
        ("a head without end", format!("{ok}X: {}", "x".repeat(300_000))),
        ("too many headers", format!("{ok}{}\r\n", "X:\r\n".repeat(300))),
        ("half a head", format!("{ok}X: a")),
        (
            "a protocol that nobody asked for",
            "HTTP/1.1 101 Changed\r\nUpgrade: x\r\n\r\n".to_owned(),
        ),
    ] {
        let server = says(answer, true).await;
        let gateway = before(&server, |_| {}).await;
        let answer = raw(gateway.http, ASK).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{name}: {answer:.300}");
        assert!(!answer.contains("hello"), "{name}: {answer:.300}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_never_looks_complete() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    for (name, answer) in [
        ("the length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_owned()),
        ("no last chunk", chunked.to_owned()),
        ("half a chunk", format!("{chunked}9\r\nhal")),
        ("a size that is none", format!("{chunked}x\r\nhalf\r\n0\r\n\r\n")),
        ("a signed size", format!("{chunked}-1\r\nhalf\r\n0\r\n\r\n")),
        ("a size beyond all", format!("{chunked}fffffffffffffffff\r\nhalf\r\n0\r\n\r\n")),
        ("a chunk that ends elsewhere", format!("{chunked}2\r\nhalf\r\n0\r\n\r\n")),
        ("trailers without end", format!("{chunked}0\r\nX: {}", "x".repeat(300_000))),
    ] {
        let server = says(answer, true).await;
        let gateway = before(&server, |_| {}).await;
        let answer = raw(gateway.http, ASK).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer:?}");
        let whole = answer.ends_with("\r\n0\r\n\r\n") && !answer.contains("content-length: 100");
        assert!(answer.contains("half") && !whole, "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn what_comes_behind_an_answer_is_nobodys_answer() {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for (method, head) in [
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 51\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 51\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ] {
        let server = says(format!("{head}{poison}"), false).await;
        let gateway = before(&server, |_| {}).await;
        let mut client = client(gateway.http).await;
        for _ in 0..5 {
            client.ready().await.unwrap();
            let request = Request::builder().method(method).uri("/").header("host", "a.example");
            let answer = client.send_request(request.body(nothing()).unwrap()).await.unwrap();
            let (_, said) = read(answer).await;
            assert!(!said.contains("poison"), "{method} {head:?}");
        }
    }
}

#[tokio::test]
async fn who_is_too_slow_is_not_waited_for() {
    let second = |ingress: &mut Ingress| {
        ingress.options.read_timeout = Some(1);
        ingress.options.send_timeout = Some(1);
        ingress.options.connect_timeout = Some(1);
        ingress.options.body_size = Some(100 << 20);
    };
    let silent = each(|mut stream| async move {
        while heard(&mut stream).await {}
        std::future::pending().await
    });
    // 100 Continue, for ever.
    let informs = each(|mut stream| async move {
        heard(&mut stream).await;
        while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // A head, letter by letter.
    let spells = each(|mut stream| async move {
        heard(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let stalls = says("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", false);
    let takes_nothing = each(|stream| async move {
        let _stream = stream;
        std::future::pending().await
    });
    let silent = silent.await;
    let world = World::default()
        .service("silent", &[silent.address])
        .ingress("silent.example", "silent", second)
        .ingress("tls.example", "silent", |ingress| {
            second(ingress);
            ingress.options.protocol = BackendProtocol::Https;
        });
    let (informs, spells, stalls) = (informs.await, spells.await, stalls.await);
    let takes_nothing = takes_nothing.await;
    let changes = backend(parrot).await;
    let world = world
        .service("informs", &[informs.address])
        .ingress("informs.example", "informs", second)
        .service("spells", &[spells.address])
        .ingress("spells.example", "spells", second)
        .service("stalls", &[stalls.address])
        .ingress("stalls.example", "stalls", second)
        .service("nothing", &[takes_nothing.address])
        .ingress("nothing.example", "nothing", second)
        .ingress("posts.example", "silent", |ingress| ingress.options.read_timeout = Some(1))
        .ingress("streams.example", "silent", |ingress| {
            ingress.options.read_timeout = Some(1);
            ingress.options.request_buffering = Some(false);
        })
        .service("changes", &[changes.address])
        .ingress("a.example", "changes", second);
    let gateway = gateway(&world).await;
    let status = async |host: &str| ask(gateway.http, get(host, "/")).await.0;
    let stalled = async {
        let request = "GET / HTTP/1.1\r\nHost: stalls.example\r\n\r\n";
        raw(gateway.http, request.as_bytes()).await
    };
    // More than there is room for on the way.
    let upload = async {
        let body = text(vec![b'x'; 24 << 20]);
        let request = Request::put("/").header("host", "nothing.example").body(body).unwrap();
        let mut client = client(gateway.http).await;
        client.send_request(request).await.unwrap().status().as_u16()
    };
    // The body is taken, and there is a minute for that.
    let post = async |host: &str| {
        let request = Request::post("/").header("host", host).body(text("body")).unwrap();
        ask(gateway.http, request).await.0
    };
    let changed = async { raw(gateway.http, UPGRADE.as_bytes()).await };
    let all = async {
        tokio::join!(
            status("silent.example"),
            status("tls.example"),
            status("informs.example"),
            status("spells.example"),
            stalled,
            upload,
            post("posts.example"),
            post("streams.example"),
            changed,
        )
    };
    let (silent, tls, informs, spells, stalled, upload, posted, streamed, changed) =
        timeout(PATIENCE, all).await.expect("in time");
    assert_eq!([silent, tls, informs, spells], [504; 4]);
    assert!(stalled.starts_with("HTTP/1.1 200") && stalled.ends_with("half"), "{stalled}");
    assert_eq!([upload, posted, streamed], [504; 3]);
    assert!(changed.starts_with("HTTP/1.1 101"), "{changed}");
}

#[tokio::test]
async fn a_connection_that_closes_as_it_is_used_costs_only_what_may_not_be_sent_twice() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    // Answers once, and closes when it is asked again.
    let server = each(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            let _ = heard(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            counted.fetch_add(usize::from(heard(&mut stream).await), Ordering::SeqCst);
        }
    })
    .await;
    let gateway = before(&server, |_| {}).await;
    for _ in 0..3 {
        assert_eq!(ask(gateway.http, get("a.example", "/")).await.0, 200);
    }
    assert_eq!((server.connections(), asked.load(Ordering::SeqCst)), (3, 2));
    let post = Request::post("/").header("host", "a.example").body(nothing()).unwrap();
    assert_eq!(ask(gateway.http, post).await.0, 502);
}
