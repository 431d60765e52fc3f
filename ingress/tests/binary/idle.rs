//! Many connections that ask for nothing.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

/// More than a worker has by default in a process with 1,024 descriptors.
const MANY: usize = 10_000;

#[test]
fn ten_thousand_connections_that_say_nothing_cost_little_and_nobody_his_answer() {
    let most = getrlimit(Resource::Nofile).maximum;
    assert!(most.is_none_or(|most| most > 11_000), "too few descriptors for this: {most:?}");
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairway-ingress"));
    command.args(["run", "--workers", "1", "--access-log", "off"]);
    command.args(["--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.arg("--manifests").arg(&manifests);
    command.arg("--state-dir").arg(folder.path().join("state")).stderr(Stdio::piped());
    let mut gateway = Gateway(command.spawn().unwrap());
    let mut log = BufReader::new(gateway.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("the gateway runs") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the gateway has ended");
    }
    let (http, admin) = (field(&line, "http").unwrap(), field(&line, "admin").unwrap());
    // In kilobytes.
    let memory = || -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let asked = || get(&http, "a.example", "/").starts_with("HTTP/1.1 404");
    wait_for("an answer", asked);
    let before = memory();
    let waiting: Vec<_> = (0..MANY).map(|_| TcpStream::connect(&http).unwrap()).collect();
    let open = format!("state=\"active\"}} {}\n", waiting.len());
    wait_for("all are there", || get(&admin, "localhost", "/metrics").contains(&open));
    assert!(asked());
    let each = memory().saturating_sub(before) * 1024 / MANY;
    assert!(each < 16_000, "{each} bytes for each");
}
