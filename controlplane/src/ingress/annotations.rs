//! The annotations of ingress-nginx: which are known, what each means, and what becomes of those that are not
//! honoured. What is said here is what `docs/migrate-from-ingress-nginx.md` says, by a test.

use std::collections::BTreeMap;

use fairway_model::{
    Affinity, BackendProtocol, BasicAuth, Canary, Choice, ClientTls, Cors, ExternalAuth, Failure,
    Mirror, NextUpstream, ObjectName, Options, Redirect, Template, VerifyClient,
};

use super::secrets::Role;
use super::values::{
    address, boolean, duration, expression, headers, host, line, list, method, number, object,
    origin, path, ranges, replacement, size, switch, template, token, tokens, wrong,
};
use super::{OWN_PREFIX, PREFIX};
use crate::kubernetes::{FieldError, Ingress};

/// An annotation.
pub(crate) struct Row {
    /// Without its prefix.
    pub(crate) name: &'static str,
    /// How far it is honoured.
    pub(crate) support: Support,
    /// What it does, how it differs, or what to do in its place.
    pub(crate) note: &'static str,
    /// It keeps somebody out: where it cannot be read, nothing is served without it.
    guards: bool,
    /// The gateway's settings have it under the same name.
    pub(super) global: bool,
    set: Set,
}

type Set = fn(&mut Draft, &str) -> Result<(), String>;

/// How far an annotation is honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// As in ingress-nginx.
    Yes,
    /// But for what is noted.
    Differs,
    /// It changes nothing here, and need not.
    NotNeeded,
    /// It could be anything, or is something that does not exist here.
    Refused,
}

/// Annotations as they are put together.
#[derive(Default)]
pub(super) struct Draft {
    namespace: String,
    pub(super) options: Options,
    cors: Option<bool>,
    cors_says: Cors,
    canary: bool,
    canary_says: Canary,
    sticky: bool,
    cookie: Affinity,
    expires: Option<i64>,
    basic: bool,
    users: Option<ObjectName>,
    by_key: bool,
    realm: String,
    external: bool,
    external_says: ExternalAuth,
    client: Option<ObjectName>,
    client_says: ClientTls,
    mirrored: bool,
    mirror: Mirror,
    temporal: Option<Template>,
    temporal_status: Option<u16>,
    permanent: Option<Template>,
    permanent_status: Option<u16>,
    next: NextUpstream,
    redirect_from: Option<String>,
    redirect_to: Option<String>,
    choice: Option<Choice>,
    hash: Option<Template>,
    default_backend: Option<String>,
    custom_headers: Option<ObjectName>,
}

/// What annotations say.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) options: Options,
    /// The Secrets that they name, for what, and where.
    pub(crate) secrets: Vec<(ObjectName, Role, String)>,
    /// The Service in place of one that fails, and where that is said; its first port is meant.
    pub(crate) default_backend: Option<(String, String)>,
    /// The ConfigMap with headers of answers, and where that is said.
    pub(crate) custom_headers: Option<(ObjectName, String)>,
    /// What keeps somebody out and cannot be read.
    pub(crate) errors: Vec<FieldError>,
    /// What is not honoured.
    pub(crate) warnings: Vec<FieldError>,
}

/// Reads the annotations of an Ingress of that namespace.
pub(crate) fn read(namespace: &str, annotations: &BTreeMap<String, String>) -> Said {
    let mut draft = Draft { namespace: namespace.to_owned(), ..Draft::default() };
    let mut said = Said::default();
    for row in ROWS {
        let Some((key, value)) = find(annotations, row.name) else { continue };
        let error = |message| FieldError::new(format!("metadata.annotations.{key}"), message);
        match row.support {
            Support::Refused => {
                said.warnings.push(error(format!("not supported: {}", row.note)));
            }
            Support::NotNeeded => {
                said.warnings.push(error(format!("changes nothing here: {}", row.note)));
            }
            // To ingress-nginx, the same as nothing.
            _ if value.trim().is_empty() && !row.guards => {}
            Support::Yes | Support::Differs => match (row.set)(&mut draft, value.trim()) {
                Ok(()) => {}
                Err(message) if row.guards => {
                    let message = format!(
                        "{message}; it keeps somebody out, so that the Ingress is not served without it"
                    );
                    said.errors.push(error(message));
                }
                Err(message) => said.warnings.push(error(format!("not honoured: {message}"))),
            },
        }
    }
    for key in annotations.keys() {
        let name = key.strip_prefix(PREFIX).or_else(|| key.strip_prefix(OWN_PREFIX));
        if name.is_some_and(|name| !ROWS.iter().any(|row| row.name == name)) {
            let message = "no such annotation is known here; it is ignored";
            said.warnings.push(FieldError::new(format!("metadata.annotations.{key}"), message));
        }
    }
    let key = |name: &str| {
        let key = find(annotations, name).map_or(name, |(key, _)| key);
        format!("metadata.annotations.{key}")
    };
    draft.finish(&mut said, key);
    said
}

/// Whether it is the field of an annotation that changes nothing here, and need not.
pub(super) fn is_not_needed(field: &str) -> bool {
    let key = field.strip_prefix("metadata.annotations.").unwrap_or_default();
    let name = key.strip_prefix(PREFIX).or_else(|| key.strip_prefix(OWN_PREFIX));
    let row = name.and_then(|name| ROWS.iter().find(|row| row.name == name));
    row.is_some_and(|row| row.support == Support::NotNeeded)
}

/// The gateway's settings of that name, as annotations have them, and whether they keep somebody out; `None` if
/// there are none.
pub(super) fn set_globally(
    draft: &mut Draft,
    name: &str,
    value: &str,
) -> Option<(Result<(), String>, bool)> {
    let row = ROWS.iter().find(|row| row.name == name && row.global)?;
    Some(((row.set)(draft, value.trim()), row.guards))
}

/// What the gateway's settings come to.
pub(super) fn finish_globally(draft: Draft) -> Options {
    let mut said = Said::default();
    draft.finish(&mut said, str::to_owned);
    said.options
}

/// What an Ingress says by the annotation of that name.
pub(crate) fn value<'a>(ingress: &'a Ingress, name: &str) -> Option<&'a str> {
    find(&ingress.metadata.annotations, name).map(|(_, value)| value)
}

fn find<'a>(annotations: &'a BTreeMap<String, String>, name: &str) -> Option<(&'a str, &'a str)> {
    let with = |prefix: &str| annotations.get_key_value(&format!("{prefix}{name}"));
    with(OWN_PREFIX).or_else(|| with(PREFIX)).map(|(key, value)| (key.as_str(), value.as_str()))
}

impl Draft {
    /// What the parts make together.
    fn finish(self, said: &mut Said, key: impl Fn(&str) -> String) {
        let mut options = self.options;
        if self.basic {
            match self.users {
                Some(secret) => {
                    let role = if self.by_key { Role::UsersByKey } else { Role::Users };
                    said.secrets.push((secret.clone(), role, key("auth-secret")));
                    options.basic_auth = Some(BasicAuth { secret, realm: self.realm });
                }
                // What it says could not be read was said already.
                None if said.errors.is_empty() => {
                    let message = "needs auth-secret, the Secret with the users";
                    said.errors.push(FieldError::new(key("auth-type"), message));
                }
                None => {}
            }
        } else if self.users.is_some() && said.errors.is_empty() {
            let message = "nobody is asked for a password without auth-type: basic";
            said.warnings.push(FieldError::new(key("auth-secret"), message));
        }
        if self.external {
            options.external_auth = Some(self.external_says);
        }
        if let Some(secret) = self.client {
            said.secrets.push((secret.clone(), Role::ClientCa, key("auth-tls-secret")));
            options.client_tls = Some(ClientTls { secret, ..self.client_says });
        }
        if let Some(secret) = &options.backend_tls.secret {
            said.secrets.push((secret.clone(), Role::Backend, key("proxy-ssl-secret")));
        }
        if self.cors == Some(true) {
            options.cors = Some(self.cors_says);
        }
        if self.canary {
            options.canary = Some(self.canary_says);
        }
        if self.sticky {
            let mut cookie = self.cookie;
            if cookie.name.is_empty() {
                "INGRESSCOOKIE".clone_into(&mut cookie.name);
            }
            cookie.max_age = cookie.max_age.or(self.expires);
            options.affinity = Some(cookie);
        }
        if self.mirrored {
            options.mirror = Some(self.mirror);
        }
        let temporal = self.temporal.map(|to| (to, self.temporal_status.unwrap_or(302)));
        let permanent = self.permanent.map(|to| (to, self.permanent_status.unwrap_or(301)));
        options.redirect = temporal.or(permanent).map(|(to, status)| Redirect { to, status });
        options.next_upstream = Some(self.next).filter(|next| *next != NextUpstream::default());
        options.proxy_redirect = self.redirect_from.zip(self.redirect_to);
        options.choice = self.hash.map(Choice::Hash).or(self.choice);
        said.default_backend = self.default_backend.map(|name| (name, key("default-backend")));
        said.custom_headers = self.custom_headers.map(|name| (name, key("custom-headers")));
        said.options = options;
    }
}

const fn yes(name: &'static str, set: Set) -> Row {
    Row { name, support: Support::Yes, note: "", guards: false, global: false, set }
}

const fn not_needed(name: &'static str, note: &'static str) -> Row {
    Row { support: Support::NotNeeded, note, ..yes(name, |_, _| Ok(())) }
}

const fn refused(name: &'static str, note: &'static str) -> Row {
    Row { support: Support::Refused, note, ..yes(name, |_, _| Ok(())) }
}

impl Row {
    const fn differs(self, note: &'static str) -> Self {
        Self { support: Support::Differs, note, ..self }
    }

    const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    const fn guards(self) -> Self {
        Self { guards: true, ..self }
    }

    const fn global(self) -> Self {
        Self { global: true, ..self }
    }
}

const RAW: &str = "raw configuration of nginx could be anything";
const FIREWALL: &str =
    "there is no web application firewall; put one in front of the Service, as a backend";
const TRACES: &str = "gateways send no traces; backends get the client's headers for them";

/// All that are known. Where two say the same, the later one counts.
pub(crate) const ROWS: &[Row] = &[
    // Paths and hosts.
    yes("rewrite-target", |d, v| put(&mut d.options.rewrite_target, template(v)))
        .note("all paths of the host become expressions, as in ingress-nginx"),
    yes("use-regex", |d, v| set(&mut d.options.use_regex, boolean(v)))
        .differs("expressions take linear time: no lookaround, no backreferences"),
    yes("app-root", |d, v| put(&mut d.options.app_root, path(v))),
    yes("server-alias", |d, v| set(&mut d.options.server_aliases, list(v).map(host).collect()))
        .differs("names of hosts, and no expressions"),
    yes("from-to-www-redirect", |d, v| set(&mut d.options.from_to_www, boolean(v))),
    yes("upstream-vhost", |d, v| put(&mut d.options.upstream_vhost, template(v))),
    yes("x-forwarded-prefix", |d, v| put(&mut d.options.forwarded_prefix, template(v))),
    yes("ssl-redirect", |d, v| put(&mut d.options.ssl_redirect, boolean(v))).global(),
    yes("force-ssl-redirect", |d, v| put(&mut d.options.force_ssl_redirect, boolean(v))).global(),
    not_needed("preserve-trailing-slash", "redirects to https keep the path as it is"),
    yes("permanent-redirect", |d, v| put(&mut d.permanent, address(v, true))),
    yes("permanent-redirect-code", |d, v| put(&mut d.permanent_status, status(v))),
    yes("temporal-redirect", |d, v| put(&mut d.temporal, address(v, true))),
    yes("temporal-redirect-code", |d, v| put(&mut d.temporal_status, status(v))),
    refused(
        "relative-redirects",
        "redirects of the gateway's own name the host, but for those of app-root and to a slash at the end",
    ),
    // Bodies, buffers and times.
    yes("proxy-body-size", |d, v| put(&mut d.options.body_size, size(v))).global(),
    yes("client-body-buffer-size", |d, v| put(&mut d.options.body_buffer_size, size(v)))
        .global()
        .differs("never written to a file"),
    yes("proxy-request-buffering", |d, v| put(&mut d.options.request_buffering, switch(v)))
        .global(),
    yes("proxy-buffering", |d, v| put(&mut d.options.buffering, switch(v)))
        .global()
        .differs("answers wait in memory, up to 4 MiB of one, and never in a file"),
    yes("proxy-buffer-size", |d, v| put(&mut d.options.buffer_size, size(v))).global(),
    not_needed("proxy-buffers-number", "buffers grow as they are needed"),
    not_needed("proxy-busy-buffers-size", "buffers grow as they are needed"),
    not_needed("proxy-max-temp-file-size", "answers are not written to files"),
    yes("proxy-connect-timeout", |d, v| put(&mut d.options.connect_timeout, number(v))).global(),
    yes("proxy-send-timeout", |d, v| put(&mut d.options.send_timeout, number(v))).global(),
    yes("proxy-read-timeout", |d, v| put(&mut d.options.read_timeout, number(v))).global(),
    yes("proxy-next-upstream", |d, v| set(&mut d.next.on, failures(v))).global(),
    yes("proxy-next-upstream-tries", |d, v| put(&mut d.next.tries, number(v))).global(),
    yes("proxy-next-upstream-timeout", |d, v| set(&mut d.next.timeout, number(v))).global(),
    // Backends.
    yes("secure-backends", |d, v| {
        set(
            &mut d.options.protocol,
            boolean(v).map(|secure| match secure {
                true => BackendProtocol::Https,
                false => BackendProtocol::Http,
            }),
        )
    })
    .note("the older name of `backend-protocol: HTTPS`"),
    yes("backend-protocol", |d, v| set(&mut d.options.protocol, protocol(v)))
        .differs("HTTP, HTTPS, GRPC, GRPCS and AUTO_HTTP; FCGI needs a web server in the pod"),
    not_needed(
        "proxy-http-version",
        "backends are spoken to in HTTP/1.1, or what backend-protocol says",
    ),
    yes("proxy-ssl-secret", |d, v| put(&mut d.options.backend_tls.secret, object(v, &d.namespace)))
        .guards()
        .differs("of the Ingress's own namespace"),
    yes("proxy-ssl-verify", |d, v| set(&mut d.options.backend_tls.verify, switch(v))).guards(),
    yes("proxy-ssl-name", |d, v| put(&mut d.options.backend_tls.name, host(v))).guards(),
    yes("proxy-ssl-server-name", |d, v| set(&mut d.options.backend_tls.server_name, switch(v))),
    not_needed(
        "proxy-ssl-verify-depth",
        "chains of any length that a certificate may have are followed",
    ),
    not_needed("proxy-ssl-ciphers", "TLS 1.2 and 1.3 with the ciphers of today"),
    not_needed("proxy-ssl-protocols", "TLS 1.2 and 1.3 with the ciphers of today"),
    yes("service-upstream", |d, v| set(&mut d.options.service_upstream, boolean(v))),
    yes("load-balance", |d, v| put(&mut d.choice, choice(v)))
        .global()
        .differs("`ewma` where nothing is said, not `round_robin`"),
    yes("upstream-hash-by", |d, v| put(&mut d.hash, template(v))),
    not_needed("upstream-hash-by-subset", "a hash chooses among all endpoints"),
    not_needed("upstream-hash-by-subset-size", "a hash chooses among all endpoints"),
    yes("affinity", |d, v| match v {
        "cookie" => set(&mut d.sticky, Ok(true)),
        _ => Err(wrong(v, "not cookie")),
    }),
    yes("affinity-mode", |d, v| {
        set(&mut d.cookie.persistent, word(v, &[("balanced", false), ("persistent", true)]))
    }),
    yes("affinity-canary-behavior", |d, v| {
        set(&mut d.cookie.canary_legacy, word(v, &[("sticky", false), ("legacy", true)]))
    }),
    yes("session-cookie-name", |d, v| set(&mut d.cookie.name, token(v))),
    yes("session-cookie-path", |d, v| put(&mut d.cookie.path, attribute(v))),
    yes("session-cookie-domain", |d, v| put(&mut d.cookie.domain, attribute(v))),
    yes("session-cookie-expires", |d, v| put(&mut d.expires, seconds(v))),
    yes("session-cookie-max-age", |d, v| put(&mut d.cookie.max_age, seconds(v))),
    yes("session-cookie-secure", |d, v| put(&mut d.cookie.secure, boolean(v))),
    yes("session-cookie-samesite", |d, v| {
        let known = [("None", "None"), ("Lax", "Lax"), ("Strict", "Strict")];
        put(&mut d.cookie.same_site, word(v, &known).map(str::to_owned))
    }),
    yes("session-cookie-change-on-failure", |d, v| {
        set(&mut d.cookie.change_on_failure, boolean(v))
    }),
    not_needed("session-cookie-conditional-samesite-none", "browsers that need it are gone"),
    not_needed("session-cookie-hash", "the cookie says nothing of the endpoint's address"),
    // Canaries.
    yes("canary", |d, v| set(&mut d.canary, boolean(v))),
    yes("canary-weight", |d, v| set(&mut d.canary_says.weight, number(v))),
    yes("canary-weight-total", |d, v| match number(v)? {
        0 => Err(wrong(v, "not more than nothing")),
        total => put(&mut d.canary_says.total, Ok(total)),
    }),
    yes("canary-by-header", |d, v| {
        put(&mut d.canary_says.header, token(v).map(|name| name.to_ascii_lowercase()))
    }),
    yes("canary-by-header-value", |d, v| put(&mut d.canary_says.value, line(v))),
    yes("canary-by-header-pattern", |d, v| put(&mut d.canary_says.pattern, expression(v)))
        .differs("expressions take linear time: no lookaround, no backreferences"),
    yes("canary-by-cookie", |d, v| put(&mut d.canary_says.cookie, token(v))),
    // Who is let in.
    yes("whitelist-source-range", |d, v| set(&mut d.options.allow, ranges(v)))
        .guards()
        .global()
        .note("the older name of allowlist-source-range"),
    yes("allowlist-source-range", |d, v| set(&mut d.options.allow, ranges(v))).guards(),
    yes("denylist-source-range", |d, v| set(&mut d.options.deny, ranges(v))).guards().global(),
    yes("satisfy", |d, v| {
        set(&mut d.options.satisfy_any, word(v, &[("all", false), ("any", true)]))
    })
    .guards(),
    yes("auth-type", |d, v| match v {
        "basic" => set(&mut d.basic, Ok(true)),
        "digest" => Err("digest is not supported; use basic, over TLS".to_owned()),
        _ => Err(wrong(v, "not basic")),
    })
    .guards()
    .differs(
        "basic; digest keeps passwords in a form that is as good as the password, and is refused",
    ),
    yes("auth-secret", |d, v| put(&mut d.users, object(v, &d.namespace)))
        .guards()
        .differs("of the Ingress's own namespace"),
    yes("auth-secret-type", |d, v| {
        set(&mut d.by_key, word(v, &[("auth-file", false), ("auth-map", true)]))
    })
    .guards(),
    yes("auth-realm", |d, v| set(&mut d.realm, line(v))),
    yes("auth-url", |d, v| {
        d.external = true;
        set(&mut d.external_says.url, address(v, false))
    })
    .guards(),
    yes("auth-method", |d, v| put(&mut d.external_says.method, method(v))).guards(),
    yes("auth-signin", |d, v| put(&mut d.external_says.signin, address(v, true))).guards(),
    yes("auth-signin-redirect-param", |d, v| put(&mut d.external_says.redirect_param, token(v))),
    yes("auth-response-headers", |d, v| set(&mut d.external_says.response_headers, headers(v)))
        .guards(),
    yes("auth-request-redirect", |d, v| {
        let value = template(v)?;
        let header = ("x-auth-request-redirect".to_owned(), value);
        d.external_says.request_headers.push(header);
        Ok(())
    }),
    yes("auth-cache-key", |d, v| {
        put(&mut d.external_says.cache_key, template(v))?;
        if d.external_says.cache_for.is_empty() {
            d.external_says.cache_for = vec![(200, 300), (202, 300), (401, 300)];
        }
        Ok(())
    })
    .guards()
    .note("each worker of a gateway remembers for itself"),
    yes("auth-cache-duration", |d, v| set(&mut d.external_says.cache_for, cache(v))).guards(),
    yes("auth-always-set-cookie", |d, v| set(&mut d.external_says.always_set_cookie, boolean(v))),
    not_needed("auth-keepalive", "connections to whom is asked are kept in any case"),
    not_needed("auth-keepalive-share-vars", "connections to whom is asked are kept in any case"),
    not_needed("auth-keepalive-requests", "connections to whom is asked are kept in any case"),
    not_needed("auth-keepalive-timeout", "connections to whom is asked are kept in any case"),
    refused(
        "auth-proxy-set-headers",
        "whom is asked gets the request's own headers; have it look at those",
    ),
    refused(
        "auth-snippet",
        "raw configuration of nginx could be anything; whom is asked gets the request's headers",
    ),
    not_needed(
        "enable-global-auth",
        "nobody is asked for all Ingresses; say auth-url where it is wanted",
    ),
    yes("auth-tls-secret", |d, v| put(&mut d.client, object(v, &d.namespace)))
        .guards()
        .differs("of the Ingress's own namespace"),
    yes("auth-tls-verify-client", |d, v| {
        let known = [
            ("on", VerifyClient::On),
            ("off", VerifyClient::Off),
            ("optional", VerifyClient::Optional),
            ("optional_no_ca", VerifyClient::OptionalNoCa),
        ];
        set(&mut d.client_says.verify, word(v, &known))
    })
    .guards(),
    yes("auth-tls-verify-depth", |d, v| put(&mut d.client_says.depth, number(v))).guards(),
    yes("auth-tls-error-page", |d, v| {
        put(&mut d.client_says.error_page, address(v, true).map(|page| page.to_string()))
    }),
    yes("auth-tls-pass-certificate-to-upstream", |d, v| set(&mut d.client_says.pass, boolean(v))),
    yes("auth-tls-match-cn", |d, v| {
        let name = v.strip_prefix("CN=").ok_or_else(|| wrong(v, "nothing that begins with CN="))?;
        put(&mut d.client_says.common_name, expression(name))
    })
    .guards(),
    yes("limit-rps", |d, v| set(&mut d.options.limits.per_second, limit(v)))
        .note("503; each gateway counts for itself"),
    yes("limit-rpm", |d, v| set(&mut d.options.limits.per_minute, limit(v)))
        .note("503; each gateway counts for itself"),
    yes("limit-burst-multiplier", |d, v| set(&mut d.options.limits.burst, limit(v))),
    yes("limit-connections", |d, v| set(&mut d.options.limits.connections, limit(v))),
    yes("limit-rate", |d, v| set(&mut d.options.limits.rate, limit(v).map(|rate| rate.map(kib))))
        .note("KiB a second")
        .global(),
    yes("limit-rate-after", |d, v| {
        set(&mut d.options.limits.rate_after, number::<u32>(v).map(kib))
    })
    .note("KiB")
    .global(),
    yes("limit-whitelist", |d, v| set(&mut d.options.limits.exempt, ranges(v)))
        .note("the older name of limit-allowlist"),
    yes("limit-allowlist", |d, v| set(&mut d.options.limits.exempt, ranges(v))),
    refused(
        "global-rate-limit",
        "gateways count each for itself; say limit-rps, divided by how many there are",
    ),
    not_needed("global-rate-limit-window", "of global-rate-limit, which is refused"),
    not_needed("global-rate-limit-key", "of global-rate-limit, which is refused"),
    not_needed("global-rate-limit-ignored-cidrs", "of global-rate-limit, which is refused"),
    // Headers.
    yes("enable-cors", |d, v| put(&mut d.cors, boolean(v))),
    yes("cors-allow-origin", |d, v| set(&mut d.cors_says.origins, list(v).map(origin).collect())),
    yes("cors-allow-methods", |d, v| set(&mut d.cors_says.methods, tokens(v))),
    yes("cors-allow-headers", |d, v| set(&mut d.cors_says.headers, tokens(v))),
    yes("cors-expose-headers", |d, v| set(&mut d.cors_says.expose_headers, tokens(v))),
    yes("cors-allow-credentials", |d, v| put(&mut d.cors_says.credentials, boolean(v))),
    yes("cors-max-age", |d, v| put(&mut d.cors_says.max_age, number(v))),
    yes("custom-headers", |d, v| put(&mut d.custom_headers, object(v, &d.namespace))).differs(
        "a ConfigMap of the Ingress's own namespace; any header that is no part of HTTP itself",
    ),
    not_needed(
        "connection-proxy-header",
        "connections to backends are kept, and upgraded where a client asks",
    ),
    yes("proxy-cookie-path", |d, v| set(&mut d.options.cookie_path, replacement(v)))
        .global()
        .differs("one pair of texts, and no expressions"),
    yes("proxy-cookie-domain", |d, v| set(&mut d.options.cookie_domain, replacement(v)))
        .global()
        .differs("one pair of texts, and no expressions"),
    yes("proxy-redirect-from", |d, v| match v {
        "off" | "default" => Ok(()),
        _ => put(&mut d.redirect_from, line(v)),
    })
    .global(),
    yes("proxy-redirect-to", |d, v| match v {
        "off" | "default" => Ok(()),
        _ => put(&mut d.redirect_to, line(v)),
    })
    .global(),
    // Errors, mirrors and TLS.
    yes("custom-http-errors", |d, v| set(&mut d.options.custom_errors, statuses(v))).global(),
    yes("default-backend", |d, v| put(&mut d.default_backend, service(v))),
    not_needed(
        "disable-proxy-intercept-errors",
        "say custom-http-errors where answers are to be replaced",
    ),
    yes("mirror-target", |d, v| {
        d.mirror.url = address(v, false)?;
        d.mirrored = true;
        Ok(())
    }),
    yes("mirror-host", |d, v| put(&mut d.mirror.host, attribute(v))),
    yes("mirror-request-body", |d, v| set(&mut d.mirror.no_body, switch(v).map(|body| !body))),
    yes("ssl-passthrough", |d, v| set(&mut d.options.passthrough, boolean(v)))
        .note("without a flag"),
    yes("ssl-ciphers", |d, v| set(&mut d.options.ciphers, ciphers(v)))
        .global()
        .differs("those of OpenSSL's names that there are: ECDHE with AES-GCM or ChaCha20"),
    not_needed("ssl-prefer-server-ciphers", "all ciphers that there are, are good"),
    yes("enable-access-log", |d, v| put(&mut d.options.access_log, boolean(v))),
    not_needed("enable-rewrite-log", "there is no rewriting step by step"),
    not_needed("http2-push-preload", "browsers know no push any more"),
    // What is not there.
    refused(
        "configuration-snippet",
        "raw configuration of nginx could be anything; use the annotation for what it does (headers: custom-headers)",
    ),
    refused(
        "server-snippet",
        "raw configuration of nginx could be anything; use the annotation for what it does",
    ),
    refused("stream-snippet", RAW),
    refused("modsecurity-snippet", FIREWALL),
    refused("enable-modsecurity", FIREWALL),
    refused("enable-owasp-core-rules", FIREWALL),
    refused("modsecurity-transaction-id", FIREWALL),
    refused(
        "lua-resty-waf",
        "no Lua is run; put a web application firewall in front of the Service, as a backend",
    ),
    refused("enable-opentracing", TRACES),
    refused("opentracing-trust-incoming-span", TRACES),
    refused("enable-opentelemetry", TRACES),
    refused("opentelemetry-trust-incoming-span", TRACES),
    refused("opentelemetry-operation-name", TRACES),
];

/// Puts a value where there was none.
fn put<T>(place: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *place = Some(value?);
    Ok(())
}

fn set<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

fn kib(number: u32) -> u64 {
    u64::from(number) << 10
}

/// A limit; 0 is none.
fn limit(text: &str) -> Result<Option<u32>, String> {
    Ok(Some(number(text)?).filter(|limit| *limit != 0))
}

/// Seconds that may be less than none, as browsers have it of a cookie that is over.
fn seconds(text: &str) -> Result<i64, String> {
    match text.strip_prefix('-') {
        Some(text) => number::<i64>(text).map(|seconds| -seconds),
        None => number(text),
    }
}

fn word<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    let found = known.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
        wrong(text, &format!("none of {}", words.join(", ")))
    })
}

fn status(text: &str) -> Result<u16, String> {
    match number(text)? {
        status @ (301 | 302 | 303 | 307 | 308) => Ok(status),
        _ => Err(wrong(text, "none of 301, 302, 303, 307, 308")),
    }
}

fn statuses(text: &str) -> Result<Vec<u16>, String> {
    let status = |text: &str| match number(text)? {
        status @ 300..=599 => Ok(status),
        _ => Err(wrong(text, "no status from 300 to 599")),
    };
    list(text).map(status).collect()
}

fn failures(text: &str) -> Result<Vec<Failure>, String> {
    let failure = |word: &str| {
        Ok(match word {
            "error" => Failure::Error,
            "timeout" => Failure::Timeout,
            "invalid_header" => Failure::InvalidHeader,
            "non_idempotent" => Failure::NonIdempotent,
            "off" => Failure::Off,
            _ => match word.strip_prefix("http_").map(number) {
                Some(Ok(status @ (403 | 404 | 429 | 500..=504))) => Failure::Status(status),
                _ => return Err(wrong(word, "nothing that can go wrong with an endpoint")),
            },
        })
    };
    text.split([' ', ',']).filter(|word| !word.is_empty()).map(failure).collect()
}

fn protocol(text: &str) -> Result<BackendProtocol, String> {
    Ok(match text.to_ascii_uppercase().as_str() {
        "HTTP" => BackendProtocol::Http,
        "HTTPS" => BackendProtocol::Https,
        "GRPC" => BackendProtocol::Grpc,
        "GRPCS" => BackendProtocol::Grpcs,
        "AUTO_HTTP" => BackendProtocol::AutoHttp,
        _ => return Err(wrong(text, "none of HTTP, HTTPS, GRPC, GRPCS, AUTO_HTTP")),
    })
}

fn choice(text: &str) -> Result<Choice, String> {
    match text {
        "round_robin" => Ok(Choice::RoundRobin),
        "ewma" => Ok(Choice::Ewma),
        _ => Err(wrong(text, "neither round_robin nor ewma")),
    }
}

/// An attribute of a cookie, or the name of a host with a port.
fn attribute(text: &str) -> Result<String, String> {
    let text = line(text)?;
    match text.contains([';', ',', ' ', '"']) {
        true => Err(wrong(&text, "no value of a cookie's attribute or a header")),
        false => Ok(text),
    }
}

/// `200 202 401 5m, 403 1m`.
fn cache(text: &str) -> Result<Vec<(u16, u32)>, String> {
    let mut all = Vec::new();
    for part in list(text) {
        let mut words: Vec<_> = part.split_whitespace().collect();
        let time = duration(words.pop().unwrap_or_default())?;
        if words.is_empty() {
            words = vec!["200", "301", "302"];
        }
        for word in words {
            all.push((number(word)?, time));
        }
    }
    Ok(all)
}

fn service(text: &str) -> Result<String, String> {
    match crate::kubernetes::ingress::is_object_name(text) {
        true => Ok(text.to_owned()),
        false => Err(wrong(text, "no name of a Service")),
    }
}

fn ciphers(text: &str) -> Result<Vec<String>, String> {
    let name = |name: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        match name.bytes().all(good) {
            true => Ok(name.to_owned()),
            false => {
                Err(wrong(name, "no cipher by OpenSSL's name; only names are known, no rules"))
            }
        }
    };
    text.split([':', ',', ' ']).filter(|name| !name.is_empty()).map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Annotations without their prefix, and the options that they make.
    fn said(annotations: &[(&str, &str)]) -> Said {
        let with_prefix = annotations
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()));
        read("shop", &with_prefix.collect())
    }

    fn options(said: &Said) -> Value {
        assert_eq!((&*said.errors, &*said.warnings), (&[][..], &[][..]));
        serde_json::to_value(&said.options).unwrap()
    }

    /// An annotation, its value, others beside it, and what they make.
    type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], Value);

    /// Each annotation with a value and what it makes; some need another one beside them.
    fn cases() -> Vec<Case> {
        const CORS: &[(&str, &str)] = &[("enable-cors", "true")];
        const CANARY: &[(&str, &str)] = &[("canary", "true")];
        const STICKY: &[(&str, &str)] = &[("affinity", "cookie")];
        const BASIC: &[(&str, &str)] = &[("auth-type", "basic"), ("auth-secret", "users")];
        const ASK: &[(&str, &str)] = &[("auth-url", "https://a/")];
        const CLIENT: &[(&str, &str)] = &[("auth-tls-secret", "shop/ca")];
        const MIRROR: &[(&str, &str)] = &[("mirror-target", "https://m$request_uri")];
        let cors = |more: Value| json!({"cors": more});
        let canary = |more: Value| json!({"canary": more});
        let affinity = |mut more: Value| {
            if more.get("name").is_none() {
                more["name"] = "INGRESSCOOKIE".into();
            }
            json!({"affinity": more})
        };
        let users = || json!({"namespace": "shop", "name": "users"});
        let ask = |mut more: Value| {
            more["url"] = "https://a/".into();
            json!({"externalAuth": more})
        };
        let client = |mut more: Value| {
            more["secret"] = json!({"namespace": "shop", "name": "ca"});
            json!({"clientTls": more})
        };
        vec![
            ("rewrite-target", "/$2", &[], json!({"rewriteTarget": "/$2"})),
            ("use-regex", "true", &[], json!({"useRegex": true})),
            ("app-root", "/app", &[], json!({"appRoot": "/app"})),
            (
                "server-alias",
                "B.example, c.example",
                &[],
                json!({"serverAliases": ["b.example", "c.example"]}),
            ),
            ("from-to-www-redirect", "true", &[], json!({"fromToWww": true})),
            ("upstream-vhost", "b.$host", &[], json!({"upstreamVhost": "b.${host}"})),
            ("x-forwarded-prefix", "/p", &[], json!({"forwardedPrefix": "/p"})),
            ("ssl-redirect", "false", &[], json!({"sslRedirect": false})),
            ("force-ssl-redirect", "true", &[], json!({"forceSslRedirect": true})),
            (
                "permanent-redirect",
                "https://b$request_uri",
                &[],
                json!({"redirect": {"to": "https://b${request_uri}", "status": 301}}),
            ),
            (
                "permanent-redirect-code",
                "308",
                &[("permanent-redirect", "https://b")],
                json!({"redirect": {"to": "https://b", "status": 308}}),
            ),
            (
                "temporal-redirect",
                "https://t",
                &[("permanent-redirect", "https://p")],
                json!({"redirect": {"to": "https://t", "status": 302}}),
            ),
            (
                "temporal-redirect-code",
                "307",
                &[("temporal-redirect", "https://t")],
                json!({"redirect": {"to": "https://t", "status": 307}}),
            ),
            ("proxy-body-size", "8m", &[], json!({"bodySize": 8 << 20})),
            ("client-body-buffer-size", "16k", &[], json!({"bodyBufferSize": 16384})),
            ("proxy-request-buffering", "off", &[], json!({"requestBuffering": false})),
            ("proxy-buffering", "on", &[], json!({"buffering": true})),
            ("proxy-buffer-size", "16k", &[], json!({"bufferSize": 16384})),
            ("proxy-connect-timeout", "10", &[], json!({"connectTimeout": 10})),
            ("proxy-send-timeout", "120", &[], json!({"sendTimeout": 120})),
            ("proxy-read-timeout", "3600", &[], json!({"readTimeout": 3600})),
            (
                "proxy-next-upstream",
                "error http_502 non_idempotent",
                &[],
                json!({"nextUpstream": {"on": ["error", {"status": 502}, "nonIdempotent"]}}),
            ),
            ("proxy-next-upstream-tries", "2", &[], json!({"nextUpstream": {"tries": 2}})),
            ("proxy-next-upstream-timeout", "5", &[], json!({"nextUpstream": {"timeout": 5}})),
            ("secure-backends", "true", &[], json!({"protocol": "https"})),
            ("backend-protocol", "grpcs", &[], json!({"protocol": "grpcs"})),
            (
                "proxy-ssl-secret",
                "shop/backend",
                &[],
                json!({"backendTls": {"secret": {"namespace": "shop", "name": "backend"}}}),
            ),
            ("proxy-ssl-verify", "on", &[], json!({"backendTls": {"verify": true}})),
            ("proxy-ssl-name", "db.example", &[], json!({"backendTls": {"name": "db.example"}})),
            ("proxy-ssl-server-name", "on", &[], json!({"backendTls": {"serverName": true}})),
            ("service-upstream", "true", &[], json!({"serviceUpstream": true})),
            ("load-balance", "round_robin", &[], json!({"choice": "roundRobin"})),
            (
                "upstream-hash-by",
                "$request_uri",
                &[("load-balance", "ewma")],
                json!({"choice": {"hash": "${request_uri}"}}),
            ),
            ("affinity", "cookie", &[], affinity(json!({}))),
            ("affinity-mode", "persistent", STICKY, affinity(json!({"persistent": true}))),
            ("affinity-canary-behavior", "legacy", STICKY, affinity(json!({"canaryLegacy": true}))),
            ("session-cookie-name", "route", STICKY, affinity(json!({"name": "route"}))),
            ("session-cookie-path", "/", STICKY, affinity(json!({"path": "/"}))),
            (
                "session-cookie-domain",
                "a.example",
                STICKY,
                affinity(json!({"domain": "a.example"})),
            ),
            ("session-cookie-expires", "9", STICKY, affinity(json!({"maxAge": 9}))),
            ("session-cookie-max-age", "10", STICKY, affinity(json!({"maxAge": 10}))),
            ("session-cookie-secure", "true", STICKY, affinity(json!({"secure": true}))),
            ("session-cookie-samesite", "Lax", STICKY, affinity(json!({"sameSite": "Lax"}))),
            (
                "session-cookie-change-on-failure",
                "true",
                STICKY,
                affinity(json!({"changeOnFailure": true})),
            ),
            ("canary", "true", &[], canary(json!({}))),
            ("canary-weight", "5", CANARY, canary(json!({"weight": 5}))),
            ("canary-weight-total", "1000", CANARY, canary(json!({"total": 1000}))),
            ("canary-by-header", "X-Canary", CANARY, canary(json!({"header": "x-canary"}))),
            ("canary-by-header-value", "me", CANARY, canary(json!({"value": "me"}))),
            ("canary-by-header-pattern", "^v[2-9]", CANARY, canary(json!({"pattern": "^v[2-9]"}))),
            ("canary-by-cookie", "beta", CANARY, canary(json!({"cookie": "beta"}))),
            (
                "whitelist-source-range",
                "10.1.2.3/8,::1",
                &[],
                json!({"allow": ["10.0.0.0/8", "::1/128"]}),
            ),
            (
                "allowlist-source-range",
                "192.0.2.7",
                &[("whitelist-source-range", "10.0.0.0/8")],
                json!({"allow": ["192.0.2.7/32"]}),
            ),
            ("denylist-source-range", "192.0.2.0/24", &[], json!({"deny": ["192.0.2.0/24"]})),
            ("satisfy", "any", &[], json!({"satisfyAny": true})),
            ("auth-type", "basic", BASIC, json!({"basicAuth": {"secret": users()}})),
            ("auth-secret", "shop/users", BASIC, json!({"basicAuth": {"secret": users()}})),
            ("auth-secret-type", "auth-map", BASIC, json!({"basicAuth": {"secret": users()}})),
            (
                "auth-realm",
                "Who are you?",
                BASIC,
                json!({"basicAuth": {"secret": users(), "realm": "Who are you?"}}),
            ),
            (
                "auth-url",
                "http://a.shop.svc/x?h=$host",
                &[],
                json!({"externalAuth": {"url": "http://a.shop.svc/x?h=${host}"}}),
            ),
            ("auth-method", "get", ASK, ask(json!({"method": "GET"}))),
            (
                "auth-signin",
                "https://b/?rd=$escaped_request_uri",
                ASK,
                ask(json!({"signin": "https://b/?rd=${escaped_request_uri}"})),
            ),
            ("auth-signin-redirect-param", "to", ASK, ask(json!({"redirectParam": "to"}))),
            (
                "auth-response-headers",
                "X-User, X-Mail",
                ASK,
                ask(json!({"responseHeaders": ["x-user", "x-mail"]})),
            ),
            (
                "auth-request-redirect",
                "/x",
                ASK,
                ask(json!({"requestHeaders": [["x-auth-request-redirect", "/x"]]})),
            ),
            (
                "auth-cache-key",
                "$remote_addr",
                ASK,
                ask(
                    json!({"cacheKey": "${remote_addr}", "cacheFor": [[200, 300], [202, 300], [401, 300]]}),
                ),
            ),
            (
                "auth-cache-duration",
                "200 401 5m, 403 10s",
                ASK,
                ask(json!({"cacheFor": [[200, 300], [401, 300], [403, 10]]})),
            ),
            ("auth-always-set-cookie", "true", ASK, ask(json!({"alwaysSetCookie": true}))),
            ("auth-tls-secret", "shop/ca", &[], client(json!({}))),
            (
                "auth-tls-verify-client",
                "optional_no_ca",
                CLIENT,
                client(json!({"verify": "optionalNoCa"})),
            ),
            ("auth-tls-verify-depth", "2", CLIENT, client(json!({"depth": 2}))),
            (
                "auth-tls-error-page",
                "https://e/",
                CLIENT,
                client(json!({"errorPage": "https://e/"})),
            ),
            (
                "auth-tls-pass-certificate-to-upstream",
                "true",
                CLIENT,
                client(json!({"pass": true})),
            ),
            ("auth-tls-match-cn", "CN=a.*", CLIENT, client(json!({"commonName": "a.*"}))),
            ("limit-rps", "5", &[], json!({"limits": {"perSecond": 5}})),
            ("limit-rpm", "50", &[], json!({"limits": {"perMinute": 50}})),
            ("limit-burst-multiplier", "3", &[], json!({"limits": {"burst": 3}})),
            ("limit-connections", "2", &[], json!({"limits": {"connections": 2}})),
            ("limit-rate", "100", &[], json!({"limits": {"rate": 102_400}})),
            ("limit-rate-after", "10", &[], json!({"limits": {"rateAfter": 10_240}})),
            ("limit-whitelist", "10.0.0.0/8", &[], json!({"limits": {"exempt": ["10.0.0.0/8"]}})),
            ("limit-allowlist", "10.0.0.0/8", &[], json!({"limits": {"exempt": ["10.0.0.0/8"]}})),
            ("enable-cors", "true", &[], cors(json!({}))),
            (
                "cors-allow-origin",
                "https://*.a.example:8443, http://b",
                CORS,
                cors(json!({"origins": ["https://*.a.example:8443", "http://b"]})),
            ),
            ("cors-allow-methods", "GET, PUT", CORS, cors(json!({"methods": ["GET", "PUT"]}))),
            ("cors-allow-headers", "X-A", CORS, cors(json!({"headers": ["X-A"]}))),
            ("cors-expose-headers", "*", CORS, cors(json!({"exposeHeaders": ["*"]}))),
            ("cors-allow-credentials", "false", CORS, cors(json!({"credentials": false}))),
            ("cors-max-age", "60", CORS, cors(json!({"maxAge": 60}))),
            // What the ConfigMap says comes from elsewhere.
            ("custom-headers", "shop/headers", &[], json!({})),
            ("proxy-cookie-path", "/a /b", &[], json!({"cookiePath": ["/a", "/b"]})),
            (
                "proxy-cookie-domain",
                "a.example b.example",
                &[],
                json!({"cookieDomain": ["a.example", "b.example"]}),
            ),
            (
                "proxy-redirect-from",
                "http://a/",
                &[("proxy-redirect-to", "https://a/")],
                json!({"proxyRedirect": ["http://a/", "https://a/"]}),
            ),
            ("proxy-redirect-to", "/b", &[("proxy-redirect-from", "off")], json!({})),
            ("custom-http-errors", "404,503", &[], json!({"customErrors": [404, 503]})),
            // The Service's port comes from elsewhere.
            ("default-backend", "errors", &[], json!({})),
            (
                "mirror-target",
                "https://m$request_uri",
                &[],
                json!({"mirror": {"url": "https://m${request_uri}"}}),
            ),
            (
                "mirror-host",
                "m.example",
                MIRROR,
                json!({"mirror": {"url": "https://m${request_uri}", "host": "m.example"}}),
            ),
            (
                "mirror-request-body",
                "off",
                MIRROR,
                json!({"mirror": {"url": "https://m${request_uri}", "noBody": true}}),
            ),
            ("ssl-passthrough", "true", &[], json!({"passthrough": true})),
            (
                "ssl-ciphers",
                "ECDHE-RSA-AES128-GCM-SHA256:X",
                &[],
                json!({"ciphers": ["ECDHE-RSA-AES128-GCM-SHA256", "X"]}),
            ),
            ("enable-access-log", "false", &[], json!({"accessLog": false})),
        ]
    }

    #[test]
    fn each_annotation_makes_what_it_means() {
        for (name, value, beside, expected) in cases() {
            let mut all = beside.to_vec();
            all.retain(|(other, _)| *other != name);
            all.push((name, value));
            assert_eq!(options(&said(&all)), expected, "{name}: {value}");
        }
        let tried: BTreeSet<_> = cases().into_iter().map(|(name, ..)| name).collect();
        let honoured =
            ROWS.iter().filter(|row| !matches!(row.support, Support::NotNeeded | Support::Refused));
        assert_eq!(honoured.map(|row| row.name).collect::<BTreeSet<_>>(), tried);
    }

    #[test]
    fn what_needs_another_one_means_nothing_alone() {
        for (name, value) in [
            ("cors-max-age", "60"),
            ("canary-weight", "5"),
            ("session-cookie-name", "route"),
            ("auth-realm", "x"),
            ("auth-signin", "/login"),
            ("auth-tls-verify-client", "off"),
            ("mirror-host", "m.example"),
            ("temporal-redirect-code", "307"),
            ("enable-cors", "false"),
            ("canary", "false"),
            ("limit-rps", "0"),
            ("rewrite-target", ""),
        ] {
            assert_eq!(options(&said(&[(name, value)])), json!({}), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_out_with_a_word() {
        for (name, value, word) in [
            ("rewrite-target", "/$nobody", "not a variable"),
            ("use-regex", "yes", "neither true nor false"),
            ("app-root", "app", "no path"),
            ("server-alias", "~^a", "no name of a host"),
            ("permanent-redirect", "javascript:alert(1)", "no address"),
            ("permanent-redirect", "https://a\r\nx: y", "control character"),
            ("temporal-redirect-code", "200", "none of 301"),
            ("proxy-body-size", "8 MB", "no size"),
            ("proxy-read-timeout", "60s", "nothing may stand behind it"),
            ("proxy-next-upstream", "http_200", "nothing that can go wrong"),
            ("backend-protocol", "FCGI", "none of HTTP"),
            ("load-balance", "ip_hash", "neither round_robin nor ewma"),
            ("session-cookie-samesite", "lax", "none of None, Lax, Strict"),
            ("session-cookie-name", "a b", "no name"),
            ("canary-by-header-pattern", "(?=a)", "no expression"),
            ("canary-weight-total", "0", "not more than nothing"),
            ("limit-rps", "-1", "no number"),
            ("cors-allow-origin", "https://a b", "no origin"),
            ("proxy-cookie-path", "~^/a /b", "not two texts"),
            ("custom-http-errors", "99", "no status"),
            ("upstream-vhost", "a\nb", "control character"),
            ("ssl-ciphers", "!aNULL", "no cipher"),
            ("auth-realm", "a\nb", "control character"),
            // Refused, whatever they say.
            ("configuration-snippet", "deny all;", "custom-headers"),
            ("server-snippet", "x", "could be anything"),
            ("enable-modsecurity", "true", "firewall"),
            ("lua-resty-waf", "active", "no Lua"),
            ("proxy-buffers-number", "4", "changes nothing here"),
            ("proxi-body-size", "8m", "no such annotation"),
        ] {
            let said = said(&[(name, value)]);
            let [warning] = &*said.warnings else { panic!("{name}: {:?}", said.warnings) };
            assert_eq!(warning.field, format!("metadata.annotations.{PREFIX}{name}"));
            assert!(warning.message.contains(word), "{warning}");
            assert_eq!((said.options, &*said.errors), (Options::default(), &[][..]), "{name}");
        }
    }

    #[test]
    fn what_keeps_somebody_out_is_never_left_out() {
        for (name, value, word) in [
            ("whitelist-source-range", "10.0.0.0/33", "neither a range"),
            ("allowlist-source-range", "", "names no range"),
            ("denylist-source-range", "everybody", "neither a range"),
            ("satisfy", "some", "none of all, any"),
            ("auth-type", "digest", "use basic"),
            ("auth-type", "basic", "needs auth-secret"),
            ("auth-secret", "bank/users", "another namespace"),
            ("auth-url", "a.example", "no address"),
            ("auth-url", "http://", "no address"),
            ("auth-method", "LOOK", "no method"),
            ("auth-cache-key", "$secret", "not a variable"),
            ("auth-tls-secret", "bank/ca", "another namespace"),
            ("auth-tls-verify-client", "yes", "none of on"),
            ("auth-tls-match-cn", "CN=(?!a)", "no expression"),
            ("auth-tls-match-cn", "O=a", "CN="),
            ("proxy-ssl-verify", "perhaps", "neither on nor off"),
            ("proxy-ssl-secret", "a/b/c", "neither NAMESPACE/NAME"),
        ] {
            let errors = said(&[(name, value)]).errors;
            assert!(errors.iter().any(|error| error.message.contains(word)), "{name}: {errors:?}");
        }
        // Whoever names users and forgets to ask for them is told.
        assert_eq!(said(&[("auth-secret", "users")]).warnings.len(), 1);
    }

    #[test]
    fn our_prefix_goes_before_the_other() {
        let both = [
            (format!("{PREFIX}proxy-body-size"), "1k".to_owned()),
            (format!("{OWN_PREFIX}proxy-body-size"), "2k".to_owned()),
        ];
        assert_eq!(read("shop", &both.into()).options.body_size, Some(2048));
    }

    /// Pieces of what people write, and of what nobody should.
    const TEXT: &str = "(?s)(true|false|on|off|basic|cookie|/|\\$[a-z1]|\\$\\{|\\}|https?://|CN=|[0-9]{1,4}|[kmgs]|[,:;= \r\n]|[a-zé*.\\[()+?^]){0,6}";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Whatever an owner writes is a value that the feed carries, or is refused; it never stands there as it is.
        #[test]
        fn any_text_is_a_value_or_refused(row in 0..ROWS.len(), text in TEXT, beside in 0..ROWS.len(), other in TEXT) {
            let said = said(&[(ROWS[row].name, &text), (ROWS[beside].name, &other)]);
            let written = serde_json::to_string(&said.options).unwrap();
            prop_assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), said.options);
            prop_assert!(!written.contains("\\r") && !written.contains("\\n"), "{}", written);
        }
    }

    #[test]
    fn the_documentation_has_every_annotation() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/migrate-from-ingress-nginx.md");
        let text = std::fs::read_to_string(file).unwrap();
        let row = |row: &Row| {
            let word = match row.support {
                Support::Yes => "yes",
                Support::Differs => "differs",
                Support::NotNeeded => "not needed",
                Support::Refused => "refused",
            };
            format!("| `{}` | {word} | {} |", row.name, row.note).replace("|  |", "| |")
        };
        let expected: Vec<_> = ROWS.iter().map(row).collect();
        let found: Vec<_> = text
            .lines()
            .skip_while(|line| !line.starts_with("| annotation"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(found, expected, "the table is to be:\n{}", expected.join("\n"));
    }
}
