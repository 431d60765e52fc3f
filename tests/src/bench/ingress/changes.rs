//! How long it takes until a new host is served, one change after the other under load, and what fails meanwhile.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::load::{Load, Way};
use super::proxy::{Program, Proxy, status};
use super::{Bench, HOST, hosts};
use crate::bench::progress;
use crate::bench::report::{Row, rounded};
use crate::bench::stats::percentile;

/// Hosts that stay.
const OTHERS: u32 = 99;
/// Requests a second meanwhile, and connections for them.
const RATE: f64 = 2000.0;
const CONNECTIONS: usize = 16;
/// All changes of a proxy take no longer.
const MOST: Duration = Duration::from_secs(150);
/// How long one is given to hear of a change.
const AGAIN: Duration = Duration::from_millis(200);
/// None takes longer.
const LIMIT: Duration = Duration::from_secs(20);

impl Bench<'_> {
    pub(super) async fn changes(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (program, path) in &self.programs {
            progress(&format!("changes of {}", program.name()));
            let about = || format!("changes of {}", program.name());
            rows.extend(self.changes_of(*program, path).await.with_context(about)?);
        }
        Ok(rows)
    }

    async fn changes_of(&self, program: Program, path: &Path) -> Result<Vec<Row>> {
        let proxy = self.start(program, path, &hosts(OTHERS)).await?;
        let times = RefCell::new(Vec::new());
        let load = Load {
            way: Way::Plain,
            connections: CONNECTIONS,
            rate: Some(RATE),
            ports: proxy.ports,
            trust: &self.trust,
        };
        let during = async {
            let (begun, mut last) = (Instant::now(), None);
            for number in 0..self.options.changes {
                if begun.elapsed() > MOST {
                    break;
                }
                let host = format!("change-{number}.{HOST}");
                let time = change(&proxy, &host, last.as_deref()).await?;
                times.borrow_mut().push(u64::try_from(time.as_micros())?);
                last = Some(host);
            }
            Ok(())
        };
        let warm = Duration::from_millis(100);
        let outcome = load.run(warm, || proxy.cpu(), during).await?;
        if let Some(error) = &outcome.error {
            progress(&format!("{} failed: {error:#}", outcome.failed));
        }
        let mut times = times.into_inner();
        times.sort_unstable();
        let changes = u32::try_from(times.len())?;
        let milliseconds = |time: u64| Duration::from_micros(time).as_secs_f64() * 1e3;
        let requests = outcome.done + outcome.failed;
        Ok([
            ("changes", "", f64::from(changes)),
            ("change_p50", "ms", milliseconds(percentile(&times, 50))),
            ("change_p99", "ms", milliseconds(percentile(&times, 99))),
            ("change_most", "ms", milliseconds(percentile(&times, 100))),
            ("change_cpu", "ms", outcome.spent.as_secs_f64() * 1e3 / f64::from(changes)),
            ("requests", "", f64::from(u32::try_from(requests)?)),
            ("failed", "", f64::from(u32::try_from(outcome.failed)?)),
        ]
        .into_iter()
        .map(|(metric, unit, value)| Row {
            bench: "ingress",
            case: program.name(),
            params: BTreeMap::from([("hosts", u64::from(OTHERS + 1).into())]),
            metric,
            unit,
            value: rounded(value),
            baseline: None,
            ratio: None,
        })
        .collect())
    }
}

/// Has another host served in the place of the last one; how long it takes.
async fn change(proxy: &Proxy, host: &str, last: Option<&str>) -> Result<Duration> {
    let mut hosts = hosts(OTHERS);
    hosts.push(host.to_owned());
    let begun = Instant::now();
    proxy.change(&hosts, host, last)?;
    let mut told = Instant::now();
    // Who asks too early may reach a process that is about to end.
    while status(proxy.ports.http, host).await.ok() != Some(200) {
        ensure!(begun.elapsed() < LIMIT, "{host} is not served");
        // HAProxy hears nothing as long as it is busy with the change before.
        if proxy.program == Program::Haproxy && told.elapsed() > AGAIN {
            proxy.tell();
            told = Instant::now();
        }
    }
    Ok(begun.elapsed())
}
