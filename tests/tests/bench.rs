//! `fairway-bench` from end to end, with the real binaries: the figures of so short a run mean
//! nothing, but every case answers, the rows are complete, and nothing is left.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fairway_tests::binaries::binaries;
use fairway_tests::may_run;
use fairway_tests::wait::wait_until;
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// A short run, and every word of it.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn every_way_is_measured_at_every_size() {
    if !may_run("bench") {
        return;
    }
    let svg = std::env::temp_dir().join(format!("fairway-bench-{}.svg", std::process::id()));
    let short = ["--rounds=1", "--seconds=0.02", "--nftables-up-to=10", "--svg"];
    let arguments = [SERVICES, &short, &[svg.to_str().unwrap()]].concat();
    let (bench, rows) = rows(&arguments);
    let picture = fs::read_to_string(&svg).unwrap();
    fs::remove_file(&svg).unwrap();
    for way in ["pod", "nodes", "local", "remote"] {
        let value = |case: &str, services: u64, metric: &str, field: &str| {
            let is = |row: &&Value| {
                let params = &row["params"];
                row["case"] == case
                    && (&params["services"], &params["way"]) == (&services.into(), &way.into())
                    && row["metric"] == metric
            };
            let row = rows.iter().find(is);
            row.and_then(|row| row[field].as_f64()).unwrap_or_default()
        };
        for (case, sizes) in [
            ("direct", &[0][..]),
            ("iptables", &[1, 20]),
            ("nftables", &[1]),
            ("fairway", &[1, 20]),
        ] {
            for services in sizes {
                for metric in ["connections", "p50", "p99", "requests"] {
                    for field in ["value", "ratio"] {
                        let figure = value(case, *services, metric, field);
                        assert!(figure > 0.0, "{way}, {case}, {services}, {metric}, {field}");
                    }
                }
                if case != "direct" {
                    assert!(value(case, *services, "load_ms", "value") > 0.0, "{case}, {services}");
                }
            }
        }
        // Loading it was not asked for.
        assert_eq!(value("nftables", 20, "connections", "value"), 0.0);
    }
    // Two rows of points for each way, and one point where less was loaded; three more in the key.
    assert_eq!(picture.matches("<circle").count(), 4 * 5 + 3, "{picture}");
    bench.assert_nothing_is_left();
}

/// Every way through every program leads where it is meant to lead, which the benchmark sees to itself.
#[test]
fn every_way_of_a_packet_is_measured_and_compared_with_the_last_record() {
    if !may_run("bench-packet") {
        return;
    }
    let history = std::env::temp_dir().join(format!("fairway-bench-{}.csv", std::process::id()));
    let short = ["packet", "--rounds=1", "--packets=20", "--record", "--history"];
    let arguments = [&short[..], &[history.to_str().unwrap()]].concat();
    let (bench, rows) = rows(&arguments);
    let recorded = fs::read_to_string(&history).unwrap();
    let (again, _) = self::rows(&arguments);
    let twice = fs::read_to_string(&history).unwrap();
    fs::remove_file(&history).unwrap();
    for program in [
        "pod_ingress",
        "pod_egress",
        "uplink_ingress",
        "uplink_egress",
        "uplink_xdp",
        "overlay_ingress",
        "overlay_egress",
    ] {
        for family in [4, 6] {
            let is = |row: &&Value| row["case"] == program && row["params"]["family"] == family;
            assert!(rows.iter().any(|row| is(&row)), "{program}, IPv{family}");
        }
    }
    for row in &rows {
        assert!(row["ratio"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["params"]["verified"].as_u64().unwrap() > 0, "{row}");
    }
    // The first line says what the others are.
    assert_eq!(recorded.lines().count(), 1 + rows.len(), "{recorded}");
    assert_eq!(twice.lines().count(), 1 + 2 * rows.len(), "{twice}");
    bench.assert_nothing_is_left();
    again.assert_nothing_is_left();
}

#[test]
fn every_call_and_every_path_is_measured() {
    if !may_run("bench-cni") {
        return;
    }
    let (bench, rows) = rows(&["cni", "--pods=2", "--rounds=1", "--seconds=0.02"]);
    let is_measured = |case: &str, metric: &str| {
        let is = |row: &&Value| row["case"] == case && row["metric"] == metric;
        let row = rows.iter().find(is).unwrap_or_else(|| panic!("{case}, {metric}"));
        for field in ["value", "ratio"] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{case}, {metric}, {field}");
        }
    };
    for case in ["fairway", "bridge", "ptp"] {
        for metric in ["size", "start_p50", "add_p50", "del_p99", "busy_add_p99", "busy_del_p50"] {
            is_measured(case, metric);
        }
    }
    for case in ["one node", "routes", "vxlan"] {
        for metric in ["stream", "requests", "connections"] {
            is_measured(case, metric);
        }
    }
    bench.assert_nothing_is_left();
}

#[test]
fn starts_changes_and_memory_are_measured() {
    if !may_run("bench-scale") {
        return;
    }
    let contents = ["--start=20x3", "--change=30x2", "--memory=10x2"];
    let (bench, rows) = rows(&[&["scale", "--rounds=1", "--changes=20"], &contents[..]].concat());
    let is_measured = |services: u64, metric: &str, fields: &[&str]| {
        let is = |row: &&Value| {
            row["params"]["services"] == services
                && (&row["case"], &row["metric"]) == (&"fairway".into(), &metric.into())
        };
        let row = rows.iter().find(is).unwrap_or_else(|| panic!("{services}, {metric}"));
        for field in fields {
            assert!(row[field].as_f64().unwrap() > 0.0, "{services}, {metric}, {field}");
        }
    };
    is_measured(0, "start", &["value"]);
    for metric in ["start_feed", "start_disk", "change_p50", "change_p99"] {
        is_measured(20, metric, &["value", "ratio"]);
    }
    is_measured(30, "change_p99", &["value"]);
    for metric in ["resident", "peak", "tables"] {
        is_measured(0, metric, &["value"]);
        is_measured(10, metric, &["value"]);
    }
    bench.assert_nothing_is_left();
}

#[test]
fn policies_are_measured_beside_none_and_while_they_change() {
    if !may_run("bench-policy") {
        return;
    }
    let sizes =
        ["--rules=5", "--cidrs=20", "--pods=2", "--peers=10", "--memory=1000", "--cluster-pods=2"];
    let short = ["policy", "--rounds=1", "--seconds=0.02", "--changes=3"];
    let (bench, rows) = rows(&[&short[..], &sizes].concat());
    let is_measured = |case: &str, param: (&str, u64), metric: &str, fields: &[&str]| {
        let is = |row: &&Value| {
            row["params"][param.0] == param.1 && row["case"] == case && row["metric"] == metric
        };
        let row = rows.iter().find(is).unwrap_or_else(|| panic!("{case}, {param:?}, {metric}"));
        for field in fields {
            assert!(row[field].as_f64().unwrap() > 0.0, "{case}, {param:?}, {metric}, {field}");
        }
    };
    for case in ["fairway", "nftables", "iptables"] {
        for param in [("rules", 5), ("cidrs", 20)] {
            for metric in ["connections", "requests"] {
                is_measured(case, param, metric, &["value", "ratio"]);
            }
        }
    }
    for metric in ["first_packet", "later_packet"] {
        is_measured("fairway", ("rules", 5), metric, &["value"]);
    }
    for metric in ["change_p99", "manifest_p99"] {
        is_measured("fairway", ("pods", 2), metric, &["value"]);
    }
    for metric in ["load_ms", "resident", "tables", "tables_identity"] {
        is_measured("fairway", ("pods", 1000), metric, &["value"]);
    }
    is_measured("fairway", ("rules", 5), "tables_rule", &["value"]);
    bench.assert_nothing_is_left();
}

/// That no connection fails, the benchmark sees to itself.
#[test]
fn churn_is_measured_beside_quiet_through_the_agents_ends() {
    if !may_run("bench-churn") {
        return;
    }
    let short = ["churn", "--services=20", "--rate=200", "--seconds=4", "--kill-every=1.5"];
    let (bench, rows) = rows(&short);
    let value = |metric: &str, way: &str| {
        let is = |row: &&Value| {
            (&row["case"], &row["metric"]) == (&"churn".into(), &metric.into())
                && row["params"]["way"].as_str().unwrap_or_default() == way
        };
        let row = rows.iter().find(is).unwrap_or_else(|| panic!("{metric}, {way}"));
        row["value"].as_f64().unwrap()
    };
    for way in ["pod", "outside"] {
        for metric in ["connections", "connection_p99", "requests", "request_p99"] {
            assert!(value(metric, way) > 0.0, "{metric}, {way}");
        }
    }
    assert!(value("kills", "") >= 1.0 && value("changes", "") > 0.0);
    assert!(value("lag_p50", "") > 0.0 && value("lag_most", "") >= value("lag_p99", ""));
    bench.assert_nothing_is_left();
}

/// That all subscribers have the same in the end, the benchmark sees to itself.
#[test]
fn the_feed_is_measured_by_the_number_of_subscribers() {
    let size = ["--services=20", "--endpoints=5", "--nodes=10", "--pods=50"];
    let short = ["feed", "--subscribers=1,12", "--rate=40", "--seconds=1"];
    let (_bench, rows) = rows(&[&short[..], &size].concat());
    for subscribers in [1, 12] {
        for metric in [
            "sync",
            "snapshot",
            "change_bytes",
            "change_payload",
            "changes_per_step",
            "change_p50",
            "change_p99",
            "resident",
            "peak",
        ] {
            let is = |row: &&Value| {
                row["params"]["subscribers"] == subscribers && row["metric"] == metric
            };
            let row = rows.iter().find(is).unwrap_or_else(|| panic!("{subscribers}, {metric}"));
            assert!(row["value"].as_f64().unwrap() > 0.0, "{subscribers}, {metric}");
        }
    }
}

/// Beside whatever other proxies are here. That every answer is right, the benchmark sees to itself.
#[test]
fn the_gateway_is_measured_in_every_way() {
    if !may_run("bench-ingress") {
        return;
    }
    let size = ["--connections=20", "--hosts=10", "--changes=3"];
    let (bench, rows) = rows(&[&["ingress", "--rounds=1", "--seconds=0.1"], &size[..]].concat());
    let value_of = |case: &str, param: (&str, Value), metric: &str| {
        let is = |row: &&Value| {
            (&row["case"], &row["metric"]) == (&case.into(), &metric.into())
                && row["params"][param.0] == param.1
        };
        let row = rows.iter().find(is).unwrap_or_else(|| panic!("{case}, {param:?}, {metric}"));
        row["value"].as_f64().unwrap()
    };
    let value = |param: (&str, Value), metric: &str| value_of("fairway", param, metric);
    for way in [
        "HTTP/1.1",
        "TLS",
        "HTTP/2",
        "new TLS",
        "resumed TLS",
        "WebSocket",
        "1 MiB down",
        "1 MiB up",
    ] {
        for metric in ["per_cpu", "answers"] {
            assert!(value(("way", way.into()), metric) > 0.0, "{way}, {metric}");
        }
    }
    assert!(value(("way", "TLS".into()), "p999") > 0.0);
    assert!(value(("connections", 20.into()), "memory of each") > 0.0);
    for case in ["fairway", "fairway-feed"] {
        assert!(value_of(case, ("hosts", 10.into()), "memory") > 0.0, "{case}");
        assert_eq!(value_of(case, ("hosts", 100.into()), "changes"), 3.0, "{case}");
        assert_eq!(value_of(case, ("hosts", 100.into()), "failed"), 0.0, "{case}");
    }
    let folder = format!("fairway-bench-ingress-{}", bench.child.id());
    assert!(!std::env::temp_dir().join(folder).exists());
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    if !may_run("bench-interrupted") {
        return;
    }
    let mut bench = Bench::start(&[SERVICES, &["--rounds=1000", "--seconds=1"]].concat());
    bench.hear("round 1 ");
    bench.signal(Signal::INT);
    assert_eq!(bench.wait(), Some(130), "{}", bench.words);
    assert!(bench.words.contains("interrupted"), "{}", bench.words);
    bench.assert_nothing_is_left();
}

const SERVICES: &[&str] = &["services", "--services", "1,20"];

/// Runs a benchmark to its good end; its rows.
fn rows(arguments: &[&str]) -> (Bench, Vec<Value>) {
    let file = format!("fairway-bench-{}-{}.json", std::process::id(), arguments[0]);
    let json = std::env::temp_dir().join(file);
    let mut bench = Bench::start(&[arguments, &["--json", json.to_str().unwrap()]].concat());
    let code = bench.wait();
    let text = fs::read_to_string(&json);
    let _ = fs::remove_file(&json);
    assert_eq!(code, Some(0), "{}", bench.words);
    (bench, serde_json::from_str(&text.unwrap()).unwrap())
}

/// A run of a benchmark; ended if the test fails.
struct Bench {
    child: Child,
    progress: BufReader<std::process::ChildStderr>,
    /// What it has said so far.
    words: String,
}

impl Bench {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairway-bench"));
        command.args(arguments);
        // Which needs none but itself.
        if arguments[0] != "feed" {
            command.arg("--bin-dir").arg(binaries().unwrap());
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let progress = BufReader::new(child.stderr.take().unwrap());
        Self { child, progress, words: String::new() }
    }

    /// Listens until a line starts so.
    fn hear(&mut self, start: &str) {
        loop {
            let mut line = String::new();
            let end = self.progress.read_line(&mut line).unwrap() == 0;
            self.words += &line;
            assert!(!end, "no {start:?} in:\n{}", self.words);
            if line.starts_with(start) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its exit code.
    fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until(LIMIT, "the benchmark to end", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })
        .unwrap();
        std::io::Read::read_to_string(&mut self.progress, &mut self.words).unwrap();
        status.unwrap().code()
    }

    fn assert_nothing_is_left(&self) {
        let name = format!("bench{}x0", self.child.id());
        let names = |folder: &str| -> Vec<String> {
            let entries = fs::read_dir(folder).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        for folder in ["/run/netns", "/run/fairway-lab"] {
            let left: Vec<String> =
                names(folder).into_iter().filter(|entry| entry.contains(&name)).collect();
            assert!(left.is_empty(), "{folder}: {left:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&name), "{mounts}");
        let cgroups = mounts.lines().filter(|line| line.contains(" cgroup2 "));
        for root in cgroups.filter_map(|line| line.split(' ').nth(1)) {
            assert!(!Path::new(root).join(format!("fairway-lab-{name}")).exists(), "{root}");
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It cleans up by itself, given the time.
            self.signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }
}
