//! What each proxy is told: the same, each in its own words, as well as it can be told.
//!
//! All keep connections to clients and to the backend, have session tickets, TLS 1.3 and no access log, tell the
//! backend who asks (`X-Forwarded-For`, `X-Forwarded-Proto`, `X-Request-ID`), agree to WebSocket, and pass bodies on
//! as they come. Hosts that nobody has are answered with 404.

pub(super) mod envoy;
pub(super) mod fairway;
pub(super) mod haproxy;
pub(super) mod nginx;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::proxy::Ports;

/// A proxy's files, and where it listens.
#[derive(Debug)]
pub(super) struct Files {
    /// Where they are.
    pub folder: PathBuf,
    /// Where it takes requests.
    pub ports: Ports,
}

impl Files {
    /// In a folder that is made, for ports that nobody has.
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), ports: Ports::free()? })
    }

    /// What it prints.
    pub(super) fn log(&self) -> PathBuf {
        self.path("log")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file's path as text.
    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file; whoever reads it meanwhile has all of the old one or of the new one.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let about = || format!("write {}", path.display());
        let folder = path.parent().with_context(about)?;
        fs::create_dir_all(folder).with_context(about)?;
        // Beside the folder, where nobody looks for new files.
        let new = self.folder.join(".new");
        fs::write(&new, text).with_context(about)?;
        fs::rename(&new, &path).with_context(about)
    }
}
