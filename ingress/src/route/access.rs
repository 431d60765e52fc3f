//! Who may pass: by address, by certificate, by somebody else's word.

use std::net::IpAddr;

use fairway_model::{ClientTls, ExternalAuth, VerifyClient};
use http::{HeaderValue, Method, StatusCode};
use regex::bytes::Regex;

use super::path::encode_argument;
use super::template::Fill;
use super::{Edits, Reason, Settings, Tls};
use crate::message::{Fields, Known};

/// What addresses say about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// It is among those that are let in.
    LetIn,
    /// It is kept out.
    KeptOut,
    /// Nothing.
    Silent,
}

/// What the lists of `settings` say about `client`.
pub(super) fn address(settings: &Settings, client: IpAddr) -> Address {
    let among = |nets: &[ipnet::IpNet]| nets.iter().any(|net| net.contains(&client));
    if among(&settings.deny) {
        Address::KeptOut
    } else if settings.allow.is_empty() {
        Address::Silent
    } else if among(&settings.allow) {
        Address::LetIn
    } else {
        Address::KeptOut
    }
}

/// What is asked of clients' certificates, of a whole host.
#[derive(Clone, Debug)]
pub(super) struct Certified {
    pub(super) tls: ClientTls,
    /// The common name must fit; `None`: cannot be read, and nobody's does.
    pub(super) common_name: Option<Option<Regex>>,
    /// The CA is not there: nobody can be believed.
    pub(super) denied: bool,
    pub(super) error_page: Option<HeaderValue>,
}

impl Certified {
    /// Whether anything is asked at all.
    pub(super) fn asks(&self) -> bool {
        self.tls.verify != VerifyClient::Off || self.common_name.is_some()
    }

    /// Why a client is not served; `None`: it is.
    pub(super) fn refuses(&self, tls: Option<&Tls<'_>>) -> Option<(StatusCode, Reason)> {
        let bad = (StatusCode::BAD_REQUEST, Reason::ClientCertificate);
        if self.denied {
            return Some((StatusCode::SERVICE_UNAVAILABLE, Reason::Secret));
        }
        let client = tls.and_then(|tls| tls.client);
        let rejected = client.is_some_and(|client| client.rejected.is_some());
        let refused = match self.tls.verify {
            VerifyClient::On => client.is_none() || rejected,
            VerifyClient::Optional => rejected,
            VerifyClient::Off | VerifyClient::OptionalNoCa => false,
        };
        if refused {
            return Some(bad);
        }
        let wanted = self.common_name.as_ref()?;
        let name = client.map(|client| client.common_name.as_bytes()).unwrap_or_default();
        let fits = wanted.as_ref().is_some_and(|wanted| wanted.is_match(name));
        (!fits).then_some((StatusCode::FORBIDDEN, Reason::CommonName))
    }
}

/// Somebody else is to be asked whether a request may pass: with its headers, these edits, and no body.
#[derive(Debug)]
pub struct Question<'t> {
    /// Where.
    pub url: String,
    /// How.
    pub method: Method,
    /// What is different from the headers of the request, apart from `Host`.
    pub headers: Edits,
    /// The answer holds for all requests of the route with the same of this; `None`: for this one alone.
    pub cache_key: Option<Vec<u8>>,
    /// What else is said about it: for how long answers hold.
    pub rules: &'t ExternalAuth,
    /// In place of a 401, the client is sent there.
    signin: Option<String>,
}

/// What comes of the answer to a [`Question`].
#[derive(Debug)]
pub enum Verdict {
    /// The request goes on.
    Pass {
        /// With these headers.
        headers: Edits,
        /// These `Set-Cookie` are added to the answer: to all if the second is set, else to those that are no errors.
        cookies: Fields,
        /// See above.
        always: bool,
    },
    /// It does not.
    Refuse(StatusCode, Fields),
}

impl<'t> Question<'t> {
    /// `said` is what the gateway says of the client: nothing of that is the client's own word.
    pub(super) fn new(rules: &'t ExternalAuth, fill: &Fill<'_>, said: Edits) -> Self {
        let asked = fill.asked;
        let request = asked.request;
        let authority = request.host.unwrap_or_default();
        let url = format!("{}://{authority}{}", request.scheme(), request.target);
        let mut headers = said;
        headers.remove(Known::ContentLength);
        headers.remove(Known::TransferEncoding);
        headers.remove(Known::XForwardedProto);
        headers.set(Known::XRequestId, request.id);
        headers.set(Known::XOriginalUrl, url);
        headers.set(Known::XOriginalMethod, request.method.as_str());
        headers.set(Known::XSentFrom, "fairway-ingress");
        headers.set_all(&[Known::XRealIp, Known::XForwardedFor], asked.client);
        headers.set(Known::XAuthRequestRedirect, request.target);
        for (name, value) in &rules.request_headers {
            headers.set(name.as_str(), fill.bytes(value));
        }
        let method = rules.method.as_ref().and_then(|method| method.parse().ok());
        Self {
            url: fill.url(&rules.url),
            method: method.unwrap_or(Method::GET),
            headers,
            cache_key: rules.cache_key.as_ref().map(|key| fill.bytes(key)),
            rules,
            signin: rules.signin.as_ref().map(|signin| {
                let mut url = fill.url(signin);
                let parameter = rules.redirect_param.as_deref().unwrap_or("rd");
                let query = url.split_once('?').map(|(_, query)| query);
                let mut names =
                    query.unwrap_or_default().split('&').filter_map(|p| p.split('=').next());
                if !names.any(|name| name == parameter) {
                    let back = encode_argument(request.target.as_bytes());
                    let mark = if query.is_some() { '&' } else { '?' };
                    url = format!("{url}{mark}{parameter}={}://{authority}{back}", asked.scheme);
                }
                url
            }),
        }
    }

    /// What comes of an answer with `status` and `headers`.
    pub fn verdict(&self, status: StatusCode, headers: &Fields) -> Verdict {
        let all = |name: Known| headers.get_all(name).map(move |value| (name, value));
        if status.is_success() {
            let mut copied = Edits::default();
            for name in &self.rules.response_headers {
                // What is the client's own of these would pass for the other's word.
                copied.change(name.as_str(), headers.get(name.as_str()));
            }
            let (cookies, always) = (all(Known::SetCookie).collect(), self.rules.always_set_cookie);
            return Verdict::Pass { headers: copied, cookies, always };
        }
        let mut answer = Fields::new();
        let signin = self.signin.as_ref().filter(|_| status == StatusCode::UNAUTHORIZED);
        // Whoever signs in has been given what to come back with.
        if self.rules.always_set_cookie || signin.is_some() {
            all(Known::SetCookie).for_each(|(name, value)| answer.append(name, value));
        }
        let status = match (status, signin) {
            (_, Some(signin)) => {
                answer.set(Known::Location, signin);
                StatusCode::FOUND
            }
            (StatusCode::UNAUTHORIZED, None) => {
                all(Known::WwwAuthenticate).for_each(|(name, value)| answer.append(name, value));
                status
            }
            (StatusCode::FORBIDDEN, _) => status,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Verdict::Refuse(status, answer)
    }
}
