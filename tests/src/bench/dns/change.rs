//! From a change to the answer that has it.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Bench;
use super::server::Program;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::stats::percentile;

impl Bench<'_> {
    pub(super) fn change(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (program, _) in &self.programs {
            // It reads its names at its start, or takes them from a tool that is another process.
            if *program == Program::Unbound {
                continue;
            }
            progress(&format!("changes of {}", program.name()));
            let about = || format!("changes of {}", program.name());
            let mut server = self.start(*program, self.records).with_context(about)?;
            let mut times = Vec::new();
            for _ in 0..self.options.changes {
                times.push(server.change().with_context(about)?);
            }
            times.sort_unstable();
            for (metric, percent) in [("p50", 50), ("p99", 99)] {
                let time: Duration = percentile(&times, percent);
                let mut row = Self::row(*program, metric, "ms", time.as_secs_f64() * 1e3);
                row.params.insert("way", "change".into());
                rows.push(row);
            }
        }
        Ok(rows)
    }
}
