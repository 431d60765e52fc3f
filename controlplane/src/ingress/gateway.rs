//! What ConfigMaps say of gateways: settings under the names that ingress-nginx has for them, and ports that
//! are passed on as they are.

use std::net::IpAddr;

use fairway_model::{
    BackendPort, Gateway, Hsts, ObjectName, Options, Protocol, Stream, TlsVersion,
};
use ipnet::IpNet;

use super::annotations::{Draft, finish_globally, set_globally};
use super::values::{boolean, number, ranges, wrong};
use crate::kubernetes::FieldError;
use crate::kubernetes::data::ConfigMap;
use crate::kubernetes::ingress::is_object_name;

/// Settings as they are put together.
#[derive(Default)]
struct Settings {
    gateway: Gateway,
    hsts: Option<bool>,
    hsts_says: Option<Hsts>,
}

type Set = fn(&mut Settings, &str) -> Result<(), String>;

/// Those that no annotation has as well, each with what it does.
const KEYS: &[(&str, &str, Set)] = &[
    (
        "default-backend",
        "NAMESPACE/NAME:PORT of a Service for requests that nobody wants",
        |s, v| {
            let (service, port) = target(v)?;
            s.gateway.default_backend = Some((service, port));
            Ok(())
        },
    ),
    (
        "default-ssl-certificate",
        "NAMESPACE/NAME of the Secret for hosts without a certificate",
        |s, v| {
            s.gateway.default_certificate = Some(name(v)?);
            Ok(())
        },
    ),
    ("enable-brotli", "(false) gzip is what there is, by use-gzip", |_, v| match boolean(v)? {
        false => Ok(()),
        true => Err("answers are compressed with gzip alone, see use-gzip".to_owned()),
    }),
    ("gzip-level", "1 (fast) to 9 (small) (1)", |s, v| match number(v)? {
        level @ 1..=9 => {
            s.gateway.gzip.level = Some(level);
            Ok(())
        }
        _ => Err(wrong(v, "not from 1 to 9")),
    }),
    ("gzip-min-length", "in bytes; shorter answers are not compressed (256)", |s, v| {
        s.gateway.gzip.min_length = Some(number(v)?);
        Ok(())
    }),
    ("gzip-types", "media types beside text/html (those of ingress-nginx); * for all", |s, v| {
        let types = v.split_whitespace();
        let is_type =
            |kind: &&str| *kind == "*" || kind.split('/').filter(|it| !it.is_empty()).count() == 2;
        if let Some(other) = types.clone().find(|kind| !is_type(kind)) {
            return Err(wrong(other, "no media type"));
        }
        s.gateway.gzip.types = types.map(str::to_owned).collect();
        Ok(())
    }),
    ("hsts", "whether Strict-Transport-Security is sent (true)", |s, v| {
        s.hsts = Some(boolean(v)?);
        Ok(())
    }),
    ("hsts-max-age", "in seconds (31536000)", |s, v| {
        s.hsts().max_age = Some(number(v)?);
        Ok(())
    }),
    ("hsts-include-subdomains", "(true)", |s, v| {
        s.hsts().subdomains = boolean(v)?;
        Ok(())
    }),
    ("hsts-preload", "(false)", |s, v| {
        s.hsts().preload = boolean(v)?;
        Ok(())
    }),
    ("http-redirect-code", "301, 302, 307 or 308 (308)", |s, v| match number(v)? {
        status @ (301 | 302 | 307 | 308) => {
            s.gateway.redirect_status = Some(status);
            Ok(())
        }
        _ => Err(wrong(v, "none of 301, 302, 307, 308")),
    }),
    (
        "proxy-real-ip-cidr",
        "whose X-Forwarded-* and PROXY headers are believed (nobody's)",
        |s, v| {
            s.gateway.trusted = ranges(v)?;
            Ok(())
        },
    ),
    ("ssl-protocols", "TLSv1.2 TLSv1.3, or one of both", |s, v| {
        let words: Vec<_> = v.split_whitespace().collect();
        if let Some(other) = words.iter().find(|word| !["TLSv1.2", "TLSv1.3"].contains(word)) {
            return Err(wrong(other, "neither TLSv1.2 nor TLSv1.3"));
        }
        s.gateway.options.min_tls = match words.contains(&"TLSv1.2") {
            true => Some(TlsVersion::V12),
            false => Some(TlsVersion::V13),
        };
        Ok(())
    }),
    ("use-forwarded-headers", "whether X-Forwarded-* are believed (false)", |s, v| {
        s.gateway.forwarded_headers = boolean(v)?;
        Ok(())
    }),
    ("use-gzip", "whether answers are compressed (false)", |s, v| {
        s.gateway.compression = boolean(v)?;
        Ok(())
    }),
    ("use-proxy-protocol", "whether connections begin with a PROXY header (false)", |s, v| {
        s.gateway.proxy_protocol = boolean(v)?;
        Ok(())
    }),
];

/// Those of ingress-nginx that keep somebody out and are not known here: not to heed them would let these in.
const GUARDS: [&str; 2] = ["block-cidrs", "global-auth-url"];

impl Settings {
    fn hsts(&mut self) -> &mut Hsts {
        self.hsts_says.get_or_insert_with(usual_hsts)
    }
}

fn usual_hsts() -> Hsts {
    Hsts { max_age: Some(31_536_000), subdomains: true, preload: false }
}

/// What the gateway's settings say of clients that are let in by all Ingresses, or by none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clients {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

/// Whether somebody whom the gateway's settings keep out may pass all the same.
pub(super) fn has_own_clients(options: &Options) -> bool {
    !options.deny.is_empty() || options.satisfy_any
}

/// Keeps everybody out.
pub(super) fn close(options: &mut Options) {
    options.deny = Clients::nobody().deny;
    options.satisfy_any = false;
}

impl Clients {
    /// Where nobody ever knew who is meant.
    fn nobody() -> Self {
        let all = [IpAddr::from([0_u8; 4]), IpAddr::from([0_u8; 16])];
        let deny = all.map(|from| IpNet::new_assert(from, 0)).to_vec();
        Self { allow: Vec::new(), deny }
    }
}

/// What is made of settings.
pub(super) struct Made {
    pub(super) gateway: Gateway,
    /// What keeps somebody out and cannot be read: the clients stay who they were.
    pub(super) errors: Vec<FieldError>,
    /// What is not honoured.
    pub(super) warnings: Vec<FieldError>,
    /// Everybody is kept out, whatever an Ingress says of its own.
    pub(super) closed: bool,
}

/// The gateway of these settings. `clients` are those that were last good, and are those that are now.
pub(super) fn settings(map: &ConfigMap, clients: &mut Option<Clients>) -> Made {
    let (mut settings, mut draft) = (Settings::default(), Draft::default());
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let mut closed = false;
    for (key, value) in &map.data {
        let own = KEYS.iter().find(|(name, ..)| name == key);
        let (done, guards) = match own {
            Some((_, _, set)) => (set(&mut settings, value.trim()), false),
            None if GUARDS.contains(&&**key) && value.trim().is_empty() => (Ok(()), true),
            None if GUARDS.contains(&&**key) => {
                closed = true;
                let message =
                    "it is not supported, and keeps somebody out; all are until it is gone";
                errors.push(FieldError::new(format!("data.{key}"), message));
                continue;
            }
            None => set_globally(&mut draft, key, value)
                .unwrap_or_else(|| (Err("no such setting is known here".to_owned()), false)),
        };
        let field = format!("data.{key}");
        match done {
            Ok(()) => {}
            Err(message) if guards => {
                let message = format!("{message}; who is kept out stays so, or all are");
                errors.push(FieldError::new(field, message));
            }
            Err(message) => {
                warnings.push(FieldError::new(field, format!("not honoured: {message}")));
            }
        }
    }
    let Settings { mut gateway, hsts, hsts_says } = settings;
    gateway.hsts = match hsts {
        Some(false) => Some(Hsts::default()),
        _ => hsts_says,
    };
    let min_tls = gateway.options.min_tls;
    *gateway.options = finish_globally(draft);
    gateway.options.min_tls = min_tls;
    let options = &mut gateway.options;
    if errors.is_empty() {
        *clients = Some(Clients { allow: options.allow.clone(), deny: options.deny.clone() });
    } else {
        let last = clients.clone().filter(|_| !closed);
        let Clients { allow, deny } = last.unwrap_or_else(Clients::nobody);
        (options.allow, options.deny) = (allow, deny);
    }
    if gateway.trusted.is_empty() {
        for (key, said) in [
            ("use-forwarded-headers", gateway.forwarded_headers),
            ("use-proxy-protocol", gateway.proxy_protocol),
        ] {
            if said {
                let message = "nobody is believed without proxy-real-ip-cidr, the addresses of those in front";
                warnings.push(FieldError::new(format!("data.{key}"), message));
            }
        }
    }
    Made { gateway, errors, warnings, closed }
}

/// The gateway where there are no settings, and what is wrong with that: who is kept out by `clients`, those that were
/// last good, stays so; or everybody is, where it is not `known` whether there are settings. `None`: nobody is.
pub(super) fn without(clients: Option<&Clients>, known: bool) -> Option<(Gateway, FieldError)> {
    let (clients, message) = match clients {
        Some(clients) if clients.allow.is_empty() && clients.deny.is_empty() => return None,
        Some(clients) => (clients.clone(), "it is gone; who is kept out by it stays so"),
        None if known => return None,
        None => (Clients::nobody(), "it was never read; everybody is kept out until it is"),
    };
    let mut gateway = Gateway::default();
    (gateway.options.allow, gateway.options.deny) = (clients.allow, clients.deny);
    Some((gateway, FieldError::new("", message)))
}

/// The ports of a ConfigMap: `"9000": NAMESPACE/NAME:PORT[:PROXY[:PROXY]]`.
pub(super) fn streams(map: &ConfigMap, protocol: Protocol) -> (Vec<Stream>, Vec<FieldError>) {
    let (mut streams, mut warnings) = (Vec::new(), Vec::new());
    for (key, value) in &map.data {
        let made = stream(key, value.trim(), protocol).and_then(|made| {
            let is_there = streams.iter().any(|other: &Stream| other.port == made.port);
            if is_there { Err(format!("port {} is there twice", made.port)) } else { Ok(made) }
        });
        match made {
            Ok(stream) => streams.push(stream),
            Err(message) => {
                let message = format!("not honoured: {message}");
                warnings.push(FieldError::new(format!("data.{key}"), message));
            }
        }
    }
    (streams, warnings)
}

fn stream(key: &str, value: &str, protocol: Protocol) -> Result<Stream, String> {
    let port = number(key).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| wrong(key, "no port"))?;
    let mut parts = value.splitn(3, ':');
    let (at, number) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (service, backend_port) = target(&format!("{at}:{number}"))?;
    let (accept_proxy, send_proxy) = match (parts.next(), protocol) {
        (None, _) => (false, false),
        (Some("PROXY"), Protocol::Tcp) => (true, false),
        (Some(":PROXY"), Protocol::Tcp) => (false, true),
        (Some("PROXY:PROXY"), Protocol::Tcp) => (true, true),
        (Some(other), _) => return Err(wrong(other, "nothing that may stand behind a port")),
    };
    Ok(Stream { protocol, port, service, backend_port, accept_proxy, send_proxy })
}

/// `NAMESPACE/NAME:PORT`.
fn target(text: &str) -> Result<(ObjectName, BackendPort), String> {
    let refused = || wrong(text, "not NAMESPACE/NAME:PORT");
    let (service, port) = text.rsplit_once(':').ok_or_else(refused)?;
    let port = match number(port) {
        Ok(0) => return Err(refused()),
        Ok(number) => BackendPort::Number(number),
        Err(_) if crate::rules::is_port_name(port) => BackendPort::Name(port.to_owned()),
        Err(_) => return Err(refused()),
    };
    Ok((name(service)?, port))
}

/// `NAMESPACE/NAME`.
fn name(text: &str) -> Result<ObjectName, String> {
    let parts =
        text.split_once('/').filter(|(of, name)| is_object_name(of) && is_object_name(name));
    let (namespace, name) = parts.ok_or_else(|| wrong(text, "not NAMESPACE/NAME"))?;
    Ok(ObjectName::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(data: &[(&str, &str)]) -> ConfigMap {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        ConfigMap { data: data.collect() }
    }

    #[test]
    fn settings_have_the_names_that_ingress_nginx_has_for_them() {
        for (key, value, json) in [
            ("proxy-body-size", "8m", r#"{"name":"","options":{"bodySize":8388608}}"#),
            ("proxy-read-timeout", "90", r#"{"name":"","options":{"readTimeout":90}}"#),
            ("custom-http-errors", "503", r#"{"name":"","options":{"customErrors":[503]}}"#),
            ("force-ssl-redirect", "true", r#"{"name":"","options":{"forceSslRedirect":true}}"#),
            ("limit-rate", "5", r#"{"name":"","options":{"limits":{"rate":5120}}}"#),
            ("limit-rate-after", "5", r#"{"name":"","options":{"limits":{"rateAfter":5120}}}"#),
            ("ssl-redirect", "false", r#"{"name":"","options":{"sslRedirect":false}}"#),
            ("ssl-ciphers", "A:B", r#"{"name":"","options":{"ciphers":["A","B"]}}"#),
            ("ssl-protocols", "TLSv1.3", r#"{"name":"","options":{"minTls":"1.3"}}"#),
            ("hsts", "false", r#"{"name":"","hsts":{}}"#),
            ("hsts-max-age", "9", r#"{"name":"","hsts":{"maxAge":9,"subdomains":true}}"#),
            ("http-redirect-code", "301", r#"{"name":"","redirectStatus":301}"#),
            ("use-gzip", "true", r#"{"name":"","compression":true}"#),
            ("gzip-level", "5", r#"{"name":"","gzip":{"level":5}}"#),
            ("gzip-min-length", "1000", r#"{"name":"","gzip":{"minLength":1000}}"#),
            ("gzip-types", "text/css  *", r#"{"name":"","gzip":{"types":["text/css","*"]}}"#),
            ("enable-brotli", "false", r#"{"name":""}"#),
            (
                "default-ssl-certificate",
                "a/b",
                r#"{"name":"","defaultCertificate":{"namespace":"a","name":"b"}}"#,
            ),
            (
                "default-backend",
                "a/b:http",
                r#"{"name":"","defaultBackend":[{"namespace":"a","name":"b"},"http"]}"#,
            ),
            ("proxy-real-ip-cidr", "10.1.2.3/8", r#"{"name":"","trusted":["10.0.0.0/8"]}"#),
        ] {
            let Made { gateway, warnings, .. } = settings(&map(&[(key, value)]), &mut None);
            assert_eq!(
                (serde_json::to_string(&gateway).unwrap().as_str(), &*warnings),
                (json, &[][..])
            );
        }
        for (key, value, wrong) in [
            ("worker-processes", "4", "no such setting"),
            ("rewrite-target", "/", "no such setting"),
            ("proxy-body-size", "big", "no size"),
            ("ssl-protocols", "TLSv1", "neither TLSv1.2"),
            ("use-proxy-protocol", "true", "nobody is believed"),
            ("gzip-level", "0", "not from 1 to 9"),
            ("gzip-types", "text", "no media type"),
            ("enable-brotli", "true", "use-gzip"),
            ("default-backend", "a/b", "not NAMESPACE/NAME:PORT"),
        ] {
            let warnings = settings(&map(&[(key, value)]), &mut None).warnings;
            assert_eq!(warnings[0].field, format!("data.{key}"));
            assert!(warnings[0].message.contains(wrong), "{}", warnings[0]);
        }
    }

    #[test]
    fn who_is_to_be_kept_out_everywhere_is_kept_out() {
        let mut clients = None;
        let mut of = |ranges: &str| {
            let made = settings(&map(&[("whitelist-source-range", ranges)]), &mut clients);
            let options = made.gateway.options;
            (options.allow.len(), options.deny.len(), made.errors.len())
        };
        assert_eq!(of("10.0.0.0/99"), (0, 2, 1), "nobody comes in");
        assert_eq!(of("10.0.0.0/8"), (1, 0, 0));
        assert_eq!(of("10.0.0.0/99"), (1, 0, 1), "as it last was");
    }

    #[test]
    fn guards_that_are_not_known_keep_everybody_out() {
        for key in ["global-auth-url", "block-cidrs"] {
            let mut clients = None;
            let mut of = |value: &str| {
                let made = settings(&map(&[(key, value)]), &mut clients);
                (made.gateway.options.deny.len(), made.errors.len(), made.closed)
            };
            assert_eq!(of("http://auth.test/"), (2, 1, true), "{key}");
            assert_eq!(of(""), (0, 0, false), "{key}");
            assert_eq!(
                of("http://auth.test/"),
                (2, 1, true),
                "{key}: settings that were good before"
            );
        }
    }

    #[test]
    fn the_documentation_has_every_key() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/migrate-from-ingress-nginx.md");
        let text = std::fs::read_to_string(file).unwrap();
        let expected: Vec<_> =
            KEYS.iter().map(|(key, note, _)| format!("| `{key}` | {note} |")).collect();
        let found = text.lines().skip_while(|line| !line.starts_with("| key")).skip(2);
        let found: Vec<_> = found.take_while(|line| line.starts_with('|')).collect();
        assert_eq!(found, expected, "the table is to be:\n{}", expected.join("\n"));
    }

    #[test]
    fn ports_are_passed_on() {
        let data = [
            ("53", "kube-system/dns:dns"),
            ("9000", "shop/db:5432:PROXY"),
            ("9001", "shop/db:1::PROXY"),
        ];
        let (found, warnings) = streams(&map(&data), Protocol::Tcp);
        let flags: Vec<_> =
            found.iter().map(|of| (of.port, of.accept_proxy, of.send_proxy)).collect();
        assert_eq!(flags, [(53, false, false), (9000, true, false), (9001, false, true)]);
        assert_eq!(
            (found[1].service.clone(), &*warnings),
            (ObjectName::new("shop", "db"), &[][..])
        );
        for (key, value) in
            [("0", "a/b:1"), ("x", "a/b:1"), ("1", "b:1"), ("1", "a/b"), ("1", "a/b:1:x")]
        {
            assert_eq!(streams(&map(&[(key, value)]), Protocol::Tcp).1.len(), 1, "{key} {value}");
        }
        assert_eq!(streams(&map(&[("1", "a/b:1:PROXY")]), Protocol::Udp).1.len(), 1);
        let (found, warnings) = streams(&map(&[("80", "a/b:1"), ("080", "a/b:2")]), Protocol::Tcp);
        assert_eq!((found.len(), warnings.len()), (1, 1));
    }
}
