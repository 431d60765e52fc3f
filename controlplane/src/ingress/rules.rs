//! An Ingress on its own to that of the model.

use fairway_model::{
    Backend, ClientTls, IngressPath, IngressRule, IngressTls, ObjectName, Options, PathType,
};

use super::annotations::Said;
use super::secrets::Role;
use super::values::{expression, line, token};
use crate::kubernetes::FieldError;
use crate::kubernetes::ingress::{self, Ingress, IngressBackend};

/// Headers that are part of how HTTP itself works (RFC 9110, 7.6.1).
const OF_HTTP: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the Ingress is with what its annotations say; and why it cannot be served so.
pub(super) fn convert(
    name: &ObjectName,
    source: &Ingress,
    said: &mut Said,
) -> (fairway_model::Ingress, Vec<FieldError>) {
    let mut errors = Vec::new();
    let options = std::mem::take(&mut said.options);
    let expressions = options.use_regex || options.rewrite_target.is_some();
    let mut backend = |field: &str, backend: &IngressBackend| -> Option<Backend> {
        match backend.port() {
            Ok(Some(backend)) => Some(backend),
            Ok(None) => {
                let kind = backend.resource.as_ref().map_or("", |resource| &resource.kind);
                let message = format!("not served: a {kind:.100} is not supported, only Services");
                said.warnings.push(FieldError::new(format!("{field}.resource"), message));
                None
            }
            // Refused when it was read.
            Err(_) => None,
        }
    };
    let default_backend = source.default_backend().and_then(|(field, of)| backend(field, of));
    let mut rules: Vec<_> = source
        .spec
        .rules
        .iter()
        .map(|rule| IngressRule { host: rule.host.to_ascii_lowercase(), paths: Vec::new() })
        .collect();
    for (rule, at, path) in source.paths() {
        let field = format!("spec.rules[{rule}].http.paths[{at}]");
        let kind = match path.path_type {
            Some(ingress::PathType::Exact) => PathType::Exact,
            Some(ingress::PathType::Prefix) => PathType::Prefix,
            Some(ingress::PathType::ImplementationSpecific) | None => {
                PathType::ImplementationSpecific
            }
        };
        let text = if path.path.is_empty() { "/" } else { &path.path };
        if expressions && let Err(message) = expression(text) {
            errors.push(FieldError::new(format!("{field}.path"), message));
        }
        if !expressions && !text.starts_with('/') {
            let message = format!("\"{text:.300}\" does not begin with /");
            errors.push(FieldError::new(format!("{field}.path"), message));
        }
        if let Some(backend) = backend(&format!("{field}.backend"), &path.backend) {
            rules[rule].paths.push(IngressPath { path: text.to_owned(), kind, backend });
        }
    }
    let tls = source.spec.tls.iter().enumerate().map(|(index, tls)| {
        let hosts = tls.hosts.iter().filter(|host| !host.is_empty());
        let secret = Some(&tls.secret_name).filter(|secret| !secret.is_empty());
        let secret = secret.map(|secret| ObjectName::new(&name.namespace, secret));
        if let Some(secret) = &secret {
            let field = format!("spec.tls[{index}].secretName");
            said.secrets.push((secret.clone(), Role::Tls, field));
        }
        IngressTls { hosts: hosts.map(|host| host.to_ascii_lowercase()).collect(), secret }
    });
    let tls = tls.collect();
    let made = fairway_model::Ingress {
        name: name.clone(),
        created: source.metadata.creation_timestamp.seconds(),
        gateway: None,
        nginx: false,
        default_backend,
        rules,
        denied: false,
        tls,
        options: Box::new(options),
    };
    (made, errors)
}

/// What gateways are told of an Ingress that has never been good: which requests are nobody else's. `None`: there
/// are none, as those of a canary belong to another Ingress.
pub(super) fn denied(
    made: fairway_model::Ingress,
    errors: &[FieldError],
) -> Option<fairway_model::Ingress> {
    let said = *made.options;
    if said.canary.is_some() {
        return None;
    }
    // They would be asked of the whole host; no Secret has such a name, and without an authority nobody passes.
    let unknown = errors.iter().any(|error| error.field.contains("auth-tls-"));
    let nobodys = ClientTls {
        secret: ObjectName::new(&made.name.namespace, "(unreadable)"),
        ..ClientTls::default()
    };
    let options = Options {
        rewrite_target: said.rewrite_target,
        use_regex: said.use_regex,
        server_aliases: said.server_aliases,
        client_tls: if unknown { Some(nobodys) } else { said.client_tls },
        ..Options::default()
    };
    Some(fairway_model::Ingress { denied: true, options: Box::new(options), ..made })
}

/// A header of answers.
pub(super) fn header(name: &str, value: &str) -> Result<(String, String), String> {
    let name = token(name)?;
    match OF_HTTP.contains(&name.to_ascii_lowercase().as_str()) {
        true => Err("it is part of how HTTP itself works".to_owned()),
        false => Ok((name, line(value)?)),
    }
}
