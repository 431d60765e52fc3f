//! Which agent runs, or ran last, on disk: for whoever looks while it is away.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::options::Options;

/// The file's name in the state folder.
const FILE: &str = "agent.json";

/// What an agent writes down when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct About {
    /// Of the program.
    pub(crate) version: String,
    /// Of its tables.
    pub(crate) abi: u32,
    /// The node's name.
    pub(crate) node: String,
    /// As it was typed, or as flannel's configuration says.
    pub(crate) backend: String,
    /// The control plane's address, or the folder of manifests.
    pub(crate) source: String,
    /// When it started, in seconds since 1970.
    pub(crate) since: u64,
    /// Where it can be asked.
    pub(crate) metrics: SocketAddr,
}

impl About {
    /// The agent that starts now with these options.
    pub(crate) fn new(options: &Options, node: &str) -> Self {
        let folder = options.manifests.as_ref().map(|folder| folder.display().to_string());
        let backend = options.backend.to_possible_value();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: fairway_abi::VERSION,
            node: node.to_owned(),
            backend: backend.map(|value| value.get_name().to_owned()).unwrap_or_default(),
            source: folder.unwrap_or_else(|| options.feed.join(",")),
            since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            metrics: options.metrics_bind,
        }
    }

    /// Writes it down. After a power failure it says no more than that an agent ran, so nothing
    /// waits for the disk.
    pub(crate) fn write(&self, state_dir: &Path) -> Result<()> {
        let contents = serde_json::to_vec_pretty(self).context("encode what the agent is")?;
        let file = state_dir.join(FILE);
        fairway_feed::disk::replace_unsynced(&file, &contents)
            .with_context(|| format!("write {}", file.display()))
    }

    /// What the last one wrote; none if nothing can be read.
    pub(crate) fn read(state_dir: &Path) -> Option<Self> {
        let contents = fs::read(state_dir.join(FILE)).ok()?;
        serde_json::from_slice(&contents).ok()
    }
}
