//! The certificates that Ingresses name: whether they are there, good, and for the hosts that they are to serve.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairway_model::ObjectName;
use rustls::Error::InconsistentKeys;
use rustls::InconsistentKeys::KeyMismatch;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::Item;
use crate::problem::{Problem, Severity};

/// A certificate that is good for less than this is warned about.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
const TLS: &str = "kubernetes.io/tls";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// The type of a Secret that says none.
const OPAQUE: &str = "Opaque";

/// What is wrong with Secrets that Ingresses name, each said once, and with what Ingresses want of them.
pub(super) fn check(items: &[Item<'_>], now: SystemTime) -> Vec<Problem> {
    let secrets: BTreeMap<_, _> =
        items.iter().filter(|item| item.is("", "Secret")).map(|item| (&item.name, item)).collect();
    let mut problems = Vec::new();
    let mut names = BTreeMap::<ObjectName, Vec<String>>::new();
    for ingress in items.iter().filter(|item| item.is_ingress()) {
        let value = ingress.located.to_value();
        let list = value.pointer("/spec/tls").and_then(Value::as_array);
        for (index, tls) in list.into_iter().flatten().enumerate() {
            let Some(secret) = tls["secretName"].as_str() else { continue };
            let name = ObjectName::new(&ingress.name.namespace, secret);
            let field = format!("spec.tls[{index}].secretName");
            let Some(secret) = secrets.get(&name) else {
                if !is_made(&value) {
                    let message = format!("these manifests have no Secret {name}");
                    problems.push(ingress.warning(&field, message));
                }
                continue;
            };
            let covered = names.entry(name.clone()).or_insert_with(|| {
                let (covered, wrong) = judge(secret, now);
                problems.extend(wrong);
                covered
            });
            if covered.is_empty() {
                continue;
            }
            for (field, host) in hosts(&value, index) {
                if !covered.iter().any(|pattern| covers(pattern, &host)) {
                    let message = format!(
                        "the certificate of Secret {name} is not for {host}, but for {}",
                        covered.join(", ")
                    );
                    problems.push(ingress.problem(Severity::Error, &field, message));
                }
            }
        }
    }
    problems
}

/// Whether the Ingress asks a controller to make its Secrets, as cert-manager does; no manifest has those.
fn is_made(ingress: &Value) -> bool {
    let annotations = &ingress["metadata"]["annotations"];
    annotations["cert-manager.io/issuer"].is_string()
        || annotations["cert-manager.io/cluster-issuer"].is_string()
        || annotations["kubernetes.io/tls-acme"] == "true"
}

/// The hosts that an entry of `spec.tls` is for: those it names, or else those of all rules.
fn hosts(ingress: &Value, index: usize) -> Vec<(String, String)> {
    let named = ingress.pointer(&format!("/spec/tls/{index}/hosts")).and_then(Value::as_array);
    let named = named.into_iter().flatten().enumerate().filter_map(|(at, host)| {
        Some((format!("spec.tls[{index}].hosts[{at}]"), host.as_str()?.to_owned()))
    });
    let named: Vec<_> = named.collect();
    if !named.is_empty() {
        return named;
    }
    let rules = ingress.pointer("/spec/rules").and_then(Value::as_array);
    let rules = rules.into_iter().flatten().enumerate();
    rules
        .filter_map(|(at, rule)| {
            Some((format!("spec.rules[{at}].host"), rule["host"].as_str()?.into()))
        })
        .collect()
}

/// The names that the certificate of a Secret is for, and what is wrong with the Secret.
fn judge(secret: &Item<'_>, now: SystemTime) -> (Vec<String>, Vec<Problem>) {
    let mut problems = Vec::new();
    let value = secret.located.to_value();
    let certificate = bytes(&value, CERTIFICATE);
    let key = bytes(&value, KEY);
    let kind = value["type"].as_str().unwrap_or(OPAQUE);
    if kind != TLS {
        // Some controllers look only at what is in it.
        let severity = match kind == OPAQUE && certificate.is_ok() && key.is_ok() {
            true => Severity::Warning,
            false => Severity::Error,
        };
        let message = format!("{kind:.100}, where an Ingress needs {TLS}");
        problems.push(secret.problem(severity, "type", message));
    }
    let mut error = |field: &str, message: String| {
        problems.push(secret.problem(Severity::Error, field, message))
    };
    let mut names = Vec::new();
    let mut chain = Vec::new();
    match &certificate {
        Err(Unread { field, message }) => error(field, message.clone()),
        Ok((field, pem)) => match read(pem) {
            Err(message) => error(field, message),
            Ok(all) => {
                chain = all;
                let (of, wrong) = look_at(&chain[0], now);
                names = of;
                match wrong {
                    Some((Severity::Error, message)) => error(field, message),
                    Some((Severity::Warning, message)) => {
                        problems.push(secret.warning(field, message));
                    }
                    None => {}
                }
            }
        },
    }
    let mut error = |field: &str, message: String| {
        problems.push(secret.problem(Severity::Error, field, message))
    };
    match &key {
        Err(Unread { field, message }) => error(field, message.clone()),
        Ok((field, pem)) => {
            let key = PrivateKeyDer::from_pem_slice(pem).ok();
            match key.and_then(|key| any_supported_type(&key).ok()) {
                None => error(field, "no private key in PEM that can be read".to_owned()),
                Some(key) if !chain.is_empty() => {
                    let pair = CertifiedKey::new(chain, key);
                    if pair.keys_match() == Err(InconsistentKeys(KeyMismatch)) {
                        error(field, format!("not the key of the certificate in {CERTIFICATE}"));
                    }
                }
                Some(_) => {}
            }
        }
    }
    (names, problems)
}

/// Why some bytes of a Secret cannot be had.
struct Unread {
    field: String,
    message: String,
}

/// The bytes of a Secret's entry, and the field that has them.
fn bytes(secret: &Value, entry: &str) -> Result<(String, Vec<u8>), Unread> {
    if let Some(text) = secret["stringData"][entry].as_str() {
        return Ok((format!("stringData.{entry}"), text.as_bytes().to_vec()));
    }
    let part = if secret["data"].is_null() { "stringData" } else { "data" };
    let field = format!("{part}.{entry}");
    match secret["data"][entry].as_str() {
        None | Some("") => Err(Unread { field, message: "needs to be there".to_owned() }),
        Some(text) => {
            let plain: String = text.split_ascii_whitespace().collect();
            let decoded = STANDARD.decode(plain);
            let unread = |_| Unread { field: field.clone(), message: "no base64".to_owned() };
            Ok((field.clone(), decoded.map_err(unread)?))
        }
    }
}

fn read(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.ok().filter(|all| !all.is_empty());
    let all = all.ok_or("no certificate in PEM")?;
    match all.iter().all(|one| X509Certificate::from_der(one).is_ok()) {
        true => Ok(all),
        false => Err("a certificate that cannot be read".to_owned()),
    }
}

/// The names that a certificate is for, and what is wrong with it at that moment.
fn look_at(
    certificate: &CertificateDer<'_>,
    now: SystemTime,
) -> (Vec<String>, Option<(Severity, String)>) {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return (Vec::new(), None);
    };
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative = alternative.map(|names| names.value.general_names.as_slice());
    let names: Vec<_> = alternative
        .unwrap_or_default()
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_lowercase()),
            _ => None,
        })
        .collect();
    let moment = |time: x509_parser::time::ASN1Time| {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
    };
    let validity = parsed.validity();
    let (from, until) = (validity.not_before, validity.not_after);
    let date = |time: x509_parser::time::ASN1Time| time.to_datetime().date();
    let wrong = if moment(until) < now {
        Some((Severity::Error, format!("the certificate expired on {}", date(until))))
    } else if moment(from) > now {
        Some((Severity::Error, format!("the certificate is not good before {}", date(from))))
    } else if moment(until) < now + SOON {
        Some((Severity::Warning, format!("the certificate expires on {}", date(until))))
    } else if names.is_empty() {
        Some((Severity::Error, "the certificate is for no host (subjectAltName)".to_owned()))
    } else {
        None
    };
    (names, wrong)
}

/// Whether a certificate's name is one for that host; `*` stands for one label, and a host that begins with
/// it wants just that.
fn covers(name: &str, host: &str) -> bool {
    let host = host.to_lowercase();
    let below = |name: &str, host: &str| match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(parent), Some((label, rest))) => !label.is_empty() && label != "*" && parent == rest,
        _ => false,
    };
    name == host || below(name, &host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        for (name, host, expected) in [
            ("shop.example", "Shop.example", true),
            ("*.shop.example", "a.shop.example", true),
            ("*.shop.example", "*.shop.example", true),
            ("*.shop.example", "shop.example", false),
            ("*.shop.example", "a.b.shop.example", false),
            ("a.shop.example", "*.shop.example", false),
        ] {
            assert_eq!(covers(name, host), expected, "{name} {host}");
        }
    }
}
