//! Answers for a second of a processor, and how long they take when there is room.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;

use super::load::{Load, Outcome, Way};
use super::proxy::{Program, Proxy};
use super::{Bench, hosts};
use crate::bench::progress;
use crate::bench::report::{Row, rounded};
use crate::bench::stats::{Series, per_mille};

/// What a ratio compares with: the best of the others in the same round.
const BEST: &str = "best of the others";
/// Latencies are those at this share of what the slowest proxy can do.
const SHARE: f64 = 0.4;

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "HTTP/1.1",
            Self::Tls => "TLS",
            Self::Http2 => "HTTP/2",
            Self::Full => "new TLS",
            Self::Resumed => "resumed TLS",
            Self::WebSocket => "WebSocket",
            Self::Download => "1 MiB down",
            Self::Upload => "1 MiB up",
        }
    }

    fn connections(self) -> usize {
        match self {
            Self::Plain | Self::Tls | Self::WebSocket => 64,
            Self::Http2 => 10,
            Self::Full | Self::Resumed => 16,
            Self::Download | Self::Upload => 8,
        }
    }
}

/// What the rounds of one proxy brought.
#[derive(Default)]
struct Measured {
    /// For a second of its processor.
    per_cpu: Series,
    /// For a second.
    answers: Series,
    /// At a rate, in nanoseconds, of all rounds.
    latencies: Vec<u64>,
}

impl Bench<'_> {
    pub(super) async fn speed(&self) -> Result<Vec<Row>> {
        let mut proxies = Vec::new();
        for (program, path) in &self.programs {
            // It would be the same once more.
            if *program == Program::Feed {
                continue;
            }
            proxies.push(self.start(*program, path, &hosts(0)).await?);
        }
        let all = Way::value_variants();
        let ways = if self.options.ways.is_empty() { all } else { &self.options.ways };
        let mut rows = Vec::new();
        for way in ways {
            rows.extend(self.way(*way, &proxies).await?);
        }
        Ok(rows)
    }

    async fn way(&self, way: Way, proxies: &[Proxy]) -> Result<Vec<Row>> {
        let seconds = self.options.seconds.as_secs_f64();
        let mut all: Vec<Measured> = proxies.iter().map(|_| Measured::default()).collect();
        progress(&format!("{}: as fast as it goes", way.name()));
        for _ in 0..self.options.rounds {
            for (measured, proxy) in all.iter_mut().zip(proxies) {
                let outcome = self.load(way, proxy, None).await?;
                let done = f64::from(u32::try_from(outcome.done)?);
                measured.per_cpu.push(done / outcome.spent.as_secs_f64());
                measured.answers.push(done / seconds);
            }
        }
        let slowest = all.iter().map(|one| one.answers.median()).fold(f64::INFINITY, f64::min);
        let rate = slowest * SHARE;
        progress(&format!("{}: {rate:.0} a second", way.name()));
        for _ in 0..self.options.rounds {
            for (measured, proxy) in all.iter_mut().zip(proxies) {
                let outcome = self.load(way, proxy, Some(rate)).await?;
                measured.latencies.extend(outcome.latencies);
            }
        }
        rows(way, rate, proxies, &mut all)
    }

    async fn load(&self, way: Way, proxy: &Proxy, rate: Option<f64>) -> Result<Outcome> {
        let load = Load {
            way,
            connections: way.connections(),
            rate,
            ports: proxy.ports,
            trust: &self.trust,
        };
        // Connections are made meanwhile, and pools filled.
        let warm = (self.options.seconds / 5).max(Duration::from_millis(20));
        let during = async {
            tokio::time::sleep(self.options.seconds).await;
            Ok(())
        };
        let about = || format!("{} through {}", way.name(), proxy.program.name());
        let outcome = load.run(warm, || proxy.cpu(), during).await.with_context(about)?;
        match outcome.error {
            Some(error) => {
                Err(error.context(format!("{} failed", outcome.failed))).with_context(about)
            }
            None if outcome.done == 0 || outcome.spent.is_zero() => {
                bail!("{}: no answer", about())
            }
            None => Ok(outcome),
        }
    }
}

fn rows(way: Way, rate: f64, proxies: &[Proxy], all: &mut [Measured]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let best_of_others = Series::best(
        proxies
            .iter()
            .zip(&*all)
            .filter(|(proxy, _)| !proxy.program.is_ours())
            .map(|(_, one)| &one.per_cpu),
    );
    for (proxy, measured) in proxies.iter().zip(all) {
        let row = |metric, unit, value| Row {
            bench: "ingress",
            case: proxy.program.name(),
            params: BTreeMap::from([("way", way.name().into())]),
            metric,
            unit,
            value: rounded(value),
            baseline: None,
            ratio: None,
        };
        let ratio = best_of_others
            .as_ref()
            .filter(|_| proxy.program.is_ours())
            .map(|best| rounded(measured.per_cpu.relative_to(best).median));
        rows.push(Row {
            baseline: ratio.map(|_| BEST),
            ratio,
            ..row("per_cpu", "1/s", measured.per_cpu.median())
        });
        rows.push(row("answers", "1/s", measured.answers.median()));
        measured.latencies.sort_unstable();
        for (metric, part) in [("p50", 500), ("p99", 990), ("p999", 999)] {
            let nanoseconds = per_mille(&measured.latencies, part);
            let microseconds = Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6;
            let mut row = row(metric, "us", microseconds);
            row.params.insert("rate", whole(rate)?.into());
            rows.push(row);
        }
    }
    Ok(rows)
}

/// As a number that counts.
fn whole(rate: f64) -> Result<u64> {
    Ok(format!("{rate:.0}").parse()?)
}
