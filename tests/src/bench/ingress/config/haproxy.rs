//! HAProxy: a map from hosts to backends, as controllers write it; a change is a reload.

use std::process::Command;

use anyhow::Result;

use super::Files;
use crate::bench::ingress::proxy::Site;

const MAIN: &str = "
global
    nbthread 1
    maxconn 16384
    no strict-limits
    ssl-default-bind-options ssl-min-ver TLSv1.3

defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    timeout http-keep-alive 300s
    timeout tunnel 300s
    http-reuse always
    option forwardfor
    option splice-auto

frontend web
    bind HTTP backlog 4096
    bind SECURE backlog 4096 ssl crt FOLDER/tls.pem alpn h2,http/1.1
    http-request set-header X-Request-ID %[uuid]
    http-request set-header X-Real-IP %[src]
    http-request set-header X-Forwarded-Proto https if { ssl_fc }
    http-request set-header X-Forwarded-Proto http if !{ ssl_fc }
    use_backend %[req.hdr(host),lower,map_str(FOLDER/hosts,nobody)]

backend web
    server web BACKEND

backend nobody
    http-request return status 404
";

pub(in crate::bench::ingress) fn prepare(
    files: &Files,
    site: &Site,
    hosts: &[String],
    command: &mut Command,
) -> Result<()> {
    files.write("tls.pem", &format!("{}{}", site.certificate, site.key))?;
    let main = MAIN
        .replace("FOLDER", &files.folder.display().to_string())
        .replace("BACKEND", &site.backend.to_string())
        .replace("HTTP", &files.ports.http.to_string())
        .replace("SECURE", &files.ports.https.to_string());
    files.write("haproxy.cfg", &main)?;
    write_hosts(files, hosts)?;
    command.args(["-W", "-f", &files.text("haproxy.cfg")]);
    Ok(())
}

pub(in crate::bench::ingress) fn write_hosts(files: &Files, hosts: &[String]) -> Result<()> {
    let text: String = hosts.iter().map(|host| format!("{host} web\n")).collect();
    files.write("hosts", &text)
}
