//! The cookie that keeps a client at an endpoint, and with it at a canary or not.
//!
//! It names an endpoint and the port of a Service that it is one of: `1f0c…-93ab…`, both as keys that are the
//! same in all gateways.

use std::net::SocketAddr;

use fairway_model::Affinity;

use super::template::cookie;
use super::{Request, Route, Target};

/// A client is kept at an endpoint.
#[derive(Debug)]
pub struct Sticky<'t> {
    /// The key of the endpoint that it has by its cookie, if that is one of this target's.
    pub kept: Option<u64>,
    /// How it is kept.
    pub rules: &'t Affinity,
    path: &'t str,
    target: u64,
    secure: bool,
}

impl<'t> Sticky<'t> {
    pub(super) fn new(
        route: &'t Route,
        target: &Target,
        request: &Request<'_>,
        scheme: &str,
    ) -> Option<Self> {
        let rules = route.settings.affinity.as_ref()?;
        let target = target.key();
        Some(Self {
            kept: kept(rules, request)
                .filter(|(_, of)| *of == target)
                .map(|(endpoint, _)| endpoint),
            rules,
            path: rules.path.as_deref().unwrap_or(route.cookie_path()),
            target,
            secure: rules.secure.unwrap_or(scheme == "https"),
        })
    }

    /// `Set-Cookie` that keeps the client at `endpoint`: for an answer to one that is not kept at that yet.
    pub fn cookie(&self, endpoint: SocketAddr) -> String {
        let Self { rules, path, target, secure, .. } = self;
        let mut text = format!("{}={:016x}-{target:016x}; Path={path}", rules.name, key(&endpoint));
        if let Some(domain) = &rules.domain {
            text.push_str("; Domain=");
            text.push_str(domain);
        }
        if let Some(seconds) = rules.max_age {
            text.push_str(&format!("; Max-Age={seconds}"));
        }
        if *secure {
            text.push_str("; Secure");
        }
        text.push_str("; HttpOnly");
        if let Some(same_site) = &rules.same_site {
            text.push_str("; SameSite=");
            text.push_str(same_site);
        }
        text
    }

    /// The key that [`Self::kept`] has for `endpoint`.
    pub fn key(endpoint: SocketAddr) -> u64 {
        key(&endpoint)
    }
}

impl Route {
    /// Whether the client's cookie keeps it at the canary, or away from it; `None`: it says nothing.
    pub(super) fn keeps_at_canary(&self, request: &Request<'_>) -> Option<bool> {
        let branch = self.canary.as_ref()?;
        let rules = self.settings.affinity.as_ref().filter(|_| branch.sticky)?;
        let (_, of) = kept(rules, request)?;
        let is = |route: &Self| route.target.as_ref().is_some_and(|target| target.key() == of);
        if is(self) { Some(false) } else { is(&branch.route).then_some(true) }
    }
}

impl Target {
    fn key(&self) -> u64 {
        key(&format_args!("{} {}", self.service, self.port))
    }
}

/// The keys in the client's cookie: of an endpoint, and of what it is one of.
fn kept(rules: &Affinity, request: &Request<'_>) -> Option<(u64, u64)> {
    let value = str::from_utf8(cookie(request, &rules.name)?).ok()?;
    let (endpoint, of) = value.split_once('-')?;
    let key = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
    Some((key(endpoint)?, key(of)?))
}

/// A number for what `thing` is called (FNV-1a), the same wherever it is made.
fn key(thing: &impl ToString) -> u64 {
    thing.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, |key, byte| {
        (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
