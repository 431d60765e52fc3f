//! Ingresses as people write them, and what gateways get.

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::*;
use crate::live::{Live, Read, read};

/// What the folder of a single owner would be, told object by object.
fn live() -> Live {
    let mut live = unheard();
    live.put_named(&settings(), None);
    live
}

/// The same, before anything was heard of the gateways' settings.
fn unheard() -> Live {
    let mut live = Live::new(Vec::new()).unwrap();
    live.adopt(Settings::of_folder());
    live
}

fn settings() -> ObjectId {
    let name = ObjectName::new("kube-system", "fairway-gateway");
    ObjectId { kind: Kind::ConfigMap, name }
}

fn put(live: &mut Live, value: Value) {
    live.put(known(value));
}

/// An object that says of which kind it is.
pub(super) fn known(value: Value) -> Read {
    let (version, kind) = (value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap());
    read(Kind::of(version, kind).unwrap(), value).unwrap()
}

fn put_named(live: &mut Live, name: &str, value: Option<Value>) {
    let id = ObjectId { kind: Kind::Secret, name: ObjectName::new("shop", name) };
    live.put_named(&id, value.map(|value| read(Kind::Secret, value).unwrap()));
}

fn ingress(annotations: Value, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": spec,
        "metadata": {"name": "web", "namespace": "shop", "annotations": annotations}})
}

/// One path to a Service.
fn spec(path: &str, kind: &str) -> Value {
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    json!({"rules": [{"host": "a.example", "http": {"paths": [
        {"path": path, "pathType": kind, "backend": backend}]}}]})
}

fn secret(kind: &str, data: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "shop"}, "type": kind, "stringData": data})
}

/// The model's only Ingress as JSON, and what is wrong.
fn made(live: &mut Live) -> (Value, Vec<String>) {
    let (model, problems) = live.model();
    model.validate().unwrap();
    let made = model.ingresses.values().next().map_or(Value::Null, |made| json!(made));
    (made, problems.iter().map(ToString::to_string).collect())
}

fn only(value: Value) -> (Value, Vec<String>) {
    let mut live = live();
    put(&mut live, value);
    made(&mut live)
}

fn certificate(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn rules_are_those_of_the_manifest() {
    let port = |port: Value| json!({"service": {"name": "web", "port": port}});
    let spec = json!({"ingressClassName": "fairway", "defaultBackend": port(json!({"number": 8080})),
        "rules": [
            {"host": "A.Example", "http": {"paths": [
                {"path": "/x", "pathType": "Exact", "backend": port(json!({"name": "http"}))},
                {"path": "/", "pathType": "Prefix", "backend": port(json!({"number": 80}))},
                {"pathType": "ImplementationSpecific", "backend": port(json!({"number": 80}))}]}},
            {"host": "*.b.example"},
            {"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": port(json!({"number": 80}))}]}}],
        "tls": [{"hosts": ["A.example"], "secretName": "web"}, {"hosts": ["c.example"]}]});
    let mut value = ingress(json!({}), spec);
    value["metadata"]["creationTimestamp"] = "2026-11-28T17:30:00Z".into();
    let (made, problems) = only(value);
    assert_eq!(problems, [""; 0], "nothing was heard of the Secret yet");
    let backend = |port: Value| json!({"service": "web", "port": port});
    assert_eq!(
        made,
        json!({"name": {"namespace": "shop", "name": "web"}, "created": 1_795_887_000,
            "defaultBackend": backend(8080.into()),
            "rules": [
                {"host": "a.example", "paths": [
                    {"path": "/x", "type": "Exact", "backend": backend("http".into())},
                    {"path": "/", "type": "Prefix", "backend": backend(80.into())},
                    {"path": "/", "type": "ImplementationSpecific", "backend": backend(80.into())}]},
                {"host": "*.b.example", "paths": []},
                {"paths": [{"path": "/", "type": "Prefix", "backend": backend(80.into())}]}],
            "tls": [{"hosts": ["a.example"], "secret": {"namespace": "shop", "name": "web"}},
                {"hosts": ["c.example"]}]})
    );
}

/// E2: `spec.backend`, `serviceName`, `servicePort`, a path that is not there, a type that is not said.
#[test]
fn older_forms_say_the_same() {
    let v1 = ingress(
        json!({"kubernetes.io/ingress.class": "nginx"}),
        json!({
        "defaultBackend": {"service": {"name": "else", "port": {"name": "http"}}},
        "rules": [{"host": "a.example", "http": {"paths": [
            {"pathType": "ImplementationSpecific", "backend": {"service": {"name": "web", "port": {"number": 80}}}},
            {"path": "/x", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]}),
    );
    let (expected, problems) = only(v1);
    assert_eq!((expected["nginx"].clone(), problems), (true.into(), Vec::new()));
    for version in ["networking.k8s.io/v1beta1", "extensions/v1beta1"] {
        let backend = |port: Value| json!({"serviceName": "web", "servicePort": port});
        let older = json!({"apiVersion": version, "kind": "Ingress",
            "metadata": {"name": "web", "namespace": "shop",
                "annotations": {"kubernetes.io/ingress.class": "nginx"}},
            "spec": {"backend": {"serviceName": "else", "servicePort": "http"},
                "rules": [{"host": "a.example", "http": {"paths": [
                    {"backend": backend(80.into())},
                    {"path": "/x", "pathType": "Prefix", "backend": backend("80".into())}]}}]}});
        assert_eq!(only(older), (expected.clone(), Vec::new()), "{version}");
    }
}

#[test]
fn what_kubernetes_would_not_take_is_refused_by_field() {
    let check = |change: &dyn Fn(&mut Value), field: &str| {
        let mut live = live();
        let good = ingress(json!({}), spec("/", "Prefix"));
        let mut bad = good.clone();
        change(&mut bad);
        put(&mut live, bad.clone());
        let (denied, problems) = made(&mut live);
        let prefix = format!("Ingress shop/web: {field}: ");
        let reasons: Vec<_> =
            problems.iter().filter(|problem| !problem.contains("never good")).collect();
        assert!(reasons.len() == 1 && reasons[0].starts_with(&prefix), "{problems:?}");
        assert_eq!(denied["denied"], true);
        // What was good stays.
        put(&mut live, good);
        let (before, problems) = made(&mut live);
        assert_eq!(problems, [""; 0]);
        put(&mut live, bad);
        assert_eq!(made(&mut live).0, before);
    };
    let path = "spec.rules[0].http.paths[0]";
    for host in ["*", "a.*.example", "192.0.2.1", "a..b", "a b", "*.*.example", "a.example:80"] {
        check(&|value| value["spec"]["rules"][0]["host"] = host.into(), "spec.rules[0].host");
    }
    for text in ["x", "/a//b", "/a/../b", "/a%2fb", "/a\u{7}"] {
        let change = |value: &mut Value| {
            value["spec"]["rules"][0]["http"]["paths"][0]["path"] = text.into();
        };
        check(&change, &format!("{path}.path"));
    }
    let change = |field: &'static str, to: Value| {
        move |value: &mut Value| value["spec"]["rules"][0]["http"]["paths"][0][field] = to.clone()
    };
    check(&change("pathType", Value::Null), &format!("{path}.pathType"));
    check(&change("pathType", "Regex".into()), &format!("{path}.pathType"));
    check(&change("backend", json!({})), &format!("{path}.backend"));
    let both = json!({"service": {"name": "a", "port": {"number": 1}}, "resource": {"kind": "B"}});
    check(&change("backend", both), &format!("{path}.backend"));
    for port in [json!({}), json!({"name": "http", "number": 80}), json!({"name": "HTTP!"})] {
        let backend = json!({"service": {"name": "a", "port": port}});
        let field = if port["name"] == "HTTP!" { "name" } else { "port" };
        check(&change("backend", backend), &format!("{path}.backend.service.{field}"));
    }
    let backend = json!({"service": {"name": "a", "port": {"number": 70000}}});
    check(&change("backend", backend), &format!("{path}.backend.service.port.number"));
    check(&|value| value["spec"]["tls"] = json!([{"hosts": ["*"]}]), "spec.tls[0].hosts[0]");
    check(&|value| value["spec"]["tls"] = json!([{"secretName": "A"}]), "spec.tls[0].secretName");
    let annotation = |value: &mut Value| value["metadata"]["annotations"] = json!({"a": true});
    check(&annotation, "metadata.annotations.a");
}

#[test]
fn a_backend_that_is_no_service_is_left_out_with_a_word() {
    let mut spec = spec("/", "Prefix");
    let bucket = json!({"path": "/b", "pathType": "Prefix",
        "backend": {"resource": {"apiGroup": "x.example", "kind": "Bucket", "name": "b"}}});
    spec["rules"][0]["http"]["paths"].as_array_mut().unwrap().push(bucket);
    let (made, problems) = only(ingress(json!({}), spec));
    assert_eq!(made["rules"][0]["paths"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        problems,
        ["warning: Ingress shop/web: spec.rules[0].http.paths[1].backend.resource: not served: a \
          Bucket is not supported, only Services"]
    );
}

#[test]
fn paths_that_are_expressions_are_checked() {
    let nginx = |name: &str| format!("{PREFIX}{name}");
    let of = |annotations: Value, path: &str| {
        let (made, problems) = only(ingress(annotations, spec(path, "ImplementationSpecific")));
        (made["rules"][0]["paths"][0]["path"].clone(), problems)
    };
    let rewrite = json!({nginx("rewrite-target"): "/$2"});
    assert_eq!(of(rewrite.clone(), "/a(/|$)(.*)"), ("/a(/|$)(.*)".into(), Vec::new()));
    assert_eq!(of(json!({nginx("use-regex"): "true"}), "a|b"), ("a|b".into(), Vec::new()));
    let (path, problems) = of(rewrite, "/(?!a)");
    assert_eq!(path, "/(?!a)", "it is for gateways to keep what it may be for");
    let text = problems.concat();
    assert!(text.contains("no expression") && text.contains("never good"), "{problems:?}");
    assert!(of(json!({}), "a").1.concat().contains("does not begin with /"));
}

#[test]
fn only_ingresses_of_our_classes_are_served() {
    let own = || Settings::default();
    let nginx = || Settings { controllers: vec![NGINX.to_owned()], ..own() };
    let all = || Settings { without_class: true, ..nginx() };
    let check = |settings: Settings,
                 class: Option<&str>,
                 classes: &[(&str, &str, bool)],
                 expected: Value| {
        for by_annotation in [false, true] {
            let mut live = live();
            live.adopt(settings.clone());
            for (name, controller, usual) in classes {
                let annotations = json!({"ingressclass.kubernetes.io/is-default-class": usual.to_string(),
                    "fairway.dev/gateway": "edge"});
                put(
                    &mut live,
                    json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
                    "metadata": {"name": name, "annotations": annotations}, "spec": {"controller": controller}}),
                );
            }
            let mut value = ingress(json!({}), spec("/", "Prefix"));
            match class {
                Some(class) if by_annotation => {
                    value["metadata"]["annotations"]["kubernetes.io/ingress.class"] = class.into();
                }
                Some(class) => value["spec"]["ingressClassName"] = class.into(),
                None => {}
            }
            // What is not ours names nothing, and nothing in it is wrong.
            value["spec"]["tls"] = json!([{"secretName": "web"}]);
            value["metadata"]["annotations"][format!("{PREFIX}auth-type")] = "digest".into();
            put(&mut live, value.clone());
            let (model, problems) = live.model();
            let served = !expected.is_null();
            assert_eq!(problems.is_empty(), !served, "{class:?} {problems:?}");
            value["metadata"]["annotations"]
                .as_object_mut()
                .unwrap()
                .remove(&format!("{PREFIX}auth-type"));
            let denied = model.ingresses.values().filter(|ingress| ingress.denied).count();
            assert_eq!((denied, model.ingresses.len()), (usize::from(served), denied));
            put(&mut live, value);
            let (made, _) = made(&mut live);
            let secrets = live.wanted().iter().filter(|id| id.kind == Kind::Secret).count();
            assert_eq!(secrets, usize::from(served), "{class:?}");
            let found =
                if made.is_null() { Value::Null } else { json!([made["nginx"], made["gateway"]]) };
            assert_eq!(found, expected, "{settings:?} {class:?} {classes:?}");
        }
    };
    let plain = || json!([null, null]);
    check(own(), Some("fairway"), &[], plain());
    check(own(), Some("mine"), &[("mine", CONTROLLER, false)], json!([null, "edge"]));
    check(own(), Some("fairway"), &[("fairway", "other.example/x", false)], Value::Null);
    check(own(), Some("nginx"), &[], Value::Null);
    check(own(), Some("nginx"), &[("nginx", NGINX, false)], Value::Null);
    check(own(), None, &[], Value::Null);
    check(own(), None, &[("mine", CONTROLLER, true)], Value::Null);
    check(nginx(), Some("nginx"), &[], json!([true, null]));
    check(nginx(), Some("web"), &[("web", NGINX, false)], json!([true, "edge"]));
    check(nginx(), Some("nginx"), &[("nginx", "nginx.org/ingress-controller", false)], Value::Null);
    check(nginx(), Some("traefik"), &[], Value::Null);
    check(all(), None, &[], plain());
    check(all(), None, &[("mine", CONTROLLER, false), ("web", NGINX, true)], json!([true, "edge"]));
    check(all(), None, &[("other", "other.example/x", true)], Value::Null);
}

#[test]
fn habits_of_ingress_nginx_can_be_switched() {
    let of = |class: &str, said: &str| {
        let annotations =
            json!({"kubernetes.io/ingress.class": class, "fairway.dev/nginx-paths": said});
        let (made, problems) = only(ingress(annotations, spec("/", "Prefix")));
        (made["nginx"] == true, problems.len())
    };
    for (class, usual) in [("nginx", true), ("fairway", false)] {
        assert_eq!(of(class, "true"), (true, 0));
        assert_eq!(of(class, "false"), (false, 0));
        assert_eq!(of(class, "maybe"), (usual, 1));
    }
}

#[test]
fn who_is_to_be_kept_out_is_kept_out() {
    let mut live = live();
    let allow = |ranges: &str| {
        ingress(json!({format!("{PREFIX}allowlist-source-range"): ranges}), spec("/", "Prefix"))
    };
    put(&mut live, allow("10.0.0.0/99"));
    // Gateways know its paths, so that these are nobody else's.
    let (denied, problems) = made(&mut live);
    assert_eq!((&denied["denied"], problems.len()), (&json!(true), 2), "{problems:?}");
    assert_eq!(denied["rules"][0]["paths"][0]["path"], "/");
    assert_eq!(denied["options"], Value::Null);
    put(&mut live, allow("10.0.0.0/8"));
    let (good, problems) = made(&mut live);
    assert_eq!((&good["options"]["allow"], problems.len()), (&json!(["10.0.0.0/8"]), 0));
    put(&mut live, allow("10.0.0.0/99"));
    let (kept, problems) = made(&mut live);
    assert_eq!((kept, problems.len()), (good, 1), "{problems:?}");
    // It is gone when it is gone.
    live.remove(&ObjectId { kind: Kind::Ingress, name: ObjectName::new("shop", "web") });
    assert_eq!(made(&mut live), (Value::Null, Vec::new()));
}

#[test]
fn an_ingress_that_was_never_good_follows_what_is_said_of_its_paths() {
    let mut live = live();
    let with = |name: &str, value: &str, path: &str| {
        let mut annotations = json!({format!("{PREFIX}{name}"): value});
        annotations[format!("{PREFIX}server-alias")] = "b.example".into();
        ingress(annotations, spec(path, "Prefix"))
    };
    for path in ["/admin", "/private"] {
        put(&mut live, with("denylist-source-range", "x", path));
        let (denied, _) = made(&mut live);
        assert_eq!(
            (&denied["denied"], &denied["rules"][0]["paths"][0]["path"]),
            (&json!(true), &json!(path))
        );
        assert_eq!(denied["options"], json!({"serverAliases": ["b.example"]}));
    }
    // Certificates would be asked for at the whole host.
    put(&mut live, with("auth-tls-secret", "not a name", "/"));
    let (denied, _) = made(&mut live);
    assert_eq!(denied["options"]["clientTls"]["secret"]["name"], "(unreadable)");
    // What it would take of another Ingress' requests, that one has.
    let canary =
        json!({format!("{PREFIX}denylist-source-range"): "x", format!("{PREFIX}canary"): "true"});
    put(&mut live, ingress(canary, spec("/", "Prefix")));
    assert_eq!(made(&mut live).0, Value::Null);
}

/// Who is kept out by the gateways' settings is kept out until these say otherwise.
#[test]
fn settings_that_cannot_be_had_let_nobody_in() {
    let (mut live, id) = (unheard(), settings());
    let check = |live: &mut Live, denied: &[&str], problem: &str| {
        let (model, problems) = live.model();
        let gateway = model.gateways.values().next();
        let found = gateway.map(|gateway| gateway.options.deny.clone()).unwrap_or_default();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), denied);
        let text: String = problems.iter().map(ToString::to_string).collect();
        assert!(text.contains(problem) && text.is_empty() == problem.is_empty(), "{text}");
    };
    let own = json!({format!("{PREFIX}denylist-source-range"): "192.0.2.0/24"});
    put(&mut live, ingress(own, spec("/", "Prefix")));
    let all = ["0.0.0.0/0", "::/0"];
    check(&mut live, &all, "it was never read");
    let own = |live: &mut Live| {
        let (model, _) = live.model();
        let deny = model.ingresses.values().next().unwrap().options.deny.clone();
        deny.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(own(&mut live), all, "also where the Ingress has a list of its own");
    let says = |data: Value| {
        let map = json!({"metadata": {"name": "fairway-gateway", "namespace": "kube-system"}, "data": data});
        Some(read(Kind::ConfigMap, map).unwrap())
    };
    live.put_named(&id, None);
    check(&mut live, &[], "");
    assert_eq!(own(&mut live), ["192.0.2.0/24"]);
    live.put_named(&id, says(json!({"global-auth-url": "http://auth.test/"})));
    check(&mut live, &all, "all are until it is gone");
    assert_eq!(own(&mut live), all);
    live.put_named(&id, says(json!({"denylist-source-range": "10.0.0.0/8"})));
    check(&mut live, &["10.0.0.0/8"], "");
    live.put_named(&id, None);
    check(&mut live, &["10.0.0.0/8"], "it is gone");
    live.put_named(&id, says(json!({})));
    live.model();
    live.put_named(&id, None);
    check(&mut live, &[], "");
}

#[test]
fn secrets_are_those_that_are_named_and_good() {
    let mut live = live();
    let mut with_tls = spec("/", "Prefix");
    with_tls["tls"] = json!([{"hosts": ["a.example"], "secretName": "web"}]);
    put(&mut live, ingress(json!({}), with_tls));
    let mut check = |secret: Option<Value>, certificate: Option<&str>, wrong: &str| {
        put_named(&mut live, "web", secret);
        let (model, problems) = live.model();
        let name = ObjectName::new("shop", "web");
        let made = model.secrets.get(&name);
        assert_eq!(made.and_then(|made| made.certificate.as_deref()), certificate, "{wrong}");
        assert_eq!(model.ingresses.len(), 1, "plain HTTP goes on");
        let text: Vec<_> = problems.iter().map(ToString::to_string).collect();
        match wrong {
            "" => assert_eq!(text, [""; 0]),
            wrong => {
                assert!(text.len() == 1 && text[0].contains(wrong), "{text:?}");
                assert!(text[0].contains("Ingress shop/web: spec.tls[0].secretName: "), "{text:?}");
            }
        }
        let shown = format!("{model:?} {text:?}");
        assert!(!shown.contains("PRIVATE KEY"), "{shown}");
    };
    let tls = "kubernetes.io/tls";
    let (first, first_key) = certificate("a.example");
    let (second, second_key) = certificate("a.example");
    let pair = |certificate: &str, key: &str| json!({"tls.crt": certificate, "tls.key": key, "other": "not for us"});
    check(None, None, "there is no Secret shop/web");
    check(Some(secret(tls, pair(&first, "nonsense"))), None, "no private key");
    check(Some(secret(tls, pair(&first, &first_key))), Some(&first), "");
    check(
        Some(secret(tls, pair(&second, &first_key))),
        Some(&first),
        "not the key of the certificate",
    );
    check(Some(secret("other.example/x", pair(&second, &second_key))), Some(&first), "its type");
    check(
        Some(secret(tls, json!({"tls.crt": second}))),
        Some(&first),
        "tls.key is not there; what it had",
    );
    check(None, Some(&first), "there is no Secret shop/web; what it had before stays");
    check(Some(secret("Opaque", pair(&second, &second_key))), Some(&second), "");
}

#[test]
fn users_and_authorities_come_from_secrets() {
    let (ca, key) = certificate("ca");
    let nginx = |name: &str| format!("{PREFIX}{name}");
    let of = |annotations: Value, data: Value| {
        let mut live = live();
        put(&mut live, ingress(annotations, spec("/", "Prefix")));
        live.model();
        put_named(&mut live, "web", Some(secret("Opaque", data)));
        let (model, problems) = live.model();
        let made = model.secrets.values().next().cloned().unwrap_or_default();
        let users = made.users.map(|users| users.reveal().to_owned());
        (users, made.ca, made.certificate, problems.len())
    };
    let basic = |kind: &str| json!({nginx("auth-type"): "basic", nginx("auth-secret"): "web", nginx("auth-secret-type"): kind});
    let file = "# who\na:$apr1$x\n\nb:$2y$05$y\n";
    let lines = Some("a:$apr1$x\nb:$2y$05$y\n".to_owned());
    assert_eq!(of(basic("auth-file"), json!({"auth": file})), (lines.clone(), None, None, 0));
    let map = json!({"a": "$apr1$x", "b": "$2y$05$y"});
    assert_eq!(of(basic("auth-map"), map), (lines, None, None, 0));
    assert_eq!(of(basic("auth-file"), json!({"auth": "password"})).3, 1);
    let client = json!({nginx("auth-tls-secret"): "shop/web"});
    let pair = json!({"ca.crt": ca, "tls.crt": ca, "tls.key": key});
    assert_eq!(of(client.clone(), pair.clone()), (None, Some(ca.clone()), None, 0));
    assert_eq!(of(client, json!({"tls.crt": ca})).3, 1);
    let backend = json!({nginx("proxy-ssl-secret"): "shop/web"});
    assert_eq!(of(backend.clone(), pair), (None, Some(ca.clone()), Some(ca.clone()), 0));
    assert_eq!(of(backend, json!({"ca.crt": ca})), (None, Some(ca.clone()), None, 0));
}

#[test]
fn other_objects_that_annotations_name_are_looked_up() {
    let nginx = |name: &str| format!("{PREFIX}{name}");
    let mut live = live();
    let annotations =
        json!({nginx("default-backend"): "errors", nginx("custom-headers"): "shop/h"});
    put(&mut live, ingress(annotations, spec("/", "Prefix")));
    let (_, problems) = made(&mut live);
    assert!(problems.len() == 1 && problems[0].contains("no Service errors"), "{problems:?}");
    put(
        &mut live,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "errors", "namespace": "shop"},
        "spec": {"clusterIP": "None", "ports": [{"port": 8080}]}}),
    );
    let id = ObjectId { kind: Kind::ConfigMap, name: ObjectName::new("shop", "h") };
    assert!(live.wanted().contains(&id));
    let map = json!({"metadata": {"name": "h", "namespace": "shop"},
        "data": {"X-Frame-Options": "DENY", "Connection": "close"}});
    live.put_named(&id, Some(read(Kind::ConfigMap, map).unwrap()));
    let (made, problems) = made(&mut live);
    assert_eq!(
        made["options"],
        json!({"defaultBackend": {"service": "errors", "port": 8080},
            "responseHeaders": [["X-Frame-Options", "DENY"]]})
    );
    assert!(problems.len() == 1 && problems[0].contains("Connection"), "{problems:?}");
}

#[test]
fn an_ingress_is_made_again_only_when_it_changes() {
    let mut objects = Objects::default();
    let decode = |value: Value| crate::decode::decode(Kind::Ingress, value).unwrap();
    let value = ingress(json!({}), spec("/", "Prefix"));
    objects.insert(ObjectName::new("shop", "web"), decode(value));
    let mut ingresses = Ingresses::default();
    let mut convert = |objects: &Objects| {
        let mut model = Model::default();
        ingresses.convert(objects, &mut model);
        Arc::clone(model.ingresses.get_shared(&ObjectName::new("shop", "web")).unwrap())
    };
    let first = convert(&objects);
    assert!(Arc::ptr_eq(&first, &convert(&objects)));
    let value = ingress(json!({format!("{PREFIX}use-regex"): "true"}), spec("/", "Prefix"));
    objects.insert(ObjectName::new("shop", "web"), decode(value));
    assert!(convert(&objects).options.use_regex);
}

/// Tutorials of their time.
#[test]
fn tutorials_are_served() {
    let (made, problems) =
        only(json!({"apiVersion": "networking.k8s.io/v1beta1", "kind": "Ingress",
        "metadata": {"name": "nginx-ingress", "namespace": "shop",
            "annotations": {"kubernetes.io/ingress.class": "nginx"}},
        "spec": {"rules": [{"host": "nginx.example.com", "http": {"paths": [
            {"path": "", "backend": {"serviceName": "nginx", "servicePort": 80}}]}}]}}));
    assert_eq!(problems, [""; 0]);
    assert_eq!(
        made["rules"][0]["paths"],
        json!([{"path": "/", "type": "ImplementationSpecific",
        "backend": {"service": "nginx", "port": 80}}])
    );

    let (certificate, key) = certificate("tomcat.example.com");
    let mut live = live();
    put(
        &mut live,
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "tomcat", "namespace": "shop"},
        "spec": {"ingressClassName": "nginx",
            "tls": [{"hosts": ["tomcat.example.com"], "secretName": "web"}],
            "rules": [{"host": "tomcat.example.com", "http": {"paths": [{"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "tomcat", "port": {"name": "http"}}}}]}}]}}),
    );
    live.model();
    let data = json!({"tls.crt": certificate, "tls.key": key});
    put_named(&mut live, "web", Some(secret("kubernetes.io/tls", data)));
    let (model, problems) = live.model();
    assert_eq!((problems, model.secrets.len()), (Vec::new(), 1));
    let made = model.ingresses.values().next().unwrap();
    assert_eq!(made.rules[0].paths[0].backend.port, BackendPort::Name("http".to_owned()));
}

#[test]
fn owners_are_told_of_paths_that_the_same_gateway_has_and_of_nothing_that_is_not_needed() {
    let mut live = live();
    for name in ["inner", "outer"] {
        let metadata = json!({"name": name, "annotations": {"fairway.dev/gateway": name}});
        put(
            &mut live,
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": metadata,
                "spec": {"controller": CONTROLLER}}),
        );
    }
    let annotations = json!({format!("{PREFIX}proxy-buffers-number"): "4"});
    let mut put_one = |name: &str, class: Option<&str>| {
        let mut value = ingress(annotations.clone(), spec("/", "Prefix"));
        value["metadata"]["name"] = name.into();
        value["spec"]["ingressClassName"] = class.into();
        put(&mut live, value);
        let (_, problems) = live.model();
        assert!(problems.iter().any(|one| one.to_string().contains("changes nothing here")));
        let notices = live.notices(&BTreeSet::new());
        let contested = notices.iter().filter(|notice| notice.reason == Reason::PathTaken);
        let contested = contested.map(|notice| notice.object.name.name.clone()).collect::<Vec<_>>();
        let others = |notice: &&Notice| notice.reason == Reason::AnnotationIgnored;
        assert_eq!(notices.iter().find(others), None);
        contested
    };
    assert_eq!(put_one("b", Some("inner")), [""; 0]);
    assert_eq!(put_one("c", Some("outer")), [""; 0], "nobody has both");
    assert_eq!(put_one("d", Some("outer")), ["d"]);
    assert_eq!(put_one("e", None), ["d", "e"], "of all gateways");
    assert_eq!(put_one("a", None), ["b", "c", "d", "e"]);
}
