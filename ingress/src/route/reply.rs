//! What the gateway changes about answers.

use std::sync::Arc;

use http::HeaderValue;

use super::Settings;
use crate::message::{Fields, Known, text};

/// What is changed about the answer to a request, whoever gives it.
#[derive(Debug, Default)]
pub struct Reply {
    pub(super) settings: Option<Arc<Settings>>,
    /// For scripts of other sites.
    pub(super) cors: Fields,
    pub(super) hsts: Option<HeaderValue>,
}

impl Reply {
    /// Changes the headers of an answer of the gateway's own.
    pub fn apply(&self, headers: &mut Fields) {
        for field in &self.cors {
            headers.set(field.name(), field.value);
        }
        if let Some(hsts) = &self.hsts {
            headers.set(Known::StrictTransportSecurity, hsts);
        }
        let Some(settings) = &self.settings else { return };
        if settings.cors.as_ref().is_some_and(|cors| cors.varies()) {
            headers.append(Known::Vary, "Origin");
        }
        for (name, value) in &settings.response_headers {
            headers.set(name, value);
        }
    }

    /// Changes the headers of a backend's answer.
    pub fn apply_to_backend(&self, headers: &mut Fields) {
        if let Some(settings) = &self.settings {
            settings.rewrite_places(headers);
            settings.rewrite_cookies(headers);
        }
        self.apply(headers);
    }
}

impl Settings {
    fn rewrite_places(&self, headers: &mut Fields) {
        let Some((from, to)) = &self.proxy_redirect else { return };
        headers.rewrite(Known::Location, |location| {
            let rest = location.strip_prefix(from.as_bytes())?;
            Some([to.as_bytes(), rest].concat())
        });
        // `5; url=https://example.com/`
        headers.rewrite(Known::Refresh, |refresh| {
            let refresh = text(refresh)?;
            let at = refresh.to_ascii_lowercase().find("url=")?;
            let (front, rest) = refresh.split_at(at + 4);
            let rest = rest.strip_prefix(from.as_str())?;
            Some(format!("{front}{to}{rest}").into())
        });
    }

    fn rewrite_cookies(&self, headers: &mut Fields) {
        if self.cookie_path.is_some() || self.cookie_domain.is_some() {
            let rewrite = |cookie: &[u8]| Some(self.rewrite_cookie(text(cookie)?).into());
            headers.rewrite(Known::SetCookie, rewrite);
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
