//! Forms in which requests and answers travel.

use std::convert::Infallible;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fairway_ingress::gateway::Options;
use fairway_model::{BackendProtocol, Gateway, Gzip, Limits, Object};
use flate2::read::GzDecoder;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::*;
use crate::{Frames, echo};

/// A gateway that compresses.
fn compressing() -> Object {
    let types = vec!["text/event-stream".to_owned()];
    let gzip = Box::new(Gzip { types, ..Gzip::default() });
    Object::Gateway(Gateway { compression: true, gzip, ..Gateway::default() })
}

fn unpacked(bytes: &[u8]) -> String {
    let mut text = String::new();
    // What is not there yet is an error at its end, and no loss.
    let _ = GzDecoder::new(bytes).read_to_string(&mut text);
    text
}

#[tokio::test]
async fn answers_are_compressed_for_who_can_read_that() {
    let page = "<p>a page of many words</p>".repeat(20_000);
    let said = page.clone();
    let backend = backend(move |request: Request<Incoming>| {
        let said = if request.uri().path() == "/short" { "short".to_owned() } else { said.clone() };
        async move {
            let kind = if request.uri().path() == "/png" { "image/png" } else { "text/html" };
            let response = Response::builder().header("content-type", kind).header("etag", "\"1\"");
            response.body(text(said)).unwrap()
        }
    })
    .await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world.clone().with(compressing())).await;
    let asking = |method: Method, path: &str, takes: &str| {
        let mut request = get("a.example", path);
        *request.method_mut() = method;
        request.headers_mut().insert("accept-encoding", takes.parse().unwrap());
        request
    };
    let mut client = client(gateway.http).await;
    for (method, path, takes, packed) in [
        (Method::GET, "/", "gzip", true),
        (Method::GET, "/", "br, gzip;q=0.1", true),
        (Method::GET, "/", "gzip;q=0", false),
        (Method::GET, "/short", "gzip", false),
        (Method::GET, "/png", "gzip", false),
        (Method::HEAD, "/", "gzip", false),
    ] {
        client.ready().await.unwrap();
        let is_head = method == Method::HEAD;
        let response = client.send_request(asking(method, path, takes)).await.unwrap();
        let (head, body) = response.into_parts();
        let has = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
        let vary = (path == "/" && !is_head).then_some("Accept-Encoding");
        assert_eq!(has("vary"), vary, "{path} {takes}");
        let body = timeout(PATIENCE, body.collect()).await.expect("in time").unwrap().to_bytes();
        assert_eq!(has("content-encoding"), packed.then_some("gzip"), "{path} {takes}");
        assert_eq!(has("content-length").is_none(), packed, "{path} {takes}");
        assert_eq!(has("etag"), Some(if packed { "W/\"1\"" } else { "\"1\"" }), "{path} {takes}");
        if packed {
            assert!(body.len() < page.len() / 50);
            assert_eq!(unpacked(&body), page);
        }
    }
    assert_eq!(backend.connections(), 1, "it is free again when all was taken");
    let raw =
        raw(gateway.http, b"GET / HTTP/1.0\r\nHost: a.example\r\nAccept-Encoding: gzip\r\n\r\n");
    assert!(raw.await.ends_with(&page), "HTTP/1.0 has no parts");

    gateway.apply(&world.model());
    client.ready().await.unwrap();
    let response = client.send_request(asking(Method::GET, "/", "gzip")).await.unwrap();
    assert!(!response.headers().contains_key("vary"));
    assert_eq!(read(response).await.1, page, "it is not asked for");
}

#[tokio::test]
async fn events_that_are_compressed_arrive_one_by_one() {
    let (say, frames) = mpsc::channel(1);
    let frames = std::sync::Mutex::new(Some(frames));
    let frames = Arc::new(frames);
    let backend = backend(move |_: Request<Incoming>| {
        let frames = frames.lock().unwrap().take().unwrap();
        async move {
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(StreamBody::new(Frames(frames)).boxed()).unwrap()
        }
    })
    .await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world.with(compressing())).await;
    let mut client = client(gateway.http).await;
    let mut request = get("a.example", "/");
    request.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
    let asking = tokio::spawn(async move { client.send_request(request).await });
    let event = |number: u32| format!("data: {number}\n\n");
    say.send(Ok(Frame::data(Bytes::from(event(0))))).await.unwrap();
    let mut response = timeout(PATIENCE, asking).await.expect("in time").unwrap().unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let (mut packed, mut expected) = (Vec::new(), event(0));
    for number in 1..5 {
        while unpacked(&packed) != expected {
            let frame = timeout(PATIENCE, response.body_mut().frame()).await.expect("in time");
            packed.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
        }
        expected += &event(number);
        say.send(Ok(Frame::data(Bytes::from(event(number))))).await.unwrap();
    }
    drop(say);
    let rest = timeout(PATIENCE, response.into_body().collect()).await.expect("in time").unwrap();
    packed.extend_from_slice(&rest.to_bytes());
    assert_eq!(unpacked(&packed), expected);
}

type Http2 = hyper::client::conn::http2::SendRequest<Body>;

/// A connection of a client that speaks HTTP/2 without TLS.
async fn http_2(address: SocketAddr) -> Http2 {
    let stream = TcpStream::connect(address).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn http_2_and_grpc_are_spoken_without_tls_to_who_begins_with_that() {
    let plain = backend(echo).await;
    let grpc = backend_of_http_2(|request: Request<Incoming>| async move {
        assert_eq!(request.uri().authority().unwrap(), "grpc.example");
        let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
        let said = request.into_body().collect().await.unwrap().to_bytes();
        let trailers = async move { Some(Ok(trailers.into_iter().collect())) };
        Response::new(Full::new(said).with_trailers(trailers).boxed())
    })
    .await;
    let world = World::default()
        .service("web", &[plain.address])
        .host("a.example", "web")
        .service("grpc", &[grpc.address])
        .ingress("grpc.example", "grpc", |of| of.options.protocol = BackendProtocol::Grpc);
    let gateway = gateway(&world).await;
    let mut client = http_2(gateway.http).await;
    for number in 0..3 {
        let request = Request::post(format!("http://a.example/{number}"));
        let response = client.send_request(request.body(text("said")).unwrap()).await.unwrap();
        let (status, said) = read(response).await;
        assert_eq!(status, 200);
        assert!(said.starts_with(&format!("POST /{number}\n")) && said.ends_with("said"), "{said}");
        assert!(said.contains("x-forwarded-proto: http\n"), "{said}");
        let request = Request::post("http://grpc.example/svc/Method").header("te", "trailers");
        let response = client.send_request(request.body(text("message")).unwrap()).await.unwrap();
        let body =
            timeout(PATIENCE, response.into_body().collect()).await.expect("in time").unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "message");
    }
    let plain_connect = Request::connect("a.example:80").body(nothing()).unwrap();
    assert_eq!(client.send_request(plain_connect).await.unwrap().status(), 405);
    // What only resembles it is HTTP/1, and no request.
    for begun in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", "PRI * HTTP/2.0\r\nHost: a.example\r\n\r\n"] {
        let answer = raw(gateway.http, begun.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    }
    let upgrade = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    assert!(raw(gateway.http, upgrade.as_bytes()).await.starts_with("HTTP/1.1 200"));
}

/// Agrees to a WebSocket, and says everything again.
async fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let header = |name: &str| request.headers().get(name).map(|it| it.as_bytes().to_vec());
    assert_eq!(header("upgrade").as_deref(), Some(&b"websocket"[..]));
    assert_eq!(header("sec-websocket-version").as_deref(), Some(&b"13"[..]));
    if request.uri().path() == "/no" {
        return Response::builder().status(200).body(text("no")).unwrap();
    }
    let mut digest = Sha1::new();
    digest.update(header("sec-websocket-key").unwrap());
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = STANDARD.encode(digest.finalize());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
    let response = Response::builder().status(101).header("connection", "upgrade");
    let response = response.header("upgrade", "websocket").header("sec-websocket-accept", accept);
    response.header("sec-websocket-protocol", "chat").body(nothing()).unwrap()
}

#[tokio::test]
async fn a_websocket_over_http_2_is_one_of_http_1_to_its_backend() {
    let backend = backend(websocket).await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let mut client = http_2(gateway.http).await;
    // Its first answer comes behind the gateway's settings, which allow what follows.
    let request = Request::get("http://nobody.example/").body(nothing()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 404);
    let connect = |path: &str, protocol: &'static str| {
        let request = Request::connect(format!("http://a.example{path}"));
        let request = request.header("sec-websocket-version", "13");
        let mut request = request.body(nothing()).unwrap();
        request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
        request
    };
    for (path, protocol, status) in [("/no", "websocket", 502), ("/", "connect-udp", 405)] {
        let response = client.send_request(connect(path, protocol)).await.unwrap();
        assert_eq!(response.status(), status, "{path} {protocol}");
    }
    let mut response = client.send_request(connect("/chat", "websocket")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    for number in 0..50 {
        // Its route comes and goes.
        let world = if number % 2 == 0 { World::default() } else { world.clone() };
        gateway.apply(&world.model());
        let said = [number; 1000];
        stream.write_all(&said).await.unwrap();
        let mut heard = [0; 1000];
        timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("in time").unwrap();
        assert_eq!(heard, said);
    }
    // Others share the connection meanwhile.
    let request = Request::get("http://nobody.example/").body(nothing()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 404);
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("in time").unwrap();
    assert!(rest.is_empty());
    let counted = "nginx_ingress_controller_requests{";
    let is_counted = async || {
        let metrics = ask(gateway.admin, get("localhost", "/metrics")).await.1;
        metrics.lines().any(|line| {
            line.starts_with(counted)
                && line.contains("host=\"a.example\"")
                && line.contains("status=\"200\"")
        })
    };
    let in_time = timeout(PATIENCE, async {
        while !is_counted().await {
            tokio::task::yield_now().await;
        }
    });
    in_time.await.expect("a tunnel that is over is counted");
}

/// Asks for a WebSocket over HTTP/1.
async fn websocket_of_http_1(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let ask = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\n\
               Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.expect("in time").unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream
}

#[tokio::test]
async fn a_websocket_counts_as_long_as_it_lasts() {
    let backend = backend(websocket).await;
    let world = World::default().service("web", &[backend.address]);
    let world = world.ingress("a.example", "web", |ingress| {
        ingress.options.limits = Limits { connections: Some(1), ..Limits::default() };
    });
    let gateway = gateway(&world).await;
    let connect = || {
        let request =
            Request::connect("http://a.example/chat").header("sec-websocket-version", "13");
        let mut request = request.body(nothing()).unwrap();
        request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        request
    };
    let mut client = http_2(gateway.http).await;
    // The gateway's settings come before its first answer.
    let request = Request::get("http://nobody.example/").body(nothing()).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 404);
    let one = websocket_of_http_1(gateway.http).await;
    assert_eq!(client.send_request(connect()).await.unwrap().status(), 503);
    drop(one);
    let other = timeout(PATIENCE, async {
        loop {
            let response = client.send_request(connect()).await.unwrap();
            if response.status() == 200 {
                return response;
            }
        }
    });
    let mut other = other.await.expect("the first one counts no more");
    let _stream = hyper::upgrade::on(&mut other).await.unwrap();
    assert_eq!(ask(gateway.http, get("a.example", "/")).await.0, 503);
}

#[tokio::test]
async fn a_websocket_is_one_of_the_connections() {
    let backend = backend(websocket).await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let options = Options { connections: 1, ..Options::default() };
    let gateway = fairway_ingress::gateway::Gateway::start(&options).await.unwrap();
    gateway.apply(&world.model());
    gateway.begin().unwrap();
    let websocket = websocket_of_http_1(gateway.http).await;
    let mut waiting = std::pin::pin!(ask(gateway.http, get("nobody.example", "/")));
    let early = timeout(Duration::from_millis(300), waiting.as_mut()).await;
    assert!(early.is_err(), "there is no room for it");
    drop(websocket);
    assert_eq!(timeout(PATIENCE, waiting).await.expect("in time").0, 404);
}

/// Says which of its connections it is asked over; `/large` has an answer of 3 MiB.
async fn numbered() -> Server {
    let numbers = Arc::new(AtomicUsize::new(0));
    each(move |stream| {
        let number = numbers.fetch_add(1, Ordering::SeqCst);
        async move {
            let service = service_fn(move |request: Request<Incoming>| async move {
                let large = request.uri().path() == "/large";
                let said = if large { "x".repeat(LARGE) } else { number.to_string() };
                let response = Response::builder().header("x-accel-buffering", "yes");
                // So that a connection is used once more only if it had the large one.
                let response = response.header("connection", if large { "x" } else { "close" });
                Ok::<_, Infallible>(response.body(text(said)).unwrap())
            });
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

const LARGE: usize = 3 << 20;

#[tokio::test]
async fn a_backend_is_rid_of_its_answer_before_the_client_has_it() {
    let backend = numbered().await;
    let world = World::default().service("web", &[backend.address]).host("a.example", "web");
    let gateway = gateway(&world).await;
    let mut client = http_2(gateway.http).await;
    let request = |path: &str| Request::get(format!("http://a.example{path}")).body(nothing());
    let response = client.send_request(request("/large").unwrap()).await.unwrap();
    assert!(!response.headers().contains_key("x-accel-buffering"));
    assert_eq!(response.headers()["content-length"], LARGE.to_string());
    // HTTP/2 has room for a part of it, and nobody reads that.
    let rid = timeout(PATIENCE, async {
        while ask(gateway.http, get("a.example", "/")).await.1 != "0" {
            tokio::task::yield_now().await;
        }
    });
    rid.await.expect("the first connection is used for the next request");
    assert_eq!(read(response).await.1.len(), LARGE);
    assert_eq!(ask(gateway.http, get("a.example", "/large")).await.1.len(), LARGE);
}
