//! What dashboards and alerts for ingress-nginx ask is there, under the names and with the labels that they know.

use std::collections::BTreeSet;

use fairway_model::Canary;

use crate::echo;
use crate::support::*;

/// Of a controller, in all of them.
const CONTROLLER: [&str; 3] = ["controller_class", "controller_namespace", "controller_pod"];
/// Of a request.
const REQUEST: [&str; 8] =
    ["canary", "host", "ingress", "method", "namespace", "path", "service", "status"];

/// Names behind `nginx_ingress_controller_`, and their labels. Those of the dashboards that come with ingress-nginx
/// ("NGINX Ingress controller", which is 9614 at grafana.com, and "Request Handling Performance") are first.
const ASKED: &[(&str, &[&[&str]])] = &[
    ("requests", &[&CONTROLLER, &REQUEST]),
    ("nginx_process_connections", &[&CONTROLLER, &["state"]]),
    ("success", &[&CONTROLLER]),
    ("config_hash", &[&CONTROLLER]),
    ("config_last_reload_successful", &[&CONTROLLER]),
    ("config_last_reload_successful_timestamp_seconds", &[&CONTROLLER]),
    ("request_size_sum", &[&CONTROLLER, &REQUEST]),
    ("response_size_sum", &[&CONTROLLER, &REQUEST]),
    ("nginx_process_resident_memory_bytes", &[&CONTROLLER]),
    ("nginx_process_cpu_seconds_total", &[&CONTROLLER]),
    ("request_duration_seconds_bucket", &[&CONTROLLER, &REQUEST, &["le"]]),
    ("ssl_expire_time_seconds", &[&["host"]]),
    ("request_duration_seconds_sum", &[&CONTROLLER, &REQUEST]),
    ("response_duration_seconds_bucket", &[&CONTROLLER, &REQUEST, &["le"]]),
    ("response_duration_seconds_sum", &[&CONTROLLER, &REQUEST]),
    ("response_duration_seconds_count", &[&CONTROLLER, &REQUEST]),
    ("bytes_sent_sum", &[&CONTROLLER, &REQUEST]),
    ("header_duration_seconds_sum", &[&CONTROLLER, &REQUEST]),
    ("orphan_ingress", &[&CONTROLLER, &["ingress", "namespace", "type"]]),
];

#[tokio::test]
async fn dashboards_for_ingress_nginx_find_what_they_ask() {
    let backend = backend(echo).await;
    let certificate = Certificate::new("a.example");
    let world = World::default()
        .service("web", &[backend.address])
        .tls("a.example", "web", &certificate)
        .service("next", &[backend.address])
        .ingress("a.example", "next", |ingress| {
            ingress.name.name = "canary".to_owned();
            ingress.options.canary = Some(Canary { weight: 100, ..Canary::default() });
        })
        .service("empty", &[])
        .host("empty.example", "empty")
        .host("gone.example", "gone");
    let gateway = gateway(&world).await;
    assert_eq!(ask(gateway.http, get("a.example", "/")).await.0, 200);
    assert_eq!(ask(gateway.http, get("empty.example", "/")).await.0, 503);
    let metrics = ask(gateway.admin, get("localhost", "/metrics")).await.1;
    let prefix = "nginx_ingress_controller_";
    for (name, labels) in ASKED {
        let begin = format!("{prefix}{name}{{");
        let mut lines = metrics.lines().filter(|line| line.starts_with(&begin));
        let has = |line: &str, label: &str| {
            line.contains(&format!("{{{label}=\"")) || line.contains(&format!(",{label}=\""))
        };
        let found =
            lines.any(|line| labels.iter().copied().flatten().all(|label| has(line, label)));
        assert!(found, "{name} with {labels:?}: {metrics}");
    }
    for line in [
        "canary=\"shop-next-80\",host=\"a.example\",ingress=\"canary\"",
        "ingress=\"empty.example\",namespace=\"shop\",type=\"no-endpoint\"} 1",
        "ingress=\"gone.example\",namespace=\"shop\",type=\"no-service\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    // As Prometheus reads it: what a metric is said to be comes once, and before its lines.
    let (mut kinds, mut about) = (BTreeSet::new(), "");
    for line in metrics.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            about = kind.split(' ').next().unwrap();
            assert!(kinds.insert(about), "{about} twice");
        } else if !line.starts_with('#') {
            assert!(line.starts_with(about), "{line} is not about {about}");
        }
    }
}
