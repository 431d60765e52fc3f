//! From a change to the answer that has it: of ours through a control plane, its feed, and the agent; of the others through the file that they
//! read again.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Bench;
use super::node::Node;
use super::server::Program;
use crate::bench::report::Row;
use crate::bench::stats::percentile;
use crate::bench::{bed, progress};

impl Bench<'_> {
    pub(super) fn change(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (program, _) in &self.programs {
            // It reads its names at its start, or takes them from a tool that is another process.
            if *program == Program::Unbound {
                continue;
            }
            progress(&format!("changes of {}", program.name()));
            let times = if program.is_ours() {
                self.changes_of_ours()
            } else {
                self.start(*program, self.records)
                    .and_then(|mut server| self.changes(|| server.change()))
            };
            let mut times = times.with_context(|| format!("changes of {}", program.name()))?;
            times.sort_unstable();
            for (metric, percent) in [("p50", 50), ("p99", 99)] {
                let time: Duration = percentile(&times, percent);
                let mut row = Self::row(program.name(), metric, "ms", time.as_secs_f64() * 1e3);
                row.params.insert("way", "change".into());
                rows.push(row);
            }
        }
        Ok(rows)
    }

    fn changes_of_ours(&self) -> Result<Vec<Duration>> {
        bed::run(1, 0, self.options.bin_dir.clone(), |bed| {
            let mut node = Node::start(bed, 0, self.records, true, self.cpu)?;
            self.changes(|| node.change())
        })
    }

    fn changes(&self, mut change: impl FnMut() -> Result<Duration>) -> Result<Vec<Duration>> {
        (0..self.options.changes).map(|_| change()).collect()
    }
}
