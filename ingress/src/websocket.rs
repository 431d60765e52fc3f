//! WebSockets of clients that speak HTTP/2 (RFC 8441). There a client asks with an extended CONNECT for what HTTP/1.1
//! has an upgrade for; backends are asked in HTTP/1.1, and routes see the GET that it would have been.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::ext::Protocol;
use sha1::{Digest as _, Sha1};

/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;
const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;

/// What a backend's answer is held against.
#[derive(Debug)]
pub(crate) struct Asked {
    /// `Sec-WebSocket-Accept` of a backend that has read what it was asked.
    accept: String,
}

/// Makes of an extended CONNECT what HTTP/1.1 has in its place; `None`: it is none. `random` are numbers for the key,
/// which is no secret.
pub(crate) fn ask<B>(request: &mut Request<B>, random: impl Fn() -> u64) -> Option<Asked> {
    let protocol = request.extensions_mut().remove::<Protocol>()?;
    if *request.method() != Method::CONNECT || !protocol.as_str().eq_ignore_ascii_case("websocket")
    {
        return None;
    }
    let key = [random().to_be_bytes(), random().to_be_bytes()].concat();
    let key = STANDARD.encode(key);
    let accept = STANDARD.encode(Sha1::new().chain_update(&key).chain_update(GUID).finalize());
    let key = HeaderValue::try_from(key).ok()?;
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(KEY, key);
    Some(Asked { accept })
}

impl Asked {
    /// Makes of an answer what HTTP/2 has in its place: 101 becomes 200, and no other answer may be a success.
    pub(crate) fn answer<B>(&self, response: &mut Response<B>) -> Result<(), &'static str> {
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let headers = response.headers();
                let is = |name: &HeaderName, value: &str| {
                    headers
                        .get(name)
                        .is_some_and(|said| said.as_bytes().eq_ignore_ascii_case(value.as_bytes()))
                };
                let accepted = headers.get(ACCEPT).is_some_and(|said| said == self.accept.as_str());
                if !accepted || !is(&header::UPGRADE, "websocket") {
                    return Err("what the endpoint agrees to is no WebSocket");
                }
                *response.status_mut() = StatusCode::OK;
                strip(response.headers_mut());
                Ok(())
            }
            status if status.is_success() => Err("the endpoint does not agree to a WebSocket"),
            _ => Ok(()),
        }
    }
}

fn strip(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::UPGRADE, ACCEPT] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(protocol: Option<&'static str>) -> Request<()> {
        let mut request = Request::connect("http://a.example/chat").body(()).unwrap();
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(Protocol::from_static(protocol));
        }
        request
    }

    #[test]
    fn a_websocket_is_asked_for_as_http_1_has_it() {
        let mut request = connect(Some("websocket"));
        // The example of RFC 6455, 1.3: "the sample nonce".
        let nonce: [u64; 2] = [0x7468_6520_7361_6d70, 0x6c65_206e_6f6e_6365];
        let turn = std::cell::Cell::new(0);
        let asked = ask(&mut request, || nonce[turn.replace(1)]).unwrap();
        assert_eq!((request.method(), request.uri().path()), (&Method::GET, "/chat"));
        assert_eq!(request.headers()[KEY], "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(request.headers()[header::UPGRADE], "websocket");
        let answer = |status: u16, accept: &str, protocol: &str| {
            let response = Response::builder().status(status).header(ACCEPT, accept);
            let response =
                response.header("upgrade", protocol).header("sec-websocket-protocol", "x");
            let mut response = response.body(()).unwrap();
            asked.answer(&mut response).map(|()| {
                let names = response.headers().keys().map(ToString::to_string);
                (response.status().as_u16(), names.collect::<Vec<_>>())
            })
        };
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        let (status, names) = answer(101, accept, "WebSocket").unwrap();
        assert_eq!((status, &*names), (200, &["sec-websocket-protocol".to_owned()][..]));
        for (status, accept, protocol) in [
            (101, "", "websocket"),
            (101, accept, "parrot"),
            (200, accept, "websocket"),
            (204, "", ""),
        ] {
            assert!(answer(status, accept, protocol).is_err(), "{status} {accept} {protocol}");
        }
        for status in [302, 404, 503] {
            assert_eq!(answer(status, "", "").unwrap().0, status);
        }
    }

    #[test]
    fn nothing_else_is_a_websocket() {
        for protocol in [None, Some("connect-udp"), Some("")] {
            let mut request = connect(protocol);
            assert!(ask(&mut request, || 0).is_none());
            assert_eq!(request.method(), Method::CONNECT);
        }
    }
}
