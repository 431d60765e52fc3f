//! nginx: a `server` a host, as controllers write it; a change is a reload.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Result;

use super::Files;
use crate::bench::ingress::HOST;
use crate::bench::ingress::proxy::Site;

const MAIN: &str = "
daemon off;
worker_processes 1;
pid FOLDER/pid;
error_log FOLDER/log warn;

events {
    worker_connections 16384;
    multi_accept on;
}

http {
    access_log off;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    server_names_hash_max_size 65536;
    server_names_hash_bucket_size 128;
    server_tokens off;
    tcp_nodelay on;

    keepalive_timeout 300;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 64k;

    ssl_protocols TLSv1.3;
    ssl_session_tickets on;
    ssl_buffer_size 16k;

    upstream web {
        server BACKEND;
        keepalive 512;
        keepalive_requests 1000000000;
        keepalive_timeout 300;
    }
    # No header where nothing is upgraded, so that connections are kept.
    map $http_upgrade $upgrade {
        default upgrade;
        '' '';
    }
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffers 16 16k;
    proxy_max_temp_file_size 0;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $upgrade;
    proxy_set_header X-Request-ID $request_id;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;

    server {
        listen HTTP default_server reuseport backlog=4096;
        listen SECURE default_server ssl http2 reuseport backlog=4096;
        include FOLDER/tls.conf;
        return 404;
    }
    include FOLDER/hosts;
}
";

pub(in crate::bench::ingress) fn prepare(
    files: &Files,
    site: &Site,
    hosts: &[String],
    command: &mut Command,
) -> Result<()> {
    files.write("tls.crt", &site.certificate)?;
    files.write("tls.key", &site.key)?;
    let (certificate, key) = (files.text("tls.crt"), files.text("tls.key"));
    let tls = format!("ssl_certificate {certificate};\nssl_certificate_key {key};\n");
    files.write("tls.conf", &tls)?;
    let main = MAIN
        .replace("FOLDER", &files.folder.display().to_string())
        .replace("BACKEND", &site.backend.to_string())
        .replace("HTTP", &files.ports.http.to_string())
        .replace("SECURE", &files.ports.https.to_string());
    files.write("nginx.conf", &main)?;
    write_hosts(files, hosts)?;
    command.args(["-c", &files.text("nginx.conf"), "-e", &files.text("log")]);
    Ok(())
}

pub(in crate::bench::ingress) fn write_hosts(files: &Files, hosts: &[String]) -> Result<()> {
    let (http, https) = (files.ports.http, files.ports.https);
    let mut text = String::new();
    for host in hosts {
        // Each server that is told of a certificate reads it for itself.
        let tls = match host.as_str() {
            HOST => format!("listen {https} ssl http2; include {}; ", files.text("tls.conf")),
            _ => String::new(),
        };
        writeln!(
            text,
            "server {{ listen {http}; {tls}server_name {host}; \
             location / {{ proxy_pass http://web; }} }}"
        )?;
    }
    files.write("hosts", &text)
}
