//! Values to objects, whatever brought the values here: one way to read them, to refuse them, and to fall
//! back on what was good before.

use std::sync::Arc;

use fairway_model::ObjectName;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::kubernetes::{FieldError, Kind, Object, ObjectId};
use crate::{ingress, policy};

/// An object that cannot be taken as it is.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) errors: Vec<FieldError>,
    /// What is in force instead if it never was any better: of a policy or an Ingress, one that denies; of others,
    /// what they are without those annotations of ours that are wrong.
    pub(crate) stand_in: Option<Object>,
}

/// What the names of our annotations begin with.
const OURS: &str = "fairway.dev/";

/// What is said where a stand-in for a policy is in force.
pub(crate) const NEVER_GOOD: &str = "it never could be read, so that what it may restrict is denied until it \
                                     is mended or removed";

/// What is in force of an object.
pub(crate) enum InForce {
    /// What it says, or what it said when that could be read.
    Good(Object),
    /// What stands in its place.
    StandIn(Object),
    Nothing,
}

/// What is in force of an object that was read so, and was `last` before, if it ever was good.
pub(crate) fn settle(read: &Result<Object, Broken>, last: Option<Object>) -> InForce {
    match (read, last) {
        (Ok(object), _) => InForce::Good(object.clone()),
        (Err(_), Some(last)) => InForce::Good(last),
        (Err(Broken { stand_in, .. }), None) => match stand_in {
            Some(object) => InForce::StandIn(object.clone()),
            None => InForce::Nothing,
        },
    }
}

/// Which object it is, by the texts of its metadata, or else which of them is wrong and why.
pub(crate) fn identify<'a>(
    kind: Kind,
    text: impl Fn(&str) -> Option<&'a str>,
) -> Result<ObjectId, (&'static str, String)> {
    let name = text("name").ok_or(("metadata.name", "needs a name".to_owned()))?;
    let longest = if kind.has_short_names() { SHORT } else { LONG };
    check_name(name, longest).map_err(|message| ("metadata.name", message))?;
    let namespace = match text("namespace") {
        _ if !kind.is_namespaced() => "",
        None => "default",
        Some(namespace) => {
            check_name(namespace, SHORT).map_err(|message| ("metadata.namespace", message))?;
            namespace
        }
    };
    Ok(ObjectId { kind, name: ObjectName::new(namespace, name) })
}

/// The object of that text, as a whole; keys without a value must have been left out.
pub(crate) fn decode(kind: Kind, value: Value) -> Result<Object, Broken> {
    let errors = match decode_unchecked(kind, value.clone()) {
        Err(error) => vec![error],
        Ok(object) => match object.check() {
            errors if errors.is_empty() => return Ok(object),
            errors => errors,
        },
    };
    let stand_in = stand_in(kind, &value).or_else(|| without_our_annotations(kind, value));
    Err(Broken { errors, stand_in })
}

/// The object as it is without those annotations of ours that are wrong, if they are all that is wrong with it. It
/// says who is there and what they may do; an annotation only says how that is done.
fn without_our_annotations(kind: Kind, mut value: Value) -> Option<Object> {
    if !matches!(kind, Kind::Namespace | Kind::Pod | Kind::Service) {
        return None;
    }
    let annotations = value.pointer_mut("/metadata/annotations")?.as_object_mut()?;
    let (ours, mut others): (Map<_, _>, Map<_, _>) =
        std::mem::take(annotations).into_iter().partition(|(name, _)| name.starts_with(OURS));
    // Each by itself: what one says makes no other one wrong.
    let mut with = |name: &str, said: &Value| {
        let mut tried = others.clone();
        tried.insert(name.to_owned(), said.clone());
        *value.pointer_mut("/metadata/annotations")? = tried.into();
        decode_unchecked(kind, value.clone()).ok().filter(|object| object.check().is_empty())
    };
    let good: Vec<_> = ours.iter().filter(|(name, said)| with(name, said).is_some()).collect();
    others.extend(good.into_iter().map(|(name, said)| (name.clone(), said.clone())));
    *value.pointer_mut("/metadata/annotations")? = others.into();
    decode_unchecked(kind, value).ok().filter(|object| object.check().is_empty())
}

/// What is in force instead of a policy or an Ingress with that text.
pub(crate) fn stand_in(kind: Kind, value: &Value) -> Option<Object> {
    if kind == Kind::Ingress {
        return Some(ingress::stand_in(value));
    }
    decode_unchecked(kind, policy::stand_in(kind, value)?).ok()
}

/// What to call an object whose name is none.
pub(crate) fn some_name<'a>(kind: Kind, text: impl Fn(&str) -> Option<&'a str>) -> ObjectName {
    let plain = |text: &str| {
        let known = |char: char| char.is_ascii_alphanumeric() || "-._".contains(char);
        let plain = text.chars().map(|char| if known(char) { char } else { '-' });
        plain.take(253).collect::<String>()
    };
    let namespace = if kind.is_namespaced() { text("namespace").unwrap_or("default") } else { "" };
    let name = text("name").filter(|name| !name.is_empty()).unwrap_or("unnamed");
    ObjectName::new(plain(namespace), plain(name))
}

/// The longest names that are labels of the DNS, and of most objects.
const SHORT: usize = 63;
const LONG: usize = 253;

/// A DNS subdomain, as Kubernetes demands: nothing in it needs quoting anywhere.
fn check_name(name: &str, longest: usize) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [name.bytes().next(), name.bytes().last()];
    let inner = |byte: u8| plain(byte) || byte == b'-' || byte == b'.';
    if name.len() > longest
        || !ends.iter().all(|end| end.is_some_and(plain))
        || !name.bytes().all(inner)
    {
        return Err(format!(
            "\"{name:.300}\" is no name: small letters, digits, '-' and '.', a letter or digit at both \
             ends, at most {longest} of them"
        ));
    }
    Ok(())
}

/// An object whose fields have the right types, and no more than that.
pub(crate) fn decode_unchecked(kind: Kind, value: Value) -> Result<Object, FieldError> {
    Ok(match kind {
        Kind::Namespace => Object::Namespace(typed(value)?),
        Kind::Node => Object::Node(typed(value)?),
        Kind::Pod => Object::Pod(typed(value)?),
        Kind::Service => Object::Service(typed(value)?),
        Kind::Endpoints => Object::Endpoints(typed(value)?),
        Kind::EndpointSlice => Object::EndpointSlice(typed(value)?),
        Kind::ServiceCIDR => Object::ServiceCIDR(typed(value)?),
        Kind::NetworkPolicy => Object::NetworkPolicy(policy_typed(value)?),
        Kind::ClusterNetworkPolicy => Object::ClusterNetworkPolicy(policy_typed(value)?),
        Kind::AdminNetworkPolicy => Object::AdminNetworkPolicy(policy_typed(value)?),
        Kind::BaselineAdminNetworkPolicy => {
            Object::BaselineAdminNetworkPolicy(policy_typed(value)?)
        }
        Kind::IPAddressPool => Object::IPAddressPool(typed(value)?),
        Kind::L2Advertisement => Object::L2Advertisement(typed(value)?),
        Kind::Ingress => Object::Ingress(typed(value)?),
        Kind::IngressClass => Object::IngressClass(typed(value)?),
        Kind::Secret => Object::Secret(typed(value)?),
        Kind::ConfigMap => Object::ConfigMap(typed(value)?),
    })
}

/// A policy, in which every field must be known but for those that all objects have.
fn policy_typed<T: DeserializeOwned>(mut value: Value) -> Result<Arc<T>, FieldError> {
    if let Some(object) = value.as_object_mut() {
        object.retain(|field, _| !["apiVersion", "kind", "metadata", "status"].contains(&&**field));
    }
    match policy::stray_list(&value) {
        Some(error) => Err(error),
        None => typed(value),
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<Arc<T>, FieldError> {
    serde_path_to_error::deserialize(value).map(Arc::new).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { String::new() } else { field };
        FieldError::new(field, error.inner().to_string())
    })
}
