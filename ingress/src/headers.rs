//! Headers that end at the gateway, and those that must not pass it.

use http::Version;

use crate::message::{Fields, Head, Known, Span};

/// Those of one connection (RFC 9110, 7.6.1).
const HOPS: [Known; 9] = [
    Known::Connection,
    Known::Http2Settings,
    Known::KeepAlive,
    Known::ProxyAuthenticate,
    Known::ProxyAuthorization,
    Known::ProxyConnection,
    Known::Te,
    Known::TransferEncoding,
    Known::Upgrade,
];

/// Those that `Connection` cannot take away from a backend, which decides by them; nor what begins with
/// `x-forwarded-`.
const KEPT: [Known; 5] =
    [Known::Host, Known::Authorization, Known::Cookie, Known::XRealIp, Known::Forwarded];

/// Takes away what is of one connection, that which `Connection` names as well.
pub(crate) fn strip_hops(fields: &mut Fields) {
    let goes = |name: &&str| {
        let known = Known::of(name.as_bytes());
        let kept = known.is_some_and(|known| KEPT.contains(&known) || HOPS.contains(&known));
        let forwarded = name.get(..12).is_some_and(|it| it.eq_ignore_ascii_case("x-forwarded-"));
        !kept && !forwarded && fields.contains(*name)
    };
    let named = fields.texts(Known::Connection).flat_map(|value| value.split(',')).map(str::trim);
    let named: Vec<String> = named.filter(goes).map(str::to_owned).collect();
    named.iter().for_each(|name| fields.remove(name.as_str()));
    HOPS.into_iter().for_each(|name| fields.remove(name));
}

/// Whether another protocol is asked for. HTTP/2 is none: requests in it would come to a backend that nobody has
/// looked at.
pub(crate) fn upgrade(head: &Head) -> bool {
    let fields = &head.fields;
    if head.version != Version::HTTP_11 || !fields.contains(Known::Upgrade) {
        return false;
    }
    let begins = |protocol: &[u8], with: &[u8]| {
        protocol.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with))
    };
    let mut protocols =
        fields.get_all(Known::Upgrade).flat_map(|value| value.split(|byte| *byte == b','));
    let http = protocols.any(|protocol| {
        let protocol = protocol.trim_ascii();
        begins(protocol, b"h2") || begins(protocol, b"http")
    });
    !http && says(fields, Known::Connection, "upgrade")
}

/// Whether whoever asks reads trailers.
pub(crate) fn takes_trailers(fields: &Fields) -> bool {
    says(fields, Known::Te, "trailers")
}

/// Whether a field that is a list has that word.
pub(crate) fn says(fields: &Fields, name: Known, word: &str) -> bool {
    let mut words = fields.texts(name).flat_map(|value| value.split(','));
    words.any(|said| said.trim().eq_ignore_ascii_case(word))
}

/// Takes away names that a backend may take for others: to CGI and its heirs `X_Real_IP` is `X-Real-IP`.
pub(crate) fn drop_underscores(fields: &mut Fields) {
    fields.retain_others(|name| !name.contains(&b'_'));
}

/// Brings cookies together, which HTTP/2 lets come apart and HTTP/1.1 does not (RFC 9113, 8.2.3).
pub(crate) fn join_cookies(fields: &mut Fields) {
    if fields.get_all(Known::Cookie).nth(1).is_some() {
        let joined = fields.get_all(Known::Cookie).collect::<Vec<_>>().join(&b"; "[..]);
        fields.set(Known::Cookie, joined);
    }
}

/// Why others may see the end of an answer of HTTP/1 elsewhere, if they may. The parser behind a connection to a
/// backend repairs what is said in two ways; what it did not see of one answer would be the next one.
pub(crate) fn two_ends(fields: &Fields) -> Option<&'static str> {
    let values = |name: Known| {
        let mut values = fields.get_all(name);
        (values.next(), values.next().is_some())
    };
    match (values(Known::ContentLength), values(Known::TransferEncoding)) {
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

/// Where the number of the trace stands that a request belongs to, if it says so (W3C Trace Context, 3.2.2).
pub(crate) fn trace(fields: &Fields) -> Option<Span> {
    let place = fields.place(Known::Traceparent)?;
    let mut parts = fields.bytes(place).split(|byte| *byte == b'-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let digits = |text: &[u8]| text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let good = version.len() == 2 && trace.len() == 32 && digits(version) && digits(trace);
    good.then(|| place.part(3..35))
}

/// Bytes of a head, roughly as they are on the wire.
pub(crate) fn length(fields: &Fields) -> u64 {
    fields.iter().map(|field| (field.name.len() + field.value.len() + 4) as u64).sum()
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn names(headers: &[(&str, &str)], change: fn(&mut Fields)) -> Vec<String> {
        let mut fields: Fields = headers.iter().copied().collect();
        change(&mut fields);
        let names = fields.iter().map(|field| String::from_utf8_lossy(field.name).to_lowercase());
        names.collect()
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
        let asks = |connection: &str, protocol: &str| {
            let mut fields = Fields::from_iter([("connection", connection), ("upgrade", protocol)]);
            let target = fields.keep(b"/");
            upgrade(&Head::new(Method::GET, Version::HTTP_11, target, None, fields).unwrap())
        };
        let no = |protocol| !asks("keep-alive, Upgrade", protocol);
        assert!(!no("websocket") && !no("parrot"));
        for http in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", " h2"] {
            assert!(no(http), "{http}");
        }
        assert!(!asks("keep-alive", "websocket"));
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
            let fields = Fields::from_iter([(Known::Traceparent, &said)]);
            let trace = trace(&fields).map(|trace| fields.bytes(trace));
            assert_eq!(trace, found.then_some(number.as_bytes()), "{said}");
        }
    }

    #[test]
    fn cookies_come_together() {
        let join = |cookies: &[&'static str]| {
            let mut fields: Fields = cookies.iter().map(|it| (Known::Cookie, it)).collect();
            join_cookies(&mut fields);
            fields.texts(Known::Cookie).map(ToOwned::to_owned).collect::<Vec<_>>()
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
