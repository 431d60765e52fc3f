//! What the owners of Ingresses are to be told: what is wrong with them, and what leads nowhere.

use std::collections::BTreeMap;

use fairway_model::{Backend, BackendPort, ObjectName};

use super::annotations::is_not_needed;
use super::{Entry, Found, Ingresses};
use crate::kubernetes::ingress::{IngressBackend, PathType};
use crate::kubernetes::{FieldError, Ingress, Kind, ObjectId, Objects, Service, ServiceType};
use crate::notices::{Notice, Reason};

/// All that is to be told of Ingresses of ours that could be read, but of what is well again.
pub(super) fn all(ingresses: &Ingresses, objects: &Objects, found: &Found) -> Vec<Notice> {
    let entries = &ingresses.entries;
    let mut notices = Vec::new();
    let problems = found.errors.iter().map(|(id, error)| (id, error, true));
    let problems = problems.chain(found.warnings.iter().map(|(id, error)| (id, error, false)));
    for (id, error, is_error) in problems.filter(|(id, ..)| id.kind == Kind::Ingress) {
        if let Some(entry) = entries.get(&id.name).filter(|_| !is_not_needed(&error.field)) {
            let reason = reason(entry, error, is_error);
            notices.push(notice(&id.name, &entry.source, reason, error));
        }
    }
    // What cannot be read leads nowhere, and that was said.
    let readable = entries.iter().filter(|(_, entry)| !entry.source.unreadable);
    for (name, entry) in readable.clone() {
        for (field, backend) in backends(&entry.source) {
            let find = |service: &ObjectName| objects.services.get(service).map(|of| &**of);
            if let Some(error) = leads_nowhere(&name.namespace, &field, backend, find) {
                notices.push(notice(name, &entry.source, Reason::BackendUnknown, &error));
            }
        }
    }
    let served = readable
        .map(|(name, entry)| (name, &*entry.source, entry.adopted.gateway.as_deref()))
        .filter(|(_, source, _)| super::annotations::value(source, "canary") != Some("true"));
    for (name, error) in contested(served.collect()) {
        if let Some(entry) = entries.get(name) {
            notices.push(notice(name, &entry.source, Reason::PathTaken, &error));
        }
    }
    notices
}

pub(super) fn notice(
    name: &ObjectName,
    ingress: &Ingress,
    reason: Reason,
    error: &FieldError,
) -> Notice {
    let object = ObjectId { kind: Kind::Ingress, name: name.clone() };
    let note = match error.field.is_empty() {
        true => error.message.clone(),
        false => error.to_string(),
    };
    Notice { object, uid: ingress.metadata.uid.clone(), reason, note }
}

fn reason(entry: &Entry, error: &FieldError, is_error: bool) -> Reason {
    let of_secret = || entry.secrets.iter().any(|(_, _, field)| *field == error.field);
    let of_annotation = error.field.starts_with("metadata.annotations.");
    match is_error {
        _ if of_secret() => Reason::SecretUnusable,
        // Of the whole of it that is all that is said.
        true if error.field.is_empty() => Reason::Denied,
        true => Reason::Refused,
        false if of_annotation => Reason::AnnotationIgnored,
        false => Reason::BackendUnknown,
    }
}

/// All backends, with their fields.
pub(crate) fn backends(ingress: &Ingress) -> impl Iterator<Item = (String, &IngressBackend)> {
    let default = ingress.default_backend();
    let default = default.map(|(field, backend)| (field.to_owned(), backend));
    let of_paths = ingress.paths().map(|(rule, at, path)| {
        (format!("spec.rules[{rule}].http.paths[{at}].backend"), &path.backend)
    });
    default.into_iter().chain(of_paths)
}

/// That a backend's Service is not there, or has no such port.
pub(crate) fn leads_nowhere<'a>(
    namespace: &str,
    field: &str,
    backend: &IngressBackend,
    find: impl Fn(&ObjectName) -> Option<&'a Service>,
) -> Option<FieldError> {
    let Ok(Some(Backend { service, port })) = backend.port() else { return None };
    let name = ObjectName::new(namespace, &service);
    let (of_service, of_port) = match &backend.service {
        Some(_) => (".service.name", ".service.port"),
        None => (".serviceName", ".servicePort"),
    };
    let Some(found) = find(&name) else {
        return Some(FieldError::new(
            format!("{field}{of_service}"),
            format!("there is no Service {name}"),
        ));
    };
    let has = found.spec.ports.iter().any(|of| match &port {
        BackendPort::Number(number) => of.port.get() == *number,
        BackendPort::Name(name) => of.name == *name,
    });
    let error = || {
        FieldError::new(format!("{field}{of_port}"), format!("Service {name} has no port {port}"))
    };
    (!has && found.spec.r#type != ServiceType::ExternalName).then(error)
}

/// Paths that another Ingress of the same gateway has, which goes before; `None` is every gateway.
pub(crate) fn contested<'a>(
    mut ingresses: Vec<(&'a ObjectName, &'a Ingress, Option<&'a str>)>,
) -> Vec<(&'a ObjectName, FieldError)> {
    ingresses.sort_by_key(|(name, ingress, _)| (ingress.metadata.creation_timestamp, *name));
    // By host and path, the first one of each gateway.
    let mut first = BTreeMap::<_, Vec<(Option<&str>, &ObjectName)>>::new();
    let mut errors = Vec::new();
    for (name, ingress, gateway) in ingresses {
        for (rule, at, path) in ingress.paths() {
            let host = ingress.spec.rules[rule].host.to_ascii_lowercase();
            let kind = path.path_type.unwrap_or(PathType::ImplementationSpecific);
            let text = if path.path.is_empty() { "/" } else { path.path.as_str() };
            let holders = first.entry((host, text, kind)).or_default();
            let holder = holders.iter().find(|(of, holder)| {
                *holder != name && (of.is_none() || gateway.is_none() || *of == gateway)
            });
            let holder = holder.map(|(_, holder)| *holder);
            if !holders.iter().any(|(of, _)| *of == gateway) {
                holders.push((gateway, name));
            }
            if let Some(holder) = holder {
                let message = format!(
                    "Ingress {holder} has the same host and path, and goes before: it is older or, of \
                     one age, the first by name"
                );
                let field = format!("spec.rules[{rule}].http.paths[{at}].path");
                errors.push((name, FieldError::new(field, message)));
            }
        }
    }
    errors
}
