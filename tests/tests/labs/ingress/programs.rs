//! Clients and servers that others have written, on both sides of the gateways.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fairway_model::ObjectName;
use fairway_tests::api::Target;
use serde_json::json;

use super::Site;

/// Debian's, which has the libraries.
const PYTHON: &str = "/usr/bin/python3";
/// Prints what is missing.
const LOOK: &str = "
for program in nginx nghttp h2load testssl; do command -v $program >/dev/null || echo $program; done
/usr/bin/python3 -c 'import grpc, h2, websockets' 2>/dev/null || echo libraries of Python";
/// The hosts of the site, whose certificates come from an authority of this name.
const HOSTS: [&str; 3] = ["files.example.com", "grpc.example.com", "ws.example.com"];
pub(super) const AUTHORITY: &str = "programs";
/// Seconds that a program may take.
const LIMIT: &str = "100";
pub(super) const MEBIBYTE: usize = 1 << 20;

/// The table of images for the pods of the site.
pub(super) fn images() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let table = std::fs::read_to_string(folder().join("images.yaml")).unwrap();
    std::fs::write(&file, table.replace("@programs@", folder().to_str().unwrap())).unwrap();
    file
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

/// All of it; where programs are missing it says so, fails in CI, and answers `false`.
pub(super) fn of_others_are_served(site: &Site) -> bool {
    let missing = Command::new("sh").args(["-c", LOOK]).output().unwrap();
    let missing = String::from_utf8(missing.stdout).unwrap();
    if !missing.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "missing: {missing}");
        eprintln!("NOT RUN: programs of others, of which some are missing: {missing}");
        return false;
    }
    site.give_certificate("shop", "programs-tls", AUTHORITY, &HOSTS);
    site.lab.apply_files(&[folder().join("site.yaml")]).unwrap();
    for app in ["files", "grpc", "ws"] {
        site.lab.wait_for_pods("shop", "app", app, 1).unwrap();
        site.lab.wait_for_endpoints(&ObjectName::new("shop", app), 1).unwrap();
    }
    a_file_goes_up_and_comes_down(site);
    clients_find_what_they_rely_on(site);
    many_requests_take_few_connections_to_the_backend(site);
    websockets_do_not_notice_edits(site);
    true
}

/// By curl, and by nghttp, which others built theirs from.
fn a_file_goes_up_and_comes_down(site: &Site) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..=250).cycle().take(MEBIBYTE).collect();
    std::fs::write(&file, &content).unwrap();
    let path = file.path().to_str().unwrap();
    for (number, node) in site.nodes.iter().enumerate() {
        let url = format!("/curl-{number}");
        let put = curl(site, node, &["-T", path, "-w", "%{http_version} %{http_code}"], &url);
        assert_eq!(put.finish(), b"2 201");
        assert!(curl(site, node, &[], &url).finish() == content, "{url}");

        let url = format!("https://{node}/nghttp-{number}");
        let nghttp = ["nghttp", "--no-verify-peer", "-H", ":authority: files.example.com"];
        let put = ["-H", ":method: PUT", "-d", path, "-s", &url];
        let said = start(site, &[&nghttp[..], &put].concat()).finish();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(&format!(" 201    0 /nghttp-{number}")), "{said}");
        assert!(start(site, &[&nghttp[..], &[&url]].concat()).finish() == content, "{url}");
        // Several at a time on one connection.
        let nghttp = [&nghttp[..], &["-n", "-s", "-m", "8", &url]].concat();
        let said = String::from_utf8(start(site, &nghttp).finish()).unwrap();
        assert_eq!(said.matches(" 200   1M ").count(), 8, "{said}");
    }
}

/// Of HTTP/2 and gRPC and WebSockets, each with a client that ends with an error where anything is not as it has to be.
fn clients_find_what_they_rely_on(site: &Site) {
    let mut running = Vec::new();
    for node in &site.nodes {
        running.push(start_script(site, "http2_client.py", &["check"], node, &[]));
        running.push(start_script(site, "grpc_echo.py", &["check"], node, &[&site.client]));
        running.push(start_script(site, "websocket_echo.py", &["check"], node, &[&site.client]));
    }
    running.into_iter().for_each(|one| drop(one.finish()));
}

fn many_requests_take_few_connections_to_the_backend(site: &Site) {
    let accepted = || -> u32 {
        let said = site.ask(&site.nodes[0], "https://files.example.com/connections", AUTHORITY);
        let counts = said.body.lines().nth(2).unwrap_or_default();
        let count = counts.split_whitespace().next().and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| panic!("{said:?}"))
    };
    let before = accepted();
    for node in &site.nodes {
        let to = format!("{node}:443");
        let load = ["h2load", "-n", "1000", "-c", "2", "-m", "20", "--connect-to", &to];
        let load = [&load[..], &["https://files.example.com/client"]].concat();
        let said = String::from_utf8(start(site, &load).finish()).unwrap();
        let all = "1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(said.contains(all) && said.contains("1000 2xx"), "{said}");
    }
    let taken = accepted() - before;
    assert!(taken <= 100, "{taken} connections for 2000 requests, 40 at a time");
}

fn websockets_do_not_notice_edits(site: &Site) {
    let open = |node| {
        let mut one = start_script(site, "websocket_echo.py", &["stay"], node, &[]);
        assert_eq!(one.line(), "open");
        one
    };
    let mut open: Vec<_> = site.nodes.iter().map(open).collect();
    for number in 1..=20 {
        let path = |path: &str| json!({"path": path, "pathType": "Prefix", "backend": {"service": {"name": "ws", "port": {"number": 80}}}});
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "ws", "namespace": "shop", "annotations": {
                "nginx.ingress.kubernetes.io/proxy-read-timeout": (100 + number).to_string()}},
            "spec": {"ingressClassName": "fairway",
                "tls": [{"hosts": ["ws.example.com"], "secretName": "programs-tls"}],
                "rules": [{"host": "ws.example.com", "http": {
                    "paths": [path("/"), path(&format!("/edit-{number}"))]}}]}});
        site.lab.apply(&object.to_string()).unwrap();
        for one in &mut open {
            one.say(&format!("edit {number}"));
            assert_eq!(one.line(), format!("edit {number}"));
        }
    }
    site.lab.wait_in_step().unwrap();
    for mut one in open {
        one.say("after all");
        assert_eq!(one.line(), "after all");
        assert_eq!(one.finish(), b"4002 done\n");
    }
}

/// A program that runs where clients are.
pub(super) struct Running {
    words: String,
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

/// Asks a node's gateway for a file.
pub(super) fn curl(site: &Site, node: &IpAddr, options: &[&str], path: &str) -> Running {
    let (resolve, authority) = (format!("files.example.com:443:{node}"), site.authority(AUTHORITY));
    let words = ["curl", "-gsSf", "--http2", "--resolve", &resolve, "--cacert"];
    let url = format!("https://files.example.com{path}");
    start(site, &[&words[..], &[authority.to_str().unwrap()], options, &[&url]].concat())
}

/// Starts one of ours, which takes an address and whom to believe.
pub(super) fn start_script(
    site: &Site,
    name: &str,
    verb: &[&str],
    node: &IpAddr,
    more: &[&str],
) -> Running {
    let (script, authority) = (folder().join(name), site.authority(AUTHORITY));
    let words = [&[PYTHON, script.to_str().unwrap()], verb].concat();
    let address = node.to_string();
    start(site, &[&words[..], &[&address, authority.to_str().unwrap()], more].concat())
}

/// Starts one of ours, which takes whom to believe.
pub(super) fn start_client(site: &Site, name: &str, more: &[&str]) -> Running {
    let (script, authority) = (folder().join(name), site.authority(AUTHORITY));
    let words = [PYTHON, script.to_str().unwrap(), authority.to_str().unwrap()];
    start(site, &[&words[..], more].concat())
}

fn start(site: &Site, words: &[&str]) -> Running {
    let mut command = site.lab.command(Target::Client, "timeout").unwrap();
    command.arg(LIMIT).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    Running { words: words.join(" "), child, said }
}

impl Running {
    /// Gives it a line to read.
    pub(super) fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next line that it prints.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for its end, which has to be a good one, with nothing more to read; what it printed since.
    pub(super) fn finish(mut self) -> Vec<u8> {
        drop(self.child.stdin.take());
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut self.said, &mut said).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{}: {status}\n{}", self.words, String::from_utf8_lossy(&said));
        said
    }
}
