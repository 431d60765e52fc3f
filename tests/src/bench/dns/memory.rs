//! What a server weighs with a single name, and with all of them.

use anyhow::{Context as _, Result};

use super::Bench;
use super::records::{ENDPOINTS, Records};
use crate::bench::progress;
use crate::bench::report::Row;

impl Bench<'_> {
    pub(super) fn memory(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (program, _) in &self.programs {
            progress(&format!("memory of {}", program.name()));
            for records in [Records { services: 1, headless: 0 }, self.records] {
                let about = || format!("memory of {}", program.name());
                let server = self.start(*program, records).with_context(about)?;
                let mut row = Self::row(program.name(), "memory", "MB", server.memory()? / 1e6);
                row.params.insert("services", u64::from(records.services).into());
                row.params.insert("endpoints", u64::from(records.headless * ENDPOINTS).into());
                rows.push(row);
            }
        }
        Ok(rows)
    }
}
