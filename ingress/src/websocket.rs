//! WebSockets of clients that speak HTTP/2 (RFC 8441). There a client asks with an extended CONNECT for what HTTP/1.1
//! has an upgrade for; backends are asked in HTTP/1.1, and routes see the GET that it would have been.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use sha1::{Digest as _, Sha1};

use crate::message::{Known, Request, Response};

/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a backend's answer is held against.
#[derive(Debug)]
pub(crate) struct Asked {
    /// `Sec-WebSocket-Accept` of a backend that has read what it was asked.
    accept: String,
}

/// Makes of an extended CONNECT what HTTP/1.1 has in its place; `None`: it is none. `random` are numbers for the key,
/// which is no secret.
pub(crate) fn ask(request: &mut Request, random: impl Fn() -> u64) -> Option<Asked> {
    let protocol = request.protocol.take()?;
    let head = &mut request.head;
    if head.method != Method::CONNECT || !protocol.eq_ignore_ascii_case(b"websocket") {
        return None;
    }
    let key = [random().to_be_bytes(), random().to_be_bytes()].concat();
    let key = STANDARD.encode(key);
    let accept = STANDARD.encode(Sha1::new().chain_update(&key).chain_update(GUID).finalize());
    head.method = Method::GET;
    head.fields.set(Known::Connection, "upgrade");
    head.fields.set(Known::Upgrade, "websocket");
    head.fields.set(Known::SecWebSocketKey, key);
    Some(Asked { accept })
}

impl Asked {
    /// Makes of an answer what HTTP/2 has in its place: 101 becomes 200, and no other answer may be a success.
    pub(crate) fn answer<B>(&self, response: &mut Response<B>) -> Result<(), &'static str> {
        match response.status {
            StatusCode::SWITCHING_PROTOCOLS => {
                let fields = &mut response.fields;
                let accepted =
                    fields.get(Known::SecWebSocketAccept) == Some(self.accept.as_bytes());
                let protocol = fields.get(Known::Upgrade).unwrap_or_default();
                if !accepted || !protocol.eq_ignore_ascii_case(b"websocket") {
                    return Err("what the endpoint agrees to is no WebSocket");
                }
                response.status = StatusCode::OK;
                for name in [Known::Connection, Known::Upgrade, Known::SecWebSocketAccept] {
                    fields.remove(name);
                }
                Ok(())
            }
            status if status.is_success() => Err("the endpoint does not agree to a WebSocket"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Version;

    use super::*;
    use crate::message::{Fields, Head, Upload};

    fn connect(protocol: Option<&'static str>) -> Request {
        let mut fields = Fields::new();
        let target = fields.keep(b"/chat");
        let head = Head::new(Method::CONNECT, Version::HTTP_2, target, None, fields).unwrap();
        let protocol = protocol.map(Bytes::from);
        Request { head, body: Upload::Empty, protocol, upgrade: None }
    }

    #[test]
    fn a_websocket_is_asked_for_as_http_1_has_it() {
        let mut request = connect(Some("websocket"));
        // The example of RFC 6455, 1.3: "the sample nonce".
        let nonce: [u64; 2] = [0x7468_6520_7361_6d70, 0x6c65_206e_6f6e_6365];
        let turn = std::cell::Cell::new(0);
        let asked = ask(&mut request, || nonce[turn.replace(1)]).unwrap();
        let head = &request.head;
        assert_eq!((&head.method, head.target()), (&Method::GET, "/chat"));
        assert_eq!(head.fields.text(Known::SecWebSocketKey), Some("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(head.fields.text(Known::Upgrade), Some("websocket"));
        let answer = |status: u16, accept: &str, protocol: &str| {
            let mut response = Response::new(());
            response.status = StatusCode::from_u16(status).unwrap();
            response.fields.set(Known::SecWebSocketAccept, accept);
            response.fields.set(Known::Upgrade, protocol);
            response.fields.set("sec-websocket-protocol", "x");
            asked.answer(&mut response).map(|()| {
                let names = response.fields.iter().map(|field| field.name.to_vec());
                (response.status.as_u16(), names.collect::<Vec<_>>())
            })
        };
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        let (status, names) = answer(101, accept, "WebSocket").unwrap();
        assert_eq!((status, &*names), (200, &[b"sec-websocket-protocol".to_vec()][..]));
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
            assert_eq!(request.head.method, Method::CONNECT);
        }
    }
}
