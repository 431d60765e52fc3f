//! Which scripts of other sites may ask (the Fetch standard's CORS protocol), as ingress-nginx has it.

use fairway_model::Cors;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
};
use http::{HeaderName, HeaderValue};

use crate::message::{Fields, Known, text};

/// What is said to scripts of other sites.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// `None`: all.
    origins: Option<Vec<String>>,
    /// The headers that are the same for all of them.
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// What ingress-nginx allows where nothing is said.
const METHODS: &str = "GET, PUT, POST, DELETE, PATCH, OPTIONS";
const HEADERS: &str = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,\
                       Content-Type,Range,Authorization";

impl Rules {
    /// Of `cors`. What is no header's value is left out and told to `problem`.
    pub(super) fn new(cors: &Cors, problem: &mut dyn FnMut(String)) -> Self {
        let mut headers = Vec::new();
        let mut say = |name: HeaderName, text: String| match HeaderValue::try_from(&text) {
            Ok(value) => headers.push((name, value)),
            Err(_) => problem(format!("{name}: {text:?} is no header and is left out")),
        };
        if cors.credentials.unwrap_or(true) {
            say(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true".to_owned());
        }
        let list = |said: &[String], default: &str| {
            if said.is_empty() { default.to_owned() } else { said.join(", ") }
        };
        say(ACCESS_CONTROL_ALLOW_METHODS, list(&cors.methods, METHODS));
        say(ACCESS_CONTROL_ALLOW_HEADERS, list(&cors.headers, HEADERS));
        if !cors.expose_headers.is_empty() {
            say(ACCESS_CONTROL_EXPOSE_HEADERS, cors.expose_headers.join(", "));
        }
        say(ACCESS_CONTROL_MAX_AGE, cors.max_age.unwrap_or(1_728_000).to_string());
        let all = cors.origins.is_empty() || cors.origins.iter().any(|origin| origin == "*");
        let origins = (!all).then(|| cors.origins.iter().map(|o| o.to_ascii_lowercase()).collect());
        Self { origins, headers }
    }

    /// The headers of an answer to a request with `headers`; none if its origin may not have it.
    pub(super) fn answer(&self, headers: &Fields) -> Fields {
        let mut answer = Fields::default();
        let Some(origin) = headers.get(Known::Origin) else { return answer };
        match &self.origins {
            None => answer.set(Known::AccessControlAllowOrigin, "*"),
            Some(origins) => {
                let name = text(origin).unwrap_or_default().to_ascii_lowercase();
                if !origins.iter().any(|allowed| fits(allowed, &name)) {
                    return answer;
                }
                answer.set(Known::AccessControlAllowOrigin, origin);
            }
        }
        self.headers.iter().for_each(|(name, value)| answer.set(name, value));
        answer
    }

    /// Whether answers depend on who asks, so that caches must tell.
    pub(super) fn varies(&self) -> bool {
        self.origins.is_some()
    }
}

/// Whether `origin` is the one allowed; in place of a `*` may stand one label.
fn fits(allowed: &str, origin: &str) -> bool {
    let Some((front, back)) = allowed.split_once('*') else { return allowed == origin };
    let label = origin.strip_prefix(front).and_then(|rest| rest.strip_suffix(back));
    label.is_some_and(|label| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_allowed_by_name_or_by_one_label() {
        for (allowed, origin, expected) in [
            ("https://a.test", "https://a.test", true),
            ("https://a.test", "http://a.test", false),
            ("https://a.test", "https://a.test:8443", false),
            ("https://a.test", "https://a.test.evil.test", false),
            ("https://*.a.test", "https://b.a.test", true),
            ("https://*.a.test", "https://c.b.a.test", false),
            ("https://*.a.test", "https://a.test", false),
            ("https://*.a.test", "https://evil.test/.a.test", false),
            ("https://*.a.test:8443", "https://b.a.test:8443", true),
        ] {
            assert_eq!(fits(allowed, origin), expected, "{allowed} {origin}");
        }
    }
}
