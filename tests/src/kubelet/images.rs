//! Which program runs for which image.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fairway_model::Protocol;
use serde::Deserialize;

use super::environment::expand;
use crate::spec::Container;

/// The table that every lab starts with.
const BUILT_IN: &str = include_str!("images.yaml");
/// The name under which a table refers to the built-in test server.
const TEST_SERVER: &str = "test-server";
/// The port of a container that declares none.
const DEFAULT_PORT: u16 = 80;

/// A table of images, first match wins; what is not in it gets the test server.
#[derive(Clone, Debug)]
pub(crate) struct Images(Vec<Entry>);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    image: String,
    command: Vec<String>,
    port: Option<u16>,
    without: Option<String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
}

/// What to run for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Program and arguments; the program is an absolute path.
    pub command: Vec<String>,
    /// Files to write into the private folder first.
    pub files: Vec<(String, String)>,
    /// The TCP port that shows that it is up.
    pub tcp_port: Option<u16>,
}

impl Images {
    /// The built-in table, after the entries of `extension` if one is given.
    pub(crate) fn load(extension: Option<&Path>) -> Result<Self> {
        let mut entries = Vec::new();
        if let Some(file) = extension {
            let text =
                fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            entries = read(&text).with_context(|| format!("image table {}", file.display()))?;
        }
        entries.extend(read(BUILT_IN).context("built-in image table")?);
        Ok(Self(entries))
    }

    /// What to run for `container`, whose private folder is `dir` and environment `variables`.
    /// `lab` is the path of this program.
    pub(crate) fn program(
        &self,
        container: &Container,
        is_first: bool,
        variables: &BTreeMap<String, String>,
        dir: &Path,
        lab: &Path,
    ) -> Result<Program> {
        let name = base_name(&container.image);
        let Some(entry) = self.0.iter().find(|entry| matches(&entry.image, name)) else {
            return Ok(test_server(container, is_first, lab));
        };
        let program = entry.command.first().map(String::as_str).unwrap_or_default();
        if program != "@lab@" && find_program(program).is_none() {
            if entry.without.as_deref() == Some(TEST_SERVER) {
                return Ok(test_server(container, is_first, lab));
            }
            bail!("image {:?} runs {program:?}, which is not installed", container.image);
        }
        let declared = tcp_ports(container).next();
        let port = declared.or(entry.port).unwrap_or(DEFAULT_PORT);
        let fill = |text: &str| {
            text.replace("@dir@", &dir.to_string_lossy())
                .replace("@port@", &port.to_string())
                .replace("@lab@", &lab.to_string_lossy())
        };
        let mut command: Vec<String> =
            entry.command.iter().map(|part| expand(&fill(part), variables)).collect();
        if let Some(path) = find_program(&command[0]) {
            command[0] = path.to_string_lossy().into_owned();
        }
        Ok(Program {
            command,
            files: entry.files.iter().map(|(name, text)| (name.clone(), fill(text))).collect(),
            tcp_port: Some(port),
        })
    }
}

fn read(text: &str) -> Result<Vec<Entry>> {
    let entries: Vec<Entry> = serde_saphyr::from_str(text)?;
    for entry in &entries {
        if entry.command.is_empty() {
            bail!("image {:?}: command: empty", entry.image);
        }
        if let Some(other) = &entry.without
            && other != TEST_SERVER
        {
            bail!("image {:?}: without: {other:?} is not {TEST_SERVER:?}", entry.image);
        }
        if let Some(file) = entry.files.keys().find(|file| file.contains('/')) {
            bail!("image {:?}: files: {file:?} has a slash", entry.image);
        }
    }
    Ok(entries)
}

/// The test server on every declared port; the first container of a pod that declares none
/// serves port 80. `--http-port` and `--udp-port` in the container's arguments count as declared.
fn test_server(container: &Container, is_first: bool, lab: &Path) -> Program {
    let mut tcp: Vec<u16> = tcp_ports(container).collect();
    let mut udp: Vec<u16> = ports(container, Protocol::Udp).collect();
    let mut sctp: Vec<u16> = ports(container, Protocol::Sctp).collect();
    for argument in &container.args {
        if let Some(port) = argument.strip_prefix("--http-port=").and_then(|port| port.parse().ok())
        {
            tcp.push(port);
        }
        if let Some(port) = argument.strip_prefix("--udp-port=").and_then(|port| port.parse().ok())
        {
            udp.push(port);
        }
    }
    if tcp.is_empty() && udp.is_empty() && sctp.is_empty() && is_first {
        tcp.push(DEFAULT_PORT);
    }
    for ports in [&mut tcp, &mut udp, &mut sctp] {
        ports.sort_unstable();
        ports.dedup();
    }
    let mut command: Vec<String> =
        [&*lab.to_string_lossy(), "app", "netexec"].map(str::to_owned).into();
    for (flag, ports) in [("--http-port", &tcp), ("--udp-port", &udp), ("--sctp-port", &sctp)] {
        command.extend(ports.iter().map(|port| format!("{flag}={port}")));
    }
    Program { command, files: Vec::new(), tcp_port: tcp.first().copied() }
}

fn tcp_ports(container: &Container) -> impl Iterator<Item = u16> {
    ports(container, Protocol::Tcp)
}

fn ports(container: &Container, protocol: Protocol) -> impl Iterator<Item = u16> {
    container
        .ports
        .iter()
        .filter(move |port| port.protocol == protocol)
        .map(|port| port.container_port)
}

/// `k8s.gcr.io/redis:e2e` is `redis`.
fn base_name(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split([':', '@']).next().unwrap_or(last)
}

/// Whether `text` is as `pattern` says, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(tail) = text.strip_prefix(head) else {
        return false;
    };
    (0..=tail.len())
        .filter(|start| tail.is_char_boundary(*start))
        .any(|start| matches(rest, &tail[start..]))
}

fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).exists().then(|| PathBuf::from(name));
    }
    // Servers live in sbin, which an ordinary user's PATH lacks.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn program(images: &Images, container: serde_json::Value) -> Result<Program> {
        let container = serde_json::from_value(container).unwrap();
        let variables = BTreeMap::from([
            ("REDIS_MASTER_SERVICE_HOST".to_owned(), "10.96.0.7".to_owned()),
            ("REDIS_MASTER_SERVICE_PORT".to_owned(), "6379".to_owned()),
        ]);
        images.program(&container, true, &variables, Path::new("/d"), Path::new("/bin/sh"))
    }

    fn command(image: &str) -> String {
        let images = Images::load(None).unwrap();
        let program = program(&images, json!({"name": "c", "image": image})).unwrap();
        program.command.join(" ")
    }

    #[test]
    fn well_known_images_run_their_program() {
        assert_eq!(
            command("gcr.io/google-samples/gb-frontend:v4"),
            "/bin/sh app guestbook --port 80"
        );
        assert_eq!(command("registry:5000/a/b:1"), "/bin/sh app netexec --http-port=80");
        if find_program("redis-server").is_some() {
            assert!(command("k8s.gcr.io/redis:e2e").contains("redis-server --port 6379 --dir /d"));
            assert!(!command("k8s.gcr.io/redis:e2e").contains("replicaof"));
            assert!(
                command("gcr.io/google_samples/gb-redisslave:v1")
                    .ends_with("--replicaof 10.96.0.7 6379")
            );
        }
    }

    #[test]
    fn the_test_server_answers_on_every_declared_port() {
        let images = Images::load(None).unwrap();
        let container = json!({"name": "c", "image": "agnhost", "args": ["netexec", "--http-port=8080"],
            "ports": [{"containerPort": 81}, {"containerPort": 53, "protocol": "UDP"},
                {"containerPort": 9, "protocol": "SCTP"}]});
        let program = program(&images, container).unwrap();
        assert_eq!(
            program.command.join(" "),
            "/bin/sh app netexec --http-port=81 --http-port=8080 --udp-port=53 --sctp-port=9"
        );
        assert_eq!(program.tcp_port, Some(81));
    }

    #[test]
    fn a_program_that_is_not_installed_is_named() {
        let images = Images(read("[{image: 'x*', command: [no-such-program]}]").unwrap());
        let error = program(&images, json!({"name": "c", "image": "x/xy:1"})).unwrap_err();
        assert!(error.to_string().contains("\"no-such-program\", which is not installed"));
    }

    #[test]
    fn tables_with_mistakes_are_refused() {
        for (text, expected) in [
            ("[{image: a, command: []}]", "command: empty"),
            ("[{image: a, command: [b], without: c}]", "without"),
            ("[{image: a, command: [b], files: {../c: d}}]", "slash"),
            ("[{image: a, command: [b], other: c}]", "other"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("redis*", "redis", true),
            ("redis*", "redis-x", true),
            ("redis*", "gb-redis", false),
            ("*a*b*", "xaxbx", true),
            ("*a*b*", "xbxax", false),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
