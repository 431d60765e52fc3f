//! What owners of Ingresses are told by Events, by whom, and how often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fairway_controlplane::kubernetes::{Kind, ObjectId};
use fairway_controlplane::notices::{Notice, Notices, Reason};
use fairway_kubernetes::connect::Connect;
use fairway_kubernetes::events;
use fairway_kubernetes::status;
use fairway_model::ObjectName;
use fairway_tests::apiserver::{ApiServer, What};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::leader::{Replica, renewals, until};
use super::{fail, shop};

/// Quick, so that tests are; but what was said is not said again.
pub(super) fn quickly(name: &str) -> events::Options {
    let (grace, pause) = (Duration::from_millis(5), Duration::from_millis(1));
    events::Options { grace, pause, first_pause: pause, ..events::Options::new(name.to_owned()) }
}

fn events(server: &ApiServer) -> Vec<Value> {
    let objects = server.objects().into_iter();
    objects.filter(|object| object["kind"] == "Event").collect()
}

/// Who leads goes on leading, however slow the machine is.
fn patiently(options: &mut status::Options) {
    options.lease.duration = Duration::from_secs(60);
}

/// `TYPE REASON NAME: NOTE` of each, sorted.
fn told(server: &ApiServer) -> Vec<String> {
    let text = |event: &Value| {
        let [kind, reason, note] =
            ["type", "reason", "note"].map(|field| event[field].as_str().unwrap().to_owned());
        let regarding = &event["regarding"];
        let object = server.get("Ingress", "shop", regarding["name"].as_str().unwrap());
        let uid = object.map_or(Value::Null, |object| object["metadata"]["uid"].clone());
        assert_eq!(regarding["uid"], uid, "kubectl looks for it");
        format!("{kind} {reason} {}: {note}", regarding["name"].as_str().unwrap())
    };
    let mut all: Vec<_> = events(server).iter().map(text).collect();
    all.sort();
    all
}

/// An Ingress of a host, made in that second, with a path `/` to port 80 of a Service of that name.
fn ingress(second: u8, name: &str, host: &str, service: &str, annotations: Value) -> Value {
    let annotations = annotations
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (format!("nginx.ingress.kubernetes.io/{name}"), value.clone()));
    let backend = json!({"service": {"name": service, "port": {"number": 80}}});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": format!("2026-01-01T00:00:0{second}Z"),
            "annotations": annotations.collect::<serde_json::Map<_, _>>()},
        "spec": {"ingressClassName": "fairway", "rules": [{"host": host, "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": backend}]}}]}})
}

#[tokio::test]
async fn owners_are_told_what_is_wrong_until_it_is_mended() {
    let server = ApiServer::start().await.unwrap();
    shop(&server);
    let allowed = |range: &str| json!({"whitelist-source-range": range});
    server.put(ingress(1, "a", "a.example", "web", json!({})));
    server.put(ingress(
        2,
        "b",
        "a.example",
        "web",
        json!({"server-snippet": "deny all;", "unheard-of": "1"}),
    ));
    server.put(ingress(1, "c", "c.example", "gone", json!({})));
    server.put(ingress(1, "d", "d.example", "web", allowed("10.0.0.0/99")));
    let mut with_tls = ingress(1, "e", "e.example", "web", json!({}));
    with_tls["spec"]["tls"] = json!([{"hosts": ["e.example"], "secretName": "cert"}]);
    server.put(with_tls);
    let mut foreign = ingress(1, "f", "f.example", "gone", json!({"unheard-of": "1"}));
    foreign["spec"]["ingressClassName"] = "other".into();
    server.put(foreign);
    // The namespace does not let it be read.
    server.fail(fail("watch", "secrets", 1_000_000, What::Refuse(403, "Forbidden")));

    let mut first = Replica::new(&server, "first", patiently).await;
    first.comes_to(true).await;
    let annotation = "metadata.annotations.nginx.ingress.kubernetes.io/";
    let snippet = "server-snippet: not supported: raw configuration of nginx could be anything; use the \
                   annotation for what it does";
    let expected = [
        format!("Warning AnnotationIgnored b: {annotation}{snippet}"),
        format!("Warning AnnotationIgnored b: {annotation}unheard-of: no such annotation is known here; it is ignored"),
        "Warning BackendUnknown c: spec.rules[0].http.paths[0].backend.service.name: there is no Service shop/gone"
            .to_owned(),
        "Warning Denied d: it was never good, and is not served until it is".to_owned(),
        "Warning PathTaken b: spec.rules[0].http.paths[0].path: Ingress shop/a has the same host and path, and goes \
         before: it is older or, of one age, the first by name"
            .to_owned(),
        format!("Warning Refused d: {annotation}whitelist-source-range: \"10.0.0.0/99\" is neither a range such as \
                 10.0.0.0/8 nor an address; it keeps somebody out, so that the Ingress is not served without it"),
        "Warning SecretUnusable e: spec.tls[0].secretName: the control plane may not read Secret shop/cert: the \
         namespace has to allow it (list and watch)"
            .to_owned(),
    ];
    until(&server, "all is told", |server| told(server) == expected).await;

    // Another leader finds that it was said.
    let before = events(&server);
    first.stop().await;
    let mut second = Replica::new(&server, "second", patiently).await;
    second.comes_to(true).await;
    let asked = |server: &ApiServer, verb: &str| {
        server
            .asked()
            .iter()
            .filter(|asked| asked.verb == verb && asked.resource == "events")
            .count()
    };
    let all = expected.len();
    until(&server, "it has tried all", |server| asked(server, "patch") == all).await;
    let renewed = renewals(&server);
    until(&server, "time passes", |server| renewals(server) > renewed + 4).await;
    assert_eq!(
        (events(&server), asked(&server, "create"), asked(&server, "patch")),
        (before, 2 * all, all)
    );

    // What is mended is told to be, once; what is gone is not.
    server.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gone", "namespace": "shop"},
        "spec": {"ports": [{"port": 80}]}}));
    server.put(ingress(1, "d", "d.example", "web", allowed("10.0.0.0/8")));
    server.delete("Ingress", "shop", "b");
    let well = |server: &ApiServer| {
        let well = events(server).into_iter().filter(|event| event["type"] == "Normal");
        let well = well.map(|event| event["regarding"]["name"].as_str().unwrap().to_owned());
        well.collect::<Vec<_>>()
    };
    until(&server, "two are well", |server| well(server) == ["c", "d"]).await;
    let renewed = renewals(&server);
    until(&server, "time passes", |server| renewals(server) > renewed + 4).await;
    assert_eq!(
        (well(&server), asked(&server, "create")),
        (vec!["c".into(), "d".into()], 2 * all + 2)
    );
}

#[tokio::test]
async fn refusals_hold_nobody_up_and_what_holds_is_counted() {
    let server = ApiServer::start().await.unwrap();
    let connect = Connect { server: Some(server.url()), ..Connect::default() };
    let client = connect.client().await.unwrap();
    let notice = |name: &str| {
        let object = ObjectId { kind: Kind::Ingress, name: ObjectName::new("shop", name) };
        let (uid, note) = (String::new(), "it is so".to_owned());
        Notice { object, uid, reason: Reason::BackendUnknown, note }
    };
    let both = Notices::from([notice("a"), notice("b")]);
    let (_notices, receiver) = watch::channel(Arc::new(both));
    let (leads, leading) = watch::channel(false);
    server.fail(fail("create", "events", 3, What::Refuse(403, "Forbidden")));
    let again = Duration::from_millis(5);
    let options = events::Options { again, refresh: again, ..quickly("me") };
    let _herald = events::start(client, receiver, leading, options);
    server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    assert_eq!(server.asked(), [], "it does not lead");
    leads.send_replace(true);
    let counts = |server: &ApiServer| {
        let counts = events(server).into_iter().map(|event| {
            let name = event["regarding"]["name"].as_str().unwrap().to_owned();
            (name, event["series"]["count"].as_u64().unwrap_or(1))
        });
        counts.collect::<BTreeMap<_, _>>()
    };
    let often =
        |server: &ApiServer| counts(server).values().filter(|count| **count > 3).count() == 2;
    until(&server, "both are counted", often).await;
    // One whose time is over is made again.
    let name = events(&server)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    server.delete("Event", "shop", &name);
    until(&server, "it is there again", |server| server.get("Event", "shop", &name).is_some())
        .await;
    assert_eq!(server.faults_left(), 0);
}
