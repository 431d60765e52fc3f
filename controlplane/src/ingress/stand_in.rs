//! What stands in for an Ingress that cannot be read and never could: the hosts and paths that it names, for
//! gateways to answer with 503.
//!
//! If they knew nothing of it, requests for its paths would go where a shorter path of another Ingress leads, past
//! whatever this one was to ask of clients. Where it cannot be told which paths of a host are meant, all are;
//! where it cannot be told which host, none.

use std::net::IpAddr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kubernetes::ingress::{
    BackendPort, IngressBackend, IngressHttp, IngressMetadata, IngressPath, IngressRule,
    IngressSpec, IngressTls, PathType, ServiceBackend, check_host, is_object_name,
};
use crate::kubernetes::{Ingress, Object};

/// The Service where none can be read. Nothing is ever sent to it.
const NOBODY: &str = "unreadable";

/// The stand-in for an Ingress with that text.
pub(crate) fn stand_in(value: &Value) -> Object {
    let metadata = IngressMetadata {
        uid: read(value.pointer("/metadata/uid")).unwrap_or_default(),
        annotations: strings(value.pointer("/metadata/annotations")),
        creation_timestamp: read(value.pointer("/metadata/creationTimestamp")).unwrap_or_default(),
    };
    let of = |field: &str| value.get("spec").and_then(|spec| spec.get(field));
    let spec = IngressSpec {
        ingress_class_name: read(of("ingressClassName")),
        default_backend: of("defaultBackend").or(of("backend")).map(|of| backend(Some(of))),
        backend: None,
        rules: items(of("rules")).filter_map(rule).collect(),
        tls: items(of("tls")).map(tls).collect(),
    };
    let api_version = read(value.get("apiVersion")).unwrap_or_default();
    let status = Default::default();
    Object::Ingress(Arc::new(Ingress { api_version, metadata, spec, status, unreadable: true }))
}

fn rule(value: &Value) -> Option<IngressRule> {
    let host = match value.get("host") {
        Some(host) => host_of(host.as_str()?)?,
        None => String::new(),
    };
    let paths = value.get("http").map(|http| match http.get("paths").and_then(Value::as_array) {
        Some(paths) => paths.iter().map(path).collect(),
        None => vec![path(&Value::Null)],
    });
    Some(IngressRule { host, http: paths.map(|paths| IngressHttp { paths }) })
}

/// The host that requests have which were meant.
fn host_of(text: &str) -> Option<String> {
    if text == "*" {
        return Some(String::new());
    }
    if text.parse::<IpAddr>().is_ok() {
        return Some(text.to_owned());
    }
    let host = match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => text,
    };
    let host = host.trim().trim_end_matches('.');
    check_host(host).is_ok().then(|| host.to_owned())
}

fn path(value: &Value) -> IngressPath {
    let mut path: String = read(value.get("path")).unwrap_or_default();
    if path.chars().any(char::is_control) {
        path.clear();
    }
    let path_type = read(value.get("pathType")).unwrap_or(PathType::ImplementationSpecific);
    IngressPath { path, path_type: Some(path_type), backend: backend(value.get("backend")) }
}

fn backend(value: Option<&Value>) -> IngressBackend {
    let known = read::<IngressBackend>(value);
    known.filter(|backend| matches!(backend.port(), Ok(Some(_)))).unwrap_or_else(|| {
        let port = BackendPort { number: 80, ..BackendPort::default() };
        let service = Some(ServiceBackend { name: NOBODY.to_owned(), port });
        IngressBackend { service, ..IngressBackend::default() }
    })
}

/// The hosts that can be read, with their certificate.
fn tls(value: &Value) -> IngressTls {
    let hosts = items(value.get("hosts")).filter_map(|host| host.as_str());
    let hosts = hosts.filter(|host| check_host(host).is_ok()).map(str::to_owned).collect();
    let secret: Option<String> = read(value.get("secretName"));
    let secret_name = secret.filter(|name| is_object_name(name)).unwrap_or_default();
    IngressTls { hosts, secret_name }
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn strings(value: Option<&Value>) -> std::collections::BTreeMap<String, String> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn read<T: DeserializeOwned>(value: Option<&Value>) -> Option<T> {
    value.and_then(|value| T::deserialize(value).ok())
}

#[cfg(test)]
mod tests {
    use fairway_model::ObjectName;
    use serde_json::json;

    use super::*;
    use crate::ingress::Settings;
    use crate::kubernetes::{Kind, ObjectId};
    use crate::live::{Live, read};

    fn good() -> Value {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "web", "namespace": "shop", "annotations": {"kubernetes.io/ingress.class": "nginx"}},
            "spec": {"rules": [{"host": "a.example", "http": {"paths": [{"path": "/admin", "pathType": "Prefix",
                "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}],
                "tls": [{"hosts": ["a.example"], "secretName": "web"}]}})
    }

    fn live(value: Value) -> Live {
        let mut live = Live::new(Vec::new()).unwrap();
        live.adopt(Settings { gateway: None, ..Settings::of_folder() });
        live.put(super::super::tests::known(value));
        live
    }

    /// `HOST TYPE PATH SERVICE` of each path that is denied, and of a host without any `HOST -`; then the default
    /// backend's Service.
    fn denied(value: Value) -> Vec<String> {
        let (model, problems) = live(value).model();
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(texts.iter().any(|text| text.contains("never good")), "{texts:?}");
        model.validate().unwrap();
        let made = model.ingresses.values().next().unwrap();
        assert!(made.denied);
        let paths = made.rules.iter().flat_map(|rule| {
            let paths = rule.paths.iter().map(|path| {
                format!("{} {:?} {} {}", rule.host, path.kind, path.path, path.backend.service)
            });
            let none = rule.paths.is_empty().then(|| format!("{} -", rule.host));
            paths.chain(none).collect::<Vec<_>>()
        });
        let default = made.default_backend.iter().map(|of| of.service.clone());
        paths.chain(default).collect()
    }

    #[test]
    fn what_can_be_read_of_it_is_denied() {
        let check = |change: &dyn Fn(&mut Value), expected: &[&str]| {
            let mut value = good();
            change(&mut value["spec"]);
            assert_eq!(denied(value.clone()), expected, "{value}");
        };
        // Types.
        let all = "a.example ImplementationSpecific / unreadable";
        check(&|spec| spec["rules"][0]["http"] = 1.into(), &[all]);
        check(&|spec| spec["rules"][0]["http"]["paths"] = json!({}), &[all]);
        check(&|spec| spec["rules"][0]["http"]["paths"] = json!([1]), &[all]);
        check(&|spec| spec["rules"] = json!({"a": 1}), &[]);
        check(&|spec| *spec = 1.into(), &[]);
        // Hosts: what requests have who mean it, or nothing.
        for (host, meant) in [
            ("192.0.2.1", "192.0.2.1"),
            ("a.example:80", "a.example"),
            ("*", ""),
            ("A.example.", "a.example"),
        ] {
            let expected = format!("{meant} Prefix /admin web");
            check(&|spec| spec["rules"][0]["host"] = host.into(), &[&expected]);
        }
        for host in [json!("a..b"), json!("a b"), json!("*.*.example"), json!(["a.example"])] {
            check(&|spec| spec["rules"][0]["host"] = host.clone(), &[]);
        }
        // Paths.
        let path = |field: &'static str, to: Value| {
            move |spec: &mut Value| spec["rules"][0]["http"]["paths"][0][field] = to.clone()
        };
        check(&path("path", "/a//b".into()), &["a.example Prefix /a//b web"]);
        check(&path("path", "x".into()), &["a.example Prefix x web"]);
        check(&path("path", 1.into()), &["a.example Prefix / web"]);
        check(&path("path", "/a\u{7}".into()), &["a.example Prefix / web"]);
        for kind in [json!("Regex"), json!(1), Value::Null] {
            let expected = "a.example ImplementationSpecific /admin web";
            check(&path("pathType", kind), &[expected]);
        }
        // Backends.
        for backend in [json!({}), json!(1), json!({"service": {"name": "web", "port": {}}})] {
            check(&path("backend", backend.clone()), &["a.example Prefix /admin unreadable"]);
            let default = |spec: &mut Value| spec["defaultBackend"] = backend.clone();
            check(&default, &["a.example Prefix /admin web", "unreadable"]);
        }
        // TLS: the hosts keep the certificate that they can have.
        let tls = |spec: &mut Value| {
            spec["tls"] =
                json!([{"hosts": ["*"]}, {"hosts": ["a.example"], "secretName": "web"}, 1])
        };
        check(&tls, &["a.example Prefix /admin web"]);
    }

    #[test]
    fn its_annotations_count_and_it_ends_when_it_is_mended_or_gone() {
        let mut value = good();
        value["spec"]["rules"][0]["host"] = "192.0.2.1".into();
        let mut wrong = value.clone();
        wrong["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "nginx", "other": 1,
            "nginx.ingress.kubernetes.io/server-alias": "b.example"});
        let mut live = live(wrong);
        let (model, _) = live.model();
        let made = model.ingresses.values().next().unwrap();
        assert_eq!(
            (made.nginx, &*made.options.server_aliases),
            (true, &["b.example".to_owned()][..])
        );
        live.put(super::super::tests::known(good()));
        let (model, problems) = live.model();
        assert!(model.ingresses.values().all(|made| !made.denied), "{problems:?}");
        // What was good stays.
        live.put(super::super::tests::known(value.clone()));
        assert_eq!(live.model().0, model);
        live.remove(&ObjectId { kind: Kind::Ingress, name: ObjectName::new("shop", "web") });
        assert_eq!(live.model().0.ingresses.len(), 0);
        // Others' are none of our business.
        value["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "traefik"});
        live.put(read(Kind::Ingress, value).unwrap());
        assert_eq!(live.model().0.ingresses.len(), 0);
    }

    /// A Secret that cannot be read protects its route as one that is not there: gateways get no users, and let nobody in.
    #[test]
    fn a_secret_that_cannot_be_read_has_no_users() {
        let mut value = good();
        value["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "nginx",
            "nginx.ingress.kubernetes.io/auth-type": "basic", "nginx.ingress.kubernetes.io/auth-secret": "users"});
        let mut live = live(value);
        live.model();
        let id = ObjectId { kind: Kind::Secret, name: ObjectName::new("shop", "users") };
        let secret = json!({"metadata": {"name": "users", "namespace": "shop"}, "data": 1});
        live.put_named(&id, Some(read(Kind::Secret, secret).unwrap()));
        let (model, problems) = live.model();
        let basic = model.ingresses.values().next().unwrap().options.basic_auth.clone();
        assert_eq!((basic.unwrap().secret, model.secrets.len()), (id.name, 0), "{problems:?}");
        let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().concat();
        assert!(text.contains("auth-secret: Secret shop/users: auth is"), "{text}");
    }
}
