//! ADD and DEL, as a container runtime calls them: an exec, the configuration on standard input, the
//! result on standard output.
//!
//! Network namespaces are made before and kept: what counts is the plugin alone. `bridge` is called as
//! flannel's plugin calls it (with `host-local` for the addresses), less the exec of flannel's own.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairway_netlink::NetNs;
use serde_json::{Value, json};

use crate::bench::agent::Agent;
use crate::bench::bed::Bed;
use crate::bench::progress;
use crate::bench::report::{Row, rounded, table};
use crate::bench::stats::percentile;
use crate::kubelet::cni::Plugin;
use crate::topology::{Backend, NodePlan};

pub(super) const NODES: u8 = 3;
pub(super) const FLANNEL_NODES: u8 = 2;

/// Between two calls of a hundred a second.
const INTERVAL: Duration = Duration::from_millis(10);
/// Calls of VERSION.
const STARTS: u32 = 50;

/// A node's plugin.
struct Case {
    name: &'static str,
    plugin: Plugin,
    netns: NetNs,
    pods: Vec<PathBuf>,
    _agent: Option<Agent>,
}

/// What came of a case; times in nanoseconds, in rising order.
pub(super) struct Measured {
    case: &'static str,
    /// Of the binary, in bytes.
    size: u64,
    start: Vec<u64>,
    alone: Calls,
    busy: Calls,
}

#[derive(Default)]
struct Calls {
    add: Vec<u64>,
    del: Vec<u64>,
}

impl Calls {
    fn sort(&mut self) {
        self.add.sort_unstable();
        self.del.sort_unstable();
    }
}

/// Measures all cases in turns.
pub(super) fn measure(bed: &Bed, pods: u32) -> Result<Vec<Measured>> {
    progress(&format!("{pods} network namespaces on each of {NODES} nodes"));
    let mut cases = Vec::new();
    for (index, name) in ["fairway", "bridge", "ptp"].into_iter().enumerate() {
        let node = bed.node(index)?;
        let agent = (name == "fairway").then(|| Agent::start(bed, node, Backend::Auto, &[]));
        let mut plugin = Plugin::of(&bed.cluster, &node.name)?;
        if name == "ptp" {
            plugin = ptp(bed, node, plugin);
        }
        let pods = (0..pods).map(|number| Ok(bed.sandbox(node, &format!("pod{number}"))?.1.netns));
        cases.push(Case {
            name,
            plugin,
            netns: NetNs::open(bed.host(node).netns)?,
            pods: pods.collect::<Result<_>>()?,
            _agent: agent.transpose()?,
        });
    }
    let mut results = Vec::new();
    for case in &cases {
        let program = &case.plugin.program;
        let size = std::fs::metadata(program).with_context(|| program.display().to_string())?.len();
        let (alone, busy) = Default::default();
        results.push(Measured { case: case.name, size, start: Vec::new(), alone, busy });
    }
    progress("one call at a time");
    for _ in 0..STARTS {
        for (case, result) in cases.iter().zip(&mut results) {
            let call = case.call("VERSION", 0)?;
            result.start.push(case.netns.run(move || call.run())??);
        }
    }
    for number in 0..usize::try_from(pods)? {
        bed.check()?;
        for (case, result) in cases.iter().zip(&mut results) {
            for (verb, times) in [("ADD", &mut result.alone.add), ("DEL", &mut result.alone.del)] {
                let call = case.call(verb, number)?;
                times.push(case.netns.run(move || call.run())??);
            }
        }
    }
    for (case, result) in cases.iter().zip(&mut results) {
        progress(&format!("{}: 100 calls a second", case.name));
        bed.check()?;
        result.busy.add = case.a_hundred_a_second("ADD")?;
        result.busy.del = case.a_hundred_a_second("DEL")?;
    }
    for result in &mut results {
        result.start.sort_unstable();
        result.alone.sort();
        result.busy.sort();
    }
    Ok(results)
}

/// The reference plugin that, like ours, makes a cable without a bridge.
fn ptp(bed: &Bed, node: &NodePlan, bridge: Plugin) -> Plugin {
    let mut config = json!({"cniVersion": "1.0.0", "name": "ptp", "type": "ptp", "mtu": 1450});
    config["ipam"] = bridge.config["ipam"].clone();
    config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    config["ipam"]["dataDir"] = json!(bed.cluster.names.node_state(&node.name).join("ptp"));
    Plugin { program: bridge.path.join("ptp"), config, ..bridge }
}

/// One exec.
struct Call {
    command: Command,
    config: Value,
}

impl Case {
    fn call(&self, verb: &str, number: usize) -> Result<Call> {
        let pod = self.pods.get(number).context("a pod of this number")?;
        let mut command = Command::new(&self.plugin.program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("bench-{number}"))
            .env("CNI_NETNS", pod)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugin.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Ok(Call { command, config: self.plugin.config.clone() })
    }

    /// Calls for all pods, each at its moment whether or not the earlier ones have ended.
    fn a_hundred_a_second(&self, verb: &str) -> Result<Vec<u64>> {
        let calls: Result<Vec<Call>> =
            (0..self.pods.len()).map(|number| self.call(verb, number)).collect();
        let calls = calls?;
        self.netns.run(move || {
            let start = Instant::now();
            let mut threads = Vec::with_capacity(calls.len());
            for (call, due) in calls.into_iter().zip(0..) {
                thread::sleep((start + INTERVAL * due).saturating_duration_since(Instant::now()));
                threads.push(thread::spawn(move || call.run()));
            }
            let join = |thread: thread::JoinHandle<Result<u64>>| match thread.join() {
                Ok(time) => time,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect()
        })?
    }
}

impl Call {
    /// The time from its start to its end, in nanoseconds. Whoever calls this is on the node, and so
    /// is the plugin.
    fn run(mut self) -> Result<u64> {
        let config = self.config.to_string();
        let start = Instant::now();
        let mut child = self.command.spawn().context("start a plugin")?;
        let mut stdin = child.stdin.take().context("take a plugin's input")?;
        // One that ends without reading says why elsewhere.
        let _ = stdin.write_all(config.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().context("wait for a plugin")?;
        let time = start.elapsed();
        if !output.status.success() {
            bail!("{:?}: {}", self.command, String::from_utf8_lossy(&output.stdout).trim());
        }
        Ok(u64::try_from(time.as_nanos())?)
    }
}

/// A figure of a case.
struct Metric {
    name: &'static str,
    unit: &'static str,
    of: fn(&Measured) -> f64,
}

const METRICS: [Metric; 10] = [
    Metric {
        name: "size",
        unit: "MB",
        of: |m| f64::from(u32::try_from(m.size).unwrap_or(u32::MAX)) / 1e6,
    },
    Metric { name: "start_p50", unit: "ms", of: |m| millis(&m.start, 50) },
    Metric { name: "add_p50", unit: "ms", of: |m| millis(&m.alone.add, 50) },
    Metric { name: "add_p99", unit: "ms", of: |m| millis(&m.alone.add, 99) },
    Metric { name: "del_p50", unit: "ms", of: |m| millis(&m.alone.del, 50) },
    Metric { name: "del_p99", unit: "ms", of: |m| millis(&m.alone.del, 99) },
    Metric { name: "busy_add_p50", unit: "ms", of: |m| millis(&m.busy.add, 50) },
    Metric { name: "busy_add_p99", unit: "ms", of: |m| millis(&m.busy.add, 99) },
    Metric { name: "busy_del_p50", unit: "ms", of: |m| millis(&m.busy.del, 50) },
    Metric { name: "busy_del_p99", unit: "ms", of: |m| millis(&m.busy.del, 99) },
];

fn millis(sorted: &[u64], percent: usize) -> f64 {
    Duration::from_nanos(percentile(sorted, percent)).as_secs_f64() * 1e3
}

/// What the others are compared with.
const BASELINE: &str = "bridge";

pub(super) fn rows(results: &[Measured]) -> Vec<Row> {
    let baseline = |metric: &Metric| {
        results.iter().find(|result| result.case == BASELINE).map(|result| (metric.of)(result))
    };
    let rows = results.iter().flat_map(|result| {
        METRICS.iter().map(move |metric| {
            let value = (metric.of)(result);
            Row {
                bench: "cni",
                case: result.case,
                params: BTreeMap::new(),
                metric: metric.name,
                unit: metric.unit,
                value: rounded(value),
                baseline: Some(BASELINE),
                ratio: baseline(metric).map(|baseline| rounded(value / baseline)),
            }
        })
    });
    rows.collect()
}

pub(super) fn summary(results: &[Measured]) -> String {
    let header: Vec<&str> =
        ["measured", "unit"].into_iter().chain(results.iter().map(|result| result.case)).collect();
    let lines = METRICS.iter().map(|metric| {
        let values = results.iter().map(|result| rounded((metric.of)(result)).to_string());
        [metric.name.to_owned(), metric.unit.to_owned()].into_iter().chain(values).collect()
    });
    table(&header, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_table_show_percentiles_and_ratios_to_the_bridge() {
        let result = |case, millis: u64| {
            let calls = || Calls { add: vec![millis * 1_000_000], del: vec![millis * 500_000] };
            Measured {
                case,
                size: 2_600_000,
                start: vec![1_000_000],
                alone: calls(),
                busy: calls(),
            }
        };
        let results = [result("fairway", 4), result("bridge", 20)];
        let rows = rows(&results);
        let add = rows.iter().find(|row| row.case == "fairway" && row.metric == "add_p99").unwrap();
        assert_eq!((add.value, add.ratio, add.baseline), (4.0, Some(0.2), Some("bridge")));
        let table = summary(&results);
        assert!(table.contains("| add_p99      |   ms |       4 |     20 |"), "{table}");
    }
}
