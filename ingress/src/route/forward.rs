//! What backends get: path and headers.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::header::{AUTHORIZATION, FORWARDED, HOST, LOCATION};
use http::{HeaderName, HeaderValue, StatusCode};

use super::access::Certified;
use super::template::{Asked, Fill, header_value, ssl};
use super::{Answer, Edits, Reason, Request, Route, Trust, host_name, path};

impl Trust {
    /// A request, with what whoever is believed says about it.
    pub(super) fn read<'a>(
        &self,
        request: &'a Request<'a>,
        host: &'a str,
        path: &'a path::Normal<'a>,
        query: Option<&'a str>,
    ) -> Asked<'a> {
        let peer = request.peer.ip().to_canonical();
        let believed = self.believes(peer);
        let said = |name: &str| {
            let value = request.headers.get(name).filter(|_| believed)?;
            value.to_str().ok().map(str::trim)
        };
        let scheme = said("x-forwarded-proto").filter(|scheme| matches!(*scheme, "http" | "https"));
        let ended = self.proxy && request.port == self.public.https.unwrap_or(443);
        let own = if ended { "https" } else { request.scheme() };
        // The one that the client asked for is the first.
        let authority = said("x-forwarded-host").and_then(|hosts| hosts.split(',').next());
        let authority = authority.map(str::trim).filter(|host| host_name(host).is_some());
        Asked {
            request,
            host,
            path,
            query,
            client: if believed { self.client(request, peer) } else { peer },
            scheme: if scheme.unwrap_or(own) == "https" { "https" } else { "http" },
            authority: authority.or(request.host).unwrap_or_default(),
        }
    }

    fn believes(&self, peer: IpAddr) -> bool {
        self.forwarded && self.knows(peer)
    }

    fn knows(&self, address: IpAddr) -> bool {
        self.nets.iter().any(|net| net.contains(&address))
    }

    /// The last of those that a request came by who is not believed himself.
    fn client(&self, request: &Request<'_>, peer: IpAddr) -> IpAddr {
        let mut client = peer;
        let headers = request.headers.get_all("x-forwarded-for").into_iter();
        let all: Vec<_> = headers.filter_map(|header| header.to_str().ok()).collect();
        for address in all.iter().rev().flat_map(|header| header.rsplit(',')) {
            let address = address.trim();
            let plain = address.trim_start_matches('[').trim_end_matches(']').parse();
            let Ok(address) = plain.or_else(|_| address.parse().map(|both: SocketAddr| both.ip()))
            else {
                break;
            };
            client = address.to_canonical();
            if !self.knows(client) {
                break;
            }
        }
        client
    }

    /// What a backend gets other headers of than the client sent.
    pub(super) fn headers(&self, fill: &Fill<'_>, certified: Option<&Certified>) -> Edits {
        let settings = &fill.route.settings;
        let host = settings.upstream_vhost.as_ref().map(|host| fill.header(host));
        let authority = || header_value(fill.asked.authority.as_bytes());
        let mut edits = vec![(HOST, Some(host.unwrap_or_else(authority)))];
        edits.extend(self.said(fill, certified));
        if settings.password.is_some() {
            // It was for the gateway.
            edits.push((AUTHORIZATION, None));
        }
        for (name, value) in &settings.request_headers {
            let value = fill.header(value);
            edits.push((name.clone(), Some(value).filter(|value| !value.is_empty())));
        }
        edits
    }

    /// What whoever is asked, backend or not, takes for the gateway's word about the client.
    pub(super) fn said(&self, fill: &Fill<'_>, certified: Option<&Certified>) -> Edits {
        let Fill { asked, route, .. } = fill;
        let request = asked.request;
        let settings = &route.settings;
        let believed = self.believes(request.peer.ip().to_canonical());
        let name = HeaderName::from_static;
        let client = header_value(asked.client.to_string().as_bytes());
        let authority = header_value(asked.authority.as_bytes());
        let scheme = HeaderValue::from_static(asked.scheme);
        let port = request.headers.get("x-forwarded-port").filter(|_| believed).cloned();
        let port = port.unwrap_or_else(|| HeaderValue::from(request.port));
        let prefix = settings.forwarded_prefix.as_ref().filter(|_| route.rewrites);
        let mut edits: Edits = vec![
            (name("x-request-id"), Some(header_value(request.id.as_bytes()))),
            (name("x-real-ip"), Some(client.clone())),
            (name("x-forwarded-for"), Some(client)),
            (name("x-forwarded-host"), Some(authority)),
            (name("x-forwarded-port"), Some(port)),
            (name("x-forwarded-proto"), Some(scheme.clone())),
            (name("x-forwarded-scheme"), Some(scheme.clone())),
            (name("x-scheme"), Some(scheme)),
            (name("x-original-forwarded-for"), request.headers.get("x-forwarded-for").cloned()),
            // Programs take it for the environment's HTTP_PROXY.
            (name("proxy"), None),
        ];
        if !believed {
            edits.push((FORWARDED, None));
        }
        match prefix {
            Some(prefix) => {
                edits.push((name("x-forwarded-prefix"), Some(fill.header(prefix))));
            }
            None if !believed => edits.push((name("x-forwarded-prefix"), None)),
            None => {}
        }
        // Whoever reads them takes them for the gateway's word.
        for (header, variable) in [
            ("ssl-client-verify", "client_verify"),
            ("ssl-client-subject-dn", "client_s_dn"),
            ("ssl-client-issuer-dn", "client_i_dn"),
            ("ssl-client-cert", "client_escaped_cert"),
        ] {
            let wanted = certified
                .is_some_and(|certified| certified.tls.pass || variable != "client_escaped_cert");
            let value = wanted.then(|| ssl(request, variable)).filter(|value| !value.is_empty());
            edits.push((name(header), value.map(|value| header_value(&value))));
        }
        edits
    }
}

impl Fill<'_> {
    /// Path and query that a backend gets; `None`: those that the client sent. A path that is rewritten to
    /// an address is a redirect to it.
    pub(super) fn path_and_query<'t>(&self) -> Result<Option<String>, Answer<'t>> {
        let Asked { path, query, .. } = self.asked;
        let rewrite = self.route.settings.rewrite.as_ref().filter(|_| self.route.rewrites);
        let Some(rewrite) = rewrite else {
            let Cow::Owned(path) = &path.raw else { return Ok(None) };
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            return Ok(Some(visible(format!("{path}{query}"))));
        };
        let mut target = self.url(rewrite);
        match (target.strip_suffix('?'), query) {
            // The client's query is not wanted.
            (Some(bare), _) => target.truncate(bare.len()),
            (None, Some(query)) => {
                target.push(if target.contains('?') { '&' } else { '?' });
                target.push_str(query);
            }
            (None, None) => {}
        }
        if target.starts_with("http://") || target.starts_with("https://") {
            let answer = Answer::new(StatusCode::FOUND, Reason::Redirect);
            return Err(answer.with(LOCATION, header_value(target.as_bytes())));
        }
        if !target.starts_with('/') {
            target.insert(0, '/');
        }
        // What a group has found may be dots in the place where the target puts it, and lead out of that.
        let path = target.split_once('?').map_or(&*target, |(path, _)| path);
        if !path::normal(path).is_ok_and(|path| matches!(path.raw, Cow::Borrowed(_))) {
            return Err(Answer::new(StatusCode::BAD_REQUEST, Reason::Path));
        }
        Ok(Some(visible(target)))
    }
}

/// `target` with what is no visible ASCII encoded: a client may have sent it so.
fn visible(target: String) -> String {
    if target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return target;
    }
    let mut text = String::with_capacity(target.len());
    target.bytes().for_each(|byte| path::push_encoded(&mut text, byte, &[]));
    text
}

impl Route {
    /// `Path` of a cookie that keeps a client at an endpoint, where nothing is said about it.
    pub fn cookie_path(&self) -> &str {
        if self.expression.is_some() { "/" } else { &self.path }
    }

    /// What [`Self::error_target`] is told in place of an answer with `status` to a request for `target`
    /// with this `accept` and this `id`.
    pub fn error_headers(
        &self,
        status: StatusCode,
        accept: Option<&HeaderValue>,
        target: &str,
        id: &str,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let name = HeaderName::from_static;
        let text = |text: &str| header_value(text.as_bytes());
        let ingress = self.ingress.as_ref();
        vec![
            (name("x-code"), HeaderValue::from(status.as_u16())),
            (name("x-format"), accept.cloned().unwrap_or_else(|| text(""))),
            (name("x-original-uri"), text(target)),
            (name("x-namespace"), text(ingress.map_or("", |name| &name.namespace))),
            (name("x-ingress-name"), text(ingress.map_or("", |name| &name.name))),
            (name("x-service-name"), text(&self.backend.service)),
            (name("x-service-port"), text(&self.backend.port.to_string())),
            (name("x-request-id"), text(id)),
        ]
    }
}
