//! Manifests: a Service with one endpoint, a Secret, and an Ingress a host.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::Files;
use crate::bench::ingress::HOST;
use crate::bench::ingress::proxy::{Site, free_address};

pub(in crate::bench::ingress) fn prepare(
    files: &Files,
    site: &Site,
    hosts: &[String],
    command: &mut Command,
) -> Result<()> {
    write_manifests(files, site, hosts)?;
    command.args(["run", "--manifests", &files.text("manifests")]);
    serve(files, command)
}

/// With a control plane, whose arguments are returned.
pub(in crate::bench::ingress) fn prepare_feed(
    files: &Files,
    site: &Site,
    hosts: &[String],
    command: &mut Command,
) -> Result<Vec<String>> {
    write_manifests(files, site, hosts)?;
    let (feed, manifests, state) =
        (free_address()?, files.text("manifests"), files.text("control"));
    prepare_follower(files, feed, command)?;
    let listen = feed.to_string();
    let arguments = ["run", "--manifests", &manifests, "--listen", &listen, "--state-dir", &state];
    Ok(arguments.map(str::to_owned).to_vec())
}

/// Of a control plane that is there.
pub(in crate::bench::ingress) fn prepare_follower(
    files: &Files,
    feed: SocketAddr,
    command: &mut Command,
) -> Result<()> {
    command.args(["run", "--feed", &format!("http://{feed}")]);
    serve(files, command)
}

fn serve(files: &Files, command: &mut Command) -> Result<()> {
    let listen = |address: SocketAddr| address.to_string();
    command.args(["--state-dir", &files.text("state"), "--admin", &listen(free_address()?)]);
    command.args(["--http", &listen(files.ports.http), "--https", &listen(files.ports.https)]);
    command.args(["--workers", "1", "--access-log", "off"]);
    command.args(["--drain-wait", "0", "--drain-timeout", "0"]);
    Ok(())
}

fn write_manifests(files: &Files, site: &Site, hosts: &[String]) -> Result<()> {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "tls", "namespace": "bench"},
        "stringData": {"tls.crt": site.certificate, "tls.key": site.key}});
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "bench"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "bench", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": site.backend.port()}],
        "endpoints": [{"addresses": [site.backend.ip()], "conditions": {"ready": true}}]});
    for (name, object) in [("secret", secret), ("service", service), ("slice", slice)] {
        files.write(&manifest(name), &object.to_string())?;
    }
    for host in hosts {
        write_host(files, host)?;
    }
    Ok(())
}

/// One Ingress comes, and another one goes.
pub(in crate::bench::ingress) fn change(
    files: &Files,
    changed: &str,
    gone: Option<&str>,
) -> Result<()> {
    write_host(files, changed)?;
    if let Some(gone) = gone {
        let path = files.path(&manifest(gone));
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn write_host(files: &Files, host: &str) -> Result<()> {
    files.write(&manifest(host), &ingress(host).to_string())
}

fn manifest(name: &str) -> String {
    format!("manifests/{name}.yaml")
}

fn ingress(host: &str) -> Value {
    let path = json!({"path": "/", "pathType": "Prefix",
        "backend": {"service": {"name": "web", "port": {"name": "http"}}}});
    let mut spec = json!({"ingressClassName": "fairway", "rules": [{"host": host, "http": {"paths": [path]}}]});
    if host == HOST {
        spec["tls"] = json!([{"hosts": [HOST], "secretName": "tls"}]);
    }
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": host, "namespace": "bench", "annotations": {
            "nginx.ingress.kubernetes.io/ssl-redirect": "false",
            "nginx.ingress.kubernetes.io/proxy-request-buffering": "off",
            "nginx.ingress.kubernetes.io/proxy-body-size": "0"}},
        "spec": spec})
}
