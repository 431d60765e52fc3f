//! What a proxy weighs when there is nothing to do, with idle connections, and with many hosts.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::load::idle;
use super::proxy::Program;
use super::{Bench, hosts};
use crate::bench::progress;
use crate::bench::report::{Row, rounded};

/// Who open connections at the same time.
const OPENERS: u32 = 16;

impl Bench<'_> {
    pub(super) async fn memory(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (program, path) in &self.programs {
            progress(&format!("memory of {}", program.name()));
            let about = || format!("memory of {}", program.name());
            rows.extend(self.memory_of(*program, path).await.with_context(about)?);
        }
        Ok(rows)
    }

    async fn memory_of(&self, program: Program, path: &Path) -> Result<Vec<Row>> {
        let row = |param: (&'static str, u32), metric, unit, value| Row {
            bench: "ingress",
            case: program.name(),
            params: BTreeMap::from([(param.0, u64::from(param.1).into())]),
            metric,
            unit,
            value: rounded(value),
            baseline: None,
            ratio: None,
        };
        let (connections, more) = (self.options.connections, self.options.hosts);
        let proxy = self.start(program, path, &hosts(0)).await?;
        let before = proxy.memory()?;
        let mut openers = JoinSet::new();
        for opener in 0..OPENERS {
            let number = connections / OPENERS + u32::from(opener < connections % OPENERS);
            let (trust, https) = (self.trust.clone(), proxy.ports.https);
            openers.spawn(async move { idle(number, https, &trust).await });
        }
        let mut open = Vec::new();
        while let Some(opened) = openers.join_next().await {
            open.extend(opened??);
        }
        let each = (proxy.memory()? - before) / f64::from(connections);
        drop(open);
        drop(proxy);
        let proxy = self.start(program, path, &hosts(more)).await?;
        let with_hosts = proxy.memory()?;
        Ok(vec![
            row(("hosts", 1), "memory", "MB", before / 1e6),
            row(("hosts", more), "memory", "MB", with_hosts / 1e6),
            row(("connections", connections), "memory of each", "KB", each / 1e3),
        ])
    }
}
