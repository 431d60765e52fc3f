//! What backends get: path and headers.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::StatusCode;

use super::access::Certified;
use super::template::{Asked, Fill, ssl};
use super::{Answer, Edits, Reason, Request, Route, Trust, host_name, path};
use crate::message::{Fields, Known};

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
        let said = |name: Known| request.headers.text(name).filter(|_| believed).map(str::trim);
        let scheme =
            said(Known::XForwardedProto).filter(|scheme| matches!(*scheme, "http" | "https"));
        let ended = self.proxy && request.port == self.public.https.unwrap_or(443);
        let own = if ended { "https" } else { request.scheme() };
        // The one that the client asked for is the first.
        let authority = said(Known::XForwardedHost).and_then(|hosts| hosts.split(',').next());
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
        let all: Vec<_> = request.headers.texts(Known::XForwardedFor).collect();
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
        let mut edits = Edits::new();
        match &settings.upstream_vhost {
            Some(host) => edits.set(Known::Host, fill.bytes(host)),
            None => edits.set(Known::Host, fill.asked.authority),
        }
        self.say(fill, certified, &mut edits);
        if settings.password.is_some() {
            // It was for the gateway.
            edits.remove(Known::Authorization);
        }
        for (name, value) in &settings.request_headers {
            let value = fill.bytes(value);
            edits.change(name, Some(value).filter(|value| !value.is_empty()));
        }
        edits
    }

    /// What whoever is asked, backend or not, takes for the gateway's word about the client.
    pub(super) fn said(&self, fill: &Fill<'_>, certified: Option<&Certified>) -> Edits {
        let mut edits = Edits::new();
        self.say(fill, certified, &mut edits);
        edits
    }

    fn say(&self, fill: &Fill<'_>, certified: Option<&Certified>, edits: &mut Edits) {
        let Fill { asked, route, .. } = fill;
        let (request, settings) = (asked.request, &route.settings);
        let believed = self.believes(request.peer.ip().to_canonical());
        edits.set(Known::XRequestId, request.id);
        edits.set_all(&[Known::XRealIp, Known::XForwardedFor], asked.client);
        edits.set(Known::XForwardedHost, asked.authority);
        match request.headers.get(Known::XForwardedPort).filter(|_| believed) {
            Some(port) => edits.set(Known::XForwardedPort, port),
            None => edits.set_all(&[Known::XForwardedPort], request.port),
        }
        let scheme = [Known::XForwardedProto, Known::XForwardedScheme, Known::XScheme];
        edits.set_all(&scheme, asked.scheme);
        edits.change(Known::XOriginalForwardedFor, request.headers.get(Known::XForwardedFor));
        // Programs take it for the environment's HTTP_PROXY.
        edits.remove(Known::Proxy);
        if !believed {
            edits.remove(Known::Forwarded);
        }
        match settings.forwarded_prefix.as_ref().filter(|_| route.rewrites) {
            Some(prefix) => edits.set(Known::XForwardedPrefix, fill.bytes(prefix)),
            None if !believed => edits.remove(Known::XForwardedPrefix),
            None => {}
        }
        // Whoever reads them takes them for the gateway's word.
        for (name, variable) in [
            (Known::SslClientVerify, "client_verify"),
            (Known::SslClientSubjectDn, "client_s_dn"),
            (Known::SslClientIssuerDn, "client_i_dn"),
            (Known::SslClientCert, "client_escaped_cert"),
        ] {
            let wanted = certified
                .is_some_and(|certified| certified.tls.pass || variable != "client_escaped_cert");
            let value = wanted.then(|| ssl(request, variable)).filter(|value| !value.is_empty());
            edits.change(name, value);
        }
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
            return Err(answer.with(Known::Location, target));
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
        accept: Option<&[u8]>,
        target: &str,
        id: &str,
    ) -> Fields {
        let ingress = self.ingress.as_ref();
        let mut fields = Fields::new();
        fields.set("x-code", status.as_str());
        fields.set("x-format", accept.unwrap_or_default());
        fields.set("x-original-uri", target);
        fields.set("x-namespace", ingress.map_or("", |name| &name.namespace));
        fields.set("x-ingress-name", ingress.map_or("", |name| &name.name));
        fields.set("x-service-name", &self.backend.service);
        fields.set("x-service-port", self.backend.port.to_string());
        fields.set(Known::XRequestId, id);
        fields
    }
}
