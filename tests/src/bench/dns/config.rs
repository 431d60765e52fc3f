//! What the other servers read: one thread each, nothing logged, and the same names and addresses as ours has.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::records::{Records, ZONE};
use super::server::Program;

/// Seconds that answers may be kept, as ours says.
const TTL: u32 = 5;

const KNOT: &str = "
server:
    listen: ADDRESS@PORT
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
    rundir: FOLDER
database:
    storage: FOLDER/db
log:
  - target: stderr
    any: warning
zone:
  - domain: ZONE
    file: FOLDER/records
    zonefile-sync: -1
    journal-content: none
";

/// Answers that are forwarded are not validated, as ours are not.
const UNBOUND: &str = "
server:
    interface: ADDRESS@PORT
    num-threads: 1
    do-daemonize: no
    username: \"\"
    chroot: \"\"
    directory: \"FOLDER\"
    pidfile: \"\"
    use-syslog: no
    verbosity: 0
    module-config: \"iterator\"
    access-control: 0.0.0.0/0 allow
    do-not-query-localhost: no
    msg-cache-size: 64m
    rrset-cache-size: 64m
    local-zone: \"ZONE.\" static
    include: \"FOLDER/records\"
forward-zone:
    name: \".\"
    forward-addr: UPSTREAM
remote-control:
    control-enable: no
";

const DNSMASQ: &str = "
port=PORT
listen-address=ADDRESS
bind-interfaces
keep-in-foreground
pid-file
user=root
no-resolv
no-hosts
addn-hosts=FOLDER/records
local=/ZONE/
local-ttl=5
server=UPSTREAM
cache-size=10000
dns-forward-max=10000
";

/// Writes the server's files, and what it is started with.
pub(super) fn prepare(
    program: Program,
    folder: &Path,
    address: SocketAddr,
    upstream: SocketAddr,
    records: Records,
    command: &mut Command,
) -> Result<()> {
    let file = folder.join("conf");
    let (text, separator) = match program {
        Program::Knot => (KNOT, '@'),
        Program::Unbound => (UNBOUND, '@'),
        Program::Dnsmasq => (DNSMASQ, '#'),
        Program::Fairway => {
            let number = |number: u32| number.to_string();
            command.args(["dns-server", "--listen", &address.to_string()]);
            command.args(["--upstream", &upstream.to_string()]);
            command.args(["--services", &number(records.services)]);
            command.args(["--headless", &number(records.headless)]);
            return Ok(());
        }
    };
    let upstream = format!("{}{separator}{}", upstream.ip(), upstream.port());
    let text = text
        .replace("ADDRESS", &address.ip().to_string())
        .replace("PORT", &address.port().to_string())
        .replace("FOLDER", &folder.display().to_string())
        .replace("ZONE", ZONE)
        .replace("UPSTREAM", &upstream);
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    let argument = match program {
        Program::Dnsmasq => format!("--conf-file={}", file.display()),
        _ => format!("-c{}", file.display()),
    };
    command.arg(argument);
    write(program, folder, records, 0)
}

/// Writes what the server knows after so many changes; a file takes the place of another at once.
pub(super) fn write(program: Program, folder: &Path, records: Records, changes: u32) -> Result<()> {
    let (new, file) = (folder.join("new"), folder.join("records"));
    let about = || format!("write {}", file.display());
    let mut out = BufWriter::new(fs::File::create(&new).with_context(about)?);
    let mut text = String::new();
    let serial = changes + 1;
    let soa = format!("SOA ns.dns.{ZONE}. hostmaster.{ZONE}. {serial} 7200 1800 86400 {TTL}");
    match program {
        Program::Fairway | Program::Dnsmasq => {}
        Program::Knot => {
            writeln!(
                text,
                "$TTL {TTL}\n{ZONE}. {soa}\n{ZONE}. NS ns.dns.{ZONE}.\nns.dns.{ZONE}. A 10.96.0.10"
            )?;
        }
        Program::Unbound => writeln!(text, "local-data: \"{ZONE}. {TTL} {soa}\"")?,
    }
    for (name, address) in records.addresses(changes) {
        match program {
            Program::Fairway => {}
            Program::Knot => writeln!(text, "{name}. A {address}")?,
            Program::Unbound => writeln!(text, "local-data: \"{name}. {TTL} A {address}\"")?,
            Program::Dnsmasq => writeln!(text, "{address} {name}")?,
        }
        if text.len() > 1 << 16 {
            out.write_all(text.as_bytes()).with_context(about)?;
            text.clear();
        }
    }
    out.write_all(text.as_bytes()).with_context(about)?;
    out.flush().with_context(about)?;
    fs::rename(&new, &file).with_context(about)
}
