//! Names of others as a pod asks for them: with `ndots:5`, along its search list.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Bench;
use super::client::{Client, Said, Site};
use super::records::{Records, ZONE, namespace};
use super::server::Server;
use super::upstream::NOWHERE;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::stats::percentile;

/// Names that are asked for once each.
const NAMES: u32 = 1000;

impl Bench<'_> {
    pub(super) fn search(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (program, _) in &self.programs {
            if !program.forwards() {
                continue;
            }
            progress(&format!("search path of {}", program.name()));
            let about = || format!("search path of {}", program.name());
            let server = self.start(*program, Records { services: 1, headless: 0 })?;
            rows.extend(search(&server).with_context(about)?);
        }
        Ok(rows)
    }
}

fn search(server: &Server) -> Result<Vec<Row>> {
    let list = [
        format!("{}.svc.{ZONE}", namespace(0)),
        format!("svc.{ZONE}"),
        ZONE.to_owned(),
        NOWHERE.to_owned(),
    ];
    let client = Client::of(server.address, &Site::default())?;
    let (mut queries, mut times) = (0_u32, Vec::new());
    let before = server.cpu()?;
    for number in 0..NAMES {
        let name = format!("host-{number}.example");
        let began = Instant::now();
        let mut found = None;
        for suffix in list.iter().map(|domain| format!(".{domain}")).chain([String::new()]) {
            queries += 1;
            match client.ask(&format!("{name}{suffix}"))? {
                Some(Said::NoName) => {}
                other => {
                    found = other;
                    break;
                }
            }
        }
        let Some(Said::Address(_)) = found else { bail!("{name}: {found:?}") };
        times.push(began.elapsed());
    }
    let spent = (server.cpu()? - before).as_secs_f64() / f64::from(NAMES);
    times.sort_unstable();
    let time = |percent| percentile::<Duration>(&times, percent).as_secs_f64() * 1e6;
    let row = |metric, unit, value| {
        let mut row = Bench::row(server.program.name(), metric, unit, value);
        row.params.insert("way", "search path".into());
        row
    };
    Ok(vec![
        row("queries of a name", "", f64::from(queries) / f64::from(NAMES)),
        row("CPU of a name", "us", spent * 1e6),
        row("p50", "us", time(50)),
        row("p99", "us", time(99)),
    ])
}
