//! Headers that end at the gateway, and those that must not pass it.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, Version};

/// Those of one connection (RFC 9110, 7.6.1).
const HOPS: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Those that `Connection` cannot take away from a backend, which decides by them; nor what begins with
/// `x-forwarded-`.
const KEPT: [&str; 5] = ["host", "authorization", "cookie", "x-real-ip", "forwarded"];

/// Takes away what is of one connection, that which `Connection` names as well.
pub(crate) fn strip_hops(headers: &mut HeaderMap) {
    let connection = headers.get_all(header::CONNECTION).iter();
    let named = connection.filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> = named
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .filter(|name| !KEPT.contains(&name.as_str()) && !name.as_str().starts_with("x-forwarded-"))
        .collect();
    for name in named.iter().chain(&HOPS) {
        headers.remove(name);
    }
    headers.remove("http2-settings");
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// Whether another protocol is asked for. HTTP/2 is none: requests in it would come to a backend that nobody has
/// looked at.
pub(crate) fn upgrade<B>(request: &Request<B>) -> bool {
    let protocols = request.headers().get_all(header::UPGRADE).iter();
    let protocols = protocols.map(|value| String::from_utf8_lossy(value.as_bytes()));
    let is_http = |protocol: &str| {
        let protocol = protocol.trim().to_ascii_lowercase();
        protocol.starts_with("h2") || protocol.starts_with("http")
    };
    let mut http = protocols.flat_map(|it| it.split(',').map(is_http).collect::<Vec<_>>());
    if http.any(|is_http| is_http) {
        return false;
    }
    let connection = request.headers().get_all(header::CONNECTION).iter();
    let names = connection.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
    let mut names = names.map(str::trim);
    request.version() == Version::HTTP_11
        && request.headers().contains_key(header::UPGRADE)
        && names.any(|name| name.eq_ignore_ascii_case("upgrade"))
}

/// Whether whoever asks reads trailers.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    let said = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    said.flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case("trailers"))
}

/// Takes away names that a backend may take for others: to CGI and its heirs `X_Real_IP` is `X-Real-IP`.
pub(crate) fn drop_underscores(headers: &mut HeaderMap) {
    let odd = headers.keys().filter(|name| name.as_str().contains('_'));
    let odd: Vec<HeaderName> = odd.cloned().collect();
    for name in odd {
        headers.remove(name);
    }
}

/// Brings cookies together, which HTTP/2 lets come apart and HTTP/1.1 does not (RFC 9113, 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (all.next(), all.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(all) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    // What it is made of were values of headers, so it is one.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Why others may see the end of an answer elsewhere, if they may. The parser behind a connection to a backend
/// repairs what is said in two ways; what it did not see of one answer would be the next one.
pub(crate) fn two_ends<B>(response: &Response<B>) -> Option<&'static str> {
    if response.version() == Version::HTTP_2 {
        return None;
    }
    let values = |name: HeaderName| {
        let mut values = response.headers().get_all(name).iter();
        (values.next().map(HeaderValue::as_bytes), values.next().is_some())
    };
    match (values(header::CONTENT_LENGTH), values(header::TRANSFER_ENCODING)) {
        ((Some(_), _), (Some(_), _)) => Some("the answer has Content-Length and Transfer-Encoding"),
        ((_, true), _) => Some("the answer has Content-Length twice"),
        (_, (_, true)) => Some("the answer has Transfer-Encoding twice"),
        ((Some(length), _), _) if !length.iter().all(u8::is_ascii_digit) => {
            Some("the answer's Content-Length is no number")
        }
        (_, (Some(coding), _)) if !coding.eq_ignore_ascii_case(b"chunked") => {
            Some("the answer has a Transfer-Encoding other than chunked")
        }
        _ => None,
    }
}

/// The trace that a request belongs to, if it says so (W3C Trace Context, 3.2.2).
pub(crate) fn trace(headers: &HeaderMap) -> Option<&str> {
    let mut parts = headers.get("traceparent")?.to_str().ok()?.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let digits = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let good = version.len() == 2 && trace.len() == 32 && digits(version) && digits(trace);
    Some(trace).filter(|_| good)
}

/// Bytes of a head, roughly as they are on the wire.
pub(crate) fn length(headers: &HeaderMap<HeaderValue>) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(headers: &[(&str, &str)], change: fn(&mut HeaderMap)) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).unwrap();
            map.append(name, HeaderValue::try_from(*value).unwrap());
        }
        change(&mut map);
        map.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_of_one_connection_ends_with_it() {
        let headers = [
            ("Connection", "close, Private , cookie"),
            ("Connection", "x-forwarded-for"),
            ("Keep-Alive", "5"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "x"),
            ("Private", "1"),
            ("Cookie", "a=b"),
            ("X-Forwarded-For", "192.0.2.1"),
        ];
        assert_eq!(names(&headers, strip_hops), ["cookie", "x-forwarded-for"]);
    }

    #[test]
    fn http_2_is_no_other_protocol() {
        let asks = |protocol: &str| {
            let request = Request::get("/").header("connection", "keep-alive, Upgrade");
            upgrade(&request.header("upgrade", protocol).body(()).unwrap())
        };
        assert!(asks("websocket") && asks("parrot"));
        for http in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", " h2"] {
            assert!(!asks(http), "{http}");
        }
        assert!(!upgrade(&Request::get("/").header("upgrade", "websocket").body(()).unwrap()));
    }

    #[test]
    fn a_trace_has_a_number() {
        let number = "0af7651916cd43dd8448eb211c80319c";
        for (said, found) in [
            (format!("00-{number}-b7ad6b7169203331-01"), true),
            (format!("cc-{number}-b7ad6b7169203331-01-more"), true),
            (format!("00-{}-b7ad6b7169203331-01", number.to_uppercase()), false),
            (format!("00-{number}0-b7ad6b7169203331-01"), false),
            (number.to_owned(), false),
        ] {
            let headers = [("traceparent".parse().unwrap(), said.parse().unwrap())];
            assert_eq!(trace(&headers.into_iter().collect()).is_some(), found, "{said}");
        }
    }

    #[test]
    fn cookies_come_together() {
        let join = |cookies: &[&'static str]| {
            let cookies = cookies.iter().map(|it| (header::COOKIE, HeaderValue::from_static(it)));
            let mut headers: HeaderMap = cookies.collect();
            join_cookies(&mut headers);
            let all = headers.get_all(header::COOKIE).iter();
            all.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(join(&[]), [""; 0]);
        assert_eq!(join(&["a=b; c=d"]), ["a=b; c=d"]);
        assert_eq!(join(&["a=b", "c=d", "e=f"]), ["a=b; c=d; e=f"]);
    }

    #[test]
    fn names_with_an_underscore_are_dropped() {
        let headers = [("X_Real_IP", "192.0.2.1"), ("X-Real-IP", "192.0.2.2")];
        assert_eq!(names(&headers, drop_underscores), ["x-real-ip"]);
    }
}
