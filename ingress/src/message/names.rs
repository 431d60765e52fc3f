//! Names of fields that the gateway looks at, sets, or sees all the time: recognised once, and a number from then on.

/// Makes the list and what is known of each.
macro_rules! known {
    ($($name:ident $text:literal)*) => {
        /// A name that is known.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known {
            $(#[doc = concat!("`", $text, "`")] $name,)*
        }

        impl Known {
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];
            const TEXTS: &[&str] = &[$($text),*];
        }
    };
}

known! {
    Accept "accept"
    AcceptCharset "accept-charset"
    AcceptEncoding "accept-encoding"
    AcceptLanguage "accept-language"
    AcceptRanges "accept-ranges"
    AccessControlAllowCredentials "access-control-allow-credentials"
    AccessControlAllowHeaders "access-control-allow-headers"
    AccessControlAllowMethods "access-control-allow-methods"
    AccessControlAllowOrigin "access-control-allow-origin"
    AccessControlExposeHeaders "access-control-expose-headers"
    AccessControlMaxAge "access-control-max-age"
    Age "age"
    Allow "allow"
    Authorization "authorization"
    CacheControl "cache-control"
    Connection "connection"
    ContentDigest "content-digest"
    ContentDisposition "content-disposition"
    ContentEncoding "content-encoding"
    ContentLanguage "content-language"
    ContentLength "content-length"
    ContentLocation "content-location"
    ContentMd5 "content-md5"
    ContentRange "content-range"
    ContentType "content-type"
    Cookie "cookie"
    Date "date"
    Digest "digest"
    ETag "etag"
    Expect "expect"
    Expires "expires"
    Forwarded "forwarded"
    From "from"
    Host "host"
    Http2Settings "http2-settings"
    IfMatch "if-match"
    IfModifiedSince "if-modified-since"
    IfNoneMatch "if-none-match"
    IfRange "if-range"
    IfUnmodifiedSince "if-unmodified-since"
    KeepAlive "keep-alive"
    LastModified "last-modified"
    Link "link"
    Location "location"
    MaxForwards "max-forwards"
    Origin "origin"
    Proxy "proxy"
    ProxyAuthenticate "proxy-authenticate"
    ProxyAuthorization "proxy-authorization"
    ProxyConnection "proxy-connection"
    Range "range"
    Referer "referer"
    Refresh "refresh"
    ReprDigest "repr-digest"
    RetryAfter "retry-after"
    SecWebSocketAccept "sec-websocket-accept"
    SecWebSocketKey "sec-websocket-key"
    Server "server"
    SetCookie "set-cookie"
    SslClientCert "ssl-client-cert"
    SslClientIssuerDn "ssl-client-issuer-dn"
    SslClientSubjectDn "ssl-client-subject-dn"
    SslClientVerify "ssl-client-verify"
    StrictTransportSecurity "strict-transport-security"
    Te "te"
    Traceparent "traceparent"
    Trailer "trailer"
    TransferEncoding "transfer-encoding"
    Upgrade "upgrade"
    UserAgent "user-agent"
    Vary "vary"
    Via "via"
    WwwAuthenticate "www-authenticate"
    XAccelBuffering "x-accel-buffering"
    XAuthRequestRedirect "x-auth-request-redirect"
    XForwardedFor "x-forwarded-for"
    XForwardedHost "x-forwarded-host"
    XForwardedPort "x-forwarded-port"
    XForwardedPrefix "x-forwarded-prefix"
    XForwardedProto "x-forwarded-proto"
    XForwardedScheme "x-forwarded-scheme"
    XOriginalForwardedFor "x-original-forwarded-for"
    XOriginalMethod "x-original-method"
    XOriginalUrl "x-original-url"
    XRealIp "x-real-ip"
    XRequestId "x-request-id"
    XScheme "x-scheme"
    XSentFrom "x-sent-from"
}

impl Known {
    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        Self::TEXTS[self as usize]
    }

    /// The one that `name` is, in whatever case.
    pub fn of(name: &[u8]) -> Option<Self> {
        if name.is_empty() {
            return None;
        }
        let mut place = place(name);
        loop {
            // An empty place is beyond all names.
            let known = *Self::ALL.get(usize::from(PLACES[place]))?;
            if is(known.as_str().as_bytes(), name) {
                return Some(known);
            }
            place = (place + 1) % PLACES.len();
        }
    }
}

/// Whether `name` is `lower`, a name in lower case, in whatever case: eight bytes at a time, as this is asked of each field.
fn is(lower: &[u8], name: &[u8]) -> bool {
    // Of letters, which have bit 6, bit 5 may be missing.
    const CASE: u64 = 0x2020_2020_2020_2020;
    let same = |lower: u64, name: u64| name | (lower >> 1 & CASE) == lower;
    let (lowers, lower_rest) = lower.as_chunks();
    let (names, name_rest) = name.as_chunks();
    let number = |chunk: &[u8; 8]| u64::from_ne_bytes(*chunk);
    lower.len() == name.len()
        && lowers.iter().zip(names).all(|(lower, name)| same(number(lower), number(name)))
        && lower_rest
            .iter()
            .zip(name_rest)
            .all(|(lower, name)| same((*lower).into(), (*name).into()))
}

/// Numbers of names, each where [`place`] says or at the next free place behind it.
static PLACES: [u8; 512] = {
    assert!(Known::ALL.len() <= 128, "`Fields` has a bit for each");
    let mut places = [u8::MAX; 512];
    let mut number = 0;
    while number < Known::ALL.len() {
        let mut place = place(Known::TEXTS[number].as_bytes());
        while places[place] != u8::MAX {
            place = (place + 1) % 512;
        }
        places[place] = Known::ALL[number] as u8;
        number += 1;
    }
    places
};

/// Of a name that is not empty; the same in upper and lower case.
const fn place(name: &[u8]) -> usize {
    let last = name.len() - 1;
    let [first, middle, end] = [name[0] | 32, name[last / 2] | 32, name[last] | 32];
    (name.len() * 67 + first as usize * 5 + middle as usize * 29 + end as usize * 131) % 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_found_in_any_case() {
        for known in Known::ALL {
            let text = known.as_str();
            assert_eq!(text, text.to_ascii_lowercase());
            assert_eq!(Known::of(text.as_bytes()), Some(*known));
            assert_eq!(Known::of(text.to_ascii_uppercase().as_bytes()), Some(*known));
        }
        for known in Known::ALL {
            // Each byte counts, and each of its bits but that which makes letters small.
            let mut text = known.as_str().as_bytes().to_vec();
            for (at, bit) in (0..text.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let is_letter = text[at].is_ascii_lowercase();
                text[at] ^= 1 << bit;
                let found = Known::of(&text);
                assert_eq!(found == Some(*known), is_letter && bit == 5, "{}", text.escape_ascii());
                text[at] ^= 1 << bit;
            }
        }
        for other in ["", "x", "hos", "hosts", "x-custom", "x_real_ip", "\0"] {
            assert_eq!(Known::of(other.as_bytes()), None, "{other}");
        }
        let occupied = PLACES.iter().filter(|place| **place != u8::MAX).count();
        assert_eq!(occupied, Known::ALL.len());
    }
}
