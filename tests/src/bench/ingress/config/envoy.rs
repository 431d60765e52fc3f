//! Envoy: listeners and a cluster that stay, and routes that it reads again when their file is replaced.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::Files;
use crate::bench::ingress::proxy::Site;

pub(in crate::bench::ingress) fn prepare(
    files: &Files,
    site: &Site,
    hosts: &[String],
    command: &mut Command,
) -> Result<()> {
    const TLS: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    files.write("tls.crt", &site.certificate)?;
    files.write("tls.key", &site.key)?;
    let tls = json!({"name": "envoy.transport_sockets.tls", "typed_config": {"@type": TLS,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{"certificate_chain": {"filename": files.text("tls.crt")},
                "private_key": {"filename": files.text("tls.key")}}]}}});
    let mut https = listener(files, "https", files.ports.https);
    https["filter_chains"][0]["transport_socket"] = tls;
    // As if there were no limits.
    let most = 1_000_000;
    let limits =
        json!({"max_connections": most, "max_pending_requests": most, "max_requests": most});
    let endpoint = json!({"endpoint": {"address": address(site.backend)}});
    let cluster = json!({"name": "web", "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": "web", "endpoints": [{"lb_endpoints": [endpoint]}]}});
    let main = json!({"node": {"id": "bench", "cluster": "bench"},
        "static_resources": {
            "listeners": [listener(files, "http", files.ports.http), https],
            "clusters": [cluster]}});
    files.write("envoy.json", &main.to_string())?;
    write_hosts(files, hosts)?;
    command.args(["-c", &files.text("envoy.json"), "--concurrency", "1", "--disable-hot-restart"]);
    command.args(["--log-level", "error"]);
    Ok(())
}

pub(in crate::bench::ingress) fn write_hosts(files: &Files, hosts: &[String]) -> Result<()> {
    const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    let hosts = hosts.iter().map(|host| {
        json!({"name": host, "domains": [host], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "web", "timeout": "0s"}}]})
    });
    let hosts: Vec<Value> = hosts.collect();
    let routes = json!({"@type": ROUTES, "name": "routes", "virtual_hosts": hosts});
    files.write("routes.json", &json!({"resources": [routes]}).to_string())
}

fn listener(files: &Files, name: &str, at: SocketAddr) -> Value {
    const MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let manager = json!({"@type": MANAGER, "stat_prefix": name, "use_remote_address": true,
        "stream_idle_timeout": "0s", "upgrade_configs": [{"upgrade_type": "websocket"}],
        "rds": {"route_config_name": "routes", "config_source": {"resource_api_version": "V3",
            "path_config_source": {"path": files.text("routes.json")}}},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}]});
    json!({"name": name, "address": address(at), "tcp_backlog_size": 4096, "filter_chains": [
        {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]})
}

fn address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip(), "port_value": at.port()}})
}
