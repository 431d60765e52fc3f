//! Which requests of a route another Ingress takes over.

use std::sync::Arc;

use fairway_model::Canary;
use http::HeaderName;
use regex::bytes::Regex;

use super::template::cookie;
use super::{Request, Route};

/// Of a route: the one that takes a part of its requests.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) route: Arc<Route>,
    pub(super) rule: Rule,
    /// Clients that a cookie keeps at an endpoint stay on the side that this is on.
    pub(super) sticky: bool,
}

/// Which part that is.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    weight: u32,
    /// Not 0.
    total: u32,
    header: Option<(HeaderName, Value)>,
    cookie: Option<String>,
}

/// What the header must say.
#[derive(Clone, Debug)]
enum Value {
    /// `always` takes them, and `never` does not.
    Words,
    /// Exactly this takes them.
    Exactly(String),
    /// What this finds takes them; `None`: it cannot be read, and finds nothing.
    Found(Option<Regex>),
}

impl Rule {
    /// What cannot be read never takes a request, and is told to `problem`.
    pub(super) fn new(canary: &Canary, problem: &mut dyn FnMut(String)) -> Self {
        let header = canary.header.as_ref().and_then(|name| {
            let Ok(header) = HeaderName::try_from(name) else {
                problem(format!("{name:?} is no header's name: it takes no request"));
                return None;
            };
            let value = match (&canary.value, &canary.pattern) {
                (Some(value), _) => Value::Exactly(value.clone()),
                (None, Some(pattern)) => {
                    let made = regex::bytes::RegexBuilder::new(pattern)
                        .unicode(false)
                        .size_limit(1 << 20)
                        .build();
                    if made.is_err() {
                        problem(format!(
                            "{pattern:?} is no regular expression: it takes no request"
                        ));
                    }
                    Value::Found(made.ok())
                }
                (None, None) => Value::Words,
            };
            Some((header, value))
        });
        let total = canary.total.filter(|total| *total > 0).unwrap_or(100);
        Self { weight: canary.weight, total, header, cookie: canary.cookie.clone() }
    }

    /// Whether it takes `request`: by header, if that decides, else by cookie, else by chance.
    pub(super) fn takes(&self, request: &Request<'_>) -> bool {
        let by_header = self.header.as_ref().and_then(|(name, value)| {
            let said = request.headers.get(name)?;
            match value {
                Value::Words => word(said),
                Value::Exactly(value) => (said == value.as_bytes()).then_some(true),
                Value::Found(pattern) => {
                    pattern.as_ref().is_some_and(|pattern| pattern.is_match(said)).then_some(true)
                }
            }
        });
        let by_cookie = || word(cookie(request, self.cookie.as_ref()?)?);
        let by_chance = || request.dice % u64::from(self.total) < u64::from(self.weight);
        by_header.or_else(by_cookie).unwrap_or_else(by_chance)
    }
}

/// `always` and `never`.
fn word(said: &[u8]) -> Option<bool> {
    match said {
        b"always" => Some(true),
        b"never" => Some(false),
        _ => None,
    }
}
