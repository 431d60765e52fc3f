//! Forms in which requests and answers travel.

use std::io::Read as _;

use bytes::Bytes;
use fairway_model::{Gateway, Gzip, Object};
use flate2::read::GzDecoder;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::Frames;
use crate::support::*;

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
    let frames = std::sync::Arc::new(frames);
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
