//! What holds of whatever strangers send. The fuzz targets and the test that replays their corpora share it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use fairway_ingress::hostile::{self, Passed};
use fairway_ingress::message::Fields;
use fairway_ingress::route::{Decision, Request, Table};
use http::{Method, Response, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{join, sink};

/// A request as hyper sees it: method, target, and the body as far as it came.
type Seen = (String, String, Vec<u8>);

/// Bytes of a connection over HTTP/1: what passes, another parser must see as it was passed.
///
/// # Panics
/// Two that read the same bytes do not agree.
pub(crate) fn requests(bytes: &[u8]) {
    let followed = hostile::requests(bytes, 1);
    for piece in [2, 7, usize::MAX] {
        assert_eq!(hostile::requests(bytes, piece), followed, "in pieces of {piece}, and of 1");
    }
    let good = followed.refused.as_ref().map_or(bytes.len(), |(good, _)| *good);
    let seen = parse(&bytes[..good]);
    assert!(seen.len() <= followed.passed.len(), "{seen:?} {followed:?}");
    for (seen, passed) in seen.iter().zip(&followed.passed) {
        let (method, target, body) = seen;
        assert_eq!(line_of(bytes, passed), Some((method.clone(), target.clone())), "{seen:?}");
        let (whole, expected) = body_of(&bytes[..good], passed);
        assert_eq!(passed.received, expected, "{passed:?}");
        if whole {
            assert_eq!(body, &expected, "{seen:?} {passed:?}");
        } else {
            assert!(expected.starts_with(body), "{seen:?} {passed:?} {expected:?}");
        }
    }
}

/// Method and target of a request that has passed, as its first line has them.
fn line_of(bytes: &[u8], passed: &Passed) -> Option<(String, String)> {
    let head = bytes[passed.begin..passed.body].trim_ascii_start();
    let mut words = head.split(|byte| *byte == b' ');
    let method = std::str::from_utf8(words.next()?).ok()?.to_owned();
    // An address may go without a path, and what is behind `#` is nobody's.
    Some((method, Uri::try_from(words.next()?).ok()?.to_string()))
}

/// The body of a request that has passed, read in the simplest way; and whether it is all there.
fn body_of(bytes: &[u8], passed: &Passed) -> (bool, Vec<u8>) {
    let head = bytes[passed.begin..passed.body].to_ascii_lowercase();
    let mut rest = &bytes[passed.body..passed.end.unwrap_or(bytes.len())];
    let chunked = b"\r\ntransfer-encoding:";
    if !head.windows(chunked.len()).any(|it| it == chunked) {
        return (passed.end.is_some(), rest.to_vec());
    }
    let mut body = Vec::new();
    while let Some(line) = rest.windows(2).position(|it| it == b"\r\n") {
        let size = rest[..line].split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(size).ok().and_then(|it| usize::from_str_radix(it, 16).ok());
        let Some(size @ 1..) = size else { break };
        let data = &rest[line + 2..];
        let there = size.min(data.len());
        body.extend(&data[..there]);
        // CRLF is behind it.
        rest = data.get(size.saturating_add(2)..).unwrap_or_default();
    }
    (passed.end.is_some(), body)
}

/// What hyper sees of these bytes.
fn parse(bytes: &[u8]) -> Vec<Seen> {
    let seen = Rc::new(RefCell::new(Vec::<Seen>::new()));
    let service = service_fn(|request: http::Request<Incoming>| {
        let seen = Rc::clone(&seen);
        let (head, mut body) = request.into_parts();
        let at = seen.borrow().len();
        seen.borrow_mut().push((head.method.to_string(), head.uri.to_string(), Vec::new()));
        async move {
            while let Some(Ok(frame)) = body.frame().await {
                if let Some(data) = frame.data_ref() {
                    seen.borrow_mut()[at].2.extend(data);
                }
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let mut builder = http1::Builder::new();
    builder.half_close(true).max_headers(129).max_buf_size(64 << 10).pipeline_flush(true);
    let connection = builder.serve_connection(TokioIo::new(join(bytes, sink())), service);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    // How it ends is the parser's business.
    let _ = runtime.block_on(connection);
    Rc::try_unwrap(seen).map(RefCell::into_inner).unwrap_or_default()
}

/// Bytes of a connection over HTTP/2, behind its preface: what is made of them does not depend on the pieces that they come
/// in, and what is sent for them is HTTP/2.
///
/// # Panics
/// It does, or it is not; or it is much more.
pub(crate) fn streams(bytes: &[u8]) {
    let whole = hostile::streams(bytes, usize::MAX, false);
    for size in [1, 10] {
        assert_eq!(hostile::streams(bytes, size, false), whole, "{size} bytes at a time");
    }
    assert!(whole.sent.len() <= 100 + 3 * bytes.len(), "{} bytes", whole.sent.len());
    let answered = [1, 50].map(|size| hostile::streams(bytes, size, true));
    for (method, target, _) in answered.iter().chain([&whole]).flat_map(|it| &it.asked) {
        assert!(target.starts_with('/') || target == "*", "{method} {target}");
        assert!(!target.bytes().any(|byte| byte <= b' ' || byte == 0x7f), "{method} {target}");
    }
}

/// The beginning of a connection that somebody passes on: what it names, it names in both versions of the protocol.
///
/// # Panics
/// It is read in two ways.
pub(crate) fn proxy_header(bytes: &[u8]) {
    let Some((named, length)) = hostile::proxy_header(bytes) else { return };
    assert!(length <= bytes.len());
    assert_eq!(hostile::proxy_header(&bytes[..length]), Some((named, length)));
    if let Some(short) = length.checked_sub(1) {
        assert_eq!(hostile::proxy_header(&bytes[..short]), None, "not one byte less");
    }
    let Some((client, server)) = named else { return };
    let (family, code) = match (client, server) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => ("TCP4", 0x11),
        (SocketAddr::V6(_), SocketAddr::V6(_)) => ("TCP6", 0x21),
        // An address of IPv4 in one of IPv6, beside another one.
        _ => return,
    };
    let (from, to) = (client.port(), server.port());
    let text = format!("PROXY {family} {} {} {from} {to}\r\nX", client.ip(), server.ip());
    assert_eq!(hostile::proxy_header(text.as_bytes()), Some((named, text.len() - 1)));
    let mut addresses = Vec::new();
    for address in [client.ip(), server.ip()] {
        match address {
            IpAddr::V4(address) => addresses.extend(address.octets()),
            IpAddr::V6(address) => addresses.extend(address.octets()),
        }
    }
    addresses.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    binary.extend([code, 0, u8::try_from(addresses.len()).expect("a length")]);
    binary.extend(addresses);
    assert_eq!(hostile::proxy_header(&binary), Some((named, binary.len())));
}

/// A request's target: where it goes, what the backend gets of it would have gone, too.
///
/// # Panics
/// What was decided about is not what the backend gets.
pub(crate) fn path(table: &Table, target: &[u8]) {
    let target = String::from_utf8_lossy(target);
    let Some((route, sent)) = decide(table, &target) else { return };
    let (again, same) =
        decide(table, &sent).unwrap_or_else(|| panic!("{target:?}: {sent:?} is refused"));
    assert_eq!((again, &same), (route, &sent), "{target:?}");
    let path = sent.split('?').next().unwrap_or_default();
    let dots = path.split('/').any(|it| {
        let plain = it.to_ascii_lowercase().replace("%2e", ".");
        plain == "." || plain == ".."
    });
    assert!(!dots, "{target:?} comes to the backend as {sent:?}");
}

/// Whose path it is, and what the backend gets.
fn decide(table: &Table, target: &str) -> Option<(String, String)> {
    let decision = table.decide(&Request {
        method: &Method::GET,
        host: Some("shop.test"),
        target,
        headers: &Fields::new(),
        peer: ([192, 0, 2, 1], 40_000).into(),
        port: 80,
        tls: None,
        id: "id",
        dice: 0,
    });
    match decision {
        Decision::Forward(forward) => {
            let sent = forward.path_and_query.clone();
            Some((forward.target.service.to_string(), sent.unwrap_or_else(|| target.to_owned())))
        }
        Decision::Answer(_) => None,
    }
}

/// Paths that somebody guards, and those beside them.
pub(crate) fn table() -> Table {
    let path = |path: &str, kind: &str, service: &str| serde_json::json!({ "path": path, "type": kind, "backend": { "service": service, "port": 80 } });
    let paths = [
        path("/", "Prefix", "web"),
        path("/admin", "Prefix", "admin"),
        path("/admin/open", "Exact", "open"),
        path("/a b/é", "Prefix", "odd"),
    ];
    let service = |name: &str| {
        serde_json::json!({
            "name": { "namespace": "shop", "name": name },
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80 }],
        })
    };
    let services = ["web", "admin", "open", "odd"].map(service);
    let model = serde_json::json!({
        "services": services,
        "ingresses": [{
            "name": { "namespace": "shop", "name": "web" },
            "rules": [{ "host": "shop.test", "paths": paths }],
        }],
    });
    Table::compile(&serde_json::from_value(model).expect("a model"), "").0
}
