//! What the gateway changes about answers.

use std::sync::Arc;

use http::header::{LOCATION, SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Settings;

/// What is changed about the answer to a request, whoever gives it.
#[derive(Debug, Default)]
pub struct Reply {
    pub(super) settings: Option<Arc<Settings>>,
    /// For scripts of other sites.
    pub(super) cors: Vec<(HeaderName, HeaderValue)>,
    pub(super) hsts: Option<HeaderValue>,
}

impl Reply {
    /// Changes the headers of an answer of the gateway's own.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.cors {
            headers.insert(name, value.clone());
        }
        if let Some(hsts) = &self.hsts {
            headers.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        let Some(settings) = &self.settings else { return };
        if let Some((name, value)) = settings.cors.as_ref().and_then(|cors| cors.varies()) {
            headers.append(name, value);
        }
        for (name, value) in &settings.response_headers {
            headers.insert(name, value.clone());
        }
    }

    /// Changes the headers of a backend's answer.
    pub fn apply_to_backend(&self, headers: &mut HeaderMap) {
        if let Some(settings) = &self.settings {
            settings.rewrite_places(headers);
            settings.rewrite_cookies(headers);
        }
        self.apply(headers);
    }
}

impl Settings {
    fn rewrite_places(&self, headers: &mut HeaderMap) {
        let Some((from, to)) = &self.proxy_redirect else { return };
        if let Some(location) = headers.get_mut(LOCATION)
            && let Some(rest) = location.as_bytes().strip_prefix(from.as_bytes())
            && let Ok(value) = HeaderValue::from_bytes(&[to.as_bytes(), rest].concat())
        {
            *location = value;
        }
        // `5; url=https://example.com/`
        if let Some(refresh) = headers.get_mut("refresh")
            && let Ok(text) = refresh.to_str()
            && let Some(at) = text.to_ascii_lowercase().find("url=")
            && let (front, Some(rest)) =
                (&text[..at + 4], text[at + 4..].strip_prefix(from.as_str()))
            && let Ok(value) = HeaderValue::try_from(format!("{front}{to}{rest}"))
        {
            *refresh = value;
        }
    }

    fn rewrite_cookies(&self, headers: &mut HeaderMap) {
        if self.cookie_path.is_none() && self.cookie_domain.is_none() {
            return;
        }
        let cookies: Vec<_> = headers.get_all(SET_COOKIE).into_iter().cloned().collect();
        headers.remove(SET_COOKIE);
        for cookie in cookies {
            let rewritten = cookie.to_str().ok().map(|cookie| self.rewrite_cookie(cookie));
            let rewritten = rewritten.and_then(|cookie| HeaderValue::try_from(cookie).ok());
            headers.append(SET_COOKIE, rewritten.unwrap_or(cookie));
        }
    }

    fn rewrite_cookie(&self, cookie: &str) -> String {
        let attributes = cookie.split(';').enumerate().map(|(place, attribute)| {
            let Some((name, value)) = attribute.split_once('=').filter(|_| place > 0) else {
                return attribute.to_owned();
            };
            let rewritten = match name.trim().to_ascii_lowercase().as_str() {
                "path" => self.cookie_path.as_ref().and_then(|(from, to)| {
                    value.trim().strip_prefix(from.as_str()).map(|rest| format!("{to}{rest}"))
                }),
                "domain" => self.cookie_domain.as_ref().and_then(|(from, to)| {
                    let bare = |domain: &str| domain.trim_start_matches('.').to_ascii_lowercase();
                    (bare(value.trim()) == bare(from)).then(|| to.clone())
                }),
                _ => None,
            };
            rewritten.map_or_else(|| attribute.to_owned(), |value| format!("{name}={value}"))
        });
        attributes.collect::<Vec<_>>().join(";")
    }
}
